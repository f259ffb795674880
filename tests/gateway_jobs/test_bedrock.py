"""Jobs of AWS Bedrock: objects in S3, model invocation jobs, model customization."""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import openai
import pytest

from loomgate.providers.sigv4 import AwsKeys, SigV4
from tests.gateway_jobs.vendor import Asked, Said, Vendor, lines, read, route, told

pytestmark = pytest.mark.behaviour("TR-25")

KEYS = AwsKeys(access_key_id="AKIDEXAMPLE0000000", secret_access_key="hush/secret+key", session_token="hush-token")
ARN = "arn:aws:bedrock:eu-west-1:123456789012:model-invocation-job/abcdef012345"
TUNING = "arn:aws:bedrock:eu-west-1:123456789012:model-customization-job/amazon.nova-lite-v1:0/abcdef012345"
ROLE = "arn:aws:iam::123456789012:role/batch"
MODEL = "amazon.nova-lite-v1:0"
MOMENT, SECONDS = "2026-11-21T10:00:00Z", 1795255200
TAG = '"0123456789abcdef0123456789abcdef"'


def error(code: str, message: str, status: int) -> Said:
    """As S3 says it."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Said(status, body.encode(), {"Content-Type": "application/xml"})


class Aws(Vendor):
    """Both services at one address, as LocalStack has them. Every signature is computed again."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.uploads: dict[str, list[bytes]] = {}
        self.job: dict[str, Any] = {}

    def _routed(self, asked: Asked) -> Said:
        scope = asked.headers["authorization"].partition("Credential=")[2].partition(",")[0].split("/")
        assert scope[0] == KEYS.access_key_id
        assert scope[2] == "eu-west-1"
        assert scope[3] == ("s3" if asked.path.startswith("/my-bucket/") else "bedrock"), asked.path
        assert is_signed(asked, scope[3])
        return super()._routed(asked)

    @route(r"PUT /my-bucket/(?P<key>.+)")
    def put(self, asked: Asked, key: str) -> Said:
        if "partNumber" in asked.query:
            parts = self.uploads[asked.query["uploadId"]]
            assert asked.query["partNumber"] == str(len(parts) + 1)
            parts.append(asked.body)
        else:
            self.objects[unquote(key)] = asked.body, asked.headers
        return Said(200, b"", {"ETag": TAG})

    @route(r"POST /my-bucket/(?P<key>.+)")
    def post(self, asked: Asked, key: str) -> Said:
        if "uploads" in asked.query:
            self.uploads["id/1+="] = []
            self.objects[unquote(key)] = b"", asked.headers
            body = "<InitiateMultipartUploadResult><UploadId>id/1+=</UploadId></InitiateMultipartUploadResult>"
            return Said(200, body.encode())
        parts = self.uploads.pop(asked.query["uploadId"])
        numbers = re.findall(rb"<PartNumber>(\d+)</PartNumber><ETag>(.+?)</ETag>", asked.body)
        assert numbers == [(b"%d" % number, TAG.encode()) for number in range(1, len(parts) + 1)]
        assert all(len(part) == 8 << 20 for part in parts[:-1])
        self.objects[unquote(key)] = b"".join(parts), self.objects[unquote(key)][1]
        return Said(200, b"<CompleteMultipartUploadResult/>")

    @route(r"(HEAD|GET) /my-bucket/(?P<key>.+)")
    def get(self, asked: Asked, key: str) -> Said:
        found = self.objects.get(unquote(key))
        if found is None:
            return error("NoSuchKey", "The specified key does not exist.", 404)
        kept = {name: value for name, value in found[1].items() if name.startswith("x-amz-meta-")}
        return Said(200, found[0], {"Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT", "ETag": TAG, **kept})

    @route(r"GET /my-bucket/")
    def list(self, asked: Asked) -> Said:
        assert asked.query["list-type"] == "2"
        keys = sorted(key for key in self.objects if key.startswith(asked.query["prefix"]))
        at = int(asked.query.get("continuation-token", "0"))
        found = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{MOMENT}</LastModified><ETag>&quot;a&quot;</ETag>"
            f"<Size>{len(self.objects[key][0])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in keys[at : at + 2]
        )
        more = f"<NextContinuationToken>{at + 2}</NextContinuationToken>" if at + 2 < len(keys) else ""
        return Said(200, f"<ListBucketResult><Name>my-bucket</Name>{found}{more}</ListBucketResult>".encode())

    @route(r"DELETE /my-bucket/(?P<key>.+)")
    def delete(self, asked: Asked, key: str) -> Said:
        if "uploadId" in asked.query:
            del self.uploads[asked.query["uploadId"]]
        else:
            self.objects.pop(unquote(key), None)
        return Said(204)

    @route(r"POST /model-invocation-job")
    def create(self, asked: Asked) -> Said:
        self.job = {
            **asked.json,
            "jobArn": ARN,
            "status": "Submitted",
            "submitTime": MOMENT,
            "lastModifiedTime": MOMENT,
            "jobExpirationTime": "2026-11-22T10:00:00Z",
        }
        return told({"jobArn": ARN})

    @route(r"GET /model-invocation-job/(?P<id>[^/]+)")
    def one(self, asked: Asked, id: str) -> Said:
        if unquote(id) not in (ARN, "abcdef012345"):
            return told({"message": "No such job."}, 404, **{"x-amzn-ErrorType": "ResourceNotFoundException"})
        return told(self.job)

    @route(r"GET /model-invocation-jobs")
    def all(self, asked: Asked) -> Said:
        assert (asked.query["sortBy"], asked.query["sortOrder"]) == ("CreationTime", "Descending")
        at = int(asked.query.get("nextToken", "0"))
        page = [{**self.job, "jobArn": f"{ARN[:-1]}{number}"} for number in range(at, at + 3)]
        return told({"invocationJobSummaries": page, **({"nextToken": str(at + 3)} if at < 6 else {})})

    @route(r"POST /model-invocation-job/(?P<id>[^/]+)/stop")
    def stop_job(self, asked: Asked, id: str) -> Said:
        assert unquote(id) == ARN
        self.job["status"] = "Stopping"
        return told({})

    @route(r"POST /model-customization-jobs")
    def tune(self, asked: Asked) -> Said:
        self.job = {**asked.json, "jobArn": TUNING, "creationTime": MOMENT, "status": "InProgress"}
        self.job |= {"baseModelArn": asked.json["baseModelIdentifier"], "outputModelName": "mine"}
        return told({"jobArn": TUNING}, 201)

    @route(r"(GET|POST) /model-customization-jobs/(?P<id>[^/]+)(?P<stop>/stop)?")
    def tuning(self, asked: Asked, id: str, stop: str | None) -> Said:
        assert unquote(id) == TUNING
        if stop:
            self.job["status"] = "Stopping"
            return told({})
        return told(self.job)

    @route(r"GET /model-customization-jobs")
    def tunings(self, asked: Asked) -> Said:
        return told({"modelCustomizationJobSummaries": [self.job]})


