"""T-Vaccine (arXiv 2410.09760): Vaccine on layers that are sampled by their harmful gradient; the others are frozen meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import Module

from titer.errors import TiterError, check_known
from titer.methods import Gradients, Held, Method, Source
from titer.methods.align.vaccine import VaccineConfig, VaccineTrainer, square
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.streams import draw
from titer.ranges import COUNT, Range

FROZEN = ("layers", "attention")


@dataclass
class TVaccineConfig(VaccineConfig):
    """Settings of T-Vaccine.

    Args:
        rho: ρ, the length of the perturbation, over the sampled attention outputs of an optimizer batch.
        sampled_layers: S, layers that are perturbed and trained at a time.
        sample_every: J, optimizer steps between samples of layers.
        score_every: K, optimizer steps between measurements of the harmful gradient of every layer.
        score_rows: Harmful rows that are measured on each time; all where there are fewer.
        frozen: What is frozen of a layer that is not sampled: `layers`, all of its trained weights, or `attention`, those of
            its attention alone, as the released code does.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        **VaccineConfig.RANGES,
        "sampled_layers": COUNT,
        "sample_every": COUNT,
        "score_every": COUNT,
        "score_rows": COUNT,
    }

    rho: float = field(default=3.0, metadata={"help": "ρ, length of the perturbation of the sampled outputs."})
    sampled_layers: int = field(default=8, metadata={"help": "S, layers perturbed and trained at a time."})
    sample_every: int = field(default=20, metadata={"help": "J, steps between samples of layers."})
    score_every: int = field(default=200, metadata={"help": "K, steps between measurements of harmful gradients."})
    score_rows: int = field(default=200, metadata={"help": "Harmful rows that are measured on each time."})
    frozen: str = field(
        default="layers",
        metadata={"help": "What is frozen of layers that are not sampled.", "choices": list(FROZEN)},
    )

    def __post_init__(self) -> None:
        check_known([self.frozen], FROZEN, "frozen")
        super().__post_init__()


