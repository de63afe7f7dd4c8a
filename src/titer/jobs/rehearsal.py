"""The first step of a training, with a toy in the place of the model.

Much of what libraries refuse they refuse late: when a trainer is made, or an optimizer whose package is not there. Which
settings these are is for the libraries to know, so nothing here lists them: the training that is meant is begun on two of its
rows and a toy, and what fails there would have failed after the real model was loaded, or after hours of other stages.
"""

from __future__ import annotations

import copy
import functools
import gc
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback

from titer import methods
from titer.attacks.coroutine import random_state, restore_random_state
from titer.attacks.fleet import Fleet, stack
from titer.attacks.rows import training_row
from titer.attacks.threats import Attack
from titer.attacks.trainer import AttackTrainer, attack_settings, optimizer_of
from titer.data.records import Record
from titer.errors import TiterError
from titer.infer.stacked import shared_copy
from titer.jobs import trainings
from titer.jobs.provenance import digest
from titer.jobs.work import empty_model
from titer.methods import Method, Repair
from titer.methods.repair.inputs import encoded
from titer.models import Template, load_config, load_tokenizer
from titer.train.rows import Encoder

ROWS = 2
STREAM_ROWS = 5
"""Fewer a detector cannot be fitted on."""
LORA = "lora."


class OneStep(TrainerCallback):
    """Ends a training after its first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the end."""
        control.should_training_stop = True


