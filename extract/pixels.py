"""Files of images -> RGB, without torch: which formats may be read, how large they may be, how grey
levels become colours; and thumbnails for pages."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**27  # of the file: 134 megapixels, 400 MB as RGB

Image.init()  # all of Pillow's plugins; FORMATS says which may be used
# Pillow only warns up to twice its limit; ours is checked before any pixel is decoded
Image.MAX_IMAGE_PIXELS = None


def thumbnail(data: bytes, side: int) -> tuple[bytes, int, int] | None:
    """A picture for a page: WebP of at most side x side pixels with its width and height, or None
    where `data` is no image that is read. A smaller image keeps its pixels, without loss."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.size[0] * image.size[1] > MAX_PIXELS:
                return None
            # a JPEG is decoded at an eighth of its size where that is enough
            image.draft("RGB", (2 * side, 2 * side))
            ImageOps.exif_transpose(image, in_place=True)
            pixels = rgb(image)
            small = max(pixels.size) <= side
            if not small:
                pixels.thumbnail((side, side), Image.Resampling.LANCZOS)
            sink = io.BytesIO()
            lossless = small and max(pixels.size) <= 48
            pixels.save(sink, "WEBP", lossless=lossless, quality=72, method=4)
    except Exception:  # Pillow raises nearly anything on a hostile file
        return None
    return sink.getvalue(), *pixels.size


def rgb(image: Image.Image) -> Image.Image:
    """To 8-bit RGB as Pillow does it, except that 16-bit grey is scaled to 8 bits (Pillow would
    clip it to white). Raises ValueError for 32-bit and floating-point grey: nothing says which of
    its values is white."""
    scaled = image.mode == "I" and image.format == "PPM"  # Pillow scales any such PGM to 16 bits
    if image.mode.startswith("I;16") or scaled:
        width, height = image.size
        levels = np.empty((height, width), np.uint8)
        for top in range(0, height, 256):  # in strips: a large scan fills memory as it is
            strip = np.asarray(image.crop((0, top, width, min(top + 256, height))), np.float32)
            levels[top : top + 256] = (strip / 257).round()
        image = Image.fromarray(levels)
    elif image.mode in ("I", "F"):
        raise ValueError(f"grey levels of mode {image.mode}")
    return image if image.mode == "RGB" else image.convert("RGB")
