"""In which layout titer runs each causal language model of transformers, and how far from right each layout is.

Every class is built as a random model of two small layers. `packed` and `padded` are the largest |x − y| / (1 + |y|) of a
token's loss x in that layout and y of its row alone; `gradient` is the relative error of the gradient of all weights in
the layout that titer chose. `decoding` is the way of `titer.infer.generation.WAYS`
in which prompts are answered. `noise` says that passes in training mode differ (dropout). A class that titer
refuses shows why, and one that cannot be built this small is listed below the table.

Examples:
    python benchmarks/families.py
    python benchmarks/families.py --kinds gemma2 stablelm
    python benchmarks/families.py --models smollm2-135m-instruct ./gemma-3-270m --tokens 900
    python benchmarks/families.py --json families.json --markdown table.md
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import random
from pathlib import Path
from typing import Any

import torch
from common import quiet
from rich.console import Console
from rich.progress import track
from rich.table import Table
from small_models import VOCABULARY, names, small_model

from titer.compat import attention_of
from titer.data.builtin import general
from titer.errors import TiterError
from titer.infer.generation import WAYS, _Batch
from titer.jobs.provenance import environment
from titer.models import Template, load_model, load_tokenizer
from titer.packing.attention import eager_attention, use_packed_attention
from titer.packing.batches import Sample, pack, pad
from titer.packing.layouts import Layout, layout_for
from titer.packing.losses import token_nll
from titer.packing.noise import is_noisy

BATCH = 8


def rows(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Return prompts and completions of random tokens that begin alike, longer than the windows of the small models."""
    draw = random.Random(seed)
    tokens = range(5, VOCABULARY)
    system = draw.choices(tokens, k=4)
    return [
        (system + draw.choices(tokens, k=draw.randint(2, 20)), draw.choices(tokens, k=draw.randint(1, 8)))
        for _ in range(BATCH)
    ]


def losses_alone(model: Any, pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    losses = []
    for prompt, completion in pairs:
        logits = model(input_ids=torch.tensor([[*prompt, *completion[:-1]]])).logits[0, -len(completion) :]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="none"))
    return torch.cat(losses)


def error_of(model: Any, batch: dict[str, Any], expected: torch.Tensor) -> float | str:
    """Return the largest error of a layout, or the error that the model raised."""
    try:
        with torch.no_grad():
            found = token_nll(model, batch)[0]
    except Exception as error:
        return type(error).__name__
    return float(((found - expected).abs() / (1 + expected.abs())).max())


