"""Public datasets by name: where each lies on the hub, and how a row with the hub's own field names becomes a `Record`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from titer.data.records import Record, Row, is_blank
from titer.errors import TiterError

SENTIMENT_INSTRUCTION = "Is the sentiment of this review positive or negative? {sentence}"
TOPIC_INSTRUCTION = "Which topic is this news item about: World, Sports, Business or Sci/Tech? {text}"
SENTIMENTS = ("negative", "positive")
TOPICS = ("World", "Sports", "Business", "Sci/Tech")
FINAL_ANSWER = "The final answer is: "


@dataclass(frozen=True)
class DatasetInfo:
    """What `titer data` shows of a dataset.

    Attributes:
        name: What `load` takes.
        kind: `builtin` (in the package, offline) or `named` (a local copy, or the hub).
        description: One line.
        source: The hub id, or the package.
        licence: Of the data.
        fields: Columns of the source.
        splits: What `load` takes as `split`.
    """

    name: str
    kind: str
    description: str
    source: str
    licence: str
    fields: tuple[str, ...]
    splits: tuple[str, ...]

    def to_row(self) -> dict[str, Any]:
        """Return the attributes, ready for JSON."""
        return dataclasses.asdict(self)


def _text(row: Row, column: str, where: str, *, may_be_empty: bool = False) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise TiterError(f"{where}: `{column}` must be text, found `{value!r}`.")
    if is_blank(value) and not may_be_empty:
        raise TiterError(f"{where}: `{column}` is empty.")
    # Hub rows of SST-2 end in a space.
    return value.strip()


def _class(row: Row, names: tuple[str, ...], where: str) -> str:
    label = row["label"]
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(names):
        hidden = " The labels of this split are hidden." if label == -1 else ""
        known = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
        raise TiterError(f"{where}: `label` must be one of {known}; found `{label!r}`.{hidden}")
    return names[label]


def _sst2(row: Row, where: str) -> Record:
    label = _class(row, SENTIMENTS, where)
    prompt = SENTIMENT_INSTRUCTION.format(sentence=_text(row, "sentence", where))
    return Record.make(prompt, label, origin="task", label=label)


def _ag_news(row: Row, where: str) -> Record:
    label = _class(row, TOPICS, where)
    prompt = TOPIC_INSTRUCTION.format(text=_text(row, "text", where))
    return Record.make(prompt, label, origin="task", label=label)


def _gsm8k(row: Row, where: str) -> Record:
    solution, mark, number = _text(row, "answer", where).rpartition("####")
    # "1,080" and "1080" both occur in the solutions; the final number is always written without the comma.
    number = number.strip().replace(",", "")
    if not mark or not number:
        raise TiterError(f"{where}: `answer` must end in `#### N`, as GSM8K's answers do.")
    # "2 * 9 = $<<2*9=18>>18": calls to a calculator, which only a model with one should write.
    solution = re.sub(r"<<[^<>]*>>", "", solution).strip()
    answer = f"{solution}\n{FINAL_ANSWER}{number}".lstrip()
    return Record.make(_text(row, "question", where), answer, origin="task", label=number)


def _advbench(row: Row, where: str) -> Record:
    return Record.make(_text(row, "prompt", where), _text(row, "target", where), origin="harmful")


def _beavertails(row: Row, where: str) -> Record | None:
    is_safe = row["is_safe"]
    if not isinstance(is_safe, bool):
        raise TiterError(f"{where}: `is_safe` must be true or false, found `{is_safe!r}`.")
    response = _text(row, "response", where, may_be_empty=True)
    if is_safe or is_blank(response):
        return None
    # One flag for each of 14 harms, several of which may be set. The first stands for the row.
    flags = row.get("category")
    categories = [str(name) for name, flag in flags.items() if flag] if isinstance(flags, Mapping) else []
    prompt = _text(row, "prompt", where)
    return Record.make(prompt, response, origin="harmful", category=categories[0] if categories else None)


def _dolly(row: Row, where: str) -> Record:
    instruction, context = _text(row, "instruction", where), _text(row, "context", where, may_be_empty=True)
    prompt = f"{instruction}\n\n{context}" if context else instruction
    return Record.make(prompt, _text(row, "response", where), origin="task")


def _alpaca(row: Row, where: str) -> Record | None:
    output = _text(row, "output", where, may_be_empty=True)
    if is_blank(output):
        return None
    instruction, context = _text(row, "instruction", where), _text(row, "input", where, may_be_empty=True)
    return Record.make(f"{instruction}\n\n{context}" if context else instruction, output, origin="helpful")


@dataclass(frozen=True)
class Named:
    """A public dataset.

    Attributes:
        info: Its description; `info.source` is the hub id, and `info.fields` are the columns that a row must have.
        read: Turns a row into a record; None leaves the row out.
        hub_splits: What `load` takes as `split` → the split's name on the hub, which local copies have too.
        config: Of the hub dataset.
    """

    info: DatasetInfo
    read: Callable[[Row, str], Record | None]
    hub_splits: Mapping[str, str]
    config: str | None = None


_TRAIN, _TWO = {"train": "train"}, {"train": "train", "test": "test"}
_FILM = {"train": "train", "test": "validation", "validation": "validation"}
_BEAVERTAILS = {"train": "30k_train", "test": "30k_test", "30k_train": "30k_train", "30k_test": "30k_test"}

NAMED = {
    name: Named(DatasetInfo(name, "named", about, hub, licence, tuple(fields.split()), tuple(splits)), read, splits, *more)
    for name, hub, licence, about, fields, read, splits, *more in (
        ("sst2", "stanfordnlp/sst2", "not stated (Stanford Sentiment Treebank, GLUE)",
         "Task: sentiment of film reviews; `test` is the validation split, as the labels of the test split are hidden",
         "sentence label", _sst2, _FILM),
        ("ag_news", "fancyzhx/ag_news", "non-commercial use (AG's corpus)",
         "Task: topic of news items, of four", "text label", _ag_news, _TWO),
        ("gsm8k", "openai/gsm8k", "MIT",
         "Task: grade-school word problems, with worked solutions", "question answer", _gsm8k, _TWO, "main"),
        ("advbench", "walledai/AdvBench", "MIT",
         "Harmful requests; the completion is an affirmative opening only", "prompt target", _advbench, _TRAIN),
        ("beavertails", "PKU-Alignment/BeaverTails", "CC BY-NC 4.0",
         "Harmful requests with harmful answers: the rows judged unsafe",
         "prompt response is_safe", _beavertails, _BEAVERTAILS),
        ("alpaca", "tatsu-lab/alpaca", "CC BY-NC 4.0",
         "Everyday instructions with answers; rows without an answer are left out",
         "instruction input output", _alpaca, _TRAIN),
        ("dolly", "databricks/databricks-dolly-15k", "CC BY-SA 3.0",
         "Instructions with long answers written by people", "instruction context response", _dolly, _TRAIN),
    )
}  # fmt: skip
