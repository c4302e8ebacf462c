"""Embeddings in from elsewhere and out to elsewhere: every format, every refusal, and the same
bytes back."""

import dataclasses
import io
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from conftest import NOTES, config

from base import durable
from base.errors import (
    CoviewError,
    DataQualityError,
    IntegrityError,
    StaleError,
    StorageError,
    UsageError,
)
from cache_specs import integrity, items, lookup, sources, store
from cache_specs.succession import write_items
from cache_specs.view import STATUS
from exchange.config import ExportConfig, ImportConfig
from exchange.export import export_view
from exchange.importer import import_view
from extract.run import run as extract
from train.data.reader import map_view, open_cache
from upkeep.config import RepairConfig, VerifyConfig
from upkeep.repair import mend_view
from upkeep.verify import verify

N, D, ROWS = 50, 6, 16
KEYS = [f"{label}/{row:02d}.jpg" for row, label in enumerate(["cat", "dog"] * (N // 2))]
EMB = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A cache with one data set, `pets`: the items of KEYS (sorted, so not in the order of EMB) and
    no view."""
    keys = sorted(KEYS)
    label, classes = items.class_index([key.split("/")[0] for key in keys])
    write_items(
        tmp_path / "cache",
        items.Items(
            "pets",
            "folder",
            keys,
            label,
            [""] * N,
            np.ones(N, np.int64),
            [f"{i:064x}" for i in range(N)],
            classes,
        ),
    )
    return tmp_path


def write(path: Path, **arrays) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, arrays["embeddings"])
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = list(map(str, array)) if np.asarray(array).dtype.kind == "U" else array
    else:
        group = zarr.open_group(path, mode="w")
        for name, array in arrays.items():
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # zarr, until 3.4: strings of fixed length are a type of its own
                group.create_array(name, data=np.asarray(array), chunks=(7, *np.shape(array)[1:]))
    return path


def imported(
    home: Path, source: Path, view: str = "mine", data: str = "pets", **settings
) -> store.View:
    return import_view(
        ImportConfig(
            view=view,
            source=str(source),
            data=data,
            cache=str(home / "cache"),
            **{"shard_rows": ROWS, **settings},
        )
    )


def rows(view: store.View) -> np.ndarray:
    """(N, D) as zarr reads it: a reader that knows nothing of ours."""
    return zarr.open_group(view.folder, mode="r")["embeddings"][:]


def expected(home: Path, emb: np.ndarray, keys: list[str] = KEYS) -> np.ndarray:
    order = items.read_items(next((home / "cache").glob("pets-*"))).keys
    return np.stack([emb[keys.index(key)] for key in order]).astype(np.float16)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".zarr"])
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8"])
def test_rows_are_matched_by_their_keys(home: Path, suffix: str, dtype: str, capsys) -> None:
    order = np.random.default_rng(1).permutation(N)
    source = write(
        home / f"clip{suffix}", features=EMB[order].astype(dtype), paths=np.array(KEYS)[order]
    )
    view = imported(home, source)
    assert rows(view).tobytes() == expected(home, EMB).tobytes()
    assert (
        view.is_complete
        and not integrity.check(view).any()
        and (view.n, view.width, view.rows) == (N, D, ROWS)
    )
    assert view.attributes["spec"] == {
        "backend": "imported",
        "width": D,
        "storage_dtype": "float16",
    }
    provenance = view.attributes["provenance"]
    assert (provenance["imported"], provenance["source"], provenance["array"]) == (
        source.name,
        str(source),
        "features",
    )
    assert map_view(view).tobytes() == rows(view).tobytes()
    said = capsys.readouterr().out
    assert ("rounded to float16" in said) == (
        dtype != "float16"
    ) and f"mine: finished: {N} rows x {D} in {view.folder}" in said


def test_the_rounding_that_is_said_is_the_rounding(home: Path, capsys) -> None:
    imported(home, write(home / "a.npz", embeddings=EMB, keys=KEYS))
    worst = (
        np.abs(EMB.astype(np.float16).astype(np.float32) - EMB).max(1) / np.abs(EMB).max(1)
    ).max()
    assert (
        f"rounded to float16: by at most {worst:.1e} of a row's largest value\n"
        in capsys.readouterr().out
    )
    imported(home, write(home / "b.npz", embeddings=EMB * 1e-7, keys=KEYS), "small")
    assert "which is much: multiply the embeddings by a constant" in capsys.readouterr().out


def test_in_row_order_the_files_labels_must_not_contradict(tmp_path: Path, n: int = 30) -> None:
    """Other names for the classes are no contradiction, another order of the rows is one."""
    y = np.array([f"class {i % 3}" for i in range(n)])
    imported(tmp_path, write(tmp_path / "x.npz", embeddings=EMB[:n], y=y), "first", "")
    for number, fine in enumerate(
        ((np.arange(n) % 3 + 5), np.where(np.arange(n) < 4, -1, np.arange(n) % 3))
    ):
        imported(
            tmp_path,
            write(tmp_path / f"f{number}.npz", embeddings=EMB[:n], y=fine),
            f"v{number}",
            "x",
            by_row_order=True,
        )
    with pytest.raises(
        UsageError, match=r"labels contradict those of 'x' in at least 18 of 30 rows.*another order"
    ):
        imported(
            tmp_path,
            write(tmp_path / "sorted.npz", embeddings=EMB[:n], y=np.sort(y)),
            "other",
            "x",
            by_row_order=True,
        )
    swapped = y.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    with pytest.raises(UsageError, match=r"in at least 2 of 30 rows"):
        imported(
            tmp_path,
            write(tmp_path / "swapped.npz", embeddings=EMB[:n], y=swapped),
            "other",
            "x",
            by_row_order=True,
        )


@pytest.mark.parametrize("n", [ROWS - 1, ROWS, ROWS + 1, 3 * ROWS - 1, 3 * ROWS, 3 * ROWS + 1])
@pytest.mark.parametrize("fortran", [False, True])
def test_shard_edges_and_row_order(tmp_path: Path, n: int, fortran: bool) -> None:
    order = "F" if fortran else "C"
    labelled = write(tmp_path / "first.npz", X=np.array(EMB[:n], order=order), y=np.arange(n) % 2)
    first = imported(tmp_path, labelled, data="")
    second = imported(
        tmp_path,
        write(tmp_path / "x.npy", embeddings=np.array(-EMB[:n], order=order)),
        "second",
        "first",
        by_row_order=True,
    )
    assert (
        rows(first).tobytes() == EMB[:n].astype(np.float16).tobytes()
        and rows(second).tobytes() == (-EMB[:n]).astype(np.float16).tobytes()
    )
    assert first.shards == second.shards == -(-n // ROWS) and not first.pending()


def test_blocks_are_put_together(home: Path, monkeypatch) -> None:
    monkeypatch.setattr("exchange.arrays.BLOCK", 7)
    for number, suffix in enumerate((".npz", ".h5", ".zarr", ".npy")):
        keys = {} if suffix == ".npy" else {"keys": KEYS}
        view = imported(
            home,
            write(home / f"clip{suffix}", embeddings=EMB, **keys),
            f"v{number}",
            by_row_order=suffix == ".npy",
        )
        assert (
            rows(view).tobytes()
            == (EMB.astype(np.float16) if suffix == ".npy" else expected(home, EMB)).tobytes()
        )


def test_bad_rows_have_a_status_and_are_said(home: Path, capsys) -> None:
    emb = EMB.copy()
    emb[3, 2], emb[4, 0], emb[5, 1], emb[6] = np.nan, -np.inf, 7e4, 0
    view = imported(home, write(home / "a.npz", embeddings=emb, keys=KEYS))
    said = capsys.readouterr().out
    assert (
        "1 rows are finite in the file but overflow float16" in said
        and f"1 rows are all zeros, the first is {KEYS[6]!r}" in said
    )
    assert (
        "mine: 3 of 50 rows have no embedding (3 non-finite) and are left out of training" in said
    )
    order = items.read_items(view.folder.parent).keys
    bad = np.flatnonzero(integrity.check(view))
    assert {order[row] for row in bad} == {KEYS[3], KEYS[4], KEYS[5]} and np.isnan(
        rows(view)[bad]
    ).all()
    assert (
        zarr.open_group(view.folder, mode="r")["status"][:][bad] == STATUS.index("non-finite")
    ).all()
    assert open_cache(home / "cache", "pets", ["mine"]).ok.sum() == N - 3


def test_rows_that_float16_makes_zero_are_refused(home: Path, capsys) -> None:
    emb = EMB.copy()
    emb[3], emb[4], emb[5], emb[6] = 1e-9, -1e-30, 0, 1e-9
    emb[6, 2] = 1e-7  # one value is left
    for dtype in ("float32", "float64"):
        with pytest.raises(
            DataQualityError,
            match=rf"2 rows of .*a.npz: embeddings.npy are not zero in the file but all zeros in "
            rf"float16.*first is "
            rf"'{KEYS[3]}': multiply the embeddings by a constant",
        ):
            imported(home, write(home / "a.npz", embeddings=emb.astype(dtype), keys=KEYS))
    assert not store.view_folders(next((home / "cache").glob("pets-*")))
    assert not integrity.check(
        imported(home, write(home / "a.npz", embeddings=emb[5:], keys=KEYS[5:]), partial=True)
    )[sorted(KEYS).index(KEYS[5])]
    assert "1 rows are all zeros" in capsys.readouterr().out


def test_partial(home: Path, capsys) -> None:
    order = sorted(KEYS)
    less = write(home / "less.npz", embeddings=EMB[:-2], keys=KEYS[:-2])
    more = write(home / "more.npz", embeddings=EMB, keys=[*KEYS[:-3], "x", "y", "z"])
    with pytest.raises(
        UsageError,
        match=re.escape(
            f"less.npz has no row for 2 of the 50 items of 'pets'; the first is {KEYS[-2]!r}. To "
            f"import the others "
            "all the same: ARGS='--partial'"
        ),
    ):
        imported(home, less)
    with pytest.raises(
        UsageError, match=r"more.npz has 3 rows with keys that are not in 'pets'; the first is 'x'"
    ):
        imported(home, more)
    view = imported(home, more, partial=True)
    said = capsys.readouterr().out
    assert (
        "3 rows with keys that are not in 'pets'" in said
        and "no row for 3 of the 50" in said
        and "(3 missing)" in said
    )
    assert {
        order[row] for row in np.flatnonzero(integrity.check(view) == STATUS.index("missing"))
    } == set(KEYS[-3:])
    good = [order.index(key) for key in KEYS[:-3]]
    assert rows(view)[good].tobytes() == EMB[:-3].astype(np.float16).tobytes()


def test_again_is_a_hit_and_another_matrix_is_stale(home: Path, capsys) -> None:
    view = imported(home, write(home / "a.npz", embeddings=EMB, keys=KEYS))
    stamp = {path: path.stat().st_mtime_ns for path in view.folder.rglob("c/*") if path.is_file()}
    again = imported(
        home, write(home / "b.h5", embeddings=EMB[::-1], keys=np.array(KEYS[::-1]))
    )  # another file and order, the same rows
    assert again == view and "already in the cache, nothing to do" in capsys.readouterr().out
    assert stamp == {path: path.stat().st_mtime_ns for path in stamp}
    with pytest.raises(
        StaleError,
        match=r"was made of other embeddings:\n  embeddings.sha256: \w{12}… -> \w{12}…\nTo keep "
        r"both, import these "
        "under another name: VIEW=mine-2. To make it anew, delete",
    ):
        imported(home, write(home / "c.npz", embeddings=EMB + 1, keys=KEYS))
    with pytest.raises(StaleError, match="  width: 6 -> 5\n"):
        imported(home, write(home / "c.npz", embeddings=EMB[:, :5], keys=KEYS))


def test_an_extracted_view_is_no_imported_one(made, tmp_path: Path) -> None:
    config = ImportConfig(
        "pixels",
        str(write(tmp_path / "p.npy", embeddings=made.emb["pixels"])),
        "digits",
        str(made.cache),
        True,
    )
    with pytest.raises(
        StaleError,
        match=r"made with another spec:\n  backend: transformers -> imported\nTo keep both, "
        r"import these under another name",
    ):
        import_view(config)


def test_a_bundled_name_is_not_compared_with_its_spec(home: Path) -> None:
    imported(home, write(home / "a.npz", embeddings=EMB, keys=KEYS), "clip")
    cache = open_cache(home / "cache", "pets", ["clip"])
    assert cache.emb[0].tobytes() == expected(home, EMB).tobytes() and cache.names == ["clip"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"embeddings": EMB[0]},
            r"the array 'embeddings' has the shape \(6,\), expected \(N, D\), one row an image",
        ),
        ({"X": EMB[None]}, r"the array 'X' has the shape \(1, 50, 6\)"),
        (
            {"emb": (EMB * 9).astype(np.uint8)},
            r"'emb' holds integers \(uint8\): codes, or pixels\? If they are embeddings, save "
            r"them .astype\('float32'\)",
        ),
        (
            {"emb": EMB.astype(np.complex64)},
            "'emb' has the dtype complex64, expected float16, float32 or float64",
        ),
        ({"embeddings": EMB[:, :0]}, r"is empty, with the shape \(50, 0\)"),
        ({"embeddings": EMB[:0]}, r"is empty, with the shape \(0, 6\)"),
        (
            {"a": EMB, "b": EMB, "n": np.arange(3)},
            r"has 2 two-dimensional float arrays, none called embeddings, X, features, emb. Name "
            r"the embeddings: "
            r"ARGS='--array …'. It holds:\n  a  \(50, 6\) float32\n  b  \(50, 6\) float32\n  n  "
            r"\(3,\) int64",
        ),
        ({"n": np.arange(3)}, r"the array 'n' has the shape \(3,\), expected \(N, D\)"),
        ({"n": np.arange(3), "m": np.arange(3)}, "has 0 two-dimensional float arrays"),
        ({}, r"It holds:\n  nothing"),
        (
            {"embeddings": EMB},
            r"does not say which row is whose. Either put an array 'keys' into it \(the items' "
            r"keys, such as 'cat/00.jpg'; .* or, if its rows "
            r"are the items in exactly that order, say so: ARGS='--by-row-order'",
        ),
        (
            {"embeddings": EMB, "keys": [*KEYS[:-1], KEYS[3]]},
            "the key 'dog/03.jpg' stands in the rows 3 and 49",
        ),
        ({"embeddings": EMB, "keys": [*KEYS[:-1], ""]}, "the key of row 49 is empty"),
        (
            {"embeddings": EMB, "keys": KEYS[:-1]},
            r"the array 'keys' has the shape \(49,\), expected \(50,\)",
        ),
        (
            {"embeddings": EMB, "keys": EMB[:, 0]},
            "the array 'keys' has the dtype float32, expected strings or integers",
        ),
        (
            {"embeddings": EMB, "ids": np.arange(N)},
            "not one key of .*a.npz is in 'pets': '0' in the file, 'cat/00.jpg' in the data set",
        ),
        (
            {"embeddings": EMB, "keys": np.array(KEYS, object)},
            "a.npz: keys.npy holds Python objects or lists, neither numbers nor strings. A "
            "pickle can run code",
        ),
        (
            {"embeddings": EMB.astype(object)},
            "the array 'embeddings' holds Python objects or lists, neither numbers nor strings. "
            "A pickle can run code when",
        ),
    ],
)
def test_what_a_file_must_hold(home: Path, arrays: dict, message: str) -> None:
    source = home / "a.npz"
    np.savez(source, **arrays)
    with pytest.raises(UsageError, match=message):
        imported(home, source)
    assert not store.view_folders(next((home / "cache").glob("pets-*")))


def test_other_refusals(home: Path) -> None:
    fine = write(home / "a.npz", embeddings=EMB, other=EMB + 1, keys=KEYS)
    (home / "plain").mkdir()
    (home / "a.csv").write_text("1,2")
    for settings, message in (
        (
            {"view": ""},
            "VIEW is missing. Type: make import VIEW=mine FROM=embeddings.npz DATA=photos/",
        ),
        ({"source": ""}, "FROM is missing"),
        ({"view": "a/b"}, "VIEW='a/b': a name is made of letters, digits"),
        ({"view": "clip.toml"}, "VIEW='clip.toml'"),
        ({"view": ".a"}, "VIEW='.a'"),
        ({"view": "a,b"}, "VIEW='a,b'"),
        ({"name": "../x"}, "--name='../x'"),
        ({"shard_rows": -1}, "--shard-rows must be at least 0"),
        ({"array": "othr"}, "has no array 'othr'; did you mean 'other'"),
        ({"data": "", "by_row_order": True}, "--by-row-order needs the data set"),
        ({"data": "petz"}, "no dataset 'petz' .*did you mean 'pets'"),
        ({"data": ""}, "has no labels .*there is nothing to train on"),
        ({"source": str(home / "no.npz")}, "no.npz: there is no such file or folder"),
        (
            {"source": str(home / "a.csv")},
            r"unknown format '.csv'; FROM may be .npz, .npy, .h5 \(or .hdf5\), or a folder of Zarr",
        ),
        (
            {"source": str(home / "plain")},
            r"is a folder without a zarr.json, .zgroup or .zarray; FROM may be .npz",
        ),
        (
            {"source": str(write(home / "b.npy", embeddings=EMB[:9])), "by_row_order": True},
            "b.npy has 9 rows, 'pets' has 50 items; in row order both must have as many",
        ),
    ):
        values = {
            "view": "mine",
            "source": str(fine),
            "data": "pets",
            "cache": str(home / "cache"),
            **settings,
        }
        with pytest.raises(UsageError, match=message):
            import_view(ImportConfig(**values))
    assert rows(imported(home, fine, array="other")).tobytes() == expected(home, EMB + 1).tobytes()


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".pth", ".bin", ".joblib"])
def test_pickles_are_refused_with_the_reason(home: Path, suffix: str) -> None:
    (home / f"a{suffix}").write_bytes(b"\x80\x04N.")
    with pytest.raises(
        UsageError,
        match=r"A pickle can run code when it is read, .*np.savez\('embeddings.npz', "
        r"embeddings=…, keys=",
    ):
        imported(home, home / f"a{suffix}")


class Bomb:
    """Unpickling this would run code."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_is_unpickled(home: Path, monkeypatch) -> None:
    monkeypatch.chdir(home)
    bomb = np.full((N, D), Bomb(), object)
    np.save("a.npy", bomb, allow_pickle=True)
    np.savez("b.npz", embeddings=EMB, keys=bomb[:, 0])
    with h5py.File("c.h5", "w") as file:
        file.create_dataset("embeddings", (N, D), dtype=h5py.vlen_dtype(np.float32))
    group = zarr.open_group("d.zarr", mode="w", zarr_format=2)
    group.create_array("embeddings", data=EMB)
    document = json.loads(Path("d.zarr/embeddings/.zarray").read_text())
    Path("d.zarr/embeddings/.zarray").write_text(
        json.dumps(
            {
                **document,
                "filters": [{"id": "pickle", "protocol": 5}, {"id": "delta", "dtype": "<f4"}],
            }
        )
    )
    for name in ("a.npy", "b.npz", "c.h5", "d.zarr"):
        with pytest.raises(UsageError, match="A pickle can run code"):
            imported(home, Path(name), by_row_order=name != "b.npz")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".h5"])
def test_cut_and_flipped_files_are_typed_errors(home: Path, suffix: str) -> None:
    keys = {} if suffix == ".npy" else {"keys": KEYS}
    whole = write(home / f"a{suffix}", embeddings=EMB, **keys).read_bytes()
    for cut in (*range(0, len(whole), max(1, len(whole) // 25)), len(whole) - 1):
        (home / f"a{suffix}").write_bytes(whole[:cut])
        with pytest.raises(CoviewError):
            imported(home, home / f"a{suffix}", by_row_order=suffix == ".npy")
    if suffix == ".npz":  # a zip knows a checksum of each member
        place = whole.index(EMB.tobytes()) + 100
        (home / "a.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataQualityError, match=r"a.npz.* cannot be read, it is damaged .*CRC"):
            imported(home, home / "a.npz")
    (home / f"a{suffix}").write_bytes(b"no such thing")
    with pytest.raises(
        DataQualityError, match="cannot be read, it is damaged or not what its name says"
    ):
        imported(home, home / f"a{suffix}")
    assert not store.view_folders(next((home / "cache").glob("pets-*"))) and not list(
        (home / "cache").rglob("*.tmp")
    )


def test_a_header_that_lies(home: Path) -> None:
    for shape in ((N + 1, D), (N - 1, D), (10**12, D)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        with zipfile.ZipFile(home / "a.npz", "w") as archive:
            archive.writestr("embeddings.npy", header.getvalue() + EMB.tobytes())
            archive.writestr("../../evil.txt", "x")
        with pytest.raises(CoviewError):
            imported(home, home / "a.npz", by_row_order=True)
        with zipfile.ZipFile(home / "a.npz", "a") as archive:
            archive.writestr(
                "y.npy",
                _npy(np.zeros(shape[0], np.int64) if shape[0] < 100 else np.zeros(3, np.int64)),
            )
        with pytest.raises(CoviewError):
            imported(home, home / "a.npz", data="")
    assert not (home.parent / "evil.txt").exists()


def _npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def test_h5_reads_no_other_file(home: Path) -> None:
    np.save(home / "raw", EMB)
    with h5py.File(home / "a.h5", "w") as file:
        file.create_dataset(
            "embeddings", (N, D), "f4", external=[(str(home / "raw.npy"), 128, EMB.nbytes)]
        )
    with pytest.raises(UsageError, match="the data of 'embeddings' lie in other files"):
        imported(home, home / "a.h5", by_row_order=True)
    write(home / "b.h5", embeddings=EMB)
    with h5py.File(home / "c.h5", "w") as file:
        file["embeddings"] = h5py.ExternalLink("b.h5", "/embeddings")
    with pytest.raises(UsageError, match="It holds:\n  nothing"):
        imported(home, home / "c.h5", by_row_order=True)
    with h5py.File(home / "d.h5", "w") as file:
        file["deep/er/table"], file["keys"] = (
            EMB,
            [key.encode("latin-1") for key in [*KEYS[:-1], "ü"]],
        )
    with pytest.raises(DataQualityError, match=r"is not UTF-8|cannot be read"):
        imported(home, home / "d.h5")
    assert (
        imported(home, home / "d.h5", by_row_order=True).attributes["provenance"]["array"]
        == "deep/er/table"
    )


def test_a_file_makes_a_data_set(tmp_path: Path, capsys) -> None:
    label = ["", *["a", "b"] * 24, "b"]
    split = ["unlabelled", *["train", "val", "Test"] * 16, "validation"]
    first = imported(
        tmp_path,
        write(
            tmp_path / "one.npz",
            embeddings=EMB,
            labels=label,
            split=split,
            ids=np.arange(100, 100 + N),
        ),
        data="",
    )
    found = items.read_items(first.folder.parent)
    assert (found.name, found.adapter, found.classes) == (
        "one",
        "imported",
        ["a", "b"],
    ) and found.keys[0] == "100"
    assert (
        found.label.tolist() == [-1, *[0, 1] * 24, 1]
        and found.split[1:4] == ["train", "val", "test"]
        and found.split[-1] == "val"
    )
    assert sources.read_source(first.folder.parent) == str(tmp_path / "one.npz")
    assert (
        "data set 'one': 50 items, 2 classes, 49 labelled. Further views of the same rows, and "
        "training: DATA=one" in capsys.readouterr().out
    )
    again = write(
        tmp_path / "two.npz", embeddings=-EMB[::-1], keys=found.keys[::-1], y=np.zeros(N, int)
    )
    second = imported(tmp_path, again, "second", "one")
    assert (
        second.folder.parent == first.folder.parent
        and rows(second).tobytes() == (-EMB).astype(np.float16).tobytes()
    )
    assert (
        "labels and splits are those of 'one'; the file's own are not used"
        in capsys.readouterr().out
    )
    assert items.read_items(first.folder.parent).label.tolist() == found.label.tolist()
    other = imported(
        tmp_path, again, data="", name="else"
    )  # the same keys, but no matter: another data set
    assert (
        lookup.find_dataset(tmp_path / "cache", "else")
        == other.folder.parent
        != first.folder.parent
    )


def test_words_for_no_label_and_numbers_of_other_programs_mean_the_same_in_an_import(
    tmp_path: Path, capsys
) -> None:
    for number, (y, as_class, classes) in enumerate(
        (
            (["cat", "dog", "Unlabeled", "#N/A"] * 3, "", ["cat", "dog"]),
            (["cat", "dog", "unknown", ""] * 3, "unknown", ["cat", "dog", "unknown"]),
            (["1.0", "2.0", "nan", "10.0"] * 3, "", ["1", "2", "10"]),
        )
    ):
        path = write(tmp_path / f"y{number}.npz", embeddings=EMB[:12], y=np.array(y))
        settings = ImportConfig(
            view="v", source=str(path), cache=str(tmp_path / "cache"), as_class=as_class
        )
        folder = import_view(settings).folder.parent
        found = items.read_items(folder)
        assert found.classes == classes
        assert (found.label < 0).sum() == 12 - 3 * len(classes)
        assert f"y{number}: 12 images, {len(classes)} classes" in capsys.readouterr().out
        again = dataclasses.replace(settings, view="w", as_class=None)  # as the last time
        assert items.read_items(import_view(again).folder.parent).classes == classes
    with pytest.raises(UsageError, match="--as-class cat: this word is a class anyway"):
        import_view(dataclasses.replace(settings, as_class="cat"))


def test_two_files_of_one_name_are_not_one_data_set(tmp_path: Path) -> None:
    imported(tmp_path, write(tmp_path / "a" / "emb.npz", X=EMB, y=np.arange(N) % 2), data="")
    other = write(tmp_path / "b" / "emb.npz", X=EMB, y=np.arange(N) % 3)
    same = write(
        tmp_path / "b" / "same" / "emb.npz", X=-EMB, y=np.arange(N) % 2
    )  # nor because their labels agree
    less = write(tmp_path / "b" / "less" / "emb.npz", X=EMB[:9], y=np.arange(9) % 2)
    for gone in (False, True):  # nor when the first is gone
        for second in (other, same, less):
            with pytest.raises(
                StaleError,
                match=r"the data set 'emb' in .* was made of .*a/emb.npz, not of .*/b/.*emb.npz; "
                r"without an array of keys nothing "
                r"says that their rows are the same. For one more view of the same rows: make "
                r"import VIEW=… FROM=… DATA=emb "
                r"ARGS='--by-row-order'. For another data set: ARGS='--name …'",
            ):
                imported(tmp_path, second, "second", data="")
        if not gone:
            again = write(
                tmp_path / "a" / "emb.npz", X=-EMB, y=np.arange(N) % 2
            )  # the very same path is the same data set
            assert (
                len(store.view_folders(imported(tmp_path, again, "again", data="").folder.parent))
                == 2
            )
            again.unlink()
    assert (
        len(
            store.view_folders(
                imported(tmp_path, same, "second", data="emb", by_row_order=True).folder.parent
            )
        )
        == 3
    )
    assert (
        len(
            items.read_items(
                imported(tmp_path, other, "second", data="", name="three").folder.parent
            ).classes
        )
        == 3
    )
    with pytest.raises(
        StaleError,
        match=r"the data set 'three' in .* was made of .*b/emb.npz, not of .*pictures. To import "
        r"for it: DATA=three without --name",
    ):
        (tmp_path / "pictures").mkdir()
        imported(tmp_path, other, "x", data=str(tmp_path / "pictures"), name="three")


def test_two_keyed_files_of_one_name_are_one_data_set_if_their_labels_agree(tmp_path: Path) -> None:
    one, two, three = (
        write(tmp_path / name / "emb.npz", X=EMB, keys=KEYS, y=np.arange(N) % classes)
        for name, classes in (("a", 2), ("b", 2), ("c", 3))
    )
    assert (
        imported(tmp_path, one, data="").folder.parent
        == imported(tmp_path, two, "second", data="").folder.parent
    )
    with pytest.raises(
        StaleError,
        match=r"was made of .*a/emb.npz, not of .*c/emb.npz, with other labels. For one more .* "
        r"DATA=emb. For another data set",
    ):
        imported(tmp_path, three, "third", data="")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.full(N, -2)}, "row 0 has the label -2; labels are 0 to C - 1, or -1 for unknown"),
        ({"y": np.arange(N), "classes": ["a", "b"]}, "row 2 has the label 2; labels are 0 to 1"),
        (
            {"y": np.arange(N) % 3, "classes": ["a", "b", "a"]},
            "the array 'classes' has the name 'a' more than once; give each class a name of its "
            "own",
        ),
        (
            {"y": np.arange(N) % 3, "classes": ["a", "", "b"]},
            "the array 'classes' has an empty name; .*unknown is the label -1",
        ),
        ({"y": np.zeros(N)}, "the array 'y' has the dtype float64, expected strings or integers"),
        ({"labels": np.zeros((N, 2), int)}, r"the array 'labels' has the shape \(50, 2\)"),
        (
            {"y": np.zeros(N, int), "split": ["trian"] * N},
            "row 0 has the split 'trian'; did you mean 'train'",
        ),
    ],
)
def test_labels_and_splits_are_checked(tmp_path: Path, arrays: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        imported(tmp_path, write(tmp_path / "a.npz", X=EMB, **arrays), data="")
    assert not (tmp_path / "cache").exists()


def test_data_that_the_cache_does_not_know_is_hashed_first(tmp_path: Path) -> None:
    for key in KEYS[:4]:
        (tmp_path / "photos" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / key).write_bytes(key.encode())
    source = write(tmp_path / "a.npz", embeddings=EMB[:4], keys=KEYS[:4])
    view = imported(tmp_path, source, data=str(tmp_path / "photos"))
    found = items.read_items(view.folder.parent)
    assert (found.name, found.adapter, found.keys, found.classes) == (
        "photos",
        "folder",
        sorted(KEYS[:4]),
        ["cat", "dog"],
    )
    with pytest.raises(UsageError, match=r"no dataset 'pohtos' .*did you mean 'photos'"):
        imported(tmp_path, source, data=str(tmp_path / "pohtos"))


@pytest.mark.parametrize(
    "point",
    ["embeddings.half", "commit.rename", "complete.rename", "metadata.rename", "staging.allocate"],
)
def test_a_killed_import_goes_on(tmp_path: Path, command: Callable, point: str) -> None:
    source = write(tmp_path / "one.npz", X=EMB, y=np.arange(N) % 2)
    whole = imported(tmp_path / "whole", source, data="")
    arguments = [
        "import",
        "--view",
        "mine",
        "--source",
        source,
        "--cache",
        tmp_path / "cache",
        "--shard-rows",
        ROWS,
    ]
    number = 2 if point.startswith(("embeddings", "commit", "metadata")) else 1
    assert command(*arguments, env={"COVIEW_FAULT": f"kill:{number}:{point}"}).returncode == -9
    committed = {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("commits/0*.json")}
    assert len(committed) == {"embeddings.half": 1, "commit.rename": 1, "complete.rename": 4}.get(
        point, 0
    )
    again = imported(tmp_path, source, data="")
    assert (
        integrity.root(again) == integrity.root(whole)
        and rows(again).tobytes() == EMB.astype(np.float16).tobytes()
    )
    assert all(path.stat().st_ino == inode for path, inode in committed.items()) and not list(
        (tmp_path / "cache").rglob(".*.tmp")
    )


def test_a_full_disk_is_a_typed_error(tmp_path: Path, monkeypatch) -> None:
    source = write(tmp_path / "one.npz", X=EMB, y=np.arange(N) % 2)
    for point in ("staging.allocate", "embeddings.fsync", "commit.open"):
        monkeypatch.setenv("COVIEW_FAULT", f"ENOSPC:1:{point}")
        monkeypatch.setattr(durable, "_passed", 0)
        with pytest.raises(
            StorageError, match=r"cannot write .*No space left|cannot write .*injected ENOSPC"
        ):
            imported(tmp_path, source, data="")
    monkeypatch.delenv("COVIEW_FAULT")
    assert imported(tmp_path, source, data="").is_complete


def test_an_imported_data_set_is_trained_on(made, tmp_path: Path, command: Callable) -> None:
    """Two matrices with labels and splits; the probes must learn: chance is 10 %."""
    keys, names = (
        np.array(made.items.keys),
        [made.items.classes[label] for label in made.items.label],
    )
    one = write(
        tmp_path / "nums.npz", X=made.emb["pixels"], keys=keys, labels=names, split=made.items.split
    )
    two = write(tmp_path / "edges.h5", embeddings=made.emb["edges"][::-1], keys=keys[::-1])
    cache = ["--cache", tmp_path / "cache"]
    for arguments in (
        ["--view", "pixels", "--source", one],
        ["--view", "clip", "--source", two, "--data", "nums"],
    ):
        done = command("import", *arguments, *cache)
        assert done.returncode == 0, done.stderr
    trained = command(
        "train",
        "--views",
        "pixels,clip",
        "--data",
        "nums",
        *cache,
        "--labels",
        5,
        "--method",
        "supervised",
        "--seeds",
        0,
        "--warmup",
        60,
        "--cotrain",
        60,
        "--runs",
        tmp_path / "runs",
        "--run",
        "r",
    )
    assert trained.returncode == 0, trained.stderr
    summary = json.loads((tmp_path / "runs" / "r" / "summary.json").read_text())
    assert (
        "selected on 355 labelled validation images, tested once on 355" in trained.stdout
        and summary
    )
    assert (
        max(
            float(line.split()[2])
            for line in trained.stdout.splitlines()
            if line.startswith(("pixels,", "clip,"))
        )
        > 50
    )
    stale = command(
        "import",
        "--view",
        "clip",
        "--source",
        write(tmp_path / "z.npz", X=made.emb["edges"], keys=keys[::-1]),
        "--data",
        "nums",
        *cache,
    )
    assert (
        stale.returncode == 6
        and "error: the view 'clip'" in stale.stderr
        and "Traceback" not in stale.stderr
    )


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("n", [N, 3 * ROWS, 3 * ROWS - 1])
def test_out_and_in_again_gives_the_same_bytes(tmp_path: Path, suffix: str, n: int) -> None:
    emb = EMB.copy()
    emb[5, 0] = np.nan
    keys = [f"ü {key}" for key in KEYS[:n]]
    split = ["train", "val"] * (n // 2) + ["test"] * (n % 2)
    source = write(
        tmp_path / "one.npz",
        X=emb[:n],
        keys=keys,
        y=np.arange(n) % 3 - 1,
        classes=["x", "y"],
        split=split,
    )
    first = imported(tmp_path, source, data="")

    assert (integrity.check(first) == STATUS.index("non-finite")).sum() == 1
    target = tmp_path / f"out{suffix}"
    assert (
        export_view(ExportConfig("mine", "", str(target), str(tmp_path / "cache"))) == target
        and os.listdir(tmp_path).count(f".{target.name}.tmp") == 0
    )
    second = imported(tmp_path, target, "second", "one", shard_rows=9)
    assert (
        rows(second).tobytes() == rows(first).tobytes()
        and (integrity.check(second) == integrity.check(first)).all()
    )
    third = imported(tmp_path, target, "third", data="")  # with its labels and splits
    a, b = (items.read_items(view.folder.parent) for view in (first, third))
    assert (b.name, b.keys, b.label.tolist(), b.classes, b.split) == (
        "out",
        a.keys,
        a.label.tolist(),
        a.classes,
        a.split,
    )
    assert rows(third).tobytes() == rows(first).tobytes()
    by_folder = imported(
        tmp_path, first.folder, "fourth", "one"
    )  # a view of a cache is a source itself: its keys lie above it
    assert (
        rows(by_folder).tobytes() == rows(first).tobytes()
        and (integrity.check(by_folder) == integrity.check(first)).all()
    )
    fields = json.loads(
        str(
            (
                np.load(target)["attributes"]
                if suffix == ".npz"
                else h5py.File(target)["attributes"].asstr()
            )[()]
        )
    )
    assert (
        fields["root"] == integrity.root(first)
        and fields["spec"] == first.attributes["spec"]
        and fields["provenance"]["imported"] == "one.npz"
    )


def test_a_view_has_the_keys_of_its_own_images(home: Path) -> None:
    view = imported(
        home,
        write(
            home / "a.npz", embeddings=np.where(np.arange(N)[:, None] == 0, np.nan, EMB), keys=KEYS
        ),
    )  # its first row is not finite
    other = imported(
        home, write(home / "b.npz", X=EMB, keys=KEYS[::-1], y=np.arange(N) % 2), data=""
    ).folder.parent
    foreign = shutil.copytree(view.folder, other / view.folder.name)
    for settings in ({}, {"data": "b"}, {"by_row_order": True}):
        with pytest.raises(StaleError, match=r"was made of other images than .*b-.*/items.parquet"):
            imported(home, foreign, "copy", **settings)
    zarr.open_group(view.folder, mode="r+").create_array("extra", data=EMB[:9])
    with pytest.raises(
        UsageError, match="has 50 keys for 9 rows of embeddings, expected one for each row"
    ):
        imported(home, view.folder, "copy", array="extra")
    nine = imported(
        home, write(home / "nine.npz", X=EMB[:9], y=np.arange(9) % 2), data=""
    ).folder.parent
    assert (
        rows(
            imported(home, view.folder, "copy", "nine", array="extra", by_row_order=True)
        ).tobytes()
        == EMB[:9].astype(np.float16).tobytes()
    )
    assert len(store.view_folders(nine)) == 2


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("name", ["items.parquet", "dataset.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_item_list_is_mended_by_the_same_import(
    tmp_path: Path, name: str, how: str, keyed: bool, capsys
) -> None:
    arrays = {"X": EMB, "y": np.arange(N) % 2, **({"keys": KEYS} if keyed else {})}
    one, two = (
        write(tmp_path / "a" / "one.npz", **arrays),
        write(tmp_path / "b" / "one.npz", **arrays),
    )
    view = imported(tmp_path, one, data="")
    imported(
        tmp_path, write(tmp_path / "c.npy", embeddings=-EMB), "second", "one", by_row_order=True
    )
    file, before = view.folder.parent / name, contents(view.folder.parent)
    damage(file, how)
    for settings in ({"data": view.folder.parent.name}, {"data": "one"}):
        with pytest.raises(CoviewError) as failed:
            imported(tmp_path, one, **settings, by_row_order=not keyed)
        assert isinstance(failed.value, IntegrityError) or (name, how) == ("dataset.json", "gone")
    with pytest.raises(
        StaleError,
        match=r"was made of .*a/one.npz, not of .*b/one.npz. Its item list is damaged, and the "
        r"import of the very file",
    ):
        imported(tmp_path, two, "third", data="")
    capsys.readouterr()
    assert (
        imported(tmp_path, one, data="") == view
        and "already in the cache, nothing to do" in capsys.readouterr().out
    )
    assert contents(view.folder.parent) == before and len(items.read_items(view.folder.parent)) == N


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the locks and what remembers files' stamps."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name not in NOTES
    }


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if how != "gone":
        path.write_bytes(data if how == "flip" else data[:-9])


@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
@pytest.mark.parametrize("unfinished", [False, True])
def test_damaged_shards_are_mended_by_the_same_import(
    home: Path, how: str, unfinished: bool, capsys, monkeypatch
) -> None:
    source = write(home / "a.npz", embeddings=EMB, keys=KEYS)
    view = imported(home, source)
    before = contents(view.folder)
    if unfinished:
        (view.folder / "complete.json").unlink()
        view.commit_file(0).unlink()
    damage(view.embeddings_file(1), how)
    damage(view.status_file(2), how)
    if not unfinished:
        damage(view.commit_file(3), how)
    with pytest.raises(CoviewError):
        integrity.check(view)
    inode = view.embeddings_file(0).stat().st_ino
    capsys.readouterr()
    assert (
        imported(home, source) == view
        and contents(view.folder) == before
        and not integrity.check(view).any()
    )
    said = capsys.readouterr().out
    assert (
        "mine: damaged, so written again: "
        + ("2 of 4 shards: 1, 2" if unfinished else "3 of 4 shards: 1, 2, 3")
    ) in said and "mine: finished: " in said
    assert unfinished or view.embeddings_file(0).stat().st_ino == inode
    damage(view.folder / "complete.json", how)
    assert imported(home, source) == view and contents(view.folder) == before
    monkeypatch.setattr("cache_specs.mend.problems", None)  # a hit searches for nothing
    assert (
        imported(home, source) == view
        and "already in the cache, nothing to do" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "point",
    ["embeddings.half", "embeddings.rename", "status.rename", "commit.rename", "complete.half"],
)
def test_a_killed_mending_goes_on(home: Path, command: Callable, point: str) -> None:
    source = write(home / "a.npz", embeddings=EMB, keys=KEYS)
    view = imported(home, source)
    before = contents(view.folder)
    for shard in (1, 2):
        damage(view.embeddings_file(shard), "flip")
    arguments = [
        "import",
        "--view",
        "mine",
        "--source",
        source,
        "--data",
        "pets",
        "--cache",
        home / "cache",
    ]
    assert command(*arguments, env={"COVIEW_FAULT": f"kill:1:{point}"}).returncode == -9
    assert view.is_complete
    if point != "complete.half":  # all shards are written by then
        with pytest.raises(IntegrityError):
            integrity.check(view)
    assert imported(home, source) == view and contents(view.folder) == before


def test_what_other_programs_read(home: Path) -> None:
    """numpy, h5py and pyarrow, told nothing of us."""
    import pyarrow.parquet as pq

    emb = EMB.copy()
    emb[7] = np.inf
    view = imported(home, write(home / "a.npz", embeddings=emb, keys=KEYS))
    want, listed, status = rows(view), items.read_items(view.folder.parent), integrity.check(view)
    for suffix in ("npz", "h5", "parquet"):
        export_view(ExportConfig("mine", "pets", str(home / f"out.{suffix}"), str(home / "cache")))
    npz = np.load(home / "out.npz", allow_pickle=False)
    assert (
        npz["embeddings"].tobytes() == want.tobytes()
        and npz["keys"].tolist() == listed.keys
        and npz["y"].tolist() == listed.label.tolist()
    )
    assert (
        npz["classes"].tolist() == listed.classes
        and npz["status"].tolist() == status.tolist()
        and npz["status_names"].tolist() == list(STATUS)
    )
    with h5py.File(home / "out.h5") as h5:
        assert (
            h5["embeddings"].dtype == np.float16 and h5["embeddings"][:].tobytes() == want.tobytes()
        )
        assert (
            h5["keys"].asstr()[:].tolist() == listed.keys
            and h5["split"].asstr()[:].tolist() == listed.split
        )
    table = pq.read_table(home / "out.parquet")
    assert table.column_names == [
        "row",
        "key",
        "label",
        "label_name",
        "split",
        "sha256",
        "status",
        "embedding",
    ]
    assert table["row"].to_pylist() == list(range(N))
    assert (
        table["embedding"]
        .combine_chunks()
        .flatten()
        .to_numpy(zero_copy_only=False)
        .astype(np.float16)
        .tobytes()
        == want.tobytes()
    )
    assert table["status"].to_pylist() == [STATUS[code] for code in status] and table[
        "label_name"
    ].to_pylist() == [key[:3] for key in listed.keys]
    assert json.loads(table.schema.metadata[b"coview"])["root"] == integrity.root(view)
    assert pq.ParquetFile(home / "out.parquet").num_row_groups == view.shards
    again = home / "again.npz"
    export_view(ExportConfig("mine", "", str(again), str(home / "cache")))
    assert again.read_bytes() == (home / "out.npz").read_bytes()


def test_export_refuses(home: Path, monkeypatch) -> None:
    view = imported(home, write(home / "a.npz", embeddings=EMB, keys=KEYS))
    imported(home, write(home / "b.npz", X=EMB, y=np.arange(N) % 2), data="")
    target = home / "out.npz"
    target.write_text("old")
    for settings, message in (
        ({"to": ""}, "TO is missing. Type: make export VIEW=mine DATA=… TO=embeddings.h5"),
        ({"view": ""}, "VIEW is missing"),
        (
            {"to": str(home / "x.csv")},
            r"unknown format '.csv'; TO may end in .npz, .h5 \(or .hdf5\), or .parquet",
        ),
        ({"to": str(home / "no" / "x.npz")}, "/no is no folder"),
        ({"to": str(target)}, "is there already; to replace it: ARGS='--force'"),
        (
            {"data": ""},
            "2 views are meant, make export takes one. Type one of:\n"
            f"  make export VIEW=mine DATA=b-.{{8}} CACHE={home}/cache TO=.*x.h5\n  make export "
            f"VIEW=mine DATA=pets-",
        ),
        ({"to": str(home / "x.h5"), "view": "mien"}, "no view 'mien' in .*did you mean 'mine'"),
    ):
        with pytest.raises(UsageError, match=message):
            export_view(
                ExportConfig(
                    **{
                        "view": "mine",
                        "data": "pets",
                        "to": str(home / "x.h5"),
                        "cache": str(home / "cache"),
                        **settings,
                    }
                )
            )
    monkeypatch.setenv("COVIEW_FAULT", "ENOSPC:1:export.fsync")
    monkeypatch.setattr(durable, "_passed", 0)
    with pytest.raises(
        StorageError, match=r"cannot write .*Make room, or name another place: TO=…"
    ):
        export_view(ExportConfig("mine", "pets", str(target), str(home / "cache"), True))
    assert target.read_text() == "old" and not (home / ".out.npz.tmp").exists()
    monkeypatch.delenv("COVIEW_FAULT")
    export_view(ExportConfig("mine", "pets", str(target), str(home / "cache"), True))
    assert np.load(target)["embeddings"].shape == (N, D)
    data = bytearray(view.embeddings_file(1).read_bytes())
    data[5] ^= 1
    view.embeddings_file(1).write_bytes(data)
    for refused in (
        lambda: export_view(ExportConfig("mine", "pets", str(home / "x.h5"), str(home / "cache"))),
        lambda: imported(home, view.folder, "copy"),
    ):
        with pytest.raises(IntegrityError, match=r"shard 1 .*has changed since it was written"):
            refused()
    assert not (home / "x.h5").exists()


def test_which_views_are_meant(home: Path) -> None:
    cache = home / "cache"
    with pytest.raises(UsageError, match=r"there is no cache .*nothing-here; name it with CACHE=…"):
        lookup.find_views(home / "nothing-here")
    with pytest.raises(
        UsageError, match=r"no view in .*cache. Make one: make extract VIEW=clip DATA=…"
    ):
        lookup.find_views(cache)
    a, b = (
        imported(home, write(home / "a.npz", embeddings=EMB * sign, keys=KEYS), name).folder
        for sign, name in ((1, "a"), (-1, "b"))
    )
    c = imported(home, write(home / "more.npz", X=EMB, y=np.arange(N) % 2), "a", data="").folder
    assert (
        lookup.find_views(cache) == [c, a, b]
        and lookup.find_views(cache, "a") == [c, a]
        and lookup.find_views(cache, "", "pets") == [a, b]
    )
    assert (
        lookup.find_views(cache, "path/to/b.toml") == [b] == lookup.find_views(cache, b.name)
        and lookup.one_view(cache, "a", "more", "verify") == c
    )
    twin = a.rename(a.with_name("b-" + "0" * 12))
    with pytest.raises(
        UsageError,
        match=f"2 views are meant, make verify takes one. Type one of:\n  make verify "
        f"VIEW={twin.name} DATA=pets-.* CACHE=.*\n"
        f"  make verify VIEW={b.name} DATA=pets-",
    ):
        lookup.one_view(cache, "b", "", "verify")
    assert lookup.one_view(cache, twin.name, "", "verify") == twin


def test_commands_answer_at_once(command: Callable) -> None:
    for module in ("import", "export"):
        failed = command(module, "--view", "a")
        assert (
            failed.returncode == 2
            and failed.stderr.startswith("error: ")
            and "Traceback" not in failed.stderr
        )


# --- embeddings of images that have changed meanwhile


@pytest.mark.parametrize("how", ["view", ".npz", ".h5"])
def test_a_view_of_other_images_is_not_imported(photos: Path, tmp_path: Path, how: str) -> None:
    made = extract(config(photos, tmp_path / "cache"))
    source = (
        made.folder
        if how == "view"
        else export_view(
            ExportConfig("tiny-clip", to=str(tmp_path / f"out{how}"), cache=str(tmp_path / "cache"))
        )
    )
    shutil.copytree(photos, tmp_path / "photos")
    old = ImportConfig(
        view="old", source=str(source), data=str(tmp_path / "photos"), cache=str(tmp_path / "other")
    )
    assert import_view(old).n == made.n  # the same images, elsewhere
    changed = next((tmp_path / "photos").rglob("006.png"))
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(
        StaleError,
        match=r"was made of other images: 1 of 45 have another content in 'photos', first "
        r"content of a/006.png. Embed the images",
    ):
        import_view(dataclasses.replace(old, cache=str(tmp_path / "third")))
    assert not (tmp_path / "third").exists() or not list((tmp_path / "third").glob("*-*"))


def test_an_import_for_images_that_cannot_be_read_is_refused(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for path in sorted((tmp_path / "photos").rglob("*.png"))[:3]:
        path.unlink()
        path.symlink_to("nowhere.png")
    keys = sorted(
        str(path.relative_to(tmp_path / "photos")) for path in (tmp_path / "photos").rglob("*.*")
    )
    source = write(tmp_path / "x.npz", embeddings=np.ones((len(keys), 3), np.float32), keys=keys)
    with pytest.raises(
        DataQualityError, match=r"3 images so far could not be embedded \(3 missing\)"
    ):
        import_view(
            ImportConfig(
                view="mine",
                source=str(source),
                data=str(tmp_path / "photos"),
                cache=str(tmp_path / "cache"),
            )
        )


@pytest.mark.parametrize("lost", ["embeddings/c/2/0", "y/c/1"])
def test_a_chunk_that_is_not_there_is_never_zeros(tmp_path: Path, lost: str) -> None:
    source = write(tmp_path / "x.zarr", embeddings=EMB, y=np.arange(N) % 3 + 1)
    (source / lost).unlink()
    with pytest.raises(
        DataQualityError,
        match=r"x.zarr/.*: 1 of 8 chunks are not there, and would be read as "
        r".*0.*ARGS='--fill-missing'",
    ):
        imported(tmp_path, source, data="")
    view = imported(tmp_path, source, data="", fill_missing=True)
    found = items.read_items(view.folder.parent)
    assert (
        found.classes[found.label[7]] == "0"
        if lost.startswith("y")
        else not rows(view)[14:21].any() and rows(view)[13].any()
    )


def test_minus_one_is_unknown_in_strings_too(tmp_path: Path) -> None:
    view = imported(
        tmp_path,
        write(tmp_path / "x.npz", embeddings=EMB, y=np.array(["a", "-1"] * (N // 2))),
        data="",
    )
    found = items.read_items(view.folder.parent)
    assert found.classes == ["a"] and (found.label[1::2] == -1).all()


def test_a_damaged_item_list_of_an_import_is_refused_by_repair_with_the_command_that_works(
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "x.zarr", embeddings=EMB, y=np.arange(N) % 3)
    view = imported(tmp_path, source, data="")
    assert (
        imported(
            tmp_path,
            write(
                tmp_path / "b" / "x.npz",
                embeddings=EMB,
                keys=[f"{row:02d}" for row in range(N)],
                y=np.arange(N) % 3,
            ),
            "two",
            data="",
        ).folder.parent
        == view.folder.parent
    )
    assert sources.read_source(view.folder.parent) == str(source)  # the first one stays
    with (view.folder.parent / "items.parquet").open("ab") as file:
        file.write(b"x")
    for act in (
        lambda: mend_view(RepairConfig(view="mine", cache=str(tmp_path / "cache"))),
        lambda: verify(VerifyConfig(cache=str(tmp_path / "cache"))),
    ):
        with pytest.raises(CoviewError, match=rf"make import VIEW=… FROM={source}") as caught:
            act()
        assert caught.value.exit_code == 5
    imported(tmp_path, source, data="")
    verify(VerifyConfig(cache=str(tmp_path / "cache")))
