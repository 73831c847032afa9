"""The stiffness of a step against quadratic wells, and what follows it."""

import copy
import math
from dataclasses import replace

import pytest
import stats
import torch
import toys
from test_guard import learned, narrow
from torch import nn

from ebm_from_clf import (
    ChainStore,
    ClassifierEnergy,
    Contrastive,
    Langevin,
    Objective,
    PixelSpace,
    ReferenceStart,
    WhiteNoise,
    langevin,
)
from ebm_from_clf.curriculum import Curriculum
from ebm_from_clf.fault import GuardSettings
from ebm_from_clf.smooth import Smoothing
from ebm_from_clf.stride import EVERY, LENGTHEN, Stride

CURVES = torch.tensor([0.5, 4.0, 60.0, 320.0]).double()  # the last with a stiffness of .8


def note(stride, stiffness):
    return stride.note(stiffness, torch.zeros(len(stiffness)))


def factor(stride):
    (found,) = stride.factors.tolist()
    return found


def valley(u, y):
    return (CURVES * u.flatten(1).square()).sum(1) / 2


def test_curvature_of_a_round_well_is_its_own_at_every_step():
    """Whatever the noise; nothing is known before the first step."""
    u = torch.randn(50, 1, 2, 3, generator=toys.seeded(), dtype=torch.float64)
    sampler = Langevin(n_steps=4, step_size=0.3, temperature=0.7)

    def well(u, y):
        return 7 * u.flatten(1).square().sum(1) / 2

    _, trace = sampler(well, u, torch.zeros(50), generator=toys.seeded(1))
    assert trace.curvature.shape == trace.energy.shape == (4, 50)
    assert trace.curvature[0].isnan().all()
    assert (trace.curvature[1:] - 7).abs().max() < 1e-9
    assert (
        sampler.step(well, u, torch.zeros(50), generator=toys.seeded(1))[1].curvature.isnan().all()
    )


def test_steep_directions_weigh_by_their_share_of_the_way():
    """At rest the way along i has the variance e^2 T / (1 - rho_i). Mutant: equal weights."""
    e, temperature, n = 0.1, 0.3, 40_000
    rho = e**2 * CURVES / 4
    u = (temperature / (CURVES * (1 - rho))).sqrt() * torch.randn(
        n, 4, generator=toys.seeded(2), dtype=torch.float64
    )
    sampler = Langevin(n_steps=2, step_size=e, temperature=temperature)
    moved, _ = Langevin(1, e, temperature)(valley, u, u[:, 0], generator=toys.seeded(3))
    _, trace = sampler(valley, u, u[:, 0], generator=toys.seeded(3))
    way = (moved - u).square().sum(1)
    shares = 1 / (1 - rho)
    stats.assert_mean(way, float(e**2 * temperature * shares.sum()))
    expected = float((CURVES * shares).sum() / shares.sum())
    stats.assert_mean(way * (trace.curvature[1] - expected), 0.0)
    with pytest.raises(AssertionError):
        stats.assert_mean(way * (trace.curvature[1] - CURVES.mean()), 0.0)


def test_a_chain_that_is_thrown_about_shows_the_steepest_direction():
    u = torch.randn(20, 4, generator=toys.seeded(4), dtype=torch.float64)
    _, trace = Langevin(30, 0.15)(valley, u, u[:, 0], generator=toys.seeded(5))
    assert 0.15**2 / 4 * CURVES[3] > 1
    assert (trace.curvature[-1] / CURVES[3] - 1).abs().max() < 1e-3


@pytest.mark.parametrize("steep, expected", [(6, 0.25 * 4 / 200), (4, 0.04)])
def test_a_step_ends_where_95_percent_of_the_chains_have_the_stiffness(steep, expected):
    """With 6 of 100 chains where U curves by 200, e^2 is 4 limit / 200; with 4, the longest."""
    stride, longest = Stride(0.25), 0.2
    curves = torch.tensor([200.0] * steep + [1.0] * (100 - steep))
    for _ in range(60 * EVERY):
        note(stride, (longest * factor(stride)) ** 2 / 4 * curves)
    assert (longest * factor(stride)) ** 2 == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("alone", [True, False])
