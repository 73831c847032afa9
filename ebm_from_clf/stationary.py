r"""A reference for textures: a stationary field with the spectrum of the data, at any size.

.. math:: A = L \otimes \mathcal{F}^{-1} a \mathcal{F}, \qquad
    a(k)^2 = \mathcal{F} \Big[ \sum_{m, n} \rho(d_1 + m H, d_2 + n W) \Big](k), \qquad
    \rho(d) \propto \sum_i E[(w r)(i) \, (w r)(i + d)]

with the covariance :math:`L L^\top` of the channels and the correlation :math:`\rho` of the
residual r at lag d, under a window w that hides the border of images. Its transform is a power
spectrum, positive at every size. A field of H times W pixels is periodic; a larger one has the
same correlation at every lag.

The power is cut at a ceiling. A few waves carry most of the variance of a texture with a pattern;
a chain whose steps follow that variance would throw its pattern about at every step. What is cut
off the score learns: with a ceiling far below all of it, q is white noise.
"""

__all__ = ["StationaryGaussian"]

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .reference import Reference
from .space import check_pixels


class StationaryGaussian(Reference):
    r"""Creates a periodic Gaussian field with a given correlation; see :meth:`fit`.

    Arguments:
        mean: The mean image :math:`\mu`, with shape (C, H, W).
        correlation: The correlation :math:`\rho` at lags in the order of
            :func:`torch.fft.fftfreq`, symmetric under d to -d, of any even shape.
        color: The covariance :math:`L L^\top` of the channels, with shape (C, C).
        floor: The least power of a frequency, as a fraction of the mean power of the data.
        ceiling: The largest one.

    Raises:
        ValueError: As for :class:`Reference`.
    """

    correlation: Tensor
    color: Tensor
    floor: Tensor
    ceiling: Tensor

    def __init__(
        self,
        mean: Tensor,
        correlation: Tensor,
        color: Tensor,
        floor: Tensor | float = 1e-3,
        ceiling: Tensor | float = math.inf,
    ) -> None:
        power = _folded(correlation.double(), *mean.shape[1:])
        power = torch.fft.fft2(power).real
        power = (power / power.mean()).clamp(float(floor), float(ceiling))
        super().__init__(mean, 1.0, power.sqrt(), color)
        self.register_buffer("correlation", correlation.detach().clone().float())
        self.register_buffer("color", color.detach().clone().float())
        self.register_buffer("floor", torch.as_tensor(floor).detach().clone().float())
        self.register_buffer("ceiling", torch.as_tensor(ceiling).detach().clone().float())

    def resized(self, size: tuple[int, int]) -> "StationaryGaussian":
        """Returns the same field on images of another size.

        Arguments:
            size: The height and width, in pixels.
        """
        mean = self.mean.mean((1, 2), keepdim=True).expand(-1, *size)
        return type(self)(mean, self.correlation, self.color, self.floor, self.ceiling)

    @classmethod
    def fit(
        cls, images: Tensor | Iterable[Tensor], floor: float = 0.005, ceiling: float = 1.0
    ) -> "StationaryGaussian":
        """Fits q to the mean colour, the covariance of the channels and the correlation.

        Arguments:
            images: Images in [0, 1], with shape (N, C, H, W), or an iterable of such batches.
            floor: The least standard deviation of a frequency, in pixels.
            ceiling: The largest one, as a fraction of that of a pixel.

        Raises:
            ValueError: If there is no image, or they are not in [0, 1].
        """
        n, total, square = 0, torch.zeros(()), torch.zeros(())
        for x in [images] if isinstance(images, Tensor) else images:
            check_pixels("StationaryGaussian", x)
            taper, both = _taper(*x.shape[2:]).to(x.device), [2 * side for side in x.shape[2:]]
            wave = torch.fft.fft2(taper * x.double(), both)
            n, total = n + len(x), total + wave.sum(0)
            square = square + torch.einsum("nchw,ndhw->cdhw", wave, wave.conj())
        if not n:
            raise ValueError("StationaryGaussian: at least one image is needed.")
        plain, total = torch.fft.fft2(taper, both), total / n
        mean = (total[:, 0, 0] / plain[0, 0]).real
        away = torch.einsum("c,hw,dhw->cdhw", mean, plain, total.conj())
        cross = square / n - away - away.transpose(0, 1).conj()
        cross = cross + torch.einsum("c,d,hw->cdhw", mean, mean, plain.abs().square())
        covariance = torch.fft.ifft2(cross).real / taper.square().sum()
        color = covariance[:, :, 0, 0] + floor**2 * torch.eye(len(mean)).to(mean)
        whiten = torch.linalg.inv(torch.linalg.cholesky(color))
        found = torch.einsum("ec,cdhw,ed->hw", whiten, covariance, whiten) / len(mean)
        found = (found + found.flip(0, 1).roll((1, 1), (0, 1))) / 2
        image = mean[:, None, None].expand(-1, *x.shape[2:])
        least = floor**2 / float(color.diagonal().mean())
        return cls(image, found / found[0, 0], color, least, ceiling**2)


def _taper(height: int, width: int) -> Tensor:
    """Returns a Hann window, with shape (H, W)."""
    sides = [torch.hann_window(n + 1, dtype=torch.float64)[1:] for n in (height, width)]
    return sides[0][:, None] * sides[1]


def _folded(correlation: Tensor, height: int, width: int) -> Tensor:
    """Returns a correlation on a torus: lags that are the same there are added up."""
    rows, columns = (
        (torch.fft.fftfreq(n, 1 / n).round().long() % side).to(correlation.device)
        for n, side in zip(correlation.shape, (height, width), strict=True)
    )
    rows_folded = correlation.new_zeros(height, correlation.shape[1])
    rows_folded.index_add_(0, rows, correlation)
    return correlation.new_zeros(height, width).index_add_(1, columns, rows_folded)
