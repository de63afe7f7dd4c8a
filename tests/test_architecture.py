"""Which room of the package imports which: arrows run down, and docs/architecture.md shows them as they are."""

import re

import arrows
import pytest

IMPORTS = arrows.imports()
FOUND = arrows.arrows(IMPORTS)


def test_every_room_is_on_one_floor():
    rooms = sorted(room for floor in arrows.FLOORS.values() for room in floor)
    there = {path.stem for path in arrows.SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms == sorted(there - {"__init__"} | {"titer"})


def test_no_arrow_runs_up_that_is_not_known():
    wrong = arrows.upward(FOUND) - arrows.KNOWN.keys()
    assert not [one for one in IMPORTS if (arrows.room_of(one.importer), arrows.room_of(one.imported)) in wrong]


def test_no_rooms_stand_on_each_other():
    assert arrows.circle(FOUND) == []


def test_the_known_arrows_are_there_still():
    """One that is gone goes from the list, which can only become shorter."""
    assert arrows.KNOWN.keys() <= arrows.upward(FOUND)


def test_the_page_shows_what_the_source_says():
    text = arrows.PAGE.read_text(encoding="utf-8")
    assert text == arrows.page(text, FOUND), "run `make arrows`"
    assert all(mark in text for mark in arrows.MARKS)


def test_the_page_explains_every_room():
    text = arrows.PAGE.read_text(encoding="utf-8").partition("## What each room is for")[2].partition("\n## ")[0]
    explained = re.findall(
        r"`(\w+)`(?=[^:`\n]*:|, `)", "\n".join(line for line in text.splitlines() if line[:3] == "- `")
    )
    assert {room for floor in arrows.FLOORS.values() for room in floor} <= set(explained)


SOURCE = """
import titer.packing.losses as losses
from titer import stats
from titer.files import {name}
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from titer.data import Record
TABLE = {{"sft": "titer.methods.sft:SFT", "not": "titer.nowhere"}}
def later():
    from titer.report import page
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose room `models` imports in every way."""
    for file in (
        "__init__",
        "packing/__init__",
        "packing/losses",
        "stats",
        "files",
        "data",
        "methods/sft",
        "report/__init__",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / f"{file}.py").touch()
    (tmp_path / "report" / "page.py").touch()
    (tmp_path / "methods" / "__init__.py").touch()
    (tmp_path / "models.py").write_text(SOURCE.format(name="read_json"))
    monkeypatch.setattr(arrows, "SOURCE", tmp_path)
    return tmp_path


def test_imports_are_seen_wherever_they_stand(package):
    firm, lazy = {("models", room): "import" for room in ("packing", "stats", "files")}, {("models", "report"): "lazy"}
    found = arrows.arrows(arrows.imports())
    assert found == {**firm, **lazy, ("models", "data"): "type", ("models", "methods"): "name"}
    assert arrows.upward(found) == {("models", "report"), ("models", "methods")}
    (package / "models.py").write_text("from . import files")
    with pytest.raises(ValueError, match="absolute"):
        arrows.imports()


def test_circles_are_found_along_a_floor_and_through_others():
    round_trip = {("train", "infer"): "import", ("infer", "train"): "lazy", ("jobs", "train"): "import"}
    assert {"train", "infer"} <= set(arrows.circle(round_trip))
    assert arrows.circle({("train", "infer"): "import", ("jobs", "infer"): "import"}) == []
