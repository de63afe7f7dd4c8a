"""The config and the weights of a causal language model, and a PEFT adapter on it, all of them checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.compat import keep_gradients, renamed_weights
from titer.errors import TiterError, first_line
from titer.files import check_file
from titer.models.folders import FOREIGN_ADAPTER, WHOLE_MODEL, adapter_weights, check_folder
from titer.models.names import is_of_another_kind, loading, locate, split_adapter
from titer.models.quantised import LOADED, how_to_load, split_bits
from titer.models.weights import refuse_lookahead, refuse_nonfinite, refuse_strays
from titer.progress import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to start a LoRA that leave the base's weights alone."""


def load_config(name: str, trust_remote_code: bool = False) -> Any:
    """Load the config of a model.

    Raises:
        TiterError: For one that is not there, is damaged, or is not of a causal language model.
    """
    from transformers import AutoConfig

    location = locate(name)
    if os.path.isdir(location):
        check_file(Path(location) / "config.json", WHOLE_MODEL)
    with loading(name, "config"):
        config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
    if config.is_encoder_decoder:
        raise TiterError(
            f"`{name}` is an encoder with a decoder (`{config.model_type}`), and no causal language model.",
            "Use a model that predicts a text from left to right.",
        )
    return config


def load_model(
    name: str, adapter: str | Path | None = None, trainable: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel | Any:
    """Load a causal language model, with a PEFT adapter on top when one is named.

    Weights are float32 on a CPU and bfloat16 on an accelerator; adapters are always float32, because a perturbation
    or a small learning rate would vanish in a lower precision. A name with `:4bit` behind it is a base whose linear layers
    are quantised (`titer.models.quantised`).

    Args:
        name: A local folder, a hub id or `smollm2-135m-instruct`. A folder that holds an adapter brings its base model.
        adapter: Folder of a PEFT adapter.
        trainable: Whether the adapter's weights should require gradients.
        trust_remote_code: Run code that the model's repository ships.

    Raises:
        TiterError: For a model that is not there, whose weights are missing, unexpected or of another shape, or not finite.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if adapter is None:
        name, adapter = split_adapter(name)
    accelerator = torch.accelerator.is_available()
    config = load_config(name, trust_remote_code)
    bits = split_bits(name)[1]
    quantised = {} if bits is None else how_to_load(name, config)
    with loading(name), Task(f"loading {name}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            locate(name),
            config=config,
            dtype=torch.bfloat16 if accelerator else torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `whole` names them; the library would only count them
            **quantised,
        )
    model = whole(name, loaded)
    refuse_nonfinite(f"`{name}`", model.named_parameters())
    if bits is not None:
        setattr(model, LOADED, bits)  # what is saved of an adapter on it says so
        keep_gradients(model)
    elif accelerator:
        model.to(torch.accelerator.current_accelerator())
    if adapter is not None:
        model = add_adapter(model, adapter, trainable)
    refuse_lookahead(f"`{name}`", model.eval())
    return model


def whole(name: str, loaded: tuple[Any, dict[str, Any]]) -> Any:
    """Return the model of `from_pretrained(…, output_loading_info=True, ignore_mismatched_sizes=True)`, if it got all of its weights.

    The library fills what it does not find with random numbers. What may differ, it has taken out: tied heads, buffers.

    Raises:
        TiterError: When weights are missing, have no place in it or have another shape; names them.
    """
    model, found = loaded
    shapes = {
        key: f"shape {tuple(given)} instead of {tuple(wanted)}" for key, given, wanted in found["mismatched_keys"]
    }
    refuse_strays(f"`{name}`", found["missing_keys"], found["unexpected_keys"], shapes)
    return model


def add_adapter(model: Any, folder: str | Path, trainable: bool = False) -> Any:
    """Put a PEFT adapter on a model; every weight of its file must have found its place, and every place its weight.

    Args:
        model: The base model; its modules are changed.
        folder: Of the adapter.
        trainable: Whether the adapter's weights should require gradients.

    Raises:
        TiterError: For an adapter that is not there, does not fit the model, or holds what is no number.
    """
    from peft import PeftModel, load_peft_weights

    where = f"The adapter `{folder}`"
    if not (Path(folder) / "adapter_config.json").is_file():
        raise TiterError(f"No PEFT adapter at `{folder}`: it has no adapter_config.json.")
    check_folder(Path(folder))
    adapter_weights(Path(folder))
    renaming = renamed_weights(model)  # as `from_pretrained` does
    try:
        weights = load_peft_weights(str(folder), device="cpu")
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        # Once more, because `from_pretrained` does not say for which weights it found no place.
        found = adapted.load_adapter(str(folder), "default", is_trainable=trainable, key_mapping=renaming)
    except KeyError as error:  # of a module that is trained as a whole
        raise TiterError(f"{where} does not fit its base model: {error} is missing.", FOREIGN_ADAPTER) from error
    except Exception as error:  # whatever a library raises of files that it did not expect
        if is_of_another_kind(error):
            raise
        if "size mismatch" in str(error):
            reason = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
            raise TiterError(f"{where} does not fit its base model: {reason}", FOREIGN_ADAPTER) from error
        raise TiterError(f"{where} cannot be loaded: {first_line(error)}", FOREIGN_ADAPTER) from error
    refuse_nonfinite(where, weights.items())
    if not adapted.peft_config["default"].is_prompt_learning:  # which loads its prompts strictly, beside the modules
        places = adapted.state_dict()
        filled = {weight.data_ptr() for name, weight in places.items() if name not in found.missing_keys}
        # Weights that layers share are saved under one of their names.
        missing = [name for name in found.missing_keys if places[name].data_ptr() not in filled]
        refuse_strays(where, missing, found.unexpected_keys, hint=FOREIGN_ADAPTER)
    return adapted
