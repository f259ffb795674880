"""The worker: claims runs that are due, drives each to its end or to its client's turn, and keeps the leases.

A run in this worker's hands is a `_Drive`, one task. Whoever changes a run from outside (cancel, expiry) writes the
change first and then signals; the drive looks at the store and follows. A drive whose fencing token is void stops
without a trace.

While the store is away, drives go on until their lease has run out by this process's own clock: then another worker may
have the run, so they say nothing more, and the run is given back as soon as the store answers again. A process that was
paused for longer than a lease asks the store first whether its runs are still its own (docs/cluster.md).
"""

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Mapping
from contextlib import aclosing, suppress
from typing import TypeVar

import msgspec

from loomgate import clock
from loomgate.bus import Bus
from loomgate.engine import context, plan, points
from loomgate.engine.perform import Heard, Outcome, Turn, failure_of
from loomgate.errors import IllegalTransition, LeaseLost, LoomgateError, ProviderError, StoreAway, StoreBusy
from loomgate.gateway import Gateway
from loomgate.providers import tokens
from loomgate.store import Store
from loomgate.store.records import Claimed, Commit, Journal
from loomgate.store.rows import Ended
from loomgate.wire import chat, events, lifecycle
from loomgate.wire.lifecycle import RunVerb
from loomgate.wire.runs import Failure, IncompleteRun, Run, Step, Usage
from loomgate.wire.threads import Message

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLAIM = 32  # runs claimed in one transaction
_MOST_BREAKS = 3  # how often a turn is done again whose answer broke in the middle
_BREAKS = frozenset({"cut", "timeout", "server", "overloaded", "rate_limit", "connect", "malformed"})
_TICK = 1.0  # longest time between two looks at deadlines
_HAND_BACK = 3.0  # longest time to tell the store that this worker stops
_PAUSE = 0.1  # after leases could not be renewed


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works; times in seconds."""

    concurrency: int = 256
    lease: float = 15.0
    renew: float = 5.0
    poll: float = 1.0
    workspace_runs: int = 0  # most of one workspace in workers' hands; 0: no limit
    windows: Mapping[str, int] = msgspec.field(default_factory=dict[str, int])
    drive: bool = True  # false: nothing is claimed, other nodes drive


class _Interrupted(LoomgateError):
    """The drive was told to look again, to stop, or that its lease is lost or has run out: ``why``."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Drive:
    """One run in a worker's hands."""

    def __init__(self, worker: "Worker", claimed: Claimed, until: float) -> None:
        self.until = until  # `clock.monotonic` at which the lease runs out
        self.lapsed: float | None = None  # when that was noticed
        self._worker = worker
        self._store = worker.store
        self.row = claimed.row
        self._run = claimed.run
        self._spec = claimed.spec
        self._journal: Journal | None = None
        self._turn: Turn | None = None
        self._breaks: list[ProviderError] = []  # with which answers to the present turn broke in the middle
        self._turn_of_breaks = 0
        self._heard: Heard | None = None
        self._takes_over = self.row.fence > 1  # the first turn here may have been begun by another worker
        self._why: str | None = None
        self._interruptible = False
        # Here and not in the task: what is committed next (a cancellation, say) is told after it.
        self._tell(claimed.events)
        self.task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._guarded())

    def interrupt(self, why: str) -> None:
        """Make the drive look at its run again (``look``), give it back (``stop``), or let go of it because another has
        it (``lost``) or may have it (``lapsed``).

        Takes effect at once while it waits for the model, else before its next move.
        """
        if why != "look" or self._why is None:  # a wish to look again never takes the place of a graver one
            self._why = why
        if self._interruptible:
            self.task.cancel()

    def present(self) -> tuple[Run, Step | None, Message | None, int] | None:
        """The run, its open step and its open message as the events so far have told them, and the fencing token under
        which they were told; ``None`` when it is over."""
        if self._run.status in lifecycle.SETTLED:
            return None
        step, message = (None, None) if self._turn is None else self._turn.present()
        return self._run, step, message, self.row.fence

    def _tell(self, told: list[bytes], *, settled: bool = False) -> None:
        self._worker.bus.publish(self.row.id, told, settled=settled, fence=self.row.fence)

    async def _guarded(self) -> None:
        try:
            await self._go()
        except LeaseLost:
            log.info("run %s is no longer ours", self.row.id)
        except _Interrupted as interrupted:
            if interrupted.why == "stop":
                await self._stop()
            elif interrupted.why == "lapsed":
                self._give_back("its lease has run out")
            else:
                log.info("run %s is no longer ours", self.row.id)
        except (StoreAway, StoreBusy) as error:
            self._give_back(str(error))
        except Exception:
            log.exception("run %s broke its worker", self.row.id)
            await self._broken()

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(_HAND_BACK):
                await self._store.runs.hand_back([(self.row.id, self.row.fence)])
        except (LoomgateError, TimeoutError) as error:
            log.warning("run %s could not be handed back, its lease will lapse: %s", self.row.id, error)
        else:
            self._worker.bus.poke()  # whoever is there to take it
        if self._worker.bus.outlives:
            return  # the viewers stay where they are, and another node goes on
        stopping = "The server is stopping. The run is kept and goes on; look on again with its stream."
        self._tell([events.error_event(stopping)], settled=True)

    def _give_back(self, why: str) -> None:
        """Let go of a run while the store is away: whoever has it next goes on from what is stored."""
        log.warning("run %s is given back: %s", self.row.id, why)
        self._worker.returned.append((self.row.id, self.row.fence))
        away = "The server has lost its database for now. The run is kept and goes on; look on again with its stream."
        self._tell([events.error_event(away)], settled=True)

    async def _broken(self) -> None:
        """A fault of ours: the run fails with what is stored of it, and nobody is left waiting."""
        failure = Failure("server_error", "Sorry, something went wrong.")
        try:
            row = self.row
            verb: RunVerb = "fail"
            try:
                ended = await self._store.runs.end(row.id, verb, fence=row.fence, failure=failure)
            except LeaseLost:
                # Another has the run, or what we did last was done and we did not hear of it: then nobody tells
                # viewers.
                if await self._store.runs.status(row.id) in lifecycle.SETTLED:
                    lost = "Sorry, something went wrong. What became of the run is known to whoever asks for it."
                    self._tell([events.error_event(lost)], settled=True)
                return
        except LoomgateError:
            log.exception("run %s could not be failed; its lease will lapse", self.row.id)
            return
        if ended is not None:
            self._over(ended)

    async def _go(self) -> None:
        while True:
            if self._why is not None and await self._look():
                return
            if self._journal is None:
                self._journal = await self._read_journal()
            snapshot = plan.Snapshot(self._run, self._journal.entries, clock.now(), self.row.expires_at)
            move = plan.next_move(snapshot)
            if await self._perform(move):
                return

    async def _read_journal(self) -> Journal:
        if self.row.fence == 1:
            return Journal([], {})  # nobody had this run before
        return await self._store.runs.journal(self.row.id)

    async def _look(self) -> bool:
        """Follow an interruption that came between two moves; ``True`` when the run has left our hands."""
        why = self._take_why()
        if why != "look":
            raise _Interrupted(why)
        return await self._reread()

    async def _perform(self, move: plan.Move) -> bool:
        """Carry ``move`` out; ``True`` when the run has left our hands."""
        if isinstance(move, plan.CallModel):
            return await self._call_model(move)
        if isinstance(move, plan.Finish):
            outcome = await self._simple("complete")
        elif isinstance(move, plan.Cut):
            outcome = await self._simple("cut", incomplete_details=IncompleteRun(move.reason))  # pyright: ignore[reportArgumentType]
        elif isinstance(move, plan.Wait):
            await self._store.runs.park(self.row)
            return True
        else:
            verb: RunVerb = "expire" if isinstance(move, plan.Expire) else "cancel"
            ended = await self._store.runs.end(self.row.id, verb, fence=self.row.fence)
            if ended is None:
                return await self._reread()
            self._over(ended)
            return True
        return self._settle(outcome)

    async def _simple(self, verb: RunVerb, **fields: object) -> Outcome | None:
        try:
            applied = await self._store.runs.apply(self.row, Commit(verb=verb, fields=dict(fields)))
        except IllegalTransition:
            return None
        return Outcome(applied.run, [events.run_event(applied.run, applied.body)], applied.promoted)

    async def _call_model(self, move: plan.CallModel) -> bool:
        assert self._journal is not None
        runs = self._store.runs
        call = await context.build(
            runs, self._run, self._spec, self.row.position, self._journal, move, self._worker.settings.windows
        )
        if call is None:
            return self._settle(await self._simple("cut", incomplete_details=IncompleteRun("max_prompt_tokens")))
        points.reached("calling")
        turn = self._turn = Turn(runs, self.row, self._run, move, self._tell, self._heard)
        self._heard = None
        taken_over, self._takes_over = self._takes_over and bool(move.left_open), False
        told = await self._worker.bus.told(self.row.id, self.row.fence) if taken_over else None
        if told is not None and not await turn.taken_over(told):
            self._journal = await runs.journal(self.row.id)
            return False
        try:
            try:
                end = await self._stream(call, move, turn)
                return self._settle(await turn.finish(end, _usage(call, turn, end)))
            except ProviderError as error:
                log.info("run %s: the model call failed (%s): %s", self.row.id, error.kind, error.message)
                if self._repeats(error, move):
                    self._heard = await turn.broken(failure_of(error))
                    points.reached("broken")
                    self._journal = await runs.journal(self.row.id)
                    return False
                return self._settle(await self._stopped(turn, "fail", failure_of(error)))
            except _Interrupted as interrupted:
                if interrupted.why != "look":
                    raise
                verb = await self._asked_to_end()
                if verb is None:
                    raise _Interrupted("stop") from None  # a false alarm cut the call: whoever claims it does it again
                return self._settle(await self._stopped(turn, verb))
        except IllegalTransition:
            # The run was changed while the turn ended: somebody asked to cancel it.
            verb = await self._asked_to_end()
            if verb is None:
                raise
            return self._settle(await self._stopped(turn, verb))

    def _repeats(self, error: ProviderError, move: plan.CallModel) -> bool:
        """Whether to do a turn again whose answer broke in the middle, on another target if its config has one.

        It takes over the steps and the message that the broken one opened, as after a crash (docs/why/journal.md). What
        fails before its first word was tried again by the gateway (`Gateway.chat`).
        """
        if self._turn_of_breaks != move.turn:
            self._turn_of_breaks, self._breaks = move.turn, []
        if error.path is None or error.kind not in _BREAKS or len(self._breaks) >= _MOST_BREAKS:
            return False
        self._breaks.append(error)
        return True

    async def _stopped(self, turn: Turn, verb: RunVerb, failure: Failure | None = None) -> Outcome:
        """End the run in the middle of ``turn``, with what an earlier attempt left if this one has said nothing."""
        if not turn.untouched:
            return await turn.stop(verb, failure)
        ended = await self._store.runs.end(self.row.id, verb, fence=self.row.fence, failure=failure)
        if ended is None:
            raise IllegalTransition(verb, self._run.status)
        return Outcome(ended.run, ended.events, ended.promoted)

    async def _stream(self, call: chat.Chat, move: plan.CallModel, turn: Turn) -> chat.Finish:
        """Take the model's chunks until the last one. Raises `ProviderError`, `_Interrupted`, `LeaseLost`."""
        whose = (self.row.id, self.row.thread_id)
        chunks = self._worker.gateway.chat(
            call,
            self._spec.upstream,
            self.row.workspace,
            whose,
            self._breaks if move.turn == self._turn_of_breaks else (),
        )
        async with aclosing(chunks):
            while True:
                chunk = await self._waiting(anext(chunks))
                if clock.monotonic() >= self.until:
                    await self._sure()
                if isinstance(chunk, chat.Finish):
                    points.reached("answered")
                    return chunk
                await turn.take(chunk)

    async def _sure(self) -> None:
        """The lease has run out: go on as soon as it is known that nobody else has taken the run."""
        while clock.monotonic() >= self.until:
            await self._waiting(self._worker.renew())

    async def _waiting(self, what: Awaitable[T]) -> T:
        """``what``, unless there comes an interruption: raises `_Interrupted` then."""
        if self._why is not None:
            if asyncio.iscoroutine(what):
                what.close()
            raise _Interrupted(self._take_why())
        self._interruptible = True
        try:
            return await what
        except asyncio.CancelledError:
            if self._why is None:
                raise
            asyncio.current_task().uncancel()  # pyright: ignore[reportOptionalMemberAccess]
            raise _Interrupted(self._take_why()) from None
        except StopAsyncIteration:
            raise ProviderError("cut", "The model's answer ended before it was finished.") from None
        finally:
            self._interruptible = False

    def _take_why(self) -> str:
        why, self._why = self._why or "look", None
        return why

    async def _asked_to_end(self) -> RunVerb | None:
        """The verb by which the run has to end now, if it was cancelled or its time is over."""
        if clock.now() >= self.row.expires_at:
            return "expire"
        status = await self._store.runs.status(self.row.id, self.row.fence)
        if status is None:
            raise LeaseLost(self.row.id)
        return "cancel" if status in lifecycle.RUN["cancel"].sources else None

    async def _reread(self) -> bool:
        """Another look at a run that moved under us: `False` to plan again, `True` when it left our hands."""
        status = await self._store.runs.status(self.row.id, self.row.fence)
        if status is None or status not in lifecycle.HELD:
            return True
        self._run = msgspec.structs.replace(self._run, status=status)
        return False

    def _settle(self, outcome: Outcome | None) -> bool:
        if outcome is None:
            raise LeaseLost(self.row.id)
        points.reached("settled")
        self._run = outcome.run
        self._tell(outcome.events, settled=True)
        if outcome.promoted:
            self._worker.bus.poke()
        return True

    def _over(self, ended: Ended) -> None:
        points.reached("ended")
        self._run = ended.run
        self._tell(ended.events, settled=True)
        if ended.promoted:
            self._worker.bus.poke()


