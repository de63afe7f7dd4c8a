"""How fast this machine computes with a model: measured once, and kept in titer's cache with what finished work took."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer.files import replacing
from titer.jobs.work import Cost, Work
from titer.progress import Task
from titer.text import say

logger = logging.getLogger(__name__)

PARTS = {
    "load": ("loads",),
    "train": ("setups", "passes", "trained"),
    "read": ("reads", "read"),
    "answer": ("prompted", "rounds", "decoded", "attended"),
}
"""What is measured together."""

VERDICT = 1e-3
"""Seconds that a judge takes for an answer; records of slower ones know better."""


def machine() -> dict[str, Any]:
    """Return what a machine is known by."""
    return {"system": platform.system(), "processor": _processor(), "cores": os.cpu_count()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def speeds_folder() -> Path:
    """Return where it is kept what is known of this machine's speed."""
    from titer.models import cache_folder

    return cache_folder() / "speeds"


@dataclass
class Speed:
    """What is known of how fast a machine runs a model.

    Attributes:
        path: Where it is kept.
        about: The machine and the architecture.
        measured: Part ("train bf16") → its date, how busy the machine was, and field of `Cost` → seconds.
        records: What finished work took, the latest last: kind, cost, seconds, date.
    """

    path: Path
    about: dict[str, Any]
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, model: str) -> Speed:
        """Return what is known of a model here."""
        import torch

        from titer.models import load_config

        # Two models of one architecture are as fast as each other.
        config = {name: value for name, value in load_config(model).to_diff_dict().items() if not name.startswith("_")}
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
        if torch.cuda.is_available():
            device = torch.cuda.get_device_name()
        about = {**machine(), "threads": torch.get_num_threads(), "device": device, "torch": torch.__version__}
        about["schema"] = "titer/speed/1"  # records of another make are another file
        about["model"] = config
        key = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
        path = speeds_folder() / f"{key}.json"
        with contextlib.suppress(FileNotFoundError):
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
                return cls(path, about, dict(known["measured"]), list(known["records"]))
            except (ValueError, KeyError, TypeError):
                logger.warning("%s is damaged; what it said of this machine's speed is measured again.", path)
        return cls(path, about)

    def keep(self) -> None:
        """Write it down, where that is possible: no work fails for want of a note."""
        known = {"about": self.about, "measured": self.measured, "records": self.records}
        try:
            with replacing(self.path) as file:
                file.write(json.dumps(known, indent=1, default=str).encode())
        except OSError as error:
            logger.warning("How fast this machine is could not be kept in %s: %s", self.path, error)

    def seconds(self, work: Work) -> float:
        """Return how long work takes by the measured speed, measuring what is not known yet."""
        return work.cost @ Cost(**self._needed(work), verdicts=VERDICT)

    def _needed(self, work: Work) -> dict[str, float]:
        """Return the seconds of each kind of computation in `work`, measuring those that are not known."""
        parts = {
            f"train {'bf16' if work.bf16 else 'float32'}" if part == "train" else part: fields
            for part, fields in PARTS.items()
            if any(getattr(work.cost, name) for name in fields)
        }
        busy = _business()
        # What was measured beside other work is measured again when there is none.
        missing = [
            part
            for part, fields in parts.items()
            if not {*fields} <= self.measured.get(part, {}).keys() or self.measured[part]["business"] > BUSY >= busy
        ]
        if missing:
            why = "; it is busy with something else, so once more when it is not" if busy > BUSY else ""
            say(f"Measuring how fast this machine runs {work.model} ({', '.join(missing)}), once{why} …", sys.stderr)
        for part in missing:
            with Task(f"measuring how fast this machine is ({part})"):
                seconds = _measure(part, work.model)
            self.measured[part] = {"date": f"{datetime.date.today()}", "business": round(busy, 2), **seconds}
            self.keep()
        return {name: self.measured[part][name] for part, fields in parts.items() for name in fields}


BIG, SMALL = (8, 40), (2, 16)
"""Rows and tokens of the batches that speed is measured on."""

PATIENCE = 1.0
"""Seconds after which nothing is run once more."""

BUSY = 1.5
"""Processes that want to run, for each core, from which on a machine is busy with something else."""


