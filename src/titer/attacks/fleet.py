"""Many LoRA attackers on one frozen base: each its own trainer, all of them one pass through the base a step.

Every attacker is an ordinary trainer with its own adapter, data, learning rate, schedule, optimizer, seed, length,
checkpoints and log. Only its forward and backward pass is not its own: when all attackers of the fleet have a batch
ready, their packed rows are laid end to end (padded ones below each other), the batch runs through the frozen weights
once, and each attacker's tokens meet its own adapter on the way (`StackedLoRA`). So it is with the prompts that attackers
answer at their checkpoints.
Nothing else is shared, so an attacker of a fleet learns what it would have learnt alone, up to the rounding of a matrix
product of another size; one that diverges, or fails for want of memory or disk, takes nobody with it.

Trainers are loops, and a fleet has to stop each of them in the middle of a step. They therefore run as coroutines, of which
only one moves at a time, each with its own stream of random numbers (`Coroutine`).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from titer.attacks.coroutine import Coroutine, random_state
from titer.attacks.failures import blame
from titer.compat import adapted_layers, plain_lora, unbind_forward
from titer.errors import TiterError
from titer.infer.generation import generate
from titer.infer.stacked import Seating, StackedLoRA, shared_copy
from titer.models import Template
from titer.packing.batches import PackedBatch, is_padded, join
from titer.packing.casts import cast_once
from titer.packing.layouts import inherit_layout
from titer.packing.losses import token_nll
from titer.train.trainer import PackedSFTTrainer

MAX_TOKENS = 4096
"""Most tokens of one pass through the base; more attackers than fit go through in several passes."""


def stack(models: Sequence[Any]) -> tuple[Any, Seating]:
    """Return one model that computes for each attacker what its own model computes.

    Args:
        models: `shared_copy`s of one base, each with a LoRA adapter that PEFT put in.

    Returns:
        The model, and the seating to fill in before each forward pass.

    Raises:
        TiterError: For an adapter that is more than plain LoRA without dropout, or bases that do not share weights.
    """
    seating = Seating()
    base = shared_copy(models[0])
    unbind_forward(base)
    for name, module in [*adapted_layers(base)]:
        base.set_submodule(name, module.get_base_layer())
    shared = {id(parameter) for parameter in base.parameters()}
    for attacker, model in enumerate(models):
        for name, parameter in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                continue
            if parameter.requires_grad:
                raise TiterError(f"Attacker {attacker} trains more than LoRA adapters (`{name}`).", "Run it by itself.")
            if id(parameter) not in shared:
                raise TiterError(
                    "The attackers of a fleet must stand on the same weights.",
                    "Make each one's model with `shared_copy` of one base.",
                )
        for name, module in adapted_layers(model):
            adapter = plain_lora(module)
            if adapter is None:
                raise TiterError(
                    f"`{name}` has {type(module).__name__} with adapters {module.active_adapters}; "
                    "a fleet trains one plain LoRA adapter each.",
                    "Run attackers with other adapters one by one.",
                )
            target = base.get_submodule(name)
            if not isinstance(target, StackedLoRA):
                target = StackedLoRA(target, seating)
                base.set_submodule(name, target)
            target.adapters[attacker] = adapter
    return base, seating


class Step(NamedTuple):
    """What an attacker asks its fleet for: the loss and the gradients of a batch.

    Attributes:
        batch: The packed batch.
        loss: From the batch's token losses, `(N,)`, to what is minimised.
    """

    batch: PackedBatch
    loss: Callable[[Tensor], Tensor]


class Question(NamedTuple):
    """What an attacker asks its fleet for: greedy answers of its model as it stands.

    Attributes:
        prompts: Token ids of rendered prompts.
        max_new_tokens: Most tokens of an answer.
        template: Of the model.
    """

    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    template: Template


class FleetTrainer(PackedSFTTrainer):
    """Supervised fine-tuning that lets a fleet do its forward and backward passes; alone it is `PackedSFTTrainer`.

    One whose loss is no number goes on (`titer.attacks.failures`): what it did before counts.
    """

    stops_when_it_diverges = False
    coroutine: Coroutine | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Kept, because other attackers draw random numbers before the fleet starts; alone, it would go on from here.
        self.randomness = random_state()

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Ask the fleet for the loss and the gradients of a batch."""
        if self.coroutine is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        loss: Tensor = self.coroutine.ask(self.step(self._prepare_inputs(inputs), num_items_in_batch))
        return loss

    def step(self, inputs: PackedBatch, num_items_in_batch: Any) -> Step:
        """Return what a batch is run for: the mean token loss."""
        tokens = float(inputs["targets"].numel() if num_items_in_batch is None else num_items_in_batch)
        return Step(inputs, lambda nll: nll.sum() / nll.new_tensor(tokens))

    def answer(self, template: Template, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        """Return the greedy answers of the model as it stands, decoded with those that others of the fleet ask for.

        Args:
            template: Of the model.
            prompts: Token ids of rendered prompts.
            max_new_tokens: Most tokens of an answer.
        """
        if self.coroutine is None:
            return generate(self.model, template, prompts, max_new_tokens)
        answers: list[str] = self.coroutine.ask(Question(prompts, max_new_tokens, template))
        return answers


class Fleet:
    """Trains attackers together, each exactly as it would train alone.

    Args:
        trainers: The attackers, their models on `shared_copy`s of one base.
        max_tokens: Most tokens in one pass through the base.

    Raises:
        TiterError: For attackers that cannot share a pass.
    """

    def __init__(self, trainers: Sequence[FleetTrainer], max_tokens: int = MAX_TOKENS) -> None:
        if not trainers:
            raise TiterError("A fleet needs at least one attacker.")
        for place, trainer in enumerate(trainers):
            if trainer.args.gradient_accumulation_steps != 1:
                raise TiterError(
                    f"Attacker {place} accumulates gradients over {trainer.args.gradient_accumulation_steps} batches; "
                    "a fleet already takes its passes apart by `max_tokens`.",
                    "Set gradient_accumulation_steps=1 and a larger per_device_train_batch_size.",
                )
            trainer.refuse_noise("and the attackers of a fleet cannot draw masks of their own.")
            if trainer.accelerator.num_processes > 1:
                raise TiterError("A fleet runs in one process.", "Start it without `accelerate launch`.")
        if len({bool(trainer.args.bf16) for trainer in trainers}) > 1:
            raise TiterError("Some attackers of the fleet use bf16 and others do not.", "Set it alike for all.")
        self.trainers = list(trainers)
        self.max_tokens = max_tokens
        # Alone, an attacker's rows were tried in its own batches; here they share longer ones. Once is enough for all.
        lead = max(trainers, key=lambda trainer: trainer.longest_row)
        lead.find_layout(tokens=max_tokens)
        for trainer in trainers:
            inherit_layout(trainer.bare_model, lead.bare_model)
            trainer.find_layout(tokens=max_tokens)
        # The trainers have set their models up for the layout; a copy of one is, too.
        self.model, self.seating = stack([trainer.bare_model for trainer in trainers])

    def train(self, resume_from: Sequence[str | None] | None = None) -> list[BaseException | None]:
        """Train every attacker to its end.

        Args:
            resume_from: For each attacker the checkpoint to go on from, or `None`.

        Returns:
            For each attacker what it failed with, by the machine's or its own fault; `None` when it did not fail.

        Raises:
            BaseException: Any other error of an attacker (`titer.attacks.failures`). The others stop where they are, and
                go on from their checkpoints when they are resumed.
        """
        checkpoints = resume_from or [None] * len(self.trainers)
        for trainer, checkpoint in zip(self.trainers, checkpoints, strict=True):
            training = functools.partial(trainer.train, resume_from_checkpoint=checkpoint)
            trainer.coroutine = Coroutine(training, trainer.randomness)
        crew = [trainer.coroutine for trainer in self.trainers if trainer.coroutine is not None]
        try:
            with cast_once(self.model):
                waiting = [place for place, attacker in enumerate(crew) if attacker.resume()]
                while waiting:
                    replies = self._serve({place: crew[place].request for place in waiting})
                    waiting = [place for place in waiting if place not in replies or crew[place].resume(replies[place])]
            return [attacker.error for attacker in crew]
        finally:
            for trainer, attacker in zip(self.trainers, crew, strict=True):
                attacker.stop()
                trainer.coroutine = None

    @classmethod
    def run(
        cls, trainers: Sequence[FleetTrainer], resume_from: Sequence[str | None], max_tokens: int = MAX_TOKENS
    ) -> list[BaseException | None]:
        """Train attackers together, or a single one as it is; returns and raises as `train`.

        A single one need not be a LoRA attacker.
        """
        if len(trainers) > 1:
            return cls(trainers, max_tokens).train(resume_from)
        for trainer, checkpoint in zip(trainers, resume_from, strict=True):
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            except Exception as error:
                if blame(error) is None:
                    raise
                return [error]
        return [None] * len(trainers)

    def autocast(self) -> Any:
        """Return a context in which the base computes in the attackers' precision.

        Alone, accelerate puts it around the forward method of an attacker's own model; the fleet's model has none.
        """
        return self.trainers[0].accelerator.autocast()

    def _serve(self, requests: dict[int, Step | Question]) -> dict[int, Any]:
        """Return what attackers ask for; those who want a step wait until all questions are answered.

        So one that has nothing to ask does not run ahead, and its next steps are shared with the others again.
        """
        questions = {place: request for place, request in requests.items() if isinstance(request, Question)}
        if questions:
            return self._answer(questions)
        return self._step({place: request for place, request in requests.items() if isinstance(request, Step)})

    def _answer(self, questions: dict[int, Question]) -> dict[int, list[str]]:
        """Decode the answers to all prompts with the same limit together."""
        alike = defaultdict(list)
        for place, question in questions.items():
            alike[question.max_new_tokens].append(place)
        answers: dict[int, list[str]] = {}
        for limit, places in alike.items():
            owners = [place for place in places for _ in questions[place].prompts]
            prompts = [prompt for place in places for prompt in questions[place].prompts]
            with self.autocast():
                texts = generate(
                    self.model,
                    questions[places[0]].template,
                    prompts,
                    limit,
                    owners=owners,
                    place=self.seating.by_row,
                )
            for place in places:
                answers[place] = [text for owner, text in zip(owners, texts, strict=True) if owner == place]
        return answers

    def _step(self, steps: dict[int, Step]) -> dict[int, Tensor]:
        """Run every attacker's batch forward and backward, as many in one pass as fit."""
        losses: dict[int, Tensor] = {}
        crew: list[int] = []
        tokens = 0
        for place, step in steps.items():
            length = step.batch["input_ids"].numel()
            if crew and tokens + length > self.max_tokens:
                losses |= self._pass({place: steps[place] for place in crew})
                crew, tokens = [], 0
            crew.append(place)
            tokens += length
        return losses | self._pass({place: steps[place] for place in crew})

    def _pass(self, steps: dict[int, Step]) -> dict[int, Tensor]:
        """Run batches as one; leaves each one's gradient in its attacker's own parameters."""
        batches = [step.batch for step in steps.values()]
        if is_padded(batches[0]):
            self.seating.by_row([place for place, step in steps.items() for _ in step.batch["input_ids"]])
        else:
            self.seating.side_by_side([(place, step.batch["input_ids"].shape[1]) for place, step in steps.items()])
        with self.autocast():
            nll, _ = token_nll(self.model, join(batches))
            parts = nll.split([batch["targets"].numel() for batch in batches])
            losses = torch.stack([step.loss(part) for step, part in zip(steps.values(), parts, strict=True)])
        # The losses of all attackers at once: the gradient of each reaches its own adapter only.
        losses.backward(torch.ones_like(losses))
        return dict(zip(steps, losses.detach().clone(), strict=True))
