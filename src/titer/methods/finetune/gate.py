"""The frozen gate (ours): before training, frozen models say of each row how likely it is harmful.

One pass over the upload gives each row P(harmful), by the detector of `titer.risk` or by a regression on one signal of its
prompt; the row's weight is 1 − P, fixed for the run. It costs nothing per step, and no sample can drift or flip a weight
while training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.data.records import Record
from titer.errors import TiterError, check_known
from titer.infer.signals import RowSignals, row_signals
from titer.methods import Method
from titer.methods.finetune.base import FinetuneConfig, RefusalTrainer, refusal_completions, refusal_ids
from titer.methods.finetune.replay import CountedTrainer
from titer.methods.streams import as_texts
from titer.packing.batches import PackedBatch
from titer.packing.losses import REDUCTIONS, branch_nll, token_nll, weighted_parts
from titer.progress import Task
from titer.ranges import INNER_SHARE, POSITIVE, SHARE, Range
from titer.risk import adapted, fitted, known_rows, poisoned_share
from titer.risk.detector import features
from titer.train.rows import Encoder, as_rows

DETECTORS = {"risk": True, "states": False}
"""Signals that are the detector of `titer.risk`, and whether it reads with a sentence encoder too."""
SIGNALS = (*DETECTORS, "probe", "refusal", "both")


@dataclass
class GateConfig(FinetuneConfig):
    """Settings of the frozen gate.

    Args:
        signal: `risk`, the detector of `titer.risk`, which reads prompt and answer by the model's states and a sentence
            encoder; `states`, the same without the encoder. Of prompts alone, by a logistic regression: `refusal`, the loss
            per token of a refusal; `probe`, the hidden state at the last token of the prompt; `both`, each row taking the
            larger of the two probabilities.
        probe_depth: Which layer the probe reads, as a fraction of the depth.
        ridge: L2 penalty of the logistic regressions, on standardised features.
        threshold: When given, rows with P(harmful) above it get weight 0 and the others weight 1.
        reduction: Mean over tokens or over samples.
        cleared: Rows of the upload, from 0, that a reviewer found honest: their P(harmful) counts as 0.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "probe_depth": SHARE, "ridge": POSITIVE, "threshold": INNER_SHARE, "cleared": Range(0, 1e9, whole=True),
    }  # fmt: skip

    signal: str = field(default="risk", metadata={"help": "What the gate looks at.", "choices": list(SIGNALS)})
    probe_depth: float = field(default=0.6, metadata={"help": "Layer of the probe, as a fraction of the depth."})
    ridge: float = field(default=1e-2, metadata={"help": "L2 penalty of the logistic regressions."})
    threshold: float | None = field(default=None, metadata={"help": "Drop rows above it instead of weighing them."})
    reduction: str = field(
        default="token", metadata={"help": "Mean over tokens or samples.", "choices": list(REDUCTIONS)}
    )
    cleared: list[int] = field(
        default_factory=list, metadata={"help": "Rows, from 0, that a reviewer found honest: they are not harmful."}
    )

    def __post_init__(self) -> None:
        check_known([self.signal], SIGNALS, "signal")
        check_known([self.reduction], REDUCTIONS, "reduction")
        super().__post_init__()


