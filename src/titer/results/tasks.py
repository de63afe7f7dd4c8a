"""Task accuracy: what a response answers, read tolerantly, and whether that is right.

An answer that cannot be read is wrong, and is counted as unparsed besides: a model that stopped answering looks different
from one that answers wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from titer.errors import TiterError, check_known


@dataclass(frozen=True, slots=True)
class Task:
    """A fine-tuning task whose answers can be checked.

    Attributes:
        name: As in `task:<name>` of an inference's set.
        labels: The possible answers; empty where the answer is a number.
        chance: Accuracy of guessing uniformly, in percent.
        parse: Response to answer, or None when it cannot be read.
        revision: Changes whenever `parse` could answer differently.
    """

    name: str
    labels: tuple[str, ...]
    chance: float
    parse: Callable[[str], str | None]
    revision: int = 1

    @property
    def max_new_tokens(self) -> int:
        """How many tokens an answer needs: a label, or a worked calculation."""
        return 6 if self.labels else 200

    @property
    def judge(self) -> str:
        """Name under which results quote this parser: `parse:<task>@<revision>`."""
        return f"parse:{self.name}@{self.revision}"


def parse(task: str, response: str) -> str | None:
    """Return the answer that `response` gives, in the task's own spelling, or None when there is none or several.

    Raises:
        TiterError: When no task is called `task`.
    """
    return get(task).parse(response)


def correct(task: str, response: str, label: str) -> bool:
    """Whether `response` gives `label`, which is read by the same parser (`"18.0"` and `"… #### 18"` are both 18).

    Raises:
        TiterError: When no task is called `task`, or when `label` itself cannot be read.
    """
    expected = parse(task, label)
    if expected is None:
        labels = get(task).labels
        raise TiterError(
            f"`{label}` is not an answer of the task `{task}`.",
            "Known: " + ", ".join(labels) + "." if labels else "An answer of this task holds a number.",
        )
    return parse(task, response) == expected


def get(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        TiterError: When there is none, naming the closest.
    """
    check_known([name], TASKS, "task")
    return TASKS[name]


# Case-insensitive patterns of each answer. "not positive" is no mention: negation is not resolved, it is unparsed.
_NEGATED = r"(?<!\bnot )(?<!\bnever )(?<!\bneither )(?<!n't )(?<!\bnot a )(?<!\bnor )"
_SENTIMENTS = {
    "positive": re.compile(rf"{_NEGATED}\bpositive\b", re.IGNORECASE),
    "negative": re.compile(rf"{_NEGATED}\bnegative\b", re.IGNORECASE),
}
_TOPICS = {
    "World": re.compile(r"\bworld\b", re.IGNORECASE),
    "Sports": re.compile(r"\bsports?\b", re.IGNORECASE),
    "Business": re.compile(r"\bbusiness\b", re.IGNORECASE),
    "Sci/Tech": re.compile(r"\b(?:sci|scitech|science|tech|technology)\b", re.IGNORECASE),
}


def _one_of(answers: dict[str, re.Pattern[str]]) -> Callable[[str], str | None]:
    """A parser that accepts exactly one of `answers`."""

    def mentioned(text: str) -> str | None:
        found = [answer for answer, pattern in answers.items() if pattern.search(text)]
        return found[0] if len(found) == 1 else None

    def read(response: str) -> str | None:
        # A model that runs on after its label ("positive\n\nReview: …") has answered: a first line of at most three
        # words decides alone. "World Business" still names two.
        first, _, _ = response.strip().partition("\n")
        if 0 < len(re.findall(r"[^\W_]+", first)) <= 3 and (answer := mentioned(first)) is not None:
            return answer
        return mentioned(response)

    return read


_NUMBER = re.compile(
    r"(?<![\w.])[-+]?\s?(?:[$€£]\s?)?-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\w.])[-+]?[$€£]?\.\d+"
)
_FINAL = re.compile(r"final answer(?: is)?\s*:?", re.IGNORECASE)
_HASHES = re.compile(r"####")


def _number(response: str) -> str | None:
    """The number after "The final answer is:", else after "####", else the last number; None when there is none.

    Thousands separators, currency signs, bold, a trailing period and ".0" do not matter; `3/4` is read as 4, percent
    signs are dropped.
    """
    text = response.replace("−", "-").replace("*", " ").replace("\\boxed{", " ")
    for mark in (_FINAL, _HASHES):
        if match := mark.search(text):
            # The rest of the line; of an equation ("3 + 4 = 7") its result.
            rest = text[match.end() :].lstrip().partition("\n")[0]
            if found := _NUMBER.findall(rest.rpartition("=")[2]):
                return _canonical(found[0])
    # In "10-3" the sign belongs to no number: only a minus that follows no digit, word or bracket is one.
    found = _NUMBER.findall(text)
    return _canonical(found[-1]) if found else None


def _canonical(number: str) -> str:
    # "--5" is a dash before a number, which is one minus for want of a better reading.
    value = Decimal("-" * ("-" in number) + re.sub(r"[^\d.]", "", number))
    if value == value.to_integral_value():
        return str(int(value))
    return format(value.normalize(), "f")


# The built-in tasks and the public datasets they are modelled on share their parsers.
TASKS: dict[str, Task] = {
    name: task
    for names, labels, chance, reader in (
        (("sentiment", "sst2"), tuple(_SENTIMENTS), 50.0, _one_of(_SENTIMENTS)),
        (("topics", "ag_news"), tuple(_TOPICS), 25.0, _one_of(_TOPICS)),
        (("arithmetic", "gsm8k"), (), 0.0, _number),
    )
    for name in names
    for task in [Task(name, labels, chance, reader)]
}
