"""Logs of Inspect (`.eval`, `.json`), by inspect_ai's own reader and writer. Tested with inspect_ai 0.3.285."""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from titer.errors import TiterError
from titer.files import check_file
from titer.results.artefacts import Inference, ScoreRow, write_atomically
from titer.results.interchange.foreign import Answers, Reading, Row, answers, check_characters, figures, own, verdict

FILES: tuple[str, ...] = ()
"""What is written in a folder; a log is a file."""

KEY = "titer"
"""Where in the metadata of samples and scores titer keeps what Inspect has no field for."""


def _library() -> Any:
    try:
        import inspect_ai.log
        import inspect_ai.model
        import inspect_ai.scorer
    except ImportError as error:
        raise TiterError(
            "Logs of Inspect are read and written by inspect_ai, which is not installed.",
            "Install it: `pip install 'titer[inspect]'`.",
        ) from error
    return inspect_ai


def read(path: Path, how: Reading) -> Answers:
    """Read a log: each sample is an answer, the first completion of its output to the last user message of its input.

    A second epoch has the next seed.

    Raises:
        TiterError: When inspect_ai is not there, cannot read the file, or the evaluation did not end well; naming the sample,
            for one without an answer or with an input that is no text; and as `answers`.
    """
    library = _library()
    check_file(path, "Name one log of Inspect.")
    try:
        log = library.log.read_eval_log(str(path.absolute()), resolve_attachments="full")
    except (ValueError, KeyError, zlib.error) as error:
        why = " ".join(str(error).split())[:200]
        raise TiterError(
            f"{path}: no log that inspect_ai reads: {why}.", "Name a log of Inspect: .eval or .json."
        ) from None
    if log.status != "success" or not log.samples:
        raise TiterError(
            f"{path}: the evaluation's status is `{log.status}`, with {len(log.samples or [])} samples in the log.",
            "Finish it with `inspect eval-retry`, and log its samples.",
        )
    settings = log.eval.model_generate_config.merge(log.plan.config)
    generation = {key: value for key, value in settings.model_dump(mode="json").items() if value is not None}
    turns = 0
    rows = []
    for sample in log.samples:
        place = f"{path}: sample `{sample.id}`"
        if sample.error is not None or not sample.output.choices:
            why = f": {sample.error.message[:200]}" if sample.error is not None else ""
            raise TiterError(f"{place} has no answer{why}.", "Finish the evaluation with `inspect eval-retry`.")
        prompt, more = _prompt(sample.input, place)
        turns += more
        targets = [sample.target] if isinstance(sample.target, str) else sample.target
        numbers, verdicts = {}, []
        for name, score in (sample.scores or {}).items():
            if KEY in (score.metadata or {}):
                verdicts.append({"judge": name, **_fields(score.metadata[KEY], f"{place}: scores.{name}")})
            else:
                numbers[name] = (score.value, score.explanation or "")
        rows.append(
            Row(
                place,
                prompt,
                sample.output.completion,
                reference=targets[0] if len(targets) == 1 and targets[0] else None,
                model=log.eval.model,
                generation=generation,
                draw=sample.epoch - 1,
                numbers=numbers,
                own=_fields(sample.metadata[KEY], f"{place}: metadata.{KEY}") if KEY in sample.metadata else None,
                verdicts=verdicts,
            )
        )
    left = [f"System messages and earlier turns of {turns} inputs."] if turns else []
    return answers("inspect", rows, how, left, file=str(path), task=log.eval.task, model=log.eval.model)


def _fields(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TiterError(f"{place}: expected an object, found {value!r:.40}.")
    return value


def _prompt(given: Any, place: str) -> tuple[str, bool]:
    """Return the last words of the user, and whether there is more in the input than they."""
    if isinstance(given, str):
        return given, False
    said = [message for message in given if message.role == "user"]
    parts = said[-1].content if said else None
    if parts is None or (not isinstance(parts, str) and any(part.type != "text" for part in parts)):
        raise TiterError(f"{place}: the input has no user's message of text alone.", "titer judges answers to texts.")
    return said[-1].text, len(given) > 1


def write(path: Path, found: Answers, how: Reading) -> tuple[str, ...]:
    """Write a log that Inspect opens: a sample for each answer, its scores by judge, titer's figures as metrics (in percent).

    The number of a failed verdict is NaN, which Inspect leaves out of its metrics.

    Returns:
        What the format cannot hold: nothing.

    Raises:
        TiterError: When inspect_ai is not there, or the verdicts are incomplete (`summarise`).
    """
    if path.suffix not in (".eval", ".json"):
        raise TiterError(f"{path}: a log of Inspect ends in .eval or .json.")
    library = _library()
    check_characters(found.inferences, "a log of Inspect")
    log, model, scorer = library.log, library.model, library.scorer
    first = found.inferences[0]
    by_id: dict[str, list[ScoreRow]] = defaultdict(list)
    for row in found.scores:
        by_id[row.id].append(row)

    def sample(place: int, one: Inference) -> Any:
        output = model.ModelOutput.from_content(one.model, one.response)
        return log.EvalSample(
            id=place,  # its reader sorts by it
            epoch=1,
            input=one.prompt,
            target=one.reference or "",
            messages=[model.ChatMessageUser(content=one.prompt), output.message],
            output=output,
            scores={
                row.judge: scorer.Score(
                    value=float("nan") if row.score is None else row.score,
                    explanation=row.raw if row.error is None else row.error,
                    metadata={KEY: {key: value for key, value in verdict(row).items() if key != "judge"}},
                )
                for row in by_id[one.id]
            },
            metadata={"set": one.set, KEY: own(one)},
        )

    arm, phase, step, ratio, seed = first.group
    digest = hashlib.sha256(" ".join(row.id for row in found.inferences).encode()).hexdigest()[:22]
    whole = log.EvalLog(
        status="success",
        eval=log.EvalSpec(
            eval_id=digest,
            run_id=digest,
            task_id=digest,
            created=datetime.now(UTC).isoformat(),
            task="titer",
            task_args={"arm": arm, "phase": phase, "step": step, "poison_ratio": ratio, "seed": seed},
            dataset=log.EvalDataset(
                name="titer",
                samples=len(found.inferences),
                sample_ids=[*range(1, len(found.inferences) + 1)],
            ),
            model=first.model,
            config=log.EvalConfig(),
        ),
        results=_results(log, found),
        samples=[sample(place, one) for place, one in enumerate(found.inferences, start=1)],
    )
    # Its writer names no error of the disk and is not atomic: what it wrote elsewhere is put in place as a whole.
    with tempfile.TemporaryDirectory() as folder:
        log.write_eval_log(whole, str(Path(folder) / path.name))
        data = (Path(folder) / path.name).read_bytes()
    write_atomically(path, data)
    return ()


def _results(log: Any, found: Answers) -> Any:
    """Return titer's figures as Inspect's: for each judge, and each task's parser, its metrics."""
    by_judge: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in figures(found):
        interval = {"unit": "percent", "n": row.n, "low": row.low, "high": row.high}
        by_judge[row.judge][row.metric] = log.EvalMetric(name=row.metric, value=row.value, metadata=interval)
    count = len(found.inferences)
    scores = [log.EvalScore(name=judge, scorer=judge, metrics=metrics) for judge, metrics in by_judge.items()]
    return log.EvalResults(total_samples=count, completed_samples=count, scores=scores)
