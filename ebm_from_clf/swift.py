"""An energy for chains, whose steps cost less and differ by rounding only.

It shares everything with the energy it is made of, but for the classifier's BatchNorms, which are
folded; see :mod:`ebm_from_clf.fold`.
"""

__all__ = ["Swift"]

import torch
from torch import Tensor

from .energy import ClassifierEnergy
from .fold import fold
from .modes import sharing


class Swift:
    """Creates the maker of a swift copy of an energy.

    Arguments:
        energy: The energy.
    """

    def __init__(self, energy: ClassifierEnergy) -> None:
        self.source = energy
        self._folded = fold(energy.classifier, energy.space(_probes(energy)))
        self._of = energy.classifier

    @property
    def is_current(self) -> bool:
        """Whether the energy still has the classifier that this was made of."""
        return self.source.classifier is self._of

    def energy(self) -> ClassifierEnergy:
        """Returns the swift energy, with everything as it is now."""
        self._folded.refresh()
        found = sharing(self.source)
        found.classifier = self._folded.network
        return found


def _probes(energy: ClassifierEnergy) -> Tensor:
    """Returns pale, plain and harsh images, and one without any structure."""
    mean, generator = energy.reference.mean, torch.Generator().manual_seed(0)
    field = energy.reference.sample(3, generator=generator) - mean
    noise = torch.rand(mean.shape, generator=generator)[None].to(mean)
    return torch.cat([mean + field.new_tensor([0.15, 1, 4]).view(3, 1, 1, 1) * field, noise])
