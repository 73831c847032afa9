"""The log: means, last numbers, and what is not finite."""

import json

import pytest
import torch

from ebm_from_clf.contrastive import Terms
from ebm_from_clf.journal import Journal
from ebm_from_clf.slots import Draw
from ebm_from_clf.synthesis import Synthesized

NONE = (False, False)


def terms(contrast, entropy, observed, synthesized, hits):
    scores = [torch.tensor([value - 1.0, value + 1.0]) for value in (observed, synthesized)]
    return Terms(
        torch.tensor(contrast), torch.tensor(entropy), scores[0], scores[1], torch.tensor(hits)
    )


def note(journal, *numbers, gradient=1.0, lost=NONE, ahead=NONE, y=(0, 1)):
    note_terms(journal, terms(*numbers), gradient, lost, ahead, y)


def note_terms(journal, found, gradient, lost, ahead, y):
    images = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1)
    draw = Draw(images, torch.tensor(y), torch.zeros(2), torch.zeros(2))
    chains = Synthesized(images, draw, torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.4]))
    observed = torch.full((2, 1, 1, 1), 0.5)
    masks = torch.tensor(lost), torch.tensor(ahead)
    journal.add(observed, found, chains, *masks, torch.tensor(gradient))


def test_a_line_holds_means_and_last_numbers():
    journal = Journal(3)
    note(journal, 0.5, 0.1, 3.0, 1.0, 1.0)
    note(journal, -0.5, 0.2, 2.0, -7.0, 0.5)
    line = journal.line(update=2)
    expected = dict(update=2, contrast=-0.5, observed=2.0, synthesized=-7.0, gap=9.0)
    assert {k: line[k] for k in expected} == expected
    assert (line["mean_gap"], line["accuracy"], line["worst"]) == (5.5, 0.75, 7.0)
    # Observed 2 and 4 against 0 and 2, then 1 and 3 against -8 and -6: 3 pairs of 4, then all.
    assert line["auc"] == 0.875
    assert (line["moved"], line["saturated"], line["gradient"]) == (pytest.approx(0.2), 0.5, 1.0)
    assert line["stiffness"] == pytest.approx(0.39)
    assert line["saturated_observed"] == 0
    note(journal, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert journal.line()["worst"] == 0 and len(journal.lines) == 2


def test_chains_that_begin_elsewhere_are_counted_from_the_beginning():
    journal, numbers = Journal(3), (0.0, 0.0, 0.0, 0.0, 1.0)
    for lost, ahead in (((True, False), NONE), ((True, True), (True, False)), (NONE, NONE)):
        note(journal, *numbers, lost=lost, ahead=ahead)
        journal.line()
    assert [line["begun_anew"] for line in journal.lines] == [1, 3, 3]
    assert [line["begun_at_data"] for line in journal.lines] == [0, 1, 1]


def test_the_class_that_fell_behind_is_found_among_the_others():
    """Its gap is the mean of its images with weights .97^age, of one image or two in a batch."""
    journal, gaps = Journal(3), []
    for update in range(30):
        y = (0, 2) if update % 3 else (2, 2)
        gap = 6.0 + update % 5 if update % 3 == 0 else 0.0
        note(journal, 0.0, 0.0, gap, 0.0, 1.0, y=y)
        gaps += [gap] * y.count(2)
        line = journal.line()
        if len(gaps) < 20:
            assert (line["class_gap"], journal._gaps[2, 1]) == (0, 0)
    assert line["worst_class"] == 2
    value, known, i = 0.0, 0.0, 0
    while i < len(gaps):  # those of one batch together
        n = 2 if gaps[i] and i + 1 < len(gaps) else 1
        keep = 0.97**n
        value, known, i = keep * value + (1 - keep) * gaps[i], keep * known + 1 - keep, i + n
    assert line["class_gap"] == pytest.approx(value / known, rel=1e-5)
    journal.forget([2])
    note(journal, 0.0, 0.0, 9.0, 0.0, 1.0, y=(2, 2))
    assert journal.line()["class_gap"] == 0


@pytest.mark.parametrize("updates", [12, 120])
def test_standard_errors_of_gaps_are_those_of_chance(updates):
    """The gap over its error has variance 1, for few images of a class and for many.

    Mutant: the error of a mean whose images all have the weight 1 of 1 / (1 - .97) of them.
    """
    n, g = 400, torch.Generator().manual_seed(0)
    journal, y, spread = Journal(n), torch.arange(n).repeat(2), torch.logspace(-1, 2, n).repeat(2)
    zero = torch.tensor(0.0)
    for _ in range(updates):
        gap = spread * torch.randn(2 * n, generator=g)
        note_terms(journal, Terms(zero, zero, gap, 0 * gap, zero), 1.0, NONE, NONE, y.tolist())
    line, (gaps, errors, _) = journal.line(), journal._class_gaps()
    z = (gaps / errors).square().mean()
    assert abs(z - 1.1) < 5 * (2 / n) ** 0.5
    plain = (journal._gaps[1] / journal._gaps[2] - gaps.square()).sqrt() / (1 / 0.03) ** 0.5
    assert abs((gaps / plain).square().mean() - 1.1) > 5 * (2 / n) ** 0.5
    exact = (spread.square().mean() / (2 * n * updates)).sqrt()
    assert line["gap_error"] == pytest.approx(float(exact), rel=0.1)
    assert abs(line["mean_gap"]) < 5 * line["gap_error"]
    worst = (gaps - 3 * errors).argmax()
    assert line["worst_class"] == worst and line["class_gap_error"] == errors[worst]


SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)]


