"""Several views at once: the bytes of each are those that it has by itself, and every image is read
and decoded once for all of them."""

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BATCH, N, config
from test_extract import files

from base import durable
from base.errors import DataQualityError, StoppedError, StorageError, UsageError
from cache_specs.spec import load_spec
from cache_specs.store import open_view
from extract import images, job, units
from extract.config import ExtractConfig
from extract.plan import plan
from extract.run import run
from extract.settings import check

BOTH = "tiny-clip,tiny-dinov2"


def several(photos: Path, cache: Path, **changes: object) -> ExtractConfig:
    return config(photos, cache, view="", views=BOTH, **changes)


def views_in(cache: Path) -> dict[str, dict[str, bytes]]:
    """Of each view in a cache: its files."""
    found = {}
    for path in sorted(cache.glob("*/*/zarr.json")):
        folder = path.parent
        found[folder.name] = files(open_view(folder))
    return found


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which each view was made by itself."""
    cache = tmp_path_factory.mktemp("alone")
    for view in BOTH.split(","):
        run(config(photos, cache, view=view))
    return cache


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows whose files are read, and decoded, for several views at once."""
    rows: list[int] = []

    def contents(reader, row, sha256):
        rows.append(row)
        return images.contents(reader, row, sha256)

    monkeypatch.setattr(units, "contents", contents)
    return rows


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("gpus", [1, 2])
def test_each_view_is_the_same_as_by_itself(photos, tmp_path, alone, workers, gpus, capsys):
    found = {}
    run(several(photos, tmp_path, workers=workers, gpus=gpus), found)
    assert views_in(tmp_path) == views_in(alone) and len(views_in(tmp_path)) == 2
    assert [view["view"] for view in found["views"]] == BOTH.split(",")
    assert [view["embedded"] for view in found["views"]] == [N, N]
    assert found["data"]["images"] == N
    out = capsys.readouterr().out
    assert out.count("finished, 45 images") == out.count("1 of 45 images could not be") == 2


def test_every_image_is_read_and_decoded_once(photos, tmp_path, read, monkeypatch):
    decode, decoded = images.pixels.picture, []

    def counted(data, *given, **more):
        decoded.append(len(data))
        return decode(data, *given, **more)

    monkeypatch.setattr(images.pixels, "picture", counted)
    run(config(photos, tmp_path / "one"))
    besides = len(decoded) - N  # the canary, and why the bad one is bad
    decoded.clear()
    run(several(photos, tmp_path / "both"))
    assert len(decoded) == N + 2 * besides and read == [*range(N)]


def test_what_reads_a_file_otherwise_decodes_it_by_itself_and_is_the_same(photos, tmp_path):
    """Another background and another limit of pixels: their own picture; another mean: the same."""
    prep = load_spec("tiny-clip").preprocess
    others = [
        dataclasses.replace(prep, background=(0, 0, 0)),
        dataclasses.replace(prep, max_pixels=40 * 30),
        dataclasses.replace(prep, mean=(0.1, 0.2, 0.3)),
        dataclasses.replace(prep, crop=32, resize=40),
    ]
    assert units.scaled_by(others[2]) == units.scaled_by(prep)
    for path in sorted(photos.rglob("*.*")):
        data, preps = path.read_bytes(), [prep, *others]
        for one, (picture, status) in zip(preps, images.pictures_of(data, preps), strict=True):
            pixels, expected = images.decode(data, one)
            assert status == expected
            if picture is not None:
                assert images.pipeline(one)(picture.image).equal(pixels)


def test_of_views_that_want_other_pixels_each_has_its_own(photos, tmp_path):
    """And of another batch, whose last one is padded otherwise."""
    run(several(photos, tmp_path / "cache", batch=7))
    for view in BOTH.split(","):
        run(config(photos, tmp_path / "alone", view=view, batch=7))
    assert views_in(tmp_path / "cache") == views_in(tmp_path / "alone")


def test_a_view_that_is_further_goes_on_and_the_other_begins(photos, tmp_path, alone, read):
    """The first view has two of three shards; what both lack is decoded once."""
    view = run(config(photos, tmp_path))
    for path in (view.folder / "complete.json", view.commit_file(0), view.commit_file(2)):
        path.unlink()
    run(several(photos, tmp_path))
    assert views_in(tmp_path) == views_in(alone) and read == [*range(N)]


def test_a_view_keeps_the_batch_that_it_was_begun_with(photos, tmp_path, alone):
    """Its batches are no longer those of the other."""
    for cache in ("one", "other"):
        view = run(config(photos, tmp_path / cache, batch=BATCH - 1))
        for path in (view.folder / "complete.json", view.commit_file(1)):
            path.unlink()
    run(config(photos, tmp_path / "one"))
    run(several(photos, tmp_path / "other"))
    (mine,) = views_in(tmp_path / "one").values()
    found = views_in(tmp_path / "other")
    (other,) = [files for name, files in views_in(alone).items() if "dinov2" in name]
    assert [*found.values()] == [mine, other]


