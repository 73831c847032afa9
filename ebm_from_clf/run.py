"""A run: from a recipe to a folder with everything that belongs to it.

The folder holds the resolved `recipe.yaml`, the log `metrics.jsonl`, pictures of the chains in
`chains/`, the energy in `model/`, and `metrics.json`, written last. Until then an interrupted run
goes on from `state.safetensors`, and from `chains.bin` if chains are mapped. One that diverged
leaves `diverged.json` instead.
"""

__all__ = [
    "create_for",
    "finetune_recipe",
    "pretrain",
]

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from .checkpoint import save
from .classify import train_classifier
from .convert import class_names, space_of
from .denoise import check_twice
from .energy import ClassifierEnergy
from .errors import Diverged, UsageError
from .evaluate import accuracy
from .finetune import Finetuner
from .folders import claim, write_json
from .frame import FrameConvNet
from .freeze import chosen
from .generative import GenerativeConvNet
from .labels import by_name, check_labels
from .machine import machine
from .progress import Progress, silent
from .recipe import Recipe
from .resume import AGAIN, fingerprints, forget, left_state, note_diverged, prepare
from .space import PixelSpace
from .trail import CHAINS, STATE


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
            is that of a run never interrupted.

    Raises:
        UsageError: If the folder is taken or something in the recipe cannot be used.
        ValueError: If its sampler has steps for another number of classes.
        Diverged: If the fine-tuning diverged; the log stays, no model is written.
    """
    classifier, space = create_for(recipe)
    # A wrong name would otherwise be found only after the classifier was trained.
    chosen(classifier, recipe.finetune.freeze)
    joint = recipe.finetune.objective.scores == "joint"
    lengths = 1 if joint else getattr(classifier, "num_classes", None)
    recipe.finetune.sampler.check_factors(lengths)
    train, test = recipe.load("train", space), recipe.load("test", space)
    for part in (train, test):
        by_name(part, class_names(classifier))
    n_classes = check_labels(train, getattr(classifier, "num_classes", None))
    folder = Path(output)
    with claim(folder):
        fresh = prepare(recipe, folder, resume)
        try:
            state = left_state(folder, train, test)
            if state is None:
                _check(recipe, folder, classifier, space, n_classes)
            tuner = _begin(recipe, folder, classifier, space, train, test, state, progress)
        except ValueError:
            # The input was found wrong before there was a result: nothing is left behind.
            if fresh and not (folder / STATE).exists():
                (folder / "recipe.yaml").unlink()
                (folder / CHAINS).unlink(missing_ok=True)
            raise
        _tune(tuner, folder, progress("fine-tune", recipe.finetune.updates))
        after = accuracy(tuner.energy, test)
        save(tuner.energy, folder / "model")
        metrics = _metrics(recipe, tuner, after)
        write_json(folder / "metrics.json", metrics)
        forget(folder)
    return Finished(tuner.energy, train, test, metrics, tuner.journal.lines)


def _tune(tuner: Finetuner, folder: Path, advance: Callable[[int], None]) -> None:
    """Runs the loop to its end, with its progress shown, and notes it if the run diverged."""
    reached = tuner.update
    advance(reached)

    def show(line: dict[str, Any]) -> None:
        nonlocal reached
        advance(int(line["update"]) - reached)
        reached = int(line["update"])

    try:
        tuner.run(folder, callback=show)
    except Diverged as error:
        note_diverged(folder, tuner.update, error)
        raise Diverged(f"{error} {AGAIN}") from error


def _metrics(recipe: Recipe, tuner: Finetuner, accuracy_after: float) -> dict[str, Any]:
    """Returns the numbers of a run that is finished."""
    return {
        "accuracy_before": tuner.notes["accuracy_before"],
        "accuracy_after": accuracy_after,
        "updates": tuner.update,
        "rollbacks": tuner.guard.rollbacks,
        "faults": tuner.guard.actions,
        "chains_begun_anew": tuner.journal.lines[-1].get("begun_anew", 0),
        "chains_begun_at_data": tuner.journal.lines[-1].get("begun_at_data", 0),
        "equivalent": recipe.finetune.sampler.equivalent(tuner.energy.gain),
        "reduced_precision": tuner.learner.reduced,
        "seconds_before_tuning": tuner.notes["seconds_before_tuning"],
        "seconds_tuning": round(tuner.seconds, 1),
    } | machine()


def _begin(
    recipe: Recipe,
    folder: Path,
    classifier: nn.Module,
    space: PixelSpace,
    train: Dataset,
    test: Dataset,
    state: dict[str, Any] | None,
    progress: Progress,
) -> Finetuner:
    """Creates the loop of a run at its first update, or at the state that it left."""
    begin = time.perf_counter()
    if state is None:
        pretrain(recipe, classifier, space, train, progress)
    energy = recipe.convert(classifier, space, train)
    before = None if state is not None else accuracy(energy, test)
    tuner = Finetuner(energy, train, recipe.finetune, folder)
    if state is not None:
        tuner.load_state_dict(state)
        return tuner
    seconds = round(time.perf_counter() - begin, 1)
    tuner.notes = {"accuracy_before": before, "seconds_before_tuning": seconds}
    tuner.notes["data"] = fingerprints(train, test)
    return tuner


def _check(
    recipe: Recipe, folder: Path, classifier: nn.Module, space: PixelSpace, n_classes: int
) -> None:
    """Checks what fine-tuning asks too, so that nobody waits for a training in vain."""
    if recipe.finetune.warm_start.updates:
        check_twice(classifier, space)
    chains = recipe.finetune.chains
    chains.check_memory(n_classes, space.shape, space.std.device)
    if chains.mapped:
        with chains.room(n_classes, space.shape, folder / CHAINS):
            pass


def create_for(recipe: Recipe) -> tuple[nn.Module, PixelSpace]:
    """Creates the classifier of a recipe and its input space, on the GPU if there is one.

    Arguments:
        recipe: The recipe; its seed gives the first weights of a network that is not pretrained.

    Raises:
        UsageError: If timm does not know it, or it is of another size than asked for.
    """
    with torch.random.fork_rng(devices=[]):
        # timm draws first weights from torch's global generator, the only way to seed them.
        torch.default_generator.manual_seed(recipe.finetune.seed)
        classifier = recipe.create()
    size = recipe.classifier.size
    if isinstance(classifier, FrameConvNet | GenerativeConvNet) and size not in (
        None,
        classifier.size,
    ):
        raise UsageError(
            f"classifier.size: {recipe.classifier.name} is made for {classifier.size} pixels, got "
            f"{size}. Give classifier.kwargs.size."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return classifier.to(device), space_of(classifier, recipe.classifier.size).to(device)


def pretrain(
    recipe: Recipe, classifier: nn.Module, space: PixelSpace, train: Dataset, progress: Progress
) -> None:
    """Trains the classifier of a recipe, in place, for as long as the recipe says.

    Arguments:
        recipe: The recipe.
        classifier: The classifier.
        space: Its input space.
        train: The data.
        progress: Given a title and a total, returns what advances a progress bar.
    """
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
        generative_weight=recipe.classifier.generative,
        progress=progress("train the classifier", epochs * (len(train) // batch)),  # type: ignore[arg-type]
    )