def is_signed(asked: Asked, service: str) -> bool:
    """Does the signature fit what came over the wire?"""
    headers = asked.headers
    named = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    if service == "s3":
        assert headers["x-amz-content-sha256"] == hashlib.sha256(asked.body).hexdigest()
        assert "x-amz-content-sha256" in named
    at = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    signed = {name: headers[name] for name in named if name not in ("host", "x-amz-date", "x-amz-security-token")}
    signer = SigV4(keys=KEYS, region="eu-west-1", service=service)
    again = signer.signature(asked.method, f"http://{headers['host']}{asked.target}", signed, asked.body, at)
    return again["Authorization"] == headers["authorization"]


@pytest.fixture
def aws(start: Any) -> Aws:
    return start(Aws)


@pytest.fixture
def sdk(connect: Any, aws: Aws) -> openai.OpenAI:
    return client(connect, aws)


def client(connect: Any, aws: Aws, **more: str) -> openai.OpenAI:
    return connect(
        "bedrock",
        aws.url,
        aws_access_key_id=KEYS.access_key_id,
        aws_secret_access_key=KEYS.secret_access_key,
        aws_session_token=KEYS.session_token or "",
        aws_region="eu-west-1",
        **{"aws_s3_bucket": "my-bucket", "aws_bedrock_model": MODEL, **more},
    )


