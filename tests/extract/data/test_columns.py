"""Images inside tables: Parquet, what the Hugging Face hub has and what
`datasets` saves, and HDF5."""

import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from pictures import encoded, h5, listed, picture
from PIL import Image

from base.errors import UsageError
from extract.data import columns
from extract.data.datasets import build_items, open_dataset

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def features(**classes: list[str]) -> dict[bytes, bytes]:
    """The metadata that `datasets` writes into a Parquet or Arrow schema."""
    found = {
        "image": {"_type": "Image"},
        **{name: {"names": names, "_type": "ClassLabel"} for name, names in classes.items()},
    }
    return {b"huggingface": json.dumps({"info": {"features": found}}).encode()}


def of_hub(names: list[str | None], labels: list[int], **classes: list[str]) -> pa.Table:
    images = pa.array(
        [{"bytes": f"{i}{name}".encode(), "path": name} for i, name in enumerate(names)], IMAGE
    )
    return pa.table(
        {"image": images, "label": pa.array(labels, pa.int64())}
    ).replace_schema_metadata(features(**(classes or {"label": ["cat", "dog"]})))


def write(path: Path, table: pa.Table, **options: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return str(path)


def contents(data: str) -> list[bytes]:
    dataset = pickle.loads(pickle.dumps(open_dataset(data, Path())))
    return [dataset.read(i) for i in range(len(dataset.keys))]


# --- one table


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_table_of_bytes_with_labels_splits_and_keys(tmp_path, kind):
    table = pa.table(
        {
            "image": pa.array([b"x", b"y", b"z", None], kind),
            "label": ["cat", None, "dog", "dog"],
            "split": ["train", "unlabeled", "validation", ""],
            "id": [7, 5, 6, 8],
            "caption": ["", "", "", ""],
        }
    )
    data = write(tmp_path / "pets.parquet", table)
    assert listed(data) == [
        ("5", "", "unlabelled"),
        ("6", "dog", "val"),
        ("7", "cat", "train"),
        ("8", "dog", ""),
    ]
    dataset = open_dataset(data, Path())
    assert [dataset.read(i) for i in range(3)] == [b"y", b"z", b"x"] and build_items(
        dataset
    ).size.tolist() == [1, 1, 1, 0]
    with pytest.raises(OSError, match="no image"):
        dataset.read(3)


def test_keys_are_paths_where_these_tell_the_images_apart_else_row_numbers(tmp_path):
    assert listed(write(tmp_path / "a.parquet", of_hub(["b.jpg", "in/a.jpg"], [0, 1]))) == [
        ("b.jpg", "cat", ""),
        ("in/a.jpg", "dog", ""),
    ]
    for names in (["a.jpg", "a.jpg"], ["a.jpg", None], [None, None]):
        assert listed(write(tmp_path / "b.parquet", of_hub(names, [0, -1]))) == [
            ("00000000", "cat", ""),
            ("00000001", "", ""),
        ]
    assert [
        key
        for key, _, _ in listed(
            write(tmp_path / "c.parquet", of_hub(["/home/me/a.jpg", "../b.jpg"], [0, 1]))
        )
    ] == ["a.jpg", "b.jpg"]
    bare = pa.table({"image": [b"x"] * 3})
    assert listed(write(tmp_path / "d.parquet", bare)) == [(f"{i:08d}", "", "") for i in range(3)]


def test_real_images_are_read_from_their_row_group_in_any_order(tmp_path, monkeypatch):
    data = [encoded(picture(30 + i, 30)) for i in range(25)]
    path = write(
        tmp_path / "x.parquet", pa.table({"img": data, "label": range(25)}), row_group_size=4
    )
    dataset, groups, real = open_dataset(path, Path()), [], columns._read
    monkeypatch.setattr(
        columns,
        "_read",
        lambda path, names, group=None: groups.append(group) or real(path, names, group),
    )
    assert [dataset.read(i) for i in range(25)] == data and groups == list(
        range(7)
    )  # each group once, and never the whole file
    for i in np.random.default_rng(0).permutation(25):
        assert dataset.read(int(i)) == data[i]
    assert len(columns._GROUPS) <= columns.KEPT
    groups.clear()
    assert (
        build_items(open_dataset(path, Path())).size.tolist() == [len(image) for image in data]
        and len(groups) < 20
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pa.table({"image": [b"x"], "label": [[1]]}),
            r"row 0: the label \[1\], expected a whole number or a name",
        ),
        (of_hub(["a.jpg"], [2]), r"row 0: the label 2, expected 0 to 1"),
        (pa.table({"image": [b"x"], "split": ["trian"]}), r"split 'trian'; did you mean 'train'"),
        (pa.table({"image": [b"x", b"y"], "key": ["a", "a"]}), r"the key 'a' stands there twice"),
        (pa.table({"image": [b"x", b"y"], "key": ["a", None]}), r"the key of row 1 is empty"),
        (
            pa.table({"image": [b"x"], "a": [1], "b": [2]}).replace_schema_metadata(
                features(a=["u", "v"], b=["u", "v", "w"])
            ),
            r"several columns are labels: a, b",
        ),
        (pa.table({"image": pa.array([], pa.binary())}), r"no image in it"),
        (pa.table({"image": ["text"]}), r"found the columns \['image'\]; add it"),
    ],
)
def test_a_mistake_in_a_table_of_images_is_named(tmp_path, table, message):
    with pytest.raises(UsageError, match=message):
        open_dataset(write(tmp_path / "x.parquet", table), Path())


