"""What people do to a cache by mistake: nothing that is good may be lost by it, and nothing that
is wrong may be believed."""

import mmap
import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import NOTES, ROWS, config

from base import locks
from base.commands import run_cli
from base.errors import IntegrityError, StaleError, StorageError, UsageError
from cache_specs import integrity, store
from cache_specs.view import View
from extract import images
from extract.run import run
from train.data.reader import open_cache
from upkeep import gc
from upkeep.config import RepairConfig, VerifyConfig
from upkeep.repair import mend_view
from upkeep.status import status_text as status
from upkeep.verify import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("accidents")
    shutil.copytree(photos, folder / "photos")
    run(config(folder / "photos", folder / "cache"))
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """photos/ and cache/, the item list naming these photos."""
    shutil.copytree(made, tmp_path / "w")
    run(config(tmp_path / "w" / "photos", tmp_path / "w" / "cache", name="photos"))
    return tmp_path / "w"


def the_view(world: Path) -> View:
    sealed = next((world / "cache").glob("photos-*/tiny-clip-*/complete.json"))
    return store.open_view(sealed.parent)


def contents(world: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in (world / "cache").rglob("*")
        if path.is_file() and path.name not in NOTES
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))


def mend(world: Path, **changes: object) -> None:
    mend_view(RepairConfig(view="tiny-clip", cache=str(world / "cache"), workers=0, **changes))


# --- repair that cannot


def _another_image_is_gone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "photos" / "b" / "043.jpg").unlink()  # of the last shard; the first is damaged


def _its_image_has_changed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(world / "photos" / "a" / "006.png")  # of the damaged shard, and none of the canary


def _the_library_has_changed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = images.pipeline
    monkeypatch.setattr(images, "pipeline", lambda prep: lambda image: 255 - real(prep)(image))


def _the_photos_are_gone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "photos").rename(world / "away")


@pytest.mark.parametrize(
    "trouble",
    [
        _another_image_is_gone,
        _its_image_has_changed,
        _the_library_has_changed,
        _the_photos_are_gone,
    ],
)
def test_a_repair_that_cannot_compute_changes_nothing(world, monkeypatch, trouble):
    flip(the_view(world).embeddings_file(0))
    before = contents(world)
    trouble(world, monkeypatch)
    with pytest.raises((StaleError, UsageError)):
        mend(world)
    assert contents(world) == before and the_view(world).is_complete


def test_a_file_that_may_not_be_read_is_no_damage(world, monkeypatch):
    view, before, real = the_view(world), contents(world), Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path == view.embeddings_file(1):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(
        StorageError, match=r"cannot read .*embeddings/c/1/0: Permission denied. Nothing is changed"
    ):
        mend(world)
    monkeypatch.undo()
    assert contents(world) == before


@pytest.mark.parametrize("name", ["commits", "embeddings/c", "status"])
def test_a_missing_folder_is_mended(world, name):
    before, view = contents(world), the_view(world)
    shutil.rmtree(view.folder / name)
    mend(world)
    assert contents(world) == before


def test_a_copy_of_a_shard_that_somebody_kept_is_put_aside_not_deleted(world):
    view = the_view(world)
    shutil.copytree(view.embeddings_file(1).parent, view.folder / "embeddings" / "c" / "1.bak")
    kept = view.embeddings_file(1).read_bytes()
    flip(view.embeddings_file(1))
    mend(world)
    assert (
        (view.folder / "strays" / "embeddings-c-1.bak.0" / "0").read_bytes()
        == kept
        == view.embeddings_file(1).read_bytes()
    )
    assert "put aside by make repair" in str(list(gc.waste(world / "cache")))


# --- what is not ours


