"""make push, make pull: over the wire of S3, through a proxy that does harm. What comes out is what
went in, to the last byte, or there is none."""

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import objects
import obstore
import pytest
import server
import zarr
from conftest import NOTES, ROOT, config

from base import durable, locks
from base.errors import IntegrityError, StaleError, StorageError, UsageError
from cache_specs import integrity, store
from cache_specs.items import read_items
from cache_specs.sources import read_source
from cache_specs.succession import write_items
from cache_specs.tuned import digest, listed, seen_of
from cache_specs.view import DOCUMENTS, write_documents
from exchange.config import ImportConfig, PullConfig, PushConfig
from exchange.remote import command
from exchange.remote import objects as remote
from exchange.remote.card import about_of
from exchange.remote.pull import pull
from exchange.remote.push import _say_what_keys_tell, push
from extract.run import run as extract
from train.data.reader import open_cache
from upkeep.config import GcConfig, StatusConfig
from upkeep.gc import collect, waste
from upkeep.status import command as status

TO = f"s3://{objects.BUCKET}/views"


def many(*values: object) -> list:
    """For the large tier alone."""
    tuples = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*each, marks=pytest.mark.many) for each in tuples]


@pytest.fixture(scope="module")
def server_of_module() -> Iterator[objects.Wire]:
    with objects.s3() as wire:
        yield wire


