"""The checks of guardrails: the table of them, and their verdicts on texts, requests and changes."""

import json
from typing import Any

import pytest

from loomgate.gateway.checks import CHECKS
from loomgate.gateway.patterns import Pattern, Template
from loomgate.gateway.subject import Subject
from tests.gateway.checking import answered, asked, find, refused, verdict

pytestmark = pytest.mark.anyio


# --- the table ---


@pytest.mark.behaviour("GR-22")
def test_every_check_of_the_reference_is_there_on_its_sides() -> None:
    both = (
        "regexMatch sentenceCount wordCount characterCount webhook log alluppercase alllowercase endsWith regexReplace "
        "jsonSchema jsonKeys contains validUrls containsCode"
    )
    given_in = "allowedRequestTypes modelwhitelist modelRules jwt requiredMetadataKeys addPrefix"
    sides = {name: row.sides for name, row in CHECKS.items()}
    assert sides == {
        **dict.fromkeys(both.split(), ("input", "output")),
        "notNull": ("output",),
        **dict.fromkeys(given_in.split(), ("input",)),
    }


@pytest.mark.behaviour("GR-22")
def test_wrong_parameters_are_refused_by_name() -> None:
    assert "missing required field `words`" in refused("default.contains", {})
    assert "unknown field `word`" in refused("default.contains", {"words": ["x"], "word": "y"})
    assert "$.words" in refused("default.contains", {"words": "x"})
    assert "$.operator" in refused("default.contains", {"words": ["x"], "operator": "some"})
    assert "Expected `object`" in refused("default.contains", ["x"])
    assert "minWords is larger than maxWords" in refused("default.wordCount", {"minWords": 3, "maxWords": 2}, "input")
    assert "there is no check 'default.contain'" in refused("default.contain", {})
    assert "for output only" in refused("default.notNull", {}, "input")
    assert "for input only" in refused("default.addPrefix", {"prefix": "x"})
    assert "unmatched )" in refused("default.regexMatch", {"rule": "a)"})
    assert "not closed" in refused("default.regexReplace", {"rule": "(a"})
    assert "$.format" in refused("default.containsCode", {"format": "Cobol"})
    assert "http or https" in refused("default.webhook", {"webhookURL": "ftp://example.com"})
    assert "http or https" in refused("default.log", {"logURL": "not a url"})
    assert "line break" in refused("default.log", {"logURL": "http://a.example", "headers": {"a": "b\r\nc: d"}})
    assert "line break" in refused("default.log", {"logURL": "http://a.example", "headers": '{"a b": "c"}'})
    for name in ("Content-Length", "transfer-encoding", "Host"):
        assert "not yours" in refused("default.webhook", {"webhookURL": "http://a.example", "headers": {name: "5"}})
    assert "such as '1d'" in refused("default.jwt", {"jwksUri": "http://a.example", "maxTokenAge": "soon"}, "input")
    assert "$.algorithms" in refused("default.jwt", {"jwksUri": "http://a.example", "algorithms": ["HS256"]}, "input")
    assert "both allowedTypes and blockedTypes" in refused(
        "default.allowedRequestTypes", {"allowedTypes": "embed, complete", "blockedTypes": ["embed"]}, "input"
    )


@pytest.mark.behaviour("GR-23")
@pytest.mark.parametrize("name", ["moderateContent", "language", "pii", "gibberish"])
def test_checks_of_other_services_are_refused_by_name(name: str) -> None:
    assert "needs Portkey's own service" in refused(f"portkey.{name}", {})
    assert "needs the service of 'patronus'" in refused("patronus.phi", {})


# --- texts ---


