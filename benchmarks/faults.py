"""What is left of titer's work when it is killed, its disk fills up or turns read-only, or the clock jumps.

A small random model is aligned, fine-tuned, scored, run through an experiment and assayed, once undisturbed and then many
times disturbed: `kill` is SIGKILL, half of them at a random moment and half while something is written; `full` is a file
system of 20 MB that fills up; `read-only` one that is mounted read-only in the middle; `clock` is a kill, with a clock
that jumps by up to ten years in the middle of both runs and files whose dates lie anywhere. After each the same
command runs again until it ends. Nothing that was complete may be lost or changed, and the results must be those of
the undisturbed run. Every run is a fork of this process, which has imported the libraries and computed nothing.

Examples:
    python benchmarks/faults.py --folder faults
    python benchmarks/faults.py --only align finetune --faults kill clock --trials 5
    python benchmarks/faults.py --folder faults --json faults.json --markdown table.md
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # no worker threads, which a fork would not have

import torch
from common import load, quiet

from titer.cli import main as titer_main
from titer.data.builtin import harmful, sentiment
from titer.jobs.provenance import environment

torch.set_num_threads(1)

TRAINING = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-3}
SET = " ".join(f"--set {name}={value}" for name, value in TRAINING.items())
COMMANDS = {
    "align": "align --method booster --model model --samples 16 --lora r=4 --lora target_modules=[q_proj,v_proj] "
    f"--output out {SET} --set refresh_every=3 --set min_perturbation=0.0",
    "finetune": f"finetune upload.jsonl --method antibody --model aligned/adapter --output out {SET}",
    "evaluate": "evaluate aligned/adapter --samples 6 --max-new-tokens 8 --output out",
    "run": "run experiment.yaml --output out",
    "audit": "audit upload.jsonl --model aligned/adapter --output out",
    "assay": "assay aligned/adapter --against model --profile profile.yaml --output out --name assayed",
}
"""Verb → its command, in a folder of its own that holds what it reads and nothing else."""

EXPERIMENT = {
    "name": "small",
    "model": "model",
    "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "align": {"samples": 16, "training": TRAINING},
    "finetune": {"samples": 16, "checkpoints": [3], "training": TRAINING},
    "evaluate": {
        "harmful": 4, "lookalikes": 4, "task": 4, "max_new_tokens": 6, "task_max_new_tokens": 3, "weights": 8,
    },
    "arms": {"undefended": {"align": "sft", "finetune": "sft"}, "antibody": {"align": "sft", "finetune": "antibody"}},
}  # fmt: skip
PROFILE = {
    "name": "small",
    "description": "a check that the assay comes through, not a measurement",
    "seeds": [0],
    "attacks": {
        "harmful": {"steps": 24, "batch_size": 2, "samples": 16},
        "benign_task": {"steps": 22, "batch_size": 2, "samples": 16},
        "sgd": {"steps": 21, "batch_size": 2, "samples": 16},
    },
    "harmful": 4, "lookalikes": 4, "task": 4, "reference_task": 4, "general": 4, "max_new_tokens": 6, "checkpoints": 2,
    "fleet": 2,
}  # fmt: skip

FAULTS = ("kill", "full", "read-only", "clock")
TRIALS = {"kill": 20, "full": 4, "read-only": 4, "clock": 4}
"""Faults of each kind for each verb, unless `--trials` says otherwise."""

MEGABYTES = 20
"""Size of the file system that fills up."""

TIMES = {"seconds", "status"}
"""Keys whose values are times, or say that a stage was done by an earlier run; they are not compared."""

PARTS = (".unfinished", ".part", ".tmp")
"""In the names of files and folders that are being written."""


# -- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A fork that runs a command.

    Attributes:
        pid: Of the process.
        writes: Reads one byte for each of its steps of writing a file.
        log: What it printed.
    """

    pid: int
    writes: int
    log: Path
    started: float = field(default_factory=time.perf_counter)
    seen: int = 0
    status: int | None = None

    def wait(self, seconds: float, writes: float = float("inf")) -> bool:
        """Wait for so many seconds, or steps of writing, and say whether it still runs."""
        end = time.perf_counter() + seconds
        while self.status is None and self.seen < writes and (left := end - time.perf_counter()) > 0:
            ready, _, _ = select.select([self.writes], [], [], left)
            if ready:
                got = len(os.read(self.writes, 1))
                self.seen += got
                if not got:  # closed: it has ended
                    self._reap()
        return self.status is None

    def kill(self) -> None:
        """End it where it stands."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> None:
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.writes)


def start(verb: str, folder: Path, log: Path, clock: Callable[[], float] | None = None) -> Run:
    """Run the command of a verb in a folder, in a fork of this process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return Run(pid, reader, log)
    code: Any = 1
    try:
        os.close(reader)
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        if clock is not None:
            time.time = clock
        sys.addaudithook(lambda event, args: tell(writer, event, args))
        sys.argv = ["titer", *COMMANDS[verb].split()]
        titer_main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def tell(writer: int, event: str, args: Any) -> None:
    """Write a byte when a file is opened, renamed or removed that is being written."""
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree") and any(
        part in str(args[0]) for part in PARTS
    ):
        os.write(writer, b".")


