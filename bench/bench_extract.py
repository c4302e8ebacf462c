"""`make extract`, from the first image to the sealed view, beside its two limits and two rivals, in
one interleaved run: make bench-extract   or

    python bench/bench_extract.py [--views tiny-clip,vit.toml=64] [--images 512]
                                  [--size 500x375]

    coview        the command, in the seconds that it reports; its process's start is not in them
    model         the model alone, on pixels that are there (the command's batch)
    decoding      the command's decoding alone: read, hash, decode, scale
    plain loop    what a user would write: torchvision's ImageFolder and transforms, a DataLoader
                  with a worker a core and batches of 64, the same model in float32
    thingsvision  a published extractor, in an environment of its own (--peer PYTHON; of timm's
                  models, with random weights)

On a CPU the model and the decoding share the cores: the bound is then both, one after the other.
The command's seconds hold its canary (32 images in float32) and its choice of threads, too.

A view is NAME or NAME=IMAGES, of which the rivals get a quarter. Each turn is a process of its own,
so that nobody gains from another's memory. Of a view whose weights are not in --weights FOLDER
(FOLDER/VIEW.safetensors) they are random: how fast a model is does not depend on them. Photographs
are crops of scikit-learn's two, JPEG at quality 90. Prints a table of images/s, median [lowest to
highest], and writes bench/results/extract.json.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
LIMITS, RIVALS = ("model", "decoding"), ("plain loop", "thingsvision")
SHARE = 4  # of the images, that the rivals get: one of so many
PLAIN_BATCH = 64


def photographs(folder: Path, count: int, width: int, height: int) -> Path:
    """`count` different JPEG files of two classes, in folder/a and folder/b."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        draws = np.random.default_rng(number)
        photo = photos[number % 2]
        zoom = max(1.0, 1.1 * width / photo.width, 1.1 * height / photo.height)
        photo = photo.resize((int(photo.width * zoom), int(photo.height * zoom)))
        left = int(draws.integers(photo.width - width))
        top = int(draws.integers(photo.height - height))
        path = folder / "ab"[number % 2] / f"{number:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        turned = photo.rotate(draws.uniform(-5, 5))
        turned.crop((left, top, left + width, top + height)).save(path, quality=90)
    return folder


def weights_for(view: str, given: Path | None, folder: Path) -> str | None:
    """WEIGHTS= of a view: what lies in `given`, random ones in `folder`, or None for its own."""
    from cache_specs.spec import load_spec

    spec = load_spec(view)
    if given and (given / f"{spec.name}.safetensors").exists():
        return str(given / f"{spec.name}.safetensors")
    if spec.weights.path is not None:
        return None
    place = folder / spec.name
    if not place.exists():
        place.mkdir()
        save_random(spec, place)
    return str(place)


def save_random(spec: Any, folder: Path) -> None:
    """Weights of a view as its library would save them."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    if spec.backend == "transformers":
        import transformers
        from bench_models import config_of

        getattr(transformers, spec.architecture)._from_config(config_of(spec)).save_pretrained(
            folder
        )
        return
    if spec.backend == "open_clip":
        import open_clip

        model = open_clip.create_model(
            spec.architecture, load_weights=False, pretrained_image=False, pretrained_text=False
        )
    else:
        from extract.models.timm_backend import build_timm

        model = build_timm(spec)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / spec.weights.files[0])


# --- one turn, in a process of its own


def model_alone(view: str, weights: str | None, images: int, device: str) -> float:
    """Seconds of the model alone."""
    import torch

    from cache_specs.spec import load_spec
    from extract.models.backbones import load_backbone
    from extract.models.weights import find_weights
    from extract.prepare import default_batch

    spec = load_spec(view)
    backbone = load_backbone(spec, find_weights(spec, weights)[0], device)
    batch, side = default_batch(spec, device), spec.preprocess.crop
    pixels = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8).to(device)
    with torch.inference_mode():
        backbone(pixels).half().cpu()
        begun = time.perf_counter()
        for _ in range(0, images, batch):
            backbone(pixels).half().cpu()
        seconds = time.perf_counter() - begun
    return seconds * images / (batch * len(range(0, images, batch)))


def decoding_alone(view: str, folder: Path, device: str) -> float:
    """Seconds in which the command's decoding hands out all batches."""
    from cache_specs.spec import load_spec
    from extract.data.datasets import build_items, open_dataset
    from extract.embed import batch_rows
    from extract.images import Batches
    from extract.prepare import default_batch
    from extract.stream import arriving, load, workers_for

    dataset, spec = open_dataset(str(folder), Path()), load_spec(view)
    items, batch = build_items(dataset), default_batch(spec, device)
    rows = [list(part) for part in batch_rows(0, len(items), batch)]
    images = Batches(dataset.read, items.sha256, spec.preprocess, rows, batch)
    workers = workers_for(images, -1, device)
    begun = time.perf_counter()
    for _ in arriving(load(images, workers, device)):
        pass
    return time.perf_counter() - begun


