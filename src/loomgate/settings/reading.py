"""Where the values of settings come from, and what makes one wrong: each mistake is one line that names its key.

What must live here: defaults, then ``loomgate.toml``, then ``LOOMGATE_*`` environment variables, then the command line.
What must not: opening anything but the settings file and the files that hold secrets. `describe` gives the declared
keys to the documentation's test. A key is checked by its declared type; what a type cannot say (one key against
another, addresses, key material) is in `_check`.
"""

import base64
import binascii
import difflib
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
import msgspec.inspect as shapes
import msgspec.structs
from msgspec import Meta

from loomgate.errors import SettingError
from loomgate.settings.declared import Name, Provider, Secret, Settings, Tree
from loomgate.settings.provider_data import PROVIDER_DATA, is_secret

_PREFIX = "LOOMGATE_"
_CONFIG = "LOOMGATE_CONFIG"
_DEFAULT_FILE = "loomgate.toml"


class Described(NamedTuple):
    """One documented key: its name, environment variable ("" for a key of a table), default as text, meaning."""

    key: str
    env: str
    default: str
    meaning: str


# Tables whose entries have names: the field that holds an entry's own name, which is never a key in the file.
_NAMED_BY = {"providers": "name", "virtual_keys": "slug", "configs": "slug", "guardrails": "slug"}


def describe(kind: type[msgspec.Struct] = Settings) -> list[Described]:
    """The keys that ``kind`` (`Settings`, or the type of one of its tables) declares, in order."""
    return [
        Described(
            field.name,
            _PREFIX + field.name.upper() if kind is Settings else "",
            _written(field.default_factory() if field.default is msgspec.NODEFAULT else field.default)
            if not field.required
            else ("NAME" if field.name == "vendor" else "required"),
            _meaning(field),
        )
        for field in _fields(kind).values()
        if field.name not in _NAMED_BY.values()
    ]


def find_file(env: Mapping[str, str] = os.environ, file: Path | None = None) -> Path | None:
    """The settings file that `load` reads: ``file``, else ``LOOMGATE_CONFIG``, else ``./loomgate.toml``, else none."""
    if file is not None:
        return file
    if named := env.get(_CONFIG):
        return Path(named)
    return Path(_DEFAULT_FILE) if Path(_DEFAULT_FILE).exists() else None


def load(args: Mapping[str, object] = {}, env: Mapping[str, str] = os.environ, file: Path | None = None) -> Settings:
    """The settings of this process: defaults < file < ``LOOMGATE_*`` < ``args``; a key is whole from its last.

    Takes ``args`` from the command line (keys of `Settings`; None means not given; text is read like the environment),
    ``env`` as a process's environment, ``file`` as given by ``--config``. Raises `SettingError` with the key, what was
    expected and what was found where; it never shows a secret's value.
    """
    given: dict[str, tuple[object, str]] = {}
    path = find_file(env, file)
    if path is not None:
        for key, value in _read(path).items():
            given[_known(key, describe(), str(path))] = (value, str(path))
    for variable, text in env.items():
        if not variable.startswith(_PREFIX) or variable == _CONFIG or _is_service_link(variable, text):
            continue
        key = _known(variable, describe(), "the environment")
        given[key] = (_from_text(key, text, variable), variable)
    for key, value in args.items():
        if value is not None:
            option = "--" + _known(key, describe(), "the command line").replace("_", "-")
            given[key] = (_from_text(key, value, option) if isinstance(value, str) else value, option)
    if "OPENAI_API_KEY" in env:
        declared, source = given.get("providers", ({}, "OPENAI_API_KEY"))
        given["providers"] = (_with_openai(declared, env), source)
    made = _struct(Settings, given, "", env)
    _check(made)
    return made


def decode_seal_key(text: str) -> bytes:
    """The 32 bytes that ``text`` holds in hex or base64 (either alphabet, padded or not); raises `SettingError`."""
    text = text.strip()
    try:
        if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
            return bytes.fromhex(text)
        plain = text.rstrip("=").replace("-", "+").replace("_", "/")
        key = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != 32:
        raise SettingError("seal_key", "32 bytes in base64 or hex", f"{len(text)} characters that are not")
    return key


