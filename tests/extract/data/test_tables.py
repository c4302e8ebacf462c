"""Tables as spreadsheets, pandas and other people's machines write them: columns, cells, paths."""

import gzip
import os
import re
import unicodedata
from pathlib import Path

import pytest
from pictures import fill, listed, table
from test_tars import tar

from base.errors import UsageError
from extract.data.datasets import build_items, open_dataset
from extract.data.overview import say
from extract.data.places import Places

FILES = ("img/cat/000.png", "img/cat/001.png", "img/dog/002.png")
ROWS = [(FILES[0], "cat", ""), (FILES[1], "cat", ""), (FILES[2], "dog", "")]
PLAIN = "path,label\nimg/cat/000.png,cat\nimg/cat/001.png,cat\nimg/dog/002.png,dog\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    fill(tmp_path, *FILES)
    return tmp_path


def written(base: Path, text: str, name: str = "list.csv", coding: str = "utf-8") -> str:
    data = text.encode(coding)
    (base / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(base / name)


# --- forms


@pytest.mark.parametrize(
    ("name", "coding", "text"),
    [
        ("list.csv", "utf-8", PLAIN),
        ("LIST.CSV", "utf-8", PLAIN.replace("\n", "\r\n")),
        ("list.csv.gz", "utf-8", PLAIN),
        ("list.tsv", "utf-8", PLAIN.replace(",", "\t")),
        ("list.TSV", "utf-16", PLAIN.replace(",", "\t")),
        ("list.csv", "utf-16", PLAIN.replace(",", ";")),
        ("list.csv", "utf-8", PLAIN.replace(",", "|")),
        ("list.csv", "utf-8-sig", f"sep=;\r\n{PLAIN.replace(',', ';')}"),
        ("list.csv", "utf-8", PLAIN.replace("path,label", "Path , LABEL")),
        ("list.csv", "utf-8", PLAIN.replace("path,label", "file_name,class")),
        ("list.csv", "utf-8", PLAIN.replace("path,label", "Image Path,Category")),
        ("list.csv", "utf-8", PLAIN.replace("path,label", "filename,target")),
        ("list.csv", "utf-8", PLAIN.replace("\n", ",,\n")),
        ("list.csv", "utf-8", f"\n,\n{PLAIN}\n,\n\n"),
        ("list.csv", "utf-8", PLAIN.partition("\n")[2]),  # no header
        ("list.csv", "utf-8", "".join(f"{i},{line}\n" for i, line in enumerate(PLAIN.split()))),
    ],
)
def test_a_table_means_the_same_in_every_form(
    base: Path, name: str, coding: str, text: str
) -> None:
    assert listed(written(base, text.replace("0,path", ",path"), name, coding)) == ROWS
    assert open_dataset(str(base / name), Path()).name.lower() == "list"


@pytest.mark.parametrize(
    "name",
    [
        "patient",
        "age",
        "date",
        "site",
        "plate",
        "batch",
        "camera",
        "lat",
        "level",
        "hash",
        "species",
        "status",
        "patch",
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_more_is_told_and_not_used(
    base: Path, name: str, kind: str, capsys: pytest.CaptureFixture
) -> None:
    columns = {"path": list(FILES), "label": ["cat", "cat", "dog"], name: ["a", "b", "c"]}
    assert listed(table(base, kind, columns)) == ROWS
    assert f"the column {name!r} is not used" in capsys.readouterr().out


def test_columns_of_other_names_are_taken_by_what_they_hold_and_told(
    base: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = "7,img/cat/000.png,1,cat,train\n8,img/dog/002.png,2,dog,holdout\n"
    text = f"id,image,class,class_name,subset\n{rows}"
    assert listed(written(base, text)) == [
        ("img/cat/000.png", "cat", "train"),
        ("img/dog/002.png", "dog", "test"),
    ]
    out = capsys.readouterr().out
    for name, what in (("image", "path"), ("class_name", "label"), ("subset", "split")):
        assert f"the column {name!r} is taken for the {what}" in out
    assert "the columns 'id', 'class' are not used" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,class,target\nimg/cat/000.png,1,x\nimg/dog/002.png,1,y\n",
            "may each be the labels",
        ),
        ("path,label,usage\na.png,x,Training\nb.png,y,PublicTest\n", "'PublicTest', which is none"),
        ("path,Label,LABEL\na.png,x,y\n", "have one name; leave one"),
        ("path,lables\na.png,x\n", "unknown column 'lables'; did you mean 'label'"),
        ("img/cat/000.png,cat,7,x\n", "it has no header, and 4 columns"),
        ("path,label\nhttp://a.b/c.png,x\n", "row 2: 'http://a.b/c.png' is an address"),
        ("id,label\n1,x\n", r"needs a column 'path'.*found the columns \['id', 'label'\]; add it"),
    ],
)
def test_what_could_mean_two_things_is_refused(base: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(written(base, text), Path())


def test_a_column_that_holds_splits_and_is_not_used_is_pointed_out(
    base: Path, capsys: pytest.CaptureFixture
) -> None:
    listed(written(base, "path,label,part\nimg/cat/000.png,x,train\nimg/dog/002.png,y,test\n"))
    assert "the column 'part' holds the words of splits, and is not used" in capsys.readouterr().err


def test_a_spreadsheet_of_other_kind_is_answered_with_what_to_do(base: Path) -> None:
    (base / "list.xlsx").write_bytes(b"PK")
    with pytest.raises(UsageError, match="is a spreadsheet; save its sheet as CSV"):
        open_dataset(str(base / "list.xlsx"), Path())


@pytest.mark.parametrize(
    ("name", "unpacking"),
    [("my photos.zip", "unzip -d 'my photos' 'my photos.zip'"), ("x.7Z", "7z x -ox x.7Z")],
)
def test_an_archive_is_answered_with_how_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, unpacking: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UsageError, match=f"unpack it first: {re.escape(unpacking)}. ") as caught:
        open_dataset(name, Path())
    assert caught.value.instead == {"DATA": f"{Path(name).stem}/"}


@pytest.mark.parametrize(
    ("coding", "name", "words"),
    [
        (
            "cp1252",
            "list.csv",
            r"list.csv cannot be read: it is neither in UTF-8 nor in UTF-16 \(",
        ),
        ("cp1252", "list.csv.gz", r"byte 0xe4\); save it as CSV UTF-8, or as Parquet"),
        ("mac_roman", "list.csv", r"byte 0x8a\); save it as CSV UTF-8"),
    ],
)
def test_a_table_in_another_encoding_is_answered_with_what_to_do(
    base: Path, coding: str, name: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        listed(written(base, PLAIN.replace("0.png,cat", "0.png,k\u00e4tzchen"), name, coding))


def test_images_beside_those_that_a_table_lists_are_counted(
    base: Path, capsys: pytest.CaptureFixture
) -> None:
    data = written(base, PLAIN)
    listed(data)
    assert "not used" not in capsys.readouterr().out
    fill(base, "img/dog/002_mask.png", "img/dog/._003.png", "img/cow/004.png")
    listed(data)  # a mask, what is passed over, a folder that it does not name
    assert "not used" not in capsys.readouterr().out
    fill(base, "img/dog/005.png")
    assert len(listed(data)) == 3
    wanted = "1 image beside the 3 that it lists is not used, first img/dog/005.png; to use them"
    assert wanted in capsys.readouterr().out
    fill(base, "img/cat/009.JPG")
    whole = f"path,label\n{base / FILES[0]},cat\nimg/cat/001.png,cat\nimg/dog/002.png,dog\n"
    for rows in (PLAIN, whole):
        listed(written(base, rows))
        assert "2 images beside the 3 that it lists are not used, first img/cat/009.JPG" in (
            capsys.readouterr().out
        )
    listed(written(base, f"{PLAIN}img/dog/005.png,\nimg/cat/009.JPG,\n"))
    assert "not used" not in capsys.readouterr().out


def test_of_a_table_beside_images_the_others_are_used(
    base: Path, capsys: pytest.CaptureFixture
) -> None:
    fill(base / "new", "1.png", "2.png")
    written(base / "new", "file_name,label\n1.png,cat\n", "metadata.csv")
    assert len(listed(str(base / "new"))) == 2
    out = capsys.readouterr().out
    assert "gives 1 of 2 of them their label" in out and "not used" not in out


# --- labels


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1.0", "2.0", "0.0"], ["1", "2", "0"]),
        (["1", "2.0", ""], ["1", "2", ""]),
        (['"1,0"', '"2,0"', "3"], ["1", "2", "3"]),
        (["1.5", "2.0", "1"], ["1.5", "2.0", "1"]),  # versions, or grades: as they are
        (["01", "02", "3"], ["01", "02", "3"]),
        (["nan", "#N/A", "-1.0"], ["", "", ""]),
        (["Unknown", "-", "cat"], ["", "", "cat"]),
    ],
)
def test_labels_of_other_programs(base: Path, cells: list[str], labels: list[str]) -> None:
    rows = "".join(f"{file},{cell}\n" for file, cell in zip(FILES, cells, strict=True))
    assert [label for _, label, _ in listed(written(base, f"path,label\n{rows}"))] == labels


