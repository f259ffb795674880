"""Webhooks: calls that the outbox owes are made, signed as Standard Webhooks says, and tried again by schedule.

What must live here: when a call is made, its headers, and what an answer means. What must not: what is told and in
which order (``store/outbox.py``), or HTTP itself (``providers/transport.py``).

Every endpoint has a sender of its own, so a slow one keeps only itself waiting. A call is claimed under a lease: when
this process dies in the middle of it, it is made again, under the same id.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec

from loomgate import clock
from loomgate.errors import LoomgateError, ProviderError
from loomgate.providers.dialect import HttpCall
from loomgate.providers.failure import retry_after
from loomgate.providers.transport import Limits, Timeouts, Transport
from loomgate.settings import Webhook
from loomgate.store.outbox import Delivery, Outbox, endpoints_of

log = logging.getLogger(__name__)

# Standard Webhooks recommends 15 to 30 seconds.
_TIMEOUTS = Timeouts(connect=10.0, first_byte=20.0, idle=5.0, total=25.0)
_LEASE = 60.0  # seconds: longer than any call takes
_REST = Timeouts(idle=0.5)  # for the body of an answer, which tells us nothing
_LONGEST_ANSWER = 64 * 1024  # bytes read of it, so that the connection can be used again
_LONGEST_RETRY_AFTER = 86_400.0
_JITTER = 0.1  # a wait grows by up to this part of it
_LONGEST_SLEEP = 60.0  # seconds after which a sender looks for calls that nobody told it of
_HOUSEKEEPING_SECONDS = 3600.0
_GONE = 410


def sign(key: bytes, id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` of a call: ``v1,`` and the HMAC-SHA256 of ``id.timestamp.body`` in base64.

    ``timestamp`` in seconds is that of the attempt (Standard Webhooks 1.0.0, "Signature scheme").
    """
    digest = hmac.digest(key, b"%b.%d.%b" % (id.encode(), timestamp, body), hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


class _Answer(msgspec.Struct, frozen=True):
    """What came of a call: ``why`` in words without secrets, and the seconds that the endpoint asked us to wait."""

    why: str
    delivered: bool = False
    final: bool = False
    wait: float = 0.0


class _Sender:
    """The calls to one endpoint: at most ``most`` at a time."""

    def __init__(self, owner: "Webhooks", endpoint: str, hook: Webhook, most: int) -> None:
        self._owner = owner
        self._outbox = owner.outbox
        self._endpoint = endpoint
        self._url = hook.url
        self._key = hook.signing_key()
        parts = urlsplit(hook.url)
        self._site = f"{parts.scheme}://{parts.netloc}"  # for logs: a path or query often holds a token
        self._most = most
        self._alarm = asyncio.Event()
        self._stopping = False
        self.calls: dict[asyncio.Task[None], Delivery] = {}

    def wake(self) -> None:
        """Look at what is owed."""
        self._alarm.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True
        self._alarm.set()

    async def go(self) -> None:
        """Claim and send until `stop`."""
        while not self._stopping:
            self._alarm.clear()
            try:
                pause = await self._claim()
            except LoomgateError as error:
                log.warning("the webhooks for %s cannot be read, trying again: %s", self._site, error)
                pause = 1.0
            if pause > 0 and not self._stopping:
                await clock.wait(self._alarm, min(pause, _LONGEST_SLEEP))

    async def _claim(self) -> float:
        """Begin the calls that are due and have room; answers the seconds until there is more to do."""
        room = self._most - len(self.calls)
        if room <= 0:
            return _LONGEST_SLEEP  # the end of a call sets the alarm
        claimed = await self._outbox.claim(self._endpoint, room, _LEASE)
        for delivery in claimed:
            task = asyncio.get_running_loop().create_task(self._deliver(delivery))
            self.calls[task] = delivery
            task.add_done_callback(self._over)
        if len(claimed) == room:
            return _LONGEST_SLEEP
        return await self._outbox.seconds_to_next(self._endpoint)

    def _over(self, task: asyncio.Task[None]) -> None:
        self.calls.pop(task, None)
        self._alarm.set()

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            answer = await self._call(delivery)
        except Exception:  # a fault of ours must not stop the others, nor be tried for ever
            log.exception("webhook %s could not be made", delivery.id)
            answer = _Answer("an error inside the server")
        try:
            await self._record(delivery, answer)
        except LoomgateError as error:
            log.warning("what came of webhook %s could not be stored, it is made again: %s", delivery.id, error)

    async def _call(self, delivery: Delivery) -> _Answer:
        now = clock.timestamp()
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(self._key, delivery.id, now, delivery.payload),
        }
        try:
            async with await self._owner.transport.send(
                HttpCall(self._url, headers, delivery.payload), _TIMEOUTS
            ) as reply:
                status, asked = reply.status, retry_after(reply.headers)
                reply.hurry(_REST)
                with suppress(ProviderError):  # the status has said it all
                    await reply.read(_LONGEST_ANSWER)
        except ProviderError as error:
            return _Answer(error.message)
        return _Answer(
            f"status {status}",
            delivered=200 <= status < 300,
            final=status == _GONE,
            wait=min(asked or 0.0, _LONGEST_RETRY_AFTER),
        )

    async def _record(self, delivery: Delivery, answer: _Answer) -> None:
        waits = self._owner.waits
        if answer.delivered:
            await self._outbox.end(delivery, answer.why, delivered=True)
            return
        if answer.final or delivery.attempts > len(waits):
            await self._outbox.end(delivery, f"given up: {answer.why}", delivered=False)
            said = "webhook %s of %s to %s is given up after attempt %d: %s"
            log.warning(said, delivery.id, delivery.run_id, self._site, delivery.attempts, answer.why)
            return
        wait = max(waits[delivery.attempts - 1] * (1 + _JITTER * self._owner.dice()), answer.wait)
        await self._outbox.retry(delivery, wait, answer.why)
        said = "webhook %s of %s to %s failed, next try in %.1f s: %s"
        log.info(said, delivery.id, delivery.run_id, self._site, wait, answer.why)


