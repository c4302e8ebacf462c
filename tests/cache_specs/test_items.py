"""The item list: one order, one fingerprint of the images alone, and no damage that goes unseen."""

import dataclasses
import hashlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from killing import Killed, killing

from base import durable
from base.errors import CoviewError, IntegrityError, StaleError, UsageError
from cache_specs.items import Items, class_index, read_items
from cache_specs.lookup import find_dataset
from cache_specs.sources import dataset_name, read_source, source_path
from cache_specs.succession import write_items
from cache_specs.versions import current, is_older, tops, version_of
from extract.data.datasets import build_items, open_dataset
from upkeep.status import status_text as status

KEYS = [
    "A.jpg",
    "Z/1.jpg",
    "a.jpg",
    "a/10.jpg",
    "a/2.jpg",
    "ä.jpg",
]  # byte order: capitals first, / after ., ä last


def make(
    keys: list[str] = KEYS,
    name: str = "d",
    labels: str = "xyxy x".replace(" ", "?"),
    **changes: object,
) -> Items:
    label, classes = class_index([letter.strip("?") for letter in labels[: len(keys)]])
    items = Items(
        name,
        "folder",
        keys,
        label,
        ["train"] * len(keys),
        np.arange(len(keys)),
        [hashlib.sha256(key.encode()).hexdigest() for key in keys],
        classes,
    )
    return dataclasses.replace(items, **changes)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def photos(folder: Path) -> Path:
    for key in KEYS:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(f"content of {key}".encode())
    return folder


def test_the_keys_stand_in_byte_order_wherever_the_folder_lies_and_however_it_was_filled(tmp_path):
    one = build_items(open_dataset(str(photos(tmp_path / "one" / "d")), Path()))
    shutil.copytree(tmp_path / "one" / "d", tmp_path / "two" / "deep" / "d")
    two = build_items(open_dataset(str(tmp_path / "two" / "deep" / "d") + "/", Path()))
    assert one.keys == two.keys == KEYS == sorted(KEYS, key=str.encode)
    assert (
        one.fingerprint == two.fingerprint
        and one.folder_name == two.folder_name == f"d-{one.fingerprint[:8]}"
    )
    assert one.sha256 == [hashlib.sha256(f"content of {key}".encode()).hexdigest() for key in KEYS]


def test_the_fingerprint_covers_keys_and_contents_and_nothing_else():
    items = make()
    assert (
        items.fingerprint
        == make(
            labels="yyyyyy",
            split=["test"] * 6,
            adapter="table",
            name="other",
            size=np.zeros(6, np.int64),
        ).fingerprint
    )
    others = [
        make(KEYS[:-1]),
        make(["B.jpg", *KEYS[1:]], sha256=items.sha256),
        make(sha256=items.sha256[1:] + items.sha256[:1]),
    ]
    assert len({items.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_writing_twice_gives_the_same_bytes_and_reads_back(tmp_path):
    one, two = write_items(tmp_path / "one", make()), write_items(tmp_path / "two", make())
    assert files(one) == files(two) and set(files(one)) == {"items.parquet", "dataset.json"}
    stamps = [path.stat().st_mtime_ns for path in sorted(one.iterdir())]
    assert write_items(tmp_path / "one", make()) == one and stamps == [
        path.stat().st_mtime_ns for path in sorted(one.iterdir())
    ]
    items = read_items(one)
    for field in dataclasses.fields(Items):
        np.testing.assert_array_equal(getattr(items, field.name), getattr(make(), field.name))


def test_a_parquet_reader_sees_the_seven_columns(tmp_path):
    import pyarrow.parquet as pq

    table = pq.read_table(write_items(tmp_path, make()) / "items.parquet")
    assert table.column_names == ["row", "key", "label", "label_name", "split", "bytes", "sha256"]
    assert table["label_name"].to_pylist() == ["x", "y", "x", "y", "", "x"] and table[
        "label"
    ].to_pylist() == [0, 1, 0, 1, -1, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            make(sha256=[*make().sha256[:3], "f" * 64, *make().sha256[4:]]),
            r"the contents of 1 are gone or have changed, first a/10\.jpg \(row 3\)",
        ),
        (
            make(["b.jpg", *KEYS[3:]]),
            r"\(6 -> 4 items\): the contents of 3 are gone or have changed, first A\.jpg \(row 0\)",
        ),
        (
            make(KEYS[:-1]),
            r"\(6 -> 5 items\): the contents of 1 are gone or have changed, first ä\.jpg \(row 5\)",
        ),
    ],
    ids=["content", "others", "one less"],
)
def test_contents_that_are_gone_are_refused_unless_on_purpose(tmp_path, changed, message, capsys):
    folder = write_items(tmp_path, make())
    before = files(folder)
    with pytest.raises(StaleError, match=message) as caught:
        write_items(tmp_path, changed)
    assert "ARGS='--name d-2'" in str(caught.value) and str(caught.value).endswith(
        "\n  make extract VIEW=… DATA=… ARGS=--changed"
    )
    assert list(tmp_path.glob("[!.]*")) == [folder] and files(folder) == before
    write_items(tmp_path, dataclasses.replace(changed, name="d-2"))
    assert find_dataset(tmp_path, "d") == folder
    new = write_items(tmp_path, changed, changed=True)
    assert (
        find_dataset(tmp_path, "d") == new != folder
        and files(folder) == before
        and "gone" in capsys.readouterr().out
    )


