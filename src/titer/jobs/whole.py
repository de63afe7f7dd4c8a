"""Jobs of an attacker who has the weights: all of them are trained, plainly, and the model is asked at once.

A whole model is large and of no use afterwards, so it is not kept: an interrupted job begins anew.
"""

from __future__ import annotations

import json
from typing import Any

from titer import methods
from titer.infer.signals import answer_fit
from titer.jobs.answers import answers_of, as_inferences, check_lengths, token_pairs
from titer.jobs.base_model import own_model
from titer.jobs.job import Job, Kind
from titer.jobs.trainings import ReportSteps, make_trainer
from titer.models import Template, add_adapter, load_tokenizer, refuse_quantised
from titer.progress import Task
from titer.results.artefacts import write_atomically, write_inferences


def _whole(job: Job) -> None:
    settings, name = job.settings, job.places["model"]
    model = _trained(job)
    template = Template(load_tokenizer(name))
    sets = [(what, job.records(f"set/{what}"), limit) for what, limit in settings["limits"].items()]
    records = [record for _, rows, _ in sets for record in rows]
    rendered = [template.prompt_ids(record.to_training_row()["prompt"]) for record in records]
    check_lengths(name, records, list(map(len, rendered)))
    limits = [limit for _, rows, limit in sets for _ in rows]
    texts = answers_of(model, template, rendered, limits, "the trained model")
    group = {key: settings[key] for key in ("arm", "phase", "step", "poison_ratio", "seed")}
    if "fit" in job.spec["inputs"]:
        found = answer_fit(model, token_pairs(template, job.records("fit"))).accuracy
        write_atomically(job.folder / "fit.json", json.dumps([float(value) for value in found]).encode())
    write_inferences(job.folder / "inferences.jsonl", as_inferences(sets, texts, group, f"{name}, all weights", None))


def _trained(job: Job) -> Any:
    """Return the aligned model after plain training of all of its weights."""
    settings, name = job.settings, job.places["model"]
    refuse_quantised(name, "all of them are to be trained")
    plain = methods.find("finetune", "sft")
    folder = str(job.folder / "checkpoints")
    args = methods.settings(plain, {**settings["training"], "save_strategy": "no"}, "whole", folder, settings["seed"])
    model = add_adapter(own_model(name), job.needs[0].folder / "adapter").merge_and_unload().requires_grad_(True)
    with Task("step") as steps:
        records = job.records("records")
        trainer = make_trainer(plain, args, model, load_tokenizer(name), None, records, {}, [ReportSteps(steps)])
        trainer.train()
    return model.requires_grad_(False).eval()


WHOLE = Kind("whole", "titer.jobs.whole:WHOLE", _whole)
