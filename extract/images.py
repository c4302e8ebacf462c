"""Encoded bytes -> the pixels a model was trained to see, or a status that says why not.

Pixels stay uint8 until they are on the device.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

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
PROFILE, FIRST = 1, 2  # remarks, added up
OK, UNDECODABLE, TRUNCATED, MISSING, NON_FINITE, TOO_LARGE = range(len(STATUS))


def decode(data: bytes, prep: Preprocess) -> tuple[torch.Tensor | None, int]:
    """(3, crop, crop) uint8 and OK, or None and the status."""
    try:
        return pipeline(prep)(picture(data, prep).pixels), OK
    except NotReadError as error:
        return None, STATUS.index(error.status)


def picture(data: bytes, prep: Preprocess) -> Picture:
    """The picture in a file, by the version of the pixels that the spec names, if it can be scaled.
    Raises NotReadError."""
    return _scalable(_attempt(data, *read_by(prep)), prep)


def read_by(prep: Preprocess) -> tuple[bool, Rules, int]:
    """What the picture depends on before it is scaled: is it read as in version 1; the rules; the
    side down to which a JPEG file may be decoded smaller, 0: not at all."""
    rules = Rules(prep.background, prep.bits, prep.max_pixels)
    return prep.pixels == 1, rules, 2 * prep.resize * (prep.decoder == "scaled")


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
    uint8, (B,) uint8 status, (B,) uint8: what is to be said of the image, see `Remarks`).

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
        found = empty(self.batch, self.prep)
        for place, row in enumerate(self.rows[index]):
            put(found, place, self.prep, *self._one(row))
        return found

    def _one(self, row: int) -> tuple[Picture | None, int]:
        """The picture of a row, or None, and its status."""
        data, status = contents(self.read, row, self.sha256[row])
        return pictures_of(data, [self.prep])[0] if status == OK else (None, status)


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def empty(batch: int, prep: Preprocess) -> Batch:
    """A batch of black images, all OK."""
    return (
        torch.zeros(batch, 3, prep.crop, prep.crop, dtype=torch.uint8),
        torch.zeros(batch, dtype=torch.uint8),
        torch.zeros(batch, dtype=torch.uint8),
    )


def put(batch: Batch, place: int, prep: Preprocess, found: Picture | None, status: int) -> None:
    """A picture, or why there is none, where it belongs in a batch."""
    pixels_BCHW, status_B, remarks_B = batch
    status_B[place] = status
    if found is not None:
        pixels_BCHW[place] = pipeline(prep)(found.pixels)
        remarks_B[place] = PROFILE * bool(found.ignored) + FIRST * found.several


def contents(read: Callable[[int], bytes], row: int, sha256: str) -> tuple[bytes, int]:
    """The bytes of a row's file and OK, or b"" and the status, where it is not what was listed."""
    try:
        data = read(row)
    except FileTooLargeError:
        return b"", TOO_LARGE
    except OSError:
        return b"", MISSING
    if hashlib.sha256(data).hexdigest() != sha256:
        return b"", MISSING
    return data, OK


def pictures_of(data: bytes, preps: Sequence[Preprocess]) -> list[tuple[Picture | None, int]]:
    """For each of them the picture in a file and OK, or None and the status; decoded once for all
    that read it in the same way."""
    read: dict[tuple[bool, Rules, int], Picture | NotReadError] = {}
    found: list[tuple[Picture | None, int]] = []
    for prep in preps:
        how = read_by(prep)
        if how not in read:
            read[how] = _attempt(data, *how)
        try:
            found.append((_scalable(read[how], prep), OK))
        except NotReadError as error:
            found.append((None, STATUS.index(error.status)))
    return found


def _attempt(data: bytes, first: bool, rules: Rules, draft: int) -> Picture | NotReadError:
    try:
        return pixels.first(data, rules) if first else pixels.picture(data, rules, draft=draft)
    except NotReadError as error:
        return error


def _scalable(found: Picture | NotReadError, prep: Preprocess) -> Picture:
    if isinstance(found, NotReadError):
        raise found
    _refuse_unscalable(*found.size, prep)
    return found


@dataclass
class Remarks:
    """Counts what is to be said of images, while their batches pass by: those whose colour profile
    was left aside (PROFILE), and files of which only the first page or frame is read (FIRST).
    first: the first row of each."""

    counts: Counter[int] = field(default_factory=Counter)
    first: dict[int, int] = field(default_factory=dict)

    def watch(self, arrived: Iterable, rows: Iterable[Sequence[int]]) -> Iterator:
        """The batches that arrive, which are of these rows; None is handed on."""
        parts = iter(rows)
        for batch in arrived:
            if batch is not None:
                self._count(batch[2], next(parts))
            yield batch

    def _count(self, remarks_B: torch.Tensor, rows: Sequence[int]) -> None:
        for remark in (PROFILE, FIRST):
            places = torch.nonzero(remarks_B & remark).flatten().tolist()
            if places:
                self.first.setdefault(remark, rows[places[0]])
                self.counts[remark] += len(places)

    def say(self, name: str, keys: Sequence[str], read: Callable[[int], bytes]) -> None:
        """name: the view."""
        if count := self.counts[PROFILE]:
            row = self.first[PROFILE]
            try:
                why = pixels.picture(read(row)).ignored
            except (OSError, NotReadError, MemoryError):  # gone meanwhile
                why = pixels.UNUSABLE
            log.warning(
                f"{name}: the colours of {counted(count, 'image')} are taken for sRGB's, first "
                f"{keys[row]!r}: {why}"
            )
        if count := self.counts[FIRST]:
            log.warning(
                f"{name}: of {counted(count, 'file')} with several pages or frames only the first "
                f"of these is read (first file: {keys[self.first[FIRST]]!r}). To use the others, "
                "write each to a file of its own"
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