@pytest.mark.parametrize("n", [1, *SLOW, 256])
def test_standard_errors_hold_for_small_and_for_large_batches_of_a_class(n):
    """Of 300 runs, of thirty updates each, with the last ten in a line."""
    g, z = torch.Generator().manual_seed(n), []
    zero = torch.tensor(0.0)
    for _ in range(300):
        journal = Journal(1)
        for update in range(30):
            gap = torch.randn(n, generator=g)
            note_terms(journal, Terms(zero, zero, gap, 0 * gap, zero), 1.0, NONE, NONE, [0] * n)
            if update == 19:
                journal.line()
        line = journal.line()
        z.append(
            (line["mean_gap"] / line["gap_error"], line["class_gap"] / line["class_gap_error"])
        )
    # The variance of t with at least ten degrees of freedom is at most 1.25.
    found = torch.tensor(z).square().mean(0)
    assert ((found - 1.1).abs() < 0.15 + 5 * (2 / 300) ** 0.5).all()


def test_a_class_of_which_nothing_is_known_is_not_the_worst():
    journal = Journal(3)
    for _ in range(30):
        note(journal, 0.0, 0.0, 0.0, 0.5, 1.0, y=(1, 2))
    line = journal.line()
    assert line["worst_class"] in (1, 2) and line["class_gap"] == pytest.approx(-0.5)


def test_what_is_not_finite_is_seen_and_written_as_null(tmp_path):
    journal = Journal(3)
    note(journal, 0.0, float("nan"), 1.0, 1.0, 1.0)
    note(journal, 0.0, 0.0, 1.0, 1.0, 1.0)
    line = journal.line(update=2)
    assert line["worst"] != line["worst"]
    journal.write(tmp_path)
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(text)["worst"] is None and "NaN" not in text


def test_written_anew_replaces_and_else_appends(tmp_path):
    journal = Journal(3)
    for update in range(3):
        note(journal, 0.0, 0.0, 0.0, 0.0, 1.0)
        journal.line(update=update)
        journal.write(tmp_path)
    journal.lines = journal.lines[:1]
    journal.write(tmp_path, anew=True)
    found = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in found] == [0]
