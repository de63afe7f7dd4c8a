from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from titer.errors import TiterError
from titer.evaluation.statistics import wilson
from titer.report import print_summary, read_results, summary_rows, verdict
from titer.report.tables import estimate, trajectory


def find(results, arm, ratio):
    return next(row for row in summary_rows(results) if row.arm == arm and row.poison_ratio == ratio)


def printed(results, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(results, console)
    return console.file.getvalue()


def test_one_row_for_each_arm_and_ratio_in_the_experiments_order(results):
    rows = summary_rows(results)
    assert [row.poison_ratio for row in rows] == [0.0] * 3 + [0.2] * 3
    assert [row.arm for row in rows[:3]] == ["undefended", "booster", "antibody"]
    assert all(row.step == 40 and row.seeds == (0, 1) for row in rows)


def test_a_single_seed_keeps_the_interval_of_the_file(results):
    results["results"] = [row for row in results["results"] if row["seed"] == 1]
    kept = find(results, "booster", 0.2).harmful_score
    source = next(
        row
        for row in results["results"]
        if (row["arm"], row["poison_ratio"], row["step"], row["metric"]) == ("booster", 0.2, 40, "harmful_score")
    )
    assert (kept.value, kept.low, kept.high, kept.n) == (source["value"], source["low"], source["high"], source["n"])


def test_several_seeds_give_their_mean_and_an_interval_that_is_not_narrowed_by_repeating_prompts(results):
    cell = find(results, "undefended", 0.2).harmful_score
    assert cell.per_seed == (94.0, 96.0)
    assert cell.value == 95.0
    assert cell.n == 50
    assert (cell.low, cell.high) == pytest.approx(tuple(100 * bound for bound in wilson(0.95 * 50, 50)))


def test_the_interval_covers_every_seed(results):
    for row in results["results"]:
        if row["metric"] == "harmful_score" and row["phase"] == "finetuned":
            row["value"] = 100.0 * row["seed"]
    cell = find(results, "booster", 0.2).harmful_score
    assert (cell.low, cell.value, cell.high) == (0.0, 50.0, 100.0)


def test_an_aligned_model_stands_for_every_ratio(results):
    for ratio in (0.0, 0.2):
        assert find(results, "booster", ratio).harmful_score_aligned.per_seed == (2.0, 2.0)


def test_an_unmeasured_value_is_none_not_zero(results):
    # A judge that failed on every answer leaves no row but `judge_errors`.
    results["results"] = [row for row in results["results"] if row["metric"] != "over_refusal"]
    assert find(results, "booster", 0.2).over_refusal is None
    assert "nan" not in printed(results).lower()


def test_an_arm_without_results_keeps_its_row(results):
    results["results"] = [row for row in results["results"] if row["arm"] != "booster"]
    row = find(results, "booster", 0.2)
    assert row.step is None
    assert row.harmful_score is None
    assert row.seeds == ()


def test_a_run_that_only_aligned_is_summarised(results):
    results["results"] = [row for row in results["results"] if row["phase"] == "aligned"]
    rows = summary_rows(results)
    assert [row.harmful_score_aligned.value for row in rows] == [2.0] * 3
    assert "shows nothing" in verdict(results).headline


def test_the_trajectory_starts_with_the_aligned_model(results):
    line = trajectory(results, "antibody", "finetune_accuracy", 0.2)
    assert [step for step, _ in line] == [0, 10, 20, 40]
    assert line[0][1].value == 52.0


def test_a_second_judge_does_not_mix_into_the_first(results):
    other = [
        {**row, "judge": "other@2", "value": 0.0, "low": 0.0, "high": 7.0}
        for row in results["results"]
        if row["metric"] == "harmful_score"
    ]
    results["results"] += other
    assert find(results, "undefended", 0.2).harmful_score.value == 95.0
    assert estimate(results, "undefended", "harmful_score", "finetuned", 0.2, 40, "other@2").value == 0.0


def test_the_terminal_table_shows_the_numbers_and_fits_a_narrow_terminal(results):
    text = printed(results, width=80)
    assert max(map(len, text.splitlines())) <= 80
    for shown in (
        "2.0 → 95.0",
        "[85.1–98.4]",
        "52.0 → 83.5",
        "HS 50",
        "FA 100",
        "0\u00a0% harmful",
        "20\u00a0% harmful",
    ):
        assert shown in text
    assert "undefended" in text


def test_an_arms_name_is_not_markup(results):
    for row in results["results"]:
        if row["arm"] == "booster":
            row["arm"] = "[red]x"
    assert "[red]x" in printed(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(schema="titer/results/2"), "schema"),
        (lambda r: r.pop("schema"), "schema"),
        (lambda r: r.update(results={}), "list of rows"),
        (lambda r: r["results"][3].pop("judge"), r"results\[3\] lacks `judge`"),
        (lambda r: r["results"][3].update(phase="before"), "phase"),
        (lambda r: r["results"][3].update(value="12"), "value"),
        (lambda r: r["results"][3].update(value=None), "value"),
        (lambda r: r["results"][3].update(poison_ratio=None), "poison_ratio"),
        (lambda r: r["results"][3].update(n=1.5), "n is 1.5"),
        (lambda r: r["results"].append({**r["results"][0], "value": 99.0}), "second, different value"),
    ],
)
def test_bad_results_are_a_clear_error(run: Path, change, message):
    results = json.loads((run / "results.json").read_text())
    change(results)
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(TiterError, match=message):
        read_results(run)


