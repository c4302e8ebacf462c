"""What a trained model says of embeddings and of new images, from a run and from an exported
folder."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Made
from PIL import Image
from safetensors.torch import load_file, save, save_file
from scipy.stats import gmean
from sklearn.metrics import accuracy_score, log_loss
from training import QUICK, config

from base import durable
from base.errors import DataQualityError, IntegrityError, StaleError, StorageError, UsageError
from cache_specs import spec
from cache_specs.items import read_items
from cache_specs.succession import write_items
from extract.config import ExtractConfig
from extract.run import run as extract
from predict.bundle import onnx
from predict.bundle.card import licence_of, model_card
from predict.bundle.command import export_model as export
from predict.command import predict
from predict.config import ExportModelConfig as ExportConfig
from predict.config import PredictConfig
from predict.from_run import Model, choose_method, of_run, open_model
from predict.images import backbones, spec_of
from predict.label import Labelled
from predict.model import SAME, Expert, Opinions, Sight, ViewRecord
from predict.table import columns, judged, write_table
from train.algorithm.evaluate import TEMPERATURES
from train.command import run
from train.config import TrainConfig
from train.data import graph as propagation
from train.data.graph import Features
from train.data.reader import Cache, open_cache
from train.data.splits import Split, make_split
from train.jobs import graphs_of

METHODS = "supervised,concat,label-propagation,mpl,mct,supervised-graph,mct-graph"
Opened = tuple[Model, Cache, list[Split]]


@pytest.fixture(scope="module")
def runs(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two seeds: `a` of every kind of method, and one each of the other joint rules, an
    ensemble, one view, and in float64."""
    folder = tmp_path_factory.mktemp("runs")
    run(config(made, folder, run="a", method=METHODS))
    for rule in ("product", "mean-probability", "vote"):
        run(config(made, folder, run=rule, joint=rule, method="mct"))
    run(config(made, folder, run="members", members=3, method="mct"))
    run(config(made, folder, run="linear", layers=0, precision="float64", method="mct"))
    run(config(made, folder, "pixels", run="one", method="supervised,supervised-graph"))
    return folder


CASES = (
    [("a", method) for method in METHODS.split(",") if method != "label-propagation"]
    + [(name, "mct") for name in ("product", "mean-probability", "vote", "members", "linear")]
    + [("one", "supervised"), ("one", "supervised-graph")]
)


def opened(runs: Path, made: Made, name: str = "a", method: str = "") -> Opened:
    return of_run(runs / name, method, "cpu", made.cache)


def emb_of(cache: Cache, rows: np.ndarray) -> list[np.ndarray]:
    return [emb_ND[rows] for emb_ND in cache.emb]


def geometric_mean(scores_EnC: torch.Tensor) -> np.ndarray:
    p_EnC = torch.softmax(scores_EnC.double(), -1).numpy()
    mean_nC = gmean(np.maximum(p_EnC, 1e-300), axis=0)
    return mean_nC / mean_nC.sum(1, keepdims=True)


def tempered(p_nC: np.ndarray, temperature: float) -> np.ndarray:
    found = p_nC ** (1 / temperature)
    return found / found.sum(1, keepdims=True)


# ---------------------------------------------------------------- the core


def small_model(classes: list[str]) -> Model:
    """With nothing but names."""
    about: dict = {}
    view = ViewRecord("v", 4, {}, "", "", 64)
    return Model([view], classes, "supervised", [0], "logit-sum", [], [], None, 1.0, about)


def found_of(said: Opinions) -> Labelled:
    """Of images that could all be read."""
    keys = [str(number) for number in range(len(said.joint_nC))]
    return Labelled(keys, np.zeros(len(keys), int), said, None, None, keys)


def test_the_second_choice_and_all_probabilities_where_they_are_asked_for(tmp_path: Path) -> None:
    """Of three images, one of which could not be read; a class whose name a spreadsheet would
    compute, and two that are equally probable."""
    model = small_model(["a", "=b", "c,d"])
    p_nC = np.array([[0.5, 0.2, 0.3], [0.4, 0.4, 0.2]], np.float32)
    said = Opinions(p_nC, p_nC[None], np.ones(2, np.float32))
    keys, status = ["1.png", "2.png", "3.png"], np.array([0, 1, 0])
    found = Labelled(keys, status, said, np.array([0.5, 0.01], np.float32), None, [""] * 3)
    plain = columns(model, found, all_classes=False)
    assert plain["familiar"] == [0.5, None, pytest.approx(0.01)]
    unknown = columns(model, dataclasses.replace(found, familiar_n=None), all_classes=False)
    assert unknown["familiar"] == [None] * 3
    assert plain["second"] == ["c,d", None, "=b"] and not any("probability" in n for n in plain)
    assert plain["second_confidence"] == [pytest.approx(0.3), None, pytest.approx(0.4)]
    margin = [first - second for first, second in np.sort(p_nC, 1)[:, :0:-1]]
    assert [plain["margin"][0], plain["margin"][2]] == pytest.approx(margin)
    whole = columns(model, found, all_classes=True)
    write_table(tmp_path / "x.parquet", whole)
    table = pq.read_table(tmp_path / "x.parquet")
    names = ["probability_a", "probability_=b", "probability_c,d"]
    assert table.column_names[-3:] == names and table.column_names[:-3] == list(plain)
    for name, p_n in zip(names, p_nC.T, strict=True):
        assert table[name].to_pylist() == [p_n[0], None, p_n[1]] and table[name].type == "float"
    write_table(tmp_path / "x.csv", whole)
    rows = list(csv.reader((tmp_path / "x.csv").read_text().splitlines()))
    assert rows[0][-3:] == names and rows[1][-3:] == ["0.500000", "0.200000", "0.300000"]
    assert rows[2][-3:] == ["", "", ""] and rows[3][3] == "'=b"


def test_a_table_does_not_grow_with_the_classes(tmp_path: Path) -> None:
    chance, sizes = np.random.default_rng(0), []
    for classes in (10, 4_000):
        model = small_model([f"class {number}" for number in range(classes)])
        p_nC = chance.dirichlet(np.ones(classes), 300).astype(np.float32)
        said, keys = Opinions(p_nC, p_nC[None], np.ones(300, np.float32)), [*map(str, range(300))]
        found = Labelled(keys, np.zeros(300, int), said, None, None, keys)
        table = columns(model, found, all_classes=False)
        write_table(tmp_path / f"{classes}.parquet", table)
        sizes.append((tmp_path / f"{classes}.parquet").stat().st_size)
    assert sizes[1] < 2 * sizes[0]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_model_says_what_the_run_wrote_down(
    runs: Path, made: Made, name: str, method: str
) -> None:
    """Each seed's predictions of the validation and test images, and their mean, at the
    temperature of the mean."""
    model, cache, splits = opened(runs, made, name, method)
    table = {
        key: np.array(values, object if key.startswith("prob_") else None)
        for key, values in pq.read_table(runs / name / "predictions.parquet").to_pydict().items()
    }
    graphs = "graph" in method
    for part in ("val", "test"):
        rows = getattr(splits[0], part)
        views_VEnC, joint_EnC = model.scores(emb_of(cache, rows))
        joint = torch.softmax(joint_EnC.double(), -1).numpy()
        for e, seed in enumerate(model.seeds):
            here = np.flatnonzero(
                (table["method"] == method) & (table["split"] == part) & (table["seed"] == seed)
            )
            assert table["id"][here].tolist() == [cache.items.keys[row] for row in rows]
            # of a graph the run kept its validation and test scores in float16
            np.testing.assert_allclose(
                joint[e].max(1), table["confidence"][here], atol=2e-2 if graphs else 2e-6
            )
            assert (joint[e].argmax(1) == table["pred"][here]).mean() >= (0.99 if graphs else 1)
            for view, logits_EnC in zip(model.names, views_VEnC, strict=False):
                np.testing.assert_allclose(
                    torch.softmax(logits_EnC[e].double(), -1).numpy(),
                    np.array(table[f"prob_{view}"][here].tolist()),
                    atol=1e-3,
                )
        said = model(emb_of(cache, rows))
        assert said.joint_nC.dtype == said.views_VnC.dtype == np.float32 and len(
            said.views_VnC
        ) == (0 if method == "concat" else len(model.names))
        np.testing.assert_allclose(
            said.joint_nC,
            tempered(geometric_mean(joint_EnC), model.temperature),
            atol=1e-6,
        )
        np.testing.assert_allclose(
            said.views_VnC, torch.softmax(views_VEnC.double(), -1).mean(1).numpy(), atol=1e-6
        )
        top2 = np.sort(said.joint_nC, 1)
        assert (said.choice_n == said.joint_nC.argmax(1)).all() and (
            said.confidence_n == top2[:, -1]
        ).all()
        np.testing.assert_allclose(said.margin_n, top2[:, -1] - top2[:, -2])
        agrees = [
            said.views_VnC[v].argmax(1) == said.choice_n for v in range(len(said.views_VnC))
        ] or [np.full(len(rows), np.nan)]
        np.testing.assert_allclose(said.agreement_n, np.mean(agrees, 0))


