"""A folder of the worst that users' disks hold: each file gets its exact status, the run ends,
memory stays small, good rows stay the same."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from conftest import BATCH, ROOT, ROWS, config
from PIL import Image

from base.errors import DataQualityError, UsageError
from cache_specs import integrity, store
from cache_specs.items import read_items
from cache_specs.view import STATUS
from extract import bad_images, pixels
from extract.data import readers
from extract.run import run
from train.data.reader import open_cache

GOOD = 40


def png(width: int, height: int, depth: int = 1, color: int = 0) -> bytes:
    """A real PNG of black pixels, a few KB however large it is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer, line = zlib.compressobj(9), bytes(1 + width * depth * {0: 1, 2: 3, 6: 4}[color] // 8)
    body = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def photo(seed: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(noise).resize((70, 50), Image.Resampling.BICUBIC).convert(mode)


def corpus(folder: Path) -> dict[str, str]:
    """Write the hostile files; -> key: expected status."""
    jpeg = encoded(photo(1), "JPEG", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "empty.jpg": (b"", "undecodable"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "html.jpg": (b"<!doctype html><title>404</title>", "undecodable"),
        "zeros.png": (bytes(3000), "undecodable"),
        "header-65000.png": (
            png(1, 1)[:16] + struct.pack(">II", 65000, 65000) + png(1, 1)[24:],
            "undecodable",
        ),
        "bomb-12000.png": (png(12_000, 12_000), "too large"),
        "bomb-65000.png": (png(65_000, 2_100), "too large"),
        "cmyk.jpg": (encoded(photo(2, "CMYK"), "JPEG"), "ok"),
        "16-bit.png": (
            encoded(Image.fromarray(np.arange(4900, dtype=np.uint16).reshape(70, 70)), "PNG"),
            "ok",
        ),
        "palette-alpha.png": (encoded(photo(3).quantize(16), "PNG", transparency=3), "ok"),
        "rgba.png": (encoded(photo(4, "RGBA"), "PNG"), "ok"),
        "animated.gif": (
            encoded(photo(5, "P"), "GIF", save_all=True, append_images=[photo(6, "P")]),
            "ok",
        ),
        "rotated.jpg": (encoded(photo(7), "JPEG", exif=exif.tobytes()), "ok"),
        "1x1.png": (encoded(Image.new("RGB", (1, 1), "red"), "PNG"), "ok"),
        "1x20000.png": (encoded(Image.new("L", (1, 20_000)), "PNG"), "ok"),
        "1-bit.png": (encoded(photo(8, "1"), "PNG"), "ok"),
        "odd name; $(touch pwned) 'x' \"y\"\n\t.jpg": (jpeg, "ok"),
        "ünï—号.jpg": (jpeg, "ok"),
        "-rf.jpg": (jpeg, "ok"),
        "UPPER.JPG": (jpeg, "ok"),
        "png.jpg": (encoded(photo(9), "PNG"), "ok"),
        "text.txt.jpg": (b"just text", "undecodable"),
        "flipped.png": (b"\x89PNG" + bytes(100), "undecodable"),
    }
    crc = bytearray(files["header-65000.png"][0])
    crc[29:33] = struct.pack(">I", zlib.crc32(bytes(crc[12:29])))
    files["header-65000.png"] = (bytes(crc), "too large")
    folder.mkdir()
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    expected = {name: status for name, (_, status) in files.items()}
    with open(os.fsencode(folder) + b"/\xff\xfe.jpg", "wb") as file:
        file.write(jpeg)
    expected["\\xff\\xfe.jpg"] = "ok"
    os.mkfifo(folder / "fifo.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "unreadable.jpg").symlink_to(
        "/proc/self/mem"
    )  # opens, and every read fails, also for root
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(readers.MAX_BYTES + 1)
    expected |= dict.fromkeys(
        ("fifo.jpg", "loop.jpg", "dangling.jpg", "device.jpg", "unreadable.jpg"), "missing"
    ) | {"sparse.jpg": "too large"}
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.jpg").write_bytes(jpeg)
    (folder / "around").symlink_to(folder)
    return expected | {"folder.jpg/inside.jpg": "ok"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("hostile") / "photos"
    expected = corpus(folder)
    for i in range(GOOD):
        photo(100 + i).save(folder / f"good{i:02d}.png")
    return folder, expected | {f"good{i:02d}.png": "ok" for i in range(GOOD)}


MEASURED = """
import json, re, sys
from pathlib import Path
from base import console
from extract.config import ExtractConfig
from extract.run import run
with console.rendering():
    run(ExtractConfig(**json.loads(sys.argv[1])))
# not ru_maxrss, which a process begins with what its parent had when it forked
print(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture(scope="module")
def extracted(
    hostile: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, str]:
    """The cache, the peak memory of the process in KB, and what it printed."""
    cache = tmp_path_factory.mktemp("cache")
    settings = {
        "view": "tiny-clip",
        "data": str(hostile[0]),
        "cache": str(cache),
        "device": "cpu",
        "batch": BATCH,
        "shard_rows": ROWS,
        "workers": 0,
        "max_bad": "50%",
    }
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return cache, int(done.stdout.split()[-1]), done.stdout


def test_each_file_gets_its_status_and_the_run_ends(hostile, extracted):
    found = open_cache(extracted[0], "photos", ["tiny-clip"])
    view = next(extracted[0].glob("photos-*/tiny-clip-*"))
    from cache_specs.store import open_view

    status = integrity.check(open_view(view))
    assert dict(zip(found.items.keys, (STATUS[code] for code in status), strict=True)) == hostile[1]
    assert (
        (found.ok == (status == 0)).all()
        and np.isfinite(found.emb[0][found.ok]).all()
        and np.isnan(found.emb[0][~found.ok]).all()
    )
    bad = sum(status != "ok" for status in hostile[1].values())
    assert (
        f"{bad} of {len(hostile[1])} images could not be embedded" in extracted[2]
        and "  row 0: " not in extracted[2].split("could not")[0]
    )
    assert not (ROOT / "pwned").exists()


def test_memory_stays_under_two_and_a_half_gib(extracted):
    assert extracted[1] < 2.5 * 2**20, f"{extracted[1] / 2**20:.2f} GiB"


LARGE = {"RGBA": (8, 6), "RGB": (8, 2), "16 bit": (16, 0), "grey": (8, 0)}  # depth, color


def large(kind: str) -> bytes:
    width, height = 2**14, pixels.MAX_PIXELS // 2**14
    if kind in LARGE:
        return png(width, height, *LARGE[kind])
    return simplejpeg.encode_jpeg(np.zeros((height, width, 3), np.uint8), 85, "RGB", "420")


@pytest.mark.many
@pytest.mark.parametrize("kind", [*LARGE, "JPEG"])
def test_the_largest_image_that_is_allowed_stays_under_2_gib(tmp_path, kind):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "large.png").write_bytes(large(kind))
    settings = {
        "view": "tiny-clip",
        "data": str(tmp_path / "photos"),
        "cache": str(tmp_path / "cache"),
        "device": "cpu",
        "batch": BATCH,
        "workers": 0,
    }
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and "could not" not in done.stdout, done.stderr + done.stdout
    assert int(done.stdout.split()[-1]) < 2 * 2**20, done.stdout


def test_good_rows_are_those_of_a_run_without_the_bad_files(hostile, extracted, tmp_path):
    folder, expected = hostile
    shutil.copytree(
        folder,
        tmp_path / "photos",
        symlinks=True,
        ignore=lambda where, names: [
            name
            for name in names
            if expected.get(os.fsencode(name).decode("utf-8", "backslashreplace"), "ok") != "ok"
            or name == "around"
        ],
    )
    run(config(tmp_path / "photos", tmp_path / "cache", max_bad="0"))
    clean, dirty = (
        open_cache(tmp_path / "cache", str(tmp_path / "photos"), ["tiny-clip"]),
        open_cache(extracted[0], "photos", ["tiny-clip"]),
    )
    place = {key: row for row, key in enumerate(dirty.items.keys)}
    assert clean.ok.all() and len(clean.items) == sum(
        status == "ok" for status in expected.values()
    )
    np.testing.assert_array_equal(
        clean.emb[0], dirty.emb[0][[place[key] for key in clean.items.keys]]
    )


# --- the budget of bad images


def test_too_many_bad_images_end_the_run_with_the_list_and_it_goes_on_when_they_are_allowed(
    photos, tmp_path, command: Callable
):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    for name in ("a/002.jpg", "b/039.png", "b/041.jpg"):
        (copy / name).write_bytes(b"no image")
    where = (
        "--view",
        "tiny-clip",
        "--data",
        copy,
        "--cache",
        tmp_path / "cache",
        "--shard-rows",
        ROWS,
        "--batch",
        BATCH,
    )
    done = command("extract", *where)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert (
        "2 images so far could not be embedded (1 undecodable, 1 truncated); "
        "of 45 images --max-bad 0.1% allows 1:"
    ) in done.stderr
    assert (
        "row 1: a/002.jpg: undecodable" in done.stderr
        and "allow them: ARGS='--max-bad 2'" in done.stderr
    )
    view = next((tmp_path / "cache").glob("*/tiny-clip-*"))
    kept = {path: path.read_bytes() for path in view.rglob("*") if path.parent.name == "commits"}
    assert len(kept) == 2 and not (view / "complete.json").exists()
    done = command("extract", *where, "--max-bad", "2")
    assert (
        done.returncode == 3
        and "b/041.jpg: undecodable" in done.stderr
        and "allow them: ARGS='--max-bad 4'" in done.stderr
    )
    assert done.stderr.splitlines()[-1].endswith("--max-bad 4'")
    done = command("extract", *where, "--max-bad", "4")
    assert done.returncode == 0 and "4 of 45 images could not be embedded" in done.stdout
    assert " ARGS='--max-bad 4' " in store.command(view, "extract")
    assert all(path.read_bytes() == data for path, data in kept.items())


def test_files_that_cannot_even_be_read_end_the_run_before_a_model_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    photo(1).save(tmp_path / "photos" / "a.png")
    for name in "bcd":
        (tmp_path / "photos" / f"{name}.png").symlink_to("nowhere")
    monkeypatch.setattr("extract.models.backbones.load_backbone", None)
    with pytest.raises(
        DataQualityError,
        match=(
            r"3 images so far could not be embedded \(3 missing\); "
            r"of 4 images --max-bad 0\.1% allows 1"
        ),
    ):
        run(config(tmp_path / "photos", tmp_path / "cache", max_bad="0.1%"))


@pytest.mark.parametrize(
    ("text", "n", "number"),
    [
        ("0.1%", 100, 1),
        ("0.1%", 1999, 1),
        ("0.1%", 2000, 2),
        ("0.1%", 10**6, 1000),
        ("0%", 50, 0),
        ("100%", 7, 7),
        ("5", 100, 5),
        ("0", 100, 0),
    ],
)
def test_the_budget_is_a_share_but_at_least_one_image_or_a_number(text, n, number):
    assert bad_images.allowed(text, n) == number


@pytest.mark.parametrize("text", ["", "x", "-1", "101%", "1.5", "11", "nan", "%"])
def test_a_budget_that_is_none_is_named(text):
    with pytest.raises(UsageError, match="neither a share"):
        bad_images.allowed(text, 10)


def test_bad_rows_are_masked_in_all_views_jointly(hostile, extracted, tmp_path):
    """An image that only one view's transform cannot take is left out of every view."""
    toml = tmp_path / "narrow.toml"
    from cache_specs.spec import SPECS

    toml.write_text(
        (SPECS / "tiny-clip.toml")
        .read_text()
        .replace('path = "weights', f'path = "{SPECS}/weights')
        .replace('resize = 28\nresize_rule = "squash"', 'resize = 64\nresize_rule = "shortest"')
    )
    shutil.copytree(extracted[0], tmp_path / "cache")
    run(config(hostile[0], tmp_path / "cache", view=str(toml), max_bad="50%"))
    both, one = (
        open_cache(tmp_path / "cache", "photos", views)
        for views in (["tiny-clip", str(toml)], ["tiny-clip"])
    )
    strip = both.items.keys.index("1x20000.png")
    assert (
        one.ok[strip]
        and not both.ok[strip]
        and np.isfinite(both.emb[0][strip]).all()
        and (both.ok | ~one.ok).sum() == len(both.ok) - 1
    )
    assert len(read_items(next((tmp_path / "cache").glob("photos-*")))) == len(both.ok)
