"""The trainer that every method of titer extends: `trl.SFTTrainer` on packed rows.

What a user of TRL has (datasets, LoRA configuration, logging, checkpoints, DDP, FSDP2) stays as it is. What changes:
rows are packed without padding, logits are computed only where a token is supervised, prompts are never trained on,
text from users cannot become control tokens, and a sample that cannot be trained on is an error instead of being
dropped. Nothing else of titer touches the private names of TRL and transformers.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import trl
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerCallback

from titer.data.records import Record
from titer.errors import RanAway, TiterError
from titer.files import put_whole, writing
from titer.models import Template, prepare_tokenizer, refuse_nonfinite
from titer.packing.batches import PackedBatch, Sample
from titer.packing.layouts import Layout, bare_model, check_length, is_noisy, layout_for, say_once
from titer.packing.losses import branch_nll, token_nll
from titer.packing.streams import Pool, draw
from titer.progress import Task
from titer.ranges import check_settings
from titer.train.gradients import reshard, sharded_like, trainable_parameters, whole

IGNORE = -100

UNFINISHED = ".unfinished"
"""In the output folder: where a checkpoint is written until it is whole."""

CARRIED_FILE = "carried.safetensors"
"""In a checkpoint: the tensors that a method carries from step to step."""

USE_FSDP2 = "Use FSDP2 or DDP: `accelerate launch --config_file $(titer accelerate fsdp2) SCRIPT`."
"""The hint for ways of sharding that do not work."""


def bf16_is_fast() -> bool:
    """Say whether this machine multiplies bfloat16 matrices faster than float32 ones.

    True on accelerators that know bfloat16 and on CPUs with AVX-512 BF16 or AMX. Other CPUs emulate bfloat16 and take
    several times as long.
    """
    if torch.accelerator.is_available():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass
class PackedSFTConfig(trl.SFTConfig):
    """Settings of supervised fine-tuning on packed rows; every method's settings extend these.

    The training recipe is that of the released code of Booster and Antibody (arXiv 2409.01586, 2603.00498): AdamW,
    learning rate 5e-4, weight decay 0.1, a constant schedule, 20 epochs in batches of 10, at most 256 tokens.

    Args:
        bf16: Autocast to bfloat16; chosen by `bf16_is_fast` when not given.
        gradient_checkpointing: Recompute activations instead of keeping them. Off: titer's rows are short.
        share_prefix: Compute the tokens that all prompts of a batch begin with once. Changes no result.
        logging_nan_inf_filter: Off: a loss that is no number stops the training, and none is made up for the log.
    """

    learning_rate: float = field(default=5e-4, metadata={"help": "The learning rate of AdamW."})
    weight_decay: float = field(default=0.1, metadata={"help": "The weight decay of AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "How the learning rate changes over steps."})
    num_train_epochs: float = field(default=20.0, metadata={"help": "Passes over the training data."})
    per_device_train_batch_size: int = field(default=10, metadata={"help": "Samples of a micro-batch."})
    max_length: int | None = field(default=256, metadata={"help": "Longest prompt with its completion, in tokens."})
    bf16: bool | None = field(default=None, metadata={"help": "Autocast to bfloat16; by default where it is fast."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    share_prefix: bool = field(
        default=True, metadata={"help": "Compute the tokens that all prompts of a batch begin with once."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log the mean of earlier losses in the place of one that is no number."}
    )

    def __post_init__(self) -> None:
        check_settings(self)
        for item in fields(self):
            if item.type in (bool, "bool", "bool | None") and getattr(self, item.name) not in (True, False, None):
                raise TiterError(f"`{item.name}` must be true or false, found `{getattr(self, item.name)}`.")
        _check_reporters(self.report_to)
        if self.fp16:
            raise TiterError(
                "fp16 loses the small differences of gradients that these methods live on.",
                "Use bf16=True, or neither for float32.",
            )
        if self.deepspeed is not None:
            raise TiterError(
                "DeepSpeed shards gradients where they cannot be read between backward passes.",
                USE_FSDP2,
            )
        for name in ("packing", "eval_packing", "padding_free", "assistant_only_loss", "use_liger_kernel"):
            if getattr(self, name):
                raise TiterError(
                    f"`{name}` does not go with titer's own packing, which already trains without padding and on "
                    "completions only.",
                    f"Leave `{name}` off.",
                )
        if self.loss_type not in ("nll", "chunked_nll") or self.label_smoothing_factor:
            raise TiterError("titer trains with plain negative log-likelihood.", "Set loss_type='nll', no smoothing.")
        if self.completion_only_loss is False:
            raise TiterError(
                "titer never trains on prompts.", "Leave completion_only_loss off; prompts and completions are rows."
            )
        if self.truncation_mode != "keep_start":
            raise TiterError(
                f"truncation_mode `{self.truncation_mode}` would cut the beginning of prompts.",
                "Leave it at `keep_start`: completions are cut at max_length, and longer prompts are an error.",
            )
        if self.neftune_noise_alpha is not None:
            raise TiterError(
                "NEFTune adds noise to each forward pass, so differences of gradients would be noise too.",
                "Leave neftune_noise_alpha off.",
            )
        if isinstance(self.dataset_kwargs, dict) and self.dataset_kwargs.get("skip_prepare_dataset"):
            raise TiterError(
                "`skip_prepare_dataset` would skip titer's packing.",
                "Leave it off; rows with `input_ids` and `labels` are taken as they are.",
            )
        if self.bf16 is None:
            self.bf16 = bf16_is_fast()
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        super().__post_init__()
        # Gradients are read between backward passes, so each of them must be reduced over ranks at once.
        accumulation = self.accelerator_config.gradient_accumulation_kwargs or {}
        self.accelerator_config.gradient_accumulation_kwargs = {**accumulation, "sync_each_batch": True}

    @property
    def optimizer_batch_size(self) -> int:
        """Samples that one optimizer step sees, over all micro-batches and processes."""
        return int(self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size)


def _check_reporters(report_to: Any) -> None:
    """Raise for a service to report to that the library does not know, or whose package is not there."""
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    there = get_available_reporting_integrations()
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name not in ("none", "all", *there):
            raise TiterError(
                f"`report_to` names `{name}`, and no such package is installed.",
                f"Install it, or choose among none{''.join(f', {one}' for one in there)}.",
            )


@dataclass(frozen=True)
class Encoder:
    """Turns rows of conversations into columns of token ids.

    Args:
        template: Renders and encodes conversations.
        max_length: Longest prompt with its completion, in tokens; `None` for no limit but the model's.
        config: Of the model, where it is known.
    """

    template: Template
    max_length: int | None
    config: Any = None

    def pair(self, row: dict[str, Any], where: str) -> tuple[list[int], list[int]]:
        """Return the ids of a row's prompt and completion, the completion cut at `max_length`."""
        prompt, completion = self._whole(row, where)
        return prompt, self._cut(prompt, completion)

    def _whole(self, row: dict[str, Any], where: str) -> tuple[list[int], list[int]]:
        """Return the ids of a row's prompt and completion.

        Raises:
            TiterError: When the row has no prompt and completion, its prompt leaves no room for the completion, or it is
                longer than the model allows. A row that says `where` it was read is named by that too.
        """
        if isinstance(row.get("where"), str):
            where = f"{where} ({row['where']})"
        if row.get("input_ids") is not None:
            prompt, completion = self._tokenised_pair(row, where)
        else:
            prompt, completion = self.template.pair_ids(Record.from_row(row, where))
        if self.max_length is not None and len(prompt) >= self.max_length:
            raise TiterError(
                f"{where}: the prompt has {len(prompt)} tokens and max_length is {self.max_length}, so nothing of the "
                "completion would be trained on.",
                f"Shorten or remove the row, or set max_length above {len(prompt)}.",
            )
        if self.config is not None:
            check_length(self.config, len(prompt) + len(self._cut(prompt, completion)), where)
        return prompt, completion

    def _cut(self, prompt: list[int], completion: list[int]) -> list[int]:
        return completion if self.max_length is None else completion[: self.max_length - len(prompt)]

    def samples(self, rows: Sequence[dict[str, Any]], name: str) -> list[Sample]:
        """Return the rows of a dataset that is called `name`, each with its completion as its only branch."""
        return [Sample(prompt, [completion]) for prompt, completion in self.pairs(rows, name)]

    def pairs(self, rows: Sequence[dict[str, Any]], name: str) -> list[tuple[list[int], list[int]]]:
        """Return the ids of the prompt and the completion of each row of a dataset that is called `name`.

        Completions are cut at `max_length`; a line says how many.
        """
        pairs, longest = [], {}
        with Task(f"tokenised rows of {name}", len(rows)) as tokenised:
            for place, row in enumerate(rows):
                prompt, completion = self._whole(row, f"{name}[{place}]")
                pairs.append((prompt, self._cut(prompt, completion)))
                if len(pairs[-1][1]) < len(completion):
                    longest[row.get("where") or f"row {place}"] = len(prompt) + len(completion)
                tokenised.advance()
        if longest:
            most = max(longest, key=longest.__getitem__)
            about = f"{len(longest)} of {len(rows)} rows of {name}"
            say_once(
                "%s are longer than max_length, and trained on up to there: %d tokens, and %s has %d.",
                about, self.max_length, most, longest[most],
            )  # fmt: skip
        return pairs

    def _tokenised_pair(self, row: dict[str, Any], where: str) -> tuple[list[int], list[int]]:
        """Split a row that is tokenised already where its supervised tokens begin."""
        ids, labels = list(row["input_ids"]), row.get("labels")
        if labels is None and row.get("completion_mask") is not None:
            labels = [token if on else IGNORE for token, on in zip(ids, row["completion_mask"])]
        if labels is None:
            raise TiterError(f"{where}: tokenised rows need `labels` or `completion_mask` beside `input_ids`.")
        start = next((place for place, label in enumerate(labels) if label != IGNORE), len(ids))
        if start in (0, len(ids)) or IGNORE in labels[start:]:
            raise TiterError(
                f"{where}: the supervised tokens of a tokenised row must be its tail, after at least one prompt token.",
                "Pass prompts and completions as text, or label exactly the completion.",
            )
        return ids[:start], ids[start:]