def plain_loop(view: str, weights: str | None, folder: Path, device: str) -> float:
    """Seconds of the loop that a user would write."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from cache_specs.spec import load_spec
    from extract.models.backbones import load_backbone
    from extract.models.weights import find_weights

    spec = load_spec(view)
    backbone = load_backbone(spec, find_weights(spec, weights)[0], device, folded=False)
    prep, size = spec.preprocess, spec.preprocess.resize
    steps = transforms.Compose(
        [
            transforms.Resize(
                size if prep.resize_rule == "shortest" else (size, size),
                transforms.InterpolationMode(prep.interpolation),
            ),
            transforms.CenterCrop(prep.crop),
            transforms.ToTensor(),
            transforms.Normalize(prep.mean, prep.std),
        ]
    )
    images = datasets.ImageFolder(str(folder), steps)
    backbone.model.to(memory_format=torch.contiguous_format)
    found, features = [], backbone.features
    begun = time.perf_counter()
    with torch.inference_mode():
        for pixels, _ in DataLoader(images, PLAIN_BATCH, num_workers=os.cpu_count() or 1):
            found.append(features(pixels.to(device)).float().cpu().numpy())
    np.save(folder.parent / "plain.npy", np.concatenate(found))
    return time.perf_counter() - begun


def command(view: str, weights: str | None, folder: Path, device: str) -> dict[str, float]:
    """What `make extract` reports."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        words = ["--view", view, "--data", str(folder), "--cache", cache, "--device", device]
        words += ["--weights", weights] if weights else []
        done = subprocess.run(
            [sys.executable, "-m", "coview.cli", "extract", *words, "--json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return {"seconds": json.loads(done.stdout)["seconds"], "GB": peak}


def turn(args: argparse.Namespace) -> dict[str, float]:
    """One turn of `args.only`."""
    view, folder = args.views, Path(args.data)
    if args.only == "coview":
        return command(view, args.own_weights, folder, args.device)
    if args.only == "model":
        seconds = model_alone(view, args.own_weights, args.images, args.device)
    elif args.only == "decoding":
        seconds = decoding_alone(view, folder, args.device)
    else:
        seconds = plain_loop(view, args.own_weights, folder, args.device)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": seconds, "GB": used.ru_maxrss / 1e6}


# --- all turns


def rates(args: argparse.Namespace, view: str, place: Path, images: int) -> dict[str, Any]:
    """images/s of each, interleaved; the photographs are made in `place`."""
    from bench_cache import spread

    width, height = map(int, args.size.split("x"))
    folder = photographs(place / f"photos{images}", images, width, height)

    given = Path(args.weights) if args.weights else None
    weights = weights_for(view, given, place)
    few = -(-images // SHARE)
    some = photographs(place / f"photos{few}", few, width, height)
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for name in ("coview", *LIMITS, RIVALS[0]):
            data = some if name in RIVALS else folder
            words = ["--only", name, "--views", view, "--data", data, "--images", images]
            words += ["--device", args.device]
            words += ["--own-weights", weights] if weights else []
            found.setdefault(name, []).append(said([sys.executable, __file__, *words]))
        if args.peer and architecture(view):
            words = [ROOT / "bench" / "thingsvision_loop.py", architecture(view), some]
            found.setdefault("thingsvision", []).append(said([args.peer, *words]))
    told: dict[str, Any] = {}
    for name, turns in found.items():
        count = few if name in RIVALS else images
        told[name] = spread([count / one["seconds"] for one in turns])
        told[name]["GB"] = max(one["GB"] for one in turns)
    return told


def architecture(view: str) -> str:
    """The name of a model that timm has, '' of any other."""
    from cache_specs.spec import load_spec

    spec = load_spec(view)
    return spec.architecture if spec.backend == "timm" and spec.weights.path is None else ""


def said(words: list[Any]) -> dict[str, float]:
    """What a process printed last, in JSON."""
    done = subprocess.run([*map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", default="tiny-clip,tiny-dinov2")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--weights", help="folder with VIEW.safetensors")
    parser.add_argument("--peer", help="the Python of an environment with thingsvision")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "extract.json")
    for name in ("--only", "--data", "--own-weights"):  # of one turn
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(turn(args)))
        return
    from bench_cache import machine

    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "size": args.size,
        "views": {},
    }
    with tempfile.TemporaryDirectory(prefix="extract-") as name:
        for one in args.views.split(","):
            view, _, images = one.partition("=")
            count = int(images or args.images)
            told = rates(args, view, Path(name), count)
            record["views"][Path(view).stem] = {"images": count, **told}
            print(f"{view}, {count:,} JPEG files of {args.size}:\n{table(told)}", flush=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")


def table(told: dict[str, Any]) -> str:
    """A line each, with what coview is of it."""
    lines, ours = [], told["coview"]["median"]
    for name, rate in told.items():
        part = f"{rate['median']:9.1f} [{rate['low']:.1f} to {rate['high']:.1f}] images/s"
        lines.append(
            f"  {name:13}{part}, {rate['GB']:.2f} GB; coview / it {ours / rate['median']:.2f}"
        )
    limits = [told[name]["median"] for name in LIMITS]
    both = 1 / sum(1 / limit for limit in limits)
    lines.append(f"  both limits, one after the other: {both:.1f}; coview / it {ours / both:.2f}")
    return "\n".join([*lines, f"  coview / the smaller limit: {ours / min(limits):.2f}"])


if __name__ == "__main__":
    main()
