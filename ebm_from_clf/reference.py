r"""The reference class q, the most featureless distribution of images.

Every reference is a Gaussian :math:`q = \mathcal{N}(\mu, A A^\top)` and is written as a map

.. math:: x = \mu + A u, \qquad u \sim \mathcal{N}(0, I)

from whitened coordinates :math:`u` to pixels :math:`x \in [0, 1]`. Its factor is

.. math:: A = \mathrm{diag}(s) \; (L \otimes \mathcal{F}^{-1} a \mathcal{F})

with a scale :math:`s` per pixel, a stationary filter with amplitude :math:`a(k) > 0` at the
spatial frequency :math:`k`, and a Cholesky factor :math:`L` that mixes the channels. White
noise, a 1/f field and a Gaussian fitted to a data set are the cases where some of the three are
trivial. In :math:`u` the model has unit reference variance, whatever q is.
"""

__all__ = ["Reference", "WhiteNoise"]

import inspect
import math

import torch
from torch import Tensor, nn

from .noise import Randomness, normal


class Reference(nn.Module):
    r"""Creates a Gaussian :math:`q = \mathcal{N}(\mu, A A^\top)` over images.

    Use one of :class:`WhiteNoise`, `SpectralNoise` and `FittedGaussian`.

    Arguments:
        mean: The mean image :math:`\mu`, pixels in [0, 1], with shape (C, H, W).
        scale: The scale :math:`s`, in pixels per unit of u: a number, or a tensor that
            broadcasts to (C, H, W).
        amplitude: The amplitude :math:`a(k)` in the order of :func:`torch.fft.fft2`, symmetric
            under k to -k, with shape (H, W). `None` for 1 everywhere.
        color: The covariance :math:`L L^\top` of the channels, with shape (C, C). `None` for
            independent channels.

    Raises:
        ValueError: If a shape is wrong, a scale or amplitude is not positive and finite, or
            `color` is not positive definite.
    """

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor | float,
        amplitude: Tensor | None = None,
        color: Tensor | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if mean.ndim != 3 or not mean.isfinite().all():
            raise ValueError(
                f"{name}: `mean` must be a finite image of shape (C, H, W), "
                f"got shape {tuple(mean.shape)}."
            )
        channels, height, width = mean.shape
        s = torch.as_tensor(scale).float().double().expand(mean.shape)
        log_abs_det = s.log().sum()
        # Rounded first, so that what is computed here is computed alike from saved tensors.
        amplitude = None if amplitude is None else amplitude.detach().float().to(mean.device)
        color = None if color is None else color.detach().float()
        if amplitude is not None:
            _check_shape(name, "amplitude", amplitude, (height, width))
            log_abs_det = log_abs_det + channels * amplitude.double().log().sum()
        if color is not None:
            _check_shape(name, "color", color, (channels, channels))
            lower, info = torch.linalg.cholesky_ex(color.double())
            if info.item():
                raise ValueError(f"{name}: `color` must be positive definite, it is not.")
            log_abs_det = log_abs_det + height * width * lower.diagonal().log().sum()
        if not log_abs_det.isfinite() or s.min() <= 0:
            raise ValueError(f"{name}: `scale` and `amplitude` must be positive and finite.")
        self.log_abs_det = float(log_abs_det)
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("scale", torch.as_tensor(scale).detach().clone().float())
        # Real images: the half-plane that rfft2 returns holds all of the amplitude.
        half = None if amplitude is None else amplitude[:, : width // 2 + 1].clone()
        self.register_buffer("_half", half)
        self.register_buffer("_lower", None if color is None else lower.to(mean.device).float())
        self.register_buffer(
            "_inverse", None if color is None else torch.linalg.inv(lower).to(mean.device).float()
        )

    mean: Tensor
    scale: Tensor
    _half: Tensor | None
    _lower: Tensor | None
    _inverse: Tensor | None

    @property
    def shape(self) -> torch.Size:
        """The shape (C, H, W) of an image."""
        return self.mean.shape

    @property
    def arguments(self) -> dict[str, Tensor]:
        """The tensors that create this reference again, by the names of its arguments."""
        named = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def is_diagonal(self) -> bool:
        """Whether A acts on every pixel alone, so that a box in pixels is a box in u."""
        return self._half is None and self._lower is None

    def factor(self, u: Tensor) -> Tensor:
        r"""Returns :math:`A u`, with shape (\*, C, H, W)."""
        if self._half is not None:
            u = self._filter(u, self._half)
        if self._lower is not None:
            u = _mixed(self._lower, u)
        return self.scale * u

    def adjoint(self, v: Tensor) -> Tensor:
        r"""Returns :math:`A^\top v`, with shape (\*, C, H, W)."""
        v = self.scale * v
        if self._lower is not None:
            v = _mixed(self._lower.T, v)
        # The filter is symmetric, as its amplitude is.
        return v if self._half is None else self._filter(v, self._half)

    def solve(self, v: Tensor) -> Tensor:
        r"""Returns :math:`A^{-1} v`, with shape (\*, C, H, W)."""
        v = v / self.scale
        if self._inverse is not None:
            v = _mixed(self._inverse, v)
        if self._half is not None:
            v = self._filter(v, 1 / self._half)
        return v

    def decode(self, u: Tensor) -> Tensor:
        r"""Returns the pixels :math:`x = \mu + A u`, with shape (\*, C, H, W)."""
        return self.mean + self.factor(u)

    def encode(self, x: Tensor) -> Tensor:
        r"""Returns the whitened coordinates :math:`u = A^{-1} (x - \mu)`."""
        return self.solve(x - self.mean)

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\log q(x)` in nats per image, float64, with shape (B)."""
        u = self.encode(x).double().flatten(1)
        dim = u.shape[1]
        return -u.square().sum(1) / 2 - dim / 2 * math.log(2 * math.pi) - self.log_abs_det

    def sample(self, n: int, *, generator: Randomness) -> Tensor:
        """Draws n images from q, with shape (n, C, H, W)."""
        return self.decode(normal(self.mean.new_empty(n, *self.shape), generator))

    @staticmethod
    def _filter(u: Tensor, half: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(u) * half, s=u.shape[-2:])


def _mixed(matrix: Tensor, u: Tensor) -> Tensor:
    """Returns the channels mixed by a matrix, in full precision under any autocast."""
    return (matrix[:, :, None, None] * u.unsqueeze(-4)).sum(-3)


def _check_shape(who: str, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{who}: `{name}` must have shape {shape}, got {tuple(value.shape)}.")


class WhiteNoise(Reference):
    r"""Creates the white-noise reference :math:`q = \mathcal{N}(\mu, s^2 I)`.

    The paper's reference: of all densities with this variance, the one of maximum entropy.

    References:
        | A Theory of Generative ConvNet (Xie et al., 2016)
        | https://arxiv.org/abs/1602.03264

    Arguments:
        mean: The mean image :math:`\mu`, pixels in [0, 1], with shape (C, H, W).
        scale: The standard deviation s, in pixels per unit of u.

    Raises:
        ValueError: If `scale` is not positive and finite.
    """

    def __init__(self, mean: Tensor, scale: Tensor | float = 0.25) -> None:
        super().__init__(mean, scale)
