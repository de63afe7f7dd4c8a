"""What a method declares about itself: a `Method` where it trains, a `Repair` where it does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from titer.errors import TiterError
from titer.ranges import Range
from titer.text import first_sentence

if TYPE_CHECKING:
    from torch import Tensor

    from titer.data import Record
    from titer.infer.serving import Router, Serving
    from titer.methods.repair.lowrank import Layer, LowRank
    from titer.models import Template
    from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

NOT_HERE = {
    "output_dir": "The output folder decides where files go.",
    "seed": "Name the seed beside the settings: `--seed`, or `seeds` of an experiment.",
    "resume_from_checkpoint": "A training that was interrupted goes on by itself.",
    "push_to_hub": "titer leaves an adapter in a folder; `hf upload` takes it to a hub.",
}
"""Settings of the library that titer decides on itself, and what to do instead."""

SAVE_EVERY = 20
"""Optimizer steps between checkpoints of a training."""


def defaults() -> dict[str, Any]:
    """Return what experiments and the command line set otherwise than the configs of the methods."""
    quiet = {"report_to": "none", "logging_steps": 1, "disable_tqdm": True}
    return quiet | {"save_strategy": "steps", "save_steps": SAVE_EVERY, "save_total_limit": 1}


class Gradients(NamedTuple):
    """Gradients that an optimizer step takes besides that of the training loss that every method takes.

    Attributes:
        answers: Of the loss of harmful answers.
        refusals: Of the loss of refusals in their place.
        training: Of the training loss again: by other weights, or by what lies inside of the model.
        replay: Of the loss of rows that the model was aligned on, as many for each training row as the setting `replay` says;
            of a method without it, as many as training rows.
        general: Of the loss of helpful answers.
        prompts: Of something at the end of harmful prompts alone, once a step: of as many as the setting `anchors` says, or, of
            a method without it, as many as training rows; over as many first tokens of a refusal as `kl_tokens` says.
    """

    answers: float = 0.0
    refusals: float = 0.0
    training: float = 0.0
    replay: float = 0.0
    general: float = 0.0
    prompts: float = 0.0


class Held(NamedTuple):
    """What a method holds at the same time as the activations of a pass, beside what plain training holds.

    Attributes:
        copies: Tensors as large as the trained weights, in a pass that begins without gradients.
        onto: The same in a pass whose gradients are added to some that are there; these count as one.
        states: Hidden states of all tokens in every layer.
        logits: Logits of all supervised tokens, in float32.
    """

    copies: float = 0.0
    onto: float = 0.0
    states: float = 0.0
    logits: float = 0.0


def _none(args: Any) -> Gradients:
    return Gradients()


def _nothing(args: Any) -> Held:
    return Held()


def _no_rows(args: Any, rows: Sequence[Record], streams: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    return ()


def _any_batch(args: Any, rows: int) -> None:
    """Accept every batch."""


@dataclass(frozen=True)
class Source:
    """Where a method comes from.

    Attributes:
        paper: arXiv id, and where it was published: `2402.01109, NeurIPS 2024`; empty of what was published nowhere else.
        code: The authors' repository, `owner/name`; empty where there is none to be read.
        licence: Of that repository: `Apache-2.0`; `none` for one that says nothing, which may be read and not copied.
        broken_by: What is known to break it, with its source; empty where nobody has said so.
    """

    paper: str = ""
    code: str = ""
    licence: str = ""
    broken_by: str = ""


class Routed(NamedTuple):
    """What makes a repair that trains a served guard: a router decides by the prompt whether what it trained answers, or the tuned adapter.

    Attributes:
        settle: Called with settings, the model before its user's fine-tuning, its template and the streams; returns the values of
            settings that are to be found on that model, by name, and what was measured, for `router.json`.
        probes: Called with settings and streams; returns the prompts that `settle` has answered, none where it has nothing to
            find.
        prototypes: Called with settings, the model after training, its template, the streams and the system prompt that it is
            served with; returns the router, the states of harmful and of harmless prompts, and what was measured.
        tokens: How long the answers are that `settle` reads. This and the next are what estimates of time go by.
        answered: How often it has the prompts answered for each layer of the model.
    """

    settle: Callable[[Any, Any, Template, Mapping[str, Sequence[Record]]], tuple[dict[str, Any], dict[str, Any]]]
    probes: Callable[[Any, Mapping[str, Sequence[Record]]], Sequence[Record]]
    prototypes: Callable[
        [Any, Any, Template, Mapping[str, Sequence[Record]], str], tuple[Router, Tensor, Tensor, dict[str, Any]]
    ]
    tokens: int
    answered: int


@dataclass(frozen=True, eq=False)
class Method:
    """One method.

    Attributes:
        config: Its settings. What its own numbers may be stands in its attribute `RANGES` (`titer.ranges.Range`).
        trainer: Its trainer.
        summary: What it does, in a sentence; if empty, the first one of the trainer's docstring.
        streams: The datasets it wants besides the training data, by argument name: `harmful_dataset` and
            `helpful_dataset` are there.
        gradients: The gradients it takes besides that of the training loss, by its settings, in the mean over steps. This and
            the next two are what estimates of time go by.
        weighs_rows: Whether every step scores a refusal of each row, to weigh it by softmax(log ratio / τ) of its settings
            `ratio` and `tau`, which a report then shows.
        scores_first: Called with settings, training rows and streams; returns the rows that it scores before it trains.
        own_rows: Called with settings and streams; returns the rows that it trains on. A method that has it belongs to the repair
            stage, where nobody gives it training data: it goes on from the tuned adapter.
        check: Called with settings and the number of training rows; raises where they would make it another method.
        variants: Settings by label in which every term of it matters on a model of a few neurons: what the tests that
            every method passes are run with.
        memory: What it holds besides what plain training holds, in words: `2 gradients`; empty for nothing.
        holds: The same in numbers, by its settings, which `titer plan` goes by.
        serving: Of a serving control, whose effect stands with the provider that asks the model: called with settings and the
            model's template; returns what the model is asked with. `None` of the other methods, which act by weights alone.
        routed: Of a served guard, a repair that trains whose effect stands with the provider too.
        source: Where it comes from; by default from titer.
        lora_only: Whether it is one of LoRA adapters alone, and refuses to train a model's own weights.
    """

    not_here: ClassVar[Mapping[str, str]] = NOT_HERE

    config: type[PackedSFTConfig]
    trainer: type[PackedSFTTrainer]
    summary: str = ""
    streams: tuple[str, ...] = ()
    gradients: Callable[[Any], Gradients] = _none
    weighs_rows: bool = False
    scores_first: Callable[[Any, Sequence[Record], Mapping[str, Sequence[Record]]], Sequence[Record]] = _no_rows
    own_rows: Callable[[Any, Mapping[str, Sequence[Record]]], Sequence[Record]] | None = None
    check: Callable[[Any, int], None] = _any_batch
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    memory: str = ""
    holds: Callable[[Any], Held] = _nothing
    serving: Callable[[Any, Template], Serving] | None = None
    routed: Routed | None = None
    source: Source = Source()
    lora_only: bool = False

    def __post_init__(self) -> None:
        known = {one.name for one in dataclasses.fields(self.config)}
        if self.weighs_rows and not {"ratio", "tau"} <= known:
            raise TiterError(
                f"{self.config.__name__} lacks `ratio` or `tau`, by which a method that weighs rows does so.",
                "Add them (`titer.methods.finetune.AntibodyFinetuneConfig` has both), or leave `weighs_rows` off.",
            )
        if self.routed is not None and self.own_rows is None:
            raise TiterError("A served guard is a repair that trains: it has `own_rows`.")
        _check_ranges(self.config)

    @property
    def about(self) -> str:
        """What it does, in a sentence."""
        return self.summary or first_sentence(self.trainer.__doc__)

    @property
    def classes(self) -> tuple[type, ...]:
        """What users import of it."""
        return self.config, self.trainer

    @property
    def needs(self) -> tuple[str, ...]:
        """What it wants besides the training data, or to make them of."""
        if self.own_rows is None:
            return self.streams
        return (*(["aligned adapter"] if self.routed is not None else []), "tuned adapter", *self.streams)

    def gradients_a_step(self) -> float:
        """Return the gradients of an optimizer step with the default settings."""
        return 1 + sum(self.gradients(self.config(output_dir="unused", report_to="none")))

    def given(self, output_dir: str, seed: int) -> dict[str, Any]:
        """Return the settings that titer gives its config where a user gives none."""
        return {**defaults(), "output_dir": output_dir, "seed": seed}


Repaired = tuple["Mapping[str, LowRank]", "Mapping[str, Mapping[str, Any]]"]
"""By layer, the new updates of those that a repair changes, and what it measured of any, for its report."""


@dataclass(frozen=True, eq=False)
class Repair:
    """A method of the repair stage that does not train: it changes what fine-tuning added to an aligned adapter.

    Attributes:
        config: Its settings, a dataclass, with `RANGES` as that of a `Method`. Each field has a `help` in its metadata.
        apply: Called with the layers by name (`titer.methods.repair.lowrank.Layer`, in float64 on the CPU) and the settings.
        summary: What it does, in a sentence; if empty, the first one of the docstring of `apply`.
        streams: `("harmful_dataset",)`, if layers are to have their `inputs`: the tuned model then runs these rows once.
        variants: As those of a `Method`: on a model of two layers.
        memory: As that of a `Method`.
        source: As that of a `Method`.
    """

    not_here: ClassVar[Mapping[str, str]] = {}

    config: type
    apply: Callable[[Mapping[str, Layer], Any], Repaired]
    summary: str = ""
    streams: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    memory: str = ""
    source: Source = Source()

    def __post_init__(self) -> None:
        if not dataclasses.is_dataclass(self.config):
            raise TiterError(f"`{self.config.__name__}` is no dataclass, and the settings of a repair are one.")
        if not {*self.streams} <= {"harmful_dataset"}:
            raise TiterError(
                f"A repair cannot have the streams {', '.join(self.streams)}.",
                'It may have `streams=("harmful_dataset",)`, under which the inputs of layers are measured.',
            )
        _check_ranges(self.config)

    @property
    def about(self) -> str:
        """What it does, in a sentence."""
        return self.summary or first_sentence(self.apply.__doc__)

    @property
    def classes(self) -> tuple[type, ...]:
        """What users import of it."""
        return (self.config,)

    @property
    def needs(self) -> tuple[str, ...]:
        """What it wants."""
        return ("aligned adapter", "tuned adapter", *self.streams)

    def gradients_a_step(self) -> float:
        """Return 0: nothing is trained."""
        return 0.0

    def given(self, output_dir: str, seed: int) -> dict[str, Any]:
        """Return the settings that titer gives its config: none."""
        return {}


def _check_ranges(config: type) -> None:
    """Raise for `RANGES` that say nothing."""
    known = {one.name for one in dataclasses.fields(config)}
    for name, allowed in getattr(config, "RANGES", {}).items():
        ends = allowed[:2] if isinstance(allowed, Range) else ()
        if name not in known or not ends or not all(isinstance(end, Real) and math.isfinite(end) for end in ends):
            raise TiterError(
                f"{config.__name__}.RANGES: `{name}` is no setting with a range of numbers.",
                "Give a `titer.ranges.Range(low, high)` with two finite numbers for a field of the config.",
            )
