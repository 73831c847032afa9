"""The benchmarks run; bounds are loose here because a busy machine is no place to time."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))


def test_a_step_costs_little_more_than_its_floor():
    from bench_step import CASES, compare

    ratio, _ = compare(*CASES["mnist5k's resnet, 64 x 1x32x32"], pairs=9)
    assert ratio < 1.4


def rows(monkeypatch, capsys, program, *options):
    monkeypatch.setattr(sys, "argv", [program.__file__, *options])
    program.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_a_peer_is_trained_for_a_time_and_judged(monkeypatch, capsys, tmp_path):
    import peers

    options = ["--seconds", "10", "--recipes", "peers/dat", "--n", "4", "--judge-epochs", "2"]
    row, _ = rows(monkeypatch, capsys, peers, *options, "--grid", str(tmp_path))
    assert row["end"] == "time was over" and row["updates"] > 0
    assert row["frechet_ratio"] > 1 and (tmp_path / "peers_dat_0.png").exists()


@pytest.mark.slow
def test_pictures_of_a_classifier_are_judged_by_another(monkeypatch, capsys):
    import bench_imagenet

    row, _ = rows(monkeypatch, capsys, bench_imagenet, "--classes", "2", "--seeds", "2")
    assert row["top5"] >= 0.5 and row["diversity"] > 0.3
