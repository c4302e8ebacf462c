"""Every method on five small tasks, few labels, many draws of them: make bench-methods   (or
python bench/bench_methods.py [--quick])

    digits    scikit-learn's digits as the two bundled models see them
    chars     60 letters, tested on type faces that no training image has
    weak      one view knows about half as much
    noise     one view knows nothing
    pictures  drawings in 9 unequal classes, published ImageNet weights (see bench/tasks.py)

supervised-graph is the fair control of mct-graph: supervised probes and the same graphs, pooled in
the same way, without co-training. One `coview train` a task and number of labels a class, all
draws at once, the same settings everywhere: the defaults. The budgets are equal: a method has the
labels of the row and no others, of which it chooses by cross-fitting; so have three rivals of
scikit-learn's (bench/rivals.py). With --val auto all have the large validation split of the tasks
besides. Prints a table of the joint's test top-1, and how true the confidence of mct-graph is, and
writes bench/results/methods-equal.json (or methods.json) with every draw. What is finished is kept
in --work and not run again. About two hours on 2 cores.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from predict.from_run import of_run
from report.run import Part, read_predictions
from train.algorithm.evaluate import BINS
from train.algorithm.paired import Difference, difference
from train.methods import in_order
from train.run.summary import read_summary

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("digits", "chars", "weak", "noise", "pictures")
RIVALS = {
    "supervised": "late fusion",
    "logreg": "log. regr.",
    "label-propagation": "label prop.",
    "supervised-graph": "super.-graph",
}  # of mct-graph
METHODS = "supervised,logreg,label-propagation,mct-h0,mct,supervised-graph,mct-graph"


def call(module: str, *args: object) -> None:
    done = subprocess.run(
        [sys.executable, *module.split(), *map(str, args)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(map(str, args))}:\n{done.stderr[-2000:]}")


def prepare(work: Path, tasks: list[str]) -> None:
    """The views a and b of every task, in work/cache."""
    for task in tasks:
        if list((work / "cache").glob(f"{task}-*/b-*/complete.json")):
            continue
        call("bench/tasks.py", work / "tasks", "--only", task)
        for view, data in (("a", ["--name", task]), ("b", ["--data", task])):
            call(
                "-m coview.cli import",
                "--view",
                view,
                "--source",
                work / "tasks" / f"{task}-{view}.npz",
                *data,
                "--cache",
                work / "cache",
            )


def right(folder: Path, method: str, view: str = "joint") -> np.ndarray:
    """(E, n) bool: which test images the method has right, for each draw."""
    summary, part = read_summary(folder), test_of(folder, method)
    if view == "joint":
        return part.right_En
    own = [name for name in summary["views"] if name in summary["methods"][method]["views"]]
    return part.own_VEn[own.index(view)] == part.label_En


def test_of(folder: Path, method: str) -> Part:
    """What a method says of the test images."""
    summary, file = read_summary(folder), folder / "predictions.parquet"
    return read_predictions(file, summary["views"], method, len(summary["seeds"]))[method]["test"]


def reliability(folder: Path, method: str = "mct-graph") -> dict[str, float]:
    """The expected calibration error, mean over the draws; what it would be on so many images if
    every confidence were true; and by how much the confidence exceeds the share that is right, in
    points."""
    part = test_of(folder, method)
    excess = 100 * (part.sure_En.mean() - part.right_En.mean())
    ece = read_summary(folder)["methods"][method]["joint"]["test_ece"]["mean"]
    chance = np.mean([least_error(sure_n) for sure_n in part.sure_En])
    return {
        "ECE": round(100 * ece, 1),
        "ECE if true": round(100 * float(chance), 1),
        "too sure by": round(float(excess), 1),
    }


def least_error(sure_n: np.ndarray, trials: int = 200) -> float:
    """The expected calibration error of confidences that are true: the mean of so many simulations
    in which an image is right with just the probability that it has. Few images to a bin leave it
    above 0 (Kumar et al. 2019)."""
    rng, found = np.random.default_rng(0), []
    bins = np.clip(np.ceil(sure_n * BINS).astype(int), 1, BINS) - 1
    for _ in range(trials):
        right_n = rng.random(len(sure_n)) < sure_n
        gap = np.bincount(bins, right_n - sure_n, BINS)
        found.append(np.abs(gap).sum() / len(sure_n))
    return float(np.mean(found))


def top1(folder: Path, method: str, view: str = "joint") -> np.ndarray:
    """Test top-1 in %, a draw."""
    return 100 * right(folder, method, view).mean(1)


def rivals_of(work: Path, folder: Path) -> dict[str, np.ndarray]:
    """(E, n) bool: which test images each of scikit-learn's rivals has right with the labels of the
    run's draws; kept beside the run."""
    import rivals

    if others(folder):
        return others(folder)
    _, cache, splits = of_run(folder, "mct-graph", cache=work / "cache")
    found: dict[str, list[np.ndarray]] = {}
    for split in splits:
        said = rivals.predictions(cache.emb, cache.items.label, split)
        for name, y_n in said.items():
            found.setdefault(name, []).append(y_n == cache.items.label[split.test])
    whole = {name: np.stack(draws) for name, draws in found.items()}
    np.savez(folder / "rivals.npz", **whole)
    return whole


