"""make verify, repair, status and gc on a real small view: what is damaged is named, mended and
nothing else is touched."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import server
from conftest import BAD, NOTES, ROOT, ROWS, Made, N, config

from base import locks
from base.errors import CoviewError, IntegrityError, StorageError, UsageError
from cache_specs import integrity, lookup, mend, store
from cache_specs.items import read_items
from cache_specs.succession import write_items
from cache_specs.view import View
from extract.run import run
from upkeep import gc
from upkeep.config import GcConfig, RepairConfig, StatusConfig, VerifyConfig
from upkeep.repair import mend_view
from upkeep.status import command, status_text
from upkeep.verify import verify


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> View:
    return run(config(photos, tmp_path_factory.mktemp("original") / "cache"))


@pytest.fixture
def view(original: View, tmp_path: Path) -> View:
    shutil.copytree(original.folder.parent.parent, tmp_path / "cache")
    return store.open_view(tmp_path / "cache" / original.folder.parent.name / original.folder.name)


def contents(view: View) -> dict[str, bytes]:
    return {
        str(path.relative_to(view.folder.parent)): path.read_bytes()
        for path in view.folder.parent.rglob("*")
        if path.is_file() and path.name not in NOTES and "strays" not in path.parts
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def cache_of(view: View) -> str:
    return str(view.folder.parent.parent)


def damage(view: View, name: str) -> None:
    path = view.folder / name
    if name == "swap":
        a, b = view.embeddings_file(0), view.embeddings_file(1)
        kept = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(kept)
    elif name == "stray":
        shutil.copytree(view.embeddings_file(0).parent, view.embeddings_file(9).parent)
    elif name.startswith("lost "):
        (view.folder / name.removeprefix("lost ")).unlink()
    else:
        flip(path)


HARMS = {  # harm -> shards to compute again
    "embeddings/c/1/0": {1},
    "status/c/2": {2},
    "commits/00001.json": set(),
    "complete.json": set(),
    "zarr.json": set(),
    "embeddings/zarr.json": set(),
    "status/zarr.json": set(),
    "canary.json": set(),
    "swap": {0, 1},
    "stray": set(),
    "lost embeddings/c/0/0": {0},
    "lost commits/00002.json": set(),
    "lost zarr.json": set(),
    "../items.parquet": set(),
    "../dataset.json": set(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_verify_names_it_and_repair_computes_again_only_what_is_damaged(
    view, original, photos, capsys, monkeypatch, harm
):
    damage(view, harm)
    with pytest.raises(CoviewError) as caught:
        verify(VerifyConfig(cache=cache_of(view)))
    message, out = str(caught.value), capsys.readouterr().out
    assert caught.value.exit_code == 5 and "make " in message and "NOT OK" in out
    named = {"swap": "embeddings/c/0/0 (shard 0, rows 0 to 15)", "stray": "embeddings/c/9"}.get(
        harm, harm.removeprefix("lost ").removeprefix("../")
    )
    assert named in message
    computed = []
    monkeypatch.setattr(
        store,
        "write_shard",
        lambda view, shard, *args, real=store.write_shard: (
            computed.append(shard) or real(view, shard, *args)
        ),
    )
    if (
        harm == "../dataset.json"
    ):  # what says where the images are is lost: the message asks for them
        with pytest.raises(
            IntegrityError,
            match=r"does not say where the images are; type: make extract VIEW=.* DATA=… with them",
        ):
            mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view)))
        run(config(photos, Path(cache_of(view))))
    else:
        mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view), workers=0))
    assert set(computed) == HARMS[harm] and contents(view) == contents(original)
    verify(VerifyConfig(cache=cache_of(view)))
    assert f": ok: {N} rows x 128, 3 of 3 shards, " in capsys.readouterr().out


def test_a_whole_view_is_left_alone(view, original, capsys):
    mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view)))
    assert capsys.readouterr().out == "tiny-clip: nothing is damaged\n" and contents(
        view
    ) == contents(original)


def test_an_unfinished_view_is_mended_and_stays_unfinished(view, capsys):
    (view.folder / "complete.json").unlink()
    view.commit_file(2).unlink()
    flip(view.embeddings_file(0))
    with pytest.raises(
        CoviewError,
        match=r"embeddings/c/0/0 \(shard 0, rows 0 to 15\): has changed since it was written",
    ):
        verify(VerifyConfig(cache=cache_of(view)))
    mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view)))
    out = capsys.readouterr().out
    assert (
        "a repair that was cut short; to go on: make extract VIEW=tiny-clip DATA=" in out
        and view.pending() == [0, 2]
    )
    verify(VerifyConfig(cache=cache_of(view)))
    assert "unfinished, undamaged: 45 rows x 128, 1 of 3 shards" in capsys.readouterr().out


def test_nothing_is_removed_before_the_images_are_found(view, photos, tmp_path):
    moved = tmp_path / "photos"
    shutil.copytree(photos, moved)
    run(config(moved, Path(cache_of(view))))  # the item list now names the copy
    shutil.rmtree(moved)
    flip(view.embeddings_file(1))
    before = contents(view)
    with pytest.raises(
        UsageError, match=r"which is gone\. If they were moved, type first: make extract VIEW="
    ):
        mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view)))
    assert contents(view) == before


def test_a_command_that_names_a_toml_can_be_typed(view, original, photos, tmp_path):
    toml = tmp_path / "my specs" / "own view.toml"
    toml.parent.mkdir()
    shutil.copyfile(ROOT / "cache_specs" / "views" / "tiny-clip.toml", toml)
    weights = Path("weights", "tiny-clip")
    shutil.copytree(ROOT / "cache_specs" / "views" / weights, toml.parent / weights)
    shutil.copytree(photos, tmp_path / "photos")
    own = run(dataclasses.replace(config(tmp_path / "photos", tmp_path / "own"), view=str(toml)))
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(CoviewError, match="which is gone") as caught:
        verify(VerifyConfig(cache=cache_of(own), recompute=1))
    said = str(caught.value).partition("type first: ")[2].partition(" DATA=")[0]
    assert shlex.split(said) == ["make", "extract", f"VIEW={toml}"]


def test_without_any_intact_description_the_view_must_go(view):
    for name in store.DOCUMENTS:
        flip(view.folder / name)
    with pytest.raises(
        IntegrityError,
        match=r"all three zarr\.json are damaged.* Delete .*make extract VIEW=tiny-clip",
    ):
        mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view)))


def test_chosen_shards_are_computed_again(view, original, capsys):
    mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view), shards="0,2", workers=0))
    assert "2 of 3 shards are to be computed again: 0, 2" in capsys.readouterr().out and contents(
        view
    ) == contents(original)
    for wrong in ("3", "-1", "x"):
        with pytest.raises(UsageError, match="name shards by their numbers, from 0 to 2"):
            mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view), shards=wrong))
    with pytest.raises(UsageError, match="VIEW is missing"):
        mend_view(RepairConfig(cache=cache_of(view)))


# --- recomputing


def test_recomputed_rows_agree_and_a_wrong_row_with_a_right_digest_is_found(view, photos, capsys):
    verify(VerifyConfig(cache=cache_of(view), recompute=100))
    assert (
        f"{N} rows computed again: largest relative distance 0, allowed 0.002"
        in capsys.readouterr().out
    )
    emb, state = store.read_rows(view, list(range(ROWS)))
    emb[[3, 7]] = emb[[7, 3]]  # two images' rows exchanged, and properly committed
    for path in (view.folder / "complete.json", view.commit_file(0)):
        path.unlink()
    with store.writer_lock(view.folder):
        store.write_shard(view, 0, emb, state)
        integrity.seal(view)
    verify(VerifyConfig(cache=cache_of(view)))  # no digest can see that
    with pytest.raises(CoviewError, match=r"2 of 45 rows are not what is computed") as caught:
        verify(VerifyConfig(cache=cache_of(view), recompute=100))
    assert "row 3 (a/006.png): status ok -> ok, relative distance" in str(
        caught.value
    ) and "--shards 0'" in str(caught.value)
    mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view), shards="0", workers=0))
    verify(VerifyConfig(cache=cache_of(view), recompute=100))


def test_without_the_images_the_stored_bytes_are_still_verified(view, original, tmp_path, capsys):
    items = read_items(view.folder.parent)
    write_items(Path(cache_of(view)), items, str(tmp_path / "gone"))
    with pytest.raises(CoviewError, match="1 failed, of 1 view"):
        verify(VerifyConfig(cache=cache_of(view), recompute=2))
    out = capsys.readouterr().out
    assert ": ok: 45 rows x 128" in out and "1 bad row, but NOT computed again" in out
    flip(view.embeddings_file(0))
    with pytest.raises(CoviewError, match="is damaged"):
        verify(VerifyConfig(cache=cache_of(view), recompute=2))
    assert "NOT OK" in capsys.readouterr().out


def test_a_bad_row_is_recomputed_as_bad(view, capsys):
    verify(VerifyConfig(cache=cache_of(view), recompute=ROWS, seed=5))
    assert "1 bad row" in capsys.readouterr().out and store.read_rows(view, [BAD])[1][0] == 2


# --- status


def test_status_shows_every_view(view, original):
    assert f"{view.folder.parent.name}: {N} items of " in status_text(Path(cache_of(view)))
    line = status_text(Path(cache_of(view)))
    assert (
        f"{N} x 128, 0.0 MB: finished " in line
        and "verified " in line
        and "1 bad row (1 truncated)" in line
    )
    (view.folder / "complete.json").unlink()
    assert "unfinished, 3 of 3 shards; to go on: make extract VIEW=tiny-clip DATA=/" in status_text(
        Path(cache_of(view))
    )
    flip(view.folder / "zarr.json")
    assert "NOT OK: the description of the view in" in status_text(Path(cache_of(view)))
    with pytest.raises(UsageError, match="there is no cache"):
        status_text(Path(cache_of(view)) / "nowhere")


def test_status_is_told_by_the_log(view, caplog):
    command(StatusConfig(cache=cache_of(view)), {})
    assert f"{N} x 128, 0.0 MB: finished " in caplog.text
    found = {}
    command(StatusConfig(cache=cache_of(view), json=True), found)
    assert [one["state"] for one in found["datasets"][0]["views"]] == ["finished"]
    assert found["datasets"][0]["views"][0]["bad"] == {"truncated": 1}


SLOW = """
import pathlib, sys, time
from base import progress
from extract import embed
from extract.config import ExtractConfig
from extract.run import run
progress.FILE_EVERY_S = 0.0
real, go, calls = embed.finish, pathlib.Path(sys.argv[3]), []

