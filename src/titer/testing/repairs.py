"""What must hold for every repair, whatever it computes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titer import methods
from titer.data.records import Record
from titer.errors import TiterError
from titer.methods import Repair, Repaired
from titer.methods.repair.adapters import pair, read_adapter, repair
from titer.methods.repair.inputs import encoded, with_inputs
from titer.methods.repair.lowrank import Layer, LowRank
from titer.ranges import numbers, range_of
from titer.testing.rules import by_name, settings_explain_themselves
from titer.testing.toy import toy, toy_harmful_rows, toy_lora

LAYERS = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "qkv"]
"""What the toy's adapters change."""
WITHOUT_UPDATE = LAYERS[0]
"""The layer that has no update in what a repair is checked with."""


@functools.cache
def _adapters() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of two adapters of the toy in float64, the second one trained on from the first."""
    from peft import get_peft_model, get_peft_model_state_dict

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        aligned = get_peft_model_state_dict(get_peft_model(copy.deepcopy(toy()[0]), toy_lora()))
        aligned = {name: weight.detach().double() for name, weight in aligned.items()}
        return aligned, {name: weight + 0.05 * torch.randn_like(weight) for name, weight in aligned.items()}


def write_adapter(folder: Path, base: Path, weights: Mapping[str, Tensor], **lora: Any) -> Path:
    """Write an adapter of the toy, with settings over those of `toy_lora`, and return its folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = toy_lora(**lora)
    config.base_model_name_or_path = str(base)
    config.save_pretrained(str(folder))
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "adapter_model.safetensors")
    return folder


@dataclasses.dataclass(frozen=True)
class RepairTrial:
    """A repair with settings, to be tried on a toy.

    Attributes:
        method: The method.
        settings: What makes each of its terms matter.
        folder: Where it may write.
    """

    method: Repair
    settings: Mapping[str, Any]
    folder: Path

    @property
    def config(self) -> Any:
        """Its settings."""
        return methods.settings(self.method, dict(self.settings), "variant")

    def folders(self) -> tuple[Path, Path, Path]:
        """Write the toy and two adapters, where they are not yet, and return the folders: base, aligned, tuned."""
        base, aligned, tuned = (self.folder / name for name in ("base", "aligned", "tuned"))
        if not base.exists():
            model, tokenizer = toy()
            model.save_pretrained(base)
            tokenizer.save_pretrained(base)
            for place, weights in zip((aligned, tuned), _adapters(), strict=True):
                write_adapter(place, base, weights)
        return base, aligned, tuned

    @property
    def streams(self) -> dict[str, list[Record]]:
        """The rows that it is given."""
        rows = [Record.from_row(row) for row in toy_harmful_rows()]
        return {name: {"harmful_dataset": rows}[name] for name in self.method.streams}

    def read(self) -> dict[str, Layer]:
        """Return the layers of the two adapters."""
        base, aligned, tuned = self.folders()
        found = pair(read_adapter(aligned, str(base)), read_adapter(tuned, str(base)))
        if not self.method.streams:
            return found
        model, tokenizer = load(str(base), tuned), toy()[1]
        return with_inputs(found, model, encoded(self.streams["harmful_dataset"], tokenizer, model.config))

    def layers(self) -> dict[str, Layer]:
        """Return what its `apply` is called with; the layer `WITHOUT_UPDATE` has none."""
        found = self.read()
        layer = found[WITHOUT_UPDATE]
        zero = LowRank(layer.update.b[:, :0], layer.update.a[:0])
        inputs = layer.inputs and layer.inputs._replace(update=layer.inputs.update[:0])
        return {**found, WITHOUT_UPDATE: dataclasses.replace(layer, update=zero, inputs=inputs)}

    def apply(self, layers: Mapping[str, Layer]) -> Repaired:
        """Return what it makes of layers."""
        return self.method.apply(layers, self.config)

    def repair(self, output: str = "repaired", tuned: Path | None = None) -> Path:
        """Repair the toy's adapter, or another tuned one, and return the folder."""
        base, aligned, own = self.folders()
        how = (self.method, self.config, self.folder / output, self.streams, load)
        repair(str(base), aligned, tuned or own, *how)
        return self.folder / output


def load(base: str, adapter: Path) -> Any:
    """Return the toy with an adapter on it, in float64, as what is compared with it is computed."""
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(toy()[0]), str(adapter)).double().eval()


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _tensors(layers: Mapping[str, Layer]) -> list[Tensor]:
    """Return everything that layers hold."""
    found: list[Tensor] = []
    for layer in layers.values():
        for one in (layer.alignment, layer.update, layer.aligned, layer.tuned):
            found += [] if one is None else [one.b, one.a]
        found += layer.inputs or ()
    return found


def a_layer_without_update_stays(trial: RepairTrial) -> None:
    """What fine-tuning left alone is left alone."""
    changed = trial.apply(trial.layers())[0].get(WITHOUT_UPDATE)
    assert changed is None or changed.norm() == 0.0, f"an update of zero becomes one of length {changed.norm():.1e}"


