"""The first stage of a job: its rows are audited, and the policy says what becomes of them.

It leaves in the store what the later stages go by, `audit.json` and `rows.json`, so that a job which another worker goes on with
trains on the same rows, whatever was appealed meanwhile.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from titer.data.files import write_rows
from titer.service.evidence import LIKELY, cleared_rows
from titer.service.inputs import NAMED, Start, Upload, count_tokens, from_home, read_upload, read_validation
from titer.service.queue import finish, say
from titer.service.recipe import make_recipe, seconds
from titer.service.running import Running
from titer.service.tables import Job, now
from titer.service.tenants import Tenant
from titer.stats.intervals import Estimate
from titer.text import to_json
from titer.workflows.audit import Audit, audit, share_text


@dataclass(frozen=True)
class Chosen:
    """Which rows of a file teach.

    Attributes:
        dropped: Those that do not, by their numbers in the file.
        cleared: Those that a reviewer found honest.
    """

    dropped: tuple[int, ...]
    cleared: tuple[int, ...]


def audit_stage(run: Running, start: Start, home: Path) -> None:
    """Audit the rows of a job.

    Raises:
        JobFailed: There is nothing in the file that can be trained on.
        Away: The store cannot be used.
    """
    upload = read_upload(run)
    tokens = count_tokens(run, upload, start.base)
    validation = read_validation(run, start.base)
    found = _audited(run, upload, start, home)
    appealed = run.read(lambda session: _appealed(session, run))
    chances = {} if found is None else _worst(upload, found)
    cleared = sorted(appealed & set(upload.places))
    if found is not None:
        found = _without(found, upload, cleared)
    limit = run.policy.audit.drop_over
    over = () if limit is None else (row for row, chance in chances.items() if chance > limit and row not in appealed)
    chosen = Chosen(tuple(sorted(over)), tuple(cleared))
    if found is not None:
        _publish(run, "audit.json", to_json(_document(found, upload)).encode())
    _publish(run, "rows.json", json.dumps(dataclasses.asdict(chosen)).encode())
    about = _summary(run, upload, found, chances, chosen)
    kept = upload.without(chosen.dropped)
    if kept.records:
        out = set(chosen.dropped)
        recipe = make_recipe(run, kept, chosen.cleared, home)
        teach = sum(count for row, count in zip(upload.places, tokens, strict=True) if row not in out)
        about["estimate"] = {
            "seconds": seconds(recipe, start, kept, validation),
            "trained_tokens": round(teach * recipe.epochs),
        }
    refused = _refusal(run, found, kept)
    run.change(lambda session, job: _record(run, session, job, about, chosen, refused))


def read_chosen(run: Running) -> Chosen:
    """Return which rows the audit left; raises `Away`."""
    with run.storing():
        said = json.loads(run.service.store.read(f"{run.place}/rows.json"))
    return Chosen(tuple(said["dropped"]), tuple(said["cleared"]))


def _audited(run: Running, upload: Upload, start: Start, home: Path) -> Audit | None:
    rules = run.policy.audit
    if rules.detector == "none":
        return None
    path = Path("upload.jsonl")
    write_rows(path, [record.to_training_row() for record in upload.records])
    return audit(
        str(path),
        model=start.model,
        output="audit",
        detector=rules.detector,
        harmful=from_home(rules.harmful, home),
        helpful=[from_home(name, home) for name in rules.helpful],
    )


def _appealed(session: Session, run: Running) -> set[int]:
    return cleared_rows(Tenant(session, run.claim.org, run.claim.worker), run.job.file_id)


def _worst(upload: Upload, found: Audit) -> dict[int, float]:
    """Return P(harmful) of each row of the file: that of its worst answer."""
    chances: dict[int, float] = {}
    for row in found.ranked:
        place = upload.places[row.index]
        chances[place] = max(chances.get(place, 0.0), row.p_harmful or 0.0)
    return chances


def _without(found: Audit, upload: Upload, cleared: Sequence[int]) -> Audit:
    """Return an audit in which rows that a reviewer found honest add nothing to the share of harmful ones."""
    if not cleared or found.share is None:
        return found
    rows = set(upload.of(cleared))
    spared = sum(row.p_harmful or 0.0 for row in found.ranked if row.index in rows) / len(found.ranked)
    share = Estimate(*(max(0.0, end - spared) for end in found.share))
    return dataclasses.replace(found, share=share)


def _verdict(found: Audit, upload: Upload, cleared: Sequence[int]) -> str | None:
    rows = set(upload.of(cleared))
    left = tuple(row for row in found.ranked if row.index not in rows)
    return dataclasses.replace(found, ranked=left).verdict


def _document(found: Audit, upload: Upload) -> dict[str, Any]:
    """Return the audit with rows of the file in the place of answers, each once, the worst of its answers."""
    document = found.document
    rows: dict[int, Mapping[str, Any]] = {}
    for row in document["rows"]:  # the most suspicious first
        place = upload.places[row["index"]]
        rows.setdefault(place, {**row, "index": place})
    return {**document, "dataset": "upload", "n": len(rows), "rows": list(rows.values())}


def _publish(run: Running, name: str, data: bytes) -> None:
    with run.storing():
        run.service.store.write(f"{run.place}/{name}", data)


def _summary(
    run: Running, upload: Upload, found: Audit | None, chances: Mapping[int, float], chosen: Chosen
) -> dict[str, Any]:
    """Return what the job says of its audit."""
    return {
        "verdict": None if found is None else _verdict(found, upload, chosen.cleared),
        "share": None if found is None or found.share is None else found.share._asdict(),
        "rows": upload.rows,
        "flagged": sum(chance > LIKELY for chance in chances.values()),
        "dropped": len(chosen.dropped),
        "cleared": len(chosen.cleared),
        "false_alarms": None if found is None else found.about.get("false_alarms"),
        "place": None if found is None else f"{run.place}/audit.json",
        "estimate": None,
    }


def _refusal(run: Running, found: Audit | None, kept: Upload) -> str | None:
    """Return why the policy does not train on an upload; `None` where it does."""
    limit = run.policy.audit.reject_over
    if found is not None and found.share is not None and limit is not None and found.share.low > limit:
        return (
            f"{share_text(found.share)}; this server trains on at most {100 * limit:g} %. "
            "The audit names the rows; honest ones can be appealed."
        )
    return None if kept.records else "No row is left to be trained on: the audit finds all of them harmful."


def _record(
    run: Running, session: Session, job: Job, about: dict[str, Any], chosen: Chosen, refused: str | None
) -> None:
    """Say what the audit found, and what becomes of the upload by it."""
    job.audit = about
    said = f"{about['rows']} rows. The policy looks for no harm."
    if about["share"] is not None:
        said = f"Audit of {about['rows']} rows: {about['verdict']}. {share_text(Estimate(**about['share']))}."
    say(session, job, said, "info" if about["verdict"] in (None, "clean") else "warn")
    for rows, what in ((chosen.cleared, "A reviewer found honest"), (chosen.dropped, "Left out as harmful")):
        if rows:
            say(session, job, f"{what}: {_named(rows)}.")
    run.log(session, "audit.finished", **{name: about[name] for name in ("verdict", "share", "dropped", "cleared")})
    if run.claim.kind == "audit":
        finish(session, job, "succeeded")
    elif refused is not None:
        finish(session, job, "failed", {"code": "upload_rejected", "message": refused, "param": "training_file"})
    else:
        job.stage = "train"
        if about["estimate"]:
            job.estimated_finish = now() + round(about["estimate"]["seconds"])


def _named(rows: Sequence[int]) -> str:
    """Return rows as lines of a file, the first few by number."""
    named = ", ".join(str(row + 1) for row in rows[:NAMED])
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"{len(rows)} row{'s' * (len(rows) > 1)} (line{'s' * (len(rows) > 1)} {named}{more})"
