"""SafeMERGE against whole matrices and against PEFT's own merge of two adapters, which the released code calls."""

import copy
import json

import pytest
import torch
from repairing import MODEL, cosine, dense, difference_to_base, factors, run, two_adapters, weights

from titer.errors import TiterError
from titer.methods import find, settings
from titer.methods.repair.safe_merge import SAFE_MERGE, SafeMergeConfig
from titer.testing import write_adapter
from titer.testing.repairs import LAYERS


@pytest.fixture
def place(tmp_path):
    return two_adapters(tmp_path)


def cosines(place, projection="approximate"):
    pairs = {name: (dense(place.before, name), dense(place.after, name)) for name in LAYERS}
    return {name: cosine(v, tuned - v, projection) for name, (v, tuned) in pairs.items()}


@pytest.mark.parametrize("projection", ["approximate", "exact"])
@pytest.mark.parametrize("merge", ["clean", "released"])
def test_layers_below_the_threshold_are_merged_and_the_others_stay(place, merge, projection):
    found = cosines(place, projection)
    third, fourth = sorted(found.values())[2:4]
    config = SafeMergeConfig(threshold=(third + fourth) / 2, safe=0.3, merge=merge, projection=projection)
    out = run(place, config, SAFE_MERGE)
    told = json.loads((out / "repair.json").read_text())["layers"]
    added = difference_to_base("out/adapter", place.folder)
    for name in LAYERS:
        wanted = dense(place.after, name)
        if found[name] <= third:
            (bt, at), (bs, as_) = factors(place.after, name), factors(place.before, name)
            if merge == "clean":
                wanted = 0.7 * 2 * bt @ at + 0.3 * 2 * bs @ as_
            else:
                roots = (0.7 * 2) ** 0.5, (0.3 * 2) ** 0.5
                wanted = (roots[0] * bt + roots[1] * bs) @ (roots[0] * at + roots[1] * as_)
        assert (added[name] - wanted).abs().max() < 1e-10 * wanted.abs().max()
        assert told[name]["changed"] == (found[name] <= third)
        assert told[name]["cosine"] == pytest.approx(found[name], abs=1e-12)


def test_released_is_what_peft_merges_and_clean_is_not(place):
    """PEFT's `linear` weighs A and B by √(w s) each; the new adapter has the scale 1."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(copy.deepcopy(MODEL).double(), str(place.folder / "tuned"), "tuned").double()
    model.load_adapter(str(place.folder / "aligned"), "safe")
    model.double().add_weighted_adapter(["tuned", "safe"], [0.8, 0.2], "merged", combination_type="linear")
    theirs = {name: model.base_model.model.get_submodule(name).get_delta_weight("merged") for name in LAYERS}
    for merge, same in (("released", True), ("clean", False)):
        run(place, SafeMergeConfig(threshold=1.0, merge=merge), SAFE_MERGE, output=merge)
        ours = difference_to_base(f"{merge}/adapter", place.folder)
        for name in LAYERS:
            apart = (ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()
            assert (apart < 1e-6) == same, f"{merge}: {apart:.1e}"  # PEFT keeps its weights in float32


def test_cross_terms_of_an_adapter_with_itself_nearly_double_it():
    """Adapters of which one went on from the other are nearly the same: 0.8 + 0.2 + 2 √0.16 = 1.8."""
    from titer.methods.repair.lowrank import Layer, LowRank
    from titer.methods.repair.safe_merge import merged

    one = LowRank(torch.eye(3, 2).double(), torch.eye(2, 4).double())
    layer = Layer(one, one * 0.0, one, one)
    assert torch.allclose(merged("x", layer, SafeMergeConfig(merge="released")).dense(), 1.8 * one.dense())
    assert torch.allclose(merged("x", layer, SafeMergeConfig()).dense(), one.dense())


def test_a_cosine_at_the_threshold_is_not_below_it(place):
    lowest = min(cosines(place).values())
    out = run(place, SafeMergeConfig(threshold=lowest - 1e-9), SAFE_MERGE)
    told = json.loads((out / "repair.json").read_text())["layers"]
    assert not any(row["changed"] for row in told.values())


def test_adapters_of_other_scales_are_merged_by_their_products(place):
    """Rank 4 and α 8 beside rank 4 and α 2: √(w s) of each its own."""
    write_adapter(place.folder / "small", place.folder / "base", place.before, lora_alpha=2)
    for merge in ("clean", "released"):
        run(place, SafeMergeConfig(threshold=1.0, merge=merge), SAFE_MERGE, aligned="small", output=merge)
        added = difference_to_base(f"{merge}/adapter", place.folder)
        for name in LAYERS:
            (bt, at), (bs, as_) = factors(place.after, name), factors(place.before, name)
            wanted = 0.8 * 2 * bt @ at + 0.2 * 0.5 * bs @ as_
            if merge == "released":
                wanted += (0.8 * 2 * 0.2 * 0.5) ** 0.5 * (bt @ as_ + bs @ at)
            assert (added[name] - wanted).abs().max() < 1e-10 * wanted.abs().max()


def test_factors_of_other_ranks_cannot_be_added_but_products_can(place):
    write_adapter(place.folder / "narrow", place.folder / "base", weights(3, seed=1), r=3)
    with pytest.raises(TiterError, match=r"other ranks") as error:
        run(place, SafeMergeConfig(threshold=1.0, merge="released"), SAFE_MERGE, aligned="narrow")
    assert "merge=clean" in error.value.hint
    run(place, SafeMergeConfig(threshold=1.0), SAFE_MERGE, aligned="narrow")


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", 2), ("safe", -0.1), ("safe", 1.5), ("merge", "ties"), ("projection", "other")]
)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(TiterError, match=name):
        settings(find("repair", "safe_merge"), {name: value}, "settings")
