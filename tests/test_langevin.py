"""The chain against its own exact law, the identities it obeys, and the mutants that must fail."""

import math
from dataclasses import dataclass, replace

import pytest
import stats
import timm
import torch
import toys

from ebm_from_clf import ClassifierEnergy, Langevin, SpectralNoise, WhiteNoise, convert, edit
from ebm_from_clf.drift import energy_and_score
from ebm_from_clf.noise import generators, normal

N = 20_000
SETTINGS = [
    Langevin(n_steps=25, step_size=0.1),
    Langevin(n_steps=7, step_size=0.5, temperature=0.25),
    Langevin(n_steps=6, step_size=0.9, temperature=2.0, variance_corrected=True),
    Langevin(n_steps=1, step_size=1.3, temperature=0.5),
    Langevin(n_steps=9, step_size=0.3, temperature=0.5, momentum=0.8),
    Langevin(n_steps=3, step_size=0.9, temperature=2.0, variance_corrected=True, momentum=0.5),
]


def chains(sampler, energy=None, c=1, seed=0):
    energy = energy or toys.linear()
    y = torch.full((N,), c)
    g = toys.seeded(seed)
    u = 0.5 + 0.7 * torch.randn(N, *toys.SHAPE, generator=g)
    u, _ = sampler(energy, u, y, generator=g)
    mean, var = toys.langevin_moments(toys.linear(), y, sampler, 0.5, 0.49)
    return u, mean, var


@pytest.mark.parametrize("sampler", SETTINGS)
def test_chains_have_their_discrete_law(sampler):
    stats.assert_moments(*chains(sampler))


@pytest.mark.parametrize("corrected", [False, True])
def test_each_class_may_have_steps_of_its_own(corrected):
    """Chains of a class are those of a sampler with its step; mutant: one step for all."""
    sampler = Langevin(6, 0.9, 0.7, corrected, step_factors=(1.0, 0.5, 0.25))
    for y, factor in enumerate(sampler.step_factors):
        plain = replace(sampler, step_size=0.9 * factor, step_factors=None)
        g = toys.seeded(y)
        u = 0.5 + 0.7 * torch.randn(20_000, *toys.SHAPE, generator=g)
        classes = torch.full((len(u),), y)
        u, _ = sampler(toys.linear(), u, classes, generator=g)
        stats.assert_moments(u, *toys.langevin_moments(toys.linear(), classes, plain, 0.5, 0.49))
    with pytest.raises(AssertionError):
        plain = replace(sampler, step_factors=None)
        stats.assert_moments(u, *toys.langevin_moments(toys.linear(), classes, plain, 0.5, 0.49))
    for factors in ((1.0, 0.0), (1.5,), (math.nan,), ()):
        with pytest.raises(ValueError, match="`step_factors` must be above 0"):
            Langevin(step_factors=factors)


@dataclass(frozen=True)
class DriftNotHalved(Langevin):
    def step(self, energy, u, y, *, generator):
        value, score = energy_and_score(energy, u, y)
        return u + self.step_size**2 * score + self.noise_std(self.step_size) * normal(
            u, generator
        ), value


@dataclass(frozen=True)
class TemperatureForItsRoot(Langevin):
    def noise_std(self, e):
        return e * self.temperature


@dataclass(frozen=True)
class NoTemperature(Langevin):
    def noise_std(self, e):
        return e


@dataclass(frozen=True)
class NoiseTimesRootTwo(Langevin):
    def noise_std(self, e):
        return math.sqrt(2) * super().noise_std(e)


@dataclass(frozen=True)
class MeanOverTheBatch(Langevin):
    def step(self, energy, u, y, *, generator):
        value, score = energy_and_score(lambda u, y: energy(u, y).mean()[None], u, y)
        return u + self.step_size**2 / 2 * score + self.noise_std(self.step_size) * normal(
            u, generator
        ), value


@dataclass(frozen=True)
class WrongSign(Langevin):
    def step(self, energy, u, y, *, generator):
        value, score = energy_and_score(energy, u, y)
        return u - self.step_size**2 / 2 * score + self.noise_std(self.step_size) * normal(
            u, generator
        ), value


@dataclass(frozen=True)
class ReferenceInPixels(Langevin):
    def step(self, energy, u, y, *, generator):
        value, score = energy_and_score(energy, u, y)
        drift = score + u - energy.reference.decode(u)
        return u + self.step_size**2 / 2 * drift + self.noise_std(self.step_size) * normal(
            u, generator
        ), value


