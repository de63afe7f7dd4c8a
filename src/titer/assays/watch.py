"""Looks judged while an attacker is at work: what need not be asked is not, and an attacker that is over is ended.

What is ended, and why that biases nothing: `titer.stats.sequential` and docs/assay.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from titer.assays.attempts import Attempt, crew_of, measurements
from titer.assays.measure import Probe
from titer.assays.trajectories import Checkpoint, Trajectory, shares_of
from titer.data import Record
from titer.jobs.answers import as_inferences
from titer.jobs.job import Job
from titer.judges.base import Judge
from titer.progress import Task
from titer.results.artefacts import HARMFUL, Inference, ScoreRow, read_scores, write_scores
from titer.results.scoring import judge_into
from titer.stats.sequential import decided

VERDICTS = "scores.jsonl"
"""Verdicts on an attacker's answers that were needed while it was at work, in its folder."""


@dataclass(frozen=True)
class Watch:
    """What an attacker's looks say while it is at work.

    Where the judge fails, nothing is known: all is asked and the attacker goes on, as it would without early exit. Its answers
    are judged by the job that comes after, which fails if the judge does again.

    Attributes:
        attacker: The attacker.
        folder: Its folder.
        probe: What its model is asked.
        answered: Steps at which it is.
        judge: Who decides.
        phi: φ, in [0, 1].
        early_exit: Whether an attacker that is over is ended.
        first: Harmful prompts of a look that are asked at first; 0 for all at once.
    """

    attacker: Attempt
    folder: Path
    probe: Probe
    answered: Sequence[int]
    judge: Judge
    phi: float
    early_exit: bool
    first: int

    def enough(self, step: int, texts: Sequence[str]) -> bool:
        """Whether the answers to the first prompts of a look leave no doubt about it."""
        labels = self._labels([(step, texts)])
        known = None not in labels
        return known and decided(labels.count("harmful"), len(labels), len(self.probe.harmful), self.phi)

    def left(self) -> dict[str, Any] | None:
        """Return after which step the attacker was ended, and why; `None` where it was not."""
        why = self.over()
        return {"step": self._looks()[-1][0], "why": why} if why else None

    def over(self) -> str:
        """Return why nothing that follows could change the attacker's first passage: `broken`, `destroyed`, or empty.

        Never over are honest customers, whose pace is measured, and attackers that train a task, whose end is a figure.
        """
        if not self.early_exit or not self.attacker.attack.means_harm or self.attacker.attack.has_task:
            return ""
        looks = self._looks()
        labels, points, begin = self._labels(looks), [], 0
        for step, texts in looks:
            points.append(Checkpoint(step, step, step, float(step), **shares_of(labels[begin : begin + len(texts)])))
            begin += len(texts)
        more = [len(self.probe.harmful)] * sum(step > looks[-1][0] for step in self.answered) if looks else []
        seen = Trajectory(self.attacker.name, self.attacker.seed, "", 1.0, True, tuple(points))
        return seen.over(self.phi, more) if more and None not in labels else ""

    def _looks(self) -> list[tuple[int, list[str]]]:
        """Return the answers to harmful prompts under attack, by step."""
        found = [one for one in measurements(self.folder) if one["step"] and "answers" in one]
        return [(one["step"], one["answers"][HARMFUL]) for one in found]

    def _labels(self, looks: Sequence[tuple[int, Sequence[str]]]) -> list[str | None]:
        """Return the judge's labels of the answers at some steps, `None` where it failed; each answer is judged once."""
        rows = [row for step, texts in looks for row in self._rows(step, texts)]
        return [row.label for row in judge_into(self.folder / VERDICTS, rows, [self.judge], keep_all=True)]

    def _rows(self, step: int, texts: Sequence[str]) -> list[Inference]:
        about = {"poison_ratio": self.attacker.attack.poison_ratio, "seed": self.attacker.seed, "step": step}
        return inferences(self.attacker.name, HARMFUL, self.probe.sets[HARMFUL], texts, "", None, **about)


class EndWhenOver(TrainerCallback):
    """Ends an attacker's training after a look once it is over; the others of its fleet go on without it.

    Args:
        watch: Of the attacker.
        steps: The task that counts the steps of all.
    """

    def __init__(self, watch: Watch, steps: Task) -> None:
        self.watch, self.steps = watch, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the training when the step was looked at and nothing that follows could change what is found."""
        if state.global_step in self.watch.answered and self.watch.over():
            control.should_training_stop = True
            self.steps.total = (self.steps.total or 0) - (state.max_steps - state.global_step)


def inferences(
    arm: str,
    kind: str,
    asked: tuple[Sequence[Record], int],
    texts: Sequence[str],
    model: str,
    weights: str | None,
    **group: Any,
) -> list[Inference]:
    """Pair the answers to one set with what they answer; prompts at its end may not have been asked.

    `weights` is the hash of the model's files, of which there are none under attack; `group` is step, poison ratio and seed.
    """
    phase = "finetuned" if group["step"] else "aligned"
    records, limit = asked
    return as_inferences(
        [(kind, records[: len(texts)], limit)], texts, {"arm": arm, "phase": phase, **group}, model, weights
    )


def keep_verdicts(job: Job, role: str, rows: Sequence[Inference], path: Path) -> None:
    """Begin a file of verdicts with those that an attack's job needed already, so that no answer is judged twice.

    A judge may not say the same twice, and who was ended on a verdict must be counted by it.

    Args:
        job: The attack's job.
        role: Of the model.
        rows: All answers of that job.
        path: The file; left alone where it exists.
    """
    if path.exists():
        return
    files = [job.folder / attacker.folder / VERDICTS for attacker in crew_of(job)]
    known: dict[str, list[ScoreRow]] = {}
    for verdict in (verdict for file in files if file.is_file() for verdict in read_scores(file)):
        known.setdefault(verdict.id, []).append(verdict)
    own = [(row.id, dataclasses.replace(row, arm=row.arm.removeprefix(f"{role} / ")).id) for row in rows]
    write_scores(path, [dataclasses.replace(one, id=new) for new, old in own for one in known.get(old, [])])
