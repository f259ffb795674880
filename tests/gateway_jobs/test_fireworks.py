"""Jobs of Fireworks AI: data sets, batch inference jobs, supervised fine-tuning jobs."""

import re
from typing import Any

import openai
import pytest

from tests.gateway_jobs.vendor import Asked, Said, Vendor, lines, read, route, told

pytestmark = pytest.mark.behaviour("TR-25")

KEY = "fw_key-of-the-client-0123456789"
ACCOUNT = "accounts/mine"
MODEL = "accounts/fireworks/models/llama-v3p1-8b-instruct"
MOMENT, SECONDS = "2026-11-21T10:00:00.123456Z", 1795255200


def error(code: int, message: str, status: int) -> Said:
    """As its control plane says it."""
    return told({"code": code, "message": message, "details": []}, status)


class Fireworks(Vendor):
    """The control plane, and where the signed addresses lead."""

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.broken = False

    def _routed(self, asked: Asked) -> Said:
        if asked.path.startswith("/signed/"):
            assert "authorization" not in asked.headers
        else:
            assert asked.headers["authorization"] == f"Bearer {KEY}"
        return super()._routed(asked)

    @route(r"POST /v1/accounts/mine/datasets")
    def create(self, asked: Asked) -> Said:
        id = asked.json["datasetId"]
        if id in self.datasets:
            return error(6, "dataset already exists", 409)
        made = {**asked.json["dataset"], "name": f"{ACCOUNT}/datasets/{id}", "createTime": MOMENT}
        self.datasets[id] = {**made, "state": "UPLOADING", "status": {"code": "OK", "message": ""}}
        return told(self.datasets[id])

    @route(r"POST /v1/accounts/mine/datasets/(?P<id>[^/:]+):upload")
    def upload(self, asked: Asked, id: str) -> Said:
        if self.broken:
            return error(13, "disk full", 500)
        boundary = asked.headers["content-type"].partition("boundary=")[2].encode()
        head, _, rest = asked.body.partition(b"\r\n\r\n")
        data, _, end = rest.rpartition(b"\r\n--" + boundary + b"--")
        assert head.startswith(b"--" + boundary)
        assert f'name="file"; filename="{id}.jsonl"'.encode() in head
        assert end == b"\r\n"
        self.files[id] = {f"dataset/{id}/{id}.jsonl": data}
        self.datasets[id]["state"] = "READY"
        return told({})

    @route(r"(GET|DELETE) /v1/accounts/mine/datasets/(?P<id>[^/:]+)")
    def one(self, asked: Asked, id: str) -> Said:
        if id not in self.datasets:
            return error(5, "resource not found", 404)
        if asked.method == "DELETE":
            del self.datasets[id]
            return told({})
        return told(self.datasets[id])

    @route(r"GET /v1/accounts/mine/datasets")
    def all(self, asked: Asked) -> Said:
        assert asked.query["pageSize"] == "100"
        at, ids = int(asked.query.get("pageToken") or 0), sorted(self.datasets)
        page = [self.datasets[id] for id in ids[at : at + 2]]
        return told(
            {"datasets": page, "nextPageToken": str(at + 2) if at + 2 < len(ids) else "", "totalSize": len(ids)}
        )

    @route(r"GET /v1/accounts/mine/datasets/(?P<id>[^/:]+):getDownloadEndpoint")
    def download(self, asked: Asked, id: str) -> Said:
        assert asked.body == b""
        if id not in self.files:
            return error(5, "resource not found", 404)
        return told({"filenameToSignedUrls": {name: f"{self.url}/signed/{name}?sig=1" for name in self.files[id]}})

    @route(r"GET /signed/dataset/(?P<id>[^/]+)/(?P<name>.+)")
    def signed(self, asked: Asked, id: str, name: str) -> Said:
        assert asked.query == {"sig": "1"}
        return Said(200, self.files[id][f"dataset/{id}/{name}"], {"Content-Type": "application/octet-stream"})

    @route(r"POST /v1/accounts/mine/(?P<kind>batchInferenceJobs|supervisedFineTuningJobs)")
    def start_job(self, asked: Asked, kind: str) -> Said:
        made = {**asked.json, "name": f"{ACCOUNT}/{kind}/j1", "createTime": MOMENT, "updateTime": MOMENT}
        self.jobs[kind] = {**made, "state": "JOB_STATE_VALIDATING", "status": {"code": "OK", "message": ""}}
        return told(self.jobs[kind])

    @route(r"(GET|DELETE) /v1/accounts/mine/(?P<kind>batchInferenceJobs|supervisedFineTuningJobs)/(?P<id>[^/]+)")
    def job(self, asked: Asked, kind: str, id: str) -> Said:
        if id != "j1" or kind not in self.jobs:
            return error(5, "resource not found", 404)
        if asked.method == "DELETE":
            del self.jobs[kind]
            return told({})
        return told(self.jobs[kind])

    @route(r"GET /v1/accounts/mine/(?P<kind>batchInferenceJobs|supervisedFineTuningJobs)")
    def all_jobs(self, asked: Asked, kind: str) -> Said:
        return told({kind: [{**self.jobs[kind], "name": f"{ACCOUNT}/{kind}/j{number}"} for number in range(3)]})


