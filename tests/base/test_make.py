"""The Makefile as a user types it. `make -n` where only the command matters, the real
thing where the answer does."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from base.phrase import line_of

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for .venv that runs this Python, newer than its prerequisites, so that
    make has nothing to set up."""
    folder = tmp_path_factory.mktemp("venv")
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    coview = folder / "bin" / "coview"
    coview.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m coview.cli "$@"\n')
    coview.chmod(0o755)
    (folder / ".ready").touch()
    return folder


def make(venv: Path, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    }
    return subprocess.run(
        ["make", f"VENV={venv}", *args],
        cwd=ROOT,
        env={**clean, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_is_the_default_and_lists_every_target() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in (
        "demo",
        "extract",
        "train",
        "test",
        "test-all",
        "setup",
        "lock",
        "clean",
        "check-gpu",
        "verify",
        "repair",
        "import",
        "export",
        "status",
        "gc",
        "bench-cache",
        "bench-train",
        "bench-methods",
        "sweep",
        "views",
        "weights",
        "predict",
        "export-model",
        "suggest",
    ):
        assert f"make {target} " in shown
    assert "VIEWS" in shown


@pytest.mark.parametrize(
    "value",
    [
        "my photos/",
        "cost$5/",
        "$(shell touch PWNED)",
        "a$$b",
        "it's",
        '"q"',
        "`touch PWNED`;touch PWNED",
        "a\\b",
        "#top10",
        "$@",
    ],
)
def test_a_printed_command_means_what_was_typed_and_runs_nothing_else(
    value: str, tmp_path: Path
) -> None:
    """Through the shell and through make, which both have characters of their own;
    of a value and of a flag."""
    (tmp_path / "Makefile").write_text('extract:\n\t@printf %s "$$DATA"; printf "|%s" $(ARGS)\n')
    line = line_of("extract", {"DATA": value, "ARGS": shlex.join(["--array", value])})
    clean = {
        name: held for name, held in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }  # of the make that runs the tests
    said = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True
    ).stdout
    assert said == f"{value}|--array|{value}" and [path.name for path in tmp_path.iterdir()] == [
        "Makefile"
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("train", "VIEW=clip", "DATA=photos/"),
            (
                "make train takes no VIEW; did you mean 'VIEWS'. Type: "
                "make train VIEWS=clip DATA=photos/   (names: VIEWS, "
            ),
        ),
        (
            ("verify", "VIEWS=clip", "DATA=digits"),
            (
                "make verify takes no VIEWS; did you mean 'VIEW'. Type: "
                "make verify VIEW=clip DATA=digits   (names: VIEW, "
            ),
        ),
        (
            ("train", "views=clip,dinov2", "Data=my photos/"),
            "did you mean 'VIEWS'. Type: make train VIEWS=clip,dinov2 DATA='my photos/'",
        ),
        (
            ("train", "views=a"),
            (
                "make train takes no views; did you mean 'VIEWS'. Type: "
                "make train VIEWS=a   (names: VIEWS, "
            ),
        ),
        (
            ("train", "VIEW=a", "VIEWS=b"),
            ("make train takes no VIEW; did you mean 'VIEWS'. Type: make train VIEWS=b   (names: "),
        ),
        (
            ("train", "VIEWS=clip,", "dinov2", "DATA=digits"),
            "'dinov2' stands behind a blank, where make begins a new word; "
            "leave no blank in a list. Type: make "
            "train VIEWS=clip,dinov2 DATA=digits",
        ),
        (("VIEWS=dinov2", ",clip,", "mae", "train"), "Type: make VIEWS=dinov2,clip,mae train"),
        (
            ("sweep", "VIEWS=", "clip", "DATA=d", "SEEDS=0,", "1", "GRID=lr=1"),
            "Type: make sweep VIEWS=clip DATA=d SEEDS=0,1 GRID=lr=1",
        ),
        (
            ("trian", "VIEWS=clip"),
            "make has no command 'trian'; did you mean 'train'. Type: make train VIEWS=clip",
        ),
        (("xyzzy",), "make has no command 'xyzzy'. All commands: make help"),
        (
            ("train", "clip", "DATA=d"),
            "make train was given a word that is no command: 'clip'. If it belongs to DATA",
        ),
        (
            ("predict", "RUN=a", "VIEWS=clip"),
            "takes no VIEWS; a run has its own, leave it out. Type: make predict RUN=a   (names",
        ),
        (
            ("train", "VIEWS=a,b", "DATA=P", "ARGS=--warmup", "20", "RUN=q"),
            "Type: make train VIEWS=a,b DATA=P ARGS='--warmup 20' RUN=q",
        ),
        (
            ("sweep", "DATA=P", "GRID=lr=1e-4,3e-4", "temperature=0.5,1", "VIEWS=a,b"),
            "Type: make sweep DATA=P GRID='lr=1e-4,3e-4 temperature=0.5,1' VIEWS=a,b",
        ),
        (
            ("extract", "VEIW=clip", "DATA=digits"),
            "make extract takes no VEIW; did you mean 'VIEW'",
        ),
        (
            ("extract", "VIEW=clp", "DATA=digits"),
            "no view 'clp'; did you mean 'clip'. "
            "A view of your own is a TOML file: path/to/mine.toml\n"
            "Type: make extract VIEW=clip DATA=digits",
        ),
        (("extract", "VIEW=clip"), "DATA is missing. Type: make extract VIEW=clip DATA=photos/"),
        (("extract", "DATA=digits"), "VIEW is missing. Type: make extract VIEW=clip DATA=digits"),
        (
            ("extract", "VIEW=clip", "DATA=x-0.tar", "x-1.tar"),
            (
                "make extract was given a word that is no command: 'x-1.tar'. "
                "If it belongs to DATA (the shell"
            ),
        ),
        (
            ("extract", "VIEW=clip", "DATA=a", "tests", "train"),
            "make extract was given a word that is no command: 'tests'",
        ),
        (
            ("extract", "VIEW=tiny-clip", "DATA=x-0.tar", "DATA=x-1.tar"),
            (
                "DATA was given several times. "
                "If the shell made that of {0..9} or {a,b}, quote it: make"
            ),
        ),
        (
            ("train", "DATA=digits"),
            "VIEWS is missing; name it\nType: make train DATA=digits VIEWS=clip,dinov2",
        ),
        (("import", "VIEW=mine", "TO=x.npz"), "make import takes no TO"),
        (
            ("import", "VIEW=mine"),
            "FROM is missing. Type: make import VIEW=mine FROM=embeddings.npz DATA=photos/",
        ),
        (
            ("export", "VIEW=clip"),
            "TO is missing. Type: make export VIEW=clip DATA=… TO=embeddings.h5",
        ),
        (("repair",), "VIEW is missing. Type: make repair VIEW=clip"),
        (("verify", "CACHE=/nowhere"), "there is no cache /nowhere"),
        (("status", "CACHE=/nowhere"), "there is no cache /nowhere"),
        (("gc", "VIEW=clip"), "make gc takes no VIEW"),
        (("weights",), "VIEW is missing. Type: make weights VIEW=swav"),
        (("weights", "VIEW=swaw"), "no view 'swaw'; did you mean 'swav'"),
        (
            ("weights", "VIEW=clip"),
            (
                "the view 'clip' needs no conversion: "
                "its weights are timm/vit_large_patch14_clip_224.openai. "
                "Type: make extract VIEW=clip"
            ),
        ),
        (
            ("weights", "VIEW=swav", "FROM=/nowhere/x.pth.tar"),
            (
                "FROM=/nowhere/x.pth.tar: there is no such file. "
                "Name one, or leave FROM out: then it is fetched from https://dl."
            ),
        ),
        (("weights", "VIEW=swav", "DATA=x"), "make weights takes no DATA"),
        (("views", "VIEW=clip"), "make views takes no VIEW"),
        (("predict", "RUN=x", "DATA=photos/"), "make predict takes no DATA"),
        (("predict", "IMAGES=photos/"), "RUN is missing"),
        (("export-model", "RUN=x"), "TO is missing. Type: make export-model RUN=x TO=model"),
        (("export-model", "RUN=x", "MODEL=y"), "make export-model takes no MODEL"),
        (
            ("train", "VIEWS=clip,dinov2", "DATA=x", "METHOD=mtc"),
            "no method 'mtc'; did you mean 'mct'",
        ),
    ],
)
def test_a_mistyped_command_shows_the_right_one(
    venv: Path, args: tuple[str, ...], message: str
) -> None:
    found = make(venv, *args)
    assert found.returncode == 2 and message in found.stderr and "Traceback" not in found.stderr


