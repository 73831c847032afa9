"""The whole way on real digits: a classifier, converted, fine-tuned, sampled, judged.

The classifier stands for the one you already have. The judge is another network, trained on its
own with other augmentation; it is asked only at the end, and only to measure.
"""

__all__ = ["quickstart", "train_judge", "warp"]

import math
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from .classify import train_classifier
from .evaluate import evaluate
from .folders import write_json
from .gallery import write_samples
from .judge import Judge
from .machine import machine
from .progress import Progress, silent
from .recipe import Recipe
from .report import write_report
from .run import finetune_recipe
from .sample import Samples, join, n_steps
from .space import PixelSpace

# Of timm's resnet18.
JUDGE: dict[str, Any] = {
    "layers": (1, 1, 1, 0),
    "channels": (48, 80, 112, 112),
    "stem_type": "deep",
    "stem_width": 12,
    "replace_stem_pool": True,
    "act_layer": "gelu",
}


def quickstart(
    recipe: Recipe,
    output: str | Path,
    *,
    n: int = 100,
    judge_epochs: int = 8,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Runs a recipe from end to end and measures the result.

    Arguments:
        recipe: The recipe.
        output: The folder of the run; it must not exist, or be empty.
        n: The number of fresh samples of each class.
        judge_epochs: The passes over the data that train the judge.
        progress: Given a title and a total, returns what advances a progress bar.

    Returns:
        The numbers of `metrics.json`.

    Raises:
        UsageError: If the folder is taken or something in the recipe cannot be used.
        Diverged: If the fine-tuning diverged.
    """
    begin = time.perf_counter()
    folder = Path(output)
    run = finetune_recipe(recipe, folder, progress)
    energy = run.energy
    classes = range(energy.n_classes or 1)
    steps = n_steps(energy, energy.sampler) * n * len(classes)
    parts: list[Samples] = []
    write_samples(
        energy,
        list(classes),
        n,
        recipe.finetune.seed,
        folder / "samples",
        progress=progress("sample", steps),
        each=lambda part: parts.append(part._replace(frames=part.frames[:1].clone())),
    )
    samples = join(parts)
    judge = Judge(
        train_judge(energy.space, run.train, len(classes), judge_epochs, progress),
        energy.space,
        run.train,
        run.test,
    )
    numbers = evaluate(energy, run.test)
    numbers["samples"] = judge.score(samples.images, samples.classes)
    # What the chains added to their starts is part of the result.
    starts = judge.score(samples.frames[0], samples.classes)
    numbers["starts"] = {k: starts[k] for k in ("agreement", "frechet_ratio")}
    seconds = round(time.perf_counter() - begin, 1)
    saturated = {"saturated": float(samples.saturated.mean())}
    metrics = run.metrics | numbers | saturated | {"seconds": seconds} | machine()
    _report(folder, recipe, metrics, run.history)
    write_json(folder / "metrics.json", metrics)
    return metrics


def train_judge(
    space: PixelSpace,
    train: Dataset,
    n_classes: int,
    epochs: int,
    progress: Progress = silent,
    *,
    seed: int = 20,
    learning_rate: float = 3e-3,
    batch_size: int = 128,
    **network: Any,  # noqa: ANN401
) -> nn.Module:
    """Trains an independent classifier: other activation, width, seed and augmentation.

    Arguments:
        space: The images' space.
        train: The data.
        n_classes: The number of classes.
        epochs: The passes over the data.
        progress: Given a title and a total, returns what advances a progress bar.
        seed: The seed of its first weights, of the order of the data and the augmentation.
        learning_rate: The highest learning rate.
        batch_size: The batch size, at most.
        network: What another judge has other than this one; see timm's `resnet18`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        judge = timm.create_model(
            "resnet18", in_chans=space.shape[0], num_classes=n_classes, **JUDGE | network
        ).to(space.mean.device)
    batch = min(batch_size, len(train))  # type: ignore[arg-type]
    total = epochs * (len(train) // batch)  # type: ignore[arg-type]
    return train_classifier(
        judge,
        space,
        train,
        epochs=epochs,
        augment=warp,
        learning_rate=learning_rate,
        batch_size=batch,
        seed=seed,
        progress=progress("train the judge", total),
    )


def warp(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotates, scales, shears and shifts each image a little.

    Arguments:
        x: Images, with shape (B, C, H, W).
        generator: The generator.
    """
    angle, scale, shear, dx, dy = (2 * torch.rand(5, len(x), generator=generator) - 1).unbind()
    angle, scale = angle * math.pi / 15, 1 + 0.12 * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = (
        torch.stack([cos, 0.15 * shear - sin, 0.16 * dx], 1),
        torch.stack([sin, cos, 0.16 * dy], 1),
    )
    where = functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, where.to(x), padding_mode="border", align_corners=False)


def _report(
    folder: Path, recipe: Recipe, metrics: dict[str, Any], history: list[dict[str, float]]
) -> None:
    found = metrics["samples"]
    numbers = {
        "accuracy before": metrics["accuracy_before"],
        "accuracy after": metrics["accuracy_after"],
        "expected calibration error": metrics["calibration_error"],
        "samples judged as their class": found["agreement"],
        "Frechet distance of samples": found["frechet"],
        "of where their chains began": metrics["starts"]["frechet_ratio"]
        * found["frechet_held_out"],
        "of as many held-out real images": found["frechet_held_out"],
        "accuracy of the judge": found["judge_accuracy"],
        "diversity within a class": found["diversity"],
        "of real images": found["diversity_held_out"],
        "distance to the nearest image of the data": found["nearest"],
        "of real images to that": found["nearest_held_out"],
        "seconds, everything": metrics["seconds"],
        "memory, MB": metrics["peak_memory_mb"],
    }
    samples = folder / "samples"
    write_report(
        folder / "report.html",
        f"{recipe.classifier.name} as a generator of {recipe.data.name}",
        numbers,
        history=history,
        pictures=[
            (samples / "grid.png", f"fresh chains, one class a row, {found['n']} judged"),
            (samples / "chains.gif", "the same chains on their way"),
        ],
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8"),
    )