# --- paths


@pytest.mark.parametrize(
    ("change", "guessed"),
    [
        (lambda path: path.replace("/", "\\"), False),
        (lambda path: path.upper(), False),
        (lambda path: f" {path} ", False),
        (lambda path: f"C:\\Users\\Bob\\{path}".replace("/", "\\"), True),
        (lambda path: path.removesuffix(".png"), True),
        (lambda path: f"/home/bob/photos/{path}", True),
        (lambda path: f"photos/{path}", True),
        (lambda path: path.rpartition("/")[2], True),
        (lambda path: path.rpartition("/")[2].removesuffix(".png"), True),
        (lambda path: f"file:///home/bob/{path}", True),
    ],
)
def test_paths_of_other_systems_mean_the_one_file_that_they_can(
    base: Path, change, guessed: bool, capsys: pytest.CaptureFixture
) -> None:
    """A folder or an ending that had to be guessed is a warning."""
    written = [change(path) for path in FILES]
    assert listed(table(base, "csv", {"path": written, "label": ["cat", "cat", "dog"]})) == ROWS
    told = capsys.readouterr()
    line = "3 of 3 paths are not there as they are written, and mean the one file that they can"
    more = " mean, 3 of them by another folder or ending" if guessed else " mean"
    assert f"{line}{more}: {written[0]!r} is {FILES[0]!r}" in (told.err if guessed else told.out)
    assert line not in (told.out if guessed else told.err)


