"""Images that were moved, renamed or added: a new version of the data set, in which what is known
is copied, byte for byte, and not embedded again."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import server
import torch
from conftest import EXTRACT, NOTES, ROOT, VIEW_TOML
from killing import Killed, killing
from PIL import Image

from base import durable
from base.errors import IntegrityError, StaleError, StorageError, UsageError
from cache_specs import integrity, store
from cache_specs.items import Items, read_items
from cache_specs.lookup import find_dataset, one_view
from cache_specs.view import View
from extract import canary, reuse
from extract.config import ExtractConfig
from extract.models import backbones
from extract.plan import plan
from extract.prepare import prepare
from extract.run import extraction, run
from train.data.reader import open_cache
from upkeep import gc
from upkeep.config import RepairConfig, VerifyConfig
from upkeep.repair import mend_view
from upkeep.status import dataset_records, status_text
from upkeep.verify import verify

N, ROWS, WIDTH = 18, 4, 8  # 5 shards, the last one half full
# a line for every model that was loaded, and for every batch how many of its images are no padding
LOADED: list[str] = []


class Wavering(torch.nn.Module):
    """A fixed projection of the pixels whose last bits depend on the place in
    the batch, as a GPU's may."""

    scale = 1.0

    def forward(self, pixels: torch.Tensor, exact: bool = False) -> torch.Tensor:
        flat = pixels.float().flatten(1) / 255
        emb = flat @ torch.linspace(-1, 1, flat.shape[1] * WIDTH).sin().view(-1, WIDTH) * self.scale
        if not exact and len(pixels) == 3:
            LOADED.append(f"batch of {int(flat.any(1).sum())}")
            emb = emb * (1 + 6e-4 * torch.arange(3)[:, None])
        return emb


def load(spec: object, files: object, device: str) -> torch.nn.Module:
    LOADED.append("model")
    return Wavering()


def image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (20, 12 + seed % 20, 3), np.uint8)
    ).save(path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(backbones, "load_backbone", load)
    for i in range(N):
        image(tmp_path / "photos" / ("unlabelled" if i % 3 else "ab"[i % 2]) / f"{i:02d}.png", i)
    (tmp_path / "none").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "none" / name).write_text("{}")
    (tmp_path / "v.toml").write_text(VIEW_TOML.format(width=WIDTH))
    LOADED.clear()
    return tmp_path


def settings(world: Path, **changes: object) -> ExtractConfig:
    base = {
        "view": str(world / "v.toml"),
        "data": str(world / "photos"),
        "cache": str(world / "cache"),
        "device": "cpu",
        "batch": 3,
        "shard_rows": ROWS,
    }
    return ExtractConfig(**{**base, "workers": 0, **changes})


def extract(world: Path, **changes: object) -> tuple[View, dict]:
    LOADED.clear()
    told: dict = {}
    return run(settings(world, **changes), told), told


def label(world: Path, *names: str) -> None:
    for name in names:
        path = world / "photos" / "unlabelled" / name
        path.rename(world / "photos" / "a" / name)


def rows(view: View) -> dict[str, bytes]:
    """Each image's row, by its content."""
    items, (emb_ND, _) = read_items(view.folder.parent), store.read_rows(view, range(view.n))
    return {sha: emb_D.tobytes() for sha, emb_D in zip(items.sha256, emb_ND, strict=True)}


def contents(view: View) -> dict[str, bytes]:
    return {
        str(path.relative_to(view.folder)): path.read_bytes()
        for path in view.folder.rglob("*")
        if path.is_file() and path.name not in NOTES
    }


def labels(items: Items) -> dict[str, str]:
    return {
        key.rpartition("/")[2]: items.classes[label] if label >= 0 else ""
        for key, label in zip(items.keys, items.label, strict=True)
    }


