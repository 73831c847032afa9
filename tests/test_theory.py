"""The table of propositions: small errors where it says exact, and none where it says not here."""

import json
import math
import warnings

import pytest
import timm
import torch
import toys
from test_cli import call
from test_recursion import create

from ebm_from_clf import (
    ClassifierEnergy,
    PixelSpace,
    Smoothing,
    WhiteNoise,
    convert,
    langevin,
    save,
)
from ebm_from_clf.graph import rectifier, transpose
from ebm_from_clf.prototype import PrototypeLaw
from ebm_from_clf.theory import (
    Structure,
    examine_theory,
    identities,
    kinks,
    memory,
    one_layer,
    piecewise,
    scene,
    structure,
)

# Rounding in double precision, but for the differences: of F and log p over what may cross kinks,
# and of U and of gradients over a step within a piece, about 1e-6 of the size of both; and for
# quadrature.
EXACT = {
    "the drift of the chain is B - u": 1e-4,
    "log p changes with the weights by its gradient": 1e-4,
    "the model is Gaussian on a piece": 1e-6,
    "CD-1 learns to reconstruct": 1e-6,
    "a minimum is its own reconstruction": 1e-6,
    "generative = discriminative: p(c | u)": 1e-11,
}


KINKS = "kinks with slopes between 0 and 1"
MINIMUM = "a minimum is its own reconstruction"
LAYER = "one layer: log Z and slopes are closed forms"
BAYES = "generative = discriminative: p(c | u)"


def table(network, size=32, **options):
    energy = convert(network, **({} if "space" in options else {"size": size}), **options)
    return energy, examine_theory(energy, name="it")


def test_all_propositions_are_exact_for_a_network_of_rectifiers():
    energy, found = table(create("test_resnet"))
    table_of = {check.statement: check for check in found.checks}
    assert table_of.pop(MINIMUM).verdict == "not here", "a max-pool"
    assert [check.status for check in table_of.values()] == ["exact"] * 13
    for check in table_of.values():
        assert check.error < EXACT.get(check.statement, 1e-12) <= check.tolerance, check
        assert check.verdict == "holds"
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
            assert check.verdict == ("holds" if check.status == "exact" else "local only")
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
    assert drift.error < 5e-3 and "rounds to lower precision" in drift.note
    assert not found.failed and drift.verdict == "not here", "or it could not fail"
    assert [check.verdict for check in found.checks].count("holds") == 10


def test_a_wrong_pass_shows_in_the_table(monkeypatch):
    """Mutant: a norm without its scale."""
    monkeypatch.setitem(transpose.TRANSPOSES, "native_batch_norm", lambda o: lambda b: [b])
    _, found = table(create("test_resnet"))
    assert {check.statement for check in found.failed} == {
        "the top-down pass is the gradient",
        "f = alpha + <B, u>",
        "image -> pattern -> B is an auto-encoder",
    }


def test_a_box_is_left_out():
    """Chains that are confined would not be those of the equations."""
    box = WhiteNoise(torch.full((3, 32, 32), 0.5), 0.4)
    _, found = table(create("test_resnet"), reference=box, support="clamp")
    for check in found.checks:
        assert check.statement == MINIMUM or check.error < EXACT.get(check.statement, 1e-12)


def test_a_wrong_loss_shows_in_the_table(monkeypatch):
    """Mutant: the contrastive loss with the sign of the other side."""
    right = identities.likelihood
    monkeypatch.setattr(identities, "likelihood", lambda a, b: -right(a, b))
    _, found = table(create("test_resnet"))
    assert {check.statement for check in found.failed} == {
        "likelihood gradient: observed - synthesized"
    }


