"""Jobs of AWS Bedrock (bedrock 2023-04-20): files are objects in S3, batches are model invocation jobs, fine-tuning is
model customization.

What must live here: what these services take and tell. What must not: S3 (``s3``), Converse (``providers/bedrock``).
"""

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from urllib.parse import quote, unquote

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers.bedrock import Bedrock
from loomgate.providers.bedrock_answer import failure
from loomgate.providers.dialect import HttpCall
from loomgate.providers.jobs import s3, tuning
from loomgate.providers.jobs.form import uploaded
from loomgate.providers.jobs.job import PAGE, Task, Told, Verbs, answered, decoded, paged, streamed, window
from loomgate.providers.jobs.lines import CHAT, converted, encode, failed, line_of, refusing, result
from loomgate.providers.jobs.shapes import (
    batch_of,
    batch_status,
    checked,
    deleted,
    file_of,
    hours,
    hyperparameters,
    inner,
    known,
    moment,
    now,
    number,
    object_id,
    object_of,
    objects,
    required,
    tuning_of,
    within,
)
from loomgate.providers.operation import Fields, refused

_CONVERSE = Bedrock()
_BUCKET_HEADER = "the header x-portkey-aws-s3-bucket with the name of a bucket"
# When a job has ended so, there is what it got done.
_HAS_OUTPUT = frozenset({"completed", "expired"})


# --- files -----------------------------------------------------------------------------------------------------------


def _bucket(task: Task) -> str:
    found = task.option("aws_s3_bucket")
    if not found:
        raise refused("x-portkey-aws-s3-bucket", _BUCKET_HEADER)
    return found


async def _upload(task: Task) -> Told:
    file = await uploaded(task, ("batch", "fine-tune"), streams=True)
    key = task.option("aws_s3_object_key") or task.header("provider-file-name") or f"{secrets.token_hex(12)}.jsonl"
    bucket, key = checked(_bucket(task), key.lstrip("/"), "x-portkey-aws-s3-object-key")
    if not key.endswith(".jsonl"):
        raise refused("x-portkey-aws-s3-object-key", "a name that ends in .jsonl", key[:100])
    convert = partial(_request if file.purpose == "batch" else _example, task)
    pieces = converted(file.pieces, convert)
    size = await s3.put(task, bucket, key, pieces, {"purpose": file.purpose, "filename": file.filename})
    return Told(fields=file_of(object_id("s3", bucket, key), size, now(), file.filename, file.purpose))


def _request(task: Task, at: int, raw: bytes) -> bytes:
    """A line of OpenAI's batches as one of Bedrock's, of the type Converse."""
    line = line_of(at, raw, *task.urls(CHAT))

    def convert() -> bytes:
        call = task.means.chat({**line.body, "model": line.body.get("model") or task.model or "unnamed"})
        body = _CONVERSE.request(call, task.target).body
        return encode({"recordId": line.custom_id, "modelInput": msgspec.Raw(body)})

    return refusing(at, convert)


def _example(_task: Task, at: int, raw: bytes) -> bytes:
    """A line of OpenAI's training files as Bedrock has them for models that converse."""
    system, turns = tuning.turns(at, raw)
    made: Fields = {"schemaVersion": "bedrock-conversation-2024"}
    if system:
        made["system"] = [{"text": system}]
    messages = [{"role": role, "content": [{"text": text}]} for role, text in turns]
    return encode({**made, "messages": messages})


async def _file(task: Task) -> Told:
    bucket, key = object_of(task.id, "s3", task.target.bucket)
    found = await s3.head(task, bucket, key)
    name = found.name or key.rpartition("/")[2]
    purpose = found.purpose or ("batch_output" if key.endswith(".out") else "batch")
    return Told(fields=file_of(object_id("s3", bucket, key), found.size, found.modified, name, purpose))


