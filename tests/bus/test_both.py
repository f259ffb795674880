"""What a viewer is promised by either bus: the one within a process, and the one over a real Redis."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from loomgate.wire.events import DONE
from tests.bus.nodes import Nodes, event, events, nodes, state_of, take, told, whole

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["local", "redis"])
async def made(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Nodes]:
    async with nodes(redis_url if request.param == "redis" else None, f"test-{secrets.token_hex(4)}") as found:
        yield found


class TestViewers:
    async def test_all_get_the_same_bytes_under_the_same_ids(self, made: Nodes) -> None:
        bus = await made.add()
        run, first = await made.begun(bus)
        seen = await take(first, 1)
        second = await bus.resume(run.id, None, run.look)
        run.tell(bus, 3)
        run.tell(bus, settled=True)
        seen += await take(first, 5)
        assert [data for _, data in seen] == [*events(1, 2, 3, 4, 5), DONE]
        assert await take(second, 6) == seen
        assert len({id for id, _ in seen}) == 6

    async def test_the_stream_ends_with_done(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus)
        run.tell(bus, settled=True)
        assert await whole(viewer) == [*events(1, 2), DONE]
        with pytest.raises(StopAsyncIteration):
            await viewer.next(1)

    async def test_runs_do_not_hear_of_each_other(self, made: Nodes) -> None:
        bus = await made.add()
        one, first = await made.begun(bus, "run_a")
        two, second = await made.begun(bus, "run_b", 2)
        one.tell(bus, settled=True)
        two.tell(bus, settled=True)
        assert await whole(first) == [*events(1, 2), DONE]
        assert await whole(second) == [*events(1, 2, 3), DONE]

    async def test_nothing_within_the_time_is_none_and_the_stream_goes_on(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus)
        await take(viewer, 1)
        assert await viewer.next(0.01) is None
        run.tell(bus)
        assert await told(viewer, 1) == events(2)

    async def test_a_cancelled_wait_loses_no_event(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus)
        await take(viewer, 1)
        for number in range(2, 12):
            waits = asyncio.create_task(viewer.next(5))
            await asyncio.sleep(0)
            run.tell(bus)
            await asyncio.sleep(0.0003 * number)
            waits.cancel()
            (got,) = await asyncio.gather(waits, return_exceptions=True)
            if isinstance(got, asyncio.CancelledError):
                assert await told(viewer, 1) == events(number)
            else:
                assert isinstance(got, tuple)
                assert got[1] == event(number)

    async def test_one_who_left_gets_nothing_and_disturbs_nobody(self, made: Nodes) -> None:
        bus = await made.add()
        run, leaves = await made.begun(bus)
        await take(leaves, 1)
        stays = await bus.resume(run.id, None, run.look)
        leaves.close()
        leaves.close()
        run.tell(bus, settled=True)
        with pytest.raises(StopAsyncIteration):
            await leaves.next(1)
        assert await whole(stays) == [*events(1, 2), DONE]


class TestTwoRequestsOfOneRun:
    """A run that waits for its client has a stream before the wait and one after it."""

    async def test_each_ends_at_its_own_done(self, made: Nodes) -> None:
        bus = await made.add()
        run, first = await made.begun(bus)
        run.tell(bus, settled=True)
        run.over = False
        submits = await bus.subscribe(run.id, run.look)
        run.tell(bus, viewer=submits)
        run.tell(bus, settled=True)
        assert await whole(first) == [*events(1, 2), DONE]
        assert await whole(submits) == [*events(3, 4), DONE]

    async def test_a_late_viewer_passes_over_the_wait(self, made: Nodes) -> None:
        bus = await made.add()
        run, first = await made.begun(bus)
        run.tell(bus, settled=True)
        await whole(first)
        run.over = False
        run.tell(bus)
        other = await bus.subscribe(run.id, run.look)
        run.tell(bus, viewer=other)
        await take(other, 1)
        late = await bus.resume(run.id, None, run.look)
        assert await told(late, 4) == events(1, 2, 3, 4)
        run.tell(bus, settled=True)
        assert await whole(late) == [event(5), DONE]

    async def test_a_late_viewer_of_a_run_that_still_waits_is_not_kept(self, made: Nodes) -> None:
        bus = await made.add()
        run, first = await made.begun(bus)
        run.tell(bus, settled=True)
        await whole(first)
        assert await whole(await bus.resume(run.id, None, run.look)) == [*events(1, 2), DONE]


class TestComingBack:
    async def test_from_every_id(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus, count=3)
        run.tell(bus, 2)
        run.tell(bus, settled=True)
        seen = await take(viewer, 7)
        for place, (id, _) in enumerate(seen[:-1]):
            back = await bus.resume(run.id, id, run.look)
            assert await take(back, 6 - place) == seen[place + 1 :]

    @pytest.mark.parametrize("id", ["", "-", "5", "other-1", "1-1-1", "1-2-", "-1-2-3", "9" * 30 + "-0-0", "٣-٣-٣"])
    async def test_an_id_that_is_not_kept_is_said_so(self, made: Nodes, id: str) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus)
        await take(viewer, 1)
        assert await bus.resume(run.id, id, run.look) is None
        assert await bus.resume("run_unknown", id, run.look) is None
        assert await bus.resume("run_unknown", None, run.look) is None

    async def test_the_present_state_comes_in_the_place_of_what_is_not_kept(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus, count=4)
        await take(viewer, 4)
        late = await bus.join(run.id, "nonsense", run.look)
        assert await told(late, 2) == state_of(4)
        run.tell(bus, settled=True)
        assert await whole(late) == [event(5), DONE]

    async def test_of_a_run_that_is_over_it_is_all(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus)
        run.tell(bus, settled=True)
        await whole(viewer)
        assert await whole(await bus.join(run.id, "nonsense", run.look)) == [*state_of(2), DONE]

    async def test_a_state_is_seen_whole_or_comes_again(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus, count=3)
        await take(viewer, 3)
        late = await bus.attach(run.id, run.look)
        (inside, _), (end, _) = await take(late, 2)
        assert await bus.resume(run.id, inside, run.look) is None
        run.tell(bus)
        assert await told(await bus.resume(run.id, end, run.look), 1) == events(4)


class TestWorkers:
    async def test_a_poke_wakes_the_worker(self, made: Nodes) -> None:
        bus = await made.add()
        bus.poke()
        assert bus.alarm.is_set()

    async def test_a_signal_names_the_run_and_wakes_the_worker(self, made: Nodes) -> None:
        bus = await made.add()
        heard: list[str] = []
        bus.listeners.append(heard.append)
        bus.signal("run_one")
        assert heard == ["run_one"]
        assert bus.alarm.is_set()

    async def test_a_change_is_heard(self, made: Nodes) -> None:
        bus = await made.add()
        heard: list[str] = []
        bus.on_changed.append(heard.append)
        bus.changed("configs")
        assert heard == ["configs"]
