"""Memory of `titer align` and `titer finetune` in one process, beside that with a copy of the base for each, as it was before.

Plain trainings of a LoRA, as many rows and steps each, then answers of the merged model; each way in a process of its own. Measured
are the bytes of tensors when a step begins, the most of all steps, and the most memory of the process, as the system sees it.
The weights that the two ways leave are compared too.

Examples:

  python benchmarks/base_memory.py --quick
  python benchmarks/base_memory.py --rows 4 --tokens 64
"""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import LORA, arguments, quiet, report
from common import settings as common_settings
from plan import alive, config_of, resident, rows_of
from rich.table import Table as Shown
from transformers import AutoModelForCausalLM, TrainerCallback

from titer import methods
from titer.data.records import Record
from titer.jobs import answers, base_model, trainings
from titer.models import EMBEDDED, Template, load_tokenizer

WAYS = ("copied", "shared")


class Meter(TrainerCallback):
    """Keeps the most bytes of tensors that are there when a step begins."""

    def __init__(self) -> None:
        self.most = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.most = max(self.most, alive())


def measured(way: str, tiny: bool, rows: int, tokens: int) -> dict[str, Any]:
    """Align, fine-tune and ask, and return the bytes that it took and a hash of the weights."""
    if way == "copied":
        base_model._lent = lambda name: copy.deepcopy(base_model._checked(name).model)
    tokenizer, meter = load_tokenizer(EMBEDDED), Meter()
    records = [Record.from_row(row, "") for row in rows_of(Template(tokenizer), 2 * rows, tokens, 0)]
    lora = {key: value for key, value in LORA.items() if key != "task_type"}
    with tempfile.TemporaryDirectory() as place:
        base = f"{place}/base"
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config_of("tiny" if tiny else "llama")).save_pretrained(base)
        tokenizer.save_pretrained(base)
        before, adapter = resident("VmRSS"), None
        for stage in ("align", "finetune"):
            method, folder = methods.find(stage, "sft"), Path(place) / stage
            values = common_settings(str(folder / "checkpoints"), max_steps=2, per_device_train_batch_size=rows)
            args = method.config(**values)
            trainings.train(method, args, base, adapter, lora, records, {}, folder, callbacks=[meter])
            adapter = folder / "adapter"
        trained = resident("VmHWM") - before
        texts = answers.answer(base, adapter, [(records[0], 4)])
        left = (adapter / "adapter_model.safetensors").read_bytes() + repr(texts).encode()
    return {"way": way, "tensors": meter.most, "process": trained, "left": hashlib.sha256(left).hexdigest()}


def main() -> None:
    """Measure both ways and compare."""
    args = arguments(__doc__, texts={"one": "measure this way here"}, rows=4, tokens=64)
    quiet()
    if args.one:
        print(json.dumps(measured(args.one, args.quick, args.rows, args.tokens)))
        return
    lines = []
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", way]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines.append(json.loads(told.splitlines()[-1]))
    table = Shown("base", "tensors, MB", "process, MB")
    for line in lines:
        table.add_row(line["way"], f"{line['tensors'] / 1e6:.0f}", f"{line['process'] / 1e6:.0f}")
    copied, shared = lines
    ratios = {what: round(shared[what] / copied[what], 3) for what in ("tensors", "process")}
    same = copied["left"] == shared["left"]
    table.caption = f"shared / copied: tensors {ratios['tensors']}, process {ratios['process']}; same weights: {same}"
    report(args, {"lines": lines, "shared_by_copied": ratios, "same": same}, [table])


if __name__ == "__main__":
    main()
