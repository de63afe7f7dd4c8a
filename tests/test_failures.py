"""Errors as machines and attacks really raise them, and others that only look so."""

import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from titer.attacks.failures import blame, traceback_in
from titer.errors import AttackFailed, TiterError

BIG = 200_000


@contextmanager
def full_disk():
    """No file may grow beyond some kilobytes: what a full disk does to whoever writes.

    Only for so long: pytest's own report may go to a file, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"x" * BIG),
        lambda path: save_file({"w": torch.zeros(BIG)}, path),
        lambda path: torch.save({"w": torch.zeros(BIG)}, path),
    ],
    ids=["python", "safetensors", "torch"],
)
def test_a_full_disk_is_the_machine(tmp_path, write):
    with pytest.raises(Exception) as raised, full_disk():  # noqa: PT011 - which one is the question
        write(tmp_path / "file")
    assert blame(raised.value) == "machine"


def test_memory_is_the_machine():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 55)
    assert blame(raised.value) == "machine"
    with pytest.raises(MemoryError) as python:
        bytearray(1 << 62)
    assert blame(python.value) == "machine"
    assert blame(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")) == "machine"


def test_what_an_attack_says_of_itself_and_numbers_that_ran_away_are_the_attacks():
    assert blame(AttackFailed("no layers of that name")) == "attack"
    with pytest.raises(RuntimeError) as raised:
        torch.linalg.inv(torch.zeros(2, 2))
    assert blame(raised.value) == "attack"


@pytest.mark.parametrize(
    "bug",
    [
        lambda: torch.zeros(2) + torch.zeros(3),
        lambda: open("/nowhere/at/all"),  # noqa: SIM115 - it does not open
        lambda: [][1],
        lambda: (_ for _ in ()).throw(TiterError("a mistake of the user's")),
        lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
        lambda: (_ for _ in ()).throw(RuntimeError("no space left in the vocabulary")),
    ],
)
def test_all_else_is_nobodys_excuse(bug):
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        bug()
    assert blame(raised.value) is None


def test_the_traceback_is_kept_and_named(tmp_path):
    with pytest.raises(KeyError) as raised, traceback_in(tmp_path / "attacker"):
        {}["key"]
    path = tmp_path / "attacker" / "error.txt"
    assert "test_the_traceback_is_kept_and_named" in path.read_text()
    assert raised.value.__notes__ == [f"Traceback: {path}."]
