"""A generative judge that transformers runs here: a few tokens, greedily, with the probabilities at the label.

A verdict does not depend on the other answers that are judged with it: every batch has the same number of rows, filled up
where there are fewer, and rows are padded on the left to one of a few widths, which each row's own length decides. What differs
between batch sizes, devices and precisions is rounding. Batches of one row are not padded at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError, first_line
from titer.judges.hub.questions import Question, Reply, Unreadable

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Widths that rows are padded to when several are run at once; longer ones to a multiple of the last."""

ROWS = 8
"""Rows at a time on an accelerator, when no number is given."""


def width_of(length: int) -> int:
    """Return the width that a row of a length is padded to."""
    return next((width for width in WIDTHS if width >= length), -(-length // WIDTHS[-1]) * WIDTHS[-1])


def batches(lengths: Sequence[int], rows: int) -> list[tuple[list[int], int]]:
    """Return which rows are run together, always `rows` of them (the last of a few again and again), and their width."""
    found: list[tuple[list[int], int]] = []
    if rows == 1:
        return [([place], length) for place, length in enumerate(lengths)]
    for width in sorted({width_of(length) for length in lengths}):
        own = [place for place, length in enumerate(lengths) if width_of(length) == width]
        for start in range(0, len(own), rows):
            together = own[start : start + rows]
            found.append((together + together[-1:] * (rows - len(together)), width))
    return found


class Local:
    """A causal language model with its tokenizer, loaded by the first question.

    Args:
        model: A folder or a hub id; one that holds a PEFT adapter brings its base model, if `adapter` says that it may.
        revision: Branch, tag or commit on the hub.
        device: `cpu`, `cuda`, … or `auto`, which spreads it over all there are; by itself an accelerator, if there is one.
        dtype: Name of a precision, or `auto` for that of the weights.
        rows: Rows at a time.
        adapter: Whether the model may be an adapter.
        architecture: The class of transformers that loads it.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        rows: int | None = None,
        adapter: bool = False,
        architecture: str = "AutoModelForCausalLM",
    ) -> None:
        self.name, self.revision, self.device, self.dtype, self.rows = model, revision, device, dtype, rows
        self.adapter, self.architecture = adapter, architecture
        self.model: Any = None
        self.tokenizer: Any = None
        self._probed = False

    def load_tokenizer(self) -> Any:
        """Return the tokenizer, loaded once.

        Raises:
            TiterError: When there is none.
        """
        if self.tokenizer is None:
            from transformers import AutoTokenizer

            from titer.models import loading, locate

            with loading(self.name, "tokenizer"):
                self.tokenizer = AutoTokenizer.from_pretrained(locate(self.name), revision=self.revision)
        return self.tokenizer

    def load(self) -> Any:
        """Return the model, loaded once.

        Raises:
            TiterError: When it is not there, or its weights do not fit.
        """
        if self.model is None:
            self.load_tokenizer()
            self.model = self._load().eval()
        return self.model

    def _load(self) -> Any:
        import torch
        import transformers

        from titer.models import add_adapter, loading, locate, split_adapter, whole
        from titer.progress import Task

        here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        device = self.device or str(here)
        name, folder = split_adapter(self._downloaded()) if self.adapter else (self.name, None)
        with loading(name), Task(f"loading {name}"):
            loaded = getattr(transformers, self.architecture).from_pretrained(
                locate(name),
                revision=self.revision if folder is None else None,
                dtype=self._precision(device),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `whole` names them; the library would only count them
                **({"device_map": "auto"} if device == "auto" else {}),
            )
        model = whole(name, loaded)  # a head that is filled with random numbers would judge at random
        if folder is not None:
            model = add_adapter(model, folder)
        if device != "auto":
            try:
                model.to(device)
            except (RuntimeError, AssertionError) as error:
                raise TiterError(f"`{name}` cannot run on `{device}`: {first_line(error)}") from error
        if self.rows is None:
            self.rows = 1 if device == "cpu" else ROWS
        return model

    def _precision(self, device: str) -> Any:
        import torch

        if self.dtype == "auto":
            return "auto"
        if self.dtype is None:
            return torch.float32 if device == "cpu" else torch.bfloat16
        found = getattr(torch, self.dtype, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise TiterError(f"`dtype` is `{self.dtype}`, no precision.", "bfloat16, float16, float32 or auto.")
        return found

    def _downloaded(self) -> str:
        """Return the folder of what may be an adapter."""
        from huggingface_hub import snapshot_download

        from titer.models import loading, locate

        found = locate(self.name)
        if Path(found).is_dir():
            return found
        with loading(self.name):
            return str(snapshot_download(found, revision=self.revision))

    def clip(self, text: str, tokens: int, side: str = "right", special: bool = False) -> str:
        """Return a text of which at most some tokens are left.

        Args:
            text: What to cut.
            tokens: Most tokens, those that the tokenizer adds among them.
            side: Where is cut.
            special: Whether the tokens that the tokenizer adds stay in the text.
        """
        tokenizer = self.load_tokenizer()
        ids = tokenizer(text)["input_ids"]
        if len(ids) > tokens:
            own = len(ids) - len(tokenizer(text, add_special_tokens=False)["input_ids"])
            # What the tokenizer adds stands in front, and stays, on whichever side the text is cut.
            ids = ids[:tokens] if side == "right" else [*ids[:own], *ids[len(ids) - tokens + own :]]
        elif not special:
            return text
        return str(tokenizer.decode(ids, skip_special_tokens=not special))

    def ids(self, question: Question) -> list[int]:
        """Return the tokens of a question as its model reads them."""
        tokenizer = self.load_tokenizer()
        if question.messages:
            if not self._probed:
                probe(tokenizer, question)
                self._probed = True
            text = render(tokenizer, question)
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(tokenizer(question.text)["input_ids"])

    def ask(self, questions: Sequence[Question]) -> list[Reply | Unreadable]:
        """Return one reply a question, in order; one that is too long for the model is not cut but unreadable."""
        model = self.load()
        rows = [self.ids(question) for question in questions]
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        replies: list[Reply | Unreadable | None] = [None] * len(questions)
        for place, (row, question) in enumerate(zip(rows, questions, strict=True)):
            if most is not None and len(row) + question.tokens > most:
                replies[place] = Unreadable(f"{len(row)} tokens are too long for `{self.name}`, which reads {most}")
        # Questions of one kind together.
        kinds: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for place, question in enumerate(questions):
            if replies[place] is None:
                kinds.setdefault((question.tokens, question.choices), []).append(place)
        for (tokens, choices), own in kinds.items():
            for together, width in batches([len(rows[place]) for place in own], self.rows or 1):
                places = [own[one] for one in together]
                decoded = self._decode([rows[place] for place in places], width, tokens, choices)
                for place, reply in zip(places, decoded, strict=True):
                    replies[place] = replies[place] or reply
        return [reply for reply in replies if reply is not None]

    def _decode(
        self, rows: Sequence[Sequence[int]], width: int, tokens: int, choices: Sequence[str]
    ) -> list[Reply | Unreadable]:
        """Decode rows greedily, padded on the left to a width."""
        import torch

        model, tokenizer = self.load(), self.load_tokenizer()
        device = next(model.parameters()).device
        padding = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
        stop = end_tokens(model, tokenizer)
        wanted = {choice: token_of(tokenizer, choice, self.name) for choice in choices}
        inputs = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        said: list[list[int]] = [[] for _ in rows]
        chances: list[Mapping[str, float] | None] = [None] * len(rows)
        going, broken, cache = set(range(len(rows))), set(), None
        with torch.inference_mode():
            for step in range(tokens):
                output = _forward(model, self.name, inputs, mask, positions, cache, step + 1 < tokens)
                scores, cache = output.logits[:, -1].float(), output.past_key_values
                chosen = scores.argmax(-1)
                broken |= set(scores.isnan().any(-1).nonzero().flatten().tolist())
                for row in sorted(going):
                    token = int(chosen[row])
                    blank = not str(tokenizer.decode([token], skip_special_tokens=True)).strip()
                    if wanted and chances[row] is None and not (blank and token not in stop and step + 1 < tokens):
                        chances[row] = _of(scores[row], wanted)
                    if token in stop:
                        going.discard(row)
                    else:
                        said[row].append(token)
                if not going:
                    break
                inputs = chosen[:, None]
                mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=1)
                positions = positions[:, -1:] + 1
        return [
            Unreadable(f"`{self.name}` computes no numbers for it")
            if row in broken
            else Reply(self.text(said[row]), chances[row])
            for row in range(len(rows))
        ]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the words of tokens that the model said."""
        return str(self.load_tokenizer().decode(list(tokens), skip_special_tokens=True))


def _forward(model: Any, name: str, inputs: Tensor, mask: Tensor, positions: Tensor, cache: Any, more: bool) -> Any:
    import torch

    try:
        return model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=more,
            logits_to_keep=1,
        )
    except torch.OutOfMemoryError as error:
        raise TiterError(f"`{name}` does not fit: {first_line(error)}", "batch=1, or a smaller model.") from error


def _of(scores: Tensor, wanted: Mapping[str, int]) -> dict[str, float]:
    """Return the probability of each choice among all tokens."""
    chances = scores.softmax(-1)
    return {choice: float(chances[token]) for choice, token in wanted.items()}


def end_tokens(model: Any, tokenizer: Any) -> Collection[int]:
    """Return the tokens that end what a model says."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = set(own if isinstance(own, list | tuple) else [own]) | {tokenizer.eos_token_id}
    return ends - {None}


def token_of(tokenizer: Any, choice: str, name: str) -> int:
    """Return the one token that a choice is.

    Raises:
        TiterError: When the tokenizer has none: the model is not the one that the judge is made for.
    """
    found = tokenizer.get_vocab().get(choice)
    if found is None:
        raise TiterError(
            f"The tokenizer of `{name}` has no token `{choice}`.", "Name the model that the judge is made for."
        )
    return int(found)


def render(tokenizer: Any, question: Question) -> str:
    """Return a conversation as the model's own chat template writes it.

    Raises:
        TiterError: When the tokenizer has no template, or it cannot write this conversation.
    """
    where = f"The tokenizer `{tokenizer.name_or_path}`"
    if tokenizer.chat_template is None:
        raise TiterError(
            f"{where} has no chat template, which this judge is asked through.", "Name the published model."
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                list(question.messages),
                tokenize=False,
                add_generation_prompt=question.generation_prompt,
                **question.template,
            )
        )
    except Exception as error:  # whatever Jinja, or what the template calls, raises of it
        raise TiterError(f"{where} has a template that fails: {first_line(error)}") from error


def probe(tokenizer: Any, question: Question) -> None:
    """Raise `TiterError` when a chat template leaves out what is to be judged, or writes it as something else."""
    words = [f"probe-{place}" for place in range(len(question.messages))]
    messages = tuple(
        {**message, "content": [{"type": "text", "text": word}] if isinstance(message["content"], list) else word}
        for message, word in zip(question.messages, words, strict=True)
    )
    text = render(tokenizer, replace(question, messages=messages))
    if "'text'" in text or not all(word in text for word in words):
        raise TiterError(
            f"The chat template of `{tokenizer.name_or_path}` does not write the conversation that it is given.",
            "It may read messages as parts, or not as parts (the setting `parts`), or be another model's.",
        )
