"""Smoothing: its gradient against the enumerated expectation, and the heat of its randomness."""

from dataclasses import replace

import numpy as np
import pytest
import stats
import torch
import toys
from torch import nn

from ebm_from_clf import ClassifierEnergy, Langevin, Smoothing, WhiteNoise, sample
from ebm_from_clf.drift import energy_and_score
from ebm_from_clf.noise import generators
from ebm_from_clf.sample import draw, heat
from ebm_from_clf.untrained import auto_gain

SHAPE = (2, 6, 8)
STILL = Smoothing(0, (1, 1), 0, 0, 0, 0)
SHIFT = replace(STILL, shift=0.17)  # 1 of 6 pixels, 1 of 8


def shifted(x, dy, dx):
    """Whole pixels, the border mirrored, by another library."""
    _, _, height, width = x.shape
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="symmetric")
    return torch.from_numpy(padded[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width])


def energy(smoothing, classifier=None, scale=0.1):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(3)
        classifier = classifier or toys.Smooth(dim=2 * 6 * 8)
    return ClassifierEnergy(
        classifier, WhiteNoise(torch.full(SHAPE, 0.5), scale), gain=30.0, smoothing=smoothing
    )


def test_no_change_is_the_image_as_it_is_shown():
    x = 3 * torch.rand(4, *SHAPE, generator=toys.seeded()) - 1
    found = STILL.view(x, toys.seeded())(x)
    assert (found - x.clamp(0, 1)).abs().max() < 1e-5


