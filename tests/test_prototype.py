"""The prototype against quadrature, finite differences and its own samples; mutants fail."""

import copy
import math

import pytest
import stats
import torch
import toys

from ebm_from_clf import ClassifierEnergy, Langevin, Objective, Settings, Smoothing, WhiteNoise
from ebm_from_clf.chain_settings import ChainSettings, StartSettings
from ebm_from_clf.drift import energy_and_score
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.prototype import PieceLaw, Prototype, PrototypeLaw, read_filters

TAU = torch.tensor([0.7, 1.5, 3.0], dtype=torch.float64)
BETA = torch.tensor([0.8, -1.2, -4.5], dtype=torch.float64)
TEMPERATURES = [1.0, 0.5]
N = 100_000


def model(beta=BETA):
    return toys.prototype(toys.orthogonal(TAU), beta)


def line(tau, beta):
    """Simpson's rule on either side of a kink: r, whether on, and weights of q and of Z p."""
    edges = torch.tensor([-14 * tau, -beta, tau**2 + 14 * tau], dtype=torch.float64)
    edges = edges.sort().values
    r, on, weight = [], [], []
    for low, high in zip(edges, edges[1:], strict=False):
        x = torch.linspace(float(low), float(high), 4001, dtype=torch.float64)
        w = torch.full_like(x, 2.0)
        w[1::2], w[0], w[-1] = 4.0, 1.0, 1.0
        r.append(x)
        on.append(torch.full_like(x, float(low >= -beta)))
        weight.append(w * float(x[1] - x[0]) / 3)
    r, on, weight = torch.cat(r), torch.cat(on), torch.cat(weight)
    q = (-r.square() / tau**2 / 2).exp() / (math.sqrt(2 * math.pi) * tau)
    return r, on, weight * q, weight * q * (on * (r + beta)).exp()


def integrals(tau, beta):
    """log Z, pi, E r, E r^2, E delta r, E F and E_q F of units, by quadrature."""
    rows = []
    for t, b in zip(tau.tolist(), beta.tolist(), strict=True):
        r, on, q, p = line(t, b)
        z = p.sum()
        p, tilt = p / z, on * (r + b)
        rows.append([z.log(), p @ on, p @ r, p @ r.square(), p @ (on * r), p @ tilt, q @ tilt])
    return torch.tensor(rows, dtype=torch.float64).T


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_every_moment_is_that_of_quadrature(temperature):
    law = PrototypeLaw(model(), temperature)
    tau, beta = TAU / temperature**0.5, BETA / temperature
    z, on, response, square, active, tilt, reference = integrals(tau, beta)
    assert (law.log_z - z.sum()).abs() < 1e-10
    for found, expected in (
        (law.on, on),
        (law.response, response),
        (law.square, square),
        (law.active, active),
        (law.tilt, tilt.sum()),
        (law.reference_tilt, reference.sum()),
        (law.divergence, tilt.sum() - z.sum()),
        (law.reconstruction, (on * tau.square()).sum()),
    ):
        assert (found - expected).abs().max() < 1e-9
    assert (law.density(-beta) - law.kink).abs().max() < 1e-9


