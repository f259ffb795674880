"""Viewers get every event once and in order, from where they ask; what is kept is bounded."""

import asyncio

import pytest

from loomgate import clock
from loomgate.bus import Bus, Subscription
from loomgate.wire.events import DONE

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_offset", clock._offset)


def _bus(seconds: float = 60, size: int = 1 << 20) -> Bus:
    return Bus(retention_seconds=seconds, retention_bytes=size)


def _events(*names: str) -> list[bytes]:
    return [f"event: {name}\ndata: {{}}\n\n".encode() for name in names]


def _ready(viewer: Subscription | None) -> list[str]:
    assert viewer is not None
    found: list[str] = []
    while (one := viewer.ready()) is not None:
        found.append("DONE" if one[1] is DONE else one[1].split()[1].decode())
        if one[1] is DONE:
            break
    return found


def _ids(viewer: Subscription | None) -> list[str]:
    assert viewer is not None
    found: list[str] = []
    while (one := viewer.ready()) is not None:
        found.append(one[0])
    viewer.close()
    return found


@pytest.mark.behaviour("SSE-02", "SSE-54")
async def test_a_viewer_that_came_first_gets_all_and_the_end() -> None:
    bus = _bus()
    viewer = bus.subscribe("run_a", fresh=True)
    assert viewer.ready() is None
    bus.publish("run_a", _events("a", "b"), first=True)
    assert _ready(viewer) == ["a", "b"]
    bus.publish("run_a", _events("c"), settled=True)
    assert _ready(viewer) == ["c", "DONE"]
    with pytest.raises(StopAsyncIteration):
        await viewer.next(1)


async def test_a_viewer_waits_for_the_next_event() -> None:
    bus = _bus()
    viewer = bus.subscribe("run_a", fresh=True)
    waiting = asyncio.create_task(viewer.next(60))
    await asyncio.sleep(0)
    bus.publish("run_a", _events("a"), first=True)
    found = await waiting
    assert found is not None
    assert found[1] == _events("a")[0]
    assert await viewer.next(0.001) is None
    bus.publish("run_a", [], settled=True)
    assert [event async for _, event in viewer] == [DONE]


async def test_a_stream_of_one_turn_ends_at_its_end_and_one_of_the_run_goes_on() -> None:
    bus = _bus()
    bus.publish("run_a", _events("created"), first=True)
    bus.publish("run_a", _events("requires_action"), settled=True)
    turn = bus.subscribe("run_a")
    bus.publish("run_a", _events("queued", "completed"), settled=True)
    whole = bus.resume("run_a", None)
    assert _ready(turn) == ["queued", "completed", "DONE"]
    assert _ready(whole) == ["created", "requires_action", "queued", "completed", "DONE"]


async def test_a_viewer_goes_on_after_the_event_it_names() -> None:
    bus = _bus()
    bus.publish("run_a", _events("a", "b", "c"), first=True)
    ids = _ids(bus.resume("run_a", None))
    assert len(set(ids)) == 3
    assert _ready(bus.resume("run_a", ids[0])) == ["b", "c"]
    assert _ready(bus.resume("run_a", ids[2])) == []


@pytest.mark.parametrize("wrong", ["", "nonsense", "x-1", "{epoch}-", "{epoch}--1", "{epoch}-4"])
async def test_an_id_that_was_never_given_is_not_kept(wrong: str) -> None:
    bus = _bus()
    bus.publish("run_a", _events("a", "b", "c"), first=True)
    epoch = bus.id_of(1).partition("-")[0]
    assert bus.resume("run_a", wrong.format(epoch=epoch)) is None
    assert bus.resume("run_unknown", None) is None


async def test_a_channel_that_begins_in_the_middle_is_no_beginning() -> None:
    bus = _bus()
    bus.publish("run_a", _events("in_progress"))  # of a run that a server before this one began
    assert bus.resume("run_a", None) is None
    assert bus.resume("run_a", bus.id_of(0)) is None
    late = bus.attach("run_a")
    bus.publish("run_a", _events("completed"), settled=True)
    assert _ready(late) == ["completed", "DONE"]


async def test_a_late_viewer_of_a_finished_run_never_waits() -> None:
    bus = _bus()
    for _ in range(2):
        assert bus.resume("run_a", None) is None
        viewer = bus.attach("run_a")
        viewer.begin(_events("completed"), over=True)
        assert _ready(viewer) == ["completed", "DONE"]
    assert not bus._channels, "and nothing is left of it"


async def test_ids_are_not_given_again_when_a_channel_was_forgotten() -> None:
    bus = _bus(seconds=10)
    bus.publish("run_a", _events("a", "b", "c"), first=True)
    last = _ids(bus.resume("run_a", None))[-1]
    bus.publish("run_a", [], settled=True)
    clock.advance(11)
    bus.publish("run_b", _events("x"), first=True)  # whoever publishes next tidies up
    assert bus.resume("run_a", last) is None
    bus.publish("run_a", _events("d", "e", "f", "g", "h"))
    assert bus.resume("run_a", last) is None, "it missed nothing that it could be given"


async def test_the_end_of_the_prelude_has_an_id_to_go_on_from_and_its_inside_has_none() -> None:
    bus = _bus()
    bus.publish("run_a", _events("in_progress"))
    viewer = bus.attach("run_a")
    viewer.begin(_events("now", "then"), over=False)
    ids = _ids(viewer)
    bus.publish("run_a", _events("completed"), settled=True)
    assert bus.resume("run_a", ids[0]) is None
    assert _ready(bus.resume("run_a", ids[1])) == ["completed", "DONE"]


async def test_old_and_big_channels_go_and_watched_ones_stay() -> None:
    bus = _bus(seconds=10, size=2000)
    bus.publish("run_old", _events("a"), first=True, settled=True)
    bus.publish("run_watched", _events("a"), first=True, settled=True)
    viewer = bus.resume("run_watched", None)
    clock.advance(11)
    for number in range(50):
        bus.publish(f"run_{number}", _events("x" * 50), first=True, settled=True)
    assert bus.resume("run_old", None) is None
    assert _ready(viewer) == ["a", "DONE"]
    assert bus._size <= 2000 + 400
    assert bus._size == sum(channel.size for channel in bus._channels.values())


async def test_a_run_that_talks_without_end_keeps_its_newest_events() -> None:
    bus = _bus(size=4000)
    bus.publish("run_a", _events("created"), first=True)
    for number in range(200):
        bus.publish("run_a", _events(f"e{number}"))
    assert bus._size <= 4000 + 400
    assert bus.resume("run_a", None) is None
    newest = bus.resume("run_a", bus.id_of(200))
    assert _ready(newest) == ["e199"]


async def test_a_run_that_was_not_created_leaves_nothing() -> None:
    bus = _bus()
    viewer = bus.subscribe("run_a", fresh=True)
    viewer.close()
    viewer.close()
    bus.drop("run_a")
    assert not bus._channels
    assert bus._size == 0


async def test_signal_reaches_listeners_and_wakes_the_worker() -> None:
    bus = _bus()
    heard: list[str] = []
    bus.listeners.append(heard.append)
    bus.signal("run_a")
    assert heard == ["run_a"]
    assert bus.alarm.is_set()
    bus.alarm.clear()
    bus.poke()
    assert bus.alarm.is_set()
    assert heard == ["run_a"]
