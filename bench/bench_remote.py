"""How fast `make push` and `make pull` are, beside the library that they stand on, in turns.

    python bench/bench_remote.py [--mb 256] [--rounds 5] [--out bench/results/remote.json]

One made view, in a folder of this disk and in a server of S3 on this machine (moto's, a process of
its own, which is no fast one). `push` checks, sends, reads back and compares every object; beside
it obstore alone, with as many threads, sends the same files and reads them. `pull` fetches,
compares, and writes to the disk for good (fsync); beside it obstore alone fetches the same objects
and writes them as files. MB/s, medians [lowest to highest].
"""

import argparse
import contextlib
import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import obstore

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_cache import machine, spread

from cache_specs.view import View
from exchange.config import ImportConfig, PullConfig, PushConfig
from exchange.importer import import_view
from exchange.remote.objects import Place
from exchange.remote.pull import pull
from exchange.remote.push import THREADS, push

WIDTH = 512


def made(cache: Path, megabytes: int) -> View:
    rows = megabytes * 1_000_000 // (2 * WIDTH)
    emb_ND = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float16)
    keys = np.array([f"{row:07}" for row in range(rows)])
    path = cache.parent / "made.npz"
    np.savez(path, embeddings=emb_ND, keys=keys, y=np.full(rows, -1))
    asked = ImportConfig(view="made", source=str(path), cache=str(cache), name="made")
    return import_view(asked)


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """The address of a place in an empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    try:
        made_bucket = urllib.request.Request(f"{url}/bucket", method="PUT")
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(made_bucket).close()
                break
            time.sleep(0.2)
        yield "s3://bucket/views"
    finally:
        server.terminate()
        server.wait()


def bare_push(files: dict[str, Path], place: Place) -> None:
    def one(name: str) -> None:
        obstore.put(place.store, name, files[name].read_bytes(), use_multipart=False)
        obstore.get(place.store, name).bytes()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, files))


def bare_pull(files: dict[str, Path], place: Place, to: Path) -> None:
    def one(name: str) -> None:
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(obstore.get(place.store, name).bytes().to_bytes())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, files))


def turn(view: View, address: str, folder: Path, number: int) -> dict[str, float]:
    """Seconds of each."""
    files = {str(p.relative_to(view.folder)): p for p in view.folder.rglob("*") if p.is_file()}
    to, alone = f"{address}/{number}", f"{address}/alone{number}"
    asked = PushConfig(view="made", data="made", to=to, cache=str(view.folder.parent.parent))
    acts: dict[str, Callable[[], object]] = {
        "push": lambda: push(asked),
        "obstore, sent and read": lambda: bare_push(files, Place(alone, make=True)),
        "pull": lambda: pull(PullConfig(source=to, cache=str(folder / "pulled"))),
        "obstore, fetched": lambda: bare_pull(files, Place(alone), folder / "fetched"),
    }
    found = {}
    for name, act in acts.items():
        begun = time.perf_counter()
        act()
        found[name] = time.perf_counter() - begun
    for rest in ("pulled", "fetched"):
        shutil.rmtree(folder / rest)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/remote.json")
    args = parser.parse_args()
    date = datetime.date.today().isoformat()
    record: dict[str, Any] = {"date": date, "machine": machine(), "MB": args.mb, "MB_per_s": {}}
    with tempfile.TemporaryDirectory(prefix="bench-remote-") as name, s3() as bucket:
        folder = Path(name)
        view = made(folder / "cache", args.mb)
        for kind, address in (("folder", str(folder / "shelf")), ("S3", bucket)):
            turns = [turn(view, address, folder, number) for number in range(args.rounds + 1)]
            record["MB_per_s"][kind] = told = {}
            for what in turns[0]:  # the first round is not counted
                told[what] = spread([args.mb / one[what] for one in turns[1:]])
            for what, rate in told.items():
                spread_of = f"[{rate['low']:.0f} to {rate['high']:.0f}]"
                print(f"{kind:7}{what:24}{rate['median']:8.0f} {spread_of}", flush=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
