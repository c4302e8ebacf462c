"""The picture in a file, as a viewer shows it: transparency, grey levels of more than 8 bits, their
direction, formats; each held against what was put into the file by hand."""

import io
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from rawfiles import chunk, png, profile, tiff

from coview import MetaCoTrainingClassifier
from extract import pixels
from extract.pixels import NotReadError, Rules, picture, thumbnail, used_bits, why_not
from report import pictures

CHANCE = np.random.default_rng(1)
RGB = CHANCE.integers(0, 256, (10, 14, 3), np.uint8)
GREY, ALPHA = RGB[..., 0], CHANCE.integers(0, 256, (10, 14), np.uint8)
DEEP = CHANCE.integers(0, 65536, (10, 14), np.uint16)
INK = (30, 60, 200)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def shown(data: bytes, rules: Rules = Rules()) -> np.ndarray:  # noqa: B008
    return np.asarray(picture(data, rules).image).astype(int)


def on(ground: tuple[int, int, int], colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, 3) of a colour, and (H, W) of how much of it is seen, over a ground."""
    share = alpha[..., None] / 255
    return np.rint(colours * share + np.array(ground) * (1 - share))


def far(found: np.ndarray, wanted: np.ndarray) -> int:
    assert found.shape == wanted.shape
    return int(np.abs(found - wanted).max())


WHITE = (255, 255, 255)
THREE = np.dstack([GREY] * 3)


@pytest.mark.parametrize("ground", [WHITE, (0, 0, 0), INK])
def test_what_is_transparent_shows_the_ground(ground):
    rules = Rules(ground)
    rgba, la = np.dstack([RGB, ALPHA]), np.dstack([GREY, ALPHA])
    assert far(shown(png(rgba), rules), on(ground, RGB, ALPHA)) <= 1
    assert far(shown(png(la), rules), on(ground, THREE, ALPHA)) <= 1
    assert far(shown(tiff(rgba, photometric=2, t338=2), rules), on(ground, RGB, ALPHA)) <= 1
    for kind, options in (("WEBP", {"lossless": True, "exact": True}), ("JPEG2000", {})):
        data = saved(Image.fromarray(rgba), kind, **options)
        assert far(shown(data, rules), on(ground, RGB, ALPHA)) <= 1, kind


def test_each_colour_of_a_palette_has_its_alpha():
    few = Image.fromarray(RGB).quantize(8)
    colours, place = np.asarray(few.convert("RGB")), np.asarray(few)
    alphas = np.array([0, 255, 40, 90, 140, 190, 220, 250], np.uint8)
    data = saved(few, transparency=alphas.tobytes())
    assert far(shown(data), on(WHITE, colours, alphas[place])) <= 1
    one = on(WHITE, colours, np.where(place == 3, 0, 255))
    assert far(shown(saved(few, transparency=3)), one) == 0
    assert far(shown(saved(few, "GIF", transparency=3)), one) == 0


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_grey_level_may_be_transparent_at_every_depth(depth):
    most = 2**depth - 1
    levels = (DEEP.astype(np.int64) * most // 65535).astype(np.uint16)
    key = int(levels[4, 5])
    data = png(levels, depth, chunk(b"tRNS", key.to_bytes(2, "big")))
    grey = np.rint(levels * (255 / most))
    assert far(shown(data), np.dstack([np.where(levels == key, 255, grey)] * 3)) == 0


@pytest.mark.parametrize("depth", [8, 16])
def test_one_colour_may_be_transparent(depth):
    colours = RGB.astype(np.uint16) * (257 if depth == 16 else 1)
    colours[2:5] = colours[0, 0]
    key = b"".join(int(level).to_bytes(2, "big") for level in colours[0, 0])
    same = (RGB[0, 0] == RGB).all(-1)
    same[2:5] = True
    data = png(colours, depth, chunk(b"tRNS", key))
    assert far(shown(data), np.where(same[..., None], 255, RGB)) == 0


def test_a_transparent_colour_of_16_bits_is_that_one_alone():
    """Not all whose first bytes are the same."""
    key = np.array([0x8000, 0, 0], np.uint16)
    levels = np.array([[key, key + 0xFF, key + [0xFF, 0xFF, 0xFF], [0x80FF, 1, 0]]], np.uint16)
    data = png(levels, 16, chunk(b"tRNS", key.astype(">u2").tobytes()))
    wanted = levels.astype(int) >> 8
    wanted[0, 0] = 255
    assert far(shown(data), wanted) == 0
    fewer = np.rint(levels * (255 / 4095)).clip(0, 255)
    fewer[0, 0] = 255
    assert far(shown(data, Rules(bits=12)), fewer) == 0


def test_16_bits_with_alpha():
    deep, alpha = np.dstack([DEEP, DEEP[::-1], DEEP[:, ::-1]]), DEEP[::-1, ::-1]
    data = png(np.dstack([deep, alpha]), 16)
    assert far(shown(data), on(WHITE, deep >> 8, alpha >> 8)) <= 1
    data = png(np.dstack([DEEP, alpha]), 16)
    assert far(shown(data), on(WHITE, np.dstack([DEEP >> 8] * 3), alpha >> 8)) <= 1


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("bits", [10, 12])
def test_few_bits_with_alpha_whose_bits_are_as_few_or_16(bits, colour):
    few, white = DEEP >> (16 - bits), 2**bits - 1
    levels = np.dstack([few, few[::-1], few[:, ::-1]] if colour else [few])
    wanted = np.broadcast_to(np.rint(levels * (255 / white)), (10, 14, 3))
    for alpha, most in ((few[::-1, ::-1], white), (DEEP[::-1, ::-1], 65535)):
        whole, seen = np.dstack([levels, alpha]), on(WHITE, wanted, alpha * (255 / most))
        files = [png(whole, 16)]
        if colour:
            files += [tiff(whole, order, 2, t338=2) for order in "<>"]
        for data in files:
            assert far(shown(data, Rules(bits=bits)), seen) <= 1
            assert used_bits(pixels.deepest(data, Rules())) == bits
            small = Image.open(io.BytesIO(thumbnail(data, 96)[0])).convert("RGB")
            assert far(np.asarray(small).astype(int), seen) <= 1


def test_grey_with_alpha_of_16_bits_has_the_profile_of_its_greys():
    icc = chunk(b"iCCP", b"x\0\0" + zlib.compress(profile("linear", b"GRAY")))
    opaque = np.full_like(DEEP, 65535)
    found = picture(png(np.dstack([DEEP, opaque]), 16, icc))
    alone = picture(png((DEEP >> 8).astype(np.uint8), 8, icc))
    assert not found.ignored and far(np.asarray(found.image), np.asarray(alone.image)) == 0
    assert far(np.asarray(alone.image).astype(int), np.dstack([DEEP >> 8] * 3)) > 50


def test_16_bits_of_which_the_second_byte_is_not_looked_at_suggest_no_fewer():
    """Ink, and colours that Pillow divides by their alpha."""
    few = np.dstack([DEEP >> 4] * 4)
    for data in (tiff(few, "<", 5), tiff(few, "<", 2, t338=1)):
        assert pixels.deepest(data, Rules()) == -1
        assert far(shown(data, Rules(bits=12)), shown(data)) == 0


def test_colours_that_are_multiplied_by_alpha_already():
    alpha = np.maximum(ALPHA, 64)
    ready = np.rint(RGB * (alpha[..., None] / 255)).astype(np.uint8)
    data = tiff(np.dstack([ready, alpha]), photometric=2, t338=1)
    assert far(shown(data), on(WHITE, RGB, alpha)) <= 2


def test_a_fourth_channel_that_is_not_called_alpha_is_none():
    rgbn = np.dstack([RGB, ALPHA])  # near infrared, say
    for tags in ({}, {"t338": 0}):
        assert far(shown(tiff(rgbn, photometric=2, **tags)), RGB) == 0


def test_an_opaque_alpha_changes_no_bit():
    opaque = Image.fromarray(np.dstack([RGB, np.full_like(ALPHA, 255)]))
    for kind in ("PNG", "TIFF", "BMP", "TGA", "ICO", "JPEG2000"):
        options = {"bitmap_format": "bmp"} if kind == "ICO" else {}
        assert far(shown(saved(opaque, kind, **options)), RGB) == 0, kind
    same = saved(opaque, "WEBP", lossless=True), saved(opaque.convert("RGB"), "WEBP", lossless=True)
    assert far(shown(same[0]), shown(same[1])) == 0


@pytest.mark.parametrize("kind", ["BMP", "TGA"])
def test_a_bitmap_whose_alpha_is_nowhere_is_meant_to_be_seen(kind):
    hollow = Image.fromarray(np.dstack([RGB, np.zeros_like(ALPHA)]))
    assert far(shown(saved(hollow, kind)), RGB) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_many_frames_the_first_is_shown_on_the_ground(kind):
    frames = []
    for turn in (1, -1):
        alpha = np.where(ALPHA[::turn] > 128, 255, 0).astype(np.uint8)
        frames.append(Image.fromarray(np.dstack([np.full_like(RGB, 90), alpha])))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert far(shown(data), np.dstack([np.where(ALPHA > 128, 90, 255)] * 3)) == 0


def test_around_a_frame_that_does_not_fill_the_canvas_there_is_the_ground():
    small = saved(Image.fromarray(np.full((4, 6), 90, np.uint8)), "GIF")
    place = small.index(b"\x2c", 13 + 3 * 2 ** ((small[10] & 7) + 1))
    sides = (20).to_bytes(2, "little") + (12).to_bytes(2, "little")
    corner = (3).to_bytes(2, "little") + (5).to_bytes(2, "little")
    data = small[:6] + sides + small[10 : place + 1] + corner + small[place + 5 :]
    wanted = np.full((12, 20, 3), 255)
    wanted[5:9, 3:9] = 90
    assert far(shown(data), wanted) == 0


# --- bits


@pytest.mark.parametrize("order", ["<", ">"])
def test_white_is_zero_in_every_depth_and_order(order):
    for levels, most in ((GREY, 255), (DEEP, 65535)):
        wanted = 255 - np.rint(levels * (255 / most))
        assert far(shown(tiff(levels, order, 0)), np.dstack([wanted] * 3)) == 0
        right = np.rint(levels * (255 / most))
        assert far(shown(tiff(levels, order, 1)), np.dstack([right] * 3)) == 0
    few = (DEEP >> 4).astype(np.uint16)
    wanted = 255 - np.rint(few * (255 / 4095))
    assert far(shown(tiff(few, order, 0), Rules(bits=12)), np.dstack([wanted] * 3)) == 0


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_that_are_declared_are_those_that_are_used(bits):
    levels, white = (DEEP >> (16 - bits)).astype(np.uint16), 2**bits - 1
    wanted = np.rint(levels * (255 / white))
    for data in (png(levels, 16), tiff(levels), tiff(levels, ">")):
        assert far(shown(data, Rules(bits=bits)), np.dstack([wanted] * 3)) == 0
    colours = np.dstack([levels, levels[::-1], levels[:, ::-1]])
    wanted = np.rint(colours * (255 / white)) if bits < 16 else colours >> 8
    for data in (png(colours, 16), tiff(colours, "<", 2), tiff(colours, ">", 2)):
        assert far(shown(data, Rules(bits=bits)), wanted) == 0
    assert used_bits(int(levels.max())) == bits


def test_what_lies_above_the_declared_white_is_white():
    assert (shown(png(np.full((2, 2), 4096, np.uint16), 16), Rules(bits=12)) == 255).all()


def test_a_file_that_says_its_bits_itself_is_not_asked_twice():
    """12 bits in 12 (TIFF), and levels up to a stated one (PGM)."""
    levels = np.arange(0, 4096, 293, dtype=np.uint16)[:14]
    wanted = np.rint(levels * (255 / 4095))
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in levels.reshape(7, 2).tolist()
    )
    whole = tiff(np.frombuffer(packed, np.uint8)[None], t258=12, t256=14)
    pgm = b"P5\n14 1\n4095\n" + levels.astype(">u2").tobytes()
    for bits in (16, 12, 10):
        for data in (whole, pgm):
            assert far(shown(data, Rules(bits=bits))[0], np.stack([wanted] * 3, -1)) <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [12, 16])
def test_planes_of_16_bits_one_after_the_other(order, bits):
    planes = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]]) >> (16 - bits)
    tags = {"t257": 10, "t258": [16] * 3, "t277": 3, "t278": 10, "t284": 2, "t339": [1] * 3}
    tags |= {"t273": [8, 8 + 280, 8 + 560], "t279": [280] * 3}
    flat = tiff(planes.reshape(30, 14), order, 2, **tags)
    wanted = np.moveaxis(planes, 0, -1)
    wanted = wanted >> 8 if bits == 16 else np.rint(wanted * (255 / 4095))
    assert far(shown(flat, Rules(bits=bits)), wanted) == 0


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tiff(DEEP.astype(np.int16)), "signed 16-bit levels: nothing says which is black"),
        (tiff(DEEP.astype(np.float32)), "floating-point levels: nothing says"),
        (tiff(RGB.astype(np.float32), photometric=2), "floating-point levels: nothing says"),
        (tiff(DEEP.astype(np.uint32)), "32-bit levels: nothing says which is black"),
        (tiff(np.dstack([RGB, RGB[..., :2]]), t338=[0] * 4), "5 channels: write the three that"),
        (b"", "the file is empty"),
        (b"<html>", "it begins like no format that is read"),
    ],
)
def test_what_cannot_be_shown_says_why(data, why):
    with pytest.raises(NotReadError, match=why) as caught:
        picture(data)
    assert caught.value.status == "undecodable"


def test_an_image_above_the_limit_says_the_limit():
    data = saved(Image.new("L", (40, 30)))
    assert picture(data, Rules(max_pixels=1200)).image.size == (40, 30)
    with pytest.raises(
        NotReadError, match=r"40 x 30 pixels; at most 1,199 are read .*max_pixels"
    ) as e:
        picture(data, Rules(max_pixels=1199))
    assert e.value.status == "too large"


@pytest.mark.parametrize("read", [picture, pixels.first])
def test_too_little_memory_for_the_pixels_is_no_fault_of_the_file(read, monkeypatch):
    """But what asks for more than there is before it has said its size is damaged."""

    def none_left(*_: object) -> None:
        raise MemoryError

    data = png(RGB)
    with monkeypatch.context() as patch:
        patch.setattr(PngImagePlugin.PngImageFile, "load", none_left)
        with pytest.raises(MemoryError):
            read(data)
        assert thumbnail(data, 96) is None
    with monkeypatch.context() as patch:
        patch.setattr(PngImagePlugin.PngImageFile, "_open", none_left)
        with pytest.raises(NotReadError, match="it asks for more memory than there is") as caught:
            read(data)
        assert caught.value.status == "undecodable"
        with pytest.raises(NotReadError, match="it asks for more memory"):
            pixels.deepest(data, Rules())


# --- formats, pages, and Pillow itself


@pytest.mark.parametrize("kind", ["AVIF", "DIB", "ICO", "JPEG2000", "TGA"])
def test_more_formats_are_read(kind):
    flat = Image.new("RGB", (32, 32), INK)
    assert far(shown(saved(flat, kind)), np.full((32, 32, 3), INK)) <= 2
    with pytest.raises(NotReadError):
        pixels.first(saved(flat, kind))  # version 1 keeps to its own


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (
            b"\0\0\0\x18ftypheic" + bytes(30),
            f"HEIF images need a plug-in: {sys.executable} -m pip install pillow-heif",
        ),
        (
            b"\xff\x0a" + bytes(30),
            f"JXL images need a plug-in: {sys.executable} -m pip install pillow-jxl-plugin",
        ),
    ],
)
def test_a_format_of_a_plug_in_names_it(head, why, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_not(head) == why
    with pytest.raises(NotReadError, match=why):
        picture(head)


def test_a_thumbnail_lies_on_white_and_is_not_black():
    clear = Image.fromarray(np.zeros((20, 20, 4), np.uint8))
    for data in (saved(clear), png(np.full((20, 20), 4000, np.uint16), 16)):
        small = Image.open(io.BytesIO(thumbnail(data, 96)[0]))
        assert np.asarray(small.convert("RGB")).min() > 200


def test_importing_changes_nothing_in_pillow():
    assert pictures and MetaCoTrainingClassifier  # imported, with all that they know
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) == (2**20, 2**26)


@pytest.mark.parametrize("theirs", [None, 100])
def test_the_limit_of_pixels_is_ours_whatever_pillows_is(theirs, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", theirs)
    data = saved(Image.fromarray(np.dstack([np.tile(RGB, (4, 4, 1)), np.tile(ALPHA, (4, 4))])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture(data).image.size == (56, 40)
        assert pixels.first(data).image.size == (56, 40)
    assert theirs == Image.MAX_IMAGE_PIXELS


# --- several pages


def test_further_pages_and_frames_are_noticed_and_smaller_copies_are_none():
    one, other = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    for kind in ("TIFF", "GIF", "WEBP", "PNG", "AVIF"):
        alone, both = saved(one, kind), saved(one, kind, save_all=True, append_images=[other])
        assert not picture(alone).several and picture(both).several, kind
    assert pixels.first(saved(one, "TIFF", save_all=True, append_images=[other])).several
    for subfile, is_page in ((1, False), (4, False), (2, True), (0, True)):
        data = with_second(tiff(GREY), tiff(GREY[::2], t254=subfile))
        assert Image.open(io.BytesIO(data)).n_frames == 2
        assert picture(data).several == is_page, subfile
    assert not picture(saved(one, "MPO", save_all=True, append_images=[other])).several
    assert not picture(with_second(tiff(GREY), b"II*\0\xff\xff\xff\0")).several  # damaged


def with_second(data: bytes, other: bytes) -> bytes:
    """A TIFF whose second directory is that of another, behind it; its pixels are not looked at."""
    at = int.from_bytes(data[4:8], "little")
    end = at + 2 + 12 * int.from_bytes(data[at : at + 2], "little")
    place = int.from_bytes(other[4:8], "little") + len(data)
    return data[:end] + place.to_bytes(4, "little") + data[end + 4 :] + other
