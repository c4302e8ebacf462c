"""Which formats are read: what a file holds, by its first bytes; what it is called, by its ending;
and what to do about the others.

Stdlib alone: no image is opened here.
"""

import importlib.util
import re
import sys
from collections.abc import Iterable

# By Pillow's names. The first version of the pixels keeps to its own.
FIRST = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = (*FIRST, "AVIF", "DIB", "ICO", "JPEG2000", "TGA")
PLUGINS = {  # Pillow's name: the module that reads it, and the package that has it
    "HEIF": ("pillow_heif", "pillow-heif"),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin"),
}
NEEDED = {"AVIF": "PIL._avif"} | {name: module for name, (module, _) in PLUGINS.items()}
ENDINGS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "ICO": (".ico",),
    "JPEG": (".jpeg", ".jpg", ".jfif", ".jpe"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "JXL": (".jxl",),
    "PNG": (".png", ".apng"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
OTHERS = (*RAW, ".dcm", ".eps", ".exr", ".hdr", ".psd", ".svg", ".xcf")
BRANDS = {b"avif": "AVIF", b"avis": "AVIF"}  # of ISO files, behind `ftyp`
BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIF")
BEGINNINGS = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"RIFF.{4}WEBP", "WEBP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"BM.{4}\0{4}", "BMP"),
    (rb"P[1-6]\s", "PPM"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG2000"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JXL"),
    (rb"\0\0\x01\0[^\0]\0", "ICO"),
)
HEAD = 32  # bytes that tell a format
TGA_END = b"TRUEVISION-XFILE.\0"  # nothing else tells a TGA from anything at all


def format_of(head: bytes) -> str:
    """Pillow's name of the format that a file begins with, readable here or not; '' where it begins
    like none of them."""
    if head[4:8] == b"ftyp":
        return BRANDS.get(head[8:12], "")
    for beginning, name in BEGINNINGS:
        if re.match(beginning, head, re.DOTALL):
            return name
    return ""


def is_read(name: str) -> bool:
    """Can this machine read the format?"""
    if name in NEEDED:
        return importlib.util.find_spec(NEEDED[name]) is not None
    return name in FORMATS


def _endings(read: bool) -> list[str]:
    found = []
    for name, endings in ENDINGS.items():
        if is_read(name) == read:
            found += endings
    return found


EXTENSIONS = tuple(sorted(_endings(True)))
UNREAD = tuple(sorted([*_endings(False), *OTHERS]))


def installing(name: str) -> str:
    """The command by which this very Python gets the plug-in of a format."""
    return f"{sys.executable} -m pip install {PLUGINS[name][1]}"


def remedy(endings: Iterable[str]) -> str:
    """What to type, or to do, so that files with these endings of UNREAD are read."""
    wanted, rest = [], []
    for ending in endings:
        names = [name for name, own in ENDINGS.items() if ending in own]
        if names and names[0] in PLUGINS:
            wanted.append(installing(names[0]))
        else:
            rest.append(ending)
    ways = [f"type {command}" for command in dict.fromkeys(wanted)]
    if rest:
        ways.append(f"make JPEG or PNG files of those with {', '.join(rest)}")
    return ", and ".join(ways)