def check_name(key: str, name: str) -> str:
    """``name`` if it can name a provider, slug or workspace; raises `SettingError` for ``key`` if not."""
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise SettingError(key, _expected(Name), _found(name)) from None


def check_url(key: str, url: str, own: Settings | None) -> None:
    """Raises `SettingError` for ``key`` unless ``url`` is empty or an http(s) address.

    ``own`` is given for an endpoint that is called: it must not be this server, or calls would go round for ever.
    """
    if not url:
        return
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.fragment or "@" in parts.netloc:
        raise SettingError(key, "an http:// or https:// address without user name and fragment", "something else")
    if own and parts.query:
        raise SettingError(key, "an address without query, since paths are appended to it", "a query")
    if own and port == own.port and host in ("127.0.0.1", "localhost", "::1", own.host):
        raise SettingError(key, "an endpoint other than this server itself", f"{host}:{port}")


# --- sources ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingError("config", "a settings file that can be read", f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError("config", "a settings file in TOML", f"{path}: {error}") from None


# Kubernetes gives every container the addresses of its services as variables: one service called "loomgate" makes
# LOOMGATE_PORT=tcp://10.0.0.1:80, LOOMGATE_SERVICE_HOST and so on. They are not settings and must not stop a start.
_SERVICE_LINK = re.compile(r"LOOMGATE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


def _is_service_link(variable: str, text: str) -> bool:
    if variable.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text):
        return True
    return _SERVICE_LINK.fullmatch(variable) is not None


def _from_text(key: str, text: str, source: str) -> object:
    """A value as the environment and the command line write it: plain text, or JSON for a list or table."""
    hint = _fields(Settings)[key].type
    if not isinstance(_shape(hint), (shapes.DictType, shapes.VarTupleType)):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise SettingError(key, f"{_expected(hint)} written as JSON", f"other text in {source}") from None


def _with_openai(declared: object, env: Mapping[str, str]) -> object:
    """Adds provider ``openai`` from OPENAI_API_KEY; it is the default only if no declared provider is."""
    if not isinstance(declared, dict) or "openai" in declared:
        return cast("object", declared)
    providers = _with_sole_default(cast("dict[str, object]", declared))
    tables = [cast("dict[str, object]", entry) for entry in providers.values() if isinstance(entry, dict)]
    taken = any(table.get("default") is True for table in tables)
    entry = {"api_key": "env:OPENAI_API_KEY", "base_url": env.get("OPENAI_BASE_URL", ""), "default": not taken}
    return {**providers, "openai": entry}


def _with_sole_default(providers: dict[str, object]) -> dict[str, object]:
    """The only provider declared is the default, unless it says otherwise or claims its models by pattern."""
    if len(providers) == 1:
        ((name, entry),) = providers.items()
        if isinstance(entry, dict) and "default" not in entry and not cast("dict[str, object]", entry).get("models"):
            return {name: {**entry, "default": True}}
    return providers


# --- values ----------------------------------------------------------------------------------------------------------

_S = TypeVar("_S", bound=msgspec.Struct)


def _struct(kind: type[_S], given: Mapping[str, tuple[object, str]], at: str, env: Mapping[str, str]) -> _S:
    """``kind`` from values with their sources; ``at`` is its own key with a dot ("" for the settings as a whole)."""
    values: dict[str, object] = {}
    for field in _fields(kind).values():
        if field.name in given:
            value, source = given[field.name]
            values[field.name] = _value(field.type, value, at + field.name, source, env)
        elif field.required:
            raise SettingError(at + field.name, _expected(field.type), "nothing")
    return kind(**values)


def _table(kind: type[msgspec.Struct], value: object, key: str, source: str, env: Mapping[str, str]) -> object:
    """One table of the file as ``kind``; the last part of ``key`` is its name, if such tables have names."""
    if not isinstance(value, dict):
        raise SettingError(key, "a table", f"{_found(value)} in {source}")
    entries = cast("dict[str, object]", value)
    given = {_known(entry, describe(kind), source, key): (entries[entry], source) for entry in entries}
    group, _, name = key.partition(".")
    if group in _NAMED_BY:
        given[_NAMED_BY[group]] = (name, source)
    if kind is Provider:
        given.setdefault("vendor", (name, source))
    return _struct(kind, given, key + ".", env)


