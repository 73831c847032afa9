"""Cost of a Langevin step against its floor, one forward and one input gradient of the network.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_step.py
    TIMM_FUSED_ATTN=0 OMP_NUM_THREADS=2 python tests/benchmarks/bench_step.py
    ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 python tests/benchmarks/bench_step.py

The two are timed in turn within one run, and with them a step in bfloat16; ratios are medians over
these turns.
"""

import statistics
import time

import timm
import torch

from ebm_from_clf import Langevin, WhiteNoise, convert
from ebm_from_clf.precision import passes

CASES = {
    "mnist5k's resnet, 64 x 1x32x32": (
        "resnet18",
        dict(
            in_chans=1, num_classes=10, layers=(1, 1, 1, 0), channels=(32, 64, 128, 128),
            stem_type="deep", stem_width=16, replace_stem_pool=True,
        ),
        (1, 32, 32),
        64,
    ),
    "vit, 64 x 1x32x32": (
        "vit_tiny_patch16_224",
        dict(
            in_chans=1, num_classes=10, img_size=32, patch_size=4, embed_dim=64, depth=3,
            num_heads=4,
        ),
        (1, 32, 32),
        64,
    ),
    "resnet18, 16 x 3x64x64": ("resnet18", {}, (3, 64, 64), 16),
    "resnet50, 4 x 3x224x224": ("resnet50", {}, (3, 224, 224), 4),
    "convnext_atto, 4 x 3x224x224": ("convnext_atto", {}, (3, 224, 224), 4),
    "efficientnet_lite0, 4 x 3x128x128": ("tf_efficientnet_lite0", {}, (3, 128, 128), 4),
}  # fmt: skip


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def compare(name, kwargs, shape, batch, pairs=15, steps=3):
    classifier = timm.create_model(name, **kwargs).eval().requires_grad_(False)
    reference = WhiteNoise(torch.full(shape, 0.5))
    energy = convert(classifier, reference=reference, size=shape[1:])
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(batch, *shape, generator=generator)
    y = torch.arange(batch) % 10
    sampler = Langevin(n_steps=steps)

    def floor():
        for _ in range(steps):
            x = u.clone().requires_grad_()
            logits = classifier(x)
            torch.autograd.grad(logits.gather(1, y[:, None]).sum(), x)

    def chain():
        sampler(energy, u, y, generator=generator)

    def reduced():
        with passes(True, energy):
            chain()

    floor(), chain(), reduced()
    times = [(seconds(chain), seconds(floor), seconds(reduced)) for _ in range(pairs)]
    ratio = statistics.median(a / b for a, b, _ in times)
    gain = statistics.median(a / c for a, _, c in times)
    return ratio, 1000 * statistics.median(a for a, *_ in times) / steps, gain


if __name__ == "__main__":
    for label, case in CASES.items():
        ratio, step, gain = compare(*case)
        print(
            f"{label}: {step:.1f} ms a step, {ratio:.3f} times forward + input gradient; in "
            f"bfloat16 {gain:.2f} times as fast"
        )
