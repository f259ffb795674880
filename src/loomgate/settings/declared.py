"""Every key of the settings with its type, default and meaning: a field of a Struct here, and nowhere else.

What must live here: declarations. What must not: where values come from (``reading``), and knowledge of the rooms
that use a setting (so a provider's ``vendor`` is only a name here).
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, final

import msgspec
from msgspec import Meta

RunEvent = Literal[
    "thread.run.created",
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.requires_action",
    "thread.run.completed",
    "thread.run.incomplete",
    "thread.run.failed",
    "thread.run.cancelling",
    "thread.run.cancelled",
    "thread.run.expired",
]


@final
class Secret:
    """A value that no repr, str, format or message shows; `reveal` gives it to the one place that needs it.

    An empty secret is false.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """The plain value: for a header or a key derivation, never for a log, an error or a page."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret()"


@final
class Tree:
    """A table of the file as it is, in JSON's types, with its secrets looked up; no repr or message shows it.

    An empty tree is false.
    """

    __slots__ = ("_value",)

    def __init__(self, value: Mapping[str, Any] | None = None) -> None:
        self._value: dict[str, Any] = dict(value or {})

    def reveal(self) -> dict[str, Any]:
        """The plain table. Do not change it."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and other._value == self._value

    def __hash__(self) -> int:
        return hash(repr(self._value))

    def __repr__(self) -> str:
        return "Tree(***)" if self._value else "Tree()"


# The shapes that several keys share. `Meta.pattern` is searched, hence the anchors.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A model endpoint that the operator declares as ``[providers.NAME]``; times are in seconds."""

    name: Name
    vendor: Annotated[Name, Meta(description="Row of the provider catalogue that it speaks like; left out: NAME.")]
    base_url: Annotated[str, Meta(description="Where its API begins; empty: the vendor's own address.")] = ""
    api_key: Annotated[Secret, Meta(description="The operator's key for it; empty: calls carry no key.")] = Secret()
    project: Annotated[
        Name,
        Meta(description="Google Cloud project, for `vertex-ai`; empty: the one in the service account's key file."),
    ] = ""
    region: Annotated[
        Name,
        Meta(
            description="Where the vendor runs the model, for `bedrock` (empty: the region in `base_url`, else"
            " `us-east-1`) and `vertex-ai` (empty: `global`)."
        ),
    ] = ""
    aws_access_key_id: Annotated[
        Secret, Meta(description="The access key id that requests to `bedrock` are signed with, in place of `api_key`.")
    ] = Secret()
    aws_secret_access_key: Annotated[
        Secret, Meta(description="The secret access key that belongs to `aws_access_key_id`.")
    ] = Secret()
    aws_session_token: Annotated[
        Secret, Meta(description="The session token of temporary AWS keys; empty: the keys are long-lived.")
    ] = Secret()
    options: Annotated[
        Tree,
        Meta(
            description="What else the vendor wants to know, such as `resource_name` or `workers_ai_account_id`;"
            " [admin](gateway/admin.md#provider-data) has the names."
        ),
    ] = Tree()
    models: Annotated[
        tuple[str, ...],
        Meta(description="Patterns of the models it gets when a client names no provider; empty: its vendor's."),
    ] = ()
    default: Annotated[
        bool,
        Meta(
            description="Gets the models that no pattern claims; left out: true if it is the only provider declared"
            " and has no `models`."
        ),
    ] = False
    connect_seconds: Annotated[float, Meta(gt=0, description="Longest wait for a connection.")] = 10.0
    first_byte_seconds: Annotated[float, Meta(gt=0, description="Longest wait for the answer to begin.")] = 120.0
    idle_seconds: Annotated[float, Meta(gt=0, description="Longest silence within an answer.")] = 120.0
    total_seconds: Annotated[float, Meta(gt=0, description="Longest time for one attempt as a whole.")] = 600.0
    max_attempts: Annotated[
        int, Meta(ge=1, le=20, description="Attempts for one model call, the first one included.")
    ] = 4


