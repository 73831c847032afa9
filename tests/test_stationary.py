"""A stationary field: its spectrum is that of the data, and the same at every size."""

import pytest
import torch

from ebm_from_clf.reference_settings import ReferenceSettings
from ebm_from_clf.stationary import StationaryGaussian

COLOR = torch.tensor([[0.04, 0.03, 0.02], [0.03, 0.05, 0.03], [0.02, 0.03, 0.04]])


def correlation(side=32, width=2.0):
    lag = torch.fft.fftfreq(side, 1 / side)
    # Not the same along the two diagonals, so that a mirrored axis would be seen.
    x, y = lag[:, None], lag[None]
    return torch.exp(-(x**2 + y**2 + x * y) / (2 * width**2))


def field(height, width, **options):
    mean = torch.full((3, 1, 1), 0.5).expand(3, height, width)
    return StationaryGaussian(mean, correlation(), COLOR, **{"floor": 1e-9} | options)


def covariance(q):
    """The covariance of channels 0 and 1 of a pixel with all others."""
    point = torch.zeros(3, *q.shape[1:])
    point[0, 0, 0] = 1
    return q.factor(q.adjoint(point))[1]


@pytest.mark.parametrize("size", [(32, 32), (48, 40), (96, 64)])
def test_covariance_is_that_asked_for_at_every_size(size):
    found = covariance(field(32, 32).resized(size))
    for lag in ((0, 0), (1, 0), (0, 3), (2, 2), (2, -2), (-4, 1)):
        expected = COLOR[0, 1] * correlation()[lag]
        assert abs(float(found[lag] - expected)) < 1e-5
    # Mutant: a mirrored axis.
    assert abs(float(found[2, 2] - found[2, -2])) > 1e-3


def test_fit_finds_the_covariance_of_a_field():
    g = torch.Generator().manual_seed(0)
    q = field(64, 64)
    x = 0.2 * q.sample(40, generator=g) + 0.4
    found = StationaryGaussian.fit([x[:30], x[30:]], floor=1e-3, ceiling=1e3)
    assert (found.mean[:, 0, 0] - 0.5).abs().max() < 0.01
    # Some 3500 independent patches, so that a variance has a standard error of 2.4 %. The
    # window, 64 pixels wide, takes 2 % off at a lag of 3.
    for lag in ((0, 0), (1, 0), (0, 3), (2, 2), (2, -2)):
        at = covariance(found)[lag] / 0.04
        assert abs(float(at - COLOR[0, 1] * correlation()[lag])) < 0.14 * COLOR[0, 1], lag
    assert torch.allclose(found.color, 0.04 * COLOR, rtol=0.12, atol=0)


def test_the_border_of_an_image_is_no_edge():
    """A ramp jumps at the border of a periodic image; under the window it does not."""
    x = torch.linspace(0.2, 0.8, 64).expand(1, 1, 64, 64)
    x = x + 0.01 * torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    q = StationaryGaussian.fit(x, floor=1e-4, ceiling=1e3)
    power = torch.fft.fft2(covariance_of_one(q)).real
    plain = torch.fft.fft2(x - x.mean()).abs().square().mean(0)[0] / 64**2
    assert power[0, 16:32].mean() < 0.3 * plain[0, 16:32].mean()


def covariance_of_one(q):
    point = torch.zeros(1, *q.shape[1:])
    point[0, 0, 0] = 1
    return q.factor(q.adjoint(point))[0]


def test_power_is_cut_at_floor_and_ceiling():
    q = field(32, 32, floor=0.01, ceiling=2.0)
    whole = torch.fft.fft2(correlation().double()).real
    power = torch.fft.fft2(covariance(q).double()).real / COLOR[0, 1]
    assert torch.allclose(power, whole.clamp(0.01, 2.0), atol=1e-4, rtol=1e-4)
    assert (whole > 2).any() and (whole < 0.01).any()
    again = StationaryGaussian(**q.arguments)
    assert torch.equal(again.sample(1, generator=torch.Generator().manual_seed(0)),
                       q.sample(1, generator=torch.Generator().manual_seed(0)))  # fmt: skip


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        StationaryGaussian.fit([])
    with pytest.raises(ValueError, match="ceiling"):
        ReferenceSettings("stationary", ceiling=0)