def test_shifts_are_whole_pixels_all_alike():
    x = torch.rand(1, *SHAPE, generator=toys.seeded(1))
    all_nine = torch.cat([shifted(x, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    n = 1800
    found = SHIFT.view(x.expand(n, -1, -1, -1), toys.seeded(2))(x.expand(n, -1, -1, -1))
    apart = (found[:, None] - all_nine).flatten(2).abs().amax(2)
    assert apart.amin(1).max() < 1e-5
    count = torch.bincount(apart.argmin(1), minlength=9)
    assert (count - n / 9).abs().max() < 5 * (n / 9 * 8 / 9) ** 0.5


@pytest.mark.parametrize("angle", [90.0, -90.0])
def test_a_quarter_turn_turns_a_square_and_a_zoom_of_two_doubles(angle, monkeypatch):
    x = torch.rand(2, 1, 6, 6, generator=toys.seeded())
    turn = replace(STILL, rotation=90)
    with monkeypatch.context() as patch:
        end = 1 - 1e-7 if angle > 0 else 0
        patch.setattr("ebm_from_clf.smooth.uniform", lambda like, g: torch.full_like(like, end))
        found = turn.view(x, toys.seeded())(x)
    assert (found - torch.rot90(x, int(angle / 90), (2, 3))).abs().max() < 1e-5
    # Magnified twice, the middle half fills the image.
    y = torch.zeros(1, 1, 8, 8)
    y[:, :, 2:6, 2:6] = 1
    double = replace(STILL, zoom=(2, 2))
    assert double.view(y, toys.seeded())(y)[:, :, 1:-1, 1:-1].min() > 0.99
    assert replace(STILL, zoom=(0.5, 0.5)).view(y, toys.seeded())(y).mean() < 0.5


def test_light_changes_contrast_around_gray_then_brightness(monkeypatch):
    x = torch.rand(3, *SHAPE, generator=toys.seeded())
    lit = replace(STILL, contrast=0.4, brightness=0.2)
    with monkeypatch.context() as patch:
        patch.setattr("ebm_from_clf.smooth.uniform", lambda like, g: torch.full_like(like, 0.75))
        found = lit.view(x, toys.seeded())(x)
    assert (found - (1.2 * (x - 0.5) + 0.5 + 0.1)).abs().max() < 1e-5
    n = 4000
    view = replace(lit, shift=0.4).view(x[:1].expand(n, -1, -1, -1), toys.seeded(1))
    light = view.light.double()
    low, high = light.new_tensor([0.6, -0.2]), light.new_tensor([1.4, 0.2])
    assert (light >= low).all() and (light <= high).all()
    stats.assert_moments(light, (low + high) / 2, (high - low).square() / 12)
    # Each is drawn on its own, apart from the other and from where the image is shifted to.
    four = torch.cat([light, view.where[:, :, 2].double()], 1)
    correlation = torch.corrcoef(four.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / n**0.5


def gradients(e, u, y, n, seed):
    """B of n draws at one state, with shape (n, D)."""
    state, label = u.expand(n, -1, -1, -1), y.expand(n)
    _, score = energy_and_score(e.realise(state, toys.seeded(seed)), state, label)
    return (score + state).flatten(1).double()


def test_the_gradient_is_that_of_the_expectation():
    e, y = energy(SHIFT), torch.tensor([1])
    u = torch.randn(1, *SHAPE, generator=toys.seeded(4))
    # f(t(x)) with t linear: the gradient of the mean over all nine shifts, by autograd.
    x = e.reference.decode(u).clamp(0, 1).requires_grad_()
    index = torch.arange(2 * 6 * 8).view(1, *SHAPE).float()
    places = [shifted(index, dy, dx).long().flatten() for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    scores = [e.classifier(x.flatten()[p].view(1, *SHAPE))[0, 1] for p in places]
    (exact,) = torch.autograd.grad(30 * torch.stack(scores).mean() * 0.1, x)
    inside = ((e.reference.decode(u) > 0) & (e.reference.decode(u) < 1)).flatten()
    exact = torch.where(inside, exact.flatten(), 0).double()
    n = 20_000
    found = gradients(e, u, y, n, 5)
    error = found.std(0) / n**0.5 + 1e-6
    assert ((found.mean(0) - exact) / error).abs().max() < 5
    # Mutant: the gradient where nothing is shifted is another one.
    still = gradients(energy(STILL), u, y, 1, 5)[0]
    assert ((still - exact) / error).abs().max() > 50


class Linear(nn.Module):
    num_classes = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 96, generator=toys.seeded(6)))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_randomness_heats_the_chain_as_much_as_it_says(momentum):
    """f linear: u is Gaussian of variance (T + heat) / (1 - e^2 / 4) in every coordinate."""
    e, step, temperature, n = energy(SHIFT, Linear(), scale=0.01), 0.8, 0.005, 400
    u, y = torch.zeros(n, *SHAPE), torch.ones(n, dtype=torch.int64)
    sampler = Langevin(60, step, temperature, momentum=momentum)
    farther = (1 + momentum) / (1 - momentum)
    v = float(gradients(e, u[:1], y[:1], 20_000, 7).var(0).mean())
    found = heat(e, sampler, u, y, generator=toys.seeded(8))
    spread = float(found.std()) / n**0.5
    expected = farther * step**2 / 4 * v
    assert abs(float(found.mean()) - expected) < 5 * spread + 1e-3 * v
    drawn = draw(e, [1], n, sampler=replace(sampler, n_steps=2)).heat
    assert abs(float(drawn.mean()) - expected) < 5 * float(drawn.std()) / n**0.5 + 1e-3 * v
    u, _ = sampler(e, u, y, generator=toys.seeded(9))
    variance = u.flatten(1).var(0).mean()
    hot = (temperature + expected) / (1 - step**2 / 4)
    assert float(variance) == pytest.approx(hot, rel=0.05)
    # Mutant: the heat left out is far off.
    assert float(variance) > 2 * temperature / (1 - step**2 / 4)
    assert heat(energy(None), sampler, u, y, generator=toys.seeded(8)).max() == 0


def test_an_image_depends_on_its_class_and_seed_alone():
    e = energy(Smoothing(shift=0.2, rotation=20, noise=0.1))
    whole = sample(e, [0, 2], n=3, seed=3, sampler=Langevin(5, 0.3))
    alone = sample(e, [2], n=1, seed=4, sampler=Langevin(5, 0.3))
    assert (whole[4] - alone[0]).abs().max() < 1e-5


def test_the_energy_itself_is_the_same_at_every_call_and_logits_are_not_smoothed():
    e = energy(Smoothing())
    x, y = torch.rand(5, *SHAPE, generator=toys.seeded()), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(e.energy(x, y), e.energy(x, y))
    assert (e.energy(x, y)[2:3] - e.energy(x[2:3], y[2:3])).abs().max() < 1e-3
    assert torch.equal(e.logits(x), e.classifier(x))
    views = [g for g in e.smoothing.fixed(x)]
    scores = torch.stack([e.classifier(view(x)) for view in views]).mean(0).gather(1, y[:, None])
    u = e.reference.encode(x)
    expected = u.flatten(1).square().sum(1) / 2 - 30 * scores[:, 0]
    assert torch.allclose(e.energy(x, y), expected, atol=1e-3)
    every = torch.stack([-e.energy(x, torch.full((5,), c)) for c in range(3)]).logsumexp(0)
    assert torch.allclose(e.free_energy(x), -every, atol=1e-3)


def test_autocast_leaves_pixels_in_full_precision():
    x = torch.rand(4, *SHAPE, generator=toys.seeded())
    view = SHIFT.view(x, toys.seeded(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(view(x), view(x).float())
        found = view(x)
    assert torch.equal(found, view(x))


def test_each_image_has_its_own_change():
    x = torch.rand(1, *SHAPE, generator=toys.seeded()).expand(3, -1, -1, -1)
    found = Smoothing().view(x, generators([1, 2, 1]))(x)
    assert torch.equal(found[0], found[2]) and (found[0] - found[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"shift": -1},
        {"zoom": (1.1, 0.8)},
        {"zoom": (0, 1)},
        {"noise": -1},
        {"draws": 0},
        {"contrast": 1},
        {"brightness": -1},
        {"size": 0},
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="Smoothing"):
        Smoothing(**wrong)


@pytest.mark.parametrize("gain", [1.0, 7.0])
def test_the_gain_that_is_measured_gives_the_norm_that_is_asked_for(gain):
    """f linear, weights of norm 1: |B| = gain s everywhere, so the gain is r sqrt(D) / s."""
    classifier = Linear()
    with torch.no_grad():
        classifier.weight.copy_(nn.functional.normalize(classifier.weight, dim=1))
    reference = WhiteNoise(torch.full(SHAPE, 0.5), 0.1)
    found = auto_gain(ClassifierEnergy(classifier, reference, gain=gain), norm=3.0)
    assert found == pytest.approx(3.0 * 96**0.5 / 0.1, rel=1e-4)
    for gauge in ("centered", "log_softmax"):
        other = ClassifierEnergy(classifier, reference, gain=gain, gauge=gauge)
        rest = float((classifier.weight[0] - classifier.weight.mean(0)).detach().norm())
        assert auto_gain(other, norm=3.0) == pytest.approx(found / rest, rel=1e-4)
        assert (other.gauge, other.gain) == (gauge, gain)
    with torch.no_grad():
        classifier.weight.zero_()
    with pytest.raises(ValueError, match="gradient is 0"):
        auto_gain(ClassifierEnergy(classifier, reference))
