"""A weight file with the path, inode, size and times of the last time is not hashed again; in every
other case it is. The oracle: hashlib on what is there."""

import hashlib
import os
from pathlib import Path

import pytest

from cache_specs.spec import load_spec
from extract.models import digests
from extract.models.digests import digest_of
from extract.models.weights import find_weights


@pytest.fixture(autouse=True)
def tiny_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' files are young and small."""
    monkeypatch.setattr(digests, "SMALL", 0)
    monkeypatch.setattr(digests, "RACY_NS", -(10**9))
    monkeypatch.setenv("COVIEW_WEIGHTS", str(tmp_path / "home"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"first" * 1000)
    os.utime(path, (1, 1))
    return path


def oracle(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_read(path: Path, monkeypatch: pytest.MonkeyPatch, rehash: bool = False) -> bool:
    """Does it hash the file's contents to know them? What it says must be true."""
    asked: list[str] = []
    real = hashlib.file_digest

    def counted(file: object, name: str) -> object:
        asked.append(name)
        return real(file, name)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", counted)
        assert digest_of(path, rehash) == oracle(path)
    return bool(asked)


def test_what_is_known_is_not_read(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_read(weights, monkeypatch)
    assert not is_read(weights, monkeypatch)
    assert is_read(weights, monkeypatch, rehash=True)


def changed(path: Path) -> None:
    path.write_bytes(b"other" * 1000)
    os.utime(path, (1, 1))  # size and mtime as before: the ctime tells


def replaced(path: Path) -> None:
    path.unlink()
    changed(path)


def longer(path: Path) -> None:
    path.write_bytes(b"first" * 1001)


def lost(path: Path) -> None:
    for note in digests.weights_folder().rglob("*.json"):
        note.unlink()


def damaged(path: Path) -> None:
    for note in digests.weights_folder().rglob("*.json"):
        data = note.read_bytes()
        known = oracle(path).encode()
        assert known in data
        note.write_bytes(data.replace(known, b"0" * 64))


def of_another(path: Path) -> None:
    for note in digests.weights_folder().rglob("*.json"):
        path.write_bytes(b"other" * 1000)
        digest_of(path)
        name = digests._note_of(path)
        note.write_bytes(name.read_bytes())
        path.write_bytes(b"third" * 1000)


@pytest.mark.parametrize("change", [changed, replaced, longer, lost, damaged, of_another])
def test_what_is_not_known_is_read(
    change: object, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_read(weights, monkeypatch)
    assert callable(change)
    change(weights)
    assert is_read(weights, monkeypatch)


def test_two_files_of_one_folder_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one.write_bytes(b"a")
    other.write_bytes(b"b")
    assert is_read(one, monkeypatch)
    assert is_read(other, monkeypatch)
    assert not is_read(one, monkeypatch)


def test_a_file_that_was_just_written_is_not_remembered(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RACY_NS", 3_000_000_000)
    assert is_read(weights, monkeypatch)
    assert is_read(weights, monkeypatch)


def test_small_files_leave_no_note(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SMALL", 1 << 26)
    assert is_read(weights, monkeypatch)
    assert not digests.weights_folder().exists()


def test_where_no_note_may_be_written_it_is_hashed(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests.weights_folder().write_bytes(b"a file stands in the way")
    assert is_read(weights, monkeypatch)
    assert is_read(weights, monkeypatch)


def test_find_weights_says_the_same_with_and_without_it() -> None:
    spec = load_spec("tiny-clip")
    first, again = find_weights(spec, None), find_weights(spec, None)
    assert first == again == find_weights(spec, None, rehash=True)
