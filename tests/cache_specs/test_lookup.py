"""A view of one's own: by the name that the cache holds, with the spec it was made with, wherever
its TOML file has gone."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import VIEW_TOML, Made, write_view, write_views

from base.durable import canonical_json
from base.errors import StaleError, UsageError
from cache_specs import lookup, store
from cache_specs.items import Items
from cache_specs.lookup import find_dataset, find_views, named_view, one_view, spec_named, text_of
from cache_specs.spec import SPECS, load_spec, recorded_spec
from cache_specs.store import open_view
from cache_specs.succession import write_items
from cache_specs.view import write_documents
from train.data.reader import open_cache

EMB = np.arange(32.0).reshape(8, 4) % 7


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "own" / "mine.toml"


@pytest.fixture
def dataset(tmp_path: Path, toml: Path) -> Path:
    """The views mine (of own/mine.toml, as it is recorded) and other."""
    sha = [f"{i:064x}" for i in range(8)]
    keys, ones = [f"{i}.png" for i in range(8)], np.ones(8, np.int64)
    items = Items("photos", "folder", keys, ones % 2, ["train"] * 8, ones, sha, ["a", "b"])
    folder = write_items(tmp_path / "cache", items)
    toml.parent.mkdir()
    write_views(toml.parent, folder, items.fingerprint, {"other": EMB[:, :3]})
    toml.write_text(VIEW_TOML.format(width=4))
    write_view(folder, toml, EMB, items.fingerprint, spec_file=str(toml))
    return folder


def edit(toml: Path) -> None:
    toml.write_text(toml.read_text().replace("bicubic", "bilinear"))


def twin(dataset: Path, toml: Path) -> Path:
    """A second view of the name, as a copied cache has it."""
    first = store.view_folders(dataset, "mine")[0]
    items = store.open_view(first).attributes["items_fingerprint"]
    shutil.move(first, dataset.parent.parent / first.name)
    other = toml.parent / "later" / "mine.toml"
    other.parent.mkdir()
    shutil.copy(toml, other)
    edit(other)
    made = write_view(dataset, other, EMB + 1, items).folder
    shutil.move(dataset.parent.parent / first.name, first)
    return made


def test_a_name_that_the_cache_holds_once_is_that_view_also_without_its_file(
    dataset: Path, toml: Path
) -> None:
    cache, folder = dataset.parent, store.view_folders(dataset, "mine")[0]
    for there in (True, False):
        assert named_view(dataset, "mine", "…").folder == folder
        assert one_view(cache, "mine", "photos", "export") == folder
        assert find_views(cache, "mine") == [folder]
        # refuse_other_images would raise: the view is of these very rows
        opened = open_cache(cache, "photos", ["mine", "other"])
        assert opened.names == ["mine", "other"] and opened.folders[0] == folder
        assert np.array_equal(opened.emb[0], EMB.astype(np.float16))
        spec = spec_named(cache, "mine", "photos/")
        assert (spec.source, spec.name) == (toml, "mine")
        assert spec.fingerprint("0" * 64)[:12] == folder.name[-12:]
        expected = str(toml) if there else "mine"
        assert store.command(folder, "extract").startswith(f"make extract VIEW={expected} ")
        toml.unlink(missing_ok=True)
    with pytest.raises(UsageError, match=r"there is no view file .*The cache has the view 'mine'"):
        named_view(dataset, str(toml), "…", [str(toml), "other"])


def test_what_the_file_says_by_now_is_told_and_by_path_refused(
    dataset: Path, toml: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(toml)
    with caplog.at_level(logging.WARNING, "coview"):
        assert named_view(dataset, "mine", "…").attributes["spec"]["width"] == 4
    assert "preprocess.interpolation: bicubic -> bilinear\nThe view is used as it was made" in (
        caplog.text
    )
    own = store.view_folders(dataset, "mine")[0].name
    with pytest.raises(StaleError, match="bicubic -> bilinear") as raised:
        named_view(dataset, str(toml), "…", ["other", str(toml)])
    assert raised.value.instead == {"VIEW": own, "VIEWS": f"other,{own}"}
    assert spec_named(dataset.parent, "mine", "photos").preprocess.interpolation == "bilinear"
    assert spec_named(dataset.parent, own, "photos").preprocess.interpolation == "bicubic"


def test_two_views_of_one_name_are_told_apart_by_their_folders(dataset: Path, toml: Path) -> None:
    cache, first = dataset.parent, store.view_folders(dataset, "mine")[0]
    second = twin(dataset, toml)
    for look in (
        lambda: named_view(dataset, "mine", "…", ["mine", "other"]),
        lambda: spec_named(cache, "mine", "photos"),
    ):
        with pytest.raises(UsageError, match="has 2 views called 'mine'") as raised:
            look()
        for said in (first.name, second.name, "preprocess.interpolation: bi"):
            assert said in str(raised.value)
    for folder, toml_of in ((first, toml), (second, second_toml(toml))):
        assert named_view(dataset, folder.name, "…").folder == folder
        assert named_view(dataset, str(toml_of), "…").folder == folder
        assert one_view(cache, str(toml_of), "photos", "export") == folder
        opened = open_cache(cache, "photos", [folder.name, "other"])
        assert opened.names == [folder.name, "other"] and opened.folders[0] == folder
    both = open_cache(cache, "photos", [first.name, second.name])
    assert both.names == [first.name, second.name]
    assert np.array_equal(both.emb[1], both.emb[0] + 1)
    with pytest.raises(UsageError, match="name them by their folders") as raised:
        open_cache(cache, "photos", [str(toml), str(second_toml(toml)), "other"])
    assert raised.value.instead == {"VIEWS": f"{first.name},{second.name},other"}


def second_toml(toml: Path) -> Path:
    return toml.parent / "later" / "mine.toml"


def test_one_spec_with_two_weights_is_ambiguous_too(dataset: Path, toml: Path) -> None:
    """Also where the file is named, which says nothing of the weights' contents."""
    view = store.open_view(store.view_folders(dataset, "mine")[0])
    other = view.folder.with_name(f"mine-{'0' * 12}")
    shutil.copytree(view.folder, other)
    write_documents(other, {**view.attributes, "weights_sha256": "1" * 64})
    with pytest.raises(UsageError, match=r"weights\.sha256: 1+… -> 0+…"):
        named_view(dataset, str(toml), "…")


