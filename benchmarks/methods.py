"""What each method costs beside plain training: time and memory of an optimizer step, its passes, and what comes before it.

Every method that trains takes steps in turn with plain training, on the same model, rows and batch, in one process. Passes are
counted and not declared. A repair, which takes no steps, is timed whole. With `--write` the figures go into
docs/methods/measured.json, and from there into the cards.

Examples:

  python benchmarks/methods.py --quick
  python benchmarks/methods.py --only vaccine,lisa
  python benchmarks/methods.py --write
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import LORA, MemoryMeter, Stepper, arguments, compare, in_turn, load, mixed_rows, report
from common import settings as common_settings
from peft import LoraConfig, get_peft_model
from rich.table import Table

from titer import methods
from titer.attacks.fleet import shared_copy
from titer.data import load as load_records
from titer.data.builtin import general, harmful
from titer.errors import TiterError
from titer.jobs.provenance import commit
from titer.methods import Method, Repair
from titer.train.config import bf16_is_fast

CARDS = Path(__file__).parents[1] / "docs" / "methods"
MEASURED = CARDS / "measured.json"
BLOCK = re.compile(r"(<!-- measured: (.+?) -->\n).*?(<!-- /measured -->)", re.DOTALL)
EVERY_STREAM = 48
"""Rows of each dataset that a method draws from."""


class Counted:
    """Counts the passes of a trainer: forward ones through the model, backward ones from its losses."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def watch(self, trainer: Any) -> Any:
        """Begin to count; returns the trainer."""
        trainer.bare_model.register_forward_pre_hook(self._seen)
        trainer.accelerator.backward = self.counting(trainer.accelerator.backward)
        return trainer

    def counting(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that goes backward, counted."""

        def backward(*args: Any, **kwargs: Any) -> Any:
            self.backward += 1
            return run(*args, **kwargs)

        return backward

    def _seen(self, module: Any, inputs: Any) -> None:
        self.forward += 1


def adapted(model: Any) -> Any:
    """Return the model with an adapter that does a little, as an aligned one does."""
    torch.manual_seed(0)
    made = get_peft_model(shared_copy(model), LoraConfig(**LORA))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1e-3)
    return made


def conversation(source: Any, answer: str, **more: Any) -> dict[str, Any]:
    """Return a row of the built-in corpora as a trainer takes it."""
    return {
        "prompt": [{"role": "user", "content": source.prompt}],
        "completion": [{"role": "assistant", "content": answer}],
        **more,
    }


def streams_of(method: Method) -> dict[str, Any]:
    """Return the datasets that a method wants."""
    own = {
        "harmful_dataset": [conversation(one, one.answer, refusal=one.refusal) for one in harmful()[:EVERY_STREAM]],
        "helpful_dataset": [conversation(one, one.answer) for one in general()[:EVERY_STREAM]],
    }
    return {name: own[name] for name in method.streams}


def stepper(method: Method, model: Any, tokenizer: Any, rows: Any, folder: str, batch: int) -> tuple[Any, Any, float]:
    """Return what takes a method one step further, its count of passes, and the seconds that came before the first step."""
    counted, start = Counted(), time.perf_counter()
    values = common_settings(folder, per_device_train_batch_size=batch, max_length=1024, bf16=bf16_is_fast())
    if model.config.num_hidden_layers == 2:
        values |= next(iter(method.variants.values()))  # which fit the tiny model; the defaults of some do not
    if hasattr(method.config, "min_perturbation"):
        values["min_perturbation"] = 0.0  # a step that is lost in rounding takes as long
    if hasattr(method.config, "l_max"):
        values |= {"l_min": 0, "l_max": 1}  # which two layers are trained, `titer repair` finds before
    args = method.config(**values)

    def make(callbacks: Any) -> Any:
        trainer = method.trainer(
            model=adapted(model),
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=callbacks,
            **streams_of(method),
        )
        return counted.watch(trainer)

    made = Stepper(make)
    return made, counted, time.perf_counter() - start


def training(stage: str, name: str, method: Method, args: Any, model: Any, tokenizer: Any, rows: Any) -> dict[str, Any]:
    """Measure a method that trains beside plain training."""
    plain = methods.find("finetune" if stage == "repair" else stage, "sft")
    with tempfile.TemporaryDirectory() as folder:
        sft, _, sft_before = stepper(plain, model, tokenizer, rows, folder, args.batch)
        own, counted, before = stepper(method, model, tokenizer, rows, folder, args.batch)
        contenders: dict[str, Callable[[], Any]] = {"sft": sft, name: own}
        for step in contenders.values():
            step()  # a first step may check or prepare what others do not
        counted.forward = counted.backward = 0
        with mock.patch("torch.autograd.grad", counted.counting(torch.autograd.grad)):
            times = in_turn(contenders, args.rounds, warm_up=0)
        passes = counted.forward / args.rounds, counted.backward / args.rounds
        memory = []
        for step in (sft, own) if not torch.cuda.is_available() else ():
            meter = MemoryMeter()
            step(meter)
            step()  # the meter is read when the step ends, which is when the next one is asked for
            memory.append(meter.most)
    ratio = compare(times, name, "sft")
    return {
        **ratio,
        "what": f"{stage} {name}",
        "forward": round(passes[0], 2),
        "backward": round(passes[1], 2),
        "before": round(before - sft_before, 2),
        "memory": round(memory[1] / memory[0], 3) if memory else None,
        "megabytes": [round(held / 1e6) for held in memory],
    }


def repairing(name: str, method: Repair, model: Any, tokenizer: Any, rounds: int) -> dict[str, Any]:
    """Time a repair of an adapter of the model's shapes, with the pass over the defender's rows where it wants one."""
    from titer.compat import adapted_layers
    from titer.methods.repair.inputs import encoded, with_inputs
    from titer.methods.repair.lowrank import Layer, LowRank

    tuned, layers, scale = adapted(model), {}, LORA["lora_alpha"] / LORA["r"]
    for layer, module in adapted_layers(tuned.base_model.model):
        b, a = (part["default"].weight.detach().double() for part in (module.lora_B, module.lora_A))
        own = LowRank(b * scale**0.5, a * scale**0.5)
        update = LowRank(torch.randn_like(b) * 1e-3, a)
        layers[layer] = Layer(LowRank(b * scale, a) - update, update, own, own)
    records = load_records("builtin:harmful")[:EVERY_STREAM]
    config, seconds = method.config(), []
    for _ in range(rounds):
        start = time.perf_counter()
        given = with_inputs(layers, tuned, encoded(records, tokenizer, model.config)) if method.streams else layers
        method.apply(given, config)
        seconds.append(time.perf_counter() - start)
    return {"what": f"repair {name}", "layers": len(layers), "seconds": round(statistics.median(seconds), 3)}


def told(line: dict[str, Any], about: dict[str, Any]) -> str:
    """Return a line of a card."""
    how = f"`python benchmarks/methods.py --write`, commit `{about['commit']}`, {about['model']}"
    if "seconds" in line:
        return f"Measured: **{line['seconds']:g} s** for {line['layers']} matrices ({how}).\n"
    memory = f"{line['memory']:.2f} times ({line['megabytes'][1]} MB for {line['megabytes'][0]})"
    return (
        f"Measured beside plain training: a step takes **{line['median']:.2f} times as long** [{line['low']:.2f}–"
        f"{line['high']:.2f}], with {line['forward']:g} forward and {line['backward']:g} backward passes, and holds {memory} "
        f"the memory; before the first step {line['before']:+.1f} s ({how}, batches of {about['batch']} rows of mixed length, "
        f"{about['rounds']} rounds).\n"
    )


def write(lines: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Put figures into `measured.json`, over those of the same methods, and all of them into the cards."""
    known = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    known |= {line["what"]: {**line, **about} for line in lines}
    MEASURED.write_text(json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for card in CARDS.glob("*.md"):
        text = card.read_text(encoding="utf-8")
        put = BLOCK.sub(lambda m: m[1] + (told(known[m[2]], known[m[2]]) if m[2] in known else "") + m[3], text)
        if put != text:
            card.write_text(put, encoding="utf-8")


def main() -> None:
    """Measure all methods of the table, or those named."""
    args = arguments(
        __doc__, {"write": "put the figures into the cards"}, texts={"only": "methods, with commas"}, batch=10
    )
    model, tokenizer = load(args)
    rows = mixed_rows(2 * args.batch)
    lines: list[dict[str, Any]] = []
    left_out = {}
    # Before anything is written, which would mark the checkout as changed.
    about = {"commit": commit(), "model": args.shape or args.model, "batch": args.batch, "rounds": args.rounds}
    for stage, name, method in methods.every():
        if name == "sft" or (args.only and name not in args.only.split(",")):
            continue
        try:
            if isinstance(method, Repair):
                lines.append(repairing(name, method, model, tokenizer, args.rounds))
            else:
                lines.append(training(stage, name, method, args, model, tokenizer, rows))
        except TiterError as error:  # some methods do not go with some models
            left_out[f"{stage} {name}"] = error.message
            print(f"{stage} {name} is left out: {error.message}", file=sys.stderr)
            continue
        if args.write:
            write(lines[-1:], about)
    table = Table("method", "time of a step / SFT", "passes", "memory / SFT", "before the first step")
    for line in lines:
        if "seconds" in line:
            table.add_row(line["what"], f"{line['seconds']:g} s in all", "", "", "")
            continue
        passes = f"{line['forward']:g} forward, {line['backward']:g} backward"
        memory = "" if line["memory"] is None else f"{line['memory']:.2f}"
        table.add_row(line["what"], f"{line['median']:.2f}", passes, memory, f"{line['before']:+.1f} s")
    trained = [line for line in lines if "median" in line]
    report(args, {"ratios": trained, "lines": lines, "left_out": left_out}, [table])


if __name__ == "__main__":
    main()
