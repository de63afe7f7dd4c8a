"""What verbs share: the progress display, options, small helpers."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from titer import plugins, progress
from titer.errors import TiterError
from titer.methods import names
from titer.progress import Task, duration
from titer.ranges import check_range
from titer.text import say, to_json
from titer.workflows.common import Caller, called_by

if TYPE_CHECKING:
    from titer.jobs.estimates import Estimate
    from titer.jobs.plan import Plan


def in_range(option: typer.CallbackParam, value: Any) -> Any:
    """Return the value of an option, if it was given, after making sure that it is in the range of its name."""
    if value is not None:
        check_range(str(option.name), value, option.opts[0])
    return value


def path(text: str | Path) -> Path:
    """Return the path that an option gives; an empty one, as an unset variable leaves it, would be the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("its name is empty.")
    return Path(text)


def given_in(context: typer.Context) -> dict[str, Any]:
    """Return the parameters that stand on the command line, by name."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


class CommandLine(Caller):
    """The command line, where an argument is called by its option."""

    def __init__(self, context: typer.Context) -> None:
        self.options = {str(option.name): option.opts[0] for option in context.command.params}

    def spell(self, name: str) -> str:
        """Return the option, or the name of what stands there without one."""
        option = self.options.get(name, name)
        return option if option.startswith("-") else name.upper()

    def command(self, workflow: str, given: Mapping[str, Any]) -> str:
        """Return the line."""
        return shlex.join(["titer", *sys.argv[1:]])


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

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; whatever it calls knows what was given."""
        with called_by(CommandLine(ctx), given_in(ctx)):
            return super().invoke(ctx)


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


Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        parser=path,
        metavar="PATH",
        help="Folder with local copies of named datasets (sst2_train.jsonl, …).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
Sections = Annotated[
    list[str] | None,
    typer.Option(
        "--section", metavar="PATH", help="A section of one's own, `mine.py:NAME`. May be given several times."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan, its FLOPs and about how long it takes.")]

PlanOnly = Annotated[
    bool, typer.Option("--plan-only", help="Write the folders of all jobs, for `titer job` to run, and stop.")
]


def method_help(stage: str) -> str:
    """Return the help of `--method`."""
    return f"{names(stage)}, or the import path of one's own: package.module:NAME or file.py:NAME."


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


ENDLESS = ("serve", "worker")


def telling(verb: str) -> AbstractContextManager[Any]:
    """Return what tells a user how far a verb is: a bar in a terminal, a line every half minute elsewhere.

    Everything goes to stderr. Of a verb that goes on until it is stopped there is nothing to tell.
    """
    if verb in ENDLESS:
        return nullcontext()
    return progress.shown(Bar()) if sys.stderr.isatty() else Task(verb)


def took(started: float) -> None:
    """Say on stderr how long a verb took since `time.perf_counter()` was `started`."""
    from titer.screen import Screen

    Screen(stderr=True).print(f"Took {duration(time.perf_counter() - started)}.", style="dim")


def fail(message: str, code: int) -> NoReturn:
    """Print a message and exit with a code."""
    say(message, sys.stderr)
    raise typer.Exit(code)


def print_plan(title: str, plan: Plan, overlap: dict[str, int], as_json: bool, force: bool) -> None:
    """Print the jobs of a plan, their FLOPs and about how long they take on this machine; `force` does all again."""
    from titer.jobs.estimates import Estimate, each, in_words
    from titer.jobs.work import parameters
    from titer.screen import Screen, table

    works = plan.to_do(force)
    estimates = dict(zip(works, each(list(works.values())), strict=True))
    total = sum(estimates.values(), Estimate())
    flops = {key: work.cost.flops(parameters(work.model)) for key, work in works.items()}
    status = {key: "done" if job.done and not force else "to do" for key, job in plan.jobs.items()}
    if as_json:
        jobs = [
            {
                "stage": job.name,
                "key": job.key,
                "status": status[job.key],
                "flops": flops.get(job.key, 0.0),
                **(as_numbers(estimates.get(job.key, Estimate()))),
            }
            for job in plan.jobs.values()
        ]
        say(to_json({"stages": jobs, "flops": sum(flops.values()), **as_numbers(total), "overlap": overlap}))
        return
    shown = table("job", "key", "status", "FLOPs", "estimate", title=f"{title}: {len(plan.jobs)} jobs")
    for job in plan.jobs.values():
        cost, estimate = flops.get(job.key, 0.0), estimates.get(job.key)
        about = "" if estimate is None else str(estimate)
        shown.add_row(job.name, job.key[:8], status[job.key], f"{cost:.1e}" if cost else "", about)
    Screen().print(shown)
    say(
        f"{sum(flops.values()):.1e} FLOPs, {in_words([*estimates.values()])}. "
        f"Prompts shared between pools: {sum(overlap.values())}."
    )


def load_sections(paths: Sequence[str] | None) -> list[Callable[..., Any]]:
    """Import sections of the user's own for a page; what they do wrong is said by their name."""
    twice = [path for path in paths or () if (paths or []).count(path) > 1]
    if twice:
        raise TiterError(f"`--section {twice[0]}` is given twice.")
    return [partial(_section, path, plugins.load(path)) for path in paths or ()]


def _section(path: str, maker: Callable[..., Any], *found: Any) -> Any:
    from titer.report import Section

    try:
        section = maker(*found)
    except Exception as error:
        raise plugins.failed(path, error, "does not make a section") from error
    if not isinstance(section, Section):
        raise TiterError(f"`{path}` returns {type(section).__name__}, no section.", "Return a `titer.report.Section`.")
    return section


def say_planned(plan: Plan) -> None:
    """Write the folders of all jobs of a plan, and say where they are and what runs them."""
    plan.write()
    todo = sum(not job.done for job in plan.jobs.values())
    say(f"{len(plan.jobs)} jobs in {plan.run_folder / 'jobs'}, {todo} to do: `titer job FOLDER` runs one.")


def as_numbers(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate in seconds: the most likely, and the range that records and measured speed span."""
    return {
        "seconds": round(estimate.seconds, 1),
        "seconds_low": round(estimate.low, 1),
        "seconds_high": round(estimate.high, 1),
        "records": estimate.records,
    }
