"""What the loss of one step from finitely many images learns: reconstruction, up to a kink."""

import math

import pytest
import stats
import torch
import toys
from torch import nn

from ebm_from_clf import ClassifierEnergy, WhiteNoise, langevin
from ebm_from_clf.langevin import Langevin
from ebm_from_clf.objective import likelihood
from ebm_from_clf.prototype import Prototype

TAU = 1.5


def learned(energy, u, sampler, weights, e, generator=None):
    """What the loss of a step from the images learns, over e^2 / 2, in nats."""
    y = torch.zeros(len(u), dtype=torch.int64)
    moved, _ = sampler(energy, u, y, generator=generator or toys.seeded())
    scores = (energy.tilt(v, y) / energy.gain for v in (u, moved))
    found = torch.autograd.grad(likelihood(*scores), weights)
    return -energy.gain * torch.cat([g.flatten() for g in found]) / (e**2 / 2)


def still(e):
    return Langevin(n_steps=1, step_size=e, temperature=0.0)


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


class OneUnit:
    """One unit over a reference with every part, in closed form from dense matrices."""

    def __init__(self, beta):
        self.energy = toys.prototype(toys.orthogonal(torch.tensor([TAU])).double(), beta[None])
        self.center, self.a = toys.dense_space(self.energy)
        network = self.energy.classifier
        self.weights = [network.weight, network.bias]
        filters = network.weight.detach().flatten()
        self.omega = self.energy.gain * filters @ self.a
        self.beta = self.energy.gain * (network.bias.detach() + filters @ self.center)
        self.u = 2 * torch.randn(40, toys.DIM, generator=toys.seeded(1)).double()
        self.r = self.u @ self.omega + self.beta
        self.on = (self.r > 0).double()

    def found(self, e, sampler):
        return learned(self.energy, self.u.view(-1, *toys.SHAPE), sampler, self.weights, e)

    def crossings(self):
        """When the images come to the kink, of those that do, as e^2 / 2; the first one first."""
        speed = self.on * TAU**2 - (self.r - self.beta)
        when = -self.r / speed
        return when[when > 0].sort().values

    def step(self, time):
        """What a step learns, wherever it ends: differences of gamma delta (I, 1), over it."""
        moved = self.u + time * (self.on[:, None] * self.omega - self.u)
        rows = []
        for u in (self.u, moved):
            on = (u @ self.omega + self.beta > 0).double()
            image = self.center + u @ self.a.T
            rows.append(torch.cat([on @ image, on.sum()[None]]) / len(u))
        return self.energy.gain * (rows[0] - rows[1]) / time

    def reconstruction(self):
        """Minus the gradient of the mean of |u - B|^2 / 2, where B = delta gamma A^T w."""
        apart = (self.on[:, None] * (self.u - self.omega)).mean(0)
        return self.energy.gain * torch.cat([self.a @ apart, apart.new_zeros(1)])


# At 0.8 images that are off turn on, at -2.6 those that are on turn off, and no others.
@pytest.mark.parametrize("beta", [0.8, -2.6])
def test_a_step_that_ends_before_the_first_kink_learns_the_reconstruction(beta):
    unit = OneUnit(torch.tensor(beta).double())
    wanted, first = unit.reconstruction(), float(unit.crossings()[0])
    assert 2 <= len(unit.crossings()) < len(unit.u)
    # Rounding of a difference, 1e-16 of images of size 10, over the time of the step.
    for time in (1e-4, first / 2, first * (1 - 1e-9)):
        e = (2 * time) ** 0.5
        assert relative(unit.found(e, still(e)), wanted) < 1e-14 / time
    e = (2 * first * (1 + 1e-9)) ** 0.5
    assert relative(unit.found(e, still(e)), wanted) > 0.1
    # Mutants: twice the drift; twice the error; the error of pixels in place of that of u.
    e = first**0.5 / 2
    assert relative(unit.found(e, still(2**0.5 * e)), wanted) > 0.5
    right = unit.found(e, still(e))
    assert relative(right, 2 * wanted) > 0.4
    pixels = torch.cat([unit.a @ (unit.a.T @ wanted[:-1]), wanted[-1:]])
    assert relative(right, pixels) > 0.1


@pytest.mark.parametrize("beta", [0.8, -2.6])
def test_a_step_over_kinks_learns_neither_the_reconstruction_nor_a_part_of_it(beta):
    """Every image that crosses adds the difference of its two slopes, over the time."""
    unit = OneUnit(torch.tensor(beta).double())
    wanted, times = unit.reconstruction(), unit.crossings().tolist()
    times = [t for t in times if t < 1] + [1.0]  # beyond it steps go past B
    assert len(times) > 3
    for one, other in zip(times, times[1:], strict=False):
        time = (one + other) / 2
        e = (2 * time) ** 0.5
        found = unit.found(e, still(e))
        assert relative(found, unit.step(time)) < 1e-12
        # The bias learns that units turn, of which no reconstruction knows.
        turned = sum(t < time for t in times) / len(unit.u) / time
        expected = -math.copysign(turned, beta) * unit.energy.gain
        assert float(found[-1]) == pytest.approx(expected, rel=1e-9)
        assert relative(found, wanted) > 0.1


