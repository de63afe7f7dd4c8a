"""TOSS (arXiv 2603.01185, ICLR 2026): leave out the answer tokens that a model trained on harm finds likelier than one that was not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast
from torch import Tensor

from titer.compat import copy_each_
from titer.data.records import Record
from titer.errors import TiterError
from titer.methods import Held, Method, Source
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.reference import ReferenceTrainer
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.batches import PackedBatch, Sample
from titer.packing.losses import token_nll
from titer.packing.streams import draw
from titer.progress import Task
from titer.ranges import COUNT, MOMENTUM, POSITIVE, Range
from titer.train.gradients import gradients


@dataclass
class TossConfig(FinetuneConfig):
    """Settings of TOSS.

    Args:
        drop: d, the share of the upload's answer tokens that are left out.
        reference_steps: Steps of each of the two reference trainings.
        reference_rate: Their learning rate.
        reference_batch_size: Rows of their batches.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "drop": MOMENTUM,
        "reference_steps": COUNT,
        "reference_rate": POSITIVE,
        "reference_batch_size": COUNT,
    }

    drop: float = field(default=0.1, metadata={"help": "d, share of the upload's answer tokens that are left out."})
    reference_steps: int = field(default=50, metadata={"help": "Steps of each of the two reference trainings."})
    reference_rate: float = field(default=5e-4, metadata={"help": "Learning rate of the reference trainings."})
    reference_batch_size: int = field(default=8, metadata={"help": "Rows of a batch of the reference trainings."})


def kept_tokens(scores: Tensor, drop: float) -> Tensor:
    """Return which tokens stay when the highest scores are left out, as many as the share `drop` of all, rounded down, has."""
    order = torch.sort(scores, descending=True, stable=True).indices
    kept = torch.ones_like(scores, dtype=torch.bool)
    kept[order[: int(len(scores) * drop)]] = False
    return kept


