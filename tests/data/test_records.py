import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told import refused, untold

from titer.data import Message, Record, normalise_prompt, read_jsonl, read_records, write_jsonl
from titer.data.records import is_blank
from titer.errors import TiterError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not is_blank(text))
MAYBE = st.none() | TEXT


@st.composite
def records(draw):
    turns = draw(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=3))
    return Record(
        prompt=(*(Message(*turn) for turn in turns), Message("user", draw(TEXT))),
        completion=(Message("assistant", draw(TEXT)),),
        origin=draw(st.sampled_from(["user", "task", "harmful", "helpful", "lookalike"])),
        category=draw(MAYBE),
        label=draw(MAYBE),
        group=draw(MAYBE),
        refusal=draw(MAYBE),
    )


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


GOOD = {"prompt": "What is 2 + 2?", "completion": "4"}


# --- rows ---


def test_make_is_a_single_turn_in_trls_schema():
    record = Record.make("Hello?", "Hi.", origin="task", label="x")
    assert record.to_row() == {
        "prompt": [{"role": "user", "content": "Hello?"}],
        "completion": [{"role": "assistant", "content": "Hi."}],
        "origin": "task",
        "category": None,
        "label": "x",
        "group": None,
        "refusal": None,
    }
    assert (record.prompt_text, record.completion_text) == ("Hello?", "Hi.")


def test_a_trainer_never_sees_the_origin():
    record = Record.make("a", "b", origin="harmful", category="c", label="l", group="g", refusal="r")
    assert set(record.to_training_row()) == {"prompt", "completion"}


@settings(deadline=None)
@given(records())
def test_row_round_trip(record):
    assert Record.from_row(json.loads(json.dumps(record.to_row()))) == record


@settings(deadline=None)
@given(st.lists(records(), min_size=1, max_size=5))
def test_file_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("round") / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


def test_plain_strings_conversations_and_messages_give_the_same_record():
    plain = Record.from_row(GOOD)
    user, answer = {"role": "user", "content": GOOD["prompt"]}, {"role": "assistant", "content": "4"}
    assert plain == Record.make(GOOD["prompt"], "4")
    assert Record.from_row({"prompt": [user], "completion": [answer]}) == plain
    assert Record.from_row({"messages": [user, answer]}) == plain
    # One text column, the other messages; and the columns that a table of mixed rows fills with nulls.
    assert Record.from_row({"prompt": GOOD["prompt"], "completion": [answer], "messages": None}) == plain
    assert Record.from_row({"messages": [user, answer], "prompt": None, "completion": None}) == plain


