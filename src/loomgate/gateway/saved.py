"""What clients name by a slug: what the settings file declares and what is stored, seen as one.

What must live here: which of the two a slug means (the file's, if both have it), and what a saved config must not name.
What must not: SQL, HTTP, or what a config means.
"""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from loomgate.errors import ApiError, SettingError, bad_request
from loomgate.providers.catalogue import CATALOGUE
from loomgate.settings import DeclaredConfig, DeclaredGuardrail, Provider, Settings, VirtualKey
from loomgate.settings.provider_data import masked_path
from loomgate.store import Store
from loomgate.store.accounts import About, Account, Opened, opened
from loomgate.store.configs import Document
from loomgate.wire.admin import Actions, BadData, Check, provider_data
from loomgate.wire.configs import decode_config

_NAMESPACE = uuid.UUID("9d3b6f3e-52a5-4c0a-9d5c-6b1f0e6c2a11")
_DEEPEST = 100
_SECRETS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


def stable_id(*words: str) -> str:
    """A UUID for what has none of its own: always the same for the same ``words``."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join(words)))


class Saved:
    """The virtual keys, configs and guardrails of all workspaces. Cheap to make; keeps nothing.

    A caller that keeps what it gets asks `loomgate.store.generations.Generations` whether it is still right; what the
    file declares changes with a restart only.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings

    async def virtual_key(self, workspace: str, slug: str) -> Opened | None:
        """The virtual key (or provider) ``slug`` ready for use; ``None`` when there is none, or its time is over.

        A name of ``[providers]`` is not one: those are the operator's, for every workspace.
        """
        declared = self.settings.virtual_keys.get(slug)
        if declared is not None and declared.workspace == workspace:
            return msgspec.structs.replace(opened(declared_key(declared, self.settings), None), lent=False)
        found = await self.store.virtual_keys.get(workspace, slug)
        if found is None or found.expired():
            return None
        if not found.lent:
            return found
        operators = self.settings.providers.get(found.integration or "")
        return None if operators is None else _with_operators(found, operators)

    async def virtual_keys(self, workspace: str) -> tuple[str, ...]:
        """The slugs for which `virtual_key` may find something: the file's first, then the stored ones."""
        declared = [slug for slug, key in self.settings.virtual_keys.items() if key.workspace == workspace]
        stored = [row.slug for row in await self.store.virtual_keys.list(workspace)]
        return tuple(dict.fromkeys([*declared, *stored]))

    async def config(self, workspace: str, slug: str) -> Document | None:
        """The config ``slug`` of ``workspace``; ``None`` when there is none, or it is archived."""
        declared = self.settings.configs.get(slug)
        if declared is not None and declared.workspace == workspace:
            return declared_config(declared)
        return await self.store.configs.get(workspace, slug)

    async def default_config(self, workspace: str) -> Document | None:
        """The config for requests of ``workspace`` that name no provider, virtual key or config themselves."""
        for declared in self.settings.configs.values():
            if declared.default and declared.workspace == workspace:
                return declared_config(declared)
        return await self.store.configs.default(workspace)

    async def guardrail(self, workspace: str, slug: str) -> Document | None:
        """The guardrail ``slug`` of ``workspace`` (GATEWAY GR-03); its body is the long form of CFG-23."""
        declared = self.settings.guardrails.get(slug)
        if declared is not None and declared.workspace == workspace:
            return _in_use(declared_guardrail(declared))
        found = await self.store.guardrails.get(workspace, slug)
        return None if found is None else _in_use(found)

    async def guardrails(self, workspace: str) -> dict[str, dict[str, Any]]:
        """The bodies of all guardrails of ``workspace`` by slug."""
        stored = await self.store.guardrails.list(workspace)
        found = {row.slug: _in_use(row).body for row in stored if row.status == "active"}
        for slug, declared in self.settings.guardrails.items():
            if declared.workspace == workspace:
                found[slug] = _in_use(declared_guardrail(declared)).body
        return found

    async def check_config(self, workspace: str, config: dict[str, Any], where: str = "config") -> None:
        """Raises a 400 `ApiError` for a config that is none, that names what does not exist in ``workspace``, or that
        has a mask where a secret belongs."""
        check_depth(config, f"'{where}'")
        if (path := masked_path(config, where)) is not None:
            raise still_masked(path)
        decode_config(config, where=where)
        unknown = await self.unknown_names(workspace, config)
        if unknown:
            raise bad_request(f"Invalid '{where}': {unknown[0]}.", unknown[0].partition(":")[0], "invalid_config")

    async def unknown_names(self, workspace: str, config: Mapping[str, Any]) -> list[str]:
        """What ``config`` (checked already) names that does not exist: one line each, with the path of the target."""
        found: list[str] = []
        for path, target in targets(config):
            provider, key = target.get("provider"), target.get("virtual_key")
            if isinstance(key, str) and await self.virtual_key(workspace, key) is None:
                found.append(f"{path}.virtual_key: '{key[:100]}' is not a virtual key of this workspace")
            if isinstance(provider, str) and not await self._is_provider(workspace, provider):
                what = (
                    "a stored or configured provider" if provider.startswith("@") else "a provider that is known here"
                )
                found.append(f"{path}.provider: '{provider[:100]}' is not {what}")
            for name in ("input_guardrails", "output_guardrails"):
                for at, item in enumerate(cast("list[Any]", target.get(name) or ())):
                    if isinstance(item, str) and await self.guardrail(workspace, item) is None:
                        found.append(f"{path}.{name}[{at}]: '{item[:100]}' is not a guardrail of this workspace")
        return found

    async def _is_provider(self, workspace: str, name: str) -> bool:
        if not name.startswith("@"):
            return name in CATALOGUE or name in self.settings.providers
        slug = name[1:].partition("/")[0]  # AUTH-08
        return slug in self.settings.providers or await self.virtual_key(workspace, slug) is not None


