"""Nodes in processes of their own: who may start beside whom, and what becomes of runs when one leaves."""

import asyncio
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import asyncpg
import httpx

from loomgate import clock
from tests.cluster.conftest import Nodes
from tests.crash.rig import Server, free_port, until
from tests.support.engines import PostgresServer

SLOW = "/say one\n/wait 3\n/say two"


def refused(node: Server, code: int) -> str:
    """The one line with which ``node`` stopped."""
    assert node.wait() == code, node.log
    assert node.lines == []
    [line] = [line for line in node.log.splitlines() if line.startswith("loomgate: ")]
    assert "Traceback" not in node.log
    return line


def events(stream: bytes) -> list[str]:
    """The names of the events of ``stream``, whose ids and comments are passed over."""
    return [name.decode() for name in re.findall(rb"^event: (.*)$", stream, re.MULTILINE)]


# --- who may start ---


def test_a_server_without_redis_is_alone(nodes: Nodes) -> None:
    first = nodes.alone()
    assert "in use by another server: set redis_url on every node" in refused(nodes.alone(), 1)
    assert "in use by a server without redis_url" in refused(nodes.serve(), 1)
    assert "in use by a server without redis_url" in refused(nodes.worker(), 1)
    first.send(signal.SIGKILL)
    first.wait()
    second = nodes.alone()
    assert second.lines, second.log
    second.send(signal.SIGTERM)
    assert second.wait() == 0
    servers = [nodes.serve(), nodes.serve(), nodes.worker()]
    assert all(node.lines for node in servers)
    assert "in use by another server" in refused(nodes.alone(), 1)


def test_settings_that_no_cluster_can_have(nodes: Nodes) -> None:
    line = refused(nodes.worker(redis_url=""), 2)
    assert line.startswith("loomgate: redis_url: expected the Redis that the nodes of a PostgreSQL share")
    assert "drive_runs: expected true" in refused(nodes.serve(redis_url=""), 2)
    line = refused(nodes.serve(seal_key=""), 2)
    assert "seal_key: expected the key that all nodes share (`openssl rand -hex 32` makes one)" in line


def test_a_node_with_another_seal_key_is_told_so_at_its_start(nodes: Nodes) -> None:
    assert nodes.serve().lines
    assert "seal_key is not the one that the database" in refused(nodes.worker(seal_key="00" * 32), 1)


def test_the_lock_is_taken_again_after_a_restart_of_the_database(
    postgres: PostgresServer, make_nodes: Callable[[str], Nodes], tables: Callable[[str], None]
) -> None:
    tables(postgres.url())
    nodes = make_nodes(postgres.url())
    first = nodes.alone()
    postgres.stop()
    postgres.start()
    until(lambda: "lock is taken again" in first.log, 20, "that the lock is taken again")
    assert "in use by another server" in refused(nodes.alone(), 1)
    api = nodes.api(first)
    run = api.run(api.thread("/say still there"))
    api.becomes(run, "completed")


def test_a_server_that_finds_its_lock_taken_stops(nodes: Nodes, database_url: str) -> None:
    server = nodes.alone()

    async def take() -> None:
        """Break the server's session off, and have the lock before it can take it again."""
        connection = await asyncpg.connect(database_url)
        held = "SELECT classid, objid, pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
        held += " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        [(high, low, pid)] = await connection.fetch(held)
        number = (high << 32 | low) - (1 << 64 if high >> 31 else 0)
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        async with asyncio.timeout(10):
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", number):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while server.status is None:  # noqa: ASYNC110 - another process decides when
                await asyncio.sleep(0.05)
        await connection.close()

    asyncio.run(take())
    assert server.wait() == 1
    assert "stopping: the database" in server.log
    assert "in use by another server" in server.log


# --- runs ---


