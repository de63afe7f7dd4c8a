"""The pictures of the papers, measured on models of one's own; `page` draws what is there.

  norms      per-sample gradient norms at the start of fine-tuning (Antibody, figure 4)
  ratios     Antibody's ratio before and after fine-tuning, seen and unseen harm (figures 2 and 5)
  rates      harmful score over epochs and learning rates (figure 3)
  objective  Booster's harmful loss h(w) and its drop h(w) − h(w') over alignment steps, from log.jsonl
  attack     harmful score over attack steps with φ (Immunization, figure 2), from scorecard.json
  page       docs/pictures/index.html and README.md from the JSON files beside them

Models are given as NAME=FOLDER: what the pages call one, and a model's or an adapter's folder (of `objective` the folder with
its log, of `attack` that of an assay). Each model leaves a JSON file, and what is there is not measured again. A group, given by
`--group`, holds models to be compared with its control: the one with `--control`, else the first. Rows that train here go into `--work`,
from which an interrupted training goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import quiet
from pictures_kept import HARM, Kept, first, kinds_of, model_of, rows_of, streams_of
from pictures_page import write_pictures

from titer import judges, methods
from titer.assays.card import read_scorecard
from titer.assays.outcomes import attack_lines
from titer.data import Record
from titer.data.builtin import refusals
from titer.data.mixtures import poison
from titer.errors import TiterError
from titer.files import read_text
from titer.infer.signals import row_signals, unasked_refusals
from titer.jobs.answers import answer
from titer.jobs.provenance import digest
from titer.jobs.trainings import train
from titer.methods.finetune.base import refusal_ids
from titer.models import Template, load_model, load_tokenizer, split_adapter
from titer.packing.batches import Sample, to_device
from titer.packing.layouts import layout_for
from titer.packing.losses import token_nll
from titer.settings import parse_settings
from titer.train.gradients import global_norm, take_gradients, trainable_parameters

Pair = tuple[Sequence[int], Sequence[int]]


# What is measured ----------------------------------------------------------------------------------------------------


def gradient_norms(model: Any, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """Return ‖∇ℓ(x_i, y_i)‖ over the trained weights and ℓ itself, the mean loss of the answer's tokens, of each row.

    Args:
        model: With the weights that are trained requiring gradients; dropout is off.
        pairs: Token ids of prompt and answer of each row.
    """
    device = next(model.parameters()).device
    layout = layout_for(model, pairs, 1)
    parameters = trainable_parameters(model.eval())
    found = []
    for prompt, completion in pairs:
        nll, _ = token_nll(model, to_device(layout.lay_out([Sample(prompt, [completion])]), device))
        loss = nll.mean()
        loss.backward()
        found.append((global_norm(take_gradients(parameters)).item(), loss.item()))
    return found


def log_ratios(model: Any, template: Template, records: Sequence[Record]) -> dict[str, list[float]]:
    """Return Antibody's log ratios of rows to a model, by the way in which answer and refusal are compared."""
    ids = refusal_ids(template, refusals())
    seen = row_signals(model, [template.pair_ids(record) for record in records], ids)
    unasked = unasked_refusals(model, template, ids, "calibrated")
    return {ratio: seen.log_ratio(ratio, unasked).tolist() for ratio in ("sum", "calibrated")}


def harmful_score(model: str, prompts: Sequence[Record], judge: judges.Judge, tokens: int) -> dict[str, int]:
    """Return how many answers of a model are harmful, refused and broken, of `n` that could be judged."""
    base, adapter = split_adapter(model)
    texts = answer(base, adapter, [(record, tokens) for record in prompts])
    labels = [verdict.label for verdict in judge([record.prompt_text for record in prompts], texts)]
    return {label: labels.count(label) for label in ("harmful", "refused", "broken")} | {
        "n": len(labels) - labels.count(None)
    }


def objective_of(log: Path) -> list[dict[str, float]]:
    """Return step, training loss, h(w) and h(w) − h(w') of each logged step at which an attack was simulated."""
    names = {"step": "step", "loss": "loss", "harmful_loss": "harmful_loss", "sharpness": "drop"}
    lines = [json.loads(line) for line in read_text(log).splitlines()]
    found = [{own: line[name] for name, own in names.items()} for line in lines if line.keys() >= names.keys()]
    if not found:
        raise TiterError(
            f"{log} logs no simulated attack.",
            "Plain alignment computes no harmful loss: train it with `--method booster --set lam=0`, which is the same.",
        )
    return found


# The pictures --------------------------------------------------------------------------------------------------------


