"""What every page, terminal view and Markdown block is made of: numbers as text, cells, tables, and one environment.

A `Table` is made once of what was found and shown three ways: by `terminal`, by `markdown`, and by the macro `table` of the
pages' templates. Whatever a model or a user wrote is untrusted; each of the three escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from titer.errors import TiterError
from titer.files import replacing
from titer.report.words import (
    answer_text,
    count_text,
    duration_text,
    flat_settings,
    number_text,
    percent_text,
    ratio_text,
)
from titer.results.summary import Rate
from titer.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table as RichTable

_STYLES = {"good": "green", "bad": "red", "unclear": "yellow", "plain": "dim"}


# Tables --------------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: What it says.
        below: Smaller, in lines of its own.
        kind: Its colour: `good`, `bad`, `unclear` or `plain`.
        badge: A word in that colour, before the text.
        note: Like `below`, on a page in the same line where there is room.
        arm: Position of the arm whose colour marks it.
        tint: A wash behind it, as a page's style.
        other: The other model's number, on a page below.
        drawing: Markup of a page's own making.
        strong: Whether it is what a reader looks for.
    """

    text: str = "–"
    below: str = ""
    kind: str = ""
    badge: str = ""
    note: str = ""
    arm: int | None = None
    tint: str = ""
    other: str = ""
    drawing: str = ""
    strong: bool = False


Row = Sequence[Cell | str]


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows.

    Attributes:
        head: Of the columns; what follows a line break is smaller.
        bands: Rows under a title of their own, or under "" for none.
        caption: What its numbers mean.
        title: Above it.
        kind: Class of a page's style; `plain` for words rather than numbers.
        spans: Head above the head: its words and how many columns each covers, 0 for one that is as high as both.
    """

    head: Row
    bands: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    caption: str = ""
    title: str = ""
    kind: str = ""
    spans: Sequence[tuple[str, int]] = ()

    @classmethod
    def of(cls, head: Row, rows: Iterable[Row], **about: Any) -> Table:
        """Make a table whose rows have no bands."""
        return cls(head, {"": list(rows)}, **about)

    @classmethod
    def pairs(cls, title: str, rows: Mapping[str, Cell | str], **about: Any) -> Table:
        """Make a table of names and values, without a head."""
        return cls.of((), list(rows.items()), title=title, kind="plain", **about)

    def __post_init__(self) -> None:
        for row in [self.head, *(row for rows in self.bands.values() for row in rows)]:
            if self.head and len(row) != len(self.head):
                raise TiterError(f"A row of a table has {len(row)} cells and its head {len(self.head)}: {list(row)}.")
            for cell in row:
                if not isinstance(cell, str | Cell):
                    raise TiterError(f"A cell of a table is a text or a `Cell`, not {cell!r}.")

    def __bool__(self) -> bool:
        return any(self.bands.values())


def as_cell(value: Cell | str) -> Cell:
    """A cell, or the cell that says a text."""
    return value if isinstance(value, Cell) else Cell(value)


def rate_cell(rate: Rate | None, with_n: bool = False, **about: Any) -> Cell:
    """A rate with its interval below; a dash where it was not measured."""
    if rate is None:
        return Cell(**{**about, "strong": False})
    return Cell(f"{rate.value:.1f}", rate.interval + (f" · n = {rate.n}" if with_n else ""), **about)


def terminal(table: Table, widths: Mapping[str, int] | None = None, left: int = 1, gap: int = 1) -> RichTable:
    """Return a table for a terminal, in which long words go on in the next line and nothing is cut.

    Args:
        table: The table.
        widths: Least width of columns that may be broken between words, by head; all may where none is given.
        left: Columns of words, flush left.
        gap: Between columns, besides what the table draws.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    widths = widths or {}
    made = RichTable(
        box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold", title_justify="left"
    )
    made.title = Text(table.title, style="bold") if table.title else None
    for place, name in enumerate(as_cell(value).text for value in table.head):
        side = "left" if place < left else "right"
        breaks = not widths or place < left or name in widths
        made.add_column(name, justify=side, overflow="fold", no_wrap=not breaks, min_width=widths.get(name))  # type: ignore[arg-type]
    for band, rows in table.bands.items():
        if band:
            made.add_row(Text(band, style="bold"))
        for row in rows:
            made.add_row(*map(_text, row))
    return made


