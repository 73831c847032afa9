r"""Which statements of the paper hold for a network: exactly, near one image only, or not.

A network of convolutions, BatchNorms in evaluation mode, rectifiers and pools is linear on each
of finitely many pieces, :math:`f = \alpha + \langle B, u \rangle`, so the model is Gaussian on
them. A smooth activation bends the pieces: what remains is the tangent at an image, with slopes
that are no longer 0 or 1, and the secant. Products of what depends on the image (gates,
attention, norms over an image) have no slopes of single units at all. The model itself, its
gradient, its chains and Bayes' rule ask for none of this.
"""

__all__ = ["Census", "Entry", "Status", "census"]

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from ..graph import Graph
from ..graph.operation import Kind

Status = Literal["exact", "local", "not here"]

BENT: tuple[Kind, ...] = ("activation",)
SPOILT: tuple[Kind, ...] = ("gate", "attention", "normalisation", "unread")


@dataclass(frozen=True)
class Entry:
    """Operations of one kind, in one type of module.

    Arguments:
        kind: The kind: linear, rectifier, pool, activation, gate, attention, normalisation, or
            unread for those that are not known.
        operation: The operation.
        layer: The type of the module that calls it.
        count: How often.
        first: The name of the module of the first.
    """

    kind: Kind
    operation: str
    layer: str
    count: int
    first: str

    def __str__(self) -> str:
        times = f"{self.count} times, first in" if self.count > 1 else "once, in"
        return f"{self.operation} of {self.layer} ({self.kind}, {times} {self.first or 'itself'})"


@dataclass(frozen=True)
class Census:
    """What a network is made of.

    Arguments:
        entries: Its operations on what depends on the image.
    """

    entries: tuple[Entry, ...]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that there are, the most frequent first."""
        kinds = dict.fromkeys(entry.kind for entry in self.entries)
        return tuple(sorted(kinds, key=self.count, reverse=True))

    def count(self, *kinds: Kind) -> int:
        """Returns the number of operations of some kinds.

        Arguments:
            kinds: The kinds.
        """
        return sum(entry.count for entry in self.entries if entry.kind in kinds)

    @property
    def spoilers(self) -> tuple[Entry, ...]:
        """What keeps the network from being linear on pieces, what spoils most first."""
        return tuple(e for kinds in (SPOILT, BENT) for e in self.entries if e.kind in kinds)

    @property
    def form(self) -> Literal["piecewise linear", "elementwise", "general"]:
        """Linear on pieces; all but linear by functions of single numbers; or neither."""
        if self.count(*SPOILT):
            return "general"
        return "elementwise" if self.count(*BENT) else "piecewise linear"

    def statements(self) -> dict[str, Status]:
        """Returns the paper's statements with whether they hold.

        The gradient of the likelihood, Langevin steps and Bayes' rule are exact for every
        network. A local one holds at an image to first order, with real slopes.
        """
        linear, single = self.form == "piecewise linear", self.form != "general"
        kinked = self.count("rectifier", "pool") > 0
        smooth_minima: Status = "not here" if self.count("unread") else "exact"
        return {
            "likelihood gradient": "exact",
            "Langevin drift": "exact",
            "Bayes": "exact",
            "top-down pass": "exact" if linear else "local" if single else "not here",
            "f = a + <B, u>": "exact" if linear else "local",
            "secant f = a + <G, u>": "exact" if single else "not here",
            "piecewise Gaussian": "exact" if linear else "not here",
            "auto-encoder by pattern": "exact" if linear else "local" if single else "not here",
            # Of a network with kinks only minima between them are their own reconstructions.
            "minima reconstruct": "local" if kinked else smooth_minima,
            "CD-1 reconstructs": "exact" if linear else "local",
        }


def census(graph: Graph) -> Census:
    """Counts what a network is made of.

    Arguments:
        graph: The graph of the network; see :func:`ebm_from_clf.graph.read`.
    """
    counts: Counter[tuple[Kind, str, str]] = Counter()
    first: dict[tuple[Kind, str, str], str] = {}
    for node in graph.nodes:
        key = (node.kind, node.operation.name, node.layer)
        counts[key] += 1
        first.setdefault(key, node.module)
    return Census(tuple(Entry(*key, n, first[key]) for key, n in counts.most_common()))
