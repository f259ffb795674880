"""The checks of guardrails: each one's parameters and verdicts, and the servers that some of them ask."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loomgate import clock
from loomgate.errors import ApiError
from loomgate.gateway import code_formats, json_in_text, patterns
from loomgate.gateway.checks import CHECKS, prepare_check
from loomgate.gateway.patterns import Pattern, Template
from loomgate.gateway.subject import Side, Subject
from loomgate.gateway.verdicts import Door, Finding
from loomgate.providers.dialect import HttpCall
from loomgate.providers.transport import Reply, Timeouts, Transport
from tests.support.site import Site
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


def asked(text: Any = "hello", **more: Any) -> Subject:
    """A chat request with ``text`` as its last message."""
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]
    fields = {"model": "gpt-4o", "messages": messages, **more.pop("fields", {})}
    return Subject(side="input", endpoint_name="chat", fields=fields, **more)


def answered(text: Any, **more: Any) -> Subject:
    """A chat request with ``text`` as its answer."""
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return Subject(side="output", endpoint_name="chat", fields=asked().fields, answer=answer, **more)


async def nobody(call: HttpCall, _: Timeouts) -> Reply:
    raise AssertionError(f"{call.url} was called")


async def find(check: str, parameters: dict[str, Any], subject: Subject, door: Door | None = None) -> Finding:
    run = prepare_check(check, parameters, subject.side, "guardrails[0]").run
    found = run(subject, door or Door(nobody, lambda url: False))
    return found if isinstance(found, Finding) else await found


async def verdict(check: str, parameters: dict[str, Any], text: Any, side: Side = "output") -> bool:
    found = await find(check, parameters, answered(text) if side == "output" else asked(text))
    assert found.error is None, found.error
    return found.verdict


def refused(check: str, parameters: Any, side: Side = "output") -> str:
    with pytest.raises(ApiError) as caught:
        prepare_check(check, parameters, side, "output_guardrails[2]")
    assert caught.value.status == 400
    assert caught.value.param == "output_guardrails[2]"
    assert check in caught.value.message
    return caught.value.message


# --- the table ---


@pytest.mark.behaviour("GR-22")
def test_every_check_of_the_reference_is_there_on_its_sides() -> None:
    both = (
        "regexMatch sentenceCount wordCount characterCount webhook log alluppercase alllowercase endsWith regexReplace"
    )
    output = "jsonSchema jsonKeys contains validUrls containsCode notNull"
    given_in = "allowedRequestTypes modelwhitelist modelRules jwt requiredMetadataKeys addPrefix"
    sides = {name: row.sides for name, row in CHECKS.items()}
    assert sides == {
        **dict.fromkeys(both.split(), ("input", "output")),
        **dict.fromkeys(output.split(), ("output",)),
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
    assert "for output only" in refused("default.contains", {"words": ["x"]}, "input")
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
    assert found.error == ("Error", "Missing text to match")


# --- patterns ---


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        (r"a$", "a\n", False),
        (r"^.$", "\r", False),
        (r"^.$", "\u2028", False),
        (r"^\d$", "٣", False),
        (r"^\w$", "é", False),
        (r"^\s+$", "\xa0\u2003\ufeff \t", True),
        (r"^[\s]$", "\u3000", True),
        (r"^\S$", "\xa0", False),
        (r"^[^]$", "\n", True),
        (r"[]", "x", False),
        (r"^[]]$", "]", False),
        (r"^[\]]$", "]", True),
        (r"^[a\]^-]+$", "^]a-", True),
        (r"^[[a]$", "[", True),
        (r"^(?<q>['\"]).*\k<q>$", "'x'", True),
        (r"^(a)(b)\2\1$", "abba", True),
        (r"^(?=.*\d)(?!.*x).+$", "ab1", True),
        (r"(?<=\$)\d+", "$12", True),
        (r"^\u0041\x42\cJ\0$", "AB\n\0", True),
        (r"^\/\-\.$", "/-.", True),
        (r"^a{2,3}?b{,2}{}$", "aab{,2}{}", True),
        (r"^(?:ab|c)*$", "ababc", True),
        (r"[&&]~~||--", "&~~||--", True),
    ],
)
async def test_patterns_mean_what_they_mean_in_javascript(source: str, text: str, expected: bool) -> None:
    assert (await Pattern(source).search(text) is not None) is expected


@pytest.mark.parametrize(
    "source",
    [
        "(((a{1000}){1000}){1000})",
        "(?:a{1000}){1000}",
        "a{99999}",
        "(" * 400 + ")" * 400 + "{10000}",
        "a{20}{20}{20}{20}",
        "(?:(?:(?:[[:alpha:]{9}]{99}){99}){99}){99}",
        "x" * 2_001,
        "a++",
        "a{2}+",
        "(?>a)",
        "(?P<n>a)",
        "(?#comment)",
        "(?i)a",
        "(?R)",
        "(a",
        "a)",
        "[a",
        "\\",
        r"\q",
        r"\p{L}",
        r"[\S]",
        r"\x1",
        r"\k<n>",
        "*",
        "a**",
        r"(a)\2",
        "(?<n>a)(?<1n>b)",
        "(" * 1000 + ")" * 1000,
    ],
)
def test_patterns_that_are_wrong_or_too_large_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Pattern(source)


@given(st.text(alphabet="ab1(){}[]|*+?.^$\\,-:<=!&sdwkpxu0", max_size=30), st.text(alphabet="ab1 \n", max_size=30))
@settings(max_examples=300, deadline=None)
@example("(?:(?:(?:", "")
async def test_any_pattern_is_refused_or_works(source: str, text: str) -> None:
    try:
        pattern = Pattern(source)
    except ValueError:
        return
    await pattern.search(text)


@pytest.mark.parametrize("length", [60, 10_000])
async def test_a_catastrophic_pattern_holds_nobody_up(length: int) -> None:
    ticks = 0
    longest = 0.0

    async def tick() -> None:
        nonlocal ticks, longest
        while True:
            before = clock.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, clock.monotonic() - before)
            ticks += 1

    beside = asyncio.create_task(tick())
    await until(lambda: ticks)
    longest = 0.0
    found = await find("regexMatch", {"rule": "^(a|aa)+$"}, answered("a" * length + "!"))
    beside.cancel()
    assert found.error is not None
    assert found.error[0] == "TimeoutError"
    assert ticks > 20
    assert longest < 0.2  # a slow machine's; the limit on the event loop is 2 ms


async def test_texts_that_are_too_long_are_not_matched() -> None:
    found = await find("regexMatch", {"rule": "x"}, answered("a" * 1_000_001))
    assert found.error == ("TimeoutError", "the text is longer than 1000000 characters")
    assert await verdict("regexMatch", {"rule": "b$"}, "a" * 999_999 + "b")


# --- JSON ---

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}


@pytest.mark.behaviour("GR-22")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "Ann", "age": 3}', True),
        ('Here: {"name": "Ann"} and {"age": 1}.', True),
        ('Here: {"age": 1} and {"a": {"name": "Ann"}, "name": "}{\\""}.', True),
        ('```json\n{"name": 1}\n```\ntext\n```\n{"name": "x"}\n```', True),
        ('{"name": 1}', False),
        ('{"outer": {"name": "Ann"}}', False),
        ('["name"]', False),
        ("no JSON { here }", False),
        ("{" * 500, False),
        ("", False),
    ],
)
async def test_json_schema(text: str, expected: bool) -> None:
    assert await verdict("jsonSchema", {"schema": PERSON}, text) is expected
    assert await verdict("jsonSchema", {"schema": json.dumps(PERSON), "not": True}, text) is not expected


async def test_what_is_wrong_with_the_json_is_told() -> None:
    found = await find("jsonSchema", {"schema": PERSON}, answered('{"name": 1, "age": "x"}'))
    assert found.data["matchedJson"] == {"name": 1, "age": "x"}
    assert {e["path"]: e["message"] for e in found.data["validationErrors"]} == {
        "name": "1 is not of type 'string'",
        "age": "'x' is not of type 'integer'",
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"pattern": "("},
        {"patternProperties": {"(a{1000}){1000}": {}}},
        {"$ref": "https://example.com/schema.json"},
        {"properties": {"a": {"$ref": "http://127.0.0.1:1/x#y"}}},
        {"patternProperties": {"a": {}}, "unevaluatedProperties": False},
        {"description": "x" * 70_000},
        {"properties": {f"p{n}": {"pattern": f"x{n}"} for n in range(101)}},
        "{",
        "[]",
    ],
)
def test_schemas_that_are_wrong_too_large_or_elsewhere_are_refused(schema: Any) -> None:
    assert "wrong parameters" in refused("default.jsonSchema", {"schema": schema})


def nested(depth: int) -> Any:
    schema: Any = {"type": "object"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "value", "good"),
    [
        ({"uniqueItems": True}, [1, 1.0], False),
        ({"uniqueItems": True}, [1, True, "1", {"a": 1}, {"a": 2}, [1]], True),
        ({"uniqueItems": True}, [{"a": 1, "b": 2}, {"b": 2, "a": 1}], False),
        ({"pattern": "^a$"}, "a\n", False),
        ({"pattern": "^a$"}, 3, True),
        ({"patternProperties": {"^x": {"type": "string"}}}, {"x1": 1, "y": 2}, False),
        (
            {"patternProperties": {"^x": {}}, "properties": {"y": {}}, "additionalProperties": False},
            {"x": 1, "y": 1},
            True,
        ),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, {"z": 1}, False),
        ({"properties": {"y": {}}, "additionalProperties": {"type": "integer"}}, {"y": "", "z": "s"}, False),
        ({"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}, [1, "x"], False),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}, [1], False),
        ({"$id": "https://e.example/a", "$defs": {"n": {"const": 1}}, "$ref": "https://e.example/a#/$defs/n"}, 1, True),
    ],
)
def test_keywords_that_are_bounded_mean_what_they_meant(schema: Any, value: Any, good: bool) -> None:
    assert (not json_in_text.Schema(schema).judged([value])[1]) is good


async def test_a_schema_cannot_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_in_text, "_SECONDS", 0.05)
    monkeypatch.setattr(patterns, "SECONDS", 0.05)

    def doubling(leaf: Any) -> Any:
        rules = {f"r{n}": {"anyOf": [{"$ref": f"#/$defs/r{n + 1}"}] * 2} for n in range(40)}
        return {"$defs": {**rules, "r40": leaf}, "$ref": "#/$defs/r0"}

    for schema in (
        doubling({"type": "string"}),
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"items": {"pattern": "^(a|aa)+$"}},
        {"patternProperties": {"^(a|aa)+$": {}}},
    ):
        word = "a" * 60 + "!"
        text = json.dumps([word, word]) if "items" in schema else json.dumps({word: 1})
        found = await find("jsonSchema", {"schema": schema}, answered(text))
        assert found.error is not None, schema
        assert found.error[0] == "TimeoutError"


@pytest.mark.behaviour("GR-22")
@pytest.mark.parametrize(
    ("operator", "text", "expected"),
    [
        ("any", '{"a": 1}', True),
        ("any", '{"z": 1}', False),
        ("any", 'x {"z": 1} y {"b": 2}', True),
        ("all", '{"a": 1, "b": null}', True),
        ("all", 'x {"a": 1} y {"b": 2}', False),
        ("none", '{"z": 1}', True),
        ("none", 'x {"z": 1} y {"a": 2}', False),
        ("none", 'x {"a": 1} y {"z": 2}', False),
        ("any", "nothing", False),
        ("all", "nothing", False),
        ("none", "nothing", True),
    ],
)
async def test_json_keys(operator: str, text: str, expected: bool) -> None:
    assert await verdict("jsonKeys", {"keys": ["a", "b"], "operator": operator}, text) is expected


@given(st.text(alphabet='{}[]"\\:,ab1 `\njson', max_size=60))
def test_any_text_may_be_searched_for_json(text: str) -> None:
    json_in_text.values(text)


# --- code ---

SAMPLES = {
    "SQL": "SELECT id, name FROM users WHERE age > 3;",
    "Python": "def add(a, b):\n    return a + b\n",
    "TypeScript": "interface User {\n  name: string;\n}\nconst n: number = 3;",
    "JavaScript": "const add = (a, b) => a + b;\nconsole.log(add(1, 2));",
    "Java": "public class Main {\n  public static void main(String[] args) { System.out.println(1); }\n}",
    "C#": "using System;\nclass P { static void Main() { Console.WriteLine(1); } }",
    "C++": "#include <iostream>\nint main() { std::cout << 1; }",
    "C": '#include <stdio.h>\nint main(void) { printf("1"); return 0; }',
    "Ruby": "def greet(name)\n  puts name\nend\n",
    "PHP": "<?php\necho $name;\n",
    "Swift": "import Foundation\nfunc add(_ a: Int, _ b: Int) -> Int {\n  return a + b\n}",
    "Kotlin": 'fun main() {\n  println("x")\n}\ndata class A(val b: Int)',
    "Go": 'package main\n\nfunc main() {\n  fmt.Println("x")\n}',
    "Rust": 'fn main() {\n    let mut x = 5;\n    println!("{}", x);\n}',
    "Scala": "object Main extends App {\n  val x = 1\n  def f(a: Int): Int = a\n}",
    "R": "x <- c(1, 2, 3)\nlibrary(ggplot2)\n",
    "Perl": "use strict;\nmy $x = 1;\n",
    "Shell": '#!/bin/bash\nexport NAME=x\necho "$NAME"\n',
    "HTML": '<!DOCTYPE html>\n<html><body><p class="a">x</p></body></html>',
    "CSS": ".a {\n  color: red;\n}\n",
    "XML": '<?xml version="1.0"?>\n<note><to>x</to></note>',
    "JSON": '{"a": [1, 2]}',
    "YAML": "services:\n  web:\n    image: nginx\n",
    "Markdown": "# Title\n\n- [link](https://example.com)\n",
    "Dockerfile": "FROM python:3.11\nRUN pip install x\n",
}

PROSE = [
    "Hello! How are you today? I select apples from the market, and update the list. For what it's worth, it is fine.",
    "Dear all,\n\nplease find the report attached: it says 3 < 5 and 7 > 2.\nImport duties rise. With regards,\nAnn",
    "1. First, open the door.\n2. Then, close it.\n\nNote: this is a class of its own, if you will (see page 3).",
    "The function returns nothing. Let us go on; use the stairs. Type slowly. Public transport is cheap.",
]


def test_there_is_a_sample_of_every_format() -> None:
    assert tuple(SAMPLES) == code_formats.FORMATS


@pytest.mark.behaviour("GR-22")
@pytest.mark.parametrize("name", SAMPLES)
async def test_code_is_recognised(name: str) -> None:
    sample = SAMPLES[name]
    for text in (sample, f"Look:\n```\n{sample}\n```\nThat is all.", f"Look:\n```{name.lower()}\nanything\n```"):
        assert await verdict("containsCode", {"format": name}, text), text
        assert not await verdict("containsCode", {"format": name, "not": True}, text)
    assert not await verdict("containsCode", {"format": name}, "```brainfuck\n+++\n```")


@pytest.mark.parametrize("text", PROSE)
def test_prose_is_no_code(text: str) -> None:
    assert code_formats.found_in(text) == []


def test_a_fence_says_what_it_is_and_text_around_it_is_not_looked_at() -> None:
    text = "SELECT a FROM b\n```py\nprint(1)\n```\n```weird\nx\n```\n~~~\n"
    assert code_formats.found_in(text) == ["Python", "weird"]
    assert code_formats.found_in("```js\nnever closed") == ["JavaScript"]


LINES = (
    "a|a |a, | |(|a(|<a>|select a |def a(|class A(|a: |a:\n|a{|.a {\n|$a = ;|- |#|# a|---|FROM a|"
    "val a = b|object A {|a<-|let a: |["
)


@pytest.mark.parametrize(
    "unit", [*LINES.split("|"), *(unit + "\n" for unit in LINES.split("|")), "```", "```\n", "```\na\n"]
)
def test_no_text_takes_long_to_be_looked_at(unit: str) -> None:
    text = (unit * 100_000)[:100_000]
    before = clock.monotonic()
    code_formats.found_in(text)
    assert clock.monotonic() - before < 0.3


@pytest.mark.parametrize("unit", ["{", '{"', '\\"', '{"a":', "}", "```json\n{", "`", "``` ", "[", '{"a":1}', "{}"])
def test_no_text_takes_long_to_be_searched_for_json(unit: str) -> None:
    for text in (unit * 100_000, '{"' + unit * 100_000, "x {" + unit * 100_000):
        before = clock.monotonic()
        json_in_text.values(text)
        assert clock.monotonic() - before < 0.5


# --- the request ---


@pytest.mark.behaviour("GR-22")
async def test_model_whitelist() -> None:
    assert await verdict("modelwhitelist", {"models": ["gpt-4o", "x"]}, "", "input")
    assert not await verdict("modelwhitelist", {"models": ["gpt-4"]}, "", "input")
    assert await verdict("modelwhitelist", {"models": ["gpt-4"], "not": True}, "", "input")
    nameless = Subject(side="input", endpoint_name="chat", fields={"messages": []})
    assert (await find("modelwhitelist", {"models": ["x"]}, nameless)).error == ("Error", "Missing model in request")


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
    assert found.error == ("Error", "No allowed models resolved from rules")


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


# --- other servers ---


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    door = Transport()
    yield door
    await door.close()


@pytest.fixture
def door(transport: Transport) -> Door:
    """A door through which this machine may be reached."""
    return Door(transport.send, lambda url: True)


@pytest.mark.behaviour("GR-22")
async def test_a_webhook_sees_the_request_and_decides(door: Door) -> None:
    async with Site({"/hook?t=s3cret": (200, {"verdict": False, "data": {"why": "no"}})}) as site:
        subject = asked(
            "hi there",
            provider="openai",
            metadata={"user": "ann"},
            headers={"authorization": "Bearer sk-secret"},
            fields={"stream": True},
        )
        parameters = {"webhookURL": f"{site.url}/hook?t=s3cret", "headers": {"X-Key": "k"}}
        found = await find("webhook", parameters, subject, door)
        assert not found.verdict
        assert found.error is None
        assert found.data["responseData"] == {"why": "no"}
        assert "s3cret" not in json.dumps(found.data)
        seen = site.seen[0]
        assert seen.method == "POST"
        assert seen.headers["x-key"] == "k"
        assert seen.headers["content-type"] == "application/json"
        assert b"sk-secret" not in seen.body
        assert seen.json == {
            "request": {"json": subject.fields, "text": "hi there", "isStreamingRequest": True, "isTransformed": False},
            "response": {"json": {}, "text": "", "statusCode": None, "isTransformed": False},
            "provider": "openai",
            "requestType": "chatComplete",
            "metadata": {"user": "ann"},
            "eventType": "beforeRequestHook",
        }


@pytest.mark.behaviour("GR-21")
async def test_a_webhook_may_change_its_side_and_no_other(door: Door) -> None:
    new = {"request": {"json": {"model": "other"}}, "response": {"json": {"choices": []}}}
    async with Site({"/": (200, {"verdict": True, "transformedData": new})}) as site:
        parameters = {"webhookURL": f"{site.url}/", "headers": '{"x-key": "k"}'}
        changed = (await find("webhook", parameters, asked(), door)).changed
        assert changed is not None
        assert (changed.fields, changed.answer) == ({"model": "other"}, None)
        changed = (await find("webhook", parameters, answered("yes"), door)).changed
        assert changed is not None
        assert (changed.fields, changed.answer) == (asked().fields, {"choices": []})
        body = site.seen[1].json
        assert body["eventType"] == "afterRequestHook"
        assert body["request"]["text"] == "hello"
        assert (body["response"]["text"], body["response"]["statusCode"]) == ("yes", 200)
        assert site.seen[1].headers["x-key"] == "k"


@pytest.mark.parametrize(
    ("answer", "name", "said"),
    [
        ((500, b"oops"), "HttpError", "HTTP status 500"),
        ((200, b"not json"), "Error", "not what was expected"),
        ((200, {"verdict": "yes"}), "Error", "Expected `bool`"),
        ((200, {}), "Error", "missing required field `verdict`"),
        ((200, {"verdict": True, "transformedData": {"request": {"json": []}}}), "Error", "not what was expected"),
        ((302, b"", {"location": "http://169.254.169.254/"}), "HttpError", "HTTP status 302"),
        ((200, None), "TimeoutError", "No answer"),
    ],
)
async def test_a_webhook_that_does_not_answer_as_it_should(door: Door, answer: Any, name: str, said: str) -> None:
    async with Site({"/": answer}) as site:
        found = await find("webhook", {"webhookURL": f"{site.url}/", "timeout": 200}, asked(), door)
        assert found.error is not None
        assert found.error[0] == name
        assert said in found.error[1]
        assert not found.verdict


async def test_a_webhook_that_is_not_there(door: Door) -> None:
    found = await find("webhook", {"webhookURL": "http://127.0.0.1:1/x"}, asked(), door)
    assert found.error == ("Error", "No answer from http://127.0.0.1:1: connect")


@pytest.mark.behaviour("GR-22")
async def test_a_log_is_told_and_always_passes(door: Door) -> None:
    async with Site({"/log": (204, b""), "/full": (507, b"")}) as site:
        found = await find("log", {"logURL": f"{site.url}/log"}, answered("yes"), door)
        assert found.verdict
        assert site.seen[0].json["response"]["text"] == "yes"
        found = await find("log", {"logURL": f"{site.url}/full"}, answered("yes"), door)
        assert found.error == ("HttpError", "The log answered with HTTP status 507")


async def test_only_public_hosts_unless_the_operator_trusts_them() -> None:
    calls: list[HttpCall] = []

    async def send(call: HttpCall, _: Timeouts) -> Reply:
        calls.append(call)
        raise ConnectionError

    door = Door(send, lambda url: url.startswith("https://mine.example/"))
    for check, parameters in (
        ("webhook", {"webhookURL": "https://mine.example/a"}),
        ("webhook", {"webhookURL": "https://other.example/a"}),
        ("log", {"logURL": "http://localhost/"}),
    ):
        with pytest.raises(ConnectionError):
            await find(check, parameters, asked(), door)
    assert [call.public_only for call in calls] == [False, True, True]


@pytest.mark.behaviour("GR-22")
async def test_valid_urls_have_to_answer(door: Door) -> None:
    pages = {
        "/ok": (200, b""),
        "/moved": (301, b"", {"location": "/ok"}),
        "HEAD /get": (405, b""),
        "GET /get": (200, b"x"),
    }
    async with Site({**pages, "/round": (302, b"", {"location": "/round"})}) as site:
        good = f"See [this]({site.url}/ok), <{site.url}/moved> and ({site.url}/get). Bye."
        found = await find("validUrls", {}, answered(good), door)
        assert found.verdict
        assert found.data["validURLs"] == [f"{site.url}/ok", f"{site.url}/moved", f"{site.url}/get"]
        for bad in ("/none", "/round"):
            found = await find("validUrls", {}, answered(f"{good} {site.url}{bad}"), door)
            assert not found.verdict
            assert found.data["invalidURLs"] == [site.url + bad]
            assert (await find("validUrls", {"not": True}, answered(f"{site.url}{bad}"), door)).verdict
        assert (await find("validUrls", {}, answered("nothing"), door)).verdict
        many = " ".join(f"{site.url}/{n}" for n in range(51))
        assert (await find("validUrls", {}, answered(many), door)).error is not None


@pytest.mark.behaviour("GR-22")
async def test_valid_urls_by_name_alone() -> None:
    assert await verdict("validUrls", {"onlyDNS": True}, "http://localhost/x http://127.0.0.1:1/")
    assert not await verdict("validUrls", {"onlyDNS": True}, "http://localhost http://no-such-host.invalid/")
    assert not await verdict("validUrls", {"onlyDNS": True}, "http://[::1 and http://a..b/")


# --- tokens ---

RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
EC_KEYS = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
EC_PRIVATE = {name: ec.generate_private_key(curve) for name, curve in EC_KEYS.items()}
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64n(number: int) -> str:
    return b64(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def rsa_jwk(key: rsa.RSAPrivateKey = RSA_KEY, **more: str) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "kid": "rsa", "n": b64n(numbers.n), "e": b64n(numbers.e), **more}


def jwks() -> dict[str, Any]:
    keys = [rsa_jwk(), {"kty": "oct", "kid": "oct", "k": b64(b"secret")}, {"kid": "odd"}, {"kty": "RSA"}]
    for name, key in EC_PRIVATE.items():
        numbers = key.public_key().public_numbers()
        curve = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[name]
        keys.append({"kty": "EC", "kid": name, "crv": curve, "x": b64n(numbers.x), "y": b64n(numbers.y), "alg": name})
    keys.append({"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": b64(ED_KEY.public_key().public_bytes_raw())})
    return {"keys": keys}


def signature(algorithm: str, signed: bytes, key: rsa.RSAPrivateKey = RSA_KEY) -> bytes:
    hashed = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}.get(
        algorithm[2:], hashes.SHA256()
    )
    if algorithm.startswith("RS"):
        return key.sign(signed, padding.PKCS1v15(), hashed)
    if algorithm.startswith("PS"):
        return key.sign(signed, padding.PSS(padding.MGF1(hashed), hashed.digest_size), hashed)
    if algorithm == "EdDSA":
        return ED_KEY.sign(signed)
    if algorithm.startswith("ES"):
        private = EC_PRIVATE[algorithm]
        size = (private.curve.key_size + 7) // 8
        return b"".join(n.to_bytes(size, "big") for n in decode_dss_signature(private.sign(signed, ec.ECDSA(hashed))))
    return b""


def token(
    algorithm: str = "RS256", kid: str | None = "rsa", key: rsa.RSAPrivateKey = RSA_KEY, head: Any = None, **claims: Any
) -> str:
    now = clock.timestamp()
    said = {k: v for k, v in {"iat": now, "exp": now + 600, **claims}.items() if v is not None}
    header = {"alg": algorithm, "typ": "JWT", **({} if kid is None else {"kid": kid}), **(head or {})}
    signed = ".".join(b64(json.dumps(part).encode()) for part in (header, said))
    return f"{signed}.{b64(signature(algorithm, signed.encode(), key))}"


def bearing(value: str, name: str = "authorization") -> Subject:
    return asked(headers={name: value})


@pytest.mark.behaviour("GR-22")
async def test_tokens_of_every_algorithm(door: Door) -> None:
    async with Site({"/jwks": (200, jwks())}) as site:
        parameters = {"jwksUri": f"{site.url}/jwks"}
        for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"):
            kid = {"R": "rsa", "P": "rsa"}.get(algorithm[0], "ed" if algorithm == "EdDSA" else algorithm)
            good = token(algorithm, kid)
            assert (await find("jwt", parameters, bearing(f"Bearer {good}"), door)).verdict, algorithm
            head, claims, sig = good.split(".")
            first = "A" if sig[0] != "A" else "B"
            found = await find("jwt", parameters, bearing(f"{head}.{claims}.{first}{sig[1:]}"), door)
            assert not found.verdict, algorithm
            assert found.error is None
        assert [seen.method for seen in site.seen] == ["GET"]  # kept


@pytest.mark.behaviour("GR-22")
async def test_tokens_that_are_refused(door: Door) -> None:
    async with Site({"/jwks": (200, jwks())}) as site:
        now = clock.timestamp()
        secret = token("HS256", "oct")
        cases = {
            "Missing authorization header": "",
            "not a signed token": "Bearer abc",
            "the algorithm 'none'": token("none"),
            "the algorithm 'HS256'": secret,
            "which key signed it": token(kid=None),
            "No matching key": token(kid="unknown"),
            "signature verification failed": token(key=OTHER_KEY),
            "expired": token(exp=now - 6),
            "not valid yet": token(nbf=now + 60),
            "in the future": token(iat=now + 60),
            "too old": token(iat=now - 86_500, exp=now + 10_000),
            "when it was issued": token(iat=None),
            "exp is not a number": token(exp="soon"),
            "have to be understood": token(head={"crit": ["b64"], "b64": False}),
            "for something else": token("ES256", "ES384"),
            "another kind": token("RS256", "ed"),
            "the key is of another kind": token("RS256", "odd"),
        }
        for said, text in cases.items():
            found = await find("jwt", {"jwksUri": f"{site.url}/jwks"}, bearing(text), door)
            assert not found.verdict, said
            assert found.error is None, said
            assert said in found.data["explanation"], (said, found.data)


async def test_tokens_elsewhere_older_and_of_chosen_algorithms(door: Door) -> None:
    async with Site({"/jwks": (200, jwks())}) as site:
        where = {"jwksUri": f"{site.url}/jwks"}
        assert (await find("jwt", {**where, "headerKey": "X-Token"}, bearing(token(), "x-token"), door)).verdict
        old = token(iat=clock.timestamp() - 100, exp=clock.timestamp() - 50)
        assert not (await find("jwt", where, bearing(old), door)).verdict
        assert (await find("jwt", {**where, "clockTolerance": 60}, bearing(old), door)).verdict
        aged = token(iat=clock.timestamp() - 100)
        for age, fine in (("2m", True), (120, True), ("1m", False), ("90s", False), ("1h", True)):
            assert (await find("jwt", {**where, "maxTokenAge": age}, bearing(aged), door)).verdict is fine, age
        only = {**where, "algorithms": ["ES256"]}
        assert not (await find("jwt", only, bearing(token()), door)).verdict
        assert (await find("jwt", only, bearing(token("ES256", "ES256")), door)).verdict


async def test_keys_are_fetched_again_when_old_or_for_a_new_key_but_not_all_the_time(door: Door) -> None:
    async with Site({"/jwks": (200, {"keys": []})}) as site:
        parameters = {"jwksUri": f"{site.url}/jwks", "cacheMaxAge": 1000}
        for _ in range(5):
            assert not (await find("jwt", parameters, bearing(token()), door)).verdict
        assert len(site.seen) == 1  # whoever sends unknown ids does not make us ask each time
        site.answers["/jwks"] = (200, jwks())
        clock.advance(31)
        assert (await find("jwt", parameters, bearing(token()), door)).verdict
        assert len(site.seen) == 2
        clock.advance(990)
        assert (await find("jwt", parameters, bearing(token()), door)).verdict
        assert len(site.seen) == 2
        clock.advance(20)
        assert (await find("jwt", parameters, bearing(token()), door)).verdict
        assert len(site.seen) == 3


@pytest.mark.parametrize("answer", [(500, b""), (200, b"<html>"), (200, {"keys": "none"})])
async def test_without_keys_there_is_no_verdict(door: Door, answer: Any) -> None:
    async with Site({"/jwks": answer}) as site:
        found = await find("jwt", {"jwksUri": f"{site.url}/jwks"}, bearing(token()), door)
        assert found.error is not None
        assert "could not be fetched" in found.error[1]


@given(
    st.text(max_size=80)
    | st.lists(st.text(alphabet="eyJhbGciOiJ9._-A", max_size=20), min_size=3, max_size=3).map(".".join)
)
@settings(deadline=None)
async def test_any_header_is_refused_without_an_exception(text: str) -> None:
    found = await find("jwt", {"jwksUri": "http://a.example/"}, bearing(text or "x"), Door(nobody, lambda url: False))
    assert not found.verdict
