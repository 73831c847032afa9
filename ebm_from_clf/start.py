r"""Where a chain starts.

The start does not change the law that a long chain samples, but it decides how far a short one
gets. Each start draws pixels :math:`x` for given classes; the same object serves in training
and in sampling, and is stored with the model.
"""

__all__ = ["ClassGaussian", "DataStart", "ReferenceStart", "Start", "UniformStart"]

import math

import torch
from torch import Tensor, nn

from .noise import Randomness, normal, uniform
from .reference import Reference
from .space import check_pixels, resize


class Start(nn.Module):
    """Draws the first state of chains: `start(y, generator=...)` gives pixels (B, C, H, W)."""

    def forward(self, y: Tensor, *, generator: Randomness) -> Tensor:
        """Draws one image for each class index in y.

        Arguments:
            y: The class indices, with shape (B).
            generator: One generator, or one per image.
        """
        raise NotImplementedError


class ReferenceStart(Start):
    """Creates starts from the reference q, alike for all classes.

    Arguments:
        reference: The reference.
        contrast: A factor on their distance from the mean image; 1 for draws of q itself.

    Raises:
        ValueError: If the contrast is negative.
    """

    def __init__(self, reference: Reference, contrast: float = 1.0) -> None:
        super().__init__()
        if not contrast >= 0:
            raise ValueError(f"ReferenceStart: `contrast` must be 0 or more, got {contrast}.")
        self.reference = reference
        self.register_buffer("contrast", torch.tensor(float(contrast)))

    contrast: Tensor

    def forward(self, y: Tensor, *, generator: Randomness) -> Tensor:
        """Draws images from q; see :class:`Start`."""
        mean = self.reference.mean
        return mean + self.contrast * (self.reference.sample(len(y), generator=generator) - mean)


class UniformStart(Start):
    """Creates starts of uniform noise in [0, 1], as JEM does (Grathwohl et al., 2020).

    Arguments:
        shape: The shape (C, H, W) of an image.
    """

    def __init__(self, shape: tuple[int, ...] | torch.Size) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(1).expand(shape), persistent=False)

    like: Tensor

    def forward(self, y: Tensor, *, generator: Randomness) -> Tensor:
        """Draws uniform noise; see :class:`Start`."""
        return uniform(self.like.new_empty(len(y), *self.like.shape), generator)


