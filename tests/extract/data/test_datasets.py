"""Data sets and images: which files count, what their folders mean, the pixels a model sees, and a
status for every kind of bad file."""

import dataclasses
import io
import os
import pickle
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import MEAN, SQUASH, STD, encoded, fill, idx, listed, picture, table
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from base.errors import UsageError
from cache_specs.spec import Preprocess
from cache_specs.store import STATUS
from extract.data.datasets import build_items, open_dataset
from extract.images import OK, Batches, decode, pipeline

SHORTEST = Preprocess(32, "shortest", 24, "bilinear", True, MEAN, STD)


# --- folders


def test_class_folders_give_the_labels(tmp_path):
    data = fill(tmp_path, "cat/b.jpg", "cat/a.PNG", "dog/deep/c.webp", "loose.jpg", "cat/notes.txt")
    assert listed(data) == [
        ("cat/a.PNG", "cat", ""),
        ("cat/b.jpg", "cat", ""),
        ("dog/deep/c.webp", "dog", ""),
        ("loose.jpg", "", ""),
    ]


def test_split_folders_give_the_splits(tmp_path):
    data = fill(
        tmp_path,
        "train/cat/a.jpg",
        "Val/cat/b.jpg",
        "validation/dog/b.jpg",
        "test/dog/c.jpg",
        "unlabelled/d.jpg",
        "unlabeled/cat/e.jpg",
        "train/loose.jpg",
    )
    assert listed(data) == [
        ("Val/cat/b.jpg", "cat", "val"),
        ("test/dog/c.jpg", "dog", "test"),
        ("train/cat/a.jpg", "cat", "train"),
        ("train/loose.jpg", "", "train"),
        ("unlabeled/cat/e.jpg", "", "unlabelled"),
        ("unlabelled/d.jpg", "", "unlabelled"),
        ("validation/dog/b.jpg", "dog", "val"),
    ]


def test_a_class_called_test_among_others_is_a_class(tmp_path):
    assert listed(fill(tmp_path, "test/a.jpg", "cat/b.jpg")) == [
        ("cat/b.jpg", "cat", ""),
        ("test/a.jpg", "test", ""),
    ]


def test_images_alone_have_no_labels(tmp_path):
    assert listed(fill(tmp_path, "b.jpg", "a.tiff")) == [("a.tiff", "", ""), ("b.jpg", "", "")]


