"""How fast our cache is read, beside what else reads embeddings: make bench-cache (about 4 minutes,
5 GB of disk below TMPDIR).

    python bench/bench_cache.py [--quick] [--out bench/results/cache.json]
                                [--folder where the data are made]

All readers of a section take turns in one process for several rounds, so that they meet the same
load of the machine; a figure is the median over the rounds with [lowest to highest]. Peak memory is
measured in a process per reader. A peer that is not installed is left out by name. The page cache
is warm unless a line says cold (which needs a disk: no tmpfs). One OpenMP thread. Prints tables and
writes JSON. With --quick the figures mean nothing, and -1 stands for a memory that was not
measured.
"""

import argparse
import datetime
import functools
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from stream import Draw, Order, stream

from cache_specs import integrity, store
from cache_specs.spec import load_spec
from train.data.reader import gather, map_view

BATCH, SHARD, BLOCK, WINDOW = 1024, 4096, 256, 128
PACKAGES = ("numpy", "torch", "zarr", "tensorstore", "h5py", "datasets", "pyarrow")
FULL = {
    "n": 400_000,
    "width": 768,
    "rounds": 9,
    "slice_s": 0.12,
    "opens": 9,
    "open_shards": 1000,
    "deep_rounds": 9,
    "sparse_n": 10_000_000,
    "cold_rounds": 5,
    "peaks": True,
}
QUICK = {
    "n": 20_000,
    "width": 64,
    "rounds": 2,
    "slice_s": 0.005,
    "opens": 1,
    "open_shards": 20,
    "deep_rounds": 2,
    "sparse_n": 100_000,
    "cold_rounds": 1,
    "peaks": False,
}
CHECKED, UNCHECKED, DEEP = (
    "ours: open_view, check, map_view",
    "ours, nothing checked",
    "ours, every digest checked",
)
OURS, STREAM, BY_ROWS, OUR_CHECK = (
    "ours: map_view + gather",
    "ours: stream",
    ", row by row",
    "ours: integrity.check",
)
Folder = Path


# --- the data: one set of embeddings in every layout


def the_view(folder: Folder) -> store.View:
    return store.open_view(next(path.parent for path in folder.glob("*/zarr.json")))


def write_view(
    folder: Folder, n: int, width: int, rows: Callable[[int, int], np.ndarray]
) -> store.View:
    """A sealed view by the production writer, but for fsync: setting up is not what is measured."""
    sync, os.fsync = os.fsync, lambda handle: None
    try:
        view = store.create_view(
            folder,
            "bench",
            {**load_spec("dinov2").declared(), "width": width},
            "0" * 64,
            ("1" * 64, n),
            SHARD,
            {},
        )
        with store.writer_lock(view.folder):
            for shard in view.pending():
                first, last = view.bounds(shard)
                emb_RD = np.full((SHARD, width), np.nan, np.float16)
                emb_RD[: last - first] = rows(first, last)
                store.write_shard(view, shard, emb_RD, np.zeros(SHARD, np.uint8))
            integrity.seal(view)
    finally:
        os.fsync = sync
    return view


def make_data(folder: Folder, size: dict[str, Any]) -> None:
    n, width = size["n"], size["width"]
    emb_ND = np.empty((n, width), np.float16)
    draws = np.random.default_rng(0)
    for at in range(0, n, SHARD):
        emb_ND[at : at + SHARD] = draws.standard_normal(
            emb_ND[at : at + SHARD].shape, dtype=np.float32
        )
    np.save(folder / "emb.npy", emb_ND)
    write_view(folder / "view", n, width, lambda first, last: emb_ND[first:last])
    write_view(
        folder / "many",
        size["open_shards"] * SHARD,
        64,
        lambda first, last: np.zeros((last - first, 64), np.float16),
    )
    if here("h5py"):
        import h5py

        with h5py.File(folder / "contiguous.h5", "w") as file:
            file["emb"] = emb_ND
        with h5py.File(folder / "chunked.h5", "w") as file:
            file.create_dataset("emb", data=emb_ND, chunks=(BLOCK, width))
    if here("datasets"):
        import pyarrow as pa

        with pa.OSFile(str(folder / "emb.arrow"), "wb") as sink:
            schema = pa.schema([("emb", pa.list_(pa.float16(), width))])
            with pa.ipc.new_stream(sink, schema) as writer:
                for at in range(0, n, 1000):  # the size of batches that `datasets` itself writes
                    column = pa.FixedSizeListArray.from_arrays(
                        pa.array(emb_ND[at : at + 1000].ravel()), width
                    )
                    writer.write_batch(pa.record_batch([column], schema=schema))
    os.sync()


