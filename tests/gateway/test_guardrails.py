"""Guardrails: how they are read, run and told of."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.errors import ApiError
from loomgate.gateway.checks import CHECKS
from loomgate.gateway.guardrails import (
    Guardrail,
    Guards,
    Outcome,
    Subject,
    compile_guardrails,
    denied_body,
    with_results,
)
from loomgate.gateway.subject import Side
from loomgate.providers.dialect import HttpCall
from loomgate.providers.transport import Reply, Timeouts, Transport
from loomgate.wire.endpoints import ENDPOINTS, EndpointName
from tests.support.site import Site
from tests.support.waiting import settle, until

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs" / "gateway" / "guardrails.md"
SHORT = {"default.wordCount": {"maxWords": 1}}


async def nobody(call: HttpCall, _: Timeouts) -> Reply:
    raise AssertionError(f"{call.url} was called")


@pytest.fixture
def guards() -> Guards:
    """Guards that may call nobody."""
    return Guards(nobody)


@pytest.fixture
async def calling() -> AsyncIterator[Guards]:
    """Guards that may call this machine."""
    transport = Transport()
    guards = Guards(transport.send, lambda url: True)
    yield guards
    await guards.close(0)
    await transport.close()


def asked(text: Any = "one two", endpoint: EndpointName = "chat") -> Subject:
    return Subject(
        side="input", endpoint_name=endpoint, fields={"model": "m", "messages": [{"role": "user", "content": text}]}
    )


def answered(text: Any = "one two") -> Subject:
    answer = {
        "id": "x",
        "choices": [{"message": {"role": "assistant", "content": text}}, {"message": {"content": "2"}}],
    }
    return Subject(side="output", endpoint_name="chat", fields=asked().fields, answer=answer)


def on_input(*items: Any, **more: Any) -> tuple[Guardrail, ...]:
    return compile_guardrails(items, [], "input", **more)


async def run(guards: Guards, *items: Any, subject: Subject | None = None) -> Outcome:
    return await guards.run(on_input(*items), subject or asked())


def refused(items: Any = (), hooks: Any = (), side: Any = "input", **more: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        compile_guardrails(items, hooks, side, **more)
    assert caught.value.status == 400
    return caught.value


# --- reading ---


@pytest.mark.behaviour("GR-01", "GR-02", "CFG-22")
async def test_the_inline_form(guards: Guards) -> None:
    outcome = await run(
        guards,
        {
            "default.wordCount": {"maxWords": 1},
            "regexMatch": {"rule": "one"},
            "deny": True,
            "async": False,
            "sequential": True,
            "id": "mine",
            "type": "guardrail",
            "guardrail_version_id": "v7",
            "on_success": {"feedback": {"value": 5, "weight": 1}},
            "on_fail": {"feedback": {"value": -5, "weight": 1}},
        },
    )
    (result,) = outcome.results
    assert [check["id"] for check in result["checks"]] == ["default.wordCount", "default.regexMatch"]
    assert (result["id"], result["guardrail_version_id"], result["deny"]) == ("mine", "v7", True)
    assert result["feedback"]["value"] == -5
    assert outcome.failed
    assert outcome.denied


@pytest.mark.behaviour("GR-02")
def test_a_guardrail_without_an_id_gets_one() -> None:
    first, second = on_input(SHORT, SHORT)
    assert re.fullmatch(r"input_guardrail_[0-9a-f]{6}", first.id)
    assert first.id != second.id
    assert on_input(SHORT, SHORT)[0].id == first.id
    (third,) = compile_guardrails([{"contains": {"words": ["x"]}}], [], "output")
    assert third.id.startswith("output_guardrail_")


@pytest.mark.behaviour("GR-03")
async def test_a_name_stands_for_a_saved_guardrail(guards: Guards) -> None:
    saved = {
        "pg-short": {**SHORT, "deny": True},
        "pg-long": {"checks": [{"id": "default.regexMatch", "parameters": {"rule": "one"}}], "id": "own"},
    }
    outcome = await guards.run(on_input("pg-short", "pg-long", saved=saved), asked())
    assert [(result["id"], result["verdict"]) for result in outcome.results] == [("pg-short", False), ("own", True)]
    assert outcome.denied
    error = refused(["pg-none"], saved=saved)
    assert error.param == "input_guardrails[0]"
    assert "no guardrail named 'pg-none'" in error.message


@pytest.mark.behaviour("GR-04")
async def test_defaults(guards: Guards) -> None:
    (guard,) = on_input(SHORT)
    assert not guard.background
    outcome = await guards.run([guard], asked())
    assert outcome.failed
    assert not outcome.denied
    assert outcome.results[0]["async"] is False
    assert outcome.results[0]["deny"] is False


@pytest.mark.behaviour("CFG-23")
async def test_the_long_form(guards: Guards) -> None:
    hook = {
        "id": "mine",
        "type": "guardrail",
        "checks": [
            {"id": "default.wordCount", "parameters": {"maxWords": 1}},
            {"id": "alllowercase"},
        ],
        "deny": True,
        "async": False,
        "on_fail": {"feedback": {"value": -1, "weight": 2}},
    }
    compiled = compile_guardrails([SHORT], [hook], "input")
    outcome = await guards.run(compiled, asked())
    assert [result["id"] for result in outcome.results] == [compiled[0].id, "mine"]
    assert [check["verdict"] for check in outcome.results[1]["checks"]] == [False, True]
    assert outcome.results[1]["feedback"]["weight"] == 2
    assert outcome.denied


@pytest.mark.behaviour("CFG-22", "CFG-23", "GR-22", "GR-23")
@pytest.mark.parametrize(
    ("items", "hooks", "side", "param", "said"),
    [
        ([7], [], "input", "input_guardrails[0]", "an object or the name"),
        ([{}], [], "input", "input_guardrails[0]", "between 1 and 100 checks"),
        ([{"deny": True}], [], "input", "input_guardrails[0]", "between 1 and 100 checks"),
        ([{**SHORT, "deny": "yes"}], [], "input", "input_guardrails[0]", "Expected `bool`"),
        ([{**SHORT, "denny": {}}], [], "input", "input_guardrails[0].denny", "no check 'denny'"),
        ([SHORT, {"wordCount": {"max": 1}}], [], "input", "input_guardrails[1].wordCount", "unknown field `max`"),
        ([{"notNull": {}}], [], "input", "input_guardrails[0].notNull", "for output only"),
        ([{"jwt": {"jwksUri": "http://a.b"}}], [], "output", "output_guardrails[0].jwt", "for input only"),
        ([{"portkey.pii": {}}], [], "output", "output_guardrails[0].portkey.pii", "Portkey's own service"),
        ([{"aporia.validateProject": {}}], [], "input", "input_guardrails[0].aporia.validateProject", "'aporia'"),
        ([{**SHORT, "on_fail": {"feedbak": {}}}], [], "input", "input_guardrails[0]", "unknown field `feedbak`"),
        ([{**SHORT, "type": "hook"}], [], "input", "input_guardrails[0]", "Invalid enum value 'hook'"),
        ([{**SHORT, "async": True, "deny": True}], [], "input", "input_guardrails[0]", "cannot be 'async'"),
        ([{**SHORT, "async": True, "type": "mutator"}], [], "input", "input_guardrails[0]", "cannot be 'async'"),
        ([], [{}], "input", "before_request_hooks[0]", "between 1 and 100 checks"),
        ([], [{"checks": {}}], "output", "after_request_hooks[0].checks", "expected an array"),
        ([], [{"checks": [{}]}], "input", "before_request_hooks[0].checks[0]", "required field `id`"),
        ([], [{"checks": [{"id": "x"}]}], "input", "before_request_hooks[0].checks[0]", "no check 'x'"),
        ([], [{"checks": [{"id": "log", "params": {}}]}], "input", "before_request_hooks[0].checks[0]", "`params`"),
        (
            [],
            [{"checks": [{"id": "alllowercase"}], "wordCount": {}}],
            "input",
            "before_request_hooks[0]",
            "`wordCount`",
        ),
        ([SHORT] * 101, [], "input", "input_guardrails", "at most 100 guardrails"),
        ([], [{"checks": [{"id": "alllowercase"}] * 60}] * 2, "input", "input_guardrails", "at most 100 checks"),
    ],
)
def test_what_is_wrong_is_refused_by_name(items: Any, hooks: Any, side: Any, param: str, said: str) -> None:
    error = refused(items, hooks, side)
    assert error.param == param
    assert said in error.message
    assert param in error.message


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from([*CHECKS, "deny", "async", "on_fail", "checks", "id", "x", "words", "rule"]),
            below,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(
    st.lists(_JSON, max_size=3), st.lists(st.dictionaries(st.sampled_from(["checks", "id", "deny"]), _JSON), max_size=2)
)
def test_anything_is_compiled_or_refused(items: Any, hooks: Any) -> None:
    status = 400
    try:
        compile_guardrails(items, hooks, "output")
    except ApiError as error:
        status = error.status
    assert status == 400


# --- running ---


@pytest.mark.behaviour("GR-05", "GR-06")
async def test_only_endpoints_with_text_are_guarded(guards: Guards) -> None:
    for name in ENDPOINTS:
        before = await guards.run(on_input(SHORT), asked(endpoint=name))
        assert bool(before.results) == (name in ("chat", "complete", "messages", "embed")), name
        after = await guards.run(
            compile_guardrails([{"default.notNull": {}}], [], "output"),
            msgspec.structs.replace(answered(), endpoint_name=name),
        )
        assert bool(after.results) == (name in ("chat", "complete", "messages")), name


@pytest.mark.behaviour("GR-05")
async def test_nothing_changes_the_input_of_embeddings(guards: Guards) -> None:
    subject = Subject(side="input", endpoint_name="embed", fields={"input": "12"})
    replace = {"regexReplace": {"rule": r"\d", "failOnDetection": True}}
    outcome = await run(guards, {**replace, "id": "a"}, {**replace, "type": "mutator"}, subject=subject)
    assert [result["id"] for result in outcome.results] == ["a"]
    assert outcome.failed
    assert not outcome.changed
    assert not outcome.results[0]["checks"][0]["transformed"]
    assert outcome.fields is subject.fields


def body(**fields: Any) -> dict[str, Any]:
    return fields


@pytest.mark.behaviour("GR-07")
@pytest.mark.parametrize(
    ("endpoint", "fields", "text"),
    [
        ("chat", body(messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]), "b"),
        (
            "chat",
            body(messages=[{"content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}]}]),
            "a\nb",
        ),
        ("messages", body(messages=[{"content": [{"type": "text", "text": "a"}]}], system="s"), "a"),
        ("complete", body(prompt="a"), "a"),
        ("complete", body(prompt=["a", "b"]), "a\nb"),
        ("complete", body(prompt=[[1, 2]]), ""),
        ("embed", body(input="a"), "a"),
        ("embed", body(input=["a", "b"]), "a\nb"),
        ("embed", body(input=[1, 2]), ""),
        ("chat", body(messages=[]), ""),
        ("chat", body(messages=["x"]), ""),
        ("chat", body(messages=[{"role": "assistant", "content": None}]), ""),
        ("chat", body(), ""),
    ],
)
def test_the_text_of_a_request(endpoint: Any, fields: Any, text: str) -> None:
    assert Subject(side="input", endpoint_name=endpoint, fields=fields).text == text


CHOICES = [{"message": {"content": "a"}}, {"message": {"content": "b"}}]


@pytest.mark.behaviour("GR-07")
@pytest.mark.parametrize(
    ("endpoint", "answer", "text"),
    [
        ("chat", {"choices": CHOICES}, "a"),
        ("chat", {"choices": [{"message": {"content": None, "tool_calls": []}}]}, ""),
        ("chat", {"choices": []}, ""),
        ("chat", {"choices": [{}]}, ""),
        ("chat", {}, ""),
        ("complete", {"choices": [{"text": "a"}, {"text": "b"}]}, "a"),
        ("messages", {"content": [{"type": "text", "text": "a"}, {"type": "tool_use"}, {"text": "b"}]}, "a\nb"),
        ("messages", {"content": []}, ""),
        ("chat", None, ""),
    ],
)
def test_the_text_of_an_answer(endpoint: Any, answer: Any, text: str) -> None:
    assert Subject(side="output", endpoint_name=endpoint, fields={}, answer=answer).text == text


@pytest.mark.parametrize(
    ("endpoint", "answer", "expected"),
    [
        ("chat", {"choices": CHOICES}, {"choices": [{"message": {"content": "X"}}, CHOICES[1]]}),
        ("complete", {"choices": [{"text": "a", "index": 0}]}, {"choices": [{"text": "X", "index": 0}]}),
        (
            "messages",
            {"content": [{"type": "tool_use"}, {"type": "text", "text": "a"}]},
            {"content": [{"type": "tool_use"}, {"type": "text", "text": "X"}]},
        ),
    ],
)
@pytest.mark.behaviour("GR-21")
async def test_the_text_of_an_answer_is_replaced(guards: Guards, endpoint: Any, answer: Any, expected: Any) -> None:
    subject = Subject(side="output", endpoint_name=endpoint, fields={}, answer=answer)
    before = json.dumps(answer)
    replace = compile_guardrails([{"regexReplace": {"rule": "a", "redactText": "X"}}], [], "output")
    outcome = await guards.run(replace, subject)
    assert outcome.answer == expected
    assert outcome.changed
    assert outcome.fields is subject.fields
    assert outcome.results[0]["transformed"]
    assert json.dumps(answer) == before


@pytest.mark.behaviour("GR-09")
async def test_a_check_that_errors_passes_unless_it_must_not(guards: Guards) -> None:
    error = {"regexMatch": {"rule": "x"}}
    outcome = await run(guards, error, subject=asked(""))
    assert not outcome.failed
    check = outcome.results[0]["checks"][0]
    assert check["verdict"] is False
    assert check["error"] == {"name": "Error", "message": "There is no text to match"}
    assert check["fail_on_error"] is False
    outcome = await run(guards, {"regexMatch": {"rule": "x", "failOnError": True}, "deny": True}, subject=asked(""))
    assert outcome.denied
    assert outcome.results[0]["checks"][0]["fail_on_error"] is True


@pytest.mark.behaviour("GR-09")
async def test_every_check_has_to_pass(guards: Guards) -> None:
    lower, upper = {"alllowercase": {}}, {"alluppercase": {}}
    assert not (await run(guards, lower)).failed
    assert (await run(guards, {**lower, **upper})).failed
    assert (await run(guards, lower, upper)).failed
    assert not (await run(guards, lower, {**upper, "deny": False}, {**lower, "deny": True})).denied
    assert (await run(guards, lower, {**upper, "deny": True}, lower)).denied


async def test_a_check_that_breaks_is_an_error(guards: Guards, caplog: pytest.LogCaptureFixture) -> None:
    (guard,) = on_input({"log": {"logURL": "http://127.0.0.1/x"}})  # nobody() raises what no check expects
    outcome = await guards.run([guard], asked())
    assert not outcome.failed
    error = outcome.results[0]["checks"][0]["error"]
    assert error == {"name": "Error", "message": "The check broke."}
    assert "default.log broke" in caplog.text


@pytest.mark.behaviour("GR-17")
async def test_the_shape_of_a_result(guards: Guards) -> None:
    outcome = await run(guards, {**SHORT, "id": "mine"})
    (result,) = json.loads(msgspec.json.encode(outcome.results))
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
    assert stamp.fullmatch(result.pop("created_at"))
    assert isinstance(result.pop("execution_time"), int)
    (check,) = result.pop("checks")
    assert result == {
        "verdict": False,
        "id": "mine",
        "transformed": False,
        "feedback": None,
        "async": False,
        "type": "guardrail",
        "deny": False,
    }
    assert stamp.fullmatch(check.pop("created_at"))
    assert isinstance(check.pop("execution_time"), int)
    assert check.pop("data")["wordCount"] == 2
    assert check == {
        "verdict": False,
        "id": "default.wordCount",
        "transformed": False,
        "log": None,
        "error": None,
        "fail_on_error": False,
    }


@pytest.mark.behaviour("GR-18")
async def test_feedback_counts_the_checks(guards: Guards) -> None:
    item = {
        "alllowercase": {},
        "alluppercase": {},
        "wordCount": {"maxWords": 1},
        "modelRules": {"rules": {}},
        "on_fail": {"feedback": {"value": -5, "weight": 0.5, "metadata": {"user": "ann"}}},
        "on_success": {"feedback": {"value": 5, "weight": 1}},
    }
    (result,) = (await run(guards, item)).results
    assert result["feedback"] == {
        "value": -5,
        "weight": 0.5,
        "metadata": {
            "user": "ann",
            "successfulChecks": "default.alllowercase",
            "failedChecks": "default.alluppercase, default.wordCount",
            "erroredChecks": "default.modelRules",
        },
    }
    (result,) = (await run(guards, {"alllowercase": {}, "on_success": item["on_success"]})).results
    assert result["feedback"]["value"] == 5
    (result,) = (await run(guards, {"alllowercase": {}, "on_fail": item["on_fail"]})).results
    assert result["feedback"] is None


@pytest.mark.behaviour("GR-20")
async def test_a_check_that_is_not_enabled_is_skipped(guards: Guards) -> None:
    outcome = await run(guards, {"wordCount": {"maxWords": 1, "is_enabled": False}, "alllowercase": {}})
    assert [check["id"] for check in outcome.results[0]["checks"]] == ["default.alllowercase"]
    hook = {"checks": [{"id": "wordCount", "parameters": {"maxWords": 1}, "is_enabled": False}]}
    outcome = await guards.run(compile_guardrails([], [hook], "input"), asked())
    assert outcome.results[0]["checks"] == []
    assert not outcome.failed


# --- changes ---


def replacing(rule: str, by: str, **more: Any) -> dict[str, Any]:
    return {"id": "regexReplace", "parameters": {"rule": rule, "redactText": by}, **more}


@pytest.mark.behaviour("GR-21")
async def test_changes_follow_each_other_and_checks_beside_them_see_the_original(guards: Guards) -> None:
    seen = {"id": "regexMatch", "parameters": {"rule": "^ab$"}}
    checks = [replacing("a", "b"), seen, replacing("b", "c"), seen]
    compiled = compile_guardrails(
        [], [{"checks": checks}, {"checks": [seen]}, {"checks": [replacing("c", "d")]}], "input"
    )
    outcome = await guards.run(compiled, asked("ab"))
    assert outcome.fields["messages"][0]["content"] == "dd"
    assert not outcome.failed
    assert [check["transformed"] for check in outcome.results[0]["checks"]] == [True, False, True, False]
    assert [result["transformed"] for result in outcome.results] == [True, False, True]


@pytest.mark.behaviour("GR-21")
async def test_in_sequence_each_check_sees_what_the_former_left(guards: Guards) -> None:
    seen = [{"id": "regexMatch", "parameters": {"rule": f"^{text}$"}} for text in ("ab", "bb", "cc")]
    checks = [seen[0], replacing("a", "b"), seen[1], replacing("b", "c"), seen[2]]
    outcome = await guards.run(compile_guardrails([], [{"checks": checks, "sequential": True}], "input"), asked("ab"))
    assert not outcome.failed
    assert outcome.fields["messages"][0]["content"] == "cc"


@pytest.mark.behaviour("GR-21")
async def test_a_webhook_and_a_pattern_change_one_after_the_other(calling: Guards) -> None:
    async with Site(
        {"/": (200, {"verdict": True, "transformedData": {"request": {"json": asked("12").fields}}})}
    ) as site:
        item = {"regexReplace": {"rule": r"\d"}, "webhook": {"webhookURL": site.url + "/"}}
        outcome = await calling.run(on_input(item, {"regexReplace": {"rule": "2", "redactText": "two"}}), asked("9"))
        assert site.seen[0].json["request"]["text"] == "[REDACTED]"
        assert site.seen[0].json["request"]["isTransformed"]
        assert outcome.fields["messages"][0]["content"] == "1two"


async def test_checks_that_ask_others_do_so_together(calling: Guards) -> None:
    async with Site({"/slow": (200, None)}) as site:
        hook = {"webhookURL": f"{site.url}/slow", "timeout": 30_000}
        items = [{"log": {"logURL": f"{site.url}/slow"}}, {"webhook": hook}, {"log": {"logURL": f"{site.url}/slow"}}]
        task = asyncio.create_task(calling.run(on_input(*items), asked()))
        await until(lambda: len(site.seen) == 3)
        task.cancel()
        await asyncio.wait([task])


def test_what_may_deny_or_change_an_answer_holds_its_stream() -> None:
    items = [
        {"notNull": {}},
        {"notNull": {}, "deny": True},
        {"regexReplace": {"rule": "x"}},
        {"regexReplace": {"rule": "x"}, "async": True},
    ]
    assert [guard.holds for guard in compile_guardrails(items, [], "output")] == [False, True, True, False]


async def test_without_guardrails_nothing_is_touched(guards: Guards) -> None:
    subject = answered()
    outcome = await guards.run((), subject)
    assert outcome.fields is subject.fields
    assert outcome.answer is subject.answer
    assert (outcome.results, outcome.failed, outcome.denied, outcome.changed) == ([], False, False, False)


# --- beside the request ---


@pytest.mark.behaviour("GR-19")
async def test_asynchronous_guardrails_neither_delay_nor_change(calling: Guards) -> None:
    told: list[Any] = []
    answer = {"verdict": False, "transformedData": {"request": {"json": {}}}}
    async with Site({"/": (200, answer)}) as site:
        items = [
            {"webhook": {"webhookURL": site.url + "/"}, "async": True, "id": "behind"},
            {"regexReplace": {"rule": "o"}, "async": True, "id": "still"},
            {"alllowercase": {}},
        ]
        subject = asked()
        outcome = await calling.run(on_input(*items), subject, told.extend)
        assert not site.seen
        assert [check["id"] for result in outcome.results for check in result["checks"]] == ["default.alllowercase"]
        assert not outcome.failed
        assert not outcome.changed
        await until(lambda: len(told) == 2)
        found = {result["id"]: result for result in told}
        assert found["behind"]["verdict"] is False
        assert found["behind"]["async"] is True
        assert [result["transformed"] for result in found.values()] == [False, False]


@pytest.mark.behaviour("GR-19")
async def test_there_is_a_limit_to_what_runs_beside(calling: Guards, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []
    async with Site({"/": (200, None)}) as site:
        compiled = on_input({"log": {"logURL": site.url + "/", "timeout": 60_000}, "async": True, "id": "a"})
        for _ in range(258):
            await calling.run(compiled, asked(), told.extend)
        assert told == [{"id": "a", "skipped": True, "async": True, "type": "guardrail"}] * 2
        assert "guardrail a was skipped" in caplog.text
        await calling.close(0)
        await settle()
        assert len(told) == 2


async def test_closing_waits_for_what_runs_beside(calling: Guards) -> None:
    told: list[Any] = []
    async with Site({"/": (200, {"verdict": True})}) as site:
        await calling.run(on_input({"webhook": {"webhookURL": site.url + "/"}, "async": True}), asked(), told.extend)
        await calling.close(10)
        assert len(told) == 1
        assert told[0]["verdict"]


async def test_who_cannot_take_a_result_harms_nobody(guards: Guards, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("no")

    await guards.run(on_input({"alllowercase": {}, "async": True, "id": "a"}), asked(), broken)
    await guards.close(5)
    assert "the result of guardrail a was not taken" in caplog.text


# --- what clients see ---


@pytest.mark.behaviour("GR-10", "GR-11")
async def test_the_body_of_a_denial(guards: Guards) -> None:
    before = (await run(guards, {**SHORT, "deny": True})).results
    denied = json.loads(denied_body(before, []))
    assert denied["error"] == {
        "message": "The guardrail checks defined in the config failed. You can find more information in the "
        "`hook_results` object.",
        "type": "hooks_failed",
        "param": None,
        "code": None,
    }
    assert denied["hook_results"] == {"before_request_hooks": before, "after_request_hooks": []}
    after = (await guards.run(compile_guardrails([{"notNull": {}}], [], "output"), answered())).results
    assert json.loads(denied_body(before, after))["hook_results"] == {
        "before_request_hooks": before,
        "after_request_hooks": after,
    }


@pytest.mark.behaviour("GR-12", "GR-13")
async def test_an_answer_tells_the_results(guards: Guards) -> None:
    answer = answered().answer
    assert answer is not None
    results = (await run(guards, SHORT)).results
    told = with_results(answer, results, [])
    assert told == {**answer, "hook_results": {"before_request_hooks": results, "after_request_hooks": []}}
    assert "hook_results" not in answer
    assert with_results(answer, [], []) is answer


# --- the page ---


def documented() -> dict[str, tuple[str, dict[str, str]]]:
    """Of the page: each check's side, and its parameters with their defaults."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for section in DOCS.read_text("utf-8").split("\n### `")[1:]:
        name = section.partition("`")[0]
        side = re.search(r"^For (input and output|input|output)\.", section, re.MULTILINE)
        assert side, name
        rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+?) \|", section, re.MULTILINE)
        found[name] = (side[1], dict(rows))
    return found


