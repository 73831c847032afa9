"""What the words of a command line stand for: a classifier, an energy, classes, a photograph."""

__all__ = [
    "find_classes",
    "is_energy",
    "open_classifier",
    "open_energy",
    "open_photograph",
    "resized",
    "timm_name",
]

from pathlib import Path
from typing import Any

import torch

from .blend import Blend
from .checkpoint import load
from .convert import convert, create_classifier, space_of
from .edit import edit
from .energy import ClassifierEnergy
from .errors import UsageError
from .generative import enlarged
from .image_file import image_size, read_image, unlabelled
from .labels import find_blend, find_class
from .langevin import Langevin
from .smooth import Smoothing
from .space import dequantize
from .spectral import SpectralNoise

SMOOTHED = Smoothing()


def timm_name(name: str) -> str:
    """Returns what timm calls a classifier: a folder it wrote has a prefix.

    Arguments:
        name: Any name of timm, or a folder.

    Raises:
        UsageError: If it is the folder of a run, which has a model in it.
    """
    model = Path(name) / "model"
    if (model / "config.json").is_file():
        raise UsageError(f"{name}: the folder of a run. Give the model in it, {model}.")
    return f"local-dir:{name}" if (Path(name) / "config.json").is_file() else name


def is_energy(name: str) -> bool:
    """Tells whether a name is the folder of a saved energy, whose reference and gain are its own.

    Arguments:
        name: Any name of timm, or a folder.
    """
    config = Path(name) / "config.json"
    return config.is_file() and '"ebm"' in config.read_text(encoding="utf-8")


def open_classifier(
    name: str,
    images: str | None = None,
    **options: Any,  # noqa: ANN401
) -> ClassifierEnergy:
    """Converts a classifier, with the spectrum and colours of a folder of images if given.

    Arguments:
        name: Any name of timm, or a folder that timm wrote.
        images: The folder of images without labels. `None` for those of photographs.
        options: Handed to :func:`convert`.

    Raises:
        UsageError: If it cannot be converted, or a file is no image.
    """
    if images is None:
        return convert(timm_name(name), **options)
    classifier = create_classifier(timm_name(name))
    channels, *size = space_of(classifier).shape
    reference = SpectralNoise.fit(unlabelled(images, (size[0], size[1]), channels))
    return convert(classifier, reference=reference, **options)


def open_energy(
    name: str, images: str | None = None, *, smoothing: Smoothing | None = SMOOTHED
) -> ClassifierEnergy:
    """Opens a saved energy, or converts a classifier on the fly; on the GPU if there is one.

    Arguments:
        name: The folder of an energy, any name of timm, or a folder that timm wrote.
        images: For a classifier, the folder of images; see :func:`open_classifier`.
        smoothing: For a classifier, the changes that scores are averaged over.

    Raises:
        UsageError: If there is none, or it cannot be converted.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if is_energy(name):
        if images is not None:
            raise UsageError(f"{name}: has its reference already. Give --reference to `convert`.")
        energy = load(name).to(device)
    else:
        energy = open_classifier(name, images, smoothing=smoothing).to(device)
    if energy.smoothing is not None and all(p.ndim <= 4 for p in energy.classifier.parameters()):
        # Convolutions are faster so, on the CPU too; the numbers are the same up to rounding.
        energy.classifier.to(memory_format=torch.channels_last)
    return energy


def resized(energy: ClassifierEnergy, side: int | None) -> ClassifierEnergy:
    """Returns an energy on squares of another side.

    Arguments:
        energy: The energy.
        side: Height and width of the images. `None` for its own.

    Raises:
        ValueError: If the model is of one size; see :func:`enlarged`.
    """
    if side is None or (side, side) == tuple(energy.reference.shape[1:]):
        return energy
    return enlarged(energy, (side, side))


def open_photograph(
    energy: ClassifierEnergy,
    photograph: str,
    strength: float | None,
    mask: str | None,
    sampler: Langevin,
) -> ClassifierEnergy:
    """Returns the energy of changes of a photograph; see :func:`edit`.

    Arguments:
        energy: The energy.
        photograph: An image file.
        strength: How much of it may change. `None` for 0.4, or 1 with a mask.
        mask: An image file of the same size, white where it is kept. `None` for nowhere.
        sampler: How chains move.

    Raises:
        UsageError: If a file is no image, their sizes differ, or the mask keeps nothing.
    """
    channels, *size = energy.space.shape
    height, width = size
    image = dequantize(read_image(photograph, (height, width), channels))
    kept = None
    if mask is not None:
        sizes = image_size(photograph), image_size(mask)
        if sizes[0] != sizes[1]:
            raise UsageError(
                f"{mask}: the mask is {sizes[1][1]}x{sizes[1][0]}, the photograph "
                f"{sizes[0][1]}x{sizes[0][0]}. Give a mask of its size, white where it is kept."
            )
        kept = read_image(mask, (height, width), 1)[0] > 127
        if not kept.any():
            raise UsageError(f"{mask}: the mask keeps nothing. Paint what is kept white.")
    if strength is None:
        strength = 0.4 if mask is None else 1.0
    return edit(energy, image, strength, mask=kept, sampler=sampler)


def find_classes(text: str, energy: ClassifierEnergy) -> list[Blend]:
    """Reads class indices, class names, blends of them, or `all`.

    Arguments:
        text: The words, with commas between them.
        energy: The energy, whose classes have names.

    Raises:
        UsageError: If there is no such class.
    """
    names = energy.class_names or []
    if text == "all":
        return list(range(energy.n_classes or len(names)))
    if text in names:
        return [find_class(text, names)]
    found = [find_blend(word, names) for word in text.split(",")]
    return [blend for i, blend in enumerate(found) if blend not in found[:i]]
