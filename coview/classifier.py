"""Meta Co-Training as a scikit-learn classifier: the training of `make train` and the predictions
of `make predict`, on arrays in memory.

    model = MetaCoTrainingClassifier().fit([clip_nD, dinov2_nD], y)         y = -1: no label
    model.predict([clip_mD, dinov2_mD])
    model.predict_proba(…), model.predict_views(…), model.agreement(…)

    MetaCoTrainingClassifier(views=[512, 768]).fit(wide_nD, y)
                    the same from one array, for pipelines and cross-validation
    ProbeClassifier().fit(clip_nD, y)
                    one view, one probe

Nothing is printed unless `verbose`; temporary files go to a folder that is gone when `fit` ends.
"""

import contextlib
import hashlib
import logging
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_consistent_length, check_random_state

# pyrefly: ignore[missing-module-attribute]  its stubs are of a scikit-learn before 1.6
from sklearn.utils.validation import check_is_fitted, validate_data

from base.console import counted, rendering
from base.errors import UsageError, did_you_mean
from cache_specs.items import Items
from coview.labels import (
    as_before_where_it_fails,
    encode,
    encode_alike,
    hold_out,
    plainly,
    share_out,
    value_errors,
)
from predict.from_run import experts_of, left_out, without_said
from predict.model import Model, Opinions, ViewRecord
from train.algorithm.peers import LocalPeers, choose_device
from train.config import BY_LABELS, TrainConfig
from train.data.folds import with_folds
from train.data.reader import Cache
from train.data.splits import Split
from train.jobs import graphs_of, train_method
from train.methods import METHODS, with_model
from train.run.log import Console, Ignore, Listener, Listeners
from train.run.probe_files import read_tensors
from train.run.scoring import out_of_fold
from train.run.session import Session

log = logging.getLogger(f"coview.{__name__}")
DTYPES = (np.float32, np.float16)  # of rows: these stay as they are, all others become the first
NEVER, MOST = 10**9, 2**31  # steps between checkpoints; of seeds
SETTINGS = (
    "lr",
    "weight_decay",
    "hidden",
    "layers",
    "members",
    "dropout",
    "batch_labelled",
    "batch_unlabelled",
    "warmup",
    "cotrain",
    "temperature",
    "patience",
    "eval_every",
)


