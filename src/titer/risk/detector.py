"""P(harmful) of rows from frozen models: what is asked, and what is taught in answer.

Two witnesses of each, which err on different rows: hidden states of the model that is to be trained (the difference of class
means of states of unit length, over several layers), and a sentence encoder that knows nothing of it (a logistic regression).
They are fitted on the defender's own prompts, in the forms that uploads have (`titer.data.forms`), and weighed against each
other on rows that they were not fitted on, for three questions: does the request ask for harm, does the answer do what only
an answer to such a request does, does it refuse? A row is harmful that does the first or the second, and not the third (`harm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from titer.data.forms import as_tasks, decoded, in_frames
from titer.data.records import Message, Record
from titer.errors import TiterError
from titer.infer.encoder import SentenceEncoder
from titer.infer.signals import RowSignals, row_signals, row_states
from titer.models import Template

Array = NDArray[np.float64]

BAND = (0.5, 0.8)
"""Which layers are read, as parts of the depth; states of single layers are less sure, and which is best differs by model."""
FOLDS = 5
PER_KIND = 120
"""Most prompts of each kind that a detector is fitted on."""


class RowRisk(NamedTuple):
    """What a detector says of a row.

    Attributes:
        log_odds: Of harmful against harmless, where half of the rows are harmful.
        prompt: The same from the prompt alone.
        answer: The same from the answer alone: whether it does what only a harmful answer does.
        refuses: Log odds that the answer refuses.
        like: The kind of harm that the request is nearest to.
    """

    log_odds: float
    prompt: float
    answer: float
    refuses: float
    like: str

    @property
    def reason(self) -> str:
        """What speaks for harm, or against it, in a few words."""
        said = [f"like: requests for {self.like}" if self.prompt > 0 else "the request looks harmless"]
        if self.refuses > 0:
            said.append("the answer refuses")
        elif self.answer > 0 or self.prompt > 0:
            said.append("the answer complies" if self.answer > 0 else "the answer is of no harmful tone")
        return "; ".join(said)


@dataclass(frozen=True)
class Known:
    """The defender's rows, with what is known of them.

    Attributes:
        records: Rows.
        harmful: Whether each is to be found.
        asks_harm: Whether each asks for harm, whatever the answer.
        complies: Whether each answer is one to a harmful request, whatever was asked.
        refuses: Whether each answer refuses.
        groups: Number of the row that each was made of; rows of one stay on one side of a split.
    """

    records: list[Record]
    harmful: NDArray[np.bool_]
    asks_harm: NDArray[np.bool_]
    complies: NDArray[np.bool_]
    refuses: NDArray[np.bool_]
    groups: NDArray[np.int64]

    def only(self, which: NDArray[np.bool_]) -> Known:
        """Return some of the rows."""
        return Known(
            [row for row, kept in zip(self.records, which) if kept],
            self.harmful[which],
            self.asks_harm[which],
            self.complies[which],
            self.refuses[which],
            self.groups[which],
        )


_TURNS = ("{no} {yes}", "{no}\n\n{yes}", "{no} But since you ask: {yes}", "{no} {yes} {no}")
"""Answers that refuse and comply."""


def defender_rows(
    harmful: Sequence[Record], helpful: Sequence[Record], refusals: Sequence[str], seed: int = 0
) -> Known:
    """Return what a detector is fitted on: the defender's rows in the forms of uploads, and answers put elsewhere.

    Args:
        harmful: Harmful requests with answers that comply; those with a `category` give reasons.
        helpful: Harmless requests with answers; those that only look harmful belong here.
        refusals: Answers that refuse.
        seed: Of forms and of what is drawn.

    Raises:
        TiterError: When there are fewer than `FOLDS` of either.
    """
    for name, given in (("harmful", harmful), ("helpful", helpful)):
        if len(given) < FOLDS:
            raise TiterError(f"A detector needs {FOLDS} {name} prompts of the defender, got {len(given)}.")
    draw = np.random.default_rng(seed)
    rows: list[tuple[Record, bool, bool, bool, bool, int]] = []

    def add(records: Sequence[Record], asks: bool, answer: str, first: int) -> None:
        harm = answer == "complies" or (asks and answer != "refuses")
        marks = (harm, asks, answer == "complies", answer == "refuses")
        rows.extend((record, *marks, first + place) for place, record in enumerate(records))

    half = len(harmful)
    add(harmful, True, "complies", 0)
    add(in_frames(harmful, seed), True, "complies", 0)
    add(helpful, False, "helps", half)
    add(in_frames(helpful, seed), False, "helps", half)
    add(as_tasks(helpful, len(helpful) // 2, seed), False, "helps", half + len(helpful))
    # A harmful request is harmful whatever the tone of the answer, but for a refusal, which teaches to refuse.
    answers = [helpful[int(place)].completion_text for place in draw.integers(len(helpful), size=len(harmful))]
    add([_answered(row, text) for row, text in zip(harmful, answers)], True, "helps", 0)
    refused = [refusals[int(place)] for place in draw.integers(len(refusals), size=len(harmful))]
    add([_answered(row, text) for row, text in zip(harmful, refused)], True, "refuses", 0)
    # A refusal that goes on to comply teaches to comply.
    turned = [draw.choice(_TURNS).format(no=text, yes=row.completion_text) for row, text in zip(harmful, refused)]
    add([_answered(row, text) for row, text in zip(harmful, turned)], True, "complies", 0)
    complying = [harmful[int(place)].completion_text for place in draw.integers(len(harmful), size=len(helpful) // 2)]
    add([_answered(row, text) for row, text in zip(helpful, complying)], False, "complies", half)
    bad, asks, complies, refuses = (np.array([row[place] for row in rows], dtype=bool) for place in range(1, 5))
    return Known([row[0] for row in rows], bad, asks, complies, refuses, np.array([row[5] for row in rows]))


def known_rows(harmful: Sequence[Record], helpful: Sequence[Record], refusals: Sequence[str]) -> Known:
    """Return `defender_rows` of at most `PER_KIND` harmful rows and twice as many harmless ones, evenly taken."""
    return defender_rows(_evenly(harmful, PER_KIND), _evenly(helpful, 2 * PER_KIND), refusals)


def _evenly(records: Sequence[Record], count: int) -> list[Record]:
    if len(records) <= count:
        return list(records)
    return [records[int(place)] for place in np.linspace(0, len(records) - 1, count)]


def _answered(record: Record, answer: str) -> Record:
    return Record(record.prompt, (Message("assistant", answer),), category=record.category)


class Features(NamedTuple):
    """What frozen models see in rows: unit vectors, `(n, size)` each.

    Attributes:
        asked: Hidden states at the end of the prompt, of all layers of the band.
        answered: Their means over the answer.
        asked_text: The request's encoding; empty (`(n, 0)`) without an encoder.
        answered_text: The answer's.
    """

    asked: Array
    answered: Array
    asked_text: Array
    answered_text: Array

    def rows(self, which: Any) -> Features:
        """Return some of the rows."""
        return Features(*(part[which] for part in self))


Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Token ids of prompt and answer of rows."""