def _value(hint: Any, value: object, key: str, source: str, env: Mapping[str, str]) -> object:
    """``value`` as the annotation ``hint`` wants it, or a `SettingError` for ``key``."""
    shape, inner = _shape(hint), get_args(_unannotated(hint))
    match shape:
        case shapes.DictType() if isinstance(value, dict):
            entries = cast("dict[str, object]", value)
            if key == "providers":
                entries = _with_sole_default(entries)
            make = _table if isinstance(_shape(inner[1]), shapes.StructType) else _value
            return {name: make(inner[1], entry, f"{key}.{name}", source, env) for name, entry in entries.items()}
        case shapes.VarTupleType() if isinstance(value, (list, tuple)):
            items = cast("Sequence[object]", value)
            return tuple(_value(inner[0], item, f"{key}[{at}]", source, env) for at, item in enumerate(items))
        case shapes.StructType():
            return _table(shape.cls, value, key, source, env)
        case shapes.CustomType(cls=cls) if cls is Secret and isinstance(value, str):
            return _secret(value, key, env)
        case shapes.CustomType(cls=cls) if cls is Secret:
            raise SettingError(key, _expected(hint), f"another type in {source}")
        case shapes.CustomType(cls=cls) if cls is Tree:
            return Tree(_tree(value, key, source, env))
        case shapes.CustomType(cls=cls) if cls is Path and isinstance(value, (str, Path)):
            return Path(value).expanduser()
        case shapes.DictType() | shapes.VarTupleType() | shapes.CustomType():
            raise SettingError(key, _expected(hint), f"{_found(value)} in {source}")
        case _:
            # Only the environment and the command line have numbers as text; in a file, "8787" is not 8787.
            try:
                made = msgspec.convert(value, hint, strict=not source.startswith((_PREFIX, "--")))
            except msgspec.ValidationError:
                made = None
            if made is None or (isinstance(made, float) and not math.isfinite(made)):
                raise SettingError(key, _expected(hint), f"{_found(value)} in {source}")
            return made


def _tree(value: object, key: str, source: str, env: Mapping[str, str]) -> dict[str, object]:
    """A table in JSON's types, from the file that ``file:PATH`` names if it is text; secrets in it are looked up."""
    if isinstance(value, str) and value.startswith("file:"):
        path, text = _in_file(value, key)
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise SettingError(key, f"a file in JSON, since {path} is named", str(error)) from None
        source = str(path)
    if not isinstance(value, dict):
        raise SettingError(key, "a table, or `file:` and the path of a JSON file", f"{_found(value)} in {source}")
    return {name: _leaf(item, f"{key}.{name}", name, env) for name, item in cast("dict[str, object]", value).items()}


def _leaf(value: object, key: str, name: str, env: Mapping[str, str]) -> object:
    match value:
        case dict():
            items = cast("dict[str, object]", value).items()
            return {inner: _leaf(item, f"{key}.{inner}", inner, env) for inner, item in items}
        case list():
            return [_leaf(item, f"{key}[{at}]", name, env) for at, item in enumerate(cast("list[object]", value))]
        case str() if is_secret(name):
            return _secret(value, key, env).reveal()
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise SettingError(key, "a value that JSON has too", "a date or time")


def _in_file(value: str, key: str) -> tuple[Path, str]:
    """What the file that ``file:PATH`` names holds."""
    path = Path(value.removeprefix("file:")).expanduser()
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise SettingError(key, "a file that can be read", f"{path}: {reason}") from None
    if not text:
        raise SettingError(key, "a file that holds it", f"an empty one: {path}")
    return path, text


def _secret(value: str, key: str, env: Mapping[str, str]) -> Secret:
    """``value`` itself, or what is in the variable that ``env:NAME`` names or in the file that ``file:PATH`` names."""
    if value.startswith("file:"):
        return Secret(_in_file(value, key)[1])
    if not value.startswith("env:"):
        return Secret(value)
    variable = value.removeprefix("env:")
    if not env.get(variable):
        raise SettingError(key, f"the environment variable {variable} to hold it", "no such variable, or an empty one")
    return Secret(env[variable])


