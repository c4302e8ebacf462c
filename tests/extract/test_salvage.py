"""Damage beside the pixels costs no image; damage of the pixels always does."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from rawfiles import chunk, in_srgb, profile, tiff

from extract.pixels import NotReadError, picture

SMALL = np.random.default_rng(5).integers(0, 256, (8, 11, 3), np.uint8)
IMAGE = Image.fromarray(SMALL).resize((90, 60), Image.Resampling.BICUBIC)
TURNED = Image.Exif()
TURNED[274] = 6
TURNED[271] = "maker"
EXIF = TURNED.tobytes()[6:]  # without its "Exif\0\0"


def saved(kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    IMAGE.save(sink, kind, **options)
    return sink.getvalue()


PNG, JPEG = saved("PNG"), saved("JPEG", quality=95)
HEAD, REST = PNG[:33], PNG[33:]
BODY = JPEG[20:]  # behind JFIF


def same(data: bytes, wanted: np.ndarray | None = None) -> bool:
    wanted = np.asarray(IMAGE) if wanted is None else wanted
    return np.array_equal(np.asarray(picture(data).image), wanted)


def refused(data: bytes) -> str:
    with pytest.raises(NotReadError) as caught:
        picture(data)
    return caught.value.status


BESIDE_PNG = {
    "exif": chunk(b"eXIf", b"garbage"),
    "raw profile": chunk(b"tEXt", b"Raw profile type exif\0not hexadecimal\nat\nall\nxyz"),
    "text crc": chunk(b"tEXt", b"a\0b", wrong=True),
    "time crc": chunk(b"tIME", bytes(7), wrong=True),
    "private crc": chunk(b"abCd", b"123", wrong=True),
    "size": chunk(b"pHYs", b"\0"),
    "gamma": chunk(b"gAMA", b"\0"),
    "srgb": chunk(b"sRGB", b""),
    "chromaticities": chunk(b"cHRM", b"\0"),
    "background": chunk(b"bKGD", b""),
    "animation": chunk(b"acTL", b"\0"),
    "profile name": chunk(b"iCCP", b"x"),
    "text of 3 MB": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3 << 20))),
    "profile of 3 MB": chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3 << 20))),
}


@pytest.mark.parametrize("what", BESIDE_PNG)
def test_what_stands_beside_the_pixels_of_a_png(what):
    assert same(HEAD + BESIDE_PNG[what] + REST)
    assert same(HEAD + REST[:-12] + BESIDE_PNG[what] + REST[-12:])


def test_what_is_whole_of_it_still_counts():
    """Orientation and profile of an image whose text is damaged."""
    text, icc = BESIDE_PNG["text crc"], zlib.compress(profile("ProPhoto"))
    found = picture(HEAD + text + chunk(b"eXIf", EXIF) + chunk(b"iCCP", b"x\0\0" + icc) + REST)
    wanted = in_srgb(np.asarray(IMAGE.transpose(Image.Transpose.ROTATE_270)), "ProPhoto")
    assert np.abs(np.asarray(found.image) - wanted).max() <= 2


def test_a_profile_of_more_than_a_megabyte_is_used():
    large = bytearray(profile("Adobe RGB") + bytes(2 << 20))
    large[:4] = struct.pack(">I", len(large))
    data = HEAD + chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(large))) + REST
    assert (
        np.abs(np.asarray(picture(data).image) - in_srgb(np.asarray(IMAGE), "Adobe RGB")).max() <= 2
    )


def test_exif_with_a_wrong_checksum_still_turns_the_image():
    exif = chunk(b"eXIf", EXIF, wrong=True)
    for data in (HEAD + exif + REST, HEAD + REST[:-12] + exif + REST[-12:]):
        assert picture(data).image.size == (60, 90)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


BESIDE_JPEG = {
    "JFIF": segment(0xE0, b"JFIF\0"),
    "EXIF": segment(0xE1, b"Exif\0\0MM\0"),
    "profile": segment(0xE2, b"ICC_PROFILE\0"),
    "profile lacks parts": segment(0xE2, b"ICC_PROFILE\0\x01\x05abc"),
    "Adobe": JPEG[2:20] + segment(0xEE, b"Adobe\0"),
    "Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "more pictures": segment(0xE2, b"MPF\0garbage"),
    "comment": segment(0xFE, b""),
}


@pytest.mark.parametrize("what", BESIDE_JPEG)
def test_what_stands_beside_the_pixels_of_a_jpeg(what):
    wanted = np.asarray(Image.open(io.BytesIO(JPEG)))
    assert same(b"\xff\xd8" + BESIDE_JPEG[what] + BODY, wanted)


def test_a_turned_jpeg_stays_turned():
    data = saved("JPEG", exif=TURNED.tobytes())
    short = segment(0xE2, b"ICC_PROFILE\0")
    assert picture(data[:2] + short + data[2:]).image.size == (60, 90)


def test_what_stands_beside_the_pixels_of_a_webp():
    data = saved("WEBP", lossless=True, exif=TURNED.tobytes(), icc_profile=b"no profile" * 9)
    assert picture(data).image.size == (60, 90) and picture(data).ignored
    place = data.index(b"EXIF")
    harmed = data[: place + 8] + b"x" * 8 + data[place + 16 :]
    assert same(harmed)
    long = data[: place + 4] + struct.pack("<I", 99_999) + data[place + 8 :]
    assert picture(long).image.size in ((60, 90), (90, 60))


@pytest.mark.parametrize("tag", [700, 33723, 34377, 34665, 34675, 34853])
def test_what_stands_beside_the_pixels_of_a_tiff(tag):
    for place in (70_000, 2**31):  # behind the file's end
        assert same(tiff(SMALL, "<", 2, **{f"t{tag}": place}), SMALL)
        assert same(tiff(SMALL, ">", 2, **{f"t{tag}": place}), SMALL)


def moved(data: bytes, *tags: int) -> bytes:
    """A TIFF whose values of these tags lie outside of it."""
    big, harmed = data[2] == 43, bytearray(data)
    (first,) = struct.unpack_from("<Q" if big else "<I", data, 8 if big else 4)
    at, size = (first + 8, 20) if big else (first + 2, 12)
    left = set(tags)
    while left:
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in left:
            struct.pack_into("<Q" if big else "<I", harmed, at + size - size // 5 * 2, 2**31 - 99)
            left.remove(tag)
        at += size
    return bytes(harmed)


IN_TIFF = {
    270: "text " * 9,
    305: "text " * 9,
    700: b"<x/>" * 9,
    33723: b"i" * 9,
    34377: b"8BIM" * 9,
}


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
@pytest.mark.parametrize("tags", [*((tag,) for tag in IN_TIFF), tuple(IN_TIFF)])
def test_damage_beside_the_pixels_of_a_tiff_costs_no_profile(tags, options):
    """Pillow stops at what lies outside of the file, and says nothing of what it left out."""
    data = saved("TIFF", icc_profile=profile("ProPhoto"), tiffinfo=IN_TIFF, **options)
    wanted = in_srgb(np.asarray(IMAGE), "ProPhoto")
    for file in (data, moved(data, *tags)):
        found = picture(file)
        assert not found.ignored and np.abs(np.asarray(found.image) - wanted).max() <= 2


def test_damage_beside_the_pixels_of_a_tiff_costs_no_alpha():
    image = Image.fromarray(np.dstack([SMALL, SMALL[..., 0]]))
    sink = io.BytesIO()
    image.save(sink, "TIFF", tiffinfo={305: "text " * 9})
    assert same(moved(sink.getvalue(), 305), np.asarray(picture(sink.getvalue()).image))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_a_profile_that_lies_outside_of_a_tiff_is_told(options):
    data = saved("TIFF", icc_profile=profile("ProPhoto"), tiffinfo=IN_TIFF, **options)
    for tags in ((34675,), (700, 34675)):
        found = picture(moved(data, *tags))
        assert found.ignored == "colour profile that cannot be used (it is damaged)"
        assert np.array_equal(np.asarray(found.image), np.asarray(IMAGE))


def test_a_profile_that_is_damaged_in_a_png_or_jpeg_is_told():
    icc = bytearray(zlib.compress(profile("ProPhoto")))
    icc[len(icc) // 2] ^= 255
    half = chunk(b"iCCP", b"x\0\0" + bytes(icc))
    first = segment(0xE2, b"ICC_PROFILE\0\x01\x02" + profile("ProPhoto"))
    text, short = BESIDE_PNG["text crc"], BESIDE_JPEG["JFIF"]
    for data in (HEAD + half + REST, HEAD + text + half + REST):
        assert picture(data).ignored == "colour profile that cannot be used (it is damaged)"
    for data in (JPEG[:2] + first + JPEG[2:], JPEG[:2] + short + first + BODY):
        assert picture(data).ignored == "colour profile that cannot be used (it is damaged)"
    for data in (PNG, HEAD + text + REST, JPEG, JPEG[:2] + short + BODY):
        assert picture(data).ignored == ""


def test_damage_beside_the_pixels_of_an_avif_costs_no_profile():
    data = saved("AVIF", quality=100, exif=TURNED.tobytes(), icc_profile=profile("ProPhoto"))
    start = max(data.rfind(b"II*\0"), data.rfind(b"MM\0*"))
    harmed = data[:start] + b"xxxxxxxx" + data[start + 8 :]
    wanted, found = picture(data), picture(harmed)
    plain = picture(saved("AVIF", quality=100)).image
    assert not found.ignored and np.array_equal(np.asarray(found.image), np.asarray(wanted.image))
    unlike = np.asarray(plain.transpose(Image.Transpose.ROTATE_270), np.int16)
    assert np.abs(np.asarray(found.image) - unlike).max() > 20


def test_what_stands_beside_the_pixels_of_an_avif():
    data = saved("AVIF", quality=100, exif=TURNED.tobytes())
    place = data.rindex(b"maker") - 60
    start = max(data.rfind(b"II*\0"), data.rfind(b"MM\0*"))
    assert picture(data).image.size == (60, 90) and start > place
    harmed = data[:start] + b"xxxxxxxx" + data[start + 8 :]
    assert sorted(picture(harmed).image.size) == [60, 90]


def test_pixels_that_are_cut_short_are_never_embedded_half():
    webp = saved("WEBP", lossless=True)
    text, short = BESIDE_PNG["text crc"], BESIDE_JPEG["profile"]
    for whole in (PNG, JPEG, HEAD + text + REST, b"\xff\xd8" + short + BODY, webp, saved("TIFF")):
        for share in (0.5, 0.75, 0.9):
            assert refused(whole[: int(len(whole) * share)]) == "truncated"


def test_what_is_part_of_the_picture_is_not_left_out():
    assert refused(HEAD + chunk(b"tRNS", bytes(6), wrong=True) + REST) == "undecodable"
    assert refused(HEAD[:-1] + bytes([HEAD[-1] ^ 1]) + REST) == "undecodable"
    flipped = bytearray(PNG)
    flipped[-40] ^= 1
    assert refused(bytes(flipped)) in ("undecodable", "truncated")
