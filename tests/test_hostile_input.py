"""What cannot be meant is refused before a model is loaded: with where it stands, what it is, and what may stand there."""

import pytest
import yaml
from told import refused, untold

from titer.errors import TiterError


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


# --- names that lead elsewhere ---------------------------------------------------------------------------------------

PLACES = ["../../x", "a/b", "/tmp/x", "..", ".", "", " ", "a\\b", "x\n", "x\0", "x\x1b[2J", "x\u202e", "x" * 300]


@pytest.mark.parametrize("name", PLACES)
def test_a_name_leads_out_of_no_folder(titer, tmp_path, monkeypatch, no_model, name):
    from titer import assay

    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    for words in (
        ["assay", "m", "--against", "n", "--profile", "smoke", "--name", name],
        ["assay", "m", "--against", "n", "--profile", "smoke", "--name", name, "--dry-run"],
    ):
        code, _, error = titer(*words)
        assert code == 2, error
        assert not untold(error, "`--name`", "one folder", "`--output`")
    with refused("`--name`", "one folder"):
        assay("m", "n", profile="smoke", name=name)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", PLACES)
def test_the_name_of_an_experiment_leads_out_of_no_folder(tmp_path, name):
    from titer.workflows.experiment import read_experiment

    file = write(tmp_path / "e.yaml", name=name, arms={"a": {"align": "sft", "finetune": "sft"}})
    with refused(file, "`name`", "one folder"):
        read_experiment(file)


def test_names_in_any_language_are_names(tmp_path):
    from titer.assays.card import assay_folder

    for name in ("booster-2", "Größe 1", "防御", "a.b", "x..y", "می‌خواهم"):
        assert assay_folder(tmp_path, name, "m").parent == tmp_path
    assert assay_folder(tmp_path, None, "../../x/adapter") == tmp_path / "x"
    assert assay_folder(tmp_path, None, "..") == tmp_path / "model"


# --- numbers that cannot be meant ------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = {
    "learning_rate": [-1.0, NAN, INF, "1e-3", {"a": 1}, [1.0], True, 1e9],
    "per_device_train_batch_size": [0, -3, 10**9, 2.5, "8", None, {"a": 1}],
    "gradient_accumulation_steps": [0, -1, 1.5],
    "num_train_epochs": [0, -1.0, NAN, INF],
    "max_steps": [0, -2, 2.5, "3", {"a": 3}, 10**12],
    "warmup_steps": [-1, NAN],
    "weight_decay": [-0.1, NAN, INF, "no"],
    "adam_beta1": [-0.1, 1.0, NAN],
    "max_grad_norm": [-1.0, NAN],
    "max_length": [0, 1, -5, 2.5, "long"],
    "save_steps": [0, -20, NAN],
    "save_total_limit": [0, -1],
    "logging_steps": [0, -1],
    "dataloader_num_workers": [-1, 2.5],
    "data_seed": [-1, 2**32, 0.5],
    "report_to": ["no_such_service", ["no_such_service"]],
    "bf16": ["no", 3],
    "dataloader_drop_last": ["false"],
    "push_to_hub": [True],
    "seed": [1],
    "output_dir": ["../elsewhere"],
    "resume_from_checkpoint": ["x"],
}
OWN = {
    ("align", "booster"): {"alpha": [0, -1, NAN, INF, "1"], "lam": [-1, NAN, INF], "refresh_every": [0, 1.5, -1]},
    ("align", "antibody"): {"rho": [0, INF], "xi": [-1, NAN, INF], "lambda_refusal": [-1, INF], "lam": [INF]},
    ("finetune", "antibody"): {"tau": [0, -1, NAN, INF, "1", None]},
    ("finetune", "gate"): {"ridge": [0, INF, NAN], "threshold": [0, 1, NAN, "x"], "probe_depth": [-1, 2, NAN]},
}


def cases(table):
    return [(name, value) for name, values in table.items() for value in values]


def refusal(method, name, value):
    from titer import methods

    with pytest.raises(TiterError) as error:
        methods.settings(methods.find(*method), {name: value}, "align.training", "unused", 0)
    assert f"`align.training.{name}` " in error.value.message or f"`{name}` " in error.value.message
    return error.value


@pytest.mark.parametrize(("name", "value"), cases(OUT_OF_RANGE))
def test_settings_of_a_trainer_that_cannot_be_meant(no_model, name, value):
    error = refusal(("align", "sft"), name, value)
    if isinstance(value, int | float) and name not in ("push_to_hub", "seed", "bf16"):
        assert "must be a " in error.message
        assert f"found `{value}`" in error.message