def test_each_class_has_a_step_of_its_own(alone):
    """Where U curves by 200 for one of three classes e^2 is 4 limit / 200, else the longest.

    Ten chains of each class in ten updates: they add up. Mutant: one length for all.
    """
    stride, longest, y = Stride(0.25, 3 if alone else 1), 0.2, torch.arange(3)
    curves = torch.tensor([1.0, 200.0, 2.0])
    for _ in range(60 * EVERY):
        at = y if alone else 0 * y
        stride.note(((longest * stride.factors[at]) ** 2 / 4 * curves).float(), at)
    found = (longest * stride.factors) ** 2
    expected = [0.04, 0.25 * 4 / 200, 0.04] if alone else [0.25 * 4 / 200]
    assert found.tolist() == pytest.approx(expected, rel=1e-3)


def test_classes_of_few_chains_are_looked_at_together():
    """Until twenty of a class are known: no class waits for a step that it needs."""
    stride = Stride(0.25, 100)
    for first in range(0, 100, 10):
        stride.note(torch.full((10,), 4.0), torch.arange(first, first + 10))
    assert (stride.factors == 0.5).all()
    for _ in range(2 * EVERY):
        stride.note(torch.full((2,), 0.01), torch.tensor([7, 7]))
    assert (stride.factors > 0.5).nonzero().flatten().tolist() == [7]


def test_a_step_is_given_back_when_the_energy_allows_it():
    stride = Stride(0.25)
    for _ in range(2 * EVERY):
        note(stride, torch.full((8,), 50.0))
    assert factor(stride) == 0.25
    changed = [note(stride, torch.full((8,), 0.1)) for _ in range(2 * EVERY)]
    assert sum(changed) == 2 and factor(stride) == pytest.approx(0.25 * LENGTHEN**2)
    for _ in range(60 * EVERY):
        note(stride, torch.full((8,), -0.1))
    assert factor(stride) == 1.0


@pytest.mark.parametrize(
    "stride, stiffness",
    [(Stride(None), torch.full((8,), 9.0)), (Stride(), torch.full((8,), math.nan))],
    ids=["steps that stay", "single steps"],
)
def test_what_says_nothing_changes_nothing(stride, stiffness):
    assert not any(note(stride, stiffness) for _ in range(3 * EVERY))
    assert factor(stride) == 1.0


@pytest.mark.parametrize("limit", [0.0, 0.5, -0.5, math.nan])
def test_a_limit_that_is_none_is_refused_in_one_line(limit):
    with pytest.raises(ValueError, match="`max_stiffness` must be between 0 and 0.5"):
        Curriculum(max_stiffness=limit)


def alone(limit, updates=400):
    """Data that are too narrow for steps of .7, with the guard far away."""
    far = {"max_gap": 1e9, "max_class_gap": 1e9, "max_auc": 1.0, "max_score": 1e9, "max_lag": 1e9}
    guard = GuardSettings(max_gradient=1e9, shorter_step=1.0, rollbacks=1000, **far)
    return narrow(0.7, limit, guard, updates=updates, learning_rate=0.3)


