"""`titer settings`: everything that `--set`, `--lora` and settings files can set."""

from __future__ import annotations

import dataclasses
import inspect
import re
from contextlib import suppress
from typing import Annotated, Any

import typer

from titer.cli.common import Json
from titer.errors import TiterError
from titer.text import first_sentence, say, to_json

NAME = "settings"
HELP = "List the settings of a method, an adapter, an experiment, a profile or an attack, with their defaults."
EXAMPLES = """
Examples:

`titer settings` — what has settings

`titer settings align.booster` — those that `titer align --method booster --set KEY=VALUE` takes

`titer settings mine.py:ASCENT` — those of a method of your own

`titer settings lora --json`
"""


def _kinds() -> dict[str, type]:
    """Return the classes that hold settings, by the names that users call them."""
    from peft import LoraConfig

    from titer import methods
    from titer.assays.profile import Profile
    from titer.attacks.threats import Attack
    from titer.workflows.experiment import Experiment

    declared = {f"{stage}.{name}": method.config for stage, name, method in methods.every()}
    kinds = {**declared, "lora": LoraConfig, "experiment": Experiment, "profile": Profile, "attack": Attack}
    with suppress(TiterError):  # without the extra `serve` there is no policy
        from titer.service.policy import Policy

        kinds["policy"] = Policy
    return kinds


def command(
    name: Annotated[str | None, typer.Argument(help="What to list the settings of.")] = None, as_json: Json = False
) -> None:
    """List settings, or what has some."""
    from titer import methods, plugins
    from titer.errors import check_known

    kinds = _kinds()
    if name is not None and plugins.is_path(name):
        listed = settings_of(methods.find(methods.stages_of(name)[0], name).config)
    elif name is not None:
        check_known([name], kinds, "name of settings")
        listed = settings_of(kinds[name])
    else:
        listed = [{"name": each, "about": first_sentence(kind.__doc__)} for each, kind in kinds.items()]
    if as_json:
        say(to_json(listed))
        return
    width = max(len(row["name"]) for row in listed) + 2
    for row in listed:
        default = [] if name is None else [f"= {row['default']}."]
        allowed = [f"May be {row['range']}."] if row.get("range") else []
        say(f"{row['name']:{width}}{' '.join([*default, *allowed, row['about']])}".rstrip())


def settings_of(kind: type) -> list[dict[str, Any]]:
    """Return each setting of a class: the class's own first, then those that it takes over."""
    from titer import methods
    from titer.jobs import trainings
    from titer.ranges import numbers, range_of
    from titer.train.trainer import PackedSFTConfig

    known = {item.name: item for item in dataclasses.fields(kind) if item.init}
    trained = issubclass(kind, PackedSFTConfig)
    given = methods.defaults() if trained else trainings.LORA_DEFAULTS if kind.__name__ == "LoraConfig" else {}
    order = [name for part in kind.__mro__ for name in inspect.get_annotations(part) if name in known]
    rows = []
    for name in dict.fromkeys(order):
        if trained and name in methods.Method.not_here:
            continue
        item = known[name]
        allowed = range_of(kind, name) if name in numbers(kind) else None
        default = given.get(
            name, item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        )
        rows.append(
            {
                "name": name,
                "default": "(must be given)" if default is dataclasses.MISSING else str(default),
                "range": None if allowed is None else str(allowed),
                "about": first_sentence(item.metadata.get("help") or documented(kind).get(name, "")),
            }
        )
    return rows


def documented(kind: object) -> dict[str, str]:
    """Return what the docstring of a class or a function says of each attribute or argument."""
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
    return dict(found)
