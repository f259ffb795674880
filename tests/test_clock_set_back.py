"""A clock that is set back holds nobody up."""

import asyncio

import pytest

from loomgate import clock
from tests.api.driving import eventually, play
from tests.support.server import Client, Server

_HOUR = 3600.0


def test_of_a_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        task = asyncio.create_task(clock.sleep(0.05))
        await asyncio.sleep(0.01)
        monkeypatch.setattr(clock, "_offset", clock._offset - _HOUR)
        await asyncio.wait_for(task, 5)

    asyncio.run(main())


def test_of_a_worker(monkeypatch: pytest.MonkeyPatch, server: Server, client: Client) -> None:
    """Leases are renewed by the new time at once, not in an hour: or else they would lapse under running runs."""
    engine = server.application.engine
    assert engine is not None
    play(client, "Hello")
    monkeypatch.setattr(clock, "_offset", clock._offset - _HOUR)
    eventually(lambda: engine._worker._renewed <= clock.now())
    assert play(client, "Hello")["status"] == "completed"
