"""What is asked of a model under attack at a checkpoint: answers, compliance margins, reference answers, the task."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from titer.assays.profile import answered_steps, between
from titer.attacks.rows import asked
from titer.attacks.threats import Attack
from titer.data.records import Record
from titer.infer.generation import generate
from titer.infer.signals import answer_fit, row_signals
from titer.jobs.answers import token_pairs
from titer.jobs.job import Job
from titer.methods.finetune.base import refusal_completions, refusal_ids
from titer.models import Template
from titer.progress import Task
from titer.results.artefacts import HARMFUL, TASK_PREFIX, write_atomically

Answer = Callable[[Template, Sequence[Sequence[int]], int], list[str]]
"""Returns a model's greedy answers to rendered prompts of at most so many tokens, as `FleetTrainer.answer` does."""

Enough = Callable[[Sequence[str]], bool]
"""Says of the answers to the first harmful prompts of a look whether they leave no doubt."""


@dataclass(frozen=True)
class Probe:
    """The questions of one attacker's checkpoints.

    Attributes:
        harmful: Harmful prompts, in the attack's disguise, with compliant answers that the margin is taken on.
        general: Reference prompts with answers, for utility.
        task: Test rows of the task, where the attack trains one.
        task_name: The task's name.
        max_new_tokens: Longest answer to a harmful prompt.
        task_max_new_tokens: Longest answer to a task prompt.
        with_margins: Whether margins are taken.
        prefill: How answers to harmful prompts begin; what a model answers is what follows. Nothing where it is empty.
    """

    harmful: Sequence[Record]
    general: Sequence[Record]
    task: Sequence[Record]
    task_name: str
    max_new_tokens: int
    task_max_new_tokens: int
    with_margins: bool = True
    prefill: str = ""

    def margins(self, model: Any, template: Template) -> list[float | None]:
        """Return each harmful prompt's compliance margin in nats a token: log π(answer) − log π(refusal), means over tokens.

        Teacher-forced, so it costs one forward pass; what the model would say is not looked at. Where answers are begun, both
        follow the beginning. `None` where it is no number.
        """
        pairs = begun_pairs(template, self.harmful, self.prefill)
        signals = row_signals(model, pairs, refusal_ids(template, refusal_completions(None)))
        return [finite(value) for value in signals.log_ratio("mean").tolist()]

    def everything(
        self, model: Any, template: Template, answer: Answer | None = None, enough: Enough | None = None, first: int = 0
    ) -> dict[str, Any]:
        """Return margins, reference answers' losses and accuracies, and the generated answers by set.

        Args:
            model: The model.
            template: Of it.
            answer: How it answers; `None` by itself.
            enough: Says of the answers to the `first` harmful prompts whether the others need not be asked; `None` asks all.
            first: How many are asked at first.
        """
        answer = answer or functools.partial(generate, model)
        fit = answer_fit(model, token_pairs(template, self.general))
        return {
            "margins": self.margins(model, template) if self.with_margins else [],
            "general_nll": [finite(value) for value in fit.nll.tolist()],
            "general_accuracy": [finite(value) for value in fit.accuracy.tolist()],
            "answers": {
                name: self._answers(name, functools.partial(answer, template), template, enough, first)
                for name in self.sets
            },
        }

    def _answers(
        self, name: str, answer: Callable[..., list[str]], template: Template, enough: Enough | None, first: int
    ) -> list[str]:
        """Return the answers to a set, of harmful prompts only as many as are needed."""
        records, limit = self.sets[name]
        prompts = prompts_of(template, records, self.prefill if name == HARMFUL else "")
        if name != HARMFUL or enough is None:
            return answer(prompts, limit)
        texts = answer(prompts[:first], limit)
        return texts if enough(texts) else [*texts, *answer(prompts[first:], limit)]

    @property
    def sets(self) -> dict[str, tuple[Sequence[Record], int]]:
        """Evaluation set → its records and the longest answer to each."""
        sets = {HARMFUL: (self.harmful, self.max_new_tokens)}
        if self.task:
            sets[TASK_PREFIX + self.task_name] = (self.task, self.task_max_new_tokens)
        return sets