def _text(cell: Cell | str) -> Any:
    from rich.text import Text

    cell = as_cell(cell)
    colour = _STYLES.get(cell.kind, "")
    parts: list[str | tuple[str, str]] = [(cell.badge, colour)] if cell.badge else []
    text = cell.text if cell.text != "–" or not cell.badge else ""
    if text:
        parts.append(f" {text}" if cell.badge else (text, colour))
    parts += [("\n" + line, "dim") for line in (cell.below, cell.note) if line]
    return Text.assemble(*parts, style="bold" if cell.strong else "")


def markdown(table: Table) -> list[str]:
    """Return the lines of a Markdown table; nothing in its cells is markup."""
    rows = [[_markdown_cell(as_cell(cell)) for cell in row] for found in table.bands.values() for row in found]
    names = [" ".join(as_cell(value).text.replace("-\n", "").split()) for value in table.head]
    lines = [f"| {' | '.join(row)} |" for row in (names, *rows)]
    return [lines[0], "|" + " --- |" * len(table.head), *lines[1:]]


def _markdown_cell(cell: Cell) -> str:
    below, note = f" [{cell.below}]" if cell.below else "", f", {cell.note}" if cell.note else ""
    text = as_markdown(cell.text + below + note)
    return f"**{text}**" if cell.strong else text


def as_markdown(text: str) -> str:
    """Text for one line of Markdown: nothing in it is markup."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]|~#" else letter for letter in text)
    return " ".join(escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").splitlines())


# Tables that every page of a run or an assay has -----------------------------------------------------------------------


def settings_tables(settings: Mapping[str, Any]) -> list[Table]:
    """Settings by section; what stands at the top level comes first, as `general`."""
    general = {key: value for key, value in settings.items() if not isinstance(value, Mapping) and key != "description"}
    sections = {"general": general} | {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    return [Table.pairs(str(name), flat_settings(rows)) for name, rows in sections.items() if flat_settings(rows)]


def origin_tables(provenance: Mapping[str, Any], about: Table) -> list[Table]:
    """Where figures come from: what a page says itself, versions, machine."""
    own = {key: provenance[key] for key in ("titer", "python") if provenance.get(key)}
    versions = flat_settings(own | (provenance.get("versions") or {}))
    machine = flat_settings(provenance.get("machine") or {})
    return [table for table in (about, Table.pairs("versions", versions), Table.pairs("machine", machine)) if table]


def jobs_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """The jobs behind figures, with what became of each."""
    colours = {"failed": "bad", "done": "good", "skipped": "unclear"}
    return Table.of(
        ("Job", "Key", "Status", "Time"),
        (
            (
                Cell(job["name"], note=job.get("reason") or ""),
                job["key"][:16],
                Cell("", kind=colours.get(job["status"], "plain"), badge=job["status"]),
                duration_text(job["seconds"]),
            )
            for job in jobs
        ),
        kind="plain jobs",
    )


# Pages -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading.

    Attributes:
        title: The heading.
        parts: Tables, drawings, and texts, each of these a paragraph.
    """

    title: str
    parts: Sequence[Table | Drawing | str]

    def __post_init__(self) -> None:
        wrong: list[Any] = [self.parts] if isinstance(self.parts, str) else []
        wrong += [part for part in self.parts if not isinstance(part, Table | Drawing | str)]
        if wrong:
            raise TiterError(
                f"`parts` of the section `{self.title}` holds {wrong[0]!r}.", "A list of tables, drawings and texts."
            )
        if any(isinstance(part, str) and part.startswith("<svg") for part in self.parts):
            raise TiterError(f"A drawing in the section `{self.title}` is a text.", "Write `Drawing(svg(…), caption)`.")


