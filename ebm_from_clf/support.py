"""Where a model lives: all images, or a box; and pixels that stay what they are."""

__all__ = ["Kept", "Support", "check_support", "confine", "noisy"]

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .noise import Randomness, normal
from .reference import Reference

Support = Literal["unbounded", "reflect", "clamp"]


class Kept(nn.Module):
    """Creates a region whose pixels stay what they are.

    Arguments:
        image: The pixels, with shape (C, H, W).
        mask: True where they are kept, with shape (H, W).
    """

    image: Tensor
    mask: Tensor

    def __init__(self, image: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("image", image)
        self.register_buffer("mask", mask)


def check_support(support: str, reference: Reference) -> None:
    """Checks that there is such a support, and that a reference has it.

    Arguments:
        support: The support.
        reference: The reference.

    Raises:
        ValueError: If there is not, or it is a box and the reference mixes pixels.
    """
    if support not in get_args(Support):
        raise ValueError(f"ClassifierEnergy: `support` is {get_args(Support)}, got {support!r}.")
    if support != "unbounded" and not reference.is_diagonal:
        raise ValueError(
            f"ClassifierEnergy: support {support!r} needs a reference that acts on each "
            f"pixel alone, got {type(reference).__name__}. Use WhiteNoise or a FittedGaussian "
            "with covariance='pixel', or support='unbounded'."
        )


def confine(u: Tensor, reference: Reference, support: Support, kept: Kept | None = None) -> Tensor:
    """Returns u with its pixels brought back into the support, and those kept put back.

    Arguments:
        u: Whitened coordinates, with shape (B, C, H, W).
        reference: The reference; it acts on every pixel alone if the support is a box.
        support: The support.
        kept: The region that is kept.
    """
    if support != "unbounded":
        low = (0 - reference.mean) / reference.scale
        width = 1 / reference.scale
        if support == "clamp":
            u = u.clamp(low, low + width)
        else:
            v = (u - low).remainder(2 * width)
            u = low + torch.minimum(v, 2 * width - v)
    if kept is None:
        return u
    return reference.encode(torch.where(kept.mask, kept.image, reference.decode(u)))


def noisy(
    x: Tensor, noise: float, reference: Reference, support: Support, generator: Randomness
) -> Tensor:
    """Returns images with noise, within the support.

    Chains cannot leave the support. If observed images could, the score would learn to tell the
    two apart by that alone, and its gradient would have no end.

    Arguments:
        x: Pixels in [0, 1], with shape (B, C, H, W).
        noise: The standard deviation of the noise, in pixels.
        reference: The reference.
        support: The support.
        generator: One generator, or one per image.
    """
    x = x + noise * normal(x, generator)
    if support == "unbounded":
        return x
    return reference.decode(confine(reference.encode(x), reference, support))
