"""Attention over short samples on a CPU in 16 bits: by products of matrices, many samples at once, against the fused kernel.

Both go forward and backward through the attention of rows of alike samples, and through a training step.

Seconds are those of the processor, so that other work on the machine shows less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from common import LORA, arguments, compare, even_rows, load, report
from peft import LoraConfig, get_peft_model
from rich.table import Table

from titer.data import Record
from titer.models import Template
from titer.packing import attention
from titer.packing.attention import packed_attention, spans_of, use_packed_attention
from titer.packing.batches import Sample, pack
from titer.packing.losses import fuse_head, token_nll

LENGTHS, HEADS, SHARED, SIZE = (20, 45, 90, 160, 250), 9, 3, 64


def alone(tokens: int, rows: int) -> dict[str, Callable[[], Any]]:
    """Return the two ways through the attention of as many samples of `tokens` tokens."""
    made = torch.Generator().manual_seed(0)
    batch = pack([Sample([1] * (tokens // 2), [[1] * (tokens - tokens // 2 + 1)])] * rows, share_prefix=False)
    spans, total = spans_of(batch), batch["input_ids"].shape[1]
    heads = [
        torch.randn(1, count, total, SIZE, generator=made).bfloat16().requires_grad_()
        for count in (HEADS, HEADS // SHARED, HEADS // SHARED)
    ]
    upstream = torch.randn(1, total, HEADS, SIZE, generator=made).bfloat16()

    def products() -> None:
        output, _ = packed_attention(None, *heads, None, spans=spans)  # type: ignore[arg-type]
        torch.autograd.grad(output, heads, upstream)

    return {f"fused {tokens}": fused(products), f"products {tokens}": products}


def fused(way: Callable[[], Any]) -> Callable[[], Any]:
    """Return the same by the library's kernel."""

    def run() -> None:
        with patch.object(attention, "computes", lambda *_: False):
            way()

    return run


def main() -> None:
    args = arguments(__doc__, rows=8, tokens=45)
    model, tokenizer = load(args)
    use_packed_attention(model)
    fuse_head(model)
    adapted = get_peft_model(model, LoraConfig(**LORA))
    template = Template(tokenizer)
    rows = [Record.from_row(row) for row in even_rows(args.rows, args.tokens, template)]
    pairs = [template.pair_ids(row) for row in rows]
    batch = pack([Sample(prompt, [answer]) for prompt, answer in pairs], share_prefix=False)

    def step() -> None:
        adapted.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses, _ = token_nll(adapted, batch)
        losses.mean().backward()

    contenders: dict[str, Callable[[], Any]] = {"fused step": fused(step), "products step": step}
    lengths = LENGTHS[:1] if args.quick else LENGTHS  # without bfloat16 units all of them take a minute
    for tokens in lengths:
        contenders |= alone(tokens, args.rows)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds + 1):
        for name, contender in contenders.items():
            again = 1 if args.quick or name.endswith("step") else 5
            start = time.process_time()
            for _ in range(again):
                contender()
            if number:  # the first warms up
                times[name].append((time.process_time() - start) / again)
    title = f"{args.rows} samples at once; in a step of about {args.tokens} tokens"
    table = Table("forward and backward", "ms", "range", title=title)
    for name, values in times.items():
        low, median, high = (1000 * value for value in (min(values), statistics.median(values), max(values)))
        table.add_row(name, f"{median:.2f}", f"{low:.2f}–{high:.2f}")
    ratios = [compare(times, f"products {what}", f"fused {what}") for what in (*lengths, "step")]
    report(args, {"rows": args.rows, "tokens": args.tokens, "ratios": ratios}, [table])


if __name__ == "__main__":
    main()