class VirtualKey(msgspec.Struct, frozen=True, kw_only=True):
    """A slug that clients send as ``x-portkey-virtual-key``, declared as ``[virtual_keys.SLUG]``."""

    slug: Name
    provider: Annotated[Name, Meta(description="Name of a declared provider or of a vendor in the catalogue.")]
    api_key: Annotated[Secret, Meta(description="The key it stands for; empty: the provider's own key.")] = Secret()
    base_url: Annotated[str, Meta(description="Where the API begins; empty: the provider's own address.")] = ""
    options: Annotated[Tree, Meta(description="As a provider's `options`, in addition to those.")] = Tree()
    workspace: Annotated[Name, Meta(description="The workspace whose API keys may use it.")] = "default"


_Dollars = Annotated[float, Meta(ge=0)] | None


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs, declared as ``[prices."PROVIDER/MODEL"]``: a row in place of the one that ships."""

    input: Annotated[_Dollars, Meta(description="USD per million tokens of input; embeddings have no other price.")] = (
        None
    )
    cached_input: Annotated[
        _Dollars, Meta(description="USD per million tokens that the vendor read from its cache; left out: `input`.")
    ] = None
    cache_write: Annotated[
        _Dollars, Meta(description="USD per million tokens that the vendor wrote to its cache; left out: `input`.")
    ] = None
    output: Annotated[_Dollars, Meta(description="USD per million tokens of output, reasoning included.")] = None
    character: Annotated[_Dollars, Meta(description="USD per million characters of text to speak.")] = None
    image: Annotated[_Dollars, Meta(description="USD per image made.")] = None
    second: Annotated[_Dollars, Meta(description="USD per second of audio heard.")] = None
    search: Annotated[_Dollars, Meta(description="USD per search, such as a rerank request.")] = None


class DeclaredConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A routing config that clients name by its slug in ``x-portkey-config``, declared as ``[configs.SLUG]``."""

    slug: Name
    config: Annotated[Tree, Meta(description="The config itself: a table, or `file:` and the path of a JSON file.")]
    workspace: Annotated[Name, Meta(description="The workspace whose API keys may use it.")] = "default"
    default: Annotated[
        bool, Meta(description="Used for the workspace's requests that name no provider, virtual key or config.")
    ] = False


