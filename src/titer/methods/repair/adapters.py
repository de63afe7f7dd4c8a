"""Adapter folders in, adapter folder out: what the repair stage reads, refuses and writes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from titer import plugins
from titer.compat import pattern_key
from titer.data.records import Record
from titer.errors import TiterError, check_known, first_line
from titer.files import put_whole, read_json, replacing, writing
from titer.infer.serving import read_serving, refuse_routed, write_serving
from titer.methods import Repair, Repaired
from titer.methods.repair.inputs import STREAM, encoded, with_inputs
from titer.methods.repair.lowrank import Layer, LowRank
from titer.models import (
    EMBEDDED,
    PLAIN_STARTS,
    adapter_weights,
    check_folder,
    copy_bits,
    embedded_model,
    load_model,
    load_tokenizer,
    order_adapter_config,
    refuse_nonfinite,
    refuse_strays,
    split_adapter,
    split_bits,
)

NO_STREAMS: Mapping[str, Sequence[Record]] = MappingProxyType({})

REPORT = "repair.json"
"""Beside the adapter: what a repair did to each layer."""

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")

_HARMLESS = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "fan_in_fan_out", "base_model_name_or_path", "revision", "task_type",
    "inference_mode", "auto_mapping", "peft_version", "peft_type", "runtime_config", "megatron_core", "init_lora_weights",
    "loftq_config", "eva_config", "ensure_weight_tying",
}  # fmt: skip
"""Settings of a LoRA that leave it what it is: a scaled product B A, added to the base's weight."""


class Adapter(NamedTuple):
    """What a folder holds.

    Attributes:
        folder: The folder.
        config: Its `peft.LoraConfig`.
        factors: B and A of each layer, as they stand in the file.
        scales: What their product is multiplied by.
    """

    folder: Path
    config: Any
    factors: dict[str, dict[str, Tensor]]
    scales: dict[str, float]

    def matrix(self, layer: str) -> LowRank:
        """Return what the adapter adds to the base's weight, in float64."""
        b, a = (self.factors[layer][factor].double() for factor in "BA")
        return LowRank(b * self.scales[layer], a)

    def own(self, layer: str) -> LowRank:
        """Return the same matrix as the product of its B and A as they were trained, each times the root of the scale."""
        b, a = (self.factors[layer][factor].double() for factor in "BA")
        root = self.scales[layer] ** 0.5
        return LowRank(b * root, a * root)


def repair(
    model: str,
    aligned: Path,
    tuned: Path,
    method: Repair,
    config: Any,
    folder: Path,
    streams: Mapping[str, Sequence[Record]] = NO_STREAMS,
    load: Callable[[str, Path], Any] = load_model,
) -> None:
    """Repair a fine-tuned adapter and leave it in `folder/adapter` with the tokenizer, and in `folder/repair.json` what was done.

    The repaired adapter is exact up to the rounding of its file, on the same base, with the config of the tuned one: layers
    that a method leaves alone keep their weights bit for bit. Where a layer needs a larger rank, that of all grows, with zeros.
    No model is loaded, except of a method with a stream, whose rows the tuned model runs.
    What the tuned adapter is served with, the repaired one is too (`serving.json`).

    Args:
        model: The base of both adapters.
        aligned: The adapter before fine-tuning.
        tuned: The adapter after it.
        method: How to repair.
        config: Its settings.
        folder: Where the result goes; an adapter that lies there is replaced.
        streams: Rows of the defender's by argument name, for a method that wants them.
        load: Returns a base with an adapter on it.

    Raises:
        TiterError: When the two do not belong together, are no plain LoRA, hold what is no number, or are the same.
        OSError: For a disk that is full, read-only or gone (`titer.files.DiskError`).
    """
    before, after = read_adapter(aligned, model), read_adapter(tuned, model)
    refuse_routed(after.folder, "a repair")
    layers, serving = pair(before, after), read_serving(after.folder)
    if method.streams:
        tuned_model = load(model, after.folder)
        rows = encoded(streams[STREAM], load_tokenizer(model), tuned_model.config)
        layers = with_inputs(layers, tuned_model, rows)
    updates, measured = _applied(method, layers, config)
    refuse_nonfinite("The repair", ((name, factor) for name, one in updates.items() for factor in (one.b, one.a)))
    report = {
        name: {
            "changed": name in updates,
            "norm_before": layer.update.norm(),
            "norm_after": updates.get(name, layer.update).norm(),
            **measured.get(name, {}),
        }
        for name, layer in layers.items()
    }
    whole = {name: (layers[name].alignment + update).compact(_size(layers[name])) for name, update in updates.items()}
    about = {
        "base": model,
        "aligned": str(aligned),
        "tuned": str(tuned),
        "method": method.config.__name__.removesuffix("Config"),
        "settings": dataclasses.asdict(config),
        **({"rows": {name: len(streams[name]) for name in method.streams}} if method.streams else {}),
        "layers": report,
    }
    with replacing(folder / REPORT) as file:
        file.write(json.dumps(about, indent=1, allow_nan=False).encode())
    write_serving(folder, serving)
    _write(after, whole, folder / "adapter", load_tokenizer(model))


