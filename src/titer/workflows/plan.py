"""Says what a training needs before it is paid for: memory of a card, time and money, and what makes it fit."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError, check_known
from titer.ranges import check_range
from titer.workflows.common import EMBEDDED, Settings, Show, Table, as_values, refuse_unused, spell, workflow

if TYPE_CHECKING:
    from titer.jobs.capacity import Card, Memory
    from titer.jobs.footprint import Footprint, Recipe
    from titer.methods import Method

GIB = 2**30
SAMPLES, EPOCHS = 300, 20
"""What `titer align` trains on otherwise: so many rows, so often."""
MOST_CARDS = 64
"""As many cards as are tried for one that a training fits on."""


@dataclass(frozen=True)
class Line:
    """What a method needs.

    Attributes:
        stage: The stage of the method.
        method: Its name.
        memory: The most that a card holds at a time, in bytes, by what it is for.
        total: All of it.
        fits: Whether a card has that.
        gradients: Gradients of an optimizer step.
        seconds: Of an optimizer step.
        hours: Of the training.
        price: Of the training on all cards, in US dollars.
        fitting: What alone would make it fit, where it does not, with the bytes that a card would then hold.
    """

    stage: str
    method: str
    memory: Mapping[str, float]
    total: float
    fits: bool
    gradients: float
    seconds: float
    hours: float
    price: float
    fitting: Mapping[str, float]


@dataclass(frozen=True)
class Needs(Table):
    """What trainings need; as a table a method a row.

    Attributes:
        model: The model.
        parameters: Its weights.
        gpu: The card.
        count: How many of them.
        available: Bytes that a process can have of a card.
        steps: Optimizer steps of the training.
        lines: What each method needs.
        refused: Methods that do not go with what was asked, and why, by stage and name.
        assumptions: What the figures rest on, in words.
    """

    model: str
    parameters: int
    gpu: str
    count: int
    available: float
    steps: int
    lines: tuple[Line, ...]
    refused: Mapping[str, str]
    assumptions: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return the methods."""
        return [{**dataclasses.asdict(line), **line.memory} for line in self.lines]

    @property
    def document(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        fit = sum(line.fits for line in self.lines)
        return f"{self.model} on {self.count} × {self.gpu}: {fit} of {len(self.lines)} methods fit"


@workflow
def plan(
    model: str = EMBEDDED,
    *,
    method: str | None = None,
    gpu: str = "h100-80",
    count: int = 1,
    seq_length: int = 256,
    batch: int = 10,
    adapter: str = "r32",
    lora: Settings | None = None,
    dtype: str | None = None,
    quantise: int | None = None,
    checkpointing: bool = False,
    steps: int | None = None,
    tokens: int | None = None,
    price: float | None = None,
    utilisation: float | None = None,
    show: Show | bool = False,
) -> Needs:
    """Say what a training needs: memory of a card, time and money, by method, and what makes it fit.

    Nothing is loaded but the model's config: its layers are run on tensors that have shapes and no numbers.

    Args:
        model: A local folder, a hub id, or smollm2-135m-instruct; its config.json is enough.
        method: A name of `titer methods list`, or the import path of one's own; by default all methods.
        gpu: a100-40, a100-80, b200-180, h100-80, h200-141, l4-24, l40s-48, rtx4090-24, or cpu for this machine.
        count: How many of them; weights and copies are sharded over several with FSDP2.
        seq_length: Tokens of a row, half of them answer.
        batch: Rows of a micro-batch on each card.
        adapter: r32 for LoRA of that rank, or full for all weights.
        lora: Other settings of the adapter (`titer settings lora`).
        dtype: bfloat16 or float32, of the frozen weights; by default what titer loads there.
        quantise: 4 or 8 bits for the frozen weights, by bitsandbytes.
        checkpointing: Compute activations anew in the backward pass (`--set gradient_checkpointing=true`).
        steps: Optimizer steps of the training; by default 300 rows twenty times.
        tokens: Tokens of the training in all, in the place of steps.
        price: US dollars for a card and hour.
        utilisation: Part of the card's peak that the training reaches.
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Raises:
        TiterError: For arguments that cannot be meant or have no effect, and a model whose config cannot be read.
    """
    from titer.jobs.capacity import CPU, card
    from titer.models import refuse_quantised, split_bits

    for name, value in (("steps", steps), ("tokens", tokens), ("price", price), ("utilisation", utilisation)):
        if value is not None:
            check_range(name, value, spell(name))
    on = card(gpu)
    on = on._replace(price=on.price if price is None else price, utilisation=utilisation or on.utilisation)
    if gpu == CPU and count > 1:
        raise TiterError("This machine is there once.", f"Leave `{spell('count')}` out.")
    named = split_bits(model)[1]
    if named is not None:
        refuse_unused(["quantise"], f"with `{model}`, which says it")
        if adapter == "full":
            refuse_quantised(model, f"`{spell('adapter')} full` trains all of them")
        quantise = named
    recipe = _recipe(model, gpu, seq_length, batch, _lora(adapter, lora), dtype, quantise, checkpointing)
    if quantise is not None and count > 1:
        raise TiterError(
            "Quantised weights are not sharded.", f"Leave `{spell('count')}` or `{spell('quantise')}` out."
        )
    if tokens is not None:
        refuse_unused(["steps"], f"with `{spell('tokens')}`")
        steps = math.ceil(tokens / (batch * seq_length * count))
    steps = steps or math.ceil(SAMPLES * EPOCHS / (batch * count))
    planner = _Planner(recipe, gpu, on, count, steps)
    lines, refused = [], {}
    for stage, name, each in _asked(method):
        if each.lora_only and recipe.lora is None:
            refused[f"{stage} {name}"] = "a method of LoRA adapters alone"
        else:
            lines.append(planner.line(stage, name, each))
    found = planner.footprint(recipe)
    return Needs(
        model, found.parameters, gpu, count, on.memory, steps, tuple(lines), refused, tuple(planner.assumptions(found))
    )


def _lora(adapter: str, more: Settings | None) -> dict[str, Any] | None:
    """Return the settings of the adapter; `None` for all weights."""
    if adapter == "full":
        refuse_unused(["lora", "quantise", "dtype"], f"with `{spell('adapter')} full`, which trains all weights")
        return None
    rank = re.fullmatch(r"r([1-9]\d{0,4})", adapter)
    if rank is None:
        raise TiterError(f"`{spell('adapter')}` is `{adapter:.80}`.", "Say `full`, or a rank: `r32`.")
    values = as_values("lora", more)
    if "r" in values:
        raise TiterError(f"The rank is `{spell('adapter')} {adapter}`.", f"Leave `r` out of `{spell('lora')}`.")
    return {"r": int(rank[1]), **values}


def _recipe(
    model: str,
    gpu: str,
    seq_length: int,
    batch: int,
    lora: dict[str, Any] | None,
    dtype: str | None,
    quantise: int | None,
    checkpointing: bool,
) -> Recipe:
    from titer.jobs.capacity import CPU
    from titer.jobs.footprint import DTYPES, Recipe
    from titer.train.config import bf16_is_fast

    if dtype is not None:
        check_known([dtype], DTYPES, f"`{spell('dtype')}`")
    if quantise not in (None, 4, 8):
        raise TiterError(f"`{spell('quantise')}` is {quantise}.", "Weights are quantised to 4 or 8 bits.")
    answer = seq_length // 2
    return Recipe(
        model,
        lora,
        ((seq_length - answer, answer),) * batch,
        dtype or ("float32" if gpu == CPU or lora is None else "bfloat16"),
        gpu != CPU or bf16_is_fast(),
        quantise or 16,
        checkpointing,
    )


def _asked(name: str | None) -> Iterator[tuple[str, str, Method]]:
    """Yield stage, name and declaration of the methods that train: all, or those of a name."""
    from titer import methods

    if name is None:
        yield from ((stage, each, found) for stage, each, found in methods.every() if isinstance(found, methods.Method))
        return
    found = [(stage, name, methods.find(stage, name)) for stage in methods.stages_of(name)]
    trained = [(stage, each, method) for stage, each, method in found if isinstance(method, methods.Method)]
    if not trained:
        raise TiterError(f"`{name}` trains nothing.", "Its costs are one pass over a few rows (`titer methods show`).")
    yield from trained


@dataclass
class _Planner:
    """Counts for one model on cards of one kind."""

    recipe: Recipe
    gpu: str
    card: Card
    count: int
    steps: int

    def footprint(self, recipe: Recipe) -> Footprint:
        from titer.jobs.footprint import footprint
        from titer.progress import Task

        with Task(f"running {recipe.model} without numbers"):
            return footprint(recipe)

    def line(self, stage: str, name: str, method: Method) -> Line:
        from titer.jobs.capacity import gradients_of, seconds

        args = method.config(
            output_dir="unused",
            report_to="none",
            per_device_train_batch_size=len(self.recipe.rows),
            gradient_checkpointing=self.recipe.checkpointing,
        )

        def need(recipe: Recipe, count: int) -> Memory:
            from titer.jobs.capacity import memory

            return memory(self.footprint(recipe), method.holds(args), count)

        found, own = self.footprint(self.recipe), need(self.recipe, self.count)
        gradients = gradients_of(method, args)
        step = gradients * seconds(found, self.card)
        hours = step * self.steps / 3600
        return Line(
            stage,
            name,
            own._asdict(),
            own.total,
            self._fits(own),
            gradients,
            step,
            hours,
            hours * self.card.price * self.count,
            {} if self._fits(own) else {what: each.total for what, each in self._fitting(need)},
        )

    def _fits(self, need: Memory) -> bool:
        from titer.jobs.capacity import CPU, fits

        return fits(need, self.card, self.gpu != CPU)

    def _fitting(self, need: Callable[[Recipe, int], Memory]) -> Iterator[tuple[str, Memory]]:
        """Yield the changes that make a training fit, each alone; both of the first two together where neither does."""
        from titer.jobs.capacity import CPU

        own, known = self.recipe, len(self.recipe.rows)
        half = tuple((prompt - prompt // 2, answer - answer // 2) for prompt, answer in own.rows)
        recompute: dict[str, Any] = {} if own.checkpointing else {"checkpointing": True}
        quantised: dict[str, Any] = {} if own.bits == 4 or own.lora is None or self.count > 1 else {"bits": 4}
        tried = {
            "checkpointing": recompute,
            "4 bits": quantised,
            f"rows of {sum(half[0])} tokens": {"rows": half},
            "batches of 1": {"rows": own.rows[:1]} if known > 1 else {},
            "checkpointing, batches of 1": {**recompute, "rows": own.rows[:1]} if recompute and known > 1 else {},
            "checkpointing and 4 bits": {**recompute, **quantised} if recompute and quantised else {},
        }
        done: list[str] = []
        for what, change in tried.items():
            together = what.startswith("checkpointing") and what != "checkpointing"
            if not change or (together and done):
                continue
            found = need(dataclasses.replace(own, **change), self.count)
            if self._fits(found):
                done.append(what)
                yield what, found
        count = self.count
        while self.gpu != CPU and own.bits == 16 and count < MOST_CARDS:
            count *= 2
            found = need(own, count)
            if self._fits(found):
                yield f"{count} cards", found
                return

    def assumptions(self, found: Footprint) -> Iterator[str]:
        """Yield what the figures rest on."""
        from titer.jobs.capacity import CONTEXT, CPU, PRICES, SPARE

        laid_out = "packed in one row" if found.packed else "padded, since the model takes no packed row"
        yield f"Rows are {laid_out}, share no beginning, and half of each is answer; a method's other rows are as long."
        if self.gpu == CPU:
            yield (
                f"Peak of this machine: {self.card.peak / 1e9:.0f} GFLOP/s, measured now, of which a training reaches "
                f"{self.card.utilisation:g} (docs/benchmarks.md)."
            )
            return
        yield (
            f"A card leaves {self.card.memory / GIB:.1f} GiB, of which libraries take {CONTEXT / GIB:g} and the allocator "
            f"{SPARE:.0%} of what is needed; a training reaches {self.card.utilisation:g} of the peak. No GPU was at hand to "
            "measure any of it."
        )
        if self.count > 1:
            yield "Cards share weights, gradients, moments and copies (FSDP2); what they tell each other takes no time here."
        yield f"{self.card.price:g} US dollars for a card and hour. Without --price: {PRICES}."
