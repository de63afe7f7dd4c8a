"""Answers and verdicts in the files of other tools, read into titer's three artefacts and written from them.

A format is a file here with `read(path, how) -> Answers` and `write(path, answers) -> what stays behind`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from titer.errors import TiterError, check_known
from titer.results.artefacts import read_inferences, read_scores
from titer.results.interchange import inspect_log, lm_eval, tamperbench
from titer.results.interchange.foreign import Answers, Reading, figures, only

TITER = "titer"
FOREIGN: dict[str, ModuleType] = {"inspect": inspect_log, "lm-eval": lm_eval, "tamperbench": tamperbench}
"""Formats of other tools by name."""

FORMATS = (TITER, *FOREIGN)

_SUFFIXES = {".eval": "inspect", ".json": "inspect"}
_IN_FOLDER = {"inferences.jsonl": TITER, tamperbench.INFERENCES: "tamperbench", tamperbench.SCORES: "tamperbench"}


def format_of(path: Path, given: str | None, option: str) -> str:
    """Return the format of a source: the one that is given, or the only one that it could be.

    Args:
        path: The file or folder.
        given: What the user says of it.
        option: What the user calls that.

    Raises:
        TiterError: For an unknown format, and for a file that could be of several, or of none.
    """
    if given is not None:
        check_known([given], FORMATS, "format")
        return given
    if path.is_dir():
        found = {kind for name, kind in _IN_FOLDER.items() if (path / name).exists()}
        why = f"it holds {'files of several' if found else 'neither ' + ' nor '.join(_IN_FOLDER)}"
    else:
        found = {_SUFFIXES[path.suffix]} if path.suffix in _SUFFIXES else set()
        found |= {"lm-eval"} if path.suffix == ".jsonl" and path.name.startswith("samples_") else set()
        why = f"{path.name} could be anything"
    if len(found) == 1:
        return found.pop()
    raise TiterError(
        f"{path}: the format is not known: {why}.",
        f"Say it with `{option}`: {', '.join(FORMATS)}. titer's is a folder.",
    )


def read(path: Path, kind: str, how: Reading) -> Answers:
    """Read answers of any format, titer's folders among them.

    Raises:
        TiterError: As the format's own reader, naming the file and the place in it.
    """
    if kind != TITER:
        found: Answers = FOREIGN[kind].read(path, how)
        return found
    scores = read_scores(path / "scores.jsonl") if (path / "scores.jsonl").exists() else []
    return only(Answers(read_inferences(path / "inferences.jsonl"), scores), how, str(path))


def write(path: Path, kind: str, found: Answers, how: Reading) -> tuple[str, ...]:
    """Write answers in the format of another tool. Atomic, file by file.

    Returns:
        What stays behind, in sentences.

    Raises:
        TiterError: For what the format cannot hold.
    """
    left: tuple[str, ...] = FOREIGN[kind].write(path, found, how)
    return left


__all__ = ["FOREIGN", "FORMATS", "TITER", "Answers", "Reading", "figures", "format_of", "read", "write"]
