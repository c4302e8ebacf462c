"""`make finetune` from its words to a view that is trained on: the oracle is the cache before the
first step, an uninterrupted run after it."""

import dataclasses
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import config, shared
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from base.errors import (
    DataQualityError,
    IntegrityError,
    PreemptedError,
    StaleError,
    UsageError,
)
from cache_specs import store
from cache_specs.spec import load_spec
from cache_specs.tuned import seen_of
from coview import open_view
from exchange.config import ExportConfig, ImportConfig
from exchange.export import export_view
from exchange.importer import import_view
from extract.run import run as extract
from report.config import InspectConfig
from report.inspect.run import run as inspect
from report.inspect.text import text_of
from train.algorithm.peers import LocalPeers
from train.command import run as train
from train.config import TrainConfig
from train.data.reader import open_cache
from train.data.seen import refuse_seen
from train.finetune import keep, tune
from train.finetune import run as finetune
from train.finetune.config import FinetuneConfig
from train.finetune.ground import HOLES, LIBRARIES, SHARE, chunk_of, made, read
from train.finetune.live import PENALTY, Needs, fit_head
from train.finetune.tune import Tuning, warm_and_cool
from train.run.log import Listener
from train.run.reading import read as read_ground
from train.run.rundir import run_folder
from train.run.summary import notes

VIEWS = ("tiny-clip", "tiny-dinov2")


def asked(cache: Path, folder: Path, **changes: object) -> FinetuneConfig:
    base = FinetuneConfig(
        view="tiny-clip",
        data="digits",
        labels="2",
        cache=str(cache),
        runs=str(folder),
        device="cpu",
        steps=6,
        batch=8,
        checkpoint_every=2,
        threads=1,
    )
    return dataclasses.replace(base, **changes)


def run(settings: FinetuneConfig) -> Path:
    """The folder of a finished run."""
    settings.check()
    found: dict = {}
    finetune.run(settings, found)
    return Path(found["run"])


