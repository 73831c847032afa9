"""Labels and the classes they name: do they fit the classifier, and are they the same as before?

A data set yields pairs of an image and a class index; it may have `labels`, the index of each
image, and `class_names`.
"""

__all__ = ["by_name", "check_labels", "fingerprint"]

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .errors import UsageError


def check_labels(dataset: Dataset, n_classes: int | None) -> int:
    """Checks that the labels of a data set fit a classifier.

    Arguments:
        dataset: Pairs of an image and a class index.
        n_classes: The number of classes of the classifier, if it is known.

    Returns:
        The number of classes.

    Raises:
        UsageError: If there are no data, a label is out of range or a class has no image.
    """
    labels = getattr(dataset, "labels", None)
    if labels is None:
        labels = [int(dataset[i][1]) for i in range(len(dataset))]  # type: ignore[arg-type]
    y = torch.as_tensor(labels)
    if len(y) == 0:
        raise UsageError("the data set is empty.")
    low, high = int(y.min()), int(y.max())
    n_classes = n_classes or high + 1
    if low < 0 or high >= n_classes:
        raise UsageError(
            f"the data have labels {low} to {high}, the classifier has {n_classes} classes. "
            f"Give num_classes={high + 1}."
        )
    empty = (torch.bincount(y, minlength=n_classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise UsageError(
            f"no image of class {', '.join(map(str, empty[:8]))}; every class of the classifier "
            "needs some. Add data, or give the classifier fewer classes."
        )
    return n_classes


def fingerprint(dataset: Dataset) -> int:
    """Returns a number that changes with the labels, the class names and images in memory.

    Arguments:
        dataset: The data set.
    """
    names, labels = (list(getattr(dataset, key, [])) for key in ("class_names", "labels"))
    found = zlib.crc32(repr((len(dataset), names, [int(y) for y in labels])).encode())  # type: ignore[arg-type]
    images = getattr(dataset, "images", None)
    return found if images is None else zlib.crc32(images.contiguous().numpy(), found)


def by_name(dataset: Dataset, names: Sequence[str] | None) -> None:
    """Numbers the classes of a data set, in place, as a classifier does that knows them by name.

    Data and classifier that share no name, but are of as many classes, are taken as they are.

    Arguments:
        dataset: The data set.
        names: The class names of the classifier, if it has any.

    Raises:
        UsageError: If some classes of the data are the classifier's and others are not.
    """
    found = list(getattr(dataset, "class_names", []))
    if not names or not found or found == list(names):
        return
    known = {name: i for i, name in enumerate(names)}
    missing = [name for name in found if name not in known]
    if missing and (len(missing) < len(found) or len(found) != len(names)):
        raise UsageError(
            f"the data have a class {missing[0]!r} that the classifier has not; it knows "
            f"{', '.join(list(names)[:4])} and so on. Rename the folders of the classes."
        )
    if not missing:
        labels = dataset.labels  # type: ignore[attr-defined]
        new = [known[found[int(y)]] for y in labels]
        dataset.labels = torch.tensor(new) if isinstance(labels, Tensor) else new  # type: ignore[attr-defined]
        dataset.class_names = list(names)  # type: ignore[attr-defined]