@pytest.fixture
def fireworks(start: Any) -> Fireworks:
    return start(Fireworks)


@pytest.fixture
def sdk(connect: Any, fireworks: Fireworks) -> openai.OpenAI:
    return client(connect, fireworks)


def client(connect: Any, fireworks: Fireworks, **more: str) -> openai.OpenAI:
    return connect("fireworks-ai", f"{fireworks.url}/inference/v1", KEY, **{"fireworks_account_id": "mine", **more})


def request(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def created(sdk: openai.OpenAI, file: str, **more: Any) -> Any:
    return sdk.batches.create(
        input_file_id=file,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"model": MODEL, **more},
    )


def test_a_batch_from_its_file_to_its_output(sdk: openai.OpenAI, fireworks: Fireworks) -> None:
    spoken = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Grüße"}]
    data = lines(
        request("a", "Hi", max_completion_tokens=7, parallel_tool_calls=True), request("b", "", messages=spoken)
    )
    file = sdk.files.create(file=("ask me.jsonl", data), purpose="batch")
    assert re.fullmatch(r"batch-[0-9a-f]{24}", file.id)
    (stored,) = fireworks.files[file.id].values()
    assert read(stored) == [
        {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 7}},
        {"custom_id": "b", "body": {"messages": [{"role": "system", "content": "Be brief."}, spoken[1]]}},
    ]
    assert fireworks.asked[0].json == {
        "datasetId": file.id,
        "dataset": {"displayName": "ask me.jsonl", "exampleCount": "2", "userUploaded": {}},
    }
    assert (file.bytes, file.purpose, file.status) == (len(stored), "batch", "processed")

    batch = created(sdk, file.id, job_name="nightly")
    assert fireworks.asked[-1].json == {
        "model": MODEL,
        "inputDatasetId": f"{ACCOUNT}/datasets/{file.id}",
        "displayName": "nightly",
    }
    assert (batch.id, batch.status, batch.input_file_id, batch.created_at) == ("j1", "validating", file.id, SECONDS)

    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    fireworks.files["out"] = {
        "dataset/out/BIJOutputSet.jsonl": lines({"custom_id": "a", "response": answer}).rstrip(),
        "dataset/out/error-data": lines({"custom_id": "b", "error": {"code": 400, "message": "no"}}),
    }
    fireworks.jobs["batchInferenceJobs"] |= {
        "state": "JOB_STATE_COMPLETED",
        "outputDatasetId": f"{ACCOUNT}/datasets/out",
        "expireTime": "2026-11-22T10:00:00Z",
        "jobProgress": {
            "totalInputRequests": 1,
            "totalProcessedRequests": 2,
            "successfullyProcessedRequests": 1,
            "failedRequests": 1,
        },
    }
    batch = sdk.batches.retrieve("j1")
    assert (batch.status, batch.completed_at, batch.output_file_id) == ("completed", SECONDS, "out")
    assert batch.expires_at == SECONDS + 86400
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
    good, bad = read(sdk.get("/batches/j1/output", cast_to=bytes))
    assert good == {
        "id": "chatcmpl-1",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "chatcmpl-1", "body": answer},
        "error": None,
    }
    assert (bad["custom_id"], bad["response"], bad["error"]) == ("b", None, {"code": "400", "message": "no"})


