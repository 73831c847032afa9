"""One operation of a forward pass, as it was called, apart from the numbers that went in.

An operation is one that torch itself dispatches, such as `aten.convolution`. An argument is active
if it depends on the image. In its place stands an empty tensor of its shape, so that what is kept
of an operation knows the weights and the settings but not the image.
"""

__all__ = ["Kind", "Operation", "is_active", "short_name", "spoiler", "writes"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._ops import OpOverload

Kind = Literal[
    "linear", "rectifier", "pool", "activation", "gate", "attention", "normalisation", "unread"
]
ATTENTION = ("_softmax", "_safe_softmax", "_log_softmax", "_scaled_dot_product")
NORMALISATION = ("layer_norm", "group_norm", "rms_norm", "batch_norm", "vector_norm", "var", "std")


@dataclass(frozen=True)
class Operation:
    """One operation, as a function of its active arguments.

    Arguments:
        name: Its name without that of the overload, and without the mark of one in place.
        function: What computes it, out of place. `None` if only the one in place exists.
        given: Its arguments by name, active ones as empty tensors of their shape.
        places: Where the active arguments stand: a name, and an index if it names a list.
        like: An empty tensor of the dtype and on the device of the active arguments.
        result: Which of several results is meant.
    """

    name: str
    function: OpOverload | None
    given: dict[str, Any]
    places: tuple[tuple[str, int | None], ...]
    like: Tensor
    result: int = 0

    @classmethod
    def read(
        cls,
        function: OpOverload,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        active: Callable[[Tensor], bool],
    ) -> tuple["Operation", list[Tensor]]:
        """Returns an operation and its active arguments.

        Arguments:
            function: What was called.
            args: Its arguments without names.
            kwargs: Its arguments with names.
            active: Whether a tensor depends on the image.
        """
        given: dict[str, Any] = {}
        places: list[tuple[str, int | None]] = []
        values: list[Tensor] = []

        def put(value: Any, name: str, index: int | None) -> Any:  # noqa: ANN401
            if not (isinstance(value, Tensor) and active(value)):
                return value
            places.append((name, index))
            values.append(value)
            return torch.empty(value.shape, dtype=value.dtype, device="meta")

        for i, argument in enumerate(function._schema.arguments):
            name = argument.name
            value = args[i] if i < len(args) else kwargs.get(name, argument.default_value)
            if isinstance(value, list | tuple):
                given[name] = [put(item, name, k) for k, item in enumerate(value)]
            else:
                given[name] = put(value, name, None)
        found = cls(
            short_name(function), _twin(function), given, tuple(places), values[0].new_empty(0)
        )
        return found, values

    def __call__(self, *values: Tensor) -> Tensor:
        """Returns the result for other active arguments.

        Arguments:
            values: The active arguments, in the order of `places`.
        """
        given = dict(self.given)
        for (name, index), value in zip(self.places, values, strict=True):
            if index is None:
                given[name] = value
            else:
                given[name] = [*given[name][:index], value, *given[name][index + 1 :]]
        assert self.function is not None
        schema = self.function._schema.arguments
        args = [given[a.name] for a in schema if not a.kwarg_only]
        found = self.function(*args, **{a.name: given[a.name] for a in schema if a.kwarg_only})
        return found[self.result] if isinstance(found, list | tuple) else found

    @property
    def shapes(self) -> list[torch.Size]:
        """The shapes of the active arguments."""
        return [
            (self.given[name] if index is None else self.given[name][index]).shape
            for name, index in self.places
        ]

    def zeros(self) -> list[Tensor]:
        """Returns active arguments that are all 0."""
        return [self.like.new_zeros(shape) for shape in self.shapes]

    def part(self, result: int) -> "Operation":
        """Returns the same operation with another of its results meant."""
        return replace(self, result=result)


def is_active(value: object) -> bool:
    """Tells whether an argument of an operation depends on the image."""
    return isinstance(value, Tensor) and value.device.type == "meta"


def short_name(function: OpOverload) -> str:
    """Returns the name of an operation, the same for the one in place."""
    space, _, name = function._schema.name.partition("::")
    if writes(function) and not name.startswith("_"):
        name = name.removesuffix("_")
    return name if space == "aten" else f"{space}.{name}"


def writes(function: OpOverload) -> bool:
    """Tells whether an operation changes its first argument in place."""
    arguments = function._schema.arguments
    return bool(arguments and arguments[0].alias_info and arguments[0].alias_info.is_write)


def _twin(function: OpOverload) -> OpOverload | None:
    """Returns the operation out of place that computes the same."""
    if not writes(function):
        return function
    packet = getattr(torch.ops.aten, short_name(function), None)
    return getattr(packet, function._overloadname, None)


def spoiler(name: str, n: int) -> Kind:
    """Returns the kind of an operation that is neither linear nor acts on each number alone.

    Arguments:
        name: Its short name.
        n: The number of its active arguments.
    """
    if name.startswith(ATTENTION) or (n > 1 and name in ("mm", "bmm", "baddbmm")):
        return "attention"
    if any(word in name for word in NORMALISATION):
        return "normalisation"
    return "gate" if name in ("mul", "div", "addcmul") else "unread"
