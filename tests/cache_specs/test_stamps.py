"""A content whose file has key, inode, size and times of the last time is not hashed again; in
every other case it is. The oracle: a hash of all that is there, made without any memory."""

import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_specs import stamps
from cache_specs.items import Items
from cache_specs.sources import source_path
from cache_specs.stamps import FILE, Stamps, remembered
from cache_specs.succession import write_items
from extract.data.datasets import build_items, open_dataset
from extract.data.hdf5 import ReadHdf5
from extract.data.readers import Reader, ReadFiles


@pytest.fixture(autouse=True)
def not_racy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' files are young."""
    if "racy" not in request.node.name:
        monkeypatch.setattr(stamps, "RACY_NS", 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """a/1.jpg to a/4.jpg and b/5.jpg, all of the same size, of the same second."""
    for number in range(1, 6):
        path = tmp_path / "photos" / "ab"[number > 4] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 100)
        os.utime(path, (1, 1))
    settled(tmp_path)
    return tmp_path / "photos"


def settled(folder: Path) -> None:
    """What is written from now on has a later time: the kernel's clock is a coarse one."""
    probe = folder.parent / "probe"
    probe.write_bytes(b"")
    begun = now = probe.stat().st_ctime_ns
    while now == begun:
        os.utime(probe)
        now = probe.stat().st_ctime_ns


class Looked:
    """One look at a data set, as `make extract` takes it: items, and the keys that were hashed."""

    def __init__(self, data: Path, cache: Path, rehash: bool = False) -> None:
        dataset, source = open_dataset(str(data), Path()), source_path(str(data))
        before = None if rehash else remembered(cache, dataset.name, source)
        self.hashed: list[str] = []
        real = dataset.read.digests

        def digests(rows: list[int]) -> object:
            self.hashed += [dataset.keys[row] for row in rows]
            return real(rows)

        object.__setattr__(dataset.read, "digests", digests)
        seen = Stamps(before)
        self.items: Items = build_items(dataset, stamps=seen)
        self.hashed.sort()
        self.folder = write_items(cache, self.items, source, changed=True)
        places = [dataset.read.place(row) for row in range(len(self.items))]
        seen.keep(self.folder, self.items, places)
        object.__setattr__(dataset.read, "digests", real)
        whole = build_items(dataset)
        assert (self.items.sha256, self.items.size.tolist()) == (whole.sha256, whole.size.tolist())


def test_what_is_as_it_was_is_not_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = Looked(photos, cache)
    assert len(first.hashed) == 5 and (first.folder / FILE).stat().st_size == 64 + 5 * 40
    kept = (first.folder / FILE).read_bytes()
    again = Looked(photos, cache)
    assert again.hashed == [] and again.items.fingerprint == first.items.fingerprint
    assert Looked(photos, cache, rehash=True).hashed == first.hashed
    assert (first.folder / FILE).read_bytes() == kept
    photos.rename(tmp_path / "pictures")  # what lies in it is what it was
    assert Looked(tmp_path / "pictures", cache).hashed == first.hashed  # another data set's name …
    assert Looked(tmp_path / "pictures", cache).hashed == []  # … which its source finds again


def _touched(photos: Path) -> list[str]:
    os.utime(photos / "a" / "2.jpg", (9, 9))
    return ["a/2.jpg"]


def _written_in_place(photos: Path) -> list[str]:
    """As `cp -p` does: the same inode, size and mtime."""
    (photos / "a" / "2.jpg").write_bytes(b"x" * 100)
    os.utime(photos / "a" / "2.jpg", (1, 1))
    return ["a/2.jpg"]


def _replaced(photos: Path) -> list[str]:
    other = photos.parent / "other"
    other.write_bytes(b"x" * 100)
    os.utime(other, (1, 1))
    other.replace(photos / "a" / "2.jpg")
    return ["a/2.jpg"]


def _swapped(photos: Path) -> list[str]:
    one, two, third = photos / "a" / "1.jpg", photos / "a" / "2.jpg", photos / "third"
    one.rename(third)
    two.rename(one)
    third.rename(two)
    return ["a/1.jpg", "a/2.jpg"]


def _relabelled(photos: Path) -> list[str]:
    (photos / "a" / "2.jpg").rename(photos / "b" / "2.jpg")
    return ["b/2.jpg"]


def _added_and_removed(photos: Path) -> list[str]:
    (photos / "a" / "1.jpg").unlink()
    (photos / "a" / "0.jpg").write_bytes(b"0")
    return ["a/0.jpg"]


