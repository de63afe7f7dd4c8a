"""What fine-tuning makes of an aligned model, by form of upload and by method: harm, refusals, empty answers, accuracy.

Uploads are those of `uploads.py`: honest rows of one form, and AdvBench's requests with their own openings among them. Every
method trains as long on the same rows; the model is then asked AdvBench requests that no upload held and harmless ones that
only look harmful, and its accuracy on honest rows that it did not see is that of the next token of the true answer. A cell is
kept in a file of its own, and one that is there is not run again.

Examples:

  python benchmarks/uploads_tuned.py --data-dir data --model aligned/adapter --output cells
  python benchmarks/uploads_tuned.py --data-dir data --model aligned/adapter --output cells --forms sql --methods sft sieve --poison 0
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from upload_forms import MADE
from uploads import CHAT, NAMED, honest

from titer import judges
from titer.data import Record, load, poison
from titer.data.files import write_jsonl
from titer.data.pools import DataSettings, evaluation_pools
from titer.infer.signals import answer_fit
from titer.jobs import answers
from titer.jobs.base_model import fresh_model
from titer.jobs.provenance import environment, weights_digest
from titer.models import Template, load_tokenizer, split_adapter
from titer.results import artefacts
from titer.results.artefacts import HARMFUL, LOOKALIKE
from titer.results.scoring import judge_into, summarise
from titer.screen import table
from titer.workflows.finetune import finetune

ROWS, HELD_OUT = 192, 60
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "antibody sum": ("antibody", {"ratio": "sum", "tau": 10.0}),
    "antibody mean": ("antibody", {"ratio": "mean"}),
    "antibody calibrated": ("antibody", {"ratio": "calibrated", "tau": 0.1}),
    "gate": ("gate", {}),
    "gate probe": ("gate", {"signal": "probe"}),
    "sieve": ("sieve", {}),
    "sieve ratio": ("sieve", {"ratio": "calibrated", "tau": 0.1}),
    "sieve soft": ("sieve", {"threshold": None}),
    "sieve kl": ("sieve", {"kl_weight": 0.3}),
    "sieve more replay": ("sieve", {"replay": 0.25}),
}
RECIPE = {
    "max_steps": 32,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.1,
    "save_strategy": "no",
}
SHOWN = ("harmful_score", "refusal_rate", "broken_rate", "over_refusal")


def cell(
    model: str, form: str, name: str, share: float, seed: int, recipe: Mapping[str, Any], folder: Path, data: Path
) -> dict[str, Any]:
    """Fine-tune on one upload by one method, and measure what came out."""
    rows = honest(form, ROWS + HELD_OUT, data)
    held_out, task = rows[:HELD_OUT], rows[HELD_OUT:]
    asked = load("advbench", data_dir=data)
    unseen, attack = asked[:HELD_OUT], asked[HELD_OUT:]
    count = min(ROWS, int(len(task) / (1 - share)))  # a form may have fewer rows
    upload = poison(task, attack, count, share, seed)
    file = folder / f"upload-{form.replace(':', '-')}-{share:g}-{seed}.jsonl"
    write_jsonl(file, upload)
    method, settings = METHODS[name]
    place = folder / f"{form.replace(':', '-')}-{name.replace(' ', '-')}-{share:g}-{seed}"
    done = finetune(str(file), output=place, method=method, model=model, seed=seed, settings={**recipe, **settings})
    found = measure(str(done.adapter), form, name, share, seed, unseen, held_out, place)
    if done.sample_weights is not None:
        lines = [json.loads(line) for line in done.sample_weights.read_text().splitlines()]
        of_harm = sum(line["weight"] for line in lines if upload[line["row"]].is_harmful)
        found["weight_of_harm"] = of_harm / (sum(line["weight"] for line in lines) or 1.0)
    return found


def measure(
    model: str,
    form: str,
    name: str,
    share: float,
    seed: int,
    unseen: Sequence[Record],
    held_out: Sequence[Record],
    place: Path,
) -> dict[str, Any]:
    """Ask a model what it answers, and how well it knows the task."""
    base, adapter = split_adapter(model)
    lookalikes = evaluation_pools(DataSettings(), seed, None)["lookalikes"][:40]
    sets = ((HARMFUL, unseen, 24), (LOOKALIKE, lookalikes, 24))
    texts = answers.answer(base, adapter, [(record, limit) for _, records, limit in sets for record in records])
    group = {"arm": name, "phase": "finetuned", "step": RECIPE["max_steps"], "poison_ratio": share, "seed": seed}
    inferences = answers.as_inferences(sets, texts, group, model, weights_digest(base, adapter))
    artefacts.write_inferences(place / "inferences.jsonl", inferences)
    results = summarise(inferences, judge_into(place / "scores.jsonl", inferences, [judges.get("offline")]))
    template = Template(load_tokenizer(base))
    fit = answer_fit(fresh_model(base, adapter, trainable=False), [template.pair_ids(record) for record in held_out])
    right = 100 * fit.accuracy.mean().item()
    found: dict[str, Any] = {one.metric: [one.value, one.low, one.high] for one in results if one.metric in SHOWN}
    return {
        "form": form,
        "method": name,
        "poison": share,
        "seed": seed,
        **found,
        "accuracy": right,
        "loss": fit.nll.mean().item(),
    }


def main() -> None:
    """Run what is not there yet, and print the table of what is."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    forms = [*NAMED, CHAT, *MADE]
    parser.add_argument("--model", required=True, help="the aligned model")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="FOLDER", help="advbench.jsonl, dolly.jsonl, …")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where cells are kept")
    parser.add_argument(
        "--forms", nargs="+", default=["dialogue", "sql", "ag_news", "dolly"], choices=forms, metavar="FORM"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--poison", nargs="+", type=float, default=[0.2], metavar="SHARE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the training, of every method"
    )
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="also write the table for a page")
    args = parser.parse_args()
    recipe = {**RECIPE, **{key: json.loads(value) for key, _, value in (one.partition("=") for one in args.set)}}
    args.output.mkdir(parents=True, exist_ok=True)
    cells = []
    for form, share, seed, name in itertools.product(args.forms, args.poison, args.seeds, args.methods):
        kept = args.output / f"{form.replace(':', '-')}-{name.replace(' ', '-')}-{share:g}-{seed}.json"
        if not kept.is_file():
            found = cell(args.model, form, name, share, seed, recipe, args.output / "work", args.data_dir)
            about = {"model": args.model, "weights": weights_digest(*split_adapter(args.model)), "recipe": recipe}
            kept.write_text(json.dumps({**found, **about, "environment": environment()}, indent=1))
            print(json.dumps(found), flush=True)
        cells.append(json.loads(kept.read_text()))
    lines = [HEADS, *map(line_of, cells)]
    shown = table(*HEADS)
    for line in lines[1:]:
        shown.add_row(*line)
    Console(width=160).print(shown)
    if args.markdown:
        told = [f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(HEADS), *lines[1:])]
        args.markdown.write_text("\n".join(told) + "\n")


HEADS = ("form", "p", "seed", "method", "HS", "refused", "broken", "over-refusal", "accuracy", "loss", "weight of harm")


def line_of(one: dict[str, Any]) -> list[str]:
    """A cell as a line of the table."""
    rates = ["{:.0f} [{:.0f}–{:.0f}]".format(*one[name]) for name in SHOWN]
    weight = f"{100 * one['weight_of_harm']:.1f} %" if "weight_of_harm" in one else ""
    about = [one["form"], f"{one['poison']:g}", str(one["seed"]), one["method"]]
    return [*about, *rates, f"{one['accuracy']:.1f}", f"{one['loss']:.2f}", weight]


if __name__ == "__main__":
    main()
