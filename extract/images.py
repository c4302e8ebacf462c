"""Encoded bytes -> the pixels a model was trained to see, or a status that says why not.

The pipeline is torchvision's v2 transforms, built from the five values of the spec; pixels stay
uint8 until they are on the device.
"""

import functools
import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from cache_specs.spec import Preprocess
from cache_specs.view import STATUS
from extract.data.readers import FileTooLargeError
from extract.pixels import FORMATS, MAX_PIXELS, rgb

MAX_RESIZED = 2**25  # of the scaled image: a 1 x 20,000 strip would become 224 x 4,480,000
OK, UNDECODABLE, TRUNCATED, MISSING, NON_FINITE, TOO_LARGE = range(len(STATUS))


def decode(data: bytes, prep: Preprocess) -> tuple[torch.Tensor | None, int]:
    """(3, crop, crop) uint8 and OK, or None and the status."""
    try:
        with warnings.catch_warnings():  # of odd palettes and EXIF, for each of a million images
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if _too_large(width, height, prep):
                return None, TOO_LARGE
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            pixels = rgb(image)
    except Exception as error:  # Pillow raises nearly anything on a hostile file
        return None, TRUNCATED if "truncated" in str(error).lower() else UNDECODABLE
    return pipeline(prep)(pixels), OK


def _too_large(width: int, height: int, prep: Preprocess) -> bool:
    """Would the file, squared where it is padded, or the scaled image have too many pixels?"""
    size, resized = width * height, prep.resize**2
    if prep.resize_rule == "shortest":
        scale = prep.resize / max(1, min(width, height))
        resized = size * scale**2
    if prep.resize_rule == "pad":
        size = max(width, height) ** 2
    return size > MAX_PIXELS or resized > MAX_RESIZED


@functools.cache
def pipeline(prep: Preprocess) -> Callable[[Image.Image], torch.Tensor]:
    """PIL image -> (3, crop, crop) uint8. Without antialias the scaling is done on the tensor:
    Pillow's always antialiases."""
    size = prep.resize if prep.resize_rule == "shortest" else [prep.resize, prep.resize]
    how = v2.InterpolationMode(prep.interpolation)
    resize = v2.Resize(size, interpolation=how, antialias=prep.antialias)
    steps: list[Callable] = [v2.PILToTensor(), resize]
    if prep.antialias:
        steps.reverse()
    if prep.resize_rule == "pad":
        steps.insert(0, v2.Lambda(pad))
    return v2.Compose([*steps, v2.CenterCrop(prep.crop)])


def pad(image: Image.Image) -> Image.Image:
    """Square, with grey below or on the right (OWLv2's, whose grey is 127.5)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (128, 128, 128))
    square.paste(image)
    return square


@dataclass(frozen=True)
class Batches(TorchDataset):
    """Map-style data set of whole batches: element i decodes the rows `rows[i]` into ((B, 3, S, S)
    uint8, (B,) uint8 status).

    A batch shorter than B is padded with black images, so that every batch has one shape. The
    content hash of each file is compared with the item list: a file that changed since it was
    listed is `missing`, never embedded under an old name.
    """

    read: Callable[[int], bytes]
    sha256: Sequence[str]
    prep: Preprocess
    rows: Sequence[Sequence[int]]
    batch: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels_BCHW = torch.zeros(self.batch, 3, self.prep.crop, self.prep.crop, dtype=torch.uint8)
        status_B = torch.zeros(self.batch, dtype=torch.uint8)
        for place, row in enumerate(self.rows[index]):
            pixels, status_B[place] = self._one(row)
            if pixels is not None:
                pixels_BCHW[place] = pixels
        return pixels_BCHW, status_B

    def _one(self, row: int) -> tuple[torch.Tensor | None, int]:
        """The pixels of a row, or None, and its status."""
        try:
            data = self.read(row)
        except FileTooLargeError:
            return None, TOO_LARGE
        except OSError:
            return None, MISSING
        if hashlib.sha256(data).hexdigest() != self.sha256[row]:
            return None, MISSING
        return decode(data, self.prep)