@pytest.mark.parametrize(
    ("method", "name", "value"), [(method, *case) for method, table in OWN.items() for case in cases(table)]
)
def test_settings_of_a_method_that_cannot_be_meant(no_model, method, name, value):
    kind = "whole number" if name == "refresh_every" else "number"
    assert not untold(refusal(method, name, value).message, kind, f"`{value}`")


LORA = {
    "r": [0, -4, 2.5, "8", {"a": 1}, None],
    "lora_alpha": [0, -1, NAN, INF, "x"],
    "lora_dropout": [-0.1, 1.0, NAN, "x"],
    "target_modules": [[], [1], "", {}, 3, None, [""]],
}


@pytest.mark.parametrize(("name", "value"), cases(LORA))
def test_settings_of_an_adapter_that_cannot_be_meant(tmp_path, no_model, name, value):
    from titer.assays.profile import read_profile
    from titer.workflows.experiment import read_experiment

    arms = {"a": {"align": "sft", "finetune": "sft"}}
    with pytest.raises(TiterError, match=rf"e\.yaml: `lora\.{name}` must be"):
        read_experiment(write(tmp_path / "e.yaml", name="x", arms=arms, lora={name: value}))
    with pytest.raises(TiterError, match=rf"p\.yaml: `lora\.{name}` must be"):
        read_profile(write(tmp_path / "p.yaml", name="x", attacks={"harmful": {"lora": {name: value}}}))


EXPERIMENT = {
    "seeds": [[-1], [2**32], [0.5], ["0"], [True]],
    "align.samples": [0, -3, 2.5, "9", None],
    "align.helpful_ratio": [-0.1, 1.1, NAN, "half"],
    "finetune.samples": [0, -3],
    "finetune.poison_ratios": [[-0.1], [1.5], [NAN], ["x"]],
    "finetune.checkpoints": [[0], [-1], [2.5], ["x"]],
    "evaluate.harmful": [0, -3],
    "evaluate.task": [0, -3],
    "evaluate.max_new_tokens": [0, -1, 10**9],
    "evaluate.task_max_new_tokens": [0, -1],
    "evaluate.weights": [0, -5],
}
PROFILE = {
    "seeds": [[-1], [2**40]],
    "data_seed": [-1, 0.5],
    "harmful": [0, -3],
    "general": [0, -32],
    "utility": [-1],
    "max_new_tokens": [0, -1],
    "checkpoints": [0, -1, 2.5],
    "fleet": [0, -1],
    "phi": [0, 1, -1, NAN],
    "kappa": [0, -1, NAN, INF],
    "slower": [INF, 0],
    "price_per_hour": [-2.5, NAN, INF],
    "flops_per_second": [0, -1, NAN, INF],
    "accuracy_margin": [0, 2, NAN],
    "nll_margin": [INF, -1],
    "attacks.harmful.steps": [0, -1, 2.5, "x"],
    "attacks.harmful.learning_rate": [-1, NAN, INF],
    "attacks.harmful.batch_size": [0, -1, 10**9],
    "attacks.harmful.samples": [0, -1],
    "attacks.harmful.weight_decay": [-1, NAN],
    "attacks.harmful.leap": [-1, NAN, INF],
    "attacks.harmful.seeds": [[-1], ["a"], [0.5]],
    "attacks.ablation.depths": [[0.0], [1.0], [NAN]],
    "attacks.harmful.search.trials": [0, -1],
}


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize(("path", "value"), cases(EXPERIMENT))
def test_numbers_of_an_experiment_that_cannot_be_meant(tmp_path, no_model, path, value):
    from titer.workflows.experiment import read_experiment

    arms = {"a": {"align": "sft", "finetune": "sft"}}
    with pytest.raises(TiterError, match=rf"e\.yaml: `experiment\.{path}(\[0\])?` must be") as error:
        read_experiment(write(tmp_path / "e.yaml", name="x", arms=arms, **nested(path, value)))
    assert "found `" in error.value.message


