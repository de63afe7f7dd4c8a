"""What figures depend on: hashes of data, weights, judges and code, versions of libraries, the machine."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from titer.data.records import Record
from titer.jobs.speed import machine
from titer.judges.base import Judge
from titer.plugins import source_digest
from titer.progress import Task
from titer.version import __version__


def digest(value: Any) -> str:
    """Return a short hash of plain data or records."""
    if isinstance(value, list) and value and isinstance(value[0], Record):
        value = [record.to_row() for record in value]
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "datasets", "numpy")}


def judge_key(judge: Judge) -> list[str]:
    """Return what a judge's verdicts depend on: its name, which holds its settings, and its source."""
    return [judge.name, source_digest(judge)]


@functools.cache
def model_digest(name: str) -> str:
    """Return a hash of a model's files, or the hub id with the commit that is cached here."""
    from titer.models import EMBEDDED, WHEEL_SHA256, loading, locate, split_bits
    from titer.models.quantised import bitsandbytes_version

    plain, bits = split_bits(name)
    if bits is not None:
        return f"{model_digest(plain)}:{bits}bit by bitsandbytes {bitsandbytes_version()}"
    if name == EMBEDDED:
        return WHEEL_SHA256[:16]
    location = Path(locate(name))
    if not location.is_dir():
        from huggingface_hub import hf_hub_download

        # Files of a hub model lie in a folder named by their commit, which can be read without a network too.
        with loading(name):
            return f"{name}@{Path(hf_hub_download(name, 'config.json')).parent.name}"
    return folder_digest(location)


def weights_digest(base: str, adapter: Path | None = None) -> str:
    """Return a hash of the files that a model is loaded from, an adapter's with its base (`titer.models.split_adapter`)."""
    return digest([model_digest(base), None if adapter is None else folder_digest(adapter)])


def folder_digest(folder: Path) -> str:
    """Return a hash of the weights, settings and tokenizer in a folder."""
    from titer.models import check_folder

    check_folder(folder)
    whole = hashlib.sha256()
    with Task(f"reading {folder.name}"):
        for path in sorted(folder.iterdir()):
            # Pickled weights, but not the `training_args.bin` that lies beside them.
            pickled = path.suffix == ".bin" and "model" in path.name
            if pickled or path.suffix in (".json", ".safetensors", ".jinja", ".model"):
                whole.update(path.name.encode() + file_digest(path).digest())
    return whole.hexdigest()[:16]


def file_digest(path: Path) -> Any:
    """Return the SHA-256 of a file, as an object of `hashlib`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def environment() -> dict[str, Any]:
    """Return what a figure was measured with: versions, commit, machine."""
    return {
        "titer": __version__,
        "commit": commit(),
        "versions": library_versions(),
        "python": platform.python_version(),
        "machine": machine(),
    }


def training_environment() -> dict[str, Any]:
    """Return `environment()`, and what trainings compute in on this machine where nothing else is said."""
    from titer.train.config import bf16_is_fast

    return {**environment(), "trains_in": "bfloat16" if bf16_is_fast() else "float32"}


def commit() -> str | None:
    """Return the commit of titer's source, with `+` when it was changed; `None` outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return (head.stdout.strip() + ("+" if changed.stdout.strip() else "")) if head.returncode == 0 else None
