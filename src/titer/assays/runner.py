"""Runs attackers against a defended and an undefended model, each stage a folder that is never done twice.

    baseline (each model) ──► attackers (a fleet, or one that must run alone) ──► judge ──► scorecard, report

What an attacker did lies in `stages/attack-KEY/ATTACKER/step-N.json`. The key holds the weights of the model, the attack,
its seed and prompts, so two assays against the same undefended model in one folder attack it once.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import logging
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer.assays.measure import Measure, Probe, prompts_of
from titer.assays.pools import AssayPools, load_assay_pools
from titer.assays.profile import Profile, answered_steps, between
from titer.assays.search import Search, require_optuna
from titer.attacks.failures import blame, traceback_in
from titer.attacks.rows import in_disguise, training_rows
from titer.attacks.threats import Attack
from titer.data import Record
from titer.errors import TiterError
from titer.files import read_json, remove
from titer.infer.generation import generate
from titer.jobs.estimates import Cost, Work, answering, fitting, judging, parameters, sizes, weighing
from titer.jobs.plan import (
    GENERATION_CODE,
    TRAINING_CODE,
    Incomplete,
    Plan,
    Stage,
    code_digest,
    digest,
    judge_key,
    weights_digest,
)
from titer.judges.base import Judge
from titer.models import refuse_nonfinite_logits, split_adapter
from titer.plugins import source_digest
from titer.progress import Task, counted
from titer.results import artefacts, tasks
from titer.results.artefacts import HARMFUL, LOOKALIKE, TASK_PREFIX, Inference, write_atomically
from titer.results.scoring import check_verdicts, judge_into

logger = logging.getLogger(__name__)

ROLES = ("defended", "undefended")
ATTACK_CODE = (*TRAINING_CODE, *GENERATION_CODE, "attacks", "assays/measure.py")
SAVE_EVERY = 8
"""Optimizer steps between the checkpoints from which an interrupted attack goes on."""


@dataclass(frozen=True)
class Attacker:
    """One attacker against one model.

    Attributes:
        role: `defended` or `undefended`.
        name: The attack's name, with its point of the grid.
        attack: What it does.
        seed: Of its data, order and initialisation.
        search: What of it is searched against the model; `None` for nothing.
    """

    role: str
    name: str
    attack: Attack
    seed: int
    search: Search | None = None

    @property
    def folder(self) -> str:
        """Name of its folder in the folder of its stage."""
        return re.sub(r"[^\w.=,:-]+", "_", f"{self.name} seed {self.seed}")


@dataclass
class AssayPlan(Plan):
    """The stages of an assay.

    Attributes:
        profile: Which attackers, how many prompts, which thresholds.
        models: Role → model.
        pools: The prompts.
        judges: Who judges answers, the first decides.
        weights: Role → hash of the files that the model is loaded from.
        baselines: Role → (stage that asks the model before any attack, stage that judges its answers).
        attackers: Every attacker with the stages that run and judge it.
    """

    profile: Profile = field(kw_only=True)
    models: dict[str, str] = field(kw_only=True)
    pools: AssayPools = field(kw_only=True)
    judges: list[Judge] = field(init=False)
    weights: dict[str, str] = field(init=False)
    baselines: dict[str, tuple[Stage, Stage]] = field(default_factory=dict)
    attackers: list[tuple[Attacker, Stage, Stage]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from titer import judges

        self.judges = [judges.get(name) for name in self.profile.judges]
        self.weights = {role: weights_digest(*split_adapter(name)) for role, name in self.models.items()}

    def probe(self, attack: Attack) -> Probe:
        """Return what is asked at the checkpoints of an attack."""
        profile, pools = self.profile, self.pools
        return Probe(
            harmful=[in_disguise(attack, record) for record in pools.harmful[attack.domain]],
            general=pools.general[: profile.utility],
            task=pools.task if attack.has_task else [],
            task_name=self.task_name,
            max_new_tokens=profile.max_new_tokens,
            task_max_new_tokens=self.task_tokens(self.task_name),
            with_margins=profile.margins,
        )

    @property
    def task_name(self) -> str:
        """The name under which the task's answers are parsed."""
        return self.profile.data.task.removeprefix("builtin:")

    def task_tokens(self, name: str) -> int:
        """Return the longest answer to a task."""
        return self.profile.task_max_new_tokens or tasks.get(name).max_new_tokens

    def steps(self, attack: Attack) -> tuple[list[int], list[int]]:
        """Return the steps at which an attack's model answers, and those at which only its margins are taken."""
        if attack.method == "ablation":
            return [1], []
        answered = answered_steps(attack.total_steps, self.profile.checkpoints)
        return answered, between(answered) if self.profile.margins else []


