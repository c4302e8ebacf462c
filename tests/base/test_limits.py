"""What a machine may have too little of, and what is said then."""

import errno
import fcntl
import itertools
import os
import resource
from pathlib import Path

import pytest
import torch

from base import limits, locks
from base.commands import expected, run_cli
from base.errors import StorageError, UsageError

ENOUGH = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    MemoryError("Caught MemoryError in process 0.\nOriginal Traceback (most recent):\n …"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ENOUGH, ids=lambda error: str(error)[:20])
def test_memory_that_does_not_suffice_is_an_error_that_says_what_to_type(error: Exception) -> None:
    with pytest.raises(UsageError, match=r"does not suffice for batches \(.*\)\. Take less") as e:
        with limits.within_memory("batches", "Take less", {"--batch": "8"}):
            raise error
    assert e.value.instead == {"--batch": "8"} and "\n" not in str(e.value)
    assert "Traceback" not in str(e.value)


@pytest.mark.parametrize("error", ENOUGH, ids=lambda error: str(error)[:20])
def test_no_command_answers_it_with_a_traceback(
    error: Exception, capsys: pytest.CaptureFixture
) -> None:
    def do() -> None:
        raise error

    assert run_cli(do) == 2
    assert "error: the memory does not suffice for this command (" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback() -> None:
    def do() -> None:
        raise RuntimeError("a shape")

    with pytest.raises(RuntimeError, match="a shape"):
        run_cli(do)


@pytest.mark.parametrize("error", [RuntimeError("a shape"), KeyError("memory")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as told:
        with limits.within_memory("batches", "Take less"):
            raise error
    assert told.value is error


def chained(*errors: Exception) -> Exception:
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (chained(ValueError("x"), OSError(errno.EDQUOT, "Disk quota exceeded")), "Disk quota"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (RuntimeError("Data processing error: No space left on device (os error 28)"), "No space"),
        (chained(OSError("hub"), RuntimeError("IO Error (os error 122)")), "os error 122"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), ""),
        (chained(ValueError("28"), OSError("no route")), ""),
    ],
)
def test_what_a_disk_said_is_found_below_what_libraries_say(error: Exception, said: str) -> None:
    found = limits.of_the_disk(error)
    assert found.startswith(said) if said else found == ""


def test_as_many_files_as_the_machine_allows_may_be_open() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        limits.allow_more_files()
        most = limits.FILES if before[1] == resource.RLIM_INFINITY else min(limits.FILES, before[1])
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_many_open_files_say_what_to_type() -> None:
    found = expected(OSError(errno.EMFILE, "Too many open files", "cache/x"))
    assert isinstance(found, StorageError) and "cache/x: Too many open files" in str(found)
    assert "ulimit -n 65536" in str(found)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(handle: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no)
    held = locks.lock(tmp_path), locks.shared_lock(tmp_path, locks.USERS)
    for one in held:
        with pytest.raises(StorageError, match=f"the disk of {tmp_path} gives no file locks") as e:
            one.__enter__()
        assert os.strerror(number) in str(e.value) and "CACHE=" in str(e.value)
    assert locks.lock_holder(tmp_path) is None
