"""An energy as a timm-native folder.

`config.json` and `model.safetensors` are what timm writes and reads: `timm.create_model(
"local-dir:DIR", pretrained=True)` gives the classifier back, bit-identical (but a network of
a single category, which timm does not know). The energy adds a key `"ebm"` to the config and keeps
its own tensors in `ebm.safetensors`. Nothing is pickled.
"""

__all__ = ["load", "save"]

import json
import warnings
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from .convert import class_names, create_classifier
from .energy import ClassifierEnergy
from .errors import UsageError
from .fitted import FittedGaussian
from .folders import publish
from .frame import FrameConvNet
from .generative import GenerativeConvNet
from .langevin import Langevin
from .mixture import ClassMixture
from .reference import Reference, WhiteNoise
from .smooth import Coarse, Smoothing
from .space import PixelSpace
from .spectral import SpectralNoise
from .start import ClassGaussian, ReferenceStart, Start, UniformStart
from .stationary import StationaryGaussian

REFERENCES = {
    c.__name__: c for c in (WhiteNoise, SpectralNoise, FittedGaussian, StationaryGaussian)
}
OWN = (FrameConvNet, GenerativeConvNet)  # networks that timm does not know
KEPT_STARTS = ("ClassGaussian", "ClassMixture", "ReferenceStart", "UniformStart")
FORMAT = 1


def save(energy: ClassifierEnergy, place: str | Path) -> None:
    """Writes an energy, with its start and sampler, as a folder that timm can read.

    A `DataStart` is left out, with a warning, since a model is no place for a copy of the data;
    so is a start of a class of your own. Set `energy.start` again after loading.

    Arguments:
        energy: The energy; its classifier is a timm model.
        place: The folder; it must not exist, or be empty.

    Raises:
        UsageError: If the folder is taken, cannot be written, timm did not make the classifier,
            start or sampler are of other classes, or the energy is one of :func:`edit`.
    """
    classifier = energy.classifier
    if not hasattr(classifier, "pretrained_cfg"):
        raise UsageError(
            f"save: {type(classifier).__name__} is not a timm model, so timm could not read it "
            "back. Build it with timm.create_model."
        )
    start = type(energy.start).__name__
    if start == "PhotoStart":
        raise UsageError("save: an edit is about one photograph. Save the energy it was made of.")
    _refuse_parts(energy)
    if energy.start is not None and start not in KEPT_STARTS:
        warnings.warn(f"save: a {start} is not kept; set energy.start after loading", stacklevel=2)
    tensors = {f"reference.{k}": v for k, v in energy.reference.arguments.items()}
    if isinstance(energy.start, ClassGaussian):
        tensors |= {f"start.{k}": v for k, v in energy.start.named_buffers()}
    config: dict[str, Any] = {
        "format": FORMAT,
        "reference": type(energy.reference).__name__,
        "gauge": energy.gauge,
        "gain": energy.gain,
        "support": energy.support,
        "mean": energy.space.mean.flatten().tolist(),
        "std": energy.space.std.flatten().tolist(),
        "size": list(energy.space.size),
        "start": start,
        "contrast": float(getattr(energy.start, "contrast", 1.0)),
        "start_size": list(energy.start.size) if isinstance(energy.start, ClassGaussian) else None,
        "coarse": energy.coarse,
        "smoothing": None if energy.smoothing is None else asdict(energy.smoothing),
        "sampler": None if energy.sampler is None else asdict(energy.sampler),
        "network": classifier.arguments if isinstance(classifier, OWN) else None,
    }
    with publish(place) as staging:
        save_for_hf(
            # safetensors takes contiguous tensors only; a classifier may be in channels_last.
            deepcopy(classifier).to(memory_format=torch.contiguous_format),
            str(staging),
            model_config={"ebm": config} | _label_names(energy),
            safe_serialization=True,
        )
        own = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(own, staging / "ebm.safetensors")


