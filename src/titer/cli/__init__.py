"""The command line: one module per verb, heavy imports inside the commands."""

from __future__ import annotations

import os
import sys

# Before any library reads them: no telemetry, no progress bars of libraries under ours.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from titer.cli import accelerate, align, assay, attacks, audit, data, evaluate, finetune, models, report, run
from titer.cli.common import telling
from titer.errors import TiterError
from titer.text import say

app = typer.Typer(
    name="titer",
    help="Immunize a language model against harmful fine-tuning, keep it safe while strangers' data is trained into "
    "it, and measure how immune it is.",
    epilog="Start with: titer run quickstart",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (run, align, finetune, evaluate, audit, report, models, data, accelerate):
    app.command(name=module.NAME, help=module.HELP, epilog=module.EXAMPLES)(module.command)
app.add_typer(assay.app, name="assay")
app.add_typer(attacks.app, name="attacks")


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
    """Hold the options that come before a verb."""
    context.with_resource(telling(str(context.invoked_subcommand)))


def main() -> None:
    """Run the command line; a user's mistake is a message and exit code 2, never a traceback."""

    try:
        app()
    except TiterError as error:
        say(f"Error: {error.message}", sys.stderr)
        if error.hint:
            say(f"       {error.hint}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        say("\nStopped. What is done is kept: the same command goes on from here.", sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`titer … | head`).
        sys.stderr.close()
        sys.exit(141)
