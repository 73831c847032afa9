"""How far a run has got: given a title and a total, a function that is told of each step done."""

__all__ = ["Progress", "bar", "silent"]

from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[str, int], Callable[[int], None]]


def silent(title: str, total: int) -> Callable[[int], None]:
    """Shows no progress; see `Progress`: given a title and a total, returns what advances it.

    Arguments:
        title: What is going on.
        total: How many steps it has.
    """
    return lambda n: None


def bar(title: str, total: int) -> Callable[[int], None]:
    """Shows a progress bar, if the output is a terminal.

    Arguments:
        title: What is going on.
        total: How many steps it has.
    """
    # disable=None: no bar unless the output is a terminal.
    shown = tqdm(total=total, desc=title, disable=None, unit="", smoothing=0.1)

    def advance(n: int) -> None:
        shown.update(n)
        if shown.n >= total:
            shown.close()

    return advance