def test_filters_are_read_through_gain_reference_and_normalisation():
    """Against dense matrices; mutants: A for A^T, mu or the gain dropped from beta."""
    energy = model()
    filters = read_filters(energy)
    assert (filters.omega.flatten(1) - toys.orthogonal(TAU)).abs().max() < 1e-6
    assert (filters.beta - BETA).abs().max() < 1e-6
    center, a = toys.dense_space(energy)
    weight, bias = energy.classifier.weight.detach().flatten(1), energy.classifier.bias.detach()
    gain = energy.gain
    assert (gain * weight @ a - filters.omega.flatten(1)).abs().max() < 1e-6
    for mutant in (weight @ a, gain * weight @ a.T):
        assert (mutant - filters.omega.flatten(1)).abs().max() > 0.05
    for mutant in (bias + weight @ center, gain * bias):
        assert (mutant - filters.beta).abs().max() > 0.05
    cold = read_filters(energy, 0.25)
    assert torch.allclose(cold.omega, 2 * filters.omega)
    assert torch.allclose(cold.beta, 4 * filters.beta)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_samples_have_the_moments_of_the_law(temperature):
    energy, law = model(), PrototypeLaw(model(), temperature)
    u = law.sample(N, generator=toys.seeded(3))
    assert u.dtype == energy.reference.mean.dtype
    r = u.flatten(1).double() @ law.omega.flatten(1).T / temperature**0.5
    on = r > -law.beta
    values = [(on.double(), law.on), (r, law.response), (r.square(), law.square)]
    values.append((on * r, law.active))
    for found, expected in values:
        for k in range(3):
            stats.assert_mean(found[:, k], float(expected[k]))
    x = energy.reference.decode(u).flatten(1).double()
    covariance = law.covariance()
    z = (x.mean(0) - law.mean.flatten()) / (covariance.diagonal() / N).sqrt()
    assert z.abs().max() < 5
    # Along the eigenvectors, where A for A^T and a lost excess both show.
    values, vectors = torch.linalg.eigh(covariance)
    v = (x - law.mean.flatten()) @ vectors / values.sqrt()
    products = torch.einsum("ni,nj->nij", v[:20_000], v[:20_000])
    error = products.std(0) / 20_000**0.5
    one = torch.eye(toys.DIM).double()
    assert ((products.mean(0) - one) / error).abs().max() < 5


def test_samples_tell_mutants_of_the_law():
    law = PrototypeLaw(model())
    r = law.sample(N, generator=toys.seeded(3)).flatten(1).double() @ law.omega.flatten(1).T
    inverted = copy.copy(law)
    inverted.on = 1 - law.on
    kinkless = copy.copy(law)
    kinkless.kink = torch.zeros(3)
    for mutant in (inverted, kinkless):
        with pytest.raises(AssertionError):
            stats.assert_mean(r[:, 1].square(), float(mutant.square[1]))
    with pytest.raises(AssertionError):
        stats.assert_mean(r[:, 1], float(inverted.response[1]))


def test_the_histogram_of_a_response_is_its_density():
    law = PrototypeLaw(model())
    u = law.sample(N, generator=toys.seeded(5)).flatten(1).double()
    for k in range(3):
        r = u @ law.omega.flatten(1)[k]
        edges = torch.linspace(-2.5, 5, 16, dtype=torch.float64) * law.tau[k]
        fine = torch.linspace(0, 1, 501, dtype=torch.float64)
        for low, high in zip(edges, edges[1:], strict=False):
            x = (low + fine * (high - low))[:, None].expand(-1, 3)
            share = float(torch.trapezoid(law.density(x)[:, k], x[:, 0]))
            error = math.sqrt(share * (1 - share) / N) + 1e-5
            found = float(((r > low) & (r < high)).double().mean())
            assert abs(found - share) < 5 * error


