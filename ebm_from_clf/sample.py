"""Sampling: images of classes, each from its own seed.

The image of (class, seed) depends on these two and the model alone: not on the other images, on
how many there are, or on how they were split into batches.
"""

__all__ = ["Samples", "draw", "sample", "write_samples"]

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .energy import ClassifierEnergy
from .errors import UsageError
from .folders import new_folder, slug
from .langevin import Langevin
from .noise import generators
from .pictures import grid, picture, write_film
from .start import ReferenceStart

PIXELS_AT_ONCE = 400_000
FRAMES = 16


class Samples(NamedTuple):
    """Images with where they came from.

    Arguments:
        images: Pixels in [0, 1], with shape (N, C, H, W).
        classes: Their class indices, with shape (N).
        seeds: Their seeds, with shape (N).
        energies: Their energies, in nats, with shape (N).
        frames: The images along the way, with shape (F, N, C, H, W).
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
        UsageError: If a class does not exist or n is not positive.
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
    progress: Callable[[int], None] | None = None,
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
        progress: Called with the number of image-steps just done.

    Raises:
        UsageError: If a class does not exist or n is not positive.
    """
    last = (energy.n_classes or max(classes, default=0) + 1) - 1
    if n < 1 or not classes or not all(0 <= c <= last for c in classes):
        raise UsageError(
            f"sample: classes are 0 to {last} and n is 1 or more, "
            f"got classes {list(classes)[:8]} and n {n}."
        )
    sampler = sampler or energy.sampler or Langevin(n_steps=100)
    device = energy.reference.mean.device
    y = torch.tensor(list(classes)).repeat_interleave(n)
    seeds = (seed + torch.arange(n)).repeat(len(classes))
    height, width = energy.reference.shape[1:]
    size = batch_size or min(256, max(1, PIXELS_AT_ONCE // (height * width)))
    parts = []
    done = 0
    while done < len(y):
        part = slice(done, done + size)
        try:
            parts.append(
                _chain(energy, sampler, y[part].to(device), seeds[part], frames, progress)
            )
            done += size
        except torch.cuda.OutOfMemoryError:
            # The images do not depend on the split, so smaller batches give the same ones.
            if size == 1:
                raise
            size = max(1, size // 2)
    x = torch.cat([p[0] for p in parts])
    film = torch.cat([p[2] for p in parts], 1)
    outside = ((x <= 0) | (x >= 1)).float().flatten(1).mean(1)
    energies = torch.cat([p[1] for p in parts])
    return Samples(x.clamp(0, 1), y, seeds, energies, film.clamp(0, 1), outside)


def _chain(
    energy: ClassifierEnergy,
    sampler: Langevin,
    y: Tensor,
    seeds: Tensor,
    frames: int,
    progress: Callable[[int], None] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs one batch of chains in about as many pieces as frames are wanted."""
    noise = generators([int(s) * 1_000_003 + int(c) for s, c in zip(seeds, y.cpu(), strict=True)])
    start = energy.start or ReferenceStart(energy.reference)
    u = energy.reference.encode(start(y, generator=noise))
    film = [energy.reference.decode(u).cpu()] if frames else []
    piece = max(1, sampler.n_steps // (frames or 10))
    done = 0
    while done < sampler.n_steps:
        steps = min(piece, sampler.n_steps - done)
        u, _ = replace(sampler, n_steps=steps)(energy, u, y, generator=noise)
        done += steps
        if frames:
            film.append(energy.reference.decode(u).cpu())
        if progress is not None:
            progress(steps * len(y))
    with torch.no_grad():
        x, value = energy.reference.decode(u), energy(u, y)
    kept = torch.stack(film) if film else x.new_empty(0, *x.shape, device="cpu")
    return x.cpu(), value.cpu(), kept


def write_samples(
    energy: ClassifierEnergy,
    classes: Sequence[int],
    n: int,
    seed: int,
    output: str | Path,
    *,
    names: Sequence[str] | None = None,
    sampler: Langevin | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Draws images into a folder, with `metadata.jsonl`, `grid.png` and `chains.gif`.

    Arguments:
        energy: The energy.
        classes: The class indices.
        n: The number of images of each.
        seed: The seed of the first image.
        output: The folder; it must not exist, or be empty.
        names: The name of each class of the classifier.
        sampler: How chains move.
        batch_size: Images at once.
        progress: Called with the number of image-steps just done.

    Raises:
        UsageError: If a class does not exist or the folder is taken or cannot be written.
    """
    sampler = sampler or energy.sampler or Langevin(n_steps=100)
    folder = new_folder(output)
    result = draw(
        energy,
        classes,
        n,
        seed,
        sampler=sampler,
        batch_size=batch_size,
        frames=FRAMES,
        progress=progress,
    )
    lines = []
    for image, c, s, value, outside in zip(
        result.images, *(v.tolist() for v in result[1:4]), result.saturated.tolist(), strict=True
    ):
        label = names[c] if names else str(c)
        place = folder / f"{c:05d}_{slug(label)}"
        place.mkdir(exist_ok=True)
        picture(image).save(place / f"{s}.png")
        line = {
            "file_name": f"{place.name}/{s}.png",
            "class": c,
            "label": label,
            "seed": s,
            "energy": value,
            "steps": sampler.n_steps,
            "saturated": round(outside, 6),
        }
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = min(n, 10)
    shown = (torch.arange(len(result.images)) % n < columns).nonzero().flatten()[:200]
    grid(result.images[shown], columns).save(folder / "grid.png")
    few = (torch.arange(len(result.images)) % n < min(n, 5)).nonzero().flatten()[:50]
    film = [grid(frame[few], min(n, 5), width=300) for frame in result.frames]
    write_film(film, folder / "chains.gif")
    return result
