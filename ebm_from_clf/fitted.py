r"""A reference with the moments of a data set.

With the mean :math:`\mu` it is either

.. math:: A = \mathrm{diag}(s) \qquad \text{or} \qquad A = L \otimes \mathcal{F}^{-1} a \mathcal{F}

with the standard deviation s of every pixel, or, for a stationary residual, the covariance
:math:`L L^\top` of the channels and the power :math:`a(k)^2` at every frequency k.
"""

__all__ = ["FittedGaussian"]

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .reference import Reference
from .space import check_pixels


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
        covariance: Literal["pixel", "spectral"] = "pixel",
        floor: float = 0.02,
    ) -> "FittedGaussian":
        r"""Fits q by matching moments.

        `pixel` matches the mean and the variance of every pixel. `spectral` matches the mean,
        the covariance of the channels and the power at every frequency of the residual.

        Arguments:
            images: Images in [0, 1], with shape (N, C, H, W), or an iterable of such batches.
            covariance: Which covariance to match.
            floor: The least standard deviation, in pixels, of a pixel or of a frequency: a
                pixel that is constant in the data would make A singular.

        Raises:
            ValueError: If there are fewer than two images, they are not in [0, 1], or
                `covariance` is unknown.
        """
        if covariance not in ("pixel", "spectral"):
            raise ValueError(
                f"FittedGaussian: `covariance` is 'pixel' or 'spectral', got {covariance!r}."
            )
        n = 0
        total: Tensor | float = 0.0
        square: Tensor | float = 0.0
        for x in [images] if isinstance(images, Tensor) else images:
            check_pixels("FittedGaussian", x)
            x = x.double()
            n += len(x)
            total = total + x.sum(0)
            if covariance == "pixel":
                square = square + x.square().sum(0)
            else:
                wave = torch.fft.fft2(x, norm="ortho")
                square = square + torch.einsum("nchw,ndhw->cdhw", wave, wave.conj())
        if n < 2 or not isinstance(total, Tensor) or not isinstance(square, Tensor):
            raise ValueError(f"FittedGaussian: at least two images are needed, got {n}.")
        mean = total / n
        if covariance == "pixel":
            return cls(mean, (square / n - mean.square()).clamp_min(floor**2).sqrt())
        wave = torch.fft.fft2(mean, norm="ortho")
        cross = square / n - torch.einsum("chw,dhw->cdhw", wave, wave.conj())
        return cls(mean, 1.0, *_stationary(cross, floor))


def _stationary(cross: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Splits a cross-spectrum, with shape (C, C, H, W), into an amplitude and a covariance."""
    # Parseval: the mean of the cross-spectrum over frequencies is the covariance of a pixel.
    color = cross.real.mean((2, 3))
    color = color + floor**2 * torch.eye(len(color)).to(color)
    whiten = torch.linalg.inv(torch.linalg.cholesky(color)).to(cross.dtype)
    power = torch.einsum("ec,cdhw,ed->hw", whiten, cross, whiten).real / len(color)
    power = power.clamp_min(floor**2 / color.diagonal().mean())
    return (power / power.mean()).sqrt(), color
