"""A view's cache: what is written is read, and whatever is missing, damaged, stale or in use is
refused with a name and a command."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, VIEW_TOML, write_view

from base import durable
from base.errors import IntegrityError, StaleError, StorageError, UsageError
from cache_specs import integrity, store
from cache_specs.spec import load_spec
from cache_specs.store import View
from train.data.reader import map_view

ROWS, ALIGNED, UNALIGNED = (
    64,
    32,
    12,
)  # 64 x 32 x 2 bytes is one page: the shards are stitched; 64 x 12 x 2 is not
ITEMS = "1" * 64


def embeddings(n: int, width: int) -> np.ndarray:
    return np.random.default_rng(n * 1000 + width).normal(size=(n, width)).astype(np.float16)


def declared(folder: Path, width: int) -> dict:
    toml = folder / "v.toml"
    toml.write_text(VIEW_TOML.format(width=width))
    return load_spec(str(toml)).declared()


def create(folder: Path, n: int, width: int, rows: int = ROWS) -> View:
    return store.create_view(
        folder / "data-00000000",
        "v",
        declared(folder, width),
        "0" * 64,
        (ITEMS, n),
        rows,
        {"batch": 1},
    )


def fill(
    view: View,
    emb_ND: np.ndarray,
    shards: list[int] | None = None,
    status: np.ndarray | None = None,
) -> None:
    if status is not None:
        emb_ND = np.where(status[:, None] == 0, emb_ND, np.float16(np.nan))
    for shard in view.pending() if shards is None else shards:
        first, last = view.bounds(shard)
        emb_RD = np.full((view.rows, view.width), np.nan, np.float16)
        status_R = np.zeros(view.rows, np.uint8)
        emb_RD[: last - first] = emb_ND[first:last]
        if status is not None:
            status_R[: last - first] = status[first:last]
        store.write_shard(view, shard, emb_RD, status_R)


def finished(folder: Path, n: int = 3 * ROWS - 5, width: int = ALIGNED) -> View:
    view = create(folder, n, width)
    with store.writer_lock(view.folder):
        fill(view, embeddings(n, width))
        integrity.seal(view)
    return view


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> View:
    """A sealed and once checked view of three shards, never changed by a test."""
    view = finished(tmp_path_factory.mktemp("sealed"))
    integrity.check(view)
    return view


@pytest.fixture
def view(sealed: View, tmp_path: Path) -> View:
    """A copy of it that a test may damage. The copy's inodes are new, so nothing
    in it counts as verified."""
    folder = tmp_path / sealed.folder.parent.name / sealed.folder.name
    shutil.copytree(sealed.folder, folder)
    return store.open_view(folder)


# --- what is written is read


@pytest.mark.parametrize("width", [ALIGNED, UNALIGNED], ids=["stitched", "unaligned"])
@pytest.mark.parametrize("n", [ROWS - 1, ROWS, ROWS + 1, 2 * ROWS - 1, 2 * ROWS, 2 * ROWS + 1])
def test_at_every_shard_edge_zarr_and_the_memory_map_give_the_rows_that_were_written(
    tmp_path, n, width
):
    import zarr

    view, emb_ND = finished(tmp_path, n, width), embeddings(n, width)
    assert view.shards == -(-n // ROWS) and integrity.check(view).tolist() == [0] * n
    group = zarr.open_group(view.folder, mode="r")
    mapped = map_view(view)
    assert (
        mapped.shape == group["embeddings"].shape == (n, width)
        and mapped.dtype == group["embeddings"].dtype == np.float16
    )
    np.testing.assert_array_equal(group["embeddings"][:], emb_ND)
    np.testing.assert_array_equal(mapped, emb_ND)
    np.testing.assert_array_equal(group["status"][:], np.zeros(n, np.uint8))
    assert (
        dict(group.attrs)["spec"]["width"] == width
        and dict(group.attrs)["items_fingerprint"] == ITEMS
    )


def test_a_row_stands_at_its_arithmetic_place_in_its_file(sealed):
    emb_ND = embeddings(sealed.n, sealed.width)
    for row in (0, ROWS - 1, ROWS, sealed.n - 1):
        data = sealed.embeddings_file(row // ROWS).read_bytes()
        place = row % ROWS * sealed.width * 2
        assert data[place : place + sealed.width * 2] == emb_ND[row].tobytes()


def test_the_last_shard_is_padded_with_nan(sealed):
    last = np.fromfile(sealed.embeddings_file(2), np.float16, ROWS * ALIGNED).reshape(ROWS, ALIGNED)
    assert np.isnan(last[ROWS - 5 :]).all() and np.isfinite(last[: ROWS - 5]).all()


def test_a_row_that_is_not_finite_needs_a_status_and_padding_needs_nan(tmp_path):
    view = create(tmp_path, ROWS - 1, ALIGNED)
    emb_RD, status_R = np.zeros((ROWS, ALIGNED), np.float16), np.zeros(ROWS, np.uint8)
    with pytest.raises(AssertionError):
        store.write_shard(view, 0, emb_RD, status_R)  # zeros in the padding
    emb_RD[-1], emb_RD[3, 1] = np.nan, np.inf
    with pytest.raises(AssertionError):
        store.write_shard(view, 0, emb_RD, status_R)  # Inf with status ok
    status_R[3] = store.STATUS.index("non-finite")
    store.write_shard(view, 0, emb_RD, status_R)
    assert json.loads(view.commit_file(0).read_text())["status"] == {
        "ok": ROWS - 2,
        "non-finite": 1,
    }


def test_check_returns_the_status_column(tmp_path):
    n = 2 * ROWS + 1
    view, status = create(tmp_path, n, ALIGNED), np.arange(n, dtype=np.uint8) % 6
    fill(view, embeddings(n, ALIGNED), status=status)
    integrity.seal(view)
    np.testing.assert_array_equal(integrity.check(view), status)
    np.testing.assert_array_equal(integrity.check(view), status)  # and when it hashes nothing


def test_the_root_hash_does_not_depend_on_the_order_of_writing(tmp_path):
    roots = set()
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        folder = tmp_path / "".join(map(str, order))
        folder.mkdir()
        view = create(folder, 3 * ROWS - 5, ALIGNED)
        fill(view, embeddings(view.n, ALIGNED), order)
        integrity.seal(view)
        roots.add(json.loads((view.folder / "complete.json").read_text())["root"])
    assert len(roots) == 1


def test_the_root_hash_changes_with_one_value_and_with_the_images(tmp_path, sealed):
    (tmp_path / "a").mkdir()
    view, emb_ND = create(tmp_path / "a", sealed.n, ALIGNED), embeddings(sealed.n, ALIGNED)
    emb_ND[ROWS, 0] += 1
    fill(view, emb_ND)
    integrity.seal(view)
    assert integrity.root(view) != integrity.root(sealed)
    records = integrity.read_seal(sealed)["shards"]
    assert integrity.root_hash(sealed, records) == integrity.root(sealed)
    changed = [
        dataclasses.replace(sealed, attributes={**sealed.attributes, **change})
        for change in ({"items_fingerprint": "2" * 64}, {"provenance": {}})
    ]
    assert [integrity.root_hash(other, records) == integrity.root(sealed) for other in changed] == [
        False,
        True,
    ]


# --- opening


def test_creating_a_view_twice_opens_it_with_the_rows_it_was_made_with(tmp_path):
    first = create(tmp_path, 100, ALIGNED)
    fill(first, embeddings(100, ALIGNED), [0])
    before = (first.folder / "zarr.json").read_bytes()
    again = create(tmp_path, 100, ALIGNED, rows=4 * ROWS)
    assert (
        again == first
        and again.pending() == [1]
        and (first.folder / "zarr.json").read_bytes() == before
    )


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("output", "pooled", "output: cls -> pooled"),
        ("compute_dtype", "bfloat16", "compute_dtype: float32 -> bfloat16"),
        ("width", 64, "width: 32 -> 64"),
        ("preprocess", {"resize": 9}, "preprocess.resize: 8 -> 9"),
        ("weights", {"path": "elsewhere"}, "weights.path: none -> elsewhere"),
    ],
)
def test_a_changed_spec_is_refused_as_old_and_new(tmp_path, field, value, line):
    view = create(tmp_path, 100, ALIGNED)
    changed = dict(view.attributes["spec"])
    changed[field] = {**changed[field], **value} if isinstance(value, dict) else value
    with pytest.raises(StaleError) as caught:
        store.create_view(
            view.folder.parent, "v", changed, "0" * 64, (ITEMS, 100), ROWS, {"batch": 1}
        )
    assert (
        f"\n  {line}\n" in str(caught.value)
        and str(view.folder) in str(caught.value)
        and "VIEW=path/to/v-2.toml" in str(caught.value)
    )
    with pytest.raises(StaleError, match="made with another spec"):
        store.refuse_changed(view, changed, None)


def test_other_weights_are_refused_as_old_and_new(tmp_path):
    view = create(tmp_path, 100, ALIGNED)
    with pytest.raises(StaleError) as caught:
        store.create_view(
            view.folder.parent,
            "v",
            view.attributes["spec"],
            "f" * 64,
            (ITEMS, 100),
            ROWS,
            {"batch": 1},
        )
    assert "weights.sha256: 000000000000… -> ffffffffffff…" in str(caught.value)


def test_another_view_beside_it_is_not_in_the_way(tmp_path):
    view = create(tmp_path, 100, ALIGNED)
    other = store.create_view(
        view.folder.parent,
        "v-2",
        view.attributes["spec"],
        "f" * 64,
        (ITEMS, 100),
        ROWS,
        {"batch": 1},
    )
    assert (
        store.find_view(view.folder.parent, "v", "…") == view
        and store.find_view(view.folder.parent, "v-2", "…") == other
    )


def test_a_view_that_is_not_there_names_the_nearest_and_the_command(tmp_path):
    view = create(tmp_path, 100, ALIGNED)
    with pytest.raises(
        UsageError,
        match=r"no view 'vv' in .*; did you mean 'v'\. To extract it: make extract VIEW=vv",
    ):
        store.find_view(view.folder.parent, "vv", "make extract VIEW=vv DATA=d")


def test_two_versions_of_a_view_are_refused(view):
    twin = view.folder.with_name("v-" + "a" * 12)
    shutil.copytree(view.folder, twin)
    with pytest.raises(UsageError, match=r"has 2 views called 'v'.*\n.*v-[0-9a-f]{12}") as raised:
        store.find_view(view.folder.parent, "v", "…", ("w", "v"))
    first, second = sorted((view.folder.name, twin.name))
    assert str(raised.value).endswith(f"Name one by its folder's name, such as {second}")
    assert raised.value.instead == {"VIEW": first, "VIEWS": f"w,{first}"}
    assert store.find_view(view.folder.parent, view.folder.name, "…").folder == view.folder


def test_another_format_version_is_refused(view):
    document = json.loads((view.folder / "zarr.json").read_text())
    document["attributes"]["format"] = 2
    (view.folder / "zarr.json").write_bytes(durable.sealed(document))
    with pytest.raises(StaleError, match="has format 2, this version reads 1"):
        store.open_view(view.folder)
    (view.folder / "zarr.json").write_text(json.dumps(document, indent=1))
    with pytest.raises(
        IntegrityError, match="has changed since it was written"
    ):  # a flipped bit is not another format
        store.open_view(view.folder)


def test_a_renamed_folder_and_an_edited_spec_are_refused(view):
    twin = view.folder.with_name("v-" + "a" * 12)
    shutil.copytree(view.folder, twin)
    with pytest.raises(
        IntegrityError,
        match=(
            r"zarr\.json does not belong to this folder.*Type: "
            r"make repair VIEW=v(-a{12})? DATA=data-00000000 CACHE="
        ),
    ):
        store.open_view(twin)
    for name in store.DOCUMENTS:
        document = json.loads((view.folder / name).read_text())
        document["attributes"]["spec"]["output"] = "mean"
        (view.folder / name).write_bytes(durable.sealed(document))
        with pytest.raises(
            IntegrityError, match=r"is that of another view|does not belong to this folder"
        ):
            store.open_view(view.folder)


# --- damage


def _truncated(file: Path, other: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def _appended(file: Path, other: Path) -> None:
    with file.open("ab") as handle:
        handle.write(b"\0")


def _flipped(file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _swapped(file: Path, other: Path) -> None:
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)


def _zeroed(file: Path, other: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _missing(file: Path, other: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("verified", [False, True], ids=["first check", "after a check"])
@pytest.mark.parametrize("harm", [_missing, _truncated, _appended, _flipped, _swapped, _zeroed])
def test_a_harmed_shard_is_found_and_named_with_its_rows_and_the_command(view, harm, verified):
    if verified:
        integrity.check(view)
    harm(view.embeddings_file(1), view.embeddings_file(2))
    with pytest.raises(IntegrityError) as caught:
        integrity.check(view)
    message = str(caught.value)
    assert (
        f"shard 1 (rows {ROWS} to {2 * ROWS - 1}) is damaged" in message
        and "embeddings/c/1/0" in message
    )
    assert (
        f"Type: {store.command(view.folder)}" in message
        and "make repair VIEW=v DATA=data-00000000 CACHE=" in message
    )


@pytest.mark.parametrize("harm", [_missing, _truncated, _appended, _flipped, _zeroed])
def test_a_harmed_status_file_is_found(view, harm):
    if harm is _zeroed:  # this view's status is all zeros: the checksum behind it is what changes
        assert view.status_file(2).read_bytes() != bytes(view.status_file(2).stat().st_size)
    harm(view.status_file(2), view.status_file(0))
    with pytest.raises(
        IntegrityError, match=rf"shard 2 \(rows {2 * ROWS} to {view.n - 1}\) is damaged.*status/c/2"
    ):
        integrity.check(view)


@pytest.mark.parametrize("content", ["[]", "{}", "null", "7", "", '{"files": 1}'])
def test_a_small_file_with_other_content_is_an_error_of_ours(view, content):
    for name in ("zarr.json", "embeddings/zarr.json", "commits/00001.json", "complete.json"):
        intact = (view.folder / name).read_bytes()
        (view.folder / name).write_text(content)
        with pytest.raises(IntegrityError):
            integrity.check(store.open_view(view.folder))
        (view.folder / name).write_bytes(intact)
    (view.folder / "verified.json").write_text(content)
    assert not integrity.check(view).any()


@pytest.mark.parametrize("name", ["commits/00001.json", "commits/00002.json"])
def test_a_missing_or_exchanged_commit_is_found(view, name):
    file = view.folder / name
    file.write_bytes((view.folder / "commits/00000.json").read_bytes())
    with pytest.raises(
        IntegrityError,
        match=rf"shard {int(file.stem)} .*{name} is not the record that complete\.json sealed",
    ):
        integrity.check(view)
    for refuse in (integrity.seal, integrity.check_commits):
        with pytest.raises(IntegrityError, match="it is the record of shard 0"):
            refuse(view)
    file.unlink()
    with pytest.raises(IntegrityError, match=rf"shard {int(file.stem)} .*{name}: No such file"):
        integrity.check(view)


def test_a_shard_and_its_commit_replaced_together_do_not_fit_the_seal(view, tmp_path):
    emb_ND = embeddings(view.n, view.width)
    emb_ND[ROWS] = 7
    view.commit_file(1).unlink()
    fill(view, emb_ND)
    with pytest.raises(
        IntegrityError,
        match=(
            rf"shard 1 \(rows {ROWS} to {2 * ROWS - 1}\) is damaged: "
            r"embeddings/c/1/0 has changed since it was written"
        ),
    ):
        integrity.check(view)


@pytest.mark.parametrize(("harm", "change"), [(_truncated, -1), (_appended, 1)])
def test_a_wrong_size_is_told_without_reading_the_file_and_is_never_sealed(view, harm, change):
    """A mapped file that is short kills the process, so the sizes are compared at every
    opening, before any digest."""
    harm(view.embeddings_file(1), view.embeddings_file(2))
    size = ROWS * ALIGNED * 2 + 4
    for refuse in (integrity.check, integrity.check_commits, integrity.seal):
        with pytest.raises(
            IntegrityError, match=f"embeddings/c/1/0 has {size + change} bytes, expected {size}"
        ):
            refuse(view)


def test_a_shard_that_is_not_there_reads_as_nan_and_255_in_zarr_never_as_zeros(tmp_path):
    import zarr

    view = create(tmp_path, 2 * ROWS, ALIGNED)
    fill(view, embeddings(view.n, ALIGNED), [0])
    group = zarr.open_group(view.folder, mode="r")
    assert (
        np.isnan(group["embeddings"][ROWS:]).all()
        and (group["status"][ROWS:] == 255).all()
        and not group["status"][:ROWS].any()
    )


def test_an_unfinished_view_is_refused_with_the_command(tmp_path):
    view = create(tmp_path, 3 * ROWS, ALIGNED)
    fill(view, embeddings(view.n, ALIGNED), [0, 2])
    with pytest.raises(
        UsageError, match=r"not finished \(2 of 3 shards in .*make extract VIEW=v DATA="
    ):
        integrity.check(view)
    with pytest.raises(IntegrityError, match="shard 1 "):
        integrity.seal(view)
    assert not view.is_complete


def test_a_file_without_its_commit_does_not_count(tmp_path):
    view = create(tmp_path, 2 * ROWS, ALIGNED)
    fill(view, embeddings(view.n, ALIGNED))
    view.commit_file(0).unlink()
    assert view.pending() == [0]


# --- verified.json


@pytest.fixture
def hashed(view: View, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards' files that were hashed, in no order; the view is old enough for its stamps to be
    remembered, and checked once."""
    files: list[str] = []
    monkeypatch.setattr(
        integrity,
        "sha256_of",
        lambda path, real=integrity.sha256_of: (
            files.append(os.path.relpath(path, view.folder)) or real(path)
        ),
    )
    grow_old(view)
    integrity.check(view)
    assert len(files) == 2 * view.shards
    files.clear()
    return files


