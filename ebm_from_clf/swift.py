"""An energy for chains, whose steps cost less and differ by rounding only.

It shares everything with the energy it is made of, but for the classifier's BatchNorms, which are
folded; see :mod:`ebm_from_clf.fold`.
"""

__all__ = ["Swift", "for_chains", "is_on_torus"]

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
        self._made_of = _tensors(energy)
        self._parts = list(energy.classifier.modules())

    def serves(self, energy: ClassifierEnergy) -> bool:
        """Tells whether this was made of an energy and of the parts that it has now.

        Arguments:
            energy: The energy.
        """
        now = _tensors(energy)
        same = len(now) == len(self._made_of) and all(
            a is b and kind == other
            for (a, *kind), (b, *other) in zip(now, self._made_of, strict=True)
        )
        parts = list(energy.classifier.modules())
        same = same and len(parts) == len(self._parts)
        same = same and all(a is b for a, b in zip(parts, self._parts, strict=True))
        return self.source is energy and same

    def energy(self) -> ClassifierEnergy:
        """Returns the swift energy, with everything as it is now."""
        self._folded.refresh()
        found = sharing(self.source)
        found.classifier = self._folded.network
        return found


def for_chains(energy: ClassifierEnergy) -> ClassifierEnergy:
    """Returns the energy that chains of an energy descend, which shares everything with it.

    A classifier whose observed images are cut out of larger ones may have a method `on_torus`,
    which returns it for images without a border, as `FrameConvNet` has: those are the chains.

    Arguments:
        energy: The energy.
    """
    if not is_on_torus(energy):
        return energy
    found = sharing(energy)
    found.classifier = energy.classifier.on_torus()  # type: ignore[operator]
    return found


def is_on_torus(energy: ClassifierEnergy) -> bool:
    """Tells whether chains are images on a torus, which observed ones are not.

    Arguments:
        energy: The energy.
    """
    return hasattr(energy.classifier, "on_torus")


def _tensors(energy: ClassifierEnergy) -> list[tuple[Tensor, torch.device, torch.dtype]]:
    """Returns the tensors of the classifier; one that is moved stays itself."""
    found = (*energy.classifier.parameters(), *energy.classifier.buffers())
    return [(value, value.device, value.dtype) for value in found]


def _probes(energy: ClassifierEnergy) -> Tensor:
    """Returns pale, plain and harsh images, and one without any structure."""
    mean, generator = energy.reference.mean, torch.Generator().manual_seed(0)
    field = energy.reference.sample(3, generator=generator) - mean
    noise = torch.rand(mean.shape, generator=generator)[None].to(mean)
    return torch.cat([mean + field.new_tensor([0.15, 1, 4]).view(3, 1, 1, 1) * field, noise])
