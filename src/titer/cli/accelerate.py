"""`titer accelerate`: where the configurations lie that titer is tested with on several processes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from titer.errors import check_known
from titer.text import say

NAME = "accelerate"
HELP = "Print the file of a configuration for `accelerate launch`, or the names of all."
EXAMPLES = """
Examples:

`titer accelerate` — the names

`accelerate launch --config_file $(titer accelerate fsdp2) script.py`
"""


def configs() -> dict[str, Path]:
    """Return the file of each configuration, by name."""
    folder = Path(str(files("titer"))) / "accelerate_configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def command(
    name: Annotated[str | None, typer.Argument(help="The configuration, as `titer accelerate` lists them.")] = None,
) -> None:
    """Print a file's name, or what there is."""

    known = configs()
    if name is not None:
        check_known([name], known, "configuration")
        say(str(known[name]))
        return
    for each, path in known.items():
        say(f"{each:12}{path.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}")