MUTANTS = [
    DriftNotHalved,
    TemperatureForItsRoot,
    NoTemperature,
    NoiseTimesRootTwo,
    MeanOverTheBatch,
    WrongSign,
    ReferenceInPixels,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_of_the_step_fail(mutant):
    sampler = mutant(n_steps=7, step_size=0.5, temperature=0.25)
    u, y, g = torch.randn(N, *toys.SHAPE, generator=toys.seeded()), torch.ones(N).long(), None
    g, energy = toys.seeded(1), toys.linear()
    for _ in range(sampler.n_steps):
        u, _ = sampler.step(energy, u, y, generator=g)
    mean, var = toys.langevin_moments(energy, y, sampler, 0.0, 1.0)
    assert stats.worst_moment(u, mean, var) > 15


class Kept(Langevin):
    """A step with momentum, with something wrong."""

    half, fresh = 1.0, 1.0

    def _move(self, energy, u, way, drift, e, generator):
        c, shift = self.momentum, e**2 / 2 * drift
        noise = self.noise_std(e) * normal(u, generator)
        if way is not None:
            part = (1 - c**2) ** 0.5 if self.fresh else 1.0
            noise = c * (way + self.half * shift) + part * noise
        return u + shift + noise, shift + noise


class HalfKickMissing(Kept):
    half = 0.0


class NoiseNotReduced(Kept):
    fresh = 0.0


@pytest.mark.parametrize("mutant", [HalfKickMissing, NoiseNotReduced])
@pytest.mark.parametrize("options", [{"n_steps": 9, "step_size": 0.3}, {"n_steps": 3}])
def test_mutants_of_the_momentum_fail(mutant, options):
    options = {"step_size": 0.9, "temperature": 0.5, "momentum": 0.8} | options
    stats.assert_moments(*chains(Kept(**options)))
    assert stats.worst_moment(*chains(mutant(**options))) > 8


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_changes_how_fast_and_not_where_to(momentum):
    """Where F is linear the stationary variance is T / (1 - e^2/4) at every momentum."""
    energy, y, g = toys.linear(), torch.ones(4000, dtype=torch.int64), toys.seeded(4)
    u = torch.randn(4000, *toys.SHAPE, generator=g)
    u, _ = Langevin(200, 0.5, 0.7, momentum=momentum)(energy, u, y, generator=g)
    mean = toys.linear_tilt(energy, y)
    stats.assert_moments(u, mean, torch.full_like(mean, 0.7 / (1 - 0.25 / 4)))


@pytest.mark.parametrize("momentum", [0.8, 0.9])
def test_momentum_does_not_heat_what_is_kept_beside(momentum):
    """Pixels that are kept, of a reference that mixes them: the free ones are as wide as without.

    Mutant: the way on is turned by the derivative backwards, which is another matrix.
    """
    energy = toys.linear()
    mask = torch.zeros(toys.SHAPE[1:], dtype=torch.bool)
    mask[0] = True
    found = edit(energy, torch.full(toys.SHAPE, 0.5), strength=1.0, mask=mask)
    widths = []
    for c in (0.0, momentum):
        u, g = torch.zeros(3000, *toys.SHAPE), toys.seeded(5)
        y = torch.zeros(3000, dtype=torch.int64)
        u, _ = Langevin(150, 0.4, momentum=c)(found, u, y, generator=g)
        widths.append(found.reference.decode(u)[..., 1:, :].var(0))
    # Ratios of two variances of 3000 draws each; 5 standard errors are 13 %.
    assert ((widths[1] / widths[0]).log().abs() < 5 * (4 / 3000) ** 0.5).all()


def test_a_constant_drift_moves_chains_by_the_time():
    """Mutant: the time of a chain without momentum."""
    sampler = Langevin(12, 0.3, temperature=0.0, momentum=0.8)
    u, y = torch.zeros(2, 3).double(), torch.zeros(2).long()
    moved, _ = sampler(lambda u, y: -u.sum(1), u, y, generator=toys.seeded())
    assert (moved - sampler.time).abs().max() < 1e-12
    assert sampler.time > 3 * replace(sampler, momentum=0.0).time
    assert replace(sampler, momentum=0.0).time == pytest.approx(12 * 0.3**2 / 2)
    for n in (0, 1, 2, 5, 40):
        for momentum in (0.0, 0.3, 0.8, 0.95):
            wanted = Langevin(n, 0.3, momentum=momentum)
            assert replace(wanted, n_steps=7).lasting(wanted.time) == wanted


class WithoutGain(ClassifierEnergy):
    def tilt(self, u, y):
        return super().tilt(u, y) / self.gain


class WithoutNormalisation(ClassifierEnergy):
    def tilt(self, u, y):
        return self.gain * self.classifier(self.reference.decode(u)).gather(1, y[:, None])[:, 0]


class Transposed(ClassifierEnergy):
    """A for A^T in the drift."""

    def tilt(self, u, y):
        slope = (self.classifier.weight[y].view(-1, *toys.SHAPE) / self.space.std).detach()
        return self.gain * (self.reference.factor(slope) * u).flatten(1).sum(1)


@pytest.mark.parametrize("mutant", [WithoutGain, WithoutNormalisation, Transposed])
def test_mutants_of_the_energy_fail(mutant):
    good = toys.linear()
    energy = mutant(good.classifier, good.reference, good.space, gain=good.gain)
    assert stats.worst_moment(*chains(SETTINGS[1], energy)) > 8


def test_class_is_the_one_asked_for():
    u, mean, var = chains(SETTINGS[0], c=1)
    other = toys.langevin_moments(toys.linear(), torch.full((N,), 2), SETTINGS[0], 0.5, 0.49)
    stats.assert_moments(u, mean, var)
    assert stats.worst_moment(u, *other) > 15


def test_linear_classifier_gives_its_gaussian():
    """p_c is N(mu + gamma Sigma w, Sigma) in pixels (the paper's Gaussian piece)."""
    energy, y = toys.linear(), torch.full((N,), 2)
    g = toys.seeded(5)
    sampler = Langevin(n_steps=12, step_size=1.2, variance_corrected=True)
    u, _ = sampler(energy, torch.randn(N, *toys.SHAPE, generator=g), y, generator=g)
    x = energy.reference.decode(u).flatten(1).double()
    a = toys.dense(energy.reference)
    sigma = a @ a.T
    slope = energy.classifier.weight.detach().double()[2].view(toys.SHAPE)
    slope = (slope / energy.space.std.double()).flatten()
    mean = energy.reference.mean.double().flatten() + energy.gain * sigma @ slope
    z = (x.mean(0) - mean) / (sigma.diagonal() / N).sqrt()
    assert z.abs().max() < 5
    centered = x - mean
    spread = sigma.diagonal()
    error = ((torch.outer(spread, spread) + sigma.square()) / N).sqrt()
    assert ((centered.T @ centered / N - sigma) / error).abs().max() < 5


def test_no_tilt_gives_the_reference():
    """f = 0: whatever the start, the variance-corrected chain ends in q exactly."""
    energy = toys.linear()
    torch.nn.init.zeros_(energy.classifier.weight)
    g = toys.seeded(6)
    sampler = Langevin(n_steps=14, step_size=1.2, variance_corrected=True)
    u, _ = sampler(energy, 3 + torch.zeros(N, *toys.SHAPE), torch.zeros(N).long(), generator=g)
    stats.assert_moments(u, torch.zeros(toys.DIM), torch.ones(toys.DIM))
    plain = replace(sampler, variance_corrected=False)
    u, _ = plain(energy, 3 + torch.zeros(N, *toys.SHAPE), torch.zeros(N).long(), generator=g)
    assert stats.worst_moment(u, torch.zeros(toys.DIM), torch.ones(toys.DIM)) > 30


@pytest.mark.parametrize("variance_corrected", [False, True])
def test_stationarity_identity_on_a_timm_network(variance_corrected):
    """E<u, R> - (e^2/4) E|R|^2 = T D (1 - e^2/4 if corrected), with R recomputed by autograd."""
    ratio = _stationarity(Langevin(step_size=0.6, variance_corrected=variance_corrected))
    stats.assert_mean(ratio, 1 - 0.09 if variance_corrected else 1.0)


def test_stationarity_sees_wrong_factors():
    with pytest.raises(AssertionError):
        stats.assert_mean(_stationarity(DriftNotHalved(step_size=0.6)), 1.0)
    with pytest.raises(AssertionError):
        stats.assert_mean(_stationarity(NoiseTimesRootTwo(step_size=0.6)), 1.0)


def _stationarity(sampler):
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        classifier = timm.create_model("test_resnet", num_classes=4)
    mean = torch.full((3, 16, 16), 0.5)
    energy = convert(classifier, reference=SpectralNoise(mean), size=16, gain=5.0)
    n, g = 48, toys.seeded(7)
    y = torch.arange(n) % 4
    u = torch.randn(n, 3, 16, 16, generator=g)
    found = []
    for i in range(240):
        u, _ = sampler.step(energy, u, y, generator=g)
        if i >= 140 and i % 2:
            live = u.clone().requires_grad_()
            tilt = energy.gain * energy.classifier(
                energy.space(energy.reference.decode(live))
            ).gather(1, y[:, None])
            (b,) = torch.autograd.grad(tilt.sum(), live)
            r = (u - b).flatten(1).double()
            e = sampler.step_size
            value = (u.flatten(1).double() * r).sum(1) - e**2 / 4 * r.square().sum(1)
            found.append(value / u[0].numel())
    # Chains are independent; the values of one are not, so average each over its time.
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("gauge", ["raw", "log_softmax", "centered"])
def test_drift_is_minus_the_gradient_of_the_energy(gauge):
    energy = toys.smooth(gauge=gauge, gain=2.0).double()
    u = torch.randn(3, *toys.SHAPE, generator=toys.seeded(8)).double().requires_grad_()
    y = torch.tensor([0, 2, 1])
    assert torch.autograd.gradcheck(lambda u: energy(u, y), u)
    _, score = energy_and_score(energy, u, y)
    (gradient,) = torch.autograd.grad(energy(u, y).sum(), u)
    assert (score + gradient).abs().max() < 1e-12


def test_temperature_and_gain_are_one_parameter():
    """(A, gain, T) and (sqrt(T) A, gain / T, 1) give the same images from the same noise."""
    cold = toys.smooth(gain=2.0)
    found = Langevin(temperature=0.3).equivalent(cold.gain)
    ref = cold.reference
    scaled = type(ref)(ref.mean, ref.scale * found["scale_factor"], ref.amplitude, ref.color)
    warm = ClassifierEnergy(cold.classifier, scaled, cold.space, gain=found["gain"])
    y = torch.tensor([0, 1, 2, 0])
    x = torch.rand(4, *toys.SHAPE, generator=toys.seeded())
    results = []
    for energy, temperature in ((cold, 0.3), (warm, 1.0)):
        energy = energy.double()
        sampler = Langevin(n_steps=30, step_size=0.4, temperature=temperature)
        u = energy.reference.encode(x.double())
        u, _ = sampler(energy, u, y, generator=toys.seeded(9))
        results.append(energy.reference.decode(u))
    assert (results[0] - results[1]).abs().max() < 1e-6


def test_chain_in_u_is_preconditioned_langevin_in_pixels():
    energy = toys.smooth(gain=2.0).double()
    a = toys.dense(energy.reference)
    y = torch.tensor([1])
    u = torch.randn(1, *toys.SHAPE, generator=toys.seeded(10)).double()
    sampler = Langevin(n_steps=1, step_size=0.4, temperature=0.7)
    moved, _ = sampler(energy, u, y, generator=toys.seeded(11))
    z = normal(u, toys.seeded(11)).flatten()
    x = energy.reference.decode(u).requires_grad_()
    tilt = energy.gain * energy.classifier(energy.space(x))[0, 1]
    (slope,) = torch.autograd.grad(tilt, x)
    mu, flat = energy.reference.mean.flatten(), x.detach().flatten()
    drift = (flat - mu) - a @ a.T @ slope.flatten()
    expected = flat - 0.08 * drift + 0.4 * math.sqrt(0.7) * a @ z
    assert (energy.reference.decode(moved).flatten() - expected).abs().max() < 1e-7


def test_zero_temperature_descends():
    energy = toys.smooth(gain=3.0)
    u = torch.randn(8, *toys.SHAPE, generator=toys.seeded(12))
    sampler = Langevin(n_steps=40, step_size=0.2, temperature=0.0)
    _, trace = sampler(energy, u, torch.arange(8) % 3, generator=toys.seeded())
    assert (trace.energy.diff(dim=0) <= 1e-4).all()
    assert trace.energy.shape == trace.score_norm.shape == (40, 8)
    assert (trace.energy[-1] < trace.energy[0] - 1).all()


def test_fixed_norm_drift_has_its_norm():
    energy = toys.smooth()
    u = torch.randn(5, *toys.SHAPE, generator=toys.seeded(13))
    sampler = Langevin(n_steps=1, step_size=0.1, temperature=0.0, tilt_norm=2.0)
    moved, _ = sampler(energy, u, torch.zeros(5).long(), generator=toys.seeded())
    b = (moved - u) / 0.005 + u
    assert b.flatten(1).norm(dim=1) == pytest.approx(2 * math.sqrt(toys.DIM), rel=1e-3)


@pytest.mark.parametrize("support", ["reflect", "clamp"])
def test_box_holds_and_interior_is_untouched(support):
    energy = ClassifierEnergy(
        toys.Linear(torch.zeros(1, 16), torch.zeros(1)),
        WhiteNoise(torch.full((1, 4, 4), 0.5), 0.2),
        support=support,
    )
    u = 3 * torch.randn(50, 1, 4, 4, generator=toys.seeded(14))
    x, kept = energy.reference.decode(u), energy.reference.decode(energy.confine(u))
    inside = (x >= 0) & (x <= 1)
    assert (kept >= -1e-6).all() and (kept <= 1 + 1e-6).all()
    assert (kept - x)[inside].abs().max() < 1e-5
    below = (x < 0) & (x > -1)
    expected = -x[below] if support == "reflect" else torch.zeros_like(x[below])
    assert (kept[below] - expected).abs().max() < 1e-5
    u, _ = Langevin(n_steps=30, step_size=0.5)(
        energy, u, torch.zeros(50).long(), generator=toys.seeded()
    )
    x = energy.reference.decode(u)
    assert x.min() >= -1e-6 and x.max() <= 1 + 1e-6


def test_walls_stop_or_turn_the_way_on():
    """Without noise a fast chain that meets a wall stays there, or comes back as fast."""
    energy = ClassifierEnergy(
        toys.Linear(torch.zeros(1, 16), torch.zeros(1)),
        WhiteNoise(torch.full((1, 4, 4), 0.5), 0.5),
    )
    u, fast = torch.full((2, 1, 4, 4), 0.9), torch.full((2, 1, 4, 4), 0.3)
    sampler = Langevin(1, 0.1, temperature=0.0, momentum=0.9)
    for support, position, left in (
        ("reflect", 0.8, -0.3),
        ("clamp", 1.0, 0.0),
        ("unbounded", 1.2, 0.3),
    ):
        energy.support = support
        step = (energy, u, fast / 0.9, torch.zeros_like(u), 0.1, toys.seeded())
        moved, way = sampler._move(*step)
        assert (moved - position).abs().max() < 1e-6 and (way - left).abs().max() < 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_reflection_keeps_the_truncated_gaussian(momentum):
    """Reflected walks of a truncated normal keep its variance up to O(e^2); clamping does not."""
    energy = ClassifierEnergy(
        toys.Linear(torch.zeros(1, 16), torch.zeros(1)),
        WhiteNoise(torch.full((1, 4, 4), 0.5), 0.5),
        support="reflect",
    )
    n = 4000
    u, _ = Langevin(n_steps=400, step_size=0.1, momentum=momentum)(
        energy, torch.zeros(n, 1, 4, 4), torch.zeros(n).long(), generator=toys.seeded(15)
    )
    phi = math.exp(-0.5) / math.sqrt(2 * math.pi)
    mass = math.erf(1 / math.sqrt(2))
    var = 1 - 2 * phi / mass
    found = float(u.double().square().mean())
    # Bias of the discretisation is below e^2; the standard error is far smaller.
    assert abs(found / var - 1) < 0.01
    energy.support = "clamp"
    u, _ = Langevin(n_steps=400, step_size=0.1, momentum=momentum)(
        energy, torch.zeros(n, 1, 4, 4), torch.zeros(n).long(), generator=toys.seeded(15)
    )
    assert float(u.double().square().mean()) / var > 1.03


def test_one_generator_per_chain_makes_chains_independent_of_the_batch():
    energy = toys.smooth()
    u = torch.randn(6, *toys.SHAPE, generator=toys.seeded(16))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    sampler = Langevin(n_steps=10, step_size=0.5)
    whole, _ = sampler(energy, u, y, generator=generators(range(6)))
    parts = [
        sampler(energy, u[i : i + 2], y[i : i + 2], generator=generators(range(i, i + 2)))[0]
        for i in (0, 2, 4)
    ]
    assert (whole - torch.cat(parts)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="one generator per image"):
        sampler(energy, u, y, generator=generators(range(5)))


def test_a_plain_function_is_an_energy():
    sampler = Langevin(n_steps=20, step_size=1.0, variance_corrected=True)
    u = torch.zeros(N, 2)
    u, _ = sampler(
        lambda u, y: (u - y[:, None]).square().sum(1) / 2,
        u,
        torch.full((N,), 3),
        generator=toys.seeded(17),
    )
    stats.assert_moments(u, torch.full((2,), 3.0), torch.ones(2))


@pytest.mark.parametrize(
    "options",
    [
        {"n_steps": -1},
        {"step_size": 0.0},
        {"step_size": 2.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"tilt_norm": 0.0},
        {"momentum": 1.0},
        {"momentum": -0.1},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="Langevin"):
        Langevin(**options)
