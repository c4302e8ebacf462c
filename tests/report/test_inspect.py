"""make inspect: its measures against independent computations, planted faults, and the page."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from conftest import Made, write_view
from PIL import Image

from base.errors import UsageError
from cache_specs.items import Items
from cache_specs.succession import write_items
from extract.config import ExtractConfig
from extract.run import run as extract
from report.config import InspectConfig
from report.inspect import measures
from report.inspect.command import command as inspect
from report.inspect.findings import _copies, differ_text, look, verdict
from report.inspect.measures import Overlap
from report.inspect.run import run
from report.inspect.text import _leaks

CHANCE = np.random.default_rng(0)


# ---------------------------------------------------------------- the measures


def test_dimensions_in_chunks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "CHUNK", 37)
    monkeypatch.setattr(measures.chunks, "__defaults__", (37,))
    x = (CHANCE.normal(size=(500, 20)) * np.linspace(1, 5, 20) + 100).astype(np.float16)
    x[:, 3], x[:, 7] = 2.5, 100 + 1e-1 * (np.arange(500) == 0)
    x[:, 9] = 0
    x[4] = 0
    x[4, 3] = 2.5
    rows = np.flatnonzero(np.arange(500) != 17)
    seen, wide = measures.dimensions(x, rows), x[rows].astype(np.float64)
    np.testing.assert_allclose(seen.mean_D, wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(seen.std_D, wide.std(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(seen.norm_n, np.linalg.norm(wide, axis=1), rtol=1e-12)
    assert seen.constant.tolist() == [3, 9] and seen.weak.tolist() == []
    eigenvalues = np.linalg.eigvalsh(np.cov(wide.T))
    assert seen.effective == pytest.approx(
        eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-6
    )
    x = CHANCE.normal(size=(300, 8)).astype(np.float16)
    x[:, 2] = 1e-4 * x[:, 2]
    assert measures.dimensions(x, np.arange(300)).weak.tolist() == [2]


def test_neighbours_and_their_vote_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

    monkeypatch.setattr(measures.chunks, "__defaults__", (64,))
    monkeypatch.setattr(measures, "QUERIES", 50)
    x, y = CHANCE.normal(size=(700, 24)).astype(np.float16), CHANCE.integers(0, 4, 700)
    bank, asked = np.arange(0, 700, 2), np.arange(1, 700, 4)
    mean = x.astype(np.float64).mean(0)
    units = x.astype(np.float64) - mean
    cosine, row = measures.neighbours(x, mean, bank, asked, 5)
    oracle = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(units[bank], y[bank])
    distance, found = oracle.kneighbors(units[asked])
    assert (bank[found] == row).mean() > 0.999
    np.testing.assert_allclose(cosine, 1 - distance, atol=1e-5)
    assert (measures.vote(y, row, 4) == oracle.predict(units[asked])).mean() > 0.99
    own = measures.neighbours(x, mean, bank, bank, 3)[1]
    assert (
        own
        == bank[
            NearestNeighbors(n_neighbors=3, metric="cosine", algorithm="brute")
            .fit(units[bank])
            .kneighbors()[1]
        ]
    ).mean() > 0.999
    assert measures.neighbours(x, mean, bank[:2], bank[:2], 5)[1].tolist() == [[bank[1]], [bank[0]]]


def direct_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimator of Song et al. 2012, equation 5, term by term."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    return (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    ) / (n * (n - 3))


def test_cka_is_the_formula_1_for_a_rotation_and_0_for_noise() -> None:
    x, y = CHANCE.normal(size=(60, 7)), CHANCE.normal(size=(60, 300))
    y[:, :7] += 3 * x
    assert measures.cka(x, y) == pytest.approx(
        direct_hsic(x, y) / np.sqrt(direct_hsic(x, x) * direct_hsic(y, y)), rel=1e-9
    )
    turned = 5 * x @ np.linalg.qr(CHANCE.normal(size=(7, 7)))[0] + 2
    assert measures.cka(x, turned) == pytest.approx(1, abs=1e-9)
    noise = [
        measures.cka(CHANCE.normal(size=(100, 500)), CHANCE.normal(size=(100, 500)))
        for _ in range(30)
    ]
    assert (
        abs(np.mean(noise)) < 0.02 and max(map(abs, noise)) < 0.1
    )  # the biased one would be at 0.8


def test_the_overlap_of_errors_is_scikit_learns_kappa() -> None:
    from sklearn.metrics import cohen_kappa_score

    one, two = CHANCE.random(400) < 0.7, CHANCE.random(400) < 0.6
    two[:100] = one[:100]
    seen = measures.overlap(one, two)
    assert (
        seen.n == 400
        and seen.none == int((~one & ~two).sum())
        and seen.kappa == pytest.approx(cohen_kappa_score(one, two))
    )
    assert measures.overlap(one, one).kappa == 1 and measures.overlap(one, one).q == 1
    assert Overlap(60, 20, 15, 5).q == 0 and Overlap(60, 20, 15, 5).kappa == pytest.approx(0)
    drawn = [
        measures.overlap(CHANCE.random(300) < 0.7, CHANCE.random(300) < 0.7).kappa
        for _ in range(300)
    ]
    assert np.std(drawn) == pytest.approx(Overlap(147, 63, 63, 27).error, rel=0.2)


ONE, TWO = (
    {"view": "a", "knn": 0.7},
    {"view": "b", "knn": 0.65},
)


@pytest.mark.parametrize(
    ("one", "alike", "seen", "worth", "words"),
    [
        (
            ONE,
            0.5,
            Overlap(180, 100, 80, 40),
            "worth trying",
            (
                "of 100 images that a gets wrong b gets 67 right, "
                "and of 100 that b gets wrong a gets 71"
            ),
        ),
        (ONE, 0.99, Overlap(180, 100, 80, 40), "no", "too alike: CKA 0.99"),
        (ONE, 0.5, Overlap(280, 6, 8, 106), "no", "kappa of their errors 0.9"),
        (
            ONE,
            0.5,
            Overlap(260, 60, 3, 77),
            "doubtful",
            "b is right where a is wrong on 3 of 400 labelled images only",
        ),
        (
            {**ONE, "knn": 0.02},
            0.1,
            Overlap(5, 9, 9, 6),
            "doubtful",
            "29 labelled images are too few to say: one of them is 3 points. a is right on 2.0% "
            "and b on 65.0%.",
        ),
        (
            {**ONE, "knn": 0.12},
            0.1,
            Overlap(30, 20, 230, 120),
            "no",
            "a knows next to nothing of these classes",
        ),
    ],
)
def test_the_verdict(one: dict, alike: float, seen: Overlap, worth: str, words: str) -> None:
    found = verdict(one, TWO, alike, seen, 0.1)
    assert found[0] == worth and words in found[1], found


def test_both_views_that_know_nothing_are_named() -> None:
    worth, words = verdict(
        {**ONE, "knn": 0.12}, {**TWO, "knn": 0.09}, 0.1, Overlap(10, 20, 20, 350), 0.1
    )
    assert worth == "no" and words.startswith(
        "a and b know next to nothing of these classes: "
        "the neighbours are right on 12.0% and 9.0% of 400"
    )


# ---------------------------------------------------------------- planted faults


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Path:
    """The digits' views with a constant dimension, a test image that is byte for byte a training
    one, and near-duplicates across the border."""
    folder, items = tmp_path_factory.mktemp("planted"), made.items
    sha256, emb = (
        list(items.sha256),
        {name: made.emb[name].astype(np.float16) for name in ("pixels", "edges")},
    )
    where = {
        name: [row for row, split in enumerate(items.split) if split == name]
        for name in ("train", "val", "test")
    }
    sha256[where["test"][0]] = sha256[where["train"][0]]
    for view in emb.values():
        view[where["test"][0]] = view[where["train"][0]]
        for k in (3, 4, 5):  # of the same image, decoded a little differently
            view[where["test"][k]] = view[where["train"][k]] * 1.002
        view[where["val"][6]] = view[where["test"][6]] * 0.999
    emb["edges"][where["test"][8]] = emb["edges"][
        where["train"][8]
    ]  # in one view alone: not the same image
    emb["pixels"][where["train"][20]] = 0
    emb["edges"][:, 5] = 0.25
    known = Items(
        "digits",
        "digits",
        [f"{i:04d}<b>" for i in range(len(sha256))],
        items.label,
        items.split,
        items.size,
        sha256,
        items.classes,
    )
    dataset = write_items(folder / "cache", known)
    for name, view in emb.items():
        write_view(dataset, made.tomls[name], view, known.fingerprint)
    return folder


def test_copies_stand_below_their_own_line() -> None:
    def group(*keys: str) -> list[dict[str, str]]:
        return [{"role": "labelled", "key": key} for key in keys]

    copies = {"images": 2, "groups": 1, "crossing": {}, "labels_differ": 1, "labels_not_counted": 0}
    copies["shown"] = [group("one/copy.png", "zero/1.png")]
    near = {"least": [0.99], "asked": 1, "held_out": 1, "crossing": {"test in val": 7}}
    near["shown"] = [[*group(f"{n}.png", f"{n}b.png"), [1.0]] for n in range(7)]
    lines = _leaks(copies, near)
    assert lines[0].startswith("exact copies: 2 images in 1 group; ")
    assert lines[1] == "  labelled: one/copy.png   labelled: zero/1.png"
    assert lines[2].startswith("near-duplicates in all views ")
    assert lines[3] == "  labelled: 0.png   labelled: 0b.png" and len(lines) == 7


def test_planted_faults_are_found_and_nothing_else(
    planted: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found: dict = {}
    settings = InspectConfig(
        made.views("pixels", "edges"),
        "digits",
        "10",
        cache=str(planted / "cache"),
        to=str(tmp_path / "new" / "page.html"),
    )
    inspect(settings, found)
    pixels, edges = found["views"]
    flat = {
        name: set(np.flatnonzero(np.ptp(made.emb[name], 0) == 0).tolist())
        for name in ("pixels", "edges")
    }
    assert (
        set(pixels["constant"]) == flat["pixels"] and set(edges["constant"]) == {5} | flat["edges"]
    )
    assert pixels["norm"]["zero"] == 1 and pixels["norm"]["odd_count"] >= 1
    assert (
        found["copies"]["groups"] == 1
        and sum(found["copies"]["crossing"].values()) == 1
        and found["copies"]["labels_differ"] is None
        and found["copies"]["labels_not_counted"] == 1
    )
    assert found["near"]["asked"] == 710 and found["near"]["pairs"] == 4, found["near"]
    assert (
        sum(
            count for name, count in found["near"]["crossing"].items() if name.startswith("test in")
        )
        == 4
        and found["near"]["crossing"]["test in val"] == 1
    )
    assert 0.7 < pixels["knn"] < 1 and 0.5 < edges["knn"] < 1 and found["pairs"][0]["n"] == 455
    assert (
        found["pairs"][0]["worth"] == "no"
        and "pixels and edges are too alike" in found["pairs"][0]["verdict"]
    )  # gradients of the pixels
    said = capsys.readouterr().out
    assert (
        "exact copies: 2 images in 1 group; across the border: 1 test in " in said
        and "; groups with different labels: not counted (the labels of test" in said
        and str(tmp_path / "new" / "page.html") in said
    )
    assert (
        "Only a run says whether co-training helps: make train VIEWS=" in said
        and "LABELS=10" in said
    )
    page = (tmp_path / "new" / "page.html").read_text()
    assert (
        "<b>" not in page
        and "&lt;b&gt;" in page
        and not re.search(r"(?:src|href)=\"(?!data:|#)", page)
        and len(page) < 500_000
    )
    for words in (
        "Worth co-training?",
        "near-duplicates across the border",
        "not counted (the labels of test and unlabelled images are not looked at)",
        "constant dimensions",
        "linear CKA, debiased",
    ):
        assert words in page


def test_the_labels_of_the_test_images_change_nothing(
    planted: Path, made: Made, tmp_path: Path
) -> None:
    from train.data.reader import open_cache
    from train.data.splits import make_split

    cache = open_cache(planted / "cache", "digits", made.views("pixels", "edges").split(","))
    split = make_split(cache.items, cache.ok, "10", 0)
    before = look(cache, split)
    label = cache.items.label.copy()
    label[split.test] = (label[split.test] + 1) % 10
    other = replace(cache, items=replace(cache.items, label=label))
    assert json.dumps(look(other, split)) == json.dumps(before)
    label[split.val] = (label[split.val] + 1) % 10
    assert json.dumps(look(other, split)) != json.dumps(before)


@pytest.mark.parametrize(
    ("groups", "differ", "unseen", "words"),
    [
        ([], 0, 0, "0"),
        (["labelled 1, val 1"], 0, 0, "0"),
        (["labelled 1, val 2", "labelled 1, unlabelled -1"], 1, 0, "1"),
        (["labelled 1, test 1"], None, 1, "not counted (the labels of test and "),
        (["labelled 1, unlabelled 2", "labelled 1, val 1"], None, 1, "not counted (the labels"),
        (["labelled 1, val 2", "val 1, test 1"], 1, 1, "1; 1 more group not counted (the "),
        (["labelled 1, val 2, test 1"], 1, 0, "1"),
    ],
)
def test_copies_whose_labels_are_not_looked_at_are_not_counted(
    groups: list[str], differ: int | None, unseen: int, words: str
) -> None:
    sha, roles, labels = [], [], []
    for number, group in enumerate(groups):
        for one in group.split(", "):
            role, label = one.split()
            sha.append(str(number))
            roles.append(role)
            labels.append(int(label))
    n = len(sha)
    items = Items(
        "x",
        "table",
        [str(i) for i in range(n)],
        np.array(labels, np.int64),
        [""] * n,
        np.ones(n, np.int64),
        sha,
        ["a", "b", "c"],
    )
    found = _copies(items, np.arange(n), np.array(roles, object))
    assert (found["labels_differ"], found["labels_not_counted"]) == (differ, unseen)
    assert differ_text(found).startswith(words)


def test_fewer_rows_are_asked_where_it_would_take_long(planted: Path, made: Made) -> None:
    from train.data.reader import open_cache

    cache = open_cache(planted / "cache", "digits", [made.views("pixels")])
    role = np.where(np.arange(1797) < 600, "labelled", "val").astype(object)
    near = measures.near_duplicates(
        cache.emb,
        [cache.emb[0].astype(np.float64).mean(0)],
        np.arange(600, 1797),
        np.arange(1797),
        role,
        budget=1797 * 64 * 300,
    )
    assert near.asked == 300 and all(
        role[one] == "val" and role[other] == "labelled" for one, other, _ in near.pairs
    )


def test_one_view_and_json_and_what_is_missing(
    made: Made, tmp_path: Path, command: Callable
) -> None:
    done = command(
        "inspect",
        "--views",
        made.views("edges"),
        "--data",
        "digits",
        "--labels",
        5,
        "--cache",
        made.cache,
        "--runs",
        tmp_path,
        "--json",
    )
    found = json.loads(done.stdout)
    assert (
        found["command"] == "inspect"
        and found["ok"]
        and found["pairs"] == []
        and found["page"] == str(tmp_path / "inspect-digits.html")
    )
    assert (
        tmp_path / "inspect-digits.html"
    ).is_file() and "kNN: what 5 neighbours among 405 labelled images say of 405" in done.stderr
    for config, words in (
        (InspectConfig(), "VIEWS is missing"),
        (InspectConfig("a"), "DATA is missing"),
    ):
        with pytest.raises(UsageError, match=rf"{words}. Type: make inspect VIEWS="):
            run(config)


# ---------------------------------------------------------------- the page in a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the bundled views of the digits, with a copy across the border put in: real thumbnails."""
    folder = tmp_path_factory.mktemp("page")
    photos = folder / "photos"
    from sklearn.datasets import load_digits

    digits = load_digits()
    for split, first, last in (("train", 0, 300), ("val", 300, 400), ("test", 400, 500)):
        for row in range(first, last):
            path = photos / split / f"digit {digits.target[row]}" / f"{row:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = digits.images[400 if row == 7 else row]
            Image.fromarray((image * 15.9 - (row == 7)).clip(0, 255).astype(np.uint8)).resize(
                (64, 64)
            ).save(path)
    copy = next((photos / "train").glob("*/0009.png"))
    (photos / "test" / copy.parent.name / "copy.png").write_bytes(copy.read_bytes())
    for view in ("tiny-clip", "tiny-dinov2"):
        extract(
            ExtractConfig(view, str(photos), cache=str(folder / "cache"), device="cpu", workers=0)
        )
    config = InspectConfig(
        "tiny-clip,tiny-dinov2",
        str(photos),
        "10",
        cache=str(folder / "cache"),
        to=str(folder / "inspect.html"),
    )
    found = run(config)
    assert (
        found["copies"]["crossing"] in ({"test in labelled": 1}, {"test in unlabelled": 1})
        and found["near"]["pairs"] >= 1
    )
    return Path(found["page"])


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (420, True)])
def test_the_page_opens_offline_without_a_complaint(
    browser: Browser, page: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark)
    assert browser.complaints() == [] and browser.run(
        "return document.documentElement.scrollWidth <= innerWidth"
    )
    assert browser.run("return document.images.length") >= 4
    assert (
        browser.run(
            "return document.querySelectorAll("
            "'figure.chart .plot svg, figure.chart .plot canvas').length"
        )
        == 2
    )
    browser.screenshot(
        Path(os.environ.get("SCREENSHOTS", tmp_path))
        / f"inspect-{width}-{'dark' if dark else 'light'}.png"
    )
