"""What a paper published of a table, to stand beside what is found: its cells, the orders they give, and what differs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError, check_known

if TYPE_CHECKING:
    from titer.report.field_view import Claim


@dataclass(frozen=True)
class Published:
    """A cell as it was published; a figure that could not be read is absent.

    Attributes:
        harmful_score: In percent.
        finetune_accuracy: In percent.
        read: Where, if it is not where the others were.
    """

    harmful_score: float | None = None
    finetune_accuracy: float | None = None
    read: str = ""


@dataclass(frozen=True)
class Theirs:
    """A table as its paper published it.

    Attributes:
        source: Which table of which paper.
        read: Where its figures were read: the paper, or somebody's note of it.
        prompts: Harmful prompts of which a harmful score of theirs is a share.
        cells: Figures by form, arm and share of harmful rows.
        about: What else must be known to compare: who judged, how prompts were written; a few words for each.
    """

    source: str
    read: str = "the paper"
    prompts: int | None = None
    cells: dict[str, dict[str, dict[str, Published]]] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    def every(self) -> Iterable[tuple[tuple[str, str, float], Published]]:
        """Return each cell with its form, arm and share of harmful rows."""
        for form, arms in self.cells.items():
            for arm, ratios in arms.items():
                for ratio, cell in ratios.items():
                    yield (form, arm, float(ratio)), cell


def check_theirs(theirs: Theirs, forms: Iterable[str], arms: Iterable[str], ratios: Sequence[float]) -> None:
    """Refuse published cells of what the file does not ask for; nothing would ever stand beside them.

    Raises:
        TiterError: Naming the key, with a suggestion.
    """
    known = [f"{ratio:g}" for ratio in ratios]
    check_known(theirs.cells, forms, "form in `theirs.cells`")
    for form, of_form in theirs.cells.items():
        check_known(of_form, arms, f"arm in `theirs.cells.{form}`")
        for arm, of_arm in of_form.items():
            where = f"theirs.cells.{form}.{arm}"
            for text in of_arm:
                try:
                    ratio = f"{float(text):g}"
                except ValueError:
                    ratio = text
                check_known([ratio], known, f"share of harmful rows in `{where}`")
            if len({float(text) for text in of_arm}) < len(of_arm):
                raise TiterError(f"`{where}` holds a share of harmful rows twice.")


def claims(theirs: Theirs) -> list[Claim]:
    """Return which arm was published to have the lower harmful score: of each form, share of harmful rows and pair of arms.

    Only those are orders whose difference is more than `prompts` prompts of either arm would give by chance (Newcombe 1998); it
    does not cover another training. Where their number is not known, there is none.
    """
    from titer.report.field_view import Claim
    from titer.stats.intervals import Estimate, difference_of, wilson

    n = theirs.prompts
    if n is None:
        return []
    found: dict[tuple[str, float], dict[str, Estimate]] = {}
    for (form, arm, ratio), cell in theirs.every():
        if cell.harmful_score is not None:
            share = cell.harmful_score / 100
            found.setdefault((form, ratio), {})[arm] = Estimate(share, *wilson(share * n, n))
    return [
        Claim(lower, higher, theirs.source, form, ratio)
        for (form, ratio), scores in found.items()
        for lower, higher in itertools.permutations(scores, 2)
        if difference_of(scores[lower], scores[higher]).high < 0
    ]


def what_differs(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the settings that differ between two fields' protocols, by dotted name; a dash where one says nothing."""
    from titer.report.words import flat_settings

    there, here = flat_settings(dict(theirs)), flat_settings(dict(ours))
    return {
        name: (there.get(name, "–"), here.get(name, "–"))
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
    }