@pytest.mark.parametrize("exact", [propagation.EXACT, 200])
def test_a_graph_says_of_its_nodes_and_of_others_what_it_said_in_training(
    runs: Path, made: Made, monkeypatch: pytest.MonkeyPatch, exact: int
) -> None:
    """Whether all nodes are compared, or an index is asked."""
    monkeypatch.setattr(propagation, "EXACT", exact)
    monkeypatch.setattr("predict.model.EXACT", exact)
    model, cache, splits = opened(runs, made, "a", "mct-graph")
    graphs_of.cache_clear()
    graphs = graphs_of(cache, tuple(splits), torch.device("cpu"))
    graphs_of.cache_clear()
    chosen = [
        list(zip(*(graph.chosen[key].tolist() for key in ("neighbours", "alpha")), strict=True))
        for graph in graphs
    ]
    assert all(bool(expert.indices) == (exact == 200) for expert in model.experts)
    nodes = np.union1d(splits[0].labelled, splits[0].unlabelled)
    for rows in (nodes, splits[0].val, splits[0].test):
        x_V = [
            torch.from_numpy(
                (emb.astype(np.float64) - probe["input_mean"].numpy()) / probe["input_std"].numpy()
            ).float()
            for emb, probe in zip(emb_of(cache, rows), model.probes, strict=True)
        ]
        for graph, expert, choice in zip(graphs, model.experts, chosen, strict=True):
            assert expert.neighbours_E == [k for k, _ in choice]
            difference = (expert(x_V) - graph(rows)).abs().amax(-1)
            assert (difference < 1e-4).double().mean() > 0.995, (
                difference.max()
            )  # of integer pixels, some neighbours are equally near


