"""A folder of samples: images by class, where each came from, a grid, and chains on their way.

DIR/<index, zero-padded>_<slug>/<seed>.png    DIR/metadata.jsonl    DIR/grid.png    DIR/chains.gif
"""

__all__ = ["Gallery", "write_samples"]

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .energy import ClassifierEnergy
from .folders import publish, slug
from .langevin import Langevin
from .pictures import grid, picture, write_film
from .sample import UNTUNED, Samples, join, stream

FRAMES = 16
SHOWN = 200
COLUMNS = 10
FILMED = 50
FILMED_COLUMNS = 5


def write_samples(
    energy: ClassifierEnergy,
    classes: Sequence[int],
    n: int,
    seed: int,
    output: str | Path,
    *,
    sampler: Langevin | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Draws images into a folder, which appears once all of them are there.

    Arguments:
        energy: The energy; its class names become labels.
        classes: The class indices.
        n: The number of images of each.
        seed: The seed of the first image.
        output: The folder; it must not exist, or be empty.
        sampler: How chains move. `None` for the sampler the energy was fine-tuned with.
        batch_size: Images at once.
        progress: Called with the number of image-steps just done.

    Returns:
        The samples; of their frames the first, where chains start.

    Raises:
        UsageError: If a class or seed does not exist or the folder is taken or cannot be written.
    """
    sampler = sampler or energy.sampler or UNTUNED
    parts = stream(
        energy,
        classes,
        n,
        seed,
        sampler=sampler,
        batch_size=batch_size,
        frames=FRAMES,
        progress=progress,
    )
    kept: list[Samples] = []
    with publish(output) as folder:
        gallery = Gallery(folder, n, sampler.n_steps, energy.class_names)
        for part in parts:
            gallery.add(part)
            kept.append(part._replace(frames=part.frames[:1].clone()))
        gallery.finish()
    return join(kept)


class Gallery:
    """Creates the writer of a folder of samples that come class by class.

    Arguments:
        folder: The folder, which exists.
        n: The number of images of a class.
        steps: The Langevin steps of a chain.
        names: The name of each class of the classifier.
    """

    def __init__(
        self, folder: Path, n: int, steps: int, names: Sequence[str] | None = None
    ) -> None:
        self.folder, self.n, self.steps, self.names = folder, n, steps, names
        self.done = 0
        self._shown: list[Tensor] = []
        self._film: list[Tensor] = []

    def add(self, samples: Samples) -> None:
        """Writes samples and their lines of `metadata.jsonl`.

        Arguments:
            samples: The samples that come next.
        """
        columns = (v.tolist() for v in (*samples[1:4], samples.saturated))
        with (self.folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
            for image, c, s, value, outside in zip(samples.images, *columns, strict=True):
                label = self.names[c] if self.names else str(c)
                place = self.folder / f"{c:05d}_{slug(label)}"
                place.mkdir(exist_ok=True)
                picture(image).save(place / f"{s}.png")
                line = {
                    "file_name": f"{place.name}/{s}.png",
                    "class": c,
                    "label": label,
                    "seed": s,
                    "energy": value,
                    "steps": self.steps,
                    "saturated": round(outside, 6),
                }
                file.write(json.dumps(line) + "\n")
        column = torch.arange(self.done, self.done + len(samples.images)) % self.n
        self.done += len(samples.images)
        if sum(map(len, self._shown)) < SHOWN:
            self._shown.append(samples.images[column < COLUMNS])
        if sum(part.shape[1] for part in self._film) < FILMED:
            self._film.append(samples.frames[:, column < FILMED_COLUMNS])

    def finish(self) -> None:
        """Writes `grid.png` and `chains.gif`, of the first images of the first classes."""
        shown = torch.cat(self._shown)[:SHOWN]
        grid(shown, min(self.n, COLUMNS)).save(self.folder / "grid.png")
        columns = min(self.n, FILMED_COLUMNS)
        film = torch.cat(self._film, 1)[:, :FILMED]
        frames = [grid(frame, columns, width=300) for frame in film]
        write_film(frames, self.folder / "chains.gif")