def _known(key: str, declared: list[Described], source: str, at: str = "") -> str:
    """The declared key that ``key`` (or an environment variable's name) is; raises `SettingError` with the nearest."""
    names = {row.env if key.startswith(_PREFIX) else row.key: row.key for row in declared}
    if key in names:
        return names[key]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"a known key; did you mean `{near[0]}`?" if near else "a known key (docs/settings.md lists them)"
    raise SettingError(f"{at}.{key}" if at else key, hint, f"an unknown one in {source}")


# --- what types cannot say -------------------------------------------------------------------------------------------


def _check(made: Settings) -> None:
    if made.lease_renew_seconds * 2 > made.lease_seconds:
        limit = f"at most half of lease_seconds ({made.lease_seconds:g})"
        raise SettingError("lease_renew_seconds", limit, f"{made.lease_renew_seconds:g}")
    if made.run_ttl_seconds > made.run_ttl_max_seconds:
        limit = f"at most run_ttl_max_seconds ({made.run_ttl_max_seconds})"
        raise SettingError("run_ttl_seconds", limit, str(made.run_ttl_seconds))
    if made.cache_max_age_seconds > made.cache_max_age_limit_seconds:
        limit = f"at most cache_max_age_limit_seconds ({made.cache_max_age_limit_seconds})"
        raise SettingError("cache_max_age_seconds", limit, str(made.cache_max_age_seconds))
    if made.semantic_cache_model and not re.fullmatch(r"@[^/\s]+/\S+", made.semantic_cache_model):
        raise SettingError("semantic_cache_model", "`@PROVIDER/MODEL`", repr(made.semantic_cache_model))
    _check_database(made.database_url.reveal())
    _check_redis(made)
    if made.seal_key:
        decode_seal_key(made.seal_key.reveal())
    if not made.drive_runs and not made.redis_url:
        raise SettingError("drive_runs", "true, since without redis_url no other node can drive runs", "false")
    for name, provider in made.providers.items():
        check_url(f"providers.{name}.base_url", provider.base_url, made)
        _check_aws(f"providers.{name}", provider)
        _check_options(f"providers.{name}.options", provider.options)
    for slug, virtual_key in made.virtual_keys.items():
        check_url(f"virtual_keys.{slug}.base_url", virtual_key.base_url, made)
        _check_options(f"virtual_keys.{slug}.options", virtual_key.options)
    defaults_of: dict[str, str] = {}
    for slug, config in made.configs.items():
        if config.default and (other := defaults_of.setdefault(config.workspace, slug)) != slug:
            found = f"{other} is another of workspace {config.workspace}"
            raise SettingError(f"configs.{slug}.default", "one default config of a workspace", found)
    if len(defaults := [name for name, provider in made.providers.items() if provider.default]) > 1:
        raise SettingError(f"providers.{defaults[1]}.default", "one default provider", f"{defaults[0]} is another")
    for name in made.prices:
        if not all(name.partition("/")):
            raise SettingError(f"prices.{name}", "a name of the form PROVIDER/MODEL", repr(name))
    for at, webhook in enumerate(made.webhooks):
        check_url(f"webhooks[{at}].url", webhook.url or "nothing", None)
        try:
            length = len(webhook.signing_key()) if webhook.secret.reveal().startswith("whsec_") else 0
        except ValueError:
            length = 0
        if not 24 <= length <= 64:
            expected = "`whsec_` and 24 to 64 bytes in base64 (Standard Webhooks)"
            raise SettingError(f"webhooks[{at}].secret", expected, "something else")


def _check_options(key: str, options: Tree) -> None:
    for name in options.reveal():
        if name not in PROVIDER_DATA:
            near = difflib.get_close_matches(name, PROVIDER_DATA, n=1, cutoff=0.5)
            hint = f"; did you mean `{near[0]}`?" if near else " (docs/gateway/admin.md lists them)"
            raise SettingError(f"{key}.{name}", "the name of provider data" + hint, "an unknown one")


