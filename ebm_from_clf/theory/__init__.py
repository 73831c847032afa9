r"""What the paper says of an energy: its pieces, its minima, and its propositions, checked.

.. math:: F = \tilde\alpha + \langle B, u \rangle, \qquad u = B(u) \text{ at a minimum}
"""

from .census import census as census
from .examine import Theory as Theory
from .examine import examine_theory as examine_theory
from .hopfield import count_modes as count_modes
from .hopfield import recall as recall
from .minima import descend as descend
from .structure import Structure as Structure
from .structure import structure as structure