def load(place: str | Path) -> ClassifierEnergy:
    """Reads an energy that :func:`save` wrote, on the CPU.

    Arguments:
        place: The folder.

    Raises:
        UsageError: If the folder is no saved energy, or a file is missing, damaged or not finite.
    """
    place = Path(place)
    try:
        whole = json.loads((place / "config.json").read_text(encoding="utf-8"))
        config = whole["ebm"]
        tensors = load_file(place / "ebm.safetensors")
        if config["format"] > FORMAT:
            raise UsageError(f"{place}: written by a newer version; upgrade ebm-from-clf.")
        classifier = _network(place, whole, config.get("network"))
        return _restore(config, tensors, classifier)
    except UsageError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"{place}: not a saved energy, or damaged ({type(error).__name__}: "
            f"{str(error).strip()[:100]}). Convert or fine-tune again."
        ) from error


def _network(place: Path, config: dict[str, Any], arguments: dict[str, Any] | None) -> nn.Module:
    """Creates the network of a folder: one of timm, or one of a single category."""
    if arguments is None:
        return create_classifier(f"local-dir:{place}")
    network = create_classifier(config["architecture"], pretrained=False, **arguments)
    network.pretrained_cfg["label_names"] = config.get("label_names")  # type: ignore[assignment, index, operator]
    network.load_state_dict(load_file(place / "model.safetensors"))
    return network


def _label_names(energy: ClassifierEnergy) -> dict[str, Any]:
    return {"label_names": list(energy.class_names)} if energy.class_names else {}


def _restore(
    config: dict[str, Any], tensors: dict[str, Tensor], classifier: nn.Module
) -> ClassifierEnergy:
    named = {f"model.{k}": v for k, v in classifier.state_dict().items()} | tensors
    for name, value in named.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UsageError(f"{name} is not finite: the saved energy is damaged.")
    parts: dict[str, dict[str, Tensor]] = {"reference": {}, "start": {}}
    for name, value in tensors.items():
        owner, _, key = name.partition(".")
        parts[owner][key] = value
    energy = ClassifierEnergy(
        classifier,
        REFERENCES[config["reference"]](**parts["reference"]),  # type: ignore[arg-type]
        PixelSpace(config["mean"], config["std"], tuple(config["size"])),
        gauge=config["gauge"],
        gain=config["gain"],
        support=config["support"],
        smoothing=_restore_smoothing(config.get("smoothing")),
    )
    energy.class_names = class_names(classifier)
    energy.start = _restore_start(config, parts["start"], energy.reference)
    energy.coarse = Coarse(*config["coarse"]) if config.get("coarse") else None
    energy.sampler = _restore_sampler(config["sampler"])
    _check_parts(energy)
    return energy


def _refuse_parts(energy: ClassifierEnergy) -> None:
    """Refuses to write what :func:`load` would not read."""
    try:
        _check_parts(energy)
    except ValueError as error:
        raise UsageError(f"save: {error} Set the start or sampler of the energy.") from error


def _check_parts(energy: ClassifierEnergy) -> None:
    """Checks that start and sampler are of the classes and images of the energy."""
    if energy.sampler is not None:
        energy.sampler.check_factors(energy.n_classes)
    start = energy.start
    if isinstance(start, ClassGaussian):
        found = len(start.weight if isinstance(start, ClassMixture) else start.mean)
        if found != (energy.n_classes or found) or start.shape != energy.reference.shape:
            raise ValueError(
                f"starts are of {found} classes and images {tuple(start.shape)}, the classifier "
                f"has {energy.n_classes} and {tuple(energy.reference.shape)}."
            )


def _restore_sampler(config: dict[str, Any] | None) -> Langevin | None:
    if config is None:
        return None
    factors = config.get("step_factors")
    return Langevin(**config | {"step_factors": None if factors is None else tuple(factors)})


def _restore_smoothing(config: dict[str, Any] | None) -> Smoothing | None:
    if config is None:
        return None
    # Every field must be there: what is missing must not become today's default.
    found = {field.name: config[field.name] for field in fields(Smoothing)}
    return Smoothing(**found | {"zoom": tuple(found["zoom"])})


def _restore_start(
    config: dict[str, Any], tensors: dict[str, Tensor], reference: Reference
) -> Start | None:
    name = config["start"]
    if name == "ReferenceStart":
        return ReferenceStart(reference, config.get("contrast", 1.0))
    if name == "UniformStart":
        return UniformStart(reference.shape)
    if name in ("ClassGaussian", "ClassMixture"):
        kind = ClassMixture if name == "ClassMixture" else ClassGaussian
        return kind(**tensors, size=config.get("start_size"))
    return None
