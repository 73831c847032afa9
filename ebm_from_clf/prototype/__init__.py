r"""The prototype: the one-layer model of the paper, whose density is known.

.. math:: p(x) = \exp(\gamma \sum_k h(\langle x, w_k \rangle + b_k)) \, q(x) / Z
"""

from .law import PrototypeLaw as PrototypeLaw
from .network import Prototype as Prototype
from .network import read_filters as read_filters
from .pieces import PieceLaw as PieceLaw
