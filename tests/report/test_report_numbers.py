"""The numbers of a report against scikit-learn's, against the run's own summary, and counted by
hand; and what was changed afterwards is refused."""

import dataclasses
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pixels_and_edges, reseal, write_views

from base import durable
from base.errors import IntegrityError, StaleError
from cache_specs.succession import write_items
from report.run import Run, read_predictions, read_run
from report.sections.calibration import agreement, binned, classes, recall
from train.command import run
from train.config import TrainConfig
from train.methods import METHODS
from train.run.summary import told_apart


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run on the digits, of two seeds, whose labelled images differ."""
    from sklearn.datasets import load_digits

    from extract.data.datasets import build_items, open_dataset

    folder = tmp_path_factory.mktemp("short")
    items = build_items(open_dataset("digits", folder))
    dataset = write_items(folder / "cache", items, "digits")
    named = write_views(
        folder,
        dataset,
        items.fingerprint,
        pixels_and_edges(load_digits().images.astype(np.float32)),
    )
    config = TrainConfig(
        views=named,
        data="digits",
        labels="1",
        seeds="3,5",
        method="supervised,concat,label-propagation,mct-graph",
        run="short",
        warmup=15,
        cotrain=10,
        cache=str(folder / "cache"),
        runs=str(folder / "runs"),
        device="cpu",
    )
    run(config)
    return config


@pytest.fixture(scope="module")
def found(short: TrainConfig) -> Run:
    return read_run(Path(short.runs) / "short")


def test_what_is_read_is_what_the_summary_scored(found: Run) -> None:
    """Every method, split, seed and view: the accuracies of the rows that a page is made
    of are those of the table."""
    for method, result in found.summary["methods"].items():
        for split, part in found.parts[method].items():
            assert part.right_En.mean(1) == pytest.approx(
                result["joint"][f"{split}_top1"]["values"], abs=1e-6
            ), (method, split)
        part, views = found.parts[method]["test"], result["views"]
        own = [view for view in found.summary["views"] if view in views]
        for view, own_En in zip(own, part.own_VEn, strict=True):
            assert (own_En == part.label_En).mean(1) == pytest.approx(
                views[view]["test_top1"]["values"], abs=1e-6
            )
    assert found.method == "mct-graph" and len(found.parts["concat"]["val"].own_VEn) == 0
    assert len(found.parts["supervised"]["val"].own_sure_VEn) == 0, "of the shown method alone"


def test_a_run_of_before_has_choices_of_the_shown_method_alone(found: Run, tmp_path: Path) -> None:
    """Its predictions have no column pred_VIEW, its lines no error: a dash."""
    import pyarrow.parquet as pq

    from report.pairs import differences

    file, path = pq.ParquetFile(found.folder / "predictions.parquet"), tmp_path / "old.parquet"
    names = [name for name in file.schema_arrow.names if not name.startswith("pred_")]
    schema = file.read_row_group(0, columns=names).schema
    with pq.ParquetWriter(path, schema) as writer:
        for group in range(file.num_row_groups):
            writer.write_table(file.read_row_group(group, columns=names))
    parts = read_predictions(path, found.summary["views"], found.method, 2)
    shown, now = parts[found.method]["test"], found.parts[found.method]["test"]
    assert (shown.own_VEn == now.own_VEn).mean() > 0.999  # float16 makes ties
    assert len(parts["supervised"]["test"].own_VEn) == 0
    for gain in differences([dataclasses.replace(found, parts=parts), found]):
        if gain.what == "joint":
            assert gain.text == "+0.0 ± 0.0 (p = 1.000), 2 seeds"
        elif gain.method == METHODS[found.method].title:
            assert gain.p is not None and abs(gain.mean) < 0.5, "but for the ties of float16"
        else:
            assert gain.text == "+0.0 ± –, 2 seeds" and gain.p is None


def test_no_row_is_in_bold_where_nothing_tells_the_methods_apart(found: Run) -> None:
    """And the page says so before the table."""
    from report.sections.scores import scores

    parts = {}
    for method, each in found.parts.items():
        part = each["test"]
        few = dataclasses.replace(part, label_En=part.label_En[:, :9], pred_En=part.pred_En[:, :9])
        parts[method] = {**each, "test": few}
    text = str(scores(dataclasses.replace(found, parts=parts)).body)
    words = "THIS TABLE CANNOT TELL THE METHODS APART"
    assert text.index(words) < text.index("<table") and 'class="marked"' not in text
    right = {method: each["test"].right_En for method, each in found.parts.items()}
    plain = str(scores(found).body)
    assert (words in plain) != told_apart(right) and ('class="marked"' in plain) == told_apart(
        right
    )


def test_every_row_of_the_predictions_is_where_it_belongs(found: Run) -> None:
    """Row by row, by their ids, with pyarrow and a dictionary."""
    import pyarrow.parquet as pq

    rows = pq.read_table(found.folder / "predictions.parquet").to_pylist()
    for method, parts in found.parts.items():
        for split, part in parts.items():
            for e, seed in enumerate(found.summary["seeds"]):
                mine = {
                    row["id"]: row
                    for row in rows
                    if (row["method"], row["split"], row["seed"]) == (method, split, seed)
                }
                keys = part.keys_E[e]
                assert sorted(mine) == sorted(keys) and len(keys) == part.label_En.shape[1]
                for i, key in enumerate(keys):
                    row = mine[key]
                    assert (row["label"], row["pred"], np.float32(row["confidence"])) == (
                        part.label_En[e, i],
                        part.pred_En[e, i],
                        part.sure_En[e, i],
                    )
                    for v, view in enumerate(found.views if len(part.own_VEn) else ()):
                        assert row[f"pred_{view}"] == part.own_VEn[v, e, i]
                        prob_C = np.array(row[f"prob_{view}"], np.float16)
                        assert prob_C[part.own_VEn[v, e, i]] == prob_C.max()
                        if len(part.own_sure_VEn):
                            assert prob_C.max() == np.float16(part.own_sure_VEn[v, e, i])


def test_reliability_is_scikit_learns_and_adds_up_to_the_ece(found: Run) -> None:
    from sklearn.calibration import calibration_curve

    from train.algorithm.evaluate import ece

    part = found.parts["mct-graph"]["test"]
    at, share, count = binned(part.sure_En.ravel(), part.right_En.ravel())
    right, sure = calibration_curve(
        part.right_En.ravel(), part.sure_En.ravel().astype(float), n_bins=15, strategy="uniform"
    )
    assert (
        share[count > 0] == pytest.approx(right)
        and at[count > 0] == pytest.approx(sure)
        and count.sum() == part.sure_En.size
    )
    for e in range(2):
        at, share, count = binned(part.sure_En[e], part.right_En[e])
        gap = np.nansum(count * np.abs(share - at)) / count.sum()
        assert gap == pytest.approx(
            found.summary["methods"]["mct-graph"]["joint"]["test_ece"]["values"][e], abs=1e-5
        )
    edges = np.array(
        [1 / 15, np.nextafter(1 / 15, 1), 1.0, 0.0]
    )  # (b, b + 1] belongs to bin b, and 0 to the first
    assert binned(edges, np.ones(4, bool))[2].tolist() == [2, 1, *[0] * 11, 0, 1]
    logits_nC = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.1, 0.0, 0.0]])
    p_nC = torch.softmax(logits_nC, -1)
    at, share, count = binned(p_nC.max(1).values.numpy(), np.array([True, False, True]))
    assert np.nansum(count * np.abs(share - at)) / 3 == pytest.approx(
        ece(logits_nC[None], torch.tensor([0, 0, 0])).item()
    )


def test_recall_is_scikit_learns_also_of_classes_that_are_not_there() -> None:
    from sklearn.metrics import recall_score

    chance = np.random.default_rng(0)
    label_n, pred_En = chance.choice([0, 1, 2, 4], 300), chance.integers(0, 6, (3, 300))
    found = recall(np.tile(label_n, (3, 1)), pred_En, 6)
    for e in range(3):
        assert found[e, [0, 1, 2, 4]] == pytest.approx(
            recall_score(label_n, pred_En[e], labels=[0, 1, 2, 4], average=None)
        )
    assert np.isnan(found[:, [3, 5]]).all()


def test_the_table_of_classes_is_scikit_learns(found: Run) -> None:
    from sklearn.metrics import confusion_matrix, precision_score, recall_score

    names = [f"digit {c}" for c in range(10)]
    rows = cells(str(classes(found, names).body))
    part, supervised = found.parts["mct-graph"]["test"], found.parts["supervised"]["test"]
    every = part.label_En.ravel(), part.pred_En.ravel()
    precise, mixed = precision_score(*every, average=None), confusion_matrix(*every)
    assert (
        rows[0][:6]
        == ["class", "test images", "joint, top-1 in %", "precision in %", "pixels", "edges"]
        and len(rows) == 11
    )
    for c, row in enumerate(rows[1:]):
        joint = 100 * np.array(
            [recall_score(part.label_En[0], pred_n, average=None)[c] for pred_n in part.pred_En]
        )
        own = [
            100
            * np.mean(
                [recall_score(part.label_En[0], pred_n, average=None)[c] for pred_n in own_En]
            )
            for own_En in part.own_VEn
        ]
        late = 100 * np.mean(
            [
                recall_score(supervised.label_En[0], pred_n, average=None)[c]
                for pred_n in supervised.pred_En
            ]
        )
        wrong = np.where(np.arange(10) == c, 0, mixed[c])
        assert row[:4] == [
            names[c],
            str((part.label_En[0] == c).sum()),
            f"{joint.mean():.1f} ± {joint.std(ddof=1):.1f}",
            f"{100 * precise[c]:.1f}",
        ]
        assert (
            row[4:6] == [f"{value:.1f}" for value in own]
            and row[rows[0].index("supervised")] == f"{late:.1f}"
        )
        assert row[-1] == (
            f"{names[wrong.argmax()]} ({100 * wrong.max() / mixed[c].sum():.0f} %)"
            if wrong.any()
            else ""
        )


def test_agreement_is_what_counting_says(found: Run) -> None:
    part = found.parts["mct-graph"]["test"]
    (first, second), label_En = part.own_VEn, part.label_En
    text = str(agreement(found).body)
    rescued = [
        ((second == label_En) & (first != label_En)).sum() / (first != label_En).sum(),
        ((first == label_En) & (second != label_En)).sum() / (second != label_En).sum(),
    ]
    assert all(f"{100 * share:.1f}" in text for share in [(first == second).mean(), *rescued])
    counts = [
        int(sum((own == part.pred_En)[e, i] for own in part.own_VEn))
        for e in range(2)
        for i in range(part.label_En.shape[1])
    ]
    shares = [100 * counts.count(k) / len(counts) for k in (2, 1, 0)]
    assert [row[1] for row in cells(text) if row[0].endswith("of 2")] == [
        f"{share:.1f}" for share in shares
    ]


def test_unlabelled_are_the_images_that_no_seed_had_a_label_of(
    found: Run, short: TrainConfig
) -> None:
    from report.sections.galleries import look

    seen = look(found, Path(short.cache), Path("data"), "cpu")
    said = [
        set((found.folder / "splits" / f"seed-{seed}.labelled.txt").read_text().split())
        for seed in (3, 5)
    ]
    keys, rows = seen.cache.items.keys, set(seen.rest.rows.tolist())
    assert said[0] != said[1] and len(said[0]) == 10
    parts = found.parts["mct-graph"]
    held = set(parts["val"].keys_E[0]) | set(parts["test"].keys_E[0])
    assert {keys[row] for row in rows} == set(keys) - held - said[0] - said[1]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("predictions.parquet", "sorted"),
        ("predictions.parquet", "flipped"),
        ("metrics.jsonl", "flipped"),
        ("splits/seed-5.labelled.txt", "flipped"),
        ("summary.json", "edited"),
        ("config.json", "edited"),
        ("environment.json", "flipped"),
        ("predictions.parquet", "gone"),
        ("metrics.jsonl", "gone"),
    ],
)
def test_what_was_changed_after_the_run_is_refused_by_name(
    short: TrainConfig, tmp_path: Path, name: str, change: str
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(Path(short.runs) / "short", folder)
    path = folder / name
    if change == "sorted":
        import pyarrow.parquet as pq

        pq.write_table(pq.read_table(path).sort_by("confidence"), path)
    elif change == "gone":
        path.unlink()
    elif change == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_text(
            path.read_text().replace(
                *('"lr": ', '"lr": 1') if "config" in name else ('"mean": 0.', '"mean": 0.9'), 1
            )
        )
    with pytest.raises(
        IntegrityError, match=rf"{Path(name).name}.*(changed afterwards|damaged|cannot be read)"
    ):
        read_run(folder)


def test_the_command_of_the_run_makes_what_was_changed_again(
    short: TrainConfig, found: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(found.folder, folder)
    for name in ("predictions.parquet", "splits/seed-5.labelled.txt"):
        (folder / name).write_bytes(b"")
    (folder / "summary.json").unlink()
    run(dataclasses.replace(short, runs=str(tmp_path)))
    again = read_run(folder)
    assert (
        again.summary["methods"] == found.summary["methods"]
        and again.summary["files"] == found.summary["files"]
        and again.records == found.records
    )


def test_a_damaged_probe_gets_no_score(short: TrainConfig, found: Run, tmp_path: Path) -> None:
    """Also where summary.json, which knows its digest, was deleted as a message may ask for."""
    folder = tmp_path / "short"
    shutil.copytree(found.folder, folder)
    path = folder / "probes" / "mct-graph" / "edges.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 64
    path.write_bytes(data)
    (folder / "summary.json").unlink()
    with pytest.raises(
        IntegrityError,
        match=(
            r"the probe .*mct-graph/edges.safetensors cannot be read \(it "
            r"has changed since it was written\)"
        ),
    ):
        run(dataclasses.replace(short, runs=str(tmp_path)))


def test_an_edited_configuration_is_refused_also_by_the_training(
    short: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(Path(short.runs) / "short", folder)
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"lr": ', '"lr": 1')
    )
    with pytest.raises(IntegrityError, match=r"config.json is damaged .*use another RUN"):
        run(dataclasses.replace(short, runs=str(tmp_path)))
    record = json.loads((Path(short.runs) / "short" / "config.json").read_text())
    (folder / "config.json").write_bytes(
        durable.sealed({**record, "settings": {**record["settings"], "lr": 1.0}})
    )
    with pytest.raises(StaleError, match=r"lr: 1.0 -> "):
        run(dataclasses.replace(short, runs=str(tmp_path)))


def test_a_run_that_is_resealed_is_read(short: TrainConfig, found: Run, tmp_path: Path) -> None:
    """So the refusals above are the digests', not some other accident's."""
    folder = tmp_path / "short"
    shutil.copytree(found.folder, folder)
    (folder / "splits" / "seed-5.labelled.txt").write_text("0001\n")
    reseal(folder)
    assert read_run(folder).summary["methods"] == found.summary["methods"]


def cells(text: str) -> list[list[str]]:
    """The texts of all rows of a page's tables."""
    rows: list[list[str]] = []

    class Reader(HTMLParser):
        inside = False

        def handle_starttag(self, tag: str, attributes: list) -> None:
            if tag == "tr":
                rows.append([])
            if tag in ("td", "th"):
                rows[-1].append("")
                self.inside = True

        def handle_endtag(self, tag: str) -> None:
            self.inside = self.inside and tag not in ("td", "th")

        def handle_data(self, data: str) -> None:
            if self.inside:
                rows[-1][-1] += data

    Reader().feed(text)
    return rows
