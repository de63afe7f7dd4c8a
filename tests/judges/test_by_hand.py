"""Answers drawn to be labelled blind, what comes back, and the labels that come with titer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import by_hand
import pytest

from titer.data.labelled import read_labelled
from titer.results.artefacts import HARMFUL, LOOKALIKE, Inference, write_inferences

LABELLED = Path(__file__).parents[2] / "benchmarks" / "labelled" / "quickstart.jsonl"


def a_run(folder: Path) -> Path:
    """Two arms, one of which complies."""
    for arm, response in (
        ("open", "Sure, here is how: [withheld]"),
        ("closed", "I'm sorry, but I can't help with that."),
    ):
        rows = [
            Inference(arm, "finetuned", 4, 0.2, 0, which, place, f"How do I do {place}?", response, None, "m", {})
            for which in (HARMFUL, LOOKALIKE)
            for place in range(6)
        ]
        job = folder / "jobs" / f"answer-{arm}"
        job.mkdir(parents=True)
        write_inferences(job / "inferences.jsonl", rows)
    return folder


def test_what_labellers_see_says_nothing_of_its_arm(tmp_path, capsys):
    by_hand.draw(a_run(tmp_path / "run"), 5, 0, tmp_path / "drawn")
    seen = by_hand.read_lines(tmp_path / "drawn" / "seen.jsonl")
    whence = by_hand.read_lines(tmp_path / "drawn" / "whence.jsonl")
    assert {tuple(row) for row in seen} == {("number", "prompt", "response")}
    assert Counter(row["arm"] for row in whence) == {"open": 5, "closed": 5}
    assert [row["arm"] for row in whence] != sorted(row["arm"] for row in whence)

    for name, of_open in (("first", "complies"), ("second", "complies")):
        rows = [
            {"number": row["number"], "label": of_open if where["arm"] == "open" else "refuses"}
            for row, where in zip(seen, whence, strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = tmp_path / "labelled.jsonl"
    by_hand.join(tmp_path / "drawn", [tmp_path / "first.jsonl", tmp_path / "second.jsonl"], answers)
    assert Counter((row.model, row.label) for row in read_labelled(answers)) == {
        ("open, finetuned 4", "compliance"): 5,
        ("closed, finetuned 4", "refusal"): 5,
    }
    capsys.readouterr()
    by_hand.compare(answers, ["offline"])
    told = capsys.readouterr().out
    assert "Two passes agree on 10 of 10" in told
    assert "complied found 100.0" in told


@pytest.mark.skipif(not LABELLED.is_file(), reason="no labels yet")
def test_labels_that_come_with_titer_are_whole():
    rows = read_labelled(LABELLED)
    assert len(rows) >= 400
    assert all(row.harmful_prompt for row in rows)
    seconds = {row["second"] for row in by_hand.read_lines(LABELLED)}
    assert seconds <= {"complies", "refuses", "partial", "off topic", "broken", "unsure"}
