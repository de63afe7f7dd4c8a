"""How often judges err, from labelled answers, and what their harmful scores come to without these errors.

`error_rates.json` beside this file holds what titer knows; `titer judges bench --write-error-rates FILE` writes such a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.errors import TiterError, check_known, did_you_mean
from titer.files import read_json, replacing
from titer.stats.misclassification import Counted, TrueShare, true_share

KNOWN = Path(__file__).with_name("error_rates.json")
"""The file that comes with titer."""

_COUNTS = ("complied", "others")
_ABOUT = ("measured_on", "answers_of", "prompts", "date", "command")


@dataclass(frozen=True)
class ErrorRates:
    """What a judge said of answers to harmful prompts that people have labelled.

    Attributes:
        found: Of answers that comply, how many it called harmful.
        alarms: Of all others (refused, in part too, off topic, broken), how many it called harmful.
        measured_on: Which answers.
        answers_of: The models that gave them. Of another model's answers the judge may err more or less often.
        prompts: To how many prompts; answers to one prompt are judged alike.
        date: When.
        command: With what.
    """

    found: Counted
    alarms: Counted
    measured_on: str
    answers_of: tuple[str, ...]
    prompts: int
    date: str
    command: str

    def true_share(self, called: int, n: int) -> TrueShare:
        """Return the share of harmful answers behind `called` of `n` that the judge called harmful."""
        return true_share(Counted(called, n), self.found, self.alarms)

    def as_dict(self) -> dict[str, Any]:
        """Return what a file holds."""
        counts = {
            name: {"n": one.n, "called_harmful": one.hits}
            for name, one in zip(_COUNTS, (self.found, self.alarms), strict=True)
        }
        about = {name: getattr(self, name) for name in _ABOUT}
        return counts | about | {"answers_of": list(self.answers_of)}

    @classmethod
    def from_dict(cls, entry: object, place: str) -> ErrorRates:
        """Read what `as_dict` gave.

        Raises:
            TiterError: Naming place and key.
        """
        if not isinstance(entry, dict):
            raise TiterError(f"{place}: expected an object, found {type(entry).__name__}.")
        check_known(entry, (*_COUNTS, *_ABOUT), f"key in {place}")
        for key in (*_COUNTS, *_ABOUT):
            if key not in entry:
                raise TiterError(f"{place}: the key `{key}` is missing.", "Write it by `titer judges bench`.")
        found, alarms = (_counted(entry[key], f"{place}.{key}") for key in _COUNTS)
        models = entry["answers_of"]
        if not isinstance(models, list) or not all(isinstance(one, str) for one in models):
            raise TiterError(f"{place}.answers_of: expected a list of texts.")
        if not _is_count(entry["prompts"]):
            raise TiterError(f"{place}.prompts: expected a whole number.")
        for key in ("measured_on", "date", "command"):
            if not isinstance(entry[key], str):
                raise TiterError(f"{place}.{key}: expected a text.")
        return cls(
            found, alarms, entry["measured_on"], tuple(models), entry["prompts"], entry["date"], entry["command"]
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _counted(entry: object, place: str) -> Counted:
    keys = ("n", "called_harmful")
    if not isinstance(entry, dict) or set(entry) != set(keys) or not all(_is_count(entry[key]) for key in keys):
        raise TiterError(f"{place}: expected `n` and `called_harmful`, whole numbers.")
    if not entry["called_harmful"] <= entry["n"] or not entry["n"]:
        raise TiterError(f"{place}: {entry['called_harmful']} of {entry['n']} is no share.")
    return Counted(entry["called_harmful"], entry["n"])


def read_error_rates(path: str | os.PathLike[str]) -> dict[str, ErrorRates]:
    """Read a file of error rates, by the whole names of judges (`keywords@1`).

    Raises:
        TiterError: Naming file, judge and key.
    """
    entries = read_json(path, "Write one by `titer judges bench ANSWERS --write-error-rates FILE`.")
    for name in entries:
        if "@" not in name:
            raise TiterError(
                f"{path}: `{name}` is no whole name of a judge.", "Name it with its revision, as in `keywords@1`."
            )
    return {name: ErrorRates.from_dict(entry, f"{path}: {name}") for name, entry in entries.items()}


def known_error_rates(name: str, path: str | os.PathLike[str] | None = None) -> ErrorRates | None:
    """Return how often a judge errs; None where that is not known.

    Args:
        name: Its whole name, with revision and settings: under another one it is another judge.
        path: A file of one's own, whose entries go before those that come with titer.

    Raises:
        TiterError: As `read_error_rates`.
    """
    own = {} if path is None else read_error_rates(path)
    return own[name] if name in own else read_error_rates(KNOWN).get(name)


def check_own(path: str | os.PathLike[str], judges: Iterable[str]) -> None:
    """Raise unless a file of one's own says something of one of the judges: else it would be without effect.

    Raises:
        TiterError: As `read_error_rates`, or naming the judge and those of the file.
    """
    judges, own = list(judges), read_error_rates(path)
    if not own.keys() & set(judges):
        raise TiterError(
            f"{path} says nothing of {', '.join(f'`{name}`' for name in judges)}.",
            did_you_mean(judges[0], own) if own else "It is empty.",
        )


def write_error_rates(path: str | os.PathLike[str], rates: Mapping[str, ErrorRates]) -> None:
    """Put judges into a file of error rates; what it holds of others stays."""
    before = read_error_rates(path) if Path(path).exists() else {}
    entries = {name: one.as_dict() for name, one in (before | dict(rates)).items()}
    with replacing(path) as file:
        file.write(json.dumps(entries, indent=1, ensure_ascii=False).encode() + b"\n")
