"""The verbs that clients use on runs, and what has to happen around each: events, wake-ups, expiry on sight.

The store changes facts; this tells whoever is waiting for them, after the commit. A read that finds a run past its
time ends it first, so nobody ever sees an overdue run as active (BEHAVIOUR RUN-44).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec

from loomgate import clock
from loomgate.bus import Bus, Held, Look, State, Subscription
from loomgate.engine import points
from loomgate.engine.webhooks import Webhooks
from loomgate.engine.worker import Worker, WorkerSettings
from loomgate.errors import ApiError, LoomgateError
from loomgate.gateway import Gateway
from loomgate.store import Store
from loomgate.store.records import Overdue
from loomgate.store.rows import Ended
from loomgate.wire import events, lifecycle
from loomgate.wire.chat import Upstream
from loomgate.wire.page import Page, PageQuery
from loomgate.wire.policy import Naming
from loomgate.wire.runs import MessageDetails, Run, RunSpec, Step
from loomgate.wire.threads import Message, Thread

log = logging.getLogger(__name__)

T = TypeVar("T")

_decode_run = msgspec.json.Decoder(Run).decode
_decode_step = msgspec.json.Decoder(Step).decode
_decode_message = msgspec.json.Decoder(Message).decode

_HOUSEKEEPING_SECONDS = 30.0
_CLOCKS_APART = 1.0  # seconds that the clocks of two hosts may differ without a word (docs/why/leases.md)
_GRACE = 0.5  # seconds that webhook calls under way get in any case: broken off, they would be made twice


class Started(msgspec.Struct, frozen=True):
    """A run that was created or goes on: its body, and the stream of what follows if one was asked for."""

    body: bytes
    stream: Subscription | None = None


class Engine:
    """Runs, their steps, and everything of threads that concerns runs. One per process.

    ``webhooks`` are started and closed with it; without them what the outbox holds stays there.
    """

    def __init__(
        self, store: Store, gateway: Gateway, bus: Bus, settings: WorkerSettings, webhooks: Webhooks | None = None
    ) -> None:
        self.store = store
        self._webhooks = webhooks
        self._gateway = gateway
        self._bus = bus
        self._worker = Worker(store, gateway, bus, settings)
        bus.held = self._held
        self._housekeeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work; runs left behind by a server that died go on at once if no other can be at them."""
        if self.store.exclusive:
            adopted = await self.store.runs.adopt()
            if adopted:
                log.info("taking over %d runs of a server that stopped in the middle", adopted)
        ahead = await self.store.runs.queue.clock_ahead()
        if abs(ahead) > _CLOCKS_APART:
            log.warning(
                "the clock of this host is %.1f s %s the database's: runs may be taken over or expire too early or too"
                " late; set the clocks of all hosts by NTP",
                abs(ahead),
                "ahead of" if ahead > 0 else "behind",
            )
        if self._webhooks is not None:
            self._webhooks.start()
        self._worker.start()
        self._bus.poke()
        self._housekeeper = asyncio.get_running_loop().create_task(self._keep_house())

    def drain(self) -> None:
        """Claim no more runs; those under way go on until `close`."""
        self._worker.drain()

    async def close(self, drain_seconds: float, hurry: asyncio.Event | None = None) -> None:
        """Stop: runs under way may finish for ``drain_seconds`` and until ``hurry`` is set; others are handed back."""
        end = clock.now() + drain_seconds
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.gather(self._housekeeper, return_exceptions=True)
        await self._worker.close(drain_seconds, hurry)
        if self._webhooks is not None:
            left = 0.0 if hurry is not None and hurry.is_set() else end - clock.now()
            await self._webhooks.close(max(_GRACE, left))

    async def _keep_house(self) -> None:
        """Remove what deleted threads left, in small steps."""
        while True:
            try:
                while await self.store.threads.purge():
                    pass  # a transaction each: others have their turn between them
            except LoomgateError as error:
                log.warning("housekeeping failed, trying again later: %s", error)
            await clock.sleep(_HOUSEKEEPING_SECONDS)

    @property
    def active(self) -> int:
        """How many runs this process is driving."""
        return self._worker.active

    async def refusal(self, model: str, naming: Naming, workspace: str) -> str | None:
        """Why a run with ``model`` cannot be routed the way that ``naming`` says, or ``None`` (RUN-16)."""
        return await self._gateway.refusal(model, naming, workspace)

    async def check(self, workspace: str, naming: Naming) -> None:
        """Raises a 400 `ApiError` that names the header when ``naming`` names what does not exist."""
        await self._gateway.check(workspace, naming)

    async def remembered(self, naming: Naming, workspace: str, headers: Mapping[bytes, bytes]) -> Upstream:
        """``naming`` as a run keeps it: by reference where it only names things, else sealed as a whole (PRX-19), with
        what its model calls will want of the client's ``headers``."""
        naming = await self._gateway.kept(naming, workspace, headers)
        if naming.virtual_key is not None or (naming.provider or "").startswith("@"):
            naming = msgspec.structs.replace(naming, api_key=None)  # the stored key is used, never this one
        named = {
            kind: name
            for kind, name in (
                ("virtual_key", naming.virtual_key),
                ("config", naming.config),
                ("provider", naming.provider),
            )
            if name is not None
        }
        kind, name = next(iter(named.items()), ("default", ""))
        kept = Upstream(kind, name, trace_id=naming.trace_id, metadata=naming.metadata)  # pyright: ignore[reportArgumentType]
        lasting = msgspec.structs.replace(naming, trace_id=None, span_id=None, parent_span_id=None, metadata={})
        if self._gateway.way(kept) == lasting:
            return kept
        credential = await self.store.credentials.keep(workspace, msgspec.json.encode(lasting).decode())
        return msgspec.structs.replace(kept, kind="sealed", name=name or "config", credential=credential)

    # Runs

    async def create_run(
        self,
        workspace: str,
        run: Run,
        spec: RunSpec,
        messages: list[Message],
        thread: Thread | None = None,
        *,
        stream: bool = False,
    ) -> Started:
        """Queue ``run``; see `Runs.create` for what it raises. With ``stream`` the viewer misses nothing, the run's
        creation included: it looks on before the run exists (SSE-40, SSE-41)."""
        viewer = None
        if stream:
            viewer = await self._bus.subscribe(run.id, self._look(workspace, run.thread_id, run.id), fresh=True)
        try:
            created = await self.store.runs.create(workspace, run, spec, messages, thread)
        except BaseException:
            if viewer is not None:
                viewer.close()
                self._bus.drop(run.id)
            raise
        points.reached("created")
        told: list[bytes] = []
        if created.thread_body is not None:
            told.append(events.frame("thread.created", created.thread_body))
        told += [events.run_event(run, created.body, "created"), events.run_event(run, created.body)]
        self._bus.publish(run.id, told, first=True)
        self._tell_changed(created.changed)
        self._bus.poke()
        return Started(created.body, viewer)

    async def get_run(self, workspace: str, thread_id: str, run_id: str) -> bytes:
        """The run's body. Raises a 404 `ApiError`."""
        return await self._fresh(lambda: self.store.runs.body(workspace, thread_id, run_id))

    async def list_runs(self, workspace: str, thread_id: str, query: PageQuery) -> Page:
        """One page of the thread's runs. Raises a 404 `ApiError`, 400 for a cursor of elsewhere."""
        return await self._fresh(lambda: self.store.runs.page(workspace, thread_id, query))

    async def modify_run(self, workspace: str, thread_id: str, run_id: str, change: Callable[[Run], Run]) -> bytes:
        """Change a terminal run by ``change``; see `Runs.modify`."""
        return await self._fresh(lambda: self.store.runs.modify(workspace, thread_id, run_id, change))

    async def cancel_run(self, workspace: str, thread_id: str, run_id: str) -> bytes:
        """Ask for the run's end; the answer says `cancelling` (RUN-51, RUN-54). Raises 404, 400."""
        ended = await self._fresh(lambda: self.store.runs.cancel(workspace, thread_id, run_id))
        points.reached("cancelling")
        self._tell_changed([ended])
        return ended.body

    async def submit_tool_outputs(
        self, workspace: str, thread_id: str, run_id: str, outputs: list[tuple[str, str]], *, stream: bool = False
    ) -> Started:
        """Let the run go on with ``outputs`` (call id, output); see `Runs.submit`. The stream begins with the
        finished step (SSE-42)."""
        viewer = None
        if stream:
            viewer = await self._bus.subscribe(run_id, self._look(workspace, thread_id, run_id))
        try:
            submitted = await self._fresh(lambda: self.store.runs.submit(workspace, thread_id, run_id, outputs))
        except BaseException:
            if viewer is not None:
                viewer.close()
            raise
        points.reached("submitted")
        self._bus.publish(run_id, submitted.events, after=submitted.fence, viewer=viewer)
        self._bus.poke()
        return Started(submitted.body, viewer)

    async def list_steps(self, workspace: str, thread_id: str, run_id: str, query: PageQuery) -> Page:
        """One page of the run's steps. Raises a 404 `ApiError`."""
        return await self._fresh(lambda: self.store.runs.steps(workspace, thread_id, run_id, query))

    async def get_step(self, workspace: str, thread_id: str, run_id: str, step_id: str) -> bytes:
        """The step's body. Raises a 404 `ApiError`."""
        return await self._fresh(lambda: self.store.runs.step(workspace, thread_id, run_id, step_id))

    async def join(self, workspace: str, thread_id: str, run_id: str, last_event_id: str | None) -> Subscription:
        """Look on at a run: from its first event, or from the one after ``last_event_id`` (an extension).

        When that is not kept any more, the stream begins with the run's present state instead: a comment that says
        so, the run, its open step and its open message with the content so far. Raises a 404 `ApiError`.
        """
        await self.get_run(workspace, thread_id, run_id)
        return await self._bus.join(run_id, last_event_id, self._look(workspace, thread_id, run_id))

    def _held(self, run_id: str) -> Held | None:
        """The present state of a run in the hands of this process's worker: the one that knows the words so far."""
        found = self._worker.present(run_id)
        if found is None:
            return None
        run, step, message, fence = found
        return Held(_present(run, msgspec.json.encode(run), step, message), fence)

    def _look(self, workspace: str, thread_id: str, run_id: str) -> Look:
        """How a viewer of the run gets its present state out of the store."""

        async def look() -> State:
            try:
                body = await self.get_run(workspace, thread_id, run_id)
            except ApiError:
                return State([events.error_event(f"Run {run_id} was deleted.")], over=True)
            run = _decode_run(body)
            step = message = None
            if run.status not in lifecycle.TERMINAL:
                journal = await self.store.runs.journal(run.id)
                still_open = [e.step for e in journal.entries if e.step.status in lifecycle.STEP["complete"].sources]
                step = still_open[-1] if still_open else None
                if step is not None and isinstance(step.step_details, MessageDetails):
                    message = journal.messages.get(step.step_details.message_creation.message_id)
            told = _present(run, body, step, message)
            return State(told, over=run.status in lifecycle.SETTLED, held=run.status in lifecycle.HELD)

        return look

    # Threads, as far as runs are concerned

    async def add_message(self, workspace: str, message: Message) -> bytes:
        """Append ``message`` to its thread; see `Threads.add_message`."""
        body, changed = await self.store.threads.add_message(workspace, message)
        self._tell_changed(changed)
        return body

    async def delete_thread(self, workspace: str, thread_id: str) -> None:
        """Forget the thread; its active run stops writing, and open streams end with an error (LOCK-09)."""
        for run_id in await self.store.threads.delete(workspace, thread_id):
            self._bus.signal(run_id)
            self._bus.publish(run_id, [events.error_event(f"Thread {thread_id} was deleted.")], settled=True)

    # Pieces

    async def _fresh(self, attempt: Callable[[], Awaitable[T | Overdue]]) -> T:
        """What ``attempt`` answers once no run that it meets is past its time."""
        while True:
            found = await attempt()
            if not isinstance(found, Overdue):
                return found
            for run_id in found.ids:
                await self._worker.end_overdue(run_id)
                ended = await self.store.runs.end(run_id, "expire")
                if ended is not None:
                    self._tell_changed([ended])

    def _tell_changed(self, changed: list[Ended]) -> None:
        for ended in changed:
            settled = ended.run.status in lifecycle.SETTLED
            self._bus.publish(ended.run.id, ended.events, settled=settled)
            self._bus.signal(ended.run.id)


def _present(run: Run, body: bytes, step: Step | None, message: Message | None) -> list[bytes]:
    """The events with which a viewer begins that cannot have those it asked for."""
    told = [b": the events asked for are not kept any more; this is the present state\n\n", events.run_event(run, body)]
    if step is not None:
        told += [events.step_event(step, run.expires_at, "created"), events.step_event(step, run.expires_at)]
    if message is not None:
        shown = msgspec.json.encode(message)
        told += [events.message_event(message, shown, "created"), events.message_event(message, shown)]
    return told
