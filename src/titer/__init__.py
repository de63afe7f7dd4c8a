"""titer: immunize a language model against harmful fine-tuning, and measure how immune it is.

`titer.align`, `finetune`, `repair`, `evaluate`, `convert`, `audit`, `gate`, `plan`, `experiment` and `assay` do what the verbs of the command line do.
`from titer import BoosterConfig, BoosterTrainer`: the settings and the trainer of every method are here too, by the names of
their classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from titer.version import __version__ as __version__

if TYPE_CHECKING:
    from titer.workflows.align import align as align
    from titer.workflows.assay import assay as assay
    from titer.workflows.audit import audit as audit
    from titer.workflows.convert import convert as convert
    from titer.workflows.evaluate import evaluate as evaluate
    from titer.workflows.finetune import finetune as finetune
    from titer.workflows.gate import gate as gate
    from titer.workflows.plan import plan as plan
    from titer.workflows.repair import repair as repair
    from titer.workflows.run import experiment as experiment

_WORKFLOWS = {
    "align": "titer.workflows.align",
    "assay": "titer.workflows.assay",
    "audit": "titer.workflows.audit",
    "convert": "titer.workflows.convert",
    "evaluate": "titer.workflows.evaluate",
    "experiment": "titer.workflows.run",
    "finetune": "titer.workflows.finetune",
    "gate": "titer.workflows.gate",
    "plan": "titer.workflows.plan",
    "repair": "titer.workflows.repair",
}


def __getattr__(name: str) -> Any:
    # Trainers bring torch and TRL with them, which take seconds to import; `titer --help` needs neither.
    if name in _WORKFLOWS:
        from importlib import import_module

        return getattr(import_module(_WORKFLOWS[name]), name)
    if name == "__all__" or name.endswith(("Config", "Trainer")):
        from titer.methods import every, exported

        if name != "__all__":
            return exported(name)
        kinds = {kind.__name__ for _, _, method in every() for kind in method.classes}
        return sorted(kinds | _WORKFLOWS.keys())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
