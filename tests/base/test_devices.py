"""--device, as it is typed: one function answers for all commands and for Python."""

import sys

import numpy as np
import pytest

import base.devices
from base.devices import described, devices
from base.errors import UsageError
from coview import ProbeClassifier
from report.command import command as report
from report.config import ReportConfig
from train.algorithm.peers import choose_device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many of each kind torch sees."""
    has = {"cuda": 0, "mps": 0, "xpu": 0}
    monkeypatch.setattr("torch.cuda.device_count", lambda: has["cuda"])
    monkeypatch.setattr("torch.xpu.device_count", lambda: has["xpu"])
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: has["mps"] > 0)
    return has


def test_without_a_gpu(machine: dict[str, int]) -> None:
    assert devices("auto") == devices("cpu") == ["cpu"] and devices("auto", 3) == 3 * ["cpu"]
    for name, what in (("cuda", "CUDA"), ("cuda:0", "CUDA"), ("mps", "Apple"), ("xpu", "Intel")):
        with pytest.raises(UsageError, match=f"DEVICE={name}, but torch sees no .*{what}") as error:
            devices(name)
        assert error.value.instead == {"DEVICE": None}


def test_gpus_are_numbered(machine: dict[str, int]) -> None:
    machine |= {"cuda": 3, "xpu": 1, "mps": 1}
    assert devices("auto") == devices("cuda") == ["cuda:0"]
    assert devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:2"] == devices("auto", 3)
    assert devices("cuda:2") == ["cuda:2"] and devices("cuda:02") == ["cuda:2"]
    assert devices("mps") == ["mps"] and devices("xpu") == ["xpu"] and devices("xpu:0") == ["xpu:0"]
    assert devices("cpu", 4) == 4 * ["cpu"]


@pytest.mark.parametrize(
    ("device", "gpus", "message", "instead"),
    [
        (
            "cuda:5",
            1,
            "this machine has 2: cuda:0, cuda:1 .they count",
            {"DEVICE": "cuda:1"},
        ),
        ("cuda:2", 1, "this machine has 2", {"DEVICE": "cuda:1"}),
        ("xpu:1", 1, "this machine has 1: xpu:0", {"DEVICE": "xpu:0"}),
        ("cuda", 3, "GPUS=3, but this machine has 2; use GPUS=2", {"GPUS": "2"}),
        ("auto", 9, "GPUS=9, but this machine has 2; use GPUS=2", {"GPUS": "2"}),
        ("xpu", 2, "GPUS=2, but this machine has 1", {"GPUS": "1"}),
        ("cuda:1", 2, "GPUS=2 with DEVICE=cuda:1, which is one", {"DEVICE": None}),
        ("gpu", 1, "DEVICE=gpu: it is one of auto, cpu, cuda", {"DEVICE": "cuda"}),
        ("GPU:0", 1, "it is one of", {"DEVICE": "cuda"}),
        ("cdua", 1, "it is one of", {"DEVICE": "cuda"}),
        ("CUDA", 1, "it is one of", {"DEVICE": "cuda"}),
        ("cuda:", 1, "it is one of", {"DEVICE": "cuda"}),
        ("cuda:-1", 1, "it is one of", {"DEVICE": "cuda"}),
        ("cuda:x", 1, "it is one of", {"DEVICE": "cuda"}),
        ("cpu:0", 1, "it is one of", {"DEVICE": "cpu"}),
        ("CPU", 1, "it is one of", {"DEVICE": "cpu"}),
        ("metal", 1, "Torch sees no GPU of Apple here", {"DEVICE": "auto"}),
        ("7", 1, "it is one of", {}),
        ("", 1, "it is one of", {}),
    ],
)
def test_what_is_no_device_is_not_another_one(
    device: str, gpus: int, message: str, instead: dict, machine: dict[str, int]
) -> None:
    """And what is to be typed instead is one."""
    machine |= {"cuda": 2, "xpu": 1}
    with pytest.raises(UsageError, match=message) as caught:
        devices(device, gpus)
    assert caught.value.instead == instead
    words = {"DEVICE": device, "GPUS": str(gpus)}
    for name, value in instead.items():
        words[name] = value or {"DEVICE": "auto"}[name]
    if instead:
        assert devices(words["DEVICE"], int(words["GPUS"]))


def test_no_gpu_here_is_said_with_what_is_near(machine: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="Torch sees no CUDA GPU here") as caught:
        devices("gpu")
    assert devices(caught.value.instead["DEVICE"]) == ["cpu"]


def test_each_rank_on_this_machine_has_its_own(
    machine: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine["cuda"], chosen = 2, []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(choose_device("auto", 8)) == "cuda:1" == str(chosen[0])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="GPUS=4, but this machine has 2"):
        choose_device("cuda", 8)


def test_every_command_and_the_classes_ask(
    machine: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """Whoever takes a device calls this function; here those without a test of their own."""
    (tmp_path / "demo").mkdir()
    monkeypatch.setattr("train.run.rundir.run_folder", lambda runs, run: tmp_path / run)
    with pytest.raises(UsageError, match="DEVICE=gpu"):
        report(ReportConfig(run="demo", runs=str(tmp_path), device="gpu"), {})
    rows = np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="device=cuda:5, but torch sees no CUDA GPU here; use dev"):
        ProbeClassifier(device="cuda:5", validation_fraction=0).fit(rows, [0, 1, 0, 1])


def test_without_a_driver_torch_need_not_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import takes seconds. What is imported already is asked in any case."""
    assert base.devices._may_have_cuda()
    loaded: list[str] = []
    there: list[str] = []

    def load(name: str) -> object:
        loaded.append(name)
        if name not in there:
            raise OSError(f"{name}: cannot open shared object file")
        return object()

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr("ctypes.CDLL", load)
    monkeypatch.setattr("os.path.exists", lambda path: path in there)
    assert not base.devices._may_have_cuda() and loaded == ["libcuda.so.1"]
    assert devices("auto", 2) == ["cpu", "cpu"]
    for one in ("libcuda.so.1", "/dev/kfd"):
        there[:] = [one]
        assert base.devices._may_have_cuda(), one
    assert "torch" not in sys.modules


def test_a_gpu_is_recorded_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"the GPU {device}")
    assert described("cuda:1") == "the GPU cuda:1"
    assert described("cpu") == "cpu" and described("mps") == "mps"
