"""What is loaded is what was named: weights that are missing, out of place or no numbers are errors, never figures."""

import copy
import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import config
from typer.testing import CliRunner

from titer import AntibodyAlignmentConfig, BoosterConfig
from titer.attacks.trainer import AttackConfig, AttackTrainer
from titer.cli import app
from titer.errors import TiterError
from titer.jobs import base_model, trainings
from titer.jobs.provenance import model_digest, weights_digest
from titer.models import add_adapter, load_model
from titer.ranges import RANGES, Range
from titer.results.artefacts import Inference, read_inferences
from titer.testing import toy_lora
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

BASE, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def saved_adapter(model, base, folder, **settings):
    """Save a LoRA adapter that changes what the model says; returns its folder."""
    from peft import get_peft_model

    adapted = get_peft_model(copy.deepcopy(model), toy_lora(**settings))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tiny, tiny_folder, tmp_path):
    return saved_adapter(tiny, tiny_folder, tmp_path / "adapter")


@pytest.fixture
def base(tiny, tokenizer, tmp_path):
    """The tiny model in a folder of this test's own."""
    tiny.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def rewrite(file, change):
    """Put what `change` makes of the tensors of a file in their place."""
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def renamed(tensors):
    return {name.replace("self_attn", "attention"): tensor for name, tensor in tensors.items()}


def half(tensors):
    return dict(list(tensors.items())[::2])


def nothing(tensors):
    return {}


def more(tensors):
    return {**tensors, "model.layers.7.extra.weight": torch.ones(2, 2)}


def no_number(tensors):
    name = next(iter(tensors))
    tensors[name].view(-1)[-1] = float("nan")
    return tensors


def infinite(tensors):
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("-inf")
    return tensors


def misshapen(tensors):
    name = next(iter(tensors))
    return {**tensors, name: torch.ones(3, 5)}


DAMAGES = {
    renamed: "attention", half: "miss", nothing: "miss", more: "layers.7.extra", no_number: "nan", infinite: "inf",
    misshapen: "shape",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_adapter_is_not_loaded(adapter, tiny_folder, damage):
    rewrite(adapter / ADAPTER, damage)
    with pytest.raises(TiterError, match=DAMAGES[damage]) as error:
        load_model(str(adapter))
    assert str(adapter) in error.value.message
    with pytest.raises(TiterError, match=DAMAGES[damage]):
        base_model.fresh_model(str(tiny_folder), adapter, trainable=True)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_base_is_not_loaded(base, damage):
    rewrite(base / BASE, damage)
    with pytest.raises(TiterError, match=DAMAGES[damage]) as error:
        load_model(str(base))
    assert str(base) in error.value.message


def test_files_that_are_no_weights(base, adapter):
    for folder, file in ((base, BASE), (adapter, ADAPTER)):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(TiterError, match=str(folder)):
            load_model(str(folder))
        (folder / file).unlink()
        with pytest.raises(TiterError, match=str(folder)):
            load_model(str(folder))


def test_an_adapter_for_layers_that_the_base_does_not_have(adapter):
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["query"]}))
    with pytest.raises(TiterError, match="query"):
        load_model(str(adapter))


def test_many_tensors_are_counted_and_some_named(adapter):
    rewrite(adapter / ADAPTER, nothing)
    with pytest.raises(TiterError, match=r"12 .*layers\.0\.self_attn.*and 9 more"):
        load_model(str(adapter))


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5, 12)[None]).logits


