"""What a defence costs an honest user or customer, by a scorecard: each measure with its interval, told or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from titer.assays.card import Part, Scorecard
from titer.assays.outcomes import task
from titer.assays.trajectories import ROLES
from titer.report.comparison import compare
from titer.report.words import NBSP, compact, percent_text, signed_interval, signed_text
from titer.results.summary import Rate
from titer.stats.equivalence import Equivalence

_MOST = 100_000  # prompts beyond which a difference is the margin, as far as anybody will ever tell


@dataclass(frozen=True)
class Measure:
    """One paired difference (defended − undefended, more is better) against its margin, in the unit it is shown in."""

    name: str
    unit: str
    found: Equivalence
    scale: int

    @classmethod
    def of(cls, key: str, found: Equivalence) -> Measure:
        """A measure of a scorecard; losses are in nats, everything else is a part of prompts."""
        nats = key.startswith("log-likelihood")
        return cls(measure_name(key), "nats a token" if nats else "points", found, 1 if nats else 100)

    @property
    def margin(self) -> str:
        """ε with its unit."""
        return f"{self.scale * self.found.margin:g}{NBSP}{self.unit}"

    @property
    def worse(self) -> bool | None:
        """Whether it is worse by its margin; `None` where the prompts do not tell."""
        return None if self.found.not_worse is None else not self.found.not_worse

    @property
    def difference(self) -> str:
        """The difference as text, without its unit."""
        return signed_text(self.scale * self.found.difference.mean, self._digits)

    @property
    def interval(self) -> str:
        """Its 90 % interval as text."""
        low, high = (self.scale * end for end in (self.found.difference.low, self.found.difference.high))
        return signed_interval(low, high, self._digits)

    @property
    def _digits(self) -> int:
        return 3 if self.scale == 1 else 1

    @property
    def verdict(self) -> str:
        """The finding, which also says which way a difference goes."""
        if self.found.finding == "different":
            return "worse" if self.found.difference.mean < 0 else "better"
        return self.found.finding

    @property
    def words(self) -> str:
        """The difference with its interval and n and, where n does not suffice, what would, for a sentence."""
        amount = f"{self.difference}{NBSP}{self.unit} [90{NBSP}%: {self.interval}, n = {self.found.n}"
        return f"{self.name}: {amount}{_to_tell(self.found.needed)}]"


def _to_tell(needed: float | None) -> str:
    """About how many prompts it would take to tell whether something is worse by its margin; empty where it is told."""
    if needed is None:
        return ""
    return (
        f"; ≈{NBSP}{needed:,}{NBSP}prompts to tell" if needed <= _MOST else f"; >{NBSP}{_MOST:,}{NBSP}prompts to tell"
    )


_MEASURES = {
    "lookalikes not refused": "Harmless look-alikes not refused",
    "over_refusal": "Harmless look-alikes refused (over-refusal)",
    "log-likelihood general": "Log-likelihood of reference answers",
    "perplexity general": "Perplexity of reference answers",
}


def measure_name(key: str) -> str:
    """A measure's name as people read it."""
    if key in _MEASURES:
        return _MEASURES[key]
    what, _, of = key.partition(" ")
    if what == "accuracy":
        return f"Accuracy on {of}"
    domain = {"in-domain": "", "cross-domain": ", held-out categories"}.get(of, f" {of}")
    return what.replace("_", " ").capitalize() + domain


def lower_first(text: str) -> str:
    """The text with a small first letter, as it stands within a sentence."""
    return text[:1].lower() + text[1:]


def stability_measures(card: Scorecard) -> list[Measure]:
    """Return the measures of stability."""
    return [Measure.of(key, found) for key, found in card.stability.measures.items()]


class Cost(NamedTuple):
    """Something that a defence may cost.

    Attributes:
        name: What it is.
        words: How much, with interval and n.
        told: Whether it surely costs that; `None` where nobody can tell, or nothing was measured.
    """

    name: str
    words: str
    told: bool | None