def check_depth(value: object, where: str) -> None:
    """Raises a 400 `ApiError` for what is nested so deeply that no mistake of a person makes it so."""
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += cast("dict[str, object]", item).values()
            elif isinstance(item, list):
                below += cast("list[object]", item)
        if not below:
            return
        level = below
    raise bad_request(f"Invalid {where}: expected values nested at most {_DEEPEST} deep.", code="invalid_value")


def guardrail_body(slug: str, checks: list[Check], actions: Actions) -> dict[str, Any]:
    """A guardrail as configs have it inline in its long form (GATEWAY CFG-23)."""
    return {
        "id": slug,
        "checks": [{"id": check.id, **msgspec.to_builtins(check)} for check in checks],
        **msgspec.to_builtins(actions),
    }


def check_guardrail(body: dict[str, Any]) -> None:
    """Raises a 400 `ApiError` for a guardrail that cannot be saved."""
    check_depth(body, "guardrail")
    if not body["checks"]:
        raise bad_request("Invalid 'checks': expected at least one check.", "checks", "invalid_value")
    if (path := masked_path(body)) is not None:
        raise still_masked(path)


def still_masked(path: str) -> ApiError:
    """A 400: what was read was masked, and came back where it does not stand for a secret that is known."""
    return bad_request(
        f"Invalid '{path}': this is the mask that answers show in place of a secret. Expected the secret itself.",
        path,
        "invalid_value",
    )


def check_declared(settings: Settings) -> None:
    """Raises `SettingError` for a config, guardrail or provider data of the file that could never be used."""
    for table, entries in (("providers", settings.providers), ("virtual_keys", settings.virtual_keys)):
        for name, entry in entries.items():
            try:
                provider_data(entry.options.reveal())
            except BadData as error:
                raise SettingError(f"{table}.{name}.options.{error.path}", error.expected, "something else") from None
    for slug, config in settings.configs.items():
        try:
            decode_config(config.config.reveal(), where="config")
        except ApiError as error:
            raise SettingError(f"configs.{slug}.config", "a routing config", error.message) from None
    for slug, guardrail in settings.guardrails.items():
        try:
            msgspec.convert(guardrail.guardrail.reveal(), Guardrail)
        except msgspec.ValidationError as error:
            raise SettingError(f"guardrails.{slug}.guardrail", "a guardrail", str(error)) from None


