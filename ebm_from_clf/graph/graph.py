"""A network read as a graph of operations, in one forward pass.

What the network is made of is not looked at, only what it does. So functions, operators, changes
in place and branches of any forward are read like layers. Nothing of the network is changed, and
nothing of its image is kept but what goes into its activations.
"""

__all__ = ["Graph", "full_precision", "read"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..modes import evaluation_mode
from .operation import Operation
from .recorder import Delta, Node, Recorder
from .rectifier import activation_slopes


class Graph(NamedTuple):
    """A network read at a batch of inputs; read it again after its weights have changed.

    Arguments:
        nodes: The operations, in their order; the input has the number 0.
        pattern: The deltas of the activations and max-pools, in their order.
        before: What goes into each of them.
        result: The number of the logits. `None` if they do not depend on the input.
        logits: The logits, with shape (B, K).
    """

    nodes: list[Node]
    pattern: tuple[Delta, ...]
    before: tuple[Tensor, ...]
    result: int | None
    logits: Tensor


def read(network: nn.Module, x: Tensor) -> Graph:
    """Reads the graph of a network, in evaluation mode.

    Arguments:
        network: The network.
        x: Its inputs, with shape (B, C, H, W).
    """
    with torch.inference_mode(False), full_precision(x.device), evaluation_mode(network):
        x = x.detach().clone()
        recorder = Recorder(x)
        with _called(network, recorder.stack), recorder:
            logits = network(x)
    pattern = [
        delta if delta.slopes is not None or delta.positions is not None else _tangent(delta, o, r)
        for delta, o, r in recorder.units
    ]
    before = tuple(r for _, _, r in recorder.units)
    return Graph(recorder.nodes, tuple(pattern), before, recorder.number(logits), logits)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes without gradients and in the precision that numbers have.

    Arguments:
        device: The device.
    """
    with (
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        products = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = products


def _tangent(delta: Delta, operation: Operation, r: Tensor) -> Delta:
    slopes = activation_slopes(operation, r)
    with torch.no_grad():
        return delta._replace(slopes=slopes, offset=operation(r) - slopes * r)


@contextmanager
def _called(network: nn.Module, stack: list[tuple[str, str]]) -> Iterator[None]:
    """Keeps a stack of the modules that are being called."""
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # some of them take no hooks; their operations are read all the same
        entry = (name, type(module).__name__)
        hooks.append(module.register_forward_pre_hook(lambda *_, e=entry: stack.append(e)))
        hooks.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
