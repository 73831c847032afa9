r"""The top-down pass: what a class draws, layer by layer, given what is switched on.

.. math::
    B^{(l-1)} = \sum_k B_k^{(l)} \, \delta_k \, w_k, \qquad
    f = \alpha + \langle B^{(0)}, x \rangle, \qquad
    \alpha = \sum_l \langle B^{(l)}, \beta^{(l)} \rangle

A network of rectifiers is linear on each piece of its input space. The piece is named by the
slopes :math:`\delta` of the rectifiers and the positions of the max-pools; given them the pass
from a class down to the image needs neither the image nor its differentiation. What the biases
and offsets :math:`\beta` give on the way adds up to :math:`\alpha`.

References:
    | A Theory of Generative ConvNet (Xie et al., 2016)
    | https://arxiv.org/abs/1602.03264
"""

__all__ = ["bottom_up", "down", "reach", "respond", "secants", "unit_down", "unit_up"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .graph import Graph
from .passes import Choice, Pattern, TopDown, pass_down, pass_up
from .recorder import Delta, Node
from .rectifier import pool_margin, secant_slopes


def down(graph: Graph, weights: Tensor, pattern: Pattern | Choice | None = None) -> TopDown:
    r"""Passes a score down to the input.

    Arguments:
        graph: The graph.
        weights: The weight of each class, with shape (B, K): the score is their sum over classes.
        pattern: The slopes and positions. `None` for those that the graph was read at. A function
            chooses them from what has come to each activation and max-pool.

    Raises:
        ValueError: If an operation is not linear on pieces, or on its own numbers alone.
    """
    _check(graph)
    return pass_down(graph, {graph.result or 0: weights}, len(weights), pattern)


def unit_down(graph: Graph, unit: int, weights: Tensor, pattern: Pattern) -> Tensor:
    """Passes what goes into one activation down to the input; returns its gradient there.

    Arguments:
        graph: The graph.
        unit: Where the activation stands in the pattern.
        weights: The weights of what goes into it, with its shape.
        pattern: The slopes and positions of all.

    Raises:
        ValueError: As for :func:`down`.
    """
    _check(graph)
    place = _unit(graph, unit).inputs[0]
    return pass_down(graph, {place: weights}, len(graph.logits), pattern).slope


def bottom_up(graph: Graph, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns how fast the logits change along a direction on the piece, with shape (B, K).

    And how fast what goes into each activation and max-pool does, in their order.

    Arguments:
        graph: The graph.
        direction: The direction, with the shape of the input.

    Raises:
        ValueError: As for :func:`down`.
    """
    return _up(graph, direction, graph.pattern, offsets=False)


def respond(graph: Graph, x: Tensor, pattern: Pattern) -> tuple[Tensor, list[Tensor]]:
    """Returns the logits of another input, with shape (B, K), as if it had a pattern.

    And what then goes into each activation and max-pool, in their order.

    Arguments:
        graph: The graph.
        x: The input, with the shape of that of the graph.
        pattern: The pattern.

    Raises:
        ValueError: As for :func:`down`.
    """
    return _up(graph, x, pattern, offsets=True)


def _up(
    graph: Graph, x: Tensor, pattern: Pattern, *, offsets: bool
) -> tuple[Tensor, list[Tensor]]:
    _check(graph)
    values, before = pass_up(graph, {0: x}, pattern, offsets=offsets)
    given = [r for r in before if r is not None]
    assert len(given) == len(before), "every activation comes of the input"
    return values[graph.result or 0], given


def unit_up(graph: Graph, unit: int, change: Tensor, pattern: Pattern) -> list[Tensor | None]:
    """Returns how what goes into each activation changes with what one of them returns.

    Arguments:
        graph: The graph.
        unit: Where that one stands in the pattern.
        change: The change of what it returns, with its shape.
        pattern: The slopes and positions of all.

    Raises:
        ValueError: As for :func:`down`.
    """
    _check(graph)
    return pass_up(graph, {_unit(graph, unit).output: change}, pattern, offsets=False)[1]


def reach(graph: Graph, direction: Tensor) -> Tensor:
    """Returns the largest t for which x + t direction is on the same piece, with shape (B).

    Infinite if no rectifier and no max-pool ever changes.

    Arguments:
        graph: The graph.
        direction: The direction, with the shape of the input.

    Raises:
        ValueError: If the network is not linear on pieces.
    """
    smooth = next((n for n in graph.nodes if n.kind == "activation"), None)
    if smooth is not None:
        raise ValueError(f"reach: {_place(smooth)} is smooth, so the network has no pieces.")
    _, speeds = bottom_up(graph, direction)
    found = direction.new_full((len(direction),), math.inf)
    with torch.no_grad():
        for node in graph.nodes:
            if node.unit is None:
                continue
            r, dr = graph.before[node.unit], speeds[node.unit]
            positions = graph.pattern[node.unit].positions
            if positions is not None:
                margin = pool_margin(node.operation, r, dr, positions)
            else:
                margin = _margin(r, dr, node.kinks)
            found = torch.minimum(found, margin.reshape(len(found), -1).amin(1))
    return found


def _margin(r: Tensor, dr: Tensor, kinks: Sequence[float]) -> Tensor:
    """Returns how far a rectifier stays between its kinks, with the shape of r."""
    found = torch.full_like(r, math.inf)
    for kink in kinks:
        # On a kink it is on the lower side.
        ahead = torch.where(r > kink, dr < 0, dr > 0)
        found = torch.where(ahead, torch.minimum(found, (kink - r) / dr), found)
    return found


def secants(graph: Graph) -> list[Delta]:
    r"""Returns the pattern of secants :math:`\delta = (h(r) - h(0)) / r` of the activations.

    With it :math:`f = \alpha + \langle B^{(0)}, x \rangle` is exact for smooth activations too,
    but :math:`B^{(0)}` is no gradient: never sample with it.

    Arguments:
        graph: The graph.
    """
    found = list(graph.pattern)
    with torch.no_grad():
        for node in graph.nodes:
            if node.kind == "activation" and node.unit is not None:
                slopes, offset = secant_slopes(node.operation, graph.before[node.unit])
                found[node.unit] = found[node.unit]._replace(slopes=slopes, offset=offset)
    return found


def _check(graph: Graph) -> None:
    if graph.result is None:
        raise ValueError("recursion: the logits do not depend on the image by known operations.")
    allowed = ("linear", "rectifier", "pool", "activation")
    spoiler = next((n for n in graph.nodes if n.kind not in allowed), None)
    if spoiler is not None:
        raise ValueError(
            f"recursion: {_place(spoiler)} is not linear on pieces ({spoiler.kind}). See `census` "
            "for all that is not; the energy's `reconstruct` works for every network."
        )


def _unit(graph: Graph, unit: int) -> Node:
    return next(node for node in graph.nodes if node.unit == unit)


def _place(node: Node) -> str:
    return f"{node.operation.name} in {node.module or 'the network'} ({node.layer})"
