"""Every declared thing that can change a number, changed one at a time: refused by name with exit
code 6. What cannot is a hit."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import BATCH, N, config
from PIL import Image

from base.errors import CoviewError, IntegrityError, StaleError
from cache_specs.integrity import check
from cache_specs.spec import SPECS
from cache_specs.view import View
from extract import canary, images
from extract.models import backbones
from extract.run import run

ORIGINAL = (
    (SPECS / "tiny-dinov2.toml")
    .read_text()
    .replace('path = "weights/', f'path = "{SPECS}/weights/')
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """photos/, v.toml and a cache that holds the view, never changed by a test."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(photos, folder / "photos")
    (folder / "v.toml").write_text(ORIGINAL)
    run(config(folder / "photos", folder / "cache", view=str(folder / "v.toml")))
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """A copy of it all, moved to where the images now lie (a moved folder is a hit)."""
    shutil.copytree(world, tmp_path / "world")
    return tmp_path / "world"


def again(folder: Path, **changes: object) -> View:
    return run(
        config(folder / "photos", folder / "cache", **{"view": str(folder / "v.toml"), **changes})
    )


def refused(folder: Path, line: str, **changes: object) -> None:
    before = {
        path: path.read_bytes()
        for path in (folder / "cache").rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }
    with pytest.raises(StaleError) as caught:
        again(folder, **changes)
    assert caught.value.exit_code == 6 and line in str(caught.value), caught.value
    after = {
        path: path.read_bytes()
        for path in (folder / "cache").rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }
    assert {
        path: data
        for path, data in after.items()
        if "items" not in path.name and "dataset" not in path.name
    } == {
        path: data
        for path, data in before.items()
        if "items" not in path.name and "dataset" not in path.name
    }