def as_rows(dataset: Dataset | Iterable[Any], name: str) -> list[dict[str, Any]]:
    """Return the rows of a dataset: one of the `datasets` library, a list of records, or a list of dictionaries."""
    if isinstance(dataset, (str, bytes)) or not isinstance(dataset, (Dataset, Sequence)):
        raise TiterError(
            f"{name} must be a `datasets.Dataset` or a list of rows, not {type(dataset).__name__}.",
            "Streams are merged row by row, so an iterable dataset must be materialised first.",
        )
    rows = [row.to_row() if isinstance(row, Record) else dict(row) for row in dataset]
    if not rows:
        raise TiterError(f"{name} is empty.")
    return rows


@dataclass
class PackCollator:
    """Lays out the samples of a micro-batch, one batch for the training stream and one for each stream tied to it.

    Columns named `STREAM_prompt_ids` and `STREAM_completion_ids` belong to the stream `STREAM`; those without a
    stream are the training samples. A column `continuation_ids` holds a second completion of each training prompt,
    and `row` the number of each training sample in its dataset.

    Args:
        share_prefix: Compute the tokens that all prompts of a batch begin with once.
        layout: How the model wants its rows.
    """

    share_prefix: bool = True
    layout: Layout = field(default_factory=Layout)

    def __call__(self, rows: list[dict[str, Any]]) -> PackedBatch:
        """Return the batch of training samples, with each further stream as a nested batch under its name."""
        batch: PackedBatch = {"row": torch.tensor([row["row"] for row in rows])}
        for column in rows[0]:
            if not column.endswith("prompt_ids"):
                continue
            stream = column.removesuffix("prompt_ids")
            samples = [Sample(row[column], [row[f"{stream}completion_ids"]]) for row in rows]
            laid_out = self.lay_out(samples)
            if stream:
                batch[stream.removesuffix("_")] = laid_out
                continue
            batch |= laid_out
            if "continuation_ids" in rows[0]:
                continuations = [row["continuation_ids"] for row in rows]
                batch["continuation"] = self.layout.continue_from(samples, continuations, self.share_prefix)
        return batch

    def lay_out(self, samples: Sequence[Sample]) -> PackedBatch:
        """Lay samples out as the forward pass takes them."""
        return self.layout.lay_out(samples, self.share_prefix)


