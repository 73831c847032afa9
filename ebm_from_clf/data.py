"""Labelled images: small sets that install offline, folders, and every data set timm knows.

A data set yields pairs (x, y): pixels in [0, 1] as a float tensor of shape (C, H, W), and a class
index. It has `class_names`. Sets that fit in memory are held as 8-bit :class:`Images`.
"""

__all__ = ["Augment", "Images", "gather", "load_data"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Subset

from .batches import loader
from .demo import PATCH_SOURCES, digits8x8, mnist5k, patches
from .errors import UsageError
from .folder import ImageFolder
from .image_file import to_pixels
from .parts import part_folder
from .space import dequantize, resize
from .texture import TEXTURES, crops, exemplar

IN_MEMORY_BYTES = 2**31
AT_ONCE = 64
OFFLINE = ("mnist5k", "digits8x8", "patches", "texture")


class Images(Dataset):
    """Creates a data set in memory.

    Arguments:
        images: 8-bit images, with shape (N, C, H, W).
        labels: Class indices, with shape (N).
        class_names: The name of each class.
    """

    def __init__(self, images: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
        self.images = images
        self.labels = labels
        self.class_names = list(class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return dequantize(self.images[index]), self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        # torch's loader calls this for a whole batch, and ours passes it on as it is.
        return dequantize(self.images[indices]), self.labels[indices]

    def subset(self, indices: Tensor) -> "Images":
        """Returns the images of the indices given, as another data set."""
        return Images(self.images[indices], self.labels[indices], self.class_names)


@dataclass(frozen=True)
class Augment:
    """Settings of the augmentation of clean images, for the cross-entropy only.

    Arguments:
        shift: Largest shift along each axis, in pixels; the border is repeated.
        flip: Whether images are mirrored half of the time.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"Augment: `shift` must be 0 or more, got {self.shift}.")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augments each image by itself.

        Arguments:
            x: Images, with shape (B, C, H, W).
            generator: The generator of the shifts and flips.
        """
        n, _, height, width = x.shape
        if self.shift:
            s = self.shift
            padded = functional.pad(x, (s, s, s, s), mode="replicate")
            offset = torch.randint(0, 2 * s + 1, (2, n, 1), generator=generator).to(x.device)
            rows = (offset[0] + torch.arange(height, device=x.device))[:, :, None]
            columns = (offset[1] + torch.arange(width, device=x.device))[:, None, :]
            index = torch.arange(n, device=x.device)[:, None, None]
            x = padded.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2)
        if self.flip:
            mirrored = (torch.rand(n, generator=generator) < 0.5).to(x.device)
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x.contiguous()


def gather(
    dataset: Dataset, per_class: int | None = None, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Collects a data set, or the first images of each class, into tensors.

    Images are read a few at a time and made smaller as they are read. Those that are not wanted
    are not read, if the data set has `labels`; otherwise all are, once, for their labels.

    Arguments:
        dataset: The data set.
        per_class: At most so many images of a class. `None` for all.
        size: The height and width that images are brought to. `None` for their own.

    Returns:
        The pixels in [0, 1], with shape (N, C, H, W), and the labels, with shape (N).
    """
    keep = _first(dataset, per_class)
    x, y, n = torch.empty(0), torch.empty(0), 0
    for images, labels in loader(Subset(dataset, keep), AT_ONCE):
        small = images if size is None else resize(images, size)
        if n == 0:
            x, y = small.new_empty(len(keep), *small.shape[1:]), labels.new_empty(len(keep))
        x[n : n + len(small)], y[n : n + len(small)] = small, labels
        n += len(small)
    return x, y


def _first(dataset: Dataset, per_class: int | None) -> Sequence[int]:
    """Returns the indices of the first images of each class, class by class, or of all."""
    n = len(dataset)  # type: ignore[arg-type]
    if per_class is None:
        return range(n)
    known = getattr(dataset, "labels", None)
    y = torch.as_tensor([int(dataset[i][1]) for i in range(n)] if known is None else known)
    order = y.argsort(stable=True)
    _, count = y.unique(return_counts=True)
    rank = torch.arange(n) - (count.cumsum(0) - count).repeat_interleave(count)
    return order[rank < per_class].tolist()


def load_data(
    name: str,
    split: str,
    *,
    size: tuple[int, int],
    channels: int,
    root: str | None = None,
    download: bool = False,
) -> Dataset:
    """Loads one part of a data set by name.

    Arguments:
        name: `mnist5k`, `digits8x8` and `patches` (of twelve photographs and textures, in
            colour) install offline with the `demo` extra; `texture` is crops of one picture, in
            `root`: `brick`, `grass`, `gravel` of that extra, or a file; `folder` is a
            folder with a part per split and a folder per class inside, or with classes alone,
            of which about a fifth is then held out; anything else is handed to
            `timm.data.create_dataset`, for example `torch/cifar10`.
        split: The part, `train` or `test`; `all` for a folder without parts.
        size: The height and width that images are brought to.
        channels: The number of channels, 1 or 3.
        root: The folder of the data.
        download: Whether timm may download it.

    Raises:
        UsageError: If the data are missing or cannot be read.
    """
    if name in OFFLINE:
        return _offline(name, split, size, channels, root)
    if root is None:
        raise UsageError(
            f"data {name!r} is none of mnist5k, digits8x8, patches, so it needs the folder it "
            "lies in: give `data.root`."
        )
    # What timm reads as a plain folder it does not divide: both parts would be all of it.
    if name == "folder" or ("/" not in name and Path(root).is_dir()):
        place, whole = part_folder(Path(root), split)
        dataset = ImageFolder(place, size, channels)
        if not whole:
            dataset.keep_part(split)
    else:
        dataset = ImageFolder.from_timm(name, root, split, size, channels, download)
    if not len(dataset):
        raise UsageError(
            f"{root}: no image is left for split {split!r}. Add images to its classes."
        )
    if len(dataset) * channels * size[0] * size[1] > IN_MEMORY_BYTES:
        return dataset
    images = torch.stack([dataset.read(i) for i in range(len(dataset))])
    return Images(images, torch.tensor(dataset.labels), dataset.class_names)


def _offline(
    name: str, split: str, size: tuple[int, int], channels: int, root: str | None
) -> Images:
    """Loads one part of a data set of the `demo` extra."""
    if split not in ("train", "test"):
        raise UsageError(f"data {name!r}: a split is train or test, got {split!r}.")
    if name == "texture":
        source = TEXTURES[0] if root is None else root
        cut = crops(exemplar(source, split, channels), size)
        return Images(cut, torch.zeros(len(cut)).long(), [Path(source).stem])
    if name == "patches":
        pieces, labels = patches(split)
        images = torch.stack([to_pixels(image, size, channels) for image in pieces])
        return Images(images, labels, PATCH_SOURCES)
    images, labels = mnist5k() if name == "mnist5k" else digits8x8()
    digits = Images(images, labels, [str(i) for i in range(10)])
    found = _fit(digits, size, channels)
    n_train = 4000 if name == "mnist5k" else 1400
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return found.subset(order[:n_train] if split == "train" else order[n_train:])


def _fit(data: Images, size: tuple[int, int], channels: int) -> Images:
    """Pads a small set with black to a larger size, or resizes it, and repeats gray to colour."""
    height, width = data.images.shape[-2:]
    dy, dx = size[0] - height, size[1] - width
    if dy >= 0 and dx >= 0 and dy <= height // 4 and dx <= width // 4:
        border = (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2)
        images = functional.pad(data.images, border)
    else:
        images = torch.stack([to_pixels(x, size) for x in data.images])
    return Images(images.expand(-1, channels, -1, -1), data.labels, data.class_names)
