"""Starts servers that die where a test wants it: each a process of its own, forked from one that is already warm.

What must live here: the forge (a process that a test talks to over its standard input and output) and what it does to
a server: a watcher that kills its own process at a point of ``engine/points.py``, and a disk that forgets what was not
synced (`tests.crash.disk`). What must not: checks, clients. The server itself is `loomgate.cli.main`, unchanged.

One JSON object a line. In: ``{"id", "args", "env", "cwd", "log", "trace", "crash": [point, n] | null, "disk": folder
| null, "bound": bool}``. Out: ``{"id", "pid"}``, then ``{"pid", "line"}`` for each line that the server prints and
``{"pid", "status"}`` when it is gone (negative: the signal). When the input ends, so does every server.
"""

import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import sys
from collections import Counter
from typing import Any

from loomgate.cli import main
from loomgate.engine import points

# What `serve` imports when it runs: imported once here, so that a start is a fork.
_WARM = (
    "loomgate.app",
    "uvicorn",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
    "tests.crash.disk",
)


def _watch(trace: str, crash: tuple[points.Point, int] | None) -> None:
    """Write every point that is reached to the file ``trace``, and end the process at the one of ``crash``."""
    written = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    seen: Counter[points.Point] = Counter()

    def reached(point: points.Point) -> None:
        seen[point] += 1
        os.write(written, f"{point}\n".encode())
        if crash == (point, seen[point]):
            os.kill(os.getpid(), signal.SIGKILL)

    points.watch(reached)


def _bind() -> None:
    """Be bound by the permissions of files even as the superuser: give up every capability (capset(2), Linux)."""
    if os.geteuid() == 0:
        version_3, this_process = 0x20080522, 0
        if ctypes.CDLL(None, use_errno=True).capset(
            (ctypes.c_uint32 * 2)(version_3, this_process), (ctypes.c_uint32 * 6)()
        ):
            raise OSError(ctypes.get_errno(), "capset")


def _become(order: dict[str, Any], output: int) -> None:
    """Be the server of ``order`` until it ends: never returns."""
    code = 70
    try:
        os.dup2(output, 1)
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(order["cwd"])
        os.environ.update(order["env"])
        if order["disk"] is not None:
            from tests.crash import disk

            disk.install(order["disk"])
        crash = order["crash"]
        _watch(order["trace"], None if crash is None else (crash[0], crash[1]))
        if order["bound"]:
            _bind()
        code = main(order["args"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


class _Forge:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._outputs: dict[int, tuple[int, bytes]] = {}  # pipe -> (pid, the line so far)
        self._alive: set[int] = set()
        self._orders = b""

    def run(self) -> None:
        woken, wakes = os.pipe()
        for end in (woken, wakes):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        self._selector.register(0, selectors.EVENT_READ)
        self._selector.register(woken, selectors.EVENT_READ)
        gc.freeze()
        while True:
            for key, _ in self._selector.select():
                if key.fd == 0:
                    given = os.read(0, 65536)
                    if not given:
                        self._end()
                        return
                    *orders, self._orders = (self._orders + given).split(b"\n")
                    for order in orders:
                        self._start(json.loads(order))
                elif key.fd == woken:
                    os.read(woken, 4096)
                    self._reap()
                elif key.fd in self._outputs:  # else it was read to its end a moment ago, with its server's
                    self._read(key.fd)

    def _start(self, order: dict[str, Any]) -> None:
        output, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become(order, theirs)
        os.close(theirs)
        os.set_blocking(output, False)
        self._outputs[output] = (pid, b"")
        self._alive.add(pid)
        self._selector.register(output, selectors.EVENT_READ)
        self._tell({"id": order["id"], "pid": pid})

    def _read(self, output: int) -> None:
        pid, before = self._outputs[output]
        try:
            given = os.read(output, 65536)
        except BlockingIOError:
            return
        *lines, rest = (before + given).split(b"\n")
        for line in lines:
            self._tell({"pid": pid, "line": line.decode()})
        self._outputs[output] = (pid, rest)
        if not given:
            self._selector.unregister(output)
            os.close(output)
            del self._outputs[output]

    def _reap(self) -> None:
        while self._alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._alive.discard(pid)
            for output in [fd for fd, (owner, _) in self._outputs.items() if owner == pid]:
                self._read(output)
            self._tell({"pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def _end(self) -> None:
        for pid in self._alive:
            os.kill(pid, signal.SIGKILL)

    @staticmethod
    def _tell(what: dict[str, Any]) -> None:
        os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    for name in _WARM:
        importlib.import_module(name)
    _Forge().run()
