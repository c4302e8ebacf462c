"""The one door of all commands: what was typed, in both forms, what is said again, how it ends."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import ROOT

from base import commands, errors, make_words
from base.commands import Command, Typed, amend, inherit, main, overview, split, typed
from coview.cli import COMMANDS

PLACE = "table_of_tests:COMMANDS"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Do what the tests want: it is asked for, and it is done. Then nothing."""

    view: str = ""
    source: str = ""
    batch: int = 1
    force: bool = False
    json: bool = False


TABLE = (
    Command(
        "import",
        "table_of_tests:Settings",
        "table_of_tests:run",
        ("VIEW", "FROM"),
        "make import VIEW=a",
    ),
    Command("plain", "table_of_tests:Settings", "table_of_tests:run", (), "make plain"),
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """run("import", "--view", "a", do=…): the exit status of main() with this table; do(settings,
    found) is the command."""
    module = types.ModuleType("table_of_tests")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in (commands.MAKE, commands.TYPED, "GOALS", "COMMANDS", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv: str, do: Callable[[Settings, dict[str, Any]], None] = lambda *_: None) -> int:
        module.COMMANDS, module.Settings, module.run = TABLE, Settings, do
        return main(PLACE, argv)

    yield run
    now = commands.CURRENT
    assert now == commands.Current() and commands.TYPED not in os.environ


def failing(error: BaseException) -> Callable[..., None]:
    def do(settings: Settings, found: dict[str, Any]) -> None:
        raise error

    return do


def test_the_settings_reach_the_command_and_the_names_stand_for_flags(run) -> None:
    seen = []

    def do(settings: Settings, found: dict[str, Any]) -> None:
        seen.append((settings, typed()))

    assert run("import", "--view", "a b", "--source=x.npz", "--batch", "8", do=do) == 0
    assert seen == [
        (
            Settings(view="a b", source="x.npz", batch=8),
            "coview import --view 'a b' --source x.npz --batch 8",
        )
    ]


def test_make_comes_in_by_the_same_door(run, monkeypatch) -> None:
    """The names that stand on its command line, from the environment, and no others; ARGS may
    repeat a name, and then has the last word."""
    seen = []

    def do(settings: Settings, found: dict[str, Any]) -> None:
        seen.append((settings, typed()))

    for name, value in {commands.MAKE: "VIEW", "VIEW": "-a$", "FROM": "not given"}.items():
        monkeypatch.setenv(name, value)
    assert run("import", "--force", do=do) == 0
    monkeypatch.setenv(commands.MAKE, "VIEW")
    assert run("import", "--view", "b", "--batch", "2", do=do) == 0
    assert seen == [
        (Settings(view="-a$", force=True), "make import VIEW='-a$$' ARGS=--force"),
        (Settings(view="b", batch=2), "make import VIEW=b ARGS='--batch 2'"),
    ]
    monkeypatch.setenv(commands.MAKE, "DATA")
    assert run("plain") == 2


@pytest.mark.parametrize(
    ("argv", "words", "flags"),
    [
        ([], {}, []),
        (["--view", "a"], {"VIEW": "a"}, []),
        (["--view=a=b", "--batch=8"], {"VIEW": "a=b"}, ["--batch=8"]),
        (["--source", "-x", "--force"], {"FROM": "-x"}, ["--force"]),
        (["--view", "a", "--view", "b"], {"VIEW": "b"}, []),
        (["--view="], {"VIEW": ""}, []),
        (["--view"], {}, ["--view"]),
        (["--view", "--force", "x"], {}, ["--view", "--force", "x"]),
        (["--name", "it's", "stray"], {}, ["--name", "it's", "stray"]),
    ],
)
def test_what_was_typed_is_split_into_names_and_other_flags(argv, words, flags) -> None:
    assert split(TABLE[0], argv) == Typed("coview", "import", words, flags)


@pytest.mark.parametrize("form", ["make", "coview"])
@pytest.mark.parametrize(
    ("instead", "words", "flags"),
    [
        ({}, {"VIEW": "a"}, ["--batch", "8", "--force"]),
        ({"VIEW": "it's"}, {"VIEW": "it's"}, ["--batch", "8", "--force"]),
        ({"VIEW": None}, {}, ["--batch", "8", "--force"]),
        ({"FROM": "x"}, {"VIEW": "a", "FROM": "x"}, ["--batch", "8", "--force"]),
        ({"DATA": "x"}, {"VIEW": "a"}, ["--batch", "8", "--force"]),  # it takes none
        ({"--force": ""}, {"VIEW": "a"}, ["--batch", "8", "--force"]),
        ({"--batch": "9"}, {"VIEW": "a"}, ["--batch", "9", "--force"]),
        ({"--name": "n"}, {"VIEW": "a"}, ["--batch", "8", "--force", "--name", "n"]),
    ],
)
def test_the_command_with_a_change(run, form, instead, words, flags) -> None:
    said = []

    def do(settings: Settings, found: dict[str, Any]) -> None:
        commands.CURRENT.typed = dataclasses.replace(commands.CURRENT.typed, form=form)
        said.extend([typed(instead=instead), typed("--force"), typed()])

    run("import", "--view", "a", "--batch", "8", "--force", do=do)
    now = Typed(form, "import", {"VIEW": "a"}, ["--batch", "8", "--force"])
    without = dataclasses.replace(now, flags=["--batch", "8"])
    assert said == [str(Typed(form, "import", words, flags)), str(without), str(now)]


def test_a_flag_that_was_given_with_an_equals_sign_is_replaced_too(run) -> None:
    said = []
    run("plain", "--batch=8", do=lambda *_: said.append(typed(instead={"--batch": "9"})))
    assert said == ["coview plain --batch 9"]


@pytest.mark.parametrize("value", ["-x", "--force", "it's; $(x)", "a b", ""])
def test_what_is_said_again_is_read_as_the_same(value) -> None:
    """Through the shell, and by the parser."""
    whole = shlex.split(str(Typed("coview", "import", {"VIEW": value}, ["--force"])))
    assert split(TABLE[0], whole[2:]) == Typed("coview", "import", {"VIEW": value}, ["--force"])


def test_a_command_is_amended_for_the_processes_that_it_starts_too(run, monkeypatch) -> None:
    said = []

    def child() -> str:
        """What inherit() makes of the environment in a process of its own."""
        with monkeypatch.context() as patch:
            patch.setattr(commands, "CURRENT", commands.Current())
            inherit()
            amend("VIEW", "a child has no say")
            return f"{commands.CURRENT.child} {typed(instead={'FROM': 'x'})}"

    def do(settings: Settings, found: dict[str, Any]) -> None:
        for change in (("VIEW", "b"), ("VIEW", None)):
            amend(*change)
            said.extend([typed(), child()])

    run("import", "--view", "a", "--force", do=do)
    assert said == [
        "coview import --view b --force",
        "True coview import --view b --source x --force",
        "coview import --force",
        "True coview import --source x --force",
    ]


@pytest.mark.parametrize("value", ["-x", "--force", "a b", "", "a=b"])
def test_another_process_is_told_the_settings(value: str, run) -> None:
    told, first = [], []

    def do(settings: Settings, found: dict[str, Any]) -> None:
        settings = dataclasses.replace(settings, view=value, force=True)
        told.extend(commands.started("import", settings))
        first.append(settings)

    assert run("import", do=do) == 0
    assert told[:2] == ["table_of_tests", "import"]
    assert run("import", *told[2:], do=lambda settings, _: first.append(settings)) == 0
    assert first[0] == first[1] and first[0].view == value


@pytest.mark.parametrize("left", ["", "{", "[]", '{"typed": 1, "place": "x"}', '{"typed": {}}'])
def test_what_somebody_else_left_in_the_environment_is_nobodys_command(left, run, monkeypatch):
    def do(settings: Settings, found: dict[str, Any]) -> None:
        assert typed() == "coview plain" and not commands.CURRENT.child

    monkeypatch.setenv(commands.TYPED, left)
    assert run("plain", do=do) == 0


KNOWN = [
    (errors.UsageError("no such thing"), 2),
    (errors.DataQualityError("bad"), 3),
    (errors.StorageError("full"), 4),
    (errors.IntegrityError("damaged"), 5),
    (errors.StaleError("old"), 6),
    (errors.RankDiedError("dead"), 7),
    (errors.PreemptedError("pre-empted"), 75),
    (errors.StoppedError("stopped"), 130),
    (KeyboardInterrupt(), 130),
    (OSError(28, "No space left on device", "/x"), 4),
    (OSError(13, "Permission denied", "/x"), 4),
    (OSError(36, "File name too long", "y" * 300), 2),
]


@pytest.mark.parametrize(("error", "code"), KNOWN, ids=lambda one: repr(one)[:30])
def test_an_expected_error_is_a_message_the_command_and_an_exit_code(
    run, capsys, error, code
) -> None:
    assert run("import", "--view", "a", do=failing(error)) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.rstrip().endswith(": coview import --view a")
    assert said.err.startswith("error: ") == (code != 130)


@pytest.mark.parametrize(("error", "code"), KNOWN, ids=lambda one: repr(one)[:30])
def test_json_has_the_same_exit_code_and_the_message_as_it_was_said(
    run, capsys, error, code
) -> None:
    assert run("import", "--view", "a", "--json", do=failing(error)) == code
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], found["ok"], found["exit_code"]) == ("import", False, code)
    assert found["error"] and not found["error"].startswith("error: ")


