"""All checks that need a GPU, in one call: make check-gpu

    python tools/check_gpu.py [--device cpu] [--quick] [--only trials] [--out FILE]

Extracts the bundled views on the GPU and on the CPU and compares them row by row; trains on both
and compares the accuracies; repeats the GPU run, once with embeddings that are not kept on the GPU,
and asks for the same bytes; runs two views through torchrun with as many GPUs as there are (one
rank, NCCL, on a machine with one); labels images on both, from the cache and live; writes a report;
tunes both backbones together, on both; extracts with --compile; asks doctor (NCCL, driver); tries
what could be faster and is used nowhere yet (gpu_trials.py; --only trials does nothing else). Goes
on after a failure. Prints a table, writes it as JSON, and exits with 1 if a line is not as it
should be.
"""

import argparse
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
VIEWS = ("tiny-clip", "tiny-dinov2")
FULL = ("--seeds", "0..4", "--method", "supervised,fixmatch,mct,supervised-graph,mct-graph")
QUICK = ("--seeds", "0", "--method", "supervised,mct-graph", "--warmup", "60", "--cotrain", "60")


COVIEW = ("-m", "coview.cli")
# what `coview train` does, but without a place for the embeddings in the GPU's memory: each batch
# comes through pinned memory
STREAMED = ("-c", "from train.data import feed; feed.RESIDENT = 0; import coview.cli as c; c.run()")


def call(program: Sequence[str], *args: object) -> float:
    """Run a program of Python's with these arguments; -> seconds."""
    begun = time.monotonic()
    subprocess.run([sys.executable, *program, *map(str, args)], cwd=ROOT, check=True)
    return time.monotonic() - begun


