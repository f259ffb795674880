"""Ids: a prefix and 24 characters of ``[A-Za-z0-9]`` (BEHAVIOUR ID-01), never reused (ID-10)."""

import random
import secrets
import string
from typing import Literal

_ALPHABET = string.ascii_letters + string.digits
# 24 characters from 18 random bytes would not be uniform over 62 letters; 62**24 is 142 bits, so one big
# random number is drawn and written in base 62.
_LENGTH = 24
_SPAN = len(_ALPHABET) ** _LENGTH

Prefix = Literal["asst", "thread", "msg", "run", "step", "call", "key", "vk", "cred", "evt", "wh", "chatcmpl"]


def new_id(prefix: Prefix) -> str:
    """A fresh id such as ``run_9hXk…`` (24 characters after the underscore), unguessable and unique."""
    number = secrets.randbelow(_SPAN)
    letters: list[str] = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, 62)
        letters.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(letters)}"


def new_request_id() -> str:
    """``req_`` and 32 lower-case hex digits (BEHAVIOUR HDR-20)."""
    # Unique, but no secret: the quick generator, which does not ask the operating system each time.
    return f"req_{random.getrandbits(128):032x}"
