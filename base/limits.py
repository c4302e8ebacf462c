"""What a machine may have too little of: memory, room on a disk, open files."""

import contextlib
import errno
import re
import resource
from collections.abc import Generator, Mapping
from pathlib import Path

from base.errors import UsageError

FILES = 65_536  # open files that are enough for anything here
OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
FULL = re.compile(r"No space left|Disk quota exceeded|os error (28|122)\b")
MEMORY = Path("/proc/meminfo")
MEMORY_WORDS = re.compile(
    r"out of memory|ALLOC_FAILED|can't allocate memory|not enough memory|Cannot allocate memory"
)


def allow_more_files() -> None:
    """As many open files as this process may have: the usual 1,024 are a habit of the shell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def of_the_disk(error: BaseException | None) -> str:
    """What a disk said that cannot be written to; '' where something else is the reason. Libraries
    wrap it, and some keep nothing but the words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in OF_A_DISK:
            return error.strerror or str(error)
        if found := FULL.search(str(error)):
            return found[0]
        error = error.__cause__ or error.__context__
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the machine: torch has several ways to say so."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(MEMORY_WORDS.search(str(error)))


def available_memory() -> int:
    """Bytes of the machine's memory that can be had: what would be free without its caches."""
    said = dict(line.split(":") for line in MEMORY.read_text(encoding="utf-8").splitlines())
    return int(said["MemAvailable"].split()[0]) * 1024


def free_memory(device: str) -> str:
    """What to do about a device whose memory others fill, or that is too small."""
    if device == "cpu":
        return "Free memory (top -o %MEM shows who has it)"
    return "Free memory of the GPU (nvidia-smi shows who has it), or take DEVICE=cpu"


@contextlib.contextmanager
def within_memory(
    where: str, advice: str, instead: Mapping[str, str | None] | None = None
) -> Generator[None]:
    """What needs more memory than there is becomes a UsageError that says what to type. where: what
    was done, and on which device."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_little(error, where, advice, instead) from error


def too_little(
    error: BaseException, where: str, advice: str, instead: Mapping[str, str | None] | None = None
) -> UsageError:
    told = str(error).partition("Original Traceback")[0]  # of a DataLoader's process
    said = " ".join(told.split())[:200] or type(error).__name__
    return UsageError(f"the memory does not suffice for {where} ({said}). {advice}", instead)
