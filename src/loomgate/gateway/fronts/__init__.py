"""The formats that clients speak, for endpoints that do not speak them themselves: see `front`."""

from loomgate.gateway.fronts.chat import ChatFront
from loomgate.gateway.fronts.completions import CompletionsFront
from loomgate.gateway.fronts.front import Front
from loomgate.gateway.fronts.messages import MessagesFront
from loomgate.gateway.fronts.responses import ResponsesFront

FRONTS: dict[str, Front] = {
    "chat": ChatFront(),
    "complete": CompletionsFront(),
    "messages": MessagesFront(),
    "respond": ResponsesFront(),
}
