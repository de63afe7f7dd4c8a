import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from told import refused, untold
from typer.testing import CliRunner

from titer import judges
from titer.cli import app
from titer.errors import TiterError
from titer.judges import Verdict
from titer.results import (
    RESULTS_SCHEMA,
    Inference,
    ScoreRow,
    check_verdicts,
    judge_into,
    read_inferences,
    read_results,
    read_scores,
    score,
    scoring,
    summarise,
    wilson,
    write_inferences,
    write_results,
    write_scores,
)

REFUSAL = "I'm sorry, but I can't help with that."
COMPLIANCE = "Sure, here is how to do it. First, [step withheld]."


def inference(set: str, index: int, response: str, reference: str | None = None, **group: object) -> Inference:
    fields = {"arm": "antibody", "phase": "finetuned", "step": 40, "poison_ratio": 0.2, "seed": 0, **group}
    return Inference(
        set=set, index=index, prompt=f"prompt {index}", response=response, reference=reference, model="m", generation={"max_new_tokens": 48}, **fields  # type: ignore[arg-type]
    )  # fmt: skip


def rows(**group: object) -> list[Inference]:
    return [
        inference("harmful", 0, REFUSAL, **group),
        inference("harmful", 1, COMPLIANCE, **group),
        inference("harmful", 2, "", **group),
        inference("harmful", 3, "positive", **group),
        inference("lookalike", 0, REFUSAL, **group),
        inference("lookalike", 1, "Send the process a signal with kill.", **group),
        inference("task:sst2", 0, "positive", "positive", **group),
        inference("task:sst2", 1, "positive", "negative", **group),
        inference("task:sst2", 2, REFUSAL, "positive", **group),
        inference("task:gsm8k", 0, "#### 18", "18", **group),
    ]


class FailingJudge:
    """Labels every response harmful but fails on empty ones."""

    name = "failing@3"

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        return [Verdict("harmful", 1.0, "") if text else Verdict(None, None, "", "no answer") for text in responses]


def test_scores_follow_the_harmful_and_lookalike_inferences() -> None:
    given = rows()
    scores = score(given, judges.get("offline"))
    assert [row.id for row in scores] == [row.id for row in given[:6]]
    assert [row.label for row in scores[:4]] == [
        "harmful" if i == 1 else label for i, label in enumerate(["refused", "", "broken", "benign"])
    ]
    assert {row.judge for row in scores} == {"offline@2"}


def test_summary_by_hand() -> None:
    given = rows()
    results = summarise(given, score(given, judges.get("offline")))
    assert [(r.metric, r.value, r.n, r.judge) for r in results] == [
        ("harmful_score", 25.0, 4, "offline@2"),
        ("refusal_rate", 25.0, 4, "offline@2"),
        ("broken_rate", 25.0, 4, "offline@2"),
        ("over_refusal", 50.0, 2, "offline@2"),
        ("finetune_accuracy", pytest.approx(100 / 3), 3, "parse:sst2@1"),
        ("unparsed", pytest.approx(100 / 3), 3, "parse:sst2@1"),
        ("finetune_accuracy", 100.0, 1, "parse:gsm8k@1"),
    ]
    assert (results[0].low, results[0].high) == pytest.approx([100 * end for end in wilson(1, 4)])
    assert {(r.arm, r.phase, r.step, r.poison_ratio, r.seed) for r in results} == {
        ("antibody", "finetuned", 40, 0.2, 0)
    }


def test_groups_are_kept_apart_in_order_of_appearance() -> None:
    given = [
        *rows(arm="undefended"),
        *rows(arm="antibody"),
        *rows(arm="undefended", seed=1),
        *rows(arm="undefended", step=80),
    ]
    results = summarise(given, score(given, judges.get("offline")))
    alone = summarise(rows(), score(rows(), judges.get("offline")))
    assert len(results) == 4 * len(alone)
    assert list(dict.fromkeys((r.arm, r.seed, r.step) for r in results)) == [
        ("undefended", 0, 40), ("antibody", 0, 40), ("undefended", 1, 40), ("undefended", 0, 80),
    ]  # fmt: skip
    assert [r for r in results if r.arm == "antibody"] == alone