def test_a_flag_that_is_none_names_the_program_that_make_runs(venv: Path) -> None:
    """Which is on no PATH."""
    said = make(venv, "status", "ARGS=--nonsense").stderr
    program = Path(sys.executable).with_name("coview")
    assert f"all settings: {os.path.relpath(program, ROOT)} status --help" in said


def test_values_reach_the_command_whatever_they_contain(venv: Path) -> None:
    """Blanks, quotes, dollars and semicolons are one word; nothing is run."""
    nasty = 'it\'s a "$$(touch pwned)"; x'
    found = make(venv, "extract", "VIEW=tiny-clip", f"DATA={nasty}")
    assert (
        'DATA=it\'s a "$(touch pwned)"; x: there is no such folder' in found.stderr
        and not (ROOT / "pwned").exists()
    )


def test_only_the_command_line_counts_not_the_environment(venv: Path) -> None:
    found = make(
        venv,
        "train",
        "VIEWS=clip,dinov2",
        env={"DATA": "digits", "RUN": "x", "METHOD": "mct", "ARGS": "--nonsense"},
    )
    assert "DATA is missing" in found.stderr


def test_the_exit_code_is_shown(venv: Path) -> None:
    """GNU make itself always exits with 2; it says the command's own code."""
    found = make(venv, "extract", "VIEW=clip", "DATA=digits", "ARGS=--batch -1")
    assert found.returncode == 2 and "Error 2" in found.stderr