@pytest.mark.behaviour("GR-22")
@pytest.mark.parametrize(
    ("check", "parameters", "text", "expected"),
    [
        ("regexMatch", {"rule": r"^\d{3}-\d{4}$"}, "555-1234", True),
        ("regexMatch", {"rule": r"^\d{3}-\d{4}$"}, "555-1234\n", False),
        ("regexMatch", {"rule": r"(?<year>\d{4})"}, "in 2024", True),
        ("regexMatch", {"rule": "secret", "not": True}, "a secret", False),
        ("regexMatch", {"rule": "secret", "not": True}, "nothing", True),
        ("sentenceCount", {"minSentences": 2, "maxSentences": 2}, "One. Two!", True),
        ("sentenceCount", {"minSentences": 1}, "no end", False),
        ("sentenceCount", {"maxSentences": 1, "not": True}, "One. Two? Three.", True),
        ("wordCount", {"minWords": 3, "maxWords": 3}, " one\ttwo\nthree ", True),
        ("wordCount", {"maxWords": 2}, "one two three", False),
        ("wordCount", {"maxWords": 2, "not": True}, "one two three", True),
        ("characterCount", {"minCharacters": 5, "maxCharacters": 5}, "héllo", True),
        ("characterCount", {"minCharacters": 6}, "hello", False),
        ("characterCount", {"minCharacters": 6, "not": True}, "hello", True),
        ("contains", {"words": ["a", "z"]}, "abc", True),
        ("contains", {"words": ["a", "z"], "operator": "all"}, "abc", False),
        ("contains", {"words": ["a", "c"], "operator": "all"}, "abc", True),
        ("contains", {"words": ["x", "z"], "operator": "none"}, "abc", True),
        ("contains", {"words": ["x", "c"], "operator": "none"}, "abc", False),
        ("contains", {"words": ["ABC"]}, "abc", False),
        ("alluppercase", {}, "ABC 12", True),
        ("alluppercase", {}, "ABc", False),
        ("alluppercase", {"not": True}, "ABc", True),
        ("alllowercase", {}, "abc 12", True),
        ("alllowercase", {}, "abC", False),
        ("alllowercase", {"not": True}, "abC", True),
        ("endsWith", {"suffix": "end"}, "the end", True),
        ("endsWith", {"suffix": "end"}, "the end.", True),
        ("endsWith", {"suffix": "end"}, "the end!", False),
        ("endsWith", {"suffix": "end", "not": True}, "the end!", True),
        ("notNull", {}, "x", True),
        ("notNull", {}, " \n", False),
        ("notNull", {}, None, False),
        ("notNull", {"not": True}, None, True),
    ],
)
async def test_verdicts_on_texts(check: str, parameters: dict[str, Any], text: Any, expected: bool) -> None:
    assert await verdict(check, parameters, text) is expected
    if text is not None and "input" in CHECKS[check].sides:
        assert (await find(check, parameters, asked(text))).verdict is expected


@pytest.mark.behaviour("GR-22")
@pytest.mark.parametrize(
    ("check", "parameters"),
    [
        ("jsonSchema", {"schema": {"type": "object", "required": ["a"]}}),
        ("jsonKeys", {"keys": ["a"]}),
        ("containsCode", {"format": "JSON"}),
    ],
)
async def test_what_is_found_in_answers_is_found_in_requests(check: str, parameters: dict[str, Any]) -> None:
    assert (await find(check, parameters, asked('```json\n{"a": 1}\n```'))).verdict
    assert not (await find(check, parameters, asked("nothing of it"))).verdict


async def test_a_match_is_told_with_its_groups() -> None:
    found = await find("regexMatch", {"rule": r"(\d+)-(?<word>\w+)"}, answered("see 12-ab now"))
    assert found.data["matchDetails"] == {
        "matchedText": "12-ab",
        "index": 4,
        "groups": {"word": "ab"},
        "captures": ["12", "ab"],
    }


@pytest.mark.parametrize("check", ["regexMatch", "regexReplace"])
async def test_without_a_text_there_is_no_verdict(check: str) -> None:
    found = await find(check, {"rule": "x"}, answered(None))
    assert found.error == ("Error", "There is no text to match")


# --- the request ---


