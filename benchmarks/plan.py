"""What `titer plan` says of memory beside what a training takes: method by model by rows by adapter by checkpointing.

Every combination is trained for two optimizer steps on the CPU, in a process of its own, and measured over the second: the bytes of
all tensors that are alive when it begins, and from there the most that the allocator hands out (torch.profiler); the most memory of
the process, as the system sees it, stands beside. The models are SmolLM2-135M and random ones of other families with more than 100
million weights. Numbers that methods declare (`Method.holds`) may be chosen on the combinations marked `chosen`; those marked
`reported` are what is reported.

Examples:

  python benchmarks/plan.py --quick
  python benchmarks/plan.py --results plan.jsonl
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import LORA, arguments, even_rows, quiet, report
from common import settings as common_settings
from peft import LoraConfig
from rich.table import Table as Shown
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

from titer import methods
from titer.jobs.capacity import memory
from titer.jobs.footprint import Recipe, footprint
from titer.models import EMBEDDED, Template, load_model, load_tokenizer
from titer.train.config import bf16_is_fast

BASE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": BASE,
    "qwen2": {**BASE, "hidden_size": 640, "num_attention_heads": 10, "num_key_value_heads": 2, "num_hidden_layers": 14},
    "gemma2": {**BASE, "num_key_value_heads": 4, "head_dim": 64, "query_pre_attn_scalar": 64},
    "olmo2": {**BASE, "num_hidden_layers": 9},
}
"""Random models beside the embedded one; each has the embedded one's tokenizer."""


class Combination(NamedTuple):
    """A training to be measured."""

    model: str
    stage: str
    method: str
    full: bool
    rows: int
    tokens: int
    checkpointing: bool = False
    bf16: bool = True

    def __str__(self) -> str:
        how = ["full" if self.full else "r32", f"{self.rows} × {self.tokens}"]
        how += ["checkpointing"] * self.checkpointing + ["float32"] * (not self.bf16)
        return f"{self.model} {self.stage} {self.method}, {', '.join(how)}"


COMBINATIONS = [
    Combination("smollm2", "align", "sft", False, 8, 64),
    Combination("smollm2", "align", "booster", False, 8, 64),
    Combination("llama", "align", "booster", True, 4, 64),
    Combination("llama", "align", "sft", True, 4, 128, checkpointing=True),
    Combination("qwen2", "align", "antibody", False, 4, 128),
    Combination("qwen2", "align", "ctrap", False, 4, 128),
    Combination("gemma2", "align", "sft", False, 4, 64),
    Combination("gemma2", "align", "booster", False, 4, 128, checkpointing=True),
    Combination("olmo2", "align", "tar", False, 4, 64),
    Combination("olmo2", "align", "seam", True, 2, 64),
    Combination("llama", "align", "rep_noise", False, 4, 64),
    Combination("llama", "align", "vaccine", False, 4, 128),
    Combination("llama", "finetune", "adaptive_kl", False, 4, 64),
    Combination("smollm2", "finetune", "lisa", True, 4, 64),
    Combination("qwen2", "finetune", "safe_grad", False, 4, 128, checkpointing=True),
    Combination("qwen2", "finetune", "panacea", True, 4, 64),
    Combination("llama", "align", "booster", False, 4, 64, bf16=False),
    Combination("smollm2", "align", "sft", False, 1, 512),
]
"""In turn those that numbers are chosen on, and those that are reported."""

QUICK = [Combination("tiny", "align", "sft", False, 2, 32), Combination("tiny", "align", "booster", True, 2, 32)]


def config_of(name: str) -> Any:
    """Return the config of a family's random model."""
    from transformers import CONFIG_MAPPING

    tokenizer = load_tokenizer(EMBEDDED)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    kind, sizes = (
        ("llama", {**BASE, "hidden_size": 96, "num_hidden_layers": 2}) if name == "tiny" else (name, FAMILIES[name])
    )
    return CONFIG_MAPPING[kind](vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **ends)


def alive() -> int:
    """Return the bytes of all tensors that Python knows."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            memory = thing.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()
    return sum(found.values())


def resident(name: str) -> int:
    """Return what the system says of this process's memory: `VmRSS` now, or `VmHWM`, the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


