r"""When chains fall behind the data, go back, slow down, and go on.

Observed minus synthesized is the likelihood gradient only while chains are near the model. Once
the energy is too steep for their step they overshoot; the gap

.. math:: \bar f(x) - \bar f(\tilde x)

turns positive and stays there, and every further update makes the energy steeper still. In a
healthy run the gap is about 0. The guard begins single chains anew that got lost, keeps copies of
the last good states, returns to one taken well before a fault, lowers the learning rate, and
stops the run with the fault's name when that did not help. It looks at numbers that learning has
computed anyway, once for each line of the log.
"""

__all__ = ["Guard", "GuardSettings"]

import copy
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .errors import Diverged


@dataclass(frozen=True)
class GuardSettings:
    """Settings of the guard.

    Arguments:
        max_gap: Largest mean gap between observed and synthesized scores, in logits.
        max_score: Largest mean score or loss, of either sign.
        max_lag: Largest lag of a single chain's score behind the lowest of the observed ones, in
            logits; beyond it the chain is lost, and begun anew.
        max_lost: Largest mean fraction of chains that are lost.
        min_move: Least mean distance of the steps of an update, in standard deviations of the
            reference; below it chains are frozen.
        keep_every: Updates between two copies of the state; one of the last two is returned to.
        slow_down: Factor on the learning rate at each return.
        rollbacks: Returns before the run is stopped as diverged.
    """

    max_gap: float = 2.0
    max_score: float = 1e3
    max_lag: float = 20.0
    max_lost: float = 0.3
    min_move: float = 1e-5
    keep_every: int = 40
    slow_down: float = 0.5
    rollbacks: int = 6

    def __post_init__(self) -> None:
        limits = ("max_gap", "max_score", "max_lag")
        if not (all(getattr(self, name) > 0 for name in limits) and 0 < self.slow_down <= 1):
            raise ValueError(
                "GuardSettings: `max_gap`, `max_score` and `max_lag` must be positive, "
                "`slow_down` in (0, 1]."
            )
        if not (self.max_lost >= 0 and self.min_move >= 0):
            raise ValueError("GuardSettings: `max_lost` and `min_move` must be 0 or more.")
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
        self.faults: list[dict[str, Any]] = []
        self._kept: deque[tuple[int, dict[str, Any]]] = deque(maxlen=2)

    @property
    def rollbacks(self) -> int:
        """How often the run went back."""
        return len(self.faults)

    @property
    def rate(self) -> float:
        """The factor on the learning rate."""
        return self.settings.slow_down**self.rollbacks

    @property
    def is_empty(self) -> bool:
        """Whether it holds no copy to return to."""
        return not self._kept

    def lost(self, observed: Tensor, synthesized: Tensor) -> Tensor:
        """Tells which chains to begin anew, with shape (M), without waiting for the device.

        Arguments:
            observed: The scores of observed images, with shape (N).
            synthesized: Those of the chains, with shape (M).
        """
        return synthesized < observed.min() - self.settings.max_lag

    def fault(self, line: dict[str, float]) -> str:
        """Returns what is wrong with a run and what to do about it, or nothing.

        Arguments:
            line: The last line of the log.
        """
        limits = self.settings
        names = ("gradient", "worst", "mean_gap")
        if not all(math.isfinite(line.get(name, 0.0)) for name in names):
            what = "gradient" if not math.isfinite(line["gradient"]) else "score or loss"
            return f"a {what} is not finite. Lower the learning rate, or set clip_grad"
        if line["worst"] > limits.max_score:
            return (
                f"scores or losses ran away, to {line['worst']:.3g}. Lower the learning rate, or "
                "give the objective a weight for `square`"
            )
        if "moved" not in line:
            return ""  # a warm start has no chains
        if line["lost"] > limits.max_lost:
            return (
                f"{line['lost']:.0%} of the chains are lost far behind the data. Start them "
                "nearer to it, or take a smaller Langevin step"
            )
        if line["mean_gap"] > limits.max_gap:
            return (
                f"chains fell behind the data, the gap is {line['mean_gap']:.3g} logits. Lower "
                "the learning rate, take more Langevin steps, or match the stem to the image size"
            )
        if not line["moved"] >= limits.min_move:
            return (
                f"chains are frozen: they move by {line['moved']:.1g}. Raise the Langevin step or "
                "the temperature; with a box, look whether they stick to its border"
            )
        return ""

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
        """Returns the faults and the copies."""
        return {"faults": self.faults, "kept": list(self._kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Arguments:
            state: The state.
        """
        self.faults = list(state["faults"])
        self._kept = deque((tuple(pair) for pair in state["kept"]), maxlen=2)

    def roll_back(self, fault: str, line: dict[str, float]) -> dict[str, Any]:
        """Returns the state to go back to, and forgets what came after it.

        Arguments:
            fault: What is wrong.
            line: The last line of the log.

        Raises:
            Diverged: If the run went back often enough already.
        """
        if self.rollbacks >= self.settings.rollbacks or not self._kept:
            raise Diverged(
                f"fine-tuning diverged at update {line['update']:.0f} after {self.rollbacks} "
                f"rollbacks: {fault}."
            )
        while len(self._kept) > 1:
            self._kept.pop()
        update, state = self._kept[0]
        self.faults.append({"update": line["update"], "back_to": update, "fault": fault})
        return copy.deepcopy(state)
