"""Model calls as the run engine sees them: one `Gateway`, one method `chat`.

What must live here: which endpoint a call goes to, with which key, and whether it is tried again.
What must not: a vendor's wire format or a socket (``providers/``), runs and threads (``engine/``).
"""

from loomgate.gateway.chat import Gateway, GatewayConfig, ProviderConfig, ResolvedKey, Retries

__all__ = ["Gateway", "GatewayConfig", "ProviderConfig", "ResolvedKey", "Retries"]
