"""A worker with a limit for each workspace: places that become free are taken at once, and nobody spins for one."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.support.objects import make_message, make_run, make_thread
from tests.support.waiting import settle, until

from loomgate.bus.local import LocalBus
from loomgate.engine.service import Engine
from loomgate.engine.worker import WorkerSettings
from loomgate.gateway import Gateway, GatewayConfig
from loomgate.store import Store, schema
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase
from loomgate.wire.runs import Run, RunSpec
from loomgate.wire.threads import Text, TextContent

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def engine(folder: Path, **settings: float) -> AsyncGenerator[Engine, None]:
    path = folder / "loomgate.db"
    schema.prepare(path)
    store = Store(SqliteDatabase(path, synchronous="normal"), Sealer(bytes(32)), [], "reject", exclusive=True)
    gateway = Gateway(GatewayConfig())
    bus = LocalBus(retention_seconds=60, retention_bytes=1 << 20)
    # Who waits for the next poll waits for ever.
    made = Engine(store, gateway, bus, msgspec.structs.replace(WorkerSettings(poll=60.0), **settings))
    await made.start()
    try:
        yield made
    finally:
        await made.close(0.0)
        await gateway.close()
        await store.close()


async def start(made: Engine, workspace: str, text: str) -> Run:
    thread = make_thread()
    run = make_run(thread.id)
    message = make_message(thread.id, content=[TextContent(Text(text))])
    await made.create_run(workspace, run, RunSpec(), [message], thread)
    return run


async def status(made: Engine, workspace: str, run: Run) -> str:
    return msgspec.json.decode(await made.get_run(workspace, run.thread_id, run.id))["status"]


async def reaches(made: Engine, workspace: str, run: Run, wanted: str) -> None:
    async with asyncio.timeout(10):
        while await status(made, workspace, run) != wanted:  # noqa: ASYNC110 - polls as a client does
            await asyncio.sleep(0.005)


async def test_a_place_that_becomes_free_is_taken_at_once(tmp_path: Path) -> None:
    async with engine(tmp_path, workspace_runs=2) as made:
        runs = [await start(made, "many", "/wait 0.05\n/say Done.") for _ in range(7)]
        most = 0
        end = time.monotonic() + 10
        while (states := [await status(made, "many", run) for run in runs]) != ["completed"] * 7:
            assert time.monotonic() < end, states
            most = max(most, states.count("in_progress"))
            await asyncio.sleep(0.005)
        assert 1 <= most <= 2


async def test_a_workspace_at_its_limit_does_not_keep_the_worker_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine(tmp_path, workspace_runs=1) as made:
        held, waits = [await start(made, "many", "/wait 60\n/say Done.") for _ in range(2)]
        await until(lambda: made.active == 1)
        await asyncio.sleep(0.05)
        asked = 0
        claim = made.store.runs.claim

        async def counted(*args: object) -> object:
            nonlocal asked
            asked += 1
            return await claim(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(made.store.runs, "claim", counted)
        await asyncio.sleep(0.3)
        assert asked == 0, "it sleeps until it is poked, or until its next poll"
        other = await start(made, "other", "/say Done.")
        await reaches(made, "other", other, "completed")
        assert await status(made, "many", waits) == "queued"
        await made.cancel_run("many", held.thread_id, held.id)
        await reaches(made, "many", waits, "in_progress")
        assert asked <= 8


async def test_nothing_is_claimed_before_a_renewal_under_way_is_through(tmp_path: Path) -> None:
    """A server that was held up renews first: what its own lapsed leases have given free is its own still."""
    async with engine(tmp_path) as made:
        await start(made, "one", "/wait 60")
        await until(lambda: made._worker.active == 1)
        real, go_on = made.store.runs.renew, asyncio.Event()

        async def slow(held: list[tuple[str, int]], lease: float) -> list[str]:
            await go_on.wait()
            return await real(held, lease)

        made.store.runs.renew = slow  # type: ignore[method-assign]
        renewal = made._worker._begin_to_renew()
        await start(made, "one", "/wait 60")
        await settle()
        assert (made._worker.active, renewal.done()) == (1, False)
        go_on.set()
        await until(lambda: made._worker.active == 2)
