"""What the admin routes share: who may use them, pages, ids, times, and the words of their refusals. No I/O.

What must live here: the form of Portkey's control plane (``gateway.openapi.json``). What must not: one resource.
"""

import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType

from loomgate import clock
from loomgate.errors import ApiError, bad_request
from loomgate.gateway.saved import Saved, check_depth, stable_id
from loomgate.http import query
from loomgate.http.body import decode
from loomgate.http.call import Answer, Call
from loomgate.http.refusal import not_a_time, out_of_range, shortened, wrong_type
from loomgate.wire.admin import OneUsageLimits, RateLimits
from loomgate.wire.limits import KeyLimits, RateLimit, UsageLimits

Shown = dict[str, Any]
T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_MOST = 1000  # rows of a page
ORGANISATION = stable_id("organisation")  # there is one: this server


def body(call: Call, type: type[T]) -> T:
    """The body as ``type``. Raises a 400 `ApiError`, also for one that is nested too deeply to be walked through."""
    check_depth(decode(call.body, Shown), "body")
    return decode(call.body, type)


def saved(call: Call) -> Saved:
    """The view of file and store, for one request."""
    return Saved(call.engine.store, call.settings)


def answer(shown: Shown) -> Answer:
    """``shown`` as it is."""
    return Answer(_encode(shown))


def enveloped(shown: Shown) -> Answer:
    """``shown`` where the description has it (below ``data``) and where Portkey's clients look for it (at the top)."""
    return Answer(_encode({"success": True, "data": shown, **shown}))


def listing(call: Call, rows: Sequence[Shown], size: int, **more: Any) -> Answer:
    """The page of ``rows`` that ``current_page`` (from 0) and ``page_size`` ask for, and how many there are in all."""
    given = dict(query.pairs(call.query))
    check_workspace(call, given.get("workspace_id"))
    page = _number(given, "current_page", 0, 0, None)
    size = _number(given, "page_size", size, 1, _MOST)
    shown = rows[page * size : (page + 1) * size]
    return Answer(_encode({"object": "list", "total": len(rows), "data": shown, **more}))


def _number(given: dict[str, str], name: str, default: int, least: int, most: int | None) -> int:
    text = given.get(name)
    if text is None or not text:
        return default
    if re.fullmatch(r"-?[0-9]{1,9}", text) is None:
        raise wrong_type(name, "an integer", text)
    if int(text) < least:
        raise out_of_range(name, "integer", least, text, above=False)
    if most is not None and int(text) > most:
        raise out_of_range(name, "integer", most, text, above=True)
    return int(text)


# --- workspaces, ids, times ------------------------------------------------------------------------------------------


def workspace_id(workspace: str) -> str:
    """The UUID that stands for a workspace's name."""
    return stable_id("workspace", workspace)


def holder_id(key: str | None) -> str:
    """The UUID that stands for an API key's id, or for the operator."""
    return stable_id("key", key or "operator")


def check_workspace(call: Call, given: str | None, param: str = "workspace_id") -> None:
    """A workspace may be named, but only the API key's own. Raises a 400 `ApiError`."""
    if given and given not in (call.workspace, workspace_id(call.workspace)):
        raise bad_request(
            f"Invalid '{param}': expected the workspace of the API key ('{call.workspace}' or "
            f"'{workspace_id(call.workspace)}'), but got '{shortened(given)}'. Use an admin key of that workspace.",
            param,
            "invalid_value",
        )


def check_slug(given: str | None, key: str, param: str = "slug") -> None:
    """Clients repeat the slug of the URL in the body; a slug cannot be changed. Raises a 400 `ApiError`."""
    if given is not None and given != key:
        raise bad_request(f"Invalid '{param}': a slug cannot be changed.", param, "invalid_value")


