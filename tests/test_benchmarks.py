"""The benchmark scripts run on the tiny model and say what they should; nothing here is timed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
APART = ("common", "small_models", "calibration", "families", "faults", "estimates", "hostile")
"""Modules, and scripts that compare no times; `tests/assay/test_calibration.py` runs the first of those."""


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in APART))
def test_quick_run_gives_ratios(name):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--rounds", "1", "--json", "-"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        # The tiny model is slower on several threads, and much slower beside other work.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["benchmark"] == name
    assert result["ratios"]
    assert all(0 < ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in result["ratios"])
    if name == "decoding":
        assert result["identical"] == result["prompts"]
    if name == "fleet":
        # AdamW divides by the size of the gradient, so rounding shows where a gradient is next to nothing.
        assert result["largest_relative_difference"] < 1e-2
        assert result["same_answers"][0] == result["same_answers"][1]


def test_families_say_which_layout_and_how_far_it_is_from_right(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "families.py"), "--kinds", "llama", "stablelm", "xlnet"]
    command += ["--json", str(tmp_path / "found.json"), "--markdown", str(tmp_path / "table.md")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    classes = json.loads((tmp_path / "found.json").read_text())["classes"]
    assert [line["layout"] for line in classes] == ["packed", "padded", "refused"]
    assert classes[0]["packed"] < 1e-5
    assert classes[1]["padded"] < 1e-5
    assert "| stablelm | padded | RuntimeError |" in (tmp_path / "table.md").read_text()


def test_faults_lose_nothing(tmp_path):
    """Two kills, and a disk that fills up twice, where file systems may be mounted."""
    command = [sys.executable, str(BENCHMARKS / "faults.py"), "--folder", str(tmp_path / "faults"), "--json"]
    command += [str(tmp_path / "found.json"), "--only", "finetune", "--faults", "kill", "full"]
    command += ["--trials", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())["trials"]
    assert len(found) == 4 or "is left out" in done.stderr
    assert sum(trial["kills"] for trial in found) >= 1
    assert not any(trial["lost"] or trial["differing"] or trial["wrong"] for trial in found)
    assert "| finetune | kill | 2 |" in done.stdout


def test_estimates_are_held_against_what_work_took(tiny_folder):
    command = [
        sys.executable,
        str(BENCHMARKS / "estimates.py"),
        "--model",
        str(tiny_folder),
        "--steps",
        "2",
        "--rounds",
        "1",
    ]
    command += ["--rows", "16", "--set", "max_length=null"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    kinds = [row[0].strip() for row in table[2:]]
    assert kinds == [
        "align: align sft", "align: align booster", "finetune: finetune antibody", "audit: weigh", "evaluate: answer"
    ]  # fmt: skip
    assert all(float(estimate) >= 0 and float(took) >= 0 for *_, estimate, took, _ in table[2:])
