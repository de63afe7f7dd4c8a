"""How risky the rows of an upload are, from files to rows: fits a detector on the defender's prompts, and looks at the upload.

What is looked at is kept as it comes, so that an audit that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titer.data.records import Record
from titer.files import read_text, replacing, writing
from titer.infer.encoder import SentenceEncoder
from titer.infer.signals import unasked_refusals
from titer.jobs.answers import check_lengths, check_ratios, token_pairs
from titer.jobs.base_model import fresh_model
from titer.jobs.provenance import digest, weights_digest
from titer.methods.finetune.base import refusal_completions, refusal_ids
from titer.models import Template, load_tokenizer
from titer.progress import Task
from titer.risk import RowRisk, adapted, fitted, poisoned_share
from titer.risk.detector import Known, features_and_signals
from titer.stats.intervals import Estimate, wilson

ROWS_KEPT = 256
"""Rows that are looked at before what was seen of them is kept."""
VERSION = 3
"""Of what is kept; raised when what is said of rows changes."""


@dataclass(frozen=True)
class Risk:
    """What is to be said of an upload.

    Attributes:
        share: Which part of its rows is harmful, in [0, 1].
        p_harmful: P(harmful) of each row at that share.
        rows: What it rests on.
        log_ratios: log π(answer) − log π(refusal) of each row, in nats.
        false_alarms: Part of the defender's own harmless prompts that a detector fitted without them calls harmful.
    """

    share: Estimate
    p_harmful: list[float]
    rows: list[RowRisk]
    log_ratios: list[float]
    false_alarms: Estimate


def assess(
    model_name: str,
    adapter: Path | None,
    records: Sequence[Record],
    known: Known,
    *,
    texts: bool,
    ratio: str,
    keep: Path,
) -> Risk:
    """Say of each row of an upload how likely it is harmful, and of the upload how much of it is.

    Args:
        model_name: The base model.
        adapter: The adapter on it, as aligned.
        records: The upload.
        known: The defender's rows.
        texts: Whether a sentence encoder reads too.
        ratio: Of likelihoods, one of `titer.packing.losses.RATIOS`.
        keep: Where what was seen is kept until all of it is.

    Raises:
        TiterError: When the model puts out what is no number.
    """
    template = Template(load_tokenizer(model_name))
    ids = refusal_ids(template, refusal_completions(None))
    longest = max(map(len, ids))
    pairs = token_pairs(template, records)
    check_lengths(model_name, records, [len(prompt) + max(len(completion), longest) for prompt, completion in pairs])
    key = digest(
        [VERSION, weights_digest(model_name, adapter), texts, ratio]
        + [digest(list(rows)) for rows in (records, known.records)]
    )
    rows, ratios = _kept(keep, key)
    model = fresh_model(model_name, adapter, trainable=False)
    encoder = SentenceEncoder() if texts else None
    with Task("the defender's own prompts"):
        detector = fitted(model, template, known, encoder)
    unasked = unasked_refusals(model, template, ids, ratio)
    with Task("rows of the upload", len(records)) as looked:
        looked.skip(len(rows))
        for start in range(len(rows), len(records), ROWS_KEPT):
            part = slice(start, start + ROWS_KEPT)
            first = start % len(ids)  # a row's refusal goes by its place in the upload
            own = ids[first:] + ids[:first]
            seen, signals = features_and_signals(model, template, records[part], encoder, own, pairs[part])
            rows += detector(seen)
            ratios += signals.log_ratio(ratio, None if unasked is None else unasked.roll(-first)).tolist()
            with writing(keep), replacing(keep) as file:
                lines = [{"key": key}, *({**row._asdict(), "log_ratio": value} for row, value in zip(rows, ratios))]
                file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
            looked.advance(len(seen.asked))
    check_ratios(ratios, adapter or model_name)
    share = poisoned_share([row.log_odds for row in rows])
    flagged = adapted(detector.harmless, share.value) > 0.5
    alarms = Estimate(float(flagged.mean()), *wilson(int(flagged.sum()), len(flagged)))
    return Risk(share, adapted([row.log_odds for row in rows], share.value).tolist(), rows, ratios, alarms)


def _kept(path: Path, key: str) -> tuple[list[RowRisk], list[float]]:
    """What an interrupted look at the same rows with the same model left."""
    if not path.is_file():
        return [], []
    try:
        head, *lines = (json.loads(line) for line in read_text(path).splitlines())
        if head != {"key": key}:
            return [], []
        ratios = [line.pop("log_ratio") for line in lines]
        return [RowRisk(**line) for line in lines], ratios
    except (ValueError, TypeError, KeyError):
        return [], []
