"""The route table: every path and method of the API, on one page (BEHAVIOUR CONV-01).

Paths are relative to a prefix of `PREFIXES`. The order counts: ``/threads/runs`` comes before ``/threads/{thread_id}``.
"""

from typing import Literal, NamedTuple

from loomgate.http import accounts, assistants, configs, integrations, logs, runs, threads
from loomgate.http.call import Handler

Method = Literal["GET", "POST", "PUT", "DELETE"]
# openai: the beta header is required. azure: it is not, but ``api-version`` is. azure-v1 (Azure's newer form) and
# portkey: neither.
Dialect = Literal["openai", "azure", "azure-v1", "portkey"]


class Row(NamedTuple):
    """One operation; ``extension`` marks what OpenAI's API does not have (docs/extensions.md)."""

    method: Method
    path: str
    handler: Handler
    extension: bool = False


PREFIXES: list[tuple[str, Dialect]] = [("/v1", "openai"), ("/openai/v1", "azure-v1"), ("/openai", "azure")]

_THREAD = "/threads/{thread_id}"
_MESSAGE = _THREAD + "/messages/{message_id}"
_RUN = _THREAD + "/runs/{run_id}"

ROUTES: list[Row] = [
    Row("GET", "/assistants", assistants.page),
    Row("POST", "/assistants", assistants.create),
    Row("GET", "/assistants/{assistant_id}", assistants.get),
    Row("POST", "/assistants/{assistant_id}", assistants.modify),
    Row("DELETE", "/assistants/{assistant_id}", assistants.delete),
    Row("POST", "/threads/runs", runs.create_with_thread),
    Row("GET", "/threads", threads.page, extension=True),
    Row("POST", "/threads", threads.create),
    Row("GET", _THREAD, threads.get),
    Row("POST", _THREAD, threads.modify),
    Row("DELETE", _THREAD, threads.delete),
    Row("GET", _THREAD + "/messages", threads.page_messages),
    Row("POST", _THREAD + "/messages", threads.create_message),
    Row("GET", _MESSAGE, threads.get_message),
    Row("POST", _MESSAGE, threads.modify_message),
    Row("DELETE", _MESSAGE, threads.delete_message),
    Row("GET", _THREAD + "/runs", runs.page),
    Row("POST", _THREAD + "/runs", runs.create),
    Row("GET", _RUN, runs.get),
    Row("POST", _RUN, runs.modify),
    Row("POST", _RUN + "/cancel", runs.cancel),
    Row("POST", _RUN + "/submit_tool_outputs", runs.submit_tool_outputs),
    Row("GET", _RUN + "/stream", runs.stream, extension=True),
    Row("GET", _RUN + "/steps", runs.page_steps),
    Row("GET", _RUN + "/steps/{step_id}", runs.get_step),
]

# Portkey's, below ``/v1`` only, with any key of the workspace whose logs they are.
LOG_ROUTES: list[Row] = [
    Row("GET", "/logs", logs.page, extension=True),
    Row("POST", "/logs", logs.insert),
    Row("GET", "/logs/{log_id}", logs.get),
    Row("GET", "/model-configs/pricing/{provider}/{model:path}", logs.pricing),
]

_MODELS, _WORKSPACES = "/integrations/{slug}/models", "/integrations/{slug}/workspaces"

# Portkey's control plane, below ``/v1`` only: no beta header, and keys of the role ``admin`` (docs/gateway/admin.md).
ADMIN_ROUTES: list[Row] = [
    Row("GET", "/virtual-keys", accounts.page_virtual_keys),
    Row("POST", "/virtual-keys", accounts.create_virtual_key),
    Row("GET", "/virtual-keys/{slug}", accounts.get_virtual_key),
    Row("PUT", "/virtual-keys/{slug}", accounts.update_virtual_key),
    Row("DELETE", "/virtual-keys/{slug}", accounts.KEYS.delete),
    Row("GET", "/providers", accounts.page_providers),
    Row("POST", "/providers", accounts.create_provider),
    Row("GET", "/providers/{slug}", accounts.get_provider),
    Row("PUT", "/providers/{slug}", accounts.update_provider),
    Row("DELETE", "/providers/{slug}", accounts.delete_provider),
    Row("GET", "/integrations", integrations.page),
    Row("POST", "/integrations", integrations.create),
    Row("GET", "/integrations/{slug}", integrations.get),
    Row("PUT", "/integrations/{slug}", integrations.update),
    Row("DELETE", "/integrations/{slug}", integrations.delete),
    Row("GET", _MODELS, integrations.page_models),
    Row("PUT", _MODELS, integrations.update_models),
    Row("DELETE", _MODELS, integrations.delete_models),
    Row("GET", _WORKSPACES, integrations.page_workspaces),
    Row("PUT", _WORKSPACES, integrations.update_workspaces),
    Row("GET", "/configs", configs.page_configs),
    Row("POST", "/configs", configs.create_config),
    Row("GET", "/configs/{slug}", configs.get_config),
    Row("PUT", "/configs/{slug}", configs.update_config),
    Row("DELETE", "/configs/{slug}", configs.CONFIGS.delete),
    Row("GET", "/configs/{slug}/versions", configs.page_versions),
    Row("GET", "/guardrails", configs.page_guardrails),
    Row("POST", "/guardrails", configs.create_guardrail),
    Row("GET", "/guardrails/{guardrail_id}", configs.get_guardrail),
    Row("PUT", "/guardrails/{guardrail_id}", configs.update_guardrail),
    Row("DELETE", "/guardrails/{guardrail_id}", configs.GUARDRAILS.delete),
]
