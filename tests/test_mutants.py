"""Every proposition of the table fails for some wrong factor in this package; which one for which.

A row that no mutant makes fail would say nothing. A mutant that changes both sides of a row alike
is not seen by it, so that for each mutant all the rows are named that fail.
"""

import sys

import pytest
import test_theory
import torch
import toys
from test_theory import LAYER, MINIMUM
from torch import nn

from ebm_from_clf import ClassifierEnergy, FittedGaussian, PixelSpace, langevin
from ebm_from_clf.drift import energy_and_score
from ebm_from_clf.gauge import gauged
from ebm_from_clf.graph import down, rectifier, recursion
from ebm_from_clf.langevin import Langevin
from ebm_from_clf.prototype import PieceLaw, PrototypeLaw
from ebm_from_clf.reference import Reference
from ebm_from_clf.theory import Structure, examine_theory, identities, memory, scene

# The package has a function of the name of the module.
STRUCTURE = sys.modules["ebm_from_clf.theory.structure"]

TOPDOWN = "the top-down pass is the gradient"
PLANE = "f = alpha + <B, u>"
SECANT = "f = alpha + <G, u> with secants"
PIECE = "the model is Gaussian on a piece"
CODE = "image -> pattern -> B is an auto-encoder"
LIKELY = "likelihood gradient: observed - synthesized"
WEIGHTS = "log p changes with the weights by its gradient"
STEP = "a step in u is a preconditioned one in x"
HEAT = "a temperature is a scale of A and a gain"
DRIFT = "the drift of the chain is B - u"
CD1 = "CD-1 learns to reconstruct"
GAUGE = "Bayes: no gauge changes the posterior"
BAYES = "generative = discriminative: p(c | u)"


def smooth():
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        layers = nn.Linear(48, 30), nn.Tanh(), nn.Linear(30, 3)
        network = nn.Sequential(nn.Flatten(), *layers)
    network.num_classes = 3
    return network


NETWORKS = {"rectifiers": lambda: test_theory.rectified(0.3), "smooth": smooth}


def examine(kind):
    """The table over a factor A that is not symmetric and a mean that is not that of the input."""
    color = torch.tensor([[1.0, 0.4, 0.1], [0.4, 0.8, -0.3], [0.1, -0.3, 0.5]])
    ky, kx = torch.fft.fftfreq(4)[:, None].abs(), torch.fft.fftfreq(4)[None].abs()
    mean = 0.2 + 0.6 * torch.rand(3, 4, 4, generator=toys.seeded(1))
    reference = FittedGaussian(mean, 0.3, 1 / (1 + kx + 2 * ky), color)
    space = PixelSpace([0.4, 0.5, 0.6], [0.2, 0.25, 0.3], (4, 4))
    return examine_theory(ClassifierEnergy(NETWORKS[kind](), reference, space, gain=1.5))


def tilts(change):
    right = ClassifierEnergy.tilts
    return [(ClassifierEnergy, "tilts", lambda self, logits: change(right(self, logits)))]


def gainless(self, logits):
    return gauged(logits, self.gauge)


def energy(half, power):
    """U = half |u|^power - F."""
    return lambda self, u, y: half * u.flatten(1).norm(dim=1) ** power - self.tilt(u, y)


def plane(change):
    right = Structure.plane
    return [(Structure, "plane", lambda self, *rest: change(self, right(self, *rest)))]


def without_gain(s, found):
    return found._replace(alpha=found.alpha / s.energy.gain, slope=found.slope / s.energy.gain)


def without_mean(s, found):
    mean = s.energy.space(s.energy.reference.mean)
    _, slope, _ = down(s.graph, s._weights(s.energy.all_tilts(s.u).argmax(1)))
    return found._replace(alpha=found.alpha - (slope * mean).flatten(1).sum(1))


def biasless(*args):
    found = down(*args)
    return found._replace(alpha=0 * found.alpha)


def own_pattern(self, y, pattern=None, right=Structure.plane):
    return right(self, y, None if isinstance(pattern, tuple) else pattern)


def steep(operation, r):
    slopes, offset = rectifier.secant_slopes(operation, r)
    return 1.1 * slopes, offset


def far(self, direction, right=Structure.reach):
    return 4 * right(self, direction)


def faster(self, energy, u, way, drift, e, generator, right=Langevin._move):
    return right(self, energy, u, way, 2 * drift, e, generator)


def mean_score(energy, u, y):
    value, score = energy_and_score(energy, u, y)
    return value, score / len(u)


def beside(*args, right=memory.descend, **options):
    found = right(*args, **options)
    return found._replace(u=found.u * 1.01)


def short(self, energy, temperature=1.0, right=PrototypeLaw.__init__):
    right(self, energy, temperature)
    self.log_z = self.log_z - self.tau.square().sum() / 4


def inverted(self, energy, temperature=1.0, right=PieceLaw.__init__):
    right(self, energy, temperature)
    self.patterns = ~self.patterns


