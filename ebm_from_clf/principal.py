r"""A reference that knows along which directions images vary.

.. math:: A = \mathrm{diag}(s) \, \big( \tau I + V \, \mathrm{diag}(d - \tau) \, V^\top \big),
    \qquad d_j \propto \lambda_j^{p / 2}, \qquad \tau^2 \propto \Big[ \frac{1}{D - r} \sum_{j > r}
    \lambda_j \Big]^p

with the standard deviation s of every pixel, and the first r principal components V of the
standardized images, with variances :math:`\lambda`. At the power p = 1 that is the Gaussian of
probabilistic principal components (Tipping and Bishop, 1999); at 0 pixels are independent. The
mean of the variances of u stays 1.

Steps of a chain are alike in u. Between pixels that are independent they are small along what
images share, strokes and shades, and large along what none of them has: long chains then roughen.
"""

__all__ = ["PrincipalGaussian"]

import torch
from torch import Tensor

from .reference import Reference
from .space import check_pixels

EXTRA = 10
ROUNDS = 10


class PrincipalGaussian(Reference):
    r"""Creates a Gaussian with principal components; see :meth:`fit`.

    References:
        | Probabilistic principal component analysis (Tipping and Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Arguments:
        mean: The mean image :math:`\mu`, with shape (C, H, W).
        scale: The scale s, a number or a tensor that broadcasts to (C, H, W).
        components: The orthonormal components V, with shape (r, C, H, W).
        spread: Their standard deviations d, in units of the scale, with shape (r).
        rest: The standard deviation :math:`\tau` of all other directions, in units of the scale.

    Raises:
        ValueError: As for :class:`Reference`, if shapes differ, components are not orthonormal,
            or a standard deviation is not positive.
    """

    components: Tensor
    spread: Tensor
    rest: Tensor

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor | float,
        components: Tensor,
        spread: Tensor,
        rest: Tensor | float,
    ) -> None:
        super().__init__(mean, scale)
        rank = len(components)
        if components.shape[1:] != mean.shape or spread.shape != (rank,):
            raise ValueError(
                f"PrincipalGaussian: components of images {tuple(mean.shape)} must have shape "
                f"(r, {', '.join(map(str, mean.shape))}) and `spread` (r), got "
                f"{tuple(components.shape)} and {tuple(spread.shape)}."
            )
        # In one layout: that of saved ones, whose products round alike.
        own = components.detach().float().clone(memory_format=torch.contiguous_format)
        self.register_buffer("components", own)
        self.register_buffer("spread", spread.detach().clone().float())
        self.register_buffer("rest", torch.as_tensor(rest).detach().clone().float())
        basis = self.components.double().flatten(1)
        off = (basis @ basis.T - torch.eye(rank).to(basis)).abs().amax() if rank else 0.0
        if not off < 1e-4 or rank > mean.numel():
            raise ValueError("PrincipalGaussian: `components` must be orthonormal, they are not.")
        log = torch.cat([self.spread.double(), self.rest.double().view(1)]).log()
        if not log.isfinite().all():
            raise ValueError("PrincipalGaussian: `spread` and `rest` must be positive and finite.")
        self.log_abs_det += float(log[:-1].sum() + (mean.numel() - rank) * log[-1])

    @property
    def is_diagonal(self) -> bool:
        """Whether A acts on every pixel alone: not if there are components."""
        return not len(self.components)

    def factor(self, u: Tensor) -> Tensor:
        r"""Returns :math:`A u`, with shape (\*, C, H, W)."""
        return self.scale * self._stretched(u, self.spread, self.rest)

    def adjoint(self, v: Tensor) -> Tensor:
        r"""Returns :math:`A^\top v`, with shape (\*, C, H, W)."""
        return self._stretched(self.scale * v, self.spread, self.rest)

    def solve(self, v: Tensor) -> Tensor:
        r"""Returns :math:`A^{-1} v`, with shape (\*, C, H, W)."""
        return self._stretched(v / self.scale, 1 / self.spread, 1 / self.rest)

    def _stretched(self, u: Tensor, along: Tensor, across: Tensor) -> Tensor:
        """Returns u times numbers along the components and another across them."""
        basis = self.components.flatten(1)
        with torch.autocast(u.device.type, enabled=False):
            inside = (u.flatten(-3) @ basis.T * (along - across)) @ basis
        return across * u + inside.view_as(u)

    @classmethod
    def fit(
        cls, images: Tensor, rank: int = 64, power: float = 0.5, floor: float = 0.05
    ) -> "PrincipalGaussian":
        """Fits q to the mean, the variance of every pixel, and the principal components.

        Arguments:
            images: Images in [0, 1], with shape (N, C, H, W).
            rank: The number r of components; fewer if there are not as many.
            power: The power p, between 0 and 1, of the variances along and across them.
            floor: The least standard deviation of a pixel.

        Raises:
            ValueError: If there are fewer than two images, they are not in [0, 1], or rank or
                power are out of range.
        """
        check_pixels("PrincipalGaussian", images)
        n, dim = len(images), images[:1].numel()
        if n < 2:
            raise ValueError(f"PrincipalGaussian: at least two images are needed, got {n}.")
        if rank < 0 or not 0 <= power <= 1:
            raise ValueError(
                "PrincipalGaussian: `rank` must be 0 or more and `power` between 0 and 1, "
                f"got {rank} and {power}."
            )
        x = images.detach().double().cpu()
        mean = x.mean(0)
        scale = (x - mean).square().mean(0).sqrt().clamp_min(floor)
        found = ((x - mean) / scale).flatten(1)
        rank = min(rank, n - 1, dim - 1)
        along, basis = _principal(found, rank)
        rest = (found.square().sum() / n - along.sum()).clamp_min(1e-9) / (dim - rank)
        along, rest = along.clamp_min(1e-9) ** power, rest**power
        size = (along.sum() + (dim - rank) * rest) / dim
        components = basis.T.reshape(rank, *mean.shape)
        made = cls(mean, scale, components, (along / size).sqrt(), (rest / size).sqrt())
        return made.to(images.device)


def _principal(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the largest variances of rows with mean 0, and their directions as columns.

    By iterations of a subspace that begins at random (Halko, Martinsson and Tropp, 2011).
    """
    generator = torch.Generator().manual_seed(0)
    wide = min(rank + EXTRA, x.shape[1])
    basis = torch.randn(x.shape[1], wide, generator=generator, dtype=x.dtype)
    for _ in range(ROUNDS):
        basis, _ = torch.linalg.qr(x.T @ (x @ basis))
    value, turned = torch.linalg.eigh((x @ basis).T @ (x @ basis) / len(x))
    return value.flip(0)[:rank], (basis @ turned).flip(1)[:, :rank]
