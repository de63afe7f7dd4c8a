"""How long work will take: what is counted, what is measured, and which of records and measured speed is believed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from told import refused, untold
from typer.testing import CliRunner

from titer import methods, models
from titer.cli import app
from titer.data import load
from titer.jobs import answers, base_model, estimates, trainings
from titer.jobs import speed as speed_module
from titer.jobs.estimates import Estimate, estimate, in_words, record, recorded
from titer.jobs.speed import Speed
from titer.jobs.work import Cost, Work, answering, training
from titer.jobs.work import weighing as weighing_work

LORA = {"r": 2, "target_modules": ["q_proj"]}
SECONDS = {
    "load": {"loads": 1.0},
    "train float32": {"setups": 2.0, "passes": 0.5, "trained": 0.01},
    "read": {"reads": 0.1, "read": 0.001},
    "answer": {"prompted": 0.001, "rounds": 0.05, "decoded": 0.002, "attended": 1e-5},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of speeds."""
    monkeypatch.setattr(speed_module, "speeds_folder", lambda: tmp_path / "speeds")
    return tmp_path / "speeds"


@pytest.fixture
def known(folder, tiny_folder, monkeypatch):
    """A machine whose speed is known, and which may not be measured."""
    speed = Speed.of(str(tiny_folder))
    speed.measured = {part: {"date": "2026-01-01", "business": 0.0, **seconds} for part, seconds in SECONDS.items()}
    speed.keep()
    monkeypatch.setattr(speed_module, "_measure", None)
    return str(tiny_folder)


def rows(name, count):
    return load(f"builtin:{name}")[:count]


@pytest.fixture
def computed(monkeypatch):
    """Tokens that went through an embedding, with and without gradients."""
    seen = {True: 0, False: 0}

    def count(module, inputs):
        if isinstance(module, torch.nn.Embedding):
            seen[torch.is_grad_enabled()] += inputs[0].numel()

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("align", "sft"),
        ("align", "booster"),
        ("align", "antibody"),
        ("align", "ctrap"),
        ("align", "seam"),
        ("align", "tar"),
        ("align", f"{Path(__file__).with_name('spanning.py')}:SPANNING"),
        ("finetune", "antibody"),
        ("finetune", "gate"),
        ("finetune", "sbr"),
        ("finetune", "sieve"),
        ("finetune", "vlguard_mix"),
        ("finetune", "constrained_sft"),
    ],
)
def test_a_training_computes_the_tokens_that_are_estimated(stage, name, tiny_folder, tmp_path, computed):
    method = methods.find(stage, name)
    values = {"max_steps": 6, "per_device_train_batch_size": 5, "max_length": None, "bf16": False}
    values |= method.variants[""] if "SPANNING" in name else {"kl_weight": 1.0} if name == "sieve" else {}
    args = methods.settings(method, values, "", str(tmp_path / "checkpoints"), 0)
    streams = {"harmful_dataset": rows("harmful", 30), "helpful_dataset": rows("general", 30)}
    work = training(f"{stage} {name}", method, args, str(tiny_folder), rows("general", 40), streams)
    # Rows of an upload may not be longer than the tiny model's positions.
    trainings.train(method, args, str(tiny_folder), None, LORA, rows("general", 40), streams, tmp_path)
    assert computed[True] == pytest.approx(work.cost.trained, rel=0.15)
    assert computed[False] == pytest.approx(work.cost.read, rel=0.6)


def test_answers_and_ratios_take_the_tokens_that_are_estimated(tiny_folder, computed):
    some = rows("general", 50)
    answers.answer(str(tiny_folder), None, [(record, 6) for record in some])
    cost = answering(str(tiny_folder), [(some, 6)])
    # The first batch is checked; the tiny model's answers do not end by themselves.
    assert sum(computed.values()) == pytest.approx(cost.prompted + cost.decoded, rel=0.3)
    assert cost.rounds == 6
    computed.update({True: 0, False: 0})
    answers.weigh(str(tiny_folder), None, some)
    assert sum(computed.values()) == pytest.approx(weighing_work("weigh", str(tiny_folder), some).cost.read, rel=0.35)


