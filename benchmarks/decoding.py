"""Batched greedy decoding against one prompt at a time, as the library's `generate` does it, with identical text.

And under autocast to bfloat16, with frozen weights cast once against anew in every pass: identical text, too.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from common import arguments, compare, in_turn, load, report
from rich.table import Table

from titer.data.builtin import harmful
from titer.infer.generation import generate
from titer.models import Template
from titer.packing.attention import use_packed_attention
from titer.packing.casts import cast_once


def main() -> None:
    args = arguments(__doc__, prompts=200, tokens=48)
    if args.quick:
        args.prompts, args.tokens = 20, 12
    model, tokenizer = load(args)
    model.eval()
    use_packed_attention(model)
    template = Template(tokenizer)
    prompts = [template.prompt_ids([{"role": "user", "content": row.prompt}]) for row in harmful()[: args.prompts]]
    device = next(model.parameters()).device
    said: dict[str, Any] = {}

    @torch.no_grad()
    def one_at_a_time() -> None:
        said["one"] = []
        for prompt in prompts:
            ids = torch.tensor([prompt], device=device)
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.tokens,
                do_sample=False,
                eos_token_id=sorted(template.end_of_turn),
                pad_token_id=tokenizer.pad_token_id,
            )
            said["one"].append(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip())

    def batched() -> None:
        said["batched"] = generate(model, template, prompts, args.tokens)

    def in_bf16() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            said["cast anew"] = generate(model, template, prompts, args.tokens)

    def cast() -> None:
        with cast_once(model), torch.autocast(device.type, torch.bfloat16):
            said["cast once"] = generate(model, template, prompts, args.tokens)

    contenders = {"one at a time": one_at_a_time, "batched": batched, "bf16": in_bf16, "bf16, cast once": cast}
    times = in_turn(contenders, args.rounds, warm_up=int(args.quick))
    same = sum(left == right for left, right in zip(said["one"], said["batched"], strict=True))
    if said["cast anew"] != said["cast once"]:
        raise SystemExit("Cast once, weights give other answers.")
    table = Table("decoding", "seconds", "range", title=f"{args.prompts} prompts, at most {args.tokens} tokens")
    for name, values in times.items():
        table.add_row(name, f"{statistics.median(values):.2f}", f"{min(values):.2f}–{max(values):.2f}")
    table.caption = f"identical text: {same} of {args.prompts}"
    ratios = [compare(times, "batched", "one at a time", round(1 / 6, 3)), compare(times, "bf16, cast once", "bf16")]
    report(args, {"prompts": args.prompts, "tokens": args.tokens, "identical": same, "ratios": ratios}, [table])


if __name__ == "__main__":
    main()