class TossTrainer(ReferenceTrainer, DefenderRowsTrainer):
    """Minimises the mean CE of the answer tokens that stay; of all in the upload those of the top d by S_t do not.

    S_t = NLL_t(θ_u) − NLL_t(θ_h) (arXiv 2603.01185): θ_h is the model trained on harmful rows, θ_u the model trained on
    helpful rows, both from the weights that the trainer was made with, which are put back bit for bit. One gradient a step.
    Before training 2 · `reference_steps` gradients and two forward passes over the rows. Extra memory: one bit an answer
    token; while the references are trained, a copy of the trained weights and AdamW's state.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        harmful_dataset: Harmful prompts with harmful answers, held by the defender.
        helpful_dataset: Harmless prompts with helpful answers, held by the defender.
        kwargs: What `trl.SFTTrainer` takes.

    Attributes:
        scores: S of every answer token, a tensor for each training row.
    """

    args: TossConfig

    POOLS = (("harmful",), ("general",))

    def __init__(self, model: Any, args: TossConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        pairs = zip(self.train_dataset["prompt_ids"], self.train_dataset["completion_ids"], strict=True)
        samples = [Sample(prompt, [answer]) for prompt, answer in pairs]
        likely = {}
        for stream in ("harmful", "general"):
            with self.trained_on(stream):
                likely[stream] = torch.cat(self.scored(samples))
        scores = likely["general"] - likely["harmful"]
        if not scores.isfinite().all():
            raise TiterError(
                "The reference trainings put out what is no number: their weights ran away.",
                f"Take a smaller reference_rate than {args.reference_rate:g}.",
            )
        # Accelerators do not add up in the same order twice; no two processes may leave out different tokens.
        scores = broadcast(scores.to(args.device)).cpu()
        self._lengths = [len(sample.branches[0]) for sample in samples]
        self.scores = scores.split(self._lengths)
        # Saved in checkpoints: a training that goes on leaves out the tokens that it left out before.
        self.kept["tokens"] = kept_tokens(scores, args.drop).to(torch.uint8)

    @property
    def kept_by_row(self) -> tuple[Tensor, ...]:
        """Which answer tokens are trained on, a tensor for each training row."""
        return self.kept["tokens"].bool().split(self._lengths)

    @contextmanager
    def trained_on(self, stream: str) -> Iterator[None]:
        """Inside the block the weights are those of a short training on a stream; on exit they are what they were, bit for bit.

        Every process does all of it, on the rows that the seed says, without dropout.
        """
        weights = self.trainable
        saved = [weight.detach().clone() for weight in weights.values()]
        optimizer = torch.optim.AdamW(weights.values(), lr=self.args.reference_rate, weight_decay=0.0)
        training = self.model.training
        self.model.eval()
        try:
            with Task(f"steps of the reference trained on {stream} rows", self.args.reference_steps) as done:
                for step in range(self.args.reference_steps):
                    self._reference_gradient(stream, step)
                    gradients(weights)  # one that is missing is an error
                    optimizer.step()
                    optimizer.zero_grad()
                    done.advance()
            yield
        finally:
            for weight in weights.values():
                weight.grad = None
            with torch.no_grad():
                copy_each_([weight.detach() for weight in weights.values()], saved)
            self.model.train(training)

    def _reference_gradient(self, stream: str, step: int) -> None:
        """Leave the gradient of the mean token loss of a reference's batch in `.grad`."""
        which, pool = next((which, pool[stream]) for which, pool in enumerate(self._pools) if stream in pool)
        size, micro = self.args.reference_batch_size, self.args.per_device_train_batch_size
        batch = [pool[row] for row in draw(len(pool), step * size, size, (self.args.seed, which))]
        tokens = sum(len(sample.branches[0]) for sample in batch)
        for start in range(0, size, micro):
            part = self._prepare_inputs(self.data_collator.lay_out(batch[start : start + micro]))
            with self.compute_loss_context_manager():
                nll, _ = token_nll(self.model, part)
            (nll.sum() / tokens).backward()

    def before_step(self, model: Any) -> None:
        """Count the tokens of the optimizer batch that are trained on, over all ranks."""
        rows = self.kept_by_row
        kept = sum(int(rows[row].sum()) for batch in self.micro_batches for row in batch["row"].tolist())
        self.tokens = self.total(torch.tensor(kept, device=self.args.device))
        self.record(kept_tokens=self.tokens.item())

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the summed loss of the tokens that stay over their number in the optimizer batch."""
        nll, output = token_nll(model, inputs)
        rows = self.kept_by_row
        kept = torch.cat([rows[row] for row in inputs["row"].tolist()]).to(nll)
        # A batch of which nothing stays teaches nothing.
        loss = (kept * nll).sum() * self.accelerator.num_processes / self.tokens.clamp_min(1)
        return (loss, output) if return_outputs else loss


def _scored_first(
    args: TossConfig, rows: Sequence[Record], streams: Mapping[str, Sequence[Record]]
) -> Sequence[Record]:
    """Return the rows that pass through the model before training: the upload's twice, and as many as make a training's passes."""
    passes = 3 * args.reference_steps * args.reference_batch_size  # a gradient is three forward passes
    trained = [row for name in TOSS.streams for row in islice(cycle(streams[name]), passes)]
    return [*rows, *rows, *trained]


TOSS = Method(
    TossConfig,
    TossTrainer,
    "Leaves out the answer tokens that training on harm makes likelier than training on help does (arXiv 2603.01185).",
    streams=("harmful_dataset", "helpful_dataset"),
    scores_first=_scored_first,
    variants={"": {"drop": 0.3, "reference_steps": 3, "reference_rate": 1e-2}},
    memory="1 bit an answer token; before training a copy of the trained weights and AdamW's state",
    holds=lambda args: Held(copies=1),
    source=Source(
        "2603.01185, ICLR 2026",
        "Polly-LYP/TOSS",
        "Apache-2.0 (text under train/)",
        "",
    ),
)
