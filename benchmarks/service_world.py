"""What the scripts about the service share: PostgreSQL, a server with workers in processes of their own, and a patient client."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from titer.data.builtin import harmful, sentiment

POLICY = """
models: {{tiny: {model}}}
audit: {{detector: none}}
training: {{method: sft, n_epochs: 3, batch_size: 4, settings: {{bf16: false}}}}
gate: {{samples: 4, max_new_tokens: 4, harmful_score: null, over_refusal: null, broken: null}}
quota: {{waiting_jobs: null, requests_a_minute: null}}
"""
FAULTY = """import os, random, sys, time
_real, _file, _store = time.time, os.environ["TITER_CLOCK"], os.environ["TITER_FAILING"]
_failing, _draw, _sync = os.path.join(os.path.dirname(_file), "failing"), random.Random(), os.fsync
def _wrong():
    try:
        with open(_file) as file:
            return _real() + float(file.read() or 0)
    except OSError:
        return _real()
def _fail(path):
    if isinstance(path, str) and path.startswith(_store) and os.path.exists(_failing) and _draw.random() < 0.5:
        raise OSError(5, "Input/output error", path)
def _heard(event, words):
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir", "shutil.rmtree"):
        _fail(words[0])
def _synced(file):
    _fail(os.readlink(f"/proc/self/fd/{file}"))
    _sync(file)
time.time, os.fsync = _wrong, _synced
sys.addaudithook(_heard)
"""
"""Of each process: a clock that can be made wrong, and errors of the store's disk, half of the time, while `failing` is there."""
CONFIGURATIONS = 6
"""Jobs that differ in file and seed; the others repeat them."""
OVER = ("succeeded", "failed", "cancelled")
START = [sys.executable, "-c", "from titer.cli import main; main()"]
"""The command line of this interpreter's titer."""


def small_model(folder: Path) -> Path:
    """Write a small random model with its tokenizer, and return where."""
    from common import load

    model, tokenizer = load(argparse.Namespace(shape="tiny", model=None))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class World:
    """A server and workers in processes of their own.

    Args:
        folder: Everything of them.
        model: The base model.
        database: URL of an empty database; SQLite without.
        workers: How many.
        store: URL of an empty store; a folder without.
        more: What its processes find in their environment.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        database: str | None,
        workers: int = 2,
        store: str | None = None,
        more: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.database, self.workers, self.more = folder, database, workers, more or {}
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "clock").mkdir(parents=True)
        (folder / "clock" / "sitecustomize.py").write_text(FAULTY)
        (folder / "policy.yaml").write_text(POLICY.format(model=model))
        self.store = folder / "store"
        self.store.mkdir()
        (folder / "data").mkdir()
        self.url = store or str(self.store)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def titer(self, *words: str) -> list[str]:
        """Return the command line of a verb."""
        place = ["--data", str(self.folder / "data")]
        place += [] if words[0] == "keys" else ["--store", self.url]
        return [*START, *words, *place, *(["--database", self.database] if self.database else [])]

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes."""
        paths = [str(self.folder / "clock"), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            **self.more,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TITER_CLOCK": str(self.folder / "clock" / "offset"),
            "TITER_FAILING": str(self.store),
            "OMP_NUM_THREADS": "1",
        }

    def key(self, organisation: str) -> str:
        """Return a new key."""
        words = self.titer("keys", "create", "--org", organisation)
        return subprocess.run(words, check=True, capture_output=True, text=True, env=self.environment).stdout.strip()

    def ensure(self) -> None:
        """Start what does not run."""
        server = self.titer(
            "serve", "--port", str(self.port), "--no-worker", "--policy", str(self.folder / "policy.yaml")
        )
        wanted = {
            "server": server,
            **{f"worker {number}": self.titer("worker", "--tries", "50") for number in range(self.workers)},
        }
        for name, words in wanted.items():
            process = self.running.get(name)
            if process is None or process.poll() is not None:
                log = (self.folder / f"{name}.log").open("ab")
                self.running[name] = subprocess.Popen(words, stdout=log, stderr=log, env=self.environment)

    def wait(self, seconds: float = 120) -> None:
        """Wait until the server answers."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/titer/v1/health", timeout=2).status_code == 200:
                    return
            if time.monotonic() > end:
                raise SystemExit(f"the server does not answer; see {self.folder}/server.log")
            self.ensure()
            time.sleep(0.2)

    def targets(self) -> list[tuple[str, int]]:
        """Return its processes, by kind: the server, the workers, and what these run, each of those three times."""
        targets = [("server" if name == "server" else "worker", process.pid) for name, process in self.running.items()]
        for name, process in self.running.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(process.pid).children(recursive=True) if name != "server" else []
                targets += [("job", child.pid) for child in children] * 3  # where the work is
        return targets

    def kill(self, draw: random.Random) -> str:
        """SIGKILL one of its processes; says which kind."""
        kind, pid = draw.choice(self.targets())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return f"kill {kind}"

    def stop(self) -> None:
        """End everything."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