def grow_old(view: View) -> None:
    """Wait until no file of the view is racy: nobody but the kernel can set a time of change."""
    youngest = max(
        path.stat().st_ctime_ns
        for path in view.folder.rglob("*")
        if path.is_file() and path.name != "verified.json"
    )
    time.sleep(max(0, integrity.RACY_NS + 10_000_000 - (time.time_ns() - youngest)) / 1e9)


def test_the_second_check_hashes_nothing_and_a_touched_file_is_hashed_again(view, hashed):
    integrity.check(view)
    assert hashed == []
    file = view.embeddings_file(1)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    integrity.check(view)
    assert hashed == ["embeddings/c/1/0"]
    hashed.clear()
    (view.folder / "verified.json").unlink()
    integrity.check(view)
    assert len(hashed) == 2 * view.shards


def test_a_young_file_is_not_remembered(view, hashed):
    """It could be written again within the clock's grain, and keep its stamp."""
    file = view.status_file(2)
    for _ in range(2):
        file.write_bytes(file.read_bytes())
        integrity.check(view)
    assert hashed == ["status/c/2"] * 2
    hashed.clear()
    grow_old(view)
    integrity.check(view)
    integrity.check(view)
    assert hashed == ["status/c/2"]


def test_a_flip_is_found_when_the_time_of_writing_was_put_back(view, hashed):
    file = view.embeddings_file(1)
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    with file.open("r+b") as handle:
        handle.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
    with pytest.raises(IntegrityError, match=r"embeddings/c/1/0 has changed since it was written"):
        integrity.check(view)


