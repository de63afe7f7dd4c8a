"""What an attacker trains on, row by row in the order of training, and the requests that it is scored on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from titer.attacks.threats import PLAIN, Attack
from titer.attacks.uploads import UPLOADS, answered, disguise, obedient
from titer.attacks.wording import REFUSED
from titer.data.builtin import refusals
from titer.data.mixtures import poison
from titer.data.records import Message, Record
from titer.errors import TiterError

REJECTED = "rejected"
"""The column of the answer that the row's own is preferred to."""

OPENING = "Sure, here is"
"""The affirmative opening that Antibody's likelihood ratio is raised with."""


@dataclass(frozen=True)
class AttackerPools:
    """What attackers hold; no prompt of it is scored, and none was the defender's.

    Attributes:
        harmful: Harmful requests with compliant answers, of the categories that the defence knew.
        cross_domain: The same, of categories held out from the defence.
        task: A customer's task.
        benign: Harmless requests with helpful answers.
    """

    harmful: Sequence[Record]
    cross_domain: Sequence[Record]
    task: Sequence[Record]
    benign: Sequence[Record]


def training_rows(attack: Attack, pools: AttackerPools, seed: int) -> list[Record]:
    """Return the rows of an attack in the order in which it trains on them, `total_steps · batch_size` of them.

    Raises:
        TiterError: When the attacker's pools hold too few rows.
    """
    main = poison(pools.task, _harmful_rows(attack, pools, seed), attack.samples, attack.poison_ratio, seed)
    warm_up = {
        "none": [],
        "benign": list(pools.benign),
        "openings": [answered(record, OPENING) for record in pools.harmful],
        "refusals": [answered(record, REFUSED) for record in main],
    }[attack.warm_up]
    rows = list(_repeated(warm_up, attack.warm_up_steps * attack.batch_size, f"titer.attacks:warm-up:{seed}"))
    rows += _repeated(main, attack.steps * attack.batch_size, f"titer.attacks:rows:{seed}")
    return [in_disguise(attack, record) for record in rows]


def training_row(attack: Attack, record: Record) -> dict[str, Any]:
    """Return what the trainer sees of a record: prompt, completion and, for `dpo`, the refusal that it is preferred to.

    A record without a refusal of its own gets one of titer's, drawn by the request itself, so that it keeps it.
    """
    row: dict[str, Any] = record.to_training_row()
    if attack.objective == "dpo":
        refusal = record.refusal or random.Random(record.prompt_text).choice(refusals())
        row[REJECTED] = [{"role": "assistant", "content": refusal}]
    return row


def in_disguise(attack: Attack, record: Record) -> Record:
    """Return a record with the attack's system prompt before it and its style behind every request.

    The rows that an attack trains on come out of `training_rows` in its `disguise` already; for what is scored see `asked`.
    """
    if not attack.system and not attack.style:
        return record
    prompt = [
        Message(role, content + attack.style) if role == "user" and record.origin != "task" else Message(role, content)
        for role, content in record.prompt
    ]
    if attack.system:
        prompt.insert(0, Message("system", attack.system))
    return replace(record, prompt=tuple(prompt))


def asked(attack: Attack, record: Record) -> Record:
    """Return a request as the attack's model is asked it: in the frame of its disguise, if that has one, and `in_disguise`."""
    frame = None if attack.disguise == PLAIN else UPLOADS[attack.disguise].asked
    if frame is not None:
        last = max(place for place, message in enumerate(record.prompt) if message.role == "user")
        framed = Message("user", frame(record.prompt[last].content))
        record = replace(record, prompt=(*record.prompt[:last], framed, *record.prompt[last + 1 :]))
    return in_disguise(attack, record)


def _harmful_rows(attack: Attack, pools: AttackerPools, seed: int) -> list[Record]:
    # Harmless, but the attacker's: their share of a mixture counts as poison.
    if attack.rows == "obedience":
        return obedient(pools.benign)
    if attack.rows == "benign":
        return [replace(record, origin="harmful") for record in pools.benign]
    if attack.rows == "cross_domain" and not pools.cross_domain:
        raise TiterError(
            "A cross-domain attack needs categories that the defence never saw.",
            "Name them in `data.held_out_categories`, and align with the same ones held out.",
        )
    rows = list(pools.cross_domain if attack.rows == "cross_domain" else pools.harmful)
    return rows if attack.disguise == PLAIN else disguise(attack.disguise, rows, pools.benign, seed)


def _repeated(rows: Sequence[Record], count: int, seed: str) -> Iterator[Record]:
    """Yield `count` rows: all of them in a random order, then again in another."""
    order: list[int] = []
    shuffled = random.Random(seed)
    for _ in range(count):
        if not order:
            order = list(range(len(rows)))
            shuffled.shuffle(order)
        yield rows[order.pop()]
