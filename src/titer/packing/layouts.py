"""Which layout of a batch a model computes rightly: found by running the model, not by looking up what it is.

A packed row is worth having only when each token in it gets what it would get if its sample were run alone. Whether that
is so depends on everything between the embedding and the head: layers that hand on no keywords, attention of a model's
own, windows, recurrent states, positions that the model counts itself. So `layout_for` runs a few short rows, and the
longest that is to come, each alone as the library would and then as titer would, and compares the losses. A model that
fails packed runs on padded rows, which cost more and are said to; one that fails both ways is an error.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor

from titer.compat import attention_of, forgets
from titer.errors import TiterError, first_line
from titer.packing.alone import (
    Pairs,
    bare_model,
    check_causal,
    coarsest_precision,
    first_apart,
    losses_alone,
    rows_to_try,
)
from titer.packing.attention import PACKED_ATTENTION, eager_attention, use_packed_attention
from titer.packing.batches import Layout, PackedBatch, Sample, common_prefix_length, to_device
from titer.packing.losses import fuse_head, token_nll
from titer.progress import Task

__all__ = [
    "Layout",
    "check_length",
    "inherit_layout",
    "layout_for",
    "padding_cost",
    "say_once",
]

logger = logging.getLogger(__name__)

CAUSAL = 64
"""How many tokens of a row tell whether a model sees later ones."""


@dataclass(frozen=True)
class _Proof:
    """A layout, with the longest row and the tokens of a packed row that it was found right for, and the model's state."""

    layout: Layout
    longest: int
    tokens: int
    state: tuple[Any, ...]


_proofs: WeakKeyDictionary[torch.nn.Module, _Proof] = WeakKeyDictionary()


def layout_for(model: Any, pairs: Pairs, batch_size: int = 8, tokens: int | None = None) -> Layout:
    """Return the layout in which `model` computes rows like `pairs` rightly, and set the model up for it.

    Packed rows want packed attention, which is switched on where they are right; the output head is fused where losses
    are all that it gives (`fuse_head`). What was found is remembered for the model, until longer rows come.

    Args:
        model: A causal language model, bare or with a PEFT adapter; on the device that it is to run on.
        pairs: The rows that are to come; the longest and the shortest are run.
        batch_size: How many of them a batch holds.
        tokens: Most tokens of a packed row; as many as the longest rows of a batch have when not given.

    Raises:
        TiterError: For a model that cannot run the rows, that sees later tokens, or that computes neither packed nor
            padded rows as it computes each alone.
    """
    lengths = sorted((len(prompt) + len(completion) for prompt, completion in pairs), reverse=True)
    tokens = sum(lengths[:batch_size]) if tokens is None else tokens
    bare = bare_model(model)
    check_length(bare.config, lengths[0], "A row")
    known = _proofs.get(bare)
    if (
        known is not None
        and known.longest >= lengths[0]
        and (known.tokens >= tokens or not known.layout.packed)
        and known.state == _state_of(model, bare)
    ):
        return known.layout
    with Task("trying how rows can be laid out"), _evaluating(model), _quiet():
        layout = _probe(model, bare, rows_to_try(pairs), tokens)
    if not layout.packed:
        say_once(
            "%s is run on padded rows, %.1f times the tokens of packed ones in batches of %d: %s.",
            type(bare).__name__,
            padding_cost(pairs, batch_size),
            batch_size,
            layout.reason,
        )
    _proofs[bare] = _Proof(layout, lengths[0], tokens, _state_of(model, bare))
    return layout


def check_length(config: Any, tokens: int, where: str) -> None:
    """Raise for a row that is longer than the model was made for, or whose attention takes more memory than there is.

    Args:
        config: Of the model.
        tokens: Of the row, prompt and completion together.
        where: Which row it is.

    Raises:
        TiterError: With the most tokens that a row may have.
    """
    config = config.get_text_config()
    context, heads = (getattr(config, name, None) for name in ("max_position_embeddings", "num_attention_heads"))
    hint = "Split the row into shorter ones, or remove it; in training, `max_length` says where answers are cut."
    if isinstance(context, int) and 0 < context < tokens:
        raise TiterError(
            f"{where} has {tokens:,} tokens, and the model was made for {context:,} (`max_position_embeddings`).", hint
        )
    # The scores that `eager_attention` holds for one layer: a number in float32 for each head and each pair of tokens.
    needed = 4 * (heads if isinstance(heads, int) else 1) * tokens**2
    if needed > _memory():
        raise TiterError(
            f"{where} has {tokens:,} tokens, whose attention takes {needed / 2**30:,.0f} GiB, and there are "
            f"{_memory() / 2**30:,.0f}.",
            hint,
        )


