r"""Persistent chains, remembered by class.

The learning gradient needs samples of every :math:`p_c`. Chains that go on from update to update
(Younes, 1989; Tieleman, 2008) come close to them with few steps each. A chain belongs to one
class for its whole life: slot s of class c is drawn, moved and written back in place. With
probability r a drawn chain is begun anew, so that the store never forgets how to get from the
start to the data. A new chain makes b steps before it counts: counted at once, it is a negative
that can never be good enough, and the energy grows ever steeper where chains start. K steps a draw
make chains :math:`b + K / r` steps long on average.

With one r all chains are short, and what is learned holds for chains of that length alone. Given
two rates, slot s of n has its own, :math:`r_s = r_0 (r_1 / r_0)^{s / (n - 1)}`: most chains are
short, some are as long as the run.
"""

__all__ = ["ChainStore", "Draw"]

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from .reference import Reference
from .space import dequantize, quantize
from .start import Start

Storage = Literal["float32", "float16", "uint8"]
Rates = float | tuple[float, float]


class Draw(NamedTuple):
    """Chains taken from the store.

    Arguments:
        u: The states, whitened, with shape (B, C, H, W).
        y: Their classes, with shape (B).
        slot: Their slots within the class, with shape (B).
        fresh: Whether each was just begun, with shape (B).
    """

    u: Tensor
    y: Tensor
    slot: Tensor
    fresh: Tensor


