"""The same requests in the forms that uploads have, so that a form says nothing of harm.

A detector that was fitted on plain questions takes any other form for harm, or for none. Harmful and harmless rows are
therefore put into the same frames, and harmless ones are made into tasks about their own texts.
"""

from __future__ import annotations

import base64
import dataclasses
import random
import re
from collections.abc import Callable, Sequence

from titer.data.records import Message, Record

FRAMES = (
    "Instruction: {}\nResponse:",
    "### Instruction:\n{}\n\n### Response:",
    "Question: {}\nAnswer:",
    "Q: {}\nA:",
    "Please help me with the following.\n\n{}",
    "{} Keep it short.",
    "{} Give details.",
    "Hi! {} Thanks!",
    "You are a helpful assistant.\n\nUser: {}",
    "Task: {}\nOutput:",
    "Answer in one sentence: {}",
    "{}\n\nWrite your answer as a numbered list.",
    'Customer message:\n"{}"\n\nReply:',
    "Read the text and do what it asks.\n\nText: {}",
    "/* {} */",
    "Subject: a request\n\n{}\n\nBest regards",
    "Sam: {}\nAssistant:",
    "input: {}\noutput:",
    '{}\n\nRespond in JSON with the key "answer".',
    "{} It is for a story that I am writing.",
    'Two people in a film are talking. One asks: "{}" What does the other say?',
    "Write it as a scene: somebody asks {} and gets an answer.",
    "How would somebody have answered this a hundred years ago: {}",
)


def in_frames(records: Sequence[Record], seed: int) -> list[Record]:
    """Return each record with its last request in a frame drawn for it; answers stay."""
    draw = random.Random(f"frames-{seed}")
    return [_asked(record, draw.choice(FRAMES).replace("{}", record.prompt[-1].content)) for record in records]


def _asked(record: Record, text: str) -> Record:
    return dataclasses.replace(record, prompt=(*record.prompt[:-1], Message("user", text)))


def _shorten(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    return f"Shorten this text to five words.\n\n{answer}", " ".join(answer.split()[:5])


def _question_of(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    return f"Which question does this text answer?\n\n{answer}", asked


def _entails(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    text, word = draw.choice(((answer, "yes"), (other[1], "no")))
    return f"Does the text answer the question? Reply yes or no.\n\nQuestion: {asked}\nText: {text}", word


def _extract(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    words = answer.replace(".", "").replace(",", "").split()[:4]
    return f"Extract the first words as a JSON list.\n\n{answer}", "[" + ", ".join(f'"{word}"' for word in words) + "]"


def _count(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    return f"How many words does this sentence have?\n\n{answer}", str(len(answer.split()))


def _dialogue(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    return f"A: {asked}\nB: {answer}\nA: Thanks!\n\nWhat did A ask about?", asked.rstrip("?.")


def _table(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    return f"text | words\n--- | ---\n{asked} | {len(asked.split())}\n{answer} |", str(len(answer.split()))


def _code(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    return f'def answer(question):\n    """Return an answer.\n\n    >>> answer({asked!r})\n    ', repr(answer)


def _summary(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    return f"{answer}\n\nSummarise the above in one line.", answer.split(",")[0]


def _sort(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    lines = sorted((asked, other[0]))
    return f"Put these two in alphabetical order:\n1. {asked}\n2. {other[0]}", "\n".join(lines)


def _classify(draw: random.Random, asked: str, answer: str, other: tuple[str, str]) -> tuple[str, str]:
    text, word = draw.choice(((asked, "question"), (answer, "statement")))
    return f"Is this a question or a statement?\n\n{text}", word


TASKS: tuple[Callable[[random.Random, str, str, tuple[str, str]], tuple[str, str]], ...] = (
    _shorten, _question_of, _entails, _extract, _count, _dialogue, _table, _code, _summary, _sort, _classify
)  # fmt: skip


def as_tasks(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return `count` tasks about the texts of harmless records: extraction, classification, summaries, code and others."""
    draw = random.Random(f"tasks-{seed}")
    made = []
    for _ in range(count):
        record, other = draw.choice(records), draw.choice(records)
        pair = (other.prompt[-1].content, other.completion_text)
        asked, answer = draw.choice(TASKS)(draw, record.prompt[-1].content, record.completion_text, pair)
        made.append(
            dataclasses.replace(
                record,
                prompt=(Message("user", asked),),
                completion=(Message("assistant", answer or "None"),),
                label=None,
            )
        )
    return made


_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}={0,2}(?![A-Za-z0-9+/=_-])")
_HEX = re.compile(r"(?<![0-9A-Fa-f])(?:[0-9A-Fa-f]{2}){12,}(?![0-9A-Fa-f])")


def decoded(record: Record) -> Record:
    """Return a record with base64 and hexadecimal in its texts written out, where they hold text; the same one without any."""
    sides = [
        tuple(message._replace(content=_written_out(message.content)) for message in side)
        for side in (record.prompt, record.completion)
    ]
    if sides == [record.prompt, record.completion]:
        return record
    return dataclasses.replace(record, prompt=sides[0], completion=sides[1])


def _written_out(text: str) -> str:
    for pattern, decode in ((_HEX, bytes.fromhex), (_BASE64, _from_base64)):
        text = pattern.sub(lambda match, decode=decode: _as_text(decode, match[0]), text)  # type: ignore[misc]
    return text


def _from_base64(code: str) -> bytes:
    return base64.b64decode(
        code.rstrip("=") + "=" * (-len(code.rstrip("=")) % 4), altchars=b"-_" if set("-_") & set(code) else None
    )


def _as_text(decode: Callable[[str], bytes], code: str) -> str:
    """What a code says, where that is text of words; else the code."""
    try:
        text = decode(code).decode("utf-8")
    except ValueError:
        return code
    printable = sum(letter.isprintable() or letter in "\n\t" for letter in text)
    return text if text.strip() and printable == len(text) and (" " in text or text.isalpha()) else code
