"""torchvision's classification data sets by the names of their classes, already downloaded below ROOT.

    DATA=torchvision:Food101                     all of its official splits; keys are the images' paths below ROOT
    DATA=torchvision:INaturalist@2021_train      a data set with versions: the one after @
    DATA=torchvision:ImageNet                    ROOT/train and ROOT/val; labels are the WordNet ids

SETS says which constructor arguments give which split. It is written out, since torchvision's names differ, and since some of its splits are
the union of others (trainval, train+unlabeled), which would list images twice. CIFAR is stored as pickles: torchvision unpickles them only when
their MD5 is the published one. No other pickle is opened, but what an old torchvision left of MNIST as .pt, and that as plain tensors only.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import UsageError, did_you_mean
from extract.data.hdf5 import ReadHdf5, open_images
from extract.data.naming import SPLIT_NAMES, find_images, text
from extract.data.readers import Reader, ReadFiles, ReadTorchvision

Parts = list[tuple[str, dict[str, Any]]]  # our name of a split, and the constructor's arguments


def _by_split(*names: str, **more: Any) -> Parts:
    return [(SPLIT_NAMES[name], {"split": name, **more}) for name in names]


BY_FLAG: Parts = [("train", {"train": True}), ("test", {"train": False})]
TWO, THREE = _by_split("train", "test"), _by_split("train", "val", "test")
INATURALIST_VAL: Parts = [("val", {"version": "2021_valid"})]
SETS: dict[str, dict[str, Parts]] = {
    **{
        name: {"": BY_FLAG}
        for name in ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS")
    },
    **{name: {"": TWO} for name in ("FER2013", "Food101", "GTSRB", "StanfordCars")},
    **{name: {"": THREE} for name in ("CLEVRClassification", "Flowers102", "PCAM", "RenderedSST2")},
    **{name: {"": [("", {})]} for name in ("Caltech101", "Caltech256", "EuroSAT", "SUN397")},
    "Country211": {"": _by_split("train", "valid", "test")},
    "DTD": {
        "": THREE,
        **{str(n): _by_split("train", "val", "test", partition=n) for n in range(1, 11)},
    },
    "EMNIST": {
        name: [(split, {"split": name, **flag}) for split, flag in BY_FLAG]
        for name in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
    },
    "FGVCAircraft": {
        "": THREE,
        **{
            level: _by_split("train", "val", "test", annotation_level=level)
            for level in ("family", "manufacturer")
        },
    },
    "ImageNet": {"": []},  # see _imagenet
    "Imagenette": {
        "": _by_split("train", "val"),
        **{size: _by_split("train", "val", size=size) for size in ("320px", "160px")},
    },
    "INaturalist": {
        "2021_train": [("train", {"version": "2021_train"}), *INATURALIST_VAL],
        "2021_train_mini": [("train", {"version": "2021_train_mini"}), *INATURALIST_VAL],
        **{
            version: [("", {"version": version})]
            for version in ("2017", "2018", "2019", "2021_valid")
        },
    },
    "OxfordIIITPet": {"": [("train", {"split": "trainval"}), ("test", {"split": "test"})]},
    "Places365": {
        version: [
            ("train", {"split": train, "small": small}),
            ("val", {"split": "val", "small": small}),
        ]
        for version, train, small in (
            ("", "train-standard", False),
            ("256", "train-standard", True),
            ("challenge", "train-challenge", False),
        )
    },
    "SEMEION": {"": [("", {"download": False})]},
    "STL10": {"": _by_split("train", "test", "unlabeled")},
    "SVHN": {"": TWO, "extra": [*TWO, ("train", {"split": "extra"})]},
}
NOT_TAKEN = {
    "SVHN": "its extra training images are not taken; with them: DATA=torchvision:SVHN@extra",
    "Places365": "its test images are not taken, their labels were never published",
}
BY_HAND = {
    "StanfordCars": "stanford_cars/ with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat (its page, "
    "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, is gone)",
    "FER2013": "fer2013/ with fer2013.csv, or icml_face_data.csv, or train.csv and test.csv",
}


def torchvision(data: str, root: Path) -> tuple:
    name, _, version = data.split(":", 1)[1].partition("@")
    if name not in SETS:
        raise UsageError(
            f"DATA={data}: torchvision has no data set {name!r}{did_you_mean(name, SETS)}"
        )
    if version not in SETS[name]:
        raise UsageError(
            f"DATA={data}: {name} has {'no version ' + repr(version) if version else 'several versions'}; type one of: "
            + ", ".join(
                f"DATA=torchvision:{name}{'@' + known if known else ''}" for known in SETS[name]
            )
        )
    if name == "ImageNet":
        return _imagenet(root)
    if name in NOT_TAKEN and version != "extra":
        print(f"{name}: {NOT_TAKEN[name]}", flush=True)
    parts, splits, labels, keys, files = [], [], [], [], []
    for split, arguments in SETS[name][version]:
        images = _open(name, root, arguments)
        try:
            mine, paths = _labels(name, images), _files(name, images)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UsageError(
                f"torchvision's {name} in {root} is damaged or not complete ({type(error).__name__}: {error}); "
                "download it anew"
            ) from error
        parts.append(images)
        labels += mine
        splits += [split] * len(mine)
        files += paths
        keys += (
            [_key(path, root, name) for path in paths]
            if paths
            else [f"{_official(split, arguments)}/{i:08d}" for i in range(len(mine))]
        )
    if files and len(files) != len(labels):
        raise UsageError(
            f"torchvision's {name} in {root} lists {len(files):,} files and {len(labels):,} labels; it is damaged or not complete: "
            "download it anew"
        )
    return keys, labels, splits, _reader(name, parts, files)


def _open(name: str, root: Path, arguments: dict[str, Any]) -> Any:
    import torchvision.datasets as sets

    try:
        return getattr(sets, name)(str(root), **arguments)
    except (RuntimeError, OSError) as error:
        raise UsageError(_to_download(name, root, arguments, error)) from error
    except (
        Exception
    ) as error:  # scipy, csv, json, h5py … on files that are not what they are called
        raise UsageError(
            f"torchvision's {name} in {root} cannot be read, a file of it is damaged ({type(error).__name__}: {error}); "
            "download it anew"
        ) from error


def _official(split: str, arguments: dict[str, Any]) -> str:
    """The folder of the key of an image that is no file."""
    name = arguments.get("split", "")
    return split or "all" if "train" in arguments or not name else name


def _files(name: str, images: Any) -> list[str]:
    """The path of each image, [] where they are not files."""
    if name == "INaturalist":
        return [
            os.path.join(images.root, images.all_categories[number], file)
            for number, file in images.index
        ]
    if name == "Caltech101":
        return [
            os.path.join(
                images.root, "101_ObjectCategories", images.categories[y], f"image_{i:04d}.jpg"
            )
            for y, i in zip(images.y, images.index, strict=True)
        ]
    if name == "Caltech256":
        return [
            os.path.join(
                images.root,
                "256_ObjectCategories",
                images.categories[y],
                f"{y + 1:03d}_{i:04d}.jpg",
            )
            for y, i in zip(images.y, images.index, strict=True)
        ]
    for field in ("_image_files", "_images"):
        if hasattr(images, field):
            return [str(path) for path in getattr(images, field)]
    samples = _samples(images)
    return (
        [str(path) for path, _ in samples]
        if samples and isinstance(samples[0][0], str | os.PathLike)
        else []
    )


def _samples(images: Any) -> list[tuple[Any, Any]]:
    return next(
        (
            getattr(images, field)
            for field in ("samples", "_samples", "imgs")
            if hasattr(images, field)
        ),
        [],
    )


def _labels(name: str, images: Any) -> list[str]:
    """The label's name of each image, from the data set's own lists: no image is decoded."""
    if name == "PCAM":
        with images.h5py.File(
            images._base_folder / images._FILES[images._split]["targets"][0]
        ) as file:
            numbers = file["y"][:].reshape(-1)
    elif name == "INaturalist":
        numbers = [number for number, _ in images.index]
    else:
        numbers = next(
            (
                getattr(images, field)
                for field in ("targets", "_labels", "labels", "y")
                if hasattr(images, field)
            ),
            None,
        )
        numbers = (
            [label for _, label in _samples(images)]
            if numbers is None
            else numbers[:, 0]
            if getattr(numbers, "ndim", 1) == 2
            else numbers
        )
    names = next(
        (
            getattr(images, field)
            for field in ("wnids", "classes", "categories", "all_categories")
            if hasattr(images, field)
        ),
        None,
    )
    return [
        ""
        if number is None or int(number) < 0
        else _name(names[int(number)])
        if names
        else str(int(number))
        for number in numbers
    ]


def _name(label: Any) -> str:
    return ", ".join(label) if isinstance(label, tuple) else text(str(label))


def _key(path: str, root: Path, name: str) -> str:
    key = os.path.normpath(os.path.relpath(path, root))
    if key.split(os.sep)[0] == "..":
        raise UsageError(
            f"torchvision's {name}: its lists name the image {path!r}, which is outside {root}; no such file is read. Download it anew"
        )
    return text(Path(key).as_posix())


def _reader(name: str, parts: list[Any], files: list[str]) -> Reader:
    if files:
        return ReadFiles(files)
    where = [(part, i) for part, images in enumerate(parts) for i in range(len(images))]
    if name == "PCAM":
        paths = [
            str(images._base_folder / images._FILES[images._split]["images"][0]) for images in parts
        ]
        for path in paths:
            open_images(path, "x")
        return ReadHdf5(paths, "x", np.array(where, np.int64).reshape(-1, 2))
    return ReadTorchvision(parts, where)


def _imagenet(root: Path) -> tuple:
    """The folders that torchvision's ImageNet leaves, without its meta.bin: nothing but images is opened, and no devkit is needed."""
    from torchvision.datasets.imagenet import ARCHIVE_META

    unpack = f".venv/bin/python -c \"import torchvision.datasets as d; d.ImageNet('{root}', split='train'); d.ImageNet('{root}', split='val')\""
    archives = " and ".join(", ".join(name for name, _ in ARCHIVE_META.values()).rsplit(", ", 1))
    keys, labels, splits, files = [], [], [], []
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise UsageError(
                f"torchvision's ImageNet: there is no folder {root / split}. Download {archives} from "
                f"https://image-net.org/challenges/LSVRC/2012/2012-downloads.php into {root}, and unpack them once with:\n  {unpack}\n"
                f"If you have the folders train/ and val/ elsewhere: DATA=that-folder/"
            )
        found = sorted(find_images(root / split)[0])
        if loose := [path for path in found if len(path.parts) == 1]:
            raise UsageError(
                f"torchvision's ImageNet: {len(loose):,} images lie in {root / split} itself, such as {loose[0]}, so their labels are not known; "
                f"they belong into class folders ({split}/n01440764/…). Remove {root / split} and unpack the archives with:\n  {unpack}"
            )
        keys += [text(f"{split}/{path.as_posix()}") for path in found]
        labels += [text(path.parts[0]) for path in found]
        splits += [split] * len(found)
        files += [str(root / split / path) for path in found]
    return keys, labels, splits, ReadFiles(files)


