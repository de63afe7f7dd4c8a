"""RepNoise (arXiv 2405.14577, NeurIPS 2024): turn what the layers make of harmful answers into noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from titer.errors import TiterError
from titer.methods import Gradients, Held, Method, Source
from titer.methods.align.paired import PairedConfig, PairedTrainer
from titer.methods.inside import at_tokens
from titer.packing.batches import PackedBatch
from titer.ranges import NOT_NEGATIVE, Range
from titer.train.gradients import reshard

KERNELS = 5
"""How many Gaussian kernels the discrepancy adds up, each twice as wide as the one before."""


@dataclass
class RepNoiseConfig(PairedConfig):
    """Settings of RepNoise.

    Args:
        alpha: α, the weight of the layer-wise ascent.
        beta: β, the weight of the noise term.
    """

    RANGES: ClassVar[dict[str, Range]] = {"alpha": NOT_NEGATIVE, "beta": NOT_NEGATIVE}

    alpha: float = field(default=1.0, metadata={"help": "α, weight of the layer-wise ascent."})
    beta: float = field(default=0.001, metadata={"help": "β, weight of the noise term."})


class Answers(NamedTuple):
    """Which tokens of a micro-batch's harmful answers the model runs that differ from the refusal's.

    Attributes:
        slots: `(M,)`, the place of each token's row among the rows that all ranks draw.
        positions: `(M,)`, where in its row it stands.
        places: `(M,)`, where in the batch, numbered as `predict_from` does.
    """

    slots: Tensor
    positions: Tensor
    places: Tensor


def discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples `(n, features)`, a scalar.

    Five Gaussian kernels exp(−d²/b), b from a quarter of the mean squared distance of two different vectors to four times it,
    through which no gradient flows; a vector is compared with itself too (the biased estimate), as in the released code.
    """
    both = torch.cat((x, y))
    squares = (both * both).sum(1)
    distances = (squares[:, None] + squares[None] - 2 * both @ both.T).clamp_min(0)
    bandwidth = distances.detach().sum() / (len(both) * (len(both) - 1)) / 2 ** (KERNELS // 2)
    kernel = torch.stack([torch.exp(-distances / (bandwidth * 2**i)) for i in range(KERNELS)]).sum(0)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - kernel[:n, n:].mean() - kernel[n:, :n].mean()


class RepNoiseTrainer(PairedTrainer):
    """Minimises f(w) − α log(1 + C(w)) + β N(w) over the weights w (arXiv 2405.14577).

    f is the mean token loss of the alignment data; C that of harmful answers at the embedding and at every layer, where they
    differ from the paired refusal; N the mean over layers of the discrepancy between what their MLPs put out there and Gaussian
    noise, drawn anew at each step. N compares the rows of an optimizer batch with each other, whatever micro-batches and ranks
    they are on: a forward pass collects what the MLPs put out, and the gradient of N by that is handed to the next pass. Two
    gradient evaluations and a forward pass a step.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        train_dataset: Refusals of harmful prompts and helpful answers.
        harmful_dataset: Harmful prompts with harmful answers; refusals are their own (`refusal`) or generic ones.
        kwargs: What `trl.SFTTrainer` takes.
    """

    args: RepNoiseConfig

    def __init__(self, model: Any, args: RepNoiseConfig, *, harmful_dataset: Any = None, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, harmful_dataset=harmful_dataset, **kwargs)
        if args.beta and not any(any(differs[:-1]) for differs in self.differs):
            raise TiterError(
                "harmful_dataset: no answer has a token, but for its last, that its refusal lacks, so there is nothing to turn "
                "into noise.",
                "Give longer answers, or set beta=0.",
            )

    def before_step(self, model: Any) -> None:
        """Leave the gradient of −α log(1 + C) + β N in `.grad`, to which the training loss adds ∇f(w)."""
        batches, (masks, count) = self.stream_batches("harmful"), self.masks()
        drawn = self.drawn_places("harmful")
        answers = [self._answers(batch, places) for batch, places in zip(batches, drawn, strict=True)]
        loss, states = self._look(model, batches, masks, count, answers)
        noise, slopes = self._noise(answers, states)
        weight = -self.args.alpha / (1 + loss)
        shares = [
            partial(self._share, model, batch, mask, count, weight, found, slope)
            for batch, mask, found, slope in zip(batches, masks, answers, slopes, strict=True)
        ]
        self.backward_of("layer-wise loss", shares)
        self.record(layer_loss=loss, noise_loss=noise)

    def _answers(self, batch: PackedBatch, places: range) -> Answers:
        """Return the tokens of a micro-batch that N is about; `places` are those of its rows in the draw."""
        rows = self.drawn_rows("harmful", self.draw_number)
        pool = next(pool for pool in self._pools if "harmful" in pool)
        found: list[tuple[int, int, int]] = []
        start = 0
        for slot in places:
            sample, differs = pool["harmful"][rows[slot]], self.differs[rows[slot]]
            # A token's own output is where the next one is predicted; the last token of an answer is not run.
            kept = [token for token in range(len(differs) - 1) if differs[token]]
            found += [(slot, len(sample.prompt) + token, start + token + 1) for token in kept]
            start += len(differs)
        slots, positions, predicting = (
            torch.tensor(found, dtype=torch.long, device=self.args.device).reshape(-1, 3).unbind(1)
        )
        return Answers(slots, positions, batch["predict_from"][predicting])

    @torch.no_grad()
    def _look(
        self, model: Any, batches: list[PackedBatch], masks: list[Tensor], count: int, answers: list[Answers]
    ) -> tuple[float, list[list[Tensor]]]:
        """Return C over all ranks, and what the MLPs put out at the tokens of each micro-batch, `(M, features)` by layer."""
        twice, loss = self.args.final_loss == "twice", torch.zeros((), device=self.args.device)
        states: list[list[Tensor]] = []
        for batch, mask, found in zip(batches, masks, answers, strict=True):
            with self.compute_loss_context_manager(), self.inside.mlp_outputs() as outputs:
                loss = loss + self._layer_share(model, batch, mask, count, twice)
            states.append([_precise(at_tokens(output, batch, found.places)) for output in outputs])
        reshard(self.model)
        total = self.total(loss).item()
        self._refuse_divergence("layer-wise loss", total)
        return total, states

    def _noise(self, answers: list[Answers], states: list[list[Tensor]]) -> tuple[float, list[list[Tensor]]]:
        """Return N, and β times its gradient by what the MLPs put out, as `_look` returned that."""
        rows = self.drawn_rows("harmful", self.draw_number)
        pool = next(pool for pool in self._pools if "harmful" in pool)
        samples = [pool["harmful"][row] for row in rows]
        first = min(len(sample.prompt) for sample in samples)
        span = max(len(sample.prompt) + len(sample.branches[0]) for sample in samples) - first
        slots = torch.cat([each.slots for each in answers])
        positions = torch.cat([each.positions for each in answers]) - first
        sizes = [len(each.slots) for each in answers]
        present = torch.zeros(len(rows), span, dtype=torch.bool)
        for slot, (sample, row) in enumerate(zip(samples, rows, strict=True)):
            differs, start = self.differs[row][:-1], len(sample.prompt) - first
            present[slot, start : start + len(differs)] = torch.tensor(differs, dtype=torch.bool)
        if not (self.args.beta and present.any()):
            return 0.0, [[torch.zeros_like(state) for state in each] for each in states]
        draw, mask = self.noise_of(self.state.global_step), present[..., None].to(slots.device)
        depth, noise = len(self.inside.layers), 0.0
        slopes: list[list[Tensor]] = [[] for _ in states]
        for layer in range(depth):
            own = torch.cat([each[layer] for each in states])
            x = own.new_zeros(len(rows), span, own.shape[-1])
            x[slots, positions] = own
            x = self.total(x).requires_grad_()  # the rows of all ranks
            y = torch.randn(x.shape, generator=draw, dtype=x.dtype, device=x.device) * mask
            value = discrepancy(x.flatten(1), y.flatten(1)) / depth
            value.backward()  # type: ignore[no-untyped-call, unused-ignore]
            noise += value.item()
            assert x.grad is not None
            for each, slope in zip(slopes, (self.args.beta * x.grad[slots, positions]).split(sizes), strict=True):
                each.append(slope)
        return noise, slopes

    def noise_of(self, step: int) -> torch.Generator:
        """Return what a step's noise is drawn from, the same on every rank and when training resumes."""
        (seed,) = np.random.SeedSequence([self.args.seed, step]).generate_state(1, np.uint64)
        return torch.Generator(self.args.device).manual_seed(int(seed) % 2**63)

    def _share(
        self,
        model: Any,
        batch: PackedBatch,
        mask: Tensor,
        count: int,
        weight: float,
        found: Answers,
        slopes: list[Tensor],
    ) -> Tensor:
        """Return a micro-batch's loss, whose gradient is its share of that of −α log(1 + C) + β N."""
        with self.inside.mlp_outputs() as outputs:
            loss = weight * self._layer_share(model, batch, mask, count, self.args.final_loss == "twice")
        for output, slope in zip(outputs, slopes, strict=True):
            loss = loss + (_precise(at_tokens(output, batch, found.places)) * slope).sum()
        return loss


def _precise(states: Tensor) -> Tensor:
    return states.float() if states.dtype in (torch.float16, torch.bfloat16) else states


REP_NOISE = Method(
    RepNoiseConfig,
    RepNoiseTrainer,
    "Turns what the layers make of harmful answers into noise, and unlearns them at each (arXiv 2405.14577).",
    streams=("harmful_dataset",),
    gradients=lambda args: Gradients(answers=1),
    variants={
        "": {"alpha": 0.7, "beta": 5.0},
        "released": {"alpha": 0.7, "beta": 5.0, "final_loss": "twice"},
    },
    memory="MLP outputs of the harmful batch",
    holds=lambda args: Held(onto=1, states=1),
    source=Source(
        "2405.14577, NeurIPS 2024",
        "domenicrosati/representation-noising",
        "Apache-2.0",
        "sweeps of rates and steps (2602.06911)",
    ),
)
