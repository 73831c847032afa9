"""Passes in reduced precision: which, that they learn alike, and under the caller's own."""

import pytest
import torch
from test_finetune import QUICK, digits, energy  # noqa: F401 (a fixture)
from torch import nn

from ebm_from_clf.denoise import WarmStart
from ebm_from_clf.finetune import Finetuner, finetune
from ebm_from_clf.precision import is_reduced, passes
from ebm_from_clf.settings import Settings

CPU = torch.device("cpu")


def learned(digits, context=None, **options):  # noqa: F811
    """Returns the weights after some updates, flat."""
    e = energy(digits)
    with passes(context or "float32", CPU):
        finetune(e, digits, Settings(**(QUICK | {"updates": 6} | options)))
    return torch.cat([p.detach().flatten() for p in e.classifier.parameters()])


def test_only_the_network_is_reduced(digits):  # noqa: F811
    e = energy(digits)
    seen = set()
    tuner = Finetuner(e, digits, Settings(updates=2, precision="bfloat16", **QUICK))
    tuner.step(*next(tuner.batches()))  # where norms are folded, which is checked in float32
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, _, out: seen.add(out.dtype) if isinstance(m, nn.Conv2d) else None
    )
    try:
        tuner.run()
    finally:
        handle.remove()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in e.classifier.parameters()} == {torch.float32}
    assert all(p.grad.any() for p in e.classifier.parameters())
    x, y, *_ = next(tuner.batches())
    assert tuner.gen.synthesize(y).images.dtype == torch.float32
    assert e.logits(x).dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("warm", [0, 3])
def test_it_learns_what_single_precision_learns(digits, warm):  # noqa: F811
    options = {"optimizer": "sgd", "warm_start": WarmStart(warm)}
    before = torch.cat([p.detach().flatten() for p in energy(digits).classifier.parameters()])
    single = learned(digits, **options) - before
    reduced = learned(digits, precision="bfloat16", **options) - before
    difference = (single - reduced).norm() / single.norm()
    assert 1e-5 < difference < 0.15


def test_weights_are_followed_under_an_autocast_of_the_caller(digits):  # noqa: F811
    """It remembers weights as they were when it first met them, unless it is told to forget."""
    reduced = learned(digits, precision="bfloat16")
    assert torch.equal(learned(digits, context="bfloat16"), reduced)


@pytest.mark.parametrize("tiles", [True, False])
def test_auto_is_what_the_processor_is_faster_in(monkeypatch, tiles):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert is_reduced("auto", CPU) is tiles
    assert not is_reduced("auto", torch.device("cuda"))
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not is_reduced("auto", CPU)
    assert is_reduced("bfloat16", CPU) and not is_reduced("float32", CPU)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="`precision` is .*bfloat16"):
        Settings(precision="half")
