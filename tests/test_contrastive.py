"""The losses against their formulas, and the drop-in in a plain loop."""

import math
from dataclasses import replace

import pytest
import stats
import torch
import toys
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from ebm_from_clf import (
    ChainStore,
    ClassifierEnergy,
    Contrastive,
    Langevin,
    Objective,
    ReferenceStart,
    WhiteNoise,
)
from ebm_from_clf.chain_settings import StartSettings
from ebm_from_clf.classify import train_classifier
from ebm_from_clf.drift import energy_and_score
from ebm_from_clf.marginal import Marginal
from ebm_from_clf.objective import generative, likelihood, logistic, trim

F_OBS = torch.tensor([0.5, -1.0, 3.0], requires_grad=True)
F_SYN = torch.tensor([-2.0, 0.1, 0.7, 40.0], requires_grad=True)


def gradients(loss):
    return torch.autograd.grad(loss, (F_OBS, F_SYN))


def test_likelihood_descends_observed_minus_synthesized():
    obs, syn = gradients(likelihood(F_OBS, F_SYN))
    assert torch.allclose(obs, torch.full((3,), -1 / 3))
    assert torch.allclose(syn, torch.full((4,), 1 / 4))


def test_logistic_weights_are_one_minus_sigmoid_and_sigmoid():
    obs, syn = gradients(logistic(F_OBS, F_SYN))
    assert torch.allclose(obs, -(1 - F_OBS.sigmoid()) / 3)
    assert torch.allclose(syn, F_SYN.sigmoid() / 4)


def test_square_adds_the_scores():
    obs, syn = gradients(Objective(square=0.1)(F_OBS, F_SYN))
    assert torch.allclose(obs, -1 / 3 + 0.2 * F_OBS / 3)
    assert torch.allclose(syn, 1 / 4 + 0.2 * F_SYN / 4)


def test_trim_leaves_out_the_lowest():
    assert trim(F_SYN, 0.5).sort().values.tolist() == pytest.approx([0.7, 40.0])
    assert torch.equal(trim(F_SYN, 0.2), F_SYN)
    _, syn = gradients(Objective(trim=0.25)(F_OBS, F_SYN))
    assert torch.allclose(syn, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]))


def test_clamp_stops_the_gradient_below_it_alone():
    """Above 0, between 0 and the clamp, and below it."""
    for shift, clamp, weight in ((0, 0.0, 1), (9.5, 0.9, 1), (9.5, 0.02, 0), (9.5, 0.0, 0)):
        loss = Objective(clamp=clamp)(F_OBS, F_SYN - shift)
        plain = likelihood(F_OBS, F_SYN - shift).item()
        assert plain > 8 if shift == 0 else -0.7 < plain < -0.6
        assert loss.item() == pytest.approx(plain if weight else -clamp)
        obs, syn = gradients(loss)
        assert torch.allclose(obs, torch.full((3,), -weight / 3))
        assert torch.allclose(syn, torch.full((4,), weight / 4))


def test_clamp_leaves_the_squares_and_sees_trimmed_scores():
    obs, syn = gradients(Objective(clamp=0.02, square=0.1)(F_OBS, F_SYN - 20))
    assert torch.allclose(obs, 0.2 * F_OBS / 3)
    assert torch.allclose(syn, 0.2 * (F_SYN - 20) / 4)
    # The mean of all four is below that of the observed ones, that of the upper three is not.
    _, syn = gradients(Objective(clamp=0.02, trim=0.25)(F_OBS, F_SYN - 12))
    assert torch.allclose(syn, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]))


