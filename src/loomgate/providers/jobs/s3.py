"""Objects in Amazon S3 (REST API 2006-03-01): what is sent and what it means.

What must live here: addresses, uploads in parts, S3's XML. What must not: what is in an object.
"""

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Mapping
from html import unescape
from urllib.parse import quote

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers.dialect import Auth, HttpCall
from loomgate.providers.failure import masked, retry_after, status_kind
from loomgate.providers.jobs.job import PAGE, Reply, Task, answered
from loomgate.providers.jobs.lines import parts
from loomgate.providers.jobs.shapes import moment, number
from loomgate.providers.sigv4 import DEFAULT_REGION, SigV4

# A part of an upload: held in memory, and at least 5 MiB but for the last. S3 takes 10,000 of them.
PART = 8 * 1024 * 1024

_OWN_HOST = re.compile(r"https://bedrock-runtime(-fips)?\.[a-z0-9-]+\.(amazonaws\.com(?:\.cn)?|api\.aws)$")
_SAID = re.compile(r"<(Code|Message)>([^<]*)</\1>")
_UPLOAD = re.compile(r"<UploadId>([^<]+)</UploadId>")
_CONTENTS = re.compile(r"<Contents>(.*?)</Contents>", re.DOTALL)
_MEMBER = re.compile(r"<(Key|Size|LastModified)>([^<]*)</\1>")
_ENCODED = re.compile(r"=\?UTF-8\?B\?([A-Za-z0-9+/]+={0,2})\?=")
_NONE: Mapping[str, str] = {}
_NEXT = re.compile(r"<NextContinuationToken>([^<]+)</NextContinuationToken>")


class Object(msgspec.Struct, frozen=True):
    """What S3 says of an object."""

    key: str
    size: int
    modified: int | None
    purpose: str = ""
    name: str = ""


def is_awss_own(base_url: str) -> bool:
    """Whether ``base_url`` is AWS's own address, which has each of its services elsewhere; behind any other address
    (of a proxy, of LocalStack) all of them are expected."""
    return _OWN_HOST.match(base_url.rstrip("/")) is not None


def _url(task: Task, bucket: str, key: str, query: str = "") -> str:
    base = task.target.base_url.rstrip("/")
    path = quote(key, safe="/-._~")
    if is_awss_own(base):
        region = task.target.region or DEFAULT_REGION
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        # A certificate covers one label in front of it, so a name with dots goes into the path.
        dotted = "." in bucket
        base = f"https://s3.{region}.{domain}" if dotted else f"https://{bucket}.s3.{region}.{domain}"
        path = f"{bucket}/{path}" if dotted else path
    else:
        path = f"{bucket}/{path}"
    return f"{base}/{path}{'?' + query if query else ''}"


def _auth(task: Task) -> Auth:
    auth = task.target.auth
    if not isinstance(auth, SigV4):
        said = "S3 takes no Bedrock API key: files need aws_access_key_id and aws_secret_access_key."
        raise ProviderError("auth", said)
    return msgspec.structs.replace(auth, service="s3")


async def _send(task: Task, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] = _NONE) -> Reply:
    made = {"x-amz-content-sha256": hashlib.sha256(body).hexdigest(), **headers}
    return await task.means.send(HttpCall(url, made, body, method), _auth(task))


