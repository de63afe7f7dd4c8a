"""What a defence gains and what it costs: a metric of an arm beside the undefended arm's, and whether n suffices to tell.

Every comparison ends in one of four findings. `worse` and `better`: the 95 % interval of the difference leaves out 0. `no
worse`: it may hold 0, but no loss of `MARGIN` points. `cannot tell`: it holds both, or a sample is missing; then the comparison
says how many prompts and seeds it would take. Nothing is left out because it is uncertain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from titer.report.parts import Cell, Table, rate_cell
from titer.report.words import signed_interval, signed_text
from titer.results.summary import Rate, SummaryRow
from titer.stats.intervals import Estimate, difference_of, mean_interval, prompts_needed, seeds_needed, wilson

Finding = Literal["better", "worse", "no worse", "cannot tell"]
MARGIN = 5.0
"""Points: a loss of this size must be excluded before an arm is called no worse; the assay's margin of accuracies too."""

MEASURES = {
    "harmful_score": "harmful score",
    "over_refusal": "over-refusal",
    "broken_rate": "broken answers",
    "finetune_accuracy": "task accuracy",
}
"""What is compared, before fine-tuning and after it: the gain first, then the costs."""
_KINDS = {"worse": "bad", "better": "good", "no worse": "plain", "cannot tell": "unclear"}
_MORE_IS_BETTER = ("finetune_accuracy",)
_WHEN = {"aligned": "before", "finetuned": "after"}


@dataclass(frozen=True)
class Comparison:
    """One metric of one arm in one phase, beside the undefended arm's; every number in percent or points.

    Attributes:
        metric: One of `MEASURES`.
        phase: `aligned` (before fine-tuning) or `finetuned` (after it).
        ours: The arm's; `None` is "not measured".
        theirs: The undefended arm's.
        difference: Ours - theirs with its 95 % interval; `None` where either is missing.
        finding: See the module's docstring; `None` where there is no undefended arm to compare with.
        prompts: Prompts an arm that it would take to tell, were the rates as they were seen; `None` where n suffices.
        seeds: Seeds that it would take to tell, were they as different as they were; `None` where the seeds suffice.
    """

    metric: str
    phase: str
    ours: Rate | None
    theirs: Rate | None
    difference: Estimate | None
    finding: Finding | None
    prompts: int | None = None
    seeds: int | None = None

    @property
    def measure(self) -> str:
        """The metric as people read it."""
        return MEASURES[self.metric]

    @property
    def when(self) -> str:
        """`before` or `after` fine-tuning."""
        return _WHEN[self.phase]

    @property
    def difference_text(self) -> str:
        """The difference without its interval, `+35.0`; a dash where there is none."""
        return "–" if self.difference is None else signed_text(self.difference.value)

    @property
    def interval_text(self) -> str:
        """The interval of the difference, `+9.0 to +56.7`; empty where there is none."""
        return "" if self.difference is None else signed_interval(self.difference.low, self.difference.high)

    @property
    def needed_text(self) -> str:
        """How many prompts and seeds it would take to tell, `≈ 73 prompts, 12 seeds`; empty where it can be told."""
        counts = ((self.prompts, "prompts"), (self.seeds, "seeds"))
        return ", ".join(f"≈\u00a0{count:,}\u00a0{what}" for count, what in counts if count is not None)

    @property
    def words(self) -> str:
        """The difference in one clause."""
        return f"{self.measure} {self.when} fine-tuning {self.difference_text} points [{self.interval_text}]"


def comparisons(row: SummaryRow, base: SummaryRow | None) -> tuple[Comparison, ...]:
    """Compare an arm with the undefended arm in all of `MEASURES`, before and after fine-tuning.

    Args:
        row: The arm.
        base: The undefended arm at the same poison ratio; `None` where there is none, or `row` is it.
    """
    found = []
    for metric in MEASURES:
        for phase in _WHEN:
            ours = row.rate(metric, phase)
            if base is None:
                found.append(Comparison(metric, phase, ours, None, None, None))
            else:
                found.append(compare(metric, phase, ours, base.rate(metric, phase)))
    return tuple(found)


