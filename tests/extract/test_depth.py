"""Few bits in files of sixteen are told, with what to type; and nothing where all is well."""

import logging
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import config
from rawfiles import png, tiff

from base.errors import UsageError
from cache_specs.spec import SPECS, load_spec
from extract import depth
from extract.pixels import picture
from extract.prepare import prepare
from extract.run import run


def folder(place: Path, bits: int, n: int = 4, kind: str = "grey") -> str:
    chance = np.random.default_rng(bits)
    place.mkdir()
    for number in range(n):
        shape = (9, 12, 3) if kind == "colour" else (9, 12)
        levels = chance.integers(0, 2**bits, shape, np.uint16)
        levels[0, 0] = 2**bits - 1
        if kind == "tiff":
            (place / f"{number}.tif").write_bytes(tiff(levels, "<>"[number % 2]))
        else:
            (place / f"{number}.png").write_bytes(png(levels, 16))
    return str(place)


def told(data: str, caplog: pytest.LogCaptureFixture, **changes: object) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        prepare(config(Path(data), Path(data).parent / "cache", **changes))
    return caplog.text


@pytest.mark.parametrize("kind", ["grey", "colour", "tiff"])
@pytest.mark.parametrize("bits", [10, 12])
def test_few_bits_are_told_with_the_way_out(tmp_path, caplog, bits, kind):
    text = told(folder(tmp_path / "x", bits, kind=kind), caplog)
    assert (
        f"of 4 images with 16 bits a channel that were looked at, none has a level above "
        f"{2**bits - 1:,}, which suggests {bits} bits"
    ) in text
    assert f"add bits = {bits} to its [preprocess]" in text
    assert f"VIEW=path/to/tiny-clip-{bits}bit.toml WEIGHTS={SPECS / 'weights/tiny-clip'}" in text


def declared(place: Path, bits: int) -> str:
    toml = place / f"tiny-clip-{bits}bit.toml"
    text = (SPECS / "tiny-clip.toml").read_text().replace('path = "', f'path = "{SPECS}/')
    toml.write_text(text.replace("[preprocess]", f"[preprocess]\nbits = {bits}"))
    return str(toml)


def test_where_they_are_declared_nothing_is_said_and_the_picture_is_bright(tmp_path, caplog):
    data = folder(tmp_path / "x", 12)
    assert told(data, caplog, view=declared(tmp_path, 12)) == ""
    assert "1 of" not in told(data, caplog, view=declared(tmp_path, 12))
    assert "4 of 4 images with 16 bits" in told(data, caplog, view=declared(tmp_path, 10))
    assert "levels above 1,023, up to 4,095, which bits = 10 makes all white" in caplog.text
    names = set()
    for bits in (10, 12):
        view = run(config(Path(data), tmp_path / "cache", view=declared(tmp_path, bits)))
        names.add(view.folder.name.rpartition("-")[2])
    assert len(names) == 2


def test_nothing_is_said_of_8_bits_or_of_16_that_are_used(tmp_path, caplog):
    assert told(folder(tmp_path / "x", 16), caplog) == ""
    place = tmp_path / "y"
    place.mkdir()
    (place / "a.png").write_bytes(png(np.zeros((9, 12), np.uint8)))
    (place / "b.png").write_bytes(b"no image")
    assert told(str(place), caplog, max_bad="1") == ""


def test_only_so_many_files_are_decoded(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(depth, "ENOUGH", 3)
    assert "of 3 images with 16 bits" in told(folder(tmp_path / "x", 12, 6), caplog)
    monkeypatch.setattr(depth, "BYTES", 1)
    assert told(str(tmp_path / "x"), caplog) == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bits = 7", "preprocess.bits must be 8 to 16, found 7"),
        ("bits = 17", "preprocess.bits must be 8 to 16, found 17"),
        ("max_pixels = 0", "preprocess.max_pixels must be 1 to"),
        ("pixels = 4", "preprocess.pixels must be 1 to 3 here, found 4: later ones need a later"),
        ("pixels = 0", "preprocess.pixels must be 1 to 3 here, found 0"),
        ("background = 'white'", "write a colour as '#rrggbb' or three levels from 0 to 255"),
        (
            "background = [1, 2, 256]",
            "preprocess.background is three levels from 0 to 255, found 256",
        ),
        ("background = [1, 2]", "background = [1, 2] is not of the type"),
        ("pixels = 1\nbits = 12", "preprocess.bits needs pixels = 3, found pixels = 1"),
        ("pixels = 1\nbackground = '#000000'", "preprocess.background needs pixels = 3"),
        ("pixels = 2\ndecoder = 'scaled'", "preprocess.decoder needs pixels = 3, found pixels = 2"),
        ("decoder = 'scale'", "decoder = 'scale'; did you mean 'scaled'"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, line, message):
    text = (SPECS / "tiny-clip.toml").read_text()
    (tmp_path / "v.toml").write_text(text.replace("[preprocess]", f"[preprocess]\n{line}"))
    with pytest.raises(UsageError) as caught:
        load_spec(str(tmp_path / "v.toml"))
    assert message in str(caught.value)


@pytest.mark.parametrize("written", ["'#0a14FF'", "[10, 20, 255]"])
def test_a_colour_is_written_in_two_ways_and_is_one_spec(tmp_path, written):
    text = (SPECS / "tiny-clip.toml").read_text()
    (tmp_path / "v.toml").write_text(
        text.replace("[preprocess]", f"[preprocess]\nbackground = {written}")
    )
    spec = load_spec(str(tmp_path / "v.toml"))
    assert spec.preprocess.background == (10, 20, 255)
    assert spec.declared()["preprocess"]["background"] == [10, 20, 255]


def test_planes_that_are_compressed_are_no_files_of_which_bits_are_declared(tmp_path, caplog):
    planes = np.random.default_rng(0).integers(0, 2**12, (3, 9, 12)).astype(np.uint16)
    parts = [zlib.compress(plane.tobytes()) for plane in planes]
    sizes, whole = list(map(len, parts)), np.frombuffer(b"".join(parts), np.uint8)[None]
    at, three = [8, 8 + sizes[0], 8 + sizes[0] + sizes[1]], {"t277": 3, "t284": 2, "t339": [1] * 3}
    layout = {"t256": 12, "t257": 9, "t258": [16] * 3, "t259": 8, "t273": at, "t278": 9}
    data = tiff(whole, "<", 2, **layout, **three, t279=sizes)
    assert np.array_equal(np.asarray(picture(data).image), np.moveaxis(planes, 0, -1) >> 8)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.tif").write_bytes(data)
    text = told(str(tmp_path / "x"), caplog)
    assert "which suggests 12 bits; with 16 they are nearly black. That cannot be declared" in text
    assert "write the channels side by side (planar configuration 1), or not compressed" in text
    assert "add bits" not in text
