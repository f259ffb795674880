"""Whatever is sent: decoding gives a value or a 400, and whatever the type refuses is explained."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ApiError
from loomgate.http import query, refusal
from loomgate.http.body import decode
from loomgate.wire.assistants import CreateAssistant, ModifyAssistant
from loomgate.wire.runs import CreateRun, CreateThreadAndRun, SubmitToolOutputs
from loomgate.wire.threads import CreateMessage, CreateThread, ModifyMetadata, ModifyThread

_TYPES: list[type[Any]] = [
    CreateAssistant, ModifyAssistant, CreateThread, ModifyThread, CreateMessage, ModifyMetadata, CreateRun,
    CreateThreadAndRun, SubmitToolOutputs,
]  # fmt: skip

# Names and values that the API knows, so that random JSON gets past the first level.
_WORDS = st.sampled_from(
    "model name tools type function parameters code_interpreter file_search tool_resources file_ids vector_store_ids "
    "metadata temperature top_p response_format json_schema schema strict auto none required role user content text "
    "image_url url detail attachments file_id messages thread assistant_id stream max_prompt_tokens tool_choice "
    "truncation_strategy last_messages additional_messages tool_outputs tool_call_id output loomgate "
    "expires_after_seconds ranking_options score_threshold max_num_results reasoning_effort".split()
)
_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | _WORDS
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS | st.text(max_size=3), inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(value=st.dictionaries(_WORDS, _JSON, max_size=6) | _JSON, type=st.sampled_from(_TYPES))
def test_whatever_a_type_refuses_is_explained(value: Any, type: type[Any]) -> None:
    body = msgspec.json.encode(value)
    try:
        msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as error:
        found = refusal.find(type, msgspec.json.decode(body))
        assert found is not None, f"nobody knows why {type.__name__} refuses {value!r}: {error}"
        assert found.status == 400
        assert found.code
        with pytest.raises(ApiError) as caught:
            decode(body, type)
        assert caught.value.message == found.message
    else:
        assert refusal.find(type, value) is None
        decode(body, type)


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=200) | st.text().map(lambda text: f'{{"name":"{text}"}}'.encode()))
def test_whatever_is_sent_is_a_value_or_a_400(body: bytes) -> None:
    try:
        decode(body, CreateThread)
    except ApiError as error:
        assert error.status == 400
        assert error.message


@settings(max_examples=300, deadline=None)
@given(
    raw=st.binary(max_size=100) | st.from_regex(rb"(limit|order|after|before|include(\[\])?)=[^&]{0,9}(&limit=.{0,4})?")
)
def test_whatever_is_asked_is_a_page_or_a_400(raw: bytes) -> None:
    for parse in (query.page, query.include):
        try:
            parse(raw)
        except ApiError as error:
            assert error.status == 400
            assert error.param


@pytest.mark.parametrize(
    ("items", "words"),
    [(["a"], "'a'"), (["a", "b"], "'a' and 'b'"), (["a", "b", "c"], "'a', 'b', and 'c'")],
)
def test_lists_of_values_in_words(items: list[str], words: str) -> None:
    assert refusal.not_one_of("p", "x", items).message == f"Invalid value: 'x'. Supported values are: {words}."
