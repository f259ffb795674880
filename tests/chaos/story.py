"""One whole story: a cluster, clients, faults, and the verdict."""

import asyncio
import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path

from loomgate import clock
from tests.chaos.clients import TOOLS, Client, Crowd
from tests.chaos.cluster import LEASE, Cluster
from tests.chaos.judge import judge
from tests.chaos.reading import read
from tests.chaos.schedule import faults
from tests.chaos.web import ask

_AFTERWARDS = 45.0  # seconds for everything to come to its end once the last fault is mended


@dataclass
class Plan:
    """How much happens. ``faults``: how many at the most."""

    seed: str
    runs: int
    apis: int = 3
    workers: int = 3
    clients: int = 24
    faults: int | None = None
    pause: tuple[float, float] = (0.3, 2.5)


@dataclass
class Told:
    """What came of it: ``wrong`` is every fault of the product that was found."""

    wrong: list[str]
    lines: list[str] = field(default_factory=list[str])


def say(line: str) -> None:
    """A line for whoever watches."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def happens(plan: Plan, folder: Path) -> Told:
    """Let it all happen below ``folder``; gives the verdict."""
    cluster = Cluster(folder, plan.apis, plan.workers)
    try:
        await cluster.start()
        return await _story(plan, cluster, folder)
    finally:
        await cluster.close()


async def _story(plan: Plan, cluster: Cluster, folder: Path) -> Told:
    crowd = Crowd(cluster.ports, plan.runs, plan.seed)
    made = await ask(cluster.ports[0], "POST", "/v1/assistants", {"model": "scripted", "tools": TOOLS})
    crowd.assistant = made["id"]
    over = asyncio.Event()
    began = clock.monotonic()
    planned = itertools.islice(faults(plan.seed, list(cluster.nodes), LEASE, plan.pause), plan.faults)
    suffering = asyncio.create_task(cluster.suffer(planned, over))
    clients = [Client(crowd, number) for number in range(plan.clients)]
    working = [asyncio.create_task(client.work()) for client in clients]
    watching = asyncio.create_task(_watch(crowd, cluster, began))
    try:
        while crowd.left > 0 and not all(task.done() for task in working):  # noqa: ASYNC110 - looks, ten times a second
            await asyncio.sleep(0.1)
        over.set()
        await suffering
        mended = clock.monotonic()
        crowd.deadline = mended + _AFTERWARDS
        await asyncio.gather(*working)
        ended = clock.monotonic()
    finally:
        over.set()
        watching.cancel()
        for task in (suffering, *working):
            task.cancel()
        await asyncio.gather(suffering, *working, return_exceptions=True)
    crowd.deadline = ended + 120
    owner = Client(crowd, len(clients))
    wrong = await owner.tidy()
    stored, found = await read(cluster.url, folder, owner)
    wrong += found
    wrong += judge(crowd.notes, stored)
    for node in cluster.nodes.values():
        status = await node.stop()
        if status:
            wrong.append(f"{node.name} ended with {status} when it was stopped: {node.said()[-1000:]}")
    wrong += cluster.complaints()
    kinds = {fault.kind for fault in cluster.faults}
    counts = ", ".join(f"{sum(f.kind == kind for f in cluster.faults)} {kind}" for kind in sorted(kinds))
    notes = crowd.notes
    lines = [
        f"{sum(map(len, stored.runs.values()))} runs, {sum(map(len, stored.messages.values()))} messages in"
        f" {len(stored.runs)} threads, {len(notes.streams)} streams ({crowd.resumed} times resumed,"
        f" {crowd.resyncs} times begun anew), {crowd.lost.total()} requests without an answer",
        "without an answer: " + "; ".join(f"{count} {why}" for why, count in crowd.lost.most_common(8)),
        f"{len(cluster.faults)} faults ({counts}) in {mended - began:.0f} s; all was over {ended - mended:.1f} s later",
    ]
    return Told(wrong, lines)


async def _watch(crowd: Crowd, cluster: Cluster, began: float) -> None:
    while True:
        await asyncio.sleep(20)
        say(f"  {clock.monotonic() - began:4.0f} s: {max(crowd.left, 0)} runs to go, {len(cluster.faults)} faults")
