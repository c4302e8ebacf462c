"""What `make doctor` asks of torch, in a process of its own that imports it once.

    python -P -c … gloo torchvision devices      a line [name, what was found, error] as each ends

Each check is a process forked from that one before anything begins CUDA: one that raises or dies is
told so, and one that hangs holds up no other. Who asked waits as long as it likes, and ends them.
"""

import datetime
import importlib
import importlib.util
import json
import multiprocessing
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import requires, version
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

FORK = multiprocessing.get_context("fork")
RANKS_MEET_S = 20.0


def main(names: Sequence[str]) -> None:
    """Run the checks of these names side by side."""
    running = {}
    for name in names:
        answer, tell = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_told, args=(CHECKS[name], tell))
        process.start()
        tell.close()  # so that the end of the check is the end of the pipe
        running[answer] = name, process
    while running:
        ended = wait(running)
        for answer in [one for one in running if one in ended]:
            name, process = running.pop(answer)
            print(json.dumps([name, *_said(answer, process)]), flush=True)


def _told(check: Callable[[], Any], tell: Connection) -> None:
    try:
        tell.send((check(), ""))
    except BaseException as error:
        tell.send((None, _first_line(error)))


def _said(answer: Connection, process: multiprocessing.process.BaseProcess) -> tuple[Any, str]:
    """What a process found, and why nothing."""
    try:
        return answer.recv()
    except EOFError:
        process.join()
        return None, f"it died with code {process.exitcode}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def devices() -> dict[str, Any]:
    """Each GPU, after a product on it."""
    cuda = torch.cuda.is_available()
    gpus = []
    for i in range(torch.cuda.device_count() if cuda else 0):
        free, total = torch.cuda.mem_get_info(i)
        ones = torch.ones(64, 64, device=f"cuda:{i}")
        (ones @ ones).sum().item()
        major, minor = torch.cuda.get_device_capability(i)
        name = torch.cuda.get_device_name(i)
        gpu = {"name": name, "bytes": total, "free": free, "capability": f"{major}.{minor}"}
        gpus.append(gpu)
    return {
        "torch": torch.__version__,
        "built_for": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def torchvision() -> str:
    """The version of the one that fits this torch. Its operators are loaded and asked, without its
    models and transforms, which would take as long as torch. Raises what is wrong."""
    have = version("torchvision")
    for line in requires("torchvision") or ():
        need = Requirement(line)
        if need.name == "torch" and not need.specifier.contains(torch.__version__, True):
            raise RuntimeError(
                f"torchvision {have} needs torch {need.specifier}, found {torch.__version__}"
            )
    package = importlib.util.find_spec("torchvision")
    if package is None:
        raise ModuleNotFoundError("No module named 'torchvision'")
    sys.modules["torchvision"] = importlib.util.module_from_spec(package)
    importlib.import_module("torchvision.extension")._assert_has_ops()
    importlib.import_module("torchvision._meta_registrations")
    torch.ops.torchvision.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    return have


def gloo() -> int:
    """Two processes of this machine."""
    return add_up("gloo", 2, _here())


def nccl() -> int:
    """On two GPUs, or on the only one."""
    return add_up("nccl", min(2, torch.cuda.device_count()), _here())


def _here() -> str:
    """An address where nobody is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def add_up(backend: str, ranks: int, address: str, seconds: float = RANKS_MEET_S) -> int:
    """So many processes add up a tensor, with NCCL each on a GPU of its own. Returns how many;
    raises what the first of them says that could not."""
    running = []
    for rank in range(ranks):
        answer, tell = FORK.Pipe(duplex=False)
        given = backend, rank, ranks, address, seconds
        process = FORK.Process(target=_told, args=(lambda given=given: _rank(*given), tell))
        process.start()
        tell.close()
        running.append((answer, process))
    try:
        for rank, (answer, process) in enumerate(running):
            if error := _said(answer, process)[1]:
                raise RuntimeError(f"rank {rank}: {error}")
    finally:
        for _, process in running:
            process.kill()  # those that wait for one that failed
    return ranks


def _rank(backend: str, rank: int, ranks: int, address: str, seconds: float) -> None:
    at = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    patience = datetime.timedelta(seconds=seconds)
    dist.init_process_group(
        backend, init_method=address, rank=rank, world_size=ranks, timeout=patience
    )
    x = torch.full((1000,), rank + 1.0, device=at)
    dist.all_reduce(x)
    found, expected = x.sum().item(), 1000 * ranks * (ranks + 1) / 2
    dist.destroy_process_group()
    if found != expected:
        raise RuntimeError(f"the sum is {found}, not {expected}")


CHECKS: dict[str, Callable[[], Any]] = {
    "devices": devices,
    "torchvision": torchvision,
    "gloo": gloo,
    "nccl": nccl,
}
