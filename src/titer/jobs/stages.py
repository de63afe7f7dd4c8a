"""What an experiment is made of: align, fine-tune, generate, each from files to files.

Every function here does its work inside a folder of its own and leaves it complete or resumable. Nothing here decides
what to run; see `titer.workflows.experiment`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import logging
import math
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D
from transformers.trainer_callback import PrinterCallback

from titer.data.records import Record
from titer.errors import RanAway, TiterError, check_known
from titer.files import put_whole, read_json, writing
from titer.infer.generation import generate
from titer.infer.signals import row_signals
from titer.methods import Method, blaming
from titer.methods.finetune.base import WEIGHT_LOG, refusal_completions, refusal_ids
from titer.models import (
    Template,
    adapter_weights,
    add_adapter,
    check_folder,
    load_config,
    load_model,
    load_tokenizer,
    refuse_nonfinite,
    refuse_nonfinite_logits,
    refuse_strays,
    split_adapter,
)
from titer.packing.layouts import check_length
from titer.plugins import source_digest
from titer.progress import Task
from titer.ranges import check_lora
from titer.results.artefacts import TASK_PREFIX, Inference, write_atomically
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

logger = logging.getLogger(__name__)

LORA_DEFAULTS: dict[str, Any] = {"r": 32, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj"]}
"""LoRA of the released code of Booster and Antibody (arXiv 2409.01586, 2603.00498)."""

INPUTS = "inputs.sha256"
"""In the folder of a training: a hash of its settings and data."""


class ReportSteps(TrainerCallback):
    """Counts a training's steps, with the last loss.

    Args:
        steps: The task that counts them; one without a total gets that of the training.
    """

    def __init__(self, steps: Task) -> None:
        self.steps = steps
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of how many there are, and of those before an interruption."""
        if self.steps.total is None:
            self.steps.total = state.max_steps
        self.steps.skip(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Remember the last loss."""
        if logs and "loss" in logs:
            self.note = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        self.steps.advance(note=self.note)


class SaveAdapters(TrainerCallback):
    """Saves the adapter after the given optimizer steps, each in a folder `step-N`."""

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        self.folder, self.steps = folder, set(steps)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Save when a step is one of those wanted."""
        if state.global_step in self.steps and state.is_world_process_zero:
            save_adapter(model, self.folder / f"step-{state.global_step}")


def save_adapter(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """Save a PEFT adapter, and a tokenizer with it; the folder appears only when it is complete.

    Raises:
        TiterError: When weights are not finite, or what was written is not what the adapter holds.
    """
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    own = get_peft_model_state_dict(model)
    refuse_nonfinite(f"The adapter for `{folder}`", own.items())
    scratch = folder.with_name(f".{folder.name}.part")
    with writing(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        model.save_pretrained(scratch)
        written = load_peft_weights(str(scratch), device="cpu")
        refuse_strays(f"The adapter in `{scratch}`", own.keys() - written.keys(), written.keys() - own.keys())
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        put_whole(scratch, folder)


@functools.lru_cache(maxsize=1)
def _base(name: str) -> Any:
    return load_model(name)


def fresh_model(name: str, adapter: Path | None, trainable: bool) -> Any:
    """Return a copy of a base model that may be changed freely, with `adapter` on it when one is given."""
    model = copy.deepcopy(_base(name))
    return model if adapter is None else add_adapter(model, adapter, trainable)


def lora_config(values: dict[str, Any], where: str = "lora") -> Any:
    """Build a LoRA configuration from a mapping; unknown keys, and values that it cannot take, are errors.

    Args:
        values: Its settings.
        where: Where they stand, for errors.
    """
    import dataclasses

    from peft import LoraConfig

    known = [field.name for field in dataclasses.fields(LoraConfig)]
    check_known(values, known, f"key in `{where}`", "titer settings lora")
    check_lora(values, where)

    def make(tried: dict[str, Any]) -> Any:
        return LoraConfig(**{"task_type": "CAUSAL_LM", "lora_dropout": 0.0, **LORA_DEFAULTS, **tried})

    return blaming(make, values, {name: f"{where}.{name}" for name in values})


def check_targets(model: Any, lora: Any, where: str = "lora") -> None:
    """Raise, with the names that there are, when a LoRA configuration names modules that a model does not have.

    Args:
        model: The model, on any device.
        lora: The configuration.
        where: Where its settings stand, for errors.
    """
    names = [name for name, _ in model.named_modules()]
    for setting in ("target_modules", "modules_to_save"):
        wanted = getattr(lora, setting)
        if wanted is None or wanted == "all-linear":
            continue
        if isinstance(wanted, str):
            try:
                missing = [] if any(re.fullmatch(wanted, name) for name in names) else [wanted]
            except re.error as error:
                raise TiterError(f"`{where}.{setting}` is no regular expression: `{wanted}`: {error}.") from error
        else:
            missing = [one for one in sorted(wanted) if not any(f".{name}".endswith(f".{one}") for name in names)]
        if missing:
            linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
            ends = dict.fromkeys(name.rpartition(".")[2] for name in linear)
            raise TiterError(
                f"`{where}.{setting}` names {', '.join(f'`{name}`' for name in missing)}, which the model does not have.",
                f"Its linear layers: {', '.join(f'`{name}`' for name in ends)}.",
            )


def make_trainer(
    method: Method,
    args: PackedSFTConfig,
    model: Any,
    tokenizer: Any,
    lora: dict[str, Any] | None,
    records: Sequence[Record],
    streams: Mapping[str, Sequence[Record]],
    callbacks: list[TrainerCallback],
) -> PackedSFTTrainer:
    """Make the trainer of a method; `lora` holds the settings of a new adapter, `None` where the model has one."""
    trainer = method.trainer(
        model=model,
        args=args,
        train_dataset=[placed_row(record) for record in records],
        processing_class=tokenizer,
        peft_config=None if lora is None else lora_config(lora),
        callbacks=callbacks,
        **{name: [_stream_row(record) for record in streams[name]] for name in method.streams},
    )
    trainer.remove_callback(PrinterCallback)  # the progress display says what a user wants to know
    return trainer


def train(
    method: Method,
    args: PackedSFTConfig,
    model_name: str,
    adapter: Path | None,
    lora: dict[str, Any],
    records: Sequence[Record],
    streams: Mapping[str, Sequence[Record]],
    folder: Path,
    checkpoints: Sequence[int] = (),
) -> None:
    """Train an adapter with `method` and save it in `folder/adapter`, with the model's tokenizer.

    An interrupted training goes on from its last checkpoint in `args.output_dir`, step for step as if it had not
    stopped, and one that is finished is not done again. A folder that holds another training, complete or not, is left
    alone.

    Args:
        method: How to train.
        args: Its settings.
        model_name: The base model.
        adapter: The adapter to go on with; a new one is made when `None`.
        lora: Settings of a new adapter.
        records: The training data.
        streams: Further data by argument name; a method takes those it wants.
        folder: Where the adapter goes.
        checkpoints: Optimizer steps after which to save the adapter too, as `folder/step-N`.

    Raises:
        TiterError: When `folder` holds another training, the adapter does not fit, or the training runs away.
        OSError: For a disk that is full, read-only or gone (`titer.files.DiskError`).
    """
    own = Path(args.output_dir)
    start = None if adapter is None else adapter_weights(adapter).read_bytes()
    how = source_digest(method.trainer, method.config)
    inputs = (how, args.to_json_string(), model_name, start, lora, records, streams)
    key = hashlib.sha256(repr(inputs).encode()).hexdigest()
    if _finished(folder, own, key):
        shutil.rmtree(own, ignore_errors=True)  # it may have been stopped in the middle of this
        return
    method.check(args, len(records))
    # Before anything is written, for it may not fit.
    model = fresh_model(model_name, adapter, trainable=True)
    if adapter is None:
        check_targets(model, lora_config(lora))
    write_atomically(folder / INPUTS, key.encode())
    steps = Task("step")
    trainer = make_trainer(
        method,
        args,
        model,
        load_tokenizer(model_name),
        None if adapter is not None else lora,
        records,
        streams,
        [ReportSteps(steps), SaveAdapters(folder, checkpoints)],
    )
    try:
        with steps:
            trainer.train(resume_from_checkpoint=last_checkpoint(own))
    except RanAway:
        # From its checkpoints it would do so again; they would only be in the way of other settings.
        shutil.rmtree(own, ignore_errors=True)
        raise
    # The library's last line sums up the steps since it was last started, with their times. Keys that come out of a
    # checkpoint are in order.
    history = [line for line in trainer.state.log_history if "train_runtime" not in line]
    lines = [json.dumps(_without_nan(line), sort_keys=True) + "\n" for line in history]
    write_atomically(folder / "log.jsonl", "".join(lines).encode())
    for log in own.glob(f"{WEIGHT_LOG}*"):
        # Copied: whoever goes on from a checkpoint, for want of an adapter, goes on with the log too.
        write_atomically(folder / log.name, log.read_bytes())
    # The tokenizer goes with the adapter, so that a server renders conversations as they were trained on.
    save_adapter(trainer.model, folder / "adapter", trainer.processing_class)
    shutil.rmtree(own, ignore_errors=True)


def _without_nan(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line of a log with null for what is no number, for which JSON has no word."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
    }


def _stream_row(record: Record) -> dict[str, Any]:
    """Return what a defence may see of a record that the defender holds, and where it was read, for errors."""
    return {**placed_row(record), "refusal": record.refusal}


def placed_row(record: Record) -> dict[str, Any]:
    """Return what a trainer may see of a record, and where it was read, for errors."""
    return {**record.to_training_row(), "where": record.where}


def _finished(folder: Path, checkpoints: Path, key: str) -> bool:
    """Say whether a training is finished, after making sure that what its folder holds belongs to it.

    A training that left no checkpoint, because it ran away or was stopped too soon, does not keep others from the folder.
    """
    marker, finished = folder / INPUTS, (folder / "adapter").exists()
    same = marker.is_file() and marker.read_bytes() == key.encode()
    if not same and (finished or last_checkpoint(checkpoints) is not None):
        what = "a finished training" if finished else "checkpoints of a training"
        raise TiterError(
            f"{folder} holds {what} with other settings or data.", "Choose another folder, or remove this one."
        )
    return finished


def last_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint; one that broke off, for want of disk or power, or was damaged, is none, whoever wrote it."""
    # titer's trainers put whole ones there; others write the trainer's state last.
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_whole(path.parent)]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    """Say whether a checkpoint's files have all of their ends; where one has not, a line says so."""
    try:
        read_json(checkpoint / "trainer_state.json")
        check_folder(checkpoint)
        for path in checkpoint.iterdir():
            # What torch saves is a zip, whose table of contents comes last.
            if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
                raise TiterError(f"{path} is damaged.")
    except TiterError as error:
        logger.warning("%s The training does not go on from there.", error.message)
        return False
    return True


def answer(model_name: str, adapter: Path | None, prompts: Sequence[tuple[Record, int]]) -> list[str]:
    """Return the greedy answers of a model to prompts.

    Args:
        model_name: The base model.
        adapter: The adapter on it.
        prompts: Records whose prompts to answer, each with the most tokens to generate.
    """
    template = Template(load_tokenizer(model_name))
    rendered = [template.prompt_ids(record.to_training_row()["prompt"]) for record, _ in prompts]
    _check_lengths(model_name, [record for record, _ in prompts], list(map(len, rendered)))
    model = fresh_model(model_name, adapter, trainable=False)
    if adapter is not None:
        # Merged, the adapter costs nothing per token.
        model = model.merge_and_unload()
    if prompts:
        refuse_nonfinite_logits(f"`{adapter or model_name}`", model, rendered[0])
    answers = [""] * len(prompts)
    with Task("answers", len(prompts)) as counted:
        for limit in sorted({limit for _, limit in prompts}):
            places = [place for place, (_, own) in enumerate(prompts) if own == limit]
            ids = [rendered[place] for place in places]
            for place, text in zip(places, generate(model, template, ids, limit, counted=counted), strict=True):
                answers[place] = text
    return answers


EvaluationSet = tuple[str, Sequence[Record], int]
"""Name of a set, its records, and the most tokens to generate for each."""


def as_inferences(
    sets: Sequence[EvaluationSet], texts: Sequence[str], group: dict[str, Any], model: str, weights: str | None
) -> list[Inference]:
    """Pair the answers to evaluation sets, in order, with what they answer.

    Args:
        sets: What was asked.
        texts: The answers, set by set.
        group: Arm, phase, step, poison ratio and seed.
        model: Which weights answered.
        weights: The hash of their files (`titer.jobs.plan.weights_digest`).
    """
    answers = iter(texts)
    return [
        Inference(
            **group,
            set=name,
            index=index,
            prompt=record.prompt_text,
            response=next(answers),
            reference=record.label if name.startswith(TASK_PREFIX) else None,
            model=model,
            generation={"max_new_tokens": limit, "do_sample": False},
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


def _check_lengths(model_name: str, records: Sequence[Record], lengths: Sequence[int]) -> None:
    """Raise for rows that a model cannot run, before its weights are loaded."""
    config = load_config(split_adapter(model_name)[0])
    for number, (record, tokens) in enumerate(zip(records, lengths, strict=True)):
        check_length(config, tokens, record.where or f"Row {number}")


def weigh(model_name: str, adapter: Path | None, records: Sequence[Record], ratio: str = "sum") -> list[float]:
    """Return each row's log π(answer) − log π(refusal) under a frozen model (arXiv 2603.00498), in nats."""
    template = Template(load_tokenizer(model_name))
    pairs = token_pairs(template, records)
    refusals = refusal_ids(template, refusal_completions(None))
    longest = max(map(len, refusals))
    _check_lengths(model_name, records, [len(prompt) + max(len(completion), longest) for prompt, completion in pairs])
    model = fresh_model(model_name, adapter, trainable=False)
    if adapter is not None:
        model = model.merge_and_unload()
    ratios = [float(value) for value in row_signals(model, pairs, refusals).log_ratio(ratio)]
    wrong = [row for row, value in enumerate(ratios) if not math.isfinite(value)]
    if wrong:
        raise TiterError(
            f"The likelihood ratio of {len(wrong)} of {len(ratios)} rows, row {wrong[0]} first, is not finite under "
            f"`{adapter or model_name}`.",
            "The model's weights ran away: train it again, or name another one.",
        )
    return ratios


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
