"""`titer serve`, `titer keys`, `titer audit-log` and `make serve` as they are run."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from told import untold

from titer.cli.serve import store_policy
from titer.errors import TiterError
from titer.service.context import open_service
from titer.service.tables import LogEntry

ROOT = Path(__file__).parents[2]
TITER = [sys.executable, "-c", "from titer.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


@contextlib.contextmanager
def serving(data, *words, **environment):
    """Run `titer serve` on a free port; gives the process and its address."""
    command = [*TITER, "serve", "--data", str(data), "--port", "0", *map(str, words)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**ENVIRONMENT, **environment}
    ) as process:
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)
            assert found, (line, process.stderr.read() if process.poll() is not None else "")
            yield process, found[1]
        finally:
            process.kill()


def ended(process, number=signal.SIGTERM):
    """Tell a server to end; returns its exit code and how long it took."""
    began = time.monotonic()
    process.send_signal(number)
    return process.wait(30), time.monotonic() - began


@pytest.fixture
def tiny_service(tmp_path, tiny_folder):
    """A folder with a policy on the tiny model, in which nothing was started yet."""
    return tmp_path / "data", ("--model", f"tiny={tiny_folder}")


def test_a_server_answers_once_it_says_so_and_ends_when_told(tiny_service, titer):
    data, model = tiny_service
    code, key, told = titer("keys", "create", "--data", data, "--org", "mine")
    assert (code, told) == (0, "")
    assert re.fullmatch(r"sk-titer-[\w-]{43}\n", key)
    with serving(data, "--no-worker", *model) as (process, address):
        headers = {"Authorization": f"Bearer {key.strip()}"}
        assert httpx.get(f"{address}/titer/v1/health").status_code == 200
        found = httpx.get(f"{address}/titer/v1/policies/current", headers=headers)
        assert list(found.json()["policy"]["models"]) == ["tiny"]
        assert "server" not in found.headers
        # A request that has come halfway keeps nothing from ending.
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as half:
            half.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1")
            code, seconds = ended(process)
        assert code == 0
        assert seconds < 15
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""


def test_a_server_ends_with_its_worker(tiny_service):
    """Whatever the worker is: here it is a verb that does not exist, or one that does."""
    data, model = tiny_service
    with serving(data, *model) as (process, address):
        assert httpx.get(f"{address}/titer/v1/health").status_code == 200
        children = Path(f"/proc/{process.pid}/task")
        found = [int(pid) for task in children.iterdir() for pid in (task / "children").read_text().split()]
        code, seconds = ended(process, signal.SIGINT)
        assert code == 0
        assert seconds < 25
    assert not any(Path(f"/proc/{pid}").exists() for pid in found)


def test_other_machines_need_a_key(tiny_service, titer):
    data, model = tiny_service
    code, _, error = titer("serve", "--data", data, "--host", "0.0.0.0", "--no-worker", *model)
    assert code == 2
    assert not untold(error, "titer keys create", "0.0.0.0")


# -- the policy -----------------------------------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path):
    found = open_service(tmp_path / "data")
    yield found
    found.close()


def folder(path):
    path.mkdir(parents=True)
    return path


def test_models_that_are_named(empty, tmp_path):
    store_policy(empty, None, [])
    assert list(empty.policy().models) == ["smollm2-135m-instruct"]
    small = folder(tmp_path / "My Small_Model!")
    store_policy(empty, None, [str(small), "other=org/name"])
    assert empty.policy().models["My-Small_Model"] == str(small)
    assert empty.policy().models["other"] == "org/name"
    before = empty.policy()
    store_policy(empty, None, [str(small)])  # again, as at each start
    store_policy(empty, None, [])
    assert empty.policy() == before
    with empty.database.reading() as session:
        assert session.query(LogEntry).filter_by(action="policy.replaced").count() == 2


def test_a_model_that_is_named_first_takes_the_place_of_the_embedded_one(empty, tmp_path):
    store_policy(empty, None, [f"mine={folder(tmp_path / 'm')}"])
    assert list(empty.policy().models) == ["mine"]


def test_a_policy_file_holds_as_it_is_written(empty, tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text("# mine\nmodels: {a: org/a}\ngate: {samples: 9}\n")
    store_policy(empty, file, [])
    assert (empty.policy().models, empty.policy().gate.samples) == ({"a": "org/a"}, 9)
    store_policy(empty, file, ["b=org/b"])
    assert (empty.policy().models, empty.policy().gate.samples) == ({"a": "org/a", "b": "org/b"}, 9)
    file.write_text("gate: {samplse: 9}\n")
    with pytest.raises(TiterError, match=r"samplse"):
        store_policy(empty, file, [])


@pytest.mark.parametrize("model", ["", "a=", "=x/y", "a:b=x/y", "../none", "/none/there", "a/b=x", "a b=x", "x/y/z"])
def test_models_that_cannot_be_meant(empty, model):
    with pytest.raises(TiterError, match="model"):
        store_policy(empty, None, [model])


# -- keys and the audit log -----------------------------------------------------------------------------------------


def test_keys_on_the_command_line(titer, tmp_path):
    data = ("--data", tmp_path / "data")
    made = json.loads(
        titer("keys", "create", *data, "--org", "mine", "--scope", "files", "--days", 7, "--name", "ci", "--json")[1]
    )
    assert (made["scopes"], made["name"]) == (["files"], "ci")
    (listed,) = json.loads(titer("keys", "list", *data, "--json")[1])
    assert (listed["id"], listed["organisation"]) == (made["id"], "mine")
    assert "key" not in listed
    heir = titer("keys", "rotate", made["id"], *data, "--grace", 0)[1].strip()
    assert heir.startswith("sk-titer-")
    assert made["key"] != heir
    states = [line.split("  ")[3].split()[0] for line in titer("keys", "list", *data)[1].splitlines()]
    assert states == ["expired", "good"]
    other = json.loads(titer("keys", "list", *data, "--json")[1])[1]["id"]
    assert titer("keys", "revoke", other, *data)[0] == 0
    assert json.loads(titer("keys", "revoke", other, *data, "--json")[1])["revoked_at"]
    actions = [json.loads(line)["action"] for line in titer("audit-log", "show", *data, "--json")[1].splitlines()]
    assert actions == ["organisation.created", "key.created", "key.created", "key.rotated", "key.revoked"]
    shown = titer("audit-log", "show", *data, "--last", 1)[1]
    assert not untold(shown, "key.revoked", other, "command line")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["create", "--org", "a/b"], "a/b"),
        (["create", "--org", "a", "--scope", "all"], "all"),
        (["create", "--org", "a", "--name", "x" * 65], "--name"),
        (["revoke", "key_none"], "key_none"),
        (["rotate", "key_none"], "key_none"),
    ],
)
def test_mistakes_with_keys(titer, tmp_path, words, told):
    titer("keys", "create", "--data", tmp_path / "data", "--org", "first")
    code, written, error = titer("keys", *words, "--data", tmp_path / "data")
    assert (code, written) == (2, "")
    assert not untold(error, told)


@pytest.mark.parametrize(
    "words", [["keys", "list"], ["keys", "revoke", "key_1"], ["audit-log", "verify"], ["audit-log", "show"]]
)
def test_a_misspelt_folder_is_no_new_service(titer, tmp_path, words):
    code, _, error = titer(*words, "--data", tmp_path / "none")
    assert code == 2
    assert not untold(error, "no service", "none")
    assert not (tmp_path / "none").exists()


def test_the_audit_log_is_verified(titer, tmp_path):
    data = ("--data", tmp_path / "data")
    titer("keys", "create", *data, "--org", "mine")
    code, told, _ = titer("audit-log", "verify", *data)
    assert code == 0
    head = told.splitlines()[1]
    titer("keys", "create", *data, "--org", "mine")
    assert titer("audit-log", "verify", *data, "--known", head)[0] == 0
    assert json.loads(titer("audit-log", "verify", *data, "--json")[1])["head"].startswith("3:")
    assert titer("audit-log", "verify", *data, "--known", "nonsense")[0] == 2
    service = open_service(tmp_path / "data")
    with service.database.writing() as session:
        session.get(LogEntry, 2).details = {}
    service.close()
    code, _, error = titer("audit-log", "verify", *data)
    assert code == 1
    assert not untold(error, "Line 2", "changed")
    code, told, _ = titer("audit-log", "verify", *data, "--json")
    assert (code, json.loads(told)["line"]) == (1, 2)


def test_help_imports_nothing_heavy():
    heavy = "fastapi|sqlalchemy|uvicorn|torch|prometheus_client|opentelemetry"
    for words in ("['serve', '--help']", "['keys', 'create', '--help']", "['audit-log', '--help']", "['--help']"):
        code = (
            f"import re, sys; sys.argv = ['titer', *{words}]\nfrom titer.cli import main\n"
            f"try: main()\nexcept SystemExit: pass\n"
            f"print('HEAVY', [name for name in sys.modules if re.fullmatch({heavy!r}, name)])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
        assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout[-300:] + done.stderr


def test_the_server_imports_no_torch(service):
    code = (
        "import sys; from pathlib import Path; from titer.service.app import create_app\n"
        "from titer.service.context import open_service; from titer.service import server\n"
        f"create_app(open_service(Path({str(service.data)!r}))); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout == "False\n", done.stderr


# -- make serve -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/usr/bin/make").exists(), reason="make is not installed")
def test_make_serve(tmp_path):
    """On a machine where everything is installed already: the first start prints a key that opens, the second none."""
    venv, data = tmp_path / "venv", tmp_path / "data"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "titer"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from titer.cli import main; main()' \"$@\"\n")
    python.chmod(0o755)
    (venv / "bin" / "python").symlink_to(sys.executable)
    for mark in (".torch", ".installed", ".installed-serve"):
        (venv / mark).touch()
    words = ["make", "-s", "serve", f"VENV={venv}", f"DATA={data}", "PORT=0", "SERVE=--no-worker"]
    keys = []
    for _ in range(2):
        with subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
        ) as process:
            try:
                told = ""
                while "listening on" not in told:
                    line = process.stdout.readline()
                    assert line, told
                    told += line
                address = re.search(r"listening on (http://127\.0\.0\.1:\d+)", told)[1]
                keys.append(re.findall(r"sk-titer-\S+", told))
                headers = {"Authorization": f"Bearer {keys[0][0]}"}
                assert httpx.get(f"{address}/titer/v1/keys", headers=headers).status_code == 200
            finally:
                os.killpg(process.pid, signal.SIGTERM)
    assert [len(found) for found in keys] == [1, 0]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/data-titer/" in ignored


def test_without_the_extra_the_verbs_say_what_to_install(tmp_path):
    code = """
import sys
for name in ("sqlalchemy", "fastapi", "alembic", "uvicorn"):
    sys.modules[name] = None
from titer.cli import main
for words in (["serve", "--data", "x"], ["worker", "--data", "x"], ["keys", "list", "--data", "x"], ["settings"]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        print("ENDED", end.code or 0, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    *refused, settings, nothing = re.split(r"^ENDED (\d)$", done.stderr, flags=re.MULTILINE)
    assert (settings, nothing.strip()) == ("0", "")
    assert refused[1::2] == ["2"] * 3
    for said in refused[::2][:3]:
        assert "pip install 'titer[serve]'" in said
    assert not list(tmp_path.iterdir())