RENAMED = make(["b.jpg" if key == "a.jpg" else key for key in KEYS], sha256=make().sha256)
MORE = make([*KEYS, "ö.jpg"], labels="xyxy?xx")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            RENAMED,
            "d: the images have changed: 1 moved or renamed; 6 of 6 are known by their content",
        ),
        (MORE, "d: the images have changed: 1 new; 6 of 7 are known by their content"),
        (
            make(
                ["A.jpg", "Z/1.jpg", "b/a.jpg", *KEYS[3:]],
                sha256=make().sha256,
                labels="xyyy?y",
                split=["train"] * 5 + ["test"],
            ),
            (
                "d: the images have changed: 1 moved or renamed, 2 with another label or "
                "split; 6 of 6 are known by their content"
            ),
        ),
    ],
    ids=["renamed", "added", "labelled"],
)
def test_images_that_are_all_there_make_a_version_and_the_older_one_stays(
    tmp_path, changed, line, capsys
):
    folder = write_items(tmp_path, make())
    before = files(folder)
    new = write_items(tmp_path, changed)
    assert capsys.readouterr().out == (
        f"{line}. {new.name} is the current version now, "
        f"{folder.name} stays for what was trained on it\n"
    )
    assert (
        files(folder) == before
        and find_dataset(tmp_path, "d") == new
        and find_dataset(tmp_path, folder.name) == folder
    )
    assert (
        (version_of(folder), version_of(new)) == (0, 1) and is_older(folder) and not is_older(new)
    )
    stamps = files(new)
    assert (
        write_items(tmp_path, changed) == new
        and files(new) == stamps
        and not capsys.readouterr().out
    )


def test_a_copy_that_is_deleted_takes_no_content_away(tmp_path, capsys):
    write_items(tmp_path, make(sha256=["c" * 64, *make().sha256[1:5], "c" * 64]))
    write_items(tmp_path, make(KEYS[:-1], sha256=["c" * 64, *make().sha256[1:5]]))
    assert "1 copies fewer; 5 of 5 are known" in capsys.readouterr().out


def test_an_earlier_state_becomes_the_current_version_again(tmp_path):
    folder = write_items(tmp_path, make())
    table = (folder / "items.parquet").read_bytes()
    write_items(tmp_path, RENAMED)
    more = write_items(tmp_path, MORE)
    assert version_of(more) == 2
    with pytest.raises(
        StaleError, match="the contents of 1 are gone"
    ):  # a folder that is not mounted any more looks just like that
        write_items(tmp_path, make())
    assert (
        write_items(tmp_path, make(), changed=True) == folder == find_dataset(tmp_path, "d")
        and version_of(folder) == 3
    )
    assert (folder / "items.parquet").read_bytes() == table and read_items(folder).keys == KEYS


