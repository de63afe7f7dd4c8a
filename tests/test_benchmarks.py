"""The benchmark scripts run on the tiny model and say what they should; nothing here is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
APART = ("common", "calibration")
"""Scripts that compare no times; `tests/assay/test_calibration.py` runs the second."""


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in APART))
def test_quick_run_gives_ratios(name):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--rounds", "1", "--json", "-"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
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
