r"""How good a generator is, by the features of a classifier that had no part in it.

The Frechet distance between two sets of features with means m and covariances C is

.. math:: |m_1 - m_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})

(Heusel et al., 2017). It depends on the network that gives the features and on the number of
images, so it is always printed beside that of as many real images the generator never saw.
"""

__all__ = ["Judge", "diversity", "features", "frechet", "nearest"]

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .data import gather
from .modes import evaluation_mode
from .space import PixelSpace

PIXELS_AT_ONCE = 1_000_000


class Judge:
    """Creates a judge of samples, who has seen the data.

    Arguments:
        classifier: An independently trained timm classifier.
        space: The map from pixels to its input.
        train: The data that distances are measured to.
        held_out: Data that the generator never saw, the yardstick.
    """

    def __init__(
        self, classifier: nn.Module, space: PixelSpace, train: Dataset, held_out: Dataset
    ) -> None:
        self.classifier, self.space = classifier, space
        self.target, _ = features(classifier, space, gather(train)[0])
        x, self.labels = gather(held_out)
        self.held, self.logits = features(classifier, space, x)

    def score(self, images: Tensor, classes: Tensor) -> dict[str, Any]:
        """Judges samples.

        Arguments:
            images: The samples, in [0, 1], with shape (N, C, H, W).
            classes: The classes that they are of, with shape (N).

        Returns:
            The numbers, as plain values; those of real images end in `held_out`.
        """
        found, logits = features(self.classifier, self.space, images)
        # As many samples as held-out images, evenly, since both may be ordered by class.
        n = min(len(found), len(self.held))
        pick, even = (torch.linspace(0, len(f) - 1, n).round().long() for f in (found, self.held))
        held, real = self.held[even], self.labels[even]
        distance, yardstick = frechet(found[pick], self.target), frechet(held, self.target)
        return {
            "n": len(images),
            "judge_accuracy": float((self.logits.argmax(1) == self.labels).double().mean()),
            "agreement": float((logits.argmax(1) == classes).double().mean()),
            "frechet": distance,
            "frechet_held_out": yardstick,
            # Held-out images that are the data themselves are at a distance of 0, up to rounding.
            "frechet_ratio": distance / max(yardstick, 1e-12),
            "frechet_n": n,
            "diversity": diversity(found, classes),
            "diversity_held_out": diversity(held, real),
            # Samples that repeat the data are nearer to it than real images are.
            "nearest": nearest(found[pick], self.target),
            "nearest_held_out": nearest(held, self.target),
        }


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
        for part in x.split(max(1, PIXELS_AT_ONCE // (x.shape[2] * x.shape[3]))):
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


def nearest(found: Tensor, known: Tensor) -> float:
    """Returns the mean distance of an image to the nearest of known ones.

    Arguments:
        found: Features, with shape (N, D).
        known: Features, with shape (M, D).
    """
    # As a difference of squares, the other way to compute it, a distance of 0 would be hidden.
    exact = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(f, known, compute_mode=exact).amin(1) for f in found.split(100)]
    return float(torch.cat(parts).mean())


def _root(matrix: Tensor) -> Tensor:
    """Returns the symmetric square root of a covariance."""
    value, vector = torch.linalg.eigh(matrix)
    return vector * value.clamp_min(0).sqrt() @ vector.T
