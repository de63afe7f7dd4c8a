"""A router and its files: which of two adapters answers a prompt, by the hidden state of the prompt's last token.

The score is that of SLDR (arXiv 2610.10345): how much more alike a prompt is to harmful prompts than to harmless ones. Beside the
adapter that refuses lies a folder `router` with the states of both kinds of prompts (`prototypes.safetensors`) and the adapter that
answers where the router is off (`adapter`). The names are fixed, so that no file names another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from titer.errors import TiterError, first_line
from titer.files import put_whole, read_json, writing
from titer.infer.serving import ROUTER, Router, read_serving, serving_beside
from titer.models import adapter_weights, check_folder, refuse_nonfinite

PROTOTYPES = "prototypes.safetensors"
TUNED = "adapter"
BATCH_SIZE = 32
AGAIN = "Make it again by the repair that left it, or ask without it (`--without-serving`)."
"""The hint for files of a router that are missing, damaged or another's."""


@dataclass(frozen=True)
class Routing:
    """A router with what it compares with.

    Attributes:
        router: Its settings.
        harmful: States of harmful prompts, `(n, width)`, each of length 1.
        benign: Those of as many harmless prompts.
        tuned: The folder of the adapter that answers where the router is off.
        digest: The first 16 hex digits of the SHA-256 of all that it depends on.
    """

    router: Router
    harmful: Tensor
    benign: Tensor
    tuned: Path
    digest: str

    def on(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[bool]:
        """Say of each prompt whether the refusal adapter is to answer it.

        Args:
            model: The base with the adapter that refuses.
            prompts: Token ids of conversations up to their last user's turn (`Template.asked_ids`).

        Raises:
            TiterError: Where the states are another model's.
        """
        states = last_states(model, prompts, self.router.layer)
        if len(states) and states.shape[1] != self.harmful.shape[1]:
            raise TiterError(
                f"The router compares states of {self.harmful.shape[1]} numbers, and the model's have {states.shape[1]}.",
                AGAIN,
            )
        return (harm_scores(states, self.harmful, self.benign, self.router.top) > self.router.threshold).tolist()


def harm_scores(states: Tensor, harmful: Tensor, benign: Tensor, top: int, own: Tensor | None = None) -> Tensor:
    """Return by how much each state is more alike to harmful prompts than to harmless ones, `(prompts,)`.

    It is the mean of the `top` largest of cos(r, harmful_i) − cos(r, benign_i): the i-th prompts of both kinds are a pair.

    Args:
        states: Of the prompts, `(prompts, width)`, each of length 1.
        harmful: Of harmful prompts, `(n, width)`, likewise.
        benign: Of harmless prompts, `(n, width)`.
        top: How many of the n count; all of them where there are fewer.
        own: For prompts that are prototypes themselves, the number of each one's own pair, which is left out.
    """
    differences = states @ harmful.T - states @ benign.T
    count = differences.shape[1]
    if own is not None:
        differences = differences.scatter(1, own[:, None], float("-inf"))
        count -= 1
    return differences.topk(min(top, count), dim=1).values.mean(1)


@torch.no_grad()
def last_states(model: Any, prompts: Sequence[Sequence[int]], layer: int) -> Tensor:
    """Return the hidden state of each prompt's last token behind a layer, of length 1, in float32 on the CPU: `(prompts, width)`.

    Behind the last layer it is what the output head is given, as transformers has it.

    Args:
        model: A causal language model, with an adapter or without.
        prompts: Token ids.
        layer: The layer, from 0.

    Raises:
        TiterError: For a model that has no such layer, and states that are no numbers.
    """
    depth = model.config.get_text_config().num_hidden_layers
    if layer >= depth:
        raise TiterError(f"The router reads layer {layer}, and the model's {depth} layers are counted from 0.", AGAIN)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    # Prompts of similar length together; padding behind a prompt is seen by none of its tokens.
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), BATCH_SIZE):
        places = order[start : start + BATCH_SIZE]
        width = max(len(prompts[place]) for place in places)
        rows = [[*prompts[place]] + [0] * (width - len(prompts[place])) for place in places]
        mask = [[1] * len(prompts[place]) + [0] * (width - len(prompts[place])) for place in places]
        output = model(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
        states = output.hidden_states[layer + 1]
        for row, place in enumerate(places):
            found[place] = states[row, len(prompts[place]) - 1].to("cpu", torch.float32)
    model.train(was_training)
    if not found:
        return torch.empty(0, 0)
    states = torch.stack(found)
    refuse_nonfinite("The states that a router reads", [(f"layer {layer}", states)])
    return normalize(states)


def write_routing(folder: Path, harmful: Tensor, benign: Tensor, put_adapter: Callable[[Path], None]) -> None:
    """Write `FOLDER/router`, whole or not at all.

    Args:
        folder: In which the folder of the adapter that refuses lies.
        harmful: As of `Routing`.
        benign: As of `Routing`.
        put_adapter: Writes the adapter that answers where the router is off into the folder that it is called with.
    """
    from safetensors.torch import save_file

    place = folder / ROUTER
    scratch = folder / f".{ROUTER}.part"
    with writing(place):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        put_adapter(scratch / TUNED)
        save_file({"harmful": harmful.contiguous(), "benign": benign.contiguous()}, scratch / PROTOTYPES)
        put_whole(scratch, place)


def read_routing(adapter: Path, router: Router) -> Routing:
    """Read and check the files of the router beside an adapter.

    Args:
        adapter: The folder of the adapter that refuses.
        router: What `serving.json` says of it.

    Raises:
        TiterError: For files that are missing, damaged, pickled, outside of the folder, or another model's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = serving_beside(adapter).parent
    place, tuned = folder / ROUTER / PROTOTYPES, folder / ROUTER / TUNED
    for path, what in (
        (place, "prototypes"),
        (tuned / "adapter_config.json", "the adapter that answers where it is off"),
    ):
        if not path.is_file():
            raise TiterError(f"{path} is not there, and the router of `{adapter}` needs it: {what}.", AGAIN)
    check_folder(tuned)
    weights = adapter_weights(tuned)
    if weights.suffix != ".safetensors":
        raise TiterError(f"{weights} is no safetensors file, and others are not read.", AGAIN)
    for path in (place, weights, tuned / "adapter_config.json"):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise TiterError(
                f"{path} lies elsewhere ({path.resolve()}), and the files of a router lie beside it.", AGAIN
            )
    bases = [read_json(one / "adapter_config.json").get("base_model_name_or_path") for one in (adapter, tuned)]
    if bases[0] != bases[1]:
        raise TiterError(
            f"The router of `{adapter}` switches to an adapter on `{bases[1]}`, not on `{bases[0]}`.", AGAIN
        )
    try:
        found = load_file(place)
    except SafetensorError as error:
        raise TiterError(f"{place} is damaged: {first_line(error)}.", AGAIN) from None
    if found.keys() != {"harmful", "benign"}:
        raise TiterError(f"{place} holds {', '.join(sorted(found)) or 'nothing'}, not `harmful` and `benign`.", AGAIN)
    harmful, benign = found["harmful"], found["benign"]
    fits = harmful.ndim == 2 and harmful.shape == benign.shape and harmful.numel() > 0
    if not fits or {harmful.dtype, benign.dtype} != {torch.float32}:
        raise TiterError(f"{place} holds no two tables of float32 of one shape.", AGAIN)
    refuse_nonfinite(f"{place}", found.items())
    lengths = torch.cat((harmful, benign)).norm(dim=1)
    if not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3):
        raise TiterError(f"{place} holds states that are not of length 1.", AGAIN)
    whole = hashlib.sha256(json.dumps(dataclasses.asdict(router), sort_keys=True).encode())
    for path in (place, weights, tuned / "adapter_config.json"):
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return Routing(router, harmful, benign, tuned, whole.hexdigest()[:16])


def routing_beside(adapter: Path) -> Routing:
    """Return the router beside an adapter.

    Raises:
        TiterError: Where there is none, or its files are not what they should be.
    """
    serving = read_serving(adapter)
    if serving is None or serving.router is None:
        raise TiterError(f"{serving_beside(adapter)} names no router.", AGAIN)
    return read_routing(adapter, serving.router)
