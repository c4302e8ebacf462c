"""coview suggest: the first images to label, and the next ones, which the report shows; and a table
that closes the loop: filled in, it is the DATA of the next extraction and training."""

import csv
import dataclasses
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Made
from PIL import Image
from skactiveml.pool import MaxHerding
from sklearn.datasets import load_digits
from sklearn.preprocessing import normalize
from training import config

from base import durable
from base.commands import main
from base.errors import StaleError, UsageError
from extract.config import ExtractConfig
from extract.data.datasets import build_items, open_dataset
from extract.run import run as extract
from predict.model import Opinions
from report.asked import Asked, Next, first_to_label, to_label
from report.config import SuggestConfig
from report.sections.galleries import SHOWN
from report.suggest.command import command as suggest
from report.suggest.table import write_all
from report.write import write_report
from train.command import run as train
from train.config import TrainConfig
from train.data.reader import open_cache
from train.data.splits import make_split

VIEWS = ("tiny-clip", "tiny-dinov2")
DIGITS = load_digits()


def photos(folder: Path) -> Path:
    """120 digits as files: of each of the ten classes 6 in its folder, and 60 in unlabelled/."""
    chosen = np.concatenate([np.flatnonzero(DIGITS.target == digit)[:12] for digit in range(10)])
    for place, number in enumerate(chosen.tolist()):
        group = f"d{DIGITS.target[number]}" if place % 12 < 6 else "unlabelled"
        path = folder / "photos" / group / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.round(DIGITS.images[number] * 255 / 16).astype(np.uint8)
        Image.fromarray(levels).save(path)
    return folder / "photos"


def embed(data: Path, cache: Path) -> None:
    for view in VIEWS:
        settings = ExtractConfig(view=view, data=str(data), cache=str(cache), device="cpu")
        extract(dataclasses.replace(settings, workers=0))


