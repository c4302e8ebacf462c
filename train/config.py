"""The settings of a run: one flat frozen dataclass, from which the command line is made. All but PLACES can change the numbers."""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from base.errors import UsageError, did_you_mean, nearest
from base.phrase import line_of, quoted
from train.algorithm.ranks import refuse_ranks

METHODS = (
    "supervised",
    "concat",
    "logreg",
    "knn",
    "label-propagation",
    "self-training",
    "co-training",
    "fixmatch",
    "mpl",
    "mct-h0",
    "mct",
    "supervised-graph",
    "mct-graph",
)
TEACHING = ("co-training", "mct-h0", "mct", "mct-graph")  # need two views
UNLABELLED = ("self-training", "fixmatch", "mpl", *TEACHING)  # need rows without a label
MOST_SEEDS = 10_000
DEFAULT = ("supervised", "label-propagation", "supervised-graph", "mct-graph")
WORDS = (
    "views",
    "data",
    "labels",
    "seeds",
    "method",
    "device",
    "gpus",
    "cache",
    "run",
)  # words of `make train`
PLACES = (
    "run",
    "runs",
    "cache",
    "tensorboard",
    "wandb",
    "report",
    "log_every_s",
    "timeout_s",
    "dry_run",
    "json",
)  # not compared when a run is resumed