def test_moving_files_gives_them_labels_and_nothing_is_embedded_not_even_a_model_loaded(
    world, capsys
):
    old, _ = extract(world)
    before = contents(old)
    capsys.readouterr()
    label(world, "01.png", "05.png")
    new, told = extract(world)
    out = capsys.readouterr().out
    assert (
        "photos: the images have changed: 2 moved or renamed, 2 with another label "
        "or split; 18 of 18 are known by their content"
    ) in out
    assert (
        f"{new.folder.parent.name} is the current version now, "
        f"{old.folder.parent.name} stays for what was trained on it"
    ) in out
    assert (
        "v: 18 rows are copied, of the same images in finished views (18 of "
        f"{old.folder.parent.name}); 0 to embed"
    ) in out
    assert told["embedded"] == 0 and told["hits"] == N and not LOADED
    assert (
        rows(new) == rows(old)
        and contents(old) == before
        and labels(read_items(new.folder.parent))["01.png"] == "a"
    )
    assert new.attributes["provenance"]["reused"] == [
        {
            "dataset": old.folder.parent.name,
            "items": old.attributes["items_fingerprint"],
            "root": integrity.root(old),
            "rows": N,
        }
    ]
    assert (
        "already in the cache" in (extract(world), capsys.readouterr().out)[1]
        and LOADED[0] == "model"
    )  # the canary that was taken over holds
    assert len(list((world / "cache").glob("photos-*"))) == 2


def test_added_images_alone_are_embedded_in_batches_of_their_own(world):
    (world / "photos" / "b" / "03.png").write_bytes(b"no image")
    old, first = extract(world)
    assert first["embedded"] == N
    for i in range(5):
        image(world / "photos" / "unlabelled" / f"new{i}.png", 100 + i)
    new, told = extract(world)
    assert (told["embedded"], told["hits"], told["bad"]) == (
        6,
        N - 1,
        {"undecodable": 1},
    )  # and the one that could not be, before
    assert sum(int(line.split()[-1]) for line in LOADED if line.startswith("batch of")) == 5
    was, now = rows(old), rows(new)
    assert len(now) == N + 5 and all(now[sha] == row for sha, row in was.items())
    assert (integrity.check(new) > 0).sum() == 1


def test_the_current_version_is_what_data_means_and_the_older_one_has_its_folders_name(
    world, capsys
):
    old, _ = extract(world)
    label(world, "01.png")
    new, _ = extract(world)
    cache, data, toml = world / "cache", str(world / "photos"), str(world / "v.toml")
    assert find_dataset(cache, data) == find_dataset(cache, "photos") == new.folder.parent
    assert (
        find_dataset(cache, old.folder.parent.name) == old.folder.parent
        and one_view(cache, "v", "", "export") == new.folder
    )
    assert open_cache(cache, data, [toml]).items.keys == read_items(new.folder.parent).keys
    assert (
        f"{old.folder.parent.name}: 18 items of {data}, an older version, "
        f"DATA={old.folder.parent.name} names it"
    ) in status_text(cache)
    assert f"{new.folder.parent.name}: 18 items of {data}, the current version" in status_text(
        cache
    )
    assert sorted((record["version"], record["older"]) for record in dataset_records(cache)) == [
        (0, True),
        (1, False),
    ]
    assert not list(gc.waste(cache))
    open_cache(cache, old.folder.parent.name, [toml]).warn_of_drift()  # named on purpose
    assert "warning" not in capsys.readouterr().err
    (world / "photos" / "a" / "01.png").rename(world / "photos" / "unlabelled" / "01.png")
    open_cache(cache, data, [toml]).warn_of_drift()
    err = capsys.readouterr().err
    assert f"of 18 images looked at in {data}, 1 were moved, are gone or have changed" in err
    assert (
        "type first (known images are not embedded again):\n"
        f"  make extract VIEW={toml} DATA={data} CACHE={cache}"
    ) in err
    again, told = extract(world)  # back to what it was
    assert (
        again.folder == old.folder
        and told["embedded"] == 0
        and find_dataset(cache, data) == old.folder.parent
    )


def test_training_on_a_view_that_only_the_older_version_has_names_the_command_that_is_cheap(world):
    (world / "w.toml").write_text(
        VIEW_TOML.format(width=WIDTH)
        .replace("resize = 8", "resize = 9")
        .replace("crop = 8", "crop = 9")
    )
    old, _ = extract(world)
    extract(world, view=str(world / "w.toml"))
    label(world, "01.png")
    extract(world)
    with pytest.raises(UsageError) as caught:
        open_cache(
            world / "cache", str(world / "photos"), [str(world / "v.toml"), str(world / "w.toml")]
        )
    assert (
        f"make extract VIEW={world / 'w.toml'} DATA={world / 'photos'}   (its embeddings of "
        f"the images that {old.folder.parent.name} has are copied"
    ) in str(caught.value)


