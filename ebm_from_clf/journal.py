r"""The log of a run: some updates make one line of numbers, brought to the host together.

The gap is :math:`\bar f(x) - \bar f(\tilde x)`, observed minus synthesized; near 0 in a healthy
run. `auc` is the probability that an observed image scores higher than a synthesized one, .5 where
the two cannot be told apart. `accuracy`, `mean_gap`, `auc`, `moved`, `stiffness` (95 % of the
chains have no more), `lost` and `saturated` are means over the updates of a line, `worst` is the
largest score or loss of any of them and `gradient` the largest norm; the others are of the last
one. Counted since the beginning are lost chains, `begun_anew`, and those that went on from images
that none had got to, `begun_at_data` (see :mod:`ebm_from_clf.lead`). Beside them stands the class
whose gap is the furthest above what chance may make of it, with its `class_gap`: a mean over its
images with weights that fall by .03 an image, and 0 before twenty of them. `gap_error` and
`class_gap_error` are the standard errors of `mean_gap` and `class_gap`, from the differences of
single images and chains, as if these were independent: scores of a class whose images differ much
differ much. `accuracy` is that at the images of the cross-entropy: augmented, and where the
objective is adversarial, moved. Lines of the warm start and of the generative loss say so as
their `stage`; they have no chains to tell of.
"""

__all__ = ["Journal"]

import json
import math
from pathlib import Path
from typing import Any

import torch

from .contrastive import Terms
from .fault import SURE
from .synthesis import Synthesized

Line = dict[str, Any]
MEANS = ("accuracy", "auc", "moved", "stiffness", "lost", "saturated", "saturated_observed")
FORGET = 0.97
KNOWN = 1 - FORGET**20


