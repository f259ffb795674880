"""A backup made under load, restored elsewhere: what docs/deploy.md says, done (backup, restore, and going on)."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loomgate import clock
from tests.cluster.conftest import SEAL_KEY, Api, Nodes
from tests.crash.rig import CLEAN, Forge, until
from tests.support.engines import Databases, PostgresServer

Object = dict[str, Any]
SLOW = "/say one\n/wait 3\n/say two"


class Load:
    """What clients do to one node: threads, messages and quick runs, each noted when it was answered."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stopping = threading.Event()
        self.done: list[tuple[str, str, str]] = []  # thread, message, run: all acknowledged
        self.failed: BaseException | None = None

    def _work(self) -> None:
        try:
            assistant = self._api.ask("POST", "/assistants", {"model": "scripted"})["id"]
            while not self._stopping.is_set():
                thread = self._api.thread("/say first")
                message = self._api.ask("POST", f"/threads/{thread}/messages", {"role": "user", "content": "/say x"})
                run = self._api.ask("POST", f"/threads/{thread}/runs", {"assistant_id": assistant})
                self.done.append((thread, str(message["id"]), str(run["id"])))
        except BaseException as error:  # said by the test's own thread
            self.failed = error

    @contextmanager
    def going(self) -> Iterator[None]:
        """While the block runs, the clients work."""
        worker = threading.Thread(target=self._work)
        worker.start()
        try:
            yield
        finally:
            self._stopping.set()
            worker.join(30)
        assert self.failed is None, self.failed


def backed_up(make: Callable[[], None], api: Api, load: Load) -> tuple[Object, list[tuple[str, str, str]]]:
    """Make a backup in the midst of work; a run that was under way then, and what had been acknowledged before."""
    with load.going():
        run = api.run(thread := api.thread(SLOW))
        until(lambda: api.said(thread), 15, "the first word")
        until(lambda: len(load.done) >= 10, 30, "some load")
        before = list(load.done)
        make()
        at = len(load.done)
        until(lambda: len(load.done) > at, 30, "that the server goes on after the backup")
    return run, before


def check(api: Api, run: Object, before: list[tuple[str, str, str]]) -> None:
    """All of it is there, every run comes to its end, and new work is done."""
    for thread, message, _ in before:
        assert message in [row["id"] for row in api.ask("GET", f"/threads/{thread}/messages")["data"]]
    for thread, _, id in before:
        api.becomes({"id": id, "thread_id": thread}, "completed")
    api.becomes(run, "completed")
    assert api.said(run["thread_id"]) == ["one\ntwo"]
    assert api.steps(run) == ["completed"]
    new = api.run(thread := api.thread("/say after"))
    api.becomes(new, "completed")
    assert api.said(thread) == ["after"]


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A ``loomgate`` command, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "loomgate", *words],
        env={**CLEAN, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def tool(postgres: PostgresServer, name: str, *words: str) -> None:
    """One of PostgreSQL's own programs, run to its end."""
    done = subprocess.run([postgres.programs / name, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_dump_of_postgresql_under_load_restores_to_a_cluster_that_goes_on(
    postgres: PostgresServer, make_nodes: Callable[[str], Nodes], tables: Callable[[str], None], tmp_path: Path
) -> None:
    tables(postgres.url())
    old = make_nodes(postgres.url())
    server, workers = old.serve(), [old.worker(), old.worker()]
    api = old.api(server)
    dump = tmp_path / "loomgate.dump"
    run, before = backed_up(
        lambda: tool(postgres, "pg_dump", "--format=custom", f"--file={dump}", f"--dbname={postgres.url()}"),
        api,
        Load(old.api(server)),
    )
    for node in (server, *workers):
        node.send(signal.SIGKILL)
        node.wait()

    url = asyncio.run(Databases(postgres.url()).empty())
    tool(postgres, "pg_restore", "--exit-on-error", "--no-owner", f"--dbname={url}", str(dump))
    done = command("migrate", LOOMGATE_DATABASE_URL=url)
    assert done.stdout.startswith("already at"), done
    new = make_nodes(url)
    server = new.serve()
    new.worker()
    began = clock.monotonic()
    check(new.api(server), run, before)
    print(f"{len(before)} runs before the backup; all at their end {clock.monotonic() - began:.1f} s after the restore")


def test_a_backup_of_sqlite_under_load_restores_to_a_server_that_goes_on(forge: Forge, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    server = forge.start(tmp_path / "old")
    api, other = Api(server), Api(server)
    copy = tmp_path / "backup.db"

    def make() -> None:
        done = command("backup", str(copy), "--data", str(tmp_path / "old" / "data"))
        assert (done.returncode, done.stdout) == (0, f"{copy}\n"), done

    run, before = backed_up(make, api, Load(other))
    api.http.close()
    other.http.close()
    server.send(signal.SIGKILL)
    server.wait()
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not copy.with_name("backup.db.part").exists()

    data = tmp_path / "new" / "data"
    data.mkdir(parents=True, mode=0o700)
    copy.rename(data / "loomgate.db")
    (data / "seal.key").write_bytes((tmp_path / "old" / "data" / "seal.key").read_bytes())
    os.chmod(data / "seal.key", 0o600)
    server = forge.start(tmp_path / "new")
    api = Api(server)
    check(api, run, before)
    api.http.close()
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def refused(*words: str, **environment: str) -> str:
    """The one line with which ``loomgate backup`` fails."""
    done = command("backup", *words, **environment)
    assert (done.returncode, done.stdout) == (1, ""), done
    (line,) = done.stderr.splitlines()
    return line


def test_what_cannot_be_backed_up_is_said(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy.db"
    assert "there is no database at" in refused(str(copy), "--data", str(data))
    assert not data.exists()
    assert command("migrate", "--data", str(data)).returncode == 0
    copy.write_text("mine")
    assert "is there already: a backup goes into a new file" in refused(str(copy), "--data", str(data))
    assert copy.read_text() == "mine"
    part = tmp_path / "other.db.part"
    part.write_text("somebody's")
    assert "another backup is under way" in refused(str(tmp_path / "other.db"), "--data", str(data))
    assert part.read_text() == "somebody's"
    assert "cannot write" in refused(str(tmp_path / "nowhere" / "copy.db"), "--data", str(data))
    (data / "loomgate.db").write_bytes(b"no database" * 500)
    assert "cannot copy the database" in refused(str(tmp_path / "third.db"), "--data", str(data))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "data", "other.db.part"]
    url = "postgresql://loomgate@127.0.0.1:1/x"
    assert "pg_dump" in refused(str(tmp_path / "fourth.db"), LOOMGATE_DATABASE_URL=url, LOOMGATE_SEAL_KEY=SEAL_KEY)
