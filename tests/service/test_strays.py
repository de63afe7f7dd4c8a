"""Strays: what no row names goes from the store a day after it was found, and nothing else ever does."""

import dataclasses

import pytest
from conftest import opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from titer.service import retention, strays, tables
from titer.service.retention import sweep
from titer.service.running import Away
from titer.service.tables import DAY, Appeal, File, Job, LogEntry, Model, Part, Removal

COLUMNS = {"org_id": "org-one", "bytes": 1}
HEX = "0123456789abcdef" * 2


def file(place, **columns):
    name = place.rpartition("/")[2]
    return File(id=name, filename="a", purpose="fine-tune", digest="d", place=place, **COLUMNS, **columns)


def part(place):
    return Part(id=place.rpartition("/")[2], upload_id="upload_1", digest="d", place=place, **COLUMNS)


def model(place, job="ftjob-1"):
    return Model(id=f"ft:{place}", base="tiny", job_id=job, place=place, **COLUMNS)


def job(name, status, **columns):
    ended = status in retention.ENDS
    given = {"id": name, "org_id": "org-one", "model": "tiny", "file_id": "file-0", "status": status}
    return Job(**given, finished_at=tables.now() if ended else None, **columns)


def add(service, *rows):
    with service.database.writing() as session:
        session.add_all(rows)


@pytest.fixture
def clock(monkeypatch):
    """Lets days pass for retention."""
    moment = [tables.now()]
    for module in (retention, strays):
        monkeypatch.setattr(module, "now", lambda: moment[0])
    monkeypatch.setattr(retention, "REMOVED", {})

    def passing(days):
        moment[0] += round(days * DAY)

    return passing


@pytest.fixture
def there(service, store):
    """The service with a store of each kind."""
    return dataclasses.replace(service, store=store)


def put(service, *keys):
    for key in keys:
        service.store.write(key, b"bytes")


def put_scratch(service, key):
    """What a process that was killed while it wrote leaves."""
    place, _, name = key.rpartition("/")
    left = f"{place}/.{name}.{HEX}.tmp" if service.store._local else f"{key}.{HEX}.part"
    with service.store._system.open(f"{service.store._root}/{left}", "wb") as file:
        file.write(b"half")
    return left


NOBODYS = (
    "files/org-one/file-metrics",  # of a worker that died before it wrote down that it is there
    "parts/org-one/part_lost",
    "models/ftjob-1-3/adapter.safetensors",  # a checkpoint, by a worker that died before its row
    "models/ftjob-gone/adapter.safetensors",
    "models/ftjob-gone-6/adapter.safetensors",
    "jobs/ftjob-gone/audit.json",
    "jobs/ftjob-gone/checkpoints/4-1/deep/state",
    "jobs/ftjob-tidied/checkpoints/4-1/state",  # by a worker that had lost the job, after it was tidied
    "models/ftjob-tidied/adapter.safetensors",
)
SOMEBODYS = (
    "files/org-one/file-1",
    "files/org-one/file-announced",
    "parts/org-one/part_1",
    "models/ftjob-1/adapter.safetensors",
    "models/ftjob-run/adapter.safetensors",
    "models/ftjob-run-3/adapter.safetensors",
    "models/ftjob-paused-9/adapter.safetensors",
    "models/ftjob-failed/adapter.safetensors",  # until its work is over, as its checkpoints
    "jobs/ftjob-run/checkpoints/4-1/state",
    "jobs/ftjob-failed/checkpoints/4-1/state",
    "jobs/ftjob-tidied/gate/gate.json",
    "gates/0123/files.json",
    "detectors/0123.npz",
    "notes of the operator/read me.txt",
)


def test_what_no_row_names_goes_a_day_after_it_was_found(there, clock):
    put(there, *NOBODYS, *SOMEBODYS[:-1])
    with there.store._system.open(f"{there.store._root}/files/by hand.txt", "wb") as kept:
        kept.write(b"an operator's")
    left = [put_scratch(there, key) for key in ("files/org-one/file-half", "gates/0123/a.json", "models/ftjob-1/b")]
    at_work = put_scratch(there, "models/ftjob-run/adapter.safetensors")
    add(
        there, file(SOMEBODYS[0]), part(SOMEBODYS[2]), model("models/ftjob-1"), job("ftjob-1", "succeeded"),
        job("ftjob-run", "running"), job("ftjob-paused", "paused"), job("ftjob-failed", "failed"),
        job("ftjob-tidied", "succeeded", tidied=True, gate={"place": "jobs/ftjob-tidied/gate"}),
        Removal(place=SOMEBODYS[1], created_at=tables.now() + 9 * DAY),
    )  # fmt: skip
    assert sweep(there, strays_too=True).counts.get("strays") is None
    clock(0.9)
    assert sweep(there, strays_too=True).counts.get("strays") is None
    clock(0.2)
    assert sweep(there).counts["strays"] == len(NOBODYS) + len(left)
    assert set(there.store.listing()) == {*SOMEBODYS[:-1], "files/by hand.txt", at_work}
    with there.database.reading() as session:
        line = session.scalars(select(LogEntry).where(LogEntry.action == "strays.removed")).one()
        assert line.details["count"] == len(NOBODYS) + len(left)
        assert "jobs/ftjob-gone/checkpoints" in line.details["first"]
        assert session.scalars(select(Removal.place)).all() == [SOMEBODYS[1]]
    assert retention.REMOVED["strays"] == len(NOBODYS) + len(left)
    sweep(there, strays_too=True)
    clock(2)
    assert sweep(there).counts.get("strays") is None


