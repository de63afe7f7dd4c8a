"""How far a model's likelihoods move by rounding, by quantising, and by other weights: what the check of an engine rests on.

Before a server answers, its likelihoods of four texts (prompts with refusals behind them) are compared with those of the weights
here, and a mean above `titer.jobs.engines.TOLERANCE` nats a token is refused. Here the same is measured of the same model in
bfloat16 (what a server would run), with weights rounded to 8 and to 4 bits an output channel, and of the adapters that are named against
their base, over groups of four of the built-in harmful prompts. Float32 on a CPU, one thread. There are no ratios of time in it.

Examples:

  python benchmarks/engine_weights.py --adapter aligned/adapter --adapter tuned/adapter --json engine_weights.json
  python benchmarks/engine_weights.py --prompts 8                                       no adapters, a minute
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titer.data.pools import DataSettings, evaluation_pools
from titer.jobs.engines import TEXTS, TOLERANCE, likelihoods
from titer.jobs.provenance import environment
from titer.methods.finetune.base import refusal_completions, refusal_ids
from titer.models import EMBEDDED, Template, load_model, load_tokenizer


def rounded(model: Any, bits: int) -> Any:
    """Return a copy of a model whose linear layers hold weights of so many bits, a scale for each output channel."""
    model = copy.deepcopy(model)
    for layer in model.model.modules():
        if isinstance(layer, torch.nn.Linear):
            scale = layer.weight.data.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            layer.weight.data = (layer.weight.data / scale).round() * scale
    return model


def of(model: Any, texts: Sequence[list[int]]) -> list[Tensor]:
    return [likelihoods(model, text) for text in texts]


def apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> dict[str, float]:
    """Return the mean distance in nats a token, of all texts, and of the nearest and farthest four of them."""
    groups = [
        float(
            torch.cat([(a - b).abs() for a, b in zip(one[start : start + TEXTS], other[start : start + TEXTS])]).mean()
        )
        for start in range(0, len(one), TEXTS)
    ]
    return {"mean": sum(groups) / len(groups), "least": min(groups), "most": max(groups), "groups": len(groups)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--adapter", action="append", default=[], help="on that model; may be given several times")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    template = Template(load_tokenizer(args.model))
    records = evaluation_pools(DataSettings(), 0, None)["harmful"][: args.prompts]
    refusals = refusal_ids(template, refusal_completions(None))
    prompts = [template.prompt_ids(record.to_training_row()["prompt"]) for record in records]
    texts = [[*prompt, *refusals[place % len(refusals)]] for place, prompt in enumerate(prompts)]
    base = load_model(args.model)
    plain = of(base, texts)
    makes: dict[str, Callable[[], Any]] = {
        "bfloat16": lambda: copy.deepcopy(base).bfloat16(),
        "8 bits": lambda: rounded(base, 8),
        "4 bits": lambda: rounded(base, 4),
    }
    found = {f"base in {name}": apart(plain, of(make(), texts)) for name, make in makes.items()}
    for adapter in args.adapter:
        model = load_model(args.model, adapter)
        own = of(model, texts)
        found[f"{adapter} and its base"] = apart(plain, own)
        merged = model.merge_and_unload()
        found[f"{adapter} in bfloat16"] = apart(own, of(merged.bfloat16(), texts))
    for name, row in found.items():
        print(f"{name:50} {row['mean']:.4f} nats a token, of four texts {row['least']:.4f} to {row['most']:.4f}")
    if args.json is not None:
        document = {"tolerance": TOLERANCE, "tokens": sum(map(len, plain)), "apart": found, **environment()}
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
