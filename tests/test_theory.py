"""The table of propositions: small errors where it says exact, and none where it says not here."""

import json

import pytest
import timm
import torch
from test_cli import call
from test_recursion import create

from ebm_from_clf import PixelSpace, Smoothing, WhiteNoise, convert
from ebm_from_clf.graph import transpose
from ebm_from_clf.theory import examine_theory, identities, scene

# Rounding in double precision, but for the differences: of F over 2e-5, where kinks are crossed,
# and of U and of gradients over a step within a piece, about 1e-6 of the size of both.
EXACT = {
    "the drift of the chain is B - u": 1e-4,
    "the model is Gaussian on a piece": 1e-6,
    "CD-1 learns to reconstruct": 1e-6,
}


def table(network, size=32, **options):
    energy = convert(network, **({} if "space" in options else {"size": size}), **options)
    return energy, examine_theory(energy, name="it")


def test_all_propositions_are_exact_for_a_network_of_rectifiers():
    energy, found = table(create("test_resnet"))
    assert [check.status for check in found.checks] == ["exact"] * 10
    for check in found.checks:
        assert check.error < EXACT.get(check.statement, 1e-12), check
    assert found.shape == (3, 32, 32) and found.census.form == "piecewise linear"
    assert energy.classifier.fc.weight.dtype == torch.float32
    json.dumps(found.as_dict(), allow_nan=False)


def test_of_a_smooth_network_the_tangent_and_the_secant_are_left():
    _, found = table(create("fasternet_t0"), 64)
    status = {check.statement: check for check in found.checks}
    assert status["the top-down pass is the gradient"].status == "local"
    assert status["the top-down pass is the gradient"].error < 1e-10
    assert status["f = alpha + <G, u> with secants"].status == "exact"
    assert status["f = alpha + <G, u> with secants"].error < 1e-10
    gaussian = status["the model is Gaussian on a piece"]
    assert gaussian.status == "not here" and gaussian.error is None
    assert "gelu" in gaussian.note


@pytest.mark.parametrize(
    "name, options",
    [("test_convnext", {}), ("test_efficientnet", {}), ("test_vit", {"img_size": 64})],
)
def test_what_holds_for_every_network_holds_for_others(name, options):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = timm.create_model(name, num_classes=3, **options)
    _, found = table(network, 64, gain=3.0, gauge="centered", smoothing=Smoothing())
    for check in found.checks:
        if check.status == "not here":
            assert check.error is None and check.note
        else:
            exact = EXACT.get(check.statement, 1e-12)
            assert check.error < (exact if check.status == "exact" else 1e-4), check
    assert {check.status for check in found.checks} == {"exact", "local", "not here"}


def test_what_is_local_is_exact_to_first_order(monkeypatch):
    """Ten times nearer, its relative error is a tenth."""
    network = create("test_efficientnet")
    far, near = [], []
    for found, distance in ((far, 1e-2), (near, 1e-3)):
        monkeypatch.setattr(scene, "NEAR", distance)
        found += [c.error for c in table(network, 64)[1].checks if c.status == "local"]
    assert len(far) == len(near) == 2
    for one, other in zip(far, near, strict=True):
        assert other / one == pytest.approx(0.1, rel=0.1)


def test_a_network_that_rounds_on_its_way_is_looked_at_from_farther():
    class Rounding(torch.nn.Module):
        num_classes = 3

        def __init__(self):
            super().__init__()
            self.network = create("test_resnet")

        def forward(self, x):
            return self.network(x.float().to(x.dtype))

    _, found = table(Rounding(), space=PixelSpace([0.5] * 3, [0.25] * 3, (32, 32)))
    (drift,) = (c for c in found.checks if c.statement == "the drift of the chain is B - u")
    assert drift.error < 1e-2 and "rounds to lower precision" in drift.note


def test_a_wrong_pass_shows_in_the_table(monkeypatch):
    """Mutant: a norm without its scale."""
    monkeypatch.setitem(transpose.TRANSPOSES, "native_batch_norm", lambda o: lambda b: [b])
    _, found = table(create("test_resnet"))
    wrong = {check.statement for check in found.checks if check.error > 1e-3}
    assert wrong == {
        "the top-down pass is the gradient",
        "f = alpha + <B, u>",
        "image -> pattern -> B is an auto-encoder",
    }


def test_a_box_is_left_out():
    """Chains that are confined would not be those of the equations."""
    box = WhiteNoise(torch.full((3, 32, 32), 0.5), 0.4)
    _, found = table(create("test_resnet"), reference=box, support="clamp")
    assert all(check.error < EXACT.get(check.statement, 1e-12) for check in found.checks)


def test_a_wrong_loss_shows_in_the_table(monkeypatch):
    """Mutant: the contrastive loss with the sign of the other side."""
    right = identities.likelihood
    monkeypatch.setattr(identities, "likelihood", lambda a, b: -right(a, b))
    _, found = table(create("test_resnet"))
    wrong = {check.statement for check in found.checks if check.error > 1e-3}
    assert wrong == {"likelihood gradient: observed - synthesized"}


def test_the_command_prints_a_table():
    status, out, errors = call("theory", "test_resnet", "--pretrained=false", "--size=32")
    assert (status, errors) == (0, "")
    assert out.startswith("test_resnet: piecewise linear, images 3x32x32; operations: ")
    assert out.count("\n  exact  ") == 10


def test_the_command_prints_json_and_what_bends_a_network():
    arguments = ["theory", "test_efficientnet", "--pretrained=false", "--size=32"]
    status, out, errors = call(*arguments, "--json")
    assert (status, errors) == (0, "")
    found = json.loads(out)
    assert found["form"] == "general" and len(found["checks"]) == 11
    assert {"statement", "compared", "status", "error", "note"} == set(found["checks"][0])
    _, out, _ = call(*arguments)
    assert "bent by mul of SqueezeExcite (gate, 2 times, first in blocks.3.0.se)" in out
    assert "\n  not here  " in out
