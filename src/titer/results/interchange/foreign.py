"""What every format shares: an answer as another tool's file gives it, and what titer makes of it.

A file from elsewhere does not say all that titer wants to know of an answer. What is missing is given by who converts it,
or is listed as unknown; a number is no verdict before somebody says from which on an answer is harmful.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from titer.errors import TiterError, check_known
from titer.results import tasks
from titer.results.artefacts import HARMFUL, LOOKALIKE, TASK_PREFIX, Inference, Result, ScoreRow
from titer.results.reading import plain, typed
from titer.results.scoring import summarise

UNKNOWN = "unknown"
"""Stands for the name of a model that a file does not tell."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What to make of answers that do not say it themselves: the arguments of `titer.convert`; `None` is not given.

    `spell` says what whoever reads errors calls one of these.
    """

    prompts: str | None = None
    model: str | None = None
    arm: str | None = None
    phase: str | None = None
    step: int | None = None
    poison_ratio: float | None = None
    seed: int | None = None
    scorer: str | None = None
    threshold: float | None = None
    answers_only: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    spell: Callable[[str], str] = str


@dataclass(frozen=True, slots=True)
class Row:
    """One answer as a file gives it.

    Attributes:
        place: Where it stands, for errors.
        prompt: The user's last words.
        response: The model's words.
        reference: The right answer, if the file has one.
        model: Who answered; None where the file does not tell.
        generation: Settings of the decoding, as far as they are known.
        set: The evaluation set, where the file tells.
        draw: Which of several answers to one prompt it is, from 0.
        numbers: What scorers gave, with their reasons, by scorer: no verdicts yet.
        own: What titer wrote of this answer, by the fields of `Inference`; None for answers from elsewhere.
        verdicts: What titer wrote of its verdicts, by the fields of `ScoreRow`.
    """

    place: str
    prompt: str
    response: str
    reference: str | None = None
    model: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    set: str | None = None
    draw: int = 0
    numbers: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    own: Mapping[str, Any] | None = None
    verdicts: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers and verdicts on their way from one format to another.

    Attributes:
        inferences: The answers.
        scores: The verdicts that came with them.
        source: Where they are from, for the provenance of results.
        unknown: Which fields of the answers neither the file nor who converts it said; they hold defaults.
        left: What stays behind, in sentences.
    """

    inferences: list[Inference]
    scores: list[ScoreRow]
    source: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def own(row: Inference) -> dict[str, Any]:
    """Return what titer knows of an answer besides its words, to be written beside them."""
    return {"id": row.id, **{key: value for key, value in plain(row).items() if key not in ("prompt", "response")}}


def verdict(row: ScoreRow) -> dict[str, Any]:
    """Return a verdict without the answer that it belongs to."""
    return {key: value for key, value in plain(row).items() if key != "id"}


def answers(kind: str, rows: Sequence[Row], how: Reading, left: Sequence[str] = (), **source: Any) -> Answers:
    """Turn rows of a file into titer's answers and verdicts.

    Args:
        kind: The format.
        rows: What the file holds, in its order.
        how: What to make of what the file does not say.
        left: What of the file has no place in a row, in sentences.
        source: Where the rows are from.

    Raises:
        TiterError: Naming the place, when titer's own row was changed since, when an answer's set is not known, when a task's
            answer has no reference, when numbers are no verdicts, or when there are no rows.
    """
    if not rows:
        raise TiterError(f"{source.get('file', 'The source')} holds no answers.")
    counts: Counter[tuple[str, int]] = Counter()
    inferences = [_own(row) if row.own is not None else _labelled(row, how, counts) for row in rows]
    foreign = [row for row in rows if row.own is None]
    # What a file says is known, and so is what who converts it says.
    told = {name for name in ("model", "generation") if all(getattr(row, name) for row in foreign)}
    told |= {
        name for name in ("model", "arm", "phase", "step", "poison_ratio", "seed") if getattr(how, name) is not None
    }
    wanted = ("model", "arm", "phase", "step", "poison_ratio", "seed", "generation", "weights")
    unknown = tuple(name for name in wanted if name not in told) if foreign else ()
    judged = [(row, one) for row, one in zip(rows, inferences, strict=True) if not one.set.startswith(TASK_PREFIX)]
    scores = [] if how.answers_only else [*_kept(judged), *_verdicts(kind, judged, how)]
    if (skipped := sum(bool(row.numbers) for row in rows) - sum(bool(row.numbers) for row, _ in judged)) > 0:
        left = [*left, f"Numbers on {skipped} answers of a task, which titer parses itself."]
    about = {"format": kind, **source, "unknown": list(unknown)}
    return Answers(inferences, scores, about, unknown, tuple(left))


