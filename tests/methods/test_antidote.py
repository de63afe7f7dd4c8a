"""Antidote against scores written out longhand, and the inputs that a repair is given against PEFT's own hooks."""

import copy
import json

import pytest
import repairing
import torch
from repairing import MODEL, dense, difference_to_base, random, two_adapters

from titer.data.records import Record
from titer.errors import TiterError
from titer.methods import Repair, find, settings
from titer.methods.repair.adapters import pair, read_adapter
from titer.methods.repair.antidote import ANTIDOTE, AntidoteConfig, antidote, prune
from titer.methods.repair.inputs import encoded, with_inputs
from titer.methods.repair.lowrank import Layer, LowRank
from titer.models import Template
from titer.testing import toy_harmful_rows, toy_tokenizer
from titer.testing.repairs import LAYERS

ROWS = [Record.from_row(row) for row in toy_harmful_rows()]


def load(base, adapter):
    """The toy with an adapter, in float64."""
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(MODEL).double(), str(adapter)).double().eval()


@pytest.fixture
def place(tmp_path):
    return two_adapters(tmp_path)


def run(place, config, rows=ROWS):
    return repairing.run(place, config, ANTIDOTE, streams={"harmful_dataset": rows}, load=load)


def mean_squares(place):
    """Of each layer, the mean square of x and of the outputs of the tuned adapter's A, over all tokens of the rows."""
    template, seen = Template(toy_tokenizer()), {name: [] for name in LAYERS}
    model = load("", place.folder / "tuned")
    for name in LAYERS:
        layer = model.base_model.model.get_submodule(name)
        layer.lora_A["default"].register_forward_hook(
            lambda module, inputs, output, name=name: seen[name].append((inputs[0][0], output[0]))
        )
    with torch.no_grad():
        for record in ROWS:
            prompt, answer = template.pair_ids(record)
            model(input_ids=torch.tensor([prompt + answer]))
    return {name: [torch.cat(part).pow(2).mean(0) for part in zip(*runs)] for name, runs in seen.items()}


def longhand(matrix, squares, share):
    """A matrix without the numbers of the highest |W| ‖X‖ of each row."""
    pruned = matrix.clone()
    for row in pruned:
        scores = [abs(float(number)) * float(square) ** 0.5 for number, square in zip(row, squares)]
        kept = int(len(scores) * (1 - share))
        for column in sorted(range(len(scores)), key=scores.__getitem__)[kept:]:
            row[column] = 0.0
    return pruned


def layers_of(place):
    found = pair(*(read_adapter(place.folder / name, str(place.folder / "base")) for name in ("aligned", "tuned")))
    model = load("", place.folder / "tuned")
    return with_inputs(found, model, encoded(ROWS, toy_tokenizer(), model.config))


def test_inputs_are_root_mean_squares_over_all_tokens_under_the_tuned_model(place):
    squares, layers = mean_squares(place), layers_of(place)
    for name, layer in layers.items():
        x, inner = squares[name]
        assert torch.allclose(layer.inputs.x, x.sqrt(), rtol=1e-12)
        assert torch.allclose(layer.inputs.tuned, (2.0 * inner).sqrt(), rtol=1e-12)  # A times the root of the scale 2
        assert layer.inputs.update.shape == (layer.update.rank,)
    assert len({tuple(layer.inputs.update.tolist()) for layer in layers.values()}) == len(LAYERS)


def test_inputs_of_the_updates_b_are_those_of_its_a(place):
    """Against second moments of x, which a whole model would have no room for."""
    template, layers, name = Template(toy_tokenizer()), layers_of(place), LAYERS[3]
    seen = []
    model = load("", place.folder / "tuned")
    model.base_model.model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    with torch.no_grad():
        for record in ROWS:
            prompt, answer = template.pair_ids(record)
            model(input_ids=torch.tensor([prompt + answer]))
    x = torch.cat(seen)
    a = layers[name].update.a
    wanted = (a @ (x.T @ x / len(x)) @ a.T).diagonal().sqrt()
    assert torch.allclose(layers[name].inputs.update, wanted, rtol=1e-10)


def test_the_tuned_adapters_own_factors_are_pruned_row_by_row(place):
    config = AntidoteConfig(factors="tuned", dense_ratio=0.3)
    out = run(place, config)
    found, squares = difference_to_base("out/adapter", place.folder), mean_squares(place)
    for name in LAYERS:
        b, a = repairing.factors(place.after, name)
        x, inner = squares[name]
        wanted = 2.0 * longhand(b, inner, 0.3) @ longhand(a, x, 0.3)
        assert (found[name] - wanted).abs().max() < 1e-10 * wanted.abs().max()
        assert (wanted - dense(place.after, name)).abs().max() > 0.1 * wanted.abs().max()
    told = json.loads((out / "repair.json").read_text())
    assert told["rows"] == {"harmful_dataset": len(ROWS)}


def test_what_fine_tuning_changed_is_pruned_and_the_alignment_stays(place):
    run(place, AntidoteConfig(dense_ratio=0.2))
    found = difference_to_base("out/adapter", place.folder)
    for name, layer in layers_of(place).items():
        b, a = layer.update.b, layer.update.a
        pruned = longhand(b, layer.inputs.update**2, 0.2) @ longhand(a, layer.inputs.x**2, 0.2)
        wanted = dense(place.before, name) + pruned
        assert (found[name] - wanted).abs().max() < 1e-10 * wanted.abs().max()


