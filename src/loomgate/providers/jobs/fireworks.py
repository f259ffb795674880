"""Jobs of Fireworks AI (its control plane, v1): files are data sets, batches are batch inference jobs, fine-tuning is
supervised fine-tuning jobs. Lines are OpenAI's already, but for small things.

What must live here: what these services take and tell. What must not: chats, which are the row's in the catalogue.
"""

import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, cast
from urllib.parse import quote

import msgspec

from loomgate.errors import ApiError, ProviderError
from loomgate.providers.dialect import HttpCall
from loomgate.providers.failure import error_answer, masked, status_kind
from loomgate.providers.jobs.form import multipart, uploaded
from loomgate.providers.jobs.job import PAGE, Reply, Task, Told, Verbs, answered, decoded, paged, streamed, window
from loomgate.providers.jobs.lines import (
    CHAT,
    converted,
    encode,
    failed,
    line_of,
    object_of_line,
    result,
)
from loomgate.providers.jobs.shapes import (
    batch_of,
    batch_status,
    deleted,
    file_of,
    hyperparameters,
    known,
    moment,
    now,
    number,
    objects,
    required,
    tuning_of,
    within,
)
from loomgate.providers.operation import Fields, refused

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LONGEST = 150 * 1024 * 1024  # bytes that a data set takes in one request
_HAS_OUTPUT = frozenset({"completed", "expired"})


