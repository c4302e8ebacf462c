"""What malloc and OpenMP are told, and what a processor says of itself."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from base import commands, native
from cache_specs.spec import load_spec
from extract import workers
from extract.models.backbones import load_backbone
from extract.models.weights import find_weights

FREED = """
import ctypes, pathlib
from base import native

kept, libc = native.keep_memory(), ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for size in (64 << 20, 192 << 20):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
print(kept, pages * 4096 > 192 << 20)
"""
GLIBC = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not GLIBC, reason="it has no such switch")
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, True),
        ({"COVIEW_KEEP_MEMORY": "1"}, True),
        ({"COVIEW_KEEP_MEMORY": "0"}, False),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
    ],
)
def test_memory_that_is_freed_stays_with_the_process_unless_a_variable_says_no(
    given: dict[str, str], kept: bool
) -> None:
    """As the kernel has it, of a process that freed 64 MB and 192 MB."""
    environment = {**os.environ, **given}
    words = [sys.executable, "-c", FREED]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout.decode().split() == [str(kept), str(kept)]


class Libc:
    """glibc as ctypes has it; `most` is the largest threshold that it takes."""

    gnu_get_libc_version = "2.31"

    def __init__(self, most: int, trims: bool = True) -> None:
        self.most, self.trims, self.told = most, trims, []

    def mallopt(self, which: int, value: int) -> int:
        self.told.append((which, value))
        return int(value <= self.most if which == native.M_MMAP_THRESHOLD else self.trims)


@pytest.mark.parametrize(
    ("libc", "told", "kept"),
    [
        (Libc(1 << 31), [(-3, 1 << 28), (-1, -1)], True),
        (Libc(1 << 25), [(-3, 1 << 28), (-3, 1 << 25), (-1, -1)], True),
        (Libc(0), [(-3, 1 << 28), (-3, 1 << 25)], False),
        (Libc(1 << 31, trims=False), [(-3, 1 << 28), (-1, -1)], False),
        (SimpleNamespace(told=[]), [], False),
    ],
    ids=["now", "older", "refuses", "does not keep", "musl or macOS"],
)
def test_what_a_c_library_refuses_is_not_claimed(
    libc: Libc, told: list, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (native.KEEP, *native.OF_MALLOC):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(native.ctypes, "CDLL", lambda name: libc)
    assert native.keep_memory() is kept and libc.told == told


def test_what_is_free_may_be_given_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc(1 << 31)
    monkeypatch.setattr(native.ctypes, "CDLL", lambda name: libc)
    for name in (native.KEEP, *native.OF_MALLOC):
        monkeypatch.delenv(name, raising=False)
    assert native.keep_no_memory() and libc.told == [(-3, 1 << 17), (-1, 1 << 17)]
    monkeypatch.setenv(native.OF_MALLOC[0], "4096")  # the user's word
    assert not native.keep_no_memory() and len(libc.told) == 2


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_idle_threads_give_way_unless_the_user_says_otherwise(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", own or "")
    if own is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    native.give_way()
    assert os.environ["OMP_WAIT_POLICY"] == (own or "PASSIVE")


def test_every_command_is_told_before_it_imports_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    told = []
    monkeypatch.setattr(native, "give_way", lambda: told.append("told"))
    monkeypatch.chdir(tmp_path)
    assert commands.main("coview.cli:COMMANDS", ["status"]) == 2
    assert told == ["told"] and "there is no cache" in capsys.readouterr().err


def test_every_process_that_decodes_or_embeds_keeps_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever embeds loads a model."""
    told = []
    monkeypatch.setattr(native, "keep_memory", lambda: told.append("told"))
    monkeypatch.setattr(workers.signal, "signal", lambda *given: None)
    monkeypatch.setattr(workers.queues, "Queue", SimpleNamespace())
    workers.begin_work(0)
    assert told == ["told"]
    spec = load_spec("tiny-clip")
    load_backbone(spec, find_weights(spec, None)[0], "cpu")
    assert told == ["told", "told"]


@pytest.mark.parametrize(
    ("said", "has"),
    [
        ("model name\t: x\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n", True),
        ("flags\t\t: avx512f amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("flags\t\t: fpu avx avx2 fma f16c\n", False),
        ("flags\t\t: avx512f amx_tile avx512bw\n", False),
        ("model name\t: bf16 avx512_bf16\nflags\t\t: avx2\n", False),
        ("", False),
        (None, False),
    ],
)
def test_a_processor_with_instructions_for_bfloat16(
    said: str | None, has: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if said is not None:
        (tmp_path / "cpuinfo").write_text(said)
    monkeypatch.setattr(native, "PROCESSOR", tmp_path / "cpuinfo")
    assert native.has_bfloat16() is has


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 24),
        ("400000 100000", 4),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 24),
        ("nonsense", 24),
        (None, 24),
    ],
)
def test_cores_are_those_that_the_process_and_its_container_may_use(
    quota: str | None, cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(native, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(24))
    assert native.cores() == cores
