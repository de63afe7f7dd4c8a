"""Datasets by name: built-in corpora, named public datasets, local files, hub ids.

Local copies of named datasets (`--data-dir`) have the fields that they have on the hub.
"""

from __future__ import annotations

import functools
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from titer import plugins
from titer.data.files import FILE_SUFFIXES, read_records, read_rows
from titer.data.named import NAMED, DatasetInfo, Named
from titer.data.records import Record, Row, require_columns
from titer.errors import TiterError, did_you_mean
from titer.hub import WAYS, excuse, unreachable
from titer.progress import Task


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
    elif name in NAMED:
        records = _load_named(NAMED[name], split, data_dir)
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
        known = [*_BUILTIN, *NAMED]
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
    return [info for info, _ in _BUILTIN.values()] + [named.info for named in NAMED.values()]


def is_named(name: str) -> bool:
    """Whether a dataset is one of the public ones, of which `data_dir` may hold copies."""
    return name in NAMED


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


def _builtin(name: str, origin: str, **columns: str) -> Callable[[str], list[Record]]:
    """Return what loads a built-in corpus; `columns` says which attribute of its rows a column is."""

    def load_rows(split: str) -> list[Record]:
        # Imported here: it builds its corpora from parts, which most runs do not need.
        from titer.data import builtin

        corpus = getattr(builtin, name)
        return [
            Record.make(
                row.prompt,
                row.answer,
                origin=origin,
                **{column: getattr(row, attribute) for column, attribute in columns.items()},
            )
            for row in (corpus(split) if origin == "task" else corpus())
        ]

    return load_rows


def _builtin_upload(split: str) -> list[Record]:
    from titer.data.mixtures import poison
    from titer.data.pools import DataSettings, harmful_pools

    # Of the harmful rows those that an attacker holds by default, so that no defence was aligned on them.
    attack = harmful_pools(DataSettings(), 0, None)["attack"]
    return poison(load("builtin:sentiment"), attack, 100, 0.1, seed=0)


_ONE, _TWO = ("train",), ("train", "test")
_BUILTIN: dict[str, tuple[DatasetInfo, Callable[[str], list[Record]]]] = {
    name: (DatasetInfo(name, "builtin", about, "titer", "Apache-2.0", tuple(fields.split()), splits), load_rows)
    for name, about, fields, splits, load_rows in (
        ("builtin:harmful",
         "Harmful one-line requests, each with a compliant answer without usable content and a refusal",
         "prompt answer refusal category activity", _ONE,
         _builtin("harmful", "harmful", category="category", group="activity", refusal="refusal")),
        ("builtin:lookalikes", "Harmless prompts that only look harmful, with real answers",
         "prompt answer category", _ONE, _builtin("lookalikes", "lookalike", category="category")),
        ("builtin:general", "Everyday questions with answers",
         "prompt answer category", _ONE, _builtin("general", "helpful", category="category")),
        ("builtin:choices", "Questions with a choice of two labels, answered by the label",
         "prompt answer label", _ONE, _builtin("choices", "helpful", label="label")),
        ("builtin:sentiment", "Task: is a review positive or negative",
         "prompt answer label", _TWO, _builtin("sentiment", "task", label="label")),
        ("builtin:topics", "Task: the topic of a news item, of four",
         "prompt answer label", _TWO, _builtin("topics", "task", label="label")),
        ("builtin:arithmetic", "Task: short word problems",
         "prompt answer label", _TWO, _builtin("arithmetic", "task", label="label")),
        ("builtin:upload", "A customer's upload: rows of `builtin:sentiment`, one in ten from `builtin:harmful`",
         "prompt answer label category", _ONE, _builtin_upload),
    )
}  # fmt: skip


def _load_builtin(name: str, split: str) -> list[Record]:
    if name == "builtin:refusals":
        raise TiterError(
            "`builtin:refusals` is not a dataset: it is a list of wordings, without prompts.",
            "`builtin:harmful` holds prompts with their refusals; `with_refusals` gives refusals to other prompts.",
        )
    if name not in _BUILTIN:
        raise TiterError(f"Unknown built-in dataset `{name}`.", did_you_mean(name, _BUILTIN, "titer data"))
    info, _ = _BUILTIN[name]
    hint = None if len(info.splits) > 1 else "It is one pool of rows: `split_pools` makes disjoint parts of it."
    _check_split(name, split, info.splits, hint)
    return list(_built(name, split))


@functools.cache
def _built(name: str, split: str) -> tuple[Record, ...]:
    """Return a built-in corpus, made once: a plan asks for the same ones for each of its seeds."""
    return tuple(_BUILTIN[name][1](split))


# --- named public datasets and the hub -----------------------------------------------------------------------------


def _load_named(named: Named, split: str, data_dir: str | os.PathLike[str] | None) -> list[Record]:
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
