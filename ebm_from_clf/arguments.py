"""What the command line accepts, and how it refuses: one line that says what to do."""

__all__ = [
    "EPILOG",
    "Formatter",
    "Parser",
    "convert_arguments",
    "doctor_arguments",
    "evaluate_arguments",
    "finetune_arguments",
    "named_recipe",
    "quickstart_arguments",
    "read_recipe",
    "recipe_of",
    "sample_arguments",
    "stop",
]

import dataclasses
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt

from .adversarial import Adversarial
from .errors import UsageError
from .gauge import Gauge
from .precision import Precision
from .recipe import Recipe, find_recipe
from .strict_yaml import check_yaml

EPILOG = """examples:
  ebm-from-clf quickstart
  ebm-from-clf doctor resnet50.a1_in1k
  ebm-from-clf theory resnet50.a1_in1k
  ebm-from-clf convert resnet50.a1_in1k --output models/resnet50
  ebm-from-clf finetune --config recipes/mnist5k.yaml --output runs/mnist5k
  ebm-from-clf sample resnet50.a1_in1k --classes zebra,tabby --n 4 --output pictures
  ebm-from-clf sample runs/mnist5k/model --classes 3,7 --n 8 --output samples
  ebm-from-clf sample resnet50.a1_in1k --unit layer3.1.conv2:17 --n 4 --output units
  ebm-from-clf evaluate runs/mnist5k/model --data mnist5k --output scores
"""

LONGEST_LINE = 300
NUMBERS = {
    "PositiveInt": "a positive whole number",
    "NonNegativeInt": "a whole number, 0 or more",
    "PositiveFloat": "a positive number",
    "ClosedUnitInterval": "a number from 0 to 1",
}
# What jsonargparse says of a number, of one type or of a union: its option, type and value.
NUMBER = re.compile(
    r"Parser key \"([\w.]+)\":.*?Not of type (\w+): (?:.*: )?'?(\S*?)'?(?: does .*)?$"
)
LARGEST_NUMBER = 1e12


def stop(status: int, why: object) -> NoReturn:
    """Ends the process with one line.

    Arguments:
        status: The exit status.
        why: What is wrong.
    """
    line = " ".join(str(why).split())
    print(f"ebm-from-clf: {line}", file=sys.stderr)
    sys.exit(status)


class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help with the defaults of options and the examples line by line."""


class Parser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        line = " ".join(message.split())
        found = NUMBER.match(line)
        if found and found[2] in NUMBERS:
            line = f"--{found[1]} must be {NUMBERS[found[2]]}, got {found[3]}"
        stop(2, f"{line[:LONGEST_LINE].rstrip('. ')}. See --help.")

    def dump(self, *args: Any, **options: Any) -> str:  # noqa: ANN401 - those of jsonargparse
        """Returns what a recipe holds, so that what is printed is one: no folder of a run."""
        found = yaml.safe_load(super().dump(*args, **options))
        names = {field.name for field in dataclasses.fields(Recipe)}
        return yaml.safe_dump({k: v for k, v in found.items() if k in names}, sort_keys=False)


def named_recipe(argv: Sequence[str] | None) -> list[str]:
    """Looks up the recipe after --config and refuses what YAML must not hold.

    Arguments:
        argv: The arguments. `None` for those of the process.

    Raises:
        UsageError: If there is no such recipe, or it cannot be used.
    """
    found = list(sys.argv[1:] if argv is None else argv)
    if found[:1] == ["quickstart"] and not any(word.startswith("--config") for word in found):
        found[1:1] = ["--config", "mnist5k"]
    for i, word in enumerate(found):
        flag, equals, value = word.partition("=")
        if flag == "--config" and (equals or i + 1 < len(found)):
            path = find_recipe(value if equals else found[i + 1])
            check_yaml(path, Recipe)
            found[i if equals else i + 1] = f"--config={path}" if equals else str(path)
    return found


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe.

    Arguments:
        path: The YAML file.

    Raises:
        UsageError: If it is missing or no recipe.
    """
    parser = Parser(prog="ebm-from-clf")
    _recipe_arguments(parser)
    arguments = named_recipe(["--config", str(path)])
    return recipe_of(parser.instantiate(parser.parse_args(arguments)))


