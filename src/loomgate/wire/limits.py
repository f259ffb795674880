"""What a virtual key may use: a budget and rates (gateway.openapi.json, UsageLimits and RateLimits).

What must live here: shapes. What must not: what has been used (``gateway/limits``).
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class _Strict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class UsageLimits(_Strict, frozen=True):
    """A budget: ``credit_limit`` in USD or tokens (``type``), for good or until it is reset. Days are those of UTC.

    ``periodic_reset`` is on the first of a month or on Sundays, unless ``next_usage_reset_at`` gives a day from which
    the resets are counted; ``periodic_reset_days`` counts from that day, else from the epoch.
    """

    credit_limit: Annotated[float, Meta(gt=0)] | None = None
    type: Literal["cost", "tokens"] = "cost"
    alert_threshold: Annotated[float, Meta(gt=0)] | None = None
    periodic_reset: Literal["monthly", "weekly"] | None = None
    periodic_reset_days: Annotated[int, Meta(ge=1, le=365)] | None = None
    next_usage_reset_at: datetime | None = None


class RateLimit(_Strict, frozen=True):
    """At most ``value`` requests or tokens a minute, hour or day."""

    unit: Literal["rpm", "rph", "rpd"]
    value: Annotated[int, Meta(ge=1)]
    type: Literal["requests", "tokens"] = "requests"


class KeyLimits(_Strict, frozen=True):
    """All that limits one virtual key; ``None`` and empty: nothing does."""

    usage_limits: UsageLimits | None = None
    rate_limits: tuple[RateLimit, ...] = ()
