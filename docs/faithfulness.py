"""Gathers what the cards say of paper, released code and titer into faithfulness.md: `make faithfulness`.

Every card of a method in docs/methods has a section `## Faithfulness` with a table: what the paper says, what the released code
does, what titer does, and the test that holds titer to it. The page is these tables, one after the other;
`tests/test_faithfulness.py` fails when it is another, when a card of a published method has none, or when a test that is named is not there.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "faithfulness.md"
HEADER = "| paper | released code | titer | test |"
INTRO = """# Faithfulness

Where a paper, its released code and titer part: what each says or does, and the test that holds titer to it (–: nothing
to hold it to, such as protocols and data). Made from the
[cards](writing_a_method.md#declare-it) by `make faithfulness`; [paper_index.md](paper_index.md) has every default beside the paper's and the
code's. Marks: **[paper]**, **[code]** read in the authors' released code, **[note]** from third-party notes, unchecked,
**[ours]**. Repositories without a licence were read, not copied; everything here is written from descriptions.
"""


def table_of(card: str) -> list[str]:
    """Return the rows of a card's table, without its header."""
    section = re.search(r"^## Faithfulness\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    lines = [] if section is None else [line for line in section[1].splitlines() if line.startswith("|")]
    if not lines:
        return []
    if lines[0] != HEADER:
        raise ValueError(f"The table begins with {lines[0]!r}, not with {HEADER!r}.")
    return lines[2:]


def cards() -> dict[str, list[str]]:
    """Return the rows of each card that has any, by the method's name, in alphabetical order."""
    found = {path.stem: table_of(path.read_text(encoding="utf-8")) for path in sorted((DOCS / "methods").glob("*.md"))}
    return {name: rows for name, rows in found.items() if rows}


def page() -> str:
    """Return the page."""
    parts = [INTRO]
    for name, rows in cards().items():
        # Links of a card go from its own folder.
        here = [row.replace("](../", "](") for row in rows]
        parts.append("\n".join([f"## [{name}](methods/{name}.md)", "", HEADER, "|---|---|---|---|", *here, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
