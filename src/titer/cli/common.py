"""What verbs share: the progress display, options, small helpers."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer import progress
from titer.progress import Task, duration
from titer.ranges import check_range
from titer.text import say, to_json

if TYPE_CHECKING:
    from titer.estimates import Estimate, Work
    from titer.plan import Plan


def in_range(option: typer.CallbackParam, value: Any) -> Any:
    """Return the value of an option after making sure that it is in the range of its name."""
    check_range(str(option.name), value, option.opts[0])
    return value


Model = Annotated[str, typer.Option("--model", "-m", help="A local folder, a hub id, or smollm2-135m-instruct.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder with local copies of named datasets (sst2_train.jsonl, …).")
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

EMBEDDED = "smollm2-135m-instruct"


def quiet_libraries() -> None:
    """Silence what libraries print that a user can do nothing about."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|peft|transformers|trl")
    for name in ("transformers", "trl", "peft", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def settings_from(overrides: Sequence[str] | None) -> dict[str, Any]:
    """Return `--set key=value` pairs as a mapping; values are YAML."""
    from titer.settings import parse_setting

    return dict(parse_setting(override) for override in overrides or ())


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

    def begins(self, stage: Any) -> None:
        """Say that a stage begins, where no bar does."""
        if not self.console.is_terminal:
            self.console.print(f"… {stage.name}")

    def expect(self, works: Sequence[Work]) -> None:
        """Say how long work will take; the first time on a machine, its speed is measured for that."""
        from titer.estimates import each, in_words

        if works:
            text = in_words(each(works))
            self.remark(f"{text[0].upper()}{text[1:]}.")

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


def print_plan(title: str, plan: Plan, overlap: dict[str, int], as_json: bool) -> None:
    """Print the stages of a plan, their FLOPs and about how long they take on this machine."""
    from rich.table import Table

    from titer.estimates import Estimate, each, in_words, parameters
    from titer.screen import Screen

    works = plan.to_do()
    estimates = dict(zip(works, each(list(works.values())), strict=True))
    total = sum(estimates.values(), Estimate())
    flops = {key: work.cost.flops(parameters(work.model)) for key, work in works.items()}
    if as_json:
        stages = [
            {
                "stage": stage.name,
                "key": stage.key,
                "status": "done" if stage.done else "to do",
                "flops": flops.get(stage.key, 0.0),
                **(as_numbers(estimates.get(stage.key, Estimate()))),
            }
            for stage in plan.stages.values()
        ]
        say(to_json({"stages": stages, "flops": sum(flops.values()), **as_numbers(total), "overlap": overlap}))
        return
    table = Table("stage", "key", "status", "FLOPs", "estimate", title=f"{title}: {len(plan.stages)} stages")
    for stage in plan.stages.values():
        cost, estimate = flops.get(stage.key, 0.0), estimates.get(stage.key)
        status = "done" if stage.done else "to do"
        table.add_row(
            stage.name, stage.key[:8], status, f"{cost:.1e}" if cost else "", "" if estimate is None else str(estimate)
        )
    Screen().print(table)
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
