"""Files of images -> 8-bit RGB, without torch: the picture as a viewer shows it. And thumbnails.

    picture(data, Rules())     version 2 and later: transparent pixels lie on a ground, colours are
                               sRGB's, grey levels have the bits that are declared, damaged metadata
                               cost no image
    first(data, Rules())       version 1, for what was made with it: whatever lies under the alpha,
                               colours without their profile, 16 bits; damaged metadata lose the
                               image

Pixels and what stands beside them are read in separate attempts. An image is read whole or not at
all. No setting of Pillow's is changed: limits are ours, and are looked at before any pixel is
decoded.
"""

import importlib
import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from extract import jpeg, profiles, salvage
from extract.data import formats

WHITE = (255, 255, 255)
MAX_PIXELS = 2**27  # of the file: 134 megapixels, 400 MB as RGB
STRIP = 256  # rows at a time: a large scan fills memory as it is
UNUSABLE = "colour profile that cannot be used"
DEPTHS = (8, 10, 12, 14, 16)
GREY_ALPHA = "LA;16B"  # as Pillow calls it in a PNG
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
BIG_TIFF = b"+\0", b"\0+"
PAGES = 64  # of a TIFF that are looked at


@dataclass(frozen=True)
class Rules:
    """background: RGB under transparent pixels. bits: of 16 so many are used; 0 takes what the
    image itself uses. max_pixels: of a file."""

    background: tuple[int, int, int] = WHITE
    bits: int = 16
    max_pixels: int = MAX_PIXELS


class NotReadError(Exception):
    """status: `undecodable`, `truncated` or `too large`; the message says why, and what to do."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


Pixels = Image.Image | np.ndarray  # 8-bit RGB: Pillow's, or (height, width, 3) uint8


@dataclass(frozen=True)
class Picture:
    """ignored: why its colour profile was left aside; '' where it was not. several: the file has
    further pages or frames, which are not read."""

    pixels: Pixels = field(repr=False)
    ignored: str = ""
    several: bool = False

    @property
    def image(self) -> Image.Image:
        return as_image(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        if isinstance(self.pixels, Image.Image):
            return self.pixels.size
        height, width, _ = self.pixels.shape
        return width, height


def as_image(pixels: Pixels) -> Image.Image:
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A file's pixels as they are, decoded, and the file; icc: its colour profile; lost: it has one
    that could not be read; turn: its EXIF orientation; inverted: of grey levels 0 is white; tiles:
    how Pillow decoded it. key: the grey level or colour that is transparent; plain: its alpha is
    none; window: all outside of it is transparent."""

    image: Any
    data: bytes = field(repr=False)
    icc: bytes = b""
    lost: bool = False
    turn: int = 1
    inverted: bool = False
    tiles: tuple[Any, ...] = ()
    key: Any = None
    plain: bool = False
    window: tuple[int, int, int, int] | None = None


def picture(data: bytes, rules: Rules = Rules(), draft: int = 0) -> Picture:
    """The picture in a file. Raises NotReadError; MemoryError where there is none for its pixels.

    draft: the sides that are wanted, where a coarser decoding will do (of JPEG).
    """
    with warnings.catch_warnings():  # of odd palettes and EXIF, for each of a million images
        warnings.simplefilter("ignore")
        quick = _quickly(data, rules.max_pixels, draft)
        if quick is not None:
            return Picture(quick)
        loaded = load(data, rules.max_pixels, draft)
        try:
            return replace(_picture(loaded, rules), several=has_several(loaded.image, data))
        except (NotReadError, MemoryError):
            raise
        except Exception as error:  # Pillow raises nearly anything on a hostile file
            raise _not_read(data, error) from error


