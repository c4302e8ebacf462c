"""Ordinary JPEG files -> levels, by libjpeg-turbo into an array (simplejpeg): the very pixels of
Pillow's, which has the same library, without its image of four bytes a pixel on the way."""

import struct

import numpy as np

from extract import salvage

# How a frame is coded: ISO/IEC 10918-1, table B.1. Baseline, extended and progressive by Huffman
# are what cameras and programs write.
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
USUAL = (0xC0, 0xC1, 0xC2)


def is_ordinary(data: bytes) -> bool:
    """Is it a JPEG of three channels of 8 bits, coded as usual?"""
    try:
        for marker, piece in salvage.segments(data):
            if marker in FRAMES:
                bits, channels = piece[4], piece[9]
                return marker in USUAL and (bits, channels) == (8, 3)
    except (struct.error, IndexError, ValueError):  # none, or damaged
        pass
    return False


def decoded(data: bytes) -> np.ndarray:
    """(height, width, 3) uint8. Raises ValueError where anything is odd, if only for a warning of
    libjpeg's."""
    import simplejpeg  # noqa: PLC0415  a cache hit decodes nothing

    # as Pillow asks for them: the exact cosine transform, chroma interpolated
    return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
