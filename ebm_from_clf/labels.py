"""Labels and the classes they name: do they fit the classifier, and are they the same as before?

A data set yields pairs of an image and a class index; it may have `labels`, the index of each
image, and `class_names`.
"""

__all__ = ["by_name", "check_labels", "find_blend", "find_class", "fingerprint"]

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

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


def find_class(word: str, names: Sequence[str]) -> int:
    """Finds a class by its label, by one of the names that a label lists, or by its index.

    Arguments:
        word: What was asked for, in any case: `king penguin`, or `281`.
        names: The label of each class; one may list several names, with commas between them.

    Raises:
        UsageError: If no class is called so, or several are.
    """
    wanted = word.strip().lower()
    labels = [name.strip().lower() for name in names]
    lists = [[part.strip() for part in label.split(",")] for label in labels]
    found = [i for i, label in enumerate(labels) if label == wanted]
    # The first name of a label is what it is called; the others may be names of more classes.
    found = found or [i for i, parts in enumerate(lists) if parts[0] == wanted]
    found = found or [i for i, parts in enumerate(lists) if wanted in parts]
    if len(found) > 1:
        which = "; ".join(f"{i}: {names[i]}" for i in found[:4])
        raise UsageError(f"several classes are named {word!r}. Give an index: {which}.")
    if not found and wanted.isdecimal():
        return int(wanted)
    if not found:
        every = sorted({part for parts in lists for part in parts})
        near = get_close_matches(wanted, every, 3) or [n for n in every if wanted and wanted in n]
        hint = f"Near it: {', '.join(near[:3])}." if near else "Give its index."
        raise UsageError(f"no class is named {word!r}. {hint}")
    return found[0]


def find_blend(word: str, names: Sequence[str]) -> int | dict[int, float]:
    """Finds a class, or several with weights: `zebra`, `zebra+tabby` or `zebra:0.7+tabby:0.3`.

    Arguments:
        word: What was asked for.
        names: The label of each class.

    Raises:
        UsageError: If a class is not found, a weight is not finite, or only some have one.
    """
    if "+" not in word or word in names:
        return find_class(word, names)
    found: dict[int, float] = {}
    parts = word.split("+")
    for part in parts:
        name, colon, weight = part.rpartition(":")
        try:
            value = float(weight) if colon else 1 / len(parts)
        except ValueError:
            raise UsageError(f"{part!r}: a weight is a number, as in zebra:0.7.") from None
        if not math.isfinite(value):
            raise UsageError(f"{part!r}: a weight is a number, as in zebra:0.7.")
        c = find_class(name if colon else part, names)
        found[c] = found.get(c, 0.0) + value
    if len({":" in part for part in parts}) == 2:
        raise UsageError(f"{word!r}: give every class a weight, or none.")
    return found


def fingerprint(dataset: Dataset) -> int:
    """Returns a number that changes with labels, names, images in memory, and sizes of files.

    Arguments:
        dataset: The data set.
    """
    names, labels = (list(getattr(dataset, key, [])) for key in ("class_names", "labels"))
    files = [(str(path), path.stat().st_size) for path in getattr(dataset, "files", [])]
    found = zlib.crc32(repr((names, [int(y) for y in labels], files)).encode())
    images = getattr(dataset, "images", None)
    return found if images is None else zlib.crc32(images.contiguous().numpy(), found)


def by_name(dataset: Dataset, names: Sequence[str] | None) -> None:
    """Numbers the classes of a data set, in place, as a classifier does that knows them by name.

    Data whose classes are named by numbers, and data that share no name with the classifier but
    are of as many classes, are taken as they are.

    Arguments:
        dataset: The data set.
        names: The class names of the classifier, if it has any.

    Raises:
        UsageError: If a class of the data is not one, or could be two, of the classifier's.
    """
    found = list(getattr(dataset, "class_names", []))
    numbers = [str(i) for i in range(len(found))]
    if not names or found == list(names) or (found == numbers and len(found) <= len(names)):
        return
    known, count = {name: i for i, name in enumerate(names)}, Counter(names)
    missing = [name for name in found if count[name] != 1]
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
