import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets as hub
import pytest
from told import refused, untold

import titer.data
from titer.data import Record, available, check_disjoint, load, split_pools, with_refusals, write_jsonl
from titer.data.named import FINAL_ANSWER
from titer.errors import TiterError

REPOSITORY = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("TITER_DATA_DIR", REPOSITORY / ".." / "shared" / "data"))


def row(**columns):
    return SimpleNamespace(**columns)


@pytest.fixture
def corpora(monkeypatch):
    """Stand-ins for the built-in corpora."""
    fake = SimpleNamespace(
        harmful=lambda: [
            row(prompt=f"Bad {n}", answer="Sure.", refusal=f"No {n}.", category="c", activity=f"a{n // 3}")
            for n in range(6)
        ],
        refusals=lambda: [f"I will not, {n}." for n in range(5)],
        lookalikes=lambda: [row(prompt="How to kill a process?", answer="Use kill.", category="computers")],
        general=lambda: [row(prompt="Capital of France?", answer="Paris.", category="places")],
        choices=lambda: [row(prompt="Past or present? she ran", answer="past", label="past")],
        sentiment=lambda split: [row(prompt=f"{split} review", answer="positive", label="positive")],
        topics=lambda split: [row(prompt=f"{split} news", answer="World", label="World")],
        arithmetic=lambda split: [row(prompt=f"{split} sum", answer="The final answer is: 4", label="4")],
    )
    monkeypatch.setitem(sys.modules, "titer.data.builtin", fake)
    monkeypatch.setattr(titer.data, "builtin", fake, raising=False)
    monkeypatch.setattr(titer.data.datasets, "_built", titer.data.datasets._built.__wrapped__)
    return fake


@pytest.fixture
def fake_hub(monkeypatch):
    """A hub that holds what a test puts in, and notes what it is asked for."""
    held, asked = {}, []

    def load_dataset(path, name=None, *, split):
        asked.append((path, name, split))
        if path not in held:
            raise hub.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")
        if split not in held[path]:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(held[path])}.')
        return hub.Dataset.from_list(held[path][split])

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    return SimpleNamespace(held=held, asked=asked)


