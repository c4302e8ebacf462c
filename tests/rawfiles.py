"""Image files written byte by byte, so that what a library reads out of them can be held against
what was put in; colour profiles of given primaries; colour arithmetic from the standards' own
formulas."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> colour type


def chunk(kind: bytes, data: bytes, wrong: bool = False) -> bytes:
    """A PNG chunk; `wrong`: its checksum is not its own."""
    crc = zlib.crc32(kind + data) ^ wrong
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(levels: np.ndarray, depth: int = 8, *before: bytes, after: Sequence[bytes] = ()) -> bytes:
    """(H, W) or (H, W, channels); `before`, `after`: chunks around the pixels."""
    height, width, *channels = levels.shape
    kind, lines = PNG_KINDS[channels[0] if channels else 1], []
    for row in levels:
        if depth == 16:
            lines.append(row.astype(">u2").tobytes())
        elif depth == 8:
            lines.append(row.astype(np.uint8).tobytes())
        else:
            bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
            lines.append(np.packbits(bits.ravel()).tobytes())
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    parts = (head, *before, chunk(b"IDAT", body), *after, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(levels: np.ndarray, order: str = "<", photometric: int = 1, **tags: int | list) -> bytes:
    """Not compressed, one strip. tags: t338=[1] and such, besides those that levels imply."""
    height, width, *channels = levels.shape
    count = channels[0] if channels else 1
    pixels = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    form = {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    values = {256: width, 257: height, 258: [levels.itemsize * 8] * count, 259: 1}
    values |= {262: photometric, 273: 8, 277: count, 278: height, 279: len(pixels)}
    values |= {339: [form] * count, **{int(name[1:]): value for name, value in tags.items()}}
    entries, more = [], b""
    at = 8 + len(pixels) + len(pixels) % 2
    behind = at + 2 + 12 * len(values) + 4
    for tag, value in sorted(values.items()):
        numbers = value if isinstance(value, list) else [value]
        kind, code = (4, "I") if max(numbers) > 65535 or tag in (273, 279) else (3, "H")
        data = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(data) > 4:
            place = struct.pack(f"{order}I", behind + len(more))
            more += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(4, b"\0")
        entries.append(struct.pack(f"{order}HHI", tag, kind, len(numbers)) + place)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, at)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return head + pixels + b"\0" * (len(pixels) % 2) + directory + more


# --- colour

D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
PRIMARIES = {  # red, green, blue, white; gamma, 0 for sRGB's curve
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65, 0),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65, 563 / 256),
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65, 0),
    "ProPhoto": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), D50, 1.8),
    "almost sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65, 2.2),
    "linear": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65, 1.0),
}
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def _xyz(xy: tuple[float, float]) -> np.ndarray:
    return np.array([xy[0] / xy[1], 1, (1 - xy[0] - xy[1]) / xy[1]])


def to_xyz(name: str) -> np.ndarray:
    """(3, 3): linear RGB -> XYZ, adapted to D50 by Bradford."""
    *primaries, white, _ = PRIMARIES[name]
    columns = np.stack([_xyz(xy) for xy in primaries], 1)
    matrix = columns * np.linalg.solve(columns, _xyz(white))
    gain = (BRADFORD @ _xyz(D50)) / (BRADFORD @ _xyz(white))
    return np.linalg.inv(BRADFORD) @ np.diag(gain) @ BRADFORD @ matrix


def linear(levels: np.ndarray, gamma: float) -> np.ndarray:
    """0 to 1 -> 0 to 1, in light."""
    if gamma:
        return levels**gamma
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def in_srgb(levels: np.ndarray, name: str) -> np.ndarray:
    """(…, 3) uint8 in a colour space -> the same colours in sRGB, 0 to 255."""
    light = linear(levels / 255, PRIMARIES[name][-1]) @ to_xyz(name).T
    light = (light @ np.linalg.inv(to_xyz("sRGB")).T).clip(0, 1)
    encoded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return encoded * 255


def profile(name: str, space: bytes = b"RGB ") -> bytes:
    """An ICC profile (version 2) of a colour space; grey: its curve alone."""

    def fixed(values: Sequence[float]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    gamma, matrix = PRIMARIES[name][-1], to_xyz(name)
    curve = [round(65535 * linear(np.array(i / 1023), gamma)) for i in range(1024)]
    trc = b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *curve)
    text = b"text\0\0\0\0test\0"
    desc = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": desc, b"cprt": text, b"wtpt": fixed(_xyz(D50))}
    if space == b"GRAY":
        tags[b"kTRC"] = trc
    else:
        for i, letter in enumerate("rgb"):
            tags[f"{letter}XYZ".encode()] = fixed(matrix[:, i])
            tags[f"{letter}TRC".encode()] = trc
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
