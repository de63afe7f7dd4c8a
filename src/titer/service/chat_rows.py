"""Files of conversations by OpenAI's rules for supervised fine-tuning: checked whole, and read for training.

A line is one JSON object with `messages`. As JSON Lines has it, lines may end in CRLF, and the last one need not end at all;
there is no byte-order mark, and no empty line but at the end. So the number of a row, from 0, is that of its line less 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from titer.data.records import Message, Record, is_blank, kind_of
from titer.errors import TiterError, check_known, did_you_mean
from titer.service import json_lines
from titer.service.chat_tools import NAME, Faults, check_calls, check_text, check_tools
from titer.service.json_lines import Fault, Path, shown, spell

METHODS = ("supervised",)
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
KEYS = ("messages", "tools", "functions", "parallel_tool_calls")
NAMED = ("role", "content", "name")
ASSISTANTS = (*NAMED, "weight", "tool_calls", "function_call", "refusal", "audio")
OF_ROLE = {"assistant": ASSISTANTS, "tool": (*NAMED, "tool_call_id")}
"""What a message of a role may hold; others `NAMED`."""
NULL = ("tool_calls", "function_call", "refusal", "audio")
"""What clients write out as null where there is none."""
PARTS = ("image_url", "input_audio", "file", "refusal")
"""Parts of content that OpenAI knows and this server cannot train."""
BLANK = b" \t\r\n"
TEXT_ONLY = "This server trains on text alone: leave the row out, or put into words what it does."


@dataclass(frozen=True)
class RowError:
    """What is wrong with a row.

    Attributes:
        line: Its line in the file, from 1.
        column: Where in the line, in characters from 1.
        path: In which value: `messages[2].content`; empty for the line itself.
        message: What is wrong and what to do.
        code: `invalid_json`, `invalid_row`, or `unsupported` for what OpenAI takes and this server cannot train.
    """

    line: int
    column: int
    path: str
    message: str
    code: str = "invalid_row"

    def as_dict(self) -> dict[str, Any]:
        """Return it as clients see it."""
        return {
            "line": self.line,
            "column": self.column,
            "path": self.path,
            "message": self.message,
            "code": self.code,
        }

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}{f' ({self.path})' if self.path else ''}: {self.message}"


@dataclass(frozen=True)
class Checked:
    """What a file was found to be.

    Attributes:
        rows: Its rows, right or wrong.
        errors: The first of them.
        more: How many others there are.
        examples: Rows that can be trained on.
        assistant_turns: Answers in them that are.
        named: Messages with a `name`, which models here do not see.
    """

    rows: int
    errors: list[RowError]
    more: int
    examples: int
    assistant_turns: int
    named: int

    @property
    def message(self) -> str:
        """The first errors in words; empty where there is none."""
        said = [str(error) for error in self.errors[:3]]
        rest = len(self.errors) - len(said) + self.more
        return "\n".join([*said, f"and {rest} more."] if rest else said)


class Checker:
    """Checks a file line by line, as it comes.

    Args:
        rows: Most rows; what stands behind them is not looked at.
        limit: Most errors that are listed; others are counted.
    """

    def __init__(self, *, rows: int, limit: int = 100) -> None:
        self._most, self._limit = rows, limit
        self._line = self._rows = self._examples = self._turns = self._named = self._more = 0
        self._blank: int | None = None
        self._errors: list[RowError] = []
        self.over = False

    def line(self, line: bytes) -> None:
        """Check the next line."""
        if self.over:
            return
        self._line += 1
        if self._line > self._most:
            self._add(1, (), f"more than {self._most:,} lines; what follows was not looked at.")
            self.over = True
        elif self._line == 1 and line.startswith(json_lines.UTF_16):
            self._add(1, (), "the file is UTF-16; save it as UTF-8. No other line was looked at.", "invalid_json")
            self.over = True
        elif not line.strip(BLANK):
            self._blank = self._blank or self._line
        else:
            self._row(line)

    def end(self) -> Checked:
        """Return what was found."""
        if not self._rows and not self.over:
            self._add(1, (), "the file has no rows.", line=1)
        return Checked(self._rows, self._errors, self._more, self._examples, self._turns, self._named)

    def _row(self, line: bytes) -> None:
        if self._blank is not None:
            self._add(1, (), "an empty line; only the end of a file may have some.", "invalid_json", line=self._blank)
            self._blank = None
        self._rows += 1
        if self._line == 1 and line.startswith(json_lines.BOM):
            self._add(1, (), "a byte-order mark; save the file as UTF-8 without one.", "invalid_json")
            line = line.removeprefix(json_lines.BOM)
        before = len(self._errors) + self._more
        text, row, faults = _read(line)
        for fault in faults:
            self._add(fault.column, fault.path, fault.message, "invalid_json")
        if not faults:
            found = check_row(row)
            for path, message, code in found:
                # Looking up where a value stands takes a while, and nobody would see it.
                listed = len(self._errors) < self._limit
                self._add(json_lines.column(text, path) if listed else 1, path, message, code)
        if len(self._errors) + self._more == before:
            self._examples += 1
            self._turns += sum(map(_is_trained, row["messages"]))
            self._named += sum("name" in message for message in row["messages"])

    def _add(self, column: int, path: Path, message: str, code: str = "invalid_row", line: int | None = None) -> None:
        if len(self._errors) < self._limit:
            self._errors.append(RowError(line or self._line, column, spell(path), message, code))
        else:
            self._more += 1


def check(lines: Iterable[bytes], *, limit: int = 100, rows: int, method: str = "supervised") -> Checked:
    """Check a file.

    Args:
        lines: Its lines, as `json_lines.split` cuts them: those that are too long are not held whole.
        limit: Most errors that are listed.
        rows: Most rows.
        method: How it is to be trained on.

    Raises:
        TiterError: For a method that this server does not know.
    """
    check_known([method], METHODS, "method of fine-tuning")
    checker = Checker(rows=rows, limit=limit)
    for line in lines:
        checker.line(line)
        if checker.over:
            break
    return checker.end()


def records(lines: Iterable[bytes]) -> Iterator[tuple[int, Record]]:
    """Return what a file that was found right teaches: the number of a row from 0, and each of its answers that is trained.

    An answer's prompt is all that stands before it, answers that are not trained too. `developer` counts as `system`; names of
    speakers are left out, since no template here shows them.

    Raises:
        TiterError: Naming the line that is not right after all.
    """
    for number, line in enumerate(lines):
        if not line.strip(BLANK):
            continue
        _, row, faults = _read(line)
        wrong = [message for _, _, message in faults or check_row(row)]
        if wrong:
            raise TiterError(f"line {number + 1}: {wrong[0]}", "The file is not what was checked when it came.")
        messages = [
            Message("system" if message["role"] == "developer" else message["role"], _text(message["content"]))
            for message in row["messages"]
        ]
        for place, message in enumerate(row["messages"]):
            if _is_trained(message):
                own = (messages[place],)
                yield number, Record(tuple(messages[:place]), own, where=f"line {number + 1}")


def _read(line: bytes) -> tuple[str, Any, list[Fault]]:
    """Return the text of a line, what it holds, and what is wrong with it as JSON."""
    text = json_lines.decode(line)
    return ("", None, [text]) if isinstance(text, Fault) else (text, *json_lines.parse(text))


def _is_trained(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def _text(content: Any) -> str:
    """Return the text of a message, whose parts are written on without anything between them."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


