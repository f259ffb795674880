"""The checks that guardrails consist of: the table of them, and those that need nothing but the body (GATEWAY GR-22).

What must live here: a row per check with its parameters, sides and verdict. What must not: what follows from a
verdict (``guardrails.py``), calls to other servers (``remote_checks.py``).

A check is prepared once per config, which is when patterns and schemas are compiled, and run for every request. The
defaults and the meaning of parameters are those of Portkey's open-source gateway.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from loomgate.errors import bad_request
from loomgate.gateway import code_formats, json_in_text
from loomgate.gateway.patterns import Pattern, Template
from loomgate.gateway.remote_checks import (
    Jwt,
    Log,
    ValidUrls,
    Webhook,
    prepare_jwt,
    prepare_log,
    prepare_valid_urls,
    prepare_webhook,
)
from loomgate.gateway.subject import Side, Subject
from loomgate.gateway.verdicts import Door, Finding, Parameters, Run, excerpt

Count = Annotated[int, Meta(ge=0)]
Words = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=1000)]
Operator = Literal["any", "all", "none"]


class Row(msgspec.Struct, frozen=True):
    """A check: its parameters, where it may stand, and how it is made ready.

    ``prepare`` raises `ValueError` for parameters that are of the right type and still make no sense. ``changes``: it
    may change the body. ``waits``: it asks another server.
    """

    parameters: type[Parameters]
    sides: tuple[Side, ...]
    prepare: Callable[[Any], Run]
    does: str
    changes: bool = False
    waits: bool = False


# --- the text ---


class RegexMatch(Parameters, frozen=True):
    """``rule`` in JavaScript's syntax, found anywhere in the text."""

    rule: Annotated[str, Meta(min_length=1)]
    not_: bool = msgspec.field(default=False, name="not")


def _regex_match(wanted: RegexMatch) -> Run:
    pattern = Pattern(wanted.rule)

    async def run(subject: Subject, _: Door) -> Finding:
        text = subject.text
        if not text:
            return Finding.failed("Missing text to match")
        try:
            found = await pattern.search(text)
        except TimeoutError as error:
            return Finding.failed(str(error) or "The pattern took too long on this text", "TimeoutError")
        verdict = (found is not None) != wanted.not_
        said = "matched" if found is not None else "did not match"
        return Finding(
            verdict,
            {
                "regexPattern": wanted.rule,
                "not": wanted.not_,
                "verdict": verdict,
                "explanation": f"The regex pattern '{wanted.rule}' {said} the text.",
                "matchDetails": found
                and {
                    "matchedText": found.group(),
                    "index": found.start(),
                    "groups": found.groupdict(),
                    "captures": list(found.groups()),
                },
                "textExcerpt": excerpt(text),
            },
        )

    return run


class SentenceCount(Parameters, frozen=True):
    """Sentences are counted by their ends: every ``.``, ``!`` and ``?``."""

    min_sentences: Count = 0
    max_sentences: Count = 99_999
    not_: bool = msgspec.field(default=False, name="not")


class WordCount(Parameters, frozen=True):
    """Words are what white space stands between."""

    min_words: Count = 0
    max_words: Count = 99_999
    not_: bool = msgspec.field(default=False, name="not")


class CharacterCount(Parameters, frozen=True):
    """Characters are Unicode code points."""

    min_characters: Count = 0
    max_characters: Count = 9_999_999
    not_: bool = msgspec.field(default=False, name="not")


def _counting(noun: str, low: int, high: int, inverted: bool, count: Callable[[str], int]) -> Run:
    if low > high:
        raise ValueError(f"min{noun} is larger than max{noun}")

    def run(subject: Subject, _: Door) -> Finding:
        text = subject.text
        number = count(text)
        verdict = (low <= number <= high) != inverted
        return Finding(
            verdict,
            {
                f"{noun[:-1].lower()}Count": number,
                f"min{noun}": low,
                f"max{noun}": high,
                "not": inverted,
                "verdict": verdict,
                "explanation": f"The text has {number} {noun.lower()}; the range is {low} to {high}.",
                "textExcerpt": excerpt(text),
            },
        )

    return run


def _sentence_count(wanted: SentenceCount) -> Run:
    def count(text: str) -> int:
        return text.count(".") + text.count("!") + text.count("?")

    return _counting("Sentences", wanted.min_sentences, wanted.max_sentences, wanted.not_, count)