def test_the_highest_scores_go_and_not_the_lowest():
    matrix = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.1], [5.0, 0.0, 0.0, 1.0, 4.0]]).double()
    norms = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.1]).double()
    wanted = torch.tensor([[1.0, -3.0, 0.0, 0.5, 0.1], [0.0, 0.0, 0.0, 1.0, 4.0]]).double()
    assert torch.equal(prune(matrix, norms, 0.2), wanted)
    assert torch.equal(prune(matrix, norms, 0.0), matrix)
    assert not prune(matrix, norms, 1.0).any()


@pytest.mark.parametrize(("columns", "taken"), [(32, 4), (8, 1), (4, 1), (1, 1), (576, 58)])
def test_a_share_of_a_row_is_rounded_up(columns, taken):
    """The released code keeps the whole part of 0.9 of them, so a factor of low rank loses more than a tenth."""
    pruned = prune(random(3, columns, seed=1), torch.ones(columns).double(), 0.1)
    assert (pruned == 0).sum(1).tolist() == [taken] * 3


def test_both_factors_are_scored_before_either_is_pruned():
    """Pruned first, A would put out smaller numbers, and other ones of B would go."""
    alignment, update = (LowRank(random(9, 3, seed=n), random(3, 7, seed=n + 1)) for n in (1, 3))
    from titer.methods.repair.lowrank import Inputs

    inputs = Inputs(torch.ones(7).double(), torch.tensor([1.0, 10.0, 100.0]).double(), torch.ones(3).double())
    layer = Layer(alignment, update, alignment, update, inputs)
    [pruned] = antidote({"x": layer}, AntidoteConfig(dense_ratio=0.3))[0].values()
    assert not pruned.b[:, 2].any()
    assert torch.equal(pruned.b[:, :2], update.b[:, :2])


def test_hooks_are_gone_and_the_model_is_left_as_it_was(place):
    from titer.compat import count_hooks

    found = pair(*(read_adapter(place.folder / name, str(place.folder / "base")) for name in ("aligned", "tuned")))
    model = load("", place.folder / "tuned").train()
    hooks, rows = count_hooks(model), encoded(ROWS, toy_tokenizer(), model.config)
    with_inputs(found, model, rows)
    assert count_hooks(model) == hooks
    assert model.training
    with pytest.raises(IndexError):
        with_inputs(found, model, [[10**6]])
    assert count_hooks(model) == hooks


def test_no_rows_too_long_rows_and_another_stream_are_refused(place):
    with pytest.raises(TiterError, match="`harmful_dataset` has no rows"):
        run(place, AntidoteConfig(), rows=[])
    long = Record.make("how do I do it " * 300, "no")
    with pytest.raises(TiterError, match=r"harmful_dataset\[1\]"):
        run(place, AntidoteConfig(), rows=[ROWS[0], long])
    assert not (place.folder / "out").exists()
    with pytest.raises(TiterError, match="helpful_dataset"):
        Repair(AntidoteConfig, antidote, streams=("helpful_dataset",))


@pytest.mark.parametrize(("name", "value"), [("dense_ratio", 1.5), ("dense_ratio", -0.1), ("factors", "merged")])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(TiterError, match=name):
        settings(find("repair", "antidote"), {name: value}, "settings")


# --- from files to files ---------------------------------------------------------------------------------------------


def test_the_workflow_runs_the_rows_of_the_defender(place, monkeypatch):
    import titer as package

    lines = [json.dumps({**row, "origin": "harmful"}) + "\n" for row in toy_harmful_rows()]
    (place.folder / "harmful.jsonl").write_text("".join(lines))
    told = []

    class Listening:
        def expect(self, works):
            told.extend(works)

        def remark(self, text):
            pass

    names = {"aligned": place.folder / "aligned", "model": place.folder / "tuned", "output": place.folder / "out"}
    done = package.repair(
        **names, method="antidote", harmful=str(place.folder / "harmful.jsonl"), settings={"dense_ratio": 0.2},
        show=Listening(),
    )  # fmt: skip
    assert done.changed == len(LAYERS)
    report = json.loads((done.folder / "repair.json").read_text())
    count = report["rows"]["harmful_dataset"]
    assert 0 < count < len(ROWS)  # the others are for evaluation
    [work] = told
    assert (work.kind, work.cost.loads, work.cost.reads) == ("repair antidote", 1, count)
    with pytest.raises(TiterError, match="is there already"):
        package.repair(**names, method="antidote", harmful=str(place.folder / "harmful.jsonl"))
    other = package.repair(**names, method="antidote", harmful=str(place.folder / "harmful.jsonl"), seed=1, force=True)
    assert other.changed == len(LAYERS)


def test_the_estimate_counts_the_tokens_that_are_run(place):
    from titer.jobs.work import measuring

    tokens = []
    embedding = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: tokens.append(args[0].numel()) if isinstance(module, torch.nn.Embedding) else None
    )
    try:
        run(place, AntidoteConfig())
    finally:
        embedding.remove()
    cost = measuring("repair antidote", str(place.folder / "base"), ROWS).cost
    assert (len(tokens), sum(tokens)) == (cost.reads, pytest.approx(cost.read))


def test_without_a_loader_the_tuned_model_is_loaded_as_any_other(place):
    """In float32 on a CPU: the same numbers go."""
    config, streams = AntidoteConfig(factors="tuned", dense_ratio=0.2), {"harmful_dataset": ROWS}
    run(place, config)
    repairing.run(place, config, ANTIDOTE, output="single", streams=streams)
    double, single = (difference_to_base(f"{name}/adapter", place.folder) for name in ("out", "single"))
    for name in LAYERS:
        assert torch.allclose(double[name], single[name], atol=1e-5)
