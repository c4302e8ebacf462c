"""The data sets of the field, each from a miniature in its real layout on the disk: all official
splits, once; class names; keys that a list can name."""

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torchvision.datasets as sets
from pictures import fill, idx, listed, table
from PIL import Image

from base.errors import UsageError
from cache_specs.items import Items, class_index
from cache_specs.lookup import find_dataset
from cache_specs.sources import dataset_name, is_gone, source_path
from extract.data.datasets import build_items, open_dataset
from extract.data.torchvision_sets import SETS
from train.data.apart import BEFORE
from train.data.splits import make_split

Rows = list[tuple[str, str, str]]
Patch = pytest.MonkeyPatch


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


# --- miniatures: each writes what the archives unpack to, and returns (key, label, split)
#     in order of the keys


def food101(root: Path, patch: Patch) -> Rows:
    put(
        root / "food-101/meta/train.json",
        json.dumps({"apple_pie": ["apple_pie/1", "apple_pie/2"], "waffles": ["waffles/1"]}),
    )
    put(
        root / "food-101/meta/test.json",
        json.dumps({"apple_pie": ["apple_pie/3"], "waffles": ["waffles/2"]}),
    )
    rows = [
        ("apple_pie/1", "train"),
        ("apple_pie/2", "train"),
        ("apple_pie/3", "test"),
        ("waffles/1", "train"),
        ("waffles/2", "test"),
    ]
    return [(f"food-101/images/{name}.jpg", name.split("/")[0], split) for name, split in rows]


