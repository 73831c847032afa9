"""Where a model lives: all images, or a box; and pixels that stay what they are."""

__all__ = ["Kept", "Support", "confine"]

from typing import Literal

import torch
from torch import Tensor, nn

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