@pytest.mark.behaviour("GR-22")
async def test_model_whitelist() -> None:
    assert await verdict("modelwhitelist", {"models": ["gpt-4o", "x"]}, "", "input")
    assert not await verdict("modelwhitelist", {"models": ["gpt-4"]}, "", "input")
    assert await verdict("modelwhitelist", {"models": ["gpt-4"], "not": True}, "", "input")
    nameless = Subject(side="input", endpoint_name="chat", fields={"messages": []})
    assert (await find("modelwhitelist", {"models": ["x"]}, nameless)).error == ("Error", "The request names no model")


@pytest.mark.behaviour("GR-22")
@pytest.mark.parametrize(
    ("metadata", "model", "expected"),
    [
        ({}, "small", True),
        ({}, "large", False),
        ({"plan": "pro"}, "large", True),
        ({"plan": "pro"}, "small", False),
        ({"plan": "pro", "team": "lab"}, "odd", True),
        ({"plan": "free"}, "small", True),
    ],
)
async def test_model_rules(metadata: dict[str, str], model: str, expected: bool) -> None:
    rules = {"defaults": ["small"], "metadata": {"plan": {"pro": ["large"]}, "team": {"lab": ["odd"]}}}
    subject = asked(fields={"model": model}, metadata=metadata)
    assert (await find("modelRules", {"rules": rules}, subject)).verdict is expected
    assert (await find("modelRules", {"rules": rules, "not": True}, subject)).verdict is not expected


async def test_model_rules_that_allow_nothing_are_an_error() -> None:
    found = await find("modelRules", {"rules": {}}, asked())
    assert found.error == ("Error", "The rules allow no model for this request")


@pytest.mark.behaviour("GR-22")
@pytest.mark.parametrize(
    ("parameters", "metadata", "expected"),
    [
        ({}, {}, True),
        ({"allowedTypes": ["chatComplete"]}, {}, True),
        ({"allowedTypes": "embed, complete"}, {}, False),
        ({"blockedTypes": ["chatComplete"]}, {}, False),
        ({"blockedTypes": ["embed"]}, {}, True),
        ({"allowedTypes": ["embed", "chatComplete"], "blockedTypes": ["complete"]}, {}, True),
        ({}, {"supported_endpoints": "embed,complete"}, False),
        ({}, {"blocked_endpoints": "chatComplete"}, False),
        ({"allowedTypes": ["chatComplete"]}, {"supported_endpoints": "embed"}, True),
    ],
)
async def test_allowed_request_types(parameters: dict[str, Any], metadata: dict[str, str], expected: bool) -> None:
    assert (await find("allowedRequestTypes", parameters, asked(metadata=metadata))).verdict is expected


@pytest.mark.behaviour("GR-22")
@pytest.mark.parametrize(
    ("operator", "metadata", "expected"),
    [
        ("all", {"a": "1", "b": ""}, True),
        ("all", {"a": "1"}, False),
        ("any", {"b": "1"}, True),
        ("any", {"c": "1"}, False),
        ("none", {"c": "1"}, True),
        ("none", {"a": "1"}, False),
    ],
)
async def test_required_metadata_keys(operator: str, metadata: dict[str, str], expected: bool) -> None:
    found = await find(
        "requiredMetadataKeys", {"metadataKeys": ["a", "b"], "operator": operator}, asked(metadata=metadata)
    )
    assert found.verdict is expected


# --- changes ---


@pytest.mark.behaviour("GR-21", "GR-22")
@pytest.mark.parametrize(
    ("rule", "redact", "text", "expected"),
    [
        (r"\d+", None, "a 12 b 3", "a [REDACTED] b [REDACTED]"),
        (r"(\w+)@(?<host>\w+)", "$1 at $<host>, $& $$ $2 $9 $", "me@home", "me at home, me@home $ home $9 $"),
        (r"x", "", "axb", "ab"),
        (r"z", "y", "abc", None),
    ],
)
async def test_regex_replace(rule: str, redact: str | None, text: str, expected: str | None) -> None:
    parameters = {"rule": rule} if redact is None else {"rule": rule, "redactText": redact}
    for subject in (asked(text), answered(text)):
        before = json.dumps([subject.fields, subject.answer])
        found = await find("regexReplace", parameters, subject)
        assert found.verdict
        assert (found.changed and found.changed.text) == expected
        assert json.dumps([subject.fields, subject.answer]) == before
        failing = await find("regexReplace", {**parameters, "failOnDetection": True}, subject)
        assert failing.verdict is (expected is None)


