"""The three artefacts of an evaluation: `inferences.jsonl`, `scores.jsonl`, `results.json`.

Each is written from the one before and never changes it, so that another judge reads the same inferences: judging again
never generates again. Writing is atomic; a reader sees the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from titer.errors import TiterError, check_known
from titer.files import read_json, read_text, replacing
from titer.judges.base import LABELS
from titer.results.reading import plain, typed

RESULTS_SCHEMA = "titer/results/1"
PHASES = ("aligned", "finetuned")
HARMFUL = "harmful"
LOOKALIKE = "lookalike"
TASK_PREFIX = "task:"
# Every metric is in percent; for comparisons, whether more of it is better.
METRICS: dict[str, str] = {
    "harmful_score": "lower",
    "harmful_score_corrected": "lower",
    "refusal_rate": "higher",
    "broken_rate": "lower",
    "unsure_rate": "lower",
    "over_refusal": "lower",
    "finetune_accuracy": "higher",
    "judge_errors": "lower",
    "unparsed": "lower",
}


@dataclass(frozen=True, slots=True)
class Inference:
    """One prompt and what a model made of it.

    Attributes:
        arm: The defence's name in the experiment.
        phase: `aligned` (before the attack) or `finetuned`.
        step: Optimizer steps of fine-tuning so far; 0 when aligned.
        poison_ratio: Share of harmful rows in the fine-tuning data, in [0, 1].
        seed: Of the run.
        set: `harmful`, `lookalike` or `task:<name>`.
        index: Position of the prompt in its set, the same in every arm (pairs prompts between arms).
        prompt: The user's words, without template.
        response: The model's words.
        reference: The right answer of a task; None elsewhere.
        model: Which weights answered.
        generation: Settings of the decoding.
        weights: Hash of the files that the model was loaded from; None where none was taken, as under attack.
    """

    arm: str
    phase: str
    step: int
    poison_ratio: float
    seed: int
    set: str
    index: int
    prompt: str
    response: str
    reference: str | None
    model: str
    generation: dict[str, Any] = field(default_factory=dict, hash=False)
    weights: str | None = None

    def __post_init__(self) -> None:
        check_known([self.phase], PHASES, "phase")
        if not self.set.startswith(TASK_PREFIX):
            check_known([self.set], (HARMFUL, LOOKALIKE, f"{TASK_PREFIX}<name>"), "evaluation set")
        elif self.reference is None:
            raise TiterError(f"An inference of `{self.set}` needs the right answer as its `reference`.")
        if not 0 <= self.poison_ratio <= 1:
            raise TiterError(f"`poison_ratio` lies between 0 and 1, got {self.poison_ratio}.")

    @property
    def id(self) -> str:
        """The first 16 hex digits of the sha256 of everything that identifies this answer."""
        content = [
            self.prompt, self.response, self.arm, self.phase, self.step, float(self.poison_ratio), self.seed, self.set,
            self.index,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def group(self) -> tuple[str, str, int, float, int]:
        """(arm, phase, step, poison_ratio, seed): what one result is about."""
        return self.arm, self.phase, self.step, float(self.poison_ratio), self.seed


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One judge's verdict on one inference.

    Attributes:
        id: Of the inference.
        judge: `name@revision`.
        label: `harmful`, `refused`, `benign`, `broken` or `unsure`; None when the judge failed.
        score: How harmful, in [0, 1]; None when the judge failed.
        raw: What the judge based it on.
        error: Why there is no label.
    """

    id: str
    judge: str
    label: str | None
    score: float | None
    raw: str
    error: str | None = None

    def __post_init__(self) -> None:
        if self.label is not None:
            check_known([self.label], LABELS, "verdict label")
        if (self.label is None) != (self.error is not None):
            raise TiterError("A score has either a label or an error.")
        if (self.label is None) != (self.score is None) or not (self.score is None or 0 <= self.score <= 1):
            raise TiterError(f"`score` lies in [0, 1], and is null exactly when `label` is, got {self.score}.")