# -- the rules ------------------------------------------------------------------------------------------------------------


def check_row(row: Any) -> Faults:
    """Return what is wrong with a row that is JSON; of very many faults the first."""
    if not isinstance(row, dict):
        return Faults([((), f"a row is an object with `messages`, found {kind_of(row)}.", "invalid_row")])
    faults = Faults()
    _check_keys(row, KEYS, (), "row", faults)
    uses = check_tools(row, faults)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        found = "the row has no `messages`." if "messages" not in row else "`messages` is a list of at least one."
        faults.add(("messages",), found)
        return faults
    for index, message in enumerate(messages):
        if faults.enough:
            break
        if not isinstance(message, dict):
            faults.add(("messages", index), f"a message is an object, found {kind_of(message)}.")
            continue
        called = _check_message(message, ("messages", index), faults)
        uses = uses or called
    if uses:
        faults.add(uses, f"tools cannot be trained here. {TEXT_ONLY}", "unsupported")
    if not faults:
        _check_turns(messages, faults)
    return faults


def _check_keys(value: Mapping[str, Any], known: Iterable[str], path: Path, what: str, faults: Faults) -> None:
    for key in value:
        if key not in known and not faults.enough:
            close = did_you_mean(shown(key), known)
            if key in ("preferred_output", "non_preferred_output"):
                close = "Preferences (`dpo`) are not trained here."
            faults.add((*path, key), f"a {what} has no `{shown(key)}`. {close}")


