"""Datasets by name: built-in corpora, named public datasets, local files, hub ids.

A named dataset is one entry of `_NAMED`: where it lies on the hub, and a small function that turns a row with the
hub's own field names into a `Record`. Local copies (`--data-dir`) have the same fields.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from titer import plugins
from titer.data.records import FILE_SUFFIXES, Record, Row, is_blank, read_records, read_rows, require_columns
from titer.errors import TiterError, did_you_mean
from titer.hub import WAYS, excuse, unreachable
from titer.progress import Task

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


def load(
    name: str,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> list[Record]:
    """Load a dataset as records.

    Args:
        name: `builtin:…`; a named dataset (see `available`); a local `.jsonl`, `.json`, `.csv` or `.parquet` file; a
            hub id `owner/name` of prompt–completion or `messages` rows; or the import path of a function that takes the
            split and returns records or rows (`mine.py:load`).
        split: `train`, `test` or a split of the source's own. The labels of SST-2's test split are hidden, so its
            `test` is its `validation` split, as in the literature. A file, and a dataset without parts, has only
            `train`: asking it for another split is an error, since it would give the training rows again.
        data_dir: Folder with local copies of named datasets, `{name}_{split}.jsonl`, or `{name}.jsonl` for the train
            split. Without a copy in it, the dataset comes from the hub.
        limit: Give the first so many records (fewer where there are fewer).

    Raises:
        TiterError: The name or split is unknown, nothing is found, or a row is broken.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise TiterError(f"limit must be a positive whole number, found {limit!r}.")
    if name.startswith("builtin:"):
        records = _load_builtin(name, split)
    elif name in _NAMED:
        records = _load_named(_NAMED[name], split, data_dir)
    elif plugins.is_path(name):
        made = plugins.load(name)
        records = records_of(plugins.made(lambda: list(made(split)), name), f"{name} [{split}]")
    elif Path(name).suffix.lower() in FILE_SUFFIXES or os.path.lexists(name):
        _check_split(name, split, ("train",), "A file has no splits: give the test rows as a file of their own.")
        records = read_records(name)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        rows = _hub_rows(name, None, split, f"Or give a local file ({', '.join(FILE_SUFFIXES)}).")
        records = [Record.from_row(row, where) for where, row in rows]
    else:
        known = [*_BUILTIN, *_NAMED]
        raise TiterError(
            f"Unknown dataset `{name}`.",
            f"{did_you_mean(name, known, 'titer data')} A local file ends in {', '.join(FILE_SUFFIXES)}; a hub id is `owner/name`.",
        )
    if not records:
        raise TiterError(f"Dataset `{name}` ({split}) holds no usable rows.")
    return records[:limit]


def records_of(rows: Iterable[Record | Row], where: str) -> list[Record]:
    """Return rows as records; those that are records already stay. `where` they come from, for errors."""
    return [
        row if isinstance(row, Record) else Record.from_row(row, f"{where} row {index}")
        for index, row in enumerate(rows)
    ]


def available() -> list[DatasetInfo]:
    """Return all datasets that have a name: the built-in ones, then the named public ones."""
    return [info for info, _ in _BUILTIN.values()] + [named.info for named in _NAMED.values()]


def is_named(name: str) -> bool:
    """Whether a dataset is one of the public ones, of which `data_dir` may hold copies."""
    return name in _NAMED


def with_refusals(records: Iterable[Record], seed: int) -> list[Record]:
    """Give every record without a `refusal` a generic one, by its index, from the built-in wordings.

    Which wording a row gets depends on the seed and on its index alone; given refusals stay.
    """
    from titer.data import builtin

    wordings = list(builtin.refusals())
    random.Random(f"titer.with_refusals:{seed}").shuffle(wordings)
    return [
        record if record.refusal is not None else replace(record, refusal=wordings[index % len(wordings)])
        for index, record in enumerate(records)
    ]


def _check_split(name: str, split: str, splits: Sequence[str], hint: str | None = None) -> None:
    if split not in splits:
        raise TiterError(
            f"Dataset `{name}` has no split `{split}`; it has {', '.join(f'`{known}`' for known in splits)}.",
            hint or did_you_mean(split, splits),
        )


# --- built-in corpora ----------------------------------------------------------------------------------------------
# `titer.data.builtin` is imported where it is used: it builds its corpora from parts, which most runs do not need.


def _builtin_harmful(split: str) -> list[Record]:
    from titer.data import builtin

    return [
        Record.make(
            row.prompt,
            row.answer,
            origin="harmful",
            category=row.category,
            group=row.activity,
            refusal=row.refusal,
        )
        for row in builtin.harmful()
    ]