def test_the_images_of_another_place_are_another_data_set(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "d").mkdir(parents=True)
    cache, one, two = tmp_path / "cache", str(tmp_path / "one" / "d"), str(tmp_path / "two" / "d")
    folder = write_items(cache, make(), one)
    with pytest.raises(
        StaleError,
        match=rf"those in {folder} are of {one}, these of {two}\. To keep both, .*--name d-2",
    ):
        write_items(cache, MORE, two, changed=True)
    (tmp_path / "one" / "d").rmdir()  # it was moved, and added to
    new = write_items(cache, MORE, two)
    assert (
        read_source(folder) == read_source(new) == two
        and find_dataset(cache, two) == find_dataset(cache, "d") == new
    )


def test_a_renamed_folder_goes_on_under_its_old_name_also_when_it_changes(tmp_path):
    cache, old, new = tmp_path / "cache", tmp_path / "old", tmp_path / "new"
    folder = write_items(cache, make(name="old"), str(old))
    new.mkdir()
    write_items(cache, make(name="new"), str(new))
    with pytest.raises(StaleError, match="the contents of 1 are gone"):
        write_items(cache, make(KEYS[:-1], name="new"), str(new))
    more = write_items(cache, dataclasses.replace(MORE, name="new"), str(new))
    assert (
        more.name.startswith("old-")
        and find_dataset(cache, str(new)) == more
        and read_source(folder) == str(new)
    )


@pytest.mark.parametrize(
    "adapters", [("imported", "imported"), ("folder", "imported"), ("imported", "folder")]
)
def test_an_imported_data_set_has_no_versions(tmp_path, adapters):
    write_items(tmp_path, make(adapter=adapters[0]))
    with pytest.raises(
        StaleError, match=r"To keep both, .*--name d-2'.*To forget the old ones, delete"
    ):
        write_items(tmp_path, dataclasses.replace(MORE, adapter=adapters[1]), changed=True)


@pytest.mark.parametrize("place", range(1, 40))
def test_killed_while_a_version_is_written_the_next_start_ends_with_the_same_files(tmp_path, place):
    def all_files() -> dict[str, bytes]:
        return {
            str(path.relative_to(tmp_path)): path.read_bytes()
            for path in tmp_path.rglob("*.*")
            if path.is_file() and path.name != ".lock"
        }

    write_items(tmp_path / "want", make())
    write_items(tmp_path / "want", MORE)
    want = {name.removeprefix("want/"): data for name, data in all_files().items()}
    shutil.rmtree(tmp_path / "want")
    folder = write_items(tmp_path, make())
    with suppress(Killed), killing(place):
        write_items(tmp_path, MORE)
    assert (
        find_dataset(tmp_path, "d") in (folder, tmp_path / MORE.folder_name)
        and read_items(find_dataset(tmp_path, "d")).keys
    )
    write_items(tmp_path, MORE)
    assert {name: data for name, data in all_files().items() if not name.endswith(".tmp")} == want


def test_two_states_at_once_become_two_versions_one_after_the_other(tmp_path):
    write_items(tmp_path, make())
    with ThreadPoolExecutor(4) as pool:
        made = [*pool.map(lambda items: write_items(tmp_path, items), [MORE, MORE, MORE, MORE])]
    assert len(set(made)) == 1 and version_of(made[0]) == 1


def test_a_damaged_version_is_not_passed_over(tmp_path):
    folder = write_items(tmp_path, make())
    new = write_items(tmp_path, MORE)
    (new / "dataset.json").write_text("{}")
    with pytest.raises(IntegrityError, match=f"the item list in {new} cannot be read"):
        find_dataset(tmp_path, "d")
    assert (
        write_items(tmp_path, MORE) == new == find_dataset(tmp_path, "d")
        and find_dataset(tmp_path, folder.name) == folder
    )
    (new / "items.parquet").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="the item list in"):
        write_items(tmp_path, RENAMED)
    assert find_dataset(tmp_path, "d") == new
    write_items(tmp_path, RENAMED, changed=True)
    assert find_dataset(tmp_path, "d").name == RENAMED.folder_name


def test_new_labels_and_splits_replace_the_old_ones_in_place(tmp_path):
    folder = write_items(tmp_path, make())
    again = write_items(tmp_path, make(labels="zzyyxx", split=["test"] * 6))
    assert again == folder
    items = read_items(folder)
    assert (
        items.classes == ["x", "y", "z"]
        and items.label.tolist() == [2, 2, 1, 1, 0, 0]
        and items.split == ["test"] * 6
    )