@pytest.fixture(scope="module")
def done(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = run(asked(digits, tmp_path_factory.mktemp("runs")))
    with shared(folder):
        yield folder


def outcome(folder: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on interruptions."""
    files = [*folder.glob("*/*.safetensors"), *folder.glob("splits/*"), *folder.glob("*.toml")]
    files += [*folder.glob("*.learnt.safetensors"), folder / "seen.txt", folder / "tuned.json"]
    assert len(files) >= 6, files
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------- live equals cached


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("mode", ["lora", "norms", "full"])
def test_before_the_first_step_the_live_view_gives_the_cache(
    view: str, mode: str, digits: Path, tmp_path: Path
) -> None:
    """To the last float16 digit, for whole batches of the cache."""
    ground = read(asked(digits, tmp_path, view=view, mode=mode))
    work, _ = made(ground)
    rows = range(512, 512 + 64)  # of the second shard, its first batch
    with torch.inference_mode():
        emb = work.live.backbone(work.pictures[0].as_extracted(rows)).half().numpy()
    assert np.array_equal(emb, ground.cache.emb[0][512 : 512 + 64])


def test_the_head_begins_as_a_logistic_regression() -> None:
    chance = np.random.default_rng(0)
    x_LD = chance.normal(size=(40, 7)).astype(np.float32)
    y_L = np.repeat([0, 1, 3], [20, 10, 10])  # no image of class 2
    head = fit_head(x_LD, y_L, 4)
    oracle = LogisticRegression(C=1 / PENALTY, tol=1e-10, max_iter=5000).fit(x_LD, y_L)
    with torch.no_grad():
        p = head(torch.from_numpy(x_LD)).softmax(1).numpy()
    assert p[:, 2].max() < 1e-3
    assert np.allclose(p[:, [0, 1, 3]], oracle.predict_proba(x_LD), atol=1e-3)


def test_the_head_begins_on_what_the_cache_holds(digits: Path, tmp_path: Path) -> None:
    ground = read(asked(digits, tmp_path))
    work, _ = made(ground)
    rows = ground.split.labelled
    with torch.inference_mode():
        logits = work.live(work.pictures[0].as_extracted(rows.tolist()))
    assert (logits.argmax(1).numpy() == ground.cache.items.label[rows]).mean() > 0.9


# ---------------------------------------------------------------- a step


def test_a_batch_is_a_function_of_seed_and_step(digits: Path, tmp_path: Path) -> None:
    settings = asked(digits, tmp_path, mixup=0.4, flip=True, randaugment=True, batch=5)
    one, _ = made(read(settings))
    expected = [one.batch(step) for step in range(4)]
    torch.rand(3)  # others draw, too
    other, _ = made(read(settings))
    other.pictures[0].kept.clear()
    for step in (2, 0, 3, 1):
        pixels, share = other.batch(step)
        assert torch.equal(pixels, expected[step][0]) and torch.equal(share, expected[step][1])
    assert not torch.equal(expected[0][0], expected[1][0])
    different, _ = made(read(dataclasses.replace(settings, seeds="1")))
    assert not torch.equal(different.batch(0)[0], expected[0][0])


def test_no_draw_of_the_process_is_touched(digits: Path, tmp_path: Path) -> None:
    work, _ = made(read(asked(digits, tmp_path, randaugment=True)))
    before = torch.random.get_rng_state()
    work.batch(0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_augmentation_a_batch_is_what_extract_shows(digits: Path, tmp_path: Path) -> None:
    work, _ = made(read(asked(digits, tmp_path, crop=1.0)))
    pixels, share_BC = work.batch(3)
    rows = work.rows(3, 8).tolist()
    assert torch.equal(pixels, work.pictures[0].as_extracted(rows))
    assert torch.equal(share_BC.argmax(1), torch.from_numpy(work.label_N[rows]).long())
    assert share_BC.sum() == 8 and share_BC.max() == 1


def test_mixed_pictures_have_mixed_labels(digits: Path, tmp_path: Path) -> None:
    work, _ = made(read(asked(digits, tmp_path, mixup=1.0, crop=1.0, batch=20)))
    pixels, share_BC = work.batch(0)
    assert torch.allclose(share_BC.sum(1), torch.ones(20))
    assert 0 < float(share_BC.max(1).values.min()) < 1
    plain = work.pictures[0].as_extracted(work.rows(0, 20).tolist())
    assert not torch.equal(pixels, plain)


def test_so_many_at_a_time_give_the_gradient_of_the_whole(digits: Path, tmp_path: Path) -> None:
    learnt = []
    for chunk in (8, 3):
        work, _ = made(read(asked(digits, tmp_path, mode="full", chunk=chunk)))
        losses = [work.learn(work.batch(step)) for step in range(3)]
        learnt.append((losses, [p.detach().clone() for p in work.live.named().values()]))
    assert learnt[0][0] == pytest.approx(learnt[1][0], rel=1e-4)
    for whole, parts in zip(learnt[0][1], learnt[1][1], strict=True):
        assert torch.allclose(whole, parts, atol=2e-5)


def test_rates_rise_and_fall() -> None:
    settings = FinetuneConfig(steps=100, warmup=0.1)
    rates = [warm_and_cool(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1
    assert np.all(np.diff(rates[10:]) < 0) and 0 < rates[99] < 1e-3
    assert warm_and_cool(0, FinetuneConfig(steps=100, warmup=0.0)) == 1


def test_what_is_kept_is_the_moving_average(digits: Path, tmp_path: Path) -> None:
    work, _ = made(read(asked(digits, tmp_path, ema=0.5, lr=0.01)))
    expected: dict[str, torch.Tensor] = {}
    for step in range(4):
        work.learn(work.batch(step))
        weight = 1 - min(0.5, (step + 2) / (step + 11))
        for name, parameter in work.live.named().items():
            now = parameter.detach().clone()
            expected[name] = torch.lerp(expected.get(name, now), now, weight)
    work.show()
    for name, parameter in work.live.named().items():
        assert torch.allclose(parameter, expected[name])


def test_it_learns(digits: Path, tmp_path: Path) -> None:
    work, _ = made(read(asked(digits, tmp_path, lr=2e-3, crop=1.0, batch=20)))
    losses = [work.learn(work.batch(0)) for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]


# ---------------------------------------------------------------- kills


def begun(
    settings: FinetuneConfig,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    how: str,
    kind: type = Tuning,
) -> None:
    """Begin a run, and end it at a step: killed (an error that nobody expects), or asked to
    stop."""
    real, stopping = kind.learn, tune.tune
    events: list[threading.Event] = []

    def watched(
        work: tune.Work, folder: Path, title: str, stop: threading.Event, listener: Listener
    ) -> None:
        events.append(stop)
        stopping(work, folder, title, stop, listener)

    def learn(work: tune.Work, batch: object) -> float:
        if work.step == at and how == "killed":
            raise KeyboardInterrupt
        loss = real(work, batch)
        if work.step == at and how == "stopped":
            events[0].set()
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(kind, "learn", learn)
        patch.setattr(finetune, "tune", watched)
        with pytest.raises(KeyboardInterrupt if how == "killed" else PreemptedError):
            run(settings)


@pytest.mark.parametrize(("how", "at"), [("killed", 1), ("killed", 5), ("stopped", 3)])
def test_a_run_that_was_ended_goes_on_to_the_same_bytes(
    how: str, at: int, digits: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = asked(digits, tmp_path)
    begun(settings, monkeypatch, at, how)
    assert not keep.is_tuned(tmp_path / "tiny-clip-ft")
    taken: list[int] = []
    real = Tuning.learn

    def learn(work: Tuning, batch: tune.Batch) -> float:
        taken.append(work.step)
        return real(work, batch)

    monkeypatch.setattr(Tuning, "learn", learn)
    assert outcome(run(settings)) == outcome(done)
    assert taken == list(range({1: 0, 5: 4, 3: 3}[at], 6))


@pytest.mark.parametrize("settings", [{"ema": 0.9}, {"mode": "full", "mixup": 0.2, "chunk": 3}])
def test_so_does_one_with_an_average_or_mixtures(
    settings: dict, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(asked(digits, tmp_path / "whole", **settings))
    parts = asked(digits, tmp_path / "parts", **settings)
    begun(parts, monkeypatch, 3, "stopped")
    assert outcome(run(parts)) == outcome(whole)


def test_what_has_no_gradient_is_resumed_too(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DINOv2's mask token, which plays no part."""
    settings = asked(digits, tmp_path / "a", view="tiny-dinov2", mode="full", steps=4)
    whole = run(settings)
    parts = dataclasses.replace(settings, runs=str(tmp_path / "b"))
    begun(parts, monkeypatch, 3, "killed")
    assert outcome(run(parts)) == outcome(whole)


def test_a_run_goes_on_with_the_threads_and_parts_that_it_began_with(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = asked(digits, tmp_path, threads=0)
    torch.set_num_threads(2)
    try:
        begun(settings, monkeypatch, 3, "killed")
        torch.set_num_threads(1)
        seen: list[tuple[int, int]] = []
        real = Tuning.learn

        def learn(work: Tuning, batch: tune.Batch) -> float:
            seen.append((torch.get_num_threads(), work.config.chunk))
            return real(work, batch)

        monkeypatch.setattr(Tuning, "learn", learn)
        monkeypatch.setattr("train.finetune.ground.free_bytes", lambda *_: LIBRARIES * 1.3)
        run(settings)
    finally:
        torch.set_num_threads(1)
    assert seen and set(seen) == {(2, 8)}


def test_a_damaged_checkpoint_is_gone_back_behind(
    digits: Path,
    done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = asked(digits, tmp_path)
    begun(settings, monkeypatch, 5, "killed")
    newest = tmp_path / "tiny-clip-ft" / "checkpoints" / "finetune-00000004" / "rank0.safetensors"
    data = bytearray(newest.read_bytes())
    data[-3] ^= 1
    newest.write_bytes(data)
    assert outcome(run(settings)) == outcome(done)
    assert "GOES BACK to step 2" in caplog.text


def test_sigterm_saves_and_ends_with_75(
    digits: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the middle of a step."""
    settings, real = asked(digits, tmp_path), Tuning.learn

    def learn(work: Tuning, batch: tune.Batch) -> float:
        if work.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(work, batch)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "learn", learn)
        with pytest.raises(PreemptedError, match="stopped at step 3 of 6, everything is") as told:
            run(settings)
    assert signal.getsignal(signal.SIGTERM) is before
    assert told.value.exit_code == 75
    assert outcome(run(settings)) == outcome(done)


def test_sigterm_while_models_are_loaded_is_heard(
    digits: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, real = asked(digits, tmp_path), finetune.made

    def made_slowly(*given: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "made", made_slowly)
        with pytest.raises(PreemptedError, match="stopped at step 1 of 6, everything is"):
            run(settings)
    assert signal.getsignal(signal.SIGTERM) is before
    assert outcome(run(settings)) == outcome(done)


def test_a_loss_that_is_not_finite_ends_the_run(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tuning, "learn", lambda work, batch: float("nan"))
    with pytest.raises(DataQualityError, match="loss is not finite at step 0") as told:
        run(asked(digits, tmp_path))
    assert told.value.instead == {"--lr": "2e-05", "RUN": "…"}


# ---------------------------------------------------------------- what is left, and its use


def test_what_a_run_leaves(done: Path, digits: Path) -> None:
    spec = load_spec(str(done / "tiny-clip-ft.toml"))
    assert spec.tuned is not None and spec.tuned.mode == "lora" and spec.tuned.labels == 20
    assert spec.tuned.parent.startswith("tiny-clip-")
    assert spec.tuned.settings["rank"] == 2 and spec.tuned.settings["labels"] == "2"
    assert not {"data", "threads", "device", "cache"} & {*spec.tuned.settings}
    cache = open_cache(digits, "digits", ["tiny-clip"])
    keys = (done / "splits" / "seed-0.labelled.txt").read_text().split()
    contents = {cache.items.sha256[cache.items.keys.index(key)] for key in keys}
    assert {*(done / "seen.txt").read_text().split()} == contents and len(contents) == 20
    assert not (done / "checkpoints").exists()
    learnt = load_file(done / "tiny-clip-ft.learnt.safetensors")
    assert learnt["head.weight"].shape == (10, 128) and len(learnt) == 6 + 4
    told = json.loads((done / "tuned.json").read_bytes())
    val = told["views"]["tiny-clip-ft"]["val"]
    assert val["images"] == 355 and 0 < val["tuned"] <= 1


def test_a_finished_run_is_shown_and_not_repeated(
    done: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Tuning, "learn", lambda work, batch: 1 / 0)
    caplog.set_level("INFO")
    assert run(asked(digits, done.parent)) == done
    assert "is finished; another RUN= tunes anew" in caplog.text
    assert f"make extract VIEW={done}/tiny-clip-ft.toml DATA=digits" in caplog.text
    assert "SEEDS=0" in caplog.text and "LABELS=2" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val": "cross"}, "LABELS=2 SEEDS=0 VAL=none"),
        ({"val": "none", "seeds": "3"}, "LABELS=2 SEEDS=3 VAL=none"),
        ({"val": "split", "root": "my data"}, "LABELS=2 SEEDS=0 VAL=split"),
    ],
)
def test_what_to_type_next_repeats_what_was_given(
    changes: dict, words: str, digits: Path, tmp_path: Path
) -> None:
    extract_line, train_line = finetune._following(read(asked(digits, tmp_path, **changes)))
    assert train_line.endswith(words) and f"CACHE={digits}" in train_line
    assert f"VIEW={tmp_path}/tiny-clip-ft/tiny-clip-ft.toml DATA=digits" in extract_line
    assert ("--root" in extract_line) == ("root" in changes)


@pytest.fixture(scope="module")
def tuned(done: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache with the tuned view besides."""
    cache = tmp_path_factory.mktemp("tuned") / "cache"
    shutil.copytree(digits, cache)
    toml = str(done / "tiny-clip-ft.toml")
    extract(config(Path("digits"), cache, view=toml, batch=64, shard_rows=512), {})
    with shared(cache):
        yield cache


def trained(cache: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        views="tiny-clip-ft,tiny-dinov2", data="digits", labels="2", cache=str(cache)
    )
    return dataclasses.replace(base, **changes)


def test_extract_embeds_it_as_any_other(tuned: Path, done: Path) -> None:
    cache = open_cache(tuned, "digits", ["tiny-clip-ft", "tiny-clip"])
    assert np.isfinite(cache.emb[0]).all()
    assert not np.array_equal(cache.emb[0], cache.emb[1])
    view = store.open_view(cache.folders[0])
    assert seen_of(view) == cache.seen["tiny-clip-ft"] and len(cache.seen) == 1


def test_python_users_are_warned(tuned: Path, caplog: pytest.LogCaptureFixture) -> None:
    (dataset,) = tuned.glob("digits-*")
    assert open_view(dataset / "tiny-clip-ft").shape == (1797, 128)
    assert "tuned on the labels of 20 images" in caplog.text


def test_it_trains_with_the_labels_that_it_has_learnt_from(tuned: Path) -> None:
    cache, splits, _ = read_ground(trained(tuned))
    rows = [sha256 in cache.seen["tiny-clip-ft"] for sha256 in cache.items.sha256]
    assert set(np.flatnonzero(rows)) == set(splits[0].labelled)
    read_ground(trained(tuned, views="tiny-clip,tiny-dinov2", val="cross"))


REFUSED = {
    "more labels would be used than are counted": [
        {"labels": "1"},
        {"seeds": "1"},
        {"seeds": "0..1"},
        {"val": "none"},
    ],
    "nobody can choose": [{"val": "cross", "labels": "file"}],
}


@pytest.mark.parametrize(
    ("told", "words"), [(told, words) for told, each in REFUSED.items() for words in each]
)
def test_it_refuses_other_labels_and_to_be_judged_by_its_own(
    told: str, words: dict, tuned: Path, done: Path
) -> None:
    own = str(done / "splits" / "seed-0.labelled.txt")
    words = {key: own if value == "file" else value for key, value in words.items()}
    with pytest.raises(DataQualityError, match=told) as refusal:
        read_ground(trained(tuned, **words))
    better = {key.lower(): value for key, value in (refusal.value.instead or {}).items()}
    read_ground(trained(tuned, **{**words, **better}))  # what is advised works


def test_nor_does_it_judge_itself_by_what_it_has_seen(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuned once more on data whose validation split holds what it knows: only the others count."""
    again = asked(tuned, tmp_path, view="tiny-clip-ft", run="twice", steps=1)
    ground = read(again)
    seen = ground.cache.seen["tiny-clip-ft"]
    rows = np.array([r for r, sha in enumerate(ground.cache.items.sha256) if sha in seen])
    split = dataclasses.replace(ground.split, val=np.union1d(ground.split.val[:7], rows))
    ground = dataclasses.replace(ground, split=split)
    work, _ = made(ground)
    assert finetune._gained(ground, work, 0)[2] == 7


def test_predict_counts_what_backbones_have_learnt(tuned: Path) -> None:
    from predict.from_run import learnt_from

    cache, splits, _ = read_ground(trained(tuned))
    none = [dataclasses.replace(splits[0], labelled=splits[0].labelled[:0])]
    labelled, every = learnt_from(cache, none)
    assert labelled == cache.seen["tiny-clip-ft"] and labelled <= every


def test_copies_of_labelled_images_are_known_anyway(tuned: Path) -> None:
    """A copy under another name is no further label; one that judges is refused all the same."""
    cache, (split,), _ = read_ground(trained(tuned))
    sha256 = list(cache.items.sha256)
    copy, judging = int(split.unlabelled[0]), int(split.test[0])
    sha256[copy] = sha256[int(split.labelled[0])]
    items = dataclasses.replace(cache.items, sha256=sha256)
    refuse_seen(dataclasses.replace(cache, items=items), [split], [0])
    sha256[judging] = sha256[int(split.labelled[0])]
    with pytest.raises(DataQualityError, match="1 of 355 images of the test split"):
        refuse_seen(dataclasses.replace(cache, items=items), [split], [0])


@pytest.mark.parametrize("how", ["another spec", "no table"])
def test_tuned_weights_say_so_themselves(
    how: str, done: Path, digits: Path, tmp_path: Path
) -> None:
    """Under the frozen view's name, or with the [tuned] table taken out."""
    cache = Path(shutil.copytree(digits, tmp_path / "cache"))
    asking = config(Path("digits"), tmp_path / "other", view="tiny-clip", batch=64)
    if how == "another spec":
        asking = dataclasses.replace(asking, weights=str(done / "tiny-clip-ft"))
    else:
        shutil.copytree(done, tmp_path / "plain")
        text = (done / "tiny-clip-ft.toml").read_text()
        (tmp_path / "plain" / "plain.toml").write_text(text[: text.index("[tuned]")])
        toml = str(tmp_path / "plain" / "plain.toml")
        asking = dataclasses.replace(asking, view=toml, cache=str(cache))
    with pytest.raises(UsageError, match="were tuned on labels by make finetune"):
        extract(asking, {})


def test_export_says_what_the_file_does_not(
    tuned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    to = str(tmp_path / "rows.npz")
    export_view(ExportConfig(view="tiny-clip-ft", data="digits", to=to, cache=str(tuned)))
    assert "tuned on the labels of 20 images" in caplog.text and "does not say" in caplog.text


@pytest.mark.parametrize("run_name", ["tiny-clip", "tiny-dinov2", "clip", "swav"])
def test_a_name_that_another_view_has_is_refused(
    run_name: str, digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"called '{run_name}', and another view is") as told:
        read(asked(digits, tmp_path, run=run_name))
    assert told.value.instead == {"RUN": "tiny-clip-tuned"}


def test_data_may_be_written_otherwise(digits: Path, done: Path, tmp_path: Path) -> None:
    name = next(digits.glob("digits-*")).name
    assert run(asked(digits, done.parent, data=name)) == done


def test_train_will_not_go_on_in_the_folder_of_a_backbone(tuned: Path, done: Path) -> None:
    settings = trained(tuned, runs=str(done.parent), run="tiny-clip-ft", report=False)
    with pytest.raises(UsageError, match="is a tuned backbone, which keeps no probes"):
        train(settings)


@pytest.mark.parametrize("part", ["val", "test"])
def test_it_refuses_to_judge_images_that_it_has_seen(
    part: str, tuned: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labelled images are some of a split by now."""
    cache, splits, _ = read_ground(trained(tuned))
    roles = list(cache.items.split)
    roles[splits[0].labelled[3]] = part
    real = open_cache

    def opened(*given: object, **more: object) -> object:
        found = real(*given, **more)  # type: ignore[arg-type]
        return dataclasses.replace(found, items=dataclasses.replace(found.items, split=roles))

    monkeypatch.setattr("train.run.reading.open_cache", opened)
    word = {"val": "validation", "test": "test"}[part]
    with pytest.raises(DataQualityError, match=f"labels of 1 of 356 images of the {word}") as told:
        read_ground(trained(tuned))
    assert told.value.instead == {"VIEWS": "tiny-dinov2"}
    read_ground(trained(tuned, views="tiny-dinov2", method="supervised"))


def test_who_asks_the_run_itself_is_told_that_it_is_a_view(done: Path) -> None:
    with pytest.raises(UsageError, match=r"is a tuned backbone.*make extract VIEW=.*DATA=digits"):
        run_folder(str(done.parent), "tiny-clip-ft")


def test_table_and_inspect_say_that_it_was_tuned(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    said = "the backbone of tiny-clip-ft was tuned (lora, on the labels of 20 images)"
    settings = trained(tuned, method="supervised", runs=str(tmp_path), run="a", report=False)
    quick = {"warmup": 2, "cotrain": 2, "eval_every": 2, "tensorboard": "off", "threads": 1}
    summary = train(dataclasses.replace(settings, **quick))
    assert said in notes(summary)
    asked = InspectConfig(
        views="tiny-clip-ft,tiny-dinov2", data="digits", labels="2", cache=str(tuned)
    )
    found = inspect(dataclasses.replace(asked, to=str(tmp_path / "i.html")))
    assert f"{said}; what is asked of the labels" in text_of(found)
    assert "(lora, on the labels of 20 images)" in (tmp_path / "i.html").read_text()


def folder_of(cache: Path, view: str) -> Path:
    return next(cache.glob(f"digits-*/{view}-[0-9a-f]*[0-9a-f]"))


@pytest.mark.parametrize("harm", ["missing", "shorter", "empty"])
def test_without_its_list_it_is_not_trained_on_until_extract_brings_it(
    harm: str, tuned: Path, done: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(tuned, cache)
    path = folder_of(cache, "tiny-clip-ft") / "seen.txt"
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if harm == "empty" else data[65:])
    with pytest.raises(IntegrityError, match=r"seen.txt is missing or damaged.*make extract"):
        read_ground(trained(cache))
    again = config(Path("digits"), cache, view=str(done / "tiny-clip-ft.toml"))
    extract(dataclasses.replace(again, batch=64, shard_rows=512), {})
    assert path.read_bytes() == data
    read_ground(trained(cache))


def test_a_view_whose_own_list_is_another_is_not_embedded(
    done: Path, digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "tiny-clip-ft")
    (tmp_path / "tiny-clip-ft" / "seen.txt").write_text("0" * 64 + "\n")
    shutil.copytree(digits, tmp_path / "cache")
    toml = str(tmp_path / "tiny-clip-ft" / "tiny-clip-ft.toml")
    with pytest.raises(IntegrityError, match=r"not the list that .* was written with"):
        extract(config(Path("digits"), tmp_path / "cache", view=toml, batch=64), {})


def test_what_is_tuned_from_a_tuned_view_has_seen_the_labels_of_both(
    tuned: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "more.txt"
    cache = open_cache(tuned, "digits", ["tiny-clip-ft"])
    train = [row for row, part in enumerate(cache.items.split) if part == "train"]
    rows = [row for row in train if cache.items.sha256[row] not in cache.seen["tiny-clip-ft"]]
    labels.write_text("".join(f"{cache.items.keys[row]}\n" for row in rows[:30]))
    again = asked(tuned, tmp_path, view="tiny-clip-ft", labels=str(labels), run="twice", steps=2)
    spec = load_spec(str(run(again) / "twice.toml"))
    assert spec.tuned is not None and spec.tuned.labels == 50
    assert spec.tuned.parent.startswith("tiny-clip-ft-")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"view": ""}, "VIEW is missing"),
        ({"view": "", "data": ""}, "VIEW and DATA are missing"),
        ({"seeds": "0..1"}, "learns the labels of one seed"),
        ({"crop": 1.5}, "--crop must be at most 1"),
        ({"run": "x,y"}, "RUN=x,y: a run's name"),
        ({"run": ".."}, r"RUN=\.\.: a run's name"),
        ({"crop": 0.0}, "--crop must be positive"),
        ({"layer_decay": 1.5}, "--layer-decay must be at most 1"),
        ({"steps": 0}, "--steps must be positive"),
        ({"rank": 0}, "--rank must be at least 1"),
        ({"val": "maybe"}, "VAL=maybe"),
    ],
)
def test_words_that_are_wrong_are_told_before_anything_is_read(changes: dict, told: str) -> None:
    settings = dataclasses.replace(FinetuneConfig(view="clip", data="x"), **changes)
    with pytest.raises(UsageError, match=told):
        settings.check()


def test_defaults_follow_the_number_of_labels() -> None:
    settings = FinetuneConfig()
    assert settings.settled(10, 10).steps == 300 and settings.settled(45, 10).steps == 450
    assert settings.settled(5, 10).steps == 300 and settings.settled(10_000, 10).steps == 1600
    assert settings.settled(10, 10).lr == 2e-4
    assert dataclasses.replace(settings, mode="full").settled(10, 10).lr == 1e-5
    assert dataclasses.replace(settings, lr=0.5, steps=7).settled(10, 10).steps == 7


def test_an_imported_view_has_no_backbone(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", embeddings=np.eye(4, dtype=np.float16), y=[0, 0, 1, 1])
    source, cache = str(tmp_path / "mine.npz"), str(tmp_path / "cache")
    import_view(ImportConfig(view="mine", source=source, name="four", cache=cache))
    with pytest.raises(UsageError, match="was imported, not computed from images"):
        read(FinetuneConfig(view="mine", data="four", cache=cache))


def test_other_settings_under_the_same_name_are_refused(done: Path, digits: Path) -> None:
    with pytest.raises(StaleError, match=r"settings.rank: 2 -> 4") as told:
        run(asked(digits, done.parent, rank=4))
    assert told.value.instead == {"RUN": "tiny-clip-ft-2"}


def test_a_finished_run_that_was_changed_is_refused(
    done: Path, digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "tiny-clip-ft")
    (tmp_path / "tiny-clip-ft" / "tiny-clip-ft.toml").write_text("")
    with pytest.raises(IntegrityError, match=r"\.toml has changed since it was written"):
        run(asked(digits, tmp_path))


def test_all_parameters_and_few_labels_are_warned_of(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(asked(digits, tmp_path, mode="full", labels="1", steps=1))
    assert "1 labels a class: all parameters" in caplog.text
    assert "MODE=lora" in caplog.text


def test_so_many_images_at_a_time_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, cpu = FinetuneConfig(view="a", batch=32), torch.device("cpu")
    needs, peers = [Needs(weights=5_000, learnt=100, image=1_000_000)], LocalPeers(1)

    def found(room: float, **changes: object) -> int:
        monkeypatch.setattr("train.finetune.ground.free_bytes", lambda *_: int(room / SHARE) + 9)
        return chunk_of(dataclasses.replace(settings, **changes), needs, cpu, peers)

    fixed = LIBRARIES + 5_000 + 16 * 100
    for size, images in ((32, 32 * HOLES), (16, 16), (8, 8), (1, 1)):
        assert found(fixed + images * 1e6) == size
        if size > 1:
            assert found(fixed + images * 1e6 - 1e5) == size // 2
            assert found(fixed + images * 1e6, chunk=1) == 1
    with pytest.raises(UsageError, match=r"32 images at a time need 0.6 GB, and 0.6 GB") as told:
        found(fixed + 20e6, chunk=32)
    assert told.value.instead == {"--chunk": "16"}
    with pytest.raises(UsageError, match="--checkpointing"):
        found(fixed + 0.5e6)


@pytest.mark.parametrize(("chunk", "kept"), [(8, True), (3, False)])
def test_where_images_come_in_parts_malloc_keeps_none(
    chunk: int, kept: bool, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the holes between its blocks would be as large as the parts that are spared."""
    told: list[bool] = []
    monkeypatch.setattr("base.native.keep_no_memory", lambda: told.append(True))
    made(read(asked(digits, tmp_path, chunk=chunk)))
    assert bool(told) != kept


def test_what_runs_out_of_memory_is_told_what_to_take(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(work: Tuning, batch: tune.Batch) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Tuning, "learn", learn)
    with pytest.raises(UsageError, match="memory does not suffice for this fine-tuning") as told:
        run(asked(digits, tmp_path))
    assert told.value.instead == {"--chunk": "4", "RUN": "…"}


def test_a_dry_run_writes_nothing(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    found: dict = {}
    finetune.run(asked(digits, tmp_path / "runs", dry_run=True), found)
    assert not (tmp_path / "runs").exists() and found["seconds"] >= 0
    assert "6 tensors of the backbone learn, 4,608 of 621,056 numbers" in caplog.text
    assert "it would take about" in caplog.text


def test_an_image_that_is_another_by_now_is_named(digits: Path, tmp_path: Path) -> None:
    ground = read(asked(digits, tmp_path))
    work, _ = made(ground)
    row = int(ground.split.labelled[0])
    work.pictures[0].kept.clear()
    work.pictures[0].read = lambda row: b"something else"
    with pytest.raises(DataQualityError, match=ground.cache.items.keys[row]):
        work.pictures[0].as_extracted([row])


def test_images_that_were_added_or_are_gone_meanwhile(photos: Path, tmp_path: Path) -> None:
    """A row is found by its key, whatever lies beside it by now."""
    folder, cache = tmp_path / "photos", tmp_path / "cache"
    shutil.copytree(photos, folder)
    extract(config(folder, cache), {})
    settings = asked(cache, tmp_path / "runs", data=str(folder), labels="all")
    before, _ = made(read(settings))
    first = sorted((folder / "a").iterdir())[0]
    shutil.copy(first, folder / "a" / "000-a new one.png")
    after, _ = made(read(settings))
    rows = [0, 5, 17, 40]
    assert torch.equal(after.pictures[0].as_extracted(rows), before.pictures[0].as_extracted(rows))
    first.unlink()
    with pytest.raises(DataQualityError, match=f"a/{first.name}.* is gone"):
        made(read(settings))


def test_the_command_line(command: Callable, digits: Path, done: Path, tmp_path: Path) -> None:
    """With a mistake or two; --json says where the view is."""
    words = ("--data", "digits", "--cache", digits, "--runs", tmp_path, "--steps", 2)
    wrong = command("finetune", "--view", "tiny-clop", *words)
    assert wrong.returncode == 2 and "did you mean 'tiny-clip'" in wrong.stderr
    fine = command("finetune", "--view", "tiny-clip", "--labels", 1, "--json", *words)
    assert fine.returncode == 0, fine.stderr
    told = json.loads(fine.stdout)
    assert Path(told["views"][0]).is_file()
    assert told["result"]["views"]["tiny-clip-ft"]["labels"] == 10
