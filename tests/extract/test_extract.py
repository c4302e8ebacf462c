"""Images to shards, end to end: the same bytes whatever the workers, the processes and the kills;
foreign weights and bad images named."""

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import server
import torch
from conftest import BAD, BATCH, EXTRACT, NOTES, ROOT, ROWS, N, config
from PIL import Image

from base.errors import DataQualityError, StaleError, StorageError, UsageError
from cache_specs import integrity, store
from cache_specs.items import read_items
from cache_specs.spec import SPECS, load_spec
from cache_specs.store import STATUS, View
from cache_specs.view import shard_bytes
from extract.embed import batch_rows, finish
from extract.images import NON_FINITE, OK, UNDECODABLE, pipeline
from extract.models.backbones import Backbone, load_backbone
from extract.models.weights import find_weights
from extract.plan import plan
from extract.run import run
from extract.workers import workers_of
from upkeep.config import RepairConfig, VerifyConfig
from upkeep.repair import mend_view
from upkeep.verify import verify


@pytest.fixture(scope="module")
def extracted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> View:
    return run(config(photos, tmp_path_factory.mktemp("extracted") / "cache"))


def values(view: View) -> np.ndarray:
    return np.concatenate(
        [
            np.fromfile(view.embeddings_file(s), np.float16, ROWS * view.width).reshape(ROWS, -1)
            for s in range(view.shards)
        ]
    )[: view.n]


def files(view: View) -> dict[str, bytes]:
    """What a view's folder holds, but for the memory of the last check (inodes, times) and
    the locks (process numbers)."""
    return {
        str(path.relative_to(view.folder)): path.read_bytes()
        for path in sorted(view.folder.rglob("*"))
        if path.is_file() and path.name not in NOTES
    }


def pixels(photos: Path, keys: list[str], view: str) -> torch.Tensor:
    steps = pipeline(load_spec(view).preprocess)
    return torch.stack([steps(Image.open(photos / key).convert("RGB")) for key in keys])


def keys(view: View) -> list[str]:
    from cache_specs.items import read_items

    return read_items(view.folder.parent).keys


# --- end to end


def test_a_folder_with_a_bad_file_becomes_a_finished_view_and_a_list(photos, tmp_path, capsys):
    view = run(config(photos, tmp_path))
    out = capsys.readouterr().out
    assert view.is_complete and (view.n, view.width, view.shards) == (N, 128, 3)
    status = integrity.check(view)
    assert status.nonzero()[0].tolist() == [BAD] and STATUS[status[BAD]] == "truncated"
    emb_ND = values(view)
    assert (
        np.isnan(emb_ND[BAD]).all()
        and np.isfinite(np.delete(emb_ND, BAD, 0)).all()
        and np.delete(emb_ND, BAD, 0).std(0).min() > 0
    )
    assert f"tiny-clip: {N} images -> {N} x 128 float16" in out and "3 shards (0 done)" in out
    assert f"finished, {N} images in" in out and f"sealed in {view.folder}" in out
    assert (
        "1 of 45 images could not be embedded (1 truncated); they are left out of training:" in out
    )
    assert f"  row {BAD}: {keys(view)[BAD]}: truncated\n" in out


def test_a_view_that_the_disk_cannot_hold_is_not_begun_and_the_size_is_said(
    photos, extracted, tmp_path, monkeypatch, capsys
):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    need = 3 * (shard_bytes(ROWS, 128) + 2048)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need + 2**20 - 1))
    with pytest.raises(
        StorageError,
        match=(
            r"needs 0\.0 MB more, but .* has 1\.1 MB free\. Nothing is lost: "
            r"make room, or name a larger disk with CACHE="
        ),
    ):
        run(config(photos, tmp_path / "cache"))
    assert "0.0 MB to write of 1.1 MB free" in capsys.readouterr().out and not list(
        (tmp_path / "cache").glob("*/tiny-clip-*")
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need + 2**20))
    view = run(config(photos, tmp_path / "cache"))
    (view.folder / "complete.json").unlink()
    view.commit_file(1).unlink()
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=need // 3 + 2**20)
    )  # only what is not there yet must fit
    assert files(run(config(photos, tmp_path / "cache"))) == files(extracted)


