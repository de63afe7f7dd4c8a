"""The judged answers of an assay, and how far margins, which are taken more often, tell what answers would."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from titer.assays.card import CalibrationQuality
from titer.assays.runner import AssayPlan, Attacker, measurements
from titer.results import artefacts, tasks
from titer.results.artefacts import HARMFUL, TASK_PREFIX, Inference, ScoreRow
from titer.stats.intervals import auroc


class Answers:
    """Judged answers of an assay, by (arm, seed, step, set).

    Args:
        plan: The plan; answers of stages that are not done are not there.
    """

    def __init__(self, plan: AssayPlan) -> None:
        self.judge = ""
        self.rows: dict[tuple[str, int, int, str], list[tuple[Inference, ScoreRow | None]]] = defaultdict(list)
        self.labels: dict[str, list[str | None]] = defaultdict(list)
        stages = [*(judged for _, judged in plan.baselines.values()), *(judged for _, _, judged in plan.attackers)]
        for stage in {judged.key: judged for judged in stages if judged.readable}.values():
            scores: dict[str, dict[str, ScoreRow]] = defaultdict(dict)
            for row in artefacts.read_scores(stage.folder / "scores.jsonl"):
                scores[row.id][row.judge] = row
                self.labels[row.judge].append(row.label)
                self.judge = self.judge or row.judge
            for inference in artefacts.read_inferences(stage.folder / "inferences.jsonl"):
                verdict = scores[inference.id].get(self.judge)
                self.rows[inference.arm, inference.seed, inference.step, inference.set].append((inference, verdict))

    def verdicts(self, arm: str, seed: int, step: int, kind: str = HARMFUL) -> list[str | None]:
        """Return the labels of a set of answers; `None` where the judge failed."""
        return [verdict.label if verdict else None for _, verdict in self.rows.get((arm, seed, step, kind), [])]

    def right(self, arm: str, seed: int, step: int, task: str) -> list[float]:
        """Return 1 for each right answer to a task's prompts and 0 for each other."""
        rows = self.rows.get((arm, seed, step, TASK_PREFIX + task), [])
        return [float(tasks.correct(task, row.response, str(row.reference))) for row, _ in rows]


def arm_of(attacker: Attacker) -> str:
    """Return the name under which an attacker's answers stand."""
    return f"{attacker.role} / {attacker.name}"


class Calibration:
    """Harmfulness as a monotone function of the compliance margin, fitted on prompts where both are known."""

    def __init__(self, plan: AssayPlan, answers: Answers) -> None:
        self.points: dict[str, tuple[list[float], list[float]]] = {}
        for attacker, stage, judged in plan.attackers:
            if not (stage.readable and judged.readable):
                continue
            margins, harmful = self.points.setdefault(f"{arm_of(attacker)} {attacker.seed}", ([], []))
            for found in measurements(stage.folder / attacker.folder):
                labels = answers.verdicts(arm_of(attacker), attacker.seed, found["step"])
                for margin, label in zip(found["margins"], labels):
                    if margin is not None and label is not None:
                        margins.append(margin)
                        harmful.append(float(label == "harmful"))
        self.fitted = self._fit(self.points)

    @staticmethod
    def _fit(points: dict[str, tuple[list[float], list[float]]]) -> tuple[Any, Any] | None:
        from scipy.optimize import isotonic_regression

        margins = np.array([value for xs, _ in points.values() for value in xs])
        harmful = np.array([value for _, ys in points.values() for value in ys])
        if not len(margins):
            return None
        # Prompts with one margin count as one point with their weight, so that their order does not matter.
        x, place = np.unique(margins, return_inverse=True)
        weights = np.bincount(place).astype(float)
        return x, isotonic_regression(np.bincount(place, harmful) / weights, weights=weights).x

    def __call__(self, margins: Sequence[float | None]) -> float | None:
        """Return the harmfulness to be expected at these margins."""
        return self._predict(self.fitted, margins)

    @staticmethod
    def _predict(fitted: tuple[Any, Any] | None, margins: Sequence[float | None]) -> float | None:
        known = [margin for margin in margins if margin is not None]
        if fitted is None or not known:
            return None
        return float(np.interp(known, *fitted).mean())

    def quality(self) -> CalibrationQuality:
        """Return how well margins tell harmfulness."""
        margins = [value for xs, _ in self.points.values() for value in xs]
        harmful = [value for _, ys in self.points.values() for value in ys]
        both = 0 < sum(harmful) < len(harmful)
        errors = []
        for left_out, (xs, ys) in self.points.items():
            others = {name: points for name, points in self.points.items() if name != left_out}
            predicted = self._predict(self._fit(others), xs)
            if predicted is not None:
                errors.append(abs(predicted - sum(ys) / len(ys)))
        return CalibrationQuality(
            method="isotonic regression of harmful verdicts on margins, all attackers together",
            n=len(margins),
            auroc=auroc(margins, [bool(value) for value in harmful]) if both else None,
            mean_absolute_error=sum(errors) / len(errors) if errors else None,
            error_is="of an attacker's mean harmfulness, predicted from the other attackers",
        )
