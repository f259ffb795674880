"""What a catalogue row holds: the facts about one vendor's endpoints, as data.

What must live here: the shape of a row. What must not: a vendor (``catalogue``), and what is done with a row
(``dialect.Target``, ``operations``).
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from loomgate.wire.endpoints import EndpointName

AuthStyle = Literal["key", "optional", "none", "service_account", "aws", "entra", "oci"]
DialectName = Literal[
    "openai",
    "anthropic",
    "azure-ai",
    "ai21",
    "bedrock",
    "bytez",
    "cohere",
    "gemini",
    "oracle",
    "palm",
    "reka-ai",
    "triton",
    "vertex-ai",
    "workers-ai",
]


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    """A vendor's facts (GATEWAY section 13).

    ``base_url``: None when there is no address that all customers share, so that one has to be given; placeholders in
    braces are filled from the call's provider data (`Target.addressed`). ``local``: where a server of one's own listens
    as a rule; it counts for a provider that the operator declared, never for a client's. ``address``: the provider
    datum that replaces ``base_url``: whoever may set it chooses where the key goes.
    ``endpoints``: the path below ``base_url`` of every endpoint that is offered; ``shared_prefix``: the beginning of
    paths that only ``base_url`` has, not an address of one's own; ``switched``: other paths for a provider datum that
    is "true".

    ``auth``: ``key`` needs one; ``optional`` sends one if there is one; ``none`` knows no keys; ``service_account``
    needs one that may be the key file of a Google service account, which is exchanged for an access token; ``aws``
    needs AWS keys, with which requests to ``service`` are signed, or a key; ``entra`` needs a key, a token of Microsoft
    Entra, or the means to get one; ``oci`` needs an API signing key of Oracle's. A key goes into ``key_header`` behind
    ``key_prefix``; dialects of other families than OpenAI's may have a place of their own for it.

    ``takes``: the settings of a provider that only some vendors know (``project``, ``region``, ``aws_access_key_id``);
    ``options``: the provider data (GATEWAY CFG-27, section 3.2) that mean something here, ``needs`` those of them
    without which no call can be made. ``headers`` are sent along, ``option_headers`` say which datum is sent in which
    header.

    For chat and completions: ``rename``: request fields under the name the endpoint knows; ``drop``: fields (our name
    or the renamed one) that it refuses; ``default_model``: for a body that names none (PV-90); ``developer``: whether
    it knows that role (TR-05); ``finish``: its own finish reasons, as OpenAI's (FR-14 to FR-16).
    ``models``: patterns (`fnmatch`) of model names that are unmistakably this vendor's.
    ``dialect`` is that of its chat.
    """

    name: str
    base_url: str | None
    endpoints: Mapping[EndpointName, str]
    shared_prefix: str = ""
    switched: Mapping[str, Mapping[EndpointName, str]] = {}
    dialect: DialectName = "openai"
    local: str | None = None
    address: str | None = None
    auth: AuthStyle = "key"
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    service: str | None = None
    takes: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}
    option_headers: Mapping[str, str] = {}
    rename: Mapping[str, str] = {}
    drop: frozenset[str] = frozenset()
    default_model: str | None = None
    developer: bool = False
    finish: Mapping[str, str] = {}
    models: tuple[str, ...] = ()

    @property
    def chat_path(self) -> str:
        """The path of its chat."""
        return self.endpoints.get("chat", "/chat/completions")

    @property
    def needs_key(self) -> bool:
        """Whether a call without a key cannot succeed, unless `proves` says that something else is there."""
        return self.auth not in ("optional", "none")

    def proves(self, options: Mapping[str, object]) -> bool:
        """Whether the provider data hold what takes the place of a key."""
        return any(options.get(name) for name in _PROOFS.get(self.auth, ()))


_PROOFS: dict[AuthStyle, tuple[str, ...]] = {
    "service_account": ("vertex_service_account_json",),
    "aws": ("aws_access_key_id",),
    "entra": ("azure_ad_token", "azure_auth_mode"),
    "oci": ("oracle_private_key",),
}
