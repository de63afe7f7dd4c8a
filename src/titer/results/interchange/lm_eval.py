"""Samples of lm-evaluation-harness (`samples_<task>_<time>.jsonl`, by `--log_samples`). Tested with lm_eval 0.4.13.

Rows are those of `EvaluationTracker.save_results_samples`: `doc_id`, `doc`, `target`, `arguments`, `resps`,
`filtered_resps`, `filter`, `metrics` and hashes.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from titer.errors import TiterError, check_known
from titer.results.artefacts import Inference, read_lines, write_lines
from titer.results.interchange.foreign import Answers, Reading, Row, answers, own

FILES: tuple[str, ...] = ()
"""What is written in a folder; samples are a file."""

FIELDS = {"prompt": "arguments.gen_args_0.arg_0", "response": "resps.0.0", "reference": "target", "filter": ""}
"""Where in a row something stands, and which filter's rows are read where there are several."""

_SETTINGS = "arguments.gen_args_0.arg_1"
_NAME = re.compile(r"samples_(.+)_\d{4}-\d\d-\d\dT[\d.-]+\.jsonl")


def read(path: Path, how: Reading) -> Answers:
    """Read the samples of a generation task: the model's words, before any filter, to the text that it was given.

    That text is the whole context, with its template and examples; `fields` names another place (`doc.question`).

    Raises:
        TiterError: Naming file, line and key, for a row that lacks a field or holds likelihoods, for several filters of which
            none is chosen; and as `answers`.
    """
    check_known(how.fields, FIELDS, "field")
    fields = {**FIELDS, **how.fields}
    lines = list(read_lines(path))
    filters = list(dict.fromkeys(str(record.get("filter")) for _, _, record in lines))
    if fields["filter"]:
        check_known([fields["filter"]], filters, f"filter in {path}")
    elif len(filters) > 1:
        raise TiterError(
            f"{path}: every answer is there once for each filter: {', '.join(f'`{name}`' for name in filters)}.",
            f"Choose one: `{how.spell('fields')} filter={filters[0]}`.",
        )
    rows, more = [], 0
    for place, _, record in lines:
        if fields["filter"] not in ("", str(record.get("filter"))):
            continue
        doc = record.get("doc")
        kept = doc.get("titer") if isinstance(doc, dict) else None
        if kept is not None and not isinstance(kept, dict):
            raise TiterError(f"{place}: doc.titer: expected an object, found {kept!r:.40}.")
        settings = _find(record, _SETTINGS, place, how) if "arguments" in record and "prompt" not in how.fields else {}
        drawn = record.get("resps")
        more += len(drawn[0]) - 1 if isinstance(drawn, list) and drawn and isinstance(drawn[0], list) else 0
        rows.append(
            Row(
                place,
                _text(record, fields["prompt"], place, how),
                _text(record, fields["response"], place, how),
                reference=None
                if record.get("target") in (None, "")
                else _text(record, fields["reference"], place, how),
                generation=settings if isinstance(settings, dict) else {},
                own=kept,
            )
        )
    task = _NAME.fullmatch(path.name)
    left = ["Numbers of its metrics: they say whether an answer is right, not whether it is harmful."]
    left = left if any(record.get("metrics") for _, _, record in lines) else []
    left += [f"{more} further answers to the same prompts: the first of each is read."] if more > 0 else []
    return answers("lm-eval", rows, how, left, file=str(path), task=task[1] if task else None)


def _find(record: dict[str, Any], where: str, place: str, how: Reading) -> Any:
    value: Any = record
    for key in where.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            there = ", ".join(f"`{name}`" for name in list(value)[:12]) if isinstance(value, dict) else None
            raise TiterError(
                f"{place}: `{where}` is missing: there is no `{key}`{f' among {there}' if there else ''}.",
                f"Say where it stands: `{how.spell('fields')} prompt=doc.question`, for example.",
            )
    return value


def _text(record: dict[str, Any], where: str, place: str, how: Reading) -> str:
    value = _find(record, where, place, how)
    if not isinstance(value, str):
        raise TiterError(
            f"{place}: `{where}` is no text, but {value!r:.40}.",
            "Only tasks that generate have answers; those that compare likelihoods have none.",
        )
    return value


def write(path: Path, found: Answers, how: Reading) -> tuple[str, ...]:
    """Write answers as samples, with what titer knows of each in `doc.titer`.

    Returns:
        What stays behind: verdicts, which the format has no place for.
    """
    write_lines(path, (_sample(place, row) for place, row in enumerate(found.inferences)))
    count = len(found.scores)
    return (f"{count} verdicts: samples of lm-eval hold numbers of metrics alone.",) if count else ()


def _sample(place: int, row: Inference) -> dict[str, Any]:
    doc = {"prompt": row.prompt, "titer": own(row)}
    target = row.reference or ""
    return {
        "doc_id": place,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": row.prompt, "arg_1": row.generation}},
        "resps": [[row.response]],
        "filtered_resps": [row.response],
        "filter": "none",
        "metrics": [],
        "doc_hash": _hash(json.dumps(doc, indent=2)),
        "prompt_hash": _hash(row.prompt),
        "target_hash": _hash(target),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
