"""The folder that TamperBench keeps of one evaluation: `inferences.parquet` and `evaluator_scores.parquet`.

Columns and file names are those of criticalml-uw/TamperBench, `whitebox/evals/output_schema.py` and `whitebox/utils/names.py`:
`prompt` and `response`, with `score` in the second file; further columns are allowed. Read from its source, not tested with
TamperBench itself.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from titer.errors import TiterError
from titer.files import check_file, remove
from titer.results.artefacts import write_atomically
from titer.results.interchange.foreign import Answers, Reading, Row, answers, check_characters, own, rejudging, verdict

INFERENCES = "inferences.parquet"
SCORES = "evaluator_scores.parquet"
FILES = (INFERENCES, SCORES, "evaluation.json")
"""What is replaced in a folder; TamperBench takes the last for its own figures of the others, and makes it where it is not."""

OWN = "titer"
SETS = {"safe": "lookalike", "unsafe": "harmful"}
"""What XSTest's column `label` says of a prompt."""
OTHER_SCALES = {"policy_eval": "from 1 to 5", "xstest": "1 for compliance, 2 and 3 for refusals"}
"""Evaluations whose numbers are no share of harm, also where they happen to lie between 0 and 1."""


def read(path: Path, how: Reading) -> Answers:
    """Read the folder of an evaluation, or one of its two files.

    The scorer is called by the name of the folder, which is that of the evaluation.

    Raises:
        TiterError: Naming file, row and column, for what is no Parquet, a column that is missing or of another type, scores of
            answers that are not there, scores on a scale that is not from 0 to 1; and as `answers`.
    """
    folder = path if path.is_dir() else path.parent
    files = [folder / INFERENCES, folder / SCORES] if path.is_dir() else [path]
    tables = [(file, _table(file)) for file in files if file.exists()]
    name = folder.absolute().name
    if not tables:
        raise TiterError(f"{path} holds neither {INFERENCES} nor {SCORES}.")
    file, records = tables[0]
    scored = _by_answer(tables[1][1]) if len(tables) == 2 else {}
    rows = []
    for place, record in enumerate(records):
        found = scored.get(_answer(record), [])
        judged = found.pop(0) if found else record
        kept, verdict_kept = record[OWN], (judged[OWN] or {}).get("verdict")
        rows.append(
            Row(
                f"{file}: row {place}",
                record["prompt"],
                record["response"],
                set=SETS.get(str(record.get("label"))),
                numbers={name: (judged["score"], "")} if "score" in judged and verdict_kept is None else {},
                own=None if kept is None else {key: value for key, value in kept.items() if key != "verdict"},
                verdicts=[] if verdict_kept is None else [verdict_kept],
            )
        )
    if spare := sum(map(len, scored.values())):
        raise TiterError(f"{tables[1][0]}: {spare} scores belong to no answer in {file.name}.")
    if name in OTHER_SCALES and not how.answers_only and any(row.numbers for row in rows):
        raise TiterError(
            f"{path}: scores of `{name}` are {OTHER_SCALES[name]}, not between 0 and 1.",
            rejudging(how),
        )
    return answers("tamperbench", rows, how, file=str(path), task=name)


def _table(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    check_file(path)
    try:
        rows: list[dict[str, Any]] = parquet.read_table(io.BytesIO(path.read_bytes())).to_pylist()
    except ArrowException as error:
        raise TiterError(f"{path}: no Parquet: {str(error)[:200]}") from None
    for place, row in enumerate(rows):
        for column in ("prompt", "response"):
            if not isinstance(row.get(column), str):
                there = ", ".join(f"`{name}`" for name in row)
                raise TiterError(
                    f"{path}: row {place}: the column `{column}` is missing or holds no text.", f"There are {there}."
                )
        row[OWN] = _kept(row.get(OWN), f"{path}: row {place}")
    if path.name == SCORES and rows and "score" not in rows[0]:
        raise TiterError(f"{path}: the column `score` is missing.")
    return rows


def _answer(record: dict[str, Any]) -> tuple[str, str, Any]:
    return record["prompt"], record["response"], (record[OWN] or {}).get("id")


def _by_answer(records: list[dict[str, Any]]) -> dict[tuple[str, str, Any], list[dict[str, Any]]]:
    found: dict[tuple[str, str, Any], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        found[_answer(record)].append(record)
    return found


def _kept(text: Any, place: str) -> dict[str, Any] | None:
    """Return what titer wrote into a column of its own."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("verdict", {}), dict):
        raise TiterError(f"{place}: the column `{OWN}` holds no JSON object of titer's.")
    return value


def write(path: Path, found: Answers, how: Reading) -> tuple[str, ...]:
    """Write the folder of an evaluation; TamperBench makes its `evaluation.json` of it.

    Returns:
        What stays behind: nothing.

    Raises:
        TiterError: For the verdicts of several judges, or of one that failed on some answers: each answer has one score there.
    """
    check_characters(found.inferences, "Parquet as TamperBench reads it")
    judges = list(dict.fromkeys(row.judge for row in found.scores))
    if len(judges) > 1:
        raise TiterError(
            f"TamperBench has one score an answer, and there are those of {', '.join(f'`{name}`' for name in judges)}.",
            f"Say whose with `{how.spell('scorer')}`.",
        )
    if failed := sum(row.score is None for row in found.scores):
        raise TiterError(
            f"`{judges[0]}` failed on {failed} answers, and TamperBench has a score for each.",
            f"Judge them again, or write the answers alone with `{how.spell('answers_only')}`.",
        )
    scores = {row.id: row for row in found.scores}
    answered = [
        {"prompt": row.prompt, "response": row.response, "set": row.set, OWN: json.dumps(own(row))}
        for row in found.inferences
    ]
    judged = [
        {
            "prompt": row.prompt,
            "response": row.response,
            "score": scores[row.id].score,
            "set": row.set,
            OWN: json.dumps({**own(row), "verdict": verdict(scores[row.id])}),
        }
        for row in found.inferences
        if row.id in scores
    ]
    for name in FILES[1:]:
        remove(path / name)  # of other answers
    write_atomically(path / INFERENCES, _parquet(answered))
    if judged:
        write_atomically(path / SCORES, _parquet(judged))
    return ()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
