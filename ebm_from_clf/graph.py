"""A network read as a graph of operations, in one forward pass.

What the network is made of is not looked at, only what it does: every operation whose arguments
depend on the image is noted as torch dispatches it, with the module that called it. So functions,
operators, changes in place and branches of any forward are read like layers. Nothing of the
network is changed, and nothing of its image is kept but what goes into its activations.
"""

__all__ = ["Delta", "Graph", "Node", "read"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from .modes import evaluation_mode
from .operation import Kind, Operation, short_name, spoiler, writes
from .rectifier import ACTIVATIONS, RECTIFIERS, activation_slopes
from .transpose import TRANSPOSES, Down

# They read shapes, or make tensors of the shape of another.
SILENT = ("empty", "zeros", "ones", "new_", "full", "sym_", "rand", "_assert")


class Delta(NamedTuple):
    r"""What one activation does on the piece, :math:`\delta r + \beta`, or one max-pool.

    Arguments:
        module: The name of the module that it is called in.
        slopes: The slopes, with the shape of what goes in; true and false for 1 and 0.
        offset: The offset, of that shape. `None` for 0.
        positions: The positions in the flat image that a max-pool takes, with the shape of what
            comes out.
    """

    module: str
    slopes: Tensor | None = None
    offset: Tensor | None = None
    positions: Tensor | None = None


class Node(NamedTuple):
    """One operation of the graph.

    Arguments:
        operation: The operation.
        kind: What it is.
        module: The name of the module that called it.
        layer: The type of that module.
        inputs: The numbers of its active arguments.
        output: The number of its result.
        down: Its transpose, if it is linear.
        offset: What it returns for zeros, if it is linear. `None` for 0.
        unit: Where its delta stands in a pattern. `None` without one.
        kinks: Where the slope of a rectifier changes.
    """

    operation: Operation
    kind: Kind
    module: str
    layer: str
    inputs: tuple[int, ...]
    output: int
    down: Down | None = None
    offset: Tensor | None = None
    unit: int | None = None
    kinks: tuple[float, ...] = ()


class Graph(NamedTuple):
    """A network read at a batch of inputs.

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
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(x.device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        evaluation_mode(network),
    ):
        x = x.detach().clone()
        recorder = _Recorder(x)
        with _called(network, recorder.stack), recorder:
            logits = network(x)
    pattern = [
        delta if delta.slopes is not None or delta.positions is not None else _tangent(delta, o, r)
        for delta, o, r in recorder.units
    ]
    before = tuple(r for _, _, r in recorder.units)
    return Graph(recorder.nodes, tuple(pattern), before, recorder.number(logits), logits)


def _tangent(delta: Delta, operation: Operation, r: Tensor) -> Delta:
    slopes = activation_slopes(operation, r)
    with torch.no_grad():
        return delta._replace(slopes=slopes, offset=operation(r) - slopes * r)


@contextmanager
def _called(network: nn.Module, stack: list[tuple[str, str]]) -> Iterator[None]:
    """Keeps a stack of the modules that are being called."""
    hooks = []
    for name, module in network.named_modules():
        entry = (name, type(module).__name__)
        hooks.append(module.register_forward_pre_hook(lambda *_, e=entry: stack.append(e)))
        hooks.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Recorder(TorchDispatchMode):
    """Notes operations on what depends on the image."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.units: list[tuple[Delta, Operation, Tensor]] = []
        self.stack: list[tuple[str, str]] = []
        self._numbers: dict[tuple[Any, ...], tuple[int, int]] = {}
        self._count = 0
        # Tensors of one storage are told apart by where they lie in it, and those that were read
        # before a change in place by the number of changes.
        self._changes: dict[int, int] = {}
        self._storages: list[Any] = []
        self._name(x)

    def number(self, value: Tensor) -> int | None:
        """Returns the number of a tensor, `None` if it is not known."""
        number, changes = self._numbers.get(_place(value), (None, 0))
        return number if changes == self._changes.get(_storage(value), 0) else None

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if not any(self._is_active(value) for value in _tensors([*args, *kwargs.values()])):
            return func(*args, **kwargs)
        if short_name(func).startswith(SILENT):
            return func(*args, **kwargs)
        operation, values = Operation.read(func, args, kwargs, self._is_active)
        numbers = [self.number(value) for value in values]
        if writes(func):
            values = [value.clone() for value in values]
        found = func(*args, **kwargs)
        if writes(func):
            self._hold(args[0])
            self._changes[_storage(args[0])] += 1
        self._note(operation, values, numbers, found)
        return found

    def _note(
        self,
        operation: Operation,
        values: list[Tensor],
        numbers: list[int | None],
        found: Any,  # noqa: ANN401
    ) -> None:
        known = tuple(n for n in numbers if n is not None)
        results = found if isinstance(found, list | tuple) else [found]
        whole = operation.name in ("split", "split_with_sizes", "unbind", "chunk")
        module, layer = self.stack[-1] if self.stack else ("", "")
        for k, result in enumerate(results):
            number = self._name(result) if isinstance(result, Tensor) and result.numel() else -1
            if k and not whole:
                continue
            node = Node(operation.part(k), "unread", module, layer, known, number)
            if number >= 0 and len(known) == len(numbers) and operation.function is not None:
                node = self._read(node, values, results)
            self.nodes.append(node)

    def _read(self, node: Node, values: list[Tensor], results: Any) -> Node:  # noqa: ANN401
        """Finds out what an operation is, and its slopes or its transpose."""
        o, r, name = node.operation, values[0], node.operation.name
        if name == "as_strided" and r.shape == results[0].shape and torch.equal(r, results[0]):
            # The strides of a dimension of length 1.
            return node._replace(kind="linear", down=lambda b: [b], operation=_same(o))
        if name in RECTIFIERS and len(values) == 1:
            found = RECTIFIERS[name](o, r)
            if found is not None:
                kinks, slopes = found
                rest = results[0] - slopes * r
                delta = Delta(node.module, slopes, rest if rest.any() else None)
                return self._unit(node, "rectifier", delta, r)._replace(kinks=kinks)
        if name == "max_pool2d_with_indices":
            return self._unit(node, "pool", Delta(node.module, positions=results[1]), r)
        if len(values) == 1 and (
            name in ACTIVATIONS or (name == "pow" and not isinstance(o.given["exponent"], Tensor))
        ):
            return self._unit(node, "activation", Delta(node.module), r)
        down = TRANSPOSES[name](o) if name in TRANSPOSES else None
        if down is not None and results[0].is_floating_point():
            # Before a max-pool some pad with -inf, of which nothing comes.
            offset = o(*o.zeros()).nan_to_num(0, 0, 0)
            kept = offset if offset.any() else None
            return node._replace(kind="linear", down=down, offset=kept)
        return node._replace(kind=spoiler(name, len(values)))

    def _unit(self, node: Node, kind: Kind, delta: Delta, r: Tensor) -> Node:
        self.units.append((delta, node.operation, r))
        return node._replace(kind=kind, unit=len(self.units) - 1)

    def _is_active(self, value: Tensor) -> bool:
        return _storage(value) in self._changes

    def _hold(self, value: Tensor) -> int:
        """Holds a storage, or another would be taken for it; returns how often it was changed."""
        if _storage(value) not in self._changes:
            self._storages.append(value.untyped_storage())
        return self._changes.setdefault(_storage(value), 0)

    def _name(self, value: Tensor) -> int:
        self._numbers[_place(value)] = (self._count, self._hold(value))
        self._count += 1
        return self._count - 1


def _same(o: Operation) -> Operation:
    function = torch.ops.aten.alias.default
    return Operation("alias", function, {"self": o.given["self"]}, (("self", None),), o.like)


def _tensors(values: Any) -> Iterator[Tensor]:  # noqa: ANN401
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _place(value: Tensor) -> tuple[Any, ...]:
    return (_storage(value), value.storage_offset(), value.shape, value.stride(), value.dtype)