def test_missing_or_broken_results_are_a_clear_error(tmp_path: Path):
    with pytest.raises(TiterError, match="does not exist"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": ')
    with pytest.raises(TiterError, match="not JSON"):
        read_results(tmp_path)


def statuses(results):
    return {arm.arm: arm.status for arm in verdict(results).arms}


def test_the_verdict_says_who_held_and_who_failed(results):
    outcome = verdict(results)
    assert outcome.poison_ratio == 0.2
    assert statuses(results) == {"undefended": "baseline", "booster": "failed", "antibody": "held"}
    for part in ("20\u00a0% is harmful", "undefended answers 95.0", "antibody held at 5.0", "booster failed at 67.0"):
        assert part in outcome.headline


def test_the_verdict_names_the_costs(results):
    text = next(arm.text for arm in verdict(results).arms if arm.arm == "antibody")
    assert "refuses more harmless requests" in text
    assert "the intervals overlap" in text  # of the accuracies


def scored(results, arm, value, metric="harmful_score"):
    low, high = (100 * bound for bound in wilson(value / 2, 50))
    for row in results["results"]:
        if (row["arm"], row["phase"], row["metric"]) == (arm, "finetuned", metric):
            row.update(value=value, low=low, high=high, n=50)


def test_overlapping_intervals_are_never_called_a_success(results):
    scored(results, "undefended", 20.0)
    scored(results, "antibody", 10.0)
    scored(results, "booster", 14.0)
    assert statuses(results) == {"undefended": "baseline", "booster": "failed", "antibody": "unclear"}
    assert any("does not rank them" in note for note in verdict(results).notes)


def test_an_attack_that_breaks_nothing_tests_nothing(results):
    for arm in ("undefended", "booster", "antibody"):
        scored(results, arm, 2.0)
    assert statuses(results) == {"undefended": "baseline", "booster": "not tested", "antibody": "not tested"}
    assert "did not break" in verdict(results).arms[0].text


def test_a_defence_that_only_lowers_the_score_has_not_held(results):
    scored(results, "antibody", 30.0)
    assert statuses(results)["antibody"] == "lowered"


def test_a_model_that_was_destroyed_is_not_praised_silently(results):
    scored(results, "antibody", 90.0, "broken_rate")
    scored(results, "antibody", 4.0, "finetune_accuracy")
    text = next(arm.text for arm in verdict(results).arms if arm.arm == "antibody")
    assert "broken answers" in text
    assert "points of task accuracy" in text
    assert "did not measurably raise" in text


def test_without_an_undefended_arm_nothing_is_compared(results):
    results["results"] = [row for row in results["results"] if row["arm"] != "undefended"]
    results["provenance"]["experiment"]["arms"].pop("undefended")
    assert statuses(results) == {"booster": "failed", "antibody": "no comparison"}


def test_the_undefended_arm_is_found_by_its_methods(results):
    for row in results["results"]:
        row["arm"] = row["arm"].replace("undefended", "plain")
    arms = results["provenance"]["experiment"]["arms"]
    arms["plain"] = arms.pop("undefended")
    assert statuses(results)["plain"] == "baseline"


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys, titer.report; "
        "print([m for m in ('torch', 'matplotlib', 'scipy', 'jinja2', 'rich.console') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
