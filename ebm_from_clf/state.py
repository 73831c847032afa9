"""The state of an unfinished run as one file: tensors in safetensors, the rest as JSON in it.

A tree of dictionaries, lists, numbers, texts and tensors goes in and comes back bit for bit.
Nothing is pickled, and the file is either the old one or the new one, never half of each.
"""

__all__ = ["read_state", "write_state"]

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import UsageError
from .folders import whole

FORMAT = "9"


def write_state(place: str | Path, state: dict[str, Any]) -> None:
    """Writes a state in one piece.

    Arguments:
        place: The file; one that is there is replaced.
        state: A tree of dictionaries with keys of text or whole numbers, lists, tuples, data
            types, and what JSON or a tensor can hold.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, tensors))
    with whole(place) as part:
        save_file(tensors, part, metadata={"format": FORMAT, "tree": tree})


def read_state(place: str | Path) -> dict[str, Any]:
    """Reads a state that :func:`write_state` wrote, on the CPU.

    Arguments:
        place: The file.

    Raises:
        UsageError: If the file is damaged, or of another version.
        OSError: If it cannot be read.
    """
    try:
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tree, version = json.loads(metadata["tree"]), metadata["format"]
    except (LookupError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"{place}: not the state of a run, or damaged ({type(error).__name__}). "
            "Remove it to start the run anew."
        ) from error
    if version != FORMAT:
        raise UsageError(f"{place}: written by another version of ebm-from-clf; install that one.")
    return _unpack(tree, tensors)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 - any node of the tree
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A clone: two names may share memory, which safetensors refuses.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        # Pairs, since JSON would turn whole-number keys into text.
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(item, tensors) for item in value]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 - any node of the tree
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind == "dtype":
        return getattr(torch, content)
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
