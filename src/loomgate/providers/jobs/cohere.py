"""Jobs of Cohere: files are data sets (v1), batches are batches (v2).

What must live here: what these services take and tell. What must not: Avro (``avro``), Cohere's chat.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast
from urllib.parse import quote, urlencode

import msgspec

from loomgate.errors import ApiError, ProviderError
from loomgate.providers.cohere import Cohere
from loomgate.providers.dialect import HttpCall
from loomgate.providers.jobs.avro import Container
from loomgate.providers.jobs.form import multipart, uploaded
from loomgate.providers.jobs.job import PAGE, Reply, Task, Told, Verbs, answered, decoded, paged, streamed, window
from loomgate.providers.jobs.lines import (
    CHAT,
    EMBED,
    Line,
    converted,
    encode,
    failed,
    line_of,
    refusing,
    result,
    wrong,
)
from loomgate.providers.jobs.shapes import (
    batch_of,
    deleted,
    file_of,
    known,
    moment,
    now,
    number,
    objects,
    required,
    within,
)
from loomgate.providers.operation import Fields, embeddings, refused, texts_of

_COHERE = Cohere()
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TYPES = {CHAT: "batch-chat-v2-input", EMBED: "batch-embed-v2-input"}
# What the rows of such a data set have a place for.
_ROW = frozenset(
    "messages tools temperature p frequency_penalty presence_penalty reasoning thinking_budget logprobs max_tokens k "
    "seed".split()
)
_EMBED_ROW = frozenset("model input encoding_format user input_type truncate".split())


async def _ask(
    task: Task, method: str, path: str, body: Fields | bytes | None = None, kind: str = "application/json"
) -> Fields:
    headers = task.target.own_headers() | ({"Content-Type": kind} if body is not None else {})
    data = body if isinstance(body, bytes) else b"" if body is None else encode(body)
    base = re.sub(r"/v\d$", "", task.target.base_url.rstrip("/"))
    call = HttpCall(base + path, headers, data, method)
    return decoded(await answered(await task.means.send(call, task.target.auth), _COHERE.error) or b"{}", "cohere")


def _checked(id: str, param: str) -> str:
    """The id of a data set or a batch. Raises a 400 `ApiError`."""
    if not _ID.fullmatch(id) or id in (".", ".."):
        raise refused(param, "an id of letters, digits, hyphens and underscores", f"'{id[:100]}'")
    return id


# --- files -----------------------------------------------------------------------------------------------------------


async def _upload(task: Task) -> Told:
    file = await uploaded(task, ("batch",))
    urls: list[str] = []

    def convert(at: int, raw: bytes) -> bytes:
        line = line_of(at, raw, *task.urls(CHAT, EMBED))
        urls.append(line.url)
        if line.url != urls[0]:
            raise wrong(at, f"expected {urls[0]} as in the lines before it, but got {line.url}: a file has one kind.")
        return refusing(at, lambda: _embed(line) if line.url == EMBED else _chat(task, line))

    data = b"".join([piece async for piece in converted(file.pieces, convert)])
    if not urls:
        raise refused("file", "at least one line")
    name = task.header("provider-file-name") or file.filename
    query = urlencode({"name": name, "type": _TYPES[urls[0]], "keep_original_file": "true"})
    kind, body = multipart("data", "data.jsonl", data)
    made = await _ask(task, "POST", f"/v1/datasets?{query}", body, kind)
    if not made.get("id"):
        raise ProviderError("malformed", "Cohere made a data set without telling its id.")
    # It is validated before a batch can be made of it.
    return Told(fields=file_of(str(made["id"]), len(data), now(), name, file.purpose, status="uploaded"))


def _chat(task: Task, line: Line) -> bytes:
    call = task.means.chat({**line.body, "model": line.body.get("model") or task.model or "unnamed"})
    body = msgspec.json.decode(_COHERE.request(call, task.target).body, type=dict[str, Any])
    del body["model"]
    if (thinking := body.pop("thinking", None)) is not None:
        body["reasoning"] = within(thinking, "type") != "disabled"
        if (budget := within(thinking, "token_budget")) is not None:
            body["thinking_budget"] = budget
    known(body, _ROW, "cohere")
    for message in objects(body, "messages"):
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else objects(message, "content")
        if parts:
            message["content"] = [_part(part) for part in parts]
    for tool in objects(body, "tools"):
        function = within(tool, "function")
        if within(function, "parameters") is not None:
            function["parameters"] = encode(function["parameters"]).decode()
    return encode({"custom_id": line.custom_id, "body": body})


def _part(part: Fields) -> Fields:
    if part.get("type") == "image_url":
        return {**part, "image_url": within(part, "image_url", "url")}
    if part.get("type") not in ("text", "thinking"):
        raise refused("messages", "text and images, which are what Cohere's batches take")
    return part


def _embed(line: Line) -> bytes:
    known(line.body, _EMBED_ROW, "cohere")
    if line.body.get("encoding_format") == "base64":
        raise refused("encoding_format", "'float'")
    body: Fields = {
        "texts": texts_of(line.body),
        "input_type": line.body.get("input_type") or "search_document",
        "embedding_types": ["float"],
    }
    if line.body.get("truncate"):
        body["truncate"] = line.body["truncate"]
    return encode({"custom_id": line.custom_id, "body": body})


_STATUS = {"validated": "processed", "failed": "error", "skipped": "error"}


def _file_of(found: Fields) -> Fields:
    kind = str(found.get("dataset_type") or "")
    purpose = "fine-tune" if "finetune" in kind else "batch" if kind.endswith("-input") else "batch_output"
    return file_of(
        str(found.get("id") or ""),
        sum(number(part.get("size_bytes")) for part in objects(found, "dataset_parts")),
        moment(found.get("created_at")),
        str(found.get("name") or ""),
        purpose,
        status=_STATUS.get(str(found.get("validation_status")), "uploaded"),
        status_details=found.get("validation_error") or None,
    )


async def _dataset(task: Task) -> Fields:
    found = await _ask(task, "GET", f"/v1/datasets/{_checked(task.id, 'file_id')}")
    return cast("Fields", within(found, "dataset") or {})


async def _file(task: Task) -> Told:
    return Told(fields=_file_of(await _dataset(task)))


async def _files(task: Task) -> Told:
    window(task)

    async def fetch(token: str) -> tuple[list[Fields], str]:
        at = number(token)
        found = objects(await _ask(task, "GET", f"/v1/datasets?limit={PAGE}&offset={at}"), "datasets")
        return [_file_of(each) for each in found], str(at + PAGE) if len(found) == PAGE else ""

    return await paged(task, fetch)


async def _delete(task: Task) -> Told:
    id = _checked(task.id, "file_id")
    await _ask(task, "DELETE", f"/v1/datasets/{id}")
    return Told(fields=deleted(id))


async def _content(task: Task) -> Told:
    """The file that was uploaded, if it is still there; else the rows of the data set, which are Avro."""
    parts = objects(await _dataset(task), "dataset_parts")
    parts.sort(key=lambda part: number(part.get("index")))
    originals = list(dict.fromkeys(str(part["original_url"]) for part in parts if part.get("original_url")))
    whole = bool(originals) and all(part.get("original_url") for part in parts)
    urls = originals if whole else [str(part["url"]) for part in parts if part.get("url")]
    if not urls:
        raise ApiError(404, "This file has no content yet.", code="no_content")
    reply = await _fetch(task, urls[0])
    files = _each(task, await streamed(reply, _COHERE.error), urls[1:])
    return Told(pieces=_joined(files) if whole else _rows(task, files), release=reply.close)


async def _fetch(task: Task, url: str) -> Reply:
    return await task.means.fetch(HttpCall(url, {}, method="GET"))


async def _each(
    task: Task, first: AsyncGenerator[bytes, None], urls: list[str]
) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
    """The parts of a data set, one by one."""
    async with aclosing(first):
        yield first
    for url in urls:
        async with aclosing(await streamed(await _fetch(task, url), _COHERE.error)) as pieces:
            yield pieces


async def _joined(files: AsyncGenerator[AsyncGenerator[bytes, None], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(files):
        async for file in files:
            async for piece in file:
                yield piece


async def _rows(task: Task, files: AsyncGenerator[AsyncGenerator[bytes, None], None]) -> AsyncGenerator[bytes, None]:
    """The rows as lines. Avro is read in a thread, so that nobody waits for a large one."""
    async with aclosing(files):
        async for file in files:
            container = Container()
            async for piece in file:
                if made := await asyncio.to_thread(_read, task, container, piece):
                    yield made
            container.end()


def _read(task: Task, container: Container, piece: bytes) -> bytes:
    return b"".join(_result(task, row) + b"\n" for row in container.feed(piece))


def _result(task: Task, row: Any) -> bytes:
    """A row of a batch's results as OpenAI's line; any other row as it is."""
    id, body = within(row, "custom_id"), within(row, "body")
    if not isinstance(id, str) or ("messages" in body or "texts" in body if isinstance(body, dict) else False):
        return encode(row)
    said = within(row, "error")
    if said or not isinstance(body, dict):
        return failed(id, id, "failed", said if isinstance(said, str) else encode(said).decode() if said else "")
    told = cast("Fields", _given(body))
    try:
        vectors = within(told, "embeddings", "float") or within(told, "embeddings", "float_")
        if isinstance(vectors, list):
            tokens = number(within(told, "meta", "billed_units", "input_tokens"))
            made = embeddings(cast("list[list[float]]", vectors), {"model": task.model}, tokens)
            return result(str(told.get("id") or id), id, made)
        made = task.means.completion(_COHERE, encode(told), task.model)
        return result(str(made["id"]), id, made)
    except ProviderError as error:
        return failed(id, id, error.kind, error.message)


def _given(found: Any) -> Any:
    """Without the members that are null, which is how Avro has what is not there."""
    if isinstance(found, dict):
        return {name: _given(value) for name, value in cast("Fields", found).items() if value is not None}
    return [_given(each) for each in cast("list[Any]", found)] if isinstance(found, list) else found


# --- batches ---------------------------------------------------------------------------------------------------------

_BATCH_FIELDS = frozenset("model input_file_id endpoint completion_window job_name".split())


async def _create(task: Task) -> Told:
    fields = task.fields
    known(fields, _BATCH_FIELDS, "cohere")
    model = str(fields.get("model") or task.model)
    required({"model": model or None}, "model")
    if fields.get("endpoint", CHAT) not in _TYPES:
        raise refused("endpoint", f"'{CHAT}' or '{EMBED}'", f"'{str(fields['endpoint'])[:100]}'")
    if fields.get("completion_window", "24h") != "24h":
        raise refused("completion_window", "'24h'")
    source = _checked(required(fields, "input_file_id"), "input_file_id")
    body: Fields = {
        "name": str(fields.get("job_name") or f"batch-{source}"),
        "input_dataset_id": source,
        "model": model,
    }
    return Told(fields=_batch_of(within(await _ask(task, "POST", "/v2/batches", body), "batch")))


def _batch_of(found: Any) -> Fields:
    job = cast("Fields", found if isinstance(found, dict) else {})
    if not job.get("id"):
        raise ProviderError("malformed", "Cohere told of a batch without its id.")
    model = str(job.get("model") or "")
    counts = None
    if job.get("num_records") is not None:
        names = ("num_records", "num_successful_records", "num_failed_records")
        total, done, bad = (number(job.get(name)) for name in names)
        counts = (total, done, bad)
    return batch_of(
        str(job["id"]),
        job.get("status"),
        endpoint=EMBED if model.startswith("embed") else CHAT,
        input_file_id=str(job.get("input_dataset_id") or ""),
        created=moment(job.get("created_at")),
        model=model or None,
        ended=moment(job.get("updated_at")),
        counts=counts,
        error=job.get("status_reason") if str(job.get("status")).endswith("_FAILED") else None,
        output_file_id=job.get("output_dataset_id") or None,
    )


async def _batch(task: Task) -> Told:
    return Told(fields=_batch_of(within(await _ask(task, "GET", f"/v2/batches/{_checked(task.id, 'id')}"), "batch")))


async def _batches(task: Task) -> Told:
    window(task)

    async def fetch(token: str) -> tuple[list[Fields], str]:
        query = f"?page_size={PAGE}&order_by=created_at" + (f"&page_token={quote(token, safe='')}" if token else "")
        found = await _ask(task, "GET", "/v2/batches" + query)
        return [_batch_of(each) for each in objects(found, "batches")], str(found.get("next_page_token") or "")

    return await paged(task, fetch)


async def _cancel(task: Task) -> Told:
    await _ask(task, "POST", f"/v2/batches/{_checked(task.id, 'id')}:cancel", {})
    return await _batch(task)


VERBS: Verbs = {
    "uploadFile": _upload,
    "listFiles": _files,
    "retrieveFile": _file,
    "retrieveFileContent": _content,
    "deleteFile": _delete,
    "createBatch": _create,
    "listBatches": _batches,
    "retrieveBatch": _batch,
    "cancelBatch": _cancel,
}
