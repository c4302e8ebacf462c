"""Encoded bytes -> the pixels a model was trained to see, or a status that says why not.

Pixels stay uint8 until they are on the device.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset as TorchDataset

from base.console import counted
from cache_specs.spec import Preprocess
from cache_specs.view import STATUS
from extract import pixels
from extract.data.readers import FileTooLargeError
from extract.pixels import NotReadError, Picture, Rules
from extract.scaling import pipeline

log = logging.getLogger(f"coview.{__name__}")
MAX_RESIZED = 2**25  # of the scaled image: a 1 x 20,000 strip would become 224 x 4,480,000
OK, UNDECODABLE, TRUNCATED, MISSING, NON_FINITE, TOO_LARGE = range(len(STATUS))


def decode(data: bytes, prep: Preprocess) -> tuple[torch.Tensor | None, int]:
    """(3, crop, crop) uint8 and OK, or None and the status."""
    try:
        return pipeline(prep)(picture(data, prep).image), OK
    except NotReadError as error:
        return None, STATUS.index(error.status)


def picture(data: bytes, prep: Preprocess) -> Picture:
    """The picture in a file, by the version of the pixels that the spec names, if it can be scaled.
    Raises NotReadError."""
    rules = Rules(prep.background, prep.bits, prep.max_pixels)
    if prep.pixels == 1:
        found = pixels.first(data, rules)
    else:
        found = pixels.picture(data, rules, draft=2 * prep.resize * (prep.decoder == "scaled"))
    _refuse_unscalable(*found.image.size, prep)
    return found


def _refuse_unscalable(width: int, height: int, prep: Preprocess) -> None:
    """Raise NotReadError where the picture, squared where it is padded, or scaled, would have too
    many pixels."""
    size, resized = width * height, float(prep.resize**2)
    if prep.resize_rule == "shortest":
        resized = size * (prep.resize / max(1, min(width, height))) ** 2
    if prep.resize_rule == "pad":
        size = max(width, height) ** 2
    if size > prep.max_pixels or resized > MAX_RESIZED:
        raise NotReadError(
            "too large",
            f"{width:,} x {height:,} pixels, so narrow that it would have "
            f"{max(size, resized):,.0f} when it is scaled ({prep.resize_rule})",
        )


@dataclass(frozen=True)
class Batches(TorchDataset):
    """Map-style data set of whole batches: element i decodes the rows `rows[i]` into ((B, 3, S, S)
    uint8, (B,) uint8 status, (B,) bool: was a colour profile left aside?).

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

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pixels_BCHW = torch.zeros(self.batch, 3, self.prep.crop, self.prep.crop, dtype=torch.uint8)
        status_B = torch.zeros(self.batch, dtype=torch.uint8)
        ignored_B = torch.zeros(self.batch, dtype=torch.bool)
        for place, row in enumerate(self.rows[index]):
            found, status_B[place] = self._one(row)
            if found is not None:
                pixels_BCHW[place] = pipeline(self.prep)(found.image)
                ignored_B[place] = bool(found.ignored)
        return pixels_BCHW, status_B, ignored_B

    def _one(self, row: int) -> tuple[Picture | None, int]:
        """The picture of a row, or None, and its status."""
        try:
            data = self.read(row)
        except FileTooLargeError:
            return None, TOO_LARGE
        except OSError:
            return None, MISSING
        if hashlib.sha256(data).hexdigest() != self.sha256[row]:
            return None, MISSING
        try:
            return picture(data, self.prep), OK
        except NotReadError as error:
            return None, STATUS.index(error.status)


@dataclass
class Profiles:
    """Counts the images whose colour profile was left aside, while their batches pass by; row: the
    first of them."""

    count: int = 0
    row: int = -1

    def watch(self, loader: Iterable, rows: Sequence[Sequence[int]]) -> Iterator:
        """The batches of `loader`, which are of these rows."""
        for batch, part in zip(loader, rows, strict=True):
            places = torch.nonzero(batch[2]).flatten().tolist()
            if places and not self.count:
                self.row = part[places[0]]
            self.count += len(places)
            yield batch

    def say(self, name: str, keys: Sequence[str], read: Callable[[int], bytes]) -> None:
        """name: the view."""
        if not self.count:
            return
        try:
            why = pixels.picture(read(self.row)).ignored
        except (OSError, NotReadError, MemoryError):  # gone meanwhile
            why = pixels.UNUSABLE
        log.warning(
            f"{name}: the colours of {counted(self.count, 'image')} are taken for sRGB's, first "
            f"{keys[self.row]!r}: {why}"
        )


def how_alike(one: bytes, other: bytes, prep: Preprocess) -> str:
    """What two files whose embeddings are equal have in common."""
    try:
        a, b = picture(one, prep).image, picture(other, prep).image
    except (NotReadError, MemoryError):
        return "They could not be read again"
    if a.size == b.size and a.tobytes() == b.tobytes():
        return "These two hold the same picture, saved twice"
    if torch.equal(pipeline(prep)(a), pipeline(prep)(b)):
        return (
            f"The pictures of these two differ, but not once they are scaled to {prep.crop} x "
            f"{prep.crop} pixels"
        )
    return f"These two differ in {prep.crop} x {prep.crop} pixels too: the model sees no difference"


def why_not(read: Callable[[int], bytes], prep: Preprocess, row: int) -> str:
    """Why the image of a row cannot be embedded, by decoding it again; '' where it is not known."""
    try:
        picture(read(row), prep)
    except (NotReadError, FileTooLargeError) as error:
        return str(error)
    except (OSError, MemoryError):
        pass
    return ""
