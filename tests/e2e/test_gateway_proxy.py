"""What the gateway does not translate passes byte for byte (GATEWAY section 12), as does OpenAI to OpenAI."""

import gzip
import json

import pytest

from tests.support.server import Client, Server
from tests.support.standin import StandIn, chat_answer, chat_events
from tests.support.way import OWN, Way

# Nothing here is how an encoder would write it: order, white space, numbers, escapes, fields that nobody knows.
ODD = (
    b'{ "messages" :\t[{"content":"\\u00e4\xc3\xa4 \\/","role":"user"}],\r\n  "zzz_unknown": {"b":1.0,"a":[ ]}'
    b' ,"model":"gpt-4o-mini","temperature":1e0,"seed":12345678901234567890 }\n'
)
ODD_ANSWER = (
    b'{"usage":{"total_tokens":3 , "prompt_tokens":1,"completion_tokens":2},\n\n "x":1e2,"choices":[{"index":0,'
    b'"message":{"content":"\\u00e4","role":"assistant"},"finish_reason":"stop"}], "object":"chat.completion"}\r\n'
)


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings", "/images/generations"])
@pytest.mark.parametrize("path_on", ["/responses", "/moderations", "/proxy/threads", "/vector_stores"])
@pytest.mark.behaviour("PRX-01", "PRX-06", "STM-11")
def test_bodies_pass_byte_for_byte(way: Way, path: str, path_on: str) -> None:
    for each in (path, path_on):
        way.upstream.forget()
        way.upstream.say(ODD_ANSWER, "200 OK", ("Content-Type", "application/json; charset=UTF-8"), ("X-Odd", "a  b"))
        found = way.raw("POST", each, ODD)
        assert (found.status, found.body) == (200, ODD_ANSWER)
        assert found.headers["content-type"] == "application/json; charset=UTF-8"
        assert found.headers["x-odd"] == "a  b"
        asked = way.upstream.last
        assert (asked.line, asked.body) == (f"POST /v1{each.removeprefix('/proxy')} HTTP/1.1", ODD)
        assert asked.headers["content-type"] == "application/json"


ODD_EVENTS = (
    b": a comment\r\n\r\n",
    b'id: 7\r\nretry: 5\r\nevent: odd\r\ndata: {"choices" : [ {"delta":{"content":"\xc3\xa4"}, "index":0}] }\r\n\r\n',
    b"data: first\ndata: second\n\nunknown: field\n\n",
    b'data: {"id":"x","choices":[{"delta":{},"index":0,"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n: more\n\n",
)


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses", "/proxy/threads/thread_1/runs"])
@pytest.mark.behaviour("PRX-07", "STM-11", "STM-01", "STM-09")
def test_streams_pass_byte_for_byte(way: Way, path: str) -> None:
    way.upstream.stream(*ODD_EVENTS)
    found = way.post(path, {"model": "m", "stream": True})
    assert (found.status, found.body) == (200, b"".join(ODD_EVENTS))
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.headers["x-portkey-provider"] == "openai"


@pytest.mark.parametrize("path", ["/uploads/upload_1/parts", "/audio/transcriptions", "/images/edits", "/files"])
@pytest.mark.behaviour("PRX-15", "PRX-16")
def test_multipart_bodies_keep_their_boundary_and_their_bytes(way: Way, path: str) -> None:
    kind = 'multipart/form-data; charset=utf-8; boundary="odd boundary=1"'
    body = (
        b'--odd boundary=1\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--odd boundary=1\r\n'
        b'content-disposition: form-data; name="file"; filename="\xc3\xa4.bin"\r\nX-Odd: 1\r\n\r\n\x00\xff\r\n\r\n'
        b"--odd boundary=1--\r\nepilogue"
    )
    way.upstream.say(b'{"text": "x" }')
    found = way.raw("POST", path, body, content_type=kind)
    assert (found.status, found.body) == (200, b'{"text": "x" }')
    asked = way.upstream.last
    assert (asked.headers["content-type"], asked.body) == (kind, body)


@pytest.mark.parametrize("path", ["/proxy/threads/t", "/chat/completions"])
@pytest.mark.behaviour("PRX-06", "RSP-07")
def test_a_compressed_answer_can_be_read(way: Way, path: str) -> None:
    body = json.dumps(chat_answer()).encode()
    way.upstream.say(gzip.compress(body), "200 OK", ("Content-Encoding", "gzip"))
    found = way.raw("POST", path, ODD, accept_encoding="gzip")
    read = gzip.decompress(found.body) if found.headers.get("content-encoding") == "gzip" else found.body
    assert read == body
    assert found.headers.get("content-length", str(len(found.body))) == str(len(found.body))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.behaviour("GR-13", "CCH-01")