def test_the_second_run_is_a_hit_and_says_so_in_one_line(photos, extracted, capsys):
    before = files(extracted)
    again = run(config(photos, extracted.folder.parent.parent))
    lines = capsys.readouterr().out.splitlines()[3:]  # after what was understood of DATA
    assert (
        lines[0]
        == f"tiny-clip: already in the cache, nothing to do: {N} rows x 128 in {extracted.folder}"
    )
    assert (
        len(lines) == 3
        and "could not be embedded" in lines[1]
        and again.folder == extracted.folder
        and files(again) == before
    )


def test_a_row_is_what_open_clip_itself_computes(photos, extracted):
    import open_clip
    from safetensors.torch import load_file

    folder = SPECS / "weights" / "tiny-clip"
    model = open_clip.create_model(f"local-dir:{folder}")  # with its own way of loading the weights
    ours = load_file(folder / "open_clip_model.safetensors")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in model.state_dict().items())
    model.eval().visual.proj = None
    good = [i for i in range(N) if i != BAD]
    with torch.no_grad():
        expected = model.visual(
            (pixels(photos, [keys(extracted)[i] for i in good], "tiny-clip").float() / 255 - 0.5)
            / 0.5
        )
    np.testing.assert_allclose(
        values(extracted)[good].astype(np.float32), expected.numpy(), rtol=2e-3, atol=2e-3
    )


def test_a_row_is_what_transformers_itself_computes(photos, tmp_path):
    from transformers import Dinov2Model

    view = run(config(photos, tmp_path, view="tiny-dinov2"))
    model = Dinov2Model.from_pretrained(SPECS / "weights" / "tiny-dinov2").eval()
    good = [i for i in range(N) if i != BAD]
    with torch.no_grad():
        images = (
            pixels(photos, [keys(view)[i] for i in good], "tiny-dinov2").float() / 255 - 0.5
        ) / 0.5
        expected = model(pixel_values=images).last_hidden_state[:, 0]
    np.testing.assert_allclose(
        values(view)[good].astype(np.float32), expected.numpy(), rtol=2e-3, atol=2e-3
    )


def test_not_one_image_is_an_error_with_exit_code_3(tmp_path, capsys):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("<html>no image</html>")
    with pytest.raises(
        DataQualityError, match="not one of the 1 images could be embedded"
    ) as caught:
        run(config(tmp_path / "text", tmp_path / "cache"))
    assert caught.value.exit_code == 3 and "row 0: a.jpg: undecodable" in capsys.readouterr().out
    assert not list((tmp_path / "cache").rglob("complete.json")), (
        "a view without one good row is not finished"
    )
    message = (
        r"^not one of the 1 images could be embedded \(1 undecodable\):\n"
        r".*row 0: a.jpg: undecodable.*\nMend the files [^,]*$"
    )
    with pytest.raises(DataQualityError, match=message):
        run(
            config(tmp_path / "text", tmp_path / "cache", max_bad="0")
        )  # nor is it proposed to allow all of them


