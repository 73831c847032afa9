"""Sampling: images of classes, each from its own seed.

The image of (class, seed) depends on these two and the model alone: not on the other images, on
how many there are, or on how they were split into batches.
"""

__all__ = [
    "UNTUNED",
    "Samples",
    "draw",
    "heat",
    "join",
    "n_steps",
    "sample",
    "stream",
]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .blend import STRIDE, Blend, check, targets
from .drift import energy_and_score, sampling
from .energy import ClassifierEnergy
from .errors import Diverged
from .langevin import Langevin
from .modes import sharing
from .noise import Randomness, generators
from .start import ReferenceStart
from .swift import Swift, for_chains

PIXELS_AT_ONCE = 400_000
UNTUNED = Langevin(n_steps=100)


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
            shape (N); see :func:`heat`.
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
        energy: The energy. Images of a :class:`FrameConvNet` are on a torus, as its chains were.
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
    """Draws images with all that belongs to them; others and errors as for :func:`sample`.

    Arguments:
        frames: Images kept along the way of each chain.
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
    """Draws images part by part, as many at once as fit; others and errors as for :func:`draw`.

    Arguments:
        skip: Images at the beginning that are left out.
        progress: Called with the number of image-steps just done.
    """
    check(energy, classes, n, seed)
    sampler = sampler or energy.sampler or UNTUNED
    sampler.check_factors(energy.n_classes)
    energy = for_chains(Swift(energy).energy())
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
    coarse = sharing(energy)
    coarse.smoothing = replace(energy.smoothing, size=energy.coarse.size)
    return [(coarse, energy.coarse.n_steps), (energy, sampler.n_steps)]


def _chain(
    energy: ClassifierEnergy,
    sampler: Langevin,
    blends: Sequence[Blend],
    seeds: Sequence[int],
    frames: int,
    progress: Callable[[int], None] | None,
) -> Samples:
    """Runs one batch of chains in about as many pieces as frames are wanted."""
    wanted, leading = targets(energy, blends)
    noise = generators([s * STRIDE + int(c) for s, c in zip(seeds, leading, strict=True)])
    start = energy.start or ReferenceStart(energy.reference)
    device = energy.reference.mean.device
    y = wanted.to(device)
    u = energy.confine(energy.reference.encode(start(leading.to(device), generator=noise)))
    film = [energy.reference.decode(u).cpu()] if frames else []
    piece = max(1, n_steps(energy, sampler) // max(frames, 1))
    for stage, total in _stages(energy, sampler):
        done = 0

        def watch(u: Tensor, total: int = total) -> None:
            nonlocal done
            done += 1
            if frames and (done % piece == 0 or done == total):
                film.append(energy.reference.decode(u).cpu())
            if progress is not None:
                progress(len(y))

        u, _ = replace(sampler, n_steps=total)(stage, u, y, generator=noise, watch=watch)
    with torch.no_grad():
        x, value = energy.reference.decode(u).cpu(), energy(u, y).cpu()
    if not (x.isfinite().all() and value.isfinite().all()):
        raise Diverged("sample: a chain ran away. Give a smaller gain, step size or weights.")
    if energy.kept is not None:
        # Exactly, whatever the rounding of whitened coordinates.
        x = torch.where(energy.kept.mask.cpu(), energy.kept.image.cpu(), x)
    heated = torch.zeros(len(y))
    if energy.smoothing is not None and sampler.tilt_norm is None:
        heated = heat(energy, sampler, u, y, generator=noise).cpu()
    kept = torch.stack(film) if film else x.new_empty(0, *x.shape)
    outside = ((x <= 0) | (x >= 1)).float().flatten(1).mean(1)
    x, kept = x.clamp(0, 1), kept.clamp(0, 1)
    return Samples(x, leading, torch.tensor(seeds), value, kept, outside, heated)


def heat(
    energy: ClassifierEnergy, sampler: Langevin, u: Tensor, y: Tensor, *, generator: Randomness
) -> Tensor:
    r"""Returns how much a random score adds to the temperature, with shape (B).

    A drift of variance v per coordinate acts like noise of the temperature :math:`\frac{e^2 v}{4}
    \frac{1 + c}{1 - c}`, to which chains are heated beyond T. Estimated from two draws, hence
    unbiased and rough; 0 for an energy that is not random.

    Arguments:
        energy: The energy.
        sampler: How chains move.
        u: The state, with shape (B, C, H, W).
        y: The class indices, with shape (B), or weights of classes, with shape (B, K).
        generator: One generator, or one per chain.
    """
    with sampling(energy):
        u, y = u.detach().clone(), y.clone()
        first, second = (energy_and_score(energy.realise(u, generator), u, y)[1] for _ in range(2))
        # Half the squared difference of two draws has the variance for its mean.
        farther = (1 + sampler.momentum) / (1 - sampler.momentum)
        found = (first - second).flatten(1).square().mean(1)
        return farther * sampler.lengths(y) ** 2 / 8 * found
