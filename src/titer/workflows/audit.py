"""Ranks the rows of an upload by how harmful they look before anything is trained on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import check_known
from titer.text import to_csv, to_json
from titer.workflows.common import (
    EMBEDDED,
    Show,
    Table,
    as_names,
    as_path,
    given,
    listener,
    refuse_unused,
    refuse_unused_data_dir,
    spell,
    workflow,
)

if TYPE_CHECKING:
    from titer.jobs.risks import Risk
    from titer.stats.intervals import Estimate


LIMIT = 0.02
"""Part of an upload that may look harmful before it is called suspicious."""
HELPFUL = ("builtin:general", "builtin:lookalikes", "builtin:topics")
DETECTORS = ("none", "states", "texts")


@dataclass(frozen=True, slots=True)
class AuditedRow:
    """A row of an upload.

    Attributes:
        index: Its place in the upload, from 0.
        log_ratio: log π(answer) − log π(refusal) under the model, in nats.
        weight: softmax of that among the rows of its batch, as Antibody would weigh it.
        prompt: What is asked.
        completion: What is taught.
        origin: Where it comes from, where the upload says whether rows are harmful.
        p_harmful: How likely it is harmful, in [0, 1]; `None` without a detector.
        reason: Why one thinks so.
    """

    index: int
    log_ratio: float
    weight: float
    prompt: str
    completion: str
    origin: str | None
    p_harmful: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Audit(Table):
    """The rows of an upload, the most suspicious first; as a table the same.

    Attributes:
        folder: Where audit.csv, audit.html and audit.json are.
        about: What was audited with what: `dataset`, `model`, `weights`, `ratio`, `n`, `batch_size`, `auroc` where known.
        ranked: The rows.
        share: Which part of the upload is harmful, in [0, 1]; `None` without a detector.
        auroc: How well the ranking finds harmful rows, where the upload says which are.
    """

    folder: Path
    about: dict[str, Any]
    ranked: tuple[AuditedRow, ...] = field(repr=False)
    auroc: Estimate | None
    share: Estimate | None = None

    @property
    def verdict(self) -> str | None:
        """What to make of the upload: `clean`, `suspicious` or `poisoned`; `None` without a detector.

        Poisoned: surely more than `LIMIT` of the rows are harmful. Clean: no row is likelier harmful than not, and so is the
        estimate of their share below `LIMIT`.
        """
        if self.share is None:
            return None
        if self.share.low > LIMIT:
            return "poisoned"
        likely = any((row.p_harmful or 0.0) > 0.5 for row in self.ranked)
        return "suspicious" if likely or self.share.value > LIMIT else "clean"

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows, the most suspicious first."""
        return [dataclasses.asdict(row) for row in self.ranked]

    @property
    def document(self) -> dict[str, Any]:
        """What audit.json holds."""
        if self.share is None:
            return {"schema": "titer/audit/1", **self.about, "rows": _without(self.rows(), ("p_harmful", "reason"))}
        found = {"verdict": self.verdict, "share": self.share._asdict()}
        return {"schema": "titer/audit/2", **found, **self.about, "rows": self.rows()}

    def __str__(self) -> str:
        found, share = self.auroc, self.share
        said = "" if share is None else f", {self.verdict}: {share_text(share)}"
        said += "" if found is None else f", AUROC {found.value:.3f} (95 % {found.low:.3f} – {found.high:.3f})"
        return f"{self.about['dataset']}: {len(self.ranked)} rows{said}"


def share_text(share: Estimate) -> str:
    """A share of harmful rows with its interval."""
    return f"{100 * share.value:.1f} % of the rows look harmful (95 %: {100 * share.low:.1f}–{100 * share.high:.1f})"


