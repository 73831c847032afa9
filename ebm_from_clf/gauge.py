r"""The gauge: which common shift of the logits is taken, and whose tilt is asked for.

.. math:: F_c = \gamma f_c - g, \qquad g = 0, \quad \log \sum_k e^{\gamma f_k}
    \quad \mathrm{or} \quad \frac{1}{K} \sum_k \gamma f_k

A softmax leaves g open, a function of the image. It changes every :math:`p_c` but not the
classifier.
"""

__all__ = ["Gauge", "check_classes", "check_gauge", "gauged", "pick"]

from typing import Literal, get_args

import torch
from torch import Tensor

Gauge = Literal["raw", "log_softmax", "centered"]


def gauged(scores: Tensor, gauge: Gauge) -> Tensor:
    """Returns the tilts of all classes, with shape (B, K).

    Arguments:
        scores: The logits times the gain, with shape (B, K).
        gauge: The common shift.
    """
    if gauge == "log_softmax":
        return scores.log_softmax(1)
    if gauge == "centered":
        return scores - scores.mean(1, keepdim=True)
    return scores


def pick(tilts: Tensor, y: Tensor) -> Tensor:
    """Returns the tilt of each image's class, or their weighted sum, with shape (B).

    Arguments:
        tilts: The tilts of all classes, with shape (B, K).
        y: The class indices, with shape (B), or weights of all classes, with shape (B, K).
    """
    if y.is_floating_point():
        return (tilts * y).sum(1)
    return tilts.gather(1, y[:, None].long())[:, 0]


def check_gauge(gauge: str) -> None:
    """Checks that there is such a gauge.

    Arguments:
        gauge: The gauge.

    Raises:
        ValueError: If there is not.
    """
    if gauge not in get_args(Gauge):
        raise ValueError(f"ClassifierEnergy: `gauge` is {get_args(Gauge)}, got {gauge!r}.")


def check_classes(y: Tensor, n: int, n_classes: int | None) -> None:
    """Checks class indices, or weights of all classes.

    Arguments:
        y: The class indices, or the weights.
        n: The number of images.
        n_classes: The number of classes, if it is known.

    Raises:
        TypeError: If `y` is no tensor.
        ValueError: If `y` is not one existing class index per image.
    """
    if not isinstance(y, Tensor):
        raise TypeError(
            f"ClassifierEnergy: `y` must be a tensor of class indices, got {type(y).__name__}. "
            "Give `torch.tensor([...])`, one class per image."
        )
    if y.is_floating_point() and y.shape == (n, n_classes):
        return
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if y.shape != (n,) or not whole:
        raise ValueError(
            f"ClassifierEnergy: `y` must hold one class index per image, shape ({n},), or "
            f"a weight of every class, got {y.dtype} of shape {tuple(y.shape)}. For every "
            "class at once, call `logits`."
        )
    if n_classes and n and not 0 <= int(y.min()) <= int(y.max()) < n_classes:
        raise ValueError(
            f"ClassifierEnergy: classes are 0 to {n_classes - 1}, got "
            f"{int(y.min())} to {int(y.max())}."
        )
