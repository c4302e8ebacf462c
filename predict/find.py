"""What IMAGES=… names. Knows no torch: a typing error is answered before any model is loaded."""

import os
import re
from pathlib import Path

from base.errors import CoviewError
from cache_specs.sources import dataset_name
from extract.data.datasets import Dataset, open_dataset
from extract.data.formats import EXTENSIONS
from extract.data.naming import is_nameless, text
from extract.data.readers import ReadFiles


def find_images(images: str, root: Path) -> Dataset:
    """The images that IMAGES names: whatever DATA may be for extract, or a single image file.
    Raises CoviewError, as open_dataset does."""
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
        raise type(error)(told, words) from None
