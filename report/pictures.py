"""Thumbnails of a data set's images, read from where they were embedded: only the rows that a page shows.

pictures = Pictures(dataset_folder, items, root=Path("data"))       pictures(rows) -> {row: Picture}        pictures.why: '' or why there are none
"""

import base64
import contextlib
import hashlib
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from base.errors import CoviewError
from cache_specs.items import IMPORTED, Items, read_items
from cache_specs.sources import read_source
from cache_specs.versions import current, dataset_folders

SIDE = 96  # pixels


@dataclass(frozen=True)
class Picture:
    """An image as a data: URI of WebP, and its size in pixels."""

    uri: str
    width: int
    height: int


class Pictures:
    """Opens the data set that `folder` (cache/NAME-xxxxxxxx) was made of. Where it is gone, or other images are there now, `why` says so, and there are no
    pictures; a single image that cannot be read, or whose bytes are not those that were embedded, has none. root: where torchvision's data sets lie."""

    def __init__(
        self, folder: Path, items: Items, root: Path = Path("data"), side: int = SIDE
    ) -> None:
        self.items, self.side, self.read, self.place, self.moved, self.why = (
            items,
            side,
            None,
            {},
            {},
            "",
        )
        source = read_source(folder)
        if items.adapter == IMPORTED or not source:
            self.why = "The embeddings were imported from a file, so there are no images to show."
            return
        if source.startswith("hf:"):
            os.environ["HF_HUB_OFFLINE"] = "1"  # a page is made of what is here
        from extract.data.datasets import open_dataset

        try:
            with contextlib.redirect_stdout(
                io.StringIO()
            ):  # what is left out was said when it was embedded
                dataset = open_dataset(source, root)
        except (CoviewError, OSError, ValueError) as error:
            self.why = f"The images are not where they were ({str(error).splitlines()[0][:300]}). With them in place again, make the page anew."
            return
        self.read = dataset.read
        self.place = {key: place for place, key in enumerate(dataset.keys)}
        newest = current(dataset_folders(folder.parent, folder.name.rpartition("-")[0]))
        if newest not in (
            folder,
            None,
        ):  # images may have been moved since: the newer list knows where to
            with contextlib.suppress(CoviewError):
                now = read_items(newest)
                self.moved = dict(zip(now.sha256, now.keys, strict=True))

    def __call__(self, rows: Iterable[int]) -> dict[int, Picture]:
        """Those of these rows that can be read; each row once."""
        from extract.pixels import thumbnail

        def one(row: int) -> Picture | None:
            for key in (self.items.keys[row], self.moved.get(self.items.sha256[row], "")):
                try:
                    encoded = self.read(self.place[key])
                except (OSError, KeyError):
                    continue
                if hashlib.sha256(encoded).hexdigest() == self.items.sha256[row]:
                    found = thumbnail(encoded, self.side)
                    return found and Picture(
                        f"data:image/webp;base64,{base64.b64encode(found[0]).decode()}", *found[1:]
                    )
            return None

        rows = list(dict.fromkeys(int(row) for row in rows)) if self.read else []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return {
                row: picture
                for row, picture in zip(rows, pool.map(one, rows), strict=True)
                if picture
            }
