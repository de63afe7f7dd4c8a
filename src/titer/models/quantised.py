"""Bases whose weights are held in 4 bits, by bitsandbytes: a name with `:4bit` behind it.

They are normal floats with scales that are quantised too (QLoRA, arXiv 2305.14314). An adapter that is trained on such a base says so in
a file beside its weights, so that it is loaded with the same one. The eight bits of LLM.int8() (arXiv 2208.07339) are not offered: which
inputs it sets apart as large goes by all tokens of a batch, so that what a model says of a token depends on later ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from titer.errors import TiterError
from titer.files import read_json

FILE = "quantised.json"
"""In the folder of an adapter: `{"bits": 4}` where its base was held so."""

LOADED = "titer_bits"
"""An attribute of models that were loaded so."""


def split_bits(name: str) -> tuple[str, int | None]:
    """Return a model's name without what it says of bits, and how many those are.

    Raises:
        TiterError: For a number of bits that there is not.
    """
    found = re.fullmatch(r"(.+):(\d+)bit", name, re.DOTALL)
    if found is None or os.path.lexists(os.path.expanduser(name)):
        return name, None
    if int(found[2]) != 4:
        raise TiterError(f"`{name}` asks for weights of {found[2]} bits.", "There is `:4bit`.")
    return found[1], 4


def recorded_bits(adapter: Path) -> int | None:
    """Return in how many bits the base of an adapter was held when it was trained; `None` where it was not quantised.

    Raises:
        TiterError: For a record that says something else.
    """
    path = adapter / FILE
    if not os.path.lexists(path):
        return None
    if read_json(path) != {"bits": 4}:
        raise TiterError(f'{path} is no record of how a base is held: `{{"bits": 4}}`.')
    return 4


def record_bits(model: Any, adapter: Path) -> None:
    """Write into an adapter's folder in how many bits the base of its model is held, if in few."""
    bits = getattr(model, LOADED, None)
    if bits is not None:
        (adapter / FILE).write_text(json.dumps({"bits": bits}) + "\n", encoding="utf-8")


def copy_bits(adapter: Path, to: Path) -> None:
    """Copy what an adapter's folder says of its base to that of another one on the same base."""
    if recorded_bits(adapter) is not None:
        shutil.copyfile(adapter / FILE, to / FILE)


def how_to_load(name: str, config: Any) -> dict[str, Any]:
    """Return what `from_pretrained` is to be told for a base in 4 bits.

    Args:
        name: The model's, for errors.
        config: The model's.

    Raises:
        TiterError: Where bitsandbytes is not installed, and for weights that were saved in few bits.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if getattr(config, "quantization_config", None) is not None:
        raise TiterError(
            f"The weights of `{name}` were saved in few bits.", "Leave `:4bit` out: they are loaded as they are."
        )
    bitsandbytes_version()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if device is None else torch.bfloat16,
    )
    return {"quantization_config": how, **({} if device is None else {"device_map": {"": device}})}


def bitsandbytes_version() -> str:
    """Return the version of what quantises.

    Raises:
        TiterError: Where it is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("bitsandbytes")
    except PackageNotFoundError:
        raise TiterError(
            "A base in 4 bits needs bitsandbytes, which is not installed.",
            "`pip install 'titer[quantised]'` installs it; or leave `:4bit` behind the model's name out.",
        ) from None


def refuse_quantised(name: str, what: str) -> None:
    """Raise for a base in few bits, where its weights themselves are to be changed.

    Args:
        name: Of the model or of an adapter's base.
        what: What cannot be done.
    """
    plain, bits = split_bits(name)
    if bits is not None:
        raise TiterError(
            f"`{name}` holds its weights in {bits} bits, and {what}.",
            f"Name the model `{plain}`, and an adapter that was trained on it.",
        )
