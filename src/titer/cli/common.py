"""What verbs share: the progress display, options, small helpers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from titer import progress
from titer.errors import TiterError
from titer.methods import names
from titer.progress import Task, duration
from titer.ranges import check_range
from titer.text import say, to_json

if TYPE_CHECKING:
    from titer.data import Record
    from titer.jobs.estimates import Estimate, Work
    from titer.jobs.plan import Plan
    from titer.methods import Method
    from titer.train.trainer import PackedSFTConfig


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


class Bar:
    """A line at the foot of a terminal that says how far the work is."""

    def __init__(self) -> None:
        from titer.screen import Screen

        self.console = Screen(stderr=True)
        self._live: Any = None

    def start(self) -> None:
        """Begin to show."""
        from rich.live import Live

        # What goes to stdout stays there: it may be piped to another program.
        self._live = Live(
            get_renderable=self.render,
            console=self.console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,
        )
        self._live.start()

    def stop(self) -> None:
        """Take the line away."""
        self._live.stop()

    def render(self) -> Any:
        """Return the line as it is now."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row: list[Any] = [Text(progress.line(), overflow="ellipsis", no_wrap=True)]
        counting = next((task for task in progress.tasks() if task.total), None)
        if counting is not None:
            row.insert(0, ProgressBar(counting.total, counting.done, width=24))
        line = Table.grid(padding=(0, 1))
        line.add_row(*row)
        return line


def telling(verb: str) -> AbstractContextManager[Any]:
    """Return what tells a user how far a verb is: a bar in a terminal, a line every half minute elsewhere.

    Everything goes to stderr.
    """
    return progress.shown(Bar()) if sys.stderr.isatty() else Task(verb)


class Show:
    """Says how stages begin and come out, on stderr."""

    def __init__(self) -> None:
        from titer.screen import Screen

        self.console = Screen(stderr=True)
        self._waited: set[str] = set()

    def begins(self, stage: Any) -> None:
        """Say that a stage begins, where no bar does."""
        if not self.console.is_terminal:
            self.console.print(f"… {stage.name}")

    def expect(self, works: Sequence[Work]) -> None:
        """Say how long work will take; the first time on a machine, its speed is measured for that."""
        from titer.jobs.estimates import each, in_words

        if works:
            text = in_words(each(works))
            self.remark(f"{text[0].upper()}{text[1:]}.")

    def waits(self, job: Any, holder: str) -> None:
        """Say that another process works on what comes next."""
        if job.key not in self._waited:
            self._waited.add(job.key)
            self.remark(f"{job.name}: at work in {holder}; waiting.")

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


def train(
    name: str,
    method: Method,
    values: dict[str, Any],
    args: PackedSFTConfig,
    base: str,
    adapter: Path | None,
    lora: dict[str, Any],
    records: Sequence[Record],
    streams: dict[str, list[Record]],
    output: Path,
) -> None:
    """Try a training on a toy, say how long it will take, and carry it out in a folder.

    Args:
        name: What it is, for estimates of what is like it ("align booster").
        method: How to train.
        values: What `--set` gave.
        args: The settings that these make.
        base: The base model.
        adapter: The adapter to go on with.
        lora: Settings of a new one.
        records: The training data.
        streams: Further data by argument name.
        output: The folder.
    """
    from titer.jobs import trainings
    from titer.jobs.estimates import recorded, training
    from titer.jobs.rehearsal import rehearse

    rehearse(method, values, "--set", base, lora if adapter is None else None, records, streams)
    work = training(name, method, args, base, records, streams).after_loading
    Show().expect([work])
    # What was begun, or finished, before takes less than all of it.
    begun = any((output / part).exists() for part in ("adapter", "checkpoints"))
    with recorded(work, whole=not begun):
        trainings.train(method, args, base, adapter, lora, records, streams, output)


def fail(message: str, code: int) -> None:
    """Print a message and exit with a code."""

    say(message, sys.stderr)
    raise typer.Exit(code)


def print_plan(title: str, plan: Plan, overlap: dict[str, int], as_json: bool, force: bool) -> None:
    """Print the stages of a plan, their FLOPs and about how long they take on this machine; `force` does all again."""
    from titer.jobs.estimates import Estimate, each, in_words, parameters
    from titer.screen import Screen, table

    works = plan.to_do(force)
    estimates = dict(zip(works, each(list(works.values())), strict=True))
    total = sum(estimates.values(), Estimate())
    flops = {key: work.cost.flops(parameters(work.model)) for key, work in works.items()}
    status = {key: "done" if stage.done and not force else "to do" for key, stage in plan.jobs.items()}
    if as_json:
        stages = [
            {
                "stage": stage.name,
                "key": stage.key,
                "status": status[stage.key],
                "flops": flops.get(stage.key, 0.0),
                **(as_numbers(estimates.get(stage.key, Estimate()))),
            }
            for stage in plan.jobs.values()
        ]
        say(to_json({"stages": stages, "flops": sum(flops.values()), **as_numbers(total), "overlap": overlap}))
        return
    shown = table("stage", "key", "status", "FLOPs", "estimate", title=f"{title}: {len(plan.jobs)} stages")
    for stage in plan.jobs.values():
        cost, estimate = flops.get(stage.key, 0.0), estimates.get(stage.key)
        about = "" if estimate is None else str(estimate)
        shown.add_row(stage.name, stage.key[:8], status[stage.key], f"{cost:.1e}" if cost else "", about)
    Screen().print(shown)
    say(
        f"{sum(flops.values()):.1e} FLOPs, {in_words([*estimates.values()])}. "
        f"Prompts shared between pools: {sum(overlap.values())}."
    )


def as_numbers(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate in seconds: the most likely, and the range that records and measured speed span."""
    return {
        "seconds": round(estimate.seconds, 1),
        "seconds_low": round(estimate.low, 1),
        "seconds_high": round(estimate.high, 1),
        "records": estimate.records,
    }
