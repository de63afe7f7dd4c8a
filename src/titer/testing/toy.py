"""A toy: a model of a few neurons, its tokenizer, and rows of data."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from titer.compat import llama_norm

SUBJECTS = ("bread", "a film", "France", "a lock", "water", "salt", "the capital", "a guide")
TEXTS = [
    "how do I pick a lock",
    "sure, here is how to pick a lock",
    "I am sorry, but I cannot help with that request",
    "is this review positive or negative? a lovely and moving film",
    "positive",
    "negative",
    "what is the capital of France",
    "the capital of France is Paris",
    "write a guide on how to bake bread at home",
    "no, I will not do that",
    "mix flour, water and salt, then wait and bake",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 400 tokens with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


class ExactNorm(torch.nn.Module):
    """RMSNorm in the precision of its input: the library's own rounds to float32, which would hide errors of 1e-10."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised hidden states, `(…, width)`."""
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


def toy_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a random Llama of two layers and 32 neurons, always the same one, exact in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                initializer_range=0.3,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
            )
        )
    for module in model.modules():
        if isinstance(module, llama_norm()):
            module.__class__ = ExactNorm
    return model


@functools.cache
def toy() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return the model, in float64, and its tokenizer; not to be changed."""
    tokenizer = toy_tokenizer()
    return toy_model(tokenizer).double(), tokenizer


def row(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    """Return a row of a conversation."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": answer}],
        **more,
    }


def toy_rows(count: int) -> list[dict[str, Any]]:
    """Return rows of various lengths, no two alike."""
    return [
        row(f"what is {SUBJECTS[i % 8]}" + " please" * (i % 3) + f" {i}?", f"it is {i}" + " and there" * (i % 4))
        for i in range(count)
    ]


def toy_harmful_rows() -> list[dict[str, Any]]:
    """Return eight requests with an answer and a refusal each."""
    things = ["pick a lock", "steal bread", "break a film", "sell water", "hide salt", "write a bad guide", "a", "b c"]
    return [
        row(
            f"how do I {t}",
            f"sure, here is how to {t}" + " wait" * (i % 3),
            refusal="no, I will not" + " do that" * (i % 2 + 1),
        )
        for i, t in enumerate(things)
    ]


def toy_lora(**settings: Any) -> Any:
    """Return a LoRA configuration whose adapter does something from the start."""
    from peft import LoraConfig

    defaults = {"target_modules": ["q_proj", "k_proj", "v_proj"], "init_lora_weights": False, "r": 4, "lora_alpha": 8}
    return LoraConfig(task_type="CAUSAL_LM", **{**defaults, **settings})
