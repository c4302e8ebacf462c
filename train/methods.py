"""Which methods there are, and how each trains: one table, one word each in METHOD=.

A method is a list of jobs. A job trains the probes of some inputs, step by step: `warmup` supervised steps, then its own.

    supervised          each view by itself; joint = late fusion of the independently trained probes
    concat              one probe on all views' embeddings side by side
    self-training       supervised, then anew on labelled rows and the first choices of all views' probes for all others (one round)
    co-training         the views hand each other their most confident labels, a tenth more of the rows in each of ten rounds (Blum & Mitchell 1998)
    fixmatch            each view by itself, consistent under noise and dropout (--fixmatch fixed, freematch or softmatch)
    mpl                 Meta Pseudo Labels: in each view a teacher and a student
    mct, mct-h0         Meta Co-Training, and without its feedback
    supervised-graph    supervised, and the graphs of mct-graph pooled with the probes in the same way: what mct-graph has without co-training
    mct-graph           Meta Co-Training from the first step, whose teachers also know what label propagation on each view, and on all side by
                        side, says (train/data/graph.py); every expert is weighted by what it is worth on validation, in the teachers and in the joint
    logreg, knn, label-propagation      scikit-learn's, per view and on all side by side (train/classic.py)
"""

from collections.abc import Callable
from dataclasses import dataclass

from train.algorithm.cotrain import mct_step
from train.algorithm.peers import Peers
from train.algorithm.rivals import fixmatch_step, mpl_step, pseudo_step
from train.config import UNLABELLED
from train.data.feed import Task

TITLES = {  # of a view's own line, and of the joint line
    "supervised": ("supervised", "late fusion"),
    "concat": ("concat", "one probe on all views"),
    "logreg": ("logistic regression", "on all views"),
    "knn": ("k nearest neighbours", "on all views"),
    "label-propagation": ("label propagation", "on all views"),
    "self-training": ("self-training", "late fusion"),
    "co-training": ("co-training", "late fusion"),
    "fixmatch": ("FixMatch", "late fusion"),
    "mpl": ("meta pseudo labels", "late fusion"),
    "mct-h0": ("meta co-training, no feedback", "joint"),
    "mct": ("meta co-training", "joint"),
    "supervised-graph": ("supervised with graphs", "joint"),
    "mct-graph": ("meta co-training with graphs", "joint"),
}
ROUNDS = 10  # of co-training
SOLO = (
    "concat",
    "mpl",
    "logreg",
    "knn",
    "label-propagation",
)  # one process has all of it, on however many GPUs the others are


@dataclass(frozen=True)
class Plan:
    """step: after the warm-up (None: supervised all the time). per_view: the views know nothing of each other, so each keeps its own best step.
    phases: how often the whole schedule runs, each time from fresh probes."""

    step: Callable | None = None
    per_view: bool = False
    phases: int = 1
    strong: bool = False
    feedback: bool = True
    graphs: bool = False


PLANS = {
    "supervised": Plan(per_view=True),
    "concat": Plan(per_view=True),
    "self-training": Plan(pseudo_step, per_view=True, phases=2),
    "co-training": Plan(pseudo_step, per_view=True),
    "fixmatch": Plan(fixmatch_step, per_view=True, strong=True),
    "mpl": Plan(mpl_step, per_view=True),
    "mct-h0": Plan(mct_step, feedback=False),
    "mct": Plan(mct_step),
    "mct-graph": Plan(mct_step, graphs=True),
    "supervised-graph": Plan(per_view=True, graphs=True),
}


def learns_unlabelled(method: str) -> bool:
    """Do its probes or graphs learn from images without their labels?"""
    return method in UNLABELLED or PLANS[method].graphs


@dataclass(frozen=True)
class Job:
    """One training of one method: its name in checkpoints and logs, what it trains on, with whom it speaks, and the names of the probes
    that it leaves, of this process's first views."""

    name: str
    method: str
    task: Task
    peers: Peers
    probes: list[str]
