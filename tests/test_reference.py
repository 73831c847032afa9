"""The reference map: inverses, adjoint, determinant, covariance, and the law of its samples."""

import math

import pytest
import stats
import torch
import toys

from ebm_from_clf import FittedGaussian, SpectralNoise, WhiteNoise
from ebm_from_clf.spectral import power_law

MEMBERS = {
    "white": lambda s: WhiteNoise(torch.rand(s, generator=toys.seeded()), 0.3),
    "spectral": lambda s: SpectralNoise(torch.rand(s, generator=toys.seeded()), 0.2, 2.0),
    "steep": lambda s: SpectralNoise(torch.rand(s, generator=toys.seeded()), 0.2, 3.0),
    "pixel": lambda s: FittedGaussian.fit(torch.rand(9, *s, generator=toys.seeded())),
    "stationary": lambda s: FittedGaussian.fit(
        torch.rand(9, *s, generator=toys.seeded()), "spectral"
    ),
}
SHAPES = [(3, 4, 4), (3, 5, 4), (1, 4, 7), (3, 5, 3)]


def matrix(reference):
    dim = reference.mean.numel()
    reference = reference.double()
    basis = torch.eye(dim, dtype=torch.float64).view(dim, *reference.shape)
    return reference.factor(basis).flatten(1).T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("member", MEMBERS)
def test_encode_inverts_decode(member, shape):
    reference = MEMBERS[member](shape)
    u = torch.randn(6, *shape, generator=toys.seeded(1))
    x = reference.decode(u)
    assert (reference.encode(x) - u).abs().max() < 2e-5
    assert (reference.decode(reference.encode(x)) - x).abs().max() < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("member", MEMBERS)
def test_log_abs_det_is_that_of_the_dense_matrix(member, shape):
    reference = MEMBERS[member](shape)
    _, expected = torch.linalg.slogdet(matrix(reference))
    assert reference.log_abs_det == pytest.approx(float(expected), abs=1e-4)