def test_a_damaged_list_is_written_anew_by_the_next_extraction(tmp_path):
    folder = write_items(tmp_path, make())
    before = files(folder)
    (folder / "items.parquet").write_bytes(b"damaged")
    assert write_items(tmp_path, make()) == folder and files(folder) == before


def test_what_a_killed_writer_of_the_list_left_goes(tmp_path):
    """Also where the list is to stay as it is."""
    folder = write_items(tmp_path, make())
    before = files(folder)
    (folder / ".dataset.json.tmp").write_bytes(b"half")
    assert write_items(tmp_path, make()) == folder and files(folder) == before


@pytest.mark.parametrize("name", ["items.parquet", "dataset.json"])
def test_every_flip_is_found_in_a_sample_of_places(tmp_path, name):
    folder, chance = write_items(tmp_path, make()), random.Random(0)
    file = folder / name
    intact, unseen = file.read_bytes(), []
    places = (
        range(len(intact)) if name == "dataset.json" else chance.sample(range(len(intact)), 250)
    )
    for place in places:
        data = bytearray(intact)
        data[place] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        try:
            read_items(folder)
            unseen.append(bytes(intact[place : place + 1]))
        except CoviewError as error:
            assert (
                isinstance(error, IntegrityError | StaleError)
                and str(folder) in str(error)
                and "make extract" in str(error)
            )
    assert not unseen, f"flips of these bytes of {name} went unseen: {unseen}"
    file.write_bytes(intact)
    read_items(folder)


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-2]),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text("null"),
    ],
    ids=["missing", "truncated", "a list", "null"],
)
def test_a_missing_or_truncated_list_is_named_with_the_command(tmp_path, harm):
    for name in ("items.parquet", "dataset.json"):
        folder = write_items(tmp_path / name, make())
        harm(folder / name)
        with pytest.raises(
            IntegrityError, match=r"Type: make extract VIEW=… DATA=…   with what d-.* was made of"
        ) as caught:
            read_items(folder)
        assert str(folder) in str(caught.value)


def test_the_command_that_writes_a_list_again_is_quoted_for_make_too(tmp_path):
    folder = write_items(tmp_path, make(), "/data/cost$(x)")
    (folder / "items.parquet").unlink()
    with pytest.raises(
        IntegrityError, match=r"Type: make extract VIEW=… DATA='/data/cost\$\$\(x\)'   with"
    ):
        read_items(folder)


def test_a_renamed_folder_and_another_format_are_refused(tmp_path):
    folder = write_items(tmp_path, make())
    shutil.copytree(folder, tmp_path / "d-00000000")
    with pytest.raises(IntegrityError):
        read_items(tmp_path / "d-00000000")
    record = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_bytes(durable.sealed({**record, "format": 2}))
    with pytest.raises(StaleError, match="has format 2, this version reads 1"):
        read_items(folder)


def test_a_dataset_is_found_by_name_path_or_its_folder(tmp_path):
    folder = write_items(tmp_path / "unknown", make(name="photos"))
    for data in ("photos", "photos.csv", "torchvision:photos", folder.name):
        assert find_dataset(tmp_path / "unknown", data) == folder, data
    folder = write_items(tmp_path, make(name="photos"), "/data/photos")
    for data in ("photos", "photos.csv", folder.name):
        assert find_dataset(tmp_path, data) == folder, data
    with pytest.raises(
        UsageError, match=rf"DATA=/data/photos: there is no such file or folder.*DATA={folder.name}"
    ):
        find_dataset(tmp_path, "/data/photos")


def test_the_same_images_in_a_renamed_folder_keep_their_embeddings_and_their_name(tmp_path):
    cache, old, new = tmp_path / "cache", tmp_path / "old", tmp_path / "new"
    folder = write_items(cache, make(name="old"), str(old))
    table = (folder / "items.parquet").read_bytes()
    new.mkdir()
    assert write_items(cache, make(name="new"), str(new)) == folder and list(cache.glob("*/")) == [
        folder
    ]
    assert read_items(folder).name == "old" and (folder / "items.parquet").read_bytes() == table
    assert find_dataset(cache, str(new)) == find_dataset(cache, "old") == folder
    assert write_items(cache, make(name="new", labels="yyyyyy"), str(new)) == folder and read_items(
        folder
    ).classes == ["y"]


