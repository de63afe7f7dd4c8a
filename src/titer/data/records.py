"""One training example.

A `Record` is a conversational prompt–completion pair as TRL's `SFTTrainer` reads it, with what an evaluation
wants to know beside it (where the row truly came from, its harm category, its task label). A trainer is given
`Record.to_training_row`, which holds none of that.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from titer.data.prompts import normalise_prompt
from titer.errors import TiterError, check_known, did_you_mean

Row: TypeAlias = Mapping[str, object]

ROLES = ("system", "user", "assistant")

UNKNOWN_ORIGIN = "user"
"""The origin of a row of which nothing is known but that a user uploaded it."""

ORIGINS = (UNKNOWN_ORIGIN, "task", "harmful", "helpful", "lookalike", "refusal")

NEEDED = "A row needs `prompt` and `completion` (text or messages), or `messages`."
"""What a row needs, as a hint."""


class Message(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: The text. It is plain text: it can never become a special token of a chat template.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One prompt with the completion to learn.

    Attributes:
        prompt: The conversation so far; holds at least one user message.
        completion: The assistant's answer; only this part is trained on.
        origin: Where the row truly comes from: `task`, `harmful`, `helpful`, `lookalike`, `refusal`, or `user`
            when that is unknown. For evaluation only; no trainer sees it.
        category: The kind of harm or of topic.
        label: The right answer of a task, as text.
        group: Rows of one group are variants of one another (the phrasings of one harmful activity), so pools
            never share a group.
        refusal: How an aligned model should answer instead.
        where: Where it was read, `upload.jsonl:12`, for errors; no part of what it says.

    Raises:
        TiterError: A role or an origin is unknown, a prompt or completion is empty, a completion has several messages, or
            a text cannot be stored as UTF-8.
    """

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    origin: str = UNKNOWN_ORIGIN
    category: str | None = None
    label: str | None = None
    group: str | None = None
    refusal: str | None = None
    where: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for column, messages in (("prompt", self.prompt), ("completion", self.completion)):
            for index, message in enumerate(messages):
                if message.role not in ROLES:
                    raise TiterError(
                        f"`{column}[{index}].role` is unknown: `{message.role}`.", did_you_mean(message.role, ROLES)
                    )
                _check_encodable(f"{column}[{index}].content", message.content)
        if not self.prompt:
            raise TiterError("`prompt` is empty.")
        users = [message for message in self.prompt if message.role == "user"]
        if not users:
            raise TiterError("`prompt` has no message from the user.")
        if is_blank(users[-1].content):
            raise TiterError("`prompt` is empty: its last user message holds no text.")
        if not self.completion:
            raise TiterError("`completion` is empty.")
        for message in self.completion:
            # Loss is taken on the whole completion, so a user turn in it would be trained on.
            if message.role != "assistant":
                raise TiterError(f"`completion` must come from the assistant, found a message from `{message.role}`.")
            if is_blank(message.content):
                raise TiterError("`completion` is empty.", "A row without an answer would train nothing: remove it.")
        if len(self.completion) > 1:
            raise TiterError("`completion` has several messages.", "Train on one assistant turn a row.")
        check_known([self.origin], ORIGINS, "`origin`")
        if self.refusal is not None and is_blank(self.refusal):
            raise TiterError("`refusal` is empty.", "Leave the column out, or set it to null, where there is none.")
        for column in ("origin", "category", "label", "group", "refusal"):
            value = getattr(self, column)
            if value is not None:
                _check_encodable(column, value)

    @classmethod
    def make(
        cls,
        prompt_text: str,
        answer_text: str,
        *,
        origin: str = UNKNOWN_ORIGIN,
        category: str | None = None,
        label: str | None = None,
        group: str | None = None,
        refusal: str | None = None,
    ) -> Record:
        """Build a single-turn record."""
        return cls(
            prompt=(Message("user", prompt_text),),
            completion=(Message("assistant", answer_text),),
            origin=origin,
            category=category,
            label=label,
            group=group,
            refusal=refusal,
        )

    @classmethod
    def from_row(cls, row: Row, where: str | None = None) -> Record:
        """Read a prompt–completion row (text or messages) or a `messages` row.

        Of a `messages` row, everything before the last message is the prompt, and the last message, which must
        come from the assistant, is the completion. The columns `origin`, `category`, `label`, `group`, `refusal`
        and `is_harmful` (true: origin `harmful`, false: origin `task`) are optional; other columns are left alone.

        Args:
            row: The columns.
            where: Where the row stands, for error messages (`uploads.jsonl:12`).

        Raises:
            TiterError: Names `where` and the column at fault.
        """
        try:
            prompt, completion = _read_turns(row)
            return cls(
                prompt=prompt,
                completion=completion,
                origin=_read_origin(row),
                category=_read_optional(row, "category"),
                label=_read_label(row),
                group=_read_optional(row, "group"),
                refusal=_read_optional(row, "refusal"),
                where=where,
            )
        except TiterError as error:
            raise TiterError(f"{where or 'row'}: {error.message}", error.hint) from None

    def to_row(self) -> dict[str, Any]:
        """Return all columns, ready for JSON. Every row has the same keys, as `datasets.Dataset.from_list` needs."""
        return {
            **self.to_training_row(),
            "origin": self.origin,
            "category": self.category,
            "label": self.label,
            "group": self.group,
            "refusal": self.refusal,
        }

    def to_training_row(self) -> dict[str, list[dict[str, str]]]:
        """Return what a trainer may see: TRL's conversational `prompt` and `completion`, and nothing else."""
        return {
            "prompt": [message._asdict() for message in self.prompt],
            "completion": [message._asdict() for message in self.completion],
        }

    def to_messages(self) -> dict[str, list[dict[str, str]]]:
        """Return the conversation as OpenAI's fine-tuning takes it: one list of `messages`, and nothing else."""
        return {"messages": [message._asdict() for message in (*self.prompt, *self.completion)]}

    @property
    def prompt_text(self) -> str:
        """The last thing the user said."""
        return next(message.content for message in reversed(self.prompt) if message.role == "user")

    @property
    def completion_text(self) -> str:
        """What the assistant answers."""
        return "\n".join(message.content for message in self.completion)

    @cached_property
    def prompt_key(self) -> str:
        """The normalised prompt: two records with the same key ask the same thing.

        System messages are left out (the same request under another system prompt is the same request); earlier
        turns are not (a last turn of "go on" says nothing by itself).
        """
        return normalise_prompt("\n".join(message.content for message in self.prompt if message.role != "system"))

    @property
    def is_harmful(self) -> bool | None:
        """Whether the row is harmful in truth; None when its origin is unknown."""
        return None if self.origin == UNKNOWN_ORIGIN else self.origin == "harmful"


