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
    with pytest.raises(UsageError, match="the data set has none: leave it out"):
        read_names("own", [])
