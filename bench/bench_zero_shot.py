"""How good is zero-shot with the bundled tiny-clip, and what are class names worth beside labels?
python bench/bench_zero_shot.py [--tasks digits,chars] [--labels 1,2,4,8] [--seeds 0..9]

The demo's digits, whose shapes are described (tiny-clip has never seen a digit), and the 60 letters
of bench/tasks.py by their names in Unicode. Nothing is drawn and nothing is fitted, so there is one
number: the share of right images, ± its binomial standard error. Half a minute on one core.

With --labels, then: `coview train` on both bundled models (the views a and b of the tasks) with so
many labels a class and no others, once with the names and once without, on the same draws: test
top-1 of supervised-graph and mct-graph, and the difference ± its standard error over draws and
images. 0: without any label, compared with zero-shot; nothing is drawn but batches and initial
weights. Writes bench/results/zero-shot.json.

chars needs the fonts of matplotlib and Hershey-Fonts (pip install -e .[tools]).
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import unicodedata
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import bench_methods
import tasks
from bench_cache import machine

from cache_specs import store
from cache_specs.prompts import Names
from cache_specs.spec import load_spec
from cache_specs.text import ViewText, write_text
from extract.models.text import load_tower, tensors_of
from extract.models.weights import find_weights
from train.algorithm.paired import difference

VIEW = "tiny-clip"
METHODS = ("supervised-graph", "mct-graph")
# what each digit looks like, written down once, before anything was measured
SHAPES = {
    "0": ("capital o", "small o"),
    "1": ("small l", "vertical line", "capital i"),
    "2": ("small z",),
    "3": ("small ezh", "reversed e"),
    "4": ("capital y", "triangular"),
    "5": ("small s", "capital s"),
    "6": ("small b",),
    "7": ("slash", "angle"),
    "8": ("capital b",),
    "9": ("small q", "small g"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="digits,chars", help="these, comma-separated")
    parser.add_argument("--labels", default="", help="a class, comma-separated; by itself none")
    parser.add_argument("--seeds", default="0..9", help="draws of these labels")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/zero-shot.json"
    )
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    found |= {"zero-shot": [], "in the pool": []}
    for task in args.tasks.split(","):
        images, y, split, names = TASKS[task]()
        text = text_of(names)
        right = is_right(images, y, text)
        for part in ("test", "all"):
            chosen = right if part == "all" else right[np.array(split) == part]
            told = {"task": task, "images": part, "n": len(chosen), **share(chosen)}
            found["zero-shot"].append(told)
            print(json.dumps(told), flush=True)
        for labels in filter(None, args.labels.split(",")):
            for told in in_the_pool(task, text, labels, args.seeds):
                found["in the pool"].append(told)
                print(json.dumps(told), flush=True)
    if args.labels:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def in_the_pool(task: str, text: ViewText, labels: str, seeds: str) -> list[dict[str, Any]]:
    """What the names are worth beside labels."""
    right: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bench_methods.prepare(work, [task])
        shutil.copytree(work / "cache", work / "named")
        (dataset,) = (work / "named").glob(f"{task}-*")
        prompts = {str(one): each for one, each in enumerate(text.prompts.values())}
        named = replace(text, prompts=prompts)  # the classes of an imported task are numbers
        write_text(store.open_view(store.view_folders(dataset, "a")[0]), named)
        for cache in ("named",) if labels == "0" else ("cache", "named"):
            settings = ["--views", "a,b", "--data", task, "--labels", labels, "--seeds", seeds]
            methods = ("zero-shot" if labels == "0" else "supervised", *METHODS)
            settings += ["--val", "cross", "--method", ",".join(methods)]
            places = ["--cache", work / cache, "--runs", work / "runs", "--run", cache]
            bench_methods.call("-m coview.cli train", *settings, *places, "--threads", 1)
            run = work / "runs" / cache
            right[cache] = {name: bench_methods.right(run, name) for name in methods}
    told = []
    for name in METHODS:
        with_En = right["named"][name]
        other_En = right["named"]["zero-shot"] if labels == "0" else right["cache"][name]
        gain = asdict(difference(with_En, other_En))
        scores = {"with": spread(with_En), "without": spread(other_En)}
        told.append({"task": task, "labels": int(labels), "method": name, **scores, "gain": gain})
    return told


def spread(right_En: np.ndarray) -> list[float]:
    """Mean and deviation over the draws, in %."""
    top1_E = 100 * right_En.mean(1)
    return [round(float(top1_E.mean()), 1), round(float(top1_E.std(ddof=1)), 1)]


Task = tuple[np.ndarray, np.ndarray, list[str], Names]


def digits() -> Task:
    """Images, labels, splits, and what the classes are called, in the order of the labels."""
    _, y, split, images = tasks.digits()
    return images, y, split, Names(SHAPES)


def chars() -> Task:
    images, y, split = tasks.render_chars()
    letters = tasks.UPPER + tasks.LOWER + tasks.GREEK
    return images, y, split, Names({letter: (spoken(letter),) for letter in letters})


TASKS = {"digits": digits, "chars": chars}


def spoken(letter: str) -> str:
    """As the captions of tiny-clip's drawings call it: small b, greek capital gamma."""
    name = unicodedata.name(letter).lower()
    return name.replace("latin ", "").replace("letter ", "")


def text_of(names: Names) -> ViewText:
    """The names as tiny-clip's tower encodes them."""
    spec = load_spec(VIEW)
    assert spec.text is not None, VIEW
    prompts = names.prompts(spec.text.templates)
    tower = load_tower(spec, find_weights(spec.both_towers, None)[0], "cpu")
    return ViewText(tensors_of(tower, [*prompts.values()]), "", prompts)


def is_right(images: np.ndarray, y: np.ndarray, text: ViewText) -> np.ndarray:
    """(N,) bool: is the first choice of the class names the label?"""
    emb_ND = tasks.embed(images, VIEW).astype(np.float16)
    return text.logits(emb_ND, [*text.prompts]).argmax(1) == y


def share(right: np.ndarray) -> dict[str, float]:
    """In %, with its binomial standard error."""
    p = right.mean()
    error = np.sqrt(p * (1 - p) / len(right))
    return {"top1": round(100 * float(p), 1), "standard_error": round(100 * float(error), 1)}


if __name__ == "__main__":
    main()