class History(Ignore):
    """Keeps what metrics.jsonl would hold."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def tell(self, record: dict[str, Any]) -> None:
        self.records.append(record)


class CoviewClassifier(ClassifierMixin, BaseEstimator):
    """What both classifiers share. A subclass says how its X becomes one array a view: `_views`."""

    def __init__(  # noqa: PLR0913  scikit-learn's convention: every setting is a parameter
        self,
        *,
        method: str = "supervised",
        validation_fraction: float | None = None,
        seeds: int = 1,
        lr: float = 3e-4,
        weight_decay: float = 0.0,
        hidden: int = 256,
        layers: int = 2,
        members: int = 1,
        dropout: float = 0.2,
        batch_labelled: int = 64,
        batch_unlabelled: int = 128,
        warmup: int = BY_LABELS,
        cotrain: int = BY_LABELS,
        temperature: float = 0.5,
        patience: int = 0,
        eval_every: int = 20,
        device: str = "auto",
        random_state: Any = None,
        as_class: Sequence[str] = (),
        verbose: bool = False,
    ) -> None:
        self.method = method
        self.validation_fraction = validation_fraction
        self.seeds = seeds
        self.lr = lr
        self.weight_decay = weight_decay
        self.hidden = hidden
        self.layers = layers
        self.members = members
        self.dropout = dropout
        self.batch_labelled = batch_labelled
        self.batch_unlabelled = batch_unlabelled
        self.warmup = warmup
        self.cotrain = cotrain
        self.temperature = temperature
        self.patience = patience
        self.eval_every = eval_every
        self.device = device
        self.random_state = random_state
        self.as_class = as_class
        self.verbose = verbose

    @as_before_where_it_fails
    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> Self:
        """Train on the rows of X: those with a label, and those without. X_val, y_val: labelled
        rows that choose among the training's steps and fit the temperature; without them
        see `validation_fraction`. Raises ValueError."""
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        if (X_val is None) != (y_val is None):
            missing = "X_val" if X_val is None else "y_val"
            raise ValueError(
                f"X_val and y_val belong together, and {missing} is missing: give both or neither"
            )
        emb_V = self._rows(X, reset=True)
        check_consistent_length(emb_V[0], y)
        label, self.classes_ = encode(y, as_class=self.as_class)
        if len(self.classes_) < 2:
            raise ValueError(
                f"there is only one class, {self.classes_.tolist()[0]!r}, among the labelled rows; "
                "training needs at least two classes"
            )
        seed = self._seed()
        if X_val is None:
            split = self._split(emb_V, label, seed)
            self.validation_rows_ = np.empty(0, np.int64) if split.folds else split.val
        else:
            more_V = self._rows(X_val, reset=False)
            check_consistent_length(more_V[0], y_val)
            label_val, _ = encode(y_val, self.classes_, self.as_class)
            split = _split(
                label, np.arange(len(label)), len(label) + np.flatnonzero(label_val >= 0)
            )
            emb_V = [np.concatenate(both) for both in zip(emb_V, more_V, strict=True)]
            label = np.concatenate([label, label_val])
            self.validation_rows_ = np.empty(0, np.int64)
        self._train(emb_V, label, split, seed)
        return self

    def _split(self, emb_V: list[np.ndarray], label: np.ndarray, seed: int) -> Split:
        """Without a `validation_fraction` all labelled rows train, and choose by what trainings
        without their labels say of them; otherwise that share of them is held out."""
        fraction, every = self.validation_fraction, np.arange(len(label))
        if fraction is None:
            whole = _split(label, every, every[:0])
            split = with_folds(whole, label, _contents(emb_V, label), seed)
        elif 0 <= fraction < 1:
            val = hold_out(label, fraction, seed)
            split = _split(label, np.setdiff1d(every, val), val)
        else:
            raise ValueError(f"validation_fraction={fraction!r} must be in [0, 1), or None")
        if fraction != 0 and not len(split.val):
            warnings.warn(
                "every class has so few labelled rows that none can be left out: nothing is "
                "chosen, the last step is kept, and the probabilities are not calibrated. Give "
                "X_val and y_val, or more labels",
                UserWarning,
                stacklevel=4,
            )
        return split

    def _train(self, emb_V: list[np.ndarray], label: np.ndarray, split: Split, seed: int) -> None:
        names = [f"view{number}" for number in range(len(emb_V))]
        config = self._config(names, split, seed)
        cache = _in_memory(names, emb_V, label, [str(name) for name in self.classes_])
        splits = [split] * self.seeds
        device = self._device()
        history = History()
        listener: Listener = history
        if self.verbose:
            listener = Listeners(history, Console(config.log_every_s))
        with contextlib.ExitStack() as until:
            if self.verbose:
                until.enter_context(rendering())
            folder = Path(until.enter_context(tempfile.TemporaryDirectory(prefix="coview-")))
            until.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor writes
            log.info(
                f"{self.method}: {len(split.labelled):,} rows with a label, "
                f"{len(split.unlabelled):,} without, {len(split.val):,} for validation; "
                f"{counted(len(names), 'view')}, {counted(len(splits), 'seed')}, on {device}"
            )
            try:
                work = cache, splits, [self.method], folder, device
                stop = threading.Event()
                alone = Session(*work, LocalPeers(len(names)), listener, stop)
                train_method(self.method, config, alone)
            finally:
                graphs_of.cache_clear()  # it would keep X alive
            model = self._trained(folder, config, cache, splits, device)
            if len(split.val) and not split.folds:
                model = model.calibrated([emb_ND[split.val] for emb_ND in emb_V], label[split.val])
        self.model_ = model
        self.history_, self.n_iter_ = history.records, history.records[-1]["step"]
        log.info(f"{self.method}: trained, {counted(self.n_iter_, 'step')}")

    def _trained(
        self,
        folder: Path,
        config: TrainConfig,
        cache: Cache,
        splits: list[Split],
        device: torch.device,
    ) -> Model:
        """The model whose tensors the training has left in the folder, at the temperature of the
        rows that were left out of a training, where there are any."""
        method, probes, pool = self.method, [], {}
        for name in ["concat"] if method == "concat" else cache.names:
            probes.append(read_tensors(folder, method, name, device)[0])
        experts, weight_ME = [], None
        if METHODS[method].graphs:
            pool, _ = read_tensors(folder, method, "pool", device)
            experts, weight_ME = experts_of(cache, splits, pool, probes, device), pool["weight"]
        views = []
        for name, emb_ND in zip(cache.names, cache.emb, strict=True):
            views.append(ViewRecord(name, emb_ND.shape[1], {}, "", "", 0))
        model = Model(
            views,
            cache.items.classes,
            method,
            config.seed_list(),
            config.joint,
            [without_said(tensors) for tensors in probes],
            experts,
            weight_ME,
            temperature=1.0,
            about={},
        )
        if not splits[0].folds:
            return model
        said = out_of_fold(METHODS[method], probes, pool, config.joint)
        out = left_out(said, splits, concat=method == "concat")
        return model.at_best(out.log_joint_nC, cache.items.label[out.rows])

    def _config(self, names: list[str], split: Split, seed: int) -> TrainConfig:
        """The settings as `make train` has them. Raises ValueError for those that cannot be
        meant."""
        self._check_method(len(names), len(split.unlabelled))
        if not isinstance(self.seeds, int | np.integer) or self.seeds < 1:
            raise ValueError(f"seeds={self.seeds!r} must be a whole number, at least 1")
        if seed + self.seeds > MOST:
            raise ValueError(
                f"random_state={seed} and the {self.seeds - 1} seeds after it must be below 2**31"
            )
        config = TrainConfig(
            views=",".join(names),
            data="memory",
            method=self.method,
            seeds=f"{seed}..{seed + self.seeds - 1}",
            checkpoint_every=NEVER,
            **{name: getattr(self, name) for name in SETTINGS},
        )
        try:
            config.check()
        except UsageError as error:
            raise ValueError(str(error)) from None
        return config

    def _check_method(self, views: int, unlabelled: int) -> None:
        if self.method not in with_model():
            near = did_you_mean(f"{self.method}", with_model())
            raise ValueError(f"there is no method {self.method!r} that keeps a model{near}")
        if views < METHODS[self.method].views:
            raise ValueError(f"method={self.method!r} needs at least two views, found {views}")
        if METHODS[self.method].unlabelled and not unlabelled:
            other = "supervised-graph" if views > 1 else "supervised"
            raise ValueError(
                f"method={self.method!r} learns from rows without a label, and every row has one: "
                f"add rows with y = -1, or take method={other!r}"
            )

    def _device(self) -> torch.device:
        """Raises ValueError where there is no such one."""
        try:
            return choose_device(f"{self.device}", 1)
        except UsageError as error:
            raise ValueError(str(error).replace("DEVICE=", "device=")) from None

    def _seed(self) -> int:
        """A whole number is the seed of `make train SEEDS=…`; anything else is asked for one.
        Raises ValueError."""
        given = self.random_state
        if isinstance(given, bool) or not isinstance(given, int | np.integer):
            return check_random_state(given).randint(2**30)
        if not 0 <= given < MOST:
            raise ValueError(
                f"random_state={given!r} must be in [0, 2**31), as SEEDS of `make train`"
            )
        return int(given)

    def _views(self, X: Any, reset: bool) -> list[np.ndarray]:
        """One array a view. reset: these are the rows of a fit, which later ones must be like.
        Raises ValueError."""
        raise NotImplementedError

    def _rows(self, X: Any, reset: bool) -> list[np.ndarray]:
        """One finite array a view. Raises ValueError."""
        try:
            return self._views(X, reset)
        except ValueError as error:
            raise plainly(error) from None

    def opinions(self, X: Any) -> Opinions:
        """What the joint and each view think of the rows: joint_nC and views_VnC probabilities,
        agreement_n."""
        check_is_fitted(self)
        return value_errors(self.model_, self._rows(X, reset=False))

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, C) probabilities of `classes_`: the joint's, the geometric mean over the seeds, which
        has the temperature that fits the validation rows."""
        return self.opinions(X).joint_nC

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the most probable class of each row."""
        choice_n = self.opinions(X).choice_n
        return self.classes_[choice_n]

    def predict_views(self, X: Any) -> np.ndarray:
        """(V, n) what each view's own probe would say alone; without rows for a method with one
        probe for all views (concat)."""
        choice_Vn = self.opinions(X).views_VnC.argmax(2)
        return self.classes_[choice_Vn]

    def agreement(self, X: Any) -> np.ndarray:
        """(n,) the share of the views whose first choice is the joint's: where it is low, ask a
        person. NaN for a method with one probe for all views."""
        return self.opinions(X).agreement_n

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy on the rows that have a label."""
        opinions = self.opinions(X)
        check_consistent_length(opinions.joint_nC, y)
        label, classes = encode_alike(y, self.classes_, self.as_class)
        known_n = label >= 0
        right_n = self.classes_[opinions.choice_n] == classes[label]
        weights = None if sample_weight is None else np.asarray(sample_weight)[known_n]
        return float(np.average(right_n[known_n], weights=weights))