def first(data: bytes, rules: Rules = Rules()) -> Picture:
    """The picture in a file as version 1 made it. Raises NotReadError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _sized(data, formats.FIRST, rules.max_pixels)
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return Picture(rgb(image), several=has_several(image, data))
    except (NotReadError, MemoryError):
        raise
    except Exception as error:
        raise _not_read(data, error) from error


def thumbnail(data: bytes, side: int) -> tuple[bytes, int, int] | None:
    """A picture for a page: WebP of at most side x side pixels with its width and height, or None
    where `data` is no image that is read. A smaller image keeps its pixels, without loss."""
    try:
        # a JPEG is decoded at an eighth of its size where that is enough
        pixels = picture(data, Rules(bits=0), draft=2 * side).image
        small = max(pixels.size) <= side
        if not small:
            pixels.thumbnail((side, side), Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        lossless = small and max(pixels.size) <= 48
        pixels.save(sink, "WEBP", lossless=lossless, quality=72, method=4)
    except Exception:  # Pillow raises nearly anything on a hostile file
        return None
    return sink.getvalue(), *pixels.size


# --- an ordinary JPEG, which most files are


def _quickly(data: bytes, max_pixels: int, draft: int) -> np.ndarray | None:
    """(height, width, 3) uint8 of a JPEG without a colour profile that is decoded at its own size:
    the very pixels that Pillow makes of it. None where there is any doubt: then Pillow decodes it,
    or says what is wrong."""
    if not jpeg.is_ordinary(data):
        return None
    try:
        image = _sized(data, formats.FORMATS, max_pixels)
        width, height = image.size
        if draft:
            image.draft("RGB", (draft, draft))
        is_plain = image.format == "JPEG" and image.mode == "RGB"
        if not is_plain or image.size != (width, height) or "icc_profile" in image.info:
            return None
        levels = jpeg.decoded(data)
    except Exception:  # Pillow raises nearly anything on a hostile file
        return None
    if levels.shape != (height, width, 3):
        return None
    return _turned(levels, _turn(image, b""))


def _turned(levels: np.ndarray, turn: int) -> np.ndarray:
    """As TURNS turns an image."""
    pixels = levels.view("V3")[..., 0]  # the three levels move together
    if turn in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if turn in (5, 6, 7, 8):
        pixels = pixels.T
    return np.ascontiguousarray(pixels)[..., None].view(np.uint8)


# --- the file's pixels, and apart from them what stands beside


def load(data: bytes, max_pixels: int = MAX_PIXELS, draft: int = 0) -> Loaded:
    """The pixels of a file, decoded. Raises NotReadError."""
    turned = salvage.black_is_zero(data)
    whole, lost = salvage.within_reach(turned or data)
    beside = None
    try:
        image, tiles = _decoded(whole, max_pixels, draft)
    except (NotReadError, MemoryError):
        raise
    except Exception as error:  # Pillow raises nearly anything on a hostile file
        beside = salvage.bare(whole)
        if beside is None:
            raise _not_read(data, error) from error
        try:
            image, tiles = _decoded(beside.data, max_pixels, draft)
        except MemoryError:
            raise
        except Exception as again:
            raise _not_read(data, again) from again
    beside = beside or salvage.Bare(whole)
    told = image.info.get("icc_profile", b"")  # None of one that Pillow could not read
    icc = beside.icc or told or b""
    return Loaded(
        image,
        beside.data,
        icc,
        not icc and (lost or beside.lost or told is None),
        _turn(image, beside.exif),
        turned is not None,
        tiles,
        _key(image, beside.data),
        _is_plain(image),
        _window(image, tiles),
    )


def _decoded(data: bytes, max_pixels: int, draft: int) -> tuple[Any, tuple[Any, ...]]:
    image = _sized(data, formats.FORMATS, max_pixels)
    if draft:
        image.draft("RGB", (draft, draft))
    _mend_planes(image)
    tiles = tuple(getattr(image, "tile", ()))
    image.load()
    return image, tiles


def _mend_planes(image: Any) -> None:
    """Pillow reads planes of 16 bits, one after the other and not compressed, as if they had 8."""
    if image.format != "TIFF" or image.tag_v2.get(284) != 2 or image.tag_v2.get(258, (8,))[0] != 16:
        return
    order, tiles = "L" if image.tag_v2.prefix == b"II" else "B", []
    for tile in image.tile:
        if tile.codec_name == "raw" and tile.args[0] in ("R", "G", "B", "A"):
            tile = tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
        tiles.append(tile)
    image.tile = tiles


def _sized(data: bytes, known: tuple[str, ...], max_pixels: int) -> Any:
    """A file that is opened, and not too large: if there is no memory for its pixels, that is no
    fault of the file's, while one that asks for more before its size is known is damaged."""
    try:
        image = _opened(data, known)
    except MemoryError as error:
        raise ValueError("it asks for more memory than there is") from error
    _refuse_large(image, max_pixels)
    return image


