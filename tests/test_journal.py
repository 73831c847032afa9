"""The log: means, last numbers, and what is not finite."""

import json

import pytest
import torch

from ebm_from_clf.contrastive import Synthesized, Terms
from ebm_from_clf.journal import Journal


def terms(contrast, entropy, observed, synthesized, hits):
    scores = [torch.tensor([value - 1.0, value + 1.0]) for value in (observed, synthesized)]
    return Terms(
        torch.tensor(contrast), torch.tensor(entropy), scores[0], scores[1], torch.tensor(hits)
    )


def note(journal, *numbers, gradient=1.0, lost=(False, False)):
    images = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1)
    chains = Synthesized(images, None, torch.tensor([0.1, 0.3]))
    journal.add(terms(*numbers), chains, torch.tensor(lost), torch.tensor(gradient))


def test_a_line_holds_means_and_last_numbers():
    journal = Journal()
    note(journal, 0.5, 0.1, 3.0, 1.0, 1.0)
    note(journal, -0.5, 0.2, 2.0, -7.0, 0.5)
    line = journal.line(update=2)
    expected = dict(update=2, contrast=-0.5, observed=2.0, synthesized=-7.0, gap=9.0)
    assert {k: line[k] for k in expected} == expected
    assert (line["mean_gap"], line["accuracy"], line["worst"]) == (5.5, 0.75, 7.0)
    # Observed 2 and 4 against 0 and 2, then 1 and 3 against -8 and -6: 3 pairs of 4, then all.
    assert line["auc"] == 0.875
    assert (line["moved"], line["saturated"], line["gradient"]) == (pytest.approx(0.2), 0.5, 1.0)
    note(journal, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert journal.line()["worst"] == 0 and len(journal.lines) == 2


def test_what_is_not_finite_is_seen_and_written_as_null(tmp_path):
    journal = Journal()
    note(journal, 0.0, float("nan"), 1.0, 1.0, 1.0)
    note(journal, 0.0, 0.0, 1.0, 1.0, 1.0)
    line = journal.line(update=2)
    assert line["worst"] != line["worst"]
    journal.write(tmp_path)
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(text)["worst"] is None and "NaN" not in text


def test_written_anew_replaces_and_else_appends(tmp_path):
    journal = Journal()
    for update in range(3):
        note(journal, 0.0, 0.0, 0.0, 0.0, 1.0)
        journal.line(update=update)
        journal.write(tmp_path)
    journal.lines = journal.lines[:1]
    journal.write(tmp_path, anew=True)
    found = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in found] == [0]