class SecondStep(TrainerCallback):
    """Measures the second step, the first with moments, and ends the training after it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.before = alive()
            self.profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            )
            self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.profiler.stop()
            events = [each for each in self.profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
            held = most = 0
            for event in sorted(events, key=lambda each: each.start_ns()):
                held += event.nbytes()
                most = max(most, held)
            self.measured = self.before + most
            control.should_training_stop = True


def rows_of(template: Template, count: int, tokens: int, start: int, refusals: bool = False) -> list[dict[str, Any]]:
    """Return rows of about as many tokens, none of which stands elsewhere."""
    rows = even_rows(start + count, tokens, template)[start:]
    return [{**row, "refusal": row["completion"][0]["content"]} if refusals else row for row in rows]


def measured(case: Combination) -> dict[str, Any]:
    """Train two steps of a combination, and return what was measured and what `titer plan` counts."""
    method, tokenizer = methods.find(case.stage, case.method), load_tokenizer(EMBEDDED)
    template = Template(tokenizer)
    rows = rows_of(template, 2 * case.rows, case.tokens, 0)
    streams = {
        name: rows_of(template, 2 * case.rows, case.tokens, 40 + 20 * place, refusals=True)
        for place, name in enumerate(("harmful_dataset", "helpful_dataset"))
    }
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        if case.model == "smollm2":
            model, name = load_model(EMBEDDED), EMBEDDED
        else:
            torch.manual_seed(0)
            config = config_of(case.model)
            config.save_pretrained(folder)
            model, name = AutoModelForCausalLM.from_config(config), folder
        model.requires_grad_(case.full)
        bf16 = case.bf16 and bf16_is_fast()
        values = common_settings(
            f"{folder}/out", per_device_train_batch_size=case.rows, max_length=2048, bf16=bf16, share_prefix=False,
            gradient_checkpointing=case.checkpointing,
        )  # fmt: skip
        if hasattr(method.config, "min_perturbation"):
            values["min_perturbation"] = 0.0
        args = method.config(**values)
        meter = SecondStep()
        trainer = method.trainer(
            model=model,
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[meter],
            **{name: streams[name] for name in method.streams},
            **({} if case.full else {"peft_config": LoraConfig(**LORA)}),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        lengths = tuple(
            (len(template.prompt_ids(row["prompt"])), len(template.completion_ids(row["prompt"], row["completion"])))
            for row in rows[: case.rows]
        )
        lora = None if case.full else {key: value for key, value in LORA.items() if key != "task_type"}
        found = footprint(Recipe(name, lora, lengths, "float32", bf16, 16, case.checkpointing))
        counted = memory(found, method.holds(args))
    return {
        "combination": str(case),
        "parameters": found.parameters,
        "measured": meter.measured,
        "counted": round(counted.total),
        "error": round(counted.total / meter.measured - 1, 4),
        "parts": {key: round(value) for key, value in counted._asdict().items()},
        "packed": [trainer.layout.packed, found.packed],
        "process": resident("VmHWM") - before,
    }


def main() -> None:
    """Measure all combinations, each in a process of its own, and compare."""
    args = arguments(
        __doc__,
        texts={"results": "a file that lines are added to, and that says what is done", "one": "measure this one here"},
    )
    quiet()
    cases = QUICK if args.quick else COMBINATIONS
    if args.one:
        print(json.dumps(measured(cases[int(args.one)])))
        return
    kept = Path(args.results) if args.results else None
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.is_file() else []
    done = {line["combination"] for line in lines}
    for place, case in enumerate(cases):
        if str(case) in done:
            continue
        command = [sys.executable, __file__, "--one", str(place), *(["--quick"] if args.quick else [])]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines.append(json.loads(told.splitlines()[-1]))
        if kept:
            with kept.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    use = {str(case): "reported" if place % 2 else "chosen" for place, case in enumerate(cases)}
    table = Shown("training", "", "weights", "measured, MB", "counted, MB", "error", "process, MB")
    for line in lines:
        line["use"] = use[line["combination"]]
        table.add_row(
            line["combination"], line["use"], f"{line['parameters'] / 1e6:.0f} M", f"{line['measured'] / 1e6:.0f}",
            f"{line['counted'] / 1e6:.0f}", f"{line['error']:+.1%}", f"{line['process'] / 1e6:.0f}",
        )  # fmt: skip
    worst = {kind: max(abs(line["error"]) for line in lines if line["use"] == kind) for kind in ("chosen", "reported")}
    middle = statistics.median(abs(line["error"]) for line in lines if line["use"] == "reported")
    table.caption = (
        f"reported: median error {middle:.1%}, worst {worst['reported']:.1%}; chosen: worst {worst['chosen']:.1%}"
    )
    report(args, {"lines": lines, "worst": worst, "median": middle}, [table])


if __name__ == "__main__":
    main()
