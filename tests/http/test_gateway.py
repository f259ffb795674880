"""The gateway's routes where nobody can answer: what does not exist here, and a fault of our own."""

import pytest

from tests.support.server import Server

CHAT = b'{"model":"scripted","messages":[{"role":"user","content":"/say Hi"}]}'


@pytest.mark.behaviour("RT-08")
@pytest.mark.parametrize("path", ["/v1/prompts/pp-1/completions", "/v1/prompts/pp-1/v1/chat/completions"])
def test_there_are_no_prompt_templates(server: Server, path: str) -> None:
    found = server.client().raw("POST", path, CHAT, check=False)
    assert (found.status, found.json["error"]["code"]) == (404, "unsupported_endpoint")


@pytest.mark.behaviour("GERR-06", "RSP-06")
def test_a_fault_of_the_gateway_says_so_and_nothing_of_its_inside(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = server.client()

    async def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    assert server.application.gateway is not None
    with monkeypatch.context() as patch:
        patch.setattr(server.application.gateway, "call", broken)
        found = client.raw("POST", "/v1/chat/completions", CHAT, check=False)
    assert (found.status, found.headers["x-portkey-gateway-exception"]) == (500, "true")
    assert (found.json["status"], found.json["error"]["type"]) == ("failure", "server_error")
    assert found.json["message"] == found.json["error"]["message"]
    assert found.headers["x-request-id"] in found.json["message"]
    assert b"secret detail" not in found.body
    assert "secret detail" in caplog.text
    again = client.raw("POST", "/v1/chat/completions", CHAT, check=False)
    assert (again.status, again.headers.get("x-portkey-gateway-exception")) == (200, None)
