"""One optimizer step: TRL as shipped, Booster written out by hand, and titer's trainers, side by side in one process.

All contenders train the same LoRA adapter on the same rows of mixed length, or with `--full` every weight, where titer's alone
are compared. The harmful stream of the alignment-stage methods is the same rows again, so that every gradient evaluation sees
equally many tokens. `--tokens` other than 0 takes rows of that many tokens
each, half prompt and half answer. On an accelerator: `--shape 7b --batch 16 --tokens 256`.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from typing import Any

import torch
import trl
from common import (
    LORA,
    MemoryMeter,
    Stepper,
    arguments,
    compare,
    even_rows,
    in_turn,
    load,
    matmul_peak,
    mixed_rows,
    report,
)
from common import settings as common_settings
from peft import LoraConfig, get_peft_model
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import titer
from titer.attacks import shared_copy
from titer.methods.finetune import AntibodyFinetuneConfig, AntibodyFinetuneTrainer
from titer.models import Template
from titer.packing.attention import use_packed_attention
from titer.packing.batches import Sample, pack, to_device
from titer.packing.losses import token_nll
from titer.train.config import bf16_is_fast
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

# How many gradients of the training batch's size each method needs.
EVALUATIONS = {"SFT": 1, "Booster": 3, "Antibody stage 1": 4, "Antibody stage 2": 1}


def padded(template: Template, rows: list[dict[str, Any]], device: torch.device) -> dict[str, torch.Tensor]:
    """Return rows as a padded batch with labels on the completions, as a data collator makes it."""
    pairs = [encoded(template, row) for row in rows]
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, completion in pairs:
        padding = width - len(prompt) - len(completion)
        batch["input_ids"].append(prompt + completion + [template.tokenizer.pad_token_id] * padding)
        batch["attention_mask"].append([1] * (width - padding) + [0] * padding)
        batch["labels"].append([-100] * len(prompt) + completion + [-100] * padding)
    return {name: torch.tensor(values, device=device) for name, values in batch.items()}


def encoded(template: Template, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the token ids of a row's prompt and completion."""
    return template.prompt_ids(row["prompt"]), template.completion_ids(row["prompt"], row["completion"])