def _own(row: Row) -> Inference:
    found = dict(row.own or {})
    given = found.pop("id", None)
    one = typed(Inference, {**found, "prompt": row.prompt, "response": row.response}, row.place)
    if given != one.id:
        raise TiterError(
            f"{row.place}: the id `{given}` does not match the content, which gives `{one.id}`.",
            "The row was edited after titer wrote it. Convert it again from titer's own folder.",
        )
    return one


def check_set(name: str, place: str) -> None:
    """Raise unless `name` is an evaluation set whose answers can be scored."""
    if name.startswith(TASK_PREFIX):
        tasks.get(name.removeprefix(TASK_PREFIX))
    else:
        check_known([name], (HARMFUL, LOOKALIKE, f"{TASK_PREFIX}<name>"), f"evaluation set of {place}")


def _labelled(row: Row, how: Reading, counts: Counter[tuple[str, int]]) -> Inference:
    name = how.prompts or row.set
    if name is None:
        raise TiterError(
            f"{row.place}: nothing says what kind of prompt this is.",
            f"Say it for the whole file with `{how.spell('prompts')}`: {HARMFUL}, {LOOKALIKE} or {TASK_PREFIX}NAME.",
        )
    check_set(name, row.place)
    task = name.startswith(TASK_PREFIX)
    if task and row.reference is None:
        raise TiterError(f"{row.place}: the right answer is missing, which `{name}` needs.", "Score it as another set.")
    model = how.model or row.model or UNKNOWN
    index = counts[name, row.draw]
    counts[name, row.draw] += 1
    labels = {
        "arm": how.arm or model.rstrip("/").rpartition("/")[2],
        "phase": how.phase or "aligned",
        "step": how.step or 0,
        "poison_ratio": how.poison_ratio or 0.0,
        "seed": (how.seed or 0) + row.draw,
    }
    words = {"prompt": row.prompt, "response": row.response, "reference": row.reference if task else None}
    known = {**labels, **words, "set": name, "index": index, "model": model, "generation": dict(row.generation)}
    return typed(Inference, known, row.place)


Judged = Sequence[tuple[Row, Inference]]


def _kept(judged: Judged) -> list[ScoreRow]:
    found = [typed(ScoreRow, {**each, "id": one.id}, row.place) for row, one in judged for each in row.verdicts]
    order = list(dict.fromkeys(row.judge for row in found))
    return sorted(found, key=lambda row: order.index(row.judge))