def test_names_are_passed_on(venv: Path) -> None:
    given = [
        "VIEWS=a,b",
        "DATA=d",
        "LABELS=3",
        "METHOD=mtc",
        "SEEDS=0..4",
        "GPUS=2",
        "CACHE=c",
        "RUN=r",
    ]
    found = make(venv, "train", *given, "ARGS=--lr 1")
    again = "make train VIEWS=a,b DATA=d LABELS=3 METHOD=mct SEEDS=0..4 GPUS=2 CACHE=c RUN=r"
    assert f"Type: {again} ARGS='--lr 1'\n" in found.stderr


def test_make_views_lists_every_view_and_what_is_too_alike(venv: Path, tmp_path: Path) -> None:
    from cache_specs.spec import load_spec, view_names

    found = make(venv, "views", f"CACHE={tmp_path}")
    assert found.returncode == 0, found.stderr
    rows = {
        line.split()[0]: line
        for line in found.stdout.splitlines()[1:]
        if line and not line.startswith(" ")
    }
    assert (
        set(view_names()) <= rows.keys()
        and f" {load_spec('swav').width} " in rows["swav"]
        and "375.4 M" in rows["swav"]
        and "CC BY-NC 4.0" in rows["swav"]
    )
    assert (
        "  blip and eva01: its frozen tower is EVA-CLIP-g's without the last block" in found.stdout
    )
    assert found.stdout.count("eva01 and") + found.stdout.count("and eva01") == 1


def test_make_weights_offline_says_where_to_fetch_it(venv: Path, tmp_path: Path) -> None:
    found = make(
        venv,
        "weights",
        "VIEW=swav-rn50",
        env={"HF_HUB_OFFLINE": "1", "COVIEW_WEIGHTS": str(tmp_path)},
    )
    url = "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"
    assert (
        found.returncode == 2
        and f"HF_HUB_OFFLINE is set, so {url} is not fetched" in found.stderr
        and "Traceback" not in found.stderr
    )
    assert "make weights VIEW=swav-rn50 FROM=…" in found.stderr and not list(tmp_path.iterdir())


# --- make setup


FAKE = """#!/bin/sh
case "$*" in
"-c import sys; sys.exit(sys.version_info < (3, 11))") exit {old};;
*'for'*|*'join'*) echo {version}.1;;
*'%d.%d'*) echo {version};;
"-m pip --version") exit {no_pip};;
"-m venv --clear "*)
    mkdir -p "$4"; rm -rf "$4"/*; mkdir "$4/bin"; cp "$0" "$4/bin/python"
    [ {no_venv} = 0 ] || echo "ensurepip is not available"; exit {no_venv};;
esac
"""  # a Python that makes virtual environments whose Python is itself


def fake_python(folder: Path, name: str, version: str, no_venv: bool = False) -> Path:
    """On the PATH of `set_up` if it lies in `folder`/path."""
    place = folder / "path" / name
    place.parent.mkdir(exist_ok=True)
    minor = int(version.partition(".")[2])
    values = {"old": int(minor < 11), "version": version, "no_venv": int(no_venv)}
    place.write_text(FAKE.format(no_pip=int(no_venv), **values))
    place.chmod(0o755)
    return place


