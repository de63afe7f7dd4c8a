"""Keys: made, used, limited, rotated and taken back; what is wrong is counted, and what is right is stamped."""

import pytest
from conftest import key_of
from fastapi.testclient import TestClient
from sqlalchemy import select

from titer.errors import TiterError
from titer.service import keys, limits, tables
from titer.service.app import create_app
from titer.service.limits import Buckets, Limits, Remembered
from titer.service.refusals import Refused
from titer.service.tables import Key, LogEntry, Organisation
from titer.service.tenants import Tenant


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limited(service, clock):
    return Limits(service, clock)


@pytest.fixture
def later(monkeypatch):
    """Lets the time of day be another one."""

    def jump(seconds):
        at = tables.now() + seconds
        for module in (keys, tables):
            monkeypatch.setattr(module, "now", lambda: at)

    return jump


def refused(limited, secret, address="192.0.2.1"):
    with pytest.raises(Refused) as found:
        limited.admit(address, secret)
    return found.value


def tenant_of(session, org="one"):
    return Tenant(session, f"org-{org}", "test")


# -- buckets ----------------------------------------------------------------------------------------------------------


def test_a_bucket_holds_a_minute_and_fills_evenly(clock):
    buckets = Buckets(clock)
    found = [buckets.take("a", 60) for _ in range(61)]
    assert [taken.allowed for taken in found] == [True] * 60 + [False]
    assert found[0].remaining == 59
    assert found[-1].wait == pytest.approx(1)
    assert found[-1].full == pytest.approx(60)
    assert buckets.take("b", 60).allowed  # another one's is its own
    clock.now += 1.5
    assert buckets.take("a", 60).allowed
    assert not buckets.take("a", 60).allowed
    clock.now += 3600  # it does not overflow
    assert sum(buckets.take("a", 60).allowed for _ in range(100)) == 60


def test_a_look_at_a_bucket_takes_nothing(clock):
    buckets = Buckets(clock)
    assert all(buckets.take("a", 1, count=0).allowed for _ in range(5))
    assert buckets.take("a", 1).allowed
    assert not buckets.take("a", 1, count=0).allowed


def test_memory_is_bounded():
    found = Remembered(3)
    for place in range(10):
        found[place] = place
    found[8] = 8  # seen again, so that it stays
    found[10] = found[11] = 0
    assert set(found) == {8, 10, 11}


# -- admission --------------------------------------------------------------------------------------------------------


def test_a_key_may_be_used_as_often_as_its_organisation_may(service, limited, clock):
    secret = key_of(service)
    with service.database.writing() as session:
        session.get(Organisation, "org-one").limits = {"requests_a_minute": 2}
    assert limited.admit(None, secret)[1]["x-ratelimit-remaining-requests"] == "1"
    limited.admit(None, secret)
    error = refused(limited, secret, None)
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "rate_limit_exceeded", "30")
    assert limited.admit(None, key_of(service))[1]["x-ratelimit-remaining-requests"] == "1"  # another key
    clock.now += 30
    limited.admit(None, secret)


def test_a_limit_of_null_is_none(service, limited):
    with service.database.writing() as session:
        session.get(Organisation, "org-one").limits = {"requests_a_minute": None}
    assert limited.admit(None, key_of(service))[1] == {}


def test_an_address_that_guesses_is_stopped(service, limited, clock):
    good = key_of(service)
    for place in range(limits.GUESSES):
        assert refused(limited, f"sk-titer-{place}").status == 401
    error = refused(limited, "sk-titer-again")
    assert (error.status, error.code) == (429, "too_many_wrong_keys")
    assert refused(limited, good).status == 429  # a right one is a guess too, or guessing would go on
    limited.admit("192.0.2.2", good)  # elsewhere nobody minds
    clock.now += 60
    limited.admit("192.0.2.1", good)


def test_an_old_key_that_is_shown_again_and_again_locks_nobody_out(service, limited):
    for _ in range(3 * limits.GUESSES):
        assert refused(limited, "sk-titer-old").status == 401
    limited.admit("192.0.2.1", key_of(service))


def test_a_key_that_was_good_here_is_no_guess(service, limited):
    good = key_of(service)
    limited.admit("192.0.2.1", good)
    for place in range(limits.GUESSES):
        refused(limited, f"sk-titer-{place}")
    limited.admit("192.0.2.1", good)


def test_networks():
    assert limits.network("2001:db8::1") == limits.network("2001:db8::2") == "2001:db8::/64"
    assert limits.network("::ffff:192.0.2.1") == "192.0.2.1"
    assert limits.network(None) == "unknown"
    assert limits.network("testclient") == "testclient"