@pytest.fixture
def wire(server_of_module: objects.Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[objects.Wire]:
    """Nothing has passed, nothing lies there, and a store that fails is waited for shortly."""
    for name, value in objects.environment(server_of_module).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PATIENCE", remote.timedelta(seconds=0.5))
    server_of_module.harm = lambda request: None
    place = remote.Place(TO)
    for name in place.sizes("digits-6f88bbf1"):
        obstore.delete(place.store, name)
    server_of_module.requests.clear()
    yield server_of_module


@pytest.fixture(scope="module")
def cache(digits: Path) -> Path:
    return digits


@pytest.fixture
def shelf(wire: objects.Wire, cache: Path) -> str:
    """Where a view lies: put there once, and no test changes it."""
    address = f"s3://{objects.BUCKET}/shelf"
    if not remote.Place(address).sizes(folder_of(cache).parent.name):
        pushed(cache, address)
    wire.requests.clear()
    return address


def pushed(cache: Path, to: str = TO, **changes: object) -> str:
    asked = PushConfig(view="tiny-clip", data="digits", to=str(to), cache=str(cache))
    return push(dataclasses.replace(asked, **changes))


def pulled(cache: Path, source: str = TO, **changes: object) -> list[store.View]:
    return pull(dataclasses.replace(PullConfig(source=str(source), cache=str(cache)), **changes))


def folder_of(cache: Path, view: str = "tiny-clip") -> Path:
    (found,) = cache.glob(f"digits-*/{view}-????????????")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Of a view, but for what only remembers that somebody was there."""
    beside = (*NOTES, "agreed.json")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in beside]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------- there and back


def test_what_comes_back_is_what_went_to_the_last_byte(
    wire: objects.Wire, cache: Path, tmp_path: Path
) -> None:
    at = pushed(cache)
    assert at == f"{TO}/{folder_of(cache).parent.name}/{folder_of(cache).name}"
    (view,) = pulled(tmp_path / "there")
    assert view.folder == folder_of(tmp_path / "there")
    assert contents(view.folder) == contents(folder_of(cache))
    assert integrity.root(view) == integrity.root(store.open_view(folder_of(cache)))
    assert not list((tmp_path / "there").rglob(".pull"))
    put = [one.path for one in wire.requests if one.method == "PUT"]
    assert put[0].endswith(f"{view.folder.name}/zarr.json") and put[-1].endswith("/complete.json")


def test_no_label_goes_unless_it_is_asked_for(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    own = read_items(folder_of(cache).parent)
    pushed(cache, disk)
    pulled(tmp_path / "without", disk)
    items = read_items(folder_of(tmp_path / "without").parent)
    assert (items.label == -1).all() and not items.classes
    assert items.keys == own.keys and items.sha256 == own.sha256 and items.split == own.split
    pushed(cache, disk, labels=True)
    pulled(tmp_path / "with", disk)
    items = read_items(folder_of(tmp_path / "with").parent)
    assert np.array_equal(items.label, own.label) and items.classes == own.classes
    pushed(cache, disk)  # once more without: they are not taken away
    pulled(tmp_path / "still", disk)
    assert (read_items(folder_of(tmp_path / "still").parent).label >= 0).all()


def test_it_trains_as_the_cache_that_it_came_from(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    pushed(cache, disk, labels=True)
    pushed(cache, disk, view="tiny-dinov2")
    assert len(pulled(tmp_path / "there", disk)) == 2
    views = ["tiny-clip", "tiny-dinov2"]
    there, here = (open_cache(place, "digits", views) for place in (tmp_path / "there", cache))
    assert there.fingerprints == here.fingerprints
    assert there.items.labels_fingerprint == here.items.labels_fingerprint
    for found, expected in zip(there.emb, here.emb, strict=True):
        assert np.array_equal(found[:], expected[:])


def test_labels_that_the_cache_has_stay(
    wire: objects.Wire, shelf: str, cache: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(cache, tmp_path / "cache")
    shutil.rmtree(folder_of(copy))
    pulled(copy, shelf)
    assert (read_items(folder_of(copy).parent).label >= 0).all()
    assert contents(folder_of(copy)) == contents(folder_of(cache))


def test_extract_gives_labels_to_what_came_without_and_embeds_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(cache, tmp_path / "disk")
    pulled(tmp_path / "there", tmp_path / "disk")
    before = contents(folder_of(tmp_path / "there"))
    monkeypatch.setattr("cache_specs.store.write_shard", None)
    found: dict = {}
    extract(config(Path("digits"), tmp_path / "there"), found)
    own = read_items(folder_of(cache).parent)
    items = read_items(folder_of(tmp_path / "there").parent)
    assert np.array_equal(items.label, own.label) and items.classes == own.classes
    assert contents(folder_of(tmp_path / "there")) == before


def test_a_reader_of_zarr_opens_it_there(wire: objects.Wire, shelf: str, cache: Path) -> None:
    at = f"{shelf}/{folder_of(cache).parent.name}/{folder_of(cache).name}"
    there = zarr.storage.ObjectStore(remote.Place(at).store, read_only=True)
    found = zarr.open_group(there, mode="r")
    own = zarr.open_group(str(folder_of(cache)), mode="r")
    assert np.array_equal(found["embeddings"][:], own["embeddings"][:], equal_nan=True)
    assert found.attrs["view"] == "tiny-clip"


def test_a_folder_is_a_place_too(cache: Path, tmp_path: Path) -> None:
    pushed(cache, tmp_path / "disk" / "views")
    pulled(tmp_path / "there", tmp_path / "disk" / "views")
    assert contents(folder_of(tmp_path / "there")) == contents(folder_of(cache))


@pytest.mark.parametrize("below", ["", "/digits-6f88bbf1", "/view"])
def test_from_may_be_the_data_set_or_the_view(
    below: str, wire: objects.Wire, shelf: str, cache: Path, tmp_path: Path
) -> None:
    at = f"{shelf}/{folder_of(cache).parent.name}/{folder_of(cache).name}"
    (view,) = pulled(tmp_path, at if below == "/view" else f"{shelf}{below}/")
    assert contents(view.folder) == contents(folder_of(cache))


def test_views_and_data_sets_can_be_chosen(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    pushed(cache, disk)
    pushed(cache, disk, view="tiny-dinov2")
    (view,) = pulled(tmp_path / "there", disk, view="tiny-dinov2", data="digits")
    assert view.name == "tiny-dinov2"
    with pytest.raises(UsageError, match="did you mean 'tiny-clip'"):
        pulled(tmp_path / "there", disk, view="tiny-clib")
    with pytest.raises(UsageError, match="has views of digits") as error:
        pulled(tmp_path / "there", disk, view="tiny-clip", data="photos/")
    assert error.value.instead == {"DATA": "digits"}


def test_the_card_says_what_it_is(cache: Path, tmp_path: Path) -> None:
    disk, at = tmp_path / "disk", folder_of(cache)
    pushed(cache, disk)
    text = (folder_of(disk) / "README.md").read_text()
    view = store.open_view(at)
    for told in ("1,797, of digits", view.attributes["weights_sha256"], "open_clip"):
        assert told in text, told
    assert f"make pull FROM={disk} VIEW=tiny-clip" in text
    clip = dataclasses.replace(view, folder=Path("clip-000000000000"))
    assert about_of(clip) == {
        "model": "CLIP ViT-L/14 (OpenAI), image tower",
        "licence": "MIT",
    }
    mine = {**view.attributes, "provenance": {"spec_file": "/home/me/clip.toml"}}
    assert about_of(dataclasses.replace(clip, attributes=mine)) == {}


# ---------------------------------------------------------------- once more


def test_once_more_sends_and_fetches_nothing(
    wire: objects.Wire, cache: Path, tmp_path: Path
) -> None:
    pushed(cache)
    sent = wire.count("PUT")
    pushed(cache)
    assert wire.count("PUT") == sent
    pulled(tmp_path)
    fetched = wire.count("GET")
    pulled(tmp_path)
    assert wire.count("GET") - fetched <= 6  # lists, and the seal


def coview(words: list[str]) -> subprocess.Popen:
    """`coview WORDS` in a process of its own."""
    return server.Popen(
        [sys.executable, "-m", "coview.cli", *words],
        cwd=ROOT,
        env={**os.environ, **server.FIXED, "COVIEW_MAKE": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def killed_at(
    wire: objects.Wire, words: list[str], method: str, number: int, by: int = signal.SIGKILL
) -> None:
    """`coview WORDS` in a process that gets a signal when its request of that number comes in, and
    no answer until it is gone."""
    process = coview(words)
    first = wire.count(method)

    def harm(request: objects.Request) -> str | None:
        if request.method == method and request.number == first + number:
            process.send_signal(by)
            process.wait(60)
            return "cut"
        return None

    wire.harm = harm
    said, _ = process.communicate(timeout=60)
    wire.harm = lambda request: None
    assert process.returncode == -by, said


@pytest.mark.parametrize("number", [1, 20, *many(2, 5, 9, 13, 16, 18, 19)])
def test_a_push_that_is_killed_leaves_no_view_and_goes_on(
    number: int, wire: objects.Wire, cache: Path, tmp_path: Path
) -> None:
    words = ["push", "--view", "tiny-clip", "--data", "digits", "--to", TO, "--cache", str(cache)]
    killed_at(wire, words, "PUT", number)
    with pytest.raises(UsageError, match="no finished view lies in"):
        pulled(tmp_path / "early")
    assert not (tmp_path / "early").exists()
    pushed(cache)
    pulled(tmp_path / "there")
    assert contents(folder_of(tmp_path / "there")) == contents(folder_of(cache))


@pytest.mark.parametrize("number", [5, 18, *many(1, 4, 6, 8, 11, 13, 16)])
def test_a_pull_that_is_killed_leaves_no_view_and_goes_on(
    number: int, wire: objects.Wire, shelf: str, cache: Path, tmp_path: Path
) -> None:
    words = ["pull", "--source", shelf, "--cache", str(tmp_path / "there")]
    killed_at(wire, words, "GET", number)
    assert not list((tmp_path / "there").glob("digits-*/tiny-clip-????????????"))
    here = len(list((tmp_path / "there").glob("digits-*/.pull/*/embeddings/c/*/0")))
    wire.requests.clear()
    pulled(tmp_path / "there", shelf)
    assert contents(folder_of(tmp_path / "there")) == contents(folder_of(cache))
    fetched = [one for one in wire.requests if "/embeddings/c/" in one.path]
    assert len(fetched) == 4 - here


def test_ctrl_c_ends_it_while_the_store_does_not_answer(
    wire: objects.Wire, shelf: str, tmp_path: Path
) -> None:
    words = ["pull", "--source", shelf, "--cache", str(tmp_path)]
    killed_at(wire, words, "GET", 5, signal.SIGINT)


def test_an_object_may_take_as_long_as_is_said(
    wire: objects.Wire, shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.environ["AWS_TIMEOUT"] == remote.ONE == "300 seconds"
    monkeypatch.setenv("AWS_TIMEOUT", "50 ms")
    wire.harm = always("late", "GET", SHARD)
    with pytest.raises(StorageError, match=r"cannot (list|read)"):
        pulled(tmp_path, shelf)
    assert os.environ["AWS_TIMEOUT"] == "50 ms"


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_disk_that_fails_at_any_step_costs_no_more_than_that_step(
    error: str,
    wire: objects.Wire,
    shelf: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in itertools.count(1, 7):
        monkeypatch.setattr(durable, "_passed", 0)
        monkeypatch.setenv("COVIEW_FAULT", f"{error}:{number}")
        try:
            pulled(tmp_path / "there", shelf)
            break
        except StorageError:
            assert not list((tmp_path / "there").glob("digits-*/tiny-clip-????????????"))
    assert number > 8
    monkeypatch.delenv("COVIEW_FAULT")
    assert contents(folder_of(tmp_path / "there")) == contents(folder_of(cache))


# ---------------------------------------------------------------- a bad wire


def once(kind: str | int, method: str, end: str) -> objects.Harm:
    """To the first request of that method whose path ends so."""
    done: list[objects.Request] = []

    def harm(request: objects.Request) -> str | int | None:
        path = request.path.partition("?")[0]
        if request.method == method and path.endswith(end) and not done:
            done.append(request)
            return kind
        return None

    return harm


SHARD, SEAL = "/embeddings/c/2/0", "/complete.json"


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        *[(503, SHARD), ("deaf", SHARD), ("flip-sent", SHARD), ("cut", SEAL), ("flip-sent", SEAL)],
        *many((429, SHARD), (500, SHARD), ("cut", SHARD), ("late", SHARD)),
        *many((503, SEAL), ("deaf", SEAL), ("late", SEAL)),
    ],
)
def test_a_push_gets_over_one_fault(
    kind: str | int, end: str, wire: objects.Wire, cache: Path, tmp_path: Path
) -> None:
    wire.harm = once(kind, "PUT", end)
    if (kind, end) == ("flip-sent", SEAL):
        with pytest.raises(IntegrityError, match="is not what was written"):
            pushed(cache)
        return
    pushed(cache)
    pulled(tmp_path)
    assert contents(folder_of(tmp_path)) == contents(folder_of(cache))


@pytest.mark.parametrize("kind", [429, "cut", "half", "short", "flip", *many(503, 500, "late")])
@pytest.mark.parametrize("end", [SHARD])
def test_a_pull_gets_over_one_fault(
    kind: str | int, end: str, wire: objects.Wire, shelf: str, cache: Path, tmp_path: Path
) -> None:
    wire.harm = once(kind, "GET", end)
    pulled(tmp_path, shelf)
    assert contents(folder_of(tmp_path)) == contents(folder_of(cache))


def always(kind: str | int, method: str, end: str) -> objects.Harm:
    def harm(request: objects.Request) -> str | int | None:
        hit = request.method == method and request.path.partition("?")[0].endswith(end)
        return kind if hit else None

    return harm


def test_what_is_never_kept_is_never_sealed(
    wire: objects.Wire, cache: Path, tmp_path: Path
) -> None:
    wire.harm = always("flip-sent", "PUT", SHARD)
    with pytest.raises(IntegrityError, match=f"{SHARD}: what is read there is not what was"):
        pushed(cache)
    with pytest.raises(UsageError, match="no finished view"):
        pulled(tmp_path)


@pytest.mark.parametrize("name", [SHARD, "/status/c/0", SEAL, "/zarr.json", "/items.parquet"])
def test_what_was_changed_there_does_not_come_in(
    name: str, wire: objects.Wire, shelf: str, cache: Path, tmp_path: Path
) -> None:
    """By name; and once it is mended what had arrived is not fetched again."""
    wire.harm = always("flip", "GET", name)
    with pytest.raises(IntegrityError, match=r"(?i)push (it|the view) again"):
        pulled(tmp_path, shelf)
    assert not list(tmp_path.glob("digits-*/tiny-clip-????????????"))
    wire.harm = lambda request: None
    pulled(tmp_path, shelf)
    assert contents(folder_of(tmp_path)) == contents(folder_of(cache))


@pytest.mark.parametrize(
    ("kind", "method"), [(503, "PUT"), *many((503, "GET"), ("cut", "PUT"), ("cut", "GET"))]
)
def test_a_store_that_never_answers_is_an_error_in_time(
    kind: str | int, method: str, wire: objects.Wire, cache: Path, tmp_path: Path
) -> None:
    wire.harm = always(kind, method, "")
    with pytest.raises(StorageError, match="type the same command: it goes on from here"):
        pushed(cache)
    wire.harm = lambda request: None
    pushed(cache)
    wire.harm = always(kind, "GET", SHARD)
    with pytest.raises(StorageError, match=SHARD):
        pulled(tmp_path)


# ---------------------------------------------------------------- others


def test_the_same_view_with_other_bytes_is_refused_on_both_ends(
    cache: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    copy = shutil.copytree(cache, tmp_path / "cache")
    folder = folder_of(copy)
    view = store.open_view(folder)
    emb, status = np.zeros((view.rows, view.width), np.float16), np.zeros(view.rows, np.uint8)
    store.write_shard(view, 0, emb, status)
    integrity.seal(view)
    pushed(cache, disk)
    with pytest.raises(StaleError, match="holds the same view with other bytes"):
        pushed(copy, disk)
    with pytest.raises(StaleError, match="with other bytes"):
        pulled(copy, disk)


def test_what_has_been_begun_here_is_not_replaced(
    wire: objects.Wire, shelf: str, cache: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(cache, tmp_path / "cache")
    (folder_of(copy) / "complete.json").unlink()
    before = contents(folder_of(copy))
    with pytest.raises(StaleError, match=r"is not finished\. Finish it"):
        pulled(copy, shelf)
    assert contents(folder_of(copy)) == before
    with pytest.raises(UsageError, match="not finished"):
        pushed(copy)


def test_other_images_of_the_same_name_are_refused(
    wire: objects.Wire, shelf: str, cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "cache" / "digits-00000000"
    other.mkdir(parents=True)
    shutil.copy(folder_of(cache).parent / "dataset.json", other)
    with pytest.raises(StaleError, match="has other images of that name") as error:
        pulled(tmp_path / "cache", shelf)
    assert error.value.instead == {"CACHE": f"{tmp_path / 'cache'}-2"}


def test_a_name_that_is_another_views_is_refused(cache: Path, tmp_path: Path) -> None:
    """Somebody has renamed folders there."""
    pushed(cache, tmp_path / "disk")
    at = folder_of(tmp_path / "disk")
    other = at.rename(at.with_name("tiny-clip-000000000000"))
    with pytest.raises(IntegrityError, match="missing, damaged or another view's"):
        pulled(tmp_path / "there", tmp_path / "disk")
    other.rename(at)
    at.parent.rename(at.parent.with_name("digits-00000000"))
    with pytest.raises(IntegrityError, match="it is that of digits-6f88bbf1"):
        pulled(tmp_path / "elsewhere", tmp_path / "disk")
    assert not list((tmp_path / "elsewhere").rglob("dataset.json"))


def test_folders_that_are_no_views_are_passed_over(cache: Path, tmp_path: Path) -> None:
    pushed(cache, tmp_path / "disk")
    for name in ("notes", "digits-6f88bbf1/notes", ".x-6f88bbf1", "empty-6f88bbf1/v-000000000000"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "disk" / name / "complete.json").write_text("{}" if "v-" not in name else "")
    (tmp_path / "disk/empty-6f88bbf1/v-000000000000/complete.json").unlink()
    assert len(pulled(tmp_path / "there", tmp_path / "disk")) == 1


def test_a_damaged_view_is_not_pushed(wire: objects.Wire, cache: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cache, tmp_path / "cache")
    path = folder_of(copy) / "embeddings" / "c" / "1" / "0"
    path.write_bytes(objects.flipped(path.read_bytes()))
    with pytest.raises(IntegrityError, match="has changed since it was written"):
        pushed(copy)
    assert wire.count("PUT") == 0


def test_one_pull_at_a_time_writes_a_view(
    wire: objects.Wire, shelf: str, cache: Path, tmp_path: Path
) -> None:
    pulled(tmp_path, shelf)
    folder = folder_of(tmp_path)
    staging = folder.parent / ".pull" / folder.name
    staging.parent.mkdir()
    folder.rename(staging)
    with locks.lock(staging), pytest.raises(StorageError, match="is being written by process"):
        pulled(tmp_path, shelf)


def test_who_has_begun_a_folder_has_it(cache: Path, tmp_path: Path) -> None:
    """Of two that push one view, embedded by each, one does nothing there."""
    copy, disk = shutil.copytree(cache, tmp_path / "cache"), tmp_path / "disk"
    other = folder_of(copy)
    shutil.rmtree(other)
    pushed(cache, disk)
    elsewhere(folder_of(cache), other)
    (folder_of(disk) / "complete.json").unlink()
    before = contents(folder_of(disk))
    with pytest.raises(StaleError, match="has been begun from another cache and is not finished"):
        pushed(copy, disk)
    assert contents(folder_of(disk)) == before


def elsewhere(view: Path, to: Path, **changes: object) -> None:
    """The same embeddings, as if another checkout had made them."""
    was = store.open_view(view)
    told = {**was.attributes, "provenance": {"spec_file": "/elsewhere/tiny-clip.toml"}, **changes}
    for name in ("embeddings", "status", "commits"):
        (to / name).mkdir(parents=True)
    write_documents(to, told)
    now = store.open_view(to)
    for shard in range(was.shards):
        first, last = was.bounds(shard)
        emb, status = store.read_rows(was, range(first, last))
        emb_RD = np.full((was.rows, was.width), np.nan, np.float16)
        status_R = np.zeros(was.rows, np.uint8)
        emb_RD[: last - first], status_R[: last - first] = emb, status
        store.write_shard(now, shard, emb_RD, status_R)
    integrity.seal(now)


def test_a_tuned_view_brings_the_list_of_what_it_must_not_judge(
    cache: Path, tmp_path: Path
) -> None:
    copy, disk = shutil.copytree(cache, tmp_path / "cache"), tmp_path / "disk"
    own, contents_seen = folder_of(copy), frozenset({"0" * 64, "1" * 64})
    was = store.open_view(own).attributes
    tuned = {"parent": own.name, "mode": "lora", "labels": 2, "seen": digest(contents_seen)}
    spec = {**was["spec"], "tuned": {**tuned, "settings": {}}}
    folder = store.view_folder(own.parent, "tiny-clip", spec, was["weights_sha256"])
    elsewhere(own, folder, spec=spec)
    shutil.rmtree(own)
    with pytest.raises(IntegrityError, match=r"seen\.txt is missing or damaged"):
        pushed(copy, disk)
    (folder / "seen.txt").write_bytes(listed(contents_seen))
    pushed(copy, disk)
    assert "must not be judged" in (folder_of(disk) / "README.md").read_text()
    (view,) = pulled(tmp_path / "there", disk)
    assert seen_of(view) == contents_seen
    (folder_of(disk) / "seen.txt").unlink()
    with pytest.raises(IntegrityError, match="it lacks a file"):
        pulled(tmp_path / "other", disk)


def test_the_same_embeddings_are_the_same_view_wherever_they_were_made(
    cache: Path, tmp_path: Path
) -> None:
    copy, disk = shutil.copytree(cache, tmp_path / "cache"), tmp_path / "disk"
    other = folder_of(copy)
    shutil.rmtree(other)
    elsewhere(folder_of(cache), other)
    pushed(cache, disk)
    before = contents(folder_of(disk))
    pushed(copy, disk)
    pulled(copy, disk)
    assert contents(folder_of(disk)) == before


def test_labels_that_lie_there_are_not_replaced(cache: Path, tmp_path: Path) -> None:
    copy, disk = shutil.copytree(cache, tmp_path / "cache"), tmp_path / "disk"
    pushed(cache, disk, labels=True)
    folder = folder_of(copy).parent
    items = read_items(folder)
    some = np.where(np.arange(len(items)) < 9, -1, items.label).astype(np.int32)
    write_items(copy, dataclasses.replace(items, label=some), read_source(folder))
    with pytest.raises(StaleError, match="has other labels, which stay"):
        pushed(copy, disk, labels=True)
    pushed(copy, disk)
    pulled(tmp_path / "there", disk)
    assert (read_items(folder_of(tmp_path / "there").parent).label >= 0).all()


def test_labels_from_elsewhere_are_not_replaced_by_extract(cache: Path, tmp_path: Path) -> None:
    pushed(cache, tmp_path / "disk", labels=True)
    pulled(tmp_path / "there", tmp_path / "disk")
    items = read_items(folder_of(cache).parent)
    other = dataclasses.replace(items, label=np.roll(items.label, 1))
    with pytest.raises(StaleError, match="with the labels of another machine"):
        write_items(tmp_path / "there", other, "digits")


def test_a_cache_is_no_place_to_push_to(cache: Path) -> None:
    with pytest.raises(UsageError, match="is a cache, which its own commands write to"):
        pushed(cache, cache)


def test_a_list_that_was_cut_short_is_put_again(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    pushed(cache, disk)
    table = folder_of(disk).parent / "items.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="Push it again from where it is whole"):
        pulled(tmp_path / "there", disk)
    pushed(cache, disk)
    pulled(tmp_path / "there", disk)


def test_the_list_is_read_back_too(wire: objects.Wire, cache: Path, tmp_path: Path) -> None:
    wire.harm = once("flip-sent", "PUT", "/items.parquet")
    pushed(cache)
    pulled(tmp_path)


def test_a_store_that_is_said_to_know_no_conditional_writes_is_asked_before(
    wire: objects.Wire, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    wire.harm = lambda request: 412 if "If-None-Match" in request.headers else None
    pushed(cache)
    pulled(tmp_path)
    assert contents(folder_of(tmp_path)) == contents(folder_of(cache))
    place = remote.Place(TO)
    assert place.put("x", b"1", once=True) and not place.put("x", b"2", once=True)
    assert place.get("x") == b"1"


@pytest.mark.many
def test_a_store_without_conditional_writes_will_do(
    wire: objects.Wire, cache: Path, tmp_path: Path
) -> None:
    def harm(request: objects.Request) -> int | None:
        return 501 if request.headers.get("If-None-Match") else None

    wire.harm = harm
    pushed(cache)
    pulled(tmp_path)
    assert contents(folder_of(tmp_path)) == contents(folder_of(cache))


def test_views_and_data_sets_of_one_name_are_told_apart(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    pushed(cache, disk)
    at = folder_of(disk)
    shutil.copytree(at, at.with_name("tiny-clip-000000000000"))
    with pytest.raises(UsageError, match="several views called 'tiny-clip'") as error:
        pulled(tmp_path / "there", disk)
    assert error.value.instead["VIEW"].startswith("tiny-clip-")
    assert len(pulled(tmp_path / "there", disk, view=at.name)) == 1
    shutil.rmtree(at.with_name("tiny-clip-000000000000"))
    shutil.copytree(at.parent, disk / "digits-00000000")
    with pytest.raises(UsageError, match="several data sets called 'digits'") as error:
        pulled(tmp_path / "there", disk)
    assert error.value.instead["DATA"].startswith("digits-")
    assert len(pulled(tmp_path / "other", disk, data=at.parent.name)) == 1


def test_one_that_cannot_be_had_keeps_no_other_back(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    for view in ("tiny-clip", "tiny-dinov2"):
        pushed(cache, disk, view=view)
    (folder_of(disk) / "zarr.json").unlink()
    with pytest.raises(IntegrityError, match="what describes it is missing"):
        pulled(tmp_path / "there", disk)
    assert folder_of(tmp_path / "there", "tiny-dinov2")


def test_another_view_of_that_name_here_is_refused(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    pushed(cache, disk)
    copy = shutil.copytree(cache, tmp_path / "cache")
    folder_of(copy).rename(folder_of(copy).with_name("tiny-clip-000000000000"))
    with pytest.raises(StaleError, match="of another spec or other weights") as error:
        pulled(copy, disk)
    assert error.value.instead == {"CACHE": f"{copy}-2"}


def test_what_is_damaged_here_is_mended_from_there(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    pushed(cache, disk)
    (view,) = pulled(tmp_path / "there", disk)
    view.embeddings_file(1).unlink()
    path = view.status_file(0)
    path.write_bytes(objects.flipped(path.read_bytes()))
    pulled(tmp_path / "there", disk)
    assert contents(view.folder) == contents(folder_of(cache))
    (view.folder / "zarr.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"(?s)is damaged.*Or delete .*: this brings that of"):
        pulled(tmp_path / "there", disk)


def test_what_another_view_has_left_half_is_begun_anew(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    pushed(cache, disk)
    pulled(tmp_path / "there", disk)
    folder = folder_of(tmp_path / "there")
    staging = folder.parent / store.ARRIVING / folder.name
    staging.parent.mkdir()
    folder.rename(staging)
    (staging / "zarr.json").write_text("{}")
    (staging / "embeddings" / "c" / "9").mkdir()
    pulled(tmp_path / "there", disk)
    assert contents(folder) == contents(folder_of(cache))


def test_images_that_the_cache_knows_by_another_name_are_left_alone(
    cache: Path, tmp_path: Path
) -> None:
    """Their folder is gone for now; what comes is not taken for it."""
    disk, there = tmp_path / "disk", tmp_path / "there"
    pushed(cache, disk)
    items = read_items(folder_of(cache).parent)
    nobody = np.full(len(items), -1, np.int32)
    other = dataclasses.replace(items, name="pics", label=nobody, classes=[])
    own = write_items(there, other, "/gone/pics")
    before = (own / "dataset.json").read_bytes()
    (view,) = pulled(there, disk)
    assert view.folder.parent.name == "digits-6f88bbf1"
    assert (own / "dataset.json").read_bytes() == before
    assert read_items(view.folder.parent).keys == items.keys


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 0},
        {"items_fingerprint": None},
        {"items_fingerprint": 7},
        {"view": "tiny-dinov2"},
        {"format": 9},
        {"spec": []},
    ],
    ids=str,
)
def test_a_description_that_is_none_does_not_come_in(
    change: dict, cache: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    pushed(cache, disk)
    for name in DOCUMENTS:
        path = folder_of(disk) / name
        told = durable.read_sealed(path)
        told["attributes"] = {**told["attributes"], **change}
        path.write_bytes(durable.sealed(told))
    with pytest.raises(IntegrityError, match="what describes it"):
        pulled(tmp_path / "there", disk)
    assert not list((tmp_path / "there").glob("*/tiny-clip*"))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"classes": ["0"]},
        {"classes": [1, 2]},
        {"classes": None},
        {"as_class": 5},
        {"adapter": {}},
        {"rows": 3},
        {"name": "../x"},
    ],
    ids=str,
)
def test_a_list_that_is_none_does_not_come_in(change: dict, cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    pushed(cache, disk, labels=True)
    path = folder_of(disk).parent / "dataset.json"
    path.write_bytes(durable.sealed({**durable.read_sealed(path), **change}))
    with pytest.raises(IntegrityError, match="the list of images in"):
        pulled(tmp_path / "there", disk)
    assert not list((tmp_path / "there").rglob("dataset.json"))


def test_a_canary_that_is_none_does_not_come_in(cache: Path, tmp_path: Path) -> None:
    pushed(cache, tmp_path / "disk")
    (folder_of(tmp_path / "disk") / "canary.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"canary\.json"):
        pulled(tmp_path / "there", tmp_path / "disk")


def test_what_is_no_file_is_not_waited_for(cache: Path, tmp_path: Path) -> None:
    pushed(cache, tmp_path / "disk")
    path = folder_of(tmp_path / "disk") / "embeddings" / "c" / "1" / "0"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(IntegrityError, match="embeddings/c/1/0: it is not there"):
        pulled(tmp_path / "there", tmp_path / "disk")


def test_where_one_stands_names_a_place_too(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(cache, tmp_path / "disk")
    view = folder_of(tmp_path / "disk")
    for number, where in enumerate((view, view.parent)):
        monkeypatch.chdir(where)
        assert len(pulled(tmp_path / f"there{number}", ".")) == 1


def test_status_says_of_such_a_data_set_that_its_images_are_elsewhere(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pushed(cache, tmp_path / "disk")
    pulled(tmp_path / "there", tmp_path / "disk")
    caplog.set_level("INFO")
    status(StatusConfig(cache=str(tmp_path / "there")), {})
    assert "1,797 items of images that are elsewhere" in caplog.text


def test_what_a_pull_has_left_goes_with_gc_when_it_is_asked_for(
    cache: Path, tmp_path: Path
) -> None:
    pushed(cache, tmp_path / "disk")
    (view,) = pulled(tmp_path / "there", tmp_path / "disk")
    staging = view.folder.parent / store.ARRIVING / view.folder.name
    shutil.copytree(view.folder, staging)
    assert not list(waste(tmp_path / "there"))
    (staging.parent / "notes.txt").touch()
    (staging.parent / "other-000000000000").symlink_to(view.folder)
    with locks.lock(staging):
        assert not list(waste(tmp_path / "there", unfinished=True))
    collect(GcConfig(cache=str(tmp_path / "there"), unfinished=True, yes=True))
    assert not staging.exists() and view.is_complete and (view.folder / "zarr.json").exists()
    assert len([*staging.parent.iterdir()]) == 2


def test_gc_waits_for_a_pull(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And for an import: between the list of images and the view nothing else holds it back."""
    from exchange import importer
    from exchange.remote import pull as module

    def meanwhile(*_: object) -> None:
        with pytest.raises(StorageError, match="nothing is removed"):
            collect(GcConfig(cache=str(tmp_path / "there"), yes=True))
        raise KeyboardInterrupt

    pushed(cache, tmp_path / "disk")
    monkeypatch.setattr(module, "_bring", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        pulled(tmp_path / "there", tmp_path / "disk")
    np.savez(tmp_path / "x.npz", embeddings=np.eye(4), keys=np.array(list("abcd")), y=np.arange(4))
    monkeypatch.setattr(importer, "_create", meanwhile)
    asked = ImportConfig(view="v", source=str(tmp_path / "x.npz"), cache=str(tmp_path / "there"))
    with pytest.raises(KeyboardInterrupt):
        importer.import_view(asked)


# ---------------------------------------------------------------- words, secrets


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ftp://x/y", "is no place for views"),
        ("s3:///views", "is no place for views"),
        ("s3:/bucket/views", "is no place for views"),
        (f"s3://AKIA:{objects.SECRET}@bucket/views", "keys and tokens into"),
        (
            f"s3://bucket/views?X-Amz-Signature={objects.SECRET}",
            "keys and tokens into",
        ),
    ],
)
def test_addresses_that_are_none(address: str, told: str, cache: Path, tmp_path: Path) -> None:
    for act in (lambda: pushed(cache, address), lambda: pulled(tmp_path, address)):
        with pytest.raises(UsageError, match=told) as error:
            act()
        assert objects.SECRET not in str(error.value)