def test_what_is_gone_is_refused_and_the_command_that_is_told_makes_a_version(world, capsys):
    old, _ = extract(world)
    (world / "photos" / "a" / "00.png").unlink()
    with pytest.raises(
        StaleError,
        match=(
            r"\(18 -> 17 items\): the contents of 1 are gone or have "
            r"changed, first a/00\.png \(row 0\)"
        ),
    ) as caught:
        extract(world)
    assert str(caught.value).endswith("ARGS=--changed") and "--name photos-2" in str(caught.value)
    assert find_dataset(world / "cache", "photos") == old.folder.parent and not LOADED
    new, told = extract(world, changed=True)
    assert (
        told["embedded"] == 0
        and new.n == N - 1
        and find_dataset(world / "cache", "photos") == new.folder.parent
    )
    assert "1 gone; 17 of 17 are known by their content" in capsys.readouterr().out


@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.many)])
def test_killed_at_any_fault_point_it_goes_on_with_the_same_donors_and_ends_with_the_same_bytes(
    world, stride
):
    extract(world)
    label(world, "01.png", "10.png")
    for i in range(5):
        image(world / "photos" / "unlabelled" / f"new{i}.png", 100 + i)
    shutil.copytree(world / "cache", world / "kept")
    whole, told = extract(world)
    want, place, after = contents(whole), 1 - stride, []
    assert told["embedded"] == 5
    while (place := place + stride) < 400:
        shutil.rmtree(world / "cache")
        shutil.copytree(world / "kept", world / "cache")
        try:
            with killing(place):
                extract(world)
            break
        except Killed:
            pass
        view, told = extract(world)
        assert contents(view) == want and not list((world / "cache").rglob(".*.tmp")), place
        after.append(told["embedded"])
    assert (
        80 < place < 400
        and after == sorted(after, reverse=True)
        and (after[0], after[-1]) == (5, 0)
    ), (place, after)


def test_a_donor_that_is_damaged_is_said_and_left_out_and_one_that_goes_meanwhile_is_embedded(
    world, capsys
):
    old, _ = extract(world)
    label(world, "01.png")
    shutil.copytree(world / "cache", world / "kept")
    file = old.embeddings_file(1)
    file.write_bytes(b"x" + file.read_bytes()[1:])
    new, told = extract(world)
    assert told["embedded"] == N and "reused" not in new.attributes["provenance"]
    out = capsys.readouterr().out
    assert f"nothing is copied from {old.folder}: " in out and "make repair VIEW=v" in out
    shutil.rmtree(world / "cache")
    shutil.copytree(world / "kept", world / "cache")
    extract(world)
    (new.folder / "complete.json").unlink()
    new.commit_file(2).unlink()
    shutil.rmtree(old.folder)
    again, told = extract(world)
    assert (
        told["embedded"] == ROWS
        and again.is_complete
        and "cannot be copied from any more, so its rows are embedded" in capsys.readouterr().out
    )


@pytest.mark.parametrize("canary", [True, False])
def test_rows_of_another_library_are_not_mixed_with_those_of_now(
    world, monkeypatch, capsys, canary
):
    old, _ = extract(world)
    image(world / "photos" / "unlabelled" / "new.png", 100)
    if not canary:
        (old.folder / "canary.json").unlink()
    monkeypatch.setattr(Wavering, "scale", 1.01)
    new, told = extract(world)
    assert told["embedded"] == N + 1 and "reused" not in new.attributes["provenance"]
    assert (
        f"nothing is copied from {old.folder}: "
        "the model's outputs are others now, relative distance 0.01"
    ) in capsys.readouterr().out