def test_a_message_in_json_has_the_form_in_which_one_typed(run, capsys) -> None:
    run("import", "--json", do=failing(errors.UsageError("VIEW is missing; make import VIEW=a")))
    said = json.loads(capsys.readouterr().out)["error"]
    assert said == "--view is missing; coview import --view a"


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(2, "not there", "/x")])
def test_a_bug_keeps_its_traceback_and_json_says_1(run, capsys, error) -> None:
    with pytest.raises(type(error)):
        run("plain", "--json", do=failing(error))
    assert json.loads(capsys.readouterr().out)["exit_code"] == 1


def test_a_flag_that_is_none_is_an_error_of_usage_in_json_too(run, capsys) -> None:
    for argv in (["--nonsense"], ["--nonsense", "--json"]):
        with pytest.raises(SystemExit) as ended:
            run("plain", *argv)
        assert ended.value.code == 2
        said = capsys.readouterr()
        assert said.err.splitlines()[-2:] == [
            "all settings: coview plain --help",
            f"Type: coview plain {' '.join(argv[1:])}".strip(),
        ]
    found = json.loads(said.out)
    assert (found["ok"], found["exit_code"], found["command"]) == (False, 2, "plain")


def test_what_was_found_is_one_document(run, capsys, monkeypatch) -> None:
    def do(settings: Settings, found: dict[str, Any]) -> None:
        found["rows"] = 3

    assert run("plain", "--json", do=do) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "command": "plain",
        "ok": True,
        "exit_code": 0,
        "error": None,
        "rows": 3,
    }
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # of several processes one speaks
    assert run("plain", "--json", do=do) == 0 and capsys.readouterr().out == ""


