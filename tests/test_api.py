"""The public surface: names, docstrings, and what importing costs."""

import inspect
import subprocess
import sys

import ebm_from_clf

NAMES = {
    "ChainStore", "ClassGaussian", "ClassMixture", "ClassifierEnergy", "Contrastive", "DataStart",
    "Diverged", "FittedGaussian", "Finetuner", "Langevin", "Muon", "Objective", "PixelSpace",
    "Reference", "ReferenceStart", "Settings", "Smoothing", "SpectralNoise", "UniformStart",
    "UsageError", "WhiteNoise", "convert", "edit", "evaluate", "finetune", "load", "sample",
    "save", "topdown", "units",
}  # fmt: skip
METHODS = {"energy", "logits", "posterior", "free_energy", "reconstruct"}


def public():
    return {
        name: value
        for name, value in vars(ebm_from_clf).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


def test_the_surface_is_what_is_promised():
    assert set(public()) == NAMES
    assert all(callable(getattr(ebm_from_clf.ClassifierEnergy, name)) for name in METHODS)


def test_every_argument_of_the_surface_is_documented():
    for name, value in public().items():
        assert value.__doc__, name
        if inspect.isclass(value) and issubclass(value, Exception):
            continue
        parameters = inspect.signature(value).parameters
        for parameter in set(parameters) - {"args"}:
            assert f"{parameter}:" in value.__doc__, f"{name}: {parameter}"


def test_importing_leaves_the_random_state_alone():
    code = (
        "import torch; s = torch.get_rng_state(); import ebm_from_clf; "
        "assert torch.equal(s, torch.get_rng_state())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_pulls_in_no_extra():
    code = (
        "import ebm_from_clf, sys; "
        "assert not {'mlxtend', 'sklearn', 'matplotlib', 'gradio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
