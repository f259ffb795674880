"""Files go through as they come: no faster than the client takes them, and not at all once it has left."""

import json
import threading
from collections.abc import Iterator

import pytest

from tests.gateway_http.caller import Caller
from tests.support.eventually import eventually
from tests.support.server import Server
from tests.support.standin import StandIn

pytestmark = pytest.mark.behaviour("TR-25")

ANSWER = {
    "output": {"message": {"role": "assistant", "content": [{"text": "x" * 60_000}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
}
LINE = json.dumps({"recordId": "a", "modelInput": {}, "modelOutput": ANSWER}).encode() + b"\n"


@pytest.fixture
def bucket(gateway: Server) -> Iterator[StandIn]:
    made = StandIn()
    gateway.run(made.start())
    yield made
    gateway.run(made.stop())


def test_results_are_read_no_faster_than_they_are_taken(gateway: Server, bucket: StandIn) -> None:
    bucket.endless(LINE)
    caller = Caller(gateway.url, gateway.new_key())
    keys = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "s", "aws_region": "eu-west-1"}
    headers = caller.headers(bucket.url, "bedrock", provider_model="amazon.nova-lite-v1:0", **keys)
    del headers["authorization"]
    path = "/files/s3%3A%2F%2Fmy-bucket%2Fjob%2Fa.jsonl.out/content"
    with caller.ask(path, None, headers, method="GET", receive_buffer=64 * 1024) as asking:
        head = asking.until(b'"error":null')
        assert head.startswith(b"HTTP/1.1 200")
        assert b'"custom_id":"a"' in head
        assert b'"model":"amazon.nova-lite-v1:0"' in head
        sent = -1
        while sent != (sent := bucket.sent):
            threading.Event().wait(0.1)  # for what is to stay as it is there is nothing to wait for
        assert sent < 32 * 1024 * 1024
    eventually(lambda: bucket.open == 0)