def rectified(weight=1.0, seed=0):
    """A network of one layer, of which weights as these make minima on kinks."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        layers = torch.nn.Linear(48, 30), torch.nn.ReLU(), torch.nn.Linear(30, 3)
        network = torch.nn.Sequential(torch.nn.Flatten(), *layers)
    for layer in network:
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data *= weight
    network.num_classes = 3
    return network


def minimum(network, **options):
    space = PixelSpace([0.5] * 3, [0.25] * 3, (4, 4))
    _, found = table(network, space=space, **options)
    (check,) = (c for c in found.checks if c.statement == MINIMUM)
    return check


@pytest.mark.parametrize("weight, on_kinks", [(0.3, False), (1.5, True)])
def test_minima_are_their_reconstructions_in_pieces_and_on_kinks(weight, on_kinks):
    check = minimum(rectified(weight))
    assert check.verdict == "holds" and check.error < 1e-9
    assert check.note.startswith("kinks with slopes" if on_kinks else "inside of a piece")


@pytest.mark.parametrize("weight", [0.3, 1.5])
def test_what_is_beside_a_minimum_fails(weight, monkeypatch):
    right = memory.descend

    def beside(*args, **options):
        found = right(*args, **options)
        return found._replace(u=found.u * 1.01)

    monkeypatch.setattr(memory, "descend", beside)
    assert minimum(rectified(weight)).verdict == "FAILS"


def test_the_minimum_of_a_wrong_reconstruction_fails(monkeypatch):
    """Mutant: B is a fifth too large. On kinks the slopes that are found would make up for it."""
    plane = Structure.plane
    monkeypatch.setattr(
        Structure, "plane", lambda *a: plane(*a)._replace(slope=1.2 * plane(*a).slope)
    )
    assert minimum(rectified(0.3)).verdict == "FAILS"


def test_of_a_minimum_that_is_not_met_nothing_is_said(monkeypatch):
    monkeypatch.setattr(memory, "BORDERS", 1)
    check = minimum(rectified(1.5))
    assert check.verdict == "not here" and "not reached in 1 borders" in check.note


def test_a_wrong_constant_of_the_prototype_fails(monkeypatch):
    """Mutant: log Z with half of the norms of the filters."""
    assert one_layer.one_layer().verdict == "holds"

    class Wrong(PrototypeLaw):
        def __init__(self, energy):
            super().__init__(energy)
            self.log_z = self.log_z - self.tau.square().sum() / 4

    monkeypatch.setattr(one_layer, "PrototypeLaw", Wrong)
    _, found = table(create("test_resnet"))
    assert [check.statement for check in found.failed] == [LAYER, BAYES]


def test_a_chain_that_drifts_too_far_fails(monkeypatch):
    """Mutant: chains go twice as far along the score."""
    right = langevin.energy_and_score
    monkeypatch.setattr(langevin, "energy_and_score", lambda *a: (right(*a)[0], 2 * right(*a)[1]))
    _, found = table(create("test_resnet"))
    assert {check.statement for check in found.failed} == {
        "CD-1 learns to reconstruct",
        "the drift of the chain is B - u",
        "a step in u is a preconditioned one in x",
    }


def test_a_loss_of_half_the_size_fails(monkeypatch):
    """Mutant: CD-1 with a loss that is not the likelihood's."""
    right = piecewise.likelihood
    monkeypatch.setattr(piecewise, "likelihood", lambda *a: right(*a) / 2)
    _, found = table(create("test_resnet"))
    assert [check.statement for check in found.failed] == ["CD-1 learns to reconstruct"]


def test_what_is_not_a_number_fails_and_what_rounding_hides_is_not_judged():
    for error, tolerance, verdict in [
        (math.nan, 1e-6, "FAILS"),
        (math.nan, None, "FAILS"),
        (1e-7, 1e-6, "holds"),
        (2e-6, 1e-6, "FAILS"),
        (50.0, 100.0, "not here"),
        (1e-9, 2e-2, "not here"),
        (3e-2, 2e-2, "FAILS"),
        (math.nan, 2e-2, "FAILS"),
        (1e-3, 1e-2, "holds"),
        (None, None, "not here"),
    ]:
        assert scene.Check("it", "this, that", "exact", error, "", tolerance).verdict == verdict
    assert scene.Check("it", "this, that", "local", 0.1).verdict == "local only"