def failure(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """What an error answer of S3 means; one to HEAD has no body."""
    said = {found[0]: unescape(found[1]) for found in _SAID.findall(body.decode("utf-8", "replace"))}
    kind = status_kind(status)
    if said.get("Code") in ("SlowDown", "RequestLimitExceeded"):
        kind = "rate_limit"
    elif said.get("Code") in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
        kind = "auth"
    plain = {404: "There is no such object.", 403: "The keys may not do this."}
    message = said.get("Message") or plain.get(status) or f"S3 answered HTTP {status}."
    return ProviderError(kind, masked(message)[:2000], status=status, retry_after=retry_after(headers))


def _encryption(task: Task) -> dict[str, str]:
    key = task.option("amz_server_side_encryption_aws_kms_key_id")
    kind = task.option("amz_server_side_encryption") or ("aws:kms" if key else "")
    given = {"x-amz-server-side-encryption": kind, "x-amz-server-side-encryption-aws-kms-key-id": key}
    return {name: value for name, value in given.items() if value}


async def put(task: Task, bucket: str, key: str, pieces: AsyncGenerator[bytes, None], meta: Mapping[str, str]) -> int:
    """Write an object, and return how many bytes it has. One that is larger than a part is uploaded in parts, since
    S3 wants to know lengths beforehand; what was uploaded of one that fails is thrown away."""
    described = {"content-type": "application/jsonl", **_encryption(task)}
    described |= {f"x-amz-meta-{name}": _ascii(value) for name, value in meta.items()}
    upload, size, tags = "", 0, list[str]()
    try:
        async for part, last in parts(pieces, PART):
            size += len(part)
            if last and not upload:
                await answered(await _send(task, "PUT", _url(task, bucket, key), part, described), failure)
                return size
            if not upload:
                begun = await answered(
                    await _send(task, "POST", _url(task, bucket, key, "uploads="), headers=described), failure
                )
                found = _UPLOAD.search(begun.decode("utf-8", "replace"))
                if found is None:
                    raise ProviderError("malformed", "S3 began an upload without telling its id.")
                upload = quote(unescape(found[1]), safe="")
            if part:
                where = _url(task, bucket, key, f"partNumber={len(tags) + 1}&uploadId={upload}")
                reply = await _send(task, "PUT", where, part)
                await answered(reply, failure)
                tags.append(reply.headers.get("etag", ""))
        listed = "".join(
            f"<Part><PartNumber>{index}</PartNumber><ETag>{tag}</ETag></Part>" for index, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        reply = await _send(task, "POST", _url(task, bucket, key, f"uploadId={upload}"), body)
        ended = await answered(reply, failure)
        if b"<Error>" in ended:  # it may find out after it has said 200
            raise failure(500, {}, ended)
    except BaseException:
        if upload:
            reply = await _send(task, "DELETE", _url(task, bucket, key, f"uploadId={upload}"))
            reply.close()
        raise
    return size


def _ascii(text: str) -> str:
    """As S3's headers have it: other text is encoded (RFC 2047)."""
    return text if text.isascii() and text.isprintable() else f"=?UTF-8?B?{b64encode(text.encode()).decode()}?="


def _plain(text: str) -> str:
    """The other way around."""
    found = _ENCODED.fullmatch(text)
    return b64decode(found[1]).decode("utf-8", "replace") if found else text


async def head(task: Task, bucket: str, key: str) -> Object:
    """What there is to know about an object. Raises `ProviderError`."""
    reply = await _send(task, "HEAD", _url(task, bucket, key))
    await answered(reply, failure)
    said = reply.headers
    purpose, name = said.get("x-amz-meta-purpose", ""), _plain(said.get("x-amz-meta-filename", ""))
    return Object(key, number(said.get("content-length")), moment(said.get("last-modified")), purpose, name)


async def get(task: Task, bucket: str, key: str) -> Reply:
    """An object's content. Its status may be that of an error (`failure`)."""
    return await _send(task, "GET", _url(task, bucket, key))


async def delete(task: Task, bucket: str, key: str) -> None:
    """S3 does not say whether there was such an object. Raises `ProviderError`."""
    await answered(await _send(task, "DELETE", _url(task, bucket, key)), failure)


async def listed(task: Task, bucket: str, prefix: str, token: str) -> tuple[list[Object], str]:
    """One page of a bucket's objects, and the token of the next one."""
    query = f"list-type=2&max-keys={PAGE}&prefix={quote(prefix, safe='')}"
    query += f"&continuation-token={quote(token, safe='')}" if token else ""
    body = await answered(await _send(task, "GET", _url(task, bucket, "", query)), failure)
    text = body.decode("utf-8", "replace")
    found = [dict(_MEMBER.findall(each)) for each in _CONTENTS.findall(text)]
    more = _NEXT.search(text)
    objects = [
        Object(unescape(each.get("Key", "")), number(each.get("Size")), moment(each.get("LastModified")))
        for each in found
    ]
    return objects, unescape(more[1]) if more else ""
