"""The tables. A row is promoted columns (what SQL has to find or guard) and ``body``, the encoded wire Struct.

What must live here: table and index definitions. What must not: statements, or anything that runs them.
Times are whole seconds, except ``due``, which is milliseconds since the epoch.
"""

from typing import Any

import sqlalchemy as sa

from loomgate.wire import lifecycle

# Texts are compared and ordered by their bytes, on both engines: ids of the log are in the order of time.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> sa.Column[str]:
    return sa.Column("id", TEXT, primary_key=True)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, TEXT, nullable=nullable)


def _integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))


def _where(condition: str) -> dict[str, Any]:
    """What makes an index a partial one; for PostgreSQL see `on_postgresql`."""
    return {"sqlite_where": sa.text(condition), "info": {"where": condition}}


def _blob(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=False)


# A workspace is the border that no key sees across. ``positions`` is the last order key given to a child.
workspaces = sa.Table("workspaces", metadata, _id(), _counter("positions"), _integer("created_at"))

api_keys = sa.Table(
    "api_keys",
    metadata,
    _id(),
    _text("workspace"),
    _text("name"),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),  # SHA-256 of the secret; see store/keys.py
    _text("hint"),
    _integer("created_at"),
    _integer("revoked_at", nullable=True),
    _text("role"),  # admin: may also use the admin routes of its workspace
)


def _account(name: str) -> sa.Table:
    """A way to a vendor: ``sealed`` is its key, ``data`` the provider data, sealed too, ``about`` what is no secret."""
    return sa.Table(
        name,
        metadata,
        sa.Column("workspace", TEXT, primary_key=True),
        sa.Column("slug", TEXT, primary_key=True),
        _text("provider"),
        _text("base_url", nullable=True),
        _blob("sealed"),
        _integer("created_at"),
        sa.Column("id", TEXT, nullable=False, unique=True),
        _text("name"),
        _text("integration", nullable=True),  # whose key is used in place of an own one
        sa.Column("data", sa.LargeBinary, nullable=True),
        _blob("about"),
        _integer("updated_at"),
    )


# What clients name; Portkey calls the same rows virtual keys and providers. An integration is an account with a vendor,
# from which such rows are made.
virtual_keys = _account("virtual_keys")
integrations = _account("integrations")

# Saved configs and guardrails (``kind``). The body is that of the version; all of it is sealed, since it may hold keys.
documents = sa.Table(
    "documents",
    metadata,
    sa.Column("workspace", TEXT, primary_key=True),
    sa.Column("kind", TEXT, primary_key=True),
    sa.Column("slug", TEXT, primary_key=True),
    sa.Column("id", TEXT, nullable=False, unique=True),
    _text("name"),
    _text("status"),
    sa.Column("is_default", sa.Boolean, nullable=False),
    _text("version_id"),
    _integer("created_at"),
    _integer("updated_at"),
    _text("created_by", nullable=True),  # the id of an API key; null: the operator
    _text("updated_by", nullable=True),
)

document_versions = sa.Table(
    "document_versions",
    metadata,
    _id(),
    _text("document_id"),
    _integer("number"),
    _text("name"),
    _blob("sealed"),
    _integer("created_at"),
    _text("created_by", nullable=True),
    sa.Index(None, "document_id", "number", unique=True),
)

# How often a workspace's virtual keys, integrations, configs and guardrails have changed: what was made of them and
# kept in memory is no longer right when the number has moved (store/generations.py).
generations = sa.Table("generations", metadata, sa.Column("workspace", TEXT, primary_key=True), _integer("number"))

# A client's own provider key, sealed, for the runs that it started (one row per distinct key).
credentials = sa.Table(
    "credentials",
    metadata,
    _id(),
    _text("workspace"),
    sa.Column("digest", sa.LargeBinary, nullable=False),  # keyed hash: finds the row again, tells nothing
    _blob("sealed"),
    _integer("created_at"),
    sa.UniqueConstraint("workspace", "digest"),
)

assistants = sa.Table(
    "assistants",
    metadata,
    _id(),
    _text("workspace"),
    _integer("position"),
    _blob("private"),  # which sampling values somebody chose (BEHAVIOUR RSN-03)
    _blob("body"),
    sa.Index(None, "workspace", "position", unique=True),
)

# ``positions``: the last order key given to a message, run or step of this thread; taking the next one locks
# the row, so the order of a list is the order of commits.
threads = sa.Table(
    "threads",
    metadata,
    _id(),
    _text("workspace"),
    _integer("position"),
    _counter("positions"),
    _counter("messages"),
    _text("on_active_run", nullable=True),
    _blob("body"),
    sa.Index(None, "workspace", "position", unique=True),
)

# One row per metadata pair of a thread, so that a filtered list of threads costs as little as a plain one.
thread_tags = sa.Table(
    "thread_tags",
    metadata,
    sa.Column("workspace", TEXT, primary_key=True),
    sa.Column("key", TEXT, primary_key=True),
    sa.Column("value", TEXT, primary_key=True),
    sa.Column("position", sa.BigInteger, primary_key=True),
    _text("thread_id"),
    sa.Index(None, "thread_id"),
)

# Threads that were deleted: their rows go in small steps, so that no delete holds the others up.
purges = sa.Table("purges", metadata, sa.Column("thread_id", TEXT, primary_key=True))

messages = sa.Table(
    "messages",
    metadata,
    _id(),
    _text("thread_id"),
    _integer("position"),
    _text("run_id", nullable=True),
    # Where the message stands for the model: a run's messages stand where the run does (docs/why/order.md).
    _integer("place"),
    _text("role"),
    _blob("body"),
    sa.Index(None, "thread_id", "position", unique=True),
    sa.Index(None, "thread_id", "place", "position"),
    # With the thread in front, or SQLite would rather walk the thread in order than look for the run.
    sa.Index("ix_messages_run", "thread_id", "run_id", "position", **_where("run_id IS NOT NULL")),
)

