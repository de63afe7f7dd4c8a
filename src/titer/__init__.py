"""titer: immunize a language model against harmful fine-tuning, and measure how immune it is.

`from titer import BoosterConfig, BoosterTrainer`: the settings and the trainer of every method are here, by the names of
their classes.
"""

from __future__ import annotations

from typing import Any

from titer.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    # Trainers bring torch and TRL with them, which take seconds to import; `titer --help` needs neither.
    if name == "__all__" or name.endswith(("Config", "Trainer")):
        from titer.methods import every, exported

        if name != "__all__":
            return exported(name)
        return sorted({kind.__name__ for _, _, method in every() for kind in method.classes})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