@pytest.mark.parametrize("kind", ["table", "folder"])
def test_where_no_image_can_be_read_it_says_where_it_looked(tmp_path, kind):
    data = tmp_path / "list.csv"
    data.write_text("path,label\nsome/a.jpg,cat\nsome/b.jpg,dog\n")
    if kind == "folder":
        data = tmp_path / "photos"
        (data / "cat").mkdir(parents=True)
        (data / "cat" / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(
        DataQualityError,
        match=(
            r"not one of the (2|1) images? of '(list|photos)' can be read; "
            r"the first, '(some|cat)/a.jpg': "
        ),
    ) as caught:
        run(config(data, tmp_path / "cache", max_bad="100%"))
    said = str(caught.value)
    assert (
        f"{tmp_path / 'some' if kind == 'table' else data / 'cat'}/a.jpg" in said
        and "--max-bad" not in said
    )
    assert ("paths of a table are relative to its folder" in said) == (kind == "table") and not (
        tmp_path / "cache"
    ).exists()


def test_what_was_understood_is_said_before_anything_is_embedded(tmp_path, capsys):
    """In the run, in a dry run, and in what --json says."""
    for name in ("train_images/train_images/cat", "train_images/train_images/unknown", "test/cat"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (len(name) * 5, 0, 0)).save(folder / "1.png")
    settings, planned, done = config(tmp_path / "photos", tmp_path / "cache"), {}, {}
    plan(dataclasses.replace(settings, dry_run=True), planned)
    out = capsys.readouterr().out
    assert "photos: 3 images, 1 class\n" in out and "(no label)" in out
    assert out.index("photos: 3 images") < out.index("time: ")
    run(settings, done)
    out = capsys.readouterr().out
    assert out.index("photos: 3 images") < out.index("finished")
    line = "1 image labelled 'unknown' counts as unlabelled; to make it a class: "
    assert f"{line}ARGS='--as-class unknown'" in out
    assert (
        planned["data"]
        == done["data"]
        == {
            "images": 3,
            "classes": {"cat": {"train": 1, "test": 1}, "": {"train": 1}},
            "unlabelled_words": {"unknown": 1},
        }
    )
    run(dataclasses.replace(settings, as_class="unknown"), done)
    assert done["data"]["classes"]["unknown"] == {"train": 1} and done["embedded"] == 0
    assert "labels or splits of 1 of 3 images have changed" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--as-class cat: this word is a class anyway"):
        run(dataclasses.replace(settings, as_class="cat"))


def test_words_that_are_classes_are_remembered(tmp_path, capsys):
    """By the next extract, by what mends the list, and in the commands that are advised."""
    for name in ("cat/0", "cat/1", "dog/0", "unknown/0", "unknown/1", "unknown/2", "n_a/0"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name) * 20, ord(name[0]), ord(name[-1]))).save(path)
    settings = config(f"{tmp_path / 'photos'}#top2", tmp_path / "cache")
    cache = str(tmp_path / "cache")
    view = run(dataclasses.replace(settings, as_class="unknown, None"))
    known = read_items(view.folder.parent)
    assert known.classes == ["cat", "unknown"] and known.as_class == ["unknown", "None"]
    assert "ARGS='--as-class unknown,None'" in store.command(view.folder, "extract")
    assert "ARGS='--as-class unknown,None'" in store.anew(view.folder)
    capsys.readouterr()
    verify(VerifyConfig(cache=cache, data=view.folder.parent.name, recompute=9))
    assert "6 rows computed again: largest relative distance 0" in capsys.readouterr().out
    (view.folder.parent / "items.parquet").write_bytes(b"")
    view.embeddings_file(0).write_bytes(b"")
    mend_view(RepairConfig(view="tiny-clip", cache=cache, data=view.folder.parent.name, workers=0))
    assert read_items(view.folder.parent).classes == ["cat", "unknown"]
    capsys.readouterr()
    assert run(settings).folder == view.folder
    told = capsys.readouterr()
    line = "photos-top2: --as-class unknown,None, as its labels were written before; to have no"
    assert f"{line} such class any more: ARGS=--as-class=" in told.out
    assert "--as-class None does nothing: no image has this label" in told.err


