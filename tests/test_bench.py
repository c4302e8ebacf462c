"""The benchmark of the cache runs, reads the same rows by every reader, and leaves out by name what is not installed."""

import importlib.util
import json
import subprocess
import sys

from conftest import ROOT

SCRIPT = ROOT / "bench" / "bench_cache.py"


def test_the_benchmark_of_the_cache_runs(tmp_path):
    out = tmp_path / "cache.json"
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--out", out, "--folder", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {"random", "shuffled", "sequential", "open", "deep", "cold", "sparse", "goals", "machine", "versions"} <= set(found)
    assert all(line["rows_per_s"]["n"] == found["size"]["rounds"] for section in ("random", "shuffled", "sequential") for line in found[section].values())
    assert "random batches of 1,024 rows" in done.stdout and all(goal["goal"] in done.stdout for goal in found["goals"])
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]                         # the data are gone
    assert str(tmp_path) not in out.read_text()


def test_a_peer_that_is_not_installed_is_left_out(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_cache", SCRIPT)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "here", lambda package: package in ("numpy", "torch", "zarr"))
    size = {**bench.QUICK, "n": 3000, "open_shards": 2}
    bench.make_data(tmp_path, size)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emb.npy", "many", "view"]
    assert list(bench.random_batches(tmp_path, size)) == ["RAM, torch.index_select", "RAM, np.take", bench.OURS, "npy memory map", "zarr API"]
    assert "zarr API" in bench.epoch_names("shuffled") and not any("h5py" in name for name in bench.epoch_names("shuffled"))
