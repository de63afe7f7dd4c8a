"""Turns answers and verdicts of other tools into titer's, and titer's into theirs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError
from titer.workflows.common import (
    Settings,
    Show,
    Table,
    as_path,
    as_values,
    refuse_unused,
    refuse_what_is_there,
    spell,
    workflow,
)

if TYPE_CHECKING:
    from titer.results import Inference, ScoreRow

LABELS = ("prompts", "model", "arm", "phase", "step", "poison_ratio", "seed")
FILES = ("inferences.jsonl", "scores.jsonl", "results.json")


@dataclass(frozen=True)
class Converted(Table):
    """Answers in another format; as a table the answers, one a row.

    Attributes:
        target: The file or folder that was written.
        formats: Of source and target.
        inferences: The answers.
        scores: The verdicts that went with them.
        unknown: Which fields of the answers nobody said; they hold defaults.
        left: What stayed behind, in sentences.
    """

    target: Path
    formats: tuple[str, str]
    inferences: tuple[Inference, ...] = field(repr=False)
    scores: tuple[ScoreRow, ...] = field(repr=False)
    unknown: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Return the answers."""
        from titer.results.reading import plain

        return [plain(row) for row in self.inferences]

    def __str__(self) -> str:
        judges = Counter(row.judge for row in self.scores)
        failed = Counter(row.judge for row in self.scores if row.error is not None)
        told = [f"{self.formats[0]} → {self.formats[1]}: {len(self.inferences)} answers in {self.target}"]
        told += [f"{count} verdicts by {judge}, {failed[judge]} of them errors" for judge, count in judges.items()]
        told += [f"Not known, and set to defaults: {', '.join(self.unknown)}"] if self.unknown else []
        told += [f"Left behind: {one}" for one in self.left]
        return "\n".join(told)


@workflow
def convert(
    source: str | Path,
    output: str | Path,
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    prompts: str | None = None,
    model: str | None = None,
    arm: str | None = None,
    phase: str | None = None,
    step: int | None = None,
    poison_ratio: float | None = None,
    seed: int | None = None,
    scorer: str | None = None,
    threshold: float | None = None,
    answers_only: bool = False,
    fields: Settings | None = None,
    force: bool = False,
    show: Show | bool = False,
) -> Converted:
    """Turn answers and verdicts of another tool into titer's folder, or titer's into the other's file.

    Args:
        source: What to read: a log of Inspect, samples of lm-eval, an evaluation's folder of TamperBench, a folder of titer.
        output: What to write: a folder of titer, or the other tool's file (TamperBench's folder).
        source_format: Of the source: titer, inspect, lm-eval or tamperbench; by default what its name and content say.
        target_format: Of the target, likewise.
        prompts: What the prompts are, where the source does not say it: harmful, lookalike or task:NAME. Of titer's answers: which set.
        model: Who answered, where the source does not say it.
        arm: Label of the answers; by default the model. Of titer's answers: which. So are phase, step, ratio and seed.
        phase: What the model is: aligned or finetuned; by default aligned.
        step: Fine-tuning steps behind it; by default 0.
        poison_ratio: Of what it was fine-tuned on; by default 0.
        seed: Of the run; by default 0.
        scorer: Whose scores, where there are several.
        threshold: From which score on an answer is harmful, where the source has numbers alone; from 0 to 1.
        answers_only: Leave verdicts behind.
        fields: Where in a row of lm-eval `prompt`, `response` and `reference` stand, and which `filter` to read: prompt=doc.question.
        force: Replace what is there.
        show: Who is told how it goes; nothing here takes long.

    Raises:
        TiterError: For a source that cannot be read, naming file and place; for what the source does not say and nobody else;
            for what the target cannot hold; for arguments that have no effect.
    """
    from titer.files import check_output, remove
    from titer.results import artefacts, interchange

    where, to = as_path("source", source), as_path("output", output)
    if not where.exists():
        raise TiterError(f"{where} does not exist.", "Check the path.")
    kind = interchange.format_of(where, source_format, spell("source_format"))
    if kind != interchange.TITER:
        target_format = target_format or interchange.TITER
    goal = interchange.format_of(to, target_format, spell("target_format"))
    if (kind == interchange.TITER) == (goal == interchange.TITER):
        raise TiterError(
            f"{where} is of the format {kind}, and {to} of {goal}: one of both is titer's.",
            "Convert to a folder of titer first, and that one then.",
        )
    inward = goal == interchange.TITER
    if kind != "lm-eval":
        refuse_unused(["fields"], f"on {kind}'s files")
    if not inward:
        refuse_unused(["model", "threshold"], "on titer's own answers")
    if answers_only:
        refuse_unused(["scorer", "threshold"], f"with `{spell('answers_only')}`")
    files = FILES if inward else interchange.FOREIGN[goal].FILES
    paths = [to / name for name in files] or [to]
    check_output(to if files else to.parent, files or [to.name])
    refuse_what_is_there(paths, force)
    how = interchange.Reading(
        prompts, model, arm, phase, step, poison_ratio, seed, scorer, threshold, answers_only,
        as_values("fields", fields), spell,
    )  # fmt: skip
    found = interchange.read(where, kind, how)
    if inward:
        if not found.unknown:
            refuse_unused(LABELS, f"on {where}: titer wrote it, and it says so itself")
        if not any(row.judge.startswith(f"{kind}:") for row in found.scores):
            refuse_unused(["scorer", "threshold"], f"on {where}, which holds no scores to make verdicts of")
    left = found.left
    if inward:
        from titer.jobs.provenance import environment, file_digest

        results = interchange.figures(found)
        digest = {"sha256": file_digest(where).hexdigest()} if where.is_file() else {}
        for path in paths[1:]:
            remove(path)  # of other answers
        artefacts.write_inferences(paths[0], found.inferences)
        if found.scores:
            artefacts.write_scores(paths[1], found.scores)
        about = {"model": found.inferences[0].model, "weights": artefacts.weights_of(found.inferences), **environment()}
        judged = ", ".join(dict.fromkeys(row.judge for row in found.scores)) or None
        artefacts.write_results(paths[2], results, {**about, "judge": judged, "source": {**found.source, **digest}})
    else:
        left = interchange.write(to, goal, found, how)
    return Converted(to, (kind, goal), tuple(found.inferences), tuple(found.scores), found.unknown, left)
