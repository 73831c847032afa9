r"""The log of a run: some updates make one line of numbers, brought to the host together.

The gap is :math:`\bar f(x) - \bar f(\tilde x)`, observed minus synthesized; near 0 in a healthy
run. `accuracy` and `mean_gap` are means over the updates of a line, `worst` is the largest number
of any of them; the others are of the last one.
"""

__all__ = ["Journal"]

import json
import math
from pathlib import Path

import torch

from .contrastive import Terms

Line = dict[str, float]


class Journal:
    """Creates an empty log.

    Attributes:
        lines: The lines so far.
    """

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._pending: list[torch.Tensor] = []

    def add(self, terms: Terms) -> None:
        """Notes an update, without waiting for its numbers.

        Arguments:
            terms: The parts of its loss.
        """
        row = (
            terms.contrast,
            terms.cross_entropy,
            terms.observed.mean(),
            terms.synthesized.mean(),
            terms.hits,
        )
        self._pending.append(torch.stack(row).detach())

    def line(self, **numbers: float) -> Line:
        """Makes the updates noted since the last line into one.

        Arguments:
            numbers: What else belongs to it, such as `update` and `seconds`.
        """
        table = torch.stack(self._pending).tolist()
        self._pending = []
        contrast, entropy, observed, synthesized, _ = table[-1]
        line = numbers | {
            "contrast": contrast,
            "cross_entropy": entropy,
            "observed": observed,
            "synthesized": synthesized,
            "gap": observed - synthesized,
            "accuracy": sum(row[4] for row in table) / len(table),
            "mean_gap": sum(row[2] - row[3] for row in table) / len(table),
            # Not max(): it would pass over a NaN.
            "worst": float(torch.tensor(table).abs().max()),
        }
        self.lines.append(line)
        return line

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
