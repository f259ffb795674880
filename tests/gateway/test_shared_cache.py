"""The answer cache of several nodes, in a real Redis: bounds, secrets, clocks, and a Redis that goes away.

What it has in common with that of one process is tested there, of both: ``test_cache``, ``test_semantic``.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from loomgate import clock
from loomgate.gateway.cache import AnswerCache, CachePlan, Hit
from loomgate.gateway.semantic import Point, Question
from loomgate.gateway.shared_cache import SharedAnswerCache
from loomgate.store.seal import Sealer
from tests.gateway.nodes import Nodes, TwoNodes, nodes_at
from tests.support.engines import RedisServer, folder

pytestmark = pytest.mark.anyio

JSON = "application/json"
LIMIT = 256 * 1024


@pytest.fixture
async def nodes(redis_url: str) -> AsyncIterator[Nodes]:
    async with nodes_at(redis_url) as made:
        yield made


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def body_of(number: int, size: int = 100) -> bytes:
    return b'{"n":%d,"text":"%s"}' % (number, b"x" * size)


def question(number: int, dimensions: int = 64) -> Question:
    made = Question(b"g" * 32, f"question {number}")
    made.asked = True
    dice = random.Random(number)
    made.point = Point.of([dice.gauss(0, 1) for _ in range(dimensions)])
    return made


async def embed(_: str) -> list[float]:
    raise AssertionError("all points are known")


async def check(client: "Redis", prefix: str) -> tuple[int, int]:
    """How many answers there are and what they take, after a look at all that is beside them."""
    name = f"{prefix}:cache:"
    sizes = await client.hgetall(name + "sizes")
    total = int(await client.get(name + "total") or 0)
    assert total == sum(int(kept.split(b" ")[0]) for kept in sizes.values())
    for beside in ("used", "ends"):
        assert {who for who, _ in await client.zrange(name + beside, 0, -1, withscores=True)} == set(sizes)
    answers = {one.rpartition(b":")[2] async for one in client.scan_iter(name + "answer:*")}
    assert answers == set(sizes)
    groups: dict[bytes, set[bytes]] = {}
    for who, kept in sizes.items():
        if group := kept.split(b" ", 1)[1]:
            groups.setdefault(group, set()).add(who)
    for kind in ("order", "vectors"):
        assert {one.rpartition(b":")[2] async for one in client.scan_iter(f"{name}{kind}:*")} == set(groups)
    for group, members in groups.items():
        assert set(await client.hkeys(name + "vectors:" + group.decode())) == members
        assert set(await client.zrange(name + "order:" + group.decode(), 0, -1)) == members
    async for one in client.scan_iter(name + "*"):
        assert await client.ttl(one) > 0, one
    return len(sizes), total


async def test_the_least_recently_used_at_any_node_goes_first(nodes: Nodes) -> None:
    one, other = (SharedAnswerCache(nodes.node(), Sealer(b"k" * 32), LIMIT, embed) for _ in range(2))
    most = 0
    for number in range(300):
        clock.advance(0.01)
        plan = CachePlan(key_of(number), 3600, question=question(number) if number % 3 else None)
        await (one, other)[number % 2].store(plan, 200, JSON, body_of(number))
        clock.advance(0.01)
        assert await one.lookup(CachePlan(key_of(0), 3600)) is not None, "which is used all the time"
        most = max(most, (await check(nodes.client(), nodes.prefix))[1]) if number % 50 == 49 else most
    count, size = await check(nodes.client(), nodes.prefix)
    assert LIMIT - 4096 < size <= most <= LIMIT
    assert 100 < count < 250
    assert await other.lookup(CachePlan(key_of(1), 3600)) is None
    assert await other.lookup(CachePlan(key_of(299), 3600)) is not None
    assert await other.lookup(CachePlan(key_of(300 - count + 2), 3600)) is not None


async def test_what_it_counts_is_what_it_takes() -> None:
    """Smallest answers, where the book-keeping weighs most."""
    with folder() as place:
        server = RedisServer(place)
        server.start()
        async with nodes_at(server.url) as nodes:
            cache = SharedAnswerCache(nodes.node(), Sealer(b"k" * 32), 64 * 1024 * 1024, embed)
            client = nodes.client()
            before = (await client.info("memory"))["used_memory"]
            for start in range(0, 2000, 100):
                await asyncio.gather(
                    *(
                        cache.store(CachePlan(key_of(n), 3600, question=question(n % 900)), 200, JSON, b'{"n":%d}' % n)
                        for n in range(start, start + 100)
                    )
                )
            taken = (await client.info("memory"))["used_memory"] - before
            count, size = await check(client, nodes.prefix)
        server.stop()
    assert count == 1000, "as many as are compared"
    assert 0.4 * size < taken <= size


async def test_ended_answers_make_room(nodes: Nodes) -> None:
    cache = SharedAnswerCache(nodes.node(), Sealer(b"k" * 32), LIMIT, embed)
    for number in range(10):
        await cache.store(CachePlan(key_of(number), 60, question=question(number)), 200, JSON, body_of(number))
    clock.advance(61)
    await cache.store(CachePlan(key_of(99), 60), 200, JSON, body_of(99))
    assert (await check(nodes.client(), nodes.prefix))[0] == 1


async def test_redis_forgets_by_itself(nodes: Nodes) -> None:
    cache = SharedAnswerCache(nodes.node(), Sealer(b"k" * 32), LIMIT, embed)
    await cache.store(CachePlan(key_of(1), 1, question=question(1)), 200, JSON, body_of(1))
    client = nodes.client()
    while [name async for name in client.scan_iter(f"{nodes.prefix}:cache:*")]:  # noqa: ASYNC110 - Redis tells nobody
        await asyncio.sleep(0.05)


async def test_nothing_in_redis_can_be_read(nodes: Nodes) -> None:
    cache = SharedAnswerCache(nodes.node(), Sealer(b"k" * 32), LIMIT, embed)
    point = question(1).point
    assert point is not None
    plan = CachePlan(key_of(1), 3600, question=question(1))
    await cache.store(plan, 200, JSON, b'{"said":"to Ann only"}')
    client = nodes.client()
    seen = b""
    async for name in client.scan_iter(f"{nodes.prefix}:cache:*"):
        seen += name + await client.dump(name)
    assert b"Ann" not in seen
    assert point.vector.tobytes()[:16] not in seen
    # Nor moved: what is sealed for one question does not open for another.
    answers = [name async for name in client.scan_iter(f"{nodes.prefix}:cache:answer:*")]
    await cache.store(CachePlan(key_of(2), 3600), 200, JSON, b'{"said":"to Bob"}')
    (other,) = {name async for name in client.scan_iter(f"{nodes.prefix}:cache:answer:*")} - set(answers)
    await client.copy(answers[0], other, replace=True)
    assert await cache.lookup(CachePlan(key_of(2), 3600)) is None
    assert await cache.lookup(plan) == Hit(b'{"said":"to Ann only"}', JSON)
    stranger = SharedAnswerCache(nodes.node(), Sealer(b"s" * 32), LIMIT, embed)
    assert await stranger.lookup(plan) is None


async def test_nodes_whose_clocks_differ_a_little(nodes: Nodes) -> None:
    cache = SharedAnswerCache(nodes.node(), Sealer(b"k" * 32), LIMIT, embed)
    plan = CachePlan(key_of(1), 3600)
    await cache.store(plan, 200, JSON, body_of(1))
    try:
        clock.advance(-30)
        assert await cache.lookup(plan) is not None
        clock.advance(-40)
        assert await cache.lookup(plan) is None, "nobody knows how old it is"
    finally:
        clock.advance(70)


async def test_a_group_is_learned_once_and_then_what_is_new(nodes: Nodes) -> None:
    one, other = (SharedAnswerCache(nodes.node(), Sealer(b"k" * 32), 8 * LIMIT, embed) for _ in range(2))
    for number in range(150):  # more than one answer of Redis holds
        await one.store(CachePlan(key_of(number), 3600, question=question(number)), 200, JSON, body_of(number))

    async def asked(number: int) -> int | None:
        hit = await other.lookup(CachePlan(key_of(10_000 + number), 3600, question=question(number)))
        assert hit is None or hit.semantic
        return None if hit is None else int(hit.body[5:].partition(b",")[0])

    assert [await asked(number) for number in (0, 31, 32, 149)] == [0, 31, 32, 149]
    client = nodes.client()
    before = (await client.info("stats"))["total_net_output_bytes"]
    assert await asked(77) == 77
    assert (await client.info("stats"))["total_net_output_bytes"] - before < 12_000, "an answer, and no vectors"
    await one.store(CachePlan(key_of(150), 3600, question=question(150)), 200, JSON, body_of(150))
    assert await asked(150) == 150
    # What Redis forgot is forgotten here, and learned again.
    async for name in client.scan_iter(f"{nodes.prefix}:cache:*"):
        await client.delete(name)
    assert await asked(3) is None
    await one.store(CachePlan(key_of(3), 3600, question=question(3)), 200, JSON, body_of(3003))
    assert await asked(3) == 3003


async def test_what_a_node_keeps_of_vectors_is_bounded(nodes: Nodes) -> None:
    cache = SharedAnswerCache(nodes.node(), Sealer(b"k" * 32), LIMIT, embed)
    for group in range(12):
        for number in range(30):
            asked = question(number)
            asked.group = bytes([group]) * 32
            plan = CachePlan(key_of(1000 * group + number), 3600, question=asked)
            await cache.store(plan, 200, JSON, body_of(number))
        await cache.lookup(CachePlan(key_of(99_999), 3600, question=asked))
        assert cache._vectors <= LIMIT
        assert cache._vectors == sum(one.size for one in cache._groups.values())
    assert 1 < len(cache._groups) < 12
    assert set(cache._neighbours._groups) <= set(cache._groups)


async def test_without_redis_nothing_is_found_and_nothing_kept() -> None:
    with folder() as place:
        server = RedisServer(place)
        server.start()
        async with nodes_at(server.url) as nodes:
            cache = SharedAnswerCache(nodes.node(seconds=0.3), Sealer(b"k" * 32), LIMIT, embed)
            plan = CachePlan(key_of(1), 3600, question=question(1))
            await cache.store(plan, 200, JSON, body_of(1))
            assert await cache.lookup(plan) is not None
            server.stop()
            began = clock.monotonic()
            for _ in range(20):
                assert await cache.lookup(plan) is None
                await cache.store(plan, 200, JSON, body_of(1))
            assert clock.monotonic() - began < 1.0
            server.start()
            while await cache.lookup(plan) is None:
                await cache.store(plan, 200, JSON, body_of(2))
                await asyncio.sleep(0.05)
        server.stop()


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(0, 7), st.sampled_from([60, 600]), st.booleans()),
        st.tuples(st.just("look"), st.integers(0, 7), st.sampled_from([60, 600])),
        st.tuples(st.just("near"), st.integers(0, 7), st.sampled_from([60, 600])),
        st.tuples(st.just("fail"), st.integers(0, 7)),
        st.tuples(st.just("large"), st.integers(0, 7)),
        st.tuples(st.just("wait"), st.sampled_from([1, 30, 90, 700])),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_one_process_and_two_nodes_answer_alike(redis_url: str, steps: list[tuple[Any, ...]]) -> None:
    def plan(number: int, max_age: int, refresh: bool = False, near: int = 0) -> CachePlan:
        # Every second question has a point; two each lie close together.
        asked = None
        if number % 2:
            asked = question(number // 4)
            asked.text = str(number)
        return CachePlan(key_of(number + near), max_age, refresh, asked)

    async def told() -> None:
        async with nodes_at(redis_url) as nodes:
            one, both = AnswerCache(LIMIT, embed), TwoNodes(nodes, LIMIT, embed)
            for number, step in enumerate(steps):
                if step[0] == "store":
                    for cache in (one, both):
                        await cache.store(plan(*step[1:]), 200, JSON, body_of(number))
                elif step[0] in ("look", "near"):
                    near = 1000 if step[0] == "near" else 0
                    hits = [await cache.lookup(plan(step[1], step[2], near=near)) for cache in (one, both)]
                    assert hits[0] == hits[1]
                elif step[0] == "fail":
                    for cache in (one, both):
                        await cache.store(plan(step[1], 60), 500, JSON, body_of(number))
                elif step[0] == "large":
                    for cache in (one, both):
                        await cache.store(plan(step[1], 60), 200, JSON, body_of(number, LIMIT // 16))
                else:
                    clock.advance(step[1])
            await check(nodes.client(), nodes.prefix)

    asyncio.run(told())