def test_a_second_folder_with_the_same_images_is_a_data_set_of_its_own(tmp_path):
    cache, old, new = tmp_path / "cache", tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    folder = write_items(cache, make(name="old"), str(old))
    other = write_items(cache, make(name="new"), str(new))  # the first is still there
    assert other != folder and read_items(folder).name == "old" and read_items(other).name == "new"


@pytest.mark.parametrize("source", ["", "digits", "torchvision:MNIST"])
def test_what_is_no_folder_was_not_renamed(tmp_path, source):
    folder = write_items(tmp_path, make(name="old"), source)
    assert write_items(tmp_path, make(name="new"), str(tmp_path)) != folder


def test_a_name_that_has_a_list_of_its_own_is_not_taken_for_a_renamed_folder(tmp_path):
    cache = tmp_path / "cache"
    gone = write_items(cache, make(name="old"), str(tmp_path / "old"))
    taken = write_items(cache, make(KEYS[:-1], name="new"), str(tmp_path / "new"))
    before = files(gone), files(taken)
    assert (
        write_items(cache, make(name="new"), str(tmp_path / "new")).name
        == make(name="new").folder_name
    )  # a version of its own
    assert (files(gone), files(taken)) == before


def test_other_images_from_a_renamed_folder_are_a_data_set_of_their_own(tmp_path):
    cache = tmp_path / "cache"
    folder = write_items(cache, make(name="old"), str(tmp_path / "old"))
    assert write_items(cache, make(KEYS[:-1], name="new"), str(tmp_path / "new")) != folder


def test_a_dataset_that_is_not_there_names_the_nearest_and_the_command(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"no dataset 'photo' in .*there is: nothing yet.*make extract VIEW=… DATA=photo",
    ):
        find_dataset(tmp_path, "photo")
    write_items(tmp_path, make(name="photos"))
    with pytest.raises(UsageError, match=r"did you mean 'photos'"):
        find_dataset(tmp_path, "photo")


def test_two_lists_of_one_name_must_be_told_apart(tmp_path):
    one = write_items(tmp_path / "a", make())
    two = write_items(tmp_path / "b", make(KEYS[:-1]))
    shutil.copytree(two, tmp_path / "a" / two.name)
    with pytest.raises(StaleError, match=r"holds 2 item lists called 'd': d-.*Name one: DATA=d-"):
        find_dataset(tmp_path / "a", "d")
    assert (
        find_dataset(tmp_path / "a", one.name) == one
        and find_dataset(tmp_path / "a", two.name).name == two.name
    )


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("photos/", "photos"),
        ("/a/my photos", "my-photos"),
        ("list.csv", "list"),
        ("a/b.parquet", "b"),
        ("torchvision:MNIST", "MNIST"),
        ("digits", "digits"),
        ("/a/.hidden", "hidden"),
        ("/", "data"),
    ],
)
def test_a_dataset_is_named_after_its_folder_or_file(data, name):
    assert dataset_name(data) == name


@pytest.mark.parametrize(
    ("names", "labels", "classes"),
    [
        (["b", "a", "", "b"], [1, 0, -1, 1], ["a", "b"]),
        (["10", "9", "", "1"], [2, 1, -1, 0], ["1", "9", "10"]),
        (["10", "9", "x"], [0, 1, 2], ["10", "9", "x"]),
        (["01", "1"], [0, 1], ["01", "1"]),
        (["²", "1"], [1, 0], ["1", "²"]),
        (["", ""], [-1, -1], []),
        ([], [], []),
    ],
)
def test_class_names_that_are_numbers_sort_as_numbers_and_others_by_bytes(names, labels, classes):
    found, sorted_names = class_index(names)
    assert found.tolist() == labels and found.dtype == np.int32 and sorted_names == classes