def _to_download(name: str, root: Path, arguments: dict[str, Any], error: Exception) -> str:
    import inspect

    import torchvision.datasets as sets

    kind = getattr(sets, name)
    which = "".join(f", {key}={value!r}" for key, value in arguments.items() if key != "download")
    page = re.search(r"<(https?://(?!docs\.scipy)[^>]+)>", kind.__doc__ or "")
    constants = {
        **{key: value for part in reversed(kind.__mro__[:-1]) for key, value in vars(part).items()},
        **getattr(inspect.getmodule(kind), "DATASET_URLS", {}),
    }
    mine = constants.get(
        arguments.get("version"),
        {key: value for key, value in constants.items() if key.lower().strip("_") in URLS},
    )
    urls = sorted(
        {
            url
            for url in re.findall(r"https?://[^\s'\"]+", repr(mine))
            if "." in url.rsplit("/", 1)[-1]
        }
    )
    found = f"torchvision's {name}{which} is not in {root} ({error})." + (
        f" Its page: {page[1]} ." if page else ""
    )
    found += f" Its archives: {', '.join(urls[:8])} ." if urls else ""
    if name in BY_HAND:
        return f"{found} Put it there by hand: {root}/{BY_HAND[name]}"
    return f"{found} Download it once with:\n  .venv/bin/python -c \"import torchvision.datasets as d; d.{name}('{root}'{which}, download=True)\""


URLS = (
    "url",
    "dataset_url",
    "resources",
    "split_list",
    "archives",
    "download_url_prefix",
    "base_url",
)