@pytest.mark.parametrize("names", [(), ("notes.txt", ".hidden.jpg", ".git/a.jpg")])
def test_a_folder_without_images_is_refused(tmp_path, names):
    with pytest.raises(
        UsageError,
        match=rf"DATA={tmp_path}: no image in this folder \(looked for .apng, .*at any depth\)",
    ):
        open_dataset(fill(tmp_path, *names), Path())


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_unreadable_and_never_hangs(tmp_path):
    data = fill(tmp_path, "good.jpg", ".hidden.jpg", "folder.jpg/inside.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "good.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    items = build_items(open_dataset(data, Path()))
    sizes = dict(zip(items.keys, items.size.tolist(), strict=True))
    assert sizes == {
        "dangling.jpg": 0,
        "fifo.jpg": 0,
        "folder.jpg/inside.jpg": 21,
        "good.jpg": 8,
        "link.jpg": 8,
        "loop.jpg": 0,
    }
    assert [sha for key, sha in zip(items.keys, items.sha256, strict=True) if not sizes[key]] == [
        "",
        "",
        "",
    ]


def test_a_name_that_is_no_utf_8_is_shown_and_read(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    dataset = open_dataset(str(tmp_path), Path())
    assert dataset.keys == [r"caf\xe9.jpg"] and dataset.read(0) == b"x"


def test_each_key_reads_its_own_file_also_in_a_worker(tmp_path):
    dataset = pickle.loads(
        pickle.dumps(open_dataset(fill(tmp_path, "z.jpg", "B/a.jpg", "a.jpg", "a/b.jpg"), Path()))
    )
    assert [dataset.read(i).decode() for i in range(4)] == list(dataset.keys)


def test_a_dataset_that_is_not_there_is_refused_with_the_choices():
    with pytest.raises(
        UsageError,
        match=(
            r"DATA=digit: there is no such folder; "
            r"did you mean 'digits'.*torchvision:NAME, hf:OWNER/NAME, or digits"
        ),
    ):
        open_dataset("digit", Path())
    with pytest.raises(UsageError, match=r"DATA=/nowhere\.csv: there is no such file"):
        open_dataset("/nowhere.csv", Path())


# --- tables


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_gives_paths_labels_and_splits(tmp_path, kind):
    fill(tmp_path, "b.jpg", "in/a.jpg")
    data = table(
        tmp_path,
        kind,
        {
            "path": ["in/a.jpg", "b.jpg", "gone.jpg", "u.jpg"],
            "label": ["cat", "dog", None, "cat"],
            "split": ["train", "validation", "", "unlabelled"],
        },
    )
    assert listed(data) == [
        ("b.jpg", "dog", "val"),
        ("gone.jpg", "", ""),
        ("in/a.jpg", "cat", "train"),
        ("u.jpg", "", "unlabelled"),
    ]
    dataset = open_dataset(data, Path())
    items = build_items(dataset)
    assert (
        dataset.name == "list"
        and dataset.read(2) == b"in/a.jpg"
        and items.size.tolist() == [5, 0, 8, 0]
        and items.sha256[1] == ""
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_minus_one_is_an_unknown_label(tmp_path, kind):
    assert [
        label
        for _, label, _ in listed(
            table(tmp_path, kind, {"path": ["a.jpg", "b.jpg", "c.jpg"], "label": [3, -1, 0]})
        )
    ] == ["3", "", "0"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a.jpg"], "lable": ["x"]}, r"unknown column 'lable'; did you mean 'label'"),
        (
            {"label": ["x"]},
            r"needs a column 'path', the images' files; found the columns \['label'\]; add it",
        ),
        (
            {"Foto": ["a/B.JPG"], "label": ["x"]},
            r"found the columns \['Foto', 'label'\]; rename 'Foto' to 'path'",
        ),
        ({"path": []}, r"the table has no row; write one row for each image"),
        ({"path": ["a.jpg", "s3://b/c.jpg"]}, r"row 3: 's3://b/c\.jpg' is an address, not a file"),
        ({"path": ["a.jpg"], "split": ["trian"]}, r"row 2: split 'trian'; did you mean 'train'"),
        (
            {"path": ["a.jpg", "b.jpg", "a.jpg"]},
            r"the key 'a\.jpg' stands there twice, in the rows 2, 4; each image may be listed once",
        ),
        (
            {"path": ["b.jpg", "a.jpg", "c.jpg", "a.jpg", "./b.jpg"]},
            r"the key 'b\.jpg' stands there twice, in the rows 2, 6 \(and 1 more keys twice\);",
        ),
        ({"path": ["a.jpg", None], "label": ["x", "y"]}, r"row 3: the path is empty"),
    ],
)
def test_a_mistake_in_a_table_is_named(tmp_path, kind, columns, message):
    with pytest.raises(UsageError, match=message) as caught:
        open_dataset(table(tmp_path, kind, columns), Path())
    assert f"list.{kind}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("list.csv", b"path\n\xff\xfe.jpg\n"), ("list.parquet", b"PAR1 damaged PAR1")],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name} cannot be read"):
        open_dataset(str(tmp_path / name), Path())


# --- digits and torchvision


def test_the_digits_have_fixed_splits_and_lossless_pixels():
    from sklearn.datasets import load_digits

    dataset = open_dataset("digits", Path())
    assert len(dataset.keys) == 1797 and dataset.keys[0] == "0000" and dataset.keys[-1] == "1796"
    assert {split: dataset.splits.count(split) for split in ("train", "val", "test")} == {
        "train": 1087,
        "val": 355,
        "test": 355,
    }
    for digit in map(str, range(10)):
        rows = [
            split
            for split, label in zip(dataset.splits, dataset.labels, strict=True)
            if label == digit
        ]
        assert rows.count("test") == rows.count("val") == len(rows) // 5
    assert open_dataset("digits", Path()).splits == dataset.splits
    images = load_digits().images
    for row in (0, 5, 1796):
        found = np.asarray(Image.open(io.BytesIO(dataset.read(row))))
        np.testing.assert_array_equal(found, np.round(images[row] * 255 / 16).astype(np.uint8))


def test_torchvision_mnist_is_read_from_its_files(tmp_path):
    chance, raw = np.random.default_rng(0), tmp_path / "MNIST" / "raw"
    images = {
        "train": chance.integers(0, 256, (7, 28, 28), np.uint8),
        "t10k": chance.integers(0, 256, (3, 28, 28), np.uint8),
    }
    for part, pixels in images.items():
        idx(raw, f"{part}-images-idx3-ubyte", pixels)
        idx(raw, f"{part}-labels-idx1-ubyte", np.arange(len(pixels), dtype=np.uint8))
    dataset = pickle.loads(pickle.dumps(open_dataset("torchvision:MNIST", tmp_path)))
    assert dataset.name == "MNIST" and len(dataset.keys) == 10
    assert dataset.keys[0] == "test/00000000" and dataset.keys[3] == "train/00000000"
    assert (
        list(dataset.labels[:4]) == ["0 - zero", "1 - one", "2 - two", "0 - zero"]
        and list(dataset.splits) == ["test"] * 3 + ["train"] * 7
    )
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(dataset.read(4)))), images["train"][1]
    )