def test_what_is_named_in_the_meantime_stays(there, clock):
    put(there, "files/org-one/file-late", "models/ftjob-1-3/a")
    sweep(there, strays_too=True)
    add(there, file("files/org-one/file-late"), model("models/ftjob-1-3"))
    clock(2)
    sweep(there)
    assert len(there.store.listing()) == 2
    with there.database.reading() as session:
        assert session.scalars(select(Removal)).all() == []


def test_a_clock_that_jumps_gives_another_look_all_the_same(service, clock):
    put(service, "files/org-one/file-late")
    clock(50)
    sweep(service, strays_too=True)
    clock(50)
    assert service.store.listing() == ["files/org-one/file-late"]


def test_a_store_that_is_away_is_no_fault_of_the_sweep(service, monkeypatch):
    unreachable = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"})
    monkeypatch.setattr(service.store, "listing", lambda: (_ for _ in ()).throw(unreachable("no route")))
    with pytest.raises(Away, match="cannot be used"):
        sweep(service, strays_too=True)


PLACES = [f"{kind}/org-one/{kind[0]}{number}" for kind in ("files", "parts") for number in range(3)]
KEYS = st.sampled_from(
    [*PLACES, *(f"models/j{n}{step}/a" for n in range(3) for step in ("", "-1")),
     *(f"jobs/j{n}/{what}" for n in range(3) for what in ("audit.json", "gate/gate.json", "checkpoints/1-1/state"))]
)  # fmt: skip
STATUS = st.sampled_from(["queued", "running", "paused", "succeeded", "failed", "cancelled"])
STEP = st.one_of(
    st.tuples(st.just("put"), KEYS),
    st.tuples(st.just("row"), st.sampled_from([*PLACES, *(f"models/j{n}{s}" for n in range(3) for s in ("", "-1"))])),
    st.tuples(st.just("job"), st.sampled_from(["j0", "j1", "j2"]), STATUS, st.booleans()),
    st.tuples(st.just("sweep"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.1, 40])),
)


@pytest.fixture(scope="module")
def world(tiny_folder, tmp_path_factory):
    with opened(tmp_path_factory.mktemp("strays"), tiny_folder) as found:
        yield found


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=14))
def test_nothing_that_a_row_names_is_ever_removed(world, clock, steps):
    """Whatever is put, named, finished and swept in whatever order: what is named, or a job's at work, is there."""
    with world.database.writing() as session:
        for kind in (File, Part, Model, Job, Removal, Appeal):
            session.execute(delete(kind))
    for key in world.store.listing():
        world.store.remove(key)
    for name, *what in steps:
        if name == "put":
            put(world, *what)
        elif name == "row":
            _name(world, what[0])
        elif name == "job":
            _let_be(world, *what)
        elif name == "wait":
            clock(*what)
        else:
            before = set(world.store.listing())
            sweep(world, *what)
            with world.database.reading() as session:
                places = [place for kind in (File, Part, Model) for place in session.scalars(select(kind.place))]
                places += [f"jobs/{one}" for one in session.scalars(select(Job.id).where(Job.status == "running"))]
            named = {key for key in before if any(key == place or key.startswith(f"{place}/") for place in places)}
            assert named <= set(world.store.listing())
    # Whatever nobody names is gone in the end, with all work of jobs that are over for long.
    sweep(world, True)
    clock(40)
    sweep(world, True)
    clock(2)
    sweep(world)
    with world.database.reading() as session:
        named = strays.Named(session)
    assert all(named.keeps(place) for place in strays._places(world.store.listing()))


def _name(service, place):
    """Let a row name a place, as whoever makes it does: with the bytes there, in no job that ended long ago."""
    rows = {"files": file, "parts": part, "models": model}
    kind = place.partition("/")[0]
    with service.database.reading() as session:
        there = session.scalars(select({"files": File, "parts": Part, "models": Model}[kind].place)).all()
    if place not in there and any(key.startswith(place) for key in service.store.listing()):
        add(service, rows[kind](place, expires_at=10**10) if kind == "files" else rows[kind](place))


def _let_be(service, name, status, tidied):
    with service.database.writing() as session:
        session.execute(delete(Job).where(Job.id == name))
    add(service, job(name, status, tidied=tidied and status in retention.ENDS))
