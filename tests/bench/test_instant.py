"""The gateway's load generator must notice what would make its figures wrong, and its upstream must answer all."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from bench.gateway.run import EVENTS, Instant, asking
from bench.machine import fetch

SOURCE = Path(__file__).parents[2] / "bench" / "gateway" / "instant.c"
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("instant") / "instant"
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", made, SOURCE], check=True, timeout=60)
    return made


@pytest.fixture
def upstream(program: Path, tmp_path: Path) -> Iterator[Instant]:
    made = Instant(program, tmp_path / "log")
    yield made
    made.stop()


def load(program: Path, port: int, kind: str, folder: Path, count: int = 40) -> subprocess.CompletedProcess[str]:
    path = folder / "request"
    path.write_bytes(asking(kind, {}))
    what = [program, "load", str(port), "4", "5", str(count), kind, path]
    return subprocess.run(what, check=False, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("kind", ["json", "sse"])
def test_every_request_is_answered_and_counted(program: Path, upstream: Instant, tmp_path: Path, kind: str) -> None:
    done = load(program, upstream.port, kind, tmp_path)
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["answers"] == 40 == upstream.count()["served"]


def test_a_stream_has_its_events(upstream: Instant) -> None:
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=5) as opened:
        opened.sendall(asking("sse", {}, "x" * 16))
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += opened.recv(65536)
    assert data.count(b"chatcmpl-" + b"x" * 16) == EVENTS
    assert data.count(b"data: [DONE]") == 1


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b'{"id":"chatcmpl-0000000000000000"}', "0 of them its own"),
        (b"{}", "has 0 ids"),
    ],
)
def test_a_foreign_answer_is_noticed(program: Path, tmp_path: Path, body: bytes, complaint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                opened, _ = listening.accept()
                with opened:
                    if opened.recv(65536):
                        opened.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                        opened.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listening.getsockname()[1]
        done = load(program, port, "json", tmp_path, count=4)
        stop.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join(5)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_it_answers_no_other_path(upstream: Instant) -> None:
    with pytest.raises(ConnectionError):
        fetch(upstream.port, b"GET /other HTTP/1.1\r\nhost: x\r\n\r\n")
