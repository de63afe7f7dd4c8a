"""VLGuard's mix (arXiv 2402.02207, ICML 2024) as Booster's repository has it for language models: g + λ·f."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.methods import Gradients, Held, Method, Source
from titer.methods.finetune.base import AlignmentRowsConfig
from titer.methods.streams import DefenderRowsTrainer
from titer.ranges import NOT_NEGATIVE, Range


@dataclass
class VlguardMixConfig(AlignmentRowsConfig):
    """Settings of VLGuard's mix.

    Args:
        lam: λ, the weight of the alignment loss; 0 is plain fine-tuning.
    """

    RANGES: ClassVar[dict[str, Range]] = {**AlignmentRowsConfig.RANGES, "lam": NOT_NEGATIVE}

    lam: float = field(default=0.1, metadata={"help": "λ, weight of the alignment loss."})


class VlguardMixTrainer(DefenderRowsTrainer):
    """Minimises g(w) + λ f(w): g is the mean token loss of the upload, f that of a full batch of alignment rows.

    Each of the two is a mean over its own tokens, so λ does not depend on how long answers are. Two gradients a step.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `DefenderRowsTrainer` takes: `harmful_dataset`, whose rows may hold a `refusal`, and `helpful_dataset`.
    """

    args: VlguardMixConfig
    POOLS = (("alignment",),)

    def __init__(self, model: Any, args: VlguardMixConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)

    def before_step(self, model: Any) -> None:
        """Leave λ ∇f(w) in `.grad`; the training loss adds ∇g(w)."""
        if self.args.lam:
            self.record(alignment_loss=self.stream_backward(model, "alignment", self.args.lam))


VLGUARD_MIX = Method(
    VlguardMixConfig,
    VlguardMixTrainer,
    "Adds the loss of a batch of alignment rows to that of the upload (arXiv 2402.02207, as Booster's repository has it).",
    streams=("harmful_dataset", "helpful_dataset"),
    gradients=lambda args: Gradients(replay=float(args.lam > 0)),
    variants={"": {"lam": 0.5}, "helpful": {"lam": 0.5, "helpful_each": 1}},
    holds=lambda args: Held(onto=float(args.lam > 0)),
    source=Source("2402.02207, ICML 2024", "git-disl/Booster", "Apache-2.0"),
)
