"""`titer keys`: keys to a service, made where the service is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.common import Json, Verb, in_range
from titer.cli.serve import Data, Database, existing
from titer.errors import TiterError
from titer.text import say, to_json

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from titer.service.tables import Key
    from titer.service.tenants import Tenant

HELP = "Make, list, rotate and take back keys to a fine-tuning service."
EXAMPLES = """
Examples:

`titer keys create --data service/ --org mine` — prints the key, which is shown this once, and makes the organisation if it is new

`titer keys create --data service/ --org mine --scope files --scope jobs --days 90 --name ci`

`titer keys list --data service/`

`titer keys rotate key_… --data service/ --grace 24` — another key; the old one is good for a day more

`titer keys revoke key_… --data service/` — at once

They need no server; one that runs goes by what they did at once.
"""
ACTOR = "command line"

app = typer.Typer(help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode="markdown")
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Of the key: key_…, as `titer keys list` shows it.")]


@contextmanager
def _writing(data: Path, database: str | None, new: bool = False) -> Iterator[Session]:
    from titer.service.context import open_service

    service = open_service(data, database) if new else existing(data, database)
    try:
        with service.database.writing() as session:
            yield session
    finally:
        service.close()


def _owner(session: Session, name: str) -> Tenant:
    """Return the tenant whose key it is: whoever has the database may see all of them."""
    from titer.service import keys
    from titer.service.tenants import Tenant

    org = keys.owner(session, name)
    if org is None:
        raise TiterError(f"There is no key `{name}`.", "`titer keys list` shows those that there are.")
    return Tenant(session, org, ACTOR)


def _show(secret: str, key: Key, as_json: bool) -> None:
    from titer.service import keys

    say(to_json(keys.shown(key, secret)) if as_json else secret)


@app.command("create", cls=Verb, help="Make a key and print it, alone; nobody can find it out again.")
def create(
    data: Data,
    org: Annotated[str, typer.Option("--org", help="Name of the organisation; made if it is not there.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", help="What it is for: files, jobs, models, admin. May be given several times; all by default."
        ),
    ] = None,
    days: Annotated[
        int | None, typer.Option("--days", help="For how many days it is good; for ever by default.", callback=in_range)
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What you call it.")] = "",
    operator: Annotated[
        bool,
        typer.Option(
            "--operator", help="Let the organisation run the server: change the policy. The first one made does."
        ),
    ] = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Make a key."""
    from titer.service import keys
    from titer.service.tables import DAY, now
    from titer.service.tenants import Tenant

    if len(name) > 64:
        raise TiterError("`--name` has more than 64 letters.", "Give it a shorter one.")
    with _writing(data, database, new=True) as session:
        owner = keys.organisation(session, org, ACTOR, operator)
        ends = None if days is None else now() + days * DAY
        secret, key = keys.issue(Tenant(session, owner.id, ACTOR), name, scope or keys.SCOPES, ends)
    _show(secret, key, as_json)


@app.command("list", cls=Verb, help="Show all keys, without the secrets.")
def list_keys(data: Data, database: Database = None, as_json: Json = False) -> None:
    """Show all keys."""
    from titer.service import keys

    with _writing(data, database) as session:
        rows = keys.everyones(session)
    if as_json:
        say(to_json(rows))
        return
    for row in rows:
        state = "revoked" if row["revoked_at"] else "good" if row["good"] else "expired"
        until = f" until {_date(row['expires_at'])}" if row["good"] and row["expires_at"] else ""
        used = f"used {_date(row['used_at'])}" if row["used_at"] else "never used"
        # One line each, so that an id can be taken from it whole.
        say(
            "  ".join(
                [row["id"], row["organisation"], ",".join(row["scopes"]), state + until, used, row["name"]]
            ).rstrip()
        )


@app.command("revoke", cls=Verb, help="Take a key back, at once and for good.")
def revoke(key: KeyId, data: Data, database: Database = None, as_json: Json = False) -> None:
    """Take a key back."""
    from titer.service import keys

    with _writing(data, database) as session:
        found = keys.revoke(_owner(session, key), key)
    say(to_json(keys.shown(found)) if as_json else f"{key} is taken back.")


@app.command(
    "rotate", cls=Verb, help="Make a key like another one, and print it alone; the old one ends after a while."
)
def rotate(
    key: KeyId,
    data: Data,
    grace: Annotated[
        int, typer.Option("--grace", help="For how many hours the old one is good still.", callback=in_range)
    ] = 24,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Make a key like another one."""
    from titer.service import keys
    from titer.service.refusals import Refused

    with _writing(data, database) as session:
        try:
            secret, heir = keys.rotate(_owner(session, key), key, grace * keys.HOUR)
        except Refused as error:
            raise TiterError(error.message) from None
    _show(secret, heir, as_json)


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
