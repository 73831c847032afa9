"""Chains in a file that is mapped into memory: only what is drawn is read.

The file begins with the time of the last writing of each chain, int64, and goes on with their
states. It is sparse: it takes up space only for chains that were written.
"""

__all__ = ["map_states"]

import math
import os

import torch
from torch import Tensor


def map_states(file: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns when each chain was last written, with shape (K, n), and the states.

    Arguments:
        file: The file, made if there is none.
        shape: The shape (K, n, C, H, W) of the states.
        dtype: The type of a value.

    Raises:
        ValueError: If the file holds something else.
    """
    head = 8 * math.prod(shape[:2])
    size = head + math.prod(shape) * dtype.itemsize
    there = os.path.getsize(file) if os.path.exists(file) else 0
    if there not in (0, size):
        raise ValueError(
            f"ChainStore: {file} holds something else, or chains of other numbers or images: "
            f"{there} bytes, not {size}. Give a file that is not there."
        )
    whole = torch.from_file(file, shared=True, size=size, dtype=torch.uint8)
    stamp = whole[:head].view(torch.int64).view(shape[:2])
    return stamp, whole[head:].view(dtype).view(shape)
