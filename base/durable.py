"""Writing that survives a kill and a power cut: temp file, fsync, rename, fsync of the folder. And
JSON that knows its own digest.

Every I/O step passes `fault(point)`. Tests set COVIEW_FAULT in the environment of a child process:

    COVIEW_FAULT=kill:17                 SIGKILL at the 17th point passed, counted from 1
    COVIEW_FAULT=ENOSPC:3                raise OSError(ENOSPC) at the 3rd
    COVIEW_FAULT=kill:1:commit.rename    ... at the 1st whose name ends so
    COVIEW_FAULT=log:points.txt         append each name to a file (to enumerate them)
"""

import contextlib
import errno
import hashlib
import json
import os
import signal
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from base.errors import StorageError

GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_passed = 0


def fault(point: str) -> None:
    """A named step of I/O. Does nothing unless COVIEW_FAULT asks for a failure here."""
    plan = os.environ.get("COVIEW_FAULT")
    if not plan:
        return
    global _passed
    action, where, *suffix = plan.split(":")
    if action == "log":
        with open(where, "a") as file:
            file.write(point + "\n")
        return
    if suffix and not point.endswith(suffix[0]):
        return
    _passed += 1
    if _passed == int(where):
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(getattr(errno, action), f"injected {action} at {point}")


def fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents, each on the disk. Raises StorageError as `write` does."""
    if not folder.is_dir():
        make_folder(folder.parent)
        try:
            fault("folder.make")
            folder.mkdir(exist_ok=True)
            fault("folder.parent")
            fsync_folder(folder.parent)
        except OSError as error:
            raise cannot_write(folder, error) from error
    return folder


def write(path: Path, data: bytes | memoryview, point: str) -> None:
    """Write `data` to `path` so that a reader sees either nothing (or the old file) or all of it,
    also after a power cut.

    The temp file is `.NAME.tmp` beside it; one writer owns a path, so a leftover is simply
    overwritten or swept. Raises StorageError with the path and the cause when the disk is full,
    read-only or failing.
    """
    temp = path.with_name(f".{path.name}.tmp")
    data = memoryview(data)
    try:
        fault(f"{point}.open")
        handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            half = len(data) // 2
            _write_all(handle, data[:half])
            fault(f"{point}.half")
            _write_all(handle, data[half:])
            fault(f"{point}.fsync")
            os.fsync(handle)
        finally:
            os.close(handle)
        fault(f"{point}.rename")
        os.rename(temp, path)
        fault(f"{point}.folder")
        fsync_folder(path.parent)
        fault(f"{point}.done")
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> StorageError:
    in_the_way = error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY)
    if error.errno == errno.ENAMETOOLONG:
        raise error  # a matter of usage: see `run_cli`
    advice = "move away what stands in that place" if in_the_way else "make room or mend the disk"
    return StorageError(
        f"cannot write {path}: {error.strerror or error}. What is committed is safe; {advice}, "
        "then run the same command again: it goes on from here."
    )


def reraise_unless_gone(path: Path, error: Exception) -> None:
    """A file that is gone is damage; one that cannot be read (permission, a failing disk) is a
    StorageError, and nothing is touched."""
    if isinstance(error, OSError) and not isinstance(error, GONE):
        raise StorageError(
            f"cannot read {error.filename or path}: {error.strerror or error}. Nothing is changed; "
            "mend the disk or the permissions, then type the same command"
        ) from error


def _write_all(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]


def remove(path: Path, point: str) -> None:
    """Delete a file or empty folder, if it is there, so that it stays deleted after a power cut.
    Raises StorageError as `write` does."""
    try:
        fault(f"{point}.unlink")
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        fault(f"{point}.folder")
        fsync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def rename(before: Path, after: Path, point: str) -> None:
    """Give a file or folder, whose contents are on the disk, its name, so that it keeps that after
    a power cut. Raises StorageError as `write` does."""
    try:
        fault(f"{point}.rename")
        before.rename(after)
        fault(f"{point}.folder")
        fsync_folder(after.parent)
    except OSError as error:
        raise cannot_write(after, error) from error


def write_json(path: Path, value: Any, point: str) -> None:
    """`write` for JSON: sorted keys, NaN refused, a newline at the end."""
    write(path, _json(value), point)


def _json(value: Any) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode()


def canonical_json(value: Any) -> bytes:
    """The one byte string of a value that is hashed: sorted keys, no blanks, UTF-8, NaN refused."""
    plain = {"sort_keys": True, "allow_nan": False, "ensure_ascii": False}
    return json.dumps(value, separators=(",", ":"), **plain).encode()


def sealed(document: dict[str, Any]) -> bytes:
    """A JSON file's bytes with, in the key `sha256` (of `attributes`, in Zarr's own files), the
    sha256 of the file without it."""
    document = dict(document)
    if "zarr_format" in document:
        document["attributes"] = dict(document["attributes"])
    place = _place(document)
    place["sha256"] = ""
    place["sha256"] = hashlib.sha256(_json(document)).hexdigest()
    return _json(document)


def read_sealed(path: Path) -> dict[str, Any]:
    """The document that `sealed` made. Raises OSError, or ValueError when a single byte of the file
    is another one."""
    name = f"{path.parent.name}/{path.name}"
    if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would never end
        raise ValueError(f"{name} is no regular file")
    return unsealed(path.read_bytes(), name)


def unsealed(data: bytes, name: str) -> dict[str, Any]:
    """The document of a file's bytes. Raises ValueError, which names it, likewise."""
    try:
        document = json.loads(data)
        digest = _place(document)["sha256"]
        without = data.replace(digest.encode(), b"", 1)
        intact = len(digest) == 64 and hashlib.sha256(without).hexdigest() == digest
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} has changed since it was written: {error}") from error
    if not intact:
        raise ValueError(f"{name} has changed since it was written")
    return document


def _place(document: dict[str, Any]) -> dict[str, Any]:
    return document["attributes"] if "zarr_format" in document else document


def settle(folders: Iterable[Path]) -> None:
    """Put the names in these folders on the disk: a killed writer may have left some in the
    kernel's memory alone, and the next one builds on them. Raises StorageError as `write` does."""
    for folder in folders:
        try:
            fault("settle.folder")
            # a parent that is not ours was not made by us
            with contextlib.suppress(FileNotFoundError, PermissionError):
                fsync_folder(folder)
        except OSError as error:
            raise cannot_write(folder, error) from error


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove temp files that a killed writer left below `folder`. Only the holder of the folder's
    lock may call this."""
    try:
        for leftover in folder.rglob(pattern):
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
