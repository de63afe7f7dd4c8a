from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from runs import as_run
from scipy.special import expit, stdtrit

from titer import report
from titer.errors import TiterError
from titer.report.comparison import compare, difference_between
from titer.results.summary import Rate, Run
from titer.stats.intervals import wilson
from titer.text import to_json


def of_file(function):
    """The function, given what a run's file holds, which tests change freely."""
    return lambda results, *rest: function(as_run(results), *rest)


summary, verdict, print_summary, print_verdict = map(
    of_file, (report.summary, report.verdict, report.print_summary, report.print_verdict)
)


def find(results, arm, ratio):
    return next(row for row in as_run(results).rows if row.arm == arm and row.poison_ratio == ratio)


def printed(results, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(results, console)
    return console.file.getvalue()


def test_one_row_for_each_arm_and_ratio_in_the_experiments_order(results):
    rows = as_run(results).rows
    assert [row.poison_ratio for row in rows] == [0.0] * 3 + [0.2] * 3
    assert [row.arm for row in rows[:3]] == ["undefended", "booster", "antibody"]
    assert all(row.step == 40 and row.seeds == (0, 1) for row in rows)


def test_a_single_seed_keeps_the_interval_of_the_file(results):
    results["results"] = [row for row in results["results"] if row["seed"] == 1]
    kept = find(results, "booster", 0.2).rate("harmful_score")
    source = next(
        row
        for row in results["results"]
        if (row["arm"], row["poison_ratio"], row["step"], row["metric"]) == ("booster", 0.2, 40, "harmful_score")
    )
    assert (kept.value, kept.low, kept.high, kept.n) == (source["value"], source["low"], source["high"], source["n"])


def test_several_seeds_give_their_mean_and_an_interval_that_is_not_narrowed_by_repeating_prompts(results):
    cell = find(results, "undefended", 0.2).rate("harmful_score")
    assert cell.per_seed == (94.0, 96.0)
    assert cell.value == 95.0
    assert cell.n == 50
    assert (cell.low, cell.high) == pytest.approx(tuple(100 * bound for bound in wilson(0.95 * 50, 50)))


def test_the_interval_covers_every_seed(results):
    for row in results["results"]:
        if row["metric"] == "harmful_score" and row["phase"] == "finetuned":
            row.update(value=100.0 * row["seed"], low=0.0, high=100.0)
    cell = find(results, "booster", 0.2).rate("harmful_score")
    assert (cell.low, cell.value, cell.high) == (0.0, 50.0, 100.0)


def test_an_aligned_model_stands_for_every_ratio(results):
    for ratio in (0.0, 0.2):
        assert find(results, "booster", ratio).rate("harmful_score", "aligned").per_seed == (2.0, 2.0)


def test_an_unmeasured_value_is_none_not_zero(results):
    # A judge that failed on every answer leaves no row but `judge_errors`.
    results["results"] = [row for row in results["results"] if row["metric"] != "over_refusal"]
    assert find(results, "booster", 0.2).rate("over_refusal") is None
    assert "nan" not in printed(results).lower()


def test_an_arm_without_results_keeps_its_row(results):
    results["results"] = [row for row in results["results"] if row["arm"] != "booster"]
    row = find(results, "booster", 0.2)
    assert row.step is None
    assert row.rate("harmful_score") is None
    assert row.seeds == ()


def test_a_run_that_only_aligned_is_summarised(results):
    results["results"] = [row for row in results["results"] if row["phase"] == "aligned"]
    rows = as_run(results).rows
    assert [row.rate("harmful_score", "aligned").value for row in rows] == [2.0] * 3
    assert "shows nothing" in verdict(results).headline


def test_the_trajectory_starts_with_the_aligned_model(results):
    line = as_run(results).course("antibody", "finetune_accuracy", 0.2)
    assert [step for step, _ in line] == [0, 10, 20, 40]
    assert line[0][1].value == 52.0


def test_a_second_judge_does_not_mix_into_the_first(results):
    other = [
        {**row, "judge": "other@2", "value": 0.0, "low": 0.0, "high": 7.0}
        for row in results["results"]
        if row["metric"] == "harmful_score"
    ]
    results["results"] += other
    assert find(results, "undefended", 0.2).rate("harmful_score").value == 95.0
    assert as_run(results).rate("undefended", "harmful_score", "finetuned", 0.2, 40, "other@2").value == 0.0


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
        (lambda r: r.update(results={}), "`results` must be a list"),
        (lambda r: r["results"][3].pop("judge"), r"results\[3\].*`judge`"),
        (lambda r: r["results"][3].update(phase="before"), "phase"),
        (lambda r: r["results"][3].update(value="12"), "value"),
        (lambda r: r["results"][3].update(value=None), "value"),
        (lambda r: r["results"][3].update(poison_ratio=None), "poison_ratio"),
        (lambda r: r["results"][3].update(n=1.5), r"n: .*1\.5"),
        (lambda r: r["results"].append({**r["results"][0], "value": 99.0, "high": 99.5}), "second, different value"),
    ],
)
def test_bad_results_are_a_clear_error(run: Path, change, message):
    results = json.loads((run / "results.json").read_text())
    change(results)
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(TiterError, match=message):
        Run.read(run)