def test_what_is_there_is_not_made_again(photos, tmp_path, alone, capsys):
    run(config(photos, tmp_path, view="tiny-dinov2"))
    found = {}
    run(several(photos, tmp_path), found)
    assert views_in(tmp_path) == views_in(alone)
    assert [view["embedded"] for view in found["views"]] == [N, 0]
    run(several(photos, tmp_path), found)
    assert [view["hits"] for view in found["views"]] == [N, N]
    assert capsys.readouterr().out.count("already in the cache") == 3


@pytest.mark.parametrize("after", ["commit.rename", "embeddings.rename"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_a_failure_at_any_write_costs_shards_and_no_byte(
    photos, tmp_path, alone, monkeypatch, after, count
):
    monkeypatch.setattr(durable, "_passed", 0)
    monkeypatch.setenv("COVIEW_FAULT", f"ENOSPC:{count}:{after}")
    with pytest.raises(StorageError):
        run(several(photos, tmp_path))
    monkeypatch.delenv("COVIEW_FAULT")
    run(several(photos, tmp_path))
    assert views_in(tmp_path) == views_in(alone)


def test_after_ctrl_c_every_view_finishes_its_shard(photos, tmp_path, alone, monkeypatch):
    walks: list[int] = []
    walk = job.Share.walk

    def watched(share, *given) -> Iterator[None]:
        for step in walk(share, *given):
            walks.append(1)
            if len(walks) == 3:
                signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(job.Share, "walk", watched)
    stopped = r"tiny-clip: stopped; 1 of 3 shards .*\ntiny-dinov2: stopped; 1 of 3 shards"
    with pytest.raises(StoppedError, match=stopped):
        run(several(photos, tmp_path))
    assert [len(list(folder.glob("commits/*"))) for folder in tmp_path.glob("*/tiny-*")] == [1, 1]
    run(several(photos, tmp_path))
    assert views_in(tmp_path) == views_in(alone)


def test_too_many_bad_images_end_it_and_what_is_committed_stays(photos, tmp_path, alone):
    with pytest.raises(DataQualityError, match="so far could not be embedded"):
        run(several(photos, tmp_path, max_bad="0"))
    run(several(photos, tmp_path))
    assert views_in(tmp_path) == views_in(alone)


def test_no_view_looks_far_ahead():
    """One view has the first and the last unit alone: those between do not wait in memory."""
    found = []
    for number in range(50):
        views = {0: 0, 1: 0} if number in (0, 49) else {1: 0}
        found.append(units.Unit([number], 1, [], views))
    handed = []

    def arrived():
        for number in range(50):
            handed.append(number)
            yield [number]

    one, other = units.split(found, arrived(), 2)
    assert next(one) == 0 and next(one) is None and handed == [0]
    assert [next(other) for _ in range(49)] == [*range(49)]
    assert next(one) == next(other) == 49 and len(handed) == 50
    assert next(one, "end") is None and next(one, "end") == "end"


@pytest.mark.parametrize(
    ("changes", "said", "instead"),
    [
        (
            {"view": "tiny-clip", "views": "tiny-dinov2"},
            "VIEW=tiny-clip and VIEWS=tiny-dinov2: name all of them in VIEWS",
            {"VIEW": None, "VIEWS": "tiny-clip,tiny-dinov2"},
        ),
        ({"views": "tiny-clip, tiny-clip"}, "the view 'tiny-clip' was named twice", None),
        (
            {"views": "tiny-clp,tiny-dinov2"},
            "no view 'tiny-clp'; did you mean 'tiny-clip'",
            {"VIEW": None, "VIEWS": BOTH},
        ),
        (
            {"views": "clip,tiny-clip"},
            "Of several views WEIGHTS=FOLDER holds clip/ or clip.safetensors",
            {},
        ),
        ({"views": " , "}, "VIEW is missing. Type: make extract VIEW=", None),
        ({"views": BOTH, "data": ""}, f"DATA is missing. Type: make extract VIEWS={BOTH} D", None),
        ({"views": BOTH, "weights": "w"}, "a folder with a folder, or one .safetensors", None),
    ],
)
def test_what_makes_no_sense_is_refused(photos, tmp_path, changes, said, instead):
    with pytest.raises(UsageError) as caught:
        run(dataclasses.replace(config(photos, tmp_path, view=""), **changes))
    assert said in str(caught.value)
    assert instead is None or caught.value.instead == instead


def test_views_may_stand_in_view_too(photos, tmp_path, alone):
    run(config(photos, tmp_path, view=BOTH))
    assert views_in(tmp_path) == views_in(alone)


def test_the_dry_run_tells_of_each(photos, tmp_path, capsys):
    found = {}
    plan(several(photos, tmp_path), found)
    assert [view["view"] for view in found["views"]] == BOTH.split(",")
    assert [view["to_embed"] for view in found["views"]] == [N, N]
    assert capsys.readouterr().out.count("Nothing is written") == 1
    assert not list(tmp_path.iterdir())


def test_a_view_that_both_names_hold_is_advised_once() -> None:
    with pytest.raises(UsageError) as caught:
        check(ExtractConfig(view="a", views="a,b", data="photos"))
    assert caught.value.instead == {"VIEW": None, "VIEWS": "a,b"}
