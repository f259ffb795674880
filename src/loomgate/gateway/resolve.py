"""From names to endpoints: which address, with whose key, a target of a config stands for (GATEWAY section 2).

What must live here: the order in which names are looked up, and whose secret may go where. What must not: choosing
among targets (``route``), sending.

A stored secret (the operator's, a virtual key's) goes only to the address it was stored with: a request that names a
custom host brings its own key, or none.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from loomgate.errors import ApiError, ProviderError, bad_request
from loomgate.gateway import hosts
from loomgate.gateway.call import Effective, Request
from loomgate.gateway.config import Budget, GatewayConfig, ProviderConfig, Stored, StoredKey
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target, base_of
from loomgate.providers.sigv4 import DEFAULT_REGION, AwsKeys, SigV4, region_of
from loomgate.providers.vendor import Vendor

_MOST_KEYS = 10_000


# Vendors whose files are objects, and the provider datum with the bucket they are in.
_BUCKETS = {"bedrock": "aws_s3_bucket", "vertex-ai": "vertex_storage_bucket_name"}
# Provider data that choose an address within the vendor's: a stored key goes only where it was stored for.
_ADDRESSES = frozenset({"resource_name", "azure_deployment_name", "snowflake_account"})


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """Where a call goes: ``provider`` is the name for headers and logs, ``model`` the vendor's name of the model.

    ``vouched``: the key is one that the operator gave, so it may say which address it is exchanged at. ``expires_at``:
    when a stored key's time is over (seconds since the epoch), if ever.
    """

    provider: str
    target: Target
    config: ProviderConfig
    model: str | None = None
    stored: str | None = None
    vouched: bool = True
    budgets: tuple[Budget, ...] = ()
    expires_at: int | None = None


class Resolver:
    """Looks names up."""

    def __init__(self, config: GatewayConfig, stored: Stored) -> None:
        self._config = config
        self._stored = stored
        # By workspace and slug: what a stored key led to the last time, as long as it is the same key.
        self._last: dict[tuple[str, str], tuple[StoredKey, Resolved]] = {}

    async def resolve(self, request: Request, effective: Effective, model: str | None) -> Resolved:
        """The endpoint for one target. Raises a 4xx `ApiError` for names that lead nowhere."""
        name, api_key = effective.provider, effective.api_key
        if effective.virtual_key is not None:
            return await self._by_stored(request, effective, effective.virtual_key, model)
        if name is None and model is not None and model.startswith("@"):
            slug, _, rest = model[1:].partition("/")
            if not slug or not rest:
                raise bad_request(f"Invalid 'model': expected '@provider/model', but got '{model[:100]}'.", "model")
            name, model = "@" + slug, rest
        if name is not None and name.startswith("@"):
            return await self._by_stored(request, effective, name[1:], model)
        if name is None:
            name, model = self._by_model(request, model)
        made = self._made(effective, name, self._of(name, api_key, effective), model)
        own = api_key is not None or _has_secrets(effective)
        return msgspec.structs.replace(made, vouched=False) if own else made

    async def refusal(self, request: Request, effective: Effective, model: str) -> str | None:
        """Why a run's model call could not be routed, or ``None``."""
        try:
            await self.resolve(request, effective, model)
        except ApiError as error:
            return error.message
        return None

    # --- names ---

    async def _by_stored(self, request: Request, effective: Effective, slug: str, model: str | None) -> Resolved:
        found = await self._stored.key(request.workspace, slug)
        if found is None:
            config = self._config.providers.get(slug)
            if config is None:
                raise bad_request(
                    f"Invalid provider: '@{slug[:100]}' is neither a virtual key of this workspace nor a configured "
                    "provider.",
                    code="unknown_provider",
                )
            return self._made(effective, slug, config, model, stored=True)
        if found.opened is not None and model is not None and not found.opened.allows(model):
            raise bad_request(f"The model '{model[:200]}' is not allowed with '@{slug}'.", "model", "model_not_allowed")
        if effective.custom_host is not None or effective.options:
            return self._opened(effective, slug, found, model)
        # Nothing of the request's own counts then but its model.
        place = (request.workspace, slug)
        last = self._last.get(place)
        if last is not None and last[0] is found:
            if last[1].model == model:
                return last[1]
            made = msgspec.structs.replace(last[1], model=model)
        else:
            made = self._opened(effective, slug, found, model)
        if len(self._last) >= _MOST_KEYS:
            self._last.clear()
        self._last[place] = (found, made)
        return made

    def _opened(self, effective: Effective, slug: str, found: StoredKey, model: str | None) -> Resolved:
        """Where the stored key ``found`` leads."""
        base = self._config.providers.get(found.provider) or ProviderConfig(vendor=found.provider)
        config = msgspec.structs.replace(
            base,
            # Never the operator's key: it must not pay, or travel to, what a workspace chose.
            api_key=found.api_key,
            aws=found.aws,
            base_url=found.base_url or base.base_url,
            options={**base.options, **found.options},
            headers={**base.headers, **found.headers},
            private=found.private or found.base_url is None or hosts.is_trusted(found.base_url, self._config.trusted),
        )
        made = self._made(effective, found.provider, config, model, stored=True)
        expires_at = None if found.opened is None else found.opened.expires_at
        return msgspec.structs.replace(
            made, stored=slug, budgets=found.budgets, vouched=found.private, expires_at=expires_at
        )

    def _by_model(self, request: Request | None, model: str | None) -> tuple[str, str | None]:
        """The provider for a model when nothing else names one, and the model's name there."""
        providers = self._config.providers
        if model:
            for name, config in providers.items():
                row = CATALOGUE.get(config.vendor)
                if any(fnmatchcase(model, pattern) for pattern in config.models or (row.models if row else ())):
                    return name, model
            prefix, slash, rest = model.partition("/")
            if slash and rest and prefix in providers:
                return prefix, rest
        if self._config.default is not None:
            return self._config.default, model
        if not model:
            raise bad_request(
                "Either x-portkey-config or x-portkey-provider header is required", code="provider_required"
            )
        raise ApiError(
            404 if request is None or request.chat is not None else 400,
            f"The model '{model[:200]}' does not exist here: no provider's models match it and there is no default "
            "provider. Name one with the header x-portkey-provider, x-portkey-virtual-key or x-portkey-config, or as "
            "'@provider/model'; or configure a provider for it, or use the model 'scripted'.",
            param="model",
            code="model_not_found",
        )

    def _of(self, name: str, api_key: str | None, effective: Effective) -> ProviderConfig:
        """The settings that calls to the provider ``name`` use, with the client's own key if it brought one."""
        config = self._config.providers.get(name)
        if config is None:
            if name not in CATALOGUE:
                raise bad_request(
                    f"Invalid provider passed: '{name[:100]}' is neither a configured provider nor a known vendor.",
                    code="unknown_provider",
                )
            config = ProviderConfig(vendor=name)
        if api_key is not None or effective.custom_host is not None or _has_secrets(effective):
            config = msgspec.structs.replace(config, api_key=api_key, aws=None)
        return config

    # --- endpoints ---

    def _made(
        self, effective: Effective, name: str, config: ProviderConfig, model: str | None, *, stored: bool = False
    ) -> Resolved:
        """``stored``: the key is one that the request only names."""
        vendor = CATALOGUE.get(config.vendor)
        if vendor is None:
            raise bad_request(
                f"The provider '{name}' names an unknown vendor '{config.vendor}'.", code="unknown_provider"
            )
        options = {**config.options, **effective.options} if effective.options else config.options
        given, free = _address(vendor, options)
        base_url, public_only = config.base_url or given or vendor.base_url, not config.private
        chosen = effective.custom_host
        if chosen is None and free and vendor.address in effective.options:
            chosen = given
        addressing = _ADDRESSES & effective.options.keys() if effective.options else ()
        lent = stored or (config.api_key is not None and effective.api_key is None)
        if lent and (chosen is not None or addressing):
            raise bad_request(
                f"{'An address' if chosen is None else 'A custom host'} cannot be combined with a stored key: it would "
                "receive the secret. Send the provider's key in the Authorization header, or store the address with "
                "the virtual key.",
                code="invalid_custom_host",
            )
        if chosen is not None:
            base_url = hosts.check(chosen, self._config.trusted)
            public_only = not hosts.is_trusted(base_url, self._config.trusted)
        if base_url is None:
            raise bad_request(
                f"The provider '{name}' has no address of its own: name one with x-portkey-custom-host or base_url.",
                code="provider_address_required",
            )
        if not re.match(r"https?://[^/\s]+", base_url):
            raise bad_request(f"The base_url of the provider '{name}' is not an http(s) address.")
        aws = config.aws or _aws(options)
        if vendor.needs_key and not config.api_key and aws is None and not vendor.proves(options):
            raise ApiError(
                401,
                f"There is no API key for the provider '{name}'. Send it in the Authorization header, or name a "
                "virtual key.",
                code="provider_key_required",
            )
        target = target_of(vendor, base_url, config, aws, options, public_only=public_only)
        if vendor.name in _BUCKETS and effective.api_key is None and not _has_secrets(effective):
            target = _bound(target, _BUCKETS[vendor.name], config, effective)
        return Resolved(provider=vendor.name, target=target, config=config, model=model)


