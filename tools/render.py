"""Procedural drawings for tools/pretrain_tiny.py: letters, symbols and random pen strokes, never a
digit glyph.

The drawings come from matplotlib's bundled TrueType fonts, from the stroke fonts of the
Hershey-Fonts package, and from random pen strokes.  `make_bank` renders them once, in clean white
on black; `augment` makes each training view of a drawing (a batch at a time).  Look at a sheet of
both with

    python tools/render.py sheet.png
"""

import functools
import string
import sys
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from HersheyFonts import HersheyFonts
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SIDE = 48  # side of a bank image
INK = 36  # longest side of the drawing inside it
ZOOM = 2  # drawings are made at ZOOM * SIDE and averaged down

ASCII_ONLY = (
    "cmb10",
    "cmmi10",
    "cmr10",
    "cmss10",
    "cmti10",
    "cmtt10",
)  # TeX encodings: only the ASCII letters are where they seem
UNICODE = tuple(
    f"DejaVu{kind}{style}"
    for kind, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
) + ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")
HERSHEY = [
    "futural",
    "futuram",
    "cursive",
    "cyrilc_1",
    "cyrillic",
    "gothgbt",
    "gothgrt",
    "gothiceng",
    "gothicger",
    "gothicita",
    "gothitt",
    "greek",
    "greekc",
    "greeks",
    "rowmand",
    "rowmans",
    "rowmant",
    "scriptc",
    "scripts",
    "timesg",
    "timesi",
    "timesib",
    "timesr",
    "timesrb",
]
STYLES = {
    "bold": ("Bol", "cmb"),
    "slanted": ("Ita", "Obl", "cmti", "cmmi"),
    "serif": ("Serif", "STIX", "cmr"),
}  # by file name
# Basic Latin, Latin-1, Latin Extended-A/B, IPA, Greek, Cyrillic, Armenian, Hebrew, Georgian;
# punctuation, arrows, mathematical signs.
BLOCKS = (
    (0x21, 0x2AF),
    (0x370, 0x556),
    (0x561, 0x587),
    (0x5D0, 0x5EA),
    (0x10D0, 0x10FF),
    (0x2010, 0x2046),
    (0x2190, 0x21FF),
    (0x2200, 0x22FF),
)
NUMBER_WORDS = {
    "digit",
    "number",
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "fraction",
    "half",
    "quarter",
    "superscript",
    "subscript",
}


def is_allowed(char):
    """A letter, punctuation mark or symbol that is in no way a number: not by category, value or
    name."""
    name = unicodedata.name(char, "0").lower()
    if unicodedata.category(char)[0] not in "LPS" or unicodedata.numeric(char, None) is not None:
        return False
    return (
        not any(c.isdigit() for c in name)
        and not set(name.replace("-", " ").split()) & NUMBER_WORDS
    )


def glyph_list():
    """All (font, character) pairs: TrueType ones first, then Hershey ones."""
    from fontTools.ttLib import TTFont  # a dependency of matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    wide = [
        chr(code)
        for first, last in BLOCKS
        for code in range(first, last + 1)
        if is_allowed(chr(code))
    ]
    pairs = []
    for name in UNICODE:
        known = TTFont(folder / f"{name}.ttf").getBestCmap()
        pairs += [(str(folder / f"{name}.ttf"), char) for char in wide if ord(char) in known]
    pairs += [
        (str(folder / f"{name}.ttf"), char) for name in ASCII_ONLY for char in string.ascii_letters
    ]
    return pairs, [(name, char) for name in HERSHEY for char in string.ascii_letters]


@functools.cache
def truetype(path):
    return ImageFont.truetype(path, 100)


@functools.cache
def hershey(name):
    font = HersheyFonts()
    font.load_default_font(name)
    return font


def fit(points, rng):
    """Scale strokes to fill the drawing area, with the aspect ratio a little changed."""
    flat = np.concatenate(points)
    low, extent = flat.min(0), np.ptp(flat, axis=0)
    extent = np.maximum(extent, 1e-3) * np.exp(rng.normal(0, 0.12, 2))
    scale = INK / extent.max() / np.maximum(np.ptp(flat, axis=0), 1e-3) * extent
    return [(p - low - np.ptp(flat, axis=0) / 2) * scale + SIDE / 2 for p in points]


def draw_strokes(strokes, rng):
    """Draw polylines with a round pen of random width."""
    width = rng.uniform(2, 6) * ZOOM
    image = Image.new("L", (SIDE * ZOOM, SIDE * ZOOM))
    pen = ImageDraw.Draw(image)
    for stroke in fit(strokes, rng):
        path = [tuple(p) for p in stroke * ZOOM]
        pen.line(path, fill=255, width=round(width))
        for x, y in path:
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return image


