"""What is left of a run when its workers, its launcher or its disk fail, by launcher: pool, submitit, Slurm, Ray.

A small random model goes through an experiment, once undisturbed in one process and then once by each launcher, disturbed
again and again at random moments: `worker` is SIGKILL to a process that works on a job, `launcher` to `titer run` itself,
`both` to both; `pause` stops a worker for three seconds (SIGSTOP), as the server of a network file system does that hangs;
`full` fills the file system of the run's folder for three seconds; `preempt` is Slurm's signal (SIGUSR2) to a worker of
submitit's. Whenever `titer run` has ended otherwise than with 0, the same command runs again. No job may be done twice, no
file be missing, and what the jobs left must be, byte for byte, what the undisturbed run left. Slurm is an imitation on this
machine (`tests/fake_slurm.py`), with arrays, a queue and `sacct`.

Examples:
    python benchmarks/launcher_faults.py --folder launcher_faults
    python benchmarks/launcher_faults.py --only ray slurm --faults 8 --json faults.json --markdown table.md
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fake_slurm
import psutil
from common import load
from faults import mounted, strip

from titer.jobs.leases import holders
from titer.jobs.provenance import environment

TRAINING = {"max_steps": 8, "save_steps": 2, "per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-3}
EXPERIMENT = {
    "name": "small",
    "model": "model",
    "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "align": {"samples": 16, "training": TRAINING},
    "finetune": {"samples": 16, "checkpoints": [], "training": TRAINING},
    "evaluate": {"harmful": 4, "lookalikes": 4, "task": 4, "max_new_tokens": 6, "task_max_new_tokens": 3, "weights": 8},
    "arms": {"undefended": {"align": "sft", "finetune": "sft"}},
}
SOURCE = str(Path(__file__).parents[1] / "src")
LAUNCHERS = {
    "pool": ["--workers", "2"],
    "submitit local": ["--launcher", "slurm", "--resource", "cluster=local", "--parallel", "2"],
    "submitit debug": ["--launcher", "slurm", "--resource", "cluster=debug"],
    "slurm": ["--launcher", "slurm", "--partition", "cpu", "--parallel", "2"],
    "ray": ["--launcher", "ray", "--parallel", "2"],
}
FAULTS = ("worker", "launcher", "both", "pause", "full", "preempt")
LEFT = ("adapter_model.safetensors", "adapter_config.json", "inferences.jsonl", "scores.jsonl", "log.jsonl")
"""Files of jobs that tell neither the time nor the machine."""


@dataclass
class Trial:
    """One launcher with its faults, and what came of it.

    Attributes:
        launcher: Its name.
        faults: How often each kind came while the run was at work.
        starts: How often `titer run` was started.
        said_failed: Jobs that a start said had failed, which the next one did.
        jobs: How many there are.
        twice: Jobs that were done more than once.
        missing: Files that the undisturbed run left, and this one did not.
        differing: Files that hold something else.
        wrong: Anything else that must not be: a traceback, a command that does not come to its end.
        seconds: How long it took.
    """

    launcher: str
    faults: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    said_failed: int = 0
    jobs: int = 0
    twice: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing is lost, done twice or different."""
        return not (self.twice or self.missing or self.differing or self.wrong)