def test_a_torchvision_set_that_is_not_there_is_named_with_the_command(tmp_path):
    with pytest.raises(
        UsageError, match=r"torchvision has no data set 'MNITS'; did you mean 'MNIST'"
    ):
        open_dataset("torchvision:MNITS", tmp_path)
    command = rf"python -c .*d\.MNIST\('{tmp_path}', train=True, download=True\)"
    with pytest.raises(
        UsageError,
        match=(
            rf"torchvision's MNIST, train=True is not in {tmp_path} \(.*\)\. "
            rf".*Download it once with:\n  .*{command}"
        ),
    ):
        open_dataset("torchvision:MNIST", tmp_path)


# --- preprocessing


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (24, 24), (8, 8), (500, 33)])
def test_squash_scales_both_sides(size):
    found, status = decode(encoded(picture(*size)), SQUASH)
    expected = v2.functional.pil_to_tensor(
        v2.functional.resize(picture(*size), [24, 24], InterpolationMode.BICUBIC)
    )
    assert status == OK and found.dtype == torch.uint8
    assert_as_pillow(found, expected, 0.97 if size[0] >= size[1] else 0.85)
    then = dataclasses.replace(SQUASH, pixels=2)
    assert torch.equal(decode(encoded(picture(*size)), then)[0], expected)


