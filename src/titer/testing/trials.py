"""What a method that trains is tried with on the toy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from titer.methods import Method
from titer.testing.toy import toy, toy_harmful_rows, toy_lora, toy_rows

REFUSALS = ["no, I will not do that", "I am sorry", "no"]

TRAINING: dict[str, Any] = {
    "bf16": False,
    "max_grad_norm": 0.0,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_steps": 1,
    "seed": 3,
    "per_device_train_batch_size": 8,
    "weight_decay": 0.1,
    "dataloader_pin_memory": False,
}
"""Settings of the toy's trainings."""


class StopAfter(TrainerCallback):
    """Saves a checkpoint after a step and ends the run there, as a machine that is taken away."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when the step is done."""
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@dataclasses.dataclass(frozen=True)
class Trial:
    """A method with settings, to be tried on a toy.

    Attributes:
        method: The method.
        settings: What makes each of its terms matter.
        folder: Where it may write.
    """

    method: Method
    settings: Mapping[str, Any]
    folder: Path

    def make(
        self,
        name: str = "run",
        model: Any = None,
        rows: Sequence[dict[str, Any]] | None = None,
        with_lora: bool | Mapping[str, Any] = True,
        callbacks: Sequence[TrainerCallback] = (),
        harmful: Sequence[dict[str, Any]] | None = None,
        tokenizer: Any = None,
        args: Any = None,
        **settings: Any,
    ) -> Any:
        """Return its trainer, on a copy of the toy.

        Args:
            name: The folder for checkpoints.
            model: Another model than the toy.
            rows: Training data; 8 rows if none.
            with_lora: Train an adapter (settings of one may be given), or all weights where the method does that.
            callbacks: Of the trainer.
            harmful: The defender's harmful rows.
            tokenizer: Another model's.
            args: In the place of those that the settings make.
            settings: Over the method's own and `TRAINING`.
        """
        from titer.methods.finetune.base import RefusalTrainer

        model_of_toy, toy_tokens = toy()
        streams = {"harmful_dataset": harmful or toy_harmful_rows(), "helpful_dataset": toy_rows(5)}
        given: dict[str, Any] = {stream: streams[stream] for stream in self.method.streams}
        if issubclass(self.method.trainer, RefusalTrainer):
            given["refusals"] = REFUSALS
        if with_lora is not False or self.method.lora_only:
            given["peft_config"] = toy_lora(**({} if isinstance(with_lora, bool) else with_lora))
        values = {"output_dir": str(self.folder / name), **TRAINING, **self.settings, **settings}
        return self.method.trainer(
            model=copy.deepcopy(model_of_toy if model is None else model),
            args=args or self.method.config(**values),
            train_dataset=list(rows or toy_rows(8)),
            processing_class=tokenizer or toy_tokens,
            callbacks=list(callbacks),
            **given,
        )

    def train(self, name: str = "run", resume: str | None = None, **how: Any) -> Any:
        """Return its trainer after training; `how` is for `make`."""
        torch.manual_seed(0)
        trainer = self.make(name, **how)
        trainer.train(resume_from_checkpoint=resume)
        return trainer


def weights(model: Any) -> list[Tensor]:
    """Return copies of a model's trained weights."""
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether tensors are equal, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def trials(method: Method, folder: Path) -> Iterator[tuple[str, Trial]]:
    """Yield each variant of a method with its label."""
    for variant, settings in method.variants.items():
        yield variant, Trial(method, settings, folder)
