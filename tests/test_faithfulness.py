"""docs/faithfulness.md says what the cards say, every test that it names is there, and docs/contract.md has every method and rule."""

import re
from pathlib import Path

import contract
import faithfulness
import pytest

from titer import methods

ROOT = Path(__file__).parents[1]
OURS = {"sft", "gate", "sieve"}
ROWS = [(name, row) for name, rows in faithfulness.cards().items() for row in rows]


def test_the_page_is_what_the_cards_say():
    assert faithfulness.PAGE.read_text(encoding="utf-8") == faithfulness.page(), "run `make faithfulness`"


def test_every_published_method_has_its_table():
    published = {name for _, name, method in methods.every() if method.source.paper}
    assert published.isdisjoint(OURS)
    cards = faithfulness.cards()
    assert published <= set(cards)
    assert all(any("::test_" in row for row in cards[name]) for name in published)
    assert {name for _, name, _ in methods.every()} == published | OURS


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{name}-{number}" for number, (name, _) in enumerate(ROWS)])
def test_a_row_names_tests_that_are_there(name, row):
    cells = re.split(r"(?<!\\)\|", row.strip().strip("|"))
    assert len(cells) == 4, f"{name}: {len(cells)} cells: {row}"
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[3])
    assert tests or cells[3].strip() == "–", f"{name}: no test in {cells[3]!r}"
    for file, test in tests:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {test}"


def test_the_contract_has_every_method_and_rule_and_none_is_broken():
    page = contract.PAGE.read_text(encoding="utf-8")
    for trains, checks in contract.KINDS.values():
        for number, (name, check) in enumerate(checks.items(), 1):
            assert f"{number}. {name.replace('_', ' ')}: {check.__doc__}" in page
        for label, _, _ in contract.variants(trains):
            cells = re.search(rf"^\| `{re.escape(label)}` \|(.*)\|$", page, re.MULTILINE)
            assert cells, f"contract.md lacks {label}: run `make contract`"
            assert len(cells[1].split("|")) == len(checks)
    assert "✗" not in page.partition("\n## ")[2]