class Webhooks:
    """Delivers what ``outbox`` owes to the configured ``hooks``; `ValueError` if its store was opened with others.

    ``waits`` are the seconds before the second and every later attempt; ``transport`` is closed at the end;
    ``most`` calls are made to an endpoint at a time; calls that are over are forgotten after ``keep_days``; ``dice``
    gives a float in [0, 1) for the jitter. Without hooks nothing runs and nothing is written.
    """

    def __init__(
        self,
        outbox: Outbox,
        hooks: Sequence[Webhook],
        waits: Sequence[float],
        transport: Transport | None = None,
        *,
        most: int = 8,
        keep_days: float = 7.0,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.outbox = outbox
        self.waits = tuple(waits)
        self.transport = transport or Transport(Limits(connections=0))  # the senders bound them
        self.dice = dice
        self._keep = keep_days * 86_400
        endpoints = endpoints_of(hooks)
        if tuple(endpoints) != outbox.endpoints:
            raise ValueError("the store was opened with other webhooks")
        pairs = zip(endpoints, hooks, strict=True)
        self._senders = {endpoint.id: _Sender(self, endpoint.id, hook, most) for endpoint, hook in pairs}
        self._tasks: list[asyncio.Task[None]] = []
        self._housekeeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to deliver, what was left of before included. Call it from a running event loop."""
        if not self._senders:
            return
        self.outbox.listen(lambda endpoint: self._senders[endpoint].wake())
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(sender.go()) for sender in self._senders.values()]
        self._housekeeper = loop.create_task(self._keep_house())

    async def close(self, drain_seconds: float) -> None:
        """Claim nothing more, give calls under way ``drain_seconds``, and hand the others back."""
        self.outbox.listen(None)
        for sender in self._senders.values():
            sender.stop()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.gather(self._housekeeper, return_exceptions=True)
        await asyncio.gather(*self._tasks)
        calls = {task: call for sender in self._senders.values() for task, call in sender.calls.items()}
        if calls:
            _, left = await asyncio.wait(calls, timeout=drain_seconds)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            if left:
                await self.outbox.release([calls[task] for task in left])
        await self.transport.close()

    async def _keep_house(self) -> None:
        """Forget calls that were over long ago, and those owed to endpoints that are long gone."""
        while True:
            before = int(clock.now() - self._keep)
            try:
                while await self.outbox.forget(before):
                    pass  # a transaction each: others have their turn between them
                if dropped := await self.outbox.disown(before):
                    log.warning("dropped %d webhooks for endpoints that are not configured any more", dropped)
            except LoomgateError as error:
                log.warning("housekeeping of webhooks failed, trying again later: %s", error)
            await clock.sleep(_HOUSEKEEPING_SECONDS)
