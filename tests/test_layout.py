"""The house: which package may know which, one door per dependency, no pickles, nothing executed on import."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("cache_specs", "extract", "train", "predict", "report", "coview")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("*.py"))
MAY_IMPORT = {"cache_specs": {"cache_specs"}, "extract": {"cache_specs", "extract"}, "train": {"cache_specs", "train"},
              "predict": {"cache_specs", "extract", "train", "predict"}, "report": {"cache_specs", "extract", "train", "predict", "report"},
              "coview": {"cache_specs", "train", "predict", "coview"}}
EDGES = {("train/__main__.py", "report.__main__")}      # a run makes its report at its end
DOORS = {
    "zarr": {"cache_specs/view.py", "exchange/arrays.py"}, "wandb": {"train/tracker.py"}, "tensorboard": {"train/tracker.py"},
    "torch.distributed": {"train/peers.py", "train/launch.py"},
    "open_clip": {"extract/backbones.py"}, "transformers": {"extract/backbones.py"}, "datasets": set(),
    "torchvision": {"extract/images.py", "extract/torchvision_sets.py"},
    "huggingface_hub": {"extract/weights.py", "extract/hub.py"},
    "sklearn": {"extract/datasets.py", "train/classic.py", "train/propagation.py", "coview/classifier.py", "coview/rows.py"},
    "PIL": {"extract/images.py", "extract/pixels.py"}, "umap": {"report/maps.py"}, "cleanlab": {"report/choose.py"},
    "scipy": {"train/propagation.py", "train/report.py"}, "h5py": {"exchange/arrays.py"}, "timm": {"extract/timm_models.py"},
    "onnx": {"predict/onnx.py"}, "onnxruntime": {"predict/onnx.py"},
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, at top level of the file?) for every import; what stands under TYPE_CHECKING does not run."""
    tree = ast.parse(path.read_text())
    unreal = {id(node) for branch in ast.walk(tree) if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
              for node in ast.walk(branch)}
    for node in ast.walk(tree):
        if id(node) in unreal:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            yield name, node in tree.body


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_arrows_and_doors(path: Path) -> None:
    here = f"{path.parent.name}/{path.name}"
    for name, _ in imports(path):
        package = name.split(".")[0]
        assert package not in PACKAGES or package in MAY_IMPORT[path.parent.name] or (here, name) in EDGES, f"{here} imports {name}"
        assert package not in ("tests", "tools", "bench", "pickle", "cloudpickle", "joblib", "dill"), f"{here} imports {name}"
        for door, files in DOORS.items():
            assert not (name + ".").startswith(door + ".") or here in files, f"{here} imports {name}"
    assert path.parent.name != "cache_specs" or "torch" not in {name.split(".")[0] for name, _ in imports(path)}


def test_the_algorithm_knows_torch_only() -> None:
    known = {name for name, _ in imports(ROOT / "train" / "cotrain.py")}
    assert known == {"collections.abc", "dataclasses", "typing", "torch", "torch.nn.functional", "train.optimise", "train.peers", "train.probe"}


def test_no_pickle_and_no_hidden_nan() -> None:
    """But for the one place that turns the authors' checkpoints into safetensors, with weights_only."""
    for path in FILES:
        text = path.read_text()
        if path.name == "unpickle.py":
            assert text.count("torch.load(") == text.count(", weights_only=True)") == 1
            text = text.replace("torch.load(", "")
        found = re.search(r"torch\.load\(|torch\.save\(|import pickle|pickle\.|nan_to_num|trust_remote_code|torch\.hub|[^.]eval\(|exec\(|yaml\.load",
                          text)
        assert not found, f"{path}: {found}"


def test_files_are_short() -> None:
    long = {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 250}
    assert not long


@pytest.mark.parametrize(("package", "flag"), [
    ("extract", "--data"), ("train", "--data"), ("predict", "--images"), ("predict.export", "--to"),
    ("report", "--run"), ("report.compare", "--names")])
def test_help_answers_at_once_and_imports_nothing_heavy(package: str, flag: str) -> None:
    """No clock: what takes seconds is the heavy imports."""
    shown = subprocess.run([sys.executable, "-m", package, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage" in shown.stdout and flag in shown.stdout
    heavy = f"import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module('{package}', run_name='__main__')\nexcept SystemExit: pass\n" \
        "print({'torch', 'numpy', 'pyarrow', 'zarr', 'transformers', 'open_clip', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True).stdout.strip().endswith("set()")


def test_every_bundled_file_is_small() -> None:
    for path in (ROOT / "cache_specs" / "views" / "weights").glob("*/*"):
        assert path.stat().st_size <= 3_000_000, path