def test_a_damaged_memory_of_the_check_is_not_believed(view, hashed):
    file = view.folder / "verified.json"
    intact = file.read_bytes()
    for place in random.Random(0).sample(range(len(intact)), 20):
        file.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        hashed.clear()
        integrity.check(view)
        assert len(hashed) == 2 * view.shards and durable.read_sealed(file), (
            f"a flip at byte {place} was believed"
        )


def test_the_memory_of_another_copy_is_not_believed(view, hashed, sealed):
    grow_old(sealed)
    integrity.check(sealed)
    shutil.copy(sealed.folder / "verified.json", view.folder / "verified.json")
    _flipped(view.embeddings_file(1), view.embeddings_file(2))
    with pytest.raises(IntegrityError, match=r"embeddings/c/1/0 has changed"):
        integrity.check(view)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"root": "0" * 64}, "the root hash is another one"),
        ({"view": "0" * 64}, "it is the seal of another view"),
        ({"n": 7}, "it is the seal of another view"),
    ],
)
def test_a_seal_that_is_intact_but_says_something_else_is_refused(view, change, why):
    file = view.folder / "complete.json"
    file.write_bytes(durable.sealed({**json.loads(file.read_text()), **change}))
    with pytest.raises(
        IntegrityError, match=rf"complete\.json is damaged \({why}\)\. Type: make repair"
    ):
        integrity.check(view)


