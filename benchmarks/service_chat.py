"""Chats that the service's engine answers 1, 4 and 16 at a time, each with another adapter than the one before, in the same process."""

from __future__ import annotations

import statistics
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import LORA, arguments, compare, in_turn, load, report
from peft import LoraConfig, get_peft_model
from rich.table import Table

from titer.data.builtin import general
from titer.infer.stacked import shared_copy
from titer.models import Template
from titer.service.chat.engine import Engine
from titer.service.chat.pieces import Adapter, Bounds, Done, Piece, Sampling, Ticket

AT_A_TIME = (1, 4, 16)
TARGETS = {4: 0.5, 16: 0.25}
"""A step of many rows reads the weights once, as a step of one does; on a processor it still multiplies for each."""


def main() -> None:
    args = arguments(__doc__, requests=32, tokens=48, adapters=4)
    if args.quick:
        args.requests, args.tokens = 16, 12
    model, tokenizer = load(args)
    template = Template(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        base = args.model
        if args.shape is not None:
            base = f"{folder}/base"
            model.save_pretrained(base)
            tokenizer.save_pretrained(base)
        for number in range(args.adapters):
            _write_adapter(model, Path(folder) / f"adapter{number}", number)
        measure(args, base, template, Path(folder))


def measure(args: Any, base: str, template: Template, folder: Path) -> None:
    """Measure and report."""
    prompts = [template.prompt_ids([{"role": "user", "content": row.prompt}]) for row in general()[: args.requests]]
    bounds = Bounds(answers=max(AT_A_TIME), waiting=args.requests, adapters=max(1, args.adapters))
    engine = Engine(lambda adapter, _: folder / adapter.place, lambda adapters: [], bounds)
    said: dict[int, list[list[str]]] = {}
    tokens: dict[int, int] = {}

    def ask(place: int) -> tuple[str, int]:
        number = place % (args.adapters + 1)  # the last of each turn is the base
        adapter = Adapter(str(number), "org", f"adapter{number}") if number < args.adapters else None
        over, texts, end = threading.Event(), [], []

        def listen(what: Piece | Done | Exception) -> None:
            if isinstance(what, Piece):
                texts.append(what.text)
            else:
                end.append(what)
                over.set()

        sampling = Sampling(args.tokens, temperature=0.0)
        engine.submit(Ticket(base, template, prompts[place], sampling, listen, adapter))
        over.wait()
        if isinstance(end[0], Exception):
            raise end[0]
        return "".join(texts), end[0].tokens

    def contender(at_a_time: int) -> Any:
        def run() -> None:
            with ThreadPoolExecutor(at_a_time) as clients:
                found = list(clients.map(ask, range(len(prompts))))
            said.setdefault(at_a_time, []).append([text for text, _ in found])
            tokens[at_a_time] = sum(count for _, count in found)

        return run

    try:
        names = {number: f"{number} at a time" for number in AT_A_TIME}
        for place in range(args.adapters + 1):  # the base and every adapter are in memory before anything is measured
            ask(place % len(prompts))
        contenders = {name: contender(number) for number, name in names.items()}
        times = in_turn(contenders, args.rounds, warm_up=int(args.quick))
    finally:
        engine.close()
    table = Table("requests", "tokens/s", "range", title=f"{len(prompts)} chats, at most {args.tokens} tokens each")
    for number, name in names.items():
        rates = [tokens[number] / seconds for seconds in times[name]]
        table.add_row(name, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}–{max(rates):,.0f}")
    alone = said[1][0]
    same = {number: sum(map(str.__eq__, alone, said[number][-1])) for number in AT_A_TIME}
    table.caption = f"the same answers as one by one: {same[4]} and {same[16]} of {len(prompts)}"
    ratios = [compare(times, names[number], names[1], TARGETS[number]) for number in (4, 16)]
    found = {"requests": len(prompts), "tokens": args.tokens, "adapters": args.adapters, "identical": same[16]}
    report(args, {**found, "ratios": ratios}, [table])


def _write_adapter(model: Any, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    adapted = get_peft_model(shared_copy(model), LoraConfig(**LORA))
    for name, weights in adapted.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weights, std=0.02)
    adapted.save_pretrained(folder)


if __name__ == "__main__":
    main()
