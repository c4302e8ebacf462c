"""Which methods there are: one record each, from which all else about them is read.

A method is a list of jobs (train/jobs.py), and a job a list of phases (train/phases.py): mostly
`warmup` supervised steps, and then its own.

    supervised          each view by itself; joint = late fusion of the independently trained probes
    concat              one probe on all views' embeddings side by side
    self-training       supervised, then anew on labelled rows and the first choices of all views'
                        probes for all others (one round)
    co-training         the views hand each other their most confident labels, a tenth more of the
                        rows in each of ten rounds (Blum & Mitchell 1998)
    fixmatch            each view by itself, consistent under noise and dropout (--fixmatch fixed,
                        freematch or softmatch)
    mpl                 Meta Pseudo Labels: in each view a teacher and a student
    mct, mct-h0         Meta Co-Training, and without its feedback
    supervised-graph    supervised, and the graphs of mct-graph pooled with the probes in the same
                        way: what mct-graph has without co-training
    mct-graph           Meta Co-Training from the first step, whose teachers also know what label
                        propagation on each view, and on all side by side, says
                        (train/data/graph.py); every expert is weighted by what it is worth on
                        validation, in the teachers and in the joint
    logreg, knn, label-propagation
                        scikit-learn's, per view and on all side by side (train/classic.py)
    zero-shot           what the names of the classes say, of each view whose text tower has encoded
                        them; joint = mean of these views' probabilities. No label plays a part
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

LATE, WIDE = "late fusion", "on all views"
# by which steps and hyper-parameters can be chosen, and how tables call them
MEASURES = {"top1": "top-1", "balanced": "balanced accuracy", "f1": "macro F1"}


@dataclass(frozen=True)
class Method:
    """What a method is.

    title, joint: how tables call a view's own line, and the joint one. told: a word for --help.
    schedule: its phases, a name in train/phases.py; classic: scikit-learn's instead, which has no
    steps, and leaves scores but no model.
    jobs: one probe a view, all in one job; one probe on all views side by side; or a student and a
    teacher a view, each pair a job of its own.
    views: how many it needs. unlabelled: it needs images without a label, too.
    default: an empty METHOD stands for it too, with so many views and more; 0: never.
    heavy: large sets would take hours or all memory.
    text: it needs the names of the classes, as views see them (cache_specs/text.py).
    per_view: the views know nothing of each other, so each keeps its own best step.
    feedback: its teachers learn.
    without_graphs: of a method with graphs, the one that it is without them.
    """

    name: str
    title: str
    joint: str
    told: str = ""
    schedule: str = "supervised"
    classic: bool = False
    jobs: Literal["views", "together", "pairs"] = "views"
    views: int = 1
    unlabelled: bool = False
    default: int = 0
    heavy: bool = False
    text: bool = False
    per_view: bool = False
    feedback: bool = True
    without_graphs: str = ""

    @property
    def graphs(self) -> bool:
        return self.without_graphs != ""

    @property
    def keeps_model(self) -> bool:
        return not self.classic

    @property
    def solo(self) -> bool:
        """One process has all of it, on however many GPUs the others are; no sweep takes it."""
        return self.classic or self.jobs != "views"

    def files(self, views: list[str]) -> list[str]:
        """What its folder in probes/ holds at the end."""
        if self.classic:
            return ["scores"]
        if self.jobs == "together":
            return [self.name]
        return [*views, "pool"] if self.graphs else views


ALL = (
    Method(
        "supervised",
        "supervised",
        LATE,
        told="each view by itself; joint = late fusion",
        default=1,
        per_view=True,
    ),
    Method("concat", "concat", "one probe on all views", jobs="together", views=2, per_view=True),
    Method("logreg", "logistic regression", WIDE, classic=True),
    Method("knn", "k nearest neighbours", WIDE, classic=True),
    Method("label-propagation", "label propagation", WIDE, classic=True, default=1, heavy=True),
    Method(
        "zero-shot",
        "zero-shot",
        "joint",
        told="by the classes' names, see extract --classes",
        classic=True,
        text=True,
    ),
    Method(
        "self-training",
        "self-training",
        LATE,
        schedule="self-training",
        unlabelled=True,
        per_view=True,
    ),
    Method(
        "co-training",
        "co-training",
        LATE,
        schedule="co-training",
        views=2,
        unlabelled=True,
        per_view=True,
    ),
    Method("fixmatch", "FixMatch", LATE, schedule="fixmatch", unlabelled=True, per_view=True),
    Method(
        "mpl",
        "meta pseudo labels",
        LATE,
        schedule="mpl",
        jobs="pairs",
        unlabelled=True,
        per_view=True,
    ),
    Method(
        "mct-h0",
        "meta co-training, no feedback",
        "joint",
        told="without feedback",
        schedule="mct",
        views=2,
        unlabelled=True,
        feedback=False,
    ),
    Method(
        "mct",
        "meta co-training",
        "joint",
        told="meta co-training, as published",
        schedule="mct",
        views=2,
        unlabelled=True,
    ),
    Method(
        "supervised-graph",
        "supervised with graphs",
        "joint",
        told="mct-graph without co-training",
        default=2,
        heavy=True,
        per_view=True,
        without_graphs="supervised",
    ),
    Method(
        "mct-graph",
        "meta co-training with graphs",
        "joint",
        told="with label propagation as a further teacher",
        schedule="mct",
        views=2,
        unlabelled=True,
        default=2,
        heavy=True,
        without_graphs="mct",
    ),
)
METHODS = {method.name: method for method in ALL}


def defaults(views: int) -> list[str]:
    """What an empty METHOD stands for."""
    return [method.name for method in METHODS.values() if 0 < method.default <= views]


def in_order(names: Iterable[str]) -> list[str]:
    """Those names of methods in the order in which tables show them."""
    given = set(names)
    return [name for name in METHODS if name in given]


def with_model(names: Iterable[str] = METHODS) -> list[str]:
    """Those that keep a model, in the order of the tables."""
    return [name for name in in_order(names) if METHODS[name].keeps_model]


def learns_unlabelled(method: str) -> bool:
    """Do its probes or graphs learn from images without their labels?"""
    return METHODS[method].unlabelled or METHODS[method].graphs


def told_of_all() -> str:
    """What --help says of --method."""
    words = []
    for method in METHODS.values():
        words.append(f"{method.name} ({method.told})" if method.told else method.name)
    alone, several = ",".join(defaults(1)), ",".join(defaults(2))
    return f"comma-separated, or all: {', '.join(words)}; default: {several}, with one view {alone}"