def wobble(stroke, rng, amount):
    """Resample a polyline, smooth its corners and shake it as a hand would (`amount` is relative to
    a drawing of size 1)."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(stroke, axis=0), axis=1))])
    at = np.linspace(0, length[-1], int(np.clip(length[-1] * 30, 8, 40)))
    path = np.stack([np.interp(at, length, stroke[:, i]) for i in (0, 1)], 1)
    path = ndimage.gaussian_filter1d(path, rng.uniform(0, 2), axis=0, mode="nearest")
    shake = ndimage.gaussian_filter1d(rng.normal(0, 1, path.shape), 8, axis=0, mode="nearest") * 5
    return path + shake * amount + rng.normal(0, amount, 2)


def draw_hershey(name, char, rng):
    """Draw a Hershey letter, handwriting-like: every stroke is shaken by itself."""
    strokes = [np.array(s, float) for s in hershey(name).strokes_for_text(char)]
    strokes = [s * (1, -1) for s in strokes if len(s) > 1]
    if not strokes:
        return None
    size = np.ptp(np.concatenate(strokes), axis=0).max()
    return draw_strokes([wobble(s / size, rng, rng.uniform(0, 0.04)) for s in strokes], rng)


def draw_truetype(path, char, rng):
    """Draw a TrueType glyph, cropped to its ink and scaled to the drawing area."""
    font = truetype(path)
    left, top, right, bottom = font.getbbox(char)
    if right <= left or bottom <= top:
        return None
    glyph = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(glyph).text((-left, -top), char, font=font, fill=255)
    size = np.array(glyph.size) * np.exp(rng.normal(0, 0.12, 2))
    size = np.maximum(np.round(size * INK * ZOOM / size.max()), 4).astype(int)
    image = Image.new("L", (SIDE * ZOOM, SIDE * ZOOM))
    image.paste(
        glyph.resize(tuple(size.tolist()), Image.Resampling.BILINEAR),
        tuple(((SIDE * ZOOM - size) // 2).tolist()),
    )
    return image


def draw_doodle(rng):
    """Draw one to three random pen strokes: each a path whose curvature changes a few times, joined
    end to start or not."""
    strokes, at, heading = [], np.zeros(2), rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(1, 4)):
        pieces = rng.integers(1, 5)
        turn = rng.choice([0, 1, 1, 1, 2], pieces) * rng.normal(0, 1, pieces) * 3.5
        steps = np.repeat(turn, 20) / 20
        angles = heading + np.cumsum(steps)
        length = np.repeat(rng.uniform(0.4, 1.2, pieces), 20) / 20
        path = at + np.cumsum(
            np.stack([np.cos(angles), np.sin(angles)], 1) * length[:, None], axis=0
        )
        strokes.append(wobble(np.concatenate([at[None], path]), rng, 0.01))
        joined = rng.random() < 0.6
        at = path[-1] if joined else path[rng.integers(len(path))] + rng.normal(0, 0.3, 2)
        heading = rng.uniform(0, 2 * np.pi)
    return draw_strokes(strokes, rng)


def shape_words(ink):
    """Describe the shape of a drawing (boolean image): closed loops, and bays by the side on which
    they are open."""
    rows, cols = np.nonzero(ink)
    middle, area = (rows.min() + rows.max()) / 2, (np.ptp(rows) + 1) * (np.ptp(cols) + 1)
    labels, count = ndimage.label(~ink)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    outside = labels[0, 0]
    words, places = [], []
    holes = np.zeros_like(ink)
    for i in range(1, count + 1):
        if i != outside and sizes[i] >= 8:
            holes |= labels == i
            centre = (ndimage.center_of_mass(labels == i)[0] - rows.min()) / (np.ptp(rows) + 1)
            places.append("above" if centre < 0.42 else "below" if centre > 0.58 else "middle")
    words.append(" ".join(["loop"] + sorted(set(places))) if places else "no loop")
    seen = [
        np.maximum.accumulate(ink, axis=1),
        np.maximum.accumulate(ink[:, ::-1], axis=1)[:, ::-1],
        np.maximum.accumulate(ink, axis=0),
        np.maximum.accumulate(ink[::-1], axis=0)[::-1],
    ]
    bays = ~ink & ~holes & (sum(s.astype(int) for s in seen) == 3)
    upper = np.arange(SIDE)[:, None] < middle
    for side, mask in zip(("left", "right", "top", "bottom"), seen):
        bay = bays & ~mask
        parts = (
            [("", bay)]
            if side in ("top", "bottom")
            else [(" above", bay & upper), (" below", bay & ~upper)]
        )
        words += [f"open {side}{where}" for where, part in parts if part.sum() > 0.035 * area]
    return words


def make_bank(count, seed):
    """Render `count` drawings; return uint8 [count, SIDE, SIDE] and for each the phrases of its
    caption (name first)."""
    rng = np.random.default_rng([seed, 1])
    glyphs, strokes = glyph_list()
    ascii_glyphs = [pair for pair in glyphs if pair[1] in string.ascii_letters]
    images, captions = [], []
    while len(images) < count:
        kind = rng.choice(["truetype", "ascii", "hershey", "doodle"], p=[0.3, 0.15, 0.4, 0.15])
        if kind == "doodle":
            image, phrases = draw_doodle(rng), ["pen drawing"]
        elif kind == "hershey":
            font, char = strokes[rng.integers(len(strokes))]
            script = (
                "greek "
                if "greek" in font
                else "cyrillic "
                if "cyril" in font
                else "gothic "
                if "goth" in font
                else ""
            )
            image = draw_hershey(font, char, rng)
            phrases = [
                f"handwritten {script}{'capital' if char.isupper() else 'small'} {char.lower()}"
            ]
        else:
            choices = ascii_glyphs if kind == "ascii" else glyphs
            font, char = choices[rng.integers(len(choices))]
            image = draw_truetype(font, char, rng)
            style = [
                word for word, marks in STYLES.items() if any(m in Path(font).name for m in marks)
            ]
            name = (
                unicodedata.name(char)
                .lower()
                .replace("latin ", "")
                .replace("letter ", "")
                .replace("-", " ")
            )
            phrases = [name] + ([" ".join(style)] if style else [])
        if image is None:
            continue
        image = np.asarray(image.reduce(ZOOM))
        flip = rng.choice(
            ["", "mirrored", "turned left", "turned right", "upside down"],
            p=[0.76, 0.08, 0.04, 0.04, 0.08],
        )
        image = {
            "": image,
            "mirrored": image[:, ::-1],
            "turned left": np.rot90(image),
            "turned right": np.rot90(image, 3),
            "upside down": image[::-1, ::-1],
        }[flip]
        if (image > 100).sum() < 30:
            continue
        images.append(image)
        captions.append(
            [" ".join(filter(None, (flip, phrases[0])))] + phrases[1:] + shape_words(image > 100)
        )
    return np.stack(images), captions


def augment(bank, side, generator, strength=1.0):
    """One random view of each image of a batch: uint8 [n, SIDE, SIDE] -> float [n, 1, side, side]
    in 0..1."""
    n = len(bank)

    def uniform(low, high, *shape):
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    def normal(scale, *shape):
        return torch.randn(n, *shape, generator=generator) * scale

    # pen thickness: blur, then cut at a random level of the image's own range
    x = bank[:, None].float() / 255
    kernel = torch.exp(-(torch.arange(-3, 4).float() ** 2) / (2 * 1.3**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    soft = F.conv2d(F.conv2d(x, kernel, padding=(0, 3)), kernel.transpose(2, 3), padding=(3, 0))
    soft = soft / soft.amax((2, 3), keepdim=True)
    x = torch.sigmoid((soft - uniform(0.12, 0.6, 1, 1, 1)) * uniform(8, 25, 1, 1, 1))
    # rotation, shear, size, place, and a smooth warp
    angle, shear = normal(0.14 * strength), normal(0.18 * strength)
    zoom = INK / SIDE / uniform(0.72, 1.02)
    zoom_x, zoom_y = (
        zoom * torch.exp(normal(0.12 * strength)),
        zoom * torch.exp(normal(0.06 * strength)),
    )
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([cos * zoom_x, (shear * cos - sin) * zoom_y, normal(0.05)], 1),
            torch.stack([sin * zoom_x, (shear * sin + cos) * zoom_y, normal(0.05)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, (n, 1, 32, 32), align_corners=False)
    warp = F.interpolate(
        normal(1.0, 2, 4, 4), (32, 32), mode="bicubic", align_corners=False
    ) * uniform(0, 0.09 * strength, 1, 1, 1)
    x = F.grid_sample(x, grid + warp.permute(0, 2, 3, 1), align_corners=False)
    # resolution: a quarter stays sharp, the rest is averaged down to a few pixels and scaled up
    # again
    sizes = (32, 8, 8, 8, 10, 12, 16, 20)
    parts = []
    for part, low in zip(x.chunk(len(sizes)), sizes):
        part = F.interpolate(part, (low, low), mode="area") if low < 32 else part
        parts.append(
            F.interpolate(part, (side, side), mode="bicubic", antialias=True, align_corners=False)
        )
    x = torch.cat(parts).clamp(0, 1)
    # contrast, background, noise
    x = x ** torch.exp(normal(0.25, 1, 1, 1)) * uniform(0.55, 1, 1, 1, 1)
    x = x + uniform(-0.5, 0.2, 1, 1, 1).clamp(min=0) * (1 - x)
    x = x + normal(1.0, 1, side, side) * uniform(-0.06, 0.08, 1, 1, 1).clamp(min=0)
    x = torch.where(uniform(0, 1, 1, 1, 1) < 0.03, 1 - x, x)
    return x.clamp(0, 1)


def sheet(path, seed=0):
    """Save a sheet of drawings (left) with an augmented view of each (right)."""
    images, captions = make_bank(128, seed)
    views = augment(torch.from_numpy(images), SIDE, torch.Generator().manual_seed(seed))
    tiles = np.concatenate([images, (views[:, 0].numpy() * 255).astype(np.uint8)], 2).reshape(
        16, 8, SIDE, 2 * SIDE
    )
    Image.fromarray(tiles.transpose(0, 2, 1, 3).reshape(16 * SIDE, -1)).save(path)
    print("\n".join(", ".join(c) for c in captions))


if __name__ == "__main__":
    sheet(sys.argv[1])
