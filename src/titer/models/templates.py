"""Conversations become token ids: a tokenizer's chat template, rendered so that text cannot become a control token.

Everything that turns text into token ids lives here, so that training, scoring and generation agree.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from titer.data.records import Record


ALPACA_TEMPLATE = (
    "{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\\n\\n' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
"""The Alpaca instruction template, for base models that bring no chat template (arXiv 2409.01586 uses it for all)."""

TEMPLATE_SECONDS = 5.0
"""How long a chat template may take for two short messages."""

# Unicode's supplementary private use areas, whose characters stand in for control tokens found in users' text.
_PLACEHOLDERS = range(0xF0000, 0x110000)


@dataclass(frozen=True)
class Template:
    """Turns conversations into token ids with a tokenizer's chat template.

    Text from users can never become a control token: `<|im_end|>` inside a message is encoded as plain characters.
    """

    tokenizer: PreTrainedTokenizerBase

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of a conversation up to the point where the assistant speaks next."""
        return self._encode(*self._render(messages, add_generation_prompt=True))

    def asked_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of a conversation up to the end of its last turn, without what the assistant's begins with."""
        return self._encode(*self._render(messages, add_generation_prompt=False))

    def completion_ids(self, messages: Sequence[dict[str, str]], completion: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of the assistant's turn that follows `messages`, up to and with its end-of-turn token."""
        if len(completion) != 1:
            raise TiterError(
                f"A completion must be one message from the assistant, not {len(completion)}.",
                "Join them into one message, or make each a row of its own with the earlier ones in its prompt.",
            )
        conversation = [*messages, *completion]
        prompt, _ = self._render(messages, add_generation_prompt=True, among=conversation)
        whole, hidden = self._render(conversation, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise TiterError(
                "The model's chat template renders a conversation differently once the assistant has answered, so "
                "prompt and answer cannot be told apart.",
                "Use a template whose rendering of the prompt is a prefix of the whole conversation.",
            )
        ids = self._encode(whole[len(prompt) :], hidden)
        stop = next((place for place, token in enumerate(ids) if token in self.end_of_turn), None)
        return [*ids, self.tokenizer.eos_token_id] if stop is None else ids[: stop + 1]

    def opening_ids(self, messages: Sequence[dict[str, str]], text: str) -> list[int]:
        """Return the ids with which the assistant's turn after `messages` begins when it begins with `text`.

        They are encoded by themselves, as those of a whole answer are, so prompt and opening are what a row that was trained
        on would hold. What a template writes before an answer (an empty line of thought, say) belongs to them.

        Raises:
            TiterError: For a text that is blank, holds a control token, or that the template does not render as it is.
        """
        if not text.strip() or any(token in text for token in self._control):
            raise TiterError(f"An answer cannot begin with {text!r}.", "Begin it with plain words.")
        conversation = [*messages, {"role": "assistant", "content": text}]
        prompt, _ = self._render(messages, add_generation_prompt=True, among=conversation)
        whole, hidden = self._render(conversation, add_generation_prompt=False)
        before, found, _ = whole.removeprefix(prompt).partition(text)
        if not whole.startswith(prompt) or not found:
            raise self._wrong(f"does not render an answer that begins with {text!r} after its prompt")
        return self._encode(before + text, hidden)

    def pair_ids(self, record: Record) -> tuple[list[int], list[int]]:
        """Return the ids of a record's prompt and completion; errors say where it was read."""
        row = record.to_training_row()
        try:
            return self.prompt_ids(row["prompt"]), self.completion_ids(row["prompt"], row["completion"])
        except TiterError as error:
            if record.where is None:
                raise
            raise TiterError(f"{record.where}: {error.message}", error.hint) from error

    @cached_property
    def end_of_turn(self) -> frozenset[int]:
        """Token ids that end the assistant's turn: end of sequence, and what the template writes after an answer."""
        exchange = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "OK"}]
        rendered, _ = self._render(exchange, add_generation_prompt=False)
        special = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        after = [token for token in self._ids(rendered.rpartition("OK")[2]) if token in special]
        return frozenset({self.tokenizer.eos_token_id, *after[:1]})

    def up_to_end(self, tokens: Iterable[int]) -> list[int]:
        """Return the tokens of an answer before the first that ends its turn."""
        return list(itertools.takewhile(lambda token: token not in self.end_of_turn, tokens))

    def answer_text(self, tokens: Iterable[int]) -> str:
        """Return the text of an answer's tokens, up to the one that ends its turn."""
        return str(self.tokenizer.decode(self.up_to_end(tokens), skip_special_tokens=True)).strip()

    @cached_property
    def _control(self) -> list[str]:
        """Every token that text can spell although it is no text, longest first.

        Some tokenizers also keep runs of white space or single characters as added tokens; those are plain text.
        """
        tokens = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        return sorted((token for token in tokens if len(token.strip()) > 1), key=lambda token: (-len(token), token))

    def _plain(self, token: str) -> Sequence[str]:
        """Cut a control token where no part of it is one."""
        for cut in range(1, len(token)):
            if not any(other in token[:cut] or other in token[cut:] for other in self._control):
                return token[:cut], token[cut:]
        return token

    def _render(
        self,
        messages: Sequence[dict[str, str]],
        add_generation_prompt: bool,
        among: Sequence[dict[str, str]] | None = None,
    ) -> tuple[str, dict[str, str]]:
        """Render `messages`, with every control token in their text replaced by a placeholder character.

        Args:
            messages: The conversation.
            add_generation_prompt: Whether to end where the assistant speaks next.
            among: The conversation that `messages` begin, when the placeholders must be those of its rendering.

        Returns:
            The text, and the control token that each placeholder hides.
        """
        used = {character for message in among or messages for character in message["content"]}
        free = (chr(code) for code in _PLACEHOLDERS if chr(code) not in used)
        hidden: dict[str, str] = {}
        safe = []
        for message in messages:
            text = message["content"]
            for token in self._control:
                if token in text:
                    placeholder = next(free)
                    text = text.replace(token, placeholder)
                    hidden[placeholder] = token
            safe.append({"role": message["role"], "content": text})
        try:
            rendered = self.tokenizer.apply_chat_template(
                safe, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except Exception as error:  # a template is a program of somebody else's
            raise self._wrong(f"fails: {first_line(error)}") from error
        if not isinstance(rendered, str) or not rendered.strip():
            raise self._wrong("returns no text")
        return rendered, hidden

    def check(self) -> None:
        """Raise `TiterError` for a chat template that fails, never ends, leaves texts out, or never gives the floor."""
        asked, answered = {"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}
        with _at_most(TEMPLATE_SECONDS):
            prompt, _ = self._render([asked], add_generation_prompt=True)
            bare, _ = self._render([asked], add_generation_prompt=False)
            whole, _ = self._render([asked, answered], add_generation_prompt=False)
        for message, text in ((asked, prompt), (asked, whole), (answered, whole)):
            if message["content"] not in text:
                raise self._wrong(f"leaves out what the {message['role']} says")
        opening = whole.removeprefix(prompt).partition("Answer")[0].strip()
        # Some need no opening, as what the user says is closed; others write more than the opening before an answer.
        if opening and prompt == bare and whole.startswith(prompt):
            raise self._wrong(
                f"does not begin the assistant's turn: `{opening}` is not written for `add_generation_prompt`"
            )

    def check_system(self, system: str) -> None:
        """Raise `TiterError` for a chat template that has no place for a system prompt, or leaves this one out."""
        asked = [{"role": "system", "content": system}, {"role": "user", "content": "Question"}]
        rendered, hidden = self._render(asked, add_generation_prompt=True)
        for placeholder, token in hidden.items():
            rendered = rendered.replace(placeholder, token)
        if system.strip() not in rendered:
            raise self._wrong("leaves out what the system says")

    def _wrong(self, what: str) -> TiterError:
        return TiterError(
            f"The chat template of `{self.tokenizer.name_or_path}` {what}.",
            "Correct it (`chat_template.jinja`, or `chat_template` in tokenizer_config.json), or remove it: titer then uses "
            "the Alpaca template.",
        )

    def _encode(self, rendered: str, hidden: Mapping[str, str]) -> list[int]:
        """Encode a rendered conversation; placeholders become the plain characters of what they hide."""
        if not hidden:
            return self._ids(rendered)
        ids: list[int] = []
        for piece in re.split(f"([{''.join(hidden)}])", rendered):
            if piece in hidden:
                for part in self._plain(hidden[piece]):
                    ids += self._ids(part)
            elif piece:
                ids += self._ids(piece)
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in Python code that takes longer, in whatever thread it runs."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def watch(*event: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"it takes longer than {seconds:g} s")
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
