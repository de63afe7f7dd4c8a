"""The trainer that every method of titer extends: `trl.SFTTrainer` on packed rows.

What a user of TRL has (datasets, LoRA configuration, logging, checkpoints, DDP, FSDP2) stays as it is. What changes:
rows are packed without padding, logits are computed only where a token is supervised, prompts are never trained on,
text from users cannot become control tokens, and a sample that cannot be trained on is an error instead of being
dropped. Which private methods of the library it overrides or calls for that is listed in `titer.compat`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import Parameter

from titer.compat import trainer_state_name
from titer.models import Template, prepare_tokenizer
from titer.packing.alone import bare_model
from titer.packing.batches import PackedBatch
from titer.packing.layouts import layout_for
from titer.packing.losses import token_nll
from titer.packing.streams import Pool, draw
from titer.train.checkpoints import (
    Moments,
    StepState,
    appearing,
    load_carried,
    load_kept,
    remove_old,
    save_carried,
    save_kept,
)
from titer.train.checks import ran_away, refuse_arguments, refuse_noise, refuse_runaway_weights, refuse_untrainable
from titer.train.config import PackedSFTConfig
from titer.train.evaluation import EvaluatingTrainer
from titer.train.gradients import reshard, trainable_parameters
from titer.train.precision import restore_precision, trained_before
from titer.train.rows import Encoder, PackCollator, as_rows, eval_datasets, token_pairs
from titer.train.sharding import keep_sums_precise, recomputes_activations, refuse_sharding_that_fails

__all__ = ["PackedSFTConfig", "PackedSFTTrainer"]


class PackedSFTTrainer(EvaluatingTrainer):
    """Supervised fine-tuning on packed rows: minimises the mean token loss of completions given prompts.

    Takes the arguments of `trl.SFTTrainer`. A subclass adds a method by overriding `streams` (columns tied to the
    training rows), `pools` (rows of their own number), `before_step` (gradients that are wanted before the training
    loss's), `after_step` (what becomes of `.grad` once all micro-batches went backward) or `compute_loss`.

    Args:
        model: A causal language model, or its name.
        args: Settings.
        train_dataset: Conversational prompt–completion rows, `messages` rows or rows already tokenised.
        eval_dataset: Rows of the same kind.
        processing_class: The model's tokenizer.
        peft_config: LoRA configuration, for a model without an adapter.
        kwargs: Further arguments of `trl.SFTTrainer`.

    Attributes:
        micro_batches: Those of this optimizer step on this rank.
        micro_batch: Which of them goes through now.
        carried: What a method carries from step to step: by name, a tensor for each trained weight, saved in checkpoints.
        kept: Other tensors that it carries, by name, on the CPU and the same on all ranks, saved likewise.
        during_step: Is closed when an optimizer step ends, also by an error or Ctrl-C: for hooks and patches that span it.

    Raises:
        TiterError: For rows that cannot be trained on, settings that would change the method, and, while it trains, a
            loss that is no number.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft", "titer"]

    stops_when_it_diverges: ClassVar[bool] = True
    """Whether a loss or a weight that is not finite is an error; for an attacker it is a finding."""

    def __init__(
        self,
        model: Any,
        args: PackedSFTConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        refuse_arguments(type(self).__name__, {"args": args, "train_dataset": train_dataset, **kwargs})
        self._config = getattr(model, "config", None)
        self.args = args  # `streams` wants the settings before `Trainer.__init__` has set them
        self.micro_batches: list[PackedBatch] = []
        self.micro_batch = 0
        self.carried: dict[str, list[Tensor]] = {}
        self.kept: dict[str, Tensor] = {}
        self.during_step = ExitStack()
        self._step_loss: Tensor | float = 0.0
        self._checkpoints_go_to: str | None = None
        self._drawn: dict[str, list[PackedBatch]] = {}
        self._pairs: list[tuple[Sequence[int], Sequence[int]]] = []  # every row that the model is to run
        held = trained_before(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=PackCollator(args.share_prefix),
            train_dataset=Dataset.from_list(as_rows(train_dataset, "train_dataset")),
            eval_dataset=eval_datasets(eval_dataset),
            processing_class=processing_class,
            peft_config=peft_config,
            **kwargs,
        )
        restore_precision(self.model, held)
        refuse_sharding_that_fails(self)
        keep_sums_precise(self)
        self.model_accepts_loss_kwargs = True
        refuse_untrainable(self.trainable)
        self.find_layout()
        self.add_callback(StepState())
        self.add_callback(Moments(self))

    # -- hooks: what a method overrides -------------------------------------------------------------------------------

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Return the columns that a method wants beside the training samples, each as long as `rows`.

        Args:
            rows: The rows of the training dataset.
            encoder: Turns further rows into token ids.
        """
        return {}

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return the rows that a method draws from at every optimizer step, whatever the training rows are.

        Args:
            encoder: Turns rows into token ids.
        """
        return []

    @property
    def draw_number(self) -> int:
        """How often was drawn from the pools before this optimizer step: at each step, unless a method draws less."""
        return int(self.state.global_step)

    @property
    def rows_drawn(self) -> int:
        """How many rows of a pool each rank draws at an optimizer step: as a full batch has, unless a method says less."""
        return int(self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps)

    def rows_of(self, stream: str) -> int:
        """How many rows of a stream's pool each rank draws at an optimizer step: `rows_drawn`, unless a method tells them apart."""
        return self.rows_drawn

    def before_step(self, model: Any) -> None:
        """Do what must precede the training loss of an optimizer step; may leave gradients in `.grad`."""

    def after_step(self, model: Any) -> None:
        """Change `.grad`, which now holds the whole gradient of the optimizer step, before it is clipped."""

    def after_update(self, model: Any) -> None:
        """Move the weights once more, right after the optimizer's step; `.grad` still holds what it went by."""

    def after_training(self, model: Any) -> None:
        """Change the weights that training ends with, which stand in no checkpoint."""

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the summed token loss of a micro-batch over the supervised tokens of the whole optimizer batch."""
        nll, output = token_nll(model, inputs)
        tokens = nll.numel() if num_items_in_batch is None else num_items_in_batch
        loss = nll.sum() / tokens
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # `num_items_in_batch` counts all ranks' tokens, and DDP takes the mean over ranks.
            loss = loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    # -- what hooks use -----------------------------------------------------------------------------------------------

    @property
    def step_state(self) -> StepState:
        """The numbers that this method carries from step to step."""
        # Looked up each time, because the library may replace callbacks when it resumes.
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, StepState))

    @property
    def trainable(self) -> dict[str, Parameter]:
        """The weights that are trained, by name, as the model holds them now: sharding replaces them by others."""
        return trainable_parameters(self.model)

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """What forward passes round the weights to, where that is coarser than the weights may be; `None` where not."""
        return torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else None

    @property
    def bare_model(self) -> Any:
        """The model without the wrapper that PEFT puts around it; its adapted layers are inside."""
        return bare_model(self.model)

    def drawn_rows(self, stream: str, number: int) -> list[int]:
        """Return which rows of its pool a stream takes at its `number`-th draw: `rows_of` it for each rank, always."""
        which, pool = next((which, pool) for which, pool in enumerate(self._pools) if stream in pool)
        size = self.rows_of(stream) * self.args.world_size
        return draw(len(pool[stream]), number * size, size, (self.args.seed, which))

    def drawn_places(self, stream: str) -> list[range]:
        """Return which places of a draw (`drawn_rows`, of all ranks) each of this rank's micro-batches of a stream takes."""
        drawn, ranks = self.rows_of(stream), self.args.world_size
        size, rows = min(self.args.per_device_train_batch_size, drawn), drawn * ranks
        starts = range(self.args.process_index * size, rows, ranks * size)
        return [range(start, min(start + size, rows)) for start in starts]

    def stream_batches(self, stream: str) -> list[PackedBatch]:
        """Return this rank's micro-batches of a stream at this optimizer step.

        A stream of a pool has micro-batches of `per_device_train_batch_size` samples, one tied to the training rows a sample
        for each of them.
        """
        pool = next((pool for pool in self._pools if stream in pool), None)
        if pool is None:
            return [batch[stream] for batch in self.micro_batches]
        if stream not in self._drawn:
            rows = self.drawn_rows(stream, self.draw_number)
            self._drawn[stream] = [
                self._prepare_inputs(self.data_collator.lay_out([pool[stream][rows[place]] for place in places]))
                for places in self.drawn_places(stream)
            ]
        return self._drawn[stream]

    def stream_backward(self, model: Any, stream: str, factor: float = 1.0) -> float:
        """Add `factor` times the gradient of a stream's mean token loss to `.grad`; return that loss, in nats, over all ranks."""
        mean: Any = 0.0
        for share in self._stream_shares(model, stream):
            self.accelerator.backward(factor * self.accelerator.num_processes * share)  # DDP takes the mean over ranks
            mean = mean + share.detach()
        loss = self.total(mean).item()
        self._refuse_divergence(f"{stream} loss", loss)
        return loss

    @torch.no_grad()
    def stream_loss(self, model: Any, stream: str) -> float:
        """Return a stream's mean token loss over the optimizer batch, in nats, over all ranks."""
        mean = self.total(torch.stack([*self._stream_shares(model, stream)]).sum()).item()
        reshard(self.model)
        self._refuse_divergence(f"{stream} loss", mean)
        return mean

    def _stream_shares(self, model: Any, stream: str) -> Iterator[Tensor]:
        """Yield what each micro-batch of this rank adds to a stream's mean token loss over the optimizer batch."""
        batches = self.stream_batches(stream)
        tokens = self.total(torch.tensor(sum(batch["targets"].numel() for batch in batches), device=self.args.device))
        for batch in batches:
            with self.compute_loss_context_manager():
                nll, _ = token_nll(model, batch)
            yield nll.sum() / tokens

    def record(self, **metrics: float) -> None:
        """Note metrics of this step; they are averaged and logged with the loss."""
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def refuse_noise(self, why: str) -> None:
        """Raise when two passes over one batch differ by random numbers: dropout, dropped layers, jitter, …"""
        refuse_noise(self.model, self.layout, self._pairs, why)

    # -- rows and their layout ----------------------------------------------------------------------------------------

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row that the model is to run."""
        return max(len(prompt) + len(completion) for prompt, completion in self._pairs)

    def find_layout(self, tokens: int | None = None) -> None:
        """Lay rows out as the model computes them rightly; asked again when datasets with longer rows come.

        Args:
            tokens: Most tokens of a packed row, where it holds more than a micro-batch.
        """
        layout = layout_for(self.model, self._pairs, self.args.per_device_train_batch_size, tokens)
        if recomputes_activations(self):
            layout = replace(layout, cached=False)  # no keys and values are left behind
        self.layout = self.data_collator.layout = layout

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: Any, formatting_func: Any, dataset_name: str
    ) -> Dataset:
        if isinstance(dataset, Dataset) and "prompt_ids" in dataset.column_names:
            return dataset  # as `evaluate` does when it goes through several datasets
        training = not hasattr(self, "template")  # TRL prepares the training data first
        self.template = Template(prepare_tokenizer(processing_class))
        encoder = Encoder(self.template, args.max_length, self._config)
        rows = as_rows(dataset, f"{dataset_name}_dataset")
        columns = encoder.columns(rows, f"{dataset_name}_dataset")
        pools: list[Pool] = []
        if training:
            columns |= self.streams(rows, encoder)
            pools = self._pools = self.pools(encoder)
        self._pairs += token_pairs(columns, pools)
        if hasattr(self, "layout"):
            self.find_layout()
        return Dataset.from_dict(columns)

    def _set_signature_columns_if_needed(self) -> None:
        # Every column that `_prepare_dataset` made is wanted by the collator.
        self._signature_columns = self.train_dataset.column_names

    # -- the optimizer step -------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Collect the micro-batches of one optimizer step, and remember them for `before_step`."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.micro_batches, self.micro_batch, self._drawn = batches, 0, {}
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run one micro-batch; the first of an optimizer step runs `before_step`, the last runs `after_step`."""
        try:
            if self.micro_batch == 0:
                model.train()
                self.micro_batches = [self._prepare_inputs(batch) for batch in self.micro_batches]
                self.before_step(model)
                self._step_loss = 0.0
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.micro_batch += 1
            self._step_loss += loss
            if self.micro_batch == len(self.micro_batches):
                if self.stops_when_it_diverges:
                    # Read once a step, as logging does, and of all ranks, which then stop together.
                    self._refuse_divergence("loss", self.total(torch.as_tensor(self._step_loss)).item())
                self.after_step(model)
                self.during_step.close()
        except BaseException:
            self.during_step.close()
            raise
        return loss

    def _refuse_divergence(self, what: str, value: float) -> None:
        """Raise, with the likely cause, when a loss is no finite number."""
        if self.stops_when_it_diverges and not math.isfinite(value):
            raise ran_away(self.args, self.state.global_step, what, value)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Resumed from its very last checkpoint; the library would take another step before it looks.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, whose trained weights must be finite."""
        if self.stops_when_it_diverges:
            refuse_runaway_weights(self.trainable)
        super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_carried(self.carried, output_dir, self.args.should_save)
        save_kept(self.kept, output_dir, self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self.carried = load_carried(checkpoint, list(self.trainable.values())) or self.carried
        self.kept = load_kept(checkpoint) or self.kept

    def _get_output_dir(self, trial: Any) -> str:
        return self._checkpoints_go_to or str(Path(super()._get_output_dir(trial)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoint = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with appearing(checkpoint, self.args, self.accelerator.wait_for_everyone) as part:
            self._checkpoints_go_to = str(part.parent)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._checkpoints_go_to = None
            if self.state.best_model_checkpoint == str(part):
                self.state.best_model_checkpoint = str(checkpoint)
                if self.args.should_save:
                    self.state.save_to_json(str(part / trainer_state_name()))
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            remove_old(checkpoint, self.state.best_model_checkpoint, self.args.save_total_limit)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Wait: what is pushed is pushed from where it stays."""
