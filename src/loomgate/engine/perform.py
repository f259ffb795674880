"""One model turn: chunks in, journal entries and stream events out.

The journal comes first: a step is written `in_progress` before its first event goes out, and what ends a turn is one
transaction with what ends the run. Ids are decided before the effect, and a turn that is done again (its worker
died) takes over the open step of the same kind, so nothing is doubled (docs/why/journal.md).
"""

import logging
from collections.abc import Callable

import msgspec

from loomgate import clock
from loomgate.engine import points
from loomgate.engine.plan import CallModel, calls_tools
from loomgate.errors import ProviderError, StoreAway, StoreBusy
from loomgate.store.records import Commit
from loomgate.store.rows import RunRow
from loomgate.store.runs import Runs
from loomgate.wire import chat, events, lifecycle
from loomgate.wire.ids import new_id
from loomgate.wire.lifecycle import RunVerb
from loomgate.wire.runs import (
    CalledFunction,
    CreatedMessage,
    Failure,
    FunctionStepCall,
    IncompleteRun,
    MessageDetails,
    RequiredAction,
    RequiredCall,
    RequiredCalls,
    Run,
    Step,
    StepToolCall,
    ToolCallsDetails,
    Usage,
)
from loomgate.wire.threads import Content, IncompleteMessage, Message, RefusalContent, Text, TextContent

log = logging.getLogger(__name__)

_CHECKPOINT_SECONDS = 1.0  # how much of a long answer a crash may take from readers' sight (MSG-14)

# What a model's failure is for a run (RUN-97); every other kind is a server_error.
_FAILURES = {"rate_limit": "rate_limit_exceeded", "quota": "rate_limit_exceeded", "invalid": "invalid_prompt"}


def failure_of(error: ProviderError) -> Failure:
    """``last_error`` for a model call that failed for good."""
    return Failure(_FAILURES.get(error.kind, "server_error"), error.message)  # pyright: ignore[reportArgumentType]


class _Call:
    """A tool call as it grows."""

    __slots__ = ("id", "name", "pieces")

    def __init__(self, name: str) -> None:
        self.id = new_id("call")
        self.name = name
        self.pieces: list[str] = []

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


Tell = Callable[[list[bytes]], None]


class Outcome(msgspec.Struct, frozen=True):
    """How a turn ended: the run after it, the events that say so, and which run may start now."""

    run: Run
    events: list[bytes]
    promoted: str | None


class Heard(msgspec.Struct):
    """What viewers were told of a message whose answer broke off: its parts by kind, in order. They cannot be told to
    forget it: the Node SDK (7.55) throws at a message or step that is created again."""

    parts: dict[str, str]


def heard_of(message_id: str, told: list[bytes]) -> Heard | None:
    """What of the message is in the events that viewers were ``told``; ``None``: they do not know of it."""
    parts: dict[str, str] | None = None
    for event in told:
        name, _, data = event.partition(b"\ndata: ")
        if name not in (b"event: thread.message.created", b"event: thread.message.delta"):
            continue
        said = msgspec.json.decode(data)
        if said["id"] != message_id:
            continue
        if "delta" not in said:
            parts = {}
        elif parts is not None:
            for part in said["delta"]["content"]:
                kind = part["type"]
                parts[kind] = parts.get(kind, "") + (part["text"]["value"] if kind == "text" else part["refusal"])
    return None if parts is None else Heard(parts or {"text": ""})


