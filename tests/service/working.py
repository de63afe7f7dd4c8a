"""Jobs for the tests of workers: a file in the store, a job in the table, and what became of both."""

import hashlib
import json

from sqlalchemy import select

from titer.service import policy
from titer.service.identifiers import new_id
from titer.service.pipeline import do
from titer.service.queue import Queue
from titer.service.tables import Event, File, Job, Model


def conversation(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [conversation(f"what is a film? {'please ' * (place % 4)}", f"a film is good {place}") for place in range(12)]


def add_file(service, rows=ROWS, org="org-one"):
    """Put a training file into a service; returns its id."""
    name, data = new_id("file"), "".join(json.dumps(row) + "\n" for row in rows).encode()
    place = f"files/{org}/{name}"
    service.store.write(place, data)
    with service.database.writing() as session:
        digest = hashlib.sha256(data).hexdigest()
        session.add(
            File(
                id=name,
                org_id=org,
                filename="a.jsonl",
                purpose="fine-tune",
                bytes=len(data),
                digest=digest,
                place=place,
            )
        )
    return name


def add_job(service, file=None, org="org-one", status="queued", hyperparameters=None, rules=None, **more):
    """Put a job into the queue; `rules` are sections of its policy that differ from the present one. Returns its id."""
    file = file or add_file(service, org=org)
    given = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0, **(hyperparameters or {})}
    method = {"type": "supervised", "supervised": {"hyperparameters": given}}
    with service.database.writing() as session:
        now = policy.current(session).as_dict()
        for section, values in (rules or {}).items():
            now[section] |= values
        job = Job(
            id=new_id("job"),
            org_id=org,
            file_id=file,
            status=status,
            rows=len(ROWS),
            policy=now,
            **{"model": "tiny", "seed": 7, "kind": "fine_tuning", "method": method, **more},
        )
        session.add(job)
        return job.id


def job_of(service, name):
    with service.database.reading() as session:
        return session.scalar(select(Job).where(Job.id == name))


def events_of(service, name):
    with service.database.reading() as session:
        return list(session.scalars(select(Event).where(Event.job_id == name).order_by(Event.place)))


def messages_of(service, name):
    return [event.message for event in events_of(service, name)]


def models_of(service, name):
    with service.database.reading() as session:
        return list(session.scalars(select(Model).where(Model.job_id == name).order_by(Model.number)))


def adapter_of(service, name):
    """The bytes of all files of a job's adapter."""
    place = f"models/{name}"
    listed = json.loads(service.store.read(f"{place}/files.json"))
    return {file: service.store.read(f"{place}/{file}") for file in listed}


def done(service, name, stop=None):
    """Do a job in this process; returns the exit code that its own process would end with."""
    claim = Queue(service.database, "tester").claim()
    assert claim is not None
    assert claim.job == name
    return do(service, claim, stop)
