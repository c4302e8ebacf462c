"""What the folders of a data set are: splits, classes, wrappers; and what lies in them that is no
image of anybody. Folders and tars are read alike."""

from pathlib import Path

import pytest
from pictures import encoded, fill, listed, picture
from test_tars import tar

from base.errors import UsageError
from extract.data.datasets import open_dataset
from extract.data.layout import masks_among
from extract.data.overview import SHOWN, say

SPLIT = [
    ("cat", "train"),
    ("dog", "train"),
    ("cat", "test"),
    ("dog", "test"),
]
BOTH = ("cat/1.png", "dog/2.png")


def said(data: str) -> list[tuple[str, str]]:
    return sorted((label, split) for _, label, split in listed(data))


def both_forms(tmp_path: Path, names: list[str]) -> list[str]:
    """The same names as a folder and as a tar."""
    whole = tar(tmp_path / "tarred.tar", *((name, name.encode()) for name in names))
    return [fill(tmp_path / "photos", *names), whole]


@pytest.mark.parametrize(
    "tops",
    [
        ("train", "test"),
        ("train/train", "test/test"),  # train.zip and test.zip
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train_images", "test_images"),
        ("train/images", "test/images"),
        ("Training Set", "Test Set"),
        ("birds-train", "birds-holdout"),
        ("zip/zip/train", "zip/zip/test"),
        ("Data/CLS-LOC/train2017", "Data/CLS-LOC/test2017"),
        ("train/train/images", "test/test/images"),
    ],
)
def test_wrapped_and_suffixed_splits_are_splits_in_folders_and_tars(
    tmp_path: Path, tops: tuple[str, str]
) -> None:
    names = [f"{top}/{name}" for top in tops for name in BOTH]
    for data in both_forms(tmp_path, names):
        assert said(data) == sorted(SPLIT)
        assert [key for key, *_ in listed(data)] == sorted(names)  # keys stay whole paths


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train/photo", "test/photo", "val/photo", "val/drawing"), {"photo", "drawing"}),
        (("train/raw", "test/images/raw", "test/images/final"), {"raw", "final"}),
        (("train/photo", "train/train/x", "test/photo"), {"photo", "train"}),
        (("train/images/cat", "test/images/cat", "test/images/dog"), {"cat", "dog"}),
        (("train/images/photo", "test/images/photo", "test/images/dog"), {"photo", "dog"}),
        (("train/photo", "test/photo"), {""}),
        (("train/train/raw/cat", "test/raw/test/dog"), {"cat", "dog"}),
    ],
)
def test_what_is_one_of_several_classes_of_a_split_wraps_nothing_in_another(
    tmp_path: Path, names: tuple[str, ...], expected: set[str]
) -> None:
    for data in both_forms(tmp_path, [f"{name}/1.png" for name in names]):
        assert {label for label, _ in said(data)} == expected


@pytest.mark.parametrize("top", ["photos", "zip/zip", "images", "a/b/c"])
def test_a_wrapper_is_no_class_and_told(
    tmp_path: Path, top: str, capsys: pytest.CaptureFixture
) -> None:
    for data in both_forms(tmp_path, [f"{top}/{name}" for name in BOTH]):
        assert said(data) == [("cat", ""), ("dog", "")]
        assert f"all images lie in {top}/, which is no class" in capsys.readouterr().out


def test_one_class_folder_stays_a_class_and_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = fill(tmp_path, "cat/1.png", "cat/2.png")
    assert said(data) == [("cat", ""), ("cat", "")]
    say(open_dataset(data, Path()).overview())
    assert "all labels are 'cat'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train/1/a.png", "train/2/b.png", "test/01/c.png"), "class of the test split (01) is "),
        (
            ("train/Cat/a.png", "train/Dog/b.png", "val/cat/c.png", "test/Cat/d.png"),
            "the val split",
        ),
        (("train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/cow/d.png"), ""),
        (("train/cat/a.png", "train/dog/b.png", "test/c.png"), ""),
        (("train/a.png", "test/cat/b.png", "test/dog/c.png"), ""),
    ],
)
def test_a_split_that_has_no_class_of_the_training_is_pointed_out(
    tmp_path: Path, names: tuple[str, ...], words: str, capsys: pytest.CaptureFixture
) -> None:
    say(open_dataset(fill(tmp_path, *names), Path()).overview())
    told = capsys.readouterr().err
    assert ("so no label of it can be learnt" in told) == bool(words) and words in told


