"""Plans an assay: which attackers are sent against a defended and an undefended model.

    baseline (each model) ──► attackers (a fleet, or one that must run alone) ──► judge ──► scorecard, report

What the jobs do: `titer.assays.attacking`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from titer import judges, plugins
from titer.assays.attacking import ATTACK, BASELINE, JUDGE, NO_ATTACK
from titer.assays.attempts import as_settings, attacker_folder, flops_per_token, measurements
from titer.assays.measure import Probe, Questionnaire
from titer.assays.pools import AssayPools, load_assay_pools
from titer.assays.profile import Profile
from titer.assays.search import Search, require_optuna
from titer.assays.trajectories import ROLES
from titer.attacks.rows import training_rows
from titer.attacks.threats import Attack
from titer.data import Record
from titer.jobs.job import Job
from titer.jobs.plan import Plan
from titer.jobs.provenance import judge_key, weights_digest
from titer.jobs.work import Cost, Work, answering, fitting, judging, sizes, weighing
from titer.judges.base import Judge
from titer.models import refuse_quantised, split_adapter
from titer.results import tasks
from titer.results.artefacts import LOOKALIKE, TASK_PREFIX

__all__ = ["AssayPlan", "Attacker", "measurements", "plan_assay"]


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
        """Name of its folder in the folder of its job."""
        return attacker_folder(self.name, self.seed)


@dataclass
class AssayPlan(Plan):
    """The jobs of an assay.

    Attributes:
        profile: Which attackers, how many prompts, which thresholds.
        models: Role → model.
        pools: The prompts.
        judges: Who judges answers, the first decides.
        weights: Role → hash of the files that the model is loaded from.
        baselines: Role → (job that asks the model before any attack, job that judges its answers).
        attackers: Every attacker with the jobs that run and judge it.
    """

    profile: Profile = field(kw_only=True)
    models: dict[str, str] = field(kw_only=True)
    pools: AssayPools = field(kw_only=True)
    judges: list[Judge] = field(init=False)
    weights: dict[str, str] = field(init=False)
    baselines: dict[str, tuple[Job, Job]] = field(default_factory=dict)
    attackers: list[tuple[Attacker, Job, Job]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.judges = [judges.get(name) for name in self.profile.judges]
        for name in self.models.values():
            refuse_quantised(
                split_adapter(name)[0], "an attacker has them whole, with what was trained merged into them"
            )
        self.weights = {role: weights_digest(*split_adapter(name)) for role, name in self.models.items()}

    @property
    def questions(self) -> Questionnaire:
        """What is asked at the checkpoints of every attack."""
        profile, pools = self.profile, self.pools
        return Questionnaire(
            harmful=pools.harmful,
            general=pools.general[: profile.utility],
            task=pools.task,
            task_name=self.task_name,
            max_new_tokens=profile.max_new_tokens,
            task_max_new_tokens=self.task_tokens(self.task_name),
            margins=profile.margins,
            checkpoints=profile.checkpoints,
        )

    def probe(self, attack: Attack) -> Probe:
        """Return what is asked at the checkpoints of an attack."""
        return self.questions.probe(attack)

    @property
    def task_name(self) -> str:
        """The name under which the task's answers are parsed."""
        return self.profile.data.task.removeprefix("builtin:")

    def task_tokens(self, name: str) -> int:
        """Return the longest answer to a task."""
        return self.profile.task_max_new_tokens or tasks.get(name).max_new_tokens

    def steps(self, attack: Attack) -> tuple[list[int], list[int]]:
        """Return the steps at which an attack's model answers, and those at which only its margins are taken."""
        return self.questions.steps(attack)


