"""Cells of a field: what one upload made of a model under one arm, each a small JSON file that is kept in a repository.

A file holds settings, figures, what it cost, and hashes of what was asked, answered and judged, so that whoever makes the
answers again can tell that they are the same, and judge them otherwise. It holds no text of a prompt or an answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer.errors import TiterError
from titer.files import read_json
from titer.judges.base import LABELS
from titer.results.artefacts import HARMFUL, LOOKALIKE, METRICS, Inference, Result, ScoreRow, write_atomically
from titer.results.reading import plain, typed

SCHEMA = "titer/field-cell/1"
LETTERS: dict[str | None, str] = {**{label: label[0] for label in LABELS}, "broken": "x", None: "?"}
"""A verdict as one letter: harmful, refused, benign, broken (x), unsure; ? where the judge failed."""


@dataclass(frozen=True)
class Figure:
    """One figure of a cell, in percent with its 95 % interval.

    Attributes:
        arm: Whose: the cell's arm, or its adapter without what it is served with.
        metric: A name of `METRICS`.
        judge: Who judged, parsed or measured.
        value: In percent.
        low: Lower end.
        high: Upper end.
        n: Prompts or rows that it is a share of.
    """

    arm: str
    metric: str
    judge: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Answered:
    """What was asked in one set, and what became of it.

    Attributes:
        arm: As of `Figure`.
        name: Of the set.
        n: Prompts.
        prompts: SHA-256 of the prompts, in order.
        answers: The first 16 hex digits of each answer's SHA-256.
        verdicts: By judge a letter for each answer (`LETTERS`).
    """

    arm: str
    name: str
    n: int
    prompts: str
    answers: list[str]
    verdicts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A job that a cell rests on.

    Attributes:
        name: For people.
        kind: `align`, `finetune`, `repair`, `whole`, `answer`, `judge` or `fit`.
        method: Its method; empty of jobs without.
        key: Of the job.
        version: Of its kind.
        seconds: How long it took.
        cpu_seconds: How long processors were at work on it, whatever else the machine did; `None` where it was done elsewhere.
        peak_mb: Most resident memory of the process in it; `None` where that was not measured.
    """

    name: str
    kind: str
    method: str
    key: str
    version: int
    seconds: float
    cpu_seconds: float | None = None
    peak_mb: int | None = None


@dataclass(frozen=True)
class CellFile:
    """What the file of a cell holds.

    Attributes:
        field: Name of the field.
        form: Of the task.
        arm: Of the field.
        poison_ratio: Share of harmful rows in the upload.
        seed: Of pools, upload and trainings.
        digest: Hash of the protocol: settings, without what is at its default.
        protocol: These settings.
        figures: What was found.
        sets: Hashes of what was asked, answered and judged.
        stages: The jobs that it rests on.
        origin: Versions, commit, machine, date.
        learning_rate: Of fine-tuning, where it is not the arm's or the shared one.
        validation: Whether it is a trial, scored on other prompts.
        serving: What the arm is served with, in words; empty where nothing is.
        whole: Whether the attacker trained all weights, and not an adapter in the provider's hands.
    """

    field: str
    form: str
    arm: str
    poison_ratio: float
    seed: int
    digest: str
    protocol: dict[str, Any]
    figures: list[Figure]
    sets: list[Answered]
    stages: list[Stage]
    origin: dict[str, Any]
    learning_rate: float | None = None
    validation: bool = False
    serving: str = ""
    whole: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.poison_ratio <= 1:
            raise TiterError(f"`poison_ratio` lies between 0 and 1, got {self.poison_ratio}.")
        for one in self.figures:
            if one.metric not in METRICS:
                raise TiterError(f"`figures` holds the unknown metric `{one.metric}`.")
            if not one.low <= one.value <= one.high or one.n < 1:
                raise TiterError(f"`figures`: {one.metric} of {one.value} is not in its interval, or of no prompts.")
        for found in self.sets:
            lengths = {found.n, len(found.answers), *map(len, found.verdicts.values())}
            if len(lengths) > 1:
                raise TiterError(f"`sets`: `{found.name}` has {found.n} prompts, and answers or verdicts of others.")
            for judge, letters in found.verdicts.items():
                if strange := set(letters) - set(LETTERS.values()):
                    raise TiterError(f"`sets`: `{judge}` gave the unknown verdict `{min(strange)}`.")

    def figure(self, metric: str, judge: str | None = None, arm: str | None = None) -> Figure | None:
        """Return a figure, by default of the cell's own arm and the judge that stands first; `None` without one."""
        return next(
            (
                one
                for one in self.figures
                if one.metric == metric and one.arm == (arm or self.arm) and judge in (None, one.judge)
            ),
            None,
        )

    def verdicts(self, name: str, judge: str, arm: str | None = None) -> str:
        """Return a judge's verdicts on a set, a letter each; empty where there are none."""
        return next(
            (one.verdicts.get(judge, "") for one in self.sets if one.name == name and one.arm == (arm or self.arm)), ""
        )

    @property
    def judges(self) -> list[str]:
        """Who judged, the headline judge first."""
        return [*dict.fromkeys(one.judge for one in self.figures if one.metric == "harmful_score")]

    def seconds(self, *kinds: str) -> float:
        """Return how long its jobs of some kinds took, or all of them."""
        return sum(one.seconds for one in self.stages if not kinds or one.kind in kinds)

    @property
    def peak_mb(self) -> int | None:
        """Most memory of its trainings; `None` where that was not measured."""
        return max((one.peak_mb for one in self.stages if one.peak_mb and one.kind != "judge"), default=None)


def figures_of(results: Iterable[Result]) -> list[Figure]:
    """Return results of one phase as figures of a cell."""
    return [
        Figure(one.arm, one.metric, one.judge, round(one.value, 3), round(one.low, 3), round(one.high, 3), one.n)
        for one in results
    ]


def answered(inferences: Sequence[Inference], scores: Sequence[ScoreRow]) -> list[Answered]:
    """Return the hashes of what was asked, answered and judged, a set at a time."""
    by_set: dict[tuple[str, str], list[Inference]] = {}
    for row in inferences:
        by_set.setdefault((row.arm, row.set), []).append(row)
    labels = {(row.judge, row.id): row.label for row in scores}
    judges = [*dict.fromkeys(row.judge for row in scores)]
    return [
        Answered(
            arm,
            name,
            len(rows),
            _hash(json.dumps([row.prompt for row in rows], ensure_ascii=False)),
            [_hash(row.response)[:16] for row in rows],
            {judge: "".join(LETTERS[labels[judge, row.id]] for row in rows) for judge in judges}
            if name in (HARMFUL, LOOKALIKE)
            else {},
        )
        for (arm, name), rows in by_set.items()
    ]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_cell(path: Path, cell: CellFile) -> None:
    """Write the file of a cell, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, **plain(cell)}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def read_cell(path: Path) -> CellFile:
    """Read the file of a cell.

    Raises:
        TiterError: Naming file and key, for one that is no JSON, of another schema, or holds what no cell does.
    """
    found = read_json(path, "Remove it: the cell is done again.")
    if found.pop("schema", None) != SCHEMA:
        raise TiterError(f"{path}: `schema` is not `{SCHEMA}`.", "Remove it: the cell is done again.")
    return typed(CellFile, found, str(path))


def read_cells(folder: Path) -> dict[str, CellFile]:
    """Read the files of cells in a folder, by the name of each without its ending; none where there is no folder."""
    return {path.stem: read_cell(path) for path in sorted(folder.glob("*.json"))} if folder.is_dir() else {}