def test_a_command_that_is_none_names_the_nearest(run, capsys) -> None:
    assert run("improt", "--view", "a b") == 2
    said = capsys.readouterr().err
    near = "Type: coview import --view 'a b'"
    assert said == f"error: coview has no command 'improt'; did you mean 'import'. {near}\n"
    assert run("xyzzy", "--json") == 2
    said = capsys.readouterr()
    assert "there is: import, plain. All commands: coview --help" in said.err
    assert json.loads(said.out)["exit_code"] == 2


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",), ("help", "nothing")])
def test_without_a_command_there_is_a_line_for_each(run, capsys, argv) -> None:
    assert run(*argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("usage: coview COMMAND")
    assert [line.split()[0] for line in said[2:]] == ["import", "plain"]
    assert said[3].endswith("Do what the tests want: it is asked for, and it is done")


def test_help_of_one_command_and_the_version(run, capsys) -> None:
    for argv in (("help", "plain"), ("plain", "--help"), ("plain", "--help", "--json")):
        with pytest.raises(SystemExit) as ended:
            run(*argv)
        assert not ended.value.code and "usage: coview plain" in capsys.readouterr().out
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("coview ")


def test_every_command_has_a_line_of_at_most_100_columns() -> None:
    lines = overview(COMMANDS).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [one.name for one in COMMANDS]
    assert max(map(len, lines)) <= 100
    assert all(len(line.split()) > 2 for line in lines[2:])


def test_the_overview_is_there_at_once() -> None:
    """No clock: what takes long is what is imported."""
    program = """
import sys
from base.commands import main
main("coview.cli:COMMANDS", ["--help"])
print({"torch", "numpy", "pyarrow", "zarr", "tyro", "rich"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("set()") and done.stderr == ""


def test_a_process_of_its_own_says_the_same(tmp_path) -> None:
    """The console script, with stdout for machines alone."""

    def ended(*argv: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "coview.cli", *argv]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    done = ended("xtract", "--view", "clip")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.endswith("did you mean 'extract'. Type: coview extract --view clip\n")
    done = ended("status", "--json", "--cahce", str(tmp_path))
    assert done.returncode == 2 and json.loads(done.stdout)["exit_code"] == 2
    assert "--cahce" in done.stderr
    done = ended("status", "--cache", str(tmp_path / "none"))
    assert done.returncode == 2 and "fill it: coview extract --view clip" in done.stderr


@pytest.mark.parametrize("value", ["cost$$5/", "$$(x) y", "it's", "a=b"])
def test_the_words_that_make_was_given_are_said_as_they_were_typed(value) -> None:
    """A dollar is doubled in them already, for make."""
    line = make_words.as_typed(["train", f"DATA={value}", "RUN="])
    assert shlex.split(line) == ["make", "train", f"DATA={value}", "RUN="]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "make predict RUN=u3 DATA=d/new",
            "takes no DATA; did you mean 'IMAGES'. Type: make predict RUN=u3 IMAGES=d/new   (",
        ),
        ("make predict RUN=u3 DATA=a IMAGES=b", "Type: make predict RUN=u3 IMAGES=b   ("),
        ("make extract IMAGES=d VIEW=clip", "Type: make extract DATA=d VIEW=clip   ("),
        ("make report RUN=u1 TO=x.html", "Type: make report RUN=u1   (names: RUN, "),
        ("make report run=u1 TO=x.html", "Type: make report RUN=u1   (names: RUN, "),
        (
            "make predict RUN=u3 IMAGES=a.jpg b.jpg",
            "IMAGES is one image, folder or list: for several images, name their folder",
        ),
        ("make predict u3", "'u3'. A value needs its name: make predict RUN=u3"),
        ("make status cache", "'cache'. A value needs its name: make status CACHE=cache"),
        ("make extract clip", "A value needs its name: make extract VIEW=clip"),
        ("make extract VIEW=clip DATA=a-0.tar a-1.tar", "make extract DATA='x-{000..012}.tar'"),
    ],
)
def test_what_was_given_to_make_is_kept_in_what_is_typed_next(
    monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    words = line.split()[1:]
    monkeypatch.setattr(make_words, "on_the_line", lambda goals: words)
    named = [word.partition("=")[0] for word in words if "=" in word]
    goals = [word for word in words if "=" not in word]
    names = {one.name: (*one.words, "ARGS") for one in COMMANDS}
    examples = {one.name: one.example for one in COMMANDS}
    with pytest.raises(errors.UsageError) as caught:
        make_words.check(words[0], named, goals, names, examples)
    assert message in str(caught.value)


def test_in_a_folder_that_is_gone_every_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.getcwd", gone)
    assert main("coview.cli:COMMANDS", ["doctor"]) == 2
    assert "the folder that you are in is not there any more" in capsys.readouterr().err
