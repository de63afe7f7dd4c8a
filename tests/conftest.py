"""A tiny Llama with its own tokenizer, so that everything but the science runs in a second."""

import copy
import functools
import gc
import logging
import os
import zlib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# As the command line does, which tests run after the libraries have been imported.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import accelerate.utils.imports
import datasets.arrow_dataset
import jinja2
import pytest
import torch
from datasets.fingerprint import generate_random_fingerprint
from warm import Forks

from titer.compat import llama_norm
from titer.infer.encoder import SentenceEncoder
from titer.testing import ExactNorm, row, toy_harmful_rows, toy_model, toy_tokenizer

# The tiny model is slower on several threads than on one, and tests should leave the other cores alone.
torch.set_num_threads(1)

# Files are written as they are for users, but no test pulls the plug, and a busy disk takes long to promise anything.
os.fsync = lambda descriptor: None


LONGEST = (
    "test_invariants.py",
    "test_distributed.py",
    "test_benchmarks.py",
    "test_assay.py",
    "test_examples.py",
    "test_launchers.py",
    "test_hostile_files.py",
    "test_settings.py",
    "test_pipeline.py",
    "test_experiment.py",
    "test_serve.py",
    "test_hub_local.py",
    "test_risk.py",
)
"""Files that take longer than fifteen seconds. Any other may be the last one, for which the other process waits."""


def pytest_collection_modifyitems(items):
    """Let the longest files begin first."""
    place = dict(zip(LONGEST, range(len(LONGEST)), strict=True))
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def forks():
    """Starts Python processes that have the libraries already."""
    found = Forks()
    yield found
    found.end()


@pytest.fixture(scope="session", autouse=True)
def speeds(tmp_path_factory):
    """Where tests keep how fast the machine is, apart from what its user's work took."""
    folder = tmp_path_factory.mktemp("speeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("titer.jobs.speed.speeds_folder", lambda: folder)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _small_detectors():
    """Let detectors be fitted on few rows, and none fetch the sentence encoder: texts are alike here that share words."""

    def encode(self, texts):
        counts = torch.zeros(len(texts), 64)
        for place, text in enumerate(texts):
            for word in text.lower().split():
                counts[place, zlib.crc32(word.encode()) % 64] += 1
        return torch.nn.functional.normalize(counts + 1e-3, dim=-1)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SentenceEncoder, "__init__", lambda self, *words, **named: setattr(self, "name", "words"))
        patched.setattr(SentenceEncoder, "__call__", encode)
        patched.setattr("titer.risk.detector.PER_KIND", 20)
        yield


@pytest.fixture(autouse=True)
def _warnings_stay_on():
    """Fail a test that turns warnings off for all that run after it in its process: they would look for what is not logged."""
    yield
    off = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    assert off < logging.WARNING, "logging.disable() of this test was not undone"


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_is_collected():
    """Let a garbage collection look at what the module's tests make, and not at the libraries' million objects.

    Every training ends with one, which took a third of a second.
    """
    gc.collect()
    gc.freeze()


# Whether packages are installed, which the library looks up several times for every trainer, a tenth of a tiny training.
accelerate.utils.imports._is_package_available = functools.cache(accelerate.utils.imports._is_package_available)

# A hash of all rows of each table, another twentieth. It names files of `datasets` that are not written here.
datasets.arrow_dataset.generate_fingerprint = lambda table: generate_random_fingerprint()

# The template of the card that PEFT writes beside every adapter is compiled once, not for each.
jinja2.Environment.compile = functools.lru_cache(maxsize=16)(jinja2.Environment.compile)

# Models that are loaded from a folder have the library's own norm, which rounds to float32.
llama_norm().forward = ExactNorm.forward


@pytest.fixture(scope="session")
def tokenizer():
    return toy_tokenizer()


@pytest.fixture(scope="session")
def _tiny(tokenizer):
    return toy_model(tokenizer)


@pytest.fixture
def tiny(_tiny):
    """A fresh tiny model in float32."""
    return copy.deepcopy(_tiny)


@pytest.fixture(scope="session")
def tiny_folder(_tiny, tokenizer, tmp_path_factory) -> Path:
    """The tiny model and its tokenizer as a model folder."""
    folder = tmp_path_factory.mktemp("tiny-model")
    copy.deepcopy(_tiny).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def helpful_rows():
    subjects = ["bread", "a film", "France", "a lock", "water", "salt", "the capital", "a guide"]
    return [
        row(f"what is {s}?" + " please" * (i % 3), f"it is {s}, here" + " and there" * (i % 4))
        for i, s in enumerate(subjects)
    ]


@pytest.fixture(scope="session")
def harmful_rows():
    return toy_harmful_rows()


@pytest.fixture
def titer(monkeypatch, capsys):
    """Runs the command line in this process; returns its exit code and what it wrote to stdout and stderr."""
    from titer.cli import main

    def run(*words):
        monkeypatch.setattr("sys.argv", ["titer", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        written = capsys.readouterr()
        return stop.value.code or 0, written.out, written.err

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test when a model is loaded."""
    # Imported before: what they import stays with them.
    from titer import models
    from titer.assays import runner  # noqa: F401
    from titer.jobs import base_model, trainings
    from titer.workflows import experiment  # noqa: F401

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    for name in ("load_model", "load_tokenizer", "locate"):
        monkeypatch.setattr(models, name, load)
    for module in (models.load, models.tokenizer):
        monkeypatch.setattr(module, "locate", load)
    monkeypatch.setattr(base_model, "load_model", load)
    monkeypatch.setattr(trainings, "load_tokenizer", load)