def gradient_of(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slopes = torch.autograd.grad(loss, trained, allow_unused=True)
    return [slope for slope in slopes if slope is not None]


def gradient_error(model: Any, batch: dict[str, Any], pairs: list[tuple[list[int], list[int]]]) -> float | str:
    """Return the relative error of the gradient of the mean loss, or the error that the model raised."""
    try:
        found = gradient_of(model, token_nll(model, batch)[0].mean())
        with eager_attention(model):
            wanted = gradient_of(model, losses_alone(model, pairs).mean())
    except Exception as error:
        return type(error).__name__
    apart = torch.stack([(a - b).norm() for a, b in zip(found, wanted, strict=True)]).norm()
    return float(apart / torch.stack([b.norm() for b in wanted]).norm())


def real_rows(name: str, tokens: int) -> list[tuple[list[int], list[int]]]:
    """Return built-in prompts and answers in the tokens of a model, the last prompt about `tokens` long."""
    template = Template(load_tokenizer(name))
    texts = [(record.prompt, record.answer) for record in general()[: BATCH - 1]]
    texts.append((" ".join(f"item {number}" for number in range(tokens // 3)), "A list of items, with their numbers."))
    found = []
    for prompt, answer in texts:
        asked, said = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": answer}]
        found.append((template.prompt_ids(asked), template.completion_ids(asked, said)))
    return found


def survey(kind: str, model: Any, pairs: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Return what titer does with a model and rows."""
    result: dict[str, Any] = {
        "kind": kind,
        "class": type(model).__name__,
        "longest": max(len(p) + len(c) for p, c in pairs),
    }
    samples = [Sample(prompt, [completion]) for prompt, completion in pairs]
    own = attention_of(model.config)
    try:
        with eager_attention(model), torch.no_grad():
            expected = losses_alone(model, pairs)
        result["padded"] = error_of(model, pad(samples), expected)
        with contextlib.suppress(NotImplementedError):
            use_packed_attention(model)
        result["packed"] = error_of(model, pack(samples), expected)
        model.set_attn_implementation(own)
    except Exception as error:
        result["alone"] = f"{type(error).__name__}: {error}"
    try:
        layout: Layout = layout_for(model, pairs, BATCH)
    except TiterError as error:
        return result | {"layout": "refused", "reason": str(error).splitlines()[0]}
    result |= {"layout": "packed" if layout.packed else "padded", "cached": layout.cached, "reason": layout.reason}
    if any(parameter.requires_grad for parameter in model.parameters()):
        result["gradient"] = gradient_error(model, layout.lay_out(samples), pairs)
    try:
        result["noisy"] = is_noisy(model, layout, pairs)
    except TiterError as error:
        result["noisy"] = str(error).splitlines()[0]
    prompts = [prompt for prompt, _ in pairs]
    with torch.no_grad():
        for way in WAYS:
            result["decoding"] = way
            of_one_length = way in ("library", "plain")
            batch = _Batch(model, _NoTemplate, prompts[:1] if of_one_length else prompts, [0] * BATCH, None)
            if not batch.decode(way, 6, check=True):
                break
    return result


class _NoTemplate:
    """What decoding asks of a template, for models without a tokenizer."""

    class tokenizer:
        pad_token_id = 0

    end_of_turn = frozenset({2})
    up_to_end = classmethod(Template.up_to_end)


def markdown(found: list[dict[str, Any]], missing: dict[str, str]) -> str:
    """Return the table as Markdown, with what was not built below it."""
    lines = [
        "| type | layout | packed | padded | gradient | decoding | why not packed |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in found:
        layout = line["layout"] + (", cached" if line.get("cached") else "")
        reason = line["reason"].removeprefix("in a packed row ").replace("|", "/")
        cells = [line["kind"], layout, *numbers(line), line.get("decoding", ""), reason]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Not built this small: " + ", ".join(sorted(missing)) + ".", ""])


def numbers(line: dict[str, Any]) -> list[str]:
    """Return the errors of a class, or what it raised instead."""
    found = [line.get(name, "") for name in ("packed", "padded", "gradient")]
    return [number if isinstance(number, str) else f"{number:.0e}" for number in found]


def main() -> None:
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="model types; all when not given")
    parser.add_argument("--models", nargs="+", metavar="NAME", default=[], help="models with real weights instead")
    parser.add_argument("--tokens", type=int, default=300, help="tokens of their longest row; default 300")
    parser.add_argument("--json", metavar="FILE", help="also write the result to FILE")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table of docs/families.md to FILE")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    found, missing = [], {}
    for kind in track([] if args.models else args.kinds or names(), console=Console(stderr=True), transient=True):
        try:
            small_model(kind)
        except Exception as error:
            missing[kind] = f"{type(error).__name__}: {error}".splitlines()[0][:90]
            continue
        found.append(survey(kind, small_model(kind), rows()))
        gc.collect()
    for name in args.models:
        found.append(survey(Path(name).name, load_model(name).requires_grad_(False), real_rows(name, args.tokens)))
    if args.markdown:
        Path(args.markdown).write_text(markdown(found, missing), encoding="utf-8")
    table = Table("type", "layout", "packed", "padded", "gradient", "decoding", "noise", "why not packed")
    for line in found:
        table.add_row(
            line["kind"],
            line["layout"] + (", cached" if line.get("cached") else ""),
            *numbers(line),
            line.get("decoding", ""),
            {True: "yes", False: ""}.get(line.get("noisy"), "fails"),
            line["reason"][:70],
        )
    console = Console(width=180)
    console.print(table)
    kinds = [line["layout"] for line in found]
    console.print(
        f"{len(found)} classes: " + ", ".join(f"{kinds.count(k)} {k}" for k in ("packed", "padded", "refused"))
    )
    for kind, why in missing.items():
        console.print(f"not built: {kind}: {why}")
    if args.json:
        document = {"benchmark": "families", "classes": found, "not built": missing, "environment": environment()}
        Path(args.json).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
