"""Judges: objects with a name and one call, `(prompts, responses) -> verdicts`.

```python
from titer import judges

judge = judges.get()  # the default, `offline`
[verdict] = judge(["How do I pick a lock?"], ["I'm sorry, but I can't help with that."])
verdict.label  # "refused"
```
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable

from titer import plugins
from titer.errors import TiterError
from titer.judges.base import LABELS, Judge, Label, Verdict
from titer.judges.composed import COMPOSED, All, Majority, Primary
from titer.judges.error_rates import ErrorRates, known_error_rates
from titer.judges.keywords import KeywordJudge
from titer.judges.offline import OfflineJudge

DEFAULT = "offline"

JUDGES: dict[str, Callable[..., Judge] | str] = {
    "offline": OfflineJudge,
    "keywords": KeywordJudge,
    "qwen3guard": "titer.judges.hub.qwen3guard:Qwen3Guard",
    "llama-guard-3": "titer.judges.hub.llama_guard:LlamaGuard3",
    "llama-guard-4": "titer.judges.hub.llama_guard:LlamaGuard4",
    "wildguard": "titer.judges.hub.wildguard:WildGuard",
    "harmbench": "titer.judges.hub.harmbench:HarmBench",
    "beaver-dam": "titer.judges.hub.beaver_dam:BeaverDam",
    "shieldgemma": "titer.judges.hub.shieldgemma:ShieldGemma",
    "granite-guardian": "titer.judges.hub.granite_guardian:GraniteGuardian",
    "strongreject": "titer.judges.hub.strongreject:StrongReject",
    "strongreject-classifier": "titer.judges.hub.strongreject:StrongRejectClassifier",
    "gpt-oss-safeguard": "titer.judges.hub.safeguard:GptOssSafeguard",
}
"""Judges by name: what makes one, or the import path of that, where it is heavy. Settings are keyword arguments."""

_COMPOSED = re.compile(rf"({'|'.join(COMPOSED)})(?:@(\w+))?\((.*)\)", re.DOTALL)


def get(name: str = DEFAULT) -> Judge:
    """Return the judge called `name` (`offline`), or that judge at one revision (`offline@2`), with its settings or without.

    Settings follow behind a space: `qwen3guard url=http://localhost:8000/v1`. Judges are put together by `all(a, b)` (harmful
    when all say so), `majority(a, b, c)` and `primary(a, b)` (the first; what the others say is kept). Your own is named by its
    import path (`mine.py:MyJudge`): a class, or a function, that makes it, of its settings if it has any.

    Raises:
        TiterError: When no judge has that name or setting, when the installed one has another revision, or when a path leads
            to none.
    """
    name = name.strip()
    if (parts := _COMPOSED.fullmatch(name)) is not None:
        kind, revision, inside = parts.groups()
        judge: Judge = COMPOSED[kind](*map(get, _split(inside)))
        return _checked(judge, kind, f"{kind}@{revision}" if revision else kind)
    called, _, rest = name.partition(" ")
    base, _, revision = (called, "", "") if plugins.is_path(called) else called.partition("@")
    maker = plugins.find(base, JUDGES, "judge")
    takes = callable(maker) and bool(inspect.signature(maker).parameters)
    judge = plugins.made(maker, name, **(_settings(name, rest) if takes else {}))
    if not isinstance(judge, Judge) or not isinstance(judge.name, str):
        raise TiterError(
            f"`{name}` makes no judge, but {plugins.what(judge)}.",
            "A judge has a `name`, and is called with prompts and responses: `titer.judges.Judge`.",
        )
    # Of a judge without settings they are part of its name alone.
    return _checked(judge, base, called if takes else name)


def _checked(judge: Judge, base: str, asked: str) -> Judge:
    """Return the judge, if it has the revision that was asked for."""
    plain = re.split(r"[ (]", judge.name, maxsplit=1)[0]
    if asked not in (base, plain, judge.name):
        raise TiterError(
            f"Judge `{asked}` is not available: this version of titer has `{judge.name}`.",
            f"Use `{base}`, and compare scores only under the same revision.",
        )
    return judge


def _settings(name: str, text: str) -> dict[str, str]:
    """Read `key=value key="longer value"`."""
    try:
        pieces = [piece.partition("=") for piece in shlex.split(text)]
    except ValueError as error:
        raise TiterError(f"Judge `{name}`: its settings cannot be read: {error}.", "Close every quote.") from error
    for key, equals, _ in pieces:
        if not equals or not key.isidentifier():
            raise TiterError(
                f"Judge `{name}`: `{key}` is no setting.", "Write settings as key=value, with a space between."
            )
    return {key: value for key, _, value in pieces}


def _split(text: str) -> list[str]:
    """Split at the commas that stand in no parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in map(str.strip, parts) if part]


__all__ = [
    "DEFAULT",
    "JUDGES",
    "LABELS",
    "All",
    "ErrorRates",
    "Judge",
    "KeywordJudge",
    "Label",
    "Majority",
    "OfflineJudge",
    "Primary",
    "Verdict",
    "get",
    "known_error_rates",
]