def _word_count(wanted: WordCount) -> Run:
    return _counting("Words", wanted.min_words, wanted.max_words, wanted.not_, lambda text: len(text.split()))


def _character_count(wanted: CharacterCount) -> Run:
    return _counting("Characters", wanted.min_characters, wanted.max_characters, wanted.not_, len)


class Contains(Parameters, frozen=True):
    """``words`` as they are written, capitals included, also within longer words."""

    words: Words
    operator: Operator = "any"


def _operated(operator: Operator, found: Sequence[str], missing: Sequence[str]) -> bool:
    return {"any": bool(found), "all": not missing, "none": not found}[operator]


def _contains(wanted: Contains) -> Run:
    def run(subject: Subject, _: Door) -> Finding:
        text = subject.text
        found = [word for word in wanted.words if word in text]
        missing = [word for word in wanted.words if word not in text]
        verdict = _operated(wanted.operator, found, missing)
        return Finding(
            verdict,
            {
                "operator": wanted.operator,
                "foundWords": found,
                "missingWords": missing,
                "verdict": verdict,
                "explanation": f"Check {'passed' if verdict else 'failed'} for '{wanted.operator}' words.",
            },
        )

    return run


class Case(Parameters, frozen=True):
    """No parameters but ``not``."""

    not_: bool = msgspec.field(default=False, name="not")


def _case(name: Literal["uppercase", "lowercase"]) -> Callable[[Case], Run]:
    def prepare(wanted: Case) -> Run:
        def run(subject: Subject, _: Door) -> Finding:
            text = subject.text
            is_so = text == (text.upper() if name == "uppercase" else text.lower())
            verdict = is_so != wanted.not_
            said = f"The text is {'' if is_so else 'not '}all {name}."
            data = {"verdict": verdict, "not": wanted.not_, "explanation": said, "textExcerpt": excerpt(text)}
            return Finding(verdict, data)

        return run

    return prepare


class EndsWith(Parameters, frozen=True):
    """``suffix``, which a full stop may follow."""

    suffix: Annotated[str, Meta(min_length=1)]
    not_: bool = msgspec.field(default=False, name="not")


def _ends_with(wanted: EndsWith) -> Run:
    def run(subject: Subject, _: Door) -> Finding:
        ends = subject.text.endswith((wanted.suffix, wanted.suffix + "."))
        verdict = ends != wanted.not_
        said = f"The text {'ends' if ends else 'does not end'} with '{wanted.suffix}'."
        data = {"suffix": wanted.suffix, "not": wanted.not_, "verdict": verdict, "explanation": said}
        return Finding(verdict, data)

    return run


class NotNull(Parameters, frozen=True):
    """No parameters but ``not``."""

    not_: bool = msgspec.field(default=False, name="not")


def _not_null(wanted: NotNull) -> Run:
    def run(subject: Subject, _: Door) -> Finding:
        empty = not any(part and part.strip() for part in subject.parts)
        verdict = empty == wanted.not_
        said = "Content is null, undefined, or empty." if empty else "Content exists and is not null."
        return Finding(verdict, {"isNull": empty, "not": wanted.not_, "verdict": verdict, "explanation": said})

    return run


class ContainsCode(Parameters, frozen=True):
    """``format`` is one of the languages of `code_formats.FORMATS`."""

    format: code_formats.Format
    not_: bool = msgspec.field(default=False, name="not")


def _contains_code(wanted: ContainsCode) -> Run:
    def run(subject: Subject, _: Door) -> Finding:
        text = subject.text
        if not text:
            return Finding.failed("No text content to analyze")
        formats = code_formats.found_in(text)
        found = wanted.format in formats
        verdict = found != wanted.not_
        said = f"{'Found code block(s)' if found else 'No code blocks found'} in {wanted.format} format."
        return Finding(
            verdict,
            {
                "searchedFormat": wanted.format,
                "not": wanted.not_,
                "verdict": verdict,
                "foundFormats": formats,
                "explanation": said,
                "textExcerpt": excerpt(text),
            },
        )

    return run


# --- JSON within the text ---


class JsonSchema(Parameters, frozen=True):
    """``schema`` as an object, or as the text of one."""

    schema: dict[str, Any] | str
    not_: bool = msgspec.field(default=False, name="not")


