"""One kernel for a packed row against a loop over its samples, and grouped products against each adapter's own.

Forward and backward, one layer each, in the precision and on the device that a fleet would have. It says how far the
outcomes are apart. On a CPU, where neither is used, attention's kernel is its definition written out in Python and the
grouped products are torch's: the times say nothing there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import arguments, compare, in_turn, report
from rich.table import Table

from titer.infer.stacked import Adapter, Seating, StackedLoRA, grouped
from titer.packing.attention import packed_attention, spans_of
from titer.packing.batches import Sample, pack, to_device
from titer.packing.varlen import attend, distance, kernel_for, longhand


def main() -> None:
    args = arguments(__doc__, samples=64, tokens=256, heads=32, size=128, attackers=16, rank=32)
    if args.quick:
        args.samples, args.tokens, args.heads, args.size, args.attackers, args.rank = 4, 16, 2, 8, 3, 8
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    attention, off = attentions(args, device, precision)
    adapters = products(args, device, precision)
    times = in_turn({**attention, **adapters}, args.rounds)
    table = Table("what", "milliseconds", title=f"{device}, {precision}")
    for name, values in times.items():
        table.add_row(name, f"{1000 * sorted(values)[len(values) // 2]:.2f}")
    table.caption = f"attention's kernel is within {off:.1e} of its definition on a small forest"
    first, second = (list(group) for group in (attention, adapters))
    ratios = [compare(times, first[1], first[0]), compare(times, second[1], second[0])]
    report(args, {"device": str(device), "off": off, "seconds": times, "ratios": ratios}, [table])


def attentions(args: Any, device: torch.device, precision: torch.dtype) -> tuple[dict[str, Callable[[], None]], float]:
    """Return attention over one packed row both ways, and how far the kernel is from its definition."""
    rows = [Sample([0, *range(args.tokens // 2)], [range(args.tokens // 2)]) for _ in range(args.samples)]
    batch = to_device(pack(rows), device)
    spans = spans_of(batch)
    shape = (1, args.heads, batch["input_ids"].shape[1], args.size)
    query, key, value = (torch.randn(shape, device=device, dtype=precision, requires_grad=True) for _ in range(3))
    kernel = kernel_for(query, precision) or longhand
    if device.type == "cuda" and kernel is longhand:
        raise SystemExit("the kernel does not compute what it should here")
    # In float64 the loop runs as it does on a CPU.
    wide = [x.detach().to(torch.float64) for x in (query, key, value)]
    expected = packed_attention(torch.nn.Module(), wide[0], wide[1], wide[2], None, spans=spans)[0]
    found = attend(kernel, query, key, value, spans.pieces, None, None)
    apart = ((found.to(expected) - expected).abs().max() / expected.abs().max()).item()
    if apart > 8 * torch.finfo(precision).eps:
        raise SystemExit(f"one kernel and the loop are {apart} apart")

    def loop() -> None:
        queries, keys, values = (x.split(spans.lengths, dim=2) for x in (query, key, value))
        parts = []
        for part, (prefix, mask) in enumerate(zip(spans.prefixes, spans.masks, strict=True)):
            ahead = [prefix] if prefix >= 0 else []
            own = [torch.cat([x[place] for place in (*ahead, part)], dim=2) for x in (keys, values)]
            parts.append(torch.nn.functional.scaled_dot_product_attention(queries[part], *own, attn_mask=mask))
        torch.cat(parts, dim=2).sum().backward()

    def joint() -> None:
        attend(kernel, query, key, value, spans.pieces, None, None).sum().backward()

    off = distance(kernel, device, precision, args.heads, args.size)
    return {"attention, sample by sample": loop, "attention, one kernel": joint}, off


def products(args: Any, device: torch.device, precision: torch.dtype) -> dict[str, Callable[[], None]]:
    """Return one layer with many adapters both ways."""
    width = args.heads * args.size
    base = torch.nn.Linear(width, width, bias=False, device=device, dtype=precision).requires_grad_(False)
    layer = StackedLoRA(base, Seating())
    crew: list[Adapter | None] = []
    for owner in range(args.attackers):
        down = torch.randn(args.rank, width, device=device, requires_grad=True)
        up = torch.randn(width, args.rank, device=device, requires_grad=True)
        layer.adapters[owner] = (down, up, 0.5)
        crew.append(layer.adapters[owner])
    sizes = [args.samples * args.tokens // args.attackers] * args.attackers
    x = torch.randn(1, sum(sizes), width, device=device, dtype=precision, requires_grad=True)
    layer.seating.side_by_side(list(enumerate(sizes)))
    upstream = torch.randn_like(x)

    def each() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
            parts = x.split(sizes, 1)
            made = [
                torch.nn.functional.linear(torch.nn.functional.linear(part, down), up) * scaling
                for part, (down, up, scaling) in zip(parts, layer.adapters.values(), strict=True)
            ]
            output = layer.base(x) + torch.cat(made, 1)
        output.backward(upstream)

    def together() -> None:
        output = layer.base(x) + grouped(x[0], crew, sizes)[None]
        output.backward(upstream)

    return {"adapters, each its own products": each, "adapters, grouped products": together}


if __name__ == "__main__":
    main()
