"""What IMAGES=… names. Knows no torch: a typing error is answered before any model is loaded."""

import os
import re
from pathlib import Path

from base.errors import CoviewError, nearest
from cache_specs.sources import dataset_name, is_gone, read_source
from cache_specs.versions import dataset_folders
from extract.data.datasets import Dataset, open_dataset
from extract.data.formats import EXTENSIONS
from extract.data.naming import is_nameless, text
from extract.data.readers import ReadFiles


def find_images(images: str, root: Path, cache: Path) -> Dataset:
    """The images that IMAGES names: whatever DATA may be for extract, or a single image file.
    Raises CoviewError, as open_dataset does, with what is nearly called so, or is called so in the
    cache."""
    path = Path(images).expanduser()
    if path.is_file() and (path.name.lower().endswith(EXTENSIONS) or is_nameless(path)):
        name, key, read = dataset_name(images), text(path.name), ReadFiles([str(path)])
        return Dataset(name, "folder", [key], [""], [""], read)
    try:
        return open_dataset(os.path.expanduser(images), root)
    except CoviewError as error:
        told = re.sub(r"(?<![\w/.-])DATA(?==| may )", "IMAGES", str(error))
        told = told.replace("IMAGES may be ", "IMAGES may be a single image, ")
        words = {}
        for name, value in error.instead.items():
            words["IMAGES" if name == "DATA" else name] = value
        if not words and is_gone(images):
            words = _meant(images, cache)
        raise type(error)(told, words) from None


def _meant(images: str, cache: Path) -> dict[str, str | None]:
    """The change to IMAGES, of which nothing is there: where the images of a data set are that the
    cache calls so, or a path that is nearly the same."""
    for folder in dataset_folders(cache, images.rstrip("/")):
        source = read_source(folder)
        if source and not is_gone(source):
            return {"IMAGES": source}
    path = Path(images).expanduser()
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if not (found / part).exists():
            part = nearest(part, [inner.name for inner in _inside(found)])
        if not part:
            return {}
        found /= part
    return {"IMAGES": f"{found}/" if found.is_dir() else str(found)}


def _inside(folder: Path) -> list[Path]:
    try:
        return [inner for inner in folder.iterdir() if not inner.name.startswith(".")]
    except OSError:
        return []
