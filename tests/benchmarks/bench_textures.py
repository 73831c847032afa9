"""Textures learned from 128x128 pixels and drawn at 256x256, in time and beside the whole picture.

    python tests/benchmarks/bench_textures.py --textures brick grass gravel --seeds 0 1

The ratio is the mean distance of Gram matrices (Gatys et al., 2015) of synthesized to observed,
over that of four pairs of disjoint quarters of the whole picture: relative Frobenius norm, at the
stem and the first five stages of a network. EfficientNet-Lite0 has a part in the energy, Lite1
none.
"""

import argparse
import json
import time
from dataclasses import replace

import numpy as np
import torch

from ebm_from_clf import Finetuner, sample
from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.convert import create_classifier
from ebm_from_clf.demo import skimage_picture
from ebm_from_clf.generative import enlarged
from ebm_from_clf.image_file import to_pixels
from ebm_from_clf.machine import machine
from ebm_from_clf.pictures import grid
from ebm_from_clf.run import create_for

SIZE = 256


class Judge:
    """Gram distances under one network, in units of those within a picture."""

    def __init__(self, name, whole):
        self.network = create_classifier(name)
        (a, b), (c, d) = (rows.split(128, 3) for rows in whole.split(128, 2))
        self.observed = a
        pairs = [(a, d), (b, c), (a, b), (a, c)]
        self.unit = np.mean([self.distance(x, y) for x, y in pairs])

    @torch.no_grad()
    def grams(self, x):
        net = self.network
        maps = [net.bn1(net.conv_stem(2 * x.clamp(0, 1).expand(-1, 3, -1, -1) - 1))]
        for stage in net.blocks[:5]:
            maps.append(stage(maps[-1]))
        return [torch.einsum("bchw,bdhw->cd", h, h) / h[:, 0].numel() for h in maps]

    def distance(self, x, y):
        pairs = zip(self.grams(x), self.grams(y), strict=True)
        return float(np.mean([float((a - b).norm() / b.norm()) for a, b in pairs]))

    def ratio(self, x):
        return round(self.distance(x, self.observed) / self.unit, 3)


def learned(texture, seed, name="texture", updates=None):
    """An energy of a texture, with the seconds that it took and what the guard did."""
    recipe = read_recipe(name)
    recipe = replace(
        recipe,
        data=replace(recipe.data, root=texture),
        finetune=replace(recipe.finetune, seed=seed, updates=updates or recipe.finetune.updates),
    )
    begin = time.perf_counter()
    network, space = create_for(recipe)
    data = recipe.load("train", space)
    energy = recipe.convert(network, space, data)
    tuner = Finetuner(energy, data, recipe.finetune)
    tuner.run()
    return energy, time.perf_counter() - begin, tuner.guard.actions


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--textures", nargs="+", default=["brick", "grass", "gravel"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--recipe", default="texture")
    parser.add_argument("--updates", type=int, default=None)
    parser.add_argument("--long", type=int, default=4, help="times the default steps")
    parser.add_argument("--pictures", help="PNG of all, the observed and the synthesized")
    a = parser.parse_args()
    rows = []
    for texture in a.textures:
        whole = to_pixels(skimage_picture(texture), (SIZE, SIZE), 1)[None] / 255
        judges = {f"lite{i}": Judge(f"demo:efficientnet_lite{i}", whole) for i in (0, 1)}
        for seed in a.seeds:
            energy, seconds, faults = learned(texture, seed, a.recipe, a.updates)
            large, found = enlarged(energy, (SIZE, SIZE)), {}
            for times in dict.fromkeys((1, a.long)):
                n_steps = energy.sampler.n_steps * times
                sampler, begin = replace(energy.sampler, n_steps=n_steps), time.perf_counter()
                x = sample(large, [0], seed=seed, sampler=sampler)
                found[n_steps] = {"seconds": round(time.perf_counter() - begin, 1)}
                found[n_steps] |= {name: judge.ratio(x) for name, judge in judges.items()}
                found[n_steps]["contrast"] = round(
                    float(x.std() / whole[..., :128, :128].std()), 2
                )
                if times == 1:
                    observed = torch.full_like(x, 0.5)
                    observed[..., :128, :128] = whole[..., :128, :128]
                    rows.append(torch.cat([observed, x]))
            line = {"texture": texture, "seed": seed, "learning_seconds": round(seconds, 1)}
            print(json.dumps(line | {"steps": found, "faults": len(faults)}), flush=True)
            if a.pictures:
                grid(torch.cat(rows), 2 * len(a.seeds), width=1).save(a.pictures)
    print(json.dumps(machine()))


if __name__ == "__main__":
    main()
