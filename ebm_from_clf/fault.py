r"""What may be wrong with a run, told by the numbers of a line of its log.

Observed minus synthesized is the likelihood gradient only while chains are near the model. Once
the energy is too steep for their step they overshoot; the gap

.. math:: \bar f(x) - \bar f(\tilde x)

turns positive and stays there, and every further update makes the energy steeper still. In a
healthy run the gap is about 0, give or take its standard error: a gap is too large if it is by
three of them.
"""

__all__ = ["SURE", "Fault", "GuardSettings", "find_fault"]

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

SURE = 3.0


@dataclass(frozen=True)
class GuardSettings:
    """Settings of the guard.

    Arguments:
        max_gap: Largest mean gap between observed and synthesized scores, in logits, beyond what
            chance may make of it.
        max_class_gap: Largest gap of a single class, over its last thirty images or so, likewise.
        max_auc: Largest probability that an observed image scores higher than a synthesized one,
            if the gap is not below a quarter of the largest.
        max_score: Largest mean score or loss, of either sign.
        max_gradient: Largest norm of the gradient.
        max_saturated: Largest fraction of pixels of chains at black or white, beyond that of the
            observed images, if the support is a box.
        max_lag: Largest lag of a single chain's score behind the lowest of the observed ones, in
            logits; beyond it the chain is lost, and begun anew.
        max_lost: Largest mean fraction of chains that are lost.
        min_move: Least mean distance of the steps of an update, in standard deviations of the
            reference; below it chains are frozen.
        keep_every: Updates between two copies of the state; the older of the last two is returned
            to.
        slow_down: Factor on the learning rate at each return.
        more_steps: Factor on the Langevin steps at each return because chains fell behind, beyond
            what a curriculum allows.
        shorter_step: Factor on the length of a Langevin step then, if chains overshot.
        rollbacks: Returns before the run is stopped as diverged.
    """

    max_gap: float = 2.0
    max_class_gap: float = 5.0
    max_auc: float = 0.999
    max_score: float = 1e3
    max_gradient: float = 1e4
    max_saturated: float = 0.5
    max_lag: float = 20.0
    max_lost: float = 0.3
    min_move: float = 1e-5
    keep_every: int = 40
    slow_down: float = 0.5
    more_steps: float = 1.5
    shorter_step: float = 0.7
    rollbacks: int = 6

    def __post_init__(self) -> None:
        limits = ("max_gap", "max_class_gap", "max_score", "max_gradient", "max_lag")
        if not all(getattr(self, name) > 0 for name in limits):
            raise ValueError(
                f"GuardSettings: {', '.join(f'`{name}`' for name in limits)} must be positive."
            )
        if not (0 < self.slow_down <= 1 and 0 < self.shorter_step <= 1):
            raise ValueError("GuardSettings: `slow_down` and `shorter_step` must be in (0, 1].")
        if not all(getattr(self, name) >= 0 for name in ("max_lost", "max_saturated", "min_move")):
            raise ValueError(
                "GuardSettings: `max_lost`, `max_saturated` and `min_move` must be 0 or more."
            )
        if not (self.max_auc > 0 and 1 <= self.more_steps <= 10):
            raise ValueError("GuardSettings: `max_auc` must be positive, `more_steps` 1 to 10.")
        if self.keep_every < 1 or self.rollbacks < 0:
            raise ValueError(
                "GuardSettings: `keep_every` must be 1 or more, `rollbacks` 0 or more."
            )


class Fault(NamedTuple):
    """What is wrong with a run.

    Arguments:
        text: What it is, and what to do about it.
        of: What has it: the weights, chains that fell behind, chains that are stuck, or weights
            for which chains overshoot.
        classes: The classes whose chains have it; `None` for all.
    """

    text: str
    of: Literal["weights", "chains", "stuck", "overshoot"] = "weights"
    classes: list[int] | None = None


def find_fault(line: dict[str, float], limits: GuardSettings) -> Fault | None:
    """Returns what is wrong with a run, or nothing.

    Arguments:
        line: The last line of the log.
        limits: What a healthy run keeps to.
    """
    names = ("gradient", "worst", "mean_gap")
    if not all(math.isfinite(line.get(name, 0.0)) for name in names):
        what = "gradient" if not math.isfinite(line["gradient"]) else "score or loss"
        return Fault(f"a {what} is not finite. Lower the learning rate, or set clip_grad")
    if line["worst"] > limits.max_score and _sure(line, "mean_gap", "gap_error") > limits.max_gap:
        return Fault(
            f"scores ran away, to {line['worst']:.3g}, those of chains far behind the data. Take "
            "shorter Langevin steps, or lower the learning rate",
            "overshoot",
        )
    if line["worst"] > limits.max_score:
        return Fault(
            f"scores or losses ran away, to {line['worst']:.3g}. Lower the learning rate, or "
            "give the objective a weight for `square`"
        )
    if line["gradient"] > limits.max_gradient:
        return Fault(
            f"the gradient ran away, to a norm of {line['gradient']:.3g}. Lower the learning "
            "rate, or set clip_grad"
        )
    # A warm start has no chains.
    return None if "moved" not in line else _behind(line, limits) or _stuck(line, limits)


def _behind(line: dict[str, float], limits: GuardSettings) -> Fault | None:
    """Returns the fault of chains that cannot follow the data."""
    if line["lost"] > limits.max_lost:
        return Fault(
            f"{line['lost']:.0%} of the chains are lost far behind the data. Start them "
            "nearer to it, or take a smaller Langevin step",
            "chains",
        )
    # Few pairs, or scores that hardly differ, are told apart by chance.
    gap = _sure(line, "mean_gap", "gap_error")
    apart = line["auc"] > limits.max_auc and gap > limits.max_gap / 4
    if gap > limits.max_gap or apart:
        return Fault(
            f"chains fell behind the data, the gap is {line['mean_gap']:.3g} logits, and "
            f"{line['auc']:.1%} of the pairs are told apart. Lower the learning rate, take "
            "shorter Langevin steps and more of them, or match the stem to the image size",
            "chains",
        )
    if _sure(line, "class_gap", "class_gap_error") > limits.max_class_gap:
        worst = int(line["worst_class"])
        return Fault(
            f"chains of class {worst} fell behind its data, by {line['class_gap']:.3g} "
            "logits. Take shorter Langevin steps and more of them, or start its chains nearer to "
            "its images",
            "chains",
            [worst],
        )
    return None


def _stuck(line: dict[str, float], limits: GuardSettings) -> Fault | None:
    """Returns the fault of chains that cannot move."""
    if not line["moved"] >= limits.min_move:
        return Fault(
            f"chains are frozen: they move by {line['moved']:.1g}. Raise the Langevin step or "
            "the temperature; with a box, look whether they stick to its border",
            "stuck",
        )
    excess = line["saturated"] - line["saturated_observed"]
    if excess > limits.max_saturated:
        return Fault(
            f"chains stick to black and white, with {excess:.0%} more of the pixels than the "
            "data. Take a smaller Langevin step, or a lower gain",
            "stuck",
        )
    return None


def _sure(line: dict[str, float], gap: str, error: str) -> float:
    """Returns what a gap is at least, whatever chance made of it; 0 in a warm start."""
    return line.get(gap, 0.0) - SURE * line.get(error, 0.0)
