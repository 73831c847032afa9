"""The log: means, last numbers, and what is not finite."""

import json

import torch

from ebm_from_clf.contrastive import Terms
from ebm_from_clf.journal import Journal


def terms(contrast, entropy, observed, synthesized, hits):
    scores = [torch.tensor([value - 1.0, value + 1.0]) for value in (observed, synthesized)]
    return Terms(
        torch.tensor(contrast), torch.tensor(entropy), scores[0], scores[1], torch.tensor(hits)
    )


def test_a_line_holds_means_and_last_numbers():
    journal = Journal()
    journal.add(terms(0.5, 0.1, 3.0, 1.0, 1.0))
    journal.add(terms(-0.5, 0.2, 2.0, -7.0, 0.5))
    line = journal.line(update=2)
    expected = dict(update=2, contrast=-0.5, observed=2.0, synthesized=-7.0, gap=9.0)
    assert {k: line[k] for k in expected} == expected
    assert (line["mean_gap"], line["accuracy"], line["worst"]) == (5.5, 0.75, 7.0)
    journal.add(terms(0.0, 0.0, 0.0, 0.0, 1.0))
    assert journal.line()["worst"] == 1 and len(journal.lines) == 2


def test_what_is_not_finite_is_seen_and_written_as_null(tmp_path):
    journal = Journal()
    journal.add(terms(0.0, float("nan"), 1.0, 1.0, 1.0))
    journal.add(terms(0.0, 0.0, 1.0, 1.0, 1.0))
    line = journal.line(update=2)
    assert line["worst"] != line["worst"]
    journal.write(tmp_path)
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(text)["worst"] is None and "NaN" not in text


def test_written_anew_replaces_and_else_appends(tmp_path):
    journal = Journal()
    for update in range(3):
        journal.add(terms(0.0, 0.0, 0.0, 0.0, 1.0))
        journal.line(update=update)
        journal.write(tmp_path)
    journal.lines = journal.lines[:1]
    journal.write(tmp_path, anew=True)
    found = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in found] == [0]