def test_the_words_that_are_typed_replace_those_of_before(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat/0", "unknown/0", "none/0"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (0, 0, len(name) * 9)).save(path)
    settings = config("photos", "cache", as_class="unknown")
    for words, classes in (
        ("unknown", ["cat", "unknown"]),
        (None, ["cat", "unknown"]),
        ("none", ["cat", "none"]),
        (None, ["cat", "none"]),
        ("", ["cat"]),
        (None, ["cat"]),
        ("none", ["cat", "none"]),
    ):
        view = run(dataclasses.replace(settings, as_class=words))
        assert read_items(view.folder.parent).classes == classes
        told, kept = capsys.readouterr().out, len(classes) > 1
        assert ("as its labels were written before" in told) == (kept and words is None)
        assert words is not None or "have changed" not in told
        assert (b"as_class" in (view.folder.parent / "dataset.json").read_bytes()) == kept
    shutil.move("photos", "moved")  # under another name it is another data set
    Path("here").mkdir()
    shutil.move("moved", "here/photos")
    again = run(config("here/photos", "cache"))
    assert again.folder == view.folder and read_items(view.folder.parent).classes == classes
    shutil.copytree("here/photos", "photos")  # another one of this name: nothing of it is known
    capsys.readouterr()
    with pytest.raises(StaleError, match="labels or splits of"):
        run(config("photos", "cache"))
    assert "written before" not in capsys.readouterr().out


def test_a_renamed_folder_keeps_the_words_that_were_typed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat/0", "unknown/0"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (0, 0, len(name) * 9)).save(path)
    settings = config("photos", "cache", as_class="unknown")
    view = run(settings)
    shutil.move("photos", "pictures")
    capsys.readouterr()
    again = run(config("pictures", "cache"))
    assert again.folder == view.folder
    assert read_items(view.folder.parent).classes == ["cat", "unknown"]
    told = capsys.readouterr().out
    assert f"labels of these images were written when they were in {tmp_path}/photos" in told
    run(config("pictures", "cache"))  # as of any that is known
    assert "as its labels were written before" in capsys.readouterr().out
    shutil.copytree("pictures", "others")  # the first is still there: they are others
    plain = run(config("others", "cache")).folder.parent
    assert plain.name.startswith("others-") and read_items(plain).classes == ["cat"]
    shutil.move("pictures", "third")
    given_up = run(config("third", "cache", as_class="")).folder.parent
    assert read_items(given_up).classes == ["cat"]


def test_a_word_that_names_a_split_is_no_class_and_told(tmp_path, capsys):
    for name in ("cat/0", "dog/0", "unlabelled/0"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (0, 0, len(name) * 9)).save(path)
    view = run(config(tmp_path / "photos", tmp_path / "cache", as_class="unlabelled"))
    assert read_items(view.folder.parent).classes == ["cat", "dog"]
    err = capsys.readouterr().err
    assert "--as-class unlabelled does nothing: the folder of that name is a split" in err
    shutil.move(tmp_path / "photos" / "unlabelled", tmp_path / "photos" / "unknown")
    settings = config(tmp_path / "photos", tmp_path / "cache", as_class="unknown")
    assert read_items(run(settings).folder.parent).classes == ["cat", "dog", "unknown"]
    assert "does nothing" not in capsys.readouterr().err


def test_a_file_that_changes_after_hashing_is_missing_not_embedded_under_an_old_name(
    photos, tmp_path, monkeypatch
):
    import extract.data.datasets

    real = extract.data.datasets.build_items

    def build_then_change(dataset, tick, stamps):
        items = real(dataset, tick, stamps)
        (tmp_path / "photos" / items.keys[3]).write_bytes((photos / items.keys[5]).read_bytes())
        (tmp_path / "photos" / items.keys[4]).unlink()
        return items

    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.setattr(extract.data.datasets, "build_items", build_then_change)
    view = run(config(tmp_path / "photos", tmp_path / "cache"))
    assert [STATUS[code] for code in integrity.check(view)[[3, 4, 5, BAD]]] == [
        "missing",
        "missing",
        "ok",
        "truncated",
    ]


# --- the same bytes, whatever only changes the speed


def test_decode_workers_change_no_byte(photos, extracted, tmp_path):
    assert files(run(config(photos, tmp_path, workers=2))) == files(extracted)


def test_two_processes_change_no_byte(photos, extracted, tmp_path):
    """Spawned as a user's are."""
    assert files(run(config(photos, tmp_path, gpus=2))) == files(extracted)


def test_batches_never_cross_a_shard_and_the_last_one_is_padded(photos, extracted):
    """Rows of the short last batch equal a forward pass of the same rows in a batch
    of full size, to the bit."""
    assert [list(rows) for rows in batch_rows(32, 45, BATCH)] == [
        list(range(32, 40)),
        list(range(40, 45)),
    ]
    spec = load_spec("tiny-clip")
    backbone = load_backbone(spec, find_weights(spec, None)[0], "cpu")
    padded = torch.zeros(BATCH, 3, 28, 28, dtype=torch.uint8)
    padded[:5] = pixels(photos, keys(extracted)[40:], "tiny-clip")
    with torch.inference_mode():
        np.testing.assert_array_equal(values(extracted)[40:], backbone(padded)[:5].half().numpy())


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(photos, extracted, tmp_path, capsys):
    """One kill at the second shard's commit, and two at times drawn at random within
    the duration of a whole run."""

    def trial(name: str, fault: str = "", seconds: float = 0) -> int:
        settings = json.dumps(dataclasses.asdict(config(photos, tmp_path / name)))
        with server.Popen(
            [sys.executable, "-c", EXTRACT, settings],
            cwd=ROOT,
            env={**os.environ, **server.FIXED, "COVIEW_FAULT": fault},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            if seconds:
                time.sleep(seconds)
                process.kill()
        return process.returncode

    chance = random.Random(time.time_ns())
    times = [chance.uniform(0.05, 1.5) for _ in range(2)]
    assert trial("commit", "kill:2:commit.rename") == -9
    assert {trial("one", seconds=times[0]), trial("two", seconds=times[1])} <= {-9, 0}
    capsys.readouterr()
    for name in ("commit", "one", "two"):
        view = run(
            config(photos, tmp_path / name, batch=BATCH * 2)
        )  # the batch it was begun with is kept
        out = capsys.readouterr().out
        assert name != "commit" or (
            "3 shards (1 done)" in out and f"finished, {N - ROWS} images" in out
        )
        if (
            f'"batch": {BATCH}' in (view.folder / "zarr.json").read_text()
        ):  # else it died before the view was begun
            assert files(view) == files(extracted), f"killed after {times} s"


def test_a_batch_of_another_size_is_recorded_not_hashed(photos, extracted, tmp_path):
    view = run(config(photos, tmp_path, batch=N))
    assert view.folder.name == extracted.folder.name and view.attributes["provenance"]["batch"] == N
    np.testing.assert_allclose(
        values(view).astype(np.float32), values(extracted).astype(np.float32), rtol=2e-3, atol=2e-3
    )


@pytest.mark.many
def test_a_compiled_model_gives_the_embeddings_and_a_resumed_view_goes_on_as_it_was_begun(
    photos, extracted, tmp_path, monkeypatch
):
    from extract.models.backbones import Backbone

    used = []
    monkeypatch.setattr(
        Backbone,
        "compile_features",
        lambda self, whole=Backbone.compile_features: (used.append(1), whole(self)),
    )
    view = run(config(photos, tmp_path, compile=True))
    assert (
        used == [1]
        and view.attributes["provenance"]["compile"]
        and not extracted.attributes["provenance"]["compile"]
    )
    np.testing.assert_allclose(
        values(view).astype(np.float32), values(extracted).astype(np.float32), rtol=2e-3, atol=2e-3
    )
    before = files(view)
    for name in ("complete.json", "commits/00001.json", "embeddings/c/1/0"):
        (view.folder / name).unlink()
    assert files(run(config(photos, tmp_path))) == before and used == [1, 1]


def test_what_torch_cannot_compile_or_compiles_to_something_else_is_refused(
    photos, tmp_path, monkeypatch
):
    given = config(photos, tmp_path, compile=True)
    monkeypatch.setattr(torch, "compile", lambda features, dynamic: lambda images: 1 / 0)
    with pytest.raises(
        UsageError,
        match=(
            r"--compile: torch.compile fails here for .*: ZeroDivisionError: "
            r".*Type the same command without --compile"
        ),
    ):
        run(given)
    monkeypatch.setattr(
        torch, "compile", lambda features, dynamic: lambda images: features(images) * 1.01
    )
    with pytest.raises(
        UsageError,
        match=r"the compiled .* gives other embeddings, relative distance 0\.01, allowed 0\.002",
    ):
        run(given)


def test_images_that_are_the_same_in_two_splits_or_classes_are_told(tmp_path, capsys):
    for split, label, level in (
        ("train", "a", 1),
        ("train", "b", 2),
        ("test", "a", 3),
        ("test", "b", 2),
        ("test", "b", 1),
    ):
        (tmp_path / "data" / split / label).mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), level).save(tmp_path / "data" / split / label / f"{level}.png")
    run(config(tmp_path / "data", tmp_path / "cache"))
    out = capsys.readouterr().err
    assert "differ in case" not in out
    assert (
        "warning: 4 of 5 images of 'data' are byte for byte an image of another "
        "split (first: 'test/b/1.png' and 'train/a/1.png')"
    ) in out
    assert (
        "warning: 2 of 5 images of 'data' are byte for byte an image of another "
        "class (first: 'test/b/1.png' and 'train/a/1.png')"
    ) in out