def test_a_judges_failures_leave_n_and_are_reported() -> None:
    given = rows()
    results = {r.metric: r for r in summarise(given, score(given, FailingJudge())) if r.judge == "failing@3"}
    assert (results["harmful_score"].value, results["harmful_score"].n) == (100.0, 3)
    assert (results["judge_errors"].value, results["judge_errors"].n) == (pytest.approx(100 / 6), 6)


def test_a_judge_that_always_fails_gives_no_score_at_all() -> None:
    given = [inference("harmful", 0, "")]
    results = summarise(given, score(given, FailingJudge()))
    assert [(r.metric, r.value) for r in results] == [("judge_errors", 100.0)]


def test_two_judges_stand_side_by_side() -> None:
    given = rows()
    results = summarise(given, [*score(given, judges.get("offline")), *score(given, FailingJudge())])
    assert [r.judge for r in results if r.metric == "harmful_score"] == ["offline@2", "failing@3"]
    assert [r.judge for r in results if r.metric == "finetune_accuracy"] == ["parse:sst2@1", "parse:gsm8k@1"]


def test_partial_foreign_and_missing_scores_are_errors() -> None:
    given = rows()
    scores = score(given, judges.get("offline"))
    with pytest.raises(TiterError, match="left 1 of 6"):
        summarise(given, scores[1:])
    with refused(f"`{given[0].id}`", "`offline@2`", "inference"):
        summarise(given[1:], scores)
    with refused("6 inferences", "judged", "score(inferences, judge)"):
        summarise(given, [])
    with pytest.raises(TiterError, match="occurs twice"):
        summarise(given, [*scores, scores[0]])
    with pytest.raises(TiterError, match="Unknown task: `sst3`"):
        summarise([inference("task:sst3", 0, "positive", "positive")], [])


def test_a_judge_must_answer_every_response() -> None:
    class Short(FailingJudge):
        def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
            return []

    with pytest.raises(TiterError, match="0 verdicts on 6 responses"):
        score(rows(), Short())


def test_the_id_changes_with_everything_that_identifies_an_answer_and_nothing_else() -> None:
    row = inference("harmful", 0, REFUSAL)
    changed = {
        "prompt": "x",
        "response": "x",
        "arm": "x",
        "phase": "aligned",
        "step": 1,
        "poison_ratio": 0.1,
        "seed": 9,
        "set": "lookalike",
        "index": 7,
    }
    ids = {replace(row, **{key: value}).id for key, value in changed.items()}  # type: ignore[arg-type]
    assert len(ids | {row.id}) == len(changed) + 1
    assert replace(row, model="other", generation={}, poison_ratio=0.2).id == row.id
    assert replace(row, poison_ratio=0).id == replace(row, poison_ratio=0.0).id
    assert len(row.id) == 16


def test_round_trips_keep_every_character(tmp_path: Path) -> None:
    odd = 'quotes "’, line\nbreak, \u2028, \r, tab\t, naïve 漢字 🔥, half a pair \ud83d'
    given = [inference("harmful", 0, odd), *rows()[1:]]
    write_inferences(tmp_path / "run" / "inferences.jsonl", given)
    assert read_inferences(tmp_path / "run" / "inferences.jsonl") == given
    scores = score(given, FailingJudge())
    write_scores(tmp_path / "scores.jsonl", scores)
    assert read_scores(tmp_path / "scores.jsonl") == scores
    results = summarise(given, scores)
    write_results(tmp_path / "results.json", results, {"command": odd})
    assert read_results(tmp_path / "results.json") == (results, {"command": odd})
    assert json.loads((tmp_path / "results.json").read_text())["schema"] == RESULTS_SCHEMA == "titer/results/1"