def test_guardrails_and_the_cache_see_a_whole_answer_however_it_comes(way: Way, compressed: bool) -> None:
    """In chunks, or compressed: a body of JSON never gets the events of a stream."""
    config = way.config(
        {
            "output_guardrails": [{"default.contains": {"operator": "none", "words": ["secret"]}}],
            "cache": {"mode": "simple"},
        }
    ).named(strict_open_ai_compliance="false")
    body = json.dumps(chat_answer("A word.")).encode()
    sent = gzip.compress(body) if compressed else body
    more = (("Content-Encoding", "gzip"),) if compressed else ()
    way.upstream.say(sent, "200 OK", *more, pieces=tuple(sent[at : at + 50] for at in range(0, len(sent), 50)))
    for status in ("MISS", "HIT"):
        found = config.chat()
        assert (found.status, found.headers["x-portkey-cache-status"]) == (200, status)
        assert found.json["choices"][0]["message"]["content"] == "A word."
        assert found.json["hook_results"]["after_request_hooks"][0]["verdict"] is True


@pytest.mark.parametrize("path", ["/proxy/../admin", "/files/%2e%2e/x", "/proxy/a/..", "/responses/..%2f..%2fx"])
def test_no_path_leaves_the_address_it_is_for(way: Way, path: str) -> None:
    found = way.raw("GET", path)
    assert (found.status, found.json["error"]["message"]) == (400, "Invalid path: expected one without '..'.")
    assert not way.upstream.asked


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "PUT", "PATCH", "POST"])
@pytest.mark.behaviour("PRX-01", "PRX-17", "RT-06")
def test_any_method_of_any_path(way: Way, method: str) -> None:
    path = "/odd%20path/a%2Fb/%C3%A4?q=%20x&q=y&empty=&flag"
    way.upstream.say(b'{"ok" : 1}', "202 Accepted", ("X-Upstream", "1"))
    found = way.raw(method, path, b'{"a" : 1}')
    assert (found.status, found.headers["x-upstream"]) == (202, "1")
    assert found.body == (b"" if method == "HEAD" else b'{"ok" : 1}')
    asked = way.upstream.last
    assert asked.line == f"{method} /v1{path} HTTP/1.1"
    assert asked.body == (b"" if method in ("GET", "DELETE", "HEAD") else b'{"a" : 1}')


@pytest.mark.behaviour("PRX-10")
def test_an_empty_body_that_says_it_is_json(way: Way) -> None:
    way.upstream.say(b'{"status":"cancelling"}')
    found = way.raw("POST", "/proxy/threads/t/runs/r/cancel", b"")
    assert (found.status, found.body) == (200, b'{"status":"cancelling"}')
    asked = way.upstream.last
    assert (asked.body, asked.headers["content-type"]) == (b"", "application/json")
    assert asked.headers["content-length"] == "0"


@pytest.mark.parametrize("path", ["/proxy/threads", "/vector_stores"])
@pytest.mark.behaviour("RT-05", "PRX-04", "PRX-05", "AUTH-11", "RH-25", "PRX-18")
def test_which_headers_go_along(way: Way, path: str) -> None:
    way.upstream.say()
    way.raw(
        "POST",
        path,
        b"{}",
        OpenAI_Beta="assistants=v2",
        X_Custom="mine",
        User_Agent="agent/1",
        Cookie="a=b",
        X_PORTKEY_Trace_ID="t-1",
        Expect="",
        Accept="application/json; q=0.9",
    )
    asked = way.upstream.last
    assert asked.line == f"POST /v1{path.removeprefix('/proxy')} HTTP/1.1"
    assert asked.headers["authorization"] == f"Bearer {OWN}"
    assert asked.headers["openai-beta"] == "assistants=v2"
    assert asked.headers["x-custom"] == "mine"
    assert asked.headers["user-agent"] == "agent/1"
    assert asked.headers["accept"] == "application/json; q=0.9"
    assert asked.headers["host"] == way.upstream.url.removeprefix("http://")
    assert "cookie" not in asked.headers
    assert not [name for name in asked.headers if name.startswith("x-portkey")]
    assert way.key not in asked.head.decode()


@pytest.mark.behaviour("PRX-05", "RH-19")
def test_the_beta_header_comes_from_the_client_alone(way: Way) -> None:
    for given, expected in (
        ({}, None),
        ({"x_portkey_openai_beta": "assistants=v2"}, "assistants=v2"),
        ({"openai_beta": "realtime=v1"}, "realtime=v1"),
    ):
        for path in ("/proxy/threads", "/chat/completions"):
            way.upstream.forget()
            way.upstream.say(chat_answer())
            way.raw("POST", path, ODD, **given)
            assert way.upstream.last.headers.get("openai-beta") == expected