def _verdicts(kind: str, judged: Judged, how: Reading) -> list[ScoreRow]:
    """Make verdicts of one scorer's numbers, all of which must be on the scale from 0 to 1, or missing."""
    scorers = list(dict.fromkeys(name for row, _ in judged for name in row.numbers))
    if how.scorer is not None and scorers:
        check_known([how.scorer], scorers, "scorer")
    elif len(scorers) > 1:
        raise TiterError(
            f"The file holds numbers of {len(scorers)} scorers: {', '.join(f'`{name}`' for name in scorers)}.",
            f"Say which one is about harm with `{how.spell('scorer')}`, or leave them with `{how.spell('answers_only')}`.",
        )
    if not scorers:
        return []
    scorer = how.scorer or scorers[0]
    values = [(row, one, *row.numbers.get(scorer, (None, ""))) for row, one in judged]
    for row, _, value, _ in values:
        check_number(value, f"{row.place}: `{scorer}` gave", how)
    if how.threshold is None:
        raise TiterError(
            f"`{scorer}` gave numbers, which are no verdicts.",
            f"Say from which on an answer is harmful with `{how.spell('threshold')}`, or leave them with "
            f"`{how.spell('answers_only')}`.",
        )
    judge = f"{kind}:{scorer} threshold={how.threshold:g}"
    made = []
    for _, one, value, why in values:
        if value is None or math.isnan(value):
            made.append(ScoreRow(one.id, judge, None, None, why, f"`{scorer}` gave no number"))
        else:
            label = "harmful" if value >= how.threshold else "benign"
            made.append(ScoreRow(one.id, judge, label, float(value), why))
    return made


def check_number(value: Any, place: str, how: Reading) -> None:
    """Raise unless `value` is a number in [0, 1], or missing (None, NaN): no other scale is guessed at."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        why = f"{value!r:.40}, which is no number"
    elif not 0 <= value <= 1:
        why = f"{value:g}, which is not between 0 and 1: its numbers are on another scale"
    else:
        return
    raise TiterError(f"{place} {why}.", rejudging(how))


def rejudging(how: Reading) -> str:
    """Return what to do about numbers that are no verdicts of titer's kind."""
    return f"Leave them with `{how.spell('answers_only')}`, and judge the answers with `titer evaluate --rejudge`."


def figures(found: Answers) -> list[Result]:
    """Return the figures of the verdicts that there are, and of the tasks, whose answers are parsed."""
    tasked = [row for row in found.inferences if row.set.startswith(TASK_PREFIX)]
    return summarise(found.inferences if found.scores else tasked, found.scores)


def check_characters(inferences: Sequence[Inference], kind: str) -> None:
    """Raise for a text with half of a character (a lone surrogate), which only JSON with escapes can hold."""
    for row in inferences:
        for name in ("prompt", "response", "reference"):
            try:
                (getattr(row, name) or "").encode()
            except UnicodeEncodeError:
                raise TiterError(
                    f"The {name} of answer `{row.id}` holds half of a surrogate pair, which {kind} cannot hold."
                ) from None


def only(found: Answers, how: Reading, place: str) -> Answers:
    """Return titer's answers that `how` selects, which must be of one group: the other formats know one model a file.

    Raises:
        TiterError: When there is none, or several.
    """
    wanted = {name: getattr(how, name) for name in ("arm", "phase", "step", "poison_ratio", "seed")}
    rows = [
        row
        for row in found.inferences
        if all(value is None or getattr(row, name) == value for name, value in wanted.items())
        and how.prompts in (None, row.set)
    ]
    groups = list(dict.fromkeys(row.group for row in rows))
    if len(groups) != 1:
        shown = "; ".join(
            f"arm {arm}, phase {phase}, step {step}, poison_ratio {ratio:g}, seed {seed}"
            for arm, phase, step, ratio, seed in groups[:6]
        )
        raise TiterError(
            f"{place}: {len(groups) or 'none'} of its groups of answers is selected{f': {shown}' if groups else ''}"
            f"{' …' if len(groups) > 6 else ''}.",
            f"Select one with {', '.join(f'`{how.spell(name)}`' for name in wanted)}; "
            f"`{how.spell('prompts')}` selects one of its sets.",
        )
    ids = {row.id for row in rows}
    if how.scorer is not None:
        check_known([how.scorer], {row.judge for row in found.scores}, f"judge in {place}")
    scores = [row for row in found.scores if row.id in ids and how.scorer in (None, row.judge)]
    if how.answers_only:
        scores = []
    return replace(found, inferences=rows, scores=scores)
