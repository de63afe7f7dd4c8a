"""Safety Anchor, SBR (arXiv 2605.05995, ICML 2026): what the head reads at the end of a few harmful prompts stays where it was."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.data.records import is_blank
from titer.errors import TiterError, check_known
from titer.methods import Gradients, Held, Method, Source
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.batches import Sample
from titer.packing.losses import last_states
from titer.packing.streams import Pool
from titer.ranges import COUNT, NOT_NEGATIVE, Range
from titer.train.rows import Encoder

REDUCTIONS = ("mean", "sum")


@dataclass
class SBRConfig(FinetuneConfig):
    """Settings of Safety Anchor.

    Args:
        anchor_weight: λ, the weight of the anchors' distance, whatever the gradient accumulation; 0 is plain fine-tuning.
        anchors: K, how many harmful prompts are held.
        anchor_prompts: The prompts to hold, in the place of K of the harmful rows.
        reduction: Of a prompt's squared distance over the hidden width: `mean`, as released, or `sum`, as the paper prints it.
    """

    RANGES: ClassVar[dict[str, Range]] = {"anchor_weight": NOT_NEGATIVE, "anchors": COUNT}

    anchor_weight: float = field(default=50.0, metadata={"help": "λ, weight of the anchors' distance."})
    anchors: int = field(default=8, metadata={"help": "K, how many harmful prompts are held."})
    anchor_prompts: list[str] | None = field(
        default=None, metadata={"help": "Prompts to hold, in the place of harmful rows."}
    )
    reduction: str = field(
        default="mean", metadata={"help": "Mean or sum over the hidden width.", "choices": list(REDUCTIONS)}
    )

    def __post_init__(self) -> None:
        check_known([self.reduction], REDUCTIONS, "reduction")
        prompts = self.anchor_prompts
        if prompts is not None and (
            not isinstance(prompts, list)
            or not prompts
            or any(not isinstance(one, str) or is_blank(one) for one in prompts)
        ):
            raise TiterError(f"`anchor_prompts` must be a list of texts that say something, found `{prompts!r:.80}`.")
        super().__post_init__()


class SBRTrainer(DefenderRowsTrainer):
    """Minimises g(w) + λ/(K·D) Σ_k ‖z_w(x_k) − z_0(x_k)‖² (arXiv 2605.05995, as its released code has it).

    g is the mean token loss of the upload; z is the hidden state of width D behind the last norm at the last token of a harmful
    prompt, where the first token of its answer is predicted; z_0 is that of the model that the trainer is made with. Two
    gradients a step, that of the anchors of K short prompts, once an optimizer step however many micro-batches it has; K·D
    numbers.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        harmful_dataset: The defender's harmful prompts, of which K are drawn by the seed.
        kwargs: What `DefenderRowsTrainer` takes.
    """

    args: SBRConfig

    def __init__(self, model: Any, args: SBRConfig, *, harmful_dataset: Any = None, **kwargs: Any) -> None:
        if harmful_dataset is None and args.anchor_prompts is None:
            raise TiterError(
                "SBRTrainer needs `harmful_dataset`, the harmful prompts that it holds.",
                "Pass one (`builtin:harmful` is titer's own), or name prompts with `anchor_prompts`.",
            )
        super().__init__(model=model, args=args, harmful_dataset=harmful_dataset, **kwargs)
        if args.anchor_weight:
            self.refuse_noise("so the anchors would be as far from the reference as the masks are apart.")
            self.model.eval()
            with torch.no_grad():
                self.start = self.states(self.model)
            self.model.train()

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return the anchors, which are no rows to draw: all of them are run at each step."""
        rows = self._anchor_rows()
        end = encoder.template.tokenizer.eos_token_id
        self.held = [Sample(sample.prompt, [[end]]) for sample in encoder.samples(rows, "anchors")]
        return [{"anchors": self.held}]

    def _anchor_rows(self) -> Sequence[dict[str, Any]]:
        prompts, count = self.args.anchor_prompts, self.args.anchors
        if prompts is not None:
            return [{"prompt": prompt, "completion": "-"} for prompt in prompts]
        if len(self.harmful_rows) < count:
            raise TiterError(
                f"{count} anchors are asked for, and harmful_dataset has {len(self.harmful_rows)} rows.",
                f"Set anchors to at most {len(self.harmful_rows)}, or give more rows.",
            )
        return random.Random(f"titer.sbr:{self.args.seed}").sample(self.harmful_rows, count)

    def states(self, model: Any) -> Tensor:
        """Return z of each anchor under the model as it is, `(K, hidden_size)`, in at least float32."""
        batch = self._prepare_inputs(self.data_collator.lay_out(self.held))
        with self.compute_loss_context_manager():
            states = last_states(model, batch)
        return states.to(torch.promote_types(states.dtype, torch.float32))

    def before_step(self, model: Any) -> None:
        """Leave the gradient of the anchors' distance in `.grad`; the training loss adds ∇g(w)."""
        if not self.args.anchor_weight:
            return
        squared = (self.states(model) - self.start).square()
        distance = squared.mean() if self.args.reduction == "mean" else squared.sum(-1).mean()
        # Every rank runs all anchors, and DDP takes the mean over ranks.
        self.accelerator.backward(self.args.anchor_weight * distance)
        self.record(anchor_distance=distance.item())


SBR = Method(
    SBRConfig,
    SBRTrainer,
    "Holds what the head reads at the end of a few harmful prompts (arXiv 2605.05995).",
    streams=("harmful_dataset",),
    gradients=lambda args: Gradients(prompts=float(args.anchor_weight > 0)),
    variants={
        "": {"anchors": 3, "anchor_weight": 50.0},
        "sum": {"anchors": 3, "anchor_weight": 2.0, "reduction": "sum"},
    },
    memory="K hidden states",
    holds=lambda args: Held(onto=float(args.anchor_weight > 0)),
    source=Source(
        "2605.05995, ICML 2026", "soyoaaa/SBR", "none", "a trained unembedding, by its own account (2605.05995)"
    ),
)
