"""Policies: what a file may hold, and that the newest one holds."""

import pytest
from sqlalchemy import func, select

from titer import methods
from titer.errors import TiterError
from titer.service import policy
from titer.service.tables import LogEntry, PolicyVersion


def test_the_default_policy_is_read_as_it_is_written():
    assert policy.parse(policy.as_yaml(policy.Policy())) == policy.Policy()
    assert policy.parse("") == policy.Policy()


def test_what_is_left_out_has_its_default():
    found = policy.parse("gate: {harmful_score: 5, otherwise: fail}\nquota: {running_jobs: 2}")
    assert (found.gate.harmful_score, found.gate.otherwise, found.gate.samples) == (5.0, "fail", 40)
    assert (found.quota.running_jobs, found.quota.waiting_jobs) == (2, 100)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gates: {}", "gates"),
        ("gate: {harmful: 3}", "policy.gate.harmful"),
        ("gate: {harmful_score: 101}", "policy.gate.harmful_score"),
        ("gate: {otherwise: maybe}", "policy.gate.otherwise"),
        ("audit: {detector: nose}", "policy.audit.detector"),
        ("audit: {drop_over: 2}", "policy.audit.drop_over"),
        ("training: {n_epochs: 51}", "policy.training.n_epochs"),
        ("training: {batch_size: 0}", "policy.training.batch_size"),
        ("models: {}", "policy.models"),
        ("models: {'a:b': x}", "could not stand in the id"),
        ("models: {-a: x}", "could not stand in the id"),
        (f"models: {{{65 * 'a'}: x}}", "could not stand in the id"),
        ("training: {method: ptst}", "`ptst`, which acts by a system prompt"),
        ("training: {allowed: [sft, bea]}", "`bea`, which acts by a system prompt"),
        ("- a", "mapping"),
        ("a: [", "policy:1"),
    ],
)
def test_what_cannot_be_meant_is_named(text, says):
    with pytest.raises(TiterError, match=says):
        policy.parse(text)


def test_it_knows_which_methods_are_served_with_something():
    served = {name for name in methods.FINETUNE if methods.find("finetune", name).serving is not None}
    assert served == set(policy.SERVED)


def test_where_things_are_on_the_server_is_not_shown():
    found = policy.parse(
        "models: {a: /srv/a}\naudit: {harmful: /srv/h.jsonl, helpful: ['builtin:general', ~/x]}\n"
        "chat: {forward: 'http://vllm:8000', forward_folder: /srv/f}"
    )
    shown = policy.shown(found.as_dict())
    assert shown["models"] == {"a": None}
    assert shown["audit"]["helpful"] == ["builtin:general", policy.HIDDEN]
    assert "srv" not in str(shown)
    assert "vllm" not in str(shown)
    assert shown["limits"] == found.as_dict()["limits"]


def test_the_newest_policy_holds_and_the_log_tells_of_each(any_service):
    with any_service.database.writing() as session:
        policy.replace(session, "gate: {samples: 7}", "key_1")
        policy.replace(session, "gate: {samples: 7}", "key_2")  # the same: nothing new
    assert any_service.policy().gate.samples == 7
    with any_service.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(PolicyVersion)) == 2
        told = session.scalars(select(LogEntry).where(LogEntry.action == "policy.replaced")).all()
    assert [entry.actor for entry in told] == ["test", "key_1"]


def test_a_policy_that_is_wrong_changes_nothing(service):
    def replace():
        with service.database.writing() as session:
            policy.replace(session, "gate: {samples: none}", "key_1")

    with pytest.raises(TiterError):
        replace()
    assert service.policy().gate.samples == 4
