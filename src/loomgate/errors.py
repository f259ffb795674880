"""Every exception that crosses a room's border, each with what its catcher needs to act on it.

An `ApiError` is an answer to the client (BEHAVIOUR section 9); a `ProviderError` is a model endpoint's
refusal in our words; the others end a process's claim on something. No other room defines exceptions.
"""

from typing import Literal


class LoomgateError(Exception):
    """The root: nothing else of ours is raised on purpose."""


class ApiError(LoomgateError):
    """An error answer: HTTP status and the four members of BEHAVIOUR ERR-01, plus extra response headers.

    ``details`` are further lines for answers of the gateway (GATEWAY VAL-06).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        details: list[str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}
        self.details = details or []


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 about the request itself."""
    return ApiError(400, message, param=param, code=code)


# What an object is called in a 404 (BEHAVIOUR ERR-20 to ERR-26).
_NOT_FOUND = {
    "assistant": "No assistant found with id '{}'.",
    "thread": "No thread found with id '{}'.",
    "message": "No message found with id '{}'.",
    "run": "No run found with id '{}'.",
    "step": "No run step found with id '{}'.",
    "vector_store": "No vector store found with id '{}'.",
    "file": "No such File object: {}",
}


def not_found(kind: str, id: str) -> ApiError:
    """A 404 for an object of ``kind`` (a key of BEHAVIOUR ERR-20 to ERR-26) that this workspace does not have."""
    return ApiError(404, _NOT_FOUND[kind].format(id), param="id" if kind == "file" else None)


ProviderErrorKind = Literal[
    "rate_limit",  # 429: try later
    "overloaded",  # 503, 529: try later
    "server",  # 5xx
    "timeout",  # no answer in time
    "connect",  # no connection, or it broke before the first byte
    "cut",  # the stream broke after it had begun
    "malformed",  # the answer is not in the dialect's format
    "invalid",  # 400, 413, 422: the request's content
    "model_not_found",  # the endpoint does not have the model
    "auth",  # 401, 403: the key
    "route",  # what was named (a provider, a key, a config) leads nowhere
    "quota",  # 429 that waiting will not mend
]

# Kinds for which the same call may succeed a moment later, as long as nothing of the answer was used.
RETRYABLE: frozenset[ProviderErrorKind] = frozenset({"rate_limit", "overloaded", "server", "timeout", "connect", "cut"})


class ProviderError(LoomgateError):
    """A model endpoint refused or failed.

    ``kind`` says what to do about it, ``status`` is the endpoint's HTTP status if it gave one, ``retry_after``
    the seconds it asked us to wait, ``message`` its own words with secrets masked; ``path`` the place in a routing
    config (GATEWAY RSP-02) of the target that broke in the middle of an answer.
    """

    def __init__(
        self,
        kind: ProviderErrorKind,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind: ProviderErrorKind = kind
        self.message = message
        self.status = status
        self.retry_after = retry_after
        self.path: str | None = None


class IllegalTransition(LoomgateError):
    """A verb was asked of an object whose status does not allow it (``wire/lifecycle.py``); nothing was changed."""

    def __init__(self, verb: str, status: str) -> None:
        super().__init__(f"cannot {verb} from status {status!r}")
        self.verb = verb
        self.status = status


class LeaseLost(LoomgateError):
    """This worker's fencing token for a run is no longer the current one: stop, write nothing."""


class SettingError(LoomgateError):
    """A setting is wrong: which key, what was expected, what was found. Start-up prints it as one line."""

    def __init__(self, key: str, expected: str, found: str = "") -> None:
        super().__init__(f"{key}: expected {expected}" + (f", found {found}" if found else ""))
        self.key = key
        self.expected = expected


class StoreError(LoomgateError):
    """The store cannot be opened or used: the message is one line that names the place and the reason."""


class StoreBusy(StoreError):
    """The store works, but every connection to it is taken: try again in a moment."""


class StoreAway(StoreError):
    """The store could not be reached for as long as it was waited for: the same may succeed once it is back."""


class RedisAway(LoomgateError):
    """Redis cannot be reached, or refuses: whether it did what it was asked is not known. Do without, or ask again."""