def test_a_table_of_one_large_row_group_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "LARGEST_GROUP", 1000)
    with pytest.raises(UsageError, match=r"row group 0 has 0\.0 GB, .*row_group_size=500"):
        open_dataset(write(tmp_path / "x.parquet", pa.table({"image": [bytes(999), b"x"]})), Path())


@pytest.mark.parametrize(
    "metadata",
    [
        b"{",
        b"[]",
        b'{"info": 3}',
        b'{"info": {"features": []}}',
        b'{"info": {"features": {"label": {"names": 3}}}}',
        b"[" * 100_000,
    ],
)
def test_metadata_that_is_not_that_of_datasets_is_no_metadata(tmp_path, metadata):
    table = pa.table({"image": [b"x"], "label": [1]}).replace_schema_metadata(
        {b"huggingface": metadata}
    )
    assert listed(write(tmp_path / "x.parquet", table)) == [("00000000", "1", "")]


def test_damage_is_an_unreadable_image_or_a_named_file(tmp_path):
    table = pa.table({"image": [bytes([i]) * 3000 for i in range(8)]})
    path = Path(
        write(
            tmp_path / "x.parquet",
            table,
            row_group_size=2,
            compression="none",
            use_dictionary=False,
        )
    )
    whole = path.read_bytes()
    dataset = open_dataset(str(path), Path())
    path.write_bytes(whole[:40] + bytes(200) + whole[240:])
    found = build_items(dataset)
    assert found.sha256[4:] == build_items(dataset).sha256[4:] and len(found) == 8
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"x\.parquet"):
        dataset.read(0)
    with pytest.raises(UsageError, match=r"x\.parquet cannot be read"):
        open_dataset(str(path), Path())


# --- the hub


def test_a_folder_of_the_hubs_layout(tmp_path, capsys):
    write(tmp_path / "data/train-00000-of-00002.parquet", of_hub(["a.jpg", "b.jpg"], [0, 1]))
    write(tmp_path / "data/train-00001-of-00002.parquet", of_hub(["c.jpg"], [1]))
    write(tmp_path / "data/validation-00000-of-00001.parquet", of_hub(["a.jpg"], [1]))
    write(tmp_path / "data/test-00000-of-00001.parquet", of_hub(["x.jpg", "y.jpg"], [-1, -1]))
    data = f"hf:{tmp_path}"
    assert listed(data) == [
        ("test/x.jpg", "", "unlabelled"),
        ("test/y.jpg", "", "unlabelled"),
        ("train/a.jpg", "cat", "train"),
        ("train/b.jpg", "dog", "train"),
        ("train/c.jpg", "dog", "train"),
        ("val/a.jpg", "dog", "val"),
    ]
    assert (
        "none of the 2 images of the split 'test' has a label; they are used unlabelled"
        in capsys.readouterr().out
    )
    assert sorted(contents(data)) == sorted(
        [b"0a.jpg", b"1b.jpg", b"0c.jpg", b"0a.jpg", b"0x.jpg", b"1y.jpg"]
    )
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(
        UsageError,
        match=r"1 of 2 files of data/train are not there, the first is data/train-00001-of-00002",
    ):
        open_dataset(data, Path())


