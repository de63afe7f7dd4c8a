"""Draws which room of `src/titer` imports which into architecture.md, from the source alone: `make arrows`.

A room is a sub-package or a module at the top of the package. `FLOORS` says once where each room lies, from the ground up.
An arrow goes from a room to one that it imports, and must run down, or along its floor, and never in a circle.
`tests/test_architecture.py` fails on any other that is not in `KNOWN`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parent / "architecture.md"
SOURCE = Path(__file__).parents[1] / "src" / "titer"
MARKS = "<!-- arrows: made by `make arrows` -->\n", "<!-- end of arrows -->\n"

FLOORS = {
    "ground": (
        "errors",
        "text",
        "version",
        "files",
        "ranges",
        "settings",
        "plugins",
        "progress",
        "screen",
        "hub",
        "web",
        "compat",
        "stats",
    ),
    "data": ("data",),
    "packing": ("packing",),
    "models": ("models",),
    "infer": ("infer",),
    "risk": ("risk",),
    "train": ("train",),
    "judges": ("judges",),
    "defences": ("methods",),
    "results": ("results",),
    "attackers": ("attacks",),
    "jobs": ("jobs",),
    "assay": ("assays",),
    "report": ("report",),
    "workflows": ("workflows",),
    "service": ("service",),
    "doors": ("testing", "titer", "cli"),
}
"""Rooms by floor, from the ground up. `titer` is the package's `__init__`."""

KNOWN: dict[tuple[str, str], str] = {}
"""Arrows that run up, and why they are there. None may be added; one that is gone must go from here."""

KINDS = ("import", "lazy", "name", "type")
"""How a room is imported, the firmest first: at once, inside a function, by a name in a string, for type checkers alone."""

NOTES = {"name": " (by name)", "type": " (types only)"}


Arrows = dict[tuple[str, str], str]
"""From which room to which, and the firmest kind of import behind it."""


class Import(NamedTuple):
    """One import of a module of titer by another."""

    importer: str
    imported: str
    kind: str
    line: int


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports() -> list[Import]:
    """Return every import in the source of one room by another."""
    modules = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["titer", *path.relative_to(SOURCE).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path

    def found(node: ast.AST, kind: str) -> Iterator[tuple[str, str, int]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "lazy"
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            kind = "type"
        elif isinstance(node, ast.Import):
            yield from ((alias.name, kind, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: imports are absolute")
            for alias in node.names:  # a module of that package, or a name in it
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else str(node.module), kind, node.lineno
        elif isinstance(node, ast.Constant) and str(node.value).startswith("titer."):
            yield node.value.partition(":")[0], "name", node.lineno
        for child in ast.iter_child_nodes(node):
            yield from found(child, kind)

    return [
        Import(module, imported, kind, line)
        for module, path in modules.items()
        for imported, kind, line in found(ast.parse(path.read_text(encoding="utf-8")), "import")
        if (imported in modules if kind == "name" else imported.split(".")[0] == "titer")
        and room_of(imported) != room_of(module)
    ]


def arrows(found: list[Import]) -> Arrows:
    """Return the arrows between rooms, and the firmest kind of import behind each."""
    kinds = defaultdict(set)
    for one in found:
        kinds[room_of(one.importer), room_of(one.imported)].add(one.kind)
    return {arrow: min(kinds[arrow], key=KINDS.index) for arrow in sorted(kinds)}


def floor_of(room: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS.values()) if room in rooms)


def upward(found: Arrows) -> set[tuple[str, str]]:
    """Return the arrows that run up."""
    return {arrow for arrow in found if floor_of(arrow[1]) > floor_of(arrow[0])}


def circle(found: Arrows) -> list[str]:
    """Return rooms that stand on each other, once the known arrows are left out; empty where there are none."""
    onto = defaultdict(set)
    for start, end in found.keys() - KNOWN.keys():
        onto[start].add(end)
    while loose := [room for room in onto if not any(end in onto for end in onto[room])]:
        for room in loose:
            del onto[room]
    return sorted(onto)


def drawn(found: Arrows) -> Arrows:
    """Return the arrows that do not follow from others, without those to the ground, on which everything stands."""
    firm = {
        (start, end)
        for (start, end), kind in found.items()
        if kind != "type" and end not in FLOORS["ground"] and (start, end) not in KNOWN
    }

    far = set(firm)
    while further := {(start, end) for start, middle in far for other, end in firm if middle == other} - far:
        far |= further
    plain = {
        (start, end): found[start, end]
        for start, end in sorted(firm)
        if not any(
            (start, middle) in firm and (middle, end) in far for middle in {end for _, end in firm} - {start, end}
        )
    }
    return plain | {arrow: found[arrow] for arrow in sorted(KNOWN) if arrow in found}


def picture(found: Arrows) -> str:
    """Return the Markdown between the marks: the picture in Mermaid's notation, a table of the arrows, those that run up."""
    lines = ["```mermaid", "flowchart TD"]
    for floor, rooms in reversed(FLOORS.items()):
        if len(rooms) > 1:
            lines += [f"    subgraph {floor}_floor [{floor}]", f"        {'; '.join(rooms)}", "    end"]
    shown = drawn(found)
    for (start, end), kind in shown.items():
        sign = "==>" if (start, end) in KNOWN else "-->" if kind == "import" else "-.->"
        lines.append(f"    {start} {sign} {end}")
    lowest = {room for rooms in FLOORS.values() for room in rooms} - {start for start, _ in shown} - {*FLOORS["ground"]}
    lines += [f"    {room} --> ground_floor" for room in sorted(lowest)]
    lines += ["```", "", "| floor | room | imports at once | imports when it is called |", "|---|---|---|---|"]
    for floor, rooms in reversed(FLOORS.items()):
        for room in rooms:
            ground = () if floor == "ground" else FLOORS["ground"]
            ends = {end: kind for (start, end), kind in found.items() if start == room and end not in ground}
            now = [end for end, kind in ends.items() if kind == "import"]
            later = [end + NOTES.get(kind, "") for end, kind in ends.items() if kind != "import"]
            lines.append(f"| {floor} | `{room}` | {', '.join(now) or '–'} | {', '.join(later) or '–'} |")
    lines += ["", "Arrows that run up:" if KNOWN else "No arrow runs up.", ""]
    lines += [f"- `{start}` → `{end}`: {reason}." for (start, end), reason in KNOWN.items()]
    return "\n".join(lines) + "\n"


def page(text: str, found: Arrows) -> str:
    """Return the page with the picture of today between its marks."""
    start, end = MARKS
    before, _, rest = text.partition(start)
    return f"{before}{start}\n{picture(found)}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), arrows(imports())), encoding="utf-8")
