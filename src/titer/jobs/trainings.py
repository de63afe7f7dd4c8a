"""Jobs that train an adapter: align, fine-tune and repairs that train, each from files to files.

A training does its work inside a folder of its own and leaves it complete or resumable. Nothing here decides what to run.
"""

from __future__ import annotations

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
from transformers import Conv1D, PrinterCallback, TrainerCallback

from titer import methods
from titer.data.records import Record
from titer.errors import RanAway, TiterError, check_known
from titer.files import put_whole, read_json, remove, writing
from titer.infer.serving import Serving, read_serving, refuse_routed, write_serving
from titer.jobs.base_model import check_base, fresh_model, own_trained
from titer.jobs.job import Job, Kind
from titer.jobs.routers import FOUND, leave, settle
from titer.methods import Method, blaming
from titer.methods.finetune.base import WEIGHT_LOG
from titer.models import (
    Template,
    adapter_weights,
    check_folder,
    load_tokenizer,
    order_adapter_config,
    record_bits,
    refuse_nonfinite,
    refuse_quantised,
    refuse_strays,
)
from titer.plugins import source_digest
from titer.progress import Task
from titer.ranges import check_lora
from titer.results.artefacts import write_atomically
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer
from titer.train.validation import Validation

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
    from peft import get_peft_model_state_dict, load_peft_weights

    own = get_peft_model_state_dict(model)
    refuse_nonfinite(f"The adapter for `{folder}`", own.items())
    scratch = folder.with_name(f".{folder.name}.part")
    with writing(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        model.save_pretrained(scratch)
        order_adapter_config(scratch)
        record_bits(model, scratch)
        written = load_peft_weights(str(scratch), device="cpu")
        refuse_strays(f"The adapter in `{scratch}`", own.keys() - written.keys(), written.keys() - own.keys())
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        put_whole(scratch, folder)


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
    validation: Sequence[Record] = (),
) -> PackedSFTTrainer:
    """Make the trainer of a method; `lora` holds the settings of a new adapter, `None` where the model has one.

    `validation` are rows that the loss is measured on beside those that teach (`titer.train.validation`).
    """
    trainer = method.trainer(
        model=model,
        args=args,
        train_dataset=[placed_row(record) for record in records],
        eval_dataset=[placed_row(record) for record in validation] or None,
        processing_class=tokenizer,
        peft_config=None if lora is None else lora_config(lora),
        callbacks=callbacks,
        **{name: [_stream_row(record) for record in streams[name]] for name in method.streams},
    )
    trainer.remove_callback(PrinterCallback)  # the progress display says what a user wants to know
    if validation:
        trainer.add_callback(Validation(trainer))
    return trainer


