r"""Where a chain starts, when a class has several looks.

.. math:: x = m_{c,j} + \sum_{i \le r} z_i v_{c,j,i}, \qquad j \sim w_c, \quad z \sim
    \mathcal{N}(0, I)

A seven with a bar and one without have a mean that is neither. Images of a class are parted into
modes by k-means (Lloyd, 1982), and each mode gets a Gaussian of its own
(:class:`ClassGaussian`). A mode of few images would be a memory of them: those of too few go to
the next one.
"""

__all__ = ["ClassMixture"]

import torch
from torch import Tensor

from .noise import Randomness, uniform
from .space import check_pixels
from .start import ClassGaussian, check_classes

FEWEST = 20
ROUNDS = 20


class ClassMixture(ClassGaussian):
    """Creates starts from a mixture of Gaussians per class.

    Arguments:
        mean: The means of the modes, those of a class one after another, with shape
            (M, C, h, w).
        components: The components, with shape (M, r, C, h, w).
        residual: The residual standard deviations, with shape (M, C, h, w).
        weight: The probability of each mode of a class, with shape (K, J): those it has first,
            then 0.
        size: The height and width (H, W) of the images drawn; `None` for h and w.

    Raises:
        ValueError: As for :class:`ClassGaussian`, or if the weights are not those of M modes.
    """

    weight: Tensor

    def __init__(
        self,
        mean: Tensor,
        components: Tensor,
        residual: Tensor,
        weight: Tensor,
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(mean, components, residual, size=size)
        there = weight > 0
        whole = (weight.sum(1) - 1).abs().max() < 1e-4 and bool((weight >= 0).all())
        if not (whole and int(there.sum()) == len(mean) and bool(there[:, 0].all())):
            raise ValueError(
                f"ClassMixture: the weights of a class are positive for its modes, then 0, and "
                f"sum to 1; they are for {int(there.sum())} modes, there are {len(mean)}."
            )
        self.register_buffer("weight", weight)

    def forward(self, y: Tensor, *, generator: Randomness) -> Tensor:
        """Draws images of the classes y; see :class:`Start`."""
        r = uniform(self.weight.new_empty(len(y), 1), generator)
        count = (self.weight > 0).sum(1)
        # The last edge is 1 up to rounding.
        mode = (r > self.weight.cumsum(1)[y]).sum(1).minimum(count[y] - 1)
        return super().forward((count.cumsum(0) - count)[y] + mode, generator=generator)

    @classmethod
    def fit(  # type: ignore[override]
        cls,
        images: Tensor,
        labels: Tensor,
        n_classes: int,
        *,
        modes: int = 4,
        rank: int = 16,
        residual: bool = False,
        size: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
    ) -> "ClassMixture":
        """Fits the mixtures to labelled images.

        Arguments:
            images: Pixels in [0, 1], with shape (N, C, h, w).
            labels: Their class indices, with shape (N).
            n_classes: The number of classes K.
            modes: The largest number of modes J of a class. Each mode has at least 20 images,
                and more than the rank; of fewer images a class has one mode.
            rank: The number r of components per mode; at most the images of a class less one.
            residual: Whether the variance outside the components is added as pixel noise.
            size: The height and width (H, W) of the images drawn; `None` for h and w.
            generator: The generator of the first centres.

        Raises:
            ValueError: If a number is out of range, a class has no image, or too few for the
                rank, or images are not in [0, 1] or larger than `size`.
        """
        if modes < 1:
            raise ValueError(f"ClassMixture: `modes` must be 1 or more, got {modes}.")
        check_pixels("ClassMixture", images)
        check_classes("ClassMixture", labels, n_classes)
        generator = generator or torch.Generator().manual_seed(0)
        mode, weight = torch.zeros_like(labels), images.new_zeros(n_classes, modes)
        n = 0
        for c in range(n_classes):
            where = labels == c
            found = _parted(images[where].flatten(1), modes, max(FEWEST, rank + 1), generator)
            count = torch.bincount(found)
            weight[c, : len(count)] = count / count.sum()
            mode[where] = n + found
            n += len(count)
        one = ClassGaussian.fit(images, mode, n, rank=rank, residual=residual)
        return cls(one.mean, one.components, one.residual, weight, size=size)


def _parted(x: Tensor, modes: int, fewest: int, generator: torch.Generator) -> Tensor:
    """Parts points into at most so many groups of at least so many; returns 0, 1, ... for each."""
    n = max(min(modes, len(x) // fewest), 1)
    centre = x[torch.randperm(len(x), generator=generator)[:n].to(x.device)]
    for _ in range(ROUNDS):
        centre = _means(x, _nearest(x, centre), len(centre))
    while len(centre) > 1:
        count = torch.bincount(_nearest(x, centre), minlength=len(centre))
        if int(count.min()) >= fewest:
            break
        left = [i for i in range(len(centre)) if i != int(count.argmin())]
        centre = _means(x, _nearest(x, centre[left]), len(left))
    return _nearest(x, centre)


def _nearest(x: Tensor, centre: Tensor) -> Tensor:
    return torch.cdist(x, centre).argmin(1)


def _means(x: Tensor, group: Tensor, n: int) -> Tensor:
    """Returns the mean of each group of points; that of all for a group of none."""
    parts = (x[group == i] for i in range(n))
    return torch.stack([part.mean(0) if len(part) else x.mean(0) for part in parts])