class DeclaredGuardrail(msgspec.Struct, frozen=True, kw_only=True):
    """A guardrail that configs name by its slug, declared as ``[guardrails.SLUG]``."""

    slug: Name
    guardrail: Annotated[
        Tree,
        Meta(
            description="`checks` (a list of `id` and `parameters`), `deny`, `async`, `on_success`, `on_fail`: a table,"
            " or `file:` and the path of a JSON file."
        ),
    ]
    workspace: Annotated[Name, Meta(description="The workspace whose configs may name it.")] = "default"


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Where run events are delivered, declared as ``[[webhooks]]``; signed as Standard Webhooks says.

    Private addresses are allowed: the operator chose them, no client can.
    """

    url: Annotated[str, Meta(description="Address that receives the events by POST.")]
    secret: Annotated[Secret, Meta(description="Signing secret: `whsec_` and 24 to 64 bytes in base64.")]
    events: Annotated[tuple[RunEvent, ...], Meta(description="Names of the events to send; empty: all of them.")] = ()
    workspace: Annotated[Name, Meta(description="The workspace whose runs it hears of.")] = "default"

    def signing_key(self) -> bytes:
        """The secret's bytes, with which deliveries are signed (HMAC-SHA256, Standard Webhooks)."""
        return base64.b64decode(self.secret.reveal().removeprefix("whsec_"), validate=True)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of a server. Made by `load`; a key named ``*_seconds`` is in seconds, ``*_bytes`` in bytes."""

    host: Annotated[str, Meta(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0: any free one.")] = 8787
    data: Annotated[Path, Meta(description="Folder for the database and the seal key.")] = Path("./loomgate-data")
    database_url: Annotated[
        Secret,
        Meta(
            description="`postgresql://…`, as libpq takes it, for any number of nodes; or `sqlite:///` and a path;"
            " empty: `loomgate.db` in the data folder."
        ),
    ] = Secret()
    database_connections: Annotated[int, Meta(ge=2, description="Most connections of one process to PostgreSQL.")] = 16
    database_wait_seconds: Annotated[
        float,
        Meta(gt=0, description="Longest wait for one of them while all are taken; then requests get a 503."),
    ] = 5.0
    database_retry_seconds: Annotated[
        float,
        Meta(gt=0, description="How long a transaction is tried again while PostgreSQL cannot be reached; then 503."),
    ] = 10.0
    redis_url: Annotated[
        Secret,
        Meta(
            description="`redis://…`, `rediss://…` or `unix://…` of the Redis or Valkey that the nodes of one"
            " PostgreSQL share; empty: there is one node only."
        ),
    ] = Secret()
    redis_prefix: Annotated[Name, Meta(description="What the names of all keys and channels there begin with.")] = (
        "loomgate"
    )
    seal_key: Annotated[
        Secret,
        Meta(
            description="Key that seals stored secrets: 32 bytes in base64 or hex, the same on every node of a"
            " PostgreSQL; empty (on SQLite): kept in `seal.key` in `data`."
        ),
    ] = Secret()
    drive_runs: Annotated[
        bool,
        Meta(description="Whether `loomgate serve` drives runs too; false: it answers requests, workers drive."),
    ] = True
    worker_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="Port on which `loomgate worker` answers `/health`, `/ready` and `/metrics`; 0: none.",
        ),
    ] = 0
    max_body_bytes: Annotated[
        # 64 MiB: a few dozen messages of 256,000 characters (BEHAVIOUR LIM-13), each \uXXXX-escaped to six bytes.
        int, Meta(ge=1024, description="Largest request body; a larger one is answered with 413.")
    ] = 64 * 1024 * 1024
    max_upload_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            description="Largest request with a file for a bucket, which is passed on as it comes if it is larger than"
            " `max_body_bytes` (docs/gateway/jobs.md).",
        ),
    ] = 1024 * 1024 * 1024
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least serious log line that is written.")
    ] = "info"
    run_ttl_seconds: Annotated[
        int, Meta(ge=1, description="How long a run may take before it expires, if its request does not say.")
    ] = 600
    run_ttl_max_seconds: Annotated[
        int, Meta(ge=1, description="The longest time to expiry that a request may ask for its run.")
    ] = 86400
    worker_concurrency: Annotated[int, Meta(ge=1, description="How many runs one process drives at a time.")] = 256
    workspace_runs: Annotated[
        int,
        Meta(
            ge=0,
            description="How many runs of one workspace all workers together drive at a time, the others wait queued;"
            " 0: no limit.",
        ),
    ] = 0
    lease_seconds: Annotated[
        float, Meta(gt=0, description="After this long without a renewal another worker takes a run over.")
    ] = 15.0
    lease_renew_seconds: Annotated[
        float, Meta(gt=0, description="How often a worker renews its leases; at most half of `lease_seconds`.")
    ] = 5.0
    poll_interval_seconds: Annotated[
        float, Meta(gt=0, description="How often an idle worker looks for runs that nobody told it of.")
    ] = 1.0
    poll_after_ms: Annotated[
        int, Meta(ge=0, description="The wait between polls that `openai-poll-after-ms` suggests; 0: header not sent.")
    ] = 200
    active_thread: Annotated[
        Literal["reject", "enqueue", "interrupt"],
        Meta(
            description="What a second run or message on a thread with an active run meets: a 400, waiting its turn,"
            " or cancelling the first."
        ),
    ] = "reject"
    cancel_on_disconnect: Annotated[
        bool, Meta(description="Cancel a streamed run when its client goes away; false: the run goes on.")
    ] = False
    stream_keepalive_seconds: Annotated[
        float, Meta(gt=0, description="A silent stream gets a comment line this often.")
    ] = 15.0
    stream_retention_seconds: Annotated[
        float, Meta(ge=0, description="How long an event stays available to a viewer that comes late or back.")
    ] = 600.0
    stream_retention_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Most bytes of such events that a process keeps, the oldest go first; with `redis_url`, of one"
            " run, about.",
        ),
    ] = 16 * 1024 * 1024
    cache_bytes: Annotated[
        int,
        Meta(ge=0, description="Most memory for answers that configs with a `cache` keep; 0: none is kept."),
    ] = 64 * 1024 * 1024
    cache_max_age_seconds: Annotated[
        int, Meta(ge=60, le=7_776_000, description="How long an answer is kept, if its config gives no `max_age`.")
    ] = 604_800
    cache_max_age_limit_seconds: Annotated[
        int, Meta(ge=60, le=7_776_000, description="The longest `max_age`; a config that asks for more gets this.")
    ] = 7_776_000
    semantic_cache_model: Annotated[
        str,
        Meta(
            description="Embedding model of semantic caches, as clients name it: `@PROVIDER/MODEL`; empty: a config"
            " with one is refused."
        ),
    ] = ""
    workspace_requests_per_minute: Annotated[
        int, Meta(ge=0, description="Most requests that a workspace may make within a minute; 0: no limit.")
    ] = 0
    workspace_concurrency: Annotated[
        int, Meta(ge=0, description="Most requests of a workspace at a time, open streams included; 0: no limit.")
    ] = 0
    key_requests_per_minute: Annotated[
        int, Meta(ge=0, description="Most requests that an API key may make within a minute; 0: no limit.")
    ] = 0
    key_concurrency: Annotated[
        int, Meta(ge=0, description="Most requests of an API key at a time, open streams included; 0: no limit.")
    ] = 0
    drain_seconds: Annotated[
        float, Meta(ge=0, description="How long a stopping server lets requests and runs finish.")
    ] = 10.0
    drain_delay_seconds: Annotated[
        float,
        Meta(
            ge=0,
            description="How long before that it still takes requests, so that a load balancer notices by `/ready`.",
        ),
    ] = 0.0
    sqlite_synchronous: Annotated[
        Literal["full", "normal"],
        Meta(description="`full`: what is acknowledged survives a power cut; `normal`: faster, may lose a second."),
    ] = "full"
    webhook_retry_seconds: Annotated[
        tuple[Annotated[float, Meta(ge=0)], ...],
        Meta(description="Waits before the second and every later attempt to deliver an event; then it is given up."),
    ] = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
    log_calls: Annotated[bool, Meta(description="Keep a record of every call through the gateway.")] = True
    log_body_bytes: Annotated[
        int, Meta(ge=0, description="Most bytes of a request and of an answer that a record keeps; 0: none.")
    ] = 65536
    log_retention_days: Annotated[int, Meta(ge=0, description="How long a record of a call is kept; 0: for good.")] = 30
    context_window: Annotated[
        Mapping[str, Annotated[int, Meta(ge=256)]],
        Meta(description="Pattern of model names to context size in tokens, before the built-in table."),
    ] = {}
    providers: Annotated[Mapping[str, Provider], Meta(description="Model endpoints by name, see below.")] = {}
    virtual_keys: Annotated[Mapping[str, VirtualKey], Meta(description="Virtual keys by slug, see below.")] = {}
    configs: Annotated[Mapping[str, DeclaredConfig], Meta(description="Routing configs by slug, see below.")] = {}
    guardrails: Annotated[Mapping[str, DeclaredGuardrail], Meta(description="Guardrails by slug, see below.")] = {}
    webhooks: Annotated[tuple[Webhook, ...], Meta(description="Receivers of run events, see below.")] = ()
    prices: Annotated[Mapping[str, Price], Meta(description="Prices of models over those that ship, see below.")] = {}

    @property
    def postgres(self) -> bool:
        """Is the database a PostgreSQL, and not a file of SQLite?"""
        return self.database_url.reveal().startswith(("postgresql://", "postgres://"))

    @property
    def database_path(self) -> Path:
        """The SQLite file that ``database_url`` and ``data`` stand for."""
        url = self.database_url.reveal()
        return Path(url.removeprefix("sqlite:///")) if url else self.data / "loomgate.db"

    @property
    def default_provider(self) -> Provider | None:
        """The provider for models that no pattern claims, if there is one."""
        return next((provider for provider in self.providers.values() if provider.default), None)