PASS, CHAIN = {TOPDOWN, PLANE, CODE}, {STEP, DRIFT, CD1}
# What is put where, the rows of rectifiers that fail and, where others do, those of the smooth
# network.
MUTANTS = {
    "the tilt is 1.3 times what it is": (
        tilts(lambda t: 1.3 * t),
        {*PASS, MINIMUM, GAUGE},
        {TOPDOWN, SECANT, CODE, GAUGE},
    ),
    "the score is doubled": (
        tilts(lambda t: 2 * t - t.detach()),
        {TOPDOWN, CODE, PIECE, WEIGHTS, DRIFT, MINIMUM},
        {TOPDOWN, CODE, WEIGHTS, DRIFT},
    ),
    "the gain is dropped": (
        [(ClassifierEnergy, "tilts", gainless)],
        {*PASS, HEAT, GAUGE, MINIMUM},
    ),
    "the gain is dropped from the pass": (plane(without_gain), {*PASS, MINIMUM}),
    "A for its transpose": (
        [(Reference, "adjoint", Reference.factor)],
        {*PASS, STEP, MINIMUM},
        {TOPDOWN, SECANT, CODE, STEP},
    ),
    "images without the mean": ([(Reference, "decode", Reference.factor)], {PLANE, STEP}),
    "input that is not scaled": (
        [(PixelSpace, "forward", lambda self, x: x - self.mean)],
        {*PASS, MINIMUM, BAYES},
    ),
    # Within a piece rectifiers come to the minimum by their planes, whatever the energy is.
    "energy without the reference": (
        [(ClassifierEnergy, "forward", energy(0, 2))],
        CHAIN,
        {STEP, DRIFT, MINIMUM},
    ),
    "energy of |u|^2": (
        [(ClassifierEnergy, "forward", energy(1, 2))],
        CHAIN,
        {STEP, DRIFT, MINIMUM},
    ),
    "energy of |u|": ([(ClassifierEnergy, "forward", energy(1, 1))], {*CHAIN, HEAT}),
    "alpha without the mean": (plane(without_mean), {PLANE}),
    "alpha without the biases": ([(STRUCTURE, "down", biasless)], {PLANE}, {SECANT}),
    "units on for off": (
        [(rectifier.RECTIFIERS, "relu", lambda o, r: ((0.0,), r <= 0))],
        {TOPDOWN, CODE, MINIMUM},
    ),
    "the pattern of other images": ([(Structure, "plane", own_pattern)], {CODE}),
    "secants that are too steep": ([(recursion, "secant_slopes", steep)], set(), {SECANT}),
    "pieces that end too late": (
        [(Structure, "reach", far), (scene, "NEAR", 10.0)],
        {PIECE, DRIFT, CD1},
    ),
    "twice the drift": ([(Langevin, "_move", faster)], CHAIN),
    "T for its root": (
        [(Langevin, "noise_std", lambda self, e: e * self.temperature)],
        {STEP, HEAT},
    ),
    "T is ignored": ([(Langevin, "noise_std", lambda self, e: e)], {STEP, HEAT}),
    "the mean over a batch": ([(langevin, "energy_and_score", mean_score)], CHAIN),
    "a loss of the other sign": (
        [(identities, "likelihood", lambda a, b: a.mean() - b.mean())],
        {LIKELY},
    ),
    "a loss that is a sum": (
        [(identities, "likelihood", lambda a, b: b.sum() - a.sum())],
        {LIKELY},
    ),
    "beside a minimum": ([(memory, "descend", beside)], {MINIMUM}, {MINIMUM}),
    "half of the norms in log Z": ([(PrototypeLaw, "__init__", short)], {LAYER, BAYES}),
    "pieces of inverted patterns": ([(PieceLaw, "__init__", inverted)], {LAYER}),
}
CASES = [
    (name, kind, expected)
    for name, (_, *found) in MUTANTS.items()
    for kind, expected in zip(NETWORKS, found, strict=False)
]


def put(mutant, monkeypatch):
    for owner, name, wrong in MUTANTS[mutant][0]:
        setter = monkeypatch.setitem if isinstance(owner, dict) else monkeypatch.setattr
        setter(owner, name, wrong)


@pytest.mark.parametrize("mutant, kind, rows", CASES, ids=[f"{m}, {k}" for m, k, _ in CASES])
def test_a_mutant_fails_in_its_rows_and_in_no_other(mutant, kind, rows, monkeypatch):
    put(mutant, monkeypatch)
    failed = {check.statement for check in examine(kind).failed}
    assert failed == rows


def test_there_is_a_mutant_for_every_row():
    """But for those without a tolerance, which only say how far they are off."""
    found = [examine(kind) for kind in NETWORKS]
    assert not any(table.failed for table in found)
    judged = {c.statement for table in found for c in table.checks if c.tolerance is not None}
    assert judged == set().union(*(rows for *_, rows in CASES))


def test_what_has_no_tolerance_has_an_order(monkeypatch):
    """Ten times nearer, the tangent of a smooth network is ten times as good, or it is none."""

    def tangent(distance):
        monkeypatch.setattr(scene, "NEAR", distance)
        (check,) = (c for c in examine("smooth").checks if c.statement == PLANE)
        assert check.verdict == "local only" and check.tolerance is None
        return check.error

    assert tangent(1e-3) / tangent(1e-2) == pytest.approx(0.1, rel=0.1)
    put("the score is doubled", monkeypatch)
    assert tangent(1e-3) / tangent(1e-2) > 0.9
