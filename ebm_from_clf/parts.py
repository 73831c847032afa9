"""The parts of a folder of classes: what is trained on and what is held out.

A folder may hold `train/` and `test/` (or `validation/`, `val/`), each with the same classes. If
it holds classes alone, about a fifth of each is held out: a file belongs to a part by the hash of
its name, so that files added later move none of the others.
"""

__all__ = ["held_out", "part_folder"]

import zlib
from collections.abc import Sequence
from pathlib import Path

from .errors import UsageError

HELD_OUT = ("test", "validation", "val")
SPLITS = ("train", "test", "all")


def part_folder(root: Path, split: str) -> tuple[Path, bool]:
    """Finds the folder of a part.

    Arguments:
        root: The folder of the data.
        split: The part: `train`, `test`, or any folder in it; `all` for one without parts.

    Returns:
        The folder, and whether it is the part; if not, it holds all parts together.

    Raises:
        UsageError: If there are other parts but not this one, or the parts differ in classes.
    """
    if split == "test":
        split = next((name for name in HELD_OUT if _folders(root / name)), split)
    names = dict.fromkeys(("train", *HELD_OUT, split))
    classes = {name: _folders(root / name) for name in names if _folders(root / name)}
    if not classes:
        if _folders(root) and _folders(root) <= set(names):
            # The parts are there, but empty; a class among others may itself be called train.
            return root / split, True
        if split not in SPLITS:
            raise UsageError(f"{root}: has no part {split!r}. A split is one of {SPLITS}.")
        return root, split == "all"
    if split not in classes:
        raise UsageError(
            f"{root / split}: no such folder of classes, only one of {', '.join(classes)}. "
            f"Add it, or put all classes into {root}."
        )
    shared = set.intersection(*classes.values())
    odd = sorted(set().union(*classes.values()) - shared)
    if odd:
        raise UsageError(
            f"{root}: class {odd[0]!r} is not in each of {', '.join(classes)}. Every part needs "
            "the same classes; add images of it or remove it."
        )
    return root / split, True


def held_out(names: Sequence[str], labels: Sequence[int]) -> set[int]:
    """Chooses which files are held out: about a fifth of each class, at least one of two or more.

    Arguments:
        names: What each file is called; only this decides.
        labels: The class of each.

    Returns:
        The indices of those held out.
    """
    found = set()
    key = [zlib.crc32(name.encode("utf-8", "surrogateescape")) / 2**32 for name in names]
    for label in set(labels):
        mine = sorted((i for i, y in enumerate(labels) if y == label), key=lambda i: key[i])
        below = sum(key[i] < 1 / 5 for i in mine)
        found |= set(mine[: min(max(below, 1), len(mine) - 1)])
    return found


def _folders(place: Path) -> set[str]:
    if not place.is_dir():
        return set()
    return {p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")}
