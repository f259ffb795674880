"""A server that is told to stop, one that cannot start, and how long a start takes."""

import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import httpx
import msgspec
import pytest

from loomgate import clock
from tests.crash.check import check_consistent
from tests.crash.rig import CLEAN, Client, Forge, Gone, World, free_port, text_of, until
from tests.support import sse

_SLACK = 3.0  # seconds that a slow machine may take besides


_SPOKEN = b"thread.message.delta"


class _Viewer(threading.Thread):
    """Creates a streamed run and reads on, or leaves at the first word if it does not ``stay``.

    ``seen`` grows; ``whole`` tells that the answer came to its proper end.
    """

    def __init__(self, world: World, thread: str, assistant: str, *, stay: bool) -> None:
        super().__init__(daemon=True)
        self._client, self._path, self._stay = Client(world), f"/threads/{thread}/runs", stay
        self._body = {"assistant_id": assistant, "stream": True}
        self.seen = b""
        self.whole = False
        self.start()

    def run(self) -> None:
        with closing(self._client) as client, suppress(Gone), client.stream(self._path, self._body) as pieces:
            for piece in pieces:
                self.seen += piece
                if _SPOKEN in self.seen and not self._stay:
                    return
            self.whole = True


def _watched(client: Client, script: str, *, stay: bool = True) -> tuple[str, _Viewer]:
    """A thread of ``client``, and a viewer who has seen the first word of a run in it."""
    assistant = client.assistant()
    thread = client.thread(messages=[{"role": "user", "content": script}])
    viewer = _Viewer(client.world, thread, assistant, stay=stay)
    until(lambda: _SPOKEN in viewer.seen, 10, "the first word")
    return thread, viewer


@pytest.mark.behaviour("SSE-52", "SSE-53", "RUN-99")
@pytest.mark.parametrize("model", ["scripted", "stand-in"])
def test_a_stopping_server_ends_streams_with_words_and_its_runs_go_on(
    forge: Forge, tmp_path: Path, upstream: str, model: str
) -> None:
    env = {"LOOMGATE_DRAIN_SECONDS": "0.3", "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": upstream}
    world = World(forge, tmp_path, env=env, model=model)
    client = Client(world)
    thread, viewer = _watched(client, "/say Well,\n/wait 1.5\n/say yes.")
    told = clock.monotonic()
    world.stop()
    assert clock.monotonic() - told < 0.3 + _SLACK
    viewer.join(10)
    assert viewer.whole, viewer.seen[-500:]
    events = sse.parse(viewer.seen)
    assert [event.name for event in events[-2:]] == ["error", "done"]
    assert msgspec.json.decode(events[-2].data)["error"]["type"] == "server_error"
    [run] = check_consistent(world.database).runs
    assert run["status"] == "in_progress"
    assert run["due"] <= clock.now() * 1000  # handed back, not left to lapse
    world.start()
    client.settled(run["body"])
    assert [text_of(message) for message in client.messages(thread)][1:] == ["Well,\nyes."]
    client.close()
    world.stop()
    check_consistent(world.database, ended=True)


def test_a_stopping_server_lets_a_run_finish(forge: Forge, tmp_path: Path) -> None:
    world = World(forge, tmp_path, env={"LOOMGATE_DRAIN_SECONDS": "30"})
    client = Client(world)
    _, viewer = _watched(client, "/say Well,\n/wait 0.7\n/say yes.")
    told = clock.monotonic()
    world.stop()
    assert clock.monotonic() - told < 0.7 + _SLACK
    viewer.join(10)
    assert viewer.whole
    assert sse.names(sse.check_stream(viewer.seen)) == sse.SEQUENCES["SSE-40"]
    check_consistent(world.database, ended=True)
    client.close()


