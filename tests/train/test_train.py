"""Training as a user runs it: splits, streams of rows, layouts, resume, label leaks, errors."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import threading
import time
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Made, write_view
from safetensors.numpy import load_file
from sklearn.metrics import balanced_accuracy_score, f1_score
from training import _is_rank, config, flags, outcome, start, train_on_ranks, typed, wait_for

from base import durable, locks
from base.console import NOTE
from base.errors import (
    DataQualityError,
    IntegrityError,
    PreemptedError,
    StaleError,
    StorageError,
    UsageError,
)
from cache_specs.alike import alike
from cache_specs.items import Items
from cache_specs.lookup import find_dataset
from cache_specs.sources import source_path
from cache_specs.succession import write_items
from coview.chain import next_step
from coview.chain import train as train_and_report
from extract.data.datasets import build_items, open_dataset
from train import loop, phases
from train.algorithm import probe
from train.algorithm.batches import UNLABELLED, Passes, uniforms
from train.algorithm.evaluate import ece, joint, metrics
from train.algorithm.paired import difference
from train.algorithm.peers import LocalPeers
from train.command import run
from train.config import TrainConfig
from train.data.apart import BEFORE
from train.data.feed import Feeder
from train.data.reader import Cache
from train.data.splits import Split, assign, make_split
from train.jobs import experiments, make_jobs, train_method
from train.loop import pseudo_labels, tally
from train.methods import METHODS
from train.phases import Job, after_warmup, phases_of
from train.rehearse import rehearse
from train.run import checkpoint
from train.run.checkpoint import Standing
from train.run.log import Listeners
from train.run.reading import (
    read,
    warn_of_large_splits,
    warn_of_missing_classes,
    warn_of_training_copies,
)
from train.run.session import Session
from train.run.summary import against, meaning, summary_table, told_apart, undecided

YOUNG = ("unlearnt", "select", "told_apart", "sha256")  # what summaries of before do not have


def outcome_of(training, settings: TrainConfig) -> dict[str, object]:
    """What a run leaves, once it is through."""
    training(settings)
    return outcome(Path(settings.runs) / settings.run)


# ---------------------------------------------------------------- which rows


def test_labelled_rows_are_stratified_nested_and_seeded(made: Made) -> None:
    ok = np.ones(len(made.items), bool)
    splits = {n: make_split(made.items, ok, str(n), 0) for n in (1, 3, 4)}
    assert (np.bincount(made.items.label[splits[3].labelled]) == 3).all()
    assert set(splits[1].labelled) < set(splits[3].labelled) < set(splits[4].labelled)
    assert not np.array_equal(splits[3].labelled, make_split(made.items, ok, "3", 1).labelled)
    assert np.array_equal(splits[3].val, make_split(made.items, ok, "3", 1).val)
    parts = [splits[3].labelled, splits[3].unlabelled, splits[3].val, splits[3].test]
    assert sorted(np.concatenate(parts)) == list(range(len(made.items)))


def test_a_percentage_is_taken_of_each_class(made: Made) -> None:
    split = make_split(made.items, np.ones(len(made.items), bool), "10%", 0)
    train = np.bincount(made.items.label[(np.array(made.items.split) == "train")])
    assert (np.bincount(made.items.label[split.labelled]) == np.round(train * 0.1)).all()


def test_labels_from_a_file(made: Made, tmp_path: Path) -> None:
    ok = np.ones(len(made.items), bool)
    chosen = make_split(made.items, ok, "2", 5)
    path = tmp_path / "keys.txt"
    path.write_text("".join(f"{made.items.keys[row]}\n" for row in chosen.labelled))
    assert np.array_equal(make_split(made.items, ok, str(path), 0).labelled, chosen.labelled)
    path.write_text("0000x\n")
    with pytest.raises(
        UsageError, match="line 1: 'digits' has no image '0000x'; did you mean '0000'"
    ):
        make_split(made.items, ok, str(path), 0)
    path.write_text("nope.png\n")
    with pytest.raises(
        UsageError, match=r"line 1: 'digits' has no image 'nope.png'; a key looks like '0000'$"
    ):
        make_split(made.items, ok, str(path), 0)
    path.write_text(made.items.keys[chosen.test[0]] + "\n")
    with pytest.raises(UsageError, match="not a labelled training image"):
        make_split(made.items, ok, str(path), 0)


@pytest.mark.parametrize("labels", ["0", "-3", "three", "0%", "101%", "x%"])
def test_nonsense_labels_are_refused(made: Made, labels: str) -> None:
    with pytest.raises(UsageError, match="LABELS="):
        make_split(made.items, np.ones(len(made.items), bool), labels, 0)


def test_missing_splits_are_filled_in_and_given_ones_stand(made: Made) -> None:
    bare = dataclasses.replace(made.items, split=[""] * len(made.items))
    role = assign(bare, apart=BEFORE)
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert abs((role == name).mean() - share) < 0.02
    half = dataclasses.replace(
        made.items, split=["test" if i % 2 else "train" for i in range(len(made.items))]
    )
    assert (
        (assign(half, apart=BEFORE) == "test") == (np.arange(len(made.items)) % 2 == 1)
    ).all() and (assign(half, apart=BEFORE) == "val").any()
    none = dataclasses.replace(
        made.items, label=np.full(len(made.items), -1, np.int32), split=[""] * len(made.items)
    )
    with pytest.raises(
        DataQualityError, match="no usable labelled training image: 0 of 1797 have a label"
    ):
        make_split(none, np.ones(len(none), bool), "all", 0)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 40])
def test_copies_of_an_image_are_drawn_to_one_side(made: Made, most: int) -> None:
    """But for a class that is one image and its copies, which could not be tested at all."""
    rows = np.flatnonzero(made.items.label < 3)
    sha = [f"{made.items.label[row]} {number // most}" for number, row in enumerate(rows)]
    items = dataclasses.replace(
        made.items,
        **{name: [getattr(made.items, name)[row] for row in rows] for name in ("keys",)},
        sha256=sha,
        label=made.items.label[rows],
        size=made.items.size[rows],
        split=[""] * len(rows),
        classes=made.items.classes[:3],
    )
    role, sides = assign(items, apart=BEFORE), {}
    for one, where in zip(sha, role, strict=True):
        sides.setdefault(one, set()).add(where)
    assert all(len(where) == 1 for where in sides.values()) and {*role} == {"train", "val", "test"}
    for label in range(3):
        mine = role[items.label == label]
        assert all(abs((mine == name).sum() - len(mine) // 5) < most for name in ("val", "test"))
    alone = dataclasses.replace(items, sha256=["x"] * len(rows))
    assert {*assign(alone, apart=BEFORE)} == {"train", "val", "test"}


def test_bad_rows_leave_every_split(made: Made) -> None:
    ok = np.arange(len(made.items)) % 3 > 0
    split = make_split(made.items, ok, "3", 0)
    assert ok[np.concatenate([split.labelled, split.unlabelled, split.val, split.test])].all()


def test_draws_differ_between_steps_streams_and_seeds() -> None:
    draws = {
        uniforms(*key, 1)[0] for key in [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 2, 0)]
    }
    assert len(draws) == 5 and uniforms(0, 1, 2, 4)[0] == uniforms(0, 1, 2, 1)[0]


# ---------------------------------------------------------------- scores


def test_methods_are_told_apart_only_beyond_chance() -> None:
    """As many pairs as there are make some difference by chance."""
    chance = np.random.default_rng(0)
    hard_n, draws = chance.random(400), chance.random((7, 5, 400))

    def right(*shares: float, images: int = 400) -> dict[str, np.ndarray]:
        """Methods that are right of the easier images, and of others now and then."""
        found = {}
        for number, share in enumerate(shares):
            score_En = 0.6 * hard_n + 0.4 * draws[number]
            found[f"{number}"] = (score_En < share)[:, :images]
        return found

    assert not told_apart(right(0.5, 0.5, 0.5, 0.5)) and told_apart(right(0.5, 0.7, 0.5))
    assert not told_apart(right(0.5, 0.8, 0.5, images=4)) and told_apart(right(0.5))
    pair, many = right(0.5, 0.56), right(0.5, 0.56, 0.52, 0.52, 0.53, 0.52, 0.51)
    assert told_apart(pair) == (difference(*pair.values()).p < 0.05)
    least = min(difference(a, b).p for a, b in itertools.combinations(many.values(), 2))
    assert told_apart(many) == (least < 0.05 / 21)
    with_fusion = {"supervised": pair["0"], "mct": pair["1"]}
    assert against(with_fusion) == {"mct": difference(pair["1"], pair["0"])}
    assert against(pair) == {}


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ("5", "SEEDS=5 is the one seed 5; 5 are SEEDS=0..4"),
        ("100", "SEEDS=100 is the one seed 100; 100 are SEEDS=0..99"),
        *[(seeds, "") for seeds in ("0", "1", "101", "0..4", "2,3", "5..5")],
    ],
)
def test_one_number_that_may_mean_as_many_seeds_is_said(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture, seeds: str, text: str
) -> None:
    read(config(made, tmp_path, seeds=seeds), aloud=True)
    told = [line for line in caplog.records if line.getMessage().startswith("SEEDS=")]
    assert [line.getMessage() for line in told] == ([text] if text else [])
    assert all(line.levelno == NOTE for line in told)
    caplog.clear()
    read(config(made, tmp_path, seeds=seeds))
    assert "SEEDS=" not in caplog.text


def test_a_table_that_cannot_tell_says_so_first(made: Made, tmp_path: Path, capsys) -> None:
    """In words, with the images that judge; and nothing else pretends otherwise."""
    summary = run(config(made, tmp_path))
    told = summary_table(summary).splitlines()
    assert summary["told_apart"] in (True, False) and "against" in summary["methods"]["mct"]
    few = {**summary, "told_apart": False, "rows": {**summary["rows"], "test": 9}}
    lines = summary_table(few).splitlines()
    assert re.fullmatch(
        r"THIS TABLE CANNOT TELL THE METHODS APART: no difference is beyond chance\. 9 test images "
        r"leave [\d.]+ % in doubt by 2\d\.\d points \(two standard errors\); more labelled images "
        r"tell more",
        lines[1],
    )
    assert not any(line.startswith("so many test images leave") for line in lines)
    more = dict(zip("abcd", itertools.repeat(summary["methods"]["mct"])))
    for count, words in ((2, "chance. 9"), (3, "chance, counting all 3 pairs (Bonferroni). 9")):
        methods = dict(itertools.islice(more.items(), count))
        assert f"no difference is beyond {words} test images" in undecided(
            {**few, "methods": methods}
        )
    decided = summary_table({**summary, "told_apart": True}).splitlines()
    assert any(line.startswith("so many test images leave") for line in decided)
    assert "CANNOT" not in "".join(decided) and len(told) == len(summary_table(few).splitlines())
    capsys.readouterr()
    for apart, words in (
        (False, "it, though nothing shows yet which method is best, type: make"),
        (True, "label images with it, type: make"),
    ):
        path = tmp_path / "a" / "summary.json"
        changed = {name: value for name, value in summary.items() if name != "sha256"}
        path.write_bytes(durable.sealed({**changed, "told_apart": apart}))
        train_and_report(typed(config(made, tmp_path)), {})
        assert words in capsys.readouterr().err


def test_one_seed_and_few_seeds_say_what_their_p_is_worth(made: Made, tmp_path: Path) -> None:
    words = {"0": "one seed does not say: SEEDS=0..4", "0..1": "of fewer than 5 seeds p is too"}
    for number, (seeds, text) in enumerate(words.items()):
        short = config(made, tmp_path, run=f"r{number}", seeds=seeds, warmup=10, cotrain=10)
        lines = summary_table(run(short)).splitlines()
        joint = next(line for line in lines if line.startswith("meta co-training: joint"))
        assert re.search(r"   [+-]\d+\.\d ± \d+\.\d \(p [=<] \d\.\d{3}\)$", joint)
        assert lines[-1].startswith("against late fusion: mean difference") and text in lines[-1]
    assert "fewer" not in meaning(5)


def test_classes_without_labels_are_told_before_training(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Two of ten have none, one has two: what is possible, and what is taken."""
    shutil.copytree(made.cache, tmp_path / "cache")
    label, training = made.items.label.copy(), np.array(made.items.split) == "train"
    label[training & (label >= 8)] = -1
    label[np.flatnonzero(training & (label == 7))[2:]] = -1
    write_items(tmp_path / "cache", dataclasses.replace(made.items, label=label))
    settings = config(made, tmp_path, seeds="0", method="supervised,label-propagation")
    settings = dataclasses.replace(settings, cache=str(tmp_path / "cache"))
    best = 100 * (made.items.label[np.array(made.items.split) == "test"] < 8).mean()
    words = (
        "of 10 classes 2 have no labelled training image: '8', '9'. No model can learn them: on "
        f"the test images no top-1 above {best:.1f} % and no balanced accuracy above 80.0 % is "
    )
    fewer = "LABELS=3: of 10 classes 1 has fewer labelled training images, of which all are "
    rehearse(settings, read(settings, aloud=True, remember=False))
    said = capsys.readouterr().err
    assert words in said and f"{fewer}taken: '7' (2)" in said
    summary = run(settings)
    err, out = capsys.readouterr()[::-1]
    assert err.index(words) < err.index("supervised ") and words in out and fewer in err
    assert summary["labels_text"] == "3 labels a class, fewer of 1 class"
    assert summary["unlearnt"]["classes"] == ["8", "9"] and summary["rows"]["labelled"] == 23
    for found in summary["methods"].values():
        assert 100 * found["joint"]["test_top1"]["mean"] <= best
        assert found["joint"]["test_balanced"]["mean"] <= 0.8


