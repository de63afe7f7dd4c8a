"""What a client may ask for in a chat, by OpenAI's names. What is not done is refused, and never left out silently."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from titer.data.records import Message
from titer.service.chat.pieces import Sampling
from titer.service.refusals import Refused, invalid

CHOICES = 4
"""Most answers to a request."""
TOP = 5
"""Most tokens that are named in the place of each."""
CHARACTERS = 1 << 20
"""Most letters of a conversation; a longer one would keep the tokenizer busy for seconds before it is found too long."""


def _encodable(text: str) -> str:
    """Return a text that UTF-8 can say: JSON can write half a character, which no tokenizer and no database takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[Text, StringConstraints(pattern=r"^[^\x00-\x1f]*$", max_length=256)]
Stop = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]

NOT_DONE: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),  # of no tools
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "logit_bias": ({},),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "prompt_cache_retention": (),
}
"""Parameters that are known and not done, with what else than null they may be because it asks for nothing."""


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")
    type: Text
    text: Text | None = None


class ChatMessage(BaseModel):
    """A message; what an answer holds beside its text may be sent back, as long as there is nothing in it."""

    model_config = ConfigDict(extra="forbid")
    role: Text
    content: Text | list[TextPart] | None = None
    refusal: Text | None = None
    name: str | None = None
    audio: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    annotations: Any = None

    def plain(self, where: str) -> Message:
        """Return it as titer has messages; raises `Refused`."""
        if self.role in ("tool", "function"):
            raise unsupported(f"{where}.role", f"Messages of a {self.role} are not supported.")
        if self.role not in ROLES:
            raise invalid(f"{where}.role", f"`role` is {self.role!r}; it is one of {', '.join(ROLES)}.")
        for name in ("name", "audio", "tool_calls", "tool_call_id", "function_call", "annotations"):
            if getattr(self, name) not in (None, []):
                raise unsupported(f"{where}.{name}", f"`{name}` of a message is not supported.")
        if isinstance(self.content, list):
            for place, part in enumerate(self.content):
                if part.type != "text":
                    raise unsupported(
                        f"{where}.content.{place}.type", f"Parts of type {part.type!r} are not supported."
                    )
                if part.text is None:
                    raise invalid(f"{where}.content.{place}.text", "A part of text needs `text`.")
            return Message(ROLES[self.role], "".join(part.text or "" for part in self.content))
        text = self.refusal if self.content is None and self.role == "assistant" else self.content
        if text is None:
            raise invalid(f"{where}.content", "A message needs `content`.")
        return Message(ROLES[self.role], text)


ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(BaseModel):
    """A chat completion that is asked for. `user` and its successors say who asks, which changes nothing in the answer."""

    model_config = ConfigDict(extra="forbid")
    model: Name
    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: int | None = Field(None, ge=1, le=CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=TOP)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    logit_bias: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    moderation: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    prompt_cache_retention: Any = None

    def check(self) -> None:
        """Raise `Refused` for what is not done, or does not go together."""
        for name, neutral in NOT_DONE.items():
            value = getattr(self, name)
            if value is not None and value not in neutral:
                raise unsupported(name, f"`{name}` is not supported by this server.")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise invalid("max_tokens", "Give `max_completion_tokens` or `max_tokens`, not both.")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`.")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "`stream_options` needs `stream: true`.")

    def conversation(self) -> list[Message]:
        """Return the messages; raises `Refused` for those that no model here can be asked."""
        messages = [message.plain(f"messages.{place}") for place, message in enumerate(self.messages)]
        letters = sum(len(message.content) for message in messages)
        if letters > CHARACTERS:
            message = f"The messages have {letters:,} letters, and {CHARACTERS:,} are the most."
            raise invalid("messages", message, "string_above_max_length")
        return messages

    def sampling(self, prompt: int, context: int | None, most: int) -> Sampling:
        """Return how to choose answers.

        Args:
            prompt: Tokens of the conversation.
            context: Most tokens of conversation and answer; `None` where the model has no limit.
            most: Most tokens of an answer, by the policy.

        Raises:
            Refused: For a conversation, or an answer, that is too long.
        """
        wanted, param = self.max_completion_tokens or self.max_tokens, "max_tokens"
        param = "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
        if wanted is not None and wanted > most:
            raise invalid(param, f"`{param}` is {wanted:,}; answers have at most {most:,} tokens here.")
        if context is not None and prompt + (wanted or 1) > context:
            raise Refused(
                400,
                f"This model's maximum context length is {context:,} tokens. However, you requested {prompt + (wanted or 1):,} "
                f"tokens ({prompt:,} in the messages, {wanted or 1:,} in the completion). Please reduce the length of either.",
                "messages",
                "context_length_exceeded",
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=wanted or min(most, most if context is None else context - prompt),
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(stop),
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


def unsupported(param: str, message: str) -> Refused:
    """Return the answer about what OpenAI's API knows and this one does not do."""
    return Refused(400, message, param, "unsupported_parameter")
