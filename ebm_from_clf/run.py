"""A run: from a recipe to a folder with everything that belongs to it.

The folder holds the resolved `recipe.yaml`, the log `metrics.jsonl`, pictures of the chains in
`chains/`, the energy in `model/`, and `metrics.json`, written last. Until then `before.json` and
`state.safetensors` are what an interrupted run goes on from.
"""

__all__ = ["Progress", "finetune_recipe", "peak_memory", "silent"]

import json
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset

from .checkpoint import save
from .classify import train_classifier
from .convert import space_of
from .data import check_labels
from .energy import ClassifierEnergy
from .errors import UsageError
from .evaluate import accuracy
from .finetune import STATE, Finetuner
from .folders import new_folder, write_json
from .recipe import Recipe
from .space import PixelSpace
from .state import read_state

Progress = Callable[[str, int], Callable[[int], None]]


def silent(title: str, total: int) -> Callable[[int], None]:
    """Shows no progress; see `Progress`: given a title and a total, returns what advances it.

    Arguments:
        title: What is going on.
        total: How many steps it has.
    """
    return lambda n: None


@dataclass(frozen=True)
class Finished:
    """What a run leaves in memory.

    Arguments:
        energy: The fine-tuned energy.
        train: The data it was tuned on.
        test: The held-out data.
        metrics: The numbers of `metrics.json`.
        history: The lines of `metrics.jsonl`.
    """

    energy: ClassifierEnergy
    train: Dataset
    test: Dataset
    metrics: dict[str, Any]
    history: list[dict[str, float]]


def finetune_recipe(
    recipe: Recipe, output: str | Path, progress: Progress = silent, *, resume: bool = False
) -> Finished:
    """Trains the classifier if the recipe says so, converts it, fine-tunes it and saves it.

    Arguments:
        recipe: The recipe.
        output: The folder of the run; it must not exist, or be empty, unless it is resumed.
        progress: Given a title and a total, returns what advances a progress bar.
        resume: Whether to go on from the last state in the folder, if there is one; the result
            is that of a run never interrupted, unless the guard steps in soon after.

    Raises:
        UsageError: If the folder is taken or something in the recipe cannot be used.
        Diverged: If the fine-tuning diverged; the log stays, no model is written.
    """
    begin = time.perf_counter()
    classifier, space = _classifier(recipe)
    train, test = recipe.load("train", space), recipe.load("test", space)
    check_labels(train, getattr(classifier, "num_classes", None))
    folder = _folder(recipe, Path(output), resume)
    state = read_state(folder / STATE) if (folder / STATE).exists() else None
    if state is None:
        _train(recipe, classifier, space, train, progress)
    energy = recipe.convert(classifier, space, train)
    if state is None:
        before = {"accuracy": accuracy(energy, test)}
        before["seconds"] = round(time.perf_counter() - begin, 1)
        write_json(folder / "before.json", before)
    before = json.loads((folder / "before.json").read_text(encoding="utf-8"))
    tuner = Finetuner(energy, train, recipe.finetune)
    if state is not None:
        tuner.load_state_dict(state)
    advance = progress("fine-tune", recipe.finetune.updates)
    advance(tuner.update)
    every = recipe.finetune.log_every
    tuner.run(folder, callback=lambda line: advance(int(line["update"] - 1) % every + 1))
    save(energy, folder / "model")
    metrics = {
        "accuracy_before": before["accuracy"],
        "accuracy_after": accuracy(energy, test),
        "updates": tuner.update,
        "rollbacks": tuner.guard.rollbacks,
        "equivalent": energy.equivalent(recipe.finetune.sampler.temperature),
        "seconds_before_tuning": before["seconds"],
        "seconds_tuning": round(tuner.seconds, 1),
    } | machine()
    write_json(folder / "metrics.json", metrics)
    for rest in (STATE, "before.json"):
        (folder / rest).unlink(missing_ok=True)
    return Finished(energy, train, test, metrics, tuner.journal.lines)


def _folder(recipe: Recipe, folder: Path, resume: bool) -> Path:
    """Creates the folder of a run and its recipe, or finds the one that is to be resumed."""
    text = yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False)
    kept = folder / "recipe.yaml"
    if not (resume and kept.exists()):
        new_folder(folder)
        kept.write_text(text, encoding="utf-8")
        return folder
    if kept.read_text(encoding="utf-8") != text:
        raise UsageError(
            f"{folder}: was begun with another recipe. Resume with --config {kept}, or choose "
            "another --output."
        )
    if (folder / "metrics.json").exists():
        raise UsageError(f"{folder}: this run is finished; there is nothing to resume.")
    # What a run left that was killed while it wrote: a model without metrics, halves of files.
    for rest in (*folder.glob("model"), *folder.glob(".*.tmp")):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return folder


def machine() -> dict[str, Any]:
    """Returns what the numbers were measured with."""
    return {
        "peak_memory_mb": peak_memory(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "timm": timm.__version__,
        },
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_memory() -> int:
    """Returns the largest memory this process has held, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


def _classifier(recipe: Recipe) -> tuple[nn.Module, PixelSpace]:
    with torch.random.fork_rng(devices=[]):
        # timm draws first weights from torch's global generator, the only way to seed them.
        torch.default_generator.manual_seed(recipe.finetune.seed)
        classifier = recipe.create()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return classifier.to(device), space_of(classifier, recipe.classifier.size).to(device)


def _train(
    recipe: Recipe, classifier: nn.Module, space: PixelSpace, train: Dataset, progress: Progress
) -> None:
    epochs = recipe.classifier.epochs
    if not epochs:
        return
    batch = min(128, len(train))  # type: ignore[arg-type]
    train_classifier(
        classifier,
        space,
        train,
        epochs=epochs,
        augment=recipe.finetune.augment,
        batch_size=batch,
        seed=recipe.finetune.seed,
        progress=progress("train the classifier", epochs * (len(train) // batch)),  # type: ignore[arg-type]
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - tuples become lists, all else stays
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