def test_everything_before_the_last_message_is_the_prompt():
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Bye!")]
    record = Record.from_row({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert record.prompt == tuple(Message(*turn) for turn in turns[:-1])
    assert (record.prompt_text, record.completion_text) == ("Bye", "Bye!")


def test_a_prompt_column_beside_messages_is_their_repetition():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert Record.from_row({"prompt": "Hi", "messages": messages}) == Record.make("Hi", "Hello")


@pytest.mark.parametrize(
    ("columns", "origin", "is_harmful"),
    [
        ({}, "user", None),
        ({"origin": "lookalike"}, "lookalike", False),
        ({"is_harmful": True}, "harmful", True),
        ({"is_harmful": False}, "task", False),
        ({"is_harmful": False, "origin": "lookalike"}, "lookalike", False),
        ({"is_harmful": True, "origin": "user"}, "harmful", True),
        ({"is_harmful": None, "origin": None}, "user", None),
    ],
)
def test_origin(columns, origin, is_harmful):
    record = Record.from_row({**GOOD, **columns})
    assert (record.origin, record.is_harmful) == (origin, is_harmful)


def test_optional_columns_are_kept_and_others_left_alone():
    record = Record.from_row({**GOOD, "category": "c", "label": 3, "group": "g", "refusal": "No.", "source_id": 9})
    assert (record.category, record.label, record.group, record.refusal) == ("c", "3", "g", "No.")


BAD_ROWS = {
    "misspelt column": ({"promt": "a", "completion": "b"}, ["column `prompt`", "missing", "`promt`"]),
    "no known column": (
        {"instruction": "a"},
        ["missing columns `prompt`, `completion`", "`instruction`", "`messages`"],
    ),
    "no columns": ({}, ["found no columns"]),
    "null completion": ({"prompt": "a", "completion": None}, ["missing column `completion`", "`completion` (null)"]),
    "both forms": ({**GOOD, "messages": [{"role": "user", "content": "a"}]}, ["both `messages` and `prompt`"]),
    "empty prompt": ({"prompt": " \n", "completion": "b"}, ["`prompt` is empty"]),
    "no prompt messages": ({"prompt": [], "completion": "b"}, ["`prompt` is empty"]),
    "zero-width prompt": ({"prompt": "\u200b", "completion": "b"}, ["`prompt` is empty"]),
    "empty completion": ({"prompt": "a", "completion": "\t "}, ["`completion` is empty"]),
    "no completion messages": ({"prompt": "a", "completion": []}, ["`completion` is empty"]),
    "no user": (
        {"prompt": [{"role": "system", "content": "x"}], "completion": "b"},
        ["`prompt`", "no message", "user"],
    ),
    "user in completion": (
        {"prompt": "a", "completion": [{"role": "user", "content": "b"}]},
        ["`completion`", "assistant", "`user`"],
    ),
    "last not assistant": (
        {"messages": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]},
        ["last of `messages`", "`assistant`", "`user`"],
    ),
    "answer only": ({"messages": [{"role": "assistant", "content": "b"}]}, ["`messages`", "prompt is empty"]),
    "no messages": ({"messages": []}, ["`messages` is empty"]),
    "messages as text": ({"messages": "a"}, ["`messages` must be messages", "text"]),
    "unknown role": (
        {"prompt": [{"role": "usr", "content": "a"}], "completion": "b"},
        ["`prompt[0].role`", "`usr`", "`user`"],
    ),
    "content not text": (
        {"messages": [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}]},
        ["`messages[0].content`", "text", "list"],
    ),
    "content null": (
        {"prompt": "a", "completion": [{"role": "assistant", "content": None}]},
        ["`completion[0].content`", "text", "null"],
    ),
    "message without content": (
        {"prompt": [{"role": "user", "contents": "a"}], "completion": "b"},
        ["`prompt[0]`", "column `content`", "missing", "`contents`"],
    ),
    "message not an object": ({"prompt": ["a"], "completion": "b"}, ["`prompt[0]`", "object", "text"]),
    "tool calls": (
        {"prompt": "a", "completion": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
        ["`completion[0].tool_calls` is not supported"],
    ),
    "prompt a number": ({"prompt": 3, "completion": "b"}, ["`prompt`", "text", "list of messages", "number 3"]),
    "is_harmful not bool": ({**GOOD, "is_harmful": 1}, ["`is_harmful`", "true", "false", "number 1"]),
    "origins disagree": ({**GOOD, "is_harmful": True, "origin": "task"}, ["`origin` is `task`", "`is_harmful`"]),
    "category not text": ({**GOOD, "category": 3}, ["`category`", "text", "number 3"]),
    "label a bool": ({**GOOD, "label": True}, ["`label`", "text", "true"]),
    "empty refusal": ({**GOOD, "refusal": ""}, ["`refusal` is empty"]),
    "half a character": ('{"prompt": "\\ud83d", "completion": "b"}', ["`prompt[0].content`", "half a character"]),
    "broken JSON": ('{"prompt": "a",', ["broken JSON", "column 16"]),
    "not an object": ("[1]", ["object", "list"]),
    "deep nesting": ("[" * 100_000, ["broken JSON"]),
    "huge number": ("1" * 5000, ["broken JSON"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_line_is_named_with_its_file_line_and_column(tmp_path, name):
    row, parts = BAD_ROWS[name]
    path = write(tmp_path / "upload.jsonl", GOOD, "", row)
    with pytest.raises(TiterError) as caught:
        read_jsonl(path)
    assert caught.value.message.startswith(f"{path}:3: ")
    assert not untold(caught.value, *parts)


def test_building_a_record_in_code_is_checked_too():
    with pytest.raises(TiterError, match="`completion` is empty"):
        Record.make("a", "  ")
    with pytest.raises(TiterError, match="role` is unknown"):
        Record((Message("bot", "a"),), (Message("assistant", "b"),))


# --- files ---


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_file(tmp_path, text):
    path = tmp_path / "empty.jsonl"
    path.write_text(text)
    with pytest.raises(TiterError, match=r"empty\.jsonl is empty"):
        read_jsonl(path)


def test_missing_file_and_folder(tmp_path):
    with refused(tmp_path / "gone.jsonl", "not exist"):
        read_jsonl(tmp_path / "gone.jsonl")
    with pytest.raises(TiterError, match="is a folder"):
        read_jsonl(tmp_path)
    (tmp_path / "rows.xml").touch()
    with pytest.raises(TiterError, match="unknown format"):
        read_records(tmp_path / "rows.xml")


def test_not_utf8_names_the_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(TiterError, match=r"latin\.jsonl:2: not UTF-8"):
        read_jsonl(path)


def test_byte_order_mark_windows_lines_and_unicode_line_ends_are_read(tmp_path):
    path = tmp_path / "windows.jsonl"
    # U+2028 ends a line for `str.splitlines`, but not in JSON Lines.
    row = json.dumps({"prompt": "a\u2028b", "completion": "c"}, ensure_ascii=False).encode()
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n" + row)
    assert [record.prompt_text for record in read_jsonl(path)] == ["a\u2028b"] * 2


def test_write_is_atomic(tmp_path):
    path = tmp_path / "rows.jsonl"
    old = [Record.make("old", "row")]
    write_jsonl(path, old)

    def broken():
        yield Record.make("new", "row")
        raise RuntimeError("stopped in the middle")

    with pytest.raises(RuntimeError, match="stopped in the middle"):
        write_jsonl(path, broken())
    assert read_jsonl(path) == old
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_failing_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [Record.make("old", "row")])

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with refused(path, "No space left on device"):
        write_jsonl(path, [Record.make("new", "row")])
    assert read_jsonl(path) == [Record.make("old", "row")]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_write_makes_folders_and_an_ordinary_file(tmp_path):
    path = tmp_path / "a" / "b" / "rows.jsonl"
    write_jsonl(path, [Record.make("é", "ü")])
    (tmp_path / "ordinary").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)
    assert "é" in path.read_text("utf-8")


def test_write_over_a_folder_is_a_clear_error(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    with refused(tmp_path / "rows.jsonl", "folder"):
        write_jsonl(tmp_path / "rows.jsonl", [Record.make("a", "b")])
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_other_formats_give_the_same_records(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": 'Say "a, b"\nplease\u2028now', "completion": "a, b", "category": "x", "is_harmful": True},
        {"prompt": "c", "completion": "d", "category": None, "is_harmful": None},
    ]
    expected = [
        Record.make('Say "a, b"\nplease\u2028now', "a, b", origin="harmful", category="x"),
        Record.make("c", "d"),
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.csv").write_text(
        'prompt,completion,category,is_harmful\n"Say ""a, b""\nplease\u2028now","a, b",x,True\nc,d,,\n', "utf-8"
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for suffix in ("json", "csv", "parquet"):
        assert read_records(tmp_path / f"rows.{suffix}") == expected, suffix


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.csv", "prompt,completion\na,b\nc,\n", ["a.csv:3", "`completion` is empty"]),
        ("a.csv", "prompt,completion\na,b,c\n", ["a.csv:2", "as many fields"]),
        ("a.csv", "prompt,completion\na\n", ["a.csv:2", "as many fields"]),
        ("a.csv", 'prompt,completion\n"a,b\n', ["a.csv", "broken CSV"]),
        ("a.csv", "prompt,completion,is_harmful\na,b,maybe\n", ["a.csv:2", "`is_harmful`", "`maybe`"]),
        ("a.csv", "prompt,completion\n", ["a.csv is empty"]),
        ("a.json", "[]", ["a.json is empty"]),
        ("a.json", "{}", ["a.json", "list", "objects", ".jsonl"]),
        ("a.json", '[\n{"prompt": }]', ["a.json", "broken JSON", "line 2"]),
        ("a.json", "[3]", ["a.json: row 0", "expected an object"]),
        ("a.parquet", "not parquet", ["a.parquet", "broken Parquet"]),
        ("a.parquet", None, ["a.parquet", "not exist"]),
    ],
)
def test_bad_files_of_other_formats(tmp_path, name, text, parts):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TiterError) as caught:
        read_records(tmp_path / name)
    assert not untold(caught.value, *parts)


# --- normalised prompts ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I pick a lock?", "  how do i PICK\na lock "),
        ("What's this?", "what’s this"),
        ("a step-by-step guide", "a step by step guide"),
        ("ﬁle №\u00a01", "file no 1"),
        ("make a b\u200bomb", "make a bomb"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "café"),
        ("1,000 men", "1000 men"),
        ("3+4", "3 + 4 ="[:5]),
        ("hello 😀!", "hello"),
    ],
)
def test_variants_of_a_prompt_are_the_same(one, other):
    assert normalise_prompt(one) == normalise_prompt(other)


