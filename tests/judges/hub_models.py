"""Tiny random models of the architectures that hub judges have, and models that say what a test wants them to."""

from types import SimpleNamespace

import torch
import transformers

from titer.testing import toy_tokenizer

PLAIN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
PARTS = PLAIN.replace("m['content'] | trim", "m['content'][0]['text'] | trim")
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "qwen3guard": PLAIN + "<|im_start|>assistant\n",
    "llama-guard-3": PLAIN + "<|im_start|>assistant\n",
    "llama-guard-4": PARTS + "<|im_start|>assistant\n",
    "shieldgemma": PLAIN + "* {{ guideline }}\n\n",
    "granite-guardian": "{{ guardian_config['risk_name'] }}\n" + PLAIN + OPENING,
    "strongreject": PLAIN + OPENING,
    "gpt-oss-safeguard": "Reasoning: {{ reasoning_effort }}\n" + PLAIN + OPENING,
}
WORDS = ["unsafe", "safe", "Yes", "No", "yes", "no", "harmful", "<|channel|>", "<|message|>", "<|return|>", "final"]

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}
LAYERS = {
    "qwen3guard": "Qwen3",
    "llama-guard-3": "Llama",
    "llama-guard-4": "Llama4",
    "wildguard": "Mistral",
    "harmbench": "Llama",
    "beaver-dam": "Llama",
    "shieldgemma": "Gemma2",
    "granite-guardian": "Granite",
    "strongreject": "Llama",
    "strongreject-classifier": "Gemma",
    "gpt-oss-safeguard": "GptOss",
}


def tokenizer_of(name):
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens(WORDS)
    tokenizer.chat_template = TEMPLATES.get(name)
    return tokenizer


def model_of(name, tokenizer):
    """Return a random model of the architecture of a judge."""
    kind = LAYERS[name]
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    small = {**SMALL, "vocab_size": len(tokenizer), **ends}
    config = getattr(transformers, f"{kind}Config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "Llama4":
            text = {**small, **EXPERTS, "intermediate_size_mlp": 48, "attention_chunk_size": 4096}
            own = config(
                text_config=text, vision_config=VISION, boi_token_index=3, eoi_token_index=4, image_token_index=5
            )
            return transformers.Llama4ForConditionalGeneration(own)
        if name == "beaver-dam":
            labels = {place: f"harm_{place}" for place in range(14)}
            own = config(**small, id2label=labels, label2id={label: place for place, label in labels.items()})
            return transformers.LlamaForSequenceClassification(own)
        own = config(**small, **(EXPERTS if kind == "GptOss" else {}))
        return getattr(transformers, f"{kind}ForCausalLM")(own)


def saved(name, folder):
    """Save a judge's tiny model with its tokenizer; that of StrongREJECT's grader is an adapter."""
    tokenizer = tokenizer_of(name)
    model = model_of(name, tokenizer)
    if name == "strongreject-classifier":
        from peft import LoraConfig, get_peft_model

        model.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, lora)
        model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Says(torch.nn.Module):
    """A model that says given tokens, one after the other, whatever it reads; each with the probability given."""

    def __init__(self, tokenizer, words, chance=0.9):
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=10_000))
        self.generation_config = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)
        vocab, ends = tokenizer.get_vocab(), [tokenizer.eos_token_id] * 1_000
        self.tokens = [vocab[word] for word in words] + ends
        self.size, self.chance = len(tokenizer), chance

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep):
        step = past_key_values or 0
        chances = torch.full((len(input_ids), 1, self.size), (1 - self.chance) / (self.size - 1))
        chances[:, 0, self.tokens[step]] = self.chance
        return SimpleNamespace(logits=chances.log(), past_key_values=step + 1)


def made_to_say(judge, name, words, chance=0.9):
    """Give a judge that runs here a model that says these tokens."""
    runner = judge.asked
    runner.tokenizer, runner.rows = tokenizer_of(name), runner.rows or 1
    runner.model = Says(runner.tokenizer, words, chance)
    return judge