class DataStart(Start):
    """Creates starts at data of the class, as contrastive divergence does (Hinton, 2002).

    Arguments:
        images: The data, pixels in [0, 1], with shape (N, C, H, W).
        labels: Their class indices, with shape (N).
        n_classes: The number of classes.
        size: The height and width (H, W) that images are enlarged to when they are drawn, or
            `None`.

    Raises:
        ValueError: If a class has no image, or images are not in [0, 1].
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        n_classes: int,
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_pixels("DataStart", images)
        self.size = size or (images.shape[2], images.shape[3])
        check_classes("DataStart", labels, n_classes)
        order = labels.argsort(stable=True)
        count = torch.bincount(labels, minlength=n_classes)
        self.register_buffer("images", images[order])
        self.register_buffer("first", count.cumsum(0) - count)
        self.register_buffer("count", count)

    images: Tensor
    first: Tensor
    count: Tensor

    def forward(self, y: Tensor, *, generator: Randomness) -> Tensor:
        """Draws images of the classes y; see :class:`Start`."""
        r = uniform(torch.empty(len(y), device=self.images.device), generator)
        return resize(self.images[self.first[y] + (r * self.count[y]).long()], self.size)


class ClassGaussian(Start):
    r"""Creates starts from one Gaussian per class, of low rank plus independent pixels.

    .. math:: x = E \Big( m_c + \sum_{j \le r} z_j v_{c,j} + s_c \odot z \Big), \qquad
        z \sim \mathcal{N}(0, I)

    with the class mean :math:`m_c`, r principal components :math:`v_{c,j}` times their standard
    deviation, and a residual standard deviation :math:`s_c` per pixel. Rank 0 is the
    class-conditional mean and standard deviation. E enlarges bilinearly: a start needs no detail,
    which the chain makes, so that (r + 2) K C h w numbers of a low resolution hold all classes.
    Pixels are clipped to [0, 1].

    Arguments:
        mean: The means, with shape (K, C, h, w).
        components: The components, with shape (K, r, C, h, w).
        residual: The residual standard deviations, with shape (K, C, h, w).
        size: The height and width (H, W) of the images drawn; `None` for h and w.

    Raises:
        ValueError: If shapes differ, or the images drawn are smaller than the means.
    """

    def __init__(
        self,
        mean: Tensor,
        components: Tensor,
        residual: Tensor,
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        parts = (len(components), *components.shape[2:])
        if not (mean.ndim == 4 and parts == tuple(mean.shape) == tuple(residual.shape)):
            shapes = ", ".join(str(tuple(t.shape)) for t in (mean, components, residual))
            raise ValueError(
                f"ClassGaussian: mean, components, residual differ in shape: {shapes}."
            )
        low = (mean.shape[2], mean.shape[3])
        height, width = low if size is None else size
        if height < low[0] or width < low[1]:
            raise ValueError(
                f"ClassGaussian: `size` must be at least {low}, that of the means, got "
                f"{(height, width)}. Fit to smaller images."
            )
        self.size = (int(height), int(width))
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        self.register_buffer("residual", residual)

    mean: Tensor
    components: Tensor
    residual: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape (C, H, W) of an image drawn."""
        return torch.Size((self.mean.shape[1], *self.size))

    def forward(self, y: Tensor, *, generator: Randomness) -> Tensor:
        """Draws images of the classes y; see :class:`Start`."""
        rank, dim = self.components.shape[1], self.mean[0].numel()
        z = normal(self.mean.new_empty(len(y), rank + dim), generator)
        with torch.autocast(z.device.type, enabled=False):
            low = torch.einsum("br,br...->b...", z[:, :rank], self.components[y])
        x = self.mean[y] + low + self.residual[y] * z[:, rank:].view(-1, *self.mean.shape[1:])
        return resize(x, self.size).clamp(0, 1)

    @classmethod
    def fit(
        cls,
        images: Tensor,
        labels: Tensor,
        n_classes: int,
        *,
        rank: int = 0,
        residual: bool = True,
        size: tuple[int, int] | None = None,
    ) -> "ClassGaussian":
        """Fits the Gaussians to labelled images by moments.

        Arguments:
            images: Pixels in [0, 1], with shape (N, C, h, w).
            labels: Their class indices, with shape (N).
            n_classes: The number of classes K.
            rank: The number r of components per class; at most the images of a class less one.
            residual: Whether the variance outside the components is added as pixel noise.
            size: The height and width (H, W) of the images drawn; `None` for h and w.

        Raises:
            ValueError: If a class has no image, or too few for the rank, or images are not in
                [0, 1] or larger than `size`.
        """
        check_pixels("ClassGaussian", images)
        check_classes("ClassGaussian", labels, n_classes)
        fewest = int(torch.bincount(labels, minlength=n_classes).min())
        if not 0 <= rank < max(fewest, 1):
            raise ValueError(
                f"ClassGaussian: rank {rank} needs at least {rank + 1} images of each class, "
                f"the smallest has {fewest}. Use a lower rank."
            )
        parts = [_principal(images[labels == c], rank) for c in range(n_classes)]
        mean, components, rest = (torch.stack(part) for part in zip(*parts, strict=True))
        return cls(mean, components, rest if residual else torch.zeros_like(rest), size=size)


def _principal(images: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean, scaled components and residual deviation of one class."""
    mean, n = images.mean(0), max(len(images) - 1, 1)
    centered = (images - mean).flatten(1)
    _, value, vector = torch.linalg.svd(centered, full_matrices=False)
    components = vector[:rank] * (value[:rank, None] / math.sqrt(n))
    rest = centered.square().sum(0) / n - components.square().sum(0)
    return mean, components.view(rank, *mean.shape), rest.clamp_min(0).sqrt().view(mean.shape)


def check_classes(who: str, labels: Tensor, n_classes: int) -> None:
    """Checks that labels are class indices and that no class is empty.

    Arguments:
        who: The caller, named in the error.
        labels: Class indices, with shape (N).
        n_classes: The number of classes.

    Raises:
        ValueError: If a label is out of range or a class has no image.
    """
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        found = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "none"
        raise ValueError(f"{who}: labels must be 0 to {n_classes - 1}, got {found}.")
    empty = (torch.bincount(labels, minlength=n_classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{who}: no image of class {', '.join(map(str, empty[:8]))}. Every class needs one; "
            "drop the class or add data."
        )
