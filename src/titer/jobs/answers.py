"""Jobs that ask a model: answer prompts and weigh rows, each from files to files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from titer.data.records import Record
from titer.errors import TiterError
from titer.infer.engines import PART, Engine
from titer.infer.generation import generate
from titer.infer.routing import Routing, routing_beside
from titer.infer.serving import served, system_digest
from titer.infer.signals import answer_fit, row_signals, unasked_refusals
from titer.jobs.base_model import merged_model
from titer.jobs.job import Job, Kind
from titer.jobs.provenance import weights_digest
from titer.methods.finetune.base import refusal_completions, refusal_ids
from titer.models import Template, load_config, load_tokenizer, refuse_nonfinite_logits, split_adapter
from titer.packing.layouts import check_length
from titer.progress import Task
from titer.results.artefacts import TASK_PREFIX, Inference, write_atomically, write_inferences


def answer(model_name: str, adapter: Path | None, prompts: Sequence[tuple[Record, int]], system: str = "") -> list[str]:
    """Return the greedy answers of a model to prompts.

    Args:
        model_name: The base model.
        adapter: The adapter on it.
        prompts: Records whose prompts to answer, each with the most tokens to generate.
        system: What the model is served with (`titer.infer.serving`); empty for nothing.
    """
    template, whole = rendered(model_name, prompts, system)
    model = merged_model(model_name, adapter)  # the adapter costs nothing per token then
    return answers_of(model, template, whole, [limit for _, limit in prompts], f"`{adapter or model_name}`")


def answers_of(
    model: Any, template: Template, rendered: Sequence[list[int]], limits: Sequence[int], name: str
) -> list[str]:
    """Return the greedy answers of a loaded model to prompts.

    Args:
        model: The model, without an adapter to be merged.
        template: Its tokenizer and chat template.
        rendered: Token ids of the prompts.
        limits: Most tokens to generate for each.
        name: What the model is called, for errors.
    """
    if rendered:
        refuse_nonfinite_logits(name, model, rendered[0])
    answers = [""] * len(rendered)
    with Task("answers", len(rendered)) as counted:
        for limit in sorted(set(limits)):
            places = [place for place, own in enumerate(limits) if own == limit]
            ids = [rendered[place] for place in places]
            for place, text in zip(places, generate(model, template, ids, limit, counted=counted), strict=True):
                answers[place] = text
    return answers


def rendered(
    model_name: str, prompts: Sequence[tuple[Record, int]], system: str = ""
) -> tuple[Template, list[list[int]]]:
    """Return a model's template and the token ids of prompts, as of `answer`; raises for those that it cannot run."""
    template = Template(load_tokenizer(model_name))
    if system:
        template.check_system(system)
        prompts = [(served(record, system), limit) for record, limit in prompts]
    ids = [template.prompt_ids(record.to_training_row()["prompt"]) for record, _ in prompts]
    check_lengths(model_name, [record for record, _ in prompts], list(map(len, ids)))
    return template, ids


def routed_answers(
    model_name: str,
    adapter: Path,
    prompts: Sequence[tuple[Record, int]],
    routing: Routing,
    system: str = "",
) -> tuple[list[str], list[bool]]:
    """Return the greedy answers of a model whose router chooses the weights by the prompt, and of which the refusal adapter is on.

    All prompts are scored in one pass through the model with the refusal adapter; each is answered once.

    Args:
        model_name: The base model.
        adapter: The adapter with refusals.
        prompts: As of `answer`.
        routing: The router (`titer.infer.routing.read_routing`).
        system: As of `answer`; the router sees it too.
    """
    template = Template(load_tokenizer(model_name))
    asked = [template.asked_ids(served(record, system).to_training_row()["prompt"]) for record, _ in prompts]
    check_lengths(model_name, [record for record, _ in prompts], list(map(len, asked)))
    model = merged_model(model_name, adapter)
    on = routing.on(model, asked)
    del model
    answers = [""] * len(prompts)
    for refusing, weights in ((False, routing.tuned), (True, adapter)):
        places = [place for place, chosen in enumerate(on) if chosen is refusing]
        if places:
            texts = answer(model_name, weights, [prompts[place] for place in places], system)
            for place, text in zip(places, texts, strict=True):
                answers[place] = text
    return answers, on


EvaluationSet = tuple[str, Sequence[Record], int]
"""Name of a set, its records, and the most tokens to generate for each."""


def as_inferences(
    sets: Sequence[EvaluationSet],
    texts: Sequence[str],
    group: dict[str, Any],
    model: str,
    weights: str | None,
    system: str = "",
    routed: tuple[str, Sequence[bool]] | None = None,
    engine: str | None = None,
) -> list[Inference]:
    """Pair the answers to evaluation sets, in order, with what they answer.

    Args:
        sets: What was asked.
        texts: The answers, set by set.
        group: Arm, phase, step, poison ratio and seed.
        model: Which weights answered.
        weights: The hash of their files (`titer.jobs.provenance.weights_digest`).
        system: What the model was served with; its hash is kept, since it may be a secret.
        routed: The hash of its router, and of each answer in order whether the refusal adapter was on.
        engine: Which engine decoded, where it was not this process.
    """
    answers = iter(texts)
    asked = {**({"serving": system_digest(system)} if system else {}), **({"engine": engine} if engine else {})}
    routes = iter(
        [{}] * len(texts) if routed is None else [{"router": routed[0], "refusal_adapter": on} for on in routed[1]]
    )
    return [
        Inference(
            **group,
            set=name,
            index=index,
            prompt=record.prompt_text,
            response=next(answers),
            reference=record.label if name.startswith(TASK_PREFIX) else None,
            model=model,
            generation={"max_new_tokens": limit, "do_sample": False, **asked, **next(routes)},
            weights=weights,
        )
        for name, records, limit in sets
        for index, record in enumerate(records)
    ]


