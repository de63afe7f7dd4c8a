"""Repairs: Safe LoRA against its formula written out on whole matrices, what a repair refuses, and the folder it leaves."""

import json

import pytest
import repairing
import torch
from repairing import dense, difference_to_base, random, weights

from titer import methods
from titer.errors import TiterError
from titer.methods import Repair
from titer.methods.repair.adapters import read_adapter
from titer.methods.repair.lowrank import Layer, LowRank
from titer.methods.repair.safelora import SAFELORA, SafeLoraConfig, safelora
from titer.testing import check_method, write_adapter
from titer.testing.repairs import LAYERS


@pytest.fixture
def place(tmp_path):
    return repairing.two_adapters(tmp_path)


def run(place, config=None, method=SAFELORA, **names):
    return repairing.run(place, config or SafeLoraConfig(number=2), method, **names)


def longhand(v, update, projection):
    """C ΔW and its cosine with ΔW, with C as a whole matrix."""
    c = v @ v.T / torch.linalg.norm(v) if projection == "approximate" else v @ torch.linalg.pinv(v.T @ v) @ v.T
    projected = c @ update
    cosine = (projected * update).sum() / (torch.linalg.norm(projected) * torch.linalg.norm(update))
    return projected, float(cosine)


# --- Safe LoRA -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["approximate", "exact"])
@pytest.mark.parametrize("select", ["number", "threshold"])
def test_safelora_is_its_formula_on_whole_matrices(place, projection, select):
    by_layer = {}
    for layer in LAYERS:
        v, update = dense(place.before, layer), dense(place.after, layer) - dense(place.before, layer)
        by_layer[layer] = (v, update, *longhand(v, update, projection))
    cosines = {layer: cosine for layer, (_, _, _, cosine) in by_layer.items()}
    expected = sorted(cosines, key=cosines.get)[:3]
    between = sum(sorted(cosines.values())[2:4]) / 2
    out = run(place, SafeLoraConfig(select=select, number=3, threshold=between, projection=projection))
    told = json.loads((out / "repair.json").read_text())["layers"]
    found = difference_to_base("out/adapter", place.folder)
    for layer, (v, update, projected, cosine) in by_layer.items():
        wanted = v + (projected if layer in expected else update)
        assert (found[layer] - wanted).abs().max() < 1e-10 * wanted.abs().max()
        assert told[layer]["changed"] == (layer in expected)
        assert told[layer]["cosine"] == pytest.approx(cosine, abs=1e-12)
        assert told[layer]["norm_before"] == pytest.approx(float(torch.linalg.norm(update)), rel=1e-10)
        after = projected if layer in expected else update
        assert told[layer]["norm_after"] == pytest.approx(float(torch.linalg.norm(after)), rel=1e-10)


def test_the_approximate_projection_is_none_and_the_exact_one_is():
    v = LowRank(random(9, 3, seed=1), random(3, 7, seed=2))
    layers = {"x": Layer(v, LowRank(random(9, 2, seed=3), random(2, 7, seed=4)))}
    again = {}
    for projection in ("approximate", "exact"):
        config = SafeLoraConfig(number=1, projection=projection)
        once = safelora(layers, config)[0]["x"]
        twice = safelora({"x": Layer(v, once)}, config)[0]["x"]
        again[projection] = float((twice.dense() - once.dense()).norm() / once.norm())
    assert again["exact"] < 1e-12
    assert again["approximate"] > 0.1


def test_number_takes_as_many_as_it_says_also_of_equals_and_all_where_there_are_fewer():
    layer = Layer(
        LowRank(random(9, 3, seed=1), random(3, 7, seed=2)), LowRank(random(9, 2, seed=3), random(2, 7, seed=4))
    )
    layers = dict.fromkeys("cab", layer)
    assert sorted(safelora(layers, SafeLoraConfig(number=2))[0]) == ["a", "b"]
    assert sorted(safelora(layers, SafeLoraConfig(number=10))[0]) == ["a", "b", "c"]


def test_an_alignment_that_leaves_a_layer_alone_spans_no_subspace():
    zero = LowRank(torch.zeros(9, 3).double(), random(3, 7, seed=2))
    with pytest.raises(TiterError, match="`x`"):
        safelora({"x": Layer(zero, LowRank(random(9, 2, seed=3), random(2, 7, seed=4)))}, SafeLoraConfig())


# --- the folder ------------------------------------------------------------------------------------------------------


