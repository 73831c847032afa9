"""The benchmark runs; its bound is loose here because a busy machine is no place to time."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))


def test_a_step_costs_little_more_than_its_floor():
    from bench_step import CASES, compare

    ratio, _ = compare(*CASES["mnist5k's resnet, 64 x 1x32x32"], pairs=9)
    assert ratio < 1.4
