"""Whatever a user's own files are called, what coview needs is found; what cannot be is said."""

import os
import sys
from pathlib import Path

import pytest
import server

from coview import NEEDED, rooms

RAISES = "raise SystemExit('the file of the user was run')"
PLAIN = "from coview import {}; print('ok')"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder with a module of the user's for each of our packages, and one as a package."""
    for room in rooms.ROOMS:
        (tmp_path / f"{room}.py").write_text(RAISES)
    (tmp_path / "report.py").unlink()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "__init__.py").write_text(RAISES)
    return tmp_path


def python(folder: Path, *words: str, **more: str) -> str:
    """What it prints last, in that folder, as `python WORDS` from there."""
    done = server.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **server.FIXED, **more},
        capture_output=True,
        text=True,
        fresh=True,
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def test_all_rooms_are_listed() -> None:
    house = {path.parent.name for path in rooms.HOUSE.glob("*/__init__.py")}
    assert house - {"coview", "tests", "bench", "tools"} == set(rooms.ROOMS)


def test_beside_files_of_any_name_everything_is_found(theirs: Path) -> None:
    """In a notebook, whose folder comes first; and what is needed is what is listed."""
    told = python(
        theirs,
        "-c",
        "import sys; from coview import *; from coview import open_view\n"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & {set(rooms.ROOMS)!r}))",
    )
    assert told == " ".join(sorted(NEEDED))


@pytest.mark.parametrize("name", ["train", "predict", "report", "base"])
def test_a_script_of_such_a_name_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(PLAIN.format("open_view, open_items"))
    assert python(tmp_path, f"{name}.py") == "ok"


def test_the_command_line_is_ours_where_the_path_names_the_folder(theirs: Path) -> None:
    told = python(theirs, "-P", "-m", "coview.cli", "--version", PYTHONPATH=str(theirs))
    assert told.startswith("coview 0.")


@pytest.mark.parametrize("kind", ["module", "package", "namespace"])
def test_what_was_imported_before_is_refused_with_its_file(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "train.py"
    if kind != "module":
        (tmp_path / "train").mkdir()
        place = tmp_path / "train"
    if kind == "package":
        place = tmp_path / "train" / "__init__.py"
    if kind != "namespace":
        place.touch()
    told = python(tmp_path, "-c", "import train; from coview import open_view")
    assert told.startswith("ImportError: coview needs its own package 'train', but the module")
    assert f"of {place} was imported before" in told and "rename yours, for example to" in told


def test_one_that_is_not_needed_may_stay(tmp_path: Path) -> None:
    (tmp_path / "report.py").write_text("mine = 1")
    code = "import report; from coview import open_view; print(report.mine)"
    assert python(tmp_path, "-c", code) == "1"


def test_ours_are_ours() -> None:
    rooms.refuse_others()
    before = list(sys.meta_path)
    rooms.settle()
    assert sys.meta_path == before and isinstance(sys.meta_path[0], rooms.OwnRooms)
