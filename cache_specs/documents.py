"""The three zarr.json files that make a view's folder a Zarr v3 group. Each repeats the view's attributes and holds its own sha256."""

import json
from pathlib import Path
from typing import Any

from base import durable
from cache_specs.spec import fingerprint

FORMAT = 1
DOCUMENTS = ("embeddings/zarr.json", "status/zarr.json", "zarr.json")               # the group's own last: it says "created"


def write_documents(folder: Path, attributes: dict[str, Any]) -> None:
    """The three zarr.json files of a view."""
    documents = _zarr_documents(attributes)
    for name in DOCUMENTS:
        durable.write(folder / name, durable.sealed(documents[name]), "metadata")


def check_documents(folder: Path, embeddings: dict[str, Any], status: dict[str, Any], group: dict[str, Any]) -> None:
    """Raise ValueError or KeyError unless the three documents, each intact, belong together and to the folder."""
    for name, document, kind in zip(DOCUMENTS, (embeddings, status, group), (("array", "float16"), ("array", "uint8"), ("group", None)), strict=True):
        if (document["node_type"], document.get("data_type")) != kind:
            raise ValueError(f"{name} describes another thing")
    own = [{key: value for key, value in document["attributes"].items() if key != "sha256"} for document in (embeddings, status, group)]
    n, rows, width = own[2]["n"], own[2]["rows"], own[2]["spec"]["width"]
    grid = [document["chunk_grid"]["configuration"]["chunk_shape"] for document in (embeddings, status)]
    if not own[0] == own[1] == own[2] or [embeddings["shape"], status["shape"], *grid] != [[n, width], [n], [rows, width], [rows]]:
        odd = next((name for name, mine in zip(DOCUMENTS, own, strict=True) if own.count(mine) == 1), "one")
        raise ValueError(f"of {', '.join(DOCUMENTS)} {odd} is that of another view")
    if fingerprint(own[2]["spec"], own[2]["weights_sha256"])[:12] != folder.name.rpartition("-")[2]:
        raise ValueError("zarr.json does not belong to this folder")


def _zarr_documents(attributes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The three zarr.json documents, made by zarr itself in memory, so that we can seal and write them durably."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    n, rows, width = attributes["n"], attributes["rows"], attributes["spec"]["width"]
    memory: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(memory), zarr_format=3, attributes=attributes)
    common: dict[str, Any] = {"serializer": BytesCodec(endian="little"), "compressors": [Crc32cCodec()], "filters": None, "attributes": attributes}
    group.create_array("embeddings", shape=(n, width), chunks=(rows, width), dtype="float16", fill_value=float("nan"), **common)
    group.create_array("status", shape=(n,), chunks=(rows,), dtype="uint8", fill_value=255,
                       **{**common, "serializer": BytesCodec(endian=None)})
    return {name: json.loads(memory[name].to_bytes()) for name in DOCUMENTS}
