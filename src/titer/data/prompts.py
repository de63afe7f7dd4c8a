"""Telling whether two prompts are the same."""

from __future__ import annotations

import re
import unicodedata

# Between or before numbers, these carry meaning ("3 - 4" is not "3 * 4", "1.5" is not "15"). They become the
# mathematical signs they stand for, which are symbols and survive the removal of punctuation.
_SIGNS = {"-": "−", "*": "×", "/": "÷", "^": "↑", ".": "∙", ":": "∶"}
_NUMBER_SIGN = re.compile(r"(?:(?<![^\W\d_])-|[*/^])(?=[\s(\[]*\d)|(?<=\d)[.:](?=\d)")
_INNER_APOSTROPHE = re.compile(r"(?<=\w)['’ʼ](?=\w)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")


class _Invisible(dict[int, str]):
    """Drops control and zero-width characters but white space."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        drop = unicodedata.category(char) in ("Cc", "Cf") and not char.isspace()
        return self.setdefault(code, "" if drop else char)


class _Punctuation(dict[int, str]):
    """Turns punctuation and pictures into spaces, and sets mathematical and currency signs apart."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if category in ("Sm", "Sc"):
            return self.setdefault(code, f" {char} ")
        return self.setdefault(code, " " if category[0] in "PS" else char)


_INVISIBLE = _Invisible()
_PUNCTUATION = _Punctuation()


def normalise_prompt(text: str) -> str:
    """Reduce a prompt to what it asks, so that trivial variants of it compare equal.

    Unicode NFKC, case folded, without punctuation, white space collapsed. Signs of arithmetic next to numbers
    stay. A text of nothing but punctuation is kept as it is, so that "?" and "!" differ.
    """
    text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE))
    # Folding can take a text out of normal form.
    text = unicodedata.normalize("NFKC", text.casefold())
    bare = _THOUSANDS.sub("", _INNER_APOSTROPHE.sub("", text))
    bare = _NUMBER_SIGN.sub(lambda match: _SIGNS[match[0]], bare)
    bare = " ".join(bare.translate(_PUNCTUATION).split())
    return bare or " ".join(text.split())
