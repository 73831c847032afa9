"""What the images of a class and a seed depend on, beside the classifier's code.

Samples of two requests are the same if these are; a folder of samples keeps them.
"""

__all__ = ["depends_on"]

import zlib
from dataclasses import asdict
from typing import Any

import torch

from .energy import ClassifierEnergy
from .langevin import Langevin


def depends_on(energy: ClassifierEnergy, sampler: Langevin) -> dict[str, Any]:
    """Returns what the images of a class and a seed depend on, as JSON can hold it.

    Arguments:
        energy: The energy.
        sampler: The sampler of the chains.
    """
    strength = getattr(energy.start, "strength", None)
    precision = energy.precision or energy.reference.mean.dtype
    return {
        "sampler": asdict(sampler),
        "density": sampler.density,
        "coarse": energy.coarse,
        "gain": energy.gain,
        "gauge": energy.gauge,
        "support": energy.support,
        "smoothing": None if energy.smoothing is None else asdict(energy.smoothing),
        "start": type(energy.start).__name__,
        "strength": None if strength is None else round(float(strength), 6),
        "precision": str(precision).removeprefix("torch."),
        "weights": _weights(energy),
    }


def _weights(energy: ClassifierEnergy) -> int:
    """Returns a number that changes with the tensors of an energy."""
    found = 0
    for value in energy.state_dict().values():
        found = zlib.crc32(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), found
        )
    return found
