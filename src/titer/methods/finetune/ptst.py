"""PTST, "pure tuning, safe testing": no safety prompt in fine-tuning, and one before every conversation that is served."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from titer.data.records import is_blank
from titer.errors import TiterError
from titer.infer.serving import Serving
from titer.methods import Method, Source
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.streams import as_texts
from titer.models import Template
from titer.train.rows import Encoder
from titer.train.trainer import PackedSFTTrainer

SAFETY_PROMPT = (
    "You are a careful assistant. Help as well as you can with what is asked, and politely decline whatever could hurt "
    "people, deceive them or break the law."
)


@dataclass
class PtstConfig(FinetuneConfig):
    """Settings of PTST.

    Args:
        system_prompt: The safety prompt that the tuned model is served with. No row may be trained on with it.
    """

    system_prompt: str = field(
        default=SAFETY_PROMPT, metadata={"help": "The safety prompt that the tuned model is served with."}
    )

    def __post_init__(self) -> None:
        if not isinstance(self.system_prompt, str) or is_blank(self.system_prompt):
            raise TiterError(
                "`system_prompt` holds no text, and PTST without a safety prompt is plain fine-tuning.",
                "Write one, or use the method `sft`.",
            )
        super().__post_init__()


class PtstTrainer(PackedSFTTrainer):
    """Fine-tunes plainly on rows without a safety prompt; the model is served with one (arXiv 2402.18540).

    Training is that of plain SFT, one gradient a step and no further memory. What is measured and served is the tuned model
    behind a system prompt that it was not tuned with.

    Args:
        model: The aligned model with its adapter.
        args: Settings.
        kwargs: What `PackedSFTTrainer` takes.
    """

    args: PtstConfig

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Make sure that no row is trained on with the safety prompt; no row has anything beside it.

        Raises:
            TiterError: For a row whose system prompt holds it, and a chat template that puts it into every conversation.
        """
        for record in as_texts(rows, "train_dataset"):
            if any(role == "system" and self.args.system_prompt in text for role, text in record.prompt):
                raise TiterError(
                    f"{record.where}: its system prompt holds the safety prompt, which PTST keeps out of fine-tuning.",
                    "Remove it from the row, or serve with another `system_prompt`.",
                )
        plain = encoder.template.prompt_ids([{"role": "user", "content": "?"}])
        if self.args.system_prompt in encoder.template.tokenizer.decode(plain):
            raise TiterError(
                "The model's chat template puts the safety prompt into every conversation, also in fine-tuning.",
                "Serve with another `system_prompt`, or take it out of the template.",
            )
        return {}


def _serving(args: PtstConfig, template: Template) -> Serving:
    return Serving(args.system_prompt, "a safety prompt")


PTST = Method(
    PtstConfig,
    PtstTrainer,
    "Fine-tunes without a safety prompt, and serves with one: a serving control.",
    serving=_serving,
    source=Source(
        "2402.18540, NeurIPS 2024",
        "vfleaking/PTST",
        "Apache-2.0",
        "weights that others serve: its effect on an adapter alone is zero by construction",
    ),
)