def test_generative_gradient_is_that_of_weighted_images():
    """In a linear classifier: an image minus the mean of all under e^F, for its class."""
    g = toys.seeded(3)
    x = torch.randn(7, 4, generator=g, dtype=torch.float64)
    w = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 2, 2, 0, 2, 0, 0])
    loss, effective = generative(x @ w.T, y)
    (found,) = torch.autograd.grad(loss, w)

    def formula(weights):
        rows = [
            sum(x[i] - (weights[i, :, c, None] * x).sum(0) for i in range(7) if y[i] == c)
            for c in (0, 2)
        ]
        return -torch.stack(rows) / 7

    mass = (x @ w.detach().T).exp()
    shares = (mass / mass.sum(0)).expand(7, 7, 3)
    assert (found[[0, 2]] - formula(shares)).abs().max() < 1e-12
    assert found[1].tolist() == [0] * 4  # no image of it
    assert (effective - 1 / shares[0].square().sum(0)).abs().max() < 1e-12
    assert not effective.requires_grad
    others = mass * (1 - torch.eye(7)[..., None])
    for wrong in (
        (mass / mass.sum(1, keepdim=True)).expand(7, 7, 3),  # over classes
        others / others.sum(1, keepdim=True),  # without the image itself
        torch.full((7, 7, 3), 1 / 7),  # without weights
    ):
        assert (found[[0, 2]] - formula(wrong)).abs().max() > 1e-2


def test_generative_loss_of_equal_and_of_extreme_scores():
    y = torch.tensor([0, 1, 1, 0])
    same = generative(torch.tensor([[2.0, -3.0]]).expand(4, 2), y)
    assert same.loss.item() == pytest.approx(math.log(4), rel=1e-6)
    assert same.effective.tolist() == pytest.approx([4, 4])
    # One image takes all: no other counts, and its class is seen by the others alone.
    tilts = torch.zeros(4, 2)
    tilts[0] = 100.0
    alone = generative(tilts, y)
    assert alone.effective.tolist() == pytest.approx([1, 1])
    assert alone.loss.item() == pytest.approx(75.0)
    # A constant for each class is not seen, as by the likelihood; one for each image is.
    f = torch.randn(4, 2, generator=toys.seeded())
    shifted = [generative(f + s, y).loss for s in (0, torch.tensor([5.0, -7.0]), F_SYN[:, None])]
    assert shifted[1].item() == pytest.approx(shifted[0].item(), abs=1e-5)
    assert abs(shifted[2].item() - shifted[0].item()) > 1


def test_the_objective_without_chains_is_the_generative_loss_of_the_tilts():
    """Over the gain, in the weights of the classifier; no chain moves."""
    energy = toys.smooth(gain=5.0)
    y = torch.tensor([0, 2, 2, 1])
    x = torch.rand(4, *toys.SHAPE, generator=toys.seeded(7))
    chains = ChainStore(energy.reference, ReferenceStart(energy.reference), 3, per_class=5)
    sampler, objective = Langevin(2, 0.1), Objective(kind="generative", data_noise=0.0)
    gen = Contrastive(energy, sampler, chains, objective)
    before = [v.clone() for v in chains.state_dict().values() if isinstance(v, torch.Tensor)]
    weights = list(energy.classifier.parameters())
    found = torch.autograd.grad(gen(x, y), weights)
    wanted = torch.autograd.grad(
        generative(energy.all_tilts(energy.reference.encode(x)), y)[0], weights
    )
    for a, b in zip(found, wanted, strict=True):
        assert (a - b / 5).abs().max() < 1e-6
    assert max((a - b).abs().max() for a, b in zip(found, wanted, strict=True)) > 1e-3, "the gain"
    after = [v for v in chains.state_dict().values() if isinstance(v, torch.Tensor)]
    assert len(before) and all(map(torch.equal, before, after))
    for wrong in ({"trim": 0.1}, {"square": 1.0}, {"scores": "joint"}):
        with pytest.raises(ValueError, match="`generative` has no synthesized scores"):
            Objective(kind="generative", **wrong)
    alone = toys.linear()
    alone.classifier = toys.Linear(torch.zeros(1, toys.DIM), torch.zeros(1))
    with pytest.raises(ValueError, match="there is one class. Take `likelihood`"):
        Contrastive(alone, sampler, chains, objective)


