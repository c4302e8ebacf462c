"""One small extraction and its trials: in this process, or in forked children that are killed,
refused or in each other's way."""

import ctypes
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import server
from conftest import ROOT, VIEW_TOML

from base import durable, locks
from base.errors import CoviewError, RankDiedError
from cache_specs import integrity, store
from cache_specs import mend as cache_mend
from cache_specs.items import Items
from cache_specs.spec import load_spec
from cache_specs.store import View
from cache_specs.succession import write_items

SHARDS, ROWS, WIDTH, BAD = 3, 16, 8, 5  # row BAD has the status "non-finite"
UNEQUAL = (
    "verified.json",
    "agreed.json",
    "stamps.bin",
    ".lock",
    ".lock-parts",
)  # inodes, process ids: never the same in two runs
MODULES = ("google_crc32c", "pyarrow.parquet", "zarr.codecs", "zarr.storage", "faults")
TRIAL = "import faults, sys; sys.exit(faults.child(sys.argv[1]))"
SHELL = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1], shell=True, stderr=1))"
_servers: dict[tuple[str, ...], server.Server] = {}
Steps = list[dict[str, Any] | list[dict[str, Any]]]


# --- the extraction


def rows(shards: int = SHARDS) -> tuple[np.ndarray, np.ndarray]:
    """The (N, D) embeddings and (N,) status of every trial."""
    n = shards * ROWS - 5
    emb_ND = np.random.Generator(np.random.Philox(key=1)).normal(size=(n, WIDTH)).astype(np.float16)
    status_N = np.zeros(n, np.uint8)
    emb_ND[BAD], status_N[BAD] = np.nan, store.STATUS.index("non-finite")
    return emb_ND, status_N


@functools.cache
def declared() -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(VIEW_TOML.format(width=WIDTH))
        file.flush()
        return load_spec(file.name).declared()


def create(folder: Path, shards: int = SHARDS) -> View:
    n = shards * ROWS - 5
    keys = [f"{i:03d}.png" for i in range(n)]
    items = Items(
        "d",
        "folder",
        keys,
        np.arange(n, dtype=np.int32) % 2,
        [""] * n,
        np.ones(n, np.int64),
        [key * 9 for key in keys],
        ["a", "b"],
    )
    dataset = write_items(folder / "cache", items)
    return store.create_view(
        dataset, "v", declared(), "0" * 64, (items.fingerprint, n), ROWS, {"batch": 1}
    )


def extract(
    folder: Path,
    shards: int = SHARDS,
    parts: int = 1,
    log: Path | None = None,
    slow: float = 0,
    part_faults: dict[str, str] | None = None,
) -> View:
    """What `make extract` does to a cache below `folder`, with `parts` processes; every shard
    computed is a line of `log`."""
    view = create(folder, shards)
    if not view.is_complete:
        with store.writer_lock(view.folder):
            integrity.check_commits(view)
            if parts == 1:
                write_part(view, 0, 1, log, slow)
            else:
                fork_parts(view, parts, log, slow, part_faults or {})
            integrity.seal(view)
    status = integrity.check(view)
    assert status.tolist() == rows(shards)[1].tolist()
    return view


def write_part(view: View, part: int, parts: int, log: Path | None = None, slow: float = 0) -> None:
    emb_ND, status_N = rows(view.shards)
    for shard in view.pending():
        if shard % parts != part:
            continue
        if log:
            with log.open("a") as file:
                file.write(f"{shard}\n")
        time.sleep(slow)
        first, last = view.bounds(shard)
        emb_RD, status_R = np.full((ROWS, WIDTH), np.nan, np.float16), np.zeros(ROWS, np.uint8)
        emb_RD[: last - first], status_R[: last - first] = emb_ND[first:last], status_N[first:last]
        store.write_shard(view, shard, emb_RD, status_R)