@pytest.mark.parametrize(
    ("tops", "inner", "more", "words"),
    [
        (("fold0", "fold1", "fold2"), ("cat", "dog"), (), "the folders fold0, fold1, fold2 are "),
        (("raw", "augmented"), ("cat", "dog", "cow"), (), "of the same names: cat, cow, dog."),
        (("a", "b"), ("cat", "dog"), ("b/cow/9.png",), "of the same names: cat, dog."),
        (("train/f0", "train/f1", "test/f0", "test/f1"), ("cat", "dog"), (), "folders f0, f1 "),
        (("cat", "dog"), ("2023",), (), ""),  # no two
        (("cat", "dog"), ("left", "right"), ("dog/9.png",), ""),  # holds images of its own
        (("fold0",), ("cat", "dog"), (), ""),  # passed over
        (("cat", "dog"), ("a", "b"), ("cat/c/9.png", "dog/d/9.png"), ""),  # as many others
    ],
)
def test_folders_that_all_hold_the_same_folders_are_pointed_out(
    tmp_path: Path,
    tops: tuple[str, ...],
    inner: tuple[str, ...],
    more: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture,
) -> None:
    names = [f"{top}/{name}/1.png" for top in tops for name in inner]
    for data in both_forms(tmp_path, [*names, *more]):
        open_dataset(data, Path())
        told = capsys.readouterr().err
        assert ("write a table: path,label" in told) == bool(words) and words in told