def flowers102(root: Path, patch: Patch) -> Rows:
    (root / "flowers-102/jpg").mkdir(parents=True)
    scipy.io.savemat(
        root / "flowers-102/imagelabels.mat", {"labels": np.array([[2, 1, 2, 1, 102, 1]])}
    )
    scipy.io.savemat(
        root / "flowers-102/setid.mat",
        {"trnid": np.array([[1, 4]]), "valid": np.array([[2, 6]]), "tstid": np.array([[3, 5]])},
    )
    files = {
        key: (name, md5(root / "flowers-102" / name))
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    patch.setattr(sets.Flowers102, "_file_dict", {**sets.Flowers102._file_dict, **files})
    rows = [
        ("hard-leaved pocket orchid", "train"),
        ("pink primrose", "val"),
        ("hard-leaved pocket orchid", "test"),
        ("pink primrose", "train"),
        ("blackberry lily", "test"),
        ("pink primrose", "val"),
    ]
    return [(f"flowers-102/jpg/image_{i:05d}.jpg", *row) for i, row in enumerate(rows, 1)]


def aircraft(root: Path, patch: Patch) -> Rows:
    data = root / "fgvc-aircraft-2013b/data"
    put(data / "variants.txt", "707-320\nDC-10\n")
    put(data / "families.txt", "Boeing 707\nDC-10\n")
    split_of = {"0000001": "train", "0000002": "train", "0000003": "val", "0000004": "test"}
    for split in ("train", "val", "test", "trainval"):
        names = [name for name, own in split_of.items() if own in split]
        put(
            data / f"images_variant_{split}.txt",
            "".join(f"{name} {'DC-10' if name == '0000002' else '707-320'}\n" for name in names),
        )
        put(
            data / f"images_family_{split}.txt",
            "".join(f"{name} {'DC-10' if name == '0000002' else 'Boeing 707'}\n" for name in names),
        )
    return [
        (
            f"fgvc-aircraft-2013b/data/images/{name}.jpg",
            "DC-10" if name == "0000002" else "707-320",
            split,
        )
        for name, split in split_of.items()
    ]


def inaturalist(root: Path, patch: Patch) -> Rows:
    a, b = (
        "00000_Animalia_Arthropoda_Insecta_Diptera_Syrphidae_Eristalis_tenax",
        "00001_Plantae_Tracheophyta_Liliopsida_Poales_Poaceae_Poa_annua",
    )
    return [
        (f"2021_train_mini/{a}/1.jpg", a, "train"),
        (f"2021_train_mini/{a}/2.jpg", a, "train"),
        (f"2021_train_mini/{b}/1.jpg", b, "train"),
        (f"2021_valid/{a}/1.jpg", a, "val"),
        (f"2021_valid/{b}/9.jpg", b, "val"),
    ]


def inaturalist2017(root: Path, patch: Patch) -> Rows:
    return [
        ("2017/Aves/Corvus corax/1.jpg", "Aves/Corvus corax", ""),
        ("2017/Fungi/Boletus edulis/1.jpg", "Fungi/Boletus edulis", ""),
    ]


def dtd(root: Path, patch: Patch) -> Rows:
    rows = [
        ("banded/banded_0001.jpg", "train"),
        ("banded/banded_0002.jpg", "val"),
        ("zigzagged/zigzagged_0001.jpg", "train"),
        ("zigzagged/zigzagged_0002.jpg", "test"),
    ]
    for split in ("train", "val", "test"):
        put(
            root / f"dtd/dtd/labels/{split}1.txt",
            "".join(f"{name}\n" for name, own in rows if own == split),
        )
        put(
            root / f"dtd/dtd/labels/{split}2.txt",
            "".join(f"{name}\n" for name, _ in rows) if split == "test" else "",
        )
    return [(f"dtd/dtd/images/{name}", name.split("/")[0], split) for name, split in rows]


def sun397(root: Path, patch: Patch) -> Rows:
    put(root / "SUN397/ClassName.txt", "/a/abbey\n/a/apartment_building/outdoor\n")
    return [
        ("SUN397/a/abbey/sun_aaa.jpg", "abbey", ""),
        ("SUN397/a/apartment_building/outdoor/sun_bbb.jpg", "apartment_building/outdoor", ""),
    ]


def eurosat(root: Path, patch: Patch) -> Rows:
    return [
        ("eurosat/2750/Forest/Forest_1.jpg", "Forest", ""),
        ("eurosat/2750/River/River_1.jpg", "River", ""),
    ]


def gtsrb(root: Path, patch: Patch) -> Rows:
    put(root / "gtsrb/GT-final_test.csv", "Filename;Width;ClassId\n00000.ppm;30;1\n")
    return [
        ("gtsrb/GTSRB/Final_Test/Images/00000.ppm", "1", "test"),
        ("gtsrb/GTSRB/Training/00000/00000_00000.ppm", "0", "train"),
        ("gtsrb/GTSRB/Training/00001/00000_00000.ppm", "1", "train"),
    ]


def pets(root: Path, patch: Patch) -> Rows:
    put(
        root / "oxford-iiit-pet/annotations/trainval.txt",
        "Abyssinian_1 1 1 1\nyorkshire_terrier_2 2 2 1\n",
    )
    put(
        root / "oxford-iiit-pet/annotations/test.txt",
        "Abyssinian_3 1 1 1\nyorkshire_terrier_4 2 2 1\n",
    )
    return [
        ("oxford-iiit-pet/images/Abyssinian_1.jpg", "Abyssinian", "train"),
        ("oxford-iiit-pet/images/Abyssinian_3.jpg", "Abyssinian", "test"),
        ("oxford-iiit-pet/images/yorkshire_terrier_2.jpg", "Yorkshire Terrier", "train"),
        ("oxford-iiit-pet/images/yorkshire_terrier_4.jpg", "Yorkshire Terrier", "test"),
    ]


def cars(root: Path, patch: Patch) -> Rows:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    kind = [("fname", "O"), ("class", "O")]
    scipy.io.savemat(
        base / "devkit/cars_train_annos.mat",
        {"annotations": np.array([("00001.jpg", 2), ("00002.jpg", 1)], kind)},
    )
    scipy.io.savemat(
        base / "cars_test_annos_withlabels.mat",
        {"annotations": np.array([("00001.jpg", 1), ("00002.jpg", 2)], kind)},
    )
    scipy.io.savemat(
        base / "devkit/cars_meta.mat",
        {"class_names": np.array(["AM General Hummer SUV 2000", "smart fortwo 2012"], object)},
    )
    a, b = "AM General Hummer SUV 2000", "smart fortwo 2012"
    return [
        ("stanford_cars/cars_test/00001.jpg", a, "test"),
        ("stanford_cars/cars_test/00002.jpg", b, "test"),
        ("stanford_cars/cars_train/00001.jpg", b, "train"),
        ("stanford_cars/cars_train/00002.jpg", a, "train"),
    ]


def caltech101(root: Path, patch: Patch) -> Rows:
    fill(root, "caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg")
    return [
        (f"caltech101/101_ObjectCategories/{name}", name.split("/")[0], "")
        for name in ("ant/image_0001.jpg", "ant/image_0002.jpg", "bass/image_0001.jpg")
    ]


def caltech256(root: Path, patch: Patch) -> Rows:
    return [
        ("caltech256/256_ObjectCategories/001.ak47/001_0001.jpg", "001.ak47", ""),
        ("caltech256/256_ObjectCategories/002.american-flag/002_0001.jpg", "002.american-flag", ""),
    ]


def country211(root: Path, patch: Patch) -> Rows:
    return [
        (f"country211/{folder}/AD/1.jpg", "AD", split)
        for folder, split in (("test", "test"), ("train", "train"), ("valid", "val"))
    ]


def imagenette(root: Path, patch: Patch) -> Rows:
    return [
        (f"imagenette2-160/{split}/{wnid}/a.JPEG", wnid, split)
        for split in ("train", "val")
        for wnid in ("n01440764", "n02102040")
    ]


def sst2(root: Path, patch: Patch) -> Rows:
    return [
        (f"rendered-sst2/{folder}/{label}/1.png", label, split)
        for folder, split in (("test", "test"), ("train", "train"), ("valid", "val"))
        for label in ("negative", "positive")
    ]


def clevr(root: Path, patch: Patch) -> Rows:
    base = root / "clevr/CLEVR_v1.0"
    for split, objects in (("train", 3), ("val", 10)):
        put(
            base / f"scenes/CLEVR_{split}_scenes.json",
            json.dumps(
                {"scenes": [{"image_filename": f"CLEVR_{split}_0.png", "objects": [0] * objects}]}
            ),
        )
    return [
        ("clevr/CLEVR_v1.0/images/test/CLEVR_test_0.png", "", "unlabelled"),
        ("clevr/CLEVR_v1.0/images/train/CLEVR_train_0.png", "3", "train"),
        ("clevr/CLEVR_v1.0/images/val/CLEVR_val_0.png", "10", "val"),
    ]


def cifar(kind: type, root: Path, patch: Patch, labels: str, names: list[str]) -> Rows:
    base, lists = root / kind.base_folder, {"train_list": [], "test_list": []}
    for part, wanted in lists.items():
        for name, _ in getattr(kind, part):
            path = put(base / name, pickle.dumps({"data": pixels(2, 3072), labels: [0, 1]}))
            wanted.append([name, md5(path)])
        patch.setattr(kind, part, wanted)
    meta = put(base / kind.meta["filename"], pickle.dumps({kind.meta["key"]: names}))
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    count = 2 * len(lists["train_list"])
    return [
        (f"{split}/{i:08d}", names[i % 2], split)
        for split, n in (("test", 2), ("train", count))
        for i in range(n)
    ]


def stl10(root: Path, patch: Patch) -> Rows:
    base = root / "stl10_binary"
    files = {
        "train_X.bin": pixels(2, 3 * 96 * 96),
        "train_y.bin": np.array([2, 1], np.uint8),
        "unlabeled_X.bin": pixels(3, 3 * 96 * 96),
        "test_X.bin": pixels(1, 3 * 96 * 96),
        "test_y.bin": np.array([1], np.uint8),
    }
    known = {name: md5(put(base / name, values.tobytes())) for name, values in files.items()}
    put(base / "class_names.txt", "airplane\nbird\n")
    patch.setattr(
        sets.STL10,
        "train_list",
        [[name, known[name]] for name in ("train_X.bin", "train_y.bin", "unlabeled_X.bin")],
    )
    patch.setattr(
        sets.STL10, "test_list", [[name, known[name]] for name in ("test_X.bin", "test_y.bin")]
    )
    return [
        ("test/00000000", "airplane", "test"),
        ("train/00000000", "bird", "train"),
        ("train/00000001", "airplane", "train"),
        *((f"unlabeled/{i:08d}", "", "unlabelled") for i in range(3)),
    ]


def svhn(root: Path, patch: Patch) -> Rows:
    lists = {}
    for split in ("train", "test", "extra"):
        scipy.io.savemat(
            root / f"{split}_32x32.mat", {"X": pixels(32, 32, 3, 2), "y": np.array([[10], [7]])}
        )
        lists[split] = ["", f"{split}_32x32.mat", md5(root / f"{split}_32x32.mat")]
    patch.setattr(sets.SVHN, "split_list", lists)
    return [
        (f"{folder}/{i:08d}", "07"[i], split)
        for folder, split in (("extra", "train"), ("test", "test"), ("train", "train"))
        for i in range(2)
    ]


def pcam(root: Path, patch: Patch) -> Rows:
    (root / "pcam").mkdir()
    for split in ("train", "valid", "test"):
        for kind, values in (
            ("x", pixels(2, 96, 96, 3)),
            ("y", np.array([1, 0], np.uint8).reshape(2, 1, 1, 1)),
        ):
            with h5py.File(
                root / f"pcam/camelyonpatch_level_2_split_{split}_{kind}.h5", "w"
            ) as file:
                file[kind] = values
    return [
        (f"{split}/{i:08d}", "10"[i], split) for split in ("test", "train", "val") for i in range(2)
    ]


def fer2013(root: Path, patch: Patch) -> Rows:
    cells = " ".join(map(str, pixels(48 * 48)))
    path = put(
        root / "fer2013/fer2013.csv",
        f"emotion,pixels,Usage\n3,{cells},Training\n0,{cells},PublicTest\n",
    )
    patch.setattr(
        sets.FER2013, "_RESOURCES", {**sets.FER2013._RESOURCES, "fer": ("fer2013.csv", md5(path))}
    )
    return [("test/00000000", "0", "test"), ("train/00000000", "3", "train")]


def places365(root: Path, patch: Patch) -> Rows:
    lists = {
        "categories_places365.txt": "/a/airfield 0\n/z/zen_garden 1\n",
        "places365_val.txt": "Places365_val_00000001.jpg 1\n",
        "places365_train_standard.txt": (
            "/a/airfield/00000001.jpg 0\n/z/zen_garden/00000002.jpg 1\n"
        ),
    }
    known = {name: (name, md5(put(root / name, content))) for name, content in lists.items()}
    patch.setattr(sets.Places365, "_CATEGORIES_META", known["categories_places365.txt"])
    patch.setattr(
        sets.Places365,
        "_FILE_LIST_META",
        {
            "train-standard": known["places365_train_standard.txt"],
            "val": known["places365_val.txt"],
        },
    )
    return [
        ("data_256_standard/a/airfield/00000001.jpg", "/a/airfield", "train"),
        ("data_256_standard/z/zen_garden/00000002.jpg", "/z/zen_garden", "train"),
        ("val_256/Places365_val_00000001.jpg", "/z/zen_garden", "val"),
    ]


def emnist(root: Path, patch: Patch) -> Rows:
    for part, labels in (("train", [1, 26]), ("test", [2])):
        for kind, values in (
            ("images-idx3", pixels(len(labels), 28, 28)),
            ("labels-idx1", np.array(labels, np.uint8)),
        ):
            idx(root / "EMNIST/raw", f"emnist-letters-{part}-{kind}-ubyte", values)
    return [
        ("test/00000000", "b", "test"),
        ("train/00000000", "a", "train"),
        ("train/00000001", "z", "train"),
    ]


MINIATURES: dict[str, Callable[[Path, Patch], Rows]] = {
    "Food101": food101,
    "Flowers102": flowers102,
    "FGVCAircraft": aircraft,
    "INaturalist@2021_train_mini": inaturalist,
    "INaturalist@2017": inaturalist2017,
    "DTD": dtd,
    "SUN397": sun397,
    "EuroSAT": eurosat,
    "GTSRB": gtsrb,
    "OxfordIIITPet": pets,
    "StanfordCars": cars,
    "Caltech101": caltech101,
    "Caltech256": caltech256,
    "Country211": country211,
    "Imagenette@160px": imagenette,
    "RenderedSST2": sst2,
    "CLEVRClassification": clevr,
    "CIFAR10": lambda root, patch: cifar(
        sets.CIFAR10, root, patch, "labels", ["airplane", "automobile"]
    ),
    "CIFAR100": lambda root, patch: cifar(
        sets.CIFAR100, root, patch, "fine_labels", ["apple", "aquarium_fish"]
    ),
    "Places365@256": places365,
    "EMNIST@letters": emnist,
    "STL10": stl10,
    "SVHN@extra": svhn,
    "PCAM": pcam,
    "FER2013": fer2013,
}


@pytest.mark.parametrize("name", MINIATURES)
def test_a_data_set_of_torchvision_has_its_splits_classes_and_keys(tmp_path, monkeypatch, name):
    rows = MINIATURES[name](tmp_path, monkeypatch)
    files = "." in rows[0][0]
    if files:
        fill(tmp_path, *(key for key, _, _ in rows))
    monkeypatch.setattr(
        Image, "open", lambda *_: pytest.fail("an image was decoded to find its label")
    )
    dataset = open_dataset(f"torchvision:{name}", tmp_path)
    assert list(zip(dataset.keys, dataset.labels, dataset.splits, strict=True)) == rows
    monkeypatch.undo()
    dataset = pickle.loads(pickle.dumps(dataset))
    for i, (key, _, _) in enumerate(rows):
        data = dataset.read(i)
        assert (
            data == key.encode()
            if files
            else Image.open(io.BytesIO(data)).size in ((28, 28), (32, 32), (48, 48), (96, 96))
        )
    assert not files or build_items(dataset).size.all()


def test_versions_choose_other_splits_and_other_labels(tmp_path, monkeypatch):
    rows = aircraft(tmp_path, monkeypatch)
    assert (
        open_dataset("torchvision:FGVCAircraft@family", tmp_path).labels
        == ["Boeing 707", "DC-10", "Boeing 707", "Boeing 707"]
        and len(rows) == 4
    )
    dtd(tmp_path, monkeypatch)
    assert set(open_dataset("torchvision:DTD@2", tmp_path).splits) == {"test"}
    for data, message in (
        (
            "INaturalist",
            (
                r"INaturalist has several versions; type one of: "
                r"DATA=torchvision:INaturalist@2021_train, "
            ),
        ),
        ("DTD@11", "DTD has no version '11'"),
        ("Food100", "torchvision has no data set 'Food100'; did you mean 'Food101'"),
    ):
        with pytest.raises(UsageError, match=message):
            open_dataset(f"torchvision:{data}", tmp_path)


def test_the_images_themselves_are_those_of_the_arrays(tmp_path, monkeypatch):
    stl10(tmp_path, monkeypatch)
    dataset = open_dataset("torchvision:STL10", tmp_path)
    raw = (
        np.fromfile(tmp_path / "stl10_binary/unlabeled_X.bin", np.uint8)
        .reshape(-1, 3, 96, 96)
        .transpose(0, 3, 2, 1)
    )
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(dataset.read(4)))), raw[1])
    pcam(tmp_path, monkeypatch)
    dataset = open_dataset("torchvision:PCAM", tmp_path)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(dataset.read(5)))), pixels(2, 96, 96, 3)[1]
    )


