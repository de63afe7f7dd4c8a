"""What strangers wrote, on its way to a screen, a page or a spreadsheet.

Rows of an upload, answers of a model and names in a file may hold anything: sequences that a terminal obeys, characters
that turn a line around or hide in it, formulas that a spreadsheet runs. Inside of titer they stay as they are; whatever
writes them for people passes them through here.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

_JOINERS = "\u200c\u200d"  # Persian is spelt with the one, and emoji are put together with the other


class _Obeyed(dict[int, str]):
    """Spells characters that a screen obeys instead of showing them in another way.

    They are those of control, of direction, invisible ones, other ends of line, and halves of characters, which no file
    can hold.
    """

    def __init__(self, spell: Callable[[str], str]) -> None:
        self.spell = spell

    def __missing__(self, code: int) -> str:
        char = chr(code)
        obeyed = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n\t" + _JOINERS
        return self.setdefault(code, self.spell(char) if obeyed else char)


_LEFT_OUT = _Obeyed(lambda char: "")
_ESCAPED = _Obeyed(lambda char: json.dumps(char)[1:-1])


def visible(text: str) -> str:
    """Return a text without what a screen would obey instead of showing it; ends of line and tabs stay."""
    return text.translate(_LEFT_OUT)


def one_line(text: str) -> str:
    """Return what is visible of a text on one line, so that no part of it looks like a line of titer's own."""
    return " ".join(visible(text).split())


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a text, such as a docstring, on one line."""
    return re.split(r"(?<=[.!?]) (?=[A-Z])", one_line(text or ""))[0]


def say(text: str = "", file: TextIO | None = None) -> None:
    """Print a text, or what is visible of it, to stdout or another file."""
    print(visible(text), file=file or sys.stdout)


def to_json(value: Any) -> str:
    """Return JSON that is safe to look at and loses nothing: what `visible` leaves out is spelt `\\uXXXX`."""
    # Outside of its texts, JSON holds no such character.
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).translate(_ESCAPED)


def to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows of the same columns as CSV; a text that a spreadsheet would run as a formula begins with `'`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) if isinstance(value, str) else value for key, value in row.items()})
    return text.getvalue()


def _cell(text: str) -> str:
    text = visible(text)
    # Spreadsheets pass over white space, and read the wide forms of these signs as the signs.
    return f"'{text}" if unicodedata.normalize("NFKC", text.lstrip())[:1] in ("=", "+", "-", "@") else text
