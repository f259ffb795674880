"""Files that are too large to be held: they go on as they come, where a vendor takes them so."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.gateway_jobs.test_bedrock import KEYS, Aws, error, request
from tests.gateway_jobs.test_cohere import Cohere
from tests.gateway_jobs.test_vertex import TOKEN, Google
from tests.gateway_jobs.vendor import Vendor, lines, read
from tests.support.eventually import eventually
from tests.support.server import Server, serving
from tests.support.standin import StandIn

pytestmark = pytest.mark.behaviour("TR-25")

HELD, MOST = 100_000, 24_000_000
AWS = {
    "x-portkey-provider": "bedrock",
    "x-portkey-aws-access-key-id": KEYS.access_key_id,
    "x-portkey-aws-secret-access-key": KEYS.secret_access_key,
    "x-portkey-aws-session-token": str(KEYS.session_token),
    "x-portkey-aws-region": "eu-west-1",
    "x-portkey-aws-s3-bucket": "my-bucket",
}
VERTEX = {"x-portkey-provider": "vertex-ai", "x-portkey-vertex-storage-bucket-name": "my-bucket"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that holds little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUSTED_CUSTOM_HOSTS", "127.0.0.1")
        data: Path = tmp_path_factory.mktemp("large") / "data"
        with serving(data, key=True, max_body_bytes=HELD, max_upload_bytes=MOST) as made:
            yield made


@pytest.fixture
def vendors(small: Server) -> Iterator[Any]:
    started: list[Any] = []

    def begin(kind: type[Any]) -> Any:
        made = kind()
        small.run(made.start())
        started.append(made)
        return made

    yield begin
    for made in started:
        small.run(made.stop())


def sdk(small: Server, vendor: Vendor | StandIn, named: dict[str, str], key: str = "", **more: Any) -> openai.OpenAI:
    ours = small.new_key()
    headers = {**named, "x-portkey-custom-host": vendor.url, **({"x-portkey-api-key": ours} if key else {})}
    return openai.OpenAI(
        base_url=f"{small.url}/v1", api_key=key or ours, default_headers=headers, max_retries=0, **more
    )


def many(number: int) -> bytes:
    return lines(*(request(str(each), "x" * 10_000) for each in range(number)))


def test_a_large_file_goes_on_to_s3(small: Server, vendors: Any) -> None:
    aws: Aws = vendors(Aws)
    data = many(1800)
    assert HELD < len(data) < MOST
    size = {"x-portkey-file-upload-size": str(len(data))}
    made = sdk(small, aws, AWS | size).files.create(file=("large.jsonl", data), purpose="batch")
    ((stored, headers),) = aws.objects.values()
    assert made.bytes == len(stored) > 16 << 20
    assert [row["recordId"] for row in read(stored)] == [str(number) for number in range(1800)]
    assert headers["x-amz-meta-filename"] == "large.jsonl"
    assert aws.uploads == {}


def test_a_large_file_goes_on_to_cloud_storage(small: Server, vendors: Any) -> None:
    google: Google = vendors(Google)
    data = lines(*({"messages": [{"role": "user", "content": "x" * 1000}]} for _ in range(1000)))
    made = sdk(small, google, VERTEX, TOKEN).files.create(file=("large.jsonl", data), purpose="fine-tune")
    (stored,) = google.content.values()
    assert made.bytes == len(stored)
    assert len(read(stored)) == 1000


def test_what_may_be_wrong_with_it(small: Server, vendors: Any) -> None:
    aws: Aws = vendors(Aws)
    for headers, data, said in (
        ({"x-portkey-file-upload-size": "7"}, many(20), "file-upload-size"),
        ({}, many(20) + b"nonsense\n", "Line 21 of the file"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            sdk(small, aws, AWS | headers).files.create(file=("large.jsonl", data), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        sdk(small, aws, AWS).files.create(file=("large.jsonl", many(20)), purpose="vision")
    assert (aws.objects, aws.uploads) == ({}, {})


def test_what_is_larger_than_any_upload_or_has_to_be_held(small: Server, vendors: Any) -> None:
    aws, cohere, other = vendors(Aws), vendors(Cohere), vendors(StandIn)
    for client, data in (
        (sdk(small, aws, AWS), b"x" * (MOST + 1)),
        (sdk(small, cohere, {"x-portkey-provider": "cohere"}, "k"), many(20)),
        (sdk(small, other, {"x-portkey-provider": "openai"}, "k"), many(20)),
    ):
        with pytest.raises(openai.APIStatusError, match="too large") as caught:
            client.files.create(file=("large.jsonl", data), purpose="batch")
        assert caught.value.status_code == 413
    assert aws.asked == cohere.asked == other.asked == []


def test_it_is_not_tried_again(small: Server, vendors: Any) -> None:
    aws: Aws = vendors(Aws)
    aws.refusal = error("InternalError", "Try again.", 503)
    config = {"x-portkey-config": json.dumps({"retry": {"attempts": 1, "on_status_codes": [503]}})}
    with pytest.raises(openai.InternalServerError, match="Try again"):
        sdk(small, aws, AWS | config).files.create(file=("large.jsonl", many(20)), purpose="batch")
    assert len(aws.asked) == 1


def form(data: bytes, *after: tuple[str, str], boundary: str = "b0und") -> bytes:
    """A form whose file comes first, as some clients send it."""
    head = 'Content-Disposition: form-data; name="file"; filename="C:\\\\a.jsonl"\r\nContent-Type: x/y'
    made = f"--{boundary}\r\n{head}\r\n\r\n".encode() + data
    for name, value in after:
        made += f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()
    return made + f"\r\n--{boundary}--\r\n".encode()


def posted(small: Server, vendor: Vendor, body: bytes, **headers: str) -> socket.socket:
    parts = urlsplit(small.url)
    named = AWS | {"x-portkey-custom-host": vendor.url, "Authorization": f"Bearer {small.new_key()}"}
    named |= {"Content-Type": "multipart/form-data; boundary=b0und", **headers}
    named.setdefault("Content-Length", str(len(body)))
    head = ["POST /v1/files HTTP/1.1", f"Host: {parts.netloc}", *(f"{name}: {value}" for name, value in named.items())]
    made = socket.create_connection((parts.hostname, parts.port), timeout=10)
    made.sendall("\r\n".join([*head, "", ""]).encode() + body)
    return made


def told(made: socket.socket) -> bytes:
    """The answer's head and body."""
    with made, made.makefile("rb") as answer:
        head = b"".join(iter(answer.readline, b"\r\n"))
        size = next(line for line in head.lower().splitlines() if line.startswith(b"content-length: "))
        return head + answer.read(int(size.split()[1]))


def test_a_form_whose_file_comes_first(small: Server, vendors: Any) -> None:
    aws: Aws = vendors(Aws)
    body = form(many(20), ("purpose", "batch"))
    assert b"'purpose'" in told(posted(small, aws, body))
    assert b'"filename":"a.jsonl"' in told(posted(small, aws, body, **{"x-portkey-file-purpose": "batch"}))
    ((stored, _),) = aws.objects.values()
    assert len(read(stored)) == 20


def test_a_form_without_an_end(small: Server, vendors: Any) -> None:
    aws: Aws = vendors(Aws)
    body = form(many(20))[:-12]
    assert b"400" in told(posted(small, aws, body, **{"x-portkey-file-purpose": "batch"}))[:12]
    assert (aws.objects, aws.uploads) == ({}, {})


def test_a_client_that_leaves_within_it(small: Server, vendors: Any) -> None:
    aws: Aws = vendors(Aws)
    body = form(many(1200))
    headers = {"x-portkey-file-purpose": "batch", "Content-Length": str(len(body) + 1000)}
    made = posted(small, aws, body, **headers)
    eventually(lambda: aws.uploads)
    made.close()
    eventually(lambda: not aws.uploads)
    assert aws.asked[-1].method == "DELETE"