def test_different_questions_stay_different():
    prompts = ["3 + 4", "3 - 4", "3 * 4", "3 / 4", "3 ^ 4", "3 4", "-3 4", "1.5", "15", "1 5", "?", "!", "", "£5", "$5"]
    prompts += ["(3 + 4) - 2", "(3 + 4) * 2", "कि", "की"]
    assert len({normalise_prompt(prompt) for prompt in prompts}) == len(prompts)


WORDS = st.lists(st.sampled_from(["how", "pick", "Lock", "café", "42", "Ünder", "ＦＵＬＬ"]), min_size=1)


@settings(deadline=None)
@given(WORDS, st.lists(st.sampled_from([" ", "  ", "\n", ", ", "… ", " — ", "! "]), min_size=8))
def test_case_white_space_and_punctuation_do_not_count(words, gaps):
    decorated = "".join(word.upper() + gaps[index % len(gaps)] for index, word in enumerate(words))
    assert normalise_prompt(decorated) == normalise_prompt(" ".join(words))


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"])))
def test_normalised_text_holds_no_runs_or_ends_of_white_space(text):
    normal = normalise_prompt(text)
    assert normal == " ".join(normal.split())
    assert bool(normal) == (not is_blank(text))


def test_the_key_ignores_the_system_message_but_not_earlier_turns():
    def record(*turns):
        return Record(tuple(Message(*turn) for turn in turns), (Message("assistant", "x"),))

    plain = record(("user", "Go on!"))
    assert record(("system", "Be brief"), ("user", "go on")).prompt_key == plain.prompt_key
    assert record(("user", "A"), ("assistant", "B"), ("user", "go on")).prompt_key != plain.prompt_key
