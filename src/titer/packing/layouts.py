"""Which layout of a batch a model computes rightly: found by running the model, not by looking up what it is.

A packed row is worth having only when each token in it gets what it would get if its sample were run alone. Whether that
is so depends on everything between the embedding and the head: layers that hand on no keywords, attention of a model's
own, windows, recurrent states, positions that the model counts itself. So `layout_for` runs a few short rows, and the
longest that is to come, each alone as the library would and then as titer would, and compares the losses. A model that
fails packed runs on padded rows, which cost more and are said to; one that fails both ways is an error.
"""

from __future__ import annotations

import functools
import inspect
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy
import psutil
import torch
from torch import Tensor

from titer.errors import TiterError, first_line
from titer.packing.batches import (
    PACKED_ATTENTION,
    PackedBatch,
    Sample,
    common_prefix_length,
    pack,
    pack_continuations,
    packed_attention,
    pad,
    to_device,
)
from titer.packing.losses import fuse_head, token_nll
from titer.progress import Task

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Token ids of prompts and their completions."""

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Largest |x − y| / (1 + |y|) of a token's loss x in a layout and y alone that counts as rounding.

Of 161 classes of transformers, built small, a right layout stays below 6e-5 in float32 and a wrong one is above 4e-2, or 6e-4
where weights are drawn small (`benchmarks/families.py`). SmolLM2-135M in bfloat16: 0.08, and 0.7 where only the positions are wrong. Many models
compute parts in float32 whatever they are loaded in, so float64 is no closer.
"""

CAUSAL = 64
"""How many tokens of a row tell whether a model sees later ones."""

REPEATS = 32
"""How often a forward pass that draws random numbers is repeated before its outcome counts as free of noise."""


@dataclass(frozen=True)
class Layout:
    """How rows are laid out for one model.

    Attributes:
        packed: Whether samples are packed in one row; else they are padded.
        cached: Whether further completions can run on the keys and values that a packed row left; else they run with
            their prompts once more.
        padding: The token id that padded rows are filled up with.
        fused: Whether the output head computes losses without holding all logits.
        reason: Why samples are not packed.
    """

    packed: bool = True
    cached: bool = True
    padding: int = 0
    fused: bool = False
    reason: str = ""

    def lay_out(self, samples: Sequence[Sample], share_prefix: bool = True) -> PackedBatch:
        """Return the samples as one batch.

        Args:
            samples: At least one sample.
            share_prefix: In a packed row, compute the tokens that all prompts begin with once.
        """
        return pack(samples, share_prefix) if self.packed else pad(samples, self.padding)

    def continue_from(
        self, samples: Sequence[Sample], completions: Sequence[Sequence[int]], share_prefix: bool = True
    ) -> PackedBatch:
        """Return one further completion of each sample's prompt as a batch, to run on the cache of `lay_out` if `cached`."""
        if self.cached:
            return pack_continuations(samples, completions, share_prefix)
        return self.lay_out([Sample(s.prompt, [c]) for s, c in zip(samples, completions, strict=True)], share_prefix)


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
        layout = _probe(model, bare, _rows_to_try(pairs), tokens)
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


def bare_model(model: Any) -> Any:
    """Return a model without the wrapper that PEFT puts around it; its adapted layers are inside."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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


def use_packed_attention(model: Any) -> None:
    """Switch a bare model to packed attention, whether it computes packed rows rightly then or not."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
    model.set_attn_implementation(PACKED_ATTENTION)
    if _attention_of(model) != PACKED_ATTENTION:
        raise NotImplementedError("its attention is its own and cannot be exchanged")


# -- the probe --------------------------------------------------------------------------------------------------------


def _rows_to_try(pairs: Pairs) -> list[Sample]:
    """Return two samples that show what a layout can get wrong: the longest row, and a shorter one with two branches.

    The second begins as the first does, so that there is a prefix to share, and goes on differently.
    """
    prompt, completion = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    other, answer = min(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    half = len(prompt) // 2
    short = [*prompt[:half], *other[-max(1, min(len(other), len(prompt) - half)) :]]
    # No path may be longer than the longest row.
    room = len(prompt) + len(completion) - len(short)
    return [Sample(prompt, [completion]), Sample(short, [answer[:room], completion[:room]])]


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
    own_attention = _attention_of(bare)
    with eager_attention(bare), coarsest_precision() as precision:
        expected = _losses_alone(model, bare, samples)
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
        if any(layer.is_sliding for layer in cache.layers):
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


@contextmanager
def coarsest_precision() -> Iterator[Callable[[], torch.dtype]]:
    """Yield what returns the coarsest dtype that modules put out meanwhile; an autocast need not show in logits."""
    seen = {torch.float64}

    def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dtype in TOLERANCE:
            seen.add(output.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        yield lambda: max(seen, key=lambda dtype: TOLERANCE[dtype])
    finally:
        handle.remove()


@contextmanager
def eager_attention(bare: Any) -> Iterator[None]:
    """Run a model under its `eager` attention, which is its definition, where it has one."""
    attention = _attention_of(bare)
    if attention != "eager":
        bare.set_attn_implementation("eager")
    try:
        yield
    finally:
        if attention != "eager":
            bare.set_attn_implementation(attention)


def _losses_alone(model: Any, bare: Any, samples: list[Sample]) -> list[Tensor]:
    """Return the token losses of every branch, run alone after its prompt with nothing but token ids."""
    losses = []
    for sample in samples:
        for branch in sample.branches:
            logits = _logits_alone(model, bare, [*sample.prompt, *branch[:-1]], len(branch))
            targets = torch.tensor(branch, device=logits.device)
            losses.append(torch.nn.functional.cross_entropy(_precise(logits), targets, reduction="none"))
    return losses


def check_causal(
    model: Any, ids: Sequence[int], precision: Callable[[], torch.dtype], where: str | None = None
) -> None:
    """Raise for a model that says something else of the first tokens of a row when others follow.

    Args:
        model: The model, in evaluation mode.
        ids: The row.
        precision: As `coarsest_precision` yields it.
        where: What to call the model in the error; its class by default.
    """
    bare = bare_model(model)
    first = len(ids) // 2
    alone, followed = _logits_alone(model, bare, ids[:first], first), _logits_alone(model, bare, ids, len(ids))[:first]
    if not same_to_rounding(alone, followed, precision()):
        raise TiterError(
            f"{where or type(bare).__name__} is no causal language model: what it says of a token depends on later ones.",
            "Use a model that predicts from left to right; some classes do with `is_decoder=True` in their config.",
        )


def _logits_alone(model: Any, bare: Any, ids: Sequence[int], last: int) -> Tensor:
    """Return the logits of the last tokens of one row, `(last, vocabulary)`."""
    device = next(model.parameters()).device
    # The logits of a long prompt would take much memory, and only the last are needed.
    fewer = {"logits_to_keep": last} if "logits_to_keep" in inspect.signature(bare.forward).parameters else {}
    try:
        logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=device), **fewer).logits[0, -last:]
    except Exception as error:
        raise cannot(bare, f"run a row of {len(ids)} tokens", error) from error
    return logits


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
    apart = _apart(found.to(wanted.dtype), wanted, precision)
    if not apart:
        return ""
    return f"a token's loss is {found[apart - 1].item():.4g} and not {wanted[apart - 1].item():.4g}"


