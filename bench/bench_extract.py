"""The backbones alone, at their real size with random weights, and `make extract` of JPEG files
beside its two limits: make bench-extract

    python bench/bench_extract.py [--views clip,mae] [--device cpu]
    python bench/bench_extract.py --views dinov2-l14 --images 16384 --workers 8,16

No checkpoint is needed: how fast a model is does not depend on its weights. Pixels are on the
device; a figure is the median over the rounds of images a second, with [lowest to highest]; memory
is the device's peak, without the library's own. On a GPU batches of 256 (of 32 at 960 pixels), the
spec's compute dtype; on the CPU one image, which takes minutes for all views. Prints a table and
writes bench/results/extract.json.

With --images, of views that timm builds: that many photographs of 500 x 375 pixels (crops of
scikit-learn's two, JPEG at quality 90) are embedded by the command, from the first image to the
sealed view, in turns with its parts: decoding alone (the same workers, no model) and the model
alone (the table above).
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_cache import machine, spread

from cache_specs.spec import ViewSpec, load_spec, view_names
from extract.models.backbones import Backbone
from extract.models.timm_backend import build_timm, timm_features


def random_backbone(spec: ViewSpec) -> Backbone:
    """The view's model as extraction has it, but for its weights: any that keep the numbers of a
    pass finite."""
    if spec.backend == "timm":
        model = build_timm(spec)
        return Backbone(model, timm_features(model, spec), spec)
    if spec.backend == "open_clip":
        import open_clip

        model = open_clip.create_model(
            spec.architecture, load_weights=False, pretrained_image=False, pretrained_text=False
        ).visual
        model.proj = None
        return Backbone(model, model, spec)
    import transformers

    model = getattr(transformers, spec.architecture)._from_config(config_of(spec))
    features = {
        "pooled": lambda out: out.pooler_output,
        "cls": lambda out: out.last_hidden_state[:, 0],
    }[spec.output]
    return Backbone(
        model, lambda images: features(model(pixel_values=images, **spec.arguments)), spec
    )


def config_of(spec: ViewSpec) -> Any:
    """What the hub's config.json says of the bundled transformers views."""
    import transformers

    return {
        "Dinov2WithRegistersModel": lambda: transformers.Dinov2WithRegistersConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=518,
            patch_size=14,
        ),
        "Blip2VisionModel": lambda: transformers.Blip2VisionConfig(initializer_range=0.02),
        "AlignVisionModel": transformers.AlignVisionConfig,
        "Owlv2VisionModel": lambda: transformers.Owlv2VisionConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            image_size=960,
            patch_size=16,
        ),
    }[spec.architecture]()


def measure(spec: ViewSpec, device: torch.device, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    with device:  # random weights are drawn there
        backbone = random_backbone(spec).to(device)
    side = spec.preprocess.crop
    cuda = device.type == "cuda"
    batch = (256 if side < 500 else 32) if cuda else 1
    pixels = torch.randint(
        256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).to(device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    with torch.inference_mode():
        for number in range(rounds + 1):  # the first warms up
            if cuda:
                torch.cuda.synchronize(device)
            begun = time.perf_counter()
            emb_BD = backbone(pixels)
            if cuda:
                torch.cuda.synchronize(device)
            if number:
                seconds.append(time.perf_counter() - begun)
    return {
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "width": emb_BD.shape[1],
        "finite": bool(torch.isfinite(emb_BD).all()),
        "batch": batch,
        "images_per_s": spread([batch / s for s in seconds]),
        "dtype": spec.compute_dtype,
        "GB": torch.cuda.max_memory_allocated(device) / 1e9 if cuda else None,
        "TFLOPS": 2 * spec.about.gmacs * batch / min(seconds) / 1e3 if spec.about else None,
    }


# --- the whole command


def photographs(folder: Path, count: int) -> Path:
    """`count` different JPEG files of 500 x 375 pixels."""
    parts = [range(start, min(start + 256, count)) for start in range(0, count, 256)]
    folder.mkdir()
    with concurrent.futures.ProcessPoolExecutor() as pool:
        list(pool.map(write_photographs, [folder] * len(parts), parts))
    return folder


def write_photographs(folder: Path, numbers: range) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image) for image in load_sample_images().images]
    for number in numbers:
        draws = np.random.default_rng(number)
        photo = photos[number % 2]
        left, top = draws.integers(photo.width - 500), draws.integers(photo.height - 375)
        photo.crop((left, top, left + 500, top + 375)).rotate(draws.uniform(-5, 5)).save(
            folder / f"{number:07}.jpg", quality=90
        )


def batch_of(device: str) -> int:
    return 256 if device == "cuda" else 4


