"""Whose key a run's model calls carry: the operator's, a virtual key's, the client's own (Portkey's and Azure's forms).

The stand-in endpoint says which key came, and what is at rest that none was kept in plain.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from loomgate.settings import Secret, Settings, VirtualKey
from tests.api.conftest import OPERATOR_KEY, SLUG_KEY, provider
from tests.api.driving import calls, load, path, play, settle, start, submit, waiting, written
from tests.support.server import BETA, Client, Server
from tests.support.storage import at_rest, where
from tests.support.upstream import Fault, ModelEndpoint

_OWN_KEY = "sk-own-0123456789abcdef0123456789"
_SCRIPT = "/call f\n/turn\n/say Done."


def _keys(endpoint: ModelEndpoint) -> list[str | None]:
    return [request.headers.get("authorization") for request in endpoint.requests]


def _portkey(server: Server, workspace: str | None = None, **headers: str) -> Client:
    """A client that sends its key as Portkey's SDKs do; underscores stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Client(server.url, None, headers={**BETA, "x-portkey-api-key": server.new_key(workspace), **named})


def _two_turns(client: Client, model: str = "stand-in") -> dict[str, Any]:
    run = waiting(client, _SCRIPT, model=model)
    submit(client, run)
    run = settle(client, run)
    assert run["status"] == "completed"
    return run


def test_without_further_words_the_operators_key_goes_with_a_call(routed: Server, endpoint: ModelEndpoint) -> None:
    for client in (routed.client(), _portkey(routed), _portkey(routed, x_portkey_provider="standin")):
        _two_turns(client)
    assert _keys(endpoint) == [f"Bearer {OPERATOR_KEY}"] * 6


@pytest.mark.parametrize("header", ["x-portkey-virtual-key", "x-portkey-provider"])
def test_a_virtual_key_of_the_settings_file(routed: Server, endpoint: ModelEndpoint, header: str) -> None:
    slug = "team" if header == "x-portkey-virtual-key" else "@team"
    client = _portkey(routed, "default", **{header.replace("-", "_"): slug})
    run = _two_turns(client)
    assert _keys(endpoint) == [f"Bearer {SLUG_KEY}"] * 2
    assert SLUG_KEY.encode() not in at_rest(routed.settings)
    assert "team" not in str(load(client, run))
    # The key also comes as a bearer token with Portkey's npm client: that is no key of a provider.
    key = client.headers["x-portkey-api-key"]
    both = Client(routed.url, key, headers=client.headers)
    _two_turns(both)
    assert _keys(endpoint) == [f"Bearer {SLUG_KEY}"] * 4


def test_a_virtual_key_belongs_to_its_workspace(routed: Server, endpoint: ModelEndpoint) -> None:
    for headers in ({"x_portkey_virtual_key": "team"}, {"x_portkey_provider": "@team"}):
        stranger = _portkey(routed, **headers)
        refused = stranger.post("/threads", {}, status=400)
        assert "team" in refused["message"]
    assert endpoint.requests == []


def _loomgate(settings: Settings, *words: str, stdin: str = "") -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOMGATE_")}
    command = [sys.executable, "-m", "loomgate", *words]
    subprocess.run(command, input=stdin, env=environment | where(settings), check=True, text=True, capture_output=True)


def test_a_virtual_key_that_was_created_while_the_server_runs(routed: Server, endpoint: ModelEndpoint) -> None:
    secret = "sk-stored-0123456789abcdef"
    words = ["virtual-keys", "create", "stored", "--provider", "openai", "--base-url", endpoint.base_url]
    _loomgate(routed.settings, *words, "--workspace", "acme", "--api-key-stdin", stdin=secret + "\n")
    client = _portkey(routed, "acme", x_portkey_virtual_key="stored")
    _two_turns(client, "any-model")
    assert _keys(endpoint) == [f"Bearer {secret}"] * 2
    assert secret.encode() not in at_rest(routed.settings)

    # A run whose key is taken away fails, and says which key it was, not what it was.
    run = waiting(client, _SCRIPT, model="any-model")
    _loomgate(routed.settings, "virtual-keys", "delete", "stored", "--workspace", "acme")
    routed.store.generations.forget("acme")  # or wait for a second: so long another process's change is not seen
    submit(Client(routed.url, client.headers["x-portkey-api-key"]), run)
    failed = settle(Client(routed.url, client.headers["x-portkey-api-key"]), run)
    assert (failed["status"], failed["last_error"]["code"]) == ("failed", "server_error")
    assert "'@stored'" in failed["last_error"]["message"]
    assert client.post("/threads", {}, status=400)["code"] == "invalid_value"


