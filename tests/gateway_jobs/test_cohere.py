"""Jobs of Cohere: data sets, whose results are Avro, and batches."""

import struct
from typing import Any

import openai
import pytest

from tests.gateway_jobs.test_avro import container, long, text
from tests.gateway_jobs.vendor import Asked, Said, Vendor, lines, read, route, told

pytestmark = pytest.mark.behaviour("TR-25")

KEY = "co-key-of-the-client-0123456789"
MODEL = "command-r7b-12-2024"
MOMENT, SECONDS = "2026-11-21T10:00:00Z", 1795255200


class Cohere(Vendor):
    """Data sets and batches."""

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, dict[str, Any]] = {}
        self.parts: dict[str, bytes] = {}
        self.batch: dict[str, Any] = {}

    def _routed(self, asked: Asked) -> Said:
        assert ("authorization" in asked.headers) != asked.path.startswith("/signed/")
        assert asked.headers.get("authorization") in (f"Bearer {KEY}", None)
        return super()._routed(asked)

    def keep(self, id: str, *parts: tuple[str, bytes], kind: str, **more: Any) -> None:
        """A data set."""
        told: list[dict[str, Any]] = []
        for index, (field, data) in enumerate(parts):
            self.parts[f"{id}-{index}"] = data
            url = f"{self.url}/signed/{id}-{index}"
            told.insert(0, {"id": f"p{index}", "name": "p", "index": index, "size_bytes": len(data), field: url})
        self.datasets[id] = {
            "id": id,
            "name": id,
            "created_at": MOMENT,
            "updated_at": MOMENT,
            "dataset_type": kind,
            "validation_status": "validated",
            "dataset_parts": told,
            **more,
        }

    @route(r"POST /v1/datasets")
    def create(self, asked: Asked) -> Said:
        boundary = asked.headers["content-type"].partition("boundary=")[2].encode()
        head, _, rest = asked.body.partition(b"\r\n\r\n")
        data = rest.rpartition(b"\r\n--" + boundary + b"--")[0]
        assert b'name="data"; filename="data.jsonl"' in head
        assert asked.query["keep_original_file"] == "true"
        named = {"name": asked.query["name"], "validation_status": "queued"}
        self.keep("ds-in", ("original_url", data), kind=asked.query["type"], **named)
        return told({"id": "ds-in"})

    @route(r"(GET|DELETE) /v1/datasets/(?P<id>[^/]+)")
    def one(self, asked: Asked, id: str) -> Said:
        if id not in self.datasets:
            return told({"message": f"dataset with id {id} not found"}, 404)
        if asked.method == "DELETE":
            del self.datasets[id]
            return told({})
        return told({"dataset": self.datasets[id]})

    @route(r"GET /v1/datasets")
    def all(self, asked: Asked) -> Said:
        at, size = int(asked.query["offset"]), int(asked.query["limit"])
        return told({"datasets": list(self.datasets.values())[at : at + size]})

    @route(r"GET /signed/(?P<id>.+)")
    def signed(self, asked: Asked, id: str) -> Said:
        return Said(200, self.parts[id], {"Content-Type": "application/octet-stream"})

    @route(r"POST /v2/batches")
    def start_batch(self, asked: Asked) -> Said:
        made = {"id": "b1", "status": "BATCH_STATUS_QUEUED", "created_at": MOMENT, "updated_at": MOMENT}
        self.batch = {**asked.json, **made}
        return told({"batch": self.batch})

    @route(r"GET /v2/batches/(?P<id>[^/]+)")
    def get(self, asked: Asked, id: str) -> Said:
        return told({"batch": self.batch}) if id == "b1" else told({"message": "batch not found"}, 404)

    @route(r"POST /v2/batches/(?P<id>[^/]+):cancel")
    def cancel(self, asked: Asked, id: str) -> Said:
        self.batch["status"] = "BATCH_STATUS_CANCELING"
        return told({})

    @route(r"GET /v2/batches")
    def batches(self, asked: Asked) -> Said:
        at = int(asked.query.get("page_token", "0"))
        page = [{**self.batch, "id": f"b{number}"} for number in (at, at + 1)]
        return told({"batches": page, **({"next_page_token": str(at + 2)} if at < 2 else {})})


@pytest.fixture
def cohere(start: Any) -> Cohere:
    return start(Cohere)


