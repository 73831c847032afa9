"""The methods of the field from the same classifier, for the same time, judged alike.

    OMP_NUM_THREADS=2 python tests/benchmarks/peers.py --seconds 300 --seeds 3 --grid pictures

Every row trains the classifier of `mnist5k`, with the same weights for a seed, until the time is
over or its updates are made. Fresh chains, as long as those of its training, are then judged by
another network, trained longer than that of the quickstart and never used in training. Rows are
recipes of this package; `cross-entropy`, the classifier of `mnist5k` trained on by that term
alone, which tells what the same updates do to its accuracy without a generator; and the packages
in peer_packages.py.

A schedule is made for its number of updates: for `mnist5k` and `cross-entropy`, `--updates` runs
each length from the beginning. The rates of all others are constant: they are looked at on their
way, at `--checkpoints`. Time for looking is not counted.
"""

import argparse
import importlib.metadata
import json
import time
from dataclasses import replace
from pathlib import Path

import peer_packages
import torch
from peer_tables import show
from torch.nn import functional

from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.batches import Batches, loader
from ebm_from_clf.descent import Descent
from ebm_from_clf.errors import Diverged
from ebm_from_clf.evaluate import accuracy
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.judge import Judge
from ebm_from_clf.machine import machine
from ebm_from_clf.modes import sharing
from ebm_from_clf.pictures import grid
from ebm_from_clf.progress import silent
from ebm_from_clf.quickstart import train_judge
from ebm_from_clf.run import create_for, pretrain
from ebm_from_clf.sample import draw, n_steps

OURS = ["mnist5k", "cross-entropy", "peers/jem", "peers/sada_jem", "peers/dat"]
SCHEDULED = OURS[:2]


class TimeIsOver(Exception):
    pass


class Clock:
    """Creates a clock of training alone; a loop calls it with what there is to look at."""

    def __init__(self, seconds, checkpoints, see):
        self.limit, self.ahead, self.see = seconds, sorted(checkpoints), see
        self.updates, self.look, self.seconds = 0, None, 0.0
        self.begin = time.perf_counter()

    def __call__(self, updates, look):
        now = time.perf_counter()
        self.updates, self.look, self.seconds = updates, look, now - self.begin
        if self.ahead and self.seconds >= self.ahead[0]:
            self.see(self, at=self.ahead.pop(0))
            self.begin += time.perf_counter() - now
        if self.seconds > self.limit:
            raise TimeIsOver


def with_classifier(energy, classifier):
    found = sharing(energy)
    found.classifier = classifier
    return found


def tune(recipe, energy, train, clock):
    tuner = Finetuner(energy, train, recipe.finetune)

    def look():
        shown = with_classifier(energy, tuner.descent.average.module)
        steps = n_steps(shown, shown.sampler)
        return shown.classifier, lambda n: (draw(shown, list(range(10)), n).images, steps)

    tuner.run(callback=lambda line: clock(tuner.update, look))


def classify(recipe, energy, train, clock):
    """Makes the updates of a recipe by its cross-entropy alone."""
    settings = recipe.finetune
    descent = Descent(energy.classifier.to(memory_format=torch.channels_last), settings)
    generator = torch.Generator().manual_seed(settings.seed * 1009)
    batches = Batches(len(train), settings.clean_batch_size, seed=settings.seed + 31)
    pairs = zip(range(settings.updates), loader(train, batches), strict=False)
    for update, (x, y) in pairs:
        logits = energy.classify(settings.augment(x, generator).to(descent.device))
        loss = functional.cross_entropy(logits, y.to(descent.device))
        descent.step(settings.objective.cross_entropy * loss, update)
        clock(update + 1, lambda: (descent.average.module, None))


def judged(look, energy, test, judge, n):
    """Returns the numbers of a network and, where there are chains, of fresh ones."""
    network, chains = look()
    numbers = {"accuracy": accuracy(with_classifier(energy, network), test)}
    if chains is None:
        return numbers, None
    begin = time.perf_counter()
    images, steps = chains(n)
    numbers |= {"steps": steps, "sampling": round(time.perf_counter() - begin)}
    if not images.isfinite().all():
        return numbers | {"end": "the samples are not finite"}, None
    numbers |= judge.score(images, torch.arange(10).repeat_interleave(n))
    for name in ("diversity", "nearest"):
        numbers[f"{name}_ratio"] = numbers[name] / numbers[f"{name}_held_out"]
    return numbers, images


