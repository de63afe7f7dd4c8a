"""What the benchmarks share: a model, contenders measured in turn, ratios, and a table or JSON at the end."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from titer.attacks.coroutine import Coroutine, random_state
from titer.data.builtin import general, harmful, sentiment, topics
from titer.jobs.provenance import environment
from titer.models import EMBEDDED, Template, load_model, load_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
"""Random models of the Llama kind: one for quick runs, and Llama-2-7B's shape for accelerators."""

LORA = {"r": 32, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def arguments(
    about: str, switches: Mapping[str, str] | None = None, texts: Mapping[str, str] | None = None, **defaults: int
) -> argparse.Namespace:
    """Parse `--quick`, `--json`, `--model`, a flag for each of `switches`, an option for each of `texts` and `defaults`.

    `about` is the script's docstring: its first paragraph stands above the options, the rest below.
    """
    description, _, more = about.partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=more)
    parser.add_argument("--quick", action="store_true", help="a tiny random model and two rounds; under a minute")
    parser.add_argument("--json", metavar="FILE", help="also write the result to FILE; `-` prints it and nothing else")
    parser.add_argument("--model", default=EMBEDDED, help="a local folder, a hub id or the embedded default")
    parser.add_argument("--shape", choices=SHAPES, help="a random model of this shape instead")
    parser.add_argument("--rounds", type=int, help="how often each contender is measured")
    for name, what in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=what)
    for name, what in (texts or {}).items():
        parser.add_argument(f"--{name}", help=what)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 7)
    args.shape = args.shape or ("tiny" if args.quick else None)
    quiet()
    return args


def quiet() -> None:
    """Keep the libraries' remarks out of the result."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return the model to measure, with frozen weights, and its tokenizer."""
    if args.shape is None:
        model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    else:
        tokenizer = _byte_tokenizer()
        torch.manual_seed(0)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        sizes = {"vocab_size": len(tokenizer), "tie_word_embeddings": args.shape == "tiny", **SHAPES[args.shape]}
        on_gpu = torch.cuda.is_available()
        with torch.device("cuda" if on_gpu else "cpu"):
            model = LlamaForCausalLM(LlamaConfig(**sizes, **ends))
        if on_gpu and args.shape != "tiny":
            model = model.to(torch.bfloat16)
    return model.requires_grad_(False), tokenizer


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which every byte is a token, with the chat format of SmolLM2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={byte: place for place, byte in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer


def even_rows(count: int, tokens: int, template: Template) -> list[dict[str, Any]]:
    """Return rows of about `tokens` tokens each, half prompt and half answer, no two alike."""
    rows = []
    for place in range(count):
        row: dict[str, Any] = {}
        length = words = 0
        while length < tokens:
            words += 1
            text = " ".join(str((31 * place + word) % 100) for word in range(words))
            row = {
                "prompt": [{"role": "user", "content": text}],
                "completion": [{"role": "assistant", "content": text}],
            }
            ids = template.prompt_ids(row["prompt"]), template.completion_ids(row["prompt"], row["completion"])
            length = sum(map(len, ids))
        rows.append(row)
    return rows


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Return rows of mixed length: labels of a word, refusals of a sentence, answers of a paragraph."""
    kinds = [sentiment("train"), general(), harmful(), topics("train")]
    rows = []
    for place in range(count):
        kind = kinds[place % len(kinds)]
        source = kind[place * 37 % len(kind)]
        answer = source.refusal if kind is kinds[2] else source.answer
        rows.append(
            {
                "prompt": [{"role": "user", "content": source.prompt}],
                "completion": [{"role": "assistant", "content": answer}],
            }
        )
    return rows


class Stepper(TrainerCallback):
    """Takes a trainer one whole optimizer step further at each call, logging and all.

    Args:
        make: Makes the trainer with the callbacks it is given.
    """

    def __init__(self, make: Callable[[list[TrainerCallback]], Any]) -> None:
        trainer = make([self])
        trainer.remove_callback(PrinterCallback)
        self.coroutine = Coroutine(trainer.train, random_state())
        self.memory: MemoryMeter | None = None

    def __call__(self, meter: MemoryMeter | None = None) -> None:
        if not self.coroutine.resume(meter):
            raise self.coroutine.error or RuntimeError("the training ended")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.memory:
            self.memory.stop()
        self.memory = self.coroutine.ask(state.global_step)
        if self.memory:
            self.memory.start()


class MemoryMeter:
    """Counts the bytes of tensors that are held, on the CPU and in one thread, between `start` and `stop`."""

    def start(self) -> None:
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self.profiler.start()

    def stop(self) -> None:
        self.profiler.stop()
        events = [event for event in self.profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = self.most = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            self.most = max(self.most, held)


def in_turn(contenders: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Return seconds of each contender in each round; one after the other, so that noise meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    steps = [(number, name) for number in range(rounds + warm_up) for name in contenders]
    for number, name in track(steps, description="measuring", console=Console(stderr=True), transient=True):
        start = time.perf_counter()
        contenders[name]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number >= warm_up:
            times[name].append(time.perf_counter() - start)
    return times


def compare(times: dict[str, list[float]], name: str, to: str, target: float | None = None) -> dict[str, Any]:
    """Return the ratio of two contenders: the median over rounds, with the smallest and the largest."""
    ratios = [left / right for left, right in zip(times[name], times[to], strict=True)]
    return {
        "what": name,
        "to": to,
        "median": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "target": target,
    }


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return the most FLOP/s that a matrix product reached on this machine, over a few shapes."""
    best = 0.0
    for rows, inner, columns in ((512, 576, 1536), (1024, 1024, 1024), (2048, 2048, 2048)):
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(columns, inner, device=device, dtype=dtype)
        for _ in range(12):
            start = time.perf_counter()
            for _ in range(3):
                left @ right.T
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 3 * 2 * rows * inner * columns / (time.perf_counter() - start))
    return best


def report(args: argparse.Namespace, result: dict[str, Any], tables: Sequence[Table]) -> None:
    """Print the tables and write the JSON; ratios with a target say whether they met it."""
    ratios = Table("ratio", "median", "range", "target", title="side by side")
    for line in result.get("ratios", []):
        target = (
            ""
            if line["target"] is None
            else f"≤ {line['target']}  " + ("met" if line["median"] <= line["target"] else "not met")
        )
        ratios.add_row(
            f"{line['what']} / {line['to']}", f"{line['median']:.2f}", f"{line['low']:.2f}–{line['high']:.2f}", target
        )
    name = Path(sys.argv[0]).stem
    document = {"benchmark": name, "quick": args.quick, "rounds": args.rounds, **result, "environment": environment()}
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if args.json == "-":
        print(text)
        return
    console = Console()
    for table in (*tables, ratios):
        console.print(table)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")


def settings(folder: str, **more: Any) -> dict[str, Any]:
    """Return settings that every trainer here has in common: nothing logged, nothing saved."""
    return {
        "output_dir": folder,
        "max_steps": 10_000,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
        **copy.deepcopy(more),
    }
