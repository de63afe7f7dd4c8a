"""SPARD (arXiv 2605.28030, ICML 2026): after each step on the upload, one back towards a bound on the loss of chosen safe rows."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.compat import copy_each_
from titer.data.records import Record
from titer.errors import check_known
from titer.infer.signals import prompt_states
from titer.methods import Gradients, Held, Method, Source
from titer.methods.finetune.base import AlignmentRowsConfig
from titer.methods.finetune.replay import rows_beside
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.batches import common_prefix_length
from titer.ranges import NOT_NEGATIVE, POSITIVE, SHARE, Range
from titer.train.gradients import add_, global_norm, gradients, local, reshard, scale_, take_gradients

logger = logging.getLogger(__name__)

PROJECTIONS = ("code", "closed-form")
SELECTIONS = ("dpp", "random")
JITTER = 1e-6
"""Added to the kernel's diagonal, and the least gain of a row, as the released code does."""
NORM_EPSILON = 1e-8
"""Added to a tensor's norm before dividing by it, as the released code does."""


@dataclass
class SpardConfig(AlignmentRowsConfig):
    """Settings of SPARD.

    Args:
        projection: What follows a step on the upload: another step of the same optimizer, as the released `code` takes it, or
            the paper's `closed-form` step along the safe gradient.
        tau: τ, the bound on the loss of the safe rows, in nats.
        tolerance: How far above τ it must be before the second optimizer step is taken; of `code`.
        alpha_max: Largest factor on a tensor's safe gradient; of `code`.
        eta_safe: η_safe, the longest step along the safe gradient, in learning rates; of `closed-form`.
        replay: Safe rows of a step for each row of the upload in it.
        selection: Which of the defender's alignment rows are the safe rows: those that a determinantal point process (`dpp`)
            prefers, near to the upload and unlike each other, or `random` ones.
        ratio: How many safe rows are chosen for each row of the upload.
        power: β, the power of a row's nearness to the upload; of `dpp`.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        **AlignmentRowsConfig.RANGES,
        "tau": NOT_NEGATIVE,
        "tolerance": NOT_NEGATIVE,
        "alpha_max": POSITIVE,
        "eta_safe": NOT_NEGATIVE,
        "replay": Range(0, 1, above=True),
        "ratio": SHARE,
        "power": NOT_NEGATIVE,
    }

    projection: str = field(
        default="code", metadata={"help": "What follows a step on the upload.", "choices": list(PROJECTIONS)}
    )
    tau: float = field(default=0.2, metadata={"help": "τ, bound on the loss of the safe rows, in nats."})
    tolerance: float = field(default=0.1, metadata={"help": "Excess over τ that is let pass (projection code)."})
    alpha_max: float = field(
        default=1.0, metadata={"help": "Largest factor on a tensor's safe gradient (projection code)."}
    )
    eta_safe: float = field(
        default=1e4, metadata={"help": "Longest step along the safe gradient, in learning rates (closed-form)."}
    )
    replay: float = field(default=1 / 32, metadata={"help": "Safe rows of a step for each row of the upload in it."})
    selection: str = field(
        default="dpp", metadata={"help": "Which alignment rows are the safe ones.", "choices": list(SELECTIONS)}
    )
    ratio: float = field(default=0.03, metadata={"help": "Safe rows that are chosen for each row of the upload."})
    power: float = field(default=4.0, metadata={"help": "β, power of a row's nearness to the upload (dpp)."})

    def __post_init__(self) -> None:
        check_known([self.projection], PROJECTIONS, "projection")
        check_known([self.selection], SELECTIONS, "selection")
        super().__post_init__()


def relevance_diversity(safe: Tensor, upload: Tensor, power: float) -> Tensor:
    """Return the kernel K_ij = (q_i q_j)^β cos(i, j) + 1e-6 [i = j], `(n, n)`; q_i is the largest cosine with a row of the upload.

    Args:
        safe: A vector of each safe row, `(n, features)`.
        upload: A vector of each row of the upload, `(m, features)`.
        power: β.
    """
    safe, upload = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (safe, upload))
    # A row that points away from all of the upload is as irrelevant as one can be.
    quality = (safe @ upload.T).amax(1).clamp_min(0) ** power
    return quality[:, None] * quality * (safe @ safe.T) + JITTER * torch.eye(len(safe), dtype=torch.float64)


def greedy_dpp(kernel: Tensor, count: int) -> list[int]:
    """Return `count` rows, each the one that raises log det of the kernel of those chosen most.

    Args:
        kernel: `(n, n)`, positive definite.
        count: At most n.
    """
    chosen: list[int] = []
    gains = kernel.diagonal().clone()
    columns = kernel.new_zeros(count, len(kernel))  # of the Cholesky factor of the chosen rows' kernel
    for place in range(count):
        best = int(gains.argmax())
        chosen.append(best)
        column = (kernel[best] - columns[:place, best] @ columns[:place]) / gains[best].sqrt()
        columns[place] = column
        gains = (gains - column * column).clamp_min(JITTER)
        gains[chosen] = -math.inf
    return chosen


class SpardTrainer(DefenderRowsTrainer):
    """Minimises g(w) under f(w) ≤ τ, where f is the loss of chosen safe rows (arXiv 2605.28030), by two steps in turn.

    The first is the optimizer's on ∇g. The second goes by f and ∇f at the weights that the first has left, where f is too high.
    `closed-form`, the paper's: w ← w − min((f − τ)/‖∇f‖², η_safe) ∇f. `code`, the released one: ∇f is clipped, each tensor of it
    multiplied by min((f − τ)/‖∇f_tensor‖, α_max), and handed to the same optimizer, whose moments both steps share. Two
    gradients a step, the second one of few rows, and a copy of the trained weights. Before training one forward pass over
    the prompts.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `DefenderRowsTrainer` takes: `harmful_dataset`, whose rows may hold a `refusal`, and `helpful_dataset`.

    Attributes:
        chosen: Which rows of the pool of alignment rows are the safe rows.
    """

    args: SpardConfig
    POOLS = (("alignment",),)

    def __init__(self, model: Any, args: SpardConfig, **kwargs: Any) -> None:
        self._before: list[Tensor] = []
        super().__init__(model=model, args=args, **kwargs)
        rows = self._pools[0]["alignment"]
        self.chosen = self._choose([sample.prompt for sample in rows])
        self._pools[0] = {"alignment": [rows[place] for place in self.chosen]}

    def _choose(self, safe: list[Sequence[int]]) -> list[int]:
        upload = list(self.train_dataset["prompt_ids"])
        count = max(1, int(self.args.ratio * len(upload)))
        if count > len(safe):
            logger.warning("%d safe rows are asked for and there are %d: all of them are taken.", count, len(safe))
            count = len(safe)
        if self.args.selection == "random":
            return random.Random(f"titer.spard:{self.args.seed}").sample(range(len(safe)), count)
        # What all prompts begin with is the chat template's, and would make all of them alike.
        shared = common_prefix_length([*safe, *upload])
        states = prompt_states(self.model, [*safe, *upload], shared)
        kernel = relevance_diversity(states[: len(safe)], states[len(safe) :], self.args.power)
        return greedy_dpp(kernel, count)

    @property
    def rows_drawn(self) -> int:
        """How many safe rows each rank draws at an optimizer step."""
        return rows_beside(self.args.replay, super().rows_drawn, self.args.per_device_train_batch_size)

    def after_step(self, model: Any) -> None:
        """Remember the weights that both steps begin with."""
        self._before = [local(weight.detach()).clone() for weight in self.trainable.values()]

    def after_update(self, model: Any) -> None:
        """Step back towards f ≤ τ; a step that breaks off leaves the weights that it began with."""
        try:
            take_gradients(self.trainable)  # ∇g has been used
            loss = self.stream_backward(model, "alignment")  # .grad = ∇f
            excess = loss - self.args.tau
            by_code = self.args.projection == "code"
            corrected = excess > (self.args.tolerance if by_code else 0.0)
            if corrected:
                (self._step_again if by_code else self._project)(excess)
            self.record(safe_loss=loss, corrected=float(corrected))
        except BaseException:
            reshard(self.model)
            with torch.no_grad():
                copy_each_([local(weight.detach()) for weight in self.trainable.values()], self._before)
            raise
        finally:
            self._before = []

    def _step_again(self, excess: float) -> None:
        """Take another step of the optimizer, as the released code does: clipped first, then multiplied tensor by tensor."""
        weights = self.trainable
        if self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(list(weights.values()), self.args.max_grad_norm)
        for gradient in gradients(weights):
            factor = excess / (global_norm([gradient]) + NORM_EPSILON)
            scale_([gradient], factor.clamp_max(self.args.alpha_max))
        self.optimizer.step()

    def _project(self, excess: float) -> None:
        """Go along −∇f to where f, linear as it is here, is τ, and no further than η_safe ‖∇f‖."""
        weights = self.trainable
        slope = gradients(weights)
        square = global_norm(slope).item() ** 2
        # In learning rates, so that it falls as they do, and at a rate of 0 nothing moves.
        longest = self.args.eta_safe * self.optimizer.param_groups[0]["lr"]
        length = min(excess / square, longest) if square else 0.0
        if length:
            add_([weight.detach() for weight in weights.values()], slope, -length)


def _scored_first(
    args: SpardConfig, rows: Sequence[Record], streams: Mapping[str, Sequence[Record]]
) -> Sequence[Record]:
    return [*rows, *streams["harmful_dataset"]] if args.selection == "dpp" else ()


_MATTERS = {"replay": 0.25, "ratio": 0.5, "tau": 0.5}

SPARD = Method(
    SpardConfig,
    SpardTrainer,
    "Steps back, after each step on the upload, to where chosen refusals are likely (arXiv 2605.28030).",
    streams=("harmful_dataset", "helpful_dataset"),
    gradients=lambda args: Gradients(replay=1.0),
    scores_first=_scored_first,
    variants={
        "code": _MATTERS,
        "closed-form": {**_MATTERS, "projection": "closed-form", "eta_safe": 5.0},
        "random": {**_MATTERS, "selection": "random", "helpful_each": 1},
    },
    memory="1 copy of the trained weights",
    holds=lambda args: Held(copies=1),
    source=Source(
        "2605.28030, ICML 2026",
        "shuhao02/SPARD",
        "none",
        "harm taught inside of honest rows (2606.30263); the upload chooses the safe rows",
    ),
)
