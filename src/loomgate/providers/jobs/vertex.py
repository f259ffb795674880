"""Jobs of Vertex AI (v1): files are objects in Cloud Storage, batches are batch prediction jobs, fine-tuning is tuning
jobs.

What must live here: what these services take and tell. What must not: Cloud Storage (``gcs``), the models' formats.
"""

import re
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from urllib.parse import quote, unquote

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers.anthropic import Anthropic
from loomgate.providers.dialect import HttpCall
from loomgate.providers.gemini import VertexAI
from loomgate.providers.gemini_answer import failure
from loomgate.providers.jobs import gcs, tuning
from loomgate.providers.jobs.form import uploaded
from loomgate.providers.jobs.job import PAGE, Task, Told, Verbs, answered, decoded, paged, streamed, window
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
    batch_status,
    checked,
    deleted,
    file_of,
    hyperparameters,
    inner,
    known,
    moment,
    number,
    object_id,
    object_of,
    objects,
    required,
    tuning_of,
    within,
)
from loomgate.providers.operation import Fields, embeddings, refused, texts_of
from loomgate.providers.vertex import dialect_of, place, split

_GEMINI, _CLAUDE = VertexAI(), Anthropic()
_PREDICTIONS = re.compile(r"(?:^|/)prediction-[^/]*/[^/]+\.jsonl$")  # what a job has written
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_HAS_OUTPUT = frozenset({"completed", "cancelled", "expired"})


# --- files -----------------------------------------------------------------------------------------------------------


def _bucket(task: Task) -> str:
    found = task.option("vertex_storage_bucket_name")
    if not found:
        name = "x-portkey-vertex-storage-bucket-name"
        raise refused(name, f"the header {name} with the name of a bucket")
    return found


async def _upload(task: Task) -> Told:
    file = await uploaded(task, ("batch", "fine-tune"), streams=True)
    key = task.header("provider-file-name") or f"{secrets.token_hex(12)}.jsonl"
    bucket, key = checked(_bucket(task), key.lstrip("/"), "x-portkey-provider-file-name")
    pieces = converted(file.pieces, partial(_request if file.purpose == "batch" else _example, task))
    made = await gcs.put(task, bucket, key, pieces, {"purpose": file.purpose, "filename": file.filename})
    return Told(fields=_file_of(made, bucket, key))


def _file_of(found: Fields, bucket: str, key: str = "") -> Fields:
    key = str(found.get("name") or key)
    purpose = within(found, "metadata", "purpose") or ("batch_output" if _PREDICTIONS.search(key) else "batch")
    name = within(found, "metadata", "filename") or key.rpartition("/")[2]
    created = moment(found.get("timeCreated"))
    return file_of(object_id("gs", bucket, key), number(found.get("size")), created, str(name), str(purpose))


def _request(task: Task, at: int, raw: bytes) -> bytes:
    """A line of OpenAI's batches as the model's publisher has it."""
    line = line_of(at, raw, *task.urls(CHAT, EMBED))
    model = str(line.body.get("model") or task.model)
    if not model:
        raise wrong(at, "expected a model, there or in the header x-portkey-provider-model.")
    return refusing(at, partial(_embed if line.url == EMBED else _chat, task, line, model))


def _chat(task: Task, line: Line, model: str) -> bytes:
    publisher = split(model)[0]
    if publisher not in ("google", "anthropic"):
        raise refused("model", "one of Google's or Anthropic's, which are those that Vertex AI batches", f"'{model}'")
    call = task.means.chat({**line.body, "model": model})
    body = msgspec.Raw(dialect_of(model).request(call, task.target).body)
    name = "custom_id" if publisher == "anthropic" else "requestId"
    return encode({name: line.custom_id, "request": body})


def _embed(_task: Task, line: Line, _model: str) -> bytes:
    known(line.body, ("model", "input", "task_type", "title", "encoding_format", "user"), "vertex-ai")
    texts = texts_of(line.body)
    if len(texts) != 1 or line.body.get("encoding_format") == "base64":
        raise refused("input", "one text a line, its vector in numbers")
    more = {name: line.body[name] for name in ("task_type", "title") if line.body.get(name)}
    return encode({"content": texts[0], **more, "requestId": line.custom_id})


def _example(_task: Task, at: int, raw: bytes) -> bytes:
    """A line of OpenAI's training files as Gemini's tuning has it."""
    system, turns = tuning.turns(at, raw)
    made: Fields = {"systemInstruction": {"role": "system", "parts": [{"text": system}]}} if system else {}
    roles = {"user": "user", "assistant": "model"}
    return encode({**made, "contents": [{"role": roles[role], "parts": [{"text": text}]} for role, text in turns]})


async def _file(task: Task) -> Told:
    bucket, key = object_of(task.id, "gs", task.target.bucket)
    return Told(fields=_file_of(await gcs.head(task, bucket, key), bucket, key))


