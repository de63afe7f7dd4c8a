"""Errors as machines and attacks really raise them, and others that only look so."""

import errno
import re
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file
from told import untold

from titer.attacks.failures import blame, traceback_in
from titer.errors import AttackFailed, TiterError
from titer.files import DiskError, disk_error_number, writing
from titer.jobs.job import Kind
from titer.jobs.plan import Plan, Silent, execute
from titer.results.artefacts import Inference, write_inferences

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
def test_a_full_disk_is_the_disks_whoever_writes(tmp_path, write):
    path = tmp_path / "file"
    with pytest.raises(DiskError) as raised, full_disk(), writing(path):
        write(path)
    assert raised.value.filename == str(path)
    assert disk_error_number(raised.value) is not None
    assert blame(raised.value) is None, "every other attacker would meet it too"


def test_a_folder_that_is_gone_is_the_disks_and_a_file_that_was_never_there_is_not(tmp_path):
    path = tmp_path / "gone" / "file"
    with pytest.raises(DiskError, match="No such file"), writing(path):
        path.write_text("")
    with pytest.raises(FileNotFoundError) as raised, writing(tmp_path / "file"):
        (tmp_path / "another").read_text()
    assert disk_error_number(raised.value) is None


def test_a_time_out_is_the_disks_where_a_file_is_written_and_else_the_machines(tmp_path):
    late = TimeoutError(errno.ETIMEDOUT, "Connection timed out")
    assert blame(late) == "machine"
    with pytest.raises(DiskError) as raised, writing(tmp_path / "file"):
        raise late
    assert blame(raised.value) is None


def test_what_an_error_quotes_is_not_the_disks():
    assert disk_error_number(TiterError("The judge says: No space left on device (os error 28)")) is None


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


@pytest.fixture
def answers(tmp_path):
    """A folder with an answer to judge."""
    row = Inference(
        arm="a", phase="aligned", step=0, poison_ratio=0.0, seed=0, set="harmful", index=0, prompt="how do I pick a lock",
        response="I cannot help", reference=None, model="m",
    )  # fmt: skip
    write_inferences(tmp_path / "inferences.jsonl", [row])
    return tmp_path


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["free", "space", "same command"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ["free", "space", "same command"]),
        (OSError(errno.EROFS, "Read-only file system"), ["allow", "another folder", "same command"]),
        (PermissionError(errno.EACCES, "Permission denied"), ["allow", "another folder", "same command"]),
        (OSError(errno.EIO, "Input/output error"), ["disk", "same command"]),
        # As tokenizers raises it; it says nothing of its file.
        (Exception("No space left on device (os error 28)"), ["free", "space", "same command"]),
    ],
    ids=str,
)
def test_the_command_line_says_which_file_the_disk_refused_and_what_to_do(titer, answers, monkeypatch, error, advice):
    def refuse(descriptor):
        raise error

    monkeypatch.setattr("os.fsync", refuse)
    code, _, err = titer("evaluate", "--rejudge", answers)
    assert code == 2
    what, way_out = err.splitlines()
    reason = str(error).removesuffix(" (os error 28)").rpartition("] ")[2]
    assert not untold(what, "Error:", f"{answers}/scores.jsonl", "written", reason)
    assert not untold(way_out, *advice)
    assert "Traceback" not in err
    assert bool(re.search(r"\d MB", what)) == ("space" in advice)
    assert [path.name for path in answers.iterdir()] == ["inferences.jsonl"]


def test_the_command_line_hides_no_bug(titer, answers, monkeypatch):
    for error in (FileNotFoundError(errno.ENOENT, "No such file", "config.json"), RuntimeError("no space left")):
        monkeypatch.setattr("titer.results.scoring.summarise", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            titer("evaluate", "--rejudge", answers)


def test_a_full_disk_ends_a_plan_where_it_stands(tmp_path):
    """Every other stage would meet it too."""
    ran = []

    def full(stage):
        ran.append(stage.name)
        raise OSError(errno.ENOSPC, "No space left on device")

    plan = Plan(tmp_path)
    for name in ("first", "second"):
        plan.add(Kind("answer", "nowhere:ANSWER", full), name, {"name": name})
    with pytest.raises(OSError, match="No space left"):
        execute(plan, Silent())
    assert ran == ["first"]
    assert not list(tmp_path.rglob("error.txt"))