@pytest.mark.parametrize("limit, learns", [(0.25, True), (None, False)])
def test_a_narrow_well_is_learned_without_the_guard(limit, learns):
    """Chains of step e have the variance 1 / (a (1 - a e^2 / 4)), a = 1 + w, of e^2 at least.

    That is more than the data's at e = .7, so that no w is found; steps that follow the energy
    become short enough: 4 rho = a e^2 is 1 there. Mutant: they stay.
    """
    tuner, variance = alone(limit, updates=400 if learns else 100)
    tuner.run()
    step = tuner.gen.sampler.step_size
    assert (step**2 < variance) == learns == (not tuner.guard.actions)
    assert tuner.energy.sampler.step_size == step
    if learns:
        found = float(tuner.energy.classifier.steepness.detach())
        assert found == pytest.approx(learned(variance, step), rel=0.1)
        assert (1 + found) * step**2 == pytest.approx(1.0, rel=0.1)
        assert all(line["stiffness"] <= 0.3 for line in tuner.journal.lines[10:])


def test_a_run_goes_on_with_its_step():
    """In the middle of what it has noted, too."""
    tuner, _ = alone(0.25)
    batches = tuner.batches()
    for _ in range(3 * EVERY + 4):
        tuner.step(*next(batches))
    state = copy.deepcopy(tuner.state_dict())
    other, _ = alone(0.25)
    other.load_state_dict(state)
    assert other.gen.sampler == tuner.gen.sampler != tuner.settings.sampler
    for run in (tuner, other):
        again = run.batches()
        for _ in range(EVERY):
            run.step(*next(again))
    strides = [run.gen.synthesizer.stride for run in (tuner, other)]
    assert factor(strides[0]) == factor(strides[1])
    assert other.energy.sampler == tuner.energy.sampler


def own_loop(**options):
    """Chains of a steep well in somebody's own loop."""
    tuner, _ = alone(None)
    tuner.energy.classifier.steepness.data.fill_(80.0)
    sampler = Langevin(4, 0.1, **options)
    return Contrastive(tuner.energy, sampler, tuner.chains, generator=toys.seeded(7))


def test_steps_of_your_own_loop_follow_the_energy_and_are_in_its_state():
    """U curves by 81 everywhere, so that e^2 is 4 limit / 81."""
    gen, y = own_loop(), torch.zeros(16, dtype=torch.int64)
    found = [gen.synthesize(y).stiffness for _ in range(2 * EVERY)]
    assert (found[0] - 81 * 0.1**2 / 4).abs().max() < 1e-4
    step = gen.sampler.step_size
    assert step == gen.energy.sampler.step_size == 0.1
    gen.synthesizer.make_steps(3, 0.2)
    for _ in range(2 * EVERY):
        gen.synthesize(y)
    assert gen.sampler.step_size == gen.energy.sampler.step_size
    assert 81 * gen.sampler.step_size**2 == pytest.approx(4 * 0.25, rel=1e-3)
    other = own_loop()
    other.synthesizer.make_steps(3, 0.2)
    other.load_state_dict(gen.state_dict())
    assert other.sampler == gen.sampler and other.energy.sampler == gen.energy.sampler
    # Steps that stay do so whatever is loaded.
    other.synthesizer.stride = Stride(None)
    other.load_state_dict(gen.state_dict())
    assert other.sampler.step_size == 0.2


def many(curves, updates, stride, longest=0.2, seed=0):
    """Batches of 64 of the classes of these curves; the largest mean stiffness at the end."""
    g = toys.seeded(seed)
    for _ in range(updates):
        y = torch.randint(0, len(curves), (64,), generator=g)
        noise = 0.8 + 0.4 * torch.rand(64, generator=g)
        e = longest * stride.factors[y]
        stride.note((e**2 / 4 * curves[y] * noise).float(), y, longest)
    return float(((longest * stride.factors[: len(curves)]) ** 2 / 4 * curves).mean())


@pytest.mark.slow
def test_classes_that_are_rare_become_steeper_together():
    """Their last chains are older than that: each alone would be thrown for a thousand updates.

    Mutant: a limit on what is at hand that is never met.
    """
    curves, stride = torch.full((1000,), 100.0), Stride(0.25, 1000)
    assert many(curves, 1500, stride) == pytest.approx(0.25, rel=0.2)
    assert many(4 * curves, 20, stride, seed=1) < 0.3
    assert many(4 * curves, 600, stride, seed=2) == pytest.approx(0.25, rel=0.25)


