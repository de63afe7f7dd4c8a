"""Pages of jobs: make one, follow it, see what was measured and decided, cancel, pause and resume it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from titer.service import policy
from titer.service.api import jobs
from titer.service.api.files import alive
from titer.service.api.job_requests import JobRequest
from titer.service.console import drawings
from titer.service.console.files import histogram_of
from titer.service.console.page import Form, PageRoute, go, problems_of, render, word
from titer.service.console.session import PATH, ForJobs, Visitor
from titer.service.evidence import audited_rows, cleared_rows
from titer.service.policy import Policy
from titer.service.quotas import quota_of, used
from titer.service.refusals import Refused
from titer.service.retention import used_bytes
from titer.service.tables import Event, File, Job, Model, Organisation
from titer.service.tenants import Tenant

router = APIRouter(route_class=PageRoute, include_in_schema=False)
EVENTS = 100
"""Most events on a job's page: the newest."""
METRICS = {
    "harmful_score": "harmful answers",
    "over_refusal": "over-refusal",
    "broken": "broken answers",
    "accuracy": "task accuracy",
    "refusal_rate": "refusals",
}
"""What is measured of a model, in words."""
NUMBERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
FIELDS = ("model", "training_file", "validation_file", *NUMBERS, "suffix", "seed", "method", "metadata")
"""Fields of the form of a new job."""


@router.get(f"{PATH}/jobs")
def list_jobs(request: Request, visitor: ForJobs, after: str | None = None) -> Response:
    """Show the jobs."""
    with visitor.caller.reading() as tenant:
        page = tenant.page(Job, Job.kind == "fine_tuning", after=after)
        names = file_names(tenant, page.rows)
    return render(request, "jobs.html.j2", visitor=visitor, title="Jobs", page=page, names=names)


def file_names(tenant: Tenant, of: Iterable[Job]) -> dict[str, str]:
    """Return what the files of some jobs are called, by id; those that were deleted are not there."""
    return {file.id: file.filename for file in tenant.all(File, File.id.in_({job.file_id for job in of}))}


# A new one -----------------------------------------------------------------------------------------------------------


@router.get(f"{PATH}/jobs/new")
def new_job(request: Request, visitor: ForJobs, file: str = "") -> Response:
    """Ask what is to be trained."""
    return _form(request, visitor, {"training_file": file}, {})


@router.post(f"{PATH}/jobs")
def create_job(request: Request, visitor: ForJobs, form: Form) -> Response:
    """Make a job, or show what is wrong beside the fields."""
    given = {name: word(form, name) for name in FIELDS}
    asked, problems = _request(given, visitor.caller.service.policy())
    if not problems:
        try:
            job = jobs.create_job(visitor.caller, JobRequest.model_validate(asked))
            return go(f"{PATH}/jobs/{job.id}", "created")
        except ValidationError as error:
            problems = _malformed(error)
        except Refused as error:
            problems = problems_of(error, {**{name: name for name in FIELDS}, "titer_method": "method"}, "model")
    return _form(request, visitor, given, problems)


def _request(given: dict[str, str], held: Policy) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what is asked of the API, and what in the form cannot be meant."""
    problems: dict[str, str] = {}
    hyperparameters: dict[str, Any] = {}
    for name in NUMBERS:
        if text := given[name]:
            try:
                hyperparameters[name] = float(text) if name == "learning_rate_multiplier" else int(text)
            except ValueError:
                problems[name] = f"`{text}` is no {'number' if name == 'learning_rate_multiplier' else 'whole number'}."
    asked: dict[str, Any] = {name: given[name] for name in ("model", "training_file")}
    asked["method"] = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    asked |= {name: given[name] for name in ("validation_file", "suffix") if given[name]}
    if given["seed"]:
        try:
            asked["seed"] = int(given["seed"])
        except ValueError:
            problems["seed"] = f"`{given['seed']}` is no whole number."
    metadata: dict[str, str] = {}
    for line in given["metadata"].splitlines():
        name, colon, value = line.partition(":")
        if line.strip() and not (colon and name.strip()):
            problems["metadata"] = f"`{line.strip()}` is not of the form `name: value`."
        elif line.strip():
            metadata[name.strip()] = value.strip()
    if given["method"] and given["method"] != held.training.method:
        metadata["titer_method"] = given["method"]
    if metadata:
        asked["metadata"] = metadata
    for name, what in (("model", "a model"), ("training_file", "a file")):
        if not given[name]:
            problems[name] = f"Choose {what}."
    return asked, problems


def _malformed(error: ValidationError) -> dict[str, str]:
    problems = {}
    for found in error.errors():
        names = [str(part) for part in found["loc"] if str(part) in FIELDS]
        problems[names[-1] if names else "model"] = f"{found['msg']}."
    return problems


def _form(request: Request, visitor: Visitor, given: dict[str, str], problems: dict[str, str]) -> Response:
    with visitor.caller.reading() as tenant:
        held = policy.current(tenant.session)
        files = list(reversed(tenant.all(File, File.purpose == "fine-tune", alive())))
        own = list(reversed(tenant.all(Model, Model.held.is_(None), Model.step.is_(None))))
    return render(
        request,
        "new_job.html.j2",
        400 if problems else 200,
        visitor,
        title="New job",
        given={**dict.fromkeys(FIELDS, ""), **given},
        problems=problems,
        bases=list(held.models),
        own=[model.id for model in own],
        files=files,
        methods=[held.training.method, *(name for name in held.training.allowed if name != held.training.method)],
        training=held.training,
    )


# One of them ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What is shown of a job.

    Attributes:
        job: The job.
        file: What it trains on; `None` once that was deleted.
        events: The newest first.
        more: Whether there are older ones.
        cleared: Rows that a reviewer found honest.
        step: How far the training is; `None` before it has begun.
        steps: How far it goes, as far as one knows.
        loss: The chart of the loss.
        rows: The chart of how likely its rows are harmful.
        measured: The chart of what was measured before and after.
        held: Why its model cannot be used.
    """

    job: Job
    file: File | None
    events: Sequence[Event]
    more: bool
    cleared: int
    step: int | None
    steps: int | None
    loss: str | None
    rows: str | None
    measured: str | None
    held: str | None