def parts(work: Path, task: str, labels: str, seeds: str) -> dict[str, np.ndarray]:
    """Test top-1 in % of mct-graph's parts: its graphs in a pool without any probe, its probes in
    one without any graph; and of it with one thing changed."""
    import torch
    from safetensors.torch import load_file

    from train.algorithm.evaluate import fit_pool, pooled, predict, top1_nll
    from train.data.feed import Input
    from train.data.reader import open_cache
    from train.data.splits import make_split

    cache, probes = (
        open_cache(work / "cache", task, ["a", "b"]),
        work / "runs" / f"auto-{task}-{labels}" / "probes" / "mct-graph",
    )
    split, graphs, of_probes, y = (
        make_split(cache.items, cache.ok, labels, 0),
        load_file(probes / "pool.safetensors"),
        {},
        {},
    )
    for part in ("val", "test"):
        rows, scores = getattr(split, part), []
        for view, name in enumerate(cache.names):
            tensors = load_file(probes / f"{name}.safetensors")
            params = {
                key.removeprefix("joint."): tensors[key].clone()
                for key in sorted(tensors)
                if key.startswith("joint.")
            }
            scores.append(
                predict(
                    params,
                    Input([cache.emb[view]], tensors["input_mean"], tensors["input_std"]),
                    rows,
                )
            )
        of_probes[part], y[part] = (
            torch.stack(scores),
            torch.from_numpy(cache.items.label[rows]).long(),
        )
    found = {}
    for name, experts in (
        ("the graphs alone", {part: graphs[part].float() for part in y}),
        ("the probes alone", of_probes),
    ):
        weight = fit_pool(
            experts["val"],
            y["val"],
            torch.full(experts["val"].shape[:2], 0.2, dtype=torch.float64),
            torch.full(experts["val"].shape[:2], 0.2, dtype=torch.float64),
        )
        found[name] = 100 * top1_nll(pooled(experts["test"], weight), y["test"])[0].numpy()
    for name, change in (
        ("without feedback", ("--feedback", "none")),
        ("temperature 1", ("--temperature", 1)),
    ):
        run = f"a-{task}-{labels}-{name.replace(' ', '-')}"
        call(
            "-m coview.cli train",
            "--views",
            "a,b",
            "--data",
            task,
            "--labels",
            labels,
            "--seeds",
            seeds,
            "--method",
            "mct-graph",
            "--cache",
            work / "cache",
            "--runs",
            work / "runs",
            "--run",
            run,
            "--threads",
            1,
            *change,
        )
        found[name] = top1(work / "runs" / run, "mct-graph")
    return found


