r"""When chains fall behind the data, begin them anew; then go back, slow down, and go on.

The guard begins single chains anew that got lost. When a line of the log shows a fault (see
:mod:`ebm_from_clf.fault`) that chains alone may have, those of its classes are begun anew; if it
comes again, or is one of the weights, the run returns to a state from well before it, with a lower
learning rate, and with more steps where chains fell behind; with shorter ones too where these were
stiff, since an energy that is too steep for the step throws chains off, however many they make
(see :mod:`ebm_from_clf.stride`). If that does not help either it stops with the fault's name. The
guard looks at numbers that learning has computed anyway, once for each line.
"""

__all__ = ["Guard"]

import copy
import math
from collections import deque
from typing import Any

from torch import Tensor

from .errors import Diverged
from .fault import Fault, GuardSettings
from .stride import EDGE


class Guard:
    """Creates a guard; it holds the copies, the caller holds the run.

    Arguments:
        settings: The settings.

    Attributes:
        actions: What was done, in order: `update`, `fault`, what it is `of`, whether chains were
            `stiff`, `action`, and for a return where it went `back_to`.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.actions: list[dict[str, Any]] = []
        self._kept: deque[tuple[int, dict[str, Any]]] = deque(maxlen=2)
        # When chains were begun anew, by the classes whose chains they are.
        self._anew: dict[str, int] = {}

    @property
    def rollbacks(self) -> int:
        """How often the run went back."""
        return len(self._returns())

    @property
    def rate(self) -> float:
        """The factor on the learning rate."""
        return self.settings.slow_down**self.rollbacks

    @property
    def steps(self) -> float:
        """The factor on the Langevin steps of an update."""
        behind = sum(a["of"] in ("chains", "overshoot") for a in self._returns())
        return self.settings.more_steps**behind

    @property
    def step_size(self) -> float:
        """The factor on the length of a Langevin step."""
        return self.settings.shorter_step ** sum(a["stiff"] for a in self._returns())

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
        return ~(synthesized >= observed.min() - self.settings.max_lag)

    def settle(self, update: int) -> None:
        """Notes a healthy line: chains begun anew some time before it are mended.

        Arguments:
            update: The update of the line.
        """
        every = self.settings.keep_every
        self._anew = {of: at for of, at in self._anew.items() if update - at < every}

    def wants(self, update: int) -> bool:
        """Tells whether it is time for a copy of a healthy state."""
        return not self._kept or update - self._kept[-1][0] >= self.settings.keep_every

    def keep(self, update: int, state: dict[str, Any], *, alone: bool = False) -> None:
        """Keeps a copy of a healthy state.

        Arguments:
            update: The update it was taken at.
            state: The state.
            alone: Whether there is no way back beyond it.
        """
        if alone:
            self._kept.clear()
        self._kept.append((update, copy.deepcopy(state)))

    def act(self, fault: Fault, line: dict[str, float]) -> dict[str, Any] | None:
        """Notes a fault and decides what is done about it.

        Arguments:
            fault: What is wrong.
            line: The last line of the log.

        Returns:
            The state to go back to; what came after it is forgotten. `None` if the chains of the
            fault are to be begun anew, as is tried once before each return.

        Raises:
            Diverged: If the run went back often enough already.
        """
        update = int(line["update"])
        # Where it is not known, as after single steps, chains count as stiff.
        slow = line.get("stiffness", math.inf) <= EDGE
        stiff = fault.of == "overshoot" or (fault.of == "chains" and not slow)
        note = {"update": update, "fault": fault.text, "of": fault.of, "stiff": stiff}
        if fault.of in ("chains", "stuck") and str(fault.classes) not in self._anew:
            self._anew[str(fault.classes)] = update
            self.actions.append(note | {"action": "chains begun anew"})
            return None
        if self.rollbacks >= self.settings.rollbacks or not self._kept:
            raise Diverged(
                f"fine-tuning diverged at update {update} after {self.rollbacks} "
                f"rollbacks: {fault.text}."
            )
        while len(self._kept) > 1:
            self._kept.pop()
        back, state = self._kept[0]
        self._anew = {}
        self.actions.append(note | {"action": "went back", "back_to": back})
        return copy.deepcopy(state)

    def state_dict(self) -> dict[str, Any]:
        """Returns the actions and the copies."""
        return {"actions": self.actions, "kept": list(self._kept), "anew": self._anew}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Arguments:
            state: The state.
        """
        self.actions, self._anew = list(state["actions"]), dict(state["anew"])
        self._kept = deque((tuple(pair) for pair in state["kept"]), maxlen=2)

    def _returns(self) -> list[dict[str, Any]]:
        return [action for action in self.actions if "back_to" in action]
