"""What the documentation says can be typed, and does what it says: every command is known, every
snippet runs, every link leads somewhere."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from pages import ROOMS

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*DOCS, ROOT / "CONTRIBUTING.md"]
TO_COME = ("train/finetune/", "extract/engines/")  # rooms that nobody has built yet
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {  # why a command that stands in a `sh` fence is not run by the tests
    "make demo": "its parts are, with fewer seeds",
    "make test": "it is this",
    "git clone": "there is nothing to clone from",
    "make bench": "it takes minutes",
    "make doctor": "tests/upkeep/test_doctor.py",
    "make lock": "it asks a registry",
    "make check-gpu": "it needs a GPU",
}


def fences(kind: str) -> list[tuple[str, str]]:
    """(file, text) of all fences of a kind; a file's Python fences together, since the
    later build on the earlier."""
    return [
        (path.name, text)
        for path in DOCS
        for found, text in FENCE.findall(path.read_text())
        if found == kind
    ]


def commands() -> list[tuple[str, str]]:
    """Every line that begins with `make`, in fences and in code spans. Those of `sh` fences are
    run; others are examples on images of one's own."""
    found = []
    for path in DOCS:
        text = path.read_text()
        lines = [
            line.split("#")[0] if " #" in line else line
            for kind, body in FENCE.findall(text)
            if kind in ("", "sh")
            for line in body.splitlines()
        ]
        spans = re.findall(r"`(make [^`]+)`", FENCE.sub("", text))
        found += [
            (path.name, line.strip())
            for line in [*lines, *spans]
            if line.strip().startswith("make ")
        ]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_make_command_is_one(page, command):
    """Its target is there and takes the names that it is given; what stands for
    something (…) counts as given."""
    from coview.cli import COMMANDS

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    words = shlex.split(command.split("   ")[0].replace("…", "x"))[1:]
    names = [word.split("=")[0] for word in words if re.match(r"[A-Z0-9]+=", word)]
    goals = [word for word in words if not re.match(r"[A-Z0-9]+=", word) and word != "x"]
    assert set(goals) <= targets and len(goals) <= 1, f"{page}: {command}"
    for goal in goals:
        assert not names or set(names) <= {
            "ARGS",
            *next(one.words for one in COMMANDS if one.name == goal),
        } | {"PYTHON3"}, f"{page}: {command}"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", path.read_text()):
        file, _, place = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.name}: {target}"
        if place:
            titles = re.findall(r"^#+ (.*)$", FENCE.sub("", there.read_text()), re.MULTILINE)
            assert place in {
                re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles
            }, f"{path.name}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_module_that_is_named_is_there(path):
    """`train/loop.py` in code marks; a bare `items.py` is one of the paragraph's room."""
    for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)+(?:\.py|/))`", path.read_text()):
        if not name.startswith(("val/", "cache/", "runs/", *TO_COME)):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_read_not_studied(path):
    """It begins with what one types; paragraphs have five lines, cells fifteen words."""
    fenced, lines = False, 0
    if path.parent.name == "docs" and path.name not in ("security.md", "comparison.md"):
        assert "```" in "".join(path.read_text().splitlines()[:6]), "first what one types"
    for line in path.read_text().splitlines():
        fenced ^= line.startswith("```")
        listed = line.startswith(("|", "#", "- ", "  ", "```")) or re.match(r"\d+\. ", line)
        plain = line.strip() and not fenced and not listed
        lines = lines + 1 if plain else 0
        assert lines <= 5, line
        if line.startswith("|") and not fenced:
            for cell in re.sub(r"\]\([^)]*\)", "]", line).split("|"):
                assert len(cell.split()) <= 15, cell


