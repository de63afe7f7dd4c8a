"""What depends on how a model is spread over processes: which ways work, and what they round and recompute."""

from __future__ import annotations

import os
from typing import Any

import torch

from titer.errors import TiterError
from titer.train.config import USE_FSDP2


def refuse_sharding_that_fails(trainer: Any) -> None:
    """Raise for ways to spread the model over processes in which titer would train something else, or save nothing."""
    if trainer.is_deepspeed_enabled:
        raise TiterError("DeepSpeed is not supported.", USE_FSDP2)
    if not trainer.is_fsdp_enabled:
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and trainer.accelerator.num_processes > 1:
            raise TiterError(
                "accelerate was asked to shard the model with FSDP, and does not do so on this kind of machine.",
                "FSDP2 needs accelerators; on CPUs use DDP (`titer accelerate cpu-ddp`).",
            )
        return
    from torch.distributed.fsdp import CPUOffloadPolicy

    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise TiterError("FSDP1 flattens weights, so that titer cannot tell them apart.", USE_FSDP2)
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise TiterError(
            f"With the state dict type {plugin.state_dict_type} `save_model` would write no weights at all.",
            "Set fsdp_state_dict_type to FULL_STATE_DICT.",
        )
    if plugin.cpu_ram_efficient_loading:
        raise TiterError(
            "With fsdp_cpu_ram_efficient_loading only one process has the model's weights while the trainer is made, "
            "and all of them look at the model then.",
            "Set fsdp_cpu_ram_efficient_loading to false.",
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise TiterError(
            "fsdp_offload_params keeps gradients on another device than losses.",
            "Set fsdp_offload_params to false.",
        )
    parallel = trainer.accelerator.parallelism_config
    if parallel is not None and parallel.non_data_parallel_size > 1:
        raise TiterError(
            "Tensor, context and sequence parallelism give several processes the same rows.",
            "Use FSDP2, with or without replicas (`titer accelerate fsdp2-hsdp`).",
        )


def keep_sums_precise(trainer: Any) -> None:
    """Let FSDP2 round weights alone to the dtype of the forward pass.

    accelerate would round to bfloat16 also what the model returns, losses among it, and sums of gradients.
    """
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is not None and plugin.mixed_precision_policy is not None:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=trainer.compute_dtype, reduce_dtype=torch.float32
        )


def recomputes_activations(trainer: Any) -> bool:
    """Say whether a forward pass leaves no activations behind, by the trainer's, FSDP2's or the model's own settings."""
    by_fsdp = trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.activation_checkpointing
    by_model = getattr(trainer.bare_model, "is_gradient_checkpointing", False)
    return bool(trainer.args.gradient_checkpointing or by_model or by_fsdp)