def test_svhn_says_that_its_extra_images_are_left_out(tmp_path, monkeypatch, capsys):
    svhn(tmp_path, monkeypatch)
    assert (
        len(open_dataset("torchvision:SVHN", tmp_path).keys) == 4
        and "DATA=torchvision:SVHN@extra" in capsys.readouterr().out
    )


class Trap:
    def __reduce__(self) -> tuple:
        return os.mkdir, (Trap.where,)


@pytest.mark.parametrize("member", ["test_batch", "batches.meta"])
def test_a_pickle_whose_md5_is_not_the_published_one_is_not_opened(tmp_path, monkeypatch, member):
    cifar(sets.CIFAR10, tmp_path, monkeypatch, "labels", ["a", "b"])
    Trap.where = str(tmp_path / "pwned")
    put(tmp_path / "cifar-10-batches-py" / member, pickle.dumps(Trap()))
    with pytest.raises(UsageError, match=r"CIFAR10, train=True is not in .*corrupted"):
        open_dataset("torchvision:CIFAR10", tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_a_list_that_leads_out_of_the_root_is_refused(tmp_path, monkeypatch):
    food101(tmp_path / "data", monkeypatch)
    put(tmp_path / "secret.jpg", "x")
    fill(tmp_path / "data", "food-101/images/apple_pie/1.jpg")
    put(tmp_path / "data/food-101/meta/test.json", json.dumps({"apple_pie": ["../../../secret"]}))
    with pytest.raises(
        UsageError, match=r"Food101: its lists name the image '.*secret\.jpg', which is outside"
    ):
        open_dataset("torchvision:Food101", tmp_path / "data")
    put(tmp_path / "data/food-101/meta/test.json", "{")
    with pytest.raises(UsageError, match="a file of it is damaged"):
        open_dataset("torchvision:Food101", tmp_path / "data")


@pytest.mark.parametrize(
    "name",
    [f"{name}@{version}".rstrip("@") for name, versions in SETS.items() for version in versions],
)
def test_what_is_not_there_says_where_to_get_it_and_where_to_put_it(tmp_path, name):
    with pytest.raises(UsageError) as caught:
        open_dataset(f"torchvision:{name}", tmp_path)
    kind, said = name.split("@")[0], str(caught.value)
    assert f"torchvision's {kind}" in said and str(tmp_path) in said
    assert f"d.{kind}('{tmp_path}'" in said or "Put it there by hand" in said
    if kind not in ("SEMEION", "QMNIST", "PCAM", "USPS"):
        assert "http" in said, said
    for kind_, archive in (
        ("Food101", "food-101.tar.gz"),
        ("INaturalist@2021_train_mini", "train_mini.tar.gz"),
        ("CIFAR10", "cifar-10-python.tar.gz"),
        ("ImageNet", "ILSVRC2012_img_train.tar"),
        ("SUN397", "SUN397.tar.gz"),
        ("SVHN", "train_32x32.mat"),
    ):
        assert kind_ != name or archive in said, said


# --- ImageNet and its published lists


def imagenet(root: Path) -> Path:
    fill(
        root,
        *(
            f"train/{wnid}/{wnid}_{i}.JPEG"
            for wnid in ("n01440764", "n01443537")
            for i in range(12)
        ),
        *(
            f"val/{wnid}/ILSVRC2012_val_{i:08d}.JPEG"
            for i, wnid in enumerate(("n01440764", "n01443537"), 1)
        ),
    )
    return root


def test_imagenet_is_the_same_as_a_folder_and_by_torchvisions_name(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("meta.bin was read"))
    put(imagenet(tmp_path) / "meta.bin", b"damaged")
    rows = listed(str(tmp_path))
    assert rows[0] == ("train/n01440764/n01440764_0.JPEG", "n01440764", "train")
    assert rows[-1] == ("val/n01443537/ILSVRC2012_val_00000002.JPEG", "n01443537", "val")
    dataset = open_dataset("torchvision:ImageNet", tmp_path)
    assert (
        list(zip(dataset.keys, dataset.labels, dataset.splits, strict=True)) == rows
        and len(rows) == 26
    )
    put(tmp_path / "val/ILSVRC2012_val_00000003.JPEG", b"x")
    with pytest.raises(
        UsageError,
        match=r"1 images lie in .*val itself, such as ILSVRC2012_val_00000003\.JPEG.*n01440764",
    ):
        open_dataset("torchvision:ImageNet", tmp_path)


def items_of(dataset_rows: Rows) -> Items:
    keys, labels, splits = (list(column) for column in zip(*dataset_rows, strict=True))
    label, classes = class_index(labels)
    return Items(
        "imagenet",
        "folder",
        keys,
        label,
        splits,
        np.ones(len(keys), np.int64),
        [f"{i:064x}" for i in range(len(keys))],
        classes,
    )


def test_the_published_lists_of_file_names_are_labels(tmp_path):
    items = items_of(listed(str(imagenet(tmp_path / "imagenet"))))
    ok = np.ones(len(items), bool)
    whole = make_split(items, ok, "all", 0, BEFORE)
    taken = [
        items.keys[row].rsplit("/", 1)[1] for row in whole.test
    ]  # drawn for test, unless a list names them
    names = ["n01440764_3.JPEG", "n01443537_7.JPEG", taken[0]]
    path = put(tmp_path / "1percent.txt", "\n".join(names) + "\n")
    split = make_split(items, ok, str(path), 0, BEFORE)
    assert {items.keys[row].rsplit("/", 1)[1] for row in split.labelled} == set(names)
    assert set(split.test) == set(whole.test) - set(split.labelled) and [
        items.split[row] for row in split.val
    ] == ["val", "val"]
    parts = np.concatenate([split.labelled, split.unlabelled, split.val, split.test])
    assert sorted(parts) == list(range(len(items)))
    put(
        path, "n01440764/n01440764_3.JPEG\ntrain/n01443537/n01443537_7.JPEG\n"
    )  # more of the key is as good
    assert [items.keys[row] for row in make_split(items, ok, str(path), 0, BEFORE).labelled] == [
        "train/n01440764/n01440764_3.JPEG",
        "train/n01443537/n01443537_7.JPEG",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["n01440764_3.JPEG", "n0_1.JPEG", "n0_2.JPEG"],
            r"line 2: 'imagenet' has no image 'n0_1\.JPEG'.* \(2 of 3 lines are like that\)",
        ),
        (
            ["a.JPEG"],
            (
                r"line 1: 'imagenet' has 2 images of the name 'a\.JPEG', "
                r"such as 'train/n01440764/a\.JPEG' and 'train/n01443537/a\.JPEG'; write whole keys"
            ),
        ),
        (
            ["ILSVRC2012_val_00000001.JPEG"],
            r"'val/n01440764/ILSVRC2012_val_00000001\.JPEG' is not a labelled training image",
        ),
    ],
)
def test_an_unknown_or_unclear_name_in_a_list_is_named(tmp_path, lines, message):
    fill(imagenet(tmp_path / "imagenet"), "train/n01440764/a.JPEG", "train/n01443537/a.JPEG")
    items = items_of(listed(str(tmp_path / "imagenet")))
    with pytest.raises(UsageError, match=message):
        make_split(
            items, np.ones(len(items), bool), str(put(tmp_path / "list.txt", "\n".join(lines))), 0
        )