@pytest.mark.parametrize(("path", "value"), cases(PROFILE))
def test_numbers_of_a_profile_that_cannot_be_meant(tmp_path, no_model, path, value):
    from titer.assays.profile import read_profile

    values = {"name": "x", "attacks": {"harmful": {}}} | nested(path, value)
    with pytest.raises(TiterError, match=rf"p\.yaml: `(profile\.)?{path}(\[0\])?` must be"):
        read_profile(write(tmp_path / "p.yaml", **values))


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "m", "--samples", "-3"],
        ["evaluate", "m", "--samples", "0"],
        ["evaluate", "m", "--max-new-tokens", "0"],
        ["evaluate", "m", "--max-new-tokens", "-1"],
        ["evaluate", "m", "--seed", "-1"],
        ["evaluate", "m", "--seed", "99999999999"],
        ["evaluate", "m", "--step", "-1"],
        ["evaluate", "m", "--poison-ratio", "nan"],
        ["align", "--output", "o", "--samples", "0"],
        ["align", "--output", "o", "--samples", "-5"],
        ["align", "--output", "o", "--helpful-ratio", "1.5"],
        ["align", "--output", "o", "--seed", "-1"],
        ["finetune", "u", "--output", "o", "--seed", "-1"],
        ["audit", "u", "--batch-size", "0"],
        ["audit", "u", "--top", "-1"],
        ["data", "builtin:harmful", "--rows", "-1"],
    ],
)
def test_options_that_cannot_be_meant(titer, tmp_path, monkeypatch, no_model, words):
    monkeypatch.chdir(tmp_path)
    code, _, error = titer(*words)
    assert code == 2
    assert f"`{words[-2]}` must be a" in error
    assert words[-1] in error
    assert not list(tmp_path.iterdir())


def test_every_number_that_a_user_can_give_has_a_range():
    import typer

    from titer import methods
    from titer.assays.profile import Profile
    from titer.assays.search import Search
    from titer.attacks.threats import Attack
    from titer.attacks.trainer import AttackConfig
    from titer.cli import app
    from titer.ranges import RANGES, numbers
    from titer.workflows.experiment_file import AlignSettings, EvaluateSettings, Experiment, FinetuneSettings
    from titer.workflows.field_file import Form, Tuning
    from titer.workflows.field_theirs import Published, Theirs

    kinds = {method.config for _, _, method in methods.every()}
    kinds |= {AttackConfig, Profile, Search, Attack, Experiment, AlignSettings, FinetuneSettings, EvaluateSettings}
    kinds |= {Form, Tuning, Published, Theirs}
    own = {kind: {name for each in kind.__mro__ for name in vars(each).get("RANGES", {})} for kind in kinds}
    names = {name for kind in kinds for name in numbers(kind) if name not in own[kind]}
    names |= {"r", "lora_alpha", "lora_dropout"}
    assert all(name in numbers(kind) for kind in kinds for name in vars(kind).get("RANGES", {}))

    def options(verb):
        for part in getattr(verb, "commands", {}).values():
            yield from options(part)
        yield from verb.params

    every = list(options(typer.main.get_command(app)))
    kinds_of = [getattr(getattr(option, "type_descriptor", None), "annotation", None) for option in every]
    given = [option for option, kind in zip(every, kinds_of, strict=True) if kind in (int, float)]
    assert given
    assert all(option.callback is not None for option in given)
    assert names | {str(option.name) for option in given} == set(RANGES)
    assert all(abs(one.low) < INF and abs(one.high) < INF for one in RANGES.values())


def test_settings_at_the_ends_of_their_ranges_are_taken():
    from titer.ranges import RANGES

    for name, known in RANGES.items():
        assert known.holds(known.low) != known.above, name
        assert known.holds(known.high) != known.below, name
        assert all(known.holds(value) for value in known.also), name
        assert not known.holds(2 * known.high + 1), name


def test_a_number_of_a_method_of_ones_own_must_be_finite():
    from titer.ranges import check_range

    check_range("gamma", -3.5, "gamma")
    for value in (NAN, INF, "1", None, True):
        with refused("`gamma`", "number", f"`{value}`"):
            check_range("gamma", value, "gamma")


