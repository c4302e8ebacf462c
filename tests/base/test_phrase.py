"""Messages are written in make's form, and shown in that in which the user typed."""

import shlex
import subprocess

import pytest

from base.commands import Typed
from base.phrase import phrase, shown
from coview.cli import COMMANDS

NAMES = {command.name: (*command.words, "ARGS") for command in COMMANDS}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            "DATA is missing. Type: make extract VIEW=clip DATA=photos/",
            "--data is missing. Type: coview extract --view clip --data photos/",
        ),
        ("Type: make import VIEW=mine FROM=x.npz ARGS=--partial", None),
        (
            "give it another name (RUN=a-2), or leave METHOD out",
            "give it another name (--run a-2), or leave --method out",
        ),
        (
            (
                "Type: make extract VIEW=… DATA='my photos/' ARGS='--name x "
                "--batch 8'   with what it was"
            ),
            (
                "Type: coview extract --view … --data 'my photos/' --name x "
                "--batch 8   with what it was"
            ),
        ),
        ("ARGS='--force' replaces it", "--force replaces it"),
        ("make export-model RUN=x TO=m", "coview export-model --run x --to m"),
        ("make compare RUNS=a,b", "coview compare --names a,b"),
        ("the class 'TO', /DATA/x and MY_DATA stay", "the class 'TO', /DATA/x and MY_DATA stay"),
        ("make sure that it is there", "make sure that it is there"),
        ("All commands: make help", "All commands: coview help"),
        ("Type: make export VIEW=TO TO=VIEW", "Type: coview export --view TO --to VIEW"),
        ("Type: make train DATA=-x RUN=a", "Type: coview train --data=-x --run a"),
        (
            "in full:\n  coview extract --view RUN --name 'TO x' --batch=8\nor leave VIEW out",
            "in full:\n  coview extract --view RUN --name 'TO x' --batch=8\nor leave --view out",
        ),
    ],
)
def test_a_message_in_the_form_of_coview(made: str, said: str | None) -> None:
    said = said or "Type: coview import --view mine --source x.npz --partial"
    assert phrase(made, NAMES, "coview") == said
    assert phrase(made, NAMES, "make") == made


@pytest.mark.parametrize(
    "value", ["my photos/", "cost$5/", "it's", '"q"', "a\\b", "$(x)", "`x`", "TO", "#1"]
)
def test_a_command_in_a_message_means_the_same_in_both_forms(value: str) -> None:
    """What the shell hands on of the translated command is what was meant."""
    made = str(Typed("make", "extract", {"VIEW": "clip", "DATA": value}, ["--name", value]))
    said = phrase(f"Type: {made}", NAMES, "coview").removeprefix("Type: coview ")
    found = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {said}"], capture_output=True, text=True, check=True
    )
    words = ["extract", "--view", "clip", "--data", value, "--name", value]
    assert found.stdout.splitlines() == words
    assert (
        str(Typed("coview", "extract", {"DATA": value}))
        == f"coview extract --data {shlex.quote(value)}"
    )


def test_a_key_is_shown_without_what_a_terminal_obeys() -> None:
    assert shown("é 1.png") == "é 1.png"
    assert shown("\x1b[31mred\u202e.png") == r"'\x1b[31mred\u202e.png'"
