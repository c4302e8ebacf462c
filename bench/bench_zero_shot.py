"""How good is zero-shot with the bundled tiny-clip? python bench/bench_zero_shot.py [--tasks
digits,chars]

The demo's digits, whose shapes are described (tiny-clip has never seen a digit), and the 60 letters
of bench/tasks.py by their names in Unicode. Nothing is drawn and nothing is fitted, so there is one
number: the share of right images, ± its binomial standard error. Half a minute on one core.

chars needs the fonts of matplotlib and Hershey-Fonts (pip install -e .[tools]).
"""

import argparse
import json
import sys
import unicodedata
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import tasks

from cache_specs.prompts import Names
from cache_specs.spec import load_spec
from cache_specs.text import ViewText
from extract.models.text import load_tower, tensors_of
from extract.models.weights import find_weights

VIEW = "tiny-clip"
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
    for task in parser.parse_args().tasks.split(","):
        images, y, split, names = TASKS[task]()
        right = is_right(images, y, names)
        for part in ("test", "all"):
            chosen = right if part == "all" else right[np.array(split) == part]
            found = {"task": task, "images": part, "n": len(chosen), **share(chosen)}
            print(json.dumps(found), flush=True)


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


def is_right(images: np.ndarray, y: np.ndarray, names: Names) -> np.ndarray:
    """(N,) bool: is the first choice of the class names the label?"""
    spec = load_spec(VIEW)
    assert spec.text is not None, VIEW
    prompts = names.prompts(spec.text.templates)
    tower = load_tower(spec, find_weights(spec.both_towers, None)[0], "cpu")
    text = ViewText(tensors_of(tower, [*prompts.values()]), "", prompts)
    emb_ND = tasks.embed(images, VIEW).astype(np.float16)
    return text.logits(emb_ND, [*prompts]).argmax(1) == y


def share(right: np.ndarray) -> dict[str, float]:
    """In %, with its binomial standard error."""
    p = right.mean()
    error = np.sqrt(p * (1 - p) / len(right))
    return {"top1": round(100 * float(p), 1), "standard_error": round(100 * float(error), 1)}


if __name__ == "__main__":
    main()