class Bench:
    """Runs the experiment in a folder of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw = folder.absolute(), random.Random(seed)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        model, tokenizer = load(argparse.Namespace(shape="tiny", model=None))
        model.save_pretrained(self.folder / "model")
        tokenizer.save_pretrained(self.folder / "model")
        (self.folder / "experiment.yaml").write_text(json.dumps(EXPERIMENT))
        self.log = self.folder / "log.txt"

    def start(self, run: Path, words: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
        """Run `titer run`."""
        code = "from titer.cli import main; main()"
        command = [sys.executable, "-c", code, "run", "experiment.yaml", "-o", str(run), *words]
        own = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": SOURCE, **more}
        with self.log.open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=own, stdout=log, stderr=log)

    def undisturbed(self) -> dict[str, bytes]:
        """Run it once, in one process, and return what it left."""
        run = self.folder / "undisturbed"
        if self.start(run, [], {}).wait(600) != 0:
            raise SystemExit(f"it fails undisturbed:\n{self.log.read_text()}")
        return left(run)

    def trial(self, name: str, faults: int, wanted: dict[str, bytes], may_mount: bool, chosen: list[str]) -> Trial:
        """Run it by a launcher, with faults."""
        trial, started = Trial(name), time.monotonic()
        place = self.folder / name.replace(" ", "_")
        with mounted(place) if may_mount else contextlib.nullcontext():
            place.mkdir(exist_ok=True)
            run = place / "run"
            more = fake_slurm.install(self.folder / "fake") if name == "slurm" else {}
            kinds = [kind for kind in FAULTS if kind in chosen and (may_mount or kind != "full")]
            if name not in ("submitit local", "slurm") and "preempt" in kinds:
                kinds.remove("preempt")
            todo = [kinds[number % len(kinds)] for number in range(faults)]
            self.draw.shuffle(todo)
            done: dict[str, set[tuple[int, int]]] = {}
            process = self.start(run, LAUNCHERS[name], more)
            trial.starts = 1
            moment = time.monotonic() + self.draw.uniform(2, 6)
            while time.monotonic() - started < 900:
                look(run, done)
                if process.poll() is not None:
                    if process.returncode == 0:
                        break
                    trial.said_failed += len(list((run / "jobs").glob("*/error.txt")))
                    if trial.starts > faults + 3:
                        trial.wrong.append(f"it ends with {process.returncode} again and again")
                        break
                    process = self.start(run, LAUNCHERS[name], more)
                    trial.starts += 1
                if todo and time.monotonic() >= moment and (held := holders(run / "leases")):
                    kind = todo.pop()
                    trial.faults[kind] = trial.faults.get(kind, 0) + 1
                    self.fault(kind, place, process, [one.pid for one in held.values()])
                    moment = time.monotonic() + self.draw.uniform(1, 5)
                time.sleep(0.02)
            else:
                process.kill()
                trial.wrong.append("it does not come to its end")
            process.wait()
            gone(run)
            look(run, done)
            found = left(run)
            trial.jobs = len(done)
        trial.twice = sorted(job for job, seen in done.items() if len(seen) > 1)
        trial.missing = sorted(wanted.keys() - found.keys())
        trial.differing = sorted(file for file in wanted.keys() & found.keys() if wanted[file] != found[file])
        if "Traceback (most recent" in (text := self.log.read_text(errors="replace")):
            trial.wrong.append(f"a traceback: {text[-800:]}")
        trial.seconds = time.monotonic() - started
        return trial

    def fault(self, kind: str, place: Path, process: subprocess.Popen[bytes], workers: list[int]) -> None:
        """Let something fail."""
        victim = self.draw.choice(workers)
        if kind in ("worker", "both"):
            end(signal.SIGKILL, victim)
        if kind in ("launcher", "both"):
            process.kill()
            process.wait()
        if kind == "preempt":
            end(signal.SIGUSR2, victim)
        if kind == "pause":
            end(signal.SIGSTOP, victim)
            time.sleep(3)
            end(signal.SIGCONT, victim)
        if kind == "full":
            room = os.statvfs(place)
            with contextlib.suppress(OSError):
                (place / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize))
            time.sleep(3)
            (place / "ballast").unlink()


def end(what: signal.Signals, pid: int) -> None:
    """Send a signal to a worker that may just have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def gone(run: Path) -> None:
    """Wait until workers that were handed out have ended; a job that is done may leave one that is on its way out."""
    end = time.monotonic() + 30
    while time.monotonic() < end and any(
        str(run) in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])
    ):
        time.sleep(0.1)


def look(run: Path, done: dict[str, set[tuple[int, int]]]) -> None:
    """Take note of which jobs are done, and of each time that one was."""
    for file in (run / "jobs").glob("*/done.json"):
        with contextlib.suppress(OSError):
            about = file.stat()
            done.setdefault(file.parent.name, set()).add((about.st_ino, about.st_mtime_ns))


def left(run: Path) -> dict[str, bytes]:
    """Return what jobs left, and the figures, without times."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in (run / "jobs").rglob("*") if path.name in LEFT}
    results = json.loads((run / "results.json").read_text()) if (run / "results.json").is_file() else {}
    return {**files, "results.json": json.dumps(strip(results.get("results")), sort_keys=True).encode()}


def table(trials: list[Trial], files: int) -> str:
    """Return the counts as Markdown."""
    lines = [
        f"| launcher | {' | '.join(FAULTS)} | starts | jobs | done twice | files missing (of {files}) | files that differ | "
        "otherwise wrong | seconds |",
        "|---" * (len(FAULTS) + 8) + "|",
    ]
    for trial in trials:
        faults = [str(trial.faults.get(kind, 0)) for kind in FAULTS]
        counts = [
            trial.starts,
            trial.jobs,
            *(len(each) for each in (trial.twice, trial.missing, trial.differing, trial.wrong)),
        ]
        lines.append(f"| {trial.launcher} | {' | '.join([*faults, *map(str, counts)])} | {trial.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/launcher_faults"), help="is emptied first")
    parser.add_argument("--only", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS), help="all when not given")
    parser.add_argument("--faults", type=int, default=6, help="of each launcher's run; default 6")
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, default=list(FAULTS), help="all when not given")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which faults come; default 0")
    parser.add_argument("--json", metavar="FILE", help="also write the result to FILE")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table of docs/reliability.md to FILE")
    args = parser.parse_args()
    bench = Bench(args.folder, args.seed)
    wanted = bench.undisturbed()
    may_mount = True
    try:
        with mounted(bench.folder / "try"):
            pass
    except PermissionError as error:
        may_mount = False
        print(f"full is left out, for nothing can be mounted here: {error}", file=sys.stderr)
    trials = []
    for name in args.only:
        bench.log.write_text("")
        trials.append(trial := bench.trial(name, args.faults, wanted, may_mount, args.kinds))
        print(trial, "clean" if trial.clean else "NOT CLEAN", file=sys.stderr)
        shutil.copy(bench.log, bench.folder / f"log_{name.replace(' ', '_')}.txt")
    text = table(trials, len(wanted))
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text, encoding="utf-8")
    if args.json:
        about: dict[str, Any] = {"benchmark": "launcher_faults", "seed": args.seed}
        about["trials"] = [asdict(trial) for trial in trials]
        Path(args.json).write_text(json.dumps({**about, "environment": environment()}, indent=1) + "\n")
    sys.exit(0 if all(trial.clean for trial in trials) else 1)


if __name__ == "__main__":
    main()