def test_layers_left_alone_keep_their_weights_bit_for_bit_and_the_config_stays(place):
    out = run(place)
    told = json.loads((out / "repair.json").read_text())
    written = read_adapter(out / "adapter", str(place.folder / "base"))
    alone = [layer for layer, row in told["layers"].items() if not row["changed"]]
    assert len(alone) == 4
    for layer in alone:
        for factor in "BA":
            own = place.after[f"base_model.model.{layer}.lora_{factor}.weight"]
            assert torch.equal(written.factors[layer][factor], own)
    assert (written.config.r, written.config.lora_alpha, written.config.rank_pattern) == (4, 8, {})
    assert (out / "adapter" / "tokenizer.json").is_file()
    assert told["settings"]["number"] == 2


def half(layers, config):
    """Halve every update but that of the first layer by name."""
    return {name: layer.update * 0.5 for name, layer in layers.items() if name != min(layers)}, {}


@pytest.mark.parametrize(
    "lora",
    [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}}],
    ids=str,
)
def test_ranks_grow_and_scales_stay_where_an_update_needs_more_than_the_adapter_has(place, lora):
    """Between adapters that have no column in common, the middle has the ranks of both."""
    before, after = weights(4, seed=1), weights(4, seed=5)
    if "rank_pattern" in lora:
        after |= {name: weight[:3] for name, weight in after.items() if "q_proj.lora_A" in name}
        after |= {name: weight[:, :3] for name, weight in after.items() if "q_proj.lora_B" in name}
    write_adapter(place.folder / "b", place.folder / "base", before)
    write_adapter(place.folder / "a", place.folder / "base", after, **lora)
    run(place, SafeLoraConfig(), Repair(SafeLoraConfig, half), aligned="b", tuned="a")
    old, new, found = (difference_to_base(name, place.folder) for name in ("b", "a", "out/adapter"))
    for layer in LAYERS:
        wanted = new[layer] if layer == min(LAYERS) else (old[layer] + new[layer]) / 2
        assert (found[layer] - wanted).abs().max() < 1e-10 * wanted.abs().max()


def test_an_adapter_of_single_precision_stays_one(place):
    for name, values in (("aligned", place.before), ("tuned", place.after)):
        single = {key: weight.float() for key, weight in values.items()}
        write_adapter(place.folder / f"{name}32", place.folder / "base", single)
    out = run(place, aligned="aligned32", tuned="tuned32")
    written = read_adapter(out / "adapter", str(place.folder / "base"))
    assert {weight.dtype for pair in written.factors.values() for weight in pair.values()} == {torch.float32}


# --- refusals --------------------------------------------------------------------------------------------------------


def write(place, name, values, **lora):
    return write_adapter(place.folder / name, place.folder / "base", values, **lora)


def test_the_same_adapter_twice_is_nothing_to_repair(place):
    with pytest.raises(TiterError, match="nothing to repair"):
        run(place, tuned="aligned")
    assert not (place.folder / "out").exists()


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_adapters_that_are_more_than_a_product_are_refused_by_what_makes_them_so(place, lora, named):
    write(place, "odd", place.after, **lora)
    with pytest.raises(TiterError, match=f"odd.*{named}"):
        run(place, tuned="odd")


def test_other_layers_bases_kinds_and_weights_are_refused(place):
    fewer = {name: weight for name, weight in place.after.items() if "v_proj" not in name}
    write(place, "fewer", fewer)
    with pytest.raises(TiterError, match=r"different layers.*v_proj"):
        run(place, tuned="fewer")
    write_adapter(place.folder / "elsewhere", place.folder / "another", place.after)
    (place.folder / "another").mkdir()
    with pytest.raises(TiterError, match="another"):
        run(place, tuned="elsewhere")
    with pytest.raises(TiterError, match="no PEFT adapter"):
        run(place, aligned="base")
    config = place.folder / "aligned" / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
    with pytest.raises(TiterError, match="IA3"):
        run(place)
    assert not (place.folder / "out").exists()


def test_the_embedded_model_is_the_same_by_its_name_and_by_its_folder(place, monkeypatch):
    """Runs ask for it by name; the adapters that they trained name the folder."""
    from titer.methods.repair import adapters
    from titer.models import EMBEDDED

    monkeypatch.setattr(adapters, "embedded_model", lambda: place.folder / "base")
    assert adapters.same_base(place.folder / "tuned", EMBEDDED) == place.folder / "tuned"
    monkeypatch.setattr(adapters, "embedded_model", lambda: place.folder / "another")
    with pytest.raises(TiterError, match="not on"):
        adapters.same_base(place.folder / "tuned", EMBEDDED)


def test_a_rank_that_the_file_does_not_have_is_refused(place):
    write(place, "damaged", place.after, rank_pattern={"q_proj": 3})
    with pytest.raises(TiterError, match="rank 3"):
        run(place, tuned="damaged")