# Conditions of partial indexes; a statement goes by such an index where it has the same words (``claims``).
# Runs that may start: each holds its thread.
QUEUED = f"status = '{lifecycle.INITIAL_RUN}' AND holds IS NOT NULL"
# Runs that a worker was given, or that are to be ended by one.
HELD = "due IS NOT NULL AND status IN (" + ", ".join(f"'{status}'" for status in sorted(lifecycle.HELD)) + ")"
# All others that some worker has to come back to.
OWED = f"due IS NOT NULL AND (status <> '{lifecycle.INITIAL_RUN}' OR holds IS NULL)"

runs = sa.Table(
    "runs",
    metadata,
    _id(),
    _text("workspace"),
    _text("thread_id"),
    _integer("position"),
    _text("status"),
    _integer("expires_at"),  # kept when the body's becomes null
    # The thread lock: the thread's id while this run holds it, else null. Unique, so two runs cannot hold one.
    _text("holds", nullable=True),
    # When the run next needs a worker, in milliseconds: now (queued), at the end of a lease (leased), at
    # expires_at (waiting for the client or for its turn), never (null: terminal). The table is the queue.
    _integer("due", nullable=True),
    _counter("fence"),
    _text("worker", nullable=True),
    _blob("spec"),
    _blob("body"),
    sa.Index(None, "thread_id", "position", unique=True),
    # Partial: else SQLite would look through all runs that hold nothing for one that waits.
    sa.Index("uq_runs_holds", "holds", unique=True, **_where("holds IS NOT NULL")),
    # Runs that wait for their turn in a thread whose rule is to enqueue.
    sa.Index("ix_runs_waiting", "thread_id", "position", **_where("holds IS NULL AND due IS NOT NULL")),
    sa.Index("ix_runs_due", "due", **_where("due IS NOT NULL")),
    # What a claim looks at (docs/why/leases.md).
    sa.Index("ix_runs_queued", "workspace", "due", **_where(QUEUED)),
    sa.Index("ix_runs_queued_expires_at", "expires_at", **_where(QUEUED)),
    sa.Index("ix_runs_held", "workspace", "status", "due", **_where(HELD)),
    sa.Index("ix_runs_owed", "due", **_where(OWED)),
)

steps = sa.Table(
    "steps",
    metadata,
    _id(),
    _text("thread_id"),
    _text("run_id"),
    _integer("position"),
    _integer("turn"),  # the model turn (1, 2, …) that the step belongs to
    _text("status"),
    # Tokens of the turn, kept here while the step is open: its body shows them when it is completed (STEP-08).
    sa.Column("usage", sa.LargeBinary, nullable=True),
    _blob("body"),
    sa.Index(None, "run_id", "position", unique=True),
    sa.Index(None, "thread_id"),
)

# Webhook calls still to be made: written with the status change they tell of, so none is lost or invented.
# ``position`` orders the events of one run for one endpoint; ``due`` (milliseconds) is null while an earlier one of
# these is not over, and again when this one is, which is what ``ended_at`` says.
deliveries = sa.Table(
    "deliveries",
    metadata,
    _id(),
    _text("endpoint"),
    _text("run_id"),
    _integer("position"),
    _counter("attempts"),
    _integer("created_at"),
    _integer("due", nullable=True),
    _integer("ended_at", nullable=True),
    _text("outcome", nullable=True),
    _blob("payload"),  # emptied when it was delivered
    sa.Index("ix_deliveries_due", "endpoint", "due", **_where("due IS NOT NULL")),
    sa.Index(
        "ix_deliveries_owed",
        "endpoint",
        "run_id",
        "position",
        unique=True,
        **_where("ended_at IS NULL"),
    ),
    sa.Index("ix_deliveries_ended_at", "ended_at", **_where("ended_at IS NOT NULL")),
)

# The log of calls. Ids are in the order in which the calls ended, and a time is a place among them (wire/calls.py), so
# one index serves order, cursors, time filters and age.
calls = sa.Table(
    "calls",
    metadata,
    _id(),
    _text("workspace"),
    _integer("status"),
    _text("provider"),
    _text("model"),
    _text("trace_id"),
    _blob("body"),
    sa.Column("request", sa.LargeBinary, nullable=True),
    sa.Column("response", sa.LargeBinary, nullable=True),
    sa.Index(None, "workspace", "id"),
    sa.Index(None, "workspace", "trace_id", "id"),
)

# What virtual keys have spent, by day (UTC, days since the epoch): what a budget is held against after a restart.
spending = sa.Table(
    "spending",
    metadata,
    sa.Column("workspace", TEXT, primary_key=True),
    sa.Column("virtual_key", TEXT, primary_key=True),
    sa.Column("day", sa.BigInteger, primary_key=True),
    sa.Column("cost", sa.Double, nullable=False),  # USD
    _integer("tokens"),
)

# A row for each connection of a node to PostgreSQL: the number of its last write, and when (store/postgres.py). Empty
# in a SQLite file.
writers = sa.Table("writers", metadata, _id(), _integer("number"), _integer("at"))


def on_postgresql() -> None:
    """Make the partial indexes such on PostgreSQL as well: for whoever makes or compares tables there. Done here when
    they are declared, it would load that dialect, 80 ms, into every server on SQLite."""
    for table in metadata.tables.values():
        for index in table.indexes:
            if "where" in index.info:
                index.dialect_options["postgresql"]["where"] = sa.text(index.info["where"])