def recipe_of(arguments: Namespace) -> Recipe:
    """Returns the recipe that parsed arguments hold.

    Arguments:
        arguments: The arguments, with a name for each field of the recipe.

    Raises:
        UsageError: If a number in it is not finite, or too large to be meant.
    """
    found = Recipe(**{f.name: arguments[f.name] for f in dataclasses.fields(Recipe)})
    _check_numbers("", dataclasses.asdict(found))
    return found


def _check_numbers(name: str, value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(f"{name}.{key}".strip("."), item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_numbers(name, item)
    elif isinstance(value, int | float) and not abs(value) < LARGEST_NUMBER:
        raise UsageError(f"{name}: {value} is not finite, or too large to be meant.")


def _recipe_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="A recipe: a file or a shipped name.")
    parser.add_class_arguments(Recipe)


def quickstart_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `quickstart`; see its help."""
    _recipe_arguments(parser)
    parser.add_argument("--output", default="runs/quickstart", help="Folder of the run.")
    parser.add_argument("--n", type=PositiveInt, default=100, help="Samples of each class.")
    parser.add_argument(
        "--judge_epochs", type=PositiveInt, default=8, help="Training of the judge."
    )


def doctor_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `doctor` and of `theory`; see their help."""
    parser.add_argument("classifier", help="A saved energy, any name of timm, or demo:NAME.")
    parser.add_argument("--size", type=PositiveInt | None, help="Image size; its own by default.")
    parser.add_argument("--pretrained", type=bool, default=True, help="Load its weights.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def convert_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `convert`; see its help."""
    parser.add_argument("classifier", help="Any name of timm.")
    parser.add_argument("--output", required=True, help="Folder to write.")
    parser.add_argument("--gauge", type=Gauge, default="raw", help="Common shift of the logits.")
    parser.add_argument(
        "--gain",
        type=PositiveFloat | Literal["auto"] | None,
        help="Gain on the logits; auto measures one. 1 by default, auto with --smoothing.",
    )
    parser.add_argument(
        "--smoothing",
        type=bool,
        default=False,
        help="Average scores over small changes, for pictures without training.",
    )
    _reference_argument(parser)


def _reference_argument(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--reference",
        type=str | None,
        help="A folder of images without labels whose spectrum and colours the reference gets.",
    )


def finetune_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `finetune`; see its help."""
    _recipe_arguments(parser)
    parser.add_argument("--output", required=True, help="Folder of the run.")
    parser.add_argument(
        "--resume",
        type=Literal["never", "auto"],
        default="never",
        help="auto: go on where a run in that folder was interrupted.",
    )


def sample_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `sample`; see its help."""
    parser.add_argument("model", help="A saved energy, any name of timm, or demo:NAME.")
    parser.add_argument(
        "--classes", type=str | None, help="Indices, names, blends, or all: 281,zebra,zebra+tabby"
    )
    parser.add_argument(
        "--unit",
        action="append",
        help="Instead of classes, channels of layers: layer3.1.conv2:17, or at a place :17@3,4",
    )
    parser.add_argument("--n", type=PositiveInt, default=8, help="Images of each class.")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of the first image.")
    parser.add_argument(
        "--steps", type=PositiveInt | None, help="Langevin steps, after coarse ones."
    )
    parser.add_argument(
        "--size", type=PositiveInt | None, help="Of a texture, height and width of the images."
    )
    _reference_argument(parser)
    parser.add_argument("--start", type=str | None, help="A photograph to begin at.")
    parser.add_argument(
        "--strength",
        type=ClosedUnitInterval | None,
        help="How much of it may change, 0 to 1; 0.4, or 1 with a mask, if absent.",
    )
    parser.add_argument("--mask", type=str | None, help="An image, white where it is kept.")
    parser.add_argument(
        "--precision",
        type=Precision,
        default="float32",
        help="Of the network: float32, bfloat16, or auto, which tries the second.",
    )
    parser.add_argument(
        "--resume",
        type=Literal["never", "auto"],
        default="never",
        help="auto: go on where the same command was interrupted.",
    )
    parser.add_argument("--output", required=True, help="Folder to write.")


def evaluate_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `evaluate`; see its help."""
    parser.add_argument("model", help="A saved energy, or any name of timm.")
    parser.add_argument(
        "--data", required=True, help="mnist5k, digits8x8, patches, folder, or timm's."
    )
    parser.add_argument("--root", type=str | None, help="Folder of the data.")
    parser.add_argument("--split", default="test", help="train, test, or all of a folder.")
    parser.add_class_arguments(Adversarial, "adversarial")
    parser.add_argument("--output", required=True, help="Folder to write.")
