r"""In which precision the passes of a network are made.

.. math:: \tilde x = x (1 + \epsilon), \qquad |\epsilon| \le 2^{-8}

is what bfloat16 leaves of a number. By `torch.autocast` that is so for weights and activations of
the network, pass by pass; pixels, chains, scores, weights that learn and their averages stay in
float32. The drift is then that of the network as it is rounded: chains learn against it as it is,
and what was learned may be drawn from in either precision.

Dense layers are faster in bfloat16 where a processor multiplies matrices in it, depthwise ones are
not; one that has to imitate it is many times slower. So it is tried.

References:
    | Mixed Precision Training (Micikevicius et al., 2018), https://arxiv.org/abs/1710.03740
"""

__all__ = ["Precision", "is_reduced", "passes"]

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from .energy import ClassifierEnergy
from .modes import frozen

Precision = Literal["float32", "bfloat16", "auto"]

WORTH = 0.8  # less is not worth the rounding
PIXELS = 2**17  # enough that the time of a pass is that of its layers
MOST = 64
TRIALS = 3


@contextmanager
def passes(reduced: bool, energy: ClassifierEnergy) -> Iterator[None]:
    """Lets the network of an energy, and of what is made of it meanwhile, run in bfloat16.

    Arguments:
        reduced: Whether it does; if not, all is left as it is.
        energy: The energy, put back as it was afterwards.
    """
    before = energy.precision
    try:
        if reduced:
            energy.precision = torch.bfloat16
        yield
    finally:
        energy.precision = before


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
        with passes(reduced, energy):
            logits = energy.classify(x)
        torch.autograd.grad(logits.sum(), x)
    return time.perf_counter() - begin