def _hard_link(photos: Path) -> list[str]:
    """A second name changes the time of the file; what is written by one is seen by both."""
    os.link(photos / "a" / "2.jpg", photos / "b" / "9.jpg")
    (photos / "b" / "9.jpg").write_bytes(b"x" * 100)
    os.utime(photos / "b" / "9.jpg", (1, 1))
    return ["a/2.jpg", "b/9.jpg"]


def _larger(photos: Path) -> list[str]:
    (photos / "a" / "2.jpg").write_bytes(b"x" * 101)
    os.utime(photos / "a" / "2.jpg", (1, 1))
    return ["a/2.jpg"]


CHANGES = (
    _touched,
    _written_in_place,
    _replaced,
    _swapped,
    _relabelled,
    _added_and_removed,
    _hard_link,
    _larger,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_what_changed_is_hashed_and_nothing_else(
    photos: Path, tmp_path: Path, change: Callable[[Path], list[str]]
) -> None:
    Looked(photos, tmp_path / "cache")
    settled(photos)
    hashed = change(photos)
    assert Looked(photos, tmp_path / "cache").hashed == hashed
    assert Looked(photos, tmp_path / "cache").hashed == []


@pytest.mark.parametrize("field", range(5))
def test_all_of_a_stamp_must_be_equal(photos: Path, tmp_path: Path, field: int) -> None:
    """Place, inode, size, mtime, ctime: of what a file system may give back, each by itself."""
    first = Looked(photos, tmp_path / "cache")
    known = remembered(tmp_path / "cache", "photos", "")
    assert known is not None
    path = photos / "a" / "1.jpg"
    there = path.stat()
    stamp = (0, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns)
    assert stamps.stamp_of(str(path)) == stamp[1:]
    expected = (100, first.items.sha256[0])
    assert known.get("a/1.jpg", stamp[0], stamp[1:]) == expected
    assert known.get("a/2.jpg", stamp[0], stamp[1:]) is None
    other = [value + (place == field) for place, value in enumerate(stamp)]
    assert known.get("a/1.jpg", other[0], tuple(other[1:])) is None


def test_a_symbolic_link_is_the_file_that_it_leads_to(photos: Path, tmp_path: Path) -> None:
    cache, link = tmp_path / "cache", photos / "a" / "link.jpg"
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(path.name.encode())
        os.utime(path, (1, 1))
    link.symlink_to(one)
    Looked(photos, cache)
    assert Looked(photos, cache).hashed == []
    link.unlink()
    link.symlink_to(two)
    assert Looked(photos, cache).hashed == ["a/link.jpg"]
    settled(photos)
    two.write_bytes(b"ten")
    os.utime(two, (1, 1))
    assert Looked(photos, cache).hashed == ["a/link.jpg"]


def test_what_cannot_be_read_is_looked_at_again_each_time(photos: Path, tmp_path: Path) -> None:
    cache, link = tmp_path / "cache", photos / "a" / "link.jpg"
    link.symlink_to(tmp_path / "nowhere")
    os.mkfifo(photos / "a" / "pipe.jpg")
    assert Looked(photos, cache).items.sha256.count("") == 2
    assert Looked(photos, cache).hashed == ["a/link.jpg", "a/pipe.jpg"]
    (tmp_path / "nowhere").write_bytes(b"here")
    found = Looked(photos, cache)
    assert found.hashed == ["a/link.jpg", "a/pipe.jpg"] and found.items.sha256.count("") == 1


def test_what_the_disk_did_not_give_once_is_asked_for_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ReadFiles.digest

    def digest(self: ReadFiles, i: int) -> tuple[int, str]:
        if self.paths[i].endswith("1.jpg"):
            raise OSError("a failing disk")
        return real(self, i)

    with monkeypatch.context() as patched:
        patched.setattr(ReadFiles, "digest", digest)
        assert Looked(photos, tmp_path / "cache").items.sha256[0] == ""
    found = Looked(photos, tmp_path / "cache")
    assert found.hashed == ["a/1.jpg"] and found.items.sha256[0]


def tar_of(path: Path, *contents: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        for number, content in enumerate(contents):
            (path.parent / "member").write_bytes(content)
            tar.add(path.parent / "member", f"{number}.jpg")


def test_members_have_the_stamp_of_their_tar(tmp_path: Path) -> None:
    cache, tar = tmp_path / "cache", tmp_path / "x.tar"
    tar_of(tar, b"one", b"two")
    os.utime(tar, (1, 1))
    assert len(Looked(tar, cache).hashed) == 2 and Looked(tar, cache).hashed == []
    settled(tar)
    data = tar.read_bytes().replace(b"two", b"six")
    tar.write_bytes(data)
    os.utime(tar, (1, 1))
    assert len(Looked(tar, cache).hashed) == 2


def test_a_key_that_now_means_another_row_of_the_same_file_is_hashed(tmp_path: Path) -> None:
    """Keys may count through several files, of which only the first has changed."""

    def table(name: str, *contents: bytes) -> None:
        pq.write_table(pa.table({"image": [*contents]}), tmp_path / "d" / "data" / name)

    (tmp_path / "d" / "data").mkdir(parents=True)
    data = f"hf:{tmp_path / 'd'}"
    table("train-00000-of-00002.parquet", b"a", b"b")
    table("train-00001-of-00002.parquet", b"c", b"d")
    first = Looked(data, tmp_path / "cache")
    assert Looked(data, tmp_path / "cache").hashed == []
    settled(tmp_path)
    table("train-00000-of-00002.parquet", b"a")
    found = Looked(data, tmp_path / "cache")
    assert len(first.hashed) == 4 and len(found.hashed) == 3 == len(found.items)
    assert found.items.sha256 == [hashlib.sha256(one).hexdigest() for one in (b"a", b"c", b"d")]


@pytest.mark.parametrize("chunks", [None, (3, 5, 7, 3)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_pixels_of_hdf5_are_read_in_blocks_and_hashed_as_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: tuple | None, shuffled: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 5, 7, 3), np.uint8)
    keys = [f"{row:03d}" for row in range(200)]
    if shuffled:
        keys = [keys[row] for row in np.random.default_rng(1).permutation(200)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("images", data=pixels, chunks=chunks)
        file["keys"] = keys
    monkeypatch.setattr("extract.data.hdf5.SLAB", 10 * 5 * 7 * 3)  # ten pictures
    reads: list[int] = []
    real = ReadHdf5._slab
    monkeypatch.setattr(ReadHdf5, "_slab", lambda self, rows: reads.append(1) or real(self, rows))
    monkeypatch.setattr(ReadHdf5, "digest", None)  # no picture is read alone
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    dataset = open_dataset(str(tmp_path / "x.h5"), Path())
    items = build_items(dataset)
    assert len(reads) <= 40
    order = np.argsort(keys)
    for row, key in enumerate(items.keys):
        assert key == keys[order[row]]
        data = b"P6\n7 5\n255\n" + pixels[order[row]].tobytes()
        assert items.sha256[row] == hashlib.sha256(data).hexdigest()
        assert items.size[row] == len(data) and dataset.read(row) == data


def test_rows_that_lie_apart_or_in_other_files_are_other_blocks(tmp_path: Path) -> None:
    """As what is left of a file of which some rows are known, or a part of the classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 4, 4), np.uint8)
    paths = [str(tmp_path / "0.h5"), str(tmp_path / "1.h5")]
    for path, images in zip(paths, pixels, strict=True):
        with h5py.File(path, "w") as file:
            file["x"] = images
    where = [(0, 0), (0, 1), (0, 3), (1, 4), (1, 5), (0, 6), (0, 5), (1, 7)]
    read = ReadHdf5(paths, "x", np.array(where))
    found = [*read.digests(range(8))]
    assert found == [read.digest(i) for i in range(8)] and len(set(found)) == 8
    assert [*read.digests([2, 7])] == [read.digest(2), read.digest(7)]
    assert [*read.digests([])] == []


def test_a_damaged_row_of_hdf5_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 4, 4), np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        images = file.create_dataset("images", data=pixels, chunks=(1, 4, 4), fletcher32=True)
        at = images.id.get_chunk_info(9).byte_offset
    with open(tmp_path / "x.h5", "r+b") as file:
        file.seek(at)
        file.write(bytes([pixels[9, 0, 0] ^ 1]))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    items = build_items(open_dataset(str(tmp_path / "x.h5"), Path()))
    assert [row for row in range(64) if not items.sha256[row]] == [9]


def test_encoded_images_of_hdf5_and_a_part_of_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        images = file.create_dataset("images", (4,), h5py.vlen_dtype(np.uint8))
        for row in range(4):
            images[row] = np.full(row + 1, row, np.uint8)
        file["labels"] = [0, 1, 1, 0]
    found = Looked(tmp_path / "x.h5", tmp_path / "cache")
    assert found.items.size.tolist() == [1, 2, 3, 4] and len(found.hashed) == 4
    assert Looked(tmp_path / "x.h5", tmp_path / "cache").hashed == []


# --- what is not remembered


def test_racy_files_are_not_remembered(photos: Path, tmp_path: Path) -> None:
    """They were written a moment ago, and may be again under the same stamp."""
    cache = tmp_path / "cache"
    assert len(Looked(photos, cache).hashed) == len(Looked(photos, cache).hashed) == 5
    assert not list(cache.rglob(FILE))


def test_racy_a_clock_that_is_ahead_is_not_trusted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stamps.stamp_of
    old = 10**18
    monkeypatch.setattr(stamps, "stamp_of", lambda path: (*real(path)[:2], old, old))
    Looked(photos, tmp_path / "one")
    assert Looked(photos, tmp_path / "one").hashed == []
    ahead = 10**19 // 2
    monkeypatch.setattr(stamps, "stamp_of", lambda path: (*real(path)[:2], ahead, old))
    Looked(photos, tmp_path / "two")
    assert len(Looked(photos, tmp_path / "two").hashed) == 5


def test_a_file_that_changes_once_it_was_hashed_is_hashed_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ReadFiles.digest

    def digest(self: ReadFiles, i: int) -> tuple[int, str]:
        found = real(self, i)
        if self.paths[i].endswith("2.jpg"):
            settled(photos)
            (photos / "a" / "2.jpg").write_bytes(b"y" * 100)
            os.utime(photos / "a" / "2.jpg", (1, 1))
        return found

    dataset, seen = open_dataset(str(photos), Path()), Stamps()
    with monkeypatch.context() as patched:
        patched.setattr(ReadFiles, "digest", digest)
        items = build_items(dataset, stamps=seen)
    folder = write_items(tmp_path / "cache", items, str(photos))
    seen.keep(folder, items, [dataset.read.place(row) for row in range(5)])
    assert Looked(photos, tmp_path / "cache").hashed == ["a/2.jpg"]


def test_what_is_in_no_file_has_no_stamp(tmp_path: Path) -> None:
    class InMemory(Reader):
        def __call__(self, i: int) -> bytes:
            return b"x"

    assert InMemory().place(0) == ("", 0)
    seen = Stamps()
    assert seen.known("0", InMemory().place(0)) is None and not seen.hashed


# --- the file of stamps


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))


def _foreign(path: Path) -> None:
    """A whole one, but of other images."""
    data = bytes(32) + path.read_bytes()[64:]
    path.write_bytes(hashlib.sha256(data).digest() + data)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "long": lambda path: path.write_bytes(path.read_bytes() + bytes(40)),
    "flipped": _flipped,
    "foreign": _foreign,
    "a folder": _folder,
    "no items": lambda path: (path.parent / "items.parquet").write_bytes(b""),
}


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_or_gone_it_is_all_hashed_again_without_a_word(
    photos: Path, tmp_path: Path, harm: str, capsys: pytest.CaptureFixture
) -> None:
    cache = tmp_path / "cache"
    HARMS[harm](Looked(photos, cache).folder / FILE)
    assert len(Looked(photos, cache).hashed) == 5
    assert "".join(capsys.readouterr()) == ""
    assert len(Looked(photos, cache).hashed) == (5 if harm == "a folder" else 0)


@pytest.mark.parametrize("step", ["open", "half", "fsync", "rename", "folder"])
def test_where_it_cannot_be_written_all_is_as_before(
    photos: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("base.durable._passed", 0)
    monkeypatch.setenv("COVIEW_FAULT", f"EROFS:1:stamps.{step}")
    assert len(Looked(photos, tmp_path / "cache").hashed) == 5
    monkeypatch.delenv("COVIEW_FAULT")
    assert len(Looked(photos, tmp_path / "cache").hashed) == (0 if step == "folder" else 5)
    assert Looked(photos, tmp_path / "cache").hashed == []


def test_the_newest_version_is_the_one_that_counts(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    Looked(photos, cache)
    (photos / "b" / "6.jpg").write_bytes(b"6")
    assert Looked(photos, cache).hashed == ["b/6.jpg"]
    (photos / "b" / "7.jpg").write_bytes(b"7")
    assert Looked(photos, cache).hashed == ["b/7.jpg"]
    assert len(list(cache.glob(f"*/{FILE}"))) == 3