def order_of_layers_does_not_matter(trial: RepairTrial) -> None:
    """Layers in another order, and again, become the same, bit for bit."""
    layers = trial.layers()
    first = trial.apply(layers)[0]
    for how, others in (("again", layers), ("in another order", dict(reversed(layers.items())))):
        second = trial.apply(others)[0]
        assert first.keys() == second.keys(), f"{how}, it changes other layers"
        equal = all(torch.equal(first[name].b @ first[name].a, second[name].b @ second[name].a) for name in first)
        assert equal, f"{how}, it makes other updates of the same ones"


def what_it_is_given_stays(trial: RepairTrial) -> None:
    """Neither tensors nor files that it reads are changed."""
    layers = trial.layers()
    before = [tensor.clone() for tensor in _tensors(layers)]
    trial.apply(layers)
    after = _tensors(layers)
    assert all(map(torch.equal, before, after)), "it changes the tensors that it is given"
    folders = trial.folders()
    files = [_bytes(folder) for folder in folders]
    trial.repair()
    assert files == [_bytes(folder) for folder in folders], "it changes files that it reads"


def the_adapter_gives_the_logits_of_its_updates(trial: RepairTrial) -> None:
    """The folder, read by PEFT, is the base with aligned weights and the new updates added as whole matrices, in float64."""
    layers = trial.read()
    updates = trial.apply(layers)[0]
    dense, ids = copy.deepcopy(toy()[0]), torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        for name, (alignment, update) in layers.items():
            weight: Any = dense.get_submodule(name).weight
            weight += alignment.dense() + updates.get(name, update).dense()
        expected = dense(ids).logits
        adapted = load("", trial.repair() / "adapter")
        apart = float((adapted(ids).logits - expected).abs().max() / expected.abs().max())
    assert apart < 1e-10, f"logits of the adapter that is written differ by {apart:.1e} from those of its updates"


def its_report_is_whole(trial: RepairTrial) -> None:
    """`repair.json` has a row for each layer, in words and finite numbers."""
    told = json.loads((trial.repair() / "repair.json").read_text(encoding="utf-8"))["layers"]
    assert sorted(told) == sorted(LAYERS), f"its report has {len(told)} layers of {len(LAYERS)}"
    values = [value for row in told.values() for value in row.values()]
    assert all(not isinstance(value, float) or math.isfinite(value) for value in values), "it reports what is no number"
    for name, layer in told.items():
        assert layer["changed"] or layer["norm_before"] == layer["norm_after"], f"it reports another norm of `{name}`"


def what_it_repaired_can_be_repaired(trial: RepairTrial) -> None:
    """Its own output is taken as the tuned adapter, or there is nothing left to repair."""
    first = trial.repair("once")
    try:
        trial.repair("twice", tuned=first)
    except TiterError as error:
        if "nothing to repair" not in error.message:
            raise AssertionError(f"its own output is refused: {error.message}") from error


def weights_that_are_no_numbers_are_refused(trial: RepairTrial) -> None:
    """They are told before anything is written."""
    base, _, _ = trial.folders()
    weights = {name: weight.clone() for name, weight in _adapters()[1].items()}
    next(iter(weights.values()))[0, 0] = float("nan")
    try:
        trial.repair("refused", tuned=write_adapter(trial.folder / "nan", base, weights))
    except TiterError:
        assert not (trial.folder / "refused").exists(), "it writes before it refuses"
        return
    raise AssertionError("it takes an adapter that holds what is no number")


def bad_settings_are_refused(trial: RepairTrial) -> None:
    """A number beyond its range, a text in its place and an unknown name are errors that name the setting."""
    bad: list[tuple[str, Any]] = [("no_such_setting", 1)]
    for name in numbers(trial.method.config):
        bad += [(name, range_of(trial.method.config, name).high * 2 + 1), (name, "much")]
    for name, value in bad:
        said = _refusal(trial, {**trial.settings, name: value})
        assert name in said, f"`{name}={value}` is not refused by name"


def _refusal(trial: RepairTrial, values: dict[str, Any]) -> str:
    """Return what is said against settings; nothing where they are taken."""
    try:
        methods.settings(trial.method, values, "settings")
    except TiterError as error:
        return error.message
    return ""


def it_changes_something(trial: RepairTrial) -> None:
    """Of the toy's layers it changes some, or the other rules say little."""
    assert trial.apply(trial.layers())[0], "it changes no layer of the toy: give it settings in `variants` that do"


REPAIR_CHECKS = by_name(
    [
        settings_explain_themselves,
        bad_settings_are_refused,
        it_changes_something,
        a_layer_without_update_stays,
        order_of_layers_does_not_matter,
        what_it_is_given_stays,
        weights_that_are_no_numbers_are_refused,
        the_adapter_gives_the_logits_of_its_updates,
        its_report_is_whole,
        what_it_repaired_can_be_repaired,
    ]
)
"""What must hold for every repair, whatever it computes."""


def repair_trials(method: Repair, folder: Path) -> Iterator[tuple[str, RepairTrial]]:
    """Yield each variant of a repair with its label."""
    for variant, settings in method.variants.items():
        yield variant, RepairTrial(method, settings, folder / (variant or "plain"))