def test_repair_ends_with_the_same_bytes_also_of_an_older_version(world, capsys):
    old, _ = extract(world)
    label(world, "01.png", "10.png")
    image(world / "photos" / "unlabelled" / "new.png", 100)
    new, _ = extract(world)
    for view in (new, old):
        want = contents(view)
        for shard in (0, 4):
            view.embeddings_file(shard).unlink()
        LOADED.clear()
        mend_view(
            RepairConfig(
                view="v",
                data=view.folder.parent.name,
                cache=str(world / "cache"),
                device="cpu",
                workers=0,
            )
        )
        assert contents(view) == want and integrity.check(view) is not None
    out = capsys.readouterr().out
    assert "of their rows are copied, from the views of then" in out
    assert "others than before" not in out
    verify(
        VerifyConfig(
            cache=str(world / "cache"), recompute=4, device="cpu", view=str(world / "v.toml")
        )
    )
    assert capsys.readouterr().out.count(" rows computed again: largest relative distance") == 2


def test_a_dry_run_counts_what_would_be_copied(world, capsys):
    old, _ = extract(world)
    image(world / "photos" / "unlabelled" / "new.png", 100)
    before = {path: path.read_bytes() for path in (world / "cache").rglob("*") if path.is_file()}
    told: dict = {}
    plan(settings(world, dry_run=True), told)
    assert (told["hits"], told["to_embed"]) == (N, 1)
    out = capsys.readouterr().out
    assert (
        "the images have changed: 1 new; 18 of 19 are known" in out
        and f"(the same images in other data sets: 18 of {old.folder.parent.name})" in out
    )
    assert before == {
        path: path.read_bytes() for path in (world / "cache").rglob("*") if path.is_file()
    }


def test_a_donor_of_several_processes_is_the_same(photos, tmp_path):
    """Each process copies and embeds its own shards."""
    shutil.copytree(photos, tmp_path / "photos")
    base = ExtractConfig(
        view="tiny-clip",
        data=str(tmp_path / "photos"),
        cache=str(tmp_path / "one"),
        device="cpu",
        batch=8,
        shard_rows=16,
        workers=0,
        max_bad="10%",
    )
    run(base)
    for i in range(3):
        image(tmp_path / "photos" / "a" / f"new{i}.png", 100 + i)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, several = run(base), dataclasses.replace(base, cache=str(tmp_path / "two"), gpus=2)
    program = server.FORKED_PARTS + EXTRACT
    settings = json.dumps(dataclasses.asdict(several))
    server.run([sys.executable, "-c", program, settings], cwd=ROOT, check=True)
    two = store.open_view(tmp_path / "two" / one.folder.relative_to(tmp_path / "one"))
    assert (
        rows(one) == rows(two)
        and contents(one) == contents(two)
        and one.attributes["provenance"]["reused"][0]["rows"] == 44
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "photso"}, "there is no such folder; did you mean 'photos/'. DATA may be"),
        ({"data": "lst.csv"}, "there is no such file; did you mean 'list.csv'"),
        ({"data": "digit"}, "there is no such folder; did you mean 'digits'"),
        ({"name": "photos-1d655206"}, "looks like the folder of a version of 'photos'"),
        ({"data": "zzzzzzzz"}, "there is no such folder. DATA may be"),
        (
            {"view": "tiny-clip, tiny-clip"},
            "the view 'tiny-clip' was named twice",
        ),
    ],
)
def test_a_slip_of_the_keyboard_is_answered_with_what_was_meant(
    world, monkeypatch, changes, message
):
    (world / "list.csv").write_text("path\n")
    monkeypatch.chdir(world)
    with pytest.raises(UsageError) as caught:
        run(settings(world, **{"data": "photos", **changes}))
    assert message in str(caught.value)


def test_the_same_images_under_another_name_are_copied_too(world):
    old, _ = extract(world)
    new, told = extract(world, name="pets")
    assert (
        told["embedded"] == 0
        and new.folder.parent.name.startswith("pets-")
        and rows(new) == rows(old)
    )


def dies(world: Path, point: str, **changes: object) -> None:
    """Extract, killed at this fault point."""

    def fault(passed: str) -> None:
        if passed == point:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(durable, "fault", fault)
        extract(world, **changes)


def mend(world: Path, view: View, **changes: object) -> View:
    LOADED.clear()
    mend_view(
        RepairConfig(
            **{
                "view": "v",
                "data": view.folder.parent.name,
                "cache": str(world / "cache"),
                "device": "cpu",
                "workers": 0,
                **changes,
            }
        )
    )
    return store.open_view(view.folder)


