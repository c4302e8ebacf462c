"""torchvision's classification data sets by the names of their classes, already downloaded below
ROOT.

    DATA=torchvision:Food101                  all of its official splits; keys are the images'
                                              paths below ROOT
    DATA=torchvision:INaturalist@2021_train   a data set with versions: the one after @
    DATA=torchvision:ImageNet                 ROOT/train and ROOT/val; labels are the WordNet ids

SETS says which constructor arguments give which split. It is written out, since torchvision's names
differ, and since some of its splits are the union of others (trainval, train+unlabeled), which
would list images twice. CIFAR is stored as pickles: torchvision unpickles them only when their MD5
is the published one. No other pickle is opened, but what an old torchvision left of MNIST as .pt,
and that as plain tensors only.
"""

import inspect
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets as sets
from torchvision.datasets.imagenet import ARCHIVE_META

from base.errors import UsageError, did_you_mean
from extract.data.hdf5 import ReadHdf5, read_arrays
from extract.data.naming import find_images, split_of, text
from extract.data.readers import Listing, Reader, ReadFiles, ReadTorchvision

log = logging.getLogger(f"coview.{__name__}")

Parts = list[tuple[str, dict[str, Any]]]  # our name of a split, and the constructor's arguments
Versions = dict[str, Parts]  # by what stands after @; '': where nothing does


def _by_split(*names: str, **more: Any) -> Parts:
    return [(split_of(name), {"split": name, **more}) for name in names]


def _varied(argument: str, values: Iterable[Any], *names: str) -> Versions:
    """A version for each value of a constructor's argument. names: of its splits, if it has any."""
    found = {}
    for value in values:
        given = {argument: value}
        found[str(value)] = _by_split(*names, **given) if names else [("", given)]
    return found


def _emnist(name: str) -> Parts:
    return [(split, {"split": name, **flag}) for split, flag in BY_FLAG]


def _places(train: str, small: bool) -> Parts:
    return [("train", {"split": train, "small": small}), ("val", {"split": "val", "small": small})]


WHOLE: Parts = [("", {})]
BY_FLAG: Parts = [("train", {"train": True}), ("test", {"train": False})]
TWO, THREE = _by_split("train", "test"), _by_split("train", "val", "test")
INATURALIST_VAL: Parts = [("val", {"version": "2021_valid"})]
SETS: dict[str, Versions] = {
    "CIFAR10": {"": BY_FLAG},
    "CIFAR100": {"": BY_FLAG},
    "CLEVRClassification": {"": THREE},
    "Caltech101": {"": WHOLE},
    "Caltech256": {"": WHOLE},
    "Country211": {"": _by_split("train", "valid", "test")},
    "DTD": {"": THREE, **_varied("partition", range(1, 11), "train", "val", "test")},
    "EMNIST": {
        "balanced": _emnist("balanced"),
        "byclass": _emnist("byclass"),
        "bymerge": _emnist("bymerge"),
        "digits": _emnist("digits"),
        "letters": _emnist("letters"),
        "mnist": _emnist("mnist"),
    },
    "EuroSAT": {"": WHOLE},
    "FER2013": {"": TWO},
    "FGVCAircraft": {
        "": THREE,
        **_varied("annotation_level", ("family", "manufacturer"), "train", "val", "test"),
    },
    "FashionMNIST": {"": BY_FLAG},
    "Flowers102": {"": THREE},
    "Food101": {"": TWO},
    "GTSRB": {"": TWO},
    "INaturalist": {
        "2021_train": [("train", {"version": "2021_train"}), *INATURALIST_VAL],
        "2021_train_mini": [("train", {"version": "2021_train_mini"}), *INATURALIST_VAL],
        **_varied("version", ("2017", "2018", "2019", "2021_valid")),
    },
    "ImageNet": {"": []},  # see _imagenet
    "Imagenette": {
        "": _by_split("train", "val"),
        **_varied("size", ("320px", "160px"), "train", "val"),
    },
    "KMNIST": {"": BY_FLAG},
    "MNIST": {"": BY_FLAG},
    "OxfordIIITPet": {"": [("train", {"split": "trainval"}), ("test", {"split": "test"})]},
    "PCAM": {"": THREE},
    "Places365": {
        "": _places("train-standard", small=False),
        "256": _places("train-standard", small=True),
        "challenge": _places("train-challenge", small=False),
    },
    "QMNIST": {"": BY_FLAG},
    "RenderedSST2": {"": THREE},
    "SEMEION": {"": [("", {"download": False})]},
    "STL10": {"": _by_split("train", "test", "unlabeled")},
    "SUN397": {"": WHOLE},
    "SVHN": {"": TWO, "extra": [*TWO, ("train", {"split": "extra"})]},
    "StanfordCars": {"": TWO},
    "USPS": {"": BY_FLAG},
}
NOT_TAKEN = {
    "SVHN": "its extra training images are not taken; with them: DATA=torchvision:SVHN@extra",
    "Places365": "its test images are not taken, their labels were never published",
}
BY_HAND = {
    "StanfordCars": "stanford_cars/ with cars_train/, cars_test/, devkit/ and "
    "cars_test_annos_withlabels.mat (its page, "
    "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, is gone)",
    "FER2013": "fer2013/ with fer2013.csv, or icml_face_data.csv, or train.csv and test.csv",
}
URLS = (  # what torchvision calls the constants that hold the addresses of a data set
    "url",
    "dataset_url",
    "resources",
    "split_list",
    "archives",
    "download_url_prefix",
    "base_url",
)
PYTHON = '.venv/bin/python -c "import torchvision.datasets as d;'