def test_a_rare_class_that_is_steep_leaves_the_others_alone():
    """Nor do they overshoot on their way to shorter steps. Mutant: limits alone are looked at."""
    curves, stride = torch.full((100,), 1.0), Stride(0.25, 100)
    curves[:10] = 2500.0
    many(curves, 1000, stride)
    assert (stride.factors[10:] == 1).all() and (stride.factors[:10] < 0.15).all()
    lengths = (0.2 * stride.factors[:10]) ** 2 * 2500 / 4
    assert 0.15 < lengths.min() and lengths.max() < 0.35


def test_a_class_of_no_chains_takes_a_step_of_the_others():
    stride = Stride(0.25, 5)
    many(torch.full((4,), 4000.0), 100, stride)
    assert stride.factors[4] <= stride.factors[:4].max() < 0.1


@pytest.mark.parametrize("n_classes", [1, 10, 100])
def test_a_longest_step_that_changes_leaves_the_steps_as_they_are(n_classes):
    """As after a return of the guard: what is known is not known of a length."""
    curves, stride = torch.full((n_classes,), 100.0), Stride(0.25, n_classes)
    before = many(curves, 400, stride)
    found = [many(curves, EVERY, stride, 0.14, seed) for seed in range(40)]
    assert before == pytest.approx(0.25, rel=0.2)
    assert found[-1] == pytest.approx(0.25, rel=0.2) and max(found) < 0.3 and min(found) > 0.1
    assert all(b >= a * 0.9 for a, b in zip(found[:-1], found[1:], strict=True))


def test_what_is_known_of_several_classes_goes_on():
    """From the middle of ten updates, with classes of few chains and of many."""
    curves, stride = torch.linspace(10, 500, 40), Stride(0.25, 40)
    many(curves, 57, stride)
    other = Stride(0.25, 40)
    other.load_state_dict(copy.deepcopy(stride.state_dict()))
    for one in (stride, other):
        many(curves, 40, one, seed=3)
    for name, value in stride.state_dict().items():
        there = other.state_dict()[name]
        pairs = zip(value, there, strict=True) if name == "noted" else [(value, there)]
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs), name


def test_chains_of_some_classes_leave_a_sampler_for_all():
    gen = Contrastive(*wells(80.0, 1.0, 1.0, chains=2), generator=toys.seeded(8))
    for _ in range(3 * EVERY):
        gen.synthesize(torch.arange(2).repeat(8))
    assert len(gen.energy.sampler.step_factors) == 3
    assert gen.energy.sampler.lengths(torch.arange(3)).shape == (3,)


def test_joint_chains_have_steps_of_one_length():
    energy, sampler, chains = wells(80.0, 80.0)
    gen = Contrastive(energy, sampler, chains, Objective(scores="joint"), generator=toys.seeded(8))
    for _ in range(3 * EVERY):
        gen.synthesize(torch.arange(2).repeat(8))
    assert gen.sampler.step_factors is None and gen.sampler.step_size < 0.2
    gen.objective = Objective()  # and steps of each class from here on
    for _ in range(2 * EVERY):
        gen.synthesize(torch.arange(2).repeat(8))
    assert len(gen.synthesizer.stride.factors) == 2


class Wells(nn.Module):
    """One well a class, of the steepness given."""

    def __init__(self, *steepness):
        super().__init__()
        self.num_classes = len(steepness)
        self.steepness = nn.Parameter(torch.tensor(steepness))

    def forward(self, x):
        return -self.steepness * x.flatten(1).square().sum(1, keepdim=True) / 2