class Guardrail(Actions, frozen=True, kw_only=True):
    """The long form of a guardrail (GATEWAY CFG-23), as the file has it."""

    checks: list[Check]


def targets(config: Mapping[str, Any], path: str = "config") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config itself and every target below it, with its path as GATEWAY RSP-02 writes it."""
    yield path, config
    for at, target in enumerate(cast("list[Mapping[str, Any]]", config.get("targets") or ())):
        yield from targets(target, f"{path}.targets[{at}]")


# --- what the file declares, as if it were stored --------------------------------------------------------------------


def declared_key(declared: VirtualKey, settings: Settings) -> Account:
    """A virtual key of the file; without a key of its own it has the key and AWS keys of its provider."""
    secret, data = declared.api_key.reveal(), dict(declared.options.reveal())
    provider = settings.providers.get(declared.provider)
    if provider is not None:
        data = {**operators_data(provider, secrets=not secret), **data}
        secret = secret or provider.api_key.reveal()
    return Account(
        workspace=declared.workspace,
        slug=declared.slug,
        provider=declared.provider,
        secret=secret,
        base_url=declared.base_url or None,
        id=stable_id("virtual_key", declared.workspace, declared.slug),
        name=declared.slug,
        integration=declared.provider if provider is not None else None,
        data=data,
        about=About(trusted=True),
    )


def declared_integration(provider: Provider, workspace: str) -> Account:
    """A provider of the file as an integration that every workspace has."""
    return Account(
        workspace=workspace,
        slug=provider.name,
        provider=provider.vendor,
        secret=provider.api_key.reveal(),
        base_url=provider.base_url or None,
        id=stable_id("integration", provider.name),
        name=provider.name,
        data=operators_data(provider, secrets=True),
        about=About(trusted=True),
    )


def operators_data(provider: Provider, *, secrets: bool) -> dict[str, Any]:
    """The provider data of a provider of the file, under their config names."""
    found: dict[str, Any] = {}
    if provider.project:
        found["vertex_project_id"] = provider.project
    if provider.region:
        found["aws_region" if provider.vendor in ("bedrock", "sagemaker") else "vertex_region"] = provider.region
    for name in _SECRETS:
        if secrets and (value := getattr(provider, name).reveal()):
            found[name] = value
    return {**found, **provider.options.reveal()}


def _with_operators(key: Opened, provider: Provider) -> Opened:
    # All of it is the operator's: its key must not travel to an address that a workspace chose.
    data = provider_data(operators_data(provider, secrets=True))
    return msgspec.structs.replace(
        key,
        provider=provider.name,
        secret=provider.api_key.reveal(),
        base_url=None,
        options=data.options,
        headers={},
        trusted=True,
        lent=False,
    )


def declared_config(declared: DeclaredConfig) -> Document:
    """A config of the file."""
    return _declared("config", declared.workspace, declared.slug, declared.config.reveal(), default=declared.default)


def declared_guardrail(declared: DeclaredGuardrail) -> Document:
    """A guardrail of the file."""
    body = {"id": declared.slug, **declared.guardrail.reveal()}
    return _declared("guardrail", declared.workspace, declared.slug, body, default=False)


def _in_use(guardrail: Document) -> Document:
    """Without the names that its checks have for people: CFG-23 knows none."""
    checks = [
        {name: value for name, value in check.items() if name != "name"} for check in guardrail.body.get("checks", ())
    ]
    return msgspec.structs.replace(guardrail, body={**guardrail.body, "checks": checks})


def _declared(kind: str, workspace: str, slug: str, body: dict[str, Any], *, default: bool) -> Document:
    text = msgspec.json.encode(body, order="sorted").decode()
    return Document(
        workspace=workspace,
        slug=slug,
        body=body,
        name=slug,
        id=stable_id(kind, workspace, slug),
        is_default=default,
        version_id=stable_id(kind, workspace, slug, text),
    )