def test_modules_that_a_model_does_not_have(tiny):
    from titer.jobs.trainings import check_targets, lora_config

    for targets, names in ((["query_key_value"], "`query_key_value`"), (["q_proj", "proj"], "`proj`"), ("x.*", "`x")):
        with pytest.raises(TiterError, match=rf"`lora\.target_modules` names {names}") as error:
            check_targets(tiny, lora_config({"target_modules": targets}))
        for name in ("q_proj", "k_proj", "gate_proj", "lm_head"):
            assert f"`{name}`" in error.value.hint
    for targets in (["q_proj"], "all-linear", r".*\.(q|v)_proj", ["self_attn.q_proj"]):
        check_targets(tiny, lora_config({"target_modules": targets}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"target_modules": ["query_key_value"]}}, r"`lora\.target_modules`.*`query_key_value`"),
        ({"finetune": {"checkpoints": [5], "training": {"max_steps": 4}}}, r"step 5\b.*`a`.* 4\b"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(titer, tmp_path, tiny_folder, changes, message):
    import re

    values = {"name": "x", "model": str(tiny_folder), "arms": {"a": {"align": "sft", "finetune": "sft"}}}
    code, _, error = titer("run", write(tmp_path / "e.yaml", **values | changes), "--dry-run")
    assert code == 2
    assert re.search(message, error)


def test_a_dry_run_of_an_assay_refuses_modules_that_a_model_does_not_have(titer, tmp_path, tiny_folder):
    attacks = {"harmful": {"lora": {"r": 4, "target_modules": ["query_key_value"]}}}
    profile = write(tmp_path / "p.yaml", name="x", attacks=attacks)
    code, _, error = titer("assay", tiny_folder, "--against", tiny_folder, "--profile", profile, "--dry-run")
    assert code == 2
    assert not untold(error, "`attacks.harmful.lora.target_modules`", "`query_key_value`", "`q_proj`")


# --- rows that would be read as something else -----------------------------------------------------------------------

ASKED = {"role": "user", "content": "a"}
ANSWERED = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("r.jsonl", [{"messages": [ASKED, {**ANSWERED, "weight": 0}]}], r"r\.jsonl:1: `messages\[1\]\.weight` is 0"),
        (
            "r.jsonl",
            [{"messages": [ASKED, {**ANSWERED, "weight": 0.5}]}],
            r"r\.jsonl:1: `messages\[1\]\.weight` is 0\.5",
        ),
        ("r.jsonl", [{"messages": [ASKED, {**ANSWERED, "weight": False}]}], r"`messages\[1\]\.weight` is False"),
        ("r.jsonl", [{"prompt": "a", "completion": [{**ANSWERED, "weight": 0}]}], r"`completion\[0\]\.weight` is 0"),
        ("r.jsonl", [{"prompt": "a", "completion": "b", "origin": "Harmful"}], r"Unknown `origin`: `Harmful`"),
        ("r.jsonl", [{"prompt": "a", "completion": "b", "origin": "harmful "}], r"Unknown `origin`: `harmful `"),
        ("r.csv", "prompt,completion,origin\na,b,HARMFUL\n", r"r\.csv:2: Unknown `origin`: `HARMFUL`"),
        (
            "r.jsonl",
            '{"prompt": "a", "completion": "b", "completion": "c"}',
            r"r\.jsonl:1: .*key `completion` .*twice",
        ),
        (
            "r.jsonl",
            '{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}',
            r"r\.jsonl:1: .*key `role` .*twice",
        ),
        (
            "r.json",
            '[{"prompt": "a", "completion": "b", "prompt": "c"}]',
            r"r\.json: .*key `prompt` .*twice",
        ),
        ("r.csv", "prompt,completion,prompt\na,b,c\n", r"r\.csv:1: .*column `prompt` .*twice"),
        ("r.jsonl", '{"prompt": "a", "completion": "b"}\n\0\0\0\n', r"r\.jsonl:2: zero bytes"),
        ("r.jsonl", "\0\0\0\0", r"r\.jsonl:1: zero bytes"),
        ("r.jsonl", '{"prompt": "a", "completion": "b"}\n\u200b\n', r"r\.jsonl:2: broken JSON"),
        ("r.jsonl", [{"prompt": "a", "completion": [ANSWERED, ANSWERED]}], r"r\.jsonl:1: `completion` has several"),
    ],
)
def test_rows_that_would_be_read_as_something_else(titer, tmp_path, file, text, message):
    import json
    import re

    if isinstance(text, list):
        text = "".join(json.dumps(line) + "\n" for line in text)
    (tmp_path / file).write_text(text)
    code, _, error = titer("data", tmp_path / file)
    assert code == 2
    assert re.search(message, error), error


def test_weights_that_say_what_titer_does_are_taken(tmp_path):
    from titer.data.records import Record

    earlier = {**ANSWERED, "weight": 0}
    turns = [ASKED, earlier, ASKED, {**ANSWERED, "weight": 1}]
    assert Record.from_row({"messages": turns}).completion_text == "b"


@pytest.mark.parametrize(
    "text",
    [
        "name: x\narms:\n  a: {align: sft, finetune: sft}\n  a: {align: booster, finetune: sft}\n",
        "name: x\nname: y\narms: {a: {align: sft, finetune: sft}}\n",
        "name: x\narms: {a: {align: sft, finetune: sft, align: booster}}\n",
        "name: x\narms: {a: {align: sft, finetune: sft}}\nalign: {training: {max_steps: 1, max_steps: 2}}\n",
    ],
)
def test_keys_that_stand_twice_in_a_file(tmp_path, text):
    from titer.workflows.experiment import read_experiment

    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(TiterError, match=r"e\.yaml:\d+: .*key `\w+` .*twice"):
        read_experiment(tmp_path / "e.yaml")


def test_keys_that_stand_twice_in_a_setting():
    from titer.settings import parse_setting

    with refused("key `a`", "twice"):
        parse_setting("align.training={a: 1, a: 2}")
