"""Whatever clients do and whatever happens to the workers, in any order: the promises of a run hold.

Each step of a test is one thing that a client does, one that happens to a worker, some turns of the event loop, or
time that passes. After each, what was committed is held against the state tables; at the end, after enough time,
everything has come to its end and every thread says what it should.

``LOOMGATE_PROPERTIES=long`` looks for longer.
"""

# ruff: noqa: PT017 - a machine does not know beforehand whether a call is refused, only what the refusal must be

import os
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.run_fields import wrong_change, wrong_message, wrong_run, wrong_step
from tests.support.scripts import Script, Turn, expected, scripts
from tests.support.simulation import Change, Process, RecordingBus, Simulation, parse

from loomgate import clock
from loomgate.bus import Subscription
from loomgate.errors import ApiError
from loomgate.wire import lifecycle
from loomgate.wire.ids import new_id
from loomgate.wire.page import PageQuery
from loomgate.wire.runs import Run, RunSpec
from loomgate.wire.threads import Message, Text, TextContent, Thread, ThreadOptions
from loomgate.wire.tools import Function, FunctionTool

LONG = os.environ.get("LOOMGATE_PROPERTIES") == "long"
PROFILE = settings(
    max_examples=3000 if LONG else 120,
    stateful_step_count=80 if LONG else 40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)

_TABLES: dict[str, Any] = {"run": lifecycle.RUN, "step": lifecycle.STEP, "message": lifecycle.MESSAGE}
_LEGAL = {
    kind: {(source, move.target) for move in table.values() for source in move.sources}
    for kind, table in _TABLES.items()
}
_WRONG: dict[str, Any] = {"run": wrong_run, "step": wrong_step, "message": wrong_message}
_WORKSPACE = "default"
_TOOLS = [FunctionTool(function=Function(name=name)) for name in ("look", "count")]


@dataclass
class _Thread:
    id: str
    rule: str
    messages: list[str] = field(default_factory=list)  # accepted and not deleted, in the order of acceptance
    gone: bool = False


@dataclass
class _Run:
    id: str
    thread: _Thread
    script: Script
    said: str  # id of the message that holds the script
    outputs: list[tuple[str, str]] = field(default_factory=list)
    asked: dict[str, str] = field(default_factory=dict)  # calls that it waits for: id -> name
    vague: bool = False  # its script was deleted: what it writes is not known
    touched: bool = False  # a message of its own was deleted
    seen: list[str] = field(default_factory=list)  # statuses as committed
    notes: dict[str, str] = field(default_factory=dict)  # metadata that a client gave to its messages
    viewers: list["_Viewer"] = field(default_factory=list)


@dataclass
class _Viewer:
    stream: Subscription
    told: list[tuple[str, Any]] = field(default_factory=list)
    over: bool = False