def trained(folder: Path, data: Path, name: str, **changes: object) -> None:
    settings = TrainConfig(
        views=",".join(VIEWS),
        data=str(data),
        cache=str(folder / "cache"),
        runs=str(folder / "runs"),
        run=name,
        method="supervised",
        device="cpu",
        warmup=20,
        cotrain=20,
        hidden=16,
        threads=1,
    )
    train(dataclasses.replace(settings, **changes))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, cache/, and the run first."""
    folder = tmp_path_factory.mktemp("home")
    embed(photos(folder), folder / "cache")
    trained(folder, folder / "photos", "first", seeds="0..1", method="supervised,mct-graph")
    return folder


@pytest.fixture
def own(home: Path, tmp_path: Path) -> Path:
    """A copy of the home that a test may change. Its data set is that of the copy."""
    folder = shutil.copytree(home, tmp_path / "own")
    record = next(folder.glob("cache/photos-*/dataset.json"))
    known = durable.read_sealed(record)
    record.write_bytes(durable.sealed({**known, "source": str(folder / "photos")}))
    return folder


def asked(home: Path, run: str = "first", **changes: object) -> dict[str, Any]:
    """What --json says."""
    settings = SuggestConfig(run=run, runs=str(home / "runs"), cache=str(home / "cache"))
    found: dict[str, Any] = {}
    suggest(dataclasses.replace(settings, **changes), found)
    return found


def first(home: Path, data: str = "photos", **changes: object) -> dict[str, Any]:
    """What --json says where there is no run."""
    return asked(home, "", views=",".join(VIEWS), data=data, **changes)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_they_are_those_of_the_report(home: Path, capsys: pytest.CaptureFixture) -> None:
    page = write_report(home / "runs" / "first", home / "cache", home).read_text()
    shown = re.search(r"their keys, to copy</summary>.*?>(unlabelled/[^<]*)<", page, re.DOTALL)
    found = asked(home, root=str(home))
    assert SuggestConfig.n == SHOWN
    assert [one["key"] for one in found["images"]] == shown[1].split()
    assert (found["method"], found["pool"], found["hidden"]) == ("mct-graph", 60, False)
    said = capsys.readouterr().out
    rows = re.findall(r"^(unlabelled/\S+)  +(\S+ [\d.]+)  +(\S+ [\d.]+)  +", said, re.MULTILINE)
    assert len(rows) == SHOWN and "Chosen by UHerding among 60 images without a label" in said
    for row, one in zip(rows, found["images"], strict=True):
        first = f"{one['label']} {one['confidence']:.2f}"
        assert row == (one["key"], first, f"{one['second']} {one['second_confidence']:.2f}")
        assert f"{first} or {one['second']} {one['second_confidence']:.2f}?" in page
        assert one["confidence"] >= one["second_confidence"] and [*one["views"]] == [*VIEWS]


def test_the_table_filled_in_is_the_next_data_set(own: Path, capsys: pytest.CaptureFixture) -> None:
    """Extracted without an image embedded, trained on, asked again."""
    table = own / "next.csv"
    found = asked(own, n=5, to=str(table))
    said = capsys.readouterr().out
    typed = re.findall(r"^  (make .*)$", said, re.MULTILINE)
    assert found["file"] == str(table) and "all 120 images of photos, these 5 first" in said
    assert typed[0].startswith(f"make extract VIEWS={','.join(VIEWS)} DATA={table} CACHE=")
    assert typed[1].startswith(f"make train VIEWS={','.join(VIEWS)} DATA={table} ")
    head, *rows = rows_of(table)
    assert head == ["path", "label"] and len(rows) == 120
    assert [row[0] for row in rows[:5]] == [f"photos/{one['key']}" for one in found["images"]]
    assert [label for _, label in rows[:5]] == [""] * 5
    for path, label in rows[5:]:
        assert label == (path.split("/")[1] if "/d" in path else "")

    for row in rows[:4]:  # the fifth stays without
        row[1] = f"d{DIGITS.target[int(Path(row[0]).stem)]}"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    embed(table, own / "cache")
    assert capsys.readouterr().out.count("120 rows are copied") == 2
    trained(own, table, "second")
    cache = open_cache(own / "cache", str(table), [*VIEWS])
    split = make_split(cache.items, cache.ok, "all", 0)
    keys = np.array(cache.items.keys)
    told = {row[0] for row in rows[:4]}
    assert told <= {*keys[split.labelled], *keys[split.val], *keys[split.test]}
    assert len(split.unlabelled) == 56 and rows[4][0] in keys[split.unlabelled]
    again = asked(own, "second", n=100)
    assert len(again["images"]) == 56 and told.isdisjoint(one["key"] for one in again["images"])
    assert "there are no more: N=100, and these are all 56" in capsys.readouterr().out


@pytest.fixture
def first_of_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equally good rows scikit-activeml draws one: here it takes the first, as ours does."""

    def best(worth_n: np.ndarray, random_state: object) -> np.ndarray:
        return np.flatnonzero(worth_n >= np.nanmax(worth_n) - 1e-12)[:1]

    monkeypatch.setattr("skactiveml.pool._max_herding.rand_argmax", best)


def by_activeml(home: Path, data: str, count: int) -> list[str]:
    """The keys that its MaxHerding chooses of the cached embeddings, each view of length 1."""
    cache = open_cache(home / "cache", data, [*VIEWS])
    usable = np.flatnonzero(cache.ok)
    views = [normalize(np.asarray(emb_ND[usable], np.float64)) for emb_ND in cache.emb]
    label = cache.items.label[usable].astype(float)
    label[label < 0] = np.nan
    oracle = MaxHerding(normalize_samples=False, metric_dict={"gamma": 0.5}, random_state=0)
    chosen = oracle.query(np.concatenate(views, 1), label, batch_size=count)
    return [cache.items.keys[row] for row in usable[chosen]]