async def _files(task: Task) -> Told:
    """Objects in the bucket: their list does not tell what each is for."""
    bucket, _ = checked(_bucket(task), "-", "x-portkey-aws-s3-bucket")
    prefix = task.option("aws_s3_object_key")

    async def fetch(token: str) -> tuple[list[Fields], str]:
        objects, more = await s3.listed(task, bucket, prefix, token)
        data = [
            file_of(
                object_id("s3", bucket, each.key),
                each.size,
                each.modified,
                each.key.rpartition("/")[2],
                "batch_output" if each.key.endswith(".out") else "batch",
            )
            for each in objects
        ]
        return data, more

    return await paged(task, fetch)


async def _content(task: Task) -> Told:
    bucket, key = object_of(task.id, "s3", task.target.bucket)
    reply = await s3.get(task, bucket, key)
    pieces = await streamed(reply, s3.failure)
    if key.endswith(".jsonl.out"):
        pieces = converted(pieces, partial(_result, task))
    return Told(pieces=pieces, release=reply.close)


def _result(task: Task, _at: int, raw: bytes) -> bytes:
    """A line of a job's output as OpenAI has it; one of another kind of job stays what it is."""
    try:
        found = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        custom_id = str(msgspec.json.decode(found["recordId"]))
        if "modelOutput" in found:
            output: Any = msgspec.json.decode(found["modelOutput"])
            if not isinstance(output, dict) or "output" not in output:
                return raw  # what InvokeModel gives is the model's own format
            body = task.means.completion(_CONVERSE, bytes(found["modelOutput"]), task.model)
            return result(body["id"], custom_id, body)
        error: Any = msgspec.json.decode(found["error"])
        return failed(custom_id, custom_id, error.get("errorCode"), str(error.get("errorMessage") or ""))
    except ProviderError as error:
        return failed("", _id_in(raw), error.kind, error.message)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, AttributeError, RecursionError):
        return raw


def _id_in(raw: bytes) -> str:
    return str(msgspec.json.decode(raw, type=dict[str, Any]).get("recordId") or "")


async def _delete(task: Task) -> Told:
    bucket, key = object_of(task.id, "s3", task.target.bucket)
    await s3.delete(task, bucket, key)
    return Told(fields=deleted(object_id("s3", bucket, key)))


# --- the control plane -----------------------------------------------------------------------------------------------


async def _ask(task: Task, method: str, path: str, body: Fields | None = None) -> Fields:
    """A call of the service that has the jobs: it is beside the one that has the models."""
    base = task.target.base_url.rstrip("/")
    if s3.is_awss_own(base):
        base = base.replace("bedrock-runtime", "bedrock", 1)
    headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
    if task.target.api_key:
        headers["Authorization"] = "Bearer " + task.target.api_key
    call = HttpCall(base + path, {**headers, **task.target.headers}, encode(body) if body is not None else b"", method)
    answer = await answered(await task.means.send(call, task.target.auth), failure)
    return decoded(answer or b"{}", "bedrock")


def _identifier(task: Task) -> str:
    """A job by its ARN, or by what that ends in; escaped as one part of a path."""
    return quote(unquote(task.id), safe="")


def _role(fields: Fields) -> str:
    """The role as which the job reads and writes the bucket."""
    found = {"role_arn": fields.get("role_arn") or fields.get("roleArn")}
    return required(found, "role_arn", ", the role that may read and write the bucket")


def _destination(task: Task, source: str) -> str:
    """Where results go: what the client says, or beside the input."""
    fields = task.fields
    found = fields.get("output_data_config") or fields.get("outputDataConfig")
    if found is None:
        return source.rpartition("/")[0] + "/"
    if not isinstance(found, str):
        raise refused("output_data_config", "an address that begins with s3://")
    text = found if found.startswith("s3://") else unquote(found)
    object_of(text.rstrip("/") + "/-", "s3", task.target.bucket, "output_data_config")
    return text


def _metadata(fields: Fields) -> list[Fields]:
    """As the tags of a job."""
    return [{"key": key, "value": str(value)} for key, value in inner(fields, "metadata").items()]


