"""K LoRA attackers together against the same attackers one after the other, and their answers at a checkpoint.

Every attacker has its own rows, learning rate and seed. All ways train the same number of steps from the same start and
end in the same adapters; the script checks that before it reports a ratio, and on an accelerator says how far they are
apart. With `--loop` the fleet also runs as it does on a CPU, sample by sample and adapter by adapter: what one kernel for
a packed row and grouped products save on an accelerator.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from typing import Any
from unittest import mock

import torch
from common import LORA, arguments, compare, in_turn, load, mixed_rows, report
from common import settings as common_settings
from peft import LoraConfig
from rich.table import Table
from transformers import PrinterCallback

from titer.attacks import Fleet, FleetTrainer, shared_copy
from titer.infer import stacked
from titer.infer.generation import generate
from titer.methods.finetune import FinetuneConfig
from titer.models import Template
from titer.packing import attention
from titer.train.config import bf16_is_fast
from titer.train.trainer import PackedSFTTrainer


def main() -> None:
    args = arguments(
        __doc__, switches={"loop": "also without joint kernels"}, attackers=8, batch=4, steps=3, prompts=8, tokens=24
    )
    if args.quick:
        args.attackers, args.steps, args.prompts, args.tokens = 4, 2, 4, 8
    model, tokenizer = load(args)
    template = Template(tokenizer)
    rows = mixed_rows(args.batch * args.steps * args.attackers)
    folder = tempfile.mkdtemp()

    def attacker(trainer: Any, number: int) -> Any:
        config = common_settings(
            folder,
            per_device_train_batch_size=args.batch,
            max_length=1024,
            bf16=bf16_is_fast(),
        ) | {"max_steps": args.steps, "learning_rate": 1e-4 * (number + 1), "seed": number}
        made = trainer(
            model=shared_copy(model),
            args=FinetuneConfig(**config),
            train_dataset=rows[number :: args.attackers],
            processing_class=tokenizer,
            peft_config=LoraConfig(**LORA),
        )
        made.remove_callback(PrinterCallback)
        return made

    prompts = [template.prompt_ids(row["prompt"]) for row in mixed_rows(args.prompts)]
    ways = ["one by one", "together", *(["together, loop"] if args.loop else [])]
    seconds: dict[str, list[float]] = {f"{kind} {way}": [] for kind in ("training", "answers") for way in ways}
    last: dict[str, Any] = {}

    def timed(work: Any) -> tuple[float, Any]:
        start = time.perf_counter()
        result = work()
        return time.perf_counter() - start, result

    # The trainers are made outside of what is timed: that takes equally long both ways. Alone, each is trained as soon as it
    # is made, for the order of its rows comes from the seed that was set last.
    def one_by_one() -> None:
        crew, training, answering, answers = [], 0.0, 0.0, []
        for number in range(args.attackers):
            crew.append(attacker(PackedSFTTrainer, number))
            training += timed(crew[-1].train)[0]
        for trainer in crew:
            took, texts = timed(functools.partial(generate, trainer.model, template, prompts, args.tokens))
            answering += took
            answers += texts
        seconds["training one by one"].append(training)
        seconds["answers one by one"].append(answering)
        last["one by one"] = (adapters(crew), answers)

    def together(way: str = "together") -> None:
        crew = [attacker(FleetTrainer, number) for number in range(args.attackers)]
        fleet = Fleet(crew)
        took, errors = timed(fleet.train)
        seconds[f"training {way}"].append(took)
        assert errors == [None] * len(crew), errors
        owners = [number for number in range(len(crew)) for _ in prompts]
        took, answers = timed(
            lambda: generate(
                fleet.model, template, prompts * len(crew), args.tokens, owners=owners, place=fleet.seating.by_row
            )
        )
        seconds[f"answers {way}"].append(took)
        last[way] = (adapters(crew), answers)
        last["fleet"] = fleet

    def loop() -> None:
        alone = functools.partial(mock.patch.object, return_value=None)
        with alone(stacked, "grouped_precision"), alone(attention, "kernel_for"):
            together("together, loop")

    contenders = {"one by one": one_by_one, "together": together, "together, loop": loop}
    in_turn({way: contenders[way] for way in ways}, args.rounds)
    times = {name: values[1:] for name, values in seconds.items()}
    (apart, apart_answers), (joined, joined_answers) = last["one by one"], last["together"]
    difference = max(((a - b).norm() / a.norm()).item() for a, b in zip(apart, joined, strict=True))
    # AdamW divides by the size of the gradient: where that is next to nothing, grouped products' rounding shows.
    assert torch.cuda.is_available() or difference < 1e-2, f"the fleet's adapters differ by {difference}"
    alike = sum(left == right for left, right in zip(apart_answers, joined_answers, strict=True))

    fleet = last["fleet"]
    adapter = sum(p.numel() * p.element_size() for p in fleet.trainers[0].trainable.values())
    optimizer = sum(
        value.numel() * value.element_size()
        for state in fleet.trainers[0].optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    table = Table("what", "seconds", "range")
    for name, values in times.items():
        table.add_row(name, f"{statistics.median(values):.2f}", f"{min(values):.2f}–{max(values):.2f}")
    table.title = (
        f"{args.attackers} attackers, batches of {args.batch}, {args.steps} steps; {args.prompts} answers each"
    )
    table.caption = (
        f"an attacker more: {adapter / 2**20:.1f} MiB of adapter, {optimizer / 2**20:.1f} MiB of optimizer state, and "
        f"its activations; largest relative difference of an adapter {difference:.1e}; same answers "
        f"{alike}/{len(apart_answers)}"
    )
    result = {
        "attackers": args.attackers,
        "batch": args.batch,
        "steps": args.steps,
        "seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "adapter_bytes": adapter,
        "optimizer_bytes": optimizer,
        "largest_relative_difference": difference,
        "same_answers": [alike, len(apart_answers)],
        "ratios": [
            compare(times, "training together", "training one by one", 0.7),
            compare(times, "answers together", "answers one by one"),
            *(
                compare(times, f"{kind} together", f"{kind} together, loop")
                for kind in (("training", "answers") if args.loop else ())
            ),
        ],
    }
    report(args, result, [table])


def adapters(crew: list[Any]) -> list[torch.Tensor]:
    """Return each attacker's adapter as one vector."""
    return [torch.cat([p.detach().flatten().float() for p in trainer.trainable.values()]) for trainer in crew]


if __name__ == "__main__":
    main()
