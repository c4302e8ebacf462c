"""The settings of a run: one flat frozen dataclass, from which the command line is made.

It is made of several: what is trained on (the words of `make train`), the probe, the step, the
schedule and the rivals, which together are all that a training needs to know, and the run around
it. PLACES cannot change the numbers.
"""

import dataclasses
import math
import re
import shlex
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from base.errors import UsageError, did_you_mean, nearest
from base.phrase import line_of
from train.algorithm.ranks import refuse_ranks
from train.data.apart import Apart, apart_of
from train.methods import METHODS, defaults, told_of_all

MOST_SEEDS = 10_000
BY_LABELS = -1  # of steps: as many as the labelled images ask for
STEPS = {"warmup": (20, 3), "cotrain": (100, 15)}  # then: at least, and passes over these
NAME_OF_A_RUN = re.compile(r"[\w-][\w.-]*|")


def limited(default: float, **limits: Any) -> Any:
    """A field with a `least` or a `most` value, or one that is `positive`, or a `share` in
    [0, 1)."""
    return dataclasses.field(default=default, metadata=limits)


@dataclass(frozen=True)
class AskedSettings:
    views: str = ""
    """names of extracted views, comma-separated (at least two for mct)"""
    data: str = ""
    """the data set, as it was given to extract"""
    labels: str = "all"
    """labelled training images: 4 (a class), 10% (of each class), all, a file of keys, or 0 (the
    class names label, see extract --classes)"""
    val: str = "auto"
    """who chooses steps, settings and weights: auto (the validation split that the data name, else
    cross), cross (what is said of each labelled image by a training that does not know its label),
    split (the one that the data name, else a fifth is set apart), 10% (that share is set apart), or
    none (all stay as they are)"""
    test: str = "auto"
    """who tests at the end: auto (the test split that the data name), or 20% (that share of the
    labelled images is set apart)"""
    seeds: str = "0"
    """seeds of label choice, initial weights and draws: 0, 0..4 or 0,3,7; they train at once"""
    method: str = dataclasses.field(default="", metadata={"help": told_of_all()})
    device: str = "auto"
    """auto, cpu or cuda"""
    gpus: int = 1
    """this many processes (one GPU each; on the CPU without one); the views are dealt out to them;
    a multiple of the number of views also deals out the rows of each batch"""
    cache: str = "cache"
    """where extract put the embeddings"""
    run: str = ""
    """the run's name; the same name again resumes it; default: date and time"""


@dataclass(frozen=True)
class ProbeSettings:
    GROUP: ClassVar[str] = "probe"

    hidden: int = limited(256, least=1)
    """width of the hidden layers"""
    layers: int = limited(2, least=0)
    """number of hidden layers; 0 is a linear probe"""
    members: int = limited(1, least=1)
    """probes in each view's ensemble, trained through their common logits
    (mean, the smaller the less they agree)"""
    dropout: float = limited(0.2, share=True)
    """dropout rate after each hidden layer"""
    joint: Literal["logit-sum", "product", "mean-probability", "vote"] = "logit-sum"
    """how the views' predictions are joined (with graphs they are weighted instead)"""


@dataclass(frozen=True)
class StepSettings:
    GROUP: ClassVar[str] = "step"

    lr: float = limited(3e-4, positive=True)
    """learning rate of Adam"""
    weight_decay: float = limited(0.0, least=0)
    """decoupled weight decay (AdamW)"""
    clip: float = limited(1.0, positive=True)
    """largest norm of a gradient"""
    batch_labelled: int = limited(64, least=1)
    """labelled rows a step (at most as many as there are)"""
    batch_unlabelled: int = limited(128, least=1)
    """unlabelled rows a step"""
    chunk: int = limited(0, least=0)
    """rows kept in memory at a time, with the gradient of the whole batch; 0: all"""
    feedback: Literal["exact", "difference", "none"] = "exact"
    """how the student's progress is measured; none switches the teachers' learning off"""
    supervised_weight: float = limited(1.0, least=0)
    """of the labelled rows' gradient in a co-training step"""
    pseudo: Literal["sample", "argmax"] = "sample"
    """labels drawn from the teacher's distribution, or its first choice"""
    temperature: float = limited(0.5, positive=True)
    """of the teacher's distribution, of which labels are drawn; below 1 sharpens (the paper: 1)"""
    calibrate: bool = False
    """fit each teacher's temperature on the validation labels first (times --temperature)"""
    ema: float = limited(0.0, share=True)
    """decay of the moving average of the weights, which then is evaluated and kept; 0: none"""
    precision: Literal["auto", "float32", "float64"] = "auto"
    """auto: bfloat16 autocast on CUDA, float32 on the CPU"""
    threads: int = 0
    """CPU threads a process; 0: those of OMP_NUM_THREADS, or as many as a step can use"""


