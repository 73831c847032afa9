r"""Images that no chain gets to.

.. math::
    f(x_i) - f(\tilde x_i) > c \, m, \qquad
    m \leftarrow \max \{ e^{-B / 512} m, \; \max_j ( f(\tilde x_j) - f(x_j) ) \}

At the fixed point of learning an image and a chain of its class are draws of one distribution:
one of them leads the other, in score, as often and as far as the other leads it. An image that
leads its chain by much more than any chain of late led its image, of whatever class, is one that
chains hardly get to, neither from their start nor from each other, or its chain is astray. In
the first case nothing pulls its score down again: it is raised whenever it is observed, until the
energy around it is too steep for the step of any chain. A chain of p may begin anywhere, so that
one goes on from the image, and pulls.
"""

__all__ = ["Lead"]

import math
from typing import Any

import torch
from torch import Tensor

MEMORY = 512
RARE = 0.25


class Lead:
    """Creates the memory of how far chains lead of late.

    Arguments:
        limit: How far an image may lead its chain, in times the largest lead of a chain over its
            image; `None` for any distance.

    Raises:
        ValueError: If the limit is not positive.
    """

    def __init__(self, limit: float | None) -> None:
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(
                f"Lead: `max_lead` must be positive, or null (None) for no limit, got {limit}."
            )
        self.limit = limit
        self._largest = torch.zeros(())

    def __call__(self, gap: Tensor) -> Tensor:
        """Tells which images of a batch lead by too much; a bool tensor of shape (B).

        None, if it is more than a quarter of them: then chains are behind as a whole, which is
        not for this to mend. It does not wait for the device.

        Arguments:
            gap: The scores of images less those of their chains, with shape (B).
        """
        if self.limit is None or not len(gap):
            return torch.zeros_like(gap, dtype=torch.bool)
        gap = gap.detach().float()
        lead = torch.where(gap.isfinite(), -gap, 0.0).amax()
        before = self._largest.to(gap.device) * math.exp(-len(gap) / MEMORY)
        self._largest = torch.maximum(before, lead)
        ahead = gap > self.limit * self._largest
        return ahead & (ahead.float().mean() <= RARE)

    def state_dict(self) -> dict[str, Any]:
        """Returns the largest lead of late."""
        return {"largest": self._largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Arguments:
            state: The state.
        """
        self._largest = state["largest"]
