"""Minima: where they are known, what they obey where they are not, and what is recalled."""

import math

import pytest
import stats
import torch
import toys
from scipy.optimize import lsq_linear
from torch import nn

from ebm_from_clf import ClassifierEnergy, PixelSpace, Smoothing, WhiteNoise
from ebm_from_clf.drift import energy_and_score
from ebm_from_clf.graph import recursion
from ebm_from_clf.prototype import PrototypeLaw
from ebm_from_clf.theory import Structure, kinks, structure
from ebm_from_clf.theory.hopfield import count_modes, recall
from ebm_from_clf.theory.minima import Minima, descend
from ebm_from_clf.theory.readable import is_readable

TAU = torch.tensor([3.0, 4.0, 2.0], dtype=torch.float64)
BETA = torch.tensor([-4.0, -7.0, 1.0], dtype=torch.float64)  # two wells, two wells, one
WELLS = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=torch.float64)


def memory(scale=1.0):
    return toys.prototype(toys.orthogonal(TAU), scale * BETA)


def zeros(n):
    return torch.zeros(n, dtype=torch.int64)


def network(*widths, seed=0, activation=nn.ReLU):
    """A random network of signed weights on images of 20 values."""
    g = toys.seeded(seed)
    layers, before = [nn.Flatten()], 20
    for width in widths:
        layers += [nn.Linear(before, width), activation()]
        before = width
    found = nn.Sequential(*layers, nn.Linear(before, 1))
    for part in found:
        if isinstance(part, nn.Linear):
            gain = (2 / part.in_features) ** 0.5
            part.weight.data = gain * torch.randn(part.weight.shape, generator=g)
            part.bias.data = 0.3 * torch.randn(part.bias.shape, generator=g)
    found.num_classes = 1
    return found


def energy_of(classifier, **options):
    reference = WhiteNoise(torch.full((1, 4, 5), 0.5), 0.25)
    space = PixelSpace([0.5], [0.25], (4, 5))
    return ClassifierEnergy(classifier, reference, space, gain=10.0, **options).double()


def pattern(energy, u):
    """Which units are on, boolean, with shape (B, M)."""
    return torch.cat([r.flatten(1) > 0 for r in Structure.at(energy, u).graph.before], 1)


def starts(n, shape=(1, 4, 5), seed=1):
    return torch.randn(n, *shape, generator=toys.seeded(seed)).double()


def test_minima_of_a_prototype_are_known():
    """Each unit has a well at 0 if beta < 0, one at its tilt if beta > -tau^2, none on a kink."""
    energy = memory()
    omega = PrototypeLaw(energy).omega.flatten(1)
    found = descend(energy, 2 * starts(60, toys.SHAPE), zeros(60))
    assert found.found.all() and (found.kinks == 0).all() and (found.residual < 1e-12).all()
    modes = count_modes(found)
    assert len(modes.number) == 4 and int(modes.number.sum()) == 60
    exact = WELLS @ omega
    away = torch.cdist(modes.u.flatten(1), exact)
    assert (away.amin(1) < 1e-6).all() and len(away.argmin(1).unique()) == 4
    # The reconstruction is that of the energy, and the mutant, one without the gain, is not.
    x = energy.reference.decode(found.u)
    assert (energy.reconstruct(x, zeros(60)) - x).abs().max() < 1e-9
    weak = memory()
    weak.gain /= 1.4
    assert (weak.reconstruct(x, zeros(60)) - x).abs().max() > 0.01
    assert (modes.energy.diff() > 0).all()
    assert torch.equal(modes.u[modes.mode].sub(found.u).flatten(1).norm(dim=1) < 1e-6, found.found)


def test_as_many_fall_into_a_mode_as_begin_on_its_side():
    """Units are independent, and a chain without noise does not cross a kink that is a ridge."""
    energy, n = memory(), 400
    law = PrototypeLaw(energy)
    found = descend(energy, starts(n, toys.SHAPE), zeros(n))
    side = torch.special.ndtr(law.beta / law.tau)
    on = pattern(energy, found.u).double()
    for k in range(2):
        stats.assert_mean(on[:, k], float(side[k]))
        with pytest.raises(AssertionError):
            stats.assert_mean(on[:, k], 1 - float(side[k]))
    assert on[:, 2].all()