# --- the most common classes


def test_the_most_common_classes_are_counted_in_training_alone_and_kept_in_every_split(
    tmp_path, capsys
):
    counts = {
        "train": {"a": 1, "b": 2, "c": 3, "d": 2},
        "val": {"a": 9, "b": 1, "c": 1, "d": 5},
        "test": {"a": 9, "b": 1, "c": 0, "d": 1},
    }
    data = fill(
        tmp_path / "photos",
        *(
            f"{split}/{label}/{i}.jpg"
            for split, of in counts.items()
            for label, n in of.items()
            for i in range(n)
        ),
    )
    rows = listed(
        f"{data}#top2"
    )  # a leads only with val and test; b and d are equal in training, d leads with val
    assert {(label, split) for _, label, split in rows} == {
        ("b", "train"),
        ("c", "train"),
        ("b", "val"),
        ("c", "val"),
        ("b", "test"),
    }
    assert len(rows) == 2 + 3 + 1 + 1 + 1
    assert (
        "8 of 35 images, of the 2 of 4 classes with the most training images: 3 (c) down to 2 (b)"
        in capsys.readouterr().out
    )
    dataset = open_dataset(f"{data}#top2", Path())
    assert (
        dataset.name == "photos-top2"
        and [dataset.read(i).decode() for i in range(len(rows))] == dataset.keys
    )
    with pytest.raises(
        UsageError, match=r"there are 4 classes with training images; type at most #top4"
    ):
        open_dataset(f"{data}#top5", Path())
    with pytest.raises(
        UsageError,
        match=("#top0 would leave no class; take at least #top1"),
    ):
        open_dataset(f"{data}#top0", Path())


