r"""How long a Langevin step is: as long as the energy lets it be.

.. math::
    \rho = \frac{e^2}{4} \kappa, \qquad
    \kappa = - \frac{\langle d(u') - d(u), \, u' - u \rangle}{|u' - u|^2}

Along a direction in which U curves by k, the plain chain of step e at T = 1 has the variance
:math:`1 / (k (1 - \rho))` with :math:`\rho = e^2 k / 4`. It is least at :math:`\rho = 1/2`: beyond
that a steeper energy makes chains wider, not narrower, and learning, which steepens the energy
because chains are too wide, goes the wrong way, faster and faster; at :math:`\rho = 1` they are
thrown from one wall of the valley to the other without end. That is how fine-tuning diverges.

The stiffness :math:`\rho` of a step costs nothing: the drifts d at both its ends are at hand. Over
directions i it is the mean of :math:`\rho_i` with weights :math:`1 / (1 - \rho_i)`, their shares
of the way. Of many directions a single steep one shows only once it has a large share, that is,
when chains begin to be thrown; classifiers are steep in many.
"""

__all__ = ["Stride"]

import math
from typing import Any

import torch
from torch import Tensor

# A chain of this mean stiffness is thrown about in its steepest directions.
EDGE = 0.5
EVERY = 10
LENGTHEN = 1.05
SHORTEST = 1e-3


class Stride:
    """Creates the length of a step that follows the energy; it begins with the longest.

    Arguments:
        max_stiffness: The stiffness that 95 % of the chains of ten updates are to be below, or
            just reach; `None` for steps that stay as long as they may be.

    Attributes:
        factor: The length of a step over the longest one, 1 or less.
    """

    def __init__(self, max_stiffness: float | None = 0.25) -> None:
        if max_stiffness is not None and not 0 < max_stiffness < EDGE:
            raise ValueError(
                f"`max_stiffness` must be between 0 and {EDGE}, where chains are thrown about, or "
                f"None for steps that stay, got {max_stiffness}."
            )
        self.max_stiffness = max_stiffness
        self.factor = 1.0
        self._noted: list[Tensor] = []

    def note(self, stiffness: Tensor) -> bool:
        """Notes the chains of an update; every ten of them the step is fitted.

        Waits for the device then, and only then.

        Arguments:
            stiffness: The stiffness of each chain, with shape (B); NaN for those that do not
                count.

        Returns:
            Whether the factor changed.
        """
        if self.max_stiffness is None or not len(stiffness):
            return False
        self._noted.append(stiffness.detach().float())
        if len(self._noted) < EVERY:
            return False
        # A state that was read from a file is on the CPU.
        noted = torch.cat([value.to(stiffness.device) for value in self._noted])
        found, before = float(noted.nanquantile(0.95)), self.factor
        self._noted.clear()
        if not math.isfinite(found):
            return False
        # The stiffness grows with the square of the step.
        change = math.sqrt(self.max_stiffness / max(found, 1e-9))
        self.factor = min(max(self.factor * min(max(change, 0.5), LENGTHEN), SHORTEST), 1.0)
        return self.factor != before

    def state_dict(self) -> dict[str, Any]:
        """Returns the factor and what it will follow next."""
        return {"factor": self.factor, "noted": self._noted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Arguments:
            state: The state.
        """
        if self.max_stiffness is not None:
            self.factor, self._noted = state["factor"], list(state["noted"])
