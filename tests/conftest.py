"""What tests share: small real caches, and running the commands as a user would."""

import contextlib
import dataclasses
import gc
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # two processes of tests share two cores; torch's threads would spin against each other
os.environ["HF_HUB_OFFLINE"] = "1"  # what would be fetched is missing at once
os.environ["CUDA_VISIBLE_DEVICES"] = (
    ""  # the same tests on every machine; what needs a GPU is in tools/check_gpu.py
)

import numpy as np
import pytest
import server
from PIL import Image

from base import console, durable
from cache_specs import integrity, store
from cache_specs.items import Items, class_index
from cache_specs.spec import load_spec
from cache_specs.succession import write_items
from extract.config import ExtractConfig

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a job in a shell's background ignores Ctrl-C, and so would all that the tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).parent.parent
# of a cache: what only remembers, for this machine, that somebody was there
LOCKS = (".lock", ".lock-parts", ".lock-users")
NOTES = ("verified.json", "agreed.json", "stamps.bin", *LOCKS)
pytest_plugins = ["browser"]
VIEW_TOML = """
backend = "transformers"
architecture = "Dinov2Model"
output = "cls"
width = {width}
storage_dtype = "float16"
compute_dtype = "float32"
[weights]
path = "none"
files = ["config.json", "model.safetensors"]
[preprocess]
resize = 8
resize_rule = "squash"
crop = 8
interpolation = "bicubic"
antialias = true
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


def importing(*folders: Path, **more: str) -> dict[str, str]:
    """The environment of a child process that finds modules in these folders before all others."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, (*map(str, folders), os.environ.get("PYTHONPATH")))
        ),
        **more,
    }


def python(program: str, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    """A program with these arguments, in a process of its own that knows our packages."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=importing(ROOT, OMP_NUM_THREADS="1"),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done


def write_view(
    dataset: Path,
    toml: Path,
    emb_ND: np.ndarray,
    items_fingerprint: str,
    rows: int = 512,
    status: np.ndarray | None = None,
    spec_file: str = "",
) -> store.View:
    """A sealed view of given embeddings, through the production writer. spec_file: the place that
    is recorded."""
    spec = load_spec(str(toml))
    view = store.create_view(
        dataset,
        spec.name,
        spec.declared(),
        "0" * 64,
        (items_fingerprint, len(emb_ND)),
        rows,
        {"batch": 1, **({"spec_file": spec_file} if spec_file else {})},
    )
    with store.writer_lock(view.folder):
        for shard in view.pending():
            first, last = view.bounds(shard)
            emb = np.full((rows, view.width), np.nan, np.float16)
            state = np.zeros(rows, np.uint8)
            emb[: last - first] = emb_ND[first:last]
            if status is not None:
                state[: last - first] = status[first:last]
            store.write_shard(view, shard, emb, state)
        integrity.seal(view)
    return view


def write_views(folder: Path, dataset: Path, fingerprint: str, emb: dict[str, np.ndarray]) -> str:
    """A TOML file and a finished view of each array; their paths, as VIEWS=."""
    for name, emb_ND in emb.items():
        (folder / f"{name}.toml").write_text(VIEW_TOML.format(width=emb_ND.shape[1]))
        write_view(dataset, folder / f"{name}.toml", emb_ND, fingerprint)
    return ",".join(str(folder / f"{name}.toml") for name in emb)


def pixels_and_edges(images_nHW: np.ndarray) -> dict[str, np.ndarray]:
    """Two views of pictures that are no model's: the grey values, and their differences
    to the right and downwards."""
    padded = np.pad(images_nHW, ((0, 0), (1, 1), (1, 1)))
    edges = np.concatenate(
        [padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]], 1
    )
    return {
        "pixels": images_nHW.reshape(len(images_nHW), -1),
        "edges": edges.reshape(len(images_nHW), -1),
    }


def reseal(run: Path) -> None:
    """Let a run's summary take its changed files for the true ones."""
    summary = durable.read_sealed(run / "summary.json")
    summary["files"] = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in summary["files"]
    }
    (run / "summary.json").write_bytes(durable.sealed(summary))


