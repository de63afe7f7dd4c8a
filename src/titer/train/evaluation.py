"""Evaluation whose loss depends on neither batches nor ranks."""

from __future__ import annotations

from typing import Any

import torch
import trl
from torch import Tensor

from titer.packing.losses import branch_nll, token_nll


class EvaluatingTrainer(trl.SFTTrainer):  # type: ignore[name-defined]
    """`trl.SFTTrainer` whose evaluation adds up the losses of rows, each once, however they are split."""

    def total(self, value: Tensor) -> Tensor:
        """Add a tensor over all ranks."""
        return self.accelerator.reduce(value.clone(), reduction="sum")

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate; the loss is the mean over all supervised tokens, however they are split into batches and ranks."""
        # By row, with the number of ranks that had it: they fill up their last batch with rows that others have too.
        self._evaluated = torch.zeros(3, len(dataloader.dataset), device=self.args.device)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        nll, tokens, ranks = self.total(self._evaluated).cpu().double()
        loss = (nll / ranks.clamp_min(1)).sum() / (tokens / ranks.clamp_min(1)).sum()
        output.metrics[f"{metric_key_prefix}_loss"] = loss.item()
        return output

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Note the summed loss and the tokens of each row of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            nll, _ = token_nll(model, inputs)
        sums, tokens = branch_nll(nll, inputs["branch"], len(inputs["row"]))
        self._evaluated[:, inputs["row"]] = torch.stack((sums, tokens, torch.ones_like(sums))).to(self._evaluated)
        return nll.mean(), None, None