def _json_schema(wanted: JsonSchema) -> Run:
    schema = json_in_text.Schema(wanted.schema)

    async def run(subject: Subject, _: Door) -> Finding:
        values = json_in_text.values(subject.text)
        if not values:
            data = {"not": wanted.not_, "explanation": "No valid JSON found in the response."}
            return Finding(wanted.not_, data)
        try:
            value, wrong = await asyncio.to_thread(schema.judged, values)
        except TimeoutError as error:
            return Finding.failed(str(error), "TimeoutError")
        verdict = (not wrong) != wanted.not_
        data = {
            "matchedJson": value,
            "not": wanted.not_,
            "verdict": verdict,
            "explanation": f"{'Failed to validate' if wrong else 'Validated'} JSON against the schema.",
            **({"validationErrors": wrong} if wrong else {}),
        }
        return Finding(verdict, data)

    return run


class JsonKeys(Parameters, frozen=True):
    """``keys`` at the top of an object."""

    keys: Words
    operator: Operator = "any"


def _json_keys(wanted: JsonKeys) -> Run:
    def run(subject: Subject, _: Door) -> Finding:
        objects = [cast(dict[str, Any], v) for v in json_in_text.values(subject.text) if isinstance(v, dict)]
        data: dict[str, Any] = {"explanation": "No valid JSON found in the response."}
        verdict = wanted.operator == "none"
        for value in objects:
            present = [key for key in wanted.keys if key in value]
            missing = [key for key in wanted.keys if key not in value]
            verdict = _operated(wanted.operator, present, missing)
            said = f"{'Matched' if verdict else 'Failed to match'} JSON with '{wanted.operator}' keys criteria."
            data = {"matchedJson": value, "explanation": said, "presentKeys": present, "missingKeys": missing}
            # One object that has the keys will do; that none has them must be true of every one.
            if verdict != (wanted.operator == "none"):
                break
        return Finding(verdict, {**data, "operator": wanted.operator, "verdict": verdict})

    return run


# --- the request ---


class ModelWhitelist(Parameters, frozen=True):
    """``models`` under the names that requests use."""

    models: Words
    not_: bool = msgspec.field(default=False, name="not")


def _model_whitelist(wanted: ModelWhitelist) -> Run:
    def run(subject: Subject, _: Door) -> Finding:
        model = subject.asked_model
        return _allowed(model, wanted.models, wanted.not_) if model else Finding.failed("Missing model in request")

    return run


def _allowed(model: str, models: Sequence[str], inverted: bool, **more: Any) -> Finding:
    listed = model in models
    verdict = listed != inverted
    said = f'Model "{model}" is {"" if verdict else "not "}allowed.'
    data = {"verdict": verdict, "not": inverted, "explanation": said, "requestedModel": model, **more}
    return Finding(verdict, data)


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models for everybody, and by a metadata key and its value."""

    defaults: list[str] = []
    metadata: dict[str, dict[str, list[str]]] = {}


class ModelRules(Parameters, frozen=True):
    """``rules``: ``{defaults: [models], metadata: {key: {value: [models]}}}``."""

    rules: Rules
    not_: bool = msgspec.field(default=False, name="not")


def _model_rules(wanted: ModelRules) -> Run:
    def run(subject: Subject, _: Door) -> Finding:
        model = subject.asked_model
        if not model:
            return Finding.failed("Missing model in request")
        models: list[str] = []
        matched: list[str] = []
        for key, by_value in wanted.rules.metadata.items():
            value = subject.metadata.get(key)
            if value is not None and value in by_value:
                matched.append(f"{key}:{value}")
                models += by_value[value]
        models = models or wanted.rules.defaults
        if not models:
            return Finding.failed("No allowed models resolved from rules")
        return _allowed(model, models, wanted.not_, matchedRules=matched)

    return run


def _types(given: list[str] | str) -> list[str]:
    items = given.split(",") if isinstance(given, str) else given
    return [item.strip() for item in items if item.strip()]


class AllowedRequestTypes(Parameters, frozen=True):
    """Endpoints such as ``chatComplete``, as an array or with commas between them."""

    allowed_types: list[str] | str = ""
    blocked_types: list[str] | str = ""


def _allowed_request_types(wanted: AllowedRequestTypes) -> Run:
    given = _types(wanted.allowed_types), _types(wanted.blocked_types)
    if both := set(given[0]) & set(given[1]):
        raise ValueError(f"both allowedTypes and blockedTypes have {', '.join(sorted(both))}")

    def run(subject: Subject, _: Door) -> Finding:
        allowed = given[0] or _types(subject.metadata.get("supported_endpoints", ""))
        blocked = given[1] or _types(subject.metadata.get("blocked_endpoints", ""))
        if both := set(allowed) & set(blocked):
            return Finding.failed(f"Types both allowed and blocked: {', '.join(sorted(both))}")
        kind = subject.request_type
        verdict = kind not in blocked and (not allowed or kind in allowed)
        data = {
            "currentRequestType": kind,
            "allowedTypes": allowed or ["all"],
            "blockedTypes": blocked,
            "verdict": verdict,
            "explanation": f'Request type "{kind}" is {"" if verdict else "not "}allowed.',
        }
        return Finding(verdict, data)

    return run


class RequiredMetadataKeys(Parameters, frozen=True):
    """``metadataKeys`` of the request's metadata, whatever their values."""

    metadata_keys: Words
    operator: Operator = "all"


