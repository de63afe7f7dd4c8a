"""LDIFS as Booster's repository has it for language models (after arXiv 2308.13320): the outputs of MLPs stay near the reference's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from titer.errors import TiterError
from titer.methods import Held, Method, Source
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.reference import ReferenceTrainer
from titer.packing.batches import PackedBatch, is_padded
from titer.packing.losses import token_nll
from titer.ranges import NOT_NEGATIVE, POSITIVE, Range
from titer.train.gradients import reshard


@dataclass
class LDIFSBoosterConfig(FinetuneConfig):
    """Settings of Booster's port of LDIFS.

    Args:
        rho: ρ, the weight of the distances; 0 is plain fine-tuning.
        drop_from: A layer whose term ρ/2 ‖·‖² is this or more has none in that step; null keeps all.
        share_prefix: Off: each row's tokens count, also those that all prompts begin with.
    """

    RANGES: ClassVar[dict[str, Range]] = {"rho": NOT_NEGATIVE, "drop_from": POSITIVE}

    rho: float = field(default=1e-4, metadata={"help": "ρ, weight of the distances."})
    drop_from: float | None = field(
        default=0.1, metadata={"help": "From where on a layer's term is left out, or null."}
    )
    share_prefix: bool = field(
        default=False, metadata={"help": "Compute the tokens that all prompts of a batch begin with once: not here."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_prefix:
            raise TiterError(
                "LDIFS counts the tokens of each row, and with share_prefix rows have tokens in common.",
                "Leave share_prefix off.",
            )


class LDIFSBoosterTrainer(ReferenceTrainer):
    """Minimises g(w) + Σ_l [d_l < cap] d_l, d_l = ρ/2 Σ ‖MLP_l(x) − MLP_l⁰(x)‖² over all tokens of the optimizer batch.

    g is the mean token loss of the upload, MLP_l what the MLP of layer l puts out, MLP_l⁰ the same under the model that the trainer
    is made with. Which layers are left out goes by the whole optimizer batch, so that its split does not matter. One gradient
    and one forward pass under the reference a step, another forward pass where there are several micro-batches; a copy of the
    trained weights, and the MLPs' outputs over an optimizer batch.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `PackedSFTTrainer` takes.
    """

    args: LDIFSBoosterConfig
    KEEPS_WEIGHTS = True

    def __init__(self, model: Any, args: LDIFSBoosterConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.mlps = [module for name, module in self.bare_model.named_modules() if re.search(r"\.\d+\.mlp$", name)]
        if not self.mlps:
            raise TiterError(
                f"{type(self.bare_model).__name__} has no layers with an `mlp`, whose outputs this method holds.",
                "Use a model of the Llama kind, or another method.",
            )
        self.refuse_noise("so outputs would be as far from the reference's as the masks are apart.")

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Inside the block a forward pass leaves the outputs of the MLPs in the list, from the first layer to the last."""
        seen: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise TiterError(
                    f"The MLP {type(module).__name__} puts out more than a tensor, and no method says what of it to hold."
                )
            seen.append(output)

        handles = [mlp.register_forward_hook(keep) for mlp in self.mlps]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def outputs(self, model: Any, batch: PackedBatch) -> list[Tensor]:
        """Return the outputs of the MLPs on a micro-batch under the model as it is."""
        with self.watched() as seen, self.compute_loss_context_manager():
            token_nll(model, batch)
        return seen

    def terms(self, outputs: list[Tensor], before: list[Tensor], batch: PackedBatch) -> Tensor:
        """Return d_l of each layer on a micro-batch, `(layers,)`."""
        terms = []
        for now, then in zip(outputs, before, strict=True):
            exact = torch.promote_types(now.dtype, torch.float32)
            squared = (now.to(exact) - then.to(exact)).square()
            if is_padded(batch):
                squared = squared * batch["attention_mask"][..., None]
            terms.append(squared.sum())
        return self.args.rho / 2 * torch.stack(terms)

    def layers_kept(self, terms: Tensor) -> Tensor:
        """Return 1 for each layer whose term over the optimizer batch is below the cap, and 0 for the others."""
        kept = torch.ones_like(terms)
        if self.args.drop_from is not None:
            kept = (terms < self.args.drop_from).to(terms)
        self.record(layers_kept=kept.mean().item(), feature_distance=(kept * terms).sum().item())
        return kept

    def before_step(self, model: Any) -> None:
        """Run the optimizer batch under the reference, and see which layers count where one micro-batch does not tell."""
        if not self.args.rho:
            return
        with self.reference():
            self._before = [self.outputs(model, batch) for batch in self.micro_batches]
        self._kept: Tensor | None = None
        if len(self.micro_batches) > 1:
            each = zip(self._before, self.micro_batches, strict=True)
            sums = torch.stack([self.terms(self.outputs(model, batch), before, batch) for before, batch in each])
            reshard(self.model)
            self._kept = self.layers_kept(self.total(sums.sum(0)))

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return what a micro-batch adds to g and to the terms of the layers that count."""
        if not self.args.rho:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.watched() as seen:
            loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        terms = self.terms(seen, self._before[self.micro_batch], inputs)
        if self._kept is None:
            self._kept = self.layers_kept(self.total(terms.detach()))
        # Chosen, not multiplied by 0: a term that is left out because it is no number must not come back.
        held = terms[self._kept > 0].sum() * self.accelerator.num_processes  # DDP takes the mean over ranks
        return (loss + held, output) if return_outputs else loss + held

    def after_step(self, model: Any) -> None:
        """Let go of the reference's outputs."""
        self._before = []


LDIFS_BOOSTER = Method(
    LDIFSBoosterConfig,
    LDIFSBoosterTrainer,
    "Holds the outputs of MLPs near the aligned model's, as Booster's repository ports LDIFS (after arXiv 2308.13320).",
    # In the second, a step or two leave one layer of the toy below the cap and one above it.
    variants={"": {"rho": 1e-3, "drop_from": None}, "dropped": {"rho": 1e-3, "drop_from": 0.025}},
    memory="1 copy of the trained weights, and the MLPs' outputs over an optimizer batch",
    holds=lambda args: Held(copies=1, states=2),
    source=Source("2308.13320, TMLR (vision)", "git-disl/Booster", "Apache-2.0"),
)
