"""Which weight files are known without being read: those that have the inode, size and times that
they had when they were hashed, as it is for images (cache_specs/stamps.py).

    ~/.cache/coview/weights/known/<sha256 of the path>.json    path, stamp, sha256 of the contents

It belongs to this machine's disk and to nothing else. Without it, or where it is damaged, the file
is hashed again.
"""

import hashlib
import time
from contextlib import suppress
from pathlib import Path

from base import durable
from base.errors import StorageError
from cache_specs.stamps import NONE, RACY_NS, stamp_of
from extract.models.convert import weights_folder

SMALL = 1 << 26  # bytes; what is smaller is hashed in a moment


def digest_of(path: Path, rehash: bool = False) -> str:
    """The sha256 (hex) of a file's contents. rehash: it is read, whatever is known."""
    stamp = stamp_of(str(path))  # before it is read: what is written to it after that has another
    note = _note_of(path)
    told: dict[str, object] = {"path": str(path.absolute()), "stamp": list(stamp)}
    if not rehash and (known := _known(note, told)):
        return known
    begun = time.time_ns()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settled = stamp != NONE and max(stamp[2:]) + RACY_NS < begun
    if settled and stamp[1] >= SMALL:
        with suppress(StorageError):  # where that may not be written it is hashed at every start
            durable.make_folder(note.parent)
            durable.write(note, durable.sealed({**told, "contents": digest}), "known")
    return digest


def _note_of(path: Path) -> Path:
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    return weights_folder() / "known" / f"{name}.json"


def _known(note: Path, told: dict[str, object]) -> str:
    """What the file's contents were when it had this stamp; '' where that is not known."""
    try:
        found = durable.read_sealed(note)
    except (OSError, ValueError, KeyError):
        return ""
    of_then = {key: found.get(key) for key in told}
    return str(found["contents"]) if of_then == told and "contents" in found else ""