def _check_aws(key: str, provider: Provider) -> None:
    id, secret = provider.aws_access_key_id, provider.aws_secret_access_key
    if bool(id) != bool(secret):
        missing = "aws_access_key_id" if secret else "aws_secret_access_key"
        raise SettingError(f"{key}.{missing}", "a key, since the one that belongs to it is set", "nothing")
    if provider.aws_session_token and not id:
        raise SettingError(f"{key}.aws_access_key_id", "a key, since aws_session_token is set", "nothing")
    if provider.api_key and id:
        raise SettingError(f"{key}.api_key", "no key beside aws_access_key_id", "one")


def _check_database(url: str) -> None:
    scheme, separator, path = url.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        return
    if url and (scheme != "sqlite" or not separator):
        wanted = "`postgresql://…`, or `sqlite:///` and a path"
        raise SettingError("database_url", wanted, f"a `{scheme}` address" if separator else "no address")
    if url and (len(path) < 2 or not path.startswith("/") or ":memory:" in path or "?" in path):
        raise SettingError("database_url", "`sqlite:///` and the path of a file, without options", repr(url))


def _check_redis(made: Settings) -> None:
    url = made.redis_url.reveal()
    if url and not url.startswith(("redis://", "rediss://", "unix://")):
        scheme, separator, _ = url.partition("://")
        found = f"a `{scheme}` address" if separator else "no address"
        raise SettingError("redis_url", "`redis://…`, `rediss://…` or `unix://…`", found)
    if url and not made.postgres:
        wanted = "none beside a SQLite file, which one server uses alone (database_url: `postgresql://…`)"
        raise SettingError("redis_url", wanted, "one")


# --- the words of messages and docs ----------------------------------------------------------------------------------


def _fields(kind: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(kind)}


def _unannotated(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _shape(hint: Any) -> shapes.Type:
    shape = shapes.type_info(hint)
    shape = shape.type if isinstance(shape, shapes.Metadata) else shape
    if isinstance(shape, shapes.UnionType):  # a value or nothing
        shape = next(one for one in shape.types if not isinstance(one, shapes.NoneType))
    return shape


def _meaning(field: msgspec.structs.FieldInfo) -> str:
    return next(note.description for note in get_args(field.type)[1:] if isinstance(note, Meta) and note.description)


def _written(default: object) -> str:
    """A default as ``loomgate.toml`` would have it."""
    if isinstance(default, Secret):
        return '""'
    if default is None:
        return "none"
    if isinstance(default, Tree):
        return "{}"
    if isinstance(default, tuple):
        return "[" + ", ".join(_written(item) for item in cast("tuple[object, ...]", default)) + "]"
    return f"{default:g}" if isinstance(default, float) else msgspec.json.encode(default, enc_hook=str).decode()


def _range(shape: shapes.IntType | shapes.FloatType) -> str:
    if shape.gt is not None:
        return f" above {shape.gt:g}"
    if shape.ge is not None and shape.le is not None:
        return f" from {shape.ge:g} to {shape.le:g}"
    return "" if shape.ge is None else f" of at least {shape.ge:g}"


def _expected(hint: Any) -> str:
    """What a value of type ``hint`` looks like, in words."""
    match _shape(hint):
        case shapes.IntType() as shape:
            return "a whole number" + _range(shape)
        case shapes.FloatType() as shape:
            return "a number" + _range(shape)
        case shapes.BoolType():
            return "true or false"
        case shapes.LiteralType():
            return "one of " + ", ".join(f'"{value}"' for value in get_args(_unannotated(hint)))
        case shapes.StrType(pattern=str()):
            return "a name of up to 64 letters, digits, `.`, `_` and `-` that begins with a letter or digit"
        case shapes.StrType(min_length=int()):
            return "text that is not empty"
        case shapes.VarTupleType():
            return "a list"
        case shapes.DictType() | shapes.StructType():
            return "a table"
        case shapes.CustomType(cls=cls) if cls is Tree:
            return "a table"
        case shapes.CustomType(cls=cls) if cls is Path:
            return "a path"
        case _:
            return "text"


def _found(value: object) -> str:
    if isinstance(value, (dict, list, tuple)):
        return "a table" if isinstance(value, dict) else "a list"
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
