"""Train the two small foundation models of cache_specs/views/weights, on procedural drawings only
(tools/render.py; no digit is drawn).

    pip install matplotlib Hershey-Fonts        # the fonts; besides torch, open_clip_torch,
                                                # transformers, scipy
    python tools/pretrain_tiny.py clip --seed 0
    python tools/pretrain_tiny.py dinov2 --seed 0
    python tools/probe_tiny.py                  # measures both

clip     an open_clip CLIP model: images against word-level captions ("mirrored small g, bold, loop
         above, open left below"), with the CLIP contrastive loss.  The words are in the JSON under
         "tiny_vocabulary": token = place in that list, 0 pads and the last token (the highest
         number, which open_clip pools at) ends a caption.
dinov2   a transformers Dinov2Model: self-distillation between two views of a drawing with an EMA
         teacher, Sinkhorn centering and sharpening, a masked-patch term (iBOT) and the KoLeo term;
         the projection head is dropped at the end.

Each takes well under 15 CPU minutes (about 5 and 10); the number of steps is fixed, so a seed gives
the same model again on the same kind of machine.  More steps make better models: the few used here
leave room for co-training to gain.
"""

import argparse
import copy
import json
import math
import resource
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from render import augment, make_bank
from torch import nn

MEAN = STD = 0.5
WEIGHTS = Path(__file__).resolve().parent.parent / "cache_specs" / "views" / "weights"


