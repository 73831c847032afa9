"""A network read as a graph of operations, with its top-down pass written out."""

from .graph import Graph as Graph
from .graph import read as read
from .recorder import Node as Node
from .rectifier import sides as sides
from .recursion import Pattern as Pattern
from .recursion import TopDown as TopDown
from .recursion import bottom_up as bottom_up
from .recursion import down as down
from .recursion import reach as reach
from .recursion import respond as respond
from .recursion import secants as secants
