"""From a JPEG file to the pixels that a model takes: how fast, and how far from those of before.

    python bench/bench_decode.py                       a minute or two, on one core
    python bench/bench_decode.py --photos FOLDER --views tiny-clip,lite0.toml,random:dinov2-b14

Photographs are scikit-learn's two, side by side and mirrored until the picture is full, at their
own resolution: fine detail is that of photographs. Six ways in turns, round by round: as it is, as
it is where Pillow decodes, with decoder = "scaled", as it was before version 3 of the pixels,
Pillow with torchvision's transforms as one would write them, and as it is but for the decoder,
torchvision's (deprecated there, and used nowhere here). Freed memory is kept, as in the processes
that decode. A figure is the median over the rounds with [lowest to highest], CPU time beside it.
Each is held against now, level by level.

With --photos, a folder of JPEG files, also how far apart the embeddings are: |a - b| / |b|, median
and 99th percentile, beside what storing them in float16 and computing in bfloat16 does. `random:`
takes a view with random weights. Of --task (.npz: images (N, H, W, 3) uint8, y (N,)) each third
picture is labelled by a logistic regression on the others, with either pixels.

Prints tables and writes bench/results/decode.json.
"""

import argparse
import dataclasses
import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_cache import machine, spread

from base import native
from cache_specs.spec import Preprocess, ViewSpec, load_spec
from extract.images import decode
from extract.models.backbones import Backbone, load_backbone
from extract.models.weights import find_weights
from extract.pixels import load
from extract.scaling import levels as levels_of
from extract.scaling import scaled

SIZES = ((500, 375), (1280, 960), (4032, 3024))
VIEW = "dinov2"  # shorter side to 256, bicubic, the middle 224
BATCH = 16
Way = Callable[[bytes], torch.Tensor]


# --- how fast


def photograph(width: int, height: int) -> bytes:
    """JPEG at quality 90, 4:2:0."""
    from sklearn.datasets import load_sample_images

    first, second = load_sample_images().images
    row = np.concatenate([first, second[:, ::-1], first[:, ::-1], second], 1)
    tile = np.concatenate([row, row[::-1]])
    times = -(-height // tile.shape[0]), -(-width // tile.shape[1]), 1
    return encoded(Image.fromarray(np.tile(tile, times)[:height, :width]))


def encoded(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=90)
    return sink.getvalue()


def ways(prep: Preprocess) -> dict[str, Way]:
    return {
        "now": by(prep),
        "pillow": by_pillow(prep),
        "scaled": by(dataclasses.replace(prep, decoder="scaled")),
        "before": by(dataclasses.replace(prep, pixels=2)),
        "torchvision": plain(prep),
        "decode_jpeg": by_decode_jpeg(prep),
    }


def by(prep: Preprocess) -> Way:
    def pixels(data: bytes) -> torch.Tensor:
        found = decode(data, prep)[0]
        assert found is not None
        return found

    return pixels


def by_pillow(prep: Preprocess) -> Way:
    return lambda data: scaled(levels_of(load(data).image), prep)


def plain(prep: Preprocess) -> Way:
    from torchvision.transforms import v2

    how = v2.InterpolationMode(prep.interpolation)
    steps = [v2.Resize(prep.resize, how), v2.CenterCrop(prep.crop), v2.PILToTensor()]
    transform = v2.Compose(steps)
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def by_decode_jpeg(prep: Preprocess) -> Way:
    from torchvision.io import ImageReadMode, decode_jpeg

    def pixels(data: bytes) -> torch.Tensor:
        file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        with warnings.catch_warnings():  # it is deprecated
            warnings.simplefilter("ignore")
            levels_CHW = decode_jpeg(file, ImageReadMode.RGB)
        return scaled(levels_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2), prep)

    return pixels


def speed(sizes: tuple[tuple[int, int], ...], rounds: int, prep: Preprocess) -> dict[str, Any]:
    found = {}
    for width, height in sizes:
        data, each = photograph(width, height), ways(prep)
        wall: dict[str, list[float]] = {name: [] for name in each}
        cpu: dict[str, list[float]] = {name: [] for name in each}
        for number in range(rounds + 1):  # the first warms up
            for name, way in each.items():
                begun, spent = time.perf_counter(), time.process_time()
                way(data)
                if number:
                    cpu[name].append(1e3 * (time.process_time() - spent))
                    wall[name].append(1e3 * (time.perf_counter() - begun))
        lines = {}
        for name, way in each.items():
            lines[name] = {"ms": spread(wall[name]), "cpu_ms": spread(cpu[name])}
            lines[name]["levels"] = levels(way(data), each["now"](data))
        found[f"{width} x {height}"] = lines
        tell(f"{width} x {height}", lines)
    return found


def levels(these: torch.Tensor, now: torch.Tensor) -> dict[str, float]:
    """How far levels of 0 to 255 are from those of now."""
    far = (these.int() - now.int()).abs().double()
    return {
        "same": float((far == 0).double().mean()),
        "mean": float(far.mean()),
        "greatest": float(far.max()),
    }