def here(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# --- the readers. Imports are inside, so that a peer may be missing


def npy(folder: Folder) -> np.ndarray:
    return np.load(folder / "emb.npy", mmap_mode="r")


def ram(folder: Folder) -> np.ndarray:
    return np.load(folder / "emb.npy")


def ram_tensor(folder: Folder) -> Any:
    import torch

    torch.set_num_threads(1)
    return torch.from_numpy(ram(folder))


def ours(folder: Folder) -> np.ndarray:
    view = the_view(folder / "view")
    integrity.check(view)
    return map_view(view)


def zarr_array(folder: Folder) -> Any:
    import zarr

    return zarr.open_array(the_view(folder / "view").folder / "embeddings", mode="r")


def h5(folder: Folder, name: str) -> Any:
    import h5py

    return h5py.File(folder / f"{name}.h5", "r")["emb"]


def tensor(folder: Folder, cache: int) -> Any:
    import tensorstore as ts

    path = str(the_view(folder / "view").folder / "embeddings")
    return ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": path},
            "context": {"cache_pool": {"total_bytes_limit": cache}},
            "recheck_cached_data": False,
        },
        read=True,
    ).result()


def hf(folder: Folder, form: str) -> Any:
    import datasets

    return datasets.Dataset.from_file(str(folder / "emb.arrow")).with_format(form)