def test_classes_that_are_called_nearly_the_same_are_told(tmp_path, capsys):
    for name, levels in (
        ("Circle", (1, 2)),
        ("circle", (3,)),
        ("big  dog", (4,)),
        ("bigdog", (5,)),
        ("square", (6,)),
        ("caf\u00e9", (7,)),
        ("cafe\u0301", (8,)),
        ("7", (9,)),
        ("007", (10,)),
        ("0.05", (11,)),
        ("0.5", (12,)),
        ("70", (13,)),
    ):
        (tmp_path / "data" / name).mkdir(parents=True)
        for level in levels:
            Image.new("L", (9, 9), level).save(tmp_path / "data" / name / f"{level}.png")
    run(config(tmp_path / "data", tmp_path / "cache"))
    out = capsys.readouterr().err
    assert (
        "warning: 'Circle' (2 images) and 'circle' (1 image) are classes of their own" in out
        and "'big  dog' (1 image) and 'bigdog'" in out
    )
    assert "'007' (1 image) and '7' (1 image) are classes of their own" in out
    assert out.count("classes of their own") == 4 and "more such names" not in out


def test_of_many_classes_that_are_called_nearly_the_same_the_first_are_told(caplog):
    from cache_specs.items import Items
    from extract.data.suspects import warn_of_classes

    names = sorted([*(f"{n}" for n in range(1, 9)), *(f"{n:02}" for n in range(1, 9))])
    bare = np.zeros(0, np.int64)
    warn_of_classes(Items("x", "folder", [], bare, [], bare, [], names))
    told = [line.getMessage() for line in caplog.records]
    assert len(told) == 6 and told[0].startswith("'01' (0 images) and '1' (0 images) are")
    assert told[5] == "… and so are the classes of 3 more such names"


