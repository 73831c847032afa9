"""A folder of samples: images by class, where each came from, a grid, and chains on their way.

    DIR/<index, zero-padded>_<slug>/<seed>.png  DIR/metadata.jsonl  DIR/grid.png  DIR/chains.gif

It grows image by image, and `settings.json` says what was asked for: a folder that was
interrupted goes on where it stopped. `grid.png` is written last.
"""

__all__ = ["write_samples"]

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .blend import Blend, check, weights
from .energy import ClassifierEnergy
from .errors import UsageError
from .folders import claim, new_folder, slug, whole, write_json, write_text
from .langevin import Langevin
from .pictures import grid, picture, write_film
from .request import depends_on
from .sample import UNTUNED, Samples, n_steps, stream

FRAMES = 16
SHOWN = 200
COLUMNS = 10
FILMED = 50
FILMED_COLUMNS = 5
FILM_BYTES = 2**28
FILM_SIDE = 800


def write_samples(
    energy: ClassifierEnergy,
    classes: Sequence[Blend],
    n: int,
    seed: int,
    output: str | Path,
    *,
    sampler: Langevin | None = None,
    batch_size: int | None = None,
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
    each: Callable[[Samples], None] | None = None,
) -> None:
    """Draws images into a folder.

    Arguments:
        energy: The energy; its class names become labels.
        classes: The class indices, or weights of several of them.
        n: The number of images of each.
        seed: The seed of the first image.
        output: The folder; it must not exist, or be empty, unless it is resumed.
        sampler: How chains move. `None` for that of the energy, or 100 steps at T = 1.
        batch_size: Images at once.
        resume: Whether to go on where the same request was interrupted in that folder.
        progress: Called with the number of image-steps just done.
        each: Called with the samples of each batch.

    Raises:
        UsageError: If a class or seed does not exist or the folder is taken or cannot be written.
    """
    sampler = sampler or energy.sampler or UNTUNED
    folder = Path(output)
    check(energy, classes, n, seed)
    asked = {"classes": [list(weights(blend).items()) for blend in classes], "n": n, "seed": seed}
    with claim(folder):
        steps = n_steps(energy, sampler)
        gallery = Gallery(folder, classes, n, steps, energy.class_names)
        gallery.begin(json.loads(json.dumps(asked | depends_on(energy, sampler))), resume)
        parts = stream(
            energy,
            classes,
            n,
            seed,
            sampler=sampler,
            batch_size=batch_size,
            frames=FRAMES,
            skip=gallery.done,
            progress=progress,
        )
        if progress is not None:
            progress(gallery.done * steps)
        for part in parts:
            gallery.add(part)
            if each is not None:
                each(part)
        gallery.finish()


