"""The command line: wrong input ends in one line, status 2 and nothing on the disk."""

import contextlib
import io
import json
import signal
from dataclasses import replace

import pytest
import timm
import torch
import toys
import yaml
from PIL import Image

from ebm_from_clf import cli, convert, load, save
from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.cli import main
from ebm_from_clf.run import Finished

RECIPE = """\
# Two updates on digits of 8x8 pixels.
classifier:
  name: resnet18
  pretrained: false
  epochs: 1
  kwargs:
    in_chans: 1
    num_classes: 10
    layers: [1, 1, 0, 0]
    channels: [8, 16, 16, 16]
    stem_type: deep
    stem_width: 8
    pretrained_cfg_overlay:
      input_size: [1, 16, 16]
      mean: [0.5]
      std: [0.5]
data:
  name: digits8x8
finetune:
  updates: 2
  batch_size: 16
  clean_batch_size: 16
  log_every: 1
  grid_every: 0
  sampler:
    n_steps: 2
  start:
    rank: 2
  chains:
    per_class: 16
    restart_rate: 0.5
"""


@pytest.fixture(autouse=True)
def handler_put_back():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def call(*arguments):
    """Runs a command; returns its exit status, output and errors."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
    return stop.value.code, out.getvalue(), errors.getvalue()


def refused(match, *arguments):
    status, _, errors = call(*arguments)
    assert status == 2, errors
    assert errors.startswith("ebm-from-clf: ") and errors.count("\n") == 1
    assert "Traceback" not in errors
    assert match in errors


def create(name="test_resnet", num_classes=4, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        return timm.create_model(name, num_classes=num_classes, **kwargs)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved energy of four classes on images of 16x16."""
    place = tmp_path_factory.mktemp("saved") / "model"
    energy = convert(create(), size=16)
    energy.class_names = ["tabby, tabby cat", "tiger", "lynx", "../puma"]
    save(energy, place)
    return place


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier as timm saves it."""
    place = tmp_path_factory.mktemp("timm") / "classifier"
    overlay = {"input_size": (3, 32, 32)}
    timm.models.save_for_hf(
        create(pretrained_cfg_overlay=overlay), str(place), safe_serialization=True
    )
    return place


# Wrong recipes.

FAULTS = {
    "unknown model": ("name: resnet18", "name: resnt18", "Near it: resnet18"),
    "unknown option of timm": ("stem_width", "stem_widht", "unexpected keyword argument"),
    "option twice": ("in_chans: 1", "pretrained: true", "stands beside `kwargs`"),
    "unknown section": ("finetune:", "finetun:", "no key 'finetun'. Try finetune."),
    "unknown key": ("updates: 2", "updats: 2", "no key 'finetune.updats'. Try updates."),
    "unknown key of a part": ("n_steps: 2", "steps: 2", "'finetune.sampler.steps'. Try n_steps."),
    "text for a number": ("updates: 2", "updates: many", "finetune.updates"),
    "fraction for a whole number": ("updates: 2", "updates: 2.5", "finetune.updates"),
    "list for text": ("name: digits8x8", "name: [digits8x8]", "data.name"),
    "number for a section": ("sampler:\n    n_steps: 2", "sampler: 2", "'finetune.sampler'"),
    "section in another file": ("data:\n  name: digits8x8", "data: d.yaml", "'data' must hold"),
    "recipe in a recipe": ("data:\n", "config: other.yaml\ndata:\n", "no key 'config'"),
    "output in a recipe": ("data:\n", "output: elsewhere\ndata:\n", "no key 'output'"),
    "unknown choice": ("updates: 2", "precision: fp64", "finetune.precision"),
    "unknown reference": ("data:\n", "reference:\n  kind: pink\ndata:\n", "reference.kind"),
    "tag": ("updates: 2", "updates: !!int 2", "tag"),
    "tag that runs": ("updates: 2", "updates: !!python/object/apply:os.getpid []", "tag"),
    "anchor": ("updates: 2", "updates: &a 2", "anchors and aliases"),
    "alias": ("updates: 2\n", "updates: &a 2\n  warmup: *a\n", "anchors and aliases"),
    "merge": ("  updates: 2", "  <<: {updates: 3}", "no key 'finetune.<<'"),
    "key twice": ("updates: 2\n", "updates: 2\n  updates: 3\n", "'updates' is given twice"),
    "key twice in a part": ("n_steps: 2", "n_steps: 2\n    n_steps: 3", "given twice"),
    "option of timm twice": ("in_chans: 1", "in_chans: 1\n    in_chans: 3", "given twice"),
    "NaN": ("updates: 2", "learning_rate: .nan", ".nan is not a finite number"),
    "NaN as text": ("updates: 2", "learning_rate: nan", "nan is not a finite number"),
    "infinity": ("updates: 2", "learning_rate: -.INF", "-.INF is not a finite number"),
    "overflow": ("updates: 2", "learning_rate: 1e400", "1e400 is not a finite number"),
    "NaN for timm": ("stem_width: 8", "stem_width: .nan", "not a finite number"),
    "no updates": ("updates: 2", "updates: 0", "`updates` must be 1 or more"),
    "no step": ("n_steps: 2", "step_size: 0.0", "`step_size` must be between 0 and 2"),
    "unstable step": ("n_steps: 2", "step_size: 2.5", "`step_size` must be between 0 and 2"),
    "negative epochs": ("epochs: 1", "epochs: -1", "`epochs` must be 0 or more"),
    "negative weight": ("epochs: 1", "generative: -1", "`generative` must be 0 or more"),
    "no size": ("epochs: 1", "size: 0", "`size` positive"),
    "negative shift": ("updates: 2", "augment:\n    shift: -1", "`shift` must be 0 or more"),
    "no scale": ("data:\n", "reference:\n  scale: 0.0\ndata:\n", "`scale`, `floor` and"),
    "no gain": ("data:\n", "energy:\n  gain: 0.0\ndata:\n", "`gain` must be positive"),
    "no chains": ("per_class: 16", "per_class: 0", "`per_class` must be 1 or more"),
    "a rate above 1": ("restart_rate: 0.5", "restart_rate: 1.5", "`restart_rate` is 0 to 1"),
    "8 bits without a box": ("per_class: 16", "storage: uint8", "the energy is unbounded"),
    "a box that mixes": (
        "data:\n",
        "reference:\n  kind: spectral\nenergy:\n  support: clamp\ndata:\n",
        "acts on each pixel alone",
    ),
    "too smooth": ("updates: 2", "objective:\n    label_smoothing: 5", "fraction below 1"),
    "joint scores that are 0": (
        "finetune:\n",
        "energy:\n  gauge: log_softmax\nfinetune:\n  objective:\n    scores: joint\n",
        "joint scores are 0",
    ),
    "unknown optimizer": ("updates: 2", "optimizer: adm", "cannot make the optimizer 'adm'"),
    "unknown part": ("updates: 2", "updates: 2\n  freeze: [layr1]", "called 'layr1'. Try layer1"),
    "nothing to learn": ("updates: 2", 'updates: 2\n  freeze: "*"', "nothing is left to learn"),
    "unknown schedule": ("updates: 2", "schedule: cosin", "cosin"),
    "unknown data": ("name: digits8x8", "name: digits", "'digits' is none of mnist5k"),
    "no folder of data": ("name: digits8x8", "name: folder\n  root: none", "none: no such folder"),
    "no classes": ("num_classes: 10", "num_classes: 0", "num_classes"),
    "too few classes": ("num_classes: 10", "num_classes: 5", "Give num_classes=10"),
    "too many classes": ("num_classes: 10", "num_classes: 12", "no image of class 10, 11"),
    "unknown key of the overlay": ("std: [0.5]", "stdd: [0.5]", "stdd"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_recipe_ends_in_one_line_and_writes_nothing(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new, match = FAULTS[fault]
    assert RECIPE.count(old) == 1
    (tmp_path / "r.yaml").write_text(RECIPE.replace(old, new))
    (tmp_path / "d.yaml").write_text("name: digits8x8\n")
    before = sorted(tmp_path.rglob("*"))
    refused(match, "finetune", "--config", "r.yaml", "--output", "out")
    assert sorted(tmp_path.rglob("*")) == before


TEXTS = {
    "empty": ("", "a recipe is a mapping"),
    "a list": ("- a\n- b\n", "a recipe is a mapping"),
    "open bracket": ("a: [", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "not text": ("\0\1\2", "not valid YAML"),
    "a page": ("<!DOCTYPE html>\n<html>\n", "a recipe is a mapping"),
    "too deep": ("a: " + "[" * 1500 + "]" * 1500, "not valid YAML"),
    "too long": ("# " + "a" * 1_000_000, "bytes are no recipe"),
    "a key that is a list": ("? [a]\n: b\n", "no key"),
    "no classifier": (RECIPE[RECIPE.index("data:") :], "classifier.name"),
    "no data": (RECIPE[: RECIPE.index("data:")], "data.name"),
}


@pytest.mark.parametrize("fault", TEXTS)
def test_what_is_no_recipe_ends_in_one_line(fault, tmp_path):
    text, match = TEXTS[fault]
    (tmp_path / "r.yaml").write_text(text)
    refused(match, "finetune", "--config", tmp_path / "r.yaml", "--output", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path):
    refused("digits8x8", "finetune", "--config", "mnist", "--output", tmp_path / "out")
    refused("no such recipe", "finetune", f"--config={tmp_path}", "--output", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_override_is_refused_by_name(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    start = ["finetune", "--config", recipe, "--output", tmp_path / "out"]
    refused("--finetune.updats=3", *start, "--finetune.updats=3")
    refused("finetune.updates", *start, "--finetune.updates=x")
    refused("`updates` must be 1 or more", *start, "--finetune.updates=0")
    refused("--finetune.upd", *start, "--finetune.upd=3")
    refused("energy.gain", *start, "--energy.gain=.nan")
    refused("finetune.seed", *start, "--finetune.seed=99999999999999999999")
    refused("`learning_rate`", *start, "--finetune.learning_rate=1e400")
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


def test_an_output_in_use_is_left_as_it_was(tmp_path, model):
    recipe, mine = tmp_path / "r.yaml", tmp_path / "out" / "recipe.yaml"
    recipe.write_text(RECIPE)
    mine.parent.mkdir()
    mine.write_text("mine")
    for command in (
        ["finetune", "--config", recipe],
        ["sample", model, "--classes", "0", "--steps", "1", "--n", "1"],
        ["evaluate", model, "--data", "digits8x8"],
        ["convert", model],
    ):
        refused("out: holds something already", *command, "--output", mine.parent)
        refused("r.yaml: ", *command, "--output", recipe)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", "r.yaml", "recipe.yaml"]
    assert mine.read_text() == "mine" and recipe.read_text() == RECIPE


def test_an_output_that_cannot_be_written_is_refused(tmp_path, model):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    refused("cannot be written", "sample", model, "--classes", "0", "--output", out)


# A right recipe.


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The folder of a run of two updates, and what was printed."""
    place = tmp_path_factory.mktemp("run")
    (place / "r.yaml").write_text(RECIPE)
    before = signal.getsignal(signal.SIGTERM)
    status, out, errors = call(
        "finetune", "--config", place / "r.yaml", "--output", place / "out",
        "--finetune.seed=3",
    )  # fmt: skip
    signal.signal(signal.SIGTERM, before)
    assert (status, errors) == (0, "")
    return place / "out", out