def _bound(target: Target, name: str, config: ProviderConfig, effective: Effective) -> Target:
    """``target`` with the bucket that its lent key was stored with, if there is one: a client may name no other."""
    bucket = config.options.get(name)
    if not bucket:
        return target
    if effective.options.get(name) not in (None, bucket):
        raise bad_request(
            f"Invalid '{name}': expected '{bucket}', which the stored key is bound to. Leave it out, or bring a key of "
            "your own.",
            name,
            "bucket_not_allowed",
        )
    return msgspec.structs.replace(target, bucket=str(bucket))


def _address(vendor: Vendor, options: Mapping[str, Any]) -> tuple[str | None, bool]:
    try:
        return base_of(vendor, options)
    except ProviderError as error:
        raise bad_request(error.message, code="invalid_value") from None


def _has_secrets(effective: Effective) -> bool:
    return any(name in effective.options for name in ("aws_access_key_id", "vertex_service_account_json"))


def _aws(given: Mapping[str, Any]) -> AwsKeys | None:
    if not given.get("aws_access_key_id") or not given.get("aws_secret_access_key"):
        return None
    return AwsKeys(
        access_key_id=str(given["aws_access_key_id"]),
        secret_access_key=str(given["aws_secret_access_key"]),
        session_token=str(given["aws_session_token"]) if given.get("aws_session_token") else None,
    )