def test_a_worker_drives_what_a_server_took(nodes: Nodes) -> None:
    port = free_port()
    server, worker = nodes.serve(), nodes.worker(worker_port=str(port))
    api = nodes.api(server)
    run = api.run(thread := api.thread("/say hello"))
    api.becomes(run, "completed")
    assert api.said(thread) == ["hello"]
    probes = worker.lines[0].split()[-1]
    assert probes == f"http://127.0.0.1:{port}"
    for path, status in (("/health", 200), ("/ready", 200), ("/metrics", 200), ("/v1/threads", 404), ("/", 404)):
        assert httpx.get(probes + path, trust_env=False).status_code == status, path
    assert httpx.get(probes + "/ready", trust_env=False).json() == {"status": "ok", "redis": "ok"}
    assert "loomgate_redis_up 1.0" in httpx.get(probes + "/metrics", trust_env=False).text


def test_the_queue_can_be_seen(nodes: Nodes) -> None:
    """The figures by which workers are added: nobody drives here."""
    server = nodes.serve()
    api = nodes.api(server)
    for _ in range(3):
        api.run(api.thread("/say hello"))
    api.run(thread := api.thread("/say hello"))
    assert thread

    def figures() -> dict[str, float]:
        text = httpx.get(server.url.removesuffix("/v1") + "/metrics", trust_env=False).text
        found = re.findall(r'^(loomgate_(?:runs|store)_\w+(?:\{state="\w+"\})?) (\S+)$', text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    until(lambda: figures()["loomgate_runs_queued"] == 4, 10, "that four runs are counted")
    found = figures()
    assert found["loomgate_runs_active"] == 0
    assert found["loomgate_runs_queued_seconds"] > 0
    assert found['loomgate_store_connections{state="most"}'] == 16


def test_a_killed_worker_loses_its_run_to_another(nodes: Nodes) -> None:
    server, first = nodes.serve(), nodes.worker()
    api = nodes.api(server)
    run = api.run(thread := api.thread(SLOW))
    until(lambda: api.said(thread), 10, "the first word")
    nodes.worker()
    first.send(signal.SIGKILL)
    killed = clock.monotonic()
    api.becomes(run, "completed")
    print(f"from kill -9 to the end of its run: {clock.monotonic() - killed:.1f} s (the lease: 2 s, the run: 3 s)")
    assert api.said(thread) == ["one\ntwo"]
    assert api.steps(run) == ["completed"]


def test_a_paused_worker_finds_its_token_void_and_writes_nothing(nodes: Nodes) -> None:
    server, first = nodes.serve(), nodes.worker()
    api = nodes.api(server)
    run = api.run(thread := api.thread(SLOW))
    until(lambda: api.said(thread), 10, "the first word")
    nodes.worker()
    first.send(signal.SIGSTOP)
    ended = api.becomes(run, "completed")  # by the other
    first.send(signal.SIGCONT)
    until(lambda: "is no longer ours" in first.log, 10, "that the first one notices")
    assert api.said(thread) == ["one\ntwo"]
    assert api.steps(run) == ["completed"]
    assert api.ask("GET", f"/threads/{thread}/runs/{run['id']}") == ended
    assert "Traceback" not in first.log, first.log


def test_a_worker_that_was_paused_for_long_keeps_what_nobody_took(nodes: Nodes) -> None:
    server, worker = nodes.serve(), nodes.worker()
    api = nodes.api(server)
    run = api.run(thread := api.thread(SLOW))
    until(lambda: api.said(thread), 10, "the first word")
    worker.send(signal.SIGSTOP)
    threading.Event().wait(3.5)  # longer than the lease
    worker.send(signal.SIGCONT)
    api.becomes(run, "completed")
    assert api.said(thread) == ["one\ntwo"]
    assert "is given back" not in worker.log


def test_a_stopping_worker_hands_its_run_over(nodes: Nodes) -> None:
    settings = {"lease_seconds": "60", "lease_renew_seconds": "5"}  # no lease lapses here
    server, first = nodes.serve(), nodes.worker(drain_seconds="0.3", **settings)
    api = nodes.api(server)
    run = api.run(thread := api.thread(SLOW))
    until(lambda: api.said(thread), 10, "the first word")
    nodes.worker(**settings)
    first.send(signal.SIGTERM)
    assert first.wait() == 0, first.log
    api.becomes(run, "completed", 15)
    assert api.said(thread) == ["one\ntwo"]


def test_a_stopping_worker_lets_a_run_finish_and_begins_no_other(nodes: Nodes) -> None:
    server, worker = nodes.serve(), nodes.worker(drain_seconds="20")
    api = nodes.api(server)
    run = api.run(thread := api.thread(SLOW))
    until(lambda: api.said(thread), 10, "the first word")
    worker.send(signal.SIGTERM)
    until(lambda: "1 run(s) under way" in worker.log, 10, "that it stops")
    later = api.run(api.thread("/say later"))
    api.becomes(run, "completed", 15)
    assert worker.wait() == 0
    assert api.ask("GET", f"/threads/{later['thread_id']}/runs/{later['id']}")["status"] == "queued"


def test_a_node_without_its_redis_is_ready_and_says_so(nodes: Nodes) -> None:
    away = f"redis://127.0.0.1:{free_port()}/0"
    server, _ = nodes.serve(redis_url=away), nodes.worker(redis_url=away)
    root = server.url.removesuffix("/v1")
    found = httpx.get(root + "/ready", trust_env=False)
    assert (found.status_code, found.json()) == (200, {"status": "ok", "redis": "away"})
    assert "loomgate_redis_up 0.0" in httpx.get(root + "/metrics", trust_env=False).text
    api = nodes.api(server)
    api.becomes(api.run(api.thread("/say hello")), "completed")


# --- a server that leaves ---


def test_a_leaving_server_says_so_and_serves_on_for_a_while(nodes: Nodes) -> None:
    server = nodes.serve(drain_delay_seconds="2")
    root = server.url.removesuffix("/v1")
    with httpx.Client(trust_env=False) as client:
        assert client.get(root + "/ready").status_code == 200
        told = clock.monotonic()
        server.send(signal.SIGTERM)
        answer = until(
            lambda: found if (found := client.get(root + "/ready")).status_code == 503 else None, 2, "that it says so"
        )
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["message"] == "This node is about to stop."
        assert client.get(root + "/health").status_code == 200
        assert client.post(server.url + "/threads", headers={"openai-beta": "assistants=v2"}).status_code == 200
    assert server.wait(10) == 0
    assert 1.9 < clock.monotonic() - told < 6


def test_a_stream_on_a_leaving_server_ends_with_words_and_goes_on_elsewhere(nodes: Nodes) -> None:
    leaving, other = nodes.serve(drain_seconds="0.3"), nodes.serve()
    nodes.worker()
    api, elsewhere = nodes.api(leaving), nodes.api(other)
    run = api.run(thread := api.thread(SLOW))
    path = f"/threads/{thread}/runs/{run['id']}/stream"
    with api.http.stream("GET", path) as answer:
        pieces = answer.iter_raw()
        seen = next(pieces)
        until(lambda: elsewhere.said(thread), 10, "the first word")
        leaving.send(signal.SIGTERM)
        seen += b"".join(pieces)  # it comes to its proper end
    assert events(seen)[-2:] == ["error", "done"]
    last = re.findall(rb"^id: (.*)$", seen, re.MULTILINE)[-1]
    with elsewhere.http.stream("GET", path, headers={"last-event-id": last.decode()}) as answer:
        assert answer.status_code == 200
        rest = answer.read()
    assert events(rest)[-1] == "done"
    assert "thread.run.completed" in events(rest)
    assert elsewhere.said(thread) == ["one\ntwo"]
    assert leaving.wait() == 0


def test_a_folder_of_settings_serves_both_commands(nodes: Nodes, tmp_path: Path) -> None:
    """``drive_runs = false`` is about servers: a worker drives whatever it says."""
    server, _ = nodes.serve(), nodes.worker(drive_runs="false")
    api = nodes.api(server)
    api.becomes(api.run(api.thread("/say hello")), "completed")