class Made:
    """A cache of digits with cheap views: `pixels`, `edges` (oriented gradients) and, on
    request, `thirds` (block means)."""

    def __init__(
        self, folder: Path, labels: list[str] | None = None, bad: list[int] | None = None
    ) -> None:
        from sklearn.datasets import load_digits

        from extract.data.datasets import _digits

        images = load_digits().images.astype(np.float32)
        keys, names, splits, _ = _digits("digits", folder)
        label, classes = class_index(labels or names)
        self.items = Items(
            "digits",
            "digits",
            keys,
            label,
            splits,
            np.ones(len(keys), np.int64),
            [f"{i:064x}" for i in range(len(keys))],
            classes,
        )
        self.cache = folder / "cache"
        self.dataset = write_items(self.cache, self.items)
        self.emb = {
            **pixels_and_edges(images),
            "thirds": images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(len(images), -1),
        }
        self.tomls: dict[str, Path] = {}
        for name, emb in self.emb.items():
            self.tomls[name] = folder / f"{name}.toml"
            self.tomls[name].write_text(VIEW_TOML.format(width=emb.shape[1]))
            status = np.zeros(len(emb), np.uint8)
            if bad and name == "edges":
                status[bad] = 1
                emb[bad] = np.nan
            write_view(self.dataset, self.tomls[name], emb, self.items.fingerprint, status=status)

    def views(self, *names: str) -> str:
        return ",".join(str(self.tomls[name]) for name in names)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # thousands of tests and what they have imported stay to the end: no more looks


def pytest_sessionfinish() -> None:
    gc.unfreeze()
    if server.server.cache_info().currsize:
        server.server().close()


@pytest.fixture(autouse=True)
def rendered() -> Iterator[None]:
    """What the library logs is printed, as the command line does it."""
    with console.rendering():
        yield


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[None]:
    """What many tests read. At the end of the session it must be as it was."""
    before = digests(folder)
    yield
    after = digests(folder)
    changed = [path for path in before | after if before.get(path) != after.get(path)]
    assert not changed, f"a test has changed what all tests share: {changed}"


def digests(folder: Path) -> dict[Path, str]:
    """Of every file below, but of those that only remember that somebody was there."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOTES
    }


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("made")
    found = Made(folder)
    with shared(folder):
        yield found


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess]:
    """command("train", "--views", …): run `coview train …` in a process;
    .returncode, .stdout, .stderr.

    first: code that this process runs before. more: what `server.Popen` takes."""

    def run(
        name: str,
        *args: object,
        env: dict[str, str] | None = None,
        timeout: float = 240,
        first: str = "",
        **more: object,
    ) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            **server.FIXED,
            "COVIEW_MAKE": "",
            **(env or {}),
        }  # make's form
        program = (
            ["-c", f"{first}\nfrom coview.cli import run\nrun()"] if first else ["-m", "coview.cli"]
        )
        args = (
            *args,
            *["--no-report"] * (name == "train" and not {"--report", "--help"} & {*args}),
        )  # tests of the report ask for it
        return server.run(
            [sys.executable, *program, name, *map(str, args)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            **more,
        )

    return run


N, BATCH, ROWS, BAD = (
    45,
    8,
    16,
    20,
)  # 3 shards, the last batch of the last one is padded; row 20 is a truncated file


def make_images(folder: Path) -> Path:
    chance = np.random.default_rng(0)
    for i in range(N):
        path = folder / "photos" / f"{'ab'[i % 2]}" / f"{i:03d}.{'jpg' if i % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(chance.integers(0, 256, (6, 5 + i % 4, 3), np.uint8)).resize(
            (40 + i, 60 - i), Image.Resampling.BICUBIC
        )
        image.save(path, quality=90)
    bad = sorted((folder / "photos").rglob("*.*"))[BAD]
    bad.write_bytes(bad.read_bytes()[:-200])
    return folder / "photos"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = make_images(tmp_path_factory.mktemp("images"))
    with shared(folder):
        yield folder


def config(photos: Path, cache: Path, **changes: object) -> ExtractConfig:
    base = ExtractConfig(
        view="tiny-clip",
        data=str(photos),
        cache=str(cache),
        device="cpu",
        batch=BATCH,
        shard_rows=ROWS,
        workers=0,
        max_bad="10%",
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the digits as both bundled models see them."""
    from extract.run import run

    cache = tmp_path_factory.mktemp("digits") / "cache"
    both = config(Path("digits"), cache, view="", views="tiny-clip,tiny-dinov2")
    run(dataclasses.replace(both, batch=64, shard_rows=512), {})
    with shared(cache):
        yield cache


EXTRACT = """
import json, sys
from extract.config import ExtractConfig
from extract.run import run
run(ExtractConfig(**json.loads(sys.argv[1])))
"""  # a program: an extraction by settings in JSON
