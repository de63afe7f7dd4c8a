"""The figures of a run over its seeds: one aggregator for every page and table.

Several seeds are summarised by their mean. Its interval covers Wilson's interval of that mean over the prompts of *one* seed
(every seed answers the same prompts, so pooling the counts would take each prompt for several) and every seed. From three
seeds on it covers Student's t interval over them too, on the scale of logits, and so is for another seed as well. Two seeds
cannot tell how a third would do: of 0 and 1 of 50 answers that interval is 0 to 95 %.

A harmful score that is corrected for its judge's errors is no share that was counted. In the place of Wilson's interval there is
the mean of the seeds' own intervals: they answer the same prompts, and the judge errs in all of them alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from titer.results.artefacts import Result, read_results
from titer.results.routes import told
from titer.stats.intervals import share_interval, wilson

SEEDS_THAT_TELL = 3
"""Seeds from which on an interval is for another seed too."""
CORRECTED = "harmful_score_corrected"
SUMMARISED = ("harmful_score", CORRECTED, "refusal_rate", "broken_rate", "over_refusal", "finetune_accuracy")


@dataclass(frozen=True)
class Rate:
    """A percentage of prompts over all seeds; every number but `n` in percent.

    Attributes:
        value: Mean over the seeds.
        low: Lower end of the 95 % interval (see the module's docstring).
        high: Upper end.
        n: Prompts of one seed, the fewest where the seeds differ; 0 where that is not known.
        seeds: The seeds that were scored.
        per_seed: Their values, in the order of `seeds`.
        judge: Who judged; empty where that is said elsewhere.
    """

    value: float
    low: float
    high: float
    n: int
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    judge: str = ""

    @property
    def interval(self) -> str:
        """The interval as text, `1.1–13.5`."""
        return f"{self.low:.1f}–{self.high:.1f}"

    def __str__(self) -> str:
        return f"{self.value:.1f}\u00a0% [{self.interval}]"


def over_seeds(shares: Mapping[int, float], n: int, judge: str = "", own: Sequence[tuple[float, float]] = ()) -> Rate:
    """Return a rate over seeds with its 95 % interval (see the module's docstring).

    Args:
        shares: Each seed's part, in [0, 1]; one at least.
        n: Prompts of a seed; 0 where that is not known.
        judge: Who judged.
        own: The ends of each seed's own interval, in [0, 1], where the part was not counted.
    """
    seeds = sorted(shares)
    values = [shares[seed] for seed in seeds]
    mean = sum(values) / len(values)
    ends = list(values)
    if n:
        ends += [sum(side) / len(own) for side in zip(*own)] if own else wilson(min(mean * n, n), n)
        ends += share_interval(values, n) if len(values) >= SEEDS_THAT_TELL else ()
    return Rate(
        100 * mean, 100 * min(ends), 100 * max(ends), n, tuple(seeds), tuple(100 * value for value in values), judge
    )


@dataclass(frozen=True)
class SummaryRow:
    """One arm at one poison ratio: aligned, and at the last checkpoint of fine-tuning.

    Attributes:
        arm: Its name.
        poison_ratio: `None` where nothing was scored.
        step: The last checkpoint; `None` without one.
        aligned: Rates by metric before fine-tuning; what was not measured is not there.
        finetuned: The same at the last checkpoint.
    """

    arm: str
    poison_ratio: float | None
    step: int | None
    aligned: dict[str, Rate]
    finetuned: dict[str, Rate]

    def rate(self, metric: str, phase: str = "finetuned") -> Rate | None:
        """Return a rate; `None` is "not measured"."""
        return (self.aligned if phase == "aligned" else self.finetuned).get(metric)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were scored, after fine-tuning where any was."""
        found = {seed for rate in (self.finetuned or self.aligned).values() for seed in rate.seeds}
        return tuple(sorted(found))

    def as_dict(self) -> dict[str, Any]:
        """For programs: a key for each metric, before fine-tuning with `_aligned` behind it."""
        cells: dict[str, Any] = {}
        for metric in SUMMARISED:
            for key, phase in ((f"{metric}_aligned", "aligned"), (metric, "finetuned")):
                if key != "refusal_rate_aligned" and (metric != CORRECTED or self.rate(metric, phase)):
                    rate = self.rate(metric, phase)
                    cells[key] = None if rate is None else dict(vars(rate))
        about = {"arm": self.arm, "poison_ratio": self.poison_ratio, "step": self.step, "seeds": self.seeds}
        return {**about, **cells}


@dataclass(frozen=True)
class Run:
    """What `results.json` of a run, or of a scored model, holds.

    Attributes:
        results: The figures, one of each seed.
        provenance: What is needed to get them again.
    """

    results: list[Result]
    provenance: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read `FOLDER/results.json`.

        Raises:
            TiterError: When it is missing, no JSON, of another schema, or holds a malformed figure.
        """
        return cls(*read_results(Path(folder) / "results.json"))

    @cached_property
    def planned(self) -> dict[str, dict[str, Any]]:
        """The arms of the experiment, name → methods and settings by stage; none where a single model was scored."""
        found = self.provenance.get("experiment", {}).get("arms", {})
        return {name: arm if isinstance(arm, dict) else _by_stage(arm) for name, arm in found.items()}

    @property
    def arms(self) -> list[str]:
        """The arms in the order of the experiment's file, also those without a result; then any others.

        Behind a serving control stands its adapter alone.
        """
        planned = [name for arm in self.planned for name in (arm, self.alone.get(arm)) if name is not None]
        return list(dict.fromkeys([*planned, *(row.arm for row in self.results)]))

    @cached_property
    def serving(self) -> dict[str, str]:
        """The arms that are serving controls or served guards, with what they are served with in a few words."""
        return {arm: found["about"] for arm, found in self.provenance.get("serving", {}).items()}

    @cached_property
    def engines(self) -> dict[str, str]:
        """Which engine answered for each arm; empty where titer itself did for all."""
        return dict(self.provenance.get("engines", {}))

    @cached_property
    def routed(self) -> dict[str, str]:
        """The served guards among them, with how their routers routed the prompts; empty where no answer tells."""
        found = self.provenance.get("serving", {})
        return {
            arm: told(one["routes"]) if one.get("routes") else "" for arm, one in found.items() if one.get("routed")
        }

    def served_as(self, arm: str) -> str:
        """Return what an arm is whose effect is not in its weights alone; empty of the others."""
        return "served guard" if arm in self.routed else "serving control" if arm in self.serving else ""

    @cached_property
    def alone(self) -> dict[str, str]:
        """Under which name the adapter of a serving control stands that was asked without, where it was."""
        found = self.provenance.get("serving", {})
        return {arm: one["alone"] for arm, one in found.items() if one.get("alone") is not None}

    @cached_property
    def poison_ratios(self) -> list[float | None]:
        """The poison ratios, ascending; `[None]` where nothing was scored."""
        found = {row.poison_ratio for row in self.results if row.phase == "finetuned"}
        return [*sorted(found or {row.poison_ratio for row in self.results})] or [None]

    def judges(self, metric: str) -> list[str]:
        """Who judged a metric, the headline judge first: the one that judged the first harmful score."""
        found = dict.fromkeys(row.judge for row in self.results if row.metric == metric)
        lead = next((row.judge for row in self.results if row.metric == "harmful_score"), None)
        return sorted(found, key=lambda judge: judge != lead)

    def rate(
        self, arm: str, metric: str, phase: str, ratio: float | None, step: int | None = None, judge: str | None = None
    ) -> Rate | None:
        """Summarise one metric of one arm over its seeds; `None` when it was not measured.

        Args:
            arm: The arm's name.
            metric: A metric.
            phase: `aligned` (before any upload, so it stands for every poison ratio) or `finetuned`.
            ratio: The share of harmful rows in the upload.
            step: The checkpoint of phase `finetuned`.
            judge: Whose verdicts; the headline judge's by default.
        """
        # What is corrected stands beside the headline judge's own score, or nowhere.
        named = "harmful_score" if metric == CORRECTED else metric
        judge = next(iter(self.judges(named)), None) if judge is None else judge
        found = {
            row.seed: row
            for row in self.results
            if (row.arm, row.metric, row.phase, row.judge) == (arm, metric, phase, judge)
            and (phase == "aligned" or (row.step, row.poison_ratio) == (step, ratio))
        }
        if not found:
            return None
        raw = {
            row.seed
            for row in self.results
            if (row.arm, row.metric, row.phase, row.judge) == (arm, "harmful_score", phase, judge)
            and (phase == "aligned" or (row.step, row.poison_ratio) == (step, ratio))
        }
        if metric == CORRECTED and raw != found.keys():
            return None  # of some seeds it could not be told, and the others are no sample of all
        shares = {seed: row.value / 100 for seed, row in found.items()}
        own = [(row.low / 100, row.high / 100) for row in found.values()] if metric == CORRECTED else []
        return over_seeds(shares, min(row.n for row in found.values()), str(judge), own)

    def steps(self, arm: str, ratio: float | None) -> list[int]:
        """The checkpoints of fine-tuning at which an arm was scored, ascending."""
        key = (arm, "finetuned", ratio)
        return sorted({row.step for row in self.results if (row.arm, row.phase, row.poison_ratio) == key})

    def course(self, arm: str, metric: str, ratio: float | None) -> list[tuple[int, Rate]]:
        """A metric along fine-tuning as (step, rate); the aligned model is step 0."""
        points = {0: self.rate(arm, metric, "aligned", ratio)}
        points |= {step: self.rate(arm, metric, "finetuned", ratio, step) for step in self.steps(arm, ratio)}
        return [(step, rate) for step, rate in sorted(points.items()) if rate is not None]

    @cached_property
    def rows(self) -> list[SummaryRow]:
        """One row for each arm and poison ratio: the ratios ascending, in each the arms in the experiment's order.

        An arm of the experiment without any result keeps its row, empty.
        """
        return [self._row(arm, ratio) for ratio in self.poison_ratios for arm in self.arms]

    def _row(self, arm: str, ratio: float | None) -> SummaryRow:
        last = max(self.steps(arm, ratio), default=None)
        phases: list[dict[str, Rate]] = []
        for phase in ("aligned", "finetuned"):
            found = {metric: self.rate(arm, metric, phase, ratio, last) for metric in SUMMARISED}
            phases.append({metric: rate for metric, rate in found.items() if rate is not None})
        return SummaryRow(arm, ratio, last, *phases)


def _by_stage(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """An arm's steps as a mapping: the methods of each stage in order, and their settings."""
    arm: dict[str, Any] = {}
    for step in steps:
        stage = next(name for name in step if name != "settings")
        arm[stage] = f"{arm[stage]}, {step[stage]}" if stage in arm else step[stage]
        if "settings" in step:
            arm.setdefault(f"{stage}_settings", {}).update(step["settings"])
    return arm
