"""The checks that guardrails consist of: the table of them (GATEWAY GR-22).

What must live here: a row per check with its parameters and sides, and how one is found and made ready. What must not:
how a check comes to its verdict (``text_checks``, ``request_checks``, ``changing_checks``, ``remote_checks``), and what
follows from one (``guardrails.py``).

A check is prepared once per config, which is when patterns and schemas are compiled, and run for every request. The
defaults and the meaning of parameters are those of Portkey's open-source gateway.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from loomgate.errors import bad_request
from loomgate.gateway import changing_checks as changing
from loomgate.gateway import remote_checks as remote
from loomgate.gateway import request_checks as request
from loomgate.gateway import text_checks as text
from loomgate.gateway.subject import Side
from loomgate.gateway.verdicts import Parameters, Run


class Row(msgspec.Struct, frozen=True):
    """A check: its parameters, where it may stand, and how it is made ready.

    ``prepare`` raises `ValueError` for parameters that are of the right type and still make no sense. ``changes``: it
    may change the body. ``waits``: it asks another server.
    """

    parameters: type[Parameters]
    sides: tuple[Side, ...]
    prepare: Callable[[Any], Run]
    changes: bool = False
    waits: bool = False


_BOTH: tuple[Side, ...] = ("input", "output")
_IN: tuple[Side, ...] = ("input",)
_OUT: tuple[Side, ...] = ("output",)

# What looks at the text alone may look at either's, as in the reference: its manifest offers some of these for output
# only, but its code runs them wherever a config has them.
CHECKS: Mapping[str, Row] = {
    "regexMatch": Row(text.RegexMatch, _BOTH, text.prepare_regex_match),
    "sentenceCount": Row(text.SentenceCount, _BOTH, text.prepare_sentence_count),
    "wordCount": Row(text.WordCount, _BOTH, text.prepare_word_count),
    "characterCount": Row(text.CharacterCount, _BOTH, text.prepare_character_count),
    "jsonSchema": Row(text.JsonSchema, _BOTH, text.prepare_json_schema),
    "jsonKeys": Row(text.JsonKeys, _BOTH, text.prepare_json_keys),
    "contains": Row(text.Contains, _BOTH, text.prepare_contains),
    "validUrls": Row(remote.ValidUrls, _BOTH, remote.prepare_valid_urls, waits=True),
    "webhook": Row(remote.Webhook, _BOTH, remote.prepare_webhook, changes=True, waits=True),
    "log": Row(remote.Log, _BOTH, remote.prepare_log, waits=True),
    "containsCode": Row(text.ContainsCode, _BOTH, text.prepare_contains_code),
    "alluppercase": Row(text.Case, _BOTH, text.prepare_case("uppercase")),
    "alllowercase": Row(text.Case, _BOTH, text.prepare_case("lowercase")),
    "endsWith": Row(text.EndsWith, _BOTH, text.prepare_ends_with),
    "modelwhitelist": Row(request.ModelWhitelist, _IN, request.prepare_model_whitelist),
    "modelRules": Row(request.ModelRules, _IN, request.prepare_model_rules),
    "allowedRequestTypes": Row(request.AllowedRequestTypes, _IN, request.prepare_allowed_request_types),
    "requiredMetadataKeys": Row(request.RequiredMetadataKeys, _IN, request.prepare_required_metadata_keys),
    "jwt": Row(remote.Jwt, _IN, remote.prepare_jwt, waits=True),
    "notNull": Row(text.NotNull, _OUT, text.prepare_not_null),
    "regexReplace": Row(changing.RegexReplace, _BOTH, changing.prepare_regex_replace, changes=True),
    "addPrefix": Row(changing.AddPrefix, _IN, changing.prepare_add_prefix, changes=True),
}


class Check(msgspec.Struct, frozen=True):
    """A check, ready to run. ``id`` is with its ``default.``."""

    id: str
    run: Run
    fail_on_error: bool
    enabled: bool
    changes: bool
    waits: bool


def prepare_check(id: str, parameters: Any, side: Side, where: str) -> Check:
    """The check ``id`` (``default.`` may be left out) with ``parameters``, for ``side``.

    Raises a 400 `ApiError` that names ``where`` and the check (GR-22, GR-23).
    """
    family, _, name = id.rpartition(".")
    row = CHECKS.get(name) if family in ("", "default") else None
    if row is None:
        if family not in ("", "default"):
            whose = "Portkey's own service" if family == "portkey" else f"the service of '{family}'"
            said = f"the check '{id}' needs {whose}, which this gateway does not call. Use a 'default.webhook' to it."
        else:
            said = f"there is no check '{id}'. Expected one of: {', '.join('default.' + known for known in CHECKS)}."
        raise bad_request(f"Invalid {where}: {said}", param=where)
    if side not in row.sides:
        only = "output" if side == "input" else "input"
        raise bad_request(f"Invalid {where}: the check 'default.{name}' is for {only} only.", param=where)
    try:
        wanted = msgspec.convert({} if parameters is None else parameters, row.parameters)
        run = row.prepare(wanted)
    except (msgspec.ValidationError, ValueError) as error:
        said = f"the check 'default.{name}' has wrong parameters: {error}"
        raise bad_request(f"Invalid {where}: {said}", param=where) from None
    return Check(f"default.{name}", run, wanted.fail_on_error, wanted.is_enabled, row.changes, row.waits)
