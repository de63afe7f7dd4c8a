"""Ranks the rows of an upload by how the aligned model weighs answer against refusal."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import check_known
from titer.text import to_csv, to_json
from titer.workflows.common import EMBEDDED, Show, Table, as_path, listener, refuse_unused_data_dir, workflow

if TYPE_CHECKING:
    from titer.stats.intervals import Estimate


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
    """

    index: int
    log_ratio: float
    weight: float
    prompt: str
    completion: str
    origin: str | None


@dataclass(frozen=True)
class Audit(Table):
    """The rows of an upload, the most suspicious first; as a table the same.

    Attributes:
        folder: Where audit.csv, audit.html and audit.json are.
        about: What was audited with what: `dataset`, `model`, `weights`, `ratio`, `n`, `batch_size`, `auroc` where known.
        ranked: The rows.
        auroc: How well the ranking finds harmful rows, where the upload says which are.
    """

    folder: Path
    about: dict[str, Any]
    ranked: tuple[AuditedRow, ...] = field(repr=False)
    auroc: Estimate | None

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows, the most suspicious first."""
        return [dataclasses.asdict(row) for row in self.ranked]

    @property
    def document(self) -> dict[str, Any]:
        """What audit.json holds."""
        return {"schema": "titer/audit/1", **self.about, "rows": self.rows()}

    def __str__(self) -> str:
        found = self.auroc
        sure = "" if found is None else f", AUROC {found.value:.3f} (95 % {found.low:.3f} – {found.high:.3f})"
        return f"{self.about['dataset']}: {len(self.ranked)} rows{sure}"


@workflow
def audit(
    dataset: str,
    *,
    model: str = EMBEDDED,
    output: str | Path = "audit",
    ratio: str = "sum",
    batch_size: int = 16,
    data_dir: str | Path | None = None,
    show: Show | bool = False,
) -> Audit:
    """Rank the rows of an upload, the most suspicious first, before anything is trained on them.

    Args:
        dataset: The upload: a .jsonl file, a named dataset, or a hub id.
        model: A local folder, a hub id, or smollm2-135m-instruct.
        output: Folder for audit.csv and audit.html.
        ratio: Likelihoods of answers: sum (as printed) or mean.
        batch_size: Rows that weights are shared among.
        data_dir: Folder with local copies of named datasets (sst2_train.jsonl, …).
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Raises:
        TiterError: For arguments that cannot be meant or have no effect, and data or a model that cannot be loaded.
    """
    from titer.data import load
    from titer.files import check_output
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
    refuse_unused_data_dir([dataset])
    folder = as_path("output", output)
    check_output(folder, ["audit.csv", "audit.html", "audit.json"])
    records = load(dataset, data_dir=None if data_dir is None else as_path("data_dir", data_dir))
    base, adapter = split_adapter(model)
    work = weighing("weigh", base, records).after_loading
    listener(show).expect([work])
    with recorded(work):
        ratios = answers.weigh(base, adapter, records, ratio)
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
    truth, auroc = [record.is_harmful for record in records], None
    if all(flag is not None for flag in truth) and len(set(truth)) == 2:
        # A harmful row teaches against the aligned model's wish to refuse: its ratio is low.
        auroc = auroc_interval([-value for value in ratios], [bool(flag) for flag in truth])
        about |= {"auroc": auroc.value, "auroc_low": auroc.low, "auroc_high": auroc.high}
    found = Audit(folder, about, tuple(sorted(rows, key=lambda row: row.log_ratio)), auroc)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "audit.csv", to_csv(found.rows()).encode())
    write_audit(folder / "audit.html", found.rows(), found.about)
    write_atomically(folder / "audit.json", to_json(found.document).encode())
    return found