def recalled(energy, noise, n=300):
    law = PrototypeLaw(energy)
    omega = law.omega.flatten(1)
    wells = WELLS[torch.arange(n) % 4]
    u = (wells @ omega).view(n, *toys.SHAPE)
    noisy = u + noise * torch.randn(u.shape, generator=toys.seeded(2)).double()
    found = recall(energy, energy.reference.decode(u), energy.reference.decode(noisy), zeros(n))
    margin = torch.where(wells > 0, law.tau + law.beta / law.tau, -law.beta / law.tau)
    # The third unit has one well, from wherever it begins.
    right = torch.special.ndtr(margin[:, :2] / noise).prod(1)
    return found, right, u


def test_a_memory_recalls_what_noise_does_not_carry_over_a_ridge():
    energy = memory()
    found, right, u = recalled(energy, 1.5)
    error = float((right * (1 - right)).mean() / len(right)) ** 0.5
    share = float(found.right.double().mean())
    assert abs(share - float(right.mean())) < 5 * error
    assert abs(share - float(right.square().mean())) > 5 * error, "the mutant"
    assert (found.expected - energy.reference.decode(u)).abs().max() < 1e-6
    same = (found.images - found.expected).flatten(1).norm(dim=1) < 1e-6
    assert torch.equal(same, found.right) and not found.right.all()


def test_an_occluded_image_is_recalled():
    """A well of one tilt: as long as more than half of the square of it is seen."""
    tilt = torch.zeros(1, toys.DIM, dtype=torch.float64)
    tilt[0] = 0.8
    norm = float(tilt.square().sum())
    energy = toys.prototype(tilt, torch.tensor([-norm / 2], dtype=torch.float64))
    u = tilt.view(1, *toys.SHAPE).repeat(2, 1, 1, 1)
    seen = u.clone()
    seen[0, :, 2:], seen[1, :, 1:] = 0.0, 0.0
    x, hidden = energy.reference.decode(u), energy.reference.decode(seen)
    assert recall(energy, x, hidden, zeros(2)).right.tolist() == [True, False]


