"""How pictures are scaled: by the formula of the filters, in integers, on any processor."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from cache_specs.spec import Preprocess
from extract.pixels import STRIP
from extract.scaling import levels, pipeline

PREP = Preprocess(24, "squash", 24, "bicubic", True, (0.0,) * 3, (1.0,) * 3)
SUPPORT = {"bilinear": 1, "bicubic": 2}


def noise(width: int, height: int) -> Image.Image:
    chance = np.random.default_rng([width, height])
    return Image.fromarray(chance.integers(0, 256, (height, width, 3), np.uint8))


# --- the oracle


def bell(x: float, mode: str) -> float:
    """The triangle, and Keys's cubic with a = -1/2."""
    x = abs(x)
    if mode == "bilinear":
        return max(0.0, 1 - x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return -0.5 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0


def weights(before: int, after: int, mode: str) -> tuple[np.ndarray, int]:
    """(after, before) weights of a side as integers, and how many of their bits are a fraction:
    the most with which the greatest has 15 bits."""
    scale = before / after
    wide, share = SUPPORT[mode] * max(scale, 1), np.zeros((after, before))
    for i in range(after):
        middle = scale * (i + 0.5)
        low, high = max(int(middle - wide + 0.5), 0), min(int(middle + wide + 0.5), before)
        for j in range(low, high):
            share[i, j] = bell((j + 0.5 - middle) / max(scale, 1), mode)
    share /= share.sum(1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + share.max() * 2 ** (bits + 1)) < 2**15:
        bits += 1
    return np.trunc(share * 2**bits + np.copysign(0.5, share)).astype(np.int64), bits


def along(axis: int, levels_HWC: np.ndarray, after: int, mode: str) -> np.ndarray:
    factor, bits = weights(levels_HWC.shape[axis], after, mode)
    sums = np.moveaxis(np.tensordot(factor, levels_HWC.astype(np.int64), (1, axis)), 0, axis)
    return ((sums + 2 ** (bits - 1)) >> bits).clip(0, 255)


def expected(image: Image.Image, prep: Preprocess, size: tuple[int, int]) -> torch.Tensor:
    """First the width, then the height; then the middle."""
    wide = along(1, np.asarray(image), size[1], prep.interpolation)
    scaled = along(0, wide, size[0], prep.interpolation)
    top, left = (round((side - prep.crop) / 2) for side in size)
    middle = scaled[top : top + prep.crop, left : left + prep.crop]
    return torch.from_numpy(middle.astype(np.uint8)).permute(2, 0, 1)


# --- tests


@pytest.mark.parametrize("mode", SUPPORT)
@pytest.mark.parametrize("size", [(8, 8), (31, 90), (90, 31), (24, 24), (62, 58)], ids=str)
def test_the_pixels_are_those_of_the_formula(mode, size):
    squash = dataclasses.replace(PREP, interpolation=mode)
    image = noise(*size)
    assert torch.equal(pipeline(squash)(image), expected(image, squash, (24, 24)))
    shortest = dataclasses.replace(squash, resize=29, resize_rule="shortest")
    width, height = size
    scaled = (
        max(29, math.floor(29 * height / width)),
        max(29, math.floor(29 * width / height)),
    )
    assert torch.equal(pipeline(shortest)(image), expected(image, shortest, scaled))
    pad = dataclasses.replace(squash, resize_rule="pad")
    square = Image.new("RGB", (max(size), max(size)), (128, 128, 128))
    square.paste(image)
    assert torch.equal(pipeline(pad)(image), expected(square, pad, (24, 24)))


def test_what_has_its_size_is_not_touched():
    image = noise(24, 24)
    assert np.array_equal(pipeline(PREP)(image).permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("height", [1, STRIP - 1, STRIP, STRIP + 1, 2 * STRIP])
def test_a_picture_is_taken_strip_by_strip(height):
    image = noise(3, height)
    found = levels(image)
    assert found.shape == (1, 3, height, 3) and found.stride()[1:] == (1, 9, 3)
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), np.asarray(image))


def test_threads_change_nothing():
    image, before = noise(300, 200), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(pipeline(PREP)(image))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