def _applied(method: Repair, layers: Mapping[str, Layer], config: Any) -> Repaired:
    """Return what a method makes of layers, which may be anybody's code.

    Raises:
        TiterError: When it fails, or returns anything but updates and measurements by layer; names it.
    """
    name = f"{method.apply.__module__}:{method.apply.__qualname__}"
    try:
        returned = method.apply(dict(layers), config)
    except Exception as error:
        raise plugins.failed(name, error, "fails") from error
    hint = "It returns two mappings by layer: new updates (`LowRank`), and what it measured (a mapping each)."
    pair_of_mappings = isinstance(returned, tuple) and len(returned) == 2
    if not pair_of_mappings or not all(isinstance(part, Mapping) for part in returned):
        raise TiterError(f"`{name}` returns {plugins.what(returned)}, not a repair.", hint)
    for part, kind in zip(returned, (LowRank, Mapping), strict=True):
        check_known(part, layers, f"layer in what `{name}` returns")
        for layer, value in part.items():
            if not isinstance(value, kind):
                raise TiterError(f"`{name}` returns {plugins.what(value)} for `{layer}`.", hint)
    return returned


def read_adapter(folder: Path, base: str) -> Adapter:
    """Read a plain LoRA adapter on a base model.

    Raises:
        TiterError: For a folder without one, one that is of another kind or base, damaged, or holds what is no number.
    """
    from peft import LoraConfig, load_peft_weights

    place = same_base(folder, base)
    where = f"The adapter `{place}`"
    kind = read_json(place / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise TiterError(f"{where} is of the kind `{kind}`, not LORA.", "Only LoRA adapters can be repaired.")
    check_folder(place)
    adapter_weights(place)
    try:
        config = LoraConfig.from_pretrained(str(place))
        weights = load_peft_weights(str(place), device="cpu")
    except Exception as error:  # whatever the library raises of files that it did not expect
        if isinstance(error, TiterError | MemoryError):
            raise
        raise TiterError(f"{where} cannot be read: {first_line(error)}") from error
    _refuse_variants(where, config)
    refuse_nonfinite(where, weights.items())
    return of_weights(where, place, config, weights)


def of_weights(where: str, place: Path, config: Any, weights: Mapping[str, Tensor]) -> Adapter:
    """Return the plain LoRA adapter that weights are, by their names in a file.

    Args:
        where: What they are called, for errors.
        place: The folder that it is in, or is to be.
        config: Its `peft.LoraConfig`.
        weights: The weights.

    Raises:
        TiterError: For weights of anything else, or not of the ranks that the config says.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    for key, weight in weights.items():
        match = _KEY.fullmatch(key)
        if match is None or weight.ndim != 2:
            raise TiterError(f"{where} trains `{key}`, which is no LoRA of a linear layer, so it cannot be repaired.")
        factors.setdefault(match["layer"], {})[match["factor"]] = weight
    scales = {}
    for layer, pair in factors.items():
        rank = config.rank_pattern.get(pattern_key(config.rank_pattern, layer), config.r)
        alpha = config.alpha_pattern.get(pattern_key(config.alpha_pattern, layer), config.lora_alpha)
        if pair.keys() != {"A", "B"} or pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            raise TiterError(f"{where} is damaged: `{layer}` is no pair of matrices of rank {rank}.", "Save it again.")
        scales[layer] = alpha / (rank**0.5 if config.use_rslora else rank)
    return Adapter(place, config, factors, scales)


def same_base(folder: Path, base: str) -> Path:
    """Return where the adapter lies that a folder holds.

    Raises:
        TiterError: When there is none, or it is on another base model.
    """
    found, place = split_adapter(str(folder))
    if place is None:
        raise TiterError(
            f"There is no PEFT adapter in `{folder}`.",
            "A repair takes two adapters on one base model. A whole model that was aligned without an adapter has none.",
        )
    if not _same_model(found, base):
        raise TiterError(
            f"The adapter `{place}` is on the base model `{found}`, not on `{base}`.",
            "Repair adapters of one base model.",
        )
    return place


def pair(aligned: Adapter, tuned: Adapter) -> dict[str, Layer]:
    """Return the layers that two adapters change, in the order of the tuned one.

    Raises:
        TiterError: When they change other layers, or the same in the same way.
    """
    differing = sorted(aligned.factors.keys() ^ tuned.factors.keys())
    if differing:
        raise TiterError(
            f"The adapters `{aligned.folder}` and `{tuned.folder}` change different layers: {len(differing)} are in one of "
            f"them only (`{differing[0]}`).",
            "The tuned adapter must have gone on from the aligned one.",
        )
    layers = {}
    for name in tuned.factors:
        before, after = aligned.matrix(name), tuned.matrix(name)
        if (before.b.shape[0], before.a.shape[1]) != (after.b.shape[0], after.a.shape[1]):
            raise TiterError(f"The adapters `{aligned.folder}` and `{tuned.folder}` have other shapes at `{name}`.")
        update = (after - before).compact(max(before.norm(), after.norm()))
        layers[name] = Layer(before, update, aligned.own(name), tuned.own(name))
    if not any(layer.update.rank for layer in layers.values()):
        raise TiterError(
            f"There is nothing to repair: the adapter `{tuned.folder}` is the same as `{aligned.folder}`.",
            "Name the adapter after fine-tuning as the tuned one, and that before it as the aligned one.",
        )
    return layers


def _size(layer: Layer) -> float:
    return layer.alignment.norm() + layer.update.norm()


def _same_model(one: str, other: str) -> bool:
    """Whether two names are of one model; an adapter names the embedded one by the folder that it was loaded from."""
    (one, bits), (other, theirs) = split_bits(one), split_bits(other)
    one, other = (str(embedded_model()) if name == EMBEDDED else name for name in (one, other))
    same = one == other or os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))
    return same and bits == theirs


def _refuse_variants(where: str, config: Any) -> None:
    """Raise for what makes a LoRA more than a product added to the base's weight."""
    for item in dataclasses.fields(config):
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        value = getattr(config, item.name)
        plain = value in PLAIN_STARTS if item.name == "init_lora_weights" else item.name in _HARMLESS
        if not plain and value != default:
            raise TiterError(
                f"{where} has `{item.name}={value!s:.80}`, so it is more than a product of two matrices added to its base.",
                "Only plain LoRA adapters can be repaired.",
            )


def _write(tuned: Adapter, whole: Mapping[str, LowRank], folder: Path, tokenizer: Any) -> None:
    """Write an adapter like the tuned one with other matrices in some layers; the folder appears only when it is complete."""
    write_factors(
        tuned,
        {
            name: _halves(whole[name], tuned.scales[name]) if name in whole else pair
            for name, pair in tuned.factors.items()
        },
        folder,
        tokenizer,
    )


def write_factors(
    like: Adapter, factors: Mapping[str, Mapping[str, Tensor]], folder: Path, tokenizer: Any = None
) -> None:
    """Write an adapter like another one, with the same scales and other B and A; the folder appears only when it is complete.

    Args:
        like: The other one; its `factors` have the types that are written.
        factors: B and A of each of its layers, of any rank.
        folder: Where it goes.
        tokenizer: What goes with it.
    """
    from peft import load_peft_weights
    from safetensors.torch import save_file

    ranks = {name: pair["A"].shape[0] for name, pair in like.factors.items()}
    needed = {name: max(rank, factors[name]["A"].shape[0]) for name, rank in ranks.items()}
    config = _grown(like, ranks, needed)
    if not (config.rank_pattern or config.alpha_pattern):
        needed = dict.fromkeys(needed, config.r)
    tensors = {}
    for name, pair in like.factors.items():
        for factor, weight in factors[name].items():
            shape = (needed[name], weight.shape[1]) if factor == "A" else (weight.shape[0], needed[name])
            padded = torch.zeros(shape, dtype=pair[factor].dtype)
            padded[: weight.shape[0], : weight.shape[1]] = weight
            tensors[f"base_model.model.{name}.lora_{factor}.weight"] = padded
    refuse_nonfinite(f"The adapter for `{folder}`", tensors.items())  # what float64 holds may be too large for the file
    scratch = folder.with_name(f".{folder.name}.part")
    with writing(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        config.save_pretrained(str(scratch))
        order_adapter_config(scratch)
        copy_bits(like.folder, scratch)
        save_file(tensors, scratch / "adapter_model.safetensors", {"format": "pt"})
        written = load_peft_weights(str(scratch), device="cpu")
        refuse_strays(f"The adapter in `{scratch}`", tensors.keys() - written.keys(), written.keys() - tensors.keys())
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        put_whole(scratch, folder)


def _grown(tuned: Adapter, ranks: Mapping[str, int], needed: Mapping[str, int]) -> Any:
    """Return the config of an adapter with larger ranks and the same scales.

    Without patterns all ranks grow alike, since vLLM reads one scale for all.
    """
    config = tuned.config
    if needed == ranks:
        return config
    root = 0.5 if config.use_rslora else 1.0
    if not (config.rank_pattern or config.alpha_pattern):
        rank = max(needed.values())
        return dataclasses.replace(config, r=rank, lora_alpha=config.lora_alpha * (rank / config.r) ** root)
    alphas = {name: tuned.scales[name] * rank**root for name, rank in needed.items()}
    return dataclasses.replace(config, rank_pattern=dict(needed), alpha_pattern=alphas)


def _halves(matrix: LowRank, scale: float) -> dict[str, Tensor]:
    """Return B and A of a compact matrix divided by a scale, its singular values shared equally between them."""
    roots = (matrix.a.norm(dim=1) / scale).sqrt()
    return {"A": matrix.a / (roots * scale)[:, None], "B": matrix.b * roots}
