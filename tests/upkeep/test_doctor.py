"""make doctor: the real checks on this machine, and each thing that can be wrong, made so."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, importing
from packaging.requirements import Requirement

from base import native
from base.errors import CoviewError
from upkeep import doctor, machine, torch_checks
from upkeep.machine import FINE, NOTED, WRONG, Finding


def test_a_fit_machine_in_json(tmp_path: Path, command: Callable) -> None:
    done = command("doctor", "--cache", tmp_path, "--json")
    found = json.loads(done.stdout)
    names = {finding["name"]: finding for finding in found["findings"]}
    assert (found["command"], found["ok"], found["exit_code"]) == (
        "doctor",
        done.returncode == 0,
        done.returncode,
    )
    assert {
        "versions",
        "devices",
        "torchvision",
        "gloo",
        "optional",
        "disk",
        "space",
        "memory",
        "malloc",
        "limits",
        "hub",
        "weights",
    } <= names.keys()
    assert (
        names["gloo"]["state"] == names["torchvision"]["state"] == names["disk"]["state"] == FINE
    ), names
    assert (
        "torch 2." in names["versions"]["text"]
        and "simplejpeg 1." in names["versions"]["text"]
        and "HF_HUB_OFFLINE is set" in names["hub"]["text"]
        and not list(tmp_path.iterdir())
    )
    assert found["ok"] == (WRONG not in {finding["state"] for finding in found["findings"]})


def test_versions_below_the_floors_and_missing_packages_are_named_with_the_command() -> None:
    lines = ("torch>=2.11", "pillow>=999", "nosuchpackage>=1", "numpy>=2.0")
    found = doctor.check_packages([Requirement(line) for line in lines])
    wrong = {finding.name: finding for finding in found if finding.state == WRONG}
    assert wrong.keys() == {"pillow", "nosuchpackage"}
    assert "not installed, needed >=1" in wrong["nosuchpackage"].text
    assert wrong["pillow"].mend == f"{sys.executable} -m pip install 'pillow>=999'"


def test_the_floors_are_those_of_the_installation_without_its_extras() -> None:
    names = {need.name for need in doctor.floors()}
    assert {"torch", "zarr", "h5py"} <= names and not names & {"onnx", "wandb", "pytest"}
    found = doctor.check_packages(doctor.floors())
    assert not [finding for finding in found if finding.state == WRONG]


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import time; time.sleep(999)", "it hangs: no answer in 1 s"),
        ("raise OSError('no such library')", "OSError: no such library"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it died with code -11"),
        ("import os, time\nif os.fork(): time.sleep(999)\ntime.sleep(999)", "it hangs"),
    ],
)
def test_a_check_that_hangs_raises_or_dies_is_reported(code: str, what: str) -> None:
    asked = machine.OwnProcess(code, seconds=1)
    said, error = asked()
    assert said == "" and what in error
    assert not left_of(asked.process.pid)  # nor is anything left of its children


def processes() -> list[tuple[str, int]]:
    """(state, process group) of all."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            found.append((state, int(group)))
    return found


def left_of(group: int) -> list[str]:
    """The states of the processes of a group that are still there after a while: those of a killed
    one die when the kernel gets to them."""
    for _ in range(100):
        left = [state for state, of in processes() if of == group and state != "Z"]
        if not left:
            break
        time.sleep(0.1)
    return left


def test_ranks_that_cannot_meet_are_reported() -> None:
    with pytest.raises(RuntimeError, match="rank 0: "):
        torch_checks.add_up("gloo", 2, "tcp://192.0.2.1:9", seconds=2)  # an address of nobody
    finding = machine.spoke("gloo", "2 processes", "RuntimeError: rank 0: …")
    assert finding.state == WRONG and finding.mend.endswith("make doctor"), finding