@pytest.mark.usefixtures("first_of_equal")
def test_the_first_ones_need_no_run(home: Path, capsys: pytest.CaptureFixture) -> None:
    """What has a label is known already; a run that is there has no say."""
    found = first(home, n=20)
    keys = [one["key"] for one in found["images"]]
    assert keys == by_activeml(home, "photos", 20)
    assert found == {
        "run": None,
        "method": None,
        "rule": "max-herding",
        "pool": 60,
        "hidden": False,
        "images": [{"key": key} for key in keys],
        "file": None,
    }
    said = capsys.readouterr().out
    assert "photos, tiny-clip, tiny-dinov2\nChosen by MaxHerding among 60 images" in said
    assert "or is among the 60 labelled already" in said and "\nimage\n" + keys[0] in said
    assert len(first(home, n=100)["images"]) == 60
    assert "there are no more: N=100, and these are all 60" in capsys.readouterr().out
    one = asked(home, "", views=VIEWS[0], data="photos", n=1)
    assert len(one["images"]) == 1


@pytest.mark.usefixtures("first_of_equal")
def test_a_table_of_the_first_ones_is_the_next_data_set(
    own: Path, capsys: pytest.CaptureFixture
) -> None:
    table = own / "next.csv"
    keys = [one["key"] for one in first(own, n=5, to=str(table))["images"]]
    typed = re.findall(r"^  (make .*)$", capsys.readouterr().out, re.MULTILINE)
    assert typed[0].startswith(f"make extract VIEWS={','.join(VIEWS)} DATA={table} CACHE=")
    assert typed[1] == f"make train VIEWS={','.join(VIEWS)} DATA={table} CACHE={own / 'cache'}"
    head, *rows = rows_of(table)
    assert [row[0] for row in rows[:5]] == [f"photos/{key}" for key in keys] and len(rows) == 120
    for row in rows[:4]:
        row[1] = f"d{DIGITS.target[int(Path(row[0]).stem)]}"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    embed(table, own / "cache")
    found = first(own, str(table), n=9)
    again = [one["key"] for one in found["images"]]
    assert again == by_activeml(own, str(table), 9) and found["pool"] == 56
    assert {row[0] for row in rows[:4]}.isdisjoint(again)
    with pytest.raises(UsageError, match=r"DATA=.*next\.csv is next-.* was trained on photos-"):
        asked(own, data=str(table))


@pytest.mark.usefixtures("first_of_equal")
def test_nothing_is_labelled_and_one_image_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What could not be embedded is never proposed."""
    folder = tmp_path / "bare" / "unlabelled"
    folder.mkdir(parents=True)
    for number in range(20):
        levels = np.round(DIGITS.images[number] * 255 / 16).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{number:02d}.png")
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:40])
    embed(tmp_path / "bare", tmp_path / "cache")
    capsys.readouterr()
    found = first(tmp_path, str(tmp_path / "bare"), n=30, to=str(tmp_path / "next.csv"))
    keys = [one["key"] for one in found["images"]]
    assert len(keys) == 19 and "unlabelled/07.png" not in keys
    assert keys[:9] == by_activeml(tmp_path, "bare", 9)
    assert "labelled already" not in capsys.readouterr().out
    _, *rows = rows_of(tmp_path / "next.csv")
    assert [label for _, label in rows] == [""] * 20 and rows[-1][0].endswith("07.png")


def test_images_of_a_validation_or_test_split_take_no_part(home: Path) -> None:
    cache = open_cache(home / "cache", "photos", [*VIEWS])
    split = ["val" if row % 3 else "unlabelled" for row in range(120)]
    items = dataclasses.replace(cache.items, split=split, label=np.full(120, -1))
    chosen = first_to_label(dataclasses.replace(cache, items=items), 50)
    assert chosen.pool == 40 and sorted(chosen.rows.tolist()) == [*range(0, 120, 3)]
    items = dataclasses.replace(items, split=["test"] * 120)
    assert not len(first_to_label(dataclasses.replace(cache, items=items), 50).rows)


def test_of_very_many_images_evenly_spaced_ones_are_looked_at(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("report.asked.MOST_FIRST", 30)
    cache = open_cache(home / "cache", "photos", [*VIEWS])
    chosen = first_to_label(cache, 50)
    assert chosen.pool == len(chosen.rows) == 30
    assert "among 30 images without a label (evenly spaced ones of 60):" in chosen.why


def test_files_that_were_moved_into_class_folders_are_told(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The cache still has them without a label."""
    key = first(own, str(own / "photos"), n=1)["images"][0]["key"]
    assert "were moved" not in caplog.text
    path = own / "photos" / key
    path.rename(own / "photos" / "d0" / path.name)
    again = first(own, str(own / "photos"), n=1)
    assert again["images"][0]["key"] == key
    assert (
        f"1 were moved, are gone or have changed since they were embedded, the first is {key!r}"
        in (caplog.text)
    )
    assert f"make extract VIEW=tiny-clip DATA={own / 'photos'}" in caplog.text