def test_half_plane_determinant_would_be_caught():
    reference = MEMBERS["spectral"]((1, 9, 8))
    a = power_law((9, 8), 2.0).log()
    assert reference.log_abs_det == pytest.approx(float(a.sum() + 72 * math.log(0.2)), abs=1e-4)
    half = a[:, : 8 // 2 + 1].sum() + 72 * math.log(0.2)
    assert abs(float(half) - reference.log_abs_det) > 1


@pytest.mark.parametrize("member", MEMBERS)
def test_log_prob_is_that_of_the_dense_gaussian(member):
    reference = MEMBERS[member]((3, 5, 4))
    x = torch.rand(4, 3, 5, 4, generator=toys.seeded(2))
    found = reference.log_prob(x)
    a = matrix(reference)
    law = torch.distributions.MultivariateNormal(
        reference.mean.double().flatten(), scale_tril=torch.linalg.cholesky(a @ a.T)
    )
    assert found == pytest.approx(law.log_prob(x.double().flatten(1)), rel=1e-4)


def test_autograd_applies_the_adjoint():
    """The gradient through decode is A^T g; with a Cholesky colour factor A is not symmetric."""
    reference, a = toys.reference(), toys.dense(toys.reference())
    g = torch.randn(toys.SHAPE, generator=toys.seeded(3))
    u = torch.zeros(toys.SHAPE, requires_grad=True)
    (reference.decode(u) * g).sum().backward()
    assert (u.grad.flatten().double() - a.T @ g.flatten().double()).abs().max() < 1e-6
    assert (u.grad.flatten().double() - a @ g.flatten().double()).abs().max() > 0.05


def test_samples_have_the_covariance():
    reference, a = toys.reference(), toys.dense(toys.reference())
    n = 40_000
    x = (reference.sample(n, generator=toys.seeded(4)) - reference.mean).flatten(1).double()
    covariance = a @ a.T
    spread = covariance.diagonal()
    error = ((torch.outer(spread, spread) + covariance.square()) / n).sqrt()
    z = (x.T @ x / n - covariance) / error
    assert z.abs().max() < 5
    mutant = (a.T @ a - covariance) / error
    assert mutant.abs().max() > 20


def test_spectral_noise_has_its_parameters():
    """A pixel has the variance and colour correlation given; power falls as 1/f^alpha."""
    reference = SpectralNoise(torch.full((3, 24, 17), 0.5), 0.2, 2.0)
    a = power_law((24, 17), 2.0)
    assert float(a.square().mean()) == pytest.approx(1.0, abs=1e-12)
    n = 4000
    x = (reference.sample(n, generator=toys.seeded(5)) - 0.5).double()
    power = torch.fft.fft2(x, norm="ortho").abs().square()
    # Each |F|^2 / power is exponential with unit mean at complex frequencies, chi^2_1 at real.
    ratio = power / (0.04 * a.square())
    z = (ratio.mean(0) - 1) / (ratio.std(0) / math.sqrt(n))
    assert z.abs().max() < 5.5  # 1224 numbers
    wrong = power / (0.04 * power_law((24, 17), 1.0).square())
    assert ((wrong.mean(0) - 1) / (wrong.std(0) / math.sqrt(n))).abs().max() > 50
    correlation = torch.einsum("nchw,ndhw->cdn", x, x) / (24 * 17 * 0.04)
    z = (correlation.mean(2) - reference.color.double()) / (correlation.std(2) / math.sqrt(n))
    assert z.abs().max() < 5


def test_fit_recovers_a_spectral_field():
    truth = SpectralNoise(torch.rand(3, 9, 8, generator=toys.seeded(6)), 0.2, 2.0)
    n = 20_000
    fitted = FittedGaussian.fit(truth.sample(n, generator=toys.seeded(7)), "spectral", floor=1e-4)
    expected = power_law((9, 8), 2.0).square()
    # The power of 3 channels at a frequency has relative error sqrt(1 / (3 n)), twice at real k.
    z = (fitted.amplitude.double().square() / expected - 1) * math.sqrt(3 * n / 2)
    assert z.abs().max() < 5
    color = 0.04 * truth.color
    assert (fitted.color - color).abs().max() < 5 * 0.04 * math.sqrt(2 / n)


def test_fit_matches_mean_and_variance_of_pixels():
    x = torch.rand(500, 1, 4, 4, generator=toys.seeded(8))
    whole = FittedGaussian.fit(x)
    parts = FittedGaussian.fit(x.split(99))
    assert (whole.mean - x.mean(0)).abs().max() < 1e-6
    assert (whole.scale - x.std(0, correction=0)).abs().max() < 1e-6
    assert (whole.scale - parts.scale).abs().max() < 1e-6


def test_constant_pixels_get_the_floor():
    fitted = FittedGaussian.fit(torch.full((3, 1, 4, 4), 0.5), floor=0.05)
    assert fitted.scale.min() == pytest.approx(0.05)
    assert math.isfinite(fitted.log_abs_det)


def test_white_noise_has_its_law():
    reference = WhiteNoise(torch.full((1, 4, 4), 0.3), 0.2)
    x = reference.sample(50_000, generator=toys.seeded(9))
    stats.assert_moments(x, torch.full((16,), 0.3), torch.full((16,), 0.04))
    with pytest.raises(AssertionError):
        stats.assert_moments(x, torch.full((16,), 0.3), torch.full((16,), 0.2))


@pytest.mark.parametrize(
    "build",
    [
        lambda: WhiteNoise(torch.zeros(1, 2, 2), 0.0),
        lambda: WhiteNoise(torch.zeros(1, 2, 2), -1.0),
        lambda: WhiteNoise(torch.zeros(2, 2), 1.0),
        lambda: WhiteNoise(torch.full((1, 2, 2), float("nan")), 1.0),
        lambda: SpectralNoise(torch.zeros(3, 2, 2), color=-torch.eye(3)),
        lambda: SpectralNoise(torch.zeros(3, 2, 2), color=torch.eye(2)),
        lambda: FittedGaussian(torch.zeros(1, 2, 2), 1.0, amplitude=torch.zeros(2, 2)),
        lambda: FittedGaussian.fit(torch.zeros(1, 1, 2, 2)),
        lambda: FittedGaussian.fit(torch.zeros(2, 1, 2, 2), "diagonal"),
    ],
)
def test_bad_arguments_are_refused(build):
    with pytest.raises(ValueError, match=r"WhiteNoise|SpectralNoise|FittedGaussian"):
        build()
