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
TIFF_ICC = 34675
TIFF_TEXT = (269, 270, 271, 272, 285, 305, 306, 315, 316, 33432)
TIFF_DROPPED = (*TIFF_TEXT, 282, 283, 700, 33723, 34377, 34665, 34853, 40965, 50341)
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TIFF_SIZES |= {16: 8, 17: 8, 18: 8}  # bytes of a value, by its type
NO_TAG = 65535
TIFF = rb"II[*+]\0|MM\0[*+]"


class Bare(NamedTuple):
    """A file's pixels, and its EXIF and colour profile as far as they were found (else empty);
    lost: it has a profile that was not."""

    data: bytes
    exif: bytes = b""
    icc: bytes = b""
    lost: bool = False


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
    kept, exif, icc, lost, at = [data[:8]], b"", b"", False, 8
    while at + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        piece = data[at : at + 12 + length]
        if kind in PNG_KEPT:
            kept.append(piece)
        elif kind == b"eXIf":
            exif = piece[8:-4]
        elif kind == b"iCCP":
            icc = _inflated(piece[8:-4])
            lost = not icc
        at += 12 + length
        if kind == b"IEND":
            break
    return Bare(b"".join(kept), exif, icc, lost)


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
    for marker, piece in segments(data):
        body = piece[4:]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            parts.append((body[12], body[13], body[14:]))
        elif _is_kept(marker, body):
            kept.append(piece)
    icc = _profile(parts)
    return Bare(b"".join(kept), exif, icc, bool(parts) and not icc)


def _is_kept(marker: int, body: bytes) -> bool:
    """A segment that is no comment and of no application, but for the one of Adobe."""
    is_beside = 0xE0 <= marker <= 0xEF or marker == 0xFE
    return not is_beside or _is_adobe(body)


def _profile(parts: list[tuple[int, int, bytes]]) -> bytes:
    """parts: (number, of so many, bytes) of each piece; b"" where some are missing or out of
    order."""
    numbers = [number for number, _, _ in parts]
    counts = {count for _, count, _ in parts}
    if numbers != list(range(1, len(parts) + 1)) or not counts <= {len(parts)}:
        return b""
    return b"".join(body for _, _, body in parts)


def _is_adobe(body: bytes) -> bool:
    """It says how colours are stored."""
    return body.startswith(b"Adobe") and len(body) >= 12


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
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
    """The profile stays in it."""
    return Bare(_without(data, [at for at, tag in tiff_tags(data) if tag in TIFF_DROPPED]))


def within_reach(data: bytes) -> tuple[bytes, bool]:
    """A TIFF without what stands beside its pixels and lies outside of the file: there Pillow
    ceases to read the directory, without a word, and the tags behind it are lost. And whether the
    colour profile is among that. Any other file as it is."""
    if not re.match(TIFF, data):
        return data, False
    missing = {}
    try:
        for at, tag in tiff_tags(data):
            if tag in (*TIFF_DROPPED, TIFF_ICC) and _is_outside(data, at):
                missing[at] = tag
    except struct.error:
        return data, False
    return _without(data, list(missing)), TIFF_ICC in missing.values()


def _is_outside(data: bytes, at: int) -> bool:
    """Do the values of a directory's entry lie outside of the file? Raises struct.error."""
    big = _is_big(data)
    kind, count, place = struct.unpack_from(_order(data) + ("HQQ" if big else "HII"), data, at + 2)
    size = count * TIFF_SIZES.get(kind, 0)
    return size > (8 if big else 4) and place + size > len(data)


def _without(data: bytes, entries: list[int]) -> bytes:
    """A TIFF whose entries at these places hold one byte that nobody asks for."""
    patched = bytearray(data)
    for at in entries:
        form = _order(data) + ("HHQQ" if _is_big(data) else "HHII")
        struct.pack_into(form, patched, at, NO_TAG, 1, 1, 0)
    return bytes(patched) if entries else data


def _is_big(data: bytes) -> bool:
    return data[2:4] in (b"+\0", b"\0+")


def _order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def tiff_tags(data: bytes) -> Iterator[tuple[int, int]]:
    """(place in the file, number) of each entry of a TIFF's first directory. Raises
    struct.error."""
    order, big = _order(data), _is_big(data)
    (first,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, first)
    begin, size = (first + 8, 20) if big else (first + 2, 12)
    for entry in range(min(count, 4096)):
        at = begin + size * entry
        yield at, struct.unpack_from(f"{order}H", data, at)[0]


def black_is_zero(data: bytes) -> bytes | None:
    """A TIFF of grey levels whose white is zero, as one whose black is: Pillow does not turn those
    of more than 8 bits, or does not read them. None where it is none."""
    if not re.match(TIFF, data):
        return None
    order = _order(data)
    value = 12 if _is_big(data) else 8
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
    """The EXIF item as one of a kind that nobody knows. The profile stays in it."""
    return Bare(re.sub(rb"(infe\x02.{7})Exif", rb"\1none", data, count=1, flags=re.DOTALL))


STRIPS: dict[bytes, Callable[[bytes], Bare]] = {
    rb"\x89PNG\r\n\x1a\n": _png,
    rb"\xff\xd8\xff": _jpeg,
    rb"RIFF.{4}WEBP": _webp,
    TIFF: _tiff,
    rb".{4}ftypavi[fs]": _avif,
}
