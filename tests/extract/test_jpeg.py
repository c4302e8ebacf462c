"""Ordinary JPEG files go by another library than Pillow: the same pixels, to the last bit, the same
statuses and the same words. Pillow itself is the oracle."""

import io
import itertools
import random

import numpy as np
import pytest
import simplejpeg
from pictures import encoded
from pictures import picture as drawn
from PIL import Image, ImageCms, ImageOps

from extract import jpeg, pixels
from extract.pixels import NotReadError, Rules, picture

ORIENTATION = 0x0112
SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 8), (8, 7), (16, 16), (17, 23), (200, 131)]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(width: int = 67, height: int = 45, **options: object) -> bytes:
    return encoded(drawn(width, height), "JPEG", **options)


def told(data: bytes) -> tuple:
    """All that is known of a file: its picture, or why there is none."""
    try:
        found = picture(data)
    except NotReadError as error:
        return error.status, str(error)
    return "ok", found.ignored, found.several, found.size, np.asarray(found.image).tobytes()


def is_quick(data: bytes) -> bool:
    return isinstance(picture(data).pixels, np.ndarray)


def assert_same(data: bytes) -> str:
    """As where Pillow decodes each file; the status."""
    ours = told(data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pixels, "_quickly", lambda data, max_pixels, draft: None)
        assert told(data) == ours
    return ours[0]


def assert_quick(data: bytes) -> None:
    """... and Pillow's own pixels, though it did not decode them."""
    assert is_quick(data) and assert_same(data) == "ok"
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(picture(data).image), np.asarray(theirs))
    assert picture(data).size == theirs.size


# --- what goes by it


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_sampling_and_way_of_coding(size):
    for sampling, progressive in itertools.product((0, 1, 2), (False, True)):
        for more in ({}, {"optimize": True}, {"restart_marker_blocks": 1, "quality": 95}):
            options = {"subsampling": sampling, "progressive": progressive, **more}
            assert_quick(saved(*size, **options))
    array = np.ascontiguousarray(drawn(*size))
    for sampling in ("411", "440", "444", "422", "420"):
        assert_quick(simplejpeg.encode_jpeg(array, 80, colorsubsampling=sampling))


def test_each_quality():
    for quality in range(1, 101):
        assert_quick(saved(quality=quality, subsampling=quality % 3))


def test_a_file_of_several_blocks_of_pillows():
    noise = np.random.default_rng(3).integers(0, 256, (700, 900, 3), np.uint8)
    for options in ({"quality": 97}, {"quality": 90, "progressive": True}):
        data = encoded(Image.fromarray(noise), "JPEG", **options)
        assert len(data) > 4 * 2**16
        assert_quick(data)


@pytest.mark.parametrize("turn", range(10))
def test_turned_photographs_are_upright(turn):
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    assert_quick(saved(exif=exif))


@pytest.mark.parametrize("transform", [0, 1, 2, 99])
def test_colours_as_adobe_says_that_they_are_stored(transform):
    data = bytearray(saved(keep_rgb=True, quality=95))
    place = data.index(b"Adobe") + 11
    assert data[place] == 0  # RGB
    data[place] = transform
    assert assert_same(bytes(data)) == "ok"
    assert is_quick(bytes(data)) == (transform < 2)  # libjpeg warns of the others


def test_colours_by_the_names_of_the_channels():
    whole = bytearray(saved(keep_rgb=True))
    start = whole.index(b"Adobe") - 4
    del whole[start : start + 16]
    frame = whole.index(b"\xff\xc0") + 10
    assert whole[frame : frame + 9 : 3] == b"RGB"
    assert_quick(bytes(whole))


def test_what_follows_the_picture_is_nothing():
    assert_quick(saved() + b"\0" * 1000)
    assert_quick(saved() + saved(20, 20))
    assert_quick(saved(comment=b"words", dpi=(72, 72)))


# --- what does not


def others() -> dict[str, bytes]:
    frames = io.BytesIO()
    drawn(40, 30).save(frames, "MPO", save_all=True, append_images=[drawn(40, 30)])
    return {
        "grey": encoded(drawn(mode="L"), "JPEG"),
        "CMYK": encoded(drawn(mode="CMYK"), "JPEG"),
        "profile": saved(icc_profile=PROFILE),
        "several frames": frames.getvalue(),
        "TIFF": encoded(drawn(), "TIFF", compression="jpeg"),
        "PNG": encoded(drawn()),
    }


@pytest.mark.parametrize("kind", others())
def test_what_pillow_decodes(kind):
    data = others()[kind]
    assert not is_quick(data) and assert_same(data) == "ok"


