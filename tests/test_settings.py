"""Settings, as they are typed: read as what they look like, refused before anything is done, and told with the way out."""

import json
import re

import pytest
import yaml
from told import refused, untold

from titer.errors import TiterError


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "1.0e-4", ".1e-3", "10e-5", "+1e-4", "0.0001"])
def test_a_number_in_any_spelling_is_a_number(tmp_path, text):
    from titer.settings import parse_setting
    from titer.workflows.experiment import read_experiment

    assert parse_setting(f"learning_rate={text}") == ("learning_rate", 1e-4)
    assert parse_setting(f"a=[{text}, -{text.lstrip('+')}]") == ("a", [1e-4, -1e-4])
    file = tmp_path / "e.yaml"
    file.write_text(f"name: x\narms: {{a: {{align: sft, finetune: sft, align_settings: {{learning_rate: {text}}}}}}}\n")
    assert read_experiment(file).arms["a"].steps[0].settings == {"learning_rate": 1e-4}


@pytest.mark.parametrize("text", ["'1e-4'", '"1e-4"', "1e", "e-4", "1e-4x", "1e-", "1-4", "fast", "1e-4 5", "0x1p-4"])
def test_text_in_the_place_of_a_number_is_an_error(tmp_path, text):
    from titer import methods
    from titer.settings import parse_setting

    _, value = parse_setting(f"learning_rate={text}")
    assert isinstance(value, str)
    with refused("learning_rate`", "number", "0", "1000", f"`{value}`"):
        methods.settings(methods.find("align", "sft"), {"learning_rate": value}, "--set", "unused", 0)


def test_a_number_in_the_place_of_text_is_an_error(tmp_path):
    from titer.workflows.experiment import read_experiment

    file = tmp_path / "e.yaml"
    file.write_text("name: 1e5\narms: {a: {align: sft, finetune: sft}}\n")
    with refused("`experiment.name`", "text", "`100000.0`") as error:
        read_experiment(file)
    assert "quotes" in error.value.hint