def request(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def created(sdk: openai.OpenAI, file: str, **more: Any) -> Any:
    body = {"model": MODEL, "role_arn": ROLE, **more}
    return sdk.batches.create(
        input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h", extra_body=body
    )


def test_a_batch_from_its_file_to_its_output(sdk: openai.OpenAI, aws: Aws) -> None:
    data = lines(request("a", "Hi", max_tokens=7), request("b", "Grüße", temperature=1.5))
    file = sdk.files.create(file=("ask me ü.jsonl", data), purpose="batch")
    (key,) = aws.objects
    assert unquote(file.id) == f"s3://my-bucket/{key}"
    stored = read(aws.objects[key][0])
    assert stored[0] == {
        "recordId": "a",
        "modelInput": {
            "messages": [{"role": "user", "content": [{"text": "Hi"}]}],
            "inferenceConfig": {"maxTokens": 7},
        },
    }
    assert stored[1]["modelInput"]["inferenceConfig"] == {"temperature": 1.0}
    assert (file.bytes, file.filename, file.purpose) == (len(aws.objects[key][0]), "ask me ü.jsonl", "batch")

    assert created(sdk, file.id).status == "validating"
    batch = sdk.batches.retrieve(quote(ARN, safe=""))
    assert aws.asked[-2].json == {
        "jobName": aws.job["jobName"],
        "clientRequestToken": aws.job["clientRequestToken"],
        "modelId": MODEL,
        "modelInvocationType": "Converse",
        "roleArn": ROLE,
        "inputDataConfig": {"s3InputDataConfig": {"s3Uri": f"s3://my-bucket/{key}", "s3InputFormat": "JSONL"}},
        "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://my-bucket/"}},
        "timeoutDurationInHours": 24,
    }
    assert re.fullmatch(r"[a-zA-Z0-9]{1,63}(-*[a-zA-Z0-9\+\-\.]){0,63}", aws.job["jobName"])
    assert (batch.id, batch.status, batch.created_at) == (quote(ARN, safe=""), "validating", SECONDS)
    assert (batch.input_file_id, batch.output_file_id, batch.completion_window) == (file.id, None, "24h")
    assert batch.expires_at == SECONDS + 86400

    name = f"abcdef012345/{key}.out"
    said = {"role": "assistant", "content": [{"text": "Hello"}]}
    usage = {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}
    answer = {"output": {"message": said}, "stopReason": "end_turn", "usage": usage, "metrics": {"latencyMs": 9}}
    refusal = {"errorCode": 400, "errorMessage": "bad request"}
    rows = [{**stored[0], "modelOutput": answer}, {**stored[1], "error": refusal}]
    aws.objects[name] = lines(*rows), {}
    aws.job |= {"status": "PartiallyCompleted", "endTime": MOMENT}
    aws.job |= {"totalRecordCount": 2, "successRecordCount": 1, "errorRecordCount": 1}
    batch = sdk.batches.retrieve(batch.id)
    assert (batch.status, batch.completed_at, batch.output_file_id) == (
        "completed",
        SECONDS,
        quote(f"s3://my-bucket/{name}", safe=""),
    )
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}

    good, bad = read(sdk.get(f"/batches/{batch.id}/output", cast_to=bytes))
    assert (good["custom_id"], good["error"], good["response"]["status_code"]) == ("a", None, 200)
    body = good["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", MODEL)
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 5
    assert (bad["custom_id"], bad["response"]) == ("b", None)
    assert bad["error"] == {"code": "400", "message": "bad request"}
    assert read(sdk.files.content(batch.output_file_id or "").content)[1] == bad