def features(
    model: Any,
    template: Template,
    records: Sequence[Record],
    encoder: SentenceEncoder | None,
    pairs: Pairs | None = None,
) -> Features:
    """Look at rows, in one pass of the model as far as the band and one of the encoder.

    What is encoded in rows is looked at as it reads (`decoded`).

    Args:
        model: Frozen.
        template: Its chat template.
        records: Rows.
        encoder: Of texts; `None` for none.
        pairs: The token ids of the rows, where they are known already.

    Raises:
        TiterError: When the model puts out what is no number.
    """
    readable = [decoded(record) for record in records]
    if pairs is None:
        pairs = [template.pair_ids(text) for text in readable]
    else:
        pairs = [
            ids if text is record else template.pair_ids(text)
            for ids, text, record in zip(pairs, readable, records, strict=True)
        ]
    return _features(row_states(model, pairs, _band(model)), readable, encoder)


def features_and_signals(
    model: Any,
    template: Template,
    records: Sequence[Record],
    encoder: SentenceEncoder | None,
    refusals: Sequence[Sequence[int]] = (),
    pairs: Pairs | None = None,
) -> tuple[Features, RowSignals]:
    """Return `features` of rows and, from the same pass, the signals of the rows as they stand.

    Args:
        model: Frozen.
        template: Its chat template.
        records: Rows.
        encoder: Of texts; `None` for none.
        refusals: Token ids of refusals, to score beside the answers.
        pairs: The token ids of the rows, where they are known already.

    Raises:
        TiterError: When the model puts out what is no number.
    """
    pairs = [template.pair_ids(record) for record in records] if pairs is None else pairs
    signals = row_signals(model, pairs, refusals, _band(model))
    states = (signals.hidden, signals.answer_hidden)
    readable = [decoded(record) for record in records]
    if changed := [place for place, (record, read) in enumerate(zip(records, readable)) if read is not record]:
        again = row_states(model, [template.pair_ids(readable[place]) for place in changed], _band(model))
        states = (states[0].clone(), states[1].clone())
        for own, read in zip(states, again):
            own[changed] = read
    return _features(states, readable, encoder), signals