def _opened(data: bytes, known: tuple[str, ...]) -> Any:
    """As Image.open does it, without Pillow's limit of pixels (ours comes next), which is one
    setting for the whole process."""
    Image.init()
    name = formats.format_of(data[: formats.HEAD])
    if name in formats.PLUGINS and known is formats.FORMATS and formats.is_read(name):
        return _by_plugin(name, data)
    for one in known:
        factory, accept = Image.OPEN.get(one, (None, None))
        taken = accept(data[:16]) if accept else data.endswith(formats.TGA_END)
        if factory is None or not taken or isinstance(taken, str):
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            if one == name:
                raise UnidentifiedImageError(str(error)) from error
    raise UnidentifiedImageError("it begins like no format that is read")


def _by_plugin(name: str, data: bytes) -> Any:
    """HEIC by pillow-heif, JPEG XL by pillow-jxl-plugin, imported when the first one is read."""
    plugin: Any = importlib.import_module(formats.PLUGINS[name][0])
    if name == "HEIF":
        return plugin.HeifImageFile(io.BytesIO(data))
    return Image.OPEN["JXL"][0](io.BytesIO(data), "")


def _refuse_large(image: Any, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise NotReadError(
            "too large",
            f"{width:,} x {height:,} pixels; at most {max_pixels:,} are read (preprocess.max_pixels"
            " of the view)",
        )


def _turn(image: Any, exif: bytes) -> int:
    """1 where the EXIF is damaged."""
    try:
        found = image.getexif()
        if exif:
            found = Image.Exif()
            found.load(exif)
        return int(found.get(ORIENTATION, 1))
    except Exception:  # Pillow raises nearly anything on damaged EXIF
        return 1


def _key(image: Any, data: bytes) -> Any:
    """The level or the colour that is transparent, as it is in the pixels that Pillow decodes (a
    colour of 16 bits as it is in the file); None where there is none, or each colour of a palette
    has its own alpha."""
    key = image.info.get("transparency")
    if key is None or isinstance(key, bytes) or image.mode not in ("1", "L", "RGB", "I;16"):
        return None
    depth = data[24] if image.format == "PNG" else 8
    if image.mode == "RGB":
        return tuple(map(int, key))
    return int(key) if depth >= 8 else int(key) * 255 // (2**depth - 1)


def _is_plain(image: Any) -> bool:
    """Is the fourth channel none of transparency? One of TIFF that is not called so may be
    infrared; bitmaps whose alpha is 0 everywhere are meant to be seen."""
    if image.format == "TIFF" and image.mode == "RGBA":
        return not {1, 2} & set(image.tag_v2.get(338, ()))
    if image.format in ("BMP", "DIB", "TGA") and image.mode == "RGBA":
        return image.getchannel("A").getextrema() == (0, 0)
    return False


def has_several(image: Any, data: bytes) -> bool:
    """Has the file, of which this is the first picture, further pages or frames? What stands beside
    a photo in its JPEG (a preview, a depth map) is none, nor is a smaller copy or a mask of the
    page in a TIFF."""
    try:
        if image.format == "TIFF":
            return _has_pages(data, image.tag_v2.next)
        if image.format == "GIF":  # to look at the second frame forgets the first
            image = _opened(data, formats.FORMATS)
        return image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False)
    except Exception:  # of a file that is damaged behind its first page
        return False


def _has_pages(data: bytes, place: int) -> bool:
    """Whether one of the directories of a TIFF, from that at `place` on, is a page of its own."""
    file, seen = io.BytesIO(data), set[int]()
    while place and place not in seen and len(seen) < PAGES:
        seen.add(place)
        tags = ImageFileDirectory_v2(data[: 16 if data[2:4] in BIG_TIFF else 8])
        file.seek(place)
        tags.load(file)
        if 256 not in tags:  # no width: it is damaged
            return False
        if not tags.get(254, 0) & 5:  # 1: of lower resolution; 4: a mask
            return True
        place = tags.next
    return False


def _window(image: Any, tiles: tuple[Any, ...]) -> tuple[int, int, int, int] | None:
    """Where the first frame of a GIF lies, if it does not fill the canvas."""
    if image.format != "GIF" or not tiles or tiles[0].extents == (0, 0, *image.size):
        return None
    return tiles[0].extents


