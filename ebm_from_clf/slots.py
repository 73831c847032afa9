"""Which chains of a store are drawn for a batch: of each class, distinct ones by chance.

The j-th image of a class in the batch takes entry j of a random permutation of the slots of that
class, so that no chain is drawn twice and each is drawn equally often.
"""

__all__ = ["Draw", "distinct", "own"]

from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """Chains taken from the store.

    Arguments:
        u: The states, whitened, with shape (B, C, H, W).
        y: Their classes, with shape (B).
        slot: Their slots within the class, with shape (B).
        fresh: Whether each was just begun, with shape (B).
        own: The indices of those that have a slot, if some have none; `None` for all. The slot
            of one that has none is -1.
    """

    u: Tensor
    y: Tensor
    slot: Tensor
    fresh: Tensor
    own: Tensor | None = None


def distinct(
    y: Tensor, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Chooses a slot for each class index in y.

    Arguments:
        y: The class indices, with shape (B).
        shape: The number of classes, and of slots of each.
        generator: The generator of the permutations.

    Returns:
        The slots, with shape (B), -1 for the surplus of a class that has fewer; and the indices
        of those that have one, if some have none, else `None`.

    Raises:
        ValueError: If a class does not exist.
    """
    n_classes, n = shape
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < n_classes:
        raise ValueError(
            f"ChainStore: classes are 0 to {n_classes - 1}, got {int(y.min())} to {int(y.max())}."
        )
    classes, inverse, count = torch.unique(y, return_inverse=True, return_counts=True)
    key = torch.rand((len(classes), n), generator=generator, device=generator.device)
    order = inverse.argsort(stable=True)
    rank = torch.empty_like(y)
    first = count.cumsum(0) - count
    rank[order] = torch.arange(len(y), device=y.device) - first[inverse[order]]
    if not len(y) or int(count.max()) <= n:
        return key.to(y.device).argsort(1)[inverse, rank], None
    slot = key.to(y.device).argsort(1)[inverse, rank.clamp_max(n - 1)]
    slot = torch.where(rank < n, slot, -1)
    return slot, (slot >= 0).nonzero().flatten()


def own(draw: Draw, *tensors: Tensor) -> list[Tensor]:
    """Returns class, slot, and what else is given, of the chains of a draw that have a slot.

    Arguments:
        draw: The draw.
        tensors: One value of each of its chains.
    """
    every = (draw.y, draw.slot, *tensors)
    return [t if draw.own is None else t[draw.own] for t in every]