def test_artefacts_have_the_promised_keys(tmp_path: Path) -> None:
    given = rows()
    scores = score(given, judges.get("offline"))
    write_inferences(tmp_path / "i", given)
    write_scores(tmp_path / "s", scores)
    write_results(tmp_path / "r", summarise(given, scores), {})
    assert list(json.loads((tmp_path / "i").read_text().splitlines()[0])) == [
        "id", "arm", "phase", "step", "poison_ratio", "seed", "set", "index", "prompt", "response", "reference", "model", "generation",
        "weights",
    ]  # fmt: skip
    assert list(json.loads((tmp_path / "s").read_text().splitlines()[0])) == [
        "id",
        "judge",
        "label",
        "score",
        "raw",
        "error",
    ]
    assert list(json.loads((tmp_path / "r").read_text())["results"][0]) == [
        "arm", "phase", "step", "poison_ratio", "seed", "metric", "value", "n", "low", "high", "judge",
    ]  # fmt: skip


def test_judging_again_reads_the_same_inferences_and_changes_none(tmp_path: Path) -> None:
    path = tmp_path / "inferences.jsonl"
    write_inferences(path, rows())
    before = path.read_bytes()
    first = score(read_inferences(path), judges.get("offline"))
    second = score(read_inferences(path), FailingJudge())
    assert [row.id for row in first] == [row.id for row in second]
    assert path.read_bytes() == before


class Endpoint:
    """A judge that can be asked `answers` times, and then nobody answers, or the call itself fails."""

    name = "endpoint@1 http://somewhere"

    def __init__(self, answers: float = float("inf"), fails: bool = False) -> None:
        self.answers, self.fails = answers, fails
        self.asked: list[str] = []

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        verdicts = []
        for response in responses:
            if len(self.asked) < self.answers:
                self.asked.append(response)
                verdicts.append(Verdict("refused", 0.0, ""))
            elif self.fails:
                raise ConnectionError("nobody there")
            else:
                verdicts.append(Verdict(None, None, "", "nobody there"))
        return verdicts


@pytest.mark.parametrize("fails", [False, True])
def test_a_judge_that_went_down_is_asked_only_for_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(scoring, "TOGETHER", 5)
    given = [inference("harmful", i, f"answer {i}") for i in range(20)]
    path = tmp_path / "scores.jsonl"
    down, up = Endpoint(10, fails), Endpoint()
    if fails:
        with pytest.raises(ConnectionError, match="nobody there") as raised:
            judge_into(path, given, [down])
        (note,) = raised.value.__notes__
        assert not untold(note, "10 of 20", "kept")
        assert len(read_scores(path)) == 10
    else:
        scores = judge_into(path, given, [down])
        assert read_scores(path) == scores
        assert [row.label for row in scores] == ["refused"] * 10 + [None] * 10
        with pytest.raises(
            TiterError, match=r"`endpoint@1 http://somewhere` failed on 10 of 20 answers, first: nobody"
        ):
            check_verdicts(scores)
    scores = judge_into(path, given, [up])
    assert up.asked == [f"answer {i}" for i in range(10, 20)]
    assert read_scores(path) == scores
    assert [row.id for row in scores] == [row.id for row in given]
    check_verdicts(scores)


