"""The names of classes beside a view: read as they were written, or refused by name; and the view
is none the worse for them."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Made

from base import durable
from base.errors import IntegrityError, StaleError, StorageError
from cache_specs import integrity, store
from cache_specs.text import FILE, ViewText, read_text, write_text
from cache_specs.view import View
from upkeep.gc import waste


def a_text(**more: np.ndarray) -> ViewText:
    chance = np.random.default_rng(0)
    tensors = {
        "classes": chance.normal(size=(3, 5)).astype(np.float32),
        "scale": np.array(20, np.float32),
        "bias": np.array(-3, np.float32),
        **more,
    }
    return ViewText(tensors, "t" * 64, {"b": ["b", "a b"], "a": ["ä"], "c": ["c"]})


@pytest.fixture
def view(made: Made, tmp_path: Path) -> View:
    shutil.copytree(made.dataset, tmp_path / made.dataset.name)
    return store.open_view(store.view_folders(tmp_path / made.dataset.name, "thirds")[0])


def test_what_is_read_is_what_was_written(view: View) -> None:
    """In the order of the classes; a second one takes the place of the first."""
    assert read_text(view) is None
    for text in (a_text(), a_text(projection=np.ones((8, 5), np.float32))):
        write_text(view, text)
        found = read_text(view)
        assert found is not None and [*found.prompts.items()] == [*text.prompts.items()]
        assert found.tower == text.tower and found.tensors.keys() == text.tensors.keys()
        for name, tensor in text.tensors.items():
            assert np.array_equal(found.tensors[name], tensor)
            assert found.tensors[name].shape == tensor.shape


def test_logits_are_the_formula(view: View) -> None:
    """Of the classes that are asked for, in their order."""
    chance = np.random.default_rng(1)
    projection = chance.normal(size=(8, 5)).astype(np.float32)
    offset = chance.normal(size=5).astype(np.float32)
    text, emb = a_text(projection=projection, offset=offset), chance.normal(size=(7, 8))
    emb = emb.astype(np.float16)
    emb[3] = 0
    x = emb.astype(float) @ projection + offset
    x /= np.sqrt((x**2).sum(1, keepdims=True))
    expected = 20 * x @ text.tensors["classes"][[1, 0]].T.astype(float) - 3
    found = text.logits(emb, ["a", "b"])
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-4)
    nothing = a_text().logits(np.zeros((1, 5), np.float16), ["a"])
    assert nothing.tolist() == [[-3]]  # and not NaN


def test_the_view_stays_whole_and_gc_leaves_it(view: View) -> None:
    before = integrity.root(view)
    write_text(view, a_text())
    assert not integrity.check(view).any() and integrity.root(view) == before
    assert [*waste(view.folder.parents[1])] == []


@pytest.mark.parametrize("at", [4, 100, -3])
def test_a_changed_byte_is_found(view: View, at: int) -> None:
    write_text(view, a_text())
    data = bytearray((view.folder / FILE).read_bytes())
    data[at] ^= 1
    (view.folder / FILE).write_bytes(data)
    told = f"{FILE} is damaged .*Delete it, and type: make .* CLASSES=…"
    with pytest.raises(IntegrityError, match=told):
        read_text(view)


def test_cut_short_or_no_file(view: View) -> None:
    path = view.folder / FILE
    for content in (b"", b"\xff" * 9, b"{}" * 50):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=f"{FILE} is damaged"):
            read_text(view)
    path.unlink()
    path.mkdir()
    with pytest.raises(IntegrityError, match=f"{FILE} is damaged"):
        read_text(view)


def test_of_another_view_or_other_classes(view: View) -> None:
    write_text(dataclasses.replace(view, identity="0" * 64), a_text())
    with pytest.raises(StaleError, match=rf"{FILE} was made for another view\. Delete it, and"):
        read_text(view)
    text = a_text()
    text.refuse_other_classes(view, ["a", "b"])
    told = "of other classes: 'x' of the data set is not among them. Type: make .* CLASSES=…"
    with pytest.raises(StaleError, match=told):
        text.refuse_other_classes(view, ["a", "x"])
    with pytest.raises(StaleError, match=r"'0', '1', '2', '3', '4' and 4 others of the data set"):
        text.refuse_other_classes(view, list("012345678"))


def test_a_full_disk_leaves_the_old_one(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(view, a_text())
    before = (view.folder / FILE).read_bytes()
    monkeypatch.setattr(durable, "_passed", 0)
    monkeypatch.setenv("COVIEW_FAULT", "ENOSPC:1:text.half")
    with pytest.raises(StorageError, match=f"cannot write .*{FILE}"):
        write_text(view, a_text(offset=np.ones(5, np.float32)))
    assert (view.folder / FILE).read_bytes() == before
    assert not [*view.folder.glob(".*.tmp")]
