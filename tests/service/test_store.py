"""The artefact store: in a folder and in a bucket, a file or a folder is there whole or not at all."""

import json
import os

import pytest

from titer.errors import TiterError
from titer.service.store import MARK, Store


def test_a_file_is_read_as_it_was_written(store):
    with store.writing("files/org/file-1") as file:
        file.write(b"one ")
        file.write(b"two")
    assert (file.bytes, store.read("files/org/file-1")) == (7, b"one two")
    assert store.exists("files/org/file-1")
    assert not store.exists("files/org")
    store.write("files/org/file-1", b"three")
    assert store.read("files/org/file-1") == b"three"
    store.remove("files/org/file-1")
    store.remove("files/org/file-1")
    assert not store.exists("files/org/file-1")
    with pytest.raises(FileNotFoundError):
        store.read("files/org/file-1")


def test_a_file_whose_writing_failed_is_not_there_and_leaves_nothing(store):
    def fail():
        with store.writing("files/x") as file:
            file.write(b"half")
            raise ZeroDivisionError

    store.write("files/other", b"1")
    with pytest.raises(ZeroDivisionError):
        fail()
    assert not store.exists("files/x")
    assert [path.rpartition("/")[2] for path in store._system.ls(f"{store._root}/files", detail=False)] == ["other"]


def test_a_folder_comes_back_as_it_was(store, tmp_path):
    there = tmp_path / "there"
    (there / "deep").mkdir(parents=True)
    (there / "a.txt").write_bytes(b"a")
    (there / "deep" / "b.bin").write_bytes(bytes(3_000_000))
    store.put_folder("models/ftjob-1", there)
    assert store.has_folder("models/ftjob-1")
    back = tmp_path / "back"
    (back).mkdir()
    (back / "old").write_text("goes")
    store.get_folder("models/ftjob-1", back)
    assert {path.relative_to(back).as_posix(): path.read_bytes() for path in back.rglob("*") if path.is_file()} == {
        "a.txt": b"a",
        "deep/b.bin": bytes(3_000_000),
    }
    store.remove("models/ftjob-1")
    assert not store.has_folder("models/ftjob-1")
    assert not store.exists("models/ftjob-1/a.txt")


def test_a_folder_without_its_list_is_not_there(store, tmp_path):
    store.write("models/half/a.txt", b"a")
    assert not store.has_folder("models/half")
    with pytest.raises(FileNotFoundError):
        store.get_folder("models/half", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_of_which_a_file_was_changed_is_refused(store, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_bytes(b"a")
    store.put_folder("models/x", tmp_path / "there")
    store.write("models/x/a.txt", b"b")
    with pytest.raises(TiterError, match="not what was put there"):
        store.get_folder("models/x", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.b", "a b", "a\0b", "ä"]
)
def test_a_key_never_leaves_the_store(tmp_path, key):
    store = Store(str(tmp_path / "store"))
    with pytest.raises(ValueError, match="no key"):
        store.write(key, b"")
    assert list((tmp_path / "store").rglob("*")) == []


def test_a_list_that_names_what_is_outside_is_refused(store, tmp_path):
    store.write("models/x/files.json", json.dumps({"../../../escaped": "0" * 64}).encode())
    with pytest.raises(ValueError, match="no key"):
        store.get_folder("models/x", tmp_path / "deep" / "back")
    assert [path for path in tmp_path.rglob("*") if "escaped" in path.name] == []


def test_a_store_that_nothing_can_read_is_an_error_that_says_so():
    with pytest.raises(TiterError, match="cannot be used"):
        Store("nonsense://there")


def test_nothing_counts_as_missing_or_removed_while_the_store_is_away(store):
    """Without its mark it is the folder where it is not mounted, or a bucket that somebody has made anew."""
    store._system.rm(f"{store._root}/{MARK}")
    for use in (store.exists, store.read, store.remove, store.has_folder):
        with pytest.raises(OSError, match="another folder, or not mounted") as caught:
            use("models/x/a.txt")
        assert not isinstance(caught.value, FileNotFoundError)
    if store._local:  # an object store says itself that there is no such bucket
        with pytest.raises(OSError, match="not mounted"):
            store.write("models/y", b"")
        assert os.listdir(store._root) == []
    store.mark()
    assert not store.exists("models/x/a.txt")
    store.remove("models/x/a.txt")


def test_an_error_of_the_store_is_neither_absence_nor_removal(store, monkeypatch):
    store.write("models/x", b"a")

    def fails(*words, **more):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(store._system, "info", fails)
        for use in (store.exists, store.remove):
            with pytest.raises(OSError, match="Input/output"):
                use("models/x")
    assert store.exists("models/x")
