"""The propositions that hold for every network, on architectures of timm, in double precision."""

import pytest
import test_theory
import torch
import toys
from test_recursion import create

from ebm_from_clf import convert
from ebm_from_clf.langevin import Langevin
from ebm_from_clf.theory import examine, examine_theory, identities, scene

# Sizes at which the last layers still see more than one place, or the scores of images differ.
NETWORKS = [
    ("resnet18", 48, "piecewise linear", {}),
    ("vgg11", 48, "piecewise linear", {}),
    ("densenet121", 48, "piecewise linear", {}),
    ("repvgg_a0", 48, "piecewise linear", {}),
    ("mobilenetv2_050", 48, "piecewise linear", {}),
    ("regnetx_002", 48, "piecewise linear", {}),
    ("tf_efficientnet_lite0", 48, "piecewise linear", {}),
    ("demo:efficientnet_lite0", 48, "piecewise linear", {}),
    ("fasternet_t0", 64, "elementwise", {}),
    ("convnext_atto", 64, "general", {}),
    ("mobilenetv3_small_050", 64, "general", {}),
    ("regnety_002", 64, "general", {}),
    ("poolformer_s12", 64, "general", {}),
    ("vit_tiny_patch16_224", 64, "general", {"img_size": 64, "patch_size": 8}),
    ("deit_tiny_distilled_patch16_224", 64, "general", {"img_size": 64}),
    ("swin_tiny_patch4_window7_224", 64, "general", {"img_size": 64, "window_size": 4}),
    ("mixer_s32_224", 64, "general", {"img_size": 64}),
    ("resmlp_12_224", 64, "elementwise", {"img_size": 64}),
]
# Differences of F and log p may cross kinks; of most networks they are 1e-9, here 1e-3 at most.
DIFFERENCES = {
    "the drift of the chain is B - u",
    "log p changes with the weights by its gradient",
}


def varied(name, **options):
    """A network in which every part does something: heads of 0 and scales of 1e-6 do nothing."""
    network, g = create(name, **options), toys.seeded(5)
    for key, p in network.named_parameters():
        if p.numel() > 1 and (p == p.flatten()[0]).all():
            low, high = (-0.3, 0.3) if p.ndim > 1 or key.endswith("bias") else (0.5, 1.5)
            p.data = low + (high - low) * torch.rand(p.shape, generator=g)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name, size, form, options", NETWORKS, ids=[n[0] for n in NETWORKS])
def test_what_holds_everywhere_holds_for_real_architectures(
    name, size, form, options, monkeypatch
):
    energy = convert(varied(name, **options), size=size, gain=3.0)
    # Minima are many borders away, and another matter.
    monkeypatch.setattr(examine, "minimum", lambda s: None)
    found = examine_theory(energy, name=name)
    assert found.census.form == form and not found.failed
    exact = {check.statement: check for check in found.checks if check.status == "exact"}
    assert len(exact) == {"general": 8, "elementwise": 9, "piecewise linear": 13}[form]
    for statement, check in exact.items():
        assert check.verdict == "holds", check
        # Ten times what it is for small networks: logits of thousands cost a softmax digits.
        limit = 10 * test_theory.EXACT.get(statement, 1e-12)
        assert check.error < (check.tolerance if statement in DIFFERENCES else limit), check
    seen = scene.Scene(energy, 0)
    logits = seen.structure.graph.logits
    assert logits.diff(dim=0).abs().max() > 1e-3 * logits.abs().max(), "the image is not seen"
    # Mutants: twice the drift, T for its root, and a loss that is too large.
    rows = (identities._preconditioned, identities._temperature, identities._likelihood)
    move, loss = Langevin._move, identities.likelihood
    monkeypatch.setattr(
        Langevin, "_move", lambda s, e, u, way, d, *rest: move(s, e, u, way, 2 * d, *rest)
    )
    assert rows[0](seen).verdict == "FAILS"
    monkeypatch.setattr(Langevin, "_move", move)
    monkeypatch.setattr(Langevin, "noise_std", lambda s, e: e * s.temperature)
    assert [row(seen).verdict for row in rows[:2]] == ["FAILS"] * 2
    monkeypatch.setattr(identities, "likelihood", lambda a, b: loss(a, 1.1 * b))
    assert rows[2](seen).verdict == "FAILS"