def versus(draws: np.ndarray, others: np.ndarray) -> str:
    """Over the draws alone, these very test images: mean ± standard error of the difference."""
    gain = draws - others
    return f"{gain.mean():+5.1f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "runs" / "bench-methods",
        help="cache and runs of this bench",
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--labels", default="1,2,4,8,16", help="labels a class")
    parser.add_argument("--seeds", default="0..9")
    parser.add_argument("--val", default="cross", choices=("cross", "auto"), help="as for train")
    parser.add_argument(
        "--methods",
        default=METHODS,
        help="all, or several: supervised, logreg, label-propagation, supervised-graph, mct-graph "
        "among them",
    )
    parser.add_argument(
        "--ablations",
        action="store_true",
        help="also what the parts of mct-graph give, two more trainings each",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small try of the script itself, on noise alone"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name = "methods-equal.json" if args.val == "cross" else "methods.json"
    args.out = args.out or ROOT / "bench" / "results" / name
    tasks, labels, more = args.tasks.split(","), args.labels.split(","), []
    if args.quick:
        tasks, labels, args.seeds, more = (
            ["noise"],
            ["2"],
            "0..1",
            ["--warmup", 10, "--cotrain", 10, "--eval-every", 10],
        )
    prepare(args.work, tasks)
    results: dict[str, Path] = {}
    for n in labels:
        for task in tasks:
            call(
                "-m coview.cli train",
                "--views",
                "a,b",
                "--data",
                task,
                "--labels",
                n,
                "--seeds",
                args.seeds,
                "--val",
                args.val,
                "--method",
                args.methods,
                "--cache",
                args.work / "cache",
                "--runs",
                args.work / "runs",
                "--run",
                f"{args.val}-{task}-{n}",
                "--threads",
                1,
                *more,
            )
            results[f"{task} {n}"] = args.work / "runs" / f"{args.val}-{task}-{n}"
            if args.val == "cross":
                rivals_of(args.work, results[f"{task} {n}"])
            print(f"{task}, {n} labels a class: done", file=sys.stderr, flush=True)
    print(table(results))
    ablations: dict[str, dict[str, np.ndarray]] = {}
    for key, folder in results.items() if args.ablations else ():
        ablations[key] = parts(args.work, *key.split(), args.seeds)
        gains = [
            f"{name} {versus(top1(folder, 'mct-graph'), other)}"
            for name, other in ablations[key].items()
        ]
        print(f"{key}: mct-graph over {'; '.join(gains)}", flush=True)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, CPU",
        "seeds": args.seeds,
        "test_top1": {key: scores(folder) for key, folder in results.items()},
        "mct-graph against": {key: against(folder) for key, folder in results.items()},
        "mct-graph's confidence": {key: reliability(folder) for key, folder in results.items()},
        "mct-graph's parts": {
            key: {name: values.round(3).tolist() for name, values in found.items()}
            for key, found in ablations.items()
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


def scores(folder: Path) -> dict[str, dict[str, list[float]]]:
    """{method: {joint or view: test top-1 in % of each draw}}."""
    found: dict[str, dict[str, list[float]]] = {}
    for method, told in read_summary(folder)["methods"].items():
        views = [view for view in ("a", "b") if view in told["views"]]
        found[method] = {
            view: top1(folder, method, view).round(3).tolist() for view in [*views, "joint"]
        }
    for name, right_En in others(folder).items():
        found[name] = {"joint": (100 * right_En.mean(1)).round(3).tolist()}
    return found


def others(folder: Path) -> dict[str, np.ndarray]:
    """scikit-learn's rivals of the run, where they were asked."""
    file = folder / "rivals.npz"
    if not file.exists():
        return {}
    with np.load(file) as kept:
        return {name: kept[name] for name in kept.files}


def best_view(folder: Path) -> tuple[str, str]:
    """The best single view of any baseline in hindsight: its method, and the view."""
    singles = [(method, view) for method in ("supervised", "label-propagation") for view in "ab"]
    return max(singles, key=lambda pair: top1(folder, *pair).mean())


def against(folder: Path) -> dict[str, dict[str, float]]:
    """What mct-graph gains over what it must not lose to, in points, with its standard error and p
    over draws and test images."""
    rivals = {name: right(folder, method) for method, name in RIVALS.items()}
    rivals["best view"] = right(folder, *best_view(folder))
    rivals |= others(folder)
    ours = right(folder, "mct-graph")
    return {name: asdict(difference(ours, rival)) for name, rival in rivals.items()}


def table(results: dict[str, Path]) -> str:
    """In Markdown, a line a task and number of labels: each method's joint, the best single view of
    any baseline, mct-graph against what it must not lose to, and its confidence."""
    first = next(iter(results.values()))
    methods = in_order(read_summary(first)["methods"])
    more = list(dict.fromkeys(name for folder in results.values() for name in others(folder)))
    versus = [*RIVALS.values(), "best view", *more]
    head = ["task, labels", *[RIVALS.get(method, method) for method in methods], "best view", *more]
    head += [f"over {name}" for name in versus] + ["ECE", "ECE if true", "too sure by"]
    lines = [head, ["---"] * len(head)]
    for key, folder in results.items():
        draws = [top1(folder, method) for method in methods] + [top1(folder, *best_view(folder))]
        cells = [f"{one.mean():.1f} ± {one.std(ddof=1):.1f}" for one in draws]
        for name in more:
            one = 100 * others(folder).get(name, np.empty((0, 0))).mean(1)
            cells.append(f"{one.mean():.1f} ± {one.std(ddof=1):.1f}" if len(one) else "")
        found = against(folder)
        gains = [str(Difference(**found[name])) if name in found else "" for name in versus]
        lines.append([key, *cells, *gains, *map(str, reliability(folder).values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
