"""Two adapters of the toy with random weights in float64, and what PEFT makes of an adapter."""

import copy
from types import SimpleNamespace

import torch

from titer.methods.repair.adapters import repair
from titer.testing import toy_model, toy_tokenizer, write_adapter
from titer.testing.repairs import LAYERS

MODEL = toy_model(toy_tokenizer())


def random(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(rank, seed, start=None, change=0.3):
    """Factors of each of the toy's layers, by their names in a file; in float64, far from `start` by `change`."""
    made = {}
    for number, layer in enumerate(LAYERS):
        out, into = MODEL.get_submodule(layer).weight.shape
        for factor, shape in (("A", (rank, into)), ("B", (out, rank))):
            name = f"base_model.model.{layer}.lora_{factor}.weight"
            noise = random(*shape, seed=1000 * seed + 2 * number + (factor == "A"))
            made[name] = noise if start is None else start[name] + change * noise
    return made


def two_adapters(folder):
    """A base with an aligned and a tuned adapter of rank 4 and scale 2, the second one gone on from the first."""
    model, tokenizer = toy_model(toy_tokenizer()), toy_tokenizer()
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    before = weights(4, seed=1)
    after = weights(4, seed=2, start=before)
    write_adapter(folder / "aligned", folder / "base", before)
    write_adapter(folder / "tuned", folder / "base", after)
    return SimpleNamespace(folder=folder, before=before, after=after)


def run(place, config, method, aligned="aligned", tuned="tuned", output="out", **streams):
    folder = place.folder
    repair(str(folder / "base"), folder / aligned, folder / tuned, method, config, folder / output, **streams)
    return folder / output


def factors(weights, layer):
    """B and A of a layer, as they stand in the file."""
    return (weights[f"base_model.model.{layer}.lora_{factor}.weight"] for factor in "BA")


def dense(weights, layer, scale=2.0):
    b, a = factors(weights, layer)
    return scale * b @ a


def difference_to_base(adapter, folder):
    """What PEFT adds to the weight of each layer, in float64."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(copy.deepcopy(MODEL).double(), str(folder / adapter)).double()
    return {layer: model.base_model.model.get_submodule(layer).get_delta_weight("default") for layer in LAYERS}


def cosine(v, update, projection="approximate"):
    """cos(ΔW, C ΔW) with C as a whole matrix."""
    c = v @ v.T / torch.linalg.norm(v) if projection == "approximate" else v @ torch.linalg.pinv(v.T @ v) @ v.T
    projected = c @ update
    return float((projected * update).sum() / (torch.linalg.norm(projected) * torch.linalg.norm(update)))
