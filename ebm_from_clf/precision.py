r"""In which precision the passes of a network are made.

.. math:: \tilde x = x (1 + \epsilon), \qquad |\epsilon| \le 2^{-9}

is what bfloat16 leaves of a number. By `torch.autocast` that is so for weights and activations of
the network, pass by pass; pixels, chains, scores, weights that learn and their averages stay in
float32. Chains learn against the network as they see it, and the errors of their drift are as
random as their noise and smaller. What is learned is drawn from in either precision.

References:
    | Mixed Precision Training (Micikevicius et al., 2018), https://arxiv.org/abs/1710.03740
"""

__all__ = ["Precision", "is_reduced", "passes"]

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "auto"]


def passes(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns what to make the passes of a network in; the caller's own autocast stays.

    Weights are cast once while it is entered: leave it before they change.

    Arguments:
        precision: The precision.
        device: Where the network is.
    """
    if not is_reduced(precision, device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def is_reduced(precision: Precision, device: torch.device) -> bool:
    """Tells whether passes are made in bfloat16.

    Arguments:
        precision: The precision. `auto` is bfloat16 where a processor multiplies matrices in it
            (Intel's AMX) and so is faster; others are not, or much slower, and on a GPU passes
            in float32 are recorded, see :mod:`ebm_from_clf.replay`.
        device: Where the network is.
    """
    if precision != "auto":
        return precision == "bfloat16"
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and has_tiles is not None and has_tiles()