def test_a_view_of_the_project_must_be_what_the_project_says(
    dataset: Path, toml: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One's own of the same name is one's own, which is told, unless its folder is named."""
    whose = "clip is here the view that was made of "
    view = store.open_view(store.view_folders(dataset, "mine")[0])
    folder = dataset / view.folder.name.replace("mine", "clip")
    shutil.move(view.folder, folder)
    own = {"spec_file": str(toml.with_name("clip.toml"))}
    for made, refused in ((own, False), ({"spec_file": str(SPECS / "clip.toml")}, True)):
        write_documents(folder, {**view.attributes, "provenance": made})
        if refused:
            with pytest.raises(StaleError, match="architecture: Dinov2Model -> "):
                named_view(dataset, "clip", "…")
            assert spec_named(dataset.parent, "clip", "photos") == load_spec("clip")
        else:
            assert named_view(dataset, folder.name, "…").folder == folder
            assert spec_named(dataset.parent, folder.name, "photos").name == "clip"
            assert not caplog.text
            assert named_view(dataset, "clip", "…").folder == folder
            assert caplog.text.count(f"{whose}{own['spec_file']}, which the data set has") == 1
            assert spec_named(dataset.parent, "clip", "photos").architecture == "Dinov2Model"
            assert caplog.text.count(whose) == 2
            caplog.clear()
    assert not caplog.text
    assert store.is_of_project({"spec_file": "/old/place/cache_specs/clip.toml"}, "clip")
    assert not store.is_of_project({"spec_file": "/old/place/clip.toml"}, "clip")


@pytest.mark.parametrize("name", ["clip", "esvit", "swav", "owlv2", "blip", "dinov2-g14"])
def test_a_recorded_spec_is_the_spec(name: str) -> None:
    """Through JSON and back, with the same fingerprint."""

    spec = load_spec(name)
    values = json.loads(canonical_json(spec.declared()))
    again = recorded_spec(name, values, spec.source)
    assert again.declared() == spec.declared()
    assert again.fingerprint("0" * 64) == spec.fingerprint("0" * 64)
    assert list(again.tensors.rename.items()) == list(spec.tensors.rename.items())


def listed(cache: Path, name: str, source: Path) -> Path:
    """An item list called so, of this place."""
    sha = [f"{ord(name[-1]):02x}" * 32]
    one = np.ones(1, np.int64)
    items = Items(name, "table", ["0.png"], one - 1, ["train"], one, sha, ["a"])
    return write_items(cache, items, str(source))


def test_a_data_set_under_a_name_of_its_own_is_found_by_its_place(tmp_path: Path) -> None:
    """Also where another one is called as its file is; and a name of the cache stays a name."""
    cache, files = tmp_path / "cache", []
    for study in ("study1", "study2", "study3"):
        files.append(tmp_path / study / "labels.csv")
        files[-1].parent.mkdir()
        files[-1].write_text("path,label\n")
    first, second = listed(cache, "labels", files[0]), listed(cache, "study2", files[1])
    assert find_dataset(cache, str(files[0])) == first == find_dataset(cache, "labels")
    assert find_dataset(cache, str(files[1])) == second == find_dataset(cache, "study2")
    with pytest.raises(StaleError, match="give it a name"):
        find_dataset(cache, str(files[2]))


def test_a_view_of_ones_own_is_named_by_the_file_that_another_data_set_knows(
    dataset: Path, toml: Path
) -> None:
    cache = dataset.parent
    assert spec_named(cache, "mine", "photos").source == toml
    with pytest.raises(UsageError, match=rf"no view 'mine' here; {dataset.name} has one") as caught:
        spec_named(cache, "mine", "others")
    assert caught.value.instead == {"VIEW": str(toml)}
    toml.unlink()
    with pytest.raises(UsageError, match="no view 'mine'; did you mean"):
        spec_named(cache, "mine", "others")


@pytest.mark.parametrize(
    ("views", "named"),
    [([], "VIEW=…"), (["clip"], "VIEW=clip"), (["clip", "dinov2"], "VIEWS=clip,dinov2")],
)
def test_what_is_not_extracted_is_extracted_by_one_command(
    tmp_path: Path, views: list[str], named: str
) -> None:
    """Each image is decoded once for all views."""
    told = str(lookup._no_dataset(tmp_path, str(tmp_path / "p"), "p", views))
    assert told.endswith(f"Embed it first: make extract {named} DATA={tmp_path / 'p'}")


def test_the_text_tower_is_that_of_the_file_now(made: Made, tmp_path: Path) -> None:
    """Also where the spec is kept as it was; none where the file is gone, or is broken."""
    dataset = tmp_path / "cache" / made.dataset.name
    shutil.copytree(made.dataset, dataset)
    toml = tmp_path / "mine.toml"
    toml.write_text(VIEW_TOML.format(width=3))
    emb = np.ones((len(made.items), 3), np.float16)
    folder = write_view(dataset, toml, emb, made.items.fingerprint, spec_file=str(toml)).folder
    assert text_of(open_view(folder)) is None
    plain = toml.read_text()
    text = '[text]\nbackend = "transformers"\narchitecture = "CLIPModel"\ncontext = 9\n'
    toml.write_text(f"{plain.replace('bicubic', 'bilinear')}{text}")
    for name in ("mine", folder.name):
        spec = spec_named(tmp_path / "cache", name, "digits", say=False)
        assert spec.text is not None and spec.text.context == 9
        kept = name == folder.name
        assert spec.preprocess.interpolation == ("bicubic" if kept else "bilinear")
    toml.write_text("broken")
    assert spec_named(tmp_path / "cache", folder.name, "digits", say=False).text is None
    toml.unlink()
    assert spec_named(tmp_path / "cache", "mine", "digits", say=False).text is None
