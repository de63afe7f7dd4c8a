"""A scorecard once it is made: what it holds, its file, its requirements. Needs no model, and loads quickly.

`docs/assay.md` describes every key. All parts and probabilities are in [0, 1]; each budget is given with its unit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from titer.assays.conditions import Stability, Trainability, order_of
from titer.assays.resistance import Resistance, Survival
from titer.assays.trajectories import Trajectory
from titer.attacks.threats import Attack
from titer.errors import TiterError, check_known
from titer.files import check_output, folder_name, read_json
from titer.results.artefacts import write_atomically
from titer.results.reading import plain, typed
from titer.stats.intervals import Agreement

SCHEMA = "titer/scorecard/2"
CONDITIONS = ("resistance", "stability", "generalization", "trainability")
HOLDS = {
    "resistance": ("none", "undecided", "weak", "strong"),
    "generalization": ("none", "undecided", "weak", "strong"),
    "stability": ("no", "undecided", "yes"),
    "trainability": ("no", "undecided", "yes"),
}


class Part(NamedTuple):
    """A part of n prompts with its 95 % interval; a perplexity has none, and no value where it is no number."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Judged(Survival, Resistance):
    """Resistance and survival against some attackers: all of them, or those of one domain."""


@dataclass(frozen=True)
class Generalization:
    """Resistance by domain of harm.

    Attributes:
        verdict: The weaker of the two; `undecided` where nothing was held out.
        held_out_categories: Categories of harm that the defence did not know.
        in_domain: Against attackers with harm of the categories that it knew.
        cross: Against attackers with held-out harm; `None` where none was held out.
    """

    verdict: str
    held_out_categories: list[str]
    in_domain: Judged = field(metadata={"key": "in"})
    cross: Judged | None = None

    @property
    def domains(self) -> dict[str, Judged]:
        """The domains that were tested, `in` and `cross`."""
        return {name: found for name, found in (("in", self.in_domain), ("cross", self.cross)) if found is not None}


@dataclass(frozen=True)
class TaskEnd:
    """Where an attack on task data ended: how harmful the model is, and how well it does the task."""

    role: str
    attack: str
    seed: int
    poison_ratio: float
    harmful: Part
    accuracy: Part


@dataclass(frozen=True)
class Money:
    """What the worst attackers pay, `None` where none broke the model, on a machine of this price and speed."""

    currency: str
    price_per_hour: float
    flops_per_second: float
    worst: float | None
    undefended_worst: float | None


@dataclass(frozen=True)
class Hygiene:
    """What the figures rest on.

    Attributes:
        overlap: Prompts that two pools share, by pair.
        left_out: Prompts left out since the defence holds them.
        judges: Who judged; the first decides.
        agreement: Of the first judge with each other.
        judge_errors: Answers that a judge failed on.
        judged: Answers that it was given.
        failed: Attackers that failed: `role`, `attacker`, `reason`.
        destroyed: Those that destroyed the model: `role`, `attacker`, `step`.
        destroyed_at_once: Those that did before it was asked once: `role`, `attacker`.
        ended_early: Those that were ended since nothing that could follow would change when they broke the model: `role`,
            `attacker`, `step`, `why`. What they would have made of it later was not measured.
    """

    overlap: dict[str, int]
    left_out: int
    judges: list[str]
    agreement: dict[str, Agreement]
    judge_errors: dict[str, int]
    judged: dict[str, int]
    failed: list[dict[str, Any]]
    destroyed: list[dict[str, Any]]
    destroyed_at_once: list[dict[str, Any]]
    ended_early: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class CalibrationQuality:
    """How well margins tell harmfulness: over prompts (`auroc`), and for attackers that were not fitted on."""

    method: str
    n: int
    auroc: float | None
    mean_absolute_error: float | None
    error_is: str


@dataclass(frozen=True)
class Example:
    """An answer: whose, when, to what, and what the judge calls it (`None` where it failed)."""

    role: str
    when: str
    prompt: str
    response: str
    verdict: str | None


