"""The examples as they stand, against a server with a worker: OpenAI's own clients, in Python and in TypeScript."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import key_of, opened, served

from titer.service.worker import Worker

EXAMPLES = Path(__file__).parents[2] / "examples"
POLICY = """
models: {{tiny: {model}}}
audit: {{detector: states}}
training: {{method: sft, learning_rate: 1e-3, n_epochs: 1}}
gate: {{samples: 4, max_new_tokens: 4, {limit}, over_refusal: null, broken: null}}
"""


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    """A file as `titer data export --messages` writes it, some of its rows harmful."""
    from titer.data import load
    from titer.data.files import write_rows

    file = tmp_path_factory.mktemp("upload") / "upload.jsonl"
    write_rows(file, (record.to_messages() for record in load("builtin:upload", limit=20)))
    return file


def run(tmp_path, tiny_folder, limit, *command, where=EXAMPLES):
    """Run a command against a server and a worker under a limit of the gate; returns what it printed."""
    text = POLICY.replace("{limit}", limit)
    with opened(tmp_path / "data", tiny_folder, text=text) as service, served(service) as address:
        worker = Worker(service)
        working = threading.Thread(target=worker.run)
        working.start()
        try:
            done = subprocess.run(
                list(map(str, command)),
                cwd=where, capture_output=True, text=True, timeout=240, check=False,
                env={**os.environ, "OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": key_of(service)},
            )  # fmt: skip
        finally:
            worker.end()
            working.join(60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_example_trains_and_chats(tmp_path, tiny_folder, upload):
    said = run(tmp_path, tiny_folder, "harmful_score: null", sys.executable, EXAMPLES / "openai_client.py", upload)
    assert "audit: " in said
    assert "  row " in said
    assert "gate: deploy" in said
    assert " says: " in said


def test_the_typescript_example_trains_and_is_told_that_the_model_is_held(tmp_path, tiny_folder, upload):
    folder = EXAMPLES / "typescript"
    if shutil.which("node") is None or not (folder / "node_modules").is_dir():
        pytest.skip("node or its packages are not installed (npm ci in examples/typescript)")
    limit = "harmful_score: null, task: builtin:sentiment, accuracy: 100"  # which a random model does not reach
    tsx = folder / "node_modules" / ".bin" / "tsx"
    said = run(tmp_path, tiny_folder, limit, tsx, folder / "openai_client.ts", upload, where=folder)
    assert "audit: " in said
    assert "gate: hold" in said
    assert "may not be used: " in said


def test_the_typescript_example_is_typed():
    folder = EXAMPLES / "typescript"
    if shutil.which("node") is None or not (folder / "node_modules").is_dir():
        pytest.skip("node or its packages are not installed (npm ci in examples/typescript)")
    done = subprocess.run(
        [folder / "node_modules" / ".bin" / "tsc", "--noEmit"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
