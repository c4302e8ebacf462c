"""CLASSES: what the classes are called, and every mistake in the file by its line."""

from pathlib import Path

import pytest

from base.errors import UNKNOWN, UsageError
from cache_specs.prompts import Names, read_names

KNOWN = ["dog", "sea_lion", "n02", "a: b", "# sharp", "{}"]
FILE = """\ufeff# names of my classes

dog: dog; puppy ;  hound;
n02 : Siamese cat: the breed
sea_lion
a: b
a photo of a {}.
# sharp
{}
a {} in {} snow
"""


def names(folder: Path, text: str | bytes) -> Names:
    (folder / "n.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_names(str(folder / "n.txt"), KNOWN)


def test_lines_are_classes_names_templates_and_remarks(tmp_path: Path) -> None:
    """What is a class of the data set is that, whatever else its line looks like."""
    found = names(tmp_path, FILE)
    assert found.names == {
        "dog": ("dog", "puppy", "hound"),
        "n02": ("Siamese cat: the breed",),
        "sea_lion": ("sea lion",),
        "a: b": ("a: b",),
        "# sharp": ("# sharp",),
        "{}": ("{}",),
    }
    assert found.templates == ("a photo of a {}.", "a {} in {} snow")
    prompts = found.prompts(["not used: {}"])
    assert prompts["n02"] == [
        "a photo of a Siamese cat: the breed.",
        "a Siamese cat: the breed in Siamese cat: the breed snow",
    ]
    assert len(prompts["dog"]) == 6 and [*prompts] == [*found.names]


def test_a_class_may_hold_what_else_parts_a_line(tmp_path: Path) -> None:
    """The longest class before a colon is meant."""
    (tmp_path / "n.txt").write_text("a : x; y\na: b: z: 1\n# sharp: key\n{}: braces\n# a: no\n")
    found = read_names(str(tmp_path / "n.txt"), ["a", "a: b", "# sharp", "{}"])
    assert found.names == {
        "a": ("x", "y"),
        "a: b": ("z: 1",),
        "# sharp": ("key",),
        "{}": ("braces",),
    }
    assert found.templates == ()


def test_classes_of_the_same_names_are_known() -> None:
    assert read_names("own", ["sea_lion", "cat", "Sea lion", "dog"]).alike() == [
        ["sea_lion", "Sea lion"]
    ]
    assert Names({"a": ("x", "y"), "b": ("y",), "c": ("y", "x")}).alike() == [["a", "c"]]


def test_own_names_have_blanks_and_the_views_templates() -> None:
    found = read_names("own", KNOWN)
    assert found.templates == () and found.names["sea_lion"] == ("sea lion",)
    assert found.prompts(["a {}", "{}"])["dog"] == ["a dog", "dog"]
    assert read_names("own", ["_"]).names == {"_": ("_",)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dog\ndgo: x", r"line 2: the data set has no class 'dgo'; did you mean 'dog'"),
        ("zzzzzz", "line 1: the data set has no class 'zzzzzz'; there is: # sharp, "),
        ("dog\n\ndog: hound", "line 3 names 'dog' again: name each class once"),
        (
            "dog: ; ",
            r"'dog' has no name behind the colon\. A line is such as 'n02084071: dog",
        ),
        ("dog: a {} thing", r"line 1: 'dog' has \{\} in a name: templates are of all classes"),
        (
            "dog",
            r"there is no line for 'sea_lion', 'n02', 'a: b', '# sharp', '{}': give each",
        ),
        (
            b"\xff\xfe",
            r"cannot be read \(it is no text in UTF-8\): name a file with a line",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        names(tmp_path, text)
    assert error.value.instead == {"CLASSES": UNKNOWN}


def test_a_file_that_is_not_there_and_a_data_set_without_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.txt: this cannot be read \(No such file"):
        read_names(str(tmp_path / "none.txt"), KNOWN)
    with pytest.raises(UsageError, match=r"there is no line for .*, '4' and 95 others: give"):
        (tmp_path / "few.txt").write_text("# none")
        read_names(str(tmp_path / "few.txt"), [str(i) for i in range(100)])
    with pytest.raises(UsageError, match="the data set has none: name a file with a line a class"):
        read_names("own", [])


def test_the_names_of_a_data_set_without_classes_say_which_there_are(tmp_path: Path) -> None:
    """A line with {} is a template there, whatever colons it has."""
    path = tmp_path / "names.txt"
    path.write_text("# pets\ncat\nsea_lion\n\nn02: dog; puppy\na photo: {}.\n")
    found = read_names(str(path), [])
    assert found.names == {"cat": ("cat",), "sea_lion": ("sea lion",), "n02": ("dog", "puppy")}
    assert found.templates == ("a photo: {}.",)
    for text, told in (
        ("cat", "there are fewer than two classes: write a line for each"),
        ("cat\ndog:", "line 2: 'dog' has no name behind the colon"),
        ("cat\ncat: kitty", "line 2 names 'cat' again"),
        (": cat\ndog", "line 1: the data set has no class ''"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=told):
            read_names(str(path), [])
