r"""In which precision the passes of a network are made.

.. math:: \tilde x = x (1 + \epsilon), \qquad |\epsilon| \le 2^{-9}

is what bfloat16 leaves of a number. By `torch.autocast` that is so for weights and activations of
the network, pass by pass; pixels, chains, scores, weights that learn and their averages stay in
float32. Chains learn against the network as they see it, and the errors of their drift are as
random as their noise and smaller. What is learned may be drawn from in either precision.

A processor that multiplies matrices in bfloat16 makes dense layers two to three times as fast, and
depthwise ones slower; another one has to imitate it, at ten times the cost. So it is tried.

References:
    | Mixed Precision Training (Micikevicius et al., 2018), https://arxiv.org/abs/1710.03740
"""

__all__ = ["Precision", "is_reduced", "passes"]

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from .energy import ClassifierEnergy
from .modes import frozen

Precision = Literal["float32", "bfloat16", "auto"]

WORTH = 0.8
PIXELS = 2**17
MOST = 64
TRIALS = 3


def passes(reduced: bool, device: torch.device) -> AbstractContextManager[object]:
    """Returns what to make the passes of a network in; the caller's own autocast stays.

    Weights are cast once while it is entered: leave it before they change.

    Arguments:
        reduced: Whether they are made in bfloat16.
        device: Where the network is.
    """
    return torch.autocast(device.type, torch.bfloat16) if reduced else nullcontext()


def is_reduced(precision: Precision, energy: ClassifierEnergy) -> bool:
    """Tells whether passes are made in bfloat16.

    Arguments:
        precision: The precision. `auto` is bfloat16 where the gradient of the network then takes
            less than .8 of the time, measured on some images. Not on a GPU, where passes in
            float32 are recorded, see :mod:`ebm_from_clf.replay`.
        energy: The energy of the network.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if energy.reference.mean.device.type != "cpu":
        return False
    # The first pass of each makes what others find.
    trials = [[_seconds(energy, reduced) for reduced in (False, True)] for _ in range(1 + TRIALS)]
    single, reduced = (min(column) for column in zip(*trials[1:], strict=True))
    return reduced < WORTH * single


def _seconds(energy: ClassifierEnergy, reduced: bool) -> float:
    """Returns how long the gradient of the logits takes, for as many images as matter."""
    mean = energy.reference.mean
    n = min(max(PIXELS // mean[0].numel(), 1), MOST)
    with torch.inference_mode(False), torch.enable_grad(), frozen(energy):
        x = mean.detach().expand(n, *mean.shape).clone().requires_grad_()
        begin = time.perf_counter()
        with passes(reduced, mean.device):
            logits = energy.classify(x)
        torch.autograd.grad(logits.sum(), x)
    return time.perf_counter() - begin
