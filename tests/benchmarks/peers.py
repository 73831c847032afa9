"""The methods of the field from the same classifier, for the same time, judged alike.

    OMP_NUM_THREADS=2 python tests/benchmarks/peers.py --seconds 300 --seeds 1 --grid pictures

Each recipe fine-tunes the classifier of `mnist5k` until the time is over. Fresh chains, as long as
those in its store have become on average, are then judged by another network, trained longer than
that of the quickstart and never used in training.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.errors import Diverged
from ebm_from_clf.evaluate import accuracy
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.judge import Judge
from ebm_from_clf.pictures import grid
from ebm_from_clf.quickstart import train_judge
from ebm_from_clf.run import create_for, machine, pretrain, silent
from ebm_from_clf.sample import draw

RECIPES = ["mnist5k", "peers/jem", "peers/sada_jem", "peers/dat"]


class TimeIsOver(Exception):
    pass


def tuned(recipe, energy, train, seconds):
    """Fine-tunes until the time is over; returns the loop, and how it ended."""
    tuner = Finetuner(energy, train, recipe.finetune)

    def watch(line):
        if line["seconds"] > seconds:
            raise TimeIsOver

    try:
        tuner.run(callback=watch)
        return tuner, "finished"
    except TimeIsOver:
        tuner.descent.finish()
        return tuner, "time was over"
    except Diverged:
        return tuner, f"diverged at {tuner.update}"


def row(name, seed, seconds, judge, n):
    recipe = read_recipe(name)
    many = recipe.finetune.updates if name == "mnist5k" else 10**6
    settings = replace(recipe.finetune, seed=seed, updates=many, log_every=5, grid_every=0)
    recipe = replace(recipe, finetune=settings)
    classifier, space = create_for(recipe)
    train, test = recipe.load("train", space), recipe.load("test", space)
    # The same weights for every recipe of a seed: their classifier sections are the same.
    pretrain(recipe, classifier, space, train, silent)
    energy = recipe.convert(classifier, space, train)
    before = accuracy(energy, test)
    tuner, end = tuned(recipe, energy, train, seconds)
    numbers = {"recipe": name, "seed": seed, "accuracy_before": before, "end": end}
    numbers |= {"updates": tuner.update, "seconds": round(tuner.seconds)}
    begin = time.perf_counter()
    chains, k = tuner.chains, recipe.finetune.sampler.n_steps
    age = chains.age[chains.age > 0].double().mean()
    steps = chains.burn_in + round(k * float(age))
    numbers["accuracy"] = accuracy(energy, test)
    try:
        found = draw(energy, list(range(10)), n, sampler=replace(energy.sampler, n_steps=steps))
    except Diverged as error:
        return numbers | {"end": str(error)}, None
    numbers["steps"], numbers["sampling"] = steps, round(time.perf_counter() - begin)
    return numbers | judge.score(found.images, found.classes), found.images


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--judge-epochs", type=int, default=40)
    parser.add_argument("--grid", help="folder for a picture of each row")
    a = parser.parse_args()
    if a.grid:
        Path(a.grid).mkdir(parents=True, exist_ok=True)
    recipe = read_recipe("mnist5k")
    _, space = create_for(recipe)
    train, test = recipe.load("train", space), recipe.load("test", space)
    judge = Judge(train_judge(space, train, 10, a.judge_epochs), space, train, test)
    for seed in range(a.seeds):
        for name in a.recipes:
            numbers, images = row(name, seed, a.seconds, judge, a.n)
            print(json.dumps(numbers), flush=True)
            if a.grid and images is not None:
                place = f"{a.grid}/{name.replace('/', '_')}_{seed}.png"
                grid(images.unflatten(0, (10, -1))[:, :10].flatten(0, 1), 10).save(place)
    print(json.dumps({"torch_threads": torch.get_num_threads(), **machine()}))


if __name__ == "__main__":
    main()
