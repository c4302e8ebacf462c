"""Who may write: file locks (flock). A dead holder's lock is free; who holds one stands in it."""

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

from base.durable import cannot_write
from base.errors import StorageError

USERS = ".lock-users"  # of a cache: shared by all that write to it, exclusive to `make gc`


@contextlib.contextmanager
def lock(folder: Path, wait: bool = False, name: str = ".lock") -> Generator[None]:
    """Be the only writer of `folder` (flock: a dead holder's lock is free). Raises StorageError
    naming the holder's process."""
    handle = _open_lock(folder / name)
    try:
        if not _flock(folder, handle, fcntl.LOCK_EX, wait):
            raise StorageError(
                f"{folder} is being written by process {_holder(handle)}; wait for it, or stop it "
                "and run this again"
            )
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the note
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            note = f"{os.getpid()} on {os.uname().nodename} since {since}\n".encode()
            os.pwrite(handle, note, 0)
            os.truncate(handle, len(note))
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def shared_lock(folder: Path, name: str) -> Generator[None]:
    """Be one of several at work in `folder`; `lock` on the same name waits for all of them."""
    handle = _open_lock(folder / name)
    try:
        _flock(folder, handle, fcntl.LOCK_SH, wait=True)
        yield
    finally:
        os.close(handle)


def lock_holder(folder: Path) -> str | None:
    """`PID on HOST since TIME` of the process that holds the lock of `folder`, or None."""
    try:
        handle = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if _flock(folder, handle, fcntl.LOCK_SH, False) else _holder(handle)
    except StorageError:  # a disk without locks: nobody can hold one
        return None
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(path, error) from error


def _flock(folder: Path, handle: int, kind: int, wait: bool) -> bool:
    """Raises StorageError where the disk has no locks."""
    for last in (False, False, False, False, True):  # `lock_holder` may hold it for a moment
        try:
            fcntl.flock(handle, kind | (0 if wait else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            if not last:
                time.sleep(0.02)
        except OSError as error:  # ENOLCK, ENOSYS, EOPNOTSUPP: as some network disks are mounted
            raise StorageError(
                f"the disk of {folder} gives no file locks (flock: {error.strerror or error}), "
                "which keep two writers apart. Name a folder on another disk (CACHE=…, or ARGS="
                "'--runs …'), or have this one mounted with them: NFS with its lock service or "
                "local_lock=flock, Lustre with flock"
            ) from error
    return False


def _holder(handle: int) -> str:
    for _ in range(5):
        note = os.pread(handle, 200, 0).decode(errors="replace").strip()
        if note:
            return note
        time.sleep(0.02)  # it has the lock and is about to write its name
    return "(unknown)"
