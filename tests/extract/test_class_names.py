"""make extract CLASSES=…: the names of the classes beside the embeddings, which do not change."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import config, digests

from base.errors import UsageError
from cache_specs import store
from cache_specs.spec import load_spec
from cache_specs.text import FILE, read_text
from extract import class_names
from extract.class_names import Naming, encode
from extract.config import ExtractConfig
from extract.models import text as towers
from extract.plan import plan
from extract.run import run

Extract = Callable[..., ExtractConfig]


@pytest.fixture
def extracting(photos: Path, tmp_path: Path) -> Extract:
    """Settings of an extraction into a cache of its own. The photos' classes are a and b, which
    tiny-clip knows as words."""
    return lambda **more: config(photos, tmp_path / "cache", **more)


def said(capsys: pytest.CaptureFixture) -> str:
    return "".join(capsys.readouterr())


def names_file(folder: Path, text: str) -> str:
    (folder / "names.txt").write_text(text)
    return str(folder / "names.txt")


def test_names_come_beside_the_rows_and_nothing_else_changes(
    extracting: Extract,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """At once with the images, or later; the same once more loads no model, others are anew."""
    view = run(extracting())
    before = digests(tmp_path / "cache")
    run(extracting(classes="own"))
    assert f"{view.name}: the names of 2 classes (2 prompts) are encoded" in said(capsys)
    after = digests(tmp_path / "cache")
    text = view.folder / FILE
    assert {path: digest for path, digest in after.items() if path != text} == before
    found = read_text(view)
    assert found is not None and found.prompts == {"a": ["a"], "b": ["b"]}
    with monkeypatch.context() as patched:
        patched.setattr(towers, "load_tower", None)
        run(extracting(classes="own"))
        assert "(2 prompts) are encoded already" in said(capsys)
    run(extracting(classes=names_file(tmp_path, "a: capital a; small a\nb\n{} bold")))
    again = read_text(view)
    assert again is not None and again.prompts["a"] == ["capital a bold", "small a bold"]
    assert again.tower == found.tower and again.sha256 != found.sha256


def test_what_is_damaged_is_made_anew(extracting: Extract, capsys: pytest.CaptureFixture) -> None:
    view = run(extracting(classes="own"))
    good = (view.folder / FILE).read_bytes()
    (view.folder / FILE).write_bytes(good[:-1] + b"x")
    run(extracting(classes="own"))
    assert "is damaged, or of another view: it is made anew" in said(capsys)
    assert (view.folder / FILE).read_bytes() == good


def test_other_weights_make_it_anew(extracting: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    view, spec = run(extracting(classes="own")), load_spec("tiny-clip")
    made = read_text(view)
    assert made is not None and spec.text is not None
    naming = Naming(class_names.Names({"a": ("a",), "b": ("b",)}), {}, "0" * 64)
    monkeypatch.setattr(towers, "load_tower", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode(spec, view, naming, "cpu")
    assert spec.text.fingerprint("0" * 64) != made.tower


def test_too_little_memory_is_said(extracting: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing beside the rows."""
    view = run(extracting())

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(towers, "load_tower", full)
    with pytest.raises(UsageError, match="the text tower of tiny-clip on cpu"):
        run(extracting(classes="own"))
    assert not (view.folder / FILE).exists()


def test_a_view_without_a_tower_is_named(
    extracting: Extract, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Beside one that has one it is told and left out; alone it is refused before anything is
    written."""
    alone = extracting(view="tiny-dinov2", classes="own")
    told = r"tiny-dinov2 has no text tower.*that have one: align, clip, .*or leave CLASSES out"
    with pytest.raises(UsageError, match=told) as error:
        run(alone)
    assert error.value.instead == {"CLASSES": None} and not (tmp_path / "cache").exists()
    run(extracting(view="", views="tiny-dinov2,tiny-clip", classes="own"))
    told = said(capsys)
    assert "tiny-dinov2 has no text tower, and CLASSES needs one: zero-shot does without" in told
    folder = next((tmp_path / "cache").glob("*/items.parquet")).parent
    assert [path.parent.name[:9] for path in folder.glob(f"*/{FILE}")] == ["tiny-clip"]


def test_mistakes_are_found_before_anything_is_embedded(
    extracting: Extract, tmp_path: Path
) -> None:
    given = extracting(classes=names_file(tmp_path, "a\nc: capital c"))
    with pytest.raises(UsageError, match="line 2: the data set has no class 'c'"):
        run(given)
    with pytest.raises(UsageError, match="line 2: the data set has no class 'c'"):
        plan(given, {})
    assert not (tmp_path / "cache").exists()
    plan(dataclasses.replace(given, classes="own"), {})


def test_a_dry_run_says_that_a_tower_is_to_be_fetched(
    extracting: Extract, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plan(extracting(view="siglip", classes="own"), {})
    told = "(2 prompts); its text tower is not here, and fetched from timm/ViT-B-16-SigLIP\n"
    assert told in said(capsys) and not (tmp_path / "cache").exists()


def test_weights_of_the_tower_that_are_elsewhere(tmp_path: Path, photos: Path) -> None:
    """A [text.weights] of its own: what is not there is named before anything is embedded."""
    toml = (load_spec("tiny-clip").source).read_text().replace("weights/", f"{_weights()}/")
    more = '[text.weights]\npath = "none"\nfiles = ["open_clip_config.json", "m.safetensors"]\n'
    (tmp_path / "mine.toml").write_text(f"{toml}\n{more}")
    given = config(photos, tmp_path / "cache", view=str(tmp_path / "mine.toml"))
    with pytest.raises(UsageError, match=r"needs the file .*none/open_clip_config\.json, which is"):
        run(dataclasses.replace(given, classes="own"))
    assert not (tmp_path / "cache").exists()
    assert store.open_view(run(given).folder).is_complete


def _weights() -> Path:
    return load_spec("tiny-clip").source.parent / "weights"


def test_classes_that_are_called_alike_are_warned_of(
    extracting: Extract, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """No image could be told apart by them, and the first one would have all."""
    run(extracting(classes=names_file(tmp_path, "a: bold\nb: bold")))
    assert "'a' and 'b' have the same names, so zero-shot calls every image" in said(capsys)
    run(extracting(classes=names_file(tmp_path, "a: bold; a\nb: bold")))
    assert "the same names" not in said(capsys)
