"""The gateway: every model behind one API, and the way of every run's model call: one `Gateway`.

What must live here: which endpoint a call goes to and with which key, what is checked, cached and counted on the way,
and whether it is tried again. What must not: a vendor's wire format or a socket (``providers/``), runs and threads
(``engine/``), a client's HTTP (``http/``).
"""

from loomgate.gateway.config import GatewayConfig, ProviderConfig, Retries, Stored, StoredKey
from loomgate.gateway.gateway import Gateway

__all__ = ["Gateway", "GatewayConfig", "ProviderConfig", "Retries", "Stored", "StoredKey"]