def _name(fields: Fields, start: str) -> str:
    found = fields.get("job_name") or fields.get("jobName")
    return str(found) if found else f"{start}-{secrets.token_hex(8)}"


# --- batches ---------------------------------------------------------------------------------------------------------

_BATCH_FIELDS = frozenset(
    "model input_file_id endpoint completion_window metadata role_arn roleArn job_name jobName output_data_config "
    "outputDataConfig".split()
)


async def _create(task: Task) -> Told:
    fields = task.fields
    known(fields, _BATCH_FIELDS, "bedrock")
    model = str(fields.get("model") or task.model)
    required({"model": model or None}, "model")
    if fields.get("endpoint", CHAT) != CHAT:
        raise refused("endpoint", f"'{CHAT}'", f"'{str(fields['endpoint'])[:100]}'")
    bucket, key = object_of(required(fields, "input_file_id"), "s3", task.target.bucket, "input_file_id")
    source = f"s3://{bucket}/{key}"
    destination: Fields = {"s3Uri": _destination(task, source)}
    if encryption := task.option("amz_server_side_encryption_aws_kms_key_id"):
        destination["s3EncryptionKeyId"] = encryption
    lasts = hours(fields, 24, 168)
    body: Fields = {
        "jobName": _name(fields, "batch"),
        "modelId": model,
        "modelInvocationType": "Converse",
        "roleArn": _role(fields),
        "inputDataConfig": {"s3InputDataConfig": {"s3Uri": source, "s3InputFormat": "JSONL"}},
        "outputDataConfig": {"s3OutputDataConfig": destination},
        "timeoutDurationInHours": lasts,
        "clientRequestToken": secrets.token_hex(16),
    }
    if tags := _metadata(fields):
        body["tags"] = tags
    made = await _ask(task, "POST", "/model-invocation-job", body)
    if not made.get("jobArn"):
        raise ProviderError("malformed", "Bedrock created a job without telling its ARN.")
    job = {**body, **made, "status": "Submitted"}
    return Told(fields={**_batch_of(job, now()), "metadata": fields.get("metadata")})


def _batch_of(job: Fields, created: int | None = None) -> Fields:
    source = str(within(job, "inputDataConfig", "s3InputDataConfig", "s3Uri") or "")
    to = str(within(job, "outputDataConfig", "s3OutputDataConfig", "s3Uri") or "").rstrip("/")
    arn = str(job.get("jobArn") or "")
    output = None
    if batch_status(job.get("status")) in _HAS_OUTPUT:
        bucket, _, folder = to.removeprefix("s3://").partition("/")
        name = f"{arn.rpartition('/')[2]}/{source.rpartition('/')[2]}.out"
        output = object_id("s3", bucket, f"{folder}/{name}" if folder else name)
    counts = None
    if job.get("totalRecordCount") is not None:
        names = ("totalRecordCount", "successRecordCount", "errorRecordCount")
        counts = cast("tuple[int, int, int]", tuple(number(job.get(name)) for name in names))
    bucket, _, key = source.removeprefix("s3://").partition("/")
    return batch_of(
        quote(arn, safe=""),
        job.get("status"),
        input_file_id=object_id("s3", bucket, key),
        created=created or moment(job.get("submitTime")),
        model=job.get("modelId"),
        window=f"{number(job.get('timeoutDurationInHours')) or 24}h",
        ended=moment(job.get("endTime")) or moment(job.get("lastModifiedTime")),
        counts=counts,
        error=job.get("message"),
        output_file_id=output,
        expires_at=moment(job.get("jobExpirationTime")),
    )


async def _batch(task: Task) -> Told:
    return Told(fields=_batch_of(await _ask(task, "GET", f"/model-invocation-job/{_identifier(task)}")))


async def _batches(task: Task) -> Told:
    return await _pages(task, "/model-invocation-jobs", "invocationJobSummaries", _batch_of)


