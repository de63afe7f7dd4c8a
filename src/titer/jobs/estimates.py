"""How long work will take here: what there is to compute, how fast this machine does that, what earlier work took.

    seconds = Σ (how much of each kind of computation) · (seconds that one of it takes)

How much there is follows from the data and the settings (`training`, `answering`, `weighing`). What one takes is measured with
the model itself, once for each machine and architecture, and kept in titer's cache. Every piece of work that ends adds to
that file what it took, and an estimate rests on such records of the same kind before it rests on the measurement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from titer.data.records import Record
from titer.files import replacing
from titer.progress import Task, duration
from titer.text import say

if TYPE_CHECKING:
    from titer.judges.base import Judge
    from titer.methods import Method
    from titer.train.trainer import PackedSFTConfig

logger = logging.getLogger(__name__)

# -- how much there is to compute -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Amounts of each kind of computation; or the seconds that one of each takes.

    Attributes:
        loads: Models read from disk.
        setups: Trainers made.
        passes: Forward and backward passes.
        trained: Tokens in them.
        reads: Forward passes without gradients.
        read: Tokens in them.
        prompted: Tokens of prompts to be answered.
        rounds: Forward passes that give an answer's next token.
        decoded: Tokens in them.
        attended: Tokens before those, which each of them looks back at.
        verdicts: Answers judged.
    """

    loads: float = 0.0
    setups: float = 0.0
    passes: float = 0.0
    trained: float = 0.0
    reads: float = 0.0
    read: float = 0.0
    prompted: float = 0.0
    rounds: float = 0.0
    decoded: float = 0.0
    attended: float = 0.0
    verdicts: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(mine + its for mine, its in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __mul__(self, factor: float) -> Cost:
        return Cost(*(factor * mine for mine in dataclasses.astuple(self)))

    def __matmul__(self, other: Cost) -> float:
        """Return Σ amount · seconds."""
        return sum(mine * its for mine, its in zip(dataclasses.astuple(self), dataclasses.astuple(other)))

    def flops(self, parameters: float) -> float:
        """Return floating-point operations: 4 a trained token and parameter beside frozen weights, 2 a token read."""
        return parameters * (4 * self.trained + 2 * (self.read + self.prompted + self.decoded))


PARTS = {
    "load": ("loads",),
    "train": ("setups", "passes", "trained"),
    "read": ("reads", "read"),
    "answer": ("prompted", "rounds", "decoded", "attended"),
}
"""What is measured together."""

VERDICT = 1e-3
"""Seconds that a judge takes for an answer; records of slower ones know better."""


@dataclass(frozen=True)
class Work:
    """A piece of work.

    Attributes:
        kind: What is like it: the records of the same kind tell how long it takes ("align booster").
        model: The base model.
        cost: How much there is to compute.
        bf16: Whether training computes in bfloat16; `None` for work without training.
    """

    kind: str
    model: str
    cost: Cost
    bf16: bool | None = None

    @property
    def after_loading(self) -> Work:
        """The same work where the model is still on disk."""
        return dataclasses.replace(self, cost=self.cost + Cost(loads=1))


class Sizes(NamedTuple):
    """Mean lengths of rows in tokens.

    Attributes:
        shared: What all prompts begin with.
        prompt: With that.
        completion: The answer, with its end.
        longest: The longest prompt with its answer.
        prompts: The prompts, from the shortest to the longest.
    """

    shared: float
    prompt: float
    completion: float
    longest: float
    prompts: Sequence[int]

    def batch(self, rows: int) -> float:
        """Return the tokens of a packed batch; the last token of an answer is no input."""
        return self.shared + rows * (self.prompt - self.shared + self.completion - 1)


SAMPLE = 24
"""Rows of a dataset whose lengths are looked at."""


@functools.cache
def _template(model: str) -> Any:
    from titer.models import Template, load_tokenizer

    return Template(load_tokenizer(model))


@functools.lru_cache(maxsize=4096)
def _tokens(model: str, record: Record) -> tuple[list[int], int]:
    prompt, completion = _template(model).pair_ids(record)
    return prompt, len(completion)


def sizes(model: str, records: Sequence[Record], limit: int | None = None) -> Sizes:
    """Return the lengths of records as a model's tokenizer and template cut them, from some of them.

    Completions end where their row has `limit` tokens.
    """
    from titer.packing.batches import common_prefix_length

    some = [records[place * len(records) // SAMPLE] for place in range(SAMPLE)] if len(records) > SAMPLE else records
    found = [_tokens(model, record) for record in some]
    if limit is not None:
        found = [(prompt, max(1, min(completion, limit - len(prompt)))) for prompt, completion in found]
    prompts = [prompt for prompt, _ in found]
    return Sizes(
        shared=float(common_prefix_length(prompts)),
        prompt=statistics.fmean(map(len, prompts)),
        completion=statistics.fmean(completion for _, completion in found),
        longest=max(len(prompt) + completion for prompt, completion in found),
        prompts=sorted(map(len, prompts)),
    )


@functools.cache
def refusal_tokens(model: str) -> float:
    """Return the mean length of a generic refusal."""
    from titer.methods.finetune.base import refusal_completions, refusal_ids

    return statistics.fmean(map(len, refusal_ids(_template(model), refusal_completions(None)[:SAMPLE])))


def optimizer_steps(args: PackedSFTConfig, rows: int) -> int:
    """Return how many optimizer steps a training on so many rows has."""
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = -(-rows // args.per_device_train_batch_size)
    return int(-(-batches // args.gradient_accumulation_steps) * args.num_train_epochs)


def training(
    kind: str,
    method: Method,
    args: PackedSFTConfig,
    model: str,
    records: Sequence[Record],
    streams: dict[str, list[Record]],
) -> Work:
    """Return the work of a training.

    Args:
        kind: What is like it.
        method: How to train.
        args: Its settings.
        model: The base model.
        records: The training data.
        streams: Further data by argument name.
    """
    steps = optimizer_steps(args, len(records))
    batch, micro = args.per_device_train_batch_size, args.gradient_accumulation_steps
    passes = steps * micro
    own = sizes(model, records, args.max_length)
    cost = Cost(setups=1, passes=passes, trained=passes * own.batch(batch))
    # The probe runs some rows alone and a batch without a shared beginning.
    every = (records, *(streams[name] for name in method.streams))
    longest = max(sizes(model, rows, args.max_length).longest for rows in every)
    cost += Cost(reads=8, read=(batch + 6) * longest)
    gradients = method.gradients(args)
    cost += Cost(passes=passes * gradients.training, trained=passes * gradients.training * own.batch(batch))
    if gradients.answers or gradients.refusals:
        harmful = sizes(model, streams["harmful_dataset"], args.max_length)
        refused = harmful._replace(completion=refusal_tokens(model))
        # Once: whether two passes over the same rows are the same, and whether the simulated step reaches the model.
        cost += Cost(reads=6, read=4 * longest + 2 * micro * harmful.batch(batch))
        cost += Cost(
            passes=passes * (gradients.answers + gradients.refusals),
            trained=passes * (gradients.answers * harmful.batch(batch) + gradients.refusals * refused.batch(batch)),
        )
    if method.weighs_rows:
        # Without a way back it is half a pass, whatever else a step does.
        cost += Cost(passes=passes / 2, reads=passes, read=passes * batch * refusal_tokens(model))
    if method.weighs_first:
        for rows in every:
            cost += _reading(model, rows, answer=1.0)
    return Work(kind, model, cost, bool(args.bf16))


def _reading(model: str, records: Sequence[Record], answer: float | None = None) -> Cost:
    """Return what it costs to score rows' answers, or so many tokens of them, and a refusal of each."""
    from titer.infer.signals import TOKENS_PER_ROW

    own = sizes(model, records)
    each = own.prompt + (own.completion if answer is None else answer) + refusal_tokens(model)
    passes = math.ceil(len(records) * each / TOKENS_PER_ROW)
    # Rows of one pass share what their prompts begin with.
    return Cost(reads=passes, read=passes * own.shared + len(records) * (each - own.shared))


def weighing(kind: str, model: str, records: Sequence[Record]) -> Work:
    """Return the work of scoring each row's answer against a refusal."""
    from titer.infer.signals import TOKENS_PER_ROW

    return Work(kind, model, _reading(model, records) + Cost(reads=8, read=2 * TOKENS_PER_ROW))


def fitting(model: str, records: Sequence[Record]) -> Cost:
    """Return what it costs to score reference answers."""
    from titer.infer.signals import ROWS_PER_PASS

    if not records:
        return Cost()
    passes = math.ceil(len(records) / ROWS_PER_PASS)
    return Cost(reads=passes, read=passes * sizes(model, records).batch(ROWS_PER_PASS))


def answering(model: str, sets: Sequence[tuple[Sequence[Record], int]]) -> Cost:
    """Return what it costs to answer prompts, each set with the most tokens of an answer.

    A batch goes on until its longest answer ends. How long answers are nobody knows; here a row takes part in three quarters of
    the rounds that there can be.
    """
    from titer.infer.generation import BATCH_SIZE

    cost = Cost()
    for records, limit in sets:
        if not records:
            continue
        own = sizes(model, records)
        batches = math.ceil(len(records) / BATCH_SIZE)
        # Sorted by length and padded to the longest of each batch.
        ends = [own.prompts[(batch * len(own.prompts) - 1) // batches] for batch in range(1, batches + 1)]
        width = statistics.fmean(ends)
        decoded = 0.75 * len(records) * limit
        cost += Cost(
            prompted=batches * own.shared + len(records) * (width - own.shared),
            rounds=batches * limit,
            decoded=decoded,
            attended=decoded * (width + limit / 2),
        )
    return cost


def by_limit(prompts: Sequence[tuple[Record, int]]) -> list[tuple[list[Record], int]]:
    """Return the sets that prompts are answered in, given the most tokens of each answer."""
    limits = dict.fromkeys(limit for _, limit in prompts)
    return [([record for record, own in prompts if own == limit], limit) for limit in limits]


def judging(model: str, judges: Sequence[Judge], answers: int) -> Work:
    """Return the work of judging answers, which a model gave."""
    return Work(f"judge {' '.join(judge.name for judge in judges)}", model, Cost(verdicts=len(judges) * answers))


@functools.cache
def empty_model(model: str) -> Any:
    """Return a model without weights, from its config alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from titer.models import load_config, loading

    config = load_config(model)
    with loading(model), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def parameters(model: str) -> float:
    """Return a model's parameters without its embedding."""
    empty = empty_model(model)
    embedding = empty.get_input_embeddings().weight.numel()
    return float(empty.num_parameters() - embedding)


# -- how fast this machine is -----------------------------------------------------------------------------------------


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
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

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
    from titer.models import Template

    class Endless(Template):
        end_of_turn = frozenset({-1})

    own, template = fresh_model(model, None, trainable=False), Endless(_template(model).tokenizer)
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


# -- how long it will take --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """How long work will take.

    Attributes:
        seconds: Most likely.
        low: By the more hopeful of records and measured speed.
        high: By the other.
        records: How many pieces of earlier work it rests on.
    """

    seconds: float = 0.0
    low: float = 0.0
    high: float = 0.0
    records: int = 0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.seconds + other.seconds, self.low + other.low, self.high + other.high, self.records + other.records
        )

    def __str__(self) -> str:
        low, high = duration(self.low), duration(self.high)
        if self.high <= AGREE * self.low or low == high:
            return duration(self.seconds)
        unit = high.rpartition(" ")[2]
        return f"{low.removesuffix(f' {unit}')} to {high}"


AGREE = 1.25
"""Estimates that are no further apart are one."""

LIKE = 5
"""Records that an estimate rests on: of those of its kind the ones nearest in size, the latest first."""

KEPT = 200
"""Records that are kept of a model."""


def estimate(work: Work, speed: Speed | None = None) -> Estimate:
    """Return how long work will take here; measures the machine's speed when nothing is known of it yet."""
    if work.cost == Cost():
        return Estimate()
    speed = speed or Speed.of(work.model)
    by_speed = speed.seconds(work)
    alike = []
    for record in reversed(speed.records):
        if (record["kind"], record["bf16"]) == (work.kind, work.bf16):
            then = speed.seconds(dataclasses.replace(work, cost=Cost(**record["cost"])))
            alike.append((abs(math.log(then / by_speed)), record["seconds"] / then * by_speed))
    nearest = sorted(alike, key=lambda pair: round(pair[0], 1))[:LIKE]
    if not nearest:
        return Estimate(by_speed, by_speed, by_speed)
    by_records = statistics.median(seconds for _, seconds in nearest)
    return Estimate(by_records, min(by_speed, by_records), max(by_speed, by_records), len(nearest))


def record(work: Work, seconds: float) -> None:
    """Note how long work took, for estimates to come."""
    if work.cost == Cost():
        return
    speed = Speed.of(work.model)
    row = {"kind": work.kind, "bf16": work.bf16, "seconds": round(seconds, 3), "date": f"{datetime.date.today()}"}
    amounts = {name: amount for name, amount in dataclasses.asdict(work.cost).items() if amount}
    speed.records = [*speed.records, {**row, "cost": amounts}][-KEPT:]
    speed.keep()


@contextlib.contextmanager
def recorded(work: Work, whole: bool = True) -> Iterator[None]:
    """Note how long the block takes when it comes to its end, unless it is not the `whole` work that is done in it."""
    start = time.perf_counter()
    yield
    if whole:
        record(work, time.perf_counter() - start)


def each(works: Sequence[Work]) -> list[Estimate]:
    """Return an estimate of each of several pieces of work."""
    speeds = {model: Speed.of(model) for model in dict.fromkeys(work.model for work in works)}
    return [estimate(work, speeds[work.model]) for work in works]


def in_words(estimates: Sequence[Estimate]) -> str:
    """Return how long work in several parts will take, and what that rests on."""
    total = sum(estimates, Estimate())
    parts = [one for one in estimates if one.seconds]
    known = sum(one.records > 0 for one in parts)
    if known == len(parts):
        basis = "by earlier work of the same kind"
    elif not known:
        basis = "by this machine's measured speed"
    else:
        basis = (
            f"{known} of {len(parts)} parts by earlier work of their kind, the others by this machine's measured speed"
        )
    return f"about {total} on this machine, {basis}"