def fork_parts(
    view: View, parts: int, log: Path | None, slow: float, part_faults: dict[str, str]
) -> None:
    parent, children = os.getpid(), []
    for part in range(parts):
        child = os.fork()
        if not child:
            ctypes.CDLL(None).prctl(
                1, signal.SIGKILL
            )  # PR_SET_PDEATHSIG: as the processes of an extraction
            if os.getppid() != parent:
                os._exit(1)
            for handle in os.listdir(
                "/proc/self/fd"
            ):  # a spawned process has none of its parent's files, so not its lock
                if os.path.basename(os.path.realpath(f"/proc/self/fd/{handle}")) in (
                    ".lock",
                    ".lock-parts",
                ):
                    os.close(int(handle))
            os.environ["COVIEW_FAULT"] = part_faults.get(str(part), "")
            durable._passed = 0
            try:
                with locks.shared_lock(view.folder, store.PARTS):
                    write_part(view, part, parts, log, slow)
                os._exit(0)
            except CoviewError as error:
                os._exit(error.exit_code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RankDiedError(f"processes ended with {codes}")


def mend(folder: Path) -> list[int]:
    """What `make repair` does before it extracts; the shards that are lost."""
    (view_folder,) = (folder / "cache").glob("d-*/v-*")
    with store.writer_lock(view_folder):
        return cache_mend.mend(view_folder)[2]


def refused(folder: Path) -> str:
    """Why the check does not accept the view; '' where it does, and then every
    row must be the right one."""
    found = list((folder / "cache").glob("d-*/v-*"))
    if not found:
        return "no view"
    try:
        view = store.open_view(found[0])
        status_N = integrity.check(view)
    except CoviewError as error:
        return f"{type(error).__name__}: {error}"
    emb_ND = np.concatenate(
        [
            np.fromfile(view.embeddings_file(shard), np.float16, ROWS * WIDTH).reshape(ROWS, WIDTH)
            for shard in range(view.shards)
        ]
    )
    right_ND, right_N = rows(view.shards)
    assert (
        emb_ND[: view.n].tobytes() == right_ND.tobytes() and status_N.tolist() == right_N.tolist()
    ), "the check accepted a wrong row"
    return ""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the cache but what differs between any two runs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "cache").rglob("*"))
        if path.is_file() and path.name not in UNEQUAL and "strays" not in path.parts
    }


# --- trials in children


def trial(
    folder: Path, do: str = "extract", fault: str = "", kill_after: float = 0, **options: Any
) -> dict[str, Any]:
    """One child: `do` in extract, mend, refused; with COVIEW_FAULT, or killed after so many
    seconds. See `extract` for the options."""
    if do == "extract":
        options["log"] = f"{folder}.log"
    return {
        "folder": str(folder),
        "do": do,
        "fault": fault,
        "kill_after": kill_after,
        "options": options,
    }


def run(steps: Steps, prefix: tuple[str, ...] = ()) -> list[list[list[Any]]]:
    """Take the steps one after the other: a trial, a list of trials at once, or {"sh": a command}.
    Of each step its results: [exit status, message, pid, seconds]; -9 for a killed child."""
    if prefix not in _servers:
        _servers[prefix] = server.Server(MODULES, prefix)
    found = []
    for step in steps:
        if "sh" in step:
            found.append([_start(_servers[prefix], SHELL, step["sh"]).result()])
            continue
        jobs = step if isinstance(step, list) else [step]
        running = [
            _start(_servers[prefix], TRIAL, json.dumps(job), COVIEW_FAULT=job["fault"])
            for job in jobs
        ]
        waiting = sorted(zip(jobs, running, strict=True), key=lambda pair: pair[0]["kill_after"])
        for job, one in waiting:
            if job["kill_after"]:
                time.sleep(max(0, one.begun + job["kill_after"] - time.monotonic()))
                one.process.kill()
        found.append([one.result() for one in running])
    return found


@dataclass
class _Running:
    process: server.Popen
    begun: float

    def result(self) -> list[Any]:
        message, _ = self.process.communicate()
        seconds = time.monotonic() - self.begun
        return [self.process.returncode, message, self.process.pid, seconds]


def _start(by: server.Server, program: str, what: str, **environment: str) -> _Running:
    begun = time.monotonic()
    process = server.Popen(
        [sys.executable, "-c", program, what],
        by=by,
        cwd=ROOT,
        env={**os.environ, **server.FIXED, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    return _Running(process, begun)


def close() -> None:
    """End the processes that took the steps."""
    while _servers:
        _servers.popitem()[1].close()


def computed(folder: Path) -> list[int]:
    log = Path(f"{folder}.log")
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def child(order: str) -> int:
    """One trial; its message is what it prints."""
    job = json.loads(order)
    folder, options = Path(job["folder"]), job["options"]
    try:
        if job["do"] == "extract":
            folder.mkdir(exist_ok=True)
            extract(folder, **{**options, "log": Path(options["log"])})
        else:
            print(
                json.dumps({"mend": mend, "refused": refused}[job["do"]](folder, **options)), end=""
            )
    except CoviewError as error:
        print(error, end="")
        return error.exit_code
    except BaseException:
        print(traceback.format_exc(), end="")
        return 99
    return 0


def holder(message: str) -> int:
    """The process that a refused writer names."""
    found = re.search(r"is being written by process (\d+) on ", message)
    return int(found[1]) if found else 0
