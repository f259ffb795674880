"""What the operator and the workspaces have set up, as the gateway wants it: values that `app` fills in.

What must live here: shapes. What must not: where they come from (settings, store), and what is done with them.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers.sigv4 import AwsKeys
from loomgate.providers.transport import Timeouts
from loomgate.store.accounts import Opened
from loomgate.wire.limits import KeyLimits
from loomgate.wire.policy import Config, Naming


class ProviderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint the operator has set up.

    ``vendor`` is a row of the catalogue; ``base_url`` replaces the row's; ``models`` are `fnmatch` patterns of the
    model names that go here by default (empty: the row's own); ``drop`` adds request fields the endpoint refuses;
    ``project`` and ``region`` are for vendors that take them, ``aws`` are AWS keys in place of ``api_key``, ``options``
    are further provider data (GATEWAY CFG-27); ``timeouts`` and ``attempts`` replace those of `GatewayConfig` and its
    `Retries`. ``private``: whether the address may be one of a private network.
    """

    vendor: str
    base_url: str | None = None
    api_key: str | None = None
    project: str | None = None
    region: str | None = None
    aws: AwsKeys | None = None
    options: Mapping[str, Any] = {}
    models: tuple[str, ...] = ()
    drop: frozenset[str] = frozenset()
    headers: dict[str, str] = {}
    timeouts: Timeouts | None = None
    attempts: int | None = None
    private: bool = True

    def __repr__(self) -> str:
        return f"ProviderConfig(vendor={self.vendor!r}, base_url={self.base_url!r})"


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """How a run's model call is tried again when no routing config says how.

    ``attempts`` in all, the first included; back-off in seconds, doubling from ``base`` up to ``cap``, with full
    jitter. An endpoint that asks for more than ``longest_retry_after`` seconds is not tried again: sooner is no use.
    """

    attempts: int = 4
    base: float = 0.5
    cap: float = 8.0
    longest_retry_after: float = 60.0

    def wait(self, error: ProviderError, tries: int, dice: float) -> float:
        """Seconds until the next try after ``tries`` ones; ``dice`` in [0, 1) is for the jitter."""
        if error.retry_after is None:
            return dice * min(self.cap, self.base * 2 ** (tries - 1))
        return error.retry_after + dice * self.base


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``providers`` by the operator's names, in order; the one named by ``default`` takes what no pattern matches.

    ``trusted``: custom hosts that may be private (HOST-03). ``scripted`` switches the deterministic model on.
    """

    providers: dict[str, ProviderConfig] = {}
    default: str | None = None
    retries: Retries = Retries()
    timeouts: Timeouts = Timeouts()
    trusted: frozenset[str] = frozenset()
    scripted: bool = True


class Budget(msgspec.Struct, frozen=True):
    """Limits, and the id under which what is spent counts (`loomgate.gateway.limits.Limits`), from ``since`` on (s)."""

    id: str
    limits: KeyLimits
    since: int | None = None


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a virtual key (a stored provider) stands for.

    ``provider`` is a configured provider or a vendor; ``private`` as in `ProviderConfig`: a workspace may not point the
    gateway into the operator's network, the operator may. ``budgets`` are its own and its integration's (GERR-10);
    ``opened`` what the store has of it, if it is from there.
    """

    provider: str
    api_key: str | None = None
    base_url: str | None = None
    aws: AwsKeys | None = None
    options: Mapping[str, Any] = {}
    private: bool = False
    headers: dict[str, str] = {}
    budgets: tuple[Budget, ...] = ()
    opened: Opened | None = None

    def __repr__(self) -> str:
        return f"StoredKey(provider={self.provider!r}, base_url={self.base_url!r})"


def _unknown(_workspace: str) -> None:
    return None


async def _nothing(_workspace: str, _name: str) -> Any:
    return None


async def _none(_workspace: str) -> Any:
    return None


async def _no_keys(_workspace: str) -> Mapping[str, StoredKey]:
    return {}


async def _no_guardrails(_workspace: str) -> Mapping[str, dict[str, Any]]:
    return {}


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """How to look up what a workspace has stored, each by workspace and name; ``None`` when there is no such thing.

    ``config`` gives the same object until the config changes, and ``guardrails`` until any of them does. ``naming``
    opens the sealed way of a run by its credential's id; ``keys`` are all that ``key`` finds, by slug.
    ``number`` is another one after each change in the workspace, and ``known`` the same if it need not be looked up.
    `loomgate.gateway.lookup.Lookup` has them all.
    """

    key: Callable[[str, str], Awaitable[StoredKey | None]] = _nothing
    keys: Callable[[str], Awaitable[Mapping[str, StoredKey]]] = _no_keys
    config: Callable[[str, str], Awaitable[Config | None]] = _nothing
    naming: Callable[[str, str], Awaitable[Naming | None]] = _nothing
    default_config: Callable[[str], Awaitable[Config | None]] = _none
    guardrails: Callable[[str], Awaitable[Mapping[str, dict[str, Any]]]] = _no_guardrails
    number: Callable[[str], Awaitable[int | None]] = _none
    known: Callable[[str], int | None] = _unknown
