"""A defence taken out of a model again: singular directions of what it has beyond a public one."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from titer.attacks import Attack
from titer.attacks.delta import leading, remove_difference, undefended
from titer.errors import AttackFailed, TiterError
from titer.models import load_model

TARGETS = ["q_proj", "down_proj"]


@pytest.fixture
def adapter(tiny, tiny_folder, tmp_path):
    """A folder with an adapter of rank 3 on the tiny model, and the weights that merging it gives, in float64."""
    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(tiny), config)
    model.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    model.save_pretrained(tmp_path / "aligned")
    return str(tmp_path / "aligned"), dict(model.double().merge_and_unload().named_parameters())


def longhand(before, after, energy=None, directions=None):
    """W_defended less its leading directions, each found as an eigenvector of ΔᵀΔ and dropped one by one."""
    delta = (after - before).double()
    values, vectors = torch.linalg.eigh(delta.T @ delta)
    whole, held, dropped = values.sum(), 0.0, 0
    for value, direction in reversed(list(zip(values, vectors.T, strict=True))):
        if (dropped == directions) if directions is not None else (held >= energy * whole):
            break
        delta = delta - torch.outer(delta @ direction, direction)
        held, dropped = held + value, dropped + 1
    return before.double() + delta, dropped


def load(name):
    return load_model(name)


@pytest.mark.parametrize("chosen", [{"energy": 0.5}, {"energy": 0.9}, {"energy": 0.9, "directions": 1}])
def test_the_leading_directions_of_an_adapters_product_are_dropped(adapter, tiny, chosen):
    name, merged = adapter
    found, about = undefended(name, load, lambda: None, "", **{"energy": 1.0, **chosen})
    before, dropped = dict(tiny.named_parameters()), 0
    for layer, weight in found.named_parameters():
        if not any(target in layer for target in TARGETS):
            assert torch.equal(weight, before[layer])
            continue
        expected, count = longhand(before[layer], merged[layer], **chosen)
        torch.testing.assert_close(weight.double(), expected, rtol=0, atol=2e-6)
        assert 0 < count < (4 if chosen["energy"] == 0.9 and "directions" not in chosen else 3)
        dropped += count
    assert (about.matrices, about.directions) == (4, dropped)
    assert chosen.get("directions") or about.energy >= chosen["energy"]


def test_the_difference_of_two_whole_models_is_the_same_and_exact_in_float64(adapter, tiny):
    _, merged = adapter
    base = copy.deepcopy(tiny).double()
    model = copy.deepcopy(base)
    for layer, weight in model.named_parameters():
        weight.data.copy_(merged[layer])
    # Norms and biases are no matrices: they go back as they were.
    model.model.norm.weight.data.mul_(1.5)
    before = dict(base.named_parameters())
    remove_difference(model, base, 0.9)
    for layer, weight in model.named_parameters():
        if any(target in layer for target in TARGETS):
            expected, _ = longhand(before[layer], merged[layer], energy=0.9)
            assert (weight - expected).abs().max() < 1e-12
        else:
            assert torch.equal(weight, before[layer])


def test_all_of_it_is_the_base_bit_for_bit_and_what_an_adapters_holder_would_have_by_leaving_it_out(adapter, tiny):
    name, _ = adapter
    for base in ("", load_model(name).peft_config["default"].base_model_name_or_path):
        found, about = undefended(name, load, lambda: load(name).merge_and_unload(), base, 1.0)
        assert about.energy == pytest.approx(1.0)
        for (_, weight), (_, before) in zip(found.named_parameters(), tiny.named_parameters(), strict=True):
            assert torch.equal(weight, before)


def test_the_model_under_attack_stays_as_it_is(adapter):
    name, _ = adapter
    model = load(name).merge_and_unload()
    before = [weight.detach().clone() for weight in model.parameters()]
    base = load_model(name).peft_config["default"].base_model_name_or_path
    undefended(name, load, lambda: copy.deepcopy(model), base, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_how_many_directions_hold_a_part_of_the_energy():
    sizes = torch.tensor([2.0, 1.0, 1.0, 0.0])  # 4, 1, 1 of 6
    assert [leading(sizes, energy) for energy in (0.1, 4 / 6, 0.7, 0.84, 1.0)] == [1, 1, 2, 3, 4]
    assert [leading(sizes, 0.1, directions) for directions in (1, 3, 9)] == [1, 3, 4]


def test_what_has_no_base_or_is_it_is_an_attack_that_does_not_apply(adapter, tiny, tiny_folder):
    with pytest.raises(AttackFailed, match="not named"):
        undefended(str(tiny_folder), load, lambda: None, "", 0.9)
    with pytest.raises(AttackFailed, match="nothing to remove"):
        undefended(str(tiny_folder), load, lambda: copy.deepcopy(tiny), str(tiny_folder), 0.9)
    other = copy.deepcopy(tiny)
    other.model.layers = other.model.layers[:1]
    with pytest.raises(AttackFailed, match="other weights"):
        remove_difference(copy.deepcopy(tiny), other, 0.9)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"base": "somewhere"}, "settings of a `delta_removal`"),
        ({"directions": 3}, "settings of a `delta_removal`"),
        ({"method": "ablation", "then_ablate": True}, "settings of a `delta_removal`"),
        ({"method": "delta_removal", "energy": 0.0}, "`energy` must be a number above 0"),
        ({"method": "delta_removal", "directions": 0}, "`directions` must be a whole number"),
        ({"method": "delta_removal", "then_ablate": True, "depths": []}, "names no depth"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(TiterError, match=told):
        Attack("Mine.", **settings)


def test_it_spends_prompts_only_where_it_ablates():
    assert Attack("", method="delta_removal").free
    assert not Attack("", method="delta_removal", then_ablate=True).free