class LonghandBooster:
    """Booster as released code does it: padded batches, full logits, dictionaries of gradients."""

    def __init__(self, model: Any, aligned: dict[str, torch.Tensor], harmful: dict[str, torch.Tensor]) -> None:
        self.model = get_peft_model(model, LoraConfig(**LORA))
        self.model.train()
        self.aligned, self.harmful = aligned, harmful
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=1e-4, weight_decay=0.1)

    def backward(self, batch: dict[str, torch.Tensor]) -> None:
        device = batch["input_ids"].device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16_is_fast()):
            loss = self.model(**batch).loss
        loss.backward()

    def gradients(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        self.backward(batch)
        return {name: p.grad.detach().clone() for name, p in self.trained.items()}

    def __call__(self, meter: MemoryMeter | None = None, alpha: float = 0.1, lam: float = 5.0) -> None:
        if meter:
            meter.start()
        first = self.gradients(self.harmful)
        norm = torch.sqrt(sum((g**2).sum() for g in first.values())) + 1e-7
        with torch.no_grad():
            for name, p in self.trained.items():
                p -= alpha * first[name] / norm
        second = self.gradients(self.harmful)
        with torch.no_grad():
            for name, p in self.trained.items():
                p += alpha * first[name] / norm
        self.model.zero_grad()
        self.backward(self.aligned)
        for name, p in self.trained.items():
            p.grad += lam * (first[name] - second[name])
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        if meter:
            meter.stop()


def main() -> None:
    args = arguments(__doc__, {"full": "train every weight, and measure titer's trainers alone"}, batch=10, tokens=0)
    model, tokenizer = load(args)
    device = next(model.parameters()).device
    template = Template(tokenizer)
    rows = even_rows(args.batch, args.tokens, template) if args.tokens else mixed_rows(args.batch)
    bf16 = bf16_is_fast()
    folder = tempfile.mkdtemp()

    def settings(**more: Any) -> dict[str, Any]:
        return common_settings(folder, per_device_train_batch_size=args.batch, max_length=1024, bf16=bf16, **more)

    def fresh() -> Any:
        return copy.deepcopy(model).requires_grad_(True) if args.full else shared_copy(model)

    adapter: dict[str, Any] = {} if args.full else {"peft_config": LoraConfig(**LORA)}

    def with_trl(**more: Any) -> Any:
        from datasets import Dataset

        return Stepper(
            lambda callbacks: trl.SFTTrainer(
                model=shared_copy(model),
                args=trl.SFTConfig(**settings(use_cpu=device.type == "cpu", **more)),
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                callbacks=callbacks,
                **adapter,
            )
        )

    def with_titer(trainer: Any, config: Any, **streams: Any) -> Any:
        return Stepper(
            lambda callbacks: trainer(
                model=fresh(),
                args=config(**settings()),
                train_dataset=rows,
                processing_class=tokenizer,
                callbacks=callbacks,
                **adapter,
                **streams,
            )
        )

    batch = padded(template, rows, device)
    others: dict[str, Any] = {}
    if not args.full:
        others = {
            "TRL SFT as shipped": with_trl(),
            "TRL SFT without checkpointing": with_trl(gradient_checkpointing=False),
            "Booster longhand": LonghandBooster(shared_copy(model), batch, batch),
            "Antibody stage 2": with_titer(AntibodyFinetuneTrainer, AntibodyFinetuneConfig),
        }
    contenders = {
        "SFT": with_titer(PackedSFTTrainer, PackedSFTConfig),
        "Booster": with_titer(titer.BoosterTrainer, titer.BoosterConfig, harmful_dataset=rows),
        "Antibody stage 1": with_titer(
            titer.AntibodyAlignmentTrainer,
            titer.AntibodyAlignmentConfig,
            harmful_dataset=rows,
            refusal_dataset=rows,
        ),
        **others,
    }

    samples = [Sample(prompt, [completion]) for prompt, completion in (encoded(template, row) for row in rows)]
    packed = to_device(pack(samples), device)
    probe = fresh() if args.full else get_peft_model(fresh(), LoraConfig(**LORA))
    use_packed_attention(probe if args.full else probe.get_base_model())
    with FlopCounterMode(display=False) as counter:
        token_nll(probe, packed)[0].mean().backward()
    flops = counter.get_total_flops()
    trained = sum(p.numel() * p.element_size() for p in probe.parameters() if p.requires_grad)
    del probe
    peak = matmul_peak(torch.bfloat16 if bf16 else torch.float32, device)

    times = in_turn(contenders, args.rounds)
    memory = {}
    for name, step in contenders.items() if device.type == "cpu" else ():
        meter = MemoryMeter()
        step(meter)
        if isinstance(step, Stepper):
            step()  # a trainer reads the meter when its step ends, which is when the next one is asked for
        memory[name] = meter.most

    supervised = packed["targets"].numel()
    table = Table("contender", "s/step", "range", "supervised tokens/s", "of the peak", "memory of a step")
    lines = []
    for name, seconds in times.items():
        evaluations = EVALUATIONS.get(name, 3 if "Booster" in name else 1)
        middle = statistics.median(seconds)
        line = {
            "contender": name,
            "seconds": round(middle, 4),
            "low": round(min(seconds), 4),
            "high": round(max(seconds), 4),
            "supervised_tokens_per_second": round(supervised / middle, 1),
            "fraction_of_peak": round(evaluations * flops / middle / peak, 3),
            "peak_bytes": memory.get(name),
        }
        lines.append(line)
        table.add_row(
            name,
            f"{middle:.3f}",
            f"{min(seconds):.3f}–{max(seconds):.3f}",
            f"{supervised / middle:.0f}",
            f"{100 * line['fraction_of_peak']:.0f} %",
            f"{memory[name] / 2**20:.0f} MiB" if memory else "",
        )
    result = {
        "rows": args.batch,
        "packed_tokens": packed["input_ids"].shape[1],
        "padded_tokens": batch["input_ids"].numel(),
        "supervised_tokens": supervised,
        "flops_of_one_gradient": flops,
        "matmul_peak": round(peak),
        "precision": "bf16 autocast" if bf16 else "float32",
        "steps": lines,
        "ratios": [
            compare(times, name, to, target)
            for name, to, target in (
                ("SFT", "TRL SFT as shipped", 0.25),
                ("SFT", "TRL SFT without checkpointing", None),
                ("Booster", "Booster longhand", 0.3),
                ("Booster", "SFT", 3.1),
                ("Antibody stage 1", "SFT", 4.1),
                ("Antibody stage 2", "SFT", 1.35),
            )
            if name in times and to in times
        ],
        "trainable_bytes": trained,
    }
    if memory:
        extra = {name: (memory[name] - memory["SFT"]) / trained for name in ("Booster", "Antibody stage 1")}
        result["extra_memory_in_copies_of_the_trainable_weights"] = {k: round(v, 2) for k, v in extra.items()}
        table.caption = ", ".join(f"{name}: {copies:+.2f}" for name, copies in extra.items()) + (
            " copies of the trainable weights more than SFT"
        )
    table.title = (
        f"{result['packed_tokens']} packed tokens ({result['padded_tokens']} padded), {supervised} supervised; peak "
        f"{peak / 1e9:.0f} GFLOP/s in {result['precision']}"
    )
    report(args, result, [table])


if __name__ == "__main__":
    main()
