"""In Python the library is silent; who asks logging for it hears what it does."""

from pathlib import Path

from conftest import Made, python

FIT = """
import numpy as np
from coview import MetaCoTrainingClassifier, open_view
def do(cache, folder):
    emb_V = [np.array(open_view(f"{cache}/digits/{name}")[:300]) for name in ("pixels", "edges")]
    y = np.where(np.arange(300) < 40, np.arange(300) % 4, -1)
    MetaCoTrainingClassifier(warmup=5, cotrain=5, hidden=8).fit(emb_V, y).predict(emb_V)
"""
EXTRACT = """
import pathlib
import numpy as np
from PIL import Image
from extract.config import ExtractConfig
from extract.run import run
def do(cache, folder):
    photos = pathlib.Path(folder) / "photos"
    for number in range(6):
        split = photos / ("train" if number else "test") / "a"
        split.mkdir(parents=True, exist_ok=True)
        pixels = np.full((20, 20, 3), 40 * (number % 5), np.uint8)     # two of them are alike
        Image.fromarray(pixels).save(split / f"{number}.png")
    (photos / "notes.txt").write_text("left out")
    run(ExtractConfig("tiny-clip", data=str(photos), cache=f"{folder}/cache", device="cpu"))
"""
TRAIN = """
from train.command import run
from train.config import TrainConfig
VIEWS = VIEWS_
def do(cache, folder):
    run(TrainConfig(
        VIEWS, "digits", "2", cache=cache, runs=folder, run="a", method="supervised,mct,knn",
        warmup=5, cotrain=5, hidden=8, tensorboard="off", device="cpu",
    ))
"""
ALL = [(FIT, ("mct-graph: 40 rows", "1,797 x 64", "mct-graph: trained, 10 steps"))]
ALL += [(EXTRACT, ("tiny-clip: finished, 6 images",)), (TRAIN, ("meta co-training: joint",))]
LOUD = """
import logging, sys
print("----", flush=True)
print("----", file=sys.stderr, flush=True)
logging.basicConfig(level=logging.INFO, force=True)      # open_clip has given root a handler
"""


def test_nothing_is_printed_unless_logging_is_asked(made: Made, tmp_path: Path) -> None:
    """In one process: all three in silence, then again with logging."""
    silent, loud = [], []
    for number, (program, _) in enumerate(ALL):
        program = program.replace("VIEWS_", repr(made.views("pixels", "edges")))
        silent.append(f"{program}\ndo({str(made.cache)!r}, {str(tmp_path / f'silent{number}')!r})")
        loud.append(f"{program}\ndo({str(made.cache)!r}, {str(tmp_path / f'heard{number}')!r})")
    done = python("\n".join([*silent, LOUD, *loud]), cwd=tmp_path)
    assert done.stdout == "----\n"
    said, heard = done.stderr.split("----\n")
    assert said == ""
    for _, words in ALL:
        for one in words:
            assert one in heard
