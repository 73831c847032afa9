r"""A reference with the moments of a data set.

.. math:: A = \mathrm{diag}(s) \; (L \otimes \mathcal{F}^{-1} a \mathcal{F})

with the mean :math:`\mu`, and the standard deviation s of every pixel; or the covariance
:math:`L L^\top` of the channels and the power :math:`a(k)^2` at every frequency k, as for a
stationary residual; or s, and those of the residual divided by s.

A step of a chain is as long in every direction of u. Over independent pixels it is short along
what images share, strokes and shades, beside how far they vary there, and long along what none of
them has: long chains roughen. Over all of the spectrum it throws strokes about. A power p between
the two, :math:`a^p` and :math:`(L L^\top)^p` at the same mean variance, is a compromise.
"""

__all__ = ["Covariance", "FittedGaussian"]

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from .reference import Reference
from .space import check_pixels

Covariance = Literal["pixel", "spectral", "pixel_spectral"]


class FittedGaussian(Reference):
    r"""Creates a Gaussian with the moments of a data set; see :meth:`fit`.

    Arguments:
        mean: The mean image :math:`\mu`, with shape (C, H, W).
        scale: The scale s, a number or a tensor that broadcasts to (C, H, W).
        amplitude: The amplitude a(k), with shape (H, W), or `None` for 1.
        color: The covariance of the channels, with shape (C, C), or `None`.

    Raises:
        ValueError: As for :class:`Reference`.
    """

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor | float,
        amplitude: Tensor | None = None,
        color: Tensor | None = None,
    ) -> None:
        super().__init__(mean, scale, amplitude, color)
        self.register_buffer("amplitude", None if amplitude is None else amplitude.float())
        self.register_buffer("color", None if color is None else color.float())

    amplitude: Tensor | None
    color: Tensor | None

    @classmethod
    def fit(
        cls,
        images: Tensor | Iterable[Tensor],
        covariance: Covariance = "pixel",
        floor: float = 0.02,
        power: float = 1.0,
    ) -> "FittedGaussian":
        r"""Fits q by matching moments.

        `pixel` matches the mean and the variance of every pixel. `spectral` matches the mean,
        the covariance of the channels and the power at every frequency of the residual.
        `pixel_spectral` matches the mean and the variance of every pixel, and then those of the
        residual in standard deviations of its pixels.

        Arguments:
            images: Images in [0, 1], with shape (N, C, H, W), or an iterable of such batches,
                which `pixel_spectral` reads twice.
            covariance: Which covariance to match.
            floor: The least standard deviation, in pixels, of a pixel or of a frequency: a
                pixel that is constant in the data would make A singular. For `pixel_spectral`
                that of a frequency is in standard deviations of a pixel.
            power: The power p of the covariances of channels and frequencies, between 0, where
                they are left out, and 1.

        Raises:
            ValueError: If there are fewer than two images, they are not in [0, 1], can be read
                only once, or `covariance` or `power` is unknown.
        """
        if covariance not in get_args(Covariance):
            raise ValueError(
                f"FittedGaussian: `covariance` is one of {get_args(Covariance)}, got "
                f"{covariance!r}."
            )
        if not 0 <= power <= 1:
            raise ValueError(f"FittedGaussian: `power` must be between 0 and 1, got {power}.")
        if covariance == "pixel_spectral" and isinstance(images, Iterator):
            raise ValueError(
                "FittedGaussian: 'pixel_spectral' reads images twice. Give a tensor or a list."
            )
        scale: Tensor | float = 1.0
        if covariance != "spectral":
            mean, square = _moments(images, None)
            scale = (square - mean.square()).clamp_min(floor**2).sqrt()
            if covariance == "pixel":
                return cls(mean, scale)
        mean, cross = _moments(images, scale)
        wave = torch.fft.fft2(mean, norm="ortho")
        cross = cross - torch.einsum("chw,dhw->cdhw", wave, wave.conj())
        return cls(scale * mean, scale, *_tempered(*_stationary(cross, floor), power))


def _moments(
    images: Tensor | Iterable[Tensor], scale: Tensor | float | None
) -> tuple[Tensor, Tensor]:
    """Returns means over images: themselves and their squares, or over a scale and the spectrum.

    The cross-spectrum has the shape (C, C, H, W).
    """
    n = 0
    total: Tensor | float = 0.0
    square: Tensor | float = 0.0
    for x in [images] if isinstance(images, Tensor) else images:
        check_pixels("FittedGaussian", x)
        x = x.double() / (1.0 if scale is None else scale)
        n += len(x)
        total = total + x.sum(0)
        if scale is None:
            square = square + x.square().sum(0)
        else:
            wave = torch.fft.fft2(x, norm="ortho")
            square = square + torch.einsum("nchw,ndhw->cdhw", wave, wave.conj())
    if n < 2 or not isinstance(total, Tensor) or not isinstance(square, Tensor):
        raise ValueError(f"FittedGaussian: at least two images are needed, got {n}.")
    return total / n, square / n


def _stationary(cross: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Splits a cross-spectrum, with shape (C, C, H, W), into an amplitude and a covariance."""
    # Parseval: the mean of the cross-spectrum over frequencies is the covariance of a pixel.
    color = cross.real.mean((2, 3))
    color = color + floor**2 * torch.eye(len(color)).to(color)
    whiten = torch.linalg.inv(torch.linalg.cholesky(color)).to(cross.dtype)
    power = torch.einsum("ec,cdhw,ed->hw", whiten, cross, whiten).real / len(color)
    power = power.clamp_min(floor**2 / color.diagonal().mean())
    return (power / power.mean()).sqrt(), color


def _tempered(amplitude: Tensor, color: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Returns a power of the covariances of frequencies and of channels, of the same mean."""
    if power == 1:
        return amplitude, color
    amplitude = amplitude**power
    value, vector = torch.linalg.eigh(color)
    value = value**power
    value = value * (color.trace() / value.sum())
    return amplitude / amplitude.square().mean().sqrt(), (vector * value) @ vector.T
