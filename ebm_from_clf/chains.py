r"""Persistent chains, remembered by class.

The learning gradient needs samples of every :math:`p_c`. Chains that go on from update to update
(Younes, 1989; Tieleman, 2008) come close to them with few steps each. A chain belongs to one
class for its whole life: slot s of class c is drawn, moved and written back in place. With
probability r a drawn chain is begun anew, so that the store never forgets how to get from the
start to the data. A new chain makes b steps before it counts: counted at once, it is a negative
that can never be good enough, and the energy grows ever steeper where chains start. K steps a draw
make chains :math:`b + K / r` steps long on average.

With one r all chains are short, and what is learned holds for chains of that length alone. Given
two rates, each slot has its own (see :mod:`ebm_from_clf.restart`), and r above is their mean.

A batch may hold more images of a class than there are chains of it: the surplus begin at the
start and are forgotten.
"""

__all__ = ["ChainStore", "Storage"]

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .mapped import map_states
from .reference import Reference
from .restart import Rates, rates, restarts
from .slots import Draw, distinct, own
from .space import dequantize, quantize
from .start import Start

Storage = Literal["float32", "float16", "uint8"]


class ChainStore(nn.Module):
    """Creates a store of persistent chains; its `state_dict` holds all of them.

    No chain is begun before it is first drawn, so that a store of any size is made at once.

    With a file, the states lie in it and are mapped into memory: only what is drawn is read, and
    the file takes up space only for chains that were written, in the end K n C H W values. The
    `state_dict` then has their ages and when each was written, not the states: loading it begins
    anew the chains that were written since it was taken, and goes on with the others, in this
    process or in another one with the same file. The file outlives a process that is killed; if
    the machine crashed, remove it, and all chains begin anew.

    Arguments:
        reference: The reference whose whitened coordinates the chains live in.
        start: Where a chain begins.
        n_classes: The number of classes K.
        per_class: The number of chains of a class.
        restart_rate: The probability that a drawn chain is begun anew; of two, those of the
            first and the last slot of a class.
        burn_in: The Langevin steps that a new chain makes before it counts, at least; see
            :mod:`ebm_from_clf.synthesis`.
        storage: How a state is kept: u as `float32` or `float16`, or pixels in [0, 1] as
            `uint8`, for models on the box only.
        file: The file that states lie in, made if there is none; on a device other than the CPU
            each draw then waits for it. `None` for the memory of the device.

    Raises:
        ValueError: If a number is out of range, the storage is unknown, or the file holds
            something else.
    """

    state: Tensor
    age: Tensor
    rate: Tensor
    written: Tensor
    stamp: Tensor | None

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
        file: str | None = None,
    ) -> None:
        super().__init__()
        if n_classes < 1 or per_class < 1:
            raise ValueError(
                f"ChainStore: at least one class and one chain of each are needed, "
                f"got {n_classes} and {per_class}."
            )
        rate = rates(restart_rate, per_class)
        if burn_in < 0:
            raise ValueError(f"ChainStore: `burn_in` must be 0 or more, got {burn_in}.")
        if storage not in get_args(Storage):
            raise ValueError(f"ChainStore: `storage` is {get_args(Storage)}, got {storage!r}.")
        # Held, not owned: the energy saves the reference, the model folder the start.
        self._held = (reference, start.to(reference.mean.device))
        self.burn_in = burn_in
        self.storage: Storage = storage
        shape = (n_classes, per_class, *reference.shape)
        dtype, device = getattr(torch, storage), reference.mean.device
        self.register_buffer("rate", rate.to(device), persistent=False)
        self.register_buffer("age", torch.zeros(shape[:2], dtype=torch.int64, device=device))
        if file is None:
            self.register_buffer("state", torch.zeros(shape, dtype=dtype, device=device))
            self.register_load_state_dict_pre_hook(_check_storage)
            self.stamp = None
        else:
            # No buffers: they stay in the file, wherever the store is moved.
            self.stamp, self.state = map_states(file, shape, dtype)
            self.clock = int(self.stamp.max())
            self.register_buffer("written", self.stamp.to(device, copy=True))
            self.register_load_state_dict_post_hook(_forget)

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
        """The draws that a chain lives on average, at most 100: one over the mean rate."""
        return 1 / max(float(self.rate.mean()), 0.01)

    def draw(self, y: Tensor, *, generator: torch.Generator) -> Draw:
        """Takes one chain of each class index in y, no chain twice; new ones for a surplus.

        Arguments:
            y: The class indices, with shape (B).
            generator: The generator that chooses slots and restarts.

        Raises:
            ValueError: If a class does not exist.
        """
        reference, start = self._held
        slot, owned = distinct(y, (self.n_classes, self.per_class), generator)
        u = self._unpack(self.state[self._at(y, slot)].to(self.age.device), generator)
        anew = restarts(self.rate[slot], generator)
        fresh = (self.age[y, slot] == 0) | (slot < 0) | anew
        if fresh.any():
            u[fresh] = reference.encode(start(y[fresh], generator=generator))
        return Draw(u, y, slot, fresh, owned)

    def write(self, draw: Draw, u: Tensor) -> None:
        """Writes moved chains back to the slots that they were drawn from.

        Arguments:
            draw: What :meth:`draw` gave.
            u: Their new states, with the shape of `draw.u`.
        """
        y, slot, fresh, u = own(draw, draw.fresh, u)
        self._put(y, slot, u, torch.where(fresh, 1, self.age[y, slot] + 1))

    def begin_at(self, draw: Draw, where: Tensor, u: Tensor) -> None:
        """Lets some chains go on from other states when they are drawn next.

        Arguments:
            draw: What :meth:`draw` gave.
            where: Which of them, with shape (B).
            u: The states, with the shape of `draw.u`.
        """
        y, slot, where, u = own(draw, where, u)
        if self.stamp is not None:
            some = where.nonzero().flatten()
            self._put(y[some], slot[some], u[some], torch.ones_like(some))
            return
        # Without waiting for the device.
        at = self._at(y, slot)
        self.state[at] = torch.where(where.view(-1, 1, 1, 1), self._pack(u), self.state[at])
        self.age[at] = torch.where(where, 1, self.age[at])

    def begin_anew(self, draw: Draw, where: Tensor) -> None:
        """Begins some chains anew when they are drawn next.

        Arguments:
            draw: What :meth:`draw` gave.
            where: Which of them, with shape (B).
        """
        y, slot, where = own(draw, where)
        self.age[y, slot] = torch.where(where, 0, self.age[y, slot])

    def begin_all_anew(self, classes: Sequence[int] | None = None) -> None:
        """Begins all chains of some classes anew when they are drawn next.

        Arguments:
            classes: The classes; `None` for all.
        """
        self.age[slice(None) if classes is None else list(classes)] = 0

    def pixels(self, classes: Iterable[int], n: int) -> Tensor:
        """Returns the first n chains of each class as pixels, with shape (len * n, C, H, W).

        Those that begin when they are drawn next are the mean image of the reference.
        """
        classes, reference = list(classes), self._held[0]
        x = torch.cat([self.state[c, :n] for c in classes]).to(self.age.device)
        x = dequantize(x) if self.storage == "uint8" else reference.decode(x.float())
        begun = torch.cat([self.age[c, :n] for c in classes]) > 0
        return torch.where(begun[:, None, None, None], x, reference.mean)

    def _put(self, y: Tensor, slot: Tensor, u: Tensor, age: Tensor) -> None:
        """Writes states and ages."""
        at = self._at(y, slot)
        if self.stamp is not None:
            # Before the state: if the process ends in between, the chain must not pass for old.
            self.clock += 1
            self.stamp[at] = self.written[y, slot] = self.clock
        self.state[at] = self._pack(u).to(self.state.device)
        self.age[y, slot] = age

    def _at(self, y: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where chains lie, as an index on the device of the states."""
        return y.to(self.state.device), slot.to(self.state.device)

    def _pack(self, u: Tensor) -> Tensor:
        if self.storage == "uint8":
            return quantize(self._held[0].decode(u))
        dtype = getattr(torch, self.storage)
        # What is wild, not finite, may still come back.
        return u.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)

    def _unpack(self, state: Tensor, generator: torch.Generator) -> Tensor:
        if self.storage == "uint8":
            return self._held[0].encode(dequantize(state, generator))
        return state.float()


def _check_storage(store: ChainStore, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Refuses states of another storage, which would be rounded or wrapped without a word."""
    there = state.get(f"{prefix}state")
    if there is not None and there.dtype != store.state.dtype:
        raise ValueError(
            f"ChainStore: the state holds chains as {str(there.dtype).removeprefix('torch.')}, "
            f"this store has {store.storage}. Make it with the `storage` that the state has."
        )


def _forget(store: ChainStore, _: object) -> None:
    """Lets mapped chains begin anew that were written after the state just loaded was taken."""
    stamp = store.stamp.to(store.written.device)  # type: ignore[union-attr]
    store.age.masked_fill_(store.written != stamp, 0)
