"""Words that no flag expects."""

from dataclasses import dataclass

import pytest

from base.stray import placed


@dataclass(frozen=True)
class Settings:
    views: str = ""
    data: str = ""
    at_once: int = 3
    force: bool = False


@pytest.mark.parametrize(
    ("argv", "meant", "stray"),
    [
        ("", "", {}),
        ("--views a --data=b --force --at-once -1", "--views a --data=b --force --at-once -1", {}),
        ("--views a b c", "--views a,b,c", {"b": "--views", "c": "--views"}),
        ("--views=a, b", "--views=a,b", {"b": "--views"}),
        ("--views a ,b --force", "--views a,b --force", {",b": "--views"}),
        ("--data my photos", "--data|my photos", {"photos": "--data"}),
        ("--at_once 3 4", "--at_once|3 4", {"4": "--at-once"}),
        ("a b c", "--views a --data b", {"a": "", "b": "", "c": ""}),
        ("--force a", "--force --views a", {"a": "--force"}),
        ("--no-force a", "--no-force --views a", {"a": "--no-force"}),
        ("--nonsense 1 2 --views a", "--nonsense 1 2 --views a", {}),  # the parser speaks of it
        ("--views", "--views", {}),
        ("--views --force", "--views --force", {}),
    ],
)
def test_each_gets_to_where_it_probably_belongs(argv: str, meant: str, stray: dict) -> None:
    found, words = placed(argv.split(), Settings, ["--views", "--data"])
    flag, bar, value = meant.partition("|")
    assert (found, words) == ([flag, value] if bar else meant.split(), stray)