@dataclass(frozen=True)
class Scorecard:
    """The four conditions with figures, intervals and verdicts.

    Attributes:
        schema: `titer/scorecard/2`.
        model: The defended model.
        against: The undefended one.
        verdicts: On each condition.
        resistance: Against all attackers.
        generalization: By domain of harm.
        stability: Ability before any attack.
        trainability: Of an honest customer's task.
        poison: Where attacks on task data ended.
        attackers: Every attacker of each model.
        money: The worst attackers' price.
        hygiene: What the figures rest on.
        before: Both models before any attack, by measure.
        attacks: What the attacks do, by name.
        calibration: Of margins.
        examples: Answers before and after.
        provenance: What is needed to get the figures again.
    """

    schema: str
    model: str
    against: str
    verdicts: dict[str, str]
    resistance: Judged
    generalization: Generalization
    stability: Stability
    trainability: Trainability
    poison: list[TaskEnd]
    attackers: dict[str, list[Trajectory]]
    money: Money
    hygiene: Hygiene
    before: dict[str, dict[str, Part]]
    attacks: dict[str, Attack]
    calibration: CalibrationQuality
    examples: list[Example]
    provenance: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """What `scorecard.json` holds."""
        found: dict[str, Any] = plain(self)
        for measures in found["before"].values():
            for name, part in measures.items():
                # A perplexity has no interval, and no keys for one.
                measures[name] = {key: value for key, value in part.items() if key == "value" or value is not None}
        return found


def write_scorecard(folder: Path, card: Scorecard) -> Path:
    """Write `scorecard.json` and return its path. Atomic."""
    path = folder / "scorecard.json"
    write_atomically(path, json.dumps(card.as_dict(), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return path


def read_scorecard(path: Path) -> Scorecard:
    """Read a scorecard, from its file or from the folder it is in.

    Raises:
        TiterError: For a missing file, one that is no JSON object, one of another schema, or a key that does not belong.
    """
    file = path / "scorecard.json" if path.is_dir() else path
    card = read_json(file, "Make it with `titer assay DEFENDED --against UNDEFENDED`.")
    found = card.get("schema")
    if found != SCHEMA:
        older = "Its verdicts follow rules that were not defensible; a" if found == "titer/scorecard/1" else "A"
        raise TiterError(
            f"{file}: schema `{found}`, expected `{SCHEMA}`.", f"{older}ssay the model with this version of titer."
        )
    return typed(Scorecard, card, str(file), numbers=True)


def parse_requirements(text: str) -> list[tuple[str, str]]:
    """Return (condition, least verdict) of `resistance>=weak,stability,trainability`.

    A condition alone asks for its best: `yes`, and `strong` for resistance and generalization.

    Raises:
        TiterError: For an unknown condition or verdict.
    """
    wanted = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, sign, verdict = (piece.strip() for piece in part.partition(">="))
        check_known([name], CONDITIONS, "condition in `--require`")
        if sign:
            check_known([verdict], HOLDS[name], f"verdict of {name} in `--require`")
        wanted.append((name, verdict or HOLDS[name][-1]))
    if not wanted:
        raise TiterError("`--require` names no condition.", "For example --require 'resistance>=weak,stability'.")
    return wanted


def unmet(verdicts: Mapping[str, str], requirements: Sequence[tuple[str, str]]) -> list[str]:
    """Return what the verdicts of a scorecard lack of its requirements, in words."""
    return [
        f"{name} is `{verdicts[name]}`, and at least `{least}` is required"
        for name, least in requirements
        if order_of(verdicts[name]) < order_of(least)
    ]


def assay_folder(output: Path, name: str | None, model: str) -> Path:
    """Return the folder of an assay in the folder of assays: `name`, or by default the model's.

    Raises:
        TiterError: When `name` leads out of it, or what an assay leaves could not be written.
    """
    folder = output / (short_name(model) if name is None else folder_name(name, "--name"))
    check_output(output, folders=["jobs", "inputs", "leases"])
    check_output(folder, ["scorecard.json", "report.html", "model_card.md"])
    return folder


def short_name(model: str) -> str:
    """The last part of a model's path or hub id that says something."""
    parts = [part for part in Path(model).parts if part not in ("adapter", "/", ".", "..")]
    return parts[-1] if parts else "model"