def decoding(spec: ViewSpec, folder: Path, workers: int, device: str) -> float:
    """Seconds in which the workers hand out all batches, and no model takes any."""
    from extract.data.datasets import build_items, open_dataset
    from extract.embed import batch_rows
    from extract.images import Batches
    from extract.stream import arriving, load
    from extract.workers import workers_of

    dataset = open_dataset(str(folder), Path())
    items = build_items(dataset)
    batch = batch_of(device)
    batches = Batches(
        dataset.read,
        items.sha256,
        spec.preprocess,
        [list(rows) for rows in batch_rows(0, len(items), batch)],
        batch,
    )
    begun = time.perf_counter()
    for _ in arriving(load(batches, workers_of(workers, len(items), device), device)):
        pass
    return time.perf_counter() - begun


def whole(
    spec: ViewSpec, images: int, workers: list[int], rounds: int, device: str
) -> dict[str, Any]:
    """images/s of the command and of its decoding, by the number of workers."""
    from safetensors.torch import save_file

    found: dict[str, dict[str, list[float]]] = {
        str(count): {"command": [], "decoding": []} for count in workers
    }
    with tempfile.TemporaryDirectory(prefix="bench-extract-") as name:
        folder, weights = (
            photographs(Path(name) / "photos", images),
            Path(name) / "model.safetensors",
        )
        torch.manual_seed(0)
        save_file(build_timm(spec).state_dict(), weights)
        for number in range(rounds):
            for count in workers:
                found[str(count)]["decoding"].append(images / decoding(spec, folder, count, device))
                command = [
                    "-m",
                    "coview.cli",
                    "extract",
                    "--view",
                    spec.name,
                    "--data",
                    folder,
                    "--weights",
                    weights,
                    "--cache",
                    Path(name) / f"cache-{number}-{count}",
                    "--workers",
                    count,
                    "--device",
                    device,
                    "--batch",
                    batch_of(device),
                    "--json",
                ]
                said = subprocess.run(
                    [sys.executable, *map(str, command)],
                    cwd=Path(__file__).parent.parent,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found[str(count)]["command"].append(images / json.loads(said.stdout)["seconds"])
    return {
        count: {part: spread(rates) for part, rates in parts.items()}
        for count, parts in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", default="all", help="names, comma-separated")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu")
    )
    parser.add_argument("--rounds", type=int, default=0, help="default: 9 on a GPU, 1 on the CPU")
    parser.add_argument(
        "--images", type=int, default=0, help="also the whole command, on that many photographs"
    )
    parser.add_argument(
        "--workers", default="-1", help="of the whole command, comma-separated; -1: as it chooses"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "extract.json"
    )
    args = parser.parse_args()
    device, found, wrong = torch.device(args.device), {}, []
    print(
        f"{'view':18}{'params':>10}{'width':>7}{'dtype':>10}{'batch':>7}{'images/s':>28}{'TFLOP/s':>9}{'GB':>7}",
        flush=True,
    )
    for name in view_names() if args.views == "all" else args.views.split(","):
        spec = load_spec(name)
        if spec.weights.path is not None:
            continue  # the bundled ones are too small to say anything
        line = found[name] = measure(
            spec, device, args.rounds or (9 if device.type == "cuda" else 1)
        )
        rate = line["images_per_s"]
        wrong += [name] if line["width"] != spec.width or not line["finite"] else []
        memory = f"{line['GB']:7.2f}" if line["GB"] is not None else f"{'':7}"
        print(
            f"{name:18}{line['parameters'] / 1e6:8.1f} M{line['width']:7}"
            f"{line['dtype']:>10}{line['batch']:7}"
            f"{rate['median']:10.2f} [{rate['low']:.2f} to {rate['high']:.2f}]"
            f"{line['TFLOPS']:9.2f}{memory}" + ("   WRONG" if name in wrong else ""),
            flush=True,
        )
        gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
        record = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "gpu": gpu,
            "views": found,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    for name in found if args.images else ():
        parts = whole(
            load_spec(name),
            args.images,
            [int(count) for count in args.workers.split(",")],
            args.rounds or 3,
            args.device,
        )
        found[name]["whole"] = {"images": args.images, "workers": parts}
        for count, rates in parts.items():
            limit = min(rates["decoding"]["median"], found[name]["images_per_s"]["median"])
            print(
                f"{name}, {args.images:,} JPEG files, {count} workers: "
                + ", ".join(
                    f"{part} {rate['median']:.1f} [{rate['low']:.1f} to {rate['high']:.1f}]"
                    for part, rate in rates.items()
                )
                + f" images/s, {100 * rates['command']['median'] / limit:.0f} % of the slower of "
                "decoding and model"
            )
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
