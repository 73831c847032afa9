"""A run interrupted and resumed is the run never interrupted."""

import json
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from test_cli import RECIPE

from ebm_from_clf import Diverged, UsageError, chain_settings, fault, machine
from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.chain_settings import StartSettings
from ebm_from_clf.fault import GuardSettings
from ebm_from_clf.folders import claim
from ebm_from_clf.machine import free_memory
from ebm_from_clf.recipe import Recipe
from ebm_from_clf.run import finetune_recipe


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    found = read_recipe(tmp_path / "recipe.yaml")
    return replace(found, finetune=replace(found.finetune, updates=8, checkpoint_every=3))


def log(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def interrupted_at(update):
    """A progress bar that fails at an update of the fine-tuning, as a killed process would."""
    done = {"n": 0}

    def progress(title, total):
        def advance(n):
            done["n"] += n if title == "fine-tune" else 0
            if done["n"] == update:
                raise KeyboardInterrupt

        return advance

    return progress


@pytest.mark.parametrize("at", [2, 5, 8])
def test_resumed_run_is_the_run_never_interrupted(recipe, tmp_path, at):
    whole = finetune_recipe(recipe, tmp_path / "whole")
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune_recipe(recipe, out, interrupted_at(at))
    assert (out / "state.safetensors").exists() and not (out / "model").exists()
    (out / ".model.123.tmp").mkdir()
    (out / ".state.safetensors.123.tmp").write_text("half of a state")
    steps = []

    def progress(title, total):
        return lambda n: steps.append((title, n))

    resumed = finetune_recipe(recipe, out, progress, resume=True)
    assert steps == [("fine-tune", at // 3 * 3)] + [("fine-tune", 1)] * (8 - at // 3 * 3)
    for name in ("model.safetensors", "ebm.safetensors", "config.json"):
        first, second = (folder / "model" / name for folder in (tmp_path / "whole", out))
        assert first.read_bytes() == second.read_bytes(), name
    assert log(out) == log(tmp_path / "whole") and len(log(out)) == 8
    for key in ("accuracy_before", "accuracy_after", "updates"):
        assert resumed.metrics[key] == whole.metrics[key]
    assert {p.name for p in out.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_resumed_run_goes_back_to_the_same_state(recipe, tmp_path, monkeypatch):
    """A guard so strict that it trips on both sides of the interruption."""
    monkeypatch.setattr(fault, "SURE", 0.0)
    guard = GuardSettings(max_gap=1e-3, keep_every=2, rollbacks=50, slow_down=0.9)
    strict = replace(recipe, finetune=replace(recipe.finetune, guard=guard))
    whole = finetune_recipe(strict, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        finetune_recipe(strict, tmp_path / "run", interrupted_at(4))
    resumed = finetune_recipe(strict, tmp_path / "run", resume=True)
    back = [line["rollbacks"] for line in whole.history]
    assert back[2] < back[-1], "the guard must trip after the state on disk, made at update 3"
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    first, second = (dict(r.energy.classifier.state_dict()) for r in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resume_begins_a_run_that_is_not_there(recipe, tmp_path):
    short = replace(recipe, finetune=replace(recipe.finetune, updates=1))
    assert finetune_recipe(short, tmp_path / "new", resume=True).metrics["updates"] == 1


def test_mapped_chains_are_gone_when_the_run_is_finished(recipe, tmp_path):
    chains = replace(recipe.finetune.chains, mapped=True)
    mapped = replace(recipe, finetune=replace(recipe.finetune, updates=4, chains=chains))
    with pytest.raises(KeyboardInterrupt):
        finetune_recipe(mapped, tmp_path / "run", interrupted_at(3))
    assert (tmp_path / "run" / "chains.bin").exists()
    assert finetune_recipe(mapped, tmp_path / "run", resume=True).metrics["updates"] == 4
    assert not (tmp_path / "run" / "chains.bin").exists()


def test_a_disk_too_small_for_chains_is_found_before_the_classifier_is_trained(
    recipe, tmp_path, monkeypatch
):
    chains = replace(recipe.finetune.chains, mapped=True)
    mapped = replace(recipe, finetune=replace(recipe.finetune, chains=chains))
    monkeypatch.setattr("shutil.disk_usage", lambda place: namedtuple("Usage", "free")(0))

    def progress(title, total):
        raise AssertionError(f"{title} was begun")

    with pytest.raises(UsageError, match="there is room for 0.0"):
        finetune_recipe(mapped, tmp_path / "run", progress)
    assert not (tmp_path / "run" / "chains.bin").exists()


def test_chains_too_many_for_the_memory_are_found_before_the_classifier_is_trained(
    recipe, tmp_path, monkeypatch
):
    chains = recipe.finetune.chains
    # Four times ten classes of 16x16 values of 4 bytes and an age of 8, in half of the memory.
    needed = 2 * 4 * 10 * chains.per_class * (16 * 16 * 4 + 8)
    monkeypatch.setattr(chain_settings, "free_memory", lambda device: needed - 1)

    def progress(title, total):
        raise AssertionError(f"{title} was begun")

    most = f"at most {chains.per_class - 1} of a class"
    with pytest.raises(UsageError, match=f"take 0.0 GB .*half of what is free.*{most}.*mapped"):
        finetune_recipe(recipe, tmp_path / "run", progress)
    assert not list((tmp_path / "run").glob("*"))
    monkeypatch.setattr(chain_settings, "free_memory", lambda device: needed)
    with pytest.raises(AssertionError, match="was begun"):
        finetune_recipe(recipe, tmp_path / "run", progress)


def test_no_chain_is_made_to_check_how_many_there_are(recipe, tmp_path):
    many, out = replace(recipe.finetune.chains, per_class=10**15), tmp_path / "run"
    with pytest.raises(UsageError, match="10 x 1000000000000000 of them"):
        finetune_recipe(replace(recipe, finetune=replace(recipe.finetune, chains=many)), out)
    assert replace(many, per_class=10**20).per_class == 10**20


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    device = torch.device("cpu")
    assert 0 < free_memory(device) < 1e15
    files = {"max": "5000", "current": "3000", "stat": "anon 9\ninactive_file 7"}
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(machine, "CONTAINERS", [(str(tmp_path), "memory.max", "memory.current")])
    assert free_memory(device) == 5000 - 3000 + 7
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(device) > 5000


def test_a_run_that_diverged_is_not_resumed(recipe, tmp_path):
    guard = replace(recipe.finetune.guard, max_score=1e-9, rollbacks=0)
    bad = replace(recipe, finetune=replace(recipe.finetune, guard=guard))
    out = tmp_path / "run"
    with pytest.raises(
        Diverged, match="diverged at update .*ran away.* begin in another --output"
    ):
        finetune_recipe(bad, out)
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(
        UsageError, match="diverged at update .*ran away.* begin in another --output"
    ):
        finetune_recipe(bad, out, resume=True)
    assert files == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert out / "diverged.json" in files and not (out / "model").exists()
    assert (out / "metrics.jsonl").exists()
    (out / "diverged.json").write_text("")
    with pytest.raises(UsageError, match="diverged.json: damaged.* another --output"):
        finetune_recipe(bad, out, resume=True)


def test_what_cannot_be_resumed_is_refused_and_kept(recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune_recipe(recipe, out, interrupted_at(5))
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    other = replace(recipe, finetune=replace(recipe.finetune, seed=1))
    with pytest.raises(UsageError, match="begun with another recipe, .* Resume with --config"):
        finetune_recipe(other, out, resume=True)
    with pytest.raises(UsageError, match="holds something already"):
        finetune_recipe(recipe, out)
    assert files == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    (out / "state.safetensors").write_bytes(b"junk")
    with pytest.raises(UsageError, match="Remove it to start the run anew"):
        finetune_recipe(recipe, out, resume=True)


def test_a_finished_run_is_not_run_again(recipe, tmp_path):
    short = replace(recipe, finetune=replace(recipe.finetune, updates=1))
    finetune_recipe(short, tmp_path / "run")
    with pytest.raises(UsageError, match="finished"):
        finetune_recipe(short, tmp_path / "run", resume=True)


def test_two_processes_do_not_share_a_folder(recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune_recipe(recipe, out, interrupted_at(5))
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with claim(out):
        for resume in (True, False):
            with pytest.raises(UsageError, match="another process works in it"):
                finetune_recipe(recipe, out, resume=resume)
    assert files == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_refused_run_leaves_the_folder_of_another_as_it_was(recipe, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text("begun")
    with pytest.raises(UsageError, match="holds something already"):
        finetune_recipe(recipe, out)
    assert (out / "recipe.yaml").read_text() == "begun"


def test_a_run_found_wrong_leaves_what_was_there(recipe, tmp_path):
    """Resumed without a state: the folder holds a log and a note of its user."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune_recipe(recipe, out, interrupted_at(5))
    (out / "state.safetensors").unlink()
    (out / "notes.txt").write_text("mine")
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="another recipe"):
        finetune_recipe(replace(recipe, energy=replace(recipe.energy, gain=2.0)), out, resume=True)
    assert files == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    kept = (out / "recipe.yaml").read_text()
    wrong = replace(recipe.finetune, batch_size=16, start=DataKind())
    with pytest.raises(ValueError, match="of no kind"):
        finetune_recipe(replace(recipe, finetune=wrong), tmp_path / "new")
    assert not (tmp_path / "new").exists() and (out / "recipe.yaml").read_text() == kept


class DataKind(StartSettings):
    """A start that is found wrong only once it is built."""

    def build(self, energy, dataset, n_classes):
        raise ValueError("of no kind")


def test_other_data_are_not_resumed_on(recipe, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        finetune_recipe(recipe, tmp_path / "run", interrupted_at(5))
    load = Recipe.load

    def darker(self, split, space):
        found = load(self, split, space)
        found.images = found.images // 2
        return found

    monkeypatch.setattr(Recipe, "load", darker)
    with pytest.raises(UsageError, match="the data are not those"):
        finetune_recipe(recipe, tmp_path / "run", resume=True)


@pytest.mark.parametrize("scores, n", [("class", 10), ("joint", 1)])
def test_steps_of_other_classes_are_found_before_the_classifier_is_trained(
    recipe, tmp_path, scores, n
):
    settings = recipe.finetune
    sampler = replace(settings.sampler, step_factors=(1.0, 0.5, 0.5))
    objective = replace(settings.objective, scores=scores)
    wrong = replace(recipe, finetune=replace(settings, sampler=sampler, objective=objective))
    with pytest.raises(ValueError, match=f"3 `step_factors` for steps of {n} lengths"):
        finetune_recipe(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()