class ChainStore(nn.Module):
    """Creates a store of persistent chains; its `state_dict` holds all of them.

    Arguments:
        reference: The reference whose whitened coordinates the chains live in.
        start: Where a chain begins.
        n_classes: The number of classes K.
        per_class: The number of chains of a class.
        restart_rate: The probability that a drawn chain is begun anew; of two, those of the
            first and the last slot of a class.
        burn_in: The Langevin steps that a new chain makes before it counts.
        storage: How a state is kept: u as `float32` or `float16`, or pixels in [0, 1] as
            `uint8`, for models on the box only.
        generator: The generator of the first states.

    Raises:
        ValueError: If a number is out of range or the storage is unknown.
    """

    state: Tensor
    age: Tensor
    rate: Tensor

    def __init__(
        self,
        reference: Reference,
        start: Start,
        n_classes: int,
        *,
        per_class: int = 100,
        restart_rate: Rates = 0.05,
        burn_in: int = 10,
        storage: Storage = "float32",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if n_classes < 1 or per_class < 1:
            raise ValueError(
                f"ChainStore: at least one class and one chain of each are needed, "
                f"got {n_classes} and {per_class}."
            )
        rates = _rates(restart_rate, per_class)
        if burn_in < 0:
            raise ValueError(f"ChainStore: `burn_in` must be 0 or more, got {burn_in}.")
        if storage not in get_args(Storage):
            raise ValueError(f"ChainStore: `storage` is {get_args(Storage)}, got {storage!r}.")
        # Held, not owned: the energy saves the reference, the model folder the start.
        self._held = (reference, start.to(reference.mean.device))
        self.burn_in = burn_in
        self.storage: Storage = storage
        shape = (n_classes, per_class, *reference.shape)
        kept = torch.empty(shape, dtype=getattr(torch, storage), device=reference.mean.device)
        for c in range(n_classes):
            y = torch.full((per_class,), c, device=kept.device)
            kept[c] = self._pack(reference.encode(start(y, generator=generator)))
        self.register_buffer("rate", rates.to(kept.device), persistent=False)
        self.register_buffer("state", kept)
        self.register_buffer("age", torch.zeros(shape[:2], dtype=torch.int64, device=kept.device))

    @property
    def start(self) -> Start:
        """Where a chain begins."""
        return self._held[1]

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return self.state.shape[0]

    @property
    def per_class(self) -> int:
        """The number of chains of a class."""
        return self.state.shape[1]

    @property
    def lifetime(self) -> float:
        """The draws that a chain lives, at most 100: one over the geometric mean of the rates."""
        return 1 / max(float(self.rate.log().mean().exp()), 0.01)

    def draw(self, y: Tensor, *, generator: torch.Generator) -> Draw:
        """Takes one chain of each class index in y, no chain twice.

        Arguments:
            y: The class indices, with shape (B).
            generator: The generator that chooses slots and restarts.

        Raises:
            ValueError: If a class does not exist or is asked for more often than it has chains.
        """
        reference, start = self._held
        slot = self._slots(y, generator)
        u = self._unpack(self.state[y, slot], generator)
        r = torch.rand(len(y) + 1, generator=generator, device=generator.device)
        # Systematic sampling: rates end to end in random order, one tooth of a comb a unit. Nearly
        # the same number every time, since a batch of one shape is fast.
        order = r[:-1].argsort().to(y.device)
        edge = torch.cat([r[-1:].to(self.rate), self.rate[slot[order]]]).cumsum(0).floor()
        fresh = self.age[y, slot] == 0
        fresh[order] |= edge.diff() > 0
        if fresh.any():
            u[fresh] = reference.encode(start(y[fresh], generator=generator))
        return Draw(u, y, slot, fresh)

    def write(self, draw: Draw, u: Tensor) -> None:
        """Writes moved chains back to the slots that they were drawn from.

        Arguments:
            draw: What :meth:`draw` gave.
            u: Their new states, with the shape of `draw.u`.
        """
        self.state[draw.y, draw.slot] = self._pack(u)
        self.age[draw.y, draw.slot] = torch.where(draw.fresh, 1, self.age[draw.y, draw.slot] + 1)

    def begin_anew(self, draw: Draw, where: Tensor) -> None:
        """Begins some chains anew when they are drawn next.

        Arguments:
            draw: What :meth:`draw` gave.
            where: Which of them, with shape (B).
        """
        age = self.age[draw.y, draw.slot]
        self.age[draw.y, draw.slot] = torch.where(where, 0, age)

    def begin_all_anew(self, classes: Sequence[int] | None = None) -> None:
        """Begins all chains of some classes anew when they are drawn next.

        Arguments:
            classes: The classes; `None` for all.
        """
        self.age[slice(None) if classes is None else list(classes)] = 0

    def pixels(self, classes: Iterable[int], n: int) -> Tensor:
        """Returns the first n chains of each class as pixels, with shape (len * n, C, H, W)."""
        states = torch.cat([self.state[c, :n] for c in classes])
        if self.storage == "uint8":
            return dequantize(states)
        return self._held[0].decode(states.float())

    def _slots(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Chooses distinct slots: the j-th chain of a class takes entry j of a permutation."""
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.n_classes:
            raise ValueError(
                f"ChainStore: classes are 0 to {self.n_classes - 1}, got {int(y.min())} to "
                f"{int(y.max())}."
            )
        classes, inverse, count = torch.unique(y, return_inverse=True, return_counts=True)
        if len(y) and int(count.max()) > self.per_class:
            raise ValueError(
                f"ChainStore: {int(count.max())} chains of one class were asked for, the store "
                f"has {self.per_class}. Raise `per_class` or lower the batch size."
            )
        key = torch.rand(
            (len(classes), self.per_class), generator=generator, device=generator.device
        )
        order = inverse.argsort(stable=True)
        rank = torch.empty_like(y)
        first = count.cumsum(0) - count
        rank[order] = torch.arange(len(y), device=y.device) - first[inverse[order]]
        return key.to(y.device).argsort(1)[inverse, rank]

    def _pack(self, u: Tensor) -> Tensor:
        if self.storage == "uint8":
            return quantize(self._held[0].decode(u))
        return u.to(getattr(torch, self.storage))

    def _unpack(self, state: Tensor, generator: torch.Generator) -> Tensor:
        if self.storage == "uint8":
            return self._held[0].encode(dequantize(state, generator))
        return state.float()


def _rates(rate: Rates, n: int) -> Tensor:
    """Returns the restart rate of each slot, float64, with shape (n)."""
    first, last = rate if isinstance(rate, tuple | list) else (rate, rate)
    if not (0 <= first <= 1 and 0 <= last <= 1 and (first == last or first * last > 0)):
        raise ValueError(
            f"ChainStore: `restart_rate` is 0 to 1, or two such rates that are not 0, got {rate}."
        )
    if first == last:
        return torch.full((n,), float(first), dtype=torch.float64)
    return torch.logspace(math.log10(first), math.log10(last), n, dtype=torch.float64)