def test_the_command_fails_with_the_names_of_what_fails(monkeypatch):
    """Mutant: a loss with the sign of the other side."""
    right = identities.likelihood
    monkeypatch.setattr(identities, "likelihood", lambda a, b: -right(a, b))
    status, out, errors = call("theory", "test_resnet", "--pretrained=false", "--size=32")
    assert status == 1 and out.count("\n  FAILS  ") == 1
    assert errors == (
        "ebm-from-clf: theory: 1 of 14 propositions fail: "
        "likelihood gradient: observed - synthesized.\n"
    )
    arguments = ["theory", "test_resnet", "--pretrained=false", "--size=32", "--json"]
    status, out, errors = call(*arguments)
    assert status == 1 and "propositions fail" in errors
    verdicts = [check["verdict"] for check in json.loads(out)["checks"]]
    assert verdicts.count("FAILS") == 1


def test_the_command_prints_a_table():
    status, out, errors = call("theory", "test_resnet", "--pretrained=false", "--size=32")
    assert (status, errors) == (0, "")
    assert out.startswith("test_resnet: piecewise linear, images 3x32x32; operations: ")
    assert out.count("\n  holds  ") == 13


def test_the_command_prints_json_and_what_bends_a_network():
    arguments = ["theory", "test_efficientnet", "--pretrained=false", "--size=32"]
    status, out, errors = call(*arguments, "--json")
    assert (status, errors) == (0, "")
    found = json.loads(out)
    assert found["form"] == "general" and len(found["checks"]) == 15
    fields = {"statement", "compared", "status", "error", "note", "tolerance", "verdict"}
    assert fields == set(found["checks"][0])
    _, out, _ = call(*arguments)
    assert "bent by mul of SqueezeExcite (gate, 2 times, first in blocks.3.0.se)" in out
    assert "\n  not here  " in out


def test_it_runs_within_inference_mode():
    with torch.inference_mode():
        found = examine_theory(toys.smooth())
    assert not found.failed and found.checks[-1].error is not None


def unpooled():
    """A residual network of timm whose only kinks are those of ReLUs, as for small images."""
    network = create("test_resnet")
    network.maxpool = torch.nn.Identity()
    return network


@pytest.mark.parametrize("gain", [3.0, 10.0])
def test_a_residual_network_comes_to_its_minimum(gain, monkeypatch):
    scene_of = lambda: scene.Scene(convert(unpooled(), size=16, gain=gain), 0)  # noqa: E731
    check = memory.minimum(scene_of())
    assert check.verdict == "holds" and check.error < 1e-9
    assert check.note == ("inside of a piece" if gain < 5 else f"{KINKS}: 8")
    # Mutants: beside it; and, on kinks, with slopes that are all 0 or 1.
    right = memory.descend
    monkeypatch.setattr(
        memory, "descend", lambda *a, **k: right(*a, **k)._replace(u=1.01 * right(*a, **k).u)
    )
    assert memory.minimum(scene_of()).verdict == "FAILS"
    monkeypatch.setattr(memory, "descend", right)
    settle = kinks._Walk.settle
    monkeypatch.setattr(kinks._Walk, "settle", lambda *a: (settle(*a)[0], a[0].on, settle(*a)[2]))
    assert memory.minimum(scene_of()).verdict == ("holds" if gain < 5 else "FAILS")


def test_a_large_image_is_given_up_in_bounded_work(monkeypatch):
    monkeypatch.setattr(memory, "WORK", 11648 * 3)
    check = memory.minimum(scene.Scene(convert(unpooled(), size=16, gain=10.0), 0))
    assert check.verdict == "not here" and "not reached in 4 borders" in check.note


SMALL = PixelSpace([0.5] * 3, [0.25] * 3, (8, 8))


