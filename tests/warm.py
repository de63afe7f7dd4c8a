"""Python processes that begin with the libraries imported: forks of one that did so once, which takes five seconds of a core.

`Forks.python` is an executable that takes Python's arguments (`-c CODE`, `-m MODULE` or a script, and words of its own) and uses
its environment, folder and standard streams. It hands them to the server of forks, passes SIGTERM on, and ends as the fork does;
where it is killed, the fork is, a moment later.

Not for tests of what is imported, of what libraries do when they are, of Ctrl-C, or of what is left of a process that is gone.

Usage: `python warm.py SOCKET` is the server, `python -IS warm.py SOCKET ARGUMENT …` is what `Forks.python` runs.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path


class Forks:
    """The server of forks, begun when the first process is."""

    def __init__(self):
        self._server = None
        self._socket = Path(f"/tmp/titer-forks-{uuid.uuid4().hex[:8]}")

    @property
    def python(self):
        """The executable: a path, as of `sys.executable`."""
        executable = self._socket.with_suffix(".sh")
        if self._server is None:
            words = [sys.executable, __file__, str(self._socket)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork has no threads but the one that forks
            self._server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            assert self._server.stdout.readline() == b"ready\n"
            executable.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {__file__} {self._socket} "$@"\n')
            executable.chmod(0o700)
        return str(executable)

    def end(self):
        """End it, and the forks with it."""
        if self._server is not None:
            self._server.communicate()


# --- what a test starts: it imports next to nothing, and has begun in 30 ms ---------------------------------------------


def ask(address, arguments):
    """Have the arguments run by a fork, and end as it does."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    told = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(server, [len(told).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(told)
    answers = server.makefile()
    fork = int(answers.readline())
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(fork, number))
    code = int(answers.readline())
    if code == -signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


# --- the server of forks ------------------------------------------------------------------------------------------------


def prepared():
    """Import what takes long, and return the paths of modules that are not of this process alone."""
    import gc
    import threading

    import titer.cli
    import titer.testing
    import titer.workflows.experiment  # noqa: F401

    assert threading.active_count() == 1, "threads do not live on in a fork"
    gc.collect()
    gc.freeze()
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [path for path in sys.path[1:] if path not in own]


def serve(address):
    """Fork for everybody who asks, until the standard input is closed; returns in forks, with what each was told."""
    import selectors

    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    door = socket.socket(socket.AF_UNIX)
    door.bind(address)
    door.listen(64)
    print("ready", flush=True)
    forks = {}
    selector = selectors.DefaultSelector()
    for stream in (sys.stdin, woken, door):
        selector.register(stream, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                for fork in forks:
                    os.kill(fork, signal.SIGKILL)
                for path in (Path(address), Path(address).with_suffix(".sh")):
                    path.unlink()
                os._exit(0)
            elif key.fileobj is door:
                visitor, _ = door.accept()
                length, streams, *_ = socket.recv_fds(visitor, 8, 3)
                told = visitor.makefile("rb").read(int.from_bytes(length, "big"))
                fork = os.fork()
                if not fork:
                    selector.close()
                    for place, stream in enumerate(streams):
                        os.dup2(stream, place)
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.closerange(3, max(*streams, visitor.fileno(), door.fileno()) + 1)
                    return json.loads(told)
                for stream in streams:
                    os.close(stream)
                visitor.sendall(f"{fork}\n".encode())
                forks[fork] = visitor
                selector.register(visitor, selectors.EVENT_READ, fork)
            elif key.fileobj is woken:
                woken.recv(4096)
                for fork, visitor in [*forks.items()]:
                    done, status = os.waitpid(fork, os.WNOHANG)
                    if done:
                        del forks[fork]
                        if visitor in selector.get_map():
                            selector.unregister(visitor)
                            visitor.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                        visitor.close()
            else:  # whoever asked was killed
                selector.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)


def run(arguments):
    """Be Python with these arguments."""
    import random
    import runpy
    import types

    import numpy

    random.seed()
    numpy.random.seed()
    if arguments[0] == "-u":
        arguments = arguments[1:]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
    if arguments[0] == "-c":
        sys.argv, sys.path[:1] = ["-c", *arguments[2:]], [""]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    elif arguments[0] == "-m":
        sys.argv, sys.path[:1] = arguments[1:], [os.getcwd()]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:1] = arguments, [str(Path(arguments[0]).resolve().parent)]
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    if sys.flags.isolated:
        ask(sys.argv[1], sys.argv[2:])
    shared = prepared()
    arguments, environment, folder = serve(sys.argv[1])
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[1:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *shared]
    run(arguments)
