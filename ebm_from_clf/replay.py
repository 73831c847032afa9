r"""Passes of an energy on a GPU, recorded once and played again.

.. math:: u \mapsto \left( U(u, y), \, -\partial_u U(u, y) \right)

Chains ask for these two again and again. A small network keeps a GPU waiting for the next of its
kernels; a CUDA graph has them all. What is played reads the weights where they lie, and so follows
what they learn. It is recorded anew if they lie elsewhere, and for batches of a size that was not
met: sizes are rounded up, so that there are few. Hooks and numbers that are not tensors are those
of the recording.

References:
    | Accelerating PyTorch with CUDA graphs (Nguyen et al., 2021),
    | https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
"""

__all__ = ["Recorder"]

import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .drift import energy_and_score

WARM_UP = 3
MOST = 32


class _Pass:
    """A recorded pass, with the places of what it reads and writes."""

    def __init__(self, energy: nn.Module, u: Tensor, y: Tensor, pool: Any) -> None:  # noqa: ANN401
        self.u, self.y = u, y
        before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                energy_and_score(energy, u, y)
            with _no_waiting():
                energy_and_score(energy, u, y)
        before.wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, which pin memory of batches, may go on.
            with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):
                self.value, self.score = energy_and_score(energy, u, y)
        except RuntimeError:
            torch.cuda.set_stream(before)  # torch leaves that of the recording in place
            raise

    def __call__(self, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        n = len(u)
        self.u[:n].copy_(u)
        self.y[:n].copy_(y)
        self.graph.replay()
        # The next recording that is played may write over them.
        return self.value[:n].clone(), self.score[:n].clone()


class Recorder:
    """Creates the memory of passes that were recorded; on a CPU it does nothing."""

    def __init__(self) -> None:
        self._passes: dict[Hashable, _Pass] = {}
        self._made_of: Hashable = None
        self._fails = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recorder":
        return Recorder()  # a graph cannot be copied, only recorded again

    def __reduce__(self) -> tuple[type["Recorder"], tuple[()]]:
        return Recorder, ()

    def of(self, energy: nn.Module, settings: Hashable) -> nn.Module:
        """Returns an energy whose passes are played, or the energy itself where they cannot be.

        Arguments:
            energy: The energy U(u, y), not random, each image of a batch on its own.
            settings: What its value depends on beside its tensors.
        """
        tensors = [*energy.parameters(), *energy.buffers()]
        if self._fails or {t.device.type for t in tensors} != {"cuda"}:
            return energy
        several = len({t.device for t in tensors}) > 1
        if (
            several
            or torch.is_autocast_enabled("cuda")
            or torch.cuda.is_current_stream_capturing()
        ):
            return energy
        self.follow((settings, *(_place(t) for t in tensors)))
        return _Played(energy, self)

    def follow(self, made_of: Hashable) -> None:
        """Forgets what was recorded of something else.

        Arguments:
            made_of: What passes are recorded of now.
        """
        if made_of != self._made_of:
            self._passes.clear()
            self._made_of = made_of

    def play(self, energy: nn.Module, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns energies and scores; arguments as for :func:`energy_and_score`."""
        if self._fails or not len(u):
            return energy_and_score(energy, u, y)
        n = _rounded(len(u))
        key = (n, u.shape[1:], u.dtype, y.shape[1:], y.dtype)
        if key not in self._passes:
            self._record(key, energy, _grown(u, n), _grown(y, n))
        if self._fails:
            return energy_and_score(energy, u, y)
        return self._passes[key](u, y)

    def _record(self, key: Hashable, energy: nn.Module, u: Tensor, y: Tensor) -> None:
        if len(self._passes) >= MOST:
            self._passes.clear()
        # They share their memory: one is played at a time.
        pool = next((known.graph.pool() for known in self._passes.values()), None)
        try:
            with torch.cuda.device(u.device):
                self._passes[key] = _Pass(energy, u, y, pool)
        except RuntimeError:
            # It waits for the GPU, or does something else that no graph can hold.
            self._passes.clear()
            self._fails = True


class _Played(nn.Module):
    """An energy whose passes are played by a recorder."""

    def __init__(self, energy: nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.energy = energy
        self._recorder = recorder

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        return self.energy(u, y)

    def confine(self, u: Tensor) -> Tensor:
        return self.energy.confine(u)  # type: ignore[operator]

    def energy_and_score(self, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._recorder.play(self.energy, u, y)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Makes waiting for the GPU an error; in a recording it would harm what comes after."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that it does not see all of it
            torch.cuda.set_sync_debug_mode("error")
            yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _place(tensor: Tensor) -> Hashable:
    """Returns where a tensor lies and how."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _rounded(n: int) -> int:
    """Returns a batch size rounded up, by a quarter at most."""
    step = max((1 << (n - 1).bit_length()) // 8, 1)
    return -(-n // step) * step


def _grown(tensor: Tensor, n: int) -> Tensor:
    """Returns n rows: those of a tensor, and its last again."""
    return tensor[torch.arange(n, device=tensor.device).clamp_max(len(tensor) - 1)].clone()
