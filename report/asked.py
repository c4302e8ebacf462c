"""What the model of a run says of images, and which of them to label next; where there is no run,
which to label first."""

from dataclasses import dataclass

import numpy as np

from base.console import counted
from predict.from_run import Model, Opinions
from train.algorithm.to_label import joined, max_herding, u_herding
from train.data.reader import Cache, gather
from train.data.splits import Split, spaced

MOST = 10_000  # images of each split that the model is asked about; of more, evenly spaced ones
MOST_FIRST = 50_000  # images that the first ones to label are chosen from, likewise
MOST_CELLS = 4e8  # probabilities of one split in memory
FIRST = (
    "To label them, move the files into their classes' folders, or write their labels into the "
    "table that DATA is; then type make extract once more, with all VIEWS, which embeds no image "
    "again, and train"
)
NEXT = f"{FIRST} under another RUN."
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
        return sampled(len(self.rows), self.of)


def sampled(rows: int, of: int) -> str:
    return f" (evenly spaced ones of {of:,})" if rows < of else ""


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


def known_rows(splits: list[Split]) -> np.ndarray:
    """The rows that a seed had a label of."""
    return np.unique(np.concatenate([split.labelled for split in splits]))


@dataclass(frozen=True, eq=False)
class Next:
    """Images to label. rows: of the data set, best first; at: their places in asked.rows, where a
    model was asked; pool: among how many they were chosen; bare: those have no label at all,
    otherwise one that was hidden. rule: by which of train/algorithm/to_label.py. why and then: in
    words, how they were chosen and what to do with them."""

    rows: np.ndarray
    at: np.ndarray
    pool: int
    bare: bool
    rule: str
    why: str
    then: str


def to_label(asked: Asked, cache: Cache, known: np.ndarray, most: int) -> Next:
    """At most so many of the images `asked` about, which no probe was given a label of: of those
    that have none, if there are any, otherwise of those whose label is hidden. known: the rows that
    the probes were given a label of."""
    bare = np.flatnonzero(cache.items.label[asked.rows] < 0)
    pool = bare if len(bare) else np.arange(len(asked.rows))
    what, then = "whose label was hidden", HIDDEN
    if len(bare):
        what, then = "without a label", NEXT
    x_nD, known_LD = _joined(cache, asked.rows[pool]), _joined(cache, spaced(known, MOST))
    at = pool[u_herding(x_nD, known_LD, asked.says.joint_nC[pool], most)]
    return Next(
        asked.rows[at],
        at,
        len(pool),
        len(bare) > 0,
        "u-herding",
        f"Chosen by UHerding among {counted(len(pool), 'image')} {what}{asked.sampled}: each next "
        "one is where the joint is unsure of most images that are like none of those chosen before "
        "it or labelled already; the best first. No hidden label has a say.",
        then,
    )


def first_to_label(cache: Cache, most: int) -> Next:
    """At most so many of the images without a label, where no model can be asked. Those of a
    validation or test split take no part, and what has a label is known."""
    apart = np.isin(np.array(cache.items.split, object), ("val", "test"))
    bare, usable = cache.items.label < 0, cache.ok & ~apart
    free, known = np.flatnonzero(bare & usable), np.flatnonzero(~bare & usable)
    pool = spaced(free, MOST_FIRST)
    x_nD, known_LD = _joined(cache, pool), _joined(cache, spaced(known, MOST_FIRST))
    chosen = max_herding(x_nD, known_LD, most)
    already = f" or is among the {len(known):,} labelled already" if len(known) else ""
    return Next(
        pool[chosen],
        chosen,
        len(pool),
        True,
        "max-herding",
        f"Chosen by MaxHerding among {counted(len(pool), 'image')} without a label"
        f"{sampled(len(pool), len(free))}: each next one stands for most images that are like "
        f"nothing that was chosen before it{already}; the best first.",
        f"{FIRST}.",
    )


def first_two(joint_C: np.ndarray) -> tuple[int, int]:
    """The first and the second choice."""
    first, second = np.argsort(-joint_C, kind="stable")[:2].tolist()
    return first, second


def _joined(cache: Cache, rows: np.ndarray) -> np.ndarray:
    return joined([gather(emb_ND, rows) for emb_ND in cache.emb])
