"""OpenAI's objects for files, batches and fine-tuning jobs, from what vendors say of theirs.

What must live here: these shapes, the words for statuses, moments, and addresses of objects as ids. What must not: a
vendor's fields.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import quote, unquote

from loomgate import clock
from loomgate.errors import ApiError, bad_request
from loomgate.providers.operation import Fields, refused

# --- statuses --------------------------------------------------------------------------------------------------------

# Every vendor's words, without what they all begin with; batches, then fine-tuning jobs where those are told otherwise.
_BATCH = {
    "validating": "submitted validating scheduled unspecified queued pending paused",
    "in_progress": "inprogress running updating creating creatinginputdataset requeueing idle",
    "finalizing": "writingresults evaluation rollout",
    "completed": "completed partiallycompleted succeeded partiallysucceeded",
    "failed": "failed",
    "expired": "expired earlystopped",
    "cancelling": "stopping cancelling canceling",
    "cancelled": "stopped cancelled canceled deleting deletingcleaningup deleted archived",
}
_TUNING = {
    "validating_files": "validating",
    "queued": "submitted scheduled unspecified queued pending paused creatinginputdataset",
    "running": "inprogress running updating creating requeueing idle writingresults evaluation rollout stopping "
    "cancelling canceling",
    "succeeded": "completed partiallycompleted succeeded partiallysucceeded earlystopped",
    "failed": "failed expired",
    "cancelled": "stopped cancelled canceled deleting deletingcleaningup deleted archived",
}
_BATCH_STATUS = {word: status for status, words in _BATCH.items() for word in words.split()}
_TUNING_STATUS = {word: status for status, words in _TUNING.items() for word in words.split()}
_BEGINNING = re.compile(r"^(JOB_STATE|BATCH_STATUS|STATUS)_")
# Which moment of a batch its end is.
_ENDED = {"completed": "completed_at", "failed": "failed_at", "expired": "expired_at", "cancelled": "cancelled_at"}


def _word(status: object) -> str:
    return _BEGINNING.sub("", str(status or "")).replace("_", "").lower()


def batch_status(status: object) -> str:
    """The status of a batch by the vendor's word for it; one that is new counts as being worked on."""
    return _BATCH_STATUS.get(_word(status), "in_progress")


def tuning_status(status: object) -> str:
    """The same for a fine-tuning job."""
    return _TUNING_STATUS.get(_word(status), "running")


# --- objects ---------------------------------------------------------------------------------------------------------


def file_of(id: str, size: int, created: int | None, name: str, purpose: str, **more: Any) -> Fields:
    """A file of ``size`` bytes. ``more``: its status, if it is not processed."""
    made = {"id": id, "object": "file", "bytes": size, "created_at": created or 0, "filename": name}
    return {**made, "purpose": purpose, "status": "processed", "status_details": None, **more}


def deleted(id: str) -> Fields:
    """What is said of a file that was deleted."""
    return {"id": id, "object": "file", "deleted": True}


def batch_of(
    id: str,
    status: object,
    *,
    input_file_id: str,
    created: int | None,
    model: str | None = None,
    endpoint: str = "/v1/chat/completions",
    window: str = "24h",
    ended: int | None = None,
    counts: tuple[int, int, int] | None = None,
    error: str | None = None,
    **more: Any,
) -> Fields:
    """A batch whose ``status`` is the vendor's word; ``counts``: lines in all, done, failed. Moments are in seconds.

    ``more``: output_file_id, error_file_id, other moments.
    """
    told = batch_status(status)
    made: Fields = {
        "id": id,
        "object": "batch",
        "endpoint": endpoint,
        "model": model,
        "errors": None,
        "input_file_id": input_file_id,
        "completion_window": window,
        "status": told,
        "output_file_id": None,
        "error_file_id": None,
        "created_at": created or 0,
        "in_progress_at": None,
        "expires_at": None,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": None,
        "metadata": None,
        **more,
    }
    if ended is not None and told in _ENDED:
        made[_ENDED[told]] = ended
    if counts is not None:
        made["request_counts"] = dict(zip(("total", "completed", "failed"), counts, strict=True))
    if error:
        found = {"code": _word(status) or "failed", "message": error, "line": None, "param": None}
        made["errors"] = {"object": "list", "data": [found]}
    return made


def tuning_of(
    id: str,
    status: object,
    *,
    model: str,
    training_file: str,
    created: int | None,
    hyperparameters: Fields,
    error: str | None = None,
    **more: Any,
) -> Fields:
    """A fine-tuning job whose ``status`` is the vendor's word."""
    told = tuning_status(status)
    return {
        "id": id,
        "object": "fine_tuning.job",
        "model": model,
        "created_at": created or 0,
        "status": told,
        "fine_tuned_model": None,
        "finished_at": None,
        "training_file": training_file,
        "validation_file": None,
        "hyperparameters": {name: _number(value) for name, value in hyperparameters.items() if value is not None},
        "trained_tokens": None,
        "result_files": [],
        "organization_id": "",
        "seed": 0,
        "error": {"code": told, "message": error, "param": None} if error else None,
        "method": {"type": "supervised"},
        **more,
    }


