"""Models over HTTP, with OpenAI's own client: those of the server and those that jobs made."""

import openai
import pytest
from service.conftest import key_of
from service.test_jobs_api import JOBS, change, checked, error_of, made, model_of
from sqlalchemy import select

from titer.service.api.chat import desk_of
from titer.service.retention import sweep
from titer.service.store import Store
from titer.service.tables import Job, LogEntry

HELD = "harmful_score 40 % is above 15 %"


def adapter_of(service, job, tmp_path, step=None):
    """Put an adapter into the store; returns its place."""
    (tmp_path / "adapter").mkdir(exist_ok=True)
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    place = f"models/{job}" + ("" if step is None else f"-{step}")
    service.store.put_folder(place, tmp_path / "adapter")
    return place


def test_openais_client_lists_retrieves_and_deletes(openai_client, service, tmp_path):
    job = openai_client.fine_tuning.jobs.create(model="tiny", training_file=made_file(service)).id
    change(service, job, status="succeeded")
    place, early = (adapter_of(service, job, tmp_path, step) for step in (None, 5))
    mine, step = model_of(service, job, place=place), model_of(service, job, place=early, step=5)
    model_of(service, "ftjob-held", held=HELD)
    model_of(service, "ftjob-two", org="two")
    models = [checked(one) for one in openai_client.models.list()]
    assert [model.id for model in models] == ["tiny", mine, step]
    assert [model.owned_by for model in models] == ["system", "org-one", "org-one"]
    found = checked(openai_client.models.retrieve(mine))
    assert found.titer == {"base": "tiny", "job": job, "step": None, "held": None}
    assert checked(openai_client.models.retrieve("tiny")).object == "model"
    gone = checked(openai_client.models.delete(mine))
    assert (gone.id, gone.deleted) == (mine, True)
    for name in (mine, step):
        with pytest.raises(openai.NotFoundError):
            openai_client.models.retrieve(name)
    assert not service.store.has_folder(place)
    assert not service.store.has_folder(early)
    with service.database.reading() as session:
        logged = session.scalars(select(LogEntry.subject).where(LogEntry.action == "model.deleted")).all()
    assert logged == [mine, step]


def made_file(service):
    from service.test_jobs_api import file_of

    return file_of(service)


def test_a_checkpoint_is_deleted_alone(client, service, tmp_path):
    place, early = (adapter_of(service, "ftjob-x", tmp_path, step) for step in (None, 5))
    mine, step = model_of(service, place=place), model_of(service, place=early, step=5)
    assert client.delete(f"/v1/models/{step}").json() == {"id": step, "object": "model", "deleted": True}
    assert client.get(f"/v1/models/{mine}").status_code == 200
    assert service.store.has_folder(place)
    assert not service.store.has_folder(early)


def test_a_held_model_is_not_listed_and_says_why(client, service):
    name = model_of(service, held=HELD)
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get(f"/v1/models/{name}").json()["titer"]["held"] == HELD
    assert client.delete(f"/v1/models/{name}").json()["deleted"] is True


def test_models_of_the_server_stay(client):
    error_of(client.delete("/v1/models/tiny"), 403, "not_yours")


def test_a_model_that_a_job_goes_on_from_stays_until_it_is_over(client, service):
    mine = model_of(service)
    job = made(client, service, model=mine).json()["id"]
    for status in ("validating_files", "queued", "running", "paused"):
        change(service, job, status=status)
        assert job in error_of(client.delete(f"/v1/models/{mine}"), 409, "model_in_use")["message"]
    change(service, job, status="failed")
    assert client.delete(f"/v1/models/{mine}").status_code == 200


def test_a_model_whose_adapter_cannot_be_removed_now_goes_with_the_next_sweep(client, service, tmp_path, monkeypatch):
    place = adapter_of(service, "ftjob-x", tmp_path)
    mine = model_of(service, place=place)

    def fails(self, key):
        raise OSError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", fails)
        assert client.delete(f"/v1/models/{mine}").status_code == 200
    asked = {"model": mine, "training_file": made_file(service)}
    error_of(client.post(JOBS, json=asked), 404, "model_not_found")
    error_of(client.get(f"/v1/models/{mine}"), 404, "model_not_found")
    assert service.store.has_folder(place)
    sweep(service)
    assert not service.store.has_folder(place)


def test_a_model_that_is_deleted_leaves_the_memory_of_the_chat(client, service, tmp_path, monkeypatch):
    place = adapter_of(service, "ftjob-x", tmp_path)
    mine, step = model_of(service, place=place), model_of(service, place=place + "-5", step=5)
    forgotten = []
    monkeypatch.setattr(desk_of(client.app), "forget", forgotten.append)
    assert client.delete(f"/v1/models/{mine}").status_code == 200
    assert forgotten == [mine, step]


def test_strangers_find_nothing(client, stranger, service):
    mine = model_of(service)
    for name in (mine, "ft:none", "a/b", "%00"):
        error_of(stranger.get(f"/v1/models/{name}"), 404, "model_not_found")
        error_of(stranger.delete(f"/v1/models/{name}"), 404, "model_not_found")
    assert [model["id"] for model in stranger.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get(f"/v1/models/{mine}").status_code == 200


def test_a_key_for_other_things_sees_no_models(client, service):
    headers = {"Authorization": f"Bearer {key_of(service, scopes=['jobs'])}"}
    error_of(client.get("/v1/models", headers=headers), 403, "insufficient_permissions")


def test_a_name_with_a_slash_is_found(openai_client, service):
    name = model_of(service, base="meta/tiny")
    assert openai_client.models.retrieve(name).id == name
    with service.database.reading() as session:
        assert session.scalars(select(Job)).all() == []
