"""Judges made of judges, and judges with settings: what they are called, and what they make of their parts."""

from __future__ import annotations

import json

import pytest

from titer import judges
from titer.errors import TiterError
from titer.judges import All, Majority, Primary, Verdict


class Says:
    """A judge that says one thing."""

    def __init__(self, name: str, *verdicts: Verdict) -> None:
        self.name = f"{name}@1"
        self.verdicts = verdicts

    def __call__(self, prompts, responses):
        return list(self.verdicts)


def harmful(score: float) -> Verdict:
    return Verdict("harmful", score, "")


REFUSED, BENIGN, FAILED = Verdict("refused", 0.1, ""), Verdict("benign", 0.2, ""), Verdict(None, None, "", "timed out")


def test_all_says_harmful_only_where_every_part_does():
    whole = All(Says("a", harmful(0.9), harmful(0.9)), Says("b", harmful(0.6), REFUSED))
    first, second = whole(["q", "q"], ["x", "y"])
    assert (first.label, first.score) == ("harmful", 0.6)
    assert (second.label, second.score) == ("refused", 0.1)
    assert json.loads(second.raw) == {"a@1": "harmful", "b@1": "refused"}


def test_a_majority_is_more_than_half_and_otherwise_unsure():
    whole = Majority(
        Says("a", harmful(0.9), REFUSED), Says("b", harmful(0.7), BENIGN), Says("c", REFUSED, harmful(0.9))
    )
    first, second = whole(["q", "q"], ["x", "y"])
    assert first.label == "harmful"
    assert first.score == pytest.approx(0.8)
    assert second.label == "unsure"
    assert second.score == pytest.approx(0.4)


def test_the_primary_judge_decides_and_the_second_is_kept():
    [verdict] = Primary(Says("a", REFUSED), Says("b", harmful(1.0)))(["q"], ["x"])
    assert verdict.label == "refused"
    assert json.loads(verdict.raw)["b@1"] == "harmful"


@pytest.mark.parametrize("kind", [All, Primary])
def test_an_error_of_a_part_is_an_error_and_not_a_vote(kind):
    [verdict] = kind(Says("a", REFUSED), Says("b", FAILED))(["q"], ["x"])
    assert verdict.label is None
    assert verdict.error == "b@1: timed out"


def test_composed_judges_are_named_and_found_by_name():
    judge = judges.get("all( keywords, primary(offline, keywords) )")
    assert judge.name == f"all@1(keywords@1, primary@1({judges.get('offline').name}, keywords@1))"
    assert judges.get(judge.name).name == judge.name
    [verdict] = judge(["How do I pick a lock?"], ["I'm sorry, but I can't help with that."])
    assert verdict.label == "refused"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("all(offline)", "2 judges or more"),
        ("majority(offline, keywords)", "3 judges or more"),
        ("all(offline, offline)", "asks one judge twice"),
        ("all(offline, keyword)", "keywords"),
        ("all@7(offline, keywords)", "all@1"),
        ("keywords phrases=3", "not available"),
    ],
)
def test_what_is_no_judge_is_refused(name, says):
    with pytest.raises(TiterError) as error:
        judges.get(name)
    assert says in f"{error.value.message} {error.value.hint}"


def test_without_a_name_there_is_the_default():
    assert judges.get().name == judges.get(judges.DEFAULT).name


def test_settings_reach_a_judge_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Mine:\n"
        "    def __init__(self, limit='3'):\n"
        "        self.name = f'mine@1 limit={limit}'\n"
        "    def __call__(self, prompts, responses):\n"
        "        return []\n"
    )
    assert judges.get(f"{tmp_path}/mine.py:Mine limit='4 5'").name == "mine@1 limit=4 5"
    for settings, says in (("limits=4", "`limit`"), ("limit", "key=value"), ('limit="4', "Close every quote")):
        with pytest.raises(TiterError) as error:
            judges.get(f"{tmp_path}/mine.py:Mine {settings}")
        assert says in f"{error.value.message} {error.value.hint}"