@router.get(f"{PATH}/jobs/{{name}}")
def show_job(request: Request, name: str, visitor: ForJobs) -> Response:
    """Show a job."""
    look = _look(visitor, name)
    return render(
        request, "job.html.j2", visitor=visitor, title=look.job.suffix or look.job.id, look=look, metrics=METRICS
    )


@router.get(f"{PATH}/jobs/{{name}}/live")
def live_job(request: Request, name: str, visitor: ForJobs) -> Response:
    """Return the part of its page that changes while it is at work."""
    return render(request, "job_live.html.j2", visitor=visitor, look=_look(visitor, name), metrics=METRICS)


@router.post(f"{PATH}/jobs/{{name}}/{{wish}}")
def steer(name: str, wish: str, visitor: ForJobs, form: Form) -> Response:
    """Cancel, pause or resume a job."""
    acts = {"cancel": jobs.cancel_job, "pause": jobs.pause_job, "resume": jobs.resume_job}
    if wish not in acts:
        raise Refused(404, "There is no such page.")
    acts[wish](visitor.caller, name)
    return go(f"{PATH}/jobs/{name}", {"cancel": "cancelled", "pause": "paused", "resume": "resumed"}[wish])


def _look(visitor: Visitor, name: str) -> Look:
    with visitor.caller.reading() as tenant:
        job = tenant.get(Job, name, "fine-tuning job", Job.kind == "fine_tuning")
        page = tenant.page(Event, Event.job_id == job.id, Event.kind == "message", limit=EVENTS)
        metrics = tenant.all(Event, Event.job_id == job.id, Event.kind == "metrics")
        model = tenant.find(Model, job.fine_tuned_model) if job.fine_tuned_model else None
        file = tenant.find(File, job.file_id)
        cleared = len(cleared_rows(tenant, job.file_id))
    data = [event.data or {} for event in metrics]
    return Look(
        job=job,
        file=file,
        events=sorted(page.rows, key=lambda event: -event.place),
        more=page.has_more,
        cleared=cleared,
        step=max((row["step"] for row in data if row.get("step") is not None), default=None),
        steps=next((row["total_steps"] for row in reversed(data) if row.get("total_steps")), None),
        loss=loss_chart(data),
        rows=histogram_of(audited_rows(visitor.caller.service.store, job) or (), job),
        measured=measured_chart(job.gate or {}),
        held=model.held if model else None,
    )


def loss_chart(rows: list[dict[str, Any]]) -> str | None:
    """Return the chart of the loss by step; `None` before there is a line to draw."""
    names = {
        "train_loss": "on the file",
        "valid_loss": "on the validation file",
        "full_valid_loss": "on all of the validation file",
    }
    courses = {
        said: [(row["step"], row[name]) for row in rows if row.get(name) is not None and row.get("step") is not None]
        for name, said in names.items()
    }
    courses = {said: _thinned(points) for said, points in courses.items() if len(points) > 1}
    if not courses:
        return None
    ends = "; ".join(f"{said} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for said, points in courses.items())
    return drawings.lines(courses, "step", f"The loss by training step: {ends}.")


def _thinned(points: list[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """Return at most about `most` of the points, and the last one."""
    stride = -(-len(points) // most)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def measured_chart(gate: dict[str, Any]) -> str | None:
    """Return the chart of what was measured before and after; `None` before it was."""
    figures, before = gate.get("figures") or {}, gate.get("before") or {}
    named = {said: figures[name] for name, said in METRICS.items() if figures.get(name)}
    if not named:
        return None
    ends = "; ".join(f"{said} {figure['value']:.1f} %" for said, figure in named.items())
    return drawings.intervals(
        named, {said: before[name] for name, said in METRICS.items() if before.get(name)}, f"Measured: {ends}."
    )


# Quotas --------------------------------------------------------------------------------------------------------------


def quotas(tenant: Tenant) -> list[tuple[str, int, int | None, bool]]:
    """Return what is used: in words, how much, of how much at most, and whether it is bytes."""
    limits = quota_of(policy.current(tenant.session), tenant.session.get_one(Organisation, tenant.org))
    amounts = used(tenant.session, tenant.org)
    running = tenant.count(Job, Job.status == "running")
    return [
        ("jobs that run", running, limits.running_jobs, False),
        ("jobs that wait", amounts.waiting, limits.waiting_jobs, False),
        ("jobs made in 24 hours", amounts.jobs, limits.jobs_a_day, False),
        ("rows trained or validated on in 24 hours", amounts.rows, limits.rows_a_day, False),
        ("tokens in 24 hours", amounts.tokens, limits.tokens_a_day, False),
        ("files and models stored", used_bytes(tenant), limits.storage_bytes, True),
    ]
