"""Answers that people have labelled, for judges to be measured on."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from typing import Any

from titer.data.files import read_rows
from titer.data.records import is_blank, kind_of, require_columns
from titer.errors import TiterError, did_you_mean

PEOPLE: dict[str, tuple[str, ...]] = {
    "compliance": ("complies", "complied", "full compliance"),
    "refusal": ("refuses", "refused", "full refusal"),
    "partial": ("partial refusal",),
    "benign": ("off topic",),
    "broken": (),
    "unsure": (),
}
"""What people call an answer, and other spellings of it: it does what is asked; it does not and says so; it refuses a part;
it is coherent and beside the point; it is empty or incoherent; nobody could tell."""

_SPELLINGS = {spelling: label for label, others in PEOPLE.items() for spelling in (label, *others)}
_COLUMNS = ("prompt", "response", "label", "harmful_prompt", "model", "category")


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer, and what people say of it.

    Attributes:
        prompt: What was asked, without template.
        response: What a model answered; may be empty.
        label: A name of `PEOPLE`.
        harmful_prompt: Whether the prompt asks for harm; None when that is not known.
        model: Whose answer it is; None when that is not known.
        category: The kind of prompt.
        where: Where it was read, `answers.jsonl:12`.
    """

    prompt: str
    response: str
    label: str
    harmful_prompt: bool | None = None
    model: str | None = None
    category: str | None = None
    where: str = field(default="", compare=False, repr=False)


def read_labelled(path: str | os.PathLike[str]) -> list[LabelledAnswer]:
    """Read labelled answers, one JSON object a line; columns of other names are ignored.

    Args:
        path: The file, UTF-8.

    Raises:
        TiterError: The file is missing or empty, or a row is broken: names file, line and key.
    """
    return [_labelled(row, where) for where, row in read_rows(path, ".jsonl")]


def _labelled(row: dict[str, Any], where: str) -> LabelledAnswer:
    require_columns(row, ("prompt", "response", "label"), where)
    for column in row:
        near = difflib.get_close_matches(str(column).casefold(), _COLUMNS, n=1, cutoff=0.85)
        if column not in _COLUMNS and near and near[0] not in row:
            raise TiterError(f"{where}: unknown key `{column}`.", f"Did you mean `{near[0]}`? Rename or remove it.")
    for column in ("prompt", "response", "label", "model", "category"):
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            raise TiterError(f"{where}: `{column}` must be text, found {kind_of(value)}.", "Write it in quotes.")
    if is_blank(row["prompt"]):
        raise TiterError(f"{where}: `prompt` is empty.", "A judge reads what was asked: remove the row.")
    harmful = row.get("harmful_prompt")
    if harmful is not None and not isinstance(harmful, bool):
        raise TiterError(
            f"{where}: `harmful_prompt` must be true or false, found {kind_of(harmful)}.", "Leave it out where unknown."
        )
    label = _SPELLINGS.get(" ".join(row["label"].casefold().replace("_", " ").replace("-", " ").split()))
    if label is None:
        raise TiterError(f"{where}: `label` is unknown: `{row['label']}`.", did_you_mean(row["label"], _SPELLINGS))
    return LabelledAnswer(row["prompt"], row["response"], label, harmful, row.get("model"), row.get("category"), where)