@dataclass(frozen=True)
class ScheduleSettings:
    GROUP: ClassVar[str] = "schedule"

    warmup: int = limited(BY_LABELS, least=BY_LABELS)
    """supervised steps before co-training; -1: 20, or so many that each labelled image is drawn
    3 times"""
    cotrain: int = limited(BY_LABELS, least=BY_LABELS)
    """co-training steps; supervised trains warmup + cotrain steps; -1: 100, or so many that each
    labelled image is drawn 15 times"""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """of the learning rate over all steps"""
    eval_every: int = limited(20, least=1)
    """steps between looks at the images that choose (model selection, stop signals, metrics)"""
    checkpoint_every: int = limited(200, least=1)
    """steps between checkpoints; a killed run loses at most these"""
    select: Literal["top1", "balanced", "f1"] = "top1"
    """the validation score by which steps and hyper-parameters are chosen: top-1, balanced accuracy
    or macro F1; of equal ones the lower loss decides"""
    patience: int = limited(0, least=0)
    """steps without a better validation score after which an experiment is stopped; 0: none"""


@dataclass(frozen=True)
class RivalSettings:
    GROUP: ClassVar[str] = "rivals"

    fixmatch: Literal["fixed", "freematch", "softmatch"] = "fixed"
    """how fixmatch weighs its labels"""
    threshold: float = limited(0.95)
    """the confidence above which --fixmatch fixed uses a label"""
    noise: float = limited(0.5, least=0)
    """standard deviation of the noise on fixmatch's embeddings, whose own is 1"""


@dataclass(frozen=True)
class RunSettings:
    GROUP: ClassVar[str] = "run"

    runs: str = "runs"
    """where runs go"""
    log_every_s: float = limited(10.0)
    """seconds between progress lines where there is no terminal"""
    timeout_s: float = limited(120.0, positive=True)
    """seconds that a process waits for the others before it gives up"""
    tensorboard: Literal["auto", "off"] = "auto"
    """auto: the curves also as TensorBoard's event files in runs/<id>/tensorboard/,
    where it is installed"""
    wandb: Literal["off", "offline", "online"] = "off"
    """also report to Weights & Biases, from a process of its own;
    no tracker can stop, change or hold up a run"""
    report: bool = True
    """at the end of a run, write its report.html"""
    dry_run: bool = False
    """say what would be trained, and about how long it would take; write nothing"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""


def names_of(*kinds: type) -> list[str]:
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]


WORDS = names_of(AskedSettings)  # of `make train`
PLACES = ["run", "cache", *names_of(RunSettings)]  # not compared when a run is resumed


# The fields of the last base come first.
@dataclass(frozen=True)
class TrainingSettings(RivalSettings, ScheduleSettings, StepSettings, ProbeSettings):
    """All that the training of a method needs to know, and nothing of names and places."""

    def settled(self, labelled: int) -> Self:
        """With as many steps as so many labelled images ask for, where none are given."""
        a_pass = math.ceil(labelled / self.batch_labelled)
        steps = {}
        for name, (least, passes) in STEPS.items():
            if getattr(self, name) == BY_LABELS:
                steps[name] = max(least, passes * a_pass)
        return dataclasses.replace(self, **steps)


@dataclass(frozen=True)
class TrainConfig(RunSettings, TrainingSettings, AskedSettings):
    """Train probes on cached embeddings with few labels, by each METHOD and SEED; print a table."""

    def view_list(self) -> list[str]:
        return _listed(self.views)

    def method_list(self) -> list[str]:
        views = len(self.view_list())
        if self.method == "all":
            return [method.name for method in METHODS.values() if method.views <= max(views, 1)]
        return _listed(self.method) or defaults(max(views, 1))

    def seed_list(self) -> list[int]:
        """0..4 -> 0, 1, 2, 3, 4. Raises UsageError."""
        seeds: list[int] = []
        try:
            for part in self.seeds.split(","):
                first, _, last = part.partition("..")
                if int(last or first) - int(first) >= MOST_SEEDS:
                    raise ValueError
                seeds += range(int(first), int(last or first) + 1)
        except ValueError:
            seeds = []
        fine = 0 < len(seeds) <= MOST_SEEDS and len(set(seeds)) == len(seeds)
        if not fine or min(seeds) < 0 or max(seeds) >= 2**31:
            raise UsageError(
                f"SEEDS={self.seeds}: neither a number (SEEDS=0), nor a range (SEEDS=0..4), nor a "
                f"list (SEEDS=0,3,7) of different seeds, at most {MOST_SEEDS:,}",
                instead={"SEEDS": _meant(self.seeds)},
            )
        return seeds

    def apart(self) -> Apart:
        """VAL and TEST. Raises UsageError."""
        return apart_of({"val": self.val, "test": self.test})

    def check(self) -> None:
        """Raise UsageError for what can be seen without reading any data, with the command to
        type."""
        views, methods = self.view_list(), self.method_list()
        _refuse_missing(views, self.data)
        _refuse_unknown(self.method, methods)
        _refuse_twice("VIEWS", self.views, views)
        _refuse_twice("METHOD", self.method, methods)
        for method in methods:
            if METHODS[method].views > len(views):
                raise UsageError(
                    f"METHOD={method} needs at least two views, found {self.views}. Name another "
                    "one too (make views lists them), or, for one view, leave METHOD out",
                    instead={"METHOD": None},
                )
        refuse_ranks(self.gpus, len(views))
        refuse_beyond_limits(self)
        self.apart()
        if not self.warmup and not self.cotrain:
            raise UsageError("--warmup plus --cotrain must be positive, found 0")
        if 0 < self.patience < self.eval_every:
            raise UsageError(
                f"--patience {self.patience} is less than --eval-every {self.eval_every}, the "
                "steps from look to look: give at least that, or 0 for none"
            )
        refuse_name(self.run, self.runs)
        self.seed_list()


def _meant(seeds: str) -> str:
    """0-4 and 0:4 are 0..4."""
    found = re.fullmatch(r"\s*(\d{1,3})\s*(?:-|–|:|\.{1,3}|to)\s*(\d{1,3})\s*", seeds)
    first, last = (int(found[1]), int(found[2])) if found else (0, 4)
    return f"{first}..{last}" if first < last else "0..4"


def _listed(text: str) -> list[str]:
    """A comma-separated text, taken apart."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _refuse_missing(views: list[str], data: str) -> None:
    usual = {} if views else {"VIEWS": "clip,dinov2"}
    if not data:
        usual["DATA"] = "photos/"
    if usual:
        told = "is missing; name it" if len(usual) == 1 else "are missing; name both"
        raise UsageError(f"{' and '.join(usual)} {told}", instead=dict(usual))