@pytest.mark.parametrize("change", ["moved", "labelled", "added"])
def test_labels_that_were_given_since_are_not_lost(own: Path, change: str) -> None:
    path = sorted((own / "photos" / "unlabelled").iterdir())[0]
    if change == "added":
        (own / "photos" / "unlabelled" / "x.png").write_bytes(path.read_bytes()[:-1])
    elif change == "moved":
        path.rename(path.with_name("x.png"))
    else:
        path.rename(own / "photos" / "d0" / path.name)
    with pytest.raises(StaleError, match=r"not what RUN=first was trained on any more.*make extr"):
        asked(own, to=str(own / "next.csv"))
    assert not (own / "next.csv").exists() and len(asked(own)["images"]) == SHOWN


def test_splits_that_the_data_name_stay(own: Path) -> None:
    """But for `unlabelled` of those to label, where a label would not count."""
    listed = []
    for path in sorted((own / "photos").rglob("*.png")):
        group = path.parent.name
        split = ["train", "val", "test"][int(path.stem) % 3]
        label, split = ("", "unlabelled") if group == "unlabelled" else (group, split)
        listed.append([str(path.relative_to(own)), label, split])
    with (own / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *listed])
    embed(own / "list.csv", own / "cache")
    trained(own, own / "list.csv", "listed")
    (own / "elsewhere").mkdir()
    found = asked(own, "listed", n=3, to=str(own / "elsewhere" / "next.csv"))
    head, *rows = rows_of(own / "elsewhere" / "next.csv")
    assert head == ["path", "label", "split"]
    assert rows[:3] == [[str(own / one["key"]), "", ""] for one in found["images"]]
    before = {str(own / path): [label, split] for path, label, split in listed}
    assert all(before[path] == said for path, *said in rows[3:]) and len(rows) == len(listed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("=1+1", "the class '=1\\+1' of photos cannot be written into a table"),
        ("-3", "the class '-3' of photos cannot be written into a table"),
        (b"\xff", r"the name b'photos/.*\\xff/.* is not UTF-8"),
        ("unknown", ""),
    ],
)
def test_what_a_table_cannot_hold_is_refused(own: Path, name: str | bytes, message: str) -> None:
    """A class whose name would be read back as another thing; `unknown` where it is a class."""
    (own / "photos" / "d0").rename(own / "photos" / os.fsdecode(name))
    items = build_items(open_dataset(str(own / "photos"), own, as_class=["unknown"]))
    cache = open_cache(own / "cache", "photos", [*VIEWS])
    cache = dataclasses.replace(cache, items=items)
    settings = SuggestConfig(run="first", runs=str(own / "runs"), to=str(own / "next.csv"))
    rows = np.flatnonzero(items.label < 0)[:2]

    def written() -> str:
        return write_all(own / "next.csv", rows, cache, settings, "a")[1]

    if message:
        with pytest.raises(UsageError, match=message):
            written()
        assert not (own / "next.csv").exists()
        return
    assert "ARGS='--as-class unknown'" in written()
    again = open_dataset(str(own / "next.csv"), own, as_class=["unknown"])
    assert again.labels.count("unknown") == 6


