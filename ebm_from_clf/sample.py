"""Sampling: images of classes, each from its own seed.

The image of (class, seed) depends on these two and the model alone: not on the other images, on
how many there are, or on how they were split into batches.
"""

__all__ = [
    "UNTUNED",
    "Blend",
    "Samples",
    "check",
    "draw",
    "join",
    "n_steps",
    "sample",
    "stream",
    "weights",
]

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .energy import ClassifierEnergy
from .errors import UsageError
from .fold import folded
from .langevin import Langevin
from .noise import generators
from .start import ReferenceStart

# A class index, or weights of several: {340: 0.5, 281: 0.5} is half zebra, half tabby.
Blend = int | Mapping[int, float]

PIXELS_AT_ONCE = 400_000
UNTUNED = Langevin(n_steps=100)
STRIDE = 1_000_003
LARGEST_SEED = 2**63 // STRIDE - 2


class Samples(NamedTuple):
    """Images with where they came from.

    Arguments:
        images: Pixels in [0, 1], with shape (N, C, H, W).
        classes: Their class indices, with shape (N); of several, that of most weight.
        seeds: Their seeds, with shape (N).
        energies: Their energies, in nats, with shape (N).
        frames: The images along the way, with shape (F, N, C, H, W); the first are the starts.
        saturated: The fraction of pixel values clipped to 0 or 1, with shape (N).
        heat: What the randomness of a smoothed score adds to the temperature at the end, with
            shape (N); see :meth:`Langevin.heat`.
    """

    images: Tensor
    classes: Tensor
    seeds: Tensor
    energies: Tensor
    frames: Tensor
    saturated: Tensor
    heat: Tensor


