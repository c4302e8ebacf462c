"""Tars of images, webdataset's among them: one tar, a folder of them, or 'shards/train-{000..012}.tar' (quoted, bash would
expand it). Nothing is unpacked.

The members of one name up to its first dot are one sample: 0001.jpg and 0001.cls (a number or a name), or 0001.json with "label" or "cls"; images such as
cat.0.jpg and cat.1.jpg, with neither, are one each. Where no sample has such a label, the folders inside the tar are read as those of a folder of images.
The split is what the shards' names say (train-000.tar, val-…): all of them or none. The headers are read once; an image is read at its place in the tar.
Links, devices, sparse files and names that are absolute or contain .. are left out, and so is what is no image (.pyd and .pickle are not opened).
"""

import json
import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from base.errors import UsageError
from cache_specs.sources import expand_shards
from extract.data.naming import (
    EXTENSIONS,
    find_images,
    label_of,
    of_folders,
    say_left_out,
    split_in,
    text,
)
from extract.data.readers import ReadPieces, open_regular

UNPACK = {
    ".tar.gz": "gunzip -k",
    ".tgz": "gunzip -k -S .tgz",
    ".tar.bz2": "bunzip2 -k",
    ".tar.xz": "unxz -k",
    ".tar.zst": "zstd -d",
}
ENDINGS = (".tar", *UNPACK)
MAGIC = {
    b"\x1f\x8b": ".tar.gz",
    b"BZh": ".tar.bz2",
    b"\xfd7zXZ": ".tar.xz",
    b"\x28\xb5\x2f\xfd": ".tar.zst",
}
LONGEST_HEADER, LONGEST_LABEL, TAIL = 2**14, 2**20, 2 * tarfile.RECORDSIZE
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
Member = tuple[int, int]  # offset, size


