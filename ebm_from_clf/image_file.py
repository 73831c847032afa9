"""An image file that a stranger may have made.

Only formats on a list are opened, a decompression bomb is an error, and a broken file is named
with what to do about it.
"""

__all__ = ["files_in", "image_size", "read_image", "to_pixels", "unlabelled"]

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .errors import UsageError
from .space import dequantize

ORIENTATION = 0x0112  # of EXIF; from 5 on the sides are swapped
AT_ONCE = 64
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def read_image(path: str | Path, size: tuple[int, int], channels: int) -> Tensor:
    """Reads an image file, turns it upright, and brings it to a size by resize and centre crop.

    Transparency is laid on black, 16-bit gray is scaled to 8 bits, of an animation the first
    frame is taken.

    Arguments:
        path: The file.
        size: The height and width (H, W).
        channels: 1 for gray, 3 for colour.

    Returns:
        The 8-bit image, with shape (C, H, W).

    Raises:
        UsageError: If the file is not an image, is truncated, is a decompression bomb, or has
            pixels without a known range.
    """
    try:
        with warnings.catch_warnings():
            # What is wrong with a file is said once, below; odd metadata do no harm.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                upright = ImageOps.exif_transpose(image) or image
            return to_pixels(upright, size, channels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(
            f"{path}: too many pixels, a decompression bomb? Remove it or make it smaller."
        ) from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file.") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UsageError(
            f"{path}: not a readable image ({', '.join(FORMATS)}), or truncated. Remove or "
            "replace it."
        ) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Returns the height and width of an image file, turned upright.

    Arguments:
        path: The file.

    Raises:
        UsageError: If it is not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                turned = image.getexif().get(ORIENTATION, 1) >= 5
                return (image.width, image.height) if turned else (image.height, image.width)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file.") from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: not a readable image ({', '.join(FORMATS)}).") from error


def unlabelled(root: str | Path, size: tuple[int, int], channels: int) -> Iterator[Tensor]:
    """Reads all images in a folder and in those inside it, some at a time.

    Arguments:
        root: The folder.
        size: The height and width that images are brought to.
        channels: The number of channels, 1 or 3.

    Returns:
        Batches of images in [0, 1], with shape (N, C, H, W).

    Raises:
        UsageError: If there is no such folder, nothing in it, or a file is no image.
    """
    if not (str(root) and Path(root).is_dir()):
        raise UsageError(f"{root}: no such folder. Give a folder of images.")
    found = files_in(Path(root))
    if not found:
        raise UsageError(f"{root}: no images inside.")
    for i in range(0, len(found), AT_ONCE):
        part = [read_image(file, size, channels) for file in found[i : i + AT_ONCE]]
        yield dequantize(torch.stack(part))


def files_in(folder: Path) -> list[Path]:
    """Returns the files in a folder and those inside it, in order, without hidden ones.

    Arguments:
        folder: The folder.
    """
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def to_pixels(image: Image.Image | Tensor, size: tuple[int, int], channels: int = 1) -> Tensor:
    """Brings an image to a size: the shorter side is resized, the middle kept.

    Arguments:
        image: A Pillow image, or an 8-bit tensor with shape (1, H, W).
        size: The height and width (H, W).
        channels: 1 for gray, 3 for colour.

    Returns:
        The 8-bit image, with shape (C, H, W).

    Raises:
        UsageError: If black and white are unknown: floats, or more than 16 bits.
    """
    if isinstance(image, Tensor):
        image = Image.fromarray(image[0].numpy())
    if image.mode == "F" or (image.mode == "I" and np.asarray(image).max() >= 2**16):
        raise UsageError("its black and white are unknown. Save it with 8 or 16 bits.")
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if channels == 1 else "RGB")
    height, width = size
    image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    array = np.array(image)
    return torch.from_numpy(array[None] if channels == 1 else array.transpose(2, 0, 1).copy())
