"""Python processes that start in milliseconds: forks of a process that has imported what they need.

    Popen([sys.executable, "-m", "coview.cli", "status"], …)      as subprocess.Popen does it
    run([sys.executable, "-c", CODE], capture_output=True)        as subprocess.run does it

Such a process has an id, signals, streams, a folder and an environment of its own; `-m`, `-c` and
scripts are run as by a fresh interpreter, exit handlers and all. Two things differ, besides that
the server is its parent. What libraries read from the environment while they are
imported is as in the server: where it should be otherwise (AT_IMPORT), a fresh process is made. And
the hashes of strings have the seed of the server. TESTS_FRESH=1 makes every process a fresh one.

python tests/server.py SOCKET MODULE…      the server: imports the modules, then forks as it is told
"""

import atexit
import functools
import gc
import importlib
import inspect
import json
import logging
import multiprocessing.util
import os
import pkgutil
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("base", "cache_specs", "extract", "exchange", "upkeep", "train", "predict", "report")
LIBRARIES = ("pyarrow.parquet", "scipy.stats", "sklearn.linear_model", "torch.distributed", "tyro")
LIBRARIES += ("open_clip", "transformers", "transformers.models.dinov2.modeling_dinov2")
EVERYTHING = (*LIBRARIES, *PACKAGES, "coview.chain", "coview.cli")  # of a package all modules
FIXED = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # torch's threads would not survive a fork
AT_IMPORT = ("ARROW_", "CUDA_", "HF_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "TRANSFORMERS_")
FOLLOWED = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED")  # by _become and _run
FOLLOWED += ("OMP_WAIT_POLICY",)  # a single thread waits for nobody
MOST = 1 << 18  # bytes of an order
RUNS = -1  # instead of an exit status
FORKS = hasattr(os, "pidfd_open") and not os.environ.get("TESTS_FRESH")


# --- who asks


class Server:
    """A process that forks. prefix: what stands before its own command line."""

    def __init__(self, modules: tuple[str, ...] = EVERYTHING, prefix: tuple[str, ...] = ()) -> None:
        self.ask, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.one_at_a_time = threading.Lock()
        words = [*prefix, sys.executable, __file__, str(theirs.fileno()), *modules]
        self.environment = {**os.environ, **FIXED}
        for name in FOLLOWED:  # a fork's own; the test that asks first may have put fakes there
            self.environment.pop(name, None)
        self.process = PLAIN(
            words,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        assert self.ask.recv(MOST) == b"ready", "the server of processes has not begun"

    @classmethod
    def below(cls) -> "Server":
        """A fork of this process, which must be as a server is."""
        found = cls.__new__(cls)
        found.ask, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        found.one_at_a_time = threading.Lock()
        found.environment = dict(os.environ)
        if not os.fork():
            found.ask.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(nothing, stream)
            serve(theirs)
            os._exit(0)
        theirs.close()
        return found

    def told(self, order: dict[str, Any], streams: Sequence[int] = ()) -> int:
        """The answer to an order."""
        with self.one_at_a_time:
            socket.send_fds(self.ask, [json.dumps(order).encode()], streams)
            return int(self.ask.recv(MOST))

    def would_do(self, environment: dict[str, str]) -> bool:
        """Is what libraries read when they are imported as it is asked for?"""
        names = [
            name
            for name in {*environment, *self.environment}
            if name.startswith(AT_IMPORT) and not name.startswith(FOLLOWED)
        ]
        return all(environment.get(name) == self.environment.get(name) for name in names)

    def close(self) -> None:
        self.ask.close()
        assert self.process.wait(60) == 0


@functools.cache
def server() -> Server:
    """The server of this process, from the first time that it is asked for."""
    return Server()


def _deepen() -> None:
    """From now on this process starts Python processes as forks of what it is now."""
    global BELOW, server
    BELOW, made = True, Server.below()
    server = lambda: made  # noqa: E731
    subprocess.Popen = Popen


FORKED_PARTS = """
import sys, torch.multiprocessing
module = sys.modules["torch.multiprocessing.spawn"]
plain = module.start_processes
def start(fn, args=(), nprocs=1, join=True, daemon=False, start_method=""):
    return plain(fn, args, nprocs, join, daemon, "fork")
module.start_processes = start
"""  # run before a command: what it would spawn by torch is forked
BELOW = False  # is this process itself one whose processes are forks?
PLAIN = subprocess.Popen


class Popen(subprocess.Popen):
    """A process forked by a server; a fresh one where only that would do, or that is no Python.

    deep: the Python processes that it starts itself, by subprocess, are such processes too.
    fresh: it starts as a user's process does."""

    def __init__(
        self,
        args: list[Any],
        *more: Any,
        by: Server | None = None,
        deep: bool = False,
        fresh: bool = False,
        **given: Any,
    ) -> None:
        self.by, self.deep, self.fresh, self.forked_by = by, deep or BELOW, fresh, None
        super().__init__(args, *more, **given)

    def _execute_child(self, *args: Any, **given: Any) -> None:
        asked = EXECUTE.bind(self, *args, **given).arguments
        words = asked["args"]
        words = [words] if isinstance(words, str) else [os.fspath(word) for word in words]
        environment = {**FIXED, **os.environ} if asked["env"] is None else dict(asked["env"])
        other = self.fresh or words[0] != sys.executable or asked["pass_fds"]
        by = self.by
        if by is None and FORKS and not other:
            by = server()
        if by is None or not by.would_do(environment):
            super()._execute_child(*args, **given)
            return
        order = {
            "words": words[1:],
            "folder": os.path.abspath(asked["cwd"] or "."),
            "environment": environment,
            "session": asked["start_new_session"],
            "deep": self.deep,
        }
        ends = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
        streams = [own if end == -1 else end for own, end in enumerate(ends)]
        self.forked_by, self.pid = by, by.told(order, streams)
        self.end = os.pidfd_open(self.pid)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in pipes))

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self.forked_by is None:
            return super()._try_wait(wait_flags)
        if not wait_flags:
            select.select([self.end], [], [])
        status = self.forked_by.told({"wait": self.pid})
        if status == RUNS:
            return 0, 0
        os.close(self.end)
        return self.pid, status

    def _internal_poll(self, *args: Any, **given: Any) -> int | None:
        if self.forked_by is None:
            return super()._internal_poll(*args, **given)
        if self.returncode is None:
            done, status = self._try_wait(os.WNOHANG)
            if done:
                self._handle_exitstatus(status)
        return self.returncode


