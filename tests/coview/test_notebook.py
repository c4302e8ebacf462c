"""examples/digits.ipynb runs as a reader would run it, in a kernel of its own; what stands in it
was put there by such a run."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Made, importing

NOTEBOOK = ROOT / "examples" / "digits.ipynb"
RUN = (
    "import sys, nbformat\nfrom nbclient import NotebookClient\n"
    "book = nbformat.read(sys.argv[1], 4)\n"
    "NotebookClient(book, timeout=300, coalesce_streams=True, "
    "resources={'metadata': {'path': sys.argv[2]}}).execute()\nnbformat.write(book, sys.argv[1])"
)


def said(book: dict) -> list[str]:
    """What each cell of code printed."""
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    return [
        "".join("".join(output.get("text", "")) for output in cell["outputs"]) for cell in cells
    ]


def execute(text: str, folder: Path, cache: Path) -> list[str]:
    """Run a notebook in folder/examples, with the cache beside it as in the repository."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    (folder / "examples").mkdir()
    (folder / "cache").symlink_to(cache)
    path = folder / "examples" / "digits.ipynb"
    path.write_text(text)
    environment = importing(ROOT, HOME=str(folder), JUPYTER_PLATFORM_DIRS="1")
    done = subprocess.run(
        [sys.executable, "-c", RUN, path, path.parent],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return said(json.loads(path.read_text()))


def test_the_notebook_holds_its_outputs_and_nothing_of_where_it_ran() -> None:
    text = NOTEBOOK.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)) and all(
        cell["outputs"] for cell in cells
    )
    assert len(text) < 50_000 and not re.search(
        r"/(home|root|tmp|usr|work)\b|://|stderr|Traceback", text
    )


@pytest.mark.many
def test_the_notebook_runs(made: Made, tmp_path: Path) -> None:
    """On two cheap views and with little training."""
    text = (
        NOTEBOOK.read_text()
        .replace("tiny-clip", "pixels")
        .replace("tiny-dinov2", "edges")
        .replace(", cotrain=200", "")
    )
    printed = execute(
        text.replace("random_state=0", "random_state=0, warmup=20, cotrain=20, hidden=16, lr=5e-3"),
        tmp_path,
        made.cache,
    )
    assert (
        printed[1] == said(json.loads(NOTEBOOK.read_text()))[1]
        and "both, co-trained with graphs: " in printed[2]
        and "2 folds: [0." in printed[-1]
    )


@pytest.mark.many
def test_the_notebook_says_what_it_said(tmp_path: Path, command: Callable) -> None:
    """Unchanged, on the two bundled models: the figures that stand in it, to a few points (another
    machine rounds differently)."""
    for view in ("tiny-clip", "tiny-dinov2"):
        done = command("extract", "--view", view, "--data", "digits", "--cache", tmp_path / "made")
        assert done.returncode == 0, done.stderr
    found, stands = (
        re.findall(r"([\d.]+) %", printed)
        for printed in (
            "\n".join(execute(NOTEBOOK.read_text(), tmp_path, tmp_path / "made")[2:4]),
            "\n".join(said(json.loads(NOTEBOOK.read_text()))[2:4]),
        )
    )
    assert len(found) == len(stands) > 6 and all(
        abs(float(a) - float(b)) < 4 for a, b in zip(found, stands, strict=True)
    ), (found, stands)
