"""What the model of a run says of images, and which of them to label next."""

from dataclasses import dataclass

import numpy as np

from base.console import counted
from predict.from_run import Model, Opinions
from report.sections import choose
from train.data.reader import Cache
from train.data.splits import Split, spaced

MOST = 10_000  # images of each split that the model is asked about; of more, evenly spaced ones
MOST_CELLS = 4e8  # probabilities of one split in memory
NEXT = (
    "To label them, move the files into their classes' folders, or write their labels into the "
    "table that DATA is; then type make extract once more, with all VIEWS, which embeds no image "
    "again, and train under another RUN."
)
HIDDEN = (
    "They have labels already, which LABELS hid from the training: train under another RUN with a "
    "greater LABELS, which gives it more, or with LABELS=FILE, a file of the keys below and of "
    "those in the run's splits/, which gives it these."
)


@dataclass(frozen=True, eq=False)
class Asked:
    """Rows of the data set and what the model says of them; `of`: of how many they are a sample."""

    rows: np.ndarray
    says: Opinions
    of: int

    @property
    def sampled(self) -> str:
        """' (evenly spaced ones of 20,000)', or '' where all were asked about."""
        return f" (evenly spaced ones of {self.of:,})" if len(self.rows) < self.of else ""


def ask(model: Model, cache: Cache, rows: np.ndarray) -> Asked:
    width = len(cache.items.classes) * (len(cache.names) + 1)
    few = spaced(rows, int(min(MOST, max(1, MOST_CELLS // width))))
    return Asked(few, model([emb_ND[few] for emb_ND in cache.emb]), len(rows))


def unseen(splits: list[Split]) -> np.ndarray:
    """The rows for training that no seed had a label of."""
    rows = splits[0].unlabelled
    for split in splits[1:]:
        rows = np.intersect1d(rows, split.unlabelled)
    return rows


@dataclass(frozen=True, eq=False)
class Next:
    """Images to label next. at: their places in asked.rows, best first; pool: among how many they
    were chosen; bare: those have no label at all, otherwise one that was hidden. why and
    then: in words, how they were chosen and what to do with them."""

    at: np.ndarray
    pool: int
    bare: bool
    why: str
    then: str


def to_label(asked: Asked, cache: Cache, most: int) -> Next:
    """At most so many of the images `asked` about, which no probe was given a label of: of those
    that have none, if there are any, otherwise of those whose label is hidden."""
    bare = np.flatnonzero(cache.items.label[asked.rows] < 0)
    pool = bare if len(bare) else np.arange(len(asked.rows))
    joint_nC, views_VnC = asked.says.joint_nC[pool], asked.says.views_VnC[:, pool]
    emb_nD = np.concatenate([_unit(emb_ND[asked.rows[pool]]) for emb_ND in cache.emb], 1)
    several = len(views_VnC) > 1
    kind = "disagreement of the views × uncertainty of the joint" if several else "uncertainty"
    what, then = "whose label was hidden", HIDDEN
    if len(bare):
        what, then = "without a label", NEXT
    chosen = choose.label_next(joint_nC, views_VnC, emb_nD, most)
    good = choose.near_the_best(choose.teaching(joint_nC, views_VnC))
    few = int(good[chosen].sum())
    tail = ""
    if few < len(chosen):
        tail = f" Behind the first {few:,} the scores are below a quarter of the best."
    return Next(
        pool[chosen],
        len(pool),
        len(bare) > 0,
        f"Chosen by {kind} among {counted(len(pool), 'image')} {what}{asked.sampled}, then spread "
        f"out so that no two ask the same; the best first.{tail} No hidden label has a say.",
        then,
    )


def first_two(joint_C: np.ndarray) -> tuple[int, int]:
    """The first and the second choice."""
    first, second = np.argsort(-joint_C, kind="stable")[:2].tolist()
    return first, second


def _unit(x_nD: np.ndarray) -> np.ndarray:
    x = x_nD.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
