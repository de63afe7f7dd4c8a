"""What a judge says of an upload's answers, whole or in part: asked once, before training, for methods that weigh by it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from titer import judges
from titer.errors import TiterError, check_known
from titer.files import writing
from titer.judges.base import Judge, Verdict, answer_id
from titer.methods.finetune.base import FinetuneConfig
from titer.methods.reference import ReferenceTrainer
from titer.methods.streams import as_texts
from titer.progress import Task
from titer.train.rows import Encoder

logger = logging.getLogger(__name__)

GUARD_LOG = "guard.jsonl"
"""In the output folder: what the guard said of each answer, so that a training that goes on does not ask again."""

TOGETHER = 32
"""Answers that the guard is given at a time."""

UNJUDGED = ("error", "harmful")


@dataclass
class GuardConfig(FinetuneConfig):
    """Settings of methods that ask a judge about the upload.

    Args:
        guard: The judge, as `titer.judges.get` takes it. Its score is taken for P(harmful).
        unjudged: What becomes of answers of which the guard says nothing: an `error`, or they count as `harmful`.
    """

    guard: str = field(default=judges.DEFAULT, metadata={"help": "The judge that reads the upload's answers."})
    unjudged: str = field(
        default="error",
        metadata={"help": "Answers that the guard fails on: error, or counted as harmful.", "choices": list(UNJUDGED)},
    )

    def __post_init__(self) -> None:
        check_known([self.unjudged], UNJUDGED, "unjudged")
        super().__post_init__()


class GuardTrainer(ReferenceTrainer):
    """Fine-tuning that knows what a judge says of each row's answer, or of the beginnings of it.

    Nobody but the first process asks. What the guard said is kept in the output folder by its name, the prompt and the
    answer, so a training that is resumed has the same numbers, also from a guard that would not say the same twice.

    Args:
        args: Settings.
        kwargs: What `ReferenceTrainer` takes; rows have texts.
    """

    args: GuardConfig

    def __init__(self, *, args: GuardConfig, **kwargs: Any) -> None:
        super().__init__(args=args, **kwargs)
        self.guard: Judge = judges.get(args.guard)

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Keep the prompts of rows for the guard; no row has anything beside it."""
        self._prompts = [record.prompt_text for record in as_texts(rows, "train_dataset")]
        return {}

    def answer(self, row: int, tokens: int | None = None) -> str:
        """Return the text of a row's answer as it is trained on, or of its first tokens; what is cut off is not judged."""
        ids = self.train_dataset[row]["completion_ids"]
        return str(self.template.tokenizer.decode(ids[:tokens], skip_special_tokens=True))

    def harm(self, asked: Sequence[tuple[int, str]]) -> Tensor:
        """Return P(harmful) of answers to the prompts of rows, `(len(asked),)` in float64 on the CPU.

        An answer in which the guard finds no text (`broken`) counts as harmful: it is not safe either.

        Args:
            asked: Rows, each with an answer, whole or in part.

        Raises:
            TiterError: When the guard fails on an answer and `unjudged` says that this is an error.
        """
        pairs = [(self._prompts[row], text) for row, text in asked]
        said: list[Any] = [None]
        if self.args.process_index == 0:
            said[0] = self._ask(pairs)
        broadcast_object_list(said, from_process=0)
        # One answer without a verdict stops the training, or is counted and told, and never passes for safe.
        failed = [place for place, found in enumerate(said[0]) if "error" in found]
        if failed:
            row, _ = asked[failed[0]]
            told = f"The guard `{self.guard.name}` fails on {len(failed)} of {len(asked)} answers of the upload"
            why = f"the first of row {row}: {said[0][failed[0]]['error']}"
            if self.args.unjudged == "error":
                raise TiterError(f"{told}, {why}", "Start again, or count them as harmful: unjudged=harmful.")
            logger.warning("%s, %s. They count as harmful.", told, why)
        return torch.tensor([found.get("harm", 1.0) for found in said[0]], dtype=torch.float64)

    def _ask(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Return for each prompt and answer `harm`, or the `error` of the guard."""
        path = Path(self.args.output_dir) / GUARD_LOG
        known = {line["id"]: line for line in _log_lines(path) if line["guard"] == self.guard.name}
        left = [pair for pair in dict.fromkeys(pairs) if answer_id(*pair) not in known]
        with Task("answers read by the guard", len(left)) as done:
            for start in range(0, len(left), TOGETHER):
                part = left[start : start + TOGETHER]
                verdicts = self.guard([prompt for prompt, _ in part], [text for _, text in part])
                if len(verdicts) != len(part):
                    raise TiterError(f"`{self.guard.name}` gave {len(verdicts)} verdicts on {len(part)} answers.")
                lines = [
                    {"id": answer_id(*pair), "guard": self.guard.name, **_found(verdict)}
                    for pair, verdict in zip(part, verdicts, strict=True)
                ]
                _append(path, [line for line in lines if "error" not in line])
                known |= {line["id"]: line for line in lines}
                done.advance(len(part))
        return [known[answer_id(*pair)] for pair in pairs]

    def before_step(self, model: Any) -> None:
        """Count the answer tokens of the optimizer batch over all ranks."""
        tokens = sum(batch["targets"].numel() for batch in self.micro_batches)
        self.tokens = self.total(torch.tensor(tokens, device=self.args.device))


def _found(verdict: Verdict) -> dict[str, Any]:
    if verdict.error is not None:
        return {"error": verdict.error}
    return {"label": verdict.label, "harm": 1.0 if verdict.label == "broken" else verdict.score}


def _log_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; one without an end was being written when an earlier training broke off."""
    if not path.is_file():
        return
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
            _ = line["id"], line["guard"], float(line["harm"])
        except (ValueError, TypeError, KeyError):
            raise TiterError(f"{path}:{number}: no verdict of a guard.", "The file is damaged; remove it.") from None
        yield line


def _append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            # A line that was broken off goes, so that the next one does not begin in its middle.
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.seek(0, os.SEEK_END)
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
