"""METHOD=zero-shot: what the names of the classes say of cached rows, without any label."""

import dataclasses
import types
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Made
from named import CLASSES, World

from base.errors import DataQualityError, IntegrityError, StaleError, UsageError
from cache_specs.spec import Text
from cache_specs.text import FILE, ViewText, read_text, write_text
from predict.from_run import of_run
from train.classic import zero_shot
from train.command import run
from train.data.reader import open_cache
from train.data.splits import Split, make_split
from train.run.reading import read
from train.run.summary import summary_table


@pytest.fixture
def world(made: Made, tmp_path: Path) -> World:
    return World(made, tmp_path)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(float))
    return p / p.sum(1, keepdims=True)


def test_it_is_the_softmax_of_each_view_and_their_mean(world: World) -> None:
    """Of those views that know the names; the labels are none of its business."""
    one, other = world.name("pixels"), world.name("thirds", scale=5)
    cache = open_cache(world.folder / "cache", "digits", ["pixels", "edges", "thirds"])
    split = make_split(cache.items, cache.ok, "3", 0)
    found = zero_shot(cache.emb, [one, None, other], cache.items.classes, split)
    for scores, rows in ((found.val, split.val), (found.test, split.test)):
        p = [
            softmax(text.logits(cache.emb[view][rows], CLASSES))
            for text, view in ((one, 0), (other, 2))
        ]
        assert len(scores) == 3 and all(said.dtype == np.float32 for said in scores)
        for said, expected in zip(scores, [*p, (p[0] + p[1]) / 2], strict=True):
            assert np.allclose(np.exp(said), expected, atol=1e-6)
            assert (said.argmax(1) == cache.items.label[rows]).mean() > 0.7


def test_it_stands_in_table_and_predictions_as_the_others_do(world: World) -> None:
    """Per view that knows the names, and joint; of one that does not, nothing."""
    world.name("pixels")
    world.name("thirds")
    views = ("pixels", "edges", "thirds")
    summary = run(world.config(*views, method="zero-shot,supervised"))
    found = summary["methods"]["zero-shot"]
    assert sorted(found["views"]) == ["pixels", "thirds"] and found["chosen"] == {}
    assert found["joint"]["test_top1"]["n"] == 2 and found["joint"]["test_top1"]["std"] == 0
    table = summary_table(summary)
    assert "\npixels, zero-shot " in table and "\nedges, zero-shot" not in table
    line = next(line for line in table.splitlines() if line.startswith("zero-shot: joint"))
    assert "(p " in line  # against late fusion
    rows = pq.read_table(world.folder / "runs" / "a" / "predictions.parquet").to_pydict()
    mine = [i for i, method in enumerate(rows["method"]) if method == "zero-shot"]
    assert {rows["pred_edges"][i] for i in mine} == {-1}
    assert all(np.isnan(rows["prob_edges"][i]).all() for i in mine[:5])
    right = [rows["pred_pixels"][i] == rows["label"][i] for i in mine if rows["split"][i] == "test"]
    assert np.mean(right) == found["views"]["pixels"]["test_top1"]["mean"] > 0.7


def test_labels_change_nothing(world: World) -> None:
    world.name("pixels")
    few = run(world.config("pixels", labels="1"))["methods"]["zero-shot"]
    all_of_them = run(world.config("pixels", labels="all", run="b"))["methods"]["zero-shot"]
    assert few["joint"] == all_of_them["joint"] and few["probes"] == all_of_them["probes"]
    lines = summary_table(run(world.config("pixels", labels="1"))).splitlines()
    assert next(line for line in lines if "zero-shot" in line).startswith("pixels, zero-shot")


def test_without_names_it_says_what_to_type(
    world: World, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of views that have a tower, or of none that has; METHOD=all does without it."""
    told = r"no class names are encoded for any of them, which is needed for zero-shot\. None of t"
    with pytest.raises(UsageError, match=f"^VIEWS=pixels,edges: {told}"):
        read(world.config())
    _, _, methods = read(world.config(method="all"), aloud=True)
    assert "zero-shot" not in methods and "knn" in methods
    assert "which is needed for zero-shot: left out" in capsys.readouterr().err
    tower = Text("open_clip", "tiny-clip", 20)
    able = {"edges": tower}
    monkeypatch.setattr("train.data.texts.text_of", lambda view: able.get(view.name))
    with pytest.raises(UsageError, match=r"make extract VIEW=edges DATA=digits CLASSES=own   \(or"):
        read(world.config())
    write_text(
        world.view("edges"),
        dataclasses.replace(world.name("edges"), declared=tower.fingerprint("")),
    )
    _, _, methods = read(world.config(method="all"), aloud=True)
    assert "zero-shot" in methods
    told = "the class names of edges have a say in zero-shot, "
    said = capsys.readouterr().err
    assert told in said and "mct-graph; none are encoded for pixels" in said


def test_names_of_other_classes_and_damaged_ones_are_refused(world: World) -> None:
    world.name("pixels", CLASSES[:9])
    with pytest.raises(StaleError, match=r"'9' of the data set is not among them\. Type: make "):
        read(world.config())
    read(world.config(method="supervised"))  # which does not ask for them
    path = world.view("pixels").folder / FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=f"{FILE} is damaged"):
        read(world.config())


def test_a_run_is_of_the_names_that_it_was_made_with(world: World) -> None:
    """Others are another run; what it keeps of probes is used without them."""
    world.name("pixels")
    given = world.config(method="supervised,zero-shot")
    before = run(given)
    assert run(given) == before
    text = read_text(world.view("pixels"))
    assert text is not None and before["fingerprints"]["text of pixels"] == text.sha256
    world.name("pixels", scale=21)
    with pytest.raises(StaleError, match=r"fingerprints\.text of pixels: ") as error:
        run(given)
    assert error.value.instead == {"RUN": "a-2"}
    model, _, _ = of_run(world.folder / "runs" / "a", cache=world.folder / "cache")
    assert model.method == "supervised"


def test_a_run_of_it_alone_keeps_no_model(world: World) -> None:
    world.name("pixels")
    run(world.config())
    with pytest.raises(UsageError, match="METHOD=zero-shot keeps no model"):
        of_run(world.folder / "runs" / "a", "zero-shot", cache=world.folder / "cache")


def test_a_row_that_is_not_finite_is_no_opinion(world: World) -> None:
    """No cache has one that counts; arrays might."""
    emb, text = np.zeros((4, 3), np.float16), ViewText({}, "t", {})
    emb[2, 1] = np.nan
    split = Split(np.array([0]), np.array([1]), np.array([2]), np.array([3]))
    with pytest.raises(DataQualityError, match="view 2 of 2 has embeddings that are not finite"):
        zero_shot([emb, emb], [None, text], ["a"], split)


def test_names_that_another_tower_encoded_are_refused() -> None:
    """What the view's file says by now decides; a file that says nothing refuses nothing."""
    declared = Text("open_clip", "tiny-clip", 20)
    view = types.SimpleNamespace(name="pixels", folder=Path("cache/d-12345678/pixels-1"))
    text = ViewText({}, "t", {}, declared.fingerprint(""))
    for same in (None, declared, dataclasses.replace(declared, templates=("a {}",))):
        text.refuse_another_tower(view, same)
    with pytest.raises(StaleError, match=r"\[text\] of its file has changed"):
        text.refuse_another_tower(view, dataclasses.replace(declared, context=21))