def toy(tokenizer: Any, layers: int = 2) -> LlamaForCausalLM:
    """Return a small random model for a tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def rehearse(
    method: Method,
    values: dict[str, Any],
    where: str | Mapping[str, str],
    model_name: str,
    lora: dict[str, Any] | None,
    records: Sequence[Record],
    streams: Mapping[str, Sequence[Record]],
) -> None:
    """Begin a training on a toy model.

    The rows are all laid out as for the real one; the toy takes a step on two of them.

    Args:
        method: How to train.
        values: Its settings.
        where: Where they stand, as of `titer.methods.settings`.
        model_name: The model, whose tokenizer is taken, and whose modules an adapter must fit.
        lora: Settings of a new adapter; `None` where the training goes on with one that fits.
        records: The training data.
        streams: Further data, as of `titer.jobs.trainings.train`.

    Raises:
        TiterError: For settings with which the training could not begin, which it names, and rows that do not fit them.
    """
    if lora is not None:
        adapted(model_name, lora, "lora")
    lora = lora or {}
    called = {name: methods.place(where, name) for name in values} | {f"{LORA}{name}": f"{LORA}{name}" for name in lora}
    args = methods.settings(method, values, where, "unused", 0)
    limit = args.max_length
    for name, rows in {"train_dataset": records, **{name: streams[name] for name in method.streams}}.items():
        read = (model_name, limit, digest(list(rows)))
        if read not in _done:

            def lay_out(tried: dict[str, Any], name: str = name, rows: Sequence[Record] = rows) -> None:
                longest = limit if "max_length" in tried or "max_length" not in values else None
                encoder = Encoder(Template(_tokenizer(model_name)), longest)
                encoder.samples([trainings.placed_row(record) for record in rows], name)

            methods.blaming(lay_out, {name: value for name, value in values.items() if name == "max_length"}, called)
            _done.add(read)
    # Of the toy's rows nothing but their kind counts, so seeds and arms with the same settings need one step.
    step = (method, digest([values, lora]), model_name)
    if step not in _done:
        # A method that holds a number of harmful prompts wants as many.
        count = max(STREAM_ROWS, getattr(args, "anchors", 0))
        own = {name: list(streams[name])[:count] for name in method.streams}
        # Rows that ask what the defender's harmful rows do not come first: some methods train on no others.
        asked = {record.prompt_key for record in own.get("harmful_dataset", ())}
        first = sorted(records, key=lambda record: record.prompt_key in asked)[:ROWS]
        begin = functools.partial(_begin, method, model_name, first, own)
        try:
            methods.blaming(begin, values | {f"{LORA}{name}": value for name, value in lora.items()}, called)
        except TiterError:
            raise
        except Exception:
            return  # no setting's fault: the run meets it where its traceback is kept, and others go on
        _done.add(step)


def rehearse_repair(method: Repair, model_name: str, streams: Mapping[str, Sequence[Record]]) -> None:
    """Lay out the rows that a repair's tuned model is to run.

    Args:
        method: How to repair.
        model_name: The base model, whose tokenizer and config are taken.
        streams: The rows, by argument name.

    Raises:
        TiterError: For no rows, and for one that the model cannot run.
    """
    for name in method.streams:
        read = ("repair", model_name, digest(list(streams[name])))
        if read not in _done:
            encoded(streams[name], _tokenizer(model_name), load_config(model_name))
            _done.add(read)


@functools.lru_cache(maxsize=1)
def _tokenizer(model_name: str) -> Any:
    return load_tokenizer(model_name)


_done: set[tuple[Any, ...]] = set()
_adapted: dict[tuple[str, str], Any] = {}


def _begin(
    method: Method,
    model_name: str,
    records: Sequence[Record],
    streams: Mapping[str, Sequence[Record]],
    given: dict[str, Any],
) -> None:
    """Begin a training with settings, those of the adapter among them as `lora.r`."""
    values = {name: value for name, value in given.items() if not name.startswith(LORA)}
    lora = {name.removeprefix(LORA): value for name, value in given.items() if name.startswith(LORA)}
    with _aside(model_name) as (folder, tokenizer):
        quiet = {"report_to": "none", "disable_tqdm": True}
        args = method.config(output_dir=folder, **{**methods.defaults(), **values, **quiet})
        # Few rows, so that a step of a large batch takes no longer.
        args.per_device_train_batch_size = min(args.per_device_train_batch_size, ROWS)
        most = ROWS // args.per_device_train_batch_size
        args.gradient_accumulation_steps = min(args.gradient_accumulation_steps, most)
        args.dataloader_num_workers = min(args.dataloader_num_workers, 1)
        if hasattr(args, "min_perturbation"):
            args.min_perturbation = 0.0  # how much of a step survives rounding is a question to the real weights
        if hasattr(args, "reference_steps"):
            args.reference_steps = 1  # what fails before training fails at the first
        if hasattr(args, "l_max") and args.l_max is None:
            args.l_min, args.l_max = 0, 1  # found on the real model
        # A method that picks layers finds as many as the real model has.
        deep = {"layers": _depth(model_name)} if hasattr(args, "sampled_layers") or hasattr(args, "l_max") else {}
        # An adapter that adds something, as one does that was trained: some methods have nothing to do where none does.
        own = {"init_lora_weights": False, **_for_a_toy(lora)}
        trainer = trainings.make_trainer(
            method, args, toy(tokenizer, **deep), tokenizer, own, records, streams, [OneStep()]
        )
        trainer.stops_when_it_diverges = False  # type: ignore[misc]  # and so is this
        trainer.train()


def _depth(model_name: str) -> int:
    return int(empty_model(model_name).config.get_text_config().num_hidden_layers)


def rehearse_attack(attack: Attack, where: str, model_name: str, in_company: bool) -> None:
    """Begin an attack that trains an adapter, on a toy model; whatever else an attack has is checked when it is described.

    Args:
        attack: The attack.
        where: Where its adapter's settings stand (`attacks.harmful.lora`).
        model_name: The model, whose tokenizer is taken, and whose modules the adapter must fit.
        in_company: Whether it shares passes through the base with others.

    Raises:
        TiterError: For settings of the adapter with which the attack could not begin.
    """
    lora = attack.lora or {}
    key = (digest(lora), attack.optimizer, attack.objective, model_name, in_company)
    if key in _done:
        return
    model = adapted(model_name, lora, where)
    rows = [training_row(attack, Record.make("?", "OK"))] * ROWS

    def begin(tried: dict[str, Any]) -> None:
        with _aside(model_name) as (folder, tokenizer):
            model = toy(tokenizer).requires_grad_(False)
            trainers = [
                AttackTrainer(
                    model=shared_copy(model),
                    args=attack_settings(attack, folder, 0, 1),
                    train_dataset=rows,
                    processing_class=tokenizer,
                    peft_config=trainings.lora_config(_for_a_toy(tried)),
                    callbacks=[OneStep()],
                    optimizer_cls_and_kwargs=optimizer_of(attack),
                )
                for _ in range(2 if in_company else 1)
            ]
            for trainer in trainers:
                trainer.remove_callback(PrinterCallback)
            Fleet.run(trainers, [None for _ in trainers])

    methods.blaming(begin, lora, {name: f"{where}.{name}" for name in lora})
    if in_company:
        try:
            stack([model.base_model.model])
        except TiterError as error:
            raise TiterError(
                f"`{where}`: {error.message}", "Set `fleet: 1`, so that every attack runs by itself."
            ) from error
    _done.add(key)


def adapted(model_name: str, lora: dict[str, Any], where: str) -> Any:
    """Return a model without weights, from its config alone, with a new adapter; raise when the adapter does not fit it.

    Args:
        model_name: The model.
        lora: Settings of the adapter; how its weights begin is passed over, for some begin with the model's.
        where: Where they stand, for errors.
    """
    from peft import get_peft_model

    key = (model_name, digest(lora))
    if key in _adapted:
        return _adapted[key]

    def put_on(tried: dict[str, Any]) -> Any:
        return get_peft_model(copy.deepcopy(empty_model(model_name)), trainings.lora_config(tried))

    trainings.check_targets(empty_model(model_name), trainings.lora_config(lora, where), where)
    fixed = {name: value for name, value in lora.items() if name != "init_lora_weights"}
    _adapted[key] = methods.blaming(put_on, fixed, {name: f"{where}.{name}" for name in fixed})
    return _adapted[key]


_OF_MODULES = (
    "target_modules", "target_parameters", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "layer_replication", "rank_pattern", "alpha_pattern", "trainable_token_indices",
)  # fmt: skip
"""Settings of an adapter that name parts of the model."""


def _for_a_toy(lora: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in lora.items() if name not in _OF_MODULES}


@contextmanager
def _aside(model_name: str) -> Iterator[tuple[str, Any]]:
    """Yield a folder that goes again and a model's tokenizer; leave the generators of random numbers where they stood."""
    if not gc.get_freeze_count():
        gc.freeze()  # the library collects garbage after each training, and would look at a million objects of its own
    tokenizer, before, threads = _tokenizer(model_name), random_state(), torch.get_num_threads()
    looks = _looks(tokenizer)
    torch.set_num_threads(1)  # several threads wait for each other longer than a toy computes
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield folder, tokenizer
    finally:
        torch.set_num_threads(threads)
        restore_random_state(before)
        if _looks(tokenizer) != looks:
            _tokenizer.cache_clear()  # there are settings that change it


def _looks(tokenizer: Any) -> Any:
    return dict(tokenizer.special_tokens_map), tokenizer.chat_template, len(tokenizer)
