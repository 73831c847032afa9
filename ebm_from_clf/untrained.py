r"""Energies of classifiers that were never trained to generate.

A classifier's logits differ by some ten nats; a photograph and noise differ by ten thousand. At
gain 1 a chain hardly feels the classifier. Two remedies, for any network: steps of fixed length
(`Langevin.ascent`), which shows what the classifier looks for but samples no density; or a gain

.. math:: \gamma = r \sqrt{D} \, / \, |B_1|

at which the tilt B of chains at their starts has the norm r per square root of a dimension,
:math:`B_1` being that of gain 1. That is a density like any other. With r = 0.5 the tilt at the
start moves an image by half a standard deviation of q, and a cooled chain, T = 0.05, shows
pictures of it.
"""

__all__ = ["NORM", "auto_gain", "prepare"]

import math

import torch

from .energy import ClassifierEnergy
from .langevin import Langevin, energy_and_score
from .modes import frozen
from .smooth import Coarse, Smoothing
from .start import ReferenceStart

CONTRAST = 0.15
NORM = 0.5


def prepare(energy: ClassifierEnergy) -> None:
    """Gives a smoothed energy starts, a coarse stage and a sampler that show what it knows.

    Arguments:
        energy: The energy, changed in place.
    """
    energy.start = ReferenceStart(energy.reference, CONTRAST)
    energy.sampler = Langevin.ascent()
    energy.coarse = Coarse() if _takes(energy, Coarse().size) else None


def auto_gain(energy: ClassifierEnergy, norm: float = NORM, n: int = 8) -> float:
    """Returns the gain at which the tilt has a given norm where chains start.

    Arguments:
        energy: The energy, of any gain; its gauge is `raw` or `centered`, where the tilt is
            proportional to the gain.
        norm: The norm r per square root of a dimension, in mean square.
        n: The number of starts, of classes drawn at random, that it is measured at.

    Raises:
        ValueError: If the gauge is `log_softmax`, or the tilt is 0 at every start.
    """
    if energy.gauge == "log_softmax":
        raise ValueError("auto_gain: in the gauge log_softmax a tilt is not proportional to gain.")
    generator = torch.Generator().manual_seed(0)
    device = energy.reference.mean.device
    y = torch.randint(energy.n_classes or 1, (n,), generator=generator).to(device)
    u = energy.reference.encode(ReferenceStart(energy.reference, CONTRAST)(y, generator=generator))
    with torch.inference_mode(False), frozen(energy):
        _, score = energy_and_score(energy.realise(u, generator), u.clone(), y.clone())
    found = float((score + u).square().mean().sqrt())
    if not (found > 0 and math.isfinite(found)):
        raise ValueError("auto_gain: the gradient is 0 or not finite at every start.")
    return energy.gain * norm / found


def _takes(energy: ClassifierEnergy, size: float) -> bool:
    """Tells whether a classifier looks at smaller images too, or at one size only."""
    x = energy.reference.mean[None]
    view = Smoothing(size=size).view(x, torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            return bool(energy.classify(view(x)).isfinite().all())
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        return False