@pytest.fixture
def sdk(connect: Any, cohere: Cohere) -> openai.OpenAI:
    return connect("cohere", cohere.url, KEY)


def request(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def embedding(custom_id: str, input: Any, **body: Any) -> dict[str, Any]:
    body = {"model": "embed-v4.0", "input": input, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


def created(sdk: openai.OpenAI, file: str, **more: Any) -> Any:
    return sdk.batches.create(
        input_file_id=file,
        endpoint=more.pop("endpoint", "/v1/chat/completions"),
        completion_window="24h",
        extra_body={"model": MODEL, **more},
    )


def sent(cohere: Cohere) -> list[Any]:
    return read(cohere.parts["ds-in-0"])


MAYBE_TEXT = ["null", "string"]
TOKENS = {
    "type": "record",
    "name": "Tokens",
    "fields": [{"name": "input_tokens", "type": "double"}, {"name": "output_tokens", "type": "double"}],
}
PART = {
    "type": "record",
    "name": "Part",
    "fields": [{"name": "type", "type": "string"}, {"name": "text", "type": MAYBE_TEXT}],
}
CALL: Any = {
    "type": "record",
    "name": "Call",
    "fields": [{"name": "id", "type": "string"}],
}
MESSAGE = {
    "type": "record",
    "name": "Message",
    "fields": [
        {"name": "role", "type": "string"},
        {"name": "content", "type": ["null", {"type": "array", "items": PART}]},
        {"name": "tool_calls", "type": ["null", {"type": "array", "items": CALL}]},
    ],
}
BODY = {
    "type": "record",
    "name": "Body",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "finish_reason", "type": "string"},
        {"name": "message", "type": MESSAGE},
        {
            "name": "usage",
            "type": ["null", {"type": "record", "name": "Usage", "fields": [{"name": "tokens", "type": TOKENS}]}],
        },
    ],
}
ROW = {
    "type": "record",
    "name": "Row",
    "fields": [
        {"name": "custom_id", "type": "string"},
        {"name": "body", "type": ["null", BODY]},
        {"name": "error", "type": MAYBE_TEXT},
    ],
}


def answer(custom_id: str, said: str) -> bytes:
    content = long(1) + long(1) + text("text") + long(1) + text(said) + long(0)
    message = text("assistant") + content + long(0)
    usage = long(1) + struct.pack("<2d", 3, 2)
    return text(custom_id) + long(1) + text("c-1") + text("COMPLETE") + message + usage + long(0)


def refusal(custom_id: str, said: str) -> bytes:
    return text(custom_id) + long(0) + long(1) + text(said)


