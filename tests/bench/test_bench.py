"""The benchmarks run. That of the cache reads the same rows by every reader, and leaves out by
name what is not installed."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import server
from conftest import ROOT, pixels_and_edges

SCRIPT = ROOT / "bench" / "bench_cache.py"


def test_the_benchmark_of_the_cache_runs(tmp_path):
    out = tmp_path / "cache.json"
    done = server.run(
        [sys.executable, SCRIPT, "--quick", "--out", out, "--folder", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        deep=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {
        "random",
        "shuffled",
        "sequential",
        "open",
        "deep",
        "cold",
        "sparse",
        "goals",
        "machine",
        "versions",
    } <= set(found)
    assert all(
        line["rows_per_s"]["n"] == found["size"]["rounds"]
        for section in ("random", "shuffled", "sequential")
        for line in found[section].values()
    )
    assert "random batches of 1,024 rows" in done.stdout and all(
        goal["goal"] in done.stdout for goal in found["goals"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]  # the data are gone
    assert str(tmp_path) not in out.read_text()


def test_a_peer_that_is_not_installed_is_left_out(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_cache", SCRIPT)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "here", lambda package: package in ("numpy", "torch", "zarr"))
    size = {**bench.QUICK, "n": 3000, "open_shards": 2}
    bench.make_data(tmp_path, size)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emb.npy", "many", "view"]
    assert list(bench.random_batches(tmp_path, size)) == [
        "RAM, torch.index_select",
        "RAM, np.take",
        bench.OURS,
        "npy memory map",
        "zarr API",
    ]
    assert "zarr API" in bench.epoch_names("shuffled") and not any(
        "h5py" in name for name in bench.epoch_names("shuffled")
    )


@pytest.mark.many
def test_the_benchmark_of_training_runs(tmp_path):
    out = tmp_path / "train.json"
    done = server.run(
        [
            sys.executable,
            ROOT / "bench" / "bench_train.py",
            "--quick",
            "--device",
            "cpu",
            "--out",
            out,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        deep=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {"machine", "versions", "date", "goals", "lines", "ms", "whole", "shares"} <= set(
        found
    ) and found["device"] == "cpu"
    assert all(
        line["n"] == found["size"]["rounds"] and 0 < line["low"] <= line["median"] <= line["high"]
        for line in found["ms"]["small"].values()
    )
    assert all(goal["goal"] in done.stdout for goal in found["goals"]) and len(found["goals"]) == 8
    taken = [line for line in found["lines"].values() if line.get("taken")]
    assert len(taken) == 3
    assert {"cached", "live", "E = 2", "warm-up, limit", "co-training, feed"} <= set(
        found["ms"]["small"]
    )
    assert {
        "64 + 128 rows, 1 rank",
        "64 + 128 rows, 2 ranks",
        "the original, 64 + 64 rows, 2 ranks",
    } <= set(found["ms"]["ranks"])
    assert found["whole"]["warm-up"]["timed"] == 3 and not found["whole"]["extrapolated"]
    for parts in found["shares"].values():
        assert (
            abs(
                sum(
                    parts[name]["median"]
                    for name in (
                        "steps",
                        "feed",
                        "evaluation",
                        "logging",
                        "checkpoints",
                        "the rest",
                    )
                )
                - 1
            )
            < 1e-6
        )
        assert all(value["low"] > 0 for name, value in parts.items() if name != "the rest"), parts
    assert str(tmp_path) not in out.read_text()


def test_the_benchmark_of_the_backbones_runs(tmp_path):
    """A real-size model with random weights."""
    out = tmp_path / "extract.json"
    command = [
        sys.executable,
        ROOT / "bench" / "bench_models.py",
        "--views",
        "swav-rn50",
        "--device",
        "cpu",
        "--rounds",
        "1",
        "--out",
        out,
    ]
    done = server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, deep=True)
    assert done.returncode == 0, done.stderr
    line = json.loads(out.read_text())["views"]["swav-rn50"]
    assert (
        line["width"] == 2048
        and line["finite"]
        and round(line["parameters"] / 1e6, 1) == 23.5
        and line["images_per_s"]["n"] == 1
    )
    assert "WRONG" not in done.stdout


def test_the_benchmark_of_the_command_runs(tmp_path):
    out = tmp_path / "extract.json"
    command = [sys.executable, ROOT / "bench" / "bench_extract.py", "--views", "tiny-clip=6"]
    command += ["--rounds", "1", "--out", out]
    done = server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, deep=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())["views"]["tiny-clip"]
    assert told.pop("images") == 6
    assert list(told) == ["coview", "model", "decoding", "plain loop"]
    assert all(rate["n"] == 1 and rate["median"] > 0 for rate in told.values())
    assert "coview / the smaller limit: " in done.stdout


def test_weights_are_found_by_the_name_of_the_view(tmp_path):
    import bench_extract

    assert bench_extract.weights_for("tiny-clip", None, tmp_path) is None
    (tmp_path / "mae.safetensors").touch()
    assert bench_extract.weights_for("mae", tmp_path, tmp_path).endswith("mae.safetensors")


def test_the_benchmark_of_decoding_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "bench")
    spec = importlib.util.spec_from_file_location("bench_decode", ROOT / "bench/bench_decode.py")
    bench, out = importlib.util.module_from_spec(spec), tmp_path / "decode.json"
    spec.loader.exec_module(bench)
    words = ["bench_decode", "--rounds", "1", "--sizes", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda threads: None)
    assert bench.main() == 0
    found = json.loads(out.read_text())["speed"]["500 x 375"]
    assert list(found) == ["now", "pillow", "scaled", "before", "torchvision", "decode_jpeg"]
    assert found["pillow"]["levels"]["same"] == found["decode_jpeg"]["levels"]["same"] == 1
    assert found["now"]["levels"] == {"same": 1, "mean": 0, "greatest": 0}
    # Pillow's filter is what version 2 had
    assert found["before"]["levels"] == found["torchvision"]["levels"]
    assert found["before"]["levels"]["same"] > 0.99 and found["before"]["levels"]["greatest"] <= 2
    assert capsys.readouterr().out.count("% of the levels as now") == 6


def test_the_benchmark_of_labels_runs(tmp_path, monkeypatch, capsys):
    """Whole loops, on the digits' pixels and gradients: nobody is told the test labels, and what is
    chosen is chosen once."""
    import bench_labels
    import tasks

    def cheap(images: np.ndarray, view: str) -> np.ndarray:
        name = "pixels" if view == "tiny-clip" else "edges"
        return pixels_and_edges(images.astype(np.float32))[name]

    out = tmp_path / "labels.json"
    monkeypatch.setattr(tasks, "embed", cheap)
    monkeypatch.setattr(sys, "argv", ["bench_labels", "--quick", "--out", str(out)])
    monkeypatch.setattr(bench_labels.torch, "set_num_threads", lambda threads: None)
    bench_labels.main()
    found = json.loads(out.read_text())
    draws = found["tasks"]["digits"]
    assert len(draws) == 2 and list(draws[0]) == ["graph", "regression"]
    for draw in draws:
        for of_rules in draw.values():
            assert list(of_rules) == list(bench_labels.RULES)
            for lines in of_rules.values():
                assert len(lines) == 5 and all(0 < top1 <= 100 for top1, _ in lines)
                classes = [classes for _, classes in lines]
                assert classes == sorted(classes) and classes[0] >= 1 and classes[-1] <= 10
            assert of_rules["random"][0] == of_rules["margin, random start"][0]
            assert of_rules["UHerding"][0] == of_rules["MaxHerding"][0]
    area = np.mean([line[0] for line in draws[0]["graph"]["random"]])
    printed = capsys.readouterr().out
    other = np.mean([line[0] for line in draws[1]["graph"]["random"]])
    assert f"| random | {(area + other) / 2:.1f} ± {abs(area - other) / 2**0.5:.1f} |" in printed
    assert str(tmp_path) not in out.read_text()


def test_the_tables_of_the_docs_are_what_was_measured():
    """And the rule of the command is the best of them."""
    import bench_labels

    found = json.loads((ROOT / "bench" / "results" / "labels.json").read_text())
    page = (ROOT / "docs" / "labelling.md").read_text().splitlines()
    rows = [line for line in bench_labels.tables(found) if line and not line.startswith("|---")]
    assert [line for line in rows if line not in page] == []
    assert found["seeds"] == 10 and found["rounds"] == 5
    every = [(draws, scorer) for draws in found["tasks"].values() for scorer in draws[0]]

    def mean(rule: str) -> float:
        return np.mean([bench_labels.area(*one, rule) for one in every])

    assert max(bench_labels.RULES, key=mean) == "UHerding, h = 1"


def test_the_error_of_true_confidences_is_that_of_a_sample():
    """Oracle: the mean absolute error of a share of n, sqrt(2 p (1 - p) / (pi n))."""
    spec = importlib.util.spec_from_file_location(
        "bench_methods", SCRIPT.parent / "bench_methods.py"
    )
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    expected = (2 * 0.7 * 0.3 / (np.pi * 400)) ** 0.5
    assert bench.least_error(np.full(400, 0.7), 4000) == pytest.approx(expected, rel=0.05)
    two_bins = np.repeat([0.3, 0.7], 200)
    expected = (2 * 0.7 * 0.3 / (np.pi * 200)) ** 0.5
    assert bench.least_error(two_bins, 4000) == pytest.approx(expected, rel=0.05)
    assert bench.least_error(np.ones(50)) == 0
