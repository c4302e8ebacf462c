"""Trials of what could be faster on a GPU, as parts of tools/check_gpu.py: nothing here is used by
the product before a GPU has shown that it pays.

    graphs      the small co-training step as one CUDA graph, beside the step as it is
    schedule    the paper's ImageNet 10 % schedule, from timed steps
    towers      CLIP L/14 as it is, with QuickGELU in one kernel, with torch's fused attention, with
                both, beside DINOv2 L/14
    live        a step of fine-tuning CLIP L/14 and DINOv2 L/14, with and without checkpointing
    jpegs       nvJPEG beside Pillow

On a CPU each does the same in a tiny size, so that a slip is found without a GPU: numbers are
compared, and where a figure would stand it says "unrun".
"""

import copy
import functools
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "bench"))

import bench_train
from bench_decode import photograph
from bench_models import random_backbone
from bench_train import PAPER, QUICK, SMALL, Probes, clocked, precision

from cache_specs.spec import load_spec
from extract.models.backbones import Backbone, load_backbone
from extract.models.weights import find_weights
from extract.pixels import picture
from train.algorithm.cotrain import Batch, mct_step
from train.algorithm.optimise import State, fused_adam, norm, per_experiment
from train.algorithm.peers import LocalPeers
from train.config import TrainConfig
from train.finetune.config import FinetuneConfig
from train.finetune.live import Live

Told = Callable[[str, object, bool], None]  # what, value, is it as it should be
ROUNDS = 5  # a figure is their median; all ways take turns in each


def figure(device: str, value: float, digits: int = 1) -> object:
    """As measured; a CPU only shows that the trial runs."""
    return round(value, digits) if device == "cuda" else "unrun"