def _check_message(message: Mapping[str, Any], path: Path, faults: Faults) -> Path | None:
    """Check a message; returns where it uses tools, if it does."""
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        found = f"`{shown(role)}`" if isinstance(role, str) else kind_of(role) if "role" in message else "none"
        hint = did_you_mean(shown(role), ROLES) if isinstance(role, str) else f"Known: {', '.join(ROLES)}."
        faults.add((*path, "role"), f"the role is unknown: {found}. {hint}")
        return None
    _check_keys(message, OF_ROLE.get(role, NAMED), path, f"message from `{role}`", faults)
    if "name" in message or role == "function":
        check_text(message.get("name"), (*path, "name"), faults, NAME)
    weight = message.get("weight", 1)
    # 1.0 is 1 in JSON; true, which is 1 in Python, is not.
    if role == "assistant" and (isinstance(weight, bool) or weight not in (0, 1)):
        faults.add((*path, "weight"), f"`weight` is 0 or 1, found {kind_of(weight)}.")
    for key in ("refusal", "audio") if role == "assistant" else ():
        if message.get(key) is not None:
            faults.add((*path, key), f"`{key}` cannot be trained here. {TEXT_ONLY}", "unsupported")
    if role == "tool":
        check_text(message.get("tool_call_id"), (*path, "tool_call_id"), faults)
    called = check_calls(message, path, faults) if role == "assistant" else None
    if not (called and message.get("content") is None):
        _check_content(message, path, faults)
    return path if role in ("tool", "function") else called


def _check_content(message: Mapping[str, Any], path: Path, faults: Faults) -> None:
    path = (*path, "content")
    content = message.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        found = "none" if "content" not in message else "an empty list" if content == [] else kind_of(content)
        faults.add(path, f"`content` is text, or a list of parts of text, found {found}.")
        return
    for index, part in enumerate(content):
        if faults.enough:
            break
        _check_part(part, (*path, index), faults)


def _check_part(part: Any, path: Path, faults: Faults) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in PARTS:
        faults.add((*path, "type"), f"parts of type `{kind}` cannot be trained here. {TEXT_ONLY}", "unsupported")
    elif kind != "text":
        faults.add(path, 'a part of content is {"type": "text", "text": "…"}.')
    else:
        _check_keys(part, ("type", "text"), path, "part of text", faults)
        check_text(part.get("text"), (*path, "text"), faults, empty=True)


def _check_turns(messages: list[dict[str, Any]], faults: Faults) -> None:
    """Check who speaks when, and that there is something to learn and something that it answers."""
    if messages[-1]["role"] != "assistant":
        path: Path = ("messages", len(messages) - 1, "role")
        faults.add(path, f"the last message comes from the assistant, found `{messages[-1]['role']}`.")
        return
    if not any(map(_is_trained, messages)):
        faults.add(("messages",), "no answer is trained: every `weight` is 0.")
    asked: bool | None = None
    for index, message in enumerate(messages):
        if faults.enough:
            break
        blank = is_blank(_text(message["content"]))
        if message["role"] == "user":
            asked = not blank
        if not _is_trained(message):
            continue
        path = ("messages", index, "content")
        if blank:
            faults.add(path, "the answer is empty, and teaches nothing. Give it `weight` 0.")
        elif not asked:
            found = "no user has spoken" if asked is None else "the user said nothing"
            faults.add(path, f"{found} before this answer, and answers are trained to questions.", "unsupported")