def set_up(folder: Path, venv: str = ".venv", **env: str) -> subprocess.CompletedProcess:
    for tool in ("bash", "ls", "mkdir", "rm", "cp", "chmod", "sed", "sh"):
        link = folder / "path" / tool
        if not link.is_symlink():
            link.symlink_to(shutil.which(tool))
    path = {"PATH": str(folder / "path"), "HOME": str(folder)}
    words = ["bash", str(ROOT / "tools" / "venv.sh"), venv]
    return subprocess.run(words, cwd=folder, env={**path, **env}, capture_output=True, text=True)


def made_with(folder: Path, version: str) -> bool:
    return f"echo {version}.1" in (folder / ".venv" / "bin" / "python").read_text()


def test_the_first_python_that_is_new_enough_is_taken(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.10")
    done = set_up(tmp_path)
    assert done.returncode == 2 and not (tmp_path / ".venv").exists()
    assert "needs Python 3.11 or newer; python3 here is 3.10.1, and none of" in done.stderr
    assert done.stderr.endswith("then type: PYTHON3=python3.12 make setup\n")
    fake_python(tmp_path, "python3.12", "3.12")
    assert set_up(tmp_path, PYTHON3="python3.12").returncode == 0  # as it was told
    shutil.rmtree(tmp_path / ".venv")
    assert set_up(tmp_path).returncode == 0 and made_with(tmp_path, "3.12")  # and by itself


def test_a_python_that_was_named_is_the_one(tmp_path: Path) -> None:
    for minor in (10, 12, 13):
        fake_python(tmp_path, f"python3.{minor}", f"3.{minor}")
    assert set_up(tmp_path).returncode == 0 and made_with(tmp_path, "3.13")
    done = set_up(tmp_path, PYTHON3="python3.12")
    assert done.returncode == 0 and made_with(tmp_path, "3.12")
    assert "or of another Python (3.13.1): made anew with python3.12 (3.12.1)" in done.stdout
    for name, found in (("python3.10", "3.10.1"), ("python3.99", "nothing that runs")):
        done = set_up(tmp_path, PYTHON3=name)
        assert done.returncode == 2 and done.stderr.endswith(
            f"PYTHON3={name} is {found}. Type: PYTHON3=python3.13 make setup\n"
        )
    assert made_with(tmp_path, "3.12")


@pytest.mark.parametrize("left", ["old", "no pip", "no python", "dead link", "empty"])
def test_a_half_made_environment_is_made_anew(left: str, tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.12")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / ".venv" / "pyvenv.cfg").touch()
    if left == "old":
        shutil.copy(fake_python(tmp_path, "python3.10", "3.10"), python)
    elif left == "no pip":
        shutil.copy(fake_python(tmp_path, "other", "3.12", no_venv=True), python)
    elif left == "dead link":
        python.symlink_to(tmp_path / "gone")
    elif left == "empty":
        python.touch()
    done = set_up(tmp_path)
    assert done.returncode == 0 and made_with(tmp_path, "3.12"), done.stderr
    assert ".venv is half made" in done.stdout and not (tmp_path / ".venv/pyvenv.cfg").exists()
    marked = tmp_path / ".venv" / "kept"
    marked.touch()
    again = set_up(tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "") and marked.exists()


def test_without_the_package_of_debian_the_advice_works_when_it_is_typed(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.12", no_venv=True)
    done = set_up(tmp_path)
    assert done.returncode == 2 and "ensurepip is not available" in done.stderr
    assert "type: sudo apt install python3.12-venv   and then: make setup" in done.stderr
    fake_python(tmp_path, "python3", "3.12")  # apt has installed it
    assert set_up(tmp_path).returncode == 0 and made_with(tmp_path, "3.12")


def test_a_folder_that_somebody_else_made_is_left_alone(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.12")
    own = tmp_path / "env"
    (own / "bin").mkdir(parents=True)
    done = set_up(tmp_path, venv="env")
    assert done.returncode == 2 and "VENV=env holds something else" in done.stderr
    (own / "bin").rmdir()
    assert set_up(tmp_path, venv="env").returncode == 0 and (own / "bin" / "python").is_file()


def test_make_setup_asks_for_it_first(tmp_path: Path) -> None:
    done = make(tmp_path / "none", "-n", "setup")
    lines = done.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if "venv.sh" in line)
    assert f"bash tools/venv.sh '{tmp_path}/none'" in lines[first] and "pip" in lines[first + 1]