def test_classes_that_a_table_would_join_are_refused(own: Path) -> None:
    """1.0 among whole numbers is read as 1, which is another class here."""
    for folder in sorted((own / "photos").glob("d*")):
        folder.rename(folder.with_name(folder.name.replace("d0", "1.0").removeprefix("d")))
    items = build_items(open_dataset(str(own / "photos"), own))
    assert {"1", "1.0"} <= {*items.classes}
    cache = dataclasses.replace(open_cache(own / "cache", "photos", [*VIEWS]), items=items)
    settings = SuggestConfig(run="first", runs=str(own / "runs"), to=str(own / "next.csv"))
    rows = np.flatnonzero(items.label < 0)[:2]
    with pytest.raises(UsageError, match=r"the class '1\.0' of photos cannot be written"):
        write_all(own / "next.csv", rows, cache, settings, "a")


def test_a_name_that_a_spreadsheet_would_compute_is_written_as_a_path(own: Path) -> None:
    path = sorted((own / "photos" / "unlabelled").iterdir())[0]
    path.rename(path.with_name("=1.png"))
    items = build_items(open_dataset(str(own / "photos"), own))
    cache = dataclasses.replace(open_cache(own / "cache", "photos", [*VIEWS]), items=items)
    to = own / "photos" / "unlabelled" / "next.csv"
    settings = SuggestConfig(run="first", runs=str(own / "runs"), to=str(to))
    row = items.keys.index("unlabelled/=1.png")
    write_all(to, np.array([row]), cache, settings, "a")
    assert rows_of(to)[1] == ["./=1.png", ""]
    assert len(build_items(open_dataset(str(to), own))) == 120


def said(capsys: pytest.CaptureFixture, folder: Path, *words: object) -> tuple[int, str]:
    """Exit code and message of the command as it is typed."""
    capsys.readouterr()
    given = ["--runs", str(folder / "runs"), *map(str, words)]
    code = main("coview.cli:COMMANDS", ["suggest", *given])
    return code, capsys.readouterr().err