EXECUTE = inspect.signature(subprocess.Popen._execute_child)


def run(args: list[Any], **given: Any) -> subprocess.CompletedProcess:
    """subprocess.run by a Popen of above."""
    said, timeout = given.pop("input", None), given.pop("timeout", None)
    check = given.pop("check", False)
    if said is not None:
        given["stdin"] = subprocess.PIPE
    if given.pop("capture_output", False):
        given |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(args, **given) as process:
        try:
            out, errors = process.communicate(said, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, out, errors)
    if check:
        done.check_returncode()
    return done


# --- who forks


def serve(ask: socket.socket) -> None:
    """Fork as often as it is asked, and say how the forks ended."""
    while True:
        message, streams, _, _ = socket.recv_fds(ask, MOST, 3)
        if not message:
            return
        order = json.loads(message)
        if "wait" in order:
            done, status = os.waitpid(order["wait"], os.WNOHANG)
            ask.send(str(status if done else RUNS).encode())
        elif child := os.fork():
            ask.send(str(child).encode())
        else:
            ask.close()
            _become(order, streams)
        for stream in streams:
            os.close(stream)


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """What the order asks for; never returns."""
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
    for stream in streams:
        os.close(stream)
    if order["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    tempfile.tempdir = None
    random.seed()
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    if order["deep"]:
        _deepen()
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty(), write_through=unbuffered)
    code = 1
    try:
        _run(order["words"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    threading._shutdown()  # as an interpreter ends, without taking its memory apart
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 120
    sys.stderr.flush()
    os._exit(code & 255)


def _run(words: list[str]) -> None:
    """What `python WORDS` runs."""
    while words[0] in ("-u", "-W"):
        del words[: 1 + (words[0] == "-W")]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    for path in paths:
        if path and path not in sys.path:
            sys.path.insert(0, path)
            if os.path.exists(site := os.path.join(path, "sitecustomize.py")):
                runpy.run_path(site)
    kind = words[0]
    first = {"-m": os.getcwd(), "-c": ""}.get(kind, os.path.dirname(os.path.abspath(kind)))
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, first)
    if kind == "-m":
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


def _import(name: str) -> None:
    """A module; of a package all modules, but those that need what is not installed."""
    module = importlib.import_module(name)
    if name in PACKAGES:
        for found in pkgutil.walk_packages(module.__path__, f"{name}."):
            try:
                importlib.import_module(found.name)
            except ImportError:
                pass


def _forget_exits() -> None:
    """What libraries would do at the end has no point in a fork, but costs it a third of its time;
    those of Python itself stay."""
    atexit._clear()
    weakref.finalize._registered_with_atexit = False
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)


def _threads() -> list[str]:
    folder = Path("/proc/self/task")
    return (
        [(one / "comm").read_text().strip() for one in folder.iterdir()] if folder.exists() else []
    )


def main() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for those who ask; they close the socket
    sys.path.insert(0, str(ROOT))
    for name in sys.argv[2:]:
        _import(name)
    del sys.path[:2]
    threads = [name for name in _threads() if name != "jemalloc_bg_thd"]  # which survives a fork
    assert len(threads) < 2, f"threads do not survive a fork: {threads}"
    _forget_exits()
    gc.collect()
    gc.freeze()
    ask = socket.socket(fileno=int(sys.argv[1]))
    ask.send(b"ready")
    serve(ask)
    os._exit(0)  # not all libraries can be taken apart


if __name__ == "__main__":
    main()