def clarke(energy, u, radius=1e-7):
    """The distance of u from the gradients of its kinks' sides mixed, by bounded least squares.

    Independent of what is tested: gradients are taken about u, and mixed unit by unit.
    """
    g = toys.seeded(3)
    near = u + radius * torch.randn(400, *u.shape[1:], generator=g).double()
    on = pattern(energy, near)
    _, score = energy_and_score(energy, near, zeros(400))
    b = (score + near).flatten(1)
    doubtful = (on != on[:1]).any(0)
    # B is affine in the slopes of one layer: fitted to those of the sides.
    sides = torch.cat([on[:, doubtful].double(), torch.ones(400, 1).double()], 1)
    jumps = torch.linalg.lstsq(sides, b).solution
    assert (sides @ jumps - b).abs().max() < 1e-6
    found = lsq_linear(jumps[:-1].T.numpy(), (u.flatten() - jumps[-1]).numpy(), (0, 1), tol=1e-14)
    return math.sqrt(2 * found.cost), int(doubtful.sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_minima_of_a_signed_network_lie_on_kinks(seed):
    """Not auto-encoding, but with fractional slopes: 0 is in the generalised gradient."""
    energy = energy_of(network(60, seed=seed))
    found = descend(energy, starts(12), zeros(12))
    assert found.found.all()
    assert (found.kinks == 0).double().mean() < 0.1, "0 to 2 of 100 are inside of a piece"
    for i in range(4):
        residual, kinks = clarke(energy, found.u[i : i + 1])
        assert residual < 1e-5 and kinks == int(found.kinks[i]) == len(found.slopes[i])
        assert found.slopes[i].min() >= 0 and found.slopes[i].max() <= 1
        fractional = (found.slopes[i] > 1e-6) & (found.slopes[i] < 1 - 1e-6)
        assert fractional.double().mean() > 0.9, "not those of one side or the other"
    # The mutant: plain reconstruction, with slopes of 0 and 1.
    _, score = energy_and_score(energy, found.u, zeros(12))
    off = score.flatten(1).norm(dim=1) / found.u.flatten(1).norm(dim=1)
    assert off.median() > 0.02


@pytest.mark.parametrize("widths", [(60,), (40, 30)])
def test_the_energy_rises_around_what_is_found(widths):
    energy = energy_of(network(*widths, activation=lambda: nn.LeakyReLU(0.1)))
    begin = starts(10)
    found = descend(energy, begin, zeros(10))
    assert found.found.double().mean() >= 0.8
    with torch.no_grad():
        assert (found.energy < energy(begin, zeros(10))).all()
        for i in range(20):
            near = found.u + 1e-5 * starts(10, seed=100 + i)
            assert (energy(near, zeros(10)) > found.energy)[found.found].all()


def test_a_smooth_network_has_its_fixed_point():
    energy = energy_of(network(30, activation=nn.Tanh))
    found = descend(energy, starts(5), zeros(5))
    assert found.found.all() and (found.residual < 1e-6).all() and (found.kinks == 0).all()
    x = energy.reference.decode(found.u)
    assert (energy.reconstruct(x, zeros(5)) - x).abs().max() < 1e-6


def test_what_can_be_read_is_told():
    u = starts(3)
    for activation in (nn.ReLU, lambda: nn.LeakyReLU(0.1), nn.PReLU):
        assert is_readable(energy_of(network(30, 20, activation=activation)), u)
    for activation in (nn.Tanh, nn.ReLU6):
        assert not is_readable(energy_of(network(30, activation=activation)), u)
    assert not is_readable(energy_of(network(30), smoothing=Smoothing()), u)
    assert not is_readable(energy_of(network(30), gauge="log_softmax"), u)
    assert not is_readable(energy_of(network()), u), "nothing to read"

    class Hidden(nn.Module):
        num_classes = 1

        def forward(self, x):
            return self.pool(x.flatten(1).relu()).sum(1, keepdim=True)

        def pool(self, x):
            return x

    class Pooled(Hidden):
        def pool(self, x):
            return nn.functional.max_pool1d(x, 2)

    assert is_readable(energy_of(Hidden()), u) and not is_readable(energy_of(Pooled()), u)


def test_a_rectifier_that_serves_twice_and_in_place_is_read():
    shared = nn.ReLU(inplace=True)
    plain, twice = network(30, 20), network(30, 20)
    twice[2] = twice[4] = shared
    ends = [descend(energy_of(n), starts(3), zeros(3)) for n in (plain, twice)]
    assert torch.equal(ends[0].u, ends[1].u) and torch.equal(ends[0].kinks, ends[1].kinks)


def test_the_classifier_is_left_as_it_was_also_after_an_error():
    classifier = network(20)
    classifier.train()
    energy = energy_of(classifier)
    seen = []
    own = classifier[2].register_forward_hook(lambda *_: seen.append(1))
    descend(energy, starts(2), zeros(2))

    def break_down(*_):
        raise RuntimeError("broken")

    broken = classifier[3].register_forward_pre_hook(break_down)
    with pytest.raises(RuntimeError, match="broken"):
        pattern(energy, starts(1))
    broken.remove()
    assert classifier.training and all(p.requires_grad for p in classifier.parameters())
    assert all(p.grad is None for p in classifier.parameters()) and seen
    assert list(classifier[2]._forward_hooks) == [own.id]
    assert not classifier[2]._forward_pre_hooks


def test_minima_on_a_box_pull_outwards_at_its_border_alone():
    energy = energy_of(network(30, activation=nn.Tanh), support="clamp")
    found = descend(energy, starts(4), zeros(4), n_steps=300, step_size=0.5)
    assert found.found.sum() >= 3, "one lies in a flat valley"
    u = found.u[found.found]
    x = energy.reference.decode(u)
    assert x.min() >= -1e-9 and x.max() <= 1 + 1e-9
    _, score = energy_and_score(energy, u, zeros(len(u)))
    black, white = x < 1e-9, x > 1 - 1e-9
    assert (score[~black & ~white].abs() < 1e-6).all()
    assert (score[black] < 0).all() and (score[white] > 0).all() and (black | white).any()


def test_modes_are_joined_along_a_chain_and_no_further():
    u = torch.tensor([0.0, 0.9, 1.8, 4.0, 4.5]).view(-1, 1, 1, 1)
    value = torch.tensor([3.0, 2.0, 5.0, 1.0, 4.0])
    minima = Minima(u, value, value, zeros(5), value > 0)
    modes = count_modes(minima, distance=1.0)
    assert modes.number.tolist() == [2, 3] and modes.mode.tolist() == [1, 1, 1, 0, 0]
    assert modes.u.flatten().tolist() == pytest.approx([4.0, 0.9])
    assert len(count_modes(minima, distance=0.6).number) == 4


def test_what_is_no_minimum_is_no_mode():
    u = torch.tensor([0.0, 0.0, 3.0, 6.0]).view(-1, 1, 1, 1)
    value = torch.tensor([1.0, 2.0, 0.0, 4.0])
    minima = Minima(u, value, value, zeros(4), torch.tensor([True, True, False, True]))
    modes = count_modes(minima)
    assert modes.number.tolist() == [2, 1] and modes.mode.tolist() == [0, 0, -1, 1]
    nothing = minima._replace(found=minima.found & False)
    with pytest.raises(ValueError, match="none of the 4 is a minimum; descend with more"):
        count_modes(nothing)


def test_kinks_that_cannot_be_read_are_named():
    found = descend(energy_of(network(30, activation=nn.ReLU6)), starts(3), zeros(3), n_polish=5)
    assert not found.found.any() and (found.kinks == -1).all()
    assert found.obstacle == "hardtanh of 2"
    with pytest.raises(ValueError, match="the kinks of hardtanh of 2 cannot be read"):
        count_modes(found)
    assert descend(energy_of(network(30)), starts(1), zeros(1), n_polish=5).obstacle == ""


def test_what_cannot_be_descended_is_refused():
    energy = memory()
    with pytest.raises(ValueError, match="classes are 0 to 0"):
        descend(energy, starts(1, toys.SHAPE), zeros(1) + 1)
    with pytest.raises(ValueError, match="images must have shape"):
        recall(energy, torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2), zeros(1))


