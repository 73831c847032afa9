"""Crops of one picture, which are all of one class: what a texture is learned from.

A picture is first brought to 256 pixels on its shorter side if it is larger, so that a crop shows
more than a single stone of it.
"""

__all__ = ["TEXTURES", "crops", "exemplar"]

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .demo import skimage_picture
from .errors import UsageError
from .image_file import image_size, read_image, to_pixels

TEXTURES = ("brick", "grass", "gravel")
SHORTER = 256
EXEMPLAR = 128
A_SIDE = 8


def exemplar(source: str, split: str, channels: int) -> Tensor:
    """Returns the picture of a texture, 8-bit, with shape (C, H, W).

    Of a picture that comes with the `demo` extra, 256x256 pixels, the upper left quarter is
    learned from and the lower right one held out. Of a file all of it is both.

    Arguments:
        source: `brick`, `grass`, `gravel`, or an image file.
        split: The part, `train` or `test`.
        channels: The number of channels, 1 or 3.

    Raises:
        UsageError: If there is no such picture, or the package is missing.
    """
    if source not in TEXTURES:
        if not Path(source).is_file():
            raise UsageError(
                f"texture {source!r}: no such file. Give an image, or one of "
                f"{', '.join(TEXTURES)}."
            )
        height, width = image_size(source)
        shrink = min(1.0, SHORTER / min(height, width))
        return read_image(source, (round(height * shrink), round(width * shrink)), channels)
    whole = to_pixels(skimage_picture(source), (SHORTER, SHORTER), channels)
    part = slice(0, EXEMPLAR) if split == "train" else slice(-EXEMPLAR, None)
    return whole[:, part, part]


def crops(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns at most 64 crops of a picture, on a grid, 8-bit, with shape (N, C, *size).

    Arguments:
        picture: The picture, 8-bit, with shape (C, H, W).
        size: The height and width of a crop.

    Raises:
        UsageError: If the picture is smaller, or of one colour.
    """
    sides = [side - wanted for side, wanted in zip(picture.shape[1:], size, strict=True)]
    if min(sides) < 0:
        raise UsageError(
            f"texture: a picture of {picture.shape[1]}x{picture.shape[2]} pixels has no crop of "
            f"{size[0]}x{size[1]}. Give a larger picture, or a smaller `size` of the classifier."
        )
    if (picture == picture[:, :1, :1]).all():
        raise UsageError("texture: the picture is of one colour, there is nothing to learn.")
    rows, columns = (np.unique(np.linspace(0, free, A_SIDE).round().astype(int)) for free in sides)
    return torch.stack(
        [picture[:, i : i + size[0], j : j + size[1]] for i in rows for j in columns]
    )
