"""What the folder of a run tells: is it new, does it go on, is it finished, or did it diverge?

A run that goes on has its recipe and perhaps a state; one that is finished has `metrics.json`;
one that diverged has `diverged.json`, which says why. Neither of these two goes on.
"""

__all__ = ["AGAIN", "fingerprints", "forget", "left_state", "note_diverged", "prepare"]

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from torch.utils.data import Dataset

from .errors import Diverged, UsageError
from .folders import new_folder, write_json, write_text
from .labels import fingerprint
from .recipe import Recipe
from .state import read_state
from .trail import CHAINS, STATE

DIVERGED = "diverged.json"
AGAIN = "Resumed, it would end there again: change the recipe, and begin in another --output."


def prepare(recipe: Recipe, folder: Path, resume: bool) -> bool:
    """Writes the recipe into a new folder, or finds a run to resume; tells whether it is new.

    Arguments:
        recipe: The recipe.
        folder: The folder of the run.
        resume: Whether to go on from what is in it.

    Raises:
        UsageError: If the folder is taken, or its run is of another recipe, finished or diverged.
    """
    text = yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False)
    kept = folder / "recipe.yaml"
    if not (resume and kept.exists()):
        write_text(new_folder(folder) / "recipe.yaml", text)
        return True
    if (folder / DIVERGED).exists():
        raise UsageError(f"{folder}: {_fault(folder / DIVERGED)} {AGAIN}")
    if kept.read_text(encoding="utf-8") != text:
        raise UsageError(
            f"{folder}: was begun with another recipe, or by another version of this package. "
            f"Resume with --config {kept}, or choose another --output."
        )
    if (folder / "metrics.json").exists():
        forget(folder)
        raise UsageError(f"{folder}: this run is finished; there is nothing to resume.")
    # What a run left that was killed while it wrote: a model without metrics, halves of files.
    for rest in (*folder.glob("model"), *folder.glob(".*.tmp")):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return False


def left_state(folder: Path, train: Dataset, test: Dataset) -> dict[str, Any] | None:
    """Reads the state that a run left, if it left one.

    Arguments:
        folder: The folder of the run.
        train: The data that it is tuned on.
        test: The held-out data.

    Raises:
        UsageError: If the data are others, or the state is damaged.
    """
    if not (folder / STATE).exists():
        return None
    state = read_state(folder / STATE)
    if state["notes"]["data"] != fingerprints(train, test):
        raise UsageError(
            f"{folder}: the data are not those that the run was begun with. Bring them back, or "
            "choose another --output."
        )
    return state


def fingerprints(train: Dataset, test: Dataset) -> list[int]:
    """Returns numbers that change with the data of a run.

    Arguments:
        train: The data that it is tuned on.
        test: The held-out data.
    """
    return [fingerprint(train), fingerprint(test)]


def note_diverged(folder: Path, update: int, error: Diverged) -> None:
    """Notes that a run diverged; its last state is kept, for who wants to look into it.

    Arguments:
        folder: The folder of the run.
        update: The update at which it did.
        error: Why.
    """
    write_json(folder / DIVERGED, {"update": update, "fault": str(error)})
    (folder / CHAINS).unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Removes what only a run that goes on needs.

    Arguments:
        folder: The folder of the run.
    """
    for name in (STATE, CHAINS):
        (folder / name).unlink(missing_ok=True)


def _fault(file: Path) -> str:
    """Reads why a run diverged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["fault"]
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"{file}: damaged; it should say why the run diverged. Begin in another --output."
        ) from error


def _plain(value: Any) -> Any:  # noqa: ANN401 - tuples become lists, all else stays
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