def test_a_run_leaves_its_recipe_numbers_and_model(tuned):
    out, printed = tuned
    assert {p.name for p in out.iterdir()} >= {
        "recipe.yaml", "metrics.json", "metrics.jsonl", "model"
    }  # fmt: skip
    assert str(out / "model") in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["updates"] == 2 and metrics["rollbacks"] == 0
    assert 0 <= metrics["accuracy_after"] <= 1
    assert metrics["versions"]["timm"] == timm.__version__
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert load(out / "model").n_classes == 10
    classifier = timm.create_model(f"local-dir:{out / 'model'}", pretrained=True)
    assert classifier.num_classes == 10


def test_the_resolved_recipe_is_a_recipe_of_the_same_run(tuned, tmp_path):
    resolved = tuned[0] / "recipe.yaml"
    found = yaml.safe_load(resolved.read_text())
    assert found["finetune"]["seed"] == 3 and found["finetune"]["updates"] == 2
    # Complete: also what the first recipe left at its default.
    assert found["finetune"]["objective"]["kind"] and found["energy"]["gauge"] == "raw"
    status, _, errors = call("finetune", "--config", resolved, "--output", tmp_path / "again")
    assert (status, errors) == (0, "")
    assert read_recipe(tmp_path / "again" / "recipe.yaml") == read_recipe(resolved)
    old, new = load(tuned[0] / "model"), load(tmp_path / "again" / "model")
    weights = new.classifier.state_dict()
    for key, value in old.classifier.state_dict().items():
        assert torch.equal(value, weights[key])


