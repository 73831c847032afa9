r"""What one unit of a classifier responds to: its response in the place of a logit.

.. math::
    p_k(x) = \exp(\gamma \, s_k r_k(x)) \, q(x) / Z_k, \qquad
    r_k(x) = \frac{1}{|P|} \sum_{i \in P} F^{(l)}_k(x, i)

with the response F of channel k of a layer, averaged over its places P, or taken at one of them
(Dai, Lu and Wu, 2015). A mean, as the last layer of most classifiers takes it: it depends little
on the size of the image, and the response at one place is on its scale. The :math:`s_k` make the
tilts of units of all layers equally strong where chains start, so that one gain serves them all.

A unit is written `layer3.1.conv2:17`, the module and the channel of its output, or
`layer3.1.conv2:17@3,4` at row 3 and column 4 of it; in a sequence of tokens `blocks.2:17@5`.
"""

__all__ = ["Unit", "Units", "read_units", "units"]

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .energy import ClassifierEnergy
from .errors import UsageError
from .modes import sharing
from .smooth import Smoothing
from .untrained import NORM, auto_gain, prepare

FORM = re.compile(r"([^:@,\s]+):(\d+)(?:@(\d+(?:,\d+)*))?")


class Unit(NamedTuple):
    """Where a response is read.

    Arguments:
        module: The name of a module of the classifier.
        channel: The channel of its output.
        place: The row and column, or the token, of a single unit; empty for all places.
    """

    module: str
    channel: int
    place: tuple[int, ...] = ()

    def __str__(self) -> str:
        at = f"@{','.join(map(str, self.place))}" if self.place else ""
        return f"{self.module}:{self.channel}{at}"


def read_units(names: str | Sequence[str]) -> list[Unit]:
    """Reads units from words such as `layer1:3` and `layer2:7@0,5`, each once.

    Arguments:
        names: The words, in a list or with commas between.

    Raises:
        UsageError: If a word is no unit, or there is none.
    """
    words = [names] if isinstance(names, str) else names
    # A comma between row and column has no colon behind it before the next comma.
    parts = [part.strip() for word in words for part in re.split(r",(?!\d+(?:,|$))", word)]
    found: list[Unit] = []
    for part in parts:
        match = FORM.fullmatch(part)
        if match is None:
            raise UsageError(
                f"units: {part!r} is no unit. Give a module and a channel, as in "
                "layer3.1.conv2:17, and for one place row and column, as in layer3.1.conv2:17@3,4."
            )
        module, channel, place = match.groups()
        where = tuple(int(i) for i in place.split(",")) if place else ()
        found.append(Unit(module, int(channel), where))
    if not found:
        raise UsageError("units: name one or more, as in layer3.1.conv2:17.")
    return list(dict.fromkeys(found))


