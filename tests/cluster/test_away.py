"""A database that is away, or busy: what goes on, what is refused and how soon, and that nothing is done twice."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from loomgate import clock
from loomgate.settings import Secret
from tests.cluster.conftest import SEAL_KEY, Nodes
from tests.crash.rig import until
from tests.support.engines import Databases, PostgresServer
from tests.support.eventually import eventually
from tests.support.server import Client, Response, Server, serving

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "/say hello"}]}


def settings(url: str, **changes: Any) -> dict[str, Any]:
    """Settings of a server on PostgreSQL that is quick to give up."""
    given: dict[str, Any] = {
        "database_url": Secret(url),
        "seal_key": Secret(SEAL_KEY),
        "database_wait_seconds": 0.5,
        "database_retry_seconds": 1.0,
    }
    return {**given, **changes}


@pytest.fixture
def alone(postgres: PostgresServer, tmp_path: Path, tables: Callable[[str], None]) -> Iterator[Server]:
    """A server with API keys on the PostgreSQL of the test."""
    tables(postgres.url())
    with serving(tmp_path / "data", key=True, **settings(postgres.url())) as made:
        yield made


def chat(client: Client) -> Response:
    return client.raw("POST", "/v1/chat/completions", json.dumps(CHAT).encode(), check=False)


def took(ask: Callable[[], Response]) -> tuple[Response, float]:
    began = clock.monotonic()
    return ask(), clock.monotonic() - began


def test_what_goes_on_without_the_database_and_what_does_not(alone: Server, postgres: PostgresServer) -> None:
    client = alone.client("acme")
    stranger = alone.client("other")
    ready = Client(alone.url, headers={})
    assert chat(client).status == 200
    assert client.raw("POST", "/v1/threads").status == 200
    assert ready.raw("GET", "/ready", check=False).json == {"status": "ok"}
    postgres.stop()

    # The API needs the database: it says so, soon, in its own form.
    answer, seconds = took(lambda: client.raw("POST", "/v1/threads"))
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.error["type"] == "server_error"
    assert seconds < 4, seconds

    # A model call does not, for a key that was seen lately, longer than the key counts otherwise.
    end = clock.monotonic() + 2.5
    calls = 0
    while clock.monotonic() < end:
        answer, seconds = took(lambda: chat(client))
        assert answer.status == 200, answer.body
        assert seconds < 2, seconds
        calls += 1
    print(f"{calls} model calls in 2.5 s while the database was away")

    # Whoever was not seen lately is refused in the gateway's form.
    answer, seconds = took(lambda: chat(stranger))
    assert (answer.status, answer.json["status"]) == (503, "failure")
    assert int(answer.headers["retry-after"]) > 0
    assert seconds < 4, seconds

    # And the probes tell the one from the other.
    assert ready.raw("GET", "/health", check=False).status == 200
    answer, seconds = took(lambda: ready.raw("GET", "/ready", check=False))
    assert (answer.status, answer.json["error"]["message"]) == (503, "This node cannot use its database.")
    assert seconds < 4, seconds
    metrics = ready.raw("GET", "/metrics", check=False)
    assert metrics.status == 200
    assert b"loomgate_runs_queued" not in metrics.body

    postgres.start()
    eventually(lambda: ready.raw("GET", "/ready", check=False).status == 200)
    eventually(lambda: client.raw("POST", "/v1/threads", check=False).status == 200)

    # The log has waited: each call is in it, once.
    async def logged() -> int:
        connection = await asyncpg.connect(postgres.url())
        try:
            return int(await connection.fetchval("SELECT count(*) FROM calls WHERE status = 200"))
        finally:
            await connection.close()

    eventually(lambda: asyncio.run(logged()) >= calls + 1, patience=15)
    assert asyncio.run(logged()) == calls + 1


def test_a_pool_whose_connections_are_taken_answers_503(databases: Databases, tmp_path: Path) -> None:
    url = asyncio.run(databases.ready())
    given = settings(url, database_connections=2, drive_runs=True, poll_interval_seconds=60.0)
    with serving(tmp_path / "data", key=True, **given) as server:
        client = server.client()
        assert chat(client).status == 200

        async def crowd() -> None:
            """Two requests wait for a lock, each with a connection; others come."""
            blocker = await asyncpg.connect(url)
            async with blocker.transaction():
                await blocker.execute("LOCK TABLE assistants IN ACCESS EXCLUSIVE MODE")
                waiting = [asyncio.to_thread(client.raw, "GET", "/v1/assistants") for _ in range(2)]
                tasks = [asyncio.create_task(one) for one in waiting]
                for _ in range(500):
                    held = await blocker.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
                    if held == 2:
                        break
                    await asyncio.sleep(0.01)
                answer, seconds = await asyncio.to_thread(took, lambda: client.raw("POST", "/v1/threads"))
                assert answer.status == 503
                assert int(answer.headers["retry-after"]) > 0
                assert 0.3 < seconds < 3, seconds
                assert (await asyncio.to_thread(chat, client)).status == 200
            assert [one.status for one in await asyncio.gather(*tasks)] == [200, 200]
            await blocker.close()

        asyncio.run(crowd())
        assert client.raw("POST", "/v1/threads").status == 200
    asyncio.run(databases.drop(url))


@pytest.mark.parametrize("lease", ["holds", "runs out"])
def test_a_run_whose_worker_loses_the_database_for_a_while_says_nothing_twice(
    postgres: PostgresServer, make_nodes: Callable[[str], Nodes], tables: Callable[[str], None], lease: str
) -> None:
    tables(postgres.url())
    nodes = make_nodes(postgres.url())
    given = {"lease_seconds": "60", "lease_renew_seconds": "5"} if lease == "holds" else {}
    server = nodes.serve(database_retry_seconds="1")
    workers = [nodes.worker(database_retry_seconds="1", **given) for _ in range(2)]
    api = nodes.api(server)
    run = api.run(thread := api.thread("/say one\n/wait 4\n/say two"))
    until(lambda: api.said(thread), 10, "the first word")
    postgres.stop()
    away = clock.monotonic()
    if lease == "runs out":
        until(
            lambda: any("is given back: its lease has run out" in one.log for one in workers), 15, "that it is let go"
        )
        print(f"let go {clock.monotonic() - away:.1f} s after the database went (the lease: 2 s)")
    postgres.start()
    until(lambda: api.http.get("/threads/" + thread).status_code == 200, 20, "that the database is back")
    api.becomes(run, "completed")
    assert api.said(thread) == ["one\ntwo"]
    assert api.steps(run) == ["completed"]
    if lease == "holds":
        assert not any("is given back" in one.log for one in workers)
    assert not any("Traceback" in one.log for one in [server, *workers])


def test_a_revoked_key_is_refused_by_every_node_within_a_second(
    databases: Databases, redis_url: str, tmp_path: Path
) -> None:
    url = asyncio.run(databases.ready())
    given = settings(url, redis_url=Secret(redis_url), redis_prefix="test-revoked")
    with serving(tmp_path / "a", key=True, **given) as one, serving(tmp_path / "b", **given) as other:
        made = one.run(one.store.keys.create(workspace="acme", name="x"))
        clients = [Client(one.url, made.secret), Client(other.url, made.secret)]
        assert [client.raw("GET", "/v1/assistants").status for client in clients] == [200, 200]
        assert one.run(one.store.keys.revoke(made.id))
        began = clock.monotonic()
        for client in clients:
            eventually(lambda client=client: client.raw("GET", "/v1/assistants").status == 401, patience=5)
        print(f"refused by both after {clock.monotonic() - began:.2f} s")
        assert clock.monotonic() - began < 2.5
    asyncio.run(databases.drop(url))


def test_a_change_of_a_config_reaches_every_node_within_a_second(
    databases: Databases, redis_url: str, tmp_path: Path
) -> None:
    url = asyncio.run(databases.ready())
    given = settings(url, redis_url=Secret(redis_url), redis_prefix="test-configs")
    with serving(tmp_path / "a", key=True, **given) as one, serving(tmp_path / "b", **given) as other:
        admin = one.admin("acme")
        made = admin.post("/configs", {"name": "c", "config": {"override_params": {"model": "scripted-one"}}})
        slug = made.get("slug") or made["data"]["slug"]
        client = Client(other.url, one.new_key("acme"), headers={"x-portkey-config": slug})

        def model() -> str:
            found = chat(client)
            assert found.status == 200, found.body
            return str(found.json["model"])

        assert model() == "scripted-one"
        admin.put(f"/configs/{slug}", {"config": {"override_params": {"model": "scripted-two"}}})
        eventually(lambda: model() == "scripted-two", patience=3)
    asyncio.run(databases.drop(url))


def test_a_server_stops_in_time_though_its_database_is_away(
    postgres: PostgresServer, make_nodes: Callable[[str], Nodes], tables: Callable[[str], None]
) -> None:
    tables(postgres.url())
    nodes = make_nodes(postgres.url())
    server = nodes.alone(drain_seconds="1", database_retry_seconds="2")
    api = nodes.api(server)
    api.run(thread := api.thread("/say one\n/wait 30\n/say two"))
    until(lambda: api.said(thread), 10, "the first word")
    postgres.stop()
    told = clock.monotonic()
    server.send(signal.SIGTERM)
    assert server.wait(40) == 0, server.log
    print(f"stopped {clock.monotonic() - told:.1f} s after the signal (drain_seconds: 1)")
    assert clock.monotonic() - told < 12
    assert "Traceback" not in server.log, server.log