class Gallery:
    """Creates the writer of a folder of samples that come class by class.

    Arguments:
        folder: The folder, which exists.
        classes: What was asked for.
        n: The number of images of each.
        steps: The Langevin steps of a chain.
        names: The name of each class of the classifier.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[Blend],
        n: int,
        steps: int,
        names: Sequence[str] | None = None,
    ) -> None:
        self.folder, self.n, self.steps = folder, n, steps
        self.labels = [_label(blend, names) for blend in classes]
        folders = [name for _, _, name in self.labels]
        if len(set(folders)) < len(folders):
            raise UsageError("sample: the same class or blend is asked for twice. Ask once.")
        self.done = 0
        self._film: list[Tensor] = []

    def begin(self, settings: dict[str, Any], resume: bool) -> None:
        """Begins the folder, or counts what an interrupted process left in it.

        Arguments:
            settings: What was asked for.
            resume: Whether the folder may hold a part of it.

        Raises:
            UsageError: If the folder holds something else, or all of it, or is damaged.
        """
        place, lines = self.folder / "settings.json", self.folder / "metadata.jsonl"
        if not (resume and place.exists()):
            write_json(new_folder(self.folder) / "settings.json", settings)
            return
        if _read_json(place) != settings:
            raise UsageError(
                f"{self.folder}: holds samples of another request. Ask for the same classes, n, "
                "seed, steps, model and precision, or choose another --output."
            )
        if (self.folder / "grid.png").exists():
            raise UsageError(f"{self.folder}: all samples are there; there is nothing to resume.")
        kept = _read_lines(lines) if lines.exists() else []
        for rest in self.folder.glob(".*.tmp"):
            rest.unlink()  # half of a file, of a process that was killed
        write_text(lines, "".join(kept))
        self.done = len(kept)

    def add(self, samples: Samples) -> None:
        """Writes samples and their lines of `metadata.jsonl`.

        Arguments:
            samples: The samples that come next.
        """
        values = (v.tolist() for v in (*samples[1:4], samples.saturated, samples.heat))
        with (self.folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
            for i, (image, c, s, value, outside, heat) in enumerate(
                zip(samples.images, *values, strict=True), self.done
            ):
                index, label, name = self.labels[i // self.n]
                place = self.folder / name
                place.mkdir(exist_ok=True)
                picture(image).save(place / f"{s}.png")
                line = {
                    "file_name": f"{name}/{s}.png",
                    "class": c,
                    "label": label,
                    "seed": s,
                    "energy": value,
                    "steps": self.steps,
                    "saturated": round(outside, 6),
                }
                if heat:
                    line["heat"] = round(heat, 6)
                if index != {c: 1.0}:
                    line["weights"] = index
                file.write(json.dumps(line) + "\n")
        self._add_frames(samples)
        self.done += len(samples.images)

    def _add_frames(self, samples: Samples) -> None:
        column = torch.arange(self.done, self.done + len(samples.images)) % self.n
        frames = samples.frames[:, column < FILMED_COLUMNS]
        room = min(FILMED, FILM_BYTES // (frames[:, :1].nbytes or 1))
        room -= sum(part.shape[1] for part in self._film)
        if room > 0 and frames.shape[1]:
            self._film.append(frames[:, :room].clone())

    def finish(self) -> None:
        """Writes `grid.png`, of the first images of each class, and `chains.gif`.

        The film is of the first chains that this process has drawn itself.
        """
        if self._film:
            columns = min(self.n, FILMED_COLUMNS)
            frames = [grid(x, columns, width=300) for x in torch.cat(self._film, 1)]
            for frame in frames:
                frame.thumbnail((FILM_SIDE, FILM_SIDE))
            write_film(frames, self.folder / "chains.gif")
        with (self.folder / "metadata.jsonl").open(encoding="utf-8") as file:
            names = [json.loads(line)["file_name"] for line in file]
        shown = [name for i, name in enumerate(names) if i % self.n < COLUMNS][:SHOWN]
        images = torch.stack([_read(self.folder / name) for name in shown])
        # Under its name only once it is whole: it says that the folder is complete.
        with whole(self.folder / "grid.png") as part:
            grid(images, min(self.n, COLUMNS)).save(part, format="PNG")


def _label(blend: Blend, names: Sequence[str] | None) -> tuple[dict[int, float], str, str]:
    """Returns the weights, the label and the folder name of what was asked for."""
    index = dict(weights(blend))
    labels = [names[c] if names else str(c) for c in index]
    name = "+".join(
        f"{c:05d}" + ("" if isinstance(blend, int) else f"x{w:g}") for c, w in index.items()
    )
    text = "-".join(slug(label) for label in labels)
    return index, " + ".join(labels), f"{name[:100]}_{text[:100]}"


def _read_json(path: Path) -> Any:  # noqa: ANN401 - whatever JSON can hold
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path) from error


def _read_lines(path: Path) -> list[str]:
    """Returns the lines about images that are whole."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(True)
        found = [line for line in lines if line.endswith("\n")]
        _ = [json.loads(line)["file_name"] for line in found]
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(path) from error
    return found


def _damaged(path: Path) -> UsageError:
    return UsageError(
        f"{path}: damaged. Choose another --output, or remove the folder and ask again."
    )


def _read(path: Path) -> Tensor:
    with Image.open(path) as image:
        array = np.asarray(image, dtype=np.float32) / 255
    return (
        torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).movedim(2, 0)
    )
