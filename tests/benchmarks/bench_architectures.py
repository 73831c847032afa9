"""Four kinds of classifier, fine-tuned by one recipe: does every run end well, and how well?

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_architectures.py --seeds 5 --updates 600

Each is trained on the data of the recipe for some passes, fine-tuned with the settings of the
recipe as they are, and judged by another network that was trained longer and never used in
training. `--rows` chooses; the rows `resnet-...` differ from `resnet` in their activation alone.
"""

import argparse
import json
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
from ebm_from_clf.recipe import ClassifierSettings
from ebm_from_clf.run import create_for, machine, pretrain, silent
from ebm_from_clf.sample import draw

RESNET = {
    "layers": [1, 1, 1, 0],
    "channels": [32, 64, 128, 128],
    "stem_type": "deep",
    "stem_width": 16,
    "replace_stem_pool": True,
}
# Each ends in a map of 2x2 or more at 32x32: BatchNorm and ReLU; LayerNorm and GELU; BatchNorm,
# SiLU and squeeze-excite; attention.
ROWS = {
    "resnet": ("resnet18", RESNET, 6),
    "convnext": (
        "convnext_atto",
        {"depths": [1, 1, 2, 1], "dims": [32, 64, 96, 128], "patch_size": 2},
        12,
    ),
    "efficientnet": ("test_efficientnet", {"output_stride": 8}, 12),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3},
        16,
    ),
    "resnet-silu": ("resnet18", RESNET | {"act_layer": "silu"}, 6),
    "resnet-leaky": ("resnet18", RESNET | {"act_layer": "leaky_relu"}, 6),
}


def row(name, seed, a, recipe, judge):
    network, kwargs, epochs = ROWS[name]
    overlay = recipe.classifier.kwargs["pretrained_cfg_overlay"]
    n_classes = recipe.classifier.kwargs["num_classes"]
    shared = {
        "in_chans": overlay["input_size"][0],
        "num_classes": n_classes,
        "pretrained_cfg_overlay": overlay,
    }
    settings = ClassifierSettings(network, False, epochs=epochs, kwargs=kwargs | shared)
    tuning = replace(recipe.finetune, seed=seed, grid_every=0)
    if a.updates:
        tuning = replace(tuning, updates=a.updates)
    recipe = replace(recipe, classifier=settings, finetune=tuning)
    classifier, space = create_for(recipe)
    train, test = recipe.load("train", space), recipe.load("test", space)
    pretrain(recipe, classifier, space, train, silent)
    energy = recipe.convert(classifier, space, train)
    numbers = {"row": name, "seed": seed, "accuracy_before": accuracy(energy, test)}
    tuner = Finetuner(energy, train, recipe.finetune)
    try:
        tuner.run()
    except Diverged as error:
        return numbers | {"diverged": str(error)}, None
    numbers |= {"updates": tuner.update, "seconds": round(tuner.seconds)}
    numbers |= {"rollbacks": tuner.guard.rollbacks, "actions": tuner.guard.actions}
    numbers["accuracy_after"] = accuracy(energy, test)
    found = draw(energy, list(range(n_classes)), a.n)
    return numbers | judge.score(found.images, found.classes), found.images


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="mnist5k")
    parser.add_argument("--rows", nargs="+", default=list(ROWS)[:4], choices=ROWS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--updates", type=int, help="those of the recipe by default")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--judge-epochs", type=int, default=40)
    parser.add_argument("--grid", help="folder for a picture of each row")
    a = parser.parse_args()
    recipe = read_recipe(a.recipe)
    _, space = create_for(recipe)
    train, test = recipe.load("train", space), recipe.load("test", space)
    n_classes = recipe.classifier.kwargs["num_classes"]
    judge = Judge(train_judge(space, train, n_classes, a.judge_epochs), space, train, test)
    for seed in range(a.seeds):
        for name in a.rows:
            numbers, images = row(name, seed, a, recipe, judge)
            print(json.dumps(numbers), flush=True)
            if a.grid and images is not None:
                place = Path(a.grid)
                place.mkdir(parents=True, exist_ok=True)
                few = images.unflatten(0, (n_classes, -1))[:, :10].flatten(0, 1)
                grid(few, 10).save(place / f"{name}_{seed}.png")
    print(json.dumps({"torch_threads": torch.get_num_threads(), **machine()}))


if __name__ == "__main__":
    main()