def compare(metric: str, phase: str, ours: Rate | None, theirs: Rate | None) -> Comparison:
    """Compare an arm's `metric` with the undefended arm's: the difference, what it shows, and what it would take to tell."""
    if ours is None or theirs is None:
        # Nothing is known about a rate that was not measured; at one half it takes the most prompts.
        rates = [0.5 if cell is None else cell.value / 100 for cell in (ours, theirs)]
        prompts = prompts_needed(rates[0], rates[1], MARGIN / 100)
        return Comparison(metric, phase, ours, theirs, None, "cannot tell", prompts)
    difference = difference_between(ours, theirs)
    value, low, high = difference
    # The same as a loss: more is worse.
    loss, least, most = (-value, -high, -low) if metric in _MORE_IS_BETTER else (value, low, high)
    if least > 0 or most < 0 or most < MARGIN:
        finding: Finding = "worse" if least > 0 else "better" if most < 0 else "no worse"
        return Comparison(metric, phase, ours, theirs, difference, finding)
    # Were the loss what was seen, an interval this near to it would leave out either 0 or MARGIN.
    within = max(loss, MARGIN - loss)
    prompts = prompts_needed(ours.value / 100, theirs.value / 100, within / 100)
    both, every = _by_seed(ours, theirs), {*ours.seeds, *theirs.seeds}
    # Without two seeds in common, what another seed does is not known: each arm needs those of the other.
    seeds = seeds_needed(both, within) if len(both) > 1 else len(every)
    return Comparison(
        metric,
        phase,
        ours,
        theirs,
        difference,
        "cannot tell",
        prompts if prompts > min(ours.n, theirs.n) else None,
        seeds if seeds > len(both) else None,
    )


def difference_between(ours: Rate, theirs: Rate) -> Estimate:
    """Ours - theirs in points, with a 95 % interval for other prompts and, with several seeds, for another seed.

    It covers `difference_of` Wilson's intervals over the prompts of one seed, and Student's t interval over the differences
    of the seeds that both arms have. Where they share fewer than two, each arm's interval is the one that covers its seeds.
    """
    both = _by_seed(ours, theirs)
    if len(both) > 1:
        sides = [
            Estimate(cell.value, *(100 * end for end in wilson(cell.value / 100 * cell.n, cell.n)))
            for cell in (ours, theirs)
        ]
    else:
        sides = [Estimate(cell.value, cell.low, cell.high) for cell in (ours, theirs)]
    value, low, high = difference_of(*sides)
    if len(both) > 1:
        _, lowest, highest = mean_interval(both)
        low, high = max(-100.0, min(low, lowest)), min(100.0, max(high, highest))
    return Estimate(value, low, high)


def compared_table(found: Iterable[Comparison], arm: str, base: str | None) -> Table:
    """Gain and costs of an arm beside the undefended arm, or its rates alone where there is none."""
    bands: dict[str, list[list[Cell | str]]] = {}
    for one in found:
        row: list[Cell | str] = [one.when, rate_cell(one.ours)]
        if one.finding is not None:
            below = "\n".join(filter(None, (one.interval_text, one.needed_text)))
            difference = Cell(one.difference_text, below, _KINDS[one.finding], one.finding)
            row += [rate_cell(one.theirs), difference]
        bands.setdefault(one.measure, []).append(row)
    beside = any(len(row) > 2 for rows in bands.values() for row in rows)
    return Table(("%", arm, *((str(base), "difference") if beside else ())), bands, kind="compare")


def listed(found: Iterable[Comparison]) -> str:
    """The measures with when they were taken, `over-refusal (before, after), task accuracy (before)`."""
    when: dict[str, list[str]] = {}
    for one in found:
        when.setdefault(one.measure, []).append(one.when)
    return ", ".join(f"{measure} ({', '.join(times)})" for measure, times in when.items())


def _by_seed(ours: Rate, theirs: Rate) -> list[float]:
    """The difference at each seed that both arms have."""
    other = dict(zip(theirs.seeds, theirs.per_seed, strict=True))
    return [value - other[seed] for seed, value in zip(ours.seeds, ours.per_seed, strict=True) if seed in other]
