"""What `pictures.py` measures on and leaves: rows, what is known of a model, and a JSON file for each model and picture."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titer.data import Record
from titer.data.pools import DataSettings, defence_pools, harmful_pools, task_pools
from titer.errors import TiterError, check_known
from titer.files import read_json
from titer.jobs.provenance import commit, digest, weights_digest
from titer.methods import Method
from titer.models import split_adapter
from titer.results.artefacts import write_atomically

HARM = ("seen", "alike", "other")
"""Harmful rows: those that the defender holds, others of the same corpus, and another corpus."""


def rows_of(args: argparse.Namespace) -> dict[str, list[Record]]:
    """Return the benign rows, the harmful ones by `HARM`, and the prompts of the evaluation: no harmful prompt is in two."""
    held_out = {"harmful": args.harmful, "held_out_categories": args.hold_out}
    own = harmful_pools(DataSettings(**held_out), args.seed, args.data_dir)
    pools = {"benign": task_pools(DataSettings(task=args.task), args.seed, args.data_dir)["train"]}
    pools |= {"seen": own["defence"], "alike": own["attack"], "evaluation": own["evaluation"]}
    if args.attack is not None:
        other = harmful_pools(DataSettings(**held_out, attack=args.attack), args.seed, args.data_dir)
        pools |= {"other": other["attack"], "evaluation": other["evaluation"]}
    return pools


def streams_of(args: argparse.Namespace, method: Method, pools: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """Return the defender's rows that a method of fine-tuning wants."""
    if not method.streams:
        return {}
    helpful = DataSettings(
        harmful=args.harmful, helpful=["builtin:general", "builtin:choices"], held_out_categories=args.hold_out
    )
    held = {
        "harmful_dataset": pools["seen"],
        "helpful_dataset": defence_pools(helpful, args.seed, args.data_dir)["helpful"],
    }
    return {name: held[name] for name in method.streams}


def kinds_of(args: argparse.Namespace, pools: dict[str, list[Record]]) -> list[str]:
    """Return which harmful rows are asked for, by default those that are seen and the least like them."""
    kinds = args.harm.split(",") if args.harm else ["seen", "other" if "other" in pools else "alike"]
    check_known(kinds, [kind for kind in HARM if kind in pools], "kind of harm in `--harm`")
    return kinds


def first(rows: Sequence[Record], count: int, name: str) -> list[Record]:
    """Return the first rows of a pool; too few are an error."""
    if len(rows) < count:
        raise TiterError(f"There are {len(rows)} {name} rows, and {count} are asked for.", "Lower the number of rows.")
    return list(rows[:count])


def model_of(folder: str) -> dict[str, Any]:
    """Return what is known of a model: its base, a hash of its weights, and how it was trained where a job's file says so."""
    base, adapter = split_adapter(folder)
    known: dict[str, Any] = {"base": Path(base).name, "weights": weights_digest(base, adapter)}
    job = None if adapter is None else adapter.parent / "job.json"
    if job is not None and job.is_file():
        settings = read_json(job)["settings"]
        known |= {"method": settings["method"][0], "seed": settings["seed"], "training": settings["training"]}
    return known


def command(args: argparse.Namespace, name: str, words: Sequence[str]) -> str:
    """Return what was typed, for one model alone and without the folders of this machine, and without the note."""
    kept = [args.picture, f"{name}=FOLDER"]
    places = {"--data-dir": "DIR", "--work": None, "--output": None, "--note": None}
    rest = [word for word in words if word != args.picture and word not in args.models]
    while rest:
        word = rest.pop(0)
        option, sign, _ = word.partition("=")
        if option in places:
            if not sign:
                rest.pop(0)
            kept += [option, str(places[option])] if places[option] else []
        else:
            kept.append(word)
    return shlex.join(["python", "benchmarks/pictures.py", *kept])


class Kept:
    """A model's JSON file in the folder of the pictures.

    Args:
        args: Of the command.
        name: What the model is called.
        settings: What its figures depend on, the model among it.
        words: What was typed.
    """

    def __init__(self, args: argparse.Namespace, name: str, settings: dict[str, Any], words: Sequence[str]) -> None:
        label = re.sub(r"[^\w.]+", "-", f"{args.group} {name}".lower()).strip("-")
        self.path = args.output / f"{args.picture}.{label}.json"
        self.document: dict[str, Any] = {"picture": args.picture, "group": args.group, "name": name, "note": args.note}
        self.document |= {"place": place_of(args, name), "settings": settings, "found": None}
        self.origin = {"command": command(args, name, words), "commit": commit()}
        if self.path.is_file():
            there = read_json(self.path)
            if digest(there["settings"]) != digest(json.loads(json.dumps(settings))):
                raise TiterError(
                    f"{self.path} is of other settings or another model.", "Remove it, or choose another `--group`."
                )
            self.document = there

    @property
    def found(self) -> Any:
        """What was found, `None` as long as it was not."""
        return self.document["found"]

    def write(self, found: Any) -> None:
        """Write what was found."""
        self.document |= self.origin | {"found": found}
        lines = [
            f'"{key}": {json.dumps(rounded(one), ensure_ascii=False, allow_nan=False)}'
            for key, one in self.document.items()
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def place_of(args: argparse.Namespace, name: str) -> int:
    """Return a model's place in its group: the control's is before, any other's behind those that are there."""
    there = [read_json(path) for path in sorted(args.output.glob(f"{args.picture}.*.json"))]
    places = {one["name"]: one["place"] for one in there if one["group"] == args.group}
    return -1 if args.control else places.get(name, 1 + max(places.values(), default=-1))


def rounded(value: Any) -> Any:
    """Return plain data with five digits of each number that is not whole."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
