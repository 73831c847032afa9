"""Can a classifier be converted, and what will a Langevin step cost?

A chain needs one thing of a classifier: a finite, non-zero gradient of each logit with respect to
the pixels, for one image whatever the other images are. Each probe looks at one way to miss that
and says what to do.
"""

__all__ = ["Diagnosis", "Finding", "examine"]

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .modes import evaluation_mode, frozen
from .space import PixelSpace

OTHER_SIZES = (32, 64, 96, 128, 224, 256, 384)
UNCUT = "Remove what cuts it off in its forward: detach, no_grad, rounding, a division by zero."


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Arguments:
        check: The probe.
        ok: Whether the classifier passes.
        note: What was found, and what to do if it does not pass.
    """

    check: str
    ok: bool
    note: str


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says of a classifier.

    Arguments:
        classifier: Its name.
        parameters: Its number of parameters.
        n_classes: Its number of classes.
        shape: The shape (C, H, W) of an image.
        mean: The mean of its input normalisation, in pixels.
        std: The standard deviation of its input normalisation, in pixels.
        findings: What the probes found.
        forward_ms: Milliseconds of a forward pass of `batch` images.
        step_ms: Milliseconds of a forward pass and an input gradient.
        batch: The number of images timed.
        device: Where it was timed.
    """

    classifier: str
    parameters: int
    n_classes: int
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    findings: tuple[Finding, ...]
    forward_ms: float | None = None
    step_ms: float | None = None
    batch: int = 4
    device: str = "cpu"

    @property
    def ok(self) -> bool:
        """Whether every probe passed."""
        return all(finding.ok for finding in self.findings)

    @property
    def refusal(self) -> str:
        """The first reason why the classifier cannot be converted, in one line."""
        return next((f"{self.classifier}: {f.note}" for f in self.findings if not f.ok), "")

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as plain values, with `ok`."""
        return {**asdict(self), "ok": self.ok}


def examine(
    classifier: nn.Module, space: PixelSpace, *, name: str = "classifier", timing: bool = True
) -> Diagnosis:
    """Probes a classifier; stops at the first probe that makes the next ones pointless.

    Arguments:
        classifier: The classifier.
        space: The map from pixels to its input.
        name: What to call it in messages.
        timing: Whether to time a forward pass and a step.
    """
    findings: list[Finding] = []
    x = _images(space)
    device = space.mean.device.type
    for probe in (_weights, _classes, _forward, _independence, _gradient):
        found = probe(classifier, space, x)
        findings.append(found)
        if not found.ok:
            break
    result = Diagnosis(
        classifier=name,
        parameters=sum(p.numel() for p in classifier.parameters()),
        n_classes=int(getattr(classifier, "num_classes", 0) or 0),
        shape=tuple(space.shape),
        mean=tuple(round(v, 6) for v in space.mean.flatten().tolist()),
        std=tuple(round(v, 6) for v in space.std.flatten().tolist()),
        findings=tuple(findings),
        batch=len(x),
        device=device,
    )
    if not result.ok or not timing:
        return result
    return _timed(result, classifier, space, x)


def _images(space: PixelSpace) -> Tensor:
    """Returns four pale noise images, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.2 * torch.randn((4, *space.shape), generator=generator)
    return x.clamp(0, 1).to(space.mean.device)


def _weights(classifier: nn.Module, space: PixelSpace, x: Tensor) -> Finding:
    for name, value in classifier.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            note = f"weight {name} is not finite (NaN or Inf). Load the checkpoint from before."
            return Finding("weights", False, note)
    return Finding("weights", True, "finite")


def _classes(classifier: nn.Module, space: PixelSpace, x: Tensor) -> Finding:
    if getattr(classifier, "num_classes", None) == 0:
        note = (
            "num_classes is 0, so it returns features, not logits. "
            "Create it with num_classes=K and train its head, or take a tag with a head."
        )
        return Finding("head", False, note)
    return Finding("head", True, f"{getattr(classifier, 'num_classes', 'unknown')} classes")


