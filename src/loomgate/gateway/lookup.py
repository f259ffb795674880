"""What requests and runs name, looked up for the gateway and kept until somebody in the workspace changes something.

What must live here: remembering, and the gateway's view of what is found. What must not: what a slug means (``saved``).
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from loomgate.gateway.config import Budget, Stored, StoredKey
from loomgate.gateway.limits import key_id
from loomgate.gateway.saved import Saved
from loomgate.store.accounts import Opened
from loomgate.store.configs import Document
from loomgate.wire.configs import decode_config
from loomgate.wire.policy import Config, Naming

_MOST = 10_000  # workspaces that are remembered


class _Memory:
    """What was looked up for one workspace since its last change."""

    __slots__ = ("configs", "guardrails", "keys", "number", "slugs")

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: dict[str, StoredKey | None] = {}
        self.slugs: tuple[str, ...] | None = None
        self.configs: dict[str | None, Config | None] = {}
        self.guardrails: dict[str, dict[str, Any]] | None = None


class Lookup:
    """Everything that requests and runs name, by workspace. One per process."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved
        self._store = saved.store
        self._known: dict[str, _Memory] = {}
        self._parents: dict[str, str] = {}

    def stored(self) -> Stored:
        """This, as the gateway asks for it."""
        return Stored(
            key=self.key,
            keys=self.keys,
            config=self.config,
            naming=self.naming,
            default_config=self.default_config,
            guardrails=self.guardrails,
            number=self._store.generations.of,
            known=self._store.generations.known,
        )

    async def key(self, workspace: str, slug: str) -> StoredKey | None:
        """The virtual key (stored provider) ``slug``, opened."""
        memory = await self._memory(workspace)
        if slug not in memory.keys:
            found = await self._saved.virtual_key(workspace, slug)
            memory.keys[slug] = None if found is None else self._opened(workspace, slug, found)
        key = memory.keys[slug]
        return None if key is None or (key.opened is not None and key.opened.expired()) else key

    async def keys(self, workspace: str) -> Mapping[str, StoredKey]:
        """All virtual keys of the workspace that can be used, by slug."""
        memory = await self._memory(workspace)
        if memory.slugs is None:
            memory.slugs = await self._saved.virtual_keys(workspace)
        found = {slug: await self.key(workspace, slug) for slug in memory.slugs}
        return {slug: key for slug, key in found.items() if key is not None}

    async def config(self, workspace: str, slug: str) -> Config | None:
        """The config ``slug``: the same object until it is changed. Raises a 400 `ApiError` for a broken one."""
        memory = await self._memory(workspace)
        if slug not in memory.configs:
            memory.configs[slug] = _decoded(await self._saved.config(workspace, slug))
        return memory.configs[slug]

    async def default_config(self, workspace: str) -> Config | None:
        """The config for requests that name nothing, if the workspace has one."""
        memory = await self._memory(workspace)
        if None not in memory.configs:
            memory.configs[None] = _decoded(await self._saved.default_config(workspace))
        return memory.configs[None]

    async def guardrails(self, workspace: str) -> Mapping[str, dict[str, Any]]:
        """The guardrails that configs may name: the same object until one is changed."""
        memory = await self._memory(workspace)
        if memory.guardrails is None:
            memory.guardrails = await self._saved.guardrails(workspace)
        return memory.guardrails

    async def naming(self, workspace: str, credential: str) -> Naming | None:
        """The sealed way of a run."""
        sealed = await self._store.credentials.get(workspace, credential)
        return None if sealed is None else _naming(sealed)

    async def parents(self) -> Mapping[str, str]:
        """For each stored key that was made from an integration, under which other id its spending counts as well.

        Keys that are made later are added when they are first used.
        """
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

    def _opened(self, workspace: str, slug: str, found: Opened) -> StoredKey:
        own, parent = key_id(workspace, slug), None
        if found.integration is not None:
            parent = self._parents[own] = _parent(workspace, found.integration)
        return StoredKey(
            provider=found.provider,
            api_key=found.secret or None,
            base_url=found.base_url,
            options=found.options,
            headers=dict(found.headers),
            private=found.trusted,
            budgets=tuple(
                # The key's own, and its integration's, which counts what all keys made from it spend.
                Budget(own if one.id == own else parent or own, one.limits, one.since)
                for one in found.budgets
            ),
            opened=found,
        )


@lru_cache(maxsize=512)
def _naming(sealed: str) -> Naming:
    """The same object for every call of a run, whose config is then compiled once."""
    return msgspec.json.decode(sealed, type=Naming)


def _parent(workspace: str, integration: str) -> str:
    return key_id(workspace, "integration/" + integration)


def _decoded(found: Document | None) -> Config | None:
    return None if found is None else decode_config(found.body, where=f"config '{found.slug}'")