async def _files(task: Task) -> Told:
    bucket, _ = checked(_bucket(task), "-", "x-portkey-vertex-storage-bucket-name")

    async def fetch(token: str) -> tuple[list[Fields], str]:
        found, more = await gcs.listed(task, bucket, token)
        return [_file_of(each, bucket) for each in found], more

    return await paged(task, fetch)


async def _content(task: Task) -> Told:
    bucket, key = object_of(task.id, "gs", task.target.bucket)
    reply = await gcs.get(task, bucket, key)
    pieces = await streamed(reply, failure)
    if _PREDICTIONS.search(key):
        pieces = converted(pieces, partial(_result, task))
    return Told(pieces=pieces, release=reply.close)


class _Row(msgspec.Struct):
    """A line that a job has written."""

    status: Any = ""
    request_id: Any = msgspec.field(default=None, name="requestId")
    custom_id: Any = None
    instance: Any = None
    response: msgspec.Raw = msgspec.Raw()
    predictions: list[Any] | None = None


_row = msgspec.json.Decoder(_Row).decode


def _result(task: Task, _at: int, raw: bytes) -> bytes:
    """A line that a job has written as OpenAI has it."""
    try:
        row = _row(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return raw
    id = str(row.request_id or row.custom_id or within(row.instance, "requestId") or "")
    if row.status:
        said = row.status if isinstance(row.status, str) else encode(row.status).decode()
        return failed(id, id, "failed", said)
    try:
        if row.predictions is not None:
            found = row.predictions[0]["embeddings"]
            tokens = number(within(found, "statistics", "token_count"))
            body = embeddings([found["values"]], {"model": task.model}, tokens)
            return result(id, id, body)
        answer = bytes(row.response)
        if not answer:
            return failed(id, id, "malformed", "There is no answer in the result.")
        dialect = _CLAUDE if b'"candidates"' not in answer and b'"stop_reason"' in answer else _GEMINI
        body = task.means.completion(dialect, answer, task.model)
        return result(str(body["id"]), id, body)
    except ProviderError as error:
        return failed(id, id, error.kind, error.message)
    except (KeyError, IndexError, TypeError):
        return raw


async def _delete(task: Task) -> Told:
    bucket, key = object_of(task.id, "gs", task.target.bucket)
    await gcs.delete(task, bucket, key)
    return Told(fields=deleted(object_id("gs", bucket, key)))


# --- jobs ------------------------------------------------------------------------------------------------------------


async def _ask(task: Task, method: str, path: str, body: Fields | None = None) -> Fields:
    """A call below the project and region of the target."""
    headers = task.target.own_headers() | ({"Content-Type": "application/json"} if body is not None else {})
    url = place(task.target, "v1") + path
    call = HttpCall(url, headers, encode(body) if body is not None else b"", method)
    return decoded(await answered(await task.means.send(call, task.target.auth), failure) or b"{}", "vertex-ai")


def _job(task: Task) -> str:
    """A job's id, which is what its name ends in."""
    id = unquote(task.id).rpartition("/")[2]
    if not _ID.fullmatch(id):
        raise refused("id", "the id of a job", f"'{id[:100]}'")
    return id


async def _pages(task: Task, name: str, convert: Callable[[Fields], Fields]) -> Told:
    window(task)

    async def fetch(token: str) -> tuple[list[Fields], str]:
        query = f"?pageSize={PAGE}" + (f"&pageToken={quote(token, safe='')}" if token else "")
        found = await _ask(task, "GET", name + query)
        return [convert(each) for each in objects(found, name)], str(found.get("nextPageToken") or "")

    return await paged(task, fetch)


def _address(task: Task, name: str) -> str:
    bucket, key = object_of(required(task.fields, name), "gs", task.target.bucket, name)
    return f"gs://{bucket}/{key}"


def _file_id(uri: object) -> str | None:
    bucket, _, key = str(uri or "").removeprefix("gs://").partition("/")
    return object_id("gs", bucket, key) if key else None


def _resource(model: str) -> str:
    """A model's name as jobs have it; one of the project's own is told in full."""
    if model.startswith("projects/"):
        return model
    publisher, name = split(model)
    return f"publishers/{publisher}/models/{name}"


_BATCH_FIELDS = frozenset("model input_file_id endpoint completion_window metadata job_name output_data_config".split())


async def _create(task: Task) -> Told:
    fields = task.fields
    known(fields, _BATCH_FIELDS, "vertex-ai")
    model = str(fields.get("model") or task.model)
    required({"model": model or None}, "model")
    if fields.get("endpoint", CHAT) not in (CHAT, EMBED):
        raise refused("endpoint", f"'{CHAT}' or '{EMBED}'", f"'{str(fields['endpoint'])[:100]}'")
    if fields.get("completion_window", "24h") != "24h":
        raise refused("completion_window", "'24h'")
    source = _address(task, "input_file_id")
    to = fields.get("output_data_config") or source.rpartition("/")[0] + "/"
    to = to if str(to).startswith("gs://") else unquote(str(to))
    object_of(to.rstrip("/") + "/-", "gs", task.target.bucket, "output_data_config")
    body: Fields = {
        "displayName": str(fields.get("job_name") or f"batch-{secrets.token_hex(8)}"),
        "model": _resource(model),
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [source]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": to}},
    }
    if not body["model"].startswith("publishers/anthropic/"):  # whose lines have a place for it
        # What is kept from the model is told with its answer.
        body["instanceConfig"] = {"instanceType": "object", "excludedFields": ["requestId"]}
    if labels := inner(fields, "metadata"):
        body["labels"] = labels
    return Told(fields=_batch_of(await _ask(task, "POST", "batchPredictionJobs", body)))


def _batch_of(job: Fields) -> Fields:
    model = str(job.get("model") or "")
    named = re.fullmatch(r"publishers/(\w+)/models/(.+)", model)
    shown = model if named is None else named[2] if named[1] == "google" else f"{named[1]}.{named[2]}"
    embeds = "embedding" in model
    folder = within(job, "outputInfo", "gcsOutputDirectory")
    output = None
    if folder and batch_status(job.get("state")) in _HAS_OUTPUT:
        output = _file_id(f"{str(folder).rstrip('/')}/{'000000000000' if embeds else 'predictions'}.jsonl")
    uris = within(job, "inputConfig", "gcsSource", "uris")
    source = str(cast("list[Any]", uris)[0]) if isinstance(uris, list) and uris else ""
    counts = None
    if job.get("completionStats") is not None:
        names = ("successfulCount", "failedCount", "incompleteCount")
        done, bad, left = (number(within(job, "completionStats", name)) for name in names)
        counts = (done + bad + left, done, bad)
    return batch_of(
        str(job.get("name") or "").rpartition("/")[2],
        job.get("state"),
        endpoint=EMBED if embeds else CHAT,
        input_file_id=_file_id(source) or "",
        created=moment(job.get("createTime")),
        model=shown or None,
        ended=moment(job.get("endTime")) or moment(job.get("updateTime")),
        counts=counts,
        error=within(job, "error", "message"),
        output_file_id=output,
        in_progress_at=moment(job.get("startTime")),
        metadata=job.get("labels"),
    )


async def _batch(task: Task) -> Told:
    return Told(fields=_batch_of(await _ask(task, "GET", f"batchPredictionJobs/{_job(task)}")))


async def _batches(task: Task) -> Told:
    return await _pages(task, "batchPredictionJobs", _batch_of)


async def _cancel(task: Task) -> Told:
    await _ask(task, "POST", f"batchPredictionJobs/{_job(task)}:cancel", {})
    return await _batch(task)


# --- fine-tuning -----------------------------------------------------------------------------------------------------

_TUNING_FIELDS = frozenset("model training_file validation_file suffix hyperparameters method metadata".split())
_HYPER = {"n_epochs": "epochCount", "learning_rate_multiplier": "learningRateMultiplier"}


async def _tune(task: Task) -> Told:
    fields = task.fields
    known(fields, _TUNING_FIELDS, "vertex-ai")
    spec: Fields = {"trainingDatasetUri": _address(task, "training_file")}
    if fields.get("validation_file"):
        spec["validationDatasetUri"] = _address(task, "validation_file")
    if hyper := hyperparameters(fields, tuple(_HYPER)):
        spec["hyperParameters"] = {_HYPER[name]: value for name, value in hyper.items()}
    body: Fields = {"baseModel": split(required(fields, "model"))[1], "supervisedTuningSpec": spec}
    if fields.get("suffix"):
        body["tunedModelDisplayName"] = required(fields, "suffix")
    if labels := inner(fields, "metadata"):
        body["labels"] = labels
    return Told(fields=_tuning_of(await _ask(task, "POST", "tuningJobs", body)))


def _tuning_of(job: Fields) -> Fields:
    spec: Any = job.get("supervisedTuningSpec")
    stats = within(job, "tuningDataStats", "supervisedTuningDataStats", "totalBillableTokenCount")
    return tuning_of(
        str(job.get("name") or "").rpartition("/")[2],
        job.get("state"),
        model=str(job.get("baseModel") or ""),
        training_file=_file_id(within(spec, "trainingDatasetUri")) or "",
        created=moment(job.get("createTime")),
        hyperparameters={ours: within(spec, "hyperParameters", theirs) for ours, theirs in _HYPER.items()},
        error=within(job, "error", "message"),
        validation_file=_file_id(within(spec, "validationDatasetUri")),
        finished_at=moment(job.get("endTime")),
        fine_tuned_model=within(job, "tunedModel", "model"),
        trained_tokens=number(stats) or None,
        user_provided_suffix=job.get("tunedModelDisplayName"),
        metadata=job.get("labels"),
    )


async def _tuning(task: Task) -> Told:
    return Told(fields=_tuning_of(await _ask(task, "GET", f"tuningJobs/{_job(task)}")))


async def _tunings(task: Task) -> Told:
    return await _pages(task, "tuningJobs", _tuning_of)


async def _cancel_tuning(task: Task) -> Told:
    await _ask(task, "POST", f"tuningJobs/{_job(task)}:cancel", {})
    return await _tuning(task)


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
