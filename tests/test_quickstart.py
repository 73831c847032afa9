"""The whole way, shrunk for every run and at a useful length where minutes are allowed."""

import json

import pytest
import torch
import toys

from ebm_from_clf.cli import main
from ebm_from_clf.quickstart import warp


def quickstart(output, *options):
    with pytest.raises(SystemExit) as stop:
        main(["quickstart", "--output", str(output), *options])
    assert stop.value.code == 0
    return json.loads((output / "metrics.json").read_text())


def test_quickstart_leaves_everything_it_promises(tmp_path):
    out = tmp_path / "run"
    metrics = quickstart(
        out,
        "--n=2",
        "--judge_epochs=1",
        "--classifier.epochs=1",
        "--finetune.updates=3",
        "--finetune.sampler.n_steps=2",
        "--finetune.grid_every=2",
    )
    assert {p.name for p in out.iterdir()} == {
        "chains", "metrics.json", "metrics.jsonl", "model", "recipe.yaml", "report.html", "samples"
    }  # fmt: skip
    assert len(list((out / "samples").glob("*/*.png"))) == 20
    assert {"accuracy_before", "accuracy_after", "seconds", "peak_memory_mb"} <= set(metrics)
    assert metrics["samples"]["n"] == 20 and metrics["rollbacks"] == 0
    report = (out / "report.html").read_text()
    assert report.count("data:image/") == 2 and "<polyline" in report and "http" not in report


def test_warp_keeps_what_is_in_the_middle():
    x = torch.zeros(64, 1, 32, 32)
    x[:, :, 12:20, 12:20] = 1
    warped = warp(x, toys.seeded())
    assert warped.shape == x.shape and (warped - x).abs().mean() > 0.01
    mass = warped.sum((1, 2, 3)) / 64
    # Scales of 0.88 to 1.12 change an area by at most a third, shifts lose none of it.
    assert (mass > 0.7).all() and (mass < 1.4).all()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_updates_draw_digits(tmp_path):
    """A third of the recipe's updates: digits already, and the classifier is not harmed."""
    metrics = quickstart(tmp_path / "run", "--n=30", "--judge_epochs=4", "--finetune.updates=200")
    assert metrics["samples"]["agreement"] >= 0.95
    assert metrics["samples"]["frechet_ratio"] < 10
    assert metrics["accuracy_after"] >= metrics["accuracy_before"] - 0.01
    assert metrics["peak_memory_mb"] < 2500