def test_the_clients_own_key_is_used_for_its_run_and_kept_sealed(
    routed: Server, endpoint: ModelEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    client = _portkey(routed, x_portkey_provider="standin", Authorization=f"Bearer {_OWN_KEY}")
    run = waiting(client, _SCRIPT, model="any-model")
    assert _OWN_KEY.encode() not in at_rest(routed.settings)
    # The outputs come without the key: the run keeps to the one that it was created with.
    plain = Client(routed.url, client.headers["x-portkey-api-key"])
    submit(plain, run)
    assert settle(plain, run)["status"] == "completed"
    assert _keys(endpoint) == [f"Bearer {_OWN_KEY}"] * 2
    assert _OWN_KEY.encode() not in at_rest(routed.settings)
    assert _OWN_KEY not in str(load(plain, run)) + caplog.text
    # It is that run's only: the next one without it has the operator's.
    play(plain, "Hello", model="stand-in")
    assert _keys(endpoint)[-1] == f"Bearer {OPERATOR_KEY}"


def test_an_endpoints_error_does_not_give_the_key_away(
    routed: Server, endpoint: ModelEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    said = {"error": {"message": f"Incorrect API key provided: {_OWN_KEY}.", "type": "invalid_request_error"}}
    endpoint.faults.append(Fault(status=401, body=said))
    client = _portkey(routed, x_portkey_provider="standin", Authorization=f"Bearer {_OWN_KEY}")
    run = play(client, "Hello", model="any-model")
    assert (run["status"], run["last_error"]["code"]) == ("failed", "server_error")
    assert run["last_error"]["message"].startswith("Incorrect API key provided: ")
    assert _OWN_KEY not in str(run) + caplog.text
    assert _OWN_KEY.encode() not in at_rest(routed.settings)


def test_a_server_without_keys_takes_the_bearer_token_for_the_providers(
    make_server: Callable[..., Server], endpoints: Callable[[], ModelEndpoint]
) -> None:
    endpoint = endpoints()
    server = make_server(providers={"standin": provider("standin", endpoint, api_key=Secret(""))})
    client = Client(server.url, _OWN_KEY, headers={**BETA, "x-portkey-provider": "standin"})
    _two_turns(client)
    assert _keys(endpoint) == [f"Bearer {_OWN_KEY}"] * 2
    assert _OWN_KEY.encode() not in at_rest(server.settings)


def test_a_virtual_key_may_have_an_address_of_its_own(
    make_server: Callable[..., Server], endpoints: Callable[[], ModelEndpoint]
) -> None:
    own, other = endpoints(), endpoints()
    keys = {
        "there": VirtualKey(slug="there", provider="standin", api_key=Secret("sk-there"), base_url=other.base_url),
    }
    server = make_server(providers={"standin": provider("standin", own)}, virtual_keys=keys)
    play(_portkey(server, "default", x_portkey_virtual_key="there"), "Hello", model="stand-in")
    assert (_keys(own), _keys(other)) == ([], ["Bearer sk-there"])


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"x_portkey_virtual_key": "nobody"}, "x-portkey-virtual-key"),
        ({"x_portkey_provider": "nobody"}, "x-portkey-provider"),
        ({"x_portkey_provider": "@nobody"}, "x-portkey-provider"),
        ({"x_portkey_virtual_key": "team", "x_portkey_provider": "standin"}, "x-portkey-provider"),
        ({"x_portkey_config": "pc-1"}, "x-portkey-config"),
        ({"x_portkey_custom_host": "http://127.0.0.1:9"}, "x-portkey-custom-host"),
        ({"x_portkey_azure_resource_name": "r/../"}, "x-portkey-azure-resource-name"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(routed: Server, headers: dict[str, str], named: str) -> None:
    refused = _portkey(routed, "default", **headers).post("/threads", {}, status=400)
    assert named in refused["message"]


# --- Azure's forms ---------------------------------------------------------------------------------------------------


@pytest.fixture
def azure(routed: Server) -> Iterator[openai.AzureOpenAI]:
    """The official SDK as its users point it at Azure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with openai.AzureOpenAI(
            azure_endpoint=routed.url, api_key=routed.new_key(), api_version="2024-05-01-preview", max_retries=0
        ) as made:
            yield made


def test_a_run_by_azures_client(azure: openai.AzureOpenAI, endpoint: ModelEndpoint) -> None:
    tool: Any = {"type": "function", "function": {"name": "f"}}
    assistant = azure.beta.assistants.create(model="stand-in", tools=[tool])
    thread = azure.beta.threads.create(messages=[{"role": "user", "content": _SCRIPT}])
    run = azure.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
    assert run.required_action is not None
    (call,) = run.required_action.submit_tool_outputs.tool_calls
    run = azure.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=thread.id, tool_outputs=[{"tool_call_id": call.id, "output": "out"}]
    )
    assert run.status == "completed"
    assert [one.id for one in azure.beta.threads.runs.list(thread.id)] == [run.id]
    assert _keys(endpoint) == [f"Bearer {OPERATOR_KEY}"] * 2


@pytest.mark.parametrize("prefix", ["/openai", "/openai/v1", "/v1"])
@pytest.mark.parametrize("header", ["api-key", "Authorization"])
def test_keys_below_each_prefix(routed: Server, endpoint: ModelEndpoint, prefix: str, header: str) -> None:
    key = routed.new_key()
    given = {header: key if header == "api-key" else f"Bearer {key}", **(BETA if prefix == "/v1" else {})}
    query = "?api-version=2024-05-01-preview" if prefix == "/openai" else ""
    response = Client(routed.url, None, headers=given).raw("POST", f"{prefix}/threads{query}", b"{}")
    if (prefix, header) == ("/v1", "api-key"):
        assert response.status == 401
    else:
        assert response.json["object"] == "thread"
    if prefix == "/openai":
        refused = Client(routed.url, None, headers=given).raw("POST", "/openai/threads", b"{}")
        assert (refused.status, refused.error["param"]) == (400, "api-version")
    assert endpoint.requests == []


def test_a_run_that_is_cancelled_needs_no_key_of_the_provider(routed: Server, endpoint: ModelEndpoint) -> None:
    client = _portkey(routed, x_portkey_provider="standin", Authorization=f"Bearer {_OWN_KEY}")
    run = start(client, "/wait 500", model="any-model")
    plain = Client(routed.url, client.headers["x-portkey-api-key"])
    plain.post(path(run, "/cancel"))
    assert settle(plain, run)["status"] == "cancelled"
    assert written(plain, run) == []
    assert calls(waiting(client, _SCRIPT, model="any-model"))
    assert set(_keys(endpoint)) <= {f"Bearer {_OWN_KEY}"}