def cpu_seconds():
    """CPU time of this process and its children so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def to_rgb(views):
    """Grey 0..1 -> normalised RGB."""
    return ((views - MEAN) / STD).expand(-1, 3, -1, -1)


def make_optimizer(modules, lr, decay):
    """AdamW without weight decay on vectors."""
    params = [p for m in modules for p in m.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def set_lr(optimizer, lr, step, steps, warmup=60):
    """Linear warm-up, then cosine to almost nothing."""
    factor = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
    for group in optimizer.param_groups:
        group["lr"] = lr * factor


def batches(count, size, steps, rng):
    """`steps` batches of indices, epoch after epoch."""
    order = np.concatenate(
        [rng.permutation(count)[: count // size * size] for _ in range(steps * size // count + 2)]
    )
    return order[: steps * size].reshape(steps, size)


# --- CLIP


class Captions:
    """Word-level tokens of the captions; phrases are left out at random."""

    def __init__(self, captions, length):
        words = sorted(
            {word for phrases in captions for phrase in phrases for word in phrase.split()}
        )
        self.vocabulary, self.length = ["<pad>"] + words + ["<end>"], length
        ids = {word: i for i, word in enumerate(self.vocabulary)}
        self.captions = [
            [[ids[word] for word in phrase.split()] for phrase in phrases] for phrases in captions
        ]

    def tokens(self, picked, rng, keep=0.85):
        out = np.zeros((len(picked), self.length), dtype=np.int64)
        for row, index in zip(out, picked):
            caption = [t for phrase in self.captions[index] if rng.random() < keep for t in phrase][
                : self.length - 1
            ]
            row[: len(caption) + 1] = caption + [len(self.vocabulary) - 1]
        return torch.from_numpy(out)


def train_clip(folder, seed, steps, bank_size, batch=128, lr=1e-3):
    import open_clip
    from safetensors.torch import save_file

    images, phrases = make_bank(bank_size, seed)
    images, captions = torch.from_numpy(images), Captions(phrases, 20)
    print(
        f"bank {tuple(images.shape)}, {len(captions.vocabulary)} words, {cpu_seconds():.0f} CPU s",
        flush=True,
    )
    side = 28
    config = {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {
                "image_size": side,
                "patch_size": 7,
                "width": 128,
                "layers": 3,
                "head_width": 32,
            },
            "text_cfg": {
                "context_length": 20,
                "vocab_size": len(captions.vocabulary),
                "width": 64,
                "heads": 2,
                "layers": 1,
            },
        },
        "preprocess_cfg": {
            "size": side,
            "mode": "RGB",
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
        "tiny_vocabulary": captions.vocabulary,
    }
    model = open_clip.CLIP(**config["model_cfg"])
    optimizer = make_optimizer([model], lr, 0.1)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng([seed, 2])
    labels = torch.arange(batch)
    for step, picked in enumerate(batches(bank_size, batch, steps, rng)):
        set_lr(optimizer, lr, step, steps)
        image, text, scale = model(
            to_rgb(augment(images[picked], side, generator)), captions.tokens(picked, rng)
        )
        logits = scale * image @ text.T
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 0 or step == steps - 1:
            right = (logits.argmax(1) == labels).float().mean()
            print(
                f"step {step} loss {loss:.3f} right {right:.3f} scale {scale:.1f} "
                f"{cpu_seconds():.0f} CPU s",
                flush=True,
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    )
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


# --- DINOv2


class Head(nn.Module):
    """Projection head: MLP with batch norm, unit length, then cosine similarity with the
    prototypes."""

    def __init__(self, width, hidden=256, bottleneck=64, prototypes=256):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
            nn.BatchNorm1d(bottleneck, affine=False),
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, x):
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


def sinkhorn(scores, temperature, rounds=3):
    """Teacher targets: sharpened scores, balanced over the prototypes."""
    q = torch.exp((scores - scores.max()) / temperature)
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


def koleo(x):
    """Keep the nearest neighbours of a batch apart."""
    x = F.normalize(x, dim=-1)
    near = (x @ x.T - 2 * torch.eye(len(x))).argmax(1)
    return -torch.log((x - x[near]).norm(dim=-1) + 1e-6).mean()


def train_dinov2(folder, seed, steps, bank_size, batch=64, lr=2e-3):
    from transformers import Dinov2Config, Dinov2Model

    images = torch.from_numpy(make_bank(bank_size, seed)[0])
    print(f"bank {tuple(images.shape)}, {cpu_seconds():.0f} CPU s", flush=True)
    side, patch, width = 24, 6, 128
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        patch_size=patch,
        image_size=side,
        initializer_range=width**-0.5,
    )
    student = nn.ModuleDict({"body": Dinov2Model(config), "head": Head(width)})
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = make_optimizer([student], lr, 0.04)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng([seed, 3])
    for step, picked in enumerate(batches(bank_size, batch, steps, rng)):
        set_lr(optimizer, lr, step, steps)
        # the second view is made in another order, for `augment` gives out the resolutions by place
        # in the batch
        order = torch.randperm(batch, generator=generator)
        second = augment(images[picked][order], side, generator, 0.8)[order.argsort()]
        views = to_rgb(torch.cat([augment(images[picked], side, generator, 0.8), second]))
        # a third of the student's images have 10 to 40 % of their patches masked
        share = torch.rand(2 * batch, 1, generator=generator) * 0.3 + 0.1
        share = share * (torch.rand(2 * batch, 1, generator=generator) < 1 / 3)
        masked = torch.rand(2 * batch, (side // patch) ** 2, generator=generator) < share
        out = student["body"](views, bool_masked_pos=masked)
        scores = student["head"](out.pooler_output) / 0.1
        patches = student["head"](out.last_hidden_state[:, 1:][masked]) / 0.1
        with torch.no_grad():
            target = teacher["body"](views)
            temperature = 0.04
            goal = sinkhorn(teacher["head"](target.pooler_output), temperature).roll(
                batch, 0
            )  # the other view's
            goal_patches = sinkhorn(
                teacher["head"](target.last_hidden_state[:, 1:][masked]), temperature
            )
        image_loss = -(goal * F.log_softmax(scores, -1)).sum(-1).mean()
        patch_loss = -(goal_patches * F.log_softmax(patches, -1)).sum(-1).mean()
        loss = (
            image_loss
            + 0.3 * patch_loss
            + 0.2 * (koleo(out.pooler_output[:batch]) + koleo(out.pooler_output[batch:])) / 2
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        momentum = 1 - 0.04 * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.05)
        with torch.no_grad():
            for a, b in zip(teacher.parameters(), student.parameters()):
                a.lerp_(b, 1 - momentum)
        if step % 100 == 0 or step == steps - 1:
            print(
                f"step {step} image {image_loss:.3f} patch {patch_loss:.3f} "
                f"{cpu_seconds():.0f} CPU s",
                flush=True,
            )
    teacher["body"].save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=["clip", "dinov2"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: 800 for clip, 1800 for dinov2")
    parser.add_argument(
        "--bank", type=int, help="number of drawings, default: 24000 for clip, 12000 for dinov2"
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # two threads need a third more CPU time for models this small
    torch.manual_seed(args.seed)
    if args.model == "clip":
        train_clip(args.out / "tiny-clip", args.seed, args.steps or 800, args.bank or 24000)
    else:
        train_dinov2(args.out / "tiny-dinov2", args.seed, args.steps or 1800, args.bank or 12000)
    print(f"{cpu_seconds():.0f} CPU seconds used")


if __name__ == "__main__":
    main()