def test_training_with_the_generative_loss_lowers_it_and_keeps_the_cross_entropy():
    g = toys.seeded(5)
    y = torch.arange(60) % 3
    x = 0.4 * torch.rand(60, *toys.SHAPE, generator=g) + 0.1 * y[:, None, None, None]
    data = TensorDataset(x, y)

    def losses(weight):
        energy = toys.smooth()
        train_classifier(
            energy.classifier,
            energy.space,
            data,
            epochs=60,
            augment=lambda images, generator: images,
            learning_rate=0.02,
            batch_size=20,
            generative_weight=weight,
        )
        with torch.no_grad():
            logits = energy.logits(x)
        return generative(logits, y).loss, functional.cross_entropy(logits, y)

    plain, both = losses(0.0), losses(1.0)
    least = math.log(60 / 3)  # all weight on the images of the class, evenly
    assert least < both[0] < least + 0.4 * (plain[0] - least)
    assert both[1] < 0.1


@pytest.mark.parametrize("size", [3, 12])
def test_generative_loss_is_least_at_the_log_density_ratio_in_batches_of_any_size(size):
    """Two classes N(-1, 1) and N(1, 1), q their mixture: log p_c / q is a logistic curve."""
    generator, n = toys.seeded(size), 60_000 // size
    y = torch.randint(2, (n, size), generator=generator)
    x = 2.0 * y - 1 + torch.randn(n, size, generator=generator)
    ratio = torch.stack([functional.logsigmoid(-2 * x), functional.logsigmoid(2 * x)], -1)
    # Directions in which scores are changed, of both classes alike or not.
    directions = (x, x.square(), x.cos(), *ratio.unbind(-1))

    def slopes(tilts, itself=True):
        """The derivative of the loss of each batch in each direction, for both classes."""
        own = functional.one_hot(y, 2).double()
        if itself:
            share = tilts.double().softmax(1)[:, None].expand(-1, size, -1, -1)
        else:
            hidden = torch.eye(size)[..., None].bool()
            share = tilts.double()[:, None].masked_fill(hidden, -torch.inf).softmax(2)
        return torch.stack(
            [
                (own[..., c] * (t - (share[..., c] * t[:, None]).sum(2))).mean(1)
                for t in directions
                for c in (0, 1)
            ],
            1,
        )

    def worst(table):
        return float((table.mean(0) / (table.std(0) / n**0.5)).abs().max())

    # The last directions are those of a scale of the scores of one class.
    scale = torch.ones(n, 1, 1, requires_grad=True)
    parts = zip(scale[:50], ratio[:50], y[:50], strict=True)
    losses = [generative(s * f, labels).loss for s, f, labels in parts]
    (found,) = torch.autograd.grad(sum(losses), scale)
    table = slopes(ratio)
    assert (found[:50].flatten() + table[:50, 6] + table[:50, 9]).abs().max() < 1e-5
    assert worst(table) < 5
    for wrong in (slopes(1.3 * ratio), slopes(-ratio), slopes(ratio, itself=False)):
        assert worst(wrong) > 8


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "hinge"},
        {"trim": 1.0},
        {"square": -1.0},
        {"clamp": -0.1},
        {"clamp": float("nan")},
        {"clamp": 0.1, "kind": "logistic"},
        {"square": float("inf")},
        {"label_smoothing": 1.0},
    ],
)
def test_bad_objectives_are_refused(options):
    with pytest.raises(ValueError, match="Objective"):
        Objective(**options)


def drop_in(energy, n_steps=3, per_class=32, restart_rate=0.1, burn_in=0, **options):
    chains = ChainStore(
        energy.reference,
        ReferenceStart(energy.reference),
        3,
        per_class=per_class,
        restart_rate=restart_rate,
        burn_in=burn_in,
    )
    sampler = Langevin(n_steps=n_steps, step_size=0.5)
    return Contrastive(energy, sampler, chains, Objective(**options), generator=toys.seeded(1))


