"""One recipe with one thing changed a row: objectives, chains, schedules, kinds of classifier.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_variants.py --rows recipe logistic
    OMP_NUM_THREADS=2 python tests/benchmarks/bench_variants.py --seeds 0 1 2 3 4 --updates 500 \\
        --rows resnet convnext efficientnet vit "vit + steps that stay"

Every row of a seed makes the same number of updates from the same classifier, but for the kinds of
classifier, which are trained for some passes of their own. All are sampled alike, from the starts
of the recipe by chains of its length, and judged by another network, which was trained longer and
never used in training; `--judge long wide` asks a third one too, which looks at other things. Rows
cost unlike: mind their seconds.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.errors import Diverged
from ebm_from_clf.evaluate import accuracy
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.judge import Judge
from ebm_from_clf.machine import machine
from ebm_from_clf.pictures import grid
from ebm_from_clf.progress import silent
from ebm_from_clf.quickstart import train_judge
from ebm_from_clf.run import create_for, pretrain
from ebm_from_clf.sample import draw


class Softplus(nn.Module):
    """Creates a smooth rectifier, close to ReLU: log(1 + exp(8 x)) / 8."""

    def __init__(self, inplace=False):
        super().__init__()

    def forward(self, x):
        return functional.softplus(x, beta=8)


RESNET = {
    "layers": [1, 1, 1, 0],
    "channels": [32, 64, 128, 128],
    "stem_type": "deep",
    "stem_width": 16,
    "replace_stem_pool": True,
}
CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [32, 64, 96, 128], "patch_size": 2}
VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4}
# Name of timm, arguments, passes of training. Each ends in a map of 2x2 or more at 32x32:
# BatchNorm and ReLU; LayerNorm and GELU; BatchNorm, SiLU and squeeze-excite; attention.
CLASSIFIERS = {
    "resnet": ("resnet18", RESNET, 6),
    "convnext": ("convnext_atto", CONVNEXT, 12),
    "efficientnet": ("test_efficientnet", {"output_stride": 8}, 12),
    "vit": ("vit_tiny_patch16_224", VIT, 24),
    "resnet-silu": ("resnet18", RESNET | {"act_layer": "silu"}, 6),
    "resnet-leaky": ("resnet18", RESNET | {"act_layer": "leaky_relu"}, 6),
    "resnet-softplus": ("resnet18", RESNET | {"act_layer": Softplus}, 6),
}
# The weights that were trained with ReLU, in a network with another rectifier.
HEALED = {
    "silu for relu": "resnet-silu",
    "leaky for relu": "resnet-leaky",
    "softplus for relu": "resnet-softplus",
}
CHANGES = {
    "recipe": {},
    "single precision": {"precision": "float32"},
    "adam": {"optimizer": "adam", "learning_rate": 1.8e-3},
    "twice the rate": {"learning_rate": 1.6e-2},
    "half the rate": {"learning_rate": 4e-3},
    "logistic": {"objective.kind": "logistic"},
    "trimmed and clamped": {"objective.trim": 0.1, "objective.clamp": 0.02},
    "squares .01": {"objective.square": 0.01},
    "joint": {"objective.scores": "joint"},
    "cross-entropy x1": {"objective.cross_entropy": 1.0},
    "label smoothing .1": {"objective.label_smoothing": 0.1},
    "adversarial": {"objective.adversarial.radius": 0.5},
    "CD-5": {"start.kind": "data", "chains.restart_rate": 1.0, "chains.burn_in": 0},
    "short runs": {"chains.restart_rate": 1.0, "chains.burn_in": 25},
    "lower rates": {"chains.restart_rate": (0.3, 0.002), "chains.per_class": 64},
    "growing steps": {"curriculum.growth": 3.0, "chains.restart_rate": (0.5, 0.01)},
    "steps of .2": {"sampler.step_size": 0.2},
    "images that may lead": {"chains.max_lead": None},
    "batches of 256": {"batch_size": 256, "chains.per_class": 128},
    "steps that stay": {"curriculum.max_stiffness": None},
    "one rate": {"chains.restart_rate": 0.1},
    "one Gaussian": {"start.modes": 1, "start.rank": 32},
    "warm start": {"warm_start.updates": 60},
    "curriculum": {"curriculum.auc": 0.5, "curriculum.fewest": 2},
    "learned gain": {"learn_gain": 0.02},
    "momentum": {"sampler.momentum": 0.8},
    "generative": {"objective.kind": "generative"},
    "last layer": {"freeze": "body"},
}


def put(settings, path, value):
    """Returns settings with one field changed, given by its names with dots between."""
    head, _, rest = path.partition(".")
    return replace(
        settings, **{head: put(getattr(settings, head), rest, value) if rest else value}
    )


def varied(recipe, names):
    for name in names.split(" + "):
        recipe = changed(recipe, name)
    return recipe


def changed(recipe, name):
    if name in CHANGES:
        for path, value in CHANGES[name].items():
            recipe = put(recipe, f"finetune.{path}", value)
        return recipe
    network, kwargs, epochs = CLASSIFIERS[HEALED.get(name, name)]
    shared = {k: recipe.classifier.kwargs[k] for k in ("num_classes", "pretrained_cfg_overlay")}
    channels = shared["pretrained_cfg_overlay"]["input_size"][0]
    kwargs = kwargs | shared | {"in_chans": channels}
    return replace(
        recipe, classifier=replace(recipe.classifier, name=network, epochs=epochs, kwargs=kwargs)
    )


# Another one with other layers, activation and seed than the first, who never met it.
WIDE = {
    "layers": (2, 2, 1, 0),
    "channels": (64, 96, 128, 128),
    "stem_width": 24,
    "act_layer": "silu",
}
JUDGES = {
    "long": train_judge,
    "wide": partial(train_judge, seed=77, learning_rate=2e-3, batch_size=100, **WIDE),
}


def row(name, seed, a, judges):
    plain = put(read_recipe(a.recipe), "finetune.seed", seed)
    plain = put(plain, "finetune.updates", a.updates or plain.finetune.updates)
    recipe = put(varied(plain, name), "finetune.grid_every", 0)
    classifier, space = create_for(plain if name in HEALED else recipe)
    train, test = recipe.load("train", space), recipe.load("test", space)
    pretrain(recipe, classifier, space, train, silent)
    if name in HEALED:
        trained = classifier.state_dict()
        classifier, _ = create_for(recipe)
        classifier.load_state_dict(trained)
    energy = recipe.convert(classifier, space, train)
    numbers = {"row": name, "seed": seed, "accuracy_before": accuracy(energy, test)}
    start = plain.finetune.start.build(energy, train, energy.n_classes)
    tuner = Finetuner(energy, train, recipe.finetune)
    try:
        tuner.run()
    except Diverged as error:
        return numbers | {"diverged": str(error)}, None
    numbers |= {"seconds": round(tuner.seconds), "actions": tuner.guard.actions}
    numbers["reduced_precision"] = tuner.learner.reduced
    chains = tuner.gen.sampler
    numbers |= {"accuracy_after": accuracy(energy, test), "n_steps": chains.n_steps}
    numbers["step_size"] = chains.step_size
    energy.start = start.to(tuner.learner.device)
    images = None
    for steps in (*a.longer, a.steps):
        # With the step that the run ended with: the guard may have shortened it.
        sampler = replace(energy.sampler, n_steps=steps)
        try:
            found = draw(energy, list(range(energy.n_classes)), a.n, sampler=sampler)
        except Diverged as error:
            return numbers | {"diverged": str(error)}, None
        images, scores = found.images, {}
        for kind, judge in judges.items():
            scores[kind] = judge.score(images, found.classes)
            numbers[f"frechet_ratio_after_{steps}_{kind}"] = scores[kind]["frechet_ratio"]
    return numbers | scores, images


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="mnist5k")
    parser.add_argument("--rows", nargs="+", default=list(CHANGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--updates", type=int, help="those of the recipe by default")
    parser.add_argument("--steps", type=int, default=44, help="of the chains that are judged")
    parser.add_argument("--longer", nargs="*", type=int, default=[], help="other numbers of steps")
    parser.add_argument("--n", type=int, default=100, help="images of a class")
    parser.add_argument("--judge", choices=JUDGES, nargs="+", default=["long"])
    parser.add_argument("--judge-epochs", type=int, default=40)
    parser.add_argument("--grid", type=Path, help="folder for a picture of each row")
    a = parser.parse_args()
    recipe = read_recipe(a.recipe)
    _, space = create_for(recipe)
    train, test = recipe.load("train", space), recipe.load("test", space)
    n_classes = recipe.classifier.kwargs["num_classes"]
    judges = {}
    for kind in a.judge:
        network = JUDGES[kind](space, train, n_classes, a.judge_epochs)
        judges[kind] = Judge(network, space, train, test)
    for seed in a.seeds:
        for name in a.rows:
            numbers, images = row(name, seed, a, judges)
            print(json.dumps(numbers), flush=True)
            if a.grid and images is not None:
                a.grid.mkdir(parents=True, exist_ok=True)
                few = images.unflatten(0, (n_classes, -1))[:, :10].flatten(0, 1)
                grid(few, 10).save(a.grid / f"{name.replace(' ', '_')}_{seed}.png")
    print(json.dumps({"torch_threads": torch.get_num_threads(), **machine()}))


if __name__ == "__main__":
    main()