def test_configurations_are_chosen_by_name(tmp_path, capsys):
    for config, label in (("small", 0), ("large", 1)):
        write(tmp_path / config / "train/0000.parquet", of_hub(["a.jpg"], [label]))
        write(tmp_path / config / "extra/0000.parquet", of_hub(["b.jpg"], [label]))
    with pytest.raises(
        UsageError,
        match=r"has several configurations; type one of: DATA=hf:.*@large, DATA=hf:.*@small",
    ):
        open_dataset(f"hf:{tmp_path}", Path())
    with pytest.raises(UsageError, match=r"no configuration 'lage'; did you mean 'large'"):
        open_dataset(f"hf:{tmp_path}@lage", Path())
    with pytest.raises(
        UsageError, match="'extra' is none of train, val, test and unlabelled"
    ):  # it may be what others test on
        open_dataset(f"hf:{tmp_path}@large", Path())
    shutil.rmtree(tmp_path / "large/extra")
    assert {label for _, label, _ in listed(f"hf:{tmp_path}@large")} == {"dog"}
    write(tmp_path / "large/train_small/0000.parquet", of_hub(["a.jpg"], [1]))
    with pytest.raises(UsageError, match="'train' and 'train_small' are both the split 'train'"):
        open_dataset(f"hf:{tmp_path}@large", Path())
    write(tmp_path / "default/train/0000.parquet", of_hub(["a.jpg"], [0]))
    assert (
        len(listed(f"hf:{tmp_path}")) == 1
        and "of the configurations default, large, small the one called default is taken"
        in capsys.readouterr().out
    )
    write(tmp_path / "large/partial-train/0000.parquet", of_hub(["a.jpg"], [0]))
    with pytest.raises(UsageError, match=r"the hub made Parquet of a part of this data set only"):
        open_dataset(f"hf:{tmp_path}@large", Path())


def saved(folder: Path, **splits: pa.Table) -> str:
    """What `save_to_disk` of a DatasetDict writes."""
    for split, table in splits.items():
        write(folder / split / "data-00000-of-00001.arrow", table)
        (folder / split / "state.json").write_text(
            json.dumps(
                {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
            )
        )
        (folder / split / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return f"hf:{folder}"


def test_what_save_to_disk_wrote(tmp_path):
    data = saved(
        tmp_path, train=of_hub(["a.jpg", "b.jpg", "c.jpg"], [0, 1, 1]), test=of_hub(["a.jpg"], [1])
    )
    assert listed(data) == [
        ("test/a.jpg", "dog", "test"),
        ("train/a.jpg", "cat", "train"),
        ("train/b.jpg", "dog", "train"),
        ("train/c.jpg", "dog", "train"),
    ]
    assert contents(data) == [b"0a.jpg", b"0a.jpg", b"1b.jpg", b"2c.jpg"]
    assert listed(f"hf:{tmp_path / 'train'}") == [
        ("a.jpg", "cat", ""),
        ("b.jpg", "dog", ""),
        ("c.jpg", "dog", ""),
    ]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "train/state.json",
            '{"_data_files": [{"filename": "../../secret.arrow"}]}',
            r"names the file '\.\./\.\./secret\.arrow', which is not there",
        ),
        (
            "train/state.json",
            '{"_indices_files": [{"filename": "x"}]}',
            r"a selection of rows by an index",
        ),
        ("train/state.json", "[", r"state\.json cannot be read"),
        (
            "dataset_dict.json",
            '{"splits": ["../train"]}',
            r"the split '\.\./train' is no name of a folder",
        ),
    ],
)
def test_a_saved_folder_names_nothing_outside_it(tmp_path, file, content, message):
    write(tmp_path / "secret.arrow", of_hub(["a.jpg"], [0]))
    data = saved(tmp_path / "s", train=of_hub(["a.jpg"], [0]))
    (tmp_path / "s" / file).write_text(content)
    with pytest.raises(UsageError, match=message):
        open_dataset(data, Path())