@functools.cache
def _memory() -> int:
    """Return the bytes of memory of the device that models run on."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties().total_memory)
    return int(psutil.virtual_memory().total)


_said: set[tuple[str, str]] = set()


def say_once(message: str, kind: str, *details: Any) -> None:
    """Log a warning about a kind of model, the first time that it is due in this process."""
    if (message, kind) not in _said:
        _said.add((message, kind))
        logger.warning(message, kind, *details)


def inherit_layout(copy: Any, original: Any) -> None:
    """Take over what is known of a model for a copy of its modules, on whatever weights."""
    if original in _proofs:
        _proofs[copy] = _proofs[original]


def padding_cost(pairs: Pairs, batch_size: int) -> float:
    """Return how many tokens padded batches of `pairs`, in their order, hold for each token of packed ones."""
    padded = packed = 0
    for start in range(0, len(pairs), batch_size):
        part = pairs[start : start + batch_size]
        # The last token of a completion is no input.
        lengths = [len(prompt) + len(completion) - 1 for prompt, completion in part]
        padded += len(part) * max(lengths)
        packed += sum(lengths) - (len(part) - 1) * common_prefix_length([prompt for prompt, _ in part])
    return padded / packed


# -- the probe --------------------------------------------------------------------------------------------------------


def _company(sample: Sample, tokens: int) -> list[Sample]:
    """Return samples of about `tokens` tokens that begin as `sample` does and hold its tokens in other orders.

    In other orders, because attention that looks at a copy of what it may see gives the same as if it did not.
    """
    shuffle = random.Random(0)
    half = len(sample.prompt) // 2
    company = []
    while tokens > 0:
        rest = [*sample.prompt[half:], *sample.branches[0]]
        shuffle.shuffle(rest)
        company.append(Sample([*sample.prompt[:half], *rest[:-1]], [rest[-1:]]))
        tokens -= len(rest)
    return company


def _probe(model: Any, bare: Any, samples: list[Sample], tokens: int) -> Layout:
    """Return the first layout that gives the losses which each branch has alone."""
    own_attention = attention_of(bare.config)
    with eager_attention(bare), coarsest_precision() as precision:
        expected = losses_alone(model, bare, samples)
        check_causal(model, [*samples[0].prompt, *samples[0].branches[0]][:CAUSAL], precision)
    _leave_out_routers(bare)
    padding = getattr(bare.config.get_text_config(), "pad_token_id", None)
    layout = Layout(padding=padding if isinstance(padding, int) and padding >= 0 else 0, fused=fuse_head(bare))
    company = _company(samples[0], tokens - sum(len(s.prompt) + sum(map(len, s.branches)) for s in samples))

    def packed() -> Tensor:
        use_packed_attention(bare)
        nll, _ = token_nll(model, _on(model, layout.lay_out([*company, *samples])))
        return nll[-sum(map(len, expected)) :]

    def continued() -> Tensor:
        _, output = token_nll(model, _on(model, layout.lay_out(samples)), use_cache=True)
        cache = output.past_key_values
        if forgets(cache):
            raise NotImplementedError("its cache forgets tokens outside a window")
        # The last branch of every sample again.
        batch = _on(model, layout.continue_from(samples, [sample.branches[-1] for sample in samples]))
        return token_nll(model, batch, past_key_values=cache, use_cache=True)[0]

    def padded() -> Tensor:
        return token_nll(model, _on(model, layout.lay_out(samples)))[0]

    reason = _difference(packed, expected, precision())
    if not reason:
        return replace(layout, cached=not _difference(continued, [expected[0], expected[-1]], precision()))
    if own_attention != PACKED_ATTENTION:
        bare.set_attn_implementation(own_attention)
    layout = replace(layout, packed=False, cached=False, reason=f"in a packed row {reason}")
    failure = _difference(padded, expected, precision())
    if failure:
        raise TiterError(
            f"{type(bare).__name__} computes neither packed nor padded rows as it computes each alone: in a packed row "
            f"{reason}; in padded rows {failure}.",
            "Use another model, or an adapter that changes only its layers (LoRA).",
        )
    return layout


def _difference(compute: Callable[[], Tensor], expected: list[Tensor], precision: torch.dtype) -> str:
    """Return how the losses that `compute` gives part from those expected; empty where they are the same.

    `precision` is that of the model, which is not that of its losses.
    """
    try:
        found = compute()
    except (TiterError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model's own code raises
        return f"it fails ({first_line(error)})"
    wanted = torch.cat(expected)
    apart = first_apart(found.to(wanted.dtype), wanted, precision)
    if not apart:
        return ""
    return f"a token's loss is {found[apart - 1].item():.4g} and not {wanted[apart - 1].item():.4g}"


def _on(model: Any, batch: PackedBatch) -> PackedBatch:
    return to_device(batch, next(model.parameters()).device)


def _state_of(model: Any, bare: Any) -> tuple[Any, ...]:
    """Return what may be changed about a model after it was probed and would make another layout right."""
    # Of PEFT's adapters, those that put virtual tokens before a row run outside of the bare model.
    kinds = sorted({str(config.peft_type) for config in getattr(model, "peft_config", {}).values()})
    return attention_of(bare.config), type(bare.get_output_embeddings()), kinds


def _leave_out_routers(bare: Any) -> None:
    """Switch off the auxiliary loss by which a mixture of experts balances its routers, and say so."""
    config = bare.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False
        say_once(
            "%s: the auxiliary loss that balances its experts is left out; titer's losses are those of tokens alone.",
            type(bare).__name__,
        )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Run without gradients or dropout, and leave every module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the library says of attention that was only tried."""
    from transformers.utils import logging as library

    level = library.get_verbosity()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(level)