def sample(
    energy: ClassifierEnergy,
    classes: Sequence[Blend],
    n: int = 1,
    seed: int = 0,
    *,
    sampler: Langevin | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Draws n images of each class.

    Arguments:
        energy: The energy.
        classes: The class indices, or weights of several of them.
        n: The number of images of each.
        seed: The seed of the first image; the others follow it.
        sampler: How chains move. `None` for that of the energy, or 100 steps at T = 1.
        batch_size: Images at once. `None` for a number that fits in about a gigabyte.

    Returns:
        Images in [0, 1], class by class, with shape (len(classes) * n, C, H, W).

    Raises:
        UsageError: If a class or seed does not exist or n is not positive.
    """
    return draw(energy, classes, n, seed, sampler=sampler, batch_size=batch_size).images


def draw(
    energy: ClassifierEnergy,
    classes: Sequence[Blend],
    n: int = 1,
    seed: int = 0,
    *,
    sampler: Langevin | None = None,
    batch_size: int | None = None,
    frames: int = 0,
) -> Samples:
    """Draws images with all that belongs to them; arguments as for :func:`sample`.

    Arguments:
        energy: The energy.
        classes: The class indices, or weights of several of them.
        n: The number of images of each.
        seed: The seed of the first image.
        sampler: How chains move.
        batch_size: Images at once.
        frames: Images kept along the way of each chain.

    Raises:
        UsageError: If a class or seed does not exist or n is not positive.
    """
    parts = stream(energy, classes, n, seed, sampler=sampler, batch_size=batch_size, frames=frames)
    return join(list(parts))


def join(parts: Sequence[Samples]) -> Samples:
    """Joins parts of samples to one.

    Arguments:
        parts: The parts, at least one.
    """
    columns = list(zip(*parts, strict=True))
    # The frames lie along the first axis, the images along the second.
    axes = (0, 0, 0, 0, 1, 0, 0)
    return Samples(*(torch.cat(c, axis) for c, axis in zip(columns, axes, strict=True)))


def stream(
    energy: ClassifierEnergy,
    classes: Sequence[Blend],
    n: int = 1,
    seed: int = 0,
    *,
    sampler: Langevin | None = None,
    batch_size: int | None = None,
    frames: int = 0,
    skip: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Samples]:
    """Draws images part by part, as many at once as fit; arguments as for :func:`draw`.

    Arguments:
        energy: The energy.
        classes: The class indices, or weights of several of them.
        n: The number of images of each.
        seed: The seed of the first image.
        sampler: How chains move.
        batch_size: Images at once.
        frames: Images kept along the way of each chain.
        skip: Images at the beginning that are left out.
        progress: Called with the number of image-steps just done.

    Raises:
        UsageError: If a class or seed does not exist or n is not positive.
    """
    check(energy, classes, n, seed)
    sampler = sampler or energy.sampler or UNTUNED
    energy = _swift(energy)
    height, width = energy.reference.shape[1:]
    size = batch_size or min(256, max(1, PIXELS_AT_ONCE // (height * width)))
    done = skip
    while done < len(classes) * n:
        part = range(done, min(done + size, len(classes) * n))
        blends, seeds = [classes[i // n] for i in part], [seed + i % n for i in part]
        try:
            found = _chain(energy, sampler, blends, seeds, frames, progress)
        except torch.cuda.OutOfMemoryError:
            # The images do not depend on the split, so smaller batches give the same ones.
            if size == 1:
                raise
            size = max(1, size // 2)
            continue
        done += size
        yield found


def check(energy: ClassifierEnergy, classes: Sequence[Blend], n: int, seed: int) -> None:
    """Checks a request for samples.

    Arguments:
        energy: The energy.
        classes: The class indices, or weights of several of them.
        n: The number of images of each.
        seed: The seed of the first image.

    Raises:
        UsageError: If a class or seed does not exist or n is not positive.
    """
    every = [c for blend in classes for c in weights(blend)]
    last = (energy.n_classes or max(every, default=0) + 1) - 1
    empty = not classes or not all(weights(blend) for blend in classes)
    if n < 1 or empty or not all(0 <= c <= last for c in every):
        raise UsageError(
            f"sample: classes are 0 to {last} and n is 1 or more, "
            f"got classes {list(classes)[:8]} and n {n}."
        )
    if energy.n_classes is None and any(isinstance(blend, Mapping) for blend in classes):
        raise UsageError("sample: to blend classes, the classifier must state `num_classes`.")
    if not 0 <= seed <= LARGEST_SEED - n:
        raise UsageError(f"sample: a seed is 0 to {LARGEST_SEED - n}, got {seed}.")


def weights(blend: Blend) -> dict[int, float]:
    """Returns the weight of each class of a blend.

    Arguments:
        blend: A class index, or weights.
    """
    if isinstance(blend, Mapping):
        return {int(c): float(w) for c, w in blend.items()}
    return {int(blend): 1.0}


def _targets(energy: ClassifierEnergy, blends: Sequence[Blend]) -> tuple[Tensor, Tensor]:
    """Returns what each image is to be, as an index or as weights, and its leading class."""
    leading = torch.tensor([max(w, key=w.__getitem__) for w in map(weights, blends)])
    if not any(isinstance(blend, Mapping) for blend in blends):
        return leading, leading
    targets = torch.zeros(len(blends), energy.n_classes or 1)
    for row, blend in zip(targets, blends, strict=True):
        for c, weight in weights(blend).items():
            row[c] = weight
    return targets, leading


def n_steps(energy: ClassifierEnergy, sampler: Langevin) -> int:
    """Returns the steps of a chain, with those of the coarse stage.

    Arguments:
        energy: The energy.
        sampler: How chains move.
    """
    return sum(steps for _, steps in _stages(energy, sampler))


def _stages(energy: ClassifierEnergy, sampler: Langevin) -> list[tuple[ClassifierEnergy, int]]:
    """Returns the energies that a chain descends one after the other, with the steps of each."""
    if energy.coarse is None or energy.smoothing is None:
        return [(energy, sampler.n_steps)]
    coarse = copy.copy(energy)
    coarse.smoothing = replace(energy.smoothing, size=energy.coarse.size)
    return [(coarse, energy.coarse.n_steps), (energy, sampler.n_steps)]


def _swift(energy: ClassifierEnergy) -> ClassifierEnergy:
    """Returns an energy that differs by rounding only and whose steps cost less."""
    x = energy.reference.sample(1, generator=torch.Generator().manual_seed(0))
    found = copy.copy(energy)
    # A shallow copy of a module shares the dictionary of its parts.
    found._modules = energy._modules.copy()
    found.classifier = folded(energy.classifier, energy.space(x))
    return found


def _chain(
    energy: ClassifierEnergy,
    sampler: Langevin,
    blends: Sequence[Blend],
    seeds: Sequence[int],
    frames: int,
    progress: Callable[[int], None] | None,
) -> Samples:
    """Runs one batch of chains in about as many pieces as frames are wanted."""
    targets, leading = _targets(energy, blends)
    noise = generators([s * STRIDE + int(c) for s, c in zip(seeds, leading, strict=True)])
    start = energy.start or ReferenceStart(energy.reference)
    device = energy.reference.mean.device
    y = targets.to(device)
    u = energy.confine(energy.reference.encode(start(leading.to(device), generator=noise)))
    film = [energy.reference.decode(u).cpu()] if frames else []
    piece = max(1, n_steps(energy, sampler) // (frames or 10))
    for stage, total in _stages(energy, sampler):
        for done in range(0, total, piece):
            steps = min(piece, total - done)
            u, _ = replace(sampler, n_steps=steps)(stage, u, y, generator=noise)
            if frames:
                film.append(energy.reference.decode(u).cpu())
            if progress is not None:
                progress(steps * len(y))
    with torch.no_grad():
        x, value = energy.reference.decode(u).cpu(), energy(u, y).cpu()
    heat = torch.zeros(len(y))
    if energy.smoothing is not None:
        heat = sampler.heat(energy, u, y, generator=noise).cpu()
    kept = torch.stack(film) if film else x.new_empty(0, *x.shape)
    outside = ((x <= 0) | (x >= 1)).float().flatten(1).mean(1)
    x, kept = x.clamp(0, 1), kept.clamp(0, 1)
    return Samples(x, leading, torch.tensor(seeds), value, kept, outside, heat)