def test_folders_that_only_look_like_ours_are_left_alone(world, capsys):
    view = the_view(world)
    mine = view.folder.parent / "tiny-clip-0123456789ab"
    (mine / "embeddings" / "c" / "0").mkdir(parents=True)
    (mine / "embeddings" / "c" / "0" / "0").write_bytes(b"half a backup")
    precious = world / "cache" / "myruns" / "exp-0123456789ab"
    precious.mkdir(parents=True)
    (precious / "thesis.txt").write_text("precious")
    linked = view.folder.parent / "tiny-clip-aaaaaaaaaaaa"
    linked.symlink_to(precious)
    run(config(world / "photos", world / "cache"))
    gc.collect(gc.GcConfig(cache=str(world / "cache"), yes=True, unfinished=True))
    assert (
        (mine / "embeddings" / "c" / "0" / "0").exists()
        and (precious / "thesis.txt").exists()
        and linked.is_symlink()
    )
    assert (
        "nothing to do" in capsys.readouterr().out
        and not integrity.check(the_view(world))[:ROWS].any()
    )


def test_what_a_killed_creation_left_goes(world):
    half = the_view(world).folder.parent / "tiny-clip-0123456789ab"
    for name in ("embeddings", "status", "commits"):
        (half / name).mkdir(parents=True)
    (half / "embeddings" / ".zarr.json.tmp").write_bytes(b"{")
    shutil.copytree(half, half.with_name("tiny-dinov2-0123456789ab"))
    run(config(world / "photos", world / "cache"))
    assert not half.exists(), "the next extraction of the view clears it away"
    assert [one.path for one in gc.waste(world / "cache")] == [
        half.with_name("tiny-dinov2-0123456789ab")
    ]
    gc.collect(gc.GcConfig(cache=str(world / "cache"), yes=True))
    assert not half.with_name("tiny-dinov2-0123456789ab").exists()


def test_gc_waits_for_nobody_and_takes_nothing_while_an_extraction_loads_its_model(world):
    with (
        locks.shared_lock(world / "cache", locks.USERS),
        pytest.raises(
            StorageError, match="nothing is removed: an extraction, import or repair is at work"
        ),
    ):
        gc.collect(gc.GcConfig(cache=str(world / "cache"), yes=True))


def test_a_finished_view_that_lost_its_seal_is_kept_and_sealed_again(world, capsys):
    before, view = contents(world), the_view(world)
    (view.folder / "complete.json").unlink()
    gc.collect(gc.GcConfig(cache=str(world / "cache"), yes=True))
    verify(VerifyConfig(cache=str(world / "cache")))
    assert "unfinished, only its seal is missing" in capsys.readouterr().out
    run(config(world / "photos", world / "cache"))
    assert contents(world) == before


# --- what changes while it is read


def test_a_shard_that_is_written_to_during_training_voids_the_run_and_a_touched_one_does_not(world):
    cache, view = open_cache(world / "cache", "photos", ["tiny-clip"]), the_view(world)
    os.utime(view.embeddings_file(0))
    cache.refuse_changed()
    flip(view.embeddings_file(1))
    with pytest.raises(IntegrityError, match=r"shard 1 \(rows 16 to 31\) is damaged"):
        cache.refuse_changed()


def test_a_map_that_somebody_holds_open_for_writing_is_found_out(world):
    view = the_view(world)
    with view.embeddings_file(0).open("r+b") as file, mmap.mmap(file.fileno(), 0) as held:
        held[0] = held[0]  # the page is dirty: a further store would not touch the file's times
        time.sleep(0.3)
        integrity.check(view)
        time.sleep(0.05)
        held[1] ^= 1
        with pytest.raises(IntegrityError, match="embeddings/c/0/0 has changed"):
            integrity.check(view)


