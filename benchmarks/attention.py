"""Attention over short samples on a CPU in 16 bits: products of matrices against the fused kernel, alone and in a training step.

Seconds are those of the processor, so that other work on the machine shows less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from common import LORA, arguments, compare, even_rows, load, report
from peft import LoraConfig, get_peft_model
from rich.table import Table

from titer.data import Record
from titer.models import Template
from titer.packing import attention, halves
from titer.packing.attention import use_packed_attention
from titer.packing.batches import Sample, pack
from titer.packing.losses import fuse_head, token_nll

LENGTHS, HEADS, SIZE = (20, 45, 90, 160, 250), 9, 64


def alone(tokens: int) -> dict[str, Callable[[], Any]]:
    """Return the two ways forward and backward through the attention of one sample."""
    made = torch.Generator().manual_seed(0)
    *heads, upstream = (torch.randn(1, HEADS, tokens, SIZE, generator=made).bfloat16() for _ in range(4))
    for tensor in heads:
        tensor.requires_grad_()
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]

    def fused() -> None:
        output = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        torch.autograd.grad(output, heads, upstream)

    def products() -> None:
        torch.autograd.grad(halves.attend(*heads, mask), heads, upstream)

    return {f"fused {tokens}": fused, f"products {tokens}": products}


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

    def fused_step() -> None:
        with patch.object(attention, "in_halves", lambda *_: False):
            step()

    contenders: dict[str, Callable[[], Any]] = {"fused step": fused_step, "products step": step}
    for tokens in LENGTHS:
        contenders |= alone(tokens)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds + 1):
        for name, contender in contenders.items():
            again = 1 if name.endswith("step") else 20
            start = time.process_time()
            for _ in range(again):
                contender()
            if number:  # the first warms up
                times[name].append((time.process_time() - start) / again)
    title = f"{HEADS} heads of {SIZE}; {args.rows} rows of about {args.tokens} tokens a step"
    table = Table("forward and backward", "ms", "range", title=title)
    for name, values in times.items():
        low, median, high = (1000 * value for value in (min(values), statistics.median(values), max(values)))
        table.add_row(name, f"{median:.2f}", f"{low:.2f}–{high:.2f}")
    ratios = [compare(times, f"products {what}", f"fused {what}") for what in (*LENGTHS, "step")]
    report(args, {"rows": args.rows, "tokens": args.tokens, "ratios": ratios}, [table])


if __name__ == "__main__":
    main()