def test_classes_with_the_words_of_splits_in_their_names_stay_classes(tmp_path: Path) -> None:
    names = ("test_tube/1.png", "train_station/2.png", "bridge/3.png")
    assert [label for label, _ in said(fill(tmp_path, *names))] == [
        "bridge",
        "test_tube",
        "train_station",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train_cats/1.png", "train_dogs/1.png", "test_cats/2.png", "test_dogs/2.png"),
            r"test_cats, test_dogs, train_cats, train_dogs say both a split and a class",
        ),
        (
            ("train/cat/1.png", "train/dog/1.png", "eval/cat/1.png"),
            r"the folder 'eval' may be the validation or the test split; call it val or test",
        ),
        (
            ("train/cat/1.png", "train/dog/1.png", "extra/cat/1.png"),
            r"train holds folders of classes \(cat, dog\), so it is a split, but extra/cat/1\.png",
        ),
        (("images/1.png", "masks/1.png"), r"masks holds the masks of images, and is no class"),
        (
            ("train/images/1.png", "train/masks/1.png", "test/images/2.png", "test/masks/2.png"),
            r"masks holds the masks of images, and is no class. Move the masks elsewhere",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    for data in both_forms(tmp_path, list(names)):
        with pytest.raises(UsageError, match=message):
            open_dataset(data, Path())


def test_images_beside_masks_are_named_in_the_command(tmp_path: Path) -> None:
    data = fill(tmp_path, "images/1.png", "masks/1.png")
    with pytest.raises(UsageError, match=r"Name the images alone: DATA=") as caught:
        open_dataset(data, Path())
    assert listed(caught.value.instead["DATA"] or "") == [("1.png", "", "")]


def test_splits_inside_of_classes_and_predictions_beside_splits(tmp_path: Path) -> None:
    inner = fill(tmp_path / "a", "cat/train/1.png", "cat/test/2.png", "dog/train/3.png")
    assert said(inner) == [("cat", "test"), ("cat", "train"), ("dog", "train")]
    pred = fill(tmp_path / "b", "s_train/cat/1.png", "s_test/cat/2.png", "s_pred/3.png")
    assert said(pred) == [("", "unlabelled"), ("cat", "test"), ("cat", "train")]


def test_words_for_no_label_are_no_class_inside_of_splits_either(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ["train/cat/1.png", "train/dog/2.png", "train/Unlabelled/3.png", "test/cat/4.png"]
    for data in both_forms(tmp_path, names):
        assert said(data) == [("", "train"), ("cat", "test"), ("cat", "train"), ("dog", "train")]
        say(open_dataset(data, Path()).overview())
        line = "1 image labelled 'Unlabelled' counts as unlabelled; to make it a class: "
        assert f"{line}ARGS='--as-class Unlabelled'" in capsys.readouterr().out
        kept = open_dataset(data, Path(), as_class=["unlabelled"])
        assert "Unlabelled" in kept.labels and not kept.hidden


def test_names_that_begin_alike_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = [f"train/{what}.{i}.png" for what in ("cat", "dog") for i in range(3)]
    for data in both_forms(tmp_path, [*names, "test/1.png"]):
        assert {label for label, _ in said(data)} == {""}
        assert "no image has a label, but their names begin alike: cat (3), dog (3)" in (
            capsys.readouterr().err
        )


# --- tables beside the images


@pytest.mark.parametrize("place", ["", "train/"])
def test_metadata_beside_the_images_gives_the_labels(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture
) -> None:
    data = fill(tmp_path, f"{place}0.png", f"{place}1.png", f"{place}2.png")
    (tmp_path / place / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n")
    split = "train" if place else ""
    assert said(data) == [("", split), ("cat", split), ("dog", split)]
    assert "gives 2 of 3 of them their label" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["train", "unlabelled"])
def test_a_split_of_metadata_that_contradicts_the_folder_is_refused(
    tmp_path: Path, folder: str
) -> None:
    data = fill(tmp_path, f"{folder}/0.png", f"{folder}/1.png", "test/2.png")
    rows = f"{folder}/0.png,cat,{folder}\n{folder}/1.png,dog,test\n"
    beside = tmp_path / "metadata.csv"
    beside.write_text(f"file_name,label,split\n{rows}test/2.png,dog,\n")
    message = rf"{folder}/1.png is of the split test, but its folder says {folder}"
    with pytest.raises(UsageError, match=message) as caught:
        open_dataset(data, Path())
    assert ("dog", "test") in said(caught.value.instead["DATA"] or "")
    beside.write_text(f"file_name,label,split\n{folder}/0.png,cat,{folder}\ntest/2.png,dog,\n")
    assert ("dog", "test") in said(data)


def test_class_folders_go_before_metadata_and_other_tables_are_told_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = fill(tmp_path / "a", "cat/0.png", "dog/1.png")
    (tmp_path / "a/metadata.csv").write_text("file_name,label\ncat/0.png,x\ndog/1.png,y\n")
    assert said(data) == [("cat", ""), ("dog", "")]
    data = fill(tmp_path / "b", "train/7.png", "train/8.png")
    (tmp_path / "b/labels.csv").write_text("id,breed\n7,pug\n8,lab\n")
    assert {label for label, _ in said(data)} == {""}
    assert f"name it: DATA={data}/labels.csv" in capsys.readouterr().err


# --- what is no image of anybody


def test_what_systems_leave_is_passed_over_counted_and_told_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    junk = [
        "__MACOSX/cat/._1.png",
        "cat/._1.png",
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.png",
        "cat/.ipynb_checkpoints/1-checkpoint.png",
        "$RECYCLE.BIN/gone.png",
        "dog/Thumbs.db",
    ]
    for data in both_forms(tmp_path, [*BOTH, *junk]):
        assert said(data) == [("cat", ""), ("dog", "")]
        out = capsys.readouterr().out
        for name in ("__MACOSX", "._*", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN"):
            assert name in out, name


@pytest.mark.parametrize(
    "said",
    ["mask", "Masks", "label", "labels", "labelIds", "label_ids", "seg", "segmentation", "gt"]
    + ["segmentations", "annotation", "groundtruth", "ground_truth", "label_2"],
)
def test_a_mask_is_one_by_its_name_beside_its_image_alone(said: str) -> None:
    names = ["1.png", f"1_{said}.png", f"2-{said}.tif", f"3_{said}.jpg", "3.jpg", f"x/1_{said}.png"]
    assert masks_among([Path(name) for name in names]) == {1}


def test_masks_beside_their_images_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pictures = ["benign/b (1).png", "benign/b (2).png", "malignant/face_mask.png", "x/a_mask.jpg"]
    masks = ["benign/b (1)_mask.png", "benign/b (1)_mask_1.png", "malignant/b (2)_mask.png"]
    names = [*pictures, "x/a.jpg", *masks]
    left_out = {names[place] for place in masks_among([Path(name) for name in names])}
    assert left_out == {"benign/b (1)_mask.png", "benign/b (1)_mask_1.png"}
    for data in both_forms(tmp_path, names):
        assert not left_out & {key for key, *_ in listed(data)}
        assert "2 masks are left out, whose images lie beside them" in capsys.readouterr().out


def test_what_a_table_beside_gives_a_label_is_no_mask(tmp_path: Path) -> None:
    data = fill(tmp_path, "0.png", "0_label.png", "1.png", "1_label.png", "2.png", "2_label.png")
    lines = [
        "file_name,label",
        "0.png,front",
        "0_label.png,back",
        "1.png,front",
        "1_label.png,back",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join([*lines, "2.png,front"]))
    found = [(key, label) for key, label, _ in listed(data)]
    assert found == [*(tuple(line.split(",")) for line in lines[1:]), ("2.png", "front")]


# --- the tree


def test_the_tree_has_a_line_for_each_class_and_a_column_for_each_split(tmp_path: Path) -> None:
    data = fill(tmp_path, "train/cat/1.png", "train/cat/2.png", "test/dog/3.png", "train/4.png")
    found = open_dataset(data, Path()).overview()
    assert [line.split() for line in found.lines()] == [
        [f"{tmp_path.name}:", "4", "images,", "2", "classes"],
        ["train", "test"],
        ["cat", "2"],
        ["dog", "1"],
        ["(no", "label)", "1"],
    ]
    assert found.record() == {
        "images": 4,
        "classes": {"cat": {"train": 2}, "dog": {"test": 1}, "": {"train": 1}},
        "unlabelled_words": {},
    }


def test_the_tree_of_many_classes_stays_short(tmp_path: Path) -> None:
    names = [f"c{i:02d}/{j}.png" for i in range(40) for j in range(1 + i % 3)]
    lines = open_dataset(fill(tmp_path, *names, "loose.png"), Path()).overview().lines()
    assert len(lines) == SHOWN + 1 and "… 30 more, 1 to 3 images each" in lines[-2]
    assert "(no label)" in lines[-1]


def test_numbers_of_classes_stay_in_their_order_and_several_in_one_cell_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "x.csv").write_text('path,label\n1.png,cat\n2.png,"cat,dog"\n3.png,"[dog]"\n')
    for name in ("1", "2", "3"):
        (tmp_path / f"{name}.png").write_bytes(encoded(picture()))
    say(open_dataset(str(tmp_path / "x.csv"), Path()).overview())
    assert "2 images with several classes in one label, such as '[dog]'" in capsys.readouterr().err
    (tmp_path / "x.csv").write_text('path,label\n1.png,"tench, Tinca tinca"\n2.png,"cat"\n')
    say(open_dataset(str(tmp_path / "x.csv"), Path()).overview())
    assert "several" not in capsys.readouterr().err
