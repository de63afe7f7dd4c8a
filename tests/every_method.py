"""Every method of the table that trains, and every repair, with settings and streams that make each of its terms matter on the tiny model."""

from titer import methods
from titer.packing import layouts
from titer.testing import RepairTrial, Trial

DECLARED = {
    f"{stage} {name} {variant}".strip(): (method, settings)
    for stage, name, method in methods.every()
    for variant, settings in method.variants.items()
}
EVERY = [label for label, (method, _) in DECLARED.items() if isinstance(method, methods.Method)]
"""`align booster`, `finetune antibody sum`: a method that trains, in each of its variants."""
FIRST = [label for label in EVERY if DECLARED[label][1] is next(iter(DECLARED[label][0].variants.values()))]
"""Of them the first variant of each method."""
REPAIRS = [label for label in DECLARED if label not in EVERY]
"""`repair safelora exact`: a repair, in each of its variants."""


def trial(method, folder):
    """Return a method of `EVERY` or `REPAIRS`, to be tried on the tiny model."""
    return (Trial if method in EVERY else RepairTrial)(*DECLARED[method], folder)


def remembered(probe):
    """Find the layout of the tiny model once for each dtype and kind of adapter: an eighth of a tiny training goes into it."""
    found, packs = {}, layouts.use_packed_attention

    def remembering(model, bare, samples, tokens):
        which = str((type(bare), next(bare.parameters()).dtype, layouts._state_of(model, bare)))
        if layouts.use_packed_attention is not packs:  # a test that lets it fail
            return probe(model, bare, samples, tokens)
        if which not in found:
            found[which] = probe(model, bare, samples, tokens)
        else:
            packs(bare)
            layouts.fuse_head(bare)
        return found[which]

    return remembering


def train(method, tmp_path, model, tokenizer, rows, harmful, with_lora=False, resume=None, callbacks=(), **settings):
    """Train a copy of `model` with a method of `EVERY` and return the trainer."""
    trainer = make(method, tmp_path, model, tokenizer, rows, harmful, with_lora, callbacks, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def make(method, tmp_path, model, tokenizer, rows, harmful, with_lora=False, callbacks=(), **settings):
    """Make the trainer of a method of `EVERY` on a copy of `model`; `with_lora` may be settings of the adapter."""
    how = {"tokenizer": tokenizer, "rows": rows, "harmful": harmful, "with_lora": with_lora, "callbacks": callbacks}
    return trial(method, tmp_path).make("", model=model, **how, **settings)