def test_a_border_costs_a_few_passes_however_many_kinks_there_are(monkeypatch):
    """Newton's method on all slopes took thousands of passes for 30 borders."""
    passes = []
    for name in ("pass_down", "pass_up"):
        own = getattr(recursion, name)
        monkeypatch.setattr(
            recursion, name, lambda *a, own=own, **k: passes.append(1) or own(*a, **k)
        )
    energy = energy_of(network(200, 100))
    rest = kinks.come_to_rest(energy, starts(1), zeros(1), 40)
    assert not rest.found and rest.kinks > 10 and len(passes) <= 6 * 40 + 5


def walked(energy, n, monkeypatch):
    """A walk over some borders."""
    walks = []

    class Walk(kinks._Walk):
        def __init__(self, *args):
            super().__init__(*args)
            walks.append(self)

    monkeypatch.setattr(kinks, "_Walk", Walk)
    kinks.come_to_rest(energy, starts(1), zeros(1), n)
    return walks[0]


def apart(walk):
    fresh = torch.stack([walk.rate(k) for k in walk.kept])
    return float((walk.rates - fresh).abs().max() / fresh.abs().max())


def test_gradients_at_kinks_are_kept_up_when_units_below_turn_over(monkeypatch):
    energy = energy_of(network(40, 30, 20))
    walk = walked(energy, 40, monkeypatch)
    assert len(walk.kept) > 5 and apart(walk) < 1e-12
    # It is on all its kinks, and their gradients are differences of what the units are given.
    step = 1e-6 * starts(1, seed=9)
    ahead, here = walk.responses(walk.u + step)[walk.kept], walk.responses(walk.u)[walk.kept]
    assert here.abs().max() < 1e-9
    wanted = walk.rates @ step.flatten()
    assert (ahead - here - wanted).abs().max() < 1e-6 * wanted.abs().max()
    # Mutant: what a unit lets through is forgotten.
    monkeypatch.setattr(kinks, "unit_up", lambda graph, *_: [None] * len(graph.before))
    assert apart(walked(energy, 40, monkeypatch)) > 1e-3


def test_slopes_of_several_layers_make_up_the_image(monkeypatch):
    """Those below know those above; the mutant takes all from the same pass."""
    energy = energy_of(network(40, 30, 20))
    found = descend(energy, starts(3), zeros(3))
    assert found.found.all() and (found.residual < 1e-9).all() and found.kinks.max() > 5
    settle = kinks._Walk.settle

    def wrong(self, pull):
        b, slope, out = settle(self, 0 * pull)
        slope[self.kept] -= (pull / out[self.kept]).to(slope)
        return b, slope, out

    monkeypatch.setattr(kinks._Walk, "settle", wrong)
    found = descend(energy, starts(3), zeros(3))
    assert not (found.found & (found.residual < 1e-9)).all()


def test_a_unit_that_is_given_what_another_returns_has_its_kink_there_too():
    energy = energy_of(network(60, activation=lambda: nn.Sequential(nn.ReLU(), nn.ReLU())))
    found = descend(energy, starts(6), zeros(6))
    assert found.found.all() and found.kinks.min() > 0 and (found.residual < 1e-9).all()


class OfOneNumber(nn.Module):
    """A score of one pixel by a formula, for what a network of layers would hide."""

    num_classes = 1

    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, x):
        return self.score(x.flatten(1))