class _Header(tarfile.TarInfo):
    """tarfile reads extended headers of any length into memory, and follows negative sizes round and round."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.type in EXTENDED and self.size > LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes at {self.offset}")
        return super()._proc_member(tar)


def only_tars(folder: Path) -> bool:
    """A folder that holds tars, in itself or one folder deeper, and no image."""
    return next(_tars_in(folder), None) is not None and not find_images(folder)[0]


def _tars_in(folder: Path) -> Iterator[str]:
    for here, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(here) == folder
        )
        yield from (
            os.path.join(here, name)
            for name in sorted(files)
            if name.endswith(ENDINGS) and not name.startswith(".")
        )


def tars(data: str, root: Path) -> tuple:
    base = Path(data)
    paths = (
        list(_tars_in(base)) if base.is_dir() else [data] if base.exists() else expand_shards(data)
    )
    if lost := [path for path in paths if not Path(path).is_file()]:
        raise UsageError(
            f"DATA={data}: {len(lost):,} of {len(paths):,} shards are not there, the first is {lost[0]}; fetch them, or name the others alone"
        )
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise UsageError(f"DATA={data}: the shard {twice[0]} stands there twice; name it once")
    others, names, labels, shards, places = Counter[str](), [], [], [], []
    for shard, path in enumerate(paths):
        for name, label, place in _samples(path, others):
            names.append(name)
            labels.append(label)
            shards.append(shard)
            places.append(place)
    say_left_out(data, others, "they are no images or may not be read from a tar", "members")
    if not names:
        raise UsageError(
            f"DATA={data}: no image in {len(paths):,} tars (looked for {', '.join(EXTENSIONS)}); "
            "name tars that hold images"
        )
    named = [
        os.path.relpath(path, base) if base.is_dir() else os.path.basename(path) for path in paths
    ]
    split = [
        next(filter(None, map(split_in, reversed(PurePosixPath(name).with_suffix("").parts))), "")
        for name in named
    ]
    if any(split) and not all(split):
        raise UsageError(
            f"DATA={data}: {named[split.index('')]} has none of train, val, test and unlabelled in its name, where others have one; "
            "name all shards so, or none"
        )
    splits = [split[shard] for shard in shards]
    if any(labels):
        labels = [
            "" if split == "unlabelled" else label
            for label, split in zip(labels, splits, strict=True)
        ]
    else:
        labels, inside = of_folders(data, _below_the_top([PurePosixPath(name) for name in names]))
        splits = splits if all(split) else inside
    if len(set(names)) < len(names):  # webdataset numbers the samples of each shard anew
        names = [
            f"{PurePosixPath(named[shard]).with_suffix('')}/{name}"
            for shard, name in zip(shards, names, strict=True)
        ]
    offset, size = np.array(places, np.int64).T
    return (
        [text(name) for name in names],
        [text(label) for label in labels],
        splits,
        ReadPieces(paths, np.array(shards, np.int32), offset, size),
    )


def _below_the_top(paths: list[PurePosixPath]) -> list[PurePosixPath]:
    """`tar cf photos.tar photos/` puts one more folder above those of the classes."""
    while (
        len({path.parts[0] for path in paths}) == 1 and min(len(path.parts) for path in paths) > 2
    ):
        paths = [PurePosixPath(*path.parts[1:]) for path in paths]
    return paths


def _samples(path: str, others: Counter[str]) -> Iterator[tuple[str, str, Member]]:
    """(name, label or '', place) of each image of a tar. Raises UsageError."""
    samples: dict[str, dict[str, tuple[str, Member]]] = defaultdict(dict)
    for name, place in _members(path, others):
        folder, file = posixpath.split(name)
        stem, _, kind = file.partition(".")
        found = samples[posixpath.join(folder, stem)]
        if kind.lower() in found:
            raise UsageError(
                f"{path}: the member {text(name)!r} stands there twice, or with endings in small and capital letters; write the tar anew"
            )
        found[kind.lower()] = name, place
    for stem, members in samples.items():
        images = [kind for kind in members if f".{kind}" in EXTENSIONS]
        if len(images) > 1:
            raise UsageError(
                f"{path}: the sample {text(stem)!r} has {len(images)} images, {' and '.join(images)}; expected one"
            )
        if (
            not images and not {"cls", "json"} & members.keys()
        ):  # cat.0.jpg and cat.1.jpg are no sample, but two files
            alone = [kind for kind in members if kind.endswith(EXTENSIONS)]
            yield from ((members[kind][0], "", members[kind][1]) for kind in alone)
            images = alone
        others.update(
            f"with .{kind}" if kind else "no ending"
            for kind in members
            if kind not in (*images, "cls", "json")
        )
        if len(images) == 1 and f".{images[0]}" in EXTENSIONS:
            label = _label(path, members)
            yield members[images[0]][0], label, members[images[0]][1]


def _label(path: str, members: dict[str, tuple[str, Member]]) -> str:
    for kind in ("cls", "json"):
        if kind not in members:
            continue
        name, (offset, size) = members[kind]
        try:
            if size > LONGEST_LABEL:
                raise ValueError(f"it has {size:,} bytes")
            with open_regular(path, None) as file:
                file.seek(offset)
                value = file.read(size).decode("utf-8").strip()
            if kind == "json":
                fields = json.loads(value)
                value = (
                    next((fields[field] for field in ("label", "cls") if field in fields), "")
                    if isinstance(fields, dict)
                    else ""
                )
            label = label_of(value)
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{path}: the label in {text(name)!r} cannot be read: {error}; write the tar anew"
            ) from error
        if value not in ("", None):
            return label
    return ""


def _members(path: str, others: Counter[str]) -> Iterator[tuple[str, Member]]:
    """Name and place of each regular file of a tar whose name stays inside it. Raises UsageError where the tar is compressed, damaged or cut off."""
    with open(path, "rb") as file:
        start = file.read(8)
        if compressed := next(
            (ending for magic, ending in MAGIC.items() if start.startswith(magic)), ""
        ):
            ending = next((ending for ending in UNPACK if path.endswith(ending)), compressed)
            raise UsageError(
                f"{path} is compressed, so that its images cannot be read at random; unpack it once: {UNPACK[ending]} '{path}'"
            )
        length, at = file.seek(0, os.SEEK_END), -1
        file.seek(0)
        try:
            with tarfile.open(
                fileobj=file, mode="r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
            ) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # it would keep all of them
                    if member.offset <= at or tar.offset <= member.offset:
                        raise tarfile.ReadError(f"the header at {member.offset} leads backwards")
                    at = member.offset
                    if member.offset_data + member.size > length and member.isreg():
                        raise tarfile.ReadError("unexpected end of data")
                    if reason := _unfit(member):
                        others[reason] += 1
                    elif not member.isdir():
                        yield posixpath.normpath(member.name), (member.offset_data, member.size)
                end = tar.offset
            file.seek(end)
            tail = file.read(TAIL)
        except UsageError:
            raise
        except Exception as error:  # tarfile raises nearly anything on a hostile file
            raise UsageError(
                f"{path} is damaged, cut off, or no tar ({type(error).__name__}: {error}). Fetch it again"
            ) from error
        if len(tail) < tarfile.BLOCKSIZE:
            raise UsageError(
                f"{path} is cut off: it has no end mark after its last member. Fetch it again"
            )
        if tail.strip(b"\0"):
            raise UsageError(
                f"{path} goes on after its end mark: several tars were joined, or it is damaged. Give the parts by themselves"
            )


def _unfit(member: tarfile.TarInfo) -> str:
    if member.isdir():
        return ""
    if member.issym() or member.islnk():
        return "links"
    if member.issparse():
        return "sparse files"
    if not member.isreg():
        return "devices and other special files"
    parts = PurePosixPath(member.name).parts
    return "with names that leave the tar" if not parts or parts[0] == "/" or ".." in parts else ""
