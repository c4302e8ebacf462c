"""report.html and compare.html: what they hold, and how they behave in a real browser (Debian's
Chromium), opened from the disk."""

import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from conftest import pixels_and_edges, reseal, write_views
from training import typed

from base import durable
from base.errors import IntegrityError, UsageError
from cache_specs.items import Items, class_index, read_items
from cache_specs.succession import write_items
from coview.chain import next_step, train
from report.compare import compare
from report.html.page import Cell, Column, data, table, tag
from report.sections import choose
from report.write import write_report
from train.command import run
from train.config import TrainConfig, make_command

THOUSAND = pytest.param("thousand", marks=pytest.mark.many)
HOSTILE = {
    "3": "<img src=x onerror=window.pwned=1>",
    "8": "</script><script>window.pwned=2</script>",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run on the bundled digits, whose pictures are there; two classes have names
    that would like to be markup."""
    from sklearn.datasets import load_digits

    from extract.data.datasets import build_items, open_dataset

    folder, images = tmp_path_factory.mktemp("digits"), load_digits().images.astype(np.float32)
    found = build_items(open_dataset("digits", folder))
    label, classes = class_index(
        [HOSTILE.get(found.classes[c], found.classes[c]) for c in found.label]
    )
    items = dataclasses.replace(found, label=label, classes=classes)
    dataset = write_items(folder / "cache", items, "digits")
    named = write_views(folder, dataset, items.fingerprint, pixels_and_edges(images))
    config = TrainConfig(
        views=named,
        data="digits",
        labels="2",
        seeds="0..1",
        method="supervised,label-propagation,mct,mct-graph",
        run="digits",
        warmup=20,
        cotrain=40,
        cache=str(folder / "cache"),
        runs=str(folder / "runs"),
        device="cpu",
    )
    run(config)
    write_report(folder / "runs" / "digits", folder / "cache")
    return config


def photographs(chance: np.random.Generator, count: int) -> list[bytes]:
    """JPEGs of pieces of the two photographs that scikit-learn brings."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    found, both = [], load_sample_images().images
    for i in range(count):
        whole = both[i % 2]
        side = int(chance.integers(120, 320))
        top, left = (int(chance.integers(0, limit - side)) for limit in whole.shape[:2])
        sink = io.BytesIO()
        Image.fromarray(whole[top : top + side, left : left + side]).resize(
            (160, 120 + 20 * (i % 4))
        ).save(sink, "JPEG", quality=85)
        found.append(sink.getvalue())
    return found


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """200 classes: too many for a grid, as 1,000 are."""
    return run_of_birds(tmp_path_factory.mktemp("birds"), 200)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return run_of_birds(tmp_path_factory.mktemp("thousand"), 1000)


def run_of_birds(folder: Path, c: int) -> TrainConfig:
    """Ten photographs (40 different ones) of each of c classes as a Parquet table, two views of 32
    numbers in which classes of ten are alike."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from extract.data.datasets import build_items, open_dataset

    chance, n = np.random.default_rng(0), 10 * c
    pictures = photographs(chance, 40)
    first = (
        "Alpine",
        "Brown",
        "Common",
        "Dusky",
        "Eurasian",
        "Golden",
        "Great",
        "Northern",
        "Red",
        "White",
    )
    names = [
        f"{one} {b}{a}"
        for b in ("wood", "river", "marsh", "sand", "rock", "snow", "hill", "field", "sea", "moor")
        for a in (
            "finch",
            "hawk",
            "heron",
            "lark",
            "owl",
            "rail",
            "swift",
            "tern",
            "thrush",
            "warbler",
        )
        for one in first
    ]
    label = np.arange(n) % c
    split = np.array(
        ["train", "train", "train", "train", "train", "train", "val", "val", "test", "test"], object
    )[np.arange(n) // c]
    pq.write_table(
        pa.table(
            {
                "image": [pictures[i] for i in chance.integers(0, 40, n)],
                "label": [names[c] for c in label],
                "split": split.tolist(),
                "key": [
                    f"birds/{names[c].replace(' ', '-').lower()}/{i:05d}.jpg"
                    for i, c in enumerate(label)
                ],
            }
        ),
        folder / "birds.parquet",
    )
    opened = open_dataset(str(folder / "birds.parquet"), folder)
    items = build_items(opened)
    dataset = write_items(folder / "cache", items, str(folder / "birds.parquet"))
    group = chance.normal(size=(c // 10, 32))[np.arange(c) // 10]
    emb = {
        name: (group + chance.normal(size=(c, 32)) * 0.7)[items.label]
        + chance.normal(size=(n, 32)) * noise
        for name, noise in (("clip", 0.6), ("dino", 0.8))
    }
    named = write_views(folder, dataset, items.fingerprint, emb)
    config = TrainConfig(
        views=named,
        data=str(folder / "birds.parquet"),
        labels="2",
        seeds="0",
        method="supervised,mct",
        run="birds",
        warmup=120,
        cotrain=40,
        batch_labelled=256,
        lr=3e-3,
        hidden=64,
        cache=str(folder / "cache"),
        runs=str(folder / "runs"),
        device="cpu",
    )
    run(config)
    write_report(folder / "runs" / "birds", folder / "cache")
    return config


def path_of(config: TrainConfig) -> Path:
    return Path(config.runs) / config.run / "report.html"


@pytest.mark.parametrize("which", ["digits", "birds", THOUSAND])
@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (1280, True), (420, False), (420, True)]
)
def test_the_page_opens_offline_and_fits(
    browser: Browser,
    which: str,
    width: int,
    dark: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    browser.open(path_of(request.getfixturevalue(which)), width, dark)
    assert browser.complaints() == [] and browser.run("return window.pwned === undefined")
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    light = browser.run(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"
        ".reduce((sum, part) => sum + Number(part), 0) / 3"
    )
    assert (light < 60) == dark and (light > 200) != dark
    assert browser.run("return [...document.images].length") > 20 and browser.run(
        "return [...document.images].every(image => image.naturalWidth > 0)"
    )
    assert (
        len(
            browser.screenshot(
                Path(os.environ.get("SCREENSHOTS", tmp_path))
                / f"{which}-{width}-{'dark' if dark else 'light'}.png"
            )
        )
        > 50_000
    )


def test_a_click_or_enter_on_a_confusion_cell_filters_the_gallery(
    browser: Browser, digits: TrainConfig
) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(path_of(digits))
    label, pred = browser.run(
        "const card = document.querySelector('#errors li'); return [card.dataset.t, card.dataset.p]"
    )
    all_cards = browser.shown("#errors li")
    browser.click(f"#confusion-view td[data-t='{label}'][data-p='{pred}']")
    kinds = browser.run(
        "return [...document.querySelectorAll('#errors li')]"
        ".filter(one => one.offsetParent).map(one => one.dataset.t + '>' + one.dataset.p)"
    )
    assert kinds and set(kinds) == {f"{label}>{pred}"} and len(kinds) < all_cards
    assert f"{len(kinds)} pictured below" in browser.run(
        "return document.querySelector('#confusion-told').textContent"
    )
    browser.press(Keys.ESCAPE)
    assert browser.shown("#errors li") == all_cards
    browser.run('document.querySelector(\'#confusion-view td[data-t="0"][data-p="0"]\').focus()')
    for key, count in ((Keys.ARROW_DOWN, int(label)), (Keys.ARROW_RIGHT, int(pred))):
        for _ in range(count):
            browser.press(key)
    browser.press(Keys.ENTER)
    assert browser.shown("#errors li") == len(kinds)
    assert browser.run("return document.activeElement.getAttribute('aria-selected')") == "true"
    browser.click("#errors-all")
    browser.click(".show")
    assert 0 < browser.shown("#errors li") < all_cards
    browser.run(
        "const box = document.querySelector('#confusion-set'); box.value = '1'; "
        "box.dispatchEvent(new Event('change'))"
    )
    assert browser.shown("#confusion-view td[data-t]") == 100 and browser.complaints() == []


@pytest.mark.parametrize("which", ["birds", THOUSAND])
def test_a_thousand_classes_can_be_read(
    browser: Browser, which: str, request: pytest.FixtureRequest
) -> None:
    """The map zooms into a grid where it is clicked, also by the keyboard; a class is found by its
    name, a pair by its button."""
    from selenium.webdriver.common.keys import Keys

    browser.open(path_of(request.getfixturevalue(which)))
    assert browser.shown("#confusion-view canvas") == 1
    browser.click("#confusion-view canvas")
    assert (
        browser.shown("#confusion-view td[data-t]") == 400
        and browser.shown("#confusion-whole") == 1
    )
    browser.click("#confusion-whole")
    browser.run("document.querySelector('#confusion-view canvas').focus()")
    browser.press(Keys.ARROW_DOWN, Keys.ENTER)
    assert browser.shown("#confusion-view td[data-t]") == 400
    browser.run(
        "const box = document.querySelector('#confusion-class'); "
        "box.value = 'golden riverhawk'; box.dispatchEvent(new Event('input'))"
    )
    assert (
        browser.run("return document.querySelector('#confusion-view tbody th').textContent")
        == "Golden riverhawk"
    )
    browser.click(".show")
    pair = browser.run(
        "const show = document.querySelector('.show'); return [show.dataset.t, show.dataset.p]"
    )
    assert (
        browser.run("return document.querySelector('#confusion-view [aria-selected]').dataset.t")
        == pair[0]
    )
    assert browser.shown("#errors li") == browser.run(
        "return document.querySelectorAll("
        f'\'#errors li[data-t="{pair[0]}"][data-p="{pair[1]}"]\').length'
    )
    browser.run(
        "const box = document.querySelector('#confusion-order'); "
        "box.value = 'alike'; box.dispatchEvent(new Event('change'))"
    )
    browser.run(
        "const box = document.querySelector('#classes .filter'); "
        "box.value = 'riverowl'; box.dispatchEvent(new Event('input'))"
    )
    left = browser.run(
        "return [...document.querySelectorAll('#classes-table tbody tr')]"
        ".filter(one => one.offsetParent).map(one => one.textContent)"
    )
    assert (
        10 <= len(left) < 30
        and all("riverowl" in row for row in left)
        and browser.complaints() == []
    )


def test_tables_sort_by_a_click_and_by_the_keyboard(browser: Browser, digits: TrainConfig) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(path_of(digits))
    column = (
        "return [...document.querySelectorAll('#classes-table tbody tr')]"
        ".map(row => Number(row.cells[2].dataset.v))"
    )
    before = browser.run(column)
    browser.click("#classes-table thead th:nth-child(3) button")
    assert browser.run(column) == sorted(before, reverse=True) != before
    browser.press(Keys.ENTER)
    assert browser.run(column) == sorted(before)
    assert (
        browser.run(
            "return document.querySelector('#classes-table thead th:nth-child(3)')"
            ".getAttribute('aria-sort')"
        )
        == "ascending"
    )


def test_the_theme_is_toggled_and_charts_answer_the_keyboard(
    browser: Browser, digits: TrainConfig
) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(path_of(digits))
    background = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(background)
    browser.click("#theme")
    assert browser.run(background) != light
    browser.click("#theme")
    assert browser.run(background) == light
    browser.run("document.querySelector('#training svg[role=img]').focus()")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.run("return document.querySelector('#tip').textContent").startswith(
        "step 20\njoint: "
    )
    browser.click("#training .chips button")
    assert (
        browser.run("return document.querySelectorAll('#training figure .path').length") > 0
        and browser.complaints() == []
    )


def test_shares_of_few_images_are_hollow_points_that_no_line_joins(
    browser: Browser, digits: TrainConfig
) -> None:
    from report.run import read_run
    from report.sections.calibration import FEW, binned

    run = read_run(path_of(digits).parent)
    part = run.parts[run.method]["test"]
    counts = [
        binned(sure.ravel(), np.ones(sure.size))[2] for sure in (part.sure_En, *part.own_sure_VEn)
    ]
    few, many = (
        sum(int(of(count).sum()) for count in counts)
        for of in (lambda n: (n > 0) & (n < FEW * 2), lambda n: n >= FEW * 2)
    )
    browser.open(path_of(digits))
    curves = "document.querySelectorAll('#reliability figure:first-of-type %s')"
    circles = f"return {curves}.length"
    assert (
        few > 0
        and browser.run(circles % "circle.hollow") == few
        and browser.run(circles % "circle:not(.hollow)") == many
    )
    joined = browser.run(
        f"return [...{curves % '.path'}]"
        ".map(path => (path.getAttribute('d').match(/[ML]/g) || []).length)"
    )
    assert sum(joined) == many


def test_the_compared_runs_open_too(browser: Browser, digits: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(path_of(digits).parent, Path(digits.runs) / "copy", dirs_exist_ok=True)
    text = compare([Path(digits.runs) / "digits", Path(digits.runs) / "copy"], tmp_path / "c.html")
    assert (
        "copy − digits, meta co-training: joint   +0.0" in " ".join(text.split("  "))
        or "+0.0 ± 0.0 (p = 1.000), 2 seeds" in text
    )
    browser.open(tmp_path / "c.html", 420, True)
    assert (
        browser.run("return isDark()")
        and browser.complaints() == []
        and browser.run("return document.documentElement.scrollWidth <= innerWidth")
    )
    browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "compare.png")


def test_runs_that_cannot_be_compared_are_told_why(
    digits: TrainConfig, birds: TrainConfig, tmp_path: Path, command: Callable
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    other = Path(digits.runs) / "relabelled"
    shutil.copytree(path_of(digits).parent, other, dirs_exist_ok=True)
    made = durable.read_sealed(other / "summary.json")
    (other / "summary.json").write_bytes(
        durable.sealed({**made, "contents": {**made["contents"], "labelled": ["0" * 64] * 2}})
    )
    text = compare([path_of(digits).parent, other, path_of(birds).parent], tmp_path / "c.html")
    lines = [line for line in text.splitlines() if line.startswith("relabelled − digits, ")]
    assert len(lines) == 12 and all(
        line.endswith("+0.0, not paired: other labelled images or seeds") for line in lines
    )
    assert (
        "birds: not comparable with digits: other data (birds " in text
        and "keep the test images apart" not in text
    )
    (other / "summary.json").write_bytes(
        durable.sealed({**made, "contents": {**made["contents"], "test_labels": "0" * 64}})
    )
    assert "relabelled: not comparable with digits: other labels of the test images" in compare(
        [path_of(digits).parent, other], tmp_path / "c.html"
    )
    newer = {**made, "fingerprints": {**made["fingerprints"], "items": "0" * 64}}
    (other / "summary.json").write_bytes(
        durable.sealed(newer)
    )  # another version of the data set, with the same test images
    assert "relabelled − digits, supervised: joint" in compare(
        [path_of(digits).parent, other], tmp_path / "c.html"
    )
    (other / "summary.json").write_bytes(
        durable.sealed({**newer, "contents": {**newer["contents"], "test": "0" * 64}})
    )
    assert (
        "relabelled: not comparable with digits: other data (digits 00000000, not digits"
        in compare([path_of(digits).parent, other], tmp_path / "c.html")
    )
    # a table of the same images: other names, the same test images
    (other / "summary.json").write_bytes(durable.sealed({**newer, "dataset": "letters"}))
    assert "relabelled − digits, supervised: joint" in compare(
        [path_of(digits).parent, other], tmp_path / "c.html"
    )
    (other / "summary.json").write_bytes(durable.sealed(newer))
    schema = pq.read_schema(other / "predictions.parquet")
    with pq.ParquetWriter(other / "predictions.parquet", schema) as writer:
        file = pq.ParquetFile(path_of(digits).parent / "predictions.parquet")
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            ids = pa.array([f"new/{name}" for name in rows["id"].to_pylist()])
            rows = rows.set_column(schema.get_field_index("id"), "id", ids)
            writer.write_table(rows, row_group_size=len(ids))
    reseal(other)
    # beside the folder a table's keys have the folder's name before them
    text = compare([path_of(digits).parent, other], tmp_path / "c.html")
    assert "relabelled − digits, supervised: joint" in text
    made = durable.read_sealed(other / "summary.json")
    contents = {**made["contents"], "test": "0" * 64}
    (other / "summary.json").write_bytes(
        durable.sealed({**made, "contents": contents, "dataset": "next"})
    )
    text = compare([path_of(digits).parent, other], tmp_path / "c.html")
    assert (
        "other data (next 00000000, not digits" in text
        and "keep the test images apart before labelling, in folders val/ and test/" in text
    )
    (other / "summary.json").write_bytes(durable.sealed(made))
    with pytest.raises(UsageError, match=r"there is no run .*did you mean 'digits'"):
        compare([path_of(digits).parent, Path(digits.runs) / "digit"], tmp_path / "c.html")
    alone = command("compare", "--names", "relabelled", "--runs", digits.runs)
    assert "at least two different runs are compared" in alone.stderr
    assert re.search(r"ype: make compare RUNS=relabelled,[a-z]+ ", alone.stderr.splitlines()[-1]), (
        alone.stderr
    )
    circle = command("compare", "--names", "digits,digit", "--runs", digits.runs)
    assert circle.returncode == UsageError.exit_code and "RUNS=digits,digits" not in circle.stderr
    said = command("compare", "--names", "relabelled,digit", "--runs", digits.runs)
    assert (
        said.returncode == UsageError.exit_code
        and said.stderr.splitlines()[-1]
        == f"Type: make compare RUNS=relabelled,digits ARGS='--runs {digits.runs}'"
    )


def test_a_comparison_says_what_differs_and_tells_machines(
    digits: TrainConfig, command: Callable, tmp_path: Path
) -> None:
    other = Path(digits.runs) / "twice"
    shutil.copytree(path_of(digits).parent, other, dirs_exist_ok=True)
    record = durable.read_sealed(other / "config.json")
    (other / "config.json").write_bytes(
        durable.sealed({**record, "settings": {**record["settings"], "lr": 0.5, "data": "digits/"}})
    )
    reseal(other)
    given = (
        "compare",
        "--names",
        "digits,twice",
        "--runs",
        digits.runs,
        "--to",
        str(tmp_path / "c.html"),
    )
    done = command(*given)
    assert (
        done.returncode == 0
        and f"\nlr: {digits.lr} | 0.5\n" in done.stdout
        and "validation, by which to choose between runs" in done.stdout
    )
    found = json.loads(command(*given, "--json").stdout)
    summary = json.loads((other / "summary.json").read_text())
    assert (
        found["ok"]
        and found["runs"]["twice"] == summary["methods"]
        and found["differing"] == {"lr": [str(digits.lr), "0.5"]}
    )
    assert {gain["mean"] for gain in found["differences"]} == {0.0} and found["differences"][0][
        "seeds"
    ] == summary["seeds"]
    failed = command("compare", "--names", "digits,nothing", "--runs", digits.runs, "--json")
    assert json.loads(failed.stdout)["exit_code"] == failed.returncode == UsageError.exit_code


def test_no_test_image_is_suspected(digits: TrainConfig) -> None:
    """Of validation and hidden training images alone: a summary that is made better by
    its own disputes is none."""
    from report.run import read_run
    from report.sections.galleries import look, suspects_section

    found = read_run(path_of(digits).parent)
    text = str(suspects_section(look(found, Path(digits.cache), Path("data"), "cpu")).body)
    shown = re.findall(r'class="key"[^>]*>([^<]+)<', text)
    assert len(shown) > 5 and not set(shown) & set(found.parts[found.method]["test"].keys_E[0])


def test_the_page_holds_what_the_run_found(digits: TrainConfig) -> None:
    text, summary = (
        path_of(digits).read_text(),
        json.loads((path_of(digits).parent / "summary.json").read_text()),
    )
    for method in summary["methods"].values():
        assert (
            f"{100 * method['joint']['test_top1']['mean']:.1f} ± "
            f"{100 * method['joint']['test_top1']['std']:.1f}"
        ) in text
    for heading in (
        "Scores",
        "Label these next",
        "Confusion",
        "Suspected labels",
        "Classes",
        "Reliability",
        "Agreement",
        "Maps",
        "Training",
        "Feedback h",
    ):
        assert f">{heading}</h" in text
    assert "images whose label was hidden" in text and "They have labels already, which" in text
    assert "move the files into their classes" not in text
    assert (
        "make train VIEWS=" in text
        and "LABELS=2" in text
        and summary["fingerprints"]["items"][:8] in text
    )
    assert (
        "<img src=x" not in text
        and text.count("<script>")
        == text.count("</script>") - len(re.findall(r"<script type", text))
        == 3
    )
    assert len(text) < 1_000_000


@pytest.mark.many
def test_ten_thousand_images_of_a_thousand_classes_stay_below_five_megabytes(
    thousand: TrainConfig,
) -> None:
    assert 500_000 < path_of(thousand).stat().st_size < 5_000_000


def test_pseudo_labels_are_drawn_where_they_were_recorded(digits: TrainConfig) -> None:
    copy = Path(digits.runs) / "pseudo"
    shutil.copytree(path_of(digits).parent, copy, dirs_exist_ok=True)
    records = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    told = [
        {
            **record,
            "pseudo": {
                "pixels": {"precision": 0.5, "coverage": 0.25},
                "edges": {"precision": None, "coverage": 0.0},
            },
        }
        if "feedback" in record
        else record
        for record in records
    ]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in told))
    reseal(copy)
    text = write_report(copy, Path(digits.cache)).read_text()
    assert "Precision of the pseudo-labels" in text and "Coverage of the pseudo-labels" in text
    assert path_of(digits).read_text().count("Precision of the pseudo-labels") == 1, (
        "the run recorded its own"
    )
    (copy / "metrics.jsonl").write_text(
        "".join(
            json.dumps({key: record[key] for key in record if key != "pseudo"}) + "\n"
            for record in records
        )
    )
    reseal(copy)
    assert (
        "Precision of the pseudo-labels" not in write_report(copy, Path(digits.cache)).read_text()
    )


def test_without_the_images_or_the_cache_there_is_a_page_that_says_so(
    birds: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "birds"
    shutil.copytree(path_of(birds).parent, folder)
    gone = Path(birds.data).with_suffix(".away")
    Path(birds.data).rename(gone)
    try:
        text = write_report(folder, Path(birds.cache)).read_text()
    finally:
        gone.rename(birds.data)
    assert (
        "The images are not where they were" in text
        and "data:image" not in text
        and "Label these next" in text
    )
    text = write_report(folder, tmp_path / "nothing").read_text()
    assert (
        "The galleries and maps are left out" in text
        and "Label these next" not in text
        and "Confusion" in text
    )


def test_a_page_that_fails_changes_nothing(
    digits: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = path_of(digits).parent
    kept = path_of(digits).read_bytes()
    path_of(digits).unlink()
    files = {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}

    def fail(*given: object, **more: object) -> None:
        raise ZeroDivisionError("a\nbug")

    try:
        monkeypatch.setattr("report.write.write_report", fail)
        train(typed(digits), {})
        assert (
            "its page was not written (ZeroDivisionError a bug). Type: make report RUN=digits"
            in capsys.readouterr().err
        )
        assert files == {
            path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()
        }
        train(typed(dataclasses.replace(digits, report=False)), {})
        assert "page was not written" not in capsys.readouterr().err
        monkeypatch.undo()
        train(typed(digits), {})
        assert (
            f"report {path_of(digits)}\n" in capsys.readouterr().err
            and path_of(digits).read_bytes() == kept
        )
        train(typed(digits), {})  # again, when all is there
        command = next_step(digits, json.loads((folder / "summary.json").read_text()))
        assert capsys.readouterr().err.endswith(
            f"report {path_of(digits)}\nto label images with it, though nothing shows yet which "
            f"method is best, type: {command}\n"
        )
    finally:
        path_of(digits).write_bytes(kept)


def test_the_command_and_its_errors(digits: TrainConfig, command: Callable, tmp_path: Path) -> None:
    for name in ("digits", str(path_of(digits).parent)):
        done = command("report", "--run", name, "--runs", digits.runs, "--cache", digits.cache)
    assert (
        done.returncode == 0 and done.stdout.strip() == str(path_of(digits)) and done.stderr == ""
    )
    with pytest.raises(UsageError, match=r"RUN=digit: there is no run .*did you mean 'digits'"):
        write_report(Path(digits.runs) / "digit")
    found = command("compare", "--names", "digits", "--runs", digits.runs)
    assert found.returncode == UsageError.exit_code and "Type: make compare RUNS=" in found.stderr
    damaged = tmp_path / "runs" / "x"
    shutil.copytree(path_of(digits).parent, damaged)
    (damaged / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        IntegrityError,
        match=r"predictions.parquet is not the file that .*summary.json was made with",
    ):
        write_report(damaged, Path(digits.cache))
    reseal(damaged)
    with pytest.raises(
        IntegrityError,
        match=(
            r"predictions.parquet cannot be read .*Delete summary.json and "
            r"type the command of the run once more"
        ),
    ):
        write_report(damaged, Path(digits.cache))
    (damaged / "summary.json").unlink()
    with pytest.raises(
        UsageError,
        match=(
            r"not finished, it has no summary.json. "
            r"Type the command that began it once more: make train"
        ),
    ):
        write_report(damaged, Path(digits.cache))


def test_the_command_that_repeats_a_run_is_the_one_that_was_typed() -> None:
    config = TrainConfig(
        views="a,b", data="my photos/", labels="4", lr=0.1, calibrate=True, method="mct"
    )
    assert (
        make_command(dataclasses.asdict(config))
        == "make train VIEWS=a,b DATA='my photos/' LABELS=4 METHOD=mct ARGS='--lr 0.1 --calibrate'"
    )


def test_no_hidden_label_has_a_say_in_what_to_label_next(digits: TrainConfig) -> None:
    from report.run import read_run
    from report.sections.galleries import look, next_section

    seen = look(read_run(path_of(digits).parent), Path(digits.cache), Path("data"), "cpu")
    items, chance = seen.cache.items, np.random.default_rng(0)
    wrong = items.label.copy()
    wrong[seen.rest.rows] = chance.integers(0, 10, len(seen.rest.rows))
    other = dataclasses.replace(
        seen, cache=dataclasses.replace(seen.cache, items=dataclasses.replace(items, label=wrong))
    )
    assert next_section(other) == next_section(seen)


def test_flipped_labels_are_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    chance, n = np.random.default_rng(1), 600
    true = chance.integers(0, 4, n)
    p_nC = np.full((n, 4), 0.05) + 0.8 * np.eye(4)[true] + 0.1 * chance.random((n, 4))
    p_nC /= p_nC.sum(1, keepdims=True)
    label, flipped = true.copy(), chance.choice(n, 30, replace=False)
    label[flipped] = (true[flipped] + 1) % 4
    found, rule = choose.wrong_labels(p_nC, label, 100)
    assert rule == "confident learning" and set(found) <= set(flipped) and len(found) > 20
    assert (
        len(choose.wrong_labels(p_nC, true, 100)[0]) == 0
        and len(choose.wrong_labels(np.empty((0, 4)), np.empty(0, int), 9)[0]) == 0
    )


def test_disagreement_and_errors_are_ranked_and_varied() -> None:
    views_VnC = np.array(
        [
            [[0.9, 0.1, 0], [0.6, 0.4, 0], [0.9, 0.1, 0], [0.5, 0, 0.5]],
            [[0.1, 0.9, 0], [0.9, 0.1, 0], [0.4, 0.6, 0], [0, 0, 1.0]],
        ]
    )
    assert choose.disagreeing(views_VnC, 10).tolist() == [0, 2, 3] and choose.disagreeing(
        views_VnC, 10, per_pair=1
    ).tolist() == [0, 3]
    label_n = np.array([1, 0, 1, 2])
    assert choose.errors(views_VnC[0], label_n, 10).tolist() == [0, 2, 3] and choose.errors(
        views_VnC[0], label_n, 10, 1
    ).tolist() == [0, 3]


def test_extras_are_used_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    from report.sections.maps import maps

    def fit(self: Any, x_nD: np.ndarray) -> np.ndarray:
        return x_nD[:, :2]

    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name in ("umap", "cleanlab") or real(name)
    )
    monkeypatch.setitem(
        sys.modules,
        "umap",
        types.SimpleNamespace(
            UMAP=type("UMAP", (), {"__init__": lambda self, **given: None, "fit_transform": fit})
        ),
    )
    monkeypatch.setitem(sys.modules, "cleanlab", types.ModuleType("cleanlab"))
    monkeypatch.setitem(
        sys.modules,
        "cleanlab.filter",
        types.SimpleNamespace(find_label_issues=lambda labels, p, **given: np.array([2, 0])),
    )
    assert choose.wrong_labels(np.eye(3), np.arange(3), 1)[0].tolist() == [2]
    x = np.random.default_rng(0).normal(size=(30, 5))
    found = maps(["a"], [x], np.arange(30) % 3, ["x", "y", "z"], np.zeros(30, bool), 30).body
    assert "a, UMAP" in found and "a, PCA" in found


def test_principal_components_are_numpy_s_svd() -> None:
    from report.sections.maps import principal

    for shape in ((50, 7), (7, 50)):
        x = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
        xy, share = principal(x)
        u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
        np.testing.assert_allclose(np.abs(xy), np.abs(u[:, :2] * s[:2]), atol=1e-6)
        np.testing.assert_allclose(share, s[:2] ** 2 / (s**2).sum())


def test_the_kit_escapes_everything() -> None:
    evil = "</script><img src=x onerror=alert(1)>'\"&\u2028"
    assert "<img" not in tag("p", evil, title=evil) and "<img" not in table(
        [Column(evil)], [[evil], [Cell(evil, evil)]], name=evil, filtered=evil
    )
    inline = data({"a": [evil, float("nan")]})
    assert inline.count("<") == 2 and json.loads(
        inline[inline.index(">") + 1 : inline.rindex("<")]
    ) == {"a": [evil, None]}


def test_an_image_that_changed_is_not_shown(tmp_path: Path) -> None:
    from report.pictures import Pictures

    chance = np.random.default_rng(0)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for i, encoded in enumerate(photographs(chance, 3)):
        (tmp_path / "photos" / "a" / f"{i}.jpg").write_bytes(encoded)
    from extract.data.datasets import build_items, open_dataset

    items: Items = build_items(open_dataset(str(tmp_path / "photos"), tmp_path))
    dataset = write_items(tmp_path / "cache", items, str(tmp_path / "photos"))
    (tmp_path / "photos" / "a" / "1.jpg").write_bytes(photographs(chance, 1)[0])
    (tmp_path / "photos" / "a" / "2.jpg").write_bytes(b"no image")
    found = Pictures(dataset, items)(range(3))
    assert (
        set(found) == {0}
        and found[0].uri.startswith("data:image/webp;base64,")
        and max(found[0].width, found[0].height) == 96
    )


def test_a_page_of_an_older_version_says_so(digits: TrainConfig, tmp_path: Path) -> None:
    said = (
        "This run was made of digits-[0-9a-f]{8}, an older version of its data: "
        "what was added, moved or labelled since is not known to this page"
    )
    shutil.copytree(digits.cache, tmp_path / "cache")
    folder = shutil.copytree(path_of(digits).parent, tmp_path / "digits")
    assert not re.search(said, write_report(folder, tmp_path / "cache").read_text())
    items = read_items(next((tmp_path / "cache").glob("digits-*")))
    write_items(
        tmp_path / "cache", dataclasses.replace(items, keys=[*items.keys[:-1], "moved"]), "digits"
    )
    assert re.search(said, write_report(folder, tmp_path / "cache").read_text())


def test_an_image_that_was_moved_is_shown(tmp_path: Path) -> None:
    """By its content, of a run on an older version of its data set."""
    from extract.data.datasets import build_items, open_dataset
    from report.pictures import Pictures

    photos = tmp_path / "photos"
    for name in ("a", "b"):
        (photos / name).mkdir(parents=True)
    for i, encoded in enumerate(photographs(np.random.default_rng(0), 4)):
        (photos / "a" / f"{i}.jpg").write_bytes(encoded)
    items = build_items(open_dataset(str(photos), tmp_path))
    older = write_items(tmp_path / "cache", items, str(photos))
    before = Pictures(older, items)(range(4))
    (photos / "a" / "0.jpg").rename(photos / "b" / "0.jpg")
    (photos / "a" / "1.jpg").rename(photos / "a" / "9.jpg")
    (photos / "a" / "2.jpg").rename(photos / "a" / "1.jpg")  # under the name that another had
    write_items(tmp_path / "cache", build_items(open_dataset(str(photos), tmp_path)), str(photos))
    assert len(before) == 4 and Pictures(older, items)(range(4)) == before


def test_a_page_never_takes_the_place_of_another_file(tmp_path: Path) -> None:
    from report.html.page import page, page_file

    (tmp_path / "notes.csv").write_text("mine")
    (tmp_path / "mine.html").write_text("<p>mine")
    (tmp_path / "ours.html").write_text(page("x", []))
    for name, message in (
        ("notes.csv", "the page is an .html file"),
        ("mine.html", "is there already, and is no page that was made here"),
    ):
        with pytest.raises(UsageError, match=f"{message}.*Type: make x"):
            page_file(str(tmp_path / name), "make x")
    assert page_file(str(tmp_path / "ours.html"), "make x").is_file() and page_file(
        str(tmp_path / "new.html"), "make x"
    )


def test_shares_of_a_confusion_are_of_all_images_of_the_label_also_with_rare_cells_left_out() -> (
    None
):
    from report.run import Part
    from report.sections.confusion import cells, pairs, totals

    chance = np.random.default_rng(0)
    label = chance.integers(0, 50, 2000)
    pred = np.where(chance.random((3, 2000)) < 0.6, label, chance.integers(0, 50, (3, 2000)))
    part = Part(
        [],
        np.tile(label, (3, 1)),
        pred,
        np.ones_like(pred, np.float32),
        np.empty((0, 3, 2000)),
        np.empty((0, 3, 2000)),
    )
    assert totals(part, 50) == [3 * int((label == c).sum()) for c in range(50)]
    assert (
        sum(count for _, _, count in cells(part, 60))
        < 6000
        == sum(count for _, _, count in cells(part, 10**6))
        == sum(totals(part, 50))
    )
    for t, p, count, share in pairs(part, 50):
        assert count == ((label == t) & (pred == p)).sum() and share == count / (
            3 * (label == t).sum()
        )
