"""What a workspace has saved, and what the operator has declared for it: keys, configs, guardrails, ways of runs.

What must live here: looking these up, and keeping them opened until somebody changes something. What must not: what they
are used for. Declared things win over saved ones of the same name, as the admin routes show them.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from loomgate.errors import bad_request
from loomgate.gateway.config import Budget, Stored, StoredKey
from loomgate.gateway.limits import key_id
from loomgate.providers.sigv4 import AwsKeys
from loomgate.settings import Provider, Settings
from loomgate.settings.declared import VirtualKey
from loomgate.store import Store
from loomgate.store.accounts import Opened
from loomgate.wire.limits import KeyLimits
from loomgate.wire.policy import Config, Naming, decode_config

_MOST = 10_000  # workspaces that are remembered


class _Memory:
    """What was looked up for one workspace since its last change."""

    __slots__ = ("configs", "guardrails", "keys", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: dict[str, StoredKey | None] = {}
        self.configs: dict[str | None, Config | None] = {}
        self.guardrails: dict[str, dict[str, Any]] | None = None


class Saved:
    """Everything that requests and runs name, by workspace. One per process."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._known: dict[str, _Memory] = {}
        self._parents: dict[str, str] = {}

    async def key(self, workspace: str, slug: str) -> StoredKey | None:
        """The virtual key (stored provider) ``slug``, opened."""
        memory = await self._memory(workspace)
        if slug not in memory.keys:
            memory.keys[slug] = await self._key(workspace, slug)
        found = memory.keys[slug]
        if found is not None and found.opened is not None and found.opened.expired():
            return None
        return found

    async def config(self, workspace: str, slug: str) -> Config | None:
        """The config ``slug``: the same object until it is changed. Raises a 400 `ApiError` for a broken one."""
        memory = await self._memory(workspace)
        if slug not in memory.configs:
            memory.configs[slug] = await self._config(workspace, slug)
        return memory.configs[slug]

    async def default_config(self, workspace: str) -> Config | None:
        """The config for requests that name nothing, if the workspace has one."""
        memory = await self._memory(workspace)
        if None not in memory.configs:
            declared = next(
                (one for one in self._settings.configs.values() if one.workspace == workspace and one.default), None
            )
            found = None if declared is not None else await self._store.configs.default(workspace)
            slug = declared.slug if declared is not None else found.slug if found is not None else None
            memory.configs[None] = None if slug is None else await self._config(workspace, slug)
        return memory.configs[None]

    async def guardrails(self, workspace: str) -> Mapping[str, dict[str, Any]]:
        """The guardrails that configs may name: the same object until one is changed."""
        memory = await self._memory(workspace)
        if memory.guardrails is None:
            saved = await self._store.guardrails.list(workspace)
            memory.guardrails = {one.slug: one.body for one in saved if one.status == "active"} | {
                slug: one.guardrail.reveal()
                for slug, one in self._settings.guardrails.items()
                if one.workspace == workspace
            }
        return memory.guardrails

    async def naming(self, workspace: str, credential: str) -> Naming | None:
        """The sealed way of a run."""
        sealed = await self._store.credentials.get(workspace, credential)
        return None if sealed is None else msgspec.json.decode(sealed, type=Naming)

    async def parents(self) -> Mapping[str, str]:
        """For each stored key that was made from an integration, under whose id its spending counts as well."""
        for account in await self._store.virtual_keys.list():
            if account.integration is not None:
                self._parents[key_id(account.workspace, account.slug)] = _parent(account.workspace, account.integration)
        return self._parents

    async def _memory(self, workspace: str) -> _Memory:
        number = await self._store.generations.of(workspace)
        found = self._known.get(workspace)
        if found is None or found.number != number:
            if len(self._known) >= _MOST:
                self._known.clear()
            found = self._known[workspace] = _Memory(number)
        return found

    async def _key(self, workspace: str, slug: str) -> StoredKey | None:
        declared = self._settings.virtual_keys.get(slug)
        if declared is not None and declared.workspace == workspace:
            return self._declared(declared)
        found = await self._store.virtual_keys.get(workspace, slug)
        if found is None:
            return None
        operators = None
        if found.integration is not None:
            self._parents[key_id(workspace, slug)] = _parent(workspace, found.integration)
            # An integration that the settings declare: the operator's own provider.
            operators = None if found.secret else self._settings.providers.get(found.integration)
        return _opened(workspace, found, operators)

    def _declared(self, declared: VirtualKey) -> StoredKey:
        provider = self._settings.providers.get(declared.provider)
        key, aws = declared.api_key, None
        if not key and provider is not None:
            key, aws = provider.api_key, aws_keys(provider)
        return StoredKey(
            provider=declared.provider,
            api_key=key.reveal() or None,
            aws=aws,
            base_url=declared.base_url or None,
            options=declared.options.reveal(),
            private=True,
        )

    async def _config(self, workspace: str, slug: str) -> Config | None:
        declared = self._settings.configs.get(slug)
        if declared is not None and declared.workspace == workspace:
            return decode_config(declared.config.reveal(), where=f"config '{slug}'")
        found = await self._store.configs.get(workspace, slug)
        if found is None:
            return None
        if found.status != "active":
            raise bad_request(f"The config '{slug}' is archived.", code="invalid_config")
        return decode_config(found.body, where=f"config '{slug}'")


def stored_by(saved: Saved) -> Stored:
    """``saved`` as the gateway asks for it."""
    return Stored(
        key=saved.key,
        config=saved.config,
        naming=saved.naming,
        default_config=saved.default_config,
        guardrails=saved.guardrails,
    )


def aws_keys(provider: Provider) -> AwsKeys | None:
    """The AWS keys of a declared provider, if it has any."""
    if not provider.aws_access_key_id:
        return None
    return AwsKeys(
        access_key_id=provider.aws_access_key_id.reveal(),
        secret_access_key=provider.aws_secret_access_key.reveal(),
        session_token=provider.aws_session_token.reveal() or None,
    )


def _parent(workspace: str, integration: str) -> str:
    return key_id(workspace, "integration/" + integration)


def _opened(workspace: str, found: Opened, operators: Provider | None) -> StoredKey:
    budgets = tuple(
        Budget(
            key_id(workspace, found.slug) if one.id == found.id else _parent(workspace, found.integration or ""),
            KeyLimits(usage_limits=one.usage_limits, rate_limits=tuple(one.rate_limits)),
        )
        for one in found.budgets
    )
    return StoredKey(
        provider=found.provider if operators is None else operators.name,
        api_key=found.secret or (operators.api_key.reveal() if operators is not None else "") or None,
        aws=None if operators is None else aws_keys(operators),
        base_url=found.base_url,
        options=found.options,
        headers=dict(found.headers),
        private=found.trusted or operators is not None,
        budgets=budgets,
        opened=found,
    )