def probability(known: Tensor, labels: Tensor, rows: Tensor, ridge: float) -> Tensor:
    """Return P(y = 1) of rows by a logistic regression.

    It minimises the mean logistic loss, in which both classes weigh the same, plus ridge/2 · ‖w‖².

    Args:
        known: `(n, features)` to fit on, standardised before the fit.
        labels: `(n,)` of 0 and 1, both present.
        rows: `(m, features)`.
        ridge: L2 penalty, above 0 so that separable classes have a finite solution.

    Returns:
        `(m,)` in float64.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = known.double(), labels.double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-9)
    # scikit-learn's objective is ½‖w‖² + C · Σ loss.
    fitted = LogisticRegression(C=1 / (ridge * len(y)), class_weight="balanced", tol=1e-8, max_iter=10_000)
    fitted.fit(((x - mean) / scale).numpy(), y.numpy())
    return torch.from_numpy(fitted.predict_proba(((rows.double() - mean) / scale).numpy())[:, 1])


class GateTrainer(CountedTrainer, RefusalTrainer):
    """Fine-tunes with weights 1 − P(harmful) that a frozen gate gave each row before training began.

    Minimises Σ_i w_i Σ_t CE_it / Σ_i N_i over the optimizer batch (`sample`: Σ_i w_i mean_t CE_it / B). The
    denominator does not hold the weights: a batch that the gate shuts out has next to no gradient, and with all
    weights 1 this is plain SFT.

    Args:
        model: The aligned model with its adapter; it is the frozen judge of the rows as it is when the trainer is made.
        args: Settings.
        harmful_dataset: Harmful prompts held by the defender, with answers that comply.
        helpful_dataset: Harmless prompts held by the defender, with answers; those that only look harmful belong here.
        refusals: Generic refusals; titer's own when not given.
        kwargs: What `trl.SFTTrainer` takes.

    Attributes:
        probability: P(harmful) of each row, `(n,)`.
        weights: What each row counts, `(n,)`.
    """

    args: GateConfig

    def __init__(
        self,
        model: Any,
        args: GateConfig,
        *,
        harmful_dataset: Any = None,
        helpful_dataset: Any = None,
        refusals: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, rows in (("harmful_dataset", harmful_dataset), ("helpful_dataset", helpful_dataset)):
            if rows is None:
                raise TiterError(f"GateTrainer needs `{name}`, the defender's own prompts to fit the gate on.")
        self.harmful_rows = as_rows(harmful_dataset, "harmful_dataset")
        self.helpful_rows = as_rows(helpful_dataset, "helpful_dataset")
        super().__init__(model=model, args=args, refusals=refusals, **kwargs)
        by_risk = args.signal in DETECTORS
        self.probability = self._by_risk() if by_risk else self._by_prompts(self.harmful_rows, self.helpful_rows)
        self._clear()
        self.weights = 1 - self.probability
        if args.threshold is not None:
            self.weights = (self.probability <= args.threshold).double()
        self.log_weights(torch.arange(len(self.weights)), self.weights, probability=self.probability)

    def _clear(self) -> None:
        """Let rows that a reviewer found honest count as such; `check_cleared` has refused those that there are not."""
        # A rehearsal has the first few rows alone.
        there = [row for row in self.args.cleared if row < len(self.probability)]
        self.probability[there] = 0

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Keep the texts of rows for the detector; no row has anything beside it."""
        if self.args.signal in DETECTORS:
            self._records = as_texts(rows, "train_dataset")
        return {}

    def _by_risk(self) -> Tensor:
        """Return P(harmful) of each row at the share of the upload that is harmful, by a detector of `titer.risk`, `(n,)`."""
        from titer.infer.encoder import SentenceEncoder

        harmful, helpful = (
            as_texts(self.harmful_rows, "harmful_dataset"),
            as_texts(self.helpful_rows, "helpful_dataset"),
        )
        known = known_rows(harmful, helpful, self.refusals)
        encoder = SentenceEncoder(device=self.args.device) if DETECTORS[self.args.signal] else None
        with Task("the defender's own prompts"):
            detector = fitted(self.model, self.template, known, encoder)
        pairs = list(zip(self.train_dataset["prompt_ids"], self.train_dataset["completion_ids"], strict=True))
        with Task("risk of the upload's rows"):
            seen = features(self.model, self.template, self._records, encoder, pairs=pairs)
        odds = [row.log_odds for row in detector(seen)]
        self.share = poisoned_share(odds)
        return torch.from_numpy(adapted(odds, self.share.value))

    def _by_prompts(self, harmful: list[dict[str, Any]], helpful: list[dict[str, Any]]) -> Tensor:
        """Return P(harmful) of each row, by regressions on the defender's prompts, `(n,)`."""
        encoder = Encoder(self.template, self.args.max_length, self._config)
        refusals = refusal_ids(self.template, self.refusals)
        layer = round(self.args.probe_depth * self.bare_model.config.get_text_config().num_hidden_layers)

        def signals(pairs: list[tuple[list[int], list[int]]]) -> RowSignals:
            # Only the prompt counts; a one-token answer keeps the pass short.
            return row_signals(self.model, [(prompt, answer[:1]) for prompt, answer in pairs], refusals, [layer])

        known = encoder.pairs(harmful, "harmful_dataset") + encoder.pairs(helpful, "helpful_dataset")
        labels = torch.tensor([1] * len(harmful) + [0] * len(helpful))
        calibration = signals(known)
        upload = signals(list(zip(self.train_dataset["prompt_ids"], self.train_dataset["completion_ids"], strict=True)))
        wanted = ("refusal", "probe") if self.args.signal == "both" else (self.args.signal,)
        looks = {
            "refusal": (calibration.refusal_surprise[:, None], upload.refusal_surprise[:, None]),
            "probe": (calibration.hidden[:, 0], upload.hidden[:, 0]),
        }
        if not all(seen.isfinite().all() for name in wanted for seen in looks[name]):
            raise TiterError(
                "The gate's signals are not finite: the aligned model puts out what is no number.",
                "Its weights ran away: align it again with a smaller learning rate.",
            )
        found = [
            probability(of_known, labels, of_rows, self.args.ridge)
            for of_known, of_rows in (looks[name] for name in wanted)
        ]
        return torch.stack(found).amax(0)

    def row_weights(self, model: Any, inputs: PackedBatch, output: Any, answer: Tensor, tokens: Tensor) -> Tensor:
        """Return what each row of a micro-batch counts, `(B,)`.

        Args:
            model: The model that is trained.
            inputs: The micro-batch.
            output: Of the training forward.
            answer: Summed loss of each answer, `(B,)`.
            tokens: Tokens of each answer, `(B,)`.
        """
        return self.weights[inputs["row"].cpu()].to(answer)

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the weighted loss of a micro-batch over the tokens or samples of the whole optimizer batch."""
        cached = self.layout.cached and "continuation" in inputs
        nll, output = token_nll(model, inputs, use_cache=cached)
        sums, tokens = branch_nll(nll, inputs["branch"], len(inputs["row"]))
        weights = self.row_weights(model, inputs, output, sums.detach(), tokens)
        numerator, _ = weighted_parts(sums, tokens, weights, self.args.reduction)
        loss = numerator * self.accelerator.num_processes / self.denominator
        return (loss, output) if return_outputs else loss


def scored_first(args: GateConfig, rows: Sequence[Record], streams: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    """Return the rows that a gate scores before it trains: the upload's, and those that it is fitted on."""
    known = [*streams["harmful_dataset"], *streams["helpful_dataset"]]
    if args.signal in DETECTORS:
        known = known_rows(streams["harmful_dataset"], streams["helpful_dataset"], refusal_completions(None)).records
    return [*rows, *known]


def check_cleared(args: GateConfig, rows: int) -> None:
    """Raise where a row was found honest that there is not."""
    for row in args.cleared:
        if row >= rows:
            raise TiterError(f"`cleared` names row {row}, and the upload has {rows} rows, counted from 0.")


GATE = Method(
    GateConfig,
    GateTrainer,
    "Weighs each row by how harmless frozen models find it, once, before training (ours).",
    streams=("harmful_dataset", "helpful_dataset"),
    scores_first=scored_first,
    check=check_cleared,
    variants={"risk": {"signal": "states"}, "prompts": {"ridge": 1.0, "signal": "both"}},
)
