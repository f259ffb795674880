"""The checks that ask other servers, played by one on this machine."""

import json
from typing import Any

import pytest

from loomgate.gateway import remote_checks
from loomgate.gateway.verdicts import Door
from loomgate.providers.dialect import HttpCall
from loomgate.providers.transport import Reply, Timeouts
from tests.gateway.checking import answered, asked, find, verdict
from tests.support.site import Site

pytestmark = pytest.mark.anyio


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
async def test_valid_urls_have_to_answer(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
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
        monkeypatch.setattr(remote_checks, "_URLS_SECONDS", 0.1)
        site.answers["/slow"] = (200, None)
        late = await find("validUrls", {}, answered(f"{site.url}/slow"), door)
        assert late.error is not None
        assert late.error[0] == "TimeoutError"
        many = " ".join(f"{site.url}/{n}" for n in range(51))
        assert (await find("validUrls", {}, answered(many), door)).error is not None


@pytest.mark.behaviour("GR-22")
async def test_valid_urls_by_name_alone() -> None:
    assert await verdict("validUrls", {"onlyDNS": True}, "http://localhost/x http://127.0.0.1:1/")
    assert not await verdict("validUrls", {"onlyDNS": True}, "http://localhost http://no-such-host.invalid/")
    assert not await verdict("validUrls", {"onlyDNS": True}, "http://[::1 and http://a..b/")
