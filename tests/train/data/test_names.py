"""What class names say, as one more expert of a pool."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Made
from named import CLASSES, World
from scipy.special import log_softmax, softmax

from base import durable
from base.errors import DataQualityError, IntegrityError, StaleError, UsageError
from cache_specs.text import FILE, ViewText
from predict.bundle.command import export_model
from predict.config import ExportModelConfig
from predict.from_run import of_run, open_model
from predict.label import rows_of_cache
from train.command import run
from train.data.names import Names
from train.data.reader import Cache, open_cache
from train.data.splits import Split, make_split
from train.data.texts import labelled_by_names, with_classes, with_texts
from train.data.towers import LEAST, Tower, balance, shares, towers_of
from train.run.reading import read
from train.run.summary import unknowable

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(made: Made, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(made, tmp_path_factory.mktemp("named"))
    world.name("pixels", projected=True)
    world.name("edges", scale=5)
    return world


@pytest.fixture(scope="module")
def trained(world: World) -> dict:
    """Of two seeds, with the names of both views. Nobody judges."""
    methods = "supervised,supervised-graph,mct-graph"
    return run(world.config(method=methods, labels="1", val="none"))


@pytest.mark.parametrize("classes", [2, 7])
def test_constants_give_the_images_the_shares_of_the_labels(classes: int) -> None:
    """The least change in the sense of Kullback and Leibler is a factor for each class and each row
    (Sinkhorn 1967); what has the shares already is not changed."""
    chance = np.random.default_rng(classes)
    p = softmax(3 * chance.normal(size=(300, classes)) + np.arange(classes), 1)
    share = chance.dirichlet(np.full(classes, 3.0))
    found = balance(p, share)
    q = p * found
    np.testing.assert_allclose((q / q.sum(1, keepdims=True)).mean(0), share, rtol=2e-4)
    np.testing.assert_allclose(np.log(found).mean(), 0, atol=1e-12)
    np.testing.assert_allclose(balance(q, share), 1, rtol=1e-2)


def test_a_class_without_labels_keeps_a_share() -> None:
    assert shares(np.array([0, 0, 2]), 3).tolist() == [3 / 6, 1 / 6, 2 / 6]


def names_of(
    made: Made, labels: str = "2", label_N: np.ndarray | None = None
) -> tuple[Names, Split, list[np.ndarray]]:
    """Of pixels, whose classes are random rows, and of edges, whose are the right ones."""
    cache = open_cache(made.cache, "digits", ["pixels", "edges"])
    chance, items = np.random.default_rng(1), cache.items
    towers = []
    for view, emb in enumerate(cache.emb):
        rows = chance.normal(size=(10, emb.shape[1])).astype(np.float32)
        if view == 1:
            rows = np.stack([emb[items.label == c].mean(0, dtype=np.float32) for c in range(10)])
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        numbers = {"scale": np.float32(20), "bias": np.float32(-3)}
        text = ViewText({"classes": rows / length, **numbers}, "t", {c: [c] for c in CLASSES})
        towers.append(Tower(view, text))
    split = make_split(items, cache.ok, labels, 0)
    given = items.label if label_N is None else label_N
    return Names(cache.emb, towers, items.classes, given, [split, split], CPU), split, cache.emb


def test_they_say_the_mean_of_the_towers_with_constants(made: Made) -> None:
    """Of rows of each experiment, or of the same for all."""
    names, split, emb = names_of(made)
    rows = np.concatenate([split.test[:5], split.labelled[:5]])
    p = []
    for view, text in names.towers:
        x = emb[view][rows].astype(float)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        p.append(softmax(20 * x @ text.tensors["classes"].T.astype(float), 1))
    assert len(p) == 2
    log_p = np.log(np.maximum(np.mean(p, 0), LEAST))
    expected = log_softmax(log_p + names.bias_EC[0].double().numpy(), 1)
    found = names(rows)
    assert found.shape == (2, 10, 10) and found.dtype == torch.float32
    np.testing.assert_allclose(found[0], expected, atol=2e-5)
    assert torch.equal(found[0], found[1])
    each = names(np.stack([rows, rows[::-1]]))
    assert torch.equal(each[0], found[0]) and torch.equal(each[1], found[1].flip(0))


def test_an_experiment_of_many_is_what_it_is_alone_to_the_last_bit(made: Made) -> None:
    names, split, emb = names_of(made)
    cache = open_cache(made.cache, "digits", ["pixels", "edges"])
    other = make_split(cache.items, cache.ok, "9", 1)
    given = names.towers, CLASSES, names.label_N
    both, alone = (Names(emb, *given, splits, CPU) for splits in ([other, split], [split]))
    assert torch.equal(both(split.test)[1], alone(split.test)[0])
    assert both.usual(1) == alone.usual(0)


def test_what_they_say_of_an_image_does_not_depend_on_its_label(made: Made) -> None:
    """But for the number of labels of each class."""
    names, split, _ = names_of(made)
    other = open_cache(made.cache, "digits", ["pixels"]).items.label.copy()
    other[split.labelled] = np.roll(other[split.labelled], 2)
    assert torch.equal(names_of(made, label_N=other)[0](split.test), names(split.test))
    other[split.labelled] = 0
    assert not torch.equal(names_of(made, label_N=other)[0](split.test), names(split.test))


def test_their_usual_weight_is_what_the_labels_say_and_falls_with_their_number(made: Made) -> None:
    """Names that have nothing to do with the images have none."""
    few, many = (names_of(made, labels)[0].usual(0) for labels in ("1", "8"))
    assert few > 2 * many > 0
    names, _, emb = names_of(made, "8")
    alone = Names(emb, names.towers[:1], CLASSES, names.label_N, names.splits, CPU)
    assert alone.usual(0) < many / 4


def test_a_row_that_is_not_finite_is_refused(made: Made) -> None:
    names, split, emb = names_of(made)
    bad = emb[1].copy()
    bad[split.test[0], 3] = np.inf
    with pytest.raises(DataQualityError, match=r"view 2 of 2 has .* class names are compared with"):
        Names([emb[0], bad], names.towers, CLASSES, names.label_N, [split], CPU)


def test_views_without_names_have_no_tower() -> None:
    text = ViewText({}, "t", {})
    assert towers_of([None, text]) == [Tower(1, text)] and towers_of([None]) == []


def test_a_pool_has_them_between_views_and_graphs(trained: dict, world: World) -> None:
    """The weights are the usual ones, of sum 1."""
    for method in ("supervised-graph", "mct-graph"):
        chosen = trained["methods"][method]["chosen"]
        graphs = [f"graph of {name}" for name in ("pixels", "edges", "all views")]
        names = ["pixels", "edges", "class names", *graphs]
        assert sorted(chosen) == sorted(names)
        assert all("neighbours" in chosen[name] for name in graphs)
        assert "neighbours" not in chosen["class names"]
        weights = np.array([chosen[name]["weight"] for name in names])
        np.testing.assert_allclose(weights.sum(0), 1)
        assert (weights[:2] == 0).all() and (weights[2] > 0.05).all()
    assert trained["fingerprints"]["text of pixels"]


def test_they_help_where_labels_are_few(trained: dict, made: Made, world: World) -> None:
    without = world.config(method="mct-graph", labels="1", val="none", run="without")
    bare = run(dataclasses.replace(without, cache=str(made.cache)))
    for seed in range(2):
        named, alone = (
            found["methods"]["mct-graph"]["joint"]["test_top1"]["values"][seed]
            for found in (trained, bare)
        )
        assert named > alone + 0.03


@pytest.mark.parametrize("method", ["supervised-graph", "mct-graph"])
def test_the_model_says_what_the_run_wrote_down(trained: dict, world: World, method: str) -> None:
    """Even where other names were encoded since then."""
    folder = world.folder / "runs" / "a"
    model, cache, splits = of_run(folder, method, cache=world.folder / "cache")
    assert model.named and sorted(model.named.towers) == [0, 1]
    rows = splits[0].test
    _, joint_EnC = model.scores([emb[rows] for emb in cache.emb])
    found = torch.softmax(joint_EnC.double(), -1)
    table = pq.read_table(folder / "predictions.parquet").to_pydict()
    for e, seed in enumerate(model.seeds):
        told = zip(table["method"], table["seed"], table["split"], strict=True)
        here = [i for i, one in enumerate(told) if one == (method, seed, "test")]
        expected = np.array(table["confidence"])[here]
        np.testing.assert_allclose(found[e].max(1).values, expected, atol=2e-2)
        agree = found[e].argmax(1).numpy() == np.array(table["pred"])[here]
        assert agree.mean() >= 0.99


@pytest.fixture(scope="module")
def folder(trained: dict, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("export") / "model"
    cache, runs = str(world.folder / "cache"), str(world.folder / "runs")
    return export_model(
        ExportModelConfig(run="a", method="mct-graph", to=str(to), cache=cache, runs=runs)
    )


def test_an_exported_model_and_its_onnx_say_the_same(world: World, folder: Path) -> None:
    import onnxruntime

    runs = world.folder / "runs"
    model, cache, splits = of_run(runs / "a", "mct-graph", cache=world.folder / "cache")
    emb_V = [emb[splits[0].test] for emb in cache.emb]
    here = model(emb_V).joint_nC
    np.testing.assert_allclose(open_model(folder)(emb_V).joint_nC, here, atol=1e-6)
    onnx = str(folder / "joint.onnx")
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    given = {name: emb.astype(np.float32) for name, emb in zip(model.names, emb_V, strict=True)}
    np.testing.assert_allclose(np.exp(session.run(["joint"], given)[0]), here, atol=1e-5)


def test_a_folder_with_names_that_are_none_is_refused(folder: Path) -> None:
    record = durable.read_sealed(folder / "model.json")
    whole = (folder / "names.safetensors").read_bytes()
    weight = record["weight"]
    for changes, message in (
        ({"named": False}, "'names.safetensors', which is none of a model's"),
        ({"named": 1}, "lacks what class names say, or that they do not"),
        ({"weight": weight[:-1]}, r"a weight of the shape .* for the class names"),
    ):
        durable.write(folder / "model.json", durable.sealed({**record, **changes}), "test")
        with pytest.raises(IntegrityError, match=message):
            open_model(folder)
    durable.write(folder / "model.json", durable.sealed(record), "test")
    (folder / "names.safetensors").write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match=r"names\.safetensors has changed"):
        open_model(folder)
    (folder / "names.safetensors").write_bytes(whole)
    open_model(folder)


# ---------------------------------------------------------------- no label at all


@pytest.fixture(scope="module")
def without_labels(world: World) -> dict:
    return run(world.config(method="zero-shot,mct-graph", labels="0", run="none"))


def test_without_a_label_the_surest_images_are_taken(without_labels: dict, world: World) -> None:
    """Up to 16 of each class, and none of the labels has a say: others in their place, the same
    probabilities to the last bit. The test split alone judges."""
    assert without_labels["taken"] == without_labels["rows"]["labelled"] <= 16 * 10
    assert without_labels["labels_text"] == "no label" and without_labels["rows"]["val"] == 0
    joint = without_labels["methods"]["mct-graph"]["joint"]["test_top1"]["mean"]
    assert joint > without_labels["methods"]["zero-shot"]["joint"]["test_top1"]["mean"] + 0.02
    cache = open_cache(world.folder / "cache", "digits", ["pixels", "edges"])
    items = cache.items
    testing = np.array(items.split) == "test"
    cache = with_texts(dataclasses.replace(cache))
    taken = labelled_by_names(cache)
    shuffled = items.label.copy()
    shuffled[~testing] = np.random.default_rng(0).permutation(shuffled[~testing])
    other = dataclasses.replace(cache, items=dataclasses.replace(items, label=shuffled))
    again = labelled_by_names(other).items
    assert np.array_equal(taken.items.label, again.label) and taken.items.split == again.split
    assert np.array_equal(taken.items.label[testing], items.label[testing])
    rows = np.flatnonzero((taken.items.label >= 0) & ~testing)
    assert np.bincount(taken.items.label[rows], minlength=10).max() <= 16
    assert (taken.items.label[rows] == items.label[rows]).mean() > 0.8


def test_a_model_without_labels_labels_all_images(without_labels: dict, world: World) -> None:
    """Those that were taken for labelled, too; of other names it is refused."""
    folder = world.folder / "runs" / "none"
    model, cache, splits = of_run(folder, "mct-graph", cache=world.folder / "cache")
    assert all(len(split.labelled) == 0 and len(split.unlabelled) for split in splits)
    rows = splits[0].test
    found = model([emb[rows] for emb in cache.emb]).choice_n
    means = without_labels["methods"]["mct-graph"]["joint"]["test_top1"]["values"]
    assert abs((found == cache.items.label[rows]).mean() - np.mean(means)) < 0.05
    assert rows_of_cache(model, cache, splits, "none").truth_n is not None
    assert unknowable(model.about).startswith("how good this is cannot be known: no label was used")
    before = (world.view("edges").folder / FILE).read_bytes()
    world.name("edges", scale=6)
    with pytest.raises(StaleError, match=r"knew no label but the class names, and these are other"):
        of_run(folder, "mct-graph", cache=world.folder / "cache")
    (world.view("edges").folder / FILE).write_bytes(before)


def test_a_data_set_without_classes_has_those_that_were_named(world: World) -> None:
    """Of all views the same ones."""
    cache = with_texts(open_cache(world.folder / "cache", "digits", ["pixels", "edges"]))
    items = dataclasses.replace(cache.items, classes=[], label=np.full(len(cache.items), -1))
    bare = dataclasses.replace(cache, items=items)
    assert with_classes(bare).items.classes == CLASSES and with_classes(cache) is cache
    assert labelled_by_names(bare).taken == labelled_by_names(cache).taken
    for view in ("edges", "pixels"):  # whichever comes first
        fewer = dataclasses.replace(cache.texts[view], prompts={c: [c] for c in CLASSES[:9]})
        other = dataclasses.replace(bare, texts={**bare.texts, view: fewer})
        with pytest.raises(StaleError, match="'9' of the data set is not among them"):
            with_classes(other)


def cache_of(world: World) -> Cache:
    return open_cache(world.folder / "cache", "digits", ["pixels", "edges"])


def test_nothing_is_set_apart_where_nothing_is_labelled(
    world: World, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change, told in (({"test": "20%"}, "TEST: 20 %"), ({"val": "10%"}, "VAL: 10 %")):
        with pytest.raises(UsageError, match=f"{told} of the labelled images are to be set apart"):
            read(world.config(labels="0", **change))
    bare = dataclasses.replace(cache_of(world).items, label=np.full(1797, -1))
    with monkeypatch.context() as patched:
        unlabelled = dataclasses.replace(cache_of(world), items=bare)
        patched.setattr("train.run.reading.open_cache", lambda *_: unlabelled)
        with pytest.raises(UsageError, match="LABELS=4: no image of 'digits' has a label") as error:
            read(world.config(labels="4"))
        assert error.value.instead == {"LABELS": None}
    nameless = dataclasses.replace(world.config(labels="0"), cache=str(made.cache))
    with pytest.raises(UsageError, match=r"LABELS=0 needs class names\. None of the views has"):
        read(nameless)
