"""The benchmarks run; bounds are loose here because a busy machine is no place to time."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))


@pytest.mark.slow
def test_a_step_costs_little_more_than_its_floor():
    from bench_step import CASES, compare

    ratio, *_ = compare(*CASES["mnist5k's resnet, 64 x 1x32x32"], pairs=9)
    assert ratio < 1.4


def rows(monkeypatch, capsys, program, *options):
    monkeypatch.setattr(sys, "argv", [program.__file__, *options])
    program.main()
    printed = capsys.readouterr().out.splitlines()
    return [json.loads(line) if line.startswith("{") else line for line in printed if line]


@pytest.mark.slow
def test_a_peer_is_trained_for_a_time_and_judged(monkeypatch, capsys, tmp_path):
    import peers

    options = ["--seconds", "5", "--recipes", "peers/dat", "--n", "4", "--judge-epochs", "1"]
    row, _, *table = rows(monkeypatch, capsys, peers, *options, "--grid", str(tmp_path))
    assert row["end"] == "time was over" and row["updates"] > 0
    assert (
        row["steps"] == 40 and row["frechet_ratio"] > 0 and (tmp_path / "peers_dat_0.png").exists()
    )
    assert table[-1].startswith("| peers/dat |")


@pytest.mark.slow
def test_a_package_that_is_not_there_is_named_and_left_out(monkeypatch, capsys):
    import peer_packages
    import peers

    absent = (peer_packages.ebmkit, "no_such_module", True)
    monkeypatch.setitem(peer_packages.PACKAGES, "ebmkit", absent)
    options = [
        "--recipes",
        "ebmkit",
        "cross-entropy",
        "--updates",
        "2",
        "4",
        "--judge-epochs",
        "1",
    ]
    note, short, long, *_ = rows(monkeypatch, capsys, peers, *options)
    assert note == "ebmkit is left out: pip install ebmkit"
    assert (short["updates"], long["updates"]) == (2, 4) and "frechet_ratio" not in long


@pytest.mark.slow
@pytest.mark.parametrize("package", ["ebmkit", "torchebm"])
def test_a_package_is_looked_at_on_its_way(monkeypatch, capsys, package):
    import peer_packages
    import peers

    if peer_packages.missing(package):
        pytest.skip(f"pip install {package}")
    options = ["--recipes", f"{package}/jem", "--n", "2", "--judge-epochs", "1", "--seconds", "4"]
    point, row, *_ = rows(monkeypatch, capsys, peers, *options, "--checkpoints", "1")
    assert point["at"] == 1 and 0 < point["updates"] < row["updates"]
    assert row["steps"] == 400 and row["end"] == "time was over"


def test_tables_tell_medians_ranges_and_what_is_lacking():
    from peer_tables import cell

    runs = [{"updates": 3, "accuracy": 0.9}, {"updates": 1, "accuracy": 0.8}, {"updates": 2}]
    assert cell(runs, "updates") == "2 (1-3)" and cell(runs[:1], "accuracy") == "0.900"
    assert cell(runs, "accuracy") == "0.850 (0.800-0.900), 2 of 3"
    assert cell(runs, "agreement") == "-"


@pytest.mark.slow
def test_variants_of_a_recipe_are_judged_alike(monkeypatch, capsys, tmp_path):
    import bench_variants

    options = "--seeds 3 --updates 3 --n 4 --judge-epochs 1 --steps 5 --longer 7"
    chosen = [*options.split(), "--grid", str(tmp_path), "--rows", "recipe", "last layer"]
    one, other, _ = rows(monkeypatch, capsys, bench_variants, *chosen)
    assert (one["row"], other["row"], other["seed"]) == ("recipe", "last layer", 3)
    assert one["long"]["frechet_ratio"] == one["frechet_ratio_after_5_long"] > 0
    assert other["frechet_ratio_after_7_long"] > 0 and (tmp_path / "last_layer_3.png").exists()


@pytest.mark.slow
def test_pictures_of_a_classifier_are_judged_by_another(monkeypatch, capsys):
    import bench_imagenet

    row, _ = rows(monkeypatch, capsys, bench_imagenet, "--classes", "2", "--seeds", "2")
    assert row["top5"] >= 0.5 and row["diversity"] > 0.3