@pytest.mark.parametrize("times", [4, pytest.param(9, marks=pytest.mark.many)])
def test_a_command_that_ends_early_has_its_own_exit_code(tmp_path, times):
    """Threads of Arrow's that were alive at the end made it -6 (SIGABRT), in two of five
    processes that had torch loaded."""
    line = (
        "import sys, torch; from pathlib import Path; "
        "from cache_specs.items import read_items; read_items(Path(sys.argv[1])); sys.exit(6)"
    )
    folder = str(write_items(tmp_path, make()))
    with ThreadPoolExecutor(3) as pool:
        codes = list(
            pool.map(
                lambda _: (
                    subprocess.run(
                        [sys.executable, "-c", line, folder], cwd=ROOT, timeout=200
                    ).returncode
                ),
                range(times),
            )
        )
    assert codes == [6] * times


def test_an_image_that_cannot_be_read_now_is_not_called_changed(tmp_path):
    items = make()
    write_items(tmp_path, items)
    lost = dataclasses.replace(items, sha256=[*items.sha256[:2], "", *items.sha256[3:]])
    with pytest.raises(
        StaleError, match=r"the image a.jpg of 'd' \(row 2\) was embedded, but cannot be read now"
    ) as caught:
        write_items(tmp_path, lost)
    assert "delete" not in str(caught.value)


def test_names_that_a_file_system_or_json_cannot_hold(tmp_path, command):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/n\xff")
    os.mkdir(odd)
    with pytest.raises(UsageError, match="is not UTF-8, so it cannot be recorded"):
        source_path(odd)
    assert len(dataset_name("x" * 250).encode()) == len(dataset_name("ä" * 150).encode()) == 200
    done = command(
        "export",
        "--view",
        "x",
        "--to",
        f"{tmp_path}/{'y' * 300}.npz",
        "--cache",
        write_items(tmp_path / "cache", make()).parent,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_reader_that_goes_away_ends_a_command_quietly(tmp_path):
    write_items(tmp_path, make())
    line = (
        f"{shlex.quote(sys.executable)} -m coview.cli status --cache "
        f"{shlex.quote(str(tmp_path))} | true; echo ${{PIPESTATUS[0]}}"
    )
    shown = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.strip() in ("0", "141") and not shown.stderr


@pytest.mark.parametrize("field", ["source", "fingerprint", "name"])
def test_a_damaged_older_version_does_not_unseat_the_current_one(tmp_path, field, capsys):
    folder, new = (
        write_items(tmp_path, make(), str(tmp_path)),
        write_items(tmp_path, MORE, str(tmp_path)),
    )
    record = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**record, field: f"{record[field]}x"}))
    assert find_dataset(tmp_path, "d") == new == current([folder, new]) and is_older(folder)
    assert (
        f"{folder / 'dataset.json'}, of an older version of {new.name}, "
        "cannot be read: see make status"
    ) in capsys.readouterr().err
    assert f"{folder.name}: the item list in {folder} cannot be read" in status(tmp_path)
    with pytest.raises(
        IntegrityError,
        match=r"It is an older version of its data set.*put .* back from a copy, or delete it",
    ):
        read_items(folder)
    for harm in (
        {"versiom": 0},
        {"version": 1},
        {"version": 9},
        {"version": None},
    ):  # it may be the current one
        (folder / "dataset.json").write_text(json.dumps(record | harm))
        assert current([folder, new]) is None, harm


def killed_between_the_two_files(cache: Path, items: Items) -> None:
    """items.parquet is written, dataset.json is not."""

    def fault(passed: str) -> None:
        if passed == "dataset.open":
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(durable, "fault", fault)
        write_items(cache, items)


def test_a_relabelling_that_was_killed_halfway_is_done_by_the_same_command(tmp_path):
    """Until then the list is what it was: the table that dataset.json names is kept in labels/."""
    folder, relabelled = write_items(tmp_path, make()), make(labels="zzyyxx")
    old = read_items(folder)
    killed_between_the_two_files(tmp_path, relabelled)
    before = read_items(find_dataset(tmp_path, "d"))
    assert before.labels_fingerprint == old.labels_fingerprint
    kept = read_items(folder, old.labels_fingerprint)
    assert kept.labels_fingerprint == old.labels_fingerprint
    assert write_items(tmp_path, relabelled) == folder
    new = read_items(folder)
    assert new.classes == ["x", "y", "z"] and new.label.tolist() == [2, 2, 1, 1, 0, 0]
    assert version_of(folder) == 0
    kept = read_items(folder, old.labels_fingerprint)
    assert kept.labels_fingerprint == old.labels_fingerprint
    assert len(list((folder / "labels").iterdir())) == 1


