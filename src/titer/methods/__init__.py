"""The one table of the methods that come with titer, and their settings.

A method declares itself once, in its own file: a `Method`, which trains (every one of align and finetune, and repairs that do),
or a `Repair`, with everything that the rest of titer asks about it (`titer.methods.declared`). The table below holds where each
declaration stands, and loads it when it is asked for. One that is not titer's is named by its import path,
`package.module:NAME` or `file.py:NAME`, wherever a method's name may stand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from titer import plugins
from titer.errors import TiterError, check_known
from titer.methods.declared import Gradients, Held, Method, Repair, Repaired, Routed, Source, defaults
from titer.ranges import check_range, numbers, range_of

if TYPE_CHECKING:
    from titer.train.trainer import PackedSFTConfig

__all__ = ["Gradients", "Held", "Method", "Repair", "Repaired", "Routed", "Source", "defaults"]

T = TypeVar("T")

ALIGN: dict[str, Method | str] = {
    "sft": "titer.methods.align.sft:SFT",
    "booster": "titer.methods.align.booster:BOOSTER",
    "antibody": "titer.methods.align.antibody:ANTIBODY",
    "ctrap": "titer.methods.align.ctrap:CTRAP",
    "deep_alignment": "titer.methods.align.deep_alignment:DEEP_ALIGNMENT",
    "rep_noise": "titer.methods.align.rep_noise:REP_NOISE",
    "seam": "titer.methods.align.seam:SEAM",
    "t_vaccine": "titer.methods.align.t_vaccine:T_VACCINE",
    "tar": "titer.methods.align.tar:TAR",
    "vaa": "titer.methods.align.vaa:VAA",
    "vaccine": "titer.methods.align.vaccine:VACCINE",
}
FINETUNE: dict[str, Method | str] = {
    "sft": "titer.methods.finetune.sft:SFT",
    "antibody": "titer.methods.finetune.antibody:ANTIBODY",
    "gate": "titer.methods.finetune.gate:GATE",
    "sieve": "titer.methods.finetune.sieve:SIEVE",
    "adaptive_kl": "titer.methods.finetune.adaptive_kl:ADAPTIVE_KL",
    "as_ft": "titer.methods.finetune.as_ft:AS_FT",
    "bds": "titer.methods.finetune.bds:BDS",
    "bea": "titer.methods.finetune.bea:BEA",
    "constrained_sft": "titer.methods.finetune.constrained_sft:CONSTRAINED_SFT",
    "ldifs_booster": "titer.methods.finetune.ldifs_booster:LDIFS_BOOSTER",
    "lisa": "titer.methods.finetune.lisa:LISA",
    "lox": "titer.methods.finetune.lox:LOX",
    "panacea": "titer.methods.finetune.panacea:PANACEA",
    "ptst": "titer.methods.finetune.ptst:PTST",
    "safe_grad": "titer.methods.finetune.safe_grad:SAFE_GRAD",
    "safe_instr": "titer.methods.finetune.safe_instr:SAFE_INSTR",
    "sbr": "titer.methods.finetune.sbr:SBR",
    "spard": "titer.methods.finetune.spard:SPARD",
    "star_dss": "titer.methods.finetune.star_dss:STAR_DSS",
    "toss": "titer.methods.finetune.toss:TOSS",
    "vlguard_mix": "titer.methods.finetune.vlguard_mix:VLGUARD_MIX",
}
REPAIR: dict[str, Method | Repair | str] = {
    "safelora": "titer.methods.repair.safelora:SAFELORA",
    "antidote": "titer.methods.repair.antidote:ANTIDOTE",
    "one_shot": "titer.methods.repair.one_shot:ONE_SHOT",
    "safe_merge": "titer.methods.repair.safe_merge:SAFE_MERGE",
    "sldr": "titer.methods.repair.sldr:SLDR",
    "task_arithmetic": "titer.methods.repair.task_arithmetic:TASK_ARITHMETIC",
}
TRAINED: dict[str, dict[str, Method | str]] = {"align": ALIGN, "finetune": FINETUNE}
"""The stages all of whose methods train."""
STAGES: dict[str, Mapping[str, Method | Repair | str]] = {**TRAINED, "repair": REPAIR}


def names(stage: str) -> str:
    """Return the names of a stage's methods for a sentence: `sft, booster or antibody`."""
    *before, last = STAGES[stage]
    return f"{', '.join(before)} or {last}" if before else last


@overload
def find(stage: Literal["repair"], name: str) -> Method | Repair: ...  # type: ignore[overload-overlap]
@overload
def find(stage: str, name: str) -> Method: ...
def find(stage: str, name: str) -> Method | Repair:
    """Return the method `name` of a stage, or the one that an import path names.

    Raises:
        TiterError: For an unknown name (with a suggestion), or a path that leads to no method.
    """
    method = plugins.find(name, STAGES[stage], f"{stage} method")
    if not isinstance(method, Method | Repair):
        made_by = "Method(config, trainer)" if stage in TRAINED else "Repair(config, apply)"
        raise TiterError(
            f"`{name}` is no {stage} method, but {plugins.what(method)}.", f"One is a `titer.methods.{made_by}`."
        )
    if _repairs(method) == (stage in TRAINED):
        raise TiterError(
            f"`{name}` is no {stage} method, but {plugins.what(method)}.",
            f"It belongs to the stage `{stages_of(name)[0]}`.",
        )
    if stage == "align" and isinstance(method, Method) and method.serving is not None:
        raise TiterError(f"`{name}` is a serving control, which belongs to the stage `finetune`.")
    return method