class _Life(RuleBasedStateMachine):
    """What clients do, and what must hold whatever else goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.sim: Simulation
        self.threads: list[_Thread] = []
        self.runs: dict[str, _Run] = {}
        self.bodies: dict[str, dict[str, Any]] = {}
        self.deleted: set[str] = set()  # messages that a client deleted

    @initialize(default=st.sampled_from(["reject", "enqueue", "interrupt"]))
    def begin(self, default: str) -> None:
        self.default = default
        self.sim = Simulation(default)
        self.sim.add_worker()
        self.set_up()

    def set_up(self) -> None:
        """More of the machine."""

    # What clients do. ``patient``: the client waits for its answer, else its call goes on beside what comes next.

    def _do(self, work: Any, patient: bool) -> None:
        if patient:
            self.sim.call(work)
        else:
            self.sim.spawn(work)

    def _message(self, thread: str, text: str) -> Message:
        now = clock.timestamp()
        return Message(
            id=new_id("msg"),
            created_at=now,
            completed_at=now,
            thread_id=thread,
            role="user",
            content=[TextContent(Text(text))],
        )

    def _some(self, data: st.DataObject, of: list[Any]) -> Any:
        return of[data.draw(st.integers(0, len(of) - 1))]

    @rule(
        script=scripts(),
        own=st.sampled_from([None, "reject", "enqueue", "interrupt"]),
        stream=st.booleans(),
        patient=st.booleans(),
    )
    def create_thread_and_run(self, script: Script, own: str | None, stream: bool, patient: bool) -> None:
        thread = _Thread(new_id("thread"), own or self.default)
        made = Thread(id=thread.id, created_at=clock.timestamp())
        if own is not None:
            made.loomgate = ThreadOptions(on_active_run=own)
        self._do(self._create(thread, script, stream, made), patient)

    @precondition(lambda self: self.threads)
    @rule(data=st.data(), script=scripts(), stream=st.booleans(), patient=st.booleans())
    def create_run(self, data: st.DataObject, script: Script, stream: bool, patient: bool) -> None:
        self._do(self._create(self._some(data, self.threads), script, stream), patient)

    @precondition(lambda self: self.threads)
    @rule(data=st.data(), one=scripts(), other=scripts())
    def two_at_once(self, data: st.DataObject, one: Script, other: Script) -> None:
        thread = self._some(data, self.threads)
        self.sim.spawn(self._create(thread, one, False))
        self.sim.spawn(self._create(thread, other, False))

    async def _create(self, thread: _Thread, script: Script, stream: bool, made: Thread | None = None) -> None:
        now = clock.timestamp()
        message = self._message(thread.id, script.text)
        run = Run(
            id=new_id("run"),
            created_at=now,
            assistant_id="asst_one",
            thread_id=thread.id,
            expires_at=now + 600,
            model="scripted",
            tools=_TOOLS,
            parallel_tool_calls=script.parallel,
        )
        known = self.runs[run.id] = _Run(run.id, thread, script, message.id)
        try:
            started = await self.sim.engine.create_run(_WORKSPACE, run, RunSpec(), [message], made, stream=stream)
        except ApiError as error:
            del self.runs[run.id]
            if error.status == 404:
                assert thread.gone
            else:
                assert thread.rule == "reject", error
                assert "already has an active run" in error.message
            return
        thread.messages.append(message.id)
        if made is not None:
            self.threads.append(thread)
        shown = msgspec.json.decode(started.body)
        assert shown["status"] == "queued"
        self._look("run", shown)
        if started.stream is not None:
            known.viewers.append(_Viewer(started.stream))

    @precondition(lambda self: self.threads)
    @rule(data=st.data(), patient=st.booleans())
    def add_message(self, data: st.DataObject, patient: bool) -> None:
        async def work() -> None:
            message = self._message(thread.id, "By the way.")
            try:
                await self.sim.engine.add_message(_WORKSPACE, message)
            except ApiError as error:
                assert thread.gone if error.status == 404 else thread.rule == "reject", error
            else:
                thread.messages.append(message.id)

        thread = self._some(data, self.threads)
        self._do(work(), patient)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), patient=st.booleans())
    def cancel(self, data: st.DataObject, patient: bool) -> None:
        async def work() -> None:
            try:
                body = await self.sim.engine.cancel_run(_WORKSPACE, run.thread.id, run.id)
            except ApiError as error:
                assert error.status in (400, 404)
                assert error.status == 404 or "Cannot cancel run with status" in error.message
            else:
                shown = msgspec.json.decode(body)
                assert shown["status"] == "cancelling"
                self._look("run", shown)

        run = self._some(data, list(self.runs.values()))
        self._do(work(), patient)

    @precondition(lambda self: any(run.asked for run in self.runs.values()))
    @rule(
        data=st.data(),
        how=st.sampled_from(["right"] * 6 + ["missing", "unknown", "twice"]),
        stream=st.booleans(),
        patient=st.booleans(),
    )
    def submit(self, data: st.DataObject, how: str, stream: bool, patient: bool) -> None:
        run = self._some(data, [run for run in self.runs.values() if run.asked])
        asked = dict(run.asked)
        outputs = [(id, f"{name}-{number}") for number, (id, name) in enumerate(asked.items())]
        names = [(name, f"{name}-{number}") for number, name in enumerate(asked.values())]
        given = {
            "right": list(reversed(outputs)),
            "missing": outputs[1:],
            "unknown": [*outputs[1:], ("call_of_nobody", "x")],
            "twice": [*outputs, outputs[0]],
        }[how]

        async def work() -> None:
            try:
                started = await self.sim.engine.submit_tool_outputs(
                    _WORKSPACE, run.thread.id, run.id, given, stream=stream
                )
            except ApiError as error:
                assert error.status in (400, 404)
                if error.status == 400:
                    wrong = how != "right" and "Expected tool outputs for call_ids" in error.message
                    assert wrong or "do not accept tool outputs" in error.message
                return
            assert how == "right"
            run.outputs += names
            shown = msgspec.json.decode(started.body)
            assert shown["status"] == "queued"
            self._look("run", shown)
            if started.stream is not None:
                run.viewers.append(_Viewer(started.stream))

        self._do(work(), patient)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def modify_run(self, data: st.DataObject) -> None:
        async def work() -> None:
            try:
                body = await self.sim.engine.modify_run(
                    _WORKSPACE, run.thread.id, run.id, lambda run: msgspec.structs.replace(run, metadata={"a": "b"})
                )
            except ApiError as error:
                assert error.status == 404 or "Cannot update run with status" in error.message
            else:
                shown = msgspec.json.decode(body)
                assert shown["status"] in lifecycle.TERMINAL
                assert shown["metadata"] == {"a": "b"}

        run = self._some(data, list(self.runs.values()))
        self.sim.call(work())

    @precondition(lambda self: any(body for body in self.bodies.values()))
    @rule(data=st.data(), delete=st.booleans(), patient=st.booleans())
    def change_message(self, data: st.DataObject, delete: bool, patient: bool) -> None:
        ids = [id for id in self.bodies if id.startswith("msg_")]
        if not ids:
            return
        id = self._some(data, ids)
        thread = next(known for known in self.threads_and_new() if known.id == self.bodies[id]["thread_id"])
        threads = self.sim.store.threads

        async def drop() -> None:
            try:
                await threads.delete_message(_WORKSPACE, thread.id, id)
            except ApiError as error:
                assert error.status == 404
                return
            self.deleted.add(id)
            if id in thread.messages:
                thread.messages.remove(id)
            for run in self.runs.values():
                run.vague = run.vague or run.said == id
                run.touched = run.touched or run.id == self.bodies[id]["run_id"]

        async def note() -> None:
            try:
                await threads.modify_message(
                    _WORKSPACE, thread.id, id, lambda found: msgspec.structs.replace(found, metadata={"note": "1"})
                )
            except ApiError as error:
                assert error.status == 404
                return
            for run in self.runs.values():
                if run.id == self.bodies[id]["run_id"]:
                    run.notes[id] = "1"

        self._do(drop() if delete else note(), patient)

    def threads_and_new(self) -> list[_Thread]:
        return [*self.threads, *(run.thread for run in self.runs.values())]

    @precondition(lambda self: len(self.threads) > 2)
    @rule(data=st.data(), patient=st.booleans())
    def delete_thread(self, data: st.DataObject, patient: bool) -> None:
        async def work() -> None:
            try:
                await self.sim.engine.delete_thread(_WORKSPACE, thread.id)
            except ApiError as error:
                assert error.status == 404

        thread = self._some(data, self.threads)
        thread.gone = True
        self.threads.remove(thread)
        self._do(work(), patient)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        run = self._some(data, list(self.runs.values()))
        if not run.thread.gone:
            self.sim.call(self._read(run))

    async def _read(self, run: _Run) -> dict[str, Any] | None:
        engine, thread = self.sim.engine, run.thread.id
        try:
            body = await engine.get_run(_WORKSPACE, thread, run.id)
            listed = await engine.list_runs(_WORKSPACE, thread, PageQuery(limit=100))
            steps = await engine.list_steps(_WORKSPACE, thread, run.id, PageQuery(limit=100, order="asc"))
        except ApiError as error:
            assert error.status == 404
            return None
        shown: dict[str, Any] = msgspec.json.decode(body)
        assert body in listed.bodies, "a list shows what retrieve shows"
        if shown["status"] in lifecycle.ACTIVE:
            assert clock.now() < shown["expires_at"], "nobody sees an overdue run as active"
        self._look("run", shown)
        for step in map(msgspec.json.decode, steps.bodies):
            self._look("step", step)
            assert step["expires_at"] == (shown["expires_at"] if shown["status"] in lifecycle.ACTIVE else None)
        return shown

    # What happens by itself

    @rule(times=st.integers(1, 12))
    def go_on(self, times: int) -> None:
        self.sim.turn(times)

    @rule()
    def go_on_until_nothing_is_left(self) -> None:
        self.sim.settle()

    @rule(seconds=st.sampled_from([0.3, 1.0, 3.0, 6.0, 20.0, 20.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.sim.advance(seconds)

    # What must hold

    def _look(self, kind: str, shown: dict[str, Any]) -> None:
        assert not (wrong := _WRONG[kind](shown)), wrong

    @invariant()
    def only_legal_changes(self) -> None:
        if not hasattr(self, "sim"):
            return
        for change in self.sim.changes():
            self._hold(change)
        holders = self.sim.holders()
        assert len({thread for thread, _ in holders}) == len(holders)
        assert all(status in lifecycle.ACTIVE for _, status in holders), "only an active run holds its thread"
        assert all(count == 1 for _, count in self.sim.executing()), "one run of a thread at a time"

    def _hold(self, change: Change) -> None:
        if change.new is not None:
            assert change.new["status"] == change.after, "column and body agree"
            self._look(change.kind, change.new)
            self.bodies[change.id] = change.new
        if change.verb == "insert":
            first = {"run": "queued", "step": "in_progress"}.get(change.kind)
            assert first is None or change.after == first
        elif change.verb == "delete":
            assert change.id in self.deleted or change.before == "in_progress" or self._in_deletion(change.id), (
                "what is finished stays"
            )
        elif change.before != change.after:
            assert (change.before, change.after) in _LEGAL[change.kind], change
            if change.kind == "run":
                assert change.old is not None
                assert change.new is not None
                assert not (wrong := wrong_change(change.old, change.new)), wrong
        elif change.before in lifecycle.TERMINAL and change.kind != "message":
            assert {**change.old, "metadata": {}} == {**change.new, "metadata": {}}, "an end is the end"
        if change.kind == "run":
            self._note(self.runs.get(change.id), change)

    def _in_deletion(self, id: str) -> bool:
        """A delete call that is not answered yet."""
        return self.bodies[id].get("object") == "thread.message" and bool(self.sim.tasks)

    def _note(self, run: _Run | None, change: Change) -> None:
        if run is None or change.new is None:
            return
        run.seen.append(change.new["status"])
        action = change.new["required_action"]
        calls = action["submit_tool_outputs"]["tool_calls"] if action else []
        run.asked = {call["id"]: call["function"]["name"] for call in calls}
        if not run.script.parallel:
            assert len(calls) <= 1

    # The end

    def teardown(self) -> None:
        if not hasattr(self, "sim"):
            return
        try:
            self.rest()
            self.only_legal_changes()
            for run in self.runs.values():
                if not run.thread.gone:
                    self._final(run)
            for thread in self.threads:
                self._final_thread(thread)
            self.at_rest()
        finally:
            self.sim.close()

    def rest(self) -> None:
        """Enough time for everything."""
        for seconds in (0.0, 20.0, 20.0, 700.0, 20.0, 700.0, 20.0):
            self.sim.advance(seconds)
            self.sim.settle()

    def at_rest(self) -> None:
        assert not self.sim.tasks, f"every call was answered: {self.sim.tasks}"

    def _final(self, run: _Run) -> None:
        shown = self.sim.call(self._read(run))
        assert shown is not None
        assert shown["status"] in lifecycle.TERMINAL, "nothing hangs"
        steps = [msgspec.json.decode(body) for body in self._steps(run)]
        assert all(step["status"] != "in_progress" for step in steps)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert shown["usage"][name] == sum((step["usage"] or {name: 0})[name] for step in steps)
        if run.vague or run.touched:
            return
        self._writing(run, shown, steps)

    def _steps(self, run: _Run) -> list[bytes]:
        return self.sim.call(
            self.sim.engine.list_steps(_WORKSPACE, run.thread.id, run.id, PageQuery(limit=100, order="asc"))
        ).bodies

    def _writing(self, run: _Run, shown: dict[str, Any], steps: list[dict[str, Any]]) -> None:
        page = self.sim.call(
            self.sim.store.threads.messages(_WORKSPACE, run.thread.id, PageQuery(limit=100, order="asc"), run.id)
        )
        messages = [msgspec.json.decode(body) for body in page.bodies]
        named = [s["step_details"]["message_creation"]["message_id"] for s in steps if s["type"] == "message_creation"]
        assert named == [message["id"] for message in messages], "a step for each message, in order"
        assert all(message["status"] != "in_progress" for message in messages)
        for message in messages:
            if message["id"] in run.notes:
                assert message["metadata"] == {"note": "1"}, "a client's metadata is kept"
        texts = [_words(message["content"]) for message in messages]
        end = expected(run.script, run.outputs)
        if shown["status"] in ("completed", "incomplete"):
            assert end is not None, (run, texts, shown)
            assert (shown["status"], texts) == (end.status, end.texts)
        elif end is not None and shown["status"] == "failed":
            assert end.status == "failed"
            assert shown["last_error"]["code"] == end.error
            assert texts == end.texts
        else:
            # Cut off: what it wrote is a beginning of what it would have written.
            whole = [text for text, message in zip(texts, messages, strict=True) if message["status"] == "completed"]
            so_far = end.texts if end is not None else self._so_far(run)
            assert whole == so_far[: len(whole)], (run, shown, messages)
            assert len(texts) - len(whole) <= 1
            if len(texts) > len(whole):
                assert so_far[len(whole)].startswith(texts[-1])

    def _so_far(self, run: _Run) -> list[str]:
        """All that the script says before it waits for more outputs."""
        said: list[str] = []
        left = len(run.outputs)
        for turn in run.script.played():
            text = "".join(part for part in (turn.say, turn.refuse) if part)
            if text or not turn.calls:
                said.append(text)
            if not turn.calls or left < len(turn.calls):
                break
            left -= len(turn.calls)
        return said

    def _final_thread(self, thread: _Thread) -> None:
        page = self.sim.call(
            self.sim.store.threads.messages(_WORKSPACE, thread.id, PageQuery(limit=100, order="asc"), None)
        )
        assert not page.has_more
        users = [m["id"] for m in map(msgspec.json.decode, page.bodies) if m["role"] == "user"]
        assert users == thread.messages, "each accepted message once, in the order of acceptance"


class OneServer(_Life):
    """One process: its viewers see everything."""

    def set_up(self) -> None:
        self.sim.engine._worker = self.sim.processes[0].worker

    def _watch(self) -> None:
        for run in self.runs.values():
            for viewer in run.viewers:
                while not viewer.over and (found := viewer.stream.ready()) is not None:
                    name, data = parse(found[1])
                    viewer.told.append((name, data))
                    viewer.over = name == "done"

    @invariant()
    def viewers_look(self) -> None:
        if hasattr(self, "sim"):
            self._watch()

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        async def work() -> None:
            try:
                stream = await self.sim.engine.join(_WORKSPACE, run.thread.id, run.id, None)
            except ApiError as error:
                assert error.status == 404
            else:
                run.viewers.append(_Viewer(stream))

        run = self._some(data, list(self.runs.values()))
        self.sim.call(work())

    def at_rest(self) -> None:
        super().at_rest()
        self._watch()
        for run in self.runs.values():
            told = [(name, data) for id, name, data in self.sim.bus.published if id == run.id]
            if not run.thread.gone:
                self._told_as_committed(run, told)
            self._as_sdks_hear_it(told)
            for viewer in run.viewers:
                assert viewer.over, "every stream ends"
                assert [name for name, _ in viewer.told].count("done") == 1
                self._as_sdks_hear_it(viewer.told)

    def _told_as_committed(self, run: _Run, told: list[tuple[str, Any]]) -> None:
        statuses = [data["status"] for name, data in told if name.startswith("thread.run.") and "step" not in name]
        assert statuses[0] == "queued", "created"
        changes = [status for n, status in enumerate(run.seen) if n == 0 or status != run.seen[n - 1]]
        assert statuses[1:] == changes, f"every change is told once, in the order of commits: {told}"

    def _as_sdks_hear_it(self, told: list[tuple[str, Any]]) -> None:
        """What the SDKs throw at does not come (SSE-20, SSE-21, SSE-25), and what they put together is what is stored
        (SSE-26): they begin with the content of ``created``, which is all so far for a viewer that came late."""
        steps: set[str] = set()
        texts: dict[str, str] = {}
        current: str | None = None
        for name, data in told:
            if name == "thread.run.step.created":
                assert data["id"] not in steps, "created once"
                steps.add(data["id"])
            elif name == "thread.run.step.delta":
                assert data["id"] in steps, "created before"
            elif name == "thread.message.created":
                assert current is None, "one message at a time"
                assert data["id"] not in texts, "created once"
                current = data["id"]
                texts[current] = _words(data["content"])
            elif name == "thread.message.delta":
                assert data["id"] == current
                texts[current] += _words(data["delta"]["content"])
            elif name in ("thread.message.completed", "thread.message.incomplete"):
                assert data["id"] == current
                current = None
                said, whole = texts[data["id"]], _words(data["content"])
                # A run that others end (a read that finds it past its time, a drive that took over) ends with what is
                # stored, which may lag behind the deltas by a checkpoint.
                reason = (data["incomplete_details"] or {}).get("reason")
                lags = reason in ("run_expired", "run_cancelled") and said.startswith(whole)
                assert said == whole or lags, (name, data)
            elif name == "error":
                return  # both raise: whoever looks on again begins anew


def _words(content: list[dict[str, Any]]) -> str:
    """What the parts of a message, or of a delta, say."""
    return "".join(part["text"].get("value", "") if "text" in part else part["refusal"] for part in content)


class ManyWorkers(_Life):
    """Two workers, each a process of its own, which may be stopped for a while or die; clients talk to the first."""

    def set_up(self) -> None:
        self.sim.add_worker(RecordingBus())

    def _process(self, data: st.DataObject) -> Process:
        return self._some(data, self.sim.processes)

    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        self._process(data).pause()

    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        self._process(data).resume()

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        process = self._process(data)
        self.sim.kill(process)
        self.sim.turn()  # its tasks end
        self.sim.add_worker(self.sim.bus if process.bus is self.sim.bus else RecordingBus())

    def rest(self) -> None:
        for process in self.sim.processes:
            process.resume()
        super().rest()


_STATEMENTS = pytest.mark.behaviour(
    *"RUN-31 RUN-33 RUN-34 RUN-35 RUN-36 RUN-37 RUN-41 RUN-42 RUN-43 RUN-44 RUN-46 RUN-55 RUN-58 RUN-59 RUN-64".split(),
    *"RUN-65 RUN-66 RUN-85 RUN-89 RUN-98 STEP-08 STEP-16 STEP-18 MSG-13 LOCK-01 LOCK-04 LOCK-06 LOCK-07".split(),
    *"LOCK-10 LOCK-11 RUN-22 RUN-63 RUN-71 RUN-83".split(),
)

TestOneServer = _STATEMENTS(pytest.mark.behaviour("SSE-02", "SSE-07", "SSE-21", "SSE-26")(OneServer.TestCase))
TestManyWorkers = _STATEMENTS(pytest.mark.behaviour("RUN-99")(ManyWorkers.TestCase))
TestOneServer.settings = TestManyWorkers.settings = PROFILE


# What was found once, step by step


class _First:
    """Draws the first of what there is."""

    def draw(self, _: Any) -> int:
        return 0


@pytest.mark.behaviour("SSE-26")
@pytest.mark.parametrize("kind", ["say", "refuse"])
def test_a_late_viewer_has_all_of_a_message_whose_turn_was_done_again(kind: str) -> None:
    """Somebody looks on while the run is created, before anybody is told of it, so that its first events are not kept
    as such; whoever looks on later is told of the present state, a message with its content so far, and then deltas."""
    life: Any = OneServer()
    life.begin("reject")
    again = Turn(**{kind: "oak fern"}, calls=("look",), wait=2.0, fail="server", times=1)
    life.create_thread_and_run(Script((again,)), None, False, False)
    while not life.runs or not next(iter(life.runs.values())).seen:
        life.sim.turn()
        life.only_legal_changes()
    life.join(_First())
    for seconds in (0.0, 0.3):  # the first try fails, the second one is in the middle of its turn then
        life.sim.advance(seconds)
        life.sim.settle()
    life.join(_First())
    life.viewers_look()
    late = next(iter(life.runs.values())).viewers[-1]
    created = [_words(data["content"]) for name, data in late.told if name == "thread.message.created"]
    assert created == ["oak fern"]
    life.teardown()


@pytest.mark.behaviour("SSE-21", "SSE-25")
@pytest.mark.parametrize("turns", range(12))
def test_nothing_is_created_again_when_a_server_was_held_up_for_longer_than_its_leases(turns: int) -> None:
    life: Any = OneServer()
    life.begin("reject")
    life.create_thread_and_run(Script((Turn(say="oak fern", calls=("look",), wait=40.0),)), None, True, True)
    life.sim.settle()
    life.create_thread_and_run(Script((Turn(say="ivy"),)), None, True, False)  # makes it claim
    life.sim.turn(turns)
    life.sim.advance(20.0)
    life.sim.settle()
    life.teardown()