def test_damaged_arrow_files_do_not_end_the_process(tmp_path):
    """Offsets in an Arrow file are trusted by Arrow unless they are validated. In a process of its
    own, which must survive all of them."""
    path = Path(
        write(
            tmp_path / "s/train/data-00000-of-00001.arrow",
            of_hub(["a.jpg", "b.jpg", "c.jpg"], [0, 1, 1]),
        )
    )
    data = saved(tmp_path / "s", train=of_hub(["a.jpg", "b.jpg", "c.jpg"], [0, 1, 1]))
    code = f"""
import warnings
from pathlib import Path
from base.errors import UsageError
from extract.data.datasets import build_items, open_dataset
path, refused = Path({str(path)!r}), 0
whole = path.read_bytes()
for at in range(0, len(whole), 7):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5a]) + whole[at + 1:])
    try:
        build_items(open_dataset({data!r}, Path()))
    except UsageError:
        refused += 1
print("survived", refused)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0 and int(found.stdout.split()[-1]) > 5, found.stderr[-2000:]


def hub_cache(home: Path, revision: str, *files: tuple[str, pa.Table]) -> None:
    """The hub's local cache after a download."""
    commit = f"{len(revision):040x}"
    base = home / "datasets--owner--pets"
    (base / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (base / "refs" / revision).write_text(commit)
    for name, table in files:
        write(base / "snapshots" / commit / name, table)


def test_a_data_set_of_the_hub_is_read_offline_from_its_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UsageError,
        match=(
            r"no Parquet file of the data set owner/pets .*\n.*with a network: .*\n"
            r".*hf download --repo-type dataset owner/pets "
        ),
    ):
        open_dataset("hf:owner/pets", Path())
    hub_cache(
        tmp_path,
        "refs/convert/parquet",
        ("default/train/0000.parquet", of_hub(["a.jpg"], [0])),
        ("default/test/0000.parquet", of_hub(["a.jpg"], [1])),
    )
    assert listed("hf:owner/pets") == [
        ("test/a.jpg", "dog", "test"),
        ("train/a.jpg", "cat", "train"),
    ]
    hub_cache(tmp_path, "main", ("data/train-00000-of-00001.parquet", of_hub(["z.jpg"], [0])))
    assert listed("hf:owner/pets") == [("train/z.jpg", "cat", "train")]  # its own files come first
    assert open_dataset("hf:owner/pets", Path()).name == "pets" and contents("hf:owner/pets") == [
        b"0z.jpg"
    ]


def test_without_a_network_what_was_fetched_before_is_read(tmp_path, monkeypatch):
    import huggingface_hub as hf
    from huggingface_hub import constants

    def unreachable(self: object, *_: object, **__: object) -> list[str]:
        raise RuntimeError("connection refused")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hf.HfApi, "list_repo_files", unreachable)
    with pytest.raises(
        UsageError,
        match=(
            r"owner/pets of the Hugging Face hub is on this machine, "
            r"or could be fetched \(RuntimeError: connection refused; "
        ),
    ):
        open_dataset("hf:owner/pets", Path())
    hub_cache(
        tmp_path,
        "main",
        ("train-00000-of-00002.parquet", of_hub(["z.jpg"], [0])),
        ("train-00001-of-00002.parquet", of_hub(["y.jpg"], [1])),
    )
    assert listed("hf:owner/pets") == [
        ("train/y.jpg", "dog", "train"),
        ("train/z.jpg", "cat", "train"),
    ]
    next(tmp_path.rglob("train-00001*")).unlink()  # a download that was cut short
    with pytest.raises(UsageError, match=r"1 of 2 files of train are not there"):
        open_dataset("hf:owner/pets", Path())


