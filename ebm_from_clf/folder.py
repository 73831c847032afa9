"""A folder of images that strangers may have filled.

Only formats on a list are opened, a decompression bomb is an error, and a broken file is named
with what to do about it. A path never becomes code and a label never becomes a path.
"""

__all__ = ["ImageFolder", "image_size", "read_image", "to_pixels", "unlabelled"]

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from .errors import UsageError
from .parts import held_out
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
    found = _files(Path(root))
    if not found:
        raise UsageError(f"{root}: no images inside.")
    for i in range(0, len(found), AT_ONCE):
        part = [read_image(file, size, channels) for file in found[i : i + AT_ONCE]]
        yield dequantize(torch.stack(part))


def _files(folder: Path) -> list[Path]:
    """Returns the files in a folder and those inside it, in order, without hidden ones."""
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


class ImageFolder(Dataset):
    """Creates a data set of image files, one folder per class.

    Arguments:
        root: The folder whose folders are the classes.
        size: The height and width that images are brought to.
        channels: The number of channels, 1 or 3.

    Raises:
        UsageError: If the folder is missing, has no class folders, or one of them is empty.
    """

    def __init__(self, root: str | Path, size: tuple[int, int], channels: int) -> None:
        root = Path(root)
        if not root.is_dir():
            raise UsageError(f"{root}: no such folder. Give a folder with one folder per class.")
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not folders:
            raise UsageError(f"{root}: no class folders inside. Put images in one folder a class.")
        self.class_names = [folder.name for folder in folders]
        self.size, self.channels = size, channels
        self.source: Any = None
        self.files: list[Path] = []
        self.labels: list[int] = []
        for label, folder in enumerate(folders):
            found = _files(folder)
            if not found:
                raise UsageError(f"{folder}: class without an image. Add some or remove it.")
            self.files += found
            self.labels += [label] * len(found)

    @classmethod
    def from_timm(
        cls,
        name: str,
        root: str,
        split: str,
        size: tuple[int, int],
        channels: int,
        download: bool = False,
    ) -> "ImageFolder":
        """Creates the data set that `timm.data.create_dataset(name)` finds.

        Arguments:
            name: The name timm knows it by, for example `torch/cifar10`.
            root: The folder of the data.
            split: The part, `train` or `test`; timm's `validation` if there is no `test`.
            size: The height and width that images are brought to.
            channels: The number of channels, 1 or 3.
            download: Whether timm may download it.

        Raises:
            UsageError: If timm cannot find it.
        """
        from timm.data import create_dataset

        try:
            try:
                source = create_dataset(name, root=root, split=split, download=download)
            except ValueError:
                # Not a part of this set; other faults of the data are not mended by another part.
                if split != "test":
                    raise
                source = create_dataset(name, root=root, split="validation", download=download)
            labels = [int(y) for y in _labels(source)]
        except (AssertionError, FileNotFoundError, ImportError, RuntimeError, ValueError) as error:
            raise UsageError(f"data {name!r}, split {split!r}: {_line(error)}") from error
        self = cls.__new__(cls)
        self.source, self.labels, self.files = source, labels, []
        self.size, self.channels = size, channels
        names = getattr(source, "classes", None) or range(max(labels) + 1)
        self.class_names = [str(c) for c in names]
        return self

    def keep_part(self, split: str) -> None:
        """Keeps the part of a folder of files that is held out, or the rest of it.

        Arguments:
            split: `test` for what is held out, `train` for the rest.
        """
        names = [f"{path.parent.name}/{path.name}" for path in self.files]
        out = held_out(names, self.labels)
        keep = [i for i in range(len(names)) if (i in out) == (split == "test")]
        self.files = [self.files[i] for i in keep]
        self.labels = [self.labels[i] for i in keep]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return dequantize(self.read(index)), self.labels[index]

    def read(self, index: int) -> Tensor:
        """Reads one image as 8-bit values, with shape (C, H, W)."""
        if self.source is not None:
            return to_pixels(self.source[index][0], self.size, self.channels)
        return read_image(self.files[index], self.size, self.channels)


def _labels(source: Any) -> list[int]:  # noqa: ANN401 - any data set of timm or torchvision
    """Returns all labels without decoding an image, where the data set keeps them."""
    if hasattr(source, "targets"):
        return list(source.targets)
    if hasattr(source, "reader"):
        return [sample[1] for sample in source.reader.samples]
    return [source[i][1] for i in range(len(source))]


def _line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