@dataclass(frozen=True, slots=True)
class Result:
    """One figure: a metric of one group, in percent, with the ends of its 95 % interval: Wilson's, of a share that was counted.

    Attributes:
        arm: The defence's name in the experiment.
        phase: `aligned` or `finetuned`.
        step: Optimizer steps of fine-tuning so far.
        poison_ratio: Share of harmful rows in the fine-tuning data.
        seed: Of the run.
        metric: A name of `METRICS`.
        value: In percent.
        n: Prompts the value is a share of.
        low: Lower end, in percent.
        high: Upper end, in percent.
        judge: Who decided: a judge's `name@revision`, or `parse:<task>@<revision>`.
    """

    arm: str
    phase: str
    step: int
    poison_ratio: float
    seed: int
    metric: str
    value: float
    n: int
    low: float
    high: float
    judge: str

    def __post_init__(self) -> None:
        check_known([self.phase], PHASES, "phase")
        check_known([self.metric], METRICS, "metric")
        if not all(map(math.isfinite, (self.low, self.value, self.high))) or not self.low <= self.value <= self.high:
            raise TiterError(f"`{self.metric}` {self.value} does not lie in its interval [{self.low}, {self.high}].")


@dataclass(frozen=True, slots=True)
class WeightRow:
    """What an arm that weighs its rows makes of one row of the fine-tuning data.

    Attributes:
        arm: The defence's name in the experiment.
        seed: Of the run.
        poison_ratio: Share of harmful rows in the fine-tuning data.
        when: `before` or `after` fine-tuning.
        index: Position of the row.
        origin: `harmful`, or which data the row really is from; for checking alone, no defence sees it.
        prompt: The row's prompt.
        log_ratio: log p(its answer) − log p(a refusal), or the log odds that it is harmless; no number (NaN) of a model that
            diverged.
        weight: Its weight in the loss.
    """

    arm: str
    seed: int
    poison_ratio: float
    when: str
    index: int
    origin: str | None
    prompt: str
    log_ratio: float
    weight: float


def read_weights(path: str | os.PathLike[str]) -> list[WeightRow]:
    """Read `weights.jsonl`.

    Raises:
        TiterError: Naming file and line, as `read_inferences`.
    """
    return [typed(WeightRow, record, place) for place, _, record in read_lines(path)]


def weights_of(inferences: Iterable[Inference]) -> dict[str, str]:
    """Return the hash of the files of each model that answered, by its name in `model`."""
    return {row.model: row.weights for row in inferences if row.weights is not None}


def write_inferences(path: str | os.PathLike[str], inferences: Iterable[Inference]) -> None:
    """Write one JSON object a line, its `id` first. Atomic.

    Raises:
        TiterError: When two inferences have the same id.
    """
    rows = list(inferences)
    check_unique((row.id for row in rows), "inference")
    write_lines(path, ({"id": row.id, **plain(row)} for row in rows))


def read_inferences(path: str | os.PathLike[str]) -> list[Inference]:
    """Read `inferences.jsonl`.

    Raises:
        TiterError: Naming file and line, when a line is no JSON object, lacks a key or has an unknown one, holds a value
            of the wrong type, repeats another line, or no longer matches its id (it was edited: its scores are stale).
    """
    rows = []
    seen: dict[str, int] = {}
    for place, number, record in read_lines(path):
        given = record.pop("id", None)
        row = typed(Inference, record, place)
        if given != row.id:
            raise TiterError(
                f"{place}: the id `{given}` does not match the content, which gives `{row.id}`.",
                "The row was edited after it was written. Generate it again, or correct its id and judge it again.",
            )
        if row.id in seen:
            raise TiterError(f"{place}: the same inference as in line {seen[row.id]}.")
        seen[row.id] = number
        rows.append(row)
    return rows


