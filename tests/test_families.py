"""What a model computes in titer's batches is what it computes alone, whatever family it is of.

All classes of transformers are in `benchmarks/families.py`; these are the ones that people use, and those that were
wrong once.
"""

import pytest
import references as ref
import torch
import transformers
from small_models import small_model
from training import config

from titer import PackedSFTConfig, PackedSFTTrainer
from titer.infer.generation import generate
from titer.models import Template
from titer.testing import row

NOISE = [
    *["attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "layerdrop"],
    *["activation_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"],
    *["router_jitter_noise", "input_jitter_noise"],
]

PACKED = [
    *["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi", "phi3"],
    *["phimoe", "gpt2", "gpt_neox", "opt", "olmo2", "olmo3", "olmoe", "granite", "granitemoe", "cohere2", "gpt_oss"],
    *["starcoder2", "smollm3", "deepseek_v3", "glm4_moe", "minimax_m2", "ernie4_5"],
]
PADDED = [
    *["llama4_text", "stablelm", "nemotron", "gptj", "gpt_neo", "codegen", "mpt", "xglm", "bloom", "falcon", "rwkv"],
    *["mamba", "jamba", "qwen3_next", "bart", "roberta"],
]


def noiseless(kind):
    known = transformers.CONFIG_MAPPING[kind]().to_dict()
    return small_model(kind, vocab_size=400, **{name: 0.0 for name in NOISE if name in known})


ROWS = [
    row("what is bread?", "it is bread, here and there and there"),
    row("what is a film please please?", "no"),
    row("what is the capital of France please?", "the capital of France is Paris, wait"),
    row("is salt a lock?", "sure"),
]


@pytest.mark.parametrize("kind", [*PACKED, *PADDED])
def test_losses_gradients_and_answers_are_those_of_each_row_alone(kind, tokenizer, tmp_path):
    model = noiseless(kind)
    pairs = ref.encode(tokenizer, ROWS)
    gradients = []

    class Catching(PackedSFTTrainer):
        def after_step(self, model):
            gradients.extend(p.grad for p in model.parameters() if p.grad is not None)

    trainer = Catching(
        model=model,
        args=config(PackedSFTConfig, tmp_path, learning_rate=0.0, train_sampling_strategy="sequential"),
        train_dataset=ROWS,
        processing_class=tokenizer,
    )
    assert trainer.layout.packed == (kind in PACKED)
    trainer.train()
    found = trainer.state.log_history[0]["loss"]

    model.set_attn_implementation("eager")
    model.train()
    nll = [alone(model, *pair) for pair in pairs]
    expected = torch.cat(nll).mean()
    assert found == pytest.approx(expected.item(), rel=1e-4)
    slopes = [s for s in torch.autograd.grad(expected, list(model.parameters()), allow_unused=True) if s is not None]
    assert ref.relative_error(gradients, slopes) < 1e-3

    prompts = [prompt for prompt, _ in pairs]
    assert generate(model.eval(), Template(tokenizer), prompts, 3) == [
        greedy(model, tokenizer, prompt, 3) for prompt in prompts
    ]


def alone(model, prompt, completion):
    logits = model(input_ids=torch.tensor([[*prompt, *completion[:-1]]])).logits[0, len(prompt) - 1 :]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="none")


@torch.no_grad()
def greedy(model, tokenizer, prompt, limit):
    ids = list(prompt)
    for _ in range(limit):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in Template(tokenizer).end_of_turn:
            break
        ids.append(token)
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
