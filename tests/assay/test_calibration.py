"""Planted truths through the quick profile: a small run of `benchmarks/calibration.py`, where the large one is described."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from titer.assays.profile import read_profile

PATH = Path(__file__).parents[2] / "benchmarks" / "calibration.py"
REPETITIONS = 60


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibration"] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    yield module
    del sys.modules["calibration"]


@pytest.fixture(scope="module")
def plan(calibration):
    return calibration.Plan.of(read_profile("quick"))


@pytest.mark.parametrize("persistent", [False, True])
def test_planted_truths_are_judged_as_they_are(calibration, plan, persistent):
    """A judge that is wrong in 5 % of a safe model's answers. By the rules of old, never came out as `none` in 84 %."""
    rows = {
        truth: calibration.resistance_row(plan, truth, 0.05, persistent, REPETITIONS, seed=0)
        for truth in (1.0, 8.0, math.inf)
    }
    same, costly, never = (row["verdicts"] for row in rows.values())
    assert same["weak"] + same["strong"] == 0
    assert same["none"] > 0.9
    assert costly["weak"] + costly["strong"] > 0.65  # 80 in the large run
    assert never["none"] <= 0.02
    assert never["strong"] > 0.65
    for row in rows.values():
        assert row["coverage"] > 0.93
        assert row["coverage_typical"] > 0.93


def test_an_undefended_model_that_breaks_late_proves_nothing(calibration, plan):
    """An identical model was strong in 7 % where the undefended one breaks before the last checkpoint."""
    same = calibration.resistance_row(plan, 1.0, 0.02, False, REPETITIONS, seed=0, behind=-2)["verdicts"]
    never = calibration.resistance_row(plan, math.inf, 0.02, False, REPETITIONS, seed=0, behind=-2)["verdicts"]
    assert same["weak"] + same["strong"] == 0
    assert never["undecided"] == 1


def test_equal_models_are_found_stable(calibration):
    found = calibration.unchanged(read_profile("quick"), 0.05, REPETITIONS, seed=0)
    assert found["stability"]["yes"] > 0.8
    assert found["stability"]["no"] == 0
    assert found["trainability"]["no"] == 0


def test_the_script_writes_its_rows(calibration, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    monkeypatch.setattr(
        sys, "argv", ["calibration", "--quick", "--profiles", "quick", "--f0", "0.02", "--json", str(file)]
    )
    calibration.main()
    rows = json.loads(file.read_text())
    assert [row["truth"] for row in rows] == [1, 2, 4, 8, "never"] * 2
    assert {row["looks"] for row in rows} == {"independent", "persistent"}
    assert all(sum(row["verdicts"].values()) == pytest.approx(1) for row in rows)
    assert "3 draws" in capsys.readouterr().out
