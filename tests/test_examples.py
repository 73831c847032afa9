"""The examples run as they are, shrunk, and print what they say."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, place, *arguments):
    found = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=place,
        env=os.environ | {"QUICK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path.name


def test_convert_and_sample(tmp_path):
    out = run("01_convert_and_sample.py", tmp_path)
    assert (tmp_path / "samples.png").is_file()
    # A draw of q has |u|^2 = D; the standard error over 8 x 12288 values is 0.0045.
    assert abs(float(out.split()[-1]) - 1) < 0.03


def test_finetune_in_your_loop(tmp_path):
    out = run("02_finetune_in_your_loop.py", tmp_path)
    assert (tmp_path / "digits.png").is_file() and "accuracy" in out


def test_gaussian_toy(tmp_path):
    out = run("03_gaussian_toy.py", tmp_path)
    plain, corrected = (float(line.split()[-1]) for line in out.splitlines() if "sigma" in line)
    # Standard error of a variance over 80000 values: 0.005. The plain chain has 1 / (1 - .16).
    assert abs(plain - 1 / 0.84) < 0.03 and abs(corrected - 1) < 0.025


def test_imagenet_without_training(tmp_path):
    out = run("imagenet_without_training.py", tmp_path)
    assert (tmp_path / "zebras.png").is_file() and (tmp_path / "tiger.png").is_file()
    assert out.count(",") == 5 + 4


def test_prototype(tmp_path):
    out = run("prototype.py", tmp_path)
    assert (tmp_path / "prototype.png").is_file()
    # The filters that it begins with are 1.17 nats off.
    assert abs(float(out.split()[-2])) < 0.2


@pytest.mark.parametrize(
    "name, match",
    [("none.png", "no such file"), ("fake.png", "not a readable"), ("small.png", "no crop of")],
)
def test_a_texture_that_cannot_be_learned_is_refused_in_one_line(
    name, match, tmp_path, monkeypatch
):
    (tmp_path / "fake.png").write_text("no image")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["textures.py", name])
    with pytest.raises(SystemExit, match=match) as stop:
        runpy.run_path(str(EXAMPLES / "textures.py"))
    assert "\n" not in stop.value.code


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, low, high", [((), 0.2, 0.6), (("grass", "texture_fine"), 0.5, 0.9)]
)
def test_textures(tmp_path, arguments, low, high):
    out = run("textures.py", tmp_path, *arguments)
    for name in ("textures", "film", "filters"):
        assert (tmp_path / f"{name}.png").is_file()
    # q itself, which is next to the model after three updates, has a third of the contrast of
    # bricks, and three quarters of that of grass.
    assert low < float(out.split()[1]) < high


def test_topdown(tmp_path):
    """Only the gradient knows the class (Nie et al., 2018)."""
    out = run("topdown.py", tmp_path)
    assert (tmp_path / "topdown.png").is_file()
    alike = dict(
        zip(
            ("gradient", "guided", "deconvnet"),
            (float(line.split()[-1]) for line in out.splitlines()),
            strict=True,
        )
    )
    assert alike["gradient"] < 0.5 and alike["guided"] > 0.9 and alike["deconvnet"] > 0.9


def test_layer_by_layer(tmp_path):
    out = run("layer_by_layer.py", tmp_path)
    assert (tmp_path / "layers.png").is_file()
    assert [line.split()[3] for line in out.splitlines()] == ["7", "15", "31", "63"]
    # White noise of the reference has .2 of the contrast; filters of every depth make more of it.
    assert all(float(line.split()[6]) > 0.05 for line in out.splitlines())