def _repairs(method: Any) -> bool:
    """Whether a method is of the repair stage."""
    return isinstance(method, Repair) or (isinstance(method, Method) and method.own_rows is not None)


def stages_of(name: str) -> list[str]:
    """Return the stages that have a method of this name; of an import path the first that its kind fits.

    Raises:
        TiterError: For an unknown name, or a path that leads to no method.
    """
    known = [stage for stage, table in STAGES.items() if name in table]
    if not known and plugins.is_path(name):
        return ["repair" if _repairs(plugins.load(name)) else "align"]
    check_known([] if known else [name], {each for table in STAGES.values() for each in table}, "method")
    return known


def every() -> Iterator[tuple[str, str, Method | Repair]]:
    """Yield stage, name and declaration of every method in the table."""
    for stage, table in STAGES.items():
        for name in table:
            yield stage, name, find(stage, name)


def exported(name: str, *stages: str) -> type:
    """Return the config or the trainer of that class name, of a method of these stages, or of any.

    Raises:
        AttributeError: When there is none.
    """
    # To load them takes seconds, and modules are asked for much else.
    if name.endswith(("Config", "Trainer")):
        for stage, _, method in every():
            for kind in method.classes:
                if kind.__name__ == name and stage in (stages or STAGES):
                    return kind
    raise AttributeError(f"titer has no class {name!r}")


@overload
def settings(
    method: Method, values: dict[str, Any], where: str | Mapping[str, str], output_dir: str, seed: int
) -> PackedSFTConfig: ...
@overload
def settings(
    method: Repair, values: dict[str, Any], where: str | Mapping[str, str], output_dir: str = "", seed: int = 0
) -> Any: ...
def settings(
    method: Method | Repair,
    values: dict[str, Any],
    where: str | Mapping[str, str],
    output_dir: str = "",
    seed: int = 0,
) -> Any:
    """Build a method's settings from a mapping.

    Args:
        method: The method.
        values: Fields of its config, by name.
        where: Where the mapping stands, for errors (`arms.antibody.align`), or where each of its keys does.
        output_dir: Folder for checkpoints, of a training.
        seed: Seeds initialisation and sampling, of a training.

    Raises:
        TiterError: For a key that the method does not have, or a value it cannot take.
    """
    known = {field.name for field in dataclasses.fields(method.config) if field.init} - method.not_here.keys()
    listing = next((f"titer settings {stage}.{name}" for stage, name, one in every() if one is method), None)
    for name in values:
        if name in method.not_here:
            raise TiterError(f"`{place(where, name)}` cannot be set here.", method.not_here[name])
        check_known([name], known, f"key in `{_parent(where, name)}`", listing)
    optional = numbers(method.config)
    for name, value in values.items():
        if name in optional and not (optional[name] and value is None):
            check_range(name, value, place(where, name), range_of(method.config, name))

    def build(values: dict[str, Any]) -> Any:
        return method.config(**{**method.given(output_dir, seed), **values})

    return blaming(build, values, {name: place(where, name) for name in values})


def place(where: str | Mapping[str, str], name: str) -> str:
    """Return what a user calls a setting: `align.training.optim`, `--set optim`."""
    parent = _parent(where, name)
    return f"{parent} {name}" if parent.startswith("--") else f"{parent}.{name}"


def _parent(where: str | Mapping[str, str], name: str) -> str:
    return where if isinstance(where, str) else where[name]


def blaming(attempt: Callable[[dict[str, Any]], T], values: dict[str, Any], called: Mapping[str, str]) -> T:
    """Return what an attempt with settings returns; when it fails for them, name those that it fails for.

    Args:
        attempt: Is called with the settings, or some of them. Libraries raise all kinds of exceptions for a setting that
            they cannot take; it is the setting's fault when the attempt succeeds without it.
        values: The settings.
        called: What a user calls each of them (`place`).

    Raises:
        TiterError: For settings that cannot be taken; names as few as make the attempt fail.
        Exception: What the attempt raises, where it raises without any settings too.
    """
    try:
        return attempt(values)
    except Exception as error:
        guilty, reason = dict(values), error
        for name in values:
            rest = {other: value for other, value in guilty.items() if other != name}
            try:
                attempt(rest)
            except Exception as other_error:
                guilty, reason = rest, other_error
        if not guilty:
            raise
    said = " ".join((reason.message if isinstance(reason, TiterError) else str(reason)).split())
    if not isinstance(reason, ValueError | ImportError | OSError):
        said = f"{type(reason).__name__}: {said}"
    named = [f"`{called[name]}`" for name in guilty]
    if len(guilty) == 1:
        blamed = f"{named[0]} cannot be `{guilty.popitem()[1]!s:.80}`"
    else:
        blamed = " with ".join(f"{name} = `{value!s:.80}`" for name, value in zip(named, guilty.values(), strict=True))
    hint = reason.hint if isinstance(reason, TiterError) else None
    raise TiterError(f"{blamed}: {said}", hint) from reason
