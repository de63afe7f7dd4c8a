"""A Slurm of one machine, as far as submitit asks one: sbatch with arrays and a throttle, srun, sacct, scontrol requeue.

`install(folder)` makes the commands; what happened is in `folder/state`: a file a job with its state, and `log`, a line an event.
"""

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", "."))


def install(folder):
    """Make the commands in `folder/bin`; return what the environment needs for them."""
    (folder / "bin").mkdir(parents=True)
    (folder / "state").mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__)} {name} "$@"\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE_SLURM": str(folder / "state")}


def note(line):
    with (STATE / "log").open("a") as file:
        file.write(line + "\n")


def sbatch(script):
    """Begin a job, or an array of them, in a process that outlives this one."""
    number = 100 + sum(1 for _ in STATE.glob("*.sh"))
    copy = STATE / f"{number}.sh"
    if "--partition=nowhere" in Path(script).read_text():
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    copy.write_text(Path(script).read_text())
    note(
        f"sbatch {number} {' '.join(re.findall('--(?:array|partition|time|gpus-per-node)=[^ ]*', copy.read_text()))}".replace(
            "\n", " "
        )
    )
    words = [sys.executable, __file__, "control", str(number)]
    with (STATE / "control.log").open("a") as out:
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    print(f"Submitted batch job {number}")


def control(number):
    """Run the tasks of a job, so many at a time as it lets."""
    script = (STATE / f"{number}.sh").read_text()
    array = re.search(r"--array='?0-(\d+)%(\d+)", script)
    names = [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [number]
    limit = int(array[2]) if array else 1
    waiting, running = list(names), {}
    for name in names:
        (STATE / f"{name}.state").write_text("PENDING")
    while waiting or running:
        while waiting and len(running) < limit and not (STATE / "hold").exists():
            name = waiting.pop(0)
            running[name] = begin(number, name, array is not None)
        for name, process in list(running.items()):
            if (code := process.poll()) is not None:
                del running[name]
                again = STATE / f"{name}.requeue"
                if again.exists():
                    again.unlink()
                    waiting.append(name)
                state = "PENDING" if name in waiting else "COMPLETED" if code == 0 else "FAILED"
                (STATE / f"{name}.state").write_text(state)
                note(f"{state} {name}")
        time.sleep(0.05)


def begin(number, name, array):
    (STATE / f"{name}.state").write_text("RUNNING")
    note(f"begin {name}")
    own = {"SLURM_JOB_ID": name.replace("_", "9") if array else name, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    if array:
        own |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": name.partition("_")[2]}
    return subprocess.Popen(["bash", STATE / f"{number}.sh"], env={**os.environ, **own, "FAKE_NAME": name})


def srun(*words):
    """Run a command with its output where it belongs."""
    number, _, task = os.environ["FAKE_NAME"].partition("_")
    files, rest = {}, list(words)
    while rest[0].startswith("--"):
        option = rest.pop(0)
        if option in ("--output", "--error"):
            path = rest.pop(0).replace("%j", number).replace("%A", number).replace("%a", task).replace("%t", "0")
            files[option] = open(path, "a")  # noqa: SIM115
    os.dup2(files["--output"].fileno(), 1)
    os.dup2(files["--error"].fileno(), 2)
    os.execvp(rest[0], rest)


def sacct(*words):
    """Print the states of jobs."""
    asked = {words[place + 1] for place, word in enumerate(words) if word == "-j"}
    print("JobID|State|NodeList")
    for file in sorted(STATE.glob("*.state")):
        if file.stem.partition("_")[0] in asked:
            print(f"{file.stem}|{file.read_text()}|here")


def scontrol(_, name):
    (STATE / f"{name}.requeue").touch()
    note(f"requeue {name}")


if __name__ == "__main__":
    command, *given = sys.argv[1:]
    globals()[command](*given)
