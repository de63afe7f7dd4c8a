"""Keeps the versions of kinds of jobs in step with their code: `make kinds`.

A job that is done is done again only when the version of its kind is another, so a change of what a kind computes must raise
it. `tests/test_kinds.py` fails when the code of a kind is not the one that was recorded here with its version. Comments,
docstrings and layout are no code. When it fails:

- figures change: raise `version` where the kind is declared, then `make kinds`;
- they do not (`benchmarks/same_figures.py` shows it): `make kinds` alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import json
import re
from pathlib import Path

RECORD = Path(__file__).parents[1] / "tests" / "kinds.json"
SOURCE = Path(__file__).parents[1] / "src" / "titer"
MODULES = (
    "titer.jobs.trainings",
    "titer.jobs.repairs",
    "titer.jobs.answers",
    "titer.jobs.verdicts",
    "titer.jobs.whole",
    "titer.assays.attacking",
)
"""Where kinds are declared."""

NO_FIGURE_DEPENDS_ON = (
    "titer", "titer.errors", "titer.text", "titer.version", "titer.files", "titer.ranges", "titer.progress", "titer.screen",
    "titer.hub", "titer.plugins", "titer.settings", "titer.jobs.job", "titer.jobs.leases", "titer.jobs.work", "titer.jobs.speed",
    "titer.jobs.estimates", "titer.jobs.provenance", "titer.results.artefacts", "titer.data.records", "titer.data.datasets",
)  # fmt: skip
"""Modules whose code no figure depends on: what refuses, writes, finds and tells; formats whose rows are in the keys."""

_NAME = re.compile(r"(titer(?:\.\w+)+)(?::\w+)?")


def file_of(module: str) -> Path | None:
    path = SOURCE.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def read(module: str) -> tuple[str, frozenset[str]]:
    """Return a hash of the code of a module, and the modules of titer that it rests on."""
    file = file_of(module)
    assert file is not None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    rests_on = frozenset(imported(tree))
    return hashlib.sha256(ast.dump(without_docstrings(tree)).encode()).hexdigest()[:12], rests_on


def imported(tree: ast.AST) -> set[str]:
    """Return the modules of titer that a module imports anywhere, or names in a string."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (name := _NAME.fullmatch(node.value)):
            found.add(name[1])
    return {name for name in found if name.split(".")[0] == "titer" and file_of(name)}


def without_docstrings(tree: ast.AST) -> ast.AST:
    """Return a tree without the strings that stand as statements, in place."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                item
                for item in body
                if not (
                    isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and item.value.value is not ...
                )
            ]
    return tree


def code_of(module: str) -> dict[str, str]:
    """Return a hash of the code of each module that a module rests on, itself among them."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in NO_FIGURE_DEPENDS_ON:
            continue
        found[name], rests_on = read(name)
        waiting += rests_on
    return dict(sorted(found.items()))


def kinds() -> dict[str, dict[str, object]]:
    """Return the version of each kind and the code that it rests on."""
    from titer.jobs.job import Kind

    found = {}
    for module in MODULES:
        if file_of(module) is not None:
            for value in vars(importlib.import_module(module)).values():
                if isinstance(value, Kind):
                    found[value.path] = {"version": value.version, "code": code_of(module)}
    return found


def main() -> None:
    RECORD.write_text(json.dumps(kinds(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
