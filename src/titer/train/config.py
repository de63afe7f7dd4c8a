"""The settings of every training, and what of them titer refuses."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
import trl

from titer.compat import cpu_knows_bf16, reporting_services
from titer.errors import TiterError
from titer.ranges import check_settings

USE_FSDP2 = "Use FSDP2 or DDP: `accelerate launch --config_file $(titer accelerate fsdp2) SCRIPT`."
"""The hint for ways of sharding that do not work."""


def bf16_is_fast() -> bool:
    """Say whether this machine multiplies bfloat16 matrices faster than float32 ones.

    True on accelerators that know bfloat16 and on CPUs with AVX-512 BF16 or AMX. Other CPUs emulate bfloat16 and take
    several times as long.
    """
    if torch.accelerator.is_available():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return cpu_knows_bf16()


@dataclass
class PackedSFTConfig(trl.SFTConfig):
    """Settings of supervised fine-tuning on packed rows; every method's settings extend these.

    The training recipe is that of the released code of Booster and Antibody (arXiv 2409.01586, 2603.00498): AdamW,
    learning rate 5e-4, weight decay 0.1, a constant schedule, 20 epochs in batches of 10, at most 256 tokens.

    Args:
        bf16: Autocast to bfloat16; chosen by `bf16_is_fast` when not given.
        gradient_checkpointing: Recompute activations instead of keeping them. Off: titer's rows are short.
        share_prefix: Compute the tokens that all prompts of a batch begin with once. Changes no result.
        logging_nan_inf_filter: Off: a loss that is no number stops the training, and none is made up for the log.
    """

    learning_rate: float = field(default=5e-4, metadata={"help": "The learning rate of AdamW."})
    weight_decay: float = field(default=0.1, metadata={"help": "The weight decay of AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "How the learning rate changes over steps."})
    num_train_epochs: float = field(default=20.0, metadata={"help": "Passes over the training data."})
    per_device_train_batch_size: int = field(default=10, metadata={"help": "Samples of a micro-batch."})
    max_length: int | None = field(default=256, metadata={"help": "Longest prompt with its completion, in tokens."})
    bf16: bool | None = field(default=None, metadata={"help": "Autocast to bfloat16; by default where it is fast."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    share_prefix: bool = field(
        default=True, metadata={"help": "Compute the tokens that all prompts of a batch begin with once."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log the mean of earlier losses in the place of one that is no number."}
    )

    def __post_init__(self) -> None:
        check_settings(self)
        for item in fields(self):
            if item.type in (bool, "bool", "bool | None") and getattr(self, item.name) not in (True, False, None):
                raise TiterError(f"`{item.name}` must be true or false, found `{getattr(self, item.name)}`.")
        _check_reporters(self.report_to)
        if self.fp16:
            raise TiterError(
                "fp16 loses the small differences of gradients that these methods live on.",
                "Use bf16=True, or neither for float32.",
            )
        if self.deepspeed is not None:
            raise TiterError(
                "DeepSpeed shards gradients where they cannot be read between backward passes.",
                USE_FSDP2,
            )
        for name in ("packing", "eval_packing", "padding_free", "assistant_only_loss", "use_liger_kernel"):
            if getattr(self, name):
                raise TiterError(
                    f"`{name}` does not go with titer's own packing, which already trains without padding and on "
                    "completions only.",
                    f"Leave `{name}` off.",
                )
        if self.loss_type not in ("nll", "chunked_nll") or self.label_smoothing_factor:
            raise TiterError("titer trains with plain negative log-likelihood.", "Set loss_type='nll', no smoothing.")
        if self.completion_only_loss is False:
            raise TiterError(
                "titer never trains on prompts.", "Leave completion_only_loss off; prompts and completions are rows."
            )
        if self.truncation_mode != "keep_start":
            raise TiterError(
                f"truncation_mode `{self.truncation_mode}` would cut the beginning of prompts.",
                "Leave it at `keep_start`: completions are cut at max_length, and longer prompts are an error.",
            )
        if self.neftune_noise_alpha is not None:
            raise TiterError(
                "NEFTune adds noise to each forward pass, so differences of gradients would be noise too.",
                "Leave neftune_noise_alpha off.",
            )
        if isinstance(self.dataset_kwargs, dict) and self.dataset_kwargs.get("skip_prepare_dataset"):
            raise TiterError(
                "`skip_prepare_dataset` would skip titer's packing.",
                "Leave it off; rows with `input_ids` and `labels` are taken as they are.",
            )
        if self.bf16 is None:
            self.bf16 = bf16_is_fast()
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        super().__post_init__()
        # Gradients are read between backward passes, so each of them must be reduced over ranks at once.
        accumulation = self.accelerator_config.gradient_accumulation_kwargs or {}
        self.accelerator_config.gradient_accumulation_kwargs = {**accumulation, "sync_each_batch": True}

    @property
    def optimizer_batch_size(self) -> int:
        """Samples that one optimizer step sees, over all micro-batches and processes."""
        return int(self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size)


def _check_reporters(report_to: Any) -> None:
    """Raise for a service to report to that the library does not know, or whose package is not there."""
    there = reporting_services()
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name not in ("none", "all", *there):
            raise TiterError(
                f"`report_to` names `{name}`, and no such package is installed.",
                f"Install it, or choose among none{''.join(f', {one}' for one in there)}.",
            )
