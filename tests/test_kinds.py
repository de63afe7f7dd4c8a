"""A kind of job whose code changed has another version, or somebody has looked and said that no figure changes."""

import ast
import json

import kinds
import pytest

from titer import plugins

NOW = kinds.kinds()
RECORDED = json.loads(kinds.RECORD.read_text(encoding="utf-8"))


def test_every_kind_is_found_at_its_path():
    assert NOW
    for path in NOW:
        assert plugins.load(path).path == path


@pytest.mark.parametrize("path", NOW)
def test_the_code_of_a_kind_is_what_was_recorded_with_its_version(path):
    assert path in RECORDED, "a new kind: `make kinds` records it"
    now, before = NOW[path], RECORDED[path]
    changed = sorted(
        name for name in {*now["code"], *before["code"]} if now["code"].get(name) != before["code"].get(name)
    )
    assert not changed or now["version"] != before["version"], (
        f"{', '.join(changed)} changed, on which `{path}` rests: raise its version if a figure changes, then `make kinds`"
    )
    assert now == before, "`make kinds` records the new version"


def test_comments_and_docstrings_are_no_code_and_a_formula_is():
    def code(text):
        return ast.dump(kinds.without_docstrings(ast.parse(text)))

    plain = "def f(x):\n    return 2 * x\n"
    assert code(plain) == code('"""Doubles."""\ndef f(x):\n    """Double."""\n    return 2 * x  # twice\n')
    assert code(plain) != code(plain.replace("2", "3"))


def test_a_training_rests_on_methods_losses_and_gradients_but_not_on_what_tells_the_user():
    code = NOW["titer.jobs.trainings:ALIGN"]["code"]
    for module in ("methods.align.booster", "packing.losses", "train.gradients", "models"):
        assert f"titer.{module}" in code
    assert not {name for name in code if name.startswith(("titer.cli", "titer.report", "titer.progress"))}