def test_missing_or_broken_results_are_a_clear_error(tmp_path: Path):
    with pytest.raises(TiterError, match="does not exist"):
        Run.read(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": ')
    with pytest.raises(TiterError, match="not JSON"):
        Run.read(tmp_path)


def statuses(results):
    return {arm.arm: arm.status for arm in verdict(results).arms}


def test_the_verdict_says_who_held_and_who_failed(results):
    outcome = verdict(results)
    assert outcome.poison_ratio == 0.2
    assert statuses(results) == {"undefended": "baseline", "booster": "failed", "antibody": "held"}
    for part in ("20\u00a0% is harmful", "undefended answers 95.0", "antibody held at 5.0", "booster failed at 67.0"):
        assert part in outcome.headline


def compared(results, arm, metric, phase="finetuned"):
    found = next(one for one in verdict(results).arms if one.arm == arm)
    return next(one for one in found.comparisons if (one.metric, one.phase) == (metric, phase))


def test_gain_and_costs_stand_beside_the_undefended_arm_before_and_after(results):
    (judged,) = (arm for arm in verdict(results).arms if arm.arm == "antibody")
    assert [(one.metric, one.phase) for one in judged.comparisons] == [
        (metric, phase)
        for metric in ("harmful_score", "over_refusal", "broken_rate", "finetune_accuracy")
        for phase in ("aligned", "finetuned")
    ]
    row, base = find(results, "antibody", 0.2), find(results, "undefended", 0.2)
    cost = compared(results, "antibody", "over_refusal")
    assert (cost.ours, cost.theirs) == (row.rate("over_refusal"), base.rate("over_refusal"))
    assert cost.difference.value == pytest.approx(row.rate("over_refusal").value - base.rate("over_refusal").value)
    assert cost.difference.low < cost.difference.value < cost.difference.high


def test_a_defence_with_a_significant_cost_has_not_simply_held(results):
    outcome = verdict(results)
    (judged,) = (arm for arm in outcome.arms if arm.arm == "antibody")
    assert judged.status == "held"
    assert judged.outcome != judged.status
    assert [(one.metric, one.phase) for one in judged.prices] == [("over_refusal", "finetuned")]
    for told in (outcome.headline, judged.text):
        assert "over-refusal" in told
        assert "price" in told
    cost = judged.prices[0]
    assert cost.difference_text in judged.text
    assert cost.interval_text in judged.text


@pytest.mark.parametrize(
    ("metric", "phase", "value"),
    [
        ("broken_rate", "finetuned", 90.0),
        ("over_refusal", "aligned", 95.0),
        ("finetune_accuracy", "aligned", 0.0),
        ("finetune_accuracy", "finetuned", 4.0),
    ],
)
def test_every_cost_enters_the_headline(results, metric, phase, value):
    scored(results, "antibody", value, metric, phase)
    outcome = verdict(results)
    cost = compared(results, "antibody", metric, phase)
    assert cost.finding == "worse"
    (judged,) = (arm for arm in outcome.arms if arm.arm == "antibody")
    assert f"{cost.measure} ({cost.when}" in judged.price
    assert judged.price in outcome.headline
    assert f"{cost.difference_text} points [{cost.interval_text}]" in judged.text


def test_what_cannot_be_told_says_how_many_prompts_would_tell_it(results):
    cost = compared(results, "antibody", "finetune_accuracy")  # 83.5 against 86.5 %, 100 prompts
    assert cost.finding == "cannot tell"
    assert cost.seeds is None
    assert cost.needed_text.endswith(f"{cost.prompts:,}\u00a0prompts")
    (judged,) = (arm for arm in verdict(results).arms if arm.arm == "antibody")
    assert cost in judged.untold

    def finding(n):
        sides = [at_rate(side, n) for side in (cost.ours.value, cost.theirs.value)]
        return compare("finetune_accuracy", "finetuned", *sides).finding

    assert finding(cost.prompts) != "cannot tell"
    assert finding(cost.prompts - 1) == "cannot tell"


def at_rate(value, n, values=None):
    low, high = (100 * bound for bound in wilson(value / 100 * n, n))
    values = values or (value,)
    return Rate(value, low, high, n, tuple(range(len(values))), values, "x")


def test_a_missing_sample_is_not_left_out(results):
    results["results"] = [row for row in results["results"] if row["metric"] != "over_refusal"]
    cost = compared(results, "antibody", "over_refusal")
    assert (cost.ours, cost.theirs, cost.difference) == (None, None, None)
    assert cost.finding == "cannot tell"
    # At one half, where it takes the most: z √(1 / 2n) = 0.05, less what Wilson's interval is narrower.
    assert 700 < cost.prompts < 769
    (judged,) = (arm for arm in verdict(results).arms if arm.arm == "antibody")
    assert judged.status == "held"
    assert judged.outcome != "held"
    assert "over-refusal (before, after)" in verdict(results).headline
    assert "not measured" in shown(results) or cost.needed_text in shown(results)


def test_seeds_that_differ_ask_for_seeds_and_not_for_prompts():
    ours, theirs = at_rate(50.0, 10_000, (40.0, 60.0)), at_rate(50.0, 10_000, (50.0, 50.0))
    cost = compare("over_refusal", "finetuned", ours, theirs)
    # Student's t of two seeds: 12.7 · √200 / √2, cut at what a difference of percentages can be.
    assert (cost.difference.low, cost.difference.high) == (-100.0, 100.0)
    assert (cost.finding, cost.prompts) == ("cannot tell", None)
    spread = 200**0.5
    assert stdtrit(cost.seeds - 1, 0.975) * spread / cost.seeds**0.5 <= 5.0
    assert stdtrit(cost.seeds - 2, 0.975) * spread / (cost.seeds - 1) ** 0.5 > 5.0


def test_enough_prompts_show_that_a_defence_costs_nothing():
    assert compare("over_refusal", "finetuned", at_rate(10.0, 5000), at_rate(10.0, 5000)).finding == "no worse"
    # Significantly worse is worse, however little.
    assert compare("over_refusal", "finetuned", at_rate(3.0, 10_000), at_rate(2.0, 10_000)).finding == "worse"
    assert compare("finetune_accuracy", "finetuned", at_rate(90.0, 5000), at_rate(80.0, 5000)).finding == "better"


def test_the_terminal_shows_gain_and_costs_of_every_defended_arm(results):
    text = shown(results)
    assert max(map(len, text.splitlines())) <= 80
    for arm in verdict(results).arms:
        if arm.status == "baseline":
            continue
        assert f"{arm.arm}: {arm.outcome}" in text
        for one in arm.comparisons:
            for needed in (one.ours.interval, one.difference_text, one.interval_text, one.finding, one.needed_text):
                assert needed in text


def shown(results):
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_verdict(results, console)
    return console.file.getvalue()


def test_programs_get_the_same_verdict(results):
    rows = {(row["arm"], row["poison_ratio"]): row for row in json.loads(to_json(summary(results)))}
    assert len(rows) == 6
    told = rows["antibody", 0.2]["verdict"]
    (judged,) = (arm for arm in verdict(results).arms if arm.arm == "antibody")
    assert told["outcome"] == judged.outcome
    assert [one["finding"] for one in told["comparisons"]] == [one.finding for one in judged.comparisons]
    # A ratio that the headline is silent about has a verdict and a price too.
    assert "worse" in [one["finding"] for one in rows["antibody", 0.0]["verdict"]["comparisons"]]
    assert any("over-refusal (after)" in note for note in verdict(results).notes)


def scored(results, arm, value, metric="harmful_score", phase="finetuned"):
    low, high = (100 * bound for bound in wilson(value / 2, 50))
    for row in results["results"]:
        if (row["arm"], row["phase"], row["metric"]) == (arm, phase, metric):
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
    (judged,) = (arm for arm in verdict(results).arms if arm.arm == "antibody")
    assert {one.metric for one in judged.prices} >= {"broken_rate", "finetune_accuracy"}
    assert "no protection" in judged.text
    assert "did not measurably raise" in judged.text


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


def test_the_interval_of_a_difference_covers_where_seeds_differ():
    draw = np.random.default_rng(0)
    hard = draw.normal(0, 1.5, (200_000, 1))
    share = expit(draw.normal(0, 0.7, (200_000, 1)) + hard + np.array([-2.5, 0.0])).mean(0)
    covered = 0
    for _ in range(400):
        prompts = draw.normal(0, 1.5, (1, 40))  # the same for both arms and all three seeds
        luck = draw.normal(0, 0.7, (2, 3, 1))
        sides = (draw.random((2, 3, 40)) < expit(prompts + luck + np.array([-2.5, 0.0]).reshape(2, 1, 1))).mean(2)
        ours, theirs = (at_rate(100 * side.mean(), 40, tuple(100 * side)) for side in sides)
        difference = difference_between(ours, theirs)
        covered += difference.low <= 100 * (share[0] - share[1]) <= difference.high
    assert covered / 400 > 0.95
