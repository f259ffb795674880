"""A worker that does not hear that its commit was done: the run is out of its hands, whatever it makes of that."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.objects import WORKSPACE, make_message, make_run, make_thread
from tests.support.waiting import until

from loomgate.bus import Subscription
from loomgate.bus.local import LocalBus
from loomgate.engine.service import Engine
from loomgate.engine.worker import WorkerSettings
from loomgate.errors import StoreError
from loomgate.gateway import Gateway, GatewayConfig
from loomgate.store import Store, schema
from loomgate.store.records import Applied, Commit
from loomgate.store.rows import RunRow
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase
from loomgate.wire.runs import Run, RunSpec
from loomgate.wire.threads import Text, TextContent
from loomgate.wire.tools import Function, FunctionTool

pytestmark = [pytest.mark.anyio, pytest.mark.behaviour("RUN-99")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    path = tmp_path / "loomgate.db"
    schema.prepare(path)
    store = Store(SqliteDatabase(path, synchronous="normal"), Sealer(bytes(32)), [], "reject", exclusive=True)
    gateway = Gateway(GatewayConfig())
    made = Engine(store, gateway, LocalBus(retention_seconds=60, retention_bytes=1 << 20), WorkerSettings())
    await made.start()
    yield made
    await made.close(0.0)
    await gateway.close()
    await store.close()


def unheard(engine: Engine, monkeypatch: pytest.MonkeyPatch, between: Any) -> None:
    """The answer to the first commit with a verb gets lost, after ``between`` was done."""
    real = engine.store.runs.apply

    async def apply(row: RunRow, commit: Commit) -> Applied:
        applied = await real(row, commit)
        if commit.verb is not None:
            monkeypatch.setattr(engine.store.runs, "apply", real)
            await between(applied.run)
            raise StoreError("the answer got lost")
        return applied

    monkeypatch.setattr(engine.store.runs, "apply", apply)


async def start(engine: Engine, text: str) -> tuple[Run, Subscription]:
    thread = make_thread()
    run = msgspec.structs.replace(make_run(thread.id), tools=[FunctionTool(function=Function(name="look"))])
    message = make_message(thread.id, content=[TextContent(Text(text))])
    started = await engine.create_run(WORKSPACE, run, RunSpec(), [message], thread, stream=True)
    assert started.stream is not None
    return run, started.stream


async def status(engine: Engine, run: Run) -> str:
    return msgspec.json.decode(await engine.get_run(WORKSPACE, run.thread_id, run.id))["status"]


async def heard(stream: Subscription) -> list[bytes]:
    """The names of the stream's events, until it ends."""
    names: list[bytes] = []
    while b"event: done" not in names:
        found = await stream.next(5)
        assert found is not None, names
        names.append(found[1].partition(b"\n")[0])
    return names


async def test_outputs_that_come_meanwhile_are_worked_with(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed: list[Subscription] = []

    async def submit(asked: Run) -> None:
        assert asked.required_action is not None
        (call,) = asked.required_action.submit_tool_outputs.tool_calls
        started = await engine.submit_tool_outputs(
            WORKSPACE, asked.thread_id, asked.id, [(call.id, "Done.")], stream=True
        )
        assert started.stream is not None
        resumed.append(started.stream)

    unheard(engine, monkeypatch, submit)
    run, _ = await start(engine, "/call look {}")
    await until(lambda: resumed)
    assert (await heard(resumed[0]))[-2:] == [b"event: thread.run.completed", b"event: done"]
    assert await status(engine, run) == "completed"


@pytest.mark.parametrize(("script", "end"), [("/call look {}", "requires_action"), ("/say Hello.", "completed")])
async def test_viewers_are_not_left_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, script: str, end: str
) -> None:
    async def nothing(_: Run) -> None:
        pass

    unheard(engine, monkeypatch, nothing)
    run, stream = await start(engine, script)
    assert (await heard(stream))[-2:] == [b"event: error", b"event: done"]
    assert await status(engine, run) == end
