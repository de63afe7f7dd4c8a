"""The audit log: whatever is changed in it is found, on both databases, and while many write."""

import threading

import pytest
from sqlalchemy import select

from titer.errors import TiterError
from titer.service import chain
from titer.service.chain import Broken, Head
from titer.service.tables import (
    LogEntry,
    LogHead,
    now,
)


@pytest.fixture
def logged(any_service):
    """A service whose log has seven lines, the first of which the fixture's policy wrote."""
    with any_service.database.writing() as session:
        for number in range(6):
            chain.append(session, "org-one", "key_1", "job.created", f"ftjob-{number}", {"rows": (1, 2), 3: "é\u2028"})
    return any_service


def broken(service, change, known=None):
    """Change the log behind its back; returns what is found."""
    with service.database.writing() as session:
        change(session)
    with service.database.reading() as session, pytest.raises(Broken) as found:
        chain.verify(session, known)
    return found.value.number, found.value.reason


def line(session, number):
    return session.get(LogEntry, number)


def head_of(service):
    with service.database.reading() as session:
        return chain.verify(session)


def test_a_log_that_nobody_changed_is_intact(logged):
    head = head_of(logged)
    assert head.number == 7
    assert Head.parse(str(head)) == head
    with logged.database.writing() as session:
        chain.append(session, None, "server", "policy.replaced", "policy")
    with logged.database.reading() as session:
        assert chain.verify(session, head).number == 8


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("at", 1), ("org_id", None), ("org_id", "org-two"), ("actor", "key_2"), ("action", "job.deleted"),
        ("subject", "x"), ("details", {"rows": [1, 3], "3": "é\u2028"}), ("digest", "0" * 64),
    ],
)  # fmt: skip
def test_a_changed_line_is_found(logged, column, value):
    assert broken(logged, lambda session: setattr(line(session, 4), column, value))[0] == 4


def test_a_removed_line_is_found(logged):
    assert broken(logged, lambda session: session.delete(line(session, 1)))[0] == 1


def test_a_removed_line_whose_place_another_takes_is_found(logged):
    def change(session):
        session.delete(line(session, 4))
        session.flush()
        for number in range(5, 8):
            line(session, number).number -= 1
            session.flush()

    assert broken(logged, change)[0] == 4


def test_lines_in_another_order_are_found(logged):
    def change(session):
        one, other = line(session, 3), line(session, 5)
        for moved, number in ((one, 100), (other, 3), (one, 5)):
            moved.number = number
            session.flush()

    assert broken(logged, change)[0] == 3


def test_an_added_line_is_found(logged):
    def change(session):
        entry = LogEntry(number=8, actor="a", action="b", subject="c", details={}, before=line(session, 7).digest)
        entry.digest = "0" * 64
        entry.at = now()
        entry.digest = chain.digest(entry)
        session.add(entry)

    assert broken(logged, change) == (8, "it was added behind the end of the log")


def test_an_end_that_is_cut_off_is_found(logged):
    def change(session):
        for number in (6, 7):
            session.delete(line(session, number))

    number, reason = broken(logged, change)
    assert number == 6
    assert "up to line 7" in reason


def test_a_log_whose_end_is_forgotten_is_found(logged):
    assert broken(logged, lambda session: session.delete(session.scalar(select(LogHead))))[0] == 1


def test_what_is_written_anew_as_a_whole_is_found_by_an_end_that_was_kept(logged):
    known = head_of(logged)

    def change(session):
        session.query(LogEntry).delete()
        session.query(LogHead).delete()
        session.expire_all()
        for number in range(9):
            chain.append(session, "org-one", "key_1", "job.created", f"other-{number}")

    number, reason = broken(logged, change, known)
    assert number == 7
    assert "was kept" in reason
    head_of(logged)  # by itself it seems intact

    def shorter(session):
        session.query(LogEntry).delete()
        session.query(LogHead).delete()

    assert broken(logged, shorter, known)[0] == 1


def test_what_is_no_end_of_a_log_is_refused():
    for text in ("", "7", "7:abc", f"x:{'0' * 64}", f"-1:{'0' * 64}"):
        with pytest.raises(TiterError, match="no end"):
            Head.parse(text)


def test_what_no_json_holds_is_not_logged(service):
    with service.database.writing() as session, pytest.raises(ValueError, match="JSON"):
        chain.append(session, None, "a", "b", "c", {"x": float("nan")})


def test_many_write_the_log_at_once(any_service):
    """Also the very first line, for which there is no end yet that could be locked."""
    with any_service.database.writing() as session:
        session.query(LogEntry).delete()
        session.query(LogHead).delete()
    errors = []
    barrier = threading.Barrier(8)

    def write(name):
        barrier.wait()
        try:
            for number in range(10):
                with any_service.database.writing() as session:
                    chain.append(session, "org-one", name, "test", str(number))
        except Exception as error:
            errors.append(error)

    def watch():
        barrier.wait()
        for _ in range(10):
            with any_service.database.reading() as session:
                try:
                    chain.verify(session)
                except Exception as error:
                    errors.append(error)

    threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(7)]
    threads.append(threading.Thread(target=watch))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert head_of(any_service).number == 70