def in_turns(
    ways: dict[str, Callable[[], object]], device: str, rounds: int = ROUNDS
) -> dict[str, float]:
    """Median seconds of each way, after a round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            took = clocked(torch.device(device), way)
            if number:
                seconds[name].append(took)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


# --- the step as one CUDA graph


class Captured:
    """`mct_step` on memory that stays where it is: captured once as a CUDA graph, whose kernels the
    GPU then starts by itself. On a CPU the same function is called.

    A graph holds numbers as they were, so Adam's count of steps lies in a tensor: the update is
    that of `optimise`, written with this count.
    """

    def __init__(self, which: Probes, batches: Sequence[Batch], draws_VEU: Tensor) -> None:
        self.device, self.peers = which.feed.device, which.peers
        self.adam = replace(which.method.adam, update=self.update)
        self.method = replace(which.method, adam=self.adam)
        self.states = [of_its_own(state) for state in which.states]
        self.batches = [copy.deepcopy(batch) for batch in batches]
        self.draws_VEU = draws_VEU.clone()
        self.count = torch.zeros((), device=self.device)
        self.replay: Callable[[], None] = self.step
        if self.device.type == "cuda":
            self.capture(which.states)

    def capture(self, first: Sequence[State]) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what libraries set up at their first call is no step's
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        for state, begun in zip(self.states, first, strict=True):
            write(state, begun)
        self.count.zero_()
        self.replay = graph.replay

    def __call__(self, batches: Sequence[Batch], draws_VEU: Tensor) -> None:
        self.draws_VEU.copy_(draws_VEU)
        for mine, given in zip(self.batches, batches, strict=True):
            for to, value in zip(tensors_of(mine), tensors_of(given), strict=True):
                to.copy_(value)
        self.replay()

    def step(self) -> None:
        with precision(self.device):
            done, _ = mct_step(self.states, self.batches, self.draws_VEU, self.peers, self.method)
        for state, new in zip(self.states, done, strict=True):
            write(state, new)
        self.count += 2  # a step updates twice

    def update(self, view: State, g_EP: Tensor) -> State:
        scale_E = (self.adam.clip / (norm(g_EP) + 1e-6)).clamp_max(1.0)
        clipped_EP = g_EP * per_experiment(scale_E, g_EP)
        new = of_its_own(view)
        rows = zip(self.adam.lr, new.flat_EP, clipped_EP, new.mean_EP, new.square_EP, strict=True)
        for lr, t, g, m, s in rows:
            fused_adam([t], [g], [m], [s], [], [self.count + (view.steps + 1.0)], lr=lr)
        return replace(new, steps=view.steps + 1)


def of_its_own(state: State) -> State:
    parts = state.flat_EP, state.mean_EP, state.square_EP
    flat_EP, mean_EP, square_EP = [part.clone() for part in parts]
    return replace(state, flat_EP=flat_EP, mean_EP=mean_EP, square_EP=square_EP)


@torch.no_grad()
def write(state: State, new: State) -> None:
    state.flat_EP.copy_(new.flat_EP)
    state.mean_EP.copy_(new.mean_EP)
    state.square_EP.copy_(new.square_EP)


def tensors_of(batch: Batch) -> list[Tensor]:
    return [batch.emb_EUD, batch.emb_ELD, batch.y_EL, *batch.keep_U, *batch.keep_L]


def graphs(lines: Told, work: Path, device: str) -> None:
    """The small step of E experiments, as it is and captured: the same numbers, and how fast."""
    count = 20 if device == "cuda" else 3
    own_size = {} if device == "cuda" else QUICK["middle"]["config"]
    took = {}
    for experiments in (1, 2, 8):
        config = TrainConfig(**own_size)
        task = bench_train.made_task(SMALL, 2000, experiments, [0, 1], torch.device(device))
        which = bench_train.probes(config, task, LocalPeers(2))
        batches = which.batches(False, count)
        captured = Captured(which, *batches[0])
        which.run(False, batches)
        for views, draws_VEU in batches:
            captured(views, draws_VEU)
        far = max(
            distance(one.flat_EP, other.flat_EP)
            for one, other in zip(captured.states, which.states, strict=True)
        )
        what = f"co-training step, E = {experiments}"
        lines(f"{what}: greatest difference of a captured one's weights", far, far < 1e-5)
        ways = {
            "as it is": functools.partial(which.run, False, batches),
            "captured": functools.partial(run_captured, captured, batches),
        }
        rounds = ROUNDS if device == "cuda" else 1
        for name, seconds in in_turns(ways, device, rounds).items():
            took[experiments, name] = seconds / count * 1e3
            lines(f"{what}, {name}, ms", figure(device, took[experiments, name], 2), True)
        which.feed.close()
    for name in ("as it is", "captured"):
        times = took[8, name] / took[1, name]
        what = f"co-training step, E = 8, {name}, times that of one (asked <= 2)"
        lines(what, figure(device, times, 2), device != "cuda" or name == "as it is" or times <= 2)


def run_captured(captured: Captured, batches: Sequence[tuple[Sequence[Batch], Tensor]]) -> None:
    for views, draws_VEU in batches:
        captured(views, draws_VEU)


def distance(one: Tensor, other: Tensor) -> float:
    """The greatest difference, of the greatest value."""
    return float(f"{float((one - other).abs().max() / other.abs().max()):.2g}")


# --- the paper's schedule


def schedule(lines: Told, work: Path, device: str) -> None:
    """Feed and steps of the paper's ImageNet 10 % schedule, from some steps of either phase."""
    size, some = PAPER if device == "cuda" else {**PAPER, **QUICK["paper"]}, 2
    if device == "cuda":
        some = 200
    config, on = TrainConfig(**size["config"]), torch.device(device)
    stored = 50_000 if device == "cuda" else 500
    task = bench_train.made_task(size, stored, 1, [0, 1], on)
    which, whole = bench_train.probes(config, task, LocalPeers(2)), 0.0
    for name, alone, steps in (
        ("warm-up", True, config.warmup),
        ("co-training", False, config.cotrain),
    ):
        timed = functools.partial(take, which, alone, some)
        seconds = in_turns({name: timed}, device, 3 if device == "cuda" else 1)[name] / some
        lines(
            f"the paper's {name} with its rows, ms a step", figure(device, seconds * 1e3, 2), True
        )
        whole += seconds * steps
    which.feed.close()
    what = "the paper's ImageNet 10 % schedule, seconds, extrapolated (asked < 90)"
    lines(what, figure(device, whole), device != "cuda" or whole < 90)