def test_a_donor_that_is_damaged_after_the_check_is_not_copied_for_good(world, monkeypatch):
    old, _ = extract(world)
    want, first, agreeing = rows(old), old.embeddings_file(1).read_bytes(), reuse.agreeing
    image(world / "photos" / "unlabelled" / "new.png", 100)

    def damage(*given: object) -> reuse.Known:
        known = agreeing(*given)
        old.embeddings_file(1).write_bytes(bytes([first[0] ^ 0x40]) + first[1:])
        return known

    with monkeypatch.context() as patch:
        patch.setattr(reuse, "agreeing", damage)
        with pytest.raises(
            IntegrityError,
            match=(
                r"photos-.* changed while it was copied from: "
                r"embeddings/c/1/0 is not what was sealed\.\n"
                "Type: make repair VIEW=v DATA=photos-"
            ),
        ):
            extract(world)
    assert list((world / "cache").glob("photos-*/v-*/commits/00001.json")) == [old.commit_file(1)]
    assert mend(world, old).embeddings_file(1).read_bytes() == first
    new, told = extract(world)
    assert told["embedded"] == 1 and all(rows(new)[sha] == row for sha, row in want.items())


def test_what_a_killed_run_copied_is_kept_though_the_donor_is_damaged_since(world):
    """It was undamaged when it was copied: its file is held against its digest at that moment."""
    old, _ = extract(world)
    want, first = rows(old), old.embeddings_file(1).read_bytes()
    image(world / "photos" / "unlabelled" / "new.png", 100)
    dies(world, "complete.open")
    old.embeddings_file(1).write_bytes(b"x" + first[1:])
    new, told = extract(world)
    assert told["embedded"] == 0 and all(rows(new)[sha] == row for sha, row in want.items())


def test_a_donor_is_read_whole_when_it_is_copied_from_and_again_when_it_was_written(
    world, monkeypatch
):
    old, _ = extract(world)
    file, read, real = old.embeddings_file(1), [], integrity.sha256_of
    whole, known = file.read_bytes(), reuse.Known([old], np.zeros(N, np.int32), np.arange(N))
    file.write_bytes(whole[:3] + bytes([whole[3] ^ 1]) + whole[4:])
    with pytest.raises(IntegrityError, match="changed while it was copied from"):
        known.block(old, 1)
    assert not (old.folder / "verified.json").exists()
    file.write_bytes(whole)
    monkeypatch.setattr(integrity, "sha256_of", lambda path: (read.append(path), real(path))[1])
    for touched, times in ((False, 1), (False, 1), (True, 2)):
        if touched:
            os.utime(file, (0, 0))
        emb_RD, status_R = known.block(old, 1)
        assert emb_RD.tobytes() == whole[: emb_RD.nbytes] and not status_R.any()
        assert read == [file] * times


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (Path.unlink, StorageError),
        (lambda file: file.write_bytes(file.read_bytes()[:9]), IntegrityError),
        (lambda file: file.write_bytes(b"\xff" * 99), IntegrityError),
    ],
    ids=["gone", "short", "not finite"],
)
def test_a_donor_that_goes_while_it_is_copied_from_ends_the_run_with_the_command(
    world, monkeypatch, harm, error
):
    old, _ = extract(world)
    image(world / "photos" / "unlabelled" / "new.png", 100)
    create = store.create_view

    def harmed(*given: object) -> View:
        view = create(*given)
        harm(old.embeddings_file(0))
        return view

    with monkeypatch.context() as patch:
        patch.setattr(store, "create_view", harmed)
        with pytest.raises(error, match=r"(?s)copied from.*ype the same command again"):
            extract(world)
    assert extract(world)[0].is_complete


def test_a_donor_that_was_made_anew_meanwhile_is_not_copied_from(world, monkeypatch):
    old, _ = extract(world)
    with monkeypatch.context() as patch:
        patch.setattr(Wavering, "scale", 1.0005)  # within what the canary allows, and other bytes
        other, _ = extract(world, cache=str(world / "other"))
    image(world / "photos" / "unlabelled" / "new.png", 100)
    dies(world, "commit.open")
    shutil.rmtree(old.folder)
    shutil.copytree(other.folder, old.folder)
    assert extract(world)[1]["embedded"] == N + 1