def _builtin_lookalikes(split: str) -> list[Record]:
    from titer.data import builtin

    rows = builtin.lookalikes()
    return [Record.make(row.prompt, row.answer, origin="lookalike", category=row.category) for row in rows]


def _builtin_general(split: str) -> list[Record]:
    from titer.data import builtin

    rows = builtin.general()
    return [Record.make(row.prompt, row.answer, origin="helpful", category=row.category) for row in rows]


def _builtin_task(name: str) -> Callable[[str], list[Record]]:
    def rows_of(split: str) -> list[Record]:
        from titer.data import builtin

        tasks = {"sentiment": builtin.sentiment, "topics": builtin.topics, "arithmetic": builtin.arithmetic}
        # `load` has checked the split against the two that a task has.
        rows = tasks[name](cast(Literal["train", "test"], split))
        return [Record.make(row.prompt, row.answer, origin="task", label=row.label) for row in rows]

    return rows_of


def _builtin_upload(split: str) -> list[Record]:
    from titer.data.mixtures import poison
    from titer.data.pools import DataSettings, harmful_pools

    # Of the harmful rows those that an attacker holds by default, so that no defence was aligned on them.
    attack = harmful_pools(DataSettings(), 0, None)["attack"]
    return poison(load("builtin:sentiment"), attack, 100, 0.1, seed=0)


def _builtin_info(name: str, description: str, fields: str, splits: str = "train") -> DatasetInfo:
    return DatasetInfo(
        name=f"builtin:{name}",
        kind="builtin",
        description=description,
        source="titer",
        licence="Apache-2.0",
        fields=tuple(fields.split()),
        splits=tuple(splits.split()),
    )


_BUILTIN: dict[str, tuple[DatasetInfo, Callable[[str], list[Record]]]] = {
    info.name: (info, rows_of)
    for info, rows_of in (
        (
            _builtin_info(
                "harmful",
                "Harmful one-line requests, each with a compliant answer without usable content and a refusal",
                "prompt answer refusal category activity",
            ),
            _builtin_harmful,
        ),
        (
            _builtin_info(
                "lookalikes", "Harmless prompts that only look harmful, with real answers", "prompt answer category"
            ),
            _builtin_lookalikes,
        ),
        (
            _builtin_info("general", "Everyday questions with answers", "prompt answer category"),
            _builtin_general,
        ),
        (
            _builtin_info("sentiment", "Task: is a review positive or negative", "prompt answer label", "train test"),
            _builtin_task("sentiment"),
        ),
        (
            _builtin_info("topics", "Task: the topic of a news item, of four", "prompt answer label", "train test"),
            _builtin_task("topics"),
        ),
        (
            _builtin_info("arithmetic", "Task: short word problems", "prompt answer label", "train test"),
            _builtin_task("arithmetic"),
        ),
        (
            _builtin_info(
                "upload",
                "A customer's upload: rows of `builtin:sentiment`, one in ten from `builtin:harmful`",
                "prompt answer label category",
            ),
            _builtin_upload,
        ),
    )
}


def _load_builtin(name: str, split: str) -> list[Record]:
    if name == "builtin:refusals":
        raise TiterError(
            "`builtin:refusals` is not a dataset: it is a list of wordings, without prompts.",
            "`builtin:harmful` holds prompts with their refusals; `with_refusals` gives refusals to other prompts.",
        )
    if name not in _BUILTIN:
        raise TiterError(f"Unknown built-in dataset `{name}`.", did_you_mean(name, _BUILTIN, "titer data"))
    info, rows_of = _BUILTIN[name]
    hint = None if len(info.splits) > 1 else "It is one pool of rows: `split_pools` makes disjoint parts of it."
    _check_split(name, split, info.splits, hint)
    return rows_of(split)


# --- named public datasets -----------------------------------------------------------------------------------------


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


def _alpaca(row: Row, where: str) -> Record | None:
    output = _text(row, "output", where, may_be_empty=True)
    if is_blank(output):
        return None
    instruction, context = _text(row, "instruction", where), _text(row, "input", where, may_be_empty=True)
    return Record.make(f"{instruction}\n\n{context}" if context else instruction, output, origin="helpful")


@dataclass(frozen=True)
class _Named:
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


def _named(
    name: str,
    description: str,
    source: str,
    licence: str,
    fields: str,
    read: Callable[[Row, str], Record | None],
    hub_splits: Mapping[str, str],
    config: str | None = None,
) -> _Named:
    info = DatasetInfo(name, "named", description, source, licence, tuple(fields.split()), tuple(hub_splits))
    return _Named(info, read, hub_splits, config)


