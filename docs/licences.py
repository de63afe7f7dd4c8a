"""Writes the licences of what `titer serve` needs besides titer into security.md, from the metadata of what is installed."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "security.md"
MARKS = "<!-- licences: made by `python docs/licences.py` -->\n", "<!-- end of licences -->\n"
EXTRAS = ("serve", "s3", "tracing")
PERMISSIVE = ("MIT", "BSD", "Apache", "PSF", "ISC")
KNOWN = {"psycopg": "LGPL-3.0: used as a library, unchanged, and only where the database is PostgreSQL"}
"""Licences that are not permissive, and why they may stand beside Apache-2.0."""
NAME = re.compile(r"[A-Za-z0-9._-]+")


def needed() -> dict[str, str]:
    """Return the extra of each package that is needed directly."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {NAME.match(line)[0]: extra for extra in EXTRAS for line in extras[extra]}


def licence(package: str) -> str:
    """Return a package's licence, as it names it itself."""
    about = metadata.metadata(package)
    named = about.get("License-Expression") or about.get("License") or ""
    if named and "\n" not in named and len(named) < 60:
        return named
    found = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    return ", ".join(found) or "not named"


def table() -> str:
    """Return the table."""
    rows = [
        f"| `{package}` | {extra} | {KNOWN.get(package) or licence(package)} |" for package, extra in needed().items()
    ]
    return "\n".join(["| package | extra | licence |", "|---|---|---|", *rows]) + "\n"


def page(text: str) -> str:
    """Return the page with the table in its place."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