class Head(torch.nn.Module):
    """Means over the image, through something odd."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(1)
            self.first, self.last = torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.odd(self.first(x)).mean((2, 3)))

    def odd(self, x):
        return x.relu()


def small(network):
    reference = WhiteNoise(torch.full((3, 8, 8), 0.5), 0.25)
    return ClassifierEnergy(network, reference, SMALL)


def verdicts(network):
    return {c.statement: c for c in examine_theory(small(network)).checks}


def test_torch_has_the_slope_of_hardsigmoid_in_single_precision(monkeypatch):
    class Hard(Head):
        def odd(self, x):
            return torch.nn.functional.hardsigmoid(x)

    statement = "the top-down pass is the gradient"
    found = verdicts(Hard())
    assert 1e-9 < found[statement].error < 1e-7, "or the tolerance may go"
    assert not [c for c in found.values() if c.verdict == "FAILS"]
    # Mutant: a slope of 1 in 5.999.
    right = rectifier.RECTIFIERS["hardsigmoid"]
    monkeypatch.setitem(
        rectifier.RECTIFIERS, "hardsigmoid", lambda o, r: ((-3.0, 3.0), right(o, r)[1] * 6 / 5.999)
    )
    assert verdicts(Hard())[statement].verdict == "FAILS"


def test_of_a_network_in_half_precision_nothing_is_said():
    class Half(Head):
        def odd(self, x):
            return x.to(torch.bfloat16).to(x.dtype).relu()

    found = verdicts(Half())
    assert found.pop(LAYER).verdict == found.pop(BAYES).verdict == "holds"
    assert {c.verdict for c in found.values()} == {"not here"}
    compared = [c for c in found.values() if c.error is not None]
    assert len(compared) > 5 and all(str(c).endswith("; rounding hides it") for c in compared)


@pytest.mark.parametrize("slope", [1e-18, 0.0, 1e-6])
def test_of_a_score_that_hardly_depends_on_the_image_little_is_said(slope, monkeypatch):
    class Faint(Head):
        def odd(self, x):
            return slope * x.relu()

    found = examine_theory(small(Faint()))
    checks = {c.statement: c.verdict for c in found.checks}
    hidden = [s for s, verdict in checks.items() if verdict == "not here"]
    note = "  the score hardly depends on the image: |B| is "
    assert not found.failed and (slope == 1e-6) == (note not in str(found).splitlines()[1])
    if slope == 1e-6:
        assert found.note == "" and checks["the top-down pass is the gradient"] == "holds"
        return
    rest = {"likelihood gradient: observed - synthesized", "Bayes: no gauge changes the posterior"}
    rest |= {"log p changes with the weights by its gradient", LAYER, BAYES}
    assert set(checks) - set(hidden) <= rest and len(hidden) >= 9
    assert str(found).count("; the score hardly depends on the image\n") >= 8
    assert found.as_dict()["note"].startswith(note.strip())
    # A pass that is wrong fails all the same.
    plane = Structure.plane
    monkeypatch.setattr(
        Structure, "plane", lambda *a: plane(*a)._replace(slope=plane(*a).slope + 1)
    )
    failed = {c.statement for c in examine_theory(small(Faint())).failed}
    assert "the top-down pass is the gradient" in failed


def test_a_gradient_of_weights_that_is_wrong_shows():
    """Mutant: a network whose weights get twice the gradient that they have."""
    statement = "log p changes with the weights by its gradient"

    class Twice(Head):
        def forward(self, x):
            w = 2 * self.last.weight - self.last.weight.detach()
            return torch.nn.functional.linear(self.first(x).relu().mean((2, 3)), w)

    assert verdicts(Head())[statement].error < 1e-6
    assert verdicts(Twice())[statement].verdict == "FAILS"


def test_of_a_large_network_the_weights_of_its_small_tensors_are_seen(monkeypatch):
    monkeypatch.setattr(scene, "WEIGHTS", 30)
    likely = "likelihood gradient: observed - synthesized"
    learned = {
        likely,
        "log p changes with the weights by its gradient",
        "CD-1 learns to reconstruct",
    }
    found = verdicts(Head())
    for name in learned:
        assert found[name].verdict == "holds" and "0.0 M of 0.0 M weights" in found[name].note
    weights = scene.Scene(small(Head()), 0).weights
    assert sorted(w.numel() for w in weights) == [3, 5, 15]
    right = identities.likelihood
    # Mutants: too large; and of images that count alike.
    monkeypatch.setattr(identities, "likelihood", lambda a, b: right(a, 1.1 * b))
    assert verdicts(Head())[likely].verdict == "FAILS"
    monkeypatch.setattr(identities, "likelihood", lambda a, b: right(a, b / b.detach()))
    assert verdicts(Head())[likely].verdict == "FAILS"


def test_of_weights_that_no_score_depends_on_nothing_is_learned(monkeypatch):
    class Unused(Head):
        def __init__(self):
            super().__init__()
            self.spare = torch.nn.Parameter(torch.zeros(2))

    monkeypatch.setattr(scene, "WEIGHTS", 2)
    found = verdicts(Unused())
    assert sum("depend on the smallest of its weights" in c.note for c in found.values()) == 3
    assert not [c for c in found.values() if c.verdict == "FAILS"]


def test_networks_of_odd_parts_are_examined():
    class Fourier(Head):
        def odd(self, x):
            return torch.fft.rfft2(x).abs()

    class Indexed(Head):
        def __init__(self):
            super().__init__()
            self.order = torch.nn.Parameter(torch.tensor([4, 3, 2, 1, 0]), requires_grad=False)

        def odd(self, x):
            return x[:, self.order].relu()

    class Bare(torch.nn.Module):
        num_classes = 3

        def forward(self, x):
            return x.relu().mean((2, 3))

    for network, unread in ((Fourier(), 2), (Indexed(), 0), (Bare(), 0)):
        found = examine_theory(small(network))
        assert not found.failed and found.census.count("unread") == unread
    assert sum("no weights" in check.note for check in found.checks) == 3
    x = torch.rand(2, 3, 8, 8, generator=toys.seeded())
    with pytest.raises(ValueError, match="_fft_r2c"):
        structure(small(Fourier()), x).plane(torch.tensor([0, 1]))


def test_networks_that_cannot_be_examined_are_refused_in_one_line():
    class Unregistered(Head):
        def __init__(self):
            super().__init__()
            self.matrix = torch.eye(5)

        def odd(self, x):
            return torch.einsum("bchw,cd->bdhw", x, self.matrix)

    class Constant(Head):
        def forward(self, x):
            return self.last(torch.ones_like(self.last.weight[:1])).expand(len(x), 3)

    class Lost(Head):
        def odd(self, x):
            return x / 0 * 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of newer versions
        traced = torch.jit.trace(Head(), torch.rand(1, 3, 8, 8))
    wrapped = torch.nn.Sequential(traced)
    for network, match in [
        (Unregistered(), "parameters or buffers"),
        (Constant(), "do not depend on the image"),
        (Lost(), "not finite"),
        (wrapped, "TorchScript"),
    ]:
        with pytest.raises(ValueError, match=match) as caught:
            examine_theory(small(network))
        assert "\n" not in str(caught.value)
    # The graph of the traced one is read like that of the network itself.
    x = torch.rand(2, 3, 8, 8, generator=toys.seeded())
    found, own = (structure(small(n), x).plane(torch.tensor([0, 1])) for n in (wrapped, Head()))
    assert (found.slope - own.slope).abs().max() < 1e-6 * own.slope.abs().max()


def test_the_command_takes_the_gain_and_the_reference_of_a_saved_energy(tmp_path):
    reference = WhiteNoise(torch.full((3, 32, 32), 0.4), 0.3)
    energy = convert(create("test_resnet"), size=32, reference=reference, gain=7.0)
    save(energy, tmp_path / "model")
    status, out, errors = call("theory", tmp_path / "model", "--size=32")
    assert (status, errors) == (0, "")
    assert call("theory", tmp_path / "model", "--size=48")[0] == 2
    assert out.splitlines()[0].endswith("; gain 7, reference WhiteNoise")
    status, out, _ = call("theory", "test_resnet", "--pretrained=false", "--size=32", "--json")
    assert (json.loads(out)["gain"], json.loads(out)["reference"]) == (1.0, "SpectralNoise")
