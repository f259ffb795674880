"""The process around the application: start, address, keys, shutdown, a second server on the same data."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loomgate.app import build
from loomgate.errors import StoreError
from loomgate.http.application import Application
from tests.support.server import Client, ProcessServer, Server, serving, settings_for


def _serve(data: Path, *args: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loomgate", "serve", "--data", str(data), *args]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOMGATE_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


def test_a_server_in_a_process_of_its_own(process_server: Callable[..., ProcessServer]) -> None:
    server = process_server()
    assistant = server.client().assistant()["id"]
    assert server.stop() == 0
    server.start()
    assert server.client().get("/assistants/" + assistant)["id"] == assistant
    server.kill()
    server.start()
    assert server.client().get("/assistants/" + assistant)["id"] == assistant
    assert server.stop() == 0
    log = (server.data.parent / "server.log").read_text()
    assert "Traceback" not in log
    assert log == ""


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _serve(tmp_path / "data", "--port", str(port))
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("loomgate: ")
    assert str(port) in done.stderr


def test_data_in_use_is_one_clear_line(process_server: Callable[..., ProcessServer]) -> None:
    data = process_server().data
    done = _serve(data, "--port", "0")
    assert done.returncode == 1
    assert "in use by another server" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_stop_ends_streams_with_words(process_server: Callable[..., ProcessServer]) -> None:
    server = process_server(LOOMGATE_DRAIN_SECONDS="0.3")
    client = server.client()
    thread = {"messages": [{"role": "user", "content": "/wait 600"}]}
    body = {"assistant_id": client.assistant()["id"], "thread": thread, "stream": True}
    import http.client
    import json
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    connection.request(
        "POST", "/v1/threads/runs", json.dumps(body), {**client.headers, "Content-Type": "application/json"}
    )
    response = connection.getresponse()
    seen = b""
    while b"event: thread.run.in_progress" not in seen:
        seen += response.readline()
    assert server.stop() == 0
    rest = response.read()
    connection.close()
    assert rest.endswith(b"event: done\ndata: [DONE]\n\n")
    assert b"event: error\n" in rest
    assert b"shutting down" in rest


def test_the_application_has_a_lifespan_for_other_servers(tmp_path: Path) -> None:
    async def drive(application: Application) -> list[str]:
        told: list[str] = []
        said = [{"type": "lifespan.startup"}]
        woken = asyncio.Event()

        async def receive() -> dict[str, str]:
            if not said:
                await woken.wait()
                return {"type": "lifespan.shutdown"}
            return said.pop()

        async def send(message: object) -> None:
            told.append(message["type"])  # type: ignore[index]
            woken.set()

        await application({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
        return told

    application = build(settings_for(tmp_path / "data"))
    assert asyncio.run(drive(application)) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        asyncio.run(drive(build(settings_for(tmp_path / "file"))))


def test_servers_of_one_test_are_strangers(make_server: Callable[..., Server], tmp_path: Path) -> None:
    one, two = make_server(), make_server()
    id = Client(one.url).assistant()["id"]
    Client(two.url).get("/assistants/" + id, status=404)
    with pytest.raises(StoreError, match="in use"), serving(one.settings.data):
        pytest.fail("two servers on one database")
    assert Client(one.url).get("/assistants/" + id)["id"] == id