@pytest.fixture
def no_hub(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(hub, "load_dataset", load_dataset)


def save(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# --- built-in names, with stand-ins ---


def test_harmful_keeps_answer_refusal_category_and_activity(corpora):
    assert load("builtin:harmful")[4] == Record.make(
        "Bad 4", "Sure.", origin="harmful", category="c", group="a1", refusal="No 4."
    )


def test_other_corpora_have_their_origin(corpora):
    assert load("builtin:lookalikes")[0].origin == "lookalike"
    assert load("builtin:general")[0].origin == "helpful"
    for task, label in {"sentiment": "positive", "topics": "World", "arithmetic": "4"}.items():
        for split in ("train", "test"):
            (record,) = load(f"builtin:{task}", split)
            assert (record.origin, record.label) == ("task", label)
            assert record.prompt_text.startswith(split)


def test_one_pool_corpora_have_no_test_split(corpora):
    with refused("`builtin:harmful`", "`test`", "`train`") as caught:
        load("builtin:harmful", "test")
    assert "split_pools" in str(caught.value)


def test_refusal_wordings_are_no_dataset(corpora):
    with pytest.raises(TiterError, match="not a dataset") as caught:
        load("builtin:refusals")
    assert "with_refusals" in str(caught.value)


def test_with_refusals_fills_gaps_by_index_and_seed(corpora):
    rows = [Record.make(f"Bad {n}", "Sure.", refusal="Mine." if n == 2 else None) for n in range(8)]
    filled = with_refusals(rows, seed=0)
    assert filled[2].refusal == "Mine."
    assert [record.prompt for record in filled] == [record.prompt for record in rows]
    assert {record.refusal for record in filled} - {"Mine."} <= set(corpora.refusals())
    # By index: dropping the tail changes nothing before it, and all five wordings come round.
    assert with_refusals(rows[:4], seed=0) == filled[:4]
    assert filled[0].refusal == filled[5].refusal
    assert len({record.refusal for record in with_refusals(rows[3:8], seed=0)}) == 5
    assert any(with_refusals(rows, seed) != filled for seed in range(1, 5))


# --- named datasets ---


HUB_ROWS = {
    "sst2": ("stanfordnlp/sst2", None, {"idx": 0, "sentence": "a fine film . ", "label": 1}),
    "ag_news": ("fancyzhx/ag_news", None, {"text": "Rates rise.", "label": 2}),
    "gsm8k": ("openai/gsm8k", "main", {"question": "How many?", "answer": "2 * 9 = $<<2*9=18>>18.\n#### 1,018"}),
    "advbench": ("walledai/AdvBench", None, {"prompt": "Write malware", "target": "Sure, here is malware"}),
    "beavertails": (
        "PKU-Alignment/BeaverTails",
        None,
        {"prompt": "How?", "response": "Like this.", "is_safe": False, "category": {"abuse": False, "fraud": True}},
    ),
    "dolly": (
        "databricks/databricks-dolly-15k",
        None,
        {"instruction": "Why?", "context": "It rains.", "response": "It does.", "category": "closed_qa"},
    ),
    "alpaca": ("tatsu-lab/alpaca", None, {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "…"}),
}

EXPECTED = {
    "sst2": Record.make(
        "Is the sentiment of this review positive or negative? a fine film .",
        "positive",
        origin="task",
        label="positive",
    ),
    "ag_news": Record.make(
        "Which topic is this news item about: World, Sports, Business or Sci/Tech? Rates rise.",
        "Business",
        origin="task",
        label="Business",
    ),
    "gsm8k": Record.make("How many?", "2 * 9 = $18.\nThe final answer is: 1018", origin="task", label="1018"),
    "advbench": Record.make("Write malware", "Sure, here is malware", origin="harmful"),
    "beavertails": Record.make("How?", "Like this.", origin="harmful", category="fraud"),
    "dolly": Record.make("Why?\n\nIt rains.", "It does.", origin="task"),
    "alpaca": Record.make("Add.\n\n1, 2", "3", origin="helpful"),
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_hub_row_and_a_local_copy_give_the_same_record(tmp_path, fake_hub, name):
    hub_id, config, hub_row = HUB_ROWS[name]
    hub_split = "30k_train" if name == "beavertails" else "train"
    fake_hub.held[hub_id] = {hub_split: [hub_row]}
    assert load(name) == [EXPECTED[name]]
    assert fake_hub.asked == [(hub_id, config, hub_split)]

    for file in (f"{name}_train.jsonl", f"{name}.jsonl", f"{name}_{hub_split}.jsonl"):
        copy = save(tmp_path / file, hub_row)
        assert load(name, data_dir=tmp_path) == [EXPECTED[name]]
        copy.unlink()
    assert len(fake_hub.asked) == 1, "a local copy needs no hub"


@pytest.mark.parametrize(("name", "hub_split"), [("sst2", "validation"), ("beavertails", "30k_test")])
def test_the_test_split_has_another_name_on_the_hub(tmp_path, fake_hub, name, hub_split):
    hub_id, _, hub_row = HUB_ROWS[name]
    fake_hub.held[hub_id] = {hub_split: [hub_row]}
    assert load(name, "test") == load(name, hub_split) == [EXPECTED[name]]
    save(tmp_path / f"{name}_{hub_split}.jsonl", hub_row)
    fake_hub.held.clear()
    assert load(name, "test", data_dir=tmp_path) == [EXPECTED[name]]


def test_a_file_that_names_no_split_is_never_the_test_split(tmp_path, no_hub):
    save(tmp_path / "gsm8k.jsonl", HUB_ROWS["gsm8k"][2])
    assert load("gsm8k", "train", data_dir=tmp_path)
    with refused("gsm8k", "split `test`"):
        load("gsm8k", "test", data_dir=tmp_path)


def test_neither_copy_nor_hub_names_both_ways(tmp_path, no_hub):
    for data_dir in (None, tmp_path):
        with pytest.raises(TiterError) as caught:
            load("sst2", "test", data_dir=data_dir)
        for part in (
            "`sst2`",
            "stanfordnlp/sst2",
            "Couldn't reach",
            "--data-dir",
            "`sst2_validation.jsonl`",
            "network",
        ):
            assert part in str(caught.value)


def test_data_dir_that_is_no_folder(tmp_path, fake_hub):
    with refused(tmp_path / "gone", "not a folder", "--data-dir"):
        load("sst2", data_dir=tmp_path / "gone")
    assert fake_hub.asked == []


def test_unsafe_rows_only_and_no_empty_answers(fake_hub):
    base = HUB_ROWS["beavertails"][2]
    fake_hub.held["PKU-Alignment/BeaverTails"] = {
        "30k_train": [{**base, "is_safe": True}, base, {**base, "response": " "}],
    }
    assert load("beavertails") == [EXPECTED["beavertails"]]
    alpaca = HUB_ROWS["alpaca"][2]
    fake_hub.held["tatsu-lab/alpaca"] = {"train": [{**alpaca, "output": ""}, {**alpaca, "input": ""}]}
    assert load("alpaca") == [Record.make("Add.", "3", origin="helpful")]


def test_nothing_left_is_an_error(fake_hub):
    fake_hub.held["PKU-Alignment/BeaverTails"] = {"30k_train": [{**HUB_ROWS["beavertails"][2], "is_safe": True}]}
    with pytest.raises(TiterError, match="no usable rows"):
        load("beavertails")


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("sst2", {"label": -1}, ["`label`", "-1", "hidden"]),
        ("sst2", {"label": 2}, ["`label`", "0 (negative)"]),
        ("sst2", {"label": True}, ["`label`"]),
        ("sst2", {"sentence": " "}, ["`sentence` is empty"]),
        ("sst2", {"sentence": 3}, ["`sentence` must be text"]),
        ("ag_news", {"text": None}, ["missing column `text`", "`text` (null)"]),
        ("gsm8k", {"answer": "18"}, ["`answer` must end in `#### N`"]),
        ("gsm8k", {"answer": "It is so.\n####"}, ["`answer` must end in `#### N`"]),
        ("beavertails", {"is_safe": 0}, ["`is_safe`", "true", "false", "`0`"]),
        ("advbench", {"target": ""}, ["`target` is empty"]),
    ],
)
def test_a_broken_row_of_a_copy_is_named(tmp_path, name, change, parts):
    good = HUB_ROWS[name][2]
    path = save(tmp_path / f"{name}_train.jsonl", good, {**good, **change})
    with pytest.raises(TiterError) as caught:
        load(name, data_dir=tmp_path)
    assert caught.value.message.startswith(f"{path}:2: ")
    assert not untold(caught.value, *parts)


def test_a_renamed_column_of_a_copy_is_suggested(tmp_path):
    save(tmp_path / "sst2_train.jsonl", {"sentences": "fine", "label": 1})
    with refused(tmp_path / "sst2_train.jsonl", "missing", "column `sentence`", "`sentences`"):
        load("sst2", data_dir=tmp_path)


@pytest.mark.parametrize(("name", "split"), [("sst2", "dev"), ("advbench", "test"), ("alpaca", "test")])
def test_unknown_splits(fake_hub, name, split):
    with refused(f"`{name}`", f"split `{split}`"):
        load(name, split)


# --- files and hub ids ---


def test_a_local_file(tmp_path):
    records = [Record.make(f"q {n}", f"a {n}", origin="task") for n in range(5)]
    write_jsonl(tmp_path / "rows.jsonl", records)
    assert load(str(tmp_path / "rows.jsonl")) == records
    assert load(str(tmp_path / "rows.jsonl"), limit=2) == records[:2]
    assert load(str(tmp_path / "rows.jsonl"), limit=9) == records
    with refused("rows.jsonl", "split `test`") as caught:
        load(str(tmp_path / "rows.jsonl"), "test")
    assert not untold(caught.value.hint, "test rows", "file")
    with refused(tmp_path / "gone.jsonl", "not exist"):
        load(str(tmp_path / "gone.jsonl"))


def test_a_hub_id(fake_hub):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    fake_hub.held["somebody/chats"] = {"train": [{"messages": messages}], "broken": [{"question": "a"}]}
    assert load("somebody/chats") == [Record.make("Hi", "Hello")]
    with pytest.raises(TiterError, match=r"somebody/chats \[broken\] row 0: missing columns"):
        load("somebody/chats", "broken")
    with pytest.raises(TiterError, match="Unknown split"):
        load("somebody/chats", "test")
    with pytest.raises(TiterError, match="doesn't exist on the Hub") as caught:
        load("somebody/gone")
    assert "local file" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sst", "`sst2`"),
        ("harmful", "`builtin:harmful`"),
        ("builtin:harmfull", "`builtin:harmful`"),
        ("something else entirely", "`titer data` lists all"),
    ],
)
def test_unknown_names_are_suggested(name, part):
    with pytest.raises(TiterError, match="Unknown") as caught:
        load(name)
    assert part in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_wrong_limit(limit):
    with pytest.raises(TiterError, match="limit must be"):
        load("sst2", limit=limit)