@pytest.mark.parametrize("by", ["top1", "balanced", "f1"])
def test_steps_and_settings_are_chosen_by_what_is_asked_for(
    made: Made, tmp_path: Path, by: str
) -> None:
    """The scores of what is kept are the best that any look saw; scikit-learn's of the written
    predictions."""
    shutil.copytree(made.cache, tmp_path / "cache")
    keep = np.ones(len(made.items), bool)  # a few classes are rare: the measures differ
    keep[np.flatnonzero(made.items.label > 4)[::2]] = False
    label = np.where(keep, made.items.label, -1).astype(np.int32)
    write_items(tmp_path / "cache", dataclasses.replace(made.items, label=label))
    few = config(made, tmp_path, seeds="0", labels="2", select=by, eval_every=2)
    few = dataclasses.replace(
        few, cache=str(tmp_path / "cache"), method="supervised,mct-graph,label-propagation"
    )
    summary = run(few)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    for method in ("supervised", "mct-graph"):
        looks = [json.loads(line)["val"] for line in lines if f'"{method}"' in line]
        found = summary["methods"][method]["joint"][f"val_{by}"]["mean"]
        assert found == pytest.approx(max(look["joint"][by] for look in looks), abs=0.02)
        assert set(looks[0]["joint"]) == {"top1", "nll", by}
    table = pq.read_table(tmp_path / "a" / "predictions.parquet").to_pydict()
    methods, splits = np.array(table["method"]), np.array(table["split"])
    for method, split in itertools.product(summary["methods"], ("val", "test")):
        scores, here = summary["methods"][method]["joint"], (methods == method) & (splits == split)
        truth, said = np.array(table["label"])[here], np.array(table["pred"])[here]
        want = f1_score(truth, said, average="macro")
        assert scores[f"{split}_f1"]["mean"] == pytest.approx(want)
        want = balanced_accuracy_score(truth, said)
        assert scores[f"{split}_balanced"]["mean"] == pytest.approx(want)
    told = "steps and settings were chosen by" in summary_table(summary)
    assert told == (by != "top1") and summary["select"] == by


