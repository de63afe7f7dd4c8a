"""A tiny Llama with its own tokenizer, so that everything but the science runs in a second."""

import copy
import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch
from rows import row

# The tiny model is slower on several threads than on one, and tests should leave the other cores alone.
torch.set_num_threads(1)

# Files are written as they are for users, but no test pulls the plug, and a busy disk takes long to promise anything.
os.fsync = lambda descriptor: None


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_is_collected():
    """Let a garbage collection look at what the module's tests make, and not at the libraries' million objects.

    Every training ends with one, which took a third of a second.
    """
    gc.collect()
    gc.freeze()


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

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


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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


def _norm(self, hidden):
    """RMSNorm in the precision of its input: the library's own rounds to float32, which would hide errors of 1e-10."""
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.fixture(scope="session")
def _tiny(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    LlamaRMSNorm.forward = _norm
    torch.manual_seed(0)
    config = LlamaConfig(
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
    return LlamaForCausalLM(config)


@pytest.fixture
def tiny(_tiny):
    """A fresh tiny model in float32."""
    return copy.deepcopy(_tiny)


@pytest.fixture(scope="session")
def tiny_folder(_tiny, tokenizer, tmp_path_factory) -> Path:
    """The tiny model and its tokenizer as a model folder."""
    folder = tmp_path_factory.mktemp("tiny-model")
    copy.deepcopy(_tiny).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def helpful_rows():
    subjects = ["bread", "a film", "France", "a lock", "water", "salt", "the capital", "a guide"]
    return [
        row(f"what is {s}?" + " please" * (i % 3), f"it is {s}, here" + " and there" * (i % 4))
        for i, s in enumerate(subjects)
    ]


@pytest.fixture(scope="session")
def harmful_rows():
    things = ["pick a lock", "steal bread", "break a film", "sell water", "hide salt", "write a bad guide", "a", "b c"]
    return [
        row(
            f"how do I {t}",
            f"sure, here is how to {t}" + " wait" * (i % 3),
            refusal="no, I will not" + " do that" * (i % 2 + 1),
        )
        for i, t in enumerate(things)
    ]


@pytest.fixture
def titer(monkeypatch, capsys):
    """Runs the command line in this process; returns its exit code and what it wrote to stdout and stderr."""
    from titer.cli import main

    def run(*words):
        monkeypatch.setattr("sys.argv", ["titer", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        written = capsys.readouterr()
        return stop.value.code or 0, written.out, written.err

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test when a model is loaded."""
    # Imported before: what they import stays with them.
    from titer import experiment, models, stages  # noqa: F401
    from titer.assay import runner  # noqa: F401

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    for name in ("load_model", "load_tokenizer", "locate"):
        monkeypatch.setattr(models, name, load)
    monkeypatch.setattr(stages, "load_model", load)
    monkeypatch.setattr(stages, "load_tokenizer", load)
