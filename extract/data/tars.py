"""Tars of images, webdataset's among them: one tar, a folder of them, or
'shards/train-{000..012}.tar' (quoted, bash would expand it). Nothing is unpacked.

The members of one name up to its first dot are one sample: 0001.jpg and 0001.cls (a number or a
name), or 0001.json with "label" or "cls"; images such as cat.0.jpg and cat.1.jpg, with neither, are
one each. Where no sample has such a label, the folders inside the tar are read as those of a folder
of images. The split is what the shards' names say (train-000.tar, val-…): all of them or none. The
headers are read once; an image is read at its place in the tar. Links, devices, sparse files and
names that are absolute or contain .. are left out, and so is what is no image (.pyd and .pickle are
not opened), hidden, or another system's.
"""

import json
import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from base.errors import UsageError
from cache_specs.sources import expand_shards
from cache_specs.words import split_within
from extract.data.formats import EXTENSIONS, HEAD
from extract.data.layout import masks_among, of_folders, say_masks, warn_of_names
from extract.data.naming import (
    find_images,
    is_image,
    label_of,
    passed_over,
    say_left_out,
    text,
    without_unlabelled,
)
from extract.data.readers import Listing, ReadPieces, open_regular

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
LABELS = ("cls", "json")  # the endings of members that may hold a label


class _Header(tarfile.TarInfo):
    """tarfile reads extended headers of any length into memory, and follows negative sizes round
    and round."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.type in EXTENDED and self.size > LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes at {self.offset}")
        # pyrefly: ignore[missing-attribute]  the stubs leave out what is private
        return super()._proc_member(tar)


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """An image in the `shard`-th tar; label: '' where there is none."""

    shard: int
    image: Member
    label: str


def only_tars(folder: Path) -> bool:
    """A folder that holds tars, in itself or one folder deeper, and no image."""
    return next(_tars_in(folder), None) is not None and not find_images(folder).images


def _tars_in(folder: Path) -> Iterator[str]:
    for here, folders, files in os.walk(folder, followlinks=False):
        at_top = Path(here) == folder
        folders[:] = sorted(name for name in folders if at_top and not name.startswith("."))
        for name in sorted(files):
            if name.endswith(ENDINGS) and not name.startswith("."):
                yield os.path.join(here, name)


def of_tars(data: str, root: Path) -> Listing:
    base = Path(data)
    paths = _shards(data)
    samples, others = [], Counter[str]()
    for shard, path in enumerate(paths):
        for image, label in _samples(path, others):
            samples.append(Sample(shard, image, label))
    say_left_out(data, others, "they are no images or may not be read from a tar", "members")
    samples = _without_masks(data, samples)
    if not samples:
        raise UsageError(
            f"DATA={data}: no image in {len(paths):,} tars (looked for {', '.join(EXTENSIONS)}); "
            "name tars that hold images"
        )
    if base.is_dir():
        shards = [os.path.relpath(path, base) for path in paths]
    else:
        shards = [os.path.basename(path) for path in paths]
    labels, splits = _labels(data, samples, _splits(data, shards))
    places = [(sample.shard, sample.image.offset, sample.image.size) for sample in samples]
    number, offset, size = np.array(places, np.int64).T
    return Listing(
        [text(key) for key in _keys(samples, shards)],
        [text(label) for label in labels],
        splits,
        ReadPieces(paths, number.astype(np.int32), offset, size),
    )


def _without_masks(data: str, samples: list[Sample]) -> list[Sample]:
    """What has a label of its own is no mask, whatever it is called."""
    paths = [PurePosixPath(sample.image.name) for sample in samples]
    masks = {place for place in masks_among(paths) if not samples[place].label}
    say_masks(data, paths, masks)
    return [sample for place, sample in enumerate(samples) if place not in masks]


def _shards(data: str) -> list[str]:
    """The tars that DATA names. Raises UsageError for one that is not there, or there twice."""
    if Path(data).is_dir():
        paths = list(_tars_in(Path(data)))
    elif Path(data).exists():
        paths = [data]
    else:
        paths = expand_shards(data)
    lost = [path for path in paths if not Path(path).is_file()]
    if lost:
        raise UsageError(
            f"DATA={data}: {len(lost):,} of {len(paths):,} shards are not there, the first is "
            f"{lost[0]}; fetch them, or name the others alone"
        )
    for path, count in Counter(paths).items():
        if count > 1:
            raise UsageError(f"DATA={data}: the shard {path} stands there twice; name it once")
    return paths


def _splits(data: str, shards: Sequence[str]) -> list[str]:
    """The split of each shard, as its name or that of its folder says; '' where none does."""
    splits = []
    for shard in shards:
        words = PurePosixPath(shard).with_suffix("").parts
        said = [split for split in map(split_within, reversed(words)) if split]
        splits.append(said[0] if said else "")
    if any(splits) and not all(splits):
        raise UsageError(
            f"DATA={data}: {shards[splits.index('')]} has none of train, val, test and unlabelled "
            "in its name, where others have one; name all shards so, or none"
        )
    return splits


def _labels(
    data: str, samples: Sequence[Sample], of_shards: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Labels and splits: the samples' own labels and the splits of their shards, or else what the
    folders inside the tars say."""
    labels = [sample.label for sample in samples]
    splits = [of_shards[sample.shard] for sample in samples]
    if any(labels):
        return without_unlabelled(labels, splits), splits
    inside = [PurePosixPath(sample.image.name) for sample in samples]
    labels, of_folder = of_folders(data, inside)
    warn_of_names(data, inside, labels)
    return labels, splits if all(of_shards) else of_folder