def test_a_run_of_before_is_shown_with_dashes_and_resumed(made: Made, tmp_path: Path) -> None:
    """Its summary has neither the scores of classes nor differences over images; its settings know
    no choice, its checkpoints another name."""
    settings = config(made, tmp_path)
    summary = run(settings)
    old = {name: value for name, value in summary.items() if name not in YOUNG}
    for found in (old := json.loads(json.dumps(old)))["methods"].values():
        found.pop("against", None)
        for scores in [*found["views"].values(), found["joint"]]:
            for key in [key for key in scores if key.endswith(("_balanced", "_f1"))]:
                del scores[key]
    lines = summary_table(old).splitlines()
    joint = next(line for line in lines if line.startswith("meta co-training: joint"))
    assert joint.split()[-5:-3] == ["–", "–"] and joint.endswith("   –")
    folder = tmp_path / "a"
    config_file = json.loads((folder / "config.json").read_text())
    del config_file["sha256"], config_file["settings"]["select"]
    (folder / "config.json").write_bytes(durable.sealed(config_file))
    assert run(settings) == summary
    with pytest.raises(StaleError, match=r"settings\.select: top1 -> f1"):
        run(dataclasses.replace(settings, select="f1"))


def test_a_checkpoint_of_before_is_gone_on_from(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outcome_of(run, config(made, tmp_path / "whole"))

    def older(standing: Standing) -> dict[str, torch.Tensor]:
        found = tensors(standing)
        found["best_top1"] = found.pop("best_score")
        del found["threads"]
        return found

    tensors, taken = checkpoint._tensors, []
    plain = Listeners.step

    def stopped(self: Listeners, step: int) -> None:
        taken.append(step)
        if len(taken) == 25:
            raise KeyboardInterrupt
        plain(self, step)

    monkeypatch.setattr(checkpoint, "_tensors", older)
    monkeypatch.setattr(Listeners, "step", stopped)
    settings = config(made, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.undo()
    assert outcome_of(run, settings) == whole


def test_a_run_goes_on_with_the_threads_that_it_began_with(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the rule says by then, on another machine, say."""
    taken: list[int] = []

    def seen(count: int) -> AbstractContextManager[None]:
        taken.append(count)
        return nullcontext()

    def stopped(self: Listeners, step: int) -> None:
        if step == 25:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "threads", seen)
    settings = config(made, tmp_path / "cut", threads=0)
    with monkeypatch.context() as begun:
        begun.setattr(Listeners, "step", stopped)
        begun.setattr(phases, "threads_of", lambda *_: 2)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    monkeypatch.setattr(phases, "threads_of", lambda *_: 1)
    run(settings)
    assert taken == [2, 2, 1]  # the first method, the same one again, the second


def test_metrics_against_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, log_loss

    generator = torch.Generator().manual_seed(0)
    logits, y = (
        torch.randn(2, 300, 5, generator=generator, dtype=torch.float64) * 2,
        torch.randint(5, (300,), generator=generator),
    )
    found = metrics(logits, y)
    for e in range(2):
        p = torch.softmax(logits[e], -1).numpy()
        assert found["top1"][e] == pytest.approx(accuracy_score(y, p.argmax(1)))
        assert found["nll"][e] == pytest.approx(log_loss(y, p))
        confidence, correct = p.max(1), p.argmax(1) == y.numpy()
        edges = np.linspace(0, 1, 16)
        want = sum(
            abs(correct[m].mean() - confidence[m].mean()) * m.mean()
            for a, b in itertools.pairwise(edges)
            if (m := (confidence > a) & (confidence <= b)).any()
        )
        assert found["ece"][e] == pytest.approx(want)
    assert torch.equal(joint([logits, logits]), 2 * logits)
    assert float(ece(torch.tensor([[[50.0, 0.0]]]), torch.tensor([0]))[0]) == pytest.approx(0)


# ---------------------------------------------------------------- runs


def test_a_run_leaves_what_it_promises(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    summary = run(config(made, tmp_path))
    folder = tmp_path / "a"
    assert summary == json.loads((folder / "summary.json").read_text())
    assert (
        summary["dataset"] == "digits"
        and summary["views"] == ["pixels", "edges"]
        and summary["labels"] == "3"
        and summary["seeds"] == [0, 1]
    )
    for method in ("supervised", "mct"):
        found = summary["methods"][method]
        for scores in (*found["views"].values(), found["joint"]):
            assert (
                set(scores["test_top1"]) >= {"mean", "std", "n"}
                and scores["test_top1"]["n"] == 2
                and 0.3 < scores["test_top1"]["mean"] <= 1
            )
            assert scores["test_top1"]["std"] == pytest.approx(
                np.std(scores["test_top1"]["values"], ddof=1)
            )
    out = capsys.readouterr().out
    for line in (
        "pixels, supervised",
        "edges, meta co-training",
        "meta co-training: joint",
        "against late fusion",
        "selected on 355 labelled validation images",
    ):
        assert line in out
    for seed in (0, 1):
        assert len((folder / "splits" / f"seed-{seed}.labelled.txt").read_text().split()) == 30
    settings = json.loads((folder / "config.json").read_text())
    assert settings["settings"]["lr"] == 5e-3 and set(settings["fingerprints"]) == {
        "items",
        "labels",
        "pixels",
        "edges",
    }
    assert (
        json.loads((folder / "environment.json").read_text())["versions"]["torch"]
        == torch.__version__.split("+")[0]
    )
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["method"], r["step"]) for r in records] == list(
        itertools.product(("supervised", "mct"), (10, 20, 30, 40))
    )
    assert "feedback" in records[-1] and not list(folder.rglob("*.tmp"))


def plain_forward(p: dict[str, np.ndarray], prefix: str, h: np.ndarray) -> np.ndarray:
    """The probe again, in NumPy."""
    for i in range(2):
        h = h @ p[f"{prefix}w{i}"] + p[f"{prefix}b{i}"]
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5) * p[
            f"{prefix}gain{i}"
        ] + p[f"{prefix}shift{i}"]
        h = np.maximum(h, 0)
    return h @ p[f"{prefix}w2"] + p[f"{prefix}b2"]


def test_predictions_agree_with_the_summary_and_the_probes(made: Made, tmp_path: Path) -> None:
    """Accuracy counted from the rows of predictions.parquet, and again from the
    safetensors by plain NumPy."""
    summary = run(config(made, tmp_path))
    table = pq.read_table(tmp_path / "a" / "predictions.parquet")
    columns = {
        name: np.array(table[name].to_pylist())
        for name in (
            "method",
            "seed",
            "split",
            "label",
            "pred",
            "id",
            "confidence",
            "margin",
            "agreement",
        )
    }
    test = make_split(made.items, np.ones(len(made.items), bool), "3", 0).test
    for method in ("supervised", "mct"):
        for e, seed in enumerate((0, 1)):
            here = (
                (columns["method"] == method)
                & (columns["seed"] == seed)
                & (columns["split"] == "test")
            )
            accuracy = (columns["pred"] == columns["label"])[here].mean()
            assert accuracy == pytest.approx(
                summary["methods"][method]["joint"]["test_top1"]["values"][e]
            )
            assert list(columns["id"][here]) == [made.items.keys[row] for row in test]
            total = 0
            for view in ("pixels", "edges"):
                p = {
                    name: value if name.startswith("input") else value[e]
                    for name, value in load_file(
                        tmp_path / "a" / "probes" / method / f"{view}.safetensors"
                    ).items()
                }
                x = (
                    made.emb[view][test].astype(np.float16).astype(np.float32) - p["input_mean"]
                ) / p["input_std"]
                logits = plain_forward(p, "", x)
                stored = np.stack(table[f"prob_{view}"].to_pylist())[here].astype(np.float32)
                softmax = np.exp(logits - logits.max(1, keepdims=True))
                np.testing.assert_allclose(
                    stored, softmax / softmax.sum(1, keepdims=True), atol=2e-3
                )
                total = total + plain_forward(p, "joint.", x)
            assert (total.argmax(1) == columns["pred"][here]).mean() > 0.995
    assert (
        (columns["margin"] >= 0)
        & (columns["confidence"] <= 1)
        & np.isin(columns["agreement"], (0, 0.5, 1))
    ).all()


def test_a_finished_run_is_shown_not_repeated(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first = run(config(made, tmp_path))
    shown = [line for line in capsys.readouterr().out.splitlines() if "±" in line]
    stamp = (tmp_path / "a" / "summary.json").stat().st_mtime_ns
    assert (
        run(config(made, tmp_path)) == first
        and (tmp_path / "a" / "summary.json").stat().st_mtime_ns == stamp
    )
    again = capsys.readouterr().out
    assert (
        "is finished; another RUN=" in again
        and len(shown) == 8
        and [line for line in again.splitlines() if "±" in line] == shown
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lr": 1e-2}, "settings.lr: 0.005 -> 0.01"),
        ({"seeds": "0..2"}, "settings.seeds"),
        ({"labels": "4"}, "settings.labels: 3 -> 4"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    made: Made, tmp_path: Path, change: dict, field: str
) -> None:
    run(config(made, tmp_path, warmup=2, cotrain=0, method="supervised"))
    with pytest.raises(StaleError, match="made with other settings or data") as caught:
        run(config(made, tmp_path, warmup=2, cotrain=0, method="supervised", **change))
    assert (
        field in str(caught.value)
        and "RUN=a-2" in str(caught.value)
        and caught.value.instead == {"RUN": "a-2"}
    )
    (tmp_path / "a-2").mkdir()
    with pytest.raises(StaleError, match="RUN=a-3"):  # a name that is free
        run(config(made, tmp_path, warmup=2, cotrain=0, method="supervised", **change))


def test_a_run_goes_on_with_the_images_of_then_under_the_name_that_they_have_now(
    tmp_path: Path,
) -> None:
    """An image was added since: DATA=digits is a newer version, and the run's own images
    are called by their folder."""
    old = Made(tmp_path)
    run(config(old, tmp_path / "runs", warmup=2, cotrain=0, method="supervised"))
    (tmp_path / "runs" / "a" / "summary.json").unlink()  # as if it were not finished
    items = dataclasses.replace(
        old.items,
        keys=[*old.items.keys, "x"],
        label=np.append(old.items.label, -1),
        split=[*old.items.split, "unlabelled"],
        size=np.append(old.items.size, 1),
        sha256=[*old.items.sha256, "f" * 64],
    )
    folder = write_items(old.cache, items)
    for name, emb in old.emb.items():
        write_view(folder, old.tomls[name], np.concatenate([emb, emb[:1]]), items.fingerprint)
    # the same images with other labels are another data set's
    other = dataclasses.replace(old.items, name="other", label=np.roll(old.items.label, 1))
    assert write_items(old.cache, other).name == old.dataset.name.replace("digits", "other")
    with pytest.raises(
        StaleError,
        match=(
            r"(?s)fingerprints.items: .*The images that it was made of "
            rf"are DATA={old.dataset.name}\nGive"
        ),
    ):
        run(config(old, tmp_path / "runs", warmup=2, cotrain=0, method="supervised"))
    then = dataclasses.replace(
        config(old, tmp_path / "runs", warmup=2, cotrain=0, method="supervised"),
        data=old.dataset.name,
    )
    assert run(then)["methods"]["supervised"]["joint"]["test_top1"]["n"] == 2
    with pytest.raises(StaleError, match=r"settings.lr: 0.005 -> 0.01\n(?!The images)"):
        run(dataclasses.replace(then, lr=0.01))


@pytest.mark.parametrize(("method", "cotrain"), [("supervised", 60), ("mct", 50)])
def test_the_best_copy_on_validation_is_kept(
    made: Made, tmp_path: Path, method: str, cotrain: int
) -> None:
    """The reported validation accuracy is the best of the curve, which then went down: neither the
    last state nor an alias of it."""
    summary = run(config(made, tmp_path, seeds="1", method=method, lr=0.1, cotrain=cotrain))
    records = [
        json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    ]
    found = summary["methods"][method]
    for name, scores in (
        found["views"].items() if method == "supervised" else [("joint", found["joint"])]
    ):
        curve = [record["val"][name]["top1"] for record in records]
        assert scores["val_top1"]["mean"] == pytest.approx(max(curve)) and curve[-1] < max(curve), (
            curve
        )


def test_the_joint_of_supervised_comes_from_the_best_joint_step(made: Made, tmp_path: Path) -> None:
    """Late fusion is selected as the joint of mct is: its validation accuracy is
    the best of the joint curve."""
    summary = run(config(made, tmp_path, seeds="0", method="supervised", lr=0.1))
    records = [
        json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    ]
    assert summary["methods"]["supervised"]["joint"]["val_top1"]["mean"] == pytest.approx(
        max(record["val"]["joint"]["top1"] for record in records)
    )


def test_a_run_is_not_resumed_on_other_labels_or_splits(made: Made, tmp_path: Path) -> None:
    """Labels may change without making an embedding stale; a run that saw the old ones is
    refused, finished or not."""
    run(config(made, tmp_path, warmup=2, cotrain=0, method="supervised"))
    (tmp_path / "other").mkdir()
    other = Made(tmp_path / "other", [str((label + 1) % 10) for label in made.items.label])
    with pytest.raises(StaleError, match=r"fingerprints\.labels: "):
        run(config(other, tmp_path, warmup=2, cotrain=0, method="supervised"))


def test_mct_needs_unlabelled_images(made: Made, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"LABELS=all leaves no unlabelled image for mct\. Give fewer"
    ):
        run(config(made, tmp_path, labels="all"))


@pytest.mark.parametrize(
    ("copies", "given", "words"),
    [
        (1, [""] * 20, ""),
        (9, [""] * 20, "split that was set apart has 9 of 20 labelled images, more than 20 %"),
        (9, ["train"] * 18 + ["test", "val"], ""),
        (1, ["test"] * 20, ""),
    ],
)
def test_a_drawn_split_that_copies_made_far_too_large_is_said(
    copies: int, given: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    sha = [str(i) for i in range(20)]
    for c in (0, 10):  # of ten images of each class so many are one
        sha[c : c + copies] = [f"{c} alike"] * copies
    label = np.repeat([0, 1], 10)
    size = np.ones(20, np.int64)
    items = Items("x", "table", [str(i) for i in range(20)], label, given, size, sha, ["a", "b"])
    role = assign(items, apart=BEFORE)
    parts = {name: np.flatnonzero(role == name) for name in ("train", "val", "test")}
    split = Split(parts["train"], np.empty(0, np.int64), parts["val"], parts["test"])
    ok = np.ones(20, bool)
    warn_of_large_splits(Cache(items, [], [], ok, {}, {}, "x"), split, BEFORE)
    said = capsys.readouterr().err
    sizes = {name: len(rows) for name, rows in parts.items()}
    assert bool(said) == bool(words), (sizes, said)
    if words:
        largest = max(sizes["val"], sizes["test"])
        assert largest > 8 and words.replace("9 of", f"{largest} of") in said


def test_a_class_that_is_not_tested_is_said(made: Made, capsys: pytest.CaptureFixture) -> None:
    ok = np.ones(len(made.items), bool)
    split = make_split(made.items, ok, "3", 0)
    cache = Cache(made.items, [], [], ok, {}, {}, "digits")
    warn_of_missing_classes(cache, split)
    assert capsys.readouterr().err == ""
    label = made.items.label
    warn_of_missing_classes(
        cache,
        dataclasses.replace(
            split, test=split.test[label[split.test] != 4], val=split.val[label[split.val] > 1]
        ),
    )
    assert capsys.readouterr().err.splitlines() == [
        (
            "warning: of 10 classes 2 have no validation image: '0', '1'. "
            "The validation scores say nothing of them"
        ),
        "warning: of 10 classes 1 has no test image: '4'. The test scores say nothing of it",
    ]


def test_copies_of_test_images_among_the_training_images_are_said(
    made: Made, capsys: pytest.CaptureFixture
) -> None:
    ok = np.ones(len(made.items), bool)
    split = make_split(made.items, ok, "3", 0)
    sha = list(made.items.sha256)
    sha[split.test[0]] = sha[split.unlabelled[0]]
    warn_of_training_copies(
        Cache(dataclasses.replace(made.items, sha256=sha), [], [], ok, {}, {}, "digits"), split
    )
    assert (
        "warning: 1 of 355 test images are byte for byte also training images"
        in capsys.readouterr().err
    )


def test_a_folder_that_is_not_what_was_embedded_is_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    items = build_items(open_dataset(str(folder), tmp_path))
    cache = Cache(items, [], [], np.ones(len(items), bool), {}, {}, str(folder))
    cache.warn_of_drift()
    assert not capsys.readouterr().err
    (folder / items.keys[1]).write_bytes(b"other")
    (folder / items.keys[2]).unlink()
    cache.warn_of_drift()
    err = capsys.readouterr().err
    assert (
        f"warning: of {len(items)} images looked at in {folder}, 2 were moved, "
        "are gone or have changed since they were embedded, "
        f"the first is '{items.keys[1]}'"
        in err
        and f"make extract VIEW=… DATA={folder}" in err
    )
    monkeypatch.setattr("train.data.reader.LOOKED_AT", 3)
    cache.warn_of_drift()
    assert not capsys.readouterr().err  # of the first, the middle and the last one


def test_images_that_are_added_or_moved_hardly_change_who_is_tested() -> None:
    """All are renamed, and 8 get a label: no more than 8 of the others change their side, and
    copies of an image are on one."""
    chance = np.random.default_rng(0)
    label, sha = chance.integers(0, 4, 400).astype(np.int32), [f"{i:064x}" for i in range(400)]
    hidden = chance.choice(400, 100, replace=False)
    first = label.copy()
    first[hidden] = -1
    one = Items(
        "x",
        "folder",
        [f"{i:03d}" for i in range(400)],
        first,
        [""] * 400,
        np.ones(400, np.int64),
        sha,
        list("abcd"),
    )
    then = label.copy()
    then[hidden[8:]] = -1
    order = chance.permutation(400)  # the names of then sort otherwise
    two = Items(
        "x",
        "folder",
        [f"{i:03d}" for i in range(400)],
        then[order],
        [""] * 400,
        np.ones(400, np.int64),
        [sha[i] for i in order],
        list("abcd"),
    )
    before, after = (
        dict(zip(one.sha256, assign(one, apart=BEFORE), strict=True)),
        dict(zip(two.sha256, assign(two, apart=BEFORE), strict=True)),
    )
    assert sum(before[sha[i]] != after[sha[i]] for i in range(400) if i not in hidden) <= 8
    fifth = sum(int((first == c).sum()) // 5 for c in range(4))
    assert [list(before.values()).count(role) for role in ("val", "test")] == [fifth, fifth]
    copied = dataclasses.replace(
        one, sha256=[sha[i // 2] for i in range(400)], label=np.zeros(400, np.int32), classes=["a"]
    )
    assert (
        sum(
            a != b
            for a, b in zip(
                assign(copied, apart=BEFORE)[::2], assign(copied, apart=BEFORE)[1::2], strict=True
            )
        )
        <= 2
    )


def test_a_bad_image_changes_no_other_draw(made: Made) -> None:
    ok = np.ones(len(made.items), bool)
    split = make_split(made.items, ok, "3", 0)
    ok[split.unlabelled[::2]] = False
    assert np.array_equal(make_split(made.items, ok, "3", 0).labelled, split.labelled)


def test_metrics_are_not_cut_before_the_checkpoint_is_known_to_be_good(
    made: Made, tmp_path: Path, command: Callable
) -> None:
    settings = config(made, tmp_path)
    command("train", *flags(settings), env={"COVIEW_FAULT": "kill:1:checkpoint.latest.done"})
    folder = tmp_path / "a" / "checkpoints"
    state, metrics_file = (
        folder / (folder / "LATEST").read_text().strip() / "state.json",
        tmp_path / "a" / "metrics.jsonl",
    )
    good, lines = state.read_bytes(), metrics_file.read_bytes()
    state.write_bytes(good[:50])
    with pytest.raises(IntegrityError, match="is damaged"):
        run(settings)
    assert metrics_file.read_bytes() == lines
    state.write_bytes(good)
    metrics_file.write_bytes(lines[:10])
    with pytest.raises(IntegrityError, match="has 10 bytes, but the checkpoint knows"):
        run(settings)


def test_three_views_and_one(made: Made, tmp_path: Path) -> None:
    summary = run(config(made, tmp_path, "pixels", "edges", "thirds"))
    assert set(summary["methods"]["mct"]["views"]) == {"pixels", "edges", "thirds"}
    one = run(config(made, tmp_path, "pixels", run="one"))
    assert (
        list(one["methods"]) == ["supervised"]
        and "late fusion" not in summary_table(one)
        and "pixels, supervised" in summary_table(one)
    )


@pytest.mark.parametrize("method", ["mct-graph", "concat", "mpl"])
def test_embeddings_kept_on_the_device_give_the_same_bytes(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """What a GPU has in its own memory, the CPU can have in its: batches without unlabelled
    rows, ensembles, predictions."""
    run(config(made, tmp_path / "mapped", method=method, members=2))
    monkeypatch.setattr("train.data.feed.fits", lambda emb, device: True)
    run(config(made, tmp_path / "kept", method=method, members=2))
    kept = outcome(tmp_path / "kept" / "a")
    assert kept == outcome(tmp_path / "mapped" / "a") and any(
        name.startswith("probes") for name in kept
    )


def test_hidden_labels_do_not_matter(made: Made, tmp_path: Path) -> None:
    """All hidden training labels and all test labels drawn anew: the trained bytes are the same."""
    chosen = make_split(made.items, np.ones(len(made.items), bool), "3", 0)
    keys = tmp_path / "keys.txt"
    keys.write_text("".join(f"{made.items.keys[row]}\n" for row in chosen.labelled))
    shown = np.zeros(len(made.items), bool)
    shown[np.concatenate([chosen.labelled, chosen.val])] = True
    noise = np.random.default_rng(0).integers(10, size=len(shown))
    (tmp_path / "other").mkdir()
    other = Made(
        tmp_path / "other",
        [
            str(label if keep else n)
            for label, keep, n in zip(made.items.label, shown, noise, strict=True)
        ],
    )
    assert (other.items.label != made.items.label).mean() > 0.5
    one = run(config(made, tmp_path, labels=str(keys)))
    two = run(config(other, tmp_path, labels=str(keys), run="b"))
    for method in ("supervised", "mct"):
        assert one["methods"][method]["probes"] == two["methods"][method]["probes"]
        assert two["methods"][method]["joint"]["test_top1"]["mean"] < 0.3


def test_bad_rows_are_masked_in_all_views(tmp_path: Path) -> None:
    bad = list(range(0, 1797, 7))
    made = Made(tmp_path, bad=bad)
    summary = run(config(made, tmp_path))
    assert sum(summary["rows"].values()) == 1797 - len(bad)
    assert np.isfinite(summary["methods"]["mct"]["joint"]["test_nll"]["mean"])


# ---------------------------------------------------------------- layouts, in float64


@pytest.mark.parametrize("views", [("pixels", "edges"), ("pixels", "edges", "thirds")])
def test_two_gloo_processes_equal_one_process_to_the_last_bit(
    made: Made, tmp_path: Path, views: tuple[str, ...]
) -> None:
    one = config(made, tmp_path, *views, precision="float64")
    run(one)
    train_on_ranks(dataclasses.replace(one, run="b"), 2)
    first, second = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    assert (
        first.keys() == second.keys()
        and [name for name in first if first[name] != second[name]] == []
    )


# ---------------------------------------------------------------- interruptions


POINTS = [
    "checkpoint.tensors.half",
    "checkpoint.state.rename",
    "checkpoint.rename",
    "checkpoint.latest.rename",
    "checkpoint.latest.done",
    "probe.rename",
    "predictions.half",
    "summary.rename",
    "run.config.rename",
    "run.split.half",
]


@pytest.fixture(scope="session")
def uninterrupted(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole")
    run(config(made, folder))
    return outcome(folder / "a")


def interrupt_and_resume(
    made: Made, folder: Path, command: Callable, plan: str, whole: dict[str, object]
) -> None:
    settings = config(made, folder)
    died = command("train", *flags(settings), env={"COVIEW_FAULT": plan})
    assert died.returncode == -signal.SIGKILL, (plan, died.returncode, died.stderr)
    run(settings)
    found = outcome(folder / "a")
    assert (
        found.keys() == whole.keys()
        and [name for name in whole if found[name] != whole[name]] == []
    ), plan
    assert not list((folder / "a").rglob("*.tmp"))


@pytest.mark.parametrize(
    "plan", ["kill:3:checkpoint.rename", "kill:3:checkpoint.latest.done", "kill:2:probe.rename"]
)
def test_killed_training_resumes_to_the_same_bytes(
    made: Made, tmp_path: Path, command: Callable, uninterrupted: dict, plan: str
) -> None:
    interrupt_and_resume(made, tmp_path, command, plan, uninterrupted)


@pytest.mark.many
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_killed_training_resumes_to_the_same_bytes_at_every_point(
    made: Made, tmp_path: Path, command: Callable, uninterrupted: dict, point: str, number: int
) -> None:
    once = point.split(".")[0] in ("predictions", "summary", "run") and "split" not in point
    interrupt_and_resume(
        made, tmp_path, command, f"kill:{1 if once else number}:{point}", uninterrupted
    )


def test_a_full_disk_is_a_storage_error_and_the_run_resumes(
    made: Made, tmp_path: Path, command: Callable, uninterrupted: dict
) -> None:
    settings = config(made, tmp_path)
    full = command(
        "train", *flags(settings), env={"COVIEW_FAULT": "ENOSPC:2:checkpoint.tensors.half"}
    )
    assert (
        full.returncode == 4
        and "cannot write" in full.stderr
        and "run the same command again" in full.stderr
    )
    run(settings)
    assert outcome(tmp_path / "a") == uninterrupted


def test_sigterm_saves_says_so_and_resumes_to_the_same_bytes(made: Made, tmp_path: Path) -> None:
    settings = config(made, tmp_path, cotrain=200)
    process = start(settings)
    wait_for(tmp_path / "a" / "metrics.jsonl", process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and "the same command goes on from here" in errors
    run(settings)
    run(dataclasses.replace(settings, run="whole"))
    assert outcome(tmp_path / "a") == outcome(tmp_path / "whole")


def test_a_run_has_one_writer(made: Made, tmp_path: Path) -> None:
    run(config(made, tmp_path, warmup=2, cotrain=0, method="supervised", run="b"))
    (tmp_path / "b" / "summary.json").unlink()
    with (
        locks.lock(tmp_path / "b"),
        pytest.raises(StorageError, match=rf"is being written by process {os.getpid()} on"),
    ):
        run(config(made, tmp_path, warmup=2, cotrain=0, method="supervised", run="b"))


def test_a_killed_rank_ends_the_job_in_time_with_code_7(made: Made, tmp_path: Path) -> None:
    """Launched as a user does it. In time: long before the other one would give up waiting."""
    settings = config(made, tmp_path, gpus=2, cotrain=100_000, timeout_s=600.0)
    process = start(settings)
    wait_for(tmp_path / "a" / "metrics.jsonl", process)
    victim = next(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if _is_rank(path, 1, tmp_path)
    )
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 7, errors
    message = errors[errors.index("error:") :]
    assert (
        "rank 1" in message
        and "edges" in message
        and "died at step" in message
        and "goes on from the last checkpoint" in message
    )
    assert not [
        path for path in Path("/proc").glob("[0-9]*/environ") if _is_rank(path, 0, tmp_path)
    ]


# ---------------------------------------------------------------- errors


def test_every_mistake_on_the_command_line_names_the_right_command(
    made: Made, tmp_path: Path
) -> None:
    good = config(made, tmp_path)
    cases = [
        ({"views": ""}, "VIEWS is missing"),
        ({"data": ""}, "DATA is missing"),
        ({"method": "mtc"}, "no method 'mtc'; did you mean 'mct'"),
        ({"views": "clip", "method": "mct"}, "at least two views"),
        ({"views": "clip,clip"}, "VIEWS=clip,clip: 'clip' stands there twice; name each once"),
        ({"method": "mct,mct"}, "METHOD=mct,mct: 'mct' stands there twice"),
        ({"gpus": 3}, "use GPUS=2"),
        ({"gpus": 0}, "use GPUS=1"),
        ({"hidden": 0}, "--hidden must be at least 1"),
        ({"lr": 0.0}, "must be positive"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
        ({"seeds": "a"}, "SEEDS=a: neither"),
        ({"seeds": "3..1"}, "SEEDS=3..1"),
        ({"seeds": "1,1"}, "different seeds"),
        ({"warmup": 0, "cotrain": 0}, "must be positive"),
        ({"run": "../a"}, r"RUN=\.\./a: a run's name is a folder's name"),
    ]
    for change, message in cases:
        with pytest.raises(UsageError, match=message):
            dataclasses.replace(good, **change).check()


@pytest.mark.parametrize(
    ("change", "instead"),
    [
        ({"method": "supervised,mtc"}, {"METHOD": "supervised,mct"}),
        ({"method": "mtc,mct"}, {"METHOD": "mct"}),
        ({"method": "xyzzy"}, {"METHOD": None}),
        ({"run": "runs/a"}, {"RUN": "a"}),
        ({"run": "my run"}, {"RUN": "my-run"}),
        ({"run": ".."}, {}),
        ({"gpus": 3}, {"GPUS": "2"}),
    ],
)
def test_the_change_that_a_message_asks_for_is_known(
    made: Made, tmp_path: Path, change: dict, instead: dict
) -> None:
    with pytest.raises(UsageError) as caught:
        dataclasses.replace(config(made, tmp_path), **change).check()
    assert caught.value.instead == instead


def test_a_command_to_type_again_has_no_run_that_was_made_up(
    made: Made, tmp_path: Path, command: Callable
) -> None:
    views = made.views("pixels", "edges")
    words = (
        "train",
        "--views",
        views,
        "--data",
        "digts",
        "--cache",
        made.cache,
        "--runs",
        tmp_path,
    )
    said = command(*words).stderr
    assert said.splitlines()[-1] == (
        f"Type: make train VIEWS={views} DATA=digits CACHE={made.cache} "
        f"ARGS='--runs {tmp_path} --no-report'"
    )
    assert " RUN=mine " in command(*words, "--run", "mine").stderr.splitlines()[-1]


def test_data_without_labels_are_a_matter_of_the_data(made: Made, tmp_path: Path) -> None:
    """The same code whichever check finds it."""
    shutil.copytree(made.cache, tmp_path / "cache")
    for label, classes, message in (
        (np.full(len(made.items), -1), [], "has no classes"),
        (
            np.zeros(len(made.items)),
            ["one"],
            "has 1 class, 'one'; .*add images of what is no 'one'",
        ),
        (np.full(len(made.items), -1), ["a", "b"], "no usable labelled training image"),
    ):
        write_items(
            tmp_path / "cache",
            dataclasses.replace(made.items, label=label.astype(np.int32), classes=classes),
        )
        with pytest.raises(DataQualityError, match=message):
            run(dataclasses.replace(config(made, tmp_path), cache=str(tmp_path / "cache")))


def test_a_finished_run_says_what_to_type_next(made: Made, tmp_path: Path) -> None:
    settings, rows = config(made, tmp_path, run="a"), {"unlabelled": 9}
    assert (
        next_step(TrainConfig(run="a"), {"methods": {"knn": {}, "mct": {}}, "rows": rows})
        == "make predict RUN=a"
    )
    assert next_step(TrainConfig(run="a"), {"methods": {"knn": {}}, "rows": rows}) == ""
    assert (
        next_step(
            dataclasses.replace(settings, cache="my c"),
            {"methods": {"mct": {}}, "rows": {"unlabelled": 0}},
        )
        == f"make predict RUN=a IMAGES=… CACHE='my c' ARGS='--runs {tmp_path}'"
    )


def test_what_the_cache_lacks_is_named_with_the_command(made: Made, tmp_path: Path) -> None:
    good = config(made, tmp_path)
    cases = [
        ({"data": "digts"}, UsageError, "no dataset 'digts'.*did you mean 'digits'$"),
        (
            {"views": "tiny-clip,tiny-dinov2"},
            UsageError,
            (
                r"no view 'tiny-clip' in .*; there is: edges, pixels, thirds. "
                r"To extract it: make extract VIEW=tiny-clip DATA=digits"
            ),
        ),
        (
            {"views": "tiny-clp,tiny-dinov2"},
            UsageError,
            r"no view 'tiny-clp'\ndigits-\w+ has the views: edges, pixels, thirds$",
        ),
        ({"views": "edgs,pixels"}, UsageError, "no view 'edgs'; did you mean 'edges'\n"),
        (
            {"views": "mine,edges"},
            UsageError,
            r"no view 'mine'\ndigits-\w+ has the views: edges, pixels, thirds$",
        ),
        ({"device": "cuda"}, UsageError, "torch sees no CUDA GPU here; use DEVICE=cpu"),
    ]
    for change, kind, message in cases:
        with pytest.raises(kind, match=message):
            run(dataclasses.replace(good, **change))
    toml = tmp_path / "pixels.toml"
    toml.write_text(made.tomls["pixels"].read_text().replace("bicubic", "bilinear"))
    with pytest.raises(StaleError, match=r"preprocess.interpolation: bicubic -> bilinear"):
        run(dataclasses.replace(good, views=f"{toml},{made.tomls['edges']}"))


def test_two_folders_of_one_base_name_are_not_mixed_up(made: Made, tmp_path: Path) -> None:
    """The cache knows where its images came from; another folder that is called the same is
    refused, not trained on silently."""
    mine, other = tmp_path / "a" / "pets", tmp_path / "b" / "pets"
    mine.mkdir(parents=True)
    other.mkdir(parents=True)
    write_items(
        tmp_path / "cache", dataclasses.replace(made.items, name="pets"), source_path(str(mine))
    )
    assert find_dataset(tmp_path / "cache", str(mine)) == find_dataset(tmp_path / "cache", "pets")
    with pytest.raises(StaleError, match=r"was embedded from .*/a/pets, not from .*/b/pets"):
        find_dataset(tmp_path / "cache", str(other))


def test_a_loss_that_is_not_finite_stops_and_names_the_view(made: Made, tmp_path: Path) -> None:
    with pytest.raises(
        DataQualityError,
        match=r"the loss of view 'pixels' is not finite at step [12] of supervised",
    ):
        run(config(made, tmp_path, lr=1e38))


# ---------------------------------------------------------------- what users do


def test_patience_counts_from_the_beginning_of_each_phase(made: Made, tmp_path: Path) -> None:
    """It ended self-training's second phase at its first look, and kept untrained probes."""
    summary = run(config(made, tmp_path, method="supervised,self-training", patience=20))
    first, second = (
        summary["methods"][method]["joint"]["test_top1"]["mean"]
        for method in ("supervised", "self-training")
    )
    assert second > first - 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 5}, "--patience 5 is less than --eval-every 10"),
        ({"temperature": float("nan")}, "--temperature must be a finite number, found nan"),
        ({"lr": float("inf")}, "--lr must be a finite number"),
        ({"seeds": "0..10000"}, "at most 10,000"),
        ({"method": "concat", "views": "a"}, "METHOD=concat needs at least two views, found a"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    made: Made, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(config(made, tmp_path), **changes).check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"\n\n", "the file names no image; write one key a line, such as '0000'"),
    ],
)
def test_a_file_of_keys_that_holds_none_is_refused(
    made: Made, tmp_path: Path, text: bytes, message: str
) -> None:
    (tmp_path / "keys.txt").write_bytes(text)
    with pytest.raises(UsageError, match=message):
        run(config(made, tmp_path, labels=str(tmp_path / "keys.txt")))