class Lines:
    """What was found: (what, value, is it as it should be). A part that fails is a line too, and
    the others go on."""

    def __init__(self) -> None:
        self.found: list[tuple[str, object, bool]] = []

    def __call__(self, what: str, value: object, fine: bool) -> None:
        self.found.append((what, value, bool(fine)))
        print(
            self.text(*self.found[-1]), flush=True
        )  # at once, so that a check cut short says what it found

    @staticmethod
    def text(what: str, value: object, fine: bool) -> str:
        return f"{what:76} {value!s:>10}  {'ok' if fine else 'NOT OK'}"

    def seconds(
        self, what: str, command: str, *args: object, program: Sequence[str] = COVIEW
    ) -> None:
        self(f"{what}, seconds", round(call(program, command, *args), 1), True)

    @contextlib.contextmanager
    def part(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception:  # whatever it is, it is told, and counts
            traceback.print_exc()
            self(what, "failed", False)


def scores(folder: Path) -> dict[str, float]:
    methods = json.loads((folder / "summary.json").read_text())["methods"]
    return {name: method["joint"]["test_top1"]["mean"] for name, method in methods.items()}


def rows_of(cache: Path, view: str) -> np.ndarray:
    from cache_specs.store import open_view, view_folders
    from train.data.reader import map_view

    return map_view(open_view(view_folders(next(cache.glob("digits-*")), view)[0])).astype(
        np.float32
    )


def extract(lines: Lines, work: Path, device: str) -> None:
    for where in dict.fromkeys((device, "cpu")):
        for view in VIEWS:
            lines.seconds(
                f"extract {view} on {where}",
                "extract",
                "--view",
                view,
                "--data",
                "digits",
                "--device",
                where,
                "--cache",
                work / where,
            )
    for view in VIEWS:
        gpu, cpu = (rows_of(work / where, view) for where in (device, "cpu"))
        cosine = (
            (gpu * cpu).sum(1) / np.linalg.norm(gpu, axis=1) / np.linalg.norm(cpu, axis=1)
        ).min()
        lines(f"{view}: smallest cosine to the CPU's row", round(float(cosine), 6), cosine > 0.999)


def tuned(lines: Lines, work: Path, device: str) -> None:
    """Both backbones learn from each other on either device, and are embedded on it."""
    for where in dict.fromkeys((device, "cpu")):
        places = "--cache", work / where, "--device", where, "--data", "digits"
        words = "--views", ",".join(VIEWS), "--labels", 3, "--steps", 40, "--run", f"t-{where}"
        what = f"finetune both views together on {where}"
        lines.seconds(what, "finetune", *words, *places, "--runs", work / "runs")
        for view in VIEWS:
            toml = work / "runs" / f"t-{where}" / f"t-{where}-{view}.toml"
            lines.seconds(f"extract {view}, tuned on {where}", "extract", "--view", toml, *places)
    for view in VIEWS:
        gpu, cpu = (rows_of(work / where, f"t-{where}-{view}") for where in (device, "cpu"))
        lengths = np.linalg.norm(gpu, axis=1) * np.linalg.norm(cpu, axis=1)
        cosine = ((gpu * cpu).sum(1) / lengths).min()
        what = f"{view}, tuned: smallest cosine to the row of the one tuned on the CPU"
        lines(what, round(float(cosine), 4), cosine > 0.95)


def compiled(lines: Lines, work: Path, device: str) -> None:
    lines.seconds(
        "extract --compile",
        "extract",
        "--view",
        VIEWS[0],
        "--data",
        "digits",
        "--device",
        device,
        "--cache",
        work / "compiled",
        "--compile",
    )
    plain, other = (rows_of(work / cache, VIEWS[0]) for cache in (device, "compiled"))
    far = float(np.abs(plain - other).max() / np.abs(plain).max())
    lines(
        "--compile: largest difference to the plain model's rows, of the largest value",
        round(far, 6),
        far < 0.01,
    )


def train(lines: Lines, work: Path, device: str, how: tuple[str, ...]) -> None:
    common = (
        "--views",
        ",".join(VIEWS),
        "--data",
        "digits",
        "--labels",
        3,
        *how,
        "--cache",
        work / device,
        "--runs",
        work / "runs",
    )
    runs = (
        ("first", device, COVIEW),
        ("again", device, COVIEW),
        ("streamed", device, STREAMED),
        ("cpu", "cpu", COVIEW),
    )
    for run, where, program in runs:
        with lines.part(f"train, {run}, on {where}"):
            args = (*common, "--device", where, "--run", run)
            lines.seconds(f"train, {run}, on {where}", "train", *args, program=program)
    bytes_of = {
        run: [
            path.read_bytes()
            for path in sorted((work / "runs" / run / "probes").rglob("*.safetensors"))
        ]
        for run, *_ in runs
    }
    for run in ("again", "streamed"):
        lines(
            f"train, {run}: the bytes of the first",
            bytes_of[run] == bytes_of["first"],
            bytes_of[run] == bytes_of["first"] != [],
        )
    ranks = min(len(VIEWS), torch.cuda.device_count()) if device == "cuda" else 2
    with lines.part(f"train by torchrun with {ranks} rank(s)"):
        torchrun = (
            f"-m torch.distributed.run --standalone --nproc-per-node {ranks} -m -- coview.cli"
        )
        lines.seconds(
            f"train by torchrun with {ranks} rank(s)",
            "train",
            *common,
            "--device",
            device,
            "--gpus",
            ranks,
            "--run",
            "ranks",
            program=torchrun.split(),
        )
    for run, most in (("cpu", 0.05), ("ranks", 0.02)):
        with lines.part(f"train, {run}: accuracies"):
            one, other = scores(work / "runs" / "first"), scores(work / "runs" / run)
            for method in one:
                far = abs(one[method] - other[method])
                lines(
                    f"{method}: joint accuracy, difference of {run} to the first",
                    round(far, 4),
                    far < most,
                )


def predict(lines: Lines, work: Path, device: str) -> None:
    """The labels and confidences of a run on `device`, from the cache and of images embedded again,
    against those on the CPU."""
    import pyarrow.parquet as pq

    tables = {}
    for name, where, images in (
        ("cached", device, ()),
        ("cpu", "cpu", ()),
        ("live", device, ("--images", "digits")),
    ):
        to = work / f"{name}.parquet"
        lines.seconds(
            f"predict, {name}, on {where}",
            "predict",
            "--run",
            "first",
            "--runs",
            work / "runs",
            "--cache",
            work / device,
            "--device",
            where,
            "--to",
            to,
            *images,
        )
        rows = pq.read_table(to).to_pydict()
        tables[name] = {
            key: (label, sure)
            for key, label, sure in zip(rows["key"], rows["label"], rows["confidence"], strict=True)
        }
    for name in ("cpu", "live"):
        pairs = [(row, tables[name][key]) for key, row in tables["cached"].items()]
        same, far = (
            float(np.mean([a[0] == b[0] for a, b in pairs])),
            max(abs(a[1] - b[1]) for a, b in pairs),
        )
        lines(
            f"predict, {name}: share of labels that are those from the cache on {device}",
            round(same, 4),
            same > 0.995,
        )
        lines(f"predict, {name}: largest difference of a confidence", round(far, 5), far < 0.05)


def report(lines: Lines, work: Path, device: str) -> None:
    lines.seconds(
        "report",
        "report",
        "--run",
        "first",
        "--runs",
        work / "runs",
        "--cache",
        work / device,
        "--device",
        device,
    )
    lines.seconds(
        "export-model",
        "export-model",
        "--run",
        "first",
        "--runs",
        work / "runs",
        "--cache",
        work / device,
        "--to",
        work / "model",
    )
    lines.seconds(
        "predict by the exported model",
        "predict",
        "--model",
        work / "model",
        "--images",
        "digits",
        "--device",
        device,
        "--to",
        work / "model.csv",
    )


def doctor(lines: Lines, work: Path, device: str) -> None:
    said = subprocess.run(
        [sys.executable, *COVIEW, "doctor"], cwd=ROOT, capture_output=True, text=True
    )
    print(said.stdout)
    lines("doctor: what is wrong", said.stderr.strip() or "nothing", said.returncode == 0)


def trials() -> tuple[Callable[[Lines, Path, str], None], ...]:
    """Late: they import most of the house."""
    from gpu_trials import TRIALS

    return TRIALS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"], help="cpu checks this script itself"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, one method, few steps")
    parser.add_argument("--only", choices=["trials"], help="a few minutes: no checks")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "check_gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: torch sees no CUDA GPU here; try --device cpu to check the script itself",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(ROOT))
    lines, begun = Lines(), time.monotonic()
    checks = (
        extract,
        functools.partial(train, how=QUICK if options.quick else FULL),
        predict,
        report,
        tuned,
        compiled,
        doctor,
    )
    with tempfile.TemporaryDirectory() as name:
        for part in (*(() if options.only else checks), *trials()):
            with lines.part(getattr(part, "func", part).__name__):
                part(lines, Path(name), options.device)
    good = all(fine for *_, fine in lines.found)
    print("\n".join(lines.text(*line) for line in lines.found))
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "good": good,
        "seconds": round(time.monotonic() - begun),
        "figures": {what: value for what, value, _ in lines.found},
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