def of_torchvision(data: str, root: Path) -> Listing:
    name, version = _named(data)
    if name == "ImageNet":
        return _imagenet(root)
    if name in NOT_TAKEN and version != "extra":
        log.info(f"{name}: {NOT_TAKEN[name]}")
    parts, splits, labels, keys, files = [], [], [], [], []
    for split, arguments in SETS[name][version]:
        images = _open(name, root, arguments)
        mine, paths = _lists(name, root, images)
        parts.append(images)
        labels += mine
        splits += [split] * len(mine)
        files += paths
        if paths:
            keys += [_key(path, root, name) for path in paths]
        else:
            folder = _official(split, arguments)
            keys += [f"{folder}/{i:08d}" for i in range(len(mine))]
    if files and len(files) != len(labels):
        raise UsageError(
            f"torchvision's {name} in {root} lists {len(files):,} files and {len(labels):,} "
            "labels; it is damaged or not complete: download it anew"
        )
    return Listing(keys, labels, splits, _reader(name, parts, files))


def _named(data: str) -> tuple[str, str]:
    """torchvision:NAME@VERSION -> (NAME, VERSION). Raises UsageError where there is no such one."""
    name, _, version = data.split(":", 1)[1].partition("@")
    if name not in SETS:
        near = did_you_mean(name, SETS)
        raise UsageError(f"DATA={data}: torchvision has no data set {name!r}{near}")
    if version not in SETS[name]:
        has = f"no version {version!r}" if version else "several versions"
        listed = ", ".join(f"DATA=torchvision:{name}@{known}".rstrip("@") for known in SETS[name])
        raise UsageError(f"DATA={data}: {name} has {has}; type one of: {listed}")
    return name, version


def _open(name: str, root: Path, arguments: dict[str, Any]) -> Any:
    try:
        return getattr(sets, name)(str(root), **arguments)
    except (RuntimeError, OSError) as error:
        raise UsageError(_to_download(name, root, arguments, error)) from error
    # scipy, csv, json, h5py … on files that are not what they are called
    except Exception as error:
        raise UsageError(
            f"torchvision's {name} in {root} cannot be read, a file of it is damaged "
            f"({type(error).__name__}: {error}); download it anew"
        ) from error


def _lists(name: str, root: Path, images: Any) -> tuple[list[str], list[str]]:
    """The labels and the paths, [] where the images are not files."""
    try:
        return _labels(name, images), _files(name, images)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"torchvision's {name} in {root} is damaged or not complete "
            f"({type(error).__name__}: {error}); download it anew"
        ) from error


def _official(split: str, arguments: dict[str, Any]) -> str:
    """The folder of the key of an image that is no file."""
    name = arguments.get("split", "")
    return split or "all" if "train" in arguments or not name else name


def _files(name: str, images: Any) -> list[str]:
    """The path of each image, [] where they are not files."""
    if name == "INaturalist":
        folders = [os.path.join(images.root, category) for category in images.all_categories]
        return [os.path.join(folders[number], file) for number, file in images.index]
    if name in ("Caltech101", "Caltech256"):
        return _files_of_caltech(name, images)
    paths = _first_of(images, ("_image_files", "_images"))
    if paths is None:
        paths = [path for path, *_ in _samples(images)]
        if not paths or not isinstance(paths[0], str | os.PathLike):
            return []
    return [str(path) for path in paths]


def _files_of_caltech(name: str, images: Any) -> list[str]:
    found = []
    for y, i in zip(images.y, images.index, strict=True):
        file = f"{y + 1:03d}_{i:04d}.jpg" if name == "Caltech256" else f"image_{i:04d}.jpg"
        folder = f"{name.removeprefix('Caltech')}_ObjectCategories"
        found.append(os.path.join(images.root, folder, images.categories[y], file))
    return found


def _first_of(images: Any, fields: Sequence[str]) -> Any:
    """The first of these fields that the data set has; None where it has none of them."""
    for field in fields:
        if hasattr(images, field):
            return getattr(images, field)
    return None


def _samples(images: Any) -> Sequence[tuple[Any, Any]]:
    return _first_of(images, ("samples", "_samples", "imgs")) or []


