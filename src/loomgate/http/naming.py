"""What the headers of a request say about its way to a model (GATEWAY sections 2 and 3): a `Naming`. Pure.

What must live here: header names, and the refusal of values that cannot be read. What must not: who is calling
(``auth``), or whether what is named exists (``gateway/``).
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import msgspec

from loomgate.errors import bad_request
from loomgate.http.refusal import shortened
from loomgate.wire.configs import decode_config
from loomgate.wire.policy import Config, Naming
from loomgate.wire.provider_data import OPTION_HEADERS

Headers = Mapping[bytes, bytes]

PREFIX = b"x-portkey-"
_TRUE = frozenset({"true", "1", "yes"})

# Names that OpenAI's or Anthropic's own headers have as well: read where they are sent on (`gateway/exchange`).
_ELSEWHERE = frozenset({"openai-beta", "anthropic-beta", "anthropic-version"})
# About files and jobs (RH-23): read where they are, by `providers/jobs`.
_JOBS = frozenset(
    {"file-purpose", "file-upload-size", "provider-file-name", "provider-model", "provider-batch-endpoint"}
)
# Without effect in the reference (RH-22), and facts about the client.
_IDLE = frozenset("mode retry-count cache runtime runtime-version package-version os arch".split())


def naming_of(headers: Headers, own: str | None) -> Naming:
    """The `Naming` in ``headers`` (lower-case names); ``own`` is the client's key for the provider.

    Raises a 400 `ApiError` for a header that this server does not know or cannot read: a caller relies on it.
    """
    lasting: list[tuple[bytes, bytes]] = []
    fleeting: dict[str, Any] = {}
    for pair in headers.items():
        name = pair[0]
        if name.startswith(PREFIX):
            if (field := _FLEETING.get(name)) is not None:
                fleeting[field] = _text(pair[1]) or None
            elif name == _FORWARD:
                fleeting["forward"] = _forward(pair[1].decode("latin-1"), headers)
            elif name != _KEY:
                lasting.append(pair)
    naming = _read(tuple(lasting), own) if lasting else Naming(api_key=own) if own is not None else NOTHING
    return msgspec.structs.replace(naming, **fleeting) if fleeting else naming


NOTHING = Naming()
_KEY = b"x-portkey-api-key"
_FORWARD = b"x-portkey-forward-headers"
_FLEETING = {
    b"x-portkey-trace-id": "trace_id",
    b"x-portkey-span-id": "span_id",
    b"x-portkey-parent-span-id": "parent_span_id",
}


@lru_cache(maxsize=4096)
def _read(given: tuple[tuple[bytes, bytes], ...], own: str | None) -> Naming:
    """All requests of one client differ in their trace ids at the most, so the same headers come again and again."""
    found: dict[str, Any] = {} if own is None else {"api_key": own}
    options: dict[str, str] = {}
    for raw, value in given:
        name = raw[len(PREFIX) :].decode("latin-1")
        text = _text(value)
        if not text:
            continue
        reader = _READERS.get(name)
        if reader is not None:
            reader(found, text)
        elif name in _ELSEWHERE or name in _JOBS or name in _IDLE:
            continue
        elif (option := OPTION_HEADERS.get(name)) is not None:
            options[option] = text
        else:
            raise bad_request(
                f"The header 'x-portkey-{shortened(name)}' is not supported by this server.", code="unsupported_header"
            )
    if options:
        found["options"] = options
    if "virtual_key" in found and "provider" in found:
        raise bad_request(
            "Expected one of the headers x-portkey-virtual-key and x-portkey-provider, but got both.",
            code="invalid_value",
        )
    return Naming(**found)


def _text(value: bytes) -> str:
    """UTF-8 where it is, since configs and metadata are JSON; Latin-1 (RFC 9110 5.5) otherwise."""
    try:
        return value.decode().strip()
    except UnicodeDecodeError:
        return value.decode("latin-1").strip()


def _forward(named: str, headers: Headers) -> dict[str, str]:
    """RH-13. Raises VAL-09."""
    made: dict[str, str] = {}
    for name in (part.strip().lower() for part in named.split(",")):
        if name == "x-portkey-forward-headers":
            raise bad_request(
                "forward_headers must not contain the 'x-portkey-forward-headers' header", code="invalid_value"
            )
        value = headers.get(name.encode("latin-1", "replace"))
        if value is not None:
            made[name] = value.decode("latin-1")
    return made


def _put(field: str) -> Any:
    def put(found: dict[str, Any], text: str) -> None:
        found[field] = text

    return put


def _config(found: dict[str, Any], text: str) -> None:
    """A JSON object, else the slug of a saved config (RH-04)."""
    if text[:1] in '{["' or text in ("null", "true", "false"):
        found["inline"] = _decoded(text)
    else:
        found["config"] = text


@lru_cache(maxsize=512)
def _decoded(text: str) -> Config:
    return decode_config(text)


def _metadata(found: dict[str, Any], text: str) -> None:
    """RH-08: what is no JSON object counts as none."""
    try:
        given = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return
    if isinstance(given, dict):
        pairs = cast(dict[str, Any], given).items()
        found["metadata"] = {
            name: value if isinstance(value, str) else msgspec.json.encode(value).decode() for name, value in pairs
        }


def _timeout(found: dict[str, Any], text: str) -> None:
    """RH-11: what is no number, or 0, is ignored."""
    # Python itself refuses to read thousands of digits.
    if text.isdecimal() and len(text) < 100 and 0 < int(text) < 10**9:
        found["request_timeout"] = int(text)


def _strict(found: dict[str, Any], text: str) -> None:
    found["strict"] = text != "false"


def _debug(found: dict[str, Any], text: str) -> None:
    found["debug"] = text.lower() != "false"


def _flag(field: str) -> Any:
    def flag(found: dict[str, Any], text: str) -> None:
        found[field] = text.lower() in _TRUE

    return flag


def _sensitive(found: dict[str, Any], text: str) -> None:
    found["sensitive"] = tuple(part.strip().lower() for part in text.split(",") if part.strip())


def _guardrails(field: str) -> Any:
    header = f"x-portkey-default-{field.replace('_', '-')}"

    def read(found: dict[str, Any], text: str) -> None:
        try:
            found[field] = msgspec.json.decode(text, type=list[str | dict[str, Any]])
        except (msgspec.DecodeError, RecursionError) as error:
            raise bad_request(
                f"Invalid header '{header}': expected a JSON array of guardrails. {error}", code="invalid_value"
            ) from None

    return read


_READERS: dict[str, Any] = {
    "provider": _put("provider"),
    "virtual-key": _put("virtual_key"),
    "config": _config,
    "custom-host": _put("custom_host"),
    "span-name": _put("span_name"),
    "metadata": _metadata,
    "cache-force-refresh": _flag("cache_refresh"),
    "cache-namespace": _put("cache_namespace"),
    "request-timeout": _timeout,
    "strict-open-ai-compliance": _strict,
    "debug": _debug,
    "sensitive-headers": _sensitive,
    "fetch-integrated-models": _flag("integrated_models"),
    "default-input-guardrails": _guardrails("input_guardrails"),
    "default-output-guardrails": _guardrails("output_guardrails"),
}
