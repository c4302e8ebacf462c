"""Every benchmark begins and ends, at the smallest size that it has: what the commands of the pages
do is seen before somebody waits hours for it."""

import json
import sys
from pathlib import Path

import pytest
import server
from conftest import ROOT

BENCH = ROOT / "bench"
TESTED_ELSEWHERE = {
    "bench_cache",
    "bench_decode",
    "bench_extract",
    "bench_labels",
    "bench_models",
    "bench_pools",
    "bench_train",
    "bench_zero_shot",
    "stream",
}
# what others run; the last by another environment
PARTS = {"rivals", "tasks", "thingsvision_loop"}


def bench(script: str, *words: object, out: Path, deep: bool = True) -> tuple[str, dict]:
    """What it prints, and what it writes. deep: as in tests/server.py."""
    command = [sys.executable, BENCH / script, *map(str, words), "--out", out]
    done = server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, deep=deep)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads(out.read_text())


def test_each_has_a_test() -> None:
    here = {path.stem for path in BENCH.glob("*.py")}
    own = {
        "bench_experts",
        "bench_finetune",
        "bench_graphs",
        "bench_live_memory",
        "bench_memory",
        "bench_methods",
        "bench_remote",
        "bench_start",
        "collapse",
    }
    assert here == TESTED_ELSEWHERE | PARTS | own


def test_methods(tmp_path: Path) -> None:
    """The tasks are made, imported, trained on and compared."""
    out = tmp_path / "methods.json"
    printed, found = bench("bench_methods.py", "--quick", "--work", tmp_path / "work", out=out)
    head, _, line = printed.splitlines()
    assert "| label prop. |" in head and line.startswith("| noise 2 |")
    assert head.count("|") == line.count("|") and "kernel ridge" in head
    methods = found["test_top1"]["noise 2"]
    assert {"supervised", "logreg", "label-propagation", "mct-graph"} <= set(methods)
    assert all(len(draws) == 2 for one in methods.values() for draws in one.values())
    assert str(tmp_path) not in out.read_text()


def test_experts(tmp_path: Path) -> None:
    words = "--tasks", "noise", "--labels", 3, "--seeds", 2
    printed, found = bench("bench_experts.py", *words, out=tmp_path / "e.json")
    head, _, line = printed.splitlines()
    assert line.startswith("| noise, 3 |") and head.count("|") == line.count("|")
    draws = found["top1"]["noise 3"]
    assert {"graphs", "linear", "LDA", "Gaussian", "balanced", "graphs, LDA"} <= set(draws)
    assert all(len(values) == 2 and min(values) > 20 for values in draws.values())


@pytest.mark.many
def test_finetune(tmp_path: Path) -> None:
    """Two steps each, but the whole way: tuned, embedded, trained on."""
    words = "--quick", "--work", tmp_path / "w"
    printed, found = bench("bench_finetune.py", *words, out=tmp_path / "f")
    assert [row["way"] for row in found["rows"]] == [
        f"{way}, {method}"
        for way in ("frozen", "frozen and cross-fitted", "lora")
        for method in ("probes", "co-training")
    ]
    assert all(len(row["top1"]) == 2 and min(row["top1"]) > 30 for row in found["rows"])
    assert found["rows"][-1]["seconds"] > 0 and found["rows"][-1]["GB"] > 0
    assert len(printed.splitlines()) == 6 and found["step, ms"]["times"] > 1


@pytest.mark.many
def test_live_memory(tmp_path: Path) -> None:
    printed, found = bench("bench_live_memory.py", "--quick", out=tmp_path / "l", deep=False)
    (row,) = found["rows"]
    assert len(printed.splitlines()) == 1 and row["reckoned_GB"] > 0 and row["grew_by_GB"] > 0


@pytest.mark.many
def test_remote(tmp_path: Path) -> None:
    """A folder, and a server that the bench itself begins."""
    words = "--mb", 4, "--rounds", 1
    printed, found = bench("bench_remote.py", *words, out=tmp_path / "r", deep=False)
    assert {*found["MB_per_s"]} == {"folder", "S3"} and printed.count("obstore, fetched") == 2
    for told in found["MB_per_s"].values():
        assert [*told] == ["push", "obstore, sent and read", "pull", "obstore, fetched"]
        assert all(rate["median"] > 0 for rate in told.values())


def test_graphs(tmp_path: Path) -> None:
    printed, found = bench("bench_graphs.py", "--rows", 1200, "--rounds", 1, out=tmp_path / "g")
    assert len(found["runs"]) == 1 and found["runs"][0]["cpu_seconds"] > 0
    assert [line["recall"] for line in found["graphs"]] == [1, 1, 1]
    assert len(printed.splitlines()) == 4


@pytest.mark.many
def test_start(tmp_path: Path) -> None:
    words = "--quick", "--rounds", 1, "--only", "status"
    printed, found = bench("bench_start.py", *words, out=tmp_path / "s", deep=False)
    assert len(printed.splitlines()) == len(found["cpu_seconds"]) == 1


@pytest.mark.parametrize(
    ("only", "view"),
    [pytest.param("predict", "tiny-clip", marks=pytest.mark.many), ("precision", "swav-rn50")],
)
def test_memory(tmp_path: Path, only: str, view: str) -> None:
    words = "--rounds", 1, "--only", only, "--view", view
    _, found = bench("bench_memory.py", *words, out=tmp_path / "m.json")
    assert list(found) == [only]


def test_collapse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All variants, two steps each."""
    import collapse

    out = tmp_path / "c.json"
    monkeypatch.setattr(collapse, "WARMUP", 2)
    monkeypatch.setattr(collapse, "SEEDS", range(2))
    monkeypatch.setattr(sys, "argv", ["collapse", "--steps", "2", "--out", str(out)])
    collapse.main()
    found = json.loads(out.read_text())
    assert found["n"] == 2 and list(found["results"]) == list(collapse.VARIANTS)