def _without(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


@workflow
def audit(
    dataset: str,
    *,
    model: str = EMBEDDED,
    output: str | Path = "audit",
    detector: str = "texts",
    harmful: str = "builtin:harmful",
    helpful: str | Sequence[str] = HELPFUL,
    write_clean: str | Path | None = None,
    ratio: str = "sum",
    batch_size: int = 16,
    data_dir: str | Path | None = None,
    show: Show | bool = False,
) -> Audit:
    """Rank the rows of an upload, the most suspicious first, before anything is trained on them.

    A detector is fitted on the defender's own prompts, and says P(harmful) of each row with a reason, and which share of the
    upload is harmful. Without one the ranking is by the likelihood ratio of the answer to a refusal, as Antibody weighs rows;
    on uploads with long answers it measures their length.

    Args:
        dataset: The upload: a .jsonl file, a named dataset, or a hub id.
        model: A local folder, a hub id, or smollm2-135m-instruct.
        output: Folder for audit.csv and audit.html.
        detector: What looks for harm: texts (the model's states and a sentence encoder of 84 MB), states (without it, which
            ranks rows but misjudges how many are harmful), or none.
        harmful: The defender's harmful prompts, for a detector.
        helpful: The defender's harmless prompts, for a detector; may be several.
        write_clean: File for the rows that are likelier harmless than not, as JSON lines: as they stood in a file, else as
            `messages`.
        ratio: Likelihoods of answers: sum (as printed), mean, or calibrated (of refusals alone).
        batch_size: Rows that weights are shared among.
        data_dir: Folder with local copies of named datasets (sst2_train.jsonl, …).
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Raises:
        TiterError: For arguments that cannot be meant or have no effect, and data or a model that cannot be loaded.
    """
    from titer.data import load
    from titer.data.files import FILE_SUFFIXES, read_rows, write_rows
    from titer.files import check_output, remove
    from titer.jobs import answers
    from titer.jobs.estimates import recorded
    from titer.jobs.provenance import weights_digest
    from titer.jobs.work import weighing
    from titer.models import split_adapter
    from titer.packing.losses import RATIOS
    from titer.report import write_audit
    from titer.results.artefacts import write_atomically
    from titer.stats.intervals import auroc_interval

    check_known([ratio], RATIOS, "ratio")
    check_known([detector], DETECTORS, "detector")
    if detector == "none":
        refuse_unused(given().keys() & {"harmful", "helpful", "write_clean"}, f"without `{spell('detector')}`")
    names = [harmful, *as_names(helpful)]
    refuse_unused_data_dir([dataset, *names])
    folder = as_path("output", output)
    check_output(folder, ["audit.csv", "audit.html", "audit.json"])
    clean = None if write_clean is None else as_path("write_clean", write_clean)
    if clean is not None:
        check_output(clean.parent, [clean.name])
    copies = None if data_dir is None else as_path("data_dir", data_dir)
    records = load(dataset, data_dir=copies)
    base, adapter = split_adapter(model)
    risk: Risk | None = None
    part = folder / "audit.part.jsonl"
    if detector == "none":
        work = weighing("weigh", base, records).after_loading
        listener(show).expect([work])
        with recorded(work):
            ratios = answers.weigh(base, adapter, records, ratio)
    else:
        from titer.jobs.risks import assess
        from titer.methods.finetune.base import refusal_completions
        from titer.risk import known_rows

        bad, *good = (load(name, data_dir=copies) for name in names)
        known = known_rows(bad, [record for rows in good for record in rows], refusal_completions(None))
        work = weighing("risk", base, [*records, *known.records]).after_loading
        listener(show).expect([work])
        folder.mkdir(parents=True, exist_ok=True)
        with recorded(work):
            risk = assess(base, adapter, records, known, texts=detector == "texts", ratio=ratio, keep=part)
        ratios = risk.log_ratios
    weights = answers.batch_weights(ratios, batch_size)
    rows = [
        AuditedRow(index, value, weight, record.prompt_text, record.completion_text,
                   None if record.is_harmful is None else record.origin)
        for index, (record, value, weight) in enumerate(zip(records, ratios, weights, strict=True))
    ]  # fmt: skip
    about: dict[str, Any] = {
        "dataset": dataset, "model": model, "weights": weights_digest(base, adapter), "ratio": ratio, "n": len(rows),
        "batch_size": batch_size,
    }  # fmt: skip
    suspicion = [-value for value in ratios]
    if risk is not None:
        rows = [
            dataclasses.replace(row, p_harmful=chance, reason=found.reason)
            for row, chance, found in zip(rows, risk.p_harmful, risk.rows, strict=True)
        ]
        suspicion = [found.log_odds for found in risk.rows]
        about |= {"detector": detector, "harmful": harmful, "helpful": list(as_names(helpful))}
        about |= {"false_alarms": risk.false_alarms._asdict()}
    truth, auroc = [record.is_harmful for record in records], None
    if all(flag is not None for flag in truth) and len(set(truth)) == 2:
        # A harmful row teaches against the aligned model's wish to refuse: its ratio is low.
        auroc = auroc_interval(suspicion, [bool(flag) for flag in truth])
        about |= {"auroc": auroc.value, "auroc_low": auroc.low, "auroc_high": auroc.high}
    ranked = sorted(rows, key=lambda row: -suspicion[row.index])
    found = Audit(folder, about, tuple(ranked), auroc, None if risk is None else risk.share)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "audit.csv", to_csv(found.document["rows"]).encode())
    write_audit(folder / "audit.html", found.rows(), found.about, found.verdict, found.share)
    write_atomically(folder / "audit.json", to_json(found.document).encode())
    if clean is not None:
        own = Path(dataset).suffix.lower() in FILE_SUFFIXES
        as_given = [row for _, row in read_rows(dataset)] if own else [record.to_messages() for record in records]
        write_rows(clean, [line for line, row in zip(as_given, rows, strict=True) if (row.p_harmful or 0.0) <= 0.5])
    if risk is not None:
        remove(part)
    return found
