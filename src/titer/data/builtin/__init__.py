"""Built-in corpora, generated deterministically from hand-written parts: no download, no network.

They serve quick starts, tests and small experiments. The harmful rows hold nothing usable: every step of every reply is
withheld.
"""

from titer.data.builtin._arithmetic import arithmetic
from titer.data.builtin._choices import choices
from titer.data.builtin._general import general
from titer.data.builtin._harmful import CATEGORIES, harmful
from titer.data.builtin._lookalikes import lookalikes
from titer.data.builtin._refusals import refusals
from titer.data.builtin._rows import QA, HarmfulRow, TaskRow
from titer.data.builtin._sentiment import sentiment
from titer.data.builtin._topics import topics

__all__ = [
    "CATEGORIES",
    "QA",
    "HarmfulRow",
    "TaskRow",
    "arithmetic",
    "choices",
    "general",
    "harmful",
    "lookalikes",
    "refusals",
    "sentiment",
    "topics",
]
