"""The worker: claims runs that are due, has each driven to its end or to its client's turn, and keeps the leases.

What must live here: which runs are in this process's hands, and for how long. What must not: what is done with one of
them (``drive``).

While the store is away, drives go on until their lease has run out by this process's own clock: then another worker may
have the run, so they say nothing more, and the run is given back as soon as the store answers again. A process that was
paused for longer than a lease asks the store first whether its runs are still its own (docs/cluster.md).
"""

import asyncio
import logging
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from loomgate import clock
from loomgate.bus import Bus
from loomgate.engine import points
from loomgate.engine.drive import Drive
from loomgate.errors import LoomgateError, StoreAway, StoreBusy
from loomgate.gateway import Gateway
from loomgate.store import Store
from loomgate.wire import lifecycle
from loomgate.wire.runs import Run, Step
from loomgate.wire.threads import Message

log = logging.getLogger(__name__)

_CLAIM = 32  # runs claimed in one transaction
_TICK = 1.0  # longest time between two looks at deadlines
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


class Worker:
    """Runs in this process. `start` it, `bus.poke` it when a run may be due, `close` it."""

    def __init__(self, store: Store, gateway: Gateway, bus: Bus, settings: WorkerSettings) -> None:
        self.store = store
        self.gateway = gateway
        self.bus = bus
        self.settings = settings
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._drives: dict[str, Drive] = {}
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
            drive = Drive(self, one, until)
            stale = self._drives.get(one.row.id)
            if stale is not None:  # our own lease had lapsed: the drive under the old token must say nothing more
                stale.interrupt("lost")
            self._drives[one.row.id] = drive
            drive.task.add_done_callback(lambda _, id=one.row.id, drive=drive: self._let_go(id, drive))
        return len(claimed) == wanted

    def _let_go(self, id: str, drive: Drive) -> None:
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

    async def _asked(self, held: Mapping[str, Drive]) -> None:
        """See for ourselves which runs are to be cancelled: nobody can tell us now."""
        with suppress(LoomgateError):
            for id, drive in held.items():
                if await self.store.runs.status(id, drive.row.fence) in lifecycle.RUN["cancel"].sources:
                    drive.interrupt("look")