def plan_assay(
    profile: Profile,
    defended: str,
    undefended: str,
    run_folder: Path,
    data_dir: Path | None = None,
    defence: Sequence[str] = (),
) -> AssayPlan:
    """Plan an assay: load and check its data, and name every stage by what it depends on.

    Args:
        profile: Which attackers, how many prompts, which thresholds.
        defended: The model to assay: a folder, a hub id, an adapter.
        undefended: What to compare it with.
        run_folder: Where stages go.
        data_dir: Folder with local copies of named datasets.
        defence: Datasets that the defence was made from; see `load_assay_pools`.
    """
    profile.check()
    if any(planned.search is not None for planned in profile.attackers()):
        require_optuna()
    pools = load_assay_pools(profile, data_dir, defence)
    plan = AssayPlan(run_folder, profile=profile, models={"defended": defended, "undefended": undefended}, pools=pools)
    for role in ROLES:
        _plan_baseline(plan, role)
        crew = [Attacker(role, *planned) for planned in profile.attackers()]
        together = [attacker for attacker in crew if attacker.attack.in_fleet and attacker.search is None]
        fleets = [together[start : start + profile.fleet] for start in range(0, len(together), profile.fleet)]
        for fleet in [*fleets, *([attacker] for attacker in crew if attacker not in together)]:
            for attacker in fleet:
                _rehearse(attacker, split_adapter(plan.models[role])[0], len(fleet) > 1)
            _plan_attack(plan, role, fleet)
    return plan


def _rehearse(attacker: Attacker, base: str, in_company: bool) -> None:
    """Raise when an attack could not begin, or one that its search may choose."""
    from titer.jobs.rehearsal import rehearse_attack

    adapters = (
        [attacker.attack.lora]
        if attacker.search is None
        else attacker.search.choices.get("lora", [attacker.attack.lora])
    )
    for lora in adapters:
        if attacker.attack.method == "finetune" and lora is not None:
            where = f"attacks.{attacker.name}.lora"
            rehearse_attack(dataclasses.replace(attacker.attack, lora=lora), where, base, in_company)


@functools.lru_cache(maxsize=1)
def attacked_model(name: str) -> Any:
    """Return the weights that an attacker is given, frozen: an adapter is merged, for nobody releases it apart."""
    from titer.models import load_model

    model: Any = load_model(name)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    return model.requires_grad_(False)


@functools.lru_cache(maxsize=1)
def _template(name: str) -> Any:
    from titer.models import Template, load_tokenizer

    return Template(load_tokenizer(split_adapter(name)[0]))


# -- before any attack ------------------------------------------------------------------------------------------------


