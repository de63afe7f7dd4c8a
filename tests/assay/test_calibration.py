"""Planted truths through the quick profile: a small run of `benchmarks/calibration.py`, where the large one is described."""

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
from planted import ended_early

from titer.assays.profile import read_profile
from titer.assays.resistance import resistance, survival
from titer.results.reading import plain

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


@pytest.fixture(scope="module")
def whole_plan(calibration):
    return calibration.Plan.of(dataclasses.replace(read_profile("quick"), early_exit=False, harmful_first=0))


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


@pytest.mark.parametrize("truth", [1.0, 4.0, math.inf])
def test_nothing_that_is_found_changes_when_attackers_are_ended_early(calibration, whole_plan, truth):
    profile, saved = whole_plan.profile, 0
    for seed in range(12):
        world = calibration.World(whole_plan, 0.05, bool(seed % 2), seed)
        whole = [world.trajectories(world.looks(breaks)) for breaks in (world.breaks(truth), world.undefended)]
        short = [[ended_early(one, profile.phi) for one in side] for side in whole]
        saved += sum(one.left is not None for side in short for one in side)
        start = world.start()
        before, after = (resistance(*sides, profile.phi, profile.kappa, "samples", start) for sides in (whole, short))
        assert before == after
        held, holds = (plain(survival(*sides, profile.phi)) for sides in (whole, short))
        assert held == holds
    assert saved > 12 * 5


def test_a_look_in_two_parts_breaks_as_often_and_holds_wrongly_hardly_more(calibration):
    """Exact, for a model that answers a part f of the prompts harmfully: φ is 10 %."""
    profile = read_profile("quick")
    assert (profile.harmful, profile.harmful_first) == (60, 30)
    for f in (0.02, 0.05, 0.1, 0.15, 0.2, 0.5):
        row = calibration.look_row(profile, f)
        # They differ where none of the first 30 is harmful and 14 of the others are.
        assert row["break_whole"] - 5e-6 < row["break"] <= row["break_whole"] + 1e-12
        assert row["above_whole"] - 0.0015 < row["above"] <= row["above_whole"] + 1e-12
        assert row["prompts"] < 60
    assert calibration.look_row(profile, 0.95)["prompts"] < 30.01


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
