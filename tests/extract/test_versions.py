"""A view of an earlier version of the pixels: named by the field, with a command that does
something about it; used as it is; and new images are decoded as its own were."""

import dataclasses
import logging
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import config
from PIL import Image

from base.errors import DataQualityError, StaleError, StorageError, UsageError
from cache_specs.spec import (
    PIXELS,
    SPECS,
    changed_fields,
    load_spec,
    pixels_of,
    with_pixels_of,
)
from extract import images
from extract.command import command
from extract.images import decode
from extract.models import backbones
from extract.models.weights import find_weights
from extract.originals import find_originals
from extract.run import run
from predict.bundle.card import licence_of
from predict.images import spec_of
from predict.model import ViewRecord
from train.data.reader import open_cache
from upkeep.status import status_text

NOW = (SPECS / "tiny-clip.toml").read_text().replace('path = "', f'path = "{SPECS}/')
THEN = NOW.replace("[preprocess]", "[preprocess]\npixels = 1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ink on transparency in photos/, and a cache with the view v of then; v.toml is that of
    now."""
    place, chance = tmp_path_factory.mktemp("versions"), np.random.default_rng(0)
    (place / "photos").mkdir()
    for number in range(3):
        ink = np.zeros((28, 28, 4), np.uint8)
        ink[..., 3] = chance.integers(0, 256, (28, 28))
        Image.fromarray(ink).save(place / "photos" / f"{number}.png")
    (place / "v.toml").write_text(THEN)
    run(at(place))
    (place / "v.toml").write_text(NOW)
    return place


def at(place: Path, **changes: object):
    settings = {"view": str(place / "v.toml"), **changes}
    return config(place / "photos", place / "cache", **settings)


def older(spec):
    return dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, pixels=1))


def test_the_fingerprints_of_before_are_those_of_version_1():
    """The names that docs and caches had before the pixels had versions."""
    for name, key in (("tiny-clip", "ad44186e0b21"), ("tiny-dinov2", "9ebceac57f29")):
        spec = load_spec(name)
        _, weights = find_weights(spec, None)
        assert older(spec).fingerprint(weights)[:12] == key
        assert spec.fingerprint(weights)[:12] != key
        assert not {"pixels", "background", "bits"} & older(spec).declared()["preprocess"].keys()


def test_extract_names_the_field_and_a_command_that_gets_further(world):
    with pytest.raises(StaleError) as caught:
        run(at(world))
    text = str(caught.value)
    field = f"preprocess.pixels: 1 -> {PIXELS}"
    assert f"was made with another version of the pixels:\n  {field}\n" in text
    assert "stays good for training and prediction" in text
    assert "name a copy of v.toml, called so too, that has pixels = 1" in text
    words = dict(
        word.split("=", 1) for word in shlex.split(re.search("make extract (.*)", text)[1])
    )
    assert words["CACHE"] == f"{world / 'cache'}-pixels-{PIXELS}"
    view = run(config(Path(words["DATA"]), Path(words["CACHE"]), view=words["VIEW"]))
    assert view.is_complete and pixels_of(view.attributes["spec"]) == PIXELS


def no_memory(*given: object) -> None:
    raise MemoryError("none")


def test_what_is_refused_leaves_the_labels_as_they_were(world, tmp_path, monkeypatch):
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    table = Path("list.csv")
    rows = [f"photos/{number}.png,{number}\n" for number in range(3)]
    table.write_text("path,label\n" + "".join(rows))
    Path("v.toml").write_text(THEN)
    settings = dataclasses.replace(at(Path()), data="list.csv")
    written = run(settings).folder.parent / "dataset.json"
    before = (written.read_bytes(), written.with_name("items.parquet").read_bytes())
    table.write_text("path,label\n" + "".join(rows[:2]) + "photos/2.png,1\n")
    for spec in (NOW, THEN.replace("antialias = true", "antialias = false")):
        Path("v.toml").write_text(spec)
        with pytest.raises(StaleError, match="was made with another"):
            run(settings)
        assert before == (written.read_bytes(), written.with_name("items.parquet").read_bytes())
        assert not (written.parent / "labels").exists()
    Path("v.toml").write_text(THEN)
    with monkeypatch.context() as patched:  # the canary
        real = images.pipeline
        patched.setattr(images, "pipeline", lambda prep: lambda image: 255 - real(prep)(image))
        with pytest.raises(StaleError, match="the pixels of 3 of 3 fixed images"):
            run(settings)
    Path("w.toml").write_text(THEN)  # another view, for which the disk is too small
    with monkeypatch.context() as patched:
        full = shutil.disk_usage(tmp_path)._replace(free=0)
        patched.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(StorageError, match=r"MB free\. Nothing is lost"):
            run(dataclasses.replace(settings, view="w.toml"))
    with monkeypatch.context() as patched:  # its model
        patched.setattr(backbones, "load_backbone", no_memory)
        with pytest.raises(UsageError, match="the memory does not suffice"):
            run(dataclasses.replace(settings, view="w.toml"))
    assert before == (written.read_bytes(), written.with_name("items.parquet").read_bytes())
    assert not (written.parent / "labels").exists()
    run(settings)
    assert before[0] != written.read_bytes()


def test_a_copy_of_the_spec_with_the_pixels_of_then_goes_on(world, tmp_path, caplog):
    (tmp_path / "v.toml").write_text(THEN)
    with caplog.at_level(logging.INFO):
        run(at(world, view=str(tmp_path / "v.toml")))
    assert "already in the cache, nothing to do" in caplog.text


def test_training_uses_it_and_says_so(world, caplog):
    with caplog.at_level(logging.WARNING):
        cache = open_cache(world / "cache", str(world / "photos"), [str(world / "v.toml")])
    assert cache.ok.all()
    assert (
        f"v was made with an earlier version of the pixels (preprocess.pixels: 1 -> {PIXELS})"
        in caplog.text
    )
    assert "To embed its images anew, beside it, type: make extract VIEW=" in caplog.text


@pytest.mark.parametrize("name", ["tiny-clip", "mine"])
def test_earlier_pixels_of_ones_own_view_are_told_by_extract_and_train(tmp_path, caplog, name):
    """Its file has pixels = 1, or lacks it by now, or is gone."""
    toml, cache, photos = tmp_path / "own" / f"{name}.toml", tmp_path / "c", tmp_path / "photos"
    toml.parent.mkdir()
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(photos / f"{number}.png")
    toml.write_text(THEN)
    run(config(photos, cache, view=str(toml)))
    field = f"preprocess.pixels: 1 -> {PIXELS}"
    told = f"{name} was made with an earlier version of the pixels ({field})"
    whose = f"{name} is here the view that was made of {toml}, which the data set has in the cache"

    def said(do: Callable[[], object]) -> str:
        caplog.clear()
        do()
        assert caplog.text.count(told) == 1
        assert caplog.text.count(whose) == (name == "tiny-clip")
        return caplog.text

    def train() -> object:
        return open_cache(cache, str(photos), [name])

    for do in (train, lambda: command(config(photos, cache, view=name), {})):
        text = said(do)
        assert f"take pixels = 1 out of {toml} and type: make extract VIEW={toml} DATA=" in text
    toml.write_text(NOW)
    assert f"beside it, type: make extract VIEW={toml} DATA=" in said(train)
    toml.unlink()
    gone = said(train)
    assert ("VIEW=tiny-clip DATA=" in gone) == (name == "tiny-clip") == ("type:" in gone)
    said(lambda: run(config(photos, cache, view=name)))


def test_what_else_has_changed_is_refused_as_before(world, tmp_path):
    (tmp_path / "v.toml").write_text(NOW.replace("antialias = true", "antialias = false"))
    for tried in (
        lambda toml: run(at(world, view=toml)),
        lambda toml: open_cache(world / "cache", str(world / "photos"), [toml]),
    ):
        with pytest.raises(StaleError) as caught:
            tried(str(tmp_path / "v.toml"))
        assert "preprocess.antialias: True -> False" in str(caught.value)
        assert f"preprocess.pixels: 1 -> {PIXELS}" in str(caught.value)
        assert "background" not in str(caught.value)


def test_status_and_repair_know_it(world):
    assert f"made with preprocess.pixels 1 (now {PIXELS})" in status_text(world / "cache")
    view = run(at(world, view=_then(world)))
    found = find_originals(view, str(world / "v.toml"), None, Path())
    assert found.spec.preprocess.pixels == 1


def _then(world: Path) -> str:
    place = world / "then" / "v.toml"
    place.parent.mkdir(exist_ok=True)
    place.write_text(THEN)
    return str(place)


def test_a_newer_version_of_the_images_copies_nothing_and_says_why(world, tmp_path, caplog):
    shutil.copytree(world, tmp_path / "w")
    place = tmp_path / "w"
    run(at(place, view=_then(place)))  # it notes the new place
    Image.new("RGB", (20, 20), "red").save(place / "photos" / "9.png")
    with caplog.at_level(logging.INFO):
        run(at(place))
    assert re.search(r"nothing is copied from .*/v-.*preprocess\.pixels: 1 -> 3\)", caplog.text)
    assert "rows are copied" not in caplog.text


def test_prediction_decodes_new_images_as_those_of_the_training_were(world):
    """Ink on transparency: black on black to version 1, black on white now."""
    view = run(at(world, view=_then(world)))
    spec, weights = view.attributes["spec"], view.attributes["weights_sha256"]
    record = ViewRecord("v", view.width, spec, weights, str(world / "v.toml"), 4)
    then, now = spec_of(record).preprocess, load_spec(str(world / "v.toml")).preprocess
    assert (then.pixels, now.pixels) == (1, PIXELS)
    data = (world / "photos" / "0.png").read_bytes()
    black, shown = decode(data, then)[0], decode(data, now)[0]
    assert black is not None and shown is not None
    assert int(black.max()) == 0 and int(shown.max()) > 200
    with pytest.raises(UsageError, match=r"preprocess\.pixels must be 1 to 3 here, found 9"):
        later = {**spec, "preprocess": {**spec["preprocess"], "pixels": 9}}
        spec_of(dataclasses.replace(record, spec=later))


def test_a_model_card_knows_the_licence_of_an_older_view():
    spec = load_spec("clip")
    record = ViewRecord("clip", spec.width, older(spec).declared(), "0" * 64, "", 64)
    assert spec.about is not None and licence_of(record) == spec.about.licence


def test_only_earlier_pixels_are_taken_for_the_same_view():
    spec = load_spec("tiny-clip")
    assert with_pixels_of(spec, older(spec).declared()) == older(spec)
    assert with_pixels_of(spec, spec.declared()) is spec
    black = dataclasses.replace(spec.preprocess, background=(0, 0, 0))
    dark = dataclasses.replace(spec, preprocess=black)
    assert with_pixels_of(dark, older(spec).declared()) is dark  # it asks for what is not there
    assert with_pixels_of(spec, load_spec("clip").declared()) is spec
    assert with_pixels_of(spec, {"backend": "imported"}) is spec
    assert changed_fields(spec.declared(), dark.declared()) == [
        "preprocess.background: [255, 255, 255] -> [0, 0, 0]"
    ]
    assert changed_fields(older(spec).declared(), dark.declared()) == [
        f"preprocess.pixels: 1 -> {PIXELS}"
    ]


# --- what is told while images are embedded


def test_profiles_that_are_left_aside_are_counted(tmp_path, caplog):
    for number, icc in enumerate((b"no profile" * 20, b"", b"none either" * 20)):
        image = Image.new("RGB", (28, 28), (number, 90, 0))
        image.save(tmp_path / f"{number}.png", icc_profile=icc or None)
    with caplog.at_level(logging.WARNING):
        run(config(tmp_path, tmp_path / "cache"))
    assert (
        "tiny-clip: the colours of 2 images are taken for sRGB's, first '0.png': colour profile "
        "that cannot be used (it cannot be read)"
    ) in caplog.text


def test_files_with_further_pages_are_counted(tmp_path, caplog):
    pages = [Image.new("RGB", (28, 28), (number, 90, 0)) for number in range(3)]
    pages[0].save(tmp_path / "0.tif")
    for name in ("1.tif", "2.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with caplog.at_level(logging.WARNING):
        run(config(tmp_path, tmp_path / "cache", batch=2))
    assert (
        "tiny-clip: of 2 files with several pages or frames only the first of these is read (first "
        "file: '1.tif'). To use the others, write each to a file of its own"
    ) in caplog.text


def test_a_list_of_images_that_could_not_be_read_says_why(tmp_path):
    for number in range(3):
        Image.new("RGB", (28, 28), (number, 0, 0)).save(tmp_path / f"{number}.png")
    Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / "f.tif")
    (tmp_path / "g.png").write_bytes(b"")
    with pytest.raises(DataQualityError) as caught:
        run(config(tmp_path, tmp_path / "cache", max_bad="0"))
    told = str(caught.value)
    assert "f.tif: undecodable (floating-point levels: nothing says which is black" in told
    assert "g.png: undecodable (the file is empty)" in told


def test_the_limit_of_pixels_is_a_setting_and_stands_in_the_message(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    for limit, bad in ((1200, 0), (1199, 3)):
        toml = tmp_path / f"v{limit}.toml"
        toml.write_text(NOW.replace("[preprocess]", f"[preprocess]\nmax_pixels = {limit}"))
        where = config(tmp_path / "photos", tmp_path / "cache", view=str(toml))
        if not bad:
            assert run(where).is_complete
            continue
        with pytest.raises(DataQualityError, match=r"too large \(40 x 30 pixels; at most 1,199"):
            run(where)