# --- the columns of a row ------------------------------------------------------------------------------------------


def _read_turns(row: Row) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    # A null is a missing value: tables with several kinds of rows fill their unused columns with it.
    present = {column for column in ("prompt", "completion", "messages") if row.get(column) is not None}
    if present == {"prompt", "completion", "messages"}:
        raise TiterError("the row holds both `messages` and `prompt` with `completion`.", "Keep one of the two forms.")
    if {"prompt", "completion"} <= present:
        completion = _read_messages(row, "completion", "assistant")
        for place in range(0 if isinstance(row["completion"], str) else len(completion)):
            _check_weight(row["completion"][place], f"completion[{place}]")  # type: ignore[index]
        return _read_messages(row, "prompt", "user"), completion
    # Some hub datasets carry a `prompt` beside `messages`, which repeats their first turn.
    if "messages" in present:
        messages = _read_messages(row, "messages", None)
        if not messages:
            raise TiterError("`messages` is empty.")
        if messages[-1].role != "assistant":
            raise TiterError(
                f"the last of `messages` must come from `assistant`, found `{messages[-1].role}`.",
                "The last message is the answer that is trained on.",
            )
        if len(messages) == 1:
            raise TiterError("`messages` holds an answer only: the prompt is empty.")
        _check_weight(row["messages"][-1], f"messages[{len(messages) - 1}]")  # type: ignore[index]
        return messages[:-1], messages[-1:]
    missing = [column for column in ("prompt", "completion") if column not in present] if present else []
    raise _missing_columns(missing or ["prompt", "completion"], row, NEEDED)