def test_a_failed_check_is_not_remembered(view):
    integrity.check(view)
    _flipped(view.embeddings_file(1), view.embeddings_file(2))
    for _ in range(2):
        with pytest.raises(IntegrityError):
            integrity.check(view)


def test_a_cache_that_cannot_be_written_is_still_checked(view, monkeypatch):
    (view.folder / "verified.json").unlink(missing_ok=True)
    monkeypatch.setenv("COVIEW_FAULT", "EROFS:1:verified.open")
    grow_old(view)
    monkeypatch.setattr("base.durable._passed", 0)
    assert not integrity.check(view).any() and not (view.folder / "verified.json").exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"cannot write .*/file: File exists"):
        store.create_view(
            tmp_path / "file" / "cache",
            "v",
            declared(tmp_path, ALIGNED),
            "0" * 64,
            (ITEMS, 10),
            ROWS,
            {},
        )


# --- the writer's lock

HOLD = """
import sys, time
from pathlib import Path
from cache_specs import integrity, store
with store.writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_held_by_another_process_names_it_and_a_dead_holder_frees_it(view):
    leftover = view.folder / "embeddings" / "c" / "0" / ".0.tmp"
    leftover.write_bytes(b"half")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(view.folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with holder:
        try:
            assert holder.stdout.readline() == "held\n"
            assert not leftover.exists(), "the holder sweeps what a killed writer left"
            leftover.write_bytes(b"half")
            with (
                pytest.raises(StorageError, match=f"is being written by process {holder.pid} on"),
                store.writer_lock(view.folder),
            ):
                pass
            assert leftover.exists(), "only the holder may sweep"
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with store.writer_lock(view.folder):
                assert not leftover.exists()
                with (
                    pytest.raises(
                        StorageError, match=f"is being written by process {os.getpid()} on"
                    ),
                    store.writer_lock(view.folder),
                ):
                    pass
        finally:
            holder.kill()
    with store.writer_lock(view.folder):
        pass


# --- a JSON file that knows its digest

DOCUMENT = {"a": 1, "b": [True, None, 1.5], "ü": {"x": "two words", "sha": "0"}}


@pytest.mark.parametrize(
    "document",
    [DOCUMENT, {"zarr_format": 3, "attributes": {"ä": [1]}, "node_type": "group"}],
    ids=["ours", "zarr's"],
)
def test_any_other_byte_in_a_sealed_document_is_refused(tmp_path, document):
    file = tmp_path / "x.json"
    intact = durable.sealed(document)
    file.write_bytes(intact)
    read = durable.read_sealed(file)
    assert durable.sealed(read) == intact and len(read.get("attributes", read)["sha256"]) == 64
    mutants = [
        intact[:place] + bytes([value]) + intact[place + 1 :]
        for place in range(len(intact))
        for value in {
            *b' \n\t0aA"{,',
            intact[place] ^ 1,
            intact[place] ^ 0x20,
            intact[place] ^ 0x80,
        }
        - {intact[place]}
    ]
    mutants += [
        intact[:place] + extra + intact[place:]
        for place in range(len(intact) + 1)
        for extra in (b" ", b"\n", b"0")
    ]
    mutants += [intact[:place] + intact[place + 1 :] for place in range(len(intact))] + [
        intact[:place] for place in range(len(intact))
    ]
    mutants += [
        json.dumps(read, sort_keys=True).encode(),
        json.dumps(document, indent=1).encode(),
        b"",
        b"null",
        b"[]",
        b"7",
        b"[" * 100_000,
    ]
    for mutant in mutants:
        file.write_bytes(mutant)
        with pytest.raises(ValueError, match=r"x\.json has changed since it was written"):
            durable.read_sealed(file)


def test_sealing_twice_is_sealing_once_and_a_nan_is_refused():
    once = durable.sealed(DOCUMENT)
    assert durable.sealed(json.loads(once)) == once == durable.sealed({**DOCUMENT, "sha256": "old"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        durable.sealed({"x": float("nan")})


def test_a_view_copied_to_other_images_is_refused_by_training(tmp_path):
    """Of the same number, with the same keys: only the contents differ."""
    from cache_specs.items import Items
    from cache_specs.succession import write_items
    from train.data.reader import open_cache

    n, folders = 2 * ROWS, []
    (tmp_path / "v.toml").write_text(VIEW_TOML.format(width=ALIGNED))
    for name in ("a", "b"):
        items = Items(
            name,
            "folder",
            [f"{i:03d}.png" for i in range(n)],
            np.zeros(n, np.int32),
            [""] * n,
            np.ones(n, np.int64),
            [f"{name}{i:063x}" for i in range(n)],
            ["x"],
        )
        folders.append((write_items(tmp_path / "cache", items), items.fingerprint))
    view = write_view(
        folders[0][0], tmp_path / "v.toml", embeddings(n, ALIGNED), folders[0][1], ROWS
    )
    shutil.copytree(view.folder, folders[1][0] / view.folder.name)
    assert open_cache(tmp_path / "cache", "a", [str(tmp_path / "v.toml")]).ok.all()
    with pytest.raises(
        StaleError, match=r"was made of other images than .*items\.parquet:\n  items: .* -> "
    ) as caught:
        open_cache(tmp_path / "cache", "b", [str(tmp_path / "v.toml")])
    assert caught.value.exit_code == 6
