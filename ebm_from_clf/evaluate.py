r"""How good a classifier and a generator are, with the numbers a stranger would ask for.

The Frechet distance between two sets of features with means m and covariances C is

.. math:: |m_1 - m_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})

(Heusel et al., 2017). It depends on the network that gives the features and on the number of
images, so it is always printed beside that of as many real images the generator never saw.
"""

__all__ = ["accuracy", "calibration_error", "diversity", "evaluate", "features", "frechet"]

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .data import gather, loader
from .energy import ClassifierEnergy
from .modes import evaluation_mode
from .space import PixelSpace


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


def features(judge: nn.Module, space: PixelSpace, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a judge's features before its last layer, and its logits.

    Arguments:
        judge: A timm classifier.
        space: The map from pixels to its input.
        x: Images in [0, 1], with shape (N, C, H, W).

    Returns:
        The features, with shape (N, D), and the logits, with shape (N, K).
    """
    found, logits = [], []
    device = space.mean.device
    with torch.no_grad(), evaluation_mode(judge):
        for part in x.split(250):
            maps = judge.forward_features(space(part.to(device)))  # type: ignore[operator]
            found.append(judge.forward_head(maps, pre_logits=True).cpu())  # type: ignore[operator]
            logits.append(judge.forward_head(maps).cpu())  # type: ignore[operator]
    return torch.cat(found), torch.cat(logits)


def frechet(a: Tensor, b: Tensor) -> float:
    """Returns the Frechet distance between Gaussians fitted to two sets of features.

    Arguments:
        a: Features, with shape (N, D).
        b: Features, with shape (M, D).
    """
    a, b = a.double(), b.double()
    root_a, root_b = (_root(torch.cov(v.T)) for v in (a, b))
    # tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2).
    cross = torch.linalg.svdvals(root_a @ root_b).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * cross
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def diversity(found: Tensor, y: Tensor) -> float:
    """Returns the mean distance of two images of one class, over classes of two or more.

    Arguments:
        found: Features, with shape (N, D).
        y: The class indices, with shape (N).
    """
    distances = [torch.pdist(found[y == c]).mean() for c in y.unique() if int((y == c).sum()) > 1]
    return float(torch.stack(distances).mean()) if distances else 0.0


def evaluate(
    energy: ClassifierEnergy,
    dataset: Dataset,
    *,
    images: Tensor | None = None,
    classes: Tensor | None = None,
    judge: nn.Module | None = None,
    judge_space: PixelSpace | None = None,
    train: Dataset | None = None,
) -> dict[str, Any]:
    """Evaluates an energy as a classifier and, with a judge, its samples.

    Arguments:
        energy: The energy.
        dataset: Held-out pairs of an image in [0, 1] and a class index.
        images: Samples of the energy, in [0, 1], with shape (N, C, H, W).
        classes: The classes that the samples are of, with shape (N).
        judge: An independently trained timm classifier.
        judge_space: The map from pixels to the judge's input.
        train: The data that distances are measured to; held-out data serve as the yardstick.

    Returns:
        The numbers, as plain values.

    Raises:
        ValueError: If some but not all of what scores samples is given.
    """
    given = [value is not None for value in (images, classes, judge, judge_space, train)]
    if any(given) and not all(given):
        raise ValueError(
            "evaluate: samples are scored with all of `images`, `classes`, `judge`, "
            "`judge_space` and `train`; some are missing."
        )
    logits, y = _logits(energy, dataset)
    result: dict[str, Any] = {
        "n": len(y),
        "accuracy": float((logits.argmax(1) == y).double().mean()),
        "calibration_error": calibration_error(logits, y),
    }
    if images is None or classes is None or judge is None or judge_space is None or train is None:
        return result
    held_x, held_y = gather(dataset)
    train_x, _ = gather(train)
    target, _ = features(judge, judge_space, train_x)
    held, held_logits = features(judge, judge_space, held_x[: len(images)])
    found, judged = features(judge, judge_space, images)
    real, n = held_y[: len(images)], len(held)
    # As many samples as held-out images, evenly over the classes they are ordered by.
    even = torch.linspace(0, len(found) - 1, n).round().long()
    distance, yardstick = frechet(found[even], target), frechet(held, target)
    return result | {
        "samples": {
            "n": len(images),
            "judge_accuracy": float((held_logits.argmax(1) == real).double().mean()),
            "agreement": float((judged.argmax(1) == classes).double().mean()),
            "frechet": distance,
            "frechet_held_out": yardstick,
            "frechet_ratio": distance / yardstick,
            "frechet_n": n,
            "diversity": diversity(found, classes),
            "diversity_held_out": diversity(held, real),
        }
    }


def _logits(energy: ClassifierEnergy, dataset: Dataset) -> tuple[Tensor, Tensor]:
    logits, labels = [], []
    device = energy.reference.mean.device
    with torch.no_grad():
        for x, y in loader(dataset, 250):
            logits.append(energy.logits(x.to(device)).cpu())
            labels.append(y)
    return torch.cat(logits), torch.cat(labels)


def _root(matrix: Tensor) -> Tensor:
    """Returns the symmetric square root of a covariance."""
    value, vector = torch.linalg.eigh(matrix)
    return vector * value.clamp_min(0).sqrt() @ vector.T
