"""Different images with equal embeddings are counted, named and told; also how alike they are."""

import logging

import numpy as np
import pytest
from conftest import config
from PIL import Image

from extract.equal import Equal, equal_rows
from extract.run import extraction, prepare
from report.config import InspectConfig
from report.inspect.run import run as inspect
from report.inspect.text import text_of


def count(rows: np.ndarray, ok: np.ndarray, sha256: list[str]) -> Equal | None:
    """By comparing each with each."""
    groups: dict[bytes, dict[str, int]] = {}
    for row in np.flatnonzero(ok).tolist():
        groups.setdefault(rows[row].tobytes(), {}).setdefault(sha256[row], row)
    shared = sorted(sorted(found.values()) for found in groups.values() if len(found) > 1)
    if not shared:
        return None
    return Equal(sum(map(len, shared)), len(shared), shared[0][0], shared[0][1])


@pytest.mark.parametrize("width", [1, 5, 64])
@pytest.mark.parametrize("kinds", [3, 40, 10**6])
def test_they_are_those_that_a_comparison_of_all_finds(kinds, width):
    chance = np.random.default_rng(kinds)
    kind = chance.integers(0, kinds, 300)
    rows = (
        chance.standard_normal((max(kind) + 1 if kinds < 100 else 10**6, width))
        if kinds < 100
        else None
    )
    rows = rows[kind].astype(np.float16) if rows is not None else chance.random((300, width))
    rows = rows.astype(np.float16)
    ok = chance.random(300) > 0.1
    sha256 = [f"{number:x}" for number in chance.integers(0, 200, 300)]
    found = equal_rows([rows[:7], rows[7:250], rows[250:]], ok, sha256)
    assert found == count(rows, ok, sha256)


def test_copies_of_a_file_and_bad_rows_are_none():
    rows = np.ones((4, 3), np.float16)
    assert equal_rows([rows], np.array([True, True, False, False]), ["a", "a", "b", "c"]) is None
    assert equal_rows([rows[:0]], np.zeros(0, bool), []) is None


def test_every_one_of_many_rows_is_counted():
    block = np.random.default_rng(0).random((1000, 64)).astype(np.float16)
    found = equal_rows(
        (block for _ in range(50)), np.ones(50_000, bool), list(map(str, range(50_000)))
    )
    assert found == Equal(50_000, 1000, 0, 1000)


def test_extract_and_inspect_tell_of_them(tmp_path, caplog, capsys):
    caplog.set_level(logging.WARNING)
    chance, photos = np.random.default_rng(0), tmp_path / "photos"
    for label in "ab":
        (photos / label).mkdir(parents=True)
        for number in range(6):
            noise = Image.fromarray(chance.integers(0, 256, (28, 28, 3), np.uint8))
            noise.save(photos / label / f"{number}.png")
    noise.save(photos / "b" / "again.bmp")
    done = extraction(prepare(config(photos, tmp_path / "cache")))[0]
    assert done.equal == Equal(2, 1, 11, 12) and done.told()["equal_images"] == 2
    again = extraction(prepare(config(photos, tmp_path / "cache")))[0]
    assert again.told()["hits"] == 13 and again.told()["equal_images"] is None
    assert (
        "2 images are different files, but have only 1 different embedding, first 'b/5.png' and "
        "'b/again.bmp'. These two hold the same picture, saved twice. Nothing that is trained"
    ) in caplog.text
    where = InspectConfig(
        views="tiny-clip",
        data=str(photos),
        cache=str(tmp_path / "cache"),
        to=str(tmp_path / "page.html"),
    )
    found = inspect(where)
    told = "tiny-clip: 2 images are different files, but have only 1 different embedding"
    assert told in text_of(found) and told in (tmp_path / "page.html").read_text()


def test_it_says_how_alike_they_are():
    import io

    from cache_specs.spec import load_spec
    from extract.images import how_alike

    def saved(levels: np.ndarray, kind: str = "PNG") -> bytes:
        sink = io.BytesIO()
        Image.fromarray(levels).save(sink, kind)
        return sink.getvalue()

    prep, flat = load_spec("tiny-clip").preprocess, np.full((280, 280), 90, np.uint8)
    dot = flat.copy()
    dot[100, 100] = 92
    assert "hold the same picture" in how_alike(saved(flat), saved(flat, "BMP"), prep)
    assert "differ, but not once they are scaled to 28 x 28" in how_alike(
        saved(flat), saved(dot), prep
    )
    assert "the model sees no difference" in how_alike(saved(flat), saved(flat + 9), prep)
    assert how_alike(saved(flat), b"", prep) == "They could not be read again"