def test_a_file_of_keys_from_windows_is_read(made: Made, tmp_path: Path) -> None:
    chosen = make_split(made.items, np.ones(len(made.items), bool), "2", 0).labelled
    (tmp_path / "keys.txt").write_bytes(
        "".join(f"{made.items.keys[row]}\r\n" for row in chosen).encode()
    )
    assert np.array_equal(
        make_split(
            made.items, np.ones(len(made.items), bool), str(tmp_path / "keys.txt"), 0
        ).labelled,
        chosen,
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("pixels", "pool"), "'pool' is a word of the report's own"),
        (("pixels", "other/pixels"), "'pixels' stands there twice"),
    ],
)
def test_names_of_views_that_would_be_mixed_up_are_refused(
    made: Made, tmp_path: Path, names: tuple[str, str], message: str
) -> None:
    (tmp_path / "other").mkdir()
    for name in ("pool", "other/pixels"):
        (tmp_path / f"{name}.toml").write_text(made.tomls["pixels"].read_text())
    shutil.copytree(made.cache, tmp_path / "cache")
    dataset = next((tmp_path / "cache").glob("digits-*"))
    write_view(dataset, tmp_path / "pool.toml", made.emb["pixels"], made.items.fingerprint)
    views = ",".join(
        str(made.tomls[name] if name == "pixels" else tmp_path / f"{name}.toml") for name in names
    )
    with pytest.raises(UsageError, match=message):
        run(dataclasses.replace(config(made, tmp_path), views=views, cache=str(tmp_path / "cache")))