@pytest.mark.behaviour("GR-22")
def test_every_check_is_documented_with_its_parameters_and_defaults() -> None:
    def default(field: Any) -> str:
        if field.required:
            return "required"
        return f"`{json.dumps(field.default)}`" if field.default not in ("", ()) else "none"

    table = {
        name: (
            " and ".join(row.sides),
            {
                field.encode_name: default(field)
                for field in msgspec.structs.fields(row.parameters)
                if field.encode_name not in ("failOnError", "is_enabled")
            },
        )
        for name, row in CHECKS.items()
    }
    assert documented() == table


def test_the_documented_examples_compile() -> None:
    examples = re.findall(r"```json\n(.*?)\n```", DOCS.read_text("utf-8"), re.DOTALL)
    seen: set[str] = set()
    for example in examples:
        config = json.loads(example)
        if "error" in config or "verdict" in config:
            continue
        sides: list[tuple[Side, str, str]] = [
            ("input", "input_guardrails", "before_request_hooks"),
            ("output", "output_guardrails", "after_request_hooks"),
        ]
        for side, short, long in sides:
            compiled = compile_guardrails(config.get(short, ()), config.get(long, ()), side)
            seen |= {check.id.removeprefix("default.") for guard in compiled for check in guard.checks}
    assert seen == set(CHECKS)