def new_slug(name: str, prefix: str = "", length: int = 40) -> str:
    """A slug made of ``name`` and six random hex digits, such as ``pc-routing-3fa9c1``."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:length].strip("-")
    return prefix + (f"{words}-" if words else "") + secrets.token_hex(3)


def moment(timestamp: int) -> str:
    """A time in seconds as ISO 8601, in UTC."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def timestamp_of(text: str | None, param: str, *, future: bool = False) -> int | None:
    """The seconds that an ISO 8601 time stands for (UTC unless it says otherwise). Raises a 400 `ApiError`."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        seconds = int((found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise not_a_time(param, text) from None
    if future and seconds <= clock.now():
        raise bad_request(f"Invalid '{param}': expected a time in the future.", param, "invalid_value")
    return seconds


# --- limits ----------------------------------------------------------------------------------------------------------


def limits(before: KeyLimits, request: "Limited", at: str = "") -> KeyLimits:
    """``before`` with the limits that ``request`` gives; ``at`` is its place. Raises a 400 `ApiError`."""
    usage, rates = request.usage_limits, request.rate_limits
    if usage is not UNSET:
        if isinstance(usage, list):
            usage = usage[0] if usage else None
        before = msgspec.structs.replace(before, usage_limits=_usage(usage, f"{at}usage_limits"))
    if rates is not UNSET:
        many = () if rates is None else tuple(rates) if isinstance(rates, list) else (rates,)
        before = msgspec.structs.replace(before, rate_limits=many)
    return before


class Limited(Protocol):
    """A request with limits: not given, none, or some."""

    @property
    def usage_limits(self) -> OneUsageLimits | UnsetType: ...  # noqa: D102
    @property
    def rate_limits(self) -> RateLimits | UnsetType: ...  # noqa: D102


def _usage(given: UsageLimits | None, param: str) -> UsageLimits | None:
    if given is None or given == UsageLimits():
        return None
    if given.periodic_reset is not None and given.periodic_reset_days is not None:
        place = f"{param}.periodic_reset_days"
        raise bad_request(
            f"Invalid '{place}': expected one of periodic_reset and periodic_reset_days, but got both.",
            place,
            "invalid_value",
        )
    if given.credit_limit is None:
        place = f"{param}.credit_limit"
        raise bad_request(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    return given


def shown_usage(given: UsageLimits) -> Shown:
    """A budget as answers have it: whole numbers without a point."""
    shown = cast(Shown, msgspec.to_builtins(given))
    numbers = {name: int(value) for name, value in shown.items() if isinstance(value, float) and value.is_integer()}
    return {"type": given.type, **shown, **numbers}


def shown_rates(given: Sequence[RateLimit]) -> list[Shown] | None:
    """Rates as answers have them."""
    return [{"type": rate.type, "unit": rate.unit, "value": rate.value} for rate in given] or None


# --- refusals --------------------------------------------------------------------------------------------------------


def check_admin(call: Call) -> None:
    """The admin routes are for keys of the role ``admin``. Raises a 403 `ApiError`."""
    if not call.caller.admin:
        raise ApiError(
            403,
            "This API key has the role 'user', and this route is for keys of the role 'admin'. The operator of this "
            "server makes one with `loomgate keys create --role admin`.",
            code="admin_key_required",
        )


def unknown(what: str, key: str) -> ApiError:
    """A 404: there is no such thing in the caller's workspace."""
    return ApiError(404, f"No {what} found with slug or id '{shortened(key)}'.", code="not_found")


def taken(what: str, slug: str, param: str | None = "slug") -> ApiError:
    """A 400, not a 409, which clients would repeat."""
    return bad_request(f"There is {what} with the slug '{slug}' already in this workspace.", param, "slug_taken")


def read_only(what: str, table: str, slug: str) -> ApiError:
    """A 400 for a change of what the settings file declares."""
    return bad_request(
        f"The {what} '{slug}' is declared in the server's settings file (loomgate.toml, [{table}.{slug}]) and can only "
        "be changed there.",
        code="declared_in_file",
    )


def unsupported(param: str, why: str) -> ApiError:
    """A 400 for a field that is known but cannot be honoured."""
    return bad_request(f"Unsupported parameter: '{param}'. {why}", param, "unsupported_parameter")


def no_mappings(given: list[Any] | None) -> None:
    """There are no secret references to map from. Raises a 400 `ApiError`."""
    if given:
        raise unsupported("secret_mappings", "This server has no secret references; send the secret itself.")
