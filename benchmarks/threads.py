"""How threads should wait for each other: the same work under each of OpenMP's policies, on a quiet machine and on a shared one.

Each policy has a process of its own, since OpenMP reads its settings once, when torch is loaded. They measure in turn: a
training step (forward and backward through a LoRA adapter) and thirty small products. Then as many processes as the machine
has cores start to compute, which stand for other people's, and they measure again. GNU's OpenMP alone has the spin counts; it
is what torch brings on Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from common import LORA, arguments, compare, load, mixed_rows, report
from rich.table import Table

WAYS: dict[str, dict[str, str]] = {
    "torch's default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"spin {count:,}": {"GOMP_SPINCOUNT": str(count)} for count in (100, 1_000, 10_000, 100_000)},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
WORK = ("step", "products")


def measure(args: argparse.Namespace) -> None:
    """Do what is asked for on standard input, a word a line, and answer with the seconds that it took."""
    import torch
    from peft import LoraConfig, get_peft_model

    from titer.data import Record
    from titer.models import Template
    from titer.packing.batches import Sample
    from titer.packing.layouts import layout_for
    from titer.packing.losses import token_nll
    from titer.train.config import bf16_is_fast

    model, tokenizer = load(args)
    template = Template(tokenizer)
    model = get_peft_model(model, LoraConfig(**LORA))
    pairs = [template.pair_ids(Record.from_row(row)) for row in mixed_rows(4)]
    batch = layout_for(model, pairs).lay_out([Sample(prompt, [completion]) for prompt, completion in pairs])
    left, right = torch.randn(64, 576), torch.randn(576, 1536)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16_is_fast()):
            loss = token_nll(model, batch)[0].mean()
        loss.backward()

    def products() -> None:
        for _ in range(30):
            left @ right

    work = {"step": step, "products": products}
    for name in WORK:
        work[name]()
    print("ready", flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        work[line.strip()]()
        print(time.perf_counter() - begun, flush=True)


@contextlib.contextmanager
def others(count: int) -> Iterator[None]:
    """Let as many processes compute without a rest."""
    crowd = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in crowd:
            process.kill()
            process.wait()


def main() -> None:
    args = arguments(__doc__, switches={"measure": "measure in this process; what the script starts itself"})
    if args.measure:
        measure(args)
        return
    words = (["--quick"] if args.quick else []) + ["--model", args.model, "--measure"]
    if args.shape is not None:
        words += ["--shape", args.shape]
    ways = {way: WAYS[way] for way in ("torch's default", "spin 1,000")} if args.quick else WAYS
    plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    with contextlib.ExitStack() as stack:
        processes: dict[str, Any] = {}
        for way, settings in ways.items():
            processes[way] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, __file__, *words],
                    env=plain | settings,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(processes[way].kill)
            if processes[way].stdout.readline().strip() != "ready":
                sys.exit(f"{way}: its process did not start")

        def seconds(way: str, work: str) -> float:
            processes[way].stdin.write(work + "\n")
            processes[way].stdin.flush()
            return float(processes[way].stdout.readline())

        found: dict[str, dict[str, list[float]]] = {}
        for crowd in ("quiet", "shared"):
            with others(os.cpu_count() or 1) if crowd == "shared" else contextlib.nullcontext():
                for work in WORK:
                    rounds = [{way: seconds(way, work) for way in ways} for _ in range(args.rounds)]
                    found[f"{work}, {crowd}"] = {way: [times[way] for times in rounds] for way in ways}
    ratios = [
        {**compare(times, way, "torch's default"), "what": f"{name}: {way}"}
        for name, times in found.items()
        for way in ways
        if way != "torch's default"
    ]
    table = Table("waiting", *found, title="milliseconds, median")
    for way in ways:
        table.add_row(way, *(f"{1000 * sorted(times[way])[len(times[way]) // 2]:.1f}" for times in found.values()))
    report(args, {"seconds": found, "ratios": ratios}, [table])


if __name__ == "__main__":
    main()