def test_a_rare_class_that_is_one_letter_away_from_a_common_one_is_told(caplog):
    from cache_specs.items import Items
    from extract.data.suspects import warn_of_classes

    counts = {
        "three": 20,
        "thre": 1,  # left out
        "threee": 4,  # added
        "Thrae": 1,  # another
        "htree": 1,  # moved
        "there": 5,  # not rare: a fourth of the other
        "tree": 20,
        "class 10": 20,
        "class 11": 1,  # a number is no slip
        "cat": 20,
        "cot": 1,  # short names are often alike
        "thr": 1,
    }
    names = list(counts)
    label = np.repeat(np.arange(len(names)), list(counts.values()))
    warn_of_classes(Items("x", "folder", [], label, [], label, [], names))
    told = [line.getMessage() for line in caplog.records]
    first = re.findall(r"^'(\w+)' .* one letter away from '(\w+)'", "\n".join(told), re.MULTILINE)
    rare = ["thre", "threee", "Thrae", "htree"]
    assert first[:4] == [(name, "three") for name in rare]
    assert told[0] == (
        "'thre' (1 image) is one letter away from 'three' (20 images); if it is a slip, mend the "
        "labels and type the same command again"
    )
    others = len(told) - 1 if told[-1].startswith("… and so are") else len(told)
    assert others <= 5


# --- weights


@pytest.fixture
def tampered(tmp_path: Path):
    """tampered(view, change): a folder with the view's files, the tensors
    changed by `change(state)`."""
    from safetensors.torch import load_file, save_file

    def tamper(view: str, change) -> Path:
        folder = tmp_path / f"weights-{view}"
        shutil.copytree(SPECS / "weights" / view, folder)
        [file] = folder.glob("*.safetensors")
        state = load_file(file)
        change(state)
        save_file(state, file, {"format": "pt"})
        return folder

    return tamper


def _missing(state: dict[str, torch.Tensor]) -> str:
    [name] = {
        "visual.ln_post.weight",
        "layernorm.weight",
    } & state.keys()  # transformers renames others while it loads them
    del state[name]
    return name


def _extra(state: dict[str, torch.Tensor]) -> str:
    state["a.tensor.too.many"] = torch.zeros(3)
    return "a.tensor.too.many"


def _misshapen(state: dict[str, torch.Tensor]) -> str:
    [name] = {"visual.ln_post.weight", "layernorm.weight"} & state.keys()
    state[name] = state[name][:-1].clone()
    return name