def test_inaturalists_most_common_classes(tmp_path):
    names = [f"{i:05d}_Animalia_Chordata_Aves_O_F_G_{name}" for i, name in enumerate("wxyz")]
    train, valid = (3, 1, 3, 2), (1, 8, 1, 1)
    fill(
        tmp_path,
        *(
            f"2021_train/{name}/{i}.jpg"
            for name, n in zip(names, train, strict=True)
            for i in range(n)
        ),
        *(
            f"2021_valid/{name}/{i}.jpg"
            for name, n in zip(names, valid, strict=True)
            for i in range(n)
        ),
    )
    dataset = open_dataset("torchvision:INaturalist@2021_train#top2", tmp_path)
    assert dataset.name == "INaturalist-2021_train-top2" and set(dataset.labels) == {
        names[0],
        names[2],
    }
    assert [dataset.splits.count(split) for split in ("train", "val")] == [6, 2]


def test_images_without_a_label_stay_beside_the_most_common_classes(tmp_path):
    path = table(
        tmp_path,
        "csv",
        {
            "path": [f"{i}.jpg" for i in range(5)],
            "label": ["a", "a", "b", None, "b"],
            "split": ["train", "", "train", "unlabelled", "val"],
        },
    )
    assert listed(f"{path}#top1") == [
        ("0.jpg", "a", "train"),
        ("1.jpg", "a", ""),
        ("3.jpg", "", "unlabelled"),
    ]


