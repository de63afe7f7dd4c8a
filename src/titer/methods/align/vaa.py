"""VAA (arXiv 2506.03850, ICML 2025): rows that are forgotten first and the others are learnt in balance, and made flat."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from titer.data.records import Record
from titer.errors import TiterError
from titer.methods import Gradients, Held, Method, Source
from titer.methods.reference import ReferenceTrainer
from titer.methods.streams import DefenderRowsTrainer
from titer.packing.batches import PackedBatch, Sample
from titer.packing.losses import token_nll
from titer.packing.streams import Pool, draw
from titer.ranges import COUNT, INNER_SHARE, NOT_NEGATIVE, POSITIVE, SHARE, Range
from titer.train.gradients import perturbed, take_gradients
from titer.train.rows import Encoder
from titer.train.trainer import PackedSFTConfig

logger = logging.getLogger(__name__)

COLUMN = "vulnerable"
GROUPS = ("vulnerable", "other")


@dataclass
class VaaConfig(PackedSFTConfig):
    """Settings of VAA.

    Args:
        rho: ρ, the length of the perturbation of the weights.
        eta: η, the rate of the sampler of groups.
        least_probability: The probability of a group never falls below it.
        perturb_from: λ at the first step, the probability that a step is taken at perturbed weights.
        perturb_to: λ at the last step; it goes from one to the other linearly.
        vulnerable_share: Where rows do not say their group, the part of them that counts as vulnerable.
        probe_radius: Where they do not, the length of the simulated harmful step by which they are told apart.
        probe_rows: Harmful rows that this step is along the gradient of; all where there are fewer.
        min_perturbation: Least cosine and length of a perturbation as the forward pass sees it, relative to what was meant; 0
            accepts anything.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "rho": NOT_NEGATIVE,
        "eta": NOT_NEGATIVE,
        "least_probability": Range(0, 0.5, above=True),
        "perturb_from": SHARE,
        "perturb_to": SHARE,
        "vulnerable_share": INNER_SHARE,
        "probe_radius": POSITIVE,
        "probe_rows": COUNT,
        "min_perturbation": SHARE,
    }

    rho: float = field(default=0.4, metadata={"help": "ρ, length of the perturbation of the weights."})
    eta: float = field(default=0.007, metadata={"help": "η, rate of the sampler of groups."})
    least_probability: float = field(default=0.1, metadata={"help": "The probability of a group stays above it."})
    perturb_from: float = field(default=0.0, metadata={"help": "λ at the first step: probability of a perturbed step."})
    perturb_to: float = field(default=1.0, metadata={"help": "λ at the last step."})
    vulnerable_share: float = field(
        default=0.5, metadata={"help": "Part of the rows that is vulnerable, where rows do not say."}
    )
    probe_radius: float = field(
        default=0.1, metadata={"help": "Length of the harmful step that tells vulnerable rows, where rows do not say."}
    )
    probe_rows: int = field(default=200, metadata={"help": "Harmful rows of that step."})
    min_perturbation: float = field(
        default=0.9, metadata={"help": "Least part of a perturbation that must survive rounding; 0 for any."}
    )


def exp3(probability: float, loss: float, eta: float, least: float, drawn: bool) -> float:
    """Return the probability of the vulnerable group after a step on one of the two groups.

    The weight of the group that was drawn, of probability p, is multiplied by exp(η loss / p); then both are normalised, and
    clipped to `least` and 1 − `least`.

    Args:
        probability: Before the step.
        loss: Of the step.
        eta: η.
        least: The least probability of a group.
        drawn: Whether the vulnerable group was drawn.
    """
    own = probability if drawn else 1 - probability
    # own exp(x) / (own exp(x) + other), without overflow
    own = 1 / (1 + (1 - own) / own * math.exp(-eta * loss / own))
    return min(max(own if drawn else 1 - own, least), 1 - least)