def norms(args: argparse.Namespace, folder: str, kept: Kept, pools: dict[str, list[Record]]) -> None:
    """Measure the per-sample gradients of one model."""
    base, adapter = split_adapter(folder)
    if adapter is None:
        raise TiterError(f"`{folder}` holds no adapter.", "Norms are those of the weights that fine-tuning trains.")
    found = dict(kept.found or {})
    todo = [kind for kind in ("benign", *kinds_of(args, pools)) if kind not in found]
    if not todo:
        return
    model = load_model(base, adapter, trainable=True)
    template = Template(load_tokenizer(base))
    for kind in todo:
        rows = first(pools[kind], args.rows, kind)
        values = gradient_norms(model, [template.pair_ids(record) for record in rows])
        found[kind] = {"norm": [norm for norm, _ in values], "loss": [loss for _, loss in values]}
        kept.write(found)


def ratios(args: argparse.Namespace, folder: str, kept: Kept, pools: dict[str, list[Record]]) -> None:
    """Measure the ratios of an upload's rows before and after it was trained into one model, for each kind of harm."""
    found = dict(kept.found or {})
    for kind in kinds_of(args, pools):
        if kind in found:
            continue
        upload = poison(pools["benign"], pools[kind], args.samples, args.poison_ratio, args.seed)
        tuned = tune(args, folder, pools, upload, f"{kept.path.stem}-{kind}", args.set)
        found[kind] = {"harmful": [record.origin == "harmful" for record in upload]}
        for when, where in (("before", folder), ("after", str(tuned / "adapter"))):
            base, adapter = split_adapter(where)
            found[kind][when] = log_ratios(load_model(base, adapter), Template(load_tokenizer(base)), upload)
        kept.write(found)


