"""One frozen `Settings`: what can be set (``declared``) and how it is read (``reading``)."""

from loomgate.settings.declared import (
    DeclaredConfig,
    DeclaredGuardrail,
    Price,
    Provider,
    RunEvent,
    Secret,
    Settings,
    Tree,
    VirtualKey,
    Webhook,
)
from loomgate.settings.reading import Described, check_name, check_url, decode_seal_key, describe, find_file, load

__all__ = [
    "DeclaredConfig",
    "DeclaredGuardrail",
    "Described",
    "Price",
    "Provider",
    "RunEvent",
    "Secret",
    "Settings",
    "Tree",
    "VirtualKey",
    "Webhook",
    "check_name",
    "check_url",
    "decode_seal_key",
    "describe",
    "find_file",
    "load",
]