def test_without_records_the_measured_speed_says_how_long(known):
    work = Work("align sft", known, Cost(setups=1, passes=10, trained=1000, reads=2, read=100), bf16=False)
    assert estimate(work) == Estimate(*[2.0 + 5.0 + 10.0 + 0.2 + 0.1] * 3)
    asked = Work("answer", known, Cost(loads=1, prompted=1000, rounds=10, decoded=100, attended=1e4))
    assert estimate(asked).seconds == pytest.approx(2.8)
    assert not untold(in_words([estimate(work)]), "17 s", "this machine", "measured speed")


def test_records_of_the_same_kind_go_before_the_measured_speed(known):
    work = Work("align booster", known, Cost(passes=10, trained=500), bf16=False)  # 10 s by the measured speed
    for seconds in (28, 30, 32):
        record(work, seconds)
    record(replace(work, kind="align sft"), 3)
    found = estimate(replace(work, cost=work.cost * 4))
    assert (found.seconds, found.low, found.high, found.records) == (120, 40, 120, 3)
    assert str(found) == "40 s to 2 min"
    assert str(estimate(replace(work, cost=work.cost * 36))) == "6 to 18 min"
    assert not untold(in_words([found]), "40 s to 2 min", "earlier work")
    assert untold(in_words([found]), "measured speed")
    other = estimate(replace(work, kind="finetune sft"))
    assert other.seconds == 10
    assert not untold(in_words([found, other]), "1 of 2", "earlier work", "measured speed")


def test_records_nearest_in_size_count_and_of_those_the_latest(known):
    small, large = Cost(passes=2), Cost(passes=2000)
    for _ in range(estimates.LIKE):
        record(Work("align sft", known, small, False), 11)  # most of it not the steps
        record(Work("align sft", known, large, False), 1000)
    assert estimate(Work("align sft", known, large, False)).seconds == 1000
    for _ in range(estimates.LIKE):
        record(Work("align sft", known, large, False), 1500)
    assert estimate(Work("align sft", known, large, False)).seconds == 1500


def test_a_range_is_given_only_where_records_and_speed_disagree(known):
    work = Work("weigh", known, Cost(reads=100))  # 10 s
    record(work, 12)
    assert str(estimate(work)) == "12 s"
    record(work, 13.5)
    record(work, 13.5)
    assert str(estimate(work)) == "10 to 14 s"


def test_work_that_went_on_or_failed_is_not_recorded(known):
    work = Work("weigh", known, Cost(reads=100))
    with recorded(work, whole=False):
        pass
    with pytest.raises(KeyError), recorded(work):
        raise KeyError
    assert Speed.of(known).records == []
    with recorded(work):
        pass
    assert [row["kind"] for row in Speed.of(known).records] == ["weigh"]


def test_speed_is_measured_once_and_the_model_loaded_once(folder, tiny_folder, monkeypatch, capsys):
    loaded = []
    load_model = models.load_model
    monkeypatch.setattr(
        base_model, "load_model", lambda *args, **kwargs: loaded.append(args) or load_model(*args, **kwargs)
    )
    base_model.forget()
    work = Work("any", str(tiny_folder), Cost(*[1.0] * 11), bf16=False)
    first = estimate(work)
    said = capsys.readouterr().err
    assert said.count("Measuring how fast") == 1
    assert "(load, train float32, read, answer), once" in said
    assert len(loaded) == 1
    assert first.seconds > 0
    measured = Speed.of(str(tiny_folder)).measured
    assert set(measured) == {"load", "train float32", "read", "answer"}
    assert all(seconds >= 0 for part in measured.values() for name, seconds in part.items() if name != "date")
    assert measured["train float32"]["trained"] > 0
    assert estimate(work) == first
    assert capsys.readouterr().err == ""


