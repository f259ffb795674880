"""A drive: one run in a worker's hands, as a task, until it is over, it is its client's turn, or it is given back.

What must live here: carrying out the moves of ``plan`` on one run, and following what changes it from outside. What
must not: which runs are claimed, and their leases (``worker``).

Whoever changes a run from outside (cancel, expiry) writes the change first and then signals; the drive looks at the
store and follows. A drive whose fencing token is void stops without a trace.
"""

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import msgspec

from loomgate import clock
from loomgate.engine import context, plan, points
from loomgate.engine.perform import Heard, Outcome, Turn, failure_of
from loomgate.errors import IllegalTransition, LeaseLost, LoomgateError, ProviderError, StoreAway, StoreBusy
from loomgate.providers import tokens
from loomgate.store.records import Claimed, Commit, Journal
from loomgate.store.rows import Ended
from loomgate.wire import chat, events, lifecycle
from loomgate.wire.lifecycle import RunVerb
from loomgate.wire.runs import Failure, IncompleteRun, Run, Step, Usage
from loomgate.wire.threads import Message

if TYPE_CHECKING:
    from loomgate.engine.worker import Worker

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_BREAKS = 3  # how often a turn is done again whose answer broke in the middle
_BREAKS = frozenset({"cut", "timeout", "server", "overloaded", "rate_limit", "connect", "malformed"})
_HAND_BACK = 3.0  # longest time to tell the store that this worker stops


class _Interrupted(LoomgateError):
    """The drive was told to look again, to stop, or that its lease is lost or has run out: ``why``."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Drive:
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