def finish(*args):
    calls.append(time.sleep(0.3))
    while len(calls) == 3 and not go.exists():  # held in the middle until the test has looked
        time.sleep(0.05)
    return real(*args)

embed.finish = finish
where = dict(data=sys.argv[1], cache=sys.argv[2], device="cpu")
run(ExtractConfig("tiny-clip", **where, batch=8, shard_rows=16, workers=0, max_bad="10%"))
"""


def test_status_shows_a_running_extraction_and_its_bottleneck_and_a_second_one_is_sent_away(
    photos, tmp_path
):
    go = tmp_path / "go"
    running = server.Popen(
        [sys.executable, "-c", SLOW, str(photos), str(tmp_path), str(go)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        while "bottleneck" not in (line := status_text(tmp_path)):
            assert running.poll() is None, line
            time.sleep(0.05)
        assert (
            f"being written by process {running.pid} on" in line
            and " of 45 images, " in line
            and "h left; bottleneck: model (model " in line
        )
        assert "decode" in line and not list(gc.waste(tmp_path))
        with pytest.raises(
            StorageError, match=f"is being written by process {running.pid} on .* since 20"
        ):
            run(config(photos, tmp_path))
        with pytest.raises(UsageError, match="is not finished"):
            integrity.check(store.open_view(store.view_folders(next(tmp_path.glob("photos-*")))[0]))
        go.touch()
        assert running.wait() == 0
    finally:
        running.kill()
        running.wait()
    assert "finished" in status_text(tmp_path) and not list(tmp_path.rglob("progress-*"))


# --- gc


def test_gc_removes_only_what_no_finished_view_needs(view, original, tmp_path, capsys):
    cache = Path(cache_of(view))
    (view.folder / "embeddings" / "c" / "1" / ".0.tmp").write_bytes(b"half")
    damage(view, "stray")
    foreign = cache / "mine"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("not ours")
    made = Made(tmp_path / "made")
    begun = made.cache / made.dataset.name
    shutil.copytree(begun, cache / begun.name)
    for folder in store.view_folders(cache / begun.name):
        (folder / "complete.json").unlink()
    asked = "nothing is removed: there is no terminal to ask"
    with pytest.raises(UsageError, match=asked) as caught:
        gc.collect(GcConfig(cache=str(cache)))
    assert caught.value.instead == {"--yes": ""}
    out = capsys.readouterr().out
    assert (
        "a temp file" in out and "no shard of its view" in out and "an unfinished view (" not in out
    )
    gc.collect(GcConfig(cache=str(cache), yes=True))
    assert (
        len(store.view_folders(cache / begun.name)) == 3
        and not (view.folder / "embeddings" / "c" / "9").exists()
    )
    with pytest.raises(UsageError):
        gc.collect(GcConfig(cache=str(cache), unfinished=True))
    out = capsys.readouterr().out
    assert (
        out.count("an unfinished view (") == 3
        and "an item list without a view" in out
        and (cache / begun.name).is_dir()
    )
    gc.collect(GcConfig(cache=str(cache), yes=True, unfinished=True))
    assert (
        not (cache / begun.name).exists()
        and (foreign / "notes.txt").exists()
        and contents(view) == contents(original)
    )
    gc.collect(GcConfig(cache=str(cache), yes=True))
    assert "nothing to remove; finished views are kept" in capsys.readouterr().out


def test_gc_keeps_a_damaged_finished_view_and_what_somebody_holds(view, tmp_path):
    flip(view.folder / "complete.json")
    flip(view.folder / "zarr.json")
    assert not list(gc.waste(Path(cache_of(view))))
    (view.folder / "complete.json").unlink()
    with locks.lock(view.folder):
        assert not list(gc.waste(Path(cache_of(view))))
        with pytest.raises(StorageError, match="is being written by process"):
            gc.remove_waste(gc.Waste(view.folder, "", 0))
    assert not list(gc.waste(Path(cache_of(view)))), "its shards are done"
    (view.folder.parent / "stamps.bin").touch()  # where the images were old enough it is there
    assert [one.path for one in gc.waste(Path(cache_of(view)), unfinished=True)] == [
        view.folder,
        view.folder.parent,
    ]


def test_gc_spares_what_was_finished_meanwhile(view):
    gc.remove_waste(gc.Waste(view.folder, "", 0))
    gc.remove_waste(gc.Waste(view.folder.parent, "", 0))
    assert not integrity.check(view)[:BAD].any()


def test_torch_is_imported_only_where_something_is_computed():
    program = (
        "import sys; from upkeep import doctor, gc, list_views, repair, status, verify; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# --- naming views


def test_views_are_found_by_name_and_data_set(view, original, tmp_path):
    cache = Path(cache_of(view))
    assert (
        lookup.find_views(cache)
        == lookup.find_views(cache, "tiny-clip", "photos")
        == lookup.find_views(cache, "x/tiny-clip.toml")
        == [view.folder]
    )
    with pytest.raises(UsageError, match=r"no view 'tiny-clop'.* did you mean 'tiny-clip'"):
        lookup.find_views(cache, "tiny-clop")
    with pytest.raises(
        UsageError,
        match=r"no view 'tiny-dinov2' in .*; there is: tiny-clip\. To extract it: type it",
    ):  # a view that we know is no slip
        store.find_view(view.folder.parent, "tiny-dinov2", "type it")
    with pytest.raises(UsageError, match="there is no cache"):
        lookup.find_views(tmp_path / "nowhere")


def test_the_commands_exit_with_their_codes(view, command: Callable):
    flip(view.embeddings_file(1))
    done = command("verify", "--cache", cache_of(view))
    assert done.returncode == 5 and "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("Type: make repair"))
    words = dict(word.split("=", 1) for word in line.split()[3:])
    done = command(
        "repair", "--view", words["VIEW"], "--data", words["DATA"], "--cache", words["CACHE"]
    )
    assert done.returncode == 0 and "1 of 3 shards are to be computed again: 1" in done.stdout, (
        done.stderr
    )
    assert command("verify", "--cache", cache_of(view)).returncode == 0
    shown = command("status", "--cache", cache_of(view))
    assert shown.returncode == 0 and "finished" in shown.stdout
    assert command("gc", "--cache", cache_of(view)).returncode == 0
    assert json.loads((view.folder / "complete.json").read_text())["n"] == N and not list(
        mend.problems(view)
    )


def test_an_imported_view_is_filled_in_by_importing_again(tmp_path):
    from exchange.config import ImportConfig
    from exchange.importer import import_view

    emb = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float16)
    np.savez(tmp_path / "x.npz", embeddings=emb, y=np.arange(N) % 3)
    settings = ImportConfig(
        view="v", source=str(tmp_path / "x.npz"), cache=str(tmp_path / "cache"), shard_rows=ROWS
    )
    import_view(settings)
    folder = next((tmp_path / "cache").glob("x-*/v-*"))
    before = contents(store.open_view(folder))
    flip(store.open_view(folder).embeddings_file(1))
    harmed = contents(store.open_view(folder))
    with pytest.raises(
        IntegrityError,
        match=r"Nothing is removed\. This writes just these anew: make import VIEW=v DATA=x-.* "
        r"FROM=.*x\.npz ARGS=",
    ) as caught:
        mend_view(RepairConfig(view="v", cache=str(tmp_path / "cache")))
    assert contents(store.open_view(folder)) == harmed
    with pytest.raises(IntegrityError, match="Nothing is removed"):
        mend_view(RepairConfig(view="v", cache=str(tmp_path / "cache"), shards="0"))
    words = dict(
        word.split("=", 1)
        for word in str(caught.value).split("make import ")[1].split()
        if "=" in word
    )
    assert words["ARGS"].startswith("'--array")
    import_view(
        ImportConfig(
            view=words["VIEW"],
            source=words["FROM"],
            data=words["DATA"],
            cache=words["CACHE"],
            array="embeddings",
            by_row_order=True,
        )
    )
    assert contents(store.open_view(folder)) == before
    verify(VerifyConfig(cache=str(tmp_path / "cache"), recompute=3))


# --- files of another kind where a view's own should stand, and views that lost their records


@pytest.mark.parametrize(
    "name", ["embeddings/c/1/0", "status/c/2", "commits/00001.json", "zarr.json", "canary.json"]
)
@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_regular_file_is_named_at_once_and_mended(view, original, photos, name, kind):
    path = view.folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
        (path / "inside").touch()
    else:
        os.mkfifo(path)
    with pytest.raises(CoviewError) as caught:
        verify(VerifyConfig(cache=cache_of(view)))
    assert caught.value.exit_code == 5 and name in str(caught.value)
    mend_view(RepairConfig(view="tiny-clip", cache=cache_of(view), workers=0))
    assert contents(view) == contents(original) and len(list(view.folder.glob("strays/*"))) == 1


def test_a_view_that_lost_its_records_is_not_ok_and_gc_keeps_it(view, photos, capsys):
    for path in (
        *view.folder.glob("commits/*"),
        view.folder / "complete.json",
        view.folder / "zarr.json",
    ):
        path.unlink()
    assert not list(gc.waste(Path(cache_of(view)))) and view.folder.name in status_text(
        Path(cache_of(view))
    )
    for name in ("embeddings", "status"):
        (view.folder / name / "zarr.json").unlink()
    shutil.copytree(view.folder, other := view.folder.with_name("other-0123456789ab"))
    run(config(photos, Path(cache_of(view))))  # it stands in nobody's way
    with pytest.raises(
        CoviewError,
        match=r"other-0123456789ab holds shards, but its zarr.json, commits and seal are "
        r"gone.*\n1 failed, of 1 view",
    ) as caught:
        verify(VerifyConfig(cache=cache_of(view)))
    assert caught.value.exit_code == 5 and other.is_dir()
    assert "NOT OK" in capsys.readouterr().out


def test_gc_leaves_the_users_own_temp_files(view):
    for folder in (view.folder.parent, view.folder.parent.parent):
        (folder / ".notes.tmp").write_text("mine")
    assert not list(gc.waste(Path(cache_of(view))))


def test_an_image_that_has_changed_is_stale_not_damage(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    run(config(tmp_path / "photos", tmp_path / "cache"))
    path = tmp_path / "photos" / "a" / "006.png"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(
        CoviewError,
        match=r"1 of 45 images are gone or have changed since .*, first 'a/006.png'; the stored "
        r"rows are un",
    ) as caught:
        verify(VerifyConfig(cache=str(tmp_path / "cache"), recompute=ROWS))
    assert caught.value.exit_code == 6 and "repair" not in str(caught.value)