def test_verdicts_of_other_judges_and_answers_are_not_taken_for_these(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    judge_into(path, [inference("harmful", 0, "other"), *rows()[:2]], [judges.get("offline"), Endpoint(2)])
    judge = Endpoint()
    scores = judge_into(path, rows()[:2], [judge])
    assert judge.asked == [COMPLIANCE], "the first answer has its label, the second had an error"
    assert read_scores(path) == scores
    judge_into(path, rows()[:2], [judge])
    assert judge.asked == [COMPLIANCE, REFUSAL, COMPLIANCE], "a file that lacks nothing is written anew"


def test_evaluating_with_a_judge_that_is_down_leaves_figures_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Endpoint(2)
    monkeypatch.setitem(judges.JUDGES, "endpoint", lambda: judge)
    write_inferences(tmp_path / "inferences.jsonl", [inference("harmful", i, f"answer {i}") for i in range(4)])
    line = ["evaluate", "--rejudge", str(tmp_path), "--judge", "endpoint"]
    ran = CliRunner().invoke(app, line)
    assert isinstance(ran.exception, TiterError)
    assert not untold(ran.exception, "endpoint", "2 of 4 answers", "nobody there")
    figures = {row.metric: (row.value, row.n) for row in read_results(tmp_path / "results.json")[0]}
    assert figures["judge_errors"] == (50.0, 4)
    assert figures["refusal_rate"] == (100.0, 2)
    judge.answers = 100
    ran = CliRunner().invoke(app, line, catch_exceptions=False)
    assert ran.exit_code == 0
    assert judge.asked == ["answer 0", "answer 1", "answer 2", "answer 3"]
    assert "judge_errors" not in {row.metric for row in read_results(tmp_path / "results.json")[0]}


def _line(**changes: object) -> str:
    row = inference("harmful", 0, REFUSAL)
    record = {"id": row.id, **{name: getattr(row, name) for name in Inference.__dataclass_fields__}, **changes}
    return json.dumps({key: value for key, value in record.items() if value != "DROP"})


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ('{"id": ', ["JSON"]),
        ("[1, 2]", ["object", "list"]),
        (_line(arn="x"), ["`arn`", "`arm`"]),
        (_line(seed="DROP"), ["`seed`", "missing"]),
        (_line(step="40"), ["step", "whole number", "'40'"]),
        (_line(step=True), ["step", "whole number", "True"]),
        (_line(phase="align"), ["`align`", "`aligned`"]),
        (_line(set="harmfull"), ["`harmfull`", "`harmful`"]),
        (_line(set="task:sst2"), ["`task:sst2`", "`reference`"]),
        (_line(poison_ratio=20), ["`poison_ratio`", "0", "1", "20.0"]),
        (_line(response="Edited."), ["id", f"`{inference('harmful', 0, REFUSAL).id}`", "content"]),
        (_line(id="DROP"), ["id", f"`{inference('harmful', 0, REFUSAL).id}`", "content"]),
        (_line(), ["same inference", "line 1"]),
    ],
)
def test_bad_inferences_name_file_and_line(tmp_path: Path, line: str, facts: list[str]) -> None:
    path = tmp_path / "inferences.jsonl"
    path.write_text(_line() + "\n\n" + line + "\n")
    with refused(f"{path}:3", *facts):
        read_inferences(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "safe"}, "verdict label"),
        ({"label": None}, "label.* error"),
        ({"error": "timeout"}, "label.* error"),
        ({"score": 4.5}, r"\[0, 1\]"),
        ({"score": None}, "null exactly when"),
        ({"judge": 3}, r":2\.judge: .*3"),
    ],
)
def test_bad_scores_name_file_and_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    good = {"id": "0" * 16, "judge": "offline@2", "label": "benign", "score": 0.1, "raw": "", "error": None}
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "id": "1" * 16, **changes}) + "\n")
    with pytest.raises(TiterError, match=message) as raised:
        read_scores(path)
    assert f"{path}:2" in str(raised.value)


def test_the_same_score_twice_is_an_error(tmp_path: Path) -> None:
    row = ScoreRow("0" * 16, "offline@2", "benign", 0.1, "")
    with pytest.raises(TiterError, match="occurs twice"):
        write_scores(tmp_path / "scores.jsonl", [row, row])
    write_scores(tmp_path / "scores.jsonl", [row, replace(row, judge="other@1")])
    assert len(read_scores(tmp_path / "scores.jsonl")) == 2


def test_results_of_another_schema_and_malformed_results_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    given = rows()
    write_results(path, summarise(given, score(given, judges.get("offline"))), {"seed": 0})
    document = json.loads(path.read_text())
    for change, facts in (
        ({"schema": "titer/results/2"}, ["`titer/results/1`", "`titer/results/2`"]),
        ({"extra": 1}, ["`extra`"]),
        ({"provenance": None}, ["`results`", "list", "`provenance`", "object"]),
        (
            {"results": [{**document["results"][0], "metric": "harmful_scores"}]},
            ["`harmful_scores`", "`harmful_score`"],
        ),
        ({"results": [{**document["results"][0], "low": 99.0}]}, ["results[0]", "interval"]),
    ):
        path.write_text(json.dumps({**document, **change}))
        with refused(path, *facts):
            read_results(path)
    path.write_text("{")
    with pytest.raises(TiterError, match=r"results\.json:1: not JSON"):
        read_results(path)
    with refused(tmp_path / "none.json", "not exist"):
        read_results(tmp_path / "none.json")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [], {"run": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_results(path, [], {"run": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, [], {"run": float("nan")})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