def test_what_is_missing_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"TO is missing\. Type: make push VIEW=tiny-clip"):
        push(PushConfig(view="tiny-clip"))
    with pytest.raises(UsageError, match="VIEW is missing"):
        push(PushConfig(to=TO))
    with pytest.raises(
        UsageError, match=r"FROM is missing\. Type: make pull FROM=…\nA place is s3://"
    ):
        pull(PullConfig())
    with pytest.raises(UsageError, match="there is no folder"):
        pulled(tmp_path / "there", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UsageError, match="no finished view lies in"):
        pulled(tmp_path / "there", tmp_path)


def test_what_obstore_says_of_an_address_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StorageError, match="cannot open az://container/views"):
        remote.Place("az://container/views")
    with pytest.raises(StorageError, match="cannot open /proc/nope"):
        remote.Place("/proc/nope/x", make=True)


def test_a_secret_before_a_host_is_not_said(
    wire: objects.Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{objects.SECRET}@127.0.0.1:1")
    monkeypatch.setattr(remote, "PATIENCE", remote.timedelta(seconds=0.1))
    with pytest.raises(StorageError) as error:
        remote.Place(TO).inside()
    assert objects.SECRET not in str(error.value) and "127.0.0.1" in str(error.value)


def test_labels_in_keys_are_told_before_anything_goes(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = read_items(folder_of(cache).parent)
    keys = [f"{items.classes[label]}/{row:05}.png" for row, label in enumerate(items.label)]
    _say_what_keys_tell(dataclasses.replace(items, keys=keys))
    assert f"the labels of 1,797 images stand in their keys, such as {keys[0]!r}" in caplog.text
    caplog.clear()
    _say_what_keys_tell(items)
    assert not caplog.text


def test_without_obstore_the_commands_say_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    for act, asked in ((command.push, PushConfig()), (command.pull, PullConfig())):
        with pytest.raises(UsageError, match="pip install 'obstore"):
            act(asked, {})


@pytest.mark.parametrize("fails", [False, True])
def test_no_secret_is_said_or_written(
    fails: bool, wire: objects.Wire, cache: Path, tmp_path: Path
) -> None:
    """Of the whole way, also where the store refuses: 403; nor one that was typed."""
    if fails:
        wire.harm = lambda request: 403 if SHARD in request.path else None
    said = ""
    for words in (
        ["push", "--view", "tiny-clip", "--data", "digits", "--to", TO, "--cache", str(cache)],
        ["pull", "--source", TO, "--cache", str(tmp_path)],
        ["pull", "--source", f"s3://key:{objects.SECRET}@bucket/views"],
        ["push", "--to", f"s3://bucket/views?key={objects.SECRET}"],
    ):
        done = coview(words)
        said += done.communicate(timeout=60)[0]
        assert fails or done.returncode == 2 * (len(words) == 3), said
    wire.harm = lambda request: None
    assert "Traceback" not in said and objects.SECRET not in said
    place = remote.Place(TO)
    for name in place.sizes("digits-6f88bbf1"):
        assert objects.SECRET.encode() not in (place.get(name) or b"")
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or objects.SECRET.encode() not in path.read_bytes()