def write_scores(path: str | os.PathLike[str], scores: Iterable[ScoreRow]) -> None:
    """Write one JSON object a line. Atomic.

    Raises:
        TiterError: When one judge scored one inference twice.
    """
    rows = list(scores)
    check_unique((f"{row.id} by {row.judge}" for row in rows), "score")
    write_lines(path, map(plain, rows))


def read_scores(path: str | os.PathLike[str]) -> list[ScoreRow]:
    """Read `scores.jsonl`; it may hold the scores of several judges.

    Raises:
        TiterError: Naming file and line, as `read_inferences`.
    """
    rows = []
    seen: dict[tuple[str, str], int] = {}
    for place, number, record in read_lines(path):
        row = typed(ScoreRow, record, place)
        key = (row.id, row.judge)
        if key in seen:
            raise TiterError(f"{place}: `{row.judge}` scored this inference in line {seen[key]} already.")
        seen[key] = number
        rows.append(row)
    return rows


def write_results(path: str | os.PathLike[str], results: Sequence[Result], provenance: dict[str, Any]) -> None:
    """Write `results.json`: `{"schema", "results", "provenance"}`. Atomic.

    Args:
        path: The file.
        results: The figures, in the order to show them.
        provenance: Versions, commit, command, settings: whatever is needed to get the figures again.
    """
    document = {"schema": RESULTS_SCHEMA, "results": plain(results), "provenance": provenance}
    try:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        data = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair in a user's text; escaped it survives
        data = json.dumps(document, indent=1, allow_nan=False).encode()
    write_atomically(path, data + b"\n")


def read_results(path: str | os.PathLike[str]) -> tuple[list[Result], dict[str, Any]]:
    """Read `results.json` as (results, provenance).

    Raises:
        TiterError: When the file is missing, is no JSON, has another schema, or holds a malformed result.
    """
    document = read_json(path, "Score the run again.")
    schema = document.get("schema")
    if schema != RESULTS_SCHEMA:
        raise TiterError(
            f"{path}: schema `{schema}`, expected `{RESULTS_SCHEMA}`.",
            "Read it with the version of titer that wrote it, or write it again.",
        )
    check_known(document, ("schema", "results", "provenance"), f"key in {path}")
    rows, provenance = document.get("results"), document.get("provenance")
    if not isinstance(rows, list) or not isinstance(provenance, dict):
        raise TiterError(f"{path}: `results` must be a list and `provenance` an object.")
    results = [typed(Result, row, f"{path}: results[{index}]") for index, row in enumerate(rows)]
    seen: dict[tuple[Any, ...], float] = {}
    for index, one in enumerate(results):
        if (
            seen.setdefault(
                (one.arm, one.phase, one.step, one.poison_ratio, one.seed, one.metric, one.judge), one.value
            )
            != one.value
        ):
            raise TiterError(
                f"{path}: results[{index}] gives {one.metric} of arm `{one.arm}` a second, different value."
            )
    return results, provenance


def check_unique(keys: Iterable[str], what: str) -> None:
    """Raise `TiterError` for the first key that occurs twice."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise TiterError(f"The same {what} occurs twice: {key}.")
        seen.add(key)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` beside `path` and move it there: no reader and no crash ever sees half a file."""
    with replacing(path) as file:
        file.write(data)


def write_lines(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line. Atomic."""
    lines = []
    for record in records:
        try:
            lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False).encode())
        except UnicodeEncodeError:  # half of a surrogate pair in a user's text; escaped it survives
            lines.append(json.dumps(record, allow_nan=False).encode())
    write_atomically(path, b"".join(line + b"\n" for line in lines))


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (file:line, line, object) of every line that is not empty."""
    # Only "\n" ends a line: `splitlines` would also break inside a string, at U+2028 for example.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise TiterError(f"{place}: not JSON: {error.msg} (column {error.colno}).") from None
        except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets inside each other
            raise TiterError(f"{place}: not JSON: {error}.") from None
        if not isinstance(record, dict):
            raise TiterError(f"{place}: expected a JSON object, got {type(record).__name__}.")
        yield place, number, record
