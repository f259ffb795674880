"""kill -9 at every named point of a run: whatever was acknowledged is there, and the run comes to its one end."""

from pathlib import Path

import httpx
import pytest

from loomgate.engine.points import POINTS, Point
from tests.crash.check import check_consistent
from tests.crash.rig import Client, Crash, Forge, World
from tests.crash.stories import STORIES, Told, check_free, check_told

# One after the other over the whole table: each case is a server's death and another's birth.
CASES = [
    pytest.param(story, (point, number), id=f"{story}-{point}-{number}")
    for story, told in STORIES.items()
    for point, count in told.points.items()
    if point in (told.only or told.points)
    for number in (range(1, count + 1) if count <= 3 else (1, count))
]

# The server dies a second time where it picks the run up again.
TWICE: list[tuple[str, list[Crash]]] = [
    ("plain", [("opened", 1), ("claimed", 1), ("calling", 1)]),
    ("plain", [("delta", 4), ("delta", 2), ("settled", 1)]),
    ("text_then_tools", [("switched", 1), ("opened", 1)]),
    ("text_then_tools", [("switched", 1), ("answered", 1)]),
    ("text_then_tools", [("submitted", 1), ("opened", 1), ("answered", 1)]),
    ("parallel_tools", [("delta", 3), ("answered", 1), ("submitted", 1)]),
    ("cancelled", [("cancelling", 1), ("claimed", 1), ("ended", 1)]),
    ("expired_waiting", [("settled", 1), ("claimed", 1), ("ended", 1)]),
    ("enqueued", [("settled", 1), ("claimed", 1), ("opened", 1)]),
]


def play(world: World, story: str) -> Told:
    client = Client(world)
    try:
        told = STORIES[story].tell(client)
        world.expect_crashes()
        check_told(client, told)
        check_free(client, told)
    finally:
        client.close()
    world.end()
    check_consistent(world.database, ended=True)
    return told


def test_every_point_is_crashed_at() -> None:
    assert {point for story in STORIES.values() for point, count in story.points.items() if count} == set(POINTS)


@pytest.mark.parametrize("story", STORIES)
def test_a_story_without_a_crash_passes_these_points(forge: Forge, tmp_path: Path, story: str) -> None:
    world = World(forge, tmp_path)
    client = Client(world)
    told = STORIES[story].tell(client)
    check_told(client, told)
    client.close()
    world.stop()
    check_consistent(world.database, ended=True)
    assert dict(world.reached()) == {point: count for point, count in STORIES[story].points.items() if count}


@pytest.mark.behaviour("RUN-99", "RUN-31", "RUN-33", "RUN-37", "SSE-09")
@pytest.mark.parametrize(("story", "crash"), CASES)
def test_a_server_dies_at_a_point(forge: Forge, tmp_path: Path, story: str, crash: Crash) -> None:
    play(World(forge, tmp_path, crash), story)


@pytest.mark.behaviour("RUN-99")
@pytest.mark.parametrize(("story", "crashes"), TWICE)
def test_servers_die_again_and_again(forge: Forge, tmp_path: Path, story: str, crashes: list[Crash]) -> None:
    play(World(forge, tmp_path, *crashes), story)


# Where a crash costs a second call of the same turn: between the call and the commit of its end.
_PAID_TWICE: set[Point] = {"opened", "delta", "switched", "answered"}


def _calls(upstream: str) -> int:
    """How many requests the endpoint has got."""
    return len(httpx.get(upstream.removesuffix("/v1") + "/control/requests", trust_env=False).json())


@pytest.mark.behaviour("RUN-99")
@pytest.mark.parametrize(
    "crash", [(point, number) for point, count in STORIES["text_then_tools"].points.items() for number in {1, count}]
)
def test_a_finished_turn_is_not_paid_again(forge: Forge, tmp_path: Path, upstream: str, crash: Crash) -> None:
    """A real endpoint counts: nothing that was stored is asked of the model again."""
    before = _calls(upstream)
    env = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": upstream}
    world = World(forge, tmp_path, crash, env=env, model="stand-in")
    play(world, "text_then_tools")
    free = 1  # `check_free` has a run of its own
    twice = 1 if crash[0] in _PAID_TWICE else 0
    assert _calls(upstream) - before == STORIES["text_then_tools"].turns + free + twice
