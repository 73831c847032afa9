"""YAML without surprises: plain values under known keys, each said once.

YAML can build objects, refer back and forth, and override silently. A file that strangers send
around must do none of it; each refusal is one line that names the key.
"""

__all__ = ["check_yaml"]

import math
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import get_type_hints

import yaml

from .errors import UsageError

LARGEST_YAML = 1_000_000


def check_yaml(path: Path, kind: type) -> None:
    """Refuses what YAML can hold and a recipe must not: tags, aliases, duplicates, NaN.

    Also keys that no section has, and a section that is kept in another file.

    Arguments:
        path: The file.
        kind: The dataclass whose fields the keys must be, with those of its parts in sections.

    Raises:
        UsageError: If the file holds any of them, is too large or is no YAML.
    """
    if path.stat().st_size > LARGEST_YAML:
        raise UsageError(f"{path}: {path.stat().st_size} bytes are no recipe.")
    try:
        text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UsageError(f"{path}: anchors and aliases are not allowed. Write it out.")
            tag = getattr(event, "tag", None)
            if tag:
                raise UsageError(f"{path}: the tag {tag} is not allowed. Remove it.")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise UsageError(f"{path}: not valid YAML ({reason[:160]}).") from error
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path}: a recipe is a mapping of keys to values; this is not one.")
    _check_node(path, root)
    _check_keys(path, root, kind)


def _check_keys(path: Path, node: yaml.MappingNode, kind: type, section: str = "") -> None:
    fields = get_type_hints(kind)
    for key, value in node.value:
        name = f"{section}{key.value}"
        if not isinstance(key, yaml.ScalarNode) or key.value not in fields:
            near = get_close_matches(str(key.value), fields, 1) or sorted(fields)
            raise UsageError(f"{path}: a recipe has no key {name!r}. Try {', '.join(near)}.")
        if is_dataclass(fields[key.value]):
            if not isinstance(value, yaml.MappingNode):
                raise UsageError(f"{path}: {name!r} must hold keys of its own.")
            _check_keys(path, value, fields[key.value], f"{name}.")


def _check_node(path: Path, node: yaml.Node) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [str(key.value) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise UsageError(f"{path}: key {sorted(twice)[0]!r} is given twice. Remove one.")
        for _, value in node.value:
            _check_node(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_node(path, value)
    elif isinstance(node, yaml.ScalarNode) and not node.style:
        # Also what YAML takes for text and the parser of arguments for a number: nan, 1e400.
        text = node.value.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan")
        try:
            finite = math.isfinite(float(text))
        except ValueError:
            return
        if not finite:
            raise UsageError(f"{path}: {node.value} is not a finite number.")