def test_the_last_use_is_stamped_once_a_minute(service, limited, clock, later, monkeypatch):
    secret, stamps = key_of(service), []
    stamp = keys.stamp
    monkeypatch.setattr(keys, "stamp", lambda *words: stamps.append(words) or stamp(*words))

    def used():
        with service.database.reading() as session:
            return session.scalar(select(Key.used_at))

    assert used() is None
    limited.admit(None, secret)
    first = used()
    assert first is not None
    limited.admit(None, secret)
    assert len(stamps) == 1
    clock.now += 61
    later(61)
    limited.admit(None, secret)
    assert len(stamps) == 2
    assert used() >= first + 60


def test_a_busy_database_only_delays_the_stamp(service, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def busy():
        raise OperationalError("UPDATE", {}, Exception("database is locked"))

    monkeypatch.setattr(service.database, "_sessions", type("Busy", (), {"begin": staticmethod(busy)}))
    assert not keys.stamp(service.database, "key_1")


def test_over_http(service):
    with TestClient(create_app(service)) as client:

        def ask(key=None):
            headers = {} if key is None else {"Authorization": key}
            return client.get("/titer/v1/keys", headers=headers)

        good = ask(f"Bearer {key_of(service)}")
        assert good.status_code == 200
        assert good.headers["x-ratelimit-limit-requests"] == "1200"
        assert good.headers["x-ratelimit-remaining-requests"] == "1199"
        for missing in (None, "Basic abc", "Bearer", "Bearer  "):
            assert ask(missing).json()["error"]["code"] == "missing_api_key"
        wrong = ask("Bearer sk-titer-wrong")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
        assert wrong.headers["www-authenticate"] == "Bearer"
        limited = ask(f"Bearer {key_of(service, scopes=['files'])}")
        assert (limited.status_code, limited.json()["error"]["code"]) == (403, "insufficient_permissions")


# -- keys themselves --------------------------------------------------------------------------------------------------


def test_nothing_of_a_key_is_kept_but_its_hash(service, tmp_path):
    secret = key_of(service)
    service.close()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "data").glob("titer.db*"))
    assert keys.digest(secret).encode() in kept
    assert secret.encode() not in kept
    assert secret[9:40].encode() not in kept


def test_unknown_revoked_and_expired_keys_get_the_same_answer(service, limited, later):
    expired, gone = key_of(service, expires_at=tables.now() + 10), key_of(service)
    with service.database.writing() as session:
        keys.revoke(tenant_of(session), keys.authenticate(session, gone).id)
    limited.admit(None, expired)
    later(10)
    answers = [refused(limited, secret) for secret in (expired, gone, "sk-titer-none")]
    assert len({(one.status, one.message, one.code) for one in answers}) == 1


def test_a_key_is_taken_back_once_and_only_by_its_organisation(any_service):
    secret = key_of(any_service)
    with any_service.database.writing() as session:
        name = keys.authenticate(session, secret).id
        with pytest.raises(Refused) as found:
            keys.revoke(tenant_of(session, "two"), name)
        assert found.value.status == 404
        first = keys.revoke(tenant_of(session), name).revoked_at
        assert keys.revoke(tenant_of(session), name).revoked_at == first
        assert session.scalars(select(LogEntry.action)).all().count("key.revoked") == 1


def test_rotation_leaves_time_to_change(service, later):
    old = key_of(service, name="ci", scopes=["files"])
    with service.database.writing() as session:
        name = keys.authenticate(session, old).id
        new, key = keys.rotate(tenant_of(session), name, grace=3600)
        assert (key.name, key.scopes, key.expires_at) == ("ci", ["files"], None)
    with service.database.reading() as session:
        assert keys.authenticate(session, old).id == name
        assert keys.authenticate(session, new).id == key.id
    later(3601)
    with service.database.writing() as session:
        with pytest.raises(Refused):
            keys.authenticate(session, old)
        assert keys.authenticate(session, new)
        with pytest.raises(Refused, match="has expired"):
            keys.rotate(tenant_of(session), name)


def test_the_heir_of_a_key_that_ends_has_as_long_a_time(service):
    secret = key_of(service, expires_at=tables.now() + 1000)
    with service.database.writing() as session:
        old = keys.authenticate(session, secret)
        _, heir = keys.rotate(tenant_of(session), old.id, grace=10**6)
        assert heir.expires_at == pytest.approx(tables.now() + 1000, abs=2)
        assert old.expires_at == pytest.approx(tables.now() + 1000, abs=2)  # never later than it was to be


def test_the_first_organisation_of_all_runs_the_server(tmp_path):
    from titer.service.context import open_service

    service = open_service(tmp_path)
    with service.database.writing() as session:
        assert keys.organisation(session, "first", "test").operator
        assert keys.organisation(session, "first", "test").operator
        assert not keys.organisation(session, "second", "test").operator
        assert keys.organisation(session, "second", "test", operator=True).operator
        for name in ("", "a/b", "../x", "a:b", "-a", "a" * 65, "é"):
            with pytest.raises(TiterError, match="no name"):
                keys.organisation(session, name, "test")
    service.close()