def test_a_file_s_life(connect: Any, fireworks: Fireworks) -> None:
    sdk = client(connect, fireworks, provider_file_name="mine.jsonl")
    example = lines({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    made = sdk.files.create(file=("ü.jsonl", example), purpose="fine-tune")
    assert made.id == "mine"
    assert fireworks.files["mine"] == {"dataset/mine/mine.jsonl": example}
    assert sdk.files.content("mine").content == example
    found = sdk.files.retrieve("mine")
    assert (found.filename, found.purpose, found.status, found.created_at) == (
        "ü.jsonl",
        "fine-tune",
        "processed",
        SECONDS,
    )
    with pytest.raises(openai.ConflictError, match="already exists"):
        sdk.files.create(file=("a.jsonl", example), purpose="fine-tune")
    for id in ("a", "b"):
        fireworks.datasets[id] = {"name": f"{ACCOUNT}/datasets/{id}", "sourceJobName": "j1", "state": "UPLOADING"}
    listed = list(sdk.files.list(limit=2))
    assert [(file.id, file.purpose, file.status) for file in listed] == [
        ("a", "batch_output", "uploaded"),
        ("b", "batch_output", "uploaded"),
        ("mine", "fine-tune", "processed"),
    ]
    assert sdk.files.delete("mine").deleted
    del fireworks.files["mine"]
    for call in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError, match="resource not found"):
            call("mine")


def test_an_upload_that_fails_leaves_nothing(sdk: openai.OpenAI, fireworks: Fireworks) -> None:
    fireworks.broken = True
    with pytest.raises(openai.InternalServerError, match="disk full"):
        sdk.files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch")
    assert fireworks.datasets == {}


def test_files_that_are_told_to_be_elsewhere(sdk: openai.OpenAI, fireworks: Fireworks) -> None:
    """What an answer tells must be where the vendor is, or on the public internet: never a neighbour of this server."""
    fireworks.refusal = told({"filenameToSignedUrls": {"a": "http://127.0.0.1:1/secrets"}})
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.files.content("mine")
    assert caught.value.status_code >= 500
    assert "public" in caught.value.message
    fireworks.refusal = told({"filenameToSignedUrls": {"a": "file:///etc/passwd"}})
    with pytest.raises(openai.InternalServerError, match="address"):
        sdk.files.content("mine")
    fireworks.refusal = told({"filenameToSignedUrls": {}})
    with pytest.raises(openai.NotFoundError, match="no content"):
        sdk.files.content("mine")


STATES = [
    ("JOB_STATE_UNSPECIFIED", "validating", "queued"),
    ("JOB_STATE_VALIDATING", "validating", "validating_files"),
    ("JOB_STATE_PENDING", "validating", "queued"),
    ("JOB_STATE_CREATING", "in_progress", "running"),
    ("JOB_STATE_RUNNING", "in_progress", "running"),
    ("JOB_STATE_RE_QUEUEING", "in_progress", "running"),
    ("JOB_STATE_WRITING_RESULTS", "finalizing", "running"),
    ("JOB_STATE_COMPLETED", "completed", "succeeded"),
    ("JOB_STATE_FAILED", "failed", "failed"),
    ("JOB_STATE_EXPIRED", "expired", "failed"),
    ("JOB_STATE_CANCELLING", "cancelling", "running"),
    ("JOB_STATE_CANCELLED", "cancelled", "cancelled"),
    ("JOB_STATE_DELETING_CLEANING_UP", "cancelled", "cancelled"),
]


@pytest.mark.parametrize(("theirs", "batch", "tuning"), STATES)
def test_statuses(sdk: openai.OpenAI, fireworks: Fireworks, theirs: str, batch: str, tuning: str) -> None:
    job = {"state": theirs, "createTime": MOMENT, "status": {"code": "UNKNOWN", "message": "why"}}
    fireworks.jobs = {kind: {**job, "name": "x/j1"} for kind in ("batchInferenceJobs", "supervisedFineTuningJobs")}
    found, tuned = sdk.batches.retrieve("j1"), sdk.fine_tuning.jobs.retrieve("j1")
    assert (found.status, tuned.status) == (batch, tuning)
    assert (found.errors is not None) == (batch == "failed")
    assert (tuned.error is not None) == (theirs == "JOB_STATE_FAILED")


def test_batches_are_listed_and_cancelled(sdk: openai.OpenAI, fireworks: Fireworks) -> None:
    batch = created(sdk, "in", model="llama-v3p1-8b-instruct")
    assert batch.model == MODEL
    assert [one.id for one in sdk.batches.list(limit=2)] == ["j0", "j1", "j2"]
    assert sdk.batches.cancel("j1").status == "cancelling"
    assert fireworks.did[-1] == "DELETE /v1/accounts/mine/batchInferenceJobs/j1"
    with pytest.raises(openai.NotFoundError):
        sdk.batches.retrieve("j1")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": None}, "model"),
        ({"input_file_id": "In/.."}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "48h"}, "completion_window"),
        ({"metadata": {"a": "b"}}, "metadata"),
    ],
)
def test_batches_that_fireworks_cannot_make(
    sdk: openai.OpenAI, fireworks: Fireworks, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        created(sdk, "in", **more)
    assert caught.value.param == param
    assert fireworks.asked == []


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (error(3, "example_count is required", 400), openai.BadRequestError, "example_count is required"),
        (error(16, "Who?", 401), openai.AuthenticationError, "Who?"),
        (
            told({"error": {"message": "The API key you provided is invalid.", "code": "UNAUTHORIZED"}}, 403),
            openai.PermissionDeniedError,
            "is invalid",
        ),
        (error(5, "resource not found", 404), openai.NotFoundError, "resource not found"),
        (error(8, "Too many.", 429), openai.RateLimitError, "Too many."),
    ],
)
def test_errors(sdk: openai.OpenAI, fireworks: Fireworks, said: Said, kind: Any, words: str) -> None:
    fireworks.refusal = said
    for call in (
        lambda: sdk.files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch"),
        lambda: sdk.files.retrieve("a"),
        lambda: sdk.files.content("a"),
        lambda: sdk.files.delete("a"),
        lambda: created(sdk, "a"),
        lambda: sdk.batches.cancel("j1"),
        sdk.fine_tuning.jobs.list,
    ):
        with pytest.raises(kind, match=words):
            call()


