"""Lists over HTTP: pages, cursors, parameters (BEHAVIOUR LIST)."""

from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.server import Client

_EMPTY = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.fixture
def messages(client: Client) -> tuple[str, list[str]]:
    """The path of a list of seven messages, made in the same second or so, and their ids in order."""
    thread = client.thread(*"abc")
    path = f"/threads/{thread['id']}/messages"
    for text in "defg":
        client.post(path, {"role": "user", "content": text})
    found = client.get(path + "?order=asc")["data"]
    assert "".join(message["content"][0]["text"]["value"] for message in found) == "abcdefg"
    return path, [message["id"] for message in found]


def _page(client: Client, path: str, **query: object) -> tuple[list[str], bool]:
    found = client.get(f"{path}?{urlencode(query)}")
    return [item["id"] for item in found["data"]], found["has_more"]


@pytest.mark.behaviour("LIST-01", "LIST-04")
def test_empty_lists(client: Client) -> None:
    thread = client.thread()["id"]
    for path in ("/assistants", f"/threads/{thread}/messages", f"/threads/{thread}/runs"):
        assert client.get(path) == _EMPTY


@pytest.mark.behaviour("LIST-02", "LIST-03")
def test_the_defaults(client: Client) -> None:
    ids = [client.assistant(name=str(n))["id"] for n in range(21)]
    found = client.get("/assistants")
    assert [item["id"] for item in found["data"]] == ids[:0:-1]
    assert found["has_more"] is True
    assert _page(client, "/assistants", limit=100, order="asc") == (ids, False)


@pytest.mark.behaviour("LIST-05", "LIST-06", "LIST-07", "LIST-11", "LIST-19")
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_paging_by_after_sees_everything_once(
    client: Client, messages: tuple[str, list[str]], order: str, limit: int
) -> None:
    path, ids = messages
    expected = ids if order == "asc" else ids[::-1]
    seen: list[str] = []
    query: dict[str, Any] = {"order": order, "limit": limit}
    while True:
        page, more = _page(client, path, **query)
        assert page == expected[len(seen) : len(seen) + limit]
        seen += page
        assert more == (len(seen) < len(expected))
        if not more:
            break
        query["after"] = page[-1]
    assert seen == expected
    assert _page(client, path, order=order, after=seen[-1]) == ([], False)


@pytest.mark.behaviour("LIST-08", "LIST-09", "LIST-24")
def test_before_gives_the_nearest(client: Client, messages: tuple[str, list[str]]) -> None:
    path, ids = messages
    assert _page(client, path, order="asc", before=ids[5], limit=2) == (ids[3:5], True)
    assert _page(client, path, order="asc", before=ids[5]) == (ids[:5], False)
    assert _page(client, path, before=ids[1], limit=2) == ([ids[3], ids[2]], True)
    assert _page(client, path, before=ids[5]) == ([ids[6]], False)
    assert _page(client, path, order="asc", before=ids[0]) == ([], False)


@pytest.mark.behaviour("LIST-10")
def test_after_and_before_together(client: Client, messages: tuple[str, list[str]]) -> None:
    path, ids = messages
    assert _page(client, path, order="asc", after=ids[1], before=ids[5]) == (ids[2:5], False)
    assert _page(client, path, order="asc", after=ids[1], before=ids[5], limit=2) == (ids[2:4], True)
    assert _page(client, path, after=ids[5], before=ids[1], limit=1) == ([ids[4]], True)


@pytest.mark.behaviour("LIST-12")
def test_inserts_do_not_shift_later_pages(client: Client, messages: tuple[str, list[str]]) -> None:
    path, ids = messages
    first, _ = _page(client, path, limit=3)
    client.post(path, {"role": "user", "content": "new"})
    assert _page(client, path, limit=3, after=first[-1])[0] == ids[3:0:-1]


@pytest.mark.behaviour("LIST-13")
@pytest.mark.parametrize("name", ["after", "before"])
def test_cursors_of_elsewhere(client: Client, messages: tuple[str, list[str]], name: str) -> None:
    path, _ = messages
    other = client.get(f"/threads/{client.thread('x')['id']}/messages")["data"][0]["id"]
    for cursor in ("msg_unknown", other, "é", "'; drop table"):
        error = client.get(f"{path}?{urlencode({name: cursor})}", status=400)
        assert (error["param"], error["code"]) == (name, "invalid_value")


@pytest.mark.behaviour("LIST-14", "LIST-15", "LIST-16", "LIM-36")
@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=101", "limit", "integer_above_max_value"),
        ("limit=" + "9" * 5000, "limit", "integer_above_max_value"),
        ("limit=0", "limit", "integer_below_min_value"),
        ("limit=-1", "limit", "integer_below_min_value"),
        ("limit=abc", "limit", "invalid_type"),
        ("limit=", "limit", "invalid_type"),
        ("limit=1.5", "limit", "invalid_type"),
        ("limit=%EF%BC%91", "limit", "invalid_type"),  # a full-width digit
        ("order=foo", "order", "invalid_value"),
        ("order=", "order", "invalid_value"),
    ],
)
def test_wrong_parameters(client: Client, query: str, param: str, code: str) -> None:
    thread = client.thread()["id"]
    for path in ("/assistants", "/threads", f"/threads/{thread}/messages", f"/threads/{thread}/runs"):
        error = client.get(f"{path}?{query}", status=400)
        assert (error["param"], error["code"]) == (param, code)


@pytest.mark.behaviour("LIST-14", "LIST-15")
def test_the_words_for_limits(client: Client) -> None:
    assert client.get("/assistants?limit=101", status=400)["message"] == (
        "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead."
    )
    assert client.get("/assistants?limit=0", status=400)["message"] == (
        "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 instead."
    )


@pytest.mark.behaviour("CONV-09", "LIST-16", "V1-05")
def test_empty_cursors_and_unknown_parameters_are_ignored(client: Client, messages: tuple[str, list[str]]) -> None:
    path, ids = messages
    query = "?after=&before=&order=%61sc&assistant_id=asst_x&foo=bar&limit=007"
    assert [item["id"] for item in client.get(path + query)["data"]] == ids


@pytest.mark.behaviour("LIST-17", "LIST-18")
def test_messages_of_a_run(client: Client, messages: tuple[str, list[str]]) -> None:
    path, ids = messages
    assert client.get(path + "?run_id=run_unknown") == _EMPTY
    assert len(client.get(path + "?run_id=")["data"]) == len(ids)


@pytest.mark.behaviour("LIST-23", "ERR-20", "ERR-22")
def test_lists_of_unknown_parents(client: Client) -> None:
    thread = client.thread()["id"]
    for path in ("/threads/thread_x/messages", "/threads/thread_x/runs", "/threads/thread_x/runs/run_x/steps"):
        assert client.get(path, status=404)["message"] == "No thread found with id 'thread_x'."
    assert client.get(f"/threads/{thread}/runs/run_x/steps", status=404)["message"] == "No run found with id 'run_x'."
