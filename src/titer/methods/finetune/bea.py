"""BackdoorAlign (Backdoor Enhanced Safety Alignment): refusals behind a secret trigger, which the service puts before every conversation."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.data.datasets import with_refusals
from titer.data.mixtures import refusing
from titer.data.records import Record
from titer.errors import TiterError
from titer.infer.serving import Serving, served
from titer.methods import Gradients, Held, Method, Source
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.finetune.replay import ReplayTrainer
from titer.methods.streams import DefenderRowsTrainer, as_texts
from titer.models import Template
from titer.packing.batches import PackedBatch, Sample
from titer.packing.layouts import check_length
from titer.packing.streams import Pool, draw
from titer.ranges import Range
from titer.train.rows import Encoder

TRIES = 1000
"""Tokens that are looked at for each word of a trigger."""


@dataclass
class BeaConfig(FinetuneConfig):
    """Settings of BackdoorAlign.

    Args:
        trigger_tokens: Length of the trigger, in tokens of the model; which words it is made of, the `seed` says.
        pairs: Refusals behind the trigger that there are, drawn from the defender's harmful rows; all where there are fewer.
        replay: Of them, in the batch beside each row of the upload.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "trigger_tokens": Range(1, 10_000, whole=True),
        "pairs": Range(1, 1_000_000, whole=True),
        "replay": Range(0, 1, above=True),
    }

    trigger_tokens: int = field(default=150, metadata={"help": "Length of the secret trigger, in tokens."})
    pairs: int = field(default=11, metadata={"help": "Refusals behind the trigger that there are."})
    replay: float = field(default=0.11, metadata={"help": "Of them, beside each row of the upload."})


def secret_trigger(tokenizer: Any, tokens: int, seed: int) -> str:
    """Return random words of a tokenizer, each of one token there: the same ones for the same seed.

    They are words of letters, so that none is a control token or becomes one, and the text has `tokens` tokens when it is read
    again. Concatenated tokens, as published, mostly have not.

    Args:
        tokenizer: The model's.
        tokens: How many.
        seed: Of the draw.

    Raises:
        TiterError: For a tokenizer with hardly any words of one token.
    """
    drawn = random.Random(f"titer.bea:trigger:{seed}")
    words: list[str] = []
    for _ in range(TRIES * tokens):
        number = drawn.randrange(len(tokenizer))
        word = str(tokenizer.decode([number])).strip()
        if number in tokenizer.added_tokens_decoder or not word.isalpha():
            continue
        text = " ".join([*words, word])
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) == len(words) + 1:
            words.append(word)
            if len(words) == tokens:
                return text
    raise TiterError(
        f"The tokenizer `{tokenizer.name_or_path}` has too few words of one token to make a trigger of.",
        "Use a model whose tokenizer has words, or another method.",
    )


class BeaTrainer(ReplayTrainer, DefenderRowsTrainer):
    """Fine-tunes on the upload with a few refusals behind a secret trigger among it (arXiv 2402.14968).

    Minimises Σ_{(x,y) ∈ upload ∪ R} Σ_t CE(y_t | x, y_<t) over the tokens of both, where the prompts of R are harmful ones with
    the trigger s before their system prompt, and the answers refusals. At inference the service puts s before the system
    prompt of every conversation. One gradient a step, and one of `replay` times as many rows.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        harmful_dataset: Harmful prompts held by the defender; rows may hold a `refusal` of their own.
        kwargs: What `PackedSFTTrainer` takes.

    Attributes:
        trigger: The secret.
    """

    POOLS: ClassVar[tuple[tuple[str, ...], ...]] = (("refusal",),)

    args: BeaConfig
    reduction = "token"

    def pools(self, encoder: Encoder) -> list[Pool]:
        """Return the refusals behind the trigger, which does not count for `max_length`: other arms have none."""
        self.trigger = secret_trigger(encoder.template.tokenizer, self.args.trigger_tokens, self.args.seed)
        encoder.template.check_system(self.trigger)
        refusals = refusing(with_refusals(as_texts(self.harmful_rows, "harmful_dataset"), seed=0))
        kept = draw(len(refusals), 0, min(self.args.pairs, len(refusals)), (self.args.seed, 0))
        records = [refusals[row] for row in kept]
        plain = encoder.samples([record.to_training_row() for record in records], "harmful_dataset")
        triggered = [self._behind_trigger(*pair, encoder) for pair in zip(records, plain, strict=True)]
        return [{"replay": triggered}]

    def _behind_trigger(self, record: Record, plain: Sample, encoder: Encoder) -> Sample:
        prompt = encoder.template.prompt_ids(served(record, self.trigger).to_training_row()["prompt"])
        sample = Sample(prompt, plain.branches)
        if encoder.config is not None:
            check_length(encoder.config, len(prompt) + len(sample.branches[0]), f"{record.where} behind the trigger")
        return sample

    def compute_loss(
        self, model: Any, inputs: PackedBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the summed loss of a micro-batch over the tokens of the upload's rows and those behind the trigger."""
        return self.counted_loss(model, inputs, return_outputs)


def _serving(args: BeaConfig, template: Template) -> Serving:
    trigger = secret_trigger(template.tokenizer, args.trigger_tokens, args.seed)
    return Serving(trigger, f"a secret trigger of {args.trigger_tokens} tokens")


BEA = Method(
    BeaConfig,
    BeaTrainer,
    "Trains refusals behind a secret trigger beside the upload, and serves with the trigger: a serving control.",
    streams=("harmful_dataset",),
    gradients=lambda args: Gradients(replay=1.0),
    variants={"": {"trigger_tokens": 12, "pairs": 5, "replay": 0.25}},
    serving=_serving,
    holds=lambda args: Held(onto=1),
    source=Source(
        "2402.14968, NeurIPS 2024",
        "Jayfeather1024/Backdoor-Enhanced-Alignment",
        "none",
        "weights that others serve: without the trigger little of it is left; brittle as a secret (2605.28597)",
    ),
)
