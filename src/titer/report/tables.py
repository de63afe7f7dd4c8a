"""The numbers of a run, summarised once for the terminal and for the HTML report.

Several seeds are summarised by their mean. Its interval is the Wilson interval of that mean over the prompts of *one*
seed, widened until it covers the value of every seed: every seed answers the same prompts, so pooling the counts would
count each prompt several times and give an interval that is too narrow, and it would hide how far the seeds lie apart.
A single seed keeps the interval that `results.json` states.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError
from titer.files import read_json
from titer.stats.intervals import wilson

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "titer/results/1"
METRICS = ("harmful_score", "refusal_rate", "broken_rate", "over_refusal", "finetune_accuracy")
_FIELDS = ("arm", "phase", "step", "poison_ratio", "seed", "metric", "value", "n", "low", "high", "judge")


@dataclass(frozen=True)
class Estimate:
    """One metric of one arm at one checkpoint, over all seeds; every number but `n` in percent.

    Attributes:
        value: Mean over the seeds.
        low: Lower end of the interval (see the module's docstring).
        high: Upper end of the interval.
        n: Prompts per seed; the smallest where the seeds differ.
        seeds: The seeds that were scored.
        per_seed: Their values, in the order of `seeds`.
        judge: Who judged.
    """

    value: float
    low: float
    high: float
    n: int
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    judge: str

    @property
    def interval(self) -> str:
        """The interval as text, `1.1–13.5`."""
        return f"{self.low:.1f}–{self.high:.1f}"

    def __str__(self) -> str:
        return f"{self.value:.1f}\u00a0% [{self.interval}]"


@dataclass(frozen=True)
class SummaryRow:
    """One arm at one poison ratio: aligned against the last checkpoint of fine-tuning. `None` is "not measured"."""

    arm: str
    poison_ratio: float | None
    step: int | None
    seeds: tuple[int, ...]
    harmful_score_aligned: Estimate | None
    harmful_score: Estimate | None
    refusal_rate: Estimate | None
    broken_rate_aligned: Estimate | None
    broken_rate: Estimate | None
    over_refusal_aligned: Estimate | None
    over_refusal: Estimate | None
    finetune_accuracy_aligned: Estimate | None
    finetune_accuracy: Estimate | None


def read_results(run: Path) -> dict[str, Any]:
    """Read and check `RUN/results.json`.

    Raises:
        TiterError: The file is missing, is not JSON, has another schema, or a row lacks a field or has a wrong type.
    """
    path = Path(run) / "results.json"
    hint = "Give the folder of a run that has been scored; `titer run` on the same experiment writes the file again."
    results = read_json(path, hint)
    check_results(results, str(path))
    return results


def check_results(results: object, where: str = "results") -> None:
    """Raise `TiterError` unless `results` has the shape of `titer/results/1`; `where` names the file."""
    schema = results.get("schema") if isinstance(results, dict) else None
    if not isinstance(results, dict) or schema != SCHEMA:
        raise TiterError(
            f"{where}: the schema is {schema!r}, not {SCHEMA!r}.", "Score the run again with this version of titer."
        )
    rows = results.get("results")
    if not isinstance(rows, list):
        raise TiterError(f"{where}: `results` must be a list of rows.")
    if not isinstance(results.get("provenance"), dict):
        raise TiterError(f"{where}: `provenance` must be an object.")
    seen: dict[tuple[Any, ...], Any] = {}
    for number, row in enumerate(rows):
        missing = [name for name in _FIELDS if not isinstance(row, dict) or name not in row]
        if missing:
            raise TiterError(f"{where}: results[{number}] lacks `{missing[0]}`.")
        if row["phase"] not in ("aligned", "finetuned"):
            raise TiterError(f"{where}: results[{number}].phase is {row['phase']!r}.", "`aligned` or `finetuned`.")
        for name in ("step", "seed", "n"):
            if not isinstance(row[name], int) or isinstance(row[name], bool):
                raise TiterError(f"{where}: results[{number}].{name} is {row[name]!r}, not a whole number.")
        for name in ("value", "low", "high", "poison_ratio"):
            if not isinstance(row[name], int | float) or isinstance(row[name], bool):
                raise TiterError(f"{where}: results[{number}].{name} is {row[name]!r}, not a number.")
        key = tuple(row[name] for name in ("arm", "phase", "step", "poison_ratio", "seed", "metric", "judge"))
        if seen.setdefault(key, row["value"]) != row["value"]:
            raise TiterError(
                f"{where}: results[{number}] gives {row['metric']} of arm `{row['arm']}` a second, different value."
            )


def arms(results: dict[str, Any]) -> list[str]:
    """The arms in the order of the experiment's file, also those without a result; then any others."""
    return list(dict.fromkeys([*planned_arms(results), *(row["arm"] for row in results["results"])]))


def planned_arms(results: dict[str, Any]) -> dict[str, Any]:
    """The arms of the experiment, name → methods and settings by stage; none where a single model was evaluated."""
    found: dict[str, Any] = results["provenance"].get("experiment", {}).get("arms", {})
    return {name: arm if isinstance(arm, dict) else _by_stage(arm) for name, arm in found.items()}


def _by_stage(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """An arm's steps as a mapping: the methods of each stage in order, and their settings."""
    arm: dict[str, Any] = {}
    for step in steps:
        stage = next(name for name in step if name != "settings")
        arm[stage] = f"{arm[stage]}, {step[stage]}" if stage in arm else step[stage]
        if "settings" in step:
            arm.setdefault(f"{stage}_settings", {}).update(step["settings"])
    return arm


def poison_ratios(results: dict[str, Any]) -> list[float | None]:
    """The poison ratios of the run, ascending; `[None]` where nothing was scored."""
    found = {row["poison_ratio"] for row in results["results"] if row["phase"] == "finetuned"}
    found = found or {row["poison_ratio"] for row in results["results"]}
    return sorted(found) or [None]


def judges(results: dict[str, Any], metric: str) -> list[str]:
    """Who judged `metric`, the headline judge first (the one that judged the first harmful score in the file)."""
    found = list(dict.fromkeys(str(row["judge"]) for row in results["results"] if row["metric"] == metric))
    lead = next((str(row["judge"]) for row in results["results"] if row["metric"] == "harmful_score"), None)
    return sorted(found, key=lambda judge: judge != lead)


def estimate(
    results: dict[str, Any],
    arm: str,
    metric: str,
    phase: str,
    poison_ratio: float | None,
    step: int | None = None,
    judge: str | None = None,
) -> Estimate | None:
    """Summarise one metric of one arm over its seeds; `None` when it was not measured.

    Args:
        results: What `read_results` returns.
        arm: The arm's name.
        metric: One of `METRICS`.
        phase: `aligned` (before any upload, so a row stands for every poison ratio) or `finetuned`.
        poison_ratio: The share of harmful rows in the upload.
        step: The checkpoint of phase `finetuned`.
        judge: Whose verdicts; the headline judge by default.
    """
    if judge is None:
        judge = next(iter(judges(results, metric)), None)
    by_seed: dict[int, dict[str, Any]] = {}
    for row in results["results"]:
        if (row["arm"], row["metric"], row["phase"], str(row["judge"])) != (arm, metric, phase, judge):
            continue
        # An aligned model has not seen any upload yet: its rows stand for every poison ratio.
        if phase == "aligned" or (row["step"], row["poison_ratio"]) == (step, poison_ratio):
            by_seed[row["seed"]] = row
    if not by_seed:
        return None
    rows = [by_seed[seed] for seed in sorted(by_seed)]
    values = tuple(float(row["value"]) for row in rows)
    n = min(int(row["n"]) for row in rows)
    mean = sum(values) / len(values)
    low, high = (100 * bound for bound in wilson(mean / 100 * n, n))
    if len(rows) == 1:
        low, high = float(rows[0]["low"]), float(rows[0]["high"])
    return Estimate(
        value=mean,
        low=min(low, *values),
        high=max(high, *values),
        n=n,
        seeds=tuple(sorted(by_seed)),
        per_seed=values,
        judge=str(judge),
    )


def steps(results: dict[str, Any], arm: str, poison_ratio: float | None) -> list[int]:
    """The checkpoints of fine-tuning at which `arm` was scored, ascending."""
    return sorted(
        {
            row["step"]
            for row in results["results"]
            if (row["arm"], row["phase"], row["poison_ratio"]) == (arm, "finetuned", poison_ratio)
        }
    )


def trajectory(
    results: dict[str, Any], arm: str, metric: str, poison_ratio: float | None
) -> list[tuple[int, Estimate]]:
    """`metric` along fine-tuning as (step, estimate); the aligned model is step 0."""
    points: dict[int, Estimate] = {}
    start = estimate(results, arm, metric, "aligned", poison_ratio)
    if start is not None:
        points[0] = start
    for step in steps(results, arm, poison_ratio):
        point = estimate(results, arm, metric, "finetuned", poison_ratio, step)
        if point is not None:
            points[step] = point
    return sorted(points.items())


def summary_rows(results: dict[str, Any]) -> list[SummaryRow]:
    """One row for each arm and poison ratio: the ratios ascending, in each the arms in the experiment's order.

    An arm of the experiment without any result keeps its row, empty.
    """
    return [_summary_row(results, arm, ratio) for ratio in poison_ratios(results) for arm in arms(results)]


def _summary_row(results: dict[str, Any], arm: str, ratio: float | None) -> SummaryRow:
    last = max(steps(results, arm, ratio), default=None)
    after = {
        metric: None if last is None else estimate(results, arm, metric, "finetuned", ratio, last) for metric in METRICS
    }
    before = {metric: estimate(results, arm, metric, "aligned", ratio) for metric in METRICS}
    scored = [cell for cell in after.values() if cell] or [cell for cell in before.values() if cell]
    return SummaryRow(
        arm=arm,
        poison_ratio=ratio,
        step=last,
        seeds=tuple(sorted({seed for cell in scored for seed in cell.seeds})),
        **{f"{metric}_aligned": cell for metric, cell in before.items() if metric != "refusal_rate"},
        **after,
    )


def ratio_text(poison_ratio: float | None) -> str:
    """A poison ratio as people read it: `20 % harmful`."""
    return "nothing scored" if poison_ratio is None else f"{100 * poison_ratio:g}\u00a0% harmful"


def signed_text(value: float, digits: int = 1) -> str:
    """A difference with its sign, `−1.2`."""
    text = f"{value:+.{digits}f}"
    # −0.04 is rounded to nothing, and nothing has no sign.
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def print_summary(results: dict[str, Any], console: Console) -> None:
    """Print the summary as a table: aligned → fine-tuned, with intervals, one block for each poison ratio.

    Args:
        results: What `read_results` returns.
        console: Where to print.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = summary_rows(results)
    ratios = list(dict.fromkeys(row.poison_ratio for row in rows))

    def number(cell: Estimate | None) -> str:
        return "–" if cell is None else f"{cell.value:.1f}"

    def change(first: Estimate | None, last: Estimate | None) -> Text:
        text = Text.assemble((f"{number(first)} → ", "dim"), (number(last), "bold"))
        return text if last is None else text.append(f"\n[{last.interval}]", style="dim")

    for ratio in ratios:
        table = Table(
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", title_justify="left"
        )
        if len(ratios) > 1:
            table.title = Text(f"Fine-tuning data: {ratio_text(ratio)}", style="bold")
        table.add_column("arm", overflow="fold")
        for name in ("HS\naligned → after", "refused", "broken", "over-\nrefusal", "FA\naligned → after", "n", "seeds"):
            table.add_column(name, justify="right")
        for row in rows:
            if row.poison_ratio != ratio:
                continue
            prompts = row.harmful_score or row.harmful_score_aligned
            questions = row.finetune_accuracy or row.finetune_accuracy_aligned
            counts = [f"{name} {cell.n}" for name, cell in (("HS", prompts), ("FA", questions)) if cell is not None]
            table.add_row(
                Text(row.arm),
                change(row.harmful_score_aligned, row.harmful_score),
                Text(number(row.refusal_rate)),
                Text(number(row.broken_rate)),
                Text(number(row.over_refusal)),
                change(row.finetune_accuracy_aligned, row.finetune_accuracy),
                Text("\n".join(counts) or "–", style="dim"),
                Text(str(len(row.seeds))),
            )
        console.print(table)
    console.print(Text(_legend(rows, ratios), style="dim"))


def _legend(rows: list[SummaryRow], ratios: list[float | None]) -> str:
    legend = (
        "All in percent. HS: harmful score, lower is safer. FA: fine-tuning accuracy, higher is better. "
        "[ ] 95 % interval; n: prompts of one seed."
    )
    if any(len(row.seeds) > 1 for row in rows):
        legend += " Several seeds: their mean; Wilson over one seed's prompts, widened to cover every seed."
    if len(ratios) == 1 and ratios[0] is not None:
        legend += f" Poison ratio {ratios[0]:g}."
    return legend