# --- pixels -> picture


def _picture(loaded: Loaded, rules: Rules) -> Picture:
    image, transform = loaded.image, None
    ignored = f"{UNUSABLE} (it is damaged)" if loaded.lost else ""
    source = "L" if _is_grey_alpha(loaded) else _source_mode(image.mode)
    if loaded.icc or source == "LAB":
        try:
            source, transform = _transform(loaded.icc, source)
        except profiles.BrokenProfileError as error:
            ignored = f"{UNUSABLE} ({error})"
            if source == "LAB":
                raise NotReadError("undecodable", ignored) from error
    levels = _levels(loaded, rules)
    low = None
    if _is_deep(loaded) and (levels or loaded.key is not None):
        low = _low_bytes(loaded)
    if image.mode == "RGB" and not (transform or levels or loaded.window) and loaded.key is None:
        found = image
    else:
        found = _on_ground(loaded, rules, (levels, low), (source, transform))
    if loaded.turn in TURNS:
        found = found.transpose(TURNS[loaded.turn])
    return Picture(found, ignored)


def _source_mode(mode: str) -> str:
    """The colours that a mode has, without its alpha: grey, RGB, CMYK or CIELab."""
    if mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16"):
        return "L"
    return mode if mode in ("CMYK", "LAB") else "RGB"


def _transform(icc: bytes, source: str) -> tuple[str, profiles.Transform | None]:
    """From which colours, and how, to sRGB. Raises BrokenProfileError."""
    wanted = profiles.mode_of(icc) if icc else "LAB"
    if (source, wanted) == ("L", "RGB"):  # a grey image with the profile of its screen
        source = "RGB"
    if source != wanted:
        raise profiles.BrokenProfileError(f"it is of {wanted}, the image is {source}")
    return source, profiles.to_srgb(icc, source)


def _on_ground(
    loaded: Loaded,
    rules: Rules,
    depth: tuple["Levels | None", Image.Image | None],
    colours: tuple[str, profiles.Transform | None],
) -> Image.Image:
    """The image in sRGB on the background, strip by strip. depth: how levels of more than 8 bits
    become 8, and the second byte of each, where Pillow keeps the first alone."""
    width, height = loaded.image.size
    (levels, whole_low), (source, transform) = depth, colours
    ground = Image.new("RGB", (width, height), rules.background)
    for top in range(0, height, STRIP):
        box = 0, top, width, min(top + STRIP, height)
        strip = loaded.image.crop(box)
        low = whole_low.crop(box) if whole_low else None
        pixels = levels.colours(strip, low) if levels else _without_alpha(strip)
        pixels = pixels if pixels.mode == source else pixels.convert(source)
        pixels = transform.apply(pixels) if transform else pixels.convert("RGB")
        alpha = None if loaded.plain else _alpha(strip, low, loaded.key)
        if levels and low and alpha and loaded.key is None:
            alpha = levels.alpha(alpha, low)
        ground.paste(pixels, box, alpha)
    if loaded.window:
        whole, ground = ground, Image.new("RGB", (width, height), rules.background)
        ground.paste(whole.crop(loaded.window), loaded.window)
    return ground


def _without_alpha(image: Image.Image) -> Image.Image:
    """The colours of an image, whatever its alpha."""
    if image.mode in ("La", "RGBa"):  # multiplied by alpha already
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    if image.mode == "LA":
        return image.getchannel("L")
    return image.convert("RGB") if image.mode == "RGBA" else image


