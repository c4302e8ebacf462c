"""What IMAGES=… names. Knows no torch: a typing error is answered before any model is loaded."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from base.errors import CoviewError

if TYPE_CHECKING:
    from extract.data.datasets import Dataset


def open_images(images: str, root: Path) -> "Dataset":
    """The images that IMAGES names: whatever DATA may be for extract, or a single image file. Raises CoviewError, as open_dataset does."""
    from cache_specs.sources import dataset_name
    from extract.data.datasets import Dataset, open_dataset
    from extract.data.naming import EXTENSIONS, text
    from extract.data.readers import ReadFiles

    path = Path(images).expanduser()
    if path.name.lower().endswith(EXTENSIONS) and path.is_file():
        return Dataset(
            dataset_name(images), "folder", [text(path.name)], [""], [""], ReadFiles([str(path)])
        )
    try:
        return open_dataset(os.path.expanduser(images), root)
    except CoviewError as error:
        words = {
            "IMAGES" if name == "DATA" else name: value for name, value in error.instead.items()
        }
        said = re.sub(r"(?<![\w/.-])DATA(?==| may )", "IMAGES", str(error)).replace(
            "IMAGES may be ", "IMAGES may be a single image, "
        )
        raise type(error)(said, words) from None