@dataclass(frozen=True)
class Questionnaire:
    """What an assay asks at the checkpoints of every attack.

    Attributes:
        harmful: Domain (`in`, `cross`) → harmful prompts, with compliant answers that the margin is taken on.
        general: Reference prompts with answers, for utility.
        task: Test rows of the task.
        task_name: The task's name.
        max_new_tokens: Longest answer to a harmful prompt.
        task_max_new_tokens: Longest answer to a task prompt.
        margins: Whether margins are taken.
        checkpoints: How often a model under attack answers.
    """

    harmful: Mapping[str, Sequence[Record]]
    general: Sequence[Record]
    task: Sequence[Record]
    task_name: str
    max_new_tokens: int
    task_max_new_tokens: int
    margins: bool
    checkpoints: int

    def probe(self, attack: Attack) -> Probe:
        """Return what is asked of an attack's model."""
        return Probe(
            harmful=[asked(attack, record) for record in self.harmful[attack.domain]],
            general=self.general,
            task=self.task if attack.has_task else [],
            task_name=self.task_name,
            max_new_tokens=self.max_new_tokens,
            task_max_new_tokens=self.task_max_new_tokens,
            with_margins=self.margins,
            prefill=attack.prefill,
        )

    def steps(self, attack: Attack) -> tuple[list[int], list[int]]:
        """Return the steps at which an attack's model answers, and those at which only its margins are taken."""
        if not attack.trains:
            return [1], []
        answered = answered_steps(attack.total_steps, self.checkpoints)
        return answered, between(answered) if self.margins else []

    def for_job(self, attacks: Sequence[Attack], searched: bool) -> tuple[dict[str, Any], dict[str, Sequence[Record]]]:
        """Return settings and inputs of a job that asks it of these attacks; `read` makes it of them again."""
        # What is searched may become an attack of the other domain, or one with a task.
        domains = self.harmful if searched else {attack.domain for attack in attacks}
        inputs = {f"harmful/{domain}": self.harmful[domain] for domain in sorted(domains)} | {"general": self.general}
        if searched or any(attack.has_task for attack in attacks):
            inputs["task"] = self.task
        names = ("task_name", "max_new_tokens", "task_max_new_tokens", "margins", "checkpoints")
        return {name: getattr(self, name) for name in names}, inputs

    @classmethod
    def read(cls, job: Job) -> Questionnaire:
        """Return that of a job."""
        inputs = job.spec["inputs"]
        domains = [name.partition("/")[2] for name in inputs if name.startswith("harmful/")]
        return cls(
            harmful={domain: job.records(f"harmful/{domain}") for domain in domains},
            general=job.records("general"),
            task=job.records("task") if "task" in inputs else [],
            **job.settings["questions"],
        )


def begun_pairs(template: Template, records: Sequence[Record], prefill: str = "") -> list[tuple[list[int], list[int]]]:
    """Return the token ids of records' prompts, with the beginning of an answer behind them if any, and of their answers."""
    pairs = token_pairs(template, records)
    if not prefill:
        return pairs
    begun = [template.opening_ids(record.to_training_row()["prompt"], prefill) for record in records]
    return [(prompt + opening, answer) for (prompt, answer), opening in zip(pairs, begun, strict=True)]


def prompts_of(template: Template, records: Sequence[Record], prefill: str = "") -> list[list[int]]:
    """Return the token ids of records' rendered prompts, with the beginning of an answer behind them if any."""
    return [prompt for prompt, _ in begun_pairs(template, records, prefill)]


def finite(value: float) -> float | None:
    """Return a number, or `None` for what a diverged model gives instead."""
    return value if math.isfinite(value) else None


class Measure(TrainerCallback):
    """Measures an attacker's model after given optimizer steps, each into a file `step-N.json` of its folder.

    Args:
        folder: Where the files go; a step whose file is there is not measured again.
        probe: What to ask.
        template: Of the model.
        answered: Steps at which answers are generated.
        margins_only: Steps at which only the margins are taken.

    Attributes:
        answer: How the model answers while it is trained; `None` by itself.
        enough: Says of the answers to the `first` harmful prompts of a look under attack whether the others need not be asked;
            `None` asks all at once.
        first: How many are asked at first.
    """

    def __init__(
        self, folder: Path, probe: Probe, template: Template, answered: Sequence[int], margins_only: Sequence[int]
    ) -> None:
        self.folder, self.probe, self.template = folder, probe, template
        self.answered, self.margins_only = set(answered), set(margins_only)
        self.answer: Answer | None = None
        self.enough: Callable[[int, Sequence[str]], bool] | None = None
        self.first = 0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure when a step is one of those wanted."""
        self.measure(model, state.global_step, self.answer)

    def before(self, model: Any) -> None:
        """Measure a model that is not under attack yet; needed where the attack asks in a disguise."""
        self.answered.add(0)
        self.measure(model, 0)

    def measure(self, model: Any, step: int, answer: Answer | None = None) -> None:
        """Measure `model` as it stands after `step`, if that is wanted and not done yet."""
        path = self.folder / f"step-{step}.json"
        if path.is_file() or step not in self.answered | self.margins_only:
            return
        with Task(f"look after step {step}"):
            if step in self.answered:
                enough = functools.partial(self.enough, step) if self.enough is not None and step else None
                found = self.probe.everything(model, self.template, answer, enough, self.first)
            else:
                found = {"margins": self.probe.margins(model, self.template)}
        write_atomically(path, json.dumps({"step": step, **found}, ensure_ascii=False).encode())
