"""No advice repeats what failed: each error that ends with a command is brought about, its command
is typed, and must get further."""

import ast
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Made, write_view, write_views
from PIL import Image
from training import config as training

from base import commands, errors
from base.errors import UNKNOWN, CoviewError
from cache_specs.sources import source_path
from cache_specs.spec import SPECS
from cache_specs.succession import write_items
from coview.cli import COMMANDS
from extract.data.datasets import build_items, open_dataset
from train.command import run as train

NAMES = "|".join(sorted((one.name for one in COMMANDS), key=len, reverse=True))
VALUE = r"""(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])*"""
ADVICE = re.compile(rf"\bmake (?:{NAMES})\b(?!-)(?: [A-Z]+={VALUE})*|\bcoview (?:{NAMES}) [^\n]+")


HARMLESS = re.compile(r"(make|coview) (train|sweep|extract|weights|inspect|report|status|compare)")


class Reached(BaseException):
    """The work itself: a command that comes so far had nothing wrong in its words."""


@dataclass(frozen=True)
class Said:
    """How a command ended. site: the function that made the error, or what else stopped it."""

    site: str
    text: str = ""
    advice: tuple[str, ...] = ()


# ---------------------------------------------------------------- a small world to fail in


@pytest.fixture(scope="module")
def world(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cache/ with digits (views pixels, edges and thirds) and pets (pixels), photos/ and pets/ with
    images, mine.toml, the finished run a, the unfinished run half, other.npz."""
    folder = tmp_path_factory.mktemp("world")
    cache = folder / "cache"
    shutil.copytree(made.cache, cache)
    for name in ("photos", "pets", "other/pets"):
        for number in range(8):
            path = folder / name / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (number * 20, 0, 99)).save(path)
    items = build_items(open_dataset(str(folder / "pets"), folder))
    pets = write_items(cache, items, source_path(str(folder / "pets")))
    chance = np.random.default_rng(0)
    emb = {"pixels": chance.normal(size=(8, 4)), "mine": chance.normal(size=(8, 4))}
    write_views(folder, pets, items.fingerprint, emb)
    shutil.copy(folder / "mine.toml", folder / "edited.toml")
    text = (folder / "mine.toml").read_text()
    (folder / "other" / "mine.toml").write_text(text.replace("bicubic", "bilinear"))
    leak = (SPECS / "siglip.toml").read_text()
    leak = re.sub('architecture = ".*"', 'architecture = "vit_base_patch16_224.augreg_in1k"', leak)
    (folder / "leak.toml").write_text(leak)
    (folder / "w").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "w" / name).write_text("{}")
    np.savez(folder / "other.npz", embeddings=emb["mine"], keys=np.array(items.keys))
    np.savez(folder / "two.npz", one=2 * emb["mine"], two=emb["mine"], keys=np.array(items.keys))
    np.savez(folder / "few.npz", embeddings=emb["mine"][:5], keys=np.array(items.keys[:5]))
    train(
        training(made, folder / "runs", run="a", seeds="0", method="supervised,label-propagation")
    )
    shutil.copytree(folder / "runs" / "a", folder / "runs" / "half")
    (folder / "runs" / "half" / "summary.json").unlink()
    return folder


def copied(world: Path, place: Path) -> Path:
    """With the images of pets where the copy is."""
    shutil.copytree(world, place)
    for path in place.glob("cache/pets-*/dataset.json"):  # the images are where the copy is
        items = build_items(open_dataset(str(place / "pets"), place))
        shutil.rmtree(path.parent / "labels", ignore_errors=True)
        path.unlink()
        write_items(place / "cache", items, source_path(str(place / "pets")))
    return place


@pytest.fixture(scope="module")
def common(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For situations that leave the world as it is."""
    return copied(world, tmp_path_factory.mktemp("common") / "here")


@pytest.fixture
def here(
    world: Path,
    common: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Path:
    """A copy of the world that is the working folder; what would take long is `Reached`."""
    situation = request.node.callspec.params["situation"]
    harmless = situation.before is nothing and HARMLESS.match(situation.line)
    place = common if harmless else copied(world, tmp_path / "here")
    monkeypatch.chdir(place)
    monkeypatch.setenv("COVIEW_WEIGHTS", str(place / "weights"))

    def reached(*given: Any, **more: Any) -> None:
        raise Reached

    for name in (
        "extract.run.begin",
        "train.jobs.train_method",
        "train.sweep.sweep",
        "predict.label.build_items",
        "report.write.write_report",
        "extract.models.convert._fetch",
        "extract.models.convert._unpickle",
        "extract.models.weights._fetch",
        "train.run.start.launch",
        "upkeep.recompute.prepare_remaker",
    ):
        monkeypatch.setattr(name, reached)
    monkeypatch.setattr("extract.run.LazyModel.agreed", lambda self, known: known)
    return place


@pytest.fixture
def typing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[[str], Said]:
    """typing("make train VIEWS=a,b"): how that command ends, in this process."""
    made_by: list[CoviewError] = []
    plain, say = CoviewError.__init__, commands._say

    def noted(self: CoviewError, *given: Any, **more: Any) -> None:
        plain(self, *given, **more)
        code = sys._getframe(1).f_code
        path = Path(code.co_filename)
        inside = path.is_relative_to(ROOT)
        self.site = f"{path.relative_to(ROOT) if inside else path.name}:{code.co_name}"

    def said(error: CoviewError) -> int:
        made_by.append(error)
        return say(error)

    monkeypatch.setattr(CoviewError, "__init__", noted)
    monkeypatch.setattr(commands, "_say", said)

    def run(line: str) -> Said:
        form, *words = shlex.split(line)
        capsys.readouterr()
        made_by.clear()
        with monkeypatch.context() as here:
            if form == "make":
                words = as_make_hands_on(words, here)
            try:
                code = commands.main("coview.cli:COMMANDS", words)
            except Reached:
                return Said("the work itself")
            except SystemExit as ended:
                code = int(ended.code or 0)
                made_by.append(CoviewError())
                made_by[-1].site = "the parser"
        text = capsys.readouterr().err
        return Said(made_by[-1].site, text, advised(text)) if code else Said("done")

    return run


def as_make_hands_on(words: list[str], here: pytest.MonkeyPatch) -> list[str]:
    """What the Makefile makes of `make COMMAND NAME=value …`: names and values in the environment,
    the flags of ARGS behind the command."""
    name, flags = words[0], []
    named = [word for word in words if "=" in word]
    here.setenv("COVIEW_MAKE", " ".join(word.partition("=")[0] for word in named))
    here.setenv("GOALS", " ".join(word for word in words if "=" not in word))
    here.setattr("base.make_words.on_the_line", lambda goals: words)
    for word in named:
        key, _, value = word.replace("$$", "$").partition("=")
        if key == "ARGS":
            flags = shlex.split(value)
        else:
            here.setenv(key, value)
    return [name, *flags]


def advised(text: str) -> tuple[str, ...]:
    """The commands that a message ends with: that of its last line, or else all in it."""
    last = text.strip().splitlines()[-1] if text.strip() else ""
    found = ADVICE.findall(last.partition(": ")[2] or last) or ADVICE.findall(text)
    return tuple(dict.fromkeys(command.rstrip(" .,)") for command in found))


def test_commands_are_found_in_messages() -> None:
    assert advised("error: no\nType: make train VIEWS='a b' ARGS='--lr 3'\n") == (
        "make train VIEWS='a b' ARGS='--lr 3'",
    )
    assert advised("x; type make repair VIEW=a, or make gc.") == ("make repair VIEW=a", "make gc")


# ---------------------------------------------------------------- the situations


def view_of(place: Path, name: str) -> Path:
    return next(place.glob(f"cache/*/{name}-*"))


def cut(pattern: str) -> Callable[[Path], None]:
    """The last bytes of a file are lost."""

    def harm(place: Path) -> None:
        for path in sorted(place.glob(pattern))[:1]:
            path.write_bytes(path.read_bytes()[:-9])

    return harm


def lose(*patterns: str) -> Callable[[Path], None]:
    def harm(place: Path) -> None:
        for pattern in patterns:
            for path in sorted(place.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return harm


def twin(place: Path) -> None:
    """A second view of one name and another spec."""
    folder = view_of(place, "mine")
    shutil.move(folder, place / "aside")
    items = build_items(open_dataset(str(place / "pets"), place))
    toml = place / "other" / "mine.toml"
    emb = np.random.default_rng(1).normal(size=(8, 4))
    write_view(folder.parent, toml, emb, items.fingerprint)
    shutil.move(place / "aside", folder)


def recorded(place: Path) -> None:
    """The view of one's own knows its file."""
    shutil.rmtree(view_of(place, "mine"))
    items = build_items(open_dataset(str(place / "pets"), place))
    emb = np.random.default_rng(0).normal(size=(8, 4))
    toml, pets = place / "mine.toml", next(place.glob("cache/pets-*"))
    write_view(pets, toml, emb, items.fingerprint, spec_file=str(toml))


def second_digits(place: Path) -> None:
    """A copy of the data set under another fingerprint, and one under another name."""
    folder = next(place.glob("cache/digits-*"))
    shutil.copytree(folder, folder.with_name("digits-00000000"))


def other_pixels(place: Path) -> None:
    Image.new("RGB", (9, 9)).save(place / "pets" / "a" / "0.png")


def imported(place: Path) -> None:
    words = ["import", "--view", "got", "--source", "other.npz", "--data", "pets"]
    assert commands.main("coview.cli:COMMANDS", words) == 0


def imported_and_cut(place: Path) -> None:
    imported(place)
    cut("cache/pets-*/got-*/embeddings/c/0/0")(place)


def bare(place: Path) -> None:
    """Nothing says any more what a view's rows are."""
    for path in next(place.glob(PIXELS)).rglob("zarr.json"):
        path.write_text("{}")


def left_over(place: Path) -> None:
    (next(place.glob("cache/pets-*")) / "v-000000000000" / "embeddings").mkdir(parents=True)


def no_sweep(place: Path) -> None:
    (place / "runs" / "half" / "sweep.json").write_text("{}")


def broken_runs(place: Path) -> None:
    shutil.copytree(place / "runs" / "a", place / "runs" / "b")
    (place / "runs" / "a" / "environment.json").write_text("")


def masks(place: Path) -> None:
    for name in ("images", "masks"):
        (place / "seg" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(place / "seg" / name / "1.png")


def two_splits(place: Path) -> None:
    masks(place)
    (place / "seg" / "images").rename(place / "seg" / "train")
    (place / "seg" / "masks").rename(place / "seg" / "test")
    (place / "seg" / "metadata.csv").write_text("path,label,split\ntrain/1.png,cat,test\n")


def apart(place: Path) -> None:
    """In a world of its own."""


def nothing(place: Path) -> None:
    pass


@dataclass(frozen=True)
class Situation:
    """What is typed, and where it fails. before: what was done to the world; fill: what the user
    writes in the place of each `…`, in their order; after: what the message asks for besides."""

    site: str
    line: str
    fill: tuple[str, ...] = ()
    before: Callable[[Path], None] = nothing
    after: Callable[[Path], None] = nothing

    def __str__(self) -> str:
        return f"{self.site.rpartition('/')[2]} {self.line}"[:80]


S = Situation
PETS, REPAIR = "make train VIEWS=mine DATA=pets", "make repair VIEW=pixels DATA=digits"
IMPORT = "make import VIEW=got FROM=two.npz DATA=pets"
TRAIN, PIXELS = "make train VIEWS=pixels,edges DATA=digits", "cache/digits-*/pixels-*"
SITUATIONS = (
    # words that stand on the line
    S("base/commands.py:_chosen", "coview predcit --run a"),
    S("base/make_words.py:_refuse_name", "make train VIWES=pixels DATA=digits"),
    S("base/make_words.py:_refuse_name", "make predict RUN=a DATA=photos"),
    S("base/make_words.py:_refuse_name", "make report RUN=a TO=x.html"),
    S("base/make_words.py:_refuse_name", "make train VIEW=pixels VIEWS=pixels,edges DATA=digits"),
    S("base/make_words.py:_refuse_goal", "make status cache"),
    S("base/make_words.py:_refuse_goal", "make report a"),
    S("the parser", "coview predict --run a --data photos"),
    S("the parser", "make predict RUN=a ARGS=--nonsense"),
    S("the parser", "make predict RUN=a ARGS=--worker=0"),
    S("the parser", f"{TRAIN} ARGS='--hidden many --json'"),
    S("the parser", f"{TRAIN} GPUS=two", ("1",)),
    S("the parser", "coview train --veiws pixels --data digits"),
    S("base/devices.py:_parsed", "make extract VIEW=tiny-clip DATA=pets DEVICE=cud"),
    S("base/devices.py:_parsed", "make predict RUN=a DEVICE=tpu9"),
    S("extract/settings.py:check", "make extract VIEW=tiny-clip DATA=pets GPUS=0"),
    S("extract/settings.py:check", "make extract VIEW=tiny-clip DATA=pets ARGS='--batch -1'"),
    S("extract/settings.py:_refuse_missing", "make extract DATA=pets"),
    S("extract/settings.py:_refuse_missing", "make extract VIEW=tiny-clip,mine DATA=pets"),
    S("extract/settings.py:_refuse_name", "make extract VIEW=mine DATA=pets ARGS='--name /a'"),
    S("extract/bad_images.py:allowed", "make extract VIEW=mine DATA=pets ARGS='--max-bad x'"),
    S("train/config.py:_refuse_missing", "make train VIEWS=pixels"),
    S("train/config.py:_refuse_name", f"{TRAIN} RUN='my runs/one'"),
    S("train/config.py:_refuse_unknown", f"{TRAIN} METHOD=mtc"),
    S("train/config.py:_refuse_unknown", f"{TRAIN} METHOD=xyzzy"),
    S("train/config.py:_refuse_twice", f"{TRAIN} METHOD=mct,mct"),
    S("train/config.py:check", "make train VIEWS=pixels DATA=digits METHOD=mct"),
    S("train/config.py:check", f"{TRAIN} ARGS='--warmup 0 --cotrain 0'"),
    S("train/config.py:check", f"{TRAIN} ARGS='--patience 3'"),
    S("train/config.py:refuse_beyond_limits", f"{TRAIN} ARGS='--lr -1'"),
    S("train/config.py:seed_list", f"{TRAIN} SEEDS=0-4"),
    S("train/config.py:seed_list", f"{TRAIN} SEEDS=many"),
    S("train/algorithm/ranks.py:refuse_ranks", f"{TRAIN} GPUS=3"),
    S("base/devices.py:devices", f"{TRAIN} DEVICE=cuda"),
    S("base/devices.py:devices", "make extract VIEW=mine DATA=pets DEVICE=cuda"),
    S("train/data/splits.py:_wanted", f"{TRAIN} LABELS=0.1"),
    S("train/data/splits.py:_wanted", f"{TRAIN} LABELS=few", ("3",)),
    S("train/grid.py:combinations", "make sweep VIEWS=pixels,edges DATA=digits"),
    S("train/grid.py:_wrong", "make sweep VIEWS=pixels DATA=digits GRID='lr=1 lr=2'"),
    S("train/grid.py:_wrong", "make sweep VIEWS=pixels DATA=digits GRID=lrr=1,2"),
    S("train/grid.py:_wrong", "make sweep VIEWS=pixels DATA=digits GRID=xyzzy=1"),
    S("train/grid.py:_wrong", "make sweep VIEWS=pixels DATA=digits GRID=lr=a"),
    S("train/grid.py:_wrong", "make sweep VIEWS=pixels DATA=digits GRID=joint=a"),
    S("train/grid.py:check", "make sweep VIEWS=pixels DATA=digits GRID=lr=1 ARGS=--dry-run"),
    S("train/grid.py:check", "make sweep VIEWS=pixels DATA=digits GRID=lr=1 METHOD=knn"),
    # views
    S("cache_specs/spec.py:_no_view", "make extract VIEW=tiny-clp DATA=photos"),
    S("cache_specs/spec.py:_no_view", "make extract VIEW=xyzzy DATA=photos", ("tiny-clip",)),
    S("cache_specs/spec.py:_no_view", "make extract VIEW=no.toml DATA=photos", ("tiny-clip",)),
    S("train/data/reader.py:_named", "make train VIEWS=pixls,edges DATA=digits"),
    S("train/data/reader.py:_named", "make train VIEWS=gone/edges.toml,pixels DATA=digits"),
    S("cache_specs/store.py:find_view", "make train VIEWS=tiny-clip DATA=pets"),
    S("cache_specs/lookup.py:_refuse_unknown", "make extract VIEW=mine DATA=photos", (), recorded),
    S("cache_specs/store.py:several", "make train VIEWS=pixels,mine DATA=pets", (), twin),
    S("cache_specs/store.py:several", "make extract VIEW=mine DATA=pets", (), twin),
    S("cache_specs/lookup.py:_refuse_drift", "make train VIEWS=other/mine.toml DATA=pets"),
    S("cache_specs/lookup.py:_no_view", "make repair VIEW=pixls DATA=digits"),
    S(
        "cache_specs/lookup.py:_no_view",
        "make verify DATA=pets",
        ("pets",),
        lose("cache/pets-*/*-*"),
    ),
    S("cache_specs/lookup.py:one_view", "make export VIEW=pixels TO=x.h5"),
    S("cache_specs/lookup.py:find_views", "make verify VIEW=mine CACHE=no", ("photos",)),
    S("cache_specs/lookup.py:_spec_of", "make extract VIEW=got DATA=pets", (), imported),
    S("train/data/reader.py:_refuse_name", "make train VIEWS=pixels,pixels.toml DATA=pets"),
    S(
        "train/data/reader.py:_refuse_name",
        "make train VIEWS=mine.toml,other/mine.toml DATA=pets",
        (),
        twin,
    ),
    S("upkeep/repair.py:mend_view", "make repair DATA=pets"),
    S("upkeep/repair.py:_named", "make repair VIEW=mine DATA=pets ARGS='--shards 9'"),
    S("upkeep/status.py:dataset_records", "make status CACHE=no"),
    S("upkeep/gc.py:collect", "make gc CACHE=no", ("cache",)),
    # data sets
    S("cache_specs/words.py:read_as_class", "make extract VIEW=mine DATA=pets ARGS='--as-class a'"),
    S("extract/data/layout.py:_refuse_masks", "make extract VIEW=tiny-clip DATA=seg", (), masks),
    S(
        "extract/data/beside.py:_refuse_two_splits",
        "make extract VIEW=tiny-clip DATA=seg",
        (),
        two_splits,
    ),
    S("cache_specs/lookup.py:_no_dataset", "make train VIEWS=pixels DATA=digts"),
    S("cache_specs/lookup.py:_no_dataset", "make train VIEWS=tiny-clip DATA=photos", (), apart),
    S("cache_specs/lookup.py:find_dataset", TRAIN, (), second_digits),
    S("cache_specs/lookup.py:_refuse_other_source", "make train VIEWS=mine DATA=gone/pets"),
    S(
        "cache_specs/lookup.py:_refuse_other_source",
        "make train VIEWS=mine DATA=other/pets",
        ("tiny-clip", "others"),
    ),
    S("cache_specs/sources.py:split_subset", "make extract VIEW=tiny-clip DATA='pets#top0'"),
    S("extract/data/datasets.py:_adapter", "make extract VIEW=tiny-clip DATA=pet"),
    S("extract/data/datasets.py:_adapter", "make extract VIEW=tiny-clip DATA=xyzzy", ("photos",)),
    S(
        "extract/data/datasets.py:_most_common",
        "make extract VIEW=tiny-clip DATA='pets#top9'",
        ("pets",),
    ),
    S(
        "extract/prepare.py:_refuse_cached_name",
        "make extract VIEW=tiny-clip DATA=pets CACHE=../cache",
        (),
        lambda place: os.chdir(place / "photos"),
    ),
    S("predict/find.py:find_images", "make predict RUN=a IMAGES=phtos/a"),
    S("predict/find.py:find_images", "make predict RUN=a IMAGES=xyzzy", ("photos",)),
    S(
        "cache_specs/succession.py:succession",
        "make extract VIEW=tiny-clip DATA=pets",
        (),
        other_pixels,
    ),
    S("cache_specs/items.py:read_items", PETS, ("mine",), cut("cache/pets-*/items.parquet")),
    S("cache_specs/mend.py:mend_documents", REPAIR, ("digits",), bare, lose(PIXELS)),
    S("cache_specs/store.py:refuse_changed", f"{IMPORT} ARGS='--array one'", (), imported),
    S("upkeep/repair.py:_refuse_to_compute", "make repair VIEW=got", (), imported_and_cut),
    S("upkeep/gc.py:_confirmed", "make gc", (), left_over),
    S("extract/models/leaks.py:refuse_labels", "make extract VIEW=leak.toml DATA=pets"),
    # runs and models
    S("train/run/rundir.py:_best_of", "make predict RUN=half", ("a",), no_sweep),
    S("train/run/summary.py:checked", "make compare RUNS=a,b", ("a,half",), broken_runs),
    S("train/run/summary.py:checked", "make predict RUN=a", (), cut("runs/a/splits/*0*")),
    S("train/run/rundir.py:_no_such_run", "make predict RUN=aa"),
    S("train/run/rundir.py:_no_such_run", "make predict RUN=xyzzy", ("edges", "digits")),
    S("train/run/rundir.py:finished", "make predict RUN=half"),
    S("train/run/rundir.py:open_run", f"{TRAIN} RUN=a ARGS='--lr 1'"),
    S(
        "train/run/rundir.py:read_config",
        "make predict RUN=half",
        ("a",),
        cut("runs/half/config.json"),
    ),
    S("report/command.py:command", "make report"),
    S("report/compare.py:_too_few", "make compare RUNS=a", ("a,half",)),
    S("report/compare.py:_too_few", "make compare RUNS=a,a", ("a,half",)),
    S("report/html/page.py:page_file", "make compare RUNS=a,half TO=x.txt"),
    S("report/inspect/run.py:_refuse_missing", "make inspect DATA=pets"),
    S("predict/command.py:_no_run", "make predict IMAGES=photos"),
    S(
        "predict/command.py:_no_run",
        "make predict IMAGES=photos",
        ("pixels,edges", "digits"),
        lose("runs/*"),
    ),
    S("predict/command.py:_refuse_words", "make predict RUN=a MODEL=b"),
    S("predict/command.py:_refuse_words", "make predict MODEL=b", ("photos",)),
    S("predict/command.py:_refuse_words", "make predict MODEL=b IMAGES=photos METHOD=mct"),
    S("predict/command.py:_where_to", "make predict RUN=a TO=x.txt"),
    S(
        "predict/command.py:_where_to",
        "make predict RUN=a TO=photos.csv",
        (),
        lambda p: (p / "photos.csv").mkdir(),
    ),
    S("predict/command.py:_where_to", "make predict RUN=a TO=no/x.csv", ("x.csv",)),
    S(
        "predict/command.py:_where_to",
        "make predict RUN=a TO=x.csv",
        (),
        lambda p: (p / "x.csv").touch(),
    ),
    S("predict/from_run.py:choose_method", "make predict RUN=a METHOD=supervisd"),
    S("predict/from_run.py:_refuse_method", "make predict RUN=a METHOD=label-propagation"),
    S("predict/from_run.py:_open", "make predict RUN=a CACHE=photos"),
    S("predict/bundle/command.py:_where_to", "make export-model RUN=a"),
    S("predict/bundle/command.py:_where_to", "make export-model RUN=a TO=photos"),
    S("predict/bundle/command.py:_where_to", "make export-model RUN=a TO=no/x", ("x",)),
    S("predict/bundle/folder.py:_refuse_folder", "make predict MODEL=m IMAGES=photos", ("a",)),
    # weights
    S("extract/models/convert.py:convert", "make weights"),
    S("extract/models/convert.py:convert", "make weights FROM=x.pth", ("swav",)),
    S("extract/models/convert.py:_target", "make weights VIEW=clip", ("photos",)),
    S("extract/models/convert.py:_target", "make weights VIEW=mine.toml", ("other.npz",)),
    S("extract/models/convert.py:_digest", "make weights VIEW=swav FROM=no.pth"),
    S("extract/models/weights.py:_lost", "make extract VIEW=mine.toml DATA=pets", ("w",)),
    S(
        "extract/models/weights.py:_named",
        "make extract VIEW=mine.toml DATA=pets WEIGHTS=no",
        ("other",),
    ),
    S("extract/models/weights.py:_converted", "make extract VIEW=swav DATA=pets"),
    # other embeddings
    S("exchange/importer.py:_refuse_unusable", "make import VIEW=a"),
    S("exchange/importer.py:_refuse_name", "make import VIEW=/a FROM=other.npz"),
    S("exchange/source.py:_usual_name", "make import VIEW=a FROM=two.npz DATA=pets"),
    S(
        "exchange/source.py:choose_embeddings",
        "make import VIEW=a FROM=two.npz DATA=pets ARGS='--array twoo'",
    ),
    S("exchange/match.py:_say_left_out", "make import VIEW=a FROM=few.npz DATA=pets"),
    S("exchange/export.py:_target", "make export VIEW=mine", ("pets",)),
    S("exchange/export.py:_target", "make export VIEW=mine TO=x.txt"),
    S(
        "exchange/export.py:_target",
        "make export VIEW=mine TO=x.h5",
        (),
        lambda p: (p / "x.h5").touch(),
    ),
    # damage
    S("cache_specs/integrity.py:read_seal", TRAIN, ("digits",), lose(f"{PIXELS}/complete.json")),
    S("cache_specs/integrity.py:read_seal", TRAIN, (), cut(f"{PIXELS}/complete.json")),
    S("cache_specs/integrity.py:damaged", TRAIN, (), cut(f"{PIXELS}/status/c/0")),
    S("cache_specs/store.py:open_view", TRAIN, (), cut(f"{PIXELS}/zarr.json")),
    S("upkeep/verify.py:_all_of", "make verify", (), cut(f"{PIXELS}/status/c/0")),
)


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_what_a_message_advises_gets_further(
    situation: Situation, here: Path, typing: Callable[[str], Said]
) -> None:
    situation.before(here)
    first = typing(situation.line)
    assert first.site == situation.site, first
    assert first.advice, first.text
    situation.after(here)
    fill = list(situation.fill)
    for command in first.advice:
        line = re.sub(UNKNOWN, lambda found: fill.pop(0), command)
        then = typing(line)
        assert then.site != first.site, (line, then.text)
    assert not fill


# ---------------------------------------------------------------- are these all?


NO_SITUATION = {
    "it begins with an accident of the disk or the network, which its own test brings about": (
        "cache_specs/integrity.py:check",
        "extract/canary.py:_read",
        "extract/models/convert.py:_fetch",
        "extract/reuse.py:_copied",
        "predict/bundle/folder.py:read_model",
        "predict/from_run.py:_tensors",
        "report/run.py:read_run",
        "train/data/reader.py:refuse_changed",
        "train/run/checkpoint.py:load_checkpoint",
    ),
    "it needs a machine with GPUs, or with too little memory, which its own test pretends": (
        "base/devices.py:_numbered",
        "base/limits.py:too_little",
    ),
    "a version of before made it, and its own test has that": (
        "predict/bundle/folder.py:_of_another_version",
        "predict/from_run.py:_split",
    ),
    "the command is that of another error, which is typed": (
        "cache_specs/succession.py:_relabel",  # succession
        "cache_specs/succession.py:_succession",  # succession
        "exchange/match.py:_refuse_other_contents",  # _no_dataset
        "upkeep/verify.py:_check_stored",  # _all_of
    ),
    "images must be embedded first, and its own test does": (
        "extract/bad_images.py:refuse",
        "predict/images.py:_of_several",
        "predict/images.py:backbones",
        "predict/images.py:spec_of",
        "predict/label.py:rows_of_cache",
        "upkeep/originals.py:find_originals",
        "upkeep/recompute.py:compare_rows",
    ),
    "it sums up what was printed before, each line with its own command": (
        "upkeep/doctor.py:doctor",
    ),
}


def advising() -> Iterator[str]:
    """The functions that make an error with a command: one that is changed (`instead`), or one in
    its text."""
    kinds = {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)}
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for scope in ast.walk(ast.parse(path.read_text())):
            if not isinstance(scope, ast.FunctionDef):
                continue
            for node in ast.walk(scope):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in kinds:
                    words = ast.unparse(node)
                    changed = len(node.args) > 1 or "instead" in {one.arg for one in node.keywords}
                    if changed or COMMAND.search(words):
                        yield f"{path.relative_to(ROOT)}:{scope.name}"


ROOMS = ("base", "cache_specs", "extract", "exchange", "upkeep", "train", "predict", "report")
COMMAND = re.compile(rf"make (?:{NAMES}|{{\w+}})\b(?!-)|\bcommand\(|EXAMPLE|_on_purpose")


def test_every_advice_is_typed_or_there_is_a_reason() -> None:
    """Whoever adds an error with a command adds what brings it about to SITUATIONS."""
    typed = {situation.site for situation in SITUATIONS}
    found, excused = set(advising()), {site for sites in NO_SITUATION.values() for site in sites}
    assert not found - typed - excused, sorted(found - typed - excused)
    assert not excused & typed and not excused - found, sorted(excused & typed | excused - found)