def test_what_was_measured_on_a_busy_machine_is_measured_again_when_it_is_calm(known, monkeypatch, capsys):
    speed = Speed.of(known)
    speed.measured["read"]["business"] = 4.0
    speed.keep()
    again = []
    monkeypatch.setattr(speed_module, "_measure", lambda part, model: again.append(part) or SECONDS[part])
    work = Work("weigh", known, Cost(reads=100))
    monkeypatch.setattr(speed_module, "_business", lambda: 3.0)
    estimate(work)
    assert again == []
    monkeypatch.setattr(speed_module, "_business", lambda: 0.5)
    estimate(work)
    estimate(work)
    assert again == ["read"]


def test_models_of_one_architecture_share_what_is_measured(known, tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "other")
    assert Speed.of(str(tmp_path / "other")).path == Speed.of(known).path
    before = Speed.of(known).path
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert Speed.of(known).path != before
    finally:
        torch.set_num_threads(threads)


def test_a_damaged_file_or_a_full_disk_costs_the_notes_and_not_the_work(known, monkeypatch, caplog):
    path = Speed.of(known).path
    path.write_text("{")
    assert Speed.of(known).measured == {}
    assert "is damaged" in caplog.text

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(speed_module, "replacing", full)
    record(Work("weigh", known, Cost(reads=100)), 3.0)
    assert "No space left" in caplog.text


def test_a_folder_without_a_config_is_a_users_mistake(tmp_path):
    with refused(tmp_path / "config.json", "not exist"):
        Speed.of(str(tmp_path))


def test_verbs_say_how_long_they_will_take_and_learn_from_what_they_took(known, tmp_path):
    common = ["--set", "max_steps=2", "--set", "bf16=false", "--set", "max_length=null", "--lora", "r=2"]
    common += ["--lora", "target_modules=[q_proj]"]
    upload = tmp_path / "upload.jsonl"
    upload.write_text(
        "".join(json.dumps({"prompt": f"is salt {n} white?", "completion": "yes"}) + "\n" for n in range(8))
    )
    for place in ("a", "b"):
        line = ["align", "--method", "sft", "--model", known, "--samples", "20", "-o", str(tmp_path / place), *common]
        done = CliRunner().invoke(app, line, catch_exceptions=False)
        (said,) = [text for text in done.stderr.splitlines() if text.startswith("About ")]
        assert untold(said, "earlier work", "measured speed") == ["measured speed" if place == "b" else "earlier work"]
    adapter = str(tmp_path / "a" / "adapter")
    for line in (
        ["finetune", str(upload), "--model", adapter, "--method", "sft", "-o", str(tmp_path / "c"), *common[:6]],
        ["audit", str(upload), "--model", adapter, "-o", str(tmp_path / "d")],
        ["evaluate", adapter, "--samples", "4", "--max-new-tokens", "3", "-o", str(tmp_path / "e")],
    ):
        done = CliRunner().invoke(app, line, catch_exceptions=False)
        assert "this machine" in done.stderr, done.stderr
        assert done.exit_code == 0
    # What is finished is not done again, and that takes no time.
    line = ["align", "--method", "sft", "--model", known, "--samples", "20", "-o", str(tmp_path / "a"), *common]
    assert CliRunner().invoke(app, line, catch_exceptions=False).exit_code == 0
    kinds = [row["kind"] for row in Speed.of(known).records]
    assert kinds == ["align sft", "align sft", "finetune sft", "risk", "answer"]


@pytest.mark.parametrize("force", [False, True])
def test_a_run_that_does_all_again_says_how_long_that_takes(titer, known, tmp_path, force):
    file = tmp_path / "e.yaml"
    settings = "training: {max_steps: 1, per_device_train_batch_size: 2, bf16: false}"
    file.write_text(
        f"name: x\nmodel: {known}\nalign: {{samples: 8, {settings}}}\nfinetune: {{samples: 8, {settings}}}\n"
        "evaluate: {harmful: 2, lookalikes: 2, task: 2, max_new_tokens: 2}\narms: {a: {align: sft, finetune: sft}}\n"
    )
    assert titer("run", file, "--output", tmp_path / "run")[0] == 0
    code, _, error = titer("run", file, "--output", tmp_path / "run", *(["--force"] if force else []))
    assert code == 0, error
    assert ("About " in error) == force