def test_the_first_of_those_that_are_guessed_is_shown(
    base: Path, capsys: pytest.CaptureFixture
) -> None:
    listed(table(base, "csv", {"path": [FILES[0].upper(), FILES[1], "002"]}))
    err = capsys.readouterr().err
    assert "2 of 3 paths" in err and "can mean, 1 of them by another folder or ending: '002'" in err


@pytest.mark.parametrize(
    "written",
    ["0002.png", "img/0002.png", "cat.7", "0002.jp2", "0002.heic", "img/0002.tiff", "cat.jpg.7"],
)
def test_an_ending_that_is_written_is_not_replaced(
    tmp_path: Path, written: str, capsys: pytest.CaptureFixture
) -> None:
    fill(tmp_path, "img/0002.jpg", "img/cat.jpg", "img/0002.tiff.png", "img/0003.png.jpg")
    ((key, *_),) = listed(table(tmp_path, "csv", {"path": [written]}))
    assert key == written and "1 of 1 paths name no file" in capsys.readouterr().err


def test_an_ending_is_added_to_what_has_none_also_after_a_dot(tmp_path: Path) -> None:
    fill(tmp_path, "img/cat.7.jpg", "img/v1.2.png")
    found = listed(table(tmp_path, "csv", {"path": ["cat.7", "img/v1.2"]}))
    assert [key for key, *_ in found] == ["img/cat.7.jpg", "img/v1.2.png"]


def test_accents_in_two_codings_are_one_name(tmp_path: Path) -> None:
    one, other = (unicodedata.normalize(form, "Käfer.png") for form in ("NFC", "NFD"))
    fill(tmp_path, other)
    assert [key for key, *_ in listed(table(tmp_path, "csv", {"path": [one]}))] == [other]