def _forward(classifier: nn.Module, space: PixelSpace, x: Tensor) -> Finding:
    size = "x".join(map(str, space.size))
    try:
        logits = _logits(classifier, space(x))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        note = f"does not accept images of {size} ({_reason(error)}). {_advice(classifier, space)}"
        return Finding("input", False, note)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = getattr(logits, "shape", None)
        found = type(logits).__name__ if shape is None else f"shape {tuple(shape)}"
        note = (
            f"logits must have shape (B, K), it returns {found}. Pool its output, keep its head."
        )
        return Finding("input", False, note)
    if not logits.isfinite().all():
        return Finding("input", False, "logits are not finite. Check its weights and precision.")
    return Finding("input", True, f"{len(space.mean)} channels, {size}")


def _advice(classifier: nn.Module, space: PixelSpace) -> str:
    """Returns what to do about images of a size that a classifier does not accept."""
    own = (getattr(classifier, "pretrained_cfg", None) or {}).get("input_size") or (0,)
    sizes = dict.fromkeys((own[-1], *OTHER_SIZES))
    works = [s for s in sizes if s and _accepts(classifier, space, s)]
    if not works:
        return f"Does it take {len(space.mean)} channels? Give in_chans or `size`."
    best, *others = works[:3]
    more = f" ({' and '.join(map(str, others))} work too)" if others else ""
    return f"Give size={best}{more}, or create it with img_size={space.size[0]} if it takes that."


def _gradient(classifier: nn.Module, space: PixelSpace, x: Tensor) -> Finding:
    try:
        with torch.inference_mode(False), torch.enable_grad(), frozen(classifier):
            x = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(classifier(space(x))[:, 0].sum(), x)
    except RuntimeError as error:
        note = f"no gradient with respect to pixels ({_reason(error)}). {UNCUT}"
        return Finding("gradient", False, note)
    if not gradient.isfinite().all():
        note = f"the gradient with respect to pixels is not finite. {UNCUT}"
        return Finding("gradient", False, note)
    norm = float(gradient.flatten(1).norm(dim=1).mean())
    if norm == 0:
        note = (
            "the gradient with respect to pixels is zero, as with a head of zeros that was never "
            "trained. Load pretrained weights, train it, or call reset_classifier."
        )
        return Finding("gradient", False, note)
    return Finding("gradient", True, f"norm {norm:.3g} per image")


def _independence(classifier: nn.Module, space: PixelSpace, x: Tensor) -> Finding:
    together, alone = _logits(classifier, space(x))[:1], _logits(classifier, space(x[:1]))
    gap = float((together - alone).abs().max() / together.abs().max().clamp_min(1e-6))
    if gap > 1e-2:
        note = (
            f"the logits of an image depend on the other images of its batch (by {gap:.2g}), also "
            "in evaluation mode. An energy must not; remove that layer."
        )
        return Finding("independence", False, note)
    return Finding("independence", True, f"other images change a logit by {gap:.1g} at most")


def _reason(error: Exception) -> str:
    """Returns the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:120]


def _logits(classifier: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), evaluation_mode(classifier):
        return classifier(x)


def _accepts(classifier: nn.Module, space: PixelSpace, size: int) -> bool:
    x = space(torch.full((1, len(space.mean), size, size), 0.5, device=space.mean.device))
    try:
        return _logits(classifier, x).ndim == 2
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError):
        return False


def _timed(result: Diagnosis, classifier: nn.Module, space: PixelSpace, x: Tensor) -> Diagnosis:
    def step() -> None:
        with torch.inference_mode(False), torch.enable_grad(), frozen(classifier):
            live = x.clone().requires_grad_()
            torch.autograd.grad(classifier(space(live))[:, 0].sum(), live)

    forward = _milliseconds(lambda: _logits(classifier, space(x)), x.device)
    cost = {"forward_ms": forward, "step_ms": _milliseconds(step, x.device)}
    return Diagnosis(**{**vars(result), **cost})


def _milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Returns the median time of five calls after a warm-up."""
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begin))
    return round(sorted(times[1:])[2], 3)