def test_what_is_needed(connect: Any, fireworks: Fireworks) -> None:
    with pytest.raises(openai.BadRequestError, match="x-portkey-fireworks-account-id"):
        client(connect, fireworks, fireworks_account_id="").files.list()
    with pytest.raises(openai.BadRequestError, match="small letters"):
        client(connect, fireworks).files.retrieve("Mine")
    data = lines(request("a", "Hi"), {"custom_id": "b", "url": "/v1/embeddings"})
    with pytest.raises(openai.BadRequestError, match="Line 2 of the file"):
        client(connect, fireworks).files.create(file=("a.jsonl", data), purpose="batch")
    assert fireworks.asked == []


def test_fine_tuning(sdk: openai.OpenAI, fireworks: Fireworks) -> None:
    hyper: Any = {"n_epochs": 2, "learning_rate": 0.0001}
    made = sdk.fine_tuning.jobs.create(
        model="llama-v3p1-8b-instruct", training_file="in", validation_file="held", suffix="mine", hyperparameters=hyper
    )
    assert fireworks.asked[-1].json == {
        "dataset": f"{ACCOUNT}/datasets/in",
        "evaluationDataset": f"{ACCOUNT}/datasets/held",
        "baseModel": MODEL,
        "displayName": "mine",
        "outputModel": f"{ACCOUNT}/models/mine",
        "epochs": 2,
        "learningRate": 0.0001,
    }
    assert (made.id, made.status, made.training_file, made.validation_file) == ("j1", "validating_files", "in", "held")
    fireworks.jobs["supervisedFineTuningJobs"] |= {"state": "JOB_STATE_COMPLETED", "completedTime": MOMENT}
    found = sdk.fine_tuning.jobs.retrieve("j1")
    assert (found.status, found.fine_tuned_model, found.finished_at) == (
        "succeeded",
        f"{ACCOUNT}/models/mine",
        SECONDS,
    )
    assert len(list(sdk.fine_tuning.jobs.list())) == 3
    assert sdk.fine_tuning.jobs.cancel("j1").status == "cancelled"
    assert fireworks.did[-1] == "DELETE /v1/accounts/mine/supervisedFineTuningJobs/j1"
    for wrong in ({"learning_rate_multiplier": 2}, {"batch_size": 1}):
        with pytest.raises(openai.BadRequestError, match="hyperparameters"):
            sdk.fine_tuning.jobs.create(model="m", training_file="in", hyperparameters=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(openai.InternalServerError, match="resumeFinetune is not supported by fireworks-ai"):
        sdk.fine_tuning.jobs.resume("j1")