def moment(text: object) -> int | None:
    """Seconds since 1970 of a date as vendors write it (RFC 3339, or RFC 9110's), or None."""
    if not isinstance(text, str) or not text:
        return None
    try:
        if text[:4].isdigit():
            return int(datetime.fromisoformat(text).timestamp())
        return int(parsedate_to_datetime(text).timestamp())
    except ValueError:
        return None


def now() -> int:
    """This moment, in seconds."""
    return clock.timestamp()


def number(value: object) -> int:
    """A count as vendors write it, who may put it into quotes; 0 for none."""
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() else 0


def _number(value: object) -> object:
    """A number that a vendor wrote as a text; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value) if "." in value else int(value)
    return value


def within(found: object, *names: str) -> Any:
    """A member of a vendor's answer, of an object within an object; None where there is none."""
    for name in names:
        found = cast("Fields", found).get(name) if isinstance(found, dict) else None
    return found


def objects(found: object, name: str) -> list[Fields]:
    """The objects in a list of a vendor's answer; none where there is no list."""
    listed = within(found, name)
    return [each for each in cast("list[Any]", listed) if isinstance(each, dict)] if isinstance(listed, list) else []


# --- ids that are addresses ------------------------------------------------------------------------------------------

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def object_id(scheme: str, bucket: str, key: str) -> str:
    """The id of an object: its address, escaped so that it is one part of a path."""
    return quote(f"{scheme}://{bucket}/{key}", safe="")


def object_of(id: str, scheme: str, only: str | None, param: str = "file_id") -> tuple[str, str]:
    """The bucket and the key of an object by its id, whose escapes may be undone or not.

    Raises a 400 `ApiError` for an id that is no object's, or one in another bucket than ``only``.
    """
    start = scheme + "://"
    text = id if id.startswith(start) else unquote(id)
    bucket, _, key = text.removeprefix(start).partition("/")
    if not text.startswith(start) or not key:
        raise refused(param, f"the id of a file, that is {start}bucket/key with its escapes", f"'{id[:200]}'")
    if only is not None and bucket != only:
        raise refused(param, f"an object in '{only}', the bucket of this key", f"one in '{bucket[:100]}'")
    return checked(bucket, key, param)


def checked(bucket: str, key: str, param: str) -> tuple[str, str]:
    """Both, if they lead nowhere else. Raises a 400 `ApiError`."""
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise refused(param, "the name of a bucket", f"'{bucket[:100]}'")
    if not key.isprintable() or any(part in (".", "..") for part in key.split("/")):
        raise refused(param, "the name of an object without '.' and '..' as a part")
    return bucket, key


# --- bodies ----------------------------------------------------------------------------------------------------------


def required(fields: Fields, name: str, why: str = "") -> str:
    """A text that has to be there. Raises a 400 `ApiError`."""
    found = fields.get(name)
    if isinstance(found, str) and found:
        return found
    if found is None:
        raise bad_request(f"Missing required parameter: '{name}'{why}.", name, "missing_required_parameter")
    raise refused(name, "a text")


def known(fields: Fields, names: Iterable[str], vendor: str) -> None:
    """Raises a 400 `ApiError` for a field that the vendor's jobs have no place for."""
    for name, value in fields.items():
        if value is not None and name not in names:
            raise ApiError(
                400,
                f"Unsupported parameter: '{name[:100]}' has no place in the jobs of the provider '{vendor}'.",
                param=name[:100],
                code="unsupported_parameter",
            )


def hours(fields: Fields, least: int, most: int) -> int:
    """How long a batch may take, in hours, as its ``completion_window`` says. Raises a 400 `ApiError`."""
    found = fields.get("completion_window", "24h")
    match = re.fullmatch(r"(\d{1,4})h", found) if isinstance(found, str) else None
    if match is None or not least <= int(match[1]) <= most:
        raise refused("completion_window", f"hours from '{least}h' to '{most}h'", f"'{str(found)[:20]}'")
    return int(match[1])


_HYPERPARAMETERS = ("n_epochs", "learning_rate_multiplier", "batch_size")


def hyperparameters(fields: Fields, names: tuple[str, ...] = _HYPERPARAMETERS) -> Fields:
    """Those of a fine-tuning job, wherever OpenAI has them; the vendor knows ``names``. Raises a 400 `ApiError` for
    another one, and for another method than supervised."""
    method = inner(fields, "method")
    if method.get("type", "supervised") != "supervised":
        raise refused("method", "the type 'supervised'")
    found = inner(fields, "hyperparameters") or inner(inner(method, "supervised"), "hyperparameters")
    given = {name: value for name, value in found.items() if value not in (None, "auto")}
    for name in given:
        if name not in names:
            raise refused("hyperparameters", " and ".join(names), f"'{name[:100]}'")
    return given


def inner(fields: Fields, name: str) -> Fields:
    """An object of a client's body; an empty one where there is none. Raises a 400 `ApiError` for anything else."""
    found = fields.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise refused(name, "an object")
    return cast("Fields", found)