async def _pages(task: Task, path: str, name: str, convert: Callable[[Fields], Fields]) -> Told:
    window(task)

    async def fetch(token: str) -> tuple[list[Fields], str]:
        query = f"?maxResults={PAGE}&sortBy=CreationTime&sortOrder=Descending"
        query += f"&nextToken={quote(token, safe='')}" if token else ""
        found = await _ask(task, "GET", path + query)
        return [convert(each) for each in objects(found, name)], str(found.get("nextToken") or "")

    return await paged(task, fetch)


async def _cancel(task: Task) -> Told:
    await _ask(task, "POST", f"/model-invocation-job/{_identifier(task)}/stop", {})
    return await _batch(task)


# --- fine-tuning -----------------------------------------------------------------------------------------------------

_TUNING_FIELDS = frozenset(
    "model training_file validation_file suffix hyperparameters method metadata role_arn roleArn job_name jobName "
    "output_data_config outputDataConfig".split()
)
# What Bedrock calls the hyperparameters; it takes them as texts.
_HYPER = {"n_epochs": "epochCount", "batch_size": "batchSize", "learning_rate_multiplier": "learningRateMultiplier"}


async def _tune(task: Task) -> Told:
    fields = task.fields
    known(fields, _TUNING_FIELDS, "bedrock")
    model = required(fields, "model")
    source = _address(task, "training_file")
    body: Fields = {
        "customizationType": "FINE_TUNING",
        "jobName": _name(fields, "tuning"),
        "customModelName": required(fields, "suffix", ", the name of the model that is made"),
        "roleArn": _role(fields),
        "baseModelIdentifier": model,
        "trainingDataConfig": {"s3Uri": source},
        "outputDataConfig": {"s3Uri": _destination(task, source)},
        "clientRequestToken": secrets.token_hex(16),
    }
    if fields.get("validation_file"):
        body["validationDataConfig"] = {"validators": [{"s3Uri": _address(task, "validation_file")}]}
    if hyper := hyperparameters(fields):
        body["hyperParameters"] = {_HYPER[name]: str(value) for name, value in hyper.items()}
    if tags := _metadata(fields):
        body["jobTags"] = tags
    made = await _ask(task, "POST", "/model-customization-jobs", body)
    if not made.get("jobArn"):
        raise ProviderError("malformed", "Bedrock created a job without telling its ARN.")
    job = {**body, **made, "baseModelArn": model, "status": "InProgress"}
    return Told(fields={**_tuning_of(job, now()), "metadata": fields.get("metadata")})


def _address(task: Task, name: str) -> str:
    bucket, key = object_of(required(task.fields, name), "s3", task.target.bucket, name)
    return f"s3://{bucket}/{key}"


def _file_id(config: object) -> str | None:
    uri = str(within(config, "s3Uri") or "")
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return object_id("s3", bucket, key) if key else None


def _tuning_of(job: Fields, created: int | None = None) -> Fields:
    validators = objects(job.get("validationDataConfig"), "validators")
    return tuning_of(
        quote(str(job.get("jobArn") or ""), safe=""),
        job.get("status"),
        model=str(job.get("baseModelArn") or ""),
        training_file=_file_id(job.get("trainingDataConfig")) or "",
        created=created or moment(job.get("creationTime")),
        hyperparameters={ours: within(job, "hyperParameters", theirs) for ours, theirs in _HYPER.items()},
        error=job.get("failureMessage"),
        validation_file=_file_id(validators[0]) if validators else None,
        finished_at=moment(job.get("endTime")),
        fine_tuned_model=job.get("outputModelArn") or job.get("customModelArn"),
        user_provided_suffix=job.get("outputModelName") or job.get("customModelName"),
    )


async def _tuning(task: Task) -> Told:
    return Told(fields=_tuning_of(await _ask(task, "GET", f"/model-customization-jobs/{_identifier(task)}")))


async def _tunings(task: Task) -> Told:
    return await _pages(task, "/model-customization-jobs", "modelCustomizationJobSummaries", _tuning_of)


async def _cancel_tuning(task: Task) -> Told:
    await _ask(task, "POST", f"/model-customization-jobs/{_identifier(task)}/stop", {})
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