def assert_as_pillow(found: torch.Tensor, expected: torch.Tensor, same: float = 0.97) -> None:
    """Fewer levels are the same where Pillow scales the height first."""
    far = (found.int() - expected.int()).abs()
    assert found.shape == expected.shape and far.max() <= 1 and (far == 0).float().mean() > same


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (24, 24), (8, 8), (500, 33)])
def test_shortest_scales_the_shorter_side_and_cuts_the_middle(size):
    found, status = decode(encoded(picture(*size)), SHORTEST)
    reference = v2.Compose(
        [
            v2.Resize(32, InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(24),
            v2.PILToTensor(),
        ]
    )
    assert status == OK and found.shape == (3, 24, 24)
    assert_as_pillow(found, reference(picture(*size)))
    then = dataclasses.replace(SHORTEST, pixels=2)
    assert torch.equal(decode(encoded(picture(*size)), then)[0], reference(picture(*size)))


def test_without_antialias_the_tensor_is_scaled():
    prep = Preprocess(24, "squash", 24, "bilinear", False, MEAN, STD)
    expected = v2.functional.resize(
        v2.functional.pil_to_tensor(picture(200, 100)),
        [24, 24],
        InterpolationMode.BILINEAR,
        antialias=False,
    )
    assert torch.equal(pipeline(prep)(picture(200, 100)), expected)
    assert not torch.equal(expected, decode(encoded(picture(200, 100)), SQUASH)[0])


# --- decoding


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose pixels are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 10))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", "undecodable"),
        (b"<!DOCTYPE html><html>404</html>", "undecodable"),
        (b"\xff\xd8\xff", "undecodable"),
        (bytes(1000), "undecodable"),
        (encoded(picture(), "JPEG")[:-200], "truncated"),
        (encoded(picture(), "JPEG")[: len(encoded(picture(), "JPEG")) // 2], "truncated"),
        (encoded(picture())[:-200], "truncated"),
        (encoded(picture())[: len(encoded(picture())) // 2], "truncated"),
        (png_of(65000, 65000), "too large"),
        (encoded(picture(), "PDF"), "undecodable"),
    ],
    ids=[
        "empty",
        "html",
        "three bytes",
        "zeros",
        "jpeg end",
        "jpeg half",
        "png end",
        "png half",
        "65000 x 65000",
        "a format not allowed",
    ],
)
def test_a_bad_file_gets_a_status_and_no_pixels(data, status):
    pixels, code = decode(data, SQUASH)
    assert pixels is None and STATUS[code] == status


def test_a_strip_is_too_large_to_scale_by_its_shorter_side_only():
    strip = encoded(Image.new("RGB", (1, 20_000)))
    big = Preprocess(224, "shortest", 224, "bicubic", True, MEAN, STD)
    assert STATUS[decode(strip, big)[1]] == "too large" and STATUS[decode(strip, SQUASH)[1]] == "ok"


def test_16_bit_grey_is_scaled_not_clipped():
    ramp = (np.arange(24 * 24, dtype=np.uint16).reshape(24, 24) * 113).astype(np.uint16)
    pixels, status = decode(encoded(Image.fromarray(ramp)), SQUASH)
    assert status == OK
    np.testing.assert_array_equal(
        pixels.numpy(), np.broadcast_to(np.round(ramp / 257).astype(np.uint8), (3, 24, 24))
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("brightest", [200, 4095, 65535])
def test_a_dark_16_bit_picture_stays_dark(kind, brightest):
    """What a level means does not hang on the other levels of its picture."""
    ramp = np.linspace(0, brightest, 24 * 24).reshape(24, 24).astype(np.uint16)
    pixels, status = decode(encoded(Image.fromarray(ramp), kind), SQUASH)
    assert status == OK and torch.equal(
        pixels[0], torch.from_numpy(np.round(ramp / 257).astype(np.uint8))
    )


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_levels_without_a_known_white_are_refused(dtype):
    pixels, status = decode(encoded(Image.fromarray(np.ones((24, 24), dtype)), "TIFF"), SQUASH)
    assert pixels is None and STATUS[status] == "undecodable"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb_as_pillow_does_it(mode):
    image = picture(24, 24, mode)
    kind = "PNG" if mode in ("1", "L", "LA", "P", "RGBA") else "JPEG"
    data = encoded(image, kind)
    pixels, status = decode(data, SQUASH)
    assert status == OK and torch.equal(
        pixels, v2.functional.pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))
    )


def test_a_palette_with_alpha_is_an_image_too():
    """Pillow warns of such files; a warning must be neither an error nor noise for
    each of a million images."""
    image = picture(24, 24, "P")
    pixels, status = decode(encoded(image, transparency=bytes(range(256))), SQUASH)
    share = np.asarray(image)[..., None] / 255
    white = np.rint(np.asarray(image.convert("RGB")) * share + 255 * (1 - share))
    assert status == OK and np.abs(pixels.permute(1, 2, 0).numpy() - white).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_is_turned_upright(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(40, 30), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((30, 40) if orientation > 4 else (40, 30))
    assert torch.equal(decode(data, SHORTEST)[0], decode(encoded(upright), SHORTEST)[0])


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_every_allowed_format_is_decoded(kind):
    assert decode(encoded(picture(), kind), SQUASH)[1] == OK


def test_a_batch_is_padded_with_black_and_knows_the_missing_and_the_changed(tmp_path):
    import hashlib

    data = [encoded(picture(30 + i, 30)) for i in range(3)]
    shas = [hashlib.sha256(item).hexdigest() for item in data]

    def read(row: int) -> bytes:
        if row == 1:
            raise FileNotFoundError
        return data[row]

    batches = Batches(read, [shas[0], shas[1], "0" * 64], SQUASH, [range(0, 3)], 5)
    pixels_BCHW, status_B, remarks_B = batches[0]
    assert not remarks_B.any() and remarks_B.shape == (5,)
    assert pixels_BCHW.shape == (5, 3, 24, 24) and pixels_BCHW.dtype == torch.uint8
    assert [STATUS[code] for code in status_B] == ["ok", "missing", "missing", "ok", "ok"]
    assert torch.equal(pixels_BCHW[0], decode(data[0], SQUASH)[0]) and not pixels_BCHW[1:].any()


# --- labels that would be wrong without a word


def test_an_unquoted_comma_or_a_second_column_of_one_name_is_refused(tmp_path):
    for text, message in (
        (
            "path,label\n1.png,cat, big\n",
            (
                r"row 2 has more cells than the 2 columns .*a cell with a ',' "
                r"in it is quoted: \"cat, big\""
            ),
        ),
        (
            "path;label\n1.png;cat; big\n",
            (
                r"row 2 has more cells than the 2 columns .*a cell with a ';' "
                r"in it is quoted: \"cat; big\""
            ),
        ),
        ("path,label,label\n1.png,a,b\n", "the column 'label' stands there twice"),
    ):
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(UsageError, match=message):
            open_dataset(str(tmp_path / "list.csv"), Path())
    (tmp_path / "list.csv").write_text('path,label\n1.png,"cat, big"\n2.png\n')
    assert listed(str(tmp_path / "list.csv")) == [("1.png", "cat, big", ""), ("2.png", "", "")]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_a_spreadsheet_is_read_and_columns_of_other_names_are_told(
    tmp_path, capsys, separator
):
    rows = [
        ("path", "taken", "label", "by"),
        ("1.png", "2,5", "cat", "x"),
        ("2.png", "", "dog", "y"),
    ]
    text = "\n".join(
        separator.join(f'"{cell}"' if separator in cell else cell for cell in row) for row in rows
    )
    (tmp_path / "list.csv").write_text(text, encoding="utf-8-sig")
    assert listed(str(tmp_path / "list.csv")) == [("1.png", "cat", ""), ("2.png", "dog", "")]
    assert "the columns 'taken', 'by' are not used" in capsys.readouterr().out


def test_what_is_there_and_cannot_be_data_is_not_said_to_be_missing_and_nothing_far_is_proposed(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        UsageError, match=r"DATA=notes.txt: is a file of none of these kinds. DATA may be"
    ) as caught:
        open_dataset("notes.txt", Path())
    assert not caught.value.instead
    with pytest.raises(
        UsageError, match=r"DATA=photos/: there is no such folder. DATA may be"
    ) as caught:
        open_dataset("photos/", Path())
    assert not caught.value.instead
    (tmp_path / "photo").mkdir()
    with pytest.raises(UsageError, match=r"did you mean 'photo/'") as caught:
        open_dataset("photos/", Path())
    assert caught.value.instead == {"DATA": "photo/"}


def test_a_class_folder_without_an_image_is_said(tmp_path, capsys):
    (tmp_path / "c2").mkdir()
    listed(fill(tmp_path, "c0/1.png", "c1/2.png"))
    assert "there is no image in c2\n" in capsys.readouterr().err


def test_unlabelled_images_may_lie_beside_the_classes(tmp_path, capsys):
    found = listed(
        fill(
            tmp_path, "c0/1.png", "c1/test/2.png", "Unlabeled/x/3.png", "unlabelled/4.png", "5.png"
        )
    )
    assert sorted(found) == [
        ("5.png", "", ""),
        ("Unlabeled/x/3.png", "", "unlabelled"),
        ("c0/1.png", "c0", ""),
        ("c1/test/2.png", "c1", ""),
        ("unlabelled/4.png", "", "unlabelled"),
    ]
    assert (
        "the 2 images in Unlabeled, unlabelled are used without a label" in capsys.readouterr().out
    )


def test_split_folders_beside_classes_are_classes_and_said_to_be(tmp_path, capsys):
    assert {
        label for _, label, _ in listed(fill(tmp_path, "c0/1.png", "c1/2.png", "test/3.png"))
    } == {"c0", "c1", "test"}
    assert "the folders test are taken for classes" in capsys.readouterr().err


def test_linked_class_folders_are_followed_and_loops_are_not(tmp_path):
    fill(tmp_path / "elsewhere", "1.png")
    data = fill(tmp_path / "photos", "c0/2.png")
    (tmp_path / "photos" / "c1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "c0" / "again").symlink_to(tmp_path / "photos")
    assert listed(data) == [("c0/2.png", "c0", ""), ("c1/1.png", "c1", "")]


@pytest.mark.parametrize("name", ["0a1b2c", "0001.0002", "photo"])
def test_a_file_without_an_ending_is_an_image_by_its_content(tmp_path, name):
    kinds = {"JPEG": "RGB", "PNG": "RGB", "GIF": "P", "WEBP": "RGB", "TIFF": "RGB", "BMP": "RGB"}
    kinds |= {"PPM": "RGB", "AVIF": "RGB", "JPEG2000": "RGB", "ICO": "RGB"}
    for kind, mode in kinds.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).write_bytes(encoded(picture(32, 32, mode), kind))
    for other, data in {"README": b"P is for picture", "Makefile": b"BM:", "empty": b""}.items():
        (tmp_path / other).write_bytes(data)
    found = open_dataset(str(tmp_path), Path())
    assert set(found.labels) == set(kinds)
    for row in range(len(found.keys)):
        assert decode(found.read(row), SQUASH)[1] == OK


@pytest.mark.parametrize(
    "ending", ["jfif", "jpe", "JPE", "avif", "jp2", "tga", "dib", "pbm", "pnm"]
)
def test_less_known_endings_are_images_too(tmp_path, ending):
    assert len(listed(fill(tmp_path, f"c0/1.{ending}", "c0/2.txt"))) == 1


def test_files_of_other_kinds_are_counted(tmp_path, capsys):
    assert len(listed(fill(tmp_path, "c0/1.png", "c0/2.heic", "c0/3.HEIC", "README"))) == 1
    out, err = capsys.readouterr()
    assert "3 files are left out" in out and "2 with .heic, 1 with no ending" in out
    assert (
        "warning: " in err
        and (
            "images with .heic cannot be read; to use them too, type "
            f"{sys.executable} -m pip install pillow-heif"
        )
        in err
    )
    with pytest.raises(
        UsageError,
        match=r"no image in this folder .*; type .* -m pip install pillow-heif, and make JPEG "
        r"or PNG files of those with \.psd$",
    ):
        open_dataset(fill(tmp_path / "phone", "c0/1.heic", "c0/2.psd"), Path())
    capsys.readouterr()
    listed(fill(tmp_path / "two", "c0/1.png", "notes.txt"))
    out, err = capsys.readouterr()
    assert "1 file is left out" in out and "warning" not in err


def test_training_and_testing_are_splits_and_a_stray_image_beside_two_of_them_is_an_error(
    tmp_path: Path,
) -> None:
    for name in ("training/cat/a.jpg", "testing/dog/b.jpg", "dev/cat/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert listed(str(tmp_path)) == [
        ("dev/cat/c.jpg", "cat", "val"),
        ("testing/dog/b.jpg", "dog", "test"),
        ("training/cat/a.jpg", "cat", "train"),
    ]
    (tmp_path / "stray.jpg").write_bytes(b"x")
    with pytest.raises(
        UsageError, match=r"dev, testing, training are splits, but stray\.jpg lies in none of them"
    ):
        open_dataset(str(tmp_path), Path())


def test_a_split_without_labels_is_used_unlabelled_in_every_form(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """ImageNet's own test/ has no class folders."""
    for name in ("train/cat/a.jpg", "val/cat/b.jpg", "test/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert [split for *_, split in listed(str(tmp_path))] == ["unlabelled", "train", "val"]
    assert (
        "none of the 1 images of the split 'test' has a label; they are used unlabelled"
        in capsys.readouterr().out
    )