def _required_metadata_keys(wanted: RequiredMetadataKeys) -> Run:
    def run(subject: Subject, _: Door) -> Finding:
        found = [key for key in wanted.metadata_keys if key in subject.metadata]
        missing = [key for key in wanted.metadata_keys if key not in subject.metadata]
        verdict = _operated(wanted.operator, found, missing)
        data = {
            "explanation": f"Check {'passed' if verdict else 'failed'} for '{wanted.operator}' metadata keys.",
            "missing_metadata_keys": missing,
            "found_metadata_keys": found,
            "operator": wanted.operator,
        }
        return Finding(verdict, data)

    return run


# --- changes ---


class RegexReplace(Parameters, frozen=True):
    """``redactText`` comes in the place of every match of ``rule``; ``failOnDetection`` makes a match a failure."""

    rule: Annotated[str, Meta(min_length=1)]
    redact_text: str = "[REDACTED]"
    fail_on_detection: bool = False


def _regex_replace(wanted: RegexReplace) -> Run:
    pattern, template = Pattern(wanted.rule), Template(wanted.redact_text)

    async def run(subject: Subject, _: Door) -> Finding:
        parts = subject.parts
        if not any(parts):
            return Finding.failed("Missing text to match")
        try:
            new = [part and await pattern.replaced(part, template) for part in parts]
        except TimeoutError as error:
            return Finding.failed(str(error) or "The pattern took too long on this text", "TimeoutError")
        found = any(part is not None for part in new)
        verdict = not (found and wanted.fail_on_detection)
        said = f"matched and was replaced with '{wanted.redact_text}'" if found else "did not match any text"
        data = {
            "regexPattern": wanted.rule,
            "verdict": verdict,
            "explanation": f"The regex pattern '{wanted.rule}' {said}.",
        }
        return Finding(verdict, data, changed=subject.with_parts(new) if found else None)

    return run


class AddPrefix(Parameters, frozen=True):
    """``prefix`` comes before the first message of ``applyToRole``, or before the prompt.

    ``addToExisting`` false: as a message of its own. ``onlyIfEmpty``: only when there is no such message.
    """

    prefix: Annotated[str, Meta(min_length=1)]
    apply_to_role: Literal["system", "developer", "user", "assistant"] = "user"
    add_to_existing: bool = True
    only_if_empty: bool = False


def _add_prefix(wanted: AddPrefix) -> Run:
    told = {
        name: value for name, value in msgspec.to_builtins(wanted).items() if name not in ("failOnError", "is_enabled")
    }

    def run(subject: Subject, _: Door) -> Finding:
        fields = _prefixed(subject, wanted)
        changed = None if fields is None else subject.with_body(fields)
        return Finding(True, {**told, "requestType": subject.request_type}, changed=changed)

    return run