def rectified():
    """A network of two layers of rectifiers, over the reference with every part."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(3)
        layers = [nn.Linear(toys.DIM, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()]
        network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(12, 1))
    network.num_classes = 1
    energy = ClassifierEnergy(network, toys.reference(), toys.space(), gain=5.0)
    # The last bias is in no score.
    return energy.double(), list(network.parameters())[:-1]


def test_of_a_deep_network_too():
    energy, weights = rectified()
    u = torch.randn(8, *toys.SHAPE, generator=toys.seeded(2), dtype=torch.float64)
    v = u.clone().requires_grad_()
    (b,) = torch.autograd.grad(energy.tilt(v, torch.zeros(8).long()).sum(), v, create_graph=True)
    half = (u - b).square().sum() / 2 / len(u)
    found = torch.autograd.grad(half, weights, allow_unused=True)
    both = zip(found, weights, strict=True)
    wanted = -torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in both])
    e = 0.01
    assert relative(learned(energy, u, still(e), weights, e), wanted) < 1e-10
    # Mutants: twice the drift, and a step over kinks.
    assert relative(learned(energy, u, still(2**0.5 * e), weights, e), wanted) > 0.5
    assert relative(learned(energy, u, still(0.5), weights, 0.5), wanted) > 0.5


W, B = 1.7, -0.6
KINK = -B / W
DATA = torch.tensor([-1.3, -0.4, 0.1, 0.9, 1.8], dtype=torch.float64)


def on_a_line():
    """The unit h(1.7 u - .6) on a line, where u is the pixel, and its two parameters."""
    reference = WhiteNoise(torch.zeros(1, 1, 1), 1.0)
    unit = Prototype(torch.full((1, 1, 1, 1), W).double(), torch.tensor([B]).double())
    return ClassifierEnergy(unit, reference).double(), [unit.weight, unit.bias]


def expected(e, temperature, drift=1.0):
    """What a step of Gaussian noise from the data learns, in w and b."""
    on = (DATA > KINK).double()
    mean, std = DATA + drift * e**2 / 2 * (on * W - DATA), e * temperature**0.5
    z = (mean - KINK) / std
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    turned = torch.special.ndtr(z)
    after = torch.stack([mean * turned + std * density, turned])
    return (torch.stack([on * DATA, on]) - after).mean(1) / (e**2 / 2)


RECONSTRUCTION = torch.tensor([-0.14, 0.0]).double()


def test_finite_data_have_the_numbers_of_the_theory(monkeypatch):
    """At a fifth of the distance of the data to the kink, and at about this distance."""
    energy, weights = on_a_line()
    # Equal shares of the normal law: the mass beyond a kink is right to one of them.
    n = 20_001
    z = torch.special.ndtri((torch.arange(n).double() + 0.5) / n)
    u = DATA.repeat_interleave(n).view(-1, 1, 1, 1)
    monkeypatch.setattr(langevin, "normal", lambda like, g: z.repeat(len(DATA)).view_as(like))
    on = (DATA > KINK).double()
    assert torch.allclose((on * (DATA - W)).mean(), RECONSTRUCTION[0])

    def found(e, temperature):
        sampler = Langevin(n_steps=1, step_size=e, temperature=temperature)
        return learned(energy, u, sampler, weights, e)

    assert found(0.05, 1.0).tolist() == pytest.approx([-0.1400, 0.0], abs=1e-4)
    assert found(0.2, 1.0).tolist() == pytest.approx([-0.59, -0.99], abs=5e-3)
    # A low temperature takes the noise away, whatever the step is; with none it is the limit.
    apart = [(found(0.2, t) - RECONSTRUCTION).norm() for t in (1.0, 0.5, 0.25, 0.1)]
    assert all(cold < 0.7 * hot for hot, cold in zip(apart, apart[1:], strict=False))
    for e, temperature in ((0.2, 0.03), (0.3, 5e-5), (0.2, 0.0), (1.4, 0.0)):
        assert (found(e, temperature) - RECONSTRUCTION).norm() < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_noise_that_reaches_the_kink_is_learned_too(temperature):
    """With the noise of the sampler, against normal integrals; mutants are of one wrong factor."""
    energy, weights = on_a_line()
    e, g, u = 0.2, toys.seeded(3), DATA.repeat(2000).view(-1, 1, 1, 1)

    def table(step_size, temperature):
        sampler = Langevin(n_steps=1, step_size=step_size, temperature=temperature)
        return torch.stack([learned(energy, u, sampler, weights, e, g) for _ in range(100)])

    def assert_learned(found, wanted):
        for column, value in zip(found.T, wanted.tolist(), strict=True):
            stats.assert_mean(column, value)

    found = table(e, temperature)
    assert_learned(found, expected(e, temperature))
    wrong = [RECONSTRUCTION, 2 * expected(e, temperature), expected(e, temperature, drift=2.0)]
    if temperature != 1:
        wrong.append(expected(e, temperature**2))
    for mutant in wrong:
        with pytest.raises(AssertionError):
            assert_learned(found, mutant)
    with pytest.raises(AssertionError):
        assert_learned(table(2**0.5 * e, temperature / 2), expected(e, temperature))
