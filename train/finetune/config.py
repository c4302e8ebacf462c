"""The settings of `make finetune`: fixed ones, so that no label need be kept back to choose by.
Rank, alpha, batch, weight decay and the rate of `lora` are CLIP-LoRA's (arXiv 2405.18541)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from base.errors import UsageError
from train.algorithm.ranks import refuse_ranks
from train.config import BY_LABELS, TrainConfig, limited, refuse_beyond_limits, refuse_name
from train.data.apart import Apart, apart_of

# of the learning rate, by MODE: of low-rank factors, of norms, of the last block
RATES = {"lora": 2e-4, "norms": 1e-3, "full": 1e-5}
STEPS, LEAST, MOST = 100, 300, 1600  # for each label a class; and in all
COLLAPSES = 4  # labels a class, below which all parameters are more than can be learnt


@dataclass(frozen=True)
class AskedTuning:
    view: str = ""
    """the view whose backbone is tuned; it must be extracted already"""
    views: str = ""
    """several views instead, comma-separated, which teach each other while they learn"""
    data: str = ""
    """the data set, as it was given to extract"""
    labels: str = "all"
    """labelled training images, as for train: 4 (a class), 10%, all, or a file of keys"""
    val: str = "auto"
    """as for train: what is set apart there is not learnt from here"""
    test: str = "auto"
    """as for train"""
    seeds: str = "0"
    """one seed: of the choice of labels, as for train, of batches and augmentations"""
    mode: Literal["lora", "norms", "full"] = "lora"
    """what learns besides the head: low-rank additions to the queries, keys and values of all
    blocks, the norms' gains and shifts, or all parameters"""
    weights: str | None = None
    """the view's weights, where they are neither in the hub's cache nor beside its TOML file"""
    device: str = "auto"
    """auto, cpu or cuda"""
    gpus: int = limited(1, least=1)
    """processes, each with its own GPU: the views are dealt out to them; more of them than views, a
    multiple, deal out the images of each batch, too"""
    cache: str = "cache"
    """where extract put the embeddings"""
    run: str = ""
    """the name of the run and of the new view; the same name again resumes it; default: the view's
    with -ft"""


@dataclass(frozen=True)
class TuningSettings:
    GROUP: ClassVar[str] = "tuning"

    rank: int = limited(2, least=1)
    """of --mode lora"""
    alpha: float = limited(1.0, positive=True)
    """of --mode lora: what is added is multiplied by alpha / rank"""
    lr: float = limited(0.0, least=0)
    """learning rate of AdamW; 0: 2e-4 (lora), 1e-3 (norms), 1e-5 (full)"""
    head_lr: float = limited(1e-3, positive=True)
    """learning rate of the head"""
    layer_decay: float = limited(0.75, positive=True, most=1)
    """of --mode full: each block's learning rate is so many times that of the next"""
    weight_decay: float = limited(0.01, least=0)
    """decoupled weight decay, but of norms and biases"""
    clip: float = limited(1.0, positive=True)
    """largest norm of a gradient"""
    steps: int = limited(BY_LABELS, least=BY_LABELS)
    """-1: 100 for each label a class (the mean), at least 300, at most 1,600"""
    warmup: float = limited(0.1, share=True)
    """share of the steps over which the learning rates rise; then they fall as a cosine"""
    ema: float = limited(0.0, share=True)
    """decay of the moving average of what learns, which then is kept; 0: none"""
    batch: int = limited(32, least=1)
    """images a step"""
    chunk: int = limited(0, least=0)
    """images in memory at a time, with the gradient of the whole batch; 0: as many as fit"""
    checkpointing: bool = False
    """of one view: forget what is inside of the blocks and compute it again for the gradient, in a
    third more time and far less memory (several views forget what --chunk leaves out)"""
    checkpoint_every: int = limited(100, least=1)
    """steps between checkpoints; a killed run loses at most these"""
    threads: int = 0
    """CPU threads; 0: as torch has it"""


@dataclass(frozen=True)
class PictureSettings:
    GROUP: ClassVar[str] = "pictures"

    crop: float = limited(0.8, positive=True, most=1)
    """a random part of the picture, at least this share of its area; 1: the picture as extract
    shows it"""
    flip: bool = False
    """also mirror half of the pictures: not where left and right differ, as in letters"""
    randaugment: bool = False
    """also RandAugment (Cubuk et al. 2020), as torchvision has it"""
    mixup: float = limited(0.0, least=0)
    """mix pictures and labels by a share drawn from Beta(mixup, mixup); 0: not"""