def test_settings_reach_cd_k_and_short_runs():
    """What the docstring of ChainSettings says: no chain goes on, each makes k steps."""
    energy, k, images = toys.smooth(), 3, torch.rand(6, *toys.SHAPE, generator=toys.seeded(6))
    for kind in ("data", "uniform"):
        start = StartSettings(kind=kind).build(energy, TensorDataset(images, Y), 3)
        sampler = Langevin(n_steps=k, step_size=1e-4)
        options = dict(per_class=8, restart_rate=1.0, burn_in=0)
        gen = Contrastive(energy, sampler, ChainStore(energy.reference, start, 3, **options))
        assert energy.sampler.n_steps == k
        for _ in range(3):
            found = gen.synthesize(Y)
            assert found.draw.fresh.all() and gen.chains.age.max() == 1
            # Steps this short stay at the image of the class that they began at.
            near = torch.cdist(found.images.flatten(1), images.flatten(1)).min(1)
            at_data = near.values.max() < 0.01 and torch.equal(Y[near.indices], Y)
            assert at_data == (kind == "data")


X = torch.rand(6, *toys.SHAPE, generator=toys.seeded(2))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def test_gradient_of_the_drop_in_is_the_formula():
    """With a linear classifier: mean synthesized minus mean observed input, per class."""
    energy = toys.linear()
    gen = drop_in(energy, data_noise=0.0)
    gen(X, Y).backward()
    synthesized = energy.reference.decode(gen.chains.state[gen.chains.age == 1])
    labels = (gen.chains.age == 1).nonzero()[:, 0]
    for c in range(3):
        expected = energy.space(synthesized[labels == c]).flatten(1).sum(0)
        expected = (expected - energy.space(X[Y == c]).flatten(1).sum(0)) / 6
        assert (energy.classifier.weight.grad[c] - expected).abs().max() < 1e-5


def test_joint_scores_are_those_of_all_classes_together():
    """The gradient is the mean of those of the classes under the posterior."""
    energy = toys.linear()
    u = torch.randn(5, *toys.SHAPE, generator=toys.seeded(4))
    y = torch.zeros(5, dtype=torch.int64)
    value, score = energy_and_score(Marginal(energy), u, y)
    x = energy.reference.decode(u)
    weights = energy.posterior(x)
    energy.gain, gain = 1.0, energy.gain
    at_gain_1, _ = energy_and_score(Marginal(energy), u, y)
    assert torch.allclose(at_gain_1, energy.free_energy(x))
    extra = (1 - gain) * energy.logits(x).logsumexp(1)
    assert (value - at_gain_1 - extra).abs().max() < 1e-5
    energy.gain = gain
    each = torch.stack([energy_and_score(energy, u, y + c)[1] for c in range(3)])
    expected = (weights.T[:, :, None] * each.flatten(2)).sum(0)
    assert (score.flatten(1) - expected).abs().max() < 1e-5
    assert (each[0].flatten(1) - expected).abs().max() > 1e-2
    found = drop_in(energy, scores="joint").synthesize(Y).images
    assert torch.equal(found, drop_in(energy, scores="joint").synthesize((Y + 1) % 3).images)
    assert not torch.equal(found, drop_in(energy).synthesize(Y).images)
    gen = drop_in(energy, data_noise=0.0, scores="joint")
    terms = gen.terms(X, Y, X.flip(0))
    terms.contrast.backward()
    assert energy.classifier.weight.grad.abs().max() < 1e-6  # the same images on both sides
    gen(X, Y).backward()
    assert energy.classifier.weight.grad.abs().max() > 1e-3


def test_class_bias_gets_no_likelihood_gradient():
    energy = toys.linear()
    drop_in(energy)(X, Y).backward()
    assert energy.classifier.bias.grad.abs().max() < 1e-6


def test_nothing_is_differentiated_through_the_chain():
    energy = toys.smooth()
    gen = drop_in(energy)
    synthesized = gen.synthesize(Y).images
    assert not synthesized.requires_grad
    terms = gen.terms(X, Y, synthesized, (X, Y))
    assert not terms.observed.requires_grad
    expected = functional.cross_entropy(energy.logits(X), Y)
    assert terms.cross_entropy.item() == pytest.approx(expected.item(), rel=1e-5)