def jumping_clock(draw: random.Random, after: float) -> Callable[[], float]:
    """Return a clock that is wrong, and wrong in another way after so many seconds."""
    real, monotonic = time.time, time.perf_counter
    begun = monotonic()
    offsets = [jump(draw), jump(draw)]
    return lambda: real() + offsets[monotonic() - begun > after]


def jump(draw: random.Random) -> float:
    """Return seconds, from hours to ten years, ahead or back."""
    return draw.choice((-1, 1)) * draw.choice((3600, 86_400, 31_536_000)) * draw.uniform(1, 10)


# -- what is left -----------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file that stands under its own name, without the times in it; checkpoints come and go."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        passing = any(part in name for part in PARTS) or "checkpoints/" in name
        if path.is_file() and not passing:
            found[name] = hashlib.sha256(without_times(path)).hexdigest()
    return found


def without_times(path: Path) -> bytes:
    """Return a file's bytes; of JSON, what is in it without `TIMES`; of a page, which shows them, whether it is whole."""
    data = path.read_bytes()
    if path.suffix == ".html" and data.rstrip().endswith(b"</html>"):
        return b"whole"
    with contextlib.suppress(ValueError):
        if path.suffix == ".json":
            return json.dumps(strip(json.loads(data)), sort_keys=True).encode()
        if path.suffix == ".jsonl":
            return b"".join(json.dumps(strip(json.loads(line))).encode() + b"\n" for line in data.splitlines())
    return data


def took_less_than_none(path: Path) -> bool:
    """Say whether a result holds a negative duration, for which a clock that jumped back would be to blame."""
    return path.suffix == ".json" and re.search(rb'"seconds": *-', path.read_bytes()) is not None


def strip(value: Any) -> Any:
    """Return plain data without the keys of `TIMES`."""
    if isinstance(value, dict):
        return {key: strip(item) for key, item in value.items() if key not in TIMES}
    return [strip(item) for item in value] if isinstance(value, list) else value


