"""The upstream side of a realtime call: a WebSocket to a vendor, opened as any other call is routed (GATEWAY RT-02).

What must live here: which address and headers a realtime call has, and what ends its record. What must not: the
client's side (``http/realtime``), the protocol itself (``providers/websocket``). Messages pass as they are.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from loomgate import clock
from loomgate.providers.dialect import HttpCall, Target
from loomgate.providers.transport import Timeouts, Transport

if TYPE_CHECKING:
    from loomgate.providers.websocket import WebSocket

_PING_SECONDS = 20.0
# A session lasts as long as its two sides want it to; the vendors end theirs after an hour or less.
_FOREVER = 1e9
_MODEL_IN_ADDRESS = frozenset({"azure-openai"})


class Session:
    """A realtime call under way. ``subprotocol`` is what the endpoint chose; see `WebSocket` for the rest.

    ``finish`` ends the call's record and ``sent`` tells it of a text message; `Gateway.call` puts them in.
    """

    def __init__(self, socket: "WebSocket") -> None:
        self._socket = socket
        self.subprotocol = socket.subprotocol
        self.finish: Callable[[str | None], None] = _unrecorded
        self.sent: Callable[[bytes], None] = _unrecorded_piece

    async def send(self, message: str | bytes) -> None:
        """A message of the client's, on its way; returns once the endpoint takes more. Raises `ProviderError`."""
        await self._socket.send(message)

    async def recv(self) -> str | bytes | None:
        """The endpoint's next message; None once it has closed. Raises `ProviderError`."""
        message = await self._socket.recv()
        if message is not None:
            self.sent(message.encode() + b"\n" if isinstance(message, str) else b"")
        return message

    async def keep_alive(self) -> None:
        """Ping the endpoint now and then, for ever: a silent session is no dead one, and a dead one does not answer."""
        while True:
            await clock.sleep(_PING_SECONDS)
            self._socket.ping()

    @property
    def closed(self) -> tuple[int, str] | None:
        """The code and reason with which the endpoint closed; None while it has not."""
        code = self._socket.close_code
        return None if code is None else (code, self._socket.close_reason or "")

    async def close(self, code: int, reason: str) -> None:
        """Close the endpoint's side, as the client closed its own."""
        await self._socket.close(code, reason)

    def end(self) -> None:
        """Break it, if it is still open."""
        self._socket.end()


def _unrecorded(error: str | None) -> None:
    pass


def _unrecorded_piece(piece: bytes) -> None:
    pass


def realtime_call(target: Target, model: str | None, query: str, headers: Mapping[str, str]) -> HttpCall:
    """The opening request: the client's ``query`` goes along, its model as the vendor calls it, and so do the
    subprotocols and the beta header among its ``headers`` (lower-case names).

    Raises `ProviderError` ``invalid`` for an Azure resource without a deployment.
    """
    url, _, own = target.endpoint_url("realtime", model).partition("?")
    pairs = [pair for pair in own.split("&") if pair]
    names = {pair.partition("=")[0] for pair in pairs} | {"model"}
    if model and target.vendor.name not in _MODEL_IN_ADDRESS:
        pairs.insert(0, "model=" + quote(model, safe=""))
    for pair in query.split("&"):
        name = pair.partition("=")[0].lower()
        if pair and name not in names:
            pairs.append(pair)
    made = target.own_headers()
    if offered := headers.get("sec-websocket-protocol"):
        made["Sec-WebSocket-Protocol"] = offered
    if beta := headers.get("openai-beta"):
        made["OpenAI-Beta"] = beta
    return HttpCall("?".join([url, "&".join(pairs)]) if pairs else url, made, method="GET")


async def open_session(transport: Transport, call: HttpCall, timeouts: Timeouts) -> Session:
    """Open the WebSocket of ``call``, whose address is http or https. Raises `ProviderError`."""
    lasting = msgspec.structs.replace(timeouts, total=_FOREVER)
    url = "ws" + call.url.removeprefix("http")
    return Session(await transport.websocket(url, call.headers, lasting, public_only=call.public_only))
