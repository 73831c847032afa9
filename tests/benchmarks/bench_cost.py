"""Cost of sampling against the number of images, of steps and of pixels.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_cost.py

EfficientNet-Lite0 at random weights; weights do not change the cost. Images and steps are
doubled, pixels are four times as many; a linear cost grows as much.
"""

import time
from dataclasses import replace

import timm

from ebm_from_clf import Smoothing, convert
from ebm_from_clf.sample import draw

IMAGES, STEPS, SIDE = 8, 20, 160


def seconds(energy, images, steps):
    sampler = replace(energy.sampler, n_steps=steps)
    begin = time.perf_counter()
    draw(energy, list(range(images)), sampler=sampler, batch_size=8)
    return time.perf_counter() - begin


def of_steps(energy, images, steps):
    """Without what is done once: folding, and the energy and heat at the end."""
    return seconds(energy, images, steps) - seconds(energy, images, 0)


def prepared(side):
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    energy = convert(classifier, size=side, smoothing=Smoothing())
    energy.coarse = None
    seconds(energy, 2, 2)
    return energy


def line(what, before, after, energies, sizes):
    # In turn, so that a slow spell of the machine is in both.
    pairs = [[of_steps(e, *s) for e, s in zip(energies, sizes, strict=True)] for _ in range(5)]
    small, large = (sorted(column)[2] for column in zip(*pairs, strict=True))
    growth = [b / a for a, b in pairs]
    print(f"{what} {before} -> {after}: {small:.2f} s -> {large:.2f} s, {sorted(growth)[2]:.2f} x")


def main():
    energy, larger = prepared(SIDE), prepared(2 * SIDE)
    line("images", IMAGES, 2 * IMAGES, [energy] * 2, [(IMAGES, STEPS), (2 * IMAGES, STEPS)])
    line("steps", STEPS, 2 * STEPS, [energy] * 2, [(IMAGES, STEPS), (IMAGES, 2 * STEPS)])
    line("pixels", SIDE**2, (2 * SIDE) ** 2, [energy, larger], [(IMAGES, STEPS)] * 2)


if __name__ == "__main__":
    main()