def plan_assay(
    profile: Profile,
    defended: str,
    undefended: str,
    run_folder: Path,
    data_dir: Path | None = None,
    defence: Sequence[str] = (),
) -> AssayPlan:
    """Plan an assay: load and check its data, and name every job by what it depends on.

    Args:
        profile: Which attackers, how many prompts, which thresholds.
        defended: The model to assay: a folder, a hub id, an adapter.
        undefended: What to compare it with.
        run_folder: Where jobs go.
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
        if attacker.attack.trains and lora is not None:
            where = f"attacks.{attacker.name}.lora"
            rehearse_attack(dataclasses.replace(attacker.attack, lora=lora), where, base, in_company)


def _plan_baseline(plan: AssayPlan, role: str) -> None:
    profile, pools, model = plan.profile, plan.pools, plan.models[role]
    sets: dict[str, tuple[Sequence[Record], int]] = {
        LOOKALIKE: (pools.lookalikes, profile.max_new_tokens),
        **{TASK_PREFIX + name: (records, plan.task_tokens(name)) for name, records in pools.reference_tasks.items()},
    }
    if "cross" in pools.harmful:
        sets["cross"] = (pools.harmful["cross"], profile.max_new_tokens)
    questions = dataclasses.replace(plan.questions, general=pools.general)
    probe = questions.probe(NO_ATTACK)
    settings, inputs = questions.for_job([NO_ATTACK], searched=False)
    base = split_adapter(model)[0]
    cost = answering(base, [*sets.values(), *probe.sets.values()]) + _looking(probe, base)
    baseline = plan.add(
        BASELINE,
        f"before any attack: {model}",
        {
            "weights": plan.weights[role],
            "questions": settings,
            "limits": {name: limit for name, (_, limit) in sets.items()},
        },
        {**inputs, **{f"set/{name}": records for name, (records, _) in sets.items()}},
        places={"model": model},
        work=Work("baseline", base, cost),
    )
    judged = sum(
        len(records) for name, (records, _) in {**sets, **probe.sets}.items() if not name.startswith(TASK_PREFIX)
    )
    plan.baselines[role] = baseline, _plan_judge(plan, baseline, role, judged)


def _plan_attack(plan: AssayPlan, role: str, crew: Sequence[Attacker]) -> None:
    model, held, search = plan.models[role], plan.pools.attackers, crew[0].search
    base = split_adapter(model)[0]
    rows = [training_rows(attacker.attack, held, attacker.seed) if attacker.attack.trains else [] for attacker in crew]
    settings, inputs = plan.questions.for_job([attacker.attack for attacker in crew], search is not None)
    inputs |= {f"rows/{place}": own for place, own in enumerate(rows) if own}
    if crew[0].attack.ablates or search is not None:
        inputs |= {f"pool/{item.name}": getattr(held, item.name) for item in dataclasses.fields(held)}
    watched = plan.profile.watched([attacker.attack for attacker in crew]) if search is None else None
    label = f"{crew[0].name} seed {crew[0].seed}" + (f" and {len(crew) - 1} more" if len(crew) > 1 else "")
    attack = plan.add(
        ATTACK,
        f"attack {model}: {label}",
        {
            "weights": plan.weights[role],
            "attackers": [as_settings(attacker, own) for attacker, own in zip(crew, rows, strict=True)],
            "questions": settings,
            "search": None if search is None else dataclasses.asdict(search),
            "watch": watched,
            "judges": [] if search is None and watched is None else [judge_key(plan.judges[0])],
        },
        inputs,
        places={
            "model": model,
            "classes": [plugins.class_path(type(attacker.attack)) for attacker in crew],
            "judges": [plugins.absolute(plan.profile.judges[0])],
        },
        work=_attacking(plan, base, crew, rows),
    )
    answers = sum(len(plan.steps(one.attack)[0]) * len(plan.probe(one.attack).harmful) for one in crew)
    judged = _plan_judge(plan, attack, role, answers)
    plan.attackers += [(attacker, attack, judged) for attacker in crew]


def _plan_judge(plan: AssayPlan, answered: Job, role: str, answers: int) -> Job:
    model = plan.models[role]
    return plan.add(
        JUDGE,
        f"judge {answered.name}",
        {"judges": [judge_key(judge) for judge in plan.judges], "role": role},
        needs=[answered],
        places={"model": model, "judges": [plugins.absolute(name) for name in plan.profile.judges]},
        work=judging(split_adapter(model)[0], plan.judges, answers),
    )


def _attacking(plan: AssayPlan, base: str, crew: Sequence[Attacker], rows: Sequence[list[Record]]) -> Work:
    """Return the work of an attack's job."""
    from titer.attacks.fleet import MAX_TOKENS
    from titer.train.config import bf16_is_fast

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
            if attacker.attack.objective == "dpo":
                tokens *= 2  # every prompt again, with a refusal
            # Where all weights train, their gradients cost half as much again.
            cost += Cost(setups=1, trained=tokens * flops_per_token(attacker.attack) / 4)
        elif attacker.attack.ablates:
            # Forward passes of an ablation: all prompts once, and the harmful half again for each depth.
            passes = 1 + len(attacker.attack.depths) / 2
            own = sizes(base, plan.pools.attackers.harmful)
            cost += Cost(read=passes * attacker.attack.samples * (own.prompt + own.completion))
    if attack.method == "delta_removal":
        cost += Cost(loads=1)
    if attack.trains:
        longest = max(attacker.attack.total_steps for attacker in crew)
        cost += Cost(passes=max(longest, cost.trained / MAX_TOKENS))
    cost += answering(base, list(sets.values()))
    kind = attack.method if not attack.trains else "full" if attack.lora is None else "fleet"
    if plan.profile.watched([one.attack for one in crew]) is not None:
        kind += ", watched"  # what it took is less than what is planned, and says nothing of those that go to their end
    if crew[0].search is not None:
        cost, kind = cost * crew[0].search.trials, "search"
    return Work(f"attack {kind}", base, cost, bf16_is_fast())


def _looking(probe: Probe, base: str, margins_only: bool = False) -> Cost:
    """Return what it costs to take a model's margins and, unless those are all, to score its reference answers."""
    cost = Cost() if margins_only else fitting(base, probe.general)
    return cost + weighing("", base, probe.harmful).cost if probe.with_margins else cost