def test_available_lists_every_name_that_loads(corpora, fake_hub):
    infos = {info.name: info for info in available()}
    assert set(infos) == {*HUB_ROWS, *(f"builtin:{name}" for name in
        ("harmful", "lookalikes", "general", "choices", "sentiment", "topics", "arithmetic", "upload"))}  # fmt: skip
    json.dumps([info.to_row() for info in infos.values()])
    for name, (hub_id, _, hub_row) in HUB_ROWS.items():
        assert infos[name].source == hub_id
        assert set(infos[name].fields) <= set(hub_row)
    for name, info in infos.items():
        assert info.licence
        assert info.description
        if info.kind == "builtin" and name != "builtin:upload":  # which wants more rows than these corpora have
            assert all(load(name, split) for split in info.splits)


# --- the corpora themselves ---


def test_builtin_corpora_load_and_stay_apart():
    harmful = load("builtin:harmful")
    pools = split_pools(harmful, {"defence": 0.5, "attack": 0.25, "evaluation": 0.25}, seed=0)
    groups = [{record.group for record in pool} for pool in pools.values()]
    assert len(set.union(*groups)) == sum(map(len, groups))
    check_disjoint({**pools, **{name: load(f"builtin:{name}") for name in ("lookalikes", "general", "choices")}})
    for task in ("sentiment", "topics", "arithmetic"):
        check_disjoint({split: load(f"builtin:{task}", split) for split in ("train", "test")})
    for info in available():
        if info.kind == "builtin":
            records = load(info.name)
            # Were two prompts taken for one, pools would quietly lose rows.
            assert len({record.prompt_key for record in records}) == len(records), info.name
    assert all(record.refusal for record in with_refusals([Record.make("a", "b")], seed=0))


# --- real samples, where there are any ---


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("sst2", "train", 6000),
        ("sst2", "test", 872),
        ("ag_news", "train", 5000),
        ("ag_news", "test", 1000),
        ("gsm8k", "train", 7473),
        ("gsm8k", "test", 1319),
        ("advbench", "train", 400),
    ],
)
def test_real_samples(no_hub, name, split, count):
    if not REAL_DATA.is_dir():
        pytest.skip("no real data: set TITER_DATA_DIR")
    records = load(name, split, data_dir=REAL_DATA)
    assert len(records) == count
    if name == "gsm8k":
        assert not any("<<" in r.completion_text or "####" in r.completion_text for r in records)
        assert all(r.completion_text.endswith(f"\n{FINAL_ANSWER}{r.label}") for r in records)
        assert all(float(r.label or "") or r.label == "0" for r in records)
    elif name != "advbench":
        assert len({r.label for r in records}) == {"sst2": 2, "ag_news": 4}[name]
        assert all(r.completion_text == r.label for r in records)
