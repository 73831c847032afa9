"""The command line; with `arguments` and `named` the only place that wires the parts together.

Exit status: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted, 143 terminated.
"""

__all__ = ["main"]

import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace
from safetensors import SafetensorError
from torch import nn

from .arguments import (
    EPILOG,
    Formatter,
    Parser,
    convert_arguments,
    doctor_arguments,
    evaluate_arguments,
    finetune_arguments,
    named_recipe,
    quickstart_arguments,
    recipe_of,
    sample_arguments,
    stop,
)
from .checkpoint import load, save
from .convert import convert, create_classifier, space_of
from .data import load_data
from .doctor import examine
from .errors import Diverged, UsageError
from .evaluate import evaluate
from .folders import publish, write_json
from .gallery import write_samples
from .labels import by_name
from .machine import machine
from .named import (
    find_classes,
    is_energy,
    open_classifier,
    open_energy,
    open_photograph,
    resized,
    timm_name,
)
from .precision import is_reduced, passes
from .progress import bar
from .quickstart import quickstart
from .run import finetune_recipe
from .sample import UNTUNED, n_steps
from .smooth import Smoothing
from .theory import examine_theory
from .units import units
from .untrained import NORM, SAMPLER


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    Arguments:
        argv: The arguments. `None` for those of the process.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        parser = _parser()
        parsed = parser.parse_args(named_recipe(argv))
        name = parsed.subcommand
        arguments = parser.instantiate(parsed)[name]
        if "finetune" in arguments:
            arguments.recipe = recipe_of(arguments)
        COMMANDS[name][1](arguments)
    except (UsageError, ValueError) as error:
        stop(2, error)
    except (Diverged, OSError, SafetensorError) as error:
        # safetensors says so when the disk is full.
        stop(1, error)
    except KeyboardInterrupt:
        stop(130, "interrupted")
    sys.exit(0)


