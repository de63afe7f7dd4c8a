"""The command line: one module per verb, heavy imports inside the commands."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

# Before any library reads them: no telemetry, and nothing of libraries on the screen that a user can do nothing about.
os.environ |= {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
} | os.environ
if "OMP_WAIT_POLICY" not in os.environ:
    # Threads of GNU's OpenMP (torch's, on Linux) wait for each other by spinning for milliseconds: on a machine that others
    # use they spin against whom they wait for, and a step takes many times as long (docs/benchmarks.md, "Threads").
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import typer
import typer.core

from titer.cli import (
    accelerate,
    align,
    assay,
    attacks,
    audit,
    audit_log,
    convert,
    data,
    evaluate,
    field,
    finetune,
    gate,
    job,
    judges,
    keys,
    methods,
    models,
    plan,
    repair,
    report,
    run,
    serve,
    settings,
    status,
    worker,
)
from titer.cli.common import Verb, telling
from titer.errors import TiterError
from titer.files import disk_advice, disk_error_number
from titer.text import say


class Verbs(typer.core.TyperGroup):
    """All verbs, and what stops one that Typer itself would end without a word."""

    def invoke(self, context: Any) -> None:
        """Run the verb."""
        try:
            super().invoke(context)
            sys.stdout.flush()
        except KeyboardInterrupt:
            say("\nStopped. What is done is kept: the same command goes on from here.", sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            # The reader of our output went away (`titer … | head`), and nothing that is left to write finds one.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)


app = typer.Typer(
    cls=Verbs,
    name="titer",
    help="Immunize a language model against harmful fine-tuning, keep it safe while strangers' data is trained into "
    "it, and measure how immune it is.",
    epilog="Start with: titer run quickstart",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (
    run,
    field,
    align,
    finetune,
    repair,
    evaluate,
    gate,
    convert,
    audit,
    plan,
    report,
    settings,
    models,
    serve,
    worker,
    job,
    status,
    accelerate,
):
    app.command(name=module.NAME, cls=Verb, help=module.HELP, epilog=module.EXAMPLES)(module.command)
for group in (assay, data, methods, judges, attacks, keys, audit_log):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2].replace("_", "-"))


def _version(show: bool) -> None:
    if show:
        from titer import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """Hold the options that come before a verb, and silence libraries; titer's own warnings remain."""
    libraries = ("accelerate", "datasets", "huggingface_hub", "peft", "torch", "transformers", "trl")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="|".join(libraries))
    for name in libraries:
        logging.getLogger(name).setLevel(logging.ERROR)
    context.with_resource(telling(str(context.invoked_subcommand)))


def main() -> None:
    """Run the command line; a user's mistake, or a full disk, is a message and exit code 2, never a traceback."""
    try:
        app()
    except TiterError as error:
        say(f"Error: {error.message}", sys.stderr)
        if error.hint:
            say(f"       {error.hint}", sys.stderr)
        sys.exit(2)
    except Exception as error:
        number = disk_error_number(error)
        if number is None:
            raise
        what, advice = disk_advice(error, number)
        say(f"Error: {what}\n       {advice}", sys.stderr)
        sys.exit(2)