def test_a_file_s_life(sdk: openai.OpenAI, aws: Aws) -> None:
    made = sdk.files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch")
    found = sdk.files.retrieve(made.id)
    assert found.model_dump() == {**made.model_dump(), "created_at": SECONDS}
    assert sdk.files.content(made.id).content == next(iter(aws.objects.values()))[0]
    assert sdk.files.delete(made.id).deleted
    assert aws.objects == {}
    for call in (sdk.files.retrieve, sdk.files.content):
        with pytest.raises(openai.NotFoundError, match="bedrock error"):
            call(made.id)


def test_the_files_of_a_bucket(sdk: openai.OpenAI, aws: Aws) -> None:
    aws.objects = {f"in/{name}.jsonl": (b"{}\n", {}) for name in "abcde"}
    assert [file.filename for file in sdk.files.list(limit=2)] == [f"{name}.jsonl" for name in "abcde"]
    assert [asked.query.get("continuation-token") for asked in aws.asked][:1] == [None]
    page = sdk.files.list(limit=3)
    assert (page.has_more, page.data[0].bytes, page.data[0].created_at) == (True, 3, SECONDS)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        sdk.files.list(purpose="batch")
    with pytest.raises(openai.BadRequestError, match="after"):
        sdk.files.list(after="s3%3A%2F%2Fmy-bucket%2Fnowhere")


def test_a_large_file_goes_up_in_parts(sdk: openai.OpenAI, aws: Aws) -> None:
    text = "x" * 10_000
    data = lines(*(request(str(number), text) for number in range(2000)))
    made = sdk.files.create(file=("large.jsonl", data), purpose="batch")
    ((stored, headers),) = aws.objects.values()
    assert len(stored) == made.bytes > 16 << 20
    assert [row["recordId"] for row in read(stored)] == [str(number) for number in range(2000)]
    assert headers["x-amz-meta-purpose"] == "batch"
    assert aws.uploads == {}