def _business() -> float:
    """Return how many processes want to run, for each core; 0 where the system does not say."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def _line(seconds: Sequence[float], tokens: Sequence[float]) -> tuple[float, float]:
    """Return seconds for a pass and for each token in it, from a pass of few and one of many tokens."""
    (small, big), (few, many) = seconds, tokens
    each = max(big - small, 0.0) / (many - few)
    if not each:  # noise alone: tokens cost next to nothing
        each = big / many / 10
    return max(small - each * few, 0.0), each


def _ids(model: Any, rows: int, tokens: int) -> list[list[int]]:
    """Return rows of tokens that begin with different ones."""
    vocabulary = model.config.get_text_config().vocab_size
    return [[(17 + 31 * row + 7 * place) % vocabulary for place in range(tokens)] for row in range(rows)]


def _measure(part: str, model: str) -> dict[str, float]:
    """Return the seconds of the kinds of computation in a part, measured with the model itself."""
    if part.startswith("train"):
        return _measure_training(model, part == "train bf16")
    return {"load": _measure_loading, "read": _measure_reading, "answer": _measure_answering}[part](model)


def _measure_loading(model: str) -> dict[str, float]:
    from titer.jobs.base_model import fresh_model

    start = time.perf_counter()
    fresh_model(model, None, trainable=False)
    return {"loads": time.perf_counter() - start}


def _measure_training(model: str, bf16: bool) -> dict[str, float]:
    """Time a plain training's steps, as it trains: with LoRA, the optimizer and the trainer's own loop."""
    from transformers import PrinterCallback, TrainerCallback

    from titer.jobs.base_model import fresh_model
    from titer.jobs.trainings import lora_config
    from titer.models import load_tokenizer
    from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

    times = [0.0]

    class Stopwatch(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            times[:] = [time.perf_counter()]

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    own = fresh_model(model, None, trainable=True)
    rows = [
        {"input_ids": ids, "labels": [-100] * (tokens // 2) + ids[tokens // 2 :]}
        for tokens in (SMALL[1], BIG[1]) * 2
        for ids in _ids(own, BIG[0], tokens)
    ]
    linear = [name for name in ("q_proj", "k_proj", "v_proj") if any(n.endswith(name) for n, _ in own.named_modules())]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        trainer = PackedSFTTrainer(
            model=own,
            args=PackedSFTConfig(
                output_dir=folder, max_steps=4, per_device_train_batch_size=BIG[0], train_sampling_strategy="sequential",
                bf16=bf16, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
            ),
            train_dataset=rows,
            processing_class=load_tokenizer(model),
            peft_config=lora_config({"target_modules": linear or "all-linear"}),
            callbacks=[Stopwatch()],
        )  # fmt: skip
        setup = time.perf_counter() - start
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps = [end - begin for begin, end in itertools.pairwise(times)]
    each_pass, token = _line(
        [min(steps[0::2]), min(steps[1::2])], [BIG[0] * (tokens - 1) for tokens in (SMALL[1], BIG[1])]
    )
    return {"setups": setup, "passes": each_pass, "trained": token}


def _measure_reading(model: str) -> dict[str, float]:
    import torch

    from titer.jobs.base_model import fresh_model
    from titer.packing.batches import Sample, to_device
    from titer.packing.layouts import layout_for
    from titer.packing.losses import token_nll

    own = fresh_model(model, None, trainable=False)
    times = []
    with torch.no_grad():
        for rows, tokens in (SMALL, BIG):
            pairs = [(ids[: tokens // 2], ids[tokens // 2 :]) for ids in _ids(own, rows, tokens)]
            layout = layout_for(own, pairs, BIG[0])
            batch = layout.lay_out([Sample(prompt, [answer]) for prompt, answer in pairs])
            batch = to_device(batch, next(own.parameters()).device)
            times.append(_fastest(lambda batch=batch: token_nll(own, batch)[0].sum().item()))
    each_pass, token = _line(times, [rows * (tokens - 1) for rows, tokens in (SMALL, BIG)])
    return {"reads": each_pass, "read": token}


def _measure_answering(model: str) -> dict[str, float]:
    from titer.infer.generation import generate
    from titer.jobs.base_model import fresh_model
    from titer.models import Template, load_tokenizer

    class Endless(Template):
        end_of_turn = frozenset({-1})

    own, template = fresh_model(model, None, trainable=False), Endless(load_tokenizer(model))
    few, many, prompt, rounds = SMALL[0], 4 * BIG[0], 8, 9
    before = _ids(own, 1, 64)[0]

    def answer(rows: int, tokens: int, before: Sequence[int] = ()) -> float:
        prompts = [[*before, *ids] for ids in _ids(own, rows, prompt)]
        return _fastest(lambda: generate(own, template, prompts, tokens), 2)

    answer(2, rounds, before)  # the first time, answers are checked
    prompted = [answer(rows, 1) for rows in (few, many)]
    each = [(answer(rows, rounds) - first) / (rounds - 1) for rows, first in zip((few, many), prompted)]
    # What all prompts begin with is computed once, and looked back at in every row.
    far = (answer(many, rounds, before) - answer(many, 1, before)) / (rounds - 1)
    each_round, token = _line(each, [few, many])
    return {
        "prompted": _line(prompted, [few * prompt, many * prompt])[1],
        "rounds": each_round,
        "decoded": token,
        "attended": max(far - each[1], 0.0) / (many * len(before)),
    }


def _fastest(compute: Any, times: int = 3) -> float:
    """Return the seconds of the fastest of some runs: what else the machine does can only slow it."""
    found: list[float] = []
    while len(found) < times and sum(found) < PATIENCE:
        start = time.perf_counter()
        compute()
        found.append(time.perf_counter() - start)
    return min(found)
