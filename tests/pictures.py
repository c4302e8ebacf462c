"""Small pictures, files and folders of them."""

import gzip
import io
import struct
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from cache_specs.spec import Preprocess
from extract.data.datasets import open_dataset

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


SQUASH = Preprocess(24, "squash", 24, "bicubic", True, MEAN, STD)


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng(width * height).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def fill(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return str(folder)


def listed(data: str) -> list[tuple[str, str, str]]:
    dataset = open_dataset(data, Path())
    return list(zip(dataset.keys, dataset.labels, dataset.splits, strict=True))


def table(folder: Path, kind: str, columns: dict[str, list]) -> str:
    path = folder / f"list.{kind}"
    if kind == "csv":
        rows = [
            ",".join(columns),
            *(
                ",".join("" if value is None else str(value) for value in row)
                for row in zip(*columns.values(), strict=True)
            ),
        ]
        path.write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)
    return str(path)


def idx(folder: Path, name: str, values: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    (folder / name).write_bytes(header + values.tobytes())
    with gzip.open(folder / f"{name}.gz", "wb") as file:
        file.write(header + values.tobytes())


def h5(path: Path, **arrays: object) -> str:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if isinstance(values, list) and isinstance(values[0], bytes):
                node = file.create_dataset(name, len(values), h5py.vlen_dtype(np.uint8))
                for row, value in enumerate(values):
                    node[row] = np.frombuffer(value, np.uint8)
            else:
                file[name] = values
    return str(path)