@pytest.mark.parametrize(
    "status", ["400 Bad Request", "404 Not Found", "418 I'm a teapot", "429 Too Many Requests", "500 Oops"]
)
@pytest.mark.behaviour("GERR-08", "PRX-06", "RSP-08")
def test_errors_of_proxied_paths_pass_unchanged(way: Way, status: str) -> None:
    body = b'{"error" : {"message":"No thread found","type":"x"} }'
    way.upstream.say(body, status, ("X-Why", "because"), ("Retry-After", "3"))
    found = way.raw("GET", "/proxy/threads/thread_1")
    assert (found.status, found.body) == (int(status[:3]), body)
    assert (found.headers["x-why"], found.headers["retry-after"]) == ("because", "3")
    assert found.headers["x-portkey-last-used-option-index"] == "config"
    assert found.headers["x-portkey-provider"] == "openai"


@pytest.mark.behaviour("PRX-06")
def test_an_answer_without_a_body(way: Way) -> None:
    way.upstream.say(b"", "204 No Content")
    found = way.raw("DELETE", "/proxy/threads/thread_1")
    assert (found.status, found.body) == (204, b"")
    assert "content-length" not in found.headers


@pytest.mark.behaviour("PRX-08")
def test_guardrails_and_cache_leave_proxied_paths_alone_but_policies_do_not(way: Way) -> None:
    config = {
        "input_guardrails": [{"default.wordCount": {"minWords": 1000}, "deny": True}],
        "output_guardrails": [{"default.contains": {"operator": "none", "words": ["x"]}, "deny": True}],
        "cache": {"mode": "simple"},
        "retry": {"attempts": 1, "on_status_codes": [409]},
    }
    for _ in range(2):
        way.upstream.forget()
        way.upstream.say(b'{"id":"x"}')
        found = way.config(config).raw("GET", "/proxy/threads/t")
        assert (found.status, found.body, len(way.upstream.asked)) == (200, b'{"id":"x"}', 1)
        assert found.headers["x-portkey-cache-status"] == "DISABLED"


@pytest.mark.behaviour("PRX-09")
def test_params_of_the_config_stay_out_of_proxied_bodies(way: Way) -> None:
    way.upstream.say(b'{"id":"x"}')
    way.config({"override_params": {"temperature": 0}}).raw("POST", "/proxy/threads/t/messages", b'{ "role":"user"}')
    assert way.upstream.last.body == b'{ "role":"user"}'


@pytest.mark.behaviour("PRX-02", "PRX-13")
def test_the_assistants_of_azure(way: Way) -> None:
    azure = way.at("azure-openai", "/openai").named(azure_api_version="2024-05-01-preview")
    azure.upstream.say(b'{"id":"thread_1"}')
    azure.raw("POST", "/proxy/threads?x=1", b"{}")
    asked = azure.upstream.last
    assert asked.line == "POST /openai/threads?x=1&api-version=2024-05-01-preview HTTP/1.1"
    assert asked.headers["api-key"] == OWN
    assert "authorization" not in asked.headers
    azure.upstream.forget()
    azure.upstream.say(b'{"id":"thread_1"}')
    azure.raw("GET", "/proxy/threads/t?api-version=2025-01-01")
    assert azure.upstream.last.line == "GET /openai/threads/t?api-version=2025-01-01 HTTP/1.1"


@pytest.mark.behaviour("PRX-03", "E2E-10")
def test_an_assistants_server_behind_the_gateway(gateway: Server) -> None:
    """Ours behind ours: as provider ``openai`` with a custom host, a thread and a run with its stream."""
    behind = gateway.new_key()
    front = Client(
        gateway.url,
        None,
        headers={
            "x-portkey-api-key": gateway.new_key(),
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{gateway.url}/v1",
            "Authorization": f"Bearer {behind}",
            "OpenAI-Beta": "assistants=v2",
        },
        prefix="/v1/proxy",
    )
    direct = Client(gateway.url, behind)
    assistant = front.raw("POST", "/v1/proxy/assistants", b'{"model":"scripted"}', check=False).json
    assert direct.get(f"/assistants/{assistant['id']}") == assistant
    body = {
        "assistant_id": assistant["id"],
        "stream": True,
        "thread": {"messages": [{"role": "user", "content": "/say Hi."}]},
    }
    found = front.raw("POST", "/v1/proxy/threads/runs", json.dumps(body).encode(), check=False)
    assert found.status == 200
    assert found.body.endswith(b"event: done\ndata: [DONE]\n\n")
    assert b"event: thread.run.completed\n" in found.body


def test_stand_ins_speak_as_openai_does(upstream: StandIn, way: Way) -> None:
    upstream.stream(*chat_events("a", "b"))
    assert way.chat(stream=True).body == b"".join(chat_events("a", "b"))