@dataclass(frozen=True)
class TuningRun:
    GROUP: ClassVar[str] = "run"

    runs: str = "runs"
    """where runs go"""
    root: str = "data"
    """where torchvision's data sets are"""
    dry_run: bool = False
    """say what would learn, how much memory and time it would take; write nothing"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""


OF_THE_MACHINE = ("chunk", "checkpointing", "checkpoint_every", "threads")
PLACES = ("run", "gpus", "cache", "weights")
PLACES += tuple(field.name for field in dataclasses.fields(TuningRun))


@dataclass(frozen=True)
class FinetuneConfig(TuningRun, PictureSettings, TuningSettings, AskedTuning):
    """Tune the backbone of one view on few labels, and write it as a view of its own."""

    def check(self) -> None:
        """Raise UsageError for what can be seen without reading any data."""
        views = self.view_list()
        usual = {} if views else {"VIEW": "clip"}
        if not self.data:
            usual["DATA"] = "photos/"
        if usual:
            told = "is missing; name it" if len(usual) == 1 else "are missing; name both"
            raise UsageError(f"{' and '.join(usual)} {told}", instead=dict(usual))
        self._refuse_views(views)
        self._refuse_gpus(views)
        refuse_name(self.run, self.runs)
        refuse_beyond_limits(self)
        if not self.steps:
            raise UsageError("--steps must be positive, found 0; leave it out")
        self.seed()
        self.apart()

    def _refuse_views(self, views: list[str]) -> None:
        """Raise UsageError for what does not go together."""
        if self.view and self.views:
            raise UsageError(
                f"VIEW={self.view} and VIEWS={self.views}: the one tunes a view, the other several "
                "that teach each other; take one of the two",
                instead={"VIEW": None},
            )
        if len(set(views)) < len(views):
            once = ",".join(dict.fromkeys(views))
            raise UsageError(f"VIEWS={self.views}: name each view once", instead={"VIEWS": once})
        if self.view and len(views) > 1:
            raise UsageError(
                f"VIEW={self.view} are several views; to tune them together, name them in VIEWS",
                instead={"VIEW": None, "VIEWS": self.view},
            )
        for flag, given in (("--mixup", self.mixup), ("--checkpointing", self.checkpointing)):
            if given and len(views) > 1:
                raise UsageError(f"{flag} is of one view alone: leave it out, or tune one by one")

    def _refuse_gpus(self, views: list[str]) -> None:
        """Raise UsageError unless views and images can be dealt out to so many processes."""
        refuse_ranks(self.gpus, len(views))
        replicas = self.replicas()
        if self.batch % replicas:
            fitting = -(-self.batch // replicas) * replicas
            raise UsageError(
                f"GPUS={self.gpus} deal out the images of each batch in {replicas} equal parts, "
                f"and --batch {self.batch} has none; use --batch {fitting}",
                instead={"--batch": str(fitting)},
            )
        if self.mixup and replicas > 1:
            raise UsageError(
                "--mixup is of one process for each view: leave it out, or type GPUS=1",
                instead={"GPUS": "1"},
            )

    def view_list(self) -> list[str]:
        """The views that are tuned."""
        return [name.strip() for name in (self.view or self.views).split(",") if name.strip()]

    def replicas(self) -> int:
        """Processes that have the same view, each with its part of a batch."""
        return max(1, self.gpus // len(self.view_list()))

    def part(self) -> int:
        """Images of a batch that one process has."""
        return self.batch // self.replicas()

    def seed(self) -> int:
        """Raises UsageError."""
        seeds = TrainConfig(seeds=self.seeds).seed_list()
        if len(seeds) > 1:
            raise UsageError(
                f"SEEDS={self.seeds}: a backbone learns the labels of one seed; to tune others, "
                "type the command once for each",
                instead={"SEEDS": str(seeds[0])},
            )
        return seeds[0]

    def apart(self) -> Apart:
        """VAL and TEST. Raises UsageError."""
        return apart_of({"val": self.val, "test": self.test})

    def settled(self, labelled: int, classes: int) -> "FinetuneConfig":
        """With the steps and the learning rate that stand for as many as are needed."""
        steps = self.steps
        if steps == BY_LABELS:
            steps = min(MOST, max(LEAST, math.ceil(STEPS * labelled / classes)))
        return dataclasses.replace(self, steps=steps, lr=self.lr or RATES[self.mode])

    def told(self) -> dict[str, Any]:
        """What the file of the tuned view says of it: nothing of this machine."""
        kinds = (TuningSettings, PictureSettings)
        names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
        values = {name: getattr(self, name) for name in names if name not in OF_THE_MACHINE}
        return {"labels": self.labels, "seed": self.seed(), **values}

    def settings(self) -> dict[str, Any]:
        """All that can change the numbers."""
        values = dataclasses.asdict(self)
        for name in PLACES:
            del values[name]
        return values