def token_pairs(template: Template, records: Sequence[Record]) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of each record's prompt and completion."""
    pairs = []
    with Task("tokenised rows", len(records)) as tokenised:
        for record in records:
            pairs.append(template.pair_ids(record))
            tokenised.advance()
    return pairs


def check_lengths(model_name: str, records: Sequence[Record], lengths: Sequence[int]) -> None:
    """Raise for rows that a model cannot run, before its weights are loaded.

    Args:
        model_name: The base model.
        records: The rows.
        lengths: Tokens of each.
    """
    config = load_config(split_adapter(model_name)[0])
    for number, (record, tokens) in enumerate(zip(records, lengths, strict=True)):
        check_length(config, tokens, record.where or f"Row {number}")


def weigh(model_name: str, adapter: Path | None, records: Sequence[Record], ratio: str = "sum") -> list[float]:
    """Return how much likelier than a refusal each row's answer is to a frozen model, by a ratio of `titer.packing.losses.RATIOS`."""
    template = Template(load_tokenizer(model_name))
    pairs = token_pairs(template, records)
    refusals = refusal_ids(template, refusal_completions(None))
    longest = max(map(len, refusals))
    check_lengths(model_name, records, [len(prompt) + max(len(completion), longest) for prompt, completion in pairs])
    model = merged_model(model_name, adapter)
    unasked = unasked_refusals(model, template, refusals, ratio)
    ratios = [float(value) for value in row_signals(model, pairs, refusals).log_ratio(ratio, unasked)]
    check_ratios(ratios, adapter or model_name)
    return ratios


def check_ratios(ratios: Sequence[float], model: Path | str) -> None:
    """Raise for likelihood ratios that are no numbers; names the model that gave them."""
    wrong = [row for row, value in enumerate(ratios) if not math.isfinite(value)]
    if wrong:
        raise TiterError(
            f"The likelihood ratio of {len(wrong)} of {len(ratios)} rows, row {wrong[0]} first, is not finite under "
            f"`{model}`.",
            "The model's weights ran away: train it again, or name another one.",
        )


def batch_weights(log_ratios: Sequence[float], batch_size: int, tau: float = 1.0) -> list[float]:
    """Return softmax(log ratio / τ) within consecutive batches, as Antibody's stage 2 would weigh the rows."""
    if batch_size < 2:
        raise TiterError("Weights within a batch need a batch of 2 rows or more.")
    weights: list[float] = []
    starts = list(range(0, len(log_ratios), batch_size))
    if len(log_ratios) % batch_size == 1 and len(starts) > 1:
        # A last batch of one would always weigh 1; its row joins the batch before.
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(log_ratios)]):
        weights += torch.softmax(torch.tensor(log_ratios[start:end]).double() / tau, 0).tolist()
    return weights


def _answer(job: Job) -> None:
    settings, trained = job.settings, job.needs[0].folder
    sets = [(name, job.records(name), limit) for name, limit in settings["limits"].items()]
    model, adapter, system = job.places["model"], trained / settings["adapter"], settings.get("serving", "")
    prompts, routed = [(record, limit) for _, records, limit in sets for record in records], None
    engine = settings.get("engine")
    if engine is not None:
        from titer.jobs.engines import answer_at  # which renders prompts as here

        server = Engine.read(job.places["engine"])
        texts, _ = answer_at(server, model, adapter, prompts, system, job.folder / PART, engine)
    elif settings.get("routed"):
        routing = routing_beside(adapter)
        texts, on = routed_answers(model, adapter, prompts, routing, system)
        routed = (routing.digest, on)
    else:
        texts = answer(model, adapter, prompts, system)
    group = {name: settings[name] for name in ("arm", "phase", "step", "poison_ratio", "seed")}
    name = f"{model} + {trained.name}/{settings['adapter']}"
    rows = as_inferences(sets, texts, group, name, weights_digest(model, adapter), system, routed, engine)
    write_inferences(job.folder / "inferences.jsonl", rows)
    (job.folder / PART).unlink(missing_ok=True)


def _weigh(job: Job) -> None:
    adapter = job.needs[0].folder / "adapter"
    ratios = weigh(job.places["model"], adapter, job.records("rows"), job.settings["ratio"])
    write_atomically(job.folder / "log_ratios.json", json.dumps(ratios).encode())


def fit(model_name: str, adapter: Path, records: Sequence[Record], system: str = "") -> list[float]:
    """Return of each row which part of its answer's tokens a model finds likeliest, given the ones before."""
    template = Template(load_tokenizer(model_name))
    if system:
        template.check_system(system)
    pairs = token_pairs(template, [served(record, system) for record in records])
    check_lengths(model_name, records, [len(prompt) + len(completion) for prompt, completion in pairs])
    model = merged_model(model_name, adapter)
    return [float(value) for value in answer_fit(model, pairs).accuracy]


def _fit(job: Job) -> None:
    adapter = job.needs[0].folder / job.settings["adapter"]
    found = fit(job.places["model"], adapter, job.records("rows"), job.settings.get("serving", ""))
    write_atomically(job.folder / "fit.json", json.dumps(found).encode())


FIT = Kind("fit", "titer.jobs.answers:FIT", _fit)
ANSWER = Kind("answer", "titer.jobs.answers:ANSWER", _answer)
WEIGH = Kind("weigh", "titer.jobs.answers:WEIGH", _weigh, version=2)
