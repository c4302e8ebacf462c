"""The backbones alone, at their real size with random weights: make bench-models

    python bench/bench_models.py [--views clip,mae] [--device cpu]

No checkpoint is needed: how fast a model is does not depend on its weights. Pixels are on the
device; a figure is the median over the rounds of images a second, with [lowest to highest]; memory
is the device's peak, without the library's own. On a GPU batches of 256 (of 32 at 960 pixels), the
spec's compute dtype; on the CPU one image, which takes minutes for all views. Prints a table and
writes bench/results/models.json.
"""

import argparse
import datetime
import json
import os
import sys
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

VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
VIT_B = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
OF_THE_HUB = {  # what its config.json says of the bundled transformers views
    "Dinov2WithRegistersModel": (
        "Dinov2WithRegistersConfig",
        {**VIT_L, "image_size": 518, "patch_size": 14},
    ),
    "Blip2VisionModel": ("Blip2VisionConfig", {"initializer_range": 0.02}),
    "AlignVisionModel": ("AlignVisionConfig", {}),
    "Owlv2VisionModel": (
        "Owlv2VisionConfig",
        {**VIT_B, "intermediate_size": 3072, "image_size": 960, "patch_size": 16},
    ),
}


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
    import transformers

    name, settings = OF_THE_HUB[spec.architecture]
    return getattr(transformers, name)(**settings)


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
        "--out", type=Path, default=Path(__file__).parent / "results" / "models.json"
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
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