def take(emb_ND: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.take(emb_ND, rows, axis=0, mode="clip")


def index_select(emb_ND: Any, rows: np.ndarray) -> Any:
    import torch

    return torch.index_select(emb_ND, 0, torch.from_numpy(rows))


def h5_rows(array: Any, rows: np.ndarray) -> np.ndarray:
    """h5py wants rising row numbers, each once."""
    unique, inverse = np.unique(rows, return_inverse=True)
    return array[unique][inverse]


def arrow(data: Any, which: np.ndarray | slice, copy: bool = False) -> np.ndarray:
    chunks = [
        chunk.flatten().to_numpy().reshape(-1, chunk.type.list_size)
        for chunk in data[which]["emb"].chunks
    ]
    return chunks[0] if len(chunks) == 1 and not copy else np.concatenate(chunks)


# name -> (package it needs, how it is opened, how it gathers (B,) rows)
GATHER: dict[str, tuple[str, Callable[[Folder], Any], Callable[[Any, np.ndarray], Any]]] = {
    "RAM, torch.index_select": ("torch", ram_tensor, index_select),
    "RAM, np.take": ("numpy", ram, take),
    OURS: ("numpy", ours, gather),
    "npy memory map": ("numpy", npy, take),
    "HF datasets, arrow": ("datasets", lambda folder: hf(folder, "arrow"), arrow),
    "HF datasets, numpy (float32)": (
        "datasets",
        lambda folder: hf(folder, "numpy"),
        lambda data, rows: data[rows]["emb"],
    ),
    "h5py contiguous": ("h5py", lambda folder: h5(folder, "contiguous"), h5_rows),
    "h5py chunks of 256 rows": ("h5py", lambda folder: h5(folder, "chunked"), h5_rows),
    "tensorstore, 1 GB cache": (
        "tensorstore",
        lambda folder: tensor(folder, 1 << 30),
        lambda array, rows: array[rows].read().result(),
    ),
    "tensorstore, no cache": (
        "tensorstore",
        lambda folder: tensor(folder, 0),
        lambda array, rows: array[rows].read().result(),
    ),
    "zarr API": ("zarr", zarr_array, lambda array, rows: array.oindex[rows]),
}
# name -> (package it needs, how it is opened, how it copies the rows of a slice, the rows that it
# reads at once)
CUT: dict[str, tuple[str, Callable[[Folder], Any], Callable[[Any, slice], Any], int]] = {
    "RAM, copy": ("numpy", ram, lambda emb_ND, part: emb_ND[part].copy(), BLOCK),
    "ours: map_view, copy": ("numpy", ours, lambda emb_ND, part: emb_ND[part].copy(), BLOCK),
    "npy memory map, copy": ("numpy", npy, lambda emb_ND, part: emb_ND[part].copy(), BLOCK),
    "HF datasets, arrow": (
        "datasets",
        lambda folder: hf(folder, "arrow"),
        functools.partial(arrow, copy=True),
        BLOCK,
    ),
    "h5py contiguous": (
        "h5py",
        lambda folder: h5(folder, "contiguous"),
        lambda array, part: array[part],
        BLOCK,
    ),
    "h5py chunks of 256 rows": (
        "h5py",
        lambda folder: h5(folder, "chunked"),
        lambda array, part: array[part],
        BLOCK,
    ),
    "tensorstore, no cache": (
        "tensorstore",
        lambda folder: tensor(folder, 0),
        lambda array, part: array[part].read().result(),
        SHARD,
    ),
    "zarr API": ("zarr", zarr_array, lambda array, part: array[part], SHARD),
}


# --- epochs


def by_rows(read: Callable[[np.ndarray], Any], n: int, seed: int) -> Iterator[Any]:
    """The rows of a block-shuffled epoch, gathered one by one: what a memory map can do with such
    an order."""
    draws = np.random.default_rng(seed)
    blocks = draws.permutation(-(-n // BLOCK))
    for at in range(0, len(blocks), WINDOW):
        rows = (np.sort(blocks[at : at + WINDOW])[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        rows = draws.permutation(rows[rows < n])
        yield from (read(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH))


def by_blocks(cut: Callable[[slice], Any], n: int, block: int, seed: int) -> Iterator[Any]:
    """A block-shuffled epoch by hand: blocks in permuted order, a window of as many rows as ours,
    its rows shuffled; nothing is read ahead."""
    draws, window = np.random.default_rng(seed), max(WINDOW * BLOCK // block, 1)
    blocks = draws.permutation(-(-n // block))
    for at in range(0, len(blocks), window):
        emb_WD = np.concatenate(
            [
                cut(slice(b * block, min((b + 1) * block, n)))
                for b in np.sort(blocks[at : at + window]).tolist()
            ]
        )
        places = draws.permutation(len(emb_WD))
        yield from (
            take(emb_WD, places[start : start + BATCH]) for start in range(0, len(places), BATCH)
        )


def in_order(cut: Callable[[slice], Any], n: int, block: int) -> Iterator[Any]:
    for at in range(0, n, max(block, BATCH)):
        part = cut(slice(at, min(at + max(block, BATCH), n)))
        yield from (part[start : start + BATCH] for start in range(0, len(part), BATCH))


def epoch(folder: Folder, n: int, order: Order, name: str) -> Callable[[int], Iterator[Any]]:
    """Open a reader: seed -> the batches of an epoch."""
    if name == STREAM:
        view = the_view(folder / "view")
        return lambda seed: (emb_BD for _, emb_BD in stream(view, BATCH, order, Draw(seed)))
    if name.endswith(BY_ROWS):
        _, opened, read = GATHER[name.removesuffix(BY_ROWS)]
        source = opened(folder)
        return lambda seed: by_rows(lambda rows: read(source, rows), n, seed)
    _, opened, cut, block = CUT[name]
    source = opened(folder)
    if order == "shuffled":
        return lambda seed: by_blocks(lambda part: cut(source, part), n, block, seed)
    return lambda seed: in_order(lambda part: cut(source, part), n, block)


def epoch_names(order: str) -> list[str]:
    rowwise = (
        [name + BY_ROWS for name in ("RAM, np.take", OURS, "npy memory map")]
        if order == "shuffled"
        else []
    )
    return [STREAM, *rowwise, *(name for name, (package, *_) in CUT.items() if here(package))]


# --- measuring, in child processes


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


def timed(work: Callable[[], int]) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds of all threads, rows)"""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = work()
    return time.perf_counter() - wall, time.process_time() - cpu, rows


def lines(samples: dict[str, list[tuple[float, float, int]]], width: int) -> dict[str, Any]:
    rates = {name: [rows / wall for wall, _, rows in found] for name, found in samples.items()}
    limit = max(
        (found for name, found in rates.items() if name.startswith("RAM")), key=statistics.median
    )
    return {
        name: {
            "rows_per_s": spread(rates[name]),
            "of_RAM": spread(
                [mine / best for mine, best in zip(rates[name], limit, strict=True)]
            ),  # round by round
            "GB_per_s": statistics.median(rows * width * 2 / wall / 1e9 for wall, _, rows in found),
            "cpu_us_per_row": spread([cpu / rows * 1e6 for _, cpu, rows in found]),
            "rows_a_round": found[0][2],
        }
        for name, found in samples.items()
    }


def random_batches(folder: Folder, size: dict[str, Any]) -> dict[str, Any]:
    truth, draws, readers, batches = npy(folder), np.random.default_rng(1), {}, {}
    for name, (package, opened, read) in GATHER.items():
        if here(package):
            readers[name] = functools.partial(read, opened(folder))
            rows = draws.integers(0, size["n"], BATCH)
            assert np.array_equal(np.asarray(readers[name](rows)), truth[rows]), name
            if name not in ("zarr API", "tensorstore, no cache"):  # which keep nothing
                readers[name](
                    np.arange(0, size["n"], 2)
                )  # warm: every page and chunk has been touched
            cost = min(
                timed(functools.partial(gathered, readers[name], [rows]))[0] for _ in range(3)
            )
            batches[name] = max(
                1, min(200, round(size["slice_s"] / cost))
            )  # slow ones get fewer batches a round
    samples: dict[str, list[tuple[float, float, int]]] = {name: [] for name in readers}
    for _ in range(size["rounds"]):
        drawn = [draws.integers(0, size["n"], BATCH) for _ in range(max(batches.values()))]
        for name, read in readers.items():
            samples[name].append(timed(functools.partial(gathered, read, drawn[: batches[name]])))
    return lines(samples, size["width"])


def gathered(read: Callable[[np.ndarray], Any], batches: list[np.ndarray]) -> int:
    return sum(len(read(rows)) for rows in batches)


def counted(batches: Iterator[Any]) -> int:
    return sum(map(len, batches))


def whole_epochs(folder: Folder, size: dict[str, Any], order: str) -> dict[str, Any]:
    readers = {name: epoch(folder, size["n"], order, name) for name in epoch_names(order)}
    samples: dict[str, list[tuple[float, float, int]]] = {name: [] for name in readers}
    for seed in range(size["rounds"] + 1):
        for name, begin in readers.items():
            found = timed(functools.partial(counted, begin(seed)))
            assert found[2] == size["n"], (name, found)
            if seed:  # the first touches every page
                samples[name].append(found)
    return lines(samples, size["width"])


def memory() -> dict[str, float]:
    """MB: VmRSS, VmHWM (its peak), RssAnon, RssFile"""
    found = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {
        words[0][:-1]: int(words[1]) / 1e3
        for words in found
        if words[0] in ("VmRSS:", "VmHWM:", "RssAnon:", "RssFile:")
    }


def peak(folder: Folder, size: dict[str, Any], section: str, name: str) -> dict[str, float]:
    """MB by which the process grows beyond its imports; `mapped` of them are pages of files, which
    the kernel may take back. 4 s at most."""
    importlib.import_module((GATHER.get(name) or CUT.get(name) or ("numpy",))[0])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, begun = memory(), time.monotonic()
    if section == "random":
        _, opened, read = GATHER[name]
        source, draws = opened(folder), np.random.default_rng(2)
        batches = (
            read(source, draws.integers(0, size["n"], BATCH)) for _ in range(2 * size["n"] // BATCH)
        )
    else:
        begin = epoch(
            folder, size["n"], section, name
        )  # kept, so that its maps are still there when `mapped` is read
        batches = begin(0)
    for _ in batches:
        if time.monotonic() - begun > 4:
            break
    after = memory()
    return {
        "peak_MB": after["VmHWM"] - before["VmRSS"],
        "mapped_MB": max(after["RssFile"] - before["RssFile"], 0.0),
    }


def open_time(folder: Folder, how: str) -> dict[str, float]:
    """ms to open a view of many shards until it can be read, and for the first batch after that."""
    view = the_view(folder / "many")
    files, path = (
        [view.embeddings_file(shard) for shard in range(view.shards)],
        str(view.folder / "embeddings"),
    )
    rows = np.random.default_rng(3).integers(0, view.n, BATCH)
    if how in ("zarr", "tensorstore"):
        importlib.import_module(how)
    begun = time.perf_counter()
    if how == "a np.memmap for each shard":
        maps = [np.memmap(file, np.float16, "r", shape=(SHARD, 64)) for file in files]
    elif how == "zarr":
        array = sys.modules["zarr"].open_array(path, mode="r")
    elif how == "tensorstore":
        array = (
            sys.modules["tensorstore"]
            .open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}, read=True)
            .result()
        )
    else:
        view = store.open_view(view.folder)
        if how != UNCHECKED:
            integrity.check(view)
        checked = time.perf_counter()
        maps = map_view(view)
    ready = time.perf_counter()
    if how == "a np.memmap for each shard":
        np.stack([maps[row // SHARD][row % SHARD] for row in rows])
    elif how == "zarr":
        array.oindex[rows]
    elif how == "tensorstore":
        array[rows].read().result()
    else:
        gather(maps, rows)
    found = {
        "open_ms": (ready - begun) * 1e3,
        "first_batch_ms": (time.perf_counter() - ready) * 1e3,
    }
    return found | (
        {"map_view_ms": (ready - checked) * 1e3} if how in (CHECKED, UNCHECKED, DEEP) else {}
    )


def deep_check(folder: Folder, size: dict[str, Any]) -> dict[str, Any]:
    """GB/s over all files of the view's shards, warm: our check that has forgotten everything, and
    hashing the same files in a plain loop."""
    view = the_view(folder / "view")
    files = [
        file
        for shard in range(view.shards)
        for file in (view.embeddings_file(shard), view.status_file(shard))
    ]
    total, ways = (
        sum(file.stat().st_size for file in files),
        {OUR_CHECK: lambda: len(integrity.check(view))},
    )
    if binary := shutil.which("sha256sum"):
        ways["sha256sum"] = lambda: (
            subprocess.run(
                [binary, *map(str, files)], check=True, stdout=subprocess.DEVNULL
            ).returncode
        )
    for name, buffer in (
        ("64 KiB", 1 << 16),
        ("256 KiB", 1 << 18),
        ("1 MiB", 1 << 20),
        ("4 MiB", 1 << 22),
        ("16 MiB", 1 << 24),
    ):
        ways[f"sha256sum-like loop, {name}"] = functools.partial(
            hash_files, files, memoryview(bytearray(buffer)), True
        )
    ways["read only, 256 KiB"] = functools.partial(
        hash_files, files, memoryview(bytearray(1 << 18)), False
    )
    samples: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(size["deep_rounds"] + 1):
        for name, way in ways.items():
            (view.folder / "verified.json").unlink(missing_ok=True)
            wall, used, _ = timed(way)
            if number:  # the first warms the page cache
                samples[name].append(total / wall / 1e9)
                cpu[name].append(used / total * 1e9)
    integrity.check(view)
    return {
        name: {"GB_per_s": spread(samples[name]), "cpu_s_per_GB": spread(cpu[name])}
        for name in ways
    }


def hash_files(files: list[Path], buffer: memoryview, digest: bool) -> int:
    """What `sha256sum` does, one thread: read a buffer, hash it."""
    for file in files:
        state = hashlib.sha256()
        with open(file, "rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                if digest:
                    state.update(buffer[:count])
        state.hexdigest()
    return 0


def cold(folder: Folder, size: dict[str, Any], name: str) -> dict[str, float]:
    """As many rows as an epoch has, after the kernel was told to drop the files' pages. The host
    below a virtual machine may still have them."""
    draws, view = np.random.default_rng(5), the_view(folder / "view")
    files = (
        [folder / "emb.npy"]
        if name.startswith("npy")
        else [view.embeddings_file(shard) for shard in range(view.shards)]
    )
    if name == STREAM:
        batches: Iterator[Any] = (emb_BD for _, emb_BD in stream(view, BATCH))
    else:
        emb_ND, drawn = (
            map_view(view) if name == OURS else npy(folder),
            [draws.integers(0, size["n"], BATCH) for _ in range(-(-size["n"] // BATCH))],
        )
        batches = (gather(emb_ND, rows) for rows in drawn)
    for file in files:
        with open(file, "rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    blocks, begun = resource.getrusage(resource.RUSAGE_SELF).ru_inblock, time.perf_counter()
    rows = len(next(batches))
    first = time.perf_counter() - begun
    rows += counted(batches)
    wall = time.perf_counter() - begun
    blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock - blocks
    return {
        "rows_per_s": rows / wall,
        "first_batch_ms": first * 1e3,
        "bytes_read_of_all": blocks * 512 / (size["n"] * size["width"] * 2),
    }


def sparse_view(folder: Folder, n: int) -> store.View:
    return store.View(folder / "sparse-000000000000", n, 768, SHARD, "", {})


def make_sparse(folder: Folder, n: int) -> None:
    view = sparse_view(folder, n)
    for shard in range(view.shards):
        view.embeddings_file(shard).parent.mkdir(parents=True)
        with open(view.embeddings_file(shard), "wb") as file:
            file.truncate(view.embeddings_bytes)


def sparse_stream(folder: Folder, size: dict[str, Any], order: Order) -> dict[str, float]:
    """The stream over a view of 10 million rows whose files are holes: its memory, and its speed
    without a disk."""
    view, before = sparse_view(folder, size["sparse_n"]), memory()
    wall, cpu, rows = timed(lambda: counted(emb_BD for _, emb_BD in stream(view, BATCH, order)))
    after = memory()
    return {
        "rows": rows,
        "rows_per_s": rows / wall,
        "GB_per_s": rows * 1536 / wall / 1e9,
        "cpu_us_per_row": cpu / rows * 1e6,
        "peak_of_the_process_MB": after["VmHWM"],
        "before_MB": before["VmRSS"],
        "mapped_MB": after["RssFile"] - before["RssFile"],
    }


SECTIONS: dict[str, Callable[..., Any]] = {
    "random": random_batches,
    "epochs": whole_epochs,
    "peak": peak,
    "open": open_time,
    "deep": deep_check,
    "cold": cold,
    "sparse": sparse_stream,
}


def child(section: str, *args: Any) -> Any:
    """Run a section in a fresh process with one OpenMP thread and no network."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(Path(args[0]) / "hf"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps([section, *args], default=str)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{section} {args[1:]} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# --- the table


def cell(found: dict[str, float], digits: int = 1, scale: float = 1.0) -> str:
    median, low, high = (found[name] / scale for name in ("median", "low", "high"))
    return f"{median:10,.{digits}f} [{low:,.{digits}f} to {high:,.{digits}f}]"


def measure(folder: Folder, size: dict[str, Any]) -> dict[str, Any]:
    make_data(folder, size)
    found: dict[str, Any] = {
        "random": child("random", folder, size),
        "shuffled": child("epochs", folder, size, "shuffled"),
        "sequential": child("epochs", folder, size, "sequential"),
    }
    for section in ("random", "shuffled", "sequential"):
        for name, line in found[section].items():
            line |= (
                child("peak", folder, size, section, name)
                if size["peaks"] or name == STREAM
                else {"peak_MB": -1, "mapped_MB": -1}
            )
    memory_of_check = the_view(folder / "many").folder / "verified.json"
    samples: dict[str, list[dict[str, float]]] = {
        how: []
        for how in (CHECKED, UNCHECKED, DEEP, "a np.memmap for each shard", "zarr", "tensorstore")
        if how != "tensorstore" or here(how)
    }
    child("open", folder, DEEP)
    for _ in range(size["opens"]):
        for how in samples:
            if how == DEEP:
                memory_of_check.unlink(missing_ok=True)
            samples[how].append(child("open", folder, how))
    found["open"] = together(samples)
    found["deep"] = child("deep", folder, size)
    colds: dict[str, list[dict[str, float]]] = {
        name: [] for name in (OURS, STREAM, "npy memory map")
    }
    for _ in range(size["cold_rounds"]):
        for name in colds:
            colds[name].append(child("cold", folder, size, name))
    found["cold"] = together(colds)
    make_sparse(folder, size["sparse_n"])  # last: it fills the page cache
    found["sparse"] = {
        order: child("sparse", folder, size, order) for order in ("shuffled", "sequential")
    }
    return found


def together(samples: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    return {
        name: {key: spread([one[key] for one in found]) for key in found[0]}
        for name, found in samples.items()
    }


def show(found: dict[str, Any], size: dict[str, Any]) -> list[dict[str, Any]]:
    """Print the tables; return the goals."""
    for section, title in (
        ("random", f"random batches of {BATCH:,} rows"),
        ("shuffled", "a block-shuffled epoch"),
        ("sequential", "a sequential pass"),
    ):
        lines = found[section]
        print(
            f"\n{title}, {size['n']:,} x {size['width']} float16, warm, n = {size['rounds']} rounds"
        )
        print(
            f"{'':34}{'thousand rows/s [lowest to highest]':40}{'of RAM, round by round':24}"
            f"{'GB/s':>8}{'CPU us/row':>12}{'peak MB':>9}{'mapped':>8}"
        )
        for name, line in lines.items():
            print(
                f"{name:34}{cell(line['rows_per_s'], 1, 1e3):40}"
                f"{cell(line['of_RAM'], 3).strip():24}"
                f"{line['GB_per_s']:8.2f}{line['cpu_us_per_row']['median']:12.2f}"
                f"{line['peak_MB']:9.0f}{line['mapped_MB']:8.0f}"
            )
    print(
        f"\nopening a view of {size['open_shards']:,} shards of {SHARD:,} x 64, warm, imports not "
        f"counted, n = {size['opens']} processes each"
    )
    print(f"{'':34}{'ms [lowest to highest]':28}{'first batch after that':28}{'map_view alone':28}")
    for how, line in found["open"].items():
        print(f"{how:34}" + "".join(f"{cell(value):28}" for value in line.values()))
    print(
        f"\ndigests of the {size['n']:,} rows' files, warm, one after the other, "
        f"n = {size['deep_rounds']} rounds"
    )
    for name, line in found["deep"].items():
        print(
            f"{name:34}{cell(line['GB_per_s'], 2):28} GB/s, "
            f"CPU {line['cpu_s_per_GB']['median']:.3f} s/GB"
        )
    print(
        "\ncold: as many rows as an epoch has, after posix_fadvise(DONTNEED); below a virtual "
        f"machine the host may still cache; n = {size['cold_rounds']}"
    )
    for name, line in found["cold"].items():
        first, share = line["first_batch_ms"]["median"], line["bytes_read_of_all"]["median"]
        read = f"first batch {first:.0f} ms, read {share:.2f} x the bytes"
        print(f"{name:34}{cell(line['rows_per_s'], 1, 1e3):40} {read}")
    print(
        f"\nthe stream over {size['sparse_n']:,} x 768 of sparse files "
        f"({size['sparse_n'] * 1536 / 1e9:.1f} GB), one pass each; the first "
        "finds the page cache empty"
    )
    for order, line in found["sparse"].items():
        print(
            f"{order:34}{line['rows_per_s'] / 1e3:10,.0f} thousand rows/s, "
            f"peak of the whole process {line['peak_of_the_process_MB']:.0f} MB "
            f"({line['before_MB']:.0f} before), mapped {line['mapped_MB']:.0f} MB"
        )

    median = {name: line["rows_per_s"]["median"] for name, line in found["random"].items()}
    hashing = max(
        line["GB_per_s"]["median"]
        for name, line in found["deep"].items()
        if name.startswith("sha256sum")
    )
    peers = [
        name
        for name in ("zarr API", "h5py contiguous", "h5py chunks of 256 rows")
        if name in median
    ]
    times = {
        name: max(value for other, value in median.items() if other.startswith("RAM"))
        / median[name]
        for name in peers
    }
    goals = [
        (
            "random batches, of the in-RAM limit",
            found["random"][OURS]["of_RAM"]["median"],
            0.8,
            True,
        ),
        *(
            (
                f"random batches, times {name} (the in-RAM limit: {times[name]:.0f})",
                median[OURS] / median[name],
                100.0,
                True,
            )
            for name in peers
        ),
        ("open without deep check, ms", found["open"][CHECKED]["open_ms"]["median"], 50.0, False),
        (
            "deep check, of the fastest sha256sum or loop",
            found["deep"][OUR_CHECK]["GB_per_s"]["median"] / hashing,
            0.8,
            True,
        ),
        (
            "the stream's process, MB",
            max(line["peak_of_the_process_MB"] for line in found["sparse"].values()),
            500.0,
            False,
        ),
    ]
    print("\ngoals")
    verdicts = []
    for what, value, goal, above in goals:
        met = value >= goal if above else value < goal
        verdicts.append(
            {"goal": what, "value": value, "asked": f"{'>=' if above else '<'} {goal}", "met": met}
        )
        print(
            f"{'met   ' if met else 'MISSED'}  {what}: {value:.3g}, "
            f"asked {'>=' if above else '<'} {goal}"
        )
    return verdicts


def machine() -> dict[str, Any]:
    words = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    cpu = next(
        (value.strip() for name, _, value in words if name.strip() == "model name"),
        platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "RAM_GB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "system": platform.system(),
        "load_at_start": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, seconds: the figures mean nothing"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "cache.json"
    )
    parser.add_argument(
        "--folder", type=Path, help="where a temporary folder is made (default: TMPDIR)"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        section, folder, *rest = json.loads(args.child)
        print(json.dumps(SECTIONS[section](Path(folder), *rest)))
        return
    begun, size = time.monotonic(), QUICK if args.quick else FULL
    missing = [package for package in PACKAGES if not here(package)]
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES if here(package)},
        "not_installed": missing,
        "size": size,
        "batch": BATCH,
        "rows_a_shard": SHARD,
        "block": BLOCK,
        "window": WINDOW,
    }
    print(
        f"{about['date']}, {about['machine']}, {about['versions']}"
        + (f"; not installed, so left out: {', '.join(missing)}" if missing else "")
    )
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-cache-") as temporary:
        found = measure(Path(temporary), size)
    goals = show(found, size)
    about["seconds"] = round(time.monotonic() - begun)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**about, "goals": goals, **found}, indent=1) + "\n")
    print(f"\n{about['seconds']} s; {args.out}")


if __name__ == "__main__":
    main()
