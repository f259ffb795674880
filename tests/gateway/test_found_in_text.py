"""The checks for JSON and code within a text, and what a text or schema may cost."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate import clock
from loomgate.gateway import code_formats, json_in_text, patterns
from tests.gateway.checking import answered, find, refused, verdict

pytestmark = pytest.mark.anyio


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


def test_unique_items_are_found_in_one_pass() -> None:
    items = [{"a": n} if n % 2 else [n] for n in range(6_000)]
    before = clock.monotonic()
    assert json_in_text.Schema({"uniqueItems": True}).judged([items]) == (items, [])
    assert clock.monotonic() - before < 2


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
    assert clock.monotonic() - before < 2  # what looks twice takes minutes


@pytest.mark.parametrize("unit", ["{", '{"', '\\"', '{"a":', "}", "```json\n{", "`", "``` ", "[", '{"a":1}', "{}"])
def test_no_text_takes_long_to_be_searched_for_json(unit: str) -> None:
    for text in (unit * 100_000, '{"' + unit * 100_000, "x {" + unit * 100_000):
        before = clock.monotonic()
        json_in_text.values(text)
        assert clock.monotonic() - before < 2