def test_views_that_are_too_alike_are_warned_of(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert list(alike(["eva01", "clip", "pixels", "blip"])) == [("blip", "eva01")] and not alike(
        ["clip", "dinov2", "no-such-view"]
    )
    monkeypatch.setattr("train.run.reading.alike", lambda names: {tuple(names): "the same network"})
    run(config(made, tmp_path, method="supervised"))
    assert (
        "warning: the views pixels and edges are too alike to teach "
        "each other much: the same network"
    ) in capsys.readouterr().err


def test_with_every_label_known_the_default_leaves_out_what_needs_unlabelled_images(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    everything = config(made, tmp_path, method="", labels="all", seeds="0")
    assert sorted(run(everything)["methods"]) == [
        "label-propagation",
        "supervised",
        "supervised-graph",
    ]
    assert (
        "LABELS=all leaves no unlabelled image for mct-graph: left out" in capsys.readouterr().err
    )
    with pytest.raises(UsageError, match=r"leaves no unlabelled image for mct\. Give fewer"):
        run(dataclasses.replace(everything, run="b", method="supervised,mct"))


@pytest.mark.parametrize(("warmup", "cotrain"), [(0, 500), (100, 500), (7, 23), (5, 10), (5, 3)])
def test_the_rounds_of_cotraining_are_ten_equal_parts(warmup: int, cotrain: int) -> None:
    settings = TrainConfig(warmup=warmup, cotrain=cotrain)
    turns = [0]  # 0 before co-training begins
    for phase in phases_of(METHODS["co-training"], settings):
        turn = phase.opening.keywords["turn"] if phase.unlabelled else 0
        turns += [turn] * (phase.end - phase.first)
    assert (
        set(turns[: warmup + 1]) == {0}
        and turns[warmup + 1] == 1
        and turns[-1] == min(10, 10 * (cotrain - 1) // cotrain + 1)
    )
    lengths = [turns.count(turn) for turn in range(1, 11)]
    assert sum(lengths) == cotrain and max(lengths) - min(lengths) <= 1


def records(folder: Path, method: str) -> list[dict]:
    return [
        record
        for line in (folder / "a" / "metrics.jsonl").read_text().splitlines()
        if (record := json.loads(line))["method"] == method
    ]


@pytest.mark.parametrize("method", ["mct", "fixmatch"])
def test_the_precision_and_coverage_of_the_labels_handed_out_are_those_of_the_rows(
    made, tmp_path, monkeypatch, method
):
    """Against what each step says that it gave, and the labels of rows(seed, step)."""
    seen, given = (
        [],
        config(made, tmp_path, method=method, eval_every=10, threshold=0.3, labels="2"),
    )

    def spy(views, batches, draws, peers, settings):
        done, told = step(views, batches, draws, peers, settings)
        seen.append(
            {
                name: [value.numpy() for value in told[name]]
                for name in ("given", "weight")
                if name in told
            }
        )
        return done, told

    step = phases_of(METHODS[method], given)[-1].step
    monkeypatch.setitem(phases.SCHEDULES, method, after_warmup(spy, strong=method == "fixmatch"))
    run(given)
    _, splits, _ = read(given)
    said = [record for record in records(tmp_path, method) if "pseudo" in record]
    assert (
        len(said) > 1
        and len(seen) == given.cotrain
        and not any(
            "pseudo" in record for record in records(tmp_path, method)[: given.warmup // 10]
        )
    )
    begin = given.warmup
    for record in said:
        steps = range(begin, record["step"])
        for view, name in enumerate(("pixels", "edges")):
            precision, coverage = [], []
            for e, split in enumerate(splits):
                truth = made.items.label[
                    np.concatenate(
                        [
                            Passes(split.unlabelled, e, UNLABELLED)(step, given.batch_unlabelled)
                            for step in steps
                        ]
                    )
                ]
                y = np.concatenate([seen[step - given.warmup]["given"][view][e] for step in steps])
                weight = np.concatenate(
                    [
                        seen[step - given.warmup].get(
                            "weight", {view: np.ones((2, given.batch_unlabelled))}
                        )[view][e]
                        for step in steps
                    ]
                )
                precision.append(weight[y == truth].sum() / weight.sum())
                coverage.append(weight.mean())
            assert record["pseudo"][name] == pytest.approx(
                {"precision": np.mean(precision), "coverage": np.mean(coverage)}, abs=1e-12
            )
        begin = record["step"]
    assert method == "mct" or 0 < said[-1]["pseudo"]["pixels"]["coverage"] < 1


def test_where_no_truth_is_known_there_is_no_precision_and_replicas_count_together():
    job = Job("mct", "mct", types.SimpleNamespace(names=["a", "b"]), LocalPeers(2), ["a", "b"])
    hidden = torch.tensor([[0, 1, -1], [-1, -1, -1]])
    assert pseudo_labels(None, job) == {}
    sums = tally(None, {"labelled": []}, hidden)
    assert sums is None, "a supervised step hands out nothing"
    more = torch.tensor([[-1, -1, 5], [1, -1, 1]])
    sums = tally(sums, {"given": [torch.tensor([[0, 0, 0], [1, 1, 1]]), more]}, hidden)
    sums = tally(sums, {"given": [torch.tensor([[0, 1, 0], [1, 1, 1]]), more]}, hidden)
    assert pseudo_labels(sums, job) == {
        "pseudo": {
            "a": {"precision": 0.75, "coverage": 1.0},
            "b": {"precision": None, "coverage": pytest.approx(0.5)},
        }
    }
    # self-training: the labels of two teachers
    two = torch.tensor([[[0, 1, 0], [1, 1, 1]], [[0, -1, -1], [-1, -1, -1]]])
    sums = tally(None, {"given": [two, two]}, hidden)
    assert pseudo_labels(sums, job)["pseudo"]["b"] == {
        "precision": 1.0,
        "coverage": pytest.approx((4 / 6 + 3 / 6) / 2),
    }


def test_the_views_hand_over_once_a_round(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, plain = [], phases._most_confident

    def noted(*given: object, turn: int) -> Standing:
        turns.append(turn)
        return plain(*given, turn=turn)

    monkeypatch.setattr(phases, "_most_confident", noted)
    run(config(made, tmp_path, method="co-training", warmup=4, cotrain=25))
    assert turns == list(range(1, 11))


def test_no_two_draws_have_one_stream() -> None:
    """torch's CPU generator looks at 32 bits of a seed alone."""
    seeds = [
        probe.keyed(seed, step, stream, torch.device("cpu")).initial_seed() % 2**32
        for seed in range(10)
        for step in range(500)
        for stream in range(4)
    ]
    assert len(set(seeds)) > len(seeds) - 5


def test_a_stop_signal_ends_the_methods_of_scikit_learn_too(made: Made, tmp_path: Path) -> None:
    settings = config(made, tmp_path, method="knn")
    cache, splits, _ = read(settings)
    stop = threading.Event()
    stop.set()
    with pytest.raises(PreemptedError, match="stopped before experiment 1 of knn"):
        work = cache, splits, ["knn"], tmp_path, torch.device("cpu")
        train_method("knn", settings, Session(*work, LocalPeers(2), Listeners(), stop))


def test_what_would_take_all_memory_is_refused_before_it_begins(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("train.run.reading.MOST_BYTES", 1e5)
    with pytest.raises(
        UsageError,
        match=(
            r"would not fit into memory, for mct-graph\. "
            r"Use fewer seeds .*METHOD=supervised,mct$"
        ),
    ):
        read(config(made, tmp_path, method="mct-graph"))
    with pytest.raises(UsageError, match=r"for label-propagation\. .*METHOD=supervised$"):
        read(config(made, tmp_path, method="label-propagation", labels="all"))
    assert read(config(made, tmp_path, method=""), aloud=True)[2] == ["supervised"]
    assert capsys.readouterr().err.endswith(
        "would not fit into memory, for label-propagation, supervised-graph, mct-graph: left out\n"
    )
    read(config(made, tmp_path, method="supervised,mct"))


def test_batches_are_those_of_the_step_in_whatever_order_they_are_asked_for(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the next one is begun before it is asked for; what goes wrong in it is
    said when it is asked for."""
    settings = config(made, tmp_path, method="mct")
    cache, splits, _ = read(settings)
    (job,) = make_jobs(
        "mct",
        cache,
        splits,
        experiments(settings),
        LocalPeers(2),
        torch.device("cpu"),
        settings,
    )
    asked = [(0, False), (1, False), (2, True), (3, True), (9, True, True), (3, True), (4, False)]
    with closing(Feeder(settings, job.task, job.peers)) as feed:
        found = [feed(*what) for what in asked]
    for what, (views, draws) in zip(asked, found, strict=True):
        with closing(Feeder(settings, job.task, job.peers)) as feed:
            fresh, fresh_draws = feed(*what)
        assert torch.equal(draws, fresh_draws)
        for one, other in zip(views, fresh, strict=True):
            assert (
                torch.equal(one.emb_EUD, other.emb_EUD)
                and torch.equal(one.emb_ELD, other.emb_ELD)
                and torch.equal(one.y_EL, other.y_EL)
            )
            assert all(map(torch.equal, [*one.keep_U, *one.keep_L], [*other.keep_U, *other.keep_L]))
    busy, overlaps, plain = threading.Lock(), [], Feeder._draw

    def slow(self: Feeder, *what: object) -> object:
        overlaps.append(not busy.acquire(blocking=False))
        time.sleep(0.05)
        busy.release()
        return plain(self, *what)

    monkeypatch.setattr(
        Feeder, "_draw", slow
    )  # one draws at a time, for the next step and no further
    with closing(Feeder(settings, job.task, job.peers)) as feed:
        for step in (0, 1, 7, 3):
            feed(step)
    assert len(overlaps) > 4 and not any(overlaps)
    monkeypatch.setattr(Feeder, "_draw", plain)
    with closing(Feeder(settings, job.task, job.peers)) as feed:
        feed(0)
        feed.ahead[1].result()
        feed.labelled.clear()
        feed(1)
        with pytest.raises(ValueError, match="need at least one array"):
            feed(2)