def test_what_a_repair_makes_up_is_refused(place):
    def elsewhere(layers, config):
        return {"no.such": next(iter(layers.values())).update}, {}

    def infinite(layers, config):
        return {name: layer.update * float("inf") for name, layer in layers.items()}, {}

    for wrong, told in ((elsewhere, "no.such"), (infinite, "not finite")):
        with pytest.raises(TiterError, match=told):
            run(place, method=Repair(SafeLoraConfig, wrong))
    assert not (place.folder / "out" / "adapter").exists()


# --- declared and named ----------------------------------------------------------------------------------------------

MINE = '''
from dataclasses import dataclass, field
from titer.methods import Repair

@dataclass
class Towards:
    weight: float = field(default=0.5, metadata={"help": "How far to go back."})

def towards(layers, config):
    """Go part of the way back."""
    return {name: layer.update * (1 - config.weight) for name, layer in layers.items()}, {}

TOWARDS = Repair(Towards, towards)
'''


def dense_updates(layers, config):
    return {name: layer.update.dense() for name, layer in layers.items()}, {}


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda layers, config: {}, "dict"),
        (lambda layers, config: ({}, {next(iter(layers)): 1}), "int"),
        (lambda layers, config: ({"lm_head": None}, {}), "lm_head"),
        (lambda layers, config: 1 / 0, "ZeroDivisionError"),
        (dense_updates, "Tensor"),
    ],
)
def test_what_is_no_repair_is_refused_with_its_name(place, apply, words):
    with pytest.raises(TiterError, match=words) as caught:
        run(place, method=Repair(SafeLoraConfig, apply))
    assert apply.__qualname__ in str(caught.value)
    assert not (place.folder / "out").exists()


def test_a_repair_of_ones_own_is_listed_run_and_checked_by_its_path(place, titer, monkeypatch):
    monkeypatch.chdir(place.folder)
    (place.folder / "mine.py").write_text(MINE)
    code, told, error = titer("methods", "show", "mine.py:TOWARDS")
    assert code == 0, error
    assert "repair mine.py:TOWARDS" in told
    assert "Go part of the way back." in told
    code, told, _ = titer("settings", "mine.py:TOWARDS")
    assert (code, told.split()[0]) == (0, "weight")
    line = ("repair", "--method", "mine.py:TOWARDS", "--aligned", "aligned", "--model", "tuned", "--output", "out")
    code, told, error = titer(*line, "--set", "weight=0.25")
    assert code == 0, error
    old, new, found = (difference_to_base(name, place.folder) for name in ("aligned", "tuned", "out/adapter"))
    for layer in LAYERS:
        assert torch.allclose(found[layer], 0.25 * old[layer] + 0.75 * new[layer], atol=1e-10)
    code, _, error = titer(*line)
    assert code == 2
    assert "--force" in error
    code, _, error = titer(*line, "--force", "--set", "wait=1")
    assert code == 2
    assert "`wait`" in error
    assert "`weight`" in error


def test_a_method_of_another_stage_is_told_which_it_belongs_to():
    for stage, path, own in (
        ("align", "titer.methods.repair.safelora:SAFELORA", "repair"),
        ("repair", "titer.methods.align.booster:BOOSTER", "align"),
    ):
        with pytest.raises(TiterError, match=f"no {stage} method") as error:
            methods.find(stage, path)
        assert f"`{own}`" in error.value.hint


def shrinking_in_place(layers, config):
    for layer in layers.values():
        layer.update.a.mul_(0.5)
    return {name: layer.update for name, layer in layers.items()}, {}


def by_place(layers, config):
    *_, last = layers
    return {last: layers[last].update * 0.5}, {}


@pytest.mark.parametrize(
    ("apply", "rule"),
    [
        (shrinking_in_place, "what it is given stays"),
        (by_place, "order of layers does not matter"),
        (
            lambda layers, config: ({name: layer.alignment for name, layer in layers.items()}, {}),
            "without update stays",
        ),
        (lambda layers, config: ({}, {}), "it changes something"),
    ],
)
def test_a_repair_that_breaks_a_rule_is_told_which(apply, rule, monkeypatch):
    from titer.testing.repairs import REPAIR_CHECKS

    wanted = {name: check for name, check in REPAIR_CHECKS.items() if rule in name.replace("_", " ")}
    assert wanted
    monkeypatch.setattr("titer.testing.check.REPAIR_CHECKS", wanted)
    with pytest.raises(AssertionError, match=rule):
        check_method(Repair(SafeLoraConfig, apply, "Odd."))