def test_images_that_are_decoded_otherwise_now_are_not_copied(world, monkeypatch, capsys):
    old, _ = extract(world)
    value = durable.read_sealed(old.folder / "canary.json")
    (old.folder / "canary.json").write_bytes(
        durable.sealed({**value, "pixels": ["0" * 64, *value["pixels"][1:]]})
    )
    image(world / "photos" / "unlabelled" / "new.png", 100)
    assert extract(world)[1]["embedded"] == N + 1
    assert (
        f"nothing is copied from {old.folder}: its images are decoded or resized otherwise now"
        in capsys.readouterr().out
    )


def test_stored_rows_that_are_not_what_the_model_says_are_not_copied_though_the_canary_is(
    world, monkeypatch, capsys
):
    forward = Wavering.forward
    with monkeypatch.context() as patch:  # as a compiled model of then
        patch.setattr(
            Wavering,
            "forward",
            lambda self, pixels, exact=False: forward(self, pixels, exact) * (1 if exact else 1.2),
        )
        extract(world)
    image(world / "photos" / "unlabelled" / "new.png", 100)
    assert extract(world)[1]["embedded"] == N + 1
    assert (
        "the model's outputs are others now, relative distance 0.17 of "
        "its stored rows, allowed 0.002"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gone", "scale", "want"), [(24, 1.0, (False, 0)), (25, 1.0, (True, 0)), (25, 1.05, (True, 15))]
)
def test_a_canary_is_taken_over_with_half_of_its_images_there_else_rows_are_held_against_the_model(
    world, monkeypatch, gone, scale, want
):
    for i in range(22):
        image(world / "photos" / "b" / f"more{i}.png", 200 + i)
    old, _ = extract(world)  # 40 images, of which 32 are the canary's
    items = read_items(old.folder.parent)
    for row in canary.rows_of(len(items))[:gone]:
        (world / "photos" / items.keys[row]).unlink()
    monkeypatch.setattr(Wavering, "scale", scale)
    told = extract(world, changed=True)[1]
    assert ("model" in LOADED, told["embedded"]) == want


def test_of_several_donors_those_of_another_library_are_left_out_also_where_nothing_is_new(
    world, monkeypatch, capsys
):
    (world / "more").mkdir()
    for i in range(7):
        image(world / "more" / f"{i}.png", 100 + i)
    extract(world)
    with monkeypatch.context() as patch:
        patch.setattr(Wavering, "scale", 1.05)
        other, _ = extract(world, data=str(world / "more"))
    shutil.copytree(world / "more", world / "photos" / "unlabelled", dirs_exist_ok=True)
    new, told = extract(world, name="all")
    assert told["embedded"] == 7 and [
        one["rows"] for one in new.attributes["provenance"]["reused"]
    ] == [N]
    assert (
        f"nothing is copied from {other.folder}: the model's outputs are others now"
        in capsys.readouterr().out
    )


def test_killed_before_its_canary_and_resumed_by_another_library_it_asks_the_donors_again(
    world, monkeypatch, capsys
):
    old, _ = extract(world)
    image(world / "photos" / "unlabelled" / "new.png", 100)
    dies(world, "canary.open")
    monkeypatch.setattr(Wavering, "scale", 1.05)
    dies(world, "commit.open")
    new, told = extract(world)
    assert (
        told["embedded"] == N + 1
        and "reused" not in new.attributes["provenance"]
        and not rows(new).items() & rows(old).items()
    )
    assert (
        integrity.check(new) is not None
        and capsys.readouterr().out.count(
            f"nothing is copied from {old.folder}: the model's outputs"
        )
        == 1
    )


def relabelled(world: Path) -> tuple[View, View]:
    """A view, and that of the next version, all of whose rows but one are copied from it."""
    old, _ = extract(world)
    label(world, "01.png")
    image(world / "photos" / "unlabelled" / "new.png", 100)
    return old, extract(world)[0]