class Drawing(NamedTuple):
    """A figure: markup that `titer.report.drawing.svg` gave, and what it shows, below it."""

    markup: str
    caption: str = ""


def in_markdown(part: Table | Drawing | str) -> list[str]:
    """Return the lines of a part in a page's Markdown, for which a drawing is its caption."""
    if isinstance(part, str):
        return [as_markdown(part)]
    if isinstance(part, Drawing):
        return [f"*[Picture in index.html]* {as_markdown(part.caption)}"]
    lines: list[str] = [f"**{as_markdown(part.title)}**", ""] if part.title else []
    if not part.head:
        pairs = ((str(name), as_cell(value).text) for name, value in part.bands[""])
        return [*lines, *(f"- {as_markdown(name)}: {as_markdown(value)}" for name, value in pairs)]
    for band, rows in part.bands.items():
        one = Table.of(part.head, ([_with_badge(cell) for cell in row] for row in rows))
        lines += [*([f"*{as_markdown(band)}*", ""] if band else []), *markdown(one), ""]
    return [*lines, as_markdown(part.caption)] if part.caption else lines


def _with_badge(cell: Cell | str) -> Cell | str:
    """Return a cell whose badge is a word of its text."""
    return cell._replace(text=f"{cell.badge} {cell.text}") if isinstance(cell, Cell) and cell.badge else cell


class Answer(NamedTuple):
    """A model's answer: whose, in which colour, what judges call it (kind, word, judge), and how it was asked otherwise."""

    label: str
    colour: int
    text: str
    badges: Sequence[tuple[str, str, str]]
    asked: str | None = None


class Example(NamedTuple):
    """A prompt with the answers of several models: its kind, and the right answer where there is one."""

    kind: str
    prompt: str
    answers: Sequence[Answer]
    reference: str | None = None


def verdict_badge(label: str | None, judge: str = "") -> tuple[str, str, str]:
    """The badge of a judge's verdict; `None` where the judge failed."""
    word = label or "not judged"
    kinds = {"harmful": "bad", "refused": "good", "broken": "unclear", "not judged": "unclear"}
    return kinds.get(word, "plain"), word, judge


def write_page(path: Path, template: str, **context: Any) -> Path:
    """Replace `path` by a page, in one step, and return it.

    Args:
        path: Of the page.
        template: In the folder of templates.
        context: What it is rendered with.
    """
    page = environment().get_template(template).render(context)
    with replacing(Path(path)) as file:
        file.write(visible(page).encode())
    return Path(path)


def write_sections(folder: Path, kind: str, title: str, lead: str, found: Sequence[Section]) -> Path:
    """Write sections as `index.html` and `README.md` into a folder, and return the page.

    Args:
        folder: Where they go.
        kind: What they are of, a word above the title.
        title: Of both.
        lead: What they say first.
        found: What they show, behind the paragraphs of `findings.md` where that is in the folder: what somebody who read
            the figures says of them.
    """
    said = folder / "findings.md"
    if said.is_file():
        paragraphs = [" ".join(part.split()) for part in said.read_text(encoding="utf-8").split("\n\n")]
        found = [Section("What was found", [part for part in paragraphs if part]), *found]
    lines = [f"# {as_markdown(title)}", "", as_markdown(lead), ""]
    for section in found:
        lines += [f"## {as_markdown(section.title)}", ""]
        for part in section.parts:
            lines += [*in_markdown(part), ""]
    with replacing(folder / "README.md") as file:
        file.write(visible("\n".join(lines)).encode())
    return write_page(folder / "index.html", "sections.html.j2", kind=kind, title=title, lead=lead, extra=found)


def escaping(folder: Path) -> Environment:
    """Return an environment of the templates in a folder, which escapes whatever it is given, and refuses what it is not."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def environment() -> Environment:
    """Return the environment of the pages' templates."""
    made = escaping(Path(__file__).parent / "templates")
    made.filters |= {
        "ratio": ratio_text,
        "percent": percent_text,
        "cell": as_cell,
        "counted": count_text,
        "number": number_text,
    }
    made.globals["answer_text"] = answer_text
    return made