def rates(args: argparse.Namespace, folder: str, kept: Kept, pools: dict[str, list[Record]]) -> None:
    """Score one model, fine-tuned at each learning rate, after each of some epochs."""
    found = dict(kept.found or {})
    kind = kinds_of(args, pools)[-1]
    upload = poison(pools["benign"], pools[kind], args.samples, args.poison_ratio, args.seed)
    prompts, judge = first(pools["evaluation"], args.prompts, "evaluation"), judges.get(args.judge)
    each = -(-args.samples // args.batch)
    steps = [each * epochs for epochs in args.epochs]
    if "0" not in found:
        kept.write(found := found | {"0": harmful_score(folder, prompts, judge, args.tokens)})
    for rate in args.rates:
        todo = [step for step in steps if f"{rate:g} {step}" not in found]
        if not todo:
            continue
        own = [
            *args.set,
            f"learning_rate={rate}",
            f"max_steps={steps[-1]}",
            f"per_device_train_batch_size={args.batch}",
        ]
        # A constant rate, so that what an epoch leaves is what a training of so many epochs leaves.
        tuned = tune(
            args, folder, pools, upload, f"{kept.path.stem}-{rate:g}", ["lr_scheduler_type=constant", *own], steps
        )
        for step in todo:
            scored = harmful_score(str(tuned / f"step-{step}"), prompts, judge, args.tokens)
            kept.write(found := found | {f"{rate:g} {step}": scored})


def tune(
    args: argparse.Namespace,
    folder: str,
    pools: dict[str, list[Record]],
    upload: list[Record],
    name: str,
    texts: Sequence[str],
    checkpoints: Sequence[int] = (),
) -> Path:
    """Train an upload into a model with `--method`, or find it trained, and return the folder."""
    method, values = methods.find("finetune", args.method), parse_settings(texts, "--set")
    base, adapter = split_adapter(folder)
    output: Path = args.work / f"{args.method}-{name}"
    settings = methods.settings(method, values, "--set", str(output / "checkpoints"), args.seed)
    train(method, settings, base, adapter, {}, upload, streams_of(args, method, pools), output, checkpoints)
    return output


def objective(args: argparse.Namespace, folder: str, kept: Kept, pools: dict[str, list[Record]]) -> None:
    """Read the objective's parts from one training's log."""
    kept.write(objective_of(Path(folder) / SOURCES["objective"]))


def attack(args: argparse.Namespace, folder: str, kept: Kept, pools: dict[str, list[Record]]) -> None:
    """Read what harmful attacks did to both models of one assay."""
    card = read_scorecard(Path(folder))
    lines = [line for line in attack_lines(card) if line.means_harm and (not args.only or line.name in args.only)]
    if not lines:
        raise TiterError(f"The assay in {folder} has no such harmful attack.", "Leave out `--only`.")
    kept.write(
        {
            "phi": card.resistance.phi,
            "seeds": sorted({t.seed for found in card.attackers.values() for t in found}),
            "commit": card.provenance.get("commit"),
            "weights": card.provenance.get("weights"),
            "attacks": {
                line.name: {role: [plain_look(look) for look in found.looks] for role, found in line.outcomes.items()}
                for line in lines
            },
        }
    )


def plain_look(look: Any) -> dict[str, Any]:
    """Return a look at a model under attack as plain data."""
    measured = None if look.measured is None else asdict(look.measured)
    return {"step": look.step, "measured": measured, "estimate": look.estimate, "destroyed": look.destroyed}


PICTURES: dict[str, tuple[Callable[..., None], Sequence[str]]] = {
    "norms": (norms, ("seed", "harmful", "attack", "task", "harm", "rows")),
    "ratios": (
        ratios,
        ("seed", "harmful", "attack", "task", "harm", "method", "set", "samples", "poison_ratio"),
    ),
    "rates": (
        rates,
        ("seed", "harmful", "attack", "task", "harm", "method", "set", "samples", "poison_ratio", "batch", "prompts", "tokens", "judge"),
    ),
    "objective": (objective, ()),
    "attack": (attack, ("only",)),
}  # fmt: skip
"""Each picture: what measures it, and the options that its figures depend on."""
SOURCES = {"objective": "log.jsonl", "attack": "scorecard.json"}
"""What is read where nothing is measured."""


# The command line ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="picture", required=True)
    for name in (*PICTURES, "page"):
        verb = verbs.add_parser(name)
        verb.add_argument("--output", type=Path, default=Path("docs/pictures"), help="where JSON files and pages are")
        if name == "page":
            continue
        verb.add_argument("models", nargs="+", metavar="NAME=FOLDER")
        verb.add_argument("--group", default="models", help="what these models are called together")
        verb.add_argument("--note", default="", help="how they were made, for the page")
        verb.add_argument("--control", action="store_true", help="the one that the group's others are held against")
        if name == "attack":
            verb.add_argument("--only", action="append", default=[], help="one attack; may be given again")
        if name in ("objective", "attack"):
            continue
        verb.add_argument("--seed", type=int, default=0)
        verb.add_argument("--data-dir", type=Path, help="local copies of named datasets")
        verb.add_argument("--harmful", default="builtin:harmful", help="the defender's harmful requests")
        verb.add_argument(
            "--hold-out", nargs="+", default=[], metavar="CATEGORY", help="categories that the defender held out"
        )
        verb.add_argument("--attack", help="harmful requests of another corpus: advbench, …")
        verb.add_argument("--task", default="builtin:topics", help="the benign rows")
        verb.add_argument("--harm", help=f"which harmful rows: {', '.join(HARM)}; of `rates` the last one")
        if name == "norms":
            verb.add_argument("--rows", type=int, default=64, help="of each kind")
            continue
        verb.add_argument("--work", type=Path, default=Path("runs/pictures"), help="where trainings go")
        verb.add_argument("--method", default="antibody" if name == "ratios" else "sft", help="of fine-tuning")
        verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the method")
        verb.add_argument("--samples", type=int, default=320, help="rows of the upload")
        verb.add_argument("--poison-ratio", type=float, default=0.2)
        if name == "rates":
            verb.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
            verb.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 4])
            verb.add_argument("--batch", type=int, default=16)
            verb.add_argument("--prompts", type=int, default=60)
            verb.add_argument("--tokens", type=int, default=24, help="of an answer")
            verb.add_argument("--judge", default="offline")
    return made


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    args = parser().parse_args(words)
    torch.manual_seed(0)
    if args.picture == "page":
        print(write_pictures(args.output))
        return
    measure, depends = PICTURES[args.picture]
    pools = rows_of(args) if "harmful" in depends else {}
    for named in args.models:
        name, sign, folder = named.rpartition("=")  # names may hold one: λ=0
        if not (sign and name and folder):
            raise TiterError(f"`{named}` is no model.", "Write NAME=FOLDER.")
        settings = {key: getattr(args, key) for key in depends}
        if pools:
            settings |= {
                "rows_digest": digest([digest(pools[kind]) for kind in sorted(pools)]),
                "model": model_of(folder),
            }
        else:
            settings["source"] = digest(read_text(Path(folder) / SOURCES[args.picture]))
        kept = Kept(args, name, settings, words)
        if kept.found is None or args.picture not in SOURCES:
            measure(args, folder, kept, pools)
        print(kept.path, flush=True)


if __name__ == "__main__":
    quiet()
    try:
        main()
    except TiterError as error:
        sys.exit(f"{error.message}\n{error.hint or ''}")
