"""`titer plan`: what is counted without weights is what a training takes with them."""

import copy
import json

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

import titer as package
from titer import methods
from titer.jobs import capacity
from titer.jobs import footprint as counting
from titer.jobs.footprint import Footprint, Recipe, footprint
from titer.jobs.live_bytes import LiveBytes
from titer.jobs.trainings import lora_config
from titer.methods import Held
from titer.packing.batches import Sample, pack
from titer.packing.layouts import layout_for
from titer.testing import toy_rows
from titer.testing.trials import Trial

ROWS = ((7, 9), (5, 12), (11, 3))


def recipe(folder, **more):
    return Recipe(
        **{"model": str(folder), "lora": {"r": 4}, "rows": ROWS, "dtype": "float32", "autocast": False, **more}
    )


# --- a pass ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [{"checkpointing": True}, {"lora": None}, {"dtype": "bfloat16", "autocast": True}],
    ids=str,
)
def test_what_is_counted_without_numbers_is_what_a_pass_takes_with_them(tiny_folder, more):
    wanted = recipe(tiny_folder, **more)
    bare = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=counting.DTYPES[wanted.dtype])
    bare.requires_grad_(wanted.lora is None)
    model = bare if wanted.lora is None else get_peft_model(bare, lora_config(wanted.lora))
    if wanted.checkpointing:
        bare.gradient_checkpointing_enable({"use_reentrant": False})
        bare.enable_input_require_grads()
    layout_for(model, [([1] * prompt, [2] * answer) for prompt, answer in ROWS])
    batch = pack([Sample([1] * prompt, [[1] * answer]) for prompt, answer in ROWS], share_prefix=False)
    found = counting._passes(model.train(), batch, wanted, bare.model.layers[1])
    counted = footprint(wanted)._asdict()
    assert {name: counted[name] for name in found} == found
    assert counted["weights"] == sum(weight.numel() * weight.element_size() for weight in model.parameters())
    assert counted["kept"] > 0
    assert counted["packed"]


def test_deep_models_are_counted_by_two_shallow_ones(tiny_folder, tmp_path, monkeypatch):
    config = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    monkeypatch.setattr(counting, "SHALLOW", 2)
    found = []
    for deeper in (4, 100):  # for which no model is deep
        monkeypatch.setattr(counting, "DEEPER", deeper)
        counting._found.clear()
        found.append(footprint(recipe(tmp_path, lora=None)))
    assert found[0].fresh == found[1].fresh
    ends = dict.fromkeys(("early", "late", "early_added", "late_added"), 0)
    assert found[0]._replace(**ends) == found[1]._replace(**ends)


def test_quantised_weights_are_as_many_bytes_as_they_have_bits(tiny_folder):
    plain, *few = (footprint(recipe(tiny_folder, bits=bits)) for bits in (16, 8, 4))
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(counting.load_config(str(tiny_folder)))
    head = bare.get_output_embeddings()
    matrices = [each.weight for each in bare.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    for bits, found in zip((8, 4), few, strict=True):
        each = [
            4 * m.numel() - m.numel() * bits // 8 - (4 * len(m) if bits == 8 else m.numel() // 64) for m in matrices
        ]
        # A scalar stands where the weight stood.
        assert plain.weights - found.weights == sum(each) - 4 * len(matrices)
        assert found.trained == plain.trained
        assert abs(found.kept / plain.kept - 1) < 0.25


# --- a method --------------------------------------------------------------------------------------------------------


class Meter(TrainerCallback):
    """Counts what is alive in the second step, from which on the optimizer has its moments."""

    def __init__(self):
        self.live = LiveBytes()

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            self.live.most = self.live.now


MEASURED = ["booster", "seam", "lisa", "safe_grad"]
"""Of each way to hold copies one; `benchmarks/plan.py` measures more."""


@pytest.mark.parametrize("name", MEASURED)
def test_what_a_method_says_it_holds_is_what_it_takes(name, tiny_folder, tmp_path):
    """With all weights trained and few tokens: what counts then are copies of the weights."""
    stage = methods.stages_of(name)[0]
    method = methods.find(stage, name)
    torch.manual_seed(0)
    config = copy.deepcopy(counting.load_config(str(tiny_folder)))
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 512, 256 // config.num_attention_heads
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config)
    settings = {**next(iter(method.variants.values())), "per_device_train_batch_size": 2, "share_prefix": False}
    if name == "spard":
        settings["replay"] = 1.0
    trial, meter = Trial(method, settings, tmp_path), Meter()
    meter.live.count(model.parameters())
    with meter.live:
        trainer = trial.make(model=model, rows=toy_rows(8), with_lora=False, max_steps=2, callbacks=[meter])
        del model  # the trainer has a copy
        trainer.train()
    rows = [(len(row["prompt_ids"]), len(row["completion_ids"])) for row in trainer.train_dataset]
    longest = max(rows, key=sum)
    found = footprint(recipe(tmp_path, lora=None, rows=(longest, longest)))
    counted = capacity.memory(found, method.holds(trainer.args))
    assert abs(counted.total / meter.live.most - 1) < 0.1