# --- names in the cache


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("torchvision:INaturalist@2021_train#top1010", "INaturalist-2021_train-top1010"),
        ("photos/#top5", "photos-top5"),
        ("hf:owner/name", "name"),
        ("hf:owner/name@small.v1", "name-small.v1"),
        ("a/shards/train-{000000..000012}.tar", "train"),
        ("a/shards/{000..012}.tar", "shards"),
        ("a/x.tar", "x"),
        ("a/images.h5", "images"),
        ("digits#top3", "digits-top3"),
        ("hf:/data/pets", "pets"),
        ("{00..12}.tar", Path.cwd().name),
    ],
)
def test_each_form_has_a_name_in_the_cache(data, name):
    assert dataset_name(data) == name.lstrip(".-")


def test_each_form_is_recorded_so_that_it_is_found_again(tmp_path, monkeypatch):
    from cache_specs.succession import write_items

    monkeypatch.chdir(tmp_path)
    data = fill(tmp_path / "photos", "a/1.jpg", "a/2.jpg", "b/1.jpg")
    fill(tmp_path, "s/t-00.tar", "s/t-01.tar")
    here = str(tmp_path.resolve())
    for given, recorded in (
        ("photos/#top1", f"{here}/photos#top1"),
        ("s/t-{00..01}.tar", f"{here}/s/t-{{00..01}}.tar"),
        ("hf:photos@x", f"hf:{here}/photos@x"),
        ("hf:owner/name@x#top3", "hf:owner/name@x#top3"),
        ("torchvision:DTD@2", "torchvision:DTD@2"),
    ):
        assert (
            source_path(given) == recorded
            and source_path(recorded) == recorded
            and not is_gone(recorded)
        )
    assert is_gone("nowhere/#top1") and is_gone("s/u-{00..01}.tar") and is_gone("hf:/nowhere/x")
    folder = write_items(
        tmp_path / "cache",
        build_items(open_dataset(f"{data}#top1", Path())),
        source_path(f"{data}#top1"),
    )
    assert (
        find_dataset(tmp_path / "cache", "photos/#top1")
        == folder
        == find_dataset(tmp_path / "cache", "photos-top1")
    )
    with pytest.raises(UsageError, match=r"no dataset 'photos'"):
        find_dataset(tmp_path / "cache", "photos/")
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"DATA=photos/#top1: there is no such file or folder"):
        find_dataset(tmp_path / "cache", "photos/#top1")
    assert (
        write_items(
            tmp_path / "cache",
            build_items(open_dataset("moved#top1", Path())),
            source_path("moved#top1"),
        )
        == folder
    )