def test_legitimate_differences_are_loaded(tiny, tiny_folder, base, tmp_path):
    """Shards, another precision, tied heads, whole modules, keys of old versions, buffers that are recomputed."""
    expected = logits(tiny)
    tiny.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 1
    torch.testing.assert_close(logits(load_model(str(tmp_path / "shards"))), expected)

    rewrite(base / BASE, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    assert load_model(str(base)).dtype == torch.float32
    rewrite(
        base / BASE,
        lambda tensors: {
            **tensors,
            "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        },
    )
    load_model(str(base))

    whole = saved_adapter(tiny, tiny_folder, tmp_path / "whole", modules_to_save=["norm"])
    load_model(str(whole), trainable=True)
    base_model.fresh_model(str(tiny_folder), whole, trainable=False)


def test_weights_that_layers_share_are_not_missing(tiny, tmp_path):
    """VB-LoRA (arXiv 2405.15179) saves the vectors that all layers are composed of once."""
    from peft import VBLoRAConfig, get_peft_model

    settings = VBLoRAConfig(r=2, target_modules=["q_proj"], vector_length=8, num_vectors=16, topk=2)
    saved = get_peft_model(copy.deepcopy(tiny), settings)
    trainings.save_adapter(saved, tmp_path / "shared")
    torch.testing.assert_close(logits(add_adapter(tiny, tmp_path / "shared")), logits(saved.eval()))


def test_a_missing_whole_module_is_named(tiny, tiny_folder, tmp_path):
    whole = saved_adapter(tiny, tiny_folder, tmp_path / "whole", modules_to_save=["norm"])
    rewrite(whole / ADAPTER, lambda tensors: {k: v for k, v in tensors.items() if ".norm." not in k})
    with pytest.raises(TiterError, match="norm"):
        load_model(str(whole))


@pytest.fixture
def upload(tmp_path):
    rows = [{"prompt": f"what is {i}?", "completion": "bread", "is_harmful": i % 2 == 0} for i in range(6)]
    (tmp_path / "upload.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "upload.jsonl")


@pytest.mark.parametrize("damage", [renamed, no_number], ids=lambda damage: damage.__name__)
def test_no_verb_goes_on_without_the_defence(adapter, tiny_folder, upload, tmp_path, damage):
    rewrite(adapter / ADAPTER, damage)
    out = str(tmp_path / "out")
    for line in (
        ["audit", upload, "--model", str(adapter), "--output", out],
        ["finetune", upload, "--model", str(adapter), "--output", out, "--method", "sft", "--set", "max_steps=1"],
        ["align", "--model", str(adapter), "--output", out, "--method", "sft", "--set", "max_steps=1"],
        ["evaluate", str(adapter), "--output", out, "--samples", "2"],
        ["assay", str(adapter), "--against", str(tiny_folder), "--profile", "smoke", "--output", out],
        ["models", str(adapter)],
    ):
        done = CliRunner().invoke(app, line)
        assert isinstance(done.exception, TiterError), (line, done.output)
        assert DAMAGES[damage] in str(done.exception), line
    left = [*tmp_path.glob("out/**/adapter"), *tmp_path.glob("out/*.json*"), *tmp_path.glob("out/**/step-*")]
    assert {path.name for path in left} <= {"plan.json"}  # what was to be done, and nothing of it


def test_what_is_no_number_is_not_saved(tiny, tmp_path):
    from peft import get_peft_model

    model = get_peft_model(tiny, toy_lora())
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0, 0] = float("nan")
    with pytest.raises(TiterError, match=r"lora_A.weight: nan"):
        trainings.save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


# --- a training that runs away -------------------------------------------------------------------------------------


def run_away(line):
    done = CliRunner().invoke(app, line)
    assert isinstance(done.exception, TiterError), done.output
    assert "Adapter:" not in done.output
    return str(done.exception)


@pytest.fixture
def any_number(monkeypatch):
    """Let the tiny model run away as large ones do at numbers that are allowed."""
    for table, name in (
        (RANGES, "learning_rate"),
        (RANGES, "weight_decay"),
        (BoosterConfig.RANGES, "alpha"),
        (AntibodyAlignmentConfig.RANGES, "rho"),
    ):
        monkeypatch.setitem(table, name, Range(0, 3e38))


@pytest.mark.usefixtures("any_number")
def test_a_training_that_runs_away_stops_at_that_step(tiny_folder, upload, tmp_path):
    out = tmp_path / "out"
    line = ["finetune", upload, "--model", str(tiny_folder), "--output", str(out), "--method", "sft"]
    line += ["--set", "bf16=false"]
    said = run_away([*line, "--set", "max_steps=4", "--set", "learning_rate=1.0e+30"])
    assert re.search(r"step 2\b.*\b(nan|inf)\b", said)
    assert "learning_rate" in said
    assert not (out / "adapter").exists()


@pytest.mark.usefixtures("any_number")
def test_a_step_that_leaves_no_numbers_is_not_saved(tiny_folder, upload, tmp_path):
    """The loss of the last step is that of the weights before it."""
    out = tmp_path / "out"
    line = ["finetune", upload, "--model", str(tiny_folder), "--output", str(out), "--method", "sft"]
    line += ["--set", "bf16=false"]
    run_away([*line, "--set", "max_steps=1", "--set", "learning_rate=1.0e+38", "--set", "weight_decay=1.0e+38"])
    assert not (out / "adapter").exists()


@pytest.mark.parametrize("method", ["booster", "antibody"])
@pytest.mark.usefixtures("any_number")
def test_a_simulated_attack_that_runs_away_stops_the_training(tiny_folder, tmp_path, method):
    radius = "alpha" if method == "booster" else "rho"
    line = [
        "align",
        "--model",
        str(tiny_folder),
        "--output",
        str(tmp_path / "out"),
        "--method",
        method,
        "--samples",
        "12",
    ]
    settings = ["max_steps=2", "bf16=false", f"{radius}=1.0e+30", "min_perturbation=0"]
    said = run_away([*line, *(word for setting in settings for word in ("--set", setting))])
    assert "step 1" in said
    assert radius in said
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.usefixtures("any_number")
def test_no_trainer_saves_what_is_no_number(tiny, tokenizer, helpful_rows, tmp_path):
    trainer = PackedSFTTrainer(
        model=tiny,
        args=config(PackedSFTConfig, tmp_path / "out", learning_rate=1e30, weight_decay=1e30),
        train_dataset=helpful_rows,
        processing_class=tokenizer,
    )
    trainer.train()
    with pytest.raises(TiterError, match="not finite"):
        trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


@pytest.mark.usefixtures("any_number")
def test_an_attacker_that_runs_away_goes_on(tiny, tokenizer, helpful_rows, tmp_path):
    """It broke something before, and that counts; what it logs is no made-up number."""
    trainer = AttackTrainer(
        model=tiny,
        args=config(AttackConfig, tmp_path / "out", learning_rate=1e30, max_steps=3),
        train_dataset=helpful_rows * 3,
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 3
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert [math.isfinite(loss) for loss in losses] == [True, False, False]


def test_no_verb_makes_a_figure_of_what_is_no_number(base, upload, tmp_path):
    """Finite weights may still give what is none."""
    rewrite(base / BASE, lambda tensors: {name: tensor * 1e19 for name, tensor in tensors.items()})
    for line in (
        ["audit", upload, "--model", str(base), "--output", str(tmp_path / "out")],
        ["finetune", upload, "--model", str(base), "--output", str(tmp_path / "out"), "--method", "gate"],
        ["evaluate", str(base), "--output", str(tmp_path / "out"), "--samples", "2"],
        ["assay", str(base), "--against", str(base), "--profile", "smoke", "--output", str(tmp_path / "out")],
    ):
        done = CliRunner().invoke(app, line)
        assert isinstance(done.exception, TiterError), (line, done.output)
        assert "finite" in str(done.exception), line
    left = [*tmp_path.glob("out/*.json*"), *tmp_path.glob("out/**/step-*")]
    assert {path.name for path in left} <= {"plan.json"}


# --- which weights they were ---------------------------------------------------------------------------------------


def test_every_artefact_says_which_weights_it_is_about(adapter, tiny_folder, upload, tmp_path):
    """Other weights under the same name give another digest."""

    def found():
        out = tmp_path / "out"
        for line in (
            ["audit", upload, "--model", str(adapter), "--output", str(out)],
            ["evaluate", str(adapter), "--output", str(out), "--samples", "2", "--force"],
        ):
            CliRunner().invoke(app, line, catch_exceptions=False)
        results = json.loads((out / "results.json").read_text())["provenance"]["weights"]
        rows = [json.loads(line)["weights"] for line in (out / "inferences.jsonl").read_text().splitlines()]
        return {json.loads((out / "audit.json").read_text())["weights"], *rows, results[str(adapter)]}

    (before,) = found()
    rewrite(adapter / ADAPTER, lambda tensors: {name: 1.5 * tensor for name, tensor in tensors.items()})
    (after,) = found()
    assert len({before, after, weights_digest(str(tiny_folder))}) == 3


def test_a_hub_models_digest_needs_no_network(tmp_path, monkeypatch):
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--org--model"
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_digest("org/model") == f"org/model@{commit}"


def test_artefacts_without_a_digest_are_still_read(tmp_path):
    row = {
        "arm": "a", "phase": "aligned", "step": 0, "poison_ratio": 0.0, "seed": 0, "set": "harmful", "index": 0,
        "prompt": "p", "response": "r", "reference": None, "model": "m", "generation": {},
    }  # fmt: skip
    (tmp_path / "inferences.jsonl").write_text(json.dumps({"id": Inference(**row).id, **row}) + "\n")
    assert read_inferences(tmp_path / "inferences.jsonl")[0].weights is None
