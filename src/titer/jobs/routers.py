"""What a served guard's training finds before it begins and leaves when it is done, beside the adapter: `router/`, `router.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from titer.data.records import Record
from titer.files import read_json
from titer.infer.routing import write_routing
from titer.infer.serving import Serving, read_serving, refuse_routed, write_serving
from titer.jobs.base_model import merged_model
from titer.methods import Routed
from titer.methods.repair.adapters import of_weights, read_adapter, write_factors
from titer.methods.repair.joined import write_joined
from titer.models import Template, load_tokenizer
from titer.results.artefacts import write_atomically

FOUND = "router.json"
"""Beside the adapter: what was measured when a router was made."""
ABOUT = "a router that switches a refusal adapter on by the prompt"


def settle(
    routed: Routed,
    args: Any,
    model_name: str,
    aligned: Path | None,
    tuned: Path | None,
    streams: Mapping[str, Sequence[Record]],
    folder: Path,
    key: str,
) -> None:
    """Put into the settings what is found on the model before its user's fine-tuning.

    It is written to `folder/router.json`, with the key of the training; one that goes on does not measure again.

    Args:
        routed: What the method says.
        args: Its settings.
        model_name: The base model.
        aligned: The adapter before fine-tuning; without one it is the base model.
        tuned: The adapter after it.
        streams: The defender's rows by argument name.
        folder: Of the training.
        key: Of all that the training depends on.

    Raises:
        TiterError: For a tuned adapter that is no plain LoRA or has a router, and where nothing can be found.
    """
    if tuned is not None:
        read_adapter(tuned, model_name)  # to be joined with another one, it must be plain
        refuse_routed(tuned, "a repair")
    path = folder / FOUND
    found = read_json(path) if path.is_file() else {}
    if found.get("inputs") != key:
        settings: dict[str, Any] = {}
        measured: dict[str, Any] = {}
        if routed.probes(args, streams):
            model = merged_model(model_name, aligned)
            settings, measured = routed.settle(args, model, Template(load_tokenizer(model_name)), streams)
        found = {"inputs": key, "settings": settings, **measured}
        _write(path, found)
    for name, value in found["settings"].items():
        setattr(args, name, value)


def leave(
    routed: Routed,
    args: Any,
    model: Any,
    model_name: str,
    tuned: Path,
    streams: Mapping[str, Sequence[Record]],
    folder: Path,
    tokenizer: Any,
) -> None:
    """Write what a served guard is: `router/`, `router.json`, `serving.json`, and last of all `adapter/`.

    The adapter holds what the tuned one and the refusal adapter add, so that whoever serves it alone has refusals always on.

    Args:
        routed: What the method says.
        args: Its settings, with what was found.
        model: The model after training: the tuned one, with the refusal adapter on it.
        model_name: The base model.
        tuned: The tuned adapter.
        streams: The defender's rows by argument name.
        folder: Where it goes.
        tokenizer: The model's tokenizer.
    """
    from peft import get_peft_model_state_dict

    before = read_adapter(tuned, model_name)
    weights = {name: weight.detach().cpu() for name, weight in get_peft_model_state_dict(model).items()}
    added = of_weights("The refusal adapter", folder, model.peft_config["default"], weights)
    known = read_serving(tuned)
    system = "" if known is None else known.system
    router, harmful, benign, measured = routed.prototypes(args, model, Template(tokenizer), streams, system)
    write_routing(folder, harmful, benign, lambda place: write_factors(before, before.factors, place))
    found = read_json(folder / FOUND)
    _write(folder / FOUND, {**found, **measured})
    write_serving(folder, Serving(system, about(known), router))
    write_joined(before, added, folder / "adapter", tokenizer)


def about(known: Serving | None) -> str:
    """Return what a model with a router is served with, in a few words, given what its tuned adapter was."""
    return ABOUT if known is None else f"{known.about} and {ABOUT}"


def _write(path: Path, found: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(found, indent=1).encode() + b"\n")
