"""A network read as a graph of operations, with its top-down pass written out."""

from .graph import Graph as Graph
from .graph import read as read
from .passes import Choice as Choice
from .passes import Pattern as Pattern
from .passes import TopDown as TopDown
from .recorder import Delta as Delta
from .recorder import Node as Node
from .rectifier import sides as sides
from .recursion import bottom_up as bottom_up
from .recursion import down as down
from .recursion import reach as reach
from .recursion import respond as respond
from .recursion import secants as secants
from .recursion import unit_down as unit_down
from .recursion import unit_up as unit_up