def test_every_page_is_linked():
    linked = {
        target.split("#")[0]
        for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    }
    assert {f"docs/{path.name}" for path in DOCS[1:]} <= linked


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the project's is after `make demo`, with two seeds and short training."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("Makefile", "pyproject.toml", "requirements.lock", *ROOMS):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for program in (Path(sys.executable), Path(sys.executable).with_name("jupyter")):
        wrapper = folder / ".venv" / "bin" / program.name
        wrapper.write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
        wrapper.chmod(0o755)
    coview = folder / ".venv" / "bin" / "coview"
    coview.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m coview.cli "$@"\n')
    coview.chmod(0o755)
    shutil.copytree(ROOT / "examples", folder / "examples")  # which a command writes to
    (folder / ".venv" / ".ready").touch()
    for view in ("tiny-clip", "tiny-dinov2"):
        typed(folder, f"make extract VIEW={view} DATA=digits")
    typed(
        folder,
        "make train VIEWS=tiny-clip,tiny-dinov2 DATA=digits LABELS=3 SEEDS=0..1 "
        "RUN=demo METHOD=supervised,mct,mct-graph "
        "ARGS='--warmup 20 --cotrain 40'",
    )
    return folder


def typed(folder: Path, command: str) -> subprocess.CompletedProcess:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


@pytest.mark.many
@pytest.mark.timeout(1500)
def test_every_command_of_the_documentation_runs(home):
    """Those in `sh` fences, page by page, in one folder."""
    for page, text in fences("sh"):
        for line in text.strip().splitlines():
            command = line.split(" #")[0].strip()
            if command and not any(command.startswith(name) for name in NOT_RUN):
                print(page, command)
                typed(home, command)


@pytest.mark.many
def test_every_snippet_runs(home):
    prepare = (
        "import numpy as np\nfrom coview import open_view\n"
        "y = np.where(np.arange(200) < 60, np.arange(200) % 3, -1)\n"
        "chance = np.random.default_rng(0)\n"
        "X_clip, X_dinov2, X_clip_new, X_dinov2_new = (chance.normal(size=(n, 8))"
        ".astype(np.float32) for n in (200, 200, 5, 5))\n"
    )
    pages = {page for page, _ in fences("python")}
    assert {"README.md", "cache.md", "python.md"} <= pages
    for page in sorted(pages):
        script = home / f"{page}.py"
        script.write_text(
            prepare + "\n".join(text for name, text in fences("python") if name == page)
        )
        typed(home, f".venv/bin/python {script.name}")


def test_the_readme_and_the_pages_say_the_same():
    """Figures that stand in two places, and those that the results hold."""
    readme, methods = (ROOT / "README.md").read_text(), (ROOT / "docs" / "methods.md").read_text()
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in methods.splitlines()
        if re.match(r"\| (digits|chars|pictures), \d", line)
    ]
    rows = {name: cells for name, *cells in reversed(table)}  # the first table's
    found = 0
    for line in readme.splitlines():
        if match := re.match(r"\| (digits|letters|pictures), (\d) \|", line):
            cells, row = (
                [cell.strip() for cell in line.split("|")[2:-1]],
                rows[f"{match[1].replace('letters', 'chars')}, {match[2]}"],
            )
            assert cells == [row[0], row[1], row[2], row[4], row[5]], line
            found += 1
    assert found == 6
    measured = json.loads((ROOT / "bench" / "results" / "models-gpu.json").read_text())["views"]
    for line in (
        line
        for line in (ROOT / "docs" / "scaling.md").read_text().splitlines()
        if line.count("[") == 1 and "GB" not in line and line[:3] == "| `"
    ):
        rate = measured.pop(re.match(r"\| `([\w-]+)`", line)[1])
        shown = [f"{rate['images_per_s'][name]:,.0f}" for name in ("median", "low", "high")] + [
            f"{rate['TFLOPS']:.0f}",
            f"{rate['GB']:.1f}",
        ]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == [
            "{} [{} to {}]".format(*shown[:3]),
            *shown[3:],
        ], line
    assert not measured
    views = json.loads((ROOT / "bench" / "results" / "models.json").read_text())["views"]
    assert len(views) == int(re.search(r"EVA, … (\d+) of them", readme)[1])