def serving_of(method: Method, args: PackedSFTConfig, model_name: str) -> Serving | None:
    """Return what a serving control's model is asked with; `None` of other methods.

    Raises:
        TiterError: Where the model's chat template has no place for it.
    """
    if method.serving is None:
        return None
    template = Template(load_tokenizer(model_name))
    serving = method.serving(args, template)
    template.check_system(serving.system)
    return serving


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
    aligned: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    validation: Sequence[Record] = (),
) -> None:
    """Train an adapter with `method` and save it in `folder/adapter`, with the model's tokenizer.

    Of a serving control, `folder/serving.json` says what the adapter is served with; so it does of a repair, whose tuned adapter
    was served with something. A served guard leaves its router too (`titer.jobs.routers`).

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
        aligned: The adapter before its user's fine-tuning, on which a served guard finds settings.
        callbacks: Who else follows the training; they must not change it.
        validation: Rows that the loss is measured on too, and that teach nothing (`titer.train.validation`).

    Raises:
        TiterError: When `folder` holds another training, the adapter does not fit, or the training runs away.
        OSError: For a disk that is full, read-only or gone (`titer.files.DiskError`).
    """
    own = Path(args.output_dir)
    start = None if adapter is None else adapter_weights(adapter).read_bytes()
    how = source_digest(method.trainer, method.config)
    inputs: tuple[Any, ...] = (how, args.to_json_string(), model_name, start, lora, records, streams)
    if method.routed is not None and aligned is not None:
        inputs += (adapter_weights(aligned).read_bytes(),)
    if validation:
        inputs += (validation,)
    key = hashlib.sha256(repr(inputs).encode()).hexdigest()
    if _finished(folder, own, key):
        shutil.rmtree(own, ignore_errors=True)  # it may have been stopped in the middle of this
        return
    method.check(args, len(records))
    # Before anything is written, for they may not fit.
    serving = serving_of(method, args, model_name)
    if method.own_rows is not None and adapter is not None:
        refuse_routed(adapter, "a repair")
        serving = read_serving(adapter)
    if method.routed is not None:
        refuse_quantised(model_name, "the tuned adapter is merged into its weights")
        if adapter is None:
            raise TiterError(
                "A router chooses between two adapters, and no tuned one is given.", "Name the tuned adapter."
            )
        settle(method.routed, args, model_name, aligned, adapter, streams, folder, key)
    model = fresh_model(model_name, adapter, True, lora if adapter is None else None)
    if adapter is None:
        check_targets(model, lora_config(lora))
    write_atomically(folder / INPUTS, key.encode())
    write_serving(folder, serving)
    if method.routed is None:
        remove(folder / FOUND)  # of one that never came to a checkpoint
    steps = Task("step")
    trainer = make_trainer(
        method,
        args,
        model,
        load_tokenizer(model_name),
        None if adapter is not None else lora,
        records,
        streams,
        [ReportSteps(steps), SaveAdapters(folder, checkpoints), *callbacks],
        validation,
    )
    own_trained(trainer.model)
    try:
        with steps:
            trainer.train(resume_from_checkpoint=last_checkpoint(own))
    except RanAway:
        # From its checkpoints it would do so again; they would only be in the way of other settings.
        shutil.rmtree(own, ignore_errors=True)
        raise
    check_base()
    # The library's last line sums up the steps since it was last started, with their times. Keys that come out of a
    # checkpoint are in order.
    history = [line for line in trainer.state.log_history if "train_runtime" not in line]
    lines = [json.dumps(_without_nan(line), sort_keys=True) + "\n" for line in history]
    write_atomically(folder / "log.jsonl", "".join(lines).encode())
    for log in own.glob(f"{WEIGHT_LOG}*"):
        # Copied: whoever goes on from a checkpoint, for want of an adapter, goes on with the log too.
        write_atomically(folder / log.name, log.read_bytes())
    # The tokenizer goes with the adapter, so that a server renders conversations as they were trained on.
    if method.routed is None or adapter is None:
        save_adapter(trainer.model, folder / "adapter", trainer.processing_class)
    else:
        leave(method.routed, args, trainer.model, model_name, adapter, streams, folder, trainer.processing_class)
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


def _train(job: Job) -> None:
    settings = job.settings
    method = methods.find(settings["stage"], job.places["method"])
    folder = str(job.folder / "checkpoints")
    train(
        method,
        methods.settings(method, settings["training"], settings["stage"], folder, settings["seed"]),
        job.places["model"],
        job.needs[0].folder / settings.get("adapter", "adapter") if job.needs else None,
        settings["lora"] or {},
        job.records("records"),
        {name: job.records(name) for name in method.streams},
        job.folder,
        settings["checkpoints"],
        job.needs[1].folder / "adapter" if len(job.needs) > 1 else None,
    )


ALIGN = Kind("align", "titer.jobs.trainings:ALIGN", _train)
FINETUNE = Kind("finetune", "titer.jobs.trainings:FINETUNE", _train, version=4)
REPAIR = Kind("repair", "titer.jobs.trainings:REPAIR", _train)
