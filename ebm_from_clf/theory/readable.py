"""Which networks have kinks that can be read: rectifiers with one of them, at 0.

Of max-pooling, and of rectifiers with two kinks or one elsewhere, :mod:`ebm_from_clf.theory.kinks`
knows nothing.
"""

__all__ = ["is_readable", "unreadable"]

import math

from torch import Tensor

from ..energy import ClassifierEnergy
from ..graph import Node
from .structure import Structure


def is_readable(energy: ClassifierEnergy, u: Tensor) -> bool:
    """Tells whether all that bends a score are rectifiers with one kink, at 0.

    Arguments:
        energy: The energy.
        u: Whitened coordinates, with shape (B, C, H, W).
    """
    if energy.smoothing is not None or energy.gauge == "log_softmax":
        return False
    graph = Structure.at(energy, u[:1]).graph
    bent = [node for node in graph.nodes if node.kind != "linear"]
    return graph.result is not None and bool(bent) and all(map(_has_one_kink, bent))


def unreadable(energy: ClassifierEnergy, u: Tensor) -> str:
    """Returns the first operation that has other kinks than one at 0, or an empty string.

    Arguments:
        energy: The energy.
        u: Whitened coordinates, with shape (B, C, H, W).
    """
    if energy.smoothing is not None:
        return ""
    for node in Structure.at(energy, u[:1]).graph.nodes:
        if node.kind in ("rectifier", "pool") and not _has_one_kink(node):
            return f"{node.operation.name} of {node.module or node.layer}"
    return ""


def _has_one_kink(node: Node) -> bool:
    finite = [kink for kink in node.kinks if math.isfinite(kink)]
    return node.kind == "rectifier" and finite == [0.0]