def wells(*steepness, chains=None):
    """An energy of wells, a sampler, and chains of some of its classes."""
    energy = ClassifierEnergy(
        Wells(*steepness),
        WhiteNoise(torch.full((1, 4, 4), 0.5), 0.25),
        PixelSpace([0.5], [0.25], (4, 4)),
    )
    start, n = ReferenceStart(energy.reference), chains or len(steepness)
    store = ChainStore(energy.reference, start, n, per_class=64, restart_rate=0.0, burn_in=0)
    return energy, Langevin(4, 0.2), store


def test_a_steep_class_leaves_the_steps_of_the_others_alone():
    """U curves by 81 and by 2: e^2 is 4 limit / 81 for one, and the longest for the other."""
    energy, sampler, chains = wells(80.0, 1.0)
    gen = Contrastive(energy, sampler, chains, generator=toys.seeded(8))
    for _ in range(12 * EVERY):
        gen.synthesize(torch.arange(2).repeat(8))
    lengths = gen.sampler.lengths(torch.arange(2))
    assert (81 * lengths[0] ** 2, lengths[1]) == pytest.approx((1.0, 0.2), rel=1e-3)
    assert torch.equal(energy.sampler.lengths(torch.arange(2)), lengths)
    # What was learned may be gone on from.
    again = Contrastive(energy, gen.sampler, chains, max_stiffness=None)
    assert again.sampler == gen.sampler
    with pytest.raises(ValueError, match="3 `step_factors` for steps of 2"):
        Contrastive(energy, Langevin(step_factors=(1.0,) * 3), chains)
    # Of several classes together the shortest.
    both = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    assert torch.equal(gen.sampler.lengths(both), lengths.flip(0))


def test_a_step_never_vanishes():
    stride = Stride(1e-300)
    for _ in range(200 * EVERY):
        note(stride, torch.ones(4))
    assert factor(stride) == 1e-3


@pytest.mark.parametrize("unknown", ["fixed norm", "random", "one step", "not finite"])
def test_steps_whose_stiffness_is_not_known_stay(unknown, monkeypatch):
    gen = own_loop(**({"tilt_norm": 1.0} if unknown == "fixed norm" else {}))
    gen.energy.classifier.steepness.data.fill_(1e4)
    gen.synthesizer.make_steps(1 if unknown == "one step" else 2, 0.1)
    if unknown == "random":
        gen.energy.smoothing = Smoothing(shift=0.25)
    if unknown == "not finite":
        monkeypatch.setattr(langevin, "curvature", lambda last, now: now[0][:, 0, 0, 0] / 0)
    for _ in range(2 * EVERY):
        assert gen.synthesize(torch.zeros(4, dtype=torch.int64)).stiffness.isnan().all()
    assert gen.sampler.step_size == 0.1


def test_a_return_takes_the_step_of_the_healthy_state_and_its_shortening_lasts():
    """With half the step at a return, a quarter of the stiffness is allowed from there on."""
    tuner, _ = alone(0.25)
    made = tuner.gen.synthesizer
    tuner.guard.settings = replace(tuner.guard.settings, shorter_step=0.5)
    tuner.guard.keep(0, tuner.learner.state_dict())
    for _ in range(2 * EVERY + 3):
        note(made.stride, torch.full((8,), 50.0))
    made.make_steps(4, 0.7)
    assert tuner.gen.sampler.step_size == 0.7 / 4
    tuner.update = 23
    tuner._watch({"update": 23, "worst": 1e12, "gradient": 0.0, "mean_gap": 1e10})
    assert tuner.guard.rollbacks == 1 and factor(made.stride) == 1.0
    assert tuner.gen.sampler.step_size == tuner.energy.sampler.step_size == 0.35
    for _ in range(60 * EVERY):
        note(made.stride, torch.full((8,), 0.35**2 / 4 * 20 * factor(made.stride) ** 2))
    assert (0.35 * factor(made.stride)) ** 2 * 20 / 4 == pytest.approx(0.25 / 4, rel=1e-3)