def test_cmyk_as_adobe_stores_it():
    data = bytearray(others()["CMYK"])
    data[data.index(b"Adobe") + 11] ^= 2  # YCCK, or not
    assert not is_quick(bytes(data)) and assert_same(bytes(data)) == "ok"


def test_a_profile_that_is_damaged_is_told_as_ever():
    data = saved(icc_profile=PROFILE)
    place = data.index(b"ICC_PROFILE") + 13
    harmed = data[:place] + b"\7" + data[place + 1 :]  # the first of seven pieces
    assert assert_same(harmed) == "ok" and not is_quick(harmed) and picture(harmed).ignored


def test_coarse_decoding_is_pillows():
    data = saved(400, 300)
    assert picture(data, draft=100).size == (200, 150)
    assert not isinstance(picture(data, draft=100).pixels, np.ndarray)
    assert isinstance(picture(data, draft=151).pixels, np.ndarray)  # at its own size


def test_too_many_pixels_are_refused_before_any_is_decoded(monkeypatch):
    monkeypatch.setattr(jpeg, "decoded", None)
    with pytest.raises(NotReadError, match=r"67 x 45 pixels; at most 3,014 are read") as refused:
        picture(saved(), Rules(max_pixels=67 * 45 - 1))
    assert refused.value.status == "too large"


@pytest.mark.parametrize("error", [ValueError("a warning"), MemoryError(), RuntimeError("no")])
def test_whatever_it_raises_pillow_decodes_the_file(error, monkeypatch):
    def fails(data: bytes) -> np.ndarray:
        raise error

    monkeypatch.setattr(jpeg, "decoded", fails)
    assert not is_quick(saved()) and assert_same(saved()) == "ok"


def test_another_size_than_pillow_sees_is_a_doubt(monkeypatch):
    monkeypatch.setattr(jpeg, "decoded", lambda data: np.zeros((45, 66, 3), np.uint8))
    assert not is_quick(saved()) and assert_same(saved()) == "ok"


# --- damage


@pytest.mark.parametrize("progressive", [False, True])
def test_cut_short_anywhere(progressive):
    data = saved(quality=90, progressive=progressive, exif=b"Exif\0\0" + bytes(40))
    ends = [*range(0, len(data), 5), len(data) - 2, len(data) - 1]
    assert {assert_same(data[:end]) for end in ends} == {"truncated", "undecodable"}


@pytest.mark.parametrize("marker", range(0xC0, 0xD0))
def test_frames_of_another_kind(marker):
    data = saved().replace(b"\xff\xc0\0\x11", bytes([0xFF, marker, 0, 0x11]))
    assert jpeg.is_ordinary(data) == (marker in (0xC0, 0xC1, 0xC2))  # those that Huffman codes
    assert (assert_same(data) == "ok" and is_quick(data)) == (marker in (0xC0, 0xC1))


def test_odd_headers():
    data = saved()
    frame = data.index(b"\xff\xc0")
    end = frame + 19
    twelve = data[: frame + 4] + b"\x0c" + data[frame + 5 :]
    no_height = data[: frame + 5] + b"\0\0" + data[frame + 7 :]  # a DNL would say it
    two_frames = data[:end] + data[frame:end] + data[end:]
    other_height = data[:end] + data[frame : frame + 6] + b"\x10" + data[frame + 7 :]
    four = data[: frame + 9] + b"\4" + data[frame + 10 :]
    junk = data[:2] + b"junk" + data[2:]
    filled = data[:2] + b"\xff\xff\xff" + data[2:]
    for harmed in (twelve, no_height, two_frames, other_height, four, junk, filled):
        assert_same(harmed)
    assert not jpeg.is_ordinary(twelve) and not jpeg.is_ordinary(four)
    assert not jpeg.is_ordinary(others()["grey"])
    for short in (b"", b"\xff", b"\xff\xd8\xff", data[:20], data[: frame + 6], data[:end]):
        assert assert_same(short) != "ok" and not jpeg.is_ordinary(short[:19])


def test_bytes_that_are_others():
    """Some of the damage nothing notices: then the pixels are odd ones, and the same."""
    quick, found = 0, set()
    for number in range(400):
        chance = random.Random(number)
        options = {"quality": chance.choice((30, 90)), "progressive": number % 3 == 0}
        if number % 4 == 0:
            options["restart_marker_blocks"] = 2
        data = bytearray(saved(40, 33, subsampling=number % 3, **options))
        start = 2 if number % 5 == 0 else data.index(b"\xff\xda") + 14
        for _ in range(1 + number % 2):
            data[chance.randrange(start, len(data))] ^= 1 << chance.randrange(8)
        status = assert_same(bytes(data))
        found.add(status)
        quick += status == "ok" and is_quick(bytes(data))
    assert found >= {"ok", "undecodable"} and quick > 100
