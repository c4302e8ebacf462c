"""Colour profiles (ICC) -> sRGB, by LittleCMS.

Relative colorimetric: what lies within sRGB keeps its colour, and white stays white, whatever table
of its own a profile has for `perceptual`.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
KEPT = 16  # transforms in memory: data sets have few profiles
SAME = 2  # levels of 255 by which writers' sRGB profiles differ from LittleCMS's own
PALE = 224  # what white must at least become, unless the profile is broken
Transform = ImageCms.ImageCmsTransform


class BrokenProfileError(ValueError):
    """A profile that cannot be used for this image; the message says why."""


def mode_of(icc: bytes) -> str:
    """Pillow's mode of the pixels that the profile describes. Raises BrokenProfileError."""
    space = _profile(icc).profile.xcolor_space
    if space not in MODES:
        raise BrokenProfileError(f"it describes {space.strip()} colours")
    return MODES[space]


@functools.lru_cache(KEPT)
def to_srgb(icc: bytes, mode: str) -> Transform | None:
    """Pixels of `mode` ("" chooses CIELab, without a profile) -> RGB in sRGB; None where the
    profile is that of sRGB. Raises BrokenProfileError."""
    try:
        source = _profile(icc) if icc else ImageCms.createProfile("LAB")
        found = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE,
        )
        tried, wanted = _samples(mode)
        levels = np.asarray(found.apply(tried), np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise BrokenProfileError(str(error) or type(error).__name__) from error
    if levels[0, 0].min() < PALE:
        raise BrokenProfileError("its white is dark")
    if wanted is not None and np.abs(levels - wanted).max() <= SAME:
        return None
    return found


def _profile(icc: bytes) -> ImageCms.ImageCmsProfile:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise BrokenProfileError("it cannot be read") from error


def _samples(mode: str) -> tuple[Image.Image, np.ndarray | None]:
    """Colours all over the cube, the first one white, and what they are in sRGB, where levels are
    those of sRGB or of its greys."""
    levels = np.arange(255, -1, -17, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(16, 256, 3)
    if mode == "RGB":
        return Image.fromarray(cube), cube
    if mode == "L":
        return Image.fromarray(cube[..., 0]), cube[..., :1].repeat(3, -1)
    if mode == "CMYK":
        return Image.new("CMYK", (1, 1), 0), None
    return Image.new("LAB", (1, 1), (255, 128, 128)), None