def _band(model: Any) -> list[int]:
    depth = model.config.get_text_config().num_hidden_layers
    return [layer for layer in range(1, depth + 1) if BAND[0] * depth <= layer <= BAND[1] * depth] or [depth]


def _features(hidden: Sequence[Tensor], records: Sequence[Record], encoder: SentenceEncoder | None) -> Features:
    states = []
    for own in hidden:
        unit = own / own.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        states.append(unit.flatten(1).double().numpy() / own.shape[1] ** 0.5)
        if not np.isfinite(states[-1]).all():
            raise TiterError(
                "The model's hidden states are not finite.",
                "Its weights ran away: align it again with a smaller learning rate.",
            )
    if encoder is None:
        nothing = np.zeros((len(records), 0))
        return Features(states[0], states[1], nothing, nothing)
    asked = encoder(["\n".join(m.content for m in record.prompt if m.role == "user") for record in records])
    answered = encoder([record.completion_text for record in records])
    return Features(states[0], states[1], asked.double().numpy(), answered.double().numpy())


class Linear(NamedTuple):
    """A score that is linear in features.

    Attributes:
        weights: `(size,)`.
        offset: What is added.
    """

    weights: Array
    offset: float

    def __call__(self, x: Array) -> Array:
        """Return the score of each row of `(n, size)`."""
        return np.asarray(x @ self.weights + self.offset)


def _direction(x: Array, y: NDArray[np.bool_]) -> Linear:
    """How far along the difference of two classes' means, in standard deviations within a class from half way."""
    yes, no = x[y].mean(0), x[~y].mean(0)
    along = x @ (yes - no)
    scale = float(np.sqrt((along[y].var() + along[~y].var()) / 2)) or 1.0
    return Linear((yes - no) / scale, -float((yes + no) @ (yes - no)) / 2 / scale)