def of_one_number(score, dtype=torch.float64):
    return ClassifierEnergy(OfOneNumber(score), WhiteNoise(torch.zeros(1, 1, 1), 1.0)).to(dtype)


def test_a_unit_that_another_one_at_its_kink_would_turn_on_is_seen():
    """U rises to x = 1 as long as the unit behind it is off, and falls beyond it."""

    def score(x):
        h = (x - 1).relu()
        return 3 * x - 5 * h + 10 * h.relu()

    found = descend(of_one_number(score), torch.full((1, 1, 1, 1), -2.0).double(), zeros(1))
    assert found.found and float(found.u) == pytest.approx(8) and found.residual < 1e-9


def test_slopes_outside_of_0_and_1_are_seen_however_large_responses_are():
    def score(x):
        return 5.5 * x - 3 * (x - 1).relu() + 1e-12 * (x + 5000).relu()

    energy = of_one_number(score, torch.float32)
    found = descend(energy, torch.full((1, 1, 1, 1), -2.0), zeros(1))
    assert found.found and float(found.u) == pytest.approx(2.5)


def test_what_did_not_come_to_rest_is_not_recalled():
    energy = energy_of(network(60))
    x = energy.reference.decode(starts(3))
    found = recall(energy, x, x, zeros(3), n_steps=3, n_polish=1)
    assert not found.found.any() and not found.right.any()
    assert (found.images == found.expected).all(), "the mutant: the same image is the same mode"
    found = recall(energy, x, x, zeros(3))
    assert found.found.all() and found.right.all()


def test_wrong_images_and_numbers_are_refused_in_one_line():
    energy, u = energy_of(network(20, activation=nn.GELU)), starts(2)
    bad = u.clone()
    bad[1, 0, 0, 0] = math.nan
    ends = descend(energy, u, zeros(2), n_steps=2, n_polish=2)
    decode = energy.reference.decode
    rgb = ClassifierEnergy(network(20), WhiteNoise(torch.full((3, 4, 5), 0.5))).double()
    for match, call in [
        ("descend: images must be finite, image 1 is not", lambda: descend(energy, bad, zeros(2))),
        ("descend: one image or more", lambda: descend(energy, u[:0], zeros(0))),
        ("`n_polish` must be 0 or more", lambda: descend(energy, u, zeros(2), n_polish=-1)),
        ("structure: images must be finite, image 1", lambda: structure(energy, decode(bad))),
        ("structure: one image or more", lambda: structure(energy, decode(u)[:0])),
        ("recall: images must be", lambda: recall(energy, decode(u), decode(bad), zeros(2))),
        ("recall: `distance`", lambda: recall(energy, u, u, zeros(2), distance=math.nan)),
        ("count_modes: `distance`", lambda: count_modes(ends, -1.0)),
        ("count_modes: one image", lambda: count_modes(Minima(*(v[:0] for v in ends)))),
        ("count_modes: images must", lambda: count_modes(ends._replace(u=bad))),
        ("count_modes: minima are needed, got Tensor", lambda: count_modes(u)),
        ("descend: images must have shape", lambda: descend(energy, u[0], zeros(2))),
        ("descend: images must have shape", lambda: descend(rgb, u, zeros(2))),
        ("descend: images must be a tensor, got list", lambda: descend(energy, [u], zeros(2))),
        ("descend: images must be torch.float64", lambda: descend(energy, u.float(), zeros(2))),
        ("descend: an energy is needed", lambda: descend(energy.classifier, u, zeros(2))),
        ("`n_steps` is an int .*, got 1.5", lambda: descend(energy, u, zeros(2), n_steps=1.5)),
        ("`n_polish` must be .*, got 1.5", lambda: descend(energy, u, zeros(2), n_polish=1.5)),
        ("`y` must be a tensor of class indices, got list", lambda: descend(energy, u, [0, 0])),
        ("`y` must be a tensor of class indices, got int", lambda: descend(energy, u, 0)),
        ("`y` must hold .* got torch.bool", lambda: descend(energy, u, zeros(2) > 0)),
        ("`y` must hold .* got torch.complex64", lambda: descend(energy, u, zeros(2) * 1j)),
        ("recall: images must be torch.float64", lambda: recall(energy, u.byte(), u, zeros(2))),
        ("structure: an energy is needed", lambda: structure(energy.classifier, u)),
    ]:
        with pytest.raises((TypeError, ValueError), match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