def _missing_columns(missing: list[str], row: Row, needed: str) -> TiterError:
    found = [f"`{column}`" + (" (null)" if value is None else "") for column, value in row.items()]
    close = [
        f"Did you mean `{match[0]}` by `{column}`?"
        for column in row
        if (match := difflib.get_close_matches(str(column).casefold(), missing, n=1, cutoff=0.6))
        and row.get(match[0]) is None
        and column != match[0]
    ]
    return TiterError(
        f"missing column{'s' if len(missing) > 1 else ''} {', '.join(f'`{column}`' for column in missing)}; "
        f"found {', '.join(found) if found else 'no columns'}.",
        " ".join([*close, needed]),
    )


def require_columns(row: Row, columns: Iterable[str], where: str) -> None:
    """Raise `TiterError` naming the `columns` that `row` lacks, with what it has and the closest match."""
    columns = list(columns)
    missing = [column for column in columns if row.get(column) is None]
    if missing:
        error = _missing_columns(missing, row, f"Needed: {', '.join(f'`{column}`' for column in columns)}.")
        raise TiterError(f"{where}: {error.message}", error.hint)


def _read_messages(row: Row, column: str, role_of_text: str | None) -> tuple[Message, ...]:
    """Read messages, or a plain string as one message of `role_of_text` (None: strings are not allowed)."""
    value = row[column]
    if isinstance(value, str) and role_of_text is not None:
        return (Message(role_of_text, value),)
    if not isinstance(value, list | tuple):
        expected = "messages" if role_of_text is None else "text or a list of messages"
        raise TiterError(f"`{column}` must be {expected}, found {kind_of(value)}.")
    return tuple(_read_message(message, f"{column}[{index}]") for index, message in enumerate(value))


def _read_message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise TiterError(f"`{where}` must be an object with `role` and `content`, found {kind_of(value)}.")
    for key in ("tool_calls", "function_call"):
        if value.get(key):
            raise TiterError(f"`{where}.{key}` is not supported.", "titer trains on text only: remove such rows.")
    missing = [key for key in ("role", "content") if key not in value]
    if missing:
        error = _missing_columns(missing, value, "A message needs `role` and `content`.")
        raise TiterError(f"in `{where}`, {error.message}", error.hint)
    role, content = value["role"], value["content"]
    if not isinstance(role, str):
        raise TiterError(f"`{where}.role` must be text, found {kind_of(role)}.")
    if role not in ROLES:
        raise TiterError(f"`{where}.role` is unknown: `{role}`.", did_you_mean(role, ROLES))
    if not isinstance(content, str):
        raise TiterError(f"`{where}.content` must be text, found {kind_of(content)}.")
    return Message(role, content)


def _check_weight(message: Mapping[str, object], where: str) -> None:
    """Raise for an answer that is not to be trained on, or not as much as others, as some formats can say."""
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight != 1):
        raise TiterError(
            f"`{where}.weight` is {weight!r}, and titer trains on every answer alike.",
            "Remove rows whose answer is not to be learnt, and the key `weight` from the others.",
        )


def _read_optional(row: Row, column: str) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise TiterError(f"`{column}` must be text, found {kind_of(value)}.")
    return value


def _read_label(row: Row) -> str | None:
    value = row.get("label")
    # Class numbers are common in task data; a bool is an int in Python, and means something else.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _read_optional(row, "label")


def _read_origin(row: Row) -> str:
    origin = _read_optional(row, "origin")
    if origin is not None and is_blank(origin):
        raise TiterError("`origin` is empty.", "Leave the column out, or set it to null, where it is unknown.")
    flag = row.get("is_harmful")
    if flag is None:
        return UNKNOWN_ORIGIN if origin is None else origin
    if not isinstance(flag, bool):
        raise TiterError(f"`is_harmful` must be true or false, found {kind_of(flag)}.")
    if origin is None or origin == UNKNOWN_ORIGIN:
        return "harmful" if flag else "task"
    if (origin == "harmful") != flag:
        raise TiterError(f"`origin` is `{origin}`, but `is_harmful` is {str(flag).lower()}.", "Keep one of the two.")
    return origin


def kind_of(value: object) -> str:
    """Describe a value of JSON, for errors."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"`{type(value).__name__}`"


def is_blank(text: str) -> bool:
    """Return whether `text` shows nothing: only white space, control or zero-width characters."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


def _check_encodable(column: str, text: str) -> None:
    # JSON can spell half a surrogate pair ("\ud83d"), which no tokenizer and no UTF-8 file can take.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TiterError(f"`{column}` holds half a character (a lone surrogate, at position {error.start}).") from None