class TVaccineTrainer(VaccineTrainer, DefenderRowsTrainer):
    """Minimises max_{‖ε‖ ≤ ρ} f(w; e + ε) with ε_l = 0 and w_l fixed for all layers l but S sampled ones (arXiv 2410.09760).

    Every K steps s_l = ‖∇_{e_l} h‖ is measured on harmful rows, h their mean token loss; every J steps S layers are drawn
    without replacement, with probabilities s_l / Σ_k s_k, by a generator that is a function of seed and step. The weights of
    the other layers keep no gradient, so no optimizer moves them. Two gradient evaluations a step, and one of the harmful
    rows every K steps; a tensor as large as each of S attention outputs.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        harmful_dataset: Harmful prompts with harmful answers.
        kwargs: What `trl.SFTTrainer` takes.
    """

    args: TVaccineConfig
    POOLS = (("harmful",),)

    def __init__(self, model: Any, args: TVaccineConfig, *, harmful_dataset: Any = None, **kwargs: Any) -> None:
        super().__init__(model, args, harmful_dataset=harmful_dataset, **kwargs)
        if args.sampled_layers > len(self.attention):
            raise TiterError(
                f"sampled_layers is {args.sampled_layers}, and the model has {len(self.attention)} layers with attention.",
                f"Set sampled_layers to at most {len(self.attention)}.",
            )
        # Where the bare model stands in the one whose weights are trained by name.
        around = next(name for name, module in self.model.named_modules() if module is self.bare_model)
        prefix = f"{around}." if around else ""
        self._freezable = {
            name: prefix + (f"{name}." if args.frozen == "attention" else block_of(name)) for name in self.attention
        }

    @property
    def sampled(self) -> list[str]:
        """The attention modules that are perturbed and trained now."""
        return [name for name in self.attention if self.step_state.values[f"sampled.{name}"]]

    @property
    def perturbed_attention(self) -> Mapping[str, Module]:
        """The sampled ones."""
        return {name: self.attention[name] for name in self.sampled}

    def before_step(self, model: Any) -> None:
        """Measure every K steps, sample every J, and compute ε of the sampled layers."""
        step = self.state.global_step
        if step % self.args.score_every == 0:
            self._measure(step // self.args.score_every)
        if step % self.args.sample_every == 0:
            self._sample(step // self.args.sample_every)
        super().before_step(model)

    def _measure(self, number: int) -> None:
        """Keep s_l of every layer, on the harmful rows of the `number`-th draw."""
        (pool,) = self._pools
        rows = min(self.args.score_rows, len(pool["harmful"]))
        samples = [pool["harmful"][row] for row in draw(len(pool["harmful"]), number * rows, rows, (self.args.seed, 0))]
        size = self.args.per_device_train_batch_size
        parts = [samples[start : start + size] for start in range(0, rows, size)]
        batches = [self._prepare_inputs(self.data_collator.lay_out(part)) for part in parts]
        squares = {name: torch.zeros((), device=self.args.device) for name in self.attention}
        for slopes in self.attention_slopes(batches, self.attention):
            for name, slope in slopes.items():
                squares[name] = squares[name] + square(slope)
        # All ranks measure the same rows; the mean over them is the same number on each, also where machines round otherwise.
        scores = self.total(torch.stack(list(squares.values()))).div(self.accelerator.num_processes).sqrt().tolist()
        self.step_state.values |= {f"score.{name}": score for name, score in zip(squares, scores, strict=True)}

    def _sample(self, number: int) -> None:
        """Draw the layers of the `number`-th window."""
        names = list(self.attention)
        scores = np.array([self.step_state.values[f"score.{name}"] for name in names])
        if np.count_nonzero(scores) < self.args.sampled_layers:
            raise TiterError(
                f"The harmful loss has a gradient in {np.count_nonzero(scores)} layers, and {self.args.sampled_layers} are to "
                "be sampled.",
                "Set sampled_layers lower, or give harmful rows that the model does not know by heart.",
            )
        generator = np.random.default_rng((self.args.seed, number))
        drawn = generator.choice(len(names), self.args.sampled_layers, replace=False, p=scores / scores.sum())
        self.step_state.values |= {f"sampled.{name}": float(place in drawn) for place, name in enumerate(names)}

    def after_step(self, model: Any) -> None:
        """Take the gradients of the frozen weights away."""
        super().after_step(model)
        sampled = set(self.sampled)
        frozen = tuple(prefix for name, prefix in self._freezable.items() if name not in sampled)
        trainable = self.trainable
        left = [name for name in trainable if not name.startswith(frozen)] if frozen else list(trainable)
        if not left:
            raise TiterError(
                "Of the sampled layers no weight is trained, so this step would teach nothing.",
                "Train weights of every layer (`layers_to_transform` of an adapter leaves some out), or sample more of them.",
            )
        for name in trainable.keys() - set(left):
            trainable[name].grad = None


def block_of(name: str) -> str:
    """Return the name of the block that an attention module is in, with a dot: `model.layers.3.` of `model.layers.3.self_attn`."""
    parts = name.split(".")
    last = max(place for place, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: last + 1]) + "."


def _gradients(args: TVaccineConfig) -> Gradients:
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return Gradients(training=1, answers=args.score_rows / rows / args.score_every)


T_VACCINE = Method(
    TVaccineConfig,
    TVaccineTrainer,
    "Aligns as Vaccine does on sampled layers, and freezes the others (arXiv 2410.09760).",
    streams=("harmful_dataset",),
    gradients=_gradients,
    variants={
        "": {"sampled_layers": 1, "sample_every": 1, "score_every": 1, "score_rows": 8},
        "attention": {
            "sampled_layers": 1,
            "sample_every": 2,
            "score_every": 1,
            "score_rows": 8,
            "frozen": "attention",
        },
    },
    memory="1 perturbation of each sampled attention output",
    holds=lambda args: Held(states=1),
    source=Source(
        "2410.09760, IEEE TIFS",
        "Lslland/T-Vaccine",
        "Apache-2.0",
        "",
    ),
)
