r"""The non-linear operations of a network that act on each number alone, and max-pools.

.. math:: h(r) = \delta \, r + \beta

A rectifier is linear between its kinks, so its slope :math:`\delta` and its offset :math:`\beta`
are all that a piece of the network says of it; a max-pool is linear while the same positions are
largest. For a smooth activation the same two numbers give the tangent, :math:`\delta = h'(r)`, or
the secant, :math:`\delta = (h(r) - h(0)) / r`, which has the same offset h(0) everywhere.
"""

__all__ = [
    "ACTIVATIONS",
    "RECTIFIERS",
    "activation_slopes",
    "pool_margin",
    "secant_slopes",
    "sides",
]

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .operation import Operation

Slopes = tuple[tuple[float, ...], Tensor]


def _relu(o: Operation, r: Tensor) -> Slopes:
    return (0.0,), r > 0


def _leaky(o: Operation, r: Tensor) -> Slopes:
    slope = o.given["weight"] if "weight" in o.given else o.given["negative_slope"]
    return (0.0,), torch.where(r > 0, torch.ones_like(r), slope)


def _hardtanh(o: Operation, r: Tensor) -> Slopes:
    low, high = float(o.given["min_val"]), float(o.given["max_val"])
    return (low, high), (r > low) & (r < high)


def _clamp(o: Operation, r: Tensor) -> Slopes | None:
    low, high = o.given.get("min"), o.given.get("max")
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    return (float(low), float(high)), (r >= low) & (r <= high)


def _hardsigmoid(o: Operation, r: Tensor) -> Slopes:
    return (-3.0, 3.0), ((r > -3) & (r < 3)).to(r) / 6


def _abs(o: Operation, r: Tensor) -> Slopes:
    return (0.0,), r.sign()


RECTIFIERS: dict[str, Callable[[Operation, Tensor], Slopes | None]] = {
    "relu": _relu,
    "leaky_relu": _leaky,
    "_prelu_kernel": _leaky,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "hardsigmoid": _hardsigmoid,
    "abs": _abs,
}


def sides(operation: Operation, r: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the slopes of a rectifier below 0 and above, each with the shape of r.

    Arguments:
        operation: The rectifier, with no other kink between -1 and 1.
        r: What goes into it.
    """
    one = torch.ones_like(r)
    found = [RECTIFIERS[operation.name](operation, at) for at in (-one, one)]
    low, high = (slopes.to(r) for _, slopes in filter(None, found))
    return low, high


ACTIVATIONS = frozenset(
    """silu gelu sigmoid tanh hardswish elu softplus mish exp expm1 log log1p sqrt rsqrt square
    reciprocal sin cos erf log_sigmoid_forward""".split()
)


def activation_slopes(operation: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
    """Returns the slopes h'(r) of a smooth activation, with the shape of r.

    Arguments:
        operation: The activation h.
        r: What goes into it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        r = r.detach().clone().requires_grad_()
        (slopes,) = torch.autograd.grad(operation(r).sum(), r)
    return slopes


def secant_slopes(operation: Callable[[Tensor], Tensor], r: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the slopes (h(r) - h(0)) / r of an activation, and its offset h(0).

    Arguments:
        operation: The activation h.
        r: What goes into it.
    """
    offset = operation(torch.zeros_like(r))
    quotient = (operation(r) - offset) / torch.where(r == 0, 1, r)
    return torch.where(r == 0, activation_slopes(operation, torch.zeros_like(r)), quotient), offset


def pool_margin(o: Operation, r: Tensor, dr: Tensor, positions: Tensor) -> Tensor:
    """Returns how far a max-pool keeps its positions, with the shape of the pooled image.

    Arguments:
        o: The max-pool.
        r: What goes into it, with shape (B, C, H, W).
        dr: How fast that changes, with the same shape.
        positions: The positions in the flat image that are largest, with shape (B, C, h, w).
    """
    kernel, padding, dilation = (
        (list(o.given[key]) * 2)[:2] for key in ("kernel_size", "padding", "dilation")
    )
    stride = (list(o.given["stride"] or kernel) * 2)[:2]
    size = positions.shape[2:]
    edges = []
    for i in (1, 0):
        last = stride[i] * (size[i] - 1) + dilation[i] * (kernel[i] - 1)
        edges += [padding[i], max(0, last + 1 - r.shape[i + 2] - padding[i])]
    best, speed = (
        v.flatten(2).gather(2, positions.flatten(2)).view_as(positions) for v in (r, dr)
    )
    padded, moving = functional.pad(r, edges, value=-math.inf), functional.pad(dr, edges)
    found = torch.full_like(best, math.inf)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows, columns = (
                slice(at * d, at * d + s * (n - 1) + 1, s)
                for at, d, s, n in zip((i, j), dilation, stride, size, strict=True)
            )
            window = (..., rows, columns)
            gap, gain = best - padded[window], moving[window] - speed
            # Of two that are equal and stay so the first is taken, whichever grows.
            found = torch.where(gain > 0, torch.minimum(found, gap / gain), found)
    return found