def test_a_batch_from_its_file_to_its_output(sdk: openai.OpenAI, cohere: Cohere) -> None:
    schema = {"type": "object", "properties": {}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    data = lines(
        request("a", "Hi", max_tokens=7, temperature=0.5, tools=[tool]),
        request("b", "Grüße", reasoning_effort="none"),
    )
    file = sdk.files.create(file=("ask me.jsonl", data), purpose="batch")
    assert (file.id, file.filename, file.purpose, file.status) == ("ds-in", "ask me.jsonl", "batch", "uploaded")
    assert cohere.datasets["ds-in"]["dataset_type"] == "batch-chat-v2-input"
    first, second = sent(cohere)
    assert first["custom_id"] == "a"
    assert first["body"]["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert (first["body"]["max_tokens"], first["body"]["temperature"]) == (7, 0.5)
    assert first["body"]["tools"][0]["function"]["parameters"] == '{"type":"object","properties":{}}'
    assert "model" not in first["body"]
    assert second["body"]["reasoning"] is False
    assert file.bytes == len(cohere.parts["ds-in-0"])

    batch = created(sdk, "ds-in", job_name="nightly")
    assert cohere.asked[-1].json == {"name": "nightly", "input_dataset_id": "ds-in", "model": MODEL}
    assert (batch.id, batch.status, batch.model, batch.created_at) == ("b1", "validating", MODEL, SECONDS)

    parts = [container(ROW, [answer("a", "Hello")]), container(ROW, [refusal("b", "too long")], codec="deflate")]
    cohere.keep("ds-out", *(("url", part) for part in parts), kind="batch-chat-v2-output")
    cohere.batch |= {
        "status": "BATCH_STATUS_COMPLETED",
        "output_dataset_id": "ds-out",
        "num_records": 2,
        "num_successful_records": "1",
        "num_failed_records": "1",
    }
    batch = sdk.batches.retrieve("b1")
    assert (batch.status, batch.completed_at, batch.output_file_id) == ("completed", SECONDS, "ds-out")
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
    good, bad = read(sdk.get("/batches/b1/output", cast_to=bytes))
    assert (good["custom_id"], good["error"], good["response"]["status_code"]) == ("a", None, 200)
    body = good["response"]["body"]
    assert (body["model"], body["usage"]["total_tokens"]) == (MODEL, 5)
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert (bad["custom_id"], bad["response"], bad["error"]["message"]) == ("b", None, "too long")
    assert sdk.files.retrieve("ds-out").purpose == "batch_output"


def test_embeddings(sdk: openai.OpenAI, cohere: Cohere) -> None:
    data = lines(embedding("a", "Hi"), embedding("b", ["x", "y"], input_type="search_query", truncate="END"))
    sdk.files.create(file=("a.jsonl", data), purpose="batch")
    assert cohere.datasets["ds-in"]["dataset_type"] == "batch-embed-v2-input"
    assert sent(cohere) == [
        {
            "custom_id": "a",
            "body": {"texts": ["Hi"], "input_type": "search_document", "embedding_types": ["float"]},
        },
        {
            "custom_id": "b",
            "body": {
                "texts": ["x", "y"],
                "input_type": "search_query",
                "embedding_types": ["float"],
                "truncate": "END",
            },
        },
    ]
    assert created(sdk, "ds-in", model="embed-v4.0", endpoint="/v1/embeddings").endpoint == "/v1/embeddings"
    vectors = {"type": "array", "items": {"type": "array", "items": "double"}}
    inner = {"type": "record", "name": "E", "fields": [{"name": "float", "type": vectors}]}
    embedded = {"type": "record", "name": "B", "fields": [{"name": "embeddings", "type": inner}]}
    named = [{"name": "custom_id", "type": "string"}, {"name": "body", "type": embedded}]
    row = text("a") + long(1) + long(2) + struct.pack("<2d", 0.5, 1.0) + long(0) + long(0)
    made = container({"type": "record", "name": "R", "fields": named}, [row])
    cohere.keep("ds-out", ("url", made), kind="batch-embed-v2-output")
    cohere.batch |= {"status": "BATCH_STATUS_COMPLETED", "output_dataset_id": "ds-out"}
    (found,) = read(sdk.get("/batches/b1/output", cast_to=bytes))
    assert found["response"]["body"]["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}]
    assert found["response"]["body"]["model"] == "embed-v4.0"


def test_a_file_s_life(sdk: openai.OpenAI, cohere: Cohere) -> None:
    sdk.files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch")
    assert sdk.files.content("ds-in").content == cohere.parts["ds-in-0"]
    found = sdk.files.retrieve("ds-in")
    assert (found.bytes, found.created_at, found.status) == (len(cohere.parts["ds-in-0"]), SECONDS, "uploaded")
    cohere.datasets["ds-in"] |= {"validation_status": "failed", "validation_error": "row 1"}
    found = sdk.files.retrieve("ds-in")
    assert (found.status, found.status_details) == ("error", "row 1")
    for number in range(150):
        cohere.keep(f"ds-{number}", kind="embed-input")
    assert len(list(sdk.files.list(limit=60))) == 151
    with pytest.raises(openai.NotFoundError, match="no content"):
        sdk.files.content("ds-7")
    assert sdk.files.delete("ds-in").deleted
    for call in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError, match="not found"):
            call("ds-in")


def test_rows_that_are_no_results(sdk: openai.OpenAI, cohere: Cohere) -> None:
    plain = {"type": "record", "name": "T", "fields": [{"name": "text", "type": "string"}]}
    cohere.keep("ds-out", ("url", container(plain, [text("a"), text("b")])), kind="embed-input")
    assert read(sdk.files.content("ds-out").content) == [{"text": "a"}, {"text": "b"}]
    cohere.keep("ds-bad", ("url", b"<html>"), kind="embed-input")
    with pytest.raises(openai.APIConnectionError):  # it broke after the answer had begun
        sdk.files.content("ds-bad")


STATUSES = [
    ("BATCH_STATUS_UNSPECIFIED", "validating"),
    ("BATCH_STATUS_QUEUED", "validating"),
    ("BATCH_STATUS_IN_PROGRESS", "in_progress"),
    ("BATCH_STATUS_CANCELING", "cancelling"),
    ("BATCH_STATUS_COMPLETED", "completed"),
    ("BATCH_STATUS_FAILED", "failed"),
    ("BATCH_STATUS_CANCELED", "cancelled"),
]


@pytest.mark.parametrize(("theirs", "ours"), STATUSES)
def test_statuses(sdk: openai.OpenAI, cohere: Cohere, theirs: str, ours: str) -> None:
    cohere.batch = {"id": "b1", "status": theirs, "status_reason": "why", "updated_at": MOMENT}
    found = sdk.batches.retrieve("b1")
    assert found.status == ours
    assert (found.errors is not None) == (ours == "failed")
    assert (found.failed_at, found.cancelled_at) == (
        SECONDS if ours == "failed" else None,
        SECONDS if ours == "cancelled" else None,
    )


def test_batches_are_listed_and_cancelled(sdk: openai.OpenAI) -> None:
    created(sdk, "ds-in")
    assert [one.id for one in sdk.batches.list(limit=3)] == ["b0", "b1", "b2", "b3"]
    assert sdk.batches.cancel("b1").status == "cancelling"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": None}, "model"),
        ({"input_file_id": "a/b"}, "input_file_id"),
        ({"endpoint": "/v1/completions"}, "endpoint"),
        ({"completion_window": "48h"}, "completion_window"),
        ({"metadata": {"a": "b"}}, "metadata"),
    ],
)
def test_batches_that_cohere_cannot_make(sdk: openai.OpenAI, cohere: Cohere, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        created(sdk, "ds-in", **more)
    assert caught.value.param == param
    assert cohere.asked == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (request("a", "Hi", stop=["x"]), "stop_sequences"),
        (request("a", "Hi", response_format={"type": "json_object"}), "response_format"),
        (embedding("a", "Hi"), "a file has one kind"),
        ({**request("a", "Hi"), "url": "/v1/responses"}, "expected POST"),
    ],
)
def test_lines_that_cohere_has_no_place_for(sdk: openai.OpenAI, cohere: Cohere, line: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match="Line 2 of the file") as caught:
        sdk.files.create(file=("a.jsonl", lines(request("x", "Hi"), line)), purpose="batch")
    assert said in caught.value.message
    assert cohere.asked == []


