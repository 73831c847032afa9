"""The operations of a forward pass, noted as torch dispatches them.

An operation is noted if an argument of it depends on the image, with the module that called it.
Tensors are known by where they lie in their storage, so that views and changes in place are
followed; one that was changed through another view of it is no longer known, and what is done
with it then is not read.
"""

__all__ = ["Delta", "Node", "Recorder"]

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from .operation import Kind, Operation, short_name, spoiler, writes
from .rectifier import ACTIVATIONS, RECTIFIERS
from .transpose import MOVES, TRANSPOSES, Down

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


class Recorder(TorchDispatchMode):
    """Notes the operations on what depends on the image, while it is entered.

    `nodes` are the operations; `units` the deltas of activations and max-pools with what computes
    them and what goes into them; `stack` the modules that are being called, kept by the caller.

    Arguments:
        x: The images, with shape (B, C, H, W); they have the number 0.
    """

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
        self._n = len(x)
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
        if any(value.is_complex() for value in (*values, results[0])):
            return node
        found = RECTIFIERS[name](o, r) if name in RECTIFIERS and len(values) == 1 else None
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
        if down is not None and self._keeps_images(o, results[0]):
            # Before a max-pool some pad with -inf, of which nothing comes.
            offset = o(*o.zeros()).nan_to_num(0, 0, 0)
            kept = offset if offset.any() else None
            return node._replace(kind="linear", down=down, offset=kept)
        return node._replace(kind=spoiler(name, len(values)))

    def _keeps_images(self, o: Operation, result: Tensor) -> bool:
        """Tells whether what comes out lies image by image, as what went in does."""
        if not result.is_floating_point() or any(s.numel() % self._n for s in o.shapes):
            return False
        if o.name not in MOVES:
            return True
        numbers = torch.arange(1, self._n + 1, dtype=o.like.dtype, device=o.like.device)
        marked = [
            numbers.repeat_interleave(shape.numel() // self._n).view(shape) for shape in o.shapes
        ]
        found = (o(*marked) - o(*o.zeros())).nan_to_num(0)
        if found.numel() % self._n:
            return False
        rows = found.reshape(self._n, -1)
        return bool(((rows == numbers[:, None]) | (rows == 0)).all())

    def _unit(self, node: Node, kind: Kind, delta: Delta, r: Tensor) -> Node:
        # A copy: what comes later may change it in place.
        self.units.append((delta, node.operation, r.clone()))
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
