"""Hostile clients: requests made by schemathesis from the OpenAPI document, and by Hypothesis, against a running service.

A stranger with a key of organisation `two` has the ids of all that `one` put there. Nothing may be answered with 500 and more, no
answer may hold what `one` put there and nothing of it may change, no text may become a control token, and no file may appear under
a name that a client chose or stay in the store without a row that names it. Then come uploads of a gigabyte, compressed zeros, and
clients that send, or read, a byte a second (`service_bulk`).

Examples:
    python benchmarks/service_hostile.py --folder hostile --requests 10000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from postgres import Postgres
from service_bulk import large, slow
from service_world import Client, World, small_model

from titer.jobs.provenance import environment
from titer.models import Template, load_tokenizer

MARK = "zq-titer-mark-one-zq"
"""Stands in all that organisation `one` puts into the service, and in nothing that `two` says."""
STRAY = "zqstray"
"""Stands in all names that `two` gives to files."""
ROWS = 12
KINDS = {
    "file_id": "file",
    "upload_id": "upload",
    "fine_tuning_job_id": "job",
    "job_id": "job",
    "audit_id": "audit",
    "key_id": "key",
    "model": "model",
}
"""Which of an organisation's things a parameter of a path names."""
PAGES = (
    "/v1/files/{}", "/v1/files/{}/content", "/v1/fine_tuning/jobs/{}", "/v1/fine_tuning/jobs/{}/events",
    "/v1/fine_tuning/jobs/{}/checkpoints", "/v1/models/{}", "/titer/v1/audits/{}", "/titer/v1/jobs/{}/safety",
    "/v1/files?after={}", "/v1/files?purpose={}", "/v1/fine_tuning/jobs?after={}", "/v1/fine_tuning/jobs?limit={}",
    "/v1/fine_tuning/jobs?metadata[{}]=x", "/titer/v1/appeals?file_id={}", "/titer/v1/audit-log?before={}",
    "/titer/v1/audit-log?action={}", "/console/files/{}", "/console/jobs/{}", "/console/audits/{}", "/console/chat?model={}",
    "/console/log?q={}", "/console/{}",
)  # fmt: skip
FREELY: dict[str, Any] = {
    "database": None,
    "deadline": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}
"""Settings of Hypothesis: nothing is learnt, shrunk or timed."""


class Watch:
    """Looks at each answer.

    Attributes:
        statuses: How often each status came.
        wrong: What must not be.
    """

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []

    @property
    def answered(self) -> int:
        """How many answers there were."""
        return sum(self.statuses.values())

    def saw(self, what: str, status: int, body: bytes) -> None:
        """Take note of an answer."""
        self.statuses[status] += 1
        if status >= 500 and not (status == 503 and what.endswith("/titer/v1/ready")):
            self.wrong.append(f"{what}: {status} {body[:200]!r}")
        if MARK.encode() in body:
            self.wrong.append(f"{what}: {status} holds another organisation's data")
        if status >= 400 and b'"error"' not in body and b"<html" not in body.lower():
            self.wrong.append(f"{what}: {status} without an error body: {body[:200]!r}")

    def check(self, holds: bool, what: str) -> None:
        """Note what must not be."""
        if not holds:
            self.wrong.append(what)


