"""The folder of a model or an adapter: whether its files are there, and whole enough for libraries to read.

Weights are not read here; `titer.models.weights` looks at them.
"""

from __future__ import annotations

import json
from pathlib import Path

from titer.errors import TiterError
from titer.files import check_file, read_json, read_text

WHOLE_MODEL = (
    "Name the folder that the model was saved in as a whole, with the config.json that belongs to its weights."
)
"""The hint for models of which a part is missing, damaged, or another's."""


FOREIGN_ADAPTER = (
    "It was made for another model, or was damaged since: name the base model that it was trained on in its "
    "adapter_config.json, or save it again."
)
"""The hint for adapters that do not fit."""


CONFIGS = ("config.json", "adapter_config.json")
"""One of which is in every folder of a model or an adapter."""


def check_folder(folder: Path) -> None:
    """Raise for a file of a model or an adapter that libraries would wait for, pass over, or not name in their errors.

    Weights are not read, but it is known whether all are there: their headers say where they end.

    Raises:
        TiterError: Naming the file.
    """
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise TiterError(
            f"{folder} is not a folder, and a model is one.", "Name the folder that the model was saved in."
        )
    if (folder / "checkpoints").is_dir() and not any((folder / name).exists() for name in CONFIGS):
        raise TiterError(
            f"{folder} holds a training that has not come to its end, and no model yet.",
            "Give its command again: it goes on from its last checkpoint.",
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".jinja", ".model"):
            check_file(path, WHOLE_MODEL)
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError as error:
                raise TiterError(f"{path} is damaged: {error}.", WHOLE_MODEL) from None
        if path.name.endswith(".index.json"):
            shards = read_json(path, WHOLE_MODEL).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise TiterError(f"{path} does not say in `weight_map` which weights are in which file.", WHOLE_MODEL)
            for shard in sorted(set(shards.values())):
                if Path(shard).name != shard:
                    raise TiterError(f"{path} names `{shard}`, which is not in its folder.", WHOLE_MODEL)
                check_file(folder / shard, WHOLE_MODEL)
        elif path.suffix == ".jinja":
            read_text(path, WHOLE_MODEL)
        elif path.name in ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json"):
            read_json(path, WHOLE_MODEL)


def adapter_weights(folder: Path) -> Path:
    """Return the file of an adapter's weights: safetensors, or else what older versions of PEFT pickled.

    Raises:
        TiterError: When there is none.
    """
    files = [folder / "adapter_model.safetensors", folder / "adapter_model.bin"]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise TiterError(f"The adapter `{folder}` has no weights: {files[0]} does not exist.", FOREIGN_ADAPTER)
    return found


def order_adapter_config(folder: Path) -> None:
    """Write the modules of an adapter's config in order: PEFT writes sets as they lie, differently in each process.

    The hash of its files, which jobs and answers are known by, is then that of what it holds.
    """
    path = folder / "adapter_config.json"
    config = read_json(path)
    ordered = {
        key: sorted(value) if key.endswith("_modules") and isinstance(value, list) else value
        for key, value in config.items()
    }
    path.write_text(json.dumps(ordered, indent=2, sort_keys=True), encoding="utf-8")
