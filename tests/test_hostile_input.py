"""What cannot be meant is refused before a model is loaded: with where it stands, what it is, and what may stand there."""

import pytest
import yaml

from titer.errors import TiterError


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test when a model is loaded."""
    from titer import models

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    for name in ("load_model", "load_tokenizer", "locate"):
        monkeypatch.setattr(models, name, load)
    monkeypatch.setattr("titer.stages.load_model", load)
    monkeypatch.setattr("titer.stages.load_tokenizer", load)


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


# --- names that lead elsewhere ---------------------------------------------------------------------------------------

PLACES = ["../../x", "a/b", "/tmp/x", "..", ".", "", " ", "a\\b", "x\n", "x\0", "x\x1b[2J", "x\u202e", "x" * 300]


@pytest.mark.parametrize("name", PLACES)
def test_a_name_leads_out_of_no_folder(titer, tmp_path, monkeypatch, no_model, name):
    from titer.assay import assay

    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    for words in (
        ["assay", "m", "--against", "n", "--profile", "smoke", "--name", name],
        ["assay", "m", "--against", "n", "--profile", "smoke", "--name", name, "--dry-run"],
    ):
        code, _, error = titer(*words)
        assert code == 2, error
        assert "`--name` must be the name of one folder" in error
    with pytest.raises(TiterError, match="`--name` must be the name of one folder"):
        assay("m", "n", "smoke", name=name)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", PLACES)
def test_the_name_of_an_experiment_leads_out_of_no_folder(tmp_path, name):
    from titer.experiment import read_experiment

    file = write(tmp_path / "e.yaml", name=name, arms={"a": {"align": "sft", "finetune": "sft"}})
    with pytest.raises(TiterError, match=r"e\.yaml: `name` must be the name of one folder"):
        read_experiment(file)


def test_names_in_any_language_are_names(tmp_path):
    from titer.assay.card import assay_folder

    for name in ("booster-2", "Größe 1", "防御", "a.b", "x..y", "می‌خواهم"):
        assert assay_folder(tmp_path, name, "m").parent == tmp_path
    assert assay_folder(tmp_path, None, "../../x/adapter") == tmp_path / "x"
    assert assay_folder(tmp_path, None, "..") == tmp_path / "model"