def test_only_the_files_of_the_configuration_are_fetched(tmp_path, monkeypatch):
    import huggingface_hub as hf
    from huggingface_hub import constants

    for config in ("a", "b"):
        write(
            tmp_path / "there" / config / "train-00000-of-00001.parquet",
            of_hub([f"{config}.jpg"], [0]),
        )
    asked = []

    def snapshot(name: str, allow_patterns: list[str], **more: str) -> str:
        asked.append((name, more["revision"], allow_patterns))
        for pattern in allow_patterns:
            (tmp_path / "here" / pattern).parent.mkdir(parents=True)
            shutil.copy(tmp_path / "there" / pattern, tmp_path / "here" / pattern)
        return str(tmp_path / "here")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    there = [
        "README.md",
        "run.py",
        "a/train-00000-of-00001.parquet",
        "b/train-00000-of-00001.parquet",
    ]
    monkeypatch.setattr(hf.HfApi, "list_repo_files", lambda self, *_, **__: there)
    monkeypatch.setattr(hf, "snapshot_download", snapshot)
    assert listed("hf:owner/pets@b") == [("train/b.jpg", "cat", "train")]
    assert asked == [("owner/pets", "main", ["b/train-00000-of-00001.parquet"])]


def test_a_name_that_is_none_of_the_hub_is_refused():
    for data in ("hf:", "hf:a/b/c", "hf:./nowhere", "hf:/nowhere/x", "hf:a b"):
        with pytest.raises(
            UsageError,
            match=r"there is no such folder; name one that is there, or DATA=hf:OWNER/NAME",
        ):
            open_dataset(data, Path())


# --- HDF5


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 5, 3), (4, 6, 5, 1)])
def test_pixels_in_hdf5_are_lossless(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = h5(
        tmp_path / "x.h5",
        images=pixels,
        labels=[3, -1, 0, 3],
        splits=["train", "val", "unlabeled", "test"],
        keys=["d", "c", "b", "a"],
    )
    assert listed(data) == [
        ("a", "3", "test"),
        ("b", "", "unlabelled"),
        ("c", "", "unlabelled"),
        ("d", "3", "train"),
    ]
    dataset = pickle.loads(pickle.dumps(open_dataset(data, Path())))
    for row in range(4):
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(dataset.read(row)))), pixels[3 - row].squeeze()
        )
    assert build_items(dataset).size.all()


def test_encoded_images_in_hdf5_and_no_labels(tmp_path):
    images = [encoded(picture()), encoded(picture(), "JPEG")]
    data = h5(tmp_path / "x.hdf5", images=images)
    assert listed(data) == [("00000000", "", ""), ("00000001", "", "")] and contents(data) == images
    assert [
        label
        for _, label, _ in listed(
            h5(tmp_path / "y.h5", images=images, label=np.array(["cat", ""], object))
        )
    ] == ["cat", ""]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 3, 3), np.uint8)}, r"no array 'images'"),
        (
            {"images": np.zeros((2, 3, 3), np.float32)},
            r"'images' has the shape \(2, 3, 3\) and the type float32, expected",
        ),
        ({"images": np.zeros((2, 3, 3, 4), np.uint8)}, r"the shape \(2, 3, 3, 4\)"),
        (
            {"images": np.ones((2, 3, 3), np.uint8), "labels": [1]},
            r"'labels' has the shape \(1,\), expected \(2,\), one for each image",
        ),
        (
            {"images": np.ones((2, 3, 3), np.uint8), "splits": ["train", "trian"]},
            r"split 'trian'; did you mean 'train'",
        ),
        (
            {"images": np.ones((2, 3, 3), np.uint8), "keys": ["a", "a"]},
            r"the key 'a' stands there twice, in the rows 0 and 1 \(the first is 0\);",
        ),
    ],
)
def test_a_mistake_in_hdf5_is_named(tmp_path, arrays, message):
    with pytest.raises(UsageError, match=message):
        open_dataset(h5(tmp_path / "x.h5", **arrays), Path())