def test_status_says_verified_only_of_what_verify_has_read(world, tmp_path):
    assert "not verified since" in status(world / "cache")
    time.sleep(0.2)
    verify(VerifyConfig(cache=str(world / "cache")))
    time.sleep(0.2)
    integrity.check(the_view(world))
    assert "verified 20" in status(world / "cache")
    shutil.copytree(world / "cache", tmp_path / "copy")
    assert "not verified since" in status(tmp_path / "copy")
    flip(the_view(world).embeddings_file(0))
    assert "not verified since" in status(world / "cache")
    with pytest.raises(Exception, match="has changed since it was written"):
        verify(VerifyConfig(cache=str(world / "cache")))
    assert not (the_view(world).folder / "verified.json").exists()


# --- a canary that is lost early


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_without_its_canary_an_unfinished_view_goes_on_only_if_what_it_holds_is_computed_again(
    world, monkeypatch, harm
):
    view = the_view(world)
    (view.folder / "complete.json").unlink()
    for shard in (0, 2):
        view.commit_file(shard).unlink()
    if harm == "lost":
        (view.folder / "canary.json").unlink()
    else:
        flip(view.folder / "canary.json")
        with pytest.raises(IntegrityError, match="make repair"):
            run(config(world / "photos", world / "cache"))
    _the_library_has_changed(world, monkeypatch)
    if harm == "damaged":
        with pytest.raises(StaleError, match=r"its row .* is not what is computed now"):
            mend(world)
        (view.folder / "canary.json").unlink()
    with pytest.raises(StaleError, match=r"its row .* is not what is computed now"):
        run(config(world / "photos", world / "cache"))
    assert view.pending() == [0, 2]


# --- the rest


@pytest.mark.parametrize("name", ["a/b", "..", "a\nb", "x" * 300, "", "-x"])
def test_a_name_that_is_no_folder_name_is_refused(world, name):
    with pytest.raises(UsageError, match="a data set's name is made of letters"):
        run(config(world / "photos", world / "cache", name=name))


def test_a_name_stands_in_the_commands_that_are_told(world, capsys):
    run(config(world / "photos", world / "cache", name="foo"))
    folder = next((world / "cache").glob("foo-*/tiny-clip-*"))
    (folder / "complete.json").unlink()
    assert f"make extract VIEW=tiny-clip DATA={world}/photos ARGS='--name foo' CACHE=" in status(
        world / "cache"
    )


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), PermissionError(13, "Permission denied", "/there")]
)
def test_an_error_of_the_disk_is_a_message_not_a_traceback(capsys, error):
    def fail() -> None:
        raise error

    assert (
        run_cli(fail) == StorageError.exit_code
        and f"error: {error.filename or 'the disk'}: {error.strerror}" in capsys.readouterr().err
    )


def test_an_error_of_ours_is_not_hidden():
    def fail() -> None:
        raise FileNotFoundError(2, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        run_cli(fail)


def test_rows_a_shard_are_no_more_than_there_are_images(world):
    view = run(config(world / "photos", world / "other", shard_rows=10_000_000))
    assert view.rows == view.n and view.shards == 1


def test_damage_decides_the_exit_code_of_verify(world):
    view = the_view(world)
    flip(view.embeddings_file(0))
    foreign = world / "cache" / "b-00000000" / view.folder.name
    shutil.copytree(view.folder, foreign)
    shutil.copy(view.folder.parent / "items.parquet", foreign.parent)
    with pytest.raises(Exception, match="2 failed, of 2 views") as caught:
        verify(VerifyConfig(cache=str(world / "cache")))
    assert caught.value.exit_code == IntegrityError.exit_code


def test_progress_of_a_killed_run_is_not_counted(world):
    view = the_view(world)
    (view.folder / "progress-1.json").write_text("{}")
    with store.writer_lock(view.folder):
        assert not list(view.folder.glob("progress-*"))
        for text in ("{}", "[]", "null", '{"done": 0, "total": 9, "rate": 0, "seconds": {}}'):
            (view.folder / "progress-0.json").write_text(text)
            assert "being written by process" in status(world / "cache")
        assert "0 of 9 images, 0 images/s, ? left; bottleneck: ?" in status(world / "cache")
