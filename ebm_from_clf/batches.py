"""Batches of a data set, in orders that follow from a seed.

The order of an epoch is a permutation drawn from the seed and its number, so that a position alone
says what comes next. The global random state is left alone.
"""

__all__ = ["Batches", "loader", "pairs"]

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate


def loader(dataset: Dataset, batches: "Batches | int") -> DataLoader:
    """Returns a loader of batches (x, y) that leaves the global random state alone.

    Arguments:
        dataset: The data set.
        batches: The batches, or a batch size for one pass in order.
    """
    order: dict[str, Any] = {"batch_sampler": batches}
    if isinstance(batches, int):
        order = {"batch_size": batches}
    return DataLoader(dataset, collate_fn=_collate, generator=torch.Generator(), **order)


def _collate(batch: Any) -> Any:  # noqa: ANN401 - what torch hands to a collate function
    # A data set in memory hands over whole batches.
    return batch if isinstance(batch, tuple) else default_collate(batch)


class Batches:
    """Creates an endless sequence of index batches whose order follows from (seed, epoch).

    Arguments:
        n: The number of samples.
        batch_size: The batch size; a batch never spans two epochs.
        seed: The seed.
        position: How many batches were already taken, to go on where another run ended.
    """

    def __init__(self, n: int, batch_size: int, *, seed: int, position: int = 0) -> None:
        self.n = n
        self.batch_size = min(batch_size, n)
        self.seed = seed
        self.position = position

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.n // self.batch_size
        position, order, epoch = self.position, torch.empty(0), -1
        while True:
            if position // per_epoch != epoch:
                epoch = position // per_epoch
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.n, generator=generator)
            first = position % per_epoch * self.batch_size
            yield order[first : first + self.batch_size].tolist()
            position += 1


def pairs(
    dataset: Dataset, sizes: Sequence[int], *, seed: int, position: int
) -> Iterator[tuple[list[Tensor], ...]]:
    """Yields a batch (x, y) of each size at once, without end, in orders of their own.

    Arguments:
        dataset: The data set.
        sizes: The batch sizes.
        seed: The seed of the orders.
        position: How many were already taken.
    """
    n = len(dataset)  # type: ignore[arg-type]
    orders = [
        Batches(n, size, seed=seed + 31 * part, position=position)
        for part, size in enumerate(sizes)
    ]
    yield from zip(*(loader(dataset, order) for order in orders), strict=True)