def take(which: Probes, alone: bool, count: int) -> None:
    for _ in range(count):
        which.run(alone, which.batches(alone, 1))


# --- CLIP L/14, and why it is slower than DINOv2 L/14


class Attention(nn.Module):
    """The self-attention of an nn.MultiheadAttention, by torch's fused kernel."""

    def __init__(self, given: nn.MultiheadAttention) -> None:
        super().__init__()
        assert given.batch_first and given.in_proj_weight is not None
        self.given = given

    def forward(self, x_BND: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        given = self.given
        qkv = linear(x_BND, given.in_proj_weight, given.in_proj_bias)
        parts = qkv.unflatten(-1, (3, given.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHNd = scaled_dot_product_attention(*parts.unbind(0))
        return given.out_proj(mixed_BHNd.transpose(1, 2).flatten(2)), None


class Activation(nn.Module):
    """QuickGELU by this function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def swapped(backbone: Backbone, kind: str, make: Callable[[nn.Module], nn.Module]) -> Backbone:
    """A copy in which every module of this class is another. Raises LookupError if none is."""
    other, found = copy.deepcopy(backbone), 0
    for parent in list(other.model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == kind:
                setattr(parent, name, make(child))
                found += 1
    if not found:
        raise LookupError(f"no {kind} in the model")
    return other.eval()


def a_backbone(name: str, device: str) -> Backbone:
    """Of random weights, or the bundled small one, in float32."""
    spec = load_spec(name if device == "cuda" else f"tiny-{name}")
    if device != "cuda":
        made = load_backbone(spec, find_weights(spec, None)[0], device)
        made.precision = "float32"
        quick = name == "clip"  # the small one has GELU
        return swapped(made, "GELU", lambda _: QuickGELU()) if quick else made
    torch.manual_seed(0)
    with torch.device(device):
        return random_backbone(spec).to(device)


def towers(lines: Told, work: Path, device: str) -> None:
    """The same weights by other kernels: how fast, and how far from the model as it is."""
    cuda = device == "cuda"
    fuse = torch.compile if cuda else lambda function: function
    clip = a_backbone("clip", device)
    gelu = swapped(clip, "QuickGELU", lambda _: Activation(fuse(quick_gelu)))
    models = {
        "clip L/14": clip,
        "clip L/14, QuickGELU in one kernel": gelu,
        "clip L/14, fused attention": swapped(clip, "MultiheadAttention", Attention),
        "clip L/14, both": swapped(gelu, "MultiheadAttention", Attention),
        "dinov2 L/14": a_backbone("dinov2", device),
    }
    batch, ways, made = 256 if cuda else 2, {}, {}
    with torch.inference_mode():
        for name, model in models.items():
            side = load_spec(model.origin.stem).preprocess.crop
            draws = torch.Generator().manual_seed(0)
            pixels = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=draws)
            ways[name] = functools.partial(model, pixels.to(device))
            made[name] = ways[name]()
        seconds = in_turns(ways, device, ROUNDS if cuda else 1)
    most = 0.05 if cuda else 1e-5  # in bfloat16, and in float32
    for name, took in seconds.items():
        lines(f"{name}, images/s", figure(device, batch / took, 0), True)
        if name.startswith("clip L/14,"):
            far = distance(made[name], made["clip L/14"])
            lines(f"{name}: greatest difference to it as it is", far, far < most)


# --- live backbones


def live(lines: Told, work: Path, device: str) -> None:
    """A step of fine-tuning as it is, and forgetting what is inside of the blocks: how fast, how
    much memory, and that the gradient is the same. In the precision of the view."""
    cuda = device == "cuda"
    batch = 32 if cuda else 4
    for name in ("clip", "dinov2"):
        for mode in ("lora", "full"):
            steps, gradients = {}, {}
            for forgets in (False, True):
                how = "forgetful" if forgets else "as it is"
                step = Step(name, mode, forgets, batch, device)
                steps[how] = step
                gradients[how] = step.gradient()
            what = f"{name} L/14, {mode}"
            far = distance(gradients["forgetful"], gradients["as it is"])
            lines(f"{what}: greatest difference of a forgetful gradient", far, far < 0.05)
            seconds = in_turns({**steps}, device, ROUNDS if cuda else 1)
            for how, step in steps.items():
                speed = figure(device, batch / seconds[how], 0)
                lines(f"{what}, {how}, images/s of a step", speed, True)
                lines(f"{what}, {how}, peak GB", figure(device, step.peak(), 2), True)


class Step:
    """A step of AdamW on one batch of noise."""

    def __init__(self, name: str, mode: str, forgets: bool, batch: int, device: str) -> None:
        backbone = a_backbone(name, device)
        width, self.device = backbone.width, device
        torch.manual_seed(0)
        head = nn.Linear(width, 10)
        self.live = Live(backbone, head, (np.zeros(width), np.ones(width))).to(device)
        config = FinetuneConfig(mode=mode, checkpointing=forgets).settled(40, 10)
        self.live.thaw(config)
        self.live.to(device)
        self.adam = torch.optim.AdamW(self.live.groups(config))
        side = load_spec(backbone.origin.stem).preprocess.crop
        draws = torch.Generator().manual_seed(0)
        shape = batch, 3, side, side
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=draws)
        self.pixels, self.y = pixels.to(device), torch.arange(batch, device=device) % 10

    def __call__(self) -> None:
        self.adam.zero_grad()
        cross_entropy(self.live(self.pixels), self.y).backward()
        self.adam.step()

    def gradient(self) -> Tensor:
        cross_entropy(self.live(self.pixels), self.y).backward()
        parts = [p.grad.flatten() for p in self.live.named().values() if p.grad is not None]
        return torch.cat(parts)

    def peak(self) -> float:
        """GB of one step; of a GPU alone."""
        if self.device != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        self()
        return torch.cuda.max_memory_allocated() / 1e9


# --- JPEG


def jpegs(lines: Told, work: Path, device: str) -> None:
    """Photographs by torchvision's decoder, nvJPEG on a GPU, beside Pillow on one core. torchvision
    means to drop it: where it is gone, a line says so."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        lines("torchvision's JPEG decoder", "gone", True)
        return
    cuda = device == "cuda"
    decode = functools.partial(decode_jpeg, mode=ImageReadMode.RGB, device=device)
    for width, height, count in ((500, 375, 256), (4032, 3024, 16)) if cuda else ((500, 375, 2),):
        data = photograph(width, height)
        files = [torch.frombuffer(bytearray(data), dtype=torch.uint8)] * count
        ways = {
            "torchvision": functools.partial(decode, files),
            "Pillow": functools.partial(one_by_one, data, count),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it will be dropped
            found = decode(files)[-1].cpu().numpy().astype(np.int16)
            seconds = in_turns(ways, device, 3 if cuda else 1)
        what = f"{count} JPEG files of {width} x {height}"
        for name, took in seconds.items():
            lines(f"{what} by {name}, images/s", figure(device, count / took, 0), True)
        far = np.abs(found - pixels_of(data).transpose(2, 0, 1))
        mean = round(float(far.mean()), 4)
        lines(f"{what}, share of levels as Pillow's", round(float((far == 0).mean()), 4), True)
        lines(f"{what}, mean difference in levels", mean, mean < 2)
        lines(f"{what}, greatest difference in levels", int(far.max()), True)


def one_by_one(data: bytes, count: int) -> None:
    for _ in range(count):
        pixels_of(data)


def pixels_of(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8, as extraction has them."""
    return np.asarray(picture(data).image)


TRIALS = graphs, schedule, towers, live, jpegs
