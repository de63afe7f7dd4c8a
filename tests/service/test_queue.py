"""The queue: each job is taken once, organisations take turns, and the jobs of dead workers are taken over."""

import threading
import time
from collections import Counter

import pytest
from sqlalchemy import event, select, update

from titer.errors import TiterError
from titer.service import policy, queue, quotas
from titer.service.chain import append
from titer.service.identifiers import new_id
from titer.service.queue import Lost, Queue, finish, held, say
from titer.service.tables import Event, File, Job, LogEntry, Organisation

METHOD = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}


def put(service, org="one", status="queued", **settings):
    """A job in the table; returns its id."""
    with service.database.writing() as session:
        rules = policy.current(session).as_dict()
        job = Job(id=new_id("job"), org_id=f"org-{org}", model="tiny", status=status, method=METHOD, policy=rules)
        job.file_id = settings.pop("file_id", "file-x")
        for name, value in settings.items():
            setattr(job, name, value)
        session.add(job)
        session.flush()
        return job.id


def row(service, job):
    with service.database.reading() as session:
        return session.scalars(select(Job).where(Job.id == job)).one()


def events(service, job):
    with service.database.reading() as session:
        return session.scalars(select(Event).where(Event.job_id == job).order_by(Event.place)).all()


def actions(service):
    with service.database.reading() as session:
        return session.scalars(select(LogEntry.action).order_by(LogEntry.number)).all()


def change(service, job, **values):
    with service.database.writing() as session:
        found = session.scalars(select(Job).where(Job.id == job)).one()
        for name, value in values.items():
            setattr(found, name, value)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


def looks(queue, clock, seconds, steps=12):
    """What a worker claims that looks `steps` times in so many seconds."""
    for _ in range(steps):
        clock.time += seconds / steps
        claim = queue.claim()
        if claim is not None:
            return claim
    return None


def test_a_job_is_taken_with_its_attempt_and_a_first_event(any_service):
    job = put(any_service)
    claim = Queue(any_service.database, "a").claim()
    assert (claim.job, claim.org, claim.kind, claim.attempt, claim.worker) == (job, "org-one", "fine_tuning", 1, "a")
    found = row(any_service, job)
    assert (found.status, found.worker, found.attempt) == ("running", "a", 1)
    assert found.started_at is not None
    assert [one.message for one in events(any_service, job)] == ["Fine-tuning job started."]
    assert actions(any_service)[-1] == "job.started"
    assert Queue(any_service.database, "b").claim() is None


def test_jobs_that_are_not_queued_are_not_taken(any_service):
    for status in ("validating_files", "paused", "succeeded", "failed", "cancelled"):
        put(any_service, status=status)
    assert Queue(any_service.database, "a").claim() is None


def test_threads_take_each_job_once(any_service):
    jobs = {put(any_service, org) for org in ("one", "two") for _ in range(25)}
    taken, wrong = [], []

    def work(number):
        mine = Queue(any_service.database, f"worker-{number}")
        try:
            while (claim := mine.claim()) is not None:
                taken.append(claim.job)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert Counter(taken) == Counter(jobs)


def test_organisations_take_turns_whatever_one_has_waiting(any_service):
    for _ in range(20):
        put(any_service, "one")
    for _ in range(2):
        put(any_service, "two")
    mine = Queue(any_service.database, "a")
    assert [mine.claim().org for _ in range(6)] == ["org-one", "org-two"] * 2 + ["org-one"] * 2


def test_a_single_worker_takes_turns_too(any_service):
    """Nothing runs whenever it claims: the second organisation's jobs would come behind all of the first one's."""
    for _ in range(6):
        put(any_service, "one")
    for _ in range(2):
        put(any_service, "two")
    mine, order = Queue(any_service.database, "a"), []
    while (claim := mine.claim()) is not None:
        order.append(claim.org)
        with any_service.database.writing() as session:
            finish(session, held(session, claim), "succeeded")
    assert order == ["org-one", "org-two"] * 2 + ["org-one"] * 4


def test_turns_go_by_what_runs_and_not_by_what_ran(any_service):
    """Who has a long job running comes behind who has none, though it has had fewer."""
    mine = Queue(any_service.database, "a")
    put(any_service, "two")
    mine.claim()
    put(any_service, "two")
    for _ in range(3):
        put(any_service, "one")
        claim = mine.claim()
        assert claim.org == "org-one"
        with any_service.database.writing() as session:
            finish(session, held(session, claim), "succeeded")


def test_of_equal_organisations_the_higher_priority_and_then_the_older_job_comes_first(any_service):
    low, old, new = (put(any_service, priority=priority) for priority in (0, 5, 5))
    other = put(any_service, "two", priority=3)
    mine = Queue(any_service.database, "a")
    assert [mine.claim().job for _ in range(4)] == [old, other, new, low]


