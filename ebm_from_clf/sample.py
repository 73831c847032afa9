"""Sampling: images of classes, each from its own seed.

The image of (class, seed) depends on these two and the model alone: not on the other images, on
how many there are, or on how they were split into batches.
"""

__all__ = ["UNTUNED", "Samples", "draw", "join", "sample", "stream"]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .energy import ClassifierEnergy
from .errors import UsageError
from .langevin import Langevin
from .noise import generators
from .start import ReferenceStart

PIXELS_AT_ONCE = 400_000
UNTUNED = Langevin(n_steps=100)
STRIDE = 1_000_003
LARGEST_SEED = 2**63 // STRIDE - 2


class Samples(NamedTuple):
    """Images with where they came from.

    Arguments:
        images: Pixels in [0, 1], with shape (N, C, H, W).
        classes: Their class indices, with shape (N).
        seeds: Their seeds, with shape (N).
        energies: Their energies, in nats, with shape (N).
        frames: The images along the way, with shape (F, N, C, H, W); the first are the starts.
        saturated: The fraction of pixel values clipped to 0 or 1, with shape (N).
    """

    images: Tensor
    classes: Tensor
    seeds: Tensor
    energies: Tensor
    frames: Tensor
    saturated: Tensor


def sample(
    energy: ClassifierEnergy,
    classes: Sequence[int],
    n: int = 1,
    seed: int = 0,
    *,
    sampler: Langevin | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Draws n images of each class.

    Arguments:
        energy: The energy.
        classes: The class indices.
        n: The number of images of each.
        seed: The seed of the first image; the others follow it.
        sampler: How chains move. `None` for the sampler the energy was fine-tuned with.
        batch_size: Images at once. `None` for a number that fits in about a gigabyte.

    Returns:
        Images in [0, 1], class by class, with shape (len(classes) * n, C, H, W).

    Raises:
        UsageError: If a class or seed does not exist or n is not positive.
    """
    return draw(energy, classes, n, seed, sampler=sampler, batch_size=batch_size).images


def draw(
    energy: ClassifierEnergy,
    classes: Sequence[int],
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
        classes: The class indices.
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
    axes = (0, 0, 0, 0, 1, 0)
    return Samples(*(torch.cat(c, axis) for c, axis in zip(columns, axes, strict=True)))


def stream(
    energy: ClassifierEnergy,
    classes: Sequence[int],
    n: int = 1,
    seed: int = 0,
    *,
    sampler: Langevin | None = None,
    batch_size: int | None = None,
    frames: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Samples]:
    """Draws images part by part, as many at once as fit; arguments as for :func:`draw`.

    Arguments:
        energy: The energy.
        classes: The class indices.
        n: The number of images of each.
        seed: The seed of the first image.
        sampler: How chains move.
        batch_size: Images at once.
        frames: Images kept along the way of each chain.
        progress: Called with the number of image-steps just done.

    Raises:
        UsageError: If a class or seed does not exist or n is not positive.
    """
    last = (energy.n_classes or max(classes, default=0) + 1) - 1
    if n < 1 or not classes or not all(0 <= c <= last for c in classes):
        raise UsageError(
            f"sample: classes are 0 to {last} and n is 1 or more, "
            f"got classes {list(classes)[:8]} and n {n}."
        )
    if not 0 <= seed <= LARGEST_SEED - n:
        raise UsageError(f"sample: a seed is 0 to {LARGEST_SEED - n}, got {seed}.")
    sampler = sampler or energy.sampler or UNTUNED
    y = torch.tensor(list(classes)).repeat_interleave(n)
    seeds = (seed + torch.arange(n)).repeat(len(classes))
    height, width = energy.reference.shape[1:]
    size = batch_size or min(256, max(1, PIXELS_AT_ONCE // (height * width)))
    done = 0
    while done < len(y):
        part = slice(done, done + size)
        try:
            found = _chain(energy, sampler, y[part], seeds[part], frames, progress)
        except torch.cuda.OutOfMemoryError:
            # The images do not depend on the split, so smaller batches give the same ones.
            if size == 1:
                raise
            size = max(1, size // 2)
            continue
        done += size
        yield found


def _chain(
    energy: ClassifierEnergy,
    sampler: Langevin,
    y: Tensor,
    seeds: Tensor,
    frames: int,
    progress: Callable[[int], None] | None,
) -> Samples:
    """Runs one batch of chains in about as many pieces as frames are wanted."""
    noise = generators([int(s) * STRIDE + int(c) for s, c in zip(seeds, y, strict=True)])
    start = energy.start or ReferenceStart(energy.reference)
    label = y.to(energy.reference.mean.device)
    u = energy.reference.encode(start(label, generator=noise))
    film = [energy.reference.decode(u).cpu()] if frames else []
    piece = max(1, sampler.n_steps // (frames or 10))
    done = 0
    while done < sampler.n_steps:
        steps = min(piece, sampler.n_steps - done)
        u, _ = replace(sampler, n_steps=steps)(energy, u, label, generator=noise)
        done += steps
        if frames:
            film.append(energy.reference.decode(u).cpu())
        if progress is not None:
            progress(steps * len(y))
    with torch.no_grad():
        x, value = energy.reference.decode(u).cpu(), energy(u, label).cpu()
    kept = torch.stack(film) if film else x.new_empty(0, *x.shape)
    outside = ((x <= 0) | (x >= 1)).float().flatten(1).mean(1)
    return Samples(x.clamp(0, 1), y, seeds, value, kept.clamp(0, 1), outside)