def refuse_name(run: str, runs: str) -> None:
    """Raise UsageError for what is no name of a run."""
    if not NAME_OF_A_RUN.fullmatch(run):
        better = re.sub(r"[^\w.-]+", "-", Path(run).name).lstrip(".")
        raise UsageError(
            f"RUN={run}: a run's name is a folder's name below {runs}/: letters, digits, '-', '_' "
            "and '.'",
            instead={"RUN": better} if better else None,
        )


def _refuse_unknown(given: str, methods: list[str]) -> None:
    for method in methods:
        if method not in METHODS:
            near = nearest(method, METHODS)
            better = [near if name == method else name for name in methods]
            told = did_you_mean(method, METHODS)
            raise UsageError(
                f"METHOD={given}: there is no method {method!r}{told}",
                instead={"METHOD": ",".join(dict.fromkeys(better)) if near else None},
            )


def _refuse_twice(word: str, given: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"{word}={given}: {name!r} stands there twice; name each once",
                instead={word: ",".join(dict.fromkeys(names))},
            )


def refuse_beyond_limits(settings: Any) -> None:
    """Raise UsageError for a number that is not as its field says, or not finite."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        limit = _missed(value, field.metadata)
        if limit:
            raise UsageError(f"{flag_of(field.name)} must be {limit}, found {value}")


def _missed(value: Any, limits: Mapping[str, Any]) -> str:
    """The limit that a value is beyond; '' where it is within all."""
    for word, side in (("least", -1), ("most", 1)):
        if word in limits and side * (value - limits[word]) > 0:
            return f"at {word} {limits[word]}"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if "positive" in limits and value <= 0:
        return "positive"
    return "in [0, 1)" if "share" in limits and not 0 <= value < 1 else ""


def choices_of(name: str) -> tuple[str, ...]:
    """The words that a setting takes; () for one that takes any."""
    kind = typing.get_type_hints(TrainConfig)[name]
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def make_command(settings: Mapping[str, Any], always: Collection[str] = ()) -> str:
    """The `make train` of these settings (names of TrainConfig's fields): words for what has one,
    ARGS for what differs from its default, or is named in `always`."""
    usual = dataclasses.asdict(TrainConfig())
    words, flags = {}, []
    for name in WORDS:
        value = str(settings.get(name, ""))
        if value not in ("", str(usual[name])):
            words[name.upper()] = value
    for name, value in settings.items():
        if name in WORDS or name not in usual:
            continue
        if value == usual[name] and name not in always:
            continue
        if isinstance(value, bool):
            flags.append(flag_of(name if value else f"no_{name}"))
        else:
            flags += [flag_of(name), str(value)]
    if flags:
        words["ARGS"] = shlex.join(flags)
    return line_of("train", words)


NOT_OF_A_SWEEP = ("run", "device", "gpus", "grid", "at_once", "json", "dry_run")


def command_of(settings: dict[str, Any], record: dict[str, Any]) -> str:
    """What trains and tests one record of a sweep. What the grid varied stands there in any case:
    where the default was the best, it was not forgotten."""
    asked = {**settings, **record["settings"], "method": record["method"]}
    kept = {name: value for name, value in asked.items() if name not in NOT_OF_A_SWEEP}
    return make_command(kept, record["settings"])
