"""Measure the tiny foundation models of cache_specs/views/weights on scikit-learn's digits (8x8
scans they were not trained on).

    python tools/probe_tiny.py [--weights cache_specs/views/weights] [--untrained-seeds 2]

Prints the test accuracy of a logistic regression on the frozen features: with all labels of the
training part (60/20/20 split, C chosen on the validation part), and with 3 labels per class (10
draws, C = 1) for each view, for their late fusion (sum of log-probabilities), and how far the
errors of the two views go together.  Controls: the same models untrained, and raw pixels.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MEAN = STD = 0.5
DRAWS, SHOTS = 10, 3


def pixels(images, side):
    """Grey 8x8 images (0..16) -> normalised RGB batch of the given side."""
    grey = np.round(images * 255 / 16).astype(np.uint8)
    big = [
        np.asarray(Image.fromarray(g).convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        for g in grey
    ]
    return (torch.from_numpy(np.stack(big)).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def load_clip(folder, trained=True):
    """The visual tower of the CLIP model, without its projection."""
    import open_clip
    from safetensors.torch import load_file

    model = open_clip.CLIP(
        **json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    )
    if trained:
        model.load_state_dict(load_file(folder / "open_clip_model.safetensors"), strict=True)
    model.visual.proj = None
    return model.visual.eval(), model.visual.image_size[0]


def load_dinov2(folder, trained=True):
    """The Dinov2 model."""
    from transformers import Dinov2Config, Dinov2Model

    model = (
        Dinov2Model.from_pretrained(folder)
        if trained
        else Dinov2Model(Dinov2Config.from_pretrained(folder))
    )
    return model.eval(), model.config.image_size


@torch.no_grad()
def features(loaded, images):
    """Embeddings of the digits: {name of the pooling: array}."""
    model, side = loaded
    out = model(pixels(images, side))
    if torch.is_tensor(out):
        return {"pooled": out.numpy()}
    return {
        "cls": out.pooler_output.numpy(),
        "patch mean": out.last_hidden_state[:, 1:].mean(1).numpy(),
    }


def fit(x, y, c):
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(x, y)


def all_labels(x, y, split):
    train, val, test = split
    scores = {c: fit(x[train], y[train], c).score(x[val], y[val]) for c in (0.1, 1.0, 10.0)}
    best = max(scores, key=scores.get)
    return fit(x[train], y[train], best).score(x[test], y[test]), best


def few_labels(x, y, split):
    """Test log-probabilities for each draw of SHOTS labels per class: [draws, n, classes]."""
    train, _, test = split
    out = []
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        picked = np.concatenate(
            [rng.choice(train[y[train] == k], SHOTS, replace=False) for k in range(10)]
        )
        out.append(fit(x[picked], y[picked], 1.0).predict_log_proba(x[test]))
    return np.stack(out)


def spread(values):
    return f"{100 * np.mean(values):5.1f} +- {100 * np.std(values, ddof=1):3.1f}"


def report(name, views, y, split):
    """Print the lines of one pair (or a single one) of views."""
    test, logs = split[2], {}
    for view, x in views.items():
        score, c = all_labels(x, y, split)
        logs[view] = few_labels(x, y, split)
        right = (logs[view].argmax(-1) == y[test]).mean(1)
        print(
            f"{name:12s} {view:22s} dim {x.shape[1]:4d}   all labels {100 * score:5.1f} "
            f"(C={c:g})   {SHOTS}/class {spread(right)}",
            flush=True,
        )
    if len(logs) < 2:
        return
    first, second = list(logs.values())[:2]
    fused = ((first + second).argmax(-1) == y[test]).mean(1)
    wrong = [a.argmax(-1) != y[test] for a in (first, second)]
    both, either = (wrong[0] & wrong[1]).mean(1), (wrong[0] | wrong[1]).mean(1)
    same = ((first.argmax(-1) == second.argmax(-1)) & wrong[0] & wrong[1]).mean(1)
    corr = [np.corrcoef(a, b)[0, 1] for a, b in zip(*wrong)]
    print(f"{name:12s} {'late fusion':22s}{'':36}{SHOTS}/class {spread(fused)}")
    print(
        f"{name:12s} both wrong {spread(both)}  same wrong class {spread(same)}  "
        f"both/either {spread(both / either)}  "
        f"error correlation {np.mean(corr):.2f} +- {np.std(corr, ddof=1):.2f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path(__file__).resolve().parent.parent / "cache_specs" / "views" / "weights",
    )
    parser.add_argument("--untrained-seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(2)
    images, y = (lambda d: (d.images, d.target))(load_digits())
    train, rest = train_test_split(np.arange(len(y)), test_size=0.4, stratify=y, random_state=0)
    val, test = train_test_split(rest, test_size=0.5, stratify=y[rest], random_state=0)
    split = (train, val, test)
    print(
        f"digits: {len(train)} train, {len(val)} validation, {len(test)} test; {DRAWS} draws "
        f"of {SHOTS} per class; +- is the standard deviation over the draws"
    )
    loaders = {
        n: f
        for n, f in (("tiny-clip", load_clip), ("tiny-dinov2", load_dinov2))
        if (args.weights / n).is_dir()
    }
    for label, trained in [("trained", True)] + [
        (f"untrained {s}", False) for s in range(args.untrained_seeds)
    ]:
        torch.manual_seed(int(label[-1]) if not trained else 0)
        views = {
            f"{n} {pool}": x
            for n, load in loaders.items()
            for pool, x in features(load(args.weights / n, trained), images).items()
        }
        report(label, views, y, split)
    report("raw pixels", {"8x8": images.reshape(len(images), -1)}, y, split)


if __name__ == "__main__":
    main()
