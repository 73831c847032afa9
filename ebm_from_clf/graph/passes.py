r"""Passing numbers through a graph, from a score down to the image and up again.

.. math::
    b^{(l-1)} = W^\top \delta \, b^{(l)}, \qquad r^{(l)} = W \, \delta \, r^{(l-1)} + \beta

from any results to all that they come of, or that come of them.
"""

__all__ = ["Choice", "Pattern", "TopDown", "pass_down", "pass_up"]

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from .graph import Graph, full_precision
from .recorder import Delta, Node
from .transpose import scatter

Pattern = Sequence[Delta]
Choice = Callable[[int, Tensor], Delta]


class TopDown(NamedTuple):
    r"""What comes down from a score.

    Arguments:
        alpha: The score where the input is 0, :math:`\alpha`, with shape (B).
        slope: What comes to the input, :math:`B^{(0)}`, with its shape.
        above: What comes to each activation and max-pool, :math:`B^{(l)}`, in their order, with
            the shape of what these return. `None` for those that the score does not depend on.
    """

    alpha: Tensor
    slope: Tensor
    above: tuple[Tensor | None, ...]


def pass_down(
    graph: Graph, messages: dict[int, Tensor], n: int, pattern: Pattern | Choice | None
) -> TopDown:
    """Passes messages to some results down to the input.

    Arguments:
        graph: The graph.
        messages: The messages, by the number of the result; they are used up.
        n: The number of images.
        pattern: The slopes and positions, or what chooses them. `None` for those of the graph.

    Raises:
        ValueError: If the pattern does not fit the graph.
    """
    given = graph.pattern if pattern is None else pattern
    _check_length(graph, given)
    choose = given if callable(given) else lambda unit, _: given[unit]
    above: list[Tensor | None] = [None] * len(graph.pattern)
    like = next(iter(messages.values()))
    alpha = like.new_zeros(n)
    with full_precision(like.device):
        for node in reversed(graph.nodes):
            message = messages.pop(node.output, None)
            if message is None:
                continue
            delta = None
            if node.unit is not None:
                above[node.unit], delta = message, choose(node.unit, message)
                _check_shape(graph, node.unit, delta)
            below, offset = _through(node, message, delta)
            if offset is not None:
                alpha = alpha + (message * offset).reshape(n, -1).sum(1)
            for number, part in zip(node.inputs, below, strict=True):
                messages[number] = messages[number] + part if number in messages else part
    return TopDown(alpha, messages[0], tuple(above))


def _check_length(graph: Graph, pattern: Pattern | Choice) -> None:
    if not callable(pattern) and len(pattern) != len(graph.pattern):
        raise ValueError(
            f"recursion: the pattern must have {len(graph.pattern)} deltas, one of each "
            f"activation and max-pool, got {len(pattern)}. Take that of the same network."
        )


def _check_shape(graph: Graph, unit: int, delta: Delta) -> None:
    """Checks that what one activation or max-pool does is of the shape that it has."""
    for name in ("slopes", "positions"):
        own, given = (getattr(d, name) for d in (graph.pattern[unit], delta))
        wanted, found = (None if v is None else tuple(v.shape) for v in (own, given))
        if wanted != found:
            raise ValueError(
                f"recursion: the {name} of delta {unit} must have shape {wanted}, got {found}. "
                "Take the pattern of as many images, of the same network."
            )


def _through(node: Node, b: Tensor, delta: Delta | None) -> tuple[list[Tensor], Tensor | None]:
    """Passes one operation from above, and returns its offset."""
    if node.down is not None:
        return node.down(b), node.offset
    assert delta is not None
    if delta.positions is not None:
        return [scatter(b, delta.positions, node.operation.shapes[0])], None
    assert delta.slopes is not None
    return [b * delta.slopes], delta.offset


def pass_up(
    graph: Graph, values: dict[int, Tensor], pattern: Pattern, *, offsets: bool
) -> tuple[dict[int, Tensor], list[Tensor | None]]:
    """Passes some results up, with what biases and offsets add or without.

    Returns all results that come of them, and what then goes into each activation and max-pool,
    `None` where nothing comes.

    Arguments:
        graph: The graph.
        values: The results by their number, to which the others are added; what does not come of
            them is 0.
        pattern: The slopes and positions.
        offsets: Whether biases and offsets add.

    Raises:
        ValueError: If the pattern does not fit the graph.
    """
    _check_length(graph, pattern)
    before: list[Tensor | None] = [None] * len(pattern)
    with full_precision(next(iter(values.values())).device):
        for node in graph.nodes:
            if node.output in values or not any(n in values for n in node.inputs):
                continue
            if all(n in values for n in node.inputs):
                given = [values[n] for n in node.inputs]
            else:
                zeros = zip(node.inputs, node.operation.zeros(), strict=True)
                given = [values.get(n, zero) for n, zero in zeros]
            if node.unit is not None:
                _check_shape(graph, node.unit, pattern[node.unit])
                before[node.unit] = given[0]
                values[node.output] = _respond(given[0], pattern[node.unit], offsets=offsets)
                continue
            found, offset = node.operation(*given), node.offset
            values[node.output] = found if offsets or offset is None else found - offset
    return values, before


def _respond(r: Tensor, delta: Delta, *, offsets: bool) -> Tensor:
    """Returns what an activation or a max-pool makes of r by its delta."""
    if delta.positions is not None:
        flat = r.flatten(-2).gather(-1, delta.positions.flatten(-2))
        return flat.view(delta.positions.shape)
    assert delta.slopes is not None
    found = r * delta.slopes
    return found + delta.offset if offsets and delta.offset is not None else found
