r"""The transposes of the linear operations of a network.

.. math:: \langle L x, b \rangle = \langle x, L^\top b \rangle

A convolution has a transposed one, in evaluation mode a BatchNorm is a scale, an average spreads
what it gets, a sum copies it, and what was cut apart is put together again. None of this knows of
automatic differentiation: it is the top-down pass of the paper, written out.
"""

__all__ = ["MOVES", "TRANSPOSES", "Down", "scatter"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .operation import Operation, is_active

Down = Callable[[Tensor], list[Tensor]]


def scatter(b: Tensor, positions: Tensor, shape: torch.Size) -> Tensor:
    """Returns zeros with each entry of b added at its position in an image, with a shape given.

    Arguments:
        b: What is put back, with shape (\\*, h, w).
        positions: Where in the flat image, with the same shape.
        shape: The shape (\\*, H, W).
    """
    flat = b.new_zeros(shape).flatten(-2)
    return flat.scatter_add(-1, positions.flatten(-2), b.flatten(-2)).view(shape)


def _convolution(o: Operation) -> Down | None:
    x, weight = o.given["input"], o.given["weight"]
    if is_active(weight) or is_active(o.given["bias"]):
        return None
    n = x.ndim - 2
    stride, padding, dilation = (
        (list(o.given[key]) * n)[:n] for key in ("stride", "padding", "dilation")
    )
    transposed, groups = o.given["transposed"], o.given["groups"]

    def down(b: Tensor) -> list[Tensor]:
        lost = [0] * n
        if not transposed:
            # What a stride leaves over at the far border got nothing from above, but was there.
            lost = [
                x.shape[i + 2]
                - (b.shape[i + 2] - 1) * stride[i]
                + 2 * padding[i]
                - dilation[i] * (weight.shape[i + 2] - 1)
                - 1
                for i in range(n)
            ]
        return [
            torch.convolution(
                b, weight, None, stride, padding, dilation, not transposed, lost, groups
            )
        ]

    return down


def _batch_norm(o: Operation) -> Down | None:
    given = o.given
    x, variance = given["input"], given["running_var"]
    if given.get("training") or variance is None or len(o.places) != 1:
        return None
    eps = given["eps"] if "eps" in given else given["epsilon"]
    scale = (variance + eps).rsqrt()
    if given["weight"] is not None:
        scale = scale * given["weight"]
    scale = scale.view(-1, *[1] * (x.ndim - 2))
    return lambda b: [b * scale]


def _product(o: Operation) -> Down | None:
    """Matrix products x W and W x, with a bias or without."""
    name, factor = o.places[0][0], o.given.get("alpha", 1)
    if len(o.places) != 1 or (name == "self" and "beta" in o.given):
        return None
    if o.name == "linear":
        weight = o.given["weight"]
        return (lambda b: [b @ weight]) if name == "input" else None
    right = o.given["mat2"] if "mat2" in o.given else o.given["batch2"]
    if not is_active(right):
        return lambda b: [factor * (b @ right.mT)]
    left = next(o.given[key] for key in ("mat1", "batch1", "self") if key in o.given)
    return lambda b: [factor * (left.mT @ b)]


def _add(o: Operation) -> Down:
    """Sums and differences; `alpha` is a factor on the second term."""
    factor = o.given.get("alpha", 1)
    signs = {
        "add": {"self": 1, "other": factor},
        "sub": {"self": 1, "other": -factor},
        "rsub": {"self": -factor, "other": 1},
    }[o.name]
    shapes = o.shapes
    return lambda b: [
        (b if signs[name] == 1 else signs[name] * b).sum_to_size(shape)
        for (name, _), shape in zip(o.places, shapes, strict=True)
    ]


def _scale(o: Operation) -> Down | None:
    """Products with, and quotients by, what does not depend on the image."""
    other = o.given["other" if o.places[0][0] == "self" else "self"]
    if len(o.places) != 1 or (o.name == "div" and o.places[0][0] != "self"):
        return None
    if o.given.get("rounding_mode"):
        return None
    if o.name == "div":
        return lambda b: [(b / other).sum_to_size(o.shapes[0])]
    return lambda b: [(b * other).sum_to_size(o.shapes[0])]


def _weighted(o: Operation) -> Down | None:
    """A sum of one term and a product of two, of which one does not depend on the image."""
    names = [name for name, _ in o.places]
    if "tensor1" in names and "tensor2" in names:
        return None
    one = torch.ones((), dtype=o.like.dtype, device=o.like.device)
    value, other = o.given["value"], {"tensor1": "tensor2", "tensor2": "tensor1"}
    factors = [one if name == "self" else value * o.given[other[name]] for name in names]
    return lambda b: [
        (b * f).sum_to_size(shape) for f, shape in zip(factors, o.shapes, strict=True)
    ]


def _sum(o: Operation) -> Down:
    """Sums and means over some dimensions."""
    (shape,) = o.shapes
    dims = [d % len(shape) for d in o.given.get("dim") or range(len(shape))]
    count = math.prod(shape[d] for d in dims) if o.name == "mean" else 1
    kept = [1 if d in dims else n for d, n in enumerate(shape)]
    return lambda b: [(b.reshape(kept) / count).expand(shape)]


def _concatenate(o: Operation) -> Down:
    dim = o.given["dim"]
    indices = [k for _, k in o.places]

    def down(b: Tensor) -> list[Tensor]:
        if o.name == "stack":
            parts = b.unbind(dim)
        else:
            parts = b.split([t.shape[dim] for t in o.given["tensors"]], dim)
        return [parts[k] for k in indices if k is not None]

    return down


def _reshape(o: Operation) -> Down:
    (shape,) = o.shapes
    return lambda b: [b.reshape(shape)]


def _move(o: Operation) -> Down | None:
    """What only moves, copies or drops entries; where each came from is read by moving numbers."""
    (shape,) = o.shapes
    n = math.prod(shape)
    numbers = torch.arange(1, n + 1, dtype=torch.float64, device=o.like.device)
    zeros = torch.zeros(shape, dtype=torch.float64, device=o.like.device)
    # What is padded with, be it 0 or -inf, is no entry.
    origin = (o(numbers.view(shape)) - o(zeros)).nan_to_num(0).long().flatten()

    def down(b: Tensor) -> list[Tensor]:
        flat = b.new_zeros(n + 1).index_add(0, origin, b.flatten())
        return [flat[1:].view(shape)]

    return down


def _separable(o: Operation) -> Down | None:
    """Averages and interpolations act on rows and columns apart: P x Q', read from unit images."""
    (shape,) = o.shapes
    if len(shape) != 4:
        return None
    single = o.like.new_ones(1, *shape[1:])[:, :1]
    rows, columns = (torch.eye(n, dtype=single.dtype, device=single.device) for n in shape[2:])
    whole = o(single)[0, 0]
    row, column = divmod(int(whole.abs().argmax()), whole.shape[1])
    left = o(rows[:, None, :, None] * single)[:, 0, :, column].T / whole[row, column]
    right = o(columns[:, None, None, :] * single)[:, 0, row, :].T
    return lambda b: [left.T @ b @ right]


def _only(o: Operation) -> Down:
    dtype = o.like.dtype
    return lambda b: [(-b if o.name == "neg" else b).to(dtype)]


_BATCH_NORMS = (
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_batch_norm_no_update",
    "_native_batch_norm_legit_no_training",
)
_SHAPES = ("view", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze", "clone", "alias")
_MOVES = (
    "permute", "transpose", "t", "expand", "slice", "select", "split", "split_with_sizes",
    "unbind", "flip", "roll", "repeat", "index", "index_select", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "unfold", "constant_pad_nd",
    "reflection_pad2d", "replication_pad2d", "upsample_nearest2d",
)  # fmt: skip
_SEPARABLE = (
    "avg_pool2d", "_adaptive_avg_pool2d", "upsample_bilinear2d", "upsample_bicubic2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip
MOVES = frozenset((*_MOVES, "cat", "stack"))

TRANSPOSES: dict[str, Callable[[Operation], Down | None]] = {
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm", "linear"), _product),
    **dict.fromkeys(("add", "sub", "rsub"), _add),
    **dict.fromkeys(("mul", "div"), _scale),
    "addcmul": _weighted,
    **dict.fromkeys(("mean", "sum"), _sum),
    **dict.fromkeys(("cat", "stack"), _concatenate),
    **dict.fromkeys(_SHAPES, _reshape),
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(_SEPARABLE, _separable),
    **dict.fromkeys(("neg", "detach", "_to_copy"), _only),
}
