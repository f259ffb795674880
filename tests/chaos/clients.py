"""Careful clients: each does stories with runs of its own, whatever happens to the servers, and notes what it is told.

What must live here: requests, and what a client does that got no answer. What must not: faults, and whether what was
noted is as it should be (`judge`). When no answer came the request may have been done, may still be done later, or
never: the client looks by the tag that it sent along, and sends another one, with another tag, only when there is
nothing to see.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from loomgate import clock
from loomgate.wire import lifecycle
from tests.chaos.judge import Notes, Object, Piece, Script, Stream, Tried
from tests.chaos.web import Lost, Refused, ask, asked, blocks

_REQUEST = 5.0  # seconds for an answer
_SILENCE = 4.0  # seconds without a byte of a stream, in which there should be several comments
_CANCELLED_TOO_LATE = ("completed", "cancel", "expired", "failed", "incomplete")
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}},
    }
    for name in ("look", "count")
]


class Stuck(Exception):
    """Something did not happen although no fault stood in its way any more."""


class Crowd:
    """What all clients share: where the API is, how many runs are still to be made, and until when they may take."""

    def __init__(self, ports: list[int], runs: int, seed: str) -> None:
        self.ports = ports
        self.left = runs
        self.seed = seed
        self.notes = Notes()
        self.assistant = ""
        self.deadline: float | None = None  # on `clock.monotonic`, once the faults have stopped
        self.lost: Counter[str] = Counter()  # requests without an answer, by the reason
        self.resumed = 0  # streams that were taken up again
        self.resyncs = 0  # streams that began anew

    def take(self) -> bool:
        """Whether there is one more run to make."""
        self.left -= 1
        return self.left >= 0

    def check(self, what: str) -> None:
        """Raises `Stuck` when the time for ``what`` is over."""
        if self.deadline is not None and clock.monotonic() > self.deadline:
            raise Stuck(what)


class Client:
    """One client, with a thread of its own at a time."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd, self._notes = crowd, crowd.notes
        self._name = f"{number}"
        self._chance = random.Random(f"{crowd.seed}-{number}")
        self._count = 0
        self._thread = ""
        self._runs_here = 0

    async def work(self) -> None:
        """Do stories until enough runs were made. Notes what got stuck."""
        try:
            while self._crowd.take():
                await self._story()
        except Stuck as stuck:
            self._notes.stuck.append(f"client {self._name}: {stuck}")

    async def tidy(self) -> list[str]:
        """Bring runs to their end that nobody knows of, since an attempt without an answer was done late, after
        another one. Only their client's turn is waited for: answers the others, which ought to be over."""
        hanging: list[str] = []
        for thread in await self.all("/v1/threads"):
            for run in await self.all(f"/v1/threads/{thread['id']}/runs"):
                if run["status"] == "requires_action":
                    await self._settle(run)
                elif run["status"] in lifecycle.ACTIVE:
                    hanging.append(f"run {run['id']} is still {run['status']}")
        return hanging

    # --- stories ---

    async def _story(self) -> None:
        kind = self._chance.choices(["plain", "stream", "tools", "slow", "cancel", "whole"], [3, 4, 6, 2, 2, 3])[0]
        if kind == "whole":
            run = await self._whole()
        else:
            if not self._thread or self._runs_here > 6:
                self._thread = (await self._new_thread())["id"]
                self._runs_here = 0
            self._runs_here += 1
            if self._chance.random() < 0.4:
                await self._say(f"by the way {self._next()}")
            script = self._script(kind)
            separate = self._chance.random() < 0.3
            if separate:
                await self._say(script)
            streamed = kind == "stream" or self._chance.random() < 0.5
            run = await self._run(None if separate else script, streamed=streamed)
        if kind == "cancel":
            await asyncio.sleep(self._chance.choice((0.0, 0.05, 0.3)))
            await self._cancel(run)
        await self._settle(run)

    def _next(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def _script(self, kind: str) -> str:
        """A script that nobody else sends, with what a run writes that plays it."""
        chance, key = self._chance, self._next()
        turns: list[str] = []
        texts: list[str] = []
        calls: list[int] = []
        if kind in ("tools", "cancel") or (kind == "stream" and chance.random() < 0.5):
            for turn in range(chance.choice((1, 1, 2))):
                lines: list[str] = []
                if chance.random() < 0.6:
                    lines.append(f"/say first {key} {turn}")
                    texts.append(f"first {key} {turn}")
                if chance.random() < 0.5:
                    lines.append(f"/wait {chance.choice((0.02, 0.2, 1.0))}")
                many = chance.randint(1, 3)
                lines += [f'/call {chance.choice(("look", "count"))} {{"at": {number}}}' for number in range(many)]
                calls.append(many)
                turns.append("\n".join(lines))
        words = " ".join(chance.choice(("oak", "fern", "moss", "reed", "ivy")) for _ in range(chance.randint(3, 25)))
        wait = chance.choice((0.0, 0.05, 0.3)) if kind != "slow" else chance.choice((2.0, 4.0, 6.0))
        turns.append(f"/say {key} {words}\n/wait {wait}\n/say well {key}")
        texts.append(f"{key} {words}\nwell {key}")
        text = "\n/turn\n".join(turns)
        self._notes.scripts[text] = Script(tuple(texts), tuple(calls))
        return text

    # --- requests ---

    def _port(self) -> int:
        return self._chance.choice(self._crowd.ports)

    async def _pause(self, what: str, lost: Lost) -> None:
        what = f"{what}: {lost}"
        self._crowd.lost[str(lost)[:90]] += 1
        self._crowd.check(what)
        await asyncio.sleep(self._chance.uniform(0.02, 0.4))

    async def _get(self, path: str) -> Object:
        """A read, as often as it takes."""
        while True:
            try:
                return await ask(self._port(), "GET", path, patience=_REQUEST)
            except Lost as lost:
                await self._pause(f"GET {path}", lost)

    async def all(self, path: str) -> list[Object]:
        """A whole list, oldest first."""
        found: list[Object] = []
        joint = "&" if "?" in path else "?"
        while True:
            after = f"&after={found[-1]['id']}" if found else ""
            page = await self._get(f"{path}{joint}order=asc&limit=100{after}")
            found += page["data"]
            if not page["has_more"]:
                return found

    def _tried(self, kind: Any, thread: str | None = None) -> Tried:
        tried = Tried(kind, self._next(), thread)
        self._notes.tried[f"{kind} {tried.tag}"] = tried
        return tried

    async def _make(
        self,
        kind: Any,
        send: Callable[[Tried], Awaitable[Object]],
        look: Callable[[set[str]], Awaitable[Object | None]],
        thread: str | None = None,
    ) -> Object:
        """Make one thing, once as far as can be seen."""
        tags: dict[str, Tried] = {}
        while True:
            tried = self._tried(kind, thread)
            tags[tried.tag] = tried
            try:
                made = await send(tried)
            except Lost as lost:
                await self._pause(f"a {kind}", lost)
            except Refused as refused:
                tried.refused = True
                if "active" not in refused.message or thread is None:
                    self._notes.odd.append(f"a {kind} was refused: {refused}")
                await self._clear(thread or "", set(tags))
            else:
                tried.id = made["id"]
                return made
            found = await look(set(tags))
            if found is not None:
                tags[found["metadata"]["tag"]].id = found["id"]
                return found

    async def _clear(self, thread: str, own: set[str]) -> None:
        """A run is active of which this client does not know yet: an earlier attempt was done after all."""
        self._crowd.check(f"thread {thread} stays locked")
        await asyncio.sleep(0.02)
        for run in await self.all(f"/v1/threads/{thread}/runs"):
            if run["status"] in lifecycle.ACTIVE and run["metadata"].get("tag") not in own:
                await self._settle(run)

    # --- verbs ---

    async def _new_thread(self) -> Object:
        async def send(tried: Tried) -> Object:
            return await ask(self._port(), "POST", "/v1/threads", {"metadata": {"tag": tried.tag}}, _REQUEST)

        return await self._make("thread", send, self._find_thread)

    async def _find_thread(self, tags: set[str]) -> Object | None:
        for tag in sorted(tags):
            found = (await self._get(f"/v1/threads?metadata[tag]={tag}"))["data"]
            if found:
                return found[0]
        return None

    async def _say(self, text: str) -> None:
        thread, path = self._thread, f"/v1/threads/{self._thread}/messages"

        async def send(tried: Tried) -> Object:
            body = {"role": "user", "content": text, "metadata": {"tag": tried.tag}}
            return await ask(self._port(), "POST", path, body, _REQUEST)

        message = await self._make("message", send, lambda tags: self._find(path, tags), thread)
        self._notes.said.append((thread, message["id"]))

    async def _find(self, path: str, tags: set[str]) -> Object | None:
        return next((row for row in await self.all(path) if row["metadata"].get("tag") in tags), None)

    def _message(self, tag: str, text: str) -> Object:
        """A message that is made together with a run or thread, by the same attempt."""
        self._notes.tried[f"message {tag}"] = Tried("message", tag)
        return {"role": "user", "content": text, "metadata": {"tag": tag}}

    async def _run(self, script: str | None, *, streamed: bool) -> Object:
        path = f"/v1/threads/{self._thread}/runs"

        async def send(tried: Tried) -> Object:
            body: Object = {"assistant_id": self._crowd.assistant, "metadata": {"tag": tried.tag}}
            if script is not None:
                body["additional_messages"] = [self._message(tried.tag, script)]
            if not streamed:
                return await ask(self._port(), "POST", path, body, _REQUEST)
            return await self._streamed("create", path, body)

        run = await self._make("run", send, lambda tags: self._find(path, tags), self._thread)
        self._notes.saw(run)
        return run

    async def _whole(self) -> Object:
        """A run on a new thread in one request."""
        script = self._script("stream")
        streamed = self._chance.random() < 0.5

        async def send(tried: Tried) -> Object:
            self._notes.tried[f"thread {tried.tag}"] = Tried("thread", tried.tag)
            body: Object = {
                "assistant_id": self._crowd.assistant,
                "thread": {"messages": [self._message(tried.tag, script)], "metadata": {"tag": tried.tag}},
                "metadata": {"tag": tried.tag},
            }
            if not streamed:
                return await ask(self._port(), "POST", "/v1/threads/runs", body, _REQUEST)
            return await self._streamed("create", "/v1/threads/runs", body)

        async def look(tags: set[str]) -> Object | None:
            thread = await self._find_thread(tags)
            return None if thread is None else await self._find(f"/v1/threads/{thread['id']}/runs", tags)

        run = await self._make("run", send, look)
        self._notes.tried[f"thread {run['metadata']['tag']}"].id = run["thread_id"]
        self._notes.saw(run)
        return run

    async def _cancel(self, run: Object) -> None:
        path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"
        self._notes.cancelled.add(run["id"])
        while True:
            try:
                return self._notes.saw(await ask(self._port(), "POST", path + "/cancel", {}, _REQUEST))
            except Lost as lost:
                await self._pause(f"cancelling {run['id']}", lost)
            except Refused as refused:
                if not any(word in refused.message for word in _CANCELLED_TOO_LATE):
                    self._notes.odd.append(f"cancelling {run['id']}: {refused}")
                return None

    async def _settle(self, run: Object) -> None:
        """Do what the run needs of its client until it is over."""
        path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"
        while True:
            if self._chance.random() < 0.3:
                await self._look_on(run)
            found = await self._get(path)
            self._notes.saw(found)
            if found["status"] in lifecycle.TERMINAL:
                return
            if found["status"] == "requires_action":
                await self._submit(found)
                continue
            self._crowd.check(f"run {run['id']} is {found['status']}")
            await asyncio.sleep(self._chance.choice((0.03, 0.1, 0.3)))

    async def _submit(self, run: Object) -> None:
        path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"
        calls = {call["id"]: call["function"] for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]}
        for id, function in calls.items():
            self._notes.outputs[id] = f"{function['name']} saw {function['arguments']} for {id}"
        outputs = [{"tool_call_id": id, "output": self._notes.outputs[id]} for id in calls]
        body: Object = {"tool_outputs": outputs}
        streamed = self._chance.random() < 0.4
        try:
            if streamed:
                await self._streamed("submit", path + "/submit_tool_outputs", body, run["id"])
            else:
                self._notes.saw(await ask(self._port(), "POST", path + "/submit_tool_outputs", body, _REQUEST))
            self._notes.submitted |= set(calls)
        except Lost as lost:
            await self._pause(f"submitting to {run['id']}", lost)  # `_settle` looks, and comes again if need be
        except Refused as refused:
            if run["id"] not in self._notes.cancelled and "requires_action" not in refused.message:
                now = await self._get(path)
                if now["status"] == "requires_action" and now["required_action"] == run["required_action"]:
                    self._notes.odd.append(f"submitting to {run['id']}: {refused}")

    # --- streams ---

    async def _streamed(self, begins: Any, path: str, body: Object, run_id: str | None = None) -> Object:
        """A request whose answer is a stream, looked at to its end, on other nodes when it breaks; gives the run's
        last state in it. Raises `Lost` when it broke before it said anything."""
        stream = Stream(run_id, begins)
        last: list[Object] = []
        try:
            await self._read(stream, last, "POST", path, {**body, "stream": True}, {"Loomgate-Event-Ids": "true"})
        except Lost:
            if not stream.pieces:
                raise
        else:
            if stream.ended and last:
                self._notes.streams.append(stream)
                return last[-1]
        if stream.run is None or not last:  # an error before the run: whether it was made is for the caller to see
            raise Lost("the stream broke off before the run was told of")
        self._notes.streams.append(stream)
        await self._go_on(stream, last)
        return last[-1]

    async def _look_on(self, run: Object) -> None:
        """Join the stream of a run under way."""
        stream = Stream(run["id"], "join")
        self._notes.streams.append(stream)
        await self._go_on(stream, [run])

    async def _go_on(self, stream: Stream, last: list[Object]) -> None:
        """Read on from where ``stream`` broke off until it ends."""
        path = f"/v1/threads/{last[-1]['thread_id']}/runs/{stream.run}/stream"
        while not stream.ended:
            ids = [piece.id for piece in stream.pieces if piece.id]
            headers = {"Last-Event-ID": ids[-1]} if ids else {}
            if stream.pieces:
                self._crowd.resumed += 1
                stream.pieces.append(Piece("break"))
            try:
                await self._read(stream, last, "GET", path, None, headers)
            except Lost as lost:
                await self._pause(f"the stream of {stream.run}", lost)

    async def _read(
        self, stream: Stream, last: list[Object], method: str, path: str, body: object, headers: dict[str, str]
    ) -> None:
        async with asked(self._port(), method, path, body, headers, _REQUEST) as answer:
            if answer.status != 200:
                await answer.json(_REQUEST)
            async with aclosing(blocks(answer, _SILENCE)) as found:  # type: ignore[type-var]
                failed = False
                async for block in found:
                    self._crowd.check(f"the stream of {stream.run} goes on and on")
                    piece = _piece(block)
                    if piece is None:
                        continue
                    if piece.what == "comment":
                        self._crowd.resyncs += 1
                    if piece.name == "error":
                        failed = True  # this node cannot go on; another one may
                        continue
                    if piece.name == "done" and failed:
                        return
                    stream.pieces.append(piece)
                    if piece.name.startswith("thread.run.") and "step" not in piece.name:
                        last.append(piece.data)
                        stream.run = piece.data["id"]
                    if piece.name == "done":
                        stream.ended = True
        if not stream.ended:
            raise Lost("the stream ended without done")


def _piece(block: str) -> Piece | None:
    """A block of a stream; ``None`` for one that only keeps the connection alive."""
    if block.startswith(":"):
        return None if "keep-alive" in block else Piece("comment", block)
    fields = dict(line.partition(": ")[::2] for line in block.split("\n"))
    name, data = fields["event"], fields["data"]
    return Piece("event", name, fields.get("id", ""), data if name == "done" else json.loads(data))