def row(name, updates, seed, options, judge):
    package, scheduled = name in peer_packages.PACKAGES, name in SCHEDULED
    recipe = read_recipe("mnist5k" if package or scheduled else name)
    many = (updates or recipe.finetune.updates) if scheduled else 10**6
    # All in single precision, as the packages are.
    settings = replace(
        recipe.finetune,
        seed=seed,
        updates=many,
        log_every=5,
        grid_every=0,
        precision="float32",
    )
    recipe = replace(recipe, finetune=settings)
    classifier, space = create_for(recipe)
    train, test = recipe.load("train", space), recipe.load("test", space)
    # The same weights for every row of a seed: their classifier sections are the same.
    pretrain(recipe, classifier, space, train, silent)
    energy = recipe.convert(classifier, space, train)
    label = f"{name}, {updates} updates" if scheduled and updates else name
    numbers = {"recipe": label, "seed": seed, "accuracy_before": accuracy(energy, test)}

    def see(clock, at):
        found, _ = judged(clock.look, energy, test, judge, options.n)
        passed = {"recipe": label, "seed": seed, "at": at, "seconds": round(clock.seconds, 1)}
        curve.append(passed | {"updates": clock.updates} | found)
        print(json.dumps(curve[-1]), flush=True)

    curve, end = [], "finished"
    clock = Clock(options.seconds, [] if scheduled else options.checkpoints, see)
    try:
        if package:
            classifier.to(memory_format=torch.channels_last)
            peer_packages.train(name, classifier, space, train, seed, clock)
        else:
            method = classify if name == "cross-entropy" else tune
            method(recipe, energy, train, clock)
    except TimeIsOver:
        end = "time was over"
    except Diverged:
        end = f"diverged at {clock.updates}"
    numbers |= {"updates": clock.updates, "seconds": round(clock.seconds, 1), "end": end}
    if clock.look is None:
        return numbers, curve, None
    images = None
    try:
        found, images = judged(clock.look, energy, test, judge, options.n)
        numbers |= found
    except Diverged as error:
        numbers["end"] = str(error)
    return numbers, curve, images


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--recipes", nargs="+", default=[*OURS, *peer_packages.PACKAGES])
    parser.add_argument("--updates", nargs="+", type=int, default=[None])
    parser.add_argument("--checkpoints", nargs="+", type=float, default=[])
    parser.add_argument("--n", type=int, default=100, help="images of a class")
    parser.add_argument("--judge-epochs", type=int, default=40)
    parser.add_argument("--grid", help="folder for a picture of each row")
    a = parser.parse_args()
    if a.grid:
        Path(a.grid).mkdir(parents=True, exist_ok=True)
    lacking = {name: peer_packages.missing(name) for name in a.recipes}
    for name in filter(lacking.get, a.recipes):
        print(f"{name} is left out: pip install {lacking[name]}")
    a.recipes = [name for name in a.recipes if not lacking[name]]
    recipe = read_recipe("mnist5k")
    _, space = create_for(recipe)
    train, test = recipe.load("train", space), recipe.load("test", space)
    judge = Judge(train_judge(space, train, 10, a.judge_epochs), space, train, test)
    rows, curve = [], []
    for seed in range(a.seeds):
        for name in a.recipes:
            for updates in a.updates if name in SCHEDULED else [None]:
                numbers, passed, images = row(name, updates, seed, a, judge)
                rows.append(numbers)
                curve += passed
                print(json.dumps(numbers), flush=True)
                if a.grid and images is not None:
                    place = f"{numbers['recipe'].replace('/', '_').replace(', ', '_')}_{seed}.png"
                    shown = images.unflatten(0, (10, -1))[:, :10].flatten(0, 1)
                    grid(shown, 10).save(f"{a.grid}/{place.replace(' ', '_')}")
    packages = {n.split("/")[0] for n in a.recipes if n in peer_packages.PACKAGES}
    found = {name: importlib.metadata.version(name) for name in sorted(packages)}
    print(json.dumps({**found, **machine()}), end="\n\n")
    show(rows, curve)


if __name__ == "__main__":
    main()