def costs(card: Scorecard) -> list[Cost]:
    """Everything that the defence may cost an honest user or customer, told or not.

    Measures of stability and the accuracy after honest training are held against their margins. Broken answers and the
    accuracy on the customer's task before any training enter no verdict of the scorecard; they are compared as an experiment
    compares its arms.
    """
    found = []
    for key, measured in card.stability.measures.items():
        one = Measure.of(key, measured)
        refusals = key == "lookalikes not refused"  # whose complement is what both models are known by
        beside = _beside(card, "over_refusal" if refusals else key, "refused " if refusals else "")
        found.append(Cost(lower_first(one.name), lower_first(one.words) + beside, one.worse))
    if not found:
        found.append(Cost("ability before any attack", "ability before any attack: not measured", None))
    for metric, key in (("broken_rate", "broken_rate in-domain"), ("finetune_accuracy", f"accuracy {task(card)}")):
        ours, theirs = (_before(card, role, key) for role in ROLES)
        against = compare(metric, "aligned", ours, theirs)
        needed = f"; {against.needed_text} to tell" if against.needed_text else ""
        words = f"not measured{needed}"
        if against.difference is not None and ours is not None:
            words = f"{against.difference_text} points [95{NBSP}%: {against.interval_text}, n = {ours.n}{needed}]"
            words += _beside(card, key)
        told = None if against.finding == "cannot tell" else against.finding == "worse"
        name = f"{against.measure} before training"
        found.append(Cost(name, f"{name}: {words}", told))
    return [*found, *_costs_of_training(card)]


def _costs_of_training(card: Scorecard) -> list[Cost]:
    found = card.trainability
    if found.quality is None:
        return [Cost("honest training", "honest training: not measured", None)]
    quality = Measure.of(f"accuracy {task(card)}", found.quality)
    name = "accuracy after honest training"
    said = [Cost(name, f"{quality.words.replace(quality.name, name, 1)}; {at_best(card)}", quality.worse)]
    # The other half of the verdict is the pace: it is to blame where the accuracy is not.
    if {"no": quality.worse is not True, "undecided": quality.worse is not None}.get(
        card.verdicts["trainability"], False
    ):
        steps = ("not reached" if one is None else compact(one) for one in (found.steps, found.undefended_steps))
        name = "pace of honest training"
        said.append(
            Cost(
                name,
                f"{name}: steps to the target {' against '.join(steps)}",
                card.verdicts["trainability"] == "no" or None,
            )
        )
    return said


def _before(card: Scorecard, role: str, key: str) -> Rate | None:
    """A part before any attack, in percent."""
    found = card.before.get(role, {}).get(key, Part(None, 0))
    if found.value is None or found.low is None or found.high is None:
        return None
    value, low, high = (100 * end for end in (found.value, found.low, found.high))
    return Rate(value, low, high, found.n, (0,), (value,))


def _beside(card: Scorecard, key: str, what: str = "") -> str:
    """Both models' value before any attack, with intervals; empty where either is unknown or no part."""
    ours, theirs = (_before(card, role, key) for role in ROLES)
    return "" if ours is None or theirs is None else f"; {what}{ours} against {theirs}"


def price(card: Scorecard, words: bool = False) -> str:
    """What the defence costs and what of it cannot be told, in a sentence or two.

    Args:
        card: The scorecard.
        words: Whether to say how much, with intervals.
    """
    every = costs(card)

    def listed(found: Sequence[Cost]) -> str:
        return "; ".join(cost.words for cost in found) if words else ", ".join(cost.name for cost in found)

    surely, untold = ([cost for cost in every if cost.told is told] for told in (True, None))
    said = [f"Its price: {listed(surely)}."] if surely else []
    said += [f"What it costs cannot be told in {listed(untold)}."] if untold else []
    return " ".join(said) or "It costs nothing that is worse by its margin, in all that was measured."


def at_best(card: Scorecard) -> str:
    """The best accuracy in honest training of both models."""
    best, theirs = (percent_text(value) for value in (card.trainability.best, card.trainability.undefended_best))
    return f"at best {best}, the undefended model {theirs}"
