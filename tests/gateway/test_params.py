"""What a target changes about a body, and that it leaves everything else alone."""

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.gateway.call import Effective
from loomgate.gateway.params import apply

keys = st.sampled_from("abcd")
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.floats(0, 1) | st.sampled_from(["x", "y"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(keys, values, max_size=4)
step = st.sampled_from(["", "[0]", "[1]", "[*]", "[0][1]"])
paths = st.lists(st.tuples(keys, step).map("".join), min_size=1, max_size=3).map(".".join)


@pytest.mark.behaviour("CFG-17")
def test_defaults_fill_what_is_missing_and_nothing_else() -> None:
    effective = Effective(default_params={"user": "u", "temperature": 1})
    assert apply({"temperature": 0, "user": None}, effective) == {"temperature": 0, "user": None}
    assert apply({}, effective) == {"user": "u", "temperature": 1}


@pytest.mark.behaviour("CFG-16", "CFG-37")
def test_overrides_replace_whole_members() -> None:
    effective = Effective(override_params={"metadata": {"b": 1}, "model": "m"})
    assert apply({"metadata": {"a": 1}, "model": "x", "n": 1}, effective) == {
        "metadata": {"b": 1},
        "model": "m",
        "n": 1,
    }


@pytest.mark.behaviour("CFG-18")
@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("a", {"b": [{"c": 1, "d": 2}, {"c": 3}], "e": {"f": {"g": 1}}}),
        ("e.f", {"a": 1, "b": [{"c": 1, "d": 2}, {"c": 3}], "e": {}}),
        ("e.f.g", {"a": 1, "b": [{"c": 1, "d": 2}, {"c": 3}], "e": {"f": {}}}),
        ("b[0].c", {"a": 1, "b": [{"d": 2}, {"c": 3}], "e": {"f": {"g": 1}}}),
        ("b[*].c", {"a": 1, "b": [{"d": 2}, {}], "e": {"f": {"g": 1}}}),
        ("b[1]", {"a": 1, "b": [{"c": 1, "d": 2}], "e": {"f": {"g": 1}}}),
        ("b[*]", {"a": 1, "b": [], "e": {"f": {"g": 1}}}),
    ],
)
def test_paths_are_dropped(path: str, left: dict[str, Any]) -> None:
    body = {"a": 1, "b": [{"c": 1, "d": 2}, {"c": 3}], "e": {"f": {"g": 1}}}
    assert apply(body, Effective(drop_params=(path,))) == left


@pytest.mark.behaviour("CFG-18")
@pytest.mark.parametrize("path", ["z", "a.b", "b[7]", "b[7].c", "b.c", "b[*].z", "e[0]", "e[*].f", "a[0][0]", "e.z.f"])
def test_paths_that_lead_nowhere_are_ignored_and_the_very_body_comes_back(path: str) -> None:
    body = {"a": 1, "b": [{"c": 1, "d": 2}, {"c": 3}], "e": {"f": {"g": 1}}}
    assert apply(body, Effective(drop_params=(path,))) is body


@pytest.mark.behaviour("CFG-36")
def test_the_order_is_default_override_drop() -> None:
    effective = Effective(default_params={"a": 1, "b": 1}, override_params={"b": 2, "c": 2}, drop_params=("c",))
    assert apply({}, effective) == {"a": 1, "b": 2}


def test_a_body_that_has_the_overrides_already_comes_back_itself() -> None:
    body = {"model": "m", "temperature": 1, "stream": True}
    assert apply(body, Effective(override_params={"model": "m", "temperature": 1, "stream": True})) is body
    # In JSON these are other values than those that the body has.
    assert apply(body, Effective(override_params={"temperature": 1.0})) is not body
    assert apply(body, Effective(override_params={"temperature": True}))["temperature"] is True
    assert apply(body, Effective(override_params={"user": None})) == {**body, "user": None}


def test_nothing_to_do_gives_the_same_object() -> None:
    body: dict[str, Any] = {"a": 1}
    assert apply(body, Effective()) is body


def removed(value: Any, path: list[str | int]) -> Any:
    """Drop by another way: mark, then sweep."""
    gone = object()

    def mark(value: Any, path: list[str | int]) -> Any:
        if not path:
            return gone
        head, *rest = path
        if isinstance(value, dict) and isinstance(head, str) and head != "*":
            return {k: mark(v, rest) if k == head else v for k, v in value.items()}
        if isinstance(value, list) and (head == "*" or isinstance(head, int)):
            return [mark(v, rest) if head in ("*", i) else v for i, v in enumerate(value)]
        return value

    def sweep(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: sweep(v) for k, v in value.items() if v is not gone}
        if isinstance(value, list):
            return [sweep(v) for v in value if v is not gone]
        return value

    return sweep(mark(value, path))


def split(path: str) -> list[str | int]:
    found: list[str | int] = []
    for part in path.replace("[", ".").replace("]", "").split("."):
        found.append(int(part) if part.isdigit() else part)
    return found


@pytest.mark.behaviour("CFG-16", "CFG-17", "CFG-18", "CFG-36")
@given(bodies, bodies, bodies, st.lists(paths, max_size=3))
def test_params_equal_the_model_and_never_change_what_came_in(
    body: dict[str, Any], default: dict[str, Any], override: dict[str, Any], drop: list[str]
) -> None:
    before = copy.deepcopy((body, default, override))
    result = apply(body, Effective(default_params=default, override_params=override, drop_params=tuple(drop)))
    expected: Any = {**default, **body, **override}
    for path in drop:
        expected = removed(expected, split(path))
    encode = msgspec.json.Encoder(order="deterministic").encode
    assert encode(result) == encode(expected)
    assert encode(before) == encode((body, default, override))