def test_a_sample_depends_on_its_own_generator_alone():
    law = PrototypeLaw(model())
    many = law.sample(3, generator=[toys.seeded(i) for i in range(3)])
    assert torch.allclose(many[2:], law.sample(1, generator=[toys.seeded(2)]), atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_of_log_z_is_that_of_differences(temperature):
    energy = model()
    found = PrototypeLaw(energy, temperature).gradient()
    step, rows = 1e-4, torch.randn(3, *toys.SHAPE, generator=toys.seeded(6)).double()
    bias = torch.randn(3, generator=toys.seeded(7)).double()
    values = []
    for sign in (1, -1):
        near = copy.deepcopy(energy)
        with torch.no_grad():
            near.classifier.weight += sign * step * rows
            near.classifier.bias += sign * step * bias
        # Filters that are moved are not orthogonal any more: the constant of any filters.
        values.append(PieceLaw(near, temperature).log_z)
    slope = (values[0] - values[1]) / (2 * step)
    expected = (found["weight"] * rows).sum() + (found["bias"] * bias).sum()
    assert (slope - expected).abs() < 1e-6 * expected.abs()
    lost = expected - (found["bias"] * bias).sum()
    assert (slope - lost).abs() > 1e-3 * expected.abs(), "the mutant"


def test_the_gradient_of_log_z_is_the_mean_gradient_of_the_tilt():
    """d log Z = E_p dF, by autograd through the production energy at exact samples."""
    energy = model()
    law = PrototypeLaw(energy)
    u = law.sample(20_000, generator=toys.seeded(8))
    x = energy.space(energy.reference.decode(u)).flatten(1).detach()
    on = (energy.classifier.responses(x) > 0).double().detach()
    found = law.gradient()
    loss = energy.tilt(u, torch.zeros(len(u)).long()).mean()
    weight, bias = torch.autograd.grad(loss, [energy.classifier.weight, energy.classifier.bias])
    for k in range(3):
        each = energy.gain * on[:, k, None] * x
        z = (weight[k] - found["weight"][k]).flatten() / (each.std(0) / len(u) ** 0.5)
        assert z.abs().max() < 5
        each = energy.gain * on[:, k]
        assert (bias[k] - found["bias"][k]).abs() < 5 * each.std() / len(u) ** 0.5
        mutant = law.gradient()["weight"][k] / energy.gain
        z = (weight[k] - mutant).flatten() / ((each[:, None] * x).std(0) / len(u) ** 0.5)
        assert z.abs().max() > 10


def test_the_score_has_its_norm():
    """E|R|^2 / D = 1 - sum_k tau_k^2 kappa_k / D, which the kinks take away."""
    energy, law = model(), PrototypeLaw(model())
    u = law.sample(N, generator=toys.seeded(9))
    _, score = energy_and_score(energy, u, torch.zeros(N).long())
    lost = float((law.tau.square() * law.kink).sum())
    stats.assert_mean(score.flatten(1).square().sum(1), toys.DIM - lost)
    with pytest.raises(AssertionError):
        stats.assert_mean(score.flatten(1).square().sum(1), toys.DIM)


def test_a_chain_stays_in_the_law():
    """From exact draws, through the production chain; mutants: T ignored, B without the gain."""
    energy, t, n = model(), 0.5, 6000
    law = PrototypeLaw(energy, t)

    def off(energy, temperature):
        """How far the chain is off, in standard errors and the bias of .01 of a step of .3."""
        sampler = Langevin(20, 0.3, temperature=temperature, variance_corrected=True)
        u = law.sample(n, generator=toys.seeded(10))
        u, _ = sampler(energy, u, torch.zeros(n).long(), generator=toys.seeded(11))
        on = u.flatten(1) @ law.omega.flatten(1).T / t**0.5 > -law.beta
        error = 5 * (law.on * (1 - law.on) / n).sqrt() + 0.01
        return float(((on.double().mean(0) - law.on).abs() / error).max())

    assert off(energy, t) < 1
    assert off(energy, 1.0) > 1.5
    energy.gain /= 1.4
    assert off(energy, t) > 1.5


def stationary(energy, x, e, drift=1.0, noise=1.0):
    """What the plain chain on a line settles in, from its exact transition matrix on a grid."""
    _, score = energy_and_score(energy, x.view(-1, 1, 1, 1), torch.zeros(len(x)).long())
    score = score.flatten()
    center = (x + drift * e**2 / 2 * score)[:, None]
    step = (-(x - center).square() / (2 * noise**2 * e**2)).exp()
    step = step / step.sum(1, keepdim=True)
    for _ in range(10):
        step = step @ step
    return step[len(x) // 2], score


@pytest.mark.parametrize("e, distance", [(0.2, 0.004), (0.4, 0.014), (0.8, 0.048)])
def test_the_bias_of_a_finite_step(e, distance):
    """A symmetric double well, tau = 2: distance in total variation from the exact density."""
    weight = torch.full((1, 1, 1, 1), 8.0)
    reference = WhiteNoise(torch.full((1, 1, 1), 0.5), 0.25)
    energy = ClassifierEnergy(Prototype(weight, torch.tensor([-6.0])), reference).double()
    law = PrototypeLaw(energy)
    assert law.beta.item() == -2 and law.tau.item() == 2
    # The kink, at 1, lies half way between two nodes.
    x = torch.linspace(-6.01, 7.99, 701, dtype=torch.float64)
    exact = law.density(2 * x[:, None])[:, 0] * 2 * (x[1] - x[0])
    found, score = stationary(energy, x, e)
    assert float((found - exact).abs().sum() / 2) == pytest.approx(distance, abs=0.0015)
    identity = -(found @ (x * score)) - e**2 / 4 * (found @ score.square())
    assert float(identity) == pytest.approx(1, abs=1e-5)
    for drift, noise in ((2, 1), (1, 2**0.5), (0.5, 1)):
        mutant, _ = stationary(energy, x, e, drift, noise)
        assert float((mutant - exact).abs().sum() / 2) > distance + 0.02


def test_the_double_well_has_its_constant():
    """beta = -tau^2 / 2: wells at 0 and tau^2, Z = 2 Phi(tau / 2)."""
    law = PrototypeLaw(model(-TAU.square() / 2))
    expected = (2 * torch.special.ndtr(TAU / 2)).log().sum()
    assert (law.log_z - expected).abs() < 1e-6
    assert (law.on - 0.5).abs().max() < 1e-6


def planar(k, scale=1.5, seed=3, dim=2):
    """Filters in general directions on images of a few pixels."""
    g = toys.seeded(seed)
    weight = 4 * scale * torch.randn(k, 1, 1, dim, generator=g).double()
    bias = torch.randn(k, generator=g).double() - weight.flatten(1).sum(1) / 2
    reference = WhiteNoise(torch.full((1, 1, dim), 0.5), 0.25)
    return ClassifierEnergy(Prototype(weight, bias), reference).double()


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_pieces_of_any_filters_are_those_of_a_grid(k):
    energy = planar(k)
    law = PieceLaw(energy)
    axis = torch.linspace(-14, 14, 1401, dtype=torch.float64)
    u = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 1, 1, 2)
    with torch.no_grad():
        log_p = energy.tilt(u, torch.zeros(len(u)).long()) - u.flatten(1).square().sum(1) / 2
        on = energy.classifier.responses(energy.space(energy.reference.decode(u))) > 0
    p = (log_p - math.log(2 * math.pi)).exp() * float(axis[1] - axis[0]) ** 2
    # The midpoint rule is off by h^2 at the kinks, and in a piece by h at its border.
    assert abs(float(p.sum().log() - law.log_z)) < 2e-5
    codes, index = on.long().matmul(2 ** torch.arange(k)).unique(return_inverse=True)
    share = torch.zeros(len(codes)).double().index_add_(0, index, p / p.sum())
    numbers = law.patterns.long().matmul(2 ** torch.arange(k)).tolist()
    found = dict(zip(numbers, law.probability.tolist(), strict=True))
    assert sum(found.values()) == pytest.approx(1)
    for code, value in zip(codes.tolist(), share.tolist(), strict=True):
        assert abs(value - found.get(code, 0)) < 0.01
    assert len(found) <= sum(math.comb(k, i) for i in range(3))
    norm = (on.double() @ law.omega.flatten(1)).square().sum(1)
    assert float(p @ norm / p.sum()) == pytest.approx(float(law.reconstruction), rel=0.01)
    inverted = sum(
        abs(value - found.get(2**k - 1 - code, 0))
        for code, value in zip(codes.tolist(), share.tolist(), strict=True)
    )
    assert inverted > 0.1, "the mutant"


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_pieces_of_orthogonal_filters_are_those_of_the_law(temperature):
    law, pieces = PrototypeLaw(model(), temperature), PieceLaw(model(), temperature)
    assert abs(float(law.log_z - pieces.log_z)) < 1e-8
    each = torch.where(pieces.patterns, law.on, 1 - law.on).prod(1)
    assert len(each) == 8 and (each - pieces.probability).abs().max() < 1e-8
    assert (law.on - pieces.on).abs().max() < 1e-8
    assert abs(float(law.reconstruction - pieces.reconstruction)) < 1e-8


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_samples_of_any_filters_have_the_probabilities_of_the_pieces(temperature):
    tilts = torch.tensor([[0, 1.5], [-1.3, -0.8], [1.2, -0.7], [1, 0.5]]).double()
    bias = torch.tensor([-0.8, -0.5, -0.6, -0.3]) - 2 * tilts.sum(1)
    reference = WhiteNoise(torch.full((1, 1, 2), 0.5), 0.25)
    energy = ClassifierEnergy(Prototype(4 * tilts.view(-1, 1, 1, 2), bias), reference).double()
    law = PieceLaw(energy, temperature)
    u = law.sample(N, generator=toys.seeded(12))
    x = energy.space(energy.reference.decode(u))
    on = (energy.classifier.responses(x) > 0).double()
    # Stein: E u = E B, so that along with the patterns the Gaussians in them are compared.
    for k in range(4):
        stats.assert_mean(on[:, k], float(law.on[k]))
    for axis in range(2):
        stats.assert_mean((u.flatten(1) - on @ tilts)[:, axis], 0.0)
    both = float(law.probability @ law.patterns[:, 2:].all(1).double())
    stats.assert_mean(on[:, 2] * on[:, 3], both)
    with pytest.raises(AssertionError):
        stats.assert_mean(on[:, 2], 1 - float(law.on[2]))
    with pytest.raises(AssertionError):
        stats.assert_mean((u.flatten(1) - 0.8 * on @ tilts)[:, 1], 0.0)
    with pytest.raises(AssertionError):
        stats.assert_mean(on[:, 2] * on[:, 3], float(law.on[2] * law.on[3]))


def crossed(k, dim, seed=3):
    """Filters in general directions, about as often on as off, so that pieces are alike."""
    g = toys.seeded(seed)
    tilts = torch.randn(k, dim, generator=g).double() / 2
    beta = 0.3 * torch.randn(k, generator=g) - tilts.square().sum(1) / 2
    reference = WhiteNoise(torch.full((1, 1, dim), 0.5), 0.25)
    unit = Prototype(4 * tilts.view(k, 1, 1, dim), beta - 2 * tilts.sum(1))
    return ClassifierEnergy(unit, reference).double()


def coded(patterns):
    """The numbers of patterns, of which there are 2^K."""
    return patterns.long() @ 2 ** torch.arange(patterns.shape[1])


def shares(energy, u, law):
    """The pattern of each draw, and the probability of each of all 2^K."""
    x = energy.space(energy.reference.decode(u))
    k = len(law.omega)
    probability = torch.zeros(2**k).double()
    probability[coded(law.patterns)] = law.probability
    return coded(energy.classifier.responses(x) > 0), probability


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k, dim", [(5, 2), (4, 3), (5, 3)])
def test_every_piece_has_its_share_of_exact_draws(k, dim, temperature):
    """Drawn among all 2^K patterns, whether they are pieces or not: those that are not, never."""
    energy = crossed(k, dim)
    law, sampler = PieceLaw(energy, temperature), PieceLaw(energy, temperature)
    digits = torch.arange(2**k)[:, None] >> torch.arange(k)
    sampler.patterns = digits % 2 > 0
    codes, probability = shares(energy, sampler.sample(N, generator=toys.seeded(18)), law)
    stats.assert_shares(codes, probability)
    assert (probability > 0).sum() < 2**k and (probability[codes] > 0).all()
    assert (N * law.probability > 100).sum() > 11, "or few are compared"
    # Mutants: patterns in another order, units in another order, and the inverted ones.
    order = law.probability.argsort()
    swapped = probability.clone()
    pair = coded(law.patterns[order[-2:]])
    swapped[pair] = probability[pair.flip(0)]
    turned = probability.view([2] * k).movedim(0, -1).flatten()
    for mutant in (swapped, turned, probability.flip(0)):
        with pytest.raises(AssertionError):
            stats.assert_shares(codes, mutant)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_pieces_of_orthogonal_filters_have_their_shares_of_draws_unit_by_unit(temperature):
    """The draws of the one law, the probabilities of the other."""
    energy = model()
    u = PrototypeLaw(energy, temperature).sample(N, generator=toys.seeded(19))
    law = PieceLaw(energy, temperature)
    codes, probability = shares(energy, u, law)
    stats.assert_shares(codes, probability)
    # Mutants: another temperature, and each pattern for the next.
    _, other = shares(energy, u[:1], PieceLaw(energy, 0.9 * temperature))
    for mutant in (other, probability.roll(1)):
        with pytest.raises(AssertionError):
            stats.assert_shares(codes, mutant)


def test_many_units_are_drawn_from(k=34):
    """More patterns than can be listed, 2^34; at most 596 of them are pieces."""
    law = PieceLaw(planar(k, 0.4))
    assert len(law.patterns) <= 1 + k + math.comb(k, 2)
    energy, u = planar(k, 0.4), law.sample(2000, generator=toys.seeded(17))
    on = (energy.classifier.responses(energy.space(energy.reference.decode(u))) > 0).double()
    often = [i for i in range(k) if 0.01 < law.on[i] < 0.99]
    assert len(often) > 10
    for i in often:
        stats.assert_mean(on[:, i], float(law.on[i]))
    # Mutant: the unit beside it.
    wrong = [abs(float(on[:, i].mean() - law.on[(i + 1) % k])) for i in often]
    assert max(wrong) > 5 * 0.5 / 2000**0.5


def test_long_filters_have_their_law_or_are_refused():
    """On a line a filter of length tau: Z = Phi(-t) + exp(beta + tau^2 / 2) Phi(t + tau)."""
    reference = WhiteNoise(torch.full((1, 1, 1), 0.5), 0.25)

    def on_a_line(tau, beta):
        weight = torch.full((1, 1, 1, 1), 4 * tau, dtype=torch.float64)
        bias = torch.tensor([beta - 2 * tau], dtype=torch.float64)
        return ClassifierEnergy(Prototype(weight, bias), reference).double()

    for tau in (1.0, 40.0, 1400.0):
        law, pieces = (kind(on_a_line(tau, -(tau**2) / 2)) for kind in (PrototypeLaw, PieceLaw))
        # Both wells weigh the same; log Z is log 2 and exponents are rounded.
        assert (law.on - 0.5).abs().max() < 1e-9 and (pieces.on - 0.5).abs().max() < 1e-9
        assert abs(float(law.log_z - pieces.log_z)) < 1e-9
        r = law.omega.flatten().square() * (law.on * (1 - law.on) + law.kink) + 1
        assert float(law.covariance()) == pytest.approx(float(r) / 16, rel=1e-9)
    for kind in (PrototypeLaw, PieceLaw):
        for tau, beta in ((1e7, 0.0), (1.0, 1e7), (math.nan, 0.0), (1.0, math.inf)):
            with pytest.raises(ValueError, match="must be finite and at most 1e.06 nats"):
                kind(on_a_line(tau, beta))
    with pytest.raises(ValueError, match="30 filters .* in 3 dimensions .* fewer or shorter"):
        PieceLaw(planar(30, dim=3))
    with pytest.raises(ValueError, match="fewer or shorter"):
        PieceLaw(planar(4, 200.0, dim=3))


def test_the_quadrature_has_converged(monkeypatch):
    for energy in (planar(5, 2.0), planar(4, 1.0, 5, 3), planar(5, 3.0, 5, 3)):
        coarse = PieceLaw(energy)
        with monkeypatch.context() as patch:
            patch.setattr("ebm_from_clf.prototype.pieces.NODES", 24)
            fine = PieceLaw(energy)
        assert abs(float(coarse.log_z - fine.log_z)) < 1e-10
        assert (coarse.on - fine.on).abs().max() < 1e-9


class Draws(torch.utils.data.Dataset):
    """Exact draws of one class, as a data set in memory."""

    def __init__(self, x):
        self.x, self.labels = x, torch.zeros(len(x)).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.labels[i]

    __getitems__ = __getitem__


def test_finetuning_learns_the_truth_to_its_standard_errors():
    """One class, no cross-entropy; errors by Fisher, the inverse of n Cov_p dF."""
    n = 2000
    tilts = torch.tensor([[1.2, 0.9, 0.0, 0.0], [0.0, 0.0, 1.0, -1.4]])
    # Dark, so that errors of filters and biases are not nearly the same.
    reference = WhiteNoise(torch.full((1, 2, 2), 0.1), 0.15)
    weight = tilts.view(2, 1, 2, 2) / 0.15
    beta = torch.tensor([-0.6, -1.0])
    true = Prototype(weight, beta - 0.1 * weight.sum((1, 2, 3)))
    law = PrototypeLaw(ClassifierEnergy(true, reference))
    x = reference.decode(law.sample(n, generator=toys.seeded(13)))
    # Units are exchangeable: near the truth, so that it is known which is which.
    learned = Prototype(1.15 * weight, true.bias + 0.2)
    settings = Settings(
        updates=200,
        batch_size=n,
        clean_batch_size=0,
        learning_rate=0.1,
        sampler=Langevin(12, 0.4, variance_corrected=True),
        start=StartSettings("reference"),
        chains=ChainSettings(n, restart_rate=0.0, burn_in=40),
        objective=Objective(cross_entropy=0.0, data_noise=0.0),
    )
    tuner = Finetuner(ClassifierEnergy(learned, reference), Draws(x), settings)
    tuner.run()
    assert tuner.chains.n_classes == 1 and not tuner.guard.actions
    many = law.sample(N, generator=toys.seeded(14))
    image = reference.decode(many).flatten(1)
    on = (true.responses(image) > 0).double()
    gradient = torch.einsum("nk,nd->nkd", on, torch.cat([image, torch.ones(N, 1)], 1).double())
    fisher = n * torch.cov(gradient.flatten(1).T)

    def off(weight, bias):
        """z-scores, and chi^2 by degree of freedom."""
        rows = torch.cat([(learned.weight - weight).flatten(1), (learned.bias - bias)[:, None]], 1)
        d = rows.detach().double().flatten()
        return float((d / torch.linalg.inv(fisher).diagonal().sqrt()).abs().max()), d @ fisher @ d

    z, chi = off(true.weight, true.bias)
    assert z < 4.5 and float(chi) / 10 < 1 + 5 * (2 / 10) ** 0.5
    for mutant in ((1.15 * true.weight, true.bias), (true.weight, true.bias + 1.0)):
        assert float(off(*mutant)[1]) / 10 > 2 + 5 * (2 / 10) ** 0.5


def test_starts_keep_no_more_components_than_there_are_pixels():
    energy = planar(2).float()
    x = energy.reference.sample(50, generator=toys.seeded(15))
    start = StartSettings().build(energy, Draws(x), 1)
    drawn = start(torch.zeros(20_000).long(), generator=toys.seeded(16)).flatten(1)
    exact = torch.cov(x.flatten(1).T)
    # Clipping takes some away, the wrong number of components half.
    assert (torch.cov(drawn.T) - exact).abs().max() < 0.2 * exact.abs().max()


def test_one_class_works_as_a_classifier():
    energy, x = model(), torch.rand(4, *toys.SHAPE, generator=toys.seeded()).double()
    assert energy.n_classes == 1 and energy.logits(x).shape == (4, 1)
    assert energy.posterior(x).eq(1).all()


def test_what_has_no_law_is_refused():
    weight, bias = torch.zeros(3, *toys.SHAPE), torch.zeros(3)
    with pytest.raises(ValueError, match="`weight` must have shape"):
        Prototype(weight, torch.zeros(2))
    with pytest.raises(TypeError, match="must be floating point, got torch.int64"):
        Prototype(weight.long(), bias)
    with pytest.raises(TypeError, match="must be a Prototype, got Smooth"):
        PrototypeLaw(toys.smooth())
    with pytest.raises(ValueError, match="the largest cosine"):
        PrototypeLaw(planar(3))
    with pytest.raises(ValueError, match="none 0"):
        PrototypeLaw(ClassifierEnergy(Prototype(weight, bias), toys.reference(), toys.space()))
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        PrototypeLaw(model(), 0.0)
    with pytest.raises(ValueError, match="may span 3 dimensions, they span 4"):
        PieceLaw(planar(5, dim=4))
    for options in ({"gauge": "centered"}, {"smoothing": Smoothing()}):
        energy = ClassifierEnergy(Prototype(weight, bias), toys.reference(), **options)
        with pytest.raises(ValueError, match="in the gauge `raw`"):
            PieceLaw(energy)
