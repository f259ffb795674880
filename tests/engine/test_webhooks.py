"""Webhooks as their receiver sees them: over HTTP, verified by the reference library, with a store on disk."""

import asyncio
import base64
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError
from tests.support import storage
from tests.support.schema import check_component
from tests.support.storage import ENGINES
from tests.support.waiting import settle, until

import loomgate
from loomgate import clock
from loomgate.bus.local import LocalBus
from loomgate.engine.service import Engine
from loomgate.engine.webhooks import Webhooks, sign
from loomgate.engine.worker import WorkerSettings
from loomgate.gateway import Gateway, GatewayConfig
from loomgate.settings import RunEvent, Settings, load
from loomgate.store import open_store
from loomgate.wire import lifecycle
from loomgate.wire.ids import new_id
from loomgate.wire.runs import Run, RunSpec
from loomgate.wire.threads import Message, Text, TextContent, Thread

pytestmark = pytest.mark.anyio

SECRETS = ["whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in range(3)]
SIMPLE = [f"thread.run.{name}" for name in ("created", "queued", "in_progress", "completed")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _present(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins and ends in the present: the reference library looks at the real clock."""
    monkeypatch.setattr(clock, "_offset", 0.0)


@dataclass
class Call:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def event(self) -> str:
        return self.json["type"]

    @property
    def run(self) -> str:
        return self.json["data"]["id"]

    def verified(self, secret: str) -> bool:
        try:
            return Verifier(secret).verify(self.body, self.headers) == self.json
        except WebhookVerificationError:
            return False


Answer = Callable[[Call], int | web.StreamResponse | Awaitable[int | web.StreamResponse]]


class Receiver:
    """An HTTP server that keeps what it gets; ``answer`` says what it answers, 200 at first."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answer: Answer = lambda _: 200
        self.busy = self.busiest = 0
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.01)
        self.url = ""

    async def __aenter__(self) -> "Receiver":
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.method == "POST"
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Call(request.path_qs, headers, await request.read())
        self.calls.append(call)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        self.request = request
        try:
            answer = self.answer(call)
            if isinstance(answer, Awaitable) and not isinstance(answer, web.StreamResponse):
                answer = await answer
            return web.Response(status=answer) if isinstance(answer, int) else answer
        finally:
            self.busy -= 1

    def events(self, run: str | None = None) -> list[str]:
        return [call.event for call in self.calls if run in (None, call.run)]


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver, None]:
    async with Receiver() as started:
        yield started


def hook(url: str, *, secret: str = SECRETS[0], **more: Any) -> dict[str, Any]:
    return {"url": url, "secret": secret, **more}


def settings(folder: Path, *hooks: dict[str, Any], waits: tuple[float, ...] = (5.0, 60.0)) -> Settings:
    given = {"data": str(folder), "webhooks": list(hooks), "webhook_retry_seconds": list(waits)}
    there = {name: os.environ[name] for name in ("LOOMGATE_DATABASE_URL", "LOOMGATE_SEAL_KEY") if name in os.environ}
    return load(given, env=there, file=None)


@pytest.fixture(autouse=True, params=ENGINES)
def _storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `settings` gives keeps its data in a database of the test's own, of either engine."""
    if request.param == "sqlite":
        yield
        return
    made = storage.Storage("postgresql", request.getfixturevalue("databases"), "")
    with made.new() as there:
        for name, value in storage.environment_of(there).items():
            monkeypatch.setenv(name, value)
        yield


def rows(made: Settings) -> list[tuple[Any, ...]]:
    """(attempts, ended, outcome, bytes of payload) of every call on record."""
    return storage.rows(
        made,
        "SELECT attempts, CASE WHEN ended_at IS NULL THEN 0 ELSE 1 END, outcome, length(payload)"
        " FROM deliveries ORDER BY created_at, position, id",
    )


class Server:
    """An engine over a store, and the few things that these tests do with runs."""

    def __init__(self, made: Settings, engine: Engine) -> None:
        self.settings = made
        self.engine = engine

    async def run(self, text: str, workspace: str = "default", *, ttl: int = 600, wait: bool = True) -> Run:
        """Start a run of ``text`` in a new thread; with ``wait`` look on until it ends or waits for outputs."""
        now = clock.timestamp()
        thread = Thread(id=new_id("thread"), created_at=now)
        said = [TextContent(Text(text))]
        message = Message(id=new_id("msg"), created_at=now, thread_id=thread.id, role="user", content=said)
        run = Run(
            id=new_id("run"),
            created_at=now,
            assistant_id=new_id("asst"),
            thread_id=thread.id,
            expires_at=now + ttl,
            model="scripted",
        )
        started = await self.engine.create_run(workspace, run, RunSpec(), [message], thread, stream=True)
        assert started.stream is not None
        if wait:
            async for _ in started.stream:
                pass
        return run

    async def body(self, run: Run) -> Any:
        return msgspec.json.decode(await self.engine.get_run("default", run.thread_id, run.id))


@asynccontextmanager
async def server(
    made: Settings, *, deliver: bool = True, drain: float = 1.0, dice: float = 0.0
) -> AsyncGenerator[Server, None]:
    async with open_store(made, exclusive=True) as store:
        webhooks = Webhooks(store.outbox, made.webhooks, made.webhook_retry_seconds, dice=lambda: dice)
        bus = LocalBus(retention_seconds=60, retention_bytes=1 << 20)
        gateway = Gateway(GatewayConfig())
        engine = Engine(store, gateway, bus, WorkerSettings(), webhooks if deliver else None)
        await engine.start()
        try:
            yield Server(made, engine)
        finally:
            await engine.close(drain)
            await gateway.close()


def test_the_signature_is_that_of_the_reference_library() -> None:
    key = bytes(range(32))
    at = datetime(2026, 11, 20, 12, tzinfo=UTC)
    expected = Verifier(key).sign("evt_1", at, '{"é":1}')
    assert sign(key, "evt_1", int(at.timestamp()), '{"é":1}'.encode()) == expected


def test_the_documentation_names_every_event() -> None:
    text = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    assert re.findall(r"^\| `(thread\.run\.\w+)` \|", text, re.MULTILINE) == list(get_args(RunEvent))


async def test_a_run_is_told_signed_complete_and_in_order(tmp_path: Path, receiver: Receiver) -> None:
    async with server(settings(tmp_path, hook(receiver.url + "/in?token=1"))) as up:
        run = await up.run("hello")
        await until(lambda: len(receiver.calls) == 4)
        assert receiver.events() == SIMPLE
        for call in receiver.calls:
            assert call.path == "/in?token=1"
            assert call.verified(SECRETS[0])
            assert not call.verified(SECRETS[1])
            assert call.headers["content-type"] == "application/json"
            assert list(call.json) == ["type", "timestamp", "data"]
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", call.json["timestamp"])
            assert abs(datetime.fromisoformat(call.json["timestamp"]).timestamp() - clock.now()) < 60
            check_component("RunObject", call.json["data"])
        assert [call.json["data"]["status"] for call in receiver.calls] == ["queued", *(n[11:] for n in SIMPLE[1:])]
        assert receiver.calls[-1].json["data"] == await up.body(run)
        assert len({call.id for call in receiver.calls}) == 4
        await until(lambda: rows(up.settings) == [(1, 1, "status 200", 0)] * 4)


async def test_every_event_that_the_settings_accept_is_sent(tmp_path: Path, receiver: Receiver) -> None:
    names = get_args(RunEvent)
    statuses = {lifecycle.INITIAL_RUN, *lifecycle.ACTIVE, *lifecycle.TERMINAL}
    assert set(names) == {"thread.run.created", *(f"thread.run.{status}" for status in statuses)}
    hooks = [hook(f"{receiver.url}/{name}", events=[name]) for name in names]
    async with server(settings(tmp_path, *hooks)) as up:
        asking = await up.run("/call look {}")
        body = await up.body(asking)
        calls = body["required_action"]["submit_tool_outputs"]["tool_calls"]
        outputs = [(call["id"], "seen") for call in calls]
        await up.engine.submit_tool_outputs("default", asking.thread_id, asking.id, outputs)
        await up.run("/error 400")
        await up.run("/say half\n/finish length")
        cancelled = await up.run("/wait 1000", wait=False)
        expired = await up.run("/wait 1000", ttl=60, wait=False)
        for run in (cancelled, expired):
            await until(lambda run=run: "thread.run.in_progress" in receiver.events(run.id))
        await up.engine.cancel_run("default", cancelled.thread_id, cancelled.id)
        await until(lambda: "thread.run.cancelled" in receiver.events())
        clock.advance(61)
        await until(lambda: set(receiver.events()) == set(names))
        assert all(call.path == f"/{call.event}" for call in receiver.calls)
        queued = [call for call in receiver.calls if call.event == "thread.run.queued" and call.run == asking.id]
        assert len(queued) == 2  # as in a stream: when it is created, and when it goes on


async def test_failures_are_tried_again_by_schedule_under_the_same_id(tmp_path: Path, receiver: Receiver) -> None:
    redirect = web.Response(status=302, headers={"location": "/elsewhere"})
    answers: list[int | web.StreamResponse] = [500, redirect, 200]
    receiver.answer = lambda _: answers.pop(0)
    made = settings(tmp_path, hook(receiver.url + "/in", events=["thread.run.completed"]))
    async with server(made) as up:
        await up.run("hello")
        for attempt, (early, late, outcome) in enumerate([(4.0, 1.0, "status 500"), (59.0, 1.0, "status 302")], 1):
            await until(lambda row=(attempt, 0, outcome): rows(made)[0][:3] == row)
            clock.advance(early)
            await settle()
            assert len(receiver.calls) == attempt
            clock.advance(late)
        await until(lambda: rows(made)[0][:3] == (3, 1, "status 200"))
    first, *again = receiver.calls
    assert len(again) == 2
    assert all((call.path, call.id, call.body) == ("/in", first.id, first.body) for call in again)
    stamps = [int(call.headers["webhook-timestamp"]) for call in receiver.calls]
    assert 4 <= stamps[1] - stamps[0] <= 8
    assert 59 <= stamps[2] - stamps[1] <= 63
    assert all(call.verified(SECRETS[0]) for call in receiver.calls)


async def test_waits_grow_by_up_to_a_tenth(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda _: 500
    made = settings(tmp_path, hook(receiver.url, events=["thread.run.completed"]), waits=(100,))
    async with server(made, dice=0.9) as up:
        await up.run("hello")
        await until(lambda: rows(made)[0][:3] == (1, 0, "status 500"))
        clock.advance(107)
        await settle()
        assert len(receiver.calls) == 1
        clock.advance(2)
        await until(lambda: len(receiver.calls) == 2)


async def test_an_endpoint_that_asks_for_time_gets_it(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda _: web.Response(status=503, headers={"retry-after": "100"})
    made = settings(tmp_path, hook(receiver.url, events=["thread.run.completed"]))
    async with server(made) as up:
        await up.run("hello")
        await until(lambda: rows(made)[0][:3] == (1, 0, "status 503"))
        clock.advance(90)
        await settle()
        assert len(receiver.calls) == 1
        clock.advance(10)
        await until(lambda: len(receiver.calls) == 2)


async def test_after_the_last_attempt_it_is_given_up_and_said_once(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "loomgate")
    receiver.answer = lambda _: 500
    made = settings(tmp_path, hook(receiver.url + "/hidden-path", events=["thread.run.completed"]), waits=(5,))
    async with server(made) as up:
        run = await up.run("hello")
        await until(lambda: rows(made)[0][:3] == (1, 0, "status 500"))
        clock.advance(5)
        await until(lambda: rows(made)[0][:3] == (2, 1, "given up: status 500"))
        clock.advance(100_000)
        await settle()
    assert len(receiver.calls) == 2
    assert rows(made)[0][3] == len(receiver.calls[0].body)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (
        said == f"webhook {receiver.calls[0].id} of {run.id} to {receiver.url} is given up after attempt 2: status 500"
    )
    assert "hidden-path" not in caplog.text
    assert SECRETS[0][6:] not in caplog.text
    assert receiver.calls[0].headers["webhook-signature"] not in caplog.text


async def test_gone_means_no_more_of_this_event(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda call: 410 if call.event == "thread.run.created" else 204
    made = settings(tmp_path, hook(receiver.url))
    async with server(made) as up:
        await up.run("hello")
        await until(lambda: [row[:3] for row in rows(made)].count((1, 1, "status 204")) == 3)
    assert receiver.events() == SIMPLE
    assert [row[:3] for row in rows(made)].count((1, 1, "given up: status 410")) == 1


async def test_a_later_event_waits_for_the_earlier_ones_of_its_run_only(tmp_path: Path, receiver: Receiver) -> None:
    stuck: dict[str, int] = {}
    receiver.answer = lambda call: stuck.get(call.run, 200) if call.event == "thread.run.queued" else 200
    made = settings(tmp_path, hook(receiver.url))
    async with server(made, deliver=False) as up:
        first = await up.run("one")
        second = await up.run("two")
    stuck[first.id] = 500
    async with server(made):
        await until(lambda: receiver.events(second.id) == SIMPLE and len(receiver.events(first.id)) == 2)
        await until(lambda: (1, 0, "status 500") in [row[:3] for row in rows(made)])
        stuck[first.id] = 502
        clock.advance(5)
        await until(lambda: (2, 0, "status 502") in [row[:3] for row in rows(made)])
        assert receiver.events(first.id) == [SIMPLE[0], SIMPLE[1], SIMPLE[1]]
        stuck.clear()
        clock.advance(60)
        await until(lambda: receiver.events(first.id)[-1] == SIMPLE[-1])
        assert receiver.events(first.id) == [SIMPLE[0], SIMPLE[1], SIMPLE[1], *SIMPLE[1:]]


async def test_an_endpoint_that_does_not_answer_is_not_waited_for(tmp_path: Path, receiver: Receiver) -> None:
    never = asyncio.Event()

    async def hang(_: Call) -> int:
        await never.wait()
        return 200

    receiver.answer = hang
    made = settings(tmp_path, hook(receiver.url, events=["thread.run.completed"]))
    async with server(made) as up:
        await up.run("hello")
        await until(lambda: receiver.calls)
        clock.advance(30)
        await until(lambda: rows(made)[0][2] == "The endpoint did not begin to answer for 20 seconds.")
        receiver.answer = lambda _: 200
        clock.advance(5)
        await until(lambda: rows(made)[0][:3] == (2, 1, "status 200"))


async def test_a_call_under_way_when_the_process_died_is_made_again(tmp_path: Path, receiver: Receiver) -> None:
    made = settings(tmp_path, hook(receiver.url))
    async with server(made, deliver=False) as up:
        await up.run("hello")
        outbox = up.engine.store.outbox
        (endpoint,) = outbox.endpoints
        (lost,) = await outbox.claim(endpoint.id, 8, 60)  # and nobody ever says what became of it
    async with server(made):
        await settle()
        assert receiver.calls == []
        clock.advance(60)
        await until(lambda: len(receiver.calls) == 4)
        assert receiver.events() == SIMPLE
        assert receiver.calls[0].id == lost.id
        await until(lambda: [row[:2] for row in rows(made)] == [(2, 1), (1, 1), (1, 1), (1, 1)])


_DOOMED = """
import asyncio, sys
from pathlib import Path
from tests.engine.test_webhooks import hook, server, settings

async def main():
    async with server(settings(Path(sys.argv[1]), hook(sys.argv[2]))) as up:
        await up.run("hello")
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_process_loses_no_event(tmp_path: Path, receiver: Receiver) -> None:
    doomed: asyncio.subprocess.Process

    async def kill(call: Call) -> int:
        if call.event == "thread.run.in_progress":
            doomed.kill()
            await doomed.wait()
        return 200

    receiver.answer = kill
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(loomgate.__path__[0]).parent)])
    doomed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _DOOMED, str(tmp_path), receiver.url, env={**os.environ, "PYTHONPATH": paths}
    )
    assert await asyncio.wait_for(doomed.wait(), 30) == -signal.SIGKILL
    assert receiver.events() == SIMPLE[:3]
    receiver.answer = lambda _: 200
    made = settings(tmp_path, hook(receiver.url))
    async with server(made):
        clock.advance(60)
        await until(lambda: receiver.events()[-1] == SIMPLE[-1])
    assert receiver.events() == [*SIMPLE[:3], *SIMPLE[2:]]
    assert receiver.calls[2].id == receiver.calls[3].id


async def test_a_claim_that_was_taken_over_counts_no_more(tmp_path: Path, receiver: Receiver) -> None:
    made = settings(tmp_path, hook(receiver.url, events=["thread.run.created"]))
    async with server(made, deliver=False) as up:
        await up.run("hello")
        outbox = up.engine.store.outbox
        (endpoint,) = outbox.endpoints
        (slow,) = await outbox.claim(endpoint.id, 8, 60)
        assert await outbox.claim(endpoint.id, 8, 60) == []
        clock.advance(60)
        (again,) = await outbox.claim(endpoint.id, 8, 60)
        assert (again.id, again.attempts) == (slow.id, 2)
        await outbox.retry(slow, 0, "late")
        await outbox.release([slow])
        assert await outbox.claim(endpoint.id, 8, 60) == []
        await outbox.end(again, "status 200", delivered=True)
        await outbox.end(slow, "given up: late", delivered=False)
        assert rows(made) == [(2, 1, "status 200", 0)]


async def test_closing_hands_calls_under_way_back_without_counting_them(tmp_path: Path, receiver: Receiver) -> None:
    never = asyncio.Event()

    async def hang(_: Call) -> int:
        await never.wait()
        return 200

    receiver.answer = hang
    made = settings(tmp_path, hook(receiver.url), waits=())
    async with server(made, drain=0) as up:
        await up.run("hello")
        await until(lambda: receiver.calls)
    assert [row[:3] for row in rows(made)] == [(0, 0, None)] * 4
    receiver.answer = lambda _: 200
    async with server(made):
        await until(lambda: len(receiver.calls) == 5)
    assert receiver.events() == [SIMPLE[0], *SIMPLE]
    assert receiver.calls[0].id == receiver.calls[1].id


async def test_closing_lets_calls_under_way_finish(tmp_path: Path, receiver: Receiver) -> None:
    go_on = asyncio.Event()

    async def slow(_: Call) -> int:
        await go_on.wait()
        return 200

    receiver.answer = slow
    made = settings(tmp_path, hook(receiver.url, events=["thread.run.created"]))
    async with server(made, drain=9) as up:
        await up.run("hello")
        await until(lambda: receiver.calls)
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    assert rows(made) == [(1, 1, "status 200", 0)]
    assert len(receiver.calls) == 1


async def test_a_slow_and_a_dead_endpoint_hold_nobody_else_up(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def hang(_: Call) -> int:
        await never.wait()
        return 200

    async with AsyncExitStack() as stack:
        good, slow, dead = [await stack.enter_async_context(Receiver()) for _ in range(3)]
        await dead.__aexit__()
        slow.answer = hang
        made = settings(tmp_path, *(hook(at.url) for at in (slow, dead, good)))
        up = await stack.enter_async_context(server(made, drain=0))
        runs = await asyncio.gather(*(up.run(f"run {n}") for n in range(12)))
        await until(lambda: len(good.calls) == 48)
        assert all(good.events(run.id) == SIMPLE for run in runs)
        assert (slow.busiest, len(slow.calls)) == (8, 8)
        assert {call.event for call in slow.calls} == {"thread.run.created"}
        failed = [row for row in rows(made) if row[2] is not None and row[2].startswith("No connection to 127.0.0.1")]
        assert [row[:2] for row in failed] == [(1, 0)] * 12


async def test_an_endpoint_hears_of_its_events_and_its_workspace_only(tmp_path: Path, receiver: Receiver) -> None:
    wanted = ["thread.run.in_progress", "thread.run.completed"]
    made = settings(
        tmp_path,
        hook(receiver.url + "/default", events=wanted),
        hook(receiver.url + "/blue", workspace="blue"),
        hook(receiver.url + "/red", workspace="red"),
    )
    async with server(made) as up:
        mine, blue = await up.run("hello"), await up.run("hello", "blue")
        await until(lambda: len(receiver.calls) == 6)
        await settle()
    assert [(call.path, call.run, call.event) for call in receiver.calls if call.run == mine.id] == [
        ("/default", mine.id, event) for event in wanted
    ]
    assert [(call.path, call.event) for call in receiver.calls if call.run == blue.id] == [
        ("/blue", event) for event in SIMPLE
    ]
    assert len(rows(made)) == 6


async def test_endpoints_may_share_a_url(tmp_path: Path, receiver: Receiver) -> None:
    made = settings(
        tmp_path,
        hook(receiver.url, secret=SECRETS[0], events=["thread.run.completed"]),
        hook(receiver.url, secret=SECRETS[1], events=["thread.run.completed"]),
        hook(receiver.url, secret=SECRETS[2], events=["thread.run.completed"], workspace="blue"),
    )
    async with server(made) as up:
        mine, blue = await up.run("hello"), await up.run("hello", "blue")
        await until(lambda: len(receiver.calls) == 3)
    signed = {(call.run, tuple(call.verified(secret) for secret in SECRETS)) for call in receiver.calls}
    assert signed == {
        (mine.id, (True, False, False)),
        (mine.id, (False, True, False)),
        (blue.id, (False, False, True)),
    }
    assert len({call.id for call in receiver.calls}) == 3


async def test_a_new_secret_and_other_events_leave_what_is_owed(tmp_path: Path, receiver: Receiver) -> None:
    async with server(settings(tmp_path, hook(receiver.url)), deliver=False) as up:
        await up.run("hello")
    other = hook("http://127.0.0.1:9/")
    async with server(settings(tmp_path, other, hook(receiver.url, secret=SECRETS[1], events=["thread.run.failed"]))):
        await until(lambda: len(receiver.calls) == 4)
    assert receiver.events() == SIMPLE
    assert all(call.verified(SECRETS[1]) for call in receiver.calls)


async def test_without_webhooks_nothing_runs_and_nothing_is_written(tmp_path: Path) -> None:
    made = settings(tmp_path)
    async with server(made) as up:
        before = asyncio.all_tasks()
        idle = Webhooks(up.engine.store.outbox, (), ())
        idle.start()
        assert asyncio.all_tasks() == before
        await idle.close(0)
        await up.run("hello")
    assert rows(made) == []


async def test_the_store_must_know_the_same_webhooks(tmp_path: Path, receiver: Receiver) -> None:
    other = settings(tmp_path, hook(receiver.url))
    async with server(settings(tmp_path)) as up:
        with pytest.raises(ValueError, match="opened with other webhooks"):
            Webhooks(up.engine.store.outbox, other.webhooks, ())


async def test_an_endless_answer_is_read_to_a_bound(tmp_path: Path, receiver: Receiver) -> None:
    sent = 0

    async def endless(_: Call) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(receiver.request)
        while True:
            await response.write(bytes(65536))
            sent += 65536
            await asyncio.sleep(0)

    receiver.answer = endless
    made = settings(tmp_path, hook(receiver.url, events=["thread.run.completed"]))
    async with server(made) as up:
        await up.run("hello")
        await until(lambda: rows(made)[0][:3] == (1, 1, "status 200"))
        await until(lambda: receiver.busy == 0)
    assert sent < 16 * 1024 * 1024  # what the sockets hold, no more


async def test_calls_that_are_over_are_forgotten_after_a_week(tmp_path: Path, receiver: Receiver) -> None:
    made = settings(tmp_path, hook(receiver.url, events=["thread.run.completed"]))
    async with server(made) as up:
        await up.run("hello")
        await until(lambda: [row[1] for row in rows(made)] == [1])
        clock.advance(6 * 86_400)
        await settle()
        assert len(rows(made)) == 1
        clock.advance(2 * 86_400)
        await until(lambda: rows(made) == [])


async def test_what_is_owed_to_nobody_any_more_is_dropped_after_a_week(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    kept = hook(receiver.url + "/kept")
    async with server(settings(tmp_path, kept, hook(receiver.url + "/left")), deliver=False) as up:
        await up.run("hello")
    made = settings(tmp_path, kept)
    async with server(made):
        await until(lambda: [row[1] for row in rows(made)].count(1) == 4)
        clock.advance(6 * 86_400)
        await settle()
        assert len(rows(made)) == 8
        clock.advance(2 * 86_400)
        await until(lambda: rows(made) == [])
        await until(lambda: "dropped 4 webhooks for endpoints that are not configured any more" in caplog.text)
    assert {call.path for call in receiver.calls} == {"/kept"}
