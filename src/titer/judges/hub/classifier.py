"""A judge with a head instead of words: a sequence classifier that transformers runs here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from titer.errors import TiterError
from titer.judges.hub.local import Local, batches
from titer.judges.hub.questions import Question, Reply, Unreadable


class Classifier(Local):
    """A model with one logit a label, each of which is made a probability by itself (sigmoid).

    Rows end with the end-of-sequence token, are cut on the right, and padded on the right as the head expects.

    Args:
        model: A folder or a hub id.
        revision: Branch, tag or commit on the hub.
        device: As for `Local`.
        dtype: As for `Local`.
        rows: As for `Local`.
        length: Most tokens of a row.
        labels: How many labels the head must have.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        device: str | None,
        dtype: str | None,
        rows: int | None,
        length: int,
        labels: int,
    ) -> None:
        super().__init__(model, revision, device, dtype, rows, architecture="AutoModelForSequenceClassification")
        self.length, self.labels = length, labels

    def _load(self) -> Any:
        model = super()._load()
        if model.config.num_labels != self.labels:
            raise TiterError(f"`{self.name}` has {model.config.num_labels} labels, and must have {self.labels}.")
        if model.config.get_text_config().pad_token_id is None:
            self.rows = 1  # the head finds the end of a row by its padding
        return model

    def ids(self, question: Question) -> list[int]:
        """Return the tokens of a text, cut on the right: what is too long loses its end-of-sequence token too."""
        tokenizer = self.load_tokenizer()
        text = question.text + (tokenizer.eos_token or "")
        return list(tokenizer(text, truncation=True, max_length=self.length)["input_ids"])

    def ask(self, questions: Sequence[Question]) -> list[Reply | Unreadable]:
        """Return one reply a question, in order: the label of the most probable, and the probability of each."""
        import torch

        model = self.load()
        rows = [self.ids(question) for question in questions]
        padding = model.config.get_text_config().pad_token_id or 0
        device = next(model.parameters()).device
        replies: dict[int, Reply] = {}
        with torch.inference_mode():
            for places, width in batches([len(row) for row in rows], self.rows or 1):
                own = [rows[place] for place in places]
                inputs = torch.tensor([row + [padding] * (width - len(row)) for row in own], device=device)
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in own], device=device)
                chances = model(input_ids=inputs, attention_mask=mask).logits.float().sigmoid()
                for place, row in zip(places, chances.tolist(), strict=True):
                    named = {str(model.config.id2label[label]): chance for label, chance in enumerate(row)}
                    replies.setdefault(place, Reply(max(named, key=lambda label: named[label]), named))
        return [replies[place] for place in range(len(rows))]
