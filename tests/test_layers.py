"""Imports go strictly down the floors, and the lower floors know torch alone."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "ebm_from_clf"
FLOORS = [
    ["curriculum", "errors", "mapped", "modes", "noise", "operation", "restart"],
    ["fold", "frame", "rectifier", "reference", "smooth", "space", "transpose"],
    ["fitted", "recorder", "spectral", "start", "stationary", "support"],
    ["energy", "graph", "mixture"],
    [
        "adversarial",
        "census",
        "chains",
        "generative",
        "langevin",
        "marginal",
        "prototype",
        "recursion",
        "swift",
        "switches",
    ],
    ["denoise", "kinks", "objective", "pieces", "structure", "untrained"],
    ["contrastive", "minima"],
    ["folders", "parts", "scene"],
    [
        "demo",
        "doctor",
        "folder",
        "freeze",
        "guard",
        "identities",
        "journal",
        "labels",
        "pictures",
        "piecewise",
        "state",
        "strict_yaml",
        "units",
    ],
    ["blend", "convert", "texture", "theory"],
    ["data"],
    ["chain_settings", "classify", "checkpoint", "evaluate", "judge", "sample"],
    ["settings"],
    ["descent", "edit", "gallery"],
    ["finetune", "named"],
    ["recipe", "report"],
    ["run"],
    ["quickstart"],
    ["arguments"],
    ["cli"],
    ["__main__", "__init__"],
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
MATHEMATICS = {name for names in FLOORS[:7] for name in names}
STANDARD = {"copy", "os", "inspect", "math", "typing", "collections", "contextlib", "dataclasses"}


def imports(path):
    """Every module a file imports anywhere: (level, name)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        elif isinstance(node, ast.Import):
            for name in node.names:
                yield 0, name.name


def test_every_module_has_a_floor():
    assert {p.stem for p in PACKAGE.glob("*.py")} == set(FLOOR)


def test_imports_go_strictly_down():
    for path in PACKAGE.glob("*.py"):
        for level, name in imports(path):
            if level:
                assert FLOOR[path.stem] > FLOOR[name], f"{path.stem} may not import {name}"
            else:
                assert not name.startswith("ebm_from_clf"), f"{path.stem}: import relatively"


def test_the_mathematics_imports_torch_alone():
    for name in MATHEMATICS:
        for level, found in imports(PACKAGE / f"{name}.py"):
            root = found.split(".")[0]
            assert level or root in STANDARD | {"torch"}, f"{name} imports {found}"


def test_timm_models_are_created_in_one_place():
    """One module creates the user's classifier; only the quickstart's judge is built elsewhere."""
    users = {
        p.stem
        for p in PACKAGE.glob("*.py")
        if "timm.create_model(" in p.read_text().split('"""', 2)[2]
    }
    assert users == {"convert", "quickstart"}


def test_files_and_functions_stay_small():
    for path in PACKAGE.glob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                doc = ast.get_docstring(node) or ""
                length = node.end_lineno - node.lineno - len(doc.splitlines())
                assert length < 62, f"{path.stem}.{node.name} has {length} lines"
