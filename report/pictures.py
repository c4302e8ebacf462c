"""Thumbnails of a data set's images, read from where they were embedded: only the rows that a page
shows.

    pictures = Pictures(dataset_folder, items, root=Path("data"))
    pictures(rows)      -> {row: Picture}
    pictures.why        '' or why there are none
"""

import base64
import contextlib
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, SupportsInt

from base.errors import CoviewError
from cache_specs.items import IMPORTED, Items, read_items
from cache_specs.sources import read_source
from cache_specs.versions import current, dataset_folders
from extract.pixels import thumbnail
from report.html.page import Card

if TYPE_CHECKING:
    from extract.data.datasets import Dataset

SIDE = 96  # pixels
Reader = Callable[[int], bytes]


@dataclass(frozen=True)
class Picture:
    """An image as a data: URI of WebP, and its size in pixels."""

    uri: str
    width: int
    height: int


def card_of(
    key: str,
    picture: Picture | None,
    lines: Sequence[object],
    values: tuple[tuple[str, object], ...] = (),
) -> Card:
    """An image in a gallery, with its picture if there is one."""
    if picture is None:
        return Card(key, lines=lines, values=values)
    return Card(key, picture.uri, picture.width, picture.height, lines, values)


class Pictures:
    """Opens the data set that `folder` (cache/NAME-xxxxxxxx) was made of.

    Where it is gone, or other images are there now, `why` says so, and there are no pictures; a
    single image that cannot be read, or whose bytes are not those that were embedded, has none.
    root: where torchvision's data sets lie.
    """

    def __init__(
        self, folder: Path, items: Items, root: Path = Path("data"), side: int = SIDE
    ) -> None:
        self.items = items
        self.side = side
        self.why = ""
        self.read: Reader | None = None  # None: there are no images to read
        self.place: dict[str, int] = {}
        self.moved: dict[str, str] = {}
        source = read_source(folder)
        if items.adapter == IMPORTED or not source:
            self.why = "The embeddings were imported from a file, so there are no images to show."
            return
        try:
            dataset = open_quietly(source, root, items.as_class)
        except (CoviewError, OSError, ValueError) as error:
            told = str(error).splitlines()[0][:300]
            self.why = (
                f"The images are not where they were ({told}). With them in place again, make the "
                "page anew."
            )
            return
        self.read = dataset.read
        self.place = {key: place for place, key in enumerate(dataset.keys)}
        self.moved = _moved(folder)

    def __call__(self, rows: Iterable[SupportsInt]) -> dict[int, Picture]:
        """Those of these rows that can be read; each row once."""
        if self.read is None:
            return {}
        asked = list(dict.fromkeys(int(row) for row in rows))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(pool.map(partial(self._picture, self.read), asked))
        return {row: picture for row, picture in zip(asked, found, strict=True) if picture}

    def _picture(self, read: Reader, row: int) -> Picture | None:
        sha256 = self.items.sha256[row]
        for key in (self.items.keys[row], self.moved.get(sha256, "")):
            try:
                encoded = read(self.place[key])
            except (OSError, KeyError):
                continue
            if hashlib.sha256(encoded).hexdigest() == sha256:
                return _small(encoded, self.side)
        return None


def open_quietly(source: str, root: Path, as_class: Sequence[str]) -> "Dataset":
    """The images of a data set as they are now. What is to be said of them was said when they were
    embedded, and is not said again. Raises as open_dataset does."""
    if source.startswith("hf:"):
        os.environ["HF_HUB_OFFLINE"] = "1"  # a page is made of what is here
    # Only now: huggingface_hub looks at that word when it is imported.
    from extract.data.datasets import open_dataset  # noqa: PLC0415  see above

    log = logging.getLogger("coview.extract")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return open_dataset(source, root, as_class=as_class)
    finally:
        log.setLevel(level)


def _moved(folder: Path) -> dict[str, str]:
    """Images may have been moved since: the list of the newest version, where this is none, knows
    where to. sha256 -> key."""
    newest = current(dataset_folders(folder.parent, folder.name.rpartition("-")[0]))
    if newest is None or newest == folder:
        return {}
    try:
        now = read_items(newest)
    except CoviewError:
        return {}
    return dict(zip(now.sha256, now.keys, strict=True))


def _small(encoded: bytes, side: int) -> Picture | None:
    found = thumbnail(encoded, side)
    if found is None:
        return None
    webp, width, height = found
    return Picture(f"data:image/webp;base64,{base64.b64encode(webp).decode()}", width, height)
