"""The house: which package may know which, one door per dependency, no pickles,
nothing executed on import."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest
from conftest import ROOT

from base.commands import Command
from base.phrase import field_of
from coview.cli import COMMANDS

ARROWS = {  # a room, and the rooms that it may know besides itself; the longest name counts
    "base": (),
    "cache_specs": ("base",),
    "extract": ("base", "cache_specs"),
    "extract.data": ("base", "cache_specs"),
    "extract.models": ("base", "cache_specs", "extract.config"),
    "exchange": ("base", "cache_specs", "extract"),
    "upkeep": ("base", "cache_specs", "extract"),
    "train": ("base", "cache_specs"),
    "train.algorithm": ("base",),
    "train.data": ("base", "cache_specs", "train.algorithm", "train.config"),
    "train.run": (
        "base",
        "cache_specs",
        "train.algorithm",
        "train.data",
        "train.config",
        "train.methods",
    ),
    "train.finetune": ("base", "cache_specs", "extract", "train"),
    "predict": ("base", "cache_specs", "extract", "train"),
    "report": ("base", "cache_specs", "extract", "train", "predict"),
    "report.html": ("base",),
    "coview": (
        "base",
        "cache_specs",
        "extract",
        "exchange",
        "upkeep",
        "train",
        "predict",
        "report",
    ),
}
PACKAGES = tuple(room for room in ARROWS if "." not in room)
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
EDGES: set[tuple[str, str]] = set()
DOORS = {
    "zarr": {"cache_specs.view", "exchange.arrays"},
    "wandb": {"train.run.tracker"},
    "tensorboard": {"train.run.tracker"},
    "torch.distributed": {
        "train.algorithm.peers",
        "train.finetune.shards",
        "train.run.launch",
        "upkeep.torch_checks",
    },
    "open_clip": {"extract.models.backbones", "extract.models.text"},
    "transformers": {"extract.models.backbones", "extract.models.text"},
    "timm": {"extract.models.timm_backend"},
    "datasets": set(),
    "obstore": {"exchange.remote.objects"},
    "torchvision": {
        "extract.scaling",
        "extract.data.torchvision_sets",
        "train.finetune.pictures",
    },
    "huggingface_hub": {"extract.models.weights", "extract.data.hub"},
    "sklearn": {
        "extract.data.datasets",
        "train.classic",
        "train.data.graph",
        "coview.classifier",
        "coview.labels",
    },
    "PIL": {"extract.pixels", "extract.profiles", "extract.scaling"},
    "simplejpeg": {"extract.jpeg"},
    "h5py": {"extract.data.hdf5", "exchange.arrays"},
    "umap": {"report.sections.maps"},
    "cleanlab": {"report.sections.choose"},
    "scipy": {"train.data.graph", "train.algorithm.paired"},
    "onnx": {"predict.bundle.onnx"},
    "onnxruntime": {"predict.bundle.onnx"},
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, at top level of the file?) for every import; what stands under
    TYPE_CHECKING does not run."""
    tree = ast.parse(path.read_text())
    unreal = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in unreal:
            continue
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in names:
            yield name, node in tree.body


def known(module: str) -> set[str]:
    """The modules of the house that one knows, also where only types are meant."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in FILES
                else node.module
                for alias in node.names
            }
    return found & FILES.keys()


def within(module: str, room: str) -> bool:
    return (module + ".").startswith(room + ".")


@pytest.mark.parametrize("module", FILES)
def test_arrows_and_doors(module: str) -> None:
    room = max((room for room in ARROWS if within(module, room)), key=len)
    for name in known(module):
        assert (
            any(within(name, other) for other in (room, *ARROWS[room])) or (module, name) in EDGES
        ), f"{module} imports {name}"
    names = {name for name, _ in imports(FILES[module])}
    for name in names:
        assert name.split(".")[0] not in (
            "tests",
            "tools",
            "bench",
            "pickle",
            "cloudpickle",
            "joblib",
            "dill",
        ), f"{module} imports {name}"
        for door, modules in DOORS.items():
            assert not within(name, door) or module in modules, f"{module} imports {name}"
    light = room in ("base", "cache_specs", "exchange") and module != "base.devices"
    assert not light or "torch" not in {name.split(".")[0] for name in names}


def test_no_module_knows_itself_by_way_of_others() -> None:
    knows = {module: known(module) - {module} for module in FILES}
    while leaves := {module for module, others in knows.items() if not others}:
        knows = {
            module: others - leaves for module, others in knows.items() if module not in leaves
        }
    assert not knows, f"a circle among {sorted(knows)}"


def test_the_algorithm_knows_torch_only() -> None:
    names = {name for name, _ in imports(FILES["train.algorithm.cotrain"])}
    assert names == {
        "collections.abc",
        "dataclasses",
        "typing",
        "torch",
        "torch.nn.functional",
        "train.algorithm.optimise",
        "train.algorithm.peers",
    }


def test_how_the_pages_look() -> None:
    """What ruff does not count (see tools/pages.py, which says it for the whole house)."""
    lines, comprehensions, ranks = [], 0, pages.ranks([*FILES.values()])
    for module, path in FILES.items():
        text = path.read_text()
        tree = ast.parse(text)
        for function in pages.functions(tree):
            assert pages.length(function) <= 60, f"{module}: {function.name} is too long"
        nested = pages.nested_conditionals(tree)
        assert not nested, f"{module}: nested conditional expressions in the lines {nested}"
        lines += text.splitlines()
        comprehensions += pages.comprehensions(tree)
    assert pages.percentile([len(line) for line in lines if line], 0.95) <= 98
    assert comprehensions <= 3 * len(lines) / 100
    assert sum(ranks[rank] for rank in "CDEF") <= 12, ranks


def test_no_pickle_and_no_hidden_nan() -> None:
    """But for the one place that turns the authors' checkpoints into
    safetensors, with weights_only."""
    for path in FILES.values():
        text = path.read_text()
        if path.name == "unpickle.py":
            calls = re.findall(r"torch\.load\(([^)]*)\)", text)
            assert len(calls) == 1 and "weights_only=True" in calls[0]
            text = text.replace("torch.load(", "")
        found = re.search(
            (
                r"torch\.load\(|torch\.save\(|import pickle|pickle\.|nan_to_num|"
                r"trust_remote_code|torch\.hub|(?<![.\w])eval\(|exec\(|yaml\.load"
            ),
            text,
        )
        assert not found, f"{path}: {found}"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_answers_at_once_and_imports_nothing_heavy(command: Command) -> None:
    """No clock: what takes seconds is the heavy imports."""
    program = f"""
import sys
from base.commands import main
try:
    main("coview.cli:COMMANDS", [{command.name!r}, "--help"])
finally:
    heavy = {{"torch", "numpy", "pyarrow", "zarr", "transformers", "open_clip", "sklearn"}}
    print(heavy & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    first = command.words[0] if command.words else "json"
    flag = f"--{field_of(first).replace('_', '-')}"
    assert "usage: coview" in done.stdout and flag in done.stdout and done.stderr == ""
    assert done.stdout.strip().endswith("set()")


def test_every_bundled_file_is_small() -> None:
    for path in (ROOT / "cache_specs" / "views" / "weights").glob("*/*"):
        assert path.stat().st_size <= 3_000_000, path