@pytest.mark.parametrize(
    "factors, burn_ins",
    [
        (None, [10, 10, 10]),
        ((0.25, 1.0, 1.0), [20, 10, 10]),
        ((0.5, 1.0, 1.0), [10, 10, 10]),
        ((0.05, 1.0, 0.8), [50, 10, 10]),
        ((0.2, 0.2, 1.0), [10, 10, 10]),
        ((0.2, 1.0), [15, 10]),
    ],
    ids=["one length", "a quarter", "half", "five times at most", "most are short", "two classes"],
)
def test_new_chains_of_shorter_steps_make_more_of_them_first(factors, burn_ins):
    """Downhill, n steps of e shrink u by (1 - c e^2 / 2)^n. Mutant: burn-ins of one length."""
    y = torch.arange(len(burn_ins)).repeat(3)
    energy, sampler, chains = wells(*[1.0] * len(burn_ins))
    chains.burn_in = 10
    sampler = replace(sampler, temperature=0.0, step_factors=factors)
    gen = Contrastive(energy, sampler, chains, generator=toys.seeded(9), max_stiffness=None)
    begun = chains.draw(y, generator=toys.seeded(9)).u
    made = gen.synthesize(y)
    decay = 1 - gen.sampler.lengths(torch.arange(len(burn_ins))) ** 2 * torch.ones(len(burn_ins))
    n = torch.tensor(burn_ins) + sampler.n_steps
    expected = begun * (decay**n)[y].view(-1, 1, 1, 1)
    assert (energy.reference.encode(made.images) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "factors, weights",
    [
        (None, [1.0, 1.0, 1.0]),
        ((0.25, 1.0, 1.0), [0.25, 1.0, 1.0]),
        ((0.2, 0.8, 1.0), [0.25, 1.0, 1.0]),
        ((0.01, 1.0, 1.0), [0.04, 1.0, 1.0]),
        ((0.5, 1.0, 1.0), [1.0, 1.0, 1.0]),
        ((0.2, 0.2, 1.0), [1.0, 1.0, 1.0]),
    ],
    ids=[
        "one length",
        "a quarter",
        "a quarter of the median",
        "a fifth at least",
        "half",
        "most are short",
    ],
)
@pytest.mark.parametrize("kind", ["likelihood", "logistic"])
def test_a_class_learns_at_the_pace_of_its_chains(kind, factors, weights):
    """Gradients are weighed by the square of its steps; the loss is not. Mutant: neither is."""
    y = torch.arange(3).repeat(4)
    x, images = torch.rand(2, 12, 1, 4, 4, generator=toys.seeded(5))
    found = []
    for given in (None, factors):
        energy, sampler, chains = wells(1.0, 1.0, 1.0)
        sampler = replace(sampler, step_factors=given)
        gen = Contrastive(energy, sampler, chains, Objective(kind), generator=toys.seeded(9))
        terms = gen.terms(x, y, images)
        terms.contrast.backward()
        found.append((terms.contrast.detach(), energy.classifier.steepness.grad))
    (plain, gradient), (loss, weighed) = found
    assert torch.allclose(weighed, gradient * torch.tensor(weights), rtol=1e-4)
    assert torch.allclose(loss, plain)


def test_a_score_that_is_infinite_stays_so_beside_a_slow_class():
    """A loss that bounds what a single image weighs stays finite. Mutant: inf - inf, NaN."""
    energy, sampler, chains = wells(1.0, 1.0, 1.0)
    sampler = replace(sampler, step_factors=(0.2, 1.0, 1.0))
    gen = Contrastive(energy, sampler, chains, Objective("logistic", data_noise=0.0))
    y, images = torch.arange(3), torch.rand(3, 1, 4, 4, generator=toys.seeded(5))
    wild = images.clone()
    wild[2] = math.inf
    terms = gen.terms(images, y, wild)
    assert terms.synthesized.tolist()[2] == -math.inf and terms.contrast.isfinite()