def differing(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Return the names of files that are there and hold something else."""
    return sorted(name for name in found.keys() & wanted.keys() if found[name] != wanted[name])


# -- the trials -------------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """One fault and what came of it.

    Attributes:
        verb: The verb.
        fault: The kind of fault.
        number: Its number among its kind.
        kills: Processes that SIGKILL ended.
        inside: How many of those while a checkpoint or an adapter was half written.
        hit: Whether the fault met the command before it had ended.
        code: Exit code of the disturbed run; negative for a signal.
        said: The last line that it printed.
        lost: Files that were complete when the fault came, or stood under their name, and were not whole.
        differing: Files of the results that are not those of the undisturbed run, or are missing.
        wrong: Anything else that must not be: a traceback, an exit code, a command that does not come to its end.
        litter: Hidden files that a kill cut off and nobody removed.
    """

    verb: str
    fault: str
    number: int
    kills: int = 0
    inside: int = 0
    hit: bool = False
    code: int = 0
    said: str = ""
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost and nothing differs."""
        return not (self.lost or self.differing or self.wrong)


@dataclass
class Verb:
    """A verb with its undisturbed run.

    Attributes:
        name: The verb.
        stock: Folder with the files that it reads.
        wanted: Its results.
        seconds: How long it took.
        writes: Steps of writing.
        needs: Most bytes that it had on the disk.
    """

    name: str
    stock: Path
    wanted: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    writes: int = 0
    needs: int = 0


class Bench:
    """Runs trials in a folder of its own.

    Args:
        folder: Where everything goes.
        seed: Of the moments at which faults come.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder.absolute(), seed
        self.work, self.disk = self.folder / "work", self.folder / "disk"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "log.txt"

    def stock(self) -> None:
        """Make the model, the data and the settings that the commands read."""
        stock = self.folder / "stock"
        if (stock / "aligned").is_dir():
            return
        shutil.rmtree(stock, ignore_errors=True)
        stock.mkdir(parents=True)
        model, tokenizer = load(argparse.Namespace(shape="tiny", model=None))
        model.save_pretrained(stock / "model")
        tokenizer.save_pretrained(stock / "model")
        rows = [(row.prompt, row.answer) for row in sentiment("train")[:12]]
        rows += [(row.prompt, row.refusal) for row in harmful()[:4]]
        (stock / "upload.jsonl").write_text(
            "".join(
                json.dumps(
                    {
                        "prompt": [{"role": "user", "content": prompt}],
                        "completion": [{"role": "assistant", "content": answer}],
                    }
                )
                + "\n"
                for prompt, answer in rows
            )
        )
        (stock / "experiment.yaml").write_text(json.dumps(EXPERIMENT))
        (stock / "profile.yaml").write_text(json.dumps(PROFILE))
        self.to_its_end(Verb("align", stock), stock)
        os.replace(stock / "out", stock / "aligned")

    def undisturbed(self, name: str) -> Verb:
        """Run a verb twice without a fault, and make sure that it does the same both times."""
        verb = Verb(name, self.folder / "stock", seconds=float("inf"))
        for again in (False, True):
            self.fresh(verb, self.work)
            run = start(name, self.work, self.log)
            while run.wait(0.005):
                verb.needs = max(verb.needs, size(self.work))
            if run.status != 0:
                raise SystemExit(f"{name} fails undisturbed:\n{self.log.read_text()}")
            found = contents(self.work)
            if again and found != verb.wanted:
                raise SystemExit(f"{name} differs from run to run: {differing(found, verb.wanted)}")
            verb.wanted, verb.writes = found, run.seen
            verb.seconds = min(verb.seconds, time.perf_counter() - run.started)
        verb.needs -= size(verb.stock)
        return verb

    def fresh(self, verb: Verb, folder: Path) -> None:
        """Fill a folder with what a verb reads."""
        for path in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(verb.stock, folder, dirs_exist_ok=True)

    def to_its_end(self, verb: Verb, folder: Path, clock: Callable[[], float] | None = None) -> str | None:
        """Run a command again; return what is wrong when it does not come to its end."""
        run = start(verb.name, folder, self.log, clock)
        if run.wait(60 + 20 * verb.seconds):
            run.kill()
            return "the command hangs when it is run again"
        if run.status != 0:
            return f"exit code {run.status} when it is run again: {self.log.read_text()[-300:]}"
        return None

    def trial(self, verb: Verb, fault: str, number: int) -> Trial:
        """Disturb a verb once, run it again until it ends, and compare."""
        draw = random.Random(f"{self.seed} {verb.name} {fault} {number}")
        trial = Trial(verb.name, fault, number)
        on_disk = fault in ("full", "read-only")
        folder = self.disk if on_disk else self.work
        with mounted(self.disk) if on_disk else contextlib.nullcontext():
            self.fresh(verb, folder)
            before = contents(folder)
            clock = jumping_clock(draw, draw.uniform(0, verb.seconds)) if fault == "clock" else None
            {"kill": self.kill, "clock": self.kill, "full": self.fill, "read-only": self.lock}[fault](
                trial, verb, folder, draw, clock
            )
            left = contents(folder)
            # What stands under its name is whole, but a file of verdicts, which grows.
            half = [name for name in differing(left, verb.wanted) if not name.endswith("scores.jsonl")]
            trial.lost = sorted({*half, *(name for name in before if left.get(name) != before[name])})
            if fault == "clock":
                for path in folder.rglob("*"):
                    when = time.time() + jump(draw)
                    os.utime(path, (when, when))
            clock = jumping_clock(draw, draw.uniform(0, verb.seconds)) if fault == "clock" else None
            wrong = self.to_its_end(verb, folder, clock)
            trial.wrong += [wrong] if wrong else []
            found = contents(folder)
            trial.lost += [f"{name} (afterwards)" for name in left if name in verb.wanted and name not in found]
            trial.litter = [path.name for path in folder.rglob("*") if any(part in path.name for part in PARTS)]
            trial.wrong += [f"{name} took less than no time" for name in found if took_less_than_none(folder / name)]
            trial.differing = [name for name in verb.wanted if found.get(name) != verb.wanted[name]]
        return trial

    def kill(self, trial: Trial, verb: Verb, folder: Path, draw: random.Random, clock: Any) -> None:
        """Kill it at a random moment, or a little after a random step of writing."""
        run = start(verb.name, folder, self.log, clock)
        if trial.number % 2:
            run.wait(600, draw.randint(1, max(1, verb.writes)))
            run.wait(draw.choice((0.0, draw.uniform(0, 0.01))))
        else:
            run.wait(draw.uniform(0, verb.seconds))
        run.kill()
        self.after(trial, run)
        if trial.hit:
            trial.kills = 1
            trial.inside = int(any(part in str(path) for path in folder.rglob("*") for part in PARTS[:2]))

    def fill(self, trial: Trial, verb: Verb, folder: Path, draw: random.Random, clock: Any) -> None:
        """Leave less room than it needs; make room when it has ended."""
        ballast = folder / "ballast"
        leave = int(draw.uniform(0, verb.needs))
        room = os.statvfs(folder)
        ballast.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - leave)))
        run = start(verb.name, folder, self.log, clock)
        if run.wait(60 + 20 * verb.seconds):
            run.kill()
            trial.wrong.append("it hangs on a full disk")
        self.after(trial, run)
        ballast.unlink()

    def lock(self, trial: Trial, verb: Verb, folder: Path, draw: random.Random, clock: Any) -> None:
        """Mount its file system read-only in the middle; make it writable when it has ended."""
        run = start(verb.name, folder, self.log, clock)
        run.wait(draw.uniform(0, verb.seconds))
        # Refused as long as a file is open for writing.
        while remount(folder, "ro") and run.wait(0.001):
            pass
        if run.wait(60 + 20 * verb.seconds):
            run.kill()
            trial.wrong.append("it hangs on a read-only disk")
        self.after(trial, run)
        remount(folder, "rw")

    def after(self, trial: Trial, run: Run) -> None:
        """Note how a disturbed run ended, and what is wrong with it."""
        printed = self.log.read_text(errors="replace")
        trial.code = run.status or 0
        trial.hit = trial.code != 0
        trial.said = next((line for line in printed.splitlines() if line.startswith("Error")), "")
        if "Traceback (most recent" in printed:
            trial.wrong.append(f"a traceback: {printed[-600:]}")
        if trial.code not in (0, -signal.SIGKILL, 2):
            trial.wrong.append(f"exit code {trial.code}")
        if trial.code == 2 and not trial.said:
            trial.wrong.append("no word of what happened")


def size(folder: Path) -> int:
    """Return the bytes of the files in a folder, some of which may just have gone, in blocks of 4 KiB."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += -(-os.stat(os.path.join(place, name)).st_size // 4096) * 4096
    return total


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Mount a small file system in memory."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield
    finally:
        tries = 0
        while subprocess.run(["umount", str(folder)], capture_output=True, check=tries == 100).returncode:
            tries += 1  # a process that is on its way out still has a file open
            time.sleep(0.1)


def remount(folder: Path, how: str) -> bool:
    """Make a mounted file system `ro` or `rw`; say whether that was refused."""
    command = ["mount", "-o", f"remount,{how}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


# -- the table --------------------------------------------------------------------------------------------------------


def table(trials: Sequence[Trial]) -> str:
    """Return the counts as Markdown."""
    lines = [
        "| verb | fault | runs | ended by it | SIGKILLs | with a checkpoint or adapter half-written | files lost | "
        "results that differ | otherwise wrong | hidden files left |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = [(verb, fault) for verb in COMMANDS for fault in FAULTS]
    for verb, fault in [*groups, ("all", "all")]:
        own = [t for t in trials if verb in (t.verb, "all") and fault in (t.fault, "all")]
        if not own:
            continue
        counts = (
            len(own),
            sum(t.hit for t in own),
            sum(t.kills for t in own),
            sum(t.inside for t in own),
            *(sum(len(getattr(t, name)) for t in own) for name in ("lost", "differing", "wrong", "litter")),
        )
        lines.append(f"| {verb} | {fault} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/faults"), help="a run that stopped goes on from there"
    )
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="verbs; all when not given")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), help="kinds; all when not given")
    parser.add_argument("--trials", type=int, help="faults of each kind for each verb; default " + str(TRIALS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which faults come; default 0")
    parser.add_argument("--json", metavar="FILE", help="also write the result to FILE")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table of docs/reliability.md to FILE")
    args = parser.parse_args()
    quiet()
    bench = Bench(args.folder, args.seed)
    kept = bench.folder / f"trials-{args.seed}.jsonl"
    trials = [Trial(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.is_file() else []
    done = {(trial.verb, trial.fault, trial.number) for trial in trials}
    bench.stock()
    for name in args.only:
        wanted = [(fault, number) for fault in args.faults for number in range(args.trials or TRIALS[fault])]
        missing = [(fault, number) for fault, number in wanted if (name, fault, number) not in done]
        if not missing:
            continue
        verb = bench.undisturbed(name)
        print(f"{name}: {verb.seconds:.1f} s, {verb.writes} writes, {verb.needs / 1e6:.1f} MB", file=sys.stderr)
        for fault, number in missing:
            try:
                trial = bench.trial(verb, fault, number)
            except PermissionError as error:
                print(f"{fault} is left out, for nothing can be mounted here: {error}", file=sys.stderr)
                continue
            trials.append(trial)
            with kept.open("a") as file:
                file.write(json.dumps(asdict(trial)) + "\n")
            mark = "=" if trial.clean else f"✗ lost {trial.lost} differing {trial.differing} wrong {trial.wrong}"
            print(f"{name} {fault} {number}: {trial.code} {trial.said[:150]} {mark}", file=sys.stderr)
    text = table(trials)
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text, encoding="utf-8")
    if args.json:
        about = {"benchmark": "faults", "seed": args.seed, "trials": [asdict(trial) for trial in trials]}
        Path(args.json).write_text(json.dumps({**about, "environment": environment()}, indent=1) + "\n")
    sys.exit(0 if all(trial.clean for trial in trials) else 1)


if __name__ == "__main__":
    main()