def test_other_images_after_such_a_kill_are_a_new_version_of_what_was_there(tmp_path):
    """No image is embedded again for it, and the old list stays readable, by its old labels."""
    folder, more = write_items(tmp_path, make()), make([*KEYS, "ö.jpg"], labels="zzyyxxx")
    old = read_items(folder)
    killed_between_the_two_files(tmp_path, make(labels="zzyyxx"))
    new = write_items(tmp_path, more)
    assert find_dataset(tmp_path, "d") == new and version_of(new) == 1
    assert read_items(folder).label.tolist() == old.label.tolist()


def test_a_damaged_table_is_not_the_kept_one(tmp_path):
    """Only the table that dataset.json names counts, wherever it lies."""
    folder = write_items(tmp_path, make())
    write_items(tmp_path, make(labels="zzyyxx"))
    table = folder / "items.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match=r"items\.parquet is damaged"):
        read_items(folder)


@pytest.mark.parametrize("labels", ["zzyyxx", "xyxy?x"])
def test_an_older_version_that_becomes_current_again_with_other_labels(tmp_path, labels):
    """Killed or not, the same command ends with the same files."""
    caches = (tmp_path / "whole", tmp_path / "killed")
    for cache in caches:
        write_items(cache, make())
        write_items(cache, MORE)
    back = make(labels=labels)
    write_items(caches[0], back, changed=True)

    def fault(passed: str) -> None:
        if passed == "dataset.open":
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(durable, "fault", fault)
        write_items(caches[1], back, changed=True)
    folder = write_items(caches[1], back, changed=True)
    assert find_dataset(caches[1], "d") == folder and version_of(folder) == 2
    want = {str(path.relative_to(caches[0])): path for path in caches[0].rglob("*.*")}
    assert want.keys() == {str(path.relative_to(caches[1])) for path in caches[1].rglob("*.*")}
    for name, path in want.items():
        if path.is_file() and path.name != ".lock":
            assert path.read_bytes() == (caches[1] / name).read_bytes(), name


def test_the_older_versions_follow_only_to_where_their_images_are(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "d").mkdir(parents=True)
    cache, one, two = tmp_path / "cache", str(tmp_path / "one" / "d"), str(tmp_path / "two" / "d")
    folder = write_items(cache, make(), one)
    (tmp_path / "one" / "d").rename(tmp_path / "unmounted")
    for changed in (True, False):
        new = write_items(cache, make(KEYS[:-1]), two, changed=changed)
        assert (read_source(folder), read_source(new)) == (one, two)
    (tmp_path / "two" / "d").rename(tmp_path / "d")
    write_items(cache, MORE, str(tmp_path / "d"))
    assert read_source(folder) == read_source(new) == str(tmp_path / "d")


def test_the_state_that_was_read_first_does_not_follow_the_one_that_was_read_later(tmp_path):
    write_items(tmp_path, make())
    seen = tops(tmp_path)
    assert seen == {"d": 0}
    later = write_items(tmp_path, MORE, seen=seen)
    with pytest.raises(
        StaleError,
        match=(
            rf"while the images of 'd' were read, {later.name} became the current "
            r"version of them\. Type the same command again"
        ),
    ):
        write_items(tmp_path, RENAMED, changed=True, seen=seen)
    assert (
        find_dataset(tmp_path, "d") == later == write_items(tmp_path, MORE, seen=seen)
    )  # another view of the same state
    assert version_of(write_items(tmp_path, RENAMED, changed=True, seen=tops(tmp_path))) == 2


def test_the_name_of_a_folder_wins_over_that_of_a_data_set(tmp_path):
    folder, new = write_items(tmp_path, make()), write_items(tmp_path, MORE)
    other = write_items(tmp_path, make(KEYS[:3], name=folder.name))
    assert (
        find_dataset(tmp_path, folder.name) == folder
        and find_dataset(tmp_path, other.name) == other
        and find_dataset(tmp_path, "d") == new
    )