def _usage(call: chat.Chat, turn: Turn, end: chat.Finish) -> Usage:
    """The turn's tokens: as the endpoint told them, else counted here."""
    if end.usage is not None:
        return Usage.of(end.usage)
    prompt = tokens.count_chat(call)
    return Usage.of(chat.Usage(prompt, tokens.count_text(turn.output, call.model)))


class Worker:
    """Runs in this process. `start` it, `bus.poke` it when a run may be due, `close` it."""

    def __init__(self, store: Store, gateway: Gateway, bus: Bus, settings: WorkerSettings) -> None:
        self.store = store
        self.gateway = gateway
        self.bus = bus
        self.settings = settings
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._drives: dict[str, _Drive] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.returned: list[tuple[str, int]] = []  # runs to hand back when the store answers: (run id, fencing token)
        self._stopping = False
        self._renewed = clock.now()
        self._renewing: asyncio.Task[None] | None = None
        self._away = False  # the leases could not be renewed the last time
        self._freed = asyncio.Event()
        bus.listeners.append(self._look_at)
        bus.room = self._has_room

    def start(self) -> None:
        """Begin to claim, if that is what this worker is for."""
        if not self.settings.drive:
            return
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._claim_forever()), loop.create_task(self._watch_forever())]

    def drain(self) -> None:
        """Claim nothing more."""
        self._stopping = True
        self.bus.poke()

    async def close(self, drain_seconds: float, hurry: asyncio.Event | None = None) -> None:
        """Claim nothing more, give runs under way ``drain_seconds`` to finish, then hand the others back.

        Setting ``hurry`` ends the wait early.
        """
        self.drain()
        running = [drive.task for drive in self._drives.values()]
        if running:
            loop = asyncio.get_running_loop()
            hurried = loop.create_task((hurry or asyncio.Event()).wait())
            drained = loop.create_task(asyncio.wait(running))
            await asyncio.wait((drained, hurried), timeout=drain_seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in (drained, hurried):
                task.cancel()
        for drive in list(self._drives.values()):
            drive.interrupt("stop")
        left = [drive.task for drive in self._drives.values()]
        if left:
            await asyncio.wait(left, timeout=5)
        tasks = [*self._tasks, *left] if self._renewing is None else [*self._tasks, *left, self._renewing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def active(self) -> int:
        """How many runs are in this worker's hands."""
        return len(self._drives)

    def present(self, run_id: str) -> tuple[Run, Step | None, Message | None, int] | None:
        """What viewers of a run in this worker's hands have been told of it so far, else ``None``."""
        drive = self._drives.get(run_id)
        return None if drive is None else drive.present()

    async def end_overdue(self, run_id: str) -> None:
        """Let a run past its time be ended by its drive, if that is in this process: the drive knows the words that
        are not stored yet. Whoever calls this ends the run itself if that did not happen soon."""
        drive = self._drives.get(run_id)
        if drive is not None:
            drive.interrupt("look")
            await asyncio.wait([drive.task], timeout=_TICK)

    def _has_room(self) -> bool:
        return bool(self._tasks) and not self._stopping and len(self._drives) < self.settings.concurrency

    def _look_at(self, run_id: str) -> None:
        drive = self._drives.get(run_id)
        if drive is not None:
            drive.interrupt("look")

    async def _claim_forever(self) -> None:
        while not self._stopping:
            self.bus.alarm.clear()
            try:
                wait = 0.0 if await self._claim() else max(0.01, await self.store.runs.seconds_to_next())
            except (StoreAway, StoreBusy) as error:
                if not self._away:
                    log.warning("runs cannot be claimed; trying again: %s", error)
                self._away = True
                wait = self.settings.poll
            except Exception:  # whatever it was: a server that claims nothing more would look alive and do nothing
                log.exception("claiming failed; trying again")
                wait = self.settings.poll
            if wait:
                await clock.wait(self.bus.alarm, min(self.settings.poll, wait))

    async def _claim(self) -> bool:
        """Claim what there is room for; ``True`` when there may be more."""
        room = self.settings.concurrency - len(self._drives)
        if room <= 0:
            await self._room()
            return True
        if clock.now() - self._renewed >= self.settings.lease or self._renews:
            await self.renew()  # the process may have been held up: keep what is ours, if nobody took it meanwhile
        wanted = min(room, _CLAIM)
        until = clock.monotonic() + self.settings.lease
        claimed = await self.store.runs.claim(self.name, wanted, self.settings.lease, self.settings.workspace_runs)
        for one in claimed:
            points.reached("claimed")
            drive = _Drive(self, one, until)
            stale = self._drives.get(one.row.id)
            if stale is not None:  # our own lease had lapsed: the drive under the old token must say nothing more
                stale.interrupt("lost")
            self._drives[one.row.id] = drive
            drive.task.add_done_callback(lambda _, id=one.row.id, drive=drive: self._let_go(id, drive))
        return len(claimed) == wanted

    def _let_go(self, id: str, drive: _Drive) -> None:
        if self._drives.get(id) is drive:
            del self._drives[id]
        self._freed.set()
        if self.settings.workspace_runs:
            self.bus.poke()  # a run of the same workspace may have waited for this place

    async def _room(self) -> None:
        self._freed.clear()
        await clock.wait(self._freed, self.settings.poll)

    async def _watch_forever(self) -> None:
        """Renew leases, and tell drives whose time is over."""
        while True:
            deadlines = [drive.row.expires_at for drive in self._drives.values()]
            renewal = self._renewed + self.settings.renew
            wait = min([_TICK, renewal - clock.now(), *(deadline - clock.now() for deadline in deadlines)])
            await clock.sleep(max(wait, 0.01))
            now = clock.now()
            for drive in list(self._drives.values()):
                if drive.row.expires_at <= now:
                    drive.interrupt("look")
            self._look_for_lapsed()
            # Also when the machine's clock was set back: a time in the future says nothing about when to renew.
            if not 0 <= now - self._renewed < self.settings.renew:
                self._begin_to_renew()  # not waited for: the store may be away

    def _look_for_lapsed(self) -> None:
        """Let go of runs whose lease has run out, unless it is renewed at once: this process may have been paused."""
        now = clock.monotonic()
        for drive in list(self._drives.values()):
            if now < drive.until:
                drive.lapsed = None
            elif drive.lapsed is None:
                drive.lapsed = now
                self._begin_to_renew()
            elif now - drive.lapsed >= _TICK:
                drive.interrupt("lapsed")

    async def renew(self) -> None:
        """Renew the leases held here, now; a drive whose fencing token is void is told so. Raises nothing."""
        await asyncio.shield(self._begin_to_renew())

    @property
    def _renews(self) -> bool:
        return self._renewing is not None and not self._renewing.done()

    def _begin_to_renew(self) -> asyncio.Task[None]:
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(self._renew())
        return self._renewing

    async def _renew(self) -> None:
        self._renewed = clock.now()
        until = clock.monotonic() + self.settings.lease
        held = {drive.row.id: drive for drive in self._drives.values()}
        returned, self.returned = self.returned, []
        try:
            if returned:
                await self.store.runs.hand_back(returned)
                returned = []
                self.bus.poke()
            pairs = [(drive.row.id, drive.row.fence) for drive in held.values()]
            lost = await self.store.runs.renew(pairs, self.settings.lease) if pairs else []
        except (StoreAway, StoreBusy) as error:
            if not self._away:
                log.warning("the leases cannot be renewed; trying again: %s", error)
            self._away = True
            self.returned += returned
            await clock.sleep(_PAUSE)
        except Exception:  # as above: leases that nobody renews any more would all lapse
            log.exception("renewing the leases failed; trying again")
            self.returned += returned
            await clock.sleep(_PAUSE)
        else:
            self._away = False
            for id, drive in held.items():
                if id in lost:
                    drive.interrupt("lost")
                else:
                    drive.until = max(drive.until, until)
            if self.bus.deaf():
                await self._asked(held)

    async def _asked(self, held: Mapping[str, _Drive]) -> None:
        """See for ourselves which runs are to be cancelled: nobody can tell us now."""
        with suppress(LoomgateError):
            for id, drive in held.items():
                if await self.store.runs.status(id, drive.row.fence) in lifecycle.RUN["cancel"].sources:
                    drive.interrupt("look")