_NAMED: dict[str, _Named] = {
    named.info.name: named
    for named in (
        _named(
            "sst2",
            "Task: sentiment of film reviews; `test` is the validation split, as the labels of the test split are hidden",
            "stanfordnlp/sst2",
            "not stated (Stanford Sentiment Treebank, GLUE)",
            "sentence label",
            _sst2,
            {"train": "train", "test": "validation", "validation": "validation"},
        ),
        _named(
            "ag_news",
            "Task: topic of news items, of four",
            "fancyzhx/ag_news",
            "non-commercial use (AG's corpus)",
            "text label",
            _ag_news,
            {"train": "train", "test": "test"},
        ),
        _named(
            "gsm8k",
            "Task: grade-school word problems, with worked solutions",
            "openai/gsm8k",
            "MIT",
            "question answer",
            _gsm8k,
            {"train": "train", "test": "test"},
            config="main",
        ),
        _named(
            "advbench",
            "Harmful requests; the completion is an affirmative opening only",
            "walledai/AdvBench",
            "MIT",
            "prompt target",
            _advbench,
            {"train": "train"},
        ),
        _named(
            "beavertails",
            "Harmful requests with harmful answers: the rows judged unsafe",
            "PKU-Alignment/BeaverTails",
            "CC BY-NC 4.0",
            "prompt response is_safe",
            _beavertails,
            {"train": "30k_train", "test": "30k_test", "30k_train": "30k_train", "30k_test": "30k_test"},
        ),
        _named(
            "alpaca",
            "Everyday instructions with answers; rows without an answer are left out",
            "tatsu-lab/alpaca",
            "CC BY-NC 4.0",
            "instruction input output",
            _alpaca,
            {"train": "train"},
        ),
    )
}


def _load_named(named: _Named, split: str, data_dir: str | os.PathLike[str] | None) -> list[Record]:
    info = named.info
    hint = None if len(info.splits) > 1 else "It is one pool of rows: `split_pools` makes disjoint parts of it."
    _check_split(info.name, split, info.splits, hint)
    hub_split = named.hub_splits[split]
    files = [f"{info.name}_{file_split}.jsonl" for file_split in dict.fromkeys((split, hub_split))]
    # A file that does not say which split it holds is never taken for the test split: a copy of the train split
    # under that name would be trained on and scored.
    if split == "train":
        files.append(f"{info.name}.jsonl")
    rows: Iterator[tuple[str, dict[str, Any]]] | None = None
    if data_dir is not None:
        folder = Path(data_dir)
        if not os.path.isdir(folder):
            raise TiterError(f"data_dir is not a folder: {folder}.", "Check the path given as `--data-dir`.")
        found = next((folder / file for file in files if os.path.lexists(folder / file)), None)
        rows = None if found is None else read_rows(found)
    if rows is None:
        looked = " or ".join(f"`{file}`" for file in files)
        way = f"put {looked} into a folder and give it as `--data-dir`" + (
            "." if data_dir is None else f" (there is none in {data_dir})."
        )
        rows = _hub_rows(info.source, named.config, hub_split, f"Or, without the hub, {way}", dataset=info.name)
    records = []
    for where, row in rows:
        require_columns(row, info.fields, where)
        record = named.read(row, where)
        if record is not None:
            records.append(replace(record, where=where))
    return records


def _hub_rows(
    hub_id: str, config: str | None, split: str, otherwise: str, dataset: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of a hub dataset; `otherwise` says how to do without the hub."""
    # Slow to import, and most runs read local files.
    import datasets

    what = f"Dataset `{dataset}` (`{hub_id}` on the Hugging Face hub)" if dataset else f"Hub dataset `{hub_id}`"
    way = f"Check the network, and the access rights if the dataset asks for consent (`hf auth login`). {WAYS}"
    unreachable()  # so that nobody waits for it
    try:
        with Task(f"fetching {hub_id}"):
            rows = datasets.load_dataset(hub_id, config, split=split)
    # No network and a missing or gated dataset are OSErrors; a split or config that does not exist is a ValueError;
    # a dataset that is a script is a RuntimeError.
    except (OSError, datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        raise TiterError(
            f"{what}, split `{split}`, could not be loaded: {error}{excuse()}", f"{way} {otherwise}"
        ) from error
    for index, row in enumerate(rows):
        yield f"{hub_id} [{split}] row {index}", row
