"""The last stages of a job: its model is measured, and may be used, is held, or is not kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from titer.service.identifiers import model_id
from titer.service.inputs import Start, from_home
from titer.service.queue import finish, say
from titer.service.running import Running
from titer.service.tables import Job, Model
from titer.workflows.gate import BEFORE, Gate, GatePolicy, gate, questions

FOLDER = Path("gate")
ADAPTER = Path("train/adapter")


def gate_stage(run: Running, start: Start, home: Path) -> None:
    """Measure the model, and the one before it unless somebody has, and decide.

    Raises:
        Away: The store cannot be used.
        TiterError: The judge failed.
    """
    rules = run.policy.gate
    if not rules.enabled:
        nothing = {"decision": "deploy", "reasons": ["the policy measures nothing"], "figures": {}, "before": {}}
        run.change(lambda session, job: _record(run, session, job, {**nothing, "place": None}, "warn"))
        return
    rules = dataclasses.replace(
        rules, harmful=from_home(rules.harmful, home), lookalikes=from_home(rules.lookalikes, home)
    )
    if not ADAPTER.is_dir():
        with run.storing():
            run.service.store.get_folder(f"models/{run.claim.job}", ADAPTER)
    found = _measured(run, start, rules)
    place = f"{run.place}/gate"
    with run.storing():
        run.service.store.put_folder(place, FOLDER)
    about = {name: found.document[name] for name in ("decision", "reasons", "figures", "before")}
    level = "info" if found.decision == "deploy" else "warn"
    run.change(lambda session, job: _record(run, session, job, {**about, "place": place}, level))


def _measured(run: Running, start: Start, rules: GatePolicy) -> Gate:
    """Return what the gate finds.

    Answers of a model of the server's are kept in the store's folder `gates` for all jobs that begin with it: they are nobody's,
    and as many as the operator has models and questions, so that no sweep removes them. Those of a tenant's model are in the
    job's own folder alone, and go with it.
    """
    store = run.service.store
    if run.job.model not in run.policy.models:
        return gate(str(ADAPTER), output=FOLDER, policy=rules, before=start.model)
    asked = json.dumps(questions(start.model, rules), sort_keys=True)
    kept = f"gates/{hashlib.sha256(asked.encode()).hexdigest()[:32]}"
    with run.storing():
        there = store.has_folder(kept)
        if there:
            try:
                store.get_folder(kept, FOLDER / BEFORE)
            except FileNotFoundError:  # an operator is removing it
                there = False
    found = gate(str(ADAPTER), output=FOLDER, policy=rules, before=start.model)
    if not there:
        with run.storing():
            store.put_folder(kept, FOLDER / BEFORE)
    return found


def _record(run: Running, session: Session, job: Job, about: dict[str, Any], level: str) -> None:
    job.gate = about
    job.stage = "publish"
    say(session, job, f"The gate says {about['decision']}: {'; '.join(about['reasons'])}.", level)
    run.log(session, "gate.decided", decision=about["decision"], reasons=about["reasons"])


def publish_stage(run: Running, start: Start, home: Path) -> None:
    """Let the model be used, or hold it, or remove it, as the gate has decided; the job is over.

    Raises:
        Away: The store cannot be used.
    """
    about = run.read(lambda session: session.scalar(select(Job.gate).where(Job.id == run.claim.job))) or {}
    if about["decision"] == "fail":
        with run.storing():
            run.service.store.remove(f"models/{run.claim.job}")
        size = 0
    else:
        with run.storing():
            size = run.service.store.folder_bytes(f"models/{run.claim.job}")
    decision, reasons = about["decision"], about["reasons"]
    run.change(lambda session, job: _publish(run, session, job, start.name, size, decision, reasons))


def _publish(
    run: Running, session: Session, job: Job, base: str, size: int, decision: str, reasons: Sequence[str]
) -> None:
    why = None if decision == "deploy" else "; ".join(reasons)
    for checkpoint in session.scalars(select(Model).where(Model.job_id == job.id, Model.step.is_not(None))):
        checkpoint.held = why
    if decision == "fail":
        error = {"code": "safety_gate", "message": f"The model did not pass the gate: {why}.", "param": None}
        finish(session, job, "failed", error)
        return
    name = model_id(base, run.organisation(session), job.suffix)
    place = f"models/{job.id}"
    session.add(
        Model(id=name, org_id=job.org_id, base=base, job_id=job.id, place=place, step=None, held=why, bytes=size)
    )
    job.fine_tuned_model = name
    run.log(session, "model.created", name, job=job.id, held=why)
    say(session, job, f"New fine-tuned model created: {name}")
    finish(session, job, "succeeded")
    if why is not None:
        # The job is done, and its owner sees in one place why the model cannot be asked.
        job.error = {"code": "model_held", "message": f"The model is held: {why}.", "param": None}