class Units(nn.Module):
    """Creates a network whose logits are the responses of units of a classifier.

    The classifier is an attribute and is not changed: what listens to it is there during a pass
    alone. The pass ends at the last layer that is asked for. Of a module that is called more than
    once the first output is read, before anything is done to it in place.

    References:
        | Generative Modeling of Convolutional Neural Networks (Dai, Lu and Wu, 2015)
        | https://arxiv.org/abs/1412.6296

    Arguments:
        classifier: The classifier.
        names: The units, K of them; see :func:`read_units`.

    Raises:
        UsageError: If there is no such module; in a pass, if there is no such channel or place,
            the output is not a tensor with one row per image, or the module is not called.
    """

    scale: Tensor

    def __init__(self, classifier: nn.Module, names: str | Sequence[str]) -> None:
        super().__init__()
        self.units = read_units(names)
        known = [name for name, _ in classifier.named_modules() if name]
        for unit in self.units:
            if unit.module not in known:
                near = get_close_matches(unit.module, known, 3) or known[:8]
                raise UsageError(
                    f"units: the classifier has no module {unit.module!r}. Try {', '.join(near)}."
                )
        self.classifier = classifier
        self.num_classes = len(self.units)
        self.register_buffer("scale", torch.ones(len(self.units)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the responses times their scales, with shape (B, K).

        Arguments:
            x: Inputs of the classifier, with shape (B, C, H, W).
        """
        found: dict[Unit, Tensor] = {}

        def reader(name: str) -> Callable[..., Tensor | None]:
            wanted = [unit for unit in self.units if unit.module == name]

            def read(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
                if wanted[0] in found:
                    return None
                # At once, since what comes behind may change the output in place.
                maps = _maps(name, module, output, x)
                found.update((unit, _response(unit, maps)) for unit in wanted)
                if len(found) == self.num_classes:
                    raise _Complete
                # Another tensor than the one that is read, or `fold` would take this module and
                # the norm behind it for one.
                return output.view_as(output)

            return read

        names = {unit.module for unit in self.units}
        hooks = [self.classifier.get_submodule(n).register_forward_hook(reader(n)) for n in names]
        try:
            self.classifier(x)
        except _Complete:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        for unit in self.units:
            if unit not in found:
                raise UsageError(
                    f"units: the classifier does not call its module {unit.module!r}. Name one "
                    "that it calls."
                )
        responses = torch.stack([found[unit] for unit in self.units], 1)
        return self.scale.to(responses) * responses


class _Complete(BaseException):
    """All responses are read; no error, so that no network takes it for one of its own."""


def _maps(name: str, module: nn.Module, output: Tensor, x: Tensor) -> Tensor:
    """Returns the output of a module as maps of its channels, with shape (B, K, *)."""
    if not isinstance(output, Tensor):
        raise UsageError(
            f"units: the output of {name!r} is a {type(output).__name__}, not a tensor. Name a "
            "part of it."
        )
    if output.ndim not in (2, 3, 4) or len(output) != len(x) or not output.is_floating_point():
        raise UsageError(
            f"units: the output of {name!r} has shape {tuple(output.shape)} for {len(x)} images, "
            "not one row of channels, tokens or maps for each. Name another module."
        )
    if output.ndim == 4 and not isinstance(module, nn.Linear):
        # Maps are as oblong as images; only where the channels are last the first two sides are.
        height, width = x.shape[2:]
        first, second, third = (int(side) for side in output.shape[1:])
        if first * width != second * height or second * width == third * height:
            return output
    return output.movedim(-1, 1)


def _response(unit: Unit, maps: Tensor) -> Tensor:
    """Returns the response of a unit, with shape (B)."""
    channels, places = maps.shape[1], maps.shape[2:]
    if unit.channel >= channels:
        raise UsageError(f"units: {unit}: the channels of {unit.module} are 0 to {channels - 1}.")
    if not unit.place:
        return maps[:, unit.channel].reshape(len(maps), -1).mean(1)
    inside = len(unit.place) == len(places) and all(
        i < n for i, n in zip(unit.place, places, strict=True)
    )
    if not inside:
        raise UsageError(
            f"units: {unit}: a place in the output of {unit.module} is "
            f"{','.join(f'0-{n - 1}' for n in places) or 'not to be given'}."
        )
    found = maps[:, unit.channel]
    for i in unit.place:
        found = found[:, i]
    return found.clone()


def units(energy: ClassifierEnergy, names: str | Sequence[str]) -> ClassifierEnergy:
    """Returns an energy whose classes are units of the classifier, for pictures of them.

    `sample(units(energy, ["layer3.1.conv2:17"]), [0], n=4)` shows what the channel responds to.
    Starts, coarse stage, sampler and gain are those of :func:`convert` with a smoothing. A chain
    that looks at smaller images has other places, so that there is no coarse stage with a place.

    Arguments:
        energy: The energy of the classifier. It is left as it is; the classifier is shared.
        names: The units; see :func:`read_units`. They become the names of the classes.

    Raises:
        UsageError: If there is no such unit, or one does not respond to any start.
    """
    network = Units(energy.classifier, names)
    found = _over(energy, network)
    found.smoothing = energy.smoothing or Smoothing()
    found.class_names = [str(unit) for unit in network.units]
    with torch.no_grad():
        found.classify(found.reference.mean[None])
    prepare(found)
    if any(unit.place for unit in network.units):
        found.coarse = None
    network.scale = network.scale.to(found.reference.mean)
    for k, name in enumerate(found.class_names):
        try:
            # From this unit alone, since how strong it is must not depend on the others.
            network.scale[k] = auto_gain(_over(found, Units(energy.classifier, [name])), norm=1.0)
        except ValueError as error:
            raise UsageError(
                f"units: {name} does not respond to any start. Name the layer before its "
                "rectifier, or another channel."
            ) from error
    found.gain = NORM
    return found


def _over(energy: ClassifierEnergy, network: Units) -> ClassifierEnergy:
    """Returns an energy with another network for its classifier, in the gauge raw."""
    found = sharing(energy)
    found.classifier, found.gauge = network, "raw"
    return found