def _keys(samples: Sequence[Sample], shards: Sequence[str]) -> list[str]:
    """The images' names, below that of their shard where webdataset numbers the samples of each
    shard anew."""
    names = [sample.image.name for sample in samples]
    if len(set(names)) == len(names):
        return names
    tops = [PurePosixPath(shard).with_suffix("") for shard in shards]
    return [f"{tops[sample.shard]}/{sample.image.name}" for sample in samples]


def _samples(path: str, others: Counter[str]) -> Iterator[tuple[Member, str]]:
    """(image, label or '') of each image of a tar. Raises UsageError."""
    for stem, members in _by_stem(path, others).items():
        images = _images(path, stem, members)
        for kind in members:
            if kind not in (*images, *LABELS):
                others[f"with .{kind}" if kind else "no ending"] += 1
        label = _label(path, members) if images else ""
        for kind in images:
            yield members[kind], label


def _images(path: str, stem: str, members: dict[str, Member]) -> list[str]:
    """Those of a sample's endings that are images; what has none, by its content. Raises UsageError
    where a sample has several."""
    images = [kind for kind in members if f".{kind}" in EXTENSIONS]
    if "" in members and is_image(_head(path, members[""])):
        images.append("")
    if len(images) > 1:
        raise UsageError(
            f"{path}: the sample {text(stem)!r} has {len(images)} images, {' and '.join(images)}; "
            "expected one"
        )
    if images or not set(LABELS).isdisjoint(members):
        return images
    # cat.0.jpg and cat.1.jpg are no sample, but two files
    return [kind for kind in members if kind.endswith(EXTENSIONS)]


def _head(path: str, member: Member) -> bytes:
    with open_regular(path, None) as file:
        file.seek(member.offset)
        return file.read(min(HEAD, member.size))


def _by_stem(path: str, others: Counter[str]) -> dict[str, dict[str, Member]]:
    """{name up to its first dot: {what follows the dot: member}}"""
    samples: dict[str, dict[str, Member]] = defaultdict(dict)
    for member in _members(path, others):
        folder, file = posixpath.split(member.name)
        stem, _, kind = file.partition(".")
        found = samples[posixpath.join(folder, stem)]
        if kind.lower() in found:
            raise UsageError(
                f"{path}: the member {text(member.name)!r} stands there twice, or with endings in "
                "small and capital letters; write the tar anew"
            )
        found[kind.lower()] = member
    return samples


