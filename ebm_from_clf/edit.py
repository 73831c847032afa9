r"""Changing a photograph: chains that begin at it, and keep a region of it.

The reference is replaced by what it becomes once the photograph :math:`x_0` was seen through
noise of its own covariance, :math:`\Sigma = A A^\top`, times s / (1 - s):

.. math:: q(x \mid x_0) = \mathcal{N}\big((1 - s) x_0 + s \mu, \; s \Sigma\big)

a Gaussian between the photograph alone, at the strength s = 0, and q, at s = 1. The energy of
changes, :math:`e^{F_c(x)} q(x \mid x_0)`, is a model like any other; its chains begin between the
photograph and a start of the energy. With a mask the pixels of a region are put back after every
step. That keeps them exactly; the rest follows the energy given them, approximately where the
reference correlates pixels. Chains are as short as those of the energy.
"""

__all__ = ["PhotoStart", "edit"]

import math
from typing import Any

import torch
from torch import Tensor

from .energy import ClassifierEnergy
from .langevin import Langevin
from .modes import sharing
from .noise import Randomness
from .reference import Reference
from .space import check_pixels
from .start import ReferenceStart, Start
from .stationary import StationaryGaussian
from .support import Kept

LEAST = 1e-12  # so that A of strength 0 has an inverse


class PhotoStart(Start):
    """Creates starts between a photograph and those of another start.

    Arguments:
        image: The photograph, pixels in [0, 1], with shape (C, H, W).
        start: The other start.
        strength: How far from the photograph, 0 to 1.
    """

    image: Tensor
    strength: Tensor

    def __init__(self, image: Tensor, start: Start, strength: float) -> None:
        super().__init__()
        self.start = start
        self.register_buffer("image", image)
        self.register_buffer("strength", torch.tensor(float(strength)))

    def forward(self, y: Tensor, *, generator: Randomness) -> Tensor:
        """Draws starts; see :class:`Start`."""
        x = self.start(y, generator=generator)
        return (1 - self.strength) * self.image + self.strength * x


def edit(
    energy: ClassifierEnergy,
    image: Tensor,
    strength: float = 0.4,
    *,
    mask: Tensor | None = None,
    sampler: Langevin | None = None,
) -> ClassifierEnergy:
    """Returns an energy whose samples are changes of a photograph.

    `sample(edit(energy, cat), [340])` shows what would make the cat a zebra.

    Arguments:
        energy: The energy. It is left as it is; the classifier is shared.
        image: The photograph, pixels in [0, 1], with shape (C, H, W).
        strength: How much of it may change: 0 nothing, 1 everything.
        mask: True where it is kept, with shape (H, W). `None` for nowhere.
        sampler: How chains move. `None` for that of the energy, or 100 steps at T = 1.

    Raises:
        TypeError: If the image is not floating point, or the mask not boolean.
        ValueError: If a shape or the scale of the image is wrong, or the strength is not 0 to 1.
    """
    energy.space.check(image[None])
    check_pixels("edit", image)
    if not 0 <= strength <= 1:
        raise ValueError(f"edit: `strength` is 0 to 1, got {strength}.")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"edit: the mask is boolean, got {mask.dtype}. Give `mask > 0.5`.")
    if mask is not None and mask.shape != image.shape[1:]:
        raise ValueError(
            f"edit: the mask has shape {tuple(mask.shape)}, the image {tuple(image.shape[1:])}. "
            "Give a mask of the size of the image."
        )
    image = image.detach().to(energy.reference.mean)
    found = sharing(energy)
    start: Any = energy.start or ReferenceStart(energy.reference)
    found.start = PhotoStart(image, start, strength)
    if mask is not None:
        found.kept = Kept(image, mask.to(image.device))
    found.reference = _near(energy.reference, image, max(strength, LEAST))
    found.sampler = sampler or energy.sampler
    return found


def _near(reference: Reference, image: Tensor, strength: float) -> Reference:
    """Returns q given that a photograph was seen through noise."""
    arguments = reference.arguments
    arguments["mean"] = (1 - strength) * image + strength * reference.mean
    if isinstance(reference, StationaryGaussian):  # whose scale is in its colours
        arguments["color"] = strength * reference.color
    else:
        arguments["scale"] = math.sqrt(strength) * reference.scale
    return type(reference)(**{name: value.cpu() for name, value in arguments.items()}).to(image)