PROBES = """
import os, signal, sys, time
from upkeep import torch_checks
from upkeep.torch_checks import main

def dies(): os.kill(os.getpid(), signal.SIGSEGV)
def hangs(): time.sleep(999)
def raises(): raise OSError("no such library")
def light():
    torch_checks.torchvision()
    return [name for name in ("torchvision.models", "torch._dynamo") if name in sys.modules]
torch_checks.CHECKS.update(dies=dies, hangs=hangs, raises=raises, light=light)
main(sys.argv[1:])
"""


@pytest.mark.many
def test_of_checks_in_one_process_none_hides_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One hangs, one dies, one raises: the fourth is answered all the same, in any order."""
    monkeypatch.setattr(machine, "CHECKS", machine.OURS + PROBES)
    asked = machine.TorchChecks("hangs", "dies", "raises", "gloo", "light", seconds=8)
    assert asked("gloo") == (2, "")
    assert asked("light") == ([], "")  # which would take as long as torch
    assert asked("hangs") == (None, "it hangs: no answer in 8 s")
    assert asked("dies") == (None, "it died with code -11")
    assert asked("raises") == (None, "OSError: no such library")
    group = asked.process.process.pid
    assert not left_of(group)


def test_a_torch_that_cannot_be_imported_is_said_of_each_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "CHECKS", "raise ImportError('libcudart')")
    asked = machine.TorchChecks("gloo", "devices")
    assert asked("devices") == asked("gloo") == (None, "ImportError: libcudart")


def test_a_torchvision_of_another_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_checks, "requires", lambda name: ["torch==1.0", "numpy"])
    with pytest.raises(RuntimeError, match=r"torchvision .* needs torch ==1.0, found 2"):
        torch_checks.torchvision()
    finding = machine.check_torchvision("", "RuntimeError: torchvision 1 needs torch ==1.0")
    assert finding.state == WRONG and "pip install --upgrade torch torchvision" in finding.mend
    assert machine.check_torchvision("0.29", "").text == "0.29 works with this torch"


def test_a_torchvision_without_its_operators_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its library was built for another torch, and cannot be loaded."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)

    def unloadable(path: str) -> None:
        raise OSError("undefined symbol")

    monkeypatch.setattr(torch_checks.torch.ops, "load_library", unloadable)
    with pytest.raises(RuntimeError, match="torchvision versions are incompatible"):
        torch_checks.torchvision()


ABOUT = {
    "torch": "2.15.0",
    "built_for": None,
    "threads": 2,
    "gpus": [],
}


def test_what_torch_says_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver", lambda: "")
    assert machine.check_devices(ABOUT, "").state == NOTED
    assert machine.check_devices({}, "ImportError: libcudart").state == WRONG
    monkeypatch.setattr(machine, "_driver", lambda: "570.1")
    lost = machine.check_devices(ABOUT, "")
    assert (
        lost.state == WRONG
        and "driver 570.1" in lost.text
        and "CPUs only" in lost.text
        and lost.mend
    )
    gpu = {"name": "H100", "bytes": 80e9, "free": 70e9, "capability": "9.0"}
    there = machine.check_devices({**ABOUT, "built_for": "13.0", "gpus": [gpu]}, "")
    assert there.state == FINE and "H100, 80 GB (70 free), compute 9.0; driver 570.1" in there.text


def test_a_full_or_closed_disk_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.state for finding in doctor.check_disk(tmp_path / "not" / "yet", 1 << 20)] == [
        FINE,
        FINE,
    ] and not list(tmp_path.iterdir())
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000)
    )
    assert [finding.state for finding in doctor.check_disk(tmp_path, 1 << 20)] == [FINE, WRONG]
    assert [finding.state for finding in doctor.check_disk(Path("/proc"), 1 << 20)] == [WRONG]


def test_few_open_files_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    assert (
        doctor.check_limits()[0].state == WRONG
        and doctor.check_limits()[0].mend == "ulimit -n 4096 && make doctor"
    )


def test_what_is_wrong_is_listed_with_its_command_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(
        doctor,
        "examine",
        lambda cache: [Finding("a", FINE, "fine"), Finding("b", WRONG, "broken", "make b")],
    )
    told: dict = {}
    with pytest.raises(CoviewError, match=r"1 thing to mend: b; .*type: make doctor") as raised:
        doctor.doctor(doctor.DoctorConfig(), told)
    assert (
        raised.value.exit_code == 1
        and "  b: broken\n    make b" in capsys.readouterr().out
        and len(told["findings"]) == 2
    )


def test_a_disk_that_hangs_is_told_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.OwnProcess
    monkeypatch.setattr(
        doctor,
        "OwnProcess",
        lambda code, *given: real(code, *given, seconds=2 if code == doctor.DISK else 60),
    )
    monkeypatch.setattr(doctor, "DISK", "import time; time.sleep(99)")
    found = {finding.name: finding for finding in doctor.examine(tmp_path)}
    assert (
        found["disk"].state == WRONG
        and "hangs: no answer in 2 s" in found["disk"].text
        and "CACHE=" in found["disk"].mend
        and "space" not in found
    )


def test_from_a_wheel_in_a_folder_of_names_that_are_others_too(tmp_path: Path) -> None:
    """No checkout around it: the floors stand in the metadata. And nobody's own train.py, json.py
    or torch.py is taken for what it is called."""
    site, mine = tmp_path / "site-packages", tmp_path / "mine"
    for room in ("base", "cache_specs", "extract", "upkeep", "coview"):
        shutil.copytree(ROOT / room, site / room, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = site / "coview-9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    lines = ("Metadata-Version: 2.1", "Name: coview", "Version: 9.9", "Requires-Dist: nosuch>=1")
    extra = 'Requires-Dist: other>=1; extra == "more"'
    metadata.write_text("\n".join([*lines, extra, ""]))
    mine.mkdir()
    for name in ("train", "json", "torch", "upkeep", "dataclasses", "datetime"):
        (mine / f"{name}.py").write_text(f"raise SystemExit('this is my own {name}')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "coview.cli", "doctor", "--cache", "cache", "--json"],
        cwd=mine,
        env=importing(site),
        capture_output=True,
        text=True,
    )
    assert "my own" not in done.stdout + done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    for name in ("versions", "torchvision", "gloo", "disk"):
        assert findings[name]["state"] == FINE, findings
    assert findings["nosuch"]["text"] == "not installed, needed >=1" and "other" not in findings
    assert len(list(mine.iterdir())) == 6  # nothing is left there


def test_files_that_are_not_installed_are_examined_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(name: str) -> None:
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", unknown)
    assert doctor.floors() == []


def test_a_small_shared_memory_is_worth_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=67_108_864))
    found = {finding.name: finding for finding in doctor.check_memory()}
    assert found["shared memory"].state == NOTED
    assert "67 MB free in /dev/shm: images go to a GPU through" in found["shared memory"].text


def test_what_malloc_does_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "keep_memory", lambda: True)
    kept = doctor.check_malloc()
    assert kept.state == FINE and "free (COVIEW_KEEP_MEMORY=0 gives it back)" in kept.text
    monkeypatch.setattr(native, "keep_memory", lambda: False)
    for name in (native.KEEP, *native.OF_MALLOC):
        monkeypatch.delenv(name, raising=False)
    assert "given back (no glibc)" in doctor.check_malloc().text
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    given = doctor.check_malloc()
    assert given.state == NOTED and "given back (MALLOC_TRIM_THRESHOLD_): conv" in given.text
    monkeypatch.setenv(native.KEEP, "0")
    assert "given back (COVIEW_KEEP_MEMORY=0)" in doctor.check_malloc().text


@pytest.mark.parametrize(
    ("able", "said"),
    [(True, "CPU with 7 cores, fast in float32 and bfloat16;"), (False, "no instructions for")],
)
def test_what_a_processor_is_fast_in_is_told(
    able: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_driver", lambda: "")
    monkeypatch.setattr(native, "has_bfloat16", lambda: able)
    monkeypatch.setattr(native, "cores", lambda: 7)
    assert said in machine.check_devices(ABOUT, "").text