class VaaTrainer(ReferenceTrainer, DefenderRowsTrainer):
    """Minimises max_{p} Σ_g p_g max_{‖ε‖ ≤ ρ} f_g(w + ε) over two groups of rows, vulnerable or not (arXiv 2506.03850).

    Each optimizer step draws a group with its probability and learns from rows of that group alone: with probability 1 − λ(t)
    at w, otherwise at w + ρ ∇f_g / ‖∇f_g‖. The probabilities follow EXP3, by which a group of high loss comes more often.
    All draws are a function of seed and step. One or two gradient evaluations a step, and in those with two an extra copy of the
    trainable weights and a gradient.

    The group of a row is its column `vulnerable`. Where no row has one, rows are told apart by how much of them a simulated
    harmful step forgets (ours): those whose mean token loss rises most from w to w − r ∇h / ‖∇h‖ are vulnerable.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        harmful_dataset: Harmful prompts with harmful answers; only needed where rows do not say their group.
        kwargs: What `trl.SFTTrainer` takes.

    Attributes:
        vulnerable: The group of each training row.
        forgotten: By how much the simulated step raised the loss of each row, in nats; `None` where rows say their group.
    """

    args: VaaConfig

    def __init__(self, model: Any, args: VaaConfig, *, harmful_dataset: Any = None, **kwargs: Any) -> None:
        self._said: list[bool] | None = None
        super().__init__(model=model, args=args, harmful_dataset=harmful_dataset, **kwargs)
        self.refuse_noise("so the two gradients of a perturbed step would differ by mask noise.")
        self.forgotten: list[float] | None = None
        if self._said is None:
            self.forgotten = self._simulate_forgetting()
            self._said = self._most_forgotten(self.forgotten)
        self.vulnerable = self._said
        self.groups = [[row for row, said in enumerate(self.vulnerable) if said is which] for which in (True, False)]
        for name, rows in zip(GROUPS, self.groups, strict=True):
            if not rows:
                raise TiterError(
                    f"No training row is in the group `{name}`, and VAA balances two.",
                    f"Give rows of both kinds in the column `{COLUMN}`, or none such column.",
                )
        self._vulnerable_drawn = self._perturbs = False

    # -- groups -------------------------------------------------------------------------------------------------------

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Read the group of each row, where rows say it."""
        found = [row.get(COLUMN) for row in rows]
        if any(said is not None for said in found):
            for place, said in enumerate(found):
                if not isinstance(said, bool | int) or said not in (0, 1):
                    raise TiterError(
                        f"train_dataset[{place}] has `{COLUMN}` = {said!r}, which is neither true nor false.",
                        "Give the group of every row, or of none.",
                    )
            self._said = [bool(said) for said in found]
        return {}

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return the harmful rows, where rows are told apart by them; no step draws any."""
        if self._said is not None:
            return []
        if not self.harmful_rows:
            raise TiterError(
                f"No training row has a column `{COLUMN}`, and without `harmful_dataset` there is nothing to simulate forgetting by.",
                f"Give one of the two: a `{COLUMN}` of true or false in every row, or harmful prompts with harmful answers.",
            )
        return [{"harmful": self._stream("harmful", encoder)}]

    def _simulate_forgetting(self) -> list[float]:
        """Return by how much the mean token loss of each training row rises with a step along −∇h."""
        (pool,) = self._pools
        harmful, size = pool["harmful"][: self.args.probe_rows], self.args.per_device_train_batch_size
        tokens = sum(len(sample.branches[0]) for sample in harmful)
        self.model.eval()
        for start in range(0, len(harmful), size):
            batch = self._prepare_inputs(self.data_collator.lay_out(harmful[start : start + size]))
            with self.compute_loss_context_manager():
                nll, _ = token_nll(self.model, batch)
            (nll.sum() / tokens).backward()
        self.model.train()
        columns = self.train_dataset
        rows = [Sample(*pair) for pair in zip(columns["prompt_ids"], ([ids] for ids in columns["completion_ids"]))]
        before = self._means(rows)
        with perturbed(self.trainable, -self.args.probe_radius, self.compute_dtype) as step:
            after = self._means(rows)
        take_gradients(self.trainable)
        self._refuse_rounded(step.ratio, step.cosine, "simulated harmful step", self.args.probe_radius)
        # Each process measures all rows; the mean over them is the same on each.
        return list((self.total(after - before) / self.accelerator.num_processes).tolist())

    def _means(self, rows: Sequence[Sample]) -> Tensor:
        scores = self.scored(rows, "training rows, before and after a simulated harmful step")
        return torch.stack([score.double().mean() for score in scores]).to(self.args.device)

    def _most_forgotten(self, forgotten: Sequence[float]) -> list[bool]:
        number = min(max(1, round(self.args.vulnerable_share * len(forgotten))), len(forgotten) - 1)
        order = sorted(range(len(forgotten)), key=lambda row: -forgotten[row])
        first = set(order[:number])
        logger.warning(
            "Rows have no column `%s`. The %d of %d whose loss rises most with a simulated harmful step count as vulnerable: by "
            "%.3g nats on average, the others by %.3g.",
            COLUMN,
            number,
            len(forgotten),
            np.mean([forgotten[row] for row in first]) if first else math.nan,
            np.mean([forgotten[row] for row in order[number:]]),
        )
        return [row in first for row in range(len(forgotten))]

    # -- the optimizer step -------------------------------------------------------------------------------------------

    @property
    def probability(self) -> float:
        """The probability of the vulnerable group."""
        return self.step_state.values.get("probability", 0.5)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Draw a group, and collect as many of its rows as the sampler of the training data has for the step."""
        step, last = self.state.global_step, max(1, self.state.max_steps)
        group, perturbs = np.random.default_rng((self.args.seed, step)).random(2)
        lam = self.args.perturb_from + (self.args.perturb_to - self.args.perturb_from) * step / last
        self._vulnerable_drawn = bool(group < self.probability)
        self._perturbs = bool(perturbs > 1 - lam)
        self.record(vulnerable_drawn=float(self._vulnerable_drawn), lambda_t=lam)
        return super().get_batch_samples(self._of_the_group(epoch_iterator), num_batches, device)

    def _of_the_group(self, batches: Iterator[PackedBatch]) -> Iterator[PackedBatch]:
        """Yield a micro-batch of the group for each given, of as many rows; each row of it once before any comes again."""
        which = 0 if self._vulnerable_drawn else 1
        rows, drawn = self.groups[which], f"drawn.{GROUPS[which]}"
        for batch in batches:
            size, start = len(batch["row"]), int(self.step_state.values.get(drawn, 0))
            places = draw(len(rows), start + self.args.process_index * size, size, (self.args.seed, which))
            self.step_state.values[drawn] = start + size * self.args.world_size
            yield self.data_collator([self.train_dataset[rows[place]] for place in places])

    def before_step(self, model: Any) -> None:
        """Move the weights to where the loss of the group's rows is highest nearby, for this step, if it is a perturbed one."""
        self._refuse_other_groups()
        if not self._perturbs:
            return
        tokens = self.total(
            torch.tensor(sum(batch["targets"].numel() for batch in self.micro_batches), device=self.args.device)
        )
        for batch in self.micro_batches:
            with self.compute_loss_context_manager():
                nll, _ = token_nll(model, batch)
            self.accelerator.backward(nll.sum() * self.accelerator.num_processes / tokens)
        moved = self.during_step.enter_context(perturbed(self.trainable, self.args.rho, self.compute_dtype))
        take_gradients(self.trainable)  # that at w gives the direction alone
        self.record(perturbation_ratio=moved.ratio, perturbation_cosine=moved.cosine)
        self._refuse_rounded(moved.ratio, moved.cosine, "perturbation", self.args.rho)

    def after_step(self, model: Any) -> None:
        """Let the sampler learn from the loss of the step, which is that at perturbed weights in a perturbed one."""
        loss = self.total(torch.as_tensor(self._step_loss)).item() / self.accelerator.num_processes
        probability = exp3(self.probability, loss, self.args.eta, self.args.least_probability, self._vulnerable_drawn)
        self.step_state.values["probability"] = probability
        self.record(vulnerable_probability=probability, perturbed=float(self._perturbs))

    def _refuse_other_groups(self) -> None:
        """Raise when a training that is gone on with would tell rows apart otherwise than it began."""
        groups = float(zlib.crc32(bytes(self.vulnerable)))
        if self.step_state.values.setdefault("groups", groups) != groups:
            raise TiterError(
                "This training was begun with other groups of rows than are found now.",
                f"Begin anew, or give the groups in a column `{COLUMN}`.",
            )

    def _refuse_rounded(self, ratio: float, cosine: float, what: str, radius: float) -> None:
        # Nothing is compared where nothing was meant, for a gradient or a radius of zero: both are nan then.
        if ratio < self.args.min_perturbation or cosine < self.args.min_perturbation:
            raise TiterError(
                f"The {what} of {radius} is lost in rounding: {ratio:.2f} times its length is left, with a cosine of {cosine:.2f}.",
                "Keep trained weights in float32 (a LoRA adapter costs little) and set bf16=False; min_perturbation=0 accepts "
                "this one.",
            )


def _probed(args: VaaConfig, rows: Sequence[Record], streams: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    return [*list(streams["harmful_dataset"])[: args.probe_rows], *rows, *rows]


def _two_groups(args: VaaConfig, rows: int) -> None:
    if rows < 2:
        raise TiterError(f"VAA balances two groups of rows, and there is {rows}.", "Give more.")


VAA = Method(
    VaaConfig,
    VaaTrainer,
    "Balances rows that are forgotten first and others, at perturbed weights more and more (arXiv 2506.03850).",
    streams=("harmful_dataset",),
    gradients=lambda args: Gradients(training=(args.perturb_from + args.perturb_to) / 2),
    scores_first=_probed,
    check=_two_groups,
    variants={
        "": {"rho": 0.2, "eta": 0.05, "perturb_from": 1.0, "perturb_to": 1.0},
        "plain": {"eta": 0.05, "perturb_from": 0.0, "perturb_to": 0.0},
    },
    memory="1 gradient and 1 copy of the trained weights",
    holds=lambda args: Held(copies=1),
    source=Source("2506.03850, ICML 2025", "ChanLiang/VAA", "none", "stepping aside (2605.14605)"),
)
