"""What networks are made of, and which of the paper's statements that leaves."""

import pytest
import timm
import torch
import toys
from torch import nn

from ebm_from_clf.graph import read
from ebm_from_clf.theory.census import census


def of(name, size=64, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = timm.create_model(name, num_classes=3, **kwargs)
    return census(read(network, torch.randn(1, 3, size, size, generator=toys.seeded())))


def test_a_residual_network_is_counted():
    found = of("resnet18", 32)
    assert found.form == "piecewise linear" and found.spoilers == ()
    assert found.count("rectifier") == 17 and found.count("pool") == 1
    counts = {(e.operation, e.layer): e.count for e in found.entries}
    assert counts["convolution", "Conv2d"] == 20
    assert counts["native_batch_norm", "BatchNorm2d"] == 20
    assert counts["add", "BasicBlock"] == 8
    assert counts["addmm", "Linear"] == 1
    assert found.count(*found.kinds) == sum(counts.values())


# The form, and an operation and a type of module that the network is bent by.
FORMS = {
    "test_resnet": ("piecewise linear", None, None),
    "mobilenetv2_050": ("piecewise linear", None, None),
    "fasternet_t0": ("elementwise", "gelu", "GELU"),
    "regnety_002": ("general", "mul", "SEModule"),
    "mobilenetv3_small_050": ("general", "hardswish", "Hardswish"),
    "test_efficientnet": ("general", "mul", "SqueezeExcite"),
    "test_convnext": ("general", "native_layer_norm", "LayerNorm2d"),
    "test_efficientnet_gn": ("general", "native_group_norm", "GroupNormAct"),
    "levit_128s": ("general", "_softmax", "Attention"),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_a_network_and_what_bends_it(name):
    form, operation, layer = FORMS[name]
    found = of(name, 224) if name.startswith("levit") else of(name)
    assert found.form == form
    made = {(e.operation, e.layer) for e in found.spoilers}
    assert made == set() if operation is None else (operation, layer) in made
    assert not found.count("unread")


def test_attention_is_named():
    found = of("test_vit", img_size=64)
    kinds = {e.kind for e in found.spoilers}
    assert kinds == {"attention", "normalisation", "activation"}
    (attention,) = (e for e in found.spoilers if e.kind == "attention")
    assert attention.layer == "Attention" and attention.first == "blocks.0.attn"
    assert "blocks.0.attn" in str(attention)


def small(act):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Flatten(), nn.LazyLinear(3))
    return census(read(network, torch.randn(2, 3, 6, 6, generator=toys.seeded())))


def test_the_statements_that_hold():
    straight, kinked = small(nn.Identity()).statements(), small(nn.ReLU()).statements()
    smooth, spoilt = small(nn.SiLU()).statements(), small(nn.Softmax2d()).statements()
    always = ("likelihood gradient", "Langevin drift", "Bayes")
    assert all(s[key] == "exact" for s in (straight, kinked, smooth, spoilt) for key in always)
    rows = {
        "top-down pass": ("exact", "local", "not here"),
        "f = a + <B, u>": ("exact", "local", "local"),
        "secant f = a + <G, u>": ("exact", "exact", "not here"),
        "piecewise Gaussian": ("exact", "not here", "not here"),
        "auto-encoder by pattern": ("exact", "local", "not here"),
        "CD-1 reconstructs": ("exact", "local", "local"),
    }
    for key, row in rows.items():
        assert (kinked[key], smooth[key], spoilt[key]) == row, key
        assert straight[key] == "exact"
    # A minimum of a network with kinks may lie on one, a smooth one has its gradient 0.
    assert kinked["minima reconstruct"] == "local"
    assert smooth["minima reconstruct"] == straight["minima reconstruct"] == "exact"


def test_a_hard_sigmoid_is_a_rectifier_and_a_gate_is_none():
    class Gate(nn.Module):
        def forward(self, x):
            return x * nn.functional.hardsigmoid(x.mean((2, 3), keepdim=True))

    assert small(nn.Hardsigmoid()).form == "piecewise linear"
    found = small(Gate())
    assert found.form == "general"
    (gate,) = found.spoilers
    assert (gate.operation, gate.kind, gate.layer, gate.count) == ("mul", "gate", "Gate", 1)
    assert str(gate) == "mul of Gate (gate, once, in 1)"
