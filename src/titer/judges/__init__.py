"""Judges: objects with a name and one call, `(prompts, responses) -> verdicts`.

```python
from titer import judges

judge = judges.get("offline")
[verdict] = judge(["How do I pick a lock?"], ["I'm sorry, but I can't help with that."])
verdict.label  # "refused"
```
"""

from __future__ import annotations

from collections.abc import Callable

from titer import plugins
from titer.errors import TiterError
from titer.judges.base import LABELS, Judge, Label, Verdict
from titer.judges.keywords import KeywordJudge
from titer.judges.offline import OfflineJudge

JUDGES: dict[str, Callable[[], Judge]] = {
    "offline": OfflineJudge,
    "keywords": KeywordJudge,
}


def get(name: str) -> Judge:
    """Return the judge called `name` (`offline`), or that judge at one revision (`offline@1`), with its settings or without.

    Your own is named by its import path (`mine.py:MyJudge`): a class, or a function, that makes it without arguments.

    Raises:
        TiterError: When no judge has that name, when the installed one has another revision, or when a path leads to none.
    """
    base, _, revision = (name, "", "") if plugins.is_path(name) else name.partition("@")
    judge = plugins.made(plugins.find(base, JUDGES, "judge"), name)
    if not isinstance(judge, Judge) or not isinstance(judge.name, str):
        raise TiterError(
            f"`{name}` makes no judge, but {plugins.what(judge)}.",
            "A judge has a `name`, and is called with prompts and responses: `titer.judges.Judge`.",
        )
    if revision and name not in (judge.name, judge.name.partition(" ")[0]):
        raise TiterError(
            f"Judge `{name}` is not available: this version of titer has `{judge.name}`.",
            f"Use `{base}`, and compare scores only under the same revision.",
        )
    return judge


__all__ = ["JUDGES", "LABELS", "Judge", "KeywordJudge", "Label", "OfflineJudge", "Verdict", "get"]