class Turn:
    """A model turn under way. `take` each chunk, then `finish`, or `stop` it early; each publishes through ``tell``."""

    def __init__(
        self, runs: Runs, row: RunRow, run: Run, move: CallModel, tell: Tell, heard: Heard | None = None
    ) -> None:
        self._runs = runs
        self._row = row
        self._run = run
        self._turn = move.turn
        self._tell = tell
        self._said = move.said
        self._spare_text = next((e.step for e in move.left_open if not calls_tools(e)), None)
        self._spare_tools = next((e.step for e in move.left_open if calls_tools(e)), None)
        self._step: Step | None = None
        self._message: Message | None = None
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._order: list[str] = []  # the kinds of content part, in order of appearance
        self._calls: dict[int, _Call] = {}
        self._saved = clock.now()
        # Not None until this attempt has said all that viewers heard of the one before: told is only what is new.
        self._behind = heard if self._spare_text is not None else None
        self._matched = 0
        self._muted = self._behind is not None and len(self._behind.parts) > 1

    async def taken_over(self, told: list[bytes]) -> bool:
        """Another worker began this turn, and viewers were ``told`` of it; they are told what is new. ``False`` when
        the turn has to be planned again: they know of calls that this attempt may not make. Raises `LeaseLost`."""
        text, tools = self._spare_text, self._spare_tools
        if text is not None and isinstance(text.step_details, MessageDetails):
            self._behind = heard_of(text.step_details.message_creation.message_id, told)
            self._muted = self._behind is not None and len(self._behind.parts) > 1
        opened = b'event: thread.run.step.created\ndata: {"id":"%b"'
        if tools is None or not any(event.startswith(opened % tools.id.encode()) for event in told):
            return True
        failure = Failure("server_error", "The worker that made these calls is gone.")
        assert isinstance(tools.step_details, ToolCallsDetails)
        failed = self._failed(tools, failure, tools.step_details.tool_calls)
        commit = Commit(turn=self._turn, put_steps=[(failed, None)])
        await self._runs.apply(self._row, commit)
        self._tell(self._closed(commit, {}))
        return False

    @property
    def output(self) -> str:
        """All that the model wrote in this turn, for counting its tokens."""
        written = [*self._text, *self._refusal]
        return "".join(written + [call.name + call.arguments for call in self._calls.values()])

    @property
    def untouched(self) -> bool:
        """Whether an earlier attempt left something open that this one has not taken over yet."""
        return self._step is None and (self._spare_text is not None or self._spare_tools is not None)

    async def broken(self, failure: Failure) -> Heard | None:
        """The answer broke off, and the turn will be done again. Raises `LeaseLost`.

        The text so far is stored, for when nothing better comes; a step with calls fails, since the next attempt may
        make others. Answers what viewers heard of the open message: the next attempt's `Turn` wants to know.
        """
        if self._message is not None:
            await self._runs.apply(self._row, Commit(put_messages=[self._so_far()]))
        elif self._step is not None:
            commit = Commit(turn=self._turn, put_steps=[(self._failed(self._step, failure, self._step_calls()), None)])
            await self._runs.apply(self._row, commit)
            self._tell(self._closed(commit, {}))
        if self._behind is not None or self._message is None:
            return self._behind
        return Heard({kind: "".join(self._said_of(kind)) for kind in self._order})

    def present(self) -> tuple[Step | None, Message | None]:
        """The open step and the open message as its events so far have told them (the store may lag behind)."""
        step = self._step
        if self._behind is not None and (spare := step or self._spare_text) is not None:
            assert isinstance(spare.step_details, MessageDetails)
            message = self._new_message(spare.step_details.message_creation.message_id, spare.created_at)
            return spare, msgspec.structs.replace(message, content=self._content(self._behind.parts))
        if step is not None and calls_tools_step(step):
            step = msgspec.structs.replace(step, step_details=ToolCallsDetails(self._step_calls()))
        message = self._message
        if message is not None:
            message = self._so_far() if self._order else message
        return step, message

    async def take(self, chunk: chat.Chunk) -> None:
        """Record and publish one chunk. Raises `LeaseLost` when the run is no longer ours."""
        if isinstance(chunk, chat.TextDelta):
            await self._say("text", chunk.text, self._text)
        elif isinstance(chunk, chat.RefusalDelta):
            await self._say("refusal", chunk.text, self._refusal)
        elif isinstance(chunk, chat.ToolCallDelta):
            await self._call(chunk)

    async def _say(self, kind: str, text: str, into: list[str]) -> None:
        if not text or self._said or self._calls:
            # Text of a turn whose text is committed already, or after its tool calls began: said once is enough.
            return
        if self._message is None:
            await self._open_message()
        assert self._message is not None
        first = kind not in self._order
        if first:
            self._order.append(kind)
        into.append(text)
        index = self._order.index(kind)
        if self._behind is not None:
            first = False
            text = self._news(self._behind, kind, text)
        if text:
            if kind == "text":
                self._tell([events.text_delta(self._message.id, text, first=first, index=index)])
            else:
                self._tell([events.refusal_delta(self._message.id, text, index=index)])
        points.reached("delta")
        if clock.now() - self._saved >= _CHECKPOINT_SECONDS and (self._behind is None or self._muted):
            self._saved = clock.now()
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        try:
            await self._runs.apply(self._row, Commit(put_messages=[self._so_far()]))
        except (StoreAway, StoreBusy) as error:
            # The next one, or the end of the turn, stores the same text; the answer is not given up for that.
            log.warning("run %s: what was said so far could not be stored: %s", self._row.id, error)
        else:
            points.reached("checkpointed")

    def _news(self, heard: Heard, kind: str, text: str) -> str:
        """What of ``text`` goes beyond what viewers have heard already. Once it is another text, they are told nothing
        more before its end, which tells the whole message and counts for the SDKs' snapshots."""
        known = heard.parts.get(kind, "")[self._matched : self._matched + len(text)]
        if self._muted or not text.startswith(known) or kind not in heard.parts:
            self._muted = True
            return ""
        self._matched += len(known)
        if self._matched == len(heard.parts[kind]):
            self._behind = None
        return text[len(known) :]

    async def _open_message(self) -> None:
        now = clock.timestamp()
        spare = self._spare_text
        commit = Commit(turn=self._turn)
        if spare is not None and isinstance(spare.step_details, MessageDetails):
            step, self._spare_text = spare, None
            message = self._new_message(spare.step_details.message_creation.message_id, spare.created_at)
            # Readers keep what they have seen of it until there is more (MSG-14).
            shown = [] if self._behind is None else self._content(self._behind.parts)
            commit.put_messages.append(msgspec.structs.replace(message, content=shown))
        else:
            message = self._new_message(new_id("msg"), now)
            step = self._new_step("message_creation", MessageDetails(CreatedMessage(message.id)), now)
            commit.open_steps.append(step)
            commit.open_messages.append(message)
        self._drop_spares(commit, tools=True)
        applied = await self._runs.apply(self._row, commit)
        points.reached("opened")
        self._step, self._message, self._saved = step, message, clock.now()
        if self._behind is not None:
            return  # viewers know of both
        body = applied.bodies[message.id]
        self._tell(
            [
                *self._opened(step),
                events.message_event(message, body, "created"),
                events.message_event(message, body),
            ]
        )

    async def _open_empty_message(self) -> None:
        """The model ended without a word: one empty text, told as a delta, since deltas are all of a text (SSE-26)."""
        await self._open_message()
        assert self._message is not None
        self._order.append("text")
        if self._behind is None:
            self._tell([events.text_delta(self._message.id, "", first=True)])

    async def _call(self, chunk: chat.ToolCallDelta) -> None:
        call = self._calls.get(chunk.index)
        if call is None:
            if self._calls and not self._run.parallel_tool_calls:
                return  # RUN-22: at most one call, whatever the model does
            if not self._calls:
                await self._open_tools()
            call = self._calls[chunk.index] = _Call(chunk.name or "")
            self._tell([events.call_opened(self._open_step.id, self._index(chunk.index), call.id, call.name)])
        if chunk.arguments:
            call.pieces.append(chunk.arguments)
            index = self._index(chunk.index)
            self._tell([events.call_arguments(self._open_step.id, index, chunk.arguments)])
            points.reached("delta")

    def _index(self, index: int) -> int:
        """Where the model's call ``index`` stands among the calls taken: 0, 1, … without gaps (SSE-22)."""
        return list(self._calls).index(index)

    @property
    def _open_step(self) -> Step:
        assert self._step is not None
        return self._step

    async def _open_tools(self) -> None:
        """Open the step for this turn's calls; text that came before is its own, finished message (STEP-04)."""
        now = clock.timestamp()
        commit = Commit(turn=self._turn)
        if self._message is not None:
            # The turn's tokens are known only at its end: they go to the step that ends it (docs/why/journal.md).
            self._close_message(commit, "complete", now, Usage())
        elif self._behind is not None and self._spare_text is not None:
            self._give_up(commit, self._spare_text, self._behind, now)
        closed_step, closed_message = self._step, self._message
        if self._spare_tools is not None:
            step, self._spare_tools = self._spare_tools, None
        else:
            step = self._new_step("tool_calls", ToolCallsDetails(), now)
            commit.open_steps.append(step)
        self._drop_spares(commit, text=True)
        applied = await self._runs.apply(self._row, commit)
        points.reached("opened" if closed_message is None else "switched")
        if closed_message is not None and closed_step is not None:
            self._said = True
        self._tell(self._closed(commit, applied.bodies))
        self._step, self._message = step, None
        self._tell(self._opened(step))

    async def finish(self, end: chat.Finish, usage: Usage) -> Outcome:
        """End the turn as the model ended it; ``usage`` is the turn's. Raises `LeaseLost`, `IllegalTransition`."""
        if self._calls and end.reason != "length":
            return await self._ask(usage)
        if self._step is None and not self._said:
            await self._open_empty_message()
        now = clock.timestamp()
        commit = Commit(turn=self._turn, verb="complete")
        if end.reason == "length":
            commit.verb = "cut"
            commit.fields["incomplete_details"] = IncompleteRun("max_completion_tokens")
            self._close(commit, "max_tokens", now, usage)
        elif end.reason == "content_filter":
            empty = not (self._text or self._refusal or self._said)
            if empty:
                # RUN-92: `incomplete` has no such reason, so an answer that was filtered whole is a failure.
                commit.verb = "fail"
                commit.fields["last_error"] = Failure("server_error", "The answer was withheld by a content filter.")
            self._close(commit, "content_filter", now, usage)
        else:
            self._close(commit, None, now, usage)
        self._drop_spares(commit, text=True, tools=True)
        return await self._commit(commit)

    async def _ask(self, usage: Usage) -> Outcome:
        step = msgspec.structs.replace(self._open_step, step_details=ToolCallsDetails(self._step_calls()))
        required = [RequiredCall(c.id, CalledFunction(c.name, c.arguments)) for c in self._calls.values()]
        commit = Commit(
            turn=self._turn,
            verb="ask",
            fields={"required_action": RequiredAction(RequiredCalls(required))},
            put_steps=[(step, usage)],
        )
        applied = await self._runs.apply(self._row, commit)
        return Outcome(applied.run, [events.run_event(applied.run, applied.body)], applied.promoted)

    async def stop(self, verb: RunVerb, failure: Failure | None = None) -> Outcome:
        """End the run in the middle of the turn: cancelled, expired, failed (RUN-42, -43, -58, -98, STEP-16).

        Raises `LeaseLost`, `IllegalTransition`.
        """
        step_verb, reason = lifecycle.ENDINGS[verb]
        now = clock.timestamp()
        commit = Commit(turn=self._turn, verb=verb)
        if failure is not None:
            commit.fields["last_error"] = failure
        if self._message is not None:
            commit.put_messages.append(self._cut(reason, now))
        if self._step is not None:
            fields: dict[str, object] = {}
            if calls_tools_step(self._step):
                fields["step_details"] = ToolCallsDetails(self._step_calls())
            if step_verb == "fail" and failure is not None:
                code = "rate_limit_exceeded" if failure.code == "rate_limit_exceeded" else "server_error"
                fields["last_error"] = Failure(code, failure.message)
            commit.put_steps.append((lifecycle.step_on(lifecycle.STEP, self._step, step_verb, now, **fields), None))
        self._drop_spares(commit, text=True, tools=True)
        return await self._commit(commit)

    async def _commit(self, commit: Commit) -> Outcome:
        applied = await self._runs.apply(self._row, commit)
        told = self._closed(commit, applied.bodies)
        return Outcome(applied.run, [*told, events.run_event(applied.run, applied.body)], applied.promoted)

    # Pieces

    def _close(self, commit: Commit, cut: str | None, now: int, usage: Usage) -> None:
        """Put the turn's open message and step into ``commit``, finished; the step is completed even when its
        message is not (RUN-95)."""
        if self._message is not None:
            self._close_message(commit, "complete" if cut is None else "cut", now, usage, cut)
        elif self._step is not None:
            done = lifecycle.step_on(
                lifecycle.STEP,
                self._step,
                "complete",
                now,
                usage=usage,
                step_details=ToolCallsDetails(self._step_calls()),
            )
            commit.put_steps.append((done, None))

    def _close_message(self, commit: Commit, verb: str, now: int, usage: Usage, cut: str | None = None) -> None:
        if verb == "complete":
            commit.put_messages.append(lifecycle.step_on(lifecycle.MESSAGE, self._so_far(), verb, now))
        else:
            commit.put_messages.append(self._cut(cut or "max_tokens", now))
        done = lifecycle.step_on(lifecycle.STEP, self._open_step, "complete", now, usage=usage)
        commit.put_steps.append((done, None))

    def _give_up(self, commit: Commit, step: Step, heard: Heard, now: int) -> None:
        """Close the text of a broken answer in whose place calls have come: viewers have heard it, so it stays."""
        assert isinstance(step.step_details, MessageDetails)
        message = self._new_message(step.step_details.message_creation.message_id, step.created_at)
        message = msgspec.structs.replace(message, content=self._content(heard.parts))
        details = IncompleteMessage("run_failed")
        commit.put_messages.append(
            lifecycle.step_on(lifecycle.MESSAGE, message, "cut", now, incomplete_details=details)
        )
        commit.put_steps.append((self._failed(step, Failure("server_error", "The answer broke off."), None), None))
        self._spare_text = self._behind = None

    def _failed(self, step: Step, failure: Failure, calls: list[StepToolCall] | None) -> Step:
        code = "rate_limit_exceeded" if failure.code == "rate_limit_exceeded" else "server_error"
        fields: dict[str, object] = {"last_error": Failure(code, failure.message)}
        if calls is not None:
            fields["step_details"] = ToolCallsDetails(calls)
        return lifecycle.step_on(lifecycle.STEP, step, "fail", clock.timestamp(), **fields)

    def _cut(self, reason: str, now: int) -> Message:
        details = IncompleteMessage(reason)
        return lifecycle.step_on(lifecycle.MESSAGE, self._so_far(), "cut", now, incomplete_details=details)

    def _closed(self, commit: Commit, bodies: dict[str, bytes]) -> list[bytes]:
        """The events of what ``commit`` closed: the message, then its step."""
        told = [events.message_event(message, bodies[message.id]) for message in commit.put_messages]
        return told + [events.step_event(step, self._row.expires_at) for step, _ in commit.put_steps]

    def _opened(self, step: Step) -> list[bytes]:
        expires_at = self._row.expires_at
        return [events.step_event(step, expires_at, "created"), events.step_event(step, expires_at)]

    def _drop_spares(self, commit: Commit, *, text: bool = False, tools: bool = False) -> None:
        """Let go of open steps of an earlier attempt that this one has no use for."""
        if text and self._spare_text is not None:
            commit.drop_steps.append(self._spare_text.id)
            if isinstance(self._spare_text.step_details, MessageDetails):
                commit.drop_messages.append(self._spare_text.step_details.message_creation.message_id)
            self._spare_text = None
        if tools and self._spare_tools is not None:
            commit.drop_steps.append(self._spare_tools.id)
            self._spare_tools = None

    def _new_step(self, type: str, details: MessageDetails | ToolCallsDetails, now: int) -> Step:
        return Step(
            id=new_id("step"),
            created_at=now,
            run_id=self._run.id,
            assistant_id=self._run.assistant_id,
            thread_id=self._run.thread_id,
            type=type,  # pyright: ignore[reportArgumentType]
            step_details=details,
        )

    def _new_message(self, id: str, now: int) -> Message:
        return Message(
            id=id,
            created_at=now,
            thread_id=self._run.thread_id,
            status="in_progress",
            role="assistant",
            content=[],
            assistant_id=self._run.assistant_id,
            run_id=self._run.id,
        )

    def _so_far(self) -> Message:
        assert self._message is not None
        said = {kind: "".join(self._said_of(kind)) for kind in self._order}
        return msgspec.structs.replace(self._message, content=self._content(said))

    def _said_of(self, kind: str) -> list[str]:
        return self._text if kind == "text" else self._refusal

    def _content(self, parts: dict[str, str]) -> list[Content]:
        return [
            TextContent(Text(text)) if kind == "text" else RefusalContent(text)
            for kind, text in (parts or {"text": ""}).items()
        ]

    def _step_calls(self) -> list[StepToolCall]:
        return [StepToolCall(c.id, FunctionStepCall(c.name, c.arguments)) for c in self._calls.values()]


def calls_tools_step(step: Step) -> bool:
    """Is this a step that calls tools?"""
    return isinstance(step.step_details, ToolCallsDetails)