def test_a_quota_of_running_jobs_holds_for_its_organisation(any_service):
    with any_service.database.writing() as session:
        session.get(Organisation, "org-one").limits = {"running_jobs": 1}
    for _ in range(3):
        put(any_service, "one")
    put(any_service, "two")
    mine = Queue(any_service.database, "a")
    first, second = mine.claim(), mine.claim()
    assert {first.org, second.org} == {"org-one", "org-two"}
    assert mine.claim() is None
    with any_service.database.writing() as session:
        finish(session, held(session, first if first.org == "org-one" else second), "succeeded")
    assert mine.claim().org == "org-one"


def test_a_quota_holds_when_many_claim_at_once(any_service):
    with any_service.database.writing() as session:
        session.get(Organisation, "org-one").limits = {"running_jobs": 2}
    for _ in range(12):
        put(any_service)
    barrier, taken = threading.Barrier(6), []

    def work(number):
        mine = Queue(any_service.database, f"worker-{number}")
        barrier.wait()
        taken.extend(claim for claim in (mine.claim(), mine.claim()) if claim)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 2


def test_a_job_whose_beats_stand_still_is_taken_over_whatever_the_wall_clock_says(any_service, monkeypatch):
    job = put(any_service)
    dead = Queue(any_service.database, "dead")
    first = dead.claim()
    started = row(any_service, job).started_at
    clock = Clock()
    other = Queue(any_service.database, "other", seconds=30, clock=clock)
    for jump in (1e9, -1e8, 0):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1.7e9 + jump)
        assert looks(other, clock, 9) is None
    claim = looks(other, clock, 12)
    assert (claim.job, claim.attempt) == (job, 2)
    assert row(any_service, job).started_at == started
    assert "job.taken_over" in actions(any_service)
    found = events(any_service, job)
    assert [one.place for one in found] == [1, 2]
    assert [one.level for one in found] == ["info", "warn"]
    assert found[0].created_at <= found[1].created_at
    with pytest.raises(Lost):
        dead.beat(first)
    with pytest.raises(Lost):
        dead.give_back(first)
    with any_service.database.writing() as session, pytest.raises(Lost):
        held(session, first)
    assert other.beat(claim) is None


def test_a_worker_that_beats_keeps_its_job(any_service):
    put(any_service)
    mine = Queue(any_service.database, "a")
    claim = mine.claim()
    clock = Clock()
    other = Queue(any_service.database, "other", seconds=30, clock=clock)
    for _ in range(20):
        assert looks(other, clock, 10, steps=2) is None
        mine.beat(claim)


def test_nobody_is_taken_for_dead_after_a_break_in_which_nobody_could_look(any_service):
    """The database was away, or this worker slept: the others beat again as soon as they can."""
    put(any_service)
    mine = Queue(any_service.database, "a")
    claim = mine.claim()
    clock = Clock()
    other = Queue(any_service.database, "other", seconds=30, clock=clock)
    assert looks(other, clock, 5) is None
    clock.time += 10_000
    assert other.claim() is None
    mine.beat(claim)
    assert looks(other, clock, 29) is None


def test_only_one_takes_over(any_service):
    put(any_service)
    Queue(any_service.database, "dead").claim()
    clock = Clock()
    others = [Queue(any_service.database, f"worker-{number}", seconds=30, clock=clock) for number in range(4)]
    for _ in range(13):
        clock.time += 2.4
        for other in others:
            other._look()
    clock.time += 5
    barrier, taken = threading.Barrier(4), []

    def work(other):
        barrier.wait()
        taken.append(other.claim())

    threads = [threading.Thread(target=work, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in taken if one]) == 1


