"""A folder of images, one folder per class, that strangers may have filled.

A path never becomes code and a label never becomes a path.
"""

__all__ = ["ImageFolder"]

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from .errors import UsageError
from .image_file import files_in, read_image, to_pixels
from .parts import held_out
from .space import dequantize


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
            found = files_in(folder)
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
