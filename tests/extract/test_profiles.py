"""Colours with a profile of their own, held against the standards' formulas; and profiles that
cannot be used."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from rawfiles import PRIMARIES, in_srgb, linear, profile

from extract import profiles
from extract.pixels import Rules, picture

COLOURS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def shown(data: bytes) -> np.ndarray:
    return np.asarray(picture(data, Rules()).image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("name", [name for name in PRIMARIES if "sRGB" not in name])
def test_colours_become_those_of_srgb(name, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(COLOURS), kind, icc_profile=profile(name), **options)
    assert np.abs(shown(data) - in_srgb(COLOURS, name)).max() <= 2
    assert np.abs(in_srgb(COLOURS, name) - COLOURS).mean() > 5  # and that is not what they were


def test_a_jpeg_has_the_colours_of_its_profile():
    smooth = Image.fromarray(COLOURS[:2, :2]).resize((64, 64), Image.Resampling.BICUBIC)
    data = saved(smooth, "JPEG", quality=95, icc_profile=profile("Display P3"))
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(shown(data) - in_srgb(decoded, "Display P3")).max() <= 2


@pytest.mark.parametrize(
    "icc", [profile("sRGB"), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
def test_the_profile_of_srgb_changes_no_bit(icc):
    assert profiles.to_srgb(icc, "RGB") is None
    assert (shown(saved(Image.fromarray(COLOURS), icc_profile=icc)) == COLOURS).all()


def test_a_profile_that_is_nearly_that_of_srgb_counts():
    icc = profile("almost sRGB")
    assert profiles.to_srgb(icc, "RGB") is not None
    found = shown(saved(Image.fromarray(COLOURS), icc_profile=icc))
    assert np.abs(found - in_srgb(COLOURS, "almost sRGB")).max() <= 2


def test_grey_levels_have_their_profile_and_a_grey_image_may_have_one_of_colours():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    light = linear(grey / 255, 1.0)
    wanted = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    for space in (b"GRAY", b"RGB "):
        found = shown(saved(Image.fromarray(grey), icc_profile=profile("linear", space)))
        assert np.abs(found - wanted[..., None]).max() <= 2


def test_a_palette_and_an_alpha_take_part():
    few = Image.fromarray(COLOURS).quantize(8)
    colours = np.asarray(few.convert("RGB"))
    data = saved(few, icc_profile=profile("Adobe RGB"))
    assert np.abs(shown(data) - in_srgb(colours, "Adobe RGB")).max() <= 2
    half = Image.fromarray(np.dstack([COLOURS, np.full((16, 16), 128, np.uint8)]))
    wanted = (in_srgb(COLOURS, "Adobe RGB") * 128 + 255 * 127) / 255  # the ground is sRGB's white
    assert np.abs(shown(saved(half, icc_profile=profile("Adobe RGB"))) - wanted).max() <= 2


def test_cielab_needs_no_profile():
    lab = ImageCms.profileToProfile(
        Image.fromarray(COLOURS),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert np.abs(shown(saved(lab, "TIFF")) - COLOURS).mean() < 3


ADOBE = profile("Adobe RGB")


@pytest.mark.parametrize(
    ("mode", "icc", "why"),
    [
        ("RGB", ADOBE[:300], "it cannot be read"),
        ("RGB", b"no profile at all", "it cannot be read"),
        ("RGB", bytes(600), "it cannot be read"),
        ("RGB", profile("linear", b"GRAY"), "it is of L, the image is RGB"),
        ("CMYK", ADOBE, "it is of RGB, the image is CMYK"),
        ("RGB", ADOBE.replace(b"RGB XYZ ", b"7CLRXYZ "), "it describes 7CLR colours"),
    ],
)
def test_a_profile_that_cannot_be_used_is_left_aside_and_that_is_told(mode, icc, why):
    image = Image.fromarray(COLOURS).convert(mode)
    found = picture(saved(image, "TIFF", icc_profile=icc))
    assert found.ignored.startswith("colour profile that cannot be used (")
    if icc != ADOBE[:300]:  # LittleCMS may say otherwise of one that is cut short
        assert why in found.ignored
    assert (np.asarray(found.image) == np.asarray(image.convert("RGB"))).all()


def test_a_profile_whose_white_is_dark_is_broken():
    dark = bytearray(profile("linear"))
    at = dark.index(b"curv") + 12
    dark[at : at + 2048] = bytes(2048)
    with pytest.raises(profiles.BrokenProfileError, match="its white is dark"):
        profiles.to_srgb(bytes(dark), "RGB")


def test_no_flipped_byte_of_a_profile_loses_the_image():
    image = Image.fromarray(COLOURS)
    for place in range(0, 512, 7):
        icc = bytearray(ADOBE)
        icc[place] ^= 0xFF
        assert picture(saved(image, icc_profile=bytes(icc))).image.size == (16, 16)