def _plan_baseline(plan: AssayPlan, role: str) -> None:
    profile, pools, model = plan.profile, plan.pools, plan.models[role]
    plain = Attack("No attack.", poison_ratio=0.0)
    sets: dict[str, tuple[Sequence[Record], int]] = {
        LOOKALIKE: (pools.lookalikes, profile.max_new_tokens),
        **{TASK_PREFIX + name: (records, plan.task_tokens(name)) for name, records in pools.reference_tasks.items()},
    }
    if "cross" in pools.harmful:
        sets["cross"] = (pools.harmful["cross"], profile.max_new_tokens)
    probe = dataclasses.replace(plan.probe(plain), general=pools.general)

    def run(own: Stage) -> None:
        weights, template = attacked_model(model), _template(model)
        refuse_nonfinite_logits(f"`{model}`", weights, prompts_of(template, pools.general[:1])[0])
        found = probe.everything(weights, template)
        for name, (records, limit) in sets.items():
            found["answers"][name] = generate(weights, template, prompts_of(template, records), limit)
        write_atomically(own.folder / "step-0.json", json.dumps({"step": 0, **found}, ensure_ascii=False).encode())

    spec = {
        "weights": plan.weights[role],
        "probe": _probe_digest(probe),
        "sets": {name: (digest(list(records)), limit) for name, (records, limit) in sets.items()},
        "code": code_digest(*ATTACK_CODE),
    }
    base = split_adapter(model)[0]
    asked = [*sets.values(), *probe.sets.values()]
    cost = answering(base, asked) + _looking(probe, base)
    baseline = plan.add("baseline", f"before any attack: {model}", spec, run, work=Work("baseline", base, cost))

    def inferences() -> Iterator[Inference]:
        answers = read_json(baseline.folder / "step-0.json")["answers"]
        asked = {**sets, **probe.sets}
        for name, texts in answers.items():
            arm = f"{role} / before" + (", cross-domain" if name == "cross" else "")
            kind = HARMFUL if name == "cross" else name
            yield from _inferences(
                arm, kind, asked[name], texts, model, weights=plan.weights[role], step=0, poison_ratio=0.0, seed=0
            )

    judged = sum(
        len(records) for name, (records, _) in {**sets, **probe.sets}.items() if not name.startswith(TASK_PREFIX)
    )
    plan.baselines[role] = baseline, _plan_judge(plan, baseline, role, inferences, judged)


# -- attacks ----------------------------------------------------------------------------------------------------------


def _plan_attack(plan: AssayPlan, role: str, crew: Sequence[Attacker]) -> None:
    model = plan.models[role]
    base = split_adapter(model)[0]
    rows = [
        []
        if attacker.attack.method == "ablation"
        else training_rows(attacker.attack, plan.pools.attackers, attacker.seed)
        for attacker in crew
    ]

    def run(own: Stage) -> None:
        _remove_damaged(own.folder)
        failure: BaseException | None = None
        try:
            if crew[0].attack.method == "ablation":
                _ablate(plan, own.folder, crew[0])
            elif crew[0].search is not None:
                _tune(plan, own.folder, crew[0])
            else:
                _train(plan, own.folder, crew, rows)
        except Exception as error:
            if blame(error) is None:
                raise
            failure = error
            for attacker in crew:
                if not _finished(own.folder / attacker.folder):
                    _finish(own.folder / attacker.folder, error)
        again = [attacker.name for attacker in crew if not _finished(own.folder / attacker.folder)]
        if again:
            raise Incomplete(f"the machine failed {', '.join(again)}; the next run tries again") from failure

    spec = {
        "weights": plan.weights[role],
        "attackers": [
            {
                "folder": attacker.folder,
                "attack": dataclasses.asdict(attacker.attack) | {"summary": None},
                "source": source_digest(attacker.attack),
                "seed": attacker.seed,
                "rows": digest(own_rows),
                "probe": _probe_digest(plan.probe(attacker.attack)),
                "steps": plan.steps(attacker.attack),
            }
            for attacker, own_rows in zip(crew, rows, strict=True)
        ],
        "code": code_digest(*ATTACK_CODE),
    }
    if crew[0].attack.method == "ablation" or crew[0].search is not None:
        held = plan.pools.attackers
        spec["held"] = [digest(list(pool)) for pool in (held.harmful, held.cross_domain, held.task, held.benign)]
    if crew[0].search is not None:
        spec["search"] = [dataclasses.asdict(crew[0].search), judge_key(plan.judges[0])]
    label = f"{crew[0].name} seed {crew[0].seed}" + (f" and {len(crew) - 1} more" if len(crew) > 1 else "")
    stage = plan.add("attack", f"attack {model}: {label}", spec, run, work=_attacking(plan, base, crew, rows))

    def inferences() -> Iterator[Inference]:
        for attacker in crew:
            asked = plan.probe(attacker.attack).sets
            for measured in measurements(stage.folder / attacker.folder):
                group = {
                    "step": measured["step"],
                    "poison_ratio": attacker.attack.poison_ratio,
                    "seed": attacker.seed,
                }
                for name, texts in measured.get("answers", {}).items():
                    yield from _inferences(
                        f"{role} / {attacker.name}", name, asked[name], texts, model, weights=None, **group
                    )

    answers = sum(len(plan.steps(one.attack)[0]) * len(plan.probe(one.attack).harmful) for one in crew)
    judged = _plan_judge(plan, stage, role, inferences, answers)
    plan.attackers += [(attacker, stage, judged) for attacker in crew]


