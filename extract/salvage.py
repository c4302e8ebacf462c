"""A file whose pixels may be whole though what stands beside them is damaged or too large: without
it, for a second attempt.

Of PNG, JPEG, WebP, TIFF and AVIF the pieces that hold no pixel are left out (text, times,
thumbnails, resolution, EXIF, profiles). EXIF and the colour profile are handed back by themselves,
where they can be found. Nothing that holds pixels is touched: what is cut short stays so.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

MOST = 2**24  # bytes of a colour profile
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
WEBP_DROPPED = (b"EXIF", b"XMP ", b"ICCP")
WEBP_FLAGS = 0x12  # of VP8X: alpha and animation; the others speak of what is left out
TIFF_DROPPED = (700, 33723, 34377, 34665, 34675, 34853, 40965, 50341)
NO_TAG = 65535


class Bare(NamedTuple):
    """A file's pixels, and its EXIF and colour profile as far as they were found (else empty)."""

    data: bytes
    exif: bytes = b""
    icc: bytes = b""


def bare(data: bytes) -> Bare | None:
    """None where the format has nothing that could be left out, or its pieces cannot be told
    apart."""
    for beginning, strip in STRIPS.items():
        if re.match(beginning, data, re.DOTALL):
            try:
                return strip(data)
            except (struct.error, IndexError, ValueError):
                return None
    return None


def _png(data: bytes) -> Bare:
    kept, exif, icc, at = [data[:8]], b"", b"", 8
    while at + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        piece = data[at : at + 12 + length]
        if kind in PNG_KEPT:
            kept.append(piece)
        elif kind == b"eXIf":
            exif = piece[8:-4]
        elif kind == b"iCCP":
            icc = _inflated(piece[8:-4])
        at += 12 + length
        if kind == b"IEND":
            break
    return Bare(b"".join(kept), exif, icc)


def _inflated(chunk: bytes) -> bytes:
    """The profile of an iCCP chunk; empty where it is damaged or too large."""
    _, _, packed = chunk.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        found = inflate.decompress(packed[1:], MOST)
    except zlib.error:
        return b""
    return found if inflate.eof else b""


def _webp(data: bytes) -> Bare:
    kept, found, at = [], {}, 12
    while at + 8 <= len(data):
        kind, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        piece = data[at : at + 8 + length + length % 2]
        if kind == b"VP8X":
            piece = piece[:8] + bytes([piece[8] & WEBP_FLAGS]) + piece[9:]
        if kind in WEBP_DROPPED:
            found[kind] = piece[8 : 8 + length]
        else:
            kept.append(piece)
        at += 8 + length + length % 2
    body = b"WEBP" + b"".join(kept)
    size = struct.pack("<I", len(body))
    return Bare(b"RIFF" + size + body, found.get(b"EXIF", b""), found.get(b"ICCP", b""))


def _jpeg(data: bytes) -> Bare:
    kept, exif, parts = [b"\xff\xd8"], b"", []
    for marker, piece in _segments(data):
        body = piece[4:]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            parts.append((body[12], body[13], body[14:]))
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or _is_adobe(body):
            kept.append(piece)
    numbers = [number for number, _, _ in parts]
    whole = numbers == list(range(1, len(parts) + 1)) and {n for _, n, _ in parts} <= {len(parts)}
    icc = b"".join(body for _, _, body in parts) if whole else b""
    return Bare(b"".join(kept), exif, icc)


def _is_adobe(body: bytes) -> bool:
    """It says how colours are stored."""
    return body.startswith(b"Adobe") and len(body) >= 12


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, the segment) of a JPEG; from the first scan on all as one."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            yield marker, data[at:]
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, data[at : at + 2 + length]
        at += 2 + length
    raise ValueError("no scan")


def _tiff(data: bytes) -> Bare:
    patched = bytearray(data)
    for at, tag in tiff_tags(data):
        if tag in TIFF_DROPPED:
            struct.pack_into(f"{_order(data)}H", patched, at, NO_TAG)
    return Bare(bytes(patched))


def _order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def tiff_tags(data: bytes) -> Iterator[tuple[int, int]]:
    """(place in the file, number) of each entry of a TIFF's first directory. Raises
    struct.error."""
    order, big = _order(data), data[2:4] in (b"+\0", b"\0+")
    (first,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, first)
    begin, size = (first + 8, 20) if big else (first + 2, 12)
    for entry in range(min(count, 4096)):
        at = begin + size * entry
        yield at, struct.unpack_from(f"{order}H", data, at)[0]


def black_is_zero(data: bytes) -> bytes | None:
    """A TIFF of grey levels whose white is zero, as one whose black is: Pillow does not turn those
    of more than 8 bits, or does not read them. None where it is none."""
    if not re.match(rb"II[*+]\0|MM\0[*+]", data):
        return None
    order, big = _order(data), data[2:4] in (b"+\0", b"\0+")
    value = 12 if big else 8
    deep, white = False, 0
    try:
        for at, tag in tiff_tags(data):
            (level,) = struct.unpack_from(f"{order}H", data, at + value)
            deep |= tag == 258 and level > 8
            if tag == 262 and level == 0:
                white = at + value
    except struct.error:
        return None
    if not (deep and white):
        return None
    return data[:white] + struct.pack(f"{order}H", 1) + data[white + 2 :]


def _avif(data: bytes) -> Bare:
    """The EXIF item as one of a kind that nobody knows."""
    return Bare(re.sub(rb"(infe\x02.{7})Exif", rb"\1none", data, count=1, flags=re.DOTALL))


STRIPS: dict[bytes, Callable[[bytes], Bare]] = {
    rb"\x89PNG\r\n\x1a\n": _png,
    rb"\xff\xd8\xff": _jpeg,
    rb"RIFF.{4}WEBP": _webp,
    rb"II[*+]\0|MM\0[*+]": _tiff,
    rb".{4}ftypavi[fs]": _avif,
}
