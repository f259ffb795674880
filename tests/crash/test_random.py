"""Servers killed at random moments while several clients use them: nothing that was acknowledged is lost or doubled.

``CHAOS_SECONDS`` is how long (`make chaos-local`: five minutes). ``CHAOS_SEED`` repeats what an earlier run chose
and printed: the same clients do the same things, and the same pauses lie between the kills. The machine's own timing is
not repeated, so a failure may take several tries to come back.
"""

import os
import random
import signal
import sys
import threading
from pathlib import Path

import pytest

from loomgate import clock
from loomgate.wire import lifecycle
from tests.crash.check import TERMINAL, check_consistent
from tests.crash.rig import SOON, Client, Forge, Object, Refused, World, text_of
from tests.crash.stories import TOOLS

_CLIENTS = 3


class _Besieged(World):
    """A world whose server is killed by somebody else: clients wait for the next one."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        self._changed = threading.Condition()
        super().__init__(forge, folder)

    def recover(self) -> None:
        """Wait until the server that failed is gone and the next one is there."""
        with self._changed:
            asked = len(self.servers)
            # A caller may be late: the server that failed it was replaced meanwhile, and the newest one lives.
            self._changed.wait_for(lambda: len(self.servers) > asked or self.server.status is None, SOON)

    def strike(self) -> None:
        """Kill the server and start another."""
        old = self.server
        old.send(signal.SIGKILL)
        assert old.wait() == -signal.SIGKILL, old.log
        with self._changed:
            self.start()
            self._changed.notify_all()


class _Actor(threading.Thread):
    """A client with a thread of its own, and a ledger of what it was told."""

    def __init__(self, world: World, seed: str, deadline: float) -> None:
        super().__init__(daemon=True)
        self._random = random.Random(seed)
        self._name, self._deadline = seed, deadline
        self.client = Client(world)
        self.said: list[str] = []  # user messages, as acknowledged
        self.expected: dict[str, tuple[set[str], list[str]]] = {}  # run -> statuses, its texts when completed
        self._last: dict[str, str] = {}  # run -> the status it was last seen in
        self.error: BaseException | None = None
        self.thread = self.client.thread()
        self.assistant = self.client.assistant(tools=TOOLS)
        self._count = 0

    def run(self) -> None:
        try:
            while clock.monotonic() < self._deadline:
                self._random.choice([self._talk, self._plain, self._tools, self._cancel, self._add])()
        except BaseException as error:
            self.error = error

    def _next(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def _add(self) -> None:
        text = self._next()
        self.client.say(self.thread, text)
        self.said.append(text)

    def _begin(self, script: str) -> Object:
        """A run with its message in one request: both are there, or neither."""
        self.said.append(script)
        message = {"role": "user", "content": script}
        run = self.client.run(self.thread, self.assistant, additional_messages=[message])
        self._saw(run)
        return run

    def _saw(self, run: Object) -> None:
        """What a client once saw of a run is never taken back."""
        before, now = self._last.get(run["id"], "queued"), run["status"]
        assert now in _later(before), f"{run['id']} was {before} and is {now}"
        self._last[run["id"]] = now

    def _end(self, run: Object, statuses: set[str], texts: list[str]) -> None:
        self.expected[run["id"]] = (statuses, texts)
        run = self.client.settled(run)
        self._saw(run)
        assert run["status"] in statuses, run

    def _plain(self) -> None:
        text = self._next()
        self._end(self._begin(f"/say {text} one two three"), {"completed"}, [f"{text} one two three"])

    def _talk(self) -> None:
        """One that takes a moment."""
        text, wait = self._next(), self._random.choice((0.02, 0.1, 0.3))
        self._end(self._begin(f"/say {text}\n/wait {wait}\n/say well"), {"completed"}, [f"{text}\nwell"])

    def _tools(self) -> None:
        text, many = self._next(), self._random.randint(1, 3)
        calls = "".join(f'\n/call look {{"at": {number}}}' for number in range(many))
        run = self._begin(f"/say {text}{calls}\n/wait 0.02\n/turn\n/say so {text}")
        found = self.client.settled(run)
        self._saw(found)
        assert found["status"] == "requires_action", found
        required = found["required_action"]["submit_tool_outputs"]["tool_calls"]
        assert len(required) == many
        self.client.submit(run, {call["id"]: "seen" for call in required})
        self._last[run["id"]] = "queued"
        self._end(run, {"completed"}, [text, f"so {text}"])

    def _cancel(self) -> None:
        text = self._next()
        run = self._begin(f"/say {text}\n/wait {self._random.choice((0.05, 5))}\n/say well")
        try:
            self.client.cancel(run)
        except Refused as refused:
            if "'completed'" not in refused.message and "'cancel" not in refused.message:
                raise
        self._end(run, {"completed", "cancelled"}, [f"{text}\nwell"])

    def check(self) -> None:
        """Compare the ledger with what there is: each message once and in order, each run at its end."""
        assert self.error is None, f"client {self._name}: {self.error!r}"
        messages = self.client.messages(self.thread)
        assert [text_of(message) for message in messages if message["run_id"] is None] == self.said
        runs = self.client.all(f"/threads/{self.thread}/runs")
        assert [run["id"] for run in runs] == list(self.expected)
        for run in runs:
            statuses, texts = self.expected[run["id"]]
            self._saw(run)
            assert run["status"] in statuses & TERMINAL
            own = [text_of(message) for message in messages if message["run_id"] == run["id"]]
            if run["status"] == "completed":
                assert own == texts
            else:
                assert all(whole.startswith(text) for text, whole in zip(own, texts, strict=False))
        self.client.close()


def _later(status: str) -> set[str]:
    """The statuses that a run may be in when it was in ``status`` before (its client submits nothing meanwhile)."""
    found, new = set[str](), {status}
    while new:
        found |= new
        new = {verb.target for name, verb in lifecycle.RUN.items() if name != "resume" and found & set(verb.sources)}
        new -= found
    return found


@pytest.mark.behaviour("RUN-99", "RUN-31")
def test_random_kills_lose_and_double_nothing(forge: Forge, tmp_path: Path) -> None:
    seed = os.environ.get("CHAOS_SEED") or str(random.SystemRandom().randrange(10**6))
    seconds = float(os.environ.get("CHAOS_SECONDS") or 15)
    sys.stdout.write(f"\nCHAOS_SEED={seed} CHAOS_SECONDS={seconds:g}\n")
    chance = random.Random(seed)
    world = _Besieged(forge, tmp_path)
    deadline = clock.monotonic() + seconds
    actors = [_Actor(world, f"{seed}-{number}", deadline) for number in range(_CLIENTS)]
    for actor in actors:
        actor.start()
    pause = threading.Event()
    while clock.monotonic() < deadline and all(actor.error is None for actor in actors):
        pause.wait(chance.choice((0.0, 0.05, 0.2, 0.5, 1.0)))  # real time, in which clients and server race
        world.strike()
    for actor in actors:
        actor.join(10 * SOON)
        assert not actor.is_alive(), f"seed {seed}: a client waits for ever"
    for actor in actors:
        actor.check()
    runs = sum(len(actor.expected) for actor in actors)
    sys.stdout.write(f"{len(world.servers) - 1} kills, {runs} runs, {sum(len(a.said) for a in actors)} messages\n")
    world.stop()
    check_consistent(world.database, ended=True)
    assert runs > 0
    assert len(world.servers) > 1
