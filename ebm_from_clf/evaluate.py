"""How good the classifier inside an energy is, on data it has not seen."""

__all__ = ["accuracy", "calibration_error", "evaluate", "robust_accuracy"]

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .adversarial import Adversarial
from .batches import loader
from .energy import ClassifierEnergy
from .errors import Diverged


def accuracy(energy: ClassifierEnergy, dataset: Dataset) -> float:
    """Returns the fraction of a data set that the classifier gets right.

    Arguments:
        energy: The energy whose classifier is asked.
        dataset: Pairs of an image in [0, 1] and a class index.
    """
    logits, y = _logits(energy, dataset)
    return float((logits.argmax(1) == y).double().mean())


def calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Returns the expected calibration error (Guo et al., 2017) with bins of equal width.

    Arguments:
        logits: The logits, with shape (N, K).
        y: The class indices, with shape (N).
        bins: The number of bins.
    """
    confidence, guess = logits.double().softmax(1).max(1)
    index = (confidence * bins).long().clamp(max=bins - 1)
    miss = (guess == y).double() - confidence
    return float(torch.zeros(bins).double().index_add_(0, index, miss).abs().sum() / len(y))


def robust_accuracy(energy: ClassifierEnergy, dataset: Dataset, adversarial: Adversarial) -> float:
    """Returns the fraction of a data set that is right at the image and at the worst one near it.

    An upper bound of the fraction that is right in the whole ball; more steps make it tighter.

    Arguments:
        energy: The energy whose classifier is asked.
        dataset: Pairs of an image in [0, 1] and a class index.
        adversarial: How the worst image is searched.
    """
    hits = []
    device = energy.reference.mean.device
    with torch.no_grad():
        for x, y in loader(dataset, 250):
            x, y = x.to(device), y.to(device)
            both = torch.cat([x, adversarial(energy, x, y)])
            right = energy.logits(both).argmax(1) == y.repeat(2)
            hits.append(right.view(2, -1).all(0).cpu())
    return float(torch.cat(hits).double().mean())


def evaluate(
    energy: ClassifierEnergy, dataset: Dataset, adversarial: Adversarial | None = None
) -> dict[str, Any]:
    """Evaluates an energy as a classifier; its samples are for a :class:`Judge` to score.

    Arguments:
        energy: The energy.
        dataset: Held-out pairs of an image in [0, 1] and a class index.
        adversarial: How the worst image near an image is searched, for `robust_accuracy`.
            `None`, or a radius of 0, for none of it.

    Returns:
        The numbers, as plain values.
    """
    logits, y = _logits(energy, dataset)
    numbers = {
        "n": len(y),
        "accuracy": float((logits.argmax(1) == y).double().mean()),
        "calibration_error": calibration_error(logits, y),
    }
    if adversarial is None or not adversarial.radius:
        return numbers
    return numbers | {
        "robust_accuracy": robust_accuracy(energy, dataset, adversarial),
        "adversarial": asdict(adversarial) | {"step": adversarial.length},
    }


def _logits(energy: ClassifierEnergy, dataset: Dataset) -> tuple[Tensor, Tensor]:
    logits, labels = [], []
    device = energy.reference.mean.device
    with torch.no_grad():
        for x, y in loader(dataset, 250):
            logits.append(energy.logits(x.to(device)).cpu())
            labels.append(y)
    found = torch.cat(logits)
    if not found.isfinite().all():
        raise Diverged(
            "the classifier's logits are not finite numbers. It was trained too fast, or its "
            "weights are damaged: lower the learning rate, or take another one."
        )
    return found, torch.cat(labels)