def test_memory_of_cards_by_hand():
    found = Footprint(1000, 2000, 400, 300, 700, 900, 500, 600, 450, 50, 70, 10**9, 10, True)
    assert capacity.memory(found, Held()) == (2000, 800, 0, 900)
    assert capacity.memory(found, Held(copies=1, onto=3)) == (2000, 800, 900, 900)  # 3 × 400 + 600 against 400 + 900
    assert capacity.memory(found, Held(onto=1, states=2, logits=1)) == (2000, 800, 100 + 170, 900)
    four = capacity.memory(found, Held(copies=1), 4)
    assert four == (500 + 300 * (1 + 2 * 400 / 2000), 200, 100, 600 + 100)


# --- the verb --------------------------------------------------------------------------------------------------------


def test_every_method_has_a_line_and_what_does_not_fit_says_what_would(titer, tiny_folder, monkeypatch):
    code, told, error = titer("plan", tiny_folder, "--gpu", "a100-40", "--seq-length", "32", "--batch", "4", "--json")
    assert code == 0, error
    plan = json.loads(told)
    trained = {(stage, name) for stage, name, found in methods.every() if isinstance(found, methods.Method)}
    assert {(line["stage"], line["method"]) for line in plan["lines"]} == trained
    lines = {(line["stage"], line["method"]): line for line in plan["lines"]}
    assert all(line["fits"] and not line["fitting"] for line in plan["lines"])
    plain, booster = lines["align", "sft"], lines["align", "booster"]
    assert booster["seconds"] == pytest.approx(3 * plain["seconds"])
    assert booster["total"] > plain["total"]
    hours = plan["steps"] * plain["seconds"] / 3600
    assert (plan["steps"], plain["price"]) == (1500, pytest.approx(hours * capacity.CARDS["a100-40"].price))

    # A card on which the context, and all but the activations of one row, has room.
    small = capacity.CARDS["a100-40"]._replace(memory=capacity.CONTEXT + 1.08 * booster["total"] - 1)
    monkeypatch.setitem(capacity.CARDS, "a100-40", small)
    words = ["plan", tiny_folder, "--gpu", "a100-40", "--seq-length", "32", "--batch", "4", "--method", "booster"]
    (line,) = json.loads(titer(*words, "--json")[1])["lines"]
    assert not line["fits"]
    assert {"checkpointing", "batches of 1", "rows of 16 tokens"} <= line["fitting"].keys()
    assert all(held < line["total"] for held in line["fitting"].values())
    _, told, _ = titer(*words)
    assert "no; with" in " ".join(told.split())


def test_the_machine_at_hand_is_measured(tiny_folder):
    found = package.plan(str(tiny_folder), method="antibody", gpu="cpu", seq_length=16, batch=2, tokens=3200)
    assert [line.stage for line in found.lines] == ["align", "finetune"]
    assert found.steps == 100
    assert all(line.seconds > 0 and line.price == 0 for line in found.lines)
    assert "measured now" in " ".join(found.assumptions)


def test_all_weights_are_refused_by_methods_of_adapters(tiny_folder):
    found = package.plan(str(tiny_folder), adapter="full", seq_length=16, batch=1, count=2)
    assert {"finetune as_ft"} <= found.refused.keys()
    assert not {"as_ft"} & {line.method for line in found.lines}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "h100"], "`h100`"),
        (["--adapter", "32"], "`--adapter`"),
        (["--adapter", "r4", "--lora", "r=8"], "`--adapter r4`"),
        (["--quantise", "5"], "`--quantise`"),
        (["--quantise", "4", "--count", "2"], "not sharded"),
        (["--gpu", "cpu", "--count", "2"], "once"),
        (["--dtype", "float16"], "`float16`"),
        (["--method", "safelora"], "trains nothing"),
        (["--utilisation", "0"], "`--utilisation`"),
        (["--lora", "target_modules=[nothing]"], "`nothing`"),
    ],
    ids=" ".join,
)
def test_plans_that_cannot_be_meant(titer, tiny_folder, words, said):
    code, _, error = titer("plan", tiny_folder, "--seq-length", "8", *words)
    assert code == 2
    assert said in error