def test_a_path_that_is_there_means_itself(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["a.png", "A.png", "a\\b.png", "a.png ", "in/../b.png"]
    fill(tmp_path, "in/x", "b.png", *names[:4])
    found = listed(table(tmp_path, "parquet", {"path": names}))
    assert sorted(key for key, *_ in found) == sorted([*names[:4], "b.png"])
    assert capsys.readouterr().out.count("written") == 0


def test_where_several_files_could_be_meant_none_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fill(tmp_path, "a.png", "A.png", "b.jpg", "b.png", "c/1.png", "d/1.png", "e/2.png")
    names = ["a.PNG", "b", "1.png", "f/2.png"]  # nor e/2.png for f/2.png: its label is another's
    items = build_items(open_dataset(table(tmp_path, "csv", {"path": names}), Path()))
    assert sorted(items.keys) == sorted(names) and not any(items.sha256)
    err = capsys.readouterr().err
    assert "4 of 4 paths name no file, or several; first row 2: 'a.PNG'" in err


def test_the_nearest_name_is_shown(base: Path, capsys: pytest.CaptureFixture) -> None:
    listed(table(base, "csv", {"path": [FILES[0], "img/cat/01.png"]}))
    err = capsys.readouterr().err
    assert "1 of 2 paths name no file" in err and "the nearest there is 'img/cat/001.png'" in err


def test_absolute_paths_inside_of_the_folder_have_the_keys_of_relative_ones(
    base: Path, capsys: pytest.CaptureFixture
) -> None:
    columns = {"path": [str(base / path) for path in FILES], "label": ["cat", "cat", "dog"]}
    assert listed(table(base, "csv", columns)) == ROWS
    assert "outside" not in capsys.readouterr().out


@pytest.mark.parametrize("absolute", [True, False])
def test_files_outside_of_the_folder_are_read_and_told(
    base: Path, absolute: bool, capsys: pytest.CaptureFixture
) -> None:
    (base / "tables").mkdir()
    names = [str(base / path) if absolute else f"../{path}" for path in FILES]
    data = table(base / "tables", "csv", {"path": names, "label": ["cat", "cat", "dog"]})
    keys = [key.removeprefix("img/") for key in FILES]
    dataset = open_dataset(data, Path())
    assert list(dataset.keys) == keys and dataset.read(0) == FILES[0].encode()
    out = capsys.readouterr().out
    assert f"3 of 3 files lie outside of the table's folder, first '{base / FILES[0]}'" in out
    assert f"keys are relative to {base / 'img'}" in out


def test_a_folder_is_listed_once_and_only_where_a_path_asks(base: Path, monkeypatch) -> None:
    places, asked = Places(str(base)), []
    listdir = os.listdir
    monkeypatch.setattr("os.listdir", lambda path: asked.append(path) or listdir(path))
    assert all(places.exists(path) for path in FILES * 100)
    assert len(asked) == 2 and not places.find("img/none.png")


# --- nothing changes where all was well


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([f"{i / 7:.4f}" for i in range(30)], True),
        ([str(i % 16) for i in range(30)], True),
        ([str(i % 15) for i in range(30)], False),
        ([str(i) for i in range(9)], False),  # of so few nothing is known
        ([*map(str, range(10)), *[""] * 90], True),
    ],
)
def test_labels_that_tell_nearly_every_image_apart_are_pointed_out(
    tmp_path: Path, labels: list[str], told: bool, capsys: pytest.CaptureFixture
) -> None:
    names = [f"{i:02}.png" for i in range(len(labels))]
    fill(tmp_path, *names)
    rows = "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True))
    say(open_dataset(written(tmp_path, f"path,label\n{rows}"), Path()).overview())
    assert ("look like measurements, or names of images" in capsys.readouterr().err) == told


def test_words_of_spreadsheets_are_told_with_a_command_that_can_be_typed(
    base: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = "img/cat/000.png,cat\nimg/cat/001.png,#N/A\nimg/dog/002.png,dog\n"
    say(open_dataset(written(base, f"path,label\n{rows}"), Path()).overview())
    out = capsys.readouterr().out
    assert "list: 3 images, 2 classes" in out
    assert "1 image labelled '#N/A' counts as unlabelled" in out
    assert "ARGS=\"--as-class='#N/A'\"" in out


def test_what_worked_before_has_the_keys_labels_and_splits_of_before(tmp_path: Path) -> None:
    """The digests are those of the version that knew none of all this."""
    splits = [
        "train/cat/a.jpg",
        "Val/cat/b.jpg",
        "validation/dog/b.jpg",
        "test/dog/c.jpg",
        "unlabelled/d.jpg",
        "unlabeled/cat/e.jpg",
        "train/loose.jpg",
    ]
    classes = [
        "cat/b.jpg",
        "cat/a.PNG",
        "dog/deep/c.webp",
        "loose.jpg",
        "cat/notes.txt",
        "test/x.png",
        ".git/a.png",
    ]
    beside = ["c0/1.png", "c1/test/2.png", "Unlabeled/x/3.png", "unlabelled/4.png", "5.png"]
    columns = {
        "path": ["in/a.jpg", "./b.jpg", "gone.jpg", "u.jpg"],
        "label": ["cat", "dog", None, "cat"],
        "split": ["train", "validation", "", "unlabelled"],
        "more": [1, 2, 3, 4],
    }
    fill(tmp_path / "table", "b.jpg", "in/a.jpg")
    inside = [(f"photos/{name}", name.encode()) for name in splits[:4]]
    known = {
        fill(tmp_path / "splits", *splits): ("91e09d1619d0fb75", "7156e7554f57b765"),
        fill(tmp_path / "classes", *classes): ("dcc37fb925429a17", "1d94accd3c387445"),
        fill(tmp_path / "beside", *beside): ("79319f182f759949", "3cf35eb9c74e42b0"),
        table(tmp_path / "table", "csv", columns): ("3b0b59af890f1f8f", "084e10ac50d30433"),
        table(tmp_path / "table", "parquet", columns): ("3b0b59af890f1f8f", "084e10ac50d30433"),
        tar(tmp_path / "x.tar", *inside): ("2bfabe7a3f4c69b3", "f0b5b684f4a48fed"),
        "digits": ("6f88bbf14479cb04", "1d281e680624f6eb"),
    }
    for data, (items, labels) in known.items():
        found = build_items(open_dataset(data, Path()))
        assert found.fingerprint[:16] == items, data
        assert found.labels_fingerprint[:16] == labels, data