def test_an_upload_that_fails_leaves_nothing(sdk: openai.OpenAI, aws: Aws) -> None:
    text = "x" * 10_000
    data = lines(*(request(str(number), text) for number in range(1000))) + b'{"custom_id": "z", "url": "/v1/x"}\n'
    with pytest.raises(openai.BadRequestError, match="Line 1001 of the file"):
        sdk.files.create(file=("large.jsonl", data), purpose="batch")
    assert aws.uploads == {}
    assert aws.asked[-1].method == "DELETE"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"nonsense", "is not a request of a batch"),
        (lines({**request("a", "Hi"), "url": "/v1/embeddings"}), "expected POST /v1/chat/completions"),
        (lines(request("a", "Hi", stream=True)), "without 'stream'"),
        (lines(request("a", "Hi", messages=[])), "messages"),
        (lines(request("a", "Hi", messages=[{"role": "user", "content": [{"type": "input_audio"}]}])), "messages"),
    ],
)
def test_lines_that_bedrock_has_no_place_for(sdk: openai.OpenAI, aws: Aws, line: bytes, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.files.create(file=("a.jsonl", lines(request("x", "Hi")) + line), purpose="batch")
    assert "Line 2 of the file" in caught.value.message
    assert said in caught.value.message
    assert aws.asked == []


def test_where_a_file_goes_and_how_it_is_encrypted(connect: Any, aws: Aws) -> None:
    more = {"aws_s3_object_key": "in/a b.jsonl", "amz_server_side_encryption_aws_kms_key_id": "arn:aws:kms:key/1"}
    made = client(connect, aws, **more).files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch")
    assert unquote(made.id) == "s3://my-bucket/in/a b.jsonl"
    headers = aws.objects["in/a b.jsonl"][1]
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "arn:aws:kms:key/1"
    named = client(connect, aws, provider_file_name="named.jsonl")
    assert unquote(named.files.create(file=b"", purpose="batch").id) == "s3://my-bucket/named.jsonl"


@pytest.mark.parametrize(
    "id", ["file-1", "s3://my-bucket", "s3://my-bucket/a/../b", "s3://x/y", "s3://evil.example:1/b"]
)
def test_ids_lead_to_objects_only(sdk: openai.OpenAI, aws: Aws, id: str) -> None:
    with pytest.raises(openai.BadRequestError):
        sdk.files.content(quote(id, safe=""))
    assert aws.asked == []


STATUSES = [
    ("Submitted", "validating"),
    ("Validating", "validating"),
    ("Scheduled", "validating"),
    ("InProgress", "in_progress"),
    ("Completed", "completed"),
    ("PartiallyCompleted", "completed"),
    ("Failed", "failed"),
    ("Stopping", "cancelling"),
    ("Stopped", "cancelled"),
    ("Expired", "expired"),
]


@pytest.mark.parametrize(("theirs", "ours"), STATUSES)
def test_statuses(sdk: openai.OpenAI, aws: Aws, theirs: str, ours: str) -> None:
    aws.job = {"jobArn": ARN, "status": theirs, "submitTime": MOMENT, "endTime": MOMENT, "message": "why"}
    found = sdk.batches.retrieve("abcdef012345")
    assert found.status == ours
    ends = {"completed": found.completed_at, "failed": found.failed_at, "cancelled": found.cancelled_at}
    assert {name for name, at in ends.items() if at} == {ours} & set(ends)
    assert found.errors is not None
    assert found.errors.data is not None
    assert found.errors.data[0].message == "why"


def test_batches_are_listed_and_cancelled(sdk: openai.OpenAI, aws: Aws) -> None:
    batch = created(sdk, quote("s3://my-bucket/in/a.jsonl", safe=""), output_data_config="s3://my-bucket/out/")
    assert aws.job["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"] == "s3://my-bucket/out/"
    assert sdk.batches.cancel(batch.id).status == "cancelling"
    assert [one.id[-1] for one in sdk.batches.list(limit=4)] == list("012345678")
    assert sdk.batches.list(limit=4).has_more
    assert not sdk.batches.list(limit=20).has_more


def test_tags_and_how_long_a_batch_may_take(sdk: openai.OpenAI, aws: Aws) -> None:
    made = sdk.batches.create(
        input_file_id="s3://my-bucket/a.jsonl",
        endpoint="/v1/chat/completions",
        completion_window="48h",  # pyright: ignore[reportArgumentType] more than OpenAI has
        metadata={"team": "a"},
        extra_body={"role_arn": ROLE, "job_name": "nightly"},
    )
    assert (made.metadata, made.completion_window) == ({"team": "a"}, "48h")
    assert aws.job["tags"] == [{"key": "team", "value": "a"}]
    assert (aws.job["timeoutDurationInHours"], aws.job["jobName"], aws.job["modelId"]) == (48, "nightly", MODEL)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"role_arn": None}, "role_arn"),
        ({"input_file_id": "file-1"}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": []}, "metadata"),
        ({"output_data_config": "gs://x"}, "output_data_config"),
        ({"output_expires_after": {"seconds": 3600}}, "output_expires_after"),
    ],
)
def test_batches_that_bedrock_cannot_make(sdk: openai.OpenAI, aws: Aws, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        created(sdk, "s3://my-bucket/a.jsonl", **more)
    assert caught.value.param == param
    assert aws.asked == []


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (told({"message": "Bad role."}, 400, **{"x-amzn-ErrorType": "ValidationException"}), 400, "Bad role."),
        (
            told({"message": "Bad token."}, 403, **{"x-amzn-ErrorType": "UnrecognizedClientException"}),
            403,
            "Bad token.",
        ),
        (told({"message": "Slow down."}, 429, **{"x-amzn-ErrorType": "ThrottlingException"}), 429, "Slow down."),
    ],
)
def test_errors_of_jobs(sdk: openai.OpenAI, aws: Aws, said: Said, status: int, words: str) -> None:
    aws.refusal = said
    for call in (lambda: sdk.batches.retrieve("x"), sdk.batches.list, lambda: sdk.batches.cancel("x")):
        with pytest.raises(openai.APIStatusError, match=words) as caught:
            call()
        assert caught.value.status_code == status


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (error("InvalidRequest", "Not so.", 400), openai.BadRequestError, "Not so."),
        (error("AccessDenied", "Access &lt;Denied&gt;", 403), openai.PermissionDeniedError, "Access <Denied>"),
        (error("NoSuchBucket", "No bucket.", 404), openai.NotFoundError, "No bucket."),
        (error("SlowDown", "Reduce your request rate.", 503), openai.InternalServerError, "Reduce your request rate."),
    ],
)
def test_errors_of_files(sdk: openai.OpenAI, aws: Aws, said: Said, kind: Any, words: str) -> None:
    aws.refusal = said
    id = "s3%3A%2F%2Fmy-bucket%2Fa"
    upload = lambda: sdk.files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch")  # noqa: E731
    for call in (upload, lambda: sdk.files.content(id), lambda: sdk.files.delete(id)):
        with pytest.raises(kind, match=words):
            call()
    with pytest.raises(openai.APIStatusError):
        sdk.files.retrieve(id)


