"""Jobs of Vertex AI: objects in Cloud Storage, batch prediction jobs, tuning jobs."""

import json
from typing import Any
from urllib.parse import quote, unquote

import openai
import pytest

from tests.gateway_jobs.vendor import Asked, Said, Vendor, lines, read, route, told

pytestmark = pytest.mark.behaviour("TR-25")

TOKEN = "ya29-token-of-the-client-0123456789"
PLACE = "/v1/projects/my-project/locations/europe-west4"
JOB = "projects/1234/locations/europe-west4/batchPredictionJobs/77"
TUNING = "projects/1234/locations/europe-west4/tuningJobs/88"
MODEL, CLAUDE = "gemini-2.0-flash", "anthropic.claude-sonnet-4@20250514"
MOMENT, SECONDS = "2026-11-21T10:00:00.123456Z", 1795255200


def error(code: int, message: str, status: str) -> Said:
    """As Google says it."""
    return told({"error": {"code": code, "message": message, "status": status}}, code)


class Google(Vendor):
    """Both services at one address."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, dict[str, Any]] = {}
        self.content: dict[str, bytes] = {}
        self.sessions: dict[str, tuple[str, dict[str, Any], bytearray]] = {}
        self.slow = 0  # bytes of a part that are taken at first
        self.jobs: dict[str, dict[str, Any]] = {}

    def _routed(self, asked: Asked) -> Said:
        assert asked.headers["authorization"] == f"Bearer {TOKEN}"
        return super()._routed(asked)

    def keep(self, key: str, content: bytes, **more: Any) -> dict[str, Any]:
        """An object."""
        self.content[key] = content
        told = {"kind": "storage#object", "name": key, "bucket": "my-bucket", "size": str(len(content))}
        self.objects[key] = {**told, "timeCreated": MOMENT, **more}
        return self.objects[key]

    @route(r"POST /upload/storage/v1/b/my-bucket/o")
    def begin(self, asked: Asked) -> Said:
        assert asked.query["uploadType"] == "resumable"
        assert asked.headers["x-upload-content-type"] == "application/jsonl"
        id = f"s{len(self.sessions)}"
        self.sessions[id] = asked.query["name"], asked.json, bytearray()
        where = f"{self.url}/upload/storage/v1/b/my-bucket/o?uploadType=resumable&upload_id={id}"
        return Said(200, b"", {"Location": where})

    @route(r"(PUT|DELETE) /upload/storage/v1/b/my-bucket/o")
    def more(self, asked: Asked) -> Said:
        name, described, data = self.sessions[asked.query["upload_id"]]
        if asked.method == "DELETE":
            del self.sessions[asked.query["upload_id"]]
            return Said(499)
        which, _, total = asked.headers["content-range"].removeprefix("bytes ").partition("/")
        if which != "*":
            start, _, end = which.partition("-")
            assert int(start) == len(data)
            assert int(end) + 1 - int(start) == len(asked.body)
            assert total != "*" or len(asked.body) % (256 * 1024) == 0
        taken = asked.body[: self.slow] if self.slow and total == "*" else asked.body
        self.slow = 0
        data += taken
        if total == "*" or len(data) < int(total):
            return Said(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
        del self.sessions[asked.query["upload_id"]]
        return told(self.keep(name, bytes(data), **described))

    @route(r"(GET|DELETE) /storage/v1/b/my-bucket/o/(?P<key>[^/]+)")
    def object(self, asked: Asked, key: str) -> Said:
        found = self.objects.get(unquote(key))
        if found is None and asked.query.get("alt") == "media":
            return Said(404, f"No such object: my-bucket/{unquote(key)}".encode(), {"Content-Type": "text/html"})
        if found is None:
            return error(404, f"No such object: my-bucket/{unquote(key)}", "NOT_FOUND")
        if asked.method == "DELETE":
            del self.objects[unquote(key)]
            return Said(204)
        if asked.query.get("alt") == "media":
            return Said(200, self.content[unquote(key)], {"Content-Type": "application/jsonl"})
        return told(found)

    @route(r"GET /storage/v1/b/my-bucket/o")
    def list(self, asked: Asked) -> Said:
        at = int(asked.query.get("pageToken", "0"))
        found = sorted(self.objects)
        more = {"nextPageToken": str(at + 2)} if at + 2 < len(found) else {}
        return told({"items": [self.objects[key] for key in found[at : at + 2]], **more})

    @route("POST " + PLACE + r"/(?P<kind>batchPredictionJobs|tuningJobs)")
    def create(self, asked: Asked, kind: str) -> Said:
        name, state = (JOB, "JOB_STATE_PENDING") if kind[0] == "b" else (TUNING, "JOB_STATE_QUEUED")
        self.jobs[kind] = {**asked.json, "name": name, "state": state, "createTime": MOMENT, "updateTime": MOMENT}
        return told(self.jobs[kind])

    @route("GET " + PLACE + r"/(?P<kind>batchPredictionJobs|tuningJobs)/(?P<id>\d+)")
    def one(self, asked: Asked, kind: str, id: str) -> Said:
        if id not in ("77", "88"):
            return error(404, "The job does not exist.", "NOT_FOUND")
        return told(self.jobs[kind])

    @route("POST " + PLACE + r"/(?P<kind>batchPredictionJobs|tuningJobs)/(?P<id>\d+):cancel")
    def cancel(self, asked: Asked, kind: str, id: str) -> Said:
        assert asked.json == {}
        self.jobs[kind]["state"] = "JOB_STATE_CANCELLING"
        return told({})

    @route("GET " + PLACE + r"/(?P<kind>batchPredictionJobs|tuningJobs)")
    def all(self, asked: Asked, kind: str) -> Said:
        assert asked.query["pageSize"] == "100"
        at = int(asked.query.get("pageToken", "0"))
        page = [{**self.jobs[kind], "name": f"{JOB}{number}"} for number in range(at, at + 2)]
        return told({kind: page, **({"nextPageToken": str(at + 2)} if at < 2 else {})})


@pytest.fixture
def google(start: Any) -> Google:
    return start(Google)


@pytest.fixture
def sdk(connect: Any, google: Google) -> openai.OpenAI:
    return client(connect, google)


def client(connect: Any, google: Google, **more: str) -> openai.OpenAI:
    place = {"vertex_project_id": "my-project", "vertex_region": "europe-west4"}
    return connect("vertex-ai", google.url, TOKEN, **{**place, "vertex_storage_bucket_name": "my-bucket", **more})


def request(custom_id: str, text: str, model: str | None = MODEL, **body: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **body}
    body = {name: value for name, value in body.items() if value is not None}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def created(sdk: openai.OpenAI, file: str, **more: Any) -> Any:
    return sdk.batches.create(
        input_file_id=file,
        endpoint=more.pop("endpoint", "/v1/chat/completions"),
        completion_window="24h",
        extra_body={"model": MODEL, **more},
    )


def finished(google: Google, rows: bytes, **more: Any) -> None:
    """The job is done."""
    google.keep("in/prediction-model-2026/predictions.jsonl", rows)
    google.jobs["batchPredictionJobs"] |= {
        "state": "JOB_STATE_SUCCEEDED",
        "startTime": MOMENT,
        "endTime": MOMENT,
        "outputInfo": {"gcsOutputDirectory": "gs://my-bucket/in/prediction-model-2026"},
        "completionStats": {"successfulCount": "1", "failedCount": "1"},
        **more,
    }


def test_a_batch_from_its_file_to_its_output(connect: Any, google: Google) -> None:
    sdk = client(connect, google, provider_file_name="in/mine.jsonl")
    data = lines(request("a", "Hi", max_tokens=7), request("b", "Grüße"))
    file = sdk.files.create(file=("ask me.jsonl", data), purpose="batch")
    assert unquote(file.id) == "gs://my-bucket/in/mine.jsonl"
    stored = read(google.content["in/mine.jsonl"])
    assert stored[0] == {
        "requestId": "a",
        "request": {
            "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
            "generationConfig": {"maxOutputTokens": 7},
        },
    }
    size = len(google.content["in/mine.jsonl"])
    assert (file.bytes, file.filename, file.purpose, file.created_at) == (size, "ask me.jsonl", "batch", SECONDS)

    batch = created(sdk, file.id, metadata={"team": "a"})
    assert google.asked[-1].json == {
        "displayName": google.jobs["batchPredictionJobs"]["displayName"],
        "model": "publishers/google/models/gemini-2.0-flash",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://my-bucket/in/mine.jsonl"]}},
        "outputConfig": {
            "predictionsFormat": "jsonl",
            "gcsDestination": {"outputUriPrefix": "gs://my-bucket/in/"},
        },
        "instanceConfig": {"instanceType": "object", "excludedFields": ["requestId"]},
        "labels": {"team": "a"},
    }
    assert (batch.id, batch.status, batch.input_file_id) == ("77", "validating", file.id)
    assert (batch.metadata, batch.model, batch.output_file_id) == ({"team": "a"}, MODEL, None)

    answer = {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
        "modelVersion": "gemini-2.0-flash-001",
        "responseId": "r1",
    }
    rows = [
        {"status": "", "processed_time": MOMENT, **stored[0], "response": answer},
        {"status": "Bad Request: no.", "processed_time": MOMENT, **stored[1], "response": {}},
    ]
    finished(google, lines(*rows))
    batch = sdk.batches.retrieve("77")
    assert (batch.status, batch.completed_at, batch.in_progress_at) == ("completed", SECONDS, SECONDS)
    assert unquote(batch.output_file_id or "") == "gs://my-bucket/in/prediction-model-2026/predictions.jsonl"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
    good, bad = read(sdk.get("/batches/77/output", cast_to=bytes))
    assert (good["custom_id"], good["error"], good["response"]["status_code"]) == ("a", None, 200)
    body = good["response"]["body"]
    assert (body["model"], body["usage"]["total_tokens"]) == ("gemini-2.0-flash-001", 5)
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert (bad["custom_id"], bad["response"], bad["error"]["message"]) == ("b", None, "Bad Request: no.")


def test_claude(sdk: openai.OpenAI, google: Google) -> None:
    file = sdk.files.create(file=("a.jsonl", lines(request("a", "Hi", CLAUDE, max_tokens=9))), purpose="batch")
    ((stored,),) = [read(content) for content in google.content.values()]
    assert stored["custom_id"] == "a"
    assert stored["request"]["anthropic_version"] == "vertex-2023-10-16"
    assert stored["request"]["max_tokens"] == 9
    assert not {"model", "stream"} & set(stored["request"]) or stored["request"].get("stream") is False
    batch = created(sdk, file.id, model=CLAUDE)
    sent = google.asked[-1].json
    assert sent["model"] == "publishers/anthropic/models/claude-sonnet-4@20250514"
    assert "instanceConfig" not in sent
    assert batch.model == CLAUDE
    answer = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    finished(google, lines({**stored, "response": answer, "status": ""}))
    (row,) = read(sdk.get("/batches/77/output", cast_to=bytes))
    assert (row["custom_id"], row["response"]["body"]["choices"][0]["message"]["content"]) == ("a", "Hello")


def test_embeddings(sdk: openai.OpenAI, google: Google) -> None:
    model = "text-embedding-005"
    row = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": model, "input": "Hi"}}
    file = sdk.files.create(file=("a.jsonl", lines(row)), purpose="batch")
    ((stored,),) = [read(content) for content in google.content.values()]
    assert stored == {"content": "Hi", "requestId": "a"}
    created(sdk, file.id, model=model, endpoint="/v1/embeddings")
    predicted = [{"embeddings": {"values": [0.5, 1.0], "statistics": {"token_count": 2, "truncated": False}}}]
    done = {"instance": {"content": "Hi"}, "requestId": "a", "predictions": predicted, "status": ""}
    finished(google, b"")
    google.keep("in/prediction-model-2026/000000000000.jsonl", lines(done))
    batch = sdk.batches.retrieve("77")
    assert (batch.endpoint, batch.model) == ("/v1/embeddings", model)
    (found,) = read(sdk.get("/batches/77/output", cast_to=bytes))
    assert found["custom_id"] == "a"
    assert found["response"]["body"]["data"][0]["embedding"] == [0.5, 1.0]
    assert (found["response"]["body"]["model"], found["response"]["body"]["usage"]["total_tokens"]) == (model, 2)


def test_a_file_s_life(sdk: openai.OpenAI, google: Google) -> None:
    made = sdk.files.create(file=("ü.jsonl", lines(request("a", "Hi"))), purpose="batch")
    assert sdk.files.retrieve(made.id) == made
    assert sdk.files.content(made.id).content == next(iter(google.content.values()))
    google.keep("a", b"x")
    google.keep("b", b"x")
    assert {file.filename for file in sdk.files.list(limit=2)} == {"ü.jsonl", "a", "b"}
    assert sdk.files.delete(made.id).deleted
    for call in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such object"):
            call(made.id)


@pytest.mark.parametrize("slow", [0, 1 << 20])
def test_a_large_file_goes_up_in_parts(sdk: openai.OpenAI, google: Google, slow: int) -> None:
    google.slow = slow
    data = lines(*(request(str(number), "x" * 10_000) for number in range(2000)))
    made = sdk.files.create(file=("large.jsonl", data), purpose="batch")
    (stored,) = google.content.values()
    assert len(stored) == made.bytes > 16 << 20
    assert [row["requestId"] for row in read(stored)] == [str(number) for number in range(2000)]
    assert len([asked for asked in google.asked if asked.method == "PUT"]) == (4 if slow else 3)


def test_an_upload_that_fails_leaves_nothing(sdk: openai.OpenAI, google: Google) -> None:
    data = lines(*(request(str(number), "x" * 10_000) for number in range(1000)), {"custom_id": "z", "url": "/v1/x"})
    with pytest.raises(openai.BadRequestError, match="Line 1001 of the file"):
        sdk.files.create(file=("large.jsonl", data), purpose="batch")
    assert (google.sessions, google.objects) == ({}, {})


def test_an_upload_that_would_go_on_elsewhere(sdk: openai.OpenAI, google: Google) -> None:
    google.refusal = Said(200, b"", {"Location": "http://evil.example/upload?upload_id=1"})
    with pytest.raises(openai.InternalServerError, match="where it goes on"):
        sdk.files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch")
    assert len(google.asked) == 1


def test_an_empty_file(sdk: openai.OpenAI, google: Google) -> None:
    assert sdk.files.create(file=("a.jsonl", b""), purpose="batch").bytes == 0
    assert google.asked[-1].headers["content-range"] == "bytes */0"


STATES = [
    ("JOB_STATE_UNSPECIFIED", "validating", "queued"),
    ("JOB_STATE_QUEUED", "validating", "queued"),
    ("JOB_STATE_PENDING", "validating", "queued"),
    ("JOB_STATE_PAUSED", "validating", "queued"),
    ("JOB_STATE_RUNNING", "in_progress", "running"),
    ("JOB_STATE_UPDATING", "in_progress", "running"),
    ("JOB_STATE_SUCCEEDED", "completed", "succeeded"),
    ("JOB_STATE_PARTIALLY_SUCCEEDED", "completed", "succeeded"),
    ("JOB_STATE_FAILED", "failed", "failed"),
    ("JOB_STATE_CANCELLING", "cancelling", "running"),
    ("JOB_STATE_CANCELLED", "cancelled", "cancelled"),
    ("JOB_STATE_EXPIRED", "expired", "failed"),
    ("JOB_STATE_NEW", "in_progress", "running"),
]


@pytest.mark.parametrize(("theirs", "batch", "tuning"), STATES)
def test_statuses(sdk: openai.OpenAI, google: Google, theirs: str, batch: str, tuning: str) -> None:
    job = {"name": JOB, "state": theirs, "createTime": MOMENT, "error": {"code": 3, "message": "why"}}
    google.jobs = {"batchPredictionJobs": job, "tuningJobs": {**job, "name": TUNING}}
    found = sdk.batches.retrieve("77")
    assert found.status == batch
    assert found.errors is not None
    assert found.errors.data is not None
    assert found.errors.data[0].message == "why"
    assert sdk.fine_tuning.jobs.retrieve("88").status == tuning


def test_batches_are_listed_and_cancelled(sdk: openai.OpenAI) -> None:
    batch = created(sdk, quote("gs://my-bucket/a.jsonl", safe=""), output_data_config="gs://my-bucket/out")
    assert sdk.batches.cancel(batch.id).status == "cancelling"
    assert [one.id for one in sdk.batches.list(limit=3)] == ["770", "771", "772", "773"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input_file_id": "file-1"}, "input_file_id"),
        ({"endpoint": "/v1/completions"}, "endpoint"),
        ({"completion_window": "48h"}, "completion_window"),
        ({"metadata": "x"}, "metadata"),
        ({"output_data_config": "s3://x"}, "output_data_config"),
        ({"role_arn": "arn:x"}, "role_arn"),
    ],
)
def test_batches_that_vertex_cannot_make(sdk: openai.OpenAI, google: Google, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        created(sdk, "gs://my-bucket/a.jsonl", **more)
    assert caught.value.param == param
    assert google.asked == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (request("a", "Hi", None), "expected a model"),
        (request("a", "Hi", "meta.llama-4"), "Anthropic's"),
        ({**request("a", "Hi"), "url": "/v1/responses"}, "expected POST"),
        ({"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "m", "input": ["a", "b"]}}, "one text"),
        (
            {"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "m", "input": "a", "dimensions": 3}},
            "dimensions",
        ),
    ],
)
def test_lines_that_vertex_has_no_place_for(sdk: openai.OpenAI, google: Google, line: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match="Line 2 of the file") as caught:
        sdk.files.create(file=("a.jsonl", lines(request("x", "Hi"), line)), purpose="batch")
    assert said in caught.value.message
    assert google.objects == {}


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (error(400, "Not so.", "INVALID_ARGUMENT"), openai.BadRequestError, "Not so."),
        (error(401, "Bad token.", "UNAUTHENTICATED"), openai.AuthenticationError, "Bad token."),
        (error(404, "No such thing.", "NOT_FOUND"), openai.NotFoundError, "No such thing."),
        (error(429, "Quota.", "RESOURCE_EXHAUSTED"), openai.RateLimitError, "Quota."),
    ],
)
def test_errors(sdk: openai.OpenAI, google: Google, said: Said, kind: Any, words: str) -> None:
    google.refusal = said
    id = "gs%3A%2F%2Fmy-bucket%2Fa"
    for call in (
        lambda: sdk.files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch"),
        lambda: sdk.files.retrieve(id),
        lambda: sdk.files.content(id),
        lambda: sdk.files.delete(id),
        lambda: created(sdk, id),
        lambda: sdk.batches.retrieve("77"),
        lambda: sdk.fine_tuning.jobs.retrieve("88"),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_what_files_need(connect: Any, google: Google) -> None:
    data = lines(request("a", "Hi"))
    with pytest.raises(openai.BadRequestError, match="x-portkey-vertex-storage-bucket-name"):
        client(connect, google, vertex_storage_bucket_name="").files.create(file=("a.jsonl", data), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="gs://bucket/key"):
        client(connect, google).files.retrieve("s3%3A%2F%2Fmy-bucket%2Fa")
    with pytest.raises(openai.BadRequestError, match="vertex_project_id"):
        client(connect, google, vertex_project_id="").batches.retrieve("77")
    with pytest.raises(openai.BadRequestError, match="id of a job"):
        client(connect, google).batches.retrieve("7:7")
    assert google.asked == []


def test_fine_tuning(sdk: openai.OpenAI, google: Google) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")]
    example = {"messages": [{"role": role, "content": text} for role, text in turns]}
    file = sdk.files.create(file=("train.jsonl", lines(example)), purpose="fine-tune")
    assert [read(content) for content in google.content.values()] == [
        [
            {
                "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
                "contents": [
                    {"role": "user", "parts": [{"text": "Hi"}]},
                    {"role": "model", "parts": [{"text": "Hello"}]},
                ],
            }
        ]
    ]
    made = sdk.fine_tuning.jobs.create(
        model=MODEL, training_file=file.id, validation_file=file.id, suffix="mine", hyperparameters={"n_epochs": 2}
    )
    assert json.loads(google.asked[-1].body) == {
        "baseModel": MODEL,
        "supervisedTuningSpec": {
            "trainingDatasetUri": unquote(file.id),
            "validationDatasetUri": unquote(file.id),
            "hyperParameters": {"epochCount": 2},
        },
        "tunedModelDisplayName": "mine",
    }
    assert (made.id, made.status, made.training_file, made.validation_file) == ("88", "queued", file.id, file.id)
    google.jobs["tuningJobs"] |= {
        "state": "JOB_STATE_SUCCEEDED",
        "endTime": MOMENT,
        "tunedModel": {"model": "projects/1/locations/l/models/9", "endpoint": "projects/1/locations/l/endpoints/9"},
        "tuningDataStats": {"supervisedTuningDataStats": {"totalBillableTokenCount": "42"}},
    }
    found = sdk.fine_tuning.jobs.retrieve("88")
    assert (found.status, found.fine_tuned_model, found.trained_tokens, found.finished_at) == (
        "succeeded",
        "projects/1/locations/l/models/9",
        42,
        SECONDS,
    )
    assert [job.status for job in sdk.fine_tuning.jobs.list()] == ["succeeded"] * 4
    assert sdk.fine_tuning.jobs.cancel("88").status == "running"
    with pytest.raises(openai.BadRequestError, match="hyperparameters"):
        sdk.fine_tuning.jobs.create(model=MODEL, training_file=file.id, hyperparameters={"batch_size": 2})
    with pytest.raises(openai.InternalServerError, match="pauseFinetune is not supported by vertex-ai"):
        sdk.fine_tuning.jobs.pause("88")