@pytest.mark.parametrize(("wish", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_what_the_owner_of_a_dead_workers_job_wishes_is_done_without_starting_it_again(any_service, wish, status):
    job = put(any_service)
    Queue(any_service.database, "dead").claim()
    change(any_service, job, wish=wish)
    clock = Clock()
    assert looks(Queue(any_service.database, "other", seconds=30, clock=clock), clock, 40) is None
    found = row(any_service, job)
    assert (found.status, found.worker, found.wish) == (status, None, None)


def test_a_beat_tells_the_wish(any_service):
    job = put(any_service)
    mine = Queue(any_service.database, "a")
    claim = mine.claim()
    before = row(any_service, job).beats
    assert mine.beat(claim) is None
    change(any_service, job, wish="pause")
    assert mine.beat(claim) == "pause"
    assert row(any_service, job).beats == before + 2


def test_a_job_that_is_given_back_is_taken_again(any_service):
    job = put(any_service)
    mine = Queue(any_service.database, "a")
    mine.give_back(mine.claim())
    assert row(any_service, job).status == "queued"
    again = mine.claim()
    assert (again.job, again.attempt) == (job, 2)
    mine.give_back(again, "paused")
    assert row(any_service, job).status == "paused"
    assert mine.claim() is None
    with pytest.raises(ValueError, match="no status"):
        mine.give_back(again, "succeeded")


@pytest.mark.parametrize(("wish", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_job_that_is_given_back_does_not_lose_what_its_owner_wishes(any_service, wish, status):
    job = put(any_service)
    mine = Queue(any_service.database, "a")
    claim = mine.claim()
    change(any_service, job, wish=wish)
    mine.give_back(claim)
    assert row(any_service, job).status == status


def test_an_end_is_an_end(any_service):
    job = put(any_service)
    mine = Queue(any_service.database, "a")
    claim = mine.claim()
    error = {"code": "safety_gate", "message": "It answers harmful prompts."}
    with any_service.database.writing() as session:
        finish(session, held(session, claim), "failed", error)
    found = row(any_service, job)
    assert (found.status, found.worker, found.error) == ("failed", None, {**error, "param": None})
    assert found.finished_at is not None
    assert [one.level for one in events(any_service, job)] == ["info", "error"]
    assert events(any_service, job)[-1].message == error["message"]
    assert actions(any_service)[-1] == "job.failed"
    with pytest.raises(Lost):
        mine.beat(claim)
    with any_service.database.writing() as session, pytest.raises(Lost):
        finish(session, session.scalars(select(Job).where(Job.id == job)).one(), "succeeded")
    other = put(any_service)
    with any_service.database.writing() as session, pytest.raises(ValueError, match="no end"):
        finish(session, session.scalars(select(Job).where(Job.id == other)).one(), "failed")


def test_events_of_many_writers_are_in_one_order(any_service, monkeypatch):
    """Also while the clock runs back."""
    job = put(any_service, status="running")
    moments = iter(range(2_000_000_000, 0, -1))
    monkeypatch.setattr(time, "time", lambda: next(moments))

    def talk(number):
        for place in range(10):
            with any_service.database.writing() as session:
                found = session.scalars(select(Job).where(Job.id == job)).one()
                say(session, found, f"{number} {place}")
                append(session, found.org_id, "test", "job.said", job)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = events(any_service, job)
    assert [one.place for one in found] == list(range(1, 41))
    assert [one.number for one in found] == sorted(one.number for one in found)
    assert [one.created_at for one in found] == sorted(one.created_at for one in found)
    for number in range(4):
        mine = [one.message for one in found if one.message.startswith(f"{number} ")]
        assert mine == [f"{number} {place}" for place in range(10)]


def test_a_poll_that_finds_nothing_locks_nothing(service):
    begun = []
    event.listen(service.database.engine, "begin", lambda connection: begun.append(connection.get_execution_options()))
    assert Queue(service.database, "a").claim() is None
    assert len(begun) == 1
    assert not any(options.get("titer_writes") for options in begun)


# -- files are checked -----------------------------------------------------------------------------------------------


ROW = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'


def file_of(service, org="one", data=ROW * 12):
    name = new_id("file")
    place = f"files/org-{org}/{name}"
    service.store.write(place, data)
    with service.database.writing() as session:
        settings = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": len(data), "digest": "", "place": place}
        session.add(File(id=name, org_id=f"org-{org}", **settings))
    return name


def test_a_job_whose_files_are_right_is_queued(any_service):
    job = put(any_service, status="validating_files", file_id=file_of(any_service))
    mine = Queue(any_service.database, "a")
    assert mine.claim() is None
    assert mine.validate(any_service.store) == 1
    found = row(any_service, job)
    assert (found.status, found.rows) == ("queued", 12)
    assert [one.message for one in events(any_service, job)] == ["Files validated, moving job to queued state."]
    assert mine.validate(any_service.store) == 0
    assert mine.claim().job == job


def test_a_job_with_wrong_rows_has_failed_with_all_that_is_wrong(any_service):
    data = ROW + b'{"messages": 3}\n' + ROW * 8 + b"{\n" * 120
    job = put(any_service, status="validating_files", file_id=file_of(any_service, data=data))
    Queue(any_service.database, "a").validate(any_service.store)
    found = row(any_service, job)
    assert (found.status, found.error["code"], found.error["param"]) == (
        "failed",
        "invalid_training_file",
        "training_file",
    )
    first, *lines, last = found.error["message"].splitlines()
    assert first == "The training file cannot be used. Its errors:"
    assert lines[0].startswith("line 2, column 14 (messages): ")
    assert [line.split(",")[0] for line in lines[1:]] == [f"line {number}" for number in range(11, 110)]
    assert last == "and 21 more."


def test_a_line_without_an_end_is_an_error_that_is_not_held(any_service):
    job = put(any_service, status="validating_files", file_id=file_of(any_service, data=b" " * (3 << 20)))
    Queue(any_service.database, "a").validate(any_service.store)
    assert row(any_service, job).error["code"] == "invalid_training_file"


def test_more_rows_than_the_policy_of_the_job_allows_are_an_error(any_service):
    job = put(any_service, status="validating_files", file_id=file_of(any_service))
    rules = row(any_service, job).policy
    change(any_service, job, policy={**rules, "limits": {**rules["limits"], "rows": 11}})
    Queue(any_service.database, "a").validate(any_service.store)
    assert "more than 11 lines" in row(any_service, job).error["message"]


def test_a_job_with_too_few_rows_or_without_its_file_has_failed(any_service):
    few = put(any_service, status="validating_files", file_id=file_of(any_service, data=ROW * 9))
    gone = put(any_service, status="validating_files", file_id="file-gone")
    right = file_of(any_service)
    other = put(any_service, status="validating_files", file_id=right, validation_file_id="file-gone")
    foreign = put(any_service, "two", status="validating_files", file_id=right)
    assert Queue(any_service.database, "a").validate(any_service.store) == 4
    assert "at least 10" in row(any_service, few).error["message"]
    assert row(any_service, gone).error["code"] == "invalid_training_file"
    assert row(any_service, other).error["code"] == "invalid_validation_file"
    assert "not there" in row(any_service, foreign).error["message"]


def test_files_of_each_organisation_are_checked_in_turns(any_service):
    jobs = [
        put(any_service, org, status="validating_files", file_id=file_of(any_service, org))
        for org in ("one",) * 3 + ("two",)
    ]
    Queue(any_service.database, "a").validate(any_service.store, most=2)
    assert [row(any_service, job).status for job in jobs] == [
        "queued",
        "validating_files",
        "validating_files",
        "queued",
    ]


def test_more_rows_than_the_quota_of_a_day_are_not_trained_on(any_service):
    with any_service.database.writing() as session:
        session.get(Organisation, "org-one").limits = {"rows_a_day": 20}
    jobs = [put(any_service, status="validating_files", file_id=file_of(any_service)) for _ in range(2)]
    Queue(any_service.database, "a").validate(any_service.store)
    first, second = (row(any_service, job) for job in jobs)
    assert (first.status, second.status, second.error["code"]) == ("queued", "failed", "insufficient_quota")


def test_rows_of_a_validation_file_count_in_the_quota_too(any_service):
    with any_service.database.writing() as session:
        session.get(Organisation, "org-one").limits = {"rows_a_day": 40}
    held_out = {"status": "validating_files", "validation_file_id": file_of(any_service)}
    jobs = [put(any_service, file_id=file_of(any_service), **held_out) for _ in range(2)]
    Queue(any_service.database, "a").validate(any_service.store)
    first, second = (row(any_service, job) for job in jobs)
    assert (first.status, first.rows, first.validation_rows) == ("queued", 12, 12)
    assert (second.status, second.error["param"]) == ("failed", "validation_file")
    assert "24 are used, and this would be 24 more" in second.error["message"]
    with any_service.database.reading() as session:
        assert quotas.used(session, "org-one").rows == 24


def test_a_job_that_was_cancelled_while_its_files_were_checked_stays_cancelled(any_service, monkeypatch):
    job = put(any_service, status="validating_files", file_id=file_of(any_service))

    def checked(*args):
        change(any_service, job, status="cancelled")
        return {"training_file": 12}, None

    monkeypatch.setattr(queue, "check_files", checked)
    assert Queue(any_service.database, "a").validate(any_service.store) == 0
    assert row(any_service, job).status == "cancelled"


def test_broken_limits_are_refused_where_they_are_written(service):
    with service.database.writing() as session, pytest.raises(TiterError, match="running_jobs"):
        session.get(Organisation, "org-one").limits = {"running_jobs": "many"}


def test_an_organisation_with_broken_limits_stops_nobody_else(any_service, capsys):
    """As they may stand in the database by somebody's hand."""
    with any_service.database.writing() as session:
        broken = update(Organisation).where(Organisation.id == "org-one")
        session.execute(broken.values(limits={"running_jobs": "many"}))
    first = put(any_service, "one", priority=9)
    coming = put(any_service, "one", status="validating_files")
    mine = put(any_service, "two")
    found = Queue(any_service.database, "worker")
    assert found.claim().job == mine
    assert found.claim() is None
    assert found.validate(any_service.store) == 0
    assert [row(any_service, job).status for job in (first, coming)] == ["queued", "validating_files"]
    assert capsys.readouterr().err.count("org-one wait, whose limits are broken") == 1
