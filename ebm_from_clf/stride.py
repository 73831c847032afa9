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

Each class has a density, and so steps, of its own: one length for all would be that of the
steepest, at which the chains of the others no longer get anywhere and fall behind.
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
# Chains of a class: as few as say how stiff it is, and as many as are remembered.
FEWEST = 20
LAST = 64
JUMP = 2.0


class Stride:
    """Creates the lengths of steps that follow the energy; they begin with the longest.

    Arguments:
        max_stiffness: The stiffness that 95 % of the chains of a class in ten updates, or of the
            last 64, are to be below, or just reach; `None` for steps that stay as long as they may
            be. Classes of fewer than 20 chains so far are looked at together, and those of none
            as the others. So are those of fewer in ten updates, if together they are at twice the
            limit, and at twice what is known of them: they are all steeper than they were.
        n_classes: The number of classes K.

    Attributes:
        factors: The length of a step of each class over the longest one, 1 or less, with shape
            (K), on the CPU.
    """

    def __init__(self, max_stiffness: float | None = 0.25, n_classes: int = 1) -> None:
        if max_stiffness is not None and not 0 < max_stiffness < EDGE:
            raise ValueError(
                f"`max_stiffness` must be between 0 and {EDGE}, where chains are thrown about, or "
                f"None for steps that stay, got {max_stiffness}."
            )
        self.max_stiffness = max_stiffness
        self.factors = torch.ones(n_classes, dtype=torch.float64)
        self._noted: list[Tensor] = []
        # What steps of length 1 would have for stiffness.
        self._last = torch.full((n_classes, LAST), math.nan)
        self._known = torch.full((n_classes,), math.nan)

    def note(self, stiffness: Tensor, y: Tensor, longest: float = 1.0) -> bool:
        """Notes the chains of an update; every ten of them the steps are fitted.

        Waits for the device then, and only then.

        Arguments:
            stiffness: The stiffness of each chain, with shape (B); NaN for those that do not
                count.
            y: Their classes, with shape (B).
            longest: The longest length of a step.

        Returns:
            Whether a factor changed.
        """
        if self.max_stiffness is None or not len(stiffness):
            return False
        self._noted.append(torch.stack([stiffness.detach().float(), y.float()]))
        if len(self._noted) < EVERY:
            return False
        # A state that was read from a file is on the CPU.
        noted = torch.cat([value.to(stiffness.device) for value in self._noted], 1).cpu()
        self._noted.clear()
        found, classes = noted[:, noted[0].isfinite()]
        lengths = longest * self.factors
        self._remember(found, classes.long(), lengths, self.max_stiffness)
        before = self.factors
        self._fit(lengths, self.max_stiffness)
        return not torch.equal(self.factors, before)

    def _remember(self, stiffness: Tensor, y: Tensor, lengths: Tensor, limit: float) -> None:
        """Takes chains into what is known of their classes."""
        rare = (torch.bincount(y, minlength=len(lengths)) < FEWEST) & self._known.isfinite()
        if rare[y].any():
            together = float(stiffness[rare[y]].quantile(0.95))
            expected = (self._known * lengths**2)[y[rare[y]]].float().quantile(0.95)
            if together > JUMP * max(limit, float(expected)):
                # As far as one fit shortens.
                more = min(together / max(limit, float(expected)), 4.0)
                self._last[rare] *= more
                self._known[rare] *= more
        # It grows with the square of the step.
        found = (stiffness / lengths[y] ** 2).float()
        for c in y.unique().tolist():
            new = found[y == c]
            window = torch.cat([self._last[c], new])[-max(LAST, len(new)) :]
            self._last[c] = window[-LAST:]
            if int(window.isfinite().sum()) >= FEWEST:
                self._known[c] = window.nanquantile(0.95)

    def _fit(self, lengths: Tensor, limit: float) -> None:
        """Brings steps nearer to the length that the limit allows."""
        rest = self._last[self._known.isnan()]
        if not rest.isfinite().any():
            rest = self._known
        together = rest.nanquantile(0.95)
        found = torch.where(self._known.isnan(), together, self._known).double()
        change = (limit / found.clamp_min(1e-9)).sqrt() / lengths
        fitted = (self.factors * change.clamp(0.5, LENGTHEN)).clamp(SHORTEST, 1.0)
        self.factors = torch.where(found.isnan(), self.factors, fitted)

    def state_dict(self) -> dict[str, Any]:
        """Returns the factors and what they will follow next."""
        return {
            "factors": self.factors,
            "noted": self._noted,
            "last": self._last.clone(),
            "known": self._known.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Arguments:
            state: The state.
        """
        if self.max_stiffness is not None:
            self.factors, self._noted = state["factors"].cpu(), list(state["noted"])
            self._last, self._known = state["last"].cpu().clone(), state["known"].cpu().clone()
