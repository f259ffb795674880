"""The errors that every route may answer with, whatever it is about (BEHAVIOUR ERR-40, ERR-60, ERR-61)."""

import logging

from loomgate.errors import ApiError, StoreAway, StoreBusy, StoreError

log = logging.getLogger(__name__)

_RETRY_AFTER = "1"  # seconds, with a 503


def too_large(limit: int) -> ApiError:
    """ERR-40. The connection ends with it: what was not read of the body is still on its way."""
    return ApiError(
        413,
        f"The request body is too large. Expected at most {limit} bytes.",
        headers={"connection": "close"},
    )


def overloaded(why: str = "The engine is currently overloaded, please try again later") -> ApiError:
    """ERR-61; a probe is told ``why``."""
    return ApiError(
        503,
        why,
        type="server_error",
        headers={"retry-after": _RETRY_AFTER},
    )


def server_error(request_id: str) -> ApiError:
    """ERR-60, ERR-71."""
    return ApiError(
        500,
        "The server had an error processing your request. Sorry about that! You can retry your request, or contact the "
        f"operator of this server if it happens again. (Please include the request ID {request_id}.)",
        type="server_error",
    )


def log_store_error(what: str, error: StoreError) -> None:
    """Say in the log why ``what`` met a 503: in one line if the store is away or busy, else with where it came from."""
    log.error("%s: %s", what, error, exc_info=None if isinstance(error, (StoreAway, StoreBusy)) else error)