def test_lines_of_embeddings_that_cohere_has_no_place_for(sdk: openai.OpenAI, cohere: Cohere) -> None:
    for body in ({"dimensions": 256}, {"encoding_format": "base64"}):
        with pytest.raises(openai.BadRequestError, match=next(iter(body))):
            sdk.files.create(file=("a.jsonl", lines(embedding("a", "Hi", **body))), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="at least one line"):
        sdk.files.create(file=("a.jsonl", b"\n"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        sdk.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune")
    assert cohere.asked == []


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (400, openai.BadRequestError, "invalid request"),
        (401, openai.AuthenticationError, "invalid api token"),
        (404, openai.NotFoundError, "not found"),
        (429, openai.RateLimitError, "trial key"),
    ],
)
def test_errors(sdk: openai.OpenAI, cohere: Cohere, status: int, kind: Any, words: str) -> None:
    cohere.refusal = told({"message": words}, status)
    for call in (
        lambda: sdk.files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch"),
        lambda: sdk.files.retrieve("a"),
        lambda: sdk.files.content("a"),
        lambda: sdk.files.delete("a"),
        lambda: created(sdk, "a"),
        lambda: sdk.batches.cancel("b1"),
        sdk.batches.list,
    ):
        with pytest.raises(kind, match=words):
            call()


def test_fine_tuning_is_not_offered(sdk: openai.OpenAI, cohere: Cohere) -> None:
    with pytest.raises(openai.InternalServerError, match="createFinetune is not supported by cohere") as caught:
        sdk.fine_tuning.jobs.create(model=MODEL, training_file="ds-in")
    assert caught.value.code == "unsupported_endpoint"
    assert cohere.asked == []