def same_to_rounding(found: Tensor, wanted: Tensor, precision: torch.dtype) -> bool:
    """Say whether two tensors of logits differ by no more than what was lost in the precision they were computed in."""
    return not _apart(_precise(found), _precise(wanted), precision)


def _apart(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> int:
    """Return 0 where two tensors agree to rounding, else one more than the first place where they do not."""
    if found.shape != wanted.shape:
        return 1
    near = (found - wanted).abs() <= TOLERANCE[dtype] * (1 + wanted.abs())
    # Of a model that has diverged, the same nonsense is the same.
    near |= (found == wanted) | (found.isnan() & wanted.isnan())
    far = ~near.reshape(len(near), -1).all(-1)
    return int(far.nonzero()[0]) + 1 if far.any() else 0


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _on(model: Any, batch: PackedBatch) -> PackedBatch:
    return to_device(batch, next(model.parameters()).device)


def _attention_of(bare: Any) -> str:
    return str(bare.config.get_text_config()._attn_implementation)


def _state_of(model: Any, bare: Any) -> tuple[Any, ...]:
    """Return what may be changed about a model after it was probed and would make another layout right."""
    # Of PEFT's adapters, those that put virtual tokens before a row run outside of the bare model.
    kinds = sorted({str(config.peft_type) for config in getattr(model, "peft_config", {}).values()})
    return _attention_of(bare), type(bare.get_output_embeddings()), kinds


def cannot(bare: Any, do_what: str, error: Exception) -> Exception:
    """Return the error for an error of a model's own code; one of titer's, or a lack of memory, is returned as it is."""
    if isinstance(error, (TiterError, torch.OutOfMemoryError)):
        return error
    return TiterError(
        f"{type(bare).__name__} cannot {do_what}: {first_line(error)}",
        "titer wants causal language models of transformers, with rows no longer than the model allows.",
    )


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


# -- noise ------------------------------------------------------------------------------------------------------------


def is_noisy(model: Any, layout: Layout, pairs: Pairs) -> bool:
    """Say whether two passes over the same batch in training mode may differ by random numbers, in loss or in gradient.

    A pass that leaves every generator of random numbers where it was has drawn none. One that moves them may still use
    them for nothing (a probability of zero), so it is repeated, each time with other numbers. Gradients are compared too,
    because dropout before a matrix of zeros, as in a LoRA adapter before its first step, shows in no loss.

    Args:
        model: The model, as it is trained.
        layout: How its rows are laid out.
        pairs: Rows to run; the longest and the shortest are.
    """
    modes = [(module, module.training) for module in model.modules()]
    batch = _on(model, layout.lay_out(_rows_to_try(pairs)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = next(model.parameters()).device

    def outcome() -> list[Tensor]:
        nll, _ = token_nll(model, batch)
        slopes = torch.autograd.grad(nll.sum(), trained, allow_unused=True) if trained else ()
        return [nll.detach(), *(slope for slope in slopes if slope is not None)]

    with torch.random.fork_rng([device] if device.type == "cuda" else []), _own_generators(), torch.enable_grad():
        model.train()
        try:
            before = _generators(device)
            first = outcome()
            if _same(before, _generators(device)):
                return False
            # Rounding may differ between passes where a device adds in no fixed order.
            limit = TOLERANCE[first[-1].dtype]
            return any(
                (again - once).norm() > limit * once.norm()
                for _ in range(REPEATS)
                for again, once in zip(outcome(), first, strict=True)
            )
        except Exception as error:
            raise cannot(bare_model(model), "train", error) from error
        finally:
            for module, training in modes:
                module.training = training


def _generators(device: torch.device) -> list[Any]:
    of_numpy: Any = numpy.random.get_state()
    states: list[Any] = [random.getstate(), of_numpy[1], torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _same(left: list[Any], right: list[Any]) -> bool:
    return left[0] == right[0] and all((a == b).all() for a, b in zip(left[1:], right[1:], strict=True))


@contextmanager
def _own_generators() -> Iterator[None]:
    python, others = random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(others)