def _prefixed(subject: Subject, wanted: AddPrefix) -> dict[str, Any] | None:
    """The body with the prefix; None if it has no place for it."""
    fields, prefix = subject.fields, wanted.prefix
    if subject.endpoint_name == "complete":
        prompt = fields.get("prompt")
        if isinstance(prompt, str):
            return {**fields, "prompt": prefix + prompt}
        if isinstance(prompt, list) and any(isinstance(item, str) for item in cast(list[Any], prompt)):
            items = cast(list[Any], prompt)
            return {**fields, "prompt": [prefix + item if isinstance(item, str) else item for item in items]}
        return None
    if subject.endpoint_name not in ("chat", "messages") or not isinstance(fields.get("messages"), list):
        return None
    if subject.endpoint_name == "messages" and wanted.apply_to_role in ("system", "developer"):
        # Anthropic's format has one system prompt, beside the messages.
        system = fields.get("system")
        if system and wanted.only_if_empty:
            return None
        separate = not wanted.add_to_existing
        return {**fields, "system": _before(prefix, system, separate=separate) if system else prefix}
    messages = cast(list[Any], fields["messages"])
    own = {"role": wanted.apply_to_role, "content": prefix}
    for at, message in enumerate(messages):
        if isinstance(message, dict) and cast(Mapping[str, Any], message).get("role") == wanted.apply_to_role:
            if wanted.only_if_empty:
                return None
            old = cast(dict[str, Any], message)
            if not wanted.add_to_existing:
                return {**fields, "messages": [*messages[:at], own, *messages[at:]]}
            new = {**old, "content": _before(prefix, old.get("content"))}
            return {**fields, "messages": [*messages[:at], new, *messages[at + 1 :]]}
    first = wanted.apply_to_role in ("system", "developer")
    return {**fields, "messages": [own, *messages] if first else [*messages, own]}


def _before(prefix: str, content: Any, *, separate: bool = False) -> Any:
    """``content``, a text or an array of parts, with ``prefix`` before its text; ``separate``: as a part of its own."""
    if not isinstance(content, list):
        old = content if isinstance(content, str) else ""
        if not separate:
            return prefix + old
        content = [{"type": "text", "text": old}]
    parts = cast(list[Any], content)
    head = cast(dict[str, Any], parts[0]) if parts and isinstance(parts[0], dict) else {}
    if not separate and isinstance(head.get("text"), str):
        return [{**head, "text": prefix + head["text"]}, *parts[1:]]
    return [{"type": "text", "text": prefix}, *parts]


_BOTH: tuple[Side, ...] = ("input", "output")
_IN: tuple[Side, ...] = ("input",)
_OUT: tuple[Side, ...] = ("output",)

CHECKS: Mapping[str, Row] = {
    "regexMatch": Row(RegexMatch, _BOTH, _regex_match, "a pattern matches"),
    "sentenceCount": Row(SentenceCount, _BOTH, _sentence_count, "the number of sentences is within a range"),
    "wordCount": Row(WordCount, _BOTH, _word_count, "the number of words is within a range"),
    "characterCount": Row(CharacterCount, _BOTH, _character_count, "the number of characters is within a range"),
    "jsonSchema": Row(JsonSchema, _OUT, _json_schema, "JSON in the text is valid under a schema"),
    "jsonKeys": Row(JsonKeys, _OUT, _json_keys, "JSON in the text has any, all or none of some keys"),
    "contains": Row(Contains, _OUT, _contains, "the text has any, all or none of some words"),
    "validUrls": Row(ValidUrls, _OUT, prepare_valid_urls, "every URL in the text leads somewhere", waits=True),
    "webhook": Row(Webhook, _BOTH, prepare_webhook, "a server of yours says so", changes=True, waits=True),
    "log": Row(Log, _BOTH, prepare_log, "a server of yours was told", waits=True),
    "containsCode": Row(ContainsCode, _OUT, _contains_code, "the text has code in a language"),
    "alluppercase": Row(Case, _BOTH, _case("uppercase"), "no letter is in lower case"),
    "alllowercase": Row(Case, _BOTH, _case("lowercase"), "no letter is in upper case"),
    "endsWith": Row(EndsWith, _BOTH, _ends_with, "the text ends with a suffix"),
    "modelwhitelist": Row(ModelWhitelist, _IN, _model_whitelist, "the model is on a list"),
    "modelRules": Row(ModelRules, _IN, _model_rules, "the model is on the list for the request's metadata"),
    "allowedRequestTypes": Row(AllowedRequestTypes, _IN, _allowed_request_types, "the endpoint is allowed"),
    "requiredMetadataKeys": Row(RequiredMetadataKeys, _IN, _required_metadata_keys, "metadata has some keys"),
    "jwt": Row(Jwt, _IN, prepare_jwt, "a header has a token with a valid signature", waits=True),
    "notNull": Row(NotNull, _OUT, _not_null, "there is a text"),
    "regexReplace": Row(RegexReplace, _BOTH, _regex_replace, "always; replaces what a pattern matches", changes=True),
    "addPrefix": Row(AddPrefix, _IN, _add_prefix, "always; puts a text before the user's", changes=True),
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
