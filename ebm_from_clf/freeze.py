r"""Which parts of a classifier are held while the rest learns.

With the body held, a score is linear in what is learned,

.. math:: f_c(x) = \langle w_c, h(x) \rangle + b_c, \qquad
    \partial_{w_c} \log p_c(x) = \gamma \, (h(x) - E_{p_c} [ h(\tilde x) ])

and the likelihood is concave in it: a FRAME model with the filters of the classifier, the maximum
entropy under its observed mean features.

References:
    | Learning FRAME Models Using CNN Filters (Lu et al., 2016)
    | https://arxiv.org/abs/1509.08379
"""

__all__ = ["BODY", "chosen"]

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from .errors import UsageError

BODY = "body"


def chosen(classifier: nn.Module, names: str | Sequence[str]) -> list[nn.Parameter]:
    """Returns the parameters of a classifier that names choose, each once.

    Arguments:
        classifier: The classifier.
        names: Names of parts or parameters, such as `layer1`, `conv1` or `bn1.weight`, or
            patterns of them, such as `layer[12]` or `*.bias`, in a list or with commas between; a
            part stands for all in it. `body` stands for all but the last layer, if no part is
            called so.

    Raises:
        UsageError: If a name chooses nothing, or nothing is left to learn.
    """
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    parameters = dict(classifier.named_parameters(remove_duplicate=False))
    found: dict[int, nn.Parameter] = {}
    for name in names:
        hits = [p for key, p in parameters.items() if _is_of(key, name)]
        if not hits and name == BODY:
            hits = _body(classifier)
        if not hits:
            raise _unknown(classifier, name)
        found |= {id(p): p for p in hits}
    if names and not any(p.requires_grad and id(p) not in found for p in parameters.values()):
        raise UsageError(
            f"freeze: {', '.join(names)} is all that the classifier has, nothing is left to "
            "learn. Leave a part out."
        )
    return list(found.values())


def _is_of(key: str, name: str) -> bool:
    """Tells whether a parameter or a part that holds it has a name."""
    parts = key.split(".")
    return any(fnmatchcase(".".join(parts[:n]), name) for n in range(1, len(parts) + 1))


def _body(classifier: nn.Module) -> list[nn.Parameter]:
    """Returns all parameters but those of the last layer, of which timm may know two."""
    last = getattr(classifier, "get_classifier", lambda: None)()
    heads = last if isinstance(last, tuple | list) else [last]
    kept = {id(p) for h in heads if isinstance(h, nn.Module) for p in h.parameters()}
    if not kept:
        raise UsageError(
            "freeze: body is all but the last layer, and the classifier does not tell by "
            "`get_classifier()` which one that is. Name the parts."
        )
    return [p for p in classifier.parameters() if id(p) not in kept]


def _unknown(classifier: nn.Module, name: str) -> UsageError:
    modules = [key for key, part in classifier.named_modules() if key and [*part.parameters()]]
    known = [*modules, *(key for key, _ in classifier.named_parameters()), BODY]
    near = get_close_matches(name, known, 3) or [BODY, *(key for key in modules if "." not in key)]
    return UsageError(
        f"freeze: the classifier has no weights called {name!r}. Try {', '.join(near[:8])}."
    )
