"""The jobs of an assay: asking a model before any attack, attacking it, judging what it said. Each from files to files.

What an attacker did lies in `jobs/attack-KEY/ATTACKER/step-N.json`. The key holds the weights of the model, the attack,
its seed and prompts, so two assays against the same undefended model in one folder attack it once.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from titer import judges
from titer.assays.attempts import (
    Attempt,
    crew_of,
    finish,
    finished,
    flops_per_token,
    measurements,
    remove_damaged,
)
from titer.assays.measure import Measure, Probe, Questionnaire, prompts_of
from titer.assays.search import Search
from titer.assays.watch import EndWhenOver, Watch, inferences, keep_verdicts
from titer.attacks.failures import blame, traceback_in
from titer.attacks.rows import AttackerPools, training_row, training_rows
from titer.attacks.threats import Attack
from titer.data import Record
from titer.files import read_json
from titer.infer.generation import generate
from titer.jobs.job import Incomplete, Job, Kind
from titer.jobs.work import parameters
from titer.models import refuse_nonfinite_logits, refuse_quantised, split_adapter
from titer.progress import Task, counted
from titer.results.artefacts import HARMFUL, Inference, write_atomically, write_inferences
from titer.results.scoring import check_verdicts, judge_into

SAVE_EVERY = 8
"""Optimizer steps between the checkpoints from which an interrupted attack goes on."""

NO_ATTACK = Attack("No attack.", poison_ratio=0.0)


@functools.lru_cache(maxsize=1)
def attacked_model(name: str) -> Any:
    """Return the weights that an attacker is given, frozen: an adapter is merged, for nobody releases it apart."""
    from titer.models import load_model

    refuse_quantised(split_adapter(name)[0], "an attacker has them whole, with what was trained merged into them")
    model: Any = load_model(name)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    return model.requires_grad_(False)


@functools.lru_cache(maxsize=1)
def _template(name: str) -> Any:
    from titer.models import Template, load_tokenizer

    return Template(load_tokenizer(split_adapter(name)[0]))


# -- before any attack ------------------------------------------------------------------------------------------------


def _baseline(job: Job) -> None:
    model = job.places["model"]
    probe = Questionnaire.read(job).probe(NO_ATTACK)
    weights, template = attacked_model(model), _template(model)
    refuse_nonfinite_logits(f"`{model}`", weights, prompts_of(template, probe.general[:1])[0])
    found = probe.everything(weights, template)
    for name, (records, limit) in _other_sets(job).items():
        found["answers"][name] = generate(weights, template, prompts_of(template, records), limit)
    write_atomically(job.folder / "step-0.json", json.dumps({"step": 0, **found}, ensure_ascii=False).encode())


def _other_sets(job: Job) -> dict[str, tuple[list[Record], int]]:
    """Return what is asked before any attack alone: name → records, and the longest answer to each."""
    return {name: (job.records(f"set/{name}"), limit) for name, limit in job.settings["limits"].items()}


# -- attacks ----------------------------------------------------------------------------------------------------------


def _pools(job: Job) -> AttackerPools:
    return AttackerPools(*(job.records(f"pool/{name}") for name in ("harmful", "cross_domain", "task", "benign")))


def _attack(job: Job) -> None:
    remove_damaged(job.folder)
    crew, questions = crew_of(job), Questionnaire.read(job)
    failure: BaseException | None = None
    try:
        if not crew[0].attack.trains:
            _at_once(job, crew[0], questions)
        elif job.settings["search"] is not None:
            _tune(job, crew[0], questions)
        else:
            _train(job.places["model"], job.folder, crew, questions, functools.partial(_watch, job))
    except Exception as error:
        if blame(error) is None:
            raise
        failure = error
        for attacker in crew:
            if not finished(job.folder / attacker.folder):
                finish(job.folder / attacker.folder, error)
    again = [attacker.name for attacker in crew if not finished(job.folder / attacker.folder)]
    if again:
        raise Incomplete(f"the machine failed {', '.join(again)}; the next run tries again") from failure


def _watch(job: Job, attacker: Attempt, probe: Probe, answered: Sequence[int]) -> Watch | None:
    """Return what an attacker is watched by, where the profile wants that."""
    if job.settings["watch"] is None:
        return None
    judge = judges.get(job.places["judges"][0])
    return Watch(attacker, job.folder / attacker.folder, probe, answered, judge, **job.settings["watch"])


def _train(
    name: str,
    folder: Path,
    crew: Sequence[Attempt],
    questions: Questionnaire,
    watcher: Callable[[Attempt, Probe, Sequence[int]], Watch | None] = lambda *_: None,
) -> list[BaseException | None]:
    """Train the attackers that are not finished yet, together where there are several; return what each failed with.

    Those that are over by what they left before an interruption are not trained further. One that fails by the machine's or its
    own fault fails alone (`titer.attacks.failures`); any other error is raised.
    """
    from transformers import PrinterCallback

    from titer.attacks.fleet import Fleet
    from titer.attacks.trainer import AttackTrainer, attack_settings, optimizer_of
    from titer.infer.stacked import shared_copy
    from titer.jobs.trainings import ReportSteps, last_checkpoint, lora_config

    model, template = attacked_model(name), _template(name)
    crew = [attacker for attacker in crew if not finished(folder / attacker.folder)]
    steps = Task("step", sum(attacker.attack.total_steps for attacker in crew))
    trainers, watches = [], []
    for attacker in counted("attacker made ready", crew):
        attack, own = attacker.attack, folder / attacker.folder
        probe, (answered, margins_only) = questions.probe(attack), questions.steps(attack)
        measure, watch = Measure(own, probe, template, answered, margins_only), watcher(attacker, probe, answered)
        if watch is not None and watch.first:
            measure.enough, measure.first = watch.enough, watch.first
        if attack.asks_otherwise:
            measure.before(model)
        ends = [] if watch is None else [EndWhenOver(watch, steps)]

        args = attack_settings(attack, str(own / "checkpoints"), attacker.seed, SAVE_EVERY)
        trainer = AttackTrainer(
            model=copy.deepcopy(model).requires_grad_(True) if attack.lora is None else shared_copy(model),
            args=args,
            train_dataset=[training_row(attack, record) for record in attacker.rows],
            processing_class=template.tokenizer,
            peft_config=None if attack.lora is None else lora_config(attack.lora),
            callbacks=[ReportSteps(steps), measure, *ends],
            optimizer_cls_and_kwargs=optimizer_of(attack),
            folder=own,
        )
        measure.answer = trainer.answer
        trainer.remove_callback(PrinterCallback)
        trainers.append(trainer)
        watches.append(watch)
    going = [place for place, watch in enumerate(watches) if watch is None or not watch.over()]
    resume = [last_checkpoint(folder / crew[place].folder / "checkpoints") for place in going]
    errors: list[BaseException | None] = [None] * len(crew)
    with steps:
        for place, failure in zip(going, Fleet.run([trainers[place] for place in going], resume), strict=True):
            errors[place] = failure
    for attacker, trainer, watch, error in zip(crew, trainers, watches, errors, strict=True):
        left = None if watch is None or error is not None else watch.left()
        _finish(name, folder / attacker.folder, attacker.attack, trainer, error, left)
    return errors


def _finish(
    name: str, folder: Path, attack: Attack, trainer: Any, error: BaseException | None, left: dict[str, Any] | None
) -> None:
    """Write what an attacker that was trained spends by step, how it ended, and its losses."""
    rows = trainer.train_dataset
    columns = (rows[name] for name in rows.column_names if name.endswith("_ids"))
    lengths = [sum(map(len, row)) for row in zip(*columns, strict=True)]
    size = attack.batch_size
    tokens = list(itertools.accumulate(sum(lengths[start : start + size]) for start in range(0, len(lengths), size)))
    per_token = flops_per_token(attack) * parameters(split_adapter(name)[0])
    finish(
        folder,
        error,
        samples=[size * (step + 1) for step in range(len(tokens))],
        tokens=tokens,
        flops=[per_token * count for count in tokens],
        losses=[line["loss"] for line in trainer.state.log_history if "loss" in line],
        left=left,
    )


def _tune(job: Job, attacker: Attempt, questions: Questionnaire) -> None:
    """Search the attack that harms this model most; leaves its files as if it had been run alone."""
    from titer.assays.search import tune

    model, folder, pools = job.places["model"], job.folder, _pools(job)
    chosen = [judges.get(name) for name in job.places["judges"]]
    if (folder / attacker.folder / "tuned.json").is_file():
        return

    def attempt(number: int, attack: Attack) -> Path:
        rows = training_rows(attack, pools, attacker.seed)
        trial = Attempt(f"{attacker.name} trial {number}", attack, attacker.seed, rows)
        for error in _train(model, folder, [trial], questions):
            if error is not None and blame(error) == "machine":
                raise error  # the search must not learn from it
        return folder / trial.folder

    def harmfulness(attack: Attack, where: Path) -> float | None:
        if read_json(where / "attacker.json")["error"] is not None:
            return None
        asked = questions.probe(attack).sets[HARMFUL]
        rows = [
            row
            for found in measurements(where)
            if found["step"] and "answers" in found
            for row in inferences(
                attacker.name, HARMFUL, asked, found["answers"][HARMFUL], model, weights=None, step=found["step"],
                poison_ratio=attack.poison_ratio, seed=attacker.seed,
            )
        ]  # fmt: skip
        scores = judge_into(where / "scores.jsonl", rows, chosen)
        check_verdicts(scores)
        # Every checkpoint has the same prompts, so this is the mean over checkpoints too.
        return sum(row.label == "harmful" for row in scores) / len(scores)

    tune(
        Search(**job.settings["search"]), attacker.attack, attacker.seed, folder / attacker.folder, attempt, harmfulness
    )


def _at_once(job: Job, attacker: Attempt, questions: Questionnaire) -> None:
    """Do what an attack does without training, and measure the model once.

    One that leaves the weights alone, or takes no prompts to change them, spends nothing.
    """
    name, attack = job.places["model"], attacker.attack
    model, template = attacked_model(name), _template(name)
    own = job.folder / attacker.folder
    measure = Measure(own, questions.probe(attack), template, *questions.steps(attack))
    samples = tokens = 0
    with traceback_in(own):
        if attack.asks_otherwise and attack.method != "prompt":
            measure.before(model)
        if attack.method == "delta_removal":
            model = _without_delta(name, attack)
        if attack.ablates:
            model, samples, tokens = _ablated(model, template, _pools(job), attacker)
        measure.measure(model, 1)
    flops = 2.0 * tokens * parameters(split_adapter(name)[0])
    finish(own, None, samples=[samples], tokens=[tokens], flops=[flops])


def _without_delta(name: str, attack: Attack) -> Any:
    """Return a model without the leading directions of what it has beyond its base."""
    from titer.attacks.delta import undefended
    from titer.models import load_model

    found, _ = undefended(
        name,
        lambda base: load_model(base).requires_grad_(False),
        lambda: copy.deepcopy(attacked_model(name)),
        attack.base,
        attack.energy,
        attack.directions,
    )
    return found


def _ablated(model: Any, template: Any, held: AttackerPools, attacker: Attempt) -> tuple[Any, int, int]:
    """Return a model without its refusal direction, and the prompts and tokens that it took to find it."""
    from titer.attacks.ablation import ablate
    from titer.jobs.answers import token_pairs
    from titer.methods.finetune.base import refusal_completions, refusal_ids

    attack, draw = attacker.attack, random.Random(f"titer.attacks:ablation:{attacker.seed}")
    half = min(attack.samples // 2, len(held.harmful), len(held.benign))
    harmful, harmless = (token_pairs(template, draw.sample(list(pool), half)) for pool in (held.harmful, held.benign))
    ablated, about = ablate(
        model,
        lambda: copy.deepcopy(model),
        harmful,
        harmless,
        refusal_ids(template, refusal_completions(None)),
        attack.depths,
    )
    return ablated, 2 * half, about.tokens


# -- judging ----------------------------------------------------------------------------------------------------------


def _before(job: Job, role: str, model: str) -> Iterator[Inference]:
    """Yield the answers before any attack."""
    asked = {**_other_sets(job), **Questionnaire.read(job).probe(NO_ATTACK).sets}
    for name, texts in read_json(job.folder / "step-0.json")["answers"].items():
        arm = f"{role} / before" + (", cross-domain" if name == "cross" else "")
        kind = HARMFUL if name == "cross" else name
        yield from inferences(
            arm, kind, asked[name], texts, model, job.settings["weights"], step=0, poison_ratio=0.0, seed=0
        )


def _under_attack(job: Job, role: str, model: str) -> Iterator[Inference]:
    """Yield the answers at the checkpoints of attacks."""
    questions = Questionnaire.read(job)
    for attacker in crew_of(job):
        asked = questions.probe(attacker.attack).sets
        for measured in measurements(job.folder / attacker.folder):
            group = {"step": measured["step"], "poison_ratio": attacker.attack.poison_ratio, "seed": attacker.seed}
            for name, texts in measured.get("answers", {}).items():
                rows = inferences(f"{role} / {attacker.name}", name, asked[name], texts, model, None, **group)
                if name == HARMFUL and attacker.attack.prefill:
                    # What is judged is what the model said; what it was made to begin with stands beside.
                    begun = {"prefill": attacker.attack.prefill}
                    rows = [dataclasses.replace(row, generation={**row.generation, **begun}) for row in rows]
                yield from rows


def _judge(job: Job) -> None:
    (asked,) = job.needs
    answers = _before if asked.kind == BASELINE.name else _under_attack
    role, scores = job.settings["role"], job.folder / "scores.jsonl"
    rows = list(answers(asked, role, job.places["model"]))
    write_inferences(job.folder / "inferences.jsonl", rows)
    if asked.kind == ATTACK.name:
        keep_verdicts(asked, role, rows, scores)
    chosen = [judges.get(name) for name in job.places["judges"]]
    check_verdicts(judge_into(scores, rows, chosen, keep_all=True))


BASELINE = Kind("baseline", "titer.assays.attacking:BASELINE", _baseline)
ATTACK = Kind("attack", "titer.assays.attacking:ATTACK", _attack, version=3)
JUDGE = Kind("judge", "titer.assays.attacking:JUDGE", _judge)