@pytest.mark.parametrize("change", [_missing, _extra, _misshapen])
@pytest.mark.parametrize("view", ["tiny-clip", "tiny-dinov2"])
def test_weights_that_do_not_fit_are_refused_and_the_tensor_is_named(tampered, view, change):
    names = []
    folder = tampered(view, lambda state: names.append(change(state)))
    spec = load_spec(view)
    with pytest.raises(UsageError, match=f"the weights of '{view}' do not fit") as caught:
        load_backbone(spec, find_weights(spec, str(folder))[0], "cpu")
    assert names[0] in str(caught.value)


def test_local_weights_of_the_same_bytes_are_the_same_view(photos, extracted, tampered, capsys):
    folder = tampered("tiny-clip", lambda state: None)
    shutil.copytree(SPECS / "weights" / "tiny-clip", folder, dirs_exist_ok=True)
    run(config(photos, extracted.folder.parent.parent, weights=str(folder)))
    assert "already in the cache" in capsys.readouterr().out


def test_weights_that_are_not_there_are_named(tmp_path):
    spec, clip = load_spec("tiny-clip"), load_spec("clip")
    with pytest.raises(UsageError, match=r"WEIGHTS=/nowhere: there is no such file or folder"):
        find_weights(spec, "/nowhere")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"needs the file .*open_clip_model\.safetensors, which is not there"
    ):
        find_weights(spec, str(tmp_path))
    with pytest.raises(
        UsageError,
        match=r"needs a folder with open_clip_config\.json and open_clip_model\.safetensors",
    ):
        find_weights(spec, str(tmp_path / "open_clip_config.json"))
    file = tmp_path / "any.safetensors"
    file.write_bytes(b"x")
    assert find_weights(clip, str(file))[0] == {"open_clip_model.safetensors": file}


def test_the_weights_sha_covers_names_and_contents(tmp_path):
    clip, shas = load_spec("clip"), set()
    for content in (b"x", b"y", b"x"):
        (tmp_path / "f.safetensors").write_bytes(content)
        shas.add(find_weights(clip, str(tmp_path / "f.safetensors"))[1])
    assert len(shas) == 2


