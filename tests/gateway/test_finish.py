"""Finish reasons in OpenAI's words, in bytes that otherwise pass."""

from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.gateway.call import Answer
from loomgate.gateway.finish import finished_as
from loomgate.providers.catalogue import CATALOGUE

pytestmark = pytest.mark.anyio

STREAM = (
    b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\":\\"eos\\""},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason" : "eos"}]}\r\n\r\ndata: [DONE]\n\n'
)


@pytest.mark.behaviour("FR-14", "FR-15", "FR-16")
@pytest.mark.parametrize(
    ("vendor", "theirs", "ours"),
    [
        ("deepseek", "insufficient_system_resource", "stop"),
        ("mistral-ai", "model_length", "length"),
        ("mistral-ai", "error", "stop"),
        ("together-ai", "eos", "stop"),
    ],
)
def test_a_vendors_own_words(vendor: str, theirs: str, ours: str) -> None:
    body = b'{ "finish_reason": "%s", "error": "%s" }' % (theirs.encode(), theirs.encode())
    found = finished_as(Answer(200, body), CATALOGUE[vendor].finish)
    assert found.body == b'{ "finish_reason": "%s", "error": "%s" }' % (ours.encode(), theirs.encode())


def test_openais_own_words_stay() -> None:
    body = b'{"finish_reason":"tool_calls"}'
    assert finished_as(Answer(200, body), CATALOGUE["together-ai"].finish).body == body
    assert not CATALOGUE["openai"].finish


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
async def test_any_split_of_a_stream_gives_the_same_bytes(cuts: list[int]) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        at = [0, *sorted(cuts), len(STREAM)]
        for begin, end in pairwise(at):
            if begin < end:
                yield STREAM[begin:end]

    answer = finished_as(Answer(200, stream=pieces()), CATALOGUE["together-ai"].finish)
    assert answer.stream is not None
    found = b"".join([piece async for piece in answer.stream])
    assert found == STREAM.replace(b'"finish_reason" : "eos"', b'"finish_reason" : "stop"')
