"""Checksums are computed once a file, and never believed after the file changed."""

import hashlib
import os

import pytest

from patchclamp.errors import RunError
from patchclamp.model import cache
from patchclamp.model.cache import FileStamp, cache_dir, write_atomically


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"numbers")
    return path


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHCLAMP_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("PATCHCLAMP_CACHE")
    assert cache_dir().name == "patchclamp"


def test_a_file_is_read_once(file, monkeypatch):
    expected = hashlib.sha256(b"numbers").hexdigest()
    assert FileStamp.of(file).sha256() == expected
    monkeypatch.setattr(cache, "sha256_of", lambda path: pytest.fail("read again"))
    assert FileStamp.of(file).sha256() == expected


def test_a_file_that_was_rewritten_is_read_again(file):
    FileStamp.of(file).sha256()
    file.write_bytes(b"NUMBERS")  # as long as before
    os.utime(file, ns=(0, 12345))
    assert FileStamp.of(file).sha256() == hashlib.sha256(b"NUMBERS").hexdigest()


def test_a_stamp_does_not_vouch_for_other_content(file):
    stamp = FileStamp.of(file)
    file.unlink()
    with pytest.raises(RunError, match="changed on disk"):
        stamp.sha256()


def test_a_damaged_entry_is_computed_anew(file):
    expected = FileStamp.of(file).sha256()
    for entry in (cache_dir() / "hashes").iterdir():
        entry.write_text("{")
    assert FileStamp.of(file).sha256() == expected


def test_a_cache_that_cannot_be_written_costs_only_time(file, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHCLAMP_CACHE", str(file))  # a file where a folder is needed
    assert FileStamp.of(file).sha256() == hashlib.sha256(b"numbers").hexdigest()


def test_a_blob_of_the_hub_cache_is_named_by_its_sum(tmp_path, monkeypatch):
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"numbers")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    monkeypatch.setattr(cache, "sha256_of", lambda path: pytest.fail("read"))
    assert FileStamp.of(link).sha256() == "a" * 64


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
