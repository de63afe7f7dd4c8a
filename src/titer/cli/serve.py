"""`titer serve`: an OpenAI-compatible fine-tuning endpoint on local weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.common import in_range, path
from titer.errors import TiterError

if TYPE_CHECKING:
    from titer.service.context import Service
    from titer.service.policy import Policy

NAME = "serve"
HELP = "Serve OpenAI's fine-tuning API on local weights: uploads are audited before, models measured after."
EXAMPLES = """
Examples:

`titer keys create --data service/ --org mine` — makes the folder, the organisation and a key, which clients need

`titer serve --data service/` — the embedded model, on this machine alone, with one worker

`titer serve --data service/ --model small=models/small --policy policy.yaml --port 8080`

`titer serve --data service/ --host 0.0.0.0 --no-worker --database postgresql://titer@db/titer --store s3://titer/store`

Clients take `http://127.0.0.1:8000/v1` as `base_url`. Behind a proxy that speaks TLS: `--allow-host titer.example.org --proxy 127.0.0.1`.
URLs with passwords go by `TITER_DATABASE` and `TITER_STORE`. Traces go where `OTEL_EXPORTER_OTLP_ENDPOINT` says.
"""
Data = Annotated[
    Path,
    typer.Option(
        "--data", parser=path, metavar="PATH", help="Folder of the service on this machine; made if it is not there."
    ),
]
Database = Annotated[
    str | None,
    typer.Option("--database", envvar="TITER_DATABASE", help="URL of the database; by default SQLite in the folder."),
]
StoreUrl = Annotated[
    str | None,
    typer.Option("--store", envvar="TITER_STORE", help="URL of the artefact store; by default in the folder."),
]


def command(
    data: Data,
    port: Annotated[
        int, typer.Option("--port", help="Where to listen; 0 takes any that is free.", callback=in_range)
    ] = 8000,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but this machine's own needs a key to be there.")
    ] = "127.0.0.1",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=PATH",
            help="A model that may be fine-tuned, beside the policy's: a folder or a hub id, with the name that clients "
            "know it by or its own. May be given several times.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            parser=path,
            metavar="PATH",
            help="What holds for uploads, trainings and models from now on (YAML).",
        ),
    ] = None,
    database: Database = None,
    store: StoreUrl = None,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Take jobs only; `titer worker` does them, here or elsewhere.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Name by which a proxy on this machine asks. May be given several times."),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option("--proxy", help="Address of a proxy whose X-Forwarded-For is true. May be given several times."),
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from contextlib import nullcontext

    from titer import progress
    from titer.service import retention, server, tracing
    from titer.service.app import create_app
    from titer.service.context import open_service
    from titer.service.headers import is_loopback

    service = open_service(data, database, store)
    try:
        store_policy(service, policy, model or [])
        if not is_loopback(host) and not _has_key(service):
            raise TiterError(
                f"Nobody has a key, and on {host} other machines would reach the server.",
                f"First: titer keys create --data {data} --org NAME",
            )
        tracing.start("server")
        bound = server.bind(host, port)
        urls = {name: url for name, url in (("TITER_DATABASE", database), ("TITER_STORE", store)) if url is not None}
        worker = nullcontext() if no_worker else server.worker(["worker", "--data", str(data)], urls)
        ready = f"listening on {server.address_of(bound)}"
        with progress.shown(None), worker, retention.sweeping(service):
            server.run(create_app(service, allow_host or ()), bound, lambda: print(ready, flush=True), proxy or ())
    finally:
        service.close()


def existing(data: Path, database: str | None) -> Service:
    """Return a service that is there; looking at one must not make another where a name is misspelt.

    Raises:
        TiterError: For a folder without one.
    """
    from titer.service.context import open_service

    if database is None and not (data / "titer.db").is_file():
        raise TiterError(f"There is no service in {data}.", "Name its --data folder, or its --database.")
    return open_service(data, database)


def _has_key(service: Service) -> bool:
    """Whether there is a key that opens anything."""
    from sqlalchemy import select

    from titer.service import keys
    from titer.service.tables import Key

    with service.database.reading() as session:
        return any(keys.is_good(key) for key in session.scalars(select(Key)))


def store_policy(service: Service, file: Path | None, models: list[str]) -> None:
    """Let a policy file hold, and add models to it. Without either, the policy that held goes on to."""
    from sqlalchemy import func, select

    from titer.files import read_text
    from titer.service import policy
    from titer.service.tables import PolicyVersion

    with service.database.writing() as session:
        given = session.scalar(select(func.count()).select_from(PolicyVersion))
        text = policy.as_yaml(policy.current(session)) if file is None else read_text(file)
        held = policy.parse(text, "policy" if file is None else str(file))
        # The embedded model is for where nobody names one.
        named = {} if file is None and not given else held.models
        added = dict(_named(model) for model in models)
        wanted = {**named, **added} or held.models
        if wanted != held.models:
            text = policy.as_yaml(_with_models(held, wanted))
        elif file is None and given:
            return
        policy.replace(session, text, "server")


def _with_models(held: Policy, models: dict[str, str]) -> Policy:
    import dataclasses

    return dataclasses.replace(held, models=models)


def _named(text: str) -> tuple[str, str]:
    """Return the name that clients know a model by, and where it is: of `NAME=PATH`, or of `PATH` alone.

    Raises:
        TiterError: For a folder that is not there, and a name that could not stand in the id of a fine-tuned model.
    """
    from titer.service.identifiers import SUFFIX

    name, equals, place = text.partition("=")
    if not equals:
        name, place = "", text
    if not place.strip():
        raise TiterError(f"`--model {text}` names no model.", "Write --model NAME=PATH, or a PATH alone.")
    folder = Path(place).expanduser()
    if folder.exists():
        place = str(folder.absolute())
    elif place.startswith(("/", "~", ".")) or place.count("/") > 1:
        raise TiterError(
            f"`--model {text}`: there is no folder {place}.", "Name a folder, a hub id or the embedded model."
        )
    name = name if equals else re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(place).name).strip("-._")[:64]
    if not SUFFIX.fullmatch(name):
        raise TiterError(f"`{name}` is no name of a model.", "Up to 64 letters, digits, `-`, `_` and `.`: NAME=PATH.")
    return name, place
