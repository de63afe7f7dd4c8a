"""Every causal language model class of transformers as a random model of two small layers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("head_dim", "d_kv", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions", "context_length"), 256),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "lru_width"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "mamba_n_heads", "mamba_d_head", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "linear_num_value_heads"), 4),
    "linear_num_key_heads": 2,
    "mamba_n_groups": 1,
    "sliding_window": 8,
    "attention_chunk_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    # Large enough that what a token may see shows in its loss.
    **dict.fromkeys(("initializer_range", "init_std", "init_scale"), 0.3),
}
"""Sizes by the names that configs give them; those that a config does not have are left out."""

_LATENT = {"head_dim": 8, "num_key_value_heads": 4}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}

SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _LATENT),
    **dict.fromkeys(("glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"), _HYBRID),
    "olmo_hybrid": _HYBRID,
    "bailing_hybrid": _LATENT | _HYBRID,
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_expand": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_expand": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _LATENT | _HYBRID | {"num_experts": 4, "num_expert_group": 1, "topk_group": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1},
    "nemotron_h": {"layer_types": ["mamba", "attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 8},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (16, 16), "attn_layers": ["local", "lsh"]},
    "roc_bert": {"pronunciation_vocab_size": 96, "shape_vocab_size": 96},
    "xlm": {"emb_dim": 32, "n_words": VOCABULARY, "causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"], "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1], "mamba_headdim": 8},
    "zaya": {"num_experts_per_tok": 1},
}
"""Settings that a class wants beside them."""


def names() -> dict[str, str]:
    """Return the class of each model type that transformers knows as a causal language model."""
    return {
        kind: name if isinstance(name, str) else name[0] for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    }


def small_model(kind: str, seed: int = 0, **settings: Any) -> Any:
    """Return a random model of a type, in float32 and evaluation mode.

    Args:
        kind: The `model_type` of its config.
        seed: Of the weights.
        settings: Further settings of its config.

    Raises:
        Exception: Whatever the class raises that cannot be built this small.
    """
    config_class = transformers.CONFIG_MAPPING[kind]
    usual = config_class().to_dict()
    chosen = {
        name: value
        for name, value in SMALL.items()
        if name in usual
        and not isinstance(usual[name], (list, dict))
        and (name != "sliding_window" or usual[name] is not None)
    }
    config = config_class(**{**chosen, **SPECIAL.get(kind, {}), **settings})
    model_class = getattr(transformers, names()[kind])
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > 10e6:
        raise ValueError(f"{size / 1e6:.0f} million parameters are not small")
    torch.manual_seed(seed)
    return model_class(config).eval()
