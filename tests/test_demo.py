"""Classifiers that install with the demo extra know photographs, and draw what they know."""

import contextlib
import io
import json
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from skimage import data

from ebm_from_clf import Smoothing, SpectralNoise, UsageError, convert, load
from ebm_from_clf.cli import main
from ebm_from_clf.convert import class_names, create_classifier
from ebm_from_clf.image_file import to_pixels
from ebm_from_clf.untrained import SAMPLER, auto_gain

CATS, CUPS = {281, 282, 285}, {504, 967, 968}


@pytest.fixture(scope="module", params=["efficientnet_lite0", "efficientnet_lite1"])
def energy(request):
    return convert(f"demo:{request.param}")


def test_they_know_photographs(energy):
    for array, expected in ((data.chelsea(), CATS), (data.coffee(), CUPS)):
        x = to_pixels(Image.fromarray(array), energy.space.size, 3)[None] / 255
        assert int(energy.logits(x).argmax()) in expected
    assert energy.class_names[340] == "zebra" and len(energy.class_names) == 1000


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="there are demo:efficientnet_lite0"):
        create_classifier("demo:efficientnet_lite9")
    with pytest.raises(UsageError, match="3 channels and 1000 classes"):
        create_classifier("demo:efficientnet_lite0", num_classes=10)
    small = create_classifier("demo:efficientnet_lite0", pretrained=False, num_classes=10)
    assert small.num_classes == 10 and class_names(small) is None


def call(*arguments):
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
    return stop.value.code, errors.getvalue()


@pytest.fixture
def cat(tmp_path):
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.jpg")
    mask = Image.new("L", (451, 300), 0)
    mask.paste(255, (0, 0, 200, 300))
    mask.save(tmp_path / "mask.png")
    Image.new("L", (30, 30), 0).save(tmp_path / "small.png")
    return tmp_path / "cat.jpg"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A converted classifier of few steps, as a folder."""
    from ebm_from_clf import Smoothing, save
    from ebm_from_clf.smooth import Coarse

    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        found = convert("test_resnet", pretrained=False, size=96, smoothing=Smoothing())
    assert found.coarse == Coarse() and found.sampler == SAMPLER
    assert found.gain == pytest.approx(auto_gain(found), rel=1e-4)
    found.coarse, found.sampler = Coarse(0.7, 2), replace(SAMPLER, n_steps=2)
    found.class_names = [f"{i} thing" for i in range(998)] + ["tabby, cat", "zebra"]
    save(found, tmp_path_factory.mktemp("quick") / "model")
    return tmp_path_factory.getbasetemp() / "quick0" / "model"


def test_a_photograph_is_changed_from_the_command_line(quick, cat, tmp_path):
    out = tmp_path / "out"
    start = ["sample", quick, "--classes", "zebra,tabby:0.5+zebra:0.3", "--n", "1", "--start", cat]
    assert call(*start, "--mask", tmp_path / "mask.png", "--output", out) == (0, "")
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == ["zebra", "tabby, cat + zebra"]
    assert lines[0]["steps"] == 4 and lines[1]["weights"] == {"998": 0.5, "999": 0.3}
    size = (96, 96)
    photo = to_pixels(Image.fromarray(data.chelsea()), size, 3).float()
    with Image.open(out / lines[0]["file_name"]) as image:
        apart = (to_pixels(image, size, 3).float() - photo).abs().mean(0)
    # White is kept, up to what the JPEG lost; the right half moved.
    assert apart[:, :20].mean() < 8 < 16 < apart[:, 70:].mean()
    settings = json.loads((out / "settings.json").read_text())
    assert settings["density"].startswith("p at the temp") and settings["coarse"] == [0.7, 2]
    status, error = call(*start, "--mask", tmp_path / "small.png", "--output", tmp_path / "x")
    assert status == 2 and "the mask is 30x30, the photograph 451x300" in error
    Image.new("L", (451, 300), 0).save(tmp_path / "black.png")
    status, error = call(*start, "--mask", tmp_path / "black.png", "--output", tmp_path / "x")
    assert status == 2 and "the mask keeps nothing" in error
    status, error = call(*start[:-2], "--strength", "0.5", "--output", tmp_path / "x")
    assert status == 2 and "need a photograph" in error
    status, error = call(*start[:-1], tmp_path / "no.jpg", "--output", tmp_path / "x")
    assert status == 2 and "no.jpg: no such file" in error
    assert not (tmp_path / "x").exists()


def test_a_folder_of_images_gives_the_reference_its_spectrum_and_colours(quick, tmp_path):
    photos = tmp_path / "photos"
    (photos / "inside").mkdir(parents=True)
    for name, image in {"a.png": data.coffee(), "inside/b.jpg": data.chelsea()}.items():
        Image.fromarray(image).save(photos / name)
    named = [tmp_path / "clf", "--reference", photos]
    out, empty = tmp_path / "model", tmp_path / "empty"
    empty.mkdir()
    classifier = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(classifier, str(tmp_path / "clf"), safe_serialization=True)
    assert call("convert", *named, "--smoothing", "true", "--output", out) == (0, "")
    energy = load(out)
    size = energy.space.size
    images = [
        to_pixels(Image.fromarray(a), size, 3) / 255 for a in (data.coffee(), data.chelsea())
    ]
    expected = SpectralNoise.fit(torch.stack(images))
    assert abs(float(energy.reference.alpha) - float(expected.alpha)) < 0.1
    assert (energy.reference.color - expected.color).abs().max() < 0.01
    assert energy.smoothing == Smoothing() and energy.sampler == SAMPLER
    drawn = ["--classes", "1", "--n", "1", "--steps", "1", "--output", tmp_path / "x"]
    assert call("sample", *named, *drawn) == (0, "")
    lines = (tmp_path / "x" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["heat"] > 0
    refusals = {
        "no such folder": ["sample", tmp_path / "clf", "--reference", tmp_path / "none"],
        "clf: : no such folder": ["sample", tmp_path / "clf", "--reference", ""],
        "no images inside": ["sample", tmp_path / "clf", "--reference", empty],
        "not a readable image": ["sample", tmp_path / "clf", "--reference", tmp_path / "clf"],
        "at least two images": ["sample", tmp_path / "clf", "--reference", photos / "inside"],
        "has its reference already": ["sample", out, "--reference", photos],
    }
    for message, arguments in refusals.items():
        status, error = call(*arguments, "--classes", "1", "--output", tmp_path / "y")
        assert status == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "y").exists()