def test_one_forward_serves_all_images():
    energy = toys.smooth()
    gen = drop_in(energy)
    synthesized = gen.synthesize(Y).images
    sizes = []
    energy.classifier.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    gen.terms(X, Y, synthesized, (X[:4], Y[:4]))
    assert sizes == [16]


@pytest.mark.parametrize("support", ["clamp", "reflect", "unbounded"])
def test_noisy_data_stay_in_the_support_as_chains_do(support):
    """Else the score learns to tell them apart by it, and grows without end."""
    reference = WhiteNoise(torch.full(toys.SHAPE, 0.5), 0.25)
    energy = ClassifierEnergy(toys.Smooth(), reference, support=support)
    seen = []
    energy.classifier.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    gen = drop_in(energy, data_noise=0.1)
    synthesized = gen.synthesize(Y).images
    x = X.round()
    gen.terms(x, Y, synthesized)
    observed = seen[-1][: len(x)]
    outside = torch.maximum(-observed, observed - 1).max()
    assert (observed - x).std() > 0.02
    assert outside > 0.1 if support == "unbounded" else outside < 1e-6


@pytest.mark.parametrize("burn_in", [0, 3, 8])
def test_burn_in_leaves_the_bias_of_its_closed_form(burn_in):
    """E u = m (1 - a^b r a^K / (1 - (1 - r) a^K)) for starts around 0 and a linear tilt m."""
    energy, steps, r, n = toys.linear(), 4, 0.3, 12_000
    gen = drop_in(energy, n_steps=steps, per_class=n, restart_rate=r, burn_in=burn_in)
    y = torch.ones(n).long()
    for _ in range(22):
        x = gen.synthesize(y).images
    tilt = toys.linear_tilt(energy, y[:1])[0]
    a = 1 - 0.125
    bias, mutant = (
        1 - a**b * r * a**steps / (1 - (1 - r) * a**steps) for b in (burn_in, 0 if burn_in else 5)
    )
    along = energy.reference.encode(x).flatten(1).double() @ tilt / tilt.square().sum()
    stats.assert_mean(along, bias)
    with pytest.raises(AssertionError):
        stats.assert_mean(along, mutant)
    assert energy.sampler.n_steps == burn_in + round(steps / r)


def test_with_momentum_a_fresh_chain_is_as_long_by_its_time():
    """40 steps and 100 draws of 3, each begun with a new velocity, last as 123 without a break."""
    energy = toys.linear()
    start = ReferenceStart(energy.reference)
    chains = ChainStore(energy.reference, start, 3, restart_rate=0.005, burn_in=40)
    sampler = Langevin(3, 0.15, momentum=0.8)
    Contrastive(energy, sampler, chains)
    assert energy.sampler == replace(sampler, n_steps=123)
    short, long = (replace(sampler, n_steps=n).time for n in (122, 124))
    assert short < replace(sampler, n_steps=40).time + 100 * sampler.time < long


