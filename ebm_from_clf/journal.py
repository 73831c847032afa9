r"""The log of a run: some updates make one line of numbers, brought to the host together.

The gap is :math:`\bar f(x) - \bar f(\tilde x)`, observed minus synthesized; near 0 in a healthy
run. `auc` is the probability that an observed image scores higher than a synthesized one, .5 where
the two cannot be told apart. `accuracy`, `mean_gap`, `auc`, `moved`, `lost` and `saturated` are
means over the updates of a line, `worst` is the largest score or loss of any of them and
`gradient` the largest norm; the others are of the last one. `accuracy` is that at the images of
the cross-entropy: augmented, and where the objective is adversarial, moved.
"""

__all__ = ["Journal"]

import json
import math
from pathlib import Path
from typing import Any

import torch

from .contrastive import Synthesized, Terms

Line = dict[str, float]


class Journal:
    """Creates an empty log.

    Attributes:
        lines: The lines so far.
    """

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._pending: list[torch.Tensor] = []

    def add(
        self, terms: Terms, synthesized: Synthesized, lost: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Notes an update, without waiting for its numbers.

        Arguments:
            terms: The parts of its loss.
            synthesized: The chains.
            lost: Which of them are begun anew.
            gradient: The norm of the gradient.
        """
        observed, synthetic, images = terms.observed, terms.synthesized, synthesized.images
        row = (
            terms.contrast,
            terms.cross_entropy,
            observed.mean(),
            synthetic.mean(),
            gradient,
            terms.hits,
            (observed[:, None] > synthetic).float().mean(),
            synthesized.moved.mean(),
            lost.float().mean(),
            ((images <= 0) | (images >= 1)).float().mean(),
        )
        self._pending.append(torch.stack(row).detach())

    def line(self, **numbers: float) -> Line:
        """Makes the updates noted since the last line into one.

        Arguments:
            numbers: What else belongs to it, such as `update` and `seconds`.
        """
        table = torch.stack([row.cpu() for row in self._pending])
        self._pending = []
        contrast, entropy, observed, synthesized = table[-1, :4].tolist()
        mean = table.mean(0).tolist()
        line = numbers | {
            "contrast": contrast,
            "cross_entropy": entropy,
            "observed": observed,
            "synthesized": synthesized,
            "gap": observed - synthesized,
            "mean_gap": mean[2] - mean[3],
            "worst": float(table[:, :4].abs().max()),
            "gradient": float(table[:, 4].max()),
            **dict(zip(("accuracy", "auc", "moved", "lost", "saturated"), mean[5:], strict=True)),
        }
        self.lines.append(line)
        return line

    def state_dict(self) -> dict[str, Any]:
        """Returns the lines, and the updates that no line was made of yet."""
        return {"lines": self.lines, "pending": self._pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Arguments:
            state: The state.
        """
        self.lines, self._pending = list(state["lines"]), list(state["pending"])

    def write(self, folder: Path, *, anew: bool = False) -> None:
        """Writes the last line to `metrics.jsonl`; numbers that are not finite become null.

        Arguments:
            folder: The folder.
            anew: Whether the file is begun anew with all lines.
        """
        with (folder / "metrics.jsonl").open("w" if anew else "a", encoding="utf-8") as file:
            for line in self.lines if anew else self.lines[-1:]:
                plain = {k: v if math.isfinite(v) else None for k, v in line.items()}
                file.write(json.dumps(plain) + "\n")
