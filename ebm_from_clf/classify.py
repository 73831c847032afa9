"""Training a plain classifier, for recipes that begin without one.

Cross-entropy with AdamW and a one-cycle learning rate: what stands in for the classifier you
already have. Beside it the generative loss, which needs no chains; see
:func:`ebm_from_clf.objective.generative`.
"""

__all__ = ["train_classifier"]

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from .batches import Batches, loader
from .objective import generative
from .space import PixelSpace


def train_classifier(
    classifier: nn.Module,
    space: PixelSpace,
    dataset: Dataset,
    *,
    epochs: int,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    learning_rate: float = 2e-3,
    batch_size: int = 128,
    seed: int = 0,
    generative_weight: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> nn.Module:
    """Trains a classifier in place and leaves it in evaluation mode.

    Arguments:
        classifier: The classifier.
        space: The map from pixels to its input.
        dataset: Pairs of an image in [0, 1] and a class index.
        epochs: The number of passes over the data.
        augment: What is done to a batch of images, given a generator.
        learning_rate: The highest learning rate.
        batch_size: The batch size.
        seed: The seed of the order and the augmentation.
        generative_weight: The weight of the generative loss of the logits.
        progress: Called with 1 after each update.
    """
    batches = Batches(len(dataset), batch_size, seed=seed)  # type: ignore[arg-type]
    updates = epochs * (batches.n // batches.batch_size)
    generator = torch.Generator().manual_seed(seed)
    device = space.mean.device
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _one_cycle(i, updates))
    classifier.train()
    for _, (x, y) in zip(range(updates), loader(dataset, batches), strict=False):
        logits, y = classifier(space(augment(x, generator).to(device))), y.to(device)
        loss = functional.cross_entropy(logits, y)
        if generative_weight:
            loss = loss + generative_weight * generative(logits, y).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        torch.clear_autocast_cache()  # the caller's would go on with the weights before
        if progress is not None:
            progress(1)
    return classifier.eval()


def _one_cycle(update: int, updates: int) -> float:
    """Rises linearly over the first fifth, then falls as a cosine."""
    rise = max(1, updates // 5)
    if update < rise:
        return (update + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (update - rise) / max(1, updates - rise))) + 1e-3
