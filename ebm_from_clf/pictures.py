"""Pictures of images: a PNG, a grid, a film.

An image is a float tensor of pixels in [0, 1], with shape (C, H, W), C being 1 or 3; values
outside are clipped for display only. Small images are enlarged by whole pixels.
"""

__all__ = ["grid", "picture", "write_film"]

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .folders import whole
from .space import quantize


def picture(x: Tensor) -> Image.Image:
    """Returns one image as a Pillow image.

    Arguments:
        x: Pixels in [0, 1], with shape (C, H, W).

    Raises:
        ValueError: If C is neither 1 nor 3.
    """
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise ValueError(
            f"picture: an image of 1 or 3 channels is needed, got shape {tuple(x.shape)}. "
            "Choose the channels to show."
        )
    array = quantize(x.detach().cpu().float()).permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if x.shape[0] == 1 else array)


def grid(x: Tensor, columns: int | None = None, *, width: int = 800, gap: int = 2) -> Image.Image:
    """Returns a grid of images, row by row.

    Arguments:
        x: Images, with shape (B, C, H, W).
        columns: Images in a row; about the square root of B by default.
        width: The width that small images are enlarged towards, in pixels.
        gap: The gap between images, in pixels before enlarging.
    """
    n, channels, height, wide = x.shape
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    sheet = torch.full((channels, rows * (height + gap) - gap, columns * (wide + gap) - gap), 0.5)
    for i, image in enumerate(x.detach().cpu().float()):
        top, left = i // columns * (height + gap), i % columns * (wide + gap)
        sheet[:, top : top + height, left : left + wide] = image
    found = picture(sheet)
    factor = max(1, width // found.width)
    return found.resize((found.width * factor, found.height * factor), Image.Resampling.NEAREST)


def write_film(frames: Sequence[Image.Image], path: Path, *, seconds: float = 4.0) -> None:
    """Writes frames as an endless GIF that rests on the last one, in one piece.

    Arguments:
        frames: The frames, all of one size.
        path: The file to write.
        seconds: How long one round takes.
    """
    duration = [max(20, round(1000 * seconds / len(frames)))] * len(frames)
    duration[-1] = 1500
    first, *rest = (frame.quantize(32) for frame in frames)
    options: dict[str, Any] = {"duration": duration, "loop": 0, "optimize": True}
    with whole(path) as part:
        first.save(part, format="GIF", save_all=True, append_images=rest, **options)
