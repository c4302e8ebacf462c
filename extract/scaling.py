"""A picture -> the pixels that a model takes: squared or not, scaled, its middle cut out.

From version 3 of the pixels on by torch's antialiased filters on 8-bit tensors, whose weights are
integers: the same on every processor, and several times as fast as Pillow's, from which of
photographs 1 value in 400 differs, by 1 or 2 levels (by up to 14 where an upright picture of noise
or stripes is squashed: Pillow scales its height first). Before, by Pillow's (torchvision's
transforms).
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from base import native
from cache_specs.spec import Preprocess
from extract.pixels import STRIP, Pixels, as_image

LARGE = 2**25  # pixels
GREY = 128  # of OWLv2's squares, whose grey is 127.5
BY_TORCH = 3  # the first version of the pixels that torch scales
Pipeline = Callable[[Pixels], torch.Tensor]


@functools.cache
def pipeline(prep: Preprocess) -> Pipeline:
    """RGB picture -> (3, crop, crop) uint8."""
    if prep.pixels < BY_TORCH:
        transforms = _by_pillow(prep)
        return lambda pixels: transforms(as_image(pixels))
    return lambda pixels: scaled(levels(pixels), prep)


def scaled_size(height: int, width: int, prep: Preprocess) -> tuple[int, int]:
    """Height and width of the picture once it is scaled."""
    if prep.resize_rule != "shortest":
        return prep.resize, prep.resize
    short, long = sorted((height, width))
    other = int(prep.resize * long / short)
    return (prep.resize, other) if height == short else (other, prep.resize)


def scaled(picture_1CHW: torch.Tensor, prep: Preprocess) -> torch.Tensor:
    """(1, 3, H, W) uint8 -> (3, crop, crop)."""
    if prep.resize_rule == "pad":
        picture_1CHW = _squared(picture_1CHW)
    height, width = picture_1CHW.shape[2:]
    size = scaled_size(height, width, prep)
    if size != (height, width):
        how = {"mode": prep.interpolation, "antialias": prep.antialias}
        picture_1CHW = interpolate(picture_1CHW, size=size, **how)
    top, left = (round((side - prep.crop) / 2) for side in size)
    return picture_1CHW[0, :, top : top + prep.crop, left : left + prep.crop]


def levels(pixels: Pixels) -> torch.Tensor:
    """(1, 3, H, W) uint8, a pixel's three levels side by side in memory, as torch scales them
    fastest."""
    levels_HWC = pixels if isinstance(pixels, np.ndarray) else _levels_of(pixels)
    return torch.from_numpy(levels_HWC)[None].permute(0, 3, 1, 2)


def _levels_of(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8. Strip by strip: of a whole image Pillow makes two copies."""
    width, height = image.size
    if width * height > LARGE:
        native.give_back()  # what decoding took
    levels_HWC = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, STRIP):
        end = min(top + STRIP, height)
        levels_HWC[top:end] = np.asarray(image.crop((0, top, width, end)))
    return levels_HWC


def _squared(picture_1CHW: torch.Tensor) -> torch.Tensor:
    """With grey below or on the right."""
    height, width = picture_1CHW.shape[2:]
    side = max(height, width)
    square_1HWC = torch.full((1, side, side, 3), GREY, dtype=torch.uint8)
    square_1HWC[:, :height, :width] = picture_1CHW.permute(0, 2, 3, 1)
    return square_1HWC.permute(0, 3, 1, 2)


# --- versions 1 and 2 of the pixels


def _by_pillow(prep: Preprocess) -> Callable[[Image.Image], torch.Tensor]:
    """Without antialias the scaling is done on the tensor: Pillow's always antialiases."""
    from torchvision.transforms import v2  # noqa: PLC0415  3 s, for what is rarely needed

    size = prep.resize if prep.resize_rule == "shortest" else [prep.resize, prep.resize]
    how = v2.InterpolationMode(prep.interpolation)
    resize = v2.Resize(size, interpolation=how, antialias=prep.antialias)
    steps: list[Any] = [v2.PILToTensor(), resize]
    if prep.antialias:
        steps.reverse()
    if prep.resize_rule == "pad":
        steps.insert(0, v2.Lambda(_squared_by_pillow))
    return v2.Compose([*steps, v2.CenterCrop(prep.crop)])


def _squared_by_pillow(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), (GREY, GREY, GREY))
    square.paste(image)
    return square
