"""How good the classifier inside an energy is, on data it has not seen."""

__all__ = ["accuracy", "calibration_error", "evaluate"]

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .data import loader
from .energy import ClassifierEnergy


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


def evaluate(energy: ClassifierEnergy, dataset: Dataset) -> dict[str, Any]:
    """Evaluates an energy as a classifier; its samples are for a :class:`Judge` to score.

    Arguments:
        energy: The energy.
        dataset: Held-out pairs of an image in [0, 1] and a class index.

    Returns:
        The numbers, as plain values.
    """
    logits, y = _logits(energy, dataset)
    return {
        "n": len(y),
        "accuracy": float((logits.argmax(1) == y).double().mean()),
        "calibration_error": calibration_error(logits, y),
    }


def _logits(energy: ClassifierEnergy, dataset: Dataset) -> tuple[Tensor, Tensor]:
    logits, labels = [], []
    device = energy.reference.mean.device
    with torch.no_grad():
        for x, y in loader(dataset, 250):
            logits.append(energy.logits(x.to(device)).cpu())
            labels.append(y)
    return torch.cat(logits), torch.cat(labels)