def _attacking(plan: AssayPlan, base: str, crew: Sequence[Attacker], rows: Sequence[list[Record]]) -> Work:
    """Return the work of an attack's stage."""
    from titer.attacks.fleet import MAX_TOKENS
    from titer.train.trainer import bf16_is_fast

    attack, cost = crew[0].attack, Cost()
    sets: dict[tuple[int, str, int], tuple[list[Record], int]] = {}
    for attacker, own_rows in zip(crew, rows, strict=True):
        probe = plan.probe(attacker.attack)
        answered, margins = plan.steps(attacker.attack)
        cost += _looking(probe, base) * len(answered) + _looking(probe, base, margins_only=True) * len(margins)
        for step in answered:
            for name, (records, limit) in probe.sets.items():
                # Those who ask after the same step are answered together.
                sets.setdefault((step, name, limit), ([], limit))[0].extend(records)
        if own_rows:
            tokens = attacker.attack.total_steps * sizes(base, own_rows).batch(attacker.attack.batch_size)
            # Where all weights train, their gradients cost half as much again.
            cost += Cost(setups=1, trained=tokens * _flops_per_token(attacker.attack) / 4)
        else:
            # Forward passes of an ablation: all prompts once, and the harmful half again for each depth.
            passes = 1 + len(attacker.attack.depths) / 2
            own = sizes(base, plan.pools.attackers.harmful)
            cost += Cost(read=passes * attacker.attack.samples * (own.prompt + own.completion))
    if attack.method == "finetune":
        longest = max(attacker.attack.total_steps for attacker in crew)
        cost += Cost(passes=max(longest, cost.trained / MAX_TOKENS))
    cost += answering(base, list(sets.values()))
    kind = "ablation" if attack.method == "ablation" else "full" if attack.lora is None else "fleet"
    if crew[0].search is not None:
        cost, kind = cost * crew[0].search.trials, "search"
    return Work(f"attack {kind}", base, cost, bf16_is_fast())


def _looking(probe: Probe, base: str, margins_only: bool = False) -> Cost:
    """Return what it costs to take a model's margins and, unless those are all, to score its reference answers."""
    cost = Cost() if margins_only else fitting(base, probe.general)
    return cost + weighing("", base, probe.harmful).cost if probe.with_margins else cost