def _labels(name: str, images: Any) -> list[str]:
    """The label's name of each image, from the data set's own lists: no image is decoded."""
    names = _first_of(images, ("wnids", "classes", "categories", "all_categories"))
    found = []
    for number in _numbers(name, images):
        if number is None or int(number) < 0:
            found.append("")
        elif names:
            found.append(_label_name(names[int(number)]))
        else:
            found.append(str(int(number)))
    return found


def _numbers(name: str, images: Any) -> Any:
    """The number of each image's class, as torchvision has it: a list, an array or a tensor."""
    if name == "PCAM":
        path = images._base_folder / images._FILES[images._split]["targets"][0]
        with images.h5py.File(path) as file:
            return file["y"][:].reshape(-1)
    if name == "INaturalist":
        return [number for number, _ in images.index]
    numbers = _first_of(images, ("targets", "_labels", "labels", "y"))
    if numbers is None:
        return [label for _, label in _samples(images)]
    return numbers[:, 0] if getattr(numbers, "ndim", 1) == 2 else numbers


def _label_name(label: Any) -> str:
    return ", ".join(label) if isinstance(label, tuple) else text(str(label))


def _key(path: str, root: Path, name: str) -> str:
    key = os.path.normpath(os.path.relpath(path, root))
    if key.split(os.sep)[0] == "..":
        raise UsageError(
            f"torchvision's {name}: its lists name the image {path!r}, which is outside {root}; no "
            "such file is read. Download it anew"
        )
    return text(Path(key).as_posix())


def _reader(name: str, parts: list[Any], files: list[str]) -> Reader:
    if files:
        return ReadFiles(files)
    where = []
    for part, images in enumerate(parts):
        where += [(part, i) for i in range(len(images))]
    if name != "PCAM":
        return ReadTorchvision(parts, where)
    paths = []
    for images in parts:
        path = str(images._base_folder / images._FILES[images._split]["images"][0])
        read_arrays(path, "x")
        paths.append(path)
    return ReadHdf5(paths, "x", np.array(where, np.int64).reshape(-1, 2))


def _imagenet(root: Path) -> Listing:
    """The folders that torchvision's ImageNet leaves, without its meta.bin: nothing but images is
    opened, and no devkit is needed."""
    calls = [f"d.ImageNet('{root}', split='{split}')" for split in ("train", "val")]
    unpack = f'{PYTHON} {"; ".join(calls)}"'
    archives = " and ".join(", ".join(name for name, _ in ARCHIVE_META.values()).rsplit(", ", 1))
    keys, labels, splits, files = [], [], [], []
    for split in ("train", "val"):
        folder = root / split
        if not folder.is_dir():
            raise UsageError(
                f"torchvision's ImageNet: there is no folder {folder}. Download {archives} from "
                "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php into "
                f"{root}, and unpack them once with:\n  {unpack}\n"
                "If you have the folders train/ and val/ elsewhere: DATA=that-folder/"
            )
        found = sorted(find_images(folder).images)
        loose = [path for path in found if len(path.parts) == 1]
        if loose:
            raise UsageError(
                f"torchvision's ImageNet: {len(loose):,} images lie in {folder} itself, such as "
                f"{loose[0]}, so their labels are not known; they belong into class folders "
                f"({split}/n01440764/…). Remove {folder} and unpack the archives with:\n  {unpack}"
            )
        for path in found:
            keys.append(text(f"{split}/{path.as_posix()}"))
            labels.append(text(path.parts[0]))
            splits.append(split)
            files.append(str(folder / path))
    return Listing(keys, labels, splits, ReadFiles(files))


def _to_download(name: str, root: Path, arguments: dict[str, Any], error: Exception) -> str:
    """What is missing, and how one comes by it."""
    given = [f", {key}={value!r}" for key, value in arguments.items() if key != "download"]
    which = "".join(given)
    found = f"torchvision's {name}{which} is not in {root} ({error})."
    kind = getattr(sets, name)
    page = re.search(r"<(https?://(?!docs\.scipy)[^>]+)>", kind.__doc__ or "")
    if page:
        found += f" Its page: {page[1]} ."
    urls = _addresses(kind, arguments.get("version"))
    if urls:
        found += f" Its archives: {', '.join(urls[:8])} ."
    if name in BY_HAND:
        return f"{found} Put it there by hand: {root}/{BY_HAND[name]}"
    call = f"d.{name}('{root}'{which}, download=True)"
    return f'{found} Download it once with:\n  {PYTHON} {call}"'


def _addresses(kind: type, version: str | None) -> list[str]:
    """Where a data set's archives are, as its class says."""
    constants: dict[str | None, Any] = {}
    for part in reversed(kind.__mro__[:-1]):
        constants.update(vars(part))
    constants.update(getattr(inspect.getmodule(kind), "DATASET_URLS", {}))
    mine = constants.get(version)
    if mine is None:
        mine = [value for key, value in constants.items() if str(key).lower().strip("_") in URLS]
    found = set(re.findall(r"https?://[^\s'\"]+", repr(mine)))
    return sorted(url for url in found if "." in url.rsplit("/", 1)[-1])
