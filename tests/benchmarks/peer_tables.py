"""The tables of peers.py: medians over seeds, with their range where there are several."""

from statistics import median

COLUMNS = {
    "updates": ".0f",
    "seconds": ".0f",
    "accuracy_before": ".3f",
    "accuracy": ".3f",
    "agreement": ".3f",
    "frechet_ratio": ".3g",
    "diversity_ratio": ".2f",
    "nearest_ratio": ".2f",
}


def cell(rows, name):
    values = sorted(row[name] for row in rows if name in row)
    if not values:
        return "-"
    form = COLUMNS[name]
    text = f"{median(values):{form}}"
    if len(values) > 1:
        text += f" ({values[0]:{form}}-{values[-1]:{form}})"
    # A run without this number is not to be forgotten: it diverged.
    return text if len(values) == len(rows) else f"{text}, {len(values)} of {len(rows)}"


def table(head, lines):
    for line in (head, ["---"] * len(head), *lines):
        print(f"| {' | '.join(line)} |")


def show(rows, curve):
    """Prints how rows ended and, of those that were looked at on their way, their distances."""
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    of = {name: [row for row in rows if row["recipe"] == name] for name in names}
    head = [column.replace("_", " ") for column in COLUMNS]
    table(["recipe", *head], [[k, *(cell(v, c) for c in COLUMNS)] for k, v in of.items()])
    if not curve:
        return
    print("\nFrechet distance, times held-out, after seconds of training:\n")
    times, lines = sorted({point["at"] for point in curve}), []
    for name in dict.fromkeys(point["recipe"] for point in curve):
        points = [[p for p in curve if (p["recipe"], p["at"]) == (name, t)] for t in times]
        lines.append([name, *(cell(p, "frechet_ratio") for p in [*points, of[name]])])
    table(["recipe", *(f"{t:g} s" for t in times), "at the end"], lines)
