"""A message that leaves a fact out does not pass for one that tells it."""

import pytest
from told import refused, untold

from titer.errors import TiterError


@pytest.mark.parametrize(
    ("said", "facts"),
    [
        ("`a` holds 10 of 12 rows", ["1"]),
        ("`a` holds 1.5 or 1,500 or -1", ["1"]),
        ("u.jsonl:10: broken", ["u.jsonl:1"]),
        ("`--lora r` is given twice", ["`r`", "`--set"]),
        ("rows", ["row"]),
        ("", ["out"]),
    ],
)
def test_what_is_not_said_is_untold(said, facts):
    assert untold(said, *facts) == facts


def test_facts_are_told_in_any_words():
    error = TiterError("u.jsonl:3: 2 prompts\nare empty, of 4.", "Run `titer data u.jsonl` first.")
    assert not untold(error, "u.jsonl:3", "2 prompts are empty", "4", "titer data", "run")
    with pytest.raises(AssertionError, match=r"u\.jsonl:3"), refused("u.jsonl:4"):
        raise error
