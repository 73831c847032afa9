"""Imports go strictly down the floors, and the lower floors know torch alone."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "ebm_from_clf"
# A folder stands on one floor of the house, and its modules on floors of its own.
FLOORS = [
    [
        "errors",
        "lead",
        "mapped",
        "modes",
        "muon",
        "noise",
        "one_class",
        "restart",
        "slots",
        "stride",
    ],
    ["curriculum", "drift", "fold", "frame", "graph", "reference", "smooth", "space"],
    ["fitted", "gauge", "spectral", "start", "stationary", "support"],
    ["energy", "mixture"],
    [
        "adversarial",
        "chains",
        "generative",
        "langevin",
        "marginal",
        "prototype",
        "swift",
        "switches",
    ],
    ["denoise", "objective", "replay", "untrained"],
    ["synthesis"],
    ["contrastive", "theory"],
    ["batches", "fault", "folders", "image_file", "machine", "parts", "precision", "progress"],
    [
        "demo",
        "doctor",
        "folder",
        "freeze",
        "journal",
        "labels",
        "pictures",
        "state",
        "strict_yaml",
        "units",
    ],
    ["blend", "convert", "guard", "request", "texture", "trail"],
    ["data"],
    [
        "chain_settings",
        "classify",
        "checkpoint",
        "evaluate",
        "judge",
        "reference_settings",
        "sample",
    ],
    ["settings"],
    ["descent", "edit", "gallery"],
    ["learner"],
    ["finetune", "named"],
    ["recipe", "report"],
    ["resume"],
    ["run"],
    ["quickstart"],
    ["arguments"],
    ["cli"],
    ["__main__", "__init__"],
]
FOLDERS = {
    "graph": [
        ["operation"],
        ["rectifier", "transpose"],
        ["recorder"],
        ["graph"],
        ["passes"],
        ["recursion"],
        ["__init__"],
    ],
    "prototype": [["network"], ["law", "pieces"], ["__init__"]],
    "theory": [
        ["census"],
        ["structure"],
        ["kinks", "readable"],
        ["minima"],
        ["hopfield", "scene"],
        ["identities", "memory", "one_layer", "piecewise"],
        ["examine"],
        ["__init__"],
    ],
}
MATHEMATICS = {name for names in FLOORS[:8] for name in names}
STANDARD = {"copy", "os", "inspect", "math", "typing", "warnings"}
STANDARD |= {"bisect", "collections", "contextlib", "dataclasses"}


def rank(floors):
    return {name: i for i, names in enumerate(floors) for name in names}


FLOOR = rank(FLOORS)
INNER = {folder: rank(floors) for folder, floors in FOLDERS.items()}


def files():
    """Every module: its path, its folder or "", its name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        folder = path.parent.relative_to(PACKAGE).as_posix()
        yield path, "" if folder == "." else folder, path.stem


def imports(path):
    """Every module a file imports anywhere: (level, name)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        elif isinstance(node, ast.Import):
            for name in node.names:
                yield 0, name.name


def goes_down(folder, module, level, name):
    """Tells whether a module of a folder, or of the house, may import one with so many dots."""
    root = name.split(".")[0]
    if not level:
        return root != "ebm_from_clf"  # relatively, or not at all
    if folder and level == 1:
        return INNER[folder][module] > INNER[folder][name]
    return level == 1 + bool(folder) and FLOOR[folder or module] > FLOOR[root]


def test_every_module_has_a_floor():
    found = {(folder, name) for _, folder, name in files()}
    flat = {("", name) for name in FLOOR if name not in FOLDERS}
    assert found == flat | {(folder, name) for folder in FOLDERS for name in INNER[folder]}


def test_a_folder_holds_three_modules_or_more():
    for folder, names in INNER.items():
        assert folder in FLOOR and len(names) > 3, folder


def test_imports_go_strictly_down():
    for path, folder, module in files():
        for level, name in imports(path):
            where = path.relative_to(PACKAGE)
            assert goes_down(folder, module, level, name), f"{where} may not import {name}"


def test_imports_that_go_up_are_seen():
    assert goes_down("theory", "minima", 2, "energy") and goes_down("", "cli", 1, "theory")
    assert goes_down("theory", "minima", 1, "kinks")
    assert not goes_down("theory", "kinks", 1, "minima")
    assert not goes_down("graph", "operation", 2, "energy")
    assert not goes_down("", "energy", 1, "theory.minima")
    assert not goes_down("theory", "minima", 2, "theory.kinks")
    assert not goes_down("", "cli", 0, "ebm_from_clf.theory")


def test_the_mathematics_imports_torch_alone():
    for path, folder, module in files():
        if (folder or module) in MATHEMATICS:
            for level, found in imports(path):
                root = found.split(".")[0]
                assert level or root in STANDARD | {"torch"}, f"{path.stem} imports {found}"


def test_timm_models_are_created_in_one_place():
    """One module creates the user's classifier; only the quickstart's judge is built elsewhere."""
    users = {
        module
        for path, _, module in files()
        if "timm.create_model(" in path.read_text().split('"""', 2)[2]
    }
    assert users == {"convert", "quickstart"}


def test_files_and_functions_stay_small():
    for path, _, module in files():
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                doc = ast.get_docstring(node) or ""
                length = node.end_lineno - node.lineno - len(doc.splitlines())
                assert length < 62, f"{module}.{node.name} has {length} lines"
