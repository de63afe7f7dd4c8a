"""How much there is to compute, from data and settings alone: trainings, answers, row weights, verdicts."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from titer.data.records import Record

if TYPE_CHECKING:
    from titer.judges.base import Judge
    from titer.methods import Method
    from titer.train.config import PackedSFTConfig


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
    validation: Sequence[Record] = (),
) -> Work:
    """Return the work of a training.

    Args:
        kind: What is like it.
        method: How to train.
        args: Its settings.
        model: The base model.
        records: The training data.
        streams: Further data by argument name.
        validation: Rows that the loss is measured on beside it.
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
    if gradients.replay:
        rows = max(1, round(getattr(args, "replay", 1.0) * batch * micro))
        held = "helpful_dataset" if "helpful_dataset" in method.streams else "harmful_dataset"
        replayed = sizes(model, streams[held], args.max_length)
        cost += Cost(passes=steps, trained=steps * gradients.replay * replayed.batch(rows))
    if gradients.general:
        general = sizes(model, streams["helpful_dataset"], args.max_length)
        cost += Cost(passes=passes * gradients.general, trained=passes * gradients.general * general.batch(batch))
    if gradients.prompts:
        # The last token that a prompt is laid out with, of SBR the only one, is no input.
        first = float(getattr(args, "kl_tokens", 1))
        asked = sizes(model, streams["harmful_dataset"], args.max_length)._replace(completion=first)
        tokens = asked.batch(getattr(args, "anchors", batch * micro))
        cost += Cost(passes=steps, trained=steps * gradients.prompts * tokens)
        if hasattr(args, "kl_tokens"):
            cost += Cost(reads=steps, read=steps * gradients.prompts * tokens)  # what the reference says of them
    if method.weighs_rows:
        # Without a way back it is half a pass, whatever else a step does.
        cost += Cost(passes=passes / 2, reads=passes, read=passes * batch * refusal_tokens(model))
    if scored := method.scores_first(args, records, streams):
        cost += _reading(model, scored, refused=False)
    if method.routed is not None:
        if probes := method.routed.probes(args, streams):
            each = method.routed.answered * empty_model(model).config.get_text_config().num_hidden_layers
            cost += Cost(loads=1) + answering(model, [(probes, method.routed.tokens)]) * each
        for name in method.streams:
            cost += routing(model, streams[name][: getattr(args, "prototypes", len(streams[name]))])
    if validation:
        part = validation[: args.optimizer_batch_size]
        cost += _reading(model, part, refused=False) * (steps / args.logging_steps)
        cost += _reading(model, validation, refused=False) * args.num_train_epochs
    return Work(kind, model, cost, bool(args.bf16))


def routing(model: str, records: Sequence[Record]) -> Cost:
    """Return what it costs to read the states of prompts, by which a router chooses."""
    from titer.infer.routing import BATCH_SIZE

    own = sizes(model, records)
    return Cost(reads=math.ceil(len(records) / BATCH_SIZE), read=len(records) * own.prompt)


def _reading(model: str, records: Sequence[Record], refused: bool = True) -> Cost:
    """Return what it costs to score rows' answers, and a refusal of each."""
    from titer.infer.signals import TOKENS_PER_ROW

    own = sizes(model, records)
    each = own.prompt + own.completion + (refusal_tokens(model) if refused else 0)
    passes = math.ceil(len(records) * each / TOKENS_PER_ROW)
    # Rows of one pass share what their prompts begin with.
    return Cost(reads=passes, read=passes * own.shared + len(records) * (each - own.shared))


def measuring(kind: str, model: str, records: Sequence[Record]) -> Work:
    """Return the work of running rows one by one through a model with an adapter, for a repair that weighs by its inputs."""
    own = sizes(model, records)
    tokens = len(records) * (own.prompt + own.completion)
    return Work(kind, model, Cost(reads=len(records), read=tokens))


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