FIELDS = {
    "output": ('output = "cls"', 'output = "mean"', "output: cls -> mean"),
    "compute_dtype": (
        'compute_dtype = "float32"',
        'compute_dtype = "bfloat16"',
        "compute_dtype: float32 -> bfloat16",
    ),
    "resize": ("resize = 24\n", "resize = 30\n", "preprocess.resize: 24 -> 30"),
    "resize_rule": (
        'resize_rule = "squash"',
        'resize_rule = "shortest"',
        "preprocess.resize_rule: squash -> shortest",
    ),
    "crop": (
        'resize_rule = "squash"\ncrop = 24',
        'resize_rule = "shortest"\ncrop = 21',
        "preprocess.crop: 24 -> 21",
    ),
    "interpolation": (
        'interpolation = "bicubic"',
        'interpolation = "bilinear"',
        "preprocess.interpolation: bicubic -> bilinear",
    ),
    "antialias": ("antialias = true", "antialias = false", "preprocess.antialias: True -> False"),
    "mean": ("mean = [0.5,", "mean = [0.4,", "preprocess.mean: [0.5, 0.5, 0.5] -> [0.4, 0.5, 0.5]"),
    "std": ("std = [0.5,", "std = [0.25,", "preprocess.std: [0.5, 0.5, 0.5] -> [0.25, 0.5, 0.5]"),
    "width": ("width = ", "width = 1", "width: "),
    "architecture": (
        'architecture = "Dinov2Model"',
        'architecture = "ViTModel"',
        "architecture: Dinov2Model -> ViTModel",
    ),
    "background": (
        "[preprocess]",
        "[preprocess]\nbackground = '#000000'",
        "preprocess.background: [255, 255, 255] -> [0, 0, 0]",
    ),
    "bits": ("[preprocess]", "[preprocess]\nbits = 12", "preprocess.bits: 16 -> 12"),
    "max_pixels": (
        "[preprocess]",
        "[preprocess]\nmax_pixels = 1000",
        "preprocess.max_pixels: 134217728 -> 1000",
    ),
    "pixels": ("[preprocess]", "[preprocess]\npixels = 1", "preprocess.pixels: 3 -> 1"),
    "decoder": (
        "[preprocess]",
        "[preprocess]\ndecoder = 'scaled'",
        "preprocess.decoder: whole -> scaled",
    ),
    "weights.path": (
        f'path = "{SPECS}/weights/tiny-dinov2"',
        f'path = "{SPECS}/../views/weights/tiny-dinov2"',
        "weights.path: ",
    ),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_changed_field_is_refused_as_old_and_new(copy: Path, field: str) -> None:
    old, new, line = FIELDS[field]
    text = ORIGINAL.replace(old, new)
    if field == "resize":
        text = text.replace("crop = 24", "crop = 30")
    assert text != ORIGINAL
    (copy / "v.toml").write_text(text)
    refused(copy, line)


def test_every_declared_field_is_tried() -> None:
    from cache_specs.spec import load_spec

    names = set(load_spec("tiny-dinov2").declared()) | set(
        load_spec("tiny-dinov2").declared()["preprocess"]
    )
    elsewhere = {
        "weights",
        "preprocess",
        "backend",
        "storage_dtype",
    }  # weights below; the others have one value that can be loaded here
    # not declared where it has its default
    assert names - elsewhere == set(FIELDS) - {"weights.path", "decoder"}


def test_other_weights_and_another_revision_are_refused(copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(SPECS / "weights" / "tiny-dinov2", tmp_path / "w")
    state = load_file(tmp_path / "w" / "model.safetensors")
    name = sorted(state)[0]
    state[name].view(-1)[0] += 1e-6
    save_file(state, tmp_path / "w" / "model.safetensors", metadata={"format": "pt"})
    refused(copy, "weights.sha256: ", weights=str(tmp_path / "w"))
    text = ORIGINAL.replace(
        f'path = "{SPECS}/weights/tiny-dinov2"', 'hub = "someone/tiny"\nrevision = "REV"'
    )
    (copy / "hub.toml").write_text(text.replace("REV", "a1"))
    again(copy, view=str(copy / "hub.toml"), weights=str(SPECS / "weights" / "tiny-dinov2"))
    (copy / "hub.toml").write_text(text.replace("REV", "b2"))
    refused(
        copy,
        "weights.revision: a1 -> b2",
        view=str(copy / "hub.toml"),
        weights=str(SPECS / "weights" / "tiny-dinov2"),
    )


def _content(folder: Path) -> str:
    path = folder / "a" / "000.png"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    return "the contents of 1 are gone or have changed, first a/000.png (row 0)"


def _removed(folder: Path) -> str:
    (folder / "b" / "001.jpg").unlink()
    return f"({N} -> {N - 1} items)"


@pytest.mark.parametrize("change", [_content, _removed])
def test_changed_images_are_refused_by_name(copy: Path, change: Callable[[Path], str]) -> None:
    again(copy)  # so that it lies where it was embedded from
    refused(copy, change(copy / "photos"))


def test_images_that_changed_in_another_place_need_a_name(copy: Path) -> None:
    _removed(copy / "photos")
    refused(copy, "photos, these of ")


def test_renamed_and_added_images_make_a_version_with_the_rows_of_before(
    copy: Path, capsys: pytest.CaptureFixture
) -> None:
    again(copy)
    (copy / "photos" / "a" / "000.png").rename(copy / "photos" / "a" / "000x.png")
    assert again(copy).is_complete
    assert (
        "1 moved or renamed; 45 of 45 are known" in (out := capsys.readouterr().out)
        and "44 rows are copied" in out
        and "; 1 to embed" in out
    )
    Image.new("RGB", (9, 9)).save(copy / "photos" / "a" / "0001.png")
    assert again(copy).is_complete
    assert (
        "1 new; 45 of 46 are known" in (out := capsys.readouterr().out)
        and "44 rows are copied" in out
        and "; 2 to embed" in out
    )


def test_touched_moved_relabelled_renamed_and_another_batch_are_hits(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def hit(folder: Path, **changes: object) -> None:
        view = run(config(folder, copy / "cache", **{"view": str(copy / "v.toml"), **changes}))
        assert (
            "already in the cache, nothing to do" in capsys.readouterr().out
            and not check(view)[:20].any()
        )
        assert len(list((copy / "cache").glob("*/items.parquet"))) == 1

    hit(copy / "photos", batch=BATCH + 3, workers=1)
    for path in (copy / "photos").rglob("*.*"):
        os.utime(path, (1, 1))
    hit(copy / "photos")
    (tmp_path / "elsewhere").mkdir()
    (copy / "photos").rename(tmp_path / "elsewhere" / "photos")
    hit(tmp_path / "elsewhere" / "photos")
    (tmp_path / "elsewhere" / "photos").rename(tmp_path / "pictures")
    hit(tmp_path / "pictures")


def test_other_labels_in_the_same_place_are_a_hit_and_in_another_are_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    keys = sorted(
        path.relative_to(copy / "photos").as_posix() for path in (copy / "photos").rglob("*.*")
    )

    def extract(table: Path, names: str) -> None:
        table.write_text(
            "path,label\n"
            + "".join(f"{key},{names[i % len(names)]}\n" for i, key in enumerate(keys))
        )
        run(config(table, copy / "cache", view=str(copy / "v.toml")))

    extract(copy / "photos" / "list.csv", "xyz")
    assert "finished" in capsys.readouterr().out
    extract(copy / "photos" / "list.csv", "xyw")
    out = capsys.readouterr().out
    assert (
        "list: labels or splits of 15 of 45 images have changed, and replace the old ones" in out
        and "nothing to do" in out
    )
    shutil.copytree(copy / "photos", tmp_path / "elsewhere")
    with pytest.raises(
        StaleError,
        match=(
            r"has these very images with the labels of .*/list\.csv; "
            r"45 of 45 .* ARGS='--name list-2'"
        ),
    ):
        extract(tmp_path / "elsewhere" / "list.csv", "pq")
    assert "xyw"[0] in (copy / "photos" / "list.csv").read_text()
    extract(tmp_path / "elsewhere" / "list.csv", "xyw")  # the same labels: the folder was copied
    (tmp_path / "elsewhere" / "list.csv").unlink()
    extract(
        copy / "photos" / "other.csv", "q"
    )  # and others under another name are another data set
    assert len(list((copy / "cache").glob("*/items.parquet"))) == 3


# --- the canary


def test_a_library_that_changes_the_pixels_stops_the_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = images.pipeline
    monkeypatch.setattr(
        images,
        "pipeline",
        lambda prep: lambda image: (real(prep)(image).int() + 1).clamp(0, 255).to(torch.uint8),
    )
    with pytest.raises(
        StaleError,
        match=(
            r"the pixels of \d+ of 32 fixed images are not those that .*"
            r" was begun with, first row 0 \(a/000\.png\)"
        ),
    ) as caught:
        again(copy)
    assert "VIEW=path/to/v-2.toml" in str(
        caught.value
    ) and "no package that is recorded changed" in str(caught.value)


def test_a_library_that_changes_the_outputs_stops_the_run_and_says_which_version(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backbones.Backbone.forward
    monkeypatch.setattr(
        backbones.Backbone,
        "forward",
        lambda self, pixels, exact=False: real(self, pixels, exact) * 1.01,
    )
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "9.9" if name == "transformers" else "1.0"
    )
    with pytest.raises(
        StaleError,
        match=(
            r"pixels of 32 fixed images are those .* but the model's outputs "
            r"changed: relative distance 0\.01"
        ),
    ) as caught:
        again(copy)
    assert " -> 9.9" in str(caught.value) and "  transformers: " in str(caught.value)


def test_an_unfinished_view_goes_on_only_with_the_same_pixels(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = again(copy)
    (view.folder / "complete.json").unlink()
    view.commit_file(1).unlink()
    with monkeypatch.context() as patched:
        real = images.pipeline
        patched.setattr(images, "pipeline", lambda prep: lambda image: 255 - real(prep)(image))
        with pytest.raises(StaleError, match="the pixels of"):
            again(copy)
        assert view.pending() == [1]
    assert again(copy).is_complete


def test_a_last_bit_is_no_change(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device or batch size moves the last bits; that must not stop anybody."""
    real = backbones.Backbone.forward
    monkeypatch.setattr(
        backbones.Backbone,
        "forward",
        lambda self, pixels, exact=False: real(self, pixels, exact) * (1 + 2e-5),
    )
    assert again(copy).is_complete


@pytest.mark.parametrize("harm", ["flip", "foreign", "truncate"])
def test_a_damaged_canary_is_refused_with_the_command(copy: Path, harm: str) -> None:
    path = next((copy / "cache").glob("*/*/canary.json"))
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data[:-5] if harm == "truncate" else data))
    if harm == "foreign":
        from base import durable

        path.write_bytes(durable.sealed({**durable.read_sealed(path), "view": "0" * 64}))
    with pytest.raises(
        IntegrityError, match=r"canary\.json is damaged .*Type: make repair VIEW=v DATA=photos-"
    ):
        again(copy)


def test_a_lost_canary_comes_back_only_if_the_stored_rows_are_what_is_computed_now(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next((copy / "cache").glob("*/*/canary.json"))
    kept = path.read_bytes()
    path.unlink()
    with monkeypatch.context() as patched:
        real = images.pipeline
        patched.setattr(images, "pipeline", lambda prep: lambda image: 255 - real(prep)(image))
        with pytest.raises(
            StaleError, match=r"has no canary\.json, and its row \d+ is not what is computed now"
        ):
            again(copy)
        assert not path.exists()
    again(copy)
    assert path.read_bytes() == kept


def test_distance_counts_what_is_no_number() -> None:
    import numpy as np

    a = np.array([[1, 0], [np.nan, 1], [np.nan, 1], [0, 0]], np.float32)
    b = np.array([[1, 1e-3], [np.nan, 1], [0, 1], [0, 0]], np.float32)
    assert canary.distance(a, b).round(6).tolist() == [0.001, 0, np.inf, 0]


def test_the_command_exits_with_6(copy: Path, command: Callable) -> None:
    (copy / "v.toml").write_text(ORIGINAL.replace("antialias = true", "antialias = false"))
    done = command(
        "extract", "--view", copy / "v.toml", "--data", copy / "photos", "--cache", copy / "cache"
    )
    assert (
        done.returncode == 6
        and "preprocess.antialias: True -> False" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert issubclass(StaleError, CoviewError)
