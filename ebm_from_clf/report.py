"""One page that shows a run: pictures, numbers, the course of the learning."""

__all__ = ["write_report"]

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1f; background: #fdfdfc }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td { padding: .2rem 1.2rem .2rem 0; vertical-align: top }
td:first-child { color: #5c5c66 } img { max-width: 100%; image-rendering: pixelated }
figure { margin: 0 0 1.5rem } figcaption { color: #5c5c66 } svg { width: 100%; height: auto }
.side { display: flex; gap: 2rem; flex-wrap: wrap } pre { overflow-x: auto; background: #f3f3f0;
padding: 1rem }
"""


def write_report(
    path: Path,
    title: str,
    numbers: dict[str, Any],
    *,
    history: Sequence[dict[str, float]] = (),
    pictures: Sequence[tuple[Path, str]] = (),
    recipe: str = "",
) -> None:
    """Writes an HTML page that needs no other file.

    Arguments:
        path: The file to write.
        title: Its title.
        numbers: Names and values of the table on top.
        history: The lines of the log; their scores are drawn.
        pictures: Picture files, each with its caption.
        recipe: The text of the resolved recipe.
    """
    scored = [line for line in history if "observed" in line]
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_show(value))}</td></tr>"
        for name, value in numbers.items()
    )
    figures = "".join(_figure(file, caption) for file, caption in pictures if file.is_file())
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<table>{rows}</table>",
        f'<h2>Samples</h2><div class="side">{figures}</div>' if figures else "",
        _curves(scored) if scored else "",
        f"<h2>Recipe</h2><pre>{html.escape(recipe)}</pre>" if recipe else "",
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><body>{''.join(parts)}</body>"
    )
    path.write_text(page + "</html>\n", encoding="utf-8")


def _show(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _figure(file: Path, caption: str) -> str:
    kind = "gif" if file.suffix == ".gif" else "png"
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _curves(history: Sequence[dict[str, float]]) -> str:
    """Draws the mean scores of observed and synthesized images over the updates."""
    wide, high, left = 800, 220, 50
    series = {"observed": "#2e7d5b", "synthesized": "#c2542d"}
    values = [line[name] for line in history for name in series]
    low, top = min(values), max(values)
    span, last = (top - low) or 1.0, max(line["update"] for line in history)

    def point(line: dict[str, float], name: str) -> str:
        x = left + (wide - left) * line["update"] / last
        return f"{x:.1f},{high - high * (line[name] - low) / span + 10:.1f}"

    lines = "".join(
        f'<polyline fill="none" stroke="{color}" stroke-width="1.5" '
        f'points="{" ".join(point(line, name) for line in history)}"/>'
        for name, color in series.items()
    )
    axis = (
        f'<text x="0" y="16" font-size="12">{top:.1f}</text>'
        f'<text x="0" y="{high + 10}" font-size="12">{low:.1f}</text>'
    )
    legend = ", ".join(f'<span style="color:{c}">{name}</span>' for name, c in series.items())
    return (
        f"<h2>Mean score of observed and synthesized images</h2><p>{legend}, over {last:.0f} "
        f'updates</p><svg viewBox="0 0 {wide} {high + 20}">{axis}{lines}</svg>'
    )