async def test_regex_replace_leaves_what_is_no_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/12"}}
    subject = asked([{"type": "text", "text": "12"}, image, {"type": "text", "text": "no"}])
    changed = (await find("regexReplace", {"rule": r"\d+", "redactText": "N"}, subject)).changed
    assert changed is not None
    parts = changed.fields["messages"][-1]["content"]
    assert parts == [{"type": "text", "text": "N"}, image, {"type": "text", "text": "no"}]
    assert changed.fields["messages"][0] == subject.fields["messages"][0]


def test_a_template_is_read_to_its_end() -> None:
    match = Pattern("(a)(b)?").search_now("a")
    assert match is not None
    assert Template("[$1|$2|$0|$<x>|$<").filled(match) == "[a||$0||$<"


SYSTEM = {"role": "system", "content": "be brief"}


@pytest.mark.behaviour("GR-21", "GR-22")
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [SYSTEM, {"role": "user", "content": "P: hello"}]),
        ({"addToExisting": False}, [SYSTEM, {"role": "user", "content": "P: "}, {"role": "user", "content": "hello"}]),
        ({"onlyIfEmpty": True}, None),
        ({"applyToRole": "system"}, [{**SYSTEM, "content": "P: be brief"}, {"role": "user", "content": "hello"}]),
        (
            {"applyToRole": "assistant", "onlyIfEmpty": True},
            [SYSTEM, {"role": "user", "content": "hello"}, {"role": "assistant", "content": "P: "}],
        ),
        (
            {"applyToRole": "developer"},
            [{"role": "developer", "content": "P: "}, SYSTEM, {"role": "user", "content": "hello"}],
        ),
    ],
)
async def test_add_prefix_to_chat(parameters: dict[str, Any], expected: Any) -> None:
    found = await find("addPrefix", {"prefix": "P: ", **parameters}, asked())
    assert found.verdict
    assert (found.changed and found.changed.fields["messages"]) == expected


@pytest.mark.behaviour("GR-22")
async def test_add_prefix_elsewhere() -> None:
    async def fields(endpoint: Any, body: dict[str, Any], **parameters: Any) -> Any:
        subject = Subject(side="input", endpoint_name=endpoint, fields=body)
        changed = (await find("addPrefix", {"prefix": "P: ", **parameters}, subject)).changed
        return changed and changed.fields

    assert await fields("complete", {"prompt": "x"}) == {"prompt": "P: x"}
    assert await fields("complete", {"prompt": ["x", "y"]}) == {"prompt": ["P: x", "P: y"]}
    assert await fields("complete", {"prompt": [1, 2]}) is None
    assert await fields("embed", {"input": "x"}) is None
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}
    assert await fields("chat", parts) == {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "P: x"}]}]
    }
    image = {"type": "image_url", "image_url": {"url": "u"}}
    assert (await fields("chat", {"messages": [{"role": "user", "content": [image]}]}))["messages"][0]["content"] == [
        {"type": "text", "text": "P: "},
        image,
    ]
    body = {"messages": [], "system": "s"}
    assert await fields("messages", body, applyToRole="system") == {"messages": [], "system": "P: s"}
    assert await fields("messages", {"messages": []}, applyToRole="system") == {"messages": [], "system": "P: "}
    assert await fields("messages", body, applyToRole="system", onlyIfEmpty=True) is None
    assert (await fields("messages", body, applyToRole="system", addToExisting=False))["system"] == [
        {"type": "text", "text": "P: "},
        {"type": "text", "text": "s"},
    ]