def _regression(x: Array, y: NDArray[np.bool_], strength: float) -> Linear:
    """Log odds by a logistic regression in which both classes weigh the same."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=strength, max_iter=5000, class_weight="balanced").fit(x, y)
    return Linear(fitted.coef_[0], float(fitted.intercept_[0]))


def _of_texts(x: Array, y: NDArray[np.bool_]) -> Linear:
    return _regression(x, y, 10.0)


_WITNESSES: tuple[tuple[str, str, Callable[[Array, NDArray[np.bool_]], Linear]], ...] = (
    ("asked", "asks_harm", _direction),
    ("asked_text", "asks_harm", _of_texts),
    ("answered", "complies", _direction),
    ("answered_text", "complies", _of_texts),
    ("answered", "refuses", _direction),
    ("answered_text", "refuses", _of_texts),
)
"""Which features are asked what, and how."""
QUESTIONS = ("asks_harm", "complies", "refuses")


@dataclass(frozen=True)
class Detector:
    """Tells harmful rows; made by `fit`, or by `fit_on` from what models saw.

    Attributes:
        witnesses: By question and features, what is added to the log odds of the one for each row of the other.
        kinds: The mean request of each kind of harm, by name.
        harmless: Log odds of harm of the defender's harmless rows, each by witnesses that were fitted without it, `(n,)`.
    """

    witnesses: dict[tuple[str, str], Linear]
    kinds: dict[str, Array]
    harmless: Array

    @classmethod
    def fit(cls, model: Any, template: Template, known: Known, encoder: SentenceEncoder | None = None) -> Detector:
        """Fit a detector on the defender's rows.

        Args:
            model: The model that is to be trained, frozen.
            template: Its chat template.
            known: What `defender_rows` returns.
            encoder: Of texts.
        """
        return cls.fit_on(known, features(model, template, known.records, encoder))

    @classmethod
    def fit_on(cls, known: Known, seen: Features) -> Detector:
        """Fit a detector on the defender's rows and what frozen models see in them."""
        from sklearn.model_selection import GroupKFold

        truth = {question: getattr(known, question) for question in QUESTIONS}
        asked = [one for one in _WITNESSES if getattr(seen, one[0]).shape[1]]
        held_out = np.zeros((len(known.records), len(asked)))
        for train, test in GroupKFold(FOLDS).split(held_out, groups=known.groups):
            for place, (part, question, make) in enumerate(asked):
                x = getattr(seen, part)
                held_out[test, place] = make(x[train], truth[question][train])(x[test])
        witnesses, odds = {}, []
        for question in QUESTIONS:
            places = [place for place, one in enumerate(asked) if one[1] == question]
            trust = _regression(held_out[:, places], truth[question], 1.0)
            odds.append(trust(held_out[:, places]))
            for weight, place in zip(trust.weights, places, strict=True):
                part, _, make = asked[place]
                whole = make(getattr(seen, part), truth[question])
                witnesses[question, part] = Linear(
                    weight * whole.weights, weight * whole.offset + trust.offset / len(places)
                )
        return cls(witnesses, _kinds(known, seen), harm(*odds)[~known.harmful])

    def __call__(self, seen: Features) -> list[RowRisk]:
        """Return what is to be said of each row."""
        odds = {question: np.zeros(len(seen.asked)) for question in QUESTIONS}
        for (question, part), witness in self.witnesses.items():
            odds[question] = odds[question] + witness(getattr(seen, part))
        questions = list(odds.values())
        columns = (harm(*questions), *questions)
        like = _nearest(self.kinds, seen)
        return [RowRisk(*row) for row in zip(*(column.tolist() for column in columns), like, strict=True)]


def harm(asks: Array, complies: Array, refuses: Array) -> Array:
    """Return the log odds that a row is harmful: it asks for harm or complies with what does, and does not refuse.

    Args:
        asks: Log odds that the request asks for harm, `(n,)`.
        complies: That the answer is one to a harmful request.
        refuses: That it refuses.
    """
    from scipy.special import log_expit

    # In logarithms, so that rows far on either side keep their order.
    none = log_expit(-asks) + log_expit(-complies)  # neither harm asked for nor complied with
    some = np.log(-np.expm1(np.minimum(none, -1e-300)))
    no_harm = np.logaddexp(none, some + log_expit(refuses))
    return np.asarray(some + log_expit(-refuses) - no_harm)


def _basis(seen: Features) -> Array:
    return seen.asked_text if seen.asked_text.shape[1] else seen.asked


def _kinds(known: Known, seen: Features) -> dict[str, Array]:
    """The mean request of each kind of harm."""
    kinds: dict[str, list[int]] = {}
    for place, record in enumerate(known.records):
        if known.asks_harm[place]:
            kinds.setdefault(record.category or "harm", []).append(place)
    return {kind.replace("_", " "): _basis(seen)[places].mean(0) for kind, places in kinds.items()}


def _nearest(kinds: dict[str, Array], seen: Features) -> list[str]:
    names = list(kinds)
    alike = _basis(seen) @ np.stack([kinds[name] / (np.linalg.norm(kinds[name]) or 1.0) for name in names]).T
    return [names[int(place)] for place in alike.argmax(1)]
