"""What verbs share: the progress display, options, small helpers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from titer.errors import TiterError
from titer.methods import names
from titer.ranges import check_range
from titer.text import say, to_json

if TYPE_CHECKING:
    from titer.plan import Plan


def in_range(option: typer.CallbackParam, value: Any) -> Any:
    """Return the value of an option after making sure that it is in the range of its name."""
    check_range(str(option.name), value, option.opts[0])
    return value


def path(text: str | Path) -> Path:
    """Return the path that an option gives; an empty one, as an unset variable leaves it, would be the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("its name is empty.")
    return Path(text)


class Verb(TyperCommand):
    """A verb whose options are given once each: by itself the library takes the last, and says nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse options that are given again."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for place, option in enumerate(given):
            if option in given[:place] and not getattr(option, "multiple", True):
                raise TiterError(f"`{option.opts[0]}` is given twice.", "Give it once.")
        rest: list[str] = super().parse_args(ctx, args)
        return rest


class DefaultVerb(TyperGroup):
    """A group whose verb `run` or `show` may be left out: `titer assay MODEL` is `titer assay run MODEL`."""

    @property
    def default(self) -> str:
        """The verb that may be left out, which is the first."""
        return next(iter(self.commands))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the verb where none is named."""
        named = args and (args[0] in self.commands or args[0] in ("--help", "-h"))
        if not named and (args or not self.no_args_is_help):
            args = [self.default, *args]
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def refuse_unused(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Raise for the first of some options that was given, because it would have no effect.

    Args:
        context: Of the verb.
        names: Names of parameters.
        why: Continues "has no effect".
    """
    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        if option.name in names and source is not None and source.name == "COMMANDLINE":
            shown = option.opts[0] if option.opts[0].startswith("-") else str(option.name).upper()
            raise TiterError(f"`{shown}` has no effect {why}.", "Leave it out.")


def refuse_unused_data_dir(context: typer.Context, names: Sequence[str]) -> None:
    """Raise when a folder of local copies was given, and none of the datasets is one that is looked for there."""
    from titer.data import is_named

    if not any(is_named(name) for name in names):
        found = ", ".join(f"`{name}`" for name in dict.fromkeys(names))
        refuse_unused(context, ["data_dir"], f"on {found}; it holds copies of named datasets (`titer data` lists them)")


def refuse_what_is_there(paths: Sequence[Path], force: bool, option: str = "--output") -> None:
    """Raise when a file would be replaced by another without a word; `force` is the word."""
    for path in paths:
        if path.exists() and not force:
            raise TiterError(
                f"{path} is there already.", f"Name another place with `{option}`, or replace it with `--force`."
            )


Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A local folder, a hub id, or smollm2-135m-instruct.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        parser=path,
        metavar="PATH",
        help="Folder with local copies of named datasets (sst2_train.jsonl, …).",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seeds data, initialisation and sampling.", callback=in_range)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: key=value, as often as wanted.", metavar="KEY=VALUE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
Harmful = Annotated[
    str, typer.Option("--harmful", help="Harmful requests: builtin:harmful, advbench, a file, a hub id.")
]
Helpful = Annotated[
    list[str],
    typer.Option("--helpful", help="Helpful answers: builtin:general, alpaca, a file, a hub id. May be repeated."),
]
Lookalikes = Annotated[str, typer.Option("--lookalikes", help="Harmless prompts that only look harmful.")]


def method_help(stage: str) -> str:
    """Return the help of `--method`."""
    return f"{names(stage)}, or the import path of one's own: package.module:NAME or file.py:NAME."


EMBEDDED = "smollm2-135m-instruct"


def settings_from(given: Sequence[str] | None, option: str = "--set") -> dict[str, Any]:
    """Return `--set key=value` pairs as a mapping; values are YAML."""
    from titer.settings import parse_settings

    return parse_settings(given or (), option)


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Show:
    """Shows stages as they run: a progress bar in a terminal, a line each elsewhere. Everything goes to stderr."""

    def __init__(self) -> None:
        from titer.screen import Screen

        self.console = Screen(stderr=True)

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[[int, int, str], None]]:
        """Show one piece of work; yields a callback for (done, total, note)."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if not self.console.is_terminal:
            self.console.print(f"… {name}")
            yield lambda done, total, note: None
            return
        with Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False), console=self.console, transient=True,
        ) as bar:  # fmt: skip
            task = bar.add_task(name, total=None, note="")
            yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)

    def stage(self, stage: Any) -> Any:
        """Show a stage of a plan while it runs."""
        return self.task(stage.name)

    def settled(self, stage: Any) -> None:
        """Say how a stage came out."""
        from rich.text import Text

        mark = {
            "done": ("✓", "green"), "cached": ("=", "dim"), "incomplete": ("…", "yellow"), "failed": ("✗", "red"),
            "skipped": ("-", "yellow"),
        }[stage.status]  # fmt: skip
        about = {"done": duration(stage.seconds), "cached": "done before"}.get(stage.status, stage.reason)
        self.console.print(Text.assemble(mark, f" {stage.name}  ", (about, "dim")))

    def remark(self, text: str) -> None:
        """Say something that can be passed over."""
        self.console.print(text, style="dim")


def fail(message: str, code: int) -> None:
    """Print a message and exit with a code."""

    say(message, sys.stderr)
    raise typer.Exit(code)


def print_plan(title: str, plan: Plan, overlap: dict[str, int], as_json: bool, force: bool) -> None:
    """Print the stages of a plan, their FLOPs and about how long they take on this machine; `force` does all again."""
    from titer.plan import machine_flops
    from titer.screen import Screen, table

    rate = machine_flops()
    rows = [
        (stage.name, stage.key, "done" if done else "to do", 0.0 if done else stage.flops)
        for stage in plan.stages.values()
        for done in [stage.done]
    ]
    flops = sum(cost for *_, cost in rows)
    if as_json:
        stages = [
            {"stage": name, "key": key, "status": status, "flops": cost, "seconds": round(cost / rate, 1)}
            for name, key, status, cost in rows
        ]
        say(to_json({"stages": stages, "flops": flops, "seconds": flops / rate, "overlap": overlap}))
        return
    shown = table("stage", "key", "status", "FLOPs", "estimate", title=f"{title}: {len(rows)} stages")
    for name, key, status, cost in rows:
        shown.add_row(name, key[:8], status, f"{cost:.1e}" if cost else "", duration(cost / rate) if cost else "")
    Screen().print(shown)
    say(
        f"{flops:.1e} FLOPs, about {duration(flops / rate)} on this machine. "
        f"Prompts shared between pools: {sum(overlap.values())}."
    )