def test_learning_stops_at_the_mean_of_the_data():
    """At w* = Sigma^-1 (mean data - mu) / gamma the expected gradient is zero, nowhere else."""
    energy = toys.linear(gain=1.5)
    a = toys.dense(energy.reference)
    std = energy.space.std.double()
    mu = energy.reference.mean.double().flatten()
    n = 3000
    data = 0.5 + 0.1 * torch.randn(n, *toys.SHAPE, generator=toys.seeded(3))
    y = torch.arange(n) % 3
    star = torch.stack(
        [
            torch.linalg.solve(a @ a.T, data[y == c].double().flatten(1).mean(0) - mu)
            for c in range(3)
        ]
    )
    weight = ((star / energy.gain).view(-1, *toys.SHAPE) * std).flatten(1).float()
    for factor, holds in ((1.0, True), (0.8, False)):
        with torch.no_grad():
            energy.classifier.weight.copy_(factor * weight)
        gen = drop_in(energy, n_steps=60, per_class=n // 3, restart_rate=1.0, data_noise=0.0)
        synthesized = gen.synthesize(y).images
        for c in range(3):
            x = energy.space(synthesized[y == c]).flatten(1).double()
            gap = x.mean(0) - energy.space(data[y == c]).flatten(1).double().mean(0)
            z = gap / (x.var(0) / len(x)).sqrt()
            assert (z.abs().max() < 5) == holds


def test_plain_loop_learns_the_fixed_point():
    """The drop-in with plain SGD ends at w*, within the noise of its last average."""
    energy = toys.linear(gain=1.0)
    torch.nn.init.zeros_(energy.classifier.weight)
    data = energy.reference.decode(
        0.5 + 0.5 * torch.randn(600, *toys.SHAPE, generator=toys.seeded(4))
    )
    y = torch.arange(600) % 3
    gen = drop_in(energy, n_steps=10, per_class=200, restart_rate=0.0, data_noise=0.0)
    mean = torch.stack([energy.reference.encode(data[y == c]).mean(0) for c in range(3)])
    optimizer = torch.optim.SGD(energy.classifier.parameters(), lr=1.0)
    tilts = []
    for update in range(120):
        optimizer.zero_grad()
        gen.terms(data, y, gen.synthesize(y).images).contrast.backward()
        optimizer.step()
        if update >= 60:
            tilts.append(toys.linear_tilt(energy, torch.arange(3)))
    found = torch.stack(tilts).mean(0)
    # A tilt is known to about 1 / sqrt(200 chains) per update, 60 correlated updates averaged.
    assert (found - mean.flatten(1)).abs().max() < 5 / 200**0.5
    assert (found - mean.flatten(1)).square().mean().sqrt() < 1 / 200**0.5


@pytest.mark.parametrize("steps", [2, 8])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_persistent_chains_turn_unstable_at_the_rate_of_theory(steps, factor):
    """With l = a^K the mean follows m' = l m + (1 - l) (mu + gamma s^2 w), w' = w + eta (x - m').

    It is stable iff eta gamma s^2 < 2 (1 + l) / (1 - l). At T = 0 every chain is its mean, so the
    loop itself is held to the recursion, on either side of the threshold.
    """
    gain, scale, step = 1.7, 0.5, 0.6
    weight = 0.1 * torch.randn(1, 4, generator=toys.seeded(6))
    classifier = toys.Linear(weight.double(), torch.zeros(1).double())
    reference = WhiteNoise(torch.full((1, 2, 2), 0.375), scale).double()
    energy = ClassifierEnergy(classifier, reference, gain=gain)
    energy.space.double()
    chains = ChainStore(
        energy.reference,
        ReferenceStart(energy.reference, 0.0),
        1,
        per_class=3,
        restart_rate=0.0,
        burn_in=0,
    )
    chains.state = chains.state.double()
    chains._unpack = lambda state, generator: state  # the store is in single precision
    chains._pack = lambda u: u
    sampler = Langevin(n_steps=steps, step_size=step, temperature=0.0)
    gen = Contrastive(energy, sampler, chains, Objective(data_noise=0.0))
    memory = (1 - step**2 / 2) ** steps
    threshold = 2 * (1 + memory) / (1 - memory) / (gain * scale**2)
    optimizer = torch.optim.SGD([classifier.weight], lr=factor * threshold)
    x = torch.tensor([0.1, 0.9, 0.4, 0.6]).double().view(1, 1, 2, 2).expand(3, -1, -1, -1)
    m, w = reference.mean.flatten(), classifier.weight[0].detach().clone()
    y, errors = torch.zeros(3).long(), []
    for _ in range(60):
        optimizer.zero_grad()
        gen(x, y).backward()
        optimizer.step()
        m = memory * m + (1 - memory) * (0.375 + gain * scale**2 * w)
        w = w + factor * threshold * (x[0].flatten() - m)
        torch.testing.assert_close(classifier.weight[0].detach(), w, rtol=1e-9, atol=1e-9)
        errors.append(float((m - x[0].flatten()).abs().max()))
    assert (errors[-1] > errors[9]) == (factor > 1)
    # A mutant: chains that forget all of their past turn unstable at another rate.
    assert abs(threshold - 2 / (gain * scale**2)) > 0.3 * threshold


def test_drop_in_adds_to_a_plain_loop():
    energy = toys.smooth()
    gen = drop_in(energy)
    parameters = list(energy.classifier.parameters())
    optimizer = torch.optim.Adam(parameters, 1e-2)
    before = [p.clone() for p in parameters]
    energy.classifier.train()
    loss = functional.cross_entropy(energy.classifier(energy.space(X)), Y) + gen(X, Y)
    loss.backward()
    optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(parameters, before, strict=True))
    assert energy.classifier.training and isinstance(gen, nn.Module)
    with pytest.raises(ValueError, match="one class index per image"):
        drop_in(toys.linear())(X, torch.full((6, 3), 1 / 3))
    with pytest.raises(ValueError, match="classes are 0 to 2"):
        gen(X, Y + 1)
    with pytest.raises(ValueError, match="the batch is empty"):
        gen(X[:0], Y[:0])


