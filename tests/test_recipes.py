"""Every shipped recipe loads, resolves, and runs for two updates on images made here."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.cli import main
from ebm_from_clf.recipe import Recipe, find_recipe
from ebm_from_clf.strict_yaml import check_yaml

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("**/*.yaml"))
SMALL = [
    "--finetune.updates=2",
    "--finetune.batch_size=4",
    "--finetune.clean_batch_size=4",
    "--finetune.sampler.n_steps=2",
    "--finetune.start.rank=2",
    "--finetune.chains.per_class=8",
    "--classifier.epochs=1",
]


def images(root, size, n_classes=2, n=4):
    """A folder of coloured noise: train/ and test/, one folder a class."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for c in range(n_classes):
            place = root / split / f"class{c}"
            place.mkdir(parents=True)
            for i in range(n):
                x = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray((x // 2 + 60 * c).numpy()).save(place / f"{i}.png")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_header_tells_what_it_makes_and_how(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"--config recipes/{path.relative_to(FOLDER).as_posix()} " in "\n".join(head)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_keys_are_fields(path):
    check_yaml(path, Recipe)
    found = read_recipe(path)
    assert isinstance(found, Recipe)
    assert set(yaml.safe_load(path.read_text())) <= {f.name for f in fields(Recipe)}


@pytest.mark.parametrize(
    "name",
    [
        "mnist5k",
        "mnist5k_steady",
        "patches",
        "digits8x8",
        "texture",
        pytest.param("texture_fine", marks=pytest.mark.slow),
        "texture_scratch",
    ]
    + ["peers/jem", "peers/sada_jem", "peers/dat"],
)
def test_offline_recipes_run(name, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--config", name, "--output", str(out), *SMALL])
    assert stop.value.code == 0
    assert (out / "model" / "model.safetensors").is_file()
    assert read_recipe(out / "recipe.yaml").finetune.updates == 2


@pytest.mark.parametrize(
    "name, size", [("imagefolder", 64), ("cifar10_resnet18", 32), ("patches", 48)]
)
def test_recipes_run_on_a_folder_of_images(name, size, tmp_path):
    images(tmp_path / "data", size)
    out = tmp_path / "run"
    here = [
        "--data.name=folder",
        "--data.download=false",
        f"--data.root={tmp_path / 'data'}",
        "--classifier.pretrained=false",
        "--classifier.kwargs.num_classes=2",
    ]
    if name == "imagefolder":
        here.append("--classifier.name=test_resnet")
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--config", str(find_recipe(name)), "--output", str(out), *here, *SMALL])
    assert stop.value.code == 0
    assert (out / "metrics.json").is_file()