@pytest.mark.parametrize("name", ["w.bin", "w.pth"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"needs a \.safetensors file"):
        find_weights(load_spec("clip"), str(tmp_path / name))


def test_safetensors_that_are_damaged_are_refused(tmp_path):
    shutil.copytree(SPECS / "weights" / "tiny-clip", tmp_path / "w")
    (tmp_path / "w" / "open_clip_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"open_clip_model\.safetensors"):
        load_backbone(
            load_spec("tiny-clip"),
            find_weights(load_spec("tiny-clip"), str(tmp_path / "w"))[0],
            "cpu",
        )


def test_without_a_network_the_repository_the_file_and_the_way_out_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        find_weights(load_spec("dinov2"), None)
    for part in (
        "facebook/dinov2-with-registers-large",
        "config.json and model.safetensors",
        "revision main",
        "WEIGHTS=FOLDER",
        "hf download",
    ):
        assert part in str(caught.value)


# --- frozen, finite


def test_frozen_means_frozen():
    spec = load_spec("tiny-dinov2")
    backbone = load_backbone(spec, find_weights(spec, None)[0], "cpu")
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


class Stub(Backbone):
    """Row 0 overflows only in the low precision, row 1 always, row 2 never."""

    def __init__(self) -> None:
        spec = load_spec("tiny-clip")
        super().__init__(torch.nn.Identity(), lambda images: images, spec)
        self.exact = 0

    def forward(self, pixels_BCHW: torch.Tensor, exact: bool = False) -> torch.Tensor:
        self.exact += exact
        return torch.tensor(
            [[1.0 if exact else torch.inf, 2.0], [1e6, 2.0], [3.0, 4.0], [torch.nan, 0.0]]
        )


def test_a_row_that_is_not_finite_is_computed_again_in_float32_and_else_gets_a_status():
    stub, pixels_BCHW = Stub(), torch.zeros(4, 3, 28, 28, dtype=torch.uint8)
    status_B = torch.tensor([OK, OK, OK, UNDECODABLE], dtype=torch.uint8)
    half, status = finish(stub, stub(pixels_BCHW), pixels_BCHW, status_B)
    assert (
        status.tolist() == [OK, NON_FINITE, OK, UNDECODABLE]
        and status.dtype == np.uint8
        and half.dtype == np.float16
    )
    np.testing.assert_array_equal(
        half, np.array([[1, 2], [np.nan, np.nan], [3, 4], [np.nan, np.nan]], np.float16)
    )
    assert stub.exact == 1
    finish(stub, torch.ones(4, 2), pixels_BCHW, status_B)
    assert stub.exact == 1, "finite rows are not computed again"


def test_a_bad_image_alone_asks_for_no_second_computation():
    stub = Stub()
    half, status = finish(
        stub,
        torch.tensor([[torch.nan, 1.0]]),
        torch.zeros(1, 3, 28, 28),
        torch.tensor([UNDECODABLE], dtype=torch.uint8),
    )
    assert stub.exact == 0 and status.tolist() == [UNDECODABLE] and np.isnan(half).all()


# --- the command line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"view": ""},
            (
                r"VIEW is missing\. Type: make extract VIEW=clip DATA=.*\(views: "
                r"aimv2, .*clip, .*tiny-dinov2, tipsv2\)"
            ),
        ),
        ({"data": ""}, r"DATA is missing\. Type: make extract VIEW=tiny-clip DATA=photos/"),
        ({"view": "tiny-clp"}, r"no view 'tiny-clp'; did you mean 'tiny-clip'"),
        ({"data": "/nowhere/photos"}, r"DATA=/nowhere/photos: there is no such folder"),
        ({"batch": -1}, "--batch must be at least 0, found -1"),
        ({"gpus": 0}, "--gpus must be at least 1, found 0"),
        ({"shard_rows": -1}, "--shard-rows must be at least 0, found -1"),
    ],
)
def test_what_is_missing_or_wrong_is_named_with_the_command(photos, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        run(config(photos, tmp_path / "cache", **changes))
    assert caught.value.exit_code == 2 and not (tmp_path / "cache").exists()


def test_decode_workers_are_forked_from_a_process_that_has_imported_what_they_need():
    """Each would take seconds for it."""
    code = """if __name__ == "__main__":
    import multiprocessing, sys
    from extract.workers import begin_workers
    begin_workers()
    assert "torch" not in sys.modules
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        print(pool.apply(eval, ("'extract.images' in __import__('sys').modules",)))"""
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
        ).stdout
        == "True\n"
    )


def test_all_cores_decode_for_a_gpu_and_each_gpu_has_its_share(monkeypatch):
    monkeypatch.setattr("base.native.QUOTA", Path("none"))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(24))
    assert [
        workers_of(-1, 100, device, count)
        for device, count in (("cuda:0", 1), ("cuda:1", 4), ("cuda:0", 48), ("cpu", 1))
    ] == [24, 6, 1, 0]
    assert [
        workers_of(-1, 100, "cpu", seconds=0.3),
        workers_of(3, 1, "cpu"),
        workers_of(3, 0, "cpu"),
        workers_of(-1, 0, "cuda:0"),
    ] == [24, 3, 0, 0]
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(256))
    assert workers_of(-1, 100, "cuda:0") == 32


def test_a_gpu_that_is_not_there_is_a_usage_error(photos, tmp_path):
    with pytest.raises(UsageError, match="torch sees no CUDA GPU here; use DEVICE=cpu"):
        run(config(photos, tmp_path, device="cuda"))


@pytest.mark.parametrize(
    ("plan", "code", "message"),
    [("ENOSPC:1:embeddings.half", 4, "cannot write"), ("kill:1:embeddings.half", 7, "died")],
)
def test_what_happens_to_one_of_two_processes_is_the_exit_code(
    tmp_path: Path, command: Callable, plan: str, code: int, message: str
) -> None:
    args = ("extract", "--view", "tiny-clip", "--data", "digits", "--cache", tmp_path, "--gpus", 2)
    failed = command(*args, env={"COVIEW_FAULT": plan}, first=server.FORKED_PARTS)
    assert (
        failed.returncode == code and message in failed.stderr and "Traceback" not in failed.stderr
    ), failed.stderr