def test_parts_of_the_drop_in_may_be_replaced():
    gen, other = drop_in(toys.smooth()), drop_in(toys.smooth())
    gen(X, Y.int())
    before = gen.chains.state.clone()
    first, gen.chains = gen.chains, other.chains
    gen.generator = toys.seeded(9)
    gen(X, Y)
    assert torch.equal(first.state, before) and int((gen.chains.age > 0).sum()) == 6
    again = drop_in(toys.smooth())
    again.generator = toys.seeded(9)
    again(X, Y)
    assert torch.equal(again.chains.state, gen.chains.state)
    # A part without tensors in its place: chains see it too.
    energy = gen.energy
    wrapped = nn.Sequential(energy.classifier, Negative())
    energy.classifier = wrapped
    u = energy.reference.encode(X)
    assert torch.equal(gen.synthesizer.swift_energy().tilt(u, Y), energy.tilt(u, Y))


def test_chains_of_a_forward_that_is_not_finite_begin_anew():
    gen = drop_in(toys.smooth())
    gen(X, Y)
    weight = next(gen.energy.classifier.parameters())
    healthy = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(math.nan)
    assert gen(X, Y).isnan()
    with torch.no_grad():
        weight.copy_(healthy)
    assert all(gen(X, Y).isfinite() for _ in range(40))
    assert gen.chains.state[gen.chains.age > 0].isfinite().all()


class Negative(nn.Module):
    def forward(self, x):
        return -x


def test_moments_helper_catches_a_shift():
    u = torch.randn(10_000, 3, generator=toys.seeded(5))
    stats.assert_moments(u, torch.zeros(3), torch.ones(3))
    for mutant in (u + 0.08, 1.05 * u):
        assert stats.worst_moment(mutant, torch.zeros(3), torch.ones(3)) > 5


class Cropped(nn.Module):
    """What it learns from is cut out of larger images: on a torus it sees two pixels more."""

    num_classes, seen = 1, slice(1, -1)

    def on_torus(self):
        found = Cropped()
        found.seen = slice(None)
        return found

    def forward(self, x):
        return x[..., self.seen, self.seen].sum((1, 2, 3))[:, None]


def test_chains_of_a_network_with_a_torus_are_on_it():
    reference = WhiteNoise(torch.full((1, 4, 4), 0.5), 0.2)
    energy, y = ClassifierEnergy(Cropped(), reference), torch.zeros(2).long()
    gen = Contrastive(energy, Langevin(1), ChainStore(reference, ReferenceStart(reference), 1))
    u = torch.randn(2, 1, 4, 4, generator=toys.seeded(1))
    x = reference.decode(u).flatten(1).sum(1)
    found = gen.synthesizer.chain_energy()(u, y)
    assert torch.allclose(found, u.flatten(1).square().sum(1) / 2 - x, atol=1e-5)
    # The loss, and an adversary, are those of the network itself.
    for other in (energy, gen.synthesizer.swift_energy()):
        assert not torch.allclose(other(u, y), found, atol=0.1)
