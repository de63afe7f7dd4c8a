"""The page of the search for alignment that resists: planted trajectories give the ratios that were planted."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "assay"))
from planted import AT_2, AT_4, AT_16, attacks

from titer.results.reading import plain

PATH = Path(__file__).parents[1] / "benchmarks" / "resistance_page.py"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("resistance_page", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["resistance_page"] = module
    spec.loader.exec_module(module)
    return module


def with_margin(trajectories, start):
    """The same attackers, all of whose margins begin at `start` and rise by a nat at each look."""
    return [
        dataclasses.replace(
            one,
            attack="harmful" if one.attack == "kind-0" else one.attack,
            checkpoints=tuple(
                dataclasses.replace(point, margin=start + place) for place, point in enumerate(one.checkpoints)
            ),
        )
        for one in trajectories
    ]


def write_cell(folder, steps, ours, theirs, starts, arm="booster"):
    sides = {"defended": with_margin(ours, starts[0]), "undefended": with_margin(theirs, starts[1])}
    about = {
        "arm": arm, "steps": steps, "seed": 0, "verdicts": {"resistance": "none", "stability": "yes"},
        "attackers": plain(sides), "environment": {"commit": "abc"},
    }  # fmt: skip
    (folder / f"{arm}.n{steps}.s0.json").write_text(json.dumps(about))


def test_each_cell_is_held_against_plain_alignment_of_equal_length_and_of_equal_start(page, tmp_path):
    write_cell(tmp_path, 32, attacks(*[AT_4] * 6), attacks(*[AT_2] * 6), (-0.5, -2.0))
    write_cell(tmp_path, 512, attacks(*[AT_16] * 6), attacks(*[AT_4] * 6), (-1.9, -0.5))
    cells = [page.Found.read(path) for path in sorted(tmp_path.glob("*.json"))]
    short, long = sorted(cells, key=lambda cell: cell.steps)
    assert page.judged(short.ours, short.plain).typical["samples"].value == pytest.approx(2, rel=0.5)
    assert page.nearest_start(short, cells) == (512, long.plain)
    assert page.nearest_start(long, cells) == (32, short.plain)
    write_cell(tmp_path, 0, attacks(*[AT_2] * 6), attacks(*[AT_4] * 6), (-1.8, -0.5), arm="plain")
    cells = [page.Found.read(path) for path in sorted(tmp_path.glob("*.json"))]
    assert page.nearest_start(long, cells)[0] == 0
    folder = page.write(tmp_path, cells, {"steps": "32, 512"}).parent
    words = (folder / "README.md").read_text()
    rows = [line for line in words.splitlines() if line.startswith("| booster, n = 512")]
    assert "×4.0" in rows[0]
    assert "plain n = 0, −1.80" in rows[0]
    assert "| +2.10 |" in rows[1]
    assert (folder / "index.html").read_text().count("<svg") == 1
