"""The routing config, as a client writes it (GATEWAY section 6), and what a request says about its way.

What must live here: shapes and their limits. What must not: how one is read and refused (``wire/configs``), what a
config means (``gateway/``), or which providers exist.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loomgate.wire.provider_data import Plain, ProviderData, Strict

_LONGEST = 2_147_483_647  # of durations and counts: what fits a 32-bit number, so that no sum can overflow

Status = Annotated[int, Meta(ge=100, le=599)]
Count = Annotated[int, Meta(ge=1, le=_LONGEST)]
HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")]
# ``a``, ``a.b``, ``a[0].b``, ``a[*].b`` (CFG-18)
ParamPath = Annotated[str, Meta(pattern=r"^[^.\[\]]+(\[([0-9]+|\*)\])*(\.[^.\[\]]+(\[([0-9]+|\*)\])*)*\Z")]
# ``metadata.KEY``, ``params.KEY`` (CND-02, CFG-05)
Fact = Annotated[str, Meta(pattern=r"^(metadata|params)\.[^.]+\Z")]


class Condition(Strict, frozen=True):
    """One branch of a conditional strategy (CFG-03): ``then`` is the ``name`` of a target."""

    query: dict[str, Any]
    then: str


class Sticky(Strict, frozen=True):
    """Equal values of ``hash_fields`` (``metadata.x``, ``params.x``) go to one target for ``ttl`` seconds (CFG-05)."""

    enabled: bool = True
    hash_fields: tuple[Fact, ...] = ()
    ttl: Count = 3600


class Breaker(Strict, frozen=True):
    """When a target is left out for a while (CB-01); ``cooldown_interval`` is in milliseconds."""

    failure_threshold: Count | None = None
    failure_threshold_percentage: Annotated[float, Meta(ge=0, le=100)] | None = None
    minimum_requests: Count | None = None
    cooldown_interval: Annotated[int, Meta(ge=30_000, le=_LONGEST)] = 30_000
    failure_status_codes: list[Status] | None = None


Mode = Literal["single", "loadbalance", "fallback", "conditional"]


class Strategy(Strict, frozen=True):
    """How a target is chosen (CFG-01 to CFG-06). ``sticky_session`` is another spelling of ``sticky``."""

    mode: Mode
    on_status_codes: list[Status] | None = None
    conditions: list[Condition] | None = None
    default: str | None = None
    sticky: Sticky | None = None
    sticky_session: Sticky | None = None
    cb_config: Breaker | None = None

    @property
    def stuck(self) -> Sticky | None:
        """The sticky rule, if one is switched on."""
        found = self.sticky or self.sticky_session
        return found if found is not None and found.enabled else None


class Retry(Strict, frozen=True):
    """``attempts`` further tries after the first (CFG-13, RTY-01)."""

    attempts: Annotated[int, Meta(ge=0, le=5)]
    on_status_codes: list[Status] | None = None
    use_retry_after_headers: bool = False
    use_retry_after_header: bool = False  # the older spelling


class CachePolicy(Strict, frozen=True):
    """``max_age`` in seconds (CFG-14, CCH-02)."""

    mode: Literal["simple", "semantic"]
    max_age: Annotated[int, Meta(ge=60, le=7_776_000)] | None = None


class Config(ProviderData, frozen=True):
    """A config, or one target of it: the shape is the same at every depth (CFG-07). ``None``: not given."""

    name: str | None = None
    strategy: Strategy | None = None
    targets: Annotated[list["Config"], Meta(min_length=1)] | None = None
    provider: Plain | None = None
    virtual_key: Plain | None = None
    api_key: Plain | None = None
    weight: Annotated[float, Meta(ge=0, le=1e9)] = 1.0
    retry: Retry | None = None
    cache: CachePolicy | None = None
    request_timeout: Count | None = None
    override_params: dict[str, Any] | None = None
    default_params: dict[str, Any] | None = None
    drop_params: list[ParamPath] | None = None
    custom_host: str | None = None
    forward_headers: list[HeaderName] | None = None
    strict_open_ai_compliance: bool | None = None
    input_guardrails: list[str | dict[str, Any]] | None = None
    output_guardrails: list[str | dict[str, Any]] | None = None
    before_request_hooks: list[dict[str, Any]] | None = None
    after_request_hooks: list[dict[str, Any]] | None = None
    passthrough: bool | None = None
    fetch_integrated_models: bool | None = None
    cb_config: Breaker | None = None

    def __repr__(self) -> str:
        return f"Config(name={self.name!r}, provider={self.provider!r}, targets={len(self.targets or ())})"


class Naming(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the headers of a request say about its way (GATEWAY sections 2 and 3), secrets included: seal it to keep it.

    ``provider`` is the name of a vendor or a configured provider, or ``@slug``; ``config`` is a saved slug, ``inline``
    a config sent whole; ``options`` are provider data under their config names (``resource_name``, ``aws_region`` …);
    ``request_timeout`` is in milliseconds; ``forward`` are client headers that go upstream as they are. ``headers`` are
    those that a run keeps of its creation, for targets that ask for them (lower-case names).
    """

    provider: str | None = None
    virtual_key: str | None = None
    api_key: str | None = None
    config: str | None = None
    inline: Config | None = None
    custom_host: str | None = None
    options: dict[str, str] = {}
    request_timeout: int | None = None
    strict: bool = True
    forward: dict[str, str] = {}
    headers: dict[str, str] = {}
    trace_id: str | None = None
    span_id: str | None = None
    span_name: str | None = None
    parent_span_id: str | None = None
    metadata: dict[str, str] = {}
    cache_refresh: bool = False
    cache_namespace: str | None = None
    debug: bool = True
    sensitive: tuple[str, ...] = ()
    integrated_models: bool = False
    input_guardrails: list[str | dict[str, Any]] = []
    output_guardrails: list[str | dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"Naming(provider={self.provider!r}, virtual_key={self.virtual_key!r}, config={self.config!r})"