def _label(path: str, members: dict[str, Member]) -> str:
    for kind in LABELS:
        if kind not in members:
            continue
        member = members[kind]
        try:
            value = _label_value(path, member, kind)
            label = label_of(value)
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{path}: the label in {text(member.name)!r} cannot be read: {error}; write the "
                "tar anew"
            ) from error
        if value not in ("", None):
            return label
    return ""


def _label_value(path: str, member: Member, kind: str) -> Any:
    """What a member says of the label; '' where it says nothing."""
    if member.size > LONGEST_LABEL:
        raise ValueError(f"it has {member.size:,} bytes")
    with open_regular(path, None) as file:
        file.seek(member.offset)
        value = file.read(member.size).decode("utf-8").strip()
    if kind == "cls":
        return value
    fields = json.loads(value)
    for field in ("label", "cls"):
        if isinstance(fields, dict) and field in fields:
            return fields[field]
    return ""


def _members(path: str, others: Counter[str]) -> Iterator[Member]:
    """Each regular file of a tar whose name stays inside it. Raises UsageError where the tar is
    compressed, damaged or cut off."""
    with open(path, "rb") as file:
        _refuse_compressed(path, file)
        try:
            end = yield from _walk(file, others)
            file.seek(end)
            tail = file.read(TAIL)
        except Exception as error:  # tarfile raises nearly anything on a hostile file
            raise UsageError(
                f"{path} is damaged, cut off, or no tar ({type(error).__name__}: {error}). Fetch "
                "it again"
            ) from error
        if len(tail) < tarfile.BLOCKSIZE:
            raise UsageError(
                f"{path} is cut off: it has no end mark after its last member. Fetch it again"
            )
        if tail.strip(b"\0"):
            raise UsageError(
                f"{path} goes on after its end mark: several tars were joined, or it is damaged. "
                "Give the parts by themselves"
            )


def _refuse_compressed(path: str, file: BinaryIO) -> None:
    start = file.read(8)
    for magic, ending in MAGIC.items():
        if start.startswith(magic):
            named = [other for other in UNPACK if path.endswith(other)]
            how = UNPACK[named[0] if named else ending]
            raise UsageError(
                f"{path} is compressed, so that its images cannot be read at random; unpack it "
                f"once: {how} '{path}'"
            )


def _walk(file: BinaryIO, others: Counter[str]) -> Generator[Member, None, int]:
    """The members; returns where the last one ends. What is left out is counted in `others`."""
    length, at = file.seek(0, os.SEEK_END), -1
    file.seek(0)
    with tarfile.open(
        fileobj=file, mode="r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        while (member := tar.next()) is not None:
            # pyrefly: ignore[missing-attribute]  not in the stubs; it would keep all of them
            tar.members = []
            if member.offset <= at or tar.offset <= member.offset:
                raise tarfile.ReadError(f"the header at {member.offset} leads backwards")
            at = member.offset
            if member.offset_data + member.size > length and member.isreg():
                raise tarfile.ReadError("unexpected end of data")
            reason = _unfit(member)
            if reason:
                others[reason] += 1
            elif not member.isdir():
                yield Member(posixpath.normpath(member.name), member.offset_data, member.size)
        return tar.offset


def _unfit(member: tarfile.TarInfo) -> str:
    """Why a member is not read; '' where nothing is against it."""
    if member.isdir():
        return ""
    return _unfit_kind(member) or _unfit_name(member.name)


def _unfit_kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "links"
    if member.issparse():
        return "sparse files"
    return "" if member.isreg() else "devices and other special files"


def _unfit_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        return "with names that leave the tar"
    others = [name for name in map(passed_over, parts) if name]  # hidden, or another system's
    return f"called {text(others[0])}" if others else ""
