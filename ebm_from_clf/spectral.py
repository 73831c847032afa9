r"""The reference of natural images: a stationary field with a power spectrum :math:`1/f^\alpha`.

.. math:: a(k)^2 \propto (k_0^2 + |k|^2)^{-\alpha/2}, \qquad k_0 = 1 / \max(H, W)

with k in cycles per pixel, normalised to a mean power of 1, so that every pixel has the covariance
:math:`s^2 L L^\top`. It has four physical parameters: the mean colour, the standard deviation s
of a pixel, the exponent and the correlation of the channels. Of all densities with this spectrum
it has maximum entropy. The field is periodic at the border.
"""

__all__ = ["NATURAL_EXPONENT", "SpectralNoise", "natural_color", "power_law"]

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .reference import Reference
from .space import check_pixels

# Correlation of the R, G and B values of a pixel in natural photographs, rounded. It is that of
# the colour directions that feature-visualisation work decorrelates ImageNet pixels with
# (Olah, Mordvintsev and Schubert, Feature Visualization, Distill 2017).
NATURAL_COLOR = ((1.0, 0.91, 0.79), (0.91, 1.0, 0.91), (0.79, 0.91, 1.0))

# Mean exponent of the power spectrum (van der Schaaf and van Hateren, 1996).
NATURAL_EXPONENT = 1.88

# The slope is that between these frequencies, in cycles per pixel: below, the edge of the image
# is seen, above, how it was made smaller. `LOWEST` is in cycles per image.
LOWEST, HIGHEST = 3.0, 0.35
BINS = 12
SMALLEST = 32


def natural_color() -> Tensor:
    """Returns the correlation of colour channels in natural photographs, with shape (3, 3)."""
    return torch.tensor(NATURAL_COLOR)


class SpectralNoise(Reference):
    r"""Creates a stationary field with a power spectrum :math:`1/f^\alpha`.

    Photographs have :math:`\alpha` near 2; the default is the mean of 276 of them.

    References:
        | Relations between the statistics of natural images and the response properties of
        | cortical cells (Field, 1987), J. Opt. Soc. Am. A 4
        | Modelling the power spectra of natural images (van der Schaaf and van Hateren, 1996),
        | Vision Research 36

    Arguments:
        mean: The mean image :math:`\mu`, pixels in [0, 1], with shape (C, H, W).
        scale: The standard deviation s of a pixel.
        alpha: The exponent of the power spectrum (twice that of the amplitude).
        color: The correlation :math:`L L^\top` of the channels, with shape (C, C). `None` for
            that of natural photographs if C is 3, for independent channels otherwise.

    Raises:
        ValueError: If `scale` is not positive or `color` not positive definite.
    """

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor | float = 0.25,
        alpha: Tensor | float = NATURAL_EXPONENT,
        color: Tensor | None = None,
    ) -> None:
        if color is None and mean.shape[0] == 3:
            color = natural_color()
        exponent = torch.as_tensor(float(alpha), dtype=torch.float32)
        super().__init__(mean, scale, power_law(mean.shape[-2:], float(exponent)), color)
        self.register_buffer("alpha", exponent)
        self.register_buffer("color", None if color is None else color.detach().clone().float())

    alpha: Tensor
    color: Tensor | None

    @classmethod
    def fit(cls, images: Tensor | Iterable[Tensor], floor: float = 0.02) -> "SpectralNoise":
        r"""Fits the four parameters to images without labels.

        Mean colour, variance and correlation by their moments; the exponent by least squares of
        the log power on the log frequency, with the same weight for each part of a log scale.
        It is unbiased for a periodic field, and 2 to 7 % too large for a part of one that is 3
        to 6 times as large, whose edges do not meet.

        Arguments:
            images: Images in [0, 1], with shape (N, C, H, W), or an iterable of such batches.
            floor: The least standard deviation, in pixels, of a colour direction: gray images
                in three channels would make A singular.

        Raises:
            ValueError: If there are fewer than two images, or they are not in [0, 1], of several
                shapes, all of one colour, or smaller than 32 pixels.
        """
        n, total, square, power = 0, torch.zeros(1, 0, 0), torch.zeros(()), torch.zeros(())
        for x in [images] if isinstance(images, Tensor) else images:
            check_pixels("SpectralNoise", x)
            if x.ndim != 4 or (n and x.shape[1:] != total.shape):
                raise ValueError(
                    "SpectralNoise: images must have shape (N, C, H, W), all of one size, got "
                    f"shape {tuple(x.shape)}."
                )
            if not len(x):
                continue  # some builds of torch have no Fourier transform of nothing
            x = x.double()
            n += len(x)
            total = x.sum(0) + (total if total.numel() else 0)
            square = square + torch.einsum("nchw,ndhw->cd", x, x) / x.shape[2:].numel()
            power = power + _power(x)
        if n < 2 or min(total.shape[1:]) < SMALLEST:
            raise ValueError(
                f"SpectralNoise: at least two images of {SMALLEST} pixels a side are needed, got "
                f"{n} of shape {tuple(total.shape)}."
            )
        mean = total.mean((1, 2), keepdim=True) / n
        covariance = square / n - mean.flatten() * mean.view(-1, 1)
        covariance = covariance + floor**2 * torch.eye(len(mean)).to(covariance)
        if not power.sum() > 0:
            raise ValueError("SpectralNoise: every image is of one colour; there is no spectrum.")
        sd = covariance.diagonal().sqrt()
        return cls(
            mean.expand(total.shape),
            sd.view(-1, 1, 1) if len(sd) > 1 else float(sd),
            _slope(power.cpu()),
            covariance / torch.outer(sd, sd),
        )


def power_law(size: tuple[int, int] | torch.Size, alpha: float) -> Tensor:
    r"""Returns the amplitude a(k) of a :math:`1/f^\alpha` field of unit variance.

    Arguments:
        size: The height and width (H, W), in pixels.
        alpha: The exponent of the power spectrum.

    Returns:
        The amplitude in the order of :func:`torch.fft.fft2`, float64, with shape (H, W).
    """
    power = _frequency(size).pow(-alpha)
    return (power / power.mean()).sqrt()


def _frequency(size: tuple[int, int] | torch.Size) -> Tensor:
    """Returns sqrt(k_0^2 + |k|^2) in cycles per pixel, float64, with shape (H, W)."""
    height, width = size
    ky = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    kx = torch.fft.fftfreq(width, dtype=torch.float64)[None, :]
    return (1 / max(height, width) ** 2 + ky.square() + kx.square()).sqrt()


def _power(x: Tensor) -> Tensor:
    """Returns the summed power of images around their mean colours, with shape (H, W)."""
    level = x.mean((2, 3), keepdim=True)
    return torch.fft.fft2(x - level).abs().square().sum((0, 1))


def _slope(power: Tensor) -> float:
    """Returns the slope of a log power spectrum, with shape (H, W), over the log frequency."""
    log_k = _frequency(power.shape).log()
    low, high = math.log(LOWEST / min(power.shape)), math.log(HIGHEST)
    place = ((log_k - low) / (high - low) * BINS).floor()
    log_power = power.clamp_min(1e-12 * power.max()).log()
    bins = [place == b for b in range(BINS) if (place == b).any()]
    points = torch.stack([torch.stack([v[b].mean() for b in bins]) for v in (log_k, log_power)])
    k, p = points - points.mean(1, keepdim=True)
    return -float((k * p).sum() / k.square().sum())
