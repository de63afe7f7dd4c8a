"""Retention: what is over goes, rows and bytes; what is needed stays; a crash at any moment leaves nothing behind."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from titer.service import policy, retention
from titer.service.keys import DAY
from titer.service.retention import sweep, used_bytes
from titer.service.running import Away
from titer.service.store import MARK
from titer.service.tables import (
    Appeal,
    File,
    Job,
    LogEntry,
    Model,
    Organisation,
    Part,
    Removal,
    Upload,
    now,
)
from titer.service.tenants import Tenant

LONG_AGO = 1_000_000


def keep(service, **days):
    with service.database.writing() as session:
        given = policy.current(session).as_dict()
        policy.replace(
            session, policy.as_yaml(policy.from_dict({**given, "retention": {**given["retention"], **days}})), "t"
        )


def add(service, row, org="one"):
    row.org_id = f"org-{org}"
    with service.database.writing() as session:
        session.add(row)
        session.flush()
        return row.id


def add_file(service, name, org="one", **columns):
    place = f"files/org-{org}/{name}"
    service.store.write(place, b"rows of somebody's")
    row = File(id=name, filename="a.jsonl", purpose="fine-tune", bytes=18, digest="d", place=place, **columns)
    return add(service, row, org)


def add_job(service, name, org="one", **columns):
    for place in (f"jobs/{name}/audit.json", f"jobs/{name}/checkpoints/state", f"jobs/{name}/gate/gate.json"):
        service.store.write(place, b"{}")
    given = {
        "model": "tiny",
        "status": "succeeded",
        "finished_at": now(),
        "audit": {"place": f"jobs/{name}/audit.json"},
    }
    return add(service, Job(id=name, **{**given, **columns}), org)


def add_model(service, name, org="one", **columns):
    place = f"models/{name.rpartition(':')[2]}"
    service.store.write(f"{place}/files.json", b"{}")
    return add(service, Model(id=name, base="tiny", job_id="ftjob-1", place=place, bytes=5, **columns), org)


def ids(service, kind):
    with service.database.reading() as session:
        return set(session.scalars(select(kind.id)))


def stored(service):
    root = Path(service.store.url)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != MARK}


def test_nothing_goes_that_is_not_over(any_service):
    add_file(any_service, "file-1", expires_at=now() + 100)
    add_file(any_service, "file-2", created_at=LONG_AGO)  # kept for ever by the policy
    add_model(any_service, "ft:m", created_at=LONG_AGO)
    add_job(any_service, "ftjob-1", file_id="file-1")
    before = stored(any_service)
    assert not any(sweep(any_service).counts.values())
    assert stored(any_service) == before


def test_files_models_and_work_go_after_their_days(any_service):
    add_file(any_service, "file-old", created_at=now() - 8 * DAY)
    add_file(any_service, "file-new", created_at=now() - 6 * DAY)
    add_file(any_service, "file-expired", "two", expires_at=now())
    add_model(any_service, "ft:old", created_at=now() - 8 * DAY)
    add_model(any_service, "ft:new")
    add_job(any_service, "ftjob-old", file_id="file-new", finished_at=now() - 8 * DAY, created_at=LONG_AGO)
    add_job(any_service, "ftjob-new", file_id="file-new", created_at=LONG_AGO)
    add_job(any_service, "ftjob-running", file_id="file-new", status="running", finished_at=None, created_at=LONG_AGO)
    keep(any_service, files=7, models=7, work=7)
    swept = sweep(any_service)
    assert swept.counts == {"files": 2, "uploads": 0, "models": 1, "work": 1, "places": 5}
    assert ids(any_service, File) == {"file-new"}
    assert ids(any_service, Model) == {"ft:new"}
    assert ids(any_service, Job) == {"ftjob-old", "ftjob-new", "ftjob-running"}
    left = stored(any_service)
    assert {name for name in left if name.startswith("files/")} == {"files/org-one/file-new"}
    assert {name for name in left if name.startswith("models/")} == {"models/new/files.json"}
    assert len([name for name in left if name.startswith("jobs/")]) == 2 * 3
    with any_service.database.reading() as session:
        assert session.scalar(select(Job).where(Job.id == "ftjob-old")).audit == {"place": None}
        lines = session.scalars(select(LogEntry).where(LogEntry.actor == "retention")).all()
        assert {(line.action, line.subject, line.org_id) for line in lines} == {
            ("file.deleted", "file-old", "org-one"),
            ("file.deleted", "file-expired", "org-two"),
            ("model.deleted", "ft:old", "org-one"),
            ("job.tidied", "ftjob-old", "org-one"),
        }
        assert session.scalars(select(Removal)).all() == []
    assert not any(sweep(any_service).counts.values())  # all of it at once


def test_a_file_that_a_job_reads_stays_until_it_has_ended(service):
    add_file(service, "file-1", expires_at=now())
    add_file(service, "file-2", expires_at=now())
    add_job(service, "ftjob-1", file_id="file-1", validation_file_id="file-2", status="paused", finished_at=None)
    with service.database.reading() as session:
        tenant = Tenant(session, "org-one", "t")
        assert [retention.needed_by(tenant, file).id for file in tenant.all(File)] == ["ftjob-1", "ftjob-1"]
    assert sweep(service).counts["files"] == 0
    with service.database.writing() as session:
        session.scalar(select(Job)).status = "cancelled"
    assert sweep(service).counts["files"] == 2


def test_what_quotes_a_file_goes_with_it(service):
    add_file(service, "file-1", expires_at=now())
    add_job(service, "audit-1", file_id="file-1", kind="audit")
    add_job(service, "ftjob-2", file_id="file-1")
    add_job(service, "ftjob-1", "two", file_id="file-1")  # a stranger's of the same name, which cannot be
    add(service, Appeal(id="appeal-1", file_id="file-1", rows=[1], reason="it says …", reviewer="key_1"))
    sweep(service)
    assert ids(service, Appeal) == set()
    left = stored(service)
    assert not [name for name in left if name.startswith(("jobs/audit-1/", "jobs/ftjob-2/audit"))]
    assert {"jobs/ftjob-1/audit.json", "jobs/ftjob-2/gate/gate.json", "jobs/ftjob-2/checkpoints/state"} <= left


def test_work_goes_whole_and_evidence_with_the_last_model(service):
    for name in ("ftjob-1", "ftjob-2"):
        for place in ("rows.json", "sample_weights.jsonl"):
            service.store.write(f"jobs/{name}/{place}", b"{}")
        service.store.write(f"models/{name}/files.json", b"{}")
        add_job(service, name, file_id="file-1", finished_at=LONG_AGO, gate={"place": f"jobs/{name}/gate"})
    # The second one failed behind its training: what it trained was never published.
    for model, place in (("ft:1", "models/ftjob-1"), ("ft:1:5", "models/ftjob-1-5")):
        service.store.write(f"{place}/files.json", b"{}")
        add(service, Model(id=model, base="tiny", job_id="ftjob-1", place=place))
    sweep(service)
    evidence = "jobs/ftjob-1/gate/gate.json"
    assert stored(service) == {"models/ftjob-1/files.json", "models/ftjob-1-5/files.json", evidence}
    for model in ("ft:1", "ft:1:5"):
        assert evidence in stored(service)
        with service.database.writing() as session:
            tenant = Tenant(session, "org-one", "t")
            retention.remove_model(tenant, tenant.find(Model, model))
        retention.empty(service)
    assert stored(service) == set()
    with service.database.reading() as session:
        assert [job.gate for job in session.scalars(select(Job))] == [{"place": None}] * 2


def test_a_model_that_a_job_begins_with_stays(service):
    add_model(service, "ft:old", created_at=LONG_AGO)
    add_job(service, "ftjob-1", model="ft:old", file_id="f", status="queued", finished_at=None)
    keep(service, models=7)
    assert sweep(service).counts["models"] == 0
    with service.database.writing() as session:
        session.scalar(select(Job)).status = "cancelled"
    assert sweep(service).counts["models"] == 1


def test_uploads_that_nobody_completed_end_and_their_parts_go(service):
    columns = {"filename": "a", "purpose": "fine-tune", "mime_type": "text/jsonl", "bytes": 10}
    for name, status, ends in (("late", "pending", 0), ("open", "pending", 100), ("done", "completed", 100)):
        add(service, Upload(id=f"upload_{name}", status=status, expires_at=now() + ends, **columns))
        place = f"parts/org-one/part_{name}"
        service.store.write(place, b"12345")
        add(service, Part(id=f"part_{name}", upload_id=f"upload_{name}", bytes=5, digest="d", place=place))
    with service.database.reading() as session:
        assert used_bytes(Tenant(session, "org-one", "t")) == 15
    sweep(service)
    assert ids(service, Part) == {"part_open"}
    assert stored(service) == {"parts/org-one/part_open"}
    with service.database.reading() as session:
        assert dict(session.execute(select(Upload.id, Upload.status)).all()) == {
            "upload_late": "expired", "upload_open": "pending", "upload_done": "completed",
        }  # fmt: skip


def test_a_crash_between_rows_and_bytes_is_made_good(service, monkeypatch):
    add_file(service, "file-1", expires_at=now())
    with monkeypatch.context() as patched:
        patched.setattr(retention, "empty", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep(service)
    assert ids(service, File) == set()  # nobody sees it any more
    assert stored(service) == {"files/org-one/file-1"}
    assert sweep(service).counts["places"] == 1
    assert stored(service) == set()


def test_a_crash_before_the_transaction_ends_leaves_all_as_it_was(service, monkeypatch):
    add_file(service, "file-1", expires_at=now())
    monkeypatch.setattr(Tenant, "remove", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sweep(service)
    assert ids(service, File) == {"file-1"}
    assert stored(service) == {"files/org-one/file-1"}
    with service.database.reading() as session:
        assert session.scalars(select(Removal)).all() == []


def test_a_store_that_fails_is_asked_again(service, monkeypatch):
    add_file(service, "file-1", expires_at=now())
    add_file(service, "file-2", expires_at=now())
    remove = type(service.store).remove

    def fails(store, key):
        if key.endswith("1"):
            raise OSError(5, "Input/output error")
        remove(store, key)

    with monkeypatch.context() as patched:
        patched.setattr(type(service.store), "remove", fails)
        swept = sweep(service)
        assert (swept.failed, swept.counts["places"]) == (1, 1)
    assert stored(service) == {"files/org-one/file-1"}
    assert sweep(service).failed == 0
    assert stored(service) == set()


def test_many_things_go_in_small_transactions(service, monkeypatch):
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    for number in range(5):
        add_file(service, f"file-{number}", expires_at=now())
    assert sweep(service).counts["files"] == 5


def test_two_sweeps_at_once_remove_everything_once(any_service):
    for number in range(6):
        add_file(any_service, f"file-{number}", expires_at=now())
    swept = []
    threads = [threading.Thread(target=lambda: swept.append(sweep(any_service))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.counts["files"] for one in swept) == 6
    assert sum(one.failed for one in swept) == 0
    sweep(any_service)
    assert stored(any_service) == set()
    with any_service.database.reading() as session:
        assert session.query(LogEntry).filter_by(action="file.deleted").count() == 6


def test_storage_is_counted_for_each_organisation(service):
    add_file(service, "file-1")
    add_file(service, "file-2", "two")
    add_model(service, "ft:m")
    with service.database.reading() as session:
        assert used_bytes(Tenant(session, "org-one", "t")) == 23
        assert used_bytes(Tenant(session, "org-two", "t")) == 18
        assert used_bytes(Tenant(session, "org-none", "t")) == 0


def test_sweeping_goes_on_until_the_block_ends(service, monkeypatch):
    seen = threading.Semaphore(0)
    thorough = []

    def swept(service, strays_too):
        thorough.append(strays_too)
        seen.release()
        return retention.Swept()

    monkeypatch.setattr(retention, "sweep", swept)
    with retention.sweeping(service, every=0.01):
        assert all(seen.acquire(timeout=10) for _ in range(3))
    assert thorough[:3] == [True, False, False]  # the whole store is listed once a day
    assert not any(thread.name == "retention" for thread in threading.enumerate())


@pytest.mark.parametrize("error", [OperationalError("SELECT", {}, Exception("gone")), Away("The store is away.")])
def test_sweeping_outlives_a_database_or_a_store_that_is_away(service, monkeypatch, caplog, error):
    seen = threading.Semaphore(0)

    def away(service, strays_too):
        seen.release()
        raise error

    monkeypatch.setattr(retention, "sweep", away)
    with retention.sweeping(service, every=0.01):
        assert all(seen.acquire(timeout=10) for _ in range(3))
    assert "tries again" in caplog.text


def test_organisations_have_no_end_of_their_own(service):
    """Only their things are removed: who had them stays in the audit log."""
    sweep(service)
    assert ids(service, Organisation) == {"org-one", "org-two"}