class Journal:
    """Creates an empty log.

    Arguments:
        n_classes: The number of classes.

    Attributes:
        lines: The lines so far.
    """

    def __init__(self, n_classes: int) -> None:
        self.lines: list[Line] = []
        self._pending: list[torch.Tensor] = []
        self._chainless: list[torch.Tensor] = []
        # Of each class the gap and its square, how much of them is known, and the squared weights.
        self._gaps = torch.zeros(4, n_classes)

    def add(
        self,
        x: torch.Tensor,
        terms: Terms,
        synthesized: Synthesized,
        lost: torch.Tensor,
        ahead: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        """Notes an update, without waiting for its numbers.

        Arguments:
            x: The observed images.
            terms: The parts of its loss.
            synthesized: The chains.
            lost: Which of them are begun anew.
            ahead: Which of them go on from the image of their place.
            gradient: The norm of the gradient.
        """
        observed, synthetic, images = terms.observed, terms.synthesized, synthesized.images
        gap = (observed - synthetic).detach().float()
        row = (
            terms.contrast,
            terms.cross_entropy,
            observed.mean(),
            synthetic.mean(),
            gradient,
            terms.hits,
            (observed[:, None] > synthetic).float().mean(),
            synthesized.moved.mean(),
            synthesized.stiffness.nanquantile(0.95),
            lost.float().mean(),
            *(((v <= 0) | (v >= 1)).float().mean() for v in (images, x)),
            lost.sum().float(),
            ahead.sum().float(),
            gap.var(correction=0) / max(len(gap) - 1, 1),
        )
        self._pending.append(torch.stack(row).detach())
        self._follow(synthesized.draw.y, gap)

    def _follow(self, y: torch.Tensor, gap: torch.Tensor) -> None:
        """Takes the gaps of a batch into those of their classes."""
        self._gaps = self._gaps.to(y.device)
        sums = gap.new_zeros(3, self._gaps.shape[1]).index_add_(
            1, y, torch.stack([gap, gap.square(), torch.ones_like(gap)])
        )
        keep, count = FORGET ** sums[2], sums[2].clamp_min(1)
        weight = (1 - keep) / count
        squares = keep.square() * self._gaps[3] + weight.square() * count
        self._gaps = torch.cat([keep * self._gaps[:3] + weight * sums, squares[None]])

    def _class_gaps(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the gaps of classes, their standard errors, and whether they are known, (K)."""
        gap, square, weight, squares = self._gaps.cpu()
        known = weight >= KNOWN
        gap, square = (torch.where(known, v / weight, 0) for v in (gap, square))
        share = squares / weight.clamp_min(KNOWN).square()
        return gap, ((square - gap.square()).clamp_min(0) * share).sqrt(), known

    def forget(self, classes: list[int] | None) -> None:
        """Forgets the gaps of some classes, whose chains are begun anew.

        Arguments:
            classes: The classes; `None` for all.
        """
        self._gaps[:, slice(None) if classes is None else classes] = 0

    def add_chainless(
        self,
        loss: torch.Tensor,
        cross_entropy: torch.Tensor,
        hits: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        """Notes an update without chains, without waiting for its numbers.

        Arguments:
            loss: The denoising loss, or the generative one.
            cross_entropy: The cross-entropy on the clean images.
            hits: The fraction of clean images classified right.
            gradient: The norm of the gradient.
        """
        self._chainless.append(torch.stack([loss, cross_entropy, hits, gradient]).detach())

    def chainless_line(self, stage: str, **numbers: float) -> Line:
        """Makes the updates without chains noted since the last line into one.

        Arguments:
            stage: What they are of, `warm_start` or `generative`.
            numbers: What else belongs to it, such as `update` and `seconds`.
        """
        table = _table(self._chainless)
        mean = table.mean(0).tolist()
        line: Line = {"stage": stage} | numbers
        line |= {
            "denoising" if stage == "warm_start" else stage: mean[0],
            "cross_entropy": float(table[-1, 1]),
            # Not the weighted sum of them, which depends on the size of images.
            "worst": float(table[:, :2].abs().max()),
            "gradient": float(table[:, 3].max()),
            "accuracy": mean[2],
        }
        self.lines.append(line)
        return line

    def line(self, **numbers: float) -> Line:
        """Makes the updates noted since the last line into one.

        Arguments:
            numbers: What else belongs to it, such as `update` and `seconds`.
        """
        table = _table(self._pending)
        contrast, entropy, observed, synthesized = table[-1, :4].tolist()
        mean = table.mean(0).tolist()
        gaps, errors, known = self._class_gaps()
        worst = int(torch.where(known, gaps - SURE * errors, -math.inf).argmax())
        before = self.lines[-1] if self.lines else {}
        anew, at_data = (int(n) for n in table[:, -3:-1].sum(0))
        line: Line = numbers | {
            "contrast": contrast,
            "cross_entropy": entropy,
            "observed": observed,
            "synthesized": synthesized,
            "gap": observed - synthesized,
            "mean_gap": mean[2] - mean[3],
            "worst": float(table[:, :4].abs().max()),
            "gradient": float(table[:, 4].max()),
            "gap_error": math.sqrt(_variance(table) / len(table)),
            "class_gap": float(gaps[worst]),
            "class_gap_error": float(errors[worst]),
            "worst_class": worst,
            "begun_anew": before.get("begun_anew", 0) + anew,
            "begun_at_data": before.get("begun_at_data", 0) + at_data,
            **dict(zip(MEANS, mean[5:-3], strict=True)),
        }
        self.lines.append(line)
        return line

    def state_dict(self) -> dict[str, Any]:
        """Returns the lines, the updates that no line was made of yet, and the gaps of classes."""
        return {
            "lines": self.lines,
            "pending": self._pending,
            "denoised": self._chainless,  # as the states of old runs have it
            "gaps": self._gaps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Arguments:
            state: The state.
        """
        self.lines, self._pending = list(state["lines"]), list(state["pending"])
        self._gaps = state["gaps"]
        self._chainless = list(state["denoised"])

    def write(self, folder: Path, *, anew: bool = False) -> None:
        """Writes the last line to `metrics.jsonl`; numbers that are not finite become null.

        Arguments:
            folder: The folder.
            anew: Whether the file is begun anew with all lines.
        """
        with (folder / "metrics.jsonl").open("w" if anew else "a", encoding="utf-8") as file:
            for line in self.lines if anew else self.lines[-1:]:
                plain = {
                    k: None if isinstance(v, float) and not math.isfinite(v) else v
                    for k, v in line.items()
                }
                file.write(json.dumps(plain) + "\n")


def _variance(table: torch.Tensor) -> float:
    """Returns the variance of the mean gap of an update: of single pairs, from one to the next."""
    within = float(table[:, -1].mean())
    return within or float((table[:, 2] - table[:, 3]).var(correction=min(1, len(table) - 1)))


def _table(rows: list[torch.Tensor]) -> torch.Tensor:
    """Returns what was noted since the last line, one row an update, and forgets it."""
    table = torch.stack([row.cpu() for row in rows])
    rows.clear()
    return table
