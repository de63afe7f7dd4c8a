"""What is left of a job whose process dies, or whose store or database fails, at each single moment at which it writes.

Where `service_faults.py` draws moments, this goes through all of them: a job on a small random model is done in this process,
which ends (`before`, `behind`) or meets an error (`fails`: EIO of the store; `unanswered`: a commit that is done, and says that
it is not) once at each write, and is taken up again. Writes are those of the store (a file, a folder, a removal) and the commits
that say something; each comes once by what it is of. In the end the job must have succeeded, its adapters be, byte for byte,
those of the same job undisturbed, and its events say the same.

Examples:
    python benchmarks/service_moments.py --folder moments --ways before behind
    python benchmarks/service_moments.py --folder moments --json moments.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "service"))

from service_world import POLICY, small_model
from sqlalchemy import event, select
from working import adapter_of, add_job, done, job_of, messages_of, models_of

from titer.jobs.provenance import environment
from titer.service import policy
from titer.service.context import Service, open_service
from titer.service.pipeline import do
from titer.service.queue import Queue
from titer.service.store import Store
from titer.service.tables import Event, File, Job, Organisation

WAYS = ("before", "behind", "fails", "unanswered")
PASSING = re.compile("resumed|goes on behind|cannot go on now|could not be kept")
"""What is said of interruptions themselves."""


class Killed(BaseException):
    """The process dies here."""


class Moments:
    """Each write of a job, at which it is disturbed once.

    Args:
        service: The service.
        way: One of `WAYS`.
    """

    def __init__(self, service: Service, way: str) -> None:
        self.service, self.way = service, way
        self.seen: set[tuple[str, ...]] = set()
        self.at_work, self.said = False, list[str]()

    @contextlib.contextmanager
    def of(self, *what: str) -> Iterator[None]:
        """Disturb a write, which the block does, unless it was before."""
        meant = {"unanswered": what[0] == "commit", "fails": what[0] != "commit"}.get(self.way, True)
        new = self.at_work and meant and what not in self.seen
        if new:
            self.seen.add(what)
        if new and self.way == "before":
            raise Killed
        if new and self.way == "fails":
            raise OSError(5, "Input/output error")
        yield
        if new and self.way == "behind":
            raise Killed
        if new and self.way == "unanswered":
            raise sqlite3.OperationalError("disk I/O error")

    @contextlib.contextmanager
    def disturbed(self) -> Iterator[None]:
        """Let the block meet them."""
        dialect = self.service.database.engine.dialect
        before = {name: getattr(Store, name) for name in ("writing", "put_folder", "remove")}
        commit = dialect.do_commit

        def once(name: str) -> Callable[..., None]:
            def use(store: Store, key: str, *more: Any) -> None:
                with self.of(name, plain(key)):
                    before[name](store, key, *more)

            return use

        @contextlib.contextmanager
        def writing(store: Store, key: str) -> Iterator[Any]:
            with self.of("writing", plain(key)), before["writing"](store, key) as file:
                yield file

        def committed(connection: Any) -> None:
            said, self.said = self.said, []
            with self.of("commit", *said) if said else contextlib.nullcontext():
                commit(connection)

        def heard(mapper: Any, connection: Any, target: Event) -> None:
            self.said.append(plain(target.message))

        Store.writing, Store.put_folder, Store.remove = writing, once("put_folder"), once("remove")  # type: ignore[method-assign, assignment]
        dialect.do_commit = committed
        event.listen(Event, "after_insert", heard)
        try:
            yield
        finally:
            event.remove(Event, "after_insert", heard)
            dialect.do_commit = commit
            for name, value in before.items():
                setattr(Store, name, value)


def plain(text: str) -> str:
    """Return a key or a message without what differs from job to job, and from attempt to attempt."""
    text = re.sub(r"(ftjob|file)-\w+", r"\1", text)
    return re.sub(r"checkpoints/\d+-\d+", "checkpoints/N", re.sub(r": ft:.*", "", text))


def carry_out(service: Service, way: str) -> dict[str, Any]:
    """Do a job undisturbed and one disturbed, and say what differs."""
    straight = add_job(service)
    done(service, straight)
    name, moments, attempts = add_job(service), Moments(service, way), 0
    with moments.disturbed():
        while job_of(service, name).status not in ("succeeded", "failed", "cancelled"):
            with service.database.writing() as session:
                session.scalars(select(Job).where(Job.id == name)).one().status = "queued"
            claim = Queue(service.database, "worker").claim()
            assert claim is not None
            moments.said, moments.at_work, attempts = [], True, attempts + 1
            with contextlib.suppress(Killed):
                do(service, claim)
            moments.at_work = False
    models = [(model.step, adapter_of_model(service, model.place)) for model in models_of(service, name)]
    wanted = [(model.step, adapter_of_model(service, model.place)) for model in models_of(service, straight)]
    told = [[plain(line) for line in messages_of(service, job) if not PASSING.search(line)] for job in (name, straight)]
    with service.database.reading() as session:
        places = set(session.scalars(select(File.place)))
    files = [path for path in (Path(service.store.url) / "files").rglob("file-*") if path.is_file()]
    return {
        "way": way,
        "moments": len(moments.seen),
        "attempts": attempts,
        "status": job_of(service, name).status,
        "same_adapters": models == wanted and adapter_of(service, name) == adapter_of(service, straight),
        "same_events": told[0] == told[1],
        "files_of_no_row": len(files) - len(places),
    }


def adapter_of_model(service: Service, place: str) -> dict[str, bytes]:
    """Return the files of a model."""
    return adapter_of(service, place.removeprefix("models/"))


def main() -> None:
    """Go through all moments in each way."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes; is emptied")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found")
    args = parser.parse_args()
    logging.getLogger("titer").setLevel(logging.ERROR)
    shutil.rmtree(args.folder, ignore_errors=True)
    model = small_model(args.folder.absolute() / "model")
    service = open_service(args.folder / "data")
    with service.database.writing() as session:
        policy.replace(session, POLICY.format(model=model), "script")
        session.add(Organisation(id="org-one", name="one"))
    lines = [carry_out(service, way) for way in args.ways]
    service.close()
    result = {"benchmark": "service_moments", "lines": lines, **environment()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    clean = all(line["status"] == "succeeded" and line["same_adapters"] and line["same_events"] for line in lines)
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
