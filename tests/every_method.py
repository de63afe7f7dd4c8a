"""Every method of the table, with settings and streams that make each of its terms matter on the tiny model."""

import copy

from rows import row
from training import config, lora

from titer import methods
from titer.finetune.base import RefusalTrainer

REFUSALS = ["no, I will not do that", "I am sorry", "no"]


DECLARED = {
    f"{stage} {name} {variant}".strip(): (method, settings)
    for stage, name, method in methods.every()
    for variant, settings in method.variants.items()
}
EVERY = list(DECLARED)
"""`align booster`, `finetune antibody sum`: a method, in each of its variants."""


def many_rows(count):
    """`count` rows of various lengths, no two alike."""
    subjects = ["bread", "a film", "France", "a lock", "water", "salt", "the capital", "a guide"]
    return [
        row(f"what is {subjects[i % 8]}" + " please" * (i % 3) + f" {i}?", f"it is {i}" + " and there" * (i % 4))
        for i in range(count)
    ]


def train(method, tmp_path, model, tokenizer, rows, harmful, with_lora=False, resume=None, callbacks=(), **settings):
    """Train a copy of `model` with a method of `EVERY` and return the trainer."""
    trainer = make(method, tmp_path, model, tokenizer, rows, harmful, with_lora, callbacks, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def make(method, tmp_path, model, tokenizer, rows, harmful, with_lora=False, callbacks=(), **settings):
    """Make the trainer of a method of `EVERY` on a copy of `model`; `with_lora` may be settings of the adapter."""
    declared, own = DECLARED[method]
    streams = {"harmful_dataset": harmful, "helpful_dataset": many_rows(5)}
    given = {name: streams[name] for name in declared.streams}
    if issubclass(declared.trainer, RefusalTrainer):
        given["refusals"] = REFUSALS
    return declared.trainer(
        model=copy.deepcopy(model),
        args=config(declared.config, tmp_path, **{**own, **settings}),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        **({"peft_config": lora(**(with_lora if isinstance(with_lora, dict) else {}))} if with_lora else {}),
        **given,
    )