def test_a_wait_is_passed_on(sdk: openai.OpenAI, aws: Aws) -> None:
    aws.refusal = told({"message": "Slow."}, 429, **{"x-amzn-ErrorType": "ThrottlingException", "Retry-After": "7"})
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.batches.retrieve("x")
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.response.headers["x-portkey-provider"] == "bedrock"


def test_what_files_need(connect: Any, aws: Aws) -> None:
    data = lines(request("a", "Hi"))
    with pytest.raises(openai.BadRequestError, match="x-portkey-aws-s3-bucket"):
        client(connect, aws, aws_s3_bucket="").files.create(file=("a.jsonl", data), purpose="batch")
    with pytest.raises(openai.BadRequestError, match=r"\.jsonl"):
        client(connect, aws, provider_file_name="a.txt").files.create(file=("a.jsonl", data), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client(connect, aws).files.create(file=("a.jsonl", data), purpose="assistants")
    with pytest.raises(openai.BadRequestError, match="expires_after"):
        client(connect, aws).files.create(
            file=("a.jsonl", data), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    keyed = connect("bedrock", aws.url, "ABSKbearer-key-0123456789", aws_region="eu-west-1", aws_s3_bucket="my-bucket")
    with pytest.raises(openai.AuthenticationError, match="aws_access_key_id"):
        keyed.files.create(file=("a.jsonl", data), purpose="batch")
    assert aws.asked == []


def test_headers_about_an_upload(connect: Any, aws: Aws) -> None:
    """GATEWAY RH-23."""
    data = lines(request("a", "Hi"))

    def upload(**headers: str) -> Any:
        made = client(connect, aws, **headers)
        form: Any = {"headers": {"Content-Type": "multipart/form-data"}}
        return made.post("/files", files={"file": ("a.jsonl", data)}, cast_to=object, options=form)

    assert upload(file_purpose="batch", file_upload_size=str(len(data)))["purpose"] == "batch"
    for headers, said in (
        ({}, "purpose"),
        ({"file_purpose": "batch", "file_upload_size": "7"}, "file-upload-size"),
        ({"file_purpose": "batch", "provider_batch_endpoint": "/v1/embeddings"}, "provider-batch-endpoint"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            upload(**headers)


def test_a_config_may_say_all_of_it(connect: Any, aws: Aws) -> None:
    target = {
        "provider": "bedrock",
        "custom_host": aws.url,
        "aws_access_key_id": KEYS.access_key_id,
        "aws_secret_access_key": KEYS.secret_access_key,
        "aws_session_token": KEYS.session_token,
        "aws_region": "eu-west-1",
        "aws_s3_bucket": "my-bucket",
    }
    sdk = connect("", "", config=json.dumps({"strategy": {"mode": "fallback"}, "targets": [target]}))
    made = sdk.files.create(file=("a.jsonl", lines(request("a", "Hi"))), purpose="batch")
    assert sdk.files.retrieve(made.id).filename == "a.jsonl"


def test_paths_that_mean_nothing(sdk: openai.OpenAI, aws: Aws) -> None:
    for method, path, status in (
        ("POST", "/batches/x/output", 405),
        ("DELETE", "/batches/x", 405),
        ("PUT", "/files", 405),
        ("GET", "/fine_tuning/x", 404),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            sdk.request(object, openai._models.FinalRequestOptions(method=method, url=path))  # pyright: ignore[reportPrivateUsage]
        assert caught.value.status_code == status
    assert aws.asked == []


def test_fine_tuning(sdk: openai.OpenAI, aws: Aws) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")]
    example = {"messages": [{"role": role, "content": text} for role, text in turns]}
    file = sdk.files.create(file=("train.jsonl", lines(example)), purpose="fine-tune")
    ((stored, _),) = aws.objects.values()
    assert read(stored) == [
        {
            "schemaVersion": "bedrock-conversation-2024",
            "system": [{"text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"text": "Hi"}]},
                {"role": "assistant", "content": [{"text": "Hello"}]},
            ],
        }
    ]
    made = sdk.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        validation_file=file.id,
        suffix="mine",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
        extra_body={"role_arn": ROLE},
    )
    assert (made.status, made.training_file, made.hyperparameters.n_epochs) == ("running", file.id, 2)
    sent = json.loads(aws.asked[-1].body)
    assert (sent["customizationType"], sent["hyperParameters"]) == ("FINE_TUNING", {"epochCount": "2"})
    assert sent["validationDataConfig"] == {"validators": [{"s3Uri": unquote(file.id)}]}
    assert sent["trainingDataConfig"] == {"s3Uri": unquote(file.id)}
    aws.job |= {"status": "Completed", "endTime": MOMENT, "outputModelArn": "arn:aws:bedrock:model"}
    found = sdk.fine_tuning.jobs.retrieve(made.id)
    assert (found.status, found.fine_tuned_model, found.finished_at) == ("succeeded", "arn:aws:bedrock:model", SECONDS)
    assert [job.id for job in sdk.fine_tuning.jobs.list()] == [made.id]
    assert sdk.fine_tuning.jobs.cancel(made.id).status == "running"
    with pytest.raises(openai.InternalServerError, match="listFinetuneEvents is not supported by bedrock"):
        sdk.fine_tuning.jobs.list_events(made.id)
    with pytest.raises(openai.BadRequestError, match="expected messages of"):
        sdk.files.create(file=("t.jsonl", lines({"messages": [{"role": "tool", "content": "x"}]})), purpose="fine-tune")


def test_aws_s_own_addresses() -> None:
    """Each service has its own there; what a client cannot reach in a test is seen by its address."""
    from loomgate.providers.jobs import s3

    assert s3.is_awss_own("https://bedrock-runtime.eu-west-1.amazonaws.com")
    assert s3.is_awss_own("https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com/")
    assert s3.is_awss_own("https://bedrock-runtime.cn-north-1.amazonaws.com.cn")
    assert not s3.is_awss_own("https://vpce-1.bedrock-runtime.eu-west-1.vpce.amazonaws.com")
    assert not s3.is_awss_own("http://127.0.0.1:4566")
