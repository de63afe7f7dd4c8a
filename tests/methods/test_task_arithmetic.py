"""Task arithmetic against whole matrices, and what DARE leaves of an update."""

import json

import pytest
import torch
from repairing import dense, difference_to_base, random, run, two_adapters

from titer.errors import TiterError
from titer.methods import find, settings
from titer.methods.repair.lowrank import Layer, LowRank
from titer.methods.repair.task_arithmetic import TASK_ARITHMETIC, TaskArithmeticConfig, drop, task_arithmetic
from titer.testing.repairs import LAYERS


def layer(seed=1):
    return Layer(
        LowRank(random(9, 3, seed=seed), random(3, 7, seed=seed + 1)),
        LowRank(random(9, 2, seed=seed + 2), random(2, 7, seed=seed + 3)),
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_repaired_weights_are_the_tuned_ones_and_gamma_times_the_safety_vector(tmp_path, gamma):
    place = two_adapters(tmp_path)
    out = run(place, TaskArithmeticConfig(gamma=gamma), TASK_ARITHMETIC)
    found = difference_to_base("out/adapter", tmp_path)
    told = json.loads((out / "repair.json").read_text())["layers"]
    for name in LAYERS:
        v, tuned = dense(place.before, name), dense(place.after, name)
        wanted = tuned + gamma * v
        assert (found[name] - wanted).abs().max() < 1e-10 * wanted.abs().max()
        assert told[name]["changed"]
        assert told[name]["norm_after"] == pytest.approx(float(torch.linalg.norm(wanted - v)), rel=1e-10)


def test_a_weight_of_zero_changes_no_matrix():
    given = layer()
    updates, _ = task_arithmetic({"x": given}, TaskArithmeticConfig(gamma=0.0))
    assert (updates["x"].dense() - given.update.dense()).abs().max() < 1e-14


def test_dare_drops_numbers_of_both_factors_and_divides_the_others():
    alignment, update = (LowRank(random(80, 5, seed=n), random(5, 60, seed=n + 1)) for n in (5, 7))
    given = Layer(alignment, update)
    updates, _ = task_arithmetic({"x": given}, TaskArithmeticConfig(gamma=0.0, dare=0.4, seed=2))
    for new, old in ((updates["x"].b[:, :5], given.update.b), (updates["x"].a[:5], given.update.a)):
        dropped = new == 0
        assert 0.3 < dropped.double().mean() < 0.5
        assert torch.allclose(new[~dropped], old[~dropped] / 0.6, rtol=1e-12)


def test_what_dare_leaves_is_the_update_in_the_mean():
    b, a = random(6, 3, seed=1), random(3, 5, seed=2)
    draws = [drop(b, 0.5, f"b{n}") @ drop(a, 0.5, f"a{n}") for n in range(4000)]
    spread = torch.stack(draws).std(0) / 4000**0.5
    assert ((torch.stack(draws).mean(0) - b @ a).abs() < 5 * spread).all()
    assert spread.min() > 0


def test_the_safety_vector_is_not_dropped():
    given = layer()
    updates, _ = task_arithmetic({"x": given}, TaskArithmeticConfig(gamma=1.0, dare=0.5))
    without, _ = task_arithmetic({"x": given}, TaskArithmeticConfig(gamma=0.0, dare=0.5))
    difference = updates["x"].dense() - without["x"].dense()
    assert (difference - given.alignment.dense()).abs().max() < 1e-13


def test_dare_goes_by_seed_and_by_the_name_of_a_layer():
    given = layer()
    first, second, third = (
        task_arithmetic(dict.fromkeys("xy", given), TaskArithmeticConfig(dare=0.5, seed=seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first["x"].dense(), second["x"].dense())
    assert not torch.equal(first["x"].dense(), third["x"].dense())
    assert not torch.equal(first["x"].dense(), first["y"].dense())


@pytest.mark.parametrize(("name", "value"), [("gamma", -1), ("dare", 1.0), ("dare", -0.1), ("seed", 0.5)])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(TiterError, match=name):
        settings(find("repair", "task_arithmetic"), {name: value}, "settings")


def test_a_layer_that_fine_tuning_left_alone_stays():
    given = layer()
    alone = Layer(given.alignment, LowRank(given.update.b[:, :0], given.update.a[:0]))
    updates, _ = task_arithmetic({"x": given, "alone": alone}, TaskArithmeticConfig(dare=0.2))
    assert updates.keys() == {"x"}
