"""decoder = "scaled": a large JPEG is decoded at a half, a quarter or an eighth of its size, as
long as both sides have at least twice what the model sees; all else as without it."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from conftest import config
from PIL import Image

from base.errors import StaleError
from cache_specs.spec import SPECS, Preprocess, ViewSpec, load_spec, recorded_spec
from extract import images
from extract.images import OK, TOO_LARGE, TRUNCATED, decode
from extract.run import run

WHOLE = Preprocess(24, "shortest", 24, "bicubic", True, (0.0,) * 3, (1.0,) * 3)
SCALED = dataclasses.replace(WHOLE, decoder="scaled")


def photograph(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def jpeg(width: int, height: int, **options: object) -> bytes:
    sink = io.BytesIO()
    photograph(width, height).save(sink, "JPEG", quality=90, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((95, 300), (95, 300)),
        ((96, 300), (48, 150)),
        ((300, 191), (150, 96)),
        ((300, 192), (75, 48)),
        ((900, 384), (113, 48)),
        ((900, 2000), (113, 250)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["baseline", "progressive", "turned", "grey"])
def test_both_sides_keep_twice_what_is_seen(size, decoded, kind):
    options: dict[str, object] = {"progressive": kind == "progressive"}
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    data = jpeg(*size, **options)
    if kind == "grey":
        sink = io.BytesIO()
        photograph(*size).convert("L").save(sink, "JPEG", quality=90)
        data = sink.getvalue()
    found = images.picture(data, SCALED).image.size
    assert found == (decoded[::-1] if kind == "turned" else decoded)
    assert min(found) >= 48 or found == size[:: -1 if kind == "turned" else 1]
    whole, scaled = decode(data, WHOLE)[0], decode(data, SCALED)[0]
    assert (whole.int() - scaled.int()).abs().float().mean() < 1


@pytest.mark.parametrize("rule", ["shortest", "squash", "pad"])
def test_without_it_nothing_is_decoded_coarsely_and_other_formats_never_are(rule):
    prep = dataclasses.replace(WHOLE, resize_rule=rule)
    scaled = dataclasses.replace(prep, decoder="scaled")
    assert images.picture(jpeg(400, 300), prep).image.size == (400, 300)
    sink = io.BytesIO()
    photograph(400, 300).save(sink, "PNG")
    assert torch.equal(*(decode(sink.getvalue(), one)[0] for one in (prep, scaled)))
    small = jpeg(90, 60)
    assert torch.equal(decode(small, prep)[0], decode(small, scaled)[0])


def test_what_cannot_be_read_has_the_same_status():
    data = jpeg(400, 300)
    tiny = {"max_pixels": 400 * 300 - 1}
    for prep in (WHOLE, SCALED):
        assert decode(data, prep)[1] == OK
        assert decode(data[: len(data) // 2], prep) == (None, TRUNCATED)
        assert decode(data, dataclasses.replace(prep, **tiny)) == (None, TOO_LARGE)


def with_decoder(spec: ViewSpec, decoder: str) -> ViewSpec:
    prep = dataclasses.replace(spec.preprocess, decoder=decoder)
    return dataclasses.replace(spec, preprocess=prep)


def test_it_is_hashed_where_it_is_asked_for_alone():
    spec = load_spec("tiny-clip")
    assert "decoder" not in spec.declared()["preprocess"]
    other = with_decoder(spec, "scaled")
    assert other.declared()["preprocess"]["decoder"] == "scaled"
    assert other.fingerprint("x") != spec.fingerprint("x")
    for one in (spec, other):
        hashed = dataclasses.replace(one, about=None, text=None)
        assert recorded_spec("tiny-clip", one.declared(), spec.source) == hashed


def test_a_view_is_made_with_it_and_is_another_than_without(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        data = jpeg(300 + number, 200)
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(data)
    text = (SPECS / "tiny-clip.toml").read_text().replace('path = "', f'path = "{SPECS}/')
    (tmp_path / "v.toml").write_text(
        text.replace("[preprocess]", "[preprocess]\ndecoder = 'scaled'")
    )
    where = config(tmp_path / "photos", tmp_path / "cache", view=str(tmp_path / "v.toml"))
    view = run(where)
    assert view.is_complete and view.attributes["spec"]["preprocess"]["decoder"] == "scaled"
    (tmp_path / "v.toml").write_text(text)
    with pytest.raises(StaleError, match=r"preprocess\.decoder: scaled -> whole"):
        run(where)