@pytest.mark.parametrize(
    ("option", "words", "message"),
    [
        ("--set", ["a=1", "a=2"], "`--set a` is given twice"),
        ("--set", ["a.b=1", "a={c: 2}"], "`--set a` and `--set a.b` set the same"),
        ("--lora", ["r=4", "r=8"], "`--lora r` is given twice"),
        ("--set", ["=3"], "`--set =3`.*key=value"),
        ("--lora", ["r"], "`--lora r`.*key=value"),
    ],
)
def test_settings_that_are_given_twice_or_not_at_all(option, words, message):
    from titer.settings import parse_settings

    with pytest.raises(TiterError, match=message):
        parse_settings(words, option)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "unknown", "nearest", "listing"),
    [
        (["align", "--output", "o", "--set", "lerning_rate=1"], "lerning_rate", "learning_rate", "align.antibody"),
        (["finetune", "u", "--output", "o", "--set", "zzz=1"], "zzz", None, "finetune.sieve"),
        (["align", "--output", "o", "--lora", "lora_droput=0"], "lora_droput", "lora_dropout", "lora"),
        (["run", "quickstart", "--set", "align.training.optm=1", "--dry-run"], "optm", "optim", "align.sft"),
        (["assay", "m", "--against", "n", "--set", "harmfull=3", "--dry-run"], "harmfull", "harmful", "profile"),
        (["assay", "m", "--against", "n", "--set", "attacks.leap.stepz=3"], "stepz", "steps", "attack"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_and_where_all_are(
    titer, tmp_path, monkeypatch, words, unknown, nearest, listing
):
    monkeypatch.chdir(tmp_path)
    code, _, error = titer(*words)
    assert code == 2
    assert f"`{unknown}`" in error
    assert f"`titer settings {listing}` lists all." in error
    assert error.count("`") <= 12, "a hundred names help nobody"
    assert nearest is None or f"`{nearest}`" in error
    assert not list(tmp_path.iterdir())


def test_every_name_of_a_setting_is_listed(titer):
    """Whatever can be set has a line of its own: all fields of all kinds, but for those that titer decides on."""
    import dataclasses

    from titer import methods

    code, told, _ = titer("settings", "--json")
    assert code == 0
    names = [row["name"] for row in json.loads(told)]
    assert {"align.booster", "finetune.gate", "repair.safelora", "lora", "experiment", "profile", "attack"} <= set(
        names
    )
    for name in names:
        code, told, _ = titer("settings", name, "--json")
        assert code == 0
        listed = {row["name"]: row for row in json.loads(told)}
        stage, _, method = name.partition(".")
        if method:
            fields = {item.name for item in dataclasses.fields(methods.find(stage, method).config) if item.init}
            assert listed.keys() == fields - methods.find(stage, method).not_here.keys()
        if stage in methods.TRAINED:
            assert listed["report_to"]["default"] == "none"
            assert listed["learning_rate"]["range"] == "a number from 0 to 1000"
    code, told, _ = titer("settings", "align.booster")
    assert told.splitlines()[0].startswith("lam ")
    code, _, error = titer("settings", "align.boster")
    assert code == 2
    assert "`align.booster`" in error


# --- what libraries refuse late --------------------------------------------------------------------------------------

LATE = [
    {"optim": "adam"},
    {"optim": "adamw_bnb_8bit"},
    {"lr_scheduler_type": "no_such"},
    {"lr_scheduler_type": "cosine_with_min_lr"},
    {"lr_scheduler_type": "reduce_lr_on_plateau"},
    {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"foo": 1}},
    {"report_to": "wandb"},
    {"eval_strategy": "steps"},
    {"eval_on_start": True},
    {"load_best_model_at_end": True},
    {"save_strategy": "best"},
    {"fsdp": "full_shard"},
    {"fsdp": "no_such"},
    {"bf16": True, "fp16": True},
    {"deepspeed": "no_such.json"},
    {"accelerator_config": "no_such.json"},
    {"parallelism_config": 3},
    {"dataloader_persistent_workers": True},
    {"dataloader_prefetch_factor": 2},
    {"train_sampling_strategy": "group_by_length"},
    {"torch_compile_backend": "no_such"},
    {"eos_token": "<no such>"},
    {"log_level": "no_such"},
    {"activation_offloading": True},
    {"max_length": 4},
]


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test when the weights of a model are loaded; its config and tokenizer may be."""
    from titer import models
    from titer.jobs import base_model

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load_model", load)
    monkeypatch.setattr(base_model, "load_model", load)
    # What a dry run says of the time is measured with weights, once on a machine.
    monkeypatch.setattr("titer.jobs.speed.Speed.seconds", lambda speed, work: 1.0)


def named(values, where):
    return "|".join(rf"`{where}[. ]{name}`" for name in values)


@pytest.mark.parametrize("values", LATE, ids=str)
def test_a_dry_run_refuses_settings_that_a_trainer_refuses(titer, tmp_path, tiny_folder, no_weights, values):
    """`max_steps`, which is fine, is never blamed."""
    arms = {"a": {"align": "sft", "finetune": "sft", "align_settings": {"max_steps": 2, **values}}}
    file = write(tmp_path / "e.yaml", name="x", model=str(tiny_folder), arms=arms)
    code, _, error = titer("run", file, "--output", tmp_path / "out", "--dry-run")
    assert code == 2, error
    assert re.search(named(values, r"arms\.a\.align_settings"), error), error
    assert "max_steps" not in error
    assert not (tmp_path / "out").exists()


def test_a_run_refuses_what_its_dry_run_does_and_the_verbs_too(titer, tmp_path, tiny_folder, no_weights):
    words = ["--model", tiny_folder, "--output", tmp_path / "out", "--method", "sft", "--set", "optim=adamw_bnb_8bit"]
    (tmp_path / "u.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    for line, place in (
        (
            ["run", "quickstart", "--set", f"model={tiny_folder}", "--set", "align.training.optim=lomo"],
            "align.training.optim",
        ),
        (["align", *words], "--set optim"),
        (["finetune", tmp_path / "u.jsonl", *words], "--set optim"),
    ):
        code, _, error = titer(*line)
        assert code == 2, error
        assert f"`{place}` cannot be" in error
    assert not (tmp_path / "out").exists()


def test_dropout_of_an_adapter_that_a_method_cannot_have_is_found_dry(titer, tmp_path, tiny_folder, no_weights):
    arms = {"a": {"align": "booster", "finetune": "sft"}}
    lora = {"r": 4, "lora_dropout": 0.1}
    file = write(tmp_path / "e.yaml", name="x", model=str(tiny_folder), arms=arms, lora=lora)
    code, _, error = titer("run", file, "--dry-run")
    assert code == 2
    assert not untold(error, "`lora.lora_dropout`", "`0.1`", "noise")


def test_a_rehearsal_takes_no_random_number_and_blames_no_setting_for_a_fault_of_the_method(tiny_folder, monkeypatch):
    import random

    import torch

    from titer.data import Record
    from titer.jobs import rehearsal
    from titer.methods import find
    from titer.methods.align import BoosterTrainer

    rows = [Record.make(f"a {i}", "b", origin="harmful") for i in range(3)]
    monkeypatch.setattr(rehearsal, "_done", set())
    state, drawn = torch.get_rng_state(), random.getstate()

    def rehearse():
        rehearsal.rehearse(
            find("align", "booster"), {"max_steps": 2}, "x", str(tiny_folder), {}, rows, {"harmful_dataset": rows}
        )

    rehearse()
    assert torch.get_rng_state().equal(state)
    assert random.getstate() == drawn
    assert rehearsal._done

    def broken(self, model):
        raise RuntimeError("the disk melted")

    monkeypatch.setattr(rehearsal, "_done", set())
    monkeypatch.setattr(BoosterTrainer, "before_step", broken)
    rehearse()


@pytest.mark.parametrize("verb", ["align", "finetune"])
def test_a_training_goes_on_with_an_adapter_of_a_model_that_the_defaults_do_not_fit(titer, tokenizer, tmp_path, verb):
    """Its modules are named otherwise than those that a new adapter would be put on."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=512))
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    common = [
        "--method",
        "sft",
        "--set",
        "max_steps=1",
        "--set",
        "bf16=false",
        "--set",
        "per_device_train_batch_size=2",
    ]
    aligned = ["align", "--model", tmp_path / "gpt2", "--samples", "8", "--output", tmp_path / "aligned", *common]
    code, _, error = titer(*aligned)
    assert code == 2
    assert "`lora.target_modules`" in error
    code, _, error = titer(*aligned, "--lora", "target_modules=all-linear")
    assert code == 0, error
    data = ["--samples", "8"] if verb == "align" else ["builtin:upload"]
    code, _, error = titer(verb, *data, "--model", tmp_path / "aligned", "--output", tmp_path / "on", *common)
    assert code == 0, error


ADAPTERS = [
    {"target_modules": ["query_key_value"]},
    {"target_modules": "(q|v"},
    {"modules_to_save": ["no_such"]},
    {"init_lora_weights": "no_such"},
    {"bias": "no_such"},
    {"layers_to_transform": [99]},
    {"rank_pattern": {"q_proj": -1}},
    {"task_type": "no_such"},
    {"exclude_modules": ["q_proj", "k_proj", "v_proj"]},
    {"runtime_config": 3},
    {"inference_mode": True},
]


@pytest.mark.parametrize("number", range(len(ADAPTERS)), ids=[str(one) for one in ADAPTERS])
def test_a_dry_run_refuses_adapters_that_peft_refuses(titer, tmp_path, tiny_folder, no_weights, number):
    """Of trainings; of attacks that run by themselves, share passes with others, or are searched."""
    (name,), lora = ADAPTERS[number], {"r": 4, **ADAPTERS[number]}
    arms = {"a": {"align": "sft", "finetune": "sft"}}
    code, _, error = titer(
        "run", write(tmp_path / "e.yaml", name="x", model=str(tiny_folder), arms=arms, lora=lora), "--dry-run"
    )
    assert code == 2, error
    assert f"`lora.{name}`" in error
    changes = [
        {"fleet": 1, "attacks": {"harmful": {"lora": lora}}},
        {"attacks": {"harmful": {"lora": lora}, "leap": {}}},
        {"attacks": {"harmful": {"search": {"trials": 1, "choices": {"lora": [{"r": 4}, lora]}}}}},
    ][number % 3]
    profile = write(tmp_path / "p.yaml", name="x", **changes)
    line = ["assay", tiny_folder, "--against", tiny_folder, "--profile", profile, "--output", tmp_path / "out"]
    code, _, error = titer(*line, "--dry-run")
    assert code == 2, error
    assert f"`attacks.harmful.lora.{name}`" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_adapters_that_cannot_share_passes_are_refused_where_they_would(titer, tmp_path, tiny_folder, no_weights, lora):
    ((name, _),) = lora.items()
    both = {"harmful": {"lora": {"r": 4, **lora}}, "style": {}}
    line = ["assay", tiny_folder, "--against", tiny_folder, "--profile", tmp_path / "p.yaml", "--dry-run"]
    write(tmp_path / "p.yaml", name="x", attacks=both)
    code, _, error = titer(*line)
    assert code == 2, error
    assert f"`attacks.harmful.lora.{name}`" in error
    write(tmp_path / "p.yaml", name="x", attacks=both, fleet=1)
    code, _, error = titer(*line)
    assert code == 0, error


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"choices": {"optimizer": ["adamw", "adam"]}}, "optimizer.*: `adam`"),
        ({"choices": {"lora": [{"r": 4}, 3]}}, r"`attacks\.harmful\.lora`.*mapping"),
        ({"choices": {"optimizer": []}}, r"`attacks\.harmful\.search\.choices\.optimizer` holds no value"),
        ({"ranges": {"steps": [0.5, 8]}}, r"`attacks\.harmful\.steps`.*whole number.*`0`"),
        ({"ranges": {"learning_rate": [1e-5, 1e5]}}, r"`attacks\.harmful\.learning_rate`.* number .*`100000\.0`"),
        ({"ranges": {"lora": [1, 2]}}, "`lora` is no number"),
        ({"choices": {"warm_up": ["benign"]}}, "`warm_up` and `warm_up_steps` go together"),
    ],
)
def test_searches_that_would_fail_at_some_trial(tmp_path, search, message):
    from titer.assays.profile import read_profile

    with pytest.raises(TiterError, match=message):
        read_profile(write(tmp_path / "p.yaml", name="x", attacks={"harmful": {"search": search}}))