def _failure(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    def read(found: Fields, status: int, wait: float | None) -> ProviderError:
        said = within(found, "error", "message") or found.get("message") or found.get("error")
        message = masked(str(said or f"The endpoint answered HTTP {status}."))
        return ProviderError(status_kind(status), message[:2000], status=status, retry_after=wait)

    return error_answer(status, headers, body, read)


def _account(task: Task) -> str:
    found = task.option("fireworks_account_id")
    if not found:
        name = "x-portkey-fireworks-account-id"
        raise refused(name, f"the header {name} with the id of an account")
    return f"accounts/{quote(found, safe='')}"


async def _ask(
    task: Task, method: str, path: str, body: Fields | bytes | None = None, kind: str = "application/json"
) -> Fields:
    """A call of what the account has."""
    headers = task.target.own_headers() | ({"Content-Type": kind} if body is not None else {})
    base = re.sub(r"(/inference)?/v\d+$", "", task.target.base_url.rstrip("/"))
    data = body if isinstance(body, bytes) else b"" if body is None else encode(body)
    call = HttpCall(f"{base}/v1/{_account(task)}/{path}", headers, data, method)
    return decoded(await answered(await task.means.send(call, task.target.auth), _failure) or b"{}", "fireworks-ai")


def _checked(id: str, param: str) -> str:
    """The id of something in the account, which may be told by its full name. Raises a 400 `ApiError`."""
    found = id.rpartition("/")[2]
    if not _ID.fullmatch(found):
        raise refused(param, "an id of small letters, digits and hyphens", f"'{id[:100]}'")
    return found


def _last(name: object) -> str:
    return str(name or "").rpartition("/")[2]


# --- files -----------------------------------------------------------------------------------------------------------


async def _upload(task: Task) -> Told:
    file = await uploaded(task, ("batch", "fine-tune"))
    named = re.sub(r"\.jsonl$", "", task.header("provider-file-name"))
    id = _checked(named or f"{file.purpose}-{secrets.token_hex(12)}", "x-portkey-provider-file-name")
    made = [piece async for piece in converted(file.pieces, partial(_line, task, file.purpose))]
    data, count = b"".join(made), sum(piece.count(b"\n") for piece in made)
    if len(data) > _LONGEST:
        raise ApiError(413, f"The file is larger than the {_LONGEST >> 20} MiB that Fireworks takes at once.")
    dataset: Fields = {"displayName": file.filename, "exampleCount": str(count), "userUploaded": {}}
    await _ask(task, "POST", "datasets", {"datasetId": id, "dataset": dataset})
    try:
        kind, body = multipart("file", f"{id}.jsonl", data)
        await _ask(task, "POST", f"datasets/{id}:upload", body, kind)
    except ProviderError:
        await _ask(task, "DELETE", f"datasets/{id}")
        raise
    return Told(fields=file_of(id, len(data), now(), file.filename, file.purpose))


def _line(task: Task, purpose: str, at: int, raw: bytes) -> bytes:
    """A line of OpenAI's files as Fireworks has it: the model is the job's."""
    if purpose != "batch":
        object_of_line(at, raw)
        return raw
    line, vendor = line_of(at, raw, *task.urls(CHAT)), task.target.vendor
    body = {vendor.rename.get(name, name): value for name, value in line.body.items() if name != "model"}
    drop = vendor.drop | task.target.drop
    made = {name: _plain(value) if name == "messages" else value for name, value in body.items() if name not in drop}
    return encode({"custom_id": line.custom_id, "body": made})


def _plain(messages: object) -> object:
    """Without the role that only OpenAI knows (GATEWAY TR-05)."""
    if not isinstance(messages, list):
        return messages
    return [
        {**each, "role": "system"} if within(each, "role") == "developer" else each
        for each in cast("list[Any]", messages)
    ]


def _file_of(found: Fields) -> Fields:
    """Fireworks does not tell how large a data set is, nor what it is for: its id does, if we have made it."""
    id = _last(found.get("name"))
    purpose = "batch_output" if found.get("sourceJobName") else "batch" if id.startswith("batch-") else "fine-tune"
    status = "processed" if found.get("state") == "READY" else "uploaded"
    name = str(found.get("displayName") or f"{id}.jsonl")
    return file_of(id, 0, moment(found.get("createTime")), name, purpose, status=status)


async def _file(task: Task) -> Told:
    return Told(fields=_file_of(await _ask(task, "GET", f"datasets/{_checked(task.id, 'file_id')}")))


async def _files(task: Task) -> Told:
    return await _pages(task, "datasets", _file_of)


async def _pages(task: Task, name: str, convert: Callable[[Fields], Fields]) -> Told:
    window(task)

    async def fetch(token: str) -> tuple[list[Fields], str]:
        query = f"?pageSize={PAGE}" + (f"&pageToken={quote(token, safe='')}" if token else "")
        found = await _ask(task, "GET", name + query)
        return [convert(each) for each in objects(found, name)], str(found.get("nextPageToken") or "")

    return await paged(task, fetch)


async def _content(task: Task) -> Told:
    """A data set is several files, each at an address that holds for some minutes: results, and what failed."""
    found = await _ask(task, "GET", f"datasets/{_checked(task.id, 'file_id')}:getDownloadEndpoint")
    told: Any = found.get("filenameToSignedUrls") or {}
    urls = [str(url) for _, url in sorted(cast("Fields", told).items())] if isinstance(told, dict) else []
    if not urls:
        raise ApiError(404, "This file has no content yet.", code="no_content")
    reply = await _fetch(task, urls[0])
    pieces = _joined(task, await streamed(reply, _failure), urls[1:])
    return Told(pieces=converted(pieces, _result), release=reply.close)


async def _fetch(task: Task, url: str) -> Reply:
    return await task.means.fetch(HttpCall(url, {}, method="GET"))


async def _joined(task: Task, first: AsyncGenerator[bytes, None], urls: list[str]) -> AsyncGenerator[bytes, None]:
    """The pieces of several files, one behind the other."""
    async with aclosing(first):
        async for piece in first:
            yield piece
    for url in urls:
        yield b"\n"
        async with aclosing(await streamed(await _fetch(task, url), _failure)) as pieces:
            async for piece in pieces:
                yield piece


def _result(_at: int, raw: bytes) -> bytes:
    """A line of a job's results as OpenAI has it; any other line stays what it is."""
    try:
        found = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return raw
    id, answer, error = found.get("custom_id"), found.get("response"), found.get("error")
    if not isinstance(id, str) or "body" in found or within(answer, "status_code"):
        return raw
    if isinstance(answer, dict) and "choices" in answer:
        body = cast("Fields", answer)
        return result(str(body.get("id") or id), id, body)
    if error:
        said = within(error, "message") or (error if isinstance(error, str) else encode(error).decode())
        return failed(id, id, within(error, "code"), str(said))
    return raw


async def _delete(task: Task) -> Told:
    id = _checked(task.id, "file_id")
    await _ask(task, "DELETE", f"datasets/{id}")
    return Told(fields=deleted(id))


# --- batches ---------------------------------------------------------------------------------------------------------

_BATCH_FIELDS = frozenset("model input_file_id endpoint completion_window job_name".split())


def _model(model: str) -> str:
    return model if "/" in model else f"accounts/fireworks/models/{model}"


async def _create(task: Task) -> Told:
    fields = task.fields
    known(fields, _BATCH_FIELDS, "fireworks-ai")
    model = str(fields.get("model") or task.model)
    required({"model": model or None}, "model")
    if fields.get("endpoint", CHAT) != CHAT:
        raise refused("endpoint", f"'{CHAT}'", f"'{str(fields['endpoint'])[:100]}'")
    if fields.get("completion_window", "24h") != "24h":
        raise refused("completion_window", "'24h'")
    source = _checked(required(fields, "input_file_id"), "input_file_id")
    body: Fields = {"model": _model(model), "inputDatasetId": f"{_account(task)}/datasets/{source}"}
    if fields.get("job_name"):
        body["displayName"] = required(fields, "job_name")
    return Told(fields=_batch_of(await _ask(task, "POST", "batchInferenceJobs", body)))


def _batch_of(job: Fields) -> Fields:
    counts = None
    if job.get("jobProgress") is not None:
        names = ("totalInputRequests", "totalProcessedRequests", "successfullyProcessedRequests", "failedRequests")
        given, seen, done, bad = (number(within(job, "jobProgress", name)) for name in names)
        counts = (max(given, seen), done, bad)  # the first is what the upload said, not what was found
    status = batch_status(job.get("state"))
    return batch_of(
        _last(job.get("name")),
        job.get("state"),
        input_file_id=_last(job.get("inputDatasetId")),
        created=moment(job.get("createTime")),
        model=job.get("model"),
        ended=moment(job.get("updateTime")),
        counts=counts,
        error=within(job, "status", "message") if status == "failed" else None,
        output_file_id=_last(job.get("outputDatasetId")) or None if status in _HAS_OUTPUT else None,
        expires_at=moment(job.get("expireTime")),
    )


def _job(task: Task, kind: str) -> str:
    return f"{kind}/{_checked(task.id, 'id')}"


async def _batch(task: Task) -> Told:
    return Told(fields=_batch_of(await _ask(task, "GET", _job(task, "batchInferenceJobs"))))


async def _batches(task: Task) -> Told:
    return await _pages(task, "batchInferenceJobs", _batch_of)


async def _cancel(task: Task) -> Told:
    """Fireworks has no other way to end a job than to delete it."""
    found = await _ask(task, "GET", _job(task, "batchInferenceJobs"))
    await _ask(task, "DELETE", _job(task, "batchInferenceJobs"))
    return Told(fields=_batch_of({**found, "state": "JOB_STATE_CANCELLING"}))


# --- fine-tuning -----------------------------------------------------------------------------------------------------

_TUNING_FIELDS = frozenset("model training_file validation_file suffix hyperparameters method".split())
_HYPER = {"n_epochs": "epochs", "learning_rate": "learningRate"}


async def _tune(task: Task) -> Told:
    fields = task.fields
    known(fields, _TUNING_FIELDS, "fireworks-ai")
    account = _account(task)
    dataset = _checked(required(fields, "training_file"), "training_file")
    body: Fields = {"dataset": f"{account}/datasets/{dataset}", "baseModel": _model(required(fields, "model"))}
    if fields.get("validation_file"):
        held = _checked(required(fields, "validation_file"), "validation_file")
        body["evaluationDataset"] = f"{account}/datasets/{held}"
    if fields.get("suffix"):
        suffix = _checked(required(fields, "suffix"), "suffix")
        body |= {"displayName": suffix, "outputModel": f"{account}/models/{suffix}"}
    # A rate, not what a default is multiplied with.
    hyper = hyperparameters(fields, tuple(_HYPER))
    body |= {_HYPER[name]: value for name, value in hyper.items()}
    return Told(fields=_tuning_of(await _ask(task, "POST", "supervisedFineTuningJobs", body)))


def _tuning_of(job: Fields) -> Fields:
    return tuning_of(
        _last(job.get("name")),
        job.get("state"),
        model=str(job.get("baseModel") or ""),
        training_file=_last(job.get("dataset")),
        created=moment(job.get("createTime")),
        hyperparameters={ours: job.get(theirs) for ours, theirs in _HYPER.items()},
        error=within(job, "status", "message") if job.get("state") == "JOB_STATE_FAILED" else None,
        validation_file=_last(job.get("evaluationDataset")) or None,
        finished_at=moment(job.get("completedTime")),
        fine_tuned_model=job.get("outputModel") if job.get("state") == "JOB_STATE_COMPLETED" else None,
        user_provided_suffix=job.get("displayName"),
    )


async def _tuning(task: Task) -> Told:
    return Told(fields=_tuning_of(await _ask(task, "GET", _job(task, "supervisedFineTuningJobs"))))


async def _tunings(task: Task) -> Told:
    return await _pages(task, "supervisedFineTuningJobs", _tuning_of)


async def _cancel_tuning(task: Task) -> Told:
    found = await _ask(task, "GET", _job(task, "supervisedFineTuningJobs"))
    await _ask(task, "DELETE", _job(task, "supervisedFineTuningJobs"))
    return Told(fields=_tuning_of({**found, "state": "JOB_STATE_CANCELLED"}))


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
    "createFinetune": _tune,
    "listFinetunes": _tunings,
    "retrieveFinetune": _tuning,
    "cancelFinetune": _cancel_tuning,
}
