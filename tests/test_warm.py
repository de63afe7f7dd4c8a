"""A fork is told what Python is told, and ends as it does."""

import os
import signal
import subprocess
import time

CODE = """
import os, sys
print(sys.argv, os.getcwd(), os.environ["SAID"], sys.stdin.read(), sys.path[1], "torch" in sys.modules)
sys.exit("seven")
"""


def test_a_fork_is_told_what_python_is_told(forks, tmp_path):
    environment = {**os.environ, "SAID": "said", "PYTHONPATH": "/nowhere"}
    words = [forks.python, "-c", CODE, "a b", ""]
    how = {"cwd": tmp_path, "env": environment, "input": "read", "capture_output": True, "text": True}
    done = subprocess.run(words, **how, check=False)
    assert done.stdout == f"['-c', 'a b', ''] {tmp_path} said read /nowhere True\n"
    assert (done.returncode, done.stderr) == (1, "seven\n")


def test_a_fork_ends_as_python_does(forks):
    def end(code):
        return subprocess.run([forks.python, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode

    assert [end("pass"), end("raise SystemExit(7)"), end("1 / 0")] == [0, 7, 1]
    assert end("import os; os.kill(os.getpid(), 9)") == -signal.SIGKILL


def test_a_fork_ends_with_what_was_started(forks):
    for number in (signal.SIGTERM, signal.SIGKILL):
        words = [forks.python, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            fork = process.stdout.readline().strip()
            process.send_signal(number)
            assert process.wait(60) == -number
        end = time.monotonic() + 60
        while os.path.exists(f"/proc/{fork}"):
            assert time.monotonic() < end
            time.sleep(0.01)
