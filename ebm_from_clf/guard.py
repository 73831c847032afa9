r"""When chains fall behind the data, go back, slow down, and go on.

Observed minus synthesized is the likelihood gradient only while chains are near the model. Once
the energy is too steep for their step they overshoot; the gap

.. math:: \bar f(x) - \bar f(\tilde x)

turns positive and stays there, and every further update makes the energy steeper still. In a
healthy run the gap is about 0. The guard keeps copies of the last good states, returns to one
taken well before the gap opened, and lowers the learning rate.
"""

__all__ = ["Guard", "GuardSettings"]

import copy
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from .errors import Diverged


@dataclass(frozen=True)
class GuardSettings:
    """Settings of the guard.

    Arguments:
        max_gap: Largest mean gap between observed and synthesized scores, in logits.
        max_score: Largest mean score or loss, of either sign.
        keep_every: Updates between two copies of the state; one of the last two is returned to.
        slow_down: Factor on the learning rate at each return.
        rollbacks: Returns before the run is stopped as diverged.
    """

    max_gap: float = 2.0
    max_score: float = 1e3
    keep_every: int = 40
    slow_down: float = 0.5
    rollbacks: int = 6

    def __post_init__(self) -> None:
        if not (self.max_gap > 0 and self.max_score > 0 and 0 < self.slow_down <= 1):
            raise ValueError(
                "GuardSettings: `max_gap` and `max_score` must be positive, `slow_down` in (0, 1]."
            )
        if self.keep_every < 1 or self.rollbacks < 0:
            raise ValueError(
                "GuardSettings: `keep_every` must be 1 or more, `rollbacks` 0 or more."
            )


class Guard:
    """Creates a guard; it holds the copies, the caller holds the run.

    Arguments:
        settings: The settings.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.rollbacks = 0
        self._kept: deque[tuple[int, dict[str, Any]]] = deque(maxlen=2)

    @property
    def rate(self) -> float:
        """The factor on the learning rate."""
        return self.settings.slow_down**self.rollbacks

    @property
    def is_empty(self) -> bool:
        """Whether it holds no copy to return to."""
        return not self._kept

    def trips(self, gap: float, worst: float) -> bool:
        """Tells whether a run is off: by its mean gap, or by its largest score or loss."""
        finite = math.isfinite(gap) and math.isfinite(worst)
        return not finite or gap > self.settings.max_gap or worst > self.settings.max_score

    def wants(self, update: int) -> bool:
        """Tells whether it is time for a copy of a healthy state."""
        return not self._kept or update - self._kept[-1][0] >= self.settings.keep_every

    def keep(self, update: int, state: dict[str, Any]) -> None:
        """Keeps a copy of a healthy state.

        Arguments:
            update: The update it was taken at.
            state: The state.
        """
        self._kept.append((update, copy.deepcopy(state)))

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of returns and the copies."""
        return {"rollbacks": self.rollbacks, "kept": list(self._kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Arguments:
            state: The state.
        """
        self.rollbacks = state["rollbacks"]
        self._kept = deque((tuple(pair) for pair in state["kept"]), maxlen=2)

    def roll_back(self, line: dict[str, float]) -> dict[str, Any]:
        """Returns the state to go back to, and forgets what came after it.

        Arguments:
            line: The numbers that tripped the guard, for the report.

        Raises:
            Diverged: If the run went back often enough already.
        """
        if self.rollbacks >= self.settings.rollbacks or not self._kept:
            raise Diverged(
                f"fine-tuning diverged at update {line['update']:.0f} after {self.rollbacks} "
                f"rollbacks: scores observed {line['observed']:.4g}, synthesized "
                f"{line['synthesized']:.4g}, cross-entropy {line['cross_entropy']:.4g}. Lower the "
                "learning rate, take more Langevin steps, or match the stem to the image size."
            )
        self.rollbacks += 1
        while len(self._kept) > 1:
            self._kept.pop()
        return copy.deepcopy(self._kept[0][1])