def test_repair_says_so_where_the_bytes_cannot_be_had_again(world, capsys):
    old, new = relabelled(world)
    want, root = rows(new), integrity.root(new)
    shutil.rmtree(old.folder.parent)
    new.embeddings_file(1).unlink()
    new = mend(world, new)
    out = capsys.readouterr().out
    assert (
        "v: the bytes of the shards 1 are others than before: " in out
        and "train again, under another RUN" in out
    )
    assert integrity.root(new) != root and sum(
        rows(new)[sha] != row for sha, row in want.items()
    ) in range(1, ROWS + 1)


def test_repair_takes_no_rows_of_a_donor_or_an_heir_but_those_that_were_sealed(
    world, capsys, monkeypatch
):
    """The heir has the content from another donor, in other bytes."""
    sub = world / "sub"
    sub.mkdir()
    extract(world)
    for path in sorted((world / "photos").rglob("*.png"))[:7]:
        shutil.copy(path, sub / path.name)
    image(sub / "zz.png", 500)
    other, _ = extract(world, data=str(sub), cache=str(world / "other"), batch=2)
    shutil.copytree(other.folder.parent, world / "cache" / other.folder.parent.name)
    other = store.open_view(world / "cache" / other.folder.parent.name / other.folder.name)
    shutil.copy(sub / "zz.png", world / "photos" / "unlabelled" / "zz.png")
    heir, told = extract(world)
    assert told["embedded"] == 0 and len(heir.attributes["provenance"]["reused"]) == 2
    want, taken = contents(other), contents(heir)
    other.embeddings_file(0).unlink()
    sub.rename(world / "away")
    with pytest.raises(UsageError, match="which is gone"):
        mend(world, other)
    assert not other.embeddings_file(0).exists() and other.is_complete
    (world / "away").rename(sub)
    assert (
        contents(mend(world, other)) == want and "others than before" not in capsys.readouterr().out
    )  # by the model, in the batches of then
    other.embeddings_file(0).unlink()
    monkeypatch.setattr(Wavering, "scale", 1.0005)
    other = mend(world, other)
    assert (
        contents(other) != want
        and "the bytes of the shards 0 are others than before" in capsys.readouterr().out
        and contents(heir) == taken
    )


def test_repair_copies_one_shard_and_computes_another(world, capsys):
    old, new = relabelled(world)
    want, shards = (
        contents(new),
        [
            row // ROWS
            for row, key in enumerate(read_items(new.folder.parent).keys)
            if key.endswith(("new.png", "00.png"))
        ],
    )
    for shard in shards:
        new.status_file(shard).unlink()
    assert (
        contents(mend(world, new)) == want
        and LOADED.count("batch of 1") == 1
        and "others than before" not in capsys.readouterr().out
    )
    assert len(set(shards)) == 2 and old.is_complete


def test_repair_seals_no_row_of_a_donor_that_is_damaged_meanwhile(world, monkeypatch):
    old, new = relabelled(world)
    whole, want, recorded = old.embeddings_file(1).read_bytes(), contents(new), reuse.recorded
    new.status_file(1).unlink()

    def damage(*given: object) -> reuse.Known:
        known = recorded(*given)
        old.embeddings_file(1).write_bytes(bytes([whole[0] ^ 0x40]) + whole[1:])
        return known

    with monkeypatch.context() as patch:
        patch.setattr(reuse, "recorded", damage)
        with pytest.raises(IntegrityError, match="changed while it was copied"):
            mend(world, new)
    assert not new.is_complete and 1 in new.pending()
    old.embeddings_file(1).write_bytes(whole)
    assert contents(extract(world)[0]) == want


def test_shards_that_are_named_are_computed_and_not_copied(world, capsys, monkeypatch):
    old, new = relabelled(world)
    for view in (old, new):
        assert (
            mend(world, view, shards="0") and "model" in LOADED and LOADED.count("batch of 3") >= 1
        )
    assert "the bytes of the shards 0 are others" in capsys.readouterr().out


def test_of_two_extractions_at_once_the_one_that_looked_first_is_not_the_last_word(world):
    extract(world)
    label(world, "01.png")
    readies = prepare(settings(world))
    label(world, "10.png")
    new, _ = extract(world)
    with pytest.raises(StaleError, match="became the current version"):
        extraction(readies)
    assert find_dataset(world / "cache", str(world / "photos")) == new.folder.parent