def _parser() -> ArgumentParser:
    parser = Parser(
        prog="ebm-from-clf",
        description="Turn a timm classifier into a class-conditional generator.",
        epilog=EPILOG,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(required=True)
    for name, (declare, function) in COMMANDS.items():
        sub = Parser(description=function.__doc__, allow_abbrev=False)
        declare(sub)
        commands.add_subcommand(name, sub, help=function.__doc__)
    return parser


def _quickstart(a: Namespace) -> None:
    """Trains, converts, fine-tunes, samples and evaluates on MNIST-5k."""
    numbers = quickstart(a.recipe, a.output, n=a.n, judge_epochs=a.judge_epochs, progress=bar)
    found = numbers["samples"]
    print(
        f"accuracy {numbers['accuracy_before']:.3f} before, {numbers['accuracy']:.3f} after; "
        f"{found['agreement']:.3f} of {found['n']} samples judged as their class; Frechet "
        f"distance {found['frechet_ratio']:.2f} times that of held-out images; "
        f"{numbers['seconds']:.0f} s"
    )
    print(f"wrote {a.output}; open {Path(a.output) / 'report.html'}")


def _doctor(a: Namespace) -> None:
    """Tells whether a classifier can be converted, and what a Langevin step costs."""
    energy = load(a.classifier) if a.pretrained and is_energy(a.classifier) else None
    classifier = _classifier(a) if energy is None else energy.classifier
    space = space_of(classifier, a.size) if energy is None else resized(energy, a.size).space
    result = examine(classifier, space, name=a.classifier)
    gain = None
    if result.ok:
        gain = _gain(classifier, a) if energy is None else energy.gain
    if a.json:
        print(json.dumps(result.as_dict() | {"gain": gain}, indent=2))
    else:
        shape = "x".join(map(str, result.shape))
        print(f"{result.classifier}: {result.parameters / 1e6:.1f} M parameters, images {shape}")
        for finding in result.findings:
            print(f"  {'ok ' if finding.ok else 'NO '} {finding.check}: {finding.note}")
        if result.step_ms and result.forward_ms:
            ratio = result.step_ms / result.forward_ms
            print(
                f"  a step of {result.batch} images takes {result.step_ms:.0f} ms on "
                f"{result.device}, {ratio:.1f} times a forward pass"
            )
        if gain and energy is None:
            print(
                f"  smoothed, a gradient at gain 1 has {NORM / gain:.2g} of the norm of noise; "
                f"`sample` takes the gain {gain:.3g}"
            )
        elif gain:
            print(f"  `sample` takes the gain that was saved with it, {gain:.3g}")
    if not result.ok:
        raise UsageError(result.refusal)


def _classifier(a: Namespace) -> nn.Module:
    return create_classifier(timm_name(a.classifier), pretrained=a.pretrained)


def _theory(a: Namespace) -> None:
    """Checks the propositions of the paper on a classifier, and fails if one fails."""
    if a.pretrained and is_energy(a.classifier):
        # With the gain and the reference that it was fine-tuned with.
        energy = resized(load(a.classifier), a.size)
    else:
        energy = convert(_classifier(a), size=a.size)
    found = examine_theory(energy, name=a.classifier)
    print(json.dumps(found.as_dict(), indent=2) if a.json else found)
    if found.failed:
        names = "; ".join(check.statement for check in found.failed)
        stop(1, f"theory: {len(found.failed)} of {len(found.checks)} propositions fail: {names}.")


def _gain(classifier: nn.Module, a: Namespace) -> float:
    """Returns the gain that `sample` would take."""
    return convert(classifier, size=a.size, smoothing=Smoothing()).gain


def _convert(a: Namespace) -> None:
    """Converts a classifier to an energy and saves it as a folder that timm can read."""
    smoothing = Smoothing() if a.smoothing else None
    energy = open_classifier(
        a.classifier, a.reference, gauge=a.gauge, gain=a.gain, smoothing=smoothing
    )
    save(energy, a.output)
    numbers = {"classifier": a.classifier, "machine": machine()}
    write_json(Path(a.output) / "metrics.json", numbers)
    print(f"wrote {a.output}")


def _finetune(a: Namespace) -> None:
    """Fine-tunes a classifier by a recipe until its samples look like the data."""
    run = finetune_recipe(a.recipe, a.output, bar, resume=a.resume == "auto")
    if run.energy.n_classes != 1:  # of a texture there is none
        before, after = (run.metrics[f"accuracy_{when}"] for when in ("before", "after"))
        print(f"accuracy {before:.3f} -> {after:.3f}")
    if run.metrics["faults"]:
        last, n = run.metrics["faults"][-1], len(run.metrics["faults"])
        print(
            f"{n} faults on the way, see metrics.json. The last, at update {last['update']}: "
            f"{last['fault']}. {last['action'].capitalize()}."
        )
    model = Path(a.output) / "model"
    print(f"wrote {a.output}; draw with: ebm-from-clf sample {model} --classes all --output DIR")


def _sample(a: Namespace) -> None:
    """Draws images of classes or units into a folder, from nothing or from a photograph."""
    if (a.classes is None) == (a.unit is None):
        raise UsageError("sample: --classes or --unit say what is drawn. Give one of the two.")
    energy = resized(open_energy(a.model, a.reference), a.size)
    if a.unit is not None:
        energy = units(energy, a.unit)
    classes = find_classes("all" if a.classes is None else a.classes, energy)
    sampler = energy.sampler or UNTUNED
    if sampler == SAMPLER:
        print(f"never trained to generate: short chains for {sampler.density}, not draws of p")
    elif energy.sampler is None and energy.gain == 1:
        print(
            "never trained to generate: these are draws of q, faintly tilted. For pictures, give "
            "the name of the classifier, or convert it with --smoothing true."
        )
    if a.steps is not None:
        sampler = replace(sampler, n_steps=a.steps)
    if a.start is None and (a.mask is not None or a.strength is not None):
        raise UsageError("--mask and --strength need a photograph: give --start FILE.")
    if a.start is not None:
        energy = open_photograph(energy, a.start, a.strength, a.mask, sampler)
        sampler = energy.sampler
    with passes(is_reduced(a.precision, energy), energy):
        write_samples(
            energy,
            classes,
            a.n,
            a.seed,
            a.output,
            sampler=sampler,
            resume=a.resume == "auto",
            progress=bar("sample", n_steps(energy, sampler) * len(classes) * a.n),
        )
    print(f"wrote {a.output}; look at {Path(a.output) / 'grid.png'}")


def _evaluate(a: Namespace) -> None:
    """Measures accuracy, calibration and, given a radius, robust accuracy on held-out data."""
    with publish(a.output) as folder:
        energy = open_energy(a.model, smoothing=None)
        channels, *size = energy.space.shape
        data = load_data(a.data, a.split, size=(size[0], size[1]), channels=channels, root=a.root)
        by_name(data, energy.class_names)
        numbers = evaluate(energy, data, a.adversarial)
        write_json(folder / "metrics.json", numbers | {"machine": machine()})
    print(json.dumps(numbers))
    print(f"wrote {a.output}")


COMMANDS: dict[str, tuple[Callable[[ArgumentParser], None], Callable[[Namespace], None]]] = {
    "quickstart": (quickstart_arguments, _quickstart),
    "doctor": (doctor_arguments, _doctor),
    "theory": (doctor_arguments, _theory),
    "convert": (convert_arguments, _convert),
    "finetune": (finetune_arguments, _finetune),
    "sample": (sample_arguments, _sample),
    "evaluate": (evaluate_arguments, _evaluate),
}