def tell(size: str, lines: dict[str, Any]) -> None:
    for name, line in lines.items():
        far = line["levels"]
        print(
            f"{size:12} {name:12} {said(line['ms'])} ms, CPU {said(line['cpu_ms'])}; "
            f"{100 * far['same']:.2f} % of the levels as now, mean difference {far['mean']:.4f}, "
            f"greatest {far['greatest']:.0f}",
            flush=True,
        )


def said(values: dict[str, float]) -> str:
    return f"{values['median']:7.2f} [{values['low']:.2f} to {values['high']:.2f}]"


# --- how far the embeddings are apart


def backbone_of(name: str, weights: str | None) -> tuple[ViewSpec, Backbone]:
    if name.startswith("random:"):
        from bench_extract import random_backbone

        spec = load_spec(name.removeprefix("random:"))
        spec = dataclasses.replace(spec, compute_dtype="float32")
        torch.manual_seed(0)
        return spec, random_backbone(spec).eval()
    spec = load_spec(name)
    return spec, load_backbone(spec, find_weights(spec, weights)[0], "cpu")


def embeddings(backbone: Backbone, way: Way, files: list[bytes]) -> torch.Tensor:
    def parts() -> Iterator[torch.Tensor]:
        for start in range(0, len(files), BATCH):
            yield backbone(torch.stack([way(data) for data in files[start : start + BATCH]]))

    with torch.inference_mode():
        return torch.cat(list(parts())).float()


def apart(these: torch.Tensor, those: torch.Tensor) -> dict[str, float]:
    far = (these - those).norm(dim=1) / those.norm(dim=1)
    median, high = far.quantile(torch.tensor([0.5, 0.99])).tolist()
    return {"median": median, "99 %": high, "n": len(far)}


def distances(name: str, args: argparse.Namespace, files: list[bytes]) -> dict[str, Any]:
    spec, backbone = backbone_of(name, args.weights)
    each = ways(spec.preprocess)
    now = embeddings(backbone, each["now"], files)
    found = {
        "before": apart(embeddings(backbone, each["before"], files), now),
        "stored in float16": apart(now.half().float(), now),
    }
    few = files[: args.few]
    backbone.compute_dtype = torch.bfloat16
    coarse = embeddings(backbone, each["now"], few)
    backbone.compute_dtype = torch.float32
    found["computed in bfloat16"] = apart(coarse, now[: len(few)])
    large = [mosaic(few[start : start + 9]) for start in range(0, len(few) - 8, 9)]
    if large:
        whole = embeddings(backbone, each["now"], large)
        found["scaled"] = apart(embeddings(backbone, each["scaled"], large), whole)
    for what, line in found.items():
        far = f"{line['median']:.6f}, 99 % {line['99 %']:.6f} (n = {line['n']})"
        print(f"{name:24} {what:22} {far}", flush=True)
    return found


def mosaic(files: list[bytes]) -> bytes:
    """Nine photographs, 3 x 3, none of them scaled."""
    images = [Image.open(io.BytesIO(data)) for data in files]
    width, height = max(one.width for one in images), max(one.height for one in images)
    whole = Image.new("RGB", (3 * width, 3 * height))
    for number, one in enumerate(images):
        whole.paste(one, (number % 3 * width, number // 3 * height))
    return encoded(whole)


def labelled(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy with the pixels of before and of now, on the same pictures."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    task = np.load(args.task)
    spec, backbone = backbone_of(name, args.weights)
    files = []
    for image in task["images"]:
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, "PNG")
        files.append(sink.getvalue())
    test, right = np.arange(len(files)) % 3 == 0, {}
    for which in ("before", "now"):
        emb = embeddings(backbone, ways(spec.preprocess)[which], files).half().float().numpy()
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        probe.fit(emb[~test], task["y"][~test])
        right[which] = probe.predict(emb[test]) == task["y"][test]
    before, now = right["before"], right["now"]
    found = {
        "before": float(before.mean()),
        "now": float(now.mean()),
        "right before alone": int((before & ~now).sum()),
        "right now alone": int((now & ~before).sum()),
        "n": int(test.sum()),
    }
    print(f"{name:24} {found}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="the first so many")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files")
    parser.add_argument("--task", type=Path)
    parser.add_argument("--views", default="tiny-clip,tiny-dinov2", help="comma-separated")
    parser.add_argument("--weights", help="of a view that has none beside it")
    parser.add_argument("--few", type=int, default=180, help="in bfloat16, and in mosaics of nine")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "decode.json"
    )
    args = parser.parse_args()
    native.keep_memory()
    torch.set_num_threads(1)
    found = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if not args.photos and not args.task:
        prep = load_spec(VIEW).preprocess
        found = {
            "machine": machine(),
            "speed": speed(SIZES[: args.sizes], args.rounds, prep),
            **{key: found[key] for key in ("embeddings", "accuracy") if key in found},
        }
    torch.set_num_threads(2)
    for name in args.views.split(","):
        if args.photos:
            files = [path.read_bytes() for path in sorted(args.photos.glob("*.jpg"))]
            found.setdefault("embeddings", {})[Path(name).stem] = distances(name, args, files)
        if args.task:
            found.setdefault("accuracy", {})[Path(name).stem] = labelled(name, args)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