def target_for(vendor: Vendor, base_url: str, config: ProviderConfig) -> Target:
    """Where calls by the operator's own ``config`` go; ``base_url`` is the configured one or the row's."""
    aws = config.aws or _aws(config.options)
    return target_of(vendor, base_url, config, aws, config.options, public_only=not config.private)


def target_of(
    vendor: Vendor,
    base_url: str,
    config: ProviderConfig,
    aws: AwsKeys | None,
    options: Mapping[str, Any],
    *,
    public_only: bool,
) -> Target:
    """Where calls by ``config`` go and how they prove themselves; ``base_url`` is the chosen one.

    An AWS region is the configured one, else the one that the address names, else `DEFAULT_REGION`.
    """
    auth = None
    region = config.region or options.get("aws_region") or options.get("vertex_region")
    if vendor.auth == "aws":
        region = region or region_of(base_url) or DEFAULT_REGION
        base_url = base_url.replace("{region}", region)
        if aws is not None:
            auth = SigV4(keys=aws, region=region, service=vendor.service or vendor.name)
    return Target(
        vendor=vendor,
        base_url=base_url,
        api_key=None if auth else config.api_key,
        auth=auth,
        project=config.project or options.get("vertex_project_id"),
        region=region,
        drop=config.drop,
        headers=config.headers,
        options=options,
        public_only=public_only,
    )
