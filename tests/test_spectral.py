"""The exponent, variance and colours of a folder of images, found again."""

import pytest
import torch
import toys

import ebm_from_clf.spectral as spectral
from ebm_from_clf import SpectralNoise

COLOR = torch.tensor([[1.0, 0.7, 0.4], [0.7, 1.0, 0.8], [0.4, 0.8, 1.0]])
GROUPS = 20


def exponents(alpha, size, n, crop=1):
    """The exponents found in groups of n images, each a part of a field `crop` times as large."""
    whole = torch.full((3, crop * size[0], crop * size[1]), 0.5)
    field = SpectralNoise(whole, 0.05, alpha, COLOR)
    images = field.sample(GROUPS * n, generator=toys.seeded(3))[..., : size[0], : size[1]]
    return torch.stack([SpectralNoise.fit(x, floor=1e-4).alpha for x in images.split(n)]).double()


def z_of(found, truth):
    return float((found.mean() - truth) / (found.std() / GROUPS**0.5))


@pytest.mark.parametrize("size", [(64, 64), (33, 80)])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 2.6])
def test_the_exponent_is_found_without_bias(alpha, size):
    assert abs(z_of(exponents(alpha, size, 24), alpha)) < 5


@pytest.mark.slow
def test_a_part_of_a_larger_field_looks_a_little_steeper():
    """It jumps at its edges, as a photograph does."""
    for alpha in (1.0, 2.6):
        for crop in (3, 6):
            found = exponents(alpha, (64, 64), 8, crop=crop).mean()
            assert 1.0 < found / alpha < 1.07


def test_a_frequency_without_k_0_would_be_seen(monkeypatch):
    def wrong(size):
        ky, kx = (torch.fft.fftfreq(s, dtype=torch.float64) for s in size)
        return (ky[:, None].square() + kx[None].square()).sqrt().clamp_min(1e-9)

    field = SpectralNoise(torch.full((3, 33, 40), 0.5), 0.05, 2.6, COLOR)
    images = field.sample(GROUPS * 150, generator=toys.seeded(3)).split(150)
    right = [spectral._slope(spectral._power(x.double())) for x in images]
    monkeypatch.setattr(spectral, "_frequency", wrong)
    mutant = [spectral._slope(spectral._power(x.double())) for x in images]
    assert abs(z_of(torch.tensor(right), 2.6)) < 5 < abs(z_of(torch.tensor(mutant), 2.6))


def test_colour_and_variance_are_found():
    n = 400
    truth = SpectralNoise(
        torch.tensor([0.3, 0.5, 0.6]).view(3, 1, 1).expand(3, 32, 40), 0.1, 1.0, COLOR
    )
    images = truth.sample(GROUPS * n, generator=toys.seeded(4))
    found = [SpectralNoise.fit(x.split(37), floor=1e-4) for x in images.split(n)]
    for name, expected in {
        "scale": torch.full((3, 1, 1), 0.1),
        "color": COLOR,
        "mean": truth.mean,
    }.items():
        values = torch.stack([getattr(fit, name) for fit in found]).double()
        error = values.std(0) / GROUPS**0.5
        assert ((values.mean(0) - expected).abs() <= 5 * error + 1e-6).all(), name
    mutant = torch.stack([fit.color for fit in found]).double()
    assert ((mutant.mean(0) - spectral.natural_color()).abs() > 20 * mutant.std(0)).any()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 3, 32, 32), "at least two images"),
        (torch.rand(4, 3, 32, 16), "32 pixels a side"),
        ([], "at least two images"),
        (torch.empty(0, 3, 64, 64), "at least two images"),
        (torch.rand(3, 32, 32), r"shape \(N, C, H, W\)"),
        ([torch.rand(3, 1, 32, 32), torch.rand(3, 3, 32, 32)], "all of one size"),
        (torch.full((3, 3, 32, 32), 0.4), "of one colour"),
        (torch.rand(3, 3, 32, 32) * 255, r"in \[0, 1\]"),
    ],
)
def test_images_without_a_spectrum_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        SpectralNoise.fit(images)


def test_gray_images_are_fitted_in_one_channel_and_in_three():
    gray = SpectralNoise(torch.full((1, 40, 32), 0.5), 0.2, 2.0).sample(
        40, generator=toys.seeded()
    )
    one, three = SpectralNoise.fit(gray), SpectralNoise.fit(gray.expand(-1, 3, -1, -1))
    assert one.shape == (1, 40, 32)
    assert float(one.alpha) == pytest.approx(float(three.alpha), abs=1e-4)
    x = three.sample(8, generator=toys.seeded(1))
    assert (three.encode(three.decode(x)) - x).abs().max() < 1e-3