def _split(label: np.ndarray, train: np.ndarray, val: np.ndarray) -> Split:
    """Of the rows `train`, those with a label and those without; nobody is tested."""
    known = label[train] >= 0
    return Split(train[known], train[~known], val, np.empty(0, np.int64))


def _contents(emb_V: list[np.ndarray], label: np.ndarray) -> list[str]:
    """(n,) a digest of each labelled row, so that copies of one are known; '' of the others."""
    found = [""] * len(label)
    for row in np.flatnonzero(label >= 0).tolist():
        whole = b"".join(emb_nD[row].tobytes() for emb_nD in emb_V)
        found[row] = hashlib.sha256(whole).hexdigest()
    return found


def _in_memory(
    names: list[str], emb_V: list[np.ndarray], label: np.ndarray, classes: list[str]
) -> Cache:
    """Arrays as the training reads them."""
    n = len(label)
    nothing, sizes = [""] * n, np.zeros(n, np.int64)
    items = Items("memory", "memory", nothing, label, nothing, sizes, nothing, classes)
    return Cache(items, names, emb_V, np.ones(n, bool), {}, {}, "")


class MetaCoTrainingClassifier(CoviewClassifier):
    """Probes on several views of the same images, which teach each other on the rows without a
    label.

    views: None (X is a list of one (n, D_v) array a view), or how the columns of one wide X are
    shared out: widths [512, 768], or slices. method: any of `make train` that keeps a model. seeds:
    trainings whose predictions are averaged. random_state: a whole number is their first seed.
    validation_fraction: None: all labelled rows train, and what is selected is selected by what
    trainings without their labels say of them (cross-fitting); otherwise this share of the labelled
    rows of each class (at least one of three) is held out to select by; 0: nothing is selected.
    as_class: words in y that are classes, though they usually mean that there is no label
    ("unknown"). The other parameters are those of `make train`, with the same defaults.
    """

    def __init__(  # noqa: PLR0913  scikit-learn's convention: every setting is a parameter
        self,
        views: Sequence[int | slice] | None = None,
        *,
        method: str = "mct-graph",
        validation_fraction: float | None = None,
        seeds: int = 1,
        lr: float = 3e-4,
        weight_decay: float = 0.0,
        hidden: int = 256,
        layers: int = 2,
        members: int = 1,
        dropout: float = 0.2,
        batch_labelled: int = 64,
        batch_unlabelled: int = 128,
        warmup: int = BY_LABELS,
        cotrain: int = BY_LABELS,
        temperature: float = 0.5,
        patience: int = 0,
        eval_every: int = 20,
        device: str = "auto",
        random_state: Any = None,
        as_class: Sequence[str] = (),
        verbose: bool = False,
    ) -> None:
        super().__init__(
            method=method,
            validation_fraction=validation_fraction,
            seeds=seeds,
            lr=lr,
            weight_decay=weight_decay,
            hidden=hidden,
            layers=layers,
            members=members,
            dropout=dropout,
            batch_labelled=batch_labelled,
            batch_unlabelled=batch_unlabelled,
            warmup=warmup,
            cotrain=cotrain,
            temperature=temperature,
            patience=patience,
            eval_every=eval_every,
            device=device,
            random_state=random_state,
            as_class=as_class,
            verbose=verbose,
        )
        self.views = views

    def _views(self, X: Any, reset: bool) -> list[np.ndarray]:
        self.views_ = self.views if reset else self.views_
        if self.views_ is not None:
            wide_nD = validate_data(self, X, dtype=DTYPES, reset=reset)
            return [wide_nD[:, part] for part in share_out(self.views_, wide_nD.shape[1])]
        if not isinstance(X, list | tuple):
            raise ValueError(
                f"X is one {type(X).__name__}, expected a list of one (n, D) array a view; for one "
                "wide array say how its columns are shared out: views=[width, width]"
            )
        emb_V = []
        for number, x_nD in enumerate(X):
            emb_V.append(check_array(x_nD, dtype=DTYPES, input_name=f"X[{number}]"))
        check_consistent_length(*emb_V)
        widths = [x_nD.shape[1] for x_nD in emb_V]
        if reset:
            self.widths_, self.n_features_in_ = widths, sum(widths)
        elif widths != self.widths_:
            raise ValueError(
                f"X has views of {widths} features, but {type(self).__name__} was fitted with "
                f"{self.widths_}"
            )
        return emb_V


class ProbeClassifier(CoviewClassifier):
    """One probe on one view, the (n, D) array X. The parameters are those of
    MetaCoTrainingClassifier; methods for one view are supervised, supervised-graph, self-training,
    fixmatch and mpl."""

    def _views(self, X: Any, reset: bool) -> list[np.ndarray]:
        return [validate_data(self, X, dtype=DTYPES, reset=reset)]