OPTIONS = {
    "last layer": ["freeze=body"],
    "parts": ['freeze=[layer1,"*.bias"]'],
    "logistic": ["objective.kind=logistic", "objective.trim=0.1", "objective.square=0.01"],
    "floor": ["objective.clamp=0.1"],
    "joint": ["objective.scores=joint"],
    "adversarial": ["objective.adversarial.radius=0.5"],
    "warm start": ["warm_start.updates=1"],
    "curriculum": ["curriculum.auc=0.5", "curriculum.growth=3"],
    "gain": ["learn_gain=0.02"],
    "many classes": ["start.size=8", "chains.mapped=true"],
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_what_a_run_may_do_beside_changes_what_it_learns(kind, tuned, tmp_path):
    """The options that the README tells of."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    options = [f"--finetune.{option}" for option in OPTIONS[kind]]
    status, out, errors = call(
        "finetune", "--config", tmp_path / "r.yaml", "--output", tmp_path / "out",
        "--finetune.seed=3", "--finetune.updates=3", *options,
    )  # fmt: skip
    assert (status, errors) == (0, "") and "accuracy" in out
    one, two = (load(place / "model").classifier for place in (tuned[0], tmp_path / "out"))
    same = {k: torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items()}
    assert not same["fc.weight"] and not all(same.values())


def test_a_run_ends_in_status_1_when_it_diverges(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    status, _, errors = call(
        "finetune", "--config", tmp_path / "r.yaml", "--output", tmp_path / "out",
        "--finetune.guard.max_score=1e-9", "--finetune.guard.rollbacks=0",
    )  # fmt: skip
    assert status == 1
    assert "diverged at update 1" in errors and errors.count("\n") == 1
    assert not (tmp_path / "out" / "model").exists()
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_tuned_model_is_evaluated(tuned, tmp_path):
    status, out, errors = call(
        "evaluate", tuned[0] / "model", "--data", "digits8x8", "--output", tmp_path / "scores"
    )
    assert (status, errors) == (0, "")
    numbers = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    trained = json.loads((tuned[0] / "metrics.json").read_text())
    assert numbers["n"] == 397
    assert numbers["accuracy"] == trained["accuracy_after"]
    assert json.loads(out.splitlines()[0])["accuracy"] == numbers["accuracy"]
    status, out, errors = call(
        "evaluate", tuned[0] / "model", "--data", "digits8x8", "--output", tmp_path / "robust",
        "--adversarial.radius=0.5", "--adversarial.n_steps=2",
    )  # fmt: skip
    assert (status, errors) == (0, "")
    found = json.loads((tmp_path / "robust" / "metrics.json").read_text())
    assert found["accuracy"] == numbers["accuracy"] >= found["robust_accuracy"]
    assert found["adversarial"] == {"radius": 0.5, "n_steps": 2, "step": 0.625}


# Samples.


def test_samples_lie_in_folders_of_their_class_with_their_origin(model, tmp_path):
    out = tmp_path / "deeper" / "out"
    status, printed, errors = call(
        "sample", model, "--classes", "lynx,3,0", "--n", "2", "--seed", "5", "--steps", "2",
        "--output", out,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert str(out / "grid.png") in printed
    pictures = {str(p.relative_to(out)) for p in out.rglob("*.png")}
    assert pictures == {"grid.png"} | {
        f"{name}/{seed}.png"
        for name in ("00002_lynx", "00003_puma", "00000_tabby")
        for seed in (5, 6)
    }
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert {"file_name", "class", "label", "seed", "energy", "steps"} <= set(line)
        assert line["steps"] == 2
        with Image.open(out / line["file_name"]) as image:
            assert (image.size, image.mode) == ((16, 16), "RGB")
    first = lines[0]
    assert (first["class"], first["label"], first["seed"]) == (2, "lynx", 5)
    assert first["file_name"] == "00002_lynx/5.png"
    with Image.open(out / "chains.gif") as film:
        assert film.is_animated


def test_all_classes_are_sampled_in_order(model, tmp_path):
    out = tmp_path / "out"
    arguments = ["--classes", "all", "--n", "1", "--steps", "1", "--output", out]
    assert call("sample", model, *arguments)[0] == 0
    assert call("sample", model, "--classes", "1,1", *arguments[2:-1], tmp_path / "one")[0] == 0
    assert len((tmp_path / "one" / "metadata.jsonl").read_text().splitlines()) == 1
    lines = (out / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["class"] for line in lines] == [0, 1, 2, 3]


def test_samples_may_be_drawn_in_reduced_precision(model, tmp_path):
    command = ("sample", model, "--classes", "0", "--n", "1", "--steps", "2")
    energies = []
    for precision in ("float32", "bfloat16"):
        place = tmp_path / precision
        assert call(*command, "--precision", precision, "--output", place)[0] == 0
        assert json.loads((place / "settings.json").read_text())["precision"] == precision
        energies.append(json.loads((place / "metadata.jsonl").read_text())["energy"])
    assert energies[0] != energies[1]
    assert energies[0] == pytest.approx(energies[1], rel=0.01)
    refused("another request", *command, "--resume=auto", "--output", place)


def test_units_are_sampled_in_the_place_of_classes(classifier, tmp_path):
    out = tmp_path / "out"
    wanted = ["--unit", "layer1.0.conv1:3,layer2.0.conv1:7@0,1", "--unit", "fc:2"]
    status, _, errors = call(
        "sample", classifier, *wanted, "--n", "2", "--steps", "2", "--output", out
    )
    assert (status, errors) == (0, "")
    folders = {"00000_layer1-0-conv1-3", "00001_layer2-0-conv1-7-0", "00002_fc-2"}
    assert {p.parent.name for p in out.glob("*/*.png")} == folders
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    labels = [line["label"] for line in lines[::2]]
    assert labels == ["layer1.0.conv1:3", "layer2.0.conv1:7@0,1", "fc:2"]
    assert (out / "grid.png").exists() and (out / "chains.gif").exists()
    for match, arguments in {
        "--classes or --unit": [],
        "Give one of the two": ["--classes", "0", "--unit", "fc:2"],
        "Try layer1": ["--unit", "layr1:0"],
        "channels of fc are 0 to 3": ["--unit", "fc:4"],
        "'fc' is no unit": ["--unit", "fc"],
    }.items():
        refused(match, "sample", classifier, *arguments, "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()


WRONG_SAMPLES = [
    (["--classes", "4"], "classes are 0 to 3"),
    (["--classes", "0,99999999999999999999"], "classes are 0 to 3"),
    (["--classes", "0", "--seed", "99999999999999999999"], "a seed is 0 to"),
    (["--classes", "tigre"], "no class is named 'tigre'. Near it: tiger"),
    (["--classes", "zzz"], "no class is named 'zzz'"),
    (["--classes", "-1"], "no class is named '-1'"),
    (["--classes", ""], "no class is named ''"),
    (["--classes", "0,"], "no class is named ''"),
    (["--classes", "0", "--n", "0"], "--n must be a positive whole number, got 0."),
    (["--classes", "0", "--n", "-3"], "--n must be a positive whole number, got -3."),
    (["--classes", "0", "--n", "1.5"], "--n must be a positive whole number, got 1.5."),
    (["--classes", "0", "--steps", "0"], "--steps must be a positive whole number, got 0."),
    (["--classes", "0", "--seed", "-1"], "--seed must be a whole number, 0 or more, got -1."),
    (["--classes", "0", "--strength", "2"], "--strength must be a number from 0 to 1, got 2."),
    (["--classes", "0", "--step", "1"], "--step"),
    (["--classes", "0", "extra"], "extra"),
    ([], "classes"),
]


@pytest.mark.parametrize(
    "arguments, match", WRONG_SAMPLES, ids=[" ".join(a) for a, _ in WRONG_SAMPLES]
)
def test_a_wrong_request_for_samples_is_refused_and_writes_nothing(
    arguments, match, model, tmp_path
):
    refused(match, "sample", model, *arguments, "--output", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_names_of_a_wrong_type_are_told_what_is_expected(model, tmp_path):
    _, _, errors = call("sample", model, "--classes", "0", "--n", "many", "--output", tmp_path)
    assert errors == ("ebm-from-clf: --n must be a positive whole number, got many. See --help.\n")


@pytest.mark.parametrize("command", ["doctor", "theory"])
@pytest.mark.parametrize("size", ["0", "-3", "1.5", "large"])
def test_a_size_is_a_positive_whole_number(command, size):
    wanted = f"ebm-from-clf: --size must be a positive whole number, got {size}. See --help.\n"
    assert call(command, "test_resnet", f"--size={size}") == (2, "", wanted)


@pytest.mark.parametrize("command", ["doctor", "theory", "sample"])
def test_help_says_that_saved_energies_are_taken(command):
    status, out, _ = call(command, "--help")
    assert status == 0 and "A saved energy, any name of timm, or demo:NAME." in out


@pytest.mark.parametrize("n", [1, 3])
def test_of_one_class_no_accuracy_is_told(n, monkeypatch, tmp_path):
    metrics = {"accuracy_before": 0.25, "accuracy_after": 0.5, "faults": []}
    run = Finished(toys.linear(n_classes=n), [], [], metrics, [])
    monkeypatch.setattr(cli, "finetune_recipe", lambda *a, **k: run)
    (tmp_path / "r.yaml").write_text(RECIPE)
    _, out, _ = call("finetune", "--config", tmp_path / "r.yaml", "--output", "it")
    told = out.splitlines()
    assert told[:-1] == ([] if n == 1 else ["accuracy 0.250 -> 0.500"])
    assert told[-1].startswith("wrote it;")


@pytest.mark.parametrize("name", ["resnt18", "/no/such/folder", "local-dir:/no/such/folder"])
def test_an_unknown_model_is_refused_and_writes_nothing(name, tmp_path):
    out = tmp_path / "out"
    refused(name, "sample", name, "--classes", "0", "--output", out)
    refused(name, "convert", name, "--output", out)
    refused(name, "evaluate", name, "--data", "digits8x8", "--output", out)
    refused(name, "doctor", name)
    refused(name, "theory", name)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_refused_and_writes_nothing(model, tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    for path in model.iterdir():
        (place / path.name).write_bytes(path.read_bytes()[:-9])
    refused(str(place), "sample", place, "--classes", "0", "--output", tmp_path / "out")
    (place / "config.json").write_bytes((model / "config.json").read_bytes())
    refused(str(place), "sample", place, "--classes", "0", "--output", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_folder_of_a_run_names_the_model_in_it(model, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(model, target_is_directory=True)
    match = f"Give the model in it, {tmp_path / 'run/model'}"
    refused(match, "doctor", tmp_path / "run")
    refused(match, "sample", tmp_path / "run", "--classes", "0", "--output", tmp_path / "out")
    refused(match, "evaluate", tmp_path / "run", "--data=digits8x8", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_are_missing_are_refused_and_write_nothing(model, tmp_path):
    out = tmp_path / "out"
    refused("give `", "evaluate", model, "--data", "digits", "--output", out)
    refused("none: no such", "evaluate", model, "--data=folder", "--root=none", "--output", out)
    assert list(tmp_path.iterdir()) == []


# The doctor, and conversion.


def test_the_doctor_prints_json():
    status, out, errors = call(
        "doctor", "test_resnet", "--pretrained", "false", "--size", "64", "--json"
    )
    assert (status, errors) == (0, "")
    found = json.loads(out)
    assert found["ok"] is True and found["shape"] == [3, 64, 64]
    assert [finding["ok"] for finding in found["findings"]] == [True] * 5
    assert found["step_ms"] > found["forward_ms"] > 0 and found["gain"] > 0


def test_the_doctor_prints_lines_for_people():
    status, out, _ = call("doctor", "test_resnet", "--pretrained=false", "--size=64")
    assert status == 0
    assert "images 3x64x64" in out and "a step of" in out and "takes the gain" in out
    assert out.count("\n  ok ") == 5


def test_the_doctor_says_why_a_classifier_cannot_be_converted():
    arguments = ["doctor", "vit_tiny_patch16_224", "--pretrained=false", "--size=64"]
    refused("Give size=224", *arguments)
    _, out, _ = call(*arguments, "--json")
    assert json.loads(out)["ok"] is False and json.loads(out)["gain"] is None
    _, out, _ = call(*arguments)
    assert out.count("\n  NO ") == 1


def test_a_folder_of_timm_is_converted_examined_and_sampled(classifier, tmp_path):
    out = tmp_path / "out"
    status, printed, errors = call("convert", classifier, "--gain", "2.5", "--output", out)
    assert (status, errors) == (0, "") and str(out) in printed
    energy = load(out)
    assert (energy.gain, energy.n_classes, energy.space.size) == (2.5, 4, (32, 32))
    assert (out / "metrics.json").is_file()
    old = timm.create_model(f"local-dir:{classifier}", pretrained=True).state_dict()
    assert all(torch.equal(v, old[k]) for k, v in energy.classifier.state_dict().items())
    assert call("doctor", classifier)[0] == 0
    assert "the gain that was saved with it, 2.5" in call("doctor", out)[1]
    samples = ["--classes", "1", "--n", "1", "--steps", "1", "--output", tmp_path / "samples"]
    assert call("sample", classifier, *samples)[0] == 0


def test_features_are_not_converted(tmp_path):
    place = tmp_path / "features"
    timm.models.save_for_hf(create(num_classes=0), str(place), safe_serialization=True)
    out = tmp_path / "out"
    refused("num_classes is 0", "convert", place, "--output", out)
    refused("num_classes is 0", "sample", place, "--classes", "0", "--output", out)
    assert [p.name for p in tmp_path.iterdir()] == ["features"]


def test_wrong_options_of_convert_are_refused(classifier, tmp_path):
    out = tmp_path / "out"
    refused('"gauge"', "convert", classifier, "--gauge", "none", "--output", out)
    zero = "--gain must be a positive number, got 0."
    refused(zero, "convert", classifier, "--gain", "0", "--output", out)
    refused("--gain must", "convert", classifier, "--gain", "nan", "--output", out)
    refused("must be positive", "convert", classifier, "--gain", "inf", "--output", out)
    refused("output", "convert", classifier)
    assert list(tmp_path.iterdir()) == []


# Help.


COMMANDS = ["quickstart", "doctor", "theory", "convert", "finetune", "sample", "evaluate"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_tells_its_options(command):
    status, out, errors = call(command, "--help")
    assert (status, errors) == (0, "")
    assert "usage: ebm-from-clf" in out and command in out
    assert ("--output" in out) == (command not in ("doctor", "theory"))


def test_help_lists_the_commands():
    status, out, errors = call("--help")
    assert (status, errors) == (0, "")
    assert all(command in out for command in COMMANDS)
    assert "ebm-from-clf sample runs/mnist5k/model" in out


def test_the_recipe_is_shown_without_a_run(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    status, out, _ = call(
        "finetune", "--config", tmp_path / "r.yaml", "--output", tmp_path / "out", "--print_config"
    )
    assert status == 0
    assert yaml.safe_load(out)["finetune"]["updates"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("command", ["finetune", "quickstart"])
def test_what_is_shown_is_a_recipe(tmp_path, command):
    (tmp_path / "r.yaml").write_text(RECIPE)
    options = ["--output", tmp_path / "out", "--finetune.seed=5"]
    status, out, _ = call(command, "--config", tmp_path / "r.yaml", *options, "--print_config")
    assert status == 0
    (tmp_path / "shown.yaml").write_text(out)
    given = read_recipe(tmp_path / "r.yaml")
    shown = read_recipe(tmp_path / "shown.yaml")
    assert shown == replace(given, finetune=replace(given.finetune, seed=5))


def test_a_command_is_needed():
    refused("quickstart")
    refused("frobnicate", "frobnicate")


def test_resume_of_a_finished_run_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    command = ["finetune", "--config", tmp_path / "recipe.yaml", "--output", tmp_path / "run"]
    assert call(*command, "--resume", "auto")[0] == 0
    refused("this run is finished", *command, "--resume=auto")
    refused("begun with another recipe", *command, "--resume=auto", "--finetune.seed=1")
    refused("never", *command, "--resume", "always")