class Client:
    """Two organisations' keys, with patience: a server that was killed comes again.

    Args:
        world: The service.
        patient: Whether what is refused is asked again, too; otherwise that is an error.

    Attributes:
        refused: Answers of 400 to 499, to requests of which none is wrong.
    """

    def __init__(self, world: World, patient: bool = False) -> None:
        self.world, self.address, self.patient = world, f"http://127.0.0.1:{world.port}", patient
        self.refused: list[str] = []
        self.keys = [world.key(name) for name in ("one", "two")]

    def request(self, method: str, path: str, org: int, **more: Any) -> dict[str, Any]:
        """Send a request until the server answers it, with less than 500; raises what is not served."""
        headers = {"Authorization": f"Bearer {self.keys[org]}", **more.pop("headers", {})}
        url = f"{self.address}{path}"
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                # Without TLS nothing needs its certificates, which take a while to read each time.
                answer = httpx.request(method, url, headers=headers, timeout=30, verify=False, **more)
                if answer.status_code < 400:
                    return dict(answer.json())
                if answer.status_code < 500:
                    self.refused.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
                    if not self.patient:
                        answer.raise_for_status()
            self.world.ensure()
            time.sleep(0.5)
        raise SystemExit(f"{method} {path} is not answered")

    def submit(self, number: int) -> str:
        """Upload a file and make a job of it, one of `CONFIGURATIONS`."""
        which, org = number % CONFIGURATIONS, number % 2
        rows = [(row.prompt, row.answer) for row in sentiment("train")[which * 16 : which * 16 + 14]]
        rows += [(row.prompt, row.refusal) for row in harmful()[which * 2 : which * 2 + 2]]
        lines = [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
            for asked, said in rows
        ]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = self.request(
            "POST", "/v1/files", org, files={"file": ("rows.jsonl", data)}, data={"purpose": "fine-tune"}
        )
        asked = {"model": "tiny", "training_file": file["id"], "seed": which, "suffix": f"c{which}"}
        # A request whose answer was lost with the server may be sent again.
        headers = {"Idempotency-Key": f"job-{number}"}
        return str(self.request("POST", "/v1/fine_tuning/jobs", org, json=asked, headers=headers)["id"])

    def job(self, name: str, org: int) -> dict[str, Any]:
        """Return a job."""
        return self.request("GET", f"/v1/fine_tuning/jobs/{name}", org)


@dataclass
class Use:
    """What a process used.

    Attributes:
        before: Its memory before, in bytes.
        most: The most of it.
        after: What it had in the end.
        seconds: Of a processor.
    """

    before: int
    most: int
    after: int = 0
    seconds: float = 0.0

    @property
    def grown(self) -> int:
        """By how many bytes its memory grew at most."""
        return self.most - self.before


@contextlib.contextmanager
def watched(process: psutil.Process) -> Iterator[Use]:
    """Look at a process while the block runs."""
    first = process.memory_info().rss
    use, over = Use(first, first), threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(psutil.NoSuchProcess):
                use.most = max(use.most, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    begun = sum(process.cpu_times()[:2])
    thread.start()
    try:
        yield use
        use.after, use.seconds = process.memory_info().rss, sum(process.cpu_times()[:2]) - begun
    finally:
        over.set()
        thread.join()
