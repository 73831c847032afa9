r"""Energies of classifiers that were never trained to generate.

A classifier's logits differ by some ten nats; a photograph and noise differ by ten thousand. At
gain 1 a chain hardly feels the classifier. Hence, for any network, a gain

.. math:: \gamma = r \sqrt{D} \, / \, |\hat B_1|

at which a step of a chain at its start feels a tilt of the norm r per square root of a dimension,
:math:`\hat B_1` being that of gain 1. With smoothing it is the tilt under one change t, most of
which is noise, and that noise bounds the gain: it heats the chain by about :math:`e^2 r^2 / 4`.
That is a density like any other; chains of low temperature show pictures of it.
"""

__all__ = ["NORM", "auto_gain", "prepare"]

import math

import torch

from .drift import energy_and_score
from .energy import ClassifierEnergy
from .langevin import Langevin
from .modes import frozen, sharing
from .smooth import Coarse, Smoothing
from .start import ReferenceStart

CONTRAST = 0.15
NORM = 1.2
SAMPLER = Langevin(70, 0.12, temperature=0.05)


def prepare(energy: ClassifierEnergy) -> None:
    """Gives a smoothed energy starts, a coarse stage and a sampler for pictures of its classes.

    Arguments:
        energy: The energy, changed in place.
    """
    energy.start = ReferenceStart(energy.reference, CONTRAST)
    energy.sampler = SAMPLER
    energy.coarse = Coarse() if _takes(energy, Coarse().size) else None


def auto_gain(energy: ClassifierEnergy, norm: float = NORM, n: int = 8) -> float:
    """Returns the gain at which the tilt has a given norm where chains start.

    Arguments:
        energy: The energy, of any gain. In the gauge `log_softmax`, where the tilt is not
            proportional to the gain, that of the gauge `centered` is measured.
        norm: The norm r per square root of a dimension, in mean square.
        n: The number of starts, of classes drawn at random, that it is measured at.

    Raises:
        ValueError: If the tilt is 0 or not finite at every start.
    """
    probe = sharing(energy)
    probe.gain, probe.gauge = 1.0, "raw" if energy.gauge == "raw" else "centered"
    generator = torch.Generator().manual_seed(0)
    start, total = ReferenceStart(energy.reference, CONTRAST), 0.0
    classes = torch.randint(energy.n_classes or 1, (n, 1), generator=generator)
    with torch.inference_mode(False), frozen(probe):
        for y in classes.to(energy.reference.mean.device):
            u = energy.reference.encode(start(y, generator=generator))
            _, score = energy_and_score(probe.realise(u, generator), u, y)
            total += float((score + u).square().mean())
    found = math.sqrt(total / n)
    if not (found > 0 and math.isfinite(found)):
        raise ValueError(
            "auto_gain: the gradient is 0 or not finite at every start. Give a gain, a number."
        )
    return norm / found


def _takes(energy: ClassifierEnergy, size: float) -> bool:
    """Tells whether a classifier looks at smaller images too, or at one size only."""
    x = energy.reference.mean[None]
    view = Smoothing(size=size).view(x, torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            return bool(energy.classify(view(x)).isfinite().all())
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        return False
