"""How rules are named, run and told, and the one that every kind of method shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[..., Any])


def by_name(checks: Sequence[C]) -> dict[str, C]:
    """Return checks by their names."""
    return {check.__name__: check for check in checks}


def run(rule: str, of: str, check: Callable[..., None], *args: Any) -> None:
    """Run a check; whatever it raises says which rule was checked, and of what."""
    rule = f"{rule.replace('_', ' ')}{f' ({of})' if of else ''}"
    try:
        check(*args)
    except AssertionError as error:
        raise AssertionError(f"{rule}: {error}") from error
    except Exception as error:
        error.add_note(f"Raised while checking: {rule}")
        raise


def settings_explain_themselves(trial: Any) -> None:
    """Every setting of its own has a help text."""
    from titer.train.trainer import PackedSFTConfig

    known = {item.name for item in dataclasses.fields(PackedSFTConfig)}
    mute = [item.name for item in dataclasses.fields(trial.method.config) if item.name not in known]
    mute = [name for name in mute if not trial.method.config.__dataclass_fields__[name].metadata.get("help")]
    assert not mute, f"settings without metadata={{'help': …}}: {', '.join(mute)}"
    assert trial.method.about, "it has no summary, and what it runs has no docstring"
