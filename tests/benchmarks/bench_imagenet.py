"""Pictures from an ImageNet classifier as it is, judged by another one.

    python tests/benchmarks/bench_imagenet.py --classes 64 --seeds 2 --rows spectral white

The judge has no part in the energy. Diversity is the mean distance of two images of a class in the
judge's features, as a fraction of that between photographs of different things.
"""

import argparse
import json
import time

import numpy as np
import torch
from skimage import data
from sklearn.datasets import load_sample_images
from torch.nn import functional

from ebm_from_clf import Langevin, Smoothing, WhiteNoise, convert
from ebm_from_clf.convert import create_classifier, space_of
from ebm_from_clf.image_file import to_pixels
from ebm_from_clf.judge import diversity, features
from ebm_from_clf.machine import machine
from ebm_from_clf.pictures import grid
from ebm_from_clf.sample import draw


def photographs(size):
    """Real photographs of different things, with shape (N, 3, H, W)."""
    from PIL import Image

    arrays = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    arrays += [np.asarray(image) for image in load_sample_images().images]
    return torch.stack([to_pixels(Image.fromarray(a), size, 3) for a in arrays]) / 255


def energy_of(name, row):
    energy = convert(name, smoothing=Smoothing())
    if row == "ascent":
        # Steps of fixed length without noise: no density.
        energy.sampler = Langevin.ascent()
    if row == "white":
        # What classifier-EBMs do: white noise, the network as it is; sampler and stages the same.
        still = Smoothing(0, (1, 1), 0, 0, 0, 0)
        mean = torch.full(energy.space.shape, 0.5)
        energy = convert(energy.classifier, reference=WhiteNoise(mean), smoothing=still)
    energy.classifier.to(memory_format=torch.channels_last)
    return energy


def judged(judge, space, images, classes, photos):
    resized = functional.interpolate(images, space.size, mode="bicubic", antialias=True)
    found, logits = features(judge, space, resized.clamp(0, 1))
    p = logits.softmax(1)
    real, _ = features(judge, space, photos)
    apart = float(torch.pdist(real).mean())
    return {
        "top1": float((p.argmax(1) == classes).float().mean()),
        "top5": float((p.topk(5).indices == classes[:, None]).any(1).float().mean()),
        "p": float(p.gather(1, classes[:, None]).mean()),
        "diversity": diversity(found, classes) / apart,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--energy", default="demo:efficientnet_lite0")
    parser.add_argument("--judge", default="demo:efficientnet_lite1")
    parser.add_argument("--classes", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--draw", type=int, default=0, help="seed of the choice of classes")
    rows = ["spectral", "ascent", "white"]
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows[:1])
    parser.add_argument("--grid", help="folder for a picture of each row")
    a = parser.parse_args()
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(a.draw))
    judge = create_classifier(a.judge)
    space = space_of(judge)
    for row in a.rows:
        energy = energy_of(a.energy, row)
        begin = time.perf_counter()
        found = draw(energy, order[: a.classes].tolist(), a.seeds, seed=0, batch_size=8)
        seconds = time.perf_counter() - begin
        numbers = judged(judge, space, found.images, found.classes, photographs(space.size))
        numbers["saturated"] = float(found.saturated.mean())
        numbers["heat"] = float(found.heat.mean())
        numbers["seconds_for_8"] = seconds / len(found.images) * 8
        print(json.dumps({"energy": a.energy, "reference": row, **numbers}))
        if a.grid:
            grid(found.images[:: a.seeds][:32], 8).save(f"{a.grid}/{row}.png")
    print(json.dumps({"n": a.classes * a.seeds, "judge": a.judge, **machine()}))


if __name__ == "__main__":
    main()