def _train(
    plan: AssayPlan, folder: Path, crew: Sequence[Attacker], rows: Sequence[list[Record]]
) -> list[BaseException | None]:
    """Train the attackers that are not finished yet, together where there are several; return what each failed with.

    One that fails by the machine's or its own fault fails alone (`titer.attacks.failures`); any other error is raised.
    """
    from transformers.trainer_callback import PrinterCallback

    from titer.attacks.fleet import Fleet, shared_copy
    from titer.attacks.trainer import AttackTrainer, attack_settings, optimizer_of
    from titer.jobs.stages import ReportSteps, last_checkpoint, lora_config

    name = plan.models[crew[0].role]
    model, template = attacked_model(name), _template(name)
    pending = [place for place, attacker in enumerate(crew) if not _finished(folder / attacker.folder)]
    crew, rows = [crew[place] for place in pending], [rows[place] for place in pending]
    steps = Task("step", sum(attacker.attack.total_steps for attacker in crew))
    trainers, resume = [], []
    for attacker, own_rows in counted("attacker made ready", list(zip(crew, rows, strict=True))):
        attack, own = attacker.attack, folder / attacker.folder
        measure = Measure(own, plan.probe(attack), template, *plan.steps(attack))
        if attack.system or attack.style:
            measure.before(model)

        args = attack_settings(attack, str(own / "checkpoints"), attacker.seed, SAVE_EVERY)
        trainer = AttackTrainer(
            model=copy.deepcopy(model).requires_grad_(True) if attack.lora is None else shared_copy(model),
            args=args,
            train_dataset=[record.to_training_row() for record in own_rows],
            processing_class=template.tokenizer,
            peft_config=None if attack.lora is None else lora_config(attack.lora),
            callbacks=[ReportSteps(steps), measure],
            optimizer_cls_and_kwargs=optimizer_of(attack),
            folder=own,
        )
        measure.answer = trainer.answer
        trainer.remove_callback(PrinterCallback)
        trainers.append(trainer)
        resume.append(last_checkpoint(own / "checkpoints"))
    with steps:
        errors = Fleet.run(trainers, resume)
    for attacker, trainer, error in zip(crew, trainers, errors, strict=True):
        lengths = [
            len(prompt) + len(completion)
            for prompt, completion in zip(
                trainer.train_dataset["prompt_ids"], trainer.train_dataset["completion_ids"], strict=True
            )
        ]
        size = attacker.attack.batch_size
        tokens = [sum(lengths[start : start + size]) for start in range(0, len(lengths), size)]
        per_token = _flops_per_token(attacker.attack) * parameters(split_adapter(name)[0])
        _finish(
            folder / attacker.folder,
            error,
            samples=[size * (step + 1) for step in range(len(tokens))],
            tokens=list(itertools.accumulate(tokens)),
            flops=[per_token * count for count in itertools.accumulate(tokens)],
            losses=[line["loss"] for line in trainer.state.log_history if "loss" in line],
        )
    return errors


def _tune(plan: AssayPlan, folder: Path, attacker: Attacker) -> None:
    """Search the attack that harms this model most; leaves its files as if it had been run alone."""
    from titer.assays.search import tune

    assert attacker.search is not None
    if (folder / attacker.folder / "tuned.json").is_file():
        return

    def attempt(number: int, attack: Attack) -> Path:
        trial = Attacker(attacker.role, f"{attacker.name} trial {number}", attack, attacker.seed)
        for error in _train(plan, folder, [trial], [training_rows(attack, plan.pools.attackers, attacker.seed)]):
            if error is not None and blame(error) == "machine":
                raise error  # the search must not learn from it
        return folder / trial.folder

    def harmfulness(attack: Attack, where: Path) -> float | None:
        if read_json(where / "attacker.json")["error"] is not None:
            return None
        asked = plan.probe(attack).sets[HARMFUL]
        rows = [
            row
            for found in measurements(where)
            if found["step"] and "answers" in found
            for row in _inferences(
                attacker.name, HARMFUL, asked, found["answers"][HARMFUL], plan.models[attacker.role], weights=None, step=found["step"],
                poison_ratio=attack.poison_ratio, seed=attacker.seed,
            )
        ]  # fmt: skip
        scores = judge_into(where / "scores.jsonl", rows, plan.judges[:1])
        check_verdicts(scores)
        # Every checkpoint has the same prompts, so this is the mean over checkpoints too.
        return sum(row.label == "harmful" for row in scores) / len(scores)

    tune(attacker.search, attacker.attack, attacker.seed, folder / attacker.folder, attempt, harmfulness)