def test_what_the_nodes_know_is_kept_and_is_what_solving_them_again_gives(
    runs: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; and where it was too much to keep, the same comes of solving."""
    from predict import from_run as module
    from train import jobs

    solved = []
    monkeypatch.setattr(
        module, "Graph", lambda *given: solved.append(1) or propagation.Graph(*given)
    )
    kept, *_ = opened(runs, made, "a", "mct-graph")
    assert (
        not solved
        and {f"told.{g}.{e}" for g in range(3) for e in range(2)}
        <= load_file(runs / "a" / "probes" / "mct-graph" / "pool.safetensors").keys()
    )
    monkeypatch.setattr(jobs, "TOLD_BYTES", 0)
    config = TrainConfig(
        **json.loads((runs / "a" / "config.json").read_text())["settings"]
        | {"runs": str(tmp_path), "run": "a", "cache": str(made.cache)}
    )
    run(dataclasses.replace(config, method="mct-graph", report=False))
    assert not any(
        name.startswith("told")
        for name in load_file(tmp_path / "a" / "probes" / "mct-graph" / "pool.safetensors")
    )
    again, *_ = opened(tmp_path, made, "a", "mct-graph")
    assert len(solved) == 3
    monkeypatch.setattr(module, "POWER", 0)  # as if the run were of a version with other links
    with pytest.raises(StaleError, match="Train again under another RUN"):
        opened(tmp_path, made, "a", "mct-graph")
    for one, other in zip(kept.experts, again.experts, strict=True):
        assert (
            torch.equal(one.told_EMC, other.told_EMC)
            and torch.equal(one.member_EM, other.member_EM)
            and torch.equal(one.nodes_MD, other.nodes_MD)
        )


def test_a_copy_of_a_node_is_the_node_and_nodes_of_one_seed_are_not_asked_by_another() -> None:
    nodes = torch.nn.functional.normalize(
        torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), dim=1
    )
    member = torch.ones(2, 20, dtype=torch.bool)
    member[1, 3] = False
    told = torch.softmax(torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(1)), -1)
    expert = Expert([0], nodes, member, told, [2, 3], torch.ones(2, 6))
    found = expert([nodes[3:4] * 7 + SAME / 10]).exp()
    far = (nodes - nodes[3]).norm(dim=1)
    near = [row for row in far.argsort().tolist() if row != 3][:3]
    np.testing.assert_allclose(found[0, 0], told[0, 3], atol=1e-6)
    np.testing.assert_allclose(found[1, 0], told[1, near].mean(0), atol=1e-6)


@pytest.mark.parametrize("method", ["supervised", "concat", "mct", "mct-graph"])
def test_the_temperature_is_that_of_the_mean_over_the_seeds(
    runs: Path, made: Made, method: str
) -> None:
    """By scikit-learn's loss, with the share 1 / (n + 2) of doubt; no other of the grid is better,
    and it changes no label."""
    model, cache, splits = opened(runs, made, "a", method)
    val, n = splits[0].val, len(splits[0].val)
    joint_EnC = model.scores(emb_of(cache, val))[1]
    mean_nC = geometric_mean(joint_EnC)
    y, losses = cache.items.label[val], []
    for temperature in TEMPERATURES.numpy():
        p_nC = tempered(mean_nC, temperature)
        wrong_n = np.log1p(-np.minimum(p_nC[np.arange(n), y], 1 - 1e-12))
        right = log_loss(y, p_nC, labels=range(10))
        losses.append((1 - 1 / (n + 2)) * right - wrong_n.mean() / (n + 2))
    assert model.temperature == pytest.approx(float(TEMPERATURES[int(np.argmin(losses))]))
    assert np.array_equal(model(emb_of(cache, val)).choice_n, mean_nC.argmax(1))


def test_seeds_that_are_sure_of_different_things_are_not_too_modest_together() -> None:
    """Of ten seeds seven are right, each time others: were each tempered, and then averaged, no
    temperature could make more than 70 % of it, though the joint choice is right every time."""
    chance, n = np.random.default_rng(0), 400
    y = chance.integers(3, size=n)
    said_En = np.where(chance.random((10, n)).argsort(0) < 7, y, (y + 1) % 3)
    logits_EnC = torch.nn.functional.one_hot(torch.from_numpy(said_En), 3).double() * 9

    class Fixed(Model):
        def scores(self, emb_V):
            rows = torch.from_numpy(emb_V[0][:, 0]).long()
            return logits_EnC[None, :, rows], logits_EnC[:, rows]

    view = ViewRecord("a", 1, {}, "", "", 1)
    model = Fixed([view], ["a", "b", "c"], "mct", [0], "", [], [], None, 1.0, {})
    rows = [np.arange(n, dtype=np.float32)[:, None]]
    sure = model.calibrated(rows, y)(rows)
    assert (sure.choice_n == y).all() and 0.98 < sure.confidence_n.mean() < 1
    for temperature in TEMPERATURES.tolist():
        each_EnC = torch.softmax(logits_EnC / temperature, -1)
        assert each_EnC.mean(0).amax(-1).mean() < 0.71


def test_one_seed_without_an_error_knows_doubt(runs: Path, made: Made) -> None:
    model, cache, splits = opened(runs, made, "a", "mct")
    val = splits[0].val
    model = dataclasses.replace(
        model,
        probes=[
            {key: p if key.startswith("input_") else p[:1] for key, p in probe.items()}
            for probe in model.probes
        ],
    )
    sure = model.calibrated(
        emb_of(cache, val), model(emb_of(cache, val)).choice_n
    )  # one seed, without one error
    assert 0.97 < sure(emb_of(cache, val)).confidence_n.mean() < 0.9995


def test_rows_come_in_pieces_and_none_is_possible(
    runs: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache, splits = opened(runs, made)
    whole = model(emb_of(cache, splits[0].test))
    monkeypatch.setattr("predict.model.CHUNK", 100)
    pieces = model(emb_of(cache, splits[0].test))
    np.testing.assert_allclose(whole.joint_nC, pieces.joint_nC, atol=1e-6)
    np.testing.assert_allclose(whole.agreement_n, pieces.agreement_n)
    none = model(emb_of(cache, splits[0].test[:0]))
    assert (
        none.joint_nC.shape == (0, 10)
        and none.views_VnC.shape == (2, 0, 10)
        and none.agreement_n.shape == (0,)
    )


def test_embeddings_that_do_not_fit_are_refused(runs: Path, made: Made) -> None:
    model, cache, splits = opened(runs, made, "a", "mct")
    pixels, edges = emb_of(cache, splits[0].test[:3])
    for wrong in ([pixels], [edges, pixels], [pixels, edges[:2]], []):
        with pytest.raises(
            UsageError,
            match=r"the model reads pixels \(n, 64\), edges \(n, 128\), in this order and of the "
            r"same n images; found the shapes",
        ):
            model(wrong)
    pixels[1, 2] = np.nan
    with pytest.raises(DataQualityError, match="1 of 3 rows of the view 'pixels' are not finite"):
        model([pixels, edges])


def test_the_method_is_chosen_on_validation() -> None:
    def summary(**top1: float) -> dict:
        return {
            "methods": {
                name.replace("_", "-"): {
                    "joint": {"val_top1": {"mean": value}, "test_top1": {"mean": -value}}
                }
                for name, value in top1.items()
            }
        }

    assert (
        choose_method(summary(supervised=0.9, mct=0.8, label_propagation=1.0), "") == "supervised"
    )
    assert choose_method(summary(supervised=0.9, mct=0.8, mct_graph=0.7), "") == "mct-graph"
    assert choose_method(summary(supervised=0.9, mct=0.8), "mct") == "mct"
    with pytest.raises(
        UsageError, match="METHOD=mtc: the run did not train it; did you mean 'mct'"
    ):
        choose_method(summary(mct=1), "mtc")
    with pytest.raises(
        UsageError,
        match=r"METHOD=knn keeps no model, only its scores .* Those of this run that keep one: "
        r"supervised, mct",
    ):
        choose_method(summary(mct=1, knn=1, supervised=1), "knn")
    with pytest.raises(
        UsageError,
        match=r"METHOD=logreg,knn keeps no model.* None of this run does: train one under another "
        r"RUN, with METHOD=mct-graph",
    ):
        choose_method(summary(knn=1, logreg=1), "")


def test_a_run_of_other_data_or_half_of_one_is_refused(
    runs: Path, made: Made, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"RUN=b: there is no run .*/b.*Make one: make train VIEWS=… DATA=… RUN=b"
    ):
        of_run(runs / "b", cache=made.cache)
    shutil.copytree(runs / "a", tmp_path / "a")
    with pytest.raises(
        UsageError,
        match=r"RUN=a was trained on digits-[0-9a-f]{8}, which is not in .*/empty/\. Name the "
        r"cache it is in: CACHE=…",
    ):
        of_run(tmp_path / "a", cache=tmp_path / "empty")
    probe = tmp_path / "a" / "probes" / "mct" / "pixels.safetensors"
    data = bytearray(probe.read_bytes())
    data[-1] ^= 1
    probe.write_bytes(data)
    with pytest.raises(
        IntegrityError,
        match=r"mct/pixels.safetensors cannot be read \(it has changed since it was written\)",
    ):
        of_run(tmp_path / "a", "mct", cache=made.cache)
    shutil.copy(probe.with_name("edges.safetensors"), probe)  # whole, and another view's
    with pytest.raises(
        IntegrityError,
        match=r"mct/pixels.safetensors is not the file that .*summary.json was made of",
    ):
        of_run(tmp_path / "a", "mct", cache=made.cache)
    keys = tmp_path / "a" / "splits" / "seed-1.labelled.txt"
    keys.write_text(keys.read_text().replace("\n", "\n\n", 1))
    with pytest.raises(
        IntegrityError,
        match=r"seed-1.labelled.txt is not the file that .*summary.json was made with: it was "
        r"changed afterwards. Delete summary.json and type the command of the run once more",
    ):
        of_run(tmp_path / "a", "supervised", cache=made.cache)
    (tmp_path / "a" / "summary.json").unlink()
    with pytest.raises(
        UsageError,
        match=r"RUN=a: .*/a is not finished, it has no summary.json. Type the command that began "
        r"it once more",
    ):
        of_run(tmp_path / "a", cache=made.cache)
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"config.json is damaged"):
        of_run(tmp_path / "a", cache=made.cache)


def test_a_run_finds_the_labels_that_it_was_trained_on_again_also_where_they_were_replaced(
    made: Made, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    split = make_split(made.items, np.ones(len(made.items), bool), "4", 7)
    keys.write_text("".join(f"{made.items.keys[row]}\n" for row in split.labelled))
    shutil.copytree(made.cache, tmp_path / "cache")
    run(
        dataclasses.replace(
            config(made, tmp_path, labels=str(keys), method="supervised"),
            cache=str(tmp_path / "cache"),
        )
    )
    keys.unlink()
    model, cache, splits = of_run(tmp_path / "a", cache=tmp_path / "cache")
    assert model.method == "supervised" and (splits[1].labelled == split.labelled).all()
    before = model(emb_of(cache, splits[0].test))
    items = read_items(next((tmp_path / "cache").glob("digits-*")))
    label = items.label.copy()
    label[0] = (label[0] + 1) % 10
    write_items(tmp_path / "cache", dataclasses.replace(items, label=label))
    folder = next((tmp_path / "cache").glob("digits-*"))
    assert (
        read_items(folder).label[0]
        == label[0]
        == open_cache(tmp_path / "cache", "digits", [made.views("pixels")]).items.label[0]
    )
    model, cache, splits = of_run(tmp_path / "a", cache=tmp_path / "cache")
    assert (
        cache.items.label[0] == items.label[0]
        and (model(emb_of(cache, splits[0].test)).joint_nC == before.joint_nC).all()
    )
    kept = folder / "labels" / items.labels_fingerprint[:12]
    data = bytearray((kept / "items.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (kept / "items.parquet").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"the item list in .* cannot be read"):
        of_run(tmp_path / "a", cache=tmp_path / "cache")
    shutil.rmtree(kept)
    with pytest.raises(
        StaleError,
        match=r"is not what .*/a was trained on any more:\n  labels: [0-9a-f]{12}… -> "
        r"[0-9a-f]{12}…\nTrain on what it is now",
    ):
        of_run(tmp_path / "a", cache=tmp_path / "cache")


# ---------------------------------------------------------------- the model folder and ONNX


@pytest.mark.parametrize(("name", "method"), CASES)
def test_an_exported_model_and_its_onnx_say_the_same(
    runs: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, method: str
) -> None:
    """Also without a run or a cache, and with onnxruntime alone."""
    import onnxruntime

    model, cache, splits = opened(runs, made, name, method)
    capsys.readouterr()
    folder = export(
        ExportConfig(
            run=name,
            method=method,
            to=str(tmp_path / "model"),
            cache=str(made.cache),
            runs=str(runs),
        )
    )
    assert (
        "joint.onnx: largest difference of a log-probability from torch " in capsys.readouterr().out
    )
    rows = np.concatenate([splits[0].labelled, splits[0].val, splits[0].test])
    emb_V = emb_of(cache, rows)
    here, there = model(emb_V), open_model(folder)(emb_V)
    for field in dataclasses.fields(here):
        np.testing.assert_allclose(getattr(there, field.name), getattr(here, field.name), atol=1e-6)
    session = onnxruntime.InferenceSession(
        str(folder / "joint.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [(one.name, one.shape, one.type) for one in session.get_inputs()] == [
        (view, ["n", width], "tensor(float)")
        for view, width in zip(model.names, model.widths, strict=True)
    ]
    names = ["joint", *(f"view.{view}" for view in model.names if method != "concat")]
    assert [one.name for one in session.get_outputs()] == names
    found = session.run(
        None, {view: emb.astype(np.float32) for view, emb in zip(model.names, emb_V, strict=True)}
    )
    views, joint = model.log_probabilities(*model.scores(emb_V))
    for told, expected in zip(found, [joint, *views], strict=True):
        assert told.dtype == np.float32 and np.abs(told - expected.numpy()).max() < 1e-4
    np.testing.assert_allclose(np.exp(found[0]), here.joint_nC, atol=1e-5)
    assert (
        session.run(
            ["joint"],
            {
                view: emb[:1].astype(np.float32)
                for view, emb in zip(model.names, emb_V, strict=True)
            },
        )[0].argmax(1)
        == here.choice_n[:1]
    ).all()


@pytest.fixture(scope="module")
def folder(runs: Path, made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        ExportConfig(
            run="a",
            to=str(tmp_path_factory.mktemp("export") / "model"),
            cache=str(made.cache),
            runs=str(runs),
        )
    )


def test_large_tensors_lie_beside_the_onnx_file(
    runs: Path, made: Made, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "INLINE", 100_000)
    made_of = ExportConfig(
        run="a", to=str(tmp_path / "model"), cache=str(made.cache), runs=str(runs)
    )
    files = {path.name for path in export(made_of).iterdir()}
    assert {"joint.onnx", "joint.onnx.data"} < files and "joint.onnx.data" in open_record(
        tmp_path / "model"
    )["files"]
    assert (tmp_path / "model" / "joint.onnx").stat().st_size < (
        folder / "joint.onnx"
    ).stat().st_size / 10


def open_record(folder: Path) -> dict:
    return json.loads((folder / "model.json").read_text())


def test_a_damaged_model_folder_is_refused_by_the_name_of_the_file(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    names = [str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()]
    assert set(names) == {
        "model.json",
        "README.md",
        "joint.onnx",
        "probes/pixels.safetensors",
        "probes/edges.safetensors",
        *(f"graphs/{number}.safetensors" for number in range(3)),
    }
    for name in names:
        whole = (copy / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for broken in (bytes(flipped), whole[:-3], whole + b" "):
            (copy / name).write_bytes(broken)
            with pytest.raises(
                IntegrityError,
                match=rf"the model in .*/model is damaged: (model/)?{name} has changed since it "
                rf"was written",
            ):
                open_model(copy)
        if name != "model.json":
            (copy / name).unlink()
            with pytest.raises(
                IntegrityError,
                match=f"is damaged: {name} is missing. Copy it again, or export it again",
            ):
                open_model(copy)
        (copy / name).write_bytes(whole)
    open_model(copy)
    record = open_record(copy)
    for changes, error, message in (
        (
            {"format": 1},
            StaleError,
            r"has format 1, this version reads 3 \(in the other one each seed has the "
            r"temperature, and then they are averaged\); export it again, where its run is: make "
            r"export-model RUN=a METHOD=mct-graph TO=\S*/model-3$",
        ),
        (
            {"format": 4, "about": None},
            StaleError,
            "has format 4, this version reads 3; export it again, where its run is: make "
            "export-model RUN=… METHOD=mct-graph TO=",
        ),
        (
            {"files": {**record["files"], "../x": {}}},
            IntegrityError,
            "names the file '../x', which is none of a model's",
        ),
        (
            {"files": {**record["files"], "probes/x.safetensors": {}}},
            IntegrityError,
            "'probes/x.safetensors', which is none",
        ),
        ({"files": {}}, IntegrityError, "model.json does not name the file graphs/0.safetensors"),
        ({"views": [{"name": "pixels"}]}, IntegrityError, "is damaged: .*missing 5 required"),
        (
            {"graphs": []},
            IntegrityError,
            "lacks a weight, and graphs, where the method has them, and only there",
        ),
    ):
        (copy / "model.json").write_bytes(durable.sealed({**record, **changes}))
        with pytest.raises(error, match=message):
            open_model(copy)
    (copy / "model.json").unlink()
    with pytest.raises(
        UsageError,
        match=r"there is no model.json in this folder. Make one: make export-model RUN=… TO=",
    ):
        open_model(copy)
    with pytest.raises(UsageError, match="there is no such folder"):
        open_model(tmp_path / "none")
    (tmp_path / "above" / "inner").mkdir(parents=True)
    (tmp_path / "above" / "inner" / "model.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"no model.json in this folder; did you mean '.*/above/inner'"
    ) as caught:
        open_model(tmp_path / "above")
    assert caught.value.instead == {"MODEL": str(tmp_path / "above" / "inner")}


def view_called(record: dict, name: str) -> dict:
    """With the files of the first view under that name, if they were there."""
    files = {
        path.replace("probes/pixels.", f"probes/{name}."): digest
        for path, digest in record["files"].items()
    }
    return {"views": [{**record["views"][0], "name": name}, record["views"][1]], "files": files}


def held_out(record: dict, **changes: object) -> dict:
    about = record["about"]
    return {"about": {**about, "held_out": {**about["held_out"], **changes}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda record: view_called(record, "../../pixels"),
            "lacks views of different names, which are names of files",
        ),
        (lambda record: view_called(record, "/pixels"), "lacks views of different names"),
        (lambda record: view_called(record, "edges"), "lacks views of different names"),
        (
            lambda record: {
                "views": [{**record["views"][0], "name": ["pixels"]}, record["views"][1]]
            },
            "unhashable",
        ),
        (
            lambda record: {"views": [{**record["views"][0], "width": 10**12}, record["views"][1]]},
            "lacks views of a possible width",
        ),
        (
            lambda record: {"views": [{**record["views"][0], "width": 63}, record["views"][1]]},
            "is damaged",
        ),
        (lambda record: {"temperature": 0}, "lacks a temperature from 0.001"),
        (lambda record: {"temperature": -1.5}, "lacks a temperature"),
        (lambda record: {"temperature": "1"}, "lacks a temperature"),
        (lambda record: {"temperature": True}, "lacks a temperature"),
        (lambda record: {"classes": record["classes"][:1]}, "lacks two or more different classes"),
        (lambda record: {"classes": []}, "lacks two or more"),
        (lambda record: {"classes": record["classes"][:9]}, "says no probabilities of 9 classes"),
        (lambda record: {"classes": [*range(10)]}, "lacks two or more"),
        (lambda record: {"method": "knn"}, "lacks a method of supervised"),
        (lambda record: {"joint": "sum"}, "lacks a joint rule of logit-sum"),
        (lambda record: {"method": "mct"}, "lacks a weight, and graphs"),
        (lambda record: {"weight": None}, "lacks a weight, and graphs"),
        (lambda record: {"weight": [[1.0]]}, r"has a weight of the shape \(1, 1\)"),
        (lambda record: {"seeds": [0]}, "has 1 seeds, the probes have others"),
        (
            lambda record: {
                "graphs": [{**graph, "neighbours": [10**6, 1]} for graph in record["graphs"]]
            },
            "is damaged",
        ),
        (
            lambda record: {"graphs": [{**graph, "views": [-1]} for graph in record["graphs"]]},
            "lacks views of graphs that are views of the model",
        ),
        (lambda record: {"about": {}}, "'rows'"),
        (lambda record: held_out(record, top1=1.5), "lacks how good it is on images held out"),
        (lambda record: held_out(record, top1=None), "lacks how good it is"),
        (lambda record: held_out(record, test=0), "lacks how good it is"),
        (lambda record: held_out(record, test=True), "lacks how good it is"),
        (lambda record: held_out(record, val=-1), "lacks how good it is"),
        (lambda record: held_out(record, val="many"), "lacks how good it is"),
        (lambda record: held_out(record, judged=[[0.5, 1], [0.5]]), "lacks how good it is"),
        (lambda record: held_out(record, judged=[[1.5, 1]]), "lacks how good it is"),
        (lambda record: held_out(record, judged=[[0.5, 2]]), "lacks how good it is"),
        (lambda record: {"named": True}, "does not name the file names.safetensors"),
    ],
)
def test_a_record_that_was_edited_and_sealed_anew_leads_nowhere(
    folder: Path, tmp_path: Path, change: Callable, message: str
) -> None:
    shutil.copytree(folder, tmp_path / "a" / "b" / "model")
    shutil.copy(
        folder / "probes" / "pixels.safetensors", tmp_path / "a" / "pixels.safetensors"
    )  # what ../../pixels would be
    record = open_record(folder)
    (tmp_path / "a" / "b" / "model" / "model.json").write_bytes(
        durable.sealed({**record, **change(record)})
    )
    with pytest.raises(IntegrityError, match=message):
        open_model(tmp_path / "a" / "b" / "model")


def test_tensors_that_are_not_finite_are_refused_also_with_their_digest(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "probes" / "edges.safetensors"
    tensors = load_file(file)
    tensors["joint.w0"][0, 0, 0] = torch.nan
    save_file(tensors, file)
    record = open_record(folder)
    data = file.read_bytes()
    record["files"]["probes/edges.safetensors"] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (tmp_path / "model" / "model.json").write_bytes(durable.sealed(record))
    with pytest.raises(
        IntegrityError, match=r"probes/edges.safetensors: the tensor 'joint.w0' is not finite"
    ):
        open_model(tmp_path / "model")


def test_onnx_that_says_no_number_is_a_difference(
    runs: Path, made: Made, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the last of the outputs does."""
    model, cache, splits = opened(runs, made)

    class Silent:
        def __init__(self, *given: object, **more: object) -> None:
            pass

        def run(self, *given: object) -> list[np.ndarray]:
            views, joint = model.log_probabilities(*model.scores(emb_of(cache, splits[0].test[:5])))
            return [joint.numpy(), *views[:-1].numpy(), np.full((5, 10), np.nan)]

    monkeypatch.setattr("onnxruntime.InferenceSession", Silent)
    assert np.isnan(
        onnx.difference(model, folder / "joint.onnx", emb_of(cache, splits[0].test[:5]))
    )
    monkeypatch.setattr(onnx, "difference", lambda *_: float("nan"))
    with pytest.raises(IntegrityError, match=r"joint.onnx differs from torch by nan"):
        export(
            ExportConfig(
                run="a",
                method="mct",
                to=str(tmp_path / "model"),
                cache=str(made.cache),
                runs=str(runs),
            )
        )
    assert not list(tmp_path.iterdir())


def test_two_exports_at_once_and_a_folder_of_the_users_are_kept_apart(
    runs: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from predict.bundle import export as module

    wanted = ExportConfig(
        run="a", method="concat", to=str(tmp_path / "model"), cache=str(made.cache), runs=str(runs)
    )
    (tmp_path / ".model.tmp").mkdir()
    (tmp_path / ".model.tmp" / "mine").write_text("kept")
    inside, onnx_of = [], module._onnx

    def second(*given: object) -> tuple:
        monkeypatch.setattr(module, "_onnx", onnx_of)
        inside.append(export(dataclasses.replace(wanted, method="mct")))  # another one is faster
        return onnx_of(*given)

    monkeypatch.setattr(module, "_onnx", second)
    with pytest.raises(StorageError, match="move away what stands in that place"):
        export(wanted)
    assert inside == [tmp_path / "model"] and open_model(tmp_path / "model").method == "mct"
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == [".model.tmp", "model"]
        and (tmp_path / ".model.tmp" / "mine").read_text() == "kept"
    )
    umask = os.umask(0o022)
    os.umask(umask)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~umask


def test_without_onnx_all_else_is_written_and_wrong_onnx_is_not(
    runs: Path,
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    wanted = ExportConfig(
        run="a", method="mct", to=str(tmp_path / "model"), cache=str(made.cache), runs=str(runs)
    )
    with monkeypatch.context() as patch:
        patch.setattr(onnx, "difference", lambda *_: 1e-3)
        with pytest.raises(
            IntegrityError,
            match=r"joint.onnx differs from torch by 0.001 in a log-probability of \d+ real rows, "
            r"allowed 0.0001; nothing is",
        ):
            export(wanted)
    assert not list(tmp_path.iterdir())
    for missing in ("onnxruntime", "onnx"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            export(wanted)
        assert (
            f"joint.onnx is left out: {missing} is not installed. For it, type: pip install 'onnx"
            in capsys.readouterr().out
        )
        assert {path.name for path in (tmp_path / "model").iterdir()} == {
            "model.json",
            "README.md",
            "probes",
        }
        assert (
            "is left out" in (tmp_path / "model" / "README.md").read_text()
            and open_model(tmp_path / "model").method == "mct"
        )
        shutil.rmtree(tmp_path / "model")


def test_an_export_is_whole_or_not_there(
    runs: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ExportConfig(
        run="a", method="concat", to=str(tmp_path / "model"), cache=str(made.cache), runs=str(runs)
    )
    for point in ("model.tensors.rename", "model.card.half", "model.record.fsync", "model.rename"):
        with monkeypatch.context() as patch:
            patch.setenv("COVIEW_FAULT", f"ENOSPC:1:{point}")
            patch.setattr(durable, "_passed", 0)
            with pytest.raises(StorageError, match=r"injected ENOSPC|No space left"):
                export(wanted)
        assert not list(tmp_path.iterdir())
    export(wanted)
    (tmp_path / "model-2").touch()
    with pytest.raises(UsageError, match=r"is there already; name another folder") as caught:
        export(wanted)
    assert caught.value.instead == {"TO": str(tmp_path / "model-3")}


def test_a_card_says_what_is_known_and_renders_no_markup(
    runs: Path, made: Made, folder: Path
) -> None:
    text = (folder / "README.md").read_text()
    for word in (
        "3 labels a class",
        "30 labelled",
        "0, 1",
        "| joint |",
        "±",
        "temperature",
        "licence",
        "For images like those",
        "sha256",
        "largest diff",
    ):
        assert word in text, word
    assert (
        str(made.cache.parent) not in text + (folder / "model.json").read_text()
    )  # no path of this machine
    model = open_model(folder)
    hostile = dataclasses.replace(
        model, classes=["<img src=x onerror=alert(1)>", "a|b\n\n# c", *model.classes[2:]]
    )
    text = model_card(hostile, "")
    assert "<img" not in text and "&lt;img src=x onerror=alert(1)&gt;, a\\|b  \\# c, 2" in text


# ---------------------------------------------------------------- make predict, from the cache


def cached(made: Made, runs: Path, **changes: object) -> PredictConfig:
    return PredictConfig(
        **{
            "run": "a",
            "cache": str(made.cache),
            "runs": str(runs),
            "device": "cpu",
            "workers": 0,
            **changes,
        }
    )


def test_hidden_training_rows_where_every_image_has_a_label(
    runs: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = predict(cached(made, runs))
    out = capsys.readouterr().out
    model, cache, splits = opened(runs, made)
    rows = np.intersect1d(splits[0].unlabelled, splits[1].unlabelled)
    said = model(emb_of(cache, rows))
    table = pq.read_table(path).to_pydict()
    assert path == runs / "a" / "predicted.parquet" and table["key"] == [
        cache.items.keys[row] for row in rows
    ]
    assert list(table) == [
        "key",
        "label",
        "confidence",
        "second",
        "second_confidence",
        "agreement",
        "margin",
        "familiar",
        "status",
        "label_pixels",
        "confidence_pixels",
        "label_edges",
        "confidence_edges",
    ]
    assert table["label"] == [cache.items.classes[c] for c in said.choice_n] and set(
        table["status"]
    ) == {"ok"}
    for name, expected in (
        ("confidence", said.confidence_n),
        ("agreement", said.agreement_n),
        ("margin", said.margin_n),
        ("confidence_edges", said.views_VnC[1].max(1)),
    ):
        np.testing.assert_allclose(table[name], expected, atol=1e-6)
    assert table["label_pixels"] == [cache.items.classes[c] for c in said.views_VnC[0].argmax(1)]
    hit = 100 * (said.choice_n == cache.items.label[rows]).mean()
    test = splits[0].test
    right = accuracy_score(cache.items.label[test], model(emb_of(cache, test)).choice_n)
    p = (right * len(test) + 2) / (len(test) + 4)
    doubt = np.sqrt(p * (1 - p) / (len(test) + 4))
    apart = 100 * (said.views_VnC[0].argmax(1) != said.views_VnC[1].argmax(1)).mean()
    for text in (
        f"every image of digits has a label: these are the {len(rows):,} training images whose "
        f"labels the run had hidden (3 labels a class)",
        f"expected accuracy {100 * right:.1f} %, give or take {200 * doubt:.0f} points: what the 2 "
        f"seeds together label right of the {len(test)} test images of digits, which had no part "
        "in the training, and two standard errors of so many",
        f"The mean confidence, {100 * said.confidence_n.mean():.1f} %, is no measure here",
        f"found accuracy {hit:.1f} %",
        f"the views disagree on {apart:.1f} % of",
        f"{len(rows):,} rows in {path}",
        "mct-graph on pixels, edges, 2 seeds, 10 classes",
    ):
        assert text in out, (text, out)
    bins = [line.split() for line in out.splitlines() if " to " in line and "training" not in line]
    assert sum(int(line[3].replace(",", "")) for line in bins) == len(rows) and len(bins) == 7
    stamp = path.stat().st_mtime_ns
    assert predict(cached(made, runs)) == path and path.stat().st_mtime_ns == stamp
    assert f"{len(rows):,} rows in {path}, which held just this already" in capsys.readouterr().out
    other = predict(cached(made, runs, method="mct"))  # no result is lost
    assert other == runs / "a" / "predicted-2.parquet" and pq.read_table(path).to_pydict() == table
    assert (
        f"{path} holds something else and is kept\n{len(rows):,} rows in {other}\n"
        in capsys.readouterr().out
    )
    assert (
        predict(cached(made, runs, method="mct")) == other
        and predict(cached(made, runs, method="concat")).name == "predicted-3.parquet"
    )
    assert pq.read_table(runs / "a" / "predicted-3.parquet")["agreement"].null_count == len(
        rows
    )  # no view has an opinion of its own
    assert predict(cached(made, runs, force=True, method="mct")) == path and pq.read_table(
        path
    ).equals(pq.read_table(other))
    named = cached(made, runs, to=str(tmp_path / "x.csv"), method="concat")
    capsys.readouterr()
    predict(named)
    assert "the views disagree" not in capsys.readouterr().out.partition("concat on")[2]
    assert (
        (tmp_path / "x.csv")
        .read_bytes()
        .startswith(
            b"key,label,confidence,second,second_confidence,agreement,margin,familiar,status\r\n"
        )
    )
    assert (
        b",1.000000," not in (tmp_path / "x.csv").read_bytes()
        and (tmp_path / "x.csv").read_text().splitlines()[1].split(",")[5] == ""
    )
    with pytest.raises(
        UsageError, match=r"x.csv is there already; to replace it: ARGS='--force'"
    ) as caught:
        predict(named)
    assert caught.value.instead == {"--force": ""}
    predict(dataclasses.replace(named, force=True))


def test_rows_without_a_label_and_among_them_one_without_embedding(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = np.array([str(i % 10) for i in range(1797)], object)
    from sklearn.datasets import load_digits

    names[:] = [str(digit) for digit in load_digits().target]
    unknown = [row for row in range(1797) if row % 9 == 0]
    names[unknown] = ""
    lacking = Made(tmp_path, list(names), bad=[unknown[3], 1])
    run(config(lacking, tmp_path, method="supervised", labels="all", seeds="0"))
    path = predict(
        PredictConfig(run="a", cache=str(lacking.cache), runs=str(tmp_path), device="cpu")
    )
    out, table = capsys.readouterr().out, pq.read_table(path).to_pydict()
    assert table["key"] == [lacking.items.keys[row] for row in unknown]
    assert (
        "200 images of digits without a label\n1 of them could not be embedded (1 undecodable); "
        "they get no label:\n  row 27: 0027: undecodable" in out
    )
    assert table["status"][3] == "undecodable" and all(
        values[3] is None for name, values in table.items() if name not in ("key", "status")
    )
    assert sum(label is None for label in table["label"]) == 1 and "found accuracy" not in out


def test_nothing_is_left_where_every_label_was_seen(made: Made, tmp_path: Path) -> None:
    run(config(made, tmp_path, method="supervised", labels="all", seeds="0"))
    with pytest.raises(
        UsageError,
        match=r"nothing is left to be labelled. Name new images: make predict RUN=a IMAGES=…",
    ):
        predict(cached(made, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": ""}, "RUN is missing; there is: "),
        ({"model": "m"}, "RUN and MODEL are both given, one is wanted"),
        (
            {"run": "", "model": "my m"},
            "IMAGES is missing: a model folder has no images of its own. Type: make predict "
            "MODEL='my m' IMAGES=…",
        ),
        (
            {"run": "", "model": "m", "images": "x", "method": "mct"},
            "METHOD=mct: a model folder holds one method. Leave METHOD out",
        ),
        (
            {"run": "", "model": "m", "images": "digits"},
            "MODEL=m: there is no such folder. Make one: make export-model RUN=… TO=m",
        ),
        ({"to": "x.txt"}, "TO=x.txt: unknown format '.txt'; TO ends in .parquet or .csv"),
        ({"to": "/nowhere/x.csv"}, "TO=/nowhere/x.csv: /nowhere is no folder"),
        ({"method": "label-propagation"}, "METHOD=label-propagation keeps no model"),
        (
            {"images": "/nowhere", "method": "mct"},
            "IMAGES=/nowhere: there is no such folder.* IMAGES may be a single image, a folder of "
            "images",
        ),
        (
            {"images": "digits", "method": "mct"},
            "the view 'pixels' needs the file .*config.json, which is not there",
        ),
        ({"run": "memers"}, "RUN=memers: there is no run .*; did you mean 'members'$"),
    ],
)
def test_a_wrong_command_is_told_the_right_one(
    runs: Path, made: Made, changes: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        predict(cached(made, runs, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": ""}, "RUN is missing. Type: make export-model RUN=demo TO='my model'"),
        ({"to": ""}, "TO is missing. Type: make export-model RUN=a TO=model"),
        ({"to": "/nowhere/x"}, "TO=/nowhere/x: /nowhere is no folder"),
        ({"to": "."}, "TO=. is there already"),
        ({"method": "mtc"}, "did you mean 'mct'"),
    ],
)
def test_a_wrong_export_is_told_the_right_one(
    runs: Path, made: Made, changes: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export(
            ExportConfig(
                **{
                    "run": "a",
                    "to": "my model",
                    "cache": str(made.cache),
                    "runs": str(runs),
                    **changes,
                }
            )
        )


# ---------------------------------------------------------------- make predict, of new images

CLASSES = ("=1+1", "<b>two", "@three")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ of three digits under hostile names, one cut off; cache/ with two live views of it;
    runs/p."""
    from sklearn.datasets import load_digits

    folder, digits = tmp_path_factory.mktemp("live"), load_digits()
    for label, name in enumerate(CLASSES):
        (folder / "photos" / name).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == label][:40]):
            pixels = Image.fromarray((image * 15).astype(np.uint8)).resize((40, 32)).convert("RGB")
            pixels.save(folder / "photos" / name / f"{i}.{'jpg' if i % 2 else 'png'}")
    cut = folder / "photos" / CLASSES[2] / "7.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    for view in ("tiny-clip", "tiny-dinov2"):
        extract(
            ExtractConfig(
                view=view,
                data=str(folder / "photos"),
                cache=str(folder / "cache"),
                device="cpu",
                workers=0,
            )
        )
    run(
        TrainConfig(
            views="tiny-clip,tiny-dinov2",
            data=str(folder / "photos"),
            cache=str(folder / "cache"),
            runs=str(folder / "runs"),
            run="p",
            seeds="0..1",
            method="mct-graph",
            **QUICK,
        )
    )
    export(
        ExportConfig(
            run="p",
            to=str(folder / "model"),
            cache=str(folder / "cache"),
            runs=str(folder / "runs"),
        )
    )
    return folder


def of_live(live: Path, **changes: object) -> PredictConfig:
    return PredictConfig(
        **{
            "run": "p",
            "cache": str(live / "cache"),
            "runs": str(live / "runs"),
            "images": str(live / "photos"),
            "device": "cpu",
            "workers": 0,
            **changes,
        }
    )


def test_new_images_get_what_their_cached_rows_get(
    live: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nodes of the graph too. And from the model folder alone."""
    path = predict(of_live(live))
    out, table = capsys.readouterr().out, pq.read_table(path).to_pydict()
    model, cache, _ = of_run(live / "runs" / "p", cache=live / "cache")
    said = model(emb_of(cache, np.flatnonzero(cache.ok)))
    assert path == live / "runs" / "p" / "predicted-photos.parquet" and table["key"] == list(
        cache.items.keys
    )
    assert (
        f"1 of 120 images could not be read (1 truncated); they get no label:\n  row "
        f"{table['key'].index('@three/7.jpg')}: @three/7.jpg: truncated" in out
    )
    bad = table["key"].index("@three/7.jpg")
    assert (
        table["status"][bad] == "truncated"
        and table["label"][bad] is None
        and table["confidence_tiny-clip"][bad] is None
    )
    keep = [row for row in range(120) if row != bad]
    for name, expected in (
        ("confidence", said.confidence_n),
        ("margin", said.margin_n),
        ("confidence_tiny-dinov2", said.views_VnC[1].max(1)),
    ):
        np.testing.assert_allclose([table[name][row] for row in keep], expected, atol=2e-3)
    assert [table["label"][row] for row in keep] == [cache.items.classes[c] for c in said.choice_n]
    shutil.copytree(live / "model", tmp_path / "model")
    predict(
        of_live(
            live,
            run="",
            cache="/nowhere",
            runs="/nowhere",
            model=str(tmp_path / "model"),
            to=str(tmp_path / "x.parquet"),
        )
    )
    assert pq.read_table(tmp_path / "x.parquet").equals(pq.read_table(path))


def test_cells_that_a_spreadsheet_would_compute_are_quoted(live: Path, tmp_path: Path) -> None:
    predict(of_live(live, to=str(tmp_path / "x.csv")))
    with (tmp_path / "x.csv").open(newline="") as file:
        head, *rows = list(csv.reader(file))
    assert {row[head.index("label")] for row in rows} == {"", "'=1+1", "<b>two", "'@three"} and {
        row[0][:2] for row in rows
    } == {"'=", "<b", "'@"}
    assert all(
        0 < float(row[head.index("confidence")]) <= 1
        for row in rows
        if row[head.index("status")] == "ok"
    )
    from predict.table import write_table

    nasty = ["=x", "+x", "-x", "@x", "\tx", "\rx", "a,b", 'a"b', "a\nb", "plain"]
    write_table(tmp_path / "y.csv", {"label": nasty, "confidence": [0.5] * 10})
    with (tmp_path / "y.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == [
            f"'{cell}" for cell in nasty[:6]
        ] + nasty[6:]


def test_a_single_image_is_a_data_set_of_one(
    live: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, cache, splits = of_run(live / "runs" / "p", cache=live / "cache")
    key = cache.items.keys[splits[0].labelled[0]]
    image, about = live / "photos" / key, model.about
    table = pq.read_table(
        predict(of_live(live, images=str(image), to=str(tmp_path / "x.parquet")))
    ).to_pydict()
    out = capsys.readouterr().out
    assert "1 of 1 image was part of the training, 1 of them with a label" in out
    assert (
        f"expected accuracy {100 * judged(about['held_out'])[0]:.1f} %, give or take " in out
        and "is no measure here" in out
    )
    assert (
        f"\n{image.name}: {table['label'][0]} {table['confidence'][0]:.2f}, " in out
        and "1 row in" in out
        and "confidence         images" not in out
    )
    whole = pq.read_table(predict(of_live(live, to=str(tmp_path / "y.parquet")))).to_pydict()
    row = whole["key"].index(key)
    assert (
        table["key"] == [image.name]
        and table["label"] == [whole["label"][row]]
        and table["confidence"][0] == pytest.approx(whole["confidence"][row], abs=2e-3)
    )


@pytest.mark.parametrize(("part", "count"), [("test", 100), ("test", 0), ("val", 100), ("val", 0)])
def test_images_that_a_seed_has_learnt_from_tell_nothing_of_how_good_it_is(
    runs: Path, made: Made, part: str, count: int
) -> None:
    """Copies of labelled images among validation and test images, some or all of them."""
    from predict.from_run import _held_out

    model, cache, splits = opened(runs, made, "a", "supervised")
    rows, sha256 = getattr(splits[0], part), list(cache.items.sha256)
    for row in rows[: count or len(rows)]:
        sha256[row] = sha256[splits[1].labelled[0]]  # of another seed
    copied = dataclasses.replace(cache, items=dataclasses.replace(cache.items, sha256=sha256))
    bare = dataclasses.replace(model, temperature=1.0)
    left = rows[count:] if count else rows[:0]
    found = _held_out(bare, copied, splits)
    assert found.about["held_out"][part] == len(left)
    if part == "val":
        wanted = bare.calibrated(emb_of(cache, left), cache.items.label[left]) if count else bare
        assert found.temperature == wanted.temperature
        return
    assert found.temperature == model.temperature
    top1 = None
    if count:
        top1 = accuracy_score(cache.items.label[left], model(emb_of(cache, left)).choice_n)
    assert found.about["held_out"]["top1"] == (top1 and pytest.approx(top1))


def test_what_a_method_of_unlabelled_images_learnt_from_is_more(runs: Path, made: Made) -> None:
    from predict.from_run import _held_out

    for method, fewer in (("supervised", 0), ("mct", 7)):
        model, cache, splits = opened(runs, made, "a", method)
        sha256 = list(cache.items.sha256)
        for test, train in zip(splits[0].test[:7], splits[0].unlabelled[-7:], strict=True):
            sha256[test] = sha256[train]
        items = dataclasses.replace(cache.items, sha256=sha256)
        held_out = _held_out(model, dataclasses.replace(cache, items=items), splits)
        assert held_out.about["held_out"]["test"] == len(splits[0].test) - fewer


@pytest.mark.parametrize(
    ("new", "val", "test", "wanted"),
    [
        (
            True,
            50,
            40,
            "expected accuracy 80.0 %, give or take 11 points: the mean confidence, c",
        ),
        (True, 50, 40, "\ntest accuracy 75.0 %: what the 2 seeds together label right of the 40 "),
        (
            True,
            0,
            40,
            "expected accuracy unknown: the mean confidence, 80.0 %, is not calibrated, "
            "since every validation image is, byte for byte, also one that the training learnt",
        ),
        (False, 50, 40, "expected accuracy 75.0 %, give or take 13 points: what the 2 seeds tog"),
        (False, 50, 0, "expected accuracy unknown: every test image is, byte for byte, also one"),
    ],
)
def test_what_accuracy_to_expect_is_said_with_its_doubt(
    runs: Path, made: Made, new: bool, val: int, test: int, wanted: str
) -> None:
    from predict.table import figures, summary_text

    model, *_ = opened(runs, made, "a", "mct")
    held_out = {"val": val, "test": test, "top1": 0.75 if test else None}
    model = dataclasses.replace(model, about={**model.about, "held_out": held_out})
    sure_nC = np.full((20, 10), 0.2 / 9, np.float32)
    sure_nC[:, 0] = 0.8
    said = Opinions(sure_nC, np.stack([sure_nC, sure_nC]), np.ones(20, np.float32))
    shares = figures(model, said, None, new)
    assert wanted in summary_text(model, found_of(said), shares, new)
    known = shares.expected_accuracy
    assert (known is None) == (shares.expected_accuracy_doubt is None) == ("unknown" in wanted)
    assert (shares.test_accuracy, shares.test_images) == (held_out["top1"], test)


@pytest.mark.parametrize(
    ("confidence", "val", "test", "top1", "first", "words"),
    [
        (0.817, 12, 18, 7 / 18, 7 / 18, " 81.7 %, is not to be trusted here: calibrated on 12 val"),
        (0.9, 500, 500, 0.8, 0.8, "further above the test accuracy than both leave in doubt"),
        (0.817, 12, 18, 11 / 18, 0.817, "\ntest accuracy 61.1 %: what"),
        (0.3, 500, 500, 0.8, 0.3, "\ntest accuracy 80.0 %: what"),
        (0.3, 500, 500, 0.8, 0.3, "; it is less sure of these images, which may be of another"),
        (0.9, 0, 500, 0.2, None, "\ntest accuracy 20.0 %: what"),
    ],
)
def test_a_confidence_that_the_test_images_contradict_does_not_lead(
    runs: Path,
    made: Made,
    confidence: float,
    val: int,
    test: int,
    top1: float,
    first: float | None,
    words: str,
) -> None:
    from predict.table import figures, summary_text

    model, *_ = opened(runs, made, "a", "mct")
    held_out = {"val": val, "test": test, "top1": top1}
    model = dataclasses.replace(model, about={**model.about, "held_out": held_out})
    p_nC = np.full((20, 10), (1 - confidence) / 9, np.float64)
    p_nC[:, 0] = confidence
    said = Opinions(p_nC, np.stack([p_nC, p_nC]), np.ones(20, np.float32))
    shares = figures(model, said, None, new=True)
    assert shares.expected_accuracy == (first and pytest.approx(first))
    assert shares.mean_confidence == pytest.approx(confidence)
    text = summary_text(model, found_of(said), shares, new=True).splitlines()
    text = text[next(at for at, line in enumerate(text) if line.startswith("expected")) :]
    head = f"accuracy {100 * first:.1f} %, give or take " if first else "accuracy unknown: "
    assert text[0].startswith(f"expected {head}")
    assert words in "\n".join(text)


def test_how_many_images_the_training_had_and_how_many_with_a_label_is_said(
    live: Path, capsys: pytest.CaptureFixture
) -> None:
    from predict.label import are_new

    model, cache, splits = of_run(live / "runs" / "p", cache=live / "cache")
    named = cache.items.sha256[splits[0].labelled[0]]
    labelled = {cache.items.sha256[row] for split in splits for row in split.labelled}
    others = [
        cache.items.sha256[row]
        for row in splits[0].unlabelled
        if cache.items.sha256[row] not in {"", *labelled}
    ][:2]
    assert not are_new(model, [named, *others, "new"], cache, splits, told=True)
    assert (
        capsys.readouterr().out
        == f"{1 + len(others)} of 4 images were part of the training, 1 of them with a label\n"
        and len(others) == 2
    )
    assert are_new(model, [named, "new", "newer"], cache, splits, told=False) and not are_new(
        model, [named, "new"], cache, splits, told=False
    )
    assert capsys.readouterr().out == ""


def test_images_that_the_training_never_saw_are_expected_right_by_their_confidence(
    live: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """And so are those that no method of unlabelled images learnt from."""
    new = Image.open(live / "photos" / CLASSES[1] / "0.png").rotate(3)
    (tmp_path / "new").mkdir()
    new.save(tmp_path / "new" / "a.png")
    table = pq.read_table(
        predict(of_live(live, images=str(tmp_path / "new"), to=str(tmp_path / "x.parquet")))
    ).to_pydict()
    out = capsys.readouterr().out
    assert (
        f"expected accuracy {100 * table['confidence'][0]:.1f} %, give or take " in out
        and "part of the training" not in out
    )
    from train.methods import learns_unlabelled, with_model

    assert {name for name in with_model() if not learns_unlabelled(name)} == {
        "supervised",
        "concat",
    }


def test_images_are_looked_for_before_a_model_is_loaded(
    live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predict.from_run.of_run", None)
    with pytest.raises(UsageError, match=r"^IMAGES=/no/DATA=x: there is no such folder") as caught:
        predict(of_live(live, images="/no/DATA=x"))
    assert "DATA" not in str(caught.value).replace("/no/DATA=x", "")


def test_a_run_may_be_named_by_its_path(
    live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(live)
    by_path = of_live(
        live, run=str(live / "runs" / "p"), runs="/nowhere", images="", to=str(tmp_path / "x.csv")
    )
    assert predict(dataclasses.replace(by_path, run="runs/p/")) == tmp_path / "x.csv"
    assert (
        predict(of_live(live, run="p/", images="", to=str(tmp_path / "y.csv")))
        == tmp_path / "y.csv"
    )
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "y.csv").read_bytes()
    with pytest.raises(
        UsageError,
        match=r"RUN=.*/q: there is no run .*/runs/q; there is: p. Make one: make train VIEWS=… "
        r"DATA=… RUN=q",
    ):
        predict(dataclasses.replace(by_path, run=str(live / "runs" / "q")))
    (live / "runs" / "half").mkdir()
    shutil.copy(live / "runs" / "p" / "config.json", live / "runs" / "half")
    with pytest.raises(
        UsageError,
        match=r"no summary.json. Type the command that began it once more: make train "
        r"VIEWS=tiny-clip,tiny-dinov2 DATA=.*/photos "
        r"LABELS=3 SEEDS=0..1 METHOD=mct-graph RUN=half ARGS='",
    ):
        predict(of_live(live, run="half"))
    with pytest.raises(UsageError) as caught:
        predict(dataclasses.replace(by_path, run=str(live / "runs" / "hal")))
    assert caught.value.instead == {"RUN": str(live / "runs" / "half")}


def own_view(folder: Path) -> spec.ViewSpec:
    """A view of the user's own under a bundled name, with weights beside its TOML file."""
    folder.mkdir()
    text = (spec.SPECS / "tiny-clip.toml").read_text()
    assert 'path = "weights/tiny-clip"' in text
    (folder / "tiny-clip.toml").write_text(
        text.replace('path = "weights/tiny-clip"', 'path = "mine"')
    )
    return spec.load_spec(str(folder / "tiny-clip.toml"))


def test_weights_beside_a_users_own_file_come_before_those_of_the_bundled_one(
    tmp_path: Path,
) -> None:
    own = own_view(tmp_path / "own")
    view = ViewRecord(
        "tiny-clip",
        own.width,
        json.loads(durable.canonical_json(own.declared())),
        "",
        str(own.source),
        1,
    )
    assert spec_of(view).source == own.source
    own.source.unlink()  # the weights may lie there all the same
    assert spec_of(view).source == own.source
    bundled = spec.SPECS / "tiny-clip.toml"
    for known in ("", "/another/checkout/cache_specs/tiny-clip.toml", str(bundled)):
        assert spec_of(dataclasses.replace(view, spec_file=known)).source == bundled
    other = dataclasses.replace(view, name="mine")
    assert spec_of(other).source == own.source and spec_of(
        dataclasses.replace(other, spec_file="")
    ).source == Path("mine.toml")


def test_a_licence_is_stated_only_of_the_spec_that_says_it(tmp_path: Path) -> None:
    bundled, text = spec.load_spec("clip"), (spec.SPECS / "clip.toml").read_text()
    (tmp_path / "clip.toml").write_text(
        text.replace(f"crop = {bundled.preprocess.crop}", "crop = 200").replace(
            bundled.about.licence, "my own"
        )
    )
    own = spec.load_spec(str(tmp_path / "clip.toml"))
    view = ViewRecord(
        "clip", own.width, json.loads(durable.canonical_json(bundled.declared())), "", "", 1
    )
    assert licence_of(view) == bundled.about.licence
    changed = dataclasses.replace(view, spec=json.loads(durable.canonical_json(own.declared())))
    assert licence_of(changed) == "unknown: see its TOML file, or ask its authors"
    assert (
        licence_of(dataclasses.replace(changed, spec_file=str(own.source))) == "my own"
    )  # its own file says so
    assert licence_of(dataclasses.replace(view, spec_file=str(own.source))) == bundled.about.licence
    assert licence_of(ViewRecord("x", 3, {"backend": "imported"}, "", "", 1)).startswith("unknown")


def test_an_absolute_path_of_weights_stays_on_this_machine(live: Path, tmp_path: Path) -> None:
    from predict.bundle.folder import write_record

    model = open_model(live / "model")
    secret = {
        **model.views[0].spec,
        "weights": {**model.views[0].spec["weights"], "path": "/home/somebody/secret/clip"},
    }
    (tmp_path / "m").mkdir()
    write_record(
        dataclasses.replace(
            model,
            views=[
                dataclasses.replace(model.views[0], spec=secret, spec_file="/home/somebody/x.toml"),
                model.views[1],
            ],
        ),
        tmp_path / "m",
    )
    record = open_record(tmp_path / "m")
    assert (
        "somebody" not in (tmp_path / "m" / "model.json").read_text()
        and record["views"][0]["spec"]["weights"]["path"] == "clip"
    )
    assert record["views"][1]["spec"] == model.views[1].spec


def test_other_weights_are_refused_and_given_ones_are_found(live: Path, tmp_path: Path) -> None:
    own = spec.SPECS / "weights"
    for view in ("tiny-clip", "tiny-dinov2"):
        shutil.copytree(own / view, tmp_path / "w" / view)
    predict(of_live(live, weights=str(tmp_path / "w"), to=str(tmp_path / "x.csv")))
    with pytest.raises(
        UsageError,
        match=r"WEIGHTS=.*: of several views this is a folder with a folder, or one .safetensors "
        r"file, for each",
    ):
        predict(of_live(live, weights=str(tmp_path)))
    file = tmp_path / "w" / "tiny-dinov2" / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, file)
    with pytest.raises(
        StaleError,
        match=r"the weights of 'tiny-dinov2' are not those that the model was trained on: sha256 "
        r"5c3c94c6788b -> .*WEIGHTS=FOLDER",
    ):
        predict(
            of_live(
                live,
                weights=str(tmp_path / "w"),
                run="",
                model=str(live / "model"),
                to=str(tmp_path / "y.csv"),
            )
        )


def test_of_several_views_weights_are_found_by_what_they_are_or_said_to_lie_below(
    live: Path, tmp_path: Path
) -> None:
    """A view's own folder is that view's; and a message says what WEIGHTS is of several."""
    model, _, _ = of_run(live / "runs" / "p", cache=live / "cache")
    clip, dinov2, weights = *model.views, spec.SPECS / "weights"
    files = [found for _, found in backbones([clip, dinov2], str(weights / "tiny-dinov2"))]
    assert {path.parent for path in files[1].values()} == {weights / "tiny-dinov2"}
    own = dataclasses.replace(clip, name="own", spec_file=str(tmp_path / "own.toml"))
    found = backbones([own, dinov2], str(weights / "tiny-clip"))
    assert {path.parent for path in found[0][1].values()} == {weights / "tiny-clip"}
    with pytest.raises(
        UsageError, match=r"needs the file .*WEIGHTS=FOLDER holds own/ or own\.safet"
    ):
        backbones([own, dinov2], None)
    shutil.copytree(weights / "tiny-dinov2", tmp_path / "w" / "tiny-dinov2")
    with pytest.raises(UsageError, match=r"holds own/ or own\.safetensors; .*/w holds neither"):
        backbones([own, dinov2], str(tmp_path / "w"))
    shutil.copytree(weights / "tiny-clip", tmp_path / "w" / "own")
    assert len(backbones([own, dinov2], str(tmp_path / "w"))) == 2
    with pytest.raises(UsageError) as alone:
        backbones([own], None)
    assert "FOLDER" not in str(alone.value)


def test_images_that_are_none_and_views_that_were_imported(live: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.jpg").write_bytes(b"no image")
    with pytest.raises(
        DataQualityError,
        match=r"not one of the 1 images in .*/none could be embedded; are they images\? Nothing "
        r"is written",
    ):
        predict(of_live(live, images=str(tmp_path / "none")))
    with pytest.raises(UsageError, match="the view 'x' was imported, not computed from images"):
        spec_of(ViewRecord("x", 3, {"backend": "imported"}, "", "", 1))


@pytest.mark.parametrize("name", spec.view_names())
def test_a_recorded_spec_is_the_spec(name: str) -> None:
    loaded = spec.load_spec(name)
    recorded = json.loads(durable.canonical_json(loaded.declared()))
    again = spec_of(ViewRecord(name, loaded.width, recorded, "", "", 1))
    assert again.declared() == loaded.declared() and (again.source, again.name) == (
        loaded.source,
        name,
    )


@pytest.mark.many
def test_the_command(live: Path, tmp_path: Path, command: Callable) -> None:
    """As make runs it, in a fresh process."""
    done = command(
        "predict",
        "--model",
        live / "model",
        "--images",
        live / "photos",
        "--to",
        tmp_path / "x.csv",
        "--device",
        "cpu",
    )
    assert done.returncode == 0 and "expected accuracy" in done.stdout and done.stderr == "", (
        done.stderr
    )


def test_both_commands_answer_in_json(live: Path, tmp_path: Path, command: Callable) -> None:
    run_of = ("--run", "p", "--cache", live / "cache", "--runs", live / "runs", "--json")
    done = command(
        "predict",
        *run_of,
        "--images",
        live / "photos",
        "--to",
        tmp_path / "x.csv",
        "--device",
        "cpu",
    )
    found = json.loads(done.stdout)
    assert found["ok"] and (found["command"], found["file"], found["written"], found["rows"]) == (
        "predict",
        str(tmp_path / "x.csv"),
        True,
        120,
    )
    assert (
        found["status"] == {"ok": 119, "truncated": 1}
        and found["found_accuracy"] is None
        and 0 < found["expected_accuracy"] <= 1
    )
    assert (found["method"], found["views"], found["seeds"]) == (
        "mct-graph",
        ["tiny-clip", "tiny-dinov2"],
        [0, 1],
    ) and 0 <= found["views_disagree"] <= 1
    assert "rows in" in done.stderr
    again = command(
        "predict",
        *run_of,
        "--images",
        live / "photos",
        "--to",
        tmp_path / "x.csv",
        "--device",
        "cpu",
    )
    found = json.loads(again.stdout)
    assert (
        again.returncode == 2
        and not found["ok"]
        and "is there already" in found["error"]
        and again.stderr.splitlines()[-1].endswith(" --force'")
    )
    done = command("export-model", *run_of, "--to", tmp_path / "m")
    found = json.loads(done.stdout)
    assert (found["command"], found["folder"], found["method"]) == (
        "export-model",
        str(tmp_path / "m"),
        "mct-graph",
    ) and found["onnx_difference"] < 1e-4
    assert found["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "m").rglob("*") if path.is_file()
    )


# ---------------------------------------------------------------- how familiar an image is


def test_how_familiar_an_image_is_is_a_share_of_those_that_judged(runs: Path, made: Made) -> None:
    """Which the labels reach no better: as the graphs said in training, counted by hand."""
    model, cache, splits = opened(runs, made, "a", "mct-graph")
    graphs_of.cache_clear()
    graph = graphs_of(cache, tuple(splits), torch.device("cpu"))[-1]
    graphs_of.cache_clear()
    rows = splits[0].test
    found = model.familiar(emb_of(cache, rows))
    assert found is not None and found.dtype == np.float32
    expected, inner = [], []
    for e, (reach_n, known_n) in enumerate(
        zip(graph.reach(rows), graph.reach(splits[0].val), strict=True)
    ):
        x_nD = Features(cache.emb, graph.nodes, graph.share_E[e])
        like_n = (x_nD(rows) @ x_nD(graph.nodes).T).max(1)
        own_nM = x_nD(graph.nodes) @ x_nD(graph.nodes).T
        np.fill_diagonal(own_nM, -1)
        apart_n = own_nM.max(1)
        np.testing.assert_allclose(graph.apart(e), np.sort(apart_n), atol=1e-5)
        reached = np.array([(1 + (known_n <= one).sum()) / (1 + len(known_n)) for one in reach_n])
        near_by = np.array([(1 + (apart_n <= one).sum()) / (1 + len(apart_n)) for one in like_n])
        inner.append(reached)
        expected.append(np.minimum(1, np.minimum(reached / 0.9, near_by / 0.1)))
    near = np.abs(found - np.median(expected, 0)) < 4 / len(splits[0].val)
    assert near.mean() > 0.98  # of integer pixels, some neighbours are equally near
    for of_seed in inner:  # test images are like those that judged
        assert abs((of_seed < 0.2).mean() - 0.2) < 0.1
    assert (found < 0.2).mean() < 0.25
    noise = [np.random.default_rng(0).normal(size=emb.shape) for emb in emb_of(cache, rows)]
    strange = model.familiar([emb.astype(np.float16) for emb in noise])
    assert strange is not None and (strange < 0.05).mean() > 3 * (found < 0.05).mean()


def test_an_exported_model_knows_it_too_and_others_do_not(
    runs: Path, made: Made, folder: Path
) -> None:
    model, cache, splits = opened(runs, made, "a", "mct-graph")
    emb_V = emb_of(cache, splits[0].test)
    found = open_model(folder).familiar(emb_V)
    assert found is not None and np.array_equal(found, model.familiar(emb_V))
    assert opened(runs, made, "a", "mct")[0].familiar(emb_V) is None
    bare = [dataclasses.replace(one, sights_E=[]) for one in model.experts]
    assert dataclasses.replace(model, experts=bare).familiar(emb_V) is None  # of a run of before


def test_strange_images_are_counted(runs: Path, made: Made) -> None:
    from predict.table import figures, summary_text

    model, *_ = opened(runs, made, "a", "mct")
    said = Opinions(np.eye(10, dtype=np.float32), np.empty((0, 10, 10)), np.ones(10, np.float32))
    familiar = np.array([0.01, 0.049, 0.05, *[0.9] * 7], np.float32)
    found = dataclasses.replace(found_of(said), familiar_n=familiar)
    told = summary_text(model, found, figures(model, said, None, new=True), new=True)
    wanted = "2 of 10 images (20.0 %) are less familiar than 95 % of the labelled ones"
    assert wanted in told


def test_with_a_risk_the_unsure_keep_no_label(
    runs: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """All else stands there, and the summary says what is promised."""
    found: dict = {}
    path = predict(cached(made, runs, to=str(tmp_path / "x.parquet"), risk="20%"), found)
    out = capsys.readouterr().out
    table, whole = pq.read_table(path), pq.read_table(predict(cached(made, runs)))
    unsure = np.array(table["status"].to_pylist()) == "unsure"
    told = re.search(r"those of confidence ([0-9.]+) and more", out)
    assert told is not None, out
    least = float(told[1])
    sure = table["confidence"].to_numpy()
    assert 0 < unsure.sum() < len(unsure) and sure[unsure].max() < least + 1e-3
    assert sure[~unsure].min() > least - 1e-3
    assert f"{(~unsure).sum():,} of {len(unsure):,} images (" in out
    assert "at most 20 % are wrong, with 90 % certainty" in out
    assert "part of the training, which makes the promise a little too good" in out
    assert found["status"] == {"ok": int((~unsure).sum()), "unsure": int(unsure.sum())}
    assert found["kept"]["risk"] == 0.2 and found["kept"]["confidence"] == pytest.approx(
        least, abs=1e-3
    )
    labels, all_labels = table["label"].to_pylist(), whole["label"].to_pylist()
    for label, other, none in zip(labels, all_labels, unsure, strict=True):
        assert label == (None if none else other)
    assert table["second"].equals(whole["second"]) and table["status"].null_count == 0
    with pytest.raises(UsageError, match="RISK=20 is no share: give"):
        predict(cached(made, runs, risk="20"))


def graphs_with(copy: Path, change: Callable[[dict], dict]) -> dict:
    """The record of a folder whose graphs were changed, with their new digests."""
    record = open_record(copy)
    for path in sorted(copy.glob("graphs/*.safetensors")):
        path.write_bytes(save(change(load_file(path))))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = str(path.relative_to(copy))
        record["files"][name] = {"bytes": path.stat().st_size, "sha256": digest}
    return record


def test_a_folder_of_format_2_is_read(runs: Path, made: Made, folder: Path, tmp_path: Path) -> None:
    """It knows neither class names nor shares of views, nor what is familiar or how sure it was."""
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    plain = ("nodes", "member", "told")
    record = graphs_with(copy, lambda parts: {key: parts[key] for key in plain})
    del record["named"], record["about"]["held_out"]["judged"], record["about"]["taken"]
    (copy / "model.json").write_bytes(durable.sealed({**record, "format": 2}))
    found = open_model(copy)
    model, cache, splits = opened(runs, made, "a", "mct-graph")
    emb_V = emb_of(cache, splits[0].test)
    equal = []
    for one in model.experts:
        factor = torch.ones_like(one.factor_ED)
        equal.append(dataclasses.replace(one, factor_ED=factor, sights_E=[]))
    expected = dataclasses.replace(model, experts=equal)
    np.testing.assert_allclose(found(emb_V).joint_nC, expected(emb_V).joint_nC, atol=1e-6)
    assert found.familiar(emb_V) is None and "judged" not in found.about["held_out"]


def test_a_folder_that_knows_what_is_familiar_to_some_seeds_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    last = [f"sight.1.{key}" for key in Sight._fields]
    record = graphs_with(copy, lambda parts: {k: v for k, v in parts.items() if k not in last})
    (copy / "model.json").write_bytes(durable.sealed(record))
    with pytest.raises(IntegrityError, match="a graph knows what is familiar to 1 of 2 seeds"):
        open_model(copy)
