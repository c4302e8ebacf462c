"""Tars of images: webdataset's shards, tars of folders, and what a tar may
hold that must not be read."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from pictures import SQUASH, encoded, fill, listed, picture

from base.errors import UsageError
from cache_specs.sources import expand_shards
from extract.data.datasets import build_items, open_dataset
from extract.data.tars import only_tars
from extract.images import OK, decode


def tar(
    path: Path,
    *members: tuple[str, bytes] | tarfile.TarInfo,
    form: int = tarfile.PAX_FORMAT,
    mode: str = "w",
) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form, encoding="utf-8", errors="surrogateescape") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return str(path)


def sample(name: str, label: object, kind: str = "cls") -> list[tuple[str, bytes]]:
    """An image whose bytes are its name, and its label."""
    return [
        (f"{name}.jpg", name.encode()),
        (f"{name}.{kind}", (json.dumps(label) if kind == "json" else str(label)).encode()),
    ]


def contents(data: str) -> dict[str, bytes]:
    dataset = pickle.loads(pickle.dumps(open_dataset(data, Path())))
    return {key: dataset.read(i) for i, key in enumerate(dataset.keys)}


def test_what_has_a_label_of_its_own_is_no_mask(tmp_path):
    members = []
    for name, label in (("0", "a"), ("0_label", "b"), ("1", "a"), ("1_mask", None)):
        members.append((f"{name}.png", name.encode()))
        members += [(f"{name}.cls", label.encode())] if label else []
    found = open_dataset(tar(tmp_path / "x.tar", *members), Path())
    assert [*zip(found.keys, found.labels, strict=True)] == [
        ("0.png", "a"),
        ("0_label.png", "b"),
        ("1.png", "a"),
    ]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_one_tar_with_labels_beside_the_images(tmp_path, form):
    deep = "/".join(["d" * 60] * 2) + "/0004"  # a long name has a header of its own
    data = tar(
        tmp_path / "x.tar",
        *sample("0001", 7),
        *sample("0002", "cat\n"),
        *sample("0003", {"label": "dog", "id": 5}, "json"),
        *sample(deep, {"cls": 3}, "json"),
        ("0005.png", b"0005"),
        *sample("0006", -1),
        form=form,
    )
    assert listed(data) == [
        ("0001.jpg", "7", ""),
        ("0002.jpg", "cat", ""),
        ("0003.jpg", "dog", ""),
        ("0005.png", "", ""),
        ("0006.jpg", "", ""),
        (f"{deep}.jpg", "3", ""),
    ]
    assert contents(data) == {key: key.split(".")[0].encode() for key, _, _ in listed(data)}


def test_a_real_image_is_decoded_from_its_place_in_the_tar(tmp_path):
    from pictures import SQUASH

    data = tar(
        tmp_path / "x.tar",
        ("a.txt", b"caption"),
        ("a.png", encoded(picture())),
        ("b.webp", encoded(picture(), "WEBP")),
    )
    items = build_items(dataset := open_dataset(data, Path()))
    assert items.keys == ["a.png", "b.webp"] and items.size.tolist() == [
        len(encoded(picture())),
        len(encoded(picture(), "WEBP")),
    ]
    assert all(decode(dataset.read(i), SQUASH)[1] == OK for i in range(2))


def test_shards_give_the_splits_when_all_of_them_name_one(tmp_path):
    for name in ("train-000000", "train-000001", "val-000000"):
        tar(tmp_path / "s" / f"{name}.tar", *sample("0000", name[:3]), *sample("0001", name[-1]))
    rows = [
        ("train-000000/0000.jpg", "tra", "train"),
        ("train-000000/0001.jpg", "0", "train"),
        ("train-000001/0000.jpg", "tra", "train"),
        ("train-000001/0001.jpg", "1", "train"),
        ("val-000000/0000.jpg", "val", "val"),
        ("val-000000/0001.jpg", "0", "val"),
    ]
    assert listed(str(tmp_path / "s")) == rows and only_tars(tmp_path / "s")
    assert listed(str(tmp_path / "s/train-{000000..000001}.tar")) == rows[:4]
    assert set(contents(str(tmp_path / "s")).values()) == {b"0000", b"0001"}
    tar(tmp_path / "s/more-000000.tar", *sample("0000", "m"))
    with pytest.raises(
        UsageError, match=r"more-000000.tar has none of train, val, test and unlabelled in its name"
    ):
        listed(str(tmp_path / "s"))
    tar(tmp_path / "t/train/000000.tar", *sample("a", 1))
    tar(tmp_path / "t/unlabelled/000000.tar", *sample("b", 1))
    assert listed(str(tmp_path / "t")) == [("a.jpg", "1", "train"), ("b.jpg", "", "unlabelled")]


def test_missing_shards_are_counted_and_named(tmp_path):
    tar(tmp_path / "t-00.tar", *sample("0", 1))
    with pytest.raises(
        UsageError, match=r"11 of 12 shards are not there, the first is .*t-01\.tar"
    ):
        open_dataset(str(tmp_path / "t-{00..11}.tar"), Path())
    with pytest.raises(UsageError, match=r"the shard .*t-00\.tar stands there twice"):
        open_dataset(str(tmp_path / "t-{00,00}.tar"), Path())
    with pytest.raises(UsageError, match=r"stands for 0 shards"):
        expand_shards("t-{9..0}.tar")
    with pytest.raises(UsageError, match=r"expected 1 to 100,000"):
        expand_shards("t-{0..99999999999999}.tar")
    assert expand_shards("{a,b}-{08..10}.tar") == [
        "a-08.tar",
        "a-09.tar",
        "a-10.tar",
        "b-08.tar",
        "b-09.tar",
        "b-10.tar",
    ]


@pytest.mark.parametrize("top", ["", "photos/", "./photos/"])
def test_a_tar_of_folders_is_read_as_the_folders_are(tmp_path, top):
    data = tar(
        tmp_path / "photos.tar",
        *(
            (f"{top}{name}", b"x")
            for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg")
        ),
    )
    prefix = top.removeprefix("./")
    assert listed(data) == [
        (f"{prefix}train/cat/1.jpg", "cat", "train"),
        (f"{prefix}train/dog/2.jpg", "dog", "train"),
        (f"{prefix}val/cat/3.jpg", "cat", "val"),
    ]


def test_a_folder_with_images_and_a_tar_is_a_folder_of_images(tmp_path):
    tar(tmp_path / "backup.tar", *sample("0", 1))
    assert [key for key, _, _ in listed(fill(tmp_path, "cat/1.jpg"))] == [
        "cat/1.jpg"
    ] and not only_tars(tmp_path)


# --- what must not be read


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_links_devices_and_names_that_leave_the_tar_are_left_out_and_counted(tmp_path, capsys):
    data = tar(
        tmp_path / "x.tar",
        ("good.jpg", b"good"),
        ("/etc/passwd.jpg", b"x"),
        ("../up.jpg", b"x"),
        ("in/../../up.jpg", b"x"),
        special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.jpg", tarfile.LNKTYPE, "good.jpg"),
        special("dev.jpg", tarfile.CHRTYPE),
        special("fifo.jpg", tarfile.FIFOTYPE),
        special("folder.jpg", tarfile.DIRTYPE),
        ("run.pyd", b"x"),
        ("run.pickle", pickle.dumps({})),
        ("a.b.jpg", b"x"),
    )
    assert contents(data) == {"good.jpg": b"good", "a.b.jpg": b"x"}
    out = capsys.readouterr().out
    assert (
        "9 members are left out" in out
        and "3 with names that leave the tar" in out
        and "2 links" in out
        and "2 devices" in out
        and "1 with .py" in out
    )


def test_a_name_that_is_no_utf_8_is_shown_and_read(tmp_path):
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT):
        data = tar(
            tmp_path / f"{form}.tar",
            (os.fsdecode(b"caf\xe9.jpg"), b"x"),
            (os.fsdecode(b"caf\xe9.cls"), b"latte"),
            form=form,
        )
        assert listed(data) == [(r"caf\xe9.jpg", "latte", "")] and contents(data) == {
            r"caf\xe9.jpg": b"x"
        }


@pytest.mark.parametrize(
    ("mode", "name", "command"),
    [
        ("w:gz", "x.tar.gz", "gunzip -k"),
        ("w:bz2", "x.tar.bz2", "bunzip2 -k"),
        ("w:xz", "x.tar.xz", "unxz -k"),
        ("w:gz", "x.tar", "gunzip -k"),
        ("w:gz", "x.tgz", "gunzip -k -S .tgz"),
    ],
)
def test_a_compressed_tar_is_refused_with_the_command_that_unpacks_it(
    tmp_path, mode, name, command
):
    tar(tmp_path / name, *sample("0", 1), mode=mode)
    for data in (tmp_path / name, tmp_path):
        with pytest.raises(UsageError, match=rf"{name} is compressed, so that .*: {command} '"):
            open_dataset(str(data), Path())


def test_every_truncation_is_refused_by_name(tmp_path):
    whole = Path(tar(tmp_path / "whole.tar", *sample("0", 1), ("1.jpg", bytes(3000)))).read_bytes()
    end = 512 * 2 * 2 + 512 + 3072  # two small members, the large one
    cut = tmp_path / "cut.tar"
    for length in (*range(0, end + 512, 173), 512, 1024, end - 1, end, end + 1, end + 511):
        cut.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"cut\.tar (is|goes)"):
            open_dataset(str(cut), Path())
    cut.write_bytes(whole[: end + 512])
    assert len(listed(str(cut))) == 2  # half an end mark is what some writers leave


def test_joined_tars_and_damaged_headers_are_refused(tmp_path):
    one = Path(tar(tmp_path / "one.tar", *sample("0", 1))).read_bytes()
    (tmp_path / "two.tar").write_bytes(one + one)
    with pytest.raises(
        UsageError, match=r"two\.tar goes on after its end mark: several tars were joined"
    ):
        open_dataset(str(tmp_path / "two.tar"), Path())
    for at in range(0, 1024 + 512, 31):
        damaged = bytearray(one)
        damaged[at] ^= 0x10
        (tmp_path / "bad.tar").write_bytes(damaged)
        if (
            at % 1024 < 512 and not 148 <= at % 1024 < 156
        ):  # the sum itself may be written in several ways
            with pytest.raises(UsageError, match=r"bad\.tar (is damaged|goes on)"):
                open_dataset(str(tmp_path / "bad.tar"), Path())


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124], block[124:136], block[136:148] = (
        b"0000644\0",
        b"0000000\0",
        b"0000000\0",
        size,
        b"00000000000\0",
    )
    block[148:156], block[156:157], block[257:265] = b" " * 8, kind, b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "member",
    [
        header(b"a.jpg", b"\xff" * 12),
        header(
            b"a.jpg", b"\xff" * 10 + b"\xfc\x00"
        ),  # sizes of -1 and -1024: back to its own header
        header(b"a.jpg", b"\x80" + b"\x7f" * 11),
        header(b"a.jpg", b"77777777777\0"),  # of 10^26 bytes and 8 GiB
        header(b"x", b"77777777777\0", b"x"),
        header(b"x", b"00010000000\0", b"L"),  # extended headers of 8 GiB and 2 MiB
        header(b"x", b"00000000016\0", b"x")
        + b"14 size=-2048\n".ljust(512, b"\0")
        + header(b"a.jpg", b"00000000000\0"),
        header(b"a.jpg", b"00000000000\0", b"S"),
    ],
    ids=[
        "minus 1",
        "minus 1024",
        "10^26",
        "8 GiB",
        "pax 8 GiB",
        "long name",
        "pax minus",
        "old sparse",
    ],
)
def test_hostile_headers_neither_hang_nor_fill_memory(tmp_path, member):
    path = tmp_path / "x.tar"
    path.write_bytes(
        header(b"good.jpg", b"00000000001\0") + b"g".ljust(512, b"\0") + member + bytes(1024)
    )
    try:
        assert listed(str(path)) == [("good.jpg", "", "")]
    except UsageError as error:
        assert "x.tar is damaged" in str(error) or "goes on after" in str(error)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x"), ("a.jpg", b"y")], r"the member 'a\.jpg' stands there twice"),
        (
            [("a.jpg", b"x"), ("a.JPG", b"y")],
            r"'a\.JPG' stands there twice, or with endings in small and capital letters",
        ),
        (
            [("a.jpg", b"x"), ("a.png", b"y")],
            r"the sample 'a' has 2 images, jpg and png; expected one",
        ),
        ([("a.jpg", b"x"), ("a.cls", b"\xff")], r"the label in 'a\.cls' cannot be read"),
        ([("a.jpg", b"x"), ("a.json", b"{")], r"the label in 'a\.json' cannot be read"),
        (
            [("a.jpg", b"x"), ("a.json", b'{"label": [1]}')],
            r"the label \[1\], expected a whole number or a name",
        ),
        ([("a.jpg", b"x"), ("a.json", b"[" * 10_000)], r"the label in 'a\.json' cannot be read"),
        ([("a.jpg", b"x"), ("a.cls", b"1" * 2_000_000)], r"it has 2,000,000 bytes"),
        ([("a.txt", b"x")], r"no image in 1 tars \(looked for \.apng"),
    ],
)
def test_a_mistake_in_a_tar_is_named(tmp_path, members, message):
    with pytest.raises(UsageError, match=message):
        open_dataset(tar(tmp_path / "x.tar", *members), Path())


def test_a_json_without_a_label_is_no_label(tmp_path):
    data = tar(
        tmp_path / "x.tar",
        *sample("a", {"caption": "x"}, "json"),
        *sample("b", [1], "json"),
        *sample("c", 2),
    )
    assert [row[1] for row in listed(data)] == ["", "", "2"]


def test_a_tar_that_has_changed_since_it_was_listed_is_unreadable_never_wrong(tmp_path):
    data = tar(tmp_path / "x.tar", *sample("a", 1), ("b.jpg", bytes(5000)))
    dataset = open_dataset(data, Path())
    os.truncate(data, 3000)
    with pytest.raises(OSError, match=r"ends before the 5000 bytes"):
        dataset.read(1)
    os.unlink(data)
    with pytest.raises(OSError, match=r"x\.tar"):
        dataset.read(0)


# --- the same images in another container


def test_the_same_images_have_the_same_embeddings_in_whatever_they_are_kept(tmp_path):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from conftest import config
    from pictures import h5

    from extract.run import run
    from train.data.reader import map_view

    images = {
        f"{label}/{i}.png": encoded(picture(30 + i, 30 + i)) for i, label in enumerate("abababab")
    }
    for name, image in images.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(image)
    tar(tmp_path / "photos.tar", *images.items())
    table = pa.table(
        {"image": list(images.values()), "label": [name[0] for name in images], "key": list(images)}
    )
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=3)
    h5(
        tmp_path / "photos.h5",
        images=list(images.values()),
        labels=[name[0] for name in images],
        keys=list(images),
    )
    found = [
        run(config(tmp_path / name, tmp_path / f"cache-{name}"))
        for name in ("photos", "photos.tar", "photos.parquet", "photos.h5")
    ]
    assert (
        len({view.folder.parent.name for view in found}) == 1
    )  # names and contents: one fingerprint
    assert len({(view.folder.parent / "items.parquet").read_bytes() for view in found}) == 1
    for view in found[1:]:
        np.testing.assert_array_equal(map_view(view), map_view(found[0]))


def test_a_member_without_an_ending_is_an_image_by_its_content(tmp_path):
    data = tar(
        tmp_path / "x.tar",
        ("cat/0a1b", encoded(picture())),
        ("cat/0c.avif", encoded(picture(), "AVIF")),
        ("dog/notes", b"no image"),
        ("dog/empty", b""),
        ("dog/2.jfif", encoded(picture(), "JPEG")),
    )
    assert listed(data) == [
        ("cat/0a1b", "cat", ""),
        ("cat/0c.avif", "cat", ""),
        ("dog/2.jfif", "dog", ""),
    ]
    for bytes_of_one in contents(data).values():
        assert decode(bytes_of_one, SQUASH)[1] == OK
