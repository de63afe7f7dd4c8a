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

from titer.errors import TiterError, check_known
from titer.judges.base import LABELS, Judge, Label, Verdict
from titer.judges.keywords import KeywordJudge
from titer.judges.offline import OfflineJudge, is_refusal

JUDGES: dict[str, Callable[[], Judge]] = {
    "offline": OfflineJudge,
    "keywords": KeywordJudge,
}


def get(name: str) -> Judge:
    """Return the judge called `name` (`offline`), or that judge at one revision (`offline@1`), with its settings or without.

    Raises:
        TiterError: When no judge has that name, or when the installed one has another revision.
    """
    base, _, revision = name.partition("@")
    check_known([base], JUDGES, "judge")
    judge = JUDGES[base]()
    if revision and name not in (judge.name, judge.name.partition(" ")[0]):
        raise TiterError(
            f"Judge `{name}` is not available: this version of titer has `{judge.name}`.",
            f"Use `{base}`, and compare scores only under the same revision.",
        )
    return judge


__all__ = ["JUDGES", "LABELS", "Judge", "KeywordJudge", "Label", "OfflineJudge", "Verdict", "get", "is_refusal"]