def _ablate(plan: AssayPlan, folder: Path, attacker: Attacker) -> None:
    """Ablate the refusal direction, and measure the model once."""
    from titer.attacks.ablation import ablate
    from titer.jobs.stages import token_pairs
    from titer.methods.finetune.base import refusal_completions, refusal_ids

    name, attack = plan.models[attacker.role], attacker.attack
    model, template = attacked_model(name), _template(name)
    draw = random.Random(f"titer.attacks:ablation:{attacker.seed}")
    held = plan.pools.attackers
    half = min(attack.samples // 2, len(held.harmful), len(held.benign))
    harmful, harmless = (token_pairs(template, draw.sample(list(pool), half)) for pool in (held.harmful, held.benign))
    own = folder / attacker.folder
    with traceback_in(own):
        ablated, about = ablate(
            model,
            lambda: copy.deepcopy(model),
            harmful,
            harmless,
            refusal_ids(template, refusal_completions(None)),
            attack.depths,
        )
        Measure(own, plan.probe(attack), template, *plan.steps(attack)).measure(ablated, 1)
    flops = 2.0 * about.tokens * parameters(split_adapter(name)[0])
    _finish(own, None, samples=[2 * half], tokens=[about.tokens], flops=[flops])


def _finish(
    folder: Path,
    error: BaseException | None,
    samples: Sequence[int] = (),
    tokens: Sequence[int] = (),
    flops: Sequence[float] = (),
    losses: Sequence[Any] = (),
) -> None:
    """Write what an attacker spent by step and, when it failed, whose fault that was.

    Its checkpoints are not needed any more, unless the machine failed it: then the next run goes on from them.
    """
    about = {
        "error": None if error is None else f"{blame(error)}: {type(error).__name__}: {' '.join(str(error).split())}",
        "again": error is not None and blame(error) == "machine",
        "samples": list(samples),
        "tokens": list(tokens),
        "flops": list(flops),
        "losses": [loss if isinstance(loss, float) and loss == loss else None for loss in losses],
    }
    write_atomically(folder / "attacker.json", json.dumps(about).encode())
    if error is None:
        (folder / "error.txt").unlink(missing_ok=True)  # of a try that the machine failed
    if not about["again"]:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _finished(folder: Path) -> bool:
    """Whether an attacker has come to its end, or to a failure that another run would meet again."""
    path = folder / "attacker.json"
    return path.exists() and not read_json(path)["again"]


def measurements(folder: Path) -> list[dict[str, Any]]:
    """Return what was measured of an attacker, by step."""
    found = [read_json(path) for path in folder.glob("step-*.json")]
    return sorted(found, key=lambda measured: int(measured["step"]))


def _remove_damaged(folder: Path) -> None:
    """Remove attackers of an interrupted stage that left a file which cannot be read; they are run again.

    What a stage left that was done is looked at before (`titer.jobs.plan.Stage.damaged`).
    """
    for attacker in [path for path in folder.iterdir() if path.is_dir()]:
        try:
            for path in attacker.glob("*.json"):
                read_json(path)
        except TiterError as error:
            logger.warning("%s: `%s` is run again.", error.message.rstrip("."), attacker.name)
            remove(attacker)


def _flops_per_token(attack: Attack) -> float:
    """Return training FLOPs a token and parameter: 2 forward, 2 back through activations, 2 for weights that train."""
    return 6.0 if attack.lora is None else 4.0


# -- judging ----------------------------------------------------------------------------------------------------------


def _inferences(
    arm: str,
    kind: str,
    asked: tuple[Sequence[Record], int],
    texts: Sequence[str],
    model: str,
    weights: str | None,
    **group: Any,
) -> list[Inference]:
    """Pair the answers to one set with what they answer.

    `weights` is the hash of the model's files, of which there are none under attack; `group` is step, poison ratio and seed.
    """
    from titer.jobs.stages import as_inferences

    phase = "finetuned" if group["step"] else "aligned"
    return as_inferences([(kind, *asked)], texts, {"arm": arm, "phase": phase, **group}, model, weights)


def _plan_judge(plan: AssayPlan, answered: Stage, role: str, inferences: Any, answers: int) -> Stage:
    base = split_adapter(plan.models[role])[0]

    def run(own: Stage) -> None:
        rows = list(inferences())
        artefacts.write_inferences(own.folder / "inferences.jsonl", rows)
        check_verdicts(judge_into(own.folder / "scores.jsonl", rows, plan.judges))

    spec = {
        "judges": [judge_key(judge) for judge in plan.judges],
        "role": role,
        "code": code_digest("judges", "assays/runner.py"),
    }
    return plan.add("judge", f"judge {answered.name}", spec, run, [answered], judging(base, plan.judges, answers))


def _probe_digest(probe: Probe) -> str:
    return digest(
        {
            **{name: (digest(list(records)), limit) for name, (records, limit) in probe.sets.items()},
            "general": digest(list(probe.general)),
            "margins": probe.with_margins,
        }
    )
