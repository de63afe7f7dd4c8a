"""What can go wrong with what the service rests on: disks, stores, databases, clocks, and processes that stand still."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from postgres import Postgres
from service_world import World

MEGABYTES = 64
"""Size of each file system."""
FROZEN = 60.0
"""Most seconds for which a process stands still: longer than its jobs are left to it (`titer.service.queue.SECONDS`)."""
REFUSAL = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Begin = Callable[[], Callable[[], object] | None]
"""Begins an outage; returns what ends it, or nothing for one that does not end."""


def mount(*words: str) -> None:
    """Mount something."""
    subprocess.run(["mount", *words], check=True)


class Disk:
    """A small file system in memory, which is seen at a folder that may also be without it.

    Args:
        place: Where it is kept.
        folder: Where it is seen.
    """

    def __init__(self, place: Path, folder: Path) -> None:
        self.place, self.folder = place, folder
        place.mkdir(parents=True)
        mount("-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(place))
        self.come()

    def come(self) -> None:
        """Be seen."""
        mount("--bind", str(self.place), str(self.folder))

    def go(self) -> Callable[[], object]:
        """Be seen no more: the folder is empty, and takes whatever is written into it."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
        return self.come

    def fill(self) -> Callable[[], object]:
        """Leave no room."""
        ballast = self.place / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        return ballast.unlink

    def lock(self) -> Callable[[], object]:
        """Let nothing be written, as soon as nothing is being written."""
        while subprocess.run(
            ["mount", "-o", "remount,ro", str(self.place)], stderr=subprocess.DEVNULL, check=False
        ).returncode:
            time.sleep(0.01)
        return lambda: mount("-o", f"remount,rw,size={MEGABYTES}m", str(self.place))

    def remove(self) -> None:
        """Remove it."""
        for folder in (self.folder, self.place):
            subprocess.run(["umount", "-l", str(folder)], stderr=subprocess.DEVNULL, check=False)


class Bucket:
    """A bucket on moto's server, reached through one that can be made to fail.

    Args:
        log: Where moto's server writes its log.
    """

    def __init__(self, log: Path) -> None:
        self.mode, self.draw = "well", random.Random(0)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
        with log.open("wb") as file:
            self._moto = subprocess.Popen(words, stdout=file, stderr=file)
        self._behind = ("127.0.0.1", port)
        bucket = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                bucket.pass_on(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

        self._front = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._front.serve_forever, daemon=True).start()
        self.direct = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.put(f"{self.direct}/titer", timeout=2).raise_for_status()
                break
            if time.monotonic() > end:
                raise SystemExit(f"moto's server does not answer; see {log}")
            time.sleep(0.2)

    def environment(self, direct: bool = False) -> dict[str, str]:
        """Return what clients of it find in their environment."""
        port = self._front.server_address[1]
        return {
            "AWS_ENDPOINT_URL": self.direct if direct else f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "one",
            "AWS_SECRET_ACCESS_KEY": "two",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def fail(self, how: str) -> Callable[[], object]:
        """Fail from now on: `away` takes no connection, `error` answers 500, `cut` breaks off in the middle of answers."""
        self.mode = how
        return lambda: setattr(self, "mode", "well")

    def pass_on(self, client: socket.socket) -> None:
        """Let a connection's bytes through, as long as nothing changes about how well the server is."""
        mode = self.mode
        if mode == "error":
            with contextlib.suppress(OSError):
                client.recv(1 << 16)
                client.sendall(REFUSAL)
        elif mode != "away":
            left = self.draw.randrange(1000) if mode == "cut" else sys.maxsize
            with contextlib.suppress(OSError), socket.create_connection(self._behind) as behind:
                self._pump(client, behind, mode, left)
        if mode != "error":  # broken off, not closed in good order
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    def _pump(self, client: socket.socket, behind: socket.socket, mode: str, left: int) -> None:
        while self.mode == mode:
            for ready in select.select([client, behind], [], [], 0.1)[0]:
                data = ready.recv(1 << 16)
                if ready is behind:
                    data = data[:left]
                    left -= len(data)
                if not data:
                    return
                (client if ready is behind else behind).sendall(data)

    def remove(self) -> None:
        """End it."""
        self._front.shutdown()
        self._moto.kill()
        self._moto.wait()


class Outages:
    """What happens to a world beside kills. Each begins at once and ends by itself; of each thing one at a time.

    Args:
        world: The world.
        draw: Draws them.
        longest: Most seconds of one.
        postgres: Its database, where it is PostgreSQL's.
        disks: File systems of its store and its data, where these have their own.
        bucket: Its store, where it is one.
    """

    def __init__(
        self,
        world: World,
        draw: random.Random,
        longest: float,
        postgres: Postgres | None,
        disks: dict[str, Disk],
        bucket: Bucket | None,
    ) -> None:
        self.world, self.draw, self.longest = world, draw, longest
        self.kinds: dict[tuple[str, str], Begin] = {
            ("clock", "clock jumps"): self._jump,
            ("process", "process frozen"): self._freeze,
        }
        for name, disk in disks.items():
            self.kinds[name, f"{name} full"] = disk.fill
        if "store" in disks:
            self.kinds["store", "store read-only"] = disks["store"].lock
            self.kinds["store", "store not mounted"] = disks["store"].go
        if bucket:
            self.kinds |= {
                ("store", f"store: {how}"): lambda how=how: bucket.fail(how)  # type: ignore[misc]
                for how in ("away", "error", "cut")
            }
        else:
            self.kinds["store", "store: I/O errors"] = self._fail
        if postgres:
            self.kinds |= {
                ("database", "database restarts"): lambda: postgres.restart(draw.uniform(0, 5)),
                ("database", "connections closed"): postgres.close_connections,
                ("database", "database refuses"): postgres.refuse,
                ("database", "database frozen"): postgres.freeze,
            }
        self._ends: dict[str, threading.Timer] = {}

    def one(self) -> str | None:
        """Let one begin; says which."""
        free = [kind for kind in self.kinds if kind[0] not in self._ends or not self._ends[kind[0]].is_alive()]
        if not free:
            return None
        thing, name = self.draw.choice(free)
        undo = self.kinds[thing, name]()
        if undo is not None:
            seconds = self.draw.uniform(1, FROZEN if thing == "process" else self.longest)
            self._ends[thing] = threading.Timer(seconds, undo)
            self._ends[thing].start()
        return name

    def end(self) -> None:
        """Wait until all are over."""
        for timer in self._ends.values():
            timer.join()

    def _jump(self) -> None:
        offset = self.draw.choice((-1, 1)) * self.draw.choice((3600, 86_400, 31_536_000)) * self.draw.uniform(1, 10)
        (self.world.folder / "clock" / "offset").write_text(str(offset))

    def _fail(self) -> Callable[[], object]:
        failing = self.world.folder / "clock" / "failing"
        failing.touch()
        return failing.unlink

    def _freeze(self) -> Callable[[], object]:
        _, pid = self.draw.choice(self.world.targets())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        return go_on
