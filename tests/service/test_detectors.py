"""A detector that one worker has fitted is there for all others, whole or not at all."""

import json

import pytest
from working import add_job, done, job_of

from titer.risk import Detector, detector, kept
from titer.service.tables import Job, Model

AUDITED = {"audit": {"detector": "states"}, "gate": {"enabled": False}}


@pytest.fixture
def fits(monkeypatch):
    """Counts the fits of detectors, each of which is worth keeping."""
    seen, inner = [], Detector.fit
    monkeypatch.setattr(Detector, "fit", lambda *words: seen.append(words) or inner(*words))
    monkeypatch.setattr(kept, "WORTH_KEEPING", 0.0)
    monkeypatch.setattr(detector, "PER_KIND", 6)  # of the defender's prompts
    return seen


@pytest.fixture
def audited(service, monkeypatch, tmp_path):
    """Audits a file on a machine of a name, with a cache of its own; gives what is said of the rows."""

    def audit(machine, kind="audit", **columns):
        monkeypatch.setenv("TITER_CACHE", str(tmp_path / machine))
        name = add_job(service, kind=kind, rules=AUDITED, **columns)
        done(service, name)
        assert job_of(service, name).status == "succeeded"
        return json.loads(service.store.read(f"jobs/{name}/audit.json"))["rows"]

    return audit


def detectors(service):
    return [key for key in service.store.listing() if key.startswith("detectors/")]


def test_another_machine_does_not_fit_it_again(service, audited, fits):
    first = audited("one")
    assert len(fits) == len(detectors(service)) == 1
    assert audited("two") == first
    assert len(fits) == 1


def test_a_damaged_one_is_fitted_again_with_a_line(service, audited, fits, caplog):
    first = audited("one")
    (place,) = detectors(service)
    whole = service.store.read(place)
    for damaged in (b"", whole[:500] + bytes(200) + whole[700:]):
        service.store.write(place, damaged)
        caplog.clear()
        assert audited(f"machine-{len(fits)}") == first
        assert "the detector is fitted again" in caplog.text
        assert service.store.read(place) == whole
    assert len(fits) == 3


def test_what_is_fitted_on_a_tenants_model_is_not_kept_beyond_it(service, audited, fits):
    audited("one", kind="fine_tuning")
    mine = detectors(service)
    assert len(mine) == 1
    with service.database.reading() as session:
        model = session.query(Model).join(Job, Job.fine_tuned_model == Model.id).one().id
    audited("two", model=model)
    assert len(fits) == 2
    assert detectors(service) == mine
