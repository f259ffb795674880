"""Whatever is sent: decoding gives a value or a 400, and whatever the type refuses is explained."""

from collections.abc import Callable
from typing import Any

import msgspec
import msgspec.inspect as shapes
import pytest
from hypothesis import HealthCheck, given, settings
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


def _status(work: Callable[[], object]) -> int:
    try:
        work()
    except ApiError as error:
        return error.status
    return 200


_SCALARS = st.none() | st.booleans() | st.integers(-5, 500) | st.floats(-2, 3) | st.text(max_size=80) | st.just("auto")
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "a"]), inner, max_size=3),
    max_leaves=5,
)


def _wrong_now_and_then(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 14).flatmap(lambda dice: _JSON if dice == 0 else right)


def _object(shape: shapes.StructType) -> st.SearchStrategy[Any]:
    fields = {field.encode_name: _like(field.type) for field in shape.fields}
    if shape.tag_field is not None:
        fields[shape.tag_field] = _wrong_now_and_then(st.just(shape.tag))
    given = {name: fields[name] for name in fields}
    some = st.fixed_dictionaries({}, optional=given)
    return st.tuples(some, st.integers(0, 9)).map(lambda made: made[0] | ({"foo": 1} if made[1] == 0 else {}))


def _like(shape: shapes.Type) -> st.SearchStrategy[Any]:
    """JSON that is nearly what ``shape`` says, wrong in a place or two."""
    match shape:
        case shapes.UnionType(types=types):
            return st.one_of([_like(inner) for inner in types])
        case shapes.StructType():
            return _wrong_now_and_then(st.deferred(lambda: _object(shape)))
        case shapes.ListType(item_type=inner):
            return _wrong_now_and_then(st.lists(_like(inner), max_size=3))
        case shapes.DictType(key_type=shapes.StrType(max_length=int())):
            texts = st.sampled_from(["k", "k" * 64, "k" * 65, "é"])
            return _wrong_now_and_then(st.dictionaries(texts, _wrong_now_and_then(st.text(max_size=5)), max_size=3))
        case shapes.LiteralType(values=values):
            return _wrong_now_and_then(st.sampled_from(values))
        case shapes.StrType():
            return _wrong_now_and_then(st.sampled_from(["", "f", "n" * 64, "n" * 65, "two words", "é" * 513]))
        case shapes.IntType():
            return _wrong_now_and_then(st.sampled_from([-1, 0, 1, 50, 51, 255, 256]))
        case shapes.FloatType():
            return _wrong_now_and_then(st.sampled_from([-0.1, 0, 1, 1.1, 2, 2.1]))
        case shapes.BoolType():
            return _wrong_now_and_then(st.booleans())
        case shapes.NoneType():
            return st.none()
        case _:
            return _JSON


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), type=st.sampled_from(_TYPES))
def test_whatever_a_type_refuses_is_explained(data: st.DataObject, type: type[Any]) -> None:
    value = data.draw(_like(shapes.type_info(type)))
    body = msgspec.json.encode(value)
    try:
        msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as refused:
        why = str(refused)
    else:
        assert refusal.find(type, value) is None
        decode(body, type)
        return
    found = refusal.find(type, msgspec.json.decode(body))
    assert found is not None, f"nobody knows why {type.__name__} refuses {value!r}: {why}"
    assert found.status == 400
    assert found.code
    with pytest.raises(ApiError) as caught:
        decode(body, type)
    assert caught.value.message == found.message


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=200) | st.text().map(lambda text: f'{{"name":"{text}"}}'.encode()))
def test_whatever_is_sent_is_a_value_or_a_400(body: bytes) -> None:
    assert _status(lambda: decode(body, CreateThread)) in (200, 400)


@settings(max_examples=300, deadline=None)
@given(
    raw=st.binary(max_size=100) | st.from_regex(rb"(limit|order|after|before|include(\[\])?)=[^&]{0,9}(&limit=.{0,4})?")
)
def test_whatever_is_asked_is_a_page_or_a_400(raw: bytes) -> None:
    for parse in (query.page, query.include):
        assert _status(lambda: parse(raw)) in (200, 400)  # noqa: B023 - called at once


@pytest.mark.parametrize(
    ("items", "words"),
    [(["a"], "'a'"), (["a", "b"], "'a' and 'b'"), (["a", "b", "c"], "'a', 'b', and 'c'")],
)
def test_lists_of_values_in_words(items: list[str], words: str) -> None:
    assert refusal.not_one_of("p", "x", items).message == f"Invalid value: 'x'. Supported values are: {words}."
