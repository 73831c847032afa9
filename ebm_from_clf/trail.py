"""What a run leaves in its folder on its way: the log, pictures of the chains, and states.

The state of a line comes last of all: what an interrupted run has shown, it need not show again.
"""

__all__ = ["CHAINS", "STATE", "Trail"]

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .chains import ChainStore
from .journal import Journal
from .pictures import grid
from .state import write_state

STATE = "state.safetensors"
CHAINS = "chains.bin"


class Trail:
    """Creates the trail of a run.

    Arguments:
        folder: The folder, for the log `metrics.jsonl`, pictures in `chains/`, and the state to
            resume from in `state.safetensors`. `None` for none of them.
        every: Updates between two states. 0 for none.
        update: Where the run stands.
        journal: Its journal. Lines after the state that it resumes from are written again.
    """

    def __init__(self, folder: Path | None, every: int, update: int, journal: Journal) -> None:
        self.folder, self.every, self.journal = folder, every, journal
        self._kept = update
        if folder is not None:
            (folder / "chains").mkdir(parents=True, exist_ok=True)
            journal.write(folder, anew=True)

    def log(self) -> None:
        """Writes the lines that are new."""
        if self.folder is not None:
            self.journal.write(self.folder)

    def draw(self, update: int, chains: ChainStore) -> None:
        """Draws chains of the store, if they are gray or in colour: a row per class, at most ten.

        Arguments:
            update: The update.
            chains: The chains.
        """
        if self.folder is None:
            return
        n = min(8, chains.per_class)
        pixels = chains.pixels(range(min(10, chains.n_classes)), n)
        if pixels.shape[1] in (1, 3):
            grid(pixels, columns=n).save(self.folder / "chains" / f"{update:06d}.png")

    def keep(self, update: int, state: Callable[[], dict[str, Any]]) -> None:
        """Writes the state to resume from, when it is time, and at the very beginning.

        Arguments:
            update: The update.
            state: What returns the state.
        """
        if self.folder is None or not self.every:
            return
        # At the beginning so that what was spent on the classifier is not lost.
        if not update or update // self.every > self._kept // self.every:
            write_state(self.folder / STATE, state())
            self._kept = update
