r"""How many Langevin steps an update makes, and how stiff they may be.

More of them late, or where chains fall behind; how stiff, see :mod:`ebm_from_clf.stride`.

.. math::
    K_t = K \, g^{(1 - \cos \pi t / n) / 2}, \qquad
    K' = K + [\mathrm{AUC} > a] - [\mathrm{AUC} < a - w]

Early on weights learn most from many updates with few steps. Late, when the learning rate falls,
chains that go far while the weights hardly move tell what the energy does to long chains: with a
growth g above 1, steps become more as a learning rate falls that follows a cosine.

AUC is the probability that an observed image scores higher than a synthesized one, .5 where the
two cannot be told apart. Chains that can be told apart have not come far enough: they get more
steps (Yin et al., 2025, https://arxiv.org/abs/2510.13872, where the number only rises). Steps are
most of the cost of an update, so those that are not needed are given back. The AUC is that of
scores which learning has computed anyway.
"""

__all__ = ["Curriculum"]

import math
from dataclasses import dataclass

from .stride import Stride

WIDTH = 0.1


@dataclass(frozen=True)
class Curriculum:
    """Settings of the curriculum of Langevin steps, which is looked at with each line of the log.

    Arguments:
        growth: Steps at the end of a run over those at its beginning.
        auc: Probability that an observed image scores higher than a synthesized one, above which
            an update makes one step more; .1 below it, one step less. 1 for steps as they are.
        fewest: Least number of steps by `auc`, before they grow.
        most: Largest number of steps by `auc`, before they grow.
        max_stiffness: Largest stiffness of a step, above which steps are shortened, and
            lengthened again when the energy allows it, whenever ten updates of two steps or more
            were made; `None` for steps that stay as long as the sampler says. See
            :mod:`ebm_from_clf.stride`.
    """

    growth: float = 1.0
    auc: float = 1.0
    fewest: int = 1
    most: int = 40
    max_stiffness: float | None = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.auc <= 1:
            raise ValueError(f"Curriculum: `auc` is a probability, got {self.auc}.")
        if not 0 < self.growth < math.inf:
            raise ValueError(f"Curriculum: `growth` must be positive, got {self.growth}.")
        if not 1 <= self.fewest <= self.most:
            raise ValueError(
                f"Curriculum: `fewest` must be 1 or more, and `most` no less, got {self.fewest} "
                f"and {self.most}."
            )
        Stride(self.max_stiffness)  # checks it

    def grown(self, progress: float) -> float:
        """Returns what steps are multiplied by at a fraction of the run.

        Arguments:
            progress: The fraction, 0 to 1.
        """
        return self.growth ** ((1 - math.cos(math.pi * progress)) / 2)

    def steps(self, n_steps: int, auc: float) -> int:
        """Returns the number of steps of the updates that follow.

        Arguments:
            n_steps: The number of steps so far.
            auc: The AUC of the last updates.
        """
        if self.auc == 1:
            return n_steps
        change = (auc > self.auc) - (auc < self.auc - WIDTH)
        return min(max(n_steps + change, self.fewest), self.most)