def test_hdf5_reads_nothing_outside_its_file_and_no_array_that_is_not_there(tmp_path):
    h5(tmp_path / "other.h5", images=np.ones((2, 3, 3), np.uint8))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["images"] = h5py.ExternalLink("other.h5", "images")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((2, 3, 3), np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", (2, 3, 3))
        file.create_virtual_dataset("images", layout)
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("images", (2, 3, 3), np.uint8, external=[("/etc/passwd", 0, 18)])
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("images", (10**9, 100, 100), np.uint8, chunks=(1, 100, 100))
    (tmp_path / "text.h5").write_text("no HDF5")
    for name, message in (
        ("link", "or its data lie in another"),
        ("virtual", "or its data lie in another"),
        ("external", "or its data lie in another"),
        ("huge", "only 0 bytes of it were ever written"),
        ("text", "cannot be read as HDF5"),
        ("gone", "there is no such file"),
    ):
        with pytest.raises(UsageError, match=message):
            open_dataset(str(tmp_path / f"{name}.h5"), Path())


def test_a_damaged_row_of_hdf5_is_an_unreadable_image(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "images",
            data=np.random.default_rng(0).integers(0, 256, (4, 50, 50), np.uint8),
            chunks=(1, 50, 50),
            fletcher32=True,
        )
        place = file["images"].id.get_chunk_info(2).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 5] ^= 1
    path.write_bytes(data)
    assert [bool(size) for size in build_items(open_dataset(str(path), Path())).size] == [
        True,
        True,
        False,
        True,
    ]


def test_labels_mean_the_same_in_every_form(tmp_path):
    """Also floats, which pandas writes as soon as one label is missing."""
    (tmp_path / "rows.csv").write_text(
        "path,label\n"
        + "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(("1", " cat", "", "-1", "-2")))
    )
    assert [label for _, label, _ in listed(str(tmp_path / "rows.csv"))] == ["1", "cat", "", "", ""]
    write(
        tmp_path / "rows.parquet",
        pa.table({"path": [f"{i}.jpg" for i in range(4)], "label": [0.0, 1.0, float("nan"), -2.0]}),
    )
    write(
        tmp_path / "bytes.parquet",
        pa.table({"image": [b"x"] * 4, "label": [0.0, 1.0, float("nan"), -2.0]}),
    )
    found = [
        h5(
            tmp_path / "x.h5",
            images=np.zeros((4, 6, 5), np.uint8) + 1,
            labels=[0.0, 1.0, float("nan"), -2.0],
        ),
        *map(str, tmp_path.glob("*.parquet")),
    ]
    assert all([label for _, label, _ in listed(data)] == ["0", "1", "", ""] for data in found)
    write(tmp_path / "half.parquet", pa.table({"path": ["a.jpg"], "label": [0.5]}))
    with pytest.raises(
        UsageError, match=r"half.parquet, row 2: the label 0.5, expected a whole number or a name"
    ):
        listed(str(tmp_path / "half.parquet"))


def test_files_that_disagree_about_names_or_keys_are_refused(tmp_path):
    write(tmp_path / "train-0.parquet", of_hub(["a.jpg"], [0]))
    write(tmp_path / "test-0.parquet", pa.table({"image": [b"x"], "label": [0]}))
    with pytest.raises(
        UsageError, match="has other columns of labels or keys, or other names of classes, than"
    ):
        listed(f"hf:{tmp_path}")


def test_words_that_mean_no_label_do_so_in_every_form(tmp_path):
    """Also as the name of a class in the metadata of `datasets`."""
    words = ["cat", "Unlabeled", "n/a", "dog"]
    write(tmp_path / "bytes.parquet", pa.table({"image": [b"x"] * 4, "label": words}))
    numbered = pa.table({"image": [b"x"] * 4, "label": [0, 1, 2, 3]})
    numbered = numbered.replace_schema_metadata(features(label=words))
    write(tmp_path / "numbered.parquet", numbered)
    images = np.zeros((4, 6, 5), np.uint8) + 1
    found = [
        h5(tmp_path / "x.h5", images=images, labels=words),
        *map(str, tmp_path.glob("*.parquet")),
    ]
    for data in found:
        assert [label for _, label, _ in listed(data)] == ["cat", "", "", "dog"], data
        dataset = open_dataset(data, Path(), as_class=["N/A"])
        assert list(dataset.labels) == ["cat", "", "n/a", "dog"]
        assert dataset.hidden == {"Unlabeled": 1}
    as_text = h5(tmp_path / "text.h5", images=images, labels=["1.0", "2.0", "", "0.0"])
    assert [label for _, label, _ in listed(as_text)] == ["1", "2", "", "0"]