class StepState(TrainerCallback, ExportableState):
    """Numbers that a method carries from step to step; saved in checkpoints, so that resuming is exact."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """Return what the trainer writes into `trainer_state.json`."""
        return {"args": {}, "attributes": {"values": self.values}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the numbers of the checkpoint that training resumes from."""
        # By default the library saves the state of callbacks but does not restore it.
        saved = state.stateful_callbacks.get(type(self).__name__)
        if saved is not None:
            self.values = dict(saved["attributes"]["values"])


class PackedSFTTrainer(trl.SFTTrainer):
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
        if not isinstance(args, PackedSFTConfig):
            raise TiterError(
                f"`args` must be a titer config, not {type(args).__name__}.",
                f"Use the config of `{type(self).__name__}`, which takes the same settings as `trl.SFTConfig`.",
            )
        for name in ("data_collator", "formatting_func", "compute_loss_func"):
            if kwargs.get(name) is not None:
                raise TiterError(f"`{name}` would bypass titer's packing.", "Pass conversations as rows instead.")
        if kwargs.get("compute_metrics") is not None:
            raise TiterError(
                "`compute_metrics` wants padded rows of logits, which titer does not compute.",
                "Leave it off: `evaluate()` reports the loss, and `titer evaluate` scores answers.",
            )
        if train_dataset is None:
            raise TiterError("`train_dataset` is missing.")
        self._config = getattr(model, "config", None)
        self.args = args  # `streams` wants the settings before `Trainer.__init__` has set them
        self.micro_batches: list[PackedBatch] = []
        self.micro_batch = 0
        self.carried: dict[str, list[Tensor]] = {}
        self.during_step = ExitStack()
        self._step_loss: Tensor | float = 0.0
        self._saving = False
        self._drawn: dict[str, list[PackedBatch]] = {}
        self._pairs: list[tuple[Sequence[int], Sequence[int]]] = []  # every row that the model is to run
        super().__init__(
            model=model,
            args=args,
            data_collator=PackCollator(args.share_prefix),
            train_dataset=Dataset.from_list(as_rows(train_dataset, "train_dataset")),
            eval_dataset=_eval_datasets(eval_dataset),
            processing_class=processing_class,
            peft_config=peft_config,
            **kwargs,
        )
        self._refuse_sharding_that_fails()
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.mixed_precision_policy is not None:
            from torch.distributed.fsdp import MixedPrecisionPolicy

            # accelerate would round to bfloat16 also what the model returns, losses among it, and sums of gradients.
            policy = MixedPrecisionPolicy(param_dtype=self.compute_dtype, reduce_dtype=torch.float32)
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = policy
        self.model_accepts_loss_kwargs = True
        trainable = self.trainable.values()
        if not trainable:
            raise TiterError(
                "The model has no trainable weights.", "Load the adapter as trainable, or pass `peft_config`."
            )
        if any(parameter.dtype == torch.float16 for parameter in trainable):
            raise TiterError(
                "Trainable weights are in float16, where small steps and differences of gradients over- or underflow.",
                "Load the model in float32 or bfloat16, or train an adapter in float32.",
            )
        self.find_layout()
        self.add_callback(StepState())

    @property
    def step_state(self) -> StepState:
        """The numbers that this method carries from step to step."""
        # Looked up each time, because the library may replace callbacks when it resumes.
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, StepState))

    def _refuse_sharding_that_fails(self) -> None:
        """Raise for ways to spread the model over processes in which titer would train something else, or save nothing."""
        if self.is_deepspeed_enabled:
            raise TiterError("DeepSpeed is not supported.", USE_FSDP2)
        if not self.is_fsdp_enabled:
            if os.environ.get("ACCELERATE_USE_FSDP") == "true" and self.accelerator.num_processes > 1:
                raise TiterError(
                    "accelerate was asked to shard the model with FSDP, and does not do so on this kind of machine.",
                    "FSDP2 needs accelerators; on CPUs use DDP (`titer accelerate cpu-ddp`).",
                )
            return
        from torch.distributed.fsdp import CPUOffloadPolicy

        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise TiterError("FSDP1 flattens weights, so that titer cannot tell them apart.", USE_FSDP2)
        if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
            raise TiterError(
                f"With the state dict type {plugin.state_dict_type} `save_model` would write no weights at all.",
                "Set fsdp_state_dict_type to FULL_STATE_DICT.",
            )
        if plugin.cpu_ram_efficient_loading:
            raise TiterError(
                "With fsdp_cpu_ram_efficient_loading only one process has the model's weights while the trainer is made, "
                "and all of them look at the model then.",
                "Set fsdp_cpu_ram_efficient_loading to false.",
            )
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            raise TiterError(
                "fsdp_offload_params keeps gradients on another device than losses.",
                "Set fsdp_offload_params to false.",
            )
        parallel = self.accelerator.parallelism_config
        if parallel is not None and parallel.non_data_parallel_size > 1:
            raise TiterError(
                "Tensor, context and sequence parallelism give several processes the same rows.",
                "Use FSDP2, with or without replicas (`titer accelerate fsdp2-hsdp`).",
            )

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

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row that the model is to run."""
        return max(len(prompt) + len(completion) for prompt, completion in self._pairs)

    @property
    def _recomputes_activations(self) -> bool:
        by_fsdp = self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.activation_checkpointing
        by_model = getattr(self.bare_model, "is_gradient_checkpointing", False)
        return bool(self.args.gradient_checkpointing or by_model or by_fsdp)

    def find_layout(self, tokens: int | None = None) -> None:
        """Lay rows out as the model computes them rightly; asked again when datasets with longer rows come.

        Args:
            tokens: Most tokens of a packed row, where it holds more than a micro-batch.
        """
        layout = layout_for(self.model, self._pairs, self.args.per_device_train_batch_size, tokens)
        if self._recomputes_activations:
            layout = replace(layout, cached=False)  # no keys and values are left behind
        self.layout = self.data_collator.layout = layout

    # -- data ---------------------------------------------------------------------------------------------------------

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

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: Any, formatting_func: Any, dataset_name: str
    ) -> Dataset:
        if isinstance(dataset, Dataset) and "prompt_ids" in dataset.column_names:
            return dataset  # as `evaluate` does when it goes through several datasets
        training = not hasattr(self, "template")  # TRL prepares the training data first
        self.template = Template(prepare_tokenizer(processing_class))
        encoder = Encoder(self.template, args.max_length, self._config)
        rows = as_rows(dataset, f"{dataset_name}_dataset")
        pairs = encoder.pairs(rows, f"{dataset_name}_dataset")
        columns: dict[str, list[Any]] = {
            "prompt_ids": [prompt for prompt, _ in pairs],
            "completion_ids": [completion for _, completion in pairs],
            "row": list(range(len(rows))),
        }
        if training:
            columns |= self.streams(rows, encoder)
            self._pools = self.pools(encoder)
            for pool in self._pools:
                self._pairs += [
                    (s.prompt, branch) for samples in pool.values() for s in samples for branch in s.branches
                ]
        for name in columns:
            if name.endswith("prompt_ids"):
                self._pairs += zip(columns[name], columns[name.replace("prompt", "completion")], strict=True)
        if "continuation_ids" in columns:
            self._pairs += zip(columns["prompt_ids"], columns["continuation_ids"], strict=True)
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

    @property
    def draw_number(self) -> int:
        """How often was drawn from the pools before this optimizer step: at each step, unless a method draws less."""
        return int(self.state.global_step)

    def drawn_rows(self, stream: str, number: int) -> list[int]:
        """Return which rows of its pool a stream takes at its `number`-th draw, over all micro-batches and ranks.

        There are as many as a full optimizer batch has, also where the training rows of an epoch do not fill the last.
        """
        which, pool = next((which, pool) for which, pool in enumerate(self._pools) if stream in pool)
        size = self.args.optimizer_batch_size
        return draw(len(pool[stream]), number * size, size, (self.args.seed, which))

    def stream_batches(self, stream: str) -> list[PackedBatch]:
        """Return this rank's micro-batches of a stream at this optimizer step.

        A stream of a pool has `gradient_accumulation_steps` micro-batches of `per_device_train_batch_size` samples at
        every step; one that is tied to the training rows has a sample for each of them.
        """
        pool = next((pool for pool in self._pools if stream in pool), None)
        if pool is None:
            return [batch[stream] for batch in self.micro_batches]
        if stream not in self._drawn:
            rows = self.drawn_rows(stream, self.draw_number)
            size, ranks = self.args.per_device_train_batch_size, self.args.world_size
            starts = range(self.args.process_index * size, len(rows), ranks * size)
            self._drawn[stream] = [
                self._prepare_inputs(
                    self.data_collator.lay_out([pool[stream][row] for row in rows[start : start + size]])
                )
                for start in starts
            ]
        return self._drawn[stream]

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
            if self.stops_when_it_diverges:
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
        if not self.stops_when_it_diverges or math.isfinite(value):
            return
        names = [name for name in ("alpha", "rho") if hasattr(self.args, name)]
        # Before the first update, the learning rate has changed nothing.
        names = ["learning_rate", *names] if self.state.global_step else names
        causes = [f"{name}={getattr(self.args, name):g}" for name in names] or ["the weights that it began with"]
        causes += ["bf16"] * bool(self.args.bf16)
        remedies = [f"Make {' or '.join(names)} smaller" if names else "Begin with other weights"]
        remedies += ["set bf16=false"] * bool(self.args.bf16)
        raise RanAway(
            f"The training ran away: at step {self.state.global_step + 1} its {what} is {value}. The likely cause is "
            f"{' or '.join(causes)}.",
            f"{', or '.join(remedies)}.",
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, whose trained weights must be finite."""
        if self.stops_when_it_diverges:
            try:
                refuse_nonfinite("The model to be saved", self.trainable.items())
            except TiterError as error:
                raise RanAway(error.message, error.hint) from None
        super().save_model(output_dir, _internal_call)

    def before_step(self, model: Any) -> None:
        """Do what must precede the training loss of an optimizer step; may leave gradients in `.grad`."""

    def after_step(self, model: Any) -> None:
        """Change `.grad`, which now holds the whole gradient of the optimizer step, before it is clipped."""

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

    def stream_backward(self, model: Any, stream: str, factor: float = 1.0) -> float:
        """Add `factor` times the gradient of a stream's mean token loss over the optimizer batch to `.grad`.

        Returns:
            The mean token loss, in nats, over all ranks.
        """
        mean = torch.zeros((), device=self.args.device)
        for share in self._stream_shares(model, stream):
            self.accelerator.backward(factor * self.accelerator.num_processes * share)  # DDP takes the mean over ranks
            mean += share.detach()
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

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate; the loss is the mean over all supervised tokens, however they are split into batches and ranks."""
        # By row, with the number of ranks that had it: they fill up their last batch with rows that others have too.
        self._evaluated = torch.zeros(3, len(dataloader.dataset), device=self.args.device)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        nll, tokens, ranks = self.total(self._evaluated).cpu().double()
        loss = (nll / ranks.clamp_min(1)).sum() / (tokens / ranks.clamp_min(1)).sum()
        output.metrics[f"{metric_key_prefix}_loss"] = loss.item()
        return output

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Note the summed loss and the tokens of each row of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            nll, _ = token_nll(model, inputs)
        sums, tokens = branch_nll(nll, inputs["branch"], len(inputs["row"]))
        self._evaluated[:, inputs["row"]] = torch.stack((sums, tokens, torch.ones_like(sums))).to(self._evaluated)
        return nll.mean(), None, None

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        tensors = {}
        for name, kept in self.carried.items():
            for place, tensor in enumerate(kept):
                gathered = whole(tensor)  # all ranks take part
                if self.args.should_save:
                    tensors[f"{name}.{place}"] = gathered.cpu().contiguous()
        if tensors:
            save_file(tensors, Path(output_dir) / CARRIED_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        file = None if checkpoint is None else Path(checkpoint) / CARRIED_FILE
        if file is not None and file.is_file():
            tensors = load_file(file)
            names = dict.fromkeys(key.rpartition(".")[0] for key in tensors)
            weights = list(self.trainable.values())
            self.carried = {
                name: [sharded_like(tensors[f"{name}.{place}"], weight) for place, weight in enumerate(weights)]
                for name in names
            }

    def _get_output_dir(self, trial: Any) -> str:
        folder = Path(super()._get_output_dir(trial))
        return str(folder / UNFINISHED if self._saving else folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, which appears under its name when all processes have written all of it."""
        folder, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        with writing(folder / name):
            self._write_checkpoint(model, trial, folder, name)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(folder / name))
        if self.args.should_save:
            self._rotate(folder / name)

    def _write_checkpoint(self, model: Any, trial: Any, folder: Path, name: str) -> None:
        part = folder / UNFINISHED / name
        if self.args.should_save:
            shutil.rmtree(part.parent, ignore_errors=True)  # what broke off before
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        if self.state.best_model_checkpoint == str(part):
            self.state.best_model_checkpoint = str(folder / name)
            if self.args.should_save:
                self.state.save_to_json(str(part / TRAINER_STATE_NAME))
        # Machines with a disk of their own have their own part of it.
        for mine in (self.args.process_index == 0, self.args.local_process_index == 0):
            self.accelerator.wait_for_everyone()
            if mine and part.is_dir():
                put_whole(part, folder / name)
                part.parent.rmdir()
        self.accelerator.wait_for_everyone()

    def _rotate(self, newest: Path) -> None:
        """Remove the checkpoints beyond `save_total_limit`, the earliest steps first: those before go when this is there.

        The library goes by the files' dates, and would remove the newest each time once a clock has jumped back.
        """
        best = self.state.best_model_checkpoint
        kept = {newest} | ({Path(best)} if best else set())
        others = sorted(
            (path for path in newest.parent.glob("checkpoint-*") if path not in kept),
            key=lambda path: int(path.name.rpartition("-")[2]),
        )
        if self.args.save_total_limit:
            for path in others[: max(0, len(others) + len(kept) - self.args.save_total_limit)]:
                shutil.rmtree(path, ignore_errors=True)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Resumed from its very last checkpoint; the library would take another step before it looks.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Wait: what is pushed is pushed from where it stays."""

    # -- what methods use ---------------------------------------------------------------------------------------------

    def total(self, value: Tensor) -> Tensor:
        """Add a tensor over all ranks."""
        return self.accelerator.reduce(value.clone(), reduction="sum")

    def record(self, **metrics: float) -> None:
        """Note metrics of this step; they are averaged and logged with the loss."""
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def refuse_noise(self, why: str) -> None:
        """Raise when two passes over one batch differ by random numbers: dropout, dropped layers, jitter, …"""
        with Task("looking for noise"):
            noisy = is_noisy(self.model, self.layout, self._pairs)
        if not noisy:
            return
        suspects = [
            name
            for name, module in self.model.named_modules()
            if getattr(module, "p", 0) and "Drop" in type(module).__name__
        ]
        settings = self.bare_model.config.get_text_config().to_dict()
        suspects += [
            name
            for name, value in settings.items()
            if isinstance(value, float)
            and value > 0
            and any(word in name for word in ("drop", "jitter", "noise", "pdrop"))
        ]
        where = f" (`{suspects[0]}` may be why)" if suspects else ""
        raise TiterError(
            f"Dropout or other noise is on{where}: two passes of {type(self.bare_model).__name__} over the same rows differ, "
            f"{why}",
            "Set lora_dropout=0 and, in the model's config, every dropout, layerdrop and jitter to 0.",
        )


def _eval_datasets(datasets: Any) -> Any:
    """Return an evaluation dataset, or several by name, as TRL takes them."""
    if datasets is None:
        return None
    if isinstance(datasets, Mapping):
        return {name: Dataset.from_list(as_rows(rows, f"eval_dataset[{name!r}]")) for name, rows in datasets.items()}
    return Dataset.from_list(as_rows(datasets, "eval_dataset"))