@pytest.mark.parametrize("stay", [True, False])
def test_a_second_signal_does_not_wait(forge: Forge, tmp_path: Path, stay: bool) -> None:
    world = World(forge, tmp_path, env={"LOOMGATE_DRAIN_SECONDS": "60"})
    client = Client(world)
    _, viewer = _watched(client, "/say Well,\n/wait 60\n/say yes.", stay=stay)
    if not stay:
        viewer.join(10)  # it is the run alone that is waited for
    world.server.send(signal.SIGTERM)
    until(lambda: not _listens(world), 10, "that it takes no more connections")
    assert world.server.status is None
    world.server.send(signal.SIGTERM)
    assert world.server.wait(_SLACK) == 0
    client.close()
    viewer.join(10)
    assert check_consistent(world.database).runs[0]["status"] == "in_progress"


def _listens(world: World) -> bool:
    address = httpx.URL(world.server.url)
    with socket.socket() as probe:
        return probe.connect_ex((address.host, address.port)) == 0


def test_a_start_takes_over_what_the_dead_left_and_says_so(forge: Forge, tmp_path: Path) -> None:
    world = World(forge, tmp_path, ("delta", 2))
    client = Client(world)
    assistant = client.assistant()
    thread = client.thread(messages=[{"role": "user", "content": "/say one two three"}])
    client.settled(client.run(thread, assistant))
    assert "taking over 1 runs" in world.server.log
    client.close()
    world.stop()


# --- starts that fail: one line that says why ---


def _refused(forge: Forge, folder: Path) -> str:
    server = forge.start(folder, bound=True)
    try:
        assert server.wait() == 1, server.log
    finally:
        server.send(signal.SIGKILL)
    assert server.lines == []
    [line] = server.log.splitlines()
    assert line.startswith("loomgate: ")
    return line


def test_two_servers_on_one_data_folder(forge: Forge, tmp_path: Path) -> None:
    world = World(forge, tmp_path)
    assert "in use by another server" in _refused(forge, tmp_path)
    client = Client(world)
    client.thread()  # the first one is not disturbed
    client.close()
    world.stop()


def test_a_data_folder_that_cannot_be_read(forge: Forge, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0)
    try:
        assert "no permission to read and write" in _refused(forge, tmp_path)
    finally:
        data.chmod(0o700)


def test_a_database_that_cannot_be_written(forge: Forge, tmp_path: Path) -> None:
    world = World(forge, tmp_path)
    world.stop()
    world.database.chmod(0o400)
    line = _refused(forge, tmp_path)
    assert str(world.database) in line
    assert "readonly" in line


@pytest.mark.parametrize("what", ["no database", "a folder"])
def test_a_database_that_is_none(forge: Forge, tmp_path: Path, what: str) -> None:
    (tmp_path / "data").mkdir()
    database = tmp_path / "data" / "loomgate.db"
    if what == "a folder":
        database.mkdir()
    else:
        database.write_text("a text\n" * 1000)
    assert "loomgate.db" in _refused(forge, tmp_path)


def test_a_start_takes_less_than_a_second(tmp_path: Path) -> None:
    """From the start of the process to its first answer; the limit here is for slow and busy machines."""
    took: list[float] = []
    for _ in range(3):
        port = free_port()
        arguments = [sys.executable, "-m", "loomgate", "serve", "--port", str(port), "--data", str(tmp_path / "data")]
        began = clock.monotonic()
        with subprocess.Popen(arguments, cwd=tmp_path, env=CLEAN, stdout=subprocess.DEVNULL) as process:
            until(lambda port=port: _answers(port), 30, "the first answer")
            took.append(clock.monotonic() - began)
            process.terminate()
            assert process.wait(20) == 0
    shown = re.sub(r"[][]", "", str([round(seconds, 2) for seconds in took]))
    print(f"start to first answer: {shown} s")
    assert min(took) < 3, shown


def _answers(port: int) -> bool:
    try:
        answer = httpx.get(
            f"http://127.0.0.1:{port}/v1/assistants", headers={"openai-beta": "assistants=v2"}, trust_env=False
        )
    except httpx.TransportError:
        return False
    return answer.status_code == 200
