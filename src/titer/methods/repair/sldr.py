"""SLDR (arXiv 2610.10345, NeurIPS 2026): refusals are trained into two layers, and a router decides by the prompt when they are on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.data.datasets import with_refusals
from titer.data.mixtures import refusing
from titer.data.records import Record
from titer.errors import TiterError
from titer.infer.generation import generate
from titer.infer.routing import harm_scores, last_states
from titer.infer.serving import Router, served
from titer.methods import Method, Routed, Source
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.inside import Inside
from titer.methods.streams import DefenderRowsTrainer
from titer.models import Template
from titer.progress import Task
from titer.ranges import COUNT, Range
from titer.train.checks import refuse_arguments

ALPHAS = (0.1, 0.2)
"""By how much the weights of a layer are scaled, up and down."""
PROBE_TOKENS = 32
"""How long the answers are of which refusals are counted."""
REFUSES = ("can not", "cannot", "can't", "sorry", "it is not", "it's important to ")
"""What an answer holds that counts as a refusal, in small letters, as the released code spells it."""
LAYER = Range(0, 100_000, whole=True)


@dataclass
class SldrConfig(FinetuneConfig):
    """Settings of SLDR.

    Args:
        learning_rate: The learning rate of AdamW.
        lr_scheduler_type: How the learning rate changes over steps.
        warmup_steps: Steps up to the full learning rate; below 1, their share of all steps.
        l_min: The layer that refuses least when its weights grow, from 0; with `l_max` unset, both are found.
        l_max: The layer that refuses most; behind it the router reads.
        probes: How many harmless prompts that look harmful the two layers are found by.
        pairs: How many of the defender's harmful rows are trained on, with their refusals.
        rank: The rank of the refusal adapter.
        alpha: Its α; its product is scaled by α/rank.
        target_modules: Which modules of the two layers it changes.
        prototypes: How many prompts of each kind the router compares with.
        top: How many of the largest differences of similarity a score is the mean of.
        threshold: The score above which the refusal adapter is on.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "l_min": LAYER, "l_max": LAYER, "probes": COUNT, "pairs": COUNT, "rank": Range(1, 65_536, whole=True), "alpha": Range(1, 65_536, whole=True),
        "prototypes": Range(2, 1_000_000, whole=True), "top": COUNT, "threshold": Range(-2, 2),
    }  # fmt: skip

    learning_rate: float = field(default=5e-4, metadata={"help": "The learning rate of AdamW."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "How the learning rate changes over steps."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warming up; below 1, their share of all."})
    l_min: int | None = field(default=None, metadata={"help": "The layer of the least κ, from 0; by default found."})
    l_max: int | None = field(default=None, metadata={"help": "The layer of the largest κ; the router reads there."})
    probes: int = field(default=32, metadata={"help": "Harmless prompts by which the two layers are found."})
    pairs: int = field(default=100, metadata={"help": "Harmful rows that are trained on, with their refusals."})
    rank: int = field(default=32, metadata={"help": "The rank of the refusal adapter."})
    alpha: int = field(default=4, metadata={"help": "Its α; its product is scaled by α/rank."})
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj"],
        metadata={"help": "Modules of the layers that it changes."},
    )
    prototypes: int = field(default=100, metadata={"help": "Prompts of each kind that the router compares with."})
    top: int = field(default=100, metadata={"help": "Largest differences of similarity that a score is the mean of."})
    threshold: float = field(default=0.0, metadata={"help": "The score above which the refusal adapter is on."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.l_min is None) != (self.l_max is None):
            raise TiterError("`l_min` and `l_max` go together.", "Give both layers, or neither: they are then found.")
        if self.l_min is not None and self.l_min == self.l_max:
            raise TiterError(f"`l_min` and `l_max` are both {self.l_min}, and SLDR trains two layers.")


class SldrTrainer(DefenderRowsTrainer):
    """Trains refusals into two layers of the tuned model: min CE of refusals of harmful prompts (arXiv 2610.10345).

    The tuned adapter is merged into the model, in place of its weights, and a new one is trained on q, k and v of the layers l_min
    and l_max alone. One gradient evaluation a step.

    Args:
        model: The tuned model. An adapter on it is merged.
        args: Settings.
        peft_config: The refusal adapter in another form than the settings say; it is kept to the two layers.
        kwargs: What `DefenderRowsTrainer` takes.
    """

    args: SldrConfig

    def __init__(self, *, model: Any, args: SldrConfig, peft_config: Any = None, **kwargs: Any) -> None:
        from peft import LoraConfig

        refuse_arguments(type(self).__name__, {"args": args, "train_dataset": None, **kwargs})
        layers = two_layers(args)
        if hasattr(model, "merge_and_unload"):
            # With new tensors: others may share the old ones.
            model = model.merge_and_unload(safe_merge=True)
        depth = model.config.get_text_config().num_hidden_layers
        if max(layers) >= depth:
            raise TiterError(f"`l_min` and `l_max` are {layers}, and the model's {depth} layers are counted from 0.")
        own = peft_config or LoraConfig(
            task_type="CAUSAL_LM",
            r=args.rank,
            lora_alpha=args.alpha,
            target_modules=args.target_modules,
        )
        own = dataclasses.replace(own, layers_to_transform=layers)
        super().__init__(model=model, args=args, peft_config=own, **kwargs)


def two_layers(args: SldrConfig) -> list[int]:
    """Return l_min and l_max.

    Raises:
        TiterError: Where they are not known yet.
    """
    if args.l_min is None or args.l_max is None:
        raise TiterError(
            "SLDR trains two layers, and which is not said.",
            "`titer repair` and experiments find them; a trainer by itself wants `l_min` and `l_max`.",
        )
    return [args.l_min, args.l_max]


# (1) Which layers ----------------------------------------------------------------------------------------------------


def probes(args: SldrConfig, streams: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    """Return the prompts by which layers are found; none where they are given."""
    if args.l_max is not None:
        return ()
    helpful = streams["helpful_dataset"]
    return ([record for record in helpful if record.origin == "lookalike"] or helpful)[: args.probes]


def find_layers(
    args: SldrConfig, model: Any, template: Template, streams: Mapping[str, Sequence[Record]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return l_min and l_max, by the model before its user's fine-tuning, and κ of each of its layers.

    Raises:
        TiterError: Where no layer has another κ than the others.
    """
    prompts = [template.prompt_ids(record.to_training_row()["prompt"]) for record in probes(args, streams)]
    kappa = layer_kappa(model, template, prompts)
    # The first of several, as released.
    l_min, l_max = kappa.index(min(kappa)), kappa.index(max(kappa))
    if l_min == l_max:
        raise TiterError(
            f"No layer changes how many of {len(prompts)} harmless prompts are refused, or all alike (κ = {kappa[0]:g}), so which "
            "two to train cannot be told.",
            "Name them (`l_min`, `l_max`), or give prompts that the aligned model refuses some of (`lookalikes`).",
        )
    return {"l_min": l_min, "l_max": l_max}, {"kappa": kappa, "probes": len(prompts)}


def layer_kappa(model: Any, template: Template, prompts: Sequence[Sequence[int]]) -> list[float]:
    """Return κ of each layer: max over α of (refusals with its weights times 1 + α − those with 1 − α) / α."""
    layers = Inside(model).layers
    kappa = []
    with Task("scaled layers", len(layers)) as counted:
        for layer in layers:
            slopes = []
            for alpha in ALPHAS:
                counts = []
                for factor in (1 + alpha, 1 - alpha):
                    with scaled(layer, factor):
                        answers = generate(model, template, prompts, PROBE_TOKENS)
                    counts.append(sum(refuses(answer) for answer in answers))
                slopes.append((counts[0] - counts[1]) / alpha)
            kappa.append(max(slopes))
            counted.advance()
    return kappa


def refuses(answer: str) -> bool:
    """Say whether an answer holds a word that counts as a refusal."""
    return any(word in answer.lower() for word in REFUSES)


@contextmanager
def scaled(layer: torch.nn.Module, factor: float) -> Iterator[None]:
    """Multiply a layer's matrices (not its norms and biases) by a factor while the block runs; they come back bit for bit."""
    matrices = [weight for weight in layer.parameters() if weight.ndim > 1]
    before = [weight.detach().clone() for weight in matrices]
    try:
        with torch.no_grad():
            for weight in matrices:
                weight.mul_(factor)
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(matrices, before, strict=True):
                weight.copy_(old)


# (2) What is trained on ----------------------------------------------------------------------------------------------


def pairs(args: SldrConfig, streams: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Return harmful prompts with refusals: the first of the defender's rows."""
    return refusing(with_refusals(streams["harmful_dataset"], seed=0)[: args.pairs])


# (3) The router ------------------------------------------------------------------------------------------------------


def prototypes(
    args: SldrConfig, model: Any, template: Template, streams: Mapping[str, Sequence[Record]], system: str
) -> tuple[Router, Tensor, Tensor, dict[str, Any]]:
    """Return the router, the states of harmful and of harmless prompts behind l_max, and how it routes these prompts themselves.

    Args:
        args: Settings.
        model: The recovered model.
        template: Renders conversations.
        streams: The defender's rows by argument name.
        system: The system prompt that the model is served with; empty for none.

    Raises:
        TiterError: For fewer than two prompts of a kind.
    """
    count = min(args.prototypes, *(len(streams[name]) for name in ("harmful_dataset", "helpful_dataset")))
    if count < 2:
        raise TiterError("A router compares with two harmful and two harmless prompts or more.", "Give more of both.")
    states = []
    for name in ("harmful_dataset", "helpful_dataset"):
        asked = [served(record, system).to_training_row()["prompt"] for record in streams[name][:count]]
        states.append(last_states(model, [template.asked_ids(prompt) for prompt in asked], two_layers(args)[1]))
    harmful, benign = states
    # Of prompts that it compares with, each is left out of what it is compared with.
    own = torch.arange(count)
    on = [int((harm_scores(each, harmful, benign, args.top, own) > args.threshold).sum()) for each in states]
    router = Router(two_layers(args)[1], args.top, float(args.threshold))
    return router, harmful, benign, {"prototypes": count, "harmful_on": on[0], "benign_on": on[1]}


SLDR = Method(
    SldrConfig,
    SldrTrainer,
    "Trains refusals into two layers of the tuned model, which a router switches on by the prompt (SLDR, arXiv 2610.10345).",
    streams=("harmful_dataset", "helpful_dataset"),
    own_rows=pairs,
    routed=Routed(find_layers, probes, prototypes, PROBE_TOKENS, 2 * len(ALPHAS)),
    lora_only=True,
    variants={"": {"l_min": 0, "l_max": 1}},
    source=Source(
        "2610.10345, NeurIPS 2026",
        "Stardust457/SLDR",
        "MIT",
        "whoever holds the weights, who leaves the router off; no adaptive attack on it is published",
    ),
)