def _alpha(image: Image.Image, low: Image.Image | None, key: Any) -> Image.Image | None:
    """How much of each pixel is seen, as a mask; None where all is."""
    if key is not None:
        levels = np.asarray(image)
        if low:
            levels = levels * np.uint16(256) + np.asarray(low)
        same = levels == np.asarray(key)
        hidden = same.all(-1) if same.ndim == 3 else same
        return Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return None
    if image.mode not in ("LA", "RGBA"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.getchannel("A")


# --- more than 8 bits


@dataclass(frozen=True)
class Levels:
    """Levels of more than 8 bits of a strip -> 8 bits: `white` is 255. deep_alpha: the alpha has 16
    bits, however few the colours have."""

    white: int
    inverted: bool = False
    deep_alpha: bool = False

    def colours(self, strip: Image.Image, low: Image.Image | None) -> Image.Image:
        if low is None:
            levels = np.asarray(strip, np.float32)
        else:
            levels = np.asarray(strip.convert("RGB"), np.float32) * 256
            levels += np.asarray(low.convert("RGB"), np.float32)
        found = self._in_8_bits(levels)
        return Image.fromarray(255 - found if self.inverted else found)

    def alpha(self, alpha: Image.Image, low: Image.Image) -> Image.Image:
        if self.deep_alpha:
            return alpha
        levels = np.asarray(alpha, np.float32) * 256
        return Image.fromarray(self._in_8_bits(levels + np.asarray(low.getchannel("A"))))

    def _in_8_bits(self, levels: np.ndarray) -> np.ndarray:
        return (levels * (255 / self.white)).round().clip(0, 255).astype(np.uint8)


def _levels(loaded: Loaded, rules: Rules) -> Levels | None:
    """None where the levels are those of 8 bits. Raises NotReadError for floating-point, signed and
    32-bit grey: nothing says which of its values is white."""
    image = loaded.image
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise NotReadError("undecodable", why_not(loaded.data) or NOTHING_SAYS.format("32-bit"))
    deep = image.mode.startswith("I")
    coarse = _is_deep(loaded)
    if not deep and (not coarse or rules.bits == 16):
        return None
    bits = _bits_of(loaded)
    if bits == 0:
        bits = rules.bits or used_bits(largest(loaded))
    white = 2**bits - 1
    if deep:
        return Levels(white, loaded.inverted)
    has_alpha = image.mode == "RGBA"
    return Levels(white, deep_alpha=has_alpha and 256 * image.getextrema()[3][1] > white)


def _bits_of(loaded: Loaded) -> int:
    """How many bits the file itself says its levels have; 0 where it has 16 and says no more."""
    image = loaded.image
    if image.format == "TIFF":
        told = image.tag_v2.get(258, (16,))[0]
        return 0 if told == 16 else int(told)
    scaled = image.format == "PPM" and loaded.tiles[0].codec_name != "raw"
    return 0 if image.format in ("PNG", "PPM") and not scaled else 16


def _rawmode(tile: Any) -> str:
    args = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return args if isinstance(args, str) else ""


def _is_deep(loaded: Loaded) -> bool:
    """Has each channel of an RGB image 16 bits, of which Pillow keeps 8?"""
    return loaded.image.mode in ("RGB", "RGBA") and _are_deep(loaded.tiles)


def _are_deep(tiles: Sequence[Any]) -> bool:
    """Not those of which the second byte says nothing by itself: colours that Pillow divides by
    their alpha."""
    mode = _rawmode(tiles[0]) if tiles else ""
    return ";16" in mode and not mode.startswith("RGBa")


def _is_grey_alpha(loaded: Loaded) -> bool:
    """Grey with alpha of 16 bits, which Pillow gives as colours."""
    return bool(loaded.tiles) and _rawmode(loaded.tiles[0]) == GREY_ALPHA


def _low_bytes(loaded: Loaded) -> Image.Image:
    """The second byte of each level: the file is decoded as if its bytes were in the other
    order."""
    image = _opened(loaded.data, formats.FORMATS)
    _mend_planes(image)
    if image.format == "TIFF" and image.tag_v2.get(284) == 2 and image.tile[0][0] == "libtiff":
        raise NotReadError(
            "undecodable",
            "compressed planes of 16 bits: write the channels side by side (planar configuration "
            "1), or not compressed",
        )
    if _is_grey_alpha(loaded):  # the four bytes of a pixel, as they lie in the file
        image.tile = [image.tile[0]._replace(args="RGBA")]
        _, grey, _, alpha = image.split()
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    tiles = []
    for tile in image.tile:
        mode = _rawmode(tile)
        other = mode[:-1] + ("B" if mode[-1] in "LN" else "L")
        args = (other, *tile.args[1:]) if isinstance(tile.args, tuple) else other
        tiles.append(tile._replace(args=args))
    image.tile = tiles
    image.load()
    return image


def deepest(data: bytes, rules: Rules) -> int:
    """`largest` of a file; -1, without a look at its pixels, where it has 8 bits. Raises
    NotReadError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = _sized(data, formats.FORMATS, rules.max_pixels)
        except NotReadError:
            raise
        except Exception as error:  # Pillow raises nearly anything on a hostile file
            raise _not_read(data, error) from error
        tiles = getattr(image, "tile", ())
        if not image.mode.startswith("I") and not _are_deep(tiles):
            return -1
        return largest(load(data, rules.max_pixels))


def largest(loaded: Loaded) -> int:
    """The largest level of a file of 16 bits a channel (of colours to within 255); -1 where it has
    8, or says itself how many of them it uses."""
    image = loaded.image
    if _bits_of(loaded):
        return -1
    if image.mode.startswith("I"):
        return int(np.asarray(image).max())
    if _is_deep(loaded):
        most = max(high for _, high in image.convert("RGB").getextrema())
        return 256 * most + 255
    return -1


def used_bits(level: int) -> int:
    """The fewest bits, of those that cameras and scanners give, that hold the level."""
    return next(bits for bits in DEPTHS if level < 2**bits)


def rgb(image: Image.Image) -> Image.Image:
    """Version 1: to 8-bit RGB as Pillow does it, except that 16-bit grey is scaled to 8 bits.
    Raises ValueError for 32-bit and floating-point grey."""
    scaled = image.mode == "I" and image.format == "PPM"  # Pillow scales any such PGM to 16 bits
    if image.mode.startswith("I;16") or scaled:
        width, height = image.size
        levels = np.empty((height, width), np.uint8)
        for top in range(0, height, STRIP):
            strip = np.asarray(image.crop((0, top, width, min(top + STRIP, height))), np.float32)
            levels[top : top + STRIP] = (strip / 257).round()
        image = Image.fromarray(levels)
    elif image.mode in ("I", "F"):
        raise ValueError(f"grey levels of mode {image.mode}")
    return image if image.mode == "RGB" else image.convert("RGB")


# --- why not

NOTHING_SAYS = (
    "{} levels: nothing says which is black and which is white; write 8- or 16-bit unsigned ones"
)


def _not_read(data: bytes, error: Exception) -> NotReadError:
    """What is wrong with a file that could not be read, for people."""
    if isinstance(error, NotReadError):
        return error
    if "truncated" in str(error).lower() or _is_cut(data):
        return NotReadError("truncated", "the file ends before its pixels do")
    told = " ".join(str(error).split())[:200] or type(error).__name__
    return NotReadError("undecodable", why_not(data) or told)


def _is_cut(data: bytes) -> bool:
    """Is a WebP shorter than it says?"""
    is_webp = formats.format_of(data[: formats.HEAD]) == "WEBP"
    return is_webp and len(data) < 8 + int.from_bytes(data[4:8], "little")


def why_not(data: bytes) -> str:
    """The reason, where a file holds what cannot be shown, or needs something that is not here; ''
    where none is known."""
    name = formats.format_of(data[: formats.HEAD])
    if not data:
        return "the file is empty"
    if name in formats.PLUGINS and not formats.is_read(name):
        return f"{name} images need a plug-in: {formats.installing(name)}"
    if name == "AVIF" and not formats.is_read(name):
        return "this Pillow was built without AVIF"
    return _why_not_tiff(data) if name == "TIFF" else ""


def _why_not_tiff(data: bytes) -> str:
    try:
        file, header = io.BytesIO(data), data[: 16 if data[2:4] in BIG_TIFF else 8]
        tags = ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        bits, channels = tags.get(258, (1,)), int(tags.get(277, 1))
        kind = tags.get(339, (1,))[0]
    except Exception:  # of a damaged file
        return ""
    if channels > 4 or (channels > 1 and tags.get(262) in (0, 1) and channels != 2):
        return f"{channels} channels: write the three that are meant as an RGB image"
    if kind == 3:
        return NOTHING_SAYS.format("floating-point")
    if kind == 2:
        return NOTHING_SAYS.format(f"signed {bits[0]}-bit")
    if bits[0] > 16:
        return NOTHING_SAYS.format(f"{bits[0]}-bit")
    return (
        f"a TIFF of {channels} channels of {bits[0]} bits of this kind: write 8- or 16-bit grey or "
        "RGB"
    )