def things_of(client: Client, org: int, mark: str) -> dict[str, str]:
    """Let an organisation have a file, an upload, a job, an audit and a key, each marked; returns their ids."""
    line = {"messages": [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]}
    rows = (json.dumps(line) + "\n").encode() * ROWS
    form: dict[str, Any] = {"files": {"file": (f"{mark}.jsonl", rows)}, "data": {"purpose": "fine-tune"}}
    file = client.request("POST", "/v1/files", org, **form)["id"]
    asked = {"model": "tiny", "training_file": file, "metadata": {"note": mark}, "suffix": "mark"}
    job = client.request("POST", "/v1/fine_tuning/jobs", org, json=asked)["id"]
    part = {"filename": f"{mark}.jsonl", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/jsonl"}
    upload = client.request("POST", "/v1/uploads", org, json=part)["id"]
    audit = client.request("POST", "/titer/v1/audits", org, json={"file_id": file})["id"]
    client.request("POST", f"/titer/v1/files/{file}/appeals", org, json={"rows": [0], "reason": mark})
    key = client.request("POST", "/titer/v1/keys", org, json={"name": mark})["id"]
    return {"file": file, "job": job, "upload": upload, "audit": audit, "key": key, "model": f"ft:tiny:one:mark:{job}"}


def seen_by_one(client: Client, ids: dict[str, str]) -> list[Any]:
    """Return what its owner sees of the things of `one` that no worker changes; a job that ends leaves a file of its own."""
    paths = ("/v1/files?purpose=fine-tune", "/titer/v1/keys?limit=100", "/titer/v1/appeals", f"/v1/files/{ids['file']}")
    found: list[Any] = [client.request("GET", path, 0) for path in paths]
    for key in found[1]["data"]:
        del key["used_at"]
    jobs = client.request("GET", "/v1/fine_tuning/jobs", 0)["data"]
    return [*found, [(job["id"], job["metadata"], job["titer"]["wish"]) for job in jobs]]


def by_schema(client: Client, theirs: dict[str, str], count: int, number: int, watch: Watch) -> None:
    """Send requests that the OpenAPI document allows, and as many that it does not, with ids of both organisations or none."""
    address, key = client.address, client.keys[1]
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", headers={"Authorization": f"Bearer {key}"})
    operations = [result.ok() for result in schema.get_all_operations()]
    draw = random.Random(number)

    def attack(operation: Any, mode: schemathesis.GenerationMode, own: dict[str, str]) -> None:
        @seed(number)
        @given(case=operation.as_strategy(generation_mode=mode), whose=st.sampled_from(("nobody", "one", "two")))
        @settings(max_examples=-(-count // (2 * len(operations))), **FREELY)
        def send(case: Any, whose: str) -> None:
            if whose != "nobody" and case.path_parameters:
                ids = own if whose == "two" else theirs
                # One of the right kind, or of any.
                case.path_parameters = {
                    name: ids[KINDS[name]] if draw.random() < 0.8 else draw.choice(list(ids.values()))
                    for name in case.path_parameters
                }
            try:
                answer = case.call(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            except (UnicodeError, ValueError):  # what no client can send
                return
            watch.saw(f"{case.method} {case.formatted_path}", answer.status_code, answer.content)

        with contextlib.suppress(Unsatisfiable):  # without parameters there is nothing that could be wrong
            send()

    for operation in operations:
        own = things_of(client, 1, "own")
        for mode in schemathesis.GenerationMode:
            attack(operation, mode, own)
        with contextlib.suppress(httpx.HTTPStatusError):  # over already
            client.request("POST", f"/v1/fine_tuning/jobs/{own['job']}/cancel", 1)


def signed_in(client: Client, org: int) -> httpx.Client:
    """Return a browser that is signed in to the console, which has the key too."""
    browser = httpx.Client(base_url=client.address, timeout=60)
    found = re.search(r'name="csrf" value="(\w+)"', browser.get("/console/sign-in").text)
    token = "" if found is None else found[1]
    browser.post("/console/sign-in", data={"csrf": token, "key": client.keys[org]})
    if browser.get("/console").status_code != 200:
        raise SystemExit("The console lets nobody in.")
    browser.headers["Authorization"] = f"Bearer {client.keys[org]}"
    return browser


TEXTS = st.text(max_size=40) | st.lists(
    st.sampled_from(
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "end|>", "system\n", "</s>", "\ue000", "\n", " ", "a"]
    ),
    max_size=8,
).map("".join)
NAMES = st.one_of(
    st.text(max_size=60).map(lambda name: name + STRAY),
    st.sampled_from(
        [
            f"../../etc/{STRAY}", f"a/{STRAY}.jsonl", f"..\\..\\{STRAY}", f"\x00{STRAY}", f"%2e%2e%2f{STRAY}", f"/tmp/{STRAY}",
            f"-rf {STRAY}", f"{STRAY}\r\nX: y", "CON", ".", "..", "", "a" * 5000,
        ]
    ),
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXTS | st.just("\ud800")}
)
LINE = st.one_of(
    st.builds(lambda found: json.dumps({"messages": found}).encode(), st.lists(MESSAGE, max_size=4)),
    st.binary(max_size=80),
    st.sampled_from(
        [b"", b"{}", b"[]", b"null", b'{"messages": NaN}', b"[" * 3000, b'{"a":1,"a":2}', b"\xff\xfe", b"9" * 5000]
    ),
)
PAIR = st.builds(
    lambda asked, said: json.dumps(
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
    ).encode(),
    TEXTS.map(lambda text: f"a{text}"), TEXTS.map(lambda text: f"b{text}"),
)  # fmt: skip
"""Right rows, of odd texts."""
LINES = st.lists(LINE, max_size=14) | st.lists(PAIR, min_size=10, max_size=14)


def strange(ids: dict[str, str]) -> st.SearchStrategy[str]:
    """Return ids and values that nobody should ask for."""
    known = ["../x", "..", "%2e%2e%2f", "'; DROP TABLE jobs; --", "\x00", "ft:a:b:c", "-1", "1e9", "9" * 400, "tiny"]
    return st.text(max_size=40) | st.sampled_from([*ids.values(), *known])


def by_hand(client: Client, ids: dict[str, str], count: int, number: int, watch: Watch, template: Template) -> None:
    """Upload arbitrary bytes under arbitrary names, ask for arbitrary ids, and chat in control tokens."""
    browser = signed_in(client, 1)

    def upload(name: str, data: bytes) -> httpx.Response:
        answer = browser.post("/v1/files", files={"file": (name, data)}, data={"purpose": "fine-tune"})
        if answer.status_code == 200:
            file = f"/v1/files/{answer.json()['id']}"
            watch.check(browser.get(f"{file}/content").content == data, f"{name!r} is not what was uploaded")
            browser.delete(file).raise_for_status()
        return answer

    def chat(asked: list[dict[str, str]]) -> httpx.Response:
        body = json.dumps({"model": "tiny", "messages": asked, "max_tokens": 1}, ensure_ascii=False)
        answer = browser.post("/v1/chat/completions", content=body.encode())
        if answer.status_code == 200:
            told, expected = answer.json()["usage"]["prompt_tokens"], len(template.prompt_ids(asked))
            watch.check(told == expected, f"the prompt of {asked!r} has {told} tokens, not {expected}")
        return answer

    @seed(number)
    @given(name=NAMES, lines=LINES, text=TEXTS, other=strange(ids), page=st.sampled_from(PAGES), raw=st.booleans())
    @settings(max_examples=count, **FREELY)
    def send(name: str, lines: list[bytes], text: str, other: str, page: str, raw: bool) -> None:
        shown = other.encode("unicode_escape").decode().replace(" ", "") if raw else quote(other, safe="")
        path = client.address.encode() + page.format(shown).encode()
        job = {"model": other, "training_file": other, "suffix": name, "metadata": {other: name}}
        asked = [{"role": "user", "content": f"a{text}"}]
        form = {"name": name, "file_id": other, "model": other, "reason": name, "rows": other}
        tries: list[tuple[str, Callable[[], httpx.Response]]] = [
            ("upload", lambda: upload(name, b"\n".join(lines))),
            ("page", lambda: browser.get(httpx.URL(path.decode()))),
            ("delete", lambda: browser.delete(f"{client.address}/v1/{'files' if raw else 'models'}/{shown}")),
            ("job", lambda: browser.post("/v1/fine_tuning/jobs", json=job)),
            ("chat", lambda: chat(asked)),
            ("chat elsewhere", lambda: browser.post("/v1/chat/completions", json={"model": other, "messages": asked})),
            ("form", lambda: browser.post(f"/console/files/{shown}/delete", data=form)),
            ("header", lambda: browser.get("/v1/models", headers={"Authorization": b"Bearer " + other.encode()})),
        ]  # fmt: skip
        for what, ask in tries:
            # What no client can send, or this one does not.
            with contextlib.suppress(UnicodeError, httpx.InvalidURL, httpx.LocalProtocolError, ValueError):
                try:
                    answer = ask()
                except httpx.ReadError:  # of a connection that stood idle and was closed as it was used again
                    answer = ask()
                watch.saw(f"{what} {name!r} {other!r} {page}", answer.status_code, answer.content)

    send()
    browser.close()


def no_control_tokens(template: Template, count: int, number: int, watch: Watch) -> None:
    """Look whether a text, among control tokens or made of them, adds one to a conversation."""
    control = set(template.tokenizer.added_tokens_encoder.values())

    def controls(text: str) -> int:
        return sum(token in control for token in template.prompt_ids([{"role": "user", "content": text}]))

    plain = controls("a")

    @seed(number)
    @given(text=TEXTS)
    @settings(max_examples=count, **FREELY)
    def look(text: str) -> None:
        watch.check(controls(f"a{text}") == plain, f"{text!r} adds a control token")

    look()


def left_behind(world: World, postgres: Postgres | None) -> list[str]:
    """Return files under names that a client chose, those of the store that no row names, and rows whose files are not there."""
    found = subprocess.run(
        ["find", "/", "-xdev", "-name", f"*{STRAY}*"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if postgres is not None:
        return found
    with contextlib.closing(sqlite3.connect(world.folder / "data" / "titer.db")) as database:
        query = "SELECT place FROM files UNION SELECT place FROM parts UNION SELECT place FROM removals"
        named = {row[0] for row in database.execute(query)}
        kept = {row[0] for row in database.execute("SELECT place FROM files UNION SELECT place FROM parts")}
    there = {
        str(path.relative_to(world.store))
        for kind in ("files", "parts")
        for path in (world.store / kind).rglob("*")
        if path.is_file()
    }
    return [*found, *(f"no row names {place}" for place in there - named), *(f"no {place}" for place in kept - there)]


def main() -> None:
    """Attack a server of this machine, and say what it answered."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes; is emptied")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=2**30, help="of the large uploads")
    parser.add_argument("--slow", type=float, default=75, help="seconds of the slow clients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", action="store_true", help="on PostgreSQL")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found")
    args = parser.parse_args()
    folder = args.folder.absolute()
    postgres = Postgres(Path(f"/tmp/titer-hostile-{args.seed}-{id(args):x}")) if args.database else None
    model = small_model(folder.with_name(f"{folder.name}-model"))
    world = World(folder, model, postgres.new() if postgres else None, 1)
    watch, template = Watch(), Template(load_tokenizer(str(model)))
    try:
        world.ensure()
        world.wait()
        client = Client(world)
        ids = things_of(client, 0, MARK)
        before = seen_by_one(client, ids)
        by_schema(client, ids, args.requests // 2, args.seed, watch)
        by_schema_count = watch.answered
        by_hand(client, ids, args.requests // 16, args.seed, watch, template)
        no_control_tokens(template, args.requests // 4, args.seed, watch)
        watch.check(seen_by_one(client, ids) == before, "something of `one` was changed")
        by_hand_count = watch.answered - by_schema_count
        sizes = large(client, world, args.bytes, watch.saw)
        waits = slow(client, args.slow, watch.check)
        strays = left_behind(world, postgres)
    finally:
        world.stop()
        if postgres:
            postgres.remove()
    result = {
        "benchmark": "service_hostile", "database": "postgresql" if postgres else "sqlite", "seed": args.seed,
        "by_schema": by_schema_count, "by_hand": by_hand_count, "statuses": dict(sorted(watch.statuses.items())),
        "wrong": watch.wrong[:100], "wrong_in_all": len(watch.wrong), "left_behind": strays,
        "large": sizes, "slow": waits, **environment(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if watch.wrong or strays else 0)


if __name__ == "__main__":
    main()
