"""Fitted detectors that are kept, so that the next upload for the same model does not pay for the defender's rows again.

They are kept in titer's cache, and on a shelf that several machines share where somebody gives one (`shelved`).
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch

from titer.data.records import Record
from titer.errors import TiterError
from titer.files import replacing
from titer.infer.encoder import SentenceEncoder
from titer.models import Template, cache_folder
from titer.packing.layouts import check_length
from titer.risk.detector import Array, Detector, Known, Linear

logger = logging.getLogger(__name__)

_NOT_THE_MODEL = ("name_or_path", "transformers_version", "attn_implementation", "use_cache", "dtype")

VERSION = 3
"""Of what detectors say; raised when the same rows and model give another one."""
WORTH_KEEPING = 10.0
"""Seconds that a fit must have taken for its result to be kept."""


DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What reading a detector raises that is not what was kept."""


class Shelf(Protocol):
    """Where machines find what others have fitted."""

    def read(self, name: str) -> bytes:
        """Return what is kept under a name; raises `FileNotFoundError`."""

    def write(self, name: str, data: bytes) -> None:
        """Keep something, whole or not at all."""


_shelf: ContextVar[Shelf | None] = ContextVar("shelf", default=None)


@contextmanager
def shelved(shelf: Shelf) -> Iterator[None]:
    """Let detectors that are fitted in the block be looked for on a shelf too, and kept there."""
    token = _shelf.set(shelf)
    try:
        yield
    finally:
        _shelf.reset(token)


def fitted(model: Any, template: Template, known: Known, encoder: SentenceEncoder | None) -> Detector:
    """Return the detector that `Detector.fit` returns; one that was fitted before is read from the cache, or a shelf.

    Rows that are longer than the model's context are left out: a form may be, for a small model. A kept detector is found by
    a hash of everything that it depends on: the defender's rows, the model's weights, the encoder. A cache that cannot be read
    or written costs time and nothing else; what goes wrong with a shelf is its owner's to say.
    """
    known = known.only(np.array([_fits(model, template, record) for record in known.records]))
    name, shelf = f"{_key(model, template, known, encoder)}.npz", _shelf.get()
    path = cache_folder() / "detectors" / name
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except DAMAGED as error:
        logger.warning("%s cannot be read (%s); the detector is fitted again.", path, error)
    data = None if shelf is None else _on(shelf, name)
    if data is not None:
        _keep(path, data)
        return _read(io.BytesIO(data))
    began = time.monotonic()
    detector = Detector.fit(model, template, known, encoder)
    if time.monotonic() - began < WORTH_KEEPING:
        return detector
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **_arrays(detector))
    _keep(path, out.getvalue())
    if shelf is not None:
        shelf.write(name, out.getvalue())
    return detector


def _on(shelf: Shelf, name: str) -> bytes | None:
    """Return a detector that is on a shelf and can be read."""
    try:
        data = shelf.read(name)
    except FileNotFoundError:
        return None
    try:
        _read(io.BytesIO(data))
    except DAMAGED as error:
        logger.warning("%s cannot be read (%s); the detector is fitted again.", name, error)
        return None
    return data


def _keep(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        logger.warning("The detector cannot be kept in %s: %s", path, error)


def _fits(model: Any, template: Template, record: Record) -> bool:
    try:
        check_length(model.config, sum(map(len, template.pair_ids(record))), "")
    except TiterError:
        return False
    return True


def _key(model: Any, template: Template, known: Known, encoder: SentenceEncoder | None) -> str:
    key = hashlib.blake2b(digest_size=16)
    config = model.config.to_dict()
    # How it is computed, and where it lies, changes no more than the last bits.
    config = {name: value for name, value in config.items() if name.strip("_") not in _NOT_THE_MODEL}
    rows = [(record.to_row(), template.pair_ids(record)) for record in known.records]
    for part in (VERSION, config, encoder and encoder.name, rows):
        key.update(repr(part).encode())
    for marks in (known.harmful, known.asks_harm, known.complies, known.refuses, known.groups):
        key.update(marks.tobytes())
    for name, weight in sorted(model.state_dict().items()):
        key.update(repr((name, weight.dtype, tuple(weight.shape))).encode())
        key.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return key.hexdigest()


def _arrays(detector: Detector) -> dict[str, Array]:
    arrays = {"harmless": detector.harmless}
    for (question, part), witness in detector.witnesses.items():
        arrays[f"witness {question} {part}"] = np.append(witness.weights, witness.offset)
    return arrays | {f"kind {name}": mean for name, mean in detector.kinds.items()}


def _read(path: Path | IO[bytes]) -> Detector:
    witnesses, kinds = {}, {}
    with np.load(path, allow_pickle=False) as arrays:
        harmless = arrays["harmless"]
        for name in arrays.files:
            what, _, rest = name.partition(" ")
            if what == "witness":
                question, part = rest.split(" ")
                witnesses[question, part] = Linear(arrays[name][:-1], float(arrays[name][-1]))
            elif what == "kind":
                kinds[rest] = arrays[name]
    return Detector(witnesses, kinds, harmless)