@dataclass(frozen=True)
class TrainConfig:
    """Train one probe per view on cached embeddings, with few labels, by each METHOD, for each seed, and print a table."""

    views: str = ""
    """names of extracted views, comma-separated (at least two for mct)"""
    data: str = ""
    """the data set, as it was given to extract"""
    labels: str = "all"
    """labelled training images: 4 (a class), 10% (of each class), all, or a file of keys"""
    method: str = ""
    """comma-separated, or all: supervised (each view by itself; joint = late fusion), concat, logreg, knn, label-propagation, self-training,
    co-training, fixmatch, mpl, mct (meta co-training, as published), mct-h0 (without feedback), mct-graph (with label propagation as a further
    teacher), supervised-graph (mct-graph without co-training); default: supervised,label-propagation,supervised-graph,mct-graph, with one view
    the first two"""
    seeds: str = "0"
    """seeds of label choice, initial weights and draws: 0, 0..4 or 0,3,7; they train at once"""
    device: str = "auto"
    """auto, cpu or cuda"""
    gpus: int = 1
    """this many processes (one GPU each; on the CPU without one); the views are dealt out to them; a multiple of the number of views also
    deals out the rows of each batch"""
    cache: str = "cache"
    """where extract put the embeddings"""
    runs: str = "runs"
    """where runs go"""
    run: str = ""
    """the run's name; the same name again resumes it; default: date and time"""
    lr: float = 3e-4
    """learning rate of Adam"""
    weight_decay: float = 0.0
    """decoupled weight decay (AdamW)"""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """of the learning rate over all steps"""
    hidden: int = 256
    """width of the hidden layers"""
    layers: int = 2
    """number of hidden layers; 0 is a linear probe"""
    members: int = 1
    """probes in each view's ensemble, trained through their common logits (mean, the smaller the less they agree)"""
    dropout: float = 0.2
    """dropout rate after each hidden layer"""
    clip: float = 1.0
    """largest norm of a gradient"""
    batch_labelled: int = 64
    """labelled rows a step (at most as many as there are)"""
    batch_unlabelled: int = 128
    """unlabelled rows a step"""
    chunk: int = 0
    """rows kept in memory at a time, with the gradient of the whole batch (gradient accumulation); 0: all"""
    warmup: int = 100
    """supervised steps before co-training"""
    cotrain: int = 500
    """co-training steps; supervised trains warmup + cotrain steps"""
    feedback: Literal["exact", "difference", "none"] = "exact"
    """how the student's progress is measured; none switches the teachers' learning off"""
    supervised_weight: float = 1.0
    """of the labelled rows' gradient in a co-training step"""
    pseudo: Literal["sample", "argmax"] = "sample"
    """labels drawn from the teacher's distribution, or its first choice"""
    temperature: float = 0.5
    """of the teacher's distribution from which labels are drawn; below 1 sharpens it (the paper: 1)"""
    calibrate: bool = False
    """fit each teacher's temperature on the validation labels first (times --temperature)"""
    fixmatch: Literal["fixed", "freematch", "softmatch"] = "fixed"
    """how fixmatch weighs its labels"""
    threshold: float = 0.95
    """the confidence above which --fixmatch fixed uses a label"""
    noise: float = 0.5
    """standard deviation of the noise on fixmatch's embeddings, whose own is 1"""
    joint: Literal["logit-sum", "product", "mean-probability", "vote"] = "logit-sum"
    """how the views' predictions are joined (with graphs they are weighted instead)"""
    ema: float = 0.0
    """decay of the moving average of the weights, which then is what is evaluated and kept; 0: none"""
    patience: int = 0
    """steps without a better validation score after which an experiment is stopped; 0: none"""
    precision: Literal["auto", "float32", "float64"] = "auto"
    """auto: bfloat16 autocast on CUDA, float32 on the CPU"""
    eval_every: int = 20
    """steps between looks at the validation split (model selection, stop signals, metrics)"""
    checkpoint_every: int = 200
    """steps between checkpoints; a killed run loses at most these"""
    threads: int = 0
    """CPU threads a process; 0 leaves it to torch"""
    log_every_s: float = 10.0
    """seconds between progress lines where there is no terminal"""
    timeout_s: float = 120.0
    """seconds that a process waits for the others before it gives up"""
    tensorboard: Literal["auto", "off"] = "auto"
    """auto: the curves also as TensorBoard's event files in runs/<id>/tensorboard/, where it is installed"""
    wandb: Literal["off", "offline", "online"] = "off"
    """also report to Weights & Biases, from a process of its own; no tracker can stop, change or hold up a run"""
    report: bool = True
    """at the end of a run, write its report.html"""
    dry_run: bool = False
    """say what would be trained, and about how long it would take; write nothing"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""

    def view_list(self) -> list[str]:
        return [name.strip() for name in self.views.split(",") if name.strip()]

    def method_list(self) -> list[str]:
        several = len(self.view_list()) > 1
        if self.method == "all":
            return [name for name in METHODS if several or name not in (*TEACHING, "concat")]
        return [name.strip() for name in self.method.split(",") if name.strip()] or list(
            DEFAULT if several else DEFAULT[:2]
        )

    def seed_list(self) -> list[int]:
        """0..4 -> 0, 1, 2, 3, 4. Raises UsageError."""
        try:
            seeds = []
            for part in self.seeds.split(","):
                first, _, last = part.partition("..")
                if int(last or first) - int(first) >= MOST_SEEDS:
                    raise ValueError
                seeds += range(int(first), int(last or first) + 1)
        except ValueError:
            seeds = []
        if (
            not seeds
            or min(seeds) < 0
            or max(seeds) >= 2**31
            or len(set(seeds)) < len(seeds)
            or len(seeds) > MOST_SEEDS
        ):
            raise UsageError(
                f"SEEDS={self.seeds}: neither a number (SEEDS=0), nor a range (SEEDS=0..4), nor a list (SEEDS=0,3,7) of different seeds, "
                f"at most {MOST_SEEDS:,}"
            )
        return seeds

    def check(self) -> None:
        """Raise UsageError for what can be seen without reading any data, with the command to type."""
        views, methods = self.view_list(), self.method_list()
        example = f"make train VIEWS={quoted(','.join(views) or 'clip,dinov2')} DATA={quoted(self.data or 'photos/')}"
        if not views or not self.data:
            raise UsageError(f"{'DATA' if views else 'VIEWS'} is missing. Type: {example}")
        for method in methods:
            if method not in METHODS:
                near = nearest(method, METHODS)
                raise UsageError(
                    f"METHOD={self.method}: there is no method {method!r}{did_you_mean(method, METHODS)}",
                    instead={
                        "METHOD": ",".join(
                            dict.fromkeys(near if name == method else name for name in methods)
                        )
                        if near
                        else None
                    },
                )
        for word, given, names in (("VIEWS", self.views, views), ("METHOD", self.method, methods)):
            if twice := [name for name in names if names.count(name) > 1]:
                raise UsageError(
                    f"{word}={given}: {twice[0]!r} stands there twice; name each once",
                    instead={word: ",".join(dict.fromkeys(names))},
                )
        if (alone := [method for method in methods if method in (*TEACHING, "concat")]) and len(
            views
        ) < 2:
            raise UsageError(
                f"METHOD={alone[0]} needs at least two views, found {self.views}. Name another one too (make views lists them), or, for one view, "
                "leave METHOD out",
                instead={"METHOD": None},
            )
        refuse_ranks(self.gpus, len(views))
        for name, low in (
            ("hidden", 1),
            ("layers", 0),
            ("members", 1),
            ("batch_labelled", 1),
            ("batch_unlabelled", 1),
            ("chunk", 0),
            ("warmup", 0),
            ("cotrain", 0),
            ("eval_every", 1),
            ("checkpoint_every", 1),
            ("patience", 0),
            ("weight_decay", 0),
            ("noise", 0),
            ("supervised_weight", 0),
        ):
            if getattr(self, name) < low:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be at least {low}, found {getattr(self, name)}"
                )
        for name in (
            "lr",
            "clip",
            "temperature",
            "weight_decay",
            "noise",
            "threshold",
            "supervised_weight",
            "timeout_s",
            "log_every_s",
        ):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(
                    f"--{name.replace('_', '-')} must be a finite number, found {getattr(self, name)}"
                )
        if 0 < self.patience < self.eval_every:
            raise UsageError(
                f"--patience {self.patience} is less than --eval-every {self.eval_every}, the steps from look to look: give at least that, "
                "or 0 for none"
            )
        positive = min(
            self.warmup + self.cotrain, self.lr, self.clip, self.temperature, self.timeout_s
        )
        if positive <= 0 or not (0 <= self.dropout < 1 and 0 <= self.ema < 1):
            raise UsageError(
                "--warmup plus --cotrain, --lr, --clip, --temperature and --timeout-s must be positive, --dropout and --ema in [0, 1)"
            )
        if not re.fullmatch(r"[\w-][\w.-]*|", self.run):
            better = re.sub(r"[^\w.-]+", "-", Path(self.run).name).lstrip(".")
            raise UsageError(
                f"RUN={self.run}: a run's name is a folder's name below {self.runs}/: letters, digits, '-', '_' and '.'",
                instead={"RUN": better} if better else None,
            )
        self.seed_list()


def make_command(settings: Mapping[str, Any]) -> str:
    """The `make train` of these settings (names of TrainConfig's fields): words for what has one, ARGS for what differs from its default."""
    words = {
        name.upper(): str(settings[name])
        for name in WORDS
        if name in settings and str(settings[name]) not in ("", str(getattr(TrainConfig, name)))
    }
    flags = shlex.join(
        word
        for name, value in settings.items()
        if name not in WORDS and value != getattr(TrainConfig, name, value)
        for word in [
            f"--{'no-' * (value is False)}{name.replace('_', '-')}",
            *([] if isinstance(value, bool) else [str(value)]),
        ]
    )
    return line_of("train", words | ({"ARGS": flags} if flags else {}))
