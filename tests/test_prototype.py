"""The prototype against quadrature, finite differences and its own samples; mutants fail."""

import copy
import math

import pytest
import stats
import torch
import toys

from ebm_from_clf import ClassifierEnergy, Langevin, WhiteNoise
from ebm_from_clf.langevin import energy_and_score
from ebm_from_clf.pieces import PieceLaw
from ebm_from_clf.prototype import Filters, Prototype, PrototypeLaw, read_filters

TAU = torch.tensor([0.7, 1.5, 3.0], dtype=torch.float64)
BETA = torch.tensor([0.8, -1.2, -4.5], dtype=torch.float64)
TEMPERATURES = [1.0, 0.5]
N = 100_000


def model(beta=BETA):
    return toys.prototype(toys.orthogonal(TAU), beta)


def line(tau, beta):
    """A unit on a fine grid: nodes, the density of r up to Z under q, and the spacing."""
    edges = torch.tensor([-14 * tau, -beta, tau**2 + 14 * tau], dtype=torch.float64)
    edges = edges.sort().values
    # Simpson's rule on either side of the kink.
    r, weight = [], []
    for low, high in zip(edges, edges[1:], strict=False):
        x = torch.linspace(float(low), float(high), 4001, dtype=torch.float64)
        w = torch.full_like(x, 2.0)
        w[1::2], w[0], w[-1] = 4.0, 1.0, 1.0
        r.append(x)
        weight.append(w * float(x[1] - x[0]) / 3)
    r, weight = torch.cat(r), torch.cat(weight)
    q = (-r.square() / tau**2 / 2).exp() / (math.sqrt(2 * math.pi) * tau)
    return r, weight * q, weight * q * (r + beta).clamp_min(0).exp()


def integrals(tau, beta):
    """log Z, pi, E r, E r^2, E delta r, E F and E_q F of units, by quadrature."""
    rows = []
    for t, b in zip(tau.tolist(), beta.tolist(), strict=True):
        r, q, p = line(t, b)
        z, on = p.sum(), r > -b
        p = p / z
        moments = (p @ on.double(), p @ r, p @ r.square(), p @ (on * r))
        rows.append([z.log(), *moments, p @ (r + b).clamp_min(0), q @ (r + b).clamp_min(0)])
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
    r, _, p = line(float(tau[2]), float(beta[2]))
    assert (law.density(torch.stack([r, r, r], 1))[:, 2].log().diff().abs().max()) < 1
    assert float(law.density(-beta - 1e-12)[2]) == pytest.approx(float(law.kink[2]))


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


def pixels(law, temperature):
    """Draws, as pixels."""
    return model().reference.decode(law.sample(N, generator=toys.seeded(3))).flatten(1)


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
    weight, bias = torch.autograd.grad(
        loss, [energy.classifier.weight, energy.classifier.bias]
    )
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


def test_a_chain_reaches_the_law():
    """The production chain, from q; its bias in pi is below .01 at e = .3."""
    energy, law = model(), PrototypeLaw(model(), 0.5)
    n = 4000
    sampler = Langevin(80, 0.3, temperature=0.5, variance_corrected=True)
    g = toys.seeded(10)
    u = torch.randn(n, *toys.SHAPE, generator=g).double()
    u, _ = sampler(energy.double(), u, torch.zeros(n).long(), generator=g)
    on = (u.flatten(1) @ law.omega.flatten(1).T * 0.5**0.5 > -law.beta * 0.5).double().mean(0)
    error = (law.on * (1 - law.on) / n).sqrt()
    assert ((on - law.on).abs() < 5 * error + 0.01).all()
    warm = PrototypeLaw(energy)
    assert ((on - warm.on).abs() > 5 * error + 0.01).any(), "the mutant: T ignored"


def test_the_double_well_has_its_constant():
    """beta = -tau^2 / 2: wells at 0 and tau^2, Z = 2 Phi(tau / 2)."""
    law = PrototypeLaw(model(-TAU.square() / 2))
    expected = (2 * torch.special.ndtr(TAU / 2)).log().sum()
    assert (law.log_z - expected).abs() < 1e-6
    assert (law.on - 0.5).abs().max() < 1e-6