def test_what_is_typed_wrong_is_answered_with_what_to_type(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.csv").write_text("path,label\n")
    run = ("--run", "first", "--cache", home / "cache")
    for words, message, last in (
        ((), "--run is missing; there is: first", "suggest --run first"),
        (("--run", "firts"), "there is no run .*did you mean 'first'", "--run first"),
        (
            (*run, "--views", "tiny-clip"),
            "--views tiny-clip: --run first was trained on tiny-clip,tiny-dinov2; leave",
            "suggest --run first",
        ),
        (
            ("--views", "tiny-clip"),
            "--data is missing. For the first images, type",
            "--data photos/",
        ),
        (("--data", "photos"), "--views is missing.*--views clip,dinov2 --data photos", "--run …"),
        ((*run, "--n", 0), "--n 0: so many images are listed; it must be at least 1", "--n 24"),
        ((*run, "--n", -1), "--n=-1: so many images", "--n 24"),
        ((*run, "--to", tmp_path / "x.txt"), "unknown format '.txt'", "/x.csv"),
        ((*run, "--to", tmp_path / "no" / "x.csv"), "/no is no folder", "--to …"),
        ((*run, "--to", tmp_path / "mine.csv"), "may hold labels", "/mine-2.csv"),
        ((*run, "--cache", tmp_path), "which is not in .*--cache …, or make it again", "photos"),
    ):
        code, text = said(capsys, home, *words)
        assert code == 2 and re.search(message, text), text
        typed = text.splitlines()[-1]
        assert "coview " in typed and last in typed, text
    assert (tmp_path / "mine.csv").read_text() == "path,label\n"


def test_where_no_image_is_without_a_label_it_says_so(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    views = ("--views", made.views("pixels"), "--cache", made.cache)
    code, text = said(capsys, tmp_path, *views, "--data", "digits")
    assert code == 2 and "every image of digits that could be embedded has a label" in text
    assert re.search(r"coview train --views \S+ --data digits$", text.strip()), text
    code, text = said(capsys, tmp_path)
    assert code == 2 and "--views is missing. For the first images, type: coview suggest" in text


def test_the_table_is_offered_in_the_form_that_was_typed(
    home: Path, capsys: pytest.CaptureFixture
) -> None:
    place = ["--runs", str(home / "runs"), "--cache", str(home / "cache")]
    assert main("coview.cli:COMMANDS", ["suggest", "--run", "first", "--n", "2", *place]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("To write a table to fill in: coview suggest --run first --n 2 ")
    assert " --to next.csv " in last


def test_a_run_that_cannot_be_asked_says_what_to_do(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Without a model; without an image to label; with images whose label was hidden."""
    for name, changes in (
        ("bare", {"method": "label-propagation", "labels": "3"}),
        ("full", {"method": "supervised", "labels": "all"}),
        ("hidden", {"method": "supervised", "labels": "3"}),
    ):
        train(config(made, tmp_path / "runs", run=name, seeds="0", **changes))
    cache = ("--cache", made.cache)
    code, text = said(capsys, tmp_path, "--run", "bare", *cache)
    assert code == 2 and "keeps no model that could be asked (label-propagation)" in text
    assert re.search(r"coview train --views \S+ .*--method mct-graph .*--run bare-2", text), text
    code, text = said(capsys, tmp_path, "--run", "full", *cache)
    assert code == 2 and "nothing is left to be labelled. Add images" in text
    assert "coview extract --view … --data digits" in text
    found = asked(tmp_path, "hidden", cache=str(made.cache), n=2)
    assert found["hidden"] and len(found["images"]) == 2
    code, text = said(capsys, tmp_path, "--run", "hidden", *cache, "--to", tmp_path / "x.csv")
    assert code == 2 and "there is nothing to fill in. Leave --to out" in text
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("kind", ["digits", "imported"])
def test_images_that_are_no_files_have_no_table(own: Path, kind: str) -> None:
    cache = open_cache(own / "cache", "photos", [*VIEWS])
    other = dataclasses.replace(cache, source="digits" if kind == "digits" else "")
    if kind == "digits":
        other = dataclasses.replace(other, items=build_items(open_dataset("digits", own)))
    settings = SuggestConfig(run="first", to=str(own / "next.csv"))
    with pytest.raises(UsageError, match=r"are no files of their own.*Leave TO out"):
        write_all(own / "next.csv", np.empty(0, int), other, settings, "a")


def test_no_hidden_label_has_a_say_and_bare_images_come_first(made: Made) -> None:
    chance = np.random.default_rng(0)
    p_VnC = chance.dirichlet(np.ones(10), (2, 300))
    joint_nC = p_VnC.mean(0)
    says = Opinions(joint_nC, p_VnC, np.ones(300))
    rows = np.arange(300)
    seen = Asked(rows, says, 300)
    cache = open_cache(made.cache, "digits", made.views("pixels", "edges").split(","))

    def chosen(label_n: np.ndarray, most: int = 24) -> Next:
        label_N = cache.items.label.copy()
        label_N[rows] = label_n
        items = dataclasses.replace(cache.items, label=label_N)
        known = np.arange(300, 340)
        return to_label(seen, dataclasses.replace(cache, items=items), known, most)

    one, two = chosen(rows % 10), chosen((rows + 3) % 10)
    assert one.at.tolist() == two.at.tolist() and not one.bare and one.pool == 300
    few = chosen(np.where(rows < 7, -1, 0))
    assert sorted(few.at) == list(range(7)) and few.bare and few.pool == 7
    assert len(chosen(rows % 10, 1).at) == 1
